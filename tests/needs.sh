#!/bin/sh
# What make needs beside gcc, for each of the arguments: test, windows, lwip, cortex_m. On Debian or Ubuntu as root it is
# installed; elsewhere the missing packages are listed with the command to type, and that is an error.
missing=""
probe=$(mktemp -d)
trap 'rm -rf "$probe"' EXIT

need() { # command, package
    command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || missing="$missing $2"
}

need_test() {
    need g++ g++
    need clang clang
    need nginx nginx-light
    need wrk wrk
    need curl curl
    need python3 python3-minimal
    need ps procps
    need awk mawk
    need nghttpd nghttp2-server
    need redis-server redis-server
    need memcached memcached
    need openssl openssl
    /usr/bin/python3 -c 'import grpc' 2>/dev/null || missing="$missing python3-grpcio"

    # A library to each sanitizer: gcc brings its own, clang's come in a package.
    printf 'int LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n) { return d == 0 && n > 0; }\n' >"$probe/p.c"
    if ! command -v clang >/dev/null 2>&1 || ! clang -fsanitize=address,fuzzer "$probe/p.c" -o "$probe/p" 2>/dev/null; then
        missing="$missing libclang-rt-dev"
    fi

    printf '#include <mbedtls/ssl.h>\nint main(void) { return 0; }\n' >"$probe/t.c"
    "${CC:-cc}" -fsyntax-only "$probe/t.c" 2>/dev/null || missing="$missing libmbedtls-dev"
}

need_windows() {
    need x86_64-w64-mingw32-gcc gcc-mingw-w64-x86-64
    need x86_64-w64-mingw32-g++ g++-mingw-w64-x86-64
    need wine wine
    [ -x /usr/lib/wine/wine64 ] || need wine64 wine64
}

need_lwip() {
    [ -f /usr/include/lwip/lwip/init.h ] || missing="$missing liblwip-dev"
    need ip iproute2
}

need_cortex_m() {
    need arm-none-eabi-gcc gcc-arm-none-eabi
    [ -f "$(arm-none-eabi-gcc -print-file-name=libc_nano.a 2>/dev/null)" ] || missing="$missing libnewlib-arm-none-eabi"
    need qemu-system-arm qemu-system-arm
}

for part; do "need_$part"; done
[ -z "$missing" ] && exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing$missing"
    export DEBIAN_FRONTEND=noninteractive
    log=$(mktemp)
    # shellcheck disable=SC2086 # a list of packages
    if apt-get update >"$log" 2>&1 && apt-get install -y --no-install-recommends $missing >>"$log" 2>&1; then
        rm -f "$log"
        exit 0
    fi
    tail -n 20 "$log" >&2
    rm -f "$log"
    echo "installing failed" >&2
    exit 1
fi

echo "Packages are needed that are not here. On Debian or Ubuntu:" >&2
echo "    sudo apt-get install$missing" >&2
exit 1
