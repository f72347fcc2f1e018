#!/usr/bin/env bash
# build/plb_probe against real servers on loopback: each is healthy when it is, and when it is not, the words say why.
cd "$(dirname "$0")/.." || exit 1
. tests/shell.sh
PATH=$PATH:/usr/sbin
probe=build/plb_probe
python=/usr/bin/python3 # the one that the packages belong to
[ -x $python ] || python=python3

# Runs the prober; its output is in $scratch/out, and shown when the rule fails.
run_probe() { timeout 20 $probe "$@" >"$scratch/out" 2>&1; }

says() { # exit status, extended regular expression of a line, arguments
    run_probe "${@:3}"
    local got=$?
    echo "$probe ${*:3}: exit status $got"
    cat "$scratch/out"
    [ $got = "$1" ] && grep -qE -- "$2" "$scratch/out"
}

healthy() { # words, arguments
    says 0 " ok +.* ms  .*$1" "${@:2}"
}

unhealthy() { # words, arguments
    says 1 " failed +.* ms  .*$1" "${@:2}"
}

start() { # name of the port's variable, command: in the background, until it listens there; sets pid
    local port_variable=$1
    shift
    "$@" </dev/null >"$scratch/log.$port_variable" 2>&1 &
    pid=$!
    pids+=("$pid")
    wait_until 10 listens "${!port_variable}" || {
        echo "does not start: $*"
        cat "$scratch/log.$port_variable"
    }
}

# A prober that was built without mbedTLS has no TLS; what needs it is left out then.
tls=yes
$probe tls --any-name 127.0.0.1:1 2>&1 | grep -q "built without TLS" && tls=

for name in dead http https mtls h2c h2c_nginx redis redis_secret redis_loading redis_replica memcached grpc grpc_tls \
    grpc_none expired early selfsigned wrong old strict silent garbage smtp smtp_busy mysql mysql_error postgres \
    postgres_plain postgres_error agent agent_drain agent_down agent_odd; do
    free_port
    eval "port_$name=$port"
done

# ---- certificates ----

key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"; } # name

# A certificate by the authority, valid between two days from now.
sign() { # name, extensions, first day, last day
    key "$1"
    openssl req -new -key "$1.key" -subj "/CN=$1" -out "$1.csr"
    printf '%s\n' "$2" >"$1.ext"
    openssl ca -batch -notext -config ca.conf -in "$1.csr" -out "$1.crt" -extfile "$1.ext" \
        -startdate "$(date -u -d "$3 days" +%Y%m%d%H%M%SZ)" -enddate "$(date -u -d "$4 days" +%Y%m%d%H%M%SZ)"
}

certificates() {
    set -e
    cd "$scratch"
    : >ca.index
    cat >ca.conf <<'CONF'
[ca]
default_ca = ca_default
[ca_default]
database = ca.index
new_certs_dir = .
rand_serial = yes
certificate = ca.crt
private_key = ca.key
default_md = sha256
policy = policy_any
unique_subject = no
[policy_any]
commonName = supplied
CONF
    key ca
    openssl req -x509 -key ca.key -subj "/CN=Test authority" -days 30 -out ca.crt
    local server="subjectAltName=DNS:backend.test,IP:127.0.0.1"
    sign good "$server" -1 30
    sign expired "$server" -30 -1
    sign early "$server" 10 30
    sign wrong "subjectAltName=DNS:other.test" -1 30
    sign client "extendedKeyUsage=clientAuth" -1 30
    key selfsigned
    openssl req -x509 -key selfsigned.key -subj "/CN=selfsigned" -addext "$server" -days 30 -out selfsigned.crt
}
(certificates) >"$scratch/certificates.log" 2>&1 || { echo "no certificates"; cat "$scratch/certificates.log"; }
ca=(--ca "$scratch/ca.crt")
client=(--cert "$scratch/client.crt" --key "$scratch/client.key")

# ---- the command line ----

rule "-h explains itself" bash -c "$probe -h | grep -q '^usage:'"
wrong() { # what the message says, arguments
    says 2 "^plb_probe: .*$1" "${@:2}" && contains "$scratch/out" --help
}
rule "no argument at all" wrong "no kind of probe"
rule "an unknown kind" wrong "'http3' is not a kind of probe" http3 127.0.0.1:80
rule "an unknown option" wrong "'--wrong' is not an option" tcp --wrong 127.0.0.1:80
rule "no address" wrong "no address" tcp
for bad in 127.0.0.1 127.0.0.1:0 "[::1]" ""; do
    rule "address '$bad'" wrong "is not an address such as" tcp "$bad"
done
for option in --count --every --timeout --rise --fall --port --source --ca --cert --key --name; do
    rule "$option without a value" wrong "$option needs a value" tcp 127.0.0.1:80 $option
done
for option in --every --timeout --rise --fall --port; do
    rule "$option 0" wrong "$option: '0' is not a number from 1 to" tcp 127.0.0.1:80 $option 0
done
rule "--count 1x" wrong "--count: '1x' is not a number" tcp 127.0.0.1:80 --count 1x
rule "--source with a port" wrong "--source: '127.0.0.1:1' is not an address" tcp 127.0.0.1:80 --source 127.0.0.1:1
rule "TLS options without TLS" wrong "go with --tls" tcp --any-name 127.0.0.1:80
rule "a name that does not resolve" says 1 "could not resolve nowhere.invalid:80" tcp nowhere.invalid:80
rule "output that cannot be written is an error" bash -c "$probe tcp 127.0.0.1:$port_dead >/dev/full 2>&1; [ \$? = 1 ]"

# ---- nginx: HTTP/1, HTTPS, HTTP/2 over TLS ----

nginx_conf() {
    mkdir -p "$scratch/nginx"
    local words server
    words=$(printf 'x%.0s' {1..3000})
    server="location / { return 200 'all is well\n'; } location = /fault { return 503; }
        location = /chunks { alias $scratch/nginx/page; ssi on; ssi_types *; }
        location = /big { alias $scratch/nginx/big; }
        location = /wordy { add_header X-Words '$words'; return 200; }
        location = /wordier { $(printf "add_header X-Words-%d '$words'; " {1..10}) return 200; }
        location = /missing { return 404; } location = /empty { return 204; }
        location = /secret { if (\$http_x_token != open) { return 403; } return 200; }"
    head -c 300000 /dev/zero | tr '\0' b >"$scratch/nginx/big"
    echo "the end" >>"$scratch/nginx/big"
    printf 'all <!--# echo var="nothing" default="is" --> well\n' >"$scratch/nginx/page"
    cat >"$scratch/nginx/conf" <<CONF
daemon off;
master_process off;
pid $scratch/nginx/pid;
error_log $scratch/nginx/error.log;
events { worker_connections 256; }
http {
    log_format connections '\$connection \$request_uri';
    access_log $scratch/nginx/access.log connections;
    client_body_temp_path $scratch/nginx;
    proxy_temp_path $scratch/nginx;
    fastcgi_temp_path $scratch/nginx;
    uwsgi_temp_path $scratch/nginx;
    scgi_temp_path $scratch/nginx;
    ssl_certificate $scratch/good.crt;
    ssl_certificate_key $scratch/good.key;
    server {
        listen 127.0.0.1:$port_http default_server;
        listen 127.0.0.1:$port_https ssl http2 default_server;
        listen 127.0.0.1:$port_h2c_nginx http2 default_server;
        listen unix:$scratch/nginx/socket;
        $server
    }
    server {
        listen 127.0.0.1:$port_http;
        listen 127.0.0.1:$port_https ssl http2;
        listen 127.0.0.1:$port_h2c_nginx http2;
        server_name unknown.test;
        return 421;
    }
    server {
        listen 127.0.0.1:$port_mtls ssl http2;
        ssl_client_certificate $scratch/ca.crt;
        ssl_verify_client on;
        $server
    }
}
CONF
}
nginx_start() { start port_http nginx -p "$scratch/nginx" -c "$scratch/nginx/conf" && pid_nginx=$pid; }
nginx_conf
nginx_start
http=127.0.0.1:$port_http https=127.0.0.1:$port_https mtls=127.0.0.1:$port_mtls
dead=127.0.0.9:$port_dead # nobody who looks for a free port on 127.0.0.1 can come there

rule "tcp: a server that listens" healthy "" tcp "$http"
rule "tcp: a port where nobody does" unhealthy "refused" tcp "$dead"
rule "tcp: by name" healthy "" tcp "localhost:$port_http"
rule "tcp: by path" healthy "" tcp "unix:$scratch/nginx/socket"
rule "tcp: --port is the port that is probed" healthy "" tcp "127.0.0.1:$port_dead" --port "$port_http"
rule "tcp: from another address" healthy "" tcp "$http" --source 127.0.0.5
rule "one that fails is enough for exit status 1" unhealthy "refused" tcp "$http" "$dead"
rule "and the other is told healthy" contains "$scratch/out" "^$http  *ok "
rule "--count 3 is three probes of each" bash -c "
    timeout 10 $probe tcp $http $dead --count 3 --every 20 | grep ' ms  ' | cut -d ' ' -f 1 | sort | uniq -c |
    awk '{print \$1}' | paste -sd ' ' | grep -qx '3 3'"
rule "--fall 3: not yet at the second failure" bash -c "
    timeout 10 $probe tcp $dead --count 2 --every 20 --fall 3 | grep unhealthy; [ \$? = 1 ]"

# ---- openssl s_server: certificates ----

server_tls() { # name of the port's variable, certificate, further arguments
    local port_variable=$1 certificate=$2
    start "$port_variable" openssl s_server -accept "127.0.0.1:${!port_variable}" -cert "$scratch/$certificate.crt" \
        -key "$scratch/$certificate.key" -www -quiet "${@:3}"
}

tls_peers() {
    rule "a certificate without its key" wrong "one needs the other" tls --cert x 127.0.0.1:80
    rule "authorities that cannot be read" wrong "/nonexistent" tls --ca /nonexistent 127.0.0.1:80
    rule "a certificate for a Unix socket needs a name" wrong "has no name" tls unix:/nonexistent
    server_tls port_expired expired
    server_tls port_early early
    server_tls port_selfsigned selfsigned
    server_tls port_wrong wrong
    server_tls port_old good -tls1_1 -cipher ALL:@SECLEVEL=0

    rule "tls: a good certificate" healthy "" tls "${ca[@]}" "$https"
    rule "tls: by the name that it is for" healthy "" tls "${ca[@]}" --name backend.test "$https"
    rule "tls: by another name" unhealthy "name" tls "${ca[@]}" --name frontend.test "$https"
    rule "tls: authorities of the system do not vouch for it" unhealthy "vouch" tls "$https"
    rule "tls: of nobody's" healthy "" tls --any-chain "$https"
    rule "tls: a server of plain bytes" unhealthy "TLS" tls "${ca[@]}" "$http"
    rule "tls: nobody listens" unhealthy "refused" tls "${ca[@]}" "$dead"
    local peer name port_variable
    for peer in expired:expired early:"not valid yet|future" selfsigned:vouch; do
        name=${peer%%:*} port_variable=port_${peer%%:*}
        rule "tls: $name is refused, in words" unhealthy "${peer#*:}" tls "${ca[@]}" "127.0.0.1:${!port_variable}"
        rule "tls: and that has nothing to do with its name" \
            unhealthy "${peer#*:}" tls "${ca[@]}" --any-name "127.0.0.1:${!port_variable}"
        rule "tls: $name is accepted with --any-chain" healthy "" tls "${ca[@]}" --any-chain "127.0.0.1:${!port_variable}"
    done
    rule "tls: the wrong name is refused, in words" unhealthy "name" tls "${ca[@]}" "127.0.0.1:$port_wrong"
    rule "tls: and that has nothing to do with who vouches" \
        unhealthy "name" tls "${ca[@]}" --any-chain "127.0.0.1:$port_wrong"
    rule "tls: the wrong name is accepted with --any-name" healthy "" tls "${ca[@]}" --any-name "127.0.0.1:$port_wrong"
    rule "tls: the name that it is for is right" healthy "" tls "${ca[@]}" --name other.test "127.0.0.1:$port_wrong"
    rule "expect: over TLS" healthy "" expect --tls "${ca[@]}" "$https" --send 'GET / HTTP/1.0\r\n\r\n' \
        --prefix 'HTTP/1.1 200'
    rule "tls: 1.1 is too old" unhealthy "version|alert" tls "${ca[@]}" "127.0.0.1:$port_old"

    server_tls port_strict good -tls1_2 -Verify 1 -verify_return_error -CAfile "$scratch/ca.crt"
    strict=127.0.0.1:$port_strict
    rule "tls: a certificate of ours is asked for, and there is none" unhealthy "wants a certificate" tls "${ca[@]}" "$strict"
    rule "tls: with one that the server trusts" healthy "" tls "${ca[@]}" "${client[@]}" "$strict"
    rule "tls: with one that it does not trust" unhealthy "alert|reset" tls "${ca[@]}" "$strict" \
        --cert "$scratch/selfsigned.crt" --key "$scratch/selfsigned.key"
    rule "tls: a certificate with the key of another" wrong "" tls "$strict" --cert "$scratch/client.crt" \
        --key "$scratch/good.key"
}

# ---- servers that say what they are told ----

start port_silent $python tests/peers.py say "$port_silent=?" "$port_garbage=\\x00\\xff\\xff garbage\\r\\n\\r\\n" \
    "$port_smtp=220 mail.test ESMTP\\r\\n|?|250-mail.test\\r\\n250 8BITMIME\\r\\n|?|221 bye\\r\\n" \
    "$port_smtp_busy=421 too busy\\r\\n" \
    "$port_mysql=\\x34\\0\\0\\0\\x0a8.0.36\\0\\1\\0\\0\\0abcdefgh\\0\\xff\\xf7\\x21\\2\\0\\xff\\x81\\x15$(printf '\\0%.0s' {1..10})ijklmnopqrst\\0" \
    "$port_mysql_error=\\x17\\0\\0\\0\\xff\\x10\\x04Too many connections" \
    "$port_postgres=?|S" "$port_postgres_plain=?|N" "$port_postgres_error=?|E\\0\\0\\0\\x0cSFATAL\\0\\0" \
    "$port_agent=up 75%\\n" "$port_agent_drain=drain\\n" "$port_agent_down=down #disk is full\\n" "$port_agent_odd=hello\\n"
silent=127.0.0.1:$port_silent garbage=127.0.0.1:$port_garbage

# ---- HTTP/1 and HTTPS ----

connections() { grep " $1\$" "$scratch/nginx/access.log" | cut -d ' ' -f 1 | sort -u | wc -l; } # URI

over_http() { # kind, address, further arguments: what holds for each version of HTTP
    local kind=$1 address=$2 more=("${@:3}")
    rule "$kind: 200" says 0 " ok +200 " "$kind" "$address" "${more[@]}"
    rule "$kind: 503 is a failure" says 1 " failed +503 " "$kind" "$address" "${more[@]}" --path /fault
    rule "$kind: a wrong path" says 1 " failed +404 " "$kind" "$address" "${more[@]}" --path /missing
    rule "$kind: which is right if one says so" says 0 " ok +404 " "$kind" "$address" "${more[@]}" --path /missing \
        --status 200-299,404
    rule "$kind: no body" says 0 " ok +204 " "$kind" "$address" "${more[@]}" --path /empty --status 204
    rule "$kind: HEAD" says 0 " ok +200 " "$kind" "$address" "${more[@]}" --method HEAD
    rule "$kind: a header of one's own" says 0 " ok +200 " "$kind" "$address" "${more[@]}" --path /secret \
        --header "X-Token: open"
    rule "$kind: without it" says 1 " failed +403 " "$kind" "$address" "${more[@]}" --path /secret
    rule "$kind: a text that the body contains" healthy "" "$kind" "$address" "${more[@]}" --contains "is well"
    rule "$kind: one that it does not" unhealthy "contain" "$kind" "$address" "${more[@]}" --contains "is ill"
    rule "$kind: a body in pieces" healthy "" "$kind" "$address" "${more[@]}" --path /chunks --contains "all is well"
    rule "$kind: a header of 3000 bytes" healthy "" "$kind" "$address" "${more[@]}" --path /wordy
    rule "$kind: headers of 30000 bytes are too many" unhealthy "longer than" "$kind" "$address" "${more[@]}" \
        --path /wordier
    rule "$kind: nobody listens" unhealthy "refused" "$kind" "$dead" "${more[@]}"
    rule "$kind: no answer" unhealthy "longer than" "$kind" "$silent" "${more[@]}" --timeout 200
    rule "$kind: a text behind 300000 bytes" healthy "" "$kind" "$address" "${more[@]}" --path /big \
        --contains "the end" --body-limit 400000
    rule "$kind: which is not looked for past the limit" unhealthy "body_limit" "$kind" "$address" "${more[@]}" \
        --path /big --contains "the end"
    rule "$kind: garbage" unhealthy "not well-formed|not HTTP/2|not TLS" "$kind" "$garbage" "${more[@]}"
}

http_peers() {
    over_http http "$http"
    rule "http: a path that is none" wrong "http makes no sense of .*--path 'health'" http "$http" --path health
    rule "http: a header that is none" wrong "http makes no sense of .*--header 'X'" http "$http" --header X
    rule "http: statuses that are none" wrong "http makes no sense of .*--path '/', --status '2xx'" http "$http" --status 2xx --path /
    rule "http: the wrong host" says 1 " failed +421 " http "$http" --host unknown.test
    rule "http: by path" healthy "" http "unix:$scratch/nginx/socket"
    rule "http: a server of TLS" says 1 " failed +400 " http "$https"
    rule "http: three probes" healthy "" http "$http" --path '/?one' --count 3 --every 20
    rule "http: each has its connection" test "$(connections '/?one')" = 3
    rule "http: three with --keep" healthy "" http "$http" --path '/?keep' --keep --count 3 --every 20
    rule "http: have one together" test "$(connections '/?keep')" = 1
}

https_peers() {
    over_http https "$https" "${ca[@]}"
    rule "https: the wrong host" says 1 " failed +421 " https "$https" --host unknown.test "${ca[@]}" --any-name
    rule "https: the host is the name that the certificate must be for" unhealthy "name" https "$https" --host unknown.test \
        "${ca[@]}"
    rule "https: a server of plain bytes" unhealthy "not TLS" https "${ca[@]}" "$http"
    rule "https: nginx wants a certificate of ours" says 1 " failed +400 " https "${ca[@]}" "$mtls"
    rule "https: with that certificate" says 0 " ok +200 " https "${ca[@]}" "${client[@]}" "$mtls"
    rule "https: an HTTP/1.0 body that ends with the connection" healthy "" https "${ca[@]}" --any-name \
        --contains "s_server" "127.0.0.1:$port_wrong"
}

# ---- HTTP/2: nginx over TLS, nghttpd without ----

h2_peers() {
    over_http h2 "$https" "${ca[@]}"
    rule "h2: the wrong host" says 1 " failed +421 " h2 "$https" --host unknown.test "${ca[@]}" --any-name
    rule "h2: nginx wants a certificate of ours" says 1 " failed +400 " h2 "${ca[@]}" "$mtls"
    rule "h2: with that certificate" says 0 " ok +200 " h2 "${ca[@]}" "${client[@]}" "$mtls"
    rule "h2: a server that has no HTTP/2" unhealthy "does not agree to HTTP/2" h2 "${ca[@]}" --any-name "127.0.0.1:$port_wrong"
}

h2c_peers() {
    over_http h2c "127.0.0.1:$port_h2c_nginx"
    start port_h2c nghttpd --no-tls -a 127.0.0.1 -d "$scratch/nginx" --trailer "x-end: yes" "$port_h2c"
    h2c=127.0.0.1:$port_h2c
    rule "h2c: nghttpd, with trailers" says 0 " ok +200 " h2c "$h2c" --path /page
    rule "h2c: a wrong path" says 1 " failed +404 " h2c "$h2c" --path /missing
    rule "h2c: a body of many windows" healthy "" h2c "$h2c" --path /big --contains "the end" --body-limit 400000
    rule "h2c: HEAD" says 0 " ok +200 " h2c "$h2c" --path /big --method HEAD
    rule "h2c: three with --keep" healthy "" h2c "127.0.0.1:$port_h2c_nginx" --path '/?keep2' --keep --count 3 --every 20
    rule "h2c: have one connection together" test "$(connections '/?keep2')" = 1
    rule "h2c: a server that has no HTTP/2" unhealthy "HTTP/2" h2c "$http"
}

# ---- gRPC ----

start port_grpc_tls $python tests/peers.py grpc "$port_grpc" "$port_grpc_tls" "$port_grpc_none" "$scratch/good.key" \
    "$scratch/good.crt"
grpc=127.0.0.1:$port_grpc

grpc_peers() {
    rule "grpc: SERVING" healthy "" grpc "$grpc"
    rule "grpc: a service that is SERVING" healthy "" grpc "$grpc" --service db
    rule "grpc: NOT_SERVING" unhealthy "NOT_SERVING" grpc "$grpc" --service drained
    rule "grpc: UNKNOWN" unhealthy "UNKNOWN" grpc "$grpc" --service starting
    rule "grpc: a service that it does not know" unhealthy "NOT_FOUND" grpc "$grpc" --service nowhere
    rule "grpc: a server without the health service" unhealthy "UNIMPLEMENTED" grpc "127.0.0.1:$port_grpc_none"
    rule "grpc: no answer" unhealthy "longer than" grpc "$grpc" --service slow --timeout 200
    rule "grpc: a message that is none" unhealthy "malformed" grpc "$grpc" --service garbage
    rule "grpc: a server of HTTP/2 that knows no gRPC" says 1 " failed +404 " grpc "$h2c"
    rule "grpc: a server that has no HTTP/2" unhealthy "HTTP/2" grpc "$http"
    rule "grpc: nobody listens" unhealthy "refused" grpc "$dead"
}

grpcs_peers() {
    rule "grpcs: SERVING" healthy "" grpcs "${ca[@]}" "127.0.0.1:$port_grpc_tls"
    rule "grpcs: NOT_SERVING" unhealthy "NOT_SERVING" grpcs "${ca[@]}" --service drained "127.0.0.1:$port_grpc_tls"
    rule "grpcs: nobody vouches for it" unhealthy "vouch" grpcs "127.0.0.1:$port_grpc_tls"
}

# ---- Redis, memcached ----

server_redis() { # name of the port's variable, further arguments
    local port_variable=$1
    mkdir -p "$scratch/$port_variable"
    start "$port_variable" redis-server --port "${!port_variable}" --bind 127.0.0.1 --appendonly no --save "" \
        --dir "$scratch/$port_variable" "${@:2}"
}

# A snapshot that takes a while to load.
fill_redis() { # port, directory
    (exec 3<>"/dev/tcp/127.0.0.1/$1" && printf 'DEBUG POPULATE 20000\r\nSAVE\r\n' >&3 && head -n 2 <&3 >/dev/null)
    mv "$2/dump.rdb" "$3"
}

redis_peers() {
    server_redis port_redis --enable-debug-command yes
    server_redis port_redis_secret --requirepass secret
    server_redis port_redis_replica --replicaof 127.0.0.9 "$port_dead" --replica-serve-stale-data no
    mkdir -p "$scratch/port_redis_loading"
    fill_redis "$port_redis" "$scratch/port_redis" "$scratch/port_redis_loading"
    server_redis port_redis_loading --key-load-delay 500 --loading-process-events-interval-bytes 1024
    redis=127.0.0.1:$port_redis
    rule "redis: PONG" healthy "" redis "$redis"
    rule "redis: while it loads" unhealthy "LOADING" redis "127.0.0.1:$port_redis_loading"
    rule "redis: a password is asked for" unhealthy "NOAUTH" redis "127.0.0.1:$port_redis_secret"
    rule "redis: a replica that has lost its master" unhealthy "MASTERDOWN" redis "127.0.0.1:$port_redis_replica"
    rule "redis: another protocol" unhealthy "got .HTTP/1.1 400" redis "$http"
    rule "redis: no answer" unhealthy "longer than" redis "$silent" --timeout 200
    rule "redis: nobody listens" unhealthy "refused" redis "$dead"
}

memcached_peers() {
    start port_memcached memcached -l 127.0.0.1 -p "$port_memcached" -U 0 -u nobody
    rule "memcached: its version" healthy "" memcached "127.0.0.1:$port_memcached"
    rule "memcached: another protocol" unhealthy "got .-ERR" memcached "$redis"
    rule "memcached: nobody listens" unhealthy "refused" memcached "$dead"
}

# ---- send and expect ----

expect_peers() {
    rule "expect: an answer that begins as it should" healthy "" expect "$redis" --send 'PING\r\n' --prefix '+PONG'
    rule "expect: one that does not, and what came instead" unhealthy "PONG" expect "$redis" --send 'PING\r\n' --prefix '+YES'
    rule "expect: a text in the answer" healthy "" expect "$redis" --send 'INFO server\r\n' --substring 'redis_version:'
    rule "expect: two steps" healthy "" expect "$redis" --send 'ECHO one\r\n' --prefix '$3\r\none\r\n' \
        --send 'ECHO two\r\n' --exact '$3\r\ntwo\r\n'
    rule "expect: bytes by number" healthy "" expect "127.0.0.1:$port_mysql" --prefix '\x34\0\0\0\x0a'
    rule "expect: nothing" wrong "what is to come" expect "$redis"
    rule "expect: something is sent, and nothing expected" wrong "after --send too" expect "$redis" --prefix a --send b
    rule "expect: two are sent, and nothing expected between" wrong "before the next one" expect "$redis" --send a --send b
    rule "expect: an unknown escape" wrong "may stand behind a backslash" expect "$redis" --prefix 'a\q'
    rule "expect: an option of other kinds" wrong "--path goes with http.*, not with expect" expect "$redis" --path /
}

# ---- greetings of mail and databases ----

greeting_peers() {
    rule "smtp: 220 and 250" healthy "" smtp "127.0.0.1:$port_smtp"
    rule "smtp: 421" unhealthy "421" smtp "127.0.0.1:$port_smtp_busy"
    rule "mysql: a greeting" healthy "" mysql "127.0.0.1:$port_mysql"
    rule "mysql: an error, in its words" unhealthy "Too many connections" mysql "127.0.0.1:$port_mysql_error"
    rule "postgres: with TLS" healthy "" postgres "127.0.0.1:$port_postgres"
    rule "postgres: without" healthy "" postgres "127.0.0.1:$port_postgres_plain"
    rule "postgres: an error" unhealthy "got .E" postgres "127.0.0.1:$port_postgres_error"
    for kind in smtp mysql postgres; do
        rule "$kind: garbage" unhealthy "got .*garbage" $kind "$garbage"
        rule "$kind: no answer" unhealthy "longer than" $kind "$silent" --timeout 200
        rule "$kind: nobody listens" unhealthy "refused" $kind "$dead"
    done
}

# ---- agents ----

agent_peers() {
    rule "agent: up" healthy "" agent "127.0.0.1:$port_agent"
    rule "agent: its share is 75 %" bash -c "$probe agent 127.0.0.1:$port_agent --metrics | grep -qE '^plb_.*share.* 0\.7[45]'"
    rule "agent: drain is no failure, but no health either" says 1 " ok " agent "127.0.0.1:$port_agent_drain"
    rule "agent: down, and why" unhealthy "disk is full" agent "127.0.0.1:$port_agent_down"
    rule "agent: one that says nothing that is known" unhealthy "hello" agent "127.0.0.1:$port_agent_odd"
    rule "agent: nobody listens" unhealthy "refused" agent "$dead"
}

# ---- down and up again ----

flips() { sed -nE 's/^.*  is ((un)?healthy)$/\1/p' "$scratch/flips" | paste -sd ' '; }
flips_are() { [ "$(flips)" = "$1" ] || { cat "$scratch/flips"; false; }; }
flip_peers() {
    $probe http "$http" --count 0 --every 50 --metrics >"$scratch/flips" 2>&1 &
    pid_probe=$!
    pids+=("$pid_probe")
    rule "a running prober finds nginx healthy" wait_until 5 flips_are "healthy"
    end TERM "$pid_nginx"
    rule "then down" wait_until 5 flips_are "healthy unhealthy"
    nginx_start
    rule "then up again" wait_until 5 flips_are "healthy unhealthy healthy"
    kill -TERM "$pid_probe"
    wait "$pid_probe"
    rule "interrupted, it exits by how things are" test $? = 0
    rule "--metrics prints them at the end" contains "$scratch/flips" "^plb_.*$http"
}

http_peers
redis_peers
memcached_peers
expect_peers
greeting_peers
agent_peers
h2c_peers
grpc_peers
if [ -n "$tls" ]; then
    tls_peers
    https_peers
    h2_peers
    grpcs_peers
fi
flip_peers
report
