# What the shell tests share: rules with a result each, a scratch folder, free ports, processes ended on every exit.
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
