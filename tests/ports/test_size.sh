#!/usr/bin/env bash
# What the library takes of a Cortex-M3 stays within its limits, and every part that may be left out can be.
cd "$(dirname "$0")/../.." || exit 1
. tests/shell.sh

warn=(-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror)
mapfile -t parts < <(sed -n '1,/^#ifndef PINGORA_LB_H/s/^   \(PLB_NO_[A-Z0-9_]*\) .*/\1/p' pingora_lb.h |
    grep -vxE 'PLB_NO_THREADS|PLB_NO_THREAD_LOCAL')

# The whole implementation, as C, as C++ where all of it is static, and for a Cortex-M.
builds() { # defines
    local flags=()
    for define; do flags+=("-D$define"); done
    timeout 60 clang -std=c11 "${warn[@]}" "${flags[@]}" -fsyntax-only tests/core.c &&
        timeout 60 clang++ -x c++ -std=c++11 "${warn[@]}" "${flags[@]}" -DPLB_STATIC -fsyntax-only tests/core.c &&
        timeout 60 arm-none-eabi-gcc -mcpu=cortex-m3 -mthumb -std=c99 "${warn[@]}" "${flags[@]}" -DPLB_NO_THREADS \
            -fsyntax-only tests/core.c
}

each_builds() { # defines, two at a time
    local part failed=0
    for part; do
        { builds "$part" >"$scratch/$part.log" 2>&1 || echo "$part" >>"$scratch/failed"; } &
        while [ "$(jobs -pr | wc -l)" -ge 2 ]; do wait -n; done
    done
    wait
    for part in $(cat "$scratch/failed" 2>/dev/null); do
        echo "$part"
        head -n 3 "$scratch/$part.log"
        failed=1
    done
    return $failed
}

gcc_builds_all() {
    local flags=("${parts[@]/#/-D}")
    timeout 60 gcc -std=c99 "${warn[@]}" "${flags[@]}" -O2 -c tests/core.c -o "$scratch/core.o" &&
        timeout 60 g++ -x c++ -std=c++11 "${warn[@]}" "${flags[@]}" -O2 -c tests/core.c -o "$scratch/core.o"
}

works_without() { # name, defines
    local name=$1 flags=()
    shift
    for define; do flags+=("-D$define"); done
    timeout 60 gcc -std=c99 "${warn[@]}" -isystem tests -g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all \
        "${flags[@]}" tests/ports/left_out.c -o "$scratch/$name" && timeout 60 "$scratch/$name"
}

within() { # what `make size` prints: each figure, and its limit where it has one
    awk '{ for (i = 1; i <= NF; i++)
            if ($i ~ /^[0-9]+\/[0-9]+$/) {
                n++
                split($i, x, "/")
                if (x[1] + 0 > x[2] + 0) { print; bad = 1 }
            } }
        END { exit bad || n < 11 }' "$scratch/size"
}

rule "make size builds the three configurations" make --no-print-directory size
make --no-print-directory size >"$scratch/size" 2>&1
rule "flash and RAM are within their limits" within
rule "the manual lists what can be left out" [ "${#parts[@]}" -ge 36 ]
rule "each can be left out, alone, without a warning" each_builds "${parts[@]}"
rule "all of them can" builds "${parts[@]}"
rule "so gcc thinks too" gcc_builds_all
rule "what is left works without any of them" works_without all "${parts[@]}"
rule "and from one thread" works_without single "${parts[@]}" PLB_NO_THREADS
rule "nothing left out works too" works_without none PLB_SEEN_MAX=128
for part in PLB_NO_UPDATES PLB_NO_WALK PLB_NO_WEIGHTS PLB_NO_EXCHANGE; do
    rule "$part leaves a balancer that works" works_without "$part" "$part"
done
report
