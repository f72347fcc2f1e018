#!/usr/bin/env bash
# Runs test programs, as many side by side as there are processors, then scripts one after another, and adds up what
# they report. Each ends with a line "Pass: N, fail: N, skip: N."; one that does not, or that ends badly without a failed
# test, counts as one failure; so does a skipped test. Fuzz targets run over their corpus. The last line is "N passed, N
# failed".
cd "$(dirname "$0")/.." || exit 1
scratch=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; wait; rm -rf "$scratch"' EXIT
trap 'exit 1' INT TERM
passed=0 failed=0 number=0 total=$#

run() { # program, where its log goes; the exit status and the seconds it took are written beside that
    local started=$SECONDS
    case $1 in
    build/fuzz/*) timeout 300 "$1" -runs=0 "tests/fuzz/corpus/${1#build/fuzz/}" ;;
    *.sh) timeout 900 bash "$1" ;;
    *) timeout 300 "$1" ;;
    esac >"$2" 2>&1 </dev/null
    echo $? $((SECONDS - started)) >"$2.end"
}

tell() { # program, its log
    local counts p f s status seconds
    read -r status seconds <"$2.end"
    counts=$(sed -n 's/^Pass: \([0-9]*\), fail: \([0-9]*\), skip: \([0-9]*\)\..*/\1 \2 \3/p' "$2" | tail -n 1)
    [ -z "$counts" ] && case $1 in build/fuzz/*) [ "$status" = 0 ] && counts="1 0 0" ;; esac
    read -r p f s <<<"${counts:-0 1 0}"
    [ "$status" != 0 ] && [ "$f" = 0 ] && f=1
    f=$((f + s)) number=$((number + 1))
    passed=$((passed + p)) failed=$((failed + f))
    printf '[%2d/%d] %-34s %4d passed  %d failed  %ds\n' $number $total "${1#build/}" "$p" "$f" "$seconds"
    [ "$f" != 0 ] && { echo "---- $1 (exit status $status)"; tail -n 60 "$2"; echo "----"; }
    rm -f "$2" "$2.end"
}

declare -A started # by process: a program
finish_one() {
    local pid
    wait -n -p pid "${!started[@]}"
    tell "${started[$pid]}" "$scratch/${started[$pid]//\//_}"
    unset "started[$pid]"
}

for program in "$@"; do
    case $program in *.sh) continue ;; esac
    [ ${#started[@]} -ge "$(nproc)" ] && finish_one
    run "$program" "$scratch/${program//\//_}" &
    started[$!]=$program
done
while [ ${#started[@]} -gt 0 ]; do finish_one; done
for program in "$@"; do
    case $program in *.sh) ;; *) continue ;; esac
    run "$program" "$scratch/script"
    tell "$program" "$scratch/script"
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
