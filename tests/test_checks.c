/* Several checks of each backend: what they say together, when each is due, what becomes of them when updates come and
   go. The clock is a variable; checks answer as they are told to. */
#define PINGORA_LB_IMPLEMENTATION
#include "../pingora_lb.h"
#define SIM_IMPLEMENTATION
#include "sim.h"
#include <greatest.h>
#include "rig.h"

#include <pthread.h>

#define BACKENDS 4096
#define STARTS   8192
#define PLAYERS  9

/* A check that is played by hand. Start number n: index n. */
typedef struct player {
    plb_status result; /* what it answers inside start */
    bool later;        /* or not: the test does */
    bool keep;
    bool done_in_cancel; /* cancel completes the token that it is handed */
    plb_status start_status;
    uint32_t starts, cancels, opens, closes;
    plb_token tokens[STARTS];
    plb_addr targets[STARTS];
    uint64_t times[STARTS];
    uint32_t found[STARTS]; /* what its bytes said: how often they were handed out before */
} player;

typedef struct player_state {
    player *p;
} player_state;

typedef struct stage {
    rig r;
    feed f;
    plb_check checks[PLAYERS];
    player_state descs[PLAYERS];
    uint32_t probes; /* on_probe */
    plb_probe_info probe;
    uint32_t probe_check, meddled;
    char text[2 * PLB_REPORT_TEXT];
} stage;

static uint64_t clock_ms;
static player players[PLAYERS];
static plb_backend backends[BACKENDS];

static uint64_t read_clock(void *self)
{
    (void)self;
    return clock_ms;
}

static const plb_clock test_clock = {NULL, read_clock, NULL};

static plb_status player_open(void *state, const void *desc, const plb_env *env)
{
    (void)env;
    memcpy(state, desc, sizeof(player_state));
    ((player_state *)state)->p->opens++;
    return PLB_OK;
}

static void player_close(void *state)
{
    if (((player_state *)state)->p != NULL)
        ((player_state *)state)->p->closes++;
}

static void player_report(player *p, uint32_t n, plb_status status)
{
    plb_report said;
    memset(&said, 0, sizeof said);
    said.status = status;
    said.keep = p->keep;
    plb_check_report(p->tokens[n % STARTS], &said);
}

static plb_status player_start(void *state, void *probe, const plb_backend *target, plb_token token)
{
    player *p = ((player_state *)state)->p;
    uint32_t n = p->starts++;
    p->tokens[n % STARTS] = token;
    p->targets[n % STARTS] = target->addr;
    p->times[n % STARTS] = clock_ms;
    p->found[n % STARTS] = (*(uint32_t *)probe)++;
    if (p->start_status == PLB_OK && !p->later)
        player_report(p, n, p->result);
    return p->start_status;
}

static void player_cancel(void *state, void *probe, plb_token token)
{
    player *p = ((player_state *)state)->p;
    p->cancels++;
    *(uint32_t *)probe = 1000;
    if (p->done_in_cancel)
        plb_check_done(token, PLB_OK);
    plb_check_deadline(token, 1);
}

static void on_probe(void *user, const plb_backend_info *info, uint32_t check, const plb_probe_info *probe)
{
    stage *s = (stage *)user; /* the rig is its first member */
    (void)info;
    s->probes++;
    s->probe = *probe;
    s->probe_check = check;
    snprintf(s->text, sizeof s->text, "%s", probe->text);
    rig__call(&s->r);
}

static void begin(stage *s, size_t backend_count, size_t check_count)
{
    static const plb_check_ops ops = {"player",     sizeof(player_state), sizeof(uint32_t), player_open,
                                      player_close, player_start,         player_cancel};
    size_t i;
    memset(players, 0, sizeof players);
    memset(s, 0, sizeof *s);
    rig_begin(&s->r);
    memset(&s->r.desc.port, 0, sizeof s->r.desc.port);
    s->r.desc.port.clock = &test_clock;
    s->r.desc.discovery = feed_discovery(&s->f, false);
    s->r.desc.on_probe = on_probe;
    for (i = 0; i < PLAYERS; i++) {
        s->descs[i].p = &players[i];
        s->checks[i].ops = &ops;
        s->checks[i].desc = &s->descs[i];
    }
    s->r.desc.checks = s->checks;
    s->r.desc.check_count = check_count;
    for (i = 0; i < BACKENDS; i++) {
        backends[i] = rig_backend("10.0.0.1:80", 1);
        backends[i].addr.u.v4[2] = (uint8_t)(i >> 8);
        backends[i].addr.u.v4[3] = (uint8_t)i;
    }
    feed_set(&s->f, backends, backend_count);
    clock_ms = 1000000;
}

static uint32_t settle(stage *s)
{
    uint32_t delay;
    int polls = 0;
    do
        delay = plb_poll(s->r.lb);
    while (delay == 0 && ++polls < 10000);
    return delay;
}

static void pass(stage *s, uint32_t ms)
{
    uint64_t end = clock_ms + ms;
    for (;;) {
        uint32_t delay = settle(s);
        if (delay > end - clock_ms) {
            clock_ms = end;
            settle(s);
            return;
        }
        clock_ms += delay;
    }
}

static void update(stage *s, size_t count)
{
    feed_set(&s->f, backends, count);
    plb_update_now(s->r.lb);
    settle(s);
}

/* Lets everything be probed once, with these results. */
static void probe_all(stage *s, plb_status first, plb_status second)
{
    players[0].result = first;
    players[1].result = second;
    plb_check_now(s->r.lb);
    settle(s);
}

static uint32_t failing(stage *s, size_t backend)
{
    plb_backend_info info;
    memset(&info, 0, sizeof info);
    return plb_find(s->r.lb, &backends[backend].addr, 0, &info) == PLB_OK ? info.failing : 99;
}

static bool healthy(stage *s, size_t backend)
{
    plb_backend_info info;
    return plb_find(s->r.lb, &backends[backend].addr, 0, &info) == PLB_OK && info.healthy;
}

static plb_probe_info probe_of(stage *s, size_t backend, uint32_t check)
{
    plb_probe_info info;
    memset(&info, 0, sizeof info);
    plb_find_probe(s->r.lb, &backends[backend].addr, 0, check, &info);
    return info;
}

/* ---- what checks say together ---- */

TEST a_backend_is_healthy_while_all_of_its_checks_pass(void)
{
    static stage s;
    begin(&s, 1, 2);
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    settle(&s);
    probe_all(&s, PLB_ERR_REFUSED, PLB_OK);
    ASSERT_EQ(1u, failing(&s, 0));
    ASSERT_EQ(1u, s.r.flips);
    probe_all(&s, PLB_ERR_REFUSED, PLB_ERR_ANSWER);
    ASSERT_EQ(3u, failing(&s, 0));
    probe_all(&s, PLB_OK, PLB_ERR_ANSWER);
    ASSERT_EQ(2u, failing(&s, 0));
    ASSERT_FALSE(healthy(&s, 0));
    ASSERT_EQ(1u, s.r.flips); /* only the whole flips */
    probe_all(&s, PLB_OK, PLB_OK);
    ASSERT_EQ(0u, failing(&s, 0));
    ASSERT(healthy(&s, 0));
    ASSERT_EQ(2u, s.r.flips);
    ASSERT_EQ(2u, s.r.flip.flips);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST each_check_counts_by_itself(void)
{
    static stage s;
    begin(&s, 1, 2);
    s.checks[0].consecutive_failure = 3;
    s.checks[1].consecutive_success = 2;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    settle(&s);
    probe_all(&s, PLB_ERR_REFUSED, PLB_ERR_REFUSED);
    ASSERT_EQ(2u, failing(&s, 0));
    probe_all(&s, PLB_ERR_REFUSED, PLB_OK);
    ASSERT_EQ(2u, failing(&s, 0));
    probe_all(&s, PLB_ERR_REFUSED, PLB_OK);
    ASSERT_EQ(1u, failing(&s, 0));
    ASSERT_EQ(1u, probe_of(&s, 0, 0).passed);
    ASSERT_EQ(3u, probe_of(&s, 0, 0).failed);
    ASSERT_EQ(3u, probe_of(&s, 0, 1).passed);
    ASSERT_EQ(1u, probe_of(&s, 0, 1).failed);
    ASSERT_FALSE(probe_of(&s, 0, 0).passing);
    ASSERT(probe_of(&s, 0, 1).passing);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST one_that_starts_unhealthy_waits_for_all_checks(void)
{
    static stage s;
    begin(&s, 1, 3);
    s.r.desc.start_unhealthy = true;
    s.checks[2].by_name = true; /* it does not have this one */
    players[0].later = players[1].later = true;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    settle(&s);
    ASSERT_EQ(3u, failing(&s, 0));
    player_report(&players[1], 0, PLB_OK);
    settle(&s);
    ASSERT_EQ(1u, failing(&s, 0));
    ASSERT_EQ(0u, s.r.first_checks);
    ASSERT_EQ(0u, s.r.flips);
    player_report(&players[0], 0, PLB_OK);
    settle(&s);
    ASSERT(healthy(&s, 0));
    ASSERT_EQ(1u, s.r.flips);
    ASSERT_EQ(1u, s.r.first_checks);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST a_balancer_has_eight_checks_at_most(void)
{
    static stage s;
    begin(&s, 1, 8);
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    settle(&s);
    ASSERT_EQ(8u, s.probes);
    ASSERT_EQ(0, rig_end(&s.r));
    begin(&s, 1, 9);
    ASSERT_EQ(PLB_ERR_ARGUMENT, rig_create(&s.r));
    ASSERT_EQ(0, rig_end(&s.r));
    begin(&s, 1, 8);
    s.r.desc.check = s.checks[8]; /* the first is one of them */
    ASSERT_EQ(PLB_ERR_ARGUMENT, rig_create(&s.r));
    s.r.desc.check_count = 7;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    settle(&s);
    ASSERT_EQ(1u, players[8].starts);
    ASSERT_EQ(0, rig_end(&s.r));
    ASSERT_EQ(players[8].opens, players[8].closes);
    PASS();
}

TEST a_check_without_ops_is_refused(void)
{
    static stage s;
    begin(&s, 1, 2);
    s.checks[1].ops = NULL;
    ASSERT_EQ(PLB_ERR_ARGUMENT, rig_create(&s.r));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST a_set_may_need_sixteen_million_tasks_and_no_more(void)
{
    static stage s;
    begin(&s, 1, 8);
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    ASSERT_EQ(PLB_ERR_LIMIT, plb__schedule_reserve(s.r.lb, (1u << 21) + 1));
    ASSERT_EQ(PLB_ERR_LIMIT, plb__schedule_reserve(s.r.lb, UINT32_MAX));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* ---- which backend has which ---- */

TEST backends_have_the_checks_they_name_or_all_that_need_no_name(void)
{
    static stage s;
    begin(&s, 3, 3);
    s.checks[1].by_name = true;
    backends[1].checks = 2;
    backends[2].checks = 1 + 2 + 4;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    settle(&s);
    ASSERT_EQ(2u, players[0].starts);
    ASSERT_EQ(2u, players[1].starts);
    ASSERT_EQ(2u, players[2].starts);
    ASSERT_EQ(0, plb_addr_compare(&backends[1].addr, &players[1].targets[0]));
    ASSERT_EQ(1u, s.r.first_checks);
    backends[0].checks = 1u << PLB_CHECKS_MAX;
    update(&s, 3);
    ASSERT_EQ(PLB_ERR_ARGUMENT, s.r.update.status);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST find_probe_knows_what_there_is(void)
{
    plb_addr stranger = sim_addr("10.9.9.9:80");
    plb_probe_info info;
    static stage s;
    begin(&s, 1, 2);
    s.checks[1].by_name = true;
    players[0].later = true;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    settle(&s);
    ASSERT_EQ(PLB_ERR_ADDRESS, plb_find_probe(s.r.lb, &stranger, 0, 0, &info));
    ASSERT_EQ(PLB_ERR_ARGUMENT, plb_find_probe(s.r.lb, &backends[0].addr, 0, 1, &info));
    ASSERT_EQ(PLB_ERR_ARGUMENT, plb_find_probe(s.r.lb, &backends[0].addr, 0, 2, &info));
    ASSERT_EQ(PLB_OK, plb_find_probe(s.r.lb, &backends[0].addr, 0, 0, &info));
    ASSERT_EQ(PLB_AGAIN, info.status);
    clock_ms += 7;
    player_report(&players[0], 0, PLB_ERR_ANSWER);
    settle(&s);
    ASSERT_EQ(PLB_OK, plb_find_probe(s.r.lb, &backends[0].addr, 0, 0, &info));
    ASSERT_EQ(PLB_ERR_ANSWER, info.status);
    ASSERT_EQ(7000u, info.latency_us);
    ASSERT_EQ(1u, info.failed);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST a_check_that_a_backend_gets_is_due_at_once(void)
{
    static stage s;
    begin(&s, 2, 2);
    s.checks[1].by_name = true;
    s.checks[1].every_ms = 1000;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    settle(&s);
    ASSERT_EQ(0u, players[1].starts);
    backends[1].checks = 3;
    update(&s, 2);
    ASSERT_EQ(0u, s.r.changes - 1); /* it is the same set */
    ASSERT_EQ(1u, players[1].starts);
    ASSERT_EQ(1u, players[0].starts - 1); /* the other one is not disturbed */
    backends[1].checks = 0;
    update(&s, 2);
    pass(&s, 5000);
    ASSERT_EQ(1u, players[1].starts);
    backends[1].checks = 3;
    update(&s, 2);
    ASSERT_EQ(2u, players[1].starts);
    pass(&s, 1000);
    ASSERT_EQ(3u, players[1].starts);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST a_check_that_goes_takes_its_failure_with_it(void)
{
    static stage s;
    begin(&s, 1, 2);
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    settle(&s);
    probe_all(&s, PLB_ERR_REFUSED, PLB_ERR_ANSWER);
    backends[0].checks = 1;
    update(&s, 1);
    ASSERT_EQ(1u, failing(&s, 0));
    ASSERT_EQ(1u, s.r.flips);
    backends[0].checks = 2;
    update(&s, 1);
    ASSERT_EQ(2u, failing(&s, 0)); /* the one that came back was probed at once */
    ASSERT_EQ(3u, s.r.flips);      /* healthy for a moment */
    probe_all(&s, PLB_OK, PLB_OK);
    ASSERT(healthy(&s, 0));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST a_backend_that_loses_the_check_that_fails_flips(void)
{
    static stage s;
    begin(&s, 1, 2);
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    settle(&s);
    probe_all(&s, PLB_OK, PLB_ERR_ANSWER);
    ASSERT_EQ(1u, s.r.flips);
    backends[0].checks = 1;
    update(&s, 1);
    ASSERT(healthy(&s, 0));
    ASSERT_EQ(2u, s.r.flips);
    ASSERT_EQ(PLB_OK, s.r.flip_status);
    ASSERT(s.r.flip.healthy);
    ASSERT_EQ(2u, s.r.flip.flips);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST a_result_of_a_check_that_went_is_dropped(void)
{
    static stage s;
    begin(&s, 1, 2);
    players[1].later = true;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    settle(&s);
    ASSERT_EQ(0u, s.r.first_checks);
    backends[0].checks = 1;
    update(&s, 1);
    ASSERT_EQ(1u, s.r.first_checks); /* nothing is waited for any more */
    player_report(&players[1], 0, PLB_ERR_ANSWER);
    settle(&s);
    ASSERT(healthy(&s, 0));
    ASSERT_EQ(1u, s.probes);
    backends[0].checks = 0;
    update(&s, 1);
    ASSERT_EQ(2u, players[1].starts);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST a_check_that_goes_takes_its_advice_with_it(bool off)
{
    plb_report said;
    plb_backend_info info;
    static stage s;
    begin(&s, 1, 2);
    players[1].later = true;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    settle(&s);
    memset(&said, 0, sizeof said);
    said.has_share = true;
    said.share = 100;
    said.enablement = off ? PLB_ENABLEMENT_OFF : PLB_ENABLEMENT_KEEP;
    plb_check_report(players[1].tokens[0], &said);
    settle(&s);
    ASSERT_EQ(PLB_OK, plb_find(s.r.lb, &backends[0].addr, 0, &info));
    ASSERT_EQ(100, info.share);
    ASSERT_EQ(off, info.advised_off);
    ASSERT_EQ(!off, info.ready);
    backends[0].checks = 1;
    update(&s, 1);
    ASSERT_EQ(PLB_OK, plb_find(s.r.lb, &backends[0].addr, 0, &info));
    ASSERT_EQ(255, info.share);
    ASSERT_FALSE(info.advised_off);
    ASSERT(info.ready);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* ---- what a probe keeps ---- */

TEST kept_bytes_come_back_at_the_next_start(void)
{
    static stage s;
    begin(&s, 2, 1);
    players[0].keep = true;
    s.checks[0].every_ms = 100;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    pass(&s, 250);
    ASSERT_EQ(6u, players[0].starts);
    ASSERT_EQ(0u, players[0].found[0]);
    ASSERT_EQ(1u, players[0].found[2]);
    ASSERT_EQ(2u, players[0].found[4]);
    players[0].keep = false; /* from now on they are given back */
    pass(&s, 200);
    ASSERT_EQ(3u, players[0].found[6]);
    ASSERT_EQ(0u, players[0].found[8]);
    ASSERT_EQ(0u, players[0].cancels);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* What is kept is cancelled, once, when: 0 the balancer ends, 1 the backend leaves, 2 the check goes, 3 it ends while
   the report waits to be read. */
TEST what_was_kept_is_cancelled_once(int when)
{
    static stage s;
    begin(&s, 2, 2);
    s.checks[1].by_name = true;
    players[0].keep = true;
    players[0].later = when == 3;
    players[0].done_in_cancel = true; /* which is ignored */
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    settle(&s);
    ASSERT_EQ(2u, players[0].starts);
    if (when == 1)
        update(&s, 1);
    backends[1].checks = 2;
    if (when == 2)
        update(&s, 2);
    if (when == 3)
        player_report(&players[0], 0, PLB_OK);
    ASSERT_EQ(when == 1 || when == 2 ? 1u : 0u, players[0].cancels);
    ASSERT_EQ(0, rig_end(&s.r));
    ASSERT_EQ(2u, players[0].cancels);
    PASS();
}

TEST what_a_probe_keeps_of_a_backend_that_left_is_cancelled(void)
{
    static stage s;
    begin(&s, 2, 1);
    players[0].keep = players[0].later = true;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    settle(&s);
    update(&s, 1);
    player_report(&players[0], 1, PLB_OK);
    settle(&s);
    ASSERT_EQ(1u, players[0].cancels);
    ASSERT_EQ(0, rig_end(&s.r));
    ASSERT_EQ(2u, players[0].cancels); /* and the one that was still running */
    PASS();
}

TEST probes_leave_no_memory_behind_between_rounds(void)
{
    size_t bytes, peak;
    static stage s;
    begin(&s, 1000, 2);
    s.r.desc.parallel_checks = PLB_UNLIMITED;
    players[0].later = players[1].later = true;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    settle(&s);
    for (peak = 0; peak < 1000; peak++) {
        player_report(&players[0], (uint32_t)peak, PLB_OK);
        player_report(&players[1], (uint32_t)peak, PLB_OK);
    }
    settle(&s);
    bytes = s.r.memory.live_bytes;
    players[0].later = players[1].later = false;
    probe_all(&s, PLB_OK, PLB_OK);
    ASSERT_EQ(bytes, s.r.memory.live_bytes); /* tickets are used again, all else went back */
    update(&s, 1);
    plb_poll(s.r.lb);
    ASSERT_LT(s.r.memory.live_bytes, bytes);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* ---- reports ---- */

TEST a_report_says_code_and_text_cut_to_size(void)
{
    char longer[3 * PLB_REPORT_TEXT];
    plb_report said;
    static stage s;
    begin(&s, 1, 1);
    players[0].later = true;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    settle(&s);
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    memset(&said, 0, sizeof said);
    said.status = PLB_ERR_ANSWER;
    said.code = 503;
    said.text = longer;
    said.keep = true;
    plb_check_report(players[0].tokens[0], &said);
    memset(longer, 'y', sizeof longer - 1); /* it was copied */
    settle(&s);
    ASSERT_EQ(PLB_ERR_ANSWER, s.probe.status);
    ASSERT_EQ(503u, s.probe.code);
    ASSERT_EQ((size_t)PLB_REPORT_TEXT - 1, strlen(s.text));
    ASSERT_EQ('x', s.text[PLB_REPORT_TEXT - 2]);
    ASSERT(rig_logged(&s.r, "xxxx"));
    plb_check_now(s.r.lb);
    settle(&s);
    plb_check_done(players[0].tokens[1], PLB_ERR_REFUSED);
    settle(&s);
    ASSERT_STR_EQ(plb_status_text(PLB_ERR_REFUSED), s.text); /* nothing is left of the one before */
    ASSERT_EQ(0u, s.probe.code);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST only_the_first_completion_counts(void)
{
    static stage s;
    begin(&s, 1, 1);
    players[0].later = true;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    settle(&s);
    player_report(&players[0], 0, PLB_ERR_ANSWER);
    player_report(&players[0], 0, PLB_OK);
    settle(&s);
    player_report(&players[0], 0, PLB_OK);
    settle(&s);
    ASSERT_EQ(1u, s.probes);
    ASSERT_FALSE(healthy(&s, 0));
    plb_check_now(s.r.lb);
    settle(&s);
    player_report(&players[0], 0, PLB_OK); /* the token of the start before */
    settle(&s);
    ASSERT_EQ(1u, s.probes);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST a_status_that_is_no_result_counts_for_nothing(plb_status status)
{
    static stage s;
    begin(&s, 1, 2);
    players[0].result = status;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    settle(&s);
    ASSERT(healthy(&s, 0));
    ASSERT_EQ(0u, s.r.first_checks);
    players[0].result = PLB_OK;
    pass(&s, 1000); /* it is tried again in a second */
    ASSERT_EQ(2u, players[0].starts);
    ASSERT_EQ(1u, players[1].starts);
    ASSERT_EQ(1u, s.r.first_checks);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST a_deadline_can_be_moved_while_the_probe_runs(void)
{
    static stage s;
    begin(&s, 1, 1);
    players[0].later = true;
    s.checks[0].timeout_ms = 100;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    settle(&s);
    plb_check_deadline(players[0].tokens[0], 300);
    pass(&s, 299);
    ASSERT_EQ(0u, s.probes);
    pass(&s, 1);
    ASSERT_EQ(1u, players[0].cancels);
    ASSERT_EQ(PLB_ERR_TIMEOUT, s.probe.status);
    plb_check_deadline(players[0].tokens[0], 10);
    plb_check_now(s.r.lb);
    settle(&s);
    plb_check_deadline(players[0].tokens[0], 10); /* not the one that runs now */
    pass(&s, 99);
    ASSERT_EQ(1u, players[0].cancels);
    pass(&s, 1);
    ASSERT_EQ(2u, players[0].cancels);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* ---- intervals ---- */

static uint32_t starts_within(stage *s, player *p, uint32_t ms)
{
    uint32_t before = p->starts;
    pass(s, ms);
    return p->starts - before;
}

TEST each_check_has_intervals_of_its_own(void)
{
    static stage s;
    begin(&s, 1, 3);
    s.r.desc.check_every_ms = 1000;
    s.checks[0].every_ms = 10;
    s.checks[1].every_ms = 25;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    pass(&s, 999);
    ASSERT_EQ(100u, players[0].starts);
    ASSERT_EQ(40u, players[1].starts);
    ASSERT_EQ(1u, players[2].starts);
    pass(&s, 1);
    ASSERT_EQ(2u, players[2].starts);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST intervals_follow_the_state(void)
{
    static stage s;
    begin(&s, 1, 1);
    s.checks[0].every_ms = 1000;
    s.checks[0].fast_every_ms = 10;
    s.checks[0].down_every_ms = 100;
    s.checks[0].consecutive_failure = 3;
    s.checks[0].consecutive_success = 2;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    settle(&s);
    players[0].result = PLB_ERR_REFUSED;
    ASSERT_EQ(1u, starts_within(&s, &players[0], 1000)); /* the first failure */
    ASSERT_EQ(1u, starts_within(&s, &players[0], 10));   /* the second */
    ASSERT(healthy(&s, 0));
    ASSERT_EQ(1u, starts_within(&s, &players[0], 10)); /* the third */
    ASSERT_FALSE(healthy(&s, 0));
    ASSERT_EQ(0u, starts_within(&s, &players[0], 99));
    players[0].result = PLB_OK;
    ASSERT_EQ(1u, starts_within(&s, &players[0], 1));
    ASSERT_EQ(1u, starts_within(&s, &players[0], 10)); /* it flips */
    ASSERT(healthy(&s, 0));
    ASSERT_EQ(0u, starts_within(&s, &players[0], 999));
    ASSERT_EQ(1u, starts_within(&s, &players[0], 1));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST a_backend_may_have_an_interval_of_its_own(void)
{
    static stage s;
    begin(&s, 2, 1);
    s.checks[0].every_ms = 1000;
    backends[1].check_every_ms = 100;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    settle(&s);
    ASSERT_EQ(11u, starts_within(&s, &players[0], 1000));
    backends[1].check_every_ms = 500;
    update(&s, 2);
    ASSERT_EQ(1u, starts_within(&s, &players[0], 100)); /* which was due already */
    ASSERT_EQ(0u, starts_within(&s, &players[0], 499));
    ASSERT_EQ(1u, starts_within(&s, &players[0], 1));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST an_interval_may_come_where_there_was_none(void)
{
    static stage s;
    begin(&s, 1, 1);
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    pass(&s, 10000);
    ASSERT_EQ(1u, players[0].starts);
    backends[0].check_every_ms = 100;
    update(&s, 1);
    ASSERT_EQ(2u, players[0].starts);
    ASSERT_EQ(10u, starts_within(&s, &players[0], 1000));
    backends[0].check_every_ms = 0;
    update(&s, 1);
    ASSERT_EQ(1u, starts_within(&s, &players[0], 10000));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST without_a_clock_a_backends_interval_means_nothing(void)
{
    static stage s;
    begin(&s, 1, 1);
    s.r.desc.port.clock = NULL;
    backends[0].check_every_ms = 100;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    ASSERT_EQ(PLB_FOREVER, settle(&s));
    ASSERT_EQ(1u, players[0].starts);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST jitter_spreads_each_interval_evenly(uint32_t percent)
{
    uint64_t sum = 0, least = UINT64_MAX, most = 0, spread = 1000 * percent / 100;
    uint32_t n, same = 0;
    static stage s;
    begin(&s, 1, 1);
    s.checks[0].every_ms = 1000;
    s.checks[0].jitter_percent = percent;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    while (players[0].starts < 4001)
        pass(&s, 1000);
    for (n = 1; n <= 4000; n++) {
        uint64_t interval = players[0].times[n] - players[0].times[n - 1];
        sum += interval;
        least = interval < least ? interval : least;
        most = interval > most ? interval : most;
        same += n > 1 && interval == players[0].times[n - 1] - players[0].times[n - 2];
    }
    ASSERT(least >= (spread < 1000 ? 1000 - spread : 1) && least <= 1000 - spread + spread / 20);
    ASSERT(most <= 1000 + spread && most >= 1000 + spread - spread / 20);
    ASSERT(sum > 4000u * 970 && sum < 4000u * 1030);
    ASSERT_LT(same, 4000u / 10);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST balancers_with_jitter_are_not_in_step(void)
{
    uint32_t i, together = 0;
    static stage s;
    begin(&s, 200, 1);
    s.r.desc.parallel_checks = PLB_UNLIMITED;
    s.checks[0].every_ms = 1000;
    s.checks[0].jitter_percent = 20;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    pass(&s, 10000);
    for (i = players[0].starts - 200; i < players[0].starts; i++)
        together += players[0].times[i] == players[0].times[i - 1];
    ASSERT_LT(together, 100u);
    ASSERT_EQ(0, rig_end(&s.r));
    begin(&s, 1, 1);
    s.checks[0].jitter_percent = 101;
    ASSERT_EQ(PLB_ERR_ARGUMENT, rig_create(&s.r));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST a_clock_that_jumps_makes_each_check_due_once(void)
{
    static stage s;
    begin(&s, 10, 2);
    s.checks[0].every_ms = 10;
    s.checks[1].every_ms = 1000;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    settle(&s);
    clock_ms += 1000000;
    settle(&s);
    ASSERT_EQ(20u, players[0].starts);
    ASSERT_EQ(20u, players[1].starts);
    clock_ms -= 500000; /* it stands still for the balancer */
    settle(&s);
    ASSERT_EQ(40u, players[0].starts + players[1].starts);
    pass(&s, 10);
    ASSERT_EQ(30u, players[0].starts);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* ---- order and limits ---- */

TEST what_is_due_together_starts_in_set_order(void)
{
    uint32_t i;
    static stage s;
    begin(&s, 200, 2);
    s.r.desc.check_every_ms = 100;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    pass(&s, 450);
    ASSERT_EQ(1000u, players[0].starts);
    for (i = 0; i < 1000; i++) {
        ASSERT_EQ(0, plb_addr_compare(&backends[i % 200].addr, &players[0].targets[i]));
        ASSERT_EQ(0, plb_addr_compare(&backends[i % 200].addr, &players[1].targets[i]));
    }
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST the_limit_is_for_all_checks_together(void)
{
    uint32_t n;
    static stage s;
    begin(&s, 20, 3);
    s.r.desc.parallel_checks = 5;
    for (n = 0; n < 3; n++)
        players[n].later = true;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    for (n = 0; n < 60; n++) {
        settle(&s);
        ASSERT_EQ(n + 5 < 60 ? n + 5 : 60, players[0].starts + players[1].starts + players[2].starts);
        player_report(&players[n % 3], n / 3, PLB_OK);
    }
    settle(&s);
    ASSERT_EQ(1u, s.r.first_checks);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST no_number_of_calls_keeps_the_last_ones_waiting(void)
{
    uint32_t n;
    static stage s;
    begin(&s, 50, 1);
    s.r.desc.parallel_checks = 1;
    players[0].later = true;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    for (n = 0; n < 50; n++) {
        settle(&s);
        clock_ms++;
        plb_check_now(s.r.lb);
        plb_poll(s.r.lb);
        player_report(&players[0], n, PLB_OK);
    }
    settle(&s);
    ASSERT_EQ(1u, s.r.first_checks); /* each had its turn */
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST check_now_holds_though_a_probe_was_impossible(bool timed)
{
    static stage s;
    begin(&s, 1, 1);
    if (!timed)
        s.r.desc.port.clock = NULL;
    players[0].later = true;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    settle(&s);
    plb_check_now(s.r.lb);
    settle(&s);
    player_report(&players[0], 0, PLB_ERR_LIMIT);
    settle(&s);
    ASSERT_EQ(2u, players[0].starts);
    player_report(&players[0], 1, PLB_OK);
    ASSERT_EQ(PLB_FOREVER, settle(&s));
    ASSERT_EQ(2u, players[0].starts);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* Thousands that end at once: by their time-outs, or by their completions. */
TEST one_poll_sees_to_some_hundreds_that_end(bool completions)
{
    uint32_t i, before, most = 0;
    static stage s;
    begin(&s, BACKENDS, 1);
    s.r.desc.parallel_checks = PLB_UNLIMITED;
    players[0].later = true;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    settle(&s);
    ASSERT_EQ((uint32_t)BACKENDS, players[0].starts);
    if (completions)
        for (i = 0; i < BACKENDS; i++)
            player_report(&players[0], i, PLB_OK);
    clock_ms += completions ? 0 : 1000;
    do {
        before = s.probes;
        i = plb_poll(s.r.lb);
        most = s.probes - before > most ? s.probes - before : most;
    } while (i == 0);
    ASSERT_EQ((uint32_t)BACKENDS, s.probes);
    ASSERT_LT(most, 1000u);
    ASSERT_EQ(1u, s.r.first_checks);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST a_balancer_ends_with_completions_that_nobody_has_seen(void)
{
    uint32_t i;
    static stage s;
    begin(&s, BACKENDS, 1);
    s.r.desc.parallel_checks = PLB_UNLIMITED;
    players[0].later = players[0].keep = true;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    settle(&s);
    for (i = 0; i < BACKENDS; i++)
        player_report(&players[0], i, PLB_OK);
    plb_poll(s.r.lb);
    ASSERT_LT(s.probes, (uint32_t)BACKENDS);
    ASSERT_EQ(0, rig_end(&s.r));
    ASSERT_EQ((uint32_t)BACKENDS, players[0].cancels);
    PASS();
}

/* ---- schedules across changes of the set ---- */

static plb_status refuse_build;

static plb_status failing_build(void *state, const plb_view *view, const plb_view *old_view, const void *old_table,
                                void **table)
{
    (void)state, (void)view, (void)old_view, (void)old_table;
    *table = NULL;
    return refuse_build;
}

static void no_discard(void *state, void *table)
{
    (void)state, (void)table;
}

TEST the_old_set_keeps_its_schedule_when_an_update_fails(void)
{
    plb_strategy_ops ops = *plb_round_robin().ops;
    uint32_t i;
    static stage s;
    begin(&s, 300, 1);
    ops.build = failing_build; /* selects nothing, which nobody asks of it here */
    ops.discard = no_discard;
    ops.state_size = 4096;
    ops.open = NULL;
    ops.close = NULL;
    refuse_build = PLB_OK;
    s.r.desc.strategy.ops = &ops;
    s.r.desc.parallel_checks = PLB_UNLIMITED;
    s.checks[0].every_ms = 100;
    players[0].later = true;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    settle(&s); /* all of them are in flight, so that the schedule is empty */
    refuse_build = PLB_ERR_POINTS;
    update(&s, 10);
    ASSERT_EQ(PLB_ERR_POINTS, s.r.update.status);
    for (i = 0; i < 300; i++)
        player_report(&players[0], i, PLB_OK);
    settle(&s);
    clock_ms += 100;
    settle(&s);
    ASSERT_EQ(600u, players[0].starts);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

#define MODEL 40

/* The model: what is in the set is probed when it comes and every `every` since its last start, neither earlier nor
   later, whatever comes and goes beside it. */
TEST set_changes_neither_lose_nor_double_nor_delay_a_probe(uint64_t seed)
{
    static const uint32_t every[2] = {70, 110};
    static uint64_t due[MODEL][2];
    bool in_set[MODEL] = {false};
    plb_backend set[MODEL];
    uint32_t seen[2] = {0, 0};
    uint64_t random = seed;
    int round, c, i;
    static stage s;
    begin(&s, 0, 2);
    s.r.desc.parallel_checks = PLB_UNLIMITED;
    s.checks[0].every_ms = every[0];
    s.checks[1].every_ms = every[1];
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    for (round = 0; round < 400; round++) {
        size_t count = 0;
        for (i = 0; i < MODEL; i++) { /* some come, some go; sometimes all of it changes */
            random = plb__mix(random + 1);
            if (random % (round % 20 == 0 ? 2 : 12) == 0) {
                in_set[i] = !in_set[i];
                due[i][0] = due[i][1] = clock_ms;
            }
            if (!in_set[i])
                continue;
            set[count] = backends[i];
            set[count++].priority = (uint32_t)(random >> 32) % 2; /* they move about, too */
        }
        feed_set(&s.f, set, count);
        plb_update_now(s.r.lb);
        settle(&s);
        pass(&s, (uint32_t)(plb__mix(random) % 60));
        for (c = 0; c < 2; c++) {
            for (; seen[c] < players[c].starts; seen[c]++) {
                i = players[c].targets[seen[c] % STARTS].u.v4[3];
                ASSERT(in_set[i]);
                ASSERT_EQ(due[i][c], players[c].times[seen[c] % STARTS]);
                due[i][c] += every[c];
            }
            for (i = 0; i < MODEL; i++)
                ASSERT(!in_set[i] || due[i][c] > clock_ms);
        }
    }
    ASSERT_GT(players[0].starts, 500u);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* ---- callbacks, memory ---- */

static void meddle(rig *r)
{
    stage *s = (stage *)r;
    uint32_t i;
    plb_check_now(r->lb);
    plb_update_now(r->lb);
    for (i = 0; i < 5; i++)
        plb_set_enabled(r->lb, &backends[i].addr, 0, s->probes % 2 == 0);
    for (i = 1; i <= 20 && i <= players[1].starts; i++) {
        plb_check_deadline(players[1].tokens[players[1].starts - i], 1);
        player_report(&players[1], players[1].starts - i, i % 2 == 0 ? PLB_OK : PLB_ERR_ANSWER);
    }
    s->f.count = 1 + s->meddled % 5;
    backends[0].checks = s->meddled % 3;
    if (++s->meddled == 2000)
        r->in_callback = NULL;
}

TEST callbacks_may_meddle_with_everything(void)
{
    static stage s;
    begin(&s, 5, 2);
    s.r.in_callback = meddle;
    s.r.desc.check_every_ms = 5;
    players[0].keep = players[1].keep = players[1].later = true;
    players[0].result = PLB_ERR_REFUSED;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    pass(&s, 2000);
    ASSERT_EQ(2000u, s.meddled);
    ASSERT_GT(s.probes, 100u);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* Creates, probes with two checks that keep, changes the set, ends; the n-th allocation and the next one fail. */
TEST any_allocation_may_fail(void)
{
    uint64_t n;
    bool reached = true;
    for (n = 1; reached && n < 2000; n++) {
        static stage s;
        begin(&s, 12, 2);
        s.r.desc.name = "balancer";
        players[0].keep = true;
        players[1].result = PLB_ERR_REFUSED;
        s.r.memory.fail_at = n;
        s.r.memory.fail_count = 2;
        if (rig_create(&s.r) == PLB_OK) {
            pass(&s, 100);
            probe_all(&s, PLB_OK, PLB_ERR_REFUSED);
            update(&s, 5);
            pass(&s, 100);
            backends[3].checks = 1;
            update(&s, 14);
            pass(&s, 5000);
            ASSERT_EQ(14u, s.r.update.backends); /* it came about in the end */
            ASSERT_EQ(1u, s.r.first_checks);
            ASSERT_FALSE(healthy(&s, 4));
            ASSERT(healthy(&s, 3));
        }
        reached = s.r.memory.calls >= n;
        ASSERT_EQ(0, rig_end(&s.r));
        ASSERT_EQ(players[0].opens, players[0].closes);
    }
    ASSERT_FALSE(reached);
    ASSERT_GT(n, 60u);
    PASS();
}

#ifndef PLB_NO_THREADS
static void *report_all(void *user)
{
    uint32_t n;
    (void)user;
    for (n = 0; n < players[0].starts; n++) {
        plb_report said;
        memset(&said, 0, sizeof said);
        said.status = n % 2 == 0 ? PLB_OK : PLB_ERR_ANSWER;
        said.text = "from afar";
        said.keep = true;
        plb_check_report(players[0].tokens[n], &said);
    }
    return NULL;
}

TEST reports_may_come_from_another_thread(void)
{
    pthread_t thread;
    static stage s;
    begin(&s, 300, 1);
    s.r.desc.parallel_checks = PLB_UNLIMITED;
    players[0].later = true;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    settle(&s);
    ASSERT_EQ(0, pthread_create(&thread, NULL, report_all, NULL));
    while (s.probes < 300)
        plb_poll(s.r.lb);
    pthread_join(thread, NULL);
    ASSERT_STR_EQ("from afar", s.text);
    ASSERT_EQ(150u, s.r.flips);
    ASSERT_EQ(0, rig_end(&s.r));
    ASSERT_EQ(300u, players[0].cancels); /* what was kept */
    PASS();
}
#endif

SUITE(checks)
{
#ifndef PLB_NO_THREADS
    RUN_TEST(reports_may_come_from_another_thread);
#endif
    RUN_TEST(a_backend_is_healthy_while_all_of_its_checks_pass);
    RUN_TEST(each_check_counts_by_itself);
    RUN_TEST(one_that_starts_unhealthy_waits_for_all_checks);
    RUN_TEST(a_balancer_has_eight_checks_at_most);
    RUN_TEST(a_check_without_ops_is_refused);
    RUN_TEST(a_set_may_need_sixteen_million_tasks_and_no_more);
    RUN_TEST(backends_have_the_checks_they_name_or_all_that_need_no_name);
    RUN_TEST(find_probe_knows_what_there_is);
    RUN_TEST(a_check_that_a_backend_gets_is_due_at_once);
    RUN_TEST(a_check_that_goes_takes_its_failure_with_it);
    RUN_TEST(a_backend_that_loses_the_check_that_fails_flips);
    RUN_TEST(a_result_of_a_check_that_went_is_dropped);
    RUN_TESTp(a_check_that_goes_takes_its_advice_with_it, false);
    RUN_TESTp(a_check_that_goes_takes_its_advice_with_it, true);
    RUN_TEST(kept_bytes_come_back_at_the_next_start);
    RUN_TESTp(what_was_kept_is_cancelled_once, 0);
    RUN_TESTp(what_was_kept_is_cancelled_once, 1);
    RUN_TESTp(what_was_kept_is_cancelled_once, 2);
    RUN_TESTp(what_was_kept_is_cancelled_once, 3);
    RUN_TEST(what_a_probe_keeps_of_a_backend_that_left_is_cancelled);
    RUN_TEST(probes_leave_no_memory_behind_between_rounds);
    RUN_TEST(a_report_says_code_and_text_cut_to_size);
    RUN_TEST(only_the_first_completion_counts);
    RUN_TESTp(a_status_that_is_no_result_counts_for_nothing, PLB_AGAIN);
    RUN_TESTp(a_status_that_is_no_result_counts_for_nothing, PLB_STATUS_COUNT);
    RUN_TEST(a_deadline_can_be_moved_while_the_probe_runs);
    RUN_TEST(each_check_has_intervals_of_its_own);
    RUN_TEST(intervals_follow_the_state);
    RUN_TEST(a_backend_may_have_an_interval_of_its_own);
    RUN_TEST(an_interval_may_come_where_there_was_none);
    RUN_TEST(without_a_clock_a_backends_interval_means_nothing);
    RUN_TESTp(jitter_spreads_each_interval_evenly, 20);
    RUN_TESTp(jitter_spreads_each_interval_evenly, 100);
    RUN_TEST(balancers_with_jitter_are_not_in_step);
    RUN_TEST(a_clock_that_jumps_makes_each_check_due_once);
    RUN_TEST(what_is_due_together_starts_in_set_order);
    RUN_TEST(the_limit_is_for_all_checks_together);
    RUN_TEST(no_number_of_calls_keeps_the_last_ones_waiting);
    RUN_TESTp(check_now_holds_though_a_probe_was_impossible, false);
    RUN_TESTp(check_now_holds_though_a_probe_was_impossible, true);
    RUN_TESTp(one_poll_sees_to_some_hundreds_that_end, false);
    RUN_TESTp(one_poll_sees_to_some_hundreds_that_end, true);
    RUN_TEST(a_balancer_ends_with_completions_that_nobody_has_seen);
    RUN_TEST(the_old_set_keeps_its_schedule_when_an_update_fails);
    RUN_TESTp(set_changes_neither_lose_nor_double_nor_delay_a_probe, 1);
    RUN_TESTp(set_changes_neither_lose_nor_double_nor_delay_a_probe, 2);
    RUN_TEST(callbacks_may_meddle_with_everything);
    RUN_TEST(any_allocation_may_fail);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(checks);
    GREATEST_MAIN_END();
}
