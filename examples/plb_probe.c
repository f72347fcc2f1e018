/* Is it healthy? Probes backends by any check of the library, and prints what each of them said: a check can be tried
   here before it goes into a program.

       build/plb_probe tcp 10.0.0.1:80 db.example:5432 */
#define _GNU_SOURCE
#define PINGORA_LB_IMPLEMENTATION
#include "../pingora_lb.h"

/* The platform: the port that drives everything is the event loop from here on. */
#ifdef _WIN32
#define PLB_WIN32_IMPLEMENTATION
#include "../ports/plb_win32.h"
typedef plb_win32 event_loop;
#define loop_create  plb_win32_create
#define loop_destroy plb_win32_destroy
#define loop_port    plb_win32_port
#define loop_add     plb_win32_add
#define loop_remove  plb_win32_remove
#define loop_run     plb_win32_run
#define loop_stop    plb_win32_stop
#else
#define PLB_POSIX_IMPLEMENTATION
#include "../ports/plb_posix.h"
typedef plb_posix event_loop;
#define loop_create  plb_posix_create
#define loop_destroy plb_posix_destroy
#define loop_port    plb_posix_port
#define loop_add     plb_posix_add
#define loop_remove  plb_posix_remove
#define loop_run     plb_posix_run
#define loop_stop    plb_posix_stop
#endif
#ifdef PLB_HAVE_MBEDTLS
#define PLB_MBEDTLS_IMPLEMENTATION
#include "../ports/plb_mbedtls.h"
#endif

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
    "usage: plb_probe KIND [OPTION]... ADDRESS...\n"
    "\n"
    "Probes each address and prints a line for each probe: ADDRESS, ok or failed, the protocol's own number (an HTTP\n"
    "status, say), how long it took, and what it said.\n"
    "\n"
    "KIND\n"
    "  tcp                   a connection is enough\n"
    "  tls                   a TLS handshake is enough\n"
    "  http, https           an answer of HTTP/1.1\n"
    "  h2, h2c               an answer of HTTP/2: over TLS, or without it by prior knowledge\n"
    "  grpc, grpcs           SERVING from gRPC's health service\n"
    "  redis, memcached      an answer to PING, or to version\n"
    "  smtp                  the greeting, and an answer to EHLO\n"
    "  mysql, postgres       the greeting, or an answer to SSLRequest\n"
    "  expect                what --send and the like say\n"
    "  agent                 a line of HAProxy's agent-check\n"
    "\n"
    "WHAT (http, https, h2, h2c)\n"
    "  --method METHOD       (GET)\n"
    "  --path PATH           (/)\n"
    "  --host HOST           whom to ask for (the host of the address)\n"
    "  --header LINE         one more header line; may come again\n"
    "  --status LIST         what is a success, such as 200-299,404 (200)\n"
    "  --contains TEXT       the body must contain it\n"
    "  --body-limit N        look at so many bytes of the body (65536)\n"
    "  --keep                keep the connection for the next probe\n"
    "WHAT (grpc, grpcs)\n"
    "  --service NAME        the service to ask about (the server as a whole)\n"
    "  --host, --keep        as above\n"
    "WHAT (expect), in steps; TEXT may have \\r \\n \\t \\0 \\\\ and \\xHH\n"
    "  --send TEXT           first send this, then\n"
    "  --prefix TEXT         expect an answer that begins so;\n"
    "  --substring TEXT      or has this in it;\n"
    "  --exact TEXT          or is this; each of them ends a step, and another may follow\n"
    "WHAT (agent)\n"
    "  --send TEXT           first send this\n"
    "\n"
    "WHEN\n"
    "  --count N             probes of each address; 0: until it is interrupted (1)\n"
    "  --every MS            from one probe of an address to the next (1000)\n"
    "  --timeout MS          for the connection, and once more for the answer (1000)\n"
    "  --rise N, --fall N    probes in a row that make an address healthy, or unhealthy (1)\n"
    "  --metrics             at the end, all figures as Prometheus text\n"
    "\n"
    "WHERE\n"
    "  --port N              connect to this port of each address\n"
    "  --source IP           connect from this address\n"
    "\n"
    "TLS\n"
    "  --tls                 with any KIND: over TLS\n"
    "  --ca FILE             trust these authorities instead of the system's\n"
    "  --cert FILE           show this certificate when the server asks for one\n"
    "  --key FILE            its key\n"
    "  --name NAME           the certificate must be for this name (--host, the host of the address, or its IP)\n"
    "  --any-chain           take a certificate that nobody vouches for, or that is out of date\n"
    "  --any-name            take a certificate that is for somebody else\n"
    "\n"
    "  -h, --help            this text\n"
    "\n"
    "ADDRESS is 1.2.3.4:80, [::1]:80, unix:/path or HOST:80; a host may have several addresses.\n"
    "Exits with 0 if all of them may be used at the end: healthy, and no agent against it; 1 if not; 2 if an argument\n"
    "makes no sense.\n";

/* ==== FAILURES ==================================================================================================== */

static void say(const char *format, va_list arguments)
{
    fflush(stdout);
    fputs("plb_probe: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
}

/* What was asked makes no sense. */
static void reject(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    say(format, arguments);
    va_end(arguments);
    fputs("Try 'plb_probe --help'.\n", stderr);
    exit(2);
}

/* It makes sense, but it did not work. */
static void give_up(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    say(format, arguments);
    va_end(arguments);
    exit(1);
}

static void *allocate(void *old, size_t size)
{
    void *memory = realloc(old, size);
    if (memory == NULL)
        give_up("out of memory");
    return memory;
}

/* ==== OPTIONS ===================================================================================================== */

typedef struct options options;

/* One way to probe. */
typedef struct kind {
    const char *name;
    bool tls;                                            /* always */
    plb_check (*plain)(const plb_connect_desc *connect); /* one that has no options of its own; or else */
    plb_check (*make)(const options *o, const plb_connect_desc *connect);
} kind;

struct options {
    const kind *kind;
    uint32_t count, every_ms, timeout_ms, rise, fall, port, body_limit;
    const char *source, *ca, *cert, *key, *name;
    const char *method, *path, *host, *status, *contains, *service;
    char *headers;
    plb_expect_step *steps;
    size_t step_count; /* those that are whole */
    const char *send;  /* of the step that is not */
    size_t send_size;
    bool tls, any_chain, any_name, metrics, keep;
    plb_backend *backends;
    size_t backend_count;
};

static const plb_http_check_desc *describe_http(const options *o, const plb_connect_desc *connect)
{
    static plb_http_check_desc desc; /* plb_create reads it */
    desc.connect = *connect;
    desc.answer_ms = o->timeout_ms;
    desc.method = o->method;
    desc.path = o->path;
    desc.host = o->host;
    desc.headers = o->headers;
    desc.statuses = o->status;
    desc.contains = o->contains;
    desc.body_limit = o->body_limit;
    desc.reuse_connection = o->keep;
    return &desc;
}

static plb_check make_http(const options *o, const plb_connect_desc *connect)
{
    return plb_http_check(describe_http(o, connect));
}

static plb_check make_http2(const options *o, const plb_connect_desc *connect)
{
    return plb_http2_check(describe_http(o, connect));
}

static plb_check make_grpc(const options *o, const plb_connect_desc *connect)
{
    static plb_grpc_check_desc desc; /* plb_create reads it */
    desc.connect = *connect;
    desc.answer_ms = o->timeout_ms;
    desc.service = o->service;
    desc.host = o->host;
    desc.reuse_connection = o->keep;
    return plb_grpc_check(&desc);
}

static plb_check make_expect(const options *o, const plb_connect_desc *connect)
{
    static plb_expect_check_desc desc; /* plb_create reads it */
    if (o->step_count == 0 || o->send != NULL)
        reject("expect: what is to come? --prefix, --substring or --exact says so%s",
               o->send != NULL ? ", after --send too" : "");
    desc.connect = *connect;
    desc.answer_ms = o->timeout_ms;
    desc.steps = o->steps;
    desc.step_count = o->step_count;
    return plb_expect_check(&desc);
}

static plb_check make_agent(const options *o, const plb_connect_desc *connect)
{
    static plb_agent_check_desc desc; /* plb_create reads it */
    desc.connect = *connect;
    desc.answer_ms = o->timeout_ms;
    desc.send = o->send;
    desc.must_answer = true; /* what does not answer is not healthy here */
    return plb_agent_check(&desc);
}

static const kind kinds[] = {
    {"tcp", false, plb_tcp_check, NULL},
    {"tls", true, plb_tcp_check, NULL},
    {"http", false, NULL, make_http},
    {"https", true, NULL, make_http},
    {"h2", true, NULL, make_http2},
    {"h2c", false, NULL, make_http2},
    {"grpc", false, NULL, make_grpc},
    {"grpcs", true, NULL, make_grpc},
    {"redis", false, plb_redis_check, NULL},
    {"memcached", false, plb_memcached_check, NULL},
    {"smtp", false, plb_smtp_check, NULL},
    {"mysql", false, plb_mysql_check, NULL},
    {"postgres", false, plb_postgres_check, NULL},
    {"expect", false, NULL, make_expect},
    {"agent", false, NULL, make_agent},
};

static const kind *find_kind(const char *name)
{
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(kinds[i].name, name) == 0)
            return &kinds[i];
    reject("'%s' is not a kind of probe; the first argument is one", name);
    return NULL;
}

/* The last ones are collected. */
typedef enum option_type {
    OPTION_FLAG,
    OPTION_TEXT,
    OPTION_NUMBER,
    OPTION_HEADER,
    OPTION_SEND,
    OPTION_EXPECT
} option_type;

typedef struct option {
    const char *name;
    option_type type;
    size_t at;         /* the member of options that it sets; OPTION_EXPECT: a plb_expect_kind */
    uint32_t min, max; /* of a number */
    const char *kinds; /* that it goes with, between spaces; NULL: all */
} option;

#define TAKES_FLAG(name, member, kinds)                                                                                \
    {                                                                                                                  \
        name, OPTION_FLAG, offsetof(options, member), 0, 0, kinds                                                      \
    }
#define TAKES_TEXT(name, member, kinds)                                                                                \
    {                                                                                                                  \
        name, OPTION_TEXT, offsetof(options, member), 0, 0, kinds                                                      \
    }
#define TAKES_NUMBER(name, member, min, max, kinds)                                                                    \
    {                                                                                                                  \
        name, OPTION_NUMBER, offsetof(options, member), min, max, kinds                                                \
    }

#define HTTP_KINDS "http https h2 h2c"

enum { MS_MAX = 86400000 };

static const option known_options[] = {
    TAKES_NUMBER("--count", count, 0, UINT32_MAX, NULL),
    TAKES_NUMBER("--every", every_ms, 1, MS_MAX, NULL),
    TAKES_NUMBER("--timeout", timeout_ms, 1, MS_MAX, NULL),
    TAKES_NUMBER("--rise", rise, 1, 65535, NULL),
    TAKES_NUMBER("--fall", fall, 1, 65535, NULL),
    TAKES_NUMBER("--port", port, 1, 65535, NULL),
    TAKES_TEXT("--source", source, NULL),
    TAKES_FLAG("--tls", tls, NULL),
    TAKES_TEXT("--ca", ca, NULL),
    TAKES_TEXT("--cert", cert, NULL),
    TAKES_TEXT("--key", key, NULL),
    TAKES_TEXT("--name", name, NULL),
    TAKES_FLAG("--any-chain", any_chain, NULL),
    TAKES_FLAG("--any-name", any_name, NULL),
    TAKES_FLAG("--metrics", metrics, NULL),
    TAKES_TEXT("--method", method, HTTP_KINDS),
    TAKES_TEXT("--path", path, HTTP_KINDS),
    TAKES_TEXT("--host", host, HTTP_KINDS " grpc grpcs"),
    TAKES_TEXT("--status", status, HTTP_KINDS),
    TAKES_TEXT("--contains", contains, HTTP_KINDS),
    TAKES_TEXT("--service", service, "grpc grpcs"),
    TAKES_NUMBER("--body-limit", body_limit, 1, UINT32_MAX, HTTP_KINDS),
    TAKES_FLAG("--keep", keep, HTTP_KINDS " grpc grpcs"),
    {"--header", OPTION_HEADER, 0, 0, 0, HTTP_KINDS},
    {"--send", OPTION_SEND, 0, 0, 0, "expect agent"},
    {"--prefix", OPTION_EXPECT, PLB_EXPECT_PREFIX, 0, 0, "expect"},
    {"--substring", OPTION_EXPECT, PLB_EXPECT_SUBSTRING, 0, 0, "expect"},
    {"--exact", OPTION_EXPECT, PLB_EXPECT_EXACT, 0, 0, "expect"},
};

static const option *find_option(const char *name)
{
    for (size_t i = 0; i < sizeof known_options / sizeof *known_options; i++)
        if (strcmp(known_options[i].name, name) == 0)
            return &known_options[i];
    reject("'%s' is not an option", name);
    return NULL;
}

static uint32_t parse_number(const option *what, const char *text)
{
    size_t length = strlen(text);
    unsigned long long number = strtoull(text, NULL, 10);
    if (length == 0 || length > 10 || strspn(text, "0123456789") != length || number < what->min || number > what->max)
        reject("%s: '%s' is not a number from %u to %u", what->name, text, (unsigned)what->min, (unsigned)what->max);
    return (uint32_t)number;
}

/* Does the list have that word? */
static bool has_word(const char *list, const char *word)
{
    size_t length = strlen(word);
    for (const char *at = list; (at = strstr(at, word)) != NULL; at += length)
        if ((at == list || at[-1] == ' ') && (at[length] == ' ' || at[length] == '\0'))
            return true;
    return false;
}

static int hex_digit(char c)
{
    static const char digits[] = "0123456789abcdef0123456789ABCDEF";
    const char *at = c != '\0' ? strchr(digits, c) : NULL;
    return at != NULL ? (int)((at - digits) % 16) : -1;
}

/* What stands behind a backslash; *text is moved past it. */
static char unescape(const char *name, const char *whole, const char **text)
{
    static const char names[] = "rnt0\\", bytes[] = "\r\n\t\0\\";
    char c = *(*text)++;
    const char *at = c != '\0' ? strchr(names, c) : NULL;
    if (at != NULL)
        return bytes[at - names];
    if (c != 'x' || hex_digit((*text)[0]) < 0 || hex_digit((*text)[1]) < 0)
        reject("%s: in '%s' only \\r \\n \\t \\0 \\\\ and \\xHH may stand behind a backslash", name, whole);
    *text += 2;
    return (char)(hex_digit((*text)[-2]) * 16 + hex_digit((*text)[-1]));
}

/* A copy with what the backslashes stand for, and a NUL at the end. */
static char *parse_bytes(const char *name, const char *text, size_t *size)
{
    char *bytes = (char *)allocate(NULL, strlen(text) + 1), *end = bytes;
    for (const char *at = text; *at != '\0';) {
        char c = *at++;
        *end++ = c != '\\' ? c : unescape(name, text, &at);
    }
    *end = '\0';
    *size = (size_t)(end - bytes);
    if (*size == 0)
        reject("%s: the text is empty", name);
    return bytes;
}

static void add_header(options *o, const char *line)
{
    size_t before = o->headers != NULL ? strlen(o->headers) : 0;
    o->headers = (char *)allocate(o->headers, before + strlen(line) + 3);
    sprintf(o->headers + before, "%s\r\n", line);
}

static void add_send(options *o, const char *name, const char *value)
{
    if (o->send != NULL)
        reject("%s: what is to come before the next one is sent? --prefix, --substring or --exact says so", name);
    o->send = parse_bytes(name, value, &o->send_size);
}

/* Ends a step. */
static void add_expect(options *o, const option *what, const char *value)
{
    plb_expect_step *step;
    o->steps = (plb_expect_step *)allocate(o->steps, (o->step_count + 1) * sizeof *o->steps);
    step = &o->steps[o->step_count++];
    memset(step, 0, sizeof *step);
    step->send = o->send;
    step->send_size = o->send_size;
    step->kind = (plb_expect_kind)what->at;
    step->expect = parse_bytes(what->name, value, &step->expect_size);
    o->send = NULL;
    o->send_size = 0;
}

static void parse_value(options *o, const option *what, const char *value)
{
    void *member = (char *)o + what->at;
    if (what->type == OPTION_NUMBER)
        *(uint32_t *)member = parse_number(what, value);
    else if (what->type == OPTION_TEXT)
        *(const char **)member = value;
    else if (what->type == OPTION_HEADER)
        add_header(o, value);
    else if (what->type == OPTION_SEND)
        add_send(o, what->name, value);
    else
        add_expect(o, what, value);
}

/* Reads one option; returns how many arguments it has taken. */
static int parse_option(options *o, const char *name, const char *value)
{
    const option *what = find_option(name);
    if (what->kinds != NULL && !has_word(what->kinds, o->kind->name))
        reject("%s goes with %s, not with %s", name, what->kinds, o->kind->name);
    if (what->type == OPTION_FLAG) {
        *(bool *)(void *)((char *)o + what->at) = true;
        return 1;
    }
    if (value == NULL)
        reject("%s needs a value", name);
    parse_value(o, what, value);
    return 2;
}

static char *copy_text(const char *text)
{
    return strcpy((char *)allocate(NULL, strlen(text) + 1), text);
}

static void parse_backend(options *o, const char *text)
{
    plb_backend *backend = &o->backends[o->backend_count++];
    char name[256];
    if (plb_backend_parse(backend, text, PLB_ZSTRING, name) != PLB_OK)
        reject("'%s' is not an address such as 1.2.3.4:80, [::1]:80, unix:/path or host:80", text);
    if (backend->name != NULL)
        backend->name = copy_text(backend->name);
}

/* What can only be seen once all arguments are read. */
static void check_options(options *o)
{
    if (o->backend_count == 0)
        reject("no address: at least one is needed");
    o->tls = o->tls || o->kind->tls;
    if (!o->tls &&
        (o->ca != NULL || o->cert != NULL || o->key != NULL || o->name != NULL || o->any_chain || o->any_name))
        reject("%s has no TLS: --ca, --cert, --key, --name, --any-chain and --any-name go with --tls", o->kind->name);
    if ((o->cert == NULL) != (o->key == NULL))
        reject("--cert and --key: one needs the other");
#ifndef PLB_HAVE_MBEDTLS
    if (o->tls)
        reject("%s: this program was built without TLS; it needs mbedTLS (Debian: libmbedtls-dev)",
               o->kind->tls ? o->kind->name : "--tls");
#endif
    for (size_t i = 0; i < o->backend_count; i++)
        if (o->tls && !o->any_name && o->name == NULL && o->host == NULL &&
            o->backends[i].addr.family == PLB_FAMILY_UNIX)
            reject("a Unix socket has no name that its certificate could be for: --name or --any-name is needed");
}

static void parse_options(options *o, int argc, char **argv)
{
    memset(o, 0, sizeof *o);
    o->count = 1;
    o->every_ms = o->timeout_ms = 1000;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "-h") == 0 || strcmp(argv[i], "--help") == 0) {
            fputs(usage, stdout);
            exit(fflush(stdout) == 0 ? 0 : 1);
        }
    }
    if (argc <= 1)
        reject("no kind of probe: the first argument says how, such as tcp or https");
    o->kind = find_kind(argv[1]);
    o->backends = (plb_backend *)allocate(NULL, (size_t)argc * sizeof *o->backends);
    for (int i = 2; i < argc;) {
        if (argv[i][0] == '-')
            i += parse_option(o, argv[i], i + 1 < argc ? argv[i + 1] : NULL);
        else
            parse_backend(o, argv[i++]);
    }
    check_options(o);
}

static void free_options(options *o)
{
    for (size_t i = 0; i < o->backend_count; i++)
        free((void *)(uintptr_t)o->backends[i].name);
    for (size_t i = 0; i < o->step_count; i++) {
        free((void *)(uintptr_t)o->steps[i].send);
        free((void *)(uintptr_t)o->steps[i].expect);
    }
    free(o->steps);
    free((void *)(uintptr_t)o->send);
    free(o->headers);
    free(o->backends);
}

/* ==== PROBING ===================================================================================================== */

typedef struct prober {
    options o;
    event_loop *loop;
    plb_port port;
    plb_balancer *lb;
    uint32_t *rounds; /* probes so far, by slot */
    uint32_t slots;
    bool discovered; /* names are resolved */
    bool troubled;   /* or some are not */
} prober;

static uint32_t *rounds_of(prober *p, uint32_t slot)
{
    if (slot >= p->slots) {
        uint32_t slots = slot + 64;
        p->rounds = (uint32_t *)allocate(p->rounds, slots * sizeof *p->rounds);
        memset(p->rounds + p->slots, 0, (slots - p->slots) * sizeof *p->rounds);
        p->slots = slots;
    }
    return &p->rounds[slot];
}

static void check_output(void)
{
    if (fflush(stdout) != 0 || ferror(stdout))
        give_up("standard output: %s", strerror(errno));
}

typedef struct census {
    prober *p;
    bool all_probed, all_ready, any;
} census;

static bool count_backend(void *user, const plb_backend_info *info)
{
    census *c = (census *)user;
    c->any = true;
    c->all_ready = c->all_ready && info->ready;
    c->all_probed = c->all_probed && *rounds_of(c->p, info->slot) >= c->p->o.count;
    return true;
}

static census count_backends(prober *p)
{
    census c = {p, true, true, false};
    plb_each(p->lb, count_backend, &c);
    return c;
}

static void on_probe(void *user, const plb_backend_info *info, uint32_t check, const plb_probe_info *probe)
{
    prober *p = (prober *)user;
    char address[PLB_ADDR_TEXT_MAX], code[12] = "-";
    uint32_t *rounds = rounds_of(p, info->slot);
    (void)check;
    if (p->o.count != 0 && *rounds == p->o.count)
        return; /* the others still have some to go */
    ++*rounds;
    if (probe->code != 0)
        snprintf(code, sizeof code, "%u", (unsigned)probe->code);
    plb_addr_format(&info->backend.addr, address, sizeof address);
    printf("%-21s  %-6s  %3s  %5u.%03u ms  %s\n", address, probe->status == PLB_OK ? "ok" : "failed", code,
           (unsigned)(probe->latency_us / 1000), (unsigned)(probe->latency_us % 1000), probe->text);
    check_output();
    if (p->o.count != 0 && *rounds == p->o.count && count_backends(p).all_probed)
        loop_stop(p->loop);
}

static void on_flip(void *user, const plb_backend_info *info, plb_status status)
{
    prober *p = (prober *)user;
    char address[PLB_ADDR_TEXT_MAX];
    (void)status;
    if (p->o.count == 1)
        return; /* the probe's line has said it */
    plb_addr_format(&info->backend.addr, address, sizeof address);
    printf("%-21s  is %s\n", address, info->healthy ? "healthy" : "unhealthy");
    check_output();
}

static void on_first_update(void *user, plb_balancer *lb, plb_status status)
{
    prober *p = (prober *)user;
    p->lb = lb;
    p->discovered = true;
    p->troubled = p->troubled || status != PLB_OK;
    if (!count_backends(p).any)
        loop_stop(p->loop);
}

/* What probes find out, on_probe has printed; here is why there is no probe. */
static void log_line(void *user, plb_log_level level, const char *line)
{
    prober *p = (prober *)user;
    if (p->discovered && level > PLB_LOG_ERROR)
        return;
    p->troubled = true;
    fflush(stdout);
    fprintf(stderr, "plb_probe: %s\n", line);
}

static event_loop *interruptible;

/* The first signal ends it in good order, a second one at once. */
static void interrupt(int number)
{
    signal(number, SIG_DFL);
    loop_stop(interruptible);
}

static void catch_signals(event_loop *loop)
{
    interruptible = loop;
    signal(SIGINT, interrupt);
    signal(SIGTERM, interrupt);
}

#ifdef PLB_HAVE_MBEDTLS

static plb_mbedtls *tls_open(prober *p)
{
    char error[256] = "";
    plb_mbedtls_desc desc = {.io = p->port.io,
                             .identity = {.ca_file = p->o.ca,
                                          .cert_file = p->o.cert,
                                          .key_file = p->o.key,
                                          .error = error,
                                          .error_capacity = sizeof error}};
    plb_mbedtls *tls;
    plb_status status = plb_mbedtls_create(&desc, &tls);
    if (status == PLB_ERR_ARGUMENT)
        reject("%s", error);
    if (status != PLB_OK)
        give_up("TLS: %s", error[0] != '\0' ? error : plb_status_text(status));
    p->port.io = plb_mbedtls_io(tls);
    return tls;
}

#else

typedef void plb_mbedtls;

static plb_mbedtls *tls_open(prober *p)
{
    (void)p;
    return NULL;
}

static void plb_mbedtls_destroy(plb_mbedtls *tls)
{
    (void)tls;
}

#endif

static plb_addr parse_source(const char *text)
{
    static const char *const frames[][2] = {{"", ":1"}, {"[", "]:1"}};
    char framed[PLB_ADDR_TEXT_MAX];
    plb_addr addr;
    for (size_t i = 0; i < sizeof frames / sizeof *frames; i++) {
        int length = snprintf(framed, sizeof framed, "%s%s%s", frames[i][0], text, frames[i][1]);
        if (length < (int)sizeof framed && plb_addr_parse(&addr, framed, PLB_ZSTRING) == PLB_OK &&
            addr.family != PLB_FAMILY_UNIX) {
            addr.port = 0;
            return addr;
        }
    }
    reject("--source: '%s' is not an address such as 1.2.3.4 or ::1", text);
    return addr;
}

/* One of the options that the check was given is wrong; these are they. */
static void reject_check(const options *o)
{
    char given[512] = "";
    for (size_t i = 0; i < sizeof known_options / sizeof *known_options; i++) {
        const option *what = &known_options[i];
        const char *value = o->headers;
        size_t length = strlen(given);
        if (what->type == OPTION_TEXT)
            value = *(const char *const *)(const void *)((const char *)o + what->at);
        if ((what->type == OPTION_TEXT || what->type == OPTION_HEADER) && what->kinds != NULL && value != NULL)
            snprintf(given + length, sizeof given - length, "%s%s '%.*s'", length > 0 ? ", " : "", what->name,
                     (int)strcspn(value, "\r"), value);
    }
    reject("%s makes no sense of what it was given: %s", o->kind->name, given);
}

/* Makes the balancer and probes until it is over. */
static void probe_all(prober *p)
{
    options *o = &p->o;
    plb_tls tls = {.name = o->name, .any_chain = o->any_chain, .any_name = o->any_name};
    plb_connect_desc connect = {.timeout_ms = o->timeout_ms, .port = (uint16_t)o->port};
    plb_static_desc list = {.backends = o->backends, .backend_count = o->backend_count};
    plb_balancer_desc desc = {.port = p->port,
                              .start_unhealthy = true,
                              .user = p,
                              .on_probe = on_probe,
                              .on_flip = on_flip,
                              .on_first_update = on_first_update,
                              .log = log_line,
                              .log_level = PLB_LOG_WARN};
    plb_status status;
    if (o->tls)
        connect.tls = &tls;
    if (o->source != NULL)
        connect.source = parse_source(o->source);
    desc.discovery = plb_static(&list);
    desc.check = o->kind->plain != NULL ? o->kind->plain(&connect) : o->kind->make(o, &connect);
    desc.check.consecutive_success = o->rise;
    desc.check.consecutive_failure = o->fall;
    desc.check_every_ms = o->count == 1 ? 0 : o->every_ms;
    status = plb_create(&desc, &p->lb);
    if (status == PLB_ERR_ARGUMENT)
        reject_check(o);
    if (status != PLB_OK)
        give_up("%s", plb_status_text(status));
    loop_add(p->loop, plb_balancer_task(p->lb));
    loop_run(p->loop);
    loop_remove(p->loop, plb_balancer_task(p->lb));
}

static void print_metrics(plb_balancer *lb)
{
    size_t size = plb_metrics(lb, NULL, 0) + 1;
    char *text = (char *)allocate(NULL, size);
    plb_metrics(lb, text, size);
    fputs(text, stdout);
    check_output();
    free(text);
}

int main(int argc, char **argv)
{
    prober p;
    plb_mbedtls *tls = NULL;
    plb_status status;
    census end;
    memset(&p, 0, sizeof p);
    parse_options(&p.o, argc, argv);
    status = loop_create(NULL, &p.loop);
    if (status != PLB_OK)
        give_up("%s", plb_status_text(status));
    p.port = loop_port(p.loop);
    catch_signals(p.loop);
    if (p.o.tls)
        tls = tls_open(&p);
    probe_all(&p);
    end = count_backends(&p);
    if (p.o.metrics)
        print_metrics(p.lb);
    plb_destroy(p.lb);
    plb_mbedtls_destroy(tls);
    loop_destroy(p.loop);
    free_options(&p.o);
    free(p.rounds);
    return end.any && end.all_ready && !p.troubled ? 0 : 1;
}
