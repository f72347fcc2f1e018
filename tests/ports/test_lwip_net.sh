#!/usr/bin/env bash
# ports/plb_lwip.h against Linux: build/lwip_host, a device on lwIP at 10.99.0.2, on a tap device whose other end has
# nginx origins, curl and wrk at 10.99.0.1. Each build of it, the plain one and the one under the address and undefined
# behaviour sanitizers, has a network namespace of its own, so that no address is in anybody's way.
cd "$(dirname "$0")/../.." || exit 1
if [ "$PLB_SKIP_LWIP_NET" = 1 ]; then
    echo "lwIP against Linux is left out, as PLB_SKIP_LWIP_NET=1 says"
    echo "Pass: 0, fail: 0, skip: 0."
    exit 0
fi
. tests/shell.sh
PATH=$PATH:/usr/sbin:/sbin
export PRECONFIGURED_TAPIF=tap0 # of lwIP's tapif
builds="plain asan"
device=10.99.0.2:6188 proxy=http://10.99.0.2:6188
a=10.99.0.1:8001 b=10.99.0.1:8002 other=10.99.0.1
declare -A pid_device pid_origin

# ---- namespaces ----

space() { echo "plb_$$_$1"; }                        # build
inside() { ip netns exec "$(space "$1")" "${@:2}"; } # build, command
start() {                                            # build, command: in the background; sets started
    ip netns exec "$(space "$1")" "${@:2}" &
    started=$!
    pids+=("$started")
}
drop_spaces() {
    for build in $builds; do ip netns del "$(space "$build")" 2>/dev/null; done
}
trap 'cleanup; drop_spaces' EXIT

make_space() { # build
    ip netns add "$(space "$1")" && inside "$1" ip link set lo up &&
        inside "$1" ip tuntap add dev tap0 mode tap && inside "$1" ip addr add 10.99.0.1/24 dev tap0 &&
        inside "$1" ip link set tap0 up
}

# One packet in five vanishes, each way, without a word to its sender. Done by tc's classifier, since netem knows
# packets that leave only, and is missing in many kernels: "A = a random number; if A >= 2^32 / 5, pass; steal".
lossy() { # build
    local program='4,32 0 0 4294963256,53 1 0 858993459,6 0 0 4,6 0 0 0'
    inside "$1" tc qdisc add dev tap0 clsact &&
        inside "$1" tc filter add dev tap0 ingress bpf da bytecode "$program" &&
        inside "$1" tc filter add dev tap0 egress bpf da bytecode "$program"
}

lossless() { inside "$1" tc qdisc del dev tap0 clsact; } # build

# ---- peers ----

certificates() { # a trusted one, one for another name, and one of an authority that nobody knows
    local name
    for name in ca stranger; do
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$scratch/$name.key" \
            -subj "/CN=$name" -days 30 -out "$scratch/$name.pem"
    done
    sign good ca origin.test && sign wrong ca elsewhere.test && sign unknown stranger origin.test
}

sign() { # name, authority, host name
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$scratch/$1.key" -subj "/CN=$1" \
        -out "$scratch/$1.csr" &&
        openssl x509 -req -in "$scratch/$1.csr" -CA "$scratch/$2.pem" -CAkey "$scratch/$2.key" -CAcreateserial \
            -days 30 -extfile <(echo "subjectAltName=DNS:$3") -out "$scratch/$1.pem"
}

settings() { # directory: the head of an nginx configuration
    cat <<CONF
daemon off;
master_process off;
pid $1/pid;
error_log $1/error.log;
events { worker_connections 1024; }
http {
    log_format sent '\$request_uri \$bytes_sent';
    access_log off;
    client_body_temp_path $1/tmp;
    proxy_temp_path $1/tmp;
    fastcgi_temp_path $1/tmp;
    uwsgi_temp_path $1/tmp;
    scgi_temp_path $1/tmp;
    client_max_body_size 0;
    keepalive_requests 1000000;
CONF
}

nginx_start() { # build, name, with its configuration in $scratch/BUILD.NAME
    local dir=$scratch/$1.$2
    start "$1" nginx -p "$dir" -c "$dir/nginx.conf" >/dev/null 2>&1
    pid_origin[$1.$2]=$started
}

origin_start() { # build, name, address: one that the proxy serves from
    local dir=$scratch/$1.$2
    mkdir -p "$dir/files" "$dir/tmp"
    cat >"$dir/nginx.conf" <<CONF
$(settings "$dir")
    server {
        listen $3 sndbuf=128k;
        root $scratch/files;
        location = / { return 200 "all is well\n"; }
        location = /who { return 200 "$2\n"; }
        location = /length { return 200 "\$http_content_length\n"; }
        location = /logged { alias $scratch/files/big; access_log $dir/sent.log sent; }
        location /slow/ { alias $scratch/files/; limit_rate 1m; }
        location /store/ { alias $dir/files/; dav_methods PUT; client_body_in_file_only clean; }
        location = /post {
            client_body_in_file_only on;
            client_body_temp_path $dir/files;
            proxy_set_header Connection "";
            proxy_pass http://$3/length;
        }
    }
}
CONF
    nginx_start "$1" "$2"
}

others_start() { # build: those that only checks go to
    local dir=$scratch/$1.others name
    mkdir -p "$dir/tmp"
    {
        settings "$dir"
        echo "server { listen $other:8003; location = / { return 500; } }"
        echo "server { listen $other:8004; location = / { return 200 'something else'; } }"
        local port=8443
        for name in good wrong unknown; do
            echo "server { listen $other:$port ssl; ssl_certificate $scratch/$name.pem;"
            echo "ssl_certificate_key $scratch/$name.key; location = / { return 200 'all is well'; } }"
            port=$((port + 1))
        done
        echo "}"
    } >"$dir/nginx.conf"
    nginx_start "$1" others
}

answers() { inside "$1" curl -s -o "$scratch/answer" --max-time 2 "$2"; } # build, URL

# ---- the device ----

out() { echo "$scratch/$1.out"; } # build: what the device has said since it was started

device_start() { # build, arguments
    : >"$(out "$1")"
    start "$1" "build/lwip_host_$1" "${@:2}" >"$(out "$1")" 2>>"$scratch/$1.err"
    pid_device[$1]=$started
    wait_until 10 said "$1" '^up'
}

said() { grep -qE -- "$2" "$(out "$1")" || { tail -n 20 "$(out "$1")"; false; }; } # build, pattern
says() { wait_until "$1" said "${@:2}" || said "${@:2}"; }                        # seconds, build, pattern

ends_clean() { # build: the device, told to end, does so with no stream left
    kill -TERM "${pid_device[$1]}"
    wait "${pid_device[$1]}"
    local status=$?
    [ "$status" = 0 ] || { echo "exit status $status"; tail -n 3 "$(out "$1")"; cat "$scratch/$1.err"; false; }
}

failed=0 connections=0 active=0 idle=0 streams=0
state() { # build: asks the device, sets its figures as variables of the same names
    local before line
    before=$(grep -c '^state' "$(out "$1")")
    kill -USR1 "${pid_device[$1]}" && wait_until 5 more_states "$1" "$before" || return 1
    line=$(grep '^state' "$(out "$1")" | tail -n 1)
    eval "${line#state }"
}

more_states() { [ "$(grep -c '^state' "$(out "$1")")" -gt "$2" ]; }

# Nobody is served, and what is left of streams is the listener, idle connections to origins, a probe of each backend.
at_rest() { # build
    state "$1" || return 1
    echo "connections=$connections active=$active idle=$idle streams=$streams"
    [ "$connections" = 0 ] && [ "$active" = 0 ] && [ "$streams" -le $((1 + idle + 4)) ]
}

memory() { awk '/VmHWM/ {print $2}' "/proc/${pid_device[$1]}/status"; } # build: KiB at most so far

ask() { inside "$1" curl -s --max-time 30 "$proxy$2" "${@:3}"; } # build, path, options of curl

same() { # build, path, file: what comes down is the file
    ask "$1" "$2" | cmp - "$3"
}

put() { # build, file: goes up, and is stored by one of the origins
    rm -f "$scratch/$1".[ab]/files/up
    ask "$1" /store/up -T "$2" -o /dev/null && cat "$scratch/$1".[ab]/files/up | cmp - "$2"
}

post() { # build, file: goes up, and is stored by one of the origins
    rm -f "$scratch/$1".[ab]/files/0*
    is "$(ask "$1" /post --data-binary "@$2" -H 'Content-Type: application/octet-stream')" "$(stat -c %s "$2")" &&
        cat "$scratch/$1".[ab]/files/0* | cmp - "$2"
}

# ---- rules ----

is_out() { # build, the backends whose latest flip was to unhealthy
    is "$(awk '$1 == "flip" {last[$2] = $3} END {for (i in last) if (last[i] == "unhealthy") print i}' "$(out "$1")" |
        sort | xargs)" "$2"
}

checks_judge() { # build
    local build=$1
    rule "$build: the device starts" device_start "$build" every=300 timeout=1000 fall=2 "ca=$scratch/ca.pem" \
        name=origin.test "contains=all is well" "tcp=$a" "tcp=$other:8009" tcp=10.99.0.77:80 tcp=192.0.2.1:80 \
        "http=$b" "http=$other:8003" "http=$other:8004" "https=$other:8443" "https=$other:8444" "https=$other:8445"
    rule "$build: TCP: somebody listens" says 3 "$build" "^probe tcp $a ok"
    rule "$build: TCP: nobody listens, found out at once" says 3 "$build" \
        "^probe tcp $other:8009 failed 0 [0-9]{1,2} The connection was refused"
    rule "$build: TCP: an address that nobody has is waited for" says 3 "$build" \
        "^probe tcp 10.99.0.77:80 failed 0 (9|1[0-9])[0-9]{2} It took longer"
    rule "$build: TCP: so is one behind a silent gateway" says 3 "$build" \
        "^probe tcp 192.0.2.1:80 failed 0 (9|1[0-9])[0-9]{2} It took longer"
    rule "$build: HTTP: the right answer" says 3 "$build" "^probe http $b ok 200 "
    rule "$build: HTTP: 500 is none" says 3 "$build" "^probe http $other:8003 failed 500 "
    rule "$build: HTTP: nor is another text" says 3 "$build" "^probe http $other:8004 failed 200 "
    rule "$build: HTTPS: the right answer" says 3 "$build" "^probe https $other:8443 ok 200 "
    rule "$build: HTTPS: another name's certificate is refused" says 3 "$build" \
        "^probe https $other:8444 failed .*for another name"
    rule "$build: HTTPS: a stranger's certificate is refused" says 3 "$build" \
        "^probe https $other:8445 failed .*nobody trusted vouches"
    rule "$build: backends that fail are out, and no others" wait_until 5 is_out "$build" \
        "10.99.0.1:8003 10.99.0.1:8004 10.99.0.1:8009 10.99.0.1:8444 10.99.0.1:8445 10.99.0.77:80 192.0.2.1:80"
    rule "$build: the device ends, and no stream is left" ends_clean "$build"
}

proxy_serves() { # build
    local build=$1 before
    rule "$build: the device serves" device_start "$build" "listen=$device" every=200 timeout=5000 connect=8000 \
        fall=3 rise=2 "ca=$scratch/ca.pem" name=origin.test "http=$a" "http=$b" "tcp=$other:8003" "https=$other:8443"
    rule "$build: requests are spread evenly" is "$(inside "$build" curl -s --max-time 20 "$proxy/who?[1-20]" |
        sort | uniq -c | xargs)" "10 a 10 b"
    rule "$build: a connection is kept" is "$(ask "$build" "/who?[1-20]" -o /dev/null -w '%{num_connects}\n' |
        awk '{n += $1} END {print n}')" 1
    rule "$build: HEAD has a length and no body" is "$(ask "$build" /big -I | tr -d '\r' | grep -i ^content-length)" \
        "Content-Length: $((20 << 20))"
    before=$(memory "$build")
    ask "$build" /big -o /dev/null -w '%{speed_download}\n' |
        awk -v build="$build" '{printf "%s: 20 MiB through lwIP at %d MiB/s\n", build, $1 / 1048576}'
    rule "$build: 20 MiB come down byte for byte" same "$build" /big "$scratch/files/big"
    rule "$build: 2 MiB go up by PUT byte for byte" put "$build" "$scratch/files/medium"
    rule "$build: and by POST" post "$build" "$scratch/files/medium"
    inside "$build" curl -s --limit-rate 1M --max-time 1 "$proxy/logged" -o /dev/null
    rule "$build: a slow client holds the origin up" wait_until 5 held_up "$build"
    [ "$build" = asan ] || rule "$build: bodies take no memory" test $(($(memory "$build") - before)) -lt 4096
    rule "$build: a client that ends its side is answered, after others that broke off" rude_clients "$build"
    rule "$build: then it is at rest" wait_until 5 at_rest "$build"
    rule "$build: and takes no time of the processor" is_idle "$build"
}

# A client that ends its side once it has asked, and some that break off under way.
rude_clients() { # build
    is "$(inside "$1" timeout 20 python3 -c '
import socket, struct
def ask(text):
    client = socket.create_connection(("10.99.0.2", 6188), 5)
    client.sendall(text)
    return client
for text in [b"", b"GET /big", b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n"] * 10:
    client = ask(text)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)) # a reset
    client.close()
client = ask(b"GET /who HTTP/1.1\r\nHost: x\r\n\r\n")
client.shutdown(socket.SHUT_WR)
answer = b""
for piece in iter(lambda: client.recv(4096), b""):
    answer += piece
print(answer.split(b"\r\n")[0].decode())')" "HTTP/1.1 200 OK"
}

ticks() { awk '{print $14 + $15}' "/proc/${pid_device[$1]}/stat"; } # build: hundredths of a second so far

is_idle() { # build: probes aside
    local before
    before=$(ticks "$1")
    sleep 0.5
    [ $(($(ticks "$1") - before)) -le 10 ]
}

held_up() { # build: of the 20 MiB that a slow client began to fetch, nginx had sent a part only when the client left
    awk '{sent = $2; print} END {exit !(NR == 1 && sent < 10485760)}' "$scratch/$1".[ab]/sent.log
}

wrk_rate() { awk '/Requests\/sec/ {print $2}' "$scratch/wrk.out"; }

load() { # build
    inside "$1" wrk -t 1 -c 16 -d 1s "http://$a/who" >"$scratch/wrk.out" 2>&1
    echo "$1: $(wrk_rate) requests a second from nginx on loopback, without lwIP or a proxy"
    inside "$1" wrk -t 1 -c 16 -d 2s "$proxy/who" >"$scratch/wrk.out" 2>&1
    echo "$1: $(wrk_rate) requests a second through lwIP"
    rule "$1: under load no request fails" bash -c "
        ! grep -E 'Non-2xx|Socket errors' '$scratch/wrk.out' &&
            awk '/requests in/ {exit !(\$1 > 100)}' '$scratch/wrk.out'"
}

# The origin dies by kill -9 under load. What was sent to it on a fresh connection, or answered in part, fails; all else
# is sent again: to a fresh connection if it was on a kept one, and to the other origin where there is no connection.
failover() { # build
    local build=$1 failed_before earlier seen
    state "$build"
    failed_before=$failed
    earlier=$(grep -c '^request [45]' "$(out "$build")")
    start "$build" wrk -t 1 -c 16 -d 3s "$proxy/who" >"$scratch/wrk.out" 2>&1
    local pid_wrk=$started
    sleep 1
    end KILL "${pid_origin[$build.b]}"
    rule "$build: an origin killed under load is found out" says 5 "$build" "^flip $b unhealthy"
    sleep 0.5
    origin_start "$build" b "$b"
    rule "$build: its return is found out" says 5 "$build" "^flip $b healthy"
    wait "$pid_wrk"
    state "$build"
    seen=$(awk '/Non-2xx/ {n = $NF} END {print n + 0}' "$scratch/wrk.out")
    rule "$build: each request that failed was sent to it on a fresh connection, and broke there" bash -c "
        ! grep '^request [45]' '$(out "$build")' | tail -n +$((earlier + 1)) |
            grep -vE '^request 502 $b fresh (The connection was reset|The peer has ended)'"
    rule "$build: no more of them than were in flight" test $((failed - failed_before)) -le 16
    rule "$build: the client saw those, and no broken connection" bash -c "
        [ $seen -le $((failed - failed_before)) ] && ! grep 'Socket errors' '$scratch/wrk.out'"
}

# More clients come than there are streams. Debian's lwIP has no backlog (TCP_LISTEN_BACKLOG=0), so that some are reset.
too_many() { # build
    local build=$1
    rule "$build: a device of few streams starts" device_start "$build" "listen=$device" streams=24 clients=4 \
        "any=$a" "any=$b"
    inside "$build" curl -s --max-time 20 -Z --parallel-max 60 -H 'Connection: close' "$proxy/small?[1-200]" \
        -o "$scratch/$build.many.#1" -w '%{http_code} %{exitcode} %{filename_effective}\n' >"$scratch/many" 2>/dev/null
    echo "$build: of 200 requests at once $(grep -c '^200 0' "$scratch/many") were served"
    rule "$build: with too many clients each is served whole or reset" all_or_nothing "$scratch/many"
    rule "$build: and nothing is left of them" wait_until 5 at_rest "$build"
    rule "$build: and the next ones are served" spread "$build"
    rule "$build: this device ends with no stream left" ends_clean "$build"
}

all_or_nothing() { # file with lines "STATUS EXIT FILE"
    local status code file served=0
    while read -r status code file; do
        case $status.$code in
        200.0) cmp "$file" "$scratch/files/small" && served=$((served + 1)) || return 1 ;;
        000.7 | 000.52 | 000.56) ;;
        *) echo "status $status, exit status $code" && return 1 ;;
        esac
    done <"$1"
    [ "$served" -gt 0 ]
}

# ---- loss: both devices at once, since most of it is waiting ----

clients=8

lossy_clients() { # build: starts them; each writes a line "STATUS EXIT" when it is over
    local build=$1 i
    retransmitted_before[$build]=$(retransmitted "$build")
    passed_before[$build]=$(passed "$build")
    rule "$build: tc makes packets vanish" lossy "$build"
    for ((i = 0; i < clients; i++)); do
        start "$build" curl -s --max-time 20 "$proxy/small" -o "$scratch/$build.small.$i" \
            -w '%{http_code} %{exitcode}\n' >"$scratch/$build.codes.$i"
        pid_client[$build.$i]=$started
    done
}

# shellcheck disable=SC2016 # awk's field
retransmitted() { inside "$1" awk '/^Tcp: [0-9]/ {print $13}' /proc/net/snmp; } # build: segments, by Linux

passed() { grep -cE '^probe [a-z]+ [^ ]+ ok' "$(out "$1")"; } # build: probes

served() { cat "$scratch/$1".codes.* | grep -c '^200 0$'; } # build

# TCP may lose a packet again and again: then the proxy says that the origin was too slow, or the client gives up (28).
# Anything else is a fault, and so is an answer that is not whole.
lossy_answers() { # build
    local i
    cat "$scratch/$1".codes.* | sort | uniq -c
    is "$(cat "$scratch/$1".codes.* | grep -cE '^((200|502|504) 0|(000|200) 28)$')" $clients || return 1
    for ((i = 0; i < clients; i++)); do
        [ "$(cat "$scratch/$1.codes.$i")" != "200 0" ] || cmp "$scratch/$1.small.$i" "$scratch/files/small" || return 1
    done
}

# An origin goes out after 3 failed probes in a row, and comes back after 2 good ones, never otherwise.
flips_are_due() { # build
    awk -v fall=3 -v rise=2 '
        $1 == "probe" && $4 == "ok" {good[$3]++; bad[$3] = 0}
        $1 == "probe" && $4 != "ok" {bad[$3]++; good[$3] = 0}
        $1 == "flip" && $3 == "unhealthy" && bad[$2] < fall {print; wrong = 1}
        $1 == "flip" && $3 == "healthy" && good[$2] < rise {print; wrong = 1}
        END {exit wrong}' "$(out "$1")"
}

all_pass() { # build: the latest probe of each backend
    ! awk '$1 == "probe" {last[$3] = $4} END {for (backend in last) print backend, last[backend]}' "$(out "$1")" |
        grep -v ' ok$'
}

loss() {
    declare -A retransmitted_before passed_before pid_client
    local build pid began=$SECONDS
    for build in $builds; do lossy_clients "$build"; done
    for pid in "${pid_client[@]}"; do wait "$pid"; done
    for build in $builds; do
        rule "$build: packets were lost" test "$(retransmitted "$build")" -gt $((retransmitted_before[$build] + 10))
        rule "$build: each request is served whole, or told of, or given up" lossy_answers "$build"
        rule "$build: at least half are served" test "$(served "$build")" -ge $((clients / 2))
        echo "$build: with loss: of $clients requests $(served "$build") were served in" \
            "$((SECONDS - began)) s; $(($(passed "$build") - passed_before[$build])) probes passed"
    done
    for build in $builds; do lossless "$build"; done
    for build in $builds; do
        rule "$build: origins went out and came back as their probes say" flips_are_due "$build"
        rule "$build: without loss requests are served again" wait_until 12 spread "$build"
        rule "$build: and the device is at rest" wait_until 12 at_rest "$build"
        rule "$build: and all checks pass again" wait_until 12 all_pass "$build"
    done
}

spread() { # build: a few requests, all served, by both origins
    is "$(inside "$1" curl -s --max-time 20 "$proxy/who?[1-20]" | sort | uniq -c | xargs)" "10 a 10 b"
}

graceful_end() { # build: while a request is served
    local build=$1
    start "$build" curl -s --max-time 30 "$proxy/slow/medium" -o "$scratch/$build.slow"
    local pid_slow=$started
    sleep 0.5
    rule "$build: told to end under way, the device does so with no stream left" ends_clean "$build"
    wait "$pid_slow"
    rule "$build: and has served to the end what it had begun" cmp "$scratch/$build.slow" "$scratch/files/medium"
    rule "$build: it had nothing to complain about" is "$(cat "$scratch/$build.err")" ""
}

# ---- run ----

may_make_networks() { [ "$(id -u)" = 0 ] && [ -c /dev/net/tun ]; }

prepare() {
    rule "root and a tun device are there (PLB_SKIP_LWIP_NET=1 leaves this test out)" may_make_networks
    [ "$fails" = 0 ] || return
    rule "the device is built" make --no-print-directory -j2 build/lwip_host_plain build/lwip_host_asan
    for build in $builds; do rule "$build: a network namespace with a tap device is made" make_space "$build"; done
}

prepare
if [ "$fails" != 0 ]; then
    report
    exit 1
fi
certificates >"$scratch/openssl.log" 2>&1
mkdir -p "$scratch/files"
head -c 20M /dev/urandom >"$scratch/files/big"
head -c 2M /dev/urandom >"$scratch/files/medium"
head -c 8K /dev/urandom >"$scratch/files/small"
for build in $builds; do
    origin_start "$build" a "$a"
    origin_start "$build" b "$b"
    others_start "$build"
    for url in "http://$a/" "http://$b/" "http://$other:8003/"; do wait_until 10 answers "$build" "$url"; done
done
for build in $builds; do
    checks_judge "$build"
    too_many "$build"
    proxy_serves "$build"
    [ "$build" = asan ] || load "$build"
    failover "$build"
done
loss
for build in $builds; do graceful_end "$build"; done
report
