/* A device on lwIP, for tests/ports/test_lwip_net.sh: a balancer and its checks, and the reverse proxy, over
   ports/plb_lwip.h (NO_SYS=0) on the tap device that PRECONFIGURED_TAPIF names, at 10.99.0.2/24.

       lwip_host KIND=ADDRESS... [WORD=VALUE]...

   KIND is how the backend at that address is checked: tcp, http, https, or any, which is not at all. The proxy sends
   requests to those that are checked by http or not at all; the others have no weight. Words:
   listen                   an address: proxy to the backends there
   every, timeout, connect  milliseconds: from check to check, for a check's connection and its answer each, for a
                            connection of the proxy's
   rise, fall               as plb_check's numbers
   contains, ca, name       what the answer to http and https must contain; of https
   streams, clients         that the port has; at once, at most

   It prints a line each: "up", "probe KIND ADDRESS ok|failed CODE MS TEXT", "flip ADDRESS healthy|unhealthy",
   "request STATUS ADDRESS fresh|reused ERROR" for one that failed, or whose client left; for SIGUSR1 and at the end
   "state requests=N failed=N connections=N active=N idle=N streams=N", where failed counts answers that were errors,
   and streams those of the port that are in use. SIGTERM ends it gracefully; the exit status is 0 if no stream is left
   then. */
#define _GNU_SOURCE
#define PINGORA_LB_IMPLEMENTATION
#include "../../pingora_lb.h"
#define PLB_PROXY_IMPLEMENTATION
#include "../../ports/plb_proxy.h"
#define PLB_LWIP_IMPLEMENTATION
#include "../../ports/plb_lwip.h"
#define PLB_MBEDTLS_IMPLEMENTATION
#include "../../ports/plb_mbedtls.h"

#include <lwip/priv/memp_priv.h>
#include <lwip/tcpip.h>
#include <netif/tapif.h>

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BACKENDS_MAX = 16, STREAMS_MAX = 512, DRAIN_MS = 8000, PATIENCE_MS = 60000, STEP_MS = 100 };

/* ==== WORDS ======================================================================================================= */

/* Those that check come first, in the order of the balancer's checks. */
static const struct kind {
    const char *name;
    uint32_t checks, weight; /* as plb_backend's. All checks are by name */
} kinds[] = {{"tcp", 1, 0}, {"http", 2, 1}, {"https", 4, 0}, {"any", 0, 1}};

enum { CHECKS = 3, KINDS = 4 };

typedef struct words {
    plb_addr listen; /* PLB_FAMILY_NONE: nowhere */
    uint32_t every_ms, timeout_ms, connect_ms, rise, fall, streams, clients;
    const char *contains, *ca, *name;
    plb_backend backends[BACKENDS_MAX];
    size_t backend_count;
} words;

static void give_up(const char *what, const char *why)
{
    fprintf(stderr, "lwip_host: %s: %s\n", what, why);
    exit(2);
}

static void read_number(uint32_t *out, const char *word, const char *value)
{
    char *end;
    unsigned long number = strtoul(value, &end, 10);
    if (end == value || *end != '\0' || number > 1000000)
        give_up(word, "its value is not a number");
    *out = (uint32_t)number;
}

/* Is the argument this word with a value? Then where the value is, else NULL. */
static const char *value_of(const char *argument, const char *word)
{
    size_t length = strlen(word);
    return strncmp(argument, word, length) == 0 && argument[length] == '=' ? argument + length + 1 : NULL;
}

static bool read_backend(words *w, const char *argument)
{
    plb_backend *backend = &w->backends[w->backend_count];
    const char *value = NULL;
    size_t kind;
    for (kind = 0; kind < KINDS; kind++) {
        if ((value = value_of(argument, kinds[kind].name)) != NULL)
            break;
    }
    if (value == NULL)
        return false;
    if (w->backend_count == BACKENDS_MAX || plb_backend_parse(backend, value, PLB_ZSTRING, NULL) != PLB_OK)
        give_up(argument, "not an address, or one too many");
    backend->checks = kinds[kind].checks;
    backend->weight = kinds[kind].weight;
    w->backend_count++;
    return true;
}

static bool read_word(words *w, const char *argument)
{
    const struct {
        const char *word;
        uint32_t *out;
    } numbers[] = {{"every", &w->every_ms}, {"timeout", &w->timeout_ms}, {"connect", &w->connect_ms},
                   {"rise", &w->rise},      {"fall", &w->fall},          {"streams", &w->streams},
                   {"clients", &w->clients}};
    const struct {
        const char *word, **out;
    } texts[] = {{"contains", &w->contains}, {"ca", &w->ca}, {"name", &w->name}};
    const char *value = value_of(argument, "listen");
    if (value != NULL)
        return plb_addr_parse(&w->listen, value, PLB_ZSTRING) == PLB_OK;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        if ((value = value_of(argument, numbers[i].word)) != NULL) {
            read_number(numbers[i].out, argument, value);
            return true;
        }
    }
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        if ((value = value_of(argument, texts[i].word)) != NULL) {
            *texts[i].out = value;
            return true;
        }
    }
    return false;
}

static void read_words(words *w, int argc, char **argv)
{
    memset(w, 0, sizeof *w);
    w->every_ms = 200;
    w->timeout_ms = 1000;
    w->streams = STREAMS_MAX;
    for (int i = 1; i < argc; i++) {
        if (!read_backend(w, argv[i]) && !read_word(w, argv[i]))
            give_up(argv[i], "it makes no sense");
    }
    if (w->streams > STREAMS_MAX)
        give_up("streams", "too many");
}

/* ==== THE DEVICE ================================================================================================== */

typedef struct device {
    words w;
    plb_lwip port;
    plb_mbedtls *tls;
    plb_balancer *lb;
    plb_proxy *proxy; /* NULL: it does not listen */
    plb_task reporter;
    unsigned long requests, failed;
    bool report_wanted; /* atomic: set by the thread that hears signals */
} device;

static void say_state(device *d)
{
    printf("state requests=%lu failed=%lu connections=%u active=%u idle=%u streams=%u\n", d->requests, d->failed,
           d->proxy != NULL ? (unsigned)plb_proxy_connections(d->proxy) : 0u,
           d->proxy != NULL ? (unsigned)plb_proxy_active(d->proxy) : 0u,
           d->proxy != NULL ? (unsigned)plb_proxy_idle(d->proxy) : 0u, (unsigned)plb_lwip_in_use(&d->port));
}

static uint32_t report(void *user)
{
    device *d = user;
    if (__atomic_exchange_n(&d->report_wanted, false, __ATOMIC_ACQUIRE))
        say_state(d);
    return PLB_FOREVER;
}

static void *hear_signals(void *user)
{
    device *d = user;
    plb_port port = plb_lwip_port(&d->port);
    sigset_t signals;
    int number;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGUSR1);
    while (sigwait(&signals, &number) == 0 && number == SIGUSR1) {
        __atomic_store_n(&d->report_wanted, true, __ATOMIC_RELEASE);
        port.io->wake(port.io->self);
    }
    plb_lwip_stop(&d->port);
    return NULL;
}

/* All threads inherit it, lwIP's too, so that only the one above hears of signals. */
static void block_signals(void)
{
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
}

static void on_probe(void *user, const plb_backend_info *info, uint32_t check, const plb_probe_info *probe)
{
    char address[PLB_ADDR_TEXT_MAX];
    (void)user;
    plb_addr_format(&info->backend.addr, address, sizeof address);
    printf("probe %s %s %s %u %u %s\n", kinds[check].name, address, probe->status == PLB_OK ? "ok" : "failed",
           (unsigned)probe->code, (unsigned)(probe->latency_us / 1000), probe->text);
}

static void on_flip(void *user, const plb_backend_info *info, plb_status status)
{
    char address[PLB_ADDR_TEXT_MAX];
    (void)user, (void)status;
    plb_addr_format(&info->backend.addr, address, sizeof address);
    printf("flip %s %s\n", address, info->healthy ? "healthy" : "unhealthy");
}

static plb_status upstream_peer(void *user, plb_session *session, plb_pick *pick)
{
    device *d = user;
    plb_request request = {0};
    request.exclude = plb_session_tried(session, &request.exclude_count);
    return plb_begin(d->lb, &request, pick);
}

static bool fail_to_connect(void *user, plb_session *session, const plb_pick *pick, plb_status status)
{
    (void)user, (void)session, (void)pick, (void)status;
    return true;
}

static void log_request(void *user, plb_session *session, const plb_session_report *r)
{
    device *d = user;
    char upstream[PLB_ADDR_TEXT_MAX] = "-";
    (void)session;
    d->requests++;
    if (r->status < 400 && r->error == PLB_OK)
        return;
    d->failed += r->status >= 400;
    if (r->upstream.family != PLB_FAMILY_NONE)
        plb_addr_format(&r->upstream, upstream, sizeof upstream);
    printf("request %u %s %s %s\n", r->status, upstream, r->upstream_reused ? "reused" : "fresh",
           plb_status_text(r->error));
}

/* ==== THE NETWORK ================================================================================================= */

static struct netif tap;

/* Debian's lwIP 2.1.3 makes the pbufs of this pool for 592 bytes, and fills them as if they were made for the 1536 that
   its headers say: a frame of the tap device that is longer overruns the heap. The linker takes a program's definition
   before a library's. */
LWIP_MEMPOOL_DECLARE(PBUF_POOL, PBUF_POOL_SIZE,
                     LWIP_MEM_ALIGN_SIZE(sizeof(struct pbuf)) + LWIP_MEM_ALIGN_SIZE(PBUF_POOL_BUFSIZE), "PBUF_POOL")

static void network_up(void *user)
{
    ip4_addr_t address, mask, gateway;
    IP4_ADDR(&address, 10, 99, 0, 2);
    IP4_ADDR(&mask, 255, 255, 255, 0);
    IP4_ADDR(&gateway, 10, 99, 0, 1);
    netif_add(&tap, &address, &mask, &gateway, NULL, tapif_init, tcpip_input);
    netif_set_default(&tap);
    netif_set_up(&tap);
    sys_sem_signal((sys_sem_t *)user);
}

/* Starts lwIP's thread, and waits until it has the device. */
static void network_start(void)
{
    sys_sem_t up;
    if (sys_sem_new(&up, 0) != ERR_OK)
        give_up("lwIP", "no semaphore");
    tcpip_init(network_up, &up);
    sys_sem_wait(&up);
    sys_sem_free(&up);
}

/* ==== BEGINNING AND END =========================================================================================== */

static plb_status open_balancer(device *d, plb_port port)
{
    plb_tls tls = {.name = d->w.name};
    plb_tcp_check_desc tcp = {.timeout_ms = d->w.timeout_ms};
    plb_http_check_desc http = {.connect = tcp, .contains = d->w.contains}, https = http;
    plb_check checks[CHECKS] = {plb_tcp_check(&tcp), plb_http_check(&http), plb_http_check(&https)};
    plb_static_desc list = {.backends = d->w.backends, .backend_count = d->w.backend_count};
    plb_balancer_desc desc = {.port = port,
                              .discovery = plb_static(&list),
                              .checks = checks,
                              .check_count = CHECKS,
                              .check_every_ms = d->w.every_ms,
                              .user = d,
                              .on_probe = on_probe,
                              .on_flip = on_flip};
    https.connect.tls = &tls;
    for (size_t i = 0; i < CHECKS; i++) {
        checks[i].consecutive_success = d->w.rise;
        checks[i].consecutive_failure = d->w.fall;
        checks[i].by_name = true;
    }
    return plb_create(&desc, &d->lb);
}

static plb_status open_proxy(device *d, plb_port port)
{
    plb_proxy_desc desc = {.port = port,
                           .user = d,
                           .upstream_peer = upstream_peer,
                           .fail_to_connect = fail_to_connect,
                           .logging = log_request,
                           .max_connections = d->w.clients,
                           .header_ms = PATIENCE_MS,
                           .connect_ms = d->w.connect_ms};
    plb_listen_desc listen = {.addr = d->w.listen};
    plb_status status = plb_proxy_create(&desc, &d->proxy);
    return status == PLB_OK ? plb_proxy_listen(d->proxy, &listen, NULL) : status;
}

/* Lends the port the thread until `count` is 0, but not for ever. */
static void step_until_none(device *d, size_t (*count)(device *d))
{
    const plb_clock *clock = plb_lwip_port(&d->port).clock;
    uint32_t start = (uint32_t)clock->now_ms(clock->self);
    while (count(d) > 0 && (uint32_t)clock->now_ms(clock->self) - start < DRAIN_MS)
        plb_lwip_step(&d->port, STEP_MS);
}

static size_t count_connections(device *d)
{
    return plb_proxy_connections(d->proxy);
}

static size_t count_streams(device *d)
{
    return plb_lwip_in_use(&d->port);
}

static void device_open(device *d)
{
    static plb_lwip_stream streams[STREAMS_MAX];
    plb_lwip_desc desc = {.streams = streams, .stream_count = d->w.streams};
    plb_mbedtls_desc tls = {.identity = {.ca_file = d->w.ca, .no_ca = true}};
    plb_port port;
    plb_status status = plb_lwip_init(&d->port, &desc);
    if (status != PLB_OK)
        give_up("lwIP", plb_status_text(status));
    port = plb_lwip_port(&d->port);
    tls.io = port.io;
    status = plb_mbedtls_create(&tls, &d->tls);
    if (status != PLB_OK)
        give_up("TLS", plb_status_text(status));
    port.io = plb_mbedtls_io(d->tls);
    status = open_balancer(d, port);
    if (status == PLB_OK && d->w.listen.family != PLB_FAMILY_NONE)
        status = open_proxy(d, port);
    if (status != PLB_OK)
        give_up("cannot start", plb_status_text(status));
}

static void device_run(device *d)
{
    pthread_t thread;
    d->reporter.poll = report;
    d->reporter.user = d;
    plb_lwip_add(&d->port, plb_balancer_task(d->lb));
    if (d->proxy != NULL)
        plb_lwip_add(&d->port, plb_proxy_task(d->proxy));
    plb_lwip_add(&d->port, &d->reporter);
    if (pthread_create(&thread, NULL, hear_signals, d) != 0)
        give_up("cannot start", "no thread");
    puts("up");
    plb_lwip_run(&d->port);
    pthread_join(thread, NULL);
}

/* Lets requests in flight end, then closes all; returns how many streams of the port are left. */
static size_t device_close(device *d)
{
    size_t left;
    if (d->proxy != NULL) {
        plb_proxy_drain(d->proxy);
        step_until_none(d, count_connections);
        plb_lwip_remove(&d->port, plb_proxy_task(d->proxy));
        plb_proxy_destroy(d->proxy);
        d->proxy = NULL;
    }
    plb_lwip_remove(&d->port, plb_balancer_task(d->lb));
    plb_destroy(d->lb);
    plb_mbedtls_destroy(d->tls);
    step_until_none(d, count_streams);
    say_state(d);
    left = count_streams(d);
    plb_lwip_remove(&d->port, &d->reporter);
    plb_lwip_deinit(&d->port);
    return left;
}

int main(int argc, char **argv)
{
    static device d;
    read_words(&d.w, argc, argv);
    setvbuf(stdout, NULL, _IOLBF, 0);
    block_signals();
    srand((unsigned)time(NULL) ^ (unsigned)getpid()); /* LWIP_RAND: other local ports than the last run's */
    network_start();
    device_open(&d);
    device_run(&d);
    return device_close(&d) == 0 ? 0 : 1; /* lwIP's threads end with the process */
}
