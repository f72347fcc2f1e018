/* Fuzzes the HTTP check: a real probe of a real balancer, over a plb_io whose only peer answers with the input. The
   first two bytes choose the check's options and how the answer is cut into pieces; the rest is the answer. What must
   hold for any bytes: the probe ends, the same way with the same words however the answer is cut, nothing is left
   behind, and the request was sent whole.

   Built with -fsanitize=fuzzer,address,undefined; with -DFUZZ_MAIN a program that runs the files it is given. */
#include "../../pingora_lb.h"

#include <stdio.h>
#include <stdlib.h>

#define REQUIRE(condition)                                                                                             \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                            \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* ---- the peer ---- */

/* The one stream that there is at a time. */
struct plb_stream {
    plb_handler handler;
    bool armed;
    size_t at; /* bytes of the answer that were read */
};

typedef struct peer {
    plb_stream stream;
    uint32_t open;
    uint64_t now_ms;
    const uint8_t *answer;
    size_t size;
    bool ends;       /* behind the answer; else it falls silent */
    uint32_t pieces; /* 0: each read gets all that there is room for; else a seed of their sizes */
    bool hesitates;  /* PLB_AGAIN between pieces */
    bool ready;
    char request[1024];
    size_t request_size;
} peer;

static plb_status peer_connect(void *self, const plb_peer *to, plb_handler handler, plb_stream **out)
{
    peer *p = (peer *)self;
    (void)to;
    REQUIRE(p->open++ == 0);
    memset(&p->stream, 0, sizeof p->stream);
    p->stream.handler = handler;
    p->request_size = 0;
    *out = &p->stream;
    return PLB_OK;
}

static size_t piece(peer *p, size_t most)
{
    if (p->pieces == 0)
        return most;
    p->pieces = p->pieces * 1664525u + 1013904223u;
    return 1 + (p->pieces >> 16) % (most < 40 ? most : 40);
}

static plb_status peer_read(void *self, plb_stream *stream, void *buffer, size_t capacity, size_t *got)
{
    peer *p = (peer *)self;
    size_t left = p->size - stream->at;
    REQUIRE(p->open == 1 && capacity > 0);
    if ((left == 0 && !p->ends) || (p->hesitates && !p->ready)) {
        stream->armed = true;
        return PLB_AGAIN;
    }
    p->ready = false;
    if (left == 0)
        return PLB_END;
    *got = piece(p, left < capacity ? left : capacity);
    memcpy(buffer, p->answer + stream->at, *got);
    stream->at += *got;
    return PLB_OK;
}

static plb_status peer_write(void *self, plb_stream *stream, const plb_chunk *chunks, size_t count, size_t *taken)
{
    peer *p = (peer *)self;
    size_t i;
    (void)stream;
    *taken = 0;
    for (i = 0; i < count; i++) {
        REQUIRE(p->request_size + chunks[i].size < sizeof p->request);
        memcpy(p->request + p->request_size, chunks[i].data, chunks[i].size);
        p->request_size += chunks[i].size;
        *taken += chunks[i].size;
    }
    return PLB_OK;
}

static plb_status peer_watch(void *self, plb_stream *stream, plb_event event)
{
    peer *p = (peer *)self;
    REQUIRE(event == PLB_EVENT_READ);
    if ((stream->at < p->size || p->ends) && (!p->hesitates || p->ready))
        return PLB_OK;
    stream->armed = true;
    return PLB_AGAIN;
}

static plb_status peer_shutdown(void *self, plb_stream *stream)
{
    (void)self;
    (void)stream;
    return PLB_OK;
}

static void peer_close(void *self, plb_stream *stream, plb_close_how how)
{
    peer *p = (peer *)self;
    (void)how;
    REQUIRE(p->open-- == 1);
    stream->armed = false;
}

static plb_status peer_info(void *self, plb_stream *stream, plb_stream_info *out)
{
    (void)self;
    (void)stream;
    memset(out, 0, sizeof *out);
    return PLB_OK;
}

static uint64_t peer_now(void *self)
{
    return ((peer *)self)->now_ms;
}

/* A step of the port: the callback that is armed, if something came. */
static void peer_step(peer *p)
{
    if (p->open == 0 || !p->stream.armed || (p->stream.at == p->size && !p->ends))
        return;
    p->stream.armed = false;
    p->ready = true;
    p->stream.handler.fn(p->stream.handler.user, &p->stream, PLB_EVENT_READ, PLB_OK);
}

/* ---- the probe ---- */

typedef struct outcome {
    uint32_t probes;
    plb_status status;
    uint32_t code;
    char text[PLB_REPORT_TEXT];
} outcome;

static void probed(void *user, const plb_backend_info *info, uint32_t check, const plb_probe_info *probe)
{
    outcome *o = (outcome *)user;
    (void)info;
    (void)check;
    o->probes++;
    o->status = probe->status;
    o->code = probe->code;
    snprintf(o->text, sizeof o->text, "%s", probe->text);
}

static bool has_headers(void *user, uint32_t status, const plb_http1_header *headers, size_t count)
{
    size_t i;
    (void)user;
    REQUIRE(status >= 200 && status < 1000);
    for (i = 0; i < count; i++)
        REQUIRE(plb_http1_is_token(headers[i].name) && plb_http1_is_value(headers[i].value));
    return count > 0;
}

/* Bits of the first byte; the last one is the peer's. */
enum { HEAD = 1, WIDE = 2, VALIDATED = 4, CONTAINS = 8, LIMITED = 16, KEPT = 32, ENDS = 64 };

static plb_http_check_desc check_of(uint8_t options)
{
    plb_http_check_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.method = (options & HEAD) != 0 ? "HEAD" : NULL;
    desc.statuses = (options & WIDE) != 0 ? "200-399,500" : NULL;
    desc.validate = (options & VALIDATED) != 0 ? has_headers : NULL;
    desc.contains = (options & CONTAINS) != 0 && (options & HEAD) == 0 ? "abab" : NULL;
    desc.body_limit = (options & LIMITED) != 0 ? 20 : 0;
    desc.reuse_connection = (options & KEPT) != 0;
    return desc;
}

static void require_whole_request(const peer *p, uint8_t options)
{
    const char *begin =
        (options & HEAD) != 0 ? "HEAD / HTTP/1.1\r\nHost: 10.0.0.1\r\n" : "GET / HTTP/1.1\r\nHost: 10.0.0.1\r\n";
    REQUIRE(p->request_size > strlen(begin) && memcmp(p->request, begin, strlen(begin)) == 0);
    REQUIRE(memcmp(p->request + p->request_size - 4, "\r\n\r\n", 4) == 0);
}

/* One probe of a backend that gives this answer. */
static void run(peer *p, uint8_t options, outcome *o)
{
    static const char *const addresses[] = {"10.0.0.1:80"};
    static const plb_static_desc list = {addresses, 1, NULL, 0, 0};
    plb_http_check_desc http = check_of(options);
    plb_io io = {0};
    plb_clock clock = {0};
    plb_balancer_desc desc = {0};
    plb_balancer *lb;
    int turns;
    memset(o, 0, sizeof *o);
    io.self = clock.self = p;
    io.connect = peer_connect;
    io.read = peer_read;
    io.write = peer_write;
    io.watch = peer_watch;
    io.shutdown = peer_shutdown;
    io.close = peer_close;
    io.info = peer_info;
    clock.now_ms = peer_now;
    desc.port.io = &io;
    desc.port.clock = &clock;
    desc.discovery = plb_static(&list);
    desc.check = plb_http_check(&http);
    desc.user = o;
    desc.on_probe = probed;
    REQUIRE(plb_create(&desc, &lb) == PLB_OK);
    for (turns = 0; turns < 1 << 20 && o->probes == 0; turns++) {
        uint32_t delay = plb_poll(lb);
        if (p->open > 0 && p->stream.armed && (p->stream.at < p->size || p->ends))
            peer_step(p);
        else if (delay > 0 && o->probes == 0)
            p->now_ms += delay; /* nothing more comes */
    }
    REQUIRE(o->probes == 1);
    REQUIRE(p->open == 0 || (o->status == PLB_OK && http.reuse_connection));
    require_whole_request(p, options);
    plb_destroy(lb);
    REQUIRE(p->open == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint32_t seeds[] = {0, 1, 7, 99};
    outcome first, again;
    peer p;
    size_t i;
    if (size < 2)
        return 0;
    for (i = 0; i < sizeof seeds / sizeof *seeds; i++) {
        memset(&p, 0, sizeof p);
        p.answer = data + 2;
        p.size = size - 2;
        p.ends = (data[0] & ENDS) != 0;
        p.pieces = seeds[i] == 0 ? 0 : seeds[i] * 1000 + data[1];
        p.hesitates = i % 2 != 0;
        run(&p, data[0], i == 0 ? &first : &again);
        if (i > 0)
            REQUIRE(first.status == again.status && first.code == again.code && strcmp(first.text, again.text) == 0);
    }
    return 0;
}

#ifdef FUZZ_MAIN
int main(int argc, char **argv)
{
    static uint8_t input[1 << 20];
    int i;
    for (i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        if (file == NULL)
            return 1;
        LLVMFuzzerTestOneInput(input, fread(input, 1, sizeof input, file));
        fclose(file);
    }
    return 0;
}
#endif
