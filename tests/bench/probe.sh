#!/usr/bin/env bash
# make bench-probe: what a health check costs here and in HAProxy, both before the same nginx: 2000 backends, 127.0.0.1
# and the addresses after it, each checked once a second for ten seconds after three that are not counted. The processor
# time is the kernel's account of the process (schedstat), checks are the connections that the kernel began meanwhile
# (ActiveOpens); nginx could not count them, as HAProxy takes care that a backend never sees its TCP checks. Of three
# runs in turn the cheaper counts. Then system calls, instructions, memory, and 100 000 backends each 30 seconds.
#   tests/bench/probe.sh [kind...]     some kinds of checks only
cd "$(dirname "$0")/../.." || exit 1
. tests/shell.sh
PATH=$PATH:/usr/sbin
backends=2000 seconds=10 many=100000 many_ms=30000
missing=""
for tool in haproxy nginx:nginx-light strace valgrind; do
    command -v "${tool%:*}" >/dev/null || missing="$missing ${tool#*:}"
done
if [ -n "$missing" ]; then
    echo "installing$missing"
    # shellcheck disable=SC2086 # a list of packages
    apt-get update >"$scratch/apt.log" 2>&1 && DEBIAN_FRONTEND=noninteractive \
        apt-get install -y --no-install-recommends $missing >>"$scratch/apt.log" 2>&1 || {
        echo "make bench-probe needs packages that are not here. On Debian or Ubuntu: sudo apt-get install$missing" >&2
        exit 1
    }
fi
# In a network of its own, where that is allowed, nobody else's connections are counted, nor in the way as TIME-WAITs.
own=-n
[ "$(id -u)" = 0 ] || own=-rn
if [ -z "$PROBE_ALONE" ] && unshare $own ip link set lo up 2>/dev/null; then
    PROBE_ALONE=1 unshare $own bash tests/bench/probe.sh "$@"
    exit
fi
[ -z "$PROBE_ALONE" ] || ip link set lo up
ulimit -n "$(ulimit -Hn)"

# ---- who is checked ----

free_port
mkdir -p "$scratch/nginx"
cat >"$scratch/nginx/nginx.conf" <<CONF
daemon off; master_process off; pid $scratch/nginx/pid; error_log $scratch/nginx/error.log crit;
events { worker_connections 16384; }
http {
    access_log off;
    client_body_temp_path $scratch/nginx; proxy_temp_path $scratch/nginx; fastcgi_temp_path $scratch/nginx;
    uwsgi_temp_path $scratch/nginx; scgi_temp_path $scratch/nginx;
    server { listen 0.0.0.0:$port backlog=4096; location / { return 200 'healthy'; } }
}
CONF
nginx -p "$scratch/nginx" -c "$scratch/nginx/nginx.conf" 2>/dev/null &
pids+=($!)
wait_until 5 listens "$port" || exit 1

# ---- what is measured ----

on_cpu_ns() { awk '{n += $1} END {printf "%.0f", n}' /proc/"$1"/task/*/schedstat; }

opened() { awk '/^Tcp:/ && ++lines == 2 {print $6}' /proc/net/snmp; }

# Watches a process that checks; sets checks, and us: processor time for each of them.
watch() { # pid, seconds
    sleep 3
    local checks_before ns_before ns_after checks_after
    checks_before=$(opened)
    ns_before=$(on_cpu_ns "$1")
    sleep "$2"
    ns_after=$(on_cpu_ns "$1")
    checks_after=$(opened)
    checks=$((checks_after - checks_before))
    us=$(awk -v ns=$((ns_after - ns_before)) -v n=$checks 'BEGIN {printf "%.2f", (n > 0 ? ns / n / 1000 : 0)}')
}

started=0
start() { # command: in the background; sets started
    "$@" >"$scratch/out" 2>"$scratch/err" &
    started=$!
    pids+=("$started")
}

measure() { # command
    start "$@"
    watch "$started" "$seconds"
    end TERM "$started"
}

haproxy_conf() { # kind
    cat <<CONF
global
    nbthread 1
    maxconn 4096
defaults
    mode $([ "$1" = http ] && echo http || echo tcp)
    timeout connect 1s
    timeout client 1s
    timeout server 1s
    timeout check 1s
listen unused
    bind unix@$scratch/haproxy.sock
backend probed
    default-server check inter 1s
CONF
    if [ "$1" = http ]; then
        echo "    option httpchk"
        echo "    http-check send meth GET uri / ver HTTP/1.1 hdr Host probe.example"
        echo "    http-check expect status 200"
    fi
    awk -v n=$backends -v port="$port" \
        'BEGIN {for (i = 1; i <= n; i++) printf "    server s%d 127.%d.%d.%d:%d\n", i, i / 65536, i / 256 % 256, i % 256, port}'
}

smaller() { awk -v a="$1" -v b="$2" 'BEGIN {print (a == "" || b + 0 < a + 0 ? b : a)}'; }

judge() { # value, limit
    awk -v v="$1" -v l="$2" 'BEGIN {print "   limit=" l (v + 0 > l + 0 ? " missed" : "")}'
}

cost() { # kind, limit of the ratio
    local ours="" theirs="" run our_checks their_checks ratio
    haproxy_conf "$1" >"$scratch/haproxy.cfg"
    for run in 1 2 3; do
        measure build/bench_probe "$1" run "$port" $backends 1000 600
        ours=$(smaller "$ours" "$us") our_checks=$checks
        measure haproxy -db -f "$scratch/haproxy.cfg"
        theirs=$(smaller "$theirs" "$us") their_checks=$checks
    done
    ratio=$(awk -v a="$ours" -v b="$theirs" 'BEGIN {printf "%.2f", (b > 0 ? a / b : 0)}')
    echo "$1 backends=$backends checks=$our_checks us_per_check=$ours"
    echo "$1 haproxy=$(haproxy -v | awk 'NR == 1 {print $3}') checks=$their_checks us_per_check=$theirs"
    echo "$1 ratio=$ratio$(judge "$ratio" "$2")"
}

# The start-up is in it too: a hundred calls in ten thousand checks.
system_calls() { # kind, limit
    local each calls
    strace -f -c -o "$scratch/strace" build/bench_probe "$1" run "$port" 500 500 10 >"$scratch/out"
    each=$(awk -v n="$(field checks)" '$NF == "total" {printf "%.2f", $(NF - 2) / n}' "$scratch/strace")
    calls=$(awk -v n="$(field checks)" '$1 + 0 > 0 && $NF != "total" && $4 / n >= 0.005 {
        printf "%s%s %.2f", sep, $NF, $4 / n; sep = ", "}' "$scratch/strace")
    echo "$1 calls_per_check=$each ($calls)$(judge "$each" "$2")"
}

field() { sed -n "s/.*\\b$1=\\([0-9.]*\\).*/\\1/p" "$scratch/out"; }

# All instructions outside the kernel, libc's among them; two runs, so that the start-up cancels out. A nanosecond of
# this kind of machine is at least 2 instructions of such code.
instructions() { # kind, limit in microseconds
    local seconds_of_run count checks_of_run each="" own_us
    for seconds_of_run in 2 6; do
        valgrind --tool=callgrind --callgrind-out-file="$scratch/callgrind.$seconds_of_run" build/bench_probe "$1" run \
            "$port" $backends 1000 $seconds_of_run >"$scratch/out" 2>"$scratch/err"
        count=$(awk '/^summary:|^totals:/ {n = $2} END {print n}' "$scratch/callgrind.$seconds_of_run")
        checks_of_run=$(field checks)
        [ $seconds_of_run = 2 ] && each="$count $checks_of_run"
    done
    each=$(echo "$each $count $checks_of_run" | awk '{printf "%.0f", ($3 - $1) / ($4 - $2)}')
    own_us=$(awk -v n="$each" 'BEGIN {printf "%.2f", n / 2000}')
    echo "$1 instructions_per_check=$each own_us_per_check=$own_us (at 2 a nanosecond)$(judge "$own_us" "$2")"
}

memory() { # kind, limit in bytes
    build/bench_probe "$1" held $backends >"$scratch/out"
    echo "$1 in_flight=$(field in_flight) bytes_each=$(field bytes_each)$(judge "$(field bytes_each)" "$2")"
    echo "$1 bytes_each_after=$(field left_each) (a ticket, a place in the port's table)$(judge "$(field left_each)" 40)"
}

steady() { # kind
    local share lag longest
    start build/bench_probe "$1" run "$port" $many $many_ms 65
    sleep 27 # the first round, and the set's build, are over
    watch "$started" 30
    wait "$started"
    share=$(awk -v us="$us" -v n="$checks" 'BEGIN {printf "%.1f", us * n / 30e4}')
    lag=$(awk -v n="$checks" -v all=$many 'BEGIN {printf "%.1f", 100 * n / all}')
    echo "$1 backends=$many every_ms=$many_ms checks=$lag% cpu=$share% of a core, us_per_check=$us healthy=$(field healthy)"
    longest=$(awk -v us="$(field poll_cpu_us)" 'BEGIN {printf "%.2f", us / 1000}')
    echo "$1 longest_poll_ms=$longest (processor time; $(field poll_us) us passed; polls: $(field polls))$(judge "$longest" 5)"
}

limits() { # kind; sets the limits of the ratio and of system calls
    ratio_limit=0.85 calls_limit=6
    [ "$1" = http ] && ratio_limit=0.65 calls_limit=8
}

kinds=("$@")
[ $# -gt 0 ] || mapfile -t kinds < <(build/bench_probe)
{
    measure build/bench_probe kernel run "$port" $backends 1000 600
    echo "kernel us_per_check=$us (socket, connect and close alone)"
    for kind in "${kinds[@]}"; do
        limits "$kind"
        cost "$kind" $ratio_limit
        system_calls "$kind" $calls_limit
        instructions "$kind" 1
        memory "$kind" 1536
        steady "$kind"
    done
} | tee build/bench_probe.txt
awk -f tests/bench/summary.awk build/bench_probe.txt
