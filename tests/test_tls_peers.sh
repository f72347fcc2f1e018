#!/usr/bin/env bash
# build/tls_peer (ports/plb_mbedtls.h over sockets) against OpenSSL on loopback, as client and as server.
cd "$(dirname "$0")/.." || exit 1
. tests/shell.sh
peer=build/tls_peer

# ---- certificates ----

key() { openssl ecparam -name prime256v1 -genkey -noout -out "$scratch/$1.key" 2>/dev/null; }

authority() { # name
    key "$1"
    openssl req -x509 -new -key "$scratch/$1.key" -subj "/CN=$1" -days 30 -out "$scratch/$1.pem" 2>/dev/null
}

certificate() { # name, authority, subjectAltName, days
    key "$1"
    openssl req -new -key "$scratch/$1.key" -subj "/CN=$1" -out "$scratch/$1.csr" 2>/dev/null
    echo "subjectAltName=$3" >"$scratch/$1.ext"
    openssl x509 -req -in "$scratch/$1.csr" -CA "$scratch/$2.pem" -CAkey "$scratch/$2.key" -CAcreateserial \
        -days "$4" -extfile "$scratch/$1.ext" -out "$scratch/$1.pem" 2>/dev/null
}

authority ca
authority stranger
certificate good ca DNS:good.test,IP:127.0.0.1 30
certificate expired ca DNS:good.test -1
certificate client ca DNS:client.test 30
certificate unknown stranger DNS:client.test 30
authority self # is for nobody, and vouches for itself

# ---- OpenSSL listens ----

openssl_listens() { # certificate, options: sets port, pid_server. Lines are sent back reversed
    free_port
    openssl s_server -accept "127.0.0.1:$port" -cert "$scratch/$1.pem" -key "$scratch/$1.key" -rev -quiet \
        "${@:2}" >"$scratch/server.log" 2>&1 &
    pid_server=$!
    pids+=("$pid_server")
    wait_until 10 listens "$port"
}

result() { # pattern of the lines expected, arguments of tls_peer connect
    timeout 20 $peer connect "127.0.0.1:$port" "${@:2}" >"$scratch/result" 2>&1
    tr '\n' ' ' <"$scratch/result" | grep -qE -- "^$1 \$" || { cat "$scratch/result"; tail -n 3 "$scratch/server.log"; false; }
}

ok='It went well\.'
refused='The certificate is not accepted\.'
no_tls='No TLS session came about\.'
name=(name=good.test "ca=$scratch/ca.pem")

for version in -tls1_2 ""; do
    # shellcheck disable=SC2086 # none or one
    openssl_listens good $version
    rule "a server ($version) answers" result "$ok\|TLSv1\.[23]\|\|new\|\|kcab dna ereht" "${name[@]}"
    rule "and is resumed" result "($ok\|TLSv1\.[23]\|\|new\|\|kcab dna ereht) ($ok\|TLSv1\.[23]\|\|resumed\|\|.*)" \
        "${name[@]}" times=2
    end TERM "$pid_server"
done

openssl_listens good -alpn h2,http/1.1
rule "ALPN is agreed on" result "$ok\|TLSv1\.[23]\|http/1\.1\|.*" "${name[@]}" alpn=http/1.1
rule "ALPN that is not known is no session" result "$no_tls\|.*no application protocol\|" "${name[@]}" alpn=x
rule "another name is refused" result "$refused\|.*for another name\|" name=other.test "ca=$scratch/ca.pem"
rule "unless an alternative fits" result "$ok\|.*" name=other.test alternative=good.test "ca=$scratch/ca.pem"
rule "or any name will do" result "$ok\|.*" name=other.test any_name=1 "ca=$scratch/ca.pem"
rule "an address may be the name" result "$ok\|.*" name=127.0.0.1 "ca=$scratch/ca.pem"
rule "the address of another is refused" result "$refused\|.*for another name\|" name=127.0.0.2 "ca=$scratch/ca.pem"
rule "an authority that is not trusted is refused" result "$refused\|.*nobody trusted vouches.*" name=good.test \
    "ca=$scratch/stranger.pem"
rule "and so is one that the system does not know" result "$refused\|.*nobody trusted vouches.*" name=good.test
end TERM "$pid_server"

openssl_listens expired
rule "an expired certificate is refused" result "$refused\|.*the certificate has expired\|" "${name[@]}"
rule "unless any chain will do" result "$ok\|.*" "${name[@]}" any_chain=1
end TERM "$pid_server"

openssl_listens self
rule "a self-signed certificate is refused" result "$refused\|.*nobody trusted vouches.*" "${name[@]}" any_name=1
rule "unless it is trusted" result "$ok\|.*" name=x any_name=1 "ca=$scratch/self.pem"
end TERM "$pid_server"

for version in "" -tls1_2; do
    # shellcheck disable=SC2086 # none or one
    openssl_listens good $version -Verify 1 -verify_return_error -CAfile "$scratch/ca.pem"
    rule "a server ($version) that wants a certificate gets it" result "$ok\|.*" "${name[@]}" "cert=$scratch/client.pem" \
        "key=$scratch/client.key"
    rule "that it wants one is told" result "$no_tls\|.*it wants a certificate of this side\|" "${name[@]}"
    rule "and that it does not trust ours" result "$no_tls\|.*alert: unknown authority\|" "${name[@]}" \
        "cert=$scratch/unknown.pem" "key=$scratch/unknown.key"
    end TERM "$pid_server"
done

openssl_listens good -tls1_1 -cipher 'DEFAULT@SECLEVEL=0'
rule "TLS 1.1 is not spoken" result "$no_tls\|.*(version|alert).*" "${name[@]}"
end TERM "$pid_server"

openssl_listens good
end KILL "$pid_server"
rule "nobody listens: refused" result 'The connection was refused\..*' "${name[@]}"

rule "a key that does not fit is named" bash -c "
    $peer connect 127.0.0.1:1 cert=$scratch/good.pem key=$scratch/client.key | grep -q 'client.key: the key is not'"

# ---- OpenSSL connects ----

peer_listens() { # arguments of tls_peer listen: sets port, pid_server
    free_port
    : >"$scratch/server.log"
    $peer listen "127.0.0.1:$port" "cert=$scratch/good.pem" "key=$scratch/good.key" "$@" >>"$scratch/server.log" 2>&1 &
    pid_server=$!
    pids+=("$pid_server")
    wait_until 10 listens "$port"
    wait_until 10 test -s "$scratch/server.log" # the knock that found it out
    : >"$scratch/server.log"
}

client() { # options of s_client: sends a line, and waits for its end
    (echo hello; sleep 0.5) | timeout 10 openssl s_client -connect "127.0.0.1:$port" -CAfile "$scratch/ca.pem" \
        -verify_return_error -servername good.test -verify_hostname good.test "$@" >"$scratch/client.log" 2>&1
}

heard() { # pattern of the server's last line
    wait_until 5 test -s "$scratch/server.log"
    tail -n 1 "$scratch/server.log" | grep -qE -- "^$1\$" || { cat "$scratch/server.log"; head -n 5 "$scratch/client.log"; false; }
}

peer_listens alpn=http/1.1
client -alpn h2,http/1.1
rule "OpenSSL's line comes in" heard "$ok\|TLSv1\.[23]\|http/1\.1\|new\|\|hello"
rule "and goes back" contains "$scratch/client.log" '^hello$'
rule "and OpenSSL found nothing wrong" contains "$scratch/client.log" 'Verif.*: 0 (ok)\|Verification: OK'
client -tls1_2 -sess_out "$scratch/session"
: >"$scratch/server.log"
client -tls1_2 -sess_in "$scratch/session"
rule "OpenSSL resumes" heard "$ok\|TLSv1\.2\|\|resumed\|\|hello"
: >"$scratch/server.log"
client -tls1_1 -cipher 'DEFAULT@SECLEVEL=0'
rule "and is turned away with TLS 1.1" heard "$no_tls\|.*no version of TLS.*"
: >"$scratch/server.log"
client -alpn x
rule "and with a protocol that nobody knows" heard "$no_tls\|.*"
end TERM "$pid_server"

peer_listens "ca=$scratch/ca.pem" ask_client=1
client -cert "$scratch/client.pem" -key "$scratch/client.key"
rule "OpenSSL's certificate is taken" heard "$ok\|.*\|hello"
: >"$scratch/server.log"
client
rule "none is not" heard "$refused\|.*the client sent no certificate\|"
: >"$scratch/server.log"
client -cert "$scratch/unknown.pem" -key "$scratch/unknown.key"
rule "nor is a stranger's" heard "$refused\|.*nobody trusted vouches.*"
end TERM "$pid_server"
report
