#!/usr/bin/env bash
# examples/cortex_m on a Cortex-M0, M3 and M4, and the tests beside it on a Cortex-M3, all under QEMU.
cd "$(dirname "$0")/../.." || exit 1
. tests/shell.sh
built=build/cortex_m

declare -A machines=([m0]=microbit [m3]=mps2-an385 [m4]=mps2-an386)

run() { # processor, program: its output in $scratch/out
    timeout 60 qemu-system-arm -M "${machines[$1]}" -nographic -semihosting -kernel "$built/$1/$2.elf" \
        </dev/null >"$scratch/out" 2>&1 || { tail -n 5 "$scratch/out"; false; }
}

said() { grep -q -- "$1" "$scratch/out" || { cat "$scratch/out"; false; }; }

has_no_heap() { # program
    arm-none-eabi-nm "$built/m3/$1.elf" >"$scratch/names" &&
        ! grep -E ' (_?(m|c|re)alloc(_r)?|_?free(_r)?|_?sbrk(_r)?|_?malloc_.*)$' "$scratch/names"
}

rules_of() { # program: each of the rules that it printed
    while IFS= read -r line; do
        case $line in
        "ok    "*) rule "on a Cortex-M3: ${line#ok    }" true ;;
        "FAIL  "*) rule "on a Cortex-M3: ${line#FAIL  }" false ;;
        esac
    done <"$scratch/out"
    rule "$1 ended as it should" said '^Pass: [1-9][0-9]*, fail: 0, skip: 0\.$'
}

all_calls_measured() { # every public function has a line of its own in the table
    local call missing=0
    for call in $(sed -n '/^#ifdef PINGORA_LB_IMPLEMENTATION/q;/^PLB_API/p' pingora_lb.h |
        grep -oE '\bplb_[a-z0-9_]+\(' | tr -d '('); do
        grep -qE "^stack  [0-9]+  $call\$" "$scratch/out" || { echo "$call was not measured"; missing=1; }
    done
    return $missing
}

no_call_is_deeper() { # bytes
    awk -v most="$1" '/^stack / && $2 > most { print; deep = 1 } /^stack / { n++ } END { exit deep || n == 0 }' "$scratch/out"
}

example_runs() { # processor: backends leave the rotation and come back
    run "$1" main && said '^unhealthy: 10\.0\.0\.2:80: The connection was refused\.$' &&
        said '^unhealthy: 10\.0\.0\.3:80: It took longer than allowed\.$' &&
        said '^healthy again: 10\.0\.0\.3:80$' && said 'all given back$'
}

for cpu in m0 m3 m4; do
    rule "the example builds for a Cortex-${cpu^^}" make --no-print-directory "$built/$cpu/main.elf"
    rule "it runs there, with no heap" example_runs "$cpu"
    rule "ports/plb_lwip.h compiles for it" make --no-print-directory "$built/$cpu/cortex_m_lwip.o"
done
rule "the tests build" make --no-print-directory "$built/m3/cortex_m.elf" "$built/m3/cortex_m_stack.elf"
for program in main cortex_m cortex_m_stack; do
    rule "no heap is linked to $program" has_no_heap "$program"
done

run m3 cortex_m
rules_of cortex_m
grep '^bytes ' "$scratch/out"
run m3 cortex_m_stack
rules_of cortex_m_stack
rule "every public call was measured" all_calls_measured
rule "no public call needs more than 1 KiB of stack" no_call_is_deeper 1024
sed -n 's/^stack  //p' "$scratch/out" | sort -rn | head -n 12
report
