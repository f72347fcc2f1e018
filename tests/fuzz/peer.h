/* peer.h - what fuzz targets of checks have in common: a real probe of a real balancer, over a plb_io whose only peer
   answers with given bytes, cut into pieces of any size. Include it after pingora_lb.h with its implementation.

   Built with -fsanitize=fuzzer,address,undefined; with main.c and no fuzzer, a program that runs files. */
#ifndef PEER_H
#define PEER_H

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
    uint32_t connects;
    char request[1024]; /* what was sent on the last connection, as far as there is room */
    size_t request_size;
} peer;

static inline plb_status peer_connect(void *self, const plb_peer *to, plb_handler handler, plb_stream **out)
{
    peer *p = (peer *)self;
    (void)to;
    REQUIRE(p->open++ == 0);
    memset(&p->stream, 0, sizeof p->stream);
    p->stream.handler = handler;
    p->request_size = 0;
    p->connects++;
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

static inline plb_status peer_read(void *self, plb_stream *stream, void *buffer, size_t capacity, size_t *got)
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

static inline plb_status peer_write(void *self, plb_stream *stream, const plb_chunk *chunks, size_t count,
                                    size_t *taken)
{
    peer *p = (peer *)self;
    size_t i;
    (void)stream;
    *taken = 0;
    for (i = 0; i < count; i++) {
        size_t room = sizeof p->request - p->request_size;
        size_t size = chunks[i].size < room ? chunks[i].size : room;
        memcpy(p->request + p->request_size, chunks[i].data, size);
        p->request_size += size;
        *taken += chunks[i].size;
    }
    return PLB_OK;
}

static inline plb_status peer_watch(void *self, plb_stream *stream, plb_event event)
{
    peer *p = (peer *)self;
    REQUIRE(event == PLB_EVENT_READ);
    if ((stream->at < p->size || p->ends) && (!p->hesitates || p->ready))
        return PLB_OK;
    stream->armed = true;
    return PLB_AGAIN;
}

static inline plb_status peer_shutdown(void *self, plb_stream *stream)
{
    (void)self;
    (void)stream;
    return PLB_OK;
}

static inline void peer_close(void *self, plb_stream *stream, plb_close_how how)
{
    peer *p = (peer *)self;
    (void)how;
    REQUIRE(p->open-- == 1);
    stream->armed = false;
}

static inline plb_status peer_info(void *self, plb_stream *stream, plb_stream_info *out)
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
static inline void peer_step(peer *p)
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

static inline void probed(void *user, const plb_backend_info *info, uint32_t check, const plb_probe_info *probe)
{
    outcome *o = (outcome *)user;
    (void)info;
    (void)check;
    o->probes++;
    o->status = probe->status;
    o->code = probe->code;
    snprintf(o->text, sizeof o->text, "%s", probe->text);
}

/* Runs until so many probes are over. */
static inline void peer_run(peer *p, plb_balancer *lb, const outcome *o, uint32_t probes)
{
    int turns;
    for (turns = 0; turns < 1 << 20 && o->probes < probes; turns++) {
        uint32_t delay = plb_poll(lb);
        if (p->open > 0 && p->stream.armed && (p->stream.at < p->size || p->ends))
            peer_step(p);
        else if (delay > 0 && o->probes < probes)
            p->now_ms += delay; /* nothing more comes */
    }
    REQUIRE(o->probes == probes);
}

/* One probe of a backend that answers so; then, if the connection is kept and there is more to be answered, another. */
static inline void peer_probe(peer *p, plb_check check, const uint8_t *more, size_t more_size, outcome *first)
{
    static const char *const addresses[] = {"10.0.0.1:80"};
    static const plb_static_desc list = {addresses, 1, NULL, 0, 0};
    plb_io io = {0};
    plb_clock clock = {0};
    plb_balancer_desc desc = {0};
    plb_balancer *lb;
    outcome o;
    memset(&o, 0, sizeof o);
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
    desc.check = check;
    desc.user = &o;
    desc.on_probe = probed;
    REQUIRE(plb_create(&desc, &lb) == PLB_OK);
    peer_run(p, lb, &o, 1);
    *first = o;
    REQUIRE(p->open == 0 || o.status == PLB_OK);
    if (p->open > 0 && more_size > 0) {
        p->answer = more;
        p->size = more_size;
        p->stream.at = 0;
        plb_check_now(lb);
        peer_run(p, lb, &o, 2);
    }
    plb_destroy(lb);
    REQUIRE(p->open == 0);
}

#endif /* PEER_H */
