/* The HTTP/2 check: what it asks, what it takes for an answer, and what else can become of a probe. What it has in
   common with the HTTP check (how a page is judged) is in test_http_check.c. */
#include "../pingora_lb.h"
#define SIM_IMPLEMENTATION
#include "sim.h"
#include <greatest.h>
#include "rig.h"
#include "http2_server.h"

#define OK_2   "HEADERS :status=200;content-length=2\nDATA+ ok\n"
#define OK_0   "HEADERS+ :status=200\n"
#define SERVER "user-agent: pingora_lb/" PLB_VERSION "\n"

static plb_http_check_desc http; /* of the check under test */

static void begin(h2_server *g)
{
    h2_begin(g);
    memset(&http, 0, sizeof http);
    g->answer = OK_2;
}

static plb_status create(h2_server *g, const char *addr)
{
    return h2_create(g, addr, plb_http2_check(&http));
}

static plb_status probe(h2_server *g, const char *answer)
{
    g->answer = answer;
    return h2_probe(g, plb_http2_check(&http));
}

static int end(h2_server *g)
{
    return h2_end(g, http.reuse_connection ? 1 : 0);
}

/* ---- what is asked ---- */

TEST the_default_is_get_of_the_root_and_200(void)
{
    h2_server g;
    h2_begin(&g);
    g.answer = OK_2;
    ASSERT_EQ(PLB_OK, h2_probe(&g, plb_http2_check(NULL)));
    ASSERT_STR_EQ(":method: GET\n:scheme: http\n:path: /\n:authority: 10.0.0.1\n" SERVER, g.request);
    ASSERT_STR_EQ("SETTINGS ACK GOAWAY=0", g.sent);
    ASSERT_EQ(200, g.code);
    ASSERT_EQ(0, h2_end(&g, 0));
    PASS();
}

TEST the_request_is_as_the_program_says(void)
{
    h2_server g;
    begin(&g);
    http.method = "OPTIONS";
    http.path = "/health?deep=1&who=me";
    http.host = "shop.example:8443";
    http.headers = "Accept: text/plain\r\nX-Empty:\r\nX-Token:  A b\t\r\nTE: trailers\r\n";
    ASSERT_EQ(PLB_OK, probe(&g, OK_2));
    ASSERT_STR_EQ(":method: OPTIONS\n:scheme: http\n:path: /health?deep=1&who=me\n:authority: shop.example:8443\n"
                  "accept: text/plain\nx-empty: \nx-token: A b\nte: trailers\n" SERVER,
                  g.request);
    ASSERT_EQ(0, end(&g));
    begin(&g);
    http.method = "POST";
    http.headers = "Content-Length: 0\r\nUSER-AGENT: Probe/1\r\n";
    ASSERT_EQ(PLB_OK, probe(&g, OK_2));
    ASSERT_STR_EQ(":method: POST\n:scheme: http\n:path: /\n:authority: 10.0.0.1\ncontent-length: 0\n"
                  "user-agent: Probe/1\n",
                  g.request);
    ASSERT_EQ(0, end(&g));
    PASS();
}

TEST authority_is_the_name_or_the_address_of_the_backend(const char *backend, uint16_t port, const char *authority)
{
    char line[200];
    bool named = strstr(backend, ".example") != NULL;
    plb_addr at = sim_addr(named ? H2_ADDR : backend);
    h2_server g;
    begin(&g);
    sim_name_set(g.r.s, "a.example", &at, 1);
    if (named)
        at.port = (uint16_t)atoi(strchr(backend, ':') + 1);
    if (port > 0)
        at.port = port;
    http.connect.port = port;
    sim_serve(g.r.s, &at, h2_serve, &g);
    ASSERT_EQ(PLB_OK, create(&g, backend));
    rig_run(&g.r, 100);
    ASSERT_EQ(1, g.successes);
    snprintf(line, sizeof line, "\n:authority: %s\n", authority);
    ASSERT(strstr(g.request, line) != NULL);
    ASSERT_EQ(0, end(&g));
    PASS();
}

static char *many_headers(int count)
{
    static char text[4000];
    int i;
    text[0] = '\0';
    for (i = 0; i < count; i++)
        strcat(text, "A: b\r\n");
    return text;
}

TEST what_http2_cannot_carry_is_refused_at_once(void)
{
    static const char *const headers[] = {"Keep-Alive: 1\r\n",     "Upgrade: h2c\r\n", "Proxy-Connection: close\r\n",
                                          "Connection: close\r\n", "TE: gzip\r\n",     "Transfer-Encoding: chunked\r\n",
                                          "Host: a\r\n",           ":path: /a\r\n",    "A: b\r\nUpgrade: x\r\n"};
    h2_server g;
    size_t i;
    for (i = 0; i < sizeof headers / sizeof *headers; i++) {
        begin(&g);
        http.headers = headers[i];
        ASSERT_EQm(headers[i], PLB_ERR_ARGUMENT, create(&g, H2_ADDR));
        ASSERT_EQ(0, end(&g));
    }
    begin(&g);
    http.method = "GE T";
    ASSERT_EQ(PLB_ERR_ARGUMENT, create(&g, H2_ADDR));
    http.method = NULL;
    http.statuses = "2xx";
    ASSERT_EQ(PLB_ERR_ARGUMENT, create(&g, H2_ADDR));
    http.statuses = NULL;
    http.headers = many_headers(33);
    ASSERT_EQ(PLB_ERR_ARGUMENT, create(&g, H2_ADDR));
    http.headers = many_headers(32);
    ASSERT_EQ(PLB_OK, probe(&g, OK_2));
    ASSERT_EQ(0, end(&g));
    begin(&g);
    g.r.desc.port.io = NULL;
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, create(&g, H2_ADDR));
    ASSERT_EQ(0, end(&g));
    PASS();
}

/* A request fits, and is made, or it is refused; there is nothing between the two. */
TEST the_length_of_a_request_is_known_when_the_balancer_is_made(bool in_path)
{
    char text[700];
    size_t n, fitted = 0;
    for (n = 300; n < 600; n++) {
        plb_status status;
        h2_server g;
        begin(&g);
        memset(text, 'a', n);
        text[0] = in_path ? '/' : 'a';
        text[1] = in_path ? 'a' : ':';
        strcpy(text + n, in_path ? "" : "\r\n");
        http.path = in_path ? text : NULL;
        http.headers = in_path ? NULL : text;
        http.host = "a.example";
        status = h2_probe(&g, plb_http2_check(&http));
        ASSERT_EQ(fitted + 300 == n && status == PLB_OK ? PLB_OK : PLB_ERR_ARGUMENT, status);
        fitted += status == PLB_OK;
        ASSERT_EQ(0, end(&g));
    }
    ASSERT(fitted > 20 && fitted < 200);
    PASS();
}

/* ---- TLS: the simulator knows none; what a probe asks for is noted, the connection made without ---- */

static const plb_io *plain_io;
static char tls_wanted[200];
static const char *alpn_agreed;

static plb_status connect_noting_tls(void *self, const plb_peer *peer, plb_handler handler, plb_stream **out)
{
    plb_peer plain = *peer;
    size_t i;
    tls_wanted[0] = '\0';
    if (peer->tls != NULL) {
        snprintf(tls_wanted, sizeof tls_wanted, "%s", peer->tls->name != NULL ? peer->tls->name : "no name");
        for (i = 0; peer->tls->alpn != NULL && peer->tls->alpn[i] != NULL; i++) {
            strcat(tls_wanted, " ");
            strcat(tls_wanted, peer->tls->alpn[i]);
        }
    }
    plain.tls = NULL;
    return plain_io->connect(self, &plain, handler, out);
}

static plb_status info_with_alpn(void *self, plb_stream *stream, plb_stream_info *out)
{
    plb_status status = plain_io->info(self, stream, out);
    out->alpn = alpn_agreed;
    return status;
}

TEST over_tls_the_server_must_agree_to_http2(const char *agreed, const char *const *own, const char *wanted,
                                             plb_status status)
{
    plb_addr at = sim_addr("10.0.0.1:443");
    plb_tls tls;
    plb_io io;
    h2_server g;
    begin(&g);
    memset(&tls, 0, sizeof tls);
    plain_io = g.r.desc.port.io;
    io = *plain_io;
    io.connect = connect_noting_tls;
    io.info = info_with_alpn;
    g.r.desc.port.io = &io;
    alpn_agreed = agreed;
    tls.alpn = own;
    http.connect.tls = &tls;
    sim_name_set(g.r.s, "a.example", &at, 1);
    sim_serve(g.r.s, &at, h2_serve, &g);
    ASSERT_EQ(PLB_OK, create(&g, "a.example:443"));
    tls.alpn = NULL; /* it was copied */
    rig_run(&g.r, 100);
    ASSERT_EQ(1, g.probes);
    ASSERT_EQ(status, g.status);
    ASSERT_STR_EQ(wanted, tls_wanted);
    if (status == PLB_OK)
        ASSERT_STR_EQ(":method: GET\n:scheme: https\n:path: /\n:authority: a.example\n" SERVER, g.request);
    else
        ASSERT_STR_EQ("The server does not agree to HTTP/2 (ALPN h2).", g.text);
    ASSERT_EQ(status == PLB_OK ? 1u : 0u, g.requests);
    ASSERT_EQ(0, end(&g));
    PASS();
}

/* ---- what is taken for an answer ---- */

typedef struct example {
    const char *greeting, *answer;
    plb_status status;
    uint32_t code;
    const char *words; /* of the report; NULL: those of the status */
} example;

#define IS_NOT    "The answer is not HTTP/2."
#define MALFORMED "The answer is not well-formed HTTP/2."
#define BREAKS    "The server breaks HTTP/2's rules: error "
#define ENDED     "The connection ended before the answer was complete."

static const example examples[] = {
    {H2_GREETING, OK_2, PLB_OK, 200, NULL},
    {H2_GREETING, OK_2 "END", PLB_OK, 200, NULL},
    {H2_GREETING, OK_2 "PING\n", PLB_OK, 200, NULL},
    {H2_GREETING, OK_2 "RST_STREAM 0\n", PLB_OK, 200, NULL},
    {H2_GREETING, OK_2 "GOAWAY this 0\nEND", PLB_OK, 200, NULL},
    {H2_GREETING, OK_0, PLB_OK, 200, NULL},
    {"SETTINGS 3=100\n", OK_0 "ACK\n", PLB_OK, 200, NULL},
    {"SETTINGS 5=16777215\nACK\nWINDOW_UPDATE@0 1000000\nPING\nFRAME@0 77 255 00 01 02\n", OK_0, PLB_OK, 200, NULL},
    {"SETTINGS 1=0\nACK\n", "HEADERS :status=200\nDATA o\nDATA\nPING\nSETTINGS 4=1\nDATA k\nDATA+\n", PLB_OK, 200,
     NULL},
    {H2_GREETING, "HEADERS :status=200\nDATA ok\nHEADERS+ x-trailer=t\n", PLB_OK, 200, NULL},
    {H2_GREETING, "HEADERS- :status=200\nCONTINUATION- a=b\nCONTINUATION c=d\nDATA+ ok\n", PLB_OK, 200, NULL},
    {H2_GREETING, "HEADERS :status=100\nHEADERS :status=103;link=</a>\n" OK_2, PLB_OK, 200, NULL},
    {H2_GREETING, "GOAWAY 2147483647 0\n" OK_2 "END", PLB_OK, 200, NULL},
    {H2_GREETING, "GOAWAY this 0\n" OK_2, PLB_OK, 200, NULL},
    {H2_GREETING, "WINDOW_UPDATE 5\n" OK_2, PLB_OK, 200, NULL},
    {H2_GREETING, "HEADERS+ :status=503\n", PLB_ERR_ANSWER, 503, "HTTP status 503"},
    {H2_GREETING, "HEADERS :status=503;content-length=5\nDATA+ bad\n", PLB_ERR_ANSWER, 503, "HTTP status 503"},
    {H2_GREETING, "HEADERS+ :status=301;location=/\n", PLB_ERR_ANSWER, 301, "HTTP status 301"},
    {H2_GREETING, "HEADERS :status=200;content-length=3\nDATA+ ok\n", PLB_ERR_PROTOCOL, 200, MALFORMED},
    {H2_GREETING, "HEADERS :status=200;content-length=1\nDATA+ ok\n", PLB_ERR_PROTOCOL, 200, MALFORMED},
    {H2_GREETING, "HEADERS+ :status=101\n", PLB_ERR_PROTOCOL, 0, MALFORMED},
    {H2_GREETING, "HEADERS+ :status=99\n", PLB_ERR_PROTOCOL, 0, MALFORMED},
    {H2_GREETING, "HEADERS+ :status=103\n", PLB_ERR_PROTOCOL, 0, MALFORMED},
    {H2_GREETING, "HEADERS+ a=b\n", PLB_ERR_PROTOCOL, 0, MALFORMED},
    {H2_GREETING, "HEADERS :status=200;A=b\nDATA+ ok\n", PLB_ERR_PROTOCOL, 0, MALFORMED},
    {H2_GREETING, "HEADERS :status=200;connection=close\nDATA+ ok\n", PLB_ERR_PROTOCOL, 0, MALFORMED},
    {H2_GREETING, "DATA+ ok\n", PLB_ERR_PROTOCOL, 0, MALFORMED},
    {H2_GREETING, "RST_STREAM 0\n", PLB_ERR_RESET, 0, "The server reset the stream: HTTP/2 error 0"},
    {H2_GREETING, "RST_STREAM 7\n", PLB_ERR_RESET, 0, "The server reset the stream: HTTP/2 error 7"},
    {H2_GREETING, "HEADERS :status=200\nDATA o\nRST_STREAM 4294967295\n", PLB_ERR_RESET, 200,
     "The server reset the stream: HTTP/2 error 4294967295"},
    {H2_GREETING, "GOAWAY 0 11\n", PLB_ERR_RESET, 0, "The server goes away: HTTP/2 error 11"},
    {H2_GREETING "GOAWAY 0 0\nEND", "", PLB_ERR_RESET, 0, "The server goes away: HTTP/2 error 0"},
    {H2_GREETING, "HEADERS :status=200\nGOAWAY 0 2\n", PLB_ERR_RESET, 200, "The server goes away: HTTP/2 error 2"},
    {H2_GREETING, "GOAWAY this 0\nEND", PLB_ERR_RESET, 0, ENDED},
    {H2_GREETING, "END", PLB_ERR_RESET, 0, ENDED},
    {"END", "", PLB_ERR_RESET, 0, ENDED},
    {H2_GREETING, "HEADERS :status=200\nDATA ok\nEND", PLB_ERR_RESET, 200, ENDED},
    {H2_GREETING, "HEADERS :status=200\nFRAME 0 1 \nFRAME 9 4 00\n", PLB_OK, 200, NULL},
    {"", OK_2, PLB_ERR_PROTOCOL, 0, IS_NOT},
    {"ACK\n", OK_2, PLB_ERR_PROTOCOL, 0, IS_NOT},
    {"RAW HTTP/1.1 400 Bad Request", "", PLB_ERR_PROTOCOL, 0, IS_NOT},
    {"RAW SSH-2.0-OpenSSH_9.2", "", PLB_ERR_PROTOCOL, 0, IS_NOT},
    {"RAW no", "", PLB_ERR_TIMEOUT, 0, NULL},
    {"SETTINGS 4=2147483648\n", "", PLB_ERR_PROTOCOL, 0, IS_NOT},
    {H2_GREETING, "FRAME 1 4 ff ff ff ff ff ff ff\n", PLB_ERR_PROTOCOL, 0, BREAKS "9"},
    {H2_GREETING, "HEADERS@3+ :status=200\n", PLB_ERR_PROTOCOL, 0, BREAKS "1"},
    {H2_GREETING, "FRAME 5 4 00 00 00 02\n", PLB_ERR_PROTOCOL, 0, BREAKS "1"},
    {H2_GREETING, "HEADERS- :status=200\nDATA+ ok\n", PLB_ERR_PROTOCOL, 0, BREAKS "1"},
    {H2_GREETING, "CONTINUATION :status=200\n", PLB_ERR_PROTOCOL, 0, BREAKS "1"},
    {H2_GREETING, "WINDOW_UPDATE@0 2147483647\n", PLB_ERR_PROTOCOL, 0, BREAKS "3"},
    {H2_GREETING, "FRAME@0 6 0 00\n", PLB_ERR_PROTOCOL, 0, BREAKS "6"},
    {H2_GREETING, "HEADERS :status=200;content-length=3\nDATA ok\n", PLB_ERR_TIMEOUT, 200, NULL},
    {H2_GREETING, "HEADERS- :status=200\n", PLB_ERR_TIMEOUT, 0, NULL},
    {H2_GREETING, "HEADERS :status=100\n", PLB_ERR_TIMEOUT, 0, NULL},
    {H2_GREETING, "", PLB_ERR_TIMEOUT, 0, NULL},
    {"SETTINGS\n", "", PLB_ERR_TIMEOUT, 0, NULL},
    {"", "", PLB_ERR_TIMEOUT, 0, NULL},
};

#define EXAMPLES (sizeof examples / sizeof *examples)

TEST each_answer_means_the_same_however_it_comes(size_t n, uint32_t max_bytes, bool random_sizes)
{
    const example *e = &examples[n];
    h2_server g;
    begin(&g);
    g.greeting = e->greeting;
    g.r.s->max_read = g.r.s->max_write = max_bytes;
    g.r.s->random_sizes = random_sizes;
    ASSERT_EQm(e->answer, e->status, probe(&g, e->answer));
    ASSERT_EQm(e->answer, e->code, g.code);
    ASSERT_STR_EQm(e->answer, e->words != NULL ? e->words : plb_status_text(e->status), g.text);
    ASSERT_EQ(e->status == PLB_OK ? 0u : 1u, g.r.flips);
    ASSERT_EQ(0, end(&g));
    PASS();
}

/* RFC 9113 section 5.4.1, and what is polite. */
TEST the_server_hears_why_the_connection_ends(const char *answer, const char *sent)
{
    h2_server g;
    begin(&g);
    probe(&g, answer);
    ASSERT_STR_EQ(sent, g.sent);
    ASSERT_EQ(0, end(&g));
    PASS();
}

TEST a_head_has_no_body_whatever_it_says(void)
{
    h2_server g;
    begin(&g);
    http.method = "HEAD";
    ASSERT_EQ(PLB_OK, probe(&g, "HEADERS+ :status=200;content-length=1000\n"));
    ASSERT_EQ(0, end(&g));
    begin(&g);
    http.statuses = "204,304";
    ASSERT_EQ(PLB_OK, probe(&g, "HEADERS+ :status=304;content-length=1000\n"));
    ASSERT_EQ(0, end(&g));
    PASS();
}

TEST statuses_and_text_decide(const char *statuses, const char *contains, const char *answer, plb_status status,
                              const char *words)
{
    h2_server g;
    begin(&g);
    http.statuses = statuses;
    http.contains = contains;
    ASSERT_EQ(status, probe(&g, answer));
    ASSERT_STR_EQ(words != NULL ? words : plb_status_text(status), g.text);
    ASSERT_EQ(0, end(&g));
    PASS();
}

TEST a_body_is_looked_at_up_to_its_limit(uint32_t limit, bool contains, plb_status status, bool kept)
{
    h2_server g;
    begin(&g);
    http.body_limit = limit;
    http.contains = contains ? "ok" : NULL;
    http.reuse_connection = true;
    ASSERT_EQ(status, probe(&g, "HEADERS :status=200\nREPEAT 20000 DATA .....\nDATA+ ok\n"));
    ASSERT_EQ(kept ? 1u : 0u, g.r.s->streams);
    if (status != PLB_OK)
        ASSERT_STR_EQ("What was read of the body (body_limit) lacks the text.", g.text);
    if (kept)
        ASSERT(strstr(g.sent, "WINDOW_UPDATE") != NULL);
    ASSERT_EQ(0, end(&g));
    PASS();
}

/* ---- validators ---- */

typedef struct seen {
    bool verdict;
    uint32_t calls, status;
    size_t count, bytes, longest;
    char text[8000];
} seen;

static bool see(void *user, uint32_t status, const plb_http1_header *headers, size_t count)
{
    seen *w = (seen *)user;
    size_t i;
    w->calls++;
    w->status = status;
    w->count = count;
    w->text[0] = '\0';
    w->bytes = w->longest = 0;
    for (i = 0; i < count; i++) {
        size_t size = headers[i].name.size + headers[i].value.size;
        w->bytes += size;
        w->longest = size > w->longest ? size : w->longest;
        snprintf(w->text + strlen(w->text), sizeof w->text - strlen(w->text), "%.*s=%.*s;", (int)headers[i].name.size,
                 headers[i].name.data, (int)headers[i].value.size, headers[i].value.data);
    }
    return w->verdict;
}

TEST a_validator_decides_instead_of_the_statuses(uint32_t max_read)
{
    seen w;
    h2_server g;
    memset(&w, 0, sizeof w);
    begin(&g);
    g.r.s->max_read = max_read;
    w.verdict = true;
    http.validate = see;
    http.validate_user = &w;
    ASSERT_EQ(PLB_OK, probe(&g, "HEADERS :status=103;link=x\nHEADERS- :status=404;x-healthy=Yes\n"
                                "CONTINUATION empty=;set-cookie=a;set-cookie=b\nDATA no\nHEADERS+ x-trailer=t\n"));
    ASSERT_EQ(1, w.calls); /* interim answers are not asked about */
    ASSERT_EQ(404, w.status);
    ASSERT_STR_EQ("x-healthy=Yes;empty=;set-cookie=a;set-cookie=b;", w.text);
    ASSERT_EQ(404, g.code);
    w.verdict = false;
    g.answer = OK_2;
    h2_rounds(&g, 1);
    ASSERT_EQ(PLB_ERR_ANSWER, g.status);
    ASSERT_STR_EQ("The program does not accept the answer with HTTP status 200", g.text);
    ASSERT_STR_EQ("content-length=2;", w.text);
    ASSERT_EQ(0, end(&g));
    PASS();
}

TEST a_validator_sees_what_there_is_room_for(void)
{
    static char text[60000];
    seen w;
    h2_server g;
    int i;
    memset(&w, 0, sizeof w);
    begin(&g);
    w.verdict = true;
    http.validate = see;
    http.validate_user = &w;
    strcpy(text, "HEADERS+ :status=200");
    for (i = 0; i < 100; i++)
        snprintf(text + strlen(text), 20, ";x-%d=y", i);
    ASSERT_EQ(PLB_OK, probe(&g, text));
    ASSERT_EQ(64, w.count);
    ASSERT(strstr(w.text, "x-63=y;") != NULL);
    strcpy(text, "HEADERS+ :status=200;long=");
    memset(text + strlen(text), 'l', 1000);
    strcpy(text + strlen("HEADERS+ :status=200;long=") + 1000, ";short=s");
    h2_rounds(&g, 1);
    ASSERT_EQ(PLB_OK, g.status);
    ASSERT_EQ(2, w.count);
    ASSERT_EQ(256, w.longest);
    ASSERT(strstr(w.text, "lll;short=s;") != NULL);
    strcpy(text, "HEADERS+ :status=200");
    for (i = 0; i < 50; i++)
        snprintf(text + strlen(text), 200, ";x-%02d=%0100d", i, i);
    h2_rounds(&g, 1);
    ASSERT_EQ(PLB_OK, g.status);
    ASSERT_EQ(39, w.count); /* of 104 bytes each */
    ASSERT_EQ(0, end(&g));
    PASS();
}

TEST a_validator_that_was_set_too_late_is_refused(void)
{
    seen w;
    h2_server g;
    plb_check check;
    memset(&w, 0, sizeof w);
    begin(&g);
    check = plb_http2_check(&http);
    http.validate = see;
    http.validate_user = &w;
    ASSERT_EQ(PLB_ERR_ARGUMENT, h2_create(&g, H2_ADDR, check));
    check = plb_http2_check(&http);
    http.validate = NULL; /* taken back again: statuses decide */
    ASSERT_EQ(PLB_OK, h2_probe(&g, check));
    ASSERT_EQ(0, w.calls);
    ASSERT_EQ(0, end(&g));
    PASS();
}

/* ---- what else can become of a probe ---- */

TEST a_fault_is_told_as_what_it_is(sim_fault fault, plb_status status, const char *words)
{
    h2_server g;
    begin(&g);
    h2_host(&g)->fault = fault;
    ASSERT_EQ(status, probe(&g, OK_2));
    ASSERT_STR_EQ(words != NULL ? words : plb_status_text(status), g.text);
    ASSERT_EQ(0, g.r.s->streams);
    ASSERT_EQ(0, end(&g));
    PASS();
}

TEST an_answer_that_breaks_off_anywhere_is_a_failure(sim_fault fault)
{
    uint32_t n, failures = 0;
    for (n = 1; n < 200; n++) {
        h2_server g;
        plb_status status;
        begin(&g);
        h2_host(&g)->fault = fault;
        h2_host(&g)->fault_bytes = n;
        status = probe(&g, OK_2);
        ASSERT_EQ(0, end(&g));
        if (status == PLB_OK)
            break;
        ASSERT_EQ(PLB_ERR_RESET, status);
        ASSERT_EQ(++failures, n);
    }
    ASSERT_GT(failures, 35);
    PASS();
}

TEST connection_and_answer_have_a_second_each_or_as_told(uint32_t connect_ms, uint32_t answer_ms)
{
    uint32_t first = connect_ms > 0 ? connect_ms : 1000, second = answer_ms > 0 ? answer_ms : 1000;
    h2_server g;
    begin(&g);
    http.connect.timeout_ms = connect_ms;
    http.answer_ms = answer_ms;
    g.answer = NULL;
    h2_host(&g)->latency_ms = first / 2 - 5; /* the connection just comes about */
    ASSERT_EQ(PLB_OK, create(&g, H2_ADDR));
    rig_run(&g.r, first - 10 + second - 2);
    ASSERT_EQ(0, g.probes);
    rig_run(&g.r, 4);
    ASSERT_EQ(PLB_ERR_TIMEOUT, g.status);
    ASSERT_EQ(0, end(&g));
    begin(&g);
    http.connect.timeout_ms = connect_ms;
    h2_host(&g)->fault = SIM_HANG;
    ASSERT_EQ(PLB_OK, create(&g, H2_ADDR));
    rig_run(&g.r, first - 1);
    ASSERT_EQ(0, g.probes);
    rig_run(&g.r, 2);
    ASSERT_EQ(PLB_ERR_TIMEOUT, g.status);
    ASSERT_EQ(0, end(&g));
    PASS();
}

TEST an_answer_after_its_time_changes_nothing(void)
{
    h2_server g;
    begin(&g);
    http.answer_ms = 100;
    h2_host(&g)->latency_ms = 60; /* there in 120, answered in 240 */
    ASSERT_EQ(PLB_OK, create(&g, H2_ADDR));
    rig_run(&g.r, 1000);
    ASSERT_EQ(1, g.requests);
    ASSERT_EQ(1, g.probes);
    ASSERT_EQ(PLB_ERR_TIMEOUT, g.status);
    ASSERT_EQ(1, g.r.flips);
    ASSERT_EQ(0, end(&g));
    PASS();
}

/* Half a mebibyte and more of the same. */
TEST what_never_ends_is_ended(const char *start, const char *again, uint32_t max_read, plb_status status,
                              const char *words)
{
    char script[200];
    h2_server g;
    begin(&g);
    http.body_limit = 10000;
    g.r.s->max_read = max_read;
    snprintf(script, sizeof script, "%sREPEAT 40000 %s", start, again);
    ASSERT_EQ(status, probe(&g, script));
    ASSERT_STR_EQ(words != NULL ? words : plb_status_text(status), g.text);
    ASSERT_EQ(0, g.r.s->streams);
    ASSERT_EQ(0, end(&g));
    PASS();
}

TEST a_probe_may_end_with_the_balancer_at_any_moment(bool reuse)
{
    uint32_t ms, over = 0;
    for (ms = 0; ms < 300 && over < 3; ms++) {
        h2_server g;
        begin(&g);
        http.reuse_connection = reuse;
        http.contains = "ok";
        h2_host(&g)->bytes_per_ms = 1;
        g.answer = "HEADERS- :status=200\nCONTINUATION a=b\nDATA o\nPING\nDATA+ k\n";
        ASSERT_EQ(PLB_OK, create(&g, H2_ADDR));
        rig_run(&g.r, ms);
        over += g.probes;
        ASSERT_EQ(0, rig_end(&g.r));
    }
    ASSERT_GT(ms, 100);
    ASSERT_EQ(3, over);
    PASS();
}

/* ---- a connection for several probes ---- */

static plb_status begin_reuse(h2_server *g)
{
    plb_status status;
    begin(g);
    http.reuse_connection = true;
    status = create(g, H2_ADDR);
    rig_run(&g->r, 20);
    return status;
}

TEST a_connection_serves_all_probes_where_that_is_wished(bool reuse, uint32_t max_bytes, bool validates)
{
    seen w;
    h2_server g;
    memset(&w, 0, sizeof w);
    w.verdict = true;
    begin(&g);
    http.reuse_connection = reuse;
    http.contains = "ok";
    http.validate = validates ? see : NULL;
    http.validate_user = &w;
    g.r.s->max_read = g.r.s->max_write = max_bytes;
    ASSERT_EQ(PLB_OK, create(&g, H2_ADDR));
    rig_run(&g.r, 20);
    h2_rounds(&g, 49);
    ASSERT_EQ(50, g.successes);
    ASSERT_EQ(50, g.requests); /* nothing is sent twice */
    ASSERT_EQ(validates ? 50u : 0u, w.calls);
    ASSERT_EQ(reuse ? 1u : 50u, h2_host(&g)->connects);
    ASSERT_EQ(reuse ? 1u : 0u, g.r.s->streams);
    if (reuse)
        ASSERT_STR_EQ("SETTINGS ACK", g.sent);
    ASSERT_EQ(0, end(&g));
    PASS();
}

/* Frames between the request and its answer, answered or not, do no harm to the next request. */
TEST what_a_server_asks_meanwhile_is_answered_once(void)
{
    h2_server g;
    begin(&g);
    http.reuse_connection = true;
    g.answer = "PING\n" OK_2;
    ASSERT_EQ(PLB_OK, create(&g, H2_ADDR));
    rig_run(&g.r, 20);
    h2_rounds(&g, 3);
    ASSERT_EQ(4, g.successes);
    ASSERT_EQ(4, g.requests);
    ASSERT_EQ(1, h2_host(&g)->connects);
    ASSERT_STR_EQ("SETTINGS ACK PING=ack PING=ack PING=ack PING=ack", g.sent);
    ASSERT_EQ(0, end(&g));
    PASS();
}

/* The server's window for what it is sent is too small for more: the rest of the output is never sent twice. */
TEST output_that_there_is_no_room_for_ends_a_connection_but_no_probe(uint32_t buffer_bytes)
{
    h2_server g;
    int i;
    begin(&g);
    http.reuse_connection = true;
    h2_host(&g)->buffer_bytes = buffer_bytes;
    g.answer = "REPEAT 5 PING\n" OK_2;
    g.r.desc.check_every_ms = 50;
    ASSERT_EQ(PLB_OK, create(&g, H2_ADDR));
    for (i = 0; i < 20; i++)
        rig_run(&g.r, 50);
    ASSERT_EQ(g.probes, g.successes);
    ASSERT_GTE(g.requests, g.probes);
    ASSERT_LTE(g.requests, g.probes + 1);
    ASSERT_GT(g.probes, 15);
    ASSERT_EQ(0, end(&g));
    PASS();
}

TEST only_an_answer_that_allows_it_leaves_its_connection_open(const char *answer)
{
    h2_server g;
    begin(&g);
    http.reuse_connection = true;
    ASSERT_EQ(PLB_OK, probe(&g, answer));
    ASSERT_EQ(0, g.r.s->streams);
    h2_rounds(&g, 2);
    ASSERT_EQ(3, g.successes);
    ASSERT_EQ(3, h2_host(&g)->connects);
    ASSERT_EQ(0, end(&g));
    PASS();
}

TEST a_failure_gives_its_connection_up(const char *answer, plb_status status)
{
    h2_server g;
    ASSERT_EQ(PLB_OK, begin_reuse(&g));
    g.answer = answer;
    h2_rounds(&g, 1);
    ASSERT_EQ(status, g.status);
    ASSERT_EQ(0, g.r.s->streams);
    g.answer = OK_2;
    h2_rounds(&g, 2);
    ASSERT_EQ(3, g.successes);
    ASSERT_EQ(2, h2_host(&g)->connects);
    ASSERT_EQ(0, end(&g));
    PASS();
}

TEST a_connection_that_goes_between_probes_is_no_failure(const char *leave)
{
    int i;
    h2_server g;
    ASSERT_EQ(PLB_OK, begin_reuse(&g));
    for (i = 0; i < 5; i++) {
        h2_say(h2_newest(&g), 1, leave);
        rig_run(&g.r, 10);
        ASSERT_EQ(0, g.r.s->streams);
        h2_rounds(&g, 1);
        ASSERT_EQ(PLB_OK, g.status);
    }
    ASSERT_EQ(6, g.successes);
    ASSERT_EQ(6, h2_host(&g)->connects);
    ASSERT_EQ(0, g.r.flips);
    ASSERT_EQ(0, end(&g));
    PASS();
}

TEST a_connection_that_goes_as_the_request_comes_is_made_anew(const char *leave, uint32_t max_read)
{
    h2_server g;
    begin(&g);
    g.later = leave;
    g.r.s->max_read = max_read;
    http.reuse_connection = true;
    ASSERT_EQ(PLB_OK, create(&g, H2_ADDR));
    rig_run(&g.r, 20);
    h2_rounds(&g, 3);
    ASSERT_EQ(4, g.successes);
    ASSERT_EQ(4, g.probes);
    ASSERT_STR_EQ(plb_status_text(PLB_OK), g.text); /* of what it met on the old one nothing is left */
    ASSERT_EQ(200, g.code);
    ASSERT_EQ(4, h2_host(&g)->connects);
    ASSERT_EQ(0, g.r.flips);
    h2_host(&g)->fault = SIM_REFUSE;
    h2_rounds(&g, 1);
    ASSERT_EQ(PLB_ERR_REFUSED, g.status);
    ASSERT_EQ(0, g.r.s->streams);
    ASSERT_EQ(0, end(&g));
    PASS();
}

/* A request that the server did look at is not made twice. */
TEST what_a_server_did_begin_is_not_asked_again(const char *answer)
{
    h2_server g;
    ASSERT_EQ(PLB_OK, begin_reuse(&g));
    g.later = answer;
    h2_rounds(&g, 1);
    ASSERT_EQ(PLB_ERR_RESET, g.status);
    ASSERT_EQ(2, g.requests);
    ASSERT_EQ(0, end(&g));
    PASS();
}

/* A server that allows no stream for now, or has gone away, gets no request there. */
TEST a_connection_that_takes_no_more_requests_is_left(void)
{
    h2_server g;
    ASSERT_EQ(PLB_OK, begin_reuse(&g));
    g.later = "SETTINGS 3=0\n" OK_2;
    h2_rounds(&g, 1);
    ASSERT_EQ(1, g.r.s->streams);
    h2_rounds(&g, 1);
    ASSERT_EQ(3, g.successes);
    ASSERT_EQ(2, h2_host(&g)->connects);
    ASSERT_EQ(0, end(&g));
    PASS();
}

/* ---- each backend its own way ---- */

static plb_http_target aim;

static void aim_at(void *user, const plb_backend *backend, plb_http_target *target)
{
    (void)backend;
    ++*(int *)user;
    if (aim.port > 0)
        target->port = aim.port;
    if (aim.path != NULL)
        target->path = aim.path;
    if (aim.host != NULL)
        target->host = aim.host;
}

static void begin_aimed(h2_server *g, int *calls, bool reuse)
{
    memset(&aim, 0, sizeof aim);
    begin(g);
    http.reuse_connection = reuse;
    http.path = "/usual";
    http.target = aim_at;
    http.target_user = calls;
}

static bool asks(const h2_server *g, const char *path, const char *authority)
{
    char text[200];
    snprintf(text, sizeof text, ":method: GET\n:scheme: http\n:path: %s\n:authority: %s\n" SERVER, path, authority);
    return strcmp(text, g->request) == 0;
}

TEST a_backend_may_have_its_own_port_path_and_host(bool reuse)
{
    int calls = 0;
    plb_addr other = sim_addr("10.0.0.1:8081");
    h2_server g;
    begin_aimed(&g, &calls, reuse);
    sim_serve(g.r.s, &other, h2_serve, &g);
    ASSERT_EQ(PLB_OK, create(&g, H2_ADDR));
    rig_run(&g.r, 20);
    ASSERT(asks(&g, "/usual", "10.0.0.1"));
    aim.port = 8081;
    h2_rounds(&g, 1);
    ASSERT(asks(&g, "/usual", "10.0.0.1:8081"));
    aim.path = "/own";
    h2_rounds(&g, 1);
    ASSERT(asks(&g, "/own", "10.0.0.1:8081"));
    aim.host = "own.example";
    h2_rounds(&g, 2);
    ASSERT(asks(&g, "/own", "own.example"));
    ASSERT_EQ(5, calls);
    ASSERT_EQ(5, g.successes);
    ASSERT_EQ(1, h2_host(&g)->connects);
    ASSERT_EQ(reuse ? 2u : 4u, sim_host(g.r.s, &other)->connects);
    ASSERT_EQ(0, end(&g));
    PASS();
}

TEST a_target_that_makes_no_sense_is_not_the_backends_fault(size_t path_size, size_t host_size, bool reuse)
{
    static char path[700], name[700];
    int calls = 0;
    h2_server g;
    begin_aimed(&g, &calls, reuse);
    ASSERT_EQ(PLB_OK, create(&g, H2_ADDR));
    rig_run(&g.r, 20);
    memset(path, 0, sizeof path);
    memset(name, 0, sizeof name);
    memset(path, '/', path_size);
    memset(name, 'n', host_size);
    aim.path = path_size > 0 ? path : "no path";
    aim.host = host_size > 0 ? name : NULL;
    h2_rounds(&g, 1);
    ASSERT(plb_status_is_local(g.status));
    ASSERT(rig_logged(&g.r, "could not probe 10.0.0.1:80"));
    ASSERT_EQ(0, g.r.flips);
    ASSERT_EQ(0, g.r.s->streams);
    memset(&aim, 0, sizeof aim);
    rig_run(&g.r, 1100);
    ASSERT_EQ(2, g.successes);
    ASSERT_EQ(0, end(&g));
    PASS();
}

/* ---- what it costs, and what happens when there is not enough ---- */

TEST thousands_of_results_leave_nothing_behind(bool reuse)
{
    static const char *const answers[] = {OK_2,           "HEADERS+ :status=503\n", "RST_STREAM 8\n",
                                          "GOAWAY 0 0\n", "HEADERS :status=200\n",  "RAW nonsense of some length\n"};
    size_t bytes = 0;
    int i;
    h2_server g;
    begin(&g);
    http.reuse_connection = reuse;
    http.answer_ms = 15;
    ASSERT_EQ(PLB_OK, create(&g, H2_ADDR));
    rig_run(&g.r, 30);
    for (i = 0; i < 3000; i++) {
        g.answer = answers[i % 6];
        h2_rounds(&g, 1);
        if (i == 11)
            bytes = g.r.memory.live_bytes;
        if (i > 11 && i % 12 == 11)
            ASSERT_EQ(bytes, g.r.memory.live_bytes);
    }
    ASSERT_EQ(3001, g.probes);
    ASSERT_EQ(501, g.successes);
    ASSERT_EQ(0, end(&g));
    PASS();
}

#define MANY 2000

TEST the_memory_of_a_probe_in_flight_is_bounded(bool validates, size_t limit)
{
    static char texts[MANY][24];
    static const char *addresses[MANY];
    plb_static_desc list;
    size_t before;
    int i;
    h2_server g;
    begin(&g);
    memset(&list, 0, sizeof list);
    for (i = 0; i < MANY; i++) {
        snprintf(texts[i], sizeof texts[i], "10.1.%d.%d:80", i / 250, i % 250 + 1);
        addresses[i] = texts[i];
    }
    list.addresses = addresses;
    list.address_count = MANY;
    g.r.s->defaults.fault = SIM_SILENT;
    http.answer_ms = 5000;
    http.validate = validates ? see : NULL;
    g.r.desc.discovery = plb_static(&list);
    g.r.desc.check = plb_http2_check(&http);
    g.r.desc.parallel_checks = PLB_UNLIMITED;
    ASSERT_EQ(PLB_OK, rig_create(&g.r));
    before = g.r.memory.live_bytes;
    rig_run(&g.r, 500);
    ASSERT_EQ(MANY, g.r.s->streams);
    if (getenv("SIM_TRACE") != NULL)
        fprintf(stderr, "%u bytes a probe\n", (unsigned)((g.r.memory.live_bytes - before) / MANY));
    ASSERT_LTE((g.r.memory.live_bytes - before) / MANY, limit);
    ASSERT_EQ(0, rig_end(&g.r));
    PASS();
}

/* Every one of some calls fails, one run after another; in the end the backend is probed and well. */
TEST each_call_may_fail(bool allocations, bool reuse, uint64_t in_a_row)
{
    uint64_t n, last = 5000;
    for (n = 1; n < last; n++) {
        int tries;
        h2_server g;
        begin(&g);
        http.reuse_connection = reuse;
        http.contains = "ok";
        g.answer = "PING\n" OK_2;
        g.r.desc.check_every_ms = 300;
        g.r.s->max_read = g.r.s->max_write = 33;
        g.r.memory.fail_at = allocations ? n : 0;
        g.r.s->fail_io_at = allocations ? 0 : n;
        g.r.memory.fail_count = g.r.s->fail_io_count = in_a_row;
        g.r.s->fail_io_status = PLB_ERR_RESET;
        for (tries = 0; g.r.lb == NULL && tries < 10; tries++)
            if (create(&g, H2_ADDR) == PLB_OK)
                break;
        ASSERT(g.r.lb != NULL);
        rig_run(&g.r, 1000);
        if ((allocations ? g.r.memory.calls : g.r.s->io_calls) < n)
            last = n;
        g.r.memory.fail_at = g.r.s->fail_io_at = 0;
        rig_run(&g.r, 4000);
        ASSERT_EQ(PLB_OK, g.status);
        ASSERT_GT(g.successes, 5);
        ASSERT_STR_EQ(H2_ADDR, rig_set(&g.r));
        ASSERT(g.fault == NULL);
        ASSERT_EQ(0, rig_end(&g.r)); /* one may be on its way */
    }
    ASSERT_GT(n, 10);
    ASSERT(n < 5000);
    PASS();
}

SUITE(http2_check)
{
    static const char *const h2_or_1[] = {"h2", "http/1.1", NULL};
    size_t i;
    RUN_TEST(the_default_is_get_of_the_root_and_200);
    RUN_TEST(the_request_is_as_the_program_says);
    RUN_TESTp(authority_is_the_name_or_the_address_of_the_backend, H2_ADDR, 0, "10.0.0.1");
    RUN_TESTp(authority_is_the_name_or_the_address_of_the_backend, "10.0.0.1:8080", 0, "10.0.0.1:8080");
    RUN_TESTp(authority_is_the_name_or_the_address_of_the_backend, H2_ADDR, 9000, "10.0.0.1:9000");
    RUN_TESTp(authority_is_the_name_or_the_address_of_the_backend, "[2001:db8:1111:2222:3333:4444:5555:6666]:10001", 0,
              "[2001:db8:1111:2222:3333:4444:5555:6666]:10001");
    RUN_TESTp(authority_is_the_name_or_the_address_of_the_backend, "unix:/run/a.sock", 0, "localhost");
    RUN_TESTp(authority_is_the_name_or_the_address_of_the_backend, "a.example:80", 0, "a.example");
    RUN_TESTp(authority_is_the_name_or_the_address_of_the_backend, "a.example:8080", 0, "a.example:8080");
    RUN_TEST(what_http2_cannot_carry_is_refused_at_once);
    RUN_TESTp(the_length_of_a_request_is_known_when_the_balancer_is_made, false);
    RUN_TESTp(the_length_of_a_request_is_known_when_the_balancer_is_made, true);
    RUN_TESTp(over_tls_the_server_must_agree_to_http2, "h2", NULL, "a.example h2", PLB_OK);
    RUN_TESTp(over_tls_the_server_must_agree_to_http2, "h2", h2_or_1, "a.example h2 http/1.1", PLB_OK);
    RUN_TESTp(over_tls_the_server_must_agree_to_http2, "http/1.1", h2_or_1, "a.example h2 http/1.1", PLB_ERR_PROTOCOL);
    RUN_TESTp(over_tls_the_server_must_agree_to_http2, NULL, NULL, "a.example h2", PLB_ERR_PROTOCOL);
    for (i = 0; i < EXAMPLES; i++) {
        RUN_TESTp(each_answer_means_the_same_however_it_comes, i, 0, false);
        RUN_TESTp(each_answer_means_the_same_however_it_comes, i, 1, false);
        RUN_TESTp(each_answer_means_the_same_however_it_comes, i, 0, true);
    }
    RUN_TESTp(the_server_hears_why_the_connection_ends, OK_2, "SETTINGS ACK GOAWAY=0");
    RUN_TESTp(the_server_hears_why_the_connection_ends, "HEADERS+ :status=503\n", "SETTINGS ACK GOAWAY=0");
    RUN_TESTp(the_server_hears_why_the_connection_ends, "DATA+ ok\n", "SETTINGS ACK RST_STREAM=1 GOAWAY=0");
    RUN_TESTp(the_server_hears_why_the_connection_ends, "HEADERS@3+ :status=200\n", "SETTINGS ACK GOAWAY=1");
    RUN_TESTp(the_server_hears_why_the_connection_ends, "FRAME 1 4 ff ff ff ff ff ff ff\n", "SETTINGS ACK GOAWAY=9");
    RUN_TEST(a_head_has_no_body_whatever_it_says);
    RUN_TESTp(statuses_and_text_decide, "200-299,404", NULL, "HEADERS+ :status=404\n", PLB_OK, NULL);
    RUN_TESTp(statuses_and_text_decide, "200-299,404", NULL, "HEADERS+ :status=405\n", PLB_ERR_ANSWER,
              "HTTP status 405");
    RUN_TESTp(statuses_and_text_decide, "200-999", NULL, "HEADERS+ :status=999\n", PLB_OK, NULL);
    RUN_TESTp(statuses_and_text_decide, NULL, "healthy",
              "HEADERS :status=200\nDATA hea\nPING\nDATA\nDATA l\nDATA+ thy\n", PLB_OK, NULL);
    RUN_TESTp(statuses_and_text_decide, NULL, "healthy", "HEADERS :status=200\nDATA health\nDATA+ hy\n", PLB_ERR_ANSWER,
              "The body lacks the text that it must contain.");
    RUN_TESTp(statuses_and_text_decide, NULL, "healthy", OK_0, PLB_ERR_ANSWER,
              "The body lacks the text that it must contain.");
    RUN_TESTp(a_body_is_looked_at_up_to_its_limit, 0, false, PLB_OK, false);
    RUN_TESTp(a_body_is_looked_at_up_to_its_limit, 0, true, PLB_ERR_ANSWER, false);
    RUN_TESTp(a_body_is_looked_at_up_to_its_limit, 100001, true, PLB_ERR_ANSWER, false);
    RUN_TESTp(a_body_is_looked_at_up_to_its_limit, 100002, true, PLB_OK, true);
    RUN_TESTp(a_validator_decides_instead_of_the_statuses, 0);
    RUN_TESTp(a_validator_decides_instead_of_the_statuses, 1);
    RUN_TEST(a_validator_sees_what_there_is_room_for);
    RUN_TEST(a_validator_that_was_set_too_late_is_refused);
    RUN_TESTp(a_fault_is_told_as_what_it_is, SIM_REFUSE, PLB_ERR_REFUSED, NULL);
    RUN_TESTp(a_fault_is_told_as_what_it_is, SIM_UNREACHABLE, PLB_ERR_UNREACHABLE, NULL);
    RUN_TESTp(a_fault_is_told_as_what_it_is, SIM_HANG, PLB_ERR_TIMEOUT, NULL);
    RUN_TESTp(a_fault_is_told_as_what_it_is, SIM_SILENT, PLB_ERR_TIMEOUT, NULL);
    RUN_TESTp(a_fault_is_told_as_what_it_is, SIM_RESET, PLB_ERR_RESET, NULL);
    RUN_TESTp(a_fault_is_told_as_what_it_is, SIM_TRUNCATE, PLB_ERR_RESET, ENDED);
    RUN_TESTp(an_answer_that_breaks_off_anywhere_is_a_failure, SIM_RESET);
    RUN_TESTp(an_answer_that_breaks_off_anywhere_is_a_failure, SIM_TRUNCATE);
    RUN_TESTp(connection_and_answer_have_a_second_each_or_as_told, 0, 0);
    RUN_TESTp(connection_and_answer_have_a_second_each_or_as_told, 300, 700);
    RUN_TESTp(connection_and_answer_have_a_second_each_or_as_told, 3000, 2000);
    RUN_TEST(an_answer_after_its_time_changes_nothing);
    for (i = 0; i < 2; i++) {
        uint32_t max_read = i == 0 ? 0 : 100;
        RUN_TESTp(what_never_ends_is_ended, "HEADERS :status=200\n", "DATA and so on", max_read, PLB_OK, NULL);
        RUN_TESTp(what_never_ends_is_ended, "HEADERS :status=200\n", "DATA", max_read, PLB_ERR_PROTOCOL, BREAKS "11");
        RUN_TESTp(what_never_ends_is_ended, "", "HEADERS :status=103", max_read, PLB_ERR_PROTOCOL, BREAKS "11");
        RUN_TESTp(what_never_ends_is_ended, "HEADERS- :status=200\n", "CONTINUATION- a=b", max_read, PLB_ERR_PROTOCOL,
                  BREAKS "11");
        RUN_TESTp(what_never_ends_is_ended, "HEADERS- :status=200\n", "CONTINUATION-", max_read, PLB_ERR_PROTOCOL,
                  BREAKS "11");
        RUN_TESTp(what_never_ends_is_ended, "", "PING", max_read, PLB_ERR_PROTOCOL, BREAKS "11");
        RUN_TESTp(what_never_ends_is_ended, "", "PING ack", max_read, PLB_ERR_PROTOCOL, BREAKS "11");
        RUN_TESTp(what_never_ends_is_ended, "", "SETTINGS", max_read, PLB_ERR_PROTOCOL, BREAKS "11");
        RUN_TESTp(what_never_ends_is_ended, "", "SETTINGS 3=1", max_read, PLB_ERR_PROTOCOL, BREAKS "11");
        RUN_TESTp(what_never_ends_is_ended, "", "GOAWAY 2147483647 0", max_read, PLB_ERR_PROTOCOL, BREAKS "11");
    }
    RUN_TESTp(a_probe_may_end_with_the_balancer_at_any_moment, false);
    RUN_TESTp(a_probe_may_end_with_the_balancer_at_any_moment, true);
    RUN_TESTp(a_connection_serves_all_probes_where_that_is_wished, false, 0, false);
    RUN_TESTp(a_connection_serves_all_probes_where_that_is_wished, true, 0, false);
    RUN_TESTp(a_connection_serves_all_probes_where_that_is_wished, true, 0, true);
    RUN_TESTp(a_connection_serves_all_probes_where_that_is_wished, true, 1, false);
    RUN_TESTp(a_connection_serves_all_probes_where_that_is_wished, true, 15, true);
    RUN_TEST(what_a_server_asks_meanwhile_is_answered_once);
    for (i = 10; i < 200; i += 9)
        RUN_TESTp(output_that_there_is_no_room_for_ends_a_connection_but_no_probe, (uint32_t)i);
    RUN_TESTp(only_an_answer_that_allows_it_leaves_its_connection_open, "GOAWAY this 0\n" OK_2);
    RUN_TESTp(only_an_answer_that_allows_it_leaves_its_connection_open, OK_2 "GOAWAY this 0\n");
    RUN_TESTp(only_an_answer_that_allows_it_leaves_its_connection_open, OK_2 "PING\n");
    RUN_TESTp(only_an_answer_that_allows_it_leaves_its_connection_open, OK_2 "END\n");
    RUN_TESTp(a_failure_gives_its_connection_up, "HEADERS+ :status=503\n", PLB_ERR_ANSWER);
    RUN_TESTp(a_failure_gives_its_connection_up, "RST_STREAM 2\n", PLB_ERR_RESET);
    RUN_TESTp(a_failure_gives_its_connection_up, "HEADERS+ a=b\n", PLB_ERR_PROTOCOL);
    RUN_TESTp(a_failure_gives_its_connection_up, "FRAME@0 6 0 00\n", PLB_ERR_PROTOCOL);
    RUN_TESTp(a_connection_that_goes_between_probes_is_no_failure, "END");
    RUN_TESTp(a_connection_that_goes_between_probes_is_no_failure, "RESET");
    RUN_TESTp(a_connection_that_goes_between_probes_is_no_failure, "GOAWAY this 0");
    RUN_TESTp(a_connection_that_goes_between_probes_is_no_failure, "GOAWAY this 0\nEND");
    for (i = 0; i < 2; i++) {
        RUN_TESTp(a_connection_that_goes_as_the_request_comes_is_made_anew, "END", (uint32_t)i);
        RUN_TESTp(a_connection_that_goes_as_the_request_comes_is_made_anew, "RESET", (uint32_t)i);
        RUN_TESTp(a_connection_that_goes_as_the_request_comes_is_made_anew, "GOAWAY before 0", (uint32_t)i);
        RUN_TESTp(a_connection_that_goes_as_the_request_comes_is_made_anew, "GOAWAY before 0\nEND", (uint32_t)i);
        RUN_TESTp(a_connection_that_goes_as_the_request_comes_is_made_anew,
                  "GOAWAY 2147483647 0\nPING\nGOAWAY before 0\n", (uint32_t)i);
    }
    RUN_TESTp(what_a_server_did_begin_is_not_asked_again, "GOAWAY this 0\nEND");
    RUN_TESTp(what_a_server_did_begin_is_not_asked_again, "HEADERS :status=200\nEND");
    RUN_TESTp(what_a_server_did_begin_is_not_asked_again, "HEADERS :status=200\nRST_STREAM 2\n");
    RUN_TEST(a_connection_that_takes_no_more_requests_is_left);
    RUN_TESTp(a_backend_may_have_its_own_port_path_and_host, false);
    RUN_TESTp(a_backend_may_have_its_own_port_path_and_host, true);
    /* no room for it beside what opens a connection */
    RUN_TESTp(a_target_that_makes_no_sense_is_not_the_backends_fault, 415, 0, false);
    for (i = 0; i < 2; i++) {
        RUN_TESTp(a_target_that_makes_no_sense_is_not_the_backends_fault, 0, 0, i == 1);
        RUN_TESTp(a_target_that_makes_no_sense_is_not_the_backends_fault, 450, 0, i == 1);
        RUN_TESTp(a_target_that_makes_no_sense_is_not_the_backends_fault, 699, 0, i == 1);
        RUN_TESTp(a_target_that_makes_no_sense_is_not_the_backends_fault, 200, 250, i == 1);
        RUN_TESTp(a_target_that_makes_no_sense_is_not_the_backends_fault, 1, 320, i == 1);
    }
    RUN_TESTp(thousands_of_results_leave_nothing_behind, false);
    RUN_TESTp(thousands_of_results_leave_nothing_behind, true);
    RUN_TESTp(the_memory_of_a_probe_in_flight_is_bounded, false, 2000);
    RUN_TESTp(the_memory_of_a_probe_in_flight_is_bounded, true, 8150);
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
    RUN_SUITE(http2_check);
    GREATEST_MAIN_END();
}
