/* plb_proxy.h - an HTTP/1.1 reverse proxy over pingora_lb.h and any plb_io. MIT license, see LICENSE.

   It calls no operating system, starts no thread and holds no global: connections, time and memory are what a plb_port
   and a plb_allocator lend it. Which backend a request goes to is the program's decision, in one hook.

   QUICK START

       #define PINGORA_LB_IMPLEMENTATION
       #include "pingora_lb.h"
       #define PLB_PROXY_IMPLEMENTATION
       #include "plb_proxy.h"

       static plb_status upstream_peer(void *user, plb_session *session, plb_pick *pick)
       {
           plb_request request = {0};
           request.exclude = plb_session_tried(session, &request.exclude_count);
           return plb_begin((plb_balancer *)user, &request, pick);
       }

       static plb_status upstream_request_filter(void *user, plb_session *session, const plb_pick *pick)
       {
           (void)user, (void)pick;
           return plb_session_set_header(session, "Host", "one.one.one.one");
       }

       plb_proxy_desc desc = {0};
       desc.port = port; // io and clock
       desc.user = lb;
       desc.upstream_peer = upstream_peer;
       desc.upstream_request_filter = upstream_request_filter;
       plb_proxy_create(&desc, &proxy);
       plb_proxy_listen(proxy, &listen_desc, NULL);
       // then lend plb_proxy_task(proxy) to the loop that steps the port, as the balancer's task

   WHAT IT DOES
   Keep-alive and pipelining towards clients; a pool of idle connections towards backends; bodies of any length streamed
   both ways, at the pace of the slower side; HEAD, 1xx, 204, 304; HTTP/1.0 clients; clients that have ended their side.
   What is hop-by-hop (RFC 9110 section 7.6.1) ends here: Connection and what it names, Keep-Alive, Proxy-Connection,
   TE, Trailer, Upgrade; bodies are framed anew, and chunk extensions and trailers are dropped. All else passes as it
   came: nothing is added, no X-Forwarded-For and no Via; upstream_request_filter may. CONNECT and upgrades are not
   supported.

   ANSWERS OF ITS OWN
   A short text. 400 malformed request, or one whose length is ambiguous; 408 the client was too slow; 414, 431 head too
   long; 500 upstream_request_filter failed; 501 CONNECT, or a transfer coding other than chunked; 502 no backend, or it
   refused, broke or answered nonsense; 503 out of memory or of connections of the port; 504 the backend was too slow;
   505 HTTP version. The connection is kept where the request was read to its end and its framing is certain. An answer
   that breaks off upstream is broken off downstream, never ended as if it were complete.

   RETRIES
   When no connection can be had, fail_to_connect decides whether upstream_peer is asked again. A request on a reused
   connection that closed before the first byte of the answer is sent once more on a fresh connection to the same
   backend if it is idempotent, and if its body is empty or of a stated length and still held.

   MEMORY (64-bit)
   A client's connection that waits for a request owns no buffer: 112 bytes. An idle connection to a backend: 136 bytes,
   and 144 for each backend that has any. A request in flight, beside its two connections: 1048 bytes, 32 for each of
   max_headers, 4 for each of max_retries, and one to three buffers of buffer_size (request; the head being sent, from
   the connection on; answer, from its first byte on), however large the bodies are: by default up to 52 KiB. What
   spare_requests of them take is kept for the next ones. The proxy itself holds about 900 bytes, max_headers and one
   buffer more. What the port needs for a connection comes on top. Larger buffers move large bodies faster: each costs
   one read and one write. A request's head takes three quarters of a buffer at most.

   THREADS
   One: whichever steps the port. Hooks are called from there too, and may call anything but plb_proxy_destroy, and
   plb_proxy_task's poll.

   DEFINES
   PLB_PROXY_IMPLEMENTATION  in one C file: emits the code. PLB_STATIC: as in pingora_lb.h. */
#ifndef PLB_PROXY_H
#define PLB_PROXY_H

#ifndef PINGORA_LB_H
#include "../pingora_lb.h"
#endif

typedef struct plb_proxy plb_proxy;
typedef struct plb_session plb_session; /* a request in flight; lives until logging returns */

/* How a request went, for logging. */
typedef struct plb_session_report {
    uint16_t status;                        /* that was sent to the client; 0: none */
    plb_status error;                       /* PLB_OK, or what went wrong: with the backend, the client, or a hook */
    plb_addr upstream;                      /* the last backend that was tried; PLB_FAMILY_NONE: there was none */
    bool upstream_reused;                   /* on a connection that had served before */
    uint32_t retries;                       /* times that fail_to_connect asked for another backend */
    uint64_t request_bytes, response_bytes; /* of the bodies, without framing */
    uint64_t upstream_us; /* from upstream_peer's answer to the head of the backend's; 0: it gave none */
    uint64_t total_us;    /* from the request's first byte to the answer's last one */
} plb_session_report;

/* Everything about a proxy. Zero members: the default. */
typedef struct plb_proxy_desc {
    plb_port port; /* io and clock are needed */
    plb_allocator allocator;

    void *user; /* handed to the hooks */
    /* Which backend? Fills in *pick (zeroed): by plb_begin, or, without a balancer, addr alone. The proxy calls
       plb_end on it, with the time from here to the head of the answer, once the answer has arrived whole or failed.
       Any status but PLB_OK: the client is answered 502. Required. */
    plb_status (*upstream_peer)(void *user, plb_session *session, plb_pick *pick);
    /* The request as it will be sent may be changed (plb_session_set_header and its like). Called for each attempt,
       once there is a connection, always with the client's request to begin with. Any status but PLB_OK: the client is
       answered 500, and nothing is sent. May be NULL. */
    plb_status (*upstream_request_filter)(void *user, plb_session *session, const plb_pick *pick);
    /* No connection could be had. True: ask upstream_peer again, max_retries times at most. NULL: never. */
    bool (*fail_to_connect)(void *user, plb_session *session, const plb_pick *pick, plb_status status);
    /* A request is over; called once for each, malformed ones too, of whose head little may
       be known. Its connection is still there. May be NULL. */
    void (*logging)(void *user, plb_session *session, const plb_session_report *report);
    /* A listener broke and was closed. May be NULL. */
    void (*listener_failed)(void *user, const plb_addr *addr, plb_status status);

    uint32_t max_connections;      /* of clients; more wait to be accepted. 0: 1024 */
    uint32_t max_retries;          /* at most 255. 0: 16 */
    uint32_t max_headers;          /* of a request or an answer. 0: 100 */
    uint32_t buffer_size;          /* bytes; at least 1024. 0: 16384 */
    uint32_t spare_requests;       /* 0: 32 */
    uint32_t max_idle;             /* connections to backends, kept for the next request. 0: 1024 */
    uint32_t max_idle_per_backend; /* 0: 128 */

    uint32_t header_ms;       /* for a request's head, from its first byte, and for a new client to send one. 0: 10 s */
    uint32_t keepalive_ms;    /* for a client to send the next request. 0: 60 s */
    uint32_t client_read_ms;  /* between two pieces of a request's body. 0: 60 s */
    uint32_t client_write_ms; /* until a client takes more of an answer. 0: 60 s */
    uint32_t linger_ms;       /* for a client to stop sending after an answer that came early. 0: 2 s */
    uint32_t connect_ms;      /* for a connection to a backend. 0: 1 s */
    uint32_t upstream_read_ms;  /* until the answer begins, and between two pieces of it. 0: 60 s */
    uint32_t upstream_write_ms; /* until a backend takes more of a request. 0: 60 s */
    uint32_t upstream_idle_ms;  /* that an idle connection to a backend is kept. 0: 60 s */
} plb_proxy_desc;

/* Makes a proxy that listens nowhere yet. PLB_ERR_ARGUMENT (no io, clock or upstream_peer; buffer_size or max_retries
   out of range), PLB_ERR_MEMORY: *out is NULL. */
PLB_API plb_status plb_proxy_create(const plb_proxy_desc *desc, plb_proxy **out);

/* Ends it at once: requests in flight are broken off and logged, all its connections closed. NULL is fine. */
PLB_API void plb_proxy_destroy(plb_proxy *proxy);

/* Accepts clients there too; may be called several times. *bound, unless NULL: where, with the port that was chosen.
   The statuses of plb_io.listen, info and accept; PLB_ERR_CANCELLED after plb_proxy_drain. */
PLB_API plb_status plb_proxy_listen(plb_proxy *proxy, const plb_listen_desc *desc, plb_addr *bound);

/* Stops listening, closes what is idle, and each connection after the request that it carries now. It is over when
   plb_proxy_connections is 0. */
PLB_API void plb_proxy_drain(plb_proxy *proxy);

/* Connections of clients; requests in flight; connections to backends that are idle. */
PLB_API uint32_t plb_proxy_connections(const plb_proxy *proxy);
PLB_API uint32_t plb_proxy_active(const plb_proxy *proxy);
PLB_API uint32_t plb_proxy_idle(const plb_proxy *proxy);

/* Its time-outs, for the loop that steps the port; the memory is the proxy's. */
PLB_API plb_task *plb_proxy_task(plb_proxy *proxy);

/* ---- for hooks ---- */

/* The client's request. Its slices live as long as the session. */
PLB_API const plb_http1_head *plb_session_request(const plb_session *session);

/* The client's address, asked of the port. PLB_OK, or PLB_ERR_IO. */
PLB_API plb_status plb_session_client(const plb_session *session, plb_addr *out);

/* The slots to which no connection could be had for this request: for plb_request.exclude. */
PLB_API const uint32_t *plb_session_tried(const plb_session *session, size_t *count);

/* A pointer of the program's own, NULL at first; logging is where to release what it points to. */
PLB_API void *plb_session_context(const plb_session *session);
PLB_API void plb_session_set_context(plb_session *session, void *context);

/* The request to the backend; only inside upstream_request_filter. Names are compared without letter case. What belongs
   to the connection or the framing (Connection, Content-Length, Transfer-Encoding and their like) is the proxy's.
   PLB_ERR_ARGUMENT: such a name, no token, control bytes in the value, a space or control bytes in the target, or
   called outside. PLB_ERR_LIMIT: the head would not fit in a buffer; nothing was added. Texts are NUL-terminated and
   copied. set removes all headers of that name and adds one; that there was none is no error, for remove neither. */
PLB_API plb_status plb_session_add_header(plb_session *session, const char *name, const char *value);
PLB_API plb_status plb_session_remove_header(plb_session *session, const char *name);
PLB_API plb_status plb_session_set_header(plb_session *session, const char *name, const char *value);
PLB_API plb_status plb_session_set_target(plb_session *session, const char *target); /* the path and what follows */

#endif /* PLB_PROXY_H */

/* ================================================================================================================== */
#ifdef PLB_PROXY_IMPLEMENTATION
#ifndef PLB__PROXY_IMPLEMENTED
#define PLB__PROXY_IMPLEMENTED

/* ==== TYPES =======================================================================================================
   A wire is one connection, to a client (plb__down) or to a backend (plb__up). A session is one request in flight and
   joins the two. A flow is one direction of it: what arrived on one wire and is to be sent on the other. */

enum {
    PLB__ORIGIN_BUCKETS = 64,
    PLB__PUMP_ROUNDS = 32,       /* reads, or requests, after which other connections get their turn */
    PLB__OPTIONS_MAX = 64,       /* that a client's Connection headers may name: each is compared with each header */
    PLB__LINGER_BYTES = 1 << 20, /* that a client may go on sending after an early answer */
    PLB__ACCEPT_PAUSE_MS = 100   /* without memory for another connection */
};

typedef struct plb__wire {
    plb_proxy *proxy;
    plb_stream *stream;
    plb_session *session; /* NULL: idle */
    plb_timer timer;      /* may be early: due_ms says when */
    uint64_t due_ms;      /* UINT64_MAX: never */
    bool can_read;        /* false: PLB_EVENT_READ is armed, or the end of the stream was read */
    bool can_write;       /* false: PLB_EVENT_WRITE is armed */
    bool ended;           /* the end of the stream was read */
} plb__wire;

typedef struct plb__down {
    plb__wire wire;
    struct plb__down *next, *prev;
    uint32_t lingered; /* bytes thrown away */
    bool lingering;
} plb__down;

/* A backend as the pool knows it; there while there are connections to it. */
typedef struct plb__origin {
    plb_addr addr;
    uint32_t slot;
    uint32_t connections, idle_count;
    struct plb__up *idle; /* the last one released first */
    struct plb__origin *next;
} plb__origin;

typedef struct plb__up {
    plb__wire wire;
    plb__origin *origin;
    struct plb__up *next, *prev;   /* idle ones of this origin */
    struct plb__up *older, *newer; /* idle ones of all */
    bool reused;
} plb__up;

enum { PLB__OUT_HEAD = 0, PLB__OUT_SIZE, PLB__OUT_DATA, PLB__OUT_END, PLB__OUT_COUNT };

typedef struct plb__flow {
    char *buffer; /* NULL: not needed yet */
    size_t keep;  /* bytes at its start that are not to be overwritten: a request's head, and a body that is held */
    size_t begin, end;   /* received, not decoded */
    plb_http1_body body; /* as received; length: what is still to come */
    plb_http1_chunked chunked;
    bool rechunk;                  /* sent in chunks */
    bool complete;                 /* all of it is decoded */
    plb_chunk out[PLB__OUT_COUNT]; /* to be written next; `data` moves on as it is taken */
    char size_line[20];            /* what PLB__OUT_SIZE points at */
    uint64_t bytes;                /* of body */
    plb_status error;              /* why plb__flow_pump failed */
} plb__flow;

typedef enum plb__session_state {
    PLB__SESSION_HEAD = 0,   /* reading the request's head */
    PLB__SESSION_PICK,       /* about to ask for a backend */
    PLB__SESSION_CONNECT,    /* about to get a connection to it */
    PLB__SESSION_CONNECTING, /* waiting for one */
    PLB__SESSION_SEND,       /* about to send the request */
    PLB__SESSION_EXCHANGE,   /* the request goes up, the answer comes down */
    PLB__SESSION_ANSWER      /* an answer of the proxy's own goes down */
} plb__session_state;

struct plb_session {
    plb_proxy *proxy;
    plb__down *down;
    plb__up *up;      /* NULL: none now */
    plb_timer resume; /* goes on after other connections had their turn */
    plb__session_state state;
    plb_http1_head request;
    plb_http1_body request_body; /* as declared */
    plb_text host;               /* from the target or the Host header; data is NULL: there was none */
    plb_text path;               /* the target to send */
    void *context;
    plb__flow to_up, to_down;
    char *head; /* a buffer for the head that is written, or NULL; first the request's, then the answer's */
    size_t head_size;
    bool head_full;   /* it did not fit */
    bool parsed;      /* request is filled in */
    bool filtering;   /* inside upstream_request_filter */
    bool picked;      /* pick is to be ended */
    bool fresh;       /* no reused connection: one was lost already */
    bool holds_body;  /* the whole body fits behind the head, and stays there for another attempt */
    bool cannot_send; /* the backend takes no more of the request */
    bool heard;       /* the backend has answered with a byte or more */
    bool keep_alive;  /* downstream, after this request */
    bool up_keeps_alive;
    plb_pick pick;
    uint32_t *tried;
    size_t tried_count;
    size_t response_scanned;
    uint64_t begin_us, attempt_us;
    plb_session_report report;
};

typedef struct plb__listener {
    plb_proxy *proxy;
    plb_stream *stream;
    plb_addr addr;
    struct plb__listener *next;
} plb__listener;

/* Blocks of one size, kept for the next use; chained through their first bytes. */
typedef struct plb__spares {
    void *first;
    size_t block_size;
    uint32_t count, limit;
} plb__spares;

struct plb_proxy {
    plb_proxy_desc desc; /* defaults filled in */
    plb_timers timers;
    plb_task task;
    plb__listener *listeners;
    plb_timer accept_timer;
    bool accept_paused, draining;
    plb__down *downs;
    uint32_t connections, active;
    plb__origin *origins[PLB__ORIGIN_BUCKETS];
    plb__up *idle_newest, *idle_oldest;
    uint32_t idle_count;
    plb__spares sessions, buffers;
    plb_http1_header *headers; /* max_headers: an answer's, while it is looked at */
    char *scratch;             /* a buffer for bytes that nobody wants */
};

/* What a state says when it has done what it could. */
typedef enum plb__step {
    PLB__WAIT = 0, /* a callback or timer will come */
    PLB__NEXT,     /* the state has changed */
    PLB__GONE      /* the session is over and its memory gone */
} plb__step;

/* ==== MEMORY ====================================================================================================== */

static void *plb__proxy_alloc(plb_proxy *proxy, size_t size)
{
    return proxy->desc.allocator.alloc(proxy->desc.allocator.user, size);
}

static void plb__proxy_dealloc(plb_proxy *proxy, void *ptr, size_t size)
{
    proxy->desc.allocator.dealloc(proxy->desc.allocator.user, ptr, size);
}

static void *plb__spares_take(plb_proxy *proxy, plb__spares *spares)
{
    void *block = spares->first;
    if (block == NULL)
        return plb__proxy_alloc(proxy, spares->block_size);
    memcpy(&spares->first, block, sizeof spares->first);
    spares->count--;
    return block;
}

static void plb__spares_give(plb_proxy *proxy, plb__spares *spares, void *block)
{
    if (block == NULL)
        return;
    if (spares->count == spares->limit) {
        plb__proxy_dealloc(proxy, block, spares->block_size);
        return;
    }
    memcpy(block, &spares->first, sizeof spares->first);
    spares->first = block;
    spares->count++;
}

static void plb__spares_clear(plb_proxy *proxy, plb__spares *spares)
{
    spares->limit = 0;
    while (spares->count > 0)
        plb__proxy_dealloc(proxy, plb__spares_take(proxy, spares), spares->block_size);
}

/* ==== WIRE ======================================================================================================== */

/* Microseconds between two readings of a clock that may wrap at 2^32. */
static uint64_t plb__us_since(uint64_t then_us, uint64_t now_us)
{
    return now_us >= then_us ? now_us - then_us : (uint32_t)(now_us - then_us);
}

static uint64_t plb__proxy_now_us(const plb_proxy *proxy)
{
    const plb_clock *clock = proxy->desc.port.clock;
    return clock->now_us ? clock->now_us(clock->self) : clock->now_ms(clock->self) * 1000;
}

static uint64_t plb__proxy_now_ms(plb_proxy *proxy)
{
    return plb_timers_update(&proxy->timers, proxy->desc.port.clock);
}

/* Sets the deadline, PLB_FOREVER for none. Nearly all deadlines are moved before they are due, most of them to a later
   time: the timer in the heap stays where it is, and finds out when it fires. */
static void plb__wire_deadline(plb__wire *wire, uint32_t delay_ms)
{
    plb_timers *timers = &wire->proxy->timers;
    wire->due_ms = delay_ms == PLB_FOREVER ? UINT64_MAX : timers->now_ms + delay_ms;
    if (delay_ms != PLB_FOREVER && (!plb_timer_is_set(&wire->timer) || wire->timer.at_ms > wire->due_ms))
        plb_timer_set(timers, &wire->timer, delay_ms);
}

/* The timer fired: is the deadline over? */
static bool plb__wire_is_due(plb__wire *wire)
{
    uint64_t now_ms = plb__proxy_now_ms(wire->proxy);
    if (wire->due_ms <= now_ms)
        return true;
    if (wire->due_ms != UINT64_MAX)
        plb_timer_set(&wire->proxy->timers, &wire->timer, (uint32_t)(wire->due_ms - now_ms));
    return false;
}

/* Has PLB_EVENT_READ armed, unless there is something to read already. */
static void plb__wire_watch(plb__wire *wire)
{
    const plb_io *io = wire->proxy->desc.port.io;
    wire->can_read = io->watch(io->self, wire->stream, PLB_EVENT_READ) != PLB_AGAIN;
}

/* As plb_io.read, but asks the port only when there is a reason to. */
static plb_status plb__wire_read(plb__wire *wire, char *buffer, size_t capacity, size_t *got)
{
    const plb_io *io = wire->proxy->desc.port.io;
    plb_status status;
    if (!wire->can_read)
        return wire->ended ? PLB_END : PLB_AGAIN;
    status = io->read(io->self, wire->stream, buffer, capacity, got);
    if (status == PLB_OK && *got < capacity) /* most likely all there was: spares the read that finds nothing */
        plb__wire_watch(wire);
    else if (status == PLB_AGAIN || status == PLB_END)
        wire->can_read = false;
    wire->ended = status == PLB_END;
    return status;
}

static void plb__wire_close(plb__wire *wire, plb_close_how how)
{
    const plb_io *io = wire->proxy->desc.port.io;
    plb_timer_stop(&wire->proxy->timers, &wire->timer);
    if (wire->stream != NULL)
        io->close(io->self, wire->stream, how);
    wire->stream = NULL;
}

/* ==== FLOW ======================================================================================================== */

static void plb__flow_open(plb__flow *flow, plb_http1_body body, bool rechunk)
{
    flow->body = body;
    flow->rechunk = rechunk;
    flow->complete = body.framing == PLB_HTTP1_EMPTY || (body.framing == PLB_HTTP1_LENGTH && body.length == 0);
    flow->bytes = 0;
    memset(&flow->chunked, 0, sizeof flow->chunked);
    memset(flow->out, 0, sizeof flow->out);
}

static bool plb__flow_pending(const plb__flow *flow)
{
    return flow->out[PLB__OUT_HEAD].size + flow->out[PLB__OUT_SIZE].size + flow->out[PLB__OUT_DATA].size +
               flow->out[PLB__OUT_END].size >
           0;
}

static void plb__flow_put(plb__flow *flow, int which, const char *data, size_t size, uint32_t flags)
{
    flow->out[which].data = data;
    flow->out[which].size = size;
    flow->out[which].flags = flags;
}

/* "1f4" CR LF into size_line, right-aligned. */
static void plb__flow_put_size_line(plb__flow *flow, size_t size)
{
    size_t at = sizeof flow->size_line;
    flow->size_line[--at] = '\n';
    flow->size_line[--at] = '\r';
    do {
        flow->size_line[--at] = "0123456789abcdef"[size & 15];
        size >>= 4;
    } while (size > 0);
    plb__flow_put(flow, PLB__OUT_SIZE, flow->size_line + at, sizeof flow->size_line - at, 0);
}

/* The next piece of the body, the last one if complete; both may be. */
static void plb__flow_put_data(plb__flow *flow, const char *data, size_t size)
{
    flow->bytes += size;
    plb__flow_put(flow, PLB__OUT_DATA, data, size, 0);
    if (!flow->rechunk)
        return;
    if (size > 0)
        plb__flow_put_size_line(flow, size);
    if (size == 0)
        plb__flow_put(flow, PLB__OUT_END, "0\r\n\r\n", flow->complete ? 5 : 0, PLB_CHUNK_CONSTANT);
    else
        plb__flow_put(flow, PLB__OUT_END, "\r\n0\r\n\r\n", flow->complete ? 7 : 2, PLB_CHUNK_CONSTANT);
}

/* Takes the data out of the chunks that have arrived and moves it together: one piece of body, to be sent at once. */
static plb_status plb__flow_dechunk(plb__flow *flow)
{
    char *into = flow->buffer + flow->begin;
    size_t size = 0;
    plb_status status;
    do {
        size_t used;
        plb_text data;
        status =
            plb_http1_chunked_next(&flow->chunked, flow->buffer + flow->begin, flow->end - flow->begin, &used, &data);
        flow->begin += used;
        if (data.size > 0) {
            if (size == 0)
                into = flow->buffer + (data.data - flow->buffer);
            else
                memmove(into + size, data.data, data.size);
            size += data.size;
        }
    } while (status == PLB_OK);
    flow->complete = status == PLB_END;
    plb__flow_put_data(flow, into, size);
    return status == PLB_END || status == PLB_AGAIN ? PLB_OK : status;
}

/* Turns what has arrived into a piece to be sent, if nothing stands there yet. */
static plb_status plb__flow_decode(plb__flow *flow)
{
    size_t size = flow->end - flow->begin;
    const char *data = flow->buffer + flow->begin;
    if (flow->complete || size == 0 || flow->out[PLB__OUT_DATA].size + flow->out[PLB__OUT_END].size > 0)
        return PLB_OK;
    if (flow->body.framing == PLB_HTTP1_CHUNKED)
        return plb__flow_dechunk(flow);
    if (flow->body.framing == PLB_HTTP1_LENGTH) {
        if (size > flow->body.length)
            size = (size_t)flow->body.length;
        flow->body.length -= size;
        flow->complete = flow->body.length == 0;
    }
    flow->begin += size;
    plb__flow_put_data(flow, data, size);
    return PLB_OK;
}

/* Writes what stands in `out`. PLB_OK: all of it is written. */
static plb_status plb__flow_write(plb__flow *flow, plb__wire *to)
{
    const plb_io *io = to->proxy->desc.port.io;
    while (plb__flow_pending(flow)) {
        plb_chunk chunks[PLB__OUT_COUNT];
        size_t i, count = 0, taken = 0;
        plb_status status;
        if (!to->can_write)
            return PLB_AGAIN;
        for (i = 0; i < PLB__OUT_COUNT; i++)
            if (flow->out[i].size > 0)
                chunks[count++] = flow->out[i];
        status = io->write(io->self, to->stream, chunks, count, &taken);
        to->can_write = status != PLB_AGAIN;
        if (status != PLB_OK)
            return status;
        for (i = 0; i < PLB__OUT_COUNT; i++) {
            size_t part = taken < flow->out[i].size ? taken : flow->out[i].size;
            flow->out[i].data = part > 0 ? (const char *)flow->out[i].data + part : flow->out[i].data;
            flow->out[i].size -= part;
            taken -= part;
        }
    }
    return PLB_OK;
}

/* Reads more, when all that was there has been decoded and sent. A body that ends with the stream is complete then. */
static plb_status plb__flow_fill(plb__flow *flow, plb__wire *from)
{
    size_t got = 0;
    plb_status status;
    if (flow->begin == flow->end && flow->begin > flow->keep)
        flow->begin = flow->end = flow->keep;
    status = plb__wire_read(from, flow->buffer + flow->end, from->proxy->desc.buffer_size - flow->end, &got);
    if (status == PLB_OK)
        flow->end += got;
    if (status == PLB_END && flow->body.framing == PLB_HTTP1_UNTIL_CLOSE) {
        flow->complete = true;
        plb__flow_put_data(flow, flow->buffer, 0);
        return PLB_OK;
    }
    return status;
}

typedef enum plb__pump {
    PLB__PUMP_WAIT = 0,    /* one of the two sides has to move */
    PLB__PUMP_DONE,        /* all is written */
    PLB__PUMP_YIELD,       /* it could go on, but others shall have their turn */
    PLB__PUMP_FROM_FAILED, /* flow->error says how: PLB_END is an end that came too early */
    PLB__PUMP_TO_FAILED
} plb__pump;

/* Moves what can be moved. `from` may be NULL once the flow is complete. */
static plb__pump plb__flow_pump(plb__flow *flow, plb__wire *from, plb__wire *to)
{
    int round;
    for (round = 0; round < PLB__PUMP_ROUNDS; round++) {
        flow->error = plb__flow_decode(flow);
        if (flow->error != PLB_OK)
            return PLB__PUMP_FROM_FAILED;
        flow->error = plb__flow_write(flow, to);
        if (flow->error != PLB_OK)
            return flow->error == PLB_AGAIN ? PLB__PUMP_WAIT : PLB__PUMP_TO_FAILED;
        if (flow->complete)
            return PLB__PUMP_DONE;
        flow->error = flow->begin < flow->end ? PLB_OK : plb__flow_fill(flow, from);
        if (flow->error != PLB_OK)
            return flow->error == PLB_AGAIN ? PLB__PUMP_WAIT : PLB__PUMP_FROM_FAILED;
    }
    return PLB__PUMP_YIELD;
}

/* ==== UPSTREAM POOL =============================================================================================== */

static plb__origin **plb__origin_find(plb_proxy *proxy, const plb_addr *addr, uint32_t slot)
{
    plb__origin **at = &proxy->origins[plb_addr_hash(addr) % PLB__ORIGIN_BUCKETS];
    while (*at != NULL && ((*at)->slot != slot || plb_addr_compare(&(*at)->addr, addr) != 0))
        at = &(*at)->next;
    return at;
}

/* The origin of a backend, found or made; one connection more counts on it. NULL: no memory. */
static plb__origin *plb__origin_hold(plb_proxy *proxy, const plb_addr *addr, uint32_t slot)
{
    plb__origin **at = plb__origin_find(proxy, addr, slot);
    plb__origin *origin = *at;
    if (origin == NULL) {
        origin = (plb__origin *)plb__proxy_alloc(proxy, sizeof *origin);
        if (origin == NULL)
            return NULL;
        memset(origin, 0, sizeof *origin);
        origin->addr = *addr;
        origin->slot = slot;
        *at = origin;
    }
    origin->connections++;
    return origin;
}

static void plb__origin_release(plb_proxy *proxy, plb__origin *origin)
{
    plb__origin **at;
    if (--origin->connections > 0)
        return;
    at = plb__origin_find(proxy, &origin->addr, origin->slot);
    *at = origin->next;
    plb__proxy_dealloc(proxy, origin, sizeof *origin);
}

static void plb__pool_unlink(plb__up *up)
{
    plb_proxy *proxy = up->wire.proxy;
    if (up->prev != NULL)
        up->prev->next = up->next;
    else
        up->origin->idle = up->next;
    if (up->next != NULL)
        up->next->prev = up->prev;
    if (up->newer != NULL)
        up->newer->older = up->older;
    else
        proxy->idle_newest = up->older;
    if (up->older != NULL)
        up->older->newer = up->newer;
    else
        proxy->idle_oldest = up->newer;
    up->next = up->prev = up->older = up->newer = NULL;
    up->origin->idle_count--;
    proxy->idle_count--;
}

static void plb__pool_link(plb__up *up)
{
    plb_proxy *proxy = up->wire.proxy;
    up->next = up->origin->idle;
    if (up->next != NULL)
        up->next->prev = up;
    up->origin->idle = up;
    up->older = proxy->idle_newest;
    if (up->older != NULL)
        up->older->newer = up;
    else
        proxy->idle_oldest = up;
    proxy->idle_newest = up;
    up->origin->idle_count++;
    proxy->idle_count++;
}

static void plb__up_close(plb__up *up, plb_close_how how)
{
    plb_proxy *proxy = up->wire.proxy;
    plb__wire_close(&up->wire, how);
    plb__origin_release(proxy, up->origin);
    plb__proxy_dealloc(proxy, up, sizeof *up);
}

static void plb__pool_drop(plb__up *up)
{
    plb__pool_unlink(up);
    plb__up_close(up, PLB_CLOSE_GRACEFUL);
}

/* Keeps a connection for the next request; one that has ended, or has something to say unasked, is closed. */
static void plb__pool_put(plb__up *up)
{
    plb_proxy *proxy = up->wire.proxy;
    up->wire.session = NULL;
    if (up->wire.can_read)
        plb__wire_watch(&up->wire);
    if (up->wire.can_read || up->wire.ended || proxy->draining ||
        up->origin->idle_count >= proxy->desc.max_idle_per_backend) {
        plb__up_close(up, PLB_CLOSE_GRACEFUL);
        return;
    }
    if (proxy->idle_count >= proxy->desc.max_idle)
        plb__pool_drop(proxy->idle_oldest);
    plb__pool_link(up);
    plb__wire_deadline(&up->wire, proxy->desc.upstream_idle_ms);
}

/* An idle connection to that backend, or NULL. */
static plb__up *plb__pool_take(plb_proxy *proxy, const plb_pick *pick)
{
    plb__origin *origin = *plb__origin_find(proxy, &pick->addr, pick->slot);
    plb__up *up = origin ? origin->idle : NULL;
    if (up == NULL)
        return NULL;
    plb__pool_unlink(up);
    up->reused = true;
    plb__wire_deadline(&up->wire, PLB_FOREVER);
    return up;
}

/* ==== HEADS =======================================================================================================
   The head that goes out is text in session->head. Hooks edit it in place. */

typedef enum plb__header_kind {
    PLB__HEADER_PLAIN = 0,
    PLB__HEADER_HOP, /* ends here, or is written anew */
    PLB__HEADER_CONNECTION,
    PLB__HEADER_HOST,
    PLB__HEADER_LENGTH,
    PLB__HEADER_EXPECT
} plb__header_kind;

static plb__header_kind plb__header_kind_of(plb_text name)
{
    static const struct {
        const char *name;
        plb__header_kind kind;
    } known[] = {
        {"connection", PLB__HEADER_CONNECTION}, {"content-length", PLB__HEADER_LENGTH},
        {"expect", PLB__HEADER_EXPECT},         {"host", PLB__HEADER_HOST},
        {"keep-alive", PLB__HEADER_HOP},        {"te", PLB__HEADER_HOP},
        {"proxy-connection", PLB__HEADER_HOP},  {"trailer", PLB__HEADER_HOP},
        {"upgrade", PLB__HEADER_HOP},           {"transfer-encoding", PLB__HEADER_HOP},
    };
    size_t i;
    for (i = 0; i < sizeof known / sizeof known[0]; i++)
        if (plb_text_is(name, known[i].name))
            return known[i].kind;
    return PLB__HEADER_PLAIN;
}

static bool plb__same_name(plb_text a, plb_text b)
{
    size_t i;
    if (a.size != b.size)
        return false;
    for (i = 0; i < a.size; i++) {
        unsigned difference = (unsigned char)a.data[i] ^ (unsigned char)b.data[i];
        bool letter = (a.data[i] | 0x20) >= 'a' && (a.data[i] | 0x20) <= 'z';
        if (difference != 0 && (difference != 0x20 || !letter))
            return false;
    }
    return true;
}

static void plb__head_put(plb_session *s, const char *data, size_t size)
{
    if (size > s->proxy->desc.buffer_size - s->head_size) {
        s->head_full = true;
        return;
    }
    memcpy(s->head + s->head_size, data, size);
    s->head_size += size;
}

static void plb__head_put_text(plb_session *s, const char *text)
{
    plb__head_put(s, text, strlen(text));
}

static void plb__head_put_header(plb_session *s, plb_text name, plb_text value)
{
    plb__head_put(s, name.data, name.size);
    plb__head_put(s, ": ", 2);
    plb__head_put(s, value.data, value.size);
    plb__head_put(s, "\r\n", 2);
}

/* How much do the Connection headers name but keep-alive and close? Mostly nothing, which saves much comparing. */
static size_t plb__head_count_named(const plb_http1_head *head)
{
    size_t i, count = 0;
    for (i = 0; i < head->header_count; i++) {
        size_t at = 0;
        plb_text option;
        if (plb__header_kind_of(head->headers[i].name) != PLB__HEADER_CONNECTION)
            continue;
        while (plb_http1_list_next(head->headers[i].value, &at, &option))
            if (!plb_text_is(option, "keep-alive") && !plb_text_is(option, "close"))
                count++;
    }
    return count;
}

/* Does a Connection header name that header? */
static bool plb__head_is_named(const plb_http1_head *head, plb_text name)
{
    size_t i;
    for (i = 0; i < head->header_count; i++) {
        size_t at = 0;
        plb_text option;
        if (plb__header_kind_of(head->headers[i].name) != PLB__HEADER_CONNECTION)
            continue;
        while (plb_http1_list_next(head->headers[i].value, &at, &option))
            if (plb__same_name(option, name))
                return true;
    }
    return false;
}

/* The end-to-end headers of `head`, but for kinds in `without` (bits 1 << kind). A Connection header may name more that
   end here; what both ends need to agree on the message (Host, Content-Length) it cannot take away. */
static void plb__head_put_headers(plb_session *s, const plb_http1_head *head, unsigned without)
{
    bool names = plb__head_count_named(head) > 0;
    size_t i;
    for (i = 0; i < head->header_count; i++) {
        plb_text name = head->headers[i].name;
        plb__header_kind kind = plb__header_kind_of(name);
        if (kind == PLB__HEADER_HOP || kind == PLB__HEADER_CONNECTION || (without >> kind & 1u) != 0)
            continue;
        if (names && kind == PLB__HEADER_PLAIN && plb__head_is_named(head, name))
            continue;
        plb__head_put_header(s, name, head->headers[i].value);
    }
}

/* Where the line after the one at `at` begins. */
static size_t plb__head_next_line(const plb_session *s, size_t at)
{
    const char *lf = (const char *)memchr(s->head + at, '\n', s->head_size - at);
    return lf != NULL ? (size_t)(lf - s->head) + 1 : s->head_size;
}

/* Puts `size` bytes in the place of those from `begin` to `end`. */
static plb_status plb__head_splice(plb_session *s, size_t begin, size_t end, const char *data, size_t size)
{
    if (size > s->proxy->desc.buffer_size - (s->head_size - (end - begin)))
        return PLB_ERR_LIMIT;
    memmove(s->head + begin + size, s->head + end, s->head_size - end);
    if (size > 0)
        memcpy(s->head + begin, data, size);
    s->head_size = s->head_size - (end - begin) + size;
    return PLB_OK;
}

static plb_text plb__proxy_text(const char *zstring)
{
    plb_text text;
    text.data = zstring;
    text.size = strlen(zstring);
    return text;
}

/* May a hook touch a header of that name? */
static bool plb__head_may_edit(const plb_session *s, plb_text name)
{
    plb__header_kind kind = plb__header_kind_of(name);
    return s->filtering && plb_http1_is_token(name) &&
           (kind == PLB__HEADER_PLAIN || kind == PLB__HEADER_HOST || kind == PLB__HEADER_EXPECT);
}

PLB_API plb_status plb_session_add_header(plb_session *session, const char *name, const char *value)
{
    plb_text name_text = plb__proxy_text(name), value_text = plb__proxy_text(value);
    size_t size = session->head_size;
    if (!plb__head_may_edit(session, name_text) || !plb_http1_is_value(value_text))
        return PLB_ERR_ARGUMENT;
    plb__head_put_header(session, name_text, value_text);
    if (!session->head_full)
        return PLB_OK;
    session->head_full = false;
    session->head_size = size;
    return PLB_ERR_LIMIT;
}

PLB_API plb_status plb_session_remove_header(plb_session *session, const char *name)
{
    plb_text name_text = plb__proxy_text(name);
    size_t at;
    if (!plb__head_may_edit(session, name_text))
        return PLB_ERR_ARGUMENT;
    at = plb__head_next_line(session, 0);
    while (at < session->head_size) {
        size_t next = plb__head_next_line(session, at);
        plb_text line_name = name_text;
        line_name.data = session->head + at;
        if (next - at > name_text.size && line_name.data[name_text.size] == ':' && plb__same_name(line_name, name_text))
            plb__head_splice(session, at, next, NULL, 0);
        else
            at = next;
    }
    return PLB_OK;
}

PLB_API plb_status plb_session_set_header(plb_session *session, const char *name, const char *value)
{
    plb_status status = PLB_ERR_ARGUMENT;
    if (plb_http1_is_value(plb__proxy_text(value)))
        status = plb_session_remove_header(session, name);
    return status == PLB_OK ? plb_session_add_header(session, name, value) : status;
}

PLB_API plb_status plb_session_set_target(plb_session *session, const char *target)
{
    plb_text text = plb__proxy_text(target);
    size_t begin = session->request.method.size + 1;
    size_t end = plb__head_next_line(session, 0);
    if (!session->filtering || text.size == 0 || !plb_http1_is_value(text) || memchr(target, ' ', text.size) != NULL ||
        memchr(target, '\t', text.size) != NULL)
        return PLB_ERR_ARGUMENT;
    return plb__head_splice(session, begin, end - strlen(" HTTP/1.1\r\n"), text.data, text.size);
}

/* ==== SESSION: how one ends ======================================================================================= */

static plb__down *plb__down_of(plb__wire *wire)
{
    return (plb__down *)(void *)wire; /* its first member */
}

static plb__up *plb__up_of(plb__wire *wire)
{
    return (plb__up *)(void *)wire; /* its first member */
}

static void plb__accept_resume(plb_proxy *proxy, uint32_t delay_ms)
{
    if (proxy->accept_paused)
        plb_timer_set(&proxy->timers, &proxy->accept_timer, delay_ms);
}

static void plb__down_close(plb__down *down, plb_close_how how)
{
    plb_proxy *proxy = down->wire.proxy;
    plb__wire_close(&down->wire, how);
    if (down->prev != NULL)
        down->prev->next = down->next;
    else
        proxy->downs = down->next;
    if (down->next != NULL)
        down->next->prev = down->prev;
    proxy->connections--;
    plb__proxy_dealloc(proxy, down, sizeof *down);
    plb__accept_resume(proxy, 0);
}

/* Throws away what the client still sends, so that closing does not reset the connection and take the answer with it
   (RFC 9112 section 9.6). */
static void plb__down_linger(plb__down *down)
{
    plb_proxy *proxy = down->wire.proxy;
    size_t got = 0;
    while (down->lingered < PLB__LINGER_BYTES) {
        plb_status status = plb__wire_read(&down->wire, proxy->scratch, proxy->desc.buffer_size, &got);
        if (status == PLB_AGAIN)
            return;
        if (status != PLB_OK)
            break;
        down->lingered += (uint32_t)got;
    }
    plb__down_close(down, PLB_CLOSE_GRACEFUL);
}

static void plb__down_begin_linger(plb__down *down)
{
    const plb_io *io = down->wire.proxy->desc.port.io;
    down->lingering = true;
    if (io->shutdown(io->self, down->wire.stream) != PLB_OK) {
        plb__down_close(down, PLB_CLOSE_ABORT);
        return;
    }
    plb__wire_deadline(&down->wire, down->wire.proxy->desc.linger_ms);
    plb__down_linger(down);
}

/* Gives the pick back. */
static void plb__session_end_pick(plb_session *s, plb_outcome outcome)
{
    uint64_t us = s->report.upstream_us;
    if (!s->picked)
        return;
    s->picked = false;
    plb_end(&s->pick, outcome, us > 0 ? us : plb__us_since(s->attempt_us, plb__proxy_now_us(s->proxy)));
}

/* Lets go of the backend in the midst of it. */
static void plb__session_drop_up(plb_session *s, plb_outcome outcome)
{
    plb__session_end_pick(s, outcome);
    if (s->up != NULL)
        plb__up_close(s->up, PLB_CLOSE_ABORT);
    s->up = NULL;
}

/* Tells how the request went; the connection is there still, so that the hook may ask for its address. */
static void plb__session_log(plb_session *s)
{
    if (!s->parsed && s->report.status == 0) /* there was no request */
        return;
    s->report.request_bytes = s->to_up.bytes;
    s->report.response_bytes = s->state == PLB__SESSION_EXCHANGE ? s->to_down.bytes : 0;
    s->report.total_us = plb__us_since(s->begin_us, plb__proxy_now_us(s->proxy));
    if (s->proxy->desc.logging != NULL)
        s->proxy->desc.logging(s->proxy->desc.user, s, &s->report);
}

static void plb__session_free(plb_session *s)
{
    plb_proxy *proxy = s->proxy;
    plb_timer_stop(&proxy->timers, &s->resume);
    plb__spares_give(proxy, &proxy->buffers, s->to_up.buffer);
    plb__spares_give(proxy, &proxy->buffers, s->to_down.buffer);
    plb__spares_give(proxy, &proxy->buffers, s->head);
    s->down->wire.session = NULL;
    proxy->active--;
    plb__spares_give(proxy, &proxy->sessions, s);
}

/* Ends it together with the connection. */
static plb__step plb__session_leave(plb_session *s, plb_close_how how)
{
    plb__down *down = s->down;
    plb__session_free(s);
    plb__down_close(down, how);
    return PLB__GONE;
}

/* Ends it without an answer, or in the midst of one: the client must not take what it got for the whole. */
static plb__step plb__session_abort(plb_session *s, plb_status error)
{
    plb__session_drop_up(s, PLB_OUTCOME_CANCELLED);
    s->report.error = error;
    plb__session_log(s);
    return plb__session_leave(s, PLB_CLOSE_ABORT);
}

static void plb__session_resume(void *user);

/* Ready for the connection's next request, the beginning of which may be here. Buffers stay. */
static void plb__session_reset(plb_session *s)
{
    plb_proxy *proxy = s->proxy;
    plb__down *down = s->down;
    plb__flow to_up = s->to_up;
    char *head = s->head, *answer = s->to_down.buffer;
    plb_timer_stop(&proxy->timers, &s->resume);
    memset(s, 0, sizeof *s);
    s->proxy = proxy;
    s->down = down;
    s->resume.fn = plb__session_resume;
    s->resume.user = s;
    s->request.headers = (plb_http1_header *)(void *)(s + 1);
    s->request.header_capacity = proxy->desc.max_headers;
    s->tried = (uint32_t *)(void *)(s->request.headers + proxy->desc.max_headers);
    s->begin_us = plb__proxy_now_us(proxy);
    s->to_up.buffer = to_up.buffer;
    s->to_up.end = to_up.end - to_up.begin;
    memmove(to_up.buffer, to_up.buffer + to_up.begin, s->to_up.end);
    s->to_down.buffer = answer;
    s->head = head;
}

/* The connection waits for a request and owns no memory but itself. */
static plb__step plb__session_idle(plb_session *s)
{
    plb__down *down = s->down;
    plb__session_free(s);
    plb__wire_deadline(&down->wire, down->wire.proxy->desc.keepalive_ms);
    return PLB__GONE;
}

/* The answer is written. */
static plb__step plb__session_finish(plb_session *s)
{
    plb__down *down = s->down;
    bool unread = !s->to_up.complete || s->to_up.begin < s->to_up.end;
    bool go_on = s->keep_alive && !s->proxy->draining;
    plb__session_log(s);
    if (go_on && (unread || down->wire.can_read)) {
        plb__session_reset(s);
        plb__wire_deadline(&down->wire, s->proxy->desc.header_ms);
        return PLB__NEXT;
    }
    if (go_on && !down->wire.ended)
        return plb__session_idle(s);
    if (!unread)
        return plb__session_leave(s, PLB_CLOSE_GRACEFUL);
    plb__session_free(s);
    plb__down_begin_linger(down);
    return PLB__GONE;
}

/* ==== SESSION: answers of its own ================================================================================= */

typedef struct plb__answer {
    uint16_t code;
    const char *head, *body; /* body: from the blank line on */
} plb__answer;

#define PLB__ANSWER(code, text, length)                                                                                \
    {                                                                                                                  \
        code, "HTTP/1.1 " text "\r\nContent-Type: text/plain\r\nContent-Length: " length "\r\n", "\r\n" text "\n"      \
    }

static const plb__answer *plb__answer_of(uint16_t code)
{
    static const plb__answer answers[] = {
        PLB__ANSWER(400, "400 Bad Request", "16"),
        PLB__ANSWER(408, "408 Request Timeout", "20"),
        PLB__ANSWER(414, "414 URI Too Long", "17"),
        PLB__ANSWER(431, "431 Request Header Fields Too Large", "36"),
        PLB__ANSWER(500, "500 Internal Server Error", "26"),
        PLB__ANSWER(501, "501 Not Implemented", "20"),
        PLB__ANSWER(503, "503 Service Unavailable", "24"),
        PLB__ANSWER(504, "504 Gateway Timeout", "20"),
        PLB__ANSWER(505, "505 HTTP Version Not Supported", "31"),
        PLB__ANSWER(502, "502 Bad Gateway", "16"), /* the last one serves for all others */
    };
    const plb__answer *answer = answers;
    while (answer->code != code && answer->code != 502)
        answer++;
    return answer;
}

static bool plb__session_is_head(const plb_session *s)
{
    return s->request.method.size == 4 && memcmp(s->request.method.data, "HEAD", 4) == 0;
}

/* The Connection header of any answer. */
static const char *plb__session_connection(const plb_session *s)
{
    if (!s->keep_alive)
        return "Connection: close\r\n";
    return s->request.minor == 0 ? "Connection: keep-alive\r\n" : "";
}

/* Answers the client in the proxy's own words; where an answer has begun already, breaks it off. */
static plb__step plb__session_fail(plb_session *s, uint16_t code, plb_status error)
{
    const plb__answer *answer = plb__answer_of(code);
    const char *connection;
    plb__session_drop_up(s, PLB_OUTCOME_CANCELLED);
    if (s->report.status != 0 || plb__flow_pending(&s->to_down))
        return plb__session_abort(s, error);
    memset(s->to_up.out, 0, sizeof s->to_up.out);
    if (s->keep_alive && plb__flow_decode(&s->to_up) != PLB_OK) /* a body that is here already is passed over */
        s->keep_alive = false;
    s->keep_alive = s->keep_alive && s->to_up.complete && !s->proxy->draining;
    s->report.status = code;
    s->report.error = error;
    connection = plb__session_connection(s);
    plb__flow_put(&s->to_down, PLB__OUT_HEAD, answer->head, strlen(answer->head), PLB_CHUNK_CONSTANT);
    plb__flow_put(&s->to_down, PLB__OUT_SIZE, connection, strlen(connection), PLB_CHUNK_CONSTANT);
    plb__flow_put(&s->to_down, PLB__OUT_DATA, answer->body, plb__session_is_head(s) ? 2 : strlen(answer->body),
                  PLB_CHUNK_CONSTANT);
    s->state = PLB__SESSION_ANSWER;
    return PLB__NEXT;
}

static plb__step plb__session_answer(plb_session *s)
{
    plb_status status = plb__flow_write(&s->to_down, &s->down->wire);
    if (status == PLB_OK)
        return plb__session_finish(s);
    if (status != PLB_AGAIN)
        return plb__session_abort(s, status);
    plb__wire_deadline(&s->down->wire, s->proxy->desc.client_write_ms);
    return PLB__WAIT;
}

/* ==== SESSION: the request's head ================================================================================= */

/* Nothing in it that would end a host and port, or begin something else. */
static bool plb__host_is_clean(plb_text host)
{
    size_t i;
    for (i = 0; i < host.size; i++)
        if ((unsigned char)host.data[i] <= 0x20 || memchr("/?#@\\,", host.data[i], 6) != NULL)
            return false;
    return true;
}

/* "http://host/path": RFC 9112 section 3.2.2. Its host counts, not the Host header's. */
static bool plb__session_absolute_target(plb_session *s)
{
    static const char *const schemes[] = {"http://", "https://"};
    plb_text target = s->request.target;
    size_t i, begin, end;
    for (i = 0; i < 2; i++) {
        plb_text scheme = target;
        scheme.size = strlen(schemes[i]);
        if (target.size > scheme.size && plb_text_is(scheme, schemes[i]))
            break;
    }
    if (i == 2)
        return false;
    begin = end = strlen(schemes[i]);
    while (end < target.size && target.data[end] != '/' && target.data[end] != '?')
        end++;
    s->host.data = target.data + begin;
    s->host.size = end - begin;
    s->path.data = target.data + end;
    s->path.size = target.size - end;
    if (s->path.size == 0)
        s->path = plb__proxy_text(plb_text_is(s->request.method, "options") ? "*" : "/");
    return s->host.size > 0 && plb__host_is_clean(s->host);
}

/* Where to, and as whom. False: not a request that makes sense (RFC 9112 section 3.2). */
static bool plb__session_read_target(plb_session *s)
{
    plb_text target = s->request.target;
    size_t i, hosts = 0;
    for (i = 0; i < s->request.header_count; i++) {
        if (plb__header_kind_of(s->request.headers[i].name) == PLB__HEADER_HOST) {
            s->host = s->request.headers[i].value;
            hosts++;
        }
    }
    if (hosts > 1 || (hosts == 0 && s->request.minor >= 1) || !plb__host_is_clean(s->host))
        return false;
    s->path = target;
    if (target.data[0] == '/')
        return true;
    if (target.size == 1 && target.data[0] == '*')
        return plb_text_is(s->request.method, "options");
    return plb__session_absolute_target(s);
}

/* A head has arrived. */
static plb__step plb__session_accept(plb_session *s)
{
    size_t room = s->proxy->desc.buffer_size - s->request.size;
    plb_status status = plb_http1_request_body(&s->request, &s->request_body);
    s->parsed = true;
    if (status == PLB_ERR_UNSUPPORTED || plb_text_is(s->request.method, "connect"))
        return plb__session_fail(s, 501, PLB_ERR_UNSUPPORTED);
    if (status != PLB_OK || !plb__session_read_target(s))
        return plb__session_fail(s, 400, PLB_ERR_PROTOCOL);
    if (plb__head_count_named(&s->request) > PLB__OPTIONS_MAX)
        return plb__session_fail(s, 431, PLB_ERR_LIMIT);
    s->to_up.begin = s->to_up.keep = s->request.size;
    s->holds_body = s->request_body.framing != PLB_HTTP1_CHUNKED && s->request_body.length <= room;
    if (s->holds_body)
        s->to_up.keep += (size_t)s->request_body.length;
    plb__flow_open(&s->to_up, s->request_body, false);
    s->keep_alive = plb_http1_keeps_alive(&s->request);
    s->state = PLB__SESSION_PICK;
    return PLB__NEXT;
}

/* A head that is not whole yet, or not right. */
static plb__step plb__session_refuse_head(plb_session *s, plb_status status)
{
    if (status == PLB_ERR_UNSUPPORTED)
        return plb__session_fail(s, 505, status);
    if (status != PLB_ERR_LIMIT)
        return plb__session_fail(s, 400, status);
    if (memchr(s->to_up.buffer, '\n', s->to_up.end) == NULL)
        return plb__session_fail(s, 414, status);
    return plb__session_fail(s, 431, status);
}

static plb__step plb__session_read_head(plb_session *s)
{
    plb__flow *flow = &s->to_up;
    size_t limit = s->proxy->desc.buffer_size / 4 * 3;
    for (;;) {
        size_t got = 0;
        plb_status status = plb_http1_parse_request(&s->request, flow->buffer, flow->end);
        if (status == PLB_OK && s->request.size <= limit)
            return plb__session_accept(s);
        if (status == PLB_OK || (status == PLB_AGAIN && flow->end >= limit))
            status = PLB_ERR_LIMIT;
        if (status != PLB_AGAIN)
            return plb__session_refuse_head(s, status);
        status = plb__wire_read(&s->down->wire, flow->buffer + flow->end, s->proxy->desc.buffer_size - flow->end, &got);
        if (status == PLB_AGAIN && flow->end == 0)
            return plb__session_idle(s);
        if (status == PLB_AGAIN)
            return PLB__WAIT;
        if (status != PLB_OK)
            return plb__session_leave(s, status == PLB_END ? PLB_CLOSE_GRACEFUL : PLB_CLOSE_ABORT);
        flow->end += got;
    }
}

/* ==== SESSION: a backend ========================================================================================== */

static plb__step plb__session_pick(plb_session *s)
{
    plb_status status;
    memset(&s->pick, 0, sizeof s->pick);
    s->attempt_us = plb__proxy_now_us(s->proxy);
    status = s->proxy->desc.upstream_peer(s->proxy->desc.user, s, &s->pick);
    if (status != PLB_OK)
        return plb__session_fail(s, 502, status);
    s->picked = true;
    s->report.upstream = s->pick.addr;
    s->state = PLB__SESSION_CONNECT;
    return PLB__NEXT;
}

static plb__step plb__session_connect_failed(plb_session *s, plb_status status)
{
    const plb_proxy_desc *desc = &s->proxy->desc;
    bool local = plb_status_is_local(status);
    bool retry = desc->fail_to_connect != NULL && desc->fail_to_connect(desc->user, s, &s->pick, status);
    if (!local && s->tried_count <= desc->max_retries)
        s->tried[s->tried_count++] = s->pick.slot;
    plb__session_drop_up(s, local ? PLB_OUTCOME_CANCELLED : PLB_OUTCOME_CONNECT_ERROR);
    if (retry && s->report.retries < desc->max_retries) {
        s->report.retries++;
        s->state = PLB__SESSION_PICK;
        return PLB__NEXT;
    }
    if (local)
        return plb__session_fail(s, 503, status);
    return plb__session_fail(s, status == PLB_ERR_TIMEOUT ? 504 : 502, status);
}

static void plb__up_on_event(void *user, plb_stream *stream, plb_event event, plb_status status);
static void plb__up_on_timer(void *user);

/* Begins a connection to the pick; s->up is set where one has begun. */
static plb_status plb__session_open_up(plb_session *s)
{
    plb_proxy *proxy = s->proxy;
    const plb_io *io = proxy->desc.port.io;
    plb__up *up = (plb__up *)plb__proxy_alloc(proxy, sizeof *up);
    plb_peer peer;
    plb_handler handler;
    plb_status status;
    if (up == NULL)
        return PLB_ERR_MEMORY;
    memset(up, 0, sizeof *up);
    up->wire.proxy = proxy;
    up->wire.session = s;
    up->wire.timer.fn = plb__up_on_timer;
    up->wire.timer.user = &up->wire;
    up->wire.due_ms = UINT64_MAX;
    up->origin = plb__origin_hold(proxy, &s->pick.addr, s->pick.slot);
    if (up->origin == NULL) {
        plb__proxy_dealloc(proxy, up, sizeof *up);
        return PLB_ERR_MEMORY;
    }
    memset(&peer, 0, sizeof peer);
    peer.addr = s->pick.addr;
    handler.fn = plb__up_on_event;
    handler.user = &up->wire;
    status = io->connect(io->self, &peer, handler, &up->wire.stream);
    if (status != PLB_OK && status != PLB_AGAIN) {
        up->wire.stream = NULL;
        plb__up_close(up, PLB_CLOSE_ABORT);
        return status;
    }
    s->up = up;
    return status;
}

static plb__step plb__session_connect(plb_session *s)
{
    plb_status status;
    s->state = PLB__SESSION_SEND;
    s->up = s->fresh ? NULL : plb__pool_take(s->proxy, &s->pick);
    s->report.upstream_reused = s->up != NULL;
    if (s->up != NULL) {
        s->up->wire.session = s;
        return PLB__NEXT;
    }
    status = plb__session_open_up(s);
    if (status == PLB_OK) {
        plb__wire_watch(&s->up->wire);
        s->up->wire.can_write = true;
        return PLB__NEXT;
    }
    if (status != PLB_AGAIN)
        return plb__session_connect_failed(s, status);
    s->state = PLB__SESSION_CONNECTING;
    plb__wire_deadline(&s->up->wire, s->proxy->desc.connect_ms);
    plb__wire_deadline(&s->down->wire, PLB_FOREVER);
    return PLB__WAIT;
}

/* The connection broke, or the answer makes no sense, or does not come. */
static plb__step plb__session_up_failed(plb_session *s, plb_status status)
{
    bool closed = status != PLB_ERR_TIMEOUT && status != PLB_ERR_PROTOCOL && status != PLB_ERR_LIMIT;
    if (closed && s->up->reused && !s->heard && s->holds_body && plb_http1_is_idempotent(s->request.method)) {
        plb__up_close(s->up, PLB_CLOSE_ABORT);
        s->up = NULL;
        s->fresh = true;
        s->state = PLB__SESSION_CONNECT;
        return PLB__NEXT;
    }
    plb__session_drop_up(s, PLB_OUTCOME_BROKEN);
    return plb__session_fail(s, status == PLB_ERR_TIMEOUT ? 504 : 502, status == PLB_END ? PLB_ERR_RESET : status);
}

/* ==== SESSION: the exchange ======================================================================================= */

static bool plb__session_take_buffer(plb_session *s, char **buffer)
{
    if (*buffer == NULL)
        *buffer = (char *)plb__spares_take(s->proxy, &s->proxy->buffers);
    return *buffer != NULL;
}

/* A request needs a Host: for an HTTP/1.0 client that named none, it is what the program calls the backend. */
static void plb__session_put_host(plb_session *s)
{
    char text[PLB_ADDR_TEXT_MAX];
    plb__head_put_text(s, "Host: ");
    if (s->host.data != NULL) {
        plb__head_put(s, s->host.data, s->host.size);
    } else if (s->pick.name != NULL) {
        plb__head_put_text(s, s->pick.name);
    } else if (s->pick.addr.family == PLB_FAMILY_UNIX) {
        plb__head_put_text(s, "localhost");
    } else {
        plb_addr_format(&s->pick.addr, text, sizeof text);
        plb__head_put_text(s, text);
    }
    plb__head_put_text(s, "\r\n");
}

static void plb__session_put_request(plb_session *s)
{
    unsigned without = 1u << PLB__HEADER_HOST; /* it stands first, and may come from the target */
    s->head_size = 0;
    s->head_full = false;
    plb__head_put(s, s->request.method.data, s->request.method.size);
    plb__head_put_text(s, s->path.data[0] == '?' ? " /" : " ");
    plb__head_put(s, s->path.data, s->path.size);
    plb__head_put_text(s, " HTTP/1.1\r\n");
    plb__session_put_host(s);
    if (s->request.minor == 0) /* RFC 9110 section 10.1.1: an HTTP/1.0 client cannot wait for 100 */
        without |= 1u << PLB__HEADER_EXPECT;
    plb__head_put_headers(s, &s->request, without);
    if (s->request_body.framing == PLB_HTTP1_CHUNKED)
        plb__head_put_text(s, "Transfer-Encoding: chunked\r\n");
}

/* There is a connection: the request is written down, filtered, and on its way. */
static plb__step plb__session_send(plb_session *s)
{
    const plb_proxy_desc *desc = &s->proxy->desc;
    plb_status status = PLB_OK;
    if (!plb__session_take_buffer(s, &s->head))
        return plb__session_fail(s, 503, PLB_ERR_MEMORY);
    plb__session_put_request(s);
    if (s->head_full)
        return plb__session_fail(s, 431, PLB_ERR_LIMIT);
    if (desc->upstream_request_filter != NULL) {
        s->filtering = true;
        status = desc->upstream_request_filter(desc->user, s, &s->pick);
        s->filtering = false;
    }
    plb__head_put_text(s, "\r\n");
    if (status != PLB_OK || s->head_full)
        return plb__session_fail(s, 500, status != PLB_OK ? status : PLB_ERR_LIMIT);
    s->to_up.begin = s->request.size;
    plb__flow_open(&s->to_up, s->request_body, s->request_body.framing == PLB_HTTP1_CHUNKED);
    plb__flow_put(&s->to_up, PLB__OUT_HEAD, s->head, s->head_size, 0);
    s->cannot_send = false;
    s->state = PLB__SESSION_EXCHANGE;
    return PLB__NEXT;
}

/* The answer has been read to its end: the backend is free, though the client may be slow to take it. */
static void plb__session_up_done(plb_session *s)
{
    bool reusable = s->up_keeps_alive && s->to_up.complete && !plb__flow_pending(&s->to_up) && !s->cannot_send &&
                    s->to_down.begin == s->to_down.end;
    plb__up *up = s->up;
    plb__session_end_pick(s, s->report.status >= 500 ? PLB_OUTCOME_SERVER_ERROR : PLB_OUTCOME_SUCCESS);
    s->up = NULL;
    if (!s->to_up.complete) /* what is still to come of the request has nowhere to go */
        s->keep_alive = false;
    if (reusable)
        plb__pool_put(up);
    else
        plb__up_close(up, PLB_CLOSE_GRACEFUL);
}

/* The status line and the headers. 1xx and 204 have no Content-Length (RFC 9110 section 8.6). */
static void plb__session_put_status(plb_session *s, const plb_http1_head *head)
{
    char code[3];
    code[0] = (char)('0' + head->status / 100);
    code[1] = (char)('0' + head->status / 10 % 10);
    code[2] = (char)('0' + head->status % 10);
    s->head_size = 0;
    s->head_full = false;
    plb__head_put_text(s, "HTTP/1.1 ");
    plb__head_put(s, code, sizeof code);
    plb__head_put_text(s, " ");
    plb__head_put(s, head->reason.data, head->reason.size);
    plb__head_put_text(s, "\r\n");
    plb__head_put_headers(s, head, head->status < 200 || head->status == 204 ? 1u << PLB__HEADER_LENGTH : 0);
}

/* A final head: how its body goes on to the client (RFC 9112 sections 6.3 and 9.3). */
static void plb__session_put_response(plb_session *s, const plb_http1_head *head, plb_http1_body body)
{
    bool measured = body.framing == PLB_HTTP1_EMPTY || body.framing == PLB_HTTP1_LENGTH;
    bool rechunk = !measured && s->request.minor >= 1;
    s->up_keeps_alive = plb_http1_keeps_alive(head) && body.framing != PLB_HTTP1_UNTIL_CLOSE;
    s->keep_alive = s->keep_alive && s->to_up.complete && (measured || rechunk) && !s->proxy->draining;
    plb__session_put_status(s, head);
    plb__head_put_text(s, plb__session_connection(s));
    if (rechunk)
        plb__head_put_text(s, "Transfer-Encoding: chunked\r\n");
    plb__head_put_text(s, "\r\n");
    plb__flow_open(&s->to_down, body, rechunk);
}

/* A head that announces the final one: 100, 103. HTTP/1.0 clients do not know them. Nothing may follow it as long as it
   shares the head's buffer. */
static plb__step plb__session_pass_interim(plb_session *s, const plb_http1_head *head)
{
    if (head->status == 101 || plb__flow_pending(&s->to_up)) /* never asked for; or the request is not written yet */
        return plb__session_up_failed(s, PLB_ERR_PROTOCOL);
    if (s->request.minor == 0)
        return PLB__NEXT;
    plb__session_put_status(s, head);
    plb__head_put_text(s, "\r\n");
    if (s->head_full)
        return plb__session_up_failed(s, PLB_ERR_LIMIT);
    plb__flow_put(&s->to_down, PLB__OUT_HEAD, s->head, s->head_size, 0);
    return PLB__NEXT;
}

/* A head has arrived. */
static plb__step plb__session_take_response(plb_session *s, const plb_http1_head *head)
{
    plb_http1_body body;
    plb_status status = plb_http1_response_body(head, plb__session_is_head(s), &body);
    s->to_down.begin += head->size;
    s->response_scanned = 0;
    if (status != PLB_OK)
        return plb__session_up_failed(s, PLB_ERR_PROTOCOL);
    if (head->status < 200)
        return plb__session_pass_interim(s, head);
    if (s->to_up.out[PLB__OUT_HEAD].size > 0) { /* its rest goes, for the buffer is needed; it has its answer */
        memset(s->to_up.out, 0, sizeof s->to_up.out);
        s->cannot_send = true;
    }
    plb__session_put_response(s, head, body);
    if (s->head_full)
        return plb__session_up_failed(s, PLB_ERR_LIMIT);
    plb__flow_put(&s->to_down, PLB__OUT_HEAD, s->head, s->head_size, 0);
    s->report.status = head->status;
    s->report.upstream_us = plb__us_since(s->attempt_us, plb__proxy_now_us(s->proxy));
    return PLB__NEXT;
}

/* More of a head that is not whole yet. */
static plb__step plb__session_read_more(plb_session *s)
{
    plb__flow *flow = &s->to_down;
    size_t room = s->proxy->desc.buffer_size - flow->end, got = 0;
    plb_status status = PLB_ERR_LIMIT;
    if (room == 0 && flow->begin > 0) { /* interim heads have been there */
        memmove(flow->buffer, flow->buffer + flow->begin, flow->end - flow->begin);
        flow->end -= flow->begin;
        flow->begin = 0;
        return PLB__NEXT;
    }
    if (room > 0)
        status = plb__wire_read(&s->up->wire, flow->buffer + flow->end, room, &got);
    if (status == PLB_AGAIN)
        return PLB__WAIT;
    if (status != PLB_OK)
        return plb__session_up_failed(s, status);
    s->heard = true;
    flow->end += got;
    return PLB__NEXT;
}

/* Reads until there is a final head. PLB__NEXT: there is one. */
static plb__step plb__session_receive_head(plb_session *s)
{
    plb__flow *flow = &s->to_down;
    plb__step step = PLB__NEXT;
    while (step == PLB__NEXT && s->state == PLB__SESSION_EXCHANGE && s->report.status == 0) {
        plb_http1_head head;
        plb_status status = plb__flow_write(flow, &s->down->wire); /* an interim head, if any */
        if (status != PLB_OK)
            return status == PLB_AGAIN ? PLB__WAIT : plb__session_abort(s, status);
        if (!s->up->wire.can_read && flow->begin == flow->end && !s->up->wire.ended)
            return PLB__WAIT;
        if (!plb__session_take_buffer(s, &flow->buffer))
            return plb__session_fail(s, 503, PLB_ERR_MEMORY);
        memset(&head, 0, sizeof head);
        head.headers = s->proxy->headers;
        head.header_capacity = s->proxy->desc.max_headers;
        head.scanned = s->response_scanned;
        status = plb_http1_parse_response(&head, flow->buffer + flow->begin, flow->end - flow->begin);
        s->response_scanned = head.scanned;
        if (status == PLB_OK)
            step = plb__session_take_response(s, &head);
        else if (status == PLB_AGAIN)
            step = plb__session_read_more(s);
        else
            step = plb__session_up_failed(s, PLB_ERR_PROTOCOL);
    }
    return step;
}

/* The request goes up. */
static plb__step plb__session_pump_up(plb_session *s)
{
    if (s->up == NULL || s->cannot_send)
        return PLB__WAIT;
    switch (plb__flow_pump(&s->to_up, &s->down->wire, &s->up->wire)) {
    case PLB__PUMP_YIELD:
        plb_timer_set(&s->proxy->timers, &s->resume, 0);
        return PLB__WAIT;
    case PLB__PUMP_TO_FAILED: /* there may be an answer all the same: the read tells */
        s->cannot_send = true;
        s->up->wire.can_read = !s->up->wire.ended;
        return PLB__WAIT;
    case PLB__PUMP_FROM_FAILED:
        if (s->to_up.error == PLB_END || s->to_up.error == PLB_ERR_PROTOCOL || s->to_up.error == PLB_ERR_LIMIT)
            return plb__session_fail(s, 400, s->to_up.error == PLB_END ? PLB_ERR_RESET : s->to_up.error);
        return plb__session_abort(s, s->to_up.error);
    default:
        return PLB__WAIT;
    }
}

/* The answer comes down. */
static plb__step plb__session_pump_down(plb_session *s)
{
    plb__pump result;
    if (s->report.status == 0) {
        plb__step step = plb__session_receive_head(s);
        if (step != PLB__NEXT || s->state != PLB__SESSION_EXCHANGE)
            return step;
    }
    result = plb__flow_pump(&s->to_down, s->up ? &s->up->wire : NULL, &s->down->wire);
    if (result == PLB__PUMP_TO_FAILED)
        return plb__session_abort(s, s->to_down.error);
    if (result == PLB__PUMP_FROM_FAILED)
        return plb__session_up_failed(s, s->to_down.error);
    if (s->to_down.complete && s->up != NULL)
        plb__session_up_done(s);
    if (result == PLB__PUMP_DONE)
        return plb__session_finish(s);
    if (result == PLB__PUMP_YIELD)
        plb_timer_set(&s->proxy->timers, &s->resume, 0);
    return PLB__WAIT;
}

/* Takes in what the client sends behind its request (the next one), and hears if it is gone. */
static plb__step plb__session_look_ahead(plb_session *s)
{
    plb__flow *flow = &s->to_up;
    size_t got = 0;
    plb_status status = PLB_AGAIN;
    if (flow->complete && flow->end < s->proxy->desc.buffer_size && s->down->wire.can_read)
        status = plb__wire_read(&s->down->wire, flow->buffer + flow->end, s->proxy->desc.buffer_size - flow->end, &got);
    if (status == PLB_OK)
        flow->end += got;
    if (status == PLB_OK || status == PLB_AGAIN || status == PLB_END)
        return PLB__WAIT;
    return plb__session_abort(s, status);
}

/* Who is waited for, and how long. Called when something moved: the deadlines begin anew. */
static void plb__session_deadlines(plb_session *s)
{
    const plb_proxy_desc *desc = &s->proxy->desc;
    bool sending = s->up != NULL && !s->cannot_send && plb__flow_pending(&s->to_up);
    bool writing = plb__flow_pending(&s->to_down);
    bool reading = s->up != NULL && !s->cannot_send && !s->to_up.complete && !sending;
    uint32_t down_ms = PLB_FOREVER, up_ms = PLB_FOREVER;
    if (writing)
        down_ms = desc->client_write_ms;
    else if (reading)
        down_ms = desc->client_read_ms;
    if (sending)
        up_ms = desc->upstream_write_ms;
    else if (!writing && (!reading || s->report.status != 0))
        up_ms = desc->upstream_read_ms;
    plb__wire_deadline(&s->down->wire, down_ms);
    if (s->up != NULL)
        plb__wire_deadline(&s->up->wire, up_ms);
}

static plb__step plb__session_exchange(plb_session *s)
{
    plb__step step = plb__session_pump_up(s);
    if (step == PLB__WAIT)
        step = plb__session_pump_down(s);
    if (step == PLB__WAIT)
        step = plb__session_look_ahead(s);
    if (step == PLB__WAIT)
        plb__session_deadlines(s);
    return step;
}

/* ==== EVENTS ====================================================================================================== */

static void plb__session_run(plb_session *s)
{
    plb__step step = PLB__NEXT;
    plb_timers *timers = &s->proxy->timers;
    int round;
    for (round = 0; step == PLB__NEXT; round++) {
        if (round == PLB__PUMP_ROUNDS) {
            plb_timer_set(timers, &s->resume, 0);
            return;
        }
        switch (s->state) {
        case PLB__SESSION_HEAD:
            step = plb__session_read_head(s);
            break;
        case PLB__SESSION_PICK:
            step = plb__session_pick(s);
            break;
        case PLB__SESSION_CONNECT:
            step = plb__session_connect(s);
            break;
        case PLB__SESSION_CONNECTING:
            step = PLB__WAIT;
            break;
        case PLB__SESSION_SEND:
            step = plb__session_send(s);
            break;
        case PLB__SESSION_EXCHANGE:
            step = plb__session_exchange(s);
            break;
        case PLB__SESSION_ANSWER:
            step = plb__session_answer(s);
            break;
        }
    }
}

static void plb__session_resume(void *user)
{
    plb_session *s = (plb_session *)user;
    plb__proxy_now_ms(s->proxy);
    plb__session_run(s);
}

/* The client's first byte is here: from now on there is a request. */
static void plb__session_begin(plb__down *down)
{
    plb_proxy *proxy = down->wire.proxy;
    plb_session *s = (plb_session *)plb__spares_take(proxy, &proxy->sessions);
    char *buffer = s != NULL ? (char *)plb__spares_take(proxy, &proxy->buffers) : NULL;
    if (buffer == NULL) {
        plb__spares_give(proxy, &proxy->sessions, s);
        plb__down_close(down, PLB_CLOSE_ABORT);
        return;
    }
    memset(s, 0, sizeof *s);
    s->proxy = proxy;
    s->down = down;
    s->to_up.buffer = buffer;
    plb__session_reset(s);
    down->wire.session = s;
    proxy->active++;
    plb__wire_deadline(&down->wire, proxy->desc.header_ms);
    plb__session_run(s);
}

static void plb__down_run(plb__down *down)
{
    if (down->wire.session != NULL)
        plb__session_run(down->wire.session);
    else if (down->lingering)
        plb__down_linger(down);
    else if (down->wire.can_read)
        plb__session_begin(down);
}

static void plb__wire_on_event(plb__wire *wire, plb_event event)
{
    plb__proxy_now_ms(wire->proxy);
    wire->can_read = wire->can_read || event == PLB_EVENT_READ;
    wire->can_write = wire->can_write || event == PLB_EVENT_WRITE;
}

static void plb__down_on_event(void *user, plb_stream *stream, plb_event event, plb_status status)
{
    plb__wire *wire = (plb__wire *)user;
    (void)stream;
    (void)status;
    plb__wire_on_event(wire, event);
    plb__down_run(plb__down_of(wire));
}

static void plb__down_on_timer(void *user)
{
    plb__wire *wire = (plb__wire *)user;
    plb_session *s = wire->session;
    bool slow_request;
    if (!plb__wire_is_due(wire))
        return;
    if (s == NULL) { /* idle, or lingering */
        plb__down_close(plb__down_of(wire), PLB_CLOSE_GRACEFUL);
        return;
    }
    slow_request = s->state == PLB__SESSION_HEAD || (s->state == PLB__SESSION_EXCHANGE && s->report.status == 0);
    if (!slow_request)
        plb__session_abort(s, PLB_ERR_TIMEOUT);
    else if (plb__session_fail(s, 408, PLB_ERR_TIMEOUT) == PLB__NEXT)
        plb__session_run(s);
}

static void plb__up_on_event(void *user, plb_stream *stream, plb_event event, plb_status status)
{
    plb__wire *wire = (plb__wire *)user;
    plb_session *s = wire->session;
    (void)stream;
    plb__wire_on_event(wire, event);
    if (s == NULL) { /* an idle one ended, or talks unasked */
        plb__pool_drop(plb__up_of(wire));
        return;
    }
    if (event == PLB_EVENT_CONNECT) {
        if (status != PLB_OK) {
            if (plb__session_connect_failed(s, status) == PLB__NEXT)
                plb__session_run(s);
            return;
        }
        wire->can_write = true;
        plb__wire_watch(wire);
        s->state = PLB__SESSION_SEND;
    }
    plb__session_run(s);
}

static void plb__up_on_timer(void *user)
{
    plb__wire *wire = (plb__wire *)user;
    plb_session *s = wire->session;
    plb__step step;
    if (!plb__wire_is_due(wire))
        return;
    if (s == NULL) {
        plb__pool_drop(plb__up_of(wire));
        return;
    }
    if (s->state == PLB__SESSION_CONNECTING)
        step = plb__session_connect_failed(s, PLB_ERR_TIMEOUT);
    else
        step = plb__session_up_failed(s, PLB_ERR_TIMEOUT);
    if (step == PLB__NEXT)
        plb__session_run(s);
}

/* ==== LISTENERS =================================================================================================== */

static void plb__listener_close(plb__listener *listener)
{
    plb_proxy *proxy = listener->proxy;
    const plb_io *io = proxy->desc.port.io;
    plb__listener **at = &proxy->listeners;
    while (*at != listener)
        at = &(*at)->next;
    *at = listener->next;
    io->close(io->self, listener->stream, PLB_CLOSE_GRACEFUL);
    plb__proxy_dealloc(proxy, listener, sizeof *listener);
}

static plb__down *plb__down_new(plb_proxy *proxy)
{
    plb__down *down = (plb__down *)plb__proxy_alloc(proxy, sizeof *down);
    if (down == NULL)
        return NULL;
    memset(down, 0, sizeof *down);
    down->wire.proxy = proxy;
    down->wire.timer.fn = plb__down_on_timer;
    down->wire.timer.user = &down->wire;
    down->wire.can_write = true;
    return down;
}

static void plb__down_open(plb__down *down)
{
    plb_proxy *proxy = down->wire.proxy;
    down->next = proxy->downs;
    if (down->next != NULL)
        down->next->prev = down;
    proxy->downs = down;
    proxy->connections++;
    plb__wire_deadline(&down->wire, proxy->desc.header_ms);
    plb__wire_watch(&down->wire);
    plb__down_run(down);
}

/* Accepts one client. PLB_OK: there may be more. PLB_AGAIN: not now. Else the listener is broken. */
static plb_status plb__listener_accept_one(plb__listener *listener)
{
    plb_proxy *proxy = listener->proxy;
    const plb_io *io = proxy->desc.port.io;
    plb__down *down = NULL;
    plb_handler handler;
    plb_status status;
    if (proxy->connections < proxy->desc.max_connections)
        down = plb__down_new(proxy);
    if (down == NULL) { /* goes on when a client leaves, or memory has come back */
        proxy->accept_paused = true;
        if (proxy->connections < proxy->desc.max_connections)
            plb__accept_resume(proxy, PLB__ACCEPT_PAUSE_MS);
        return PLB_AGAIN;
    }
    handler.fn = plb__down_on_event;
    handler.user = &down->wire;
    status = io->accept(io->self, listener->stream, handler, &down->wire.stream);
    if (status != PLB_OK) {
        plb__proxy_dealloc(proxy, down, sizeof *down);
        return status;
    }
    plb__down_open(down);
    return PLB_OK;
}

/* Accepts all that wait. PLB_OK, or how the listener broke; it is closed then. */
static plb_status plb__listener_accept_all(plb__listener *listener)
{
    plb_proxy *proxy = listener->proxy;
    plb_status status;
    plb__proxy_now_ms(proxy);
    do {
        status = plb__listener_accept_one(listener);
    } while (status == PLB_OK && !proxy->draining);
    if (status == PLB_AGAIN || proxy->draining) /* a hook that drains closes the listeners: this one is gone */
        return PLB_OK;
    plb__listener_close(listener);
    return status;
}

static void plb__listener_accept(plb__listener *listener)
{
    const plb_proxy_desc *desc = &listener->proxy->desc;
    plb_addr addr = listener->addr;
    plb_status status = plb__listener_accept_all(listener);
    if (status != PLB_OK && desc->listener_failed != NULL)
        desc->listener_failed(desc->user, &addr, status);
}

static void plb__listener_on_event(void *user, plb_stream *stream, plb_event event, plb_status status)
{
    (void)stream;
    (void)event;
    (void)status;
    plb__listener_accept((plb__listener *)user);
}

static void plb__accept_on_timer(void *user)
{
    plb_proxy *proxy = (plb_proxy *)user;
    plb__listener *listener = proxy->listeners, *next;
    proxy->accept_paused = false;
    for (; listener != NULL && !proxy->draining; listener = next) {
        next = listener->next;
        plb__listener_accept(listener);
    }
}

/* ==== PUBLIC ====================================================================================================== */

static uint32_t plb__proxy_poll(void *user)
{
    plb_proxy *proxy = (plb_proxy *)user;
    plb__proxy_now_ms(proxy);
    plb_timers_run(&proxy->timers);
    return plb_timers_delay(&proxy->timers);
}

static void plb__default(uint32_t *value, uint32_t otherwise)
{
    if (*value == 0)
        *value = otherwise;
}

static void plb__proxy_defaults(plb_proxy_desc *desc)
{
    desc->allocator = plb_allocator_or_default(desc->allocator);
    plb__default(&desc->max_connections, 1024);
    plb__default(&desc->max_retries, 16);
    plb__default(&desc->max_headers, 100);
    plb__default(&desc->buffer_size, 16384);
    plb__default(&desc->spare_requests, 32);
    plb__default(&desc->max_idle, 1024);
    plb__default(&desc->max_idle_per_backend, 128);
    plb__default(&desc->header_ms, 10000);
    plb__default(&desc->keepalive_ms, 60000);
    plb__default(&desc->client_read_ms, 60000);
    plb__default(&desc->client_write_ms, 60000);
    plb__default(&desc->linger_ms, 2000);
    plb__default(&desc->connect_ms, 1000);
    plb__default(&desc->upstream_read_ms, 60000);
    plb__default(&desc->upstream_write_ms, 60000);
    plb__default(&desc->upstream_idle_ms, 60000);
}

PLB_API plb_status plb_proxy_create(const plb_proxy_desc *desc, plb_proxy **out)
{
    plb_proxy_desc full = *desc;
    plb_proxy *proxy;
    *out = NULL;
    plb__proxy_defaults(&full);
    if (full.port.io == NULL || full.port.clock == NULL || full.upstream_peer == NULL || full.buffer_size < 1024 ||
        full.max_retries > 255)
        return PLB_ERR_ARGUMENT;
    proxy = (plb_proxy *)full.allocator.alloc(full.allocator.user, sizeof *proxy);
    if (proxy == NULL)
        return PLB_ERR_MEMORY;
    memset(proxy, 0, sizeof *proxy);
    proxy->desc = full;
    proxy->task.poll = plb__proxy_poll;
    proxy->task.user = proxy;
    proxy->accept_timer.fn = plb__accept_on_timer;
    proxy->accept_timer.user = proxy;
    proxy->sessions.block_size = sizeof(plb_session) + full.max_headers * sizeof(plb_http1_header) +
                                 (full.max_retries + (size_t)1) * sizeof(uint32_t);
    proxy->sessions.limit = full.spare_requests;
    proxy->buffers.block_size = full.buffer_size;
    proxy->buffers.limit = full.spare_requests * 3;
    proxy->headers = (plb_http1_header *)plb__proxy_alloc(proxy, full.max_headers * sizeof(plb_http1_header));
    proxy->scratch = (char *)plb__proxy_alloc(proxy, full.buffer_size);
    if (proxy->headers == NULL || proxy->scratch == NULL) {
        plb_proxy_destroy(proxy);
        return PLB_ERR_MEMORY;
    }
    plb__proxy_now_ms(proxy);
    *out = proxy;
    return PLB_OK;
}

PLB_API void plb_proxy_destroy(plb_proxy *proxy)
{
    plb_allocator allocator;
    if (proxy == NULL)
        return;
    plb_proxy_drain(proxy);
    while (proxy->downs != NULL) {
        if (proxy->downs->wire.session != NULL)
            plb__session_abort(proxy->downs->wire.session, PLB_ERR_CANCELLED);
        else
            plb__down_close(proxy->downs, PLB_CLOSE_ABORT);
    }
    plb_timer_stop(&proxy->timers, &proxy->accept_timer);
    plb__spares_clear(proxy, &proxy->sessions);
    plb__spares_clear(proxy, &proxy->buffers);
    allocator = proxy->desc.allocator;
    if (proxy->headers != NULL)
        allocator.dealloc(allocator.user, proxy->headers, proxy->desc.max_headers * sizeof(plb_http1_header));
    if (proxy->scratch != NULL)
        allocator.dealloc(allocator.user, proxy->scratch, proxy->desc.buffer_size);
    allocator.dealloc(allocator.user, proxy, sizeof *proxy);
}

PLB_API plb_status plb_proxy_listen(plb_proxy *proxy, const plb_listen_desc *desc, plb_addr *bound)
{
    const plb_io *io = proxy->desc.port.io;
    plb__listener *listener;
    plb_handler handler;
    plb_stream_info info;
    plb_status status;
    if (proxy->draining)
        return PLB_ERR_CANCELLED;
    listener = (plb__listener *)plb__proxy_alloc(proxy, sizeof *listener);
    if (listener == NULL)
        return PLB_ERR_MEMORY;
    handler.fn = plb__listener_on_event;
    handler.user = listener;
    status = io->listen(io->self, desc, handler, &listener->stream);
    if (status != PLB_OK) {
        plb__proxy_dealloc(proxy, listener, sizeof *listener);
        return status;
    }
    listener->proxy = proxy;
    listener->next = proxy->listeners;
    proxy->listeners = listener;
    status = io->info(io->self, listener->stream, &info);
    if (status != PLB_OK) {
        plb__listener_close(listener);
        return status;
    }
    listener->addr = info.local;
    if (bound != NULL)
        *bound = info.local;
    return plb__listener_accept_all(listener);
}

PLB_API void plb_proxy_drain(plb_proxy *proxy)
{
    plb__down *down = proxy->downs, *next;
    proxy->draining = true;
    while (proxy->listeners != NULL)
        plb__listener_close(proxy->listeners);
    while (proxy->idle_newest != NULL)
        plb__pool_drop(proxy->idle_newest);
    for (; down != NULL; down = next) {
        next = down->next;
        if (down->wire.session == NULL && !down->lingering)
            plb__down_close(down, PLB_CLOSE_GRACEFUL);
    }
}

PLB_API uint32_t plb_proxy_connections(const plb_proxy *proxy)
{
    return proxy->connections;
}

PLB_API uint32_t plb_proxy_active(const plb_proxy *proxy)
{
    return proxy->active;
}

PLB_API uint32_t plb_proxy_idle(const plb_proxy *proxy)
{
    return proxy->idle_count;
}

PLB_API plb_task *plb_proxy_task(plb_proxy *proxy)
{
    return &proxy->task;
}

PLB_API const plb_http1_head *plb_session_request(const plb_session *session)
{
    return &session->request;
}

PLB_API plb_status plb_session_client(const plb_session *session, plb_addr *out)
{
    const plb_io *io = session->proxy->desc.port.io;
    plb_stream_info info;
    plb_status status = io->info(io->self, session->down->wire.stream, &info);
    *out = info.remote;
    return status;
}

PLB_API const uint32_t *plb_session_tried(const plb_session *session, size_t *count)
{
    *count = session->tried_count;
    return session->tried;
}

PLB_API void *plb_session_context(const plb_session *session)
{
    return session->context;
}

PLB_API void plb_session_set_context(plb_session *session, void *context)
{
    session->context = context;
}

#endif /* PLB__PROXY_IMPLEMENTED */
#endif /* PLB_PROXY_IMPLEMENTATION */
