/* http2_server.h - a backend that speaks HTTP/2 on the simulator and answers by a script, and what came of its last
   probe. Test code; include it after rig.h.

   A script is a text, one frame a line, of the request's stream unless the line says otherwise (NAME@STREAM). A name
   that ends in + has END_STREAM, one that ends in - has no END_HEADERS:
       SETTINGS [ID=NUMBER]   ACK (of SETTINGS)   PING [ack]   GOAWAY LAST CODE (LAST may be `this` or `before`)
       HEADERS FIELD;FIELD    CONTINUATION FIELD;FIELD (each as NAME=VALUE)   DATA TEXT (or #HEX)
       RST_STREAM CODE        WINDOW_UPDATE NUMBER
       FRAME TYPE FLAGS HEX   a frame of any kind
       RAW TEXT               no frame at all
       REPEAT N LINE          the line so many times
       END, RESET             the connection's */
#ifndef HTTP2_SERVER_H
#define HTTP2_SERVER_H

#define H2_ADDR     "10.0.0.1:80"
#define H2_PREFACE  "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
#define H2_GREETING "SETTINGS\nACK\n"

enum { H2_DATA, H2_HEADERS, H2_PRIORITY, H2_RST_STREAM, H2_SETTINGS, H2_PUSH, H2_PING, H2_GOAWAY, H2_WINDOW, H2_MORE };

typedef struct h2_server {
    rig r;
    plb_connect_desc connect;
    const char *greeting; /* when the preface has come */
    const char *on_head;  /* when a request's headers have come but not its end */
    const char *answer;   /* when a request has come as a whole. NULL: nothing */
    const char *later;    /* in place of `answer` on a connection that has answered once already; NULL: no other */
    uint32_t heads, requests;
    char request[4096]; /* the last one's fields, "NAME: VALUE\n" each */
    char body[4096];    /* and its body */
    size_t body_size;
    char sent[4096]; /* what else the client sent: "SETTINGS ACK PING=ack GOAWAY=0 RST_STREAM=8 WINDOW_UPDATE@1 ..." */
    const char *fault; /* what the client did wrong */
    /* what came of probes */
    uint32_t probes, successes;
    plb_status status; /* of the last one */
    uint32_t code;
    char text[PLB_REPORT_TEXT];
} h2_server;

/* ---- frames to the client ---- */

/* What a script says comes in one piece. */
typedef struct h2_wire {
    sim_conn *conn;
    uint32_t stream; /* of the request */
    char *bytes;
    size_t size, capacity;
} h2_wire;

static inline void h2_put(h2_wire *w, const void *bytes, size_t size)
{
    if (w->size + size > w->capacity) {
        w->capacity = 2 * (w->size + size);
        w->bytes = (char *)sim__realloc(w->bytes, w->capacity);
    }
    if (size > 0)
        memcpy(w->bytes + w->size, bytes, size);
    w->size += size;
}

static inline void h2_flush(h2_wire *w)
{
    if (w->size > 0)
        sim_send(w->conn, w->bytes, w->size);
    w->size = 0;
}

static inline void h2_frame(h2_wire *w, uint32_t type, uint32_t flags, uint32_t stream, const void *payload,
                            size_t size)
{
    unsigned char head[9];
    int i;
    for (i = 0; i < 3; i++)
        head[i] = (unsigned char)(size >> (16 - 8 * i) & 0xff);
    head[3] = (unsigned char)type;
    head[4] = (unsigned char)flags;
    for (i = 0; i < 4; i++)
        head[5 + i] = (unsigned char)(stream >> (24 - 8 * i) & 0xff);
    h2_put(w, head, sizeof head);
    h2_put(w, payload, size);
}

static inline size_t h2_number(unsigned char *out, uint32_t number, size_t bytes)
{
    size_t i;
    for (i = 0; i < bytes; i++)
        out[i] = (unsigned char)(number >> 8 * (bytes - 1 - i) & 0xff);
    return bytes;
}

/* Up to the end of the line. */
static inline size_t h2_hex(unsigned char *out, const char *text, const char *end)
{
    size_t size = 0;
    for (; text < end; text++) {
        char digit[3] = {0};
        if (*text == ' ')
            continue;
        memcpy(digit, text++, 2);
        out[size++] = (unsigned char)strtoul(digit, NULL, 16);
    }
    return size;
}

/* "NAME=VALUE;NAME=VALUE" as a header block: no table, no Huffman. */
static inline size_t h2_pack(unsigned char *out, size_t capacity, const char *text, const char *end)
{
    size_t size = 0;
    while (text < end) {
        const char *stop = (const char *)memchr(text, ';', (size_t)(end - text)), *equals;
        plb_text name, value;
        stop = stop != NULL ? stop : end;
        equals = (const char *)memchr(text, '=', (size_t)(stop - text));
        name.data = text;
        name.size = (size_t)(equals - text);
        value.data = equals + 1;
        value.size = (size_t)(stop - equals - 1);
        size += plb_hpack_write((char *)out + size, capacity - size, name, value);
        text = stop < end ? stop + 1 : end;
    }
    return size;
}

static inline uint32_t h2_last_stream(const char **text, uint32_t stream)
{
    const char *at = *text;
    *text = strchr(at, ' ') + 1;
    if (strncmp(at, "this", 4) == 0)
        return stream;
    if (strncmp(at, "before", 6) == 0)
        return stream > 1 ? stream - 2 : 0;
    return (uint32_t)strtoul(at, NULL, 10);
}

static inline bool h2_is(const char *line, const char *name)
{
    return strncmp(line, name, strlen(name)) == 0;
}

static inline void h2_line(h2_wire *w, const char *line, const char *end)
{
    static unsigned char payload[70000];
    const char *space = (const char *)memchr(line, ' ', (size_t)(end - line));
    const char *name_end = space != NULL ? space : end, *rest = space != NULL ? space + 1 : end;
    const char *at = (const char *)memchr(line, '@', (size_t)(name_end - line));
    uint32_t stream = at != NULL ? (uint32_t)strtoul(at + 1, NULL, 10) : w->stream;
    bool ends = memchr(line, '+', (size_t)(name_end - line)) != NULL;
    bool goes_on = memchr(line, '-', (size_t)(name_end - line)) != NULL;
    uint32_t flags = (ends ? 1u : 0u) | (goes_on ? 0u : 4u);
    size_t size = 0;
    if (h2_is(line, "SETTINGS")) {
        if (rest < end) {
            size = h2_number(payload, (uint32_t)strtoul(rest, NULL, 10), 2);
            size += h2_number(payload + size, (uint32_t)strtoul(strchr(rest, '=') + 1, NULL, 10), 4);
        }
        h2_frame(w, H2_SETTINGS, 0, 0, payload, size);
    } else if (h2_is(line, "ACK")) {
        h2_frame(w, H2_SETTINGS, 1, 0, NULL, 0);
    } else if (h2_is(line, "PING")) {
        h2_frame(w, H2_PING, rest < end ? 1 : 0, 0, "pingpong", 8);
    } else if (h2_is(line, "GOAWAY")) {
        size = h2_number(payload, h2_last_stream(&rest, w->stream), 4);
        size += h2_number(payload + size, (uint32_t)strtoul(rest, NULL, 10), 4);
        h2_frame(w, H2_GOAWAY, 0, 0, payload, size);
    } else if (h2_is(line, "HEADERS")) {
        payload[0] = 0x20; /* as a server does that keeps no table */
        size = 1 + h2_pack(payload + 1, sizeof payload - 1, rest, end);
        h2_frame(w, H2_HEADERS, flags, stream, payload, size);
    } else if (h2_is(line, "CONTINUATION")) {
        h2_frame(w, H2_MORE, flags & 4, stream, payload, h2_pack(payload, sizeof payload, rest, end));
    } else if (h2_is(line, "DATA") && rest < end && *rest == '#') {
        h2_frame(w, H2_DATA, flags & 1, stream, payload, h2_hex(payload, rest + 1, end));
    } else if (h2_is(line, "DATA")) {
        h2_frame(w, H2_DATA, flags & 1, stream, rest, (size_t)(end - rest));
    } else if (h2_is(line, "RST_STREAM")) {
        h2_frame(w, H2_RST_STREAM, 0, stream, payload, h2_number(payload, (uint32_t)strtoul(rest, NULL, 10), 4));
    } else if (h2_is(line, "WINDOW_UPDATE")) {
        h2_frame(w, H2_WINDOW, 0, stream, payload, h2_number(payload, (uint32_t)strtoul(rest, NULL, 10), 4));
    } else if (h2_is(line, "FRAME")) {
        char *after;
        uint32_t type = (uint32_t)strtoul(rest, &after, 10);
        uint32_t own_flags = (uint32_t)strtoul(after, &after, 10);
        h2_frame(w, type, own_flags, stream, payload, h2_hex(payload, after, end));
    } else if (h2_is(line, "RAW")) {
        h2_put(w, rest, (size_t)(end - rest));
    } else if (h2_is(line, "END")) {
        h2_flush(w);
        sim_close(w->conn);
    } else if (h2_is(line, "RESET")) {
        h2_flush(w);
        sim_reset(w->conn);
    } else {
        fprintf(stderr, "http2_server.h: no such line: %s\n", line);
        abort();
    }
}

/* Says all lines of a script on a connection, about a stream. */
static inline void h2_say(sim_conn *conn, uint32_t stream, const char *script)
{
    h2_wire w;
    memset(&w, 0, sizeof w);
    w.conn = conn;
    w.stream = stream;
    while (script != NULL && *script != '\0') {
        const char *end = strchr(script, '\n'), *line = script;
        unsigned long times = 1;
        end = end != NULL ? end : script + strlen(script);
        if (h2_is(line, "REPEAT ")) {
            char *after;
            times = strtoul(line + 7, &after, 10);
            line = after + 1;
        }
        while (times-- > 0)
            h2_line(&w, line, end);
        script = *end == '\n' ? end + 1 : end;
    }
    h2_flush(&w);
    free(w.bytes);
}

/* ---- frames from the client ---- */

static inline void h2_note(h2_server *g, const char *format, unsigned number, unsigned stream)
{
    size_t used = strlen(g->sent);
    if (used + 64 > sizeof g->sent)
        return;
    if (used > 0)
        g->sent[used++] = ' ';
    snprintf(g->sent + used, sizeof g->sent - used, format, number, stream);
}

static inline void h2_read_fields(h2_server *g, const char *bytes, size_t size)
{
    char memory[4096];
    plb_hpack hpack;
    plb_hpack_field field;
    size_t at = 0, used, length = 0;
    plb_status status;
    plb_hpack_open(&hpack, memory, sizeof memory); /* the client's own table is empty, so each block stands alone */
    g->request[0] = '\0';
    while ((status = plb_hpack_next(&hpack, bytes + at, size - at, &used, &field)) == PLB_OK) {
        at += used;
        length += (size_t)snprintf(g->request + length, sizeof g->request - length, "%.*s: %.*s\n",
                                   (int)field.name.size, field.name.data, (int)field.value.size, field.value.data);
    }
    if (status != PLB_AGAIN || plb_hpack_end(&hpack) != PLB_OK)
        g->fault = "a header block that is none";
}

static inline uint32_t h2_read32(const unsigned char *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static inline void h2_request_is_whole(h2_server *g, sim_conn *conn, uint32_t stream)
{
    g->requests++;
    h2_say(conn, stream, stream > 1 && g->later != NULL ? g->later : g->answer);
}

static inline void h2_on_frame(h2_server *g, sim_conn *conn, const unsigned char *head, size_t size)
{
    const char *payload = (const char *)head + 9;
    uint32_t stream = h2_read32(head + 5);
    bool flag = (head[4] & 1) != 0;
    switch (head[3]) {
    case H2_HEADERS:
        g->heads++;
        g->body_size = 0;
        h2_read_fields(g, payload, size);
        if (stream % 2 == 0 || (head[4] & 4) == 0)
            g->fault = "a request on a stream of the server, or in pieces";
        if (flag)
            h2_request_is_whole(g, conn, stream);
        else
            h2_say(conn, stream, g->on_head);
        return;
    case H2_DATA:
        if (size > sizeof g->body - g->body_size)
            return;
        memcpy(g->body + g->body_size, payload, size);
        g->body_size += size;
        if (flag)
            h2_request_is_whole(g, conn, stream);
        return;
    case H2_SETTINGS:
        h2_note(g, flag ? "ACK" : "SETTINGS", 0, 0);
        return;
    case H2_PING:
        h2_note(g, flag ? "PING=ack" : "PING", 0, 0);
        return;
    case H2_GOAWAY:
        h2_note(g, "GOAWAY=%u", h2_read32(head + 13), 0);
        return;
    case H2_RST_STREAM:
        h2_note(g, "RST_STREAM=%u", h2_read32(head + 9), 0);
        return;
    case H2_WINDOW:
        h2_note(g, "WINDOW_UPDATE=%u@%u", h2_read32(head + 9), stream);
        return;
    default:
        g->fault = "a frame that no client sends";
    }
}

/* Serves a connection; the `user` of which says that its preface has come. */
static inline size_t h2_serve(void *user, sim_conn *conn, const char *bytes, size_t count)
{
    h2_server *g = (h2_server *)user;
    size_t at = 0, preface = strlen(H2_PREFACE);
    if (conn->user == NULL) {
        if (memcmp(bytes, H2_PREFACE, count < preface ? count : preface) != 0)
            g->fault = "no preface";
        if (count < preface || g->fault != NULL)
            return 0;
        conn->user = g;
        at = preface;
        h2_say(conn, 1, g->greeting);
    }
    while (count - at >= 9) {
        const unsigned char *head = (const unsigned char *)bytes + at;
        size_t size = h2_read32(head) >> 8;
        if (count - at < 9 + size)
            break;
        h2_on_frame(g, conn, head, size);
        at += 9 + size;
    }
    return at;
}

/* ---- a balancer with one backend ---- */

static inline void h2_probed(void *user, const plb_backend_info *info, uint32_t check, const plb_probe_info *probe)
{
    h2_server *g = (h2_server *)user; /* its rig comes first */
    (void)info;
    (void)check;
    g->probes++;
    g->successes += probe->status == PLB_OK;
    g->status = probe->status;
    g->code = probe->code;
    snprintf(g->text, sizeof g->text, "%s", probe->text);
}

static inline void h2_begin(h2_server *g)
{
    plb_addr at = sim_addr(H2_ADDR);
    memset(g, 0, sizeof *g);
    rig_begin(&g->r);
    g->r.desc.on_probe = h2_probed;
    g->greeting = H2_GREETING;
    sim_serve(g->r.s, &at, h2_serve, g);
}

static inline plb_status h2_create(h2_server *g, const char *addr, plb_check check)
{
    const char *addresses[1];
    plb_static_desc list;
    memset(&list, 0, sizeof list);
    addresses[0] = addr;
    list.addresses = addresses;
    list.address_count = 1;
    g->r.desc.discovery = plb_static(&list);
    g->r.desc.check = check;
    return rig_create(&g->r);
}

/* The first probe of the backend. */
static inline plb_status h2_probe(h2_server *g, plb_check check)
{
    plb_status status = h2_create(g, H2_ADDR, check);
    if (status != PLB_OK)
        return status;
    rig_run(&g->r, 5000);
    return g->probes == 1 ? g->status : PLB_STATUS_COUNT;
}

/* A number of probes, one after another. */
static inline void h2_rounds(h2_server *g, int count)
{
    while (count-- > 0) {
        plb_check_now(g->r.lb);
        rig_run(&g->r, 20);
    }
}

static inline sim_host_t *h2_host(h2_server *g)
{
    plb_addr at = sim_addr(H2_ADDR);
    return sim_host(g->r.s, &at);
}

static inline sim_conn *h2_newest(h2_server *g)
{
    plb_addr at = sim_addr(H2_ADDR);
    return sim_newest(g->r.s, &at);
}

/* Ends it all; returns what was wrong: what was left behind, what the client did. At most `kept` streams are open. */
static inline int h2_end(h2_server *g, uint32_t kept)
{
    int wrong = g->r.s->streams > kept;
    if (g->fault != NULL)
        fprintf(stderr, "the client sent %s\n", g->fault);
    return rig_end(&g->r) + wrong + (g->fault != NULL);
}

#endif /* HTTP2_SERVER_H */
