#!/usr/bin/env bash
# Runs test programs one after another and adds up what they report. Each ends with a line "Pass: N, fail: N, skip: N.";
# one that does not, or that ends badly without a failed test, counts as one failure; so does a skipped test. Fuzz
# targets run over their corpus. The last line is "N passed, N failed".
cd "$(dirname "$0")/.." || exit 1
log=$(mktemp)
trap 'rm -f "$log"' EXIT
passed=0 failed=0 number=0 total=$#

for program in "$@"; do
    number=$((number + 1))
    name=${program#build/}
    started=$SECONDS
    case $program in
    build/fuzz/*) timeout 300 "$program" -runs=0 "tests/fuzz/corpus/${program#build/fuzz/}" >"$log" 2>&1 ;;
    *.sh) timeout 900 bash "$program" >"$log" 2>&1 ;;
    *) timeout 300 "$program" >"$log" 2>&1 ;;
    esac
    status=$?
    counts=$(sed -n 's/^Pass: \([0-9]*\), fail: \([0-9]*\), skip: \([0-9]*\)\..*/\1 \2 \3/p' "$log" | tail -n 1)
    [ -z "$counts" ] && case $program in build/fuzz/*) [ $status = 0 ] && counts="1 0 0" ;; esac
    read -r p f s <<<"${counts:-0 1 0}"
    [ "$status" != 0 ] && [ "$f" = 0 ] && f=1
    f=$((f + s))
    passed=$((passed + p)) failed=$((failed + f))
    printf '[%2d/%d] %-34s %4d passed  %d failed  %ds\n' "$number" "$total" "$name" "$p" "$f" $((SECONDS - started))
    [ "$f" != 0 ] && { echo "---- $program (exit status $status)"; tail -n 60 "$log"; echo "----"; }
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
