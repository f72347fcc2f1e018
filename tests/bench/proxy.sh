#!/usr/bin/env bash
# make bench-proxy: requests a second through build/load_balancer and through nginx as a proxy (one worker each), before
# the same two nginx origins, by wrk; best of three short runs each, in turn.
cd "$(dirname "$0")/../.." || exit 1
. tests/shell.sh
PATH=$PATH:/usr/sbin
seconds=${1:-4}

nginx_start() { # name, the inside of http {}
    mkdir -p "$scratch/$1"
    cat >"$scratch/$1/nginx.conf" <<CONF
daemon off; master_process off; pid $scratch/$1/pid; error_log $scratch/$1/error.log;
events { worker_connections 4096; }
http {
    access_log off; keepalive_requests 100000000;
    client_body_temp_path $scratch/$1; proxy_temp_path $scratch/$1; fastcgi_temp_path $scratch/$1;
    uwsgi_temp_path $scratch/$1; scgi_temp_path $scratch/$1;
    $2
}
CONF
    nginx -p "$scratch/$1" -c "$scratch/$1/nginx.conf" 2>/dev/null &
    pids+=($!)
}

for name in a b nginx lb; do
    free_port
    eval "port_$name=$port"
done
nginx_start a "server { listen 127.0.0.1:$port_a; location / { return 200 'hello, world'; } }"
nginx_start b "server { listen 127.0.0.1:$port_b; location / { return 200 'hello, world'; } }"
nginx_start proxy "
    upstream origins { server 127.0.0.1:$port_a; server 127.0.0.1:$port_b; keepalive 128; keepalive_requests 100000000; }
    server { listen 127.0.0.1:$port_nginx;
             location / { proxy_pass http://origins; proxy_http_version 1.1; proxy_set_header Connection ''; } }"
build/load_balancer --listen "127.0.0.1:$port_lb" "127.0.0.1:$port_a" "127.0.0.1:$port_b" 2>/dev/null &
pids+=($!)
for name in a b nginx lb; do
    port_variable=port_$name
    wait_until 5 listens "${!port_variable}"
done

requests() { wrk -t 1 -c 64 -d "${seconds}s" "http://127.0.0.1:$1/" | awk '/Requests\/sec/ {print $2}'; }
best_nginx=0 best_lb=0
for _ in 1 2 3; do
    n=$(requests "$port_nginx")
    l=$(requests "$port_lb")
    best_nginx=$(awk -v a="$best_nginx" -v b="$n" 'BEGIN {print (a > b ? a : b)}')
    best_lb=$(awk -v a="$best_lb" -v b="$l" 'BEGIN {print (a > b ? a : b)}')
done
awk -v l="$best_lb" -v n="$best_nginx" 'BEGIN {
    printf "proxy connections=64 load_balancer=%d/s nginx=%d/s ratio=%.2f\n", l, n, l / n}'
