#!/usr/bin/env bash
# build/plb_pick says for each line of its input what the strategies were recorded to answer, and names what is wrong.
cd "$(dirname "$0")/.." || exit 1
. tests/shell.sh
pick=build/plb_pick
vectors=tests/vectors
two=(10.0.0.1:80 10.0.0.2:80)
three=("${two[@]}" 10.0.0.3:80)

# The backends picked for keys a, b, c, ..., by the last number of their address: "1 2 none".
picks() { # how many keys, arguments
    head -c "$1" <<<abcdefghijklmnopqrstuvwxyz | fold -w 1 | $pick "${@:2}" | cut -f 2 |
        sed -E 's/:[0-9]+$//; s/.*\.//' | paste -sd ' '
}

# ---- recorded answers ----

# Lines KEY;ADDRESS are what is printed but for the separator.
recorded() { # file, arguments
    sed -E 's/;([^;]*)$/\t\1/' "$1" >"$scratch/expected"
    sed 's/;[^;]*$//' "$1" | $pick "${@:2}" | diff - "$scratch/expected"
}
for set in a b; do grep "^$set;" $vectors/nginx-ip-hash.csv | cut -d ';' -f 2- >"$scratch/ip-hash-$set.csv"; done
rule "ketama: nginx-a.csv" \
    recorded $vectors/nginx-a.csv -s ketama 127.0.0.1:17001 127.0.0.1:17002 127.0.0.3:17003
rule "ketama: nginx-b.csv" \
    recorded $vectors/nginx-b.csv -s ketama 127.0.0.2:443,weight=5 127.0.0.3:443 127.0.0.4:8080,weight=2 \
    127.0.0.5:443,weight=10 127.0.0.6:1234 127.0.0.7:443,weight=3 127.0.0.8:443 127.0.0.9:65535
rule "ip_hash: nginx-ip-hash.csv, set a" \
    recorded "$scratch/ip-hash-a.csv" -s ip_hash 127.0.0.1:1001 127.0.0.2:1001 127.0.0.3:1001
rule "ip_hash: nginx-ip-hash.csv, set b" \
    recorded "$scratch/ip-hash-b.csv" -s ip_hash 127.0.0.1:1001,weight=5 127.0.0.2:1001 127.0.0.3:1001,weight=2 \
    127.0.0.4:1001

# select.txt has cases with backends down, and four limits.
select_txt() { # strategy
    local number backends max
    while IFS=';' read -r _ number backends; do
        backends=$(sed -E 's/ ([0-9]+) up/,weight=\1/g; s/ ([0-9]+) down/,weight=\1,down/g; s/,([0-9[])/ \1/g' <<<"$backends")
        for max in 1 2 3 256; do
            awk -F ';' -v s="$1" -v c="$number" -v m=$max '$1 == s && $2 == c && $4 == m {print $3 "\t" $5}' \
                $vectors/select.txt >"$scratch/expected"
            [ -s "$scratch/expected" ] || return 1
            # shellcheck disable=SC2086 # a list of backends
            cut -f 1 "$scratch/expected" | $pick -s "$1" -n $max $backends | diff - "$scratch/expected" || return 1
        done
    done < <(grep '^set;' $vectors/select.txt)
}
rule "ketama: select.txt" select_txt ketama
rule "fnv: select.txt" select_txt fnv

# Sixty picks of weights from the start, servers numbered from 1.
smooth() {
    local weights expected backends i weight
    while IFS=';' read -r weights expected; do
        backends=() i=0
        for weight in $weights; do backends+=("10.0.0.$((i += 1)):80,weight=$weight"); done
        is "$(yes | head -n 60 | $pick -s wrr "${backends[@]}" | sed -E 's/.*\.([0-9]+):80$/\1/' | paste -sd ' ')" \
            "${expected% }" || return 1
    done <$vectors/nginx-smooth-wrr.txt
}
rule "wrr: nginx-smooth-wrr.txt" smooth

# ---- strategies, states, limits ----

rule "rr goes through its list in order" is "$(picks 8 -s rr 10.0.0.1:80 10.0.0.2:80,weight=2)" "1 2 2 1 2 2 1 2"
for strategy in rr random fnv ketama wrr least_conn p2c ewma maglev bounded rendezvous; do
    rule "$strategy picks only what is up" is "$(picks 5 -s $strategy 10.0.0.1:80,down 10.0.0.2:80)" "2 2 2 2 2"
    rule "$strategy says none when all are down" is "$(picks 2 -s $strategy 10.0.0.1:80,down 10.0.0.2:80,weight=0)" \
        "none none"
    rule "$strategy takes a backup when no other is up" \
        is "$(picks 3 -s $strategy 10.0.0.1:80,down 10.0.0.2:80,backup)" "2 2 2"
    rule "$strategy takes no backup while another is up" \
        is "$(picks 3 -s $strategy 10.0.0.1:80 10.0.0.2:80,weight=9,backup)" "1 1 1"
done
rule "bounded at rest is ketama" bash -c "
    seq 1000 | $pick -s bounded ${three[*]} | cmp - <(seq 1000 | $pick -s ketama ${three[*]})"
rule "-n 1 looks no further than the first" bash -c "
    seq 1000 | $pick -s ketama -n 1 ${two[*]} 10.0.0.3:80,down | grep -q '	none\$'"
rule "-n 0 finds one that is up" bash -c "
    ! seq 1000 | $pick -s ketama -n 0 ${two[*]} 10.0.0.3:80,weight=5000,down | grep '	none\$'"
far() { seq 1000 | $pick -s ketama "$@" 10.0.0.1:80 10.0.0.2:80,weight=5000,down; }
rule "-n is 256 when it is not given" is "$(far)" "$(far -n 256)"
rule "and that is a limit" bash -c "[ '$(far | md5sum)' != '$(far -n 0 | md5sum)' ]"
rule "-m makes another ring" bash -c "
    ! seq 1000 | $pick -s ketama -m 40 ${three[*]} | cmp -s - <(seq 1000 | $pick -s ketama ${three[*]})"
rule "-m 160 is the default" bash -c "
    seq 1000 | $pick -s ketama -m 160 ${three[*]} | cmp - <(seq 1000 | $pick -s ketama ${three[*]})"
rule "options may stand behind backends" is "$(picks 2 10.0.0.1:80 -s rr)" "1 1"
rule "the order of the arguments changes nothing" bash -c "
    seq 100 | $pick -s fnv 10.0.0.2:80 10.0.0.1:80 | cmp - <(seq 100 | $pick -s fnv ${two[*]})"
rule "addresses are printed as they are always written" \
    is "$(echo k | $pick -s rr '[0:0::1]:80')" $'k\t[::1]:80'
rule "Unix sockets are backends" is "$(echo k | $pick -s ketama unix:/run/a)" $'k\tunix:/run/a'

# ---- keys ----

rule "the last line needs no newline" is "$(printf 'a\nb' | $pick -s rr 10.0.0.1:80)" $'a\t10.0.0.1:80\nb\t10.0.0.1:80'
rule "no line, no answer" is "$(printf '' | $pick -s rr 10.0.0.1:80)" ""
rule "an empty line is an empty key" is "$(echo | $pick -s ketama 10.0.0.1:80)" $'\t10.0.0.1:80'
rule "all bytes of a key come out again: CR, NUL, any" bash -c "
    head -c 200000 /dev/urandom >'$scratch/bytes'; printf 'x\r\n\0\n' >>'$scratch/bytes'
    $pick -s fnv 10.0.0.1:80 <'$scratch/bytes' | LC_ALL=C sed 's/\t10.0.0.1:80\$//' | cmp - '$scratch/bytes'"
rule "a NUL belongs to the key" bash -c "
    i=0; while [ \$((i += 1)) -lt 100 ]; do printf 'a\0%d\n' \$i; done | $pick -s fnv ${three[*]} | cut -f 2 | sort -u |
    wc -l | grep -qx 3"
rule "a key may have a million bytes" bash -c "
    head -c 1000000 /dev/zero | tr '\0' x | $pick -s ketama 10.0.0.1:80 | wc -c | grep -qx 1000013"
rule "ip_hash takes an address in any usual form" is "$(printf '%s\n' 192.0.2.1 192.0.2.99:80 2001:db8::1 '[2001:db8::1]' \
    '[2001:db8::1]:443' | $pick -s ip_hash "${three[@]}" | cut -f 2 | uniq -c | awk '{print $1}' | paste -sd ' ')" "2 3"

# ---- shares and moves ----

seq 20000 >"$scratch/keys"
rule "--spread counts what the lines say" bash -c "
    $pick -s ketama ${three[*]} <'$scratch/keys' | cut -f 2 | sort | uniq -c | awk '{print \$2, \$1}' |
    diff - <($pick -s ketama --spread ${three[*]} <'$scratch/keys' | awk 'NR > 1 {print \$1, \$2}')"
$pick -s rr --spread 10.0.0.1:80 10.0.0.2:80,weight=2 10.0.0.3:80,weight=0,down 10.0.0.4:80,backup unix:/s,weight=0 \
    <"$scratch/keys" >"$scratch/spread"
rule "--spread shows count, share, what the weight asks for, and a bar" diff "$scratch/spread" - <<'END'
backend            keys    share    asked
10.0.0.1:80        6667   33.34%   33.33%  ####################
10.0.0.2:80       13333   66.67%   66.67%  ########################################
10.0.0.3:80           0    0.00%    0.00%
10.0.0.4:80           0    0.00%    0.00%
unix:/s               0    0.00%    0.00%
END
rule "--spread counts keys that nobody gets" bash -c "
    seq 5 | $pick -s rr --spread 10.0.0.1:80,down | grep -qE '^none +5 +100.00%\$'"
rule "--spread: backups are asked when no other is up" bash -c "
    seq 4 | $pick -s rr --spread 10.0.0.1:80,down 10.0.0.2:80,backup | grep -qE '^10.0.0.2:80 +4 +100.00% +100.00% +#+\$'"
rule "--spread of nothing is nothing" bash -c "
    $pick -s rr --spread 10.0.0.1:80 </dev/null | grep -qE '^10.0.0.1:80 +0 +0.00% +100.00%\$'"

# Against two runs of one line a key.
moves() { # strategy
    local own moved
    $pick -s "$1" "${three[@]}" <"$scratch/keys" >"$scratch/before"
    $pick -s "$1" 10.0.0.1:80 10.0.0.3:80 <"$scratch/keys" >"$scratch/after"
    own=$(grep -c '10.0.0.2:80$' "$scratch/before")
    moved=$(paste "$scratch/before" "$scratch/after" | awk '$2 != "10.0.0.2:80" && $2 != $4' | wc -l)
    $pick -s "$1" --without 10.0.0.2:80 "${three[@]}" <"$scratch/keys" >"$scratch/moves"
    is "$(grep -oE 'its own, which move +[0-9]+|others that moved too +[0-9]+' "$scratch/moves" | awk '{print $NF}' |
        paste -sd ' ')" "$own $moved"
}
for strategy in fnv ketama maglev bounded rendezvous; do
    rule "--without counts what moves: $strategy" moves $strategy
done
rule "--without: with ketama no key of others moves" bash -c "
    $pick -s ketama --without 10.0.0.2:80 ${three[*]} <'$scratch/keys' | grep -q 'too *0 *0.00% of the others'"
rule "--without the only one: all move" bash -c "
    $pick -s ketama --without 10.0.0.1:80 10.0.0.1:80 <'$scratch/keys' | grep -q 'move *20000 *100.00% of all'"

# ---- what is wrong is named ----

wrong() { # status, what the message says, arguments; the input is in $scratch/input
    $pick "${@:3}" <"$scratch/input" >"$scratch/out" 2>"$scratch/err"
    local got=$?
    cat "$scratch/err"
    [ $got = "$1" ] && grep -qF -- "$2" "$scratch/err" && { [ "$1" = 1 ] || grep -q -- --help "$scratch/err"; }
}
echo key >"$scratch/input"
rule "no argument at all" wrong 2 "-s is needed"
rule "no strategy" wrong 2 "-s is needed" 10.0.0.1:80
rule "no backend" wrong 2 "no backend" -s rr
rule "an unknown strategy" wrong 2 "'best' is none of rr, random, fnv, ketama" -s best 10.0.0.1:80
rule "an unknown option" wrong 2 "'--wrong' is not an option" --wrong
for option in -s -n -m --without; do
    rule "$option without a value" wrong 2 "$option needs a value" 10.0.0.1:80 $option
done
for bad in x -1 "" 1x 4294967296 99999999999; do
    rule "-n '$bad'" wrong 2 "-n: '$bad' is not a number from 0 to 4294967295" -s rr -n "$bad" 10.0.0.1:80
done
rule "-m 0" wrong 2 "-m: '0' is not a number from 1 to" -s ketama -m 0 10.0.0.1:80
rule "-m without a ring" wrong 2 "-m: 'fnv' has no ring" -s fnv -m 40 10.0.0.1:80
for bad in 10.0.0.1 10.0.0.1:0 localhost:80 "[::1]" ""; do
    rule "backend '$bad'" wrong 2 "backend '$bad': '$bad' is not an address such as" -s rr "$bad"
done
for bad in up weight=2x weight=-1 weight= weight=65536 "" "down "; do
    rule "attribute '$bad'" wrong 2 "backend '10.0.0.1:80,$bad': '$bad' is" -s rr "10.0.0.1:80,$bad"
done
rule "a backend twice" wrong 2 "backend '[::1]:80' is given twice" -s rr "[::1]:80" 10.0.0.1:80 "[0::1]:80,weight=3"
rule "--without something else" wrong 2 "--without: '10.0.0.3:80' is not one of the backends" \
    -s ketama --without 10.0.0.3:80 "${two[@]}"
rule "--without no address" wrong 2 "--without: 'x' is not an address such as" -s ketama --without x "${two[@]}"
for strategy in rr random wrr least_conn p2c ewma; do
    rule "--without a key: $strategy" wrong 2 "--without: '$strategy' has no key" \
        -s $strategy --without 10.0.0.1:80 "${two[@]}"
done
rule "--spread and --without" wrong 2 "one of them at a time" -s ketama --spread --without 10.0.0.1:80 "${two[@]}"
rule "too many points" wrong 2 "too many points" -s ketama 10.0.0.1:80,weight=65535 10.0.0.2:80,weight=65535
printf '192.0.2.1\n192.0.2.1\r\n' >"$scratch/input"
rule "a line that is no address, with its number" wrong 2 "line 2: '192.0.2.1?' is not an address" -s ip_hash "${two[@]}"
rule "the lines before it are answered" test "$(wc -l <"$scratch/out")" = 1
for bad in unix:/a host 1.2.3.4:0 "" "[::1" 1.2.3; do
    echo "$bad" >"$scratch/input"
    rule "a client '$bad'" wrong 2 "line 1: '$bad' is not an address" -s ip_hash "${two[@]}"
done
rule "input that cannot be read is an error" bash -c "
    $pick -s rr 10.0.0.1:80 </ >/dev/null 2>'$scratch/err'; [ \$? = 1 ] && grep -q 'standard input: ' '$scratch/err'"
rule "closed input is an error" bash -c "
    $pick -s rr 10.0.0.1:80 <&- >/dev/null 2>'$scratch/err'; [ \$? = 1 ] && grep -q 'standard input: ' '$scratch/err'"
for mode in "" --spread "--without 10.0.0.1:80"; do
    rule "output that cannot be written is an error ${mode%% *}" bash -c "
        seq 10 | $pick -s ketama $mode ${two[*]} >/dev/full 2>'$scratch/err'
        [ \$? = 1 ] && grep -q 'standard output: ' '$scratch/err'"
done
rule "and ends endless input" bash -c "yes | timeout 10 $pick -s rr 10.0.0.1:80 >/dev/full 2>/dev/null; [ \$? = 1 ]"
for option in -h --help; do
    rule "$option explains itself" bash -c "$pick $option 2>&1 >'$scratch/out' | cmp - /dev/null && grep -q ^usage: '$scratch/out'"
done
rule "-h has every strategy" bash -c "
    for s in rr random wrr least_conn p2c ewma fnv ketama maglev bounded rendezvous ip_hash; do
        grep -qw \$s '$scratch/out' || exit 1; done"
report
