#!/usr/bin/env bash
# build/load_balancer between real peers on loopback: two nginx origins, curl and wrk as clients.
cd "$(dirname "$0")/.." || exit 1
. tests/shell.sh
PATH=$PATH:/usr/sbin
lb=build/load_balancer

# ---- peers ----

balancer_start() { # arguments: sets pid_lb; listens on port_lb
    $lb --listen "127.0.0.1:$port_lb" "$@" >"$scratch/lb.out" 2>"$scratch/lb.err" &
    pid_lb=$!
    pids+=("$pid_lb")
    wait_until 10 listens "$port_lb"
}

balancer_end() { end TERM "$pid_lb"; }

ask() { curl -s --max-time 20 "http://127.0.0.1:$port_lb$1" "${@:2}"; }

# Sends $1 requests on one connection and counts who served: "a=N b=N".
spread() {
    local urls=() i
    for ((i = 0; i < $1; i++)); do urls+=("http://127.0.0.1:$port_lb/who"); done
    curl -s --max-time 20 "${urls[@]}" | sort | uniq -c | awk '{printf "%s%s=%s", (NR > 1 ? " " : ""), $2, $1}'
}

for name in a b dead lb; do
    free_port
    eval "port_$name=$port"
done
mkdir -p "$scratch/files"
head -c 100M /dev/urandom >"$scratch/files/big"
head -c 2M /dev/urandom >"$scratch/files/medium"
origin_start a || echo "nginx a does not start"
origin_start b || echo "nginx b does not start"
origins=("127.0.0.1:$port_a" "127.0.0.1:$port_b")

# ---- the command line ----

rule "-h explains itself" bash -c "$lb -h | grep -q -- --listen"
for bad in "--wrong" "--listen 1.2.3.4" "--every 1x" "--check http3" "--strategy best" "127.0.0.1" "host:99999" "--listen"; do
    # shellcheck disable=SC2086 # one or two words
    rule "'$bad' exits with 2" exits_with 2 $lb $bad
    # shellcheck disable=SC2086
    $lb $bad >"$scratch/out" 2>&1
    rule "'$bad' is named" contains "$scratch/out" "${bad##* }"
done
rule "no origin exits with 2" exits_with 2 $lb
rule "a taken port is named, and is an error" bash -c "
    timeout 10 $lb --listen 127.0.0.1:$port_a 127.0.0.1:$port_b >'$scratch/out' 2>&1; [ \$? = 1 ] &&
    grep -q '127.0.0.1:$port_a' '$scratch/out'"
rule "the demo shows what it says" timeout 20 $lb --demo
rule "examples/minimal.c runs" build/minimal

# ---- spread and failover ----

balancer_start --check tcp --every 200ms "${origins[0]}" "localhost:$port_b" "127.0.0.1:$port_dead"
rule "the dead origin is found out" wait_until 5 contains "$scratch/lb.err" "unhealthy: 127.0.0.1:$port_dead"
is "$(spread 100)" "a=50 b=50" >/dev/null # let the round settle after the flip
rule "requests are spread evenly over what lives" is "$(spread 100)" "a=50 b=50"
rule "the Host header is the client's" is "$(ask /host)" "127.0.0.1:$port_lb"
rule "hop-by-hop headers end at the proxy" \
    is "$(ask /connection -H 'Connection: x-secret' -H 'X-Secret: 1')" "|"
rule "HEAD has a length and no body" bash -c "
    curl -sI --max-time 10 http://127.0.0.1:$port_lb/medium | tr -d '\r' | grep -q '^Content-Length: 2097152'"
rule "204 ends at once" is "$(ask /empty -o /dev/null -w '%{http_code}')" 204
rule "HTTP/1.0 clients are served" is "$(ask /who -0 -o /dev/null -w '%{http_code}')" 200
rule "a conditional request gets its 304" bash -c "
    tag=\$(curl -sI http://127.0.0.1:$port_lb/medium | tr -d '\r' | sed -n 's/^ETag: //p')
    [ \"\$(curl -s -H \"If-None-Match: \$tag\" -o /dev/null -w '%{http_code}' http://127.0.0.1:$port_lb/medium)\" = 304 ]"

memory() { awk '/VmHWM/ {print $2}' "/proc/$pid_lb/status"; } # KiB at most so far
before=$(memory)
rule "100 MB come down byte for byte" bash -c "
    curl -s --max-time 60 http://127.0.0.1:$port_lb/big | cmp - '$scratch/files/big'"
rule "100 MB go up byte for byte" bash -c "
    curl -s --max-time 60 -T '$scratch/files/big' http://127.0.0.1:$port_lb/store/up -o /dev/null &&
    cat '$scratch'/[ab]/files/up | cmp - '$scratch/files/big'"
rule "100 MB go up in chunks byte for byte" bash -c "
    curl -s --max-time 60 -T - http://127.0.0.1:$port_lb/store/chunks -o /dev/null <'$scratch/files/big' &&
    cat '$scratch'/[ab]/files/chunks | cmp - '$scratch/files/big'"
rule "a slow reader costs no memory" timeout 60 \
    curl -s --limit-rate 20M "http://127.0.0.1:$port_lb/big" -o /dev/null
rule "bodies of 100 MB took less than 4 MB of memory" test $(($(memory) - before)) -lt 4096
balancer_end

# An origin dies by kill -9 under load. A failed request (502) must be one that was sent to it on a fresh connection, or
# one whose answer had begun; all others go to the other origin.
balancer_start -v --check tcp --every 200ms "${origins[@]}"
wrk -t 2 -c 32 -d 6s "http://127.0.0.1:$port_lb/who" >"$scratch/wrk.out" 2>&1 &
pid_wrk=$!
pids+=("$pid_wrk")
sleep 1.5
end KILL "$pid_b"
rule "an origin killed under load is found out" wait_until 5 contains "$scratch/lb.err" "unhealthy: 127.0.0.1:$port_b"
sleep 1
origin_start b
rule "its return is found out" wait_until 5 contains "$scratch/lb.err" "healthy again: 127.0.0.1:$port_b"
wait "$pid_wrk"
balancer_end
cat "$scratch/wrk.out"
seen_by_client=$(awk '/Non-2xx/ {n = $NF} END {print n + 0}' "$scratch/wrk.out")
failed=$(awk '$1 >= 400' "$scratch/lb.out" | wc -l)
echo "requests: $(wc -l <"$scratch/lb.out"), failed: $failed, seen by the client: $seen_by_client"
rule "thousands of requests were served meanwhile" test "$(awk '$1 == 200' "$scratch/lb.out" | wc -l)" -gt 5000
rule "each that failed is a 502, was sent to the killed origin on a fresh connection, and broke there" bash -c "
    ! awk '\$1 >= 400' '$scratch/lb.out' | grep -vE \
        '^502  127.0.0.1:$port_b +fresh .* (The connection was reset|The peer has ended its side of the stream)\.\$'"
rule "the client saw exactly those failures, and no broken connection" bash -c "
    [ '$seen_by_client' = '$failed' ] && ! grep 'Socket errors' '$scratch/wrk.out'"
rule "no more requests failed than were in flight" test "$failed" -le 32

# ---- ends and limits ----

balancer_start "${origins[@]}"
ask /slow/medium -o "$scratch/slow" &
pid_slow=$!
pids+=("$pid_slow")
sleep 0.5
kill -TERM "$pid_lb"
sleep 0.2
rule "on SIGTERM it stops accepting" bash -c "! (exec 3<>/dev/tcp/127.0.0.1/$port_lb) 2>/dev/null"
wait "$pid_slow"
rule "and the request in flight is served to its end" cmp "$scratch/slow" "$scratch/files/medium"
wait "$pid_lb"
rule "and the exit status is 0" test $? = 0

(ulimit -n 40 && exec $lb --listen "127.0.0.1:$port_lb" --every 200ms "${origins[@]}" >"$scratch/lb.out" 2>"$scratch/lb.err") &
pid_lb=$!
pids+=("$pid_lb")
wait_until 10 listens "$port_lb"
wrk -t 1 -c 100 -d 3s --timeout 1s "http://127.0.0.1:$port_lb/who" >"$scratch/wrk.out" 2>&1
rule "out of descriptors, it still serves" bash -c "awk '/requests in/ {exit !(\$1 > 100)}' '$scratch/wrk.out'"
rule "and serves on when clients have gone" wait_until 5 is "$(ask /empty -o /dev/null -w '%{http_code}')" 204
rule "and has lost no backend to its own shortage" bash -c "sleep 1.5; ! grep -q unhealthy '$scratch/lb.err'"
rule "and is idle again" bash -c "
    t() { awk '{print \$14 + \$15}' /proc/$pid_lb/stat; }; a=\$(t); sleep 1; [ \$((\$(t) - a)) -le 5 ]"
balancer_end

balancer_start --host example.org --strategy ketama "${origins[@]}"
rule "--host sets the Host header" is "$(ask /host)" example.org
one=$(ask /who)
rule "ketama sends one target to one origin" is "$(spread 20)" "$one=20"
balancer_end

balancer_start --check none "127.0.0.1:$port_dead"
rule "no origin that answers: 502" is "$(ask / -o /dev/null -w '%{http_code}')" 502
balancer_end
report
