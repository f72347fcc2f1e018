/* An HTTP load balancer: spreads requests over origins, probes them, skips the dead ones.

       build/load_balancer --listen 127.0.0.1:6188 --check tcp --every 1s 127.0.0.1:9001 127.0.0.1:9002 localhost:9003

   The first half is all that a program needs for that; the second half (--demo) is a show of it with origins and a
   client inside the process. */
#define _GNU_SOURCE
#define PINGORA_LB_IMPLEMENTATION
#include "../pingora_lb.h"
#define PLB_PROXY_IMPLEMENTATION
#include "../ports/plb_proxy.h"

/* The platform: the port that drives everything is the event loop from here on. */
#ifdef _WIN32
#define PLB_WIN32_IMPLEMENTATION
#include "../ports/plb_win32.h"
#define stdout_is_terminal() false /* not every console knows colours */
typedef plb_win32 event_loop;
#define loop_create  plb_win32_create
#define loop_destroy plb_win32_destroy
#define loop_port    plb_win32_port
#define loop_add     plb_win32_add
#define loop_remove  plb_win32_remove
#define loop_step    plb_win32_step
#define loop_run     plb_win32_run
#define loop_stop    plb_win32_stop
#else
#define PLB_POSIX_IMPLEMENTATION
#include "../ports/plb_posix.h"
#include <unistd.h>
#define stdout_is_terminal() (isatty(STDOUT_FILENO) != 0)
typedef plb_posix event_loop;
#define loop_create          plb_posix_create
#define loop_destroy         plb_posix_destroy
#define loop_port            plb_posix_port
#define loop_add             plb_posix_add
#define loop_remove          plb_posix_remove
#define loop_step            plb_posix_step
#define loop_run             plb_posix_run
#define loop_stop            plb_posix_stop
#endif

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
    "usage: load_balancer [OPTION]... ORIGIN...\n"
    "       load_balancer --demo\n"
    "\n"
    "Spreads HTTP requests over origins, probes them, and skips those that do not answer.\n"
    "ORIGIN is 1.2.3.4:80, [::1]:80, unix:/path or host:80; each address of a host name serves.\n"
    "\n"
    "  --listen ADDRESS    where clients connect; may be given several times (127.0.0.1:6188)\n"
    "  --strategy NAME     rr, random, or by the request's target: fnv, ketama (rr)\n"
    "  --check KIND        tcp: connect to see whether an origin lives; none (tcp)\n"
    "  --every TIME        between two rounds of checks, as 500ms, 1s, 2m (1s)\n"
    "  --timeout TIME      for a probe's connection (1s)\n"
    "  --resolve TIME      between two look-ups of host names; 0: once (10s)\n"
    "  --host NAME         the Host header that origins see (the client's)\n"
    "  --retries N         other origins to try when one refuses the connection (16)\n"
    "  -v, --verbose       one line per request\n"
    "  -h, --help          this text\n";

/* ==== OPTIONS ===================================================================================================== */

enum { LISTENERS_MAX = 16, DRAIN_MS = 5000 };

typedef struct options {
    plb_addr listen[LISTENERS_MAX];
    size_t listen_count;
    plb_strategy strategy;
    plb_check check;
    plb_tcp_check_desc tcp_check;
    uint32_t every_ms, resolve_ms, retries;
    const char *host;
    bool verbose, demo, keyed;
    const char *const *origins;
    size_t origin_count;
} options;

static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("load_balancer: ", stderr);
    vfprintf(stderr, format, arguments);
    fputs("\nTry 'load_balancer --help'.\n", stderr);
    va_end(arguments);
    exit(2);
}

static uint32_t parse_number(const char *option, const char *text, const char **end, uint32_t max)
{
    char *stop;
    unsigned long long number = strtoull(text, &stop, 10);
    if (stop == text || text[0] < '0' || text[0] > '9' || number > max)
        fail("%s: '%s' is not a number from 0 to %u", option, text, max);
    *end = stop;
    return (uint32_t)number;
}

static uint32_t parse_time(const char *option, const char *text)
{
    static const struct unit {
        const char *name;
        uint32_t ms;
    } units[] = {{"ms", 1}, {"s", 1000}, {"m", 60000}, {"h", 3600000}};
    const char *unit;
    uint32_t number = parse_number(option, text, &unit, 1000000);
    if (number == 0 && *unit == '\0')
        return 0;
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (strcmp(unit, units[i].name) == 0 && (uint64_t)number * units[i].ms < PLB_FOREVER)
            return number * units[i].ms;
    fail("%s: '%s' is not a time such as 500ms, 1s or 2m", option, text);
    return 0;
}

static void parse_listen(options *o, const char *text)
{
    if (o->listen_count == LISTENERS_MAX)
        fail("--listen: at most %d times", LISTENERS_MAX);
    if (plb_addr_parse(&o->listen[o->listen_count], text, PLB_ZSTRING) != PLB_OK)
        fail("--listen: '%s' is not an address such as 127.0.0.1:6188, [::1]:6188 or unix:/path", text);
    o->listen_count++;
}

static void parse_strategy(options *o, const char *text)
{
    o->keyed = false;
    if (strcmp(text, "rr") == 0)
        o->strategy = plb_round_robin();
    else if (strcmp(text, "random") == 0)
        o->strategy = plb_random_choice();
    else if ((o->keyed = strcmp(text, "fnv") == 0))
        o->strategy = plb_fnv();
    else if ((o->keyed = strcmp(text, "ketama") == 0))
        o->strategy = plb_ketama(NULL);
    else
        fail("--strategy: '%s' is none of rr, random, fnv, ketama", text);
}

static void parse_option(options *o, const char *name, const char *value)
{
    const char *end = "";
    if (strcmp(name, "--listen") == 0)
        parse_listen(o, value);
    else if (strcmp(name, "--strategy") == 0)
        parse_strategy(o, value);
    else if (strcmp(name, "--check") == 0 && strcmp(value, "none") == 0)
        o->check.ops = NULL;
    else if (strcmp(name, "--check") == 0 && strcmp(value, "tcp") != 0)
        fail("--check: '%s' is none of tcp, none", value);
    else if (strcmp(name, "--every") == 0 && (o->every_ms = parse_time(name, value)) == 0)
        fail("--every: must be above 0; to have no checks: --check none");
    else if (strcmp(name, "--timeout") == 0 && (o->tcp_check.timeout_ms = parse_time(name, value)) == 0)
        fail("--timeout: must be above 0");
    else if (strcmp(name, "--resolve") == 0)
        o->resolve_ms = parse_time(name, value);
    else if (strcmp(name, "--host") == 0)
        o->host = value;
    else if (strcmp(name, "--retries") == 0)
        o->retries = parse_number(name, value, &end, 1000);
    if (*end != '\0')
        fail("%s: '%s' is not a number", name, value);
}

static bool takes_value(const char *name)
{
    static const char *const names[] = {"--listen",  "--strategy", "--check", "--every",
                                        "--timeout", "--resolve",  "--host",  "--retries"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0)
            return true;
    return false;
}

/* Options end at the first origin; every origin is checked here, so that a typing error is named at once. */
static void parse_options(options *o, int argc, char **argv)
{
    int i;
    memset(o, 0, sizeof *o);
    o->strategy = plb_round_robin();
    o->every_ms = 1000;
    o->resolve_ms = 10000;
    o->retries = 16;
    o->check = plb_tcp_check(NULL);
    for (i = 1; i < argc && argv[i][0] == '-'; i++) {
        if (strcmp(argv[i], "-h") == 0 || strcmp(argv[i], "--help") == 0) {
            fputs(usage, stdout);
            exit(0);
        } else if (strcmp(argv[i], "-v") == 0 || strcmp(argv[i], "--verbose") == 0) {
            o->verbose = true;
        } else if (strcmp(argv[i], "--demo") == 0) {
            o->demo = true;
        } else if (!takes_value(argv[i])) {
            fail("'%s' is no option", argv[i]);
        } else if (i + 1 == argc) {
            fail("%s needs a value", argv[i]);
        } else {
            parse_option(o, argv[i], argv[i + 1]);
            i++;
        }
    }
    if (o->check.ops != NULL)
        o->check = plb_tcp_check(&o->tcp_check);
    if (o->listen_count == 0)
        parse_listen(o, "127.0.0.1:6188");
    o->origins = (const char *const *)argv + i;
    o->origin_count = (size_t)(argc - i);
    if (o->origin_count == 0 && !o->demo)
        fail("no origin is given");
    for (; i < argc; i++) {
        plb_backend backend;
        char name[256];
        if (plb_backend_parse(&backend, argv[i], PLB_ZSTRING, name) != PLB_OK)
            fail("'%s' is not an address such as 1.2.3.4:80, [::1]:80, unix:/path or host:80%s", argv[i],
                 argv[i][0] == '-' ? " (options come before origins)" : "");
    }
}

/* ==== THE LOAD BALANCER =========================================================================================== */

typedef struct server {
    options o;
    event_loop *loop;
    plb_balancer *lb;
    plb_proxy *proxy;
} server;

/* The strategy picks; what refused the connection before is left out. */
static plb_status upstream_peer(void *user, plb_session *session, plb_pick *pick)
{
    server *s = user;
    const plb_http1_head *head = plb_session_request(session);
    plb_request request = {0};
    request.exclude = plb_session_tried(session, &request.exclude_count);
    if (s->o.keyed) {
        request.key = head->target.data;
        request.key_length = head->target.size;
    }
    return plb_begin(s->lb, &request, pick);
}

static plb_status upstream_request_filter(void *user, plb_session *session, const plb_pick *pick)
{
    server *s = user;
    (void)pick;
    return s->o.host != NULL ? plb_session_set_header(session, "Host", s->o.host) : PLB_OK;
}

static bool fail_to_connect(void *user, plb_session *session, const plb_pick *pick, plb_status status)
{
    const server *s = user;
    (void)session, (void)pick, (void)status;
    return s->o.retries > 0; /* another origin may do better; the proxy counts */
}

static void log_request(void *user, plb_session *session, const plb_session_report *report)
{
    const server *s = user;
    const plb_http1_head *head = plb_session_request(session);
    char upstream[PLB_ADDR_TEXT_MAX] = "-";
    if (!s->o.verbose)
        return;
    if (report->upstream.family != PLB_FAMILY_NONE)
        plb_addr_format(&report->upstream, upstream, sizeof upstream);
    printf("%3u  %-22s %-6s %8.3f ms  %.*s %.*s%s%s\n", report->status, upstream,
           report->upstream_reused ? "reused" : "fresh", (double)report->total_us / 1000, (int)head->method.size,
           head->method.data, (int)head->target.size, head->target.data, report->error != PLB_OK ? "  " : "",
           report->error != PLB_OK ? plb_status_text(report->error) : "");
    fflush(stdout); /* a line at a time, wherever it goes */
}

static void log_line(void *user, plb_log_level level, const char *line)
{
    (void)user, (void)level;
    fprintf(stderr, "%s\n", line);
}

static plb_status server_open(server *s, plb_balancer_desc *balancer)
{
    plb_proxy_desc proxy = {.user = s,
                            .upstream_peer = upstream_peer,
                            .upstream_request_filter = upstream_request_filter,
                            .fail_to_connect = fail_to_connect,
                            .logging = log_request,
                            .max_retries = s->o.retries};
    plb_status status = s->loop == NULL ? loop_create(NULL, &s->loop) : PLB_OK;
    if (status != PLB_OK)
        return status;
    balancer->port = proxy.port = loop_port(s->loop);
    status = plb_create(balancer, &s->lb);
    if (status != PLB_OK)
        return status;
    loop_add(s->loop, plb_balancer_task(s->lb));
    status = plb_proxy_create(&proxy, &s->proxy);
    if (status == PLB_OK)
        loop_add(s->loop, plb_proxy_task(s->proxy));
    return status;
}

static void server_close(server *s)
{
    if (s->proxy != NULL)
        loop_remove(s->loop, plb_proxy_task(s->proxy));
    plb_proxy_destroy(s->proxy);
    if (s->lb != NULL)
        loop_remove(s->loop, plb_balancer_task(s->lb));
    plb_destroy(s->lb);
    loop_destroy(s->loop);
}

static event_loop *interrupted_port;

static void on_interrupt(int number)
{
    signal(number, SIG_DFL); /* the second one ends it at once */
    loop_stop(interrupted_port);
}

/* Lets requests in flight end. */
static void drain(server *s)
{
    plb_port port = loop_port(s->loop);
    uint64_t start = port.clock->now_ms(port.clock->self);
    plb_proxy_drain(s->proxy);
    while (plb_proxy_connections(s->proxy) > 0 && port.clock->now_ms(port.clock->self) - start < DRAIN_MS)
        loop_step(s->loop, 100);
}

/* Not every Windows has them. Nothing can listen on this path, so that it refuses where there are such. */
static bool has_unix_sockets(server *s)
{
    const plb_io *io = loop_port(s->loop).io;
    plb_peer peer = {0};
    plb_handler nobody = {0};
    plb_stream *stream;
    plb_status status;
    plb_addr_parse(&peer.addr, "unix:/", PLB_ZSTRING);
    status = io->connect(io->self, &peer, nobody, &stream);
    if (stream != NULL)
        io->close(io->self, stream, PLB_CLOSE_ABORT);
    return status != PLB_ERR_UNSUPPORTED;
}

static const char unix_prefix[] = "unix:", no_unix_sockets[] = "This system has no Unix sockets.";

static bool can_reach_origins(server *s)
{
    for (size_t i = 0; i < s->o.origin_count; i++) {
        if (strncmp(s->o.origins[i], unix_prefix, sizeof unix_prefix - 1) != 0 || has_unix_sockets(s))
            continue;
        fprintf(stderr, "load_balancer: cannot use %s: %s\n", s->o.origins[i], no_unix_sockets);
        return false;
    }
    return true;
}

static bool listen_everywhere(server *s)
{
    for (size_t i = 0; i < s->o.listen_count; i++) {
        plb_listen_desc desc = {.addr = s->o.listen[i]};
        char text[PLB_ADDR_TEXT_MAX];
        bool lacking = desc.addr.family == PLB_FAMILY_UNIX && !has_unix_sockets(s);
        plb_status status = plb_proxy_listen(s->proxy, &desc, NULL);
        plb_addr_format(&desc.addr, text, sizeof text);
        if (status != PLB_OK) {
            fprintf(stderr, "load_balancer: cannot listen on %s: %s\n", text,
                    lacking ? no_unix_sockets : plb_status_text(status));
            return false;
        }
        fprintf(stderr, "listening on %s\n", text);
    }
    return true;
}

static int serve(server *s)
{
    plb_static_desc list = {.addresses = s->o.origins, .address_count = s->o.origin_count};
    plb_balancer_desc balancer = {.strategy = s->o.strategy,
                                  .discovery = plb_static(&list),
                                  .check = s->o.check,
                                  .update_every_ms = s->o.resolve_ms,
                                  .check_every_ms = s->o.check.ops != NULL ? s->o.every_ms : 0,
                                  .log = log_line};
    plb_status status = server_open(s, &balancer);
    if (status != PLB_OK)
        fprintf(stderr, "load_balancer: cannot start: %s\n", plb_status_text(status));
    if (status != PLB_OK || !can_reach_origins(s) || !listen_everywhere(s))
        return 1;
    interrupted_port = s->loop;
    signal(SIGINT, on_interrupt);
    signal(SIGTERM, on_interrupt);
    loop_run(s->loop);
    drain(s);
    return 0;
}

/* ==== THE DEMO ====================================================================================================
   Two origins and one client inside this process, real HTTP over loopback between them and the proxy. */

enum { DEMO_ORIGINS = 2, DEMO_CHECK_MS = 200, DEMO_PACE_MS = 20, DEMO_LIMIT_MS = 2000 };

struct demo;

/* A little HTTP server: it answers each request with its name. */
typedef struct demo_origin {
    struct demo *demo;
    const char *name;
    plb_addr addr;
    plb_stream *listener; /* NULL: stopped */
    struct demo_conn *conns;
    unsigned served; /* since the last line of the table */
} demo_origin;

typedef struct demo_conn {
    demo_origin *origin;
    plb_stream *stream;
    struct demo_conn *next;
    char request[4096];
    size_t length;
} demo_conn;

/* One request at a time: connect, ask, read to the end. */
typedef struct demo_client {
    struct demo *demo;
    plb_stream *stream; /* NULL: at rest */
    char answer[4096];
    size_t length;
    bool asked;
} demo_client;

typedef struct demo {
    server *server;
    const plb_io *io;
    plb_addr proxy_addr, dead_addr;
    demo_origin origins[DEMO_ORIGINS];
    demo_client client;
    uint64_t start_us;
    unsigned failed;   /* requests since the last line of the table */
    unsigned problems; /* things that were not as they should be */
    bool colour;
} demo;

static void demo_say(demo *d, const char *colour, const char *format, ...)
{
    plb_port port = loop_port(d->server->loop);
    va_list arguments;
    printf("%5.2fs  %s", (double)(port.clock->now_us(port.clock->self) - d->start_us) / 1e6, d->colour ? colour : "");
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    puts(d->colour ? "\033[0m" : "");
    fflush(stdout);
}

#define RED    "\033[31m"
#define GREEN  "\033[32m"
#define PLAIN  ""
#define HEADED "\033[1m"

static const char *demo_name(demo *d, const plb_addr *addr)
{
    for (int i = 0; i < DEMO_ORIGINS; i++)
        if (plb_addr_compare(addr, &d->origins[i].addr) == 0)
            return d->origins[i].name;
    return "the third address";
}

static void demo_conn_close(demo_conn *conn)
{
    demo_conn **link = &conn->origin->conns;
    while (*link != conn)
        link = &(*link)->next;
    *link = conn->next;
    conn->origin->demo->io->close(conn->origin->demo->io->self, conn->stream, PLB_CLOSE_ABORT);
    free(conn);
}

/* The request's head has come: answers it. */
static bool demo_conn_answer(demo_conn *conn)
{
    const plb_io *io = conn->origin->demo->io;
    char answer[256];
    plb_chunk chunk = {answer, 0, 0};
    size_t taken;
    chunk.size = (size_t)snprintf(answer, sizeof answer, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n%s\n",
                                  strlen(conn->origin->name) + 1, conn->origin->name);
    conn->length = 0;
    conn->origin->served++;
    return io->write(io->self, conn->stream, &chunk, 1, &taken) == PLB_OK && taken == chunk.size;
}

static void demo_conn_event(void *user, plb_stream *stream, plb_event event, plb_status status)
{
    demo_conn *conn = user;
    const plb_io *io = conn->origin->demo->io;
    (void)event;
    for (;;) {
        size_t got;
        status = io->read(io->self, stream, conn->request + conn->length, sizeof conn->request - conn->length, &got);
        if (status == PLB_AGAIN)
            return;
        if (status != PLB_OK)
            break;
        conn->length += got;
        if (conn->length >= 4 && memcmp(conn->request + conn->length - 4, "\r\n\r\n", 4) == 0) {
            if (!demo_conn_answer(conn))
                break;
        } else if (conn->length == sizeof conn->request) {
            break;
        }
    }
    demo_conn_close(conn);
}

static void demo_accept(void *user, plb_stream *listener, plb_event event, plb_status status)
{
    demo_origin *origin = user;
    const plb_io *io = origin->demo->io;
    (void)event, (void)status;
    for (;;) {
        demo_conn *conn = calloc(1, sizeof *conn);
        plb_handler handler = {demo_conn_event, conn};
        if (conn == NULL || io->accept(io->self, listener, handler, &conn->stream) != PLB_OK) {
            free(conn);
            return;
        }
        conn->origin = origin;
        conn->next = origin->conns;
        origin->conns = conn;
        demo_conn_event(conn, conn->stream, PLB_EVENT_READ, PLB_OK);
    }
}

static bool demo_origin_start(demo_origin *origin)
{
    const plb_io *io = origin->demo->io;
    plb_listen_desc desc = {.addr = origin->addr};
    plb_handler handler = {demo_accept, origin};
    plb_stream_info info;
    if (io->listen(io->self, &desc, handler, &origin->listener) != PLB_OK)
        return false;
    io->info(io->self, origin->listener, &info);
    origin->addr = info.local;
    demo_accept(origin, origin->listener, PLB_EVENT_ACCEPT, PLB_OK);
    return true;
}

static void demo_origin_stop(demo_origin *origin)
{
    const plb_io *io = origin->demo->io;
    if (origin->listener != NULL)
        io->close(io->self, origin->listener, PLB_CLOSE_ABORT);
    origin->listener = NULL;
    while (origin->conns != NULL)
        demo_conn_close(origin->conns);
}

static void demo_client_event(void *user, plb_stream *stream, plb_event event, plb_status status)
{
    static const char request[] = "GET / HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n";
    demo_client *client = user;
    const plb_io *io = client->demo->io;
    plb_chunk chunk = {request, sizeof request - 1, PLB_CHUNK_CONSTANT};
    size_t got;
    if (event != PLB_EVENT_CONNECT)
        status = PLB_OK;
    if (status == PLB_OK && !client->asked) {
        status = io->write(io->self, stream, &chunk, 1, &got);
        client->asked = true;
    }
    while (status == PLB_OK) {
        status = io->read(io->self, stream, client->answer + client->length, sizeof client->answer - 1 - client->length,
                          &got);
        if (status == PLB_AGAIN)
            return;
        if (status == PLB_OK)
            client->length += got;
        if (client->length == sizeof client->answer - 1)
            status = PLB_ERR_LIMIT;
    }
    client->answer[client->length] = '\0';
    io->close(io->self, stream, PLB_CLOSE_GRACEFUL);
    client->stream = NULL;
    if (status != PLB_END || strncmp(client->answer, "HTTP/1.1 200 ", 13) != 0)
        client->demo->failed++;
}

/* Sends one request through the proxy and waits for its end. */
static void demo_request(demo *d)
{
    plb_port port = loop_port(d->server->loop);
    uint64_t start = port.clock->now_ms(port.clock->self);
    plb_peer peer = {.addr = d->proxy_addr};
    plb_handler handler = {demo_client_event, &d->client};
    plb_status status;
    d->client.length = 0;
    d->client.asked = false;
    status = d->io->connect(d->io->self, &peer, handler, &d->client.stream);
    if (status == PLB_OK)
        demo_client_event(&d->client, d->client.stream, PLB_EVENT_CONNECT, PLB_OK);
    else if (status != PLB_AGAIN)
        d->failed++;
    while (d->client.stream != NULL && port.clock->now_ms(port.clock->self) - start < DEMO_LIMIT_MS)
        loop_step(d->server->loop, 50);
    if (d->client.stream == NULL)
        return;
    d->io->close(d->io->self, d->client.stream, PLB_CLOSE_ABORT);
    d->client.stream = NULL;
    d->failed++;
}

/* Lends the loop the thread for a while. */
static void demo_pause(demo *d, uint32_t ms)
{
    plb_port port = loop_port(d->server->loop);
    uint64_t start = port.clock->now_ms(port.clock->self), passed = 0;
    for (; passed < ms; passed = port.clock->now_ms(port.clock->self) - start)
        loop_step(d->server->loop, ms - (uint32_t)passed);
}

/* Sends requests, and says who served them; they should come out as `expected`, without a failure. */
static void demo_requests(demo *d, unsigned count, unsigned expected_a, unsigned expected_b)
{
    unsigned a, b;
    bool good;
    for (unsigned i = 0; i < count; i++) {
        demo_request(d);
        demo_pause(d, DEMO_PACE_MS);
    }
    a = d->origins[0].served;
    b = d->origins[1].served;
    good = a == expected_a && b == expected_b && d->failed == 0;
    demo_say(d, good ? GREEN : RED, "%3u requests:  A served %2u   B served %2u   failed %u%s", count, a, b, d->failed,
             good ? "" : "   (this is not as it should be)");
    d->problems += !good;
    d->origins[0].served = d->origins[1].served = d->failed = 0;
}

static bool demo_is_ready(demo *d, const plb_addr *addr)
{
    return plb_ready(d->server->lb, addr, 0);
}

/* Lends the loop the thread until checks have found out that an address is, or is not, ready. */
static void demo_await(demo *d, const plb_addr *addr, bool ready)
{
    plb_port port = loop_port(d->server->loop);
    uint64_t start = port.clock->now_ms(port.clock->self);
    while (demo_is_ready(d, addr) != ready && port.clock->now_ms(port.clock->self) - start < DEMO_LIMIT_MS)
        loop_step(d->server->loop, 50);
    if (demo_is_ready(d, addr) == ready)
        return;
    demo_say(d, RED, "%s should be %s by now", demo_name(d, addr), ready ? "ready" : "out");
    d->problems++;
}

static void demo_flip(void *user, const plb_backend_info *info, plb_status status)
{
    demo *d = user;
    const char *name = demo_name(d, &info->backend.addr);
    if (info->healthy)
        demo_say(d, GREEN, "check:  %s is back", name);
    else
        demo_say(d, RED, "check:  %s is out. %s", name, plb_status_text(status));
}

/* An address where nobody listens: one that was just given back. */
static bool demo_dead_addr(demo *d)
{
    plb_listen_desc desc = {.addr = d->dead_addr};
    plb_handler nobody = {demo_accept, NULL};
    plb_stream_info info;
    plb_stream *listener;
    if (d->io->listen(d->io->self, &desc, nobody, &listener) != PLB_OK)
        return false;
    d->io->info(d->io->self, listener, &info);
    d->io->close(d->io->self, listener, PLB_CLOSE_ABORT);
    d->dead_addr = info.local;
    return true;
}

static bool demo_open(demo *d)
{
    static const plb_addr loopback = {.family = PLB_FAMILY_IPV4, .u = {.v4 = {127, 0, 0, 1}}};
    char texts[DEMO_ORIGINS + 1][PLB_ADDR_TEXT_MAX];
    const char *addresses[DEMO_ORIGINS + 1];
    plb_static_desc list = {.addresses = addresses, .address_count = DEMO_ORIGINS + 1};
    plb_balancer_desc balancer = {.discovery = plb_static(&list),
                                  .check = plb_tcp_check(NULL),
                                  .check_every_ms = DEMO_CHECK_MS,
                                  .user = d,
                                  .on_flip = demo_flip};
    plb_listen_desc listen = {.addr = d->server->o.listen[0]};
    plb_status status;
    balancer.discovery = plb_static(&list);
    d->dead_addr = loopback;
    for (int i = 0; i < DEMO_ORIGINS; i++) {
        d->origins[i].demo = d;
        d->origins[i].name = i == 0 ? "A" : "B";
        d->origins[i].addr = loopback;
        if (!demo_origin_start(&d->origins[i]))
            return false;
        plb_addr_format(&d->origins[i].addr, texts[i], sizeof texts[i]);
        addresses[i] = texts[i];
    }
    if (!demo_dead_addr(d))
        return false;
    plb_addr_format(&d->dead_addr, texts[DEMO_ORIGINS], sizeof texts[DEMO_ORIGINS]);
    addresses[DEMO_ORIGINS] = texts[DEMO_ORIGINS];
    if (server_open(d->server, &balancer) != PLB_OK)
        return false;
    status = plb_proxy_listen(d->server->proxy, &listen, &d->proxy_addr);
    if (status == PLB_ERR_IN_USE) { /* then anywhere */
        listen.addr = loopback;
        status = plb_proxy_listen(d->server->proxy, &listen, &d->proxy_addr);
    }
    return status == PLB_OK;
}

static void demo_introduce(demo *d)
{
    char proxy[PLB_ADDR_TEXT_MAX], text[PLB_ADDR_TEXT_MAX];
    plb_addr_format(&d->proxy_addr, proxy, sizeof proxy);
    demo_say(d, HEADED, "a load balancer on %s, over three addresses:", proxy);
    for (int i = 0; i < DEMO_ORIGINS; i++) {
        plb_addr_format(&d->origins[i].addr, text, sizeof text);
        demo_say(d, PLAIN, "  %-16s  origin %s, inside this process", text, d->origins[i].name);
    }
    plb_addr_format(&d->dead_addr, text, sizeof text);
    demo_say(d, PLAIN, "  %-16s  nobody listens here", text);
}

static int demo_run(server *s)
{
    static demo d;
    plb_port port;
    d.server = s;
    d.client.demo = &d;
    d.colour = stdout_is_terminal();
    if (loop_create(NULL, &s->loop) != PLB_OK)
        return 1;
    port = loop_port(s->loop);
    d.io = port.io;
    d.start_us = port.clock->now_us(port.clock->self);
    if (!demo_open(&d)) {
        fprintf(stderr, "load_balancer: the demo cannot open its sockets on 127.0.0.1\n");
        return 1;
    }
    demo_introduce(&d);
    demo_await(&d, &d.dead_addr, false);
    demo_requests(&d, 20, 10, 10);
    demo_origin_stop(&d.origins[1]);
    demo_say(&d, HEADED, "origin B is stopped, and requests go on at once");
    demo_requests(&d, 20, 20, 0);
    demo_await(&d, &d.origins[1].addr, false);
    demo_requests(&d, 20, 20, 0);
    demo_say(&d, HEADED, "origin B is started again");
    if (!demo_origin_start(&d.origins[1])) {
        demo_say(&d, RED, "its port was taken meanwhile");
        d.problems++;
    }
    demo_await(&d, &d.origins[1].addr, true);
    demo_requests(&d, 20, 10, 10);
    demo_origin_stop(&d.origins[0]);
    demo_origin_stop(&d.origins[1]);
    if (d.problems == 0)
        demo_say(&d, HEADED, "80 requests, none failed");
    return d.problems == 0 ? 0 : 1;
}

int main(int argc, char **argv)
{
    static server s;
    int result;
    parse_options(&s.o, argc, argv);
    result = s.o.demo ? demo_run(&s) : serve(&s);
    server_close(&s);
    return result;
}
