/* The gRPC check: what it asks the health service, and what each answer means. What it has in common with the HTTP/2
   check is in test_http2_check.c. */
#include "../pingora_lb.h"
#define SIM_IMPLEMENTATION
#include "sim.h"
#include <greatest.h>
#include "rig.h"
#include "http2_server.h"

#define HEAD       "HEADERS :status=200;content-type=application/grpc\n"
#define OK_TRAILER "HEADERS+ grpc-status=0\n"
#define MESSAGE(n) "DATA #00 00000002 08" n "\n"
#define SERVING    HEAD MESSAGE("01") OK_TRAILER
#define FIELDS     "content-type: application/grpc\nte: trailers\n"

static plb_grpc_check_desc grpc; /* of the check under test */

static void begin(h2_server *g)
{
    h2_begin(g);
    memset(&grpc, 0, sizeof grpc);
    g->answer = SERVING;
}

static plb_status create(h2_server *g)
{
    return h2_create(g, H2_ADDR, plb_grpc_check(&grpc));
}

static plb_status probe(h2_server *g, const char *answer)
{
    g->answer = answer;
    return h2_probe(g, plb_grpc_check(&grpc));
}

static int end(h2_server *g)
{
    return h2_end(g, grpc.reuse_connection ? 1 : 0);
}

static bool body_is(const h2_server *g, const void *bytes, size_t size)
{
    return g->body_size == size && memcmp(g->body, bytes, size) == 0;
}

/* ---- what is asked ---- */

TEST the_default_asks_for_the_server_as_a_whole(void)
{
    h2_server g;
    h2_begin(&g);
    g.answer = SERVING;
    ASSERT_EQ(PLB_OK, h2_probe(&g, plb_grpc_check(NULL)));
    ASSERT_STR_EQ(":method: POST\n:scheme: http\n:path: /grpc.health.v1.Health/Check\n:authority: 10.0.0.1\n" FIELDS,
                  g.request);
    ASSERT(body_is(&g, "\0\0\0\0\0", 5));
    ASSERT_STR_EQ("SETTINGS ACK GOAWAY=0", g.sent);
    ASSERT_EQ(0, h2_end(&g, 0));
    PASS();
}

TEST a_service_has_up_to_256_bytes(void)
{
    char text[300], body[300];
    h2_server g;
    begin(&g);
    grpc.host = "shop.example:50051";
    grpc.service = "shop.Cart";
    ASSERT_EQ(PLB_OK, probe(&g, SERVING));
    ASSERT(body_is(&g, "\0\0\0\0\x0b\x0a\x09shop.Cart", 16));
    ASSERT(strstr(g.request, "\n:authority: shop.example:50051\n") != NULL);
    ASSERT_EQ(0, end(&g));
    begin(&g);
    memset(text, 's', sizeof text);
    text[256] = '\0';
    grpc.service = text;
    ASSERT_EQ(PLB_OK, create(&g));
    memset(text, '?', 256); /* it was copied */
    rig_run(&g.r, 100);
    memcpy(body, "\0\0\0\1\3\x0a\x80\2", 8);
    memset(body + 8, 's', 256);
    ASSERT(body_is(&g, body, 264));
    ASSERT_EQ(1, g.successes);
    ASSERT_EQ(0, end(&g));
    begin(&g);
    memset(text, 's', sizeof text);
    text[257] = '\0';
    grpc.service = text;
    ASSERT_EQ(PLB_ERR_ARGUMENT, create(&g));
    grpc.service = NULL;
    grpc.host = "";
    ASSERT_EQ(PLB_ERR_ARGUMENT, create(&g));
    grpc.host = NULL;
    g.r.desc.port.clock = NULL;
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, create(&g));
    ASSERT_EQ(0, end(&g));
    PASS();
}

TEST it_goes_where_the_program_says(void)
{
    plb_addr at = sim_addr("10.0.0.1:50051");
    h2_server g;
    begin(&g);
    sim_serve(g.r.s, &at, h2_serve, &g);
    grpc.connect.port = 50051;
    ASSERT_EQ(PLB_OK, probe(&g, SERVING));
    ASSERT(strstr(g.request, "\n:authority: 10.0.0.1:50051\n") != NULL);
    ASSERT_EQ(0, h2_host(&g)->connects);
    ASSERT_EQ(0, end(&g));
    PASS();
}

static const plb_io *plain_io;
static const char *alpn_agreed;

static plb_status connect_without_tls(void *self, const plb_peer *peer, plb_handler handler, plb_stream **out)
{
    plb_peer plain = *peer;
    if (peer->tls == NULL || peer->tls->alpn == NULL || strcmp(peer->tls->alpn[0], "h2") != 0 ||
        peer->tls->alpn[1] != NULL)
        return PLB_ERR_ARGUMENT;
    plain.tls = NULL;
    return plain_io->connect(self, &plain, handler, out);
}

static plb_status info_with_alpn(void *self, plb_stream *stream, plb_stream_info *out)
{
    plb_status status = plain_io->info(self, stream, out);
    out->alpn = alpn_agreed;
    return status;
}

TEST over_tls_the_server_must_agree_to_http2(const char *agreed, plb_status status)
{
    plb_tls tls;
    plb_io io;
    h2_server g;
    begin(&g);
    memset(&tls, 0, sizeof tls);
    plain_io = g.r.desc.port.io;
    io = *plain_io;
    io.connect = connect_without_tls;
    io.info = info_with_alpn;
    g.r.desc.port.io = &io;
    alpn_agreed = agreed;
    grpc.connect.tls = &tls;
    ASSERT_EQ(status, probe(&g, SERVING));
    if (status == PLB_OK)
        ASSERT(strstr(g.request, ":scheme: https\n") != NULL);
    else
        ASSERT_STR_EQ("The server does not agree to HTTP/2 (ALPN h2).", g.text);
    ASSERT_EQ(0, end(&g));
    PASS();
}

/* ---- what the answers mean ---- */

typedef struct example {
    const char *answer;
    plb_status status;
    uint32_t code;
    const char *words; /* of the report; NULL: those of the status */
} example;

#define NO_MESSAGE "The answer has no message."
#define NO_STATUS  "The answer has no grpc-status."
#define BAD_STATUS "The answer's grpc-status is no number."
#define BAD_DATA   "The answer's message is malformed, compressed or too long."

static const example examples[] = {
    {SERVING, PLB_OK, 0, NULL},
    {SERVING "END", PLB_OK, 0, NULL},
    {HEAD MESSAGE("01") "HEADERS+ grpc-message=fine;grpc-status=0;x=y\n", PLB_OK, 0, NULL},
    {"HEADERS :status=103\n" SERVING, PLB_OK, 0, NULL},
    {HEAD "DATA #00\nDATA #00 00\nDATA\nDATA #00 02 08\nPING\nDATA #01\n" OK_TRAILER, PLB_OK, 0, NULL},
    {HEAD "DATA #00 00000007 1201 61 0802 0801\n" OK_TRAILER, PLB_OK, 0, NULL}, /* the last value counts */
    {HEAD MESSAGE("00") OK_TRAILER, PLB_ERR_ANSWER, 0, "UNKNOWN"},
    {HEAD "DATA #00 00000000\n" OK_TRAILER, PLB_ERR_ANSWER, 0, "UNKNOWN"},
    {HEAD MESSAGE("02") OK_TRAILER, PLB_ERR_ANSWER, 2, "NOT_SERVING"},
    {HEAD MESSAGE("03") OK_TRAILER, PLB_ERR_ANSWER, 3, "SERVICE_UNKNOWN"},
    {HEAD MESSAGE("04") OK_TRAILER, PLB_ERR_ANSWER, 4, "UNKNOWN"},
    {HEAD "DATA #00 00000006 08 ffffffff0f\n" OK_TRAILER, PLB_ERR_ANSWER, 65535, "UNKNOWN"},
    {HEAD MESSAGE("01") "HEADERS+ grpc-status=14\n", PLB_ERR_ANSWER, 14, "gRPC status UNAVAILABLE"},
    {"HEADERS+ :status=200;content-type=application/grpc;grpc-status=12\n", PLB_ERR_ANSWER, 12,
     "gRPC status UNIMPLEMENTED"},
    {"HEADERS+ :status=200;grpc-status=5;grpc-message=unknown service\n", PLB_ERR_ANSWER, 5, "gRPC status NOT_FOUND"},
    {"HEADERS+ :status=200;grpc-status=16\n", PLB_ERR_ANSWER, 16, "gRPC status UNAUTHENTICATED"},
    {"HEADERS+ :status=200;grpc-status=17\n", PLB_ERR_ANSWER, 17, "gRPC status UNKNOWN"},
    {"HEADERS+ :status=200;grpc-status=4294967295\n", PLB_ERR_ANSWER, 65535, "gRPC status UNKNOWN"},
    {HEAD "HEADERS+ grpc-status=13\n", PLB_ERR_ANSWER, 13, "gRPC status INTERNAL"},
    {HEAD "DATA #00 0000\nHEADERS+ grpc-status=14\n", PLB_ERR_ANSWER, 14, "gRPC status UNAVAILABLE"},
    {"HEADERS+ :status=200;grpc-status=0\n", PLB_ERR_PROTOCOL, 200, NO_MESSAGE},
    {HEAD OK_TRAILER, PLB_ERR_PROTOCOL, 200, NO_MESSAGE},
    {HEAD "DATA #00 00000002 08\n" OK_TRAILER, PLB_ERR_PROTOCOL, 200, NO_MESSAGE},
    {HEAD "DATA #00 00000002 08\nDATA+ #01\n", PLB_ERR_PROTOCOL, 200, NO_STATUS},
    {HEAD MESSAGE("01") "HEADERS+ grpc-message=hm\n", PLB_ERR_PROTOCOL, 200, NO_STATUS},
    {"HEADERS+ :status=200;content-type=text/html\n", PLB_ERR_PROTOCOL, 200, NO_STATUS},
    {"HEADERS :status=103;grpc-status=0\n" HEAD MESSAGE("01") "HEADERS+ a=b\n", PLB_ERR_PROTOCOL, 200, NO_STATUS},
    {"HEADERS+ :status=200;grpc-status=ok\n", PLB_ERR_PROTOCOL, 0, BAD_STATUS},
    {"HEADERS+ :status=200;grpc-status=-1\n", PLB_ERR_PROTOCOL, 0, BAD_STATUS},
    {"HEADERS+ :status=200;grpc-status=\n", PLB_ERR_PROTOCOL, 0, BAD_STATUS},
    {HEAD MESSAGE("01") "HEADERS+ grpc-status=4294967296\n", PLB_ERR_PROTOCOL, 200, BAD_STATUS},
    {HEAD MESSAGE("01") MESSAGE("01") OK_TRAILER, PLB_ERR_PROTOCOL, 200, BAD_DATA},
    {HEAD "DATA #01 00000002 0801\n" OK_TRAILER, PLB_ERR_PROTOCOL, 200, BAD_DATA},
    {HEAD "DATA #00 00001001\n" OK_TRAILER, PLB_ERR_PROTOCOL, 200, BAD_DATA},
    {HEAD "DATA #00 00000002 0880\n" OK_TRAILER, PLB_ERR_PROTOCOL, 200, BAD_DATA},
    {HEAD "DATA #00 00000002 0f01\n" OK_TRAILER, PLB_ERR_PROTOCOL, 200, BAD_DATA},
    {HEAD "DATA <html>\nDATA+ </html>\n", PLB_ERR_PROTOCOL, 200, BAD_DATA},
    {"HEADERS+ :status=404\n", PLB_ERR_ANSWER, 404, "HTTP status 404"},
    {"HEADERS :status=503;content-length=4\nDATA+ Busy\n", PLB_ERR_ANSWER, 503, "HTTP status 503"},
    {"HEADERS+ :status=204\n", PLB_ERR_ANSWER, 204, "HTTP status 204"},
    {"RST_STREAM 8\n", PLB_ERR_RESET, 0, "The server reset the stream: HTTP/2 error 8"},
    {HEAD MESSAGE("01") "RST_STREAM 2\n", PLB_ERR_RESET, 200, "The server reset the stream: HTTP/2 error 2"},
    {"GOAWAY 0 0\n", PLB_ERR_RESET, 0, "The server goes away: HTTP/2 error 0"},
    {HEAD MESSAGE("01") "END", PLB_ERR_RESET, 200, "The connection ended before the answer was complete."},
    {"RAW HTTP/1.1 400 Bad Request", PLB_ERR_PROTOCOL, 0, "The server breaks HTTP/2's rules: error 6"},
    {HEAD MESSAGE("01"), PLB_ERR_TIMEOUT, 0, NULL},
    {HEAD, PLB_ERR_TIMEOUT, 0, NULL},
    {"", PLB_ERR_TIMEOUT, 0, NULL},
};

#define EXAMPLES (sizeof examples / sizeof *examples)

TEST each_answer_means_the_same_however_it_comes(size_t n, uint32_t max_bytes, bool random_sizes)
{
    const example *e = &examples[n];
    h2_server g;
    begin(&g);
    grpc.service = "a.Service";
    g.r.s->max_read = g.r.s->max_write = max_bytes;
    g.r.s->random_sizes = random_sizes;
    ASSERT_EQm(e->answer, e->status, probe(&g, e->answer));
    ASSERT_EQm(e->answer, e->code, g.code);
    ASSERT_STR_EQm(e->answer, e->words != NULL ? e->words : plb_status_text(e->status), g.text);
    ASSERT(body_is(&g,
                   "\0\0\0\0\x0b\x0a\x09"
                   "a.Service",
                   16));
    ASSERT_EQ(0, end(&g));
    PASS();
}

/* An answer may come before the request is whole (RFC 9113 section 8.1). */
TEST an_answer_may_come_before_the_requests_end(const char *answer, plb_status status, const char *words,
                                                const char *sent)
{
    h2_server g;
    begin(&g);
    grpc.reuse_connection = true;
    ASSERT_EQ(PLB_OK, probe(&g, "SETTINGS 4=0\n" SERVING)); /* so that the next one waits */
    g.sent[0] = '\0';
    g.on_head = answer;
    h2_rounds(&g, 1);
    ASSERT_EQ(2, g.heads);
    ASSERT_EQ(1, g.requests);
    ASSERT_EQ(status, g.status);
    ASSERT_STR_EQ(words != NULL ? words : plb_status_text(status), g.text);
    ASSERT_STR_EQ(sent, g.sent);
    g.on_head = NULL;
    g.answer = SERVING;
    ASSERT_EQ(0, end(&g));
    PASS();
}

/* ---- windows for the request's body ---- */

TEST a_body_waits_for_its_window(const char *on_head, uint32_t max_bytes, plb_status status)
{
    h2_server g;
    begin(&g);
    grpc.service = "a.Service";
    grpc.reuse_connection = true;
    g.r.s->max_read = g.r.s->max_write = max_bytes;
    ASSERT_EQ(PLB_OK, probe(&g, "SETTINGS 4=0\n" SERVING));
    g.answer = SERVING;
    g.on_head = on_head;
    h2_rounds(&g, 1);
    rig_run(&g.r, 1000);
    ASSERT_EQ(2, g.probes);
    ASSERT_EQ(status, g.status);
    ASSERT_EQ(2, g.heads);
    ASSERT_EQ(status == PLB_OK ? 2u : 1u, g.requests);
    if (status == PLB_OK)
        ASSERT(body_is(&g,
                       "\0\0\0\0\x0b\x0a\x09"
                       "a.Service",
                       16));
    ASSERT_EQ(status == PLB_OK ? 1u : 0u, g.r.s->streams);
    ASSERT_EQ(1, h2_host(&g)->connects);
    ASSERT_EQ(0, end(&g));
    PASS();
}

/* ---- a connection for several probes ---- */

TEST a_connection_serves_all_probes_where_that_is_wished(bool reuse, uint32_t max_bytes)
{
    static const char *const answers[] = {SERVING, "PING\n" SERVING, HEAD "SETTINGS 4=100\n" MESSAGE("01") OK_TRAILER};
    int i;
    h2_server g;
    begin(&g);
    grpc.reuse_connection = reuse;
    grpc.service = "a.Service";
    g.r.s->max_read = g.r.s->max_write = max_bytes;
    ASSERT_EQ(PLB_OK, create(&g));
    rig_run(&g.r, 20);
    for (i = 0; i < 49; i++) {
        g.answer = answers[i % 3];
        h2_rounds(&g, 1);
    }
    ASSERT_EQ(50, g.successes);
    ASSERT_EQ(50, g.requests);
    ASSERT_EQ(reuse ? 1u : 50u, h2_host(&g)->connects);
    ASSERT_EQ(0, end(&g));
    PASS();
}

/* What was said by one answer is forgotten when the next one comes. */
TEST each_answer_stands_for_itself(void)
{
    h2_server g;
    begin(&g);
    grpc.reuse_connection = true;
    ASSERT_EQ(PLB_OK, probe(&g, SERVING));
    g.answer = "HEADERS+ :status=200;a=b\n";
    h2_rounds(&g, 1);
    ASSERT_STR_EQ(NO_STATUS, g.text);
    g.answer = SERVING;
    h2_rounds(&g, 1);
    g.answer = HEAD OK_TRAILER;
    h2_rounds(&g, 1);
    ASSERT_STR_EQ(NO_MESSAGE, g.text);
    ASSERT_EQ(2, g.r.flips - 1);
    ASSERT_EQ(0, end(&g));
    PASS();
}

TEST a_server_that_goes_away_is_asked_on_a_new_connection(const char *leave, bool idle)
{
    h2_server g;
    begin(&g);
    grpc.reuse_connection = true;
    ASSERT_EQ(PLB_OK, probe(&g, SERVING));
    if (idle)
        h2_say(h2_newest(&g), 1, leave);
    else
        g.later = leave;
    h2_rounds(&g, 3);
    ASSERT_EQ(4, g.successes);
    ASSERT_EQ(4, g.probes);
    ASSERT_EQ(idle ? 2u : 4u, h2_host(&g)->connects);
    ASSERT_STR_EQ(plb_status_text(PLB_OK), g.text); /* nothing is left of what it met with */
    ASSERT_EQ(0, g.code);
    ASSERT_EQ(0, g.r.flips);
    ASSERT_EQ(0, end(&g));
    PASS();
}

/* ---- what else can become of a probe ---- */

TEST a_fault_is_told_as_what_it_is(sim_fault fault, plb_status status)
{
    h2_server g;
    begin(&g);
    h2_host(&g)->fault = fault;
    ASSERT_EQ(status, probe(&g, SERVING));
    ASSERT_EQ(0, g.r.s->streams);
    ASSERT_EQ(0, end(&g));
    PASS();
}

TEST what_never_ends_is_ended(const char *start, const char *again, const char *words)
{
    char script[300];
    h2_server g;
    begin(&g);
    snprintf(script, sizeof script, "%sREPEAT 40000 %s", start, again);
    ASSERT_EQ(PLB_ERR_PROTOCOL, probe(&g, script));
    ASSERT_STR_EQ(words, g.text);
    ASSERT_EQ(0, end(&g));
    PASS();
}

TEST a_probe_may_end_with_the_balancer_at_any_moment(bool reuse)
{
    uint32_t ms, over = 0;
    for (ms = 0; ms < 400 && over < 3; ms++) {
        h2_server g;
        begin(&g);
        grpc.reuse_connection = reuse;
        grpc.service = "a.Service";
        h2_host(&g)->bytes_per_ms = 1;
        ASSERT_EQ(PLB_OK, create(&g));
        rig_run(&g.r, ms);
        over += g.probes;
        ASSERT_EQ(0, rig_end(&g.r));
    }
    ASSERT_GT(ms, 100);
    ASSERT_EQ(3, over);
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
        grpc.reuse_connection = reuse;
        grpc.service = "a.Service";
        g.r.desc.check_every_ms = 300;
        g.r.s->max_read = g.r.s->max_write = 33;
        g.r.memory.fail_at = allocations ? n : 0;
        g.r.s->fail_io_at = allocations ? 0 : n;
        g.r.memory.fail_count = g.r.s->fail_io_count = in_a_row;
        g.r.s->fail_io_status = PLB_ERR_RESET;
        for (tries = 0; g.r.lb == NULL && tries < 10; tries++)
            if (create(&g) == PLB_OK)
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

SUITE(grpc_check)
{
    size_t i;
    RUN_TEST(the_default_asks_for_the_server_as_a_whole);
    RUN_TEST(a_service_has_up_to_256_bytes);
    RUN_TEST(it_goes_where_the_program_says);
    RUN_TESTp(over_tls_the_server_must_agree_to_http2, "h2", PLB_OK);
    RUN_TESTp(over_tls_the_server_must_agree_to_http2, "http/1.1", PLB_ERR_PROTOCOL);
    RUN_TESTp(over_tls_the_server_must_agree_to_http2, NULL, PLB_ERR_PROTOCOL);
    for (i = 0; i < EXAMPLES; i++) {
        RUN_TESTp(each_answer_means_the_same_however_it_comes, i, 0, false);
        RUN_TESTp(each_answer_means_the_same_however_it_comes, i, 1, false);
        RUN_TESTp(each_answer_means_the_same_however_it_comes, i, 0, true);
    }
    RUN_TESTp(an_answer_may_come_before_the_requests_end, SERVING, PLB_OK, NULL, "RST_STREAM=8");
    RUN_TESTp(an_answer_may_come_before_the_requests_end, "HEADERS+ :status=200;grpc-status=12\n", PLB_ERR_ANSWER,
              "gRPC status UNIMPLEMENTED", "RST_STREAM=8 GOAWAY=0");
    RUN_TESTp(an_answer_may_come_before_the_requests_end, SERVING "RST_STREAM 0\n", PLB_OK, NULL,
              "RST_STREAM=8 GOAWAY=0");
    for (i = 0; i < 2; i++) {
        RUN_TESTp(a_body_waits_for_its_window, "WINDOW_UPDATE 16\n", (uint32_t)i, PLB_OK);
        RUN_TESTp(a_body_waits_for_its_window, "WINDOW_UPDATE 1\nWINDOW_UPDATE 1\nWINDOW_UPDATE 100\n", (uint32_t)i,
                  PLB_OK);
        RUN_TESTp(a_body_waits_for_its_window, "SETTINGS 4=16\n", (uint32_t)i, PLB_OK);
        RUN_TESTp(a_body_waits_for_its_window, "WINDOW_UPDATE 15\n", (uint32_t)i, PLB_ERR_TIMEOUT);
        RUN_TESTp(a_body_waits_for_its_window, "WINDOW_UPDATE@0 100\n", (uint32_t)i, PLB_ERR_TIMEOUT);
        RUN_TESTp(a_body_waits_for_its_window, NULL, (uint32_t)i, PLB_ERR_TIMEOUT);
    }
    RUN_TESTp(a_connection_serves_all_probes_where_that_is_wished, false, 0);
    RUN_TESTp(a_connection_serves_all_probes_where_that_is_wished, true, 0);
    RUN_TESTp(a_connection_serves_all_probes_where_that_is_wished, true, 1);
    RUN_TESTp(a_connection_serves_all_probes_where_that_is_wished, true, 13);
    RUN_TEST(each_answer_stands_for_itself);
    for (i = 0; i < 2; i++) {
        RUN_TESTp(a_server_that_goes_away_is_asked_on_a_new_connection, "GOAWAY before 0\n", i == 1);
        RUN_TESTp(a_server_that_goes_away_is_asked_on_a_new_connection, "GOAWAY before 0\nEND", i == 1);
        RUN_TESTp(a_server_that_goes_away_is_asked_on_a_new_connection, "END", i == 1);
        RUN_TESTp(a_server_that_goes_away_is_asked_on_a_new_connection, "RESET", i == 1);
    }
    RUN_TESTp(a_fault_is_told_as_what_it_is, SIM_REFUSE, PLB_ERR_REFUSED);
    RUN_TESTp(a_fault_is_told_as_what_it_is, SIM_UNREACHABLE, PLB_ERR_UNREACHABLE);
    RUN_TESTp(a_fault_is_told_as_what_it_is, SIM_HANG, PLB_ERR_TIMEOUT);
    RUN_TESTp(a_fault_is_told_as_what_it_is, SIM_SILENT, PLB_ERR_TIMEOUT);
    RUN_TESTp(a_fault_is_told_as_what_it_is, SIM_RESET, PLB_ERR_RESET);
    RUN_TESTp(a_fault_is_told_as_what_it_is, SIM_TRUNCATE, PLB_ERR_RESET);
    RUN_TESTp(what_never_ends_is_ended, HEAD "DATA #00 00001000\n", "DATA #1a 02 00 00", BAD_DATA);
    RUN_TESTp(what_never_ends_is_ended, HEAD, "DATA", "The server breaks HTTP/2's rules: error 11");
    RUN_TESTp(what_never_ends_is_ended, "", "PING ack", "The server breaks HTTP/2's rules: error 11");
    RUN_TESTp(a_probe_may_end_with_the_balancer_at_any_moment, false);
    RUN_TESTp(a_probe_may_end_with_the_balancer_at_any_moment, true);
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
    RUN_SUITE(grpc_check);
    GREATEST_MAIN_END();
}
