/* The HTTP check: what it asks, what it takes for an answer, and what else can become of a probe. */
#define PINGORA_LB_IMPLEMENTATION
#include "../pingora_lb.h"
#define SIM_IMPLEMENTATION
#include "sim.h"
#include <greatest.h>
#include "rig.h"

#define ADDR    "10.0.0.1:80"
#define OK_HEAD "HTTP/1.1 200 OK\r\n"
#define OK_2    OK_HEAD "Content-Length: 2\r\n\r\nok"

/* A backend that answers each request so, and what came of its last probe. */
typedef struct stage {
    rig r;
    plb_http_check_desc http;
    const char *answer;  /* NULL: none */
    bool ends;           /* after the answer */
    bool drops_by_reset; /* how serve_once ends a connection */
    bool early;          /* the answer does not wait for the request */
    uint32_t requests;   /* heads that came */
    char request[2048];  /* the last one */
    uint32_t probes;     /* that are over */
    uint32_t successes;
    plb_status status; /* of the last one */
    uint32_t code;
    char text[PLB_REPORT_TEXT];
} stage;

static void answer(stage *g, sim_conn *conn)
{
    if (g->answer == NULL)
        return;
    sim_send_text(conn, g->answer);
    if (g->ends)
        sim_close(conn);
}

static size_t serve(void *user, sim_conn *conn, const char *bytes, size_t count)
{
    stage *g = (stage *)user;
    const char *end = strstr(bytes, "\r\n\r\n");
    if (g->early && conn->user == NULL) {
        conn->user = g;
        answer(g, conn);
        return count;
    }
    if (g->early || end == NULL)
        return 0;
    count = (size_t)(end - bytes) + 4;
    if (count < sizeof g->request) {
        memcpy(g->request, bytes, count);
        g->request[count] = '\0';
    }
    g->requests++;
    answer(g, conn);
    return count;
}

static void probed(void *user, const plb_backend_info *info, uint32_t check, const plb_probe_info *probe)
{
    stage *g = (stage *)user; /* its rig comes first */
    (void)info;
    (void)check;
    g->probes++;
    g->successes += probe->status == PLB_OK;
    g->status = probe->status;
    g->code = probe->code;
    snprintf(g->text, sizeof g->text, "%s", probe->text);
}

static void begin(stage *g)
{
    plb_addr at = sim_addr(ADDR);
    memset(g, 0, sizeof *g);
    rig_begin(&g->r);
    g->r.desc.on_probe = probed;
    sim_serve(g->r.s, &at, serve, g);
    g->answer = OK_2;
}

static plb_status create(stage *g, const char *addr)
{
    const char *addresses[1];
    plb_static_desc list;
    memset(&list, 0, sizeof list);
    addresses[0] = addr;
    list.addresses = addresses;
    list.address_count = 1;
    g->r.desc.discovery = plb_static(&list);
    g->r.desc.check = plb_http_check(&g->http);
    return rig_create(&g->r);
}

static int end(stage *g)
{
    int streams = (int)g->r.s->streams, kept = g->http.reuse_connection ? 1 : 0;
    return rig_end(&g->r) + (streams > kept ? streams : 0);
}

/* One probe of 10.0.0.1:80 that gets this answer. */
static plb_status probe(stage *g, const char *text)
{
    g->answer = text;
    if (create(g, ADDR) != PLB_OK)
        return PLB_STATUS_COUNT;
    rig_run(&g->r, 10000);
    return g->probes == 1 ? g->status : PLB_STATUS_COUNT;
}

TEST the_default_is_get_of_the_root_and_200(void)
{
    stage g;
    begin(&g);
    ASSERT_EQ(PLB_OK, probe(&g, OK_2));
    ASSERT_STR_EQ("GET / HTTP/1.1\r\nHost: 10.0.0.1\r\nUser-Agent: pingora_lb/" PLB_VERSION "\r\n\r\n", g.request);
    ASSERT_EQ(200, g.code);
    ASSERT_EQ(0, end(&g));
    PASS();
}

/* ---- what is asked ---- */

TEST the_request_is_as_the_program_says(void)
{
    stage g;
    begin(&g);
    g.http.method = "OPTIONS";
    g.http.path = "/health?deep=1&who=me";
    g.http.host = "shop.example:8443";
    g.http.headers = "Accept: text/plain\r\nX-Empty:\r\nX-Token:  a b\t\r\n";
    ASSERT_EQ(PLB_OK, probe(&g, OK_2));
    ASSERT_STR_EQ(
        "OPTIONS /health?deep=1&who=me HTTP/1.1\r\nHost: shop.example:8443\r\nUser-Agent: pingora_lb/" PLB_VERSION
        "\r\nAccept: text/plain\r\nX-Empty:\r\nX-Token:  a b\t\r\n\r\n",
        g.request);
    ASSERT_EQ(0, end(&g));
    begin(&g);
    g.http.method = "POST";
    g.http.reuse_connection = true;
    g.http.headers = "Content-Length: 0\r\nuser-agent: probe/1\r\n";
    ASSERT_EQ(PLB_OK, probe(&g, OK_2));
    ASSERT_STR_EQ("POST / HTTP/1.1\r\nHost: 10.0.0.1\r\nContent-Length: 0\r\nuser-agent: probe/1\r\n\r\n", g.request);
    ASSERT_EQ(0, end(&g));
    PASS();
}

TEST host_is_the_name_or_the_address_of_the_backend(const char *backend, uint16_t port, const char *host)
{
    char line[200];
    plb_addr at = sim_addr(strstr(backend, ".example") != NULL ? ADDR : backend);
    stage g;
    begin(&g);
    sim_name_set(g.r.s, "a.example", &at, 1);
    if (strstr(backend, ".example") != NULL)
        at.port = (uint16_t)atoi(strchr(backend, ':') + 1);
    if (port > 0)
        at.port = port;
    g.http.connect.port = port;
    sim_serve(g.r.s, &at, serve, &g);
    ASSERT_EQ(PLB_OK, create(&g, backend));
    rig_run(&g.r, 100);
    ASSERT_EQ(1, g.successes);
    snprintf(line, sizeof line, "\r\nHost: %s\r\n", host);
    ASSERT(strstr(g.request, line) != NULL);
    ASSERT_EQ(0, end(&g));
    PASS();
}

TEST a_descriptor_that_makes_no_sense_is_refused(void)
{
    static const plb_tls tls = {NULL, NULL, NULL, NULL, false, false, false};
    static const char *const methods[] = {"", "GE T", "GET\r\nX: y", "CONNECT"};
    static const char *const paths[] = {"", "health", "/a b", "/a\r\nX: y", "/\t", "**", "/\x7f"};
    static const char *const hosts[] = {"", "a b", "a\r\n", "a\nX: y"};
    static const char *const headers[] = {"X: y",
                                          "X: y\n",
                                          "X y\r\n",
                                          ": y\r\n",
                                          "\r\n",
                                          "X: y\r\n\r\n",
                                          "X: y\r\nZ\r\n",
                                          "X: \x01\r\n",
                                          "Host: a\r\n",
                                          "CONNECTION: close\r\n",
                                          "Transfer-Encoding: chunked\r\n",
                                          "X: y\rZ: a\r\n",
                                          "Content-Length: 1\r\n",
                                          " X: y\r\n",
                                          "X : y\r\n"};
    static const char *const statuses[] = {"",        ",",        "20",  "199",       "1000",    "200-", "-200",
                                           "299-200", "200-1000", "2xx", "200 - 299", "200;201", "0200", "100-200"};
    size_t i;
#define REFUSED(member, value)                                                                                         \
    do {                                                                                                               \
        stage g;                                                                                                       \
        begin(&g);                                                                                                     \
        g.http.member = value;                                                                                         \
        ASSERT_EQm(value, PLB_ERR_ARGUMENT, create(&g, ADDR));                                                         \
        ASSERT_EQ(0, end(&g));                                                                                         \
    } while (0)
    for (i = 0; i < sizeof methods / sizeof *methods; i++)
        REFUSED(method, methods[i]);
    for (i = 0; i < sizeof paths / sizeof *paths; i++)
        REFUSED(path, paths[i]);
    for (i = 0; i < sizeof hosts / sizeof *hosts; i++)
        REFUSED(host, hosts[i]);
    for (i = 0; i < sizeof headers / sizeof *headers; i++)
        REFUSED(headers, headers[i]);
    for (i = 0; i < sizeof statuses / sizeof *statuses; i++)
        REFUSED(statuses, statuses[i]);
    {
        stage g;
        begin(&g);
        g.http.contains = "ok";
        g.http.method = "HEAD";
        ASSERT_EQ(PLB_ERR_ARGUMENT, create(&g, ADDR));
        g.http.method = NULL;
        g.http.body_limit = 1;
        ASSERT_EQ(PLB_ERR_ARGUMENT, create(&g, ADDR));
        g.http.contains = NULL;
        g.http.host = "a.example:8443"; /* TLS would be asked for that name */
        g.http.connect.tls = &tls;
        ASSERT_EQ(PLB_ERR_ARGUMENT, create(&g, ADDR));
        g.r.desc.port.io = NULL;
        ASSERT_EQ(PLB_ERR_UNSUPPORTED, create(&g, ADDR));
        ASSERT_EQ(0, end(&g));
    }
    PASS();
}

/* The simulator knows no TLS: what a probe asks for is noted, and the connection made without. */
static const plb_io *plain_io;
static char tls_name[64];

static plb_status connect_noting_tls(void *self, const plb_peer *peer, plb_handler handler, plb_stream **out)
{
    plb_peer plain = *peer;
    snprintf(tls_name, sizeof tls_name, "%s",
             peer->tls == NULL         ? "no TLS"
             : peer->tls->name == NULL ? "no name"
                                       : peer->tls->name);
    plain.tls = NULL;
    return plain_io->connect(self, &plain, handler, out);
}

TEST tls_is_asked_for_the_host(const char *own, const char *host, const char *backend, const char *expected,
                               const char *sent)
{
    char line[200];
    plb_addr at = sim_addr("10.0.0.1:443");
    plb_tls tls;
    plb_io io;
    stage g;
    begin(&g);
    memset(&tls, 0, sizeof tls);
    plain_io = g.r.desc.port.io;
    io = *plain_io;
    io.connect = connect_noting_tls;
    g.r.desc.port.io = &io;
    tls.name = own;
    g.http.connect.tls = &tls;
    g.http.host = host;
    sim_name_set(g.r.s, "a.example", &at, 1);
    plb_addr_parse(&at, backend, PLB_ZSTRING); /* the same, if it is that name */
    sim_serve(g.r.s, &at, serve, &g);
    ASSERT_EQ(PLB_OK, create(&g, backend));
    rig_run(&g.r, 100);
    ASSERT_EQ(1, g.successes);
    ASSERT_STR_EQ(expected, tls_name);
    snprintf(line, sizeof line, "\r\nHost: %s\r\n", sent); /* 443 is TLS's own port */
    ASSERT(strstr(g.request, line) != NULL);
    ASSERT_EQ(0, end(&g));
    PASS();
}

/* ---- what is taken for an answer ---- */

typedef struct example {
    const char *answer;
    bool ends; /* the server closes behind it */
    plb_status status;
    uint32_t code;
    const char *words; /* of the report; NULL: those of the status */
} example;

static const example examples[] = {
    {OK_2, false, PLB_OK, 200, NULL},
    {OK_2, true, PLB_OK, 200, NULL},
    {OK_2 "more than was said", false, PLB_OK, 200, NULL},
    {"HTTP/1.0 200 OK\r\n\r\nbody", true, PLB_OK, 200, NULL},
    {OK_HEAD "\r\n", true, PLB_OK, 200, NULL},
    {OK_HEAD "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", false, PLB_OK, 200, NULL},
    {OK_HEAD "Transfer-Encoding: chunked\r\n\r\n1;ext=1\r\no\r\n1\r\nk\r\n0\r\nTrailer: t\r\nOther: o\r\n\r\n", false,
     PLB_OK, 200, NULL},
    {"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" OK_2, false, PLB_OK, 200, NULL},
    {"HTTP/1.1 200\r\ncontent-length:0\r\n\r\n", false, PLB_OK, 200, NULL},
    {"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", false, PLB_ERR_ANSWER, 503, "HTTP status 503"},
    {"HTTP/1.1 503 Busy\r\nContent-Length: x\r\n\r\n", false, PLB_ERR_ANSWER, 503, "HTTP status 503"},
    {"HTTP/1.1 204 No Content\r\n\r\n", false, PLB_ERR_ANSWER, 204, "HTTP status 204"},
    {"HTTP/1.1 301 Moved\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", false, PLB_ERR_ANSWER, 301, "HTTP status 301"},
    {"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", false, PLB_ERR_ANSWER, 101, "HTTP status 101"},
    {"", true, PLB_ERR_RESET, 0, "The connection ended before an answer."},
    {"HTTP/1.1 200 OK\r\nConten", true, PLB_ERR_RESET, 0, "The connection ended before an answer."},
    {"HTTP/1.1 100 Continue\r\n\r\n", true, PLB_ERR_RESET, 0, "The connection ended before an answer."},
    {OK_HEAD "Content-Length: 3\r\n\r\nok", true, PLB_ERR_RESET, 200, "The connection ended within the answer's body."},
    {OK_HEAD "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n", true, PLB_ERR_RESET, 200,
     "The connection ended within the answer's body."},
    {OK_HEAD "Transfer-Encoding: chunked\r\n\r\nzz\r\n", false, PLB_ERR_PROTOCOL, 200,
     "The answer is not well-formed HTTP/1."},
    {OK_HEAD "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", false, PLB_ERR_PROTOCOL, 200,
     "The answer's transfer coding is unknown."},
    {OK_HEAD "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", false, PLB_ERR_PROTOCOL, 200,
     "The answer is not well-formed HTTP/1."},
    {OK_HEAD "Content-Length: 2\r\nContent-Length: 2\r\n\r\nok", false, PLB_ERR_PROTOCOL, 200,
     "The answer is not well-formed HTTP/1."},
    {"SSH-2.0-OpenSSH_9.2\r\n", false, PLB_ERR_PROTOCOL, 0, "The answer is not well-formed HTTP/1."},
    {"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", false, PLB_ERR_PROTOCOL, 0, "The answer is not well-formed HTTP/1."},
    {OK_HEAD "Content Length: 2\r\n\r\nok", false, PLB_ERR_PROTOCOL, 0, "The answer is not well-formed HTTP/1."},
    {"HTTP/2.0 200 OK\r\n\r\n", false, PLB_ERR_PROTOCOL, 0, "The answer is not HTTP/1."},
    {"HTTP/1.1 20 OK\r\n\r\n", false, PLB_ERR_PROTOCOL, 0, "The answer is not well-formed HTTP/1."},
    {OK_HEAD "Content-Length: 3\r\n\r\nok", false, PLB_ERR_TIMEOUT, 200, NULL},
    {"HTTP/1.1 200 OK\r\nConten", false, PLB_ERR_TIMEOUT, 0, NULL},
    {"HTTP/1.1 100 Continue\r\n\r\n", false, PLB_ERR_TIMEOUT, 0, NULL},
    {OK_HEAD "\r\nbody", false, PLB_ERR_TIMEOUT, 200, NULL}, /* without a length only the end is the end */
};

#define EXAMPLES (sizeof examples / sizeof *examples)

TEST each_answer_means_the_same_however_it_comes(size_t n, uint32_t max_read, bool random_sizes)
{
    const example *e = &examples[n];
    stage g;
    begin(&g);
    g.ends = e->ends;
    g.r.s->max_read = g.r.s->max_write = max_read;
    g.r.s->random_sizes = random_sizes;
    ASSERT_EQm(e->answer, e->status, probe(&g, e->answer));
    ASSERT_EQm(e->answer, e->code, g.code);
    ASSERT_STR_EQm(e->answer, e->words != NULL ? e->words : plb_status_text(e->status), g.text);
    ASSERT_EQ(e->status == PLB_OK ? 0u : 1u, g.r.flips);
    ASSERT_EQ(0, end(&g));
    PASS();
}

TEST an_answer_without_a_request_is_read_all_the_same(void)
{
    stage g;
    begin(&g);
    g.early = true;
    g.ends = true;
    g.answer = OK_2;
    ASSERT_EQ(PLB_OK, create(&g, ADDR));
    rig_run(&g.r, 3000);
    ASSERT_EQ(1, g.probes);
    ASSERT(g.status == PLB_OK || g.status == PLB_ERR_RESET); /* the request may meet the closed end first */
    ASSERT_EQ(0, end(&g));
    PASS();
}

TEST a_head_has_no_body_whatever_it_says(void)
{
    stage g;
    begin(&g);
    g.http.method = "HEAD";
    ASSERT_EQ(PLB_OK, probe(&g, OK_HEAD "Content-Length: 1000\r\n\r\n"));
    ASSERT_EQ(0, end(&g));
    begin(&g);
    g.http.statuses = "204,304";
    ASSERT_EQ(PLB_OK, probe(&g, "HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\n\r\n"));
    ASSERT_EQ(0, end(&g));
    PASS();
}

TEST statuses_are_numbers_and_ranges(const char *statuses, uint32_t status, bool accepted)
{
    char text[100];
    stage g;
    begin(&g);
    g.http.statuses = statuses;
    snprintf(text, sizeof text, "HTTP/1.1 %u Whatever\r\nContent-Length: 0\r\n\r\n", (unsigned)status);
    ASSERT_EQ(accepted ? PLB_OK : PLB_ERR_ANSWER, probe(&g, text));
    ASSERT_EQ(status, g.code);
    ASSERT_EQ(0, end(&g));
    PASS();
}

static bool wants_a_header(void *user, uint32_t status, const plb_http1_header *headers, size_t count)
{
    const char *name = (const char *)user;
    size_t i;
    for (i = 0; i < count; i++)
        if (status == 404 && plb_text_is(headers[i].name, name) && plb_text_is(headers[i].value, "yes"))
            return true;
    return false;
}

TEST a_validator_decides_instead_of_the_statuses(void)
{
    static char name[] = "x-healthy";
    stage g;
    begin(&g);
    g.http.validate = wants_a_header;
    g.http.validate_user = name;
    ASSERT_EQ(PLB_OK, probe(&g, "HTTP/1.1 404 No\r\nX-Healthy: yes\r\nContent-Length: 0\r\n\r\n"));
    ASSERT_EQ(404, g.code);
    g.answer = OK_2;
    plb_check_now(g.r.lb);
    rig_run(&g.r, 100);
    ASSERT_EQ(PLB_ERR_ANSWER, g.status);
    ASSERT_STR_EQ("The program does not accept the answer with HTTP status 200", g.text);
    g.answer = "HTTP/1.1 404 No\r\nX-Healthy: yes\r\nContent-Length: 5\r\n\r\nok"; /* the rest counts too */
    g.ends = true;
    plb_check_now(g.r.lb);
    rig_run(&g.r, 100);
    ASSERT_EQ(PLB_ERR_RESET, g.status);
    ASSERT_EQ(0, end(&g));
    PASS();
}

/* Against strstr, over texts of two letters, which repeat themselves a lot. */
TEST a_text_is_found_wherever_the_body_holds_it(uint32_t max_read)
{
    uint64_t random = 1;
    int found = 0, i, k;
    for (i = 0; i < 300; i++) {
        char body[41], contains[7], text[120];
        bool there;
        stage g;
        for (k = 0; k < 40; k++) {
            random = random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
            body[k] = random >> 62 != 0 ? 'a' : 'b';
        }
        body[40] = '\0';
        for (k = 0; k < 3 + i % 4; k++) {
            random = random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
            contains[k] = random >> 62 != 0 ? 'a' : 'b';
        }
        contains[k] = '\0';
        there = strstr(body, contains) != NULL;
        found += there;
        begin(&g);
        g.http.contains = contains;
        g.r.s->max_read = max_read;
        snprintf(text, sizeof text, OK_HEAD "Transfer-Encoding: chunked\r\n\r\n9\r\n%.9s\r\n1f\r\n%s\r\n0\r\n\r\n",
                 body, body + 9);
        ASSERT_EQ(there ? PLB_OK : PLB_ERR_ANSWER, probe(&g, text));
        ASSERT(there || strcmp("The body lacks the text that it must contain.", g.text) == 0);
        ASSERT_EQ(0, end(&g));
    }
    ASSERT(found > 50 && found < 250);
    PASS();
}

/* A body of `size` bytes, "ok" at its end. */
static char *long_answer(size_t size, bool chunked)
{
    char *text = (char *)malloc(size + 200);
    int head = chunked ? snprintf(text, 200, OK_HEAD "Transfer-Encoding: chunked\r\n\r\n%x\r\n", (unsigned)size)
                       : snprintf(text, 200, OK_HEAD "Content-Length: %u\r\n\r\n", (unsigned)size);
    memset(text + head, '.', size);
    memcpy(text + head + size - 2, "ok", 2);
    strcpy(text + (size_t)head + size, chunked ? "\r\n0\r\n\r\n" : "");
    return text;
}

TEST a_body_is_looked_at_up_to_its_limit(bool chunked, uint32_t max_read)
{
    static const struct {
        size_t size;
        uint32_t limit;
        bool contains;
        plb_status status;
    } cases[] = {{100, 100, true, PLB_OK},   {101, 100, true, PLB_ERR_ANSWER}, {101, 100, false, PLB_OK},
                 {65536, 0, true, PLB_OK},   {65537, 0, true, PLB_ERR_ANSWER}, {65537, 0, false, PLB_OK},
                 {200000, 0, false, PLB_OK}, {200000, 1000000, true, PLB_OK}};
    size_t i;
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = long_answer(cases[i].size, chunked);
        stage g;
        if (max_read > 0 && cases[i].size > 1000) {
            free(text);
            continue;
        }
        begin(&g);
        g.r.s->max_read = max_read;
        g.http.body_limit = cases[i].limit;
        g.http.contains = cases[i].contains ? "ok" : NULL;
        g.http.reuse_connection = true;
        ASSERT_EQ(cases[i].status, probe(&g, text));
        if (cases[i].status != PLB_OK)
            ASSERT_STR_EQ("What was read of the body (body_limit) lacks the text.", g.text);
        ASSERT_EQ(cases[i].size <= (cases[i].limit > 0 ? cases[i].limit : 65536) ? 1u : 0u, g.r.s->streams); /* kept? */
        free(text);
        ASSERT_EQ(0, end(&g));
    }
    PASS();
}

/* ---- what else can become of a probe ---- */

static sim_host_t *host(stage *g, const char *addr)
{
    plb_addr at = sim_addr(addr);
    return sim_host(g->r.s, &at);
}

TEST a_fault_is_told_as_what_it_is(sim_fault fault, uint32_t fault_bytes, plb_status status, const char *words)
{
    stage g;
    begin(&g);
    host(&g, ADDR)->fault = fault;
    host(&g, ADDR)->fault_bytes = fault_bytes;
    ASSERT_EQ(status, probe(&g, OK_2));
    ASSERT_STR_EQ(words != NULL ? words : plb_status_text(status), g.text);
    ASSERT_EQ(0, g.r.s->streams);
    ASSERT_EQ(0, end(&g));
    PASS();
}

TEST an_answer_that_breaks_off_anywhere_is_a_failure(sim_fault fault)
{
    uint32_t n;
    for (n = 1; n < strlen(OK_2); n++) {
        stage g;
        begin(&g);
        host(&g, ADDR)->fault = fault;
        host(&g, ADDR)->fault_bytes = n;
        ASSERT_EQ(PLB_ERR_RESET, probe(&g, OK_2));
        ASSERT_EQ(0, end(&g));
    }
    PASS();
}

TEST connection_and_answer_have_a_second_each_or_as_told(uint32_t connect_ms, uint32_t answer_ms)
{
    uint32_t first = connect_ms > 0 ? connect_ms : 1000, second = answer_ms > 0 ? answer_ms : 1000;
    stage g;
    begin(&g);
    g.http.connect.timeout_ms = connect_ms;
    g.http.answer_ms = answer_ms;
    g.answer = NULL;
    host(&g, ADDR)->latency_ms = first / 2 - 5; /* the connection just comes about */
    ASSERT_EQ(PLB_OK, create(&g, ADDR));
    rig_run(&g.r, first - 10 + second - 2);
    ASSERT_EQ(0, g.probes);
    rig_run(&g.r, 4);
    ASSERT_EQ(1, g.probes);
    ASSERT_EQ(PLB_ERR_TIMEOUT, g.status);
    ASSERT_EQ(0, g.r.s->streams);
    ASSERT_EQ(0, end(&g));
    begin(&g);
    g.http.connect.timeout_ms = connect_ms;
    host(&g, ADDR)->fault = SIM_HANG;
    ASSERT_EQ(PLB_OK, create(&g, ADDR));
    rig_run(&g.r, first - 1);
    ASSERT_EQ(0, g.probes);
    rig_run(&g.r, 2);
    ASSERT_EQ(PLB_ERR_TIMEOUT, g.status);
    ASSERT_EQ(0, end(&g));
    PASS();
}

TEST an_answer_after_its_time_changes_nothing(void)
{
    stage g;
    begin(&g);
    g.http.answer_ms = 100;
    host(&g, ADDR)->latency_ms = 60; /* there in 120, answered in 240 */
    ASSERT_EQ(PLB_OK, create(&g, ADDR));
    rig_run(&g.r, 1000);
    ASSERT_EQ(1, g.requests);
    ASSERT_EQ(1, g.probes);
    ASSERT_EQ(PLB_ERR_TIMEOUT, g.status);
    ASSERT_EQ(1, g.r.flips);
    ASSERT_EQ(0, end(&g));
    PASS();
}

/* Half a mebibyte and more of the same. */
static void babble(sim_conn *conn, const char *text)
{
    size_t size = strlen(text), i;
    char *bytes = (char *)malloc(40000 * size);
    for (i = 0; i < 40000; i++)
        memcpy(bytes + i * size, text, size);
    sim_send(conn, bytes, 40000 * size);
    free(bytes);
}

TEST what_never_ends_is_ended(const char *start, const char *again, uint32_t max_read, plb_status status,
                              const char *words)
{
    plb_addr at = sim_addr(ADDR);
    stage g;
    begin(&g);
    g.http.body_limit = 10000;
    g.r.s->max_read = max_read;
    host(&g, ADDR)->bytes_per_ms = 1000;
    g.answer = start;
    g.early = true;
    ASSERT_EQ(PLB_OK, create(&g, ADDR));
    rig_run(&g.r, 3);
    babble(sim_newest(g.r.s, &at), again);
    rig_run(&g.r, 1500);
    ASSERT_EQ(1, g.probes);
    ASSERT_EQ(status, g.status);
    ASSERT_STR_EQ(words != NULL ? words : plb_status_text(status), g.text);
    ASSERT_EQ(0, g.r.s->streams);
    ASSERT_EQ(0, end(&g));
    PASS();
}

TEST more_headers_than_there_is_room_for_are_a_failure_of_the_backend(void)
{
    char text[4000] = OK_HEAD;
    int i;
    stage g;
    for (i = 0; i < PLB__HTTP_HEADERS; i++)
        strcat(text, "X: y\r\n");
    begin(&g);
    strcat(text, "Content-Length: 0\r\n\r\n");
    ASSERT_EQ(PLB_ERR_PROTOCOL, probe(&g, text));
    ASSERT_STR_EQ("The answer has more headers than allowed.", g.text);
    ASSERT_EQ(1, g.r.flips);
    ASSERT_EQ(0, end(&g));
    PASS();
}

TEST a_probe_may_end_with_the_balancer_at_any_moment(bool reuse)
{
    uint32_t ms, over = 0;
    for (ms = 0; ms < 200 && over < 3; ms++) {
        stage g;
        begin(&g);
        g.http.reuse_connection = reuse;
        g.http.contains = "ok";
        g.answer = OK_HEAD "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
        host(&g, ADDR)->bytes_per_ms = 1;
        ASSERT_EQ(PLB_OK, create(&g, ADDR));
        rig_run(&g.r, ms);
        over += g.probes;
        ASSERT_EQ(0, rig_end(&g.r));
    }
    ASSERT_GT(ms, 60);
    ASSERT_EQ(3, over);
    PASS();
}

/* ---- a connection for several probes ---- */

/* A number of probes, one after another. */
static void rounds(stage *g, int count)
{
    while (count-- > 0) {
        plb_check_now(g->r.lb);
        rig_run(&g->r, 20);
    }
}

static plb_status begin_reuse(stage *g)
{
    plb_status status;
    begin(g);
    g->http.reuse_connection = true;
    status = create(g, ADDR);
    rig_run(&g->r, 20);
    return status;
}

TEST a_connection_serves_all_probes_where_that_is_wished(bool reuse, uint32_t max_read)
{
    stage g;
    begin(&g);
    g.http.reuse_connection = reuse;
    g.r.s->max_read = max_read;
    ASSERT_EQ(PLB_OK, create(&g, ADDR));
    rig_run(&g.r, 20);
    rounds(&g, 49);
    ASSERT_EQ(50, g.successes);
    ASSERT_EQ(50, g.requests);
    ASSERT_EQ(reuse ? 1u : 50u, host(&g, ADDR)->connects);
    ASSERT_EQ(reuse ? 1u : 0u, g.r.s->streams);
    ASSERT_EQ(0, end(&g));
    PASS();
}

TEST only_an_answer_that_allows_it_leaves_its_connection_open(const char *text, bool ends)
{
    stage g;
    begin(&g);
    g.http.reuse_connection = true;
    g.http.statuses = "200,503";
    g.ends = ends;
    ASSERT_EQ(PLB_OK, probe(&g, text));
    ASSERT_EQ(0, g.r.s->streams);
    rounds(&g, 2);
    ASSERT_EQ(3, g.successes);
    ASSERT_EQ(3, host(&g, ADDR)->connects);
    ASSERT_EQ(0, end(&g));
    PASS();
}

/* Answers before all of the request is there. */
TEST a_request_that_was_not_sent_whole_leaves_no_connection_behind(void)
{
    stage g;
    begin(&g);
    g.early = true;
    g.http.reuse_connection = true;
    host(&g, ADDR)->buffer_bytes = 20; /* room for a part of it, as nobody reads */
    ASSERT_EQ(PLB_OK, create(&g, ADDR));
    sim_step(g.r.s, 1);
    rig_run(&g.r, 1);
    sim_pause(sim_newest(g.r.s, &host(&g, ADDR)->addr), true);
    rig_run(&g.r, 100);
    ASSERT_EQ(1, g.successes);
    ASSERT_EQ(0, g.r.s->streams);
    ASSERT_EQ(0, end(&g));
    PASS();
}

TEST a_failure_gives_its_connection_up(void)
{
    stage g;
    ASSERT_EQ(PLB_OK, begin_reuse(&g));
    g.answer = "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n";
    rounds(&g, 1);
    ASSERT_EQ(PLB_ERR_ANSWER, g.status);
    ASSERT_EQ(0, g.r.s->streams);
    g.answer = OK_2;
    rounds(&g, 2);
    ASSERT_EQ(3, g.successes);
    ASSERT_EQ(2, host(&g, ADDR)->connects);
    ASSERT_EQ(0, end(&g));
    PASS();
}

/* How a peer may take its leave of a connection that nothing is asked on. */
typedef enum leave { LEAVES_CLOSED, LEAVES_RESET, LEAVES_WITH_WORDS } leave;

TEST a_connection_that_goes_between_probes_is_no_failure(leave how)
{
    int i;
    plb_addr at = sim_addr(ADDR);
    stage g;
    ASSERT_EQ(PLB_OK, begin_reuse(&g));
    for (i = 0; i < 5; i++) {
        sim_conn *conn = sim_newest(g.r.s, &at);
        if (how == LEAVES_CLOSED)
            sim_close(conn);
        else if (how == LEAVES_RESET)
            sim_reset(conn);
        else
            sim_send_text(conn, "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n");
        rig_run(&g.r, 10);
        ASSERT_EQ(0, g.r.s->streams);
        rounds(&g, 1);
        ASSERT_EQ(PLB_OK, g.status);
    }
    ASSERT_EQ(6, g.successes);
    ASSERT_EQ(6, host(&g, ADDR)->connects);
    ASSERT_EQ(0, g.r.flips);
    ASSERT_EQ(0, end(&g));
    PASS();
}

/* Ends the connection when a second request comes on it, as a server does whose patience is over at that moment. */
static size_t serve_once(void *user, sim_conn *conn, const char *bytes, size_t count)
{
    stage *g = (stage *)user;
    if (conn->user == NULL) {
        count = serve(user, conn, bytes, count);
        conn->user = count > 0 ? g : NULL;
    } else if (count > 0 && g->drops_by_reset) {
        sim_reset(conn);
    } else if (count > 0) {
        sim_close(conn);
    }
    return count;
}

TEST a_connection_that_goes_as_the_request_comes_is_made_anew(bool resets)
{
    plb_addr at = sim_addr(ADDR);
    stage g;
    begin(&g);
    g.drops_by_reset = resets;
    sim_serve(g.r.s, &at, serve_once, &g);
    g.http.reuse_connection = true;
    ASSERT_EQ(PLB_OK, create(&g, ADDR));
    rig_run(&g.r, 20);
    rounds(&g, 3);
    ASSERT_EQ(4, g.successes);
    ASSERT_EQ(4, host(&g, ADDR)->connects);
    host(&g, ADDR)->fault = SIM_REFUSE;
    sim_close(sim_newest(g.r.s, &at));
    rounds(&g, 1);
    ASSERT_EQ(PLB_ERR_REFUSED, g.status);
    ASSERT_EQ(0, g.r.s->streams);
    ASSERT_EQ(0, end(&g));
    PASS();
}

/* ---- each backend its own way ---- */

static plb_http_target aim;
static const void *aimed_ext;

static void aim_at(void *user, const plb_backend *backend, plb_http_target *target)
{
    ++*(int *)user;
    aimed_ext = backend->ext;
    if (aim.port > 0)
        target->port = aim.port;
    if (aim.path != NULL)
        target->path = *aim.path != '\0' ? aim.path : NULL;
    if (aim.host != NULL)
        target->host = aim.host;
}

static bool begins(const stage *g, const char *text)
{
    return strncmp(g->request, text, strlen(text)) == 0;
}

TEST a_backend_may_have_its_own_port_path_and_host(bool reuse)
{
    int calls = 0, ext = 0;
    plb_addr other = sim_addr("10.0.0.1:8081");
    plb_backend backend = rig_with_ext(rig_backend(ADDR, 1), &ext);
    plb_static_desc list;
    stage g;
    memset(&aim, 0, sizeof aim);
    memset(&list, 0, sizeof list);
    list.backends = &backend;
    list.backend_count = 1;
    begin(&g);
    sim_serve(g.r.s, &other, serve, &g);
    g.http.reuse_connection = reuse;
    g.http.path = "/usual";
    g.http.target = aim_at;
    g.http.target_user = &calls;
    g.r.desc.discovery = plb_static(&list);
    g.r.desc.check = plb_http_check(&g.http);
    ASSERT_EQ(PLB_OK, rig_create(&g.r));
    rig_run(&g.r, 20);
    ASSERT(begins(&g, "GET /usual HTTP/1.1\r\nHost: 10.0.0.1\r\n"));
    ASSERT(aimed_ext == &ext);
    aim.port = 8081;
    rounds(&g, 1);
    ASSERT(begins(&g, "GET /usual HTTP/1.1\r\nHost: 10.0.0.1:8081\r\n"));
    aim.path = "/own";
    rounds(&g, 1);
    ASSERT(begins(&g, "GET /own HTTP/1.1\r\nHost: 10.0.0.1:8081\r\n"));
    aim.host = "own.example";
    rounds(&g, 2);
    ASSERT(begins(&g, "GET /own HTTP/1.1\r\nHost: own.example\r\nUser-Agent"));
    aim.path = ""; /* NULL, as in the descriptor */
    rounds(&g, 1);
    ASSERT(begins(&g, "GET / HTTP/1.1\r\nHost: own.example\r\nUser-Agent"));
    ASSERT_EQ(6, calls);
    ASSERT_EQ(6, g.successes);
    ASSERT_EQ(1, host(&g, ADDR)->connects);
    ASSERT_EQ(reuse ? 2u : 5u, host(&g, "10.0.0.1:8081")->connects);
    ASSERT_EQ(0, end(&g));
    PASS();
}

TEST a_target_that_makes_no_sense_is_not_the_backends_fault(const char *path, const char *name)
{
    int calls = 0;
    stage g;
    memset(&aim, 0, sizeof aim);
    begin(&g);
    g.http.reuse_connection = true;
    g.http.target = aim_at;
    g.http.target_user = &calls;
    ASSERT_EQ(PLB_OK, create(&g, ADDR));
    rig_run(&g.r, 20);
    aim.path = path;
    aim.host = name;
    rounds(&g, 1);
    ASSERT_EQ(PLB_ERR_ARGUMENT, g.status);
    ASSERT(rig_logged(&g.r, "could not probe 10.0.0.1:80"));
    ASSERT_EQ(0, g.r.flips);
    memset(&aim, 0, sizeof aim);
    rig_run(&g.r, 1100);
    ASSERT_EQ(2, g.successes);
    ASSERT_EQ(0, end(&g));
    PASS();
}

/* ---- what it costs, and what happens when there is not enough ---- */

TEST thousands_of_results_leave_nothing_behind(bool reuse)
{
    static const char *const answers[] = {OK_2, "HTTP/1.1 503 Busy\r\n\r\n", "nonsense",
                                          OK_HEAD "Content-Length: 9\r\n\r\n", "HTTP/1.1 200 OK\r\nX"};
    size_t bytes = 0;
    int i;
    stage g;
    begin(&g);
    g.http.reuse_connection = reuse;
    g.http.answer_ms = 15;
    ASSERT_EQ(PLB_OK, create(&g, ADDR));
    rig_run(&g.r, 30);
    for (i = 0; i < 3000; i++) {
        g.answer = answers[i % 5];
        g.ends = i % 10 == 8;
        rounds(&g, 1);
        if (i == 9)
            bytes = g.r.memory.live_bytes;
        if (i > 9 && i % 10 == 9)
            ASSERT_EQ(bytes, g.r.memory.live_bytes);
    }
    ASSERT_EQ(3001, g.probes);
    ASSERT_EQ(601, g.successes);
    ASSERT_EQ(0, end(&g));
    PASS();
}

#define MANY 2000

TEST a_probe_in_flight_takes_less_than_a_kibibyte(void)
{
    static char texts[MANY][24];
    static const char *addresses[MANY];
    plb_static_desc list;
    size_t before;
    int i;
    stage g;
    begin(&g);
    memset(&list, 0, sizeof list);
    for (i = 0; i < MANY; i++) {
        snprintf(texts[i], sizeof texts[i], "10.1.%d.%d:80", i / 250, i % 250 + 1);
        addresses[i] = texts[i];
    }
    list.addresses = addresses;
    list.address_count = MANY;
    g.r.s->defaults.fault = SIM_SILENT;
    g.http.answer_ms = 5000;
    g.r.desc.discovery = plb_static(&list);
    g.r.desc.check = plb_http_check(&g.http);
    g.r.desc.parallel_checks = PLB_UNLIMITED;
    ASSERT_EQ(PLB_OK, rig_create(&g.r));
    before = g.r.memory.live_bytes;
    rig_run(&g.r, 500);
    ASSERT_EQ(MANY, g.r.s->streams);
    ASSERT(g.r.memory.live_bytes - before < MANY * 1024u);
    if (getenv("SIM_TRACE") != NULL)
        fprintf(stderr, "%u bytes a probe\n", (unsigned)((g.r.memory.live_bytes - before) / MANY));
    ASSERT_EQ(0, rig_end(&g.r));
    PASS();
}

/* Every one of some calls fails, one run after another; in the end the backend is probed and well. */
TEST each_call_may_fail(bool allocations, bool reuse, uint64_t in_a_row)
{
    uint64_t n, last = 5000;
    for (n = 1; n < last; n++) {
        int tries;
        stage g;
        begin(&g);
        g.http.reuse_connection = reuse;
        g.http.contains = "ok";
        g.r.desc.check_every_ms = 300;
        g.r.s->max_read = 9;
        g.r.memory.fail_at = allocations ? n : 0;
        g.r.s->fail_io_at = allocations ? 0 : n;
        g.r.memory.fail_count = g.r.s->fail_io_count = in_a_row;
        g.r.s->fail_io_status = PLB_ERR_RESET;
        for (tries = 0; g.r.lb == NULL && tries < 10; tries++)
            if (create(&g, ADDR) == PLB_OK)
                break;
        ASSERT(g.r.lb != NULL);
        rig_run(&g.r, 1000);
        if ((allocations ? g.r.memory.calls : g.r.s->io_calls) < n)
            last = n;
        g.r.memory.fail_at = g.r.s->fail_io_at = 0;
        rig_run(&g.r, 4000);
        ASSERT_EQ(PLB_OK, g.status);
        ASSERT_GT(g.successes, 5);
        ASSERT_STR_EQ(ADDR, rig_set(&g.r));
        ASSERT_EQ(0, rig_end(&g.r)); /* one may be on its way */
    }
    ASSERT_GT(n, 10);
    ASSERT(n < 5000);
    PASS();
}

SUITE(http_check)
{
    static const char many[] = "200-299,301 , 404,500-500";
    size_t i;
    RUN_TEST(the_default_is_get_of_the_root_and_200);
    RUN_TEST(the_request_is_as_the_program_says);
    RUN_TESTp(host_is_the_name_or_the_address_of_the_backend, ADDR, 0, "10.0.0.1");
    RUN_TESTp(host_is_the_name_or_the_address_of_the_backend, "10.0.0.1:8080", 0, "10.0.0.1:8080");
    RUN_TESTp(host_is_the_name_or_the_address_of_the_backend, "10.0.0.1:443", 0, "10.0.0.1:443");
    RUN_TESTp(host_is_the_name_or_the_address_of_the_backend, ADDR, 9000, "10.0.0.1:9000");
    RUN_TESTp(host_is_the_name_or_the_address_of_the_backend, "10.0.0.1:9000", 80, "10.0.0.1");
    RUN_TESTp(host_is_the_name_or_the_address_of_the_backend, "[::1]:80", 0, "[::1]");
    RUN_TESTp(host_is_the_name_or_the_address_of_the_backend, "[2001:db8:1111:2222:3333:4444:5555:6666]:10001", 0,
              "[2001:db8:1111:2222:3333:4444:5555:6666]:10001");
    RUN_TESTp(host_is_the_name_or_the_address_of_the_backend, "[fe80::1%3]:8080", 0, "[fe80::1]:8080");
    RUN_TESTp(host_is_the_name_or_the_address_of_the_backend, "unix:/run/a.sock", 0, "localhost");
    RUN_TESTp(host_is_the_name_or_the_address_of_the_backend, "a.example:80", 0, "a.example");
    RUN_TESTp(host_is_the_name_or_the_address_of_the_backend, "a.example:8080", 0, "a.example:8080");
    RUN_TESTp(host_is_the_name_or_the_address_of_the_backend, "a.example:80", 9000, "a.example:9000");
    RUN_TEST(a_descriptor_that_makes_no_sense_is_refused);
    RUN_TESTp(tls_is_asked_for_the_host, NULL, NULL, "a.example:443", "a.example", "a.example");
    RUN_TESTp(tls_is_asked_for_the_host, NULL, "b.example", "a.example:443", "b.example", "b.example");
    RUN_TESTp(tls_is_asked_for_the_host, "c.example", "b.example:1", "a.example:443", "c.example", "b.example:1");
    RUN_TESTp(tls_is_asked_for_the_host, NULL, NULL, "10.0.0.1:443", "10.0.0.1", "10.0.0.1");
    RUN_TESTp(tls_is_asked_for_the_host, NULL, NULL, "[fe80::1%3]:443", "fe80::1", "[fe80::1]");
    RUN_TESTp(tls_is_asked_for_the_host, NULL, NULL, "unix:/a", "no name", "localhost");
    for (i = 0; i < EXAMPLES; i++) {
        RUN_TESTp(each_answer_means_the_same_however_it_comes, i, 0, false);
        RUN_TESTp(each_answer_means_the_same_however_it_comes, i, 1, false);
        RUN_TESTp(each_answer_means_the_same_however_it_comes, i, 0, true);
    }
    RUN_TEST(an_answer_without_a_request_is_read_all_the_same);
    RUN_TEST(a_head_has_no_body_whatever_it_says);
    RUN_TESTp(statuses_are_numbers_and_ranges, "204", 204, true);
    RUN_TESTp(statuses_are_numbers_and_ranges, "204", 200, false);
    RUN_TESTp(statuses_are_numbers_and_ranges, many, 200, true);
    RUN_TESTp(statuses_are_numbers_and_ranges, many, 299, true);
    RUN_TESTp(statuses_are_numbers_and_ranges, many, 300, false);
    RUN_TESTp(statuses_are_numbers_and_ranges, many, 301, true);
    RUN_TESTp(statuses_are_numbers_and_ranges, many, 302, false);
    RUN_TESTp(statuses_are_numbers_and_ranges, many, 404, true);
    RUN_TESTp(statuses_are_numbers_and_ranges, many, 500, true);
    RUN_TESTp(statuses_are_numbers_and_ranges, many, 501, false);
    RUN_TESTp(statuses_are_numbers_and_ranges, "200-999", 999, true);
    RUN_TEST(a_validator_decides_instead_of_the_statuses);
    RUN_TESTp(a_text_is_found_wherever_the_body_holds_it, 0);
    RUN_TESTp(a_text_is_found_wherever_the_body_holds_it, 1);
    RUN_TESTp(a_body_is_looked_at_up_to_its_limit, false, 0);
    RUN_TESTp(a_body_is_looked_at_up_to_its_limit, true, 0);
    RUN_TESTp(a_body_is_looked_at_up_to_its_limit, false, 1);
    RUN_TESTp(a_body_is_looked_at_up_to_its_limit, true, 1);
    RUN_TESTp(a_fault_is_told_as_what_it_is, SIM_REFUSE, 0, PLB_ERR_REFUSED, NULL);
    RUN_TESTp(a_fault_is_told_as_what_it_is, SIM_UNREACHABLE, 0, PLB_ERR_UNREACHABLE, NULL);
    RUN_TESTp(a_fault_is_told_as_what_it_is, SIM_HANG, 0, PLB_ERR_TIMEOUT, NULL);
    RUN_TESTp(a_fault_is_told_as_what_it_is, SIM_SILENT, 0, PLB_ERR_TIMEOUT, NULL);
    RUN_TESTp(a_fault_is_told_as_what_it_is, SIM_RESET, 0, PLB_ERR_RESET, NULL);
    RUN_TESTp(a_fault_is_told_as_what_it_is, SIM_TRUNCATE, 0, PLB_ERR_RESET, "The connection ended before an answer.");
    RUN_TESTp(an_answer_that_breaks_off_anywhere_is_a_failure, SIM_RESET);
    RUN_TESTp(an_answer_that_breaks_off_anywhere_is_a_failure, SIM_TRUNCATE);
    RUN_TESTp(connection_and_answer_have_a_second_each_or_as_told, 0, 0);
    RUN_TESTp(connection_and_answer_have_a_second_each_or_as_told, 300, 700);
    RUN_TESTp(connection_and_answer_have_a_second_each_or_as_told, 3000, 2000);
    RUN_TEST(an_answer_after_its_time_changes_nothing);
    for (i = 0; i < 2; i++) {
        uint32_t max_read = i == 0 ? 0 : 100;
        RUN_TESTp(what_never_ends_is_ended, OK_HEAD, "X: and so on\r\n", max_read, PLB_ERR_PROTOCOL,
                  "The answer's head is longer than PLB_EXCHANGE_SIZE.");
        RUN_TESTp(what_never_ends_is_ended, "HTTP/1.1 200 ", "OK", max_read, PLB_ERR_PROTOCOL,
                  "The answer's head is longer than PLB_EXCHANGE_SIZE.");
        RUN_TESTp(what_never_ends_is_ended, OK_HEAD "\r\n", "and so on", max_read, PLB_OK, NULL);
        RUN_TESTp(what_never_ends_is_ended, OK_HEAD "Transfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n", max_read,
                  PLB_OK, NULL);
        RUN_TESTp(what_never_ends_is_ended, OK_HEAD "Transfer-Encoding: chunked\r\n\r\n0\r\n", "X: and so on\r\n",
                  max_read, PLB_ERR_PROTOCOL, "The trailers are longer than allowed.");
        RUN_TESTp(what_never_ends_is_ended, "", "HTTP/1.1 103 Early Hints\r\n\r\n", max_read, PLB_ERR_TIMEOUT, NULL);
    }
    RUN_TEST(more_headers_than_there_is_room_for_are_a_failure_of_the_backend);
    RUN_TESTp(a_probe_may_end_with_the_balancer_at_any_moment, false);
    RUN_TESTp(a_probe_may_end_with_the_balancer_at_any_moment, true);
    RUN_TESTp(a_connection_serves_all_probes_where_that_is_wished, false, 0);
    RUN_TESTp(a_connection_serves_all_probes_where_that_is_wished, true, 0);
    RUN_TESTp(a_connection_serves_all_probes_where_that_is_wished, true, 1);
    RUN_TESTp(a_connection_serves_all_probes_where_that_is_wished, true, 15);
    RUN_TESTp(only_an_answer_that_allows_it_leaves_its_connection_open,
              OK_HEAD "Connection: close\r\nContent-Length: 2\r\n\r\nok", false);
    RUN_TESTp(only_an_answer_that_allows_it_leaves_its_connection_open,
              "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", false);
    RUN_TESTp(only_an_answer_that_allows_it_leaves_its_connection_open, OK_HEAD "\r\nok", true);
    RUN_TESTp(only_an_answer_that_allows_it_leaves_its_connection_open, OK_2 "HTTP/1.1 200 OK\r\n\r\n", false);
    RUN_TEST(a_request_that_was_not_sent_whole_leaves_no_connection_behind);
    RUN_TEST(a_failure_gives_its_connection_up);
    RUN_TESTp(a_connection_that_goes_between_probes_is_no_failure, LEAVES_CLOSED);
    RUN_TESTp(a_connection_that_goes_between_probes_is_no_failure, LEAVES_RESET);
    RUN_TESTp(a_connection_that_goes_between_probes_is_no_failure, LEAVES_WITH_WORDS);
    RUN_TESTp(a_connection_that_goes_as_the_request_comes_is_made_anew, false);
    RUN_TESTp(a_connection_that_goes_as_the_request_comes_is_made_anew, true);
    RUN_TESTp(a_backend_may_have_its_own_port_path_and_host, false);
    RUN_TESTp(a_backend_may_have_its_own_port_path_and_host, true);
    RUN_TESTp(a_target_that_makes_no_sense_is_not_the_backends_fault, "own", NULL);
    RUN_TESTp(a_target_that_makes_no_sense_is_not_the_backends_fault, "/a b", NULL);
    RUN_TESTp(a_target_that_makes_no_sense_is_not_the_backends_fault, NULL, "a\r\nX: y");
    RUN_TESTp(a_target_that_makes_no_sense_is_not_the_backends_fault, NULL, "");
    RUN_TESTp(thousands_of_results_leave_nothing_behind, false);
    RUN_TESTp(thousands_of_results_leave_nothing_behind, true);
    RUN_TEST(a_probe_in_flight_takes_less_than_a_kibibyte);
    for (i = 1; i <= 3; i++) {
        RUN_TESTp(each_call_may_fail, true, false, i);
        RUN_TESTp(each_call_may_fail, true, true, i);
        RUN_TESTp(each_call_may_fail, false, false, i);
        RUN_TESTp(each_call_may_fail, false, true, i);
    }
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(http_check);
    GREATEST_MAIN_END();
}
