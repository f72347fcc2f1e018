/* Checks that send and expect: what each kind of step takes for an answer, what a failure says, the ready-made ones. */
#include "../pingora_lb.h"
#define SIM_IMPLEMENTATION
#include "sim.h"
#include <greatest.h>
#include "rig.h"

/* ---- a server that plays lines from a script ---- */

/* What a server does: says `says`, once `hears` has come (NULL: at once); then the next line. */
typedef struct line {
    const char *hears;
    const char *says; /* NULL: nothing more */
    size_t size;      /* of says; 0: it is a string */
    bool ends;        /* and ends its side */
} line;

typedef struct server {
    const line *lines;
    bool in_bytes; /* answers a byte a millisecond */
    char heard[256];
    size_t heard_size;
} server;

static size_t play(void *user, sim_conn *conn, const char *bytes, size_t count)
{
    server *server_ = (server *)user;
    uintptr_t at = (uintptr_t)conn->user;
    size_t used = 0;
    for (; server_->lines[at].says != NULL || server_->lines[at].ends; at++) {
        const line *l = &server_->lines[at];
        size_t hears = l->hears != NULL ? strlen(l->hears) : 0;
        if (count - used < hears || (hears > 0 && memcmp(bytes + used, l->hears, hears) != 0))
            break;
        used += hears;
        if (l->says != NULL)
            sim_send(conn, l->says, l->size > 0 ? l->size : strlen(l->says));
        if (l->ends)
            sim_end(conn);
    }
    conn->user = (void *)at;
    if (used < count && server_->lines[at].says == NULL && !server_->lines[at].ends)
        used = count;
    if (server_->heard_size + used < sizeof server_->heard)
        memcpy(server_->heard + server_->heard_size, bytes, used);
    server_->heard_size += used;
    return used;
}

#define WHERE "10.0.0.1:80"

typedef struct bench {
    rig r;
    server server;
    uint32_t probes;
    plb_probe_info last;
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

static sim_host_t *host(bench *b)
{
    plb_addr at = sim_addr(WHERE);
    return sim_host(b->r.s, &at);
}

/* A balancer of one backend with that check, and a server that plays those lines. */
static void begin(bench *b, plb_check check, const line *lines)
{
    plb_addr at = sim_addr(WHERE);
    memset(b, 0, sizeof *b);
    rig_begin(&b->r);
    b->r.desc.on_probe = note_probe;
    b->r.desc.check = check;
    b->server.lines = lines;
    if (lines != NULL)
        sim_serve(b->r.s, &at, play, &b->server);
}

static plb_status create(bench *b)
{
    static const char *addresses[] = {WHERE};
    static plb_static_desc list;
    list.addresses = addresses;
    list.address_count = 1;
    b->r.desc.discovery = plb_static(&list);
    return rig_create(&b->r);
}

static plb_status run(bench *b, uint32_t ms)
{
    plb_status status = create(b);
    if (status == PLB_OK)
        rig_run(&b->r, ms);
    return status;
}

/* One probe with a ready-made check against a server; returns what was left behind. */
static int probe(bench *b, plb_check check, const line *lines)
{
    begin(b, check, lines);
    run(b, 3000);
    return rig_end(&b->r);
}

static plb_expect_step step(const char *send, plb_expect_kind kind, const char *expect, const char *until)
{
    plb_expect_step s;
    memset(&s, 0, sizeof s);
    s.send = send;
    s.kind = kind;
    s.expect = expect;
    s.until = until;
    return s;
}

static plb_expect_check_desc of_steps(plb_expect_step *steps, size_t count)
{
    plb_expect_check_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.steps = steps;
    desc.step_count = count;
    return desc;
}

/* One probe of one step that sends nothing, against a server that says `says`, at most `portion` bytes a read; `ends`:
   and then ends its side. */
static int probe_one(bench *b, plb_expect_kind kind, const char *expect, const char *until, const char *says,
                     uint32_t portion, bool ends)
{
    plb_expect_step steps[1];
    plb_expect_check_desc desc = of_steps(steps, 1);
    line lines[2];
    steps[0] = step(NULL, kind, expect, until);
    memset(lines, 0, sizeof lines);
    lines[0].says = says;
    lines[0].ends = ends;
    begin(b, plb_expect_check(&desc), lines);
    b->r.s->max_read = portion;
    run(b, 3000);
    return rig_end(&b->r);
}

/* ---- what is an answer ---- */

typedef struct kind_case {
    plb_expect_kind kind;
    const char *expect, *until, *says;
    plb_status status;
    const char *text;
} kind_case;

static const kind_case kind_cases[] = {
    {PLB_EXPECT_PREFIX, "+OK", NULL, "+OK", PLB_OK, NULL},
    {PLB_EXPECT_PREFIX, "+OK", NULL, "+OK ready\r\n", PLB_OK, NULL},
    {PLB_EXPECT_PREFIX, "+OK", NULL, "-ERR", PLB_ERR_ANSWER, "step 1: expected \"+OK\", got \"-"},
    {PLB_EXPECT_PREFIX, "+OK", NULL, " +OK", PLB_ERR_ANSWER, "step 1: expected \"+OK\", got \" "},
    {PLB_EXPECT_PREFIX, "+OK", NULL, "+O", PLB_ERR_TIMEOUT, NULL},
    {PLB_EXPECT_PREFIX, "+OK", "\r\n", "+OK ready\r\n", PLB_OK, NULL},
    {PLB_EXPECT_PREFIX, "+OK", "\r\n", "+OK ready\r", PLB_ERR_TIMEOUT, NULL},
    {PLB_EXPECT_PREFIX, "+OK", "OK", "+OK", PLB_ERR_TIMEOUT, NULL},
    {PLB_EXPECT_SUBSTRING, "ready", NULL, "I am ready.", PLB_OK, NULL},
    {PLB_EXPECT_SUBSTRING, "ready", NULL, "I am reready", PLB_OK, NULL},
    {PLB_EXPECT_SUBSTRING, "ready", NULL, "I am readi", PLB_ERR_TIMEOUT, NULL},
    {PLB_EXPECT_SUBSTRING, "ready", "\n", "not\nready\n", PLB_OK, NULL},
    {PLB_EXPECT_SUBSTRING, "ready", "\n", "not\nready", PLB_ERR_TIMEOUT, NULL},
    {PLB_EXPECT_EXACT, "+OK", NULL, "+OK", PLB_OK, NULL},
    {PLB_EXPECT_EXACT, "+OK", NULL, "+NO", PLB_ERR_ANSWER, "step 1: expected \"+OK\", got \"+N"},
    {PLB_EXPECT_EXACT, "+OK", NULL, "+O", PLB_ERR_TIMEOUT, NULL}};

TEST each_kind_takes_its_answer_and_no_other(const kind_case *c, uint32_t portion)
{
    bench b;
    ASSERT_EQ(0, probe_one(&b, c->kind, c->expect, c->until, c->says, portion, false));
    ASSERT_EQ(1, b.probes);
    ASSERT_EQ(c->status, b.last.status);
    ASSERT_EQ(c->status == PLB_ERR_ANSWER ? 1 : 0, b.last.code);
    if (c->text != NULL)
        ASSERT_EQ(0, strncmp(c->text, b.text, strlen(c->text)));
    ASSERT_EQ(c->status == PLB_OK ? 0 : 1, b.r.flips);
    PASS();
}

TEST exact_bytes_bear_nothing_behind_them(void)
{
    bench b;
    ASSERT_EQ(0, probe_one(&b, PLB_EXPECT_EXACT, "+OK", NULL, "+OK\r\n", 0, false));
    ASSERT_EQ(PLB_ERR_ANSWER, b.last.status);
    ASSERT_STR_EQ("step 1: expected \"+OK\", got \"+OK\\r\\n\"", b.text);
    PASS();
}

TEST a_wrong_byte_ends_the_probe_at_once(void)
{
    bench b;
    plb_expect_step steps[1];
    plb_expect_check_desc desc = of_steps(steps, 1);
    static const line lines[] = {{NULL, "-", 0, false}, {NULL, NULL, 0, false}};
    steps[0] = step(NULL, PLB_EXPECT_PREFIX, "+OK", NULL);
    begin(&b, plb_expect_check(&desc), lines);
    ASSERT_EQ(PLB_OK, run(&b, 10));
    ASSERT_EQ(PLB_ERR_ANSWER, b.last.status);
    ASSERT_EQ(0, b.r.s->streams);
    ASSERT_EQ(0, rig_end(&b.r));
    PASS();
}

TEST the_end_of_the_stream_is_told(void)
{
    bench b;
    ASSERT_EQ(0, probe_one(&b, PLB_EXPECT_SUBSTRING, "yes", NULL, "no", 0, true));
    ASSERT_EQ(PLB_ERR_ANSWER, b.last.status);
    ASSERT_STR_EQ("step 1: expected \"yes\", got \"no\" and the end", b.text);
    ASSERT_EQ(0, probe_one(&b, PLB_EXPECT_SUBSTRING, "yes", NULL, NULL, 0, true));
    ASSERT_STR_EQ("step 1: expected \"yes\", got the end", b.text);
    PASS();
}

TEST what_is_expected_must_come_within_the_limit(uint32_t limit, size_t before, plb_status expected)
{
    bench b;
    char says[5000];
    plb_expect_step steps[1];
    plb_expect_check_desc desc = of_steps(steps, 1);
    line lines[2];
    memset(says, '.', sizeof says);
    memcpy(says + before, "here", 4);
    memset(lines, 0, sizeof lines);
    lines[0].says = says;
    lines[0].size = sizeof says;
    steps[0] = step(NULL, PLB_EXPECT_SUBSTRING, "here", NULL);
    desc.receive_limit = limit;
    ASSERT_EQ(0, probe(&b, plb_expect_check(&desc), lines));
    ASSERT_EQ(expected, b.last.status);
    PASS();
}

TEST a_long_text_is_cut_and_printable(void)
{
    bench b;
    size_t i;
    ASSERT_EQ(0, probe_one(&b, PLB_EXPECT_PREFIX, "0123456789012345678901234567890123456789", NULL,
                           "\"\\\x01\xff\t0123456789012345678901234567890123456789", 0, false));
    ASSERT_STR_EQ("step 1: expected \"012345678901234567890...\", got \"\\\"\\\\\\x01\\xff\\x09012345678...\"", b.text);
    ASSERT_LT(strlen(b.text), PLB_REPORT_TEXT);
    ASSERT_GT(strlen(b.text), PLB_REPORT_TEXT - 5);
    for (i = 0; b.text[i] != '\0'; i++)
        ASSERT(b.text[i] >= 0x20 && b.text[i] < 0x7f);
    PASS();
}

TEST a_text_that_just_fits_is_not_cut(void)
{
    bench b;
    ASSERT_EQ(0, probe_one(&b, PLB_EXPECT_PREFIX, "012345678901234567890123", NULL, "x", 0, false));
    ASSERT_STR_EQ("step 1: expected \"012345678901234567890123\", got \"x\"", b.text);
    PASS();
}

/* ---- several steps ---- */

static const line three_lines[] = {{NULL, "hello there\r\n", 0, false},
                                   {"name\r\n", "ok x\r\nand more\r\n", 0, false},
                                   {"bye\r\n", "so long", 0, false},
                                   {NULL, NULL, 0, false}};

static void three_steps(plb_expect_step steps[3])
{
    steps[0] = step(NULL, PLB_EXPECT_PREFIX, "hello", "\r\n");
    steps[1] = step("name\r\n", PLB_EXPECT_SUBSTRING, "more", "\r\n");
    steps[2] = step("bye\r\n", PLB_EXPECT_EXACT, "so long", NULL);
}

TEST steps_follow_one_another_whatever_the_portions(uint32_t max_read, uint32_t max_write)
{
    bench b;
    plb_expect_step steps[3];
    plb_expect_check_desc desc = of_steps(steps, 3);
    three_steps(steps);
    begin(&b, plb_expect_check(&desc), three_lines);
    memset(steps, 0xee, sizeof steps); /* they are copied by plb_create, not before */
    three_steps(steps);
    b.r.s->max_read = max_read;
    b.r.s->max_write = max_write;
    ASSERT_EQ(PLB_OK, create(&b));
    memset(steps, 0xee, sizeof steps);
    rig_run(&b.r, 100);
    ASSERT_EQ(1, b.probes);
    ASSERT_EQ(PLB_OK, b.last.status);
    ASSERT_EQ(0, b.last.code);
    ASSERT_EQ(0, memcmp(b.server.heard, "name\r\nbye\r\n", 11));
    ASSERT_EQ(0, b.r.s->streams);
    ASSERT_EQ(0, rig_end(&b.r));
    PASS();
}

TEST a_failure_names_its_step(void)
{
    bench b;
    plb_expect_step steps[3];
    plb_expect_check_desc desc = of_steps(steps, 3);
    static const line lines[] = {{NULL, "hello there\r\n", 0, false},
                                 {"name\r\n", "no more\r\n", 0, false},
                                 {"bye\r\n", "so what?", 0, false},
                                 {NULL, NULL, 0, false}};
    three_steps(steps);
    ASSERT_EQ(0, probe(&b, plb_expect_check(&desc), lines));
    ASSERT_EQ(PLB_ERR_ANSWER, b.last.status);
    ASSERT_EQ(3, b.last.code);
    ASSERT_STR_EQ("step 3: expected \"so long\", got \"so what?\"", b.text);
    PASS();
}

TEST bytes_of_any_value_can_be_sent_and_expected(void)
{
    bench b;
    plb_expect_step steps[1];
    plb_expect_check_desc desc = of_steps(steps, 1);
    static const char asked[] = {'\0', 'a', '\0'}, answered[] = {'\1', '\0', '\xff'};
    line lines[2];
    steps[0] = step(asked, PLB_EXPECT_EXACT, answered, NULL);
    steps[0].send_size = steps[0].expect_size = 3;
    memset(lines, 0, sizeof lines);
    lines[0].says = answered;
    lines[0].size = 3;
    ASSERT_EQ(0, probe(&b, plb_expect_check(&desc), lines));
    ASSERT_EQ(PLB_OK, b.last.status);
    ASSERT_EQ(3, b.server.heard_size);
    ASSERT_EQ(0, memcmp(asked, b.server.heard, 3));
    PASS();
}

TEST a_last_step_may_be_a_farewell(void)
{
    bench b;
    plb_expect_step steps[2];
    plb_expect_check_desc desc = of_steps(steps, 2);
    static const line lines[] = {{NULL, "hello\r\n", 0, false}, {NULL, NULL, 0, false}};
    steps[0] = step(NULL, PLB_EXPECT_PREFIX, "hello", "\r\n");
    steps[1] = step("bye\r\n", PLB_EXPECT_PREFIX, NULL, NULL);
    ASSERT_EQ(0, probe(&b, plb_expect_check(&desc), lines));
    ASSERT_EQ(PLB_OK, b.last.status);
    ASSERT_EQ(5, b.server.heard_size);
    ASSERT_EQ(0, memcmp("bye\r\n", b.server.heard, 5));
    PASS();
}

TEST an_answer_before_the_question_is_out_of_order(void)
{
    static char long_text[200000];
    bench b;
    plb_expect_step steps[2];
    plb_expect_check_desc desc = of_steps(steps, 2);
    static const line lines[] = {{NULL, "hello", 0, false}, {NULL, NULL, 0, false}};
    memset(long_text, 'x', sizeof long_text - 1);
    steps[0] = step(long_text, PLB_EXPECT_PREFIX, "hello", NULL);
    steps[1] = step("more", PLB_EXPECT_PREFIX, "hello", NULL);
    ASSERT_EQ(0, probe(&b, plb_expect_check(&desc), lines));
    ASSERT_EQ(PLB_ERR_PROTOCOL, b.last.status);
    ASSERT_STR_EQ("step 1: answered before all was sent", b.text);
    PASS();
}

/* ---- a judge of the program's own ---- */

static plb_status judge_digits(const char *bytes, size_t size, size_t *used, char *why)
{
    size_t i;
    for (i = 0; i < size && bytes[i] >= '0' && bytes[i] <= '9'; i++)
        continue;
    if (i == size)
        return PLB_AGAIN;
    *used = i + 1;
    if (bytes[i] == ';')
        return PLB_OK;
    if (bytes[i] == '!')
        snprintf(why, PLB_REPORT_TEXT, "a cry");
    return bytes[i] == '?' ? PLB_ERR_PROTOCOL : PLB_ERR_ANSWER;
}

TEST a_judge_decides_what_the_answer_is(uint32_t portion)
{
    static const struct {
        const char *says, *text;
        plb_status status;
    } cases[] = {{"12;", NULL, PLB_OK},
                 {"1!", "step 2: a cry", PLB_ERR_ANSWER},
                 {"1x", "step 2: got \"1x\"", PLB_ERR_ANSWER},
                 {"1?", "step 2: got \"1?\"", PLB_ERR_PROTOCOL}};
    size_t i;
    for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        bench b;
        plb_expect_step steps[2];
        plb_expect_check_desc desc = of_steps(steps, 2);
        line lines[3];
        memset(steps, 0, sizeof steps);
        memset(lines, 0, sizeof lines);
        steps[0].judge = steps[1].judge = judge_digits;
        lines[0].says = "7;";
        lines[1].says = cases[i].says;
        begin(&b, plb_expect_check(&desc), lines);
        b.r.s->max_read = portion;
        ASSERT_EQ(PLB_OK, run(&b, 100));
        ASSERT_EQ(cases[i].status, b.last.status);
        if (cases[i].text != NULL)
            ASSERT_STR_EQ(cases[i].text, b.text);
        ASSERT_EQ(0, rig_end(&b.r));
    }
    PASS();
}

/* ---- what cannot be ---- */

static plb_status open_steps(plb_expect_step *steps, size_t count, uint32_t limit)
{
    bench b;
    plb_expect_check_desc desc = of_steps(steps, count);
    plb_status status;
    desc.receive_limit = limit;
    begin(&b, plb_expect_check(&desc), NULL);
    status = create(&b);
    return rig_end(&b.r) == 0 ? status : PLB_STATUS_COUNT;
}

TEST steps_that_make_no_sense_are_refused(void)
{
    plb_expect_step s[3];
    s[0] = step("a", PLB_EXPECT_PREFIX, "b", NULL);
    s[1] = step("a", PLB_EXPECT_PREFIX, NULL, NULL);
    s[2] = s[0];
    ASSERT_EQ(PLB_OK, open_steps(s, 1, 0));
    ASSERT_EQ(PLB_OK, open_steps(s, 2, 0));
    ASSERT_EQ(PLB_ERR_ARGUMENT, open_steps(s, 3, 0)); /* no farewell, so it expects something */
    ASSERT_EQ(PLB_ERR_ARGUMENT, open_steps(s + 1, 1, 0));
    ASSERT_EQ(PLB_ERR_ARGUMENT, open_steps(s, 0, 0));
    ASSERT_EQ(PLB_ERR_ARGUMENT, open_steps(NULL, 1, 0));
    ASSERT_EQ(PLB_OK, open_steps(s, 1, PLB_EXCHANGE_SIZE - 1));
    ASSERT_EQ(PLB_ERR_ARGUMENT, open_steps(s, 1, PLB_EXCHANGE_SIZE));
    s[0] = step(NULL, PLB_EXPECT_PREFIX, "abcd", "e");
    ASSERT_EQ(PLB_OK, open_steps(s, 1, 5));
    ASSERT_EQ(PLB_ERR_ARGUMENT, open_steps(s, 1, 4));
    ASSERT_EQ(PLB_ERR_ARGUMENT, open_steps(s, 1, 3));
    s[0].kind = PLB_EXPECT_EXACT;
    ASSERT_EQ(PLB_ERR_ARGUMENT, open_steps(s, 1, 0));
    s[0] = step(NULL, PLB_EXPECT_PREFIX, "a", NULL);
    s[0].judge = judge_digits;
    ASSERT_EQ(PLB_ERR_ARGUMENT, open_steps(s, 1, 0));
    s[0].expect = NULL;
    ASSERT_EQ(PLB_OK, open_steps(s, 1, 0));
    PASS();
}

TEST without_a_descriptor_streams_or_a_clock_there_is_no_check(void)
{
    bench b;
    begin(&b, plb_expect_check(NULL), NULL);
    ASSERT_EQ(PLB_ERR_ARGUMENT, create(&b));
    ASSERT_EQ(0, rig_end(&b.r));
    begin(&b, plb_redis_check(NULL), NULL);
    b.r.desc.port.io = NULL;
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, create(&b));
    b.r.desc.port = sim_port(b.r.s);
    b.r.desc.port.clock = NULL;
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, create(&b));
    ASSERT_EQ(0, rig_end(&b.r));
    PASS();
}

/* ---- the ways of a network ---- */

TEST each_fault_of_the_way_is_told_apart(sim_fault fault, uint32_t fault_bytes, plb_status expected)
{
    bench b;
    plb_expect_step steps[3];
    plb_expect_check_desc desc = of_steps(steps, 3);
    three_steps(steps);
    begin(&b, plb_expect_check(&desc), three_lines);
    host(&b)->fault = fault;
    host(&b)->fault_bytes = fault_bytes;
    ASSERT_EQ(PLB_OK, run(&b, 3000));
    ASSERT_EQ(1, b.probes);
    ASSERT_EQ(expected, b.last.status);
    ASSERT_EQ(0, b.r.s->streams);
    ASSERT_EQ(0, rig_end(&b.r));
    PASS();
}

TEST all_steps_share_the_time_for_an_answer(uint32_t answer_ms)
{
    bench b;
    plb_expect_step steps[1];
    plb_expect_check_desc desc = of_steps(steps, 1);
    static const line lines[] = {{NULL, "hell", 0, false}, {NULL, NULL, 0, false}};
    uint32_t limit = answer_ms > 0 ? answer_ms : 1000;
    steps[0] = step(NULL, PLB_EXPECT_PREFIX, "hello", NULL);
    desc.answer_ms = answer_ms;
    begin(&b, plb_expect_check(&desc), lines);
    ASSERT_EQ(PLB_OK, run(&b, limit));
    ASSERT_EQ(0, b.probes);
    rig_run(&b.r, 10);
    ASSERT_EQ(1, b.probes);
    ASSERT_EQ(PLB_ERR_TIMEOUT, b.last.status);
    sim_send_text(sim_newest(b.r.s, &host(&b)->addr), "o"); /* too late */
    rig_run(&b.r, 100);
    ASSERT_EQ(1, b.probes);
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

TEST an_endless_answer_ends_the_probe(plb_check (*make)(const plb_connect_desc *), plb_status expected)
{
    bench b;
    plb_addr at = sim_addr(WHERE);
    begin(&b, make(NULL), NULL);
    sim_serve(b.r.s, &at, talk_forever, NULL);
    ASSERT_EQ(PLB_OK, run(&b, 3000));
    ASSERT_EQ(1, b.probes);
    ASSERT_EQ(expected, b.last.status);
    ASSERT_EQ(0, b.r.s->streams);
    ASSERT_EQ(0, rig_end(&b.r));
    PASS();
}

TEST every_failed_allocation_and_call_is_survived(bool io)
{
    plb_expect_step steps[3];
    plb_expect_check_desc desc = of_steps(steps, 3);
    uint64_t n;
    bool failed = true;
    three_steps(steps);
    for (n = 1; failed; n++) {
        bench b;
        plb_status status;
        ASSERT_LT(n, 200);
        begin(&b, plb_expect_check(&desc), three_lines);
        b.r.s->max_read = 1;
        b.r.s->fail_io_at = io ? n : 0;
        b.r.memory.fail_at = io ? 0 : n;
        status = run(&b, 5000);
        ASSERT(status == PLB_OK || (status == PLB_ERR_MEMORY && !io));
        if (status == PLB_OK) {
            ASSERT_GTE(b.probes, 1);
            ASSERT_EQ(0, b.r.s->streams);
        }
        failed = io ? b.r.s->io_calls >= n : b.r.memory.calls >= n;
        ASSERT_EQ(0, rig_end(&b.r));
    }
    ASSERT_GT(n, 10);
    PASS();
}

TEST the_check_goes_to_its_own_port(void)
{
    bench b;
    plb_connect_desc connect;
    plb_addr at = sim_addr("10.0.0.1:6379");
    static const line lines[] = {{"PING\r\n", "+PONG\r\n", 0, false}, {NULL, NULL, 0, false}};
    memset(&connect, 0, sizeof connect);
    connect.port = 6379;
    begin(&b, plb_redis_check(&connect), NULL);
    b.server.lines = lines;
    sim_serve(b.r.s, &at, play, &b.server);
    ASSERT_EQ(PLB_OK, run(&b, 100));
    ASSERT_EQ(PLB_OK, b.last.status);
    ASSERT_EQ(0, rig_end(&b.r));
    PASS();
}

/* ---- ready-made ones ---- */

typedef struct ready_case {
    plb_check (*make)(const plb_connect_desc *connect);
    plb_status status;
    const char *text;
    line lines[4];
} ready_case;

static const ready_case ready_cases[] = {
    {plb_redis_check, PLB_OK, NULL, {{"PING\r\n", "+PONG\r\n", 0, false}}},
    {plb_redis_check,
     PLB_ERR_ANSWER,
     "step 1: expected \"+PONG\\r\\n\", got \"-NOAUTH Authentication required.\\r\\n\"",
     {{"PING\r\n", "-NOAUTH Authentication required.\r\n", 0, false}}},
    {plb_redis_check,
     PLB_ERR_ANSWER,
     "step 1: expected \"+PONG\\r\\n\", got \"-LOADING Redis is loading the dataset in...\"",
     {{"PING\r\n", "-LOADING Redis is loading the dataset in memory\r\n", 0, false}}},
    {plb_redis_check,
     PLB_ERR_ANSWER,
     "step 1: expected \"+PONG\\r\\n\", got \"-MASTERDOWN\\r\\n\"",
     {{"PING\r\n", "-MASTERDOWN\r\n", 0, false}}},
    {plb_memcached_check, PLB_OK, NULL, {{"version\r\n", "VERSION 1.6.18\r\n", 0, false}}},
    {plb_memcached_check,
     PLB_ERR_ANSWER,
     "step 1: expected \"VERSION \", got \"ERROR\\r\\n\"",
     {{"version\r\n", "ERROR\r\n", 0, false}}},
    {plb_smtp_check,
     PLB_OK,
     NULL,
     {{NULL, "220 mail.example ESMTP\r\n", 0, false},
      {"EHLO localhost\r\n", "250-mail.example\r\n250-SIZE 1000\r\n250 HELP\r\n", 0, false},
      {"QUIT\r\n", "221 bye\r\n", 0, true}}},
    {plb_smtp_check,
     PLB_OK,
     NULL,
     {{NULL, "220-mail.example\r\n220-no spam\r\n220\r\n", 0, false},
      {"EHLO localhost\r\n", "250\r\n", 0, false},
      {"QUIT\r\n", "221\r\n", 0, true}}},
    {plb_smtp_check, PLB_ERR_ANSWER, "step 1: got \"421 too busy\\r\\n\"", {{NULL, "421 too busy\r\n", 0, true}}},
    {plb_smtp_check,
     PLB_ERR_ANSWER,
     "step 2: got \"550 who are you?\\r\\n\"",
     {{NULL, "220 x\r\n", 0, false}, {"EHLO localhost\r\n", "550 who are you?\r\n", 0, false}}},
    {plb_smtp_check, PLB_ERR_ANSWER, "step 1: got \"HTTP/1.1 400\\r\\n\"", {{NULL, "HTTP/1.1 400\r\n", 0, false}}},
    {plb_smtp_check, PLB_ERR_ANSWER, "step 1: got \"22\\r\\n\"", {{NULL, "22\r\n", 0, false}}},
    {plb_smtp_check, PLB_ERR_TIMEOUT, NULL, {{NULL, "220-to be continued\r\n", 0, false}}},
    {plb_mysql_check,
     PLB_OK,
     NULL,
     {{NULL,
       "\x08\0\0\0\x0a"
       "8.0.36\0",
       12, false}}},
    {plb_mysql_check,
     PLB_ERR_ANSWER,
     "step 1: error 1040, \"Too many connections\"",
     {{NULL, "\x1d\0\0\0\xff\x10\x04#08004Too many connections", 33, true}}},
    {plb_mysql_check,
     PLB_ERR_ANSWER,
     "step 1: error 1129, \"Host '10.0.0.9' is blocked because of many connection ...\"",
     {{NULL, "\x3f\0\0\0\xff\x69\x04Host '10.0.0.9' is blocked because of many connection errors", 67, true}}},
    {plb_mysql_check,
     PLB_ERR_ANSWER,
     "step 1: got \"\\x02\\x00\\x00\\x00\\x09x\"",
     {{NULL, "\2\0\0\0\x09x", 6, false}}},
    {plb_mysql_check, PLB_ERR_ANSWER, "step 1: got \"HTTP\"", {{NULL, "HTTP", 4, false}}},
    {plb_mysql_check, PLB_ERR_ANSWER, "step 1: got \"\\x01\\x00\\x00\\x00\\xff\"", {{NULL, "\1\0\0\0\xff", 5, false}}},
    {plb_mysql_check, PLB_ERR_ANSWER, "step 1: got \"\\x00\\x00\\x00\\x00\\n\"", {{NULL, "\0\0\0\0\x0a", 5, false}}},
    {plb_mysql_check,
     PLB_ERR_TIMEOUT,
     NULL,
     {{NULL,
       "\x08\0\0\0\x0a"
       "8.0",
       8, false}}},
    {plb_postgres_check, PLB_OK, NULL, {{NULL, "N", 0, false}}},
    {plb_postgres_check, PLB_OK, NULL, {{NULL, "S", 0, false}}},
    {plb_postgres_check, PLB_ERR_ANSWER, "step 1: got \"E\"", {{NULL, "E", 0, true}}}};

TEST a_ready_made_check_knows_its_protocol(const ready_case *c, uint32_t portion)
{
    bench b;
    begin(&b, c->make(NULL), c->lines);
    b.r.s->max_read = portion;
    ASSERT_EQ(PLB_OK, run(&b, 3000));
    ASSERT_EQ(1, b.probes);
    ASSERT_EQ(c->status, b.last.status);
    if (c->text != NULL && portion == 0)
        ASSERT_STR_EQ(c->text, b.text);
    ASSERT_EQ(0, b.r.s->streams);
    ASSERT_EQ(0, rig_end(&b.r));
    PASS();
}

TEST postgres_is_asked_for_tls(void)
{
    bench b;
    static const line lines[] = {{NULL, "N", 0, false}, {NULL, NULL, 0, false}};
    ASSERT_EQ(0, probe(&b, plb_postgres_check(NULL), lines));
    ASSERT_EQ(8, b.server.heard_size);
    ASSERT_EQ(0, memcmp("\0\0\0\x08\x04\xd2\x16\x2f", b.server.heard, 8));
    PASS();
}

SUITE(expect_check)
{
    size_t i;
    uint32_t portion;
    for (i = 0; i < sizeof kind_cases / sizeof kind_cases[0]; i++)
        for (portion = 0; portion <= 2; portion++)
            RUN_TESTp(each_kind_takes_its_answer_and_no_other, &kind_cases[i], portion);
    RUN_TEST(exact_bytes_bear_nothing_behind_them);
    RUN_TEST(a_wrong_byte_ends_the_probe_at_once);
    RUN_TEST(the_end_of_the_stream_is_told);
    RUN_TESTp(what_is_expected_must_come_within_the_limit, 0, 4092, PLB_OK);
    RUN_TESTp(what_is_expected_must_come_within_the_limit, 0, 4093, PLB_ERR_ANSWER);
    RUN_TESTp(what_is_expected_must_come_within_the_limit, 100, 96, PLB_OK);
    RUN_TESTp(what_is_expected_must_come_within_the_limit, 100, 97, PLB_ERR_ANSWER);
    RUN_TEST(a_long_text_is_cut_and_printable);
    RUN_TEST(a_text_that_just_fits_is_not_cut);
    RUN_TESTp(steps_follow_one_another_whatever_the_portions, 0, 0);
    RUN_TESTp(steps_follow_one_another_whatever_the_portions, 1, 0);
    RUN_TESTp(steps_follow_one_another_whatever_the_portions, 0, 1);
    RUN_TESTp(steps_follow_one_another_whatever_the_portions, 3, 2);
    RUN_TEST(a_failure_names_its_step);
    RUN_TEST(bytes_of_any_value_can_be_sent_and_expected);
    RUN_TEST(a_last_step_may_be_a_farewell);
    RUN_TEST(an_answer_before_the_question_is_out_of_order);
    RUN_TESTp(a_judge_decides_what_the_answer_is, 0);
    RUN_TESTp(a_judge_decides_what_the_answer_is, 1);
    RUN_TEST(steps_that_make_no_sense_are_refused);
    RUN_TEST(without_a_descriptor_streams_or_a_clock_there_is_no_check);
    RUN_TESTp(each_fault_of_the_way_is_told_apart, SIM_REFUSE, 0, PLB_ERR_REFUSED);
    RUN_TESTp(each_fault_of_the_way_is_told_apart, SIM_UNREACHABLE, 0, PLB_ERR_UNREACHABLE);
    RUN_TESTp(each_fault_of_the_way_is_told_apart, SIM_HANG, 0, PLB_ERR_TIMEOUT);
    RUN_TESTp(each_fault_of_the_way_is_told_apart, SIM_SILENT, 0, PLB_ERR_TIMEOUT);
    RUN_TESTp(each_fault_of_the_way_is_told_apart, SIM_RESET, 3, PLB_ERR_RESET);
    RUN_TESTp(each_fault_of_the_way_is_told_apart, SIM_RESET, 20, PLB_ERR_RESET);
    RUN_TESTp(each_fault_of_the_way_is_told_apart, SIM_TRUNCATE, 3, PLB_ERR_ANSWER);
    RUN_TESTp(each_fault_of_the_way_is_told_apart, SIM_TRUNCATE, 20, PLB_ERR_ANSWER);
    RUN_TESTp(all_steps_share_the_time_for_an_answer, 0);
    RUN_TESTp(all_steps_share_the_time_for_an_answer, 300);
    RUN_TESTp(an_endless_answer_ends_the_probe, plb_redis_check, PLB_ERR_ANSWER);
    RUN_TESTp(an_endless_answer_ends_the_probe, plb_mysql_check, PLB_ERR_ANSWER);
    RUN_TESTp(an_endless_answer_ends_the_probe, plb_smtp_check, PLB_ERR_ANSWER);
    RUN_TESTp(every_failed_allocation_and_call_is_survived, false);
    RUN_TESTp(every_failed_allocation_and_call_is_survived, true);
    RUN_TEST(the_check_goes_to_its_own_port);
    for (i = 0; i < sizeof ready_cases / sizeof ready_cases[0]; i++)
        for (portion = 0; portion <= 1; portion++)
            RUN_TESTp(a_ready_made_check_knows_its_protocol, &ready_cases[i], portion);
    RUN_TEST(postgres_is_asked_for_tls);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(expect_check);
    GREATEST_MAIN_END();
}
