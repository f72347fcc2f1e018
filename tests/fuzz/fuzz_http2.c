/* Fuzzes the HTTP/2 client codec. The first byte says what is asked for, how large the memory is, and whether output is
   sent meanwhile; the second in what pieces the rest comes; the rest is what the peer sends. What must hold for any
   bytes: slices lie inside of them or of the memory, events come in their order, bytes that come in pieces mean the
   same as at once, what is sent is whole frames, and a fault is told and final.

   Built with -fsanitize=fuzzer,address,undefined; with main.c and no fuzzer, a program that runs files. */
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

enum { LITTLE_MEMORY = 4, SENDS_MEANWHILE = 8 }; /* bits of the first byte; the lowest two are the method */

typedef struct run {
    plb_http2 h;
    char *memory;
    size_t memory_size;
    uint64_t events, data; /* hashes; data comes in pieces, so it has one of its own */
    plb_http2_event_kind last;
    bool goaway;
    /* the frames that were sent */
    uint8_t head[9];
    size_t head_size, payload_left, preface_left;
    bool over;
} run;

static plb_text text_of(const char *string)
{
    plb_text text;
    text.data = string;
    text.size = strlen(string);
    return text;
}

static void add(uint64_t *hash, uint64_t number)
{
    *hash = (*hash ^ number) * 1099511628211u;
}

static void add_text(uint64_t *hash, plb_text text)
{
    size_t i;
    for (i = 0; i < text.size; i++)
        add(hash, (uint8_t)text.data[i]);
}

static plb_status ask(run *r, uint8_t what)
{
    static char body[40000];
    plb_http2_header headers[4];
    plb_text content;
    headers[0].name = text_of(":method");
    headers[0].value = text_of((what & 3) == 1 ? "HEAD" : (what & 3) == 2 ? "POST" : "GET");
    headers[1].name = text_of(":scheme");
    headers[1].value = text_of("http");
    headers[2].name = text_of(":path");
    headers[2].value = text_of("/");
    headers[3].name = text_of(":authority");
    headers[3].value = text_of("a");
    content.data = body;
    content.size = (what & 3) == 2 ? sizeof body : 0;
    return plb_http2_request(&r->h, headers, 4, content);
}

/* The client's bytes are frames of a size that the peer takes, and nothing follows a fault's GOAWAY. */
static void on_sent(run *r, plb_text out)
{
    size_t i;
    for (i = 0; i < out.size; i++) {
        if (r->preface_left > 0) {
            r->preface_left--;
        } else if (r->payload_left > 0) {
            r->payload_left--;
        } else {
            REQUIRE(!r->over);
            r->head[r->head_size++] = (uint8_t)out.data[i];
            if (r->head_size < 9)
                continue;
            r->head_size = 0;
            r->payload_left = (size_t)r->head[0] << 16 | (size_t)r->head[1] << 8 | r->head[2];
            REQUIRE(r->head[3] <= 8 && r->payload_left <= r->h.peer_frame_size);
            r->over = r->head[3] == 7;
        }
    }
}

static void drain(run *r)
{
    plb_text out;
    for (out = plb_http2_output(&r->h); out.size > 0; out = plb_http2_output(&r->h)) {
        on_sent(r, out);
        plb_http2_sent(&r->h, out.size);
    }
    REQUIRE(r->head_size == 0 && r->payload_left == 0 && r->preface_left == 0);
}

static bool inside(plb_text text, const char *bytes, size_t size)
{
    return text.size == 0 || (text.data >= bytes && text.data + text.size <= bytes + size);
}

/* Which event may follow which, within an answer. */
static bool may_follow(plb_http2_event_kind last, plb_http2_event_kind kind)
{
    switch (kind) {
    case PLB_HTTP2_STATUS:
        return last == PLB_HTTP2_NONE || last == PLB_HTTP2_HEADERS_END;
    case PLB_HTTP2_HEADER:
        return last == PLB_HTTP2_STATUS || last == PLB_HTTP2_HEADER;
    case PLB_HTTP2_HEADERS_END:
        return last == PLB_HTTP2_STATUS || last == PLB_HTTP2_HEADER;
    case PLB_HTTP2_DATA:
    case PLB_HTTP2_TRAILER:
        return last == PLB_HTTP2_HEADERS_END || last == PLB_HTTP2_DATA || last == kind;
    case PLB_HTTP2_END:
        return last == PLB_HTTP2_HEADERS_END || last == PLB_HTTP2_DATA || last == PLB_HTTP2_TRAILER;
    default:
        return true;
    }
}

static void on_event(run *r, const plb_http2_event *event, const char *bytes, size_t size, uint8_t what)
{
    REQUIRE(inside(event->data, bytes, size));
    REQUIRE(event->name.size + event->value.size <= r->memory_size);
    if (event->kind == PLB_HTTP2_DATA) {
        REQUIRE(event->data.size > 0);
        add_text(&r->data, event->data);
    } else {
        add(&r->events, (uint64_t)event->kind << 56 ^ event->status ^ event->code);
        add_text(&r->events, event->name);
        add_text(&r->events, event->value);
        add(&r->events, r->data);
    }
    if (event->kind == PLB_HTTP2_GOAWAY) {
        if (!event->covered)
            r->last = PLB_HTTP2_NONE;
        return;
    }
    REQUIRE(may_follow(r->last, event->kind));
    r->last = event->kind;
    if (event->kind == PLB_HTTP2_END || event->kind == PLB_HTTP2_RESET) {
        r->last = PLB_HTTP2_NONE;
        (void)ask(r, what);
    }
}

static plb_status feed(run *r, const uint8_t *data, size_t size, size_t step, uint8_t what)
{
    plb_status status = PLB_AGAIN;
    size_t at = 0;
    while (at < size && status == PLB_AGAIN) {
        size_t piece = size - at < step ? size - at : step, from = 0, used;
        char *copy = (char *)malloc(piece);
        plb_http2_event event;
        memcpy(copy, data + at, piece);
        do {
            status = plb_http2_next(&r->h, copy + from, piece - from, &used, &event);
            REQUIRE(used <= piece - from && (status == PLB_OK) == (event.kind != PLB_HTTP2_NONE));
            if (status == PLB_OK)
                on_event(r, &event, copy + from, used, what);
            from += used;
            if ((what & SENDS_MEANWHILE) != 0)
                drain(r);
        } while (status == PLB_OK);
        REQUIRE(status != PLB_AGAIN || from == piece);
        free(copy);
        at += piece;
    }
    drain(r);
    if (status != PLB_AGAIN) {
        REQUIRE((status == PLB_ERR_PROTOCOL || status == PLB_ERR_LIMIT) && r->over);
        REQUIRE(ask(r, what) == status);
    }
    add(&r->events, (uint64_t)status);
    return status;
}

static void begin(run *r, uint8_t what)
{
    memset(r, 0, sizeof *r);
    r->memory_size = (what & LITTLE_MEMORY) != 0 ? PLB_HTTP2_MEMORY_MIN : PLB_HTTP2_MEMORY;
    r->memory = (char *)malloc(r->memory_size);
    r->preface_left = 24;
    REQUIRE(plb_http2_open(&r->h, r->memory, r->memory_size) == PLB_OK && ask(r, what) == PLB_OK);
    if ((what & SENDS_MEANWHILE) != 0)
        drain(r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    run at_once, in_pieces;
    if (size < 2)
        return 0;
    begin(&at_once, data[0]);
    begin(&in_pieces, data[0]);
    (void)feed(&at_once, data + 2, size - 2, size, data[0]);
    (void)feed(&in_pieces, data + 2, size - 2, 1 + data[1] % 32, data[0]);
    /* A peer that asks faster than its answers are sent is told so: that hangs on when they are sent. */
    if ((data[0] & SENDS_MEANWHILE) == 0) {
        REQUIRE(at_once.events == in_pieces.events && at_once.data == in_pieces.data);
        REQUIRE(at_once.h.failed == in_pieces.h.failed && at_once.h.code == in_pieces.h.code);
    }
    free(at_once.memory);
    free(in_pieces.memory);
    return 0;
}
