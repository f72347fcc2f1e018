/* The HTTP/2 client codec: rules of RFC 9113, one test each. Every answer is fed at once, in pieces of every size, and
   cut in two at every place; what is said must be the same each time. */
#include "../pingora_lb.h"
#include <greatest.h>

#include <stdio.h>
#include <stdlib.h>

enum { DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION };
enum { ACK = 1, END_STREAM = 1, END_HEADERS = 4, PADDED = 8, HAS_PRIORITY = 32 };

/* ---- what the peer sends ---- */

static char wire[1 << 20];
static size_t wire_size;

static void put_bytes(const void *bytes, size_t size)
{
    if (size > 0)
        memcpy(wire + wire_size, bytes, size);
    wire_size += size;
}

static void put_number(uint32_t number, int bytes)
{
    while (bytes-- > 0)
        wire[wire_size++] = (char)(number >> 8 * bytes & 0xff);
}

static void put_frame(uint32_t type, uint32_t flags, uint32_t stream, const void *payload, size_t size)
{
    put_number((uint32_t)size, 3);
    put_number(type, 1);
    put_number(flags, 1);
    put_number(stream, 4);
    put_bytes(payload, size);
}

static void put_setting(uint32_t id, uint32_t value)
{
    put_number(6, 3);
    put_number(SETTINGS, 1);
    put_number(0, 1);
    put_number(0, 4);
    put_number(id, 2);
    put_number(value, 4);
}

static void put_frame32(uint32_t type, uint32_t stream, uint32_t number)
{
    put_number(4, 3);
    put_number(type, 1);
    put_number(0, 1);
    put_number(stream, 4);
    put_number(number, 4);
}

/* A header block of "name: value\n" lines. */
static size_t pack(const char *lines, char *out, size_t capacity)
{
    size_t size = 0;
    out[size++] = 0x20; /* as a server does that keeps no table */
    while (*lines != '\0') {
        const char *colon = strstr(lines, ": "), *end = strchr(lines, '\n');
        plb_text name, value;
        name.data = lines;
        name.size = (size_t)(colon - lines);
        value.data = colon + 2;
        value.size = (size_t)(end - value.data);
        size += plb_hpack_write(out + size, capacity - size, name, value);
        lines = end + 1;
    }
    return size;
}

static void put_headers(uint32_t flags, uint32_t stream, const char *lines)
{
    static char block[40000];
    put_frame(HEADERS, flags | END_HEADERS, stream, block, pack(lines, block, sizeof block));
}

/* SETTINGS, and the acknowledgement of the client's. */
static void put_opening(void)
{
    wire_size = 0;
    put_frame(SETTINGS, 0, 0, NULL, 0);
    put_frame(SETTINGS, ACK, 0, NULL, 0);
}

/* ---- the client ---- */

typedef struct client {
    plb_http2 h;
    char memory[PLB_HTTP2_MEMORY];
    char said[80000], sent[200000];
    size_t said_size, sent_size;
    bool in_data;
    plb_status status;
    uint32_t code;
} client;

static const plb_text no_body = {"", 0};

static plb_text text_of(const char *string)
{
    plb_text text;
    text.data = string;
    text.size = strlen(string);
    return text;
}

static plb_status ask(client *c, const char *method, plb_text body)
{
    plb_http2_header headers[4];
    headers[0].name = text_of(":method");
    headers[0].value = text_of(method);
    headers[1].name = text_of(":scheme");
    headers[1].value = text_of("http");
    headers[2].name = text_of(":path");
    headers[2].value = text_of("/health");
    headers[3].name = text_of(":authority");
    headers[3].value = text_of("a.example");
    return plb_http2_request(&c->h, headers, 4, body);
}

/* Sends what there is, `step` bytes at a time. */
static void drain_by(client *c, size_t step)
{
    for (;;) {
        plb_text out = plb_http2_output(&c->h);
        if (out.size == 0)
            return;
        if (out.size > step)
            out.size = step;
        memcpy(c->sent + c->sent_size, out.data, out.size);
        c->sent_size += out.size;
        plb_http2_sent(&c->h, out.size);
    }
}

static void drain(client *c)
{
    drain_by(c, (size_t)-1);
}

static void say(client *c, const plb_http2_event *e)
{
    char *at = c->said + c->said_size;
    int size = 0;
    if (e->kind == PLB_HTTP2_DATA) {
        if (!c->in_data)
            at += size = sprintf(at, "[data] ");
        memcpy(at, e->data.data, e->data.size);
        c->said_size += (size_t)size + e->data.size;
        c->said[c->said_size] = '\0';
        c->in_data = true;
        return;
    }
    c->in_data = false;
    if (e->kind == PLB_HTTP2_STATUS)
        size = sprintf(at, "[%u]", e->status);
    else if (e->kind == PLB_HTTP2_HEADER || e->kind == PLB_HTTP2_TRAILER)
        size = sprintf(at, "[%s%.*s=%.*s]", e->kind == PLB_HTTP2_TRAILER ? "trailer " : "", (int)e->name.size,
                       e->name.data, (int)e->value.size, e->value.data);
    else if (e->kind == PLB_HTTP2_HEADERS_END)
        size = sprintf(at, "[headers %u]", e->status);
    else if (e->kind == PLB_HTTP2_END)
        size = sprintf(at, "[end]");
    else if (e->kind == PLB_HTTP2_RESET)
        size = sprintf(at, "[reset %u%s]", (unsigned)e->code, e->ours ? " ours" : "");
    else if (e->kind == PLB_HTTP2_GOAWAY)
        size = sprintf(at, "[goaway %u%s]", (unsigned)e->code, e->covered ? " covered" : "");
    c->said_size += (size_t)size;
}

/* Feeds a piece, from a copy of exactly that size. */
static void feed_piece(client *c, const char *bytes, size_t size)
{
    char *copy = (char *)malloc(size ? size : 1);
    size_t at = 0, used;
    plb_http2_event event;
    memcpy(copy, bytes, size);
    do {
        c->status = plb_http2_next(&c->h, copy + at, size - at, &used, &event);
        at += used;
        c->code = event.code;
        if (c->status == PLB_OK)
            say(c, &event);
    } while (c->status == PLB_OK);
    free(copy);
}

/* Feeds the wire in pieces of `step` bytes, the first of which is `first` long; output is sent after each. */
static void feed(client *c, size_t first, size_t step)
{
    size_t at = 0, size = first;
    c->status = PLB_AGAIN;
    while (at < wire_size && c->status == PLB_AGAIN) {
        if (size > wire_size - at)
            size = wire_size - at;
        feed_piece(c, wire + at, size);
        drain(c);
        at += size;
        size = step;
    }
}

static void begin(client *c)
{
    memset(c, 0, sizeof *c);
    if (plb_http2_open(&c->h, c->memory, sizeof c->memory) != PLB_OK || ask(c, "GET", no_body) != PLB_OK)
        abort();
}

/* What the client sent, as "SETTINGS HEADERS@1 ..."; a flag of END_STREAM or ACK is a "!", numbers follow "=". */
static const char *sent(const client *c)
{
    static const char *const names[] = {"DATA",         "HEADERS", "PRIORITY", "RST_STREAM",    "SETTINGS",
                                        "PUSH_PROMISE", "PING",    "GOAWAY",   "WINDOW_UPDATE", "CONTINUATION"};
    static char text[20000];
    const unsigned char *at = (const unsigned char *)c->sent + 24, *end = (const unsigned char *)c->sent + c->sent_size;
    int size = 0;
    if (memcmp(c->sent, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24) != 0)
        return "no preface";
    text[0] = '\0';
    while (end - at >= 9) {
        uint32_t length = (uint32_t)(at[0] << 16 | at[1] << 8 | at[2]), type = at[3], stream = at[8], i, number = 0;
        if (end - at < 9 + (ptrdiff_t)length || type > CONTINUATION)
            return "no frame";
        for (i = type == GOAWAY ? 4 : 0; i < length && type != DATA; i++)
            number = number << 8 | at[9 + i];
        size += sprintf(text + size, "%s%s%s", size > 0 ? " " : "", names[type], (at[4] & 1) != 0 ? "!" : "");
        if (stream != 0)
            size += sprintf(text + size, "@%u", stream);
        if (type == DATA)
            number = length;
        if (type != HEADERS && type != SETTINGS)
            size += sprintf(text + size, "=%u", number);
        at += 9 + length;
    }
    return at == end ? text : "cut off";
}

/* Whatever the pieces: that is said, and then that status, with that code. */
static enum greatest_test_res check(const char *said, plb_status status, uint32_t code)
{
    static client c;
    size_t i;
    for (i = 1; i <= wire_size; i++) {
        if (wire_size > 2000 && i > 40 && i % 997 != 0 && i != wire_size)
            continue; /* long ones: not at every place */
        begin(&c);
        feed(&c, i, i);
        ASSERT_STR_EQ(said, c.said);
        ASSERT_EQ(status, c.status);
        ASSERT_EQ(code, c.code);
        begin(&c);
        feed(&c, i, (size_t)-1);
        ASSERT_STR_EQ(said, c.said);
        ASSERT_EQ(status, c.status);
    }
    begin(&c);
    feed(&c, (size_t)-1, 1);
    ASSERT_STR_EQ(said, c.said);
    if (status == PLB_ERR_PROTOCOL || status == PLB_ERR_LIMIT) { /* it is told to the peer, and it is final */
        char goaway[32];
        const char *all = sent(&c);
        sprintf(goaway, " GOAWAY=%u", (unsigned)code);
        ASSERT(strlen(all) >= strlen(goaway));
        ASSERT_STR_EQ(goaway, all + strlen(all) - strlen(goaway));
        feed_piece(&c, wire, wire_size);
        ASSERT_EQ(status, c.status);
        ASSERT_EQ(code, c.code);
        ASSERT_EQ(status, ask(&c, "GET", no_body));
    }
    PASS();
}

#define FAULT(code)     CHECK_CALL(check("", PLB_ERR_PROTOCOL, PLB_HTTP2_##code))
#define MALFORMED(said) CHECK_CALL(check(said "[reset 1 ours]", PLB_AGAIN, 0))

/* ==== ANSWERS ===================================================================================================== */

TEST a_request_is_sent_and_its_answer_read(void)
{
    client c;
    char memory[512], expected[] = ":method=GET :scheme=http :path=/health :authority=a.example ", said[200] = "";
    plb_hpack hpack;
    plb_hpack_field field;
    size_t at = 24 + 9 + 18 + 9, used;
    begin(&c);
    drain(&c);
    ASSERT_STR_EQ("SETTINGS HEADERS!@1", sent(&c));
    ASSERT_MEM_EQ("\0\0\x12\4\0\0\0\0\0\0\1\0\0\1\0\0\2\0\0\0\0\0\6\0\0\x40\0", c.sent + 24,
                  27); /* 256, no push, 16384 */
    ASSERT_EQ(PLB_OK, plb_hpack_open(&hpack, memory, sizeof memory));
    while (plb_hpack_next(&hpack, c.sent + at, c.sent_size - at, &used, &field) == PLB_OK) {
        at += used;
        sprintf(said + strlen(said), "%.*s=%.*s ", (int)field.name.size, field.name.data, (int)field.value.size,
                field.value.data);
    }
    ASSERT_STR_EQ(expected, said);
    ASSERT_EQ(0u, hpack.peer_size); /* the client has no table that a peer would have to hear of */
    put_opening();
    put_headers(0, 1, ":status: 200\ncontent-type: text/plain\ncontent-length: 5\n");
    put_frame(DATA, 0, 1, "hel", 3);
    put_frame(DATA, END_STREAM, 1, "lo", 2);
    return check("[200][content-type=text/plain][content-length=5][headers 200][data] hello[end]", PLB_AGAIN, 0);
}

TEST an_answer_may_end_with_its_headers(void)
{
    put_opening();
    put_headers(END_STREAM, 1, ":status: 503\n");
    return check("[503][headers 503][end]", PLB_AGAIN, 0);
}

TEST interim_answers_come_first_and_trailers_last(void)
{
    put_opening();
    put_headers(0, 1, ":status: 100\n");
    put_headers(0, 1, ":status: 103\nlink: x\ncontent-length: 9\n");
    put_headers(0, 1, ":status: 200\n");
    put_frame(DATA, 0, 1, "a", 1);
    put_frame(DATA, 0, 1, "", 0);
    put_frame(DATA, 0, 1, "b", 1);
    put_headers(END_STREAM, 1, "grpc-status: 0\n");
    return check("[100][headers 100][103][link=x][content-length=9][headers 103][200][headers 200][data] ab"
                 "[trailer grpc-status=0][end]",
                 PLB_AGAIN, 0);
}

TEST padding_and_priority_are_read_past(void)
{
    char block[100];
    put_opening();
    memcpy(block, "\3\x80\0\0\1\x10", 6);
    block[6] = ' ';
    block[7] = '\x88';
    memcpy(block + 8, "\0\0\0", 3);
    put_frame(HEADERS, PADDED | HAS_PRIORITY | END_HEADERS, 1, block, 11);
    put_frame(DATA, PADDED, 1, "\2hello\0\0", 8);
    put_frame(DATA, PADDED, 1, "\0", 1);
    put_frame(DATA, PADDED | END_STREAM, 1, "\3\0\0\0", 4);
    return check("[200][headers 200][data] hello[end]", PLB_AGAIN, 0);
}

TEST headers_may_go_on_in_continuations(void)
{
    put_opening();
    put_frame(HEADERS, END_STREAM, 1, " \x88\x40\x01", 4);
    put_frame(CONTINUATION, 0, 1, "a", 1);
    put_frame(CONTINUATION, 0, 1, "", 0);
    put_frame(CONTINUATION, END_HEADERS, 1,
              "\x01"
              "b",
              2);
    return check("[200][a=b][headers 200][end]", PLB_AGAIN, 0);
}

TEST one_request_follows_another(void)
{
    client c;
    int i;
    begin(&c);
    put_opening();
    for (i = 0; i < 300; i++) {
        char expected[100];
        uint32_t stream = 1 + 2 * (uint32_t)i;
        put_headers(0, stream, ":status: 200\n");
        put_frame(DATA, END_STREAM, stream, "hi", 2);
        ASSERT_EQ(PLB_AGAIN, ask(&c, "GET", no_body)); /* one at a time */
        c.said_size = 0;
        feed(&c, (size_t)-1, 1);
        sprintf(expected, "[200][headers 200][data] hi[end]");
        ASSERT_STR_EQ(expected, c.said);
        wire_size = 0;
        ASSERT_EQ(PLB_OK, ask(&c, "GET", no_body));
    }
    PASS();
}

TEST unknown_frames_and_priorities_are_ignored(void)
{
    put_opening();
    put_frame(0x42, 0xff, 1, "xyz", 3);
    put_frame(0xff, 0, 99, "", 0);
    put_frame(0x10, 0, 0, "xyz", 3);
    put_frame(PRIORITY, 0, 7, "\0\0\0\1\1", 5);
    put_setting(0x99, 7); /* and settings that are not known */
    put_headers(END_STREAM, 1, ":status: 200\n");
    return check("[200][headers 200][end]", PLB_AGAIN, 0);
}

/* ==== MALFORMED ANSWERS =========================================================================================== */

/* RFC 9113 sections 8.1 to 8.3: the stream ends, the connection does not. */
TEST malformed_headers_end_the_stream(void)
{
    static const struct {
        const char *lines, *said;
    } bad[] = {
        {"a: b\n", ""},                                          /* no :status */
        {":status: 20\n", ""},                                   /* not three digits */
        {":status: 2000\n", ""},                                 /* not three digits */
        {":status: 2x0\n", ""},                                  /* not three digits */
        {":status: 099\n", ""},                                  /* below 100 */
        {":status: 101\n", ""},                                  /* section 8.6 */
        {":status: 200\n:status: 200\n", "[200]"},               /* twice */
        {":path: /\n:status: 200\n", ""},                        /* of a request */
        {":status: 200\n:own: 1\n", "[200]"},                    /* not defined */
        {":status: 200\na: b\n:status: 200\n", "[200][a=b]"},    /* after a field */
        {":status: 200\nAb: c\n", "[200]"},                      /* a capital */
        {":status: 200\na b: c\n", "[200]"},                     /* no token */
        {":status: 200\na\x80: c\n", "[200]"},                   /* no token */
        {":status: 200\n: c\n", "[200]"},                        /* no name */
        {":status: 200\na:  c\n", "[200]"},                      /* a space before */
        {":status: 200\na: c \n", "[200]"},                      /* a space behind */
        {":status: 200\na: \tc\n", "[200]"},                     /* a tab before */
        {":status: 200\na: b\rc\n", "[200]"},                    /* CR */
        {":status: 200\nconnection: close\n", "[200]"},          /* section 8.2.2 */
        {":status: 200\nproxy-connection: close\n", "[200]"},    /* section 8.2.2 */
        {":status: 200\nkeep-alive: 5\n", "[200]"},              /* section 8.2.2 */
        {":status: 200\ntransfer-encoding: chunked\n", "[200]"}, /* section 8.2.2 */
        {":status: 200\nupgrade: h3\n", "[200]"},                /* section 8.2.2 */
        {":status: 200\nte: gzip\n", "[200]"},                   /* section 8.2.2 */
        {":status: 200\ncontent-length: x\n", "[200]"},          /* no number */
        {":status: 200\ncontent-length: 1\ncontent-length: 1\n", "[200][content-length=1]"},
    };
    size_t i;
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char said[200];
        put_opening();
        put_headers(0, 1, bad[i].lines);
        put_frame(DATA, END_STREAM, 1, "read past", 9); /* it was under way */
        sprintf(said, "%s[reset 1 ours]", bad[i].said);
        CHECK_CALL(check(said, PLB_AGAIN, 0));
    }
    PASS();
}

TEST values_with_nul_or_line_feed_are_malformed(void)
{
    put_opening();
    put_frame(HEADERS, END_HEADERS, 1,
              " \x88\x40\x01"
              "a\x03"
              "b\0c",
              9);
    MALFORMED("[200]");
    put_opening();
    put_frame(HEADERS, END_HEADERS, 1,
              " \x88\x40\x01"
              "a\x03"
              "b\nc",
              9);
    MALFORMED("[200]");
    PASS();
}

TEST frames_out_of_order_are_malformed(void)
{
    put_opening();
    put_frame(DATA, END_STREAM, 1, "early", 5); /* before the headers */
    MALFORMED("");
    put_opening();
    put_headers(0, 1, ":status: 100\n");
    put_frame(DATA, END_STREAM, 1, "early", 5); /* before the final ones */
    MALFORMED("[100][headers 100]");
    put_opening();
    put_headers(END_STREAM, 1, ":status: 100\n"); /* an interim answer is not the last */
    MALFORMED("[100]");
    put_opening();
    put_headers(0, 1, ":status: 200\n");
    put_headers(0, 1, "a: b\n"); /* trailers are the last */
    MALFORMED("[200][headers 200][trailer a=b]");
    put_opening();
    put_headers(0, 1, ":status: 200\n");
    put_headers(END_STREAM, 1, ":status: 200\n"); /* no pseudo-header in trailers */
    MALFORMED("[200][headers 200]");
    PASS();
}

TEST content_length_and_data_must_agree(void)
{
    put_opening();
    put_headers(0, 1, ":status: 200\ncontent-length: 5\n");
    put_frame(DATA, END_STREAM, 1, "1234", 4);
    MALFORMED("[200][content-length=5][headers 200][data] 1234");
    put_opening();
    put_headers(END_STREAM, 1, ":status: 200\ncontent-length: 5\n");
    MALFORMED("[200][content-length=5][headers 200]");
    put_opening();
    put_headers(END_STREAM, 1, ":status: 304\ncontent-length: 5\n"); /* it says what a GET would have */
    CHECK_CALL(check("[304][content-length=5][headers 304][end]", PLB_AGAIN, 0));
    put_opening();
    put_headers(0, 1, ":status: 204\n");
    put_frame(DATA, END_STREAM, 1, "", 0);
    CHECK_CALL(check("[204][headers 204][end]", PLB_AGAIN, 0));
    put_opening();
    put_headers(0, 1, ":status: 204\n");
    put_frame(DATA, END_STREAM, 1, "x", 1);
    MALFORMED("[204][headers 204]");
    PASS();
}

TEST data_above_its_content_length_ends_the_stream(void)
{
    client c;
    put_opening();
    put_headers(0, 1, ":status: 200\ncontent-length: 3\n");
    put_frame(DATA, END_STREAM, 1, "1234", 4);
    MALFORMED("[200][content-length=3][headers 200][data] 123");
    begin(&c);
    feed(&c, (size_t)-1, 1);
    ASSERT_STR_EQ("SETTINGS HEADERS!@1 SETTINGS! RST_STREAM@1=1", sent(&c));
    PASS();
}

TEST an_answer_to_head_has_no_data(void)
{
    client c;
    memset(&c, 0, sizeof c);
    ASSERT_EQ(PLB_OK, plb_http2_open(&c.h, c.memory, sizeof c.memory));
    ASSERT_EQ(PLB_OK, ask(&c, "HEAD", no_body));
    put_opening();
    put_headers(END_STREAM, 1, ":status: 200\ncontent-length: 500\n");
    feed(&c, (size_t)-1, 1);
    ASSERT_STR_EQ("[200][content-length=500][headers 200][end]", c.said);
    PASS();
}

/* The connection goes on after a malformed answer, header compression included. */
TEST after_a_malformed_answer_the_next_request_may_begin(void)
{
    client c;
    begin(&c);
    put_opening();
    put_frame(HEADERS, 0, 1,
              "\x3f\xe1\x01\x88\x40\x01"
              "A\x01"
              "b\x40\x01"
              "c\x01"
              "d",
              14);
    feed(&c, (size_t)-1, 1);
    ASSERT_STR_EQ("[200][reset 1 ours]", c.said);
    ASSERT_EQ(PLB_OK, ask(&c, "GET", no_body)); /* while the block is still under way */
    wire_size = 0;
    put_frame(CONTINUATION, END_HEADERS, 1,
              "\x40\x01"
              "e\x01"
              "f",
              5);
    put_frame(DATA, END_STREAM, 1, "late", 4);
    put_frame(HEADERS, END_HEADERS | END_STREAM, 3, "\x88\xbe\xbf", 3);
    feed(&c, (size_t)-1, 1);
    ASSERT_STR_EQ("[200][reset 1 ours][200][e=f][c=d][headers 200][end]", c.said);
    PASS();
}

TEST a_header_too_long_for_the_room_is_cut_and_says_so(void)
{
    client c;
    static char lines[2000];
    char value[1500];
    plb_http2_event event;
    size_t at = 0, used;
    bool seen = false;
    begin(&c);
    memset(value, 'v', sizeof value);
    sprintf(lines, ":status: 200\nbig: %.1400s\nnext: 1\n", value);
    put_opening();
    put_headers(END_STREAM, 1, lines);
    while (plb_http2_next(&c.h, wire + at, wire_size - at, &used, &event) == PLB_OK) {
        at += used;
        if (event.kind == PLB_HTTP2_HEADER && event.name.size == 3) {
            ASSERT(event.cut);
            ASSERT_EQ(256u - 3, event.value.size);
            seen = true;
        } else {
            ASSERT_FALSE(event.cut);
        }
        say(&c, &event);
    }
    ASSERT(seen);
    ASSERT(strstr(c.said, "[next=1][headers 200][end]") != NULL);
    PASS();
}

/* ==== FRAMES OF THE CONNECTION ==================================================================================== */

TEST the_first_frame_is_settings(void)
{
    wire_size = 0;
    put_frame(PING, 0, 0, "12345678", 8);
    FAULT(PROTOCOL_ERROR);
    wire_size = 0;
    put_frame(SETTINGS, ACK, 0, NULL, 0);
    FAULT(PROTOCOL_ERROR);
    wire_size = 0;
    put_bytes("HTTP/1.1 400 Bad Request\r\n\r\n", 28); /* a peer that does not speak it */
    FAULT(PROTOCOL_ERROR);
    PASS();
}

TEST settings_are_validated_and_acknowledged(void)
{
    client c;
    static const struct {
        uint32_t id, value, code;
    } cases[] = {{1, 0, 0},
                 {1, 0xffffffff, 0},
                 {2, 0, 0},
                 {2, 1, PLB_HTTP2_PROTOCOL_ERROR}, /* a server may not */
                 {2, 2, PLB_HTTP2_PROTOCOL_ERROR},
                 {3, 0, 0},
                 {4, 0x7fffffff, 0},
                 {4, 0x80000000, PLB_HTTP2_FLOW_CONTROL_ERROR},
                 {5, 16383, PLB_HTTP2_PROTOCOL_ERROR},
                 {5, 16384, 0},
                 {5, 0xffffff, 0},
                 {5, 0x1000000, PLB_HTTP2_PROTOCOL_ERROR},
                 {6, 0, 0}};
    size_t i;
    for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        wire_size = 0;
        put_setting(cases[i].id, cases[i].value);
        CHECK_CALL(check("", cases[i].code == 0 ? PLB_AGAIN : PLB_ERR_PROTOCOL, cases[i].code));
    }
    begin(&c);
    put_opening();
    put_setting(1, 4096);
    feed(&c, (size_t)-1, 1);
    ASSERT_STR_EQ("SETTINGS HEADERS!@1 SETTINGS! SETTINGS!", sent(&c));
    put_opening();
    put_frame(SETTINGS, 0, 0, "\0\1\0\0\0", 5);
    FAULT(FRAME_SIZE_ERROR);
    put_opening();
    put_frame(SETTINGS, ACK, 0, "\0\1\0\0\0\0", 6);
    FAULT(FRAME_SIZE_ERROR);
    put_opening();
    put_frame(SETTINGS, 0, 1, NULL, 0);
    FAULT(PROTOCOL_ERROR);
    PASS();
}

TEST pings_are_answered(void)
{
    client c;
    begin(&c);
    put_opening();
    put_frame(PING, 0, 0, "\0\0\0\0\0\0\1\2", 8);
    put_frame(PING, ACK, 0, "\0\0\0\0\0\0\3\4", 8);
    feed(&c, 1, 1);
    ASSERT_STR_EQ("SETTINGS HEADERS!@1 SETTINGS! PING!=258", sent(&c));
    put_opening();
    put_frame(PING, 0, 0, "1234567", 7);
    FAULT(FRAME_SIZE_ERROR);
    put_opening();
    put_frame(PING, 0, 1, "12345678", 8);
    FAULT(PROTOCOL_ERROR);
    PASS();
}

TEST goaway_says_whether_the_request_is_covered(void)
{
    client c;
    put_opening();
    put_frame(GOAWAY, 0, 0, "\0\0\0\1\0\0\0\0why", 11);
    put_headers(END_STREAM, 1, ":status: 200\n");
    CHECK_CALL(check("[goaway 0 covered][200][headers 200][end]", PLB_AGAIN, 0));
    put_opening();
    put_frame(GOAWAY, 0, 0, "\0\0\0\0\0\0\0\7", 8);
    CHECK_CALL(check("[goaway 7]", PLB_AGAIN, 0));
    begin(&c);
    feed(&c, (size_t)-1, 1);
    ASSERT_EQ(PLB_END, ask(&c, "GET", no_body));
    put_opening();
    put_frame(GOAWAY, 0, 0, "\0\0\0\0\0\0\0", 7);
    FAULT(FRAME_SIZE_ERROR);
    put_opening();
    put_frame(GOAWAY, 0, 1, "\0\0\0\0\0\0\0\0", 8);
    FAULT(PROTOCOL_ERROR);
    PASS();
}

TEST frames_above_the_size_limit_are_faults(void)
{
    static char bytes[16385];
    put_opening();
    put_headers(0, 1, ":status: 200\n");
    put_frame(DATA, 0, 1, bytes, 16385);
    CHECK_CALL(check("[200][headers 200]", PLB_ERR_PROTOCOL, PLB_HTTP2_FRAME_SIZE_ERROR));
    put_opening();
    put_frame(0x77, 0, 0, bytes, 16385); /* whatever their type */
    FAULT(FRAME_SIZE_ERROR);
    put_opening();
    put_frame(0x77, 0, 0, bytes, 16384);
    CHECK_CALL(check("", PLB_AGAIN, 0));
    PASS();
}

/* ==== FRAMES OF STREAMS =========================================================================================== */

TEST a_reset_ends_the_answer(void)
{
    client c;
    put_opening();
    put_headers(0, 1, ":status: 200\n");
    put_frame32(RST_STREAM, 1, 8);
    put_frame32(RST_STREAM, 1, 8); /* once more says nothing */
    put_frame32(WINDOW_UPDATE, 1, 8);
    CHECK_CALL(check("[200][headers 200][reset 8]", PLB_AGAIN, 0));
    begin(&c);
    feed(&c, (size_t)-1, 1);
    ASSERT_EQ(PLB_OK, ask(&c, "GET", no_body));
    put_opening();
    put_frame(RST_STREAM, 0, 1, "123", 3);
    FAULT(FRAME_SIZE_ERROR);
    PASS();
}

TEST streams_that_were_never_begun_are_faults(void)
{
    static const uint32_t types[] = {DATA, HEADERS, RST_STREAM, WINDOW_UPDATE};
    static const uint32_t streams[] = {0, 2, 3, 0x7fffffff};
    size_t i, j;
    for (i = 0; i < 4; i++)
        for (j = 0; j < 4; j++) {
            if (types[i] == WINDOW_UPDATE && streams[j] == 0)
                continue; /* of the connection */
            put_opening();
            put_frame(types[i], END_HEADERS, streams[j], "\0\0\0\1", 4);
            FAULT(PROTOCOL_ERROR);
        }
    put_opening();
    put_frame(PRIORITY, 0, 0, "\0\0\0\1\1", 5);
    FAULT(PROTOCOL_ERROR);
    put_opening();
    put_frame(PRIORITY, 0, 1, "\0\0\0\1", 4);
    FAULT(FRAME_SIZE_ERROR);
    PASS();
}

TEST nothing_follows_the_end_of_an_answer(void)
{
    put_opening();
    put_headers(END_STREAM, 1, ":status: 200\n");
    put_frame32(WINDOW_UPDATE, 1, 1); /* these may */
    put_frame32(RST_STREAM, 1, 0);
    put_frame(DATA, 0, 1, "x", 1);
    CHECK_CALL(check("[200][headers 200][end]", PLB_ERR_PROTOCOL, PLB_HTTP2_STREAM_CLOSED));
    put_opening();
    put_headers(END_STREAM, 1, ":status: 200\n");
    put_headers(END_STREAM, 1, "a: b\n");
    CHECK_CALL(check("[200][headers 200][end]", PLB_ERR_PROTOCOL, PLB_HTTP2_STREAM_CLOSED));
    PASS();
}

TEST what_was_cancelled_is_read_past(void)
{
    client c;
    begin(&c);
    drain(&c);
    put_opening();
    put_headers(0, 1, ":status: 200\n");
    feed(&c, (size_t)-1, 1);
    plb_http2_cancel(&c.h);
    plb_http2_cancel(&c.h); /* nothing is left to cancel */
    ASSERT_EQ(PLB_OK, ask(&c, "GET", no_body));
    wire_size = 0;
    put_frame(DATA, 0, 1, "late", 4);
    put_headers(END_STREAM, 1, "late: 1\n");
    put_headers(END_STREAM, 3, ":status: 204\n");
    feed(&c, 1, 1);
    ASSERT_STR_EQ("[200][headers 200][204][headers 204][end]", c.said);
    ASSERT_STR_EQ("SETTINGS HEADERS!@1 SETTINGS! RST_STREAM@1=8 HEADERS!@3", sent(&c));
    PASS();
}

TEST pushed_streams_are_faults(void)
{
    put_opening();
    put_frame(PUSH_PROMISE, END_HEADERS, 1, "\0\0\0\2\x82", 5);
    FAULT(PROTOCOL_ERROR);
    PASS();
}

TEST padding_longer_than_its_frame_is_a_fault(void)
{
    put_opening();
    put_headers(0, 1, ":status: 200\n");
    put_frame(DATA, PADDED, 1, "\5hell", 5);
    CHECK_CALL(check("[200][headers 200]", PLB_ERR_PROTOCOL, PLB_HTTP2_PROTOCOL_ERROR));
    put_opening();
    put_frame(HEADERS, PADDED | END_HEADERS, 1, "\2\x88", 2);
    FAULT(PROTOCOL_ERROR);
    put_opening();
    put_frame(HEADERS, PADDED | HAS_PRIORITY | END_HEADERS, 1, "\1\0\0\0\0\0", 6);
    FAULT(PROTOCOL_ERROR);
    put_opening();
    put_frame(HEADERS, HAS_PRIORITY | END_HEADERS, 1, "\0\0\0\0", 4);
    FAULT(FRAME_SIZE_ERROR);
    put_opening();
    put_frame(HEADERS, PADDED | END_HEADERS, 1, "", 0);
    FAULT(FRAME_SIZE_ERROR);
    PASS();
}

TEST nothing_comes_between_headers_and_their_continuation(void)
{
    static const uint32_t types[] = {DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, 0x77};
    size_t i;
    for (i = 0; i < sizeof types / sizeof types[0]; i++) {
        put_opening();
        put_frame(HEADERS, 0, 1, " \x88", 2);
        put_frame(types[i], 0, types[i] == SETTINGS || types[i] == PING ? 0 : 1, "", 0);
        CHECK_CALL(check("[200]", PLB_ERR_PROTOCOL, PLB_HTTP2_PROTOCOL_ERROR));
    }
    put_opening();
    put_frame(HEADERS, 0, 1, " \x88", 2);
    put_frame(CONTINUATION, END_HEADERS, 3, "", 0); /* of another stream */
    CHECK_CALL(check("[200]", PLB_ERR_PROTOCOL, PLB_HTTP2_PROTOCOL_ERROR));
    put_opening();
    put_headers(0, 1, ":status: 200\n");
    put_frame(CONTINUATION, END_HEADERS, 1, "", 0); /* of headers that have ended */
    CHECK_CALL(check("[200][headers 200]", PLB_ERR_PROTOCOL, PLB_HTTP2_PROTOCOL_ERROR));
    PASS();
}

TEST bytes_that_are_no_header_compression_are_a_fault(void)
{
    put_opening();
    put_frame(HEADERS, END_HEADERS, 1, " \xff\xff\xff\xff\xff", 6);
    FAULT(COMPRESSION_ERROR);
    put_opening();
    put_frame(HEADERS, END_HEADERS, 1, " \x40\x05", 3); /* ends within a field */
    FAULT(COMPRESSION_ERROR);
    PASS();
}

/* ==== FLOW CONTROL ================================================================================================ */

static plb_text long_body(size_t size)
{
    static char bytes[100000];
    plb_text text;
    memset(bytes, 'b', sizeof bytes);
    text.data = bytes;
    text.size = size;
    return text;
}

static void begin_post(client *c, size_t size)
{
    memset(c, 0, sizeof *c);
    if (plb_http2_open(&c->h, c->memory, sizeof c->memory) != PLB_OK || ask(c, "POST", long_body(size)) != PLB_OK)
        abort();
}

TEST a_body_is_sent_within_windows_and_frame_size(void)
{
    client c;
    size_t step;
    for (step = 1; step < 40000; step = step * 3 + 1) {
        begin_post(&c, 70000);
        drain_by(&c, step);
        ASSERT_STR_EQ("SETTINGS HEADERS@1 DATA@1=16384 DATA@1=16384 DATA@1=16384 DATA@1=16383", sent(&c));
        put_opening();
        put_frame32(WINDOW_UPDATE, 1, 3000); /* the stream's alone: the connection's is still shut */
        feed(&c, (size_t)-1, 1);
        ASSERT_STR_EQ("SETTINGS HEADERS@1 DATA@1=16384 DATA@1=16384 DATA@1=16384 DATA@1=16383 SETTINGS!", sent(&c));
        wire_size = 0;
        put_frame32(WINDOW_UPDATE, 0, 100000);
        put_frame32(WINDOW_UPDATE, 1, 1465);
        feed(&c, (size_t)-1, 1);
        ASSERT(strstr(sent(&c), "SETTINGS! DATA!@1=4465") != NULL);
    }
    PASS();
}

TEST larger_frames_are_used_where_they_are_allowed(void)
{
    client c;
    begin_post(&c, 40000);
    wire_size = 0;
    put_setting(5, 30000);
    feed(&c, (size_t)-1, 1);
    ASSERT_STR_EQ("SETTINGS HEADERS@1 SETTINGS! DATA@1=30000 DATA!@1=10000", sent(&c));
    PASS();
}

/* RFC 9113 section 6.9.2. */
TEST a_changed_window_moves_the_one_in_use(void)
{
    client c;
    begin_post(&c, 1000);
    wire_size = 0;
    put_setting(4, 100);
    feed(&c, (size_t)-1, 1);
    ASSERT_STR_EQ("SETTINGS HEADERS@1 SETTINGS! DATA@1=100", sent(&c));
    wire_size = 0;
    put_setting(4, 50); /* now it is -50 */
    put_frame32(WINDOW_UPDATE, 1, 50);
    feed(&c, (size_t)-1, 1);
    ASSERT_STR_EQ("SETTINGS HEADERS@1 SETTINGS! DATA@1=100 SETTINGS!", sent(&c));
    wire_size = 0;
    put_frame32(WINDOW_UPDATE, 1, 1);
    feed(&c, (size_t)-1, 1);
    ASSERT_STR_EQ("SETTINGS HEADERS@1 SETTINGS! DATA@1=100 SETTINGS! DATA@1=1", sent(&c));
    wire_size = 0;
    put_setting(4, 1000);
    feed(&c, (size_t)-1, 1);
    ASSERT_STR_EQ("SETTINGS HEADERS@1 SETTINGS! DATA@1=100 SETTINGS! DATA@1=1 SETTINGS! DATA!@1=899", sent(&c));
    PASS();
}

TEST windows_may_not_be_opened_by_nothing_or_too_far(void)
{
    put_opening();
    put_frame32(WINDOW_UPDATE, 0, 0);
    FAULT(PROTOCOL_ERROR);
    put_opening();
    put_frame32(WINDOW_UPDATE, 0, 0x7fffffff - 65535);
    CHECK_CALL(check("", PLB_AGAIN, 0));
    put_frame32(WINDOW_UPDATE, 0, 1);
    FAULT(FLOW_CONTROL_ERROR);
    put_opening();
    put_frame32(WINDOW_UPDATE, 1, 0);
    MALFORMED("");
    put_opening();
    put_frame32(WINDOW_UPDATE, 1, 0x7fffffff);
    CHECK_CALL(check("[reset 3 ours]", PLB_AGAIN, 0));
    put_opening();
    put_frame32(WINDOW_UPDATE, 1, 0x7fffffff - 65535);
    put_setting(4, 65536);
    FAULT(FLOW_CONTROL_ERROR);
    put_opening();
    put_frame(WINDOW_UPDATE, 0, 0, "\0\0\0", 3);
    FAULT(FRAME_SIZE_ERROR);
    PASS();
}

TEST windows_are_opened_again_as_data_is_read(void)
{
    client c;
    static char bytes[16384];
    int i;
    begin(&c);
    put_opening();
    put_headers(0, 1, ":status: 200\n");
    feed(&c, (size_t)-1, 1);
    for (i = 0; i < 100; i++) { /* 1.6 MB */
        wire_size = 0;
        put_frame(DATA, PADDED, 1, bytes, 16384);
        feed(&c, (size_t)-1, 1);
        c.said_size = 0;
        ASSERT_EQ(PLB_AGAIN, c.status);
    }
    ASSERT(strstr(sent(&c), "SETTINGS! WINDOW_UPDATE=32768 WINDOW_UPDATE@1=32768 WINDOW_UPDATE=32768") != NULL);
    PASS();
}

TEST more_data_than_the_window_is_a_fault(void)
{
    client c;
    static char bytes[16384];
    int i;
    begin(&c);
    drain(&c);
    put_opening();
    put_headers(0, 1, ":status: 200\n");
    for (i = 0; i < 4; i++)
        put_frame(DATA, 0, 1, bytes, 16384);
    feed_piece(&c, wire, wire_size); /* nothing is sent meanwhile */
    ASSERT_EQ(PLB_ERR_PROTOCOL, c.status);
    ASSERT_EQ((uint32_t)PLB_HTTP2_FLOW_CONTROL_ERROR, c.code);
    PASS();
}

/* RFC 9113 section 8.1: the peer has answered and does not want the rest. */
TEST an_early_answer_ends_the_body(void)
{
    client c;
    begin_post(&c, 70000);
    plb_http2_sent(&c.h, 0);
    while (c.sent_size < 1000) { /* in the midst of a DATA frame */
        plb_text out = plb_http2_output(&c.h);
        size_t size = out.size > 100 ? 100 : out.size;
        memcpy(c.sent + c.sent_size, out.data, size);
        c.sent_size += size;
        plb_http2_sent(&c.h, size);
    }
    put_opening();
    put_headers(END_STREAM, 1, ":status: 413\n");
    put_frame32(RST_STREAM, 1, 0);
    feed_piece(&c, wire, wire_size);
    ASSERT_STR_EQ("[413][headers 413][end]", c.said);
    ASSERT_EQ(PLB_AGAIN, ask(&c, "GET", no_body)); /* the frame that was begun has to be ended */
    drain(&c);
    ASSERT_STR_EQ("SETTINGS HEADERS@1 DATA@1=16384 SETTINGS! RST_STREAM@1=8", sent(&c));
    ASSERT_EQ(PLB_OK, ask(&c, "GET", no_body));
    PASS();
}

/* ==== LIMITS ====================================================================================================== */

TEST header_blocks_are_bounded(void)
{
    static char block[20000], expected[40000];
    size_t i;
    memset(block, '\xb6', sizeof block); /* "server" without a value: 38 bytes, as the RFC counts */
    block[0] = ' ';
    block[1] = '\x88';
    put_opening();
    put_frame(HEADERS, 0, 1, block, 500);
    strcpy(expected, "[200]");
    for (i = 0; 42 + 38 * (i + 1) <= PLB_HTTP2_HEADER_LIST_MAX; i++)
        strcat(expected, "[server=]");
    CHECK_CALL(check(expected, PLB_ERR_LIMIT, PLB_HTTP2_ENHANCE_YOUR_CALM));
    memset(block, 'x', sizeof block); /* one value that has no end */
    memcpy(block, " \x88\x0f\x00\x7f\xff\xff\x7f", 8);
    put_opening();
    put_frame(HEADERS, 0, 1, block, 16384);
    put_frame(CONTINUATION, 0, 1, block + 100, 16384);
    CHECK_CALL(check("[200]", PLB_ERR_LIMIT, PLB_HTTP2_ENHANCE_YOUR_CALM));
    PASS();
}

TEST continuations_are_bounded(void)
{
    int i;
    put_opening();
    put_frame(HEADERS, 0, 1, " \x88", 2);
    for (i = 0; i < 65; i++)
        put_frame(CONTINUATION, 0, 1, "", 0);
    return check("[200]", PLB_ERR_PROTOCOL, PLB_HTTP2_ENHANCE_YOUR_CALM);
}

static enum greatest_test_res check_flood(uint32_t type, uint32_t flags, uint32_t stream, const char *payload, size_t n)
{
    client c;
    int i;
    begin(&c);
    put_opening();
    put_headers(0, 1, ":status: 200\n");
    for (i = 0; i < 1100; i++)
        put_frame(type, flags, stream, payload, n);
    feed(&c, 100, 100);
    ASSERT_EQ(PLB_ERR_PROTOCOL, c.status);
    ASSERT_EQ((uint32_t)PLB_HTTP2_ENHANCE_YOUR_CALM, c.code);
    PASS();
}

TEST frames_that_lead_nowhere_are_bounded(void)
{
    CHECK_CALL(check_flood(PING, 0, 0, "12345678", 8));
    CHECK_CALL(check_flood(SETTINGS, 0, 0, "", 0));
    CHECK_CALL(check_flood(DATA, 0, 1, "", 0));
    CHECK_CALL(check_flood(DATA, PADDED, 1, "\0", 1));
    CHECK_CALL(check_flood(PRIORITY, 0, 9, "\0\0\0\1\1", 5));
    CHECK_CALL(check_flood(WINDOW_UPDATE, 0, 0, "\0\0\0\1", 4));
    CHECK_CALL(check_flood(0x55, 0, 0, "", 0));
    PASS();
}

/* The limits are of one block, and of frames that lead nowhere. */
TEST long_answers_are_no_flood(void)
{
    client c;
    static char lines[8000];
    int i, j;
    begin(&c);
    put_opening();
    strcpy(lines, ":status: 103\n");
    for (i = 0; i < 100; i++)
        strcat(lines, "a-name-of-some-length: and a value of some length\n");
    for (i = 0; i < 4; i++) /* 8 KiB each */
        put_headers(0, 1, lines);
    for (i = 0; i < 2; i++) {
        put_frame(HEADERS, 0, 1, " \x88", 2);
        if (i == 0)
            wire[wire_size - 1] = '\x08'; /* ":status", and a value that is still to come */
        for (j = 0; j < 40; j++)
            put_frame(CONTINUATION, 0, 1,
                      "\x03"
                      "100",
                      i == 0 && j == 0 ? 4 : 0);
        put_frame(CONTINUATION, END_HEADERS, 1, "", 0);
    }
    for (i = 0; i < 3000; i++)
        put_frame(DATA, 0, 1, "x", 1);
    feed(&c, 1000, 1000);
    ASSERT_EQ(PLB_AGAIN, c.status);
    ASSERT(strstr(c.said, "[100][headers 100][200][headers 200][data] xxx") != NULL);
    PASS();
}

/* Some of the output is always left: it moves within its memory. */
TEST output_that_is_sent_slowly_stays_whole(void)
{
    client c;
    uint32_t i;
    begin(&c);
    put_opening();
    feed_piece(&c, wire, wire_size);
    for (i = 0; i < 200; i++) {
        plb_text out = plb_http2_output(&c.h);
        size_t size = out.size > 70 ? out.size - 70 : 17;
        char expected[20];
        wire_size = 0;
        put_number(8, 3);
        put_number(PING, 1);
        put_number(0, 1);
        put_number(0, 4);
        put_number(0, 4);
        put_number(i, 4);
        feed_piece(&c, wire, wire_size);
        out = plb_http2_output(&c.h);
        memcpy(c.sent + c.sent_size, out.data, size);
        c.sent_size += size;
        plb_http2_sent(&c.h, size);
        ASSERT_EQ(PLB_AGAIN, c.status);
        sprintf(expected, "PING!=%u", i);
        if (i == 199) {
            drain(&c);
            ASSERT(strstr(sent(&c), "PING!=0 PING!=1 PING!=2 PING!=3 ") != NULL);
            ASSERT(strstr(sent(&c), expected) != NULL);
        }
    }
    PASS();
}

/* A peer that asks without reading the answers. */
TEST answers_without_room_end_the_connection(void)
{
    client c;
    int i;
    begin(&c);
    put_opening();
    for (i = 0; i < 100; i++)
        put_frame(PING, 0, 0, "12345678", 8);
    feed_piece(&c, wire, wire_size);
    ASSERT_EQ(PLB_ERR_PROTOCOL, c.status);
    ASSERT_EQ((uint32_t)PLB_HTTP2_ENHANCE_YOUR_CALM, c.code);
    drain(&c);
    ASSERT(strstr(sent(&c), "PING!=892745528 GOAWAY=11") != NULL);
    PASS();
}

/* Whatever is queued, a RST_STREAM and a GOAWAY always have room. */
TEST faults_can_always_be_told(void)
{
    int pings;
    for (pings = 0; pings < 30; pings++) {
        client c;
        int i;
        begin(&c);
        put_opening();
        for (i = 0; i < pings; i++)
            put_frame(PING, 0, 0, "12345678", 8);
        put_headers(0, 1, "a: b\n");
        put_frame(PUSH_PROMISE, 0, 0, "", 0);
        feed_piece(&c, wire, wire_size);
        ASSERT_EQ(PLB_ERR_PROTOCOL, c.status);
        drain(&c);
        ASSERT(strstr(sent(&c), "GOAWAY") != NULL);
        if (c.code == PLB_HTTP2_PROTOCOL_ERROR)
            ASSERT(strstr(sent(&c), "RST_STREAM@1=1 GOAWAY=1") != NULL);
    }
    PASS();
}

/* ==== REQUESTS ==================================================================================================== */

static plb_status ask_with(const char *name, const char *value, bool first)
{
    client c;
    plb_http2_header headers[2];
    memset(&c, 0, sizeof c);
    headers[first ? 1 : 0].name = text_of(":method");
    headers[first ? 1 : 0].value = text_of("GET");
    headers[first ? 0 : 1].name = text_of(name);
    headers[first ? 0 : 1].value = text_of(value);
    if (plb_http2_open(&c.h, c.memory, sizeof c.memory) != PLB_OK)
        return PLB_ERR_ARGUMENT;
    return plb_http2_request(&c.h, headers, 2, no_body);
}

TEST a_request_is_well_formed_or_refused(void)
{
    static char long_value[600];
    client c;
    memset(long_value, 'v', sizeof long_value - 1);
    ASSERT_EQ(PLB_OK, ask_with("x-own", "a b", false));
    ASSERT_EQ(PLB_OK, ask_with("te", "trailers", false));
    ASSERT_EQ(PLB_ERR_ARGUMENT, ask_with("X-Own", "a", false));
    ASSERT_EQ(PLB_ERR_ARGUMENT, ask_with("x own", "a", false));
    ASSERT_EQ(PLB_ERR_ARGUMENT, ask_with("", "a", false));
    ASSERT_EQ(PLB_ERR_ARGUMENT, ask_with(":", "a", false));
    ASSERT_EQ(PLB_ERR_ARGUMENT, ask_with("x", " a", false));
    ASSERT_EQ(PLB_ERR_ARGUMENT, ask_with("x", "a\r\nb", false));
    ASSERT_EQ(PLB_ERR_ARGUMENT, ask_with("connection", "close", false));
    ASSERT_EQ(PLB_ERR_ARGUMENT, ask_with("te", "gzip", false));
    ASSERT_EQ(PLB_ERR_ARGUMENT, ask_with("x-own", "a", true)); /* before a pseudo-header */
    ASSERT_EQ(PLB_ERR_LIMIT, ask_with("x-own", long_value, false));
    long_value[415] = '\0';
    ASSERT_EQ(PLB_ERR_LIMIT, ask_with("x-own", long_value, false)); /* it would fit once the preface is sent */
    long_value[400] = '\0';
    ASSERT_EQ(PLB_OK, ask_with("x-own", long_value, false));
    memset(&c, 0, sizeof c);
    ASSERT_EQ(PLB_OK, plb_http2_open(&c.h, c.memory, sizeof c.memory));
    ASSERT_EQ(PLB_ERR_ARGUMENT, plb_http2_request(&c.h, NULL, 0, no_body));
    PASS();
}

TEST no_request_begins_where_no_stream_is_allowed(void)
{
    client c;
    begin(&c);
    put_opening();
    put_headers(END_STREAM, 1, ":status: 200\n");
    put_setting(3, 0);
    feed(&c, (size_t)-1, 1);
    ASSERT_EQ(PLB_AGAIN, ask(&c, "GET", no_body));
    wire_size = 0;
    put_setting(3, 1);
    feed(&c, (size_t)-1, 1);
    ASSERT_EQ(PLB_OK, ask(&c, "GET", no_body));
    PASS();
}

TEST a_close_is_said_once_and_lets_the_answer_end(void)
{
    client c;
    begin(&c);
    plb_http2_close(&c.h);
    plb_http2_close(&c.h);
    put_opening();
    put_headers(END_STREAM, 1, ":status: 200\n");
    feed(&c, (size_t)-1, 1);
    ASSERT_STR_EQ("[200][headers 200][end]", c.said);
    ASSERT_STR_EQ("SETTINGS HEADERS!@1 GOAWAY=0 SETTINGS!", sent(&c));
    ASSERT_EQ(PLB_END, ask(&c, "GET", no_body));
    PASS();
}

TEST streams_come_to_an_end(void)
{
    client c;
    begin(&c);
    drain(&c);
    plb_http2_cancel(&c.h);
    c.h.next_stream = 0x7fffffff;
    ASSERT_EQ(PLB_OK, ask(&c, "GET", no_body));
    plb_http2_cancel(&c.h);
    ASSERT_EQ(PLB_END, ask(&c, "GET", no_body));
    PASS();
}

TEST the_least_memory_is_enough_for_a_probe(void)
{
    plb_http2 h;
    plb_http2_header headers[PLB_GRPC_HEADERS];
    char memory[PLB_HTTP2_MEMORY_MIN];
    ASSERT_EQ(PLB_ERR_ARGUMENT, plb_http2_open(&h, memory, sizeof memory - 1));
    ASSERT_EQ(PLB_ERR_ARGUMENT, plb_http2_open(&h, NULL, sizeof memory));
    ASSERT_EQ(PLB_OK, plb_http2_open(&h, memory, sizeof memory));
    plb_grpc_health_headers(headers, text_of("192.168.100.100:65535"), false);
    ASSERT_EQ(PLB_OK, plb_http2_request(&h, headers, PLB_GRPC_HEADERS, text_of("\0\0\0\0\0")));
    ASSERT(sizeof(plb_http2) <= 240); /* as the manual says */
    PASS();
}

SUITE(answers)
{
    RUN_TEST(a_request_is_sent_and_its_answer_read);
    RUN_TEST(an_answer_may_end_with_its_headers);
    RUN_TEST(interim_answers_come_first_and_trailers_last);
    RUN_TEST(padding_and_priority_are_read_past);
    RUN_TEST(headers_may_go_on_in_continuations);
    RUN_TEST(one_request_follows_another);
    RUN_TEST(unknown_frames_and_priorities_are_ignored);
}

SUITE(malformed_answers)
{
    RUN_TEST(malformed_headers_end_the_stream);
    RUN_TEST(values_with_nul_or_line_feed_are_malformed);
    RUN_TEST(frames_out_of_order_are_malformed);
    RUN_TEST(content_length_and_data_must_agree);
    RUN_TEST(data_above_its_content_length_ends_the_stream);
    RUN_TEST(an_answer_to_head_has_no_data);
    RUN_TEST(after_a_malformed_answer_the_next_request_may_begin);
    RUN_TEST(a_header_too_long_for_the_room_is_cut_and_says_so);
}

SUITE(frames_of_the_connection)
{
    RUN_TEST(the_first_frame_is_settings);
    RUN_TEST(settings_are_validated_and_acknowledged);
    RUN_TEST(pings_are_answered);
    RUN_TEST(goaway_says_whether_the_request_is_covered);
    RUN_TEST(frames_above_the_size_limit_are_faults);
}

SUITE(frames_of_streams)
{
    RUN_TEST(a_reset_ends_the_answer);
    RUN_TEST(streams_that_were_never_begun_are_faults);
    RUN_TEST(nothing_follows_the_end_of_an_answer);
    RUN_TEST(what_was_cancelled_is_read_past);
    RUN_TEST(pushed_streams_are_faults);
    RUN_TEST(padding_longer_than_its_frame_is_a_fault);
    RUN_TEST(nothing_comes_between_headers_and_their_continuation);
    RUN_TEST(bytes_that_are_no_header_compression_are_a_fault);
}

SUITE(flow_control)
{
    RUN_TEST(a_body_is_sent_within_windows_and_frame_size);
    RUN_TEST(larger_frames_are_used_where_they_are_allowed);
    RUN_TEST(a_changed_window_moves_the_one_in_use);
    RUN_TEST(windows_may_not_be_opened_by_nothing_or_too_far);
    RUN_TEST(windows_are_opened_again_as_data_is_read);
    RUN_TEST(more_data_than_the_window_is_a_fault);
    RUN_TEST(an_early_answer_ends_the_body);
}

SUITE(limits)
{
    RUN_TEST(header_blocks_are_bounded);
    RUN_TEST(continuations_are_bounded);
    RUN_TEST(frames_that_lead_nowhere_are_bounded);
    RUN_TEST(long_answers_are_no_flood);
    RUN_TEST(output_that_is_sent_slowly_stays_whole);
    RUN_TEST(answers_without_room_end_the_connection);
    RUN_TEST(faults_can_always_be_told);
}

SUITE(requests)
{
    RUN_TEST(a_request_is_well_formed_or_refused);
    RUN_TEST(no_request_begins_where_no_stream_is_allowed);
    RUN_TEST(a_close_is_said_once_and_lets_the_answer_end);
    RUN_TEST(streams_come_to_an_end);
    RUN_TEST(the_least_memory_is_enough_for_a_probe);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(answers);
    RUN_SUITE(malformed_answers);
    RUN_SUITE(frames_of_the_connection);
    RUN_SUITE(frames_of_streams);
    RUN_SUITE(flow_control);
    RUN_SUITE(limits);
    RUN_SUITE(requests);
    GREATEST_MAIN_END();
}
