"""Peers that no package brings: a gRPC server, and servers that say what they were told to.

    python3 peers.py grpc PORT PORT_TLS PORT_WITHOUT KEY CERT   the health protocol; over TLS; a server without it
    python3 peers.py say PORT=SCRIPT...                         SCRIPT: "bytes" or "?": until something has come;
                                                                one after the other, separated by "|"
"""
import socketserver
import sys
import threading
import time

STATUS = {b"": 1, b"db": 1, b"drained": 2, b"starting": 0}


def service_of(request):
    """HealthCheckRequest: field 1 is the service; a name of below 128 bytes."""
    return request[2:2 + request[1]] if request[:1] == b"\x0a" else b""


def check(request, context):
    import grpc
    service = service_of(request)
    if service == b"slow":
        time.sleep(5)
    if service == b"garbage":
        return b"\xff\xff\xff"
    if service not in STATUS:
        context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
    return bytes([0x08, STATUS[service]]) if STATUS[service] else b""


def grpc_server(port, handlers, credentials=None):
    import concurrent.futures
    import grpc
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers(handlers)
    address = "127.0.0.1:" + port
    if credentials is not None:
        server.add_secure_port(address, credentials)
    else:
        server.add_insecure_port(address)
    server.start()
    return server


def serve_grpc(port, port_tls, port_without, key, cert):
    import grpc
    # None in place of (de)serializers: messages are the bytes that they are on the wire.
    health = grpc.method_handlers_generic_handler(
        "grpc.health.v1.Health", {"Check": grpc.unary_unary_rpc_method_handler(check)})
    with open(key, "rb") as key_file, open(cert, "rb") as cert_file:
        credentials = grpc.ssl_server_credentials([(key_file.read(), cert_file.read())])
    servers = [grpc_server(port_without, ()), grpc_server(port, (health,)),
               grpc_server(port_tls, (health,), credentials)]
    for server in servers:
        server.wait_for_termination()


class Say(socketserver.BaseRequestHandler):
    def handle(self):
        try:
            for step in self.server.script:
                if step == b"?":
                    if not self.request.recv(4096):
                        return
                else:
                    self.request.sendall(step)
            while self.request.recv(4096):
                pass
        except OSError:
            pass  # the prober has gone


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def serve_scripts(scripts):
    for script in scripts:
        port, text = script.split("=", 1)
        server = Server(("127.0.0.1", int(port)), Say)
        server.script = [step.encode().decode("unicode_escape").encode("latin-1") for step in text.split("|")]
        threading.Thread(target=server.serve_forever).start()


if sys.argv[1] == "grpc":
    serve_grpc(*sys.argv[2:])
else:
    serve_scripts(sys.argv[2:])
