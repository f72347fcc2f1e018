#!/usr/bin/env bash
# ports/plb_win32.h, built by MinGW and run by Wine: the library's own tests, the port's, and load_balancer.exe between
# a client and origins that know nothing of Windows. Microsoft's compiler is played by clang, which knows its language,
# and MinGW's headers.
cd "$(dirname "$0")/../.." || exit 1
. tests/shell.sh
PATH=$PATH:/usr/sbin:/usr/lib/wine
built=build/win32

# Wine in a world of its own, without a desktop. Its server keeps running meanwhile, and ends with the test.
export WINEPREFIX=$scratch/wine WINEDEBUG=-all HOME=$scratch
export WINEDLLOVERRIDES="explorer.exe,services.exe,winemenubuilder.exe,mscoree,mshtml=d"
unset DISPLAY
wine_end() {
    timeout 20 wineserver -k >/dev/null 2>&1
    cleanup
}
trap wine_end EXIT

# ---- building ----

printf '#define %s\n#include "%s"\n' PINGORA_LB_IMPLEMENTATION pingora_lb.h \
    PLB_PROXY_IMPLEMENTATION ports/plb_proxy.h >"$scratch/core"
printf '#define %s\n#include "%s"\n' PLB_WIN32_IMPLEMENTATION ports/plb_win32.h | cat "$scratch/core" - >"$scratch/port"

variants=(-UPLB_STATIC -DPLB_STATIC -DPLB_NO_THREADS)
warnings() { # file, compiler, options: no warning, whatever is left out
    local variant
    for variant in "${variants[@]}"; do
        timeout 120 "$2" -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror -fsyntax-only "${@:3}" "$variant" \
            -I. "$scratch/$1" || return 1
    done
}
rule "C99 has nothing to say against plb_win32.h" warnings port x86_64-w64-mingw32-gcc -x c -std=c99
rule "nor has C++11" warnings port x86_64-w64-mingw32-g++ -x c++ -std=c++11

# The defines are guards of headers full of vectors, which MinGW's draw in and would take the extensions out of.
variants=(-UPLB_STATIC)
msvc=(-isystem tests/ports/msvc -isystem tests/ports/msvc/libc -Wno-language-extension-token)
x64=(--target=x86_64-pc-windows-msvc "${msvc[@]}" -isystem /usr/share/mingw-w64/include
    -D__X86INTRIN_H -D__MMINTRIN_H -D__XMMINTRIN_H -D__EMMINTRIN_H -D__IMMINTRIN_H -D__IA32INTRIN_H)
arm64=(--target=aarch64-pc-windows-msvc "${msvc[@]}")
rule "nor Microsoft's C11" warnings port clang -x c -std=c11 "${x64[@]}"
rule "nor its C++14" warnings port clang -x c++ -std=c++14 "${x64[@]}"
rule "nor Microsoft's C11 for ARM64 against the library" warnings core clang -x c -std=c11 "${arm64[@]}"
rule "nor its C++14" warnings core clang -x c++ -std=c++14 "${arm64[@]}"
rule "everything builds" timeout 600 make --no-print-directory -j"$(nproc)" win32-units win32 build/plb_pick

# ---- the units: what they count, counts here ----

mkdir -p "$WINEPREFIX"
rule "Wine starts" timeout 120 wine64 wineboot -i </dev/null
timeout 20 wineserver -p >/dev/null 2>&1

unit() { # name, how many tests may be skipped
    local status counts p f s
    case $1 in
    msvc_*) timeout 120 "$built/$1" >"$scratch/unit.log" 2>&1 ;;
    *) timeout 120 wine64 "$built/$1.exe" >"$scratch/unit.log" 2>&1 </dev/null ;;
    esac
    status=$?
    counts=$(tr -d '\r' <"$scratch/unit.log" |
        sed -n 's/^Pass: \([0-9]*\), fail: \([0-9]*\), skip: \([0-9]*\)\..*/\1 \2 \3/p' | tail -n 1)
    read -r p f s <<<"${counts:-0 1 0}"
    [ "$s" = "${2:-0}" ] || f=$((f + 1))
    [ "$status" != 0 ] && [ "$f" = 0 ] && f=1
    passes=$((passes + p)) fails=$((fails + f))
    printf '%-16s %4d passed  %d failed  %d skipped\n' "$1" "$p" "$f" "$s"
    [ "$f" = 0 ] || { echo "exit status $status"; tail -n 30 "$scratch/unit.log"; }
}
unit conformance 9 # of Unix paths, which Wine has not
for name in $(make -s win32-list); do
    [ "$name" = conformance ] || unit "$name"
done

# ---- the load balancer between real peers ----

lb=$built/load_balancer.exe

balancer_start() { # arguments: sets pid_lb; listens on port_lb
    wine64 $lb --listen "127.0.0.1:$port_lb" "$@" >"$scratch/lb.out" 2>"$scratch/lb.err" </dev/null &
    pid_lb=$!
    pids+=("$pid_lb")
    wait_until 20 listens "$port_lb"
}

# Sends $1 requests, each on a connection of its own, and counts who served: "a=N b=N".
spread() {
    local i
    for ((i = 0; i < $1; i++)); do
        curl -s --max-time 20 -o - -w '' "http://127.0.0.1:$port_lb/who" || echo "failed"
    done | sort | uniq -c | awk '{printf "%s%s=%s", (NR > 1 ? " " : ""), $2, $1}'
}

exits() { # pid: did it end in good order?
    wait "$1"
    is "$?" 0
}

for name in a b dead lb; do
    free_port
    eval "port_$name=$port"
done
mkdir -p "$scratch/files"
head -c 20M /dev/urandom >"$scratch/files/big"
head -c 2M /dev/urandom >"$scratch/files/medium"
origin_start a || echo "nginx a does not start"
origin_start b || echo "nginx b does not start"

rule "minimal.exe runs" timeout 30 wine64 $built/minimal.exe </dev/null
printf 'one\ntwo\nthr\ree\n\032four\n\n' >"$scratch/keys"
for strategy in ketama fnv maglev rr wrr; do
    rule "plb_pick.exe says what plb_pick says: $strategy" bash -c "
        arguments='-s $strategy 127.0.0.1:80 127.0.0.1:81,weight=3 [::1]:82'
        build/plb_pick \$arguments <'$scratch/keys' >'$scratch/here' &&
        timeout 30 wine64 $built/plb_pick.exe \$arguments <'$scratch/keys' | cmp - '$scratch/here'"
done
rule "the demo shows what it says" timeout 60 wine64 $lb --demo </dev/null
rule "a probe passes" timeout 30 wine64 $built/plb_probe.exe http --path /who "127.0.0.1:$port_a" </dev/null
# shellcheck disable=SC2016 # awk's
rule "a refusal takes a probe no time" bash -c "
    timeout 30 wine64 $built/plb_probe.exe tcp 127.0.0.1:$port_dead </dev/null >'$scratch/out'
    awk '{exit !(\$2 == \"failed\" && \$4 < 500)}' '$scratch/out' || { cat '$scratch/out'; false; }"
for bad in "--listen unix:/tmp/plb.sock 127.0.0.1:$port_a" "--listen 127.0.0.1:$port_lb unix:/tmp/plb.sock"; do
    # shellcheck disable=SC2086 # words
    rule "a path is an error" exits_with 1 timeout 30 wine64 $lb $bad </dev/null
    # shellcheck disable=SC2086
    timeout 30 wine64 $lb $bad >"$scratch/out" 2>&1 </dev/null
    rule "and the system's lack is named" contains "$scratch/out" "unix:/tmp/plb.sock: This system has no Unix sockets"
done
rule "a taken port is named, and is an error" bash -c "
    timeout 30 wine64 $lb --listen 127.0.0.1:$port_a 127.0.0.1:$port_b >'$scratch/out' 2>&1 </dev/null; [ \$? = 1 ] &&
    grep -q '127.0.0.1:$port_a: .*in use\|127.0.0.1:$port_a: .*taken' '$scratch/out' || { cat '$scratch/out'; false; }"

balancer_start -v --check tcp --every 200ms "127.0.0.1:$port_a" "localhost:$port_b" "127.0.0.1:$port_dead"
rule "the dead origin is found out" wait_until 5 contains "$scratch/lb.err" "unhealthy: 127.0.0.1:$port_dead"
spread 2 >/dev/null # let the round settle after the flip
rule "requests are spread evenly over what lives" is "$(spread 20)" "a=10 b=10"
rule "20 MB come down byte for byte" bash -c "
    curl -s --max-time 60 http://127.0.0.1:$port_lb/big | cmp - '$scratch/files/big'"
rule "20 MB go up byte for byte" bash -c "
    curl -s --max-time 60 -T '$scratch/files/big' http://127.0.0.1:$port_lb/store/up -o /dev/null &&
    cat '$scratch'/[ab]/files/up | cmp - '$scratch/files/big'"
wrk -t 1 -c 32 -d 2s "http://127.0.0.1:$port_lb/who" >"$scratch/wrk.out" 2>&1
rule "32 connections are served side by side" bash -c "
    ! grep 'Socket errors\|Non-2xx' '$scratch/wrk.out' && awk '/requests in/ {exit !(\$1 > 200)}' '$scratch/wrk.out'"
sed -n 's/^ *\([0-9]*\) requests in.*/requests served in 2 s: \1/p' "$scratch/wrk.out"
end KILL "$pid_b"
rule "an origin that was killed costs no request" is "$(spread 20)" "a=20"
rule "it is found out" wait_until 5 contains "$scratch/lb.err" "unhealthy: 127.0.0.1:$port_b"
origin_start b
rule "its return is found out" wait_until 5 contains "$scratch/lb.err" "healthy again: 127.0.0.1:$port_b"
spread 2 >/dev/null
rule "and it serves again" is "$(spread 20)" "a=10 b=10"

# ---- Ctrl-C: Wine makes it of SIGINT ----

curl -s --max-time 30 "http://127.0.0.1:$port_lb/slow/medium" >"$scratch/slow" &
pid_curl=$!
pids+=("$pid_curl")
wait_until 5 test -s "$scratch/slow"
kill -INT "$pid_lb"
rule "Ctrl-C closes the door" wait_until 3 bash -c "! curl -s --max-time 1 http://127.0.0.1:$port_lb/who"
rule "what was in flight ends well" exits "$pid_curl"
rule "and is whole" cmp "$scratch/slow" "$scratch/files/medium"
rule "then it ends in good order" exits "$pid_lb"
report
