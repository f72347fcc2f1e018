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

for name in dead http https mtls h2c redis redis_secret redis_loading redis_replica memcached grpc grpc_tls grpc_none \
    expired early selfsigned wrong old strict smtp smtp_bad mysql mysql_error postgres agent; do
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
rule "a certificate without its key" wrong "one needs the other" tls --cert x 127.0.0.1:80
rule "authorities that cannot be read" wrong "/nonexistent" tls --ca /nonexistent 127.0.0.1:80
rule "a certificate for a Unix socket needs a name" wrong "has no name" tls unix:/nonexistent
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
        location = /missing { return 404; } location = /empty { return 204; }"
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
    access_log $scratch/nginx/access.log;
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
        listen unix:$scratch/nginx/socket;
        $server
    }
    server {
        listen 127.0.0.1:$port_http;
        listen 127.0.0.1:$port_https ssl http2;
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
http=127.0.0.1:$port_http https=127.0.0.1:$port_https mtls=127.0.0.1:$port_mtls dead=127.0.0.1:$port_dead

rule "tcp: a server that listens" healthy "" tcp "$http"
rule "tcp: a port where nobody does" unhealthy "refused" tcp "$dead"
rule "tcp: by name" healthy "" tcp "localhost:$port_http"
rule "tcp: by path" healthy "" tcp "unix:$scratch/nginx/socket"
rule "tcp: --port is the port that is probed" healthy "" tcp "$dead" --port "$port_http"
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
rule "tls: 1.1 is too old" unhealthy "version|alert" tls "${ca[@]}" "127.0.0.1:$port_old"

server_tls port_strict good -tls1_2 -Verify 1 -verify_return_error -CAfile "$scratch/ca.crt"
strict=127.0.0.1:$port_strict
client=(--cert "$scratch/client.crt" --key "$scratch/client.key")
rule "tls: a certificate of ours is asked for, and there is none" unhealthy "certificate" tls "${ca[@]}" "$strict"
rule "tls: with one that the server trusts" healthy "" tls "${ca[@]}" "${client[@]}" "$strict"
rule "tls: with one that it does not trust" unhealthy "alert|reset" tls "${ca[@]}" "$strict" \
    --cert "$scratch/selfsigned.crt" --key "$scratch/selfsigned.key"
rule "tls: a certificate with the key of another" wrong "" tls "$strict" --cert "$scratch/client.crt" \
    --key "$scratch/good.key"
report
