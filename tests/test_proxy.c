/* The reverse proxy, in a simulated network: scripted clients, scripted backends, faults one after another. */
#include "../pingora_lb.h"
#define PLB_PROXY_IMPLEMENTATION
#include "../ports/plb_proxy.h"
#define SIM_IMPLEMENTATION
#include "sim.h"
#include <greatest.h>

#define BACKENDS 3

/* ==== A WORLD: clients, one proxy, backends ======================================================================= */

typedef struct world {
    sim *s;
    sim_alloc memory;
    plb_proxy_desc desc;
    plb_proxy *proxy;
    plb_addr front;
    plb_addr backends[BACKENDS];

    /* what upstream_peer does: walks the backends, starting over at `next_backend`, past those that were tried */
    uint32_t next_backend;
    plb_status peer_status;
    const char *backend_name;
    bool retry;        /* fail_to_connect's answer */
    size_t tried_seen; /* at the last call of upstream_peer */
    void (*filter)(struct world *w, plb_session *session);
    plb_status filter_status;

    plb_balancer *lb; /* unless NULL: upstream_peer asks it */

    /* what happened */
    uint32_t picks, connect_failures, logs, listener_failures;
    plb_status late_edit; /* what a change of the request is answered in logging */
    bool context_kept;    /* logging finds what upstream_peer set */
    plb_status connect_status;
    plb_session_report report;
    char logged_method[16];

    /* what each backend answers to each request, and what it was sent */
    const char *reply;
    bool close_after; /* it ends the connection behind the reply */
    uint32_t requests;
    char seen[65536]; /* of the last request's connection: all that arrived */
    size_t seen_size;
} world;

static plb_status pick_backend(void *user, plb_session *session, plb_pick *pick)
{
    world *w = (world *)user;
    const uint32_t *tried = plb_session_tried(session, &w->tried_seen);
    uint32_t slot = w->next_backend;
    size_t i;
    w->picks++;
    plb_session_set_context(session, &w->picks);
    pick->name = w->backend_name;
    if (w->lb) {
        plb_request request;
        memset(&request, 0, sizeof request);
        request.exclude = plb_session_tried(session, &request.exclude_count);
        return plb_begin(w->lb, &request, pick);
    }
    for (i = 0; i < w->tried_seen; i++)
        if (tried[i] == slot)
            slot = (slot + 1) % BACKENDS;
    pick->addr = w->backends[slot];
    pick->slot = slot;
    return w->peer_status;
}

static plb_status filter_request(void *user, plb_session *session, const plb_pick *pick)
{
    world *w = (world *)user;
    (void)pick;
    if (w->filter)
        w->filter(w, session);
    return w->filter_status;
}

static bool ask_for_retry(void *user, plb_session *session, const plb_pick *pick, plb_status status)
{
    world *w = (world *)user;
    (void)session;
    (void)pick;
    w->connect_failures++;
    w->connect_status = status;
    return w->retry;
}

static void log_request(void *user, plb_session *session, const plb_session_report *report)
{
    world *w = (world *)user;
    plb_text method = plb_session_request(session)->method;
    plb_addr client;
    size_t size = method.size < sizeof w->logged_method - 1 ? method.size : sizeof w->logged_method - 1;
    if (size > 0)
        memcpy(w->logged_method, method.data, size);
    w->logged_method[size] = '\0';
    w->logs++;
    w->late_edit = plb_session_add_header(session, "X", "y");
    w->context_kept = plb_session_context(session) == &w->picks;
    w->report = *report;
    plb_session_client(session, &client);
}

static void count_listener_failure(void *user, const plb_addr *addr, plb_status status)
{
    world *w = (world *)user;
    if (status != PLB_OK && plb_addr_compare(addr, &w->front) == 0)
        w->listener_failures++;
}

/* How long is the request at the start of `bytes`? 0: it is not whole yet. */
static size_t whole_request(const char *bytes, size_t count)
{
    plb_http1_header headers[64];
    plb_http1_head head;
    plb_http1_body body;
    plb_http1_chunked chunked;
    size_t at, used;
    memset(&head, 0, sizeof head);
    memset(&chunked, 0, sizeof chunked);
    head.headers = headers;
    head.header_capacity = 64;
    if (plb_http1_parse_request(&head, bytes, count) != PLB_OK || plb_http1_request_body(&head, &body) != PLB_OK)
        return 0;
    if (body.framing == PLB_HTTP1_LENGTH)
        return count - head.size >= body.length ? head.size + (size_t)body.length : 0;
    if (body.framing == PLB_HTTP1_EMPTY)
        return head.size;
    for (at = head.size;; at += used) {
        plb_text data;
        plb_status status = plb_http1_chunked_next(&chunked, bytes + at, count - at, &used, &data);
        if (status == PLB_END)
            return at + used;
        if (status != PLB_OK)
            return 0;
    }
}

/* A backend that answers each whole request with w->reply. */
static size_t backend(void *user, sim_conn *conn, const char *bytes, size_t count)
{
    world *w = (world *)user;
    size_t consumed = 0, size;
    while (count > consumed && (size = whole_request(bytes + consumed, count - consumed)) > 0) {
        if (size < sizeof w->seen) {
            memcpy(w->seen, bytes + consumed, size);
            w->seen[w->seen_size = size] = '\0';
        }
        consumed += size;
        w->requests++;
        if (w->reply)
            sim_send_text(conn, w->reply);
        if (w->close_after)
            sim_close(conn);
    }
    if (conn->ended)
        sim_close(conn);
    return consumed;
}

static void world_init(world *w)
{
    int i;
    memset(w, 0, sizeof *w);
    w->s = sim_create(1);
    w->front = sim_addr("10.0.0.1:80");
    for (i = 0; i < BACKENDS; i++) {
        char text[32];
        snprintf(text, sizeof text, "10.0.1.%d:8080", i + 1);
        w->backends[i] = sim_addr(text);
        sim_serve(w->s, &w->backends[i], backend, w);
    }
    w->reply = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
    w->desc.port = sim_port(w->s);
    w->desc.allocator = sim_allocator(&w->memory);
    w->desc.user = w;
    w->desc.upstream_peer = pick_backend;
    w->desc.upstream_request_filter = filter_request;
    w->desc.fail_to_connect = ask_for_retry;
    w->desc.logging = log_request;
    w->desc.listener_failed = count_listener_failure;
    w->desc.buffer_size = 4096;
}

static plb_status world_start(world *w)
{
    plb_listen_desc listen;
    plb_status status = plb_proxy_create(&w->desc, &w->proxy);
    if (status != PLB_OK)
        return status;
    sim_add_task(w->s, plb_proxy_task(w->proxy));
    memset(&listen, 0, sizeof listen);
    listen.addr = w->front;
    return plb_proxy_listen(w->proxy, &listen, NULL);
}

static world *world_new(void)
{
    world *w = (world *)malloc(sizeof *w);
    world_init(w);
    return w;
}

/* Ends it; returns how much was left behind. */
static size_t world_end(world *w)
{
    size_t left;
    if (w->proxy)
        sim_remove_task(w->s, plb_proxy_task(w->proxy));
    plb_proxy_destroy(w->proxy);
    left = sim_alloc_leaks(&w->memory) + sim_destroy(w->s);
    free(w);
    return left;
}

static const char *inbox(const sim_conn *conn)
{
    return conn->inbox.data ? conn->inbox.data + conn->inbox.start : "";
}

static sim_conn *say(world *w, const char *text)
{
    sim_conn *conn = sim_dial(w->s, &w->front, NULL, NULL);
    sim_send_text(conn, text);
    return conn;
}

static bool starts(const char *text, const char *start)
{
    return strncmp(text, start, strlen(start)) == 0;
}

static bool ends(const char *text, const char *end)
{
    return strlen(text) >= strlen(end) && strcmp(text + strlen(text) - strlen(end), end) == 0;
}

static uint32_t connects(world *w)
{
    uint32_t i, sum = 0;
    for (i = 0; i < BACKENDS; i++)
        sum += sim_host(w->s, &w->backends[i])->connects;
    return sum;
}

/* What one request brings in a new world whose backends answer `reply`. */
static const char *exchange(world *w, const char *request, const char *reply)
{
    sim_conn *conn;
    if (w->proxy == NULL && world_start(w) != PLB_OK)
        return "no proxy";
    w->reply = reply;
    conn = say(w, request);
    sim_run_for(w->s, 100);
    return inbox(conn);
}

#define OK_REPLY "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
#define GET      "GET / HTTP/1.1\r\nHost: a\r\n\r\n"

/* ==== FORWARDING ================================================================================================== */

TEST a_request_goes_up_and_its_answer_comes_down(void)
{
    world *w = world_new();
    const char *got =
        exchange(w, "GET /x?y HTTP/1.1\r\nhOST: a.b\r\nX-One: 1\r\nX-One: 2\r\n\r\n",
                 "HTTP/1.1 404 Gone Fishing\r\nContent-Length: 5\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\nhello");
    ASSERT_STR_EQ("GET /x?y HTTP/1.1\r\nHost: a.b\r\nX-One: 1\r\nX-One: 2\r\n\r\n", w->seen);
    ASSERT_STR_EQ("HTTP/1.1 404 Gone Fishing\r\nContent-Length: 5\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\nhello", got);
    ASSERT_EQ(1u, w->logs);
    ASSERT_EQ(404, w->report.status);
    ASSERT_EQ(PLB_OK, w->report.error);
    ASSERT_EQ(5u, w->report.response_bytes);
    ASSERT_EQ(0, plb_addr_compare(&w->backends[0], &w->report.upstream));
    ASSERT_STR_EQ("GET", w->logged_method);
    ASSERT(w->context_kept);
    ASSERT_EQ(PLB_ERR_ARGUMENT, w->late_edit);
    ASSERT_EQ(0u, plb_proxy_active(w->proxy));
    ASSERT_EQ(1u, plb_proxy_connections(w->proxy));
    ASSERT_EQ(1u, plb_proxy_idle(w->proxy));
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

TEST hop_by_hop_headers_end_here(void)
{
    world *w = world_new();
    const char *got =
        exchange(w,
                 "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nConnection: X-Mine, Host, upgrade\r\n"
                 "Keep-Alive: 5\r\nProxy-Connection: x\r\nTE: trailers\r\nTrailer: x\r\nUpgrade: h2c\r\n"
                 "x-mine: secret\r\nX-Other: stays\r\n\r\n",
                 "HTTP/1.1 200 OK\r\nConnection: x-mine\r\nX-Mine: secret\r\nKeep-Alive: 5\r\n"
                 "Content-Length: 0\r\nX-Other: stays\r\n\r\n");
    ASSERT_STR_EQ("GET / HTTP/1.1\r\nHost: a\r\nX-Other: stays\r\n\r\n", w->seen);
    ASSERT_STR_EQ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Other: stays\r\n\r\n", got);
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

TEST a_client_cannot_take_away_what_frames_the_request(void)
{
    world *w = world_new();
    exchange(
        w, "POST / HTTP/1.1\r\nHost: a\r\nConnection: content-length, host, x\r\nX: 1\r\nContent-Length: 3\r\n\r\nabc",
        OK_REPLY);
    ASSERT_STR_EQ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", w->seen);
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

TEST an_absolute_target_names_the_host(void)
{
    world *w = world_new();
    exchange(w, "GET HTTP://real:81/p HTTP/1.1\r\nHost: other\r\n\r\n", OK_REPLY);
    ASSERT_STR_EQ("GET /p HTTP/1.1\r\nHost: real:81\r\n\r\n", w->seen);
    exchange(w, "GET http://real?q HTTP/1.1\r\nHost: other\r\n\r\n", OK_REPLY);
    ASSERT_STR_EQ("GET /?q HTTP/1.1\r\nHost: real\r\n\r\n", w->seen);
    exchange(w, "OPTIONS http://real HTTP/1.1\r\nHost: other\r\n\r\n", OK_REPLY);
    ASSERT_STR_EQ("OPTIONS * HTTP/1.1\r\nHost: real\r\n\r\n", w->seen);
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

static void edit_request(world *w, plb_session *session)
{
    (void)w;
    plb_session_set_header(session, "HOST", "one.one.one.one");
    plb_session_add_header(session, "X-Added", "1");
    plb_session_remove_header(session, "x-gone");
    plb_session_set_target(session, "/new");
}

TEST the_filter_changes_what_goes_up(void)
{
    world *w = world_new();
    w->filter = edit_request;
    exchange(w, "GET /old/path HTTP/1.1\r\nHost: a\r\nX-Gone: 1\r\nX-Gone-Not: 2\r\nx-gone:\r\n\r\n", OK_REPLY);
    ASSERT_STR_EQ("GET /new HTTP/1.1\r\nX-Gone-Not: 2\r\nHOST: one.one.one.one\r\nX-Added: 1\r\n\r\n", w->seen);
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

static plb_status edits[10];

static void edit_wrongly(world *w, plb_session *session)
{
    static char large[8192];
    (void)w;
    memset(large, 'a', sizeof large - 1);
    edits[0] = plb_session_add_header(session, "X", "a\r\nEvil: 1");
    edits[1] = plb_session_add_header(session, "X Y", "a");
    edits[2] = plb_session_add_header(session, "", "a");
    edits[3] = plb_session_set_header(session, "Content-Length", "1");
    edits[4] = plb_session_remove_header(session, "transfer-encoding");
    edits[5] = plb_session_set_target(session, "/a b");
    edits[6] = plb_session_set_target(session, "");
    edits[7] = plb_session_add_header(session, "X", large);
    edits[8] = plb_session_set_target(session, large);
    edits[9] = plb_session_set_header(session, "X", "a\nb");
}

TEST the_filter_cannot_break_the_request(void)
{
    world *w = world_new();
    size_t i;
    w->filter = edit_wrongly;
    exchange(w, GET, OK_REPLY);
    for (i = 0; i < 10; i++)
        ASSERT_EQ(i == 7 || i == 8 ? PLB_ERR_LIMIT : PLB_ERR_ARGUMENT, edits[i]);
    ASSERT_STR_EQ(GET, w->seen);
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

/* ==== WHAT IS REFUSED ============================================================================================= */

TEST what_could_smuggle_never_goes_up(void)
{
    static const struct {
        const char *request, *answer;
    } cases[] = {
        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"},
        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", "400"},
        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello", "400"},
        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello", "400"},
        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 5\r\n\r\nhello", "400"},
        {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", "501"},
        {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n", "501"},
        {"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"},
        {"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n", "400"},
        {"GET / HTTP/1.1\nHost: a\n\n", "400"},
        {"GET / HTTP/1.1\r\n\r\n", "400"},
        {"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "400"},
        {"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", "400"},
        {"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "400"},
        {"GET http:// HTTP/1.1\r\nHost: a\r\n\r\n", "400"},
        {"GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", "400"},
        {"GET a HTTP/1.1\r\nHost: a\r\n\r\n", "400"},
        {"GET * HTTP/1.1\r\nHost: a\r\n\r\n", "400"},
        {"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", "501"},
        {"GET / HTTP/2.0\r\nHost: a\r\n\r\n", "505"},
    };
    size_t i;
    for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        world *w = world_new();
        const char *got = exchange(w, cases[i].request, OK_REPLY);
        ASSERTm(cases[i].request, starts(got, "HTTP/1.1 ") && starts(got + 9, cases[i].answer));
        ASSERTm(cases[i].request, strstr(got, "\r\nConnection: close\r\n") != NULL);
        ASSERT_EQm(cases[i].request, 0u, w->requests);
        ASSERT_EQm(cases[i].request, 1u, w->logs);
        sim_run_for(w->s, 3000);
        ASSERT_EQm(cases[i].request, 0u, plb_proxy_connections(w->proxy));
        ASSERT_EQ(0u, world_end(w));
    }
    PASS();
}

TEST a_malformed_chunk_ends_the_request(void)
{
    world *w = world_new();
    const char *got = exchange(w,
                               "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
                               "3\r\nabcX0\r\n\r\n",
                               OK_REPLY);
    ASSERT(starts(got, "HTTP/1.1 400 "));
    ASSERT_EQ(0u, w->requests);
    ASSERT_EQ(0u, plb_proxy_idle(w->proxy));
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

TEST heads_are_limited(void)
{
    static char text[16384];
    const char *got;
    world *w = world_new();
    int i;
    memset(text, 0, sizeof text);
    strcpy(text, "GET /");
    memset(text + 5, 'a', 4096);
    got = exchange(w, text, OK_REPLY);
    ASSERT(starts(got, "HTTP/1.1 414 "));
    strcpy(text, "GET / HTTP/1.1\r\nHost: a\r\nX: ");
    memset(text + strlen(text), 'a', 4096);
    got = exchange(w, text, OK_REPLY);
    ASSERT(starts(got, "HTTP/1.1 431 "));
    memset(text, 0, sizeof text);
    strcpy(text, "GET / HTTP/1.1\r\nHost: a\r\n");
    for (i = 0; i < 100; i++)
        strcat(text, "X: y\r\n");
    strcat(text, "\r\n");
    got = exchange(w, text, OK_REPLY);
    ASSERT(starts(got, "HTTP/1.1 431 "));
    strcpy(text, "GET / HTTP/1.1\r\nHost: a\r\nConnection: ");
    for (i = 0; i < 65; i++)
        strcat(text, "a,");
    strcat(text, "\r\n\r\n");
    got = exchange(w, text, OK_REPLY);
    ASSERT(starts(got, "HTTP/1.1 431 "));
    ASSERT_EQ(0u, w->requests);
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

/* ==== CONNECTIONS THAT ARE KEPT =================================================================================== */

TEST connections_are_used_again_on_both_sides(void)
{
    world *w = world_new();
    sim_conn *conn;
    int i;
    ASSERT_EQ(PLB_OK, world_start(w));
    conn = sim_dial(w->s, &w->front, NULL, NULL);
    for (i = 0; i < 10; i++) {
        sim_send_text(conn, GET);
        sim_run_for(w->s, 50);
    }
    ASSERT_EQ(10u, w->requests);
    ASSERT_EQ(1u, connects(w));
    ASSERT(w->report.upstream_reused);
    ASSERT_EQ(10 * strlen(OK_REPLY), conn->inbox.size);
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

TEST pipelined_requests_are_answered_in_order(void)
{
    world *w = world_new();
    char text[4096] = "";
    sim_conn *conn;
    int i;
    ASSERT_EQ(PLB_OK, world_start(w));
    for (i = 0; i < 20; i++)
        sprintf(text + strlen(text), "POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", i);
    conn = say(w, text);
    sim_run_for(w->s, 500);
    ASSERT_EQ(20u, w->requests);
    ASSERT_EQ(1u, connects(w));
    ASSERT(starts(w->seen, "POST /19 "));
    ASSERT_EQ(20 * strlen(OK_REPLY), conn->inbox.size);
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

TEST close_is_honoured_on_both_sides(void)
{
    world *w = world_new();
    const char *got = exchange(w, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", OK_REPLY);
    ASSERT_STR_EQ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello", got);
    ASSERT_EQ(0u, plb_proxy_connections(w->proxy));
    ASSERT_EQ(1u, plb_proxy_idle(w->proxy));
    exchange(w, GET, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello");
    ASSERT_EQ(1u, plb_proxy_connections(w->proxy));
    ASSERT_EQ(0u, plb_proxy_idle(w->proxy));
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

TEST an_idle_connection_that_ends_is_dropped(void)
{
    world *w = world_new();
    exchange(w, GET, OK_REPLY);
    ASSERT_EQ(1u, plb_proxy_idle(w->proxy));
    sim_close(sim_newest(w->s, &w->backends[0]));
    sim_run_for(w->s, 10);
    ASSERT_EQ(0u, plb_proxy_idle(w->proxy));
    exchange(w, GET, OK_REPLY);
    ASSERT_EQ(1u, plb_proxy_idle(w->proxy));
    sim_send_text(sim_newest(w->s, &w->backends[0]), "HTTP/1.1 200 OK\r\n");
    sim_run_for(w->s, 10);
    ASSERT_EQ(0u, plb_proxy_idle(w->proxy));
    exchange(w, GET, OK_REPLY OK_REPLY); /* bytes behind an answer are nobody's answer */
    ASSERT_EQ(0u, plb_proxy_idle(w->proxy));
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

TEST the_pool_is_limited(void)
{
    world *w = world_new();
    int i;
    w->desc.max_idle = 3;
    w->desc.max_idle_per_backend = 2;
    ASSERT_EQ(PLB_OK, world_start(w));
    for (i = 0; i < 12; i++) {
        w->next_backend = (uint32_t)(i % BACKENDS);
        say(w, GET);
        sim_step(w->s, 1);
    }
    sim_run_for(w->s, 100);
    ASSERT_EQ(12u, w->requests);
    ASSERT_EQ(3u, plb_proxy_idle(w->proxy));
    ASSERT_EQ(0u, world_end(w));

    w = world_new();
    w->desc.max_idle_per_backend = 2;
    ASSERT_EQ(PLB_OK, world_start(w));
    for (i = 0; i < 5; i++)
        say(w, GET);
    sim_run_for(w->s, 100);
    ASSERT_EQ(2u, plb_proxy_idle(w->proxy));
    sim_run_for(w->s, 61000);
    ASSERT_EQ(0u, plb_proxy_idle(w->proxy));
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

TEST connections_wait_when_there_are_too_many(void)
{
    world *w = world_new();
    sim_conn *conns[5];
    int i;
    w->desc.max_connections = 2;
    ASSERT_EQ(PLB_OK, world_start(w));
    for (i = 0; i < 5; i++)
        conns[i] = say(w, GET);
    sim_run_for(w->s, 100);
    ASSERT_EQ(2u, w->requests);
    for (i = 0; i < 5; i++) {
        sim_close(conns[i]);
        sim_run_for(w->s, 100);
    }
    ASSERT_EQ(5u, w->requests);
    ASSERT_EQ(0u, plb_proxy_connections(w->proxy));
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

/* ==== FRAMING ===================================================================================================== */

#define CHUNKED_REPLY                                                                                                  \
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nT: u\r\n\r\n"

TEST answers_without_a_body_end_with_their_head(void)
{
    static const char *const replies[][2] = {
        {"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"},
        {"HEAD", "HTTP/1.1 200 OK\r\n\r\n"},
        {"GET", "HTTP/1.1 204 No Content\r\n\r\n"},
        {"GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"},
        {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"},
    };
    world *w = world_new();
    size_t i;
    for (i = 0; i < sizeof replies / sizeof replies[0]; i++) {
        char request[64];
        sprintf(request, "%s / HTTP/1.1\r\nHost: a\r\n\r\n", replies[i][0]);
        ASSERT_STR_EQ(replies[i][1], exchange(w, request, replies[i][1]));
    }
    ASSERT_EQ(1u, connects(w));
    ASSERT_STR_EQ("HTTP/1.1 204 No\r\n\r\n", exchange(w, GET, "HTTP/1.1 204 No\r\nContent-Length: 0\r\n\r\n"));
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

TEST chunks_are_framed_anew(void)
{
    world *w = world_new();
    const char *got = exchange(w,
                               "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
                               "3;ext\r\nabc\r\n11\r\n0123456789abcdefg\r\n0\r\nTrailer: x\r\n\r\n" GET,
                               CHUNKED_REPLY);
    ASSERT_STR_EQ(GET, w->seen);
    ASSERT_EQ(2u, w->requests);
    ASSERT_STR_EQ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
                  "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
                  got);
    ASSERT_EQ(1u, connects(w));
    exchange(w,
             "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: "
             "chunked\r\n\r\n3\r\nabc\r\n11\r\n0123456789abcdefg\r\n0\r\n\r\n",
             CHUNKED_REPLY);
    ASSERT(ends(w->seen, "\r\nTransfer-Encoding: chunked\r\n\r\n14\r\nabc0123456789abcdefg\r\n0\r\n\r\n"));
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

TEST an_answer_without_a_length_ends_with_its_stream(void)
{
    world *w = world_new();
    w->close_after = true;
    ASSERT_STR_EQ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
                  exchange(w, GET, "HTTP/1.1 200 OK\r\n\r\nhello"));
    ASSERT_EQ(1u, plb_proxy_connections(w->proxy));
    ASSERT_STR_EQ("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello",
                  exchange(w, "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\nhello"));
    ASSERT_EQ(1u, plb_proxy_connections(w->proxy));
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

TEST http_1_0_clients_are_served_in_their_way(void)
{
    world *w = world_new();
    ASSERT_STR_EQ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
                  exchange(w, "GET / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n", OK_REPLY));
    ASSERT_STR_EQ("GET / HTTP/1.1\r\nHost: 10.0.1.1:8080\r\n\r\n", w->seen);
    ASSERT_EQ(0u, plb_proxy_connections(w->proxy));
    ASSERT_STR_EQ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello",
                  exchange(w, "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", OK_REPLY));
    ASSERT_EQ(1u, plb_proxy_connections(w->proxy));
    ASSERT_STR_EQ("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello",
                  exchange(w, "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", CHUNKED_REPLY));
    ASSERT_EQ(1u, plb_proxy_connections(w->proxy));
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

TEST a_request_without_a_host_gets_the_backends_name(void)
{
    world *w = world_new();
    w->backend_name = "backend.example";
    exchange(w, "GET / HTTP/1.0\r\n\r\n", OK_REPLY);
    ASSERT_STR_EQ("GET / HTTP/1.1\r\nHost: backend.example\r\n\r\n", w->seen);
    w->backend_name = NULL;
    w->backends[0] = sim_addr("unix:/tmp/backend");
    sim_serve(w->s, &w->backends[0], backend, w);
    exchange(w, "GET / HTTP/1.0\r\n\r\n", OK_REPLY);
    ASSERT_STR_EQ("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", w->seen);
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

/* A reply of many headers, `size` bytes long or a little more. */
static const char *long_head(size_t size)
{
    static char text[16384];
    strcpy(text, "HTTP/1.1 103 Early Hints\r\nX: ");
    memset(text + strlen(text), 'x', 400);
    text[31 + 400] = '\0';
    strcat(text, "\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n");
    while (strlen(text) < size)
        strcat(text, "Header: 0123456789 0123456789 0123456789 0123456789\r\n");
    return strcat(text, "\r\n");
}

TEST the_head_of_an_answer_may_fill_a_buffer(void)
{
    world *w = world_new();
    const char *reply = long_head(4300); /* more than a buffer, but not without the interim head before it */
    ASSERT_STR_EQ(reply, exchange(w, GET, reply));
    ASSERT(starts(exchange(w, "GET / HTTP/1.0\r\n\r\n", long_head(8000)), "HTTP/1.1 502 "));
    ASSERT_EQ(0u, plb_proxy_idle(w->proxy));
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

TEST interim_answers_pass_to_clients_that_know_them(void)
{
    const char *reply = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" OK_REPLY;
    world *w = world_new();
    ASSERT_STR_EQ(reply, exchange(w, GET, reply));
    ASSERT_STR_EQ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
                  exchange(w, "GET / HTTP/1.0\r\n\r\n", reply));
    ASSERT_EQ(1u, connects(w));
    ASSERT(starts(exchange(w, GET, "HTTP/1.1 101 Switching Protocols\r\n\r\n"), "HTTP/1.1 502 "));
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

/* The client waits for 100 before it sends; the backend says so after the head. */
static size_t continuing_backend(void *user, sim_conn *conn, const char *bytes, size_t count)
{
    world *w = (world *)user;
    if (whole_request(bytes, count) > 0)
        return backend(user, conn, bytes, count);
    if (ends(bytes, "\r\n\r\n"))
        sim_send_text(conn, "HTTP/1.1 100 Continue\r\n\r\n");
    (void)w;
    return 0;
}

TEST expect_continue_passes_through(void)
{
    world *w = world_new();
    sim_conn *conn;
    ASSERT_EQ(PLB_OK, world_start(w));
    sim_serve(w->s, &w->backends[0], continuing_backend, w);
    conn = say(w, "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n");
    sim_run_for(w->s, 50);
    ASSERT_STR_EQ("HTTP/1.1 100 Continue\r\n\r\n", inbox(conn));
    sim_send_text(conn, "abc");
    sim_run_for(w->s, 50);
    ASSERT_STR_EQ("HTTP/1.1 100 Continue\r\n\r\n" OK_REPLY, inbox(conn));
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

TEST malformed_answers_are_a_502(void)
{
    static const char *const replies[] = {
        "nonsense\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
        "HTTP/2.0 200 OK\r\n\r\n",
    };
    world *w = world_new();
    size_t i;
    for (i = 0; i < sizeof replies / sizeof replies[0]; i++) {
        ASSERT_STR_EQ(
            "HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/plain\r\nContent-Length: 16\r\n\r\n502 Bad Gateway\n",
            exchange(w, GET, replies[i]));
        ASSERT_EQ(PLB_ERR_PROTOCOL, w->report.error);
        ASSERT_EQ(0u, plb_proxy_idle(w->proxy));
    }
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

TEST a_truncated_answer_is_never_made_whole(void)
{
    static const char *const replies[] = {
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz",
    };
    size_t i;
    for (i = 0; i < sizeof replies / sizeof replies[0]; i++) {
        world *w = world_new();
        sim_conn *conn;
        ASSERT_EQ(PLB_OK, world_start(w));
        w->close_after = true;
        w->reply = replies[i];
        conn = say(w, GET);
        sim_run_for(w->s, 100);
        ASSERT_EQ(PLB_ERR_RESET, conn->status);
        ASSERT_FALSE(conn->ended);
        ASSERT_EQ(NULL, strstr(inbox(conn), "0\r\n\r\n"));
        ASSERT(w->report.error != PLB_OK);
        ASSERT_EQ(0u, world_end(w));
    }
    PASS();
}

/* ==== BYTES IN ANY PORTION ======================================================================================== */

static const char portions_request[] = "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
                                       "3;ext\r\nabc\r\n11\r\n0123456789abcdefg\r\n0\r\nTrailer: x\r\n\r\n" GET
                                       "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";

/* Takes the chunks out of the answers in `text`, and compares. */
static bool says_hello_thrice(const char *text)
{
    static const char head[] = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    int i;
    for (i = 0; i < 3; i++) {
        plb_http1_chunked chunked;
        char body[16];
        size_t size = 0, used;
        plb_status status = PLB_OK;
        memset(&chunked, 0, sizeof chunked);
        if (!starts(text, head))
            return false;
        for (text += strlen(head); status == PLB_OK; text += used) {
            plb_text data;
            status = plb_http1_chunked_next(&chunked, text, strlen(text), &used, &data);
            if (size + data.size > sizeof body)
                return false;
            memcpy(body + size, data.data, data.size);
            size += data.size;
        }
        if (status != PLB_END || size != 5 || memcmp(body, "hello", 5) != 0)
            return false;
    }
    return *text == '\0';
}

TEST bytes_may_come_one_by_one(void)
{
    world *w = world_new();
    sim_conn *conn;
    w->s->max_read = w->s->max_write = 1;
    w->reply = CHUNKED_REPLY;
    ASSERT_EQ(PLB_OK, world_start(w));
    conn = say(w, portions_request);
    sim_run_for(w->s, 5000);
    ASSERT_EQ(3u, w->requests);
    ASSERT(says_hello_thrice(inbox(conn)));
    ASSERT_EQ(1u, connects(w));
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

TEST bytes_may_come_in_any_portions(void)
{
    uint64_t seed;
    for (seed = 0; seed < 50; seed++) {
        world *w = world_new();
        sim_conn *conns[8];
        int i;
        w->s->random_sizes = true;
        w->s->random_state += seed * 7919;
        w->s->instant_connect = seed % 2 == 1;
        w->s->defaults.buffer_bytes = 64;
        w->reply = CHUNKED_REPLY;
        ASSERT_EQ(PLB_OK, world_start(w));
        for (i = 0; i < 8; i++)
            conns[i] = say(w, portions_request);
        sim_run_for(w->s, 3000);
        ASSERT_EQ(24u, w->requests);
        for (i = 0; i < 8; i++)
            ASSERT(says_hello_thrice(inbox(conns[i])));
        ASSERT_EQ(0u, world_end(w));
    }
    PASS();
}

/* ==== LARGE BODIES ================================================================================================ */

#define LARGE (4u << 20)

typedef struct large_state {
    size_t received;
    bool sent;
} large_state;

static char *large_body(size_t head_room)
{
    char *text = (char *)malloc(LARGE + head_room + 1);
    memset(text, 'x', LARGE + head_room);
    text[LARGE + head_room] = '\0';
    return text;
}

static size_t count_bytes(void *user, sim_conn *conn, const char *bytes, size_t count)
{
    (void)conn;
    (void)bytes;
    ((large_state *)user)->received += count;
    return count;
}

static size_t large_backend(void *user, sim_conn *conn, const char *bytes, size_t count)
{
    large_state *state = (large_state *)user;
    if (count > 0 && !state->sent && ends(bytes, "\r\n\r\n")) {
        char *body = large_body(0), head[80];
        state->sent = true;
        sprintf(head, "HTTP/1.1 200 OK\r\nContent-Length: %u\r\n\r\n", LARGE);
        sim_send_text(conn, head);
        sim_send(conn, body, LARGE);
        free(body);
    }
    return count;
}

TEST a_slow_client_slows_the_backend_and_costs_no_memory(void)
{
    world *w = world_new();
    large_state up, down;
    sim_conn *conn, *far;
    memset(&up, 0, sizeof up);
    memset(&down, 0, sizeof down);
    w->s->defaults.buffer_bytes = 16384;
    sim_host(w->s, &w->backends[0])->buffer_bytes = 16384;
    sim_serve(w->s, &w->backends[0], large_backend, &up);
    ASSERT_EQ(PLB_OK, world_start(w));
    conn = sim_dial(w->s, &w->front, count_bytes, &down);
    sim_send_text(conn, GET);
    sim_pause(conn, true);
    sim_run_for(w->s, 1000);
    far = sim_newest(w->s, &w->backends[0]);
    ASSERT(far->sent < 16384 * 3);
    sim_pause(conn, false);
    sim_run_for(w->s, 20000);
    ASSERT(down.received > LARGE);
    ASSERT_EQ(LARGE, w->report.response_bytes);
    ASSERT(w->memory.peak_bytes < 4 * 4096 + 24 * 1024);
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

static size_t slow_backend(void *user, sim_conn *conn, const char *bytes, size_t count)
{
    large_state *state = (large_state *)user;
    (void)bytes;
    state->received += count;
    if (state->received > LARGE && !state->sent) {
        state->sent = true;
        sim_send_text(conn, OK_REPLY);
    }
    return count;
}

TEST a_slow_backend_slows_the_client_and_costs_no_memory(void)
{
    world *w = world_new();
    large_state up;
    sim_conn *conn, *far;
    char head[96], *body = large_body(0);
    memset(&up, 0, sizeof up);
    w->s->defaults.buffer_bytes = 16384;
    sim_host(w->s, &w->backends[0])->buffer_bytes = 16384;
    sim_serve(w->s, &w->backends[0], slow_backend, &up);
    ASSERT_EQ(PLB_OK, world_start(w));
    sprintf(head, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %u\r\n\r\n", LARGE);
    conn = say(w, head);
    sim_send(conn, body, LARGE);
    free(body);
    sim_run_for(w->s, 5);
    far = sim_newest(w->s, &w->backends[0]);
    sim_pause(far, true);
    sim_run_for(w->s, 1000);
    ASSERT(up.received < LARGE);
    ASSERT(conn->sent < up.received + 16384 * 3);
    sim_pause(far, false);
    sim_run_for(w->s, 20000);
    ASSERT_STR_EQ(OK_REPLY, inbox(conn));
    ASSERT_EQ(LARGE, w->report.request_bytes);
    ASSERT(w->memory.peak_bytes < 4 * 4096 + 24 * 1024);
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

/* Answers with what it gets while it gets it. */
static size_t echo_backend(void *user, sim_conn *conn, const char *bytes, size_t count)
{
    large_state *state = (large_state *)user;
    const char *body = bytes;
    if (count == 0)
        return 0;
    if (!state->sent) {
        char head[80];
        body = strstr(bytes, "\r\n\r\n");
        if (body == NULL)
            return 0;
        body += 4;
        state->sent = true;
        sprintf(head, "HTTP/1.1 200 OK\r\nContent-Length: %u\r\n\r\n", LARGE);
        sim_send_text(conn, head);
    }
    sim_send(conn, body, count - (size_t)(body - bytes));
    return count;
}

TEST both_bodies_may_flow_at_once(void)
{
    world *w = world_new();
    large_state up, down;
    sim_conn *conn;
    char head[96], *body = large_body(0);
    memset(&up, 0, sizeof up);
    memset(&down, 0, sizeof down);
    sim_serve(w->s, &w->backends[0], echo_backend, &up);
    ASSERT_EQ(PLB_OK, world_start(w));
    conn = sim_dial(w->s, &w->front, count_bytes, &down);
    sprintf(head, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %u\r\n\r\n", LARGE);
    sim_send_text(conn, head);
    sim_send(conn, body, LARGE);
    free(body);
    sim_run_for(w->s, 20000);
    ASSERT_EQ(LARGE, w->report.request_bytes);
    ASSERT_EQ(LARGE, w->report.response_bytes);
    ASSERT(down.received > LARGE);
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

static size_t refusing_backend(void *user, sim_conn *conn, const char *bytes, size_t count)
{
    large_state *state = (large_state *)user;
    (void)bytes;
    if (count > 0 && !state->sent) {
        state->sent = true;
        sim_send_text(conn, "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno");
    }
    return count;
}

TEST an_early_answer_reaches_a_client_that_still_sends(void)
{
    world *w = world_new();
    large_state up;
    sim_conn *conn;
    char head[96], *body = large_body(0);
    memset(&up, 0, sizeof up);
    sim_serve(w->s, &w->backends[0], refusing_backend, &up);
    ASSERT_EQ(PLB_OK, world_start(w));
    sprintf(head, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %u\r\n\r\n", LARGE);
    conn = say(w, head);
    sim_send(conn, body, 200000);
    sim_run_for(w->s, 1000);
    ASSERT_STR_EQ("HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno", inbox(conn));
    ASSERT(conn->ended);
    ASSERT_EQ(PLB_OK, conn->status);
    ASSERT_EQ(1u, plb_proxy_connections(w->proxy));
    sim_run_for(w->s, 2000);
    ASSERT_EQ(0u, plb_proxy_connections(w->proxy));
    ASSERT_EQ(0u, plb_proxy_idle(w->proxy));
    up.sent = false; /* one that waits with the rest: the backend's connection is of no use either */
    conn = say(w, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc");
    sim_run_for(w->s, 100);
    ASSERT(conn->ended);
    ASSERT_EQ(0u, plb_proxy_idle(w->proxy));
    up.sent = false; /* one that does not stop is not listened to for ever */
    conn = say(w, head);
    sim_send(conn, body, LARGE);
    free(body);
    sim_run_for(w->s, 1000);
    ASSERT_EQ(1u, plb_proxy_connections(w->proxy));
    ASSERT(conn->sent < LARGE / 2);
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

TEST a_request_stops_where_it_is_when_the_answer_comes_before_its_head_is_sent(void)
{
    static char text[2000];
    world *w = world_new();
    sim_conn *conn, *far;
    sim_host(w->s, &w->backends[0])->buffer_bytes = 64;
    sim_serve(w->s, &w->backends[0], NULL, NULL);
    ASSERT_EQ(PLB_OK, world_start(w));
    sprintf(text, "GET /%01000d HTTP/1.1\r\nHost: a\r\n\r\n", 0);
    conn = say(w, text);
    sim_run_for(w->s, 6);
    far = sim_newest(w->s, &w->backends[0]);
    sim_send_text(far, "HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nno");
    sim_run_for(w->s, 50);
    sim_send_text(far, "no");
    sim_run_for(w->s, 50);
    ASSERT_STR_EQ("HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nnono", inbox(conn));
    ASSERT(far->inbox.size < strlen(text));
    ASSERT(starts(text, inbox(far)));
    ASSERT_EQ(0u, plb_proxy_idle(w->proxy));
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

/* What one connection has to move at once it moves in turns with others, and none of it is forgotten. */
TEST much_at_once_is_moved_in_turns(void)
{
    static char reply[60100], many[8192];
    world *w = world_new();
    sim_conn *conn;
    int i;
    w->desc.buffer_size = 1024;
    sprintf(reply, "HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n%060000d", 0);
    ASSERT_STR_EQ(reply, exchange(w, GET, reply));
    ASSERT_EQ(0u, world_end(w));

    w = world_new();
    ASSERT_EQ(PLB_OK, world_start(w));
    w->peer_status = PLB_ERR_EMPTY;
    for (i = 0; i < 100; i++)
        strcat(many, GET);
    conn = say(w, many);
    sim_run_for(w->s, 100);
    ASSERT_EQ(100u, w->logs);
    ASSERT_EQ(1u, plb_proxy_connections(w->proxy));
    sim_end(conn);
    sim_run_for(w->s, 100);
    ASSERT_EQ(0u, plb_proxy_connections(w->proxy));
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

/* ==== CLIENTS THAT LEAVE ========================================================================================== */

TEST a_client_that_ended_its_side_is_answered(void)
{
    world *w = world_new();
    sim_conn *conn;
    ASSERT_EQ(PLB_OK, world_start(w));
    conn = say(w, GET GET);
    sim_end(conn);
    sim_run_for(w->s, 100);
    ASSERT_STR_EQ(OK_REPLY OK_REPLY, inbox(conn));
    ASSERT(conn->ended);
    ASSERT_EQ(0u, plb_proxy_connections(w->proxy));
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

TEST a_client_that_breaks_off_frees_the_backend(void)
{
    world *w = world_new();
    sim_conn *conn;
    ASSERT_EQ(PLB_OK, world_start(w));
    w->reply = NULL;
    conn = say(w, GET);
    sim_run_for(w->s, 100);
    ASSERT_EQ(1u, plb_proxy_active(w->proxy));
    sim_reset(conn);
    sim_run_for(w->s, 100);
    ASSERT_EQ(0u, plb_proxy_active(w->proxy));
    ASSERT_EQ(0u, sim_host(w->s, &w->backends[0])->open);
    ASSERT_EQ(1u, w->logs);
    ASSERT_EQ(0, w->report.status);
    conn = say(w, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc");
    sim_end(conn);
    sim_run_for(w->s, 100);
    ASSERT(starts(inbox(conn), "HTTP/1.1 400 "));
    ASSERT_EQ(0u, sim_host(w->s, &w->backends[0])->open);
    ASSERT_EQ(0u, plb_proxy_connections(w->proxy));
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

/* ==== BACKENDS THAT FAIL ========================================================================================== */

TEST the_program_decides_whether_another_backend_is_tried(void)
{
    world *w = world_new();
    sim_host(w->s, &w->backends[0])->fault = SIM_REFUSE;
    ASSERT(starts(exchange(w, GET, OK_REPLY), "HTTP/1.1 502 "));
    ASSERT_EQ(1u, w->connect_failures);
    ASSERT_EQ(PLB_ERR_REFUSED, w->connect_status);
    ASSERT_EQ(PLB_ERR_REFUSED, w->report.error);
    w->retry = true;
    ASSERT_STR_EQ(OK_REPLY, exchange(w, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", OK_REPLY));
    ASSERT(ends(w->seen, "\r\n\r\nabc"));
    ASSERT_EQ(1u, w->tried_seen);
    ASSERT_EQ(1u, w->report.retries);
    ASSERT_EQ(0, plb_addr_compare(&w->backends[1], &w->report.upstream));
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

TEST a_shortage_of_this_side_is_a_503_and_no_fault_of_the_backend(void)
{
    world *w = world_new();
    w->retry = true;
    w->s->max_streams = 2; /* the listener and the client */
    ASSERT(starts(exchange(w, GET, OK_REPLY), "HTTP/1.1 503 "));
    ASSERT_EQ(PLB_ERR_LIMIT, w->report.error);
    ASSERT_EQ(0u, w->tried_seen);
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

TEST retries_are_limited(void)
{
    world *w = world_new();
    int i;
    for (i = 0; i < BACKENDS; i++)
        sim_host(w->s, &w->backends[i])->fault = SIM_REFUSE;
    w->retry = true;
    ASSERT(starts(exchange(w, GET, OK_REPLY), "HTTP/1.1 502 "));
    ASSERT_EQ(17u, w->picks);
    ASSERT_EQ(16u, w->report.retries);
    ASSERT_EQ(1u, w->logs);
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

TEST no_backend_is_a_502_on_a_connection_that_stays(void)
{
    world *w = world_new();
    w->peer_status = PLB_ERR_NOT_READY;
    ASSERT_STR_EQ("HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/plain\r\nContent-Length: 16\r\n\r\n502 Bad Gateway\n"
                  "HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/plain\r\nContent-Length: 16\r\n\r\n",
                  exchange(w,
                           "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
                           "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
                           OK_REPLY));
    ASSERT_EQ(2u, w->logs);
    ASSERT_EQ(PLB_ERR_NOT_READY, w->report.error);
    ASSERT_EQ(PLB_FAMILY_NONE, (plb_family)w->report.upstream.family);
    ASSERT_EQ(1u, plb_proxy_connections(w->proxy));
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

TEST a_filter_that_fails_is_a_500(void)
{
    world *w = world_new();
    w->filter_status = PLB_ERR_ARGUMENT;
    ASSERT(starts(exchange(w, GET, OK_REPLY), "HTTP/1.1 500 "));
    ASSERT_EQ(0u, w->requests);
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

/* Answers the first request of a connection, and closes when it sees a second one. */
static size_t one_shot_backend(void *user, sim_conn *conn, const char *bytes, size_t count)
{
    size_t size;
    if (conn->user != NULL && whole_request(bytes, count) > 0) {
        sim_close(conn);
        return count;
    }
    size = backend(user, conn, bytes, count);
    if (size > 0)
        conn->user = user;
    return size;
}

TEST an_idempotent_request_on_a_stale_connection_is_sent_again(void)
{
    static const char *const again[] = {GET, "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"};
    static const char *const never[] = {
        "POST / HTTP/1.1\r\nHost: a\r\n\r\n",
        "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    };
    world *w = world_new();
    sim_conn *conn;
    size_t i;
    sim_serve(w->s, &w->backends[0], one_shot_backend, w);
    for (i = 0; i < 2; i++) {
        ASSERT_STR_EQ(OK_REPLY, exchange(w, GET, OK_REPLY));
        w->requests = 0;
        ASSERT_STR_EQ(OK_REPLY, exchange(w, again[i], OK_REPLY));
        ASSERT_STR_EQ(again[i], w->seen);
        ASSERT_FALSE(w->report.upstream_reused);
        ASSERT_EQ(0u, w->report.retries);
    }
    conn = say(w, "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nab"); /* held, though it comes in parts */
    sim_run_for(w->s, 20);
    sim_send_text(conn, "cd");
    sim_run_for(w->s, 20);
    sim_send_text(conn, "ef");
    sim_run_for(w->s, 50);
    ASSERT_STR_EQ(OK_REPLY, inbox(conn));
    ASSERT(ends(w->seen, "\r\n\r\nabcdef"));
    ASSERT_FALSE(w->report.upstream_reused);
    for (i = 0; i < 2; i++) {
        ASSERT_STR_EQ(OK_REPLY, exchange(w, GET, OK_REPLY));
        ASSERT(starts(exchange(w, never[i], OK_REPLY), "HTTP/1.1 502 "));
    }
    ASSERT_EQ(0u, w->connect_failures);
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

/* Closes behind the head of the answer, when it sees a second request. */
static size_t half_answer_backend(void *user, sim_conn *conn, const char *bytes, size_t count)
{
    size_t size;
    if (count > 0 && conn->user != NULL) {
        ((world *)user)->requests++;
        sim_send_text(conn, "HTTP/1.1 2");
        sim_close(conn);
        return count;
    }
    size = backend(user, conn, bytes, count);
    if (size > 0)
        conn->user = user;
    return size;
}

TEST a_request_that_was_heard_is_not_sent_again(void)
{
    world *w = world_new();
    sim_serve(w->s, &w->backends[0], half_answer_backend, w);
    exchange(w, GET, OK_REPLY);
    ASSERT(starts(exchange(w, GET, OK_REPLY), "HTTP/1.1 502 "));
    ASSERT_EQ(2u, w->requests);
    ASSERT_EQ(1u, connects(w));
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

/* ==== TIME ======================================================================================================== */

TEST a_slow_head_is_a_408(void)
{
    world *w = world_new();
    sim_conn *conn, *silent;
    ASSERT_EQ(PLB_OK, world_start(w));
    conn = say(w, "GET / HT");
    silent = sim_dial(w->s, &w->front, NULL, NULL);
    sim_run_for(w->s, 9900);
    sim_send_text(conn, "TP"); /* a trickle gains no time */
    ASSERT_STR_EQ("", inbox(conn));
    sim_run_for(w->s, 200);
    ASSERT(starts(inbox(conn), "HTTP/1.1 408 "));
    ASSERT_STR_EQ("", inbox(silent));
    ASSERT(silent->ended);
    sim_run_for(w->s, 2100);
    ASSERT_EQ(0u, plb_proxy_connections(w->proxy));
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

TEST a_slow_body_is_a_408(void)
{
    world *w = world_new();
    sim_conn *conn;
    ASSERT_EQ(PLB_OK, world_start(w));
    conn = say(w, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc");
    sim_run_for(w->s, 50000);
    sim_send_text(conn, "d");
    sim_run_for(w->s, 59000);
    ASSERT_STR_EQ("", inbox(conn));
    sim_run_for(w->s, 2000);
    ASSERT(starts(inbox(conn), "HTTP/1.1 408 "));
    ASSERT_EQ(0u, sim_host(w->s, &w->backends[0])->open);
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

TEST a_backend_that_hangs_is_a_504(void)
{
    world *w = world_new();
    sim_conn *conn;
    sim_host(w->s, &w->backends[0])->fault = SIM_HANG;
    ASSERT_EQ(PLB_OK, world_start(w));
    conn = say(w, GET);
    sim_run_for(w->s, 900);
    ASSERT_STR_EQ("", inbox(conn));
    sim_run_for(w->s, 200);
    ASSERT(starts(inbox(conn), "HTTP/1.1 504 "));
    ASSERT_EQ(PLB_ERR_TIMEOUT, w->connect_status);
    w->next_backend = 1;
    w->reply = NULL;
    conn = say(w, GET);
    sim_run_for(w->s, 59000);
    ASSERT_STR_EQ("", inbox(conn));
    sim_run_for(w->s, 2000);
    ASSERT(starts(inbox(conn), "HTTP/1.1 504 "));
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

TEST an_answer_that_stalls_is_broken_off(void)
{
    world *w = world_new();
    sim_conn *conn;
    ASSERT_EQ(PLB_OK, world_start(w));
    w->reply = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello";
    conn = say(w, GET);
    sim_run_for(w->s, 59000);
    ASSERT_EQ(PLB_OK, conn->status);
    sim_run_for(w->s, 2000);
    ASSERT_EQ(PLB_ERR_RESET, conn->status);
    ASSERT_EQ(PLB_ERR_TIMEOUT, w->report.error);
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

TEST idle_clients_and_clients_that_do_not_read_are_closed(void)
{
    world *w = world_new();
    large_state up;
    sim_conn *idle, *stuck;
    memset(&up, 0, sizeof up);
    sim_serve(w->s, &w->backends[1], large_backend, &up);
    ASSERT_EQ(PLB_OK, world_start(w));
    idle = say(w, GET);
    sim_run_for(w->s, 100);
    w->next_backend = 1;
    stuck = say(w, GET);
    sim_pause(stuck, true);
    sim_run_for(w->s, 59000);
    ASSERT_EQ(2u, plb_proxy_connections(w->proxy));
    ASSERT_FALSE(idle->ended);
    sim_run_for(w->s, 2000);
    ASSERT_EQ(0u, plb_proxy_connections(w->proxy));
    ASSERT(idle->ended);
    ASSERT_EQ(PLB_ERR_TIMEOUT, w->report.error);
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

/* ==== THE END ===================================================================================================== */

TEST draining_finishes_what_runs_and_no_more(void)
{
    world *w = world_new();
    sim_conn *idle, *busy, *late;
    plb_listen_desc listen;
    sim_host(w->s, &w->backends[0])->latency_ms = 500;
    ASSERT_EQ(PLB_OK, world_start(w));
    idle = say(w, GET);
    sim_run_for(w->s, 3000);
    busy = say(w, GET GET);
    sim_run_for(w->s, 100);
    plb_proxy_drain(w->proxy);
    late = say(w, GET);
    sim_run_for(w->s, 100);
    ASSERT(idle->ended);
    ASSERT_EQ(PLB_ERR_REFUSED, late->status);
    ASSERT_EQ(1u, plb_proxy_connections(w->proxy));
    ASSERT_EQ(1u, plb_proxy_active(w->proxy));
    sim_run_for(w->s, 6000);
    ASSERT_STR_EQ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello", inbox(busy));
    ASSERT_EQ(0u, plb_proxy_connections(w->proxy));
    ASSERT_EQ(0u, plb_proxy_idle(w->proxy));
    memset(&listen, 0, sizeof listen);
    listen.addr = w->front;
    ASSERT_EQ(PLB_ERR_CANCELLED, plb_proxy_listen(w->proxy, &listen, NULL));
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

static plb_status drain_and_pick(void *user, plb_session *session, plb_pick *pick)
{
    plb_proxy_drain(((world *)user)->proxy);
    return pick_backend(user, session, pick);
}

TEST a_hook_may_drain(void)
{
    world *w = world_new();
    sim_conn *conns[4];
    int i;
    w->desc.upstream_peer = drain_and_pick;
    ASSERT_EQ(PLB_OK, world_start(w));
    for (i = 0; i < 4; i++)
        conns[i] = say(w, GET);
    sim_run_for(w->s, 100);
    ASSERT_STR_EQ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello", inbox(conns[0]));
    ASSERT_EQ(0u, plb_proxy_connections(w->proxy));
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

TEST one_proxy_may_listen_in_several_places(void)
{
    world *w = world_new();
    plb_listen_desc listen;
    plb_addr bound;
    sim_conn *conn;
    memset(&w->desc.allocator, 0, sizeof w->desc.allocator); /* malloc serves as well */
    ASSERT_EQ(PLB_OK, world_start(w));
    memset(&listen, 0, sizeof listen);
    listen.addr = sim_addr("10.0.0.1:0");
    ASSERT_EQ(PLB_OK, plb_proxy_listen(w->proxy, &listen, &bound));
    ASSERT(bound.port != 0);
    ASSERT_EQ(PLB_ERR_IN_USE, (listen.addr = w->front, plb_proxy_listen(w->proxy, &listen, NULL)));
    conn = sim_dial(w->s, &bound, NULL, NULL);
    sim_send_text(conn, GET);
    sim_run_for(w->s, 100);
    ASSERT_STR_EQ(OK_REPLY, inbox(conn));
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

TEST a_proxy_may_be_destroyed_at_any_moment(void)
{
    uint32_t ms;
    for (ms = 0; ms < 40; ms++) {
        world *w = world_new();
        ASSERT_EQ(PLB_OK, world_start(w));
        say(w, portions_request);
        sim_run_for(w->s, ms / 2);
        say(w, "GET / HT");
        w->reply = ms % 2 ? NULL : "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello";
        say(w, GET);
        sim_run_for(w->s, ms);
        ASSERT_EQ(0u, world_end(w));
    }
    PASS();
}

/* ==== EVERY FAILURE =============================================================================================== */

/* A little of everything. Nothing is promised but that it ends. */
static void all_sorts(world *w)
{
    w->retry = true;
    w->reply = CHUNKED_REPLY;
    if (world_start(w) != PLB_OK)
        return;
    say(w, portions_request);
    sim_run_for(w->s, 100);
    say(w, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello");
    sim_run_for(w->s, 100);
    sim_host(w->s, &w->backends[1])->fault = SIM_REFUSE;
    w->next_backend = 1;
    say(w, GET GET);
    sim_run_for(w->s, 100);
    sim_serve(w->s, &w->backends[0], one_shot_backend, w);
    w->next_backend = 0;
    say(w, GET GET GET);
    sim_run_for(w->s, 300);
}

static bool add_in_flight(void *user, const plb_backend_info *info)
{
    *(uint32_t *)user += info->in_flight;
    return true;
}

static uint32_t in_flight(world *w)
{
    uint32_t sum = 0;
    plb_each(w->lb, add_in_flight, &sum);
    return sum;
}

/* From here on upstream_peer asks a balancer over all backends. */
static plb_status use_balancer(world *w, plb_balancer_desc *balancer)
{
    plb_backend list[BACKENDS];
    plb_static_desc desc;
    int i;
    memset(list, 0, sizeof list);
    memset(&desc, 0, sizeof desc);
    for (i = 0; i < BACKENDS; i++) {
        list[i].addr = w->backends[i];
        list[i].weight = 1;
    }
    desc.backends = list;
    desc.backend_count = BACKENDS;
    balancer->port = w->desc.port;
    balancer->discovery = plb_static(&desc);
    return plb_create(balancer, &w->lb);
}

TEST every_pick_is_given_back(void)
{
    plb_balancer_desc balancer;
    sim_conn *conn;
    world *w = world_new();
    memset(&balancer, 0, sizeof balancer);
    ASSERT_EQ(PLB_OK, use_balancer(w, &balancer));
    all_sorts(w);
    ASSERT_EQ(0u, in_flight(w));
    w->reply = NULL;
    conn = say(w, GET);
    sim_run_for(w->s, 50);
    ASSERT_EQ(1u, in_flight(w));
    sim_reset(conn);
    sim_run_for(w->s, 50);
    ASSERT_EQ(0u, in_flight(w));
    say(w, GET);
    sim_run_for(w->s, 50);
    sim_remove_task(w->s, plb_proxy_task(w->proxy));
    plb_proxy_destroy(w->proxy);
    w->proxy = NULL;
    ASSERT_EQ(0u, in_flight(w));
    plb_destroy(w->lb);
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

static bool is_ejected(world *w, int backend_number)
{
    plb_backend_info info;
    memset(&info, 0, sizeof info);
    plb_find(w->lb, &w->backends[backend_number], 0, &info);
    return info.ejected;
}

/* Five bad answers, or none, or no connection: the backend is left alone, and tried again when its time is over. What
   it answers otherwise, and what goes wrong on the client's side, counts for nothing. */
TEST a_backend_that_fails_is_ejected_for_a_while(const char *bad_reply, const char *good_reply)
{
    plb_balancer_desc balancer;
    world *w = world_new();
    bool closes = strcmp(bad_reply, "") == 0;
    sim_conn *conn;
    uint32_t requests, i;
    memset(&balancer, 0, sizeof balancer);
    balancer.outlier.on = true;
    balancer.outlier.max_ejection_percent = 50;
    w->close_after = closes;
    ASSERT_EQ(PLB_OK, use_balancer(w, &balancer));
    ASSERT_EQ(PLB_OK, plb_set_enabled(w->lb, &w->backends[1], 0, false));
    ASSERT_EQ(PLB_OK, plb_set_enabled(w->lb, &w->backends[2], 0, false));
    sim_add_task(w->s, plb_balancer_task(w->lb));
    for (i = 0; i < 6; i++)
        exchange(w, GET, good_reply);
    for (i = 0; i < 4; i++)
        exchange(w, GET, bad_reply);
    w->reply = NULL;
    w->close_after = false;
    conn = say(w, GET);
    sim_run_for(w->s, 50);
    sim_reset(conn); /* the client's own doing */
    sim_run_for(w->s, 50);
    w->close_after = closes;
    ASSERT(!is_ejected(w, 0));
    exchange(w, GET, bad_reply);
    ASSERT(is_ejected(w, 0));
    requests = w->requests;
    ASSERT(starts(exchange(w, GET, OK_REPLY), "HTTP/1.1 502 "));
    ASSERT_EQ_FMT(requests, w->requests, "%u");
    ASSERT_EQ(PLB_OK, plb_set_enabled(w->lb, &w->backends[1], 0, true));
    ASSERT_STR_EQ(OK_REPLY, exchange(w, GET, OK_REPLY)); /* by the other one */
    ASSERT_EQ(PLB_OK, plb_set_enabled(w->lb, &w->backends[1], 0, false));
    sim_run_for(w->s, 30000);
    ASSERT(!is_ejected(w, 0));
    ASSERT_STR_EQ(OK_REPLY, exchange(w, GET, OK_REPLY));
    sim_remove_task(w->s, plb_balancer_task(w->lb));
    plb_destroy(w->lb);
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

/* After whatever failed: a new client is served. */
static bool still_serves(world *w)
{
    sim_conn *conn;
    w->reply = OK_REPLY;
    w->next_backend = 2;
    conn = say(w, GET);
    sim_run_for(w->s, 500);
    return strcmp(inbox(conn), OK_REPLY) == 0;
}

TEST any_call_of_the_port_may_fail(void)
{
    static const plb_status statuses[] = {PLB_ERR_RESET, PLB_ERR_LIMIT, PLB_ERR_IO, PLB_AGAIN};
    size_t i;
    uint64_t n;
    for (i = 0; i < sizeof statuses / sizeof statuses[0]; i++) {
        for (n = 1; n < 1000; n++) {
            world *w = world_new();
            bool failed, listening;
            w->s->fail_io_at = n;
            w->s->fail_io_status = statuses[i];
            all_sorts(w);
            failed = w->s->io_calls >= n;
            w->s->fail_io_at = 0;
            sim_run_for(w->s, 70000);
            ASSERT_EQ(0u, w->proxy ? plb_proxy_active(w->proxy) : 0);
            listening = sim_dial(w->s, &w->front, NULL, NULL) != NULL && w->s->listeners != NULL;
            ASSERT(listening || w->listener_failures == 1 || n < 5);
            ASSERT(!listening || still_serves(w));
            ASSERT_EQ(0u, world_end(w));
            if (!failed)
                break;
        }
        ASSERT(n > 50 && n < 1000);
    }
    PASS();
}

TEST any_allocation_may_fail(void)
{
    uint64_t n, count;
    for (count = 1; count <= 4; count += 3) {
        for (n = 1; n < 1000; n++) {
            world *w = world_new();
            bool failed;
            w->memory.fail_at = n;
            w->memory.fail_count = count;
            all_sorts(w);
            failed = w->memory.calls >= n;
            w->memory.fail_at = 0;
            sim_run_for(w->s, 70000);
            ASSERT_EQ(0u, w->proxy ? plb_proxy_active(w->proxy) : 0);
            ASSERT(w->proxy == NULL || w->s->listeners == NULL || still_serves(w));
            ASSERT_EQ(0u, world_end(w));
            if (!failed)
                break;
        }
        ASSERT(n > 10 && n < 1000);
    }
    PASS();
}

TEST a_descriptor_that_makes_no_sense_is_refused(void)
{
    world *w = world_new();
    plb_proxy_desc desc = w->desc;
    desc.upstream_peer = NULL;
    ASSERT_EQ(PLB_ERR_ARGUMENT, plb_proxy_create(&desc, &w->proxy));
    ASSERT_EQ(NULL, w->proxy);
    desc = w->desc;
    desc.port.clock = NULL;
    ASSERT_EQ(PLB_ERR_ARGUMENT, plb_proxy_create(&desc, &w->proxy));
    desc = w->desc;
    desc.max_retries = 256;
    ASSERT_EQ(PLB_ERR_ARGUMENT, plb_proxy_create(&desc, &w->proxy));
    desc = w->desc;
    desc.buffer_size = 1023;
    ASSERT_EQ(PLB_ERR_ARGUMENT, plb_proxy_create(&desc, &w->proxy));
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

TEST an_idle_connection_owns_no_buffer(void)
{
    world *w = world_new();
    size_t before, i;
    w->desc.spare_requests = 1;
    ASSERT_EQ(PLB_OK, world_start(w));
    say(w, GET);
    sim_run_for(w->s, 100);
    before = w->memory.live_bytes;
    for (i = 0; i < 100; i++) {
        say(w, GET);
        sim_run_for(w->s, 10);
    }
    ASSERT_EQ(101u, plb_proxy_connections(w->proxy));
    ASSERT(w->memory.live_bytes - before <= 100 * 200);
    ASSERT_EQ(0u, world_end(w));
    PASS();
}

SUITE(forwarding)
{
    RUN_TEST(a_request_goes_up_and_its_answer_comes_down);
    RUN_TEST(hop_by_hop_headers_end_here);
    RUN_TEST(a_client_cannot_take_away_what_frames_the_request);
    RUN_TEST(an_absolute_target_names_the_host);
    RUN_TEST(the_filter_changes_what_goes_up);
    RUN_TEST(the_filter_cannot_break_the_request);
    RUN_TEST(what_could_smuggle_never_goes_up);
    RUN_TEST(a_malformed_chunk_ends_the_request);
    RUN_TEST(heads_are_limited);
}

SUITE(connections)
{
    RUN_TEST(connections_are_used_again_on_both_sides);
    RUN_TEST(pipelined_requests_are_answered_in_order);
    RUN_TEST(close_is_honoured_on_both_sides);
    RUN_TEST(an_idle_connection_that_ends_is_dropped);
    RUN_TEST(the_pool_is_limited);
    RUN_TEST(connections_wait_when_there_are_too_many);
    RUN_TEST(an_idle_connection_owns_no_buffer);
    RUN_TEST(a_client_that_ended_its_side_is_answered);
    RUN_TEST(a_client_that_breaks_off_frees_the_backend);
}

SUITE(framing)
{
    RUN_TEST(answers_without_a_body_end_with_their_head);
    RUN_TEST(chunks_are_framed_anew);
    RUN_TEST(an_answer_without_a_length_ends_with_its_stream);
    RUN_TEST(http_1_0_clients_are_served_in_their_way);
    RUN_TEST(a_request_without_a_host_gets_the_backends_name);
    RUN_TEST(the_head_of_an_answer_may_fill_a_buffer);
    RUN_TEST(interim_answers_pass_to_clients_that_know_them);
    RUN_TEST(expect_continue_passes_through);
    RUN_TEST(malformed_answers_are_a_502);
    RUN_TEST(a_truncated_answer_is_never_made_whole);
    RUN_TEST(bytes_may_come_one_by_one);
    RUN_TEST(bytes_may_come_in_any_portions);
}

SUITE(large_bodies)
{
    RUN_TEST(a_slow_client_slows_the_backend_and_costs_no_memory);
    RUN_TEST(a_slow_backend_slows_the_client_and_costs_no_memory);
    RUN_TEST(both_bodies_may_flow_at_once);
    RUN_TEST(a_request_stops_where_it_is_when_the_answer_comes_before_its_head_is_sent);
    RUN_TEST(much_at_once_is_moved_in_turns);
    RUN_TEST(an_early_answer_reaches_a_client_that_still_sends);
}

SUITE(failures)
{
    RUN_TEST(the_program_decides_whether_another_backend_is_tried);
    RUN_TEST(a_shortage_of_this_side_is_a_503_and_no_fault_of_the_backend);
    RUN_TEST(retries_are_limited);
    RUN_TEST(no_backend_is_a_502_on_a_connection_that_stays);
    RUN_TEST(a_filter_that_fails_is_a_500);
    RUN_TEST(an_idempotent_request_on_a_stale_connection_is_sent_again);
    RUN_TEST(a_request_that_was_heard_is_not_sent_again);
    RUN_TEST(a_slow_head_is_a_408);
    RUN_TEST(a_slow_body_is_a_408);
    RUN_TEST(a_backend_that_hangs_is_a_504);
    RUN_TEST(an_answer_that_stalls_is_broken_off);
    RUN_TEST(idle_clients_and_clients_that_do_not_read_are_closed);
    RUN_TEST(draining_finishes_what_runs_and_no_more);
    RUN_TEST(a_hook_may_drain);
    RUN_TEST(one_proxy_may_listen_in_several_places);
    RUN_TEST(a_proxy_may_be_destroyed_at_any_moment);
    RUN_TEST(every_pick_is_given_back);
    RUN_TESTp(a_backend_that_fails_is_ejected_for_a_while, "HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n",
              "HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n");
    RUN_TESTp(a_backend_that_fails_is_ejected_for_a_while, "HTTP/1.1 503 Oh\r\nContent-Length: 0\r\n\r\n", OK_REPLY);
    RUN_TESTp(a_backend_that_fails_is_ejected_for_a_while, "nonsense\r\n\r\n", OK_REPLY);
    RUN_TESTp(a_backend_that_fails_is_ejected_for_a_while, "", OK_REPLY); /* it ends the connection instead */
    RUN_TEST(any_call_of_the_port_may_fail);
    RUN_TEST(any_allocation_may_fail);
    RUN_TEST(a_descriptor_that_makes_no_sense_is_refused);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(forwarding);
    RUN_SUITE(connections);
    RUN_SUITE(framing);
    RUN_SUITE(large_bodies);
    RUN_SUITE(failures);
    GREATEST_MAIN_END();
}
