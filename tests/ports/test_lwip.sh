#!/usr/bin/env bash
# ports/plb_lwip.h over lwIP's own loopback: every rule for ports, what is its own, and builds for other lwIPs than this
# system's. It needs neither root nor a network.
cd "$(dirname "$0")/../.." || exit 1
. tests/shell.sh

include=/usr/include/lwip
programs="lwip lwip_conformance"
targets=$(for p in $programs; do echo "build/unit/$p".{plain,asan,tsan}; done)

# shellcheck disable=SC2086 # a list of targets
rule "all of it builds without a warning" make --no-print-directory -j2 $targets

# They mostly wait: all at once.
declare -A run
for kind in plain asan tsan; do
    for program in $programs; do
        timeout 120 "build/unit/$program.$kind" >"$scratch/$program.$kind.log" 2>&1 &
        run[$program.$kind]=$!
        pids+=($!)
    done
done

passes() { # program, number of tests that are skipped
    wait "${run[$1]}" || { cat "$scratch/$1.log"; false; } && contains "$scratch/$1.log" "fail: 0, skip: $2\."
}

for kind in plain asan tsan; do
    rule "the lwIP port's own tests: $kind" passes "lwip.$kind" 0
    rule "every rule for ports, but those of Unix paths: $kind" passes "lwip_conformance.$kind" 9
done

# ---- builds ----

warnings="-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror"
c_only="-Wstrict-prototypes -Wmissing-prototypes"
printf '#define PLB_LWIP_IMPLEMENTATION\n#include "ports/plb_lwip.h"\n#include "ports/plb_lwip.h"\n' >"$scratch/port.c"
cp "$scratch/port.c" "$scratch/port.cc"

# An lwIP for a system that is none: what the port needs of its headers.
mkdir -p "$scratch/other/arch"
cat >"$scratch/other/arch/cc.h" <<'END'
typedef unsigned sys_prot_t;
#define LWIP_PLATFORM_DIAG(x)
#define LWIP_PLATFORM_ASSERT(x) do { } while (0)
END
cat >"$scratch/other/arch/sys_arch.h" <<'END'
typedef void *sys_sem_t;
typedef void *sys_mutex_t;
typedef void *sys_mbox_t;
typedef void *sys_thread_t;
END

options() { # defines: the lwipopts.h of that system
    printf '#define %s\n' "$@" | tr = ' ' >"$scratch/other/lwipopts.h"
}

compile() { # compiler, more flags
    local source=$scratch/port.c
    case $1 in *++*) source=$scratch/port.cc ;; esac
    # shellcheck disable=SC2086 # lists of flags
    $1 $warnings "${@:2}" -isystem "$include" -I. -fsyntax-only "$source"
}

for compiler in "gcc -std=c99 $c_only" "clang -std=c11 $c_only" "g++ -std=c++11" "clang++ -std=c++11"; do
    for define in -DPLB_LWIP_DATAGRAMS=1 -DPLB_NO_THREADS "-DPLB_STATIC -DPINGORA_LB_IMPLEMENTATION" -DLWIP_DNS=1; do
        # shellcheck disable=SC2086 # lists of flags
        rule "plb_lwip.h: $compiler $define" compile "$compiler" -D_GNU_SOURCE $define
    done
    for set in "NO_SYS=1 LWIP_SOCKET=0 LWIP_NETCONN=0" "NO_SYS=1 LWIP_SOCKET=0 LWIP_NETCONN=0 LWIP_UDP=0 SYS_LIGHTWEIGHT_PROT=0" \
        "NO_SYS=1 LWIP_SOCKET=0 LWIP_NETCONN=0 LWIP_IPV6=1 LWIP_IPV4=0 LWIP_DNS=1 LWIP_RAND()=4u" \
        "NO_SYS=1 LWIP_SOCKET=0 LWIP_NETCONN=0 LWIP_SINGLE_NETIF=1 TCP_LISTEN_BACKLOG=1 SO_REUSE=1" \
        "NO_SYS=0 LWIP_TCPIP_CORE_LOCKING=0 LWIP_DNS=1"; do
        # shellcheck disable=SC2086 # a list of defines
        options $set
        rule "plb_lwip.h: $compiler, $set" compile "$compiler" -isystem "$scratch/other"
    done
done
report
