# What the shell tests share: rules with a result each, a scratch folder, free ports, processes ended on every exit, an
# HTTP origin.
passes=0 fails=0
scratch=$(mktemp -d)
pids=()

# Ends a process of ours, and waits for it.
end() { # signal, pid
    kill "-$1" "$2" 2>/dev/null
    wait "$2" 2>/dev/null
}

cleanup() {
    for pid in "${pids[@]}"; do end KILL "$pid"; done
    rm -rf "$scratch"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

rule() { # what should hold, then a command that succeeds when it does
    local what=$1
    shift
    if "$@" >"$scratch/rule.log" 2>&1; then
        passes=$((passes + 1))
        echo "ok    $what"
    else
        fails=$((fails + 1))
        echo "FAIL  $what"
        head -n 20 "$scratch/rule.log"
    fi
}

report() {
    echo "Pass: $passes, fail: $fails, skip: 0."
    [ "$fails" = 0 ]
}

listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

next_port=$((20000 + RANDOM % 8000))
free_port() { # sets port: below the ports that the system gives to connections
    while next_port=$((next_port + 1)) && listens "$next_port"; do :; done
    port=$next_port
}

wait_until() { # seconds, command: until it succeeds
    local tries=$(($1 * 20))
    shift
    while [ $tries -gt 0 ]; do
        "$@" >/dev/null 2>&1 && return 0
        tries=$((tries - 1))
        sleep 0.05
    done
    return 1
}

contains() { grep -q -- "$2" "$1" || { cat "$1"; false; }; } # file, pattern

exits_with() { # status, command
    local wanted=$1
    shift
    "$@"
    local got=$?
    [ "$got" = "$wanted" ] || { echo "exit status $got, not $wanted"; false; }
}

is() { [ "$1" = "$2" ] || { echo "'$1' is not '$2'"; false; }; }

origin_start() { # name: an nginx of its own, in $scratch/NAME, on port_NAME
    local dir=$scratch/$1 port_variable=port_$1
    mkdir -p "$dir/files" "$dir/tmp"
    cat >"$dir/nginx.conf" <<CONF
daemon off;
master_process off;
pid $dir/pid;
error_log $dir/error.log;
events { worker_connections 2048; }
http {
    access_log off;
    client_body_temp_path $dir/tmp;
    proxy_temp_path $dir/tmp;
    fastcgi_temp_path $dir/tmp;
    uwsgi_temp_path $dir/tmp;
    scgi_temp_path $dir/tmp;
    client_max_body_size 0;
    keepalive_requests 1000000;
    server {
        listen 127.0.0.1:${!port_variable};
        root $scratch/files;
        location = /who { return 200 "$1\n"; }
        location = /host { return 200 "\$http_host\n"; }
        location = /empty { return 204; }
        location = /connection { return 200 "\$http_connection|\$http_x_secret\n"; }
        location /slow/ { alias $scratch/files/; limit_rate 1m; }
        location /store/ { alias $dir/files/; dav_methods PUT; }
    }
}
CONF
    nginx -p "$dir" -c "$dir/nginx.conf" >/dev/null 2>&1 &
    eval "pid_$1=$!"
    pids+=("$!")
    wait_until 10 listens "${!port_variable}"
}
