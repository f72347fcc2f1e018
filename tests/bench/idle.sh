#!/usr/bin/env bash
# make bench-idle: the share of one core that build/load_balancer takes while it only probes three backends each second.
cd "$(dirname "$0")/../.." || exit 1
. tests/shell.sh
seconds=${1:-20}

for name in a b c lb; do
    free_port
    eval "port_$name=$port"
done
# Something that accepts connections: a load balancer that is never asked anything.
build/load_balancer --listen "127.0.0.1:$port_a" --listen "127.0.0.1:$port_b" --listen "127.0.0.1:$port_c" --check none \
    127.0.0.1:1 2>/dev/null &
pids+=($!)
wait_until 5 listens "$port_c"
build/load_balancer --listen "127.0.0.1:$port_lb" --every 1s "127.0.0.1:$port_a" "127.0.0.1:$port_b" \
    "127.0.0.1:$port_c" 2>/dev/null &
pid=$!
pids+=($pid)
wait_until 5 listens "$port_lb"
sleep 1

on_cpu_ns() { awk '{n += $1} END {printf "%.0f", n}' /proc/$pid/task/*/schedstat; }
before=$(on_cpu_ns)
sleep "$seconds"
after=$(on_cpu_ns)
awk -v ns=$((after - before)) -v s="$seconds" \
    'BEGIN {printf "idle backends=3 every=1s cpu=%.4f%% of a core (%.0f us a second; the aim is under 0.03%%)\n", ns / s / 1e7, ns / s / 1e3}'
