/* The schedule: when discoveries and rounds of checks start, and what plb_poll asks for. The clock is a variable, and
   nothing wakes anybody: what the returned delay does not ask for does not happen. */
#include "../pingora_lb.h"
#define SIM_IMPLEMENTATION
#include "sim.h"
#include <greatest.h>
#include "rig.h"

#define BACKENDS 200

static uint64_t clock_ms;
static uint32_t log_ms; /* what each line of the log takes */
static bool clock_wraps;

static uint64_t read_clock(void *self)
{
    (void)self;
    return clock_wraps ? (uint32_t)clock_ms : clock_ms;
}

static const plb_clock test_clock = {NULL, read_clock, NULL};
static plb_backend backends[BACKENDS];

/* A balancer of `count` backends whose discovery and probes are played by hand; they answer at once unless told. */
static void begin(rig *r, feed *f, prober *p, size_t count)
{
    size_t i;
    rig_begin(r);
    memset(f, 0, sizeof *f);
    memset(p, 0, sizeof *p);
    memset(&r->desc.port, 0, sizeof r->desc.port);
    r->desc.port.clock = &test_clock;
    r->desc.discovery = feed_discovery(f, false);
    r->desc.check = prober_check(p);
    for (i = 0; i < BACKENDS; i++) {
        backends[i] = rig_backend("10.0.0.1:80", 1);
        backends[i].addr.u.v4[2] = (uint8_t)i;
    }
    feed_set(f, backends, count);
    clock_ms = 1000000;
    clock_wraps = false;
    log_ms = 0;
}

/* Polls as a loop would, until plb_poll wants to sleep; returns for how long. */
static uint32_t settle(rig *r)
{
    uint32_t delay;
    int polls = 0;
    do
        delay = plb_poll(r->lb);
    while (delay == 0 && ++polls < 1000);
    return delay;
}

/* Lets `ms` go by, polling only when plb_poll asked for it, at the end too. */
static void pass(rig *r, uint32_t ms)
{
    uint64_t end = clock_ms + ms;
    for (;;) {
        uint32_t delay = settle(r);
        if (delay > end - clock_ms) {
            clock_ms = end;
            settle(r);
            return;
        }
        clock_ms += delay;
    }
}

/* How often anything was started or said. */
static uint32_t events(const rig *r, const feed *f, const prober *p)
{
    return f->starts + f->cancels + p->starts + p->cancels + r->updates + r->changes + r->flips + r->first_checks;
}

/* ---- frequencies ---- */

TEST without_frequencies_all_happens_once(void)
{
    rig r;
    feed f;
    prober p;
    begin(&r, &f, &p, 3);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_EQ(1, f.starts); /* in plb_create */
    ASSERT_EQ(PLB_FOREVER, settle(&r));
    ASSERT_EQ(3, p.starts); /* the first round, at once */
    pass(&r, 100000000);
    ASSERT_EQ(1, f.starts);
    ASSERT_EQ(3, p.starts);
    ASSERT_EQ(1, r.first_updates);
    ASSERT_EQ(1, r.first_checks);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST discoveries_and_rounds_start_at_their_frequencies(void)
{
    rig r;
    feed f;
    prober p;
    begin(&r, &f, &p, 2);
    r.desc.update_every_ms = 100;
    r.desc.check_every_ms = 30;
    ASSERT_EQ(PLB_OK, rig_create(&r));
    pass(&r, 99);
    ASSERT_EQ(1, f.starts);
    ASSERT_EQ(2 * 4, p.starts); /* at 0, 30, 60, 90 */
    pass(&r, 1);
    ASSERT_EQ(2, f.starts);
    pass(&r, 900);
    ASSERT_EQ(11, f.starts);
    ASSERT_EQ(2 * 34, p.starts);
    ASSERT_EQ(1, r.first_updates);
    ASSERT_EQ(1, r.first_checks);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST the_delay_is_exact(void)
{
    uint64_t end;
    rig r;
    feed f;
    prober p;
    begin(&r, &f, &p, 3);
    r.desc.update_every_ms = 170;
    r.desc.check_every_ms = 50;
    r.desc.check.timeout_ms = 20;
    p.later = true; /* so that time-outs are among what is due */
    ASSERT_EQ(PLB_OK, rig_create(&r));
    end = clock_ms + 2000;
    while (clock_ms < end) {
        uint32_t delay = settle(&r), before = events(&r, &f, &p);
        ASSERT(delay > 0 && delay <= 170);
        clock_ms += delay - 1;
        ASSERT_EQ(delay == 1 ? delay : 1, plb_poll(r.lb));
        ASSERT_EQ(before, events(&r, &f, &p)); /* nothing is due before it */
        clock_ms++;
        plb_poll(r.lb);
        ASSERT_GT(events(&r, &f, &p), before); /* something is at it */
    }
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST idle_polls_do_nothing(void)
{
    uint64_t calls;
    uint32_t before;
    int i;
    rig r;
    feed f;
    prober p;
    begin(&r, &f, &p, 3);
    r.desc.update_every_ms = 10000;
    r.desc.check_every_ms = 10000;
    p.later = true;
    ASSERT_EQ(PLB_OK, rig_create(&r));
    settle(&r);
    calls = r.memory.calls;
    before = events(&r, &f, &p);
    for (i = 0; i < 1000; i++)
        ASSERT_EQ(1000, plb_poll(r.lb));
    ASSERT_EQ(calls, r.memory.calls);
    ASSERT_EQ(before, events(&r, &f, &p));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST frequencies_need_a_clock_and_the_rest_does_not(void)
{
    rig r;
    feed f;
    prober p;
    begin(&r, &f, &p, 3);
    r.desc.port.clock = NULL;
    r.desc.check_every_ms = 1;
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, rig_create(&r));
    r.desc.check_every_ms = 0;
    r.desc.update_every_ms = 1;
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, rig_create(&r));
    ASSERT(rig_logged(&r, "need port.clock"));
    r.desc.update_every_ms = 0;
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_EQ(PLB_FOREVER, settle(&r));
    ASSERT_EQ(3, p.starts);
    plb_update_now(r.lb);
    plb_check_now(r.lb);
    ASSERT_EQ(PLB_FOREVER, settle(&r));
    ASSERT_EQ(2, f.starts);
    ASSERT_EQ(6, p.starts);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

/* ---- on demand ---- */

TEST update_now_while_one_runs_is_followed_by_one_other(void)
{
    rig r;
    feed f;
    prober p;
    begin(&r, &f, &p, 3);
    f.later = true;
    ASSERT_EQ(PLB_OK, rig_create(&r));
    plb_update_now(r.lb);
    plb_update_now(r.lb);
    settle(&r);
    plb_update_now(r.lb);
    settle(&r);
    ASSERT_EQ(1, f.starts);
    feed_answer(&f);
    settle(&r);
    ASSERT_EQ(2, f.starts);
    feed_answer(&f);
    settle(&r);
    ASSERT_EQ(2, f.starts);
    ASSERT_EQ(2, r.updates);
    plb_update_now(r.lb);
    settle(&r);
    ASSERT_EQ(3, f.starts);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST check_now_while_a_probe_runs_is_followed_by_one_other(void)
{
    uint32_t n;
    rig r;
    feed f;
    prober p;
    begin(&r, &f, &p, 2);
    p.later = true;
    ASSERT_EQ(PLB_OK, rig_create(&r));
    settle(&r);
    plb_check_now(r.lb);
    plb_check_now(r.lb);
    settle(&r);
    ASSERT_EQ(2, p.starts);
    prober_done(&p, 0, PLB_OK);
    settle(&r);
    ASSERT_EQ(3, p.starts);
    ASSERT_EQ(0, r.first_checks);
    prober_done(&p, 1, PLB_OK);
    settle(&r);
    ASSERT_EQ(4, p.starts);
    for (n = 2; n < 4; n++)
        prober_done(&p, n, PLB_OK);
    settle(&r);
    ASSERT_EQ(4, p.starts);
    ASSERT_EQ(1, r.first_checks);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST checks_wait_for_the_first_set(void)
{
    rig r;
    feed f;
    prober p;
    begin(&r, &f, &p, 2);
    f.later = true;
    ASSERT_EQ(PLB_OK, rig_create(&r));
    plb_check_now(r.lb);
    pass(&r, 100);
    ASSERT_EQ(0, r.first_checks);
    feed_answer(&f);
    settle(&r);
    ASSERT_EQ(2, p.starts);
    ASSERT_EQ(1, r.first_checks);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST without_a_check_the_first_checks_are_over_with_the_first_update(void)
{
    rig r;
    feed f;
    prober p;
    begin(&r, &f, &p, 2);
    r.desc.check.ops = NULL;
    f.later = true;
    ASSERT_EQ(PLB_OK, rig_create(&r));
    settle(&r);
    ASSERT_EQ(0, r.first_checks);
    feed_answer(&f);
    settle(&r);
    plb_check_now(r.lb);
    settle(&r);
    ASSERT_EQ(1, r.first_checks);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

/* ---- limits ---- */

TEST no_more_probes_are_in_flight_than_parallel_checks(uint32_t parallel, uint32_t most)
{
    uint32_t n;
    rig r;
    feed f;
    prober p;
    begin(&r, &f, &p, BACKENDS);
    r.desc.parallel_checks = parallel;
    p.later = true;
    ASSERT_EQ(PLB_OK, rig_create(&r));
    for (n = 0; n < BACKENDS; n++) {
        settle(&r);
        ASSERT_EQ(n + most < BACKENDS ? n + most : BACKENDS, p.starts);
        prober_done(&p, n, PLB_OK);
    }
    ASSERT_EQ(0, r.first_checks);
    settle(&r);
    ASSERT_EQ(1, r.first_checks);
    ASSERT_EQ(most, p.most_in_flight);
    ASSERT_EQ(BACKENDS, p.starts);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST probes_that_end_inside_start_do_not_stall_the_round(uint32_t parallel)
{
    rig r;
    feed f;
    prober p;
    begin(&r, &f, &p, BACKENDS);
    r.desc.parallel_checks = parallel;
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_EQ(PLB_FOREVER, settle(&r));
    ASSERT_EQ(BACKENDS, p.starts);
    ASSERT_EQ(1, r.first_checks);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST one_poll_starts_64_probes_at_most(void)
{
    rig r;
    feed f;
    prober p;
    begin(&r, &f, &p, BACKENDS);
    r.desc.parallel_checks = PLB_UNLIMITED;
    p.later = true;
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_EQ(0, plb_poll(r.lb));
    ASSERT_EQ(64, p.starts);
    ASSERT_EQ(0, plb_poll(r.lb));
    ASSERT_EQ(128, p.starts);
    settle(&r);
    ASSERT_EQ(BACKENDS, p.starts);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

static void slow_log(void *user, plb_log_level level, const char *line)
{
    (void)user;
    (void)level;
    (void)line;
    clock_ms += log_ms;
}

/* Where starting one is dear, here because that it failed is written down slowly. */
TEST a_poll_stops_starting_probes_after_two_milliseconds(void)
{
    rig r;
    feed f;
    prober p;
    begin(&r, &f, &p, BACKENDS);
    r.desc.parallel_checks = PLB_UNLIMITED;
    r.desc.log = slow_log;
    p.start_status = PLB_ERR_LIMIT;
    ASSERT_EQ(PLB_OK, rig_create(&r));
    log_ms = 1;
    ASSERT_EQ(0, plb_poll(r.lb));
    ASSERT_EQ(8, p.starts);
    ASSERT_EQ(0, plb_poll(r.lb));
    ASSERT_EQ(16, p.starts);
    log_ms = 0;
    ASSERT_EQ(0, plb_poll(r.lb));
    ASSERT_EQ(16 + 64, p.starts);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST probes_that_never_answer_end_at_their_time_out_and_the_rounds_go_on(void)
{
    rig r;
    feed f;
    prober p;
    begin(&r, &f, &p, 3);
    r.desc.parallel_checks = 1;
    r.desc.check_every_ms = 1000;
    r.desc.check.timeout_ms = 100;
    p.later = true;
    ASSERT_EQ(PLB_OK, rig_create(&r));
    pass(&r, 299);
    ASSERT_EQ(3, p.starts);
    ASSERT_EQ(2, p.cancels);
    ASSERT_EQ(0, r.first_checks);
    pass(&r, 1);
    ASSERT_EQ(3, p.cancels);
    ASSERT_EQ(1, r.first_checks);
    ASSERT_EQ(1, p.most_in_flight);
    pass(&r, 700);
    ASSERT_EQ(4, p.starts); /* from one round's start to the next */
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST a_round_that_takes_longer_than_its_interval_is_followed_by_the_next(void)
{
    rig r;
    feed f;
    prober p;
    begin(&r, &f, &p, 1);
    r.desc.check_every_ms = 30;
    r.desc.check.timeout_ms = 100;
    p.later = true;
    ASSERT_EQ(PLB_OK, rig_create(&r));
    pass(&r, 1000);
    ASSERT_EQ(1, p.most_in_flight);
    ASSERT_EQ(11, p.starts);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST discoveries_that_never_answer_end_at_their_time_out_and_are_started_again(void)
{
    rig r;
    feed f;
    prober p;
    begin(&r, &f, &p, 1);
    r.desc.update_every_ms = 1000;
    r.desc.discovery.timeout_ms = 2500;
    f.later = true;
    ASSERT_EQ(PLB_OK, rig_create(&r));
    pass(&r, 2499);
    ASSERT_EQ(1, f.starts);
    ASSERT_EQ(0, f.cancels);
    pass(&r, 1);
    ASSERT_EQ(2, f.starts);
    ASSERT_EQ(1, f.cancels);
    ASSERT_EQ(1, r.updates);
    pass(&r, 2500);
    ASSERT_EQ(3, f.starts);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST a_failure_of_this_side_does_not_delay_a_faster_schedule(void)
{
    rig r;
    feed f;
    prober p;
    begin(&r, &f, &p, 1);
    r.desc.update_every_ms = 100;
    f.status = PLB_ERR_LIMIT;
    ASSERT_EQ(PLB_OK, rig_create(&r));
    pass(&r, 1000);
    ASSERT_EQ(11, f.starts);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

/* ---- strange clocks ---- */

TEST a_clock_that_jumps_ahead_makes_each_schedule_due_once(void)
{
    rig r;
    feed f;
    prober p;
    begin(&r, &f, &p, 2);
    r.desc.update_every_ms = 100;
    r.desc.check_every_ms = 30;
    ASSERT_EQ(PLB_OK, rig_create(&r));
    settle(&r);
    clock_ms += UINT64_C(86400000) * 20;
    ASSERT_EQ(30, settle(&r));
    ASSERT_EQ(2, f.starts);
    ASSERT_EQ(4, p.starts);
    pass(&r, 100);
    ASSERT_EQ(3, f.starts);
    ASSERT_EQ(10, p.starts);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST a_clock_that_wraps_at_32_bits_goes_on(void)
{
    rig r;
    feed f;
    prober p;
    begin(&r, &f, &p, 2);
    r.desc.update_every_ms = 100;
    r.desc.check_every_ms = 30;
    clock_wraps = true;
    clock_ms = UINT32_MAX - 450;
    ASSERT_EQ(PLB_OK, rig_create(&r));
    pass(&r, 1000);
    ASSERT_EQ(11, f.starts);
    ASSERT_EQ(2 * 34, p.starts);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST durations_are_right_across_a_wrap(void)
{
    rig r;
    feed f;
    prober p;
    begin(&r, &f, &p, 1);
    clock_wraps = true;
    clock_ms = UINT32_MAX - 9;
    f.later = true;
    ASSERT_EQ(PLB_OK, rig_create(&r));
    clock_ms += 25;
    feed_answer(&f);
    settle(&r);
    ASSERT_EQ(25000, r.update.discovery_us);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST a_clock_that_steps_back_stands_still(void)
{
    rig r;
    feed f;
    prober p;
    begin(&r, &f, &p, 2);
    r.desc.update_every_ms = 100;
    r.desc.check_every_ms = 100;
    ASSERT_EQ(PLB_OK, rig_create(&r));
    pass(&r, 50);
    clock_ms -= 40000;
    ASSERT_EQ(50, settle(&r));
    pass(&r, 49);
    ASSERT_EQ(1, f.starts);
    pass(&r, 1);
    ASSERT_EQ(2, f.starts);
    ASSERT_EQ(4, p.starts);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

SUITE(schedule)
{
    RUN_TEST(without_frequencies_all_happens_once);
    RUN_TEST(discoveries_and_rounds_start_at_their_frequencies);
    RUN_TEST(the_delay_is_exact);
    RUN_TEST(idle_polls_do_nothing);
    RUN_TEST(frequencies_need_a_clock_and_the_rest_does_not);
    RUN_TEST(update_now_while_one_runs_is_followed_by_one_other);
    RUN_TEST(check_now_while_a_probe_runs_is_followed_by_one_other);
    RUN_TEST(checks_wait_for_the_first_set);
    RUN_TEST(without_a_check_the_first_checks_are_over_with_the_first_update);
    RUN_TESTp(no_more_probes_are_in_flight_than_parallel_checks, 0, 64);
    RUN_TESTp(no_more_probes_are_in_flight_than_parallel_checks, 1, 1);
    RUN_TESTp(no_more_probes_are_in_flight_than_parallel_checks, 3, 3);
    RUN_TESTp(no_more_probes_are_in_flight_than_parallel_checks, PLB_UNLIMITED, BACKENDS);
    RUN_TESTp(probes_that_end_inside_start_do_not_stall_the_round, 1);
    RUN_TESTp(probes_that_end_inside_start_do_not_stall_the_round, 0);
    RUN_TESTp(probes_that_end_inside_start_do_not_stall_the_round, PLB_UNLIMITED);
    RUN_TEST(one_poll_starts_64_probes_at_most);
    RUN_TEST(a_poll_stops_starting_probes_after_two_milliseconds);
    RUN_TEST(probes_that_never_answer_end_at_their_time_out_and_the_rounds_go_on);
    RUN_TEST(a_round_that_takes_longer_than_its_interval_is_followed_by_the_next);
    RUN_TEST(discoveries_that_never_answer_end_at_their_time_out_and_are_started_again);
    RUN_TEST(a_failure_of_this_side_does_not_delay_a_faster_schedule);
    RUN_TEST(a_clock_that_jumps_ahead_makes_each_schedule_due_once);
    RUN_TEST(a_clock_that_wraps_at_32_bits_goes_on);
    RUN_TEST(durations_are_right_across_a_wrap);
    RUN_TEST(a_clock_that_steps_back_stands_still);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(schedule);
    GREATEST_MAIN_END();
}
