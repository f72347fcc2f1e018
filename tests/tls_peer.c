/* One side of TLS connections, for tests/test_tls_peers.sh: the mbedTLS port over the POSIX port.

       tls_peer connect ADDRESS [WORD=VALUE ...]   sends a line, prints what comes back and how it went
       tls_peer listen ADDRESS [WORD=VALUE ...]    answers each line with it, prints how each connection went
   Words: name, alternative, alpn (one), ca, cert, key, and with the value 1 any_chain, any_name, ask_client;
   times: connections to make. A result is one line: "STATUS|VERSION|ALPN|new or resumed|REASON|what came". */
#define _GNU_SOURCE
#define PINGORA_LB_IMPLEMENTATION
#include "../pingora_lb.h"
#define PLB_POSIX_IMPLEMENTATION
#include "../ports/plb_posix.h"
#define PLB_MBEDTLS_IMPLEMENTATION
#include "../ports/plb_mbedtls.h"

#include <stdio.h>
#include <stdlib.h>

#define PATIENCE_MS 5000

typedef struct peer {
    plb_stream *stream;
    bool connected;
    plb_status status; /* how connecting has ended */
} peer;

static plb_posix *px;
static const plb_io *io;
static const plb_clock *the_clock;

static void on_event(void *user, plb_stream *stream, plb_event event, plb_status status)
{
    peer *p = (peer *)user;
    (void)stream;
    if (event != PLB_EVENT_CONNECT)
        return;
    p->connected = true;
    p->status = status;
}

static plb_handler handler_of(peer *p)
{
    plb_handler handler;
    memset(p, 0, sizeof *p);
    handler.fn = on_event;
    handler.user = p;
    return handler;
}

/* The value of a word on the command line, or NULL. */
static const char *value_of(char **words, const char *word)
{
    size_t length = strlen(word);
    for (; *words != NULL; words++) {
        if (strncmp(*words, word, length) == 0 && (*words)[length] == '=')
            return *words + length + 1;
    }
    return NULL;
}

/* One line of up to `capacity` - 1 bytes, or what comes before the end. */
static plb_status read_line(peer *p, char *line, size_t capacity)
{
    uint64_t until = the_clock->now_ms(the_clock->self) + PATIENCE_MS;
    plb_status status = PLB_AGAIN;
    size_t used = 0, got;
    line[0] = '\0';
    while (used < capacity - 1 && memchr(line, '\n', used) == NULL && the_clock->now_ms(the_clock->self) < until) {
        status = io->read(io->self, p->stream, line + used, capacity - 1 - used, &got);
        used += got;
        line[used] = '\0';
        if (status == PLB_AGAIN)
            plb_posix_step(px, 20);
        else if (status != PLB_OK)
            break;
    }
    line[strcspn(line, "\n")] = '\0';
    return status;
}

static plb_status write_line(peer *p, const char *line)
{
    plb_chunk chunks[2];
    size_t taken;
    memset(chunks, 0, sizeof chunks);
    chunks[0].data = line;
    chunks[0].size = strlen(line);
    chunks[1].data = "\n";
    chunks[1].size = 1;
    return io->write(io->self, p->stream, chunks, 2, &taken);
}

static void report(peer *p, plb_status status, const char *line)
{
    plb_stream_info info;
    memset(&info, 0, sizeof info);
    if (p->stream != NULL)
        io->info(io->self, p->stream, &info);
    printf("%s|%s|%s|%s|%s|%s\n", plb_status_text(status), info.tls_version != NULL ? info.tls_version : "",
           info.alpn != NULL ? info.alpn : "", info.tls_resumed ? "resumed" : "new",
           info.tls_reason != NULL ? info.tls_reason : "", line);
    fflush(stdout);
    if (p->stream != NULL)
        io->close(io->self, p->stream, PLB_CLOSE_GRACEFUL);
}

static void connect_once(const plb_peer *to)
{
    uint64_t until = the_clock->now_ms(the_clock->self) + PATIENCE_MS;
    char line[256] = "";
    peer p;
    plb_status status = io->connect(io->self, to, handler_of(&p), &p.stream);
    while (status == PLB_AGAIN && !p.connected && the_clock->now_ms(the_clock->self) < until)
        plb_posix_step(px, 20);
    if (p.connected)
        status = p.status;
    if (status == PLB_OK)
        status = write_line(&p, "there and back");
    if (status == PLB_OK)
        status = read_line(&p, line, sizeof line);
    report(&p, status, line);
}

static void serve_forever(const plb_listen_desc *at)
{
    peer listener, p;
    char line[256];
    plb_status status = io->listen(io->self, at, handler_of(&listener), &listener.stream);
    if (status != PLB_OK) {
        report(&listener, status, "");
        return;
    }
    while ((status = io->accept(io->self, listener.stream, handler_of(&p), &p.stream)) == PLB_OK ||
           status == PLB_AGAIN) {
        if (status == PLB_AGAIN) {
            plb_posix_step(px, 100);
            continue;
        }
        status = read_line(&p, line, sizeof line);
        if (status == PLB_OK)
            write_line(&p, line);
        report(&p, status, line);
    }
}

static int fail(const char *what, const char *why)
{
    printf("%s|||||%s\n", what, why);
    plb_posix_destroy(px);
    return 1;
}

int main(int argc, char **argv)
{
    char error[256] = "";
    const char *protocols[2] = {NULL, NULL}, *times;
    plb_mbedtls_desc desc;
    plb_mbedtls *port;
    plb_tls wanted;
    plb_peer to;
    plb_listen_desc at;
    plb_status status;
    int i;
    memset(&desc, 0, sizeof desc);
    memset(&wanted, 0, sizeof wanted);
    memset(&to, 0, sizeof to);
    memset(&at, 0, sizeof at);
    if (argc < 3 || plb_addr_parse(&to.addr, argv[2], PLB_ZSTRING) != PLB_OK || plb_posix_create(NULL, &px) != PLB_OK)
        return 2;
    the_clock = plb_posix_port(px).clock;
    desc.io = plb_posix_port(px).io;
    desc.identity.ca_file = value_of(argv, "ca");
    desc.identity.cert_file = value_of(argv, "cert");
    desc.identity.key_file = value_of(argv, "key");
    desc.identity.error = error;
    desc.identity.error_capacity = sizeof error;
    status = plb_mbedtls_create(&desc, &port);
    if (status != PLB_OK)
        return fail(plb_status_text(status), error);
    io = plb_mbedtls_io(port);
    protocols[0] = value_of(argv, "alpn");
    wanted.name = value_of(argv, "name");
    wanted.alternative_name = value_of(argv, "alternative");
    wanted.alpn = protocols[0] != NULL ? protocols : NULL;
    wanted.any_chain = value_of(argv, "any_chain") != NULL;
    wanted.any_name = value_of(argv, "any_name") != NULL;
    wanted.ask_client = value_of(argv, "ask_client") != NULL;
    to.tls = at.tls = &wanted;
    at.addr = to.addr;
    if (strcmp(argv[1], "listen") == 0)
        serve_forever(&at);
    times = value_of(argv, "times");
    for (i = 0; strcmp(argv[1], "connect") == 0 && i < (times != NULL ? atoi(times) : 1); i++)
        connect_once(&to);
    plb_mbedtls_destroy(port);
    plb_posix_destroy(px);
    return 0;
}
