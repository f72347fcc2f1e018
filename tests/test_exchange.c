/* Probes over streams: a check of the program's own, built on section EXCHANGE. It says "hello", and takes a line that
   says "ok" for a success. */
#include "../pingora_lb.h"
#define SIM_IMPLEMENTATION
#include "sim.h"
#include <greatest.h>
#include "rig.h"

typedef struct greeter {
    plb_connect_desc connect;
    uint32_t answer_ms;
    bool keep, wants_more; /* wants_more: it is never content */
    uint32_t sent, calls;  /* of ops */
    size_t sizes[64];      /* that received was called with */
} greeter;

typedef struct greeter_state {
    plb_exchange_check check;
    greeter *g;
} greeter_state;

typedef struct greeter_probe {
    plb_exchange exchange;
} greeter_probe;

static greeter_state *state_of(plb_exchange *x)
{
    return (greeter_state *)(uintptr_t)(const void *)x->check;
}

static plb_status greeter_connected(plb_exchange *x)
{
    static const plb_chunk chunks[] = {{"he", 2, PLB_CHUNK_CONSTANT},
                                       {"", 0, 0}, /* none at all */
                                       {"ll", 2, 0},
                                       {"o\n", 2, PLB_CHUNK_CONSTANT}};
    plb_exchange_send(x, chunks, 4);
    return PLB_AGAIN;
}

static plb_status greeter_received(plb_exchange *x, const char *bytes, size_t size, size_t *used)
{
    greeter *g = state_of(x)->g;
    const char *end = size > 0 ? (const char *)memchr(bytes, '\n', size) : NULL;
    plb_report said;
    g->sizes[g->calls++ % 64] = size;
    if (g->wants_more && size > 0)
        *used = size;
    if (size == 0)
        return g->wants_more ? PLB_AGAIN : PLB_ERR_TRUNCATED;
    if (g->wants_more || end == NULL)
        return PLB_AGAIN;
    *used = (size_t)(end - bytes) + 1;
    x->keep = g->keep;
    memset(&said, 0, sizeof said);
    said.text = "it is in a bad mood";
    said.code = 42;
    if (end - bytes == 2 && memcmp(bytes, "ok", 2) == 0)
        return PLB_OK;
    plb_exchange_say(x, &said);
    return PLB_ERR_ANSWER;
}

static void greeter_sent(plb_exchange *x)
{
    state_of(x)->g->sent++;
}

static plb_status greeter_open(void *state, const void *desc, const plb_env *env)
{
    greeter_state *self = (greeter_state *)state;
    memcpy(&self->g, desc, sizeof self->g);
    return plb_exchange_open(&self->check, &self->g->connect, self->g->answer_ms, env);
}

static void greeter_close(void *state)
{
    plb_exchange_close(&((greeter_state *)state)->check);
}

static plb_status greeter_start(void *state, void *probe, const plb_backend *target, plb_token token)
{
    static const plb_exchange_ops ops = {greeter_connected, greeter_received, greeter_sent};
    return plb_exchange_start(&((greeter_probe *)probe)->exchange, &ops, &((greeter_state *)state)->check, target, NULL,
                              token);
}

/* ---- the stage: one backend, a host that plays its part, a port that remembers where it was to connect to ---- */

typedef struct stage {
    rig r;
    feed f;
    greeter g;
    greeter *desc;
    plb_backend backend;
    const char *answer;
    uint32_t close_after; /* hellos that the host answers on one connection; it closes at the next one; 0: no end */
    char heard[256];
    plb_io io;
    const plb_io *sims;
    plb_peer peer; /* of the last connect */
    char names[4][32];
    plb_probe_info probe;
    char text[2 * PLB_REPORT_TEXT];
    uint32_t probes;
} stage;

static stage *the_stage;

static plb_status stage_connect(void *self, const plb_peer *peer, plb_handler handler, plb_stream **out)
{
    plb_peer plain = *peer;
    the_stage->peer = *peer;
    memset(the_stage->names, 0, sizeof the_stage->names);
    if (peer->tls != NULL) {
        const char *words[4] = {peer->tls->name, peer->tls->alternative_name,
                                peer->tls->alpn != NULL ? peer->tls->alpn[0] : NULL,
                                peer->tls->alpn != NULL ? peer->tls->alpn[1] : NULL};
        size_t i;
        for (i = 0; i < 4; i++)
            snprintf(the_stage->names[i], sizeof the_stage->names[i], "%s", words[i] != NULL ? words[i] : "(none)");
    }
    plain.tls = NULL;
    return the_stage->sims->connect(self, &plain, handler, out);
}

static size_t host(void *user, sim_conn *conn, const char *bytes, size_t count)
{
    stage *s = (stage *)user;
    const char *end = count > 0 ? (const char *)memchr(bytes, '\n', count) : NULL;
    uintptr_t hellos = (uintptr_t)conn->user;
    if (end == NULL)
        return 0;
    snprintf(s->heard, sizeof s->heard, "%.*s", (int)count, bytes);
    conn->user = (void *)(hellos + 1);
    if (s->close_after > 0 && hellos >= s->close_after)
        sim_close(conn);
    else if (s->answer != NULL)
        sim_send_text(conn, s->answer);
    return count;
}

static void on_probe(void *user, const plb_backend_info *info, uint32_t check, const plb_probe_info *probe)
{
    stage *s = (stage *)user;
    (void)info, (void)check;
    s->probes++;
    s->probe = *probe;
    snprintf(s->text, sizeof s->text, "%s", probe->text);
}

static void begin(stage *s)
{
    static const plb_check_ops ops = {"greeter",     sizeof(greeter_state), sizeof(greeter_probe), greeter_open,
                                      greeter_close, greeter_start,         plb_exchange_cancel};
    memset(s, 0, sizeof *s);
    the_stage = s;
    rig_begin(&s->r);
    s->sims = s->r.desc.port.io;
    s->io = *s->sims;
    s->io.connect = stage_connect;
    s->r.desc.port.io = &s->io;
    s->desc = &s->g;
    s->r.desc.check.ops = &ops;
    s->r.desc.check.desc = &s->desc;
    s->r.desc.check.every_ms = 1000;
    s->r.desc.check.timeout_ms = 500;
    s->r.desc.on_probe = on_probe;
    s->backend = rig_backend("10.0.0.1:80", 1);
    s->r.desc.discovery = feed_discovery(&s->f, false);
    feed_set(&s->f, &s->backend, 1);
    s->answer = "ok\n";
    sim_serve(s->r.s, &s->backend.addr, host, s);
}

static sim_host_t *the_host(stage *s)
{
    return sim_host(s->r.s, &s->backend.addr);
}

/* ---- sending and receiving ---- */

TEST a_probe_says_its_words_and_hears_the_answer(uint32_t at_a_time)
{
    static stage s;
    uint32_t i;
    begin(&s);
    s.r.s->max_write = s.r.s->max_read = at_a_time;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    rig_run(&s.r, 100);
    ASSERT_EQ(PLB_OK, s.probe.status);
    ASSERT_STR_EQ("hello\n", s.heard);
    ASSERT_EQ(1u, s.g.sent);
    ASSERT_EQ(0u, s.r.s->streams);
    ASSERT_EQ(at_a_time == 1 ? 3u : 1u, s.g.calls);
    for (i = 0; i < s.g.calls; i++) /* what was not used came again, together with more */
        ASSERT_EQ(at_a_time == 1 ? i + 1 : 3, s.g.sizes[i]);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST a_probe_waits_while_there_is_no_room(void)
{
    static stage s;
    begin(&s);
    the_host(&s)->buffer_bytes = 1;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    rig_run(&s.r, 200);
    ASSERT_EQ(PLB_OK, s.probe.status);
    ASSERT_EQ(1u, s.g.sent);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST a_probe_may_say_why_it_failed(void)
{
    static stage s;
    begin(&s);
    s.answer = "no\n";
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    rig_run(&s.r, 100);
    ASSERT_EQ(PLB_ERR_ANSWER, s.probe.status);
    ASSERT_EQ(42u, s.probe.code);
    ASSERT_STR_EQ("it is in a bad mood", s.text);
    ASSERT_EQ(0u, s.r.s->streams);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST an_answer_beyond_the_room_for_it_fails(void)
{
    static char words[PLB_EXCHANGE_SIZE + 2];
    static stage s;
    begin(&s);
    memset(words, 'x', sizeof words - 1);
    s.answer = words;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    rig_run(&s.r, 300);
    ASSERT_EQ(PLB_ERR_PROTOCOL, s.probe.status);
    ASSERT(strstr(s.text, "PLB_EXCHANGE_SIZE") != NULL);
    ASSERT_EQ(0, rig_end(&s.r));
    begin(&s);
    words[PLB_EXCHANGE_SIZE - 1] = '\n'; /* but one that just fits is read */
    words[PLB_EXCHANGE_SIZE] = '\0';
    s.answer = words;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    rig_run(&s.r, 300);
    ASSERT_EQ(PLB_ERR_ANSWER, s.probe.status);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST the_end_of_the_stream_is_told(bool wants_more)
{
    static stage s;
    begin(&s);
    s.answer = "o";
    the_host(&s)->fault = SIM_TRUNCATE;
    the_host(&s)->fault_bytes = 1;
    s.g.wants_more = wants_more;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    rig_run(&s.r, 100);
    ASSERT_EQ(wants_more ? PLB_ERR_RESET : PLB_ERR_TRUNCATED, s.probe.status); /* more than there will ever be */
    ASSERT_EQ(0u, s.r.s->streams);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST a_peer_that_never_stops_holds_up_nobody(void)
{
    static char words[PLB_EXCHANGE_SIZE * 8 + 1];
    static stage s;
    begin(&s);
    memset(words, 'x', sizeof words - 1);
    s.answer = words;
    s.g.wants_more = true;
    s.r.s->max_read = 1;
    s.r.desc.check.timeout_ms = 50;
    s.g.answer_ms = 200;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    rig_run(&s.r, 900);
    ASSERT_EQ(1u, s.probes);
    ASSERT(s.probe.status != PLB_OK);
    ASSERT_EQ(0u, s.r.s->streams);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST connection_and_answer_have_time_limits_of_their_own(void)
{
    static stage s;
    begin(&s);
    s.answer = NULL;
    s.r.desc.check.timeout_ms = 100;
    s.g.answer_ms = 300;
    the_host(&s)->latency_ms = 20;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    rig_run(&s.r, 310);
    ASSERT_EQ(0u, s.probes);
    rig_run(&s.r, 60);
    ASSERT_EQ(PLB_ERR_TIMEOUT, s.probe.status);
    the_host(&s)->fault = SIM_HANG;
    rig_run(&s.r, 720);
    ASSERT_EQ(1u, s.probes);
    rig_run(&s.r, 30);
    ASSERT_EQ(2u, s.probes);
    ASSERT_EQ(PLB_ERR_TIMEOUT, s.probe.status);
    ASSERT_EQ(0u, s.r.s->streams);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* ---- kept connections ---- */

TEST a_kept_connection_is_used_again(uint32_t at_a_time)
{
    static stage s;
    begin(&s);
    s.g.keep = true;
    s.r.s->max_read = at_a_time;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    rig_run(&s.r, 3500);
    ASSERT_EQ(4u, s.probes);
    ASSERT_EQ(PLB_OK, s.probe.status);
    ASSERT_EQ(1u, the_host(&s)->connects);
    ASSERT_EQ(1u, s.r.s->streams);
    s.g.keep = false;
    rig_run(&s.r, 2000);
    ASSERT_EQ(2u, the_host(&s)->connects);
    ASSERT_EQ(0u, s.r.s->streams);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST a_connection_with_bytes_that_nobody_asked_for_is_not_kept(void)
{
    static stage s;
    begin(&s);
    s.g.keep = true;
    s.answer = "ok\nno\n";
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    rig_run(&s.r, 500);
    ASSERT_EQ(PLB_OK, s.probe.status);
    ASSERT_EQ(0u, s.r.s->streams);
    rig_run(&s.r, 1000);
    ASSERT_EQ(PLB_OK, s.probe.status);
    ASSERT_EQ(2u, the_host(&s)->connects);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST a_connection_that_goes_while_idle_is_replaced(bool reset)
{
    static stage s;
    begin(&s);
    s.g.keep = true;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    rig_run(&s.r, 500);
    ASSERT_EQ(1u, s.r.s->streams);
    if (reset)
        sim_reset(sim_newest(s.r.s, &s.backend.addr));
    else
        sim_close(sim_newest(s.r.s, &s.backend.addr));
    rig_run(&s.r, 100);
    ASSERT_EQ(0u, s.r.s->streams); /* at once, not at the next probe */
    rig_run(&s.r, 900);
    ASSERT_EQ(2u, s.probes);
    ASSERT_EQ(PLB_OK, s.probe.status);
    ASSERT_EQ(0u, s.r.flips);
    ASSERT_EQ(2u, the_host(&s)->connects);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST a_connection_that_goes_when_it_is_used_again_is_renewed_once(void)
{
    static stage s;
    begin(&s);
    s.g.keep = true;
    s.close_after = 1;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    rig_run(&s.r, 1500);
    ASSERT_EQ(2u, s.probes);
    ASSERT_EQ(PLB_OK, s.probe.status);
    ASSERT_EQ(2u, the_host(&s)->connects);
    ASSERT_EQ(0u, s.r.flips);
    the_host(&s)->fault = SIM_RESET; /* on the new one as well: that is the backend's failure */
    rig_run(&s.r, 1000);
    ASSERT_EQ(3u, s.probes);
    ASSERT_EQ(PLB_ERR_RESET, s.probe.status);
    ASSERT_EQ(3u, the_host(&s)->connects);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* ---- where to, and how ---- */

TEST what_tls_needs_is_copied(void)
{
    char name[] = "one.example", other[] = "two.example", h2[] = "h2", http[] = "http/1.1";
    const char *alpn[] = {h2, http, NULL};
    plb_tls tls;
    static stage s;
    begin(&s);
    memset(&tls, 0, sizeof tls);
    tls.name = name;
    tls.alternative_name = other;
    tls.alpn = alpn;
    tls.any_chain = true;
    s.g.connect.tls = &tls;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    memset(name, 'x', sizeof name - 1);
    memset(other, 'x', sizeof other - 1);
    memset(h2, 'x', 2);
    memset(http, 'x', 8);
    memset(alpn, 0, sizeof alpn);
    memset(&tls, 0, sizeof tls);
    rig_run(&s.r, 10);
    ASSERT(s.peer.tls != NULL);
    ASSERT_STR_EQ("one.example", s.names[0]);
    ASSERT_STR_EQ("two.example", s.names[1]);
    ASSERT_STR_EQ("h2", s.names[2]);
    ASSERT_STR_EQ("http/1.1", s.names[3]);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST without_a_name_the_backends_is_asked_for(void)
{
    plb_tls tls;
    static stage s;
    begin(&s);
    memset(&tls, 0, sizeof tls);
    s.g.connect.tls = &tls;
    s.backend.name = "db.example";
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    rig_run(&s.r, 10);
    ASSERT_STR_EQ("db.example", s.names[0]);
    ASSERT_STR_EQ("(none)", s.names[2]);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST port_and_source_are_as_the_check_says(void)
{
    plb_addr asked = sim_addr("10.0.0.1:81");
    static stage s;
    begin(&s);
    s.g.connect.port = 81;
    s.g.connect.source = sim_addr("10.0.0.9:0");
    sim_serve(s.r.s, &asked, host, &s);
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    rig_run(&s.r, 10);
    ASSERT_EQ(0, plb_addr_compare(&asked, &s.peer.addr));
    ASSERT_EQ(0, plb_addr_compare(&s.g.connect.source, &s.peer.source));
    ASSERT_EQ(PLB_OK, s.probe.status);
    ASSERT_EQ(NULL, s.peer.tls);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* ---- failures of this side ---- */

/* Three rounds on a connection that is kept, closed at the second round; the n-th call fails. */
TEST any_call_and_any_allocation_may_fail(bool memory, uint32_t at_a_time)
{
    uint64_t n;
    bool reached = true;
    for (n = 1; reached && n < 500; n++) {
        plb_tls tls;
        static stage s;
        begin(&s);
        memset(&tls, 0, sizeof tls);
        tls.name = "one.example";
        s.g.connect.tls = &tls;
        s.g.keep = true;
        s.close_after = 1;
        s.r.s->max_read = s.r.s->max_write = at_a_time;
        s.r.memory.fail_at = memory ? n : 0;
        s.r.s->fail_io_at = memory ? 0 : n;
        if (rig_create(&s.r) == PLB_OK) {
            rig_run(&s.r, 4500);
            reached = (memory ? s.r.memory.calls : s.r.s->io_calls) >= n;
            s.r.memory.fail_at = s.r.s->fail_io_at = 0;
            rig_run(&s.r, 2500);
            ASSERT_EQ(PLB_OK, s.probe.status);
            ASSERT(plb_ready(s.r.lb, &s.backend.addr, 0));
            ASSERT(s.r.s->streams <= 1);
        }
        ASSERT_EQ(0, rig_end(&s.r));
    }
    ASSERT_FALSE(reached);
    PASS();
}

SUITE(exchange)
{
    RUN_TESTp(a_probe_says_its_words_and_hears_the_answer, 0);
    RUN_TESTp(a_probe_says_its_words_and_hears_the_answer, 1);
    RUN_TEST(a_probe_waits_while_there_is_no_room);
    RUN_TEST(a_probe_may_say_why_it_failed);
    RUN_TEST(an_answer_beyond_the_room_for_it_fails);
    RUN_TESTp(the_end_of_the_stream_is_told, false);
    RUN_TESTp(the_end_of_the_stream_is_told, true);
    RUN_TEST(a_peer_that_never_stops_holds_up_nobody);
    RUN_TEST(connection_and_answer_have_time_limits_of_their_own);
    RUN_TESTp(a_kept_connection_is_used_again, 0);
    RUN_TESTp(a_kept_connection_is_used_again, 1);
    RUN_TEST(a_connection_with_bytes_that_nobody_asked_for_is_not_kept);
    RUN_TESTp(a_connection_that_goes_while_idle_is_replaced, false);
    RUN_TESTp(a_connection_that_goes_while_idle_is_replaced, true);
    RUN_TEST(a_connection_that_goes_when_it_is_used_again_is_renewed_once);
    RUN_TEST(what_tls_needs_is_copied);
    RUN_TEST(without_a_name_the_backends_is_asked_for);
    RUN_TEST(port_and_source_are_as_the_check_says);
    RUN_TESTp(any_call_and_any_allocation_may_fail, false, 0);
    RUN_TESTp(any_call_and_any_allocation_may_fail, true, 0);
    RUN_TESTp(any_call_and_any_allocation_may_fail, true, 1);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(exchange);
    GREATEST_MAIN_END();
}
