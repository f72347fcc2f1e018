/* The agent check: what a line means, what comes of it for picks, and what an agent that is not there does not do. */
#include "../pingora_lb.h"
#define SIM_IMPLEMENTATION
#include "sim.h"
#include <greatest.h>
#include "rig.h"

/* ---- the line ---- */

typedef struct line_case {
    const char *line;
    plb_status status;
    plb_agent_verdict verdict;
    plb_enablement enablement;
    int share; /* -1: none */
} line_case;

#define KEEP PLB_ENABLEMENT_KEEP
#define ON   PLB_ENABLEMENT_ON
#define OFF  PLB_ENABLEMENT_OFF

static const line_case line_cases[] = {{"up", PLB_OK, PLB_AGENT_UP, KEEP, -1},
                                       {"down", PLB_OK, PLB_AGENT_DOWN, KEEP, -1},
                                       {"fail", PLB_OK, PLB_AGENT_DOWN, KEEP, -1},
                                       {"failed", PLB_OK, PLB_AGENT_DOWN, KEEP, -1},
                                       {"stopped", PLB_OK, PLB_AGENT_DOWN, KEEP, -1},
                                       {"ready", PLB_OK, PLB_AGENT_SILENT, ON, -1},
                                       {"drain", PLB_OK, PLB_AGENT_SILENT, OFF, -1},
                                       {"maint", PLB_OK, PLB_AGENT_SILENT, OFF, -1},
                                       {"0%", PLB_OK, PLB_AGENT_SILENT, KEEP, 0},
                                       {"1%", PLB_OK, PLB_AGENT_SILENT, KEEP, 3},
                                       {"50%", PLB_OK, PLB_AGENT_SILENT, KEEP, 128},
                                       {"99%", PLB_OK, PLB_AGENT_SILENT, KEEP, 252},
                                       {"100%", PLB_OK, PLB_AGENT_SILENT, KEEP, 255},
                                       {"101%", PLB_OK, PLB_AGENT_SILENT, KEEP, 255},
                                       {"99999999999999999999%", PLB_OK, PLB_AGENT_SILENT, KEEP, 255},
                                       {"maxconn:30", PLB_OK, PLB_AGENT_SILENT, KEEP, -1},
                                       {"up ready 75%", PLB_OK, PLB_AGENT_UP, ON, 191},
                                       {"75%,Up\tREADY", PLB_OK, PLB_AGENT_UP, ON, 191},
                                       {", \t up ,,", PLB_OK, PLB_AGENT_UP, KEEP, -1},
                                       {"up down", PLB_OK, PLB_AGENT_DOWN, KEEP, -1},
                                       {"10% 20% drain ready", PLB_OK, PLB_AGENT_SILENT, ON, 51},
                                       {"down # up and 50% ready", PLB_OK, PLB_AGENT_DOWN, KEEP, -1},
                                       {"down#up", PLB_OK, PLB_AGENT_DOWN, KEEP, -1},
                                       {"up\rdown", PLB_OK, PLB_AGENT_UP, KEEP, -1},
                                       {"up\ndown", PLB_OK, PLB_AGENT_UP, KEEP, -1},
                                       {"fine, up", PLB_OK, PLB_AGENT_UP, KEEP, -1},
                                       {"", PLB_ERR_ANSWER, PLB_AGENT_SILENT, KEEP, -1},
                                       {"#up", PLB_ERR_ANSWER, PLB_AGENT_SILENT, KEEP, -1},
                                       {"upp", PLB_ERR_ANSWER, PLB_AGENT_SILENT, KEEP, -1},
                                       {"u p", PLB_ERR_ANSWER, PLB_AGENT_SILENT, KEEP, -1},
                                       {"%", PLB_ERR_ANSWER, PLB_AGENT_SILENT, KEEP, -1},
                                       {"75", PLB_ERR_ANSWER, PLB_AGENT_SILENT, KEEP, -1},
                                       {"-5%", PLB_ERR_ANSWER, PLB_AGENT_SILENT, KEEP, -1},
                                       {"7.5%", PLB_ERR_ANSWER, PLB_AGENT_SILENT, KEEP, -1},
                                       {"75%%", PLB_ERR_ANSWER, PLB_AGENT_SILENT, KEEP, -1},
                                       {"maxconn", PLB_ERR_ANSWER, PLB_AGENT_SILENT, KEEP, -1},
                                       {"maxconn:", PLB_ERR_ANSWER, PLB_AGENT_SILENT, KEEP, -1},
                                       {"HTTP/1.1 200 OK", PLB_ERR_ANSWER, PLB_AGENT_SILENT, KEEP, -1}};

TEST a_line_means_what_its_words_mean(const line_case *c)
{
    plb_agent_answer answer;
    size_t size = strlen(c->line);
    char *line = (char *)malloc(size > 0 ? size : 1); /* no longer, so that a read past the end is seen */
    memcpy(line, c->line, size);
    memset(&answer, 0xee, sizeof answer);
    ASSERT_EQ(c->status, plb_agent_parse(&answer, line, size));
    free(line);
    ASSERT_EQ(c->verdict, answer.verdict);
    ASSERT_EQ(c->enablement, answer.enablement);
    ASSERT_EQ(c->share >= 0, answer.has_share);
    ASSERT_EQ(c->share >= 0 ? c->share : 0, answer.share);
    PASS();
}

/* ---- agents that are played ---- */

typedef struct agent {
    const char *says; /* NULL: nothing */
    bool ends;        /* ends its side behind it */
    const char *waits_for;
    uint32_t asked;
    char heard[64];
} agent;

static size_t play(void *user, sim_conn *conn, const char *bytes, size_t count)
{
    agent *a = (agent *)user;
    if (conn->user != NULL || conn->status != PLB_OK)
        return count;
    if (a->waits_for != NULL && (count < strlen(a->waits_for) || memcmp(bytes, a->waits_for, count) != 0))
        return 0;
    snprintf(a->heard, sizeof a->heard, "%.*s", (int)count, bytes);
    conn->user = a;
    a->asked++;
    if (a->says != NULL)
        sim_send_text(conn, a->says);
    if (a->ends)
        sim_end(conn);
    return count;
}

typedef struct bench {
    rig r;
    agent agents[2];
    plb_agent_check_desc desc;
    uint32_t probes;
    plb_probe_info last; /* before what comes of it */
    char text[PLB_REPORT_TEXT + 64];
} bench;

static void note_probe(void *user, const plb_backend_info *info, uint32_t check, const plb_probe_info *probe)
{
    bench *b = (bench *)((char *)user - offsetof(bench, r));
    (void)info;
    (void)check;
    b->probes++;
    b->last = *probe;
    snprintf(b->text, sizeof b->text, "%s", probe->text);
    b->last.text = b->text;
}

static plb_addr backend_addr(void)
{
    return sim_addr("10.0.0.1:80");
}

/* A backend whose agent is at port 9000, asked once a second; beside it one without an agent. */
static void begin(bench *b)
{
    plb_addr at = sim_addr("10.0.0.1:9000");
    memset(b, 0, sizeof *b);
    rig_begin(&b->r);
    b->r.desc.on_probe = note_probe;
    b->r.desc.check_every_ms = 1000;
    b->desc.connect.port = 9000;
    sim_serve(b->r.s, &at, play, &b->agents[0]);
}

static plb_status create_with(bench *b, plb_check check)
{
    plb_backend backends[2];
    plb_static_desc list;
    memset(&list, 0, sizeof list);
    backends[0] = rig_backend("10.0.0.1:80", 1);
    backends[1] = rig_backend("10.0.0.2:80", 1);
    backends[0].checks = 3;
    backends[1].checks = 128; /* none that there is */
    list.backends = backends;
    list.backend_count = 2;
    b->r.desc.discovery = plb_static(&list);
    b->r.desc.check = check;
    return rig_create(&b->r);
}

static plb_status create(bench *b)
{
    return create_with(b, plb_agent_check(&b->desc));
}

/* The next probe finds the agent saying this. */
static void say(bench *b, const char *line)
{
    b->agents[0].says = line;
    plb_check_now(b->r.lb);
    rig_run(&b->r, 20);
}

static plb_backend_info info(bench *b)
{
    plb_backend_info out;
    plb_addr at = backend_addr();
    memset(&out, 0, sizeof out);
    plb_find(b->r.lb, &at, 0, &out);
    return out;
}

static plb_probe_info last_probe(bench *b)
{
    plb_probe_info out;
    plb_addr at = backend_addr();
    memset(&out, 0, sizeof out);
    plb_find_probe(b->r.lb, &at, 0, 0, &out);
    return out;
}

/* Of 1000 picks, how many the backend with the agent gets. */
static uint32_t picked(bench *b)
{
    plb_addr at = backend_addr(), out;
    uint32_t i, n = 0;
    for (i = 0; i < 1000; i++)
        n += plb_select(b->r.lb, NULL, 0, 0, &out) == PLB_OK && plb_addr_compare(&at, &out) == 0;
    return n;
}

TEST the_share_is_what_picks_give(void)
{
    uint32_t changes, n;
    bench b;
    begin(&b);
    ASSERT_EQ(PLB_OK, create(&b));
    changes = b.r.changes;
    say(&b, "up 100%\n");
    ASSERT_EQ(255, info(&b).share);
    ASSERT_EQ(500, picked(&b));
    say(&b, "up 50%\n");
    ASSERT_EQ(128, info(&b).share);
    n = picked(&b);
    ASSERT(n > 200 && n < 300);
    say(&b, "10%\n");
    n = picked(&b);
    ASSERT(n > 20 && n < 80);
    say(&b, "0%\n");
    ASSERT(info(&b).advised_off);
    ASSERT_EQ(0, info(&b).share);
    ASSERT_EQ(0, picked(&b));
    say(&b, "300%\n");
    ASSERT_FALSE(info(&b).advised_off);
    ASSERT_EQ(255, info(&b).share);
    ASSERT_EQ(500, picked(&b));
    ASSERT_EQ(changes, b.r.changes); /* none of it made another set */
    ASSERT_EQ(0, b.r.flips);
    ASSERT_EQ(0, rig_end(&b.r));
    PASS();
}

TEST a_backend_that_drains_is_healthy_and_never_picked(const char *line)
{
    uint32_t changes;
    bench b;
    begin(&b);
    b.r.desc.panic_percent = 100;
    ASSERT_EQ(PLB_OK, create(&b));
    changes = b.r.changes;
    say(&b, line);
    ASSERT(info(&b).advised_off);
    ASSERT(info(&b).healthy);
    ASSERT_FALSE(info(&b).ready);
    ASSERT_EQ(0, picked(&b));
    say(&b, "up 100%\n"); /* speaks of other things */
    ASSERT(info(&b).advised_off);
    ASSERT_EQ(0, picked(&b));
    say(&b, "ready\n");
    ASSERT_FALSE(info(&b).advised_off);
    ASSERT_EQ(500, picked(&b));
    ASSERT_EQ(changes, b.r.changes);
    ASSERT_EQ(0, b.r.flips);
    ASSERT_EQ(0, rig_end(&b.r));
    PASS();
}

TEST what_a_line_does_not_speak_of_stays(void)
{
    bench b;
    begin(&b);
    ASSERT_EQ(PLB_OK, create(&b));
    say(&b, "down 20% drain\n");
    say(&b, "maxconn:5\n");
    ASSERT_FALSE(info(&b).healthy);
    ASSERT(info(&b).advised_off);
    ASSERT_EQ(51, info(&b).share);
    say(&b, "up\n");
    ASSERT(info(&b).healthy);
    ASSERT(info(&b).advised_off);
    say(&b, "ready\n");
    ASSERT(info(&b).ready);
    ASSERT_EQ(51, info(&b).share);
    say(&b, "100%\n");
    ASSERT_EQ(255, info(&b).share);
    ASSERT_EQ(0, rig_end(&b.r));
    PASS();
}

TEST no_requests_at_0_percent_and_ready_are_two_things(void)
{
    bench b;
    begin(&b);
    ASSERT_EQ(PLB_OK, create(&b));
    say(&b, "0% maint\n");
    say(&b, "ready\n");
    ASSERT(info(&b).advised_off);
    say(&b, "maint 50%\n");
    ASSERT(info(&b).advised_off);
    say(&b, "ready\n");
    ASSERT_FALSE(info(&b).advised_off);
    ASSERT_EQ(128, info(&b).share);
    ASSERT_EQ(0, rig_end(&b.r));
    PASS();
}

TEST up_and_down_flip_health(void)
{
    bench b;
    begin(&b);
    ASSERT_EQ(PLB_OK, create(&b));
    say(&b, "down # the disk is full\n");
    ASSERT_EQ(1, b.r.flips);
    ASSERT_EQ(PLB_ERR_ANSWER, b.r.flip_status);
    ASSERT(rig_logged(&b.r, "agent: \"down # the disk is full\""));
    ASSERT_EQ(1, last_probe(&b).failed);
    say(&b, "up\n");
    ASSERT_EQ(2, b.r.flips);
    ASSERT_EQ(1, last_probe(&b).passed);
    ASSERT_EQ(0, rig_end(&b.r));
    PASS();
}

TEST a_line_without_a_verdict_does_not_count(void)
{
    plb_check check;
    bench b;
    uint32_t i;
    begin(&b);
    check = plb_agent_check(&b.desc);
    check.consecutive_failure = 3;
    ASSERT_EQ(PLB_OK, create_with(&b, check));
    for (i = 0; i < 2; i++) {
        say(&b, "down\n");
        say(&b, "50%\n"); /* neutral: neither clears the count nor adds to it */
    }
    ASSERT_EQ(0, b.r.flips);
    say(&b, "down\n");
    ASSERT_EQ(1, b.r.flips);
    ASSERT_EQ(0, rig_end(&b.r));
    PASS();
}

/* ---- an agent that is not there ---- */

typedef struct fault_case {
    sim_fault fault;
    const char *says;
    bool ends;
    plb_status status;
} fault_case;

static const fault_case fault_cases[] = {{SIM_REFUSE, NULL, false, PLB_ERR_REFUSED},
                                         {SIM_UNREACHABLE, NULL, false, PLB_ERR_UNREACHABLE},
                                         {SIM_HANG, NULL, false, PLB_ERR_TIMEOUT},
                                         {SIM_SILENT, NULL, false, PLB_ERR_TIMEOUT},
                                         {SIM_RESET, NULL, false, PLB_ERR_RESET},
                                         {SIM_TRUNCATE, NULL, false, PLB_ERR_ANSWER},
                                         {SIM_FINE, "up", false, PLB_ERR_TIMEOUT},
                                         {SIM_FINE, NULL, true, PLB_ERR_ANSWER},
                                         {SIM_FINE, "\n", false, PLB_ERR_ANSWER},
                                         {SIM_FINE, "HTTP/1.1 400 Bad Request\r\n", false, PLB_ERR_ANSWER},
                                         {SIM_FINE, "\x16\x03\x01\xff\xfe\n", false, PLB_ERR_ANSWER}};

TEST an_agent_that_says_nothing_changes_nothing(const fault_case *c, bool was_down)
{
    plb_addr at = sim_addr("10.0.0.1:9000");
    bench b;
    begin(&b);
    ASSERT_EQ(PLB_OK, create(&b));
    say(&b, was_down ? "down 40%\n" : "up 40%\n");
    sim_host(b.r.s, &at)->fault = c->fault;
    b.agents[0].says = c->says;
    b.agents[0].ends = c->ends;
    rig_run(&b.r, 5000);
    ASSERT_EQ(c->status, last_probe(&b).status);
    ASSERT_EQ(1, last_probe(&b).failed + last_probe(&b).passed);
    ASSERT_EQ(!was_down, info(&b).healthy);
    ASSERT_EQ(102, info(&b).share);
    ASSERT_EQ(was_down ? 1 : 0, b.r.flips);
    sim_host(b.r.s, &at)->fault = SIM_FINE;
    b.agents[0].says = "up\n";
    rig_run(&b.r, 5000);
    ASSERT(info(&b).healthy);
    ASSERT_EQ(0, rig_end(&b.r));
    PASS();
}

TEST an_agent_that_must_answer_fails_its_backend(const fault_case *c)
{
    plb_addr at = sim_addr("10.0.0.1:9000");
    bench b;
    begin(&b);
    b.desc.must_answer = true;
    ASSERT_EQ(PLB_OK, create(&b));
    say(&b, "40%\n"); /* an answer, so a success */
    ASSERT_EQ(1, last_probe(&b).passed);
    sim_host(b.r.s, &at)->fault = c->fault;
    b.agents[0].says = c->says;
    b.agents[0].ends = c->ends;
    rig_run(&b.r, 5000);
    ASSERT_EQ(c->status, last_probe(&b).status);
    ASSERT_FALSE(info(&b).healthy);
    ASSERT_EQ(1, b.r.flips);
    sim_host(b.r.s, &at)->fault = SIM_FINE;
    b.agents[0].says = "60%\n";
    rig_run(&b.r, 5000);
    ASSERT(info(&b).healthy);
    ASSERT_EQ(153, info(&b).share);
    ASSERT_EQ(0, rig_end(&b.r));
    PASS();
}

TEST start_unhealthy_waits_for_a_first_result_only(const char *line, bool healthy)
{
    bench b;
    begin(&b);
    b.r.desc.start_unhealthy = true;
    b.agents[0].says = line;
    ASSERT_EQ(PLB_OK, create(&b));
    ASSERT_FALSE(info(&b).healthy);
    rig_run(&b.r, 1500);
    ASSERT_EQ(healthy, info(&b).healthy);
    ASSERT_EQ(1, b.r.first_checks);
    ASSERT_EQ(0, rig_end(&b.r));
    PASS();
}

/* ---- how the line comes ---- */

TEST a_line_ends_with_cr_lf_or_the_stream(const char *line, bool ends, uint32_t max_read)
{
    bench b;
    begin(&b);
    b.r.s->max_read = max_read;
    b.agents[0].says = line;
    b.agents[0].ends = ends;
    ASSERT_EQ(PLB_OK, create(&b));
    rig_run(&b.r, 50);
    ASSERT_EQ(1, b.probes);
    ASSERT_EQ(PLB_OK, b.last.status);
    ASSERT_STR_EQ("agent: \"up 20%\"", b.text);
    ASSERT_EQ(51, info(&b).share);
    ASSERT_EQ(0, b.r.s->streams);
    ASSERT_EQ(0, rig_end(&b.r));
    PASS();
}

static size_t talk_forever(void *user, sim_conn *conn, const char *bytes, size_t count)
{
    static char babble[60000];
    (void)user;
    (void)bytes;
    memset(babble, 'a', sizeof babble);
    if (conn->status == PLB_OK && conn->sent < 10000000)
        sim_send(conn, babble, sizeof babble);
    return count;
}

TEST an_endless_line_ends_the_probe_and_is_no_failure(void)
{
    plb_addr at = sim_addr("10.0.0.1:9000");
    bench b;
    begin(&b);
    sim_serve(b.r.s, &at, talk_forever, NULL);
    ASSERT_EQ(PLB_OK, create(&b));
    rig_run(&b.r, 100);
    ASSERT_EQ(1, b.probes);
    ASSERT_EQ(PLB_ERR_PROTOCOL, b.last.status);
    ASSERT(info(&b).healthy);
    ASSERT_EQ(0, b.r.s->streams);
    ASSERT_EQ(0, rig_end(&b.r));
    PASS();
}

TEST the_agent_is_sent_what_it_is_to_be_sent(void)
{
    bench b;
    char text[] = "how is web1?\n";
    begin(&b);
    b.desc.send = text;
    b.agents[0].waits_for = "how is web1?\n";
    b.agents[0].says = "up\n";
    ASSERT_EQ(PLB_OK, create(&b));
    memset(text, 'x', sizeof text - 1); /* it was copied */
    rig_run(&b.r, 50);
    ASSERT_EQ(PLB_OK, b.last.status);
    ASSERT_STR_EQ("how is web1?\n", b.agents[0].heard);
    ASSERT_EQ(0, rig_end(&b.r));
    PASS();
}

TEST an_answer_after_the_deadline_is_not_heard(uint32_t answer_ms)
{
    uint32_t limit = answer_ms > 0 ? answer_ms : 1000;
    plb_addr at = sim_addr("10.0.0.1:9000");
    bench b;
    begin(&b);
    b.desc.answer_ms = answer_ms;
    b.r.desc.check_every_ms = 60000;
    ASSERT_EQ(PLB_OK, create(&b));
    rig_run(&b.r, limit);
    ASSERT_EQ(0, b.probes);
    rig_run(&b.r, 10);
    ASSERT_EQ(1, b.probes);
    ASSERT_EQ(PLB_ERR_TIMEOUT, b.last.status);
    sim_send_text(sim_newest(b.r.s, &at), "down\n");
    rig_run(&b.r, 100);
    ASSERT_EQ(1, b.probes);
    ASSERT(info(&b).healthy);
    ASSERT_EQ(0, rig_end(&b.r));
    PASS();
}

/* ---- several ---- */

TEST several_agents_combine(void)
{
    plb_addr at = sim_addr("10.0.0.1:9001");
    plb_agent_check_desc second_desc;
    plb_check second;
    bench b;
    begin(&b);
    memset(&second_desc, 0, sizeof second_desc);
    second_desc.connect.port = 9001;
    second = plb_agent_check(&second_desc);
    b.r.desc.checks = &second;
    b.r.desc.check_count = 1;
    sim_serve(b.r.s, &at, play, &b.agents[1]);
    ASSERT_EQ(PLB_OK, create(&b));
    b.agents[1].says = "80%\n";
    say(&b, "60%\n");
    ASSERT_EQ(153, info(&b).share);
    b.agents[1].says = "20%\n";
    say(&b, "60%\n");
    ASSERT_EQ(51, info(&b).share);
    b.agents[1].says = "drain\n";
    say(&b, "ready\n");
    ASSERT(info(&b).advised_off);
    b.agents[1].says = "0% ready\n";
    say(&b, "ready\n");
    ASSERT(info(&b).advised_off);
    b.agents[1].says = "100% down\n";
    say(&b, "up\n");
    ASSERT_FALSE(info(&b).advised_off);
    ASSERT_EQ(153, info(&b).share);
    ASSERT_EQ(2, info(&b).failing);
    ASSERT_EQ(0, rig_end(&b.r));
    PASS();
}

TEST what_an_agent_said_goes_with_its_check(void)
{
    plb_backend backend;
    bench b;
    begin(&b);
    ASSERT_EQ(PLB_OK, create(&b));
    say(&b, "drain 10% down\n");
    ASSERT_EQ(0, picked(&b));
    backend = rig_backend("10.0.0.1:80", 1);
    backend.checks = 128;
    ASSERT_EQ(PLB_OK, plb_add(b.r.lb, &backend));
    rig_run(&b.r, 10);
    ASSERT_FALSE(info(&b).advised_off);
    ASSERT_EQ(255, info(&b).share);
    ASSERT_EQ(500, picked(&b));
    ASSERT_EQ(0, rig_end(&b.r));
    PASS();
}

TEST every_failed_allocation_and_call_is_survived(bool io)
{
    uint64_t n;
    bool failed = true;
    for (n = 1; failed; n++) {
        bench b;
        plb_status status;
        ASSERT_LT(n, 200);
        begin(&b);
        b.desc.send = "hello\n";
        b.agents[0].waits_for = "hello\n";
        b.agents[0].says = "up 20%";
        b.agents[0].ends = true;
        b.r.s->max_read = 1;
        b.r.s->fail_io_at = io ? n : 0;
        b.r.memory.fail_at = io ? 0 : n;
        status = create(&b);
        ASSERT(status == PLB_OK || (status == PLB_ERR_MEMORY && !io));
        if (status == PLB_OK) {
            rig_run(&b.r, 5000);
            ASSERT_EQ(51, info(&b).share);
            ASSERT(info(&b).healthy);
        }
        failed = io ? b.r.s->io_calls >= n : b.r.memory.calls >= n;
        ASSERT_EQ(0, rig_end(&b.r));
    }
    ASSERT_GT(n, 10);
    PASS();
}

TEST the_agent_is_at_the_backends_port_unless_told(void)
{
    plb_addr at = backend_addr();
    bench b;
    begin(&b);
    sim_serve(b.r.s, &at, play, &b.agents[0]);
    b.agents[0].says = "up 20%\n";
    ASSERT_EQ(PLB_OK, create_with(&b, plb_agent_check(NULL)));
    rig_run(&b.r, 50);
    ASSERT_EQ(1, sim_host(b.r.s, &at)->connects);
    ASSERT_EQ(51, info(&b).share);
    ASSERT_EQ(0, rig_end(&b.r));
    PASS();
}

SUITE(agent_check)
{
    static const char *const lines[] = {"up 20%\n", "up 20%\r\n", "up 20%\r", "up 20%\nmore of it"};
    size_t i;
    for (i = 0; i < sizeof line_cases / sizeof line_cases[0]; i++)
        RUN_TESTp(a_line_means_what_its_words_mean, &line_cases[i]);
    RUN_TEST(the_share_is_what_picks_give);
    RUN_TESTp(a_backend_that_drains_is_healthy_and_never_picked, "drain\n");
    RUN_TESTp(a_backend_that_drains_is_healthy_and_never_picked, "maint\n");
    RUN_TEST(what_a_line_does_not_speak_of_stays);
    RUN_TEST(no_requests_at_0_percent_and_ready_are_two_things);
    RUN_TEST(up_and_down_flip_health);
    RUN_TEST(a_line_without_a_verdict_does_not_count);
    for (i = 0; i < sizeof fault_cases / sizeof fault_cases[0]; i++) {
        RUN_TESTp(an_agent_that_says_nothing_changes_nothing, &fault_cases[i], false);
        RUN_TESTp(an_agent_that_says_nothing_changes_nothing, &fault_cases[i], true);
        RUN_TESTp(an_agent_that_must_answer_fails_its_backend, &fault_cases[i]);
    }
    RUN_TESTp(start_unhealthy_waits_for_a_first_result_only, "up\n", true);
    RUN_TESTp(start_unhealthy_waits_for_a_first_result_only, "50%\n", true);
    RUN_TESTp(start_unhealthy_waits_for_a_first_result_only, "what?\n", true);
    RUN_TESTp(start_unhealthy_waits_for_a_first_result_only, NULL, true);
    RUN_TESTp(start_unhealthy_waits_for_a_first_result_only, "down\n", false);
    for (i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        RUN_TESTp(a_line_ends_with_cr_lf_or_the_stream, lines[i], false, 0);
        RUN_TESTp(a_line_ends_with_cr_lf_or_the_stream, lines[i], false, 1);
    }
    RUN_TESTp(a_line_ends_with_cr_lf_or_the_stream, "up 20%", true, 0);
    RUN_TESTp(a_line_ends_with_cr_lf_or_the_stream, "up 20%", true, 1);
    RUN_TEST(an_endless_line_ends_the_probe_and_is_no_failure);
    RUN_TEST(the_agent_is_sent_what_it_is_to_be_sent);
    RUN_TESTp(an_answer_after_the_deadline_is_not_heard, 0);
    RUN_TESTp(an_answer_after_the_deadline_is_not_heard, 200);
    RUN_TEST(several_agents_combine);
    RUN_TEST(what_an_agent_said_goes_with_its_check);
    RUN_TESTp(every_failed_allocation_and_call_is_survived, false);
    RUN_TESTp(every_failed_allocation_and_call_is_survived, true);
    RUN_TEST(the_agent_is_at_the_backends_port_unless_told);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(agent_check);
    GREATEST_MAIN_END();
}
