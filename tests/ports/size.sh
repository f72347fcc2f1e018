#!/usr/bin/env bash
# Prints what the library takes of a Cortex-M3, from the images that `make size` built: of flash the whole image less the
# program and its start-up, so with what it needs of the C library; of RAM what an arena has handed out.
cd "$(dirname "$0")/../.." || exit 1

names=(
    [1]="round robin, a fixed list, TCP check"
    [2]="pingora's strategies, a fixed list, TCP and HTTP/1 checks"
    [3]="everything but TLS, Unix paths and handles"
)
flash_limits=([1]=8192 [2]=20480 [3]=65536)

stored() { # files: bytes of code and data
    arm-none-eabi-size "$@" | awk 'NR > 1 { sum += $1 + $2 } END { print sum }'
}

printf '%-58s %16s %16s %16s %16s\n' "-Os, Cortex-M3; bytes, and the limit" flash "RAM, balancer" "each backend" "TCP probe"
for size in 1 2 3; do
    flash=$(($(stored "build/size/$size.elf") - $(stored "build/size/size_$size.o" build/size/startup.o)))
    read -r balancer backend probe < <(timeout 60 qemu-system-arm -M mps2-an385 -nographic -semihosting \
        -kernel "build/size/$size.elf" </dev/null 2>&1)
    limit=96
    [ $size = 3 ] && limit=-
    printf '%-58s %16s %16s %16s %16s\n' "${names[$size]}" "$flash/${flash_limits[$size]}" "$balancer/1024" \
        "$backend/$limit" "$probe/512"
done
