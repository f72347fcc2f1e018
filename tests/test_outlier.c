/* Outlier detection: what requests met with ejects backends, and how they come back. On a virtual clock, beside a naive
   model of the rules, and from several threads at once. */
#define _POSIX_C_SOURCE 200809L
#include "../pingora_lb.h"
#define SIM_IMPLEMENTATION
#include "sim.h"
#include <greatest.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>
#include "rig.h"

/* ==== A SCENE: backends 10.0.0.1:80 and so on ===================================================================== */

enum { HOSTS = 100 };

typedef struct scene {
    rig r;
    plb_backend backends[HOSTS];
    uint32_t count;
    /* what on_eject said */
    uint32_t ejections, returns, by_rate;
    plb_ejection why; /* the last time */
    plb_backend_info info;
} scene;

static plb_backend nth(uint32_t n)
{
    char text[32];
    snprintf(text, sizeof text, "10.0.0.%u:80", (unsigned)n);
    return rig_backend(text, 1);
}

static void on_eject(void *user, const plb_backend_info *info, plb_ejection why)
{
    scene *s = (scene *)user; /* the rig stands first in it */
    if (why >= PLB_EJECTION_TIME_OVER)
        s->returns++;
    else
        s->ejections++;
    s->by_rate += why == PLB_EJECTION_SUCCESS_RATE;
    s->why = why;
    s->info = *info;
}

static void begin(scene *s)
{
    memset(s, 0, sizeof *s);
    rig_begin(&s->r);
    s->r.desc.on_eject = on_eject;
    s->r.desc.outlier.on = true;
}

static plb_status create(scene *s, uint32_t count)
{
    plb_static_desc list;
    uint32_t n;
    memset(&list, 0, sizeof list);
    for (n = 1; n <= count; n++)
        s->backends[n - 1] = nth(n);
    s->count = count;
    list.backends = s->backends;
    list.backend_count = count;
    s->r.desc.discovery = plb_static(&list);
    return rig_create(&s->r);
}

static plb_backend_info find(scene *s, uint32_t n)
{
    plb_backend b = nth(n);
    plb_backend_info info;
    memset(&info, 0, sizeof info);
    plb_find(s->r.lb, &b.addr, 0, &info);
    return info;
}

static plb_outlier_info look(scene *s, uint32_t n)
{
    plb_backend b = nth(n);
    plb_outlier_info info;
    memset(&info, 0xff, sizeof info);
    plb_find_outlier(s->r.lb, &b.addr, 0, &info);
    return info;
}

static bool ejected(scene *s, uint32_t n)
{
    return find(s, n).ejected;
}

static uint32_t ejected_count(scene *s)
{
    uint32_t n, sum = 0;
    for (n = 1; n <= s->count; n++)
        sum += ejected(s, n);
    return sum;
}

/* Takes number n, ready or not. */
static bool is_number(void *user, const plb_backend_info *info)
{
    return info->backend.addr.u.v4[3] == *(uint32_t *)user;
}

static plb_status take(scene *s, uint32_t n, plb_pick *pick)
{
    plb_request request;
    memset(&request, 0, sizeof request);
    request.accept = is_number;
    request.accept_user = &n;
    return plb_begin(s->r.lb, &request, pick);
}

/* So many requests to number n, one after another, all of which go this way. */
static void requests(scene *s, uint32_t n, plb_outcome outcome, uint32_t times)
{
    while (times-- > 0) {
        plb_pick pick;
        if (take(s, n, &pick) == PLB_OK)
            plb_end(&pick, outcome, 1000);
    }
}

static void eject(scene *s, uint32_t n)
{
    requests(s, n, PLB_OUTCOME_SERVER_ERROR, 5);
    plb_poll(s->r.lb);
}

/* ==== FAILURES IN A ROW =========================================================================================== */

TEST five_failures_in_a_row_eject(plb_outcome failure)
{
    scene s;
    plb_addr to;
    int i;
    begin(&s);
    ASSERT_EQ(PLB_OK, create(&s, 2));
    rig_run(&s.r, 1);
    requests(&s, 1, failure, 4);
    requests(&s, 1, PLB_OUTCOME_SUCCESS, 1); /* ends the row */
    requests(&s, 1, failure, 4);
    requests(&s, 1, PLB_OUTCOME_CANCELLED, 3); /* says nothing */
    rig_run(&s.r, 1);
    ASSERT(!ejected(&s, 1));
    ASSERT_EQ_FMT(4u, look(&s, 1).errors_in_a_row, "%u");
    requests(&s, 1, failure, 1);
    rig_run(&s.r, 1);
    ASSERT(ejected(&s, 1) && !find(&s, 1).ready && find(&s, 1).healthy && find(&s, 1).enabled);
    ASSERT(!ejected(&s, 2));
    ASSERT_EQ(1u, s.ejections);
    ASSERT_EQ(failure == PLB_OUTCOME_CONNECT_ERROR ? PLB_EJECTION_CONNECT_ERRORS : PLB_EJECTION_ERRORS, s.why);
    ASSERT(s.info.ejected && s.info.backend.addr.u.v4[3] == 1);
    ASSERT(rig_logged(&s.r, failure == PLB_OUTCOME_CONNECT_ERROR
                                ? "ejected: 10.0.0.1:80: 5 connect errors in a row, for 30000 ms"
                                : "ejected: 10.0.0.1:80: 5 errors in a row, for 30000 ms"));
    for (i = 0; i < 10; i++) {
        ASSERT_EQ(PLB_OK, plb_select(s.r.lb, NULL, 0, 0, &to));
        ASSERT_EQ(2, to.u.v4[3]);
    }
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST failures_of_all_kinds_make_a_row(void)
{
    scene s;
    begin(&s);
    s.r.desc.outlier.consecutive_errors = 3;
    ASSERT_EQ(PLB_OK, create(&s, 2));
    requests(&s, 1, PLB_OUTCOME_CONNECT_ERROR, 1);
    requests(&s, 1, PLB_OUTCOME_BROKEN, 1);
    requests(&s, 1, PLB_OUTCOME_SERVER_ERROR, 1);
    plb_poll(s.r.lb);
    ASSERT(ejected(&s, 1));
    ASSERT_EQ(PLB_EJECTION_ERRORS, s.why);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST connect_errors_have_a_threshold_of_their_own(void)
{
    scene s;
    begin(&s);
    s.r.desc.outlier.consecutive_connect_errors = 2;
    ASSERT_EQ(PLB_OK, create(&s, 2));
    requests(&s, 1, PLB_OUTCOME_CONNECT_ERROR, 1);
    requests(&s, 1, PLB_OUTCOME_BROKEN, 1); /* there was a connection */
    requests(&s, 1, PLB_OUTCOME_CONNECT_ERROR, 1);
    plb_poll(s.r.lb);
    ASSERT(!ejected(&s, 1));
    requests(&s, 1, PLB_OUTCOME_CONNECT_ERROR, 1);
    plb_poll(s.r.lb);
    ASSERT(ejected(&s, 1));
    ASSERT_EQ(PLB_EJECTION_CONNECT_ERRORS, s.why);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST a_threshold_may_be_switched_off(void)
{
    scene s;
    begin(&s);
    s.r.desc.outlier.consecutive_errors = PLB_UNLIMITED;
    s.r.desc.outlier.consecutive_connect_errors = PLB_UNLIMITED;
    ASSERT_EQ(PLB_OK, create(&s, 2));
    requests(&s, 1, PLB_OUTCOME_CONNECT_ERROR, 1000);
    rig_run(&s.r, 100);
    ASSERT(!ejected(&s, 1));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* A success that came between the last failure and plb_poll does not undo it. */
TEST the_row_is_judged_as_it_was_when_it_was_complete(void)
{
    scene s;
    begin(&s);
    ASSERT_EQ(PLB_OK, create(&s, 2));
    requests(&s, 1, PLB_OUTCOME_SERVER_ERROR, 5);
    requests(&s, 1, PLB_OUTCOME_SUCCESS, 1);
    plb_poll(s.r.lb);
    ASSERT(ejected(&s, 1));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST without_detection_nothing_is_counted(void)
{
    plb_backend b = nth(1);
    plb_outlier_info info;
    scene s;
    begin(&s);
    s.r.desc.outlier.on = false;
    ASSERT_EQ(PLB_OK, create(&s, 2));
    requests(&s, 1, PLB_OUTCOME_CONNECT_ERROR, 100);
    rig_run(&s.r, 20000);
    ASSERT(!ejected(&s, 1));
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, plb_find_outlier(s.r.lb, &b.addr, 0, &info));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST what_is_known_can_be_asked(void)
{
    plb_backend stranger = nth(77);
    plb_outlier_info info;
    scene s;
    begin(&s);
    s.r.desc.outlier.success_rate_requests = 8;
    ASSERT_EQ(PLB_OK, create(&s, 2));
    rig_run(&s.r, 1);
    ASSERT_EQ(PLB_ERR_ADDRESS, plb_find_outlier(s.r.lb, &stranger.addr, 0, &info));
    requests(&s, 1, PLB_OUTCOME_SUCCESS, 6);
    requests(&s, 1, PLB_OUTCOME_CANCELLED, 6);
    requests(&s, 1, PLB_OUTCOME_CONNECT_ERROR, 2);
    info = look(&s, 1);
    ASSERT(info.requests == 8 && info.failures == 2 && info.errors_in_a_row == 2 && info.connect_errors_in_a_row == 2);
    ASSERT(info.success_rate == PLB_NONE && info.ejections == 0 && !info.ejected && info.back_ms == 0);
    rig_run(&s.r, 10000);
    info = look(&s, 1);
    ASSERT(info.requests == 8 && info.failures == 2);
    ASSERT_EQ_FMT(PLB_SUCCESS_RATE_ONE / 4 * 3, info.success_rate, "%u");
    ASSERT_EQ_FMT(PLB_NONE, look(&s, 2).success_rate, "%u");
    requests(&s, 1, PLB_OUTCOME_CONNECT_ERROR, 3);
    rig_run(&s.r, 1000);
    info = look(&s, 1);
    ASSERT(info.requests == 11 && info.failures == 5 && info.ejections == 1 && info.ejected);
    ASSERT_EQ_FMT(29000u, info.back_ms, "%u");
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

static bool metrics_say(scene *s, const char *line)
{
    static char text[16384];
    plb_metrics(s->r.lb, text, sizeof text);
    return strstr(text, line) != NULL;
}

TEST metrics_tell_requests_failures_and_ejections(void)
{
    scene s;
    begin(&s);
    ASSERT_EQ(PLB_OK, create(&s, 2));
    requests(&s, 1, PLB_OUTCOME_SUCCESS, 7);
    requests(&s, 1, PLB_OUTCOME_CANCELLED, 3);
    eject(&s, 1);
    ASSERT(metrics_say(&s, "\nplb_backend_requests_total{address=\"10.0.0.1:80\"} 12\n"));
    ASSERT(metrics_say(&s, "\nplb_backend_request_failures_total{address=\"10.0.0.1:80\"} 5\n"));
    ASSERT(metrics_say(&s, "\nplb_backend_ejections_total{address=\"10.0.0.1:80\"} 1\n"));
    ASSERT(metrics_say(&s, "\nplb_backend_ejections_total{address=\"10.0.0.2:80\"} 0\n"));
    ASSERT_EQ(0, rig_end(&s.r));
    begin(&s);
    s.r.desc.outlier.on = false;
    ASSERT_EQ(PLB_OK, create(&s, 2));
    ASSERT(!metrics_say(&s, "\nplb_backend_requests_total{")); /* nobody counts them */
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* ==== TIME ======================================================================================================== */

TEST an_ejection_ends_when_its_time_is_over(void)
{
    scene s;
    begin(&s);
    ASSERT_EQ(PLB_OK, create(&s, 2));
    rig_run(&s.r, 12345);
    eject(&s, 1);
    rig_run(&s.r, 29999);
    ASSERT(ejected(&s, 1));
    rig_run(&s.r, 1);
    ASSERT(!ejected(&s, 1) && find(&s, 1).ready);
    ASSERT_EQ(1u, s.returns);
    ASSERT_EQ(PLB_EJECTION_TIME_OVER, s.why);
    ASSERT(!s.info.ejected);
    ASSERT(rig_logged(&s.r, "no longer ejected: 10.0.0.1:80: its time is over"));
    ASSERT_EQ_FMT(0u, look(&s, 1).errors_in_a_row, "%u");
    requests(&s, 1, PLB_OUTCOME_SERVER_ERROR, 4); /* a row begins anew */
    plb_poll(s.r.lb);
    ASSERT(!ejected(&s, 1));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* How long an ejection that begins now lasts. */
static uint32_t ejection_ms(scene *s, uint32_t n)
{
    uint32_t ms;
    eject(s, n);
    for (ms = 0; ejected(s, n) && ms < 1000000; ms++)
        rig_run(&s->r, 1);
    return ms;
}

TEST ejections_last_longer_each_time_up_to_a_limit(void)
{
    scene s;
    uint32_t i;
    begin(&s);
    s.r.desc.outlier.interval_ms = 1000000;
    s.r.desc.outlier.base_ejection_ms = 100;
    s.r.desc.outlier.max_ejection_ms = 350;
    ASSERT_EQ(PLB_OK, create(&s, 2));
    for (i = 1; i <= 3; i++)
        ASSERT_EQ_FMT(100 * i, ejection_ms(&s, 1), "%u");
    for (i = 0; i < 20; i++)
        ASSERT_EQ_FMT(350u, ejection_ms(&s, 1), "%u");
    ASSERT_EQ_FMT(23u, look(&s, 1).ejections, "%u");
    ASSERT_EQ_FMT(100u, ejection_ms(&s, 2), "%u"); /* each for itself */
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST good_intervals_make_the_next_ejection_shorter(void)
{
    scene s;
    uint32_t i;
    begin(&s);
    s.r.desc.outlier.interval_ms = 1000;
    s.r.desc.outlier.base_ejection_ms = 100;
    s.r.desc.outlier.max_ejection_ms = 400;
    ASSERT_EQ(PLB_OK, create(&s, 2));
    rig_run(&s.r, 1000); /* to the end of an interval */
    ASSERT_EQ_FMT(100u, ejection_ms(&s, 1), "%u");
    ASSERT_EQ_FMT(200u, ejection_ms(&s, 1), "%u");
    ASSERT_EQ_FMT(300u, ejection_ms(&s, 1), "%u");
    rig_run(&s.r, 399);
    eject(&s, 1); /* for 400: the interval ends meanwhile, which takes nothing off */
    rig_run(&s.r, 400);
    ASSERT(!ejected(&s, 1));
    rig_run(&s.r, 601 + 2 * 1000); /* the ends of three more take off one each */
    ASSERT_EQ_FMT(200u, ejection_ms(&s, 1), "%u");
    rig_run(&s.r, 10000);
    ASSERT_EQ_FMT(100u, ejection_ms(&s, 1), "%u");
    for (i = 0; i < 10; i++) /* beyond the limit it does not grow, so it shrinks at once */
        ejection_ms(&s, 1);
    rig_run(&s.r, 10000);
    ASSERT_EQ_FMT(100u, ejection_ms(&s, 1), "%u");
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST an_ejection_that_ends_with_an_interval_is_over_before_it(void)
{
    scene s;
    begin(&s);
    s.r.desc.outlier.interval_ms = 1000;
    s.r.desc.outlier.base_ejection_ms = 1000;
    ASSERT_EQ(PLB_OK, create(&s, 2));
    eject(&s, 1);
    rig_run(&s.r, 1000);
    eject(&s, 1); /* the interval took off what the ejection had put on */
    ASSERT_EQ_FMT(1000u, look(&s, 1).back_ms, "%u");
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST the_longest_ejection_is_no_shorter_than_the_first(void)
{
    scene s;
    begin(&s);
    s.r.desc.outlier.base_ejection_ms = 400000;
    ASSERT_EQ(PLB_OK, create(&s, 2));
    eject(&s, 1);
    ASSERT_EQ_FMT(400000u, look(&s, 1).back_ms, "%u");
    rig_run(&s.r, 400000);
    eject(&s, 1);
    ASSERT_EQ_FMT(400000u, look(&s, 1).back_ms, "%u");
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* ==== THE SHARE =================================================================================================== */

static uint32_t allowed(uint32_t count, uint32_t percent)
{
    uint32_t share = count * percent / 100;
    return share > 0 ? share : count > 1 ? 1 : 0;
}

TEST no_more_than_the_share_is_ejected(uint32_t percent)
{
    uint32_t count, n;
    for (count = 1; count <= 45; count += count < 12 ? 1 : 11) {
        scene s;
        begin(&s);
        s.r.desc.outlier.max_ejection_percent = percent;
        ASSERT_EQ(PLB_OK, create(&s, count));
        for (n = 1; n <= count; n++) {
            eject(&s, n);
            ASSERT(ejected_count(&s) <= allowed(count, percent > 0 ? percent : 10));
        }
        ASSERT_EQ_FMT(allowed(count, percent > 0 ? percent : 10), ejected_count(&s), "%u");
        rig_run(&s.r, 30000); /* the others were forgiven, and may go now */
        ASSERT_EQ_FMT(0u, ejected_count(&s), "%u");
        eject(&s, count);
        ASSERT_EQ_FMT(allowed(count, percent > 0 ? percent : 10) > 0, ejected(&s, count), "%u");
        ASSERT_EQ(0, rig_end(&s.r));
    }
    PASS();
}

TEST what_is_spared_for_the_share_must_fail_anew(void)
{
    scene s;
    begin(&s);
    ASSERT_EQ(PLB_OK, create(&s, 2));
    eject(&s, 1);
    eject(&s, 2);
    ASSERT(!ejected(&s, 2));
    ASSERT_EQ_FMT(0u, look(&s, 2).errors_in_a_row, "%u");
    rig_run(&s.r, 30000);
    requests(&s, 2, PLB_OUTCOME_BROKEN, 4);
    plb_poll(s.r.lb);
    ASSERT(!ejected(&s, 2));
    requests(&s, 2, PLB_OUTCOME_BROKEN, 1);
    plb_poll(s.r.lb);
    ASSERT(ejected(&s, 2));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST the_share_is_one_of_the_current_set(void)
{
    scene s;
    uint32_t n;
    begin(&s);
    s.r.desc.outlier.max_ejection_percent = 50;
    ASSERT_EQ(PLB_OK, create(&s, 10));
    for (n = 1; n <= 5; n++)
        eject(&s, n);
    ASSERT_EQ_FMT(5u, ejected_count(&s), "%u");
    ASSERT_EQ(PLB_OK, plb_replace(s.r.lb, s.backends, 6)); /* 5 of 6 are too many: no more, until there is room */
    rig_run(&s.r, 1);
    eject(&s, 6);
    ASSERT_EQ_FMT(5u, ejected_count(&s), "%u");
    ASSERT_EQ(PLB_OK, plb_replace(s.r.lb, s.backends + 3, 7)); /* 2 of 7: one more may go */
    rig_run(&s.r, 1);
    for (n = 6; n <= 10; n++)
        eject(&s, n);
    ASSERT(ejected(&s, 4) && ejected(&s, 5) && ejected(&s, 6) && !ejected(&s, 7));
    ASSERT_EQ_FMT(3u, ejected_count(&s), "%u");
    rig_run(&s.r, 30000);
    ASSERT_EQ_FMT(0u, ejected_count(&s), "%u");
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST duplicates_are_one_backend(void)
{
    plb_backend list[12];
    uint32_t i;
    scene s;
    begin(&s);
    s.r.desc.outlier.max_ejection_percent = 50;
    ASSERT_EQ(PLB_OK, create(&s, 4));
    for (i = 0; i < 12; i++) { /* each in three places, one of them in a tier of its own */
        list[i] = nth(1 + i / 3);
        list[i].weight = 1 + i % 3;
        list[i].priority = i % 3 == 2;
    }
    ASSERT_EQ(PLB_OK, plb_replace(s.r.lb, list, 12));
    rig_run(&s.r, 1);
    for (i = 1; i <= 4; i++)
        eject(&s, i);
    ASSERT_EQ_FMT(2u, ejected_count(&s), "%u");
    ASSERT(ejected(&s, 1) && ejected(&s, 2));
    requests(&s, 3, PLB_OUTCOME_SUCCESS, 100);
    rig_run(&s.r, 10000); /* and have one rate */
    ASSERT_EQ_FMT(PLB_SUCCESS_RATE_ONE * 100 / 105, look(&s, 3).success_rate, "%u");
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* ==== SUCCESS RATES =============================================================================================== */

/* An interval in which number n had so many requests, of which so many failed, never two in a row. */
static void mixed(scene *s, uint32_t n, uint32_t count, uint32_t failures)
{
    uint32_t i;
    for (i = 0; i < count; i++)
        requests(s, n, i % 2 == 1 && i / 2 < failures ? PLB_OUTCOME_SERVER_ERROR : PLB_OUTCOME_SUCCESS, 1);
}

TEST one_that_fails_more_often_than_the_others_is_ejected(void)
{
    scene s;
    uint32_t n;
    begin(&s);
    ASSERT_EQ(PLB_OK, create(&s, 5));
    for (n = 1; n <= 5; n++)
        mixed(&s, n, 100, n == 3 ? 20 : n % 2);
    rig_run(&s.r, 9999);
    ASSERT_EQ_FMT(0u, ejected_count(&s), "%u");
    rig_run(&s.r, 1);
    ASSERT_EQ_FMT(1u, ejected_count(&s), "%u");
    ASSERT(ejected(&s, 3));
    ASSERT_EQ(PLB_EJECTION_SUCCESS_RATE, s.why);
    ASSERT(rig_logged(&s.r, "ejected: 10.0.0.3:80: success rate 80%, the mean is 96%, for 30000 ms"));
    rig_run(&s.r, 30000); /* the old failures do not count again */
    ASSERT_EQ_FMT(0u, ejected_count(&s), "%u");
    rig_run(&s.r, 30000);
    ASSERT_EQ(1u, s.ejections);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

typedef struct rate_case {
    uint32_t backends, requests, failures; /* of number 1; the others' never fail */
    uint32_t min_backends, min_requests, factor;
    bool ignore, ejects;
} rate_case;

/* One outlier among n is the square root of n - 1 standard deviations below the mean. */
static const rate_case rate_cases[] = {
    {5, 100, 1, 0, 0, 0, false, true},     /* 2 > 1.9 */
    {5, 100, 50, 0, 0, 1999, false, true}, /* whatever the difference */
    {5, 100, 50, 0, 0, 2001, false, false},  {10, 100, 50, 0, 0, 2999, false, true},
    {10, 100, 50, 0, 0, 3001, false, false}, {5, 99, 50, 0, 0, 0, false, false}, /* too few requests */
    {4, 100, 50, 0, 0, 0, false, false},                                         /* too few backends */
    {4, 20, 10, 4, 20, 1700, false, true},   {4, 19, 9, 4, 20, 1700, false, false},
    {3, 20, 10, 4, 20, 100, false, false},   {5, 100, 0, 0, 0, 1, false, false}, /* all alike */
    {5, 100, 50, 0, 0, 0, true, false},                                          /* switched off */
};

TEST the_success_rate_is_judged_by_its_settings(const rate_case *c)
{
    scene s;
    uint32_t n;
    begin(&s);
    s.r.desc.outlier.success_rate_backends = c->min_backends;
    s.r.desc.outlier.success_rate_requests = c->min_requests;
    s.r.desc.outlier.success_rate_stdev_factor = c->factor;
    s.r.desc.outlier.ignore_success_rate = c->ignore;
    ASSERT_EQ(PLB_OK, create(&s, c->backends));
    for (n = 1; n <= c->backends; n++)
        mixed(&s, n, c->requests, n == 1 ? c->failures : 0);
    rig_run(&s.r, 10000);
    ASSERT_EQ_FMT(c->ejects, ejected(&s, 1), "%u");
    ASSERT_EQ_FMT(c->ejects, ejected_count(&s), "%u");
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* Rates are kept in 65536ths: what is less must not look like more. Two of five are 1.2 deviations below the mean. */
TEST a_difference_that_rounding_hides_ejects_nobody(void)
{
    scene s;
    uint32_t n;
    begin(&s);
    ASSERT_EQ(PLB_OK, create(&s, 5));
    for (n = 1; n <= 5; n++) {
        requests(&s, n, PLB_OUTCOME_SUCCESS, 66000);
        requests(&s, n, PLB_OUTCOME_BROKEN, n <= 2);
    }
    rig_run(&s.r, 10000);
    ASSERT_EQ_FMT(PLB_SUCCESS_RATE_ONE - 1, look(&s, 1).success_rate, "%u");
    ASSERT_EQ(0u, s.ejections);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST an_interval_stands_for_itself(void)
{
    scene s;
    uint32_t n;
    begin(&s);
    ASSERT_EQ(PLB_OK, create(&s, 5));
    for (n = 1; n <= 5; n++)
        mixed(&s, n, 60, n == 1 ? 30 : 0);
    rig_run(&s.r, 10000);
    for (n = 1; n <= 5; n++)
        mixed(&s, n, 60, n == 1 ? 30 : 0); /* 120 by now, but 60 in this one */
    rig_run(&s.r, 10000);
    ASSERT_EQ(0u, s.ejections);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST the_ejected_are_not_compared(void)
{
    scene s;
    uint32_t n;
    begin(&s);
    s.r.desc.outlier.max_ejection_percent = 100;
    ASSERT_EQ(PLB_OK, create(&s, 6));
    mixed(&s, 1, 100, 50);
    eject(&s, 1);
    for (n = 2; n <= 6; n++) /* among them 2 stands out, but beside a rate of less than a half it would not */
        mixed(&s, n, 100, n == 2 ? 5 : 0);
    rig_run(&s.r, 10000);
    ASSERT(ejected(&s, 1) && ejected(&s, 2));
    ASSERT_EQ_FMT(2u, ejected_count(&s), "%u");
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* ==== A NAIVE MODEL =============================================================================================== */

typedef struct model_backend {
    uint32_t errors, connects, passed, failed, multiplier, ejections;
    bool out;
    uint64_t back_ms;
} model_backend;

typedef struct model {
    model_backend b[HOSTS + 1]; /* from 1 */
    uint32_t count, out, percent, max_multiplier;
    uint64_t now_ms, interval_end_ms;
    uint32_t doubtful; /* rates so near to the limit that rounding decides */
} model;

enum { INTERVAL_MS = 1000, BASE_MS = 700, MAX_MS = 3000, RATE_REQUESTS = 20, RATE_BACKENDS = 4 };

static void model_eject(model *m, model_backend *b)
{
    if (b->out || (100 * (m->out + 1) > m->count * m->percent && (m->out > 0 || m->count == 1)))
        return;
    if (BASE_MS * b->multiplier < MAX_MS)
        b->multiplier++;
    b->back_ms = m->now_ms + (BASE_MS * b->multiplier < MAX_MS ? BASE_MS * b->multiplier : MAX_MS);
    b->out = true;
    b->ejections++;
    m->out++;
}

static void model_request(model *m, uint32_t n, plb_outcome outcome)
{
    model_backend *b = &m->b[n];
    bool reached;
    if (outcome == PLB_OUTCOME_CANCELLED)
        return;
    if (outcome == PLB_OUTCOME_SUCCESS) {
        b->errors = b->connects = 0;
        b->passed++;
        return;
    }
    b->failed++;
    b->errors++;
    b->connects = outcome == PLB_OUTCOME_CONNECT_ERROR ? b->connects + 1 : 0;
    reached = b->errors >= 4 || b->connects >= 2;
    if (reached) {
        model_eject(m, b);
        b->errors = b->connects = 0;
    }
}

static void model_returns(model *m)
{
    uint32_t n;
    for (n = 1; n <= m->count; n++) {
        model_backend *b = &m->b[n];
        if (!b->out || b->back_ms > m->now_ms)
            continue;
        b->out = false;
        b->errors = b->connects = b->passed = b->failed = 0;
        m->out--;
    }
}

static double square_root(double x)
{
    double root = x > 1 ? x : 1;
    int i;
    for (i = 0; i < 100; i++)
        root = (root + x / root) / 2;
    return root;
}

static void model_interval(scene *s, model *m)
{
    double rates[HOSTS + 1], sum = 0, deviations = 0, mean, limit;
    uint32_t n, count = 0;
    for (n = 1; n <= m->count; n++) {
        model_backend *b = &m->b[n];
        uint32_t total = b->passed + b->failed;
        rates[n] = -1;
        if (!b->out && total >= RATE_REQUESTS) {
            rates[n] = (double)b->passed / total;
            sum += rates[n];
            count++;
        }
        if (!b->out && b->multiplier > 0)
            b->multiplier--;
        b->passed = b->failed = 0;
    }
    if (count < RATE_BACKENDS)
        return;
    mean = sum / count;
    for (n = 1; n <= m->count; n++)
        deviations += rates[n] >= 0 ? (rates[n] - mean) * (rates[n] - mean) : 0;
    limit = mean - 1.5 * square_root(deviations / count);
    for (n = 1; n <= m->count; n++) {
        bool outlier = rates[n] >= 0 && rates[n] < limit;
        if (rates[n] >= 0 && rates[n] > limit - 0.0002 && rates[n] < limit + 0.0002) {
            m->doubtful++;
            outlier = ejected(s, n);
        }
        if (outlier)
            model_eject(m, &m->b[n]);
    }
}

static void model_run(scene *s, model *m, uint32_t ms)
{
    while (ms-- > 0) {
        rig_run(&s->r, 1);
        m->now_ms++;
        model_returns(m);
        if (m->now_ms == m->interval_end_ms) {
            m->interval_end_ms += INTERVAL_MS;
            model_interval(s, m);
        }
    }
}

TEST it_does_what_a_reader_of_the_manual_would_write(uint32_t count, uint32_t percent, uint64_t seed)
{
    uint64_t random = seed;
    uint32_t step, n, ejections = 0;
    static model m;
    static scene s;
    memset(&m, 0, sizeof m);
    m.count = count;
    m.percent = percent;
    m.interval_end_ms = INTERVAL_MS;
    begin(&s);
    s.r.desc.outlier.consecutive_errors = 4;
    s.r.desc.outlier.consecutive_connect_errors = 2;
    s.r.desc.outlier.interval_ms = INTERVAL_MS;
    s.r.desc.outlier.base_ejection_ms = BASE_MS;
    s.r.desc.outlier.max_ejection_ms = MAX_MS;
    s.r.desc.outlier.max_ejection_percent = percent;
    s.r.desc.outlier.success_rate_requests = RATE_REQUESTS;
    s.r.desc.outlier.success_rate_backends = RATE_BACKENDS;
    s.r.desc.outlier.success_rate_stdev_factor = 1500;
    ASSERT_EQ(PLB_OK, create(&s, count));
    for (step = 0; step < 12000; step++) {
        uint32_t dice, bad;
        plb_outcome outcome = PLB_OUTCOME_SUCCESS;
        random = random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        n = 1 + (uint32_t)(random >> 33) % count;
        dice = (uint32_t)(random >> 20) % 100;
        bad = 15 + 60 * ((step / 500 + n) % 4 == 0);
        if (dice < bad)
            outcome = (plb_outcome)(PLB_OUTCOME_CONNECT_ERROR + dice % 4); /* one in four is called off */
        requests(&s, n, outcome, 1);
        plb_poll(s.r.lb);
        model_request(&m, n, outcome);
        if ((random >> 50) % 16 == 0)
            model_run(&s, &m, 1 + (uint32_t)(random >> 40) % 100);
        for (n = 1; n <= count; n++)
            ASSERT_EQ_FMT(m.b[n].out, ejected(&s, n), "%d");
        ASSERT(100 * m.out <= count * percent || m.out == 1);
    }
    for (n = 1; n <= count; n++) {
        ASSERT_EQ_FMT(m.b[n].ejections, look(&s, n).ejections, "%u");
        ejections += m.b[n].ejections;
    }
    ASSERT(count == 1 || (ejections > 15 && s.returns > 15));
    ASSERT(count < 2 * RATE_BACKENDS || s.by_rate > 5);
    ASSERT_EQ_FMT(ejections, s.ejections, "%u");
    ASSERT(m.doubtful * 4 < ejections + 4);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* ==== PROBES ====================================================================================================== */

static void begin_checked(scene *s, prober *p)
{
    begin(s);
    memset(p, 0, sizeof *p);
    s->r.desc.check = prober_check(p);
    s->r.desc.check_every_ms = 1000;
}

TEST a_probe_that_succeeds_ends_the_ejection(bool ignored)
{
    scene s;
    prober p;
    begin_checked(&s, &p);
    s.r.desc.outlier.ignore_probes = ignored;
    ASSERT_EQ(PLB_OK, create(&s, 2));
    rig_run(&s.r, 1500);
    eject(&s, 1);
    rig_run(&s.r, 499);
    ASSERT(ejected(&s, 1));
    rig_run(&s.r, 2);
    ASSERT_EQ_FMT(ignored, ejected(&s, 1), "%d");
    if (!ignored) {
        ASSERT_EQ(PLB_EJECTION_PROBE_PASSED, s.why);
        ASSERT(rig_logged(&s.r, "no longer ejected: 10.0.0.1:80: a probe succeeded"));
    }
    rig_run(&s.r, 29498);
    ASSERT_EQ_FMT(ignored, ejected(&s, 1), "%d");
    rig_run(&s.r, 1);
    ASSERT(!ejected(&s, 1));
    ASSERT_EQ(1u, s.returns);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* An agent's "50%", say: it is no success. */
TEST a_neutral_probe_does_not_end_the_ejection(bool neutral)
{
    scene s;
    prober p;
    plb_report report;
    begin_checked(&s, &p);
    p.later = true;
    ASSERT_EQ(PLB_OK, create(&s, 2));
    rig_run(&s.r, 10);
    eject(&s, 1);
    prober_done(&p, prober_last(&p, "10.0.0.1:80"), PLB_OK); /* it began too early */
    rig_run(&s.r, 1010);
    ASSERT(ejected(&s, 1));
    memset(&report, 0, sizeof report);
    report.neutral = neutral;
    plb_check_report(p.tokens[prober_last(&p, "10.0.0.1:80") % PROBES_MAX], &report);
    rig_run(&s.r, 10);
    ASSERT_EQ_FMT(neutral, ejected(&s, 1), "%d");
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST a_probe_that_began_before_the_ejection_does_not_end_it(void)
{
    scene s;
    prober p;
    uint32_t probe;
    begin_checked(&s, &p);
    p.later = true;
    ASSERT_EQ(PLB_OK, create(&s, 2));
    rig_run(&s.r, 1);
    probe = prober_last(&p, "10.0.0.1:80");
    rig_run(&s.r, 10);
    eject(&s, 1);
    prober_done(&p, probe, PLB_OK);
    rig_run(&s.r, 10);
    ASSERT(ejected(&s, 1));
    rig_run(&s.r, 1000);
    prober_done(&p, prober_last(&p, "10.0.0.1:80"), PLB_OK);
    rig_run(&s.r, 1);
    ASSERT(!ejected(&s, 1));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST a_probe_does_not_end_it_while_a_check_fails(void)
{
    scene s;
    prober p;
    begin_checked(&s, &p);
    s.r.desc.check.consecutive_success = 2;
    ASSERT_EQ(PLB_OK, create(&s, 2));
    rig_run(&s.r, 1500);
    p.result = PLB_ERR_REFUSED;
    eject(&s, 1);
    rig_run(&s.r, 1000);
    ASSERT(ejected(&s, 1) && !find(&s, 1).healthy);
    p.result = PLB_OK;
    rig_run(&s.r, 1000); /* one success: it still fails */
    ASSERT(ejected(&s, 1) && !find(&s, 1).healthy);
    rig_run(&s.r, 1000);
    ASSERT(!ejected(&s, 1) && find(&s, 1).healthy && find(&s, 1).ready);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST one_that_comes_back_while_a_check_fails_is_not_ready(void)
{
    scene s;
    prober p;
    begin_checked(&s, &p);
    ASSERT_EQ(PLB_OK, create(&s, 2));
    rig_run(&s.r, 1500);
    p.result = PLB_ERR_REFUSED;
    eject(&s, 1);
    rig_run(&s.r, 31000);
    ASSERT(!ejected(&s, 1) && !find(&s, 1).ready && !find(&s, 1).healthy);
    ASSERT_EQ(PLB_EJECTION_TIME_OVER, s.why);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* ==== BESIDE SLOW START, PANIC AND UPDATES ======================================================================== */

TEST one_that_comes_back_starts_slowly(void)
{
    scene s;
    begin(&s);
    s.r.desc.slow_start_ms = 8000;
    ASSERT_EQ(PLB_OK, create(&s, 2));
    ASSERT_EQ(255, find(&s, 1).share);
    eject(&s, 1);
    rig_run(&s.r, 30000);
    ASSERT(find(&s, 1).ready);
    ASSERT_EQ(1, find(&s, 1).share);
    rig_run(&s.r, 4000);
    ASSERT(find(&s, 1).share >= 122 && find(&s, 1).share <= 132);
    rig_run(&s.r, 4000);
    ASSERT_EQ(255, find(&s, 1).share);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST a_tier_that_panics_uses_the_ejected(void)
{
    scene s;
    begin(&s);
    s.r.desc.panic_percent = 60;
    s.r.desc.outlier.max_ejection_percent = 100;
    ASSERT_EQ(PLB_OK, create(&s, 4));
    eject(&s, 1);
    ASSERT(!find(&s, 1).ready);
    eject(&s, 2); /* half of them: fewer than 60 % are left */
    ASSERT(ejected(&s, 1) && ejected(&s, 2) && find(&s, 1).ready && find(&s, 2).ready);
    eject(&s, 3);
    eject(&s, 4);
    ASSERT(find(&s, 3).ready && find(&s, 4).ready);
    eject(&s, 1); /* once is enough */
    ASSERT_EQ_FMT(1u, look(&s, 1).ejections, "%u");
    rig_run(&s.r, 30000);
    ASSERT_EQ_FMT(0u, ejected_count(&s), "%u");
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST the_only_backend_goes_only_where_all_may(void)
{
    plb_addr to;
    scene s;
    begin(&s);
    s.r.desc.outlier.max_ejection_percent = 99;
    ASSERT_EQ(PLB_OK, create(&s, 1));
    eject(&s, 1);
    ASSERT(!ejected(&s, 1));
    ASSERT_EQ(0, rig_end(&s.r));
    begin(&s);
    s.r.desc.outlier.max_ejection_percent = 100;
    ASSERT_EQ(PLB_OK, create(&s, 1));
    eject(&s, 1);
    ASSERT(ejected(&s, 1));
    ASSERT_EQ(PLB_ERR_NOT_READY, plb_select(s.r.lb, NULL, 0, 0, &to));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST updates_keep_what_is_known(void)
{
    scene s;
    begin(&s);
    ASSERT_EQ(PLB_OK, create(&s, 3));
    requests(&s, 2, PLB_OUTCOME_BROKEN, 3);
    eject(&s, 1);
    s.backends[0].weight = 7; /* the same backend all the same */
    s.backends[3] = nth(4);
    ASSERT_EQ(PLB_OK, plb_replace(s.r.lb, s.backends, 4));
    rig_run(&s.r, 1);
    ASSERT(ejected(&s, 1));
    ASSERT_EQ_FMT(29999u, look(&s, 1).back_ms, "%u");
    ASSERT_EQ_FMT(3u, look(&s, 2).errors_in_a_row, "%u");
    rig_run(&s.r, 29999);
    ASSERT(!ejected(&s, 1));
    requests(&s, 2, PLB_OUTCOME_BROKEN, 2);
    plb_poll(s.r.lb);
    ASSERT(ejected(&s, 2));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST one_that_leaves_takes_its_record_along(void)
{
    scene s;
    begin(&s);
    ASSERT_EQ(PLB_OK, create(&s, 3));
    eject(&s, 1);
    ASSERT_EQ(PLB_OK, plb_remove(s.r.lb, &s.backends[0]));
    rig_run(&s.r, 1);
    eject(&s, 2); /* there is room again */
    ASSERT(ejected(&s, 2));
    ASSERT_EQ(PLB_OK, plb_add(s.r.lb, &s.backends[0]));
    rig_run(&s.r, 1);
    ASSERT(!ejected(&s, 1) && find(&s, 1).ready);
    ASSERT_EQ_FMT(0u, look(&s, 1).ejections, "%u");
    rig_run(&s.r, 60000);
    ASSERT_EQ(1u, s.returns); /* nobody comes back who has left */
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* The last failure comes when its backend has left, or in the same moment. */
TEST word_of_one_that_has_left_is_ignored(bool in_time)
{
    plb_pick pick;
    scene s;
    begin(&s);
    ASSERT_EQ(PLB_OK, create(&s, 3));
    requests(&s, 1, PLB_OUTCOME_BROKEN, 4);
    ASSERT_EQ(PLB_OK, take(&s, 1, &pick));
    ASSERT_EQ(PLB_OK, plb_remove(s.r.lb, &s.backends[0]));
    if (in_time)
        plb_end(&pick, PLB_OUTCOME_BROKEN, 1); /* word is left first, then the removal is carried out */
    rig_run(&s.r, 10);
    plb_end(&pick, PLB_OUTCOME_BROKEN, 1);
    rig_run(&s.r, 10);
    ASSERT_EQ_FMT(in_time ? 1u : 0u, s.ejections, "%u");
    ASSERT_STR_EQ("10.0.0.2:80 10.0.0.3:80", rig_set(&s.r));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* A slot whose word has not been read outlives the set that held it. */
TEST word_keeps_its_backend_until_it_is_read(void)
{
    static plb_backend few[2];
    plb_pick pick;
    feed f;
    scene s;
    begin(&s);
    memset(&f, 0, sizeof f);
    few[0] = nth(1);
    few[1] = nth(2);
    feed_set(&f, few, 2);
    s.r.desc.discovery = feed_discovery(&f, false);
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    rig_run(&s.r, 1);
    requests(&s, 1, PLB_OUTCOME_BROKEN, 4);
    ASSERT_EQ(PLB_OK, take(&s, 1, &pick));
    f.later = true;
    plb_update_now(s.r.lb);
    rig_run(&s.r, 1);
    feed_set(&f, few + 1, 1);
    feed_answer(&f); /* it leaves with the first mail, and word of it is the second */
    plb_end(&pick, PLB_OUTCOME_BROKEN, 1);
    rig_run(&s.r, 10);
    ASSERT_EQ_FMT(0u, s.ejections, "%u");
    ASSERT_STR_EQ("10.0.0.2:80", rig_set(&s.r));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST it_may_be_destroyed_at_any_moment(uint32_t moment)
{
    plb_pick pick;
    scene s;
    begin(&s);
    ASSERT_EQ(PLB_OK, create(&s, 3));
    rig_run(&s.r, 1);
    requests(&s, 1, PLB_OUTCOME_BROKEN, 4);
    ASSERT_EQ(PLB_OK, take(&s, 1, &pick));
    if (moment < 2)
        requests(&s, 1, PLB_OUTCOME_BROKEN, 1); /* word of it is left */
    if (moment == 1)
        plb_poll(s.r.lb);
    if (moment == 2)
        eject(&s, 2);
    if (moment == 3)
        requests(&s, 2, PLB_OUTCOME_BROKEN, 5);
    rig_destroy(&s.r);
    ASSERT_EQ_FMT(moment == 1 || moment == 2, s.ejections, "%u");
    plb_end(&pick, PLB_OUTCOME_BROKEN, 1);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* ==== WHAT IT NEEDS =============================================================================================== */

TEST settings_that_make_no_sense_are_refused(void)
{
    scene s;
    begin(&s);
    s.r.desc.port.clock = NULL;
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, create(&s, 2));
    ASSERT(rig_logged(&s.r, "outlier detection needs port.clock"));
    s.r.desc.port = sim_port(s.r.s);
    s.r.desc.outlier.max_ejection_percent = 101;
    ASSERT_EQ(PLB_ERR_ARGUMENT, create(&s, 2));
    s.r.desc.outlier.max_ejection_percent = 100;
    ASSERT_EQ(PLB_OK, create(&s, 2));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST each_allocation_may_fail(void)
{
    uint32_t fail;
    bool whole = false;
    for (fail = 1; !whole && fail < 200; fail++) {
        scene s;
        begin(&s);
        s.r.memory.fail_at = fail;
        whole = create(&s, 3) == PLB_OK;
        if (whole) {
            whole = s.r.memory.calls < fail;
            rig_run(&s.r, 2000); /* what failed is tried again */
            eject(&s, 1);
            ASSERT(ejected(&s, 1));
        }
        ASSERT_EQ(0, rig_end(&s.r));
    }
    ASSERT(whole);
    PASS();
}

/* Wherever a slot has more before it, the strategy's bytes among it. */
TEST strategies_and_checks_keep_their_bytes_beside_it(void)
{
    scene s;
    prober p;
    uint32_t i;
    begin_checked(&s, &p);
    s.r.desc.strategy = plb_peak_ewma(NULL);
    s.r.desc.outlier.ignore_probes = true;
    ASSERT_EQ(PLB_OK, create(&s, 3));
    rig_run(&s.r, 100);
    eject(&s, 2);
    for (i = 0; i < 100; i++) {
        plb_pick pick;
        ASSERT_EQ(PLB_OK, plb_begin(s.r.lb, NULL, &pick));
        ASSERT(pick.addr.u.v4[3] != 2);
        plb_end(&pick, PLB_OUTCOME_SUCCESS, 1000 * pick.addr.u.v4[3]);
        rig_run(&s.r, 10);
    }
    ASSERT_EQ_FMT(100u, (uint32_t)(look(&s, 1).requests + look(&s, 3).requests), "%u");
    ASSERT(look(&s, 1).requests > look(&s, 3).requests);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* ==== SEVERAL THREADS ============================================================================================= */

enum { WORKERS = 4, MEMBERS = 6, POLLS = 2000, EJECTIONS = 5, PATIENCE_S = 60 };

#define LOAD(p)        __atomic_load_n((p), __ATOMIC_SEQ_CST)
#define ADD(p, amount) __atomic_fetch_add((p), (amount), __ATOMIC_SEQ_CST)

typedef struct crowd {
    plb_balancer *lb;
    uint64_t now_ms;
    uint32_t stop, wakes;
    uint32_t passed[MEMBERS + 1], failed[MEMBERS + 1]; /* as the threads counted them */
    uint32_t ejections, returns, over_share;           /* the polling thread's */
} crowd;

static uint64_t crowd_now(void *self)
{
    return LOAD(&((crowd *)self)->now_ms);
}

static void crowd_wake(void *self)
{
    ADD(&((crowd *)self)->wakes, 1);
}

static bool count_ejected(void *user, const plb_backend_info *info)
{
    *(uint32_t *)user += info->ejected;
    return true;
}

static void crowd_on_eject(void *user, const plb_backend_info *info, plb_ejection why)
{
    crowd *c = (crowd *)user;
    uint32_t out = 0;
    c->ejections += why < PLB_EJECTION_TIME_OVER;
    c->returns += why >= PLB_EJECTION_TIME_OVER;
    plb_each(c->lb, count_ejected, &out);
    c->over_share += info->ejected && out > MEMBERS / 2;
}

/* Odd ones fail now and then, number 1 and 5 always; number 6 comes and goes. */
static void *crowd_work(void *user)
{
    crowd *c = (crowd *)user;
    uint32_t i;
    for (i = 0; LOAD(&c->stop) == 0; i++) {
        plb_outcome outcome = PLB_OUTCOME_SUCCESS;
        plb_pick pick;
        uint32_t n;
        if (plb_begin(c->lb, NULL, &pick) != PLB_OK)
            continue;
        n = pick.addr.u.v4[3];
        if (n == 1 || n >= 5 || (n % 2 != 0 && i % 3 == 0))
            outcome = i % 2 == 0 ? PLB_OUTCOME_CONNECT_ERROR : PLB_OUTCOME_SERVER_ERROR;
        ADD(outcome == PLB_OUTCOME_SUCCESS ? &c->passed[n] : &c->failed[n], 1);
        plb_end(&pick, outcome, 100);
        if (i % 64 == 0)
            sched_yield(); /* there may be fewer processors than threads */
    }
    return NULL;
}

static plb_status crowd_create(crowd *c, plb_io *io, plb_clock *clock)
{
    plb_backend list[MEMBERS];
    plb_static_desc discovery;
    plb_balancer_desc desc;
    uint32_t n;
    memset(&discovery, 0, sizeof discovery);
    memset(&desc, 0, sizeof desc);
    for (n = 1; n <= MEMBERS; n++)
        list[n - 1] = nth(n);
    discovery.backends = list;
    discovery.backend_count = MEMBERS;
    memset(io, 0, sizeof *io);
    io->self = c;
    io->wake = crowd_wake;
    memset(clock, 0, sizeof *clock);
    clock->self = c;
    clock->now_ms = crowd_now;
    desc.port.io = io;
    desc.port.clock = clock;
    desc.discovery = plb_static(&discovery);
    desc.user = c;
    desc.on_eject = crowd_on_eject;
    desc.outlier.on = true;
    desc.outlier.base_ejection_ms = 20;
    desc.outlier.max_ejection_ms = 50;
    desc.outlier.interval_ms = 30;
    desc.outlier.max_ejection_percent = 50;
    return plb_create(&desc, &c->lb);
}

static bool crowd_goes_on(const crowd *c, uint32_t polls, time_t begun)
{
    bool enough = polls >= POLLS && c->ejections >= EJECTIONS && c->returns >= EJECTIONS;
    return !enough && time(NULL) - begun < PATIENCE_S;
}

/* A millisecond passes for each poll; the guest comes and goes, with word of it on its way or not. */
static void crowd_poll(crowd *c, uint32_t polls)
{
    plb_backend guest = nth(MEMBERS);
    plb_status status = PLB_OK;
    if (polls % 8 == 0)
        status = polls % 16 == 0 ? plb_remove(c->lb, &guest) : plb_add(c->lb, &guest);
    if (status != PLB_OK)
        abort();
    plb_poll(c->lb);
    ADD(&c->now_ms, 1);
    sched_yield();
}

TEST threads_count_together_and_one_ejects(void)
{
    pthread_t threads[WORKERS];
    time_t begun = time(NULL);
    plb_clock clock;
    plb_io io;
    crowd c;
    uint32_t i, n;
    memset(&c, 0, sizeof c);
    ASSERT_EQ(PLB_OK, crowd_create(&c, &io, &clock));
    for (i = 0; i < WORKERS; i++)
        ASSERT_EQ(0, pthread_create(&threads[i], NULL, crowd_work, &c));
    for (i = 0; crowd_goes_on(&c, i, begun); i++)
        crowd_poll(&c, i);
    ADD(&c.stop, 1);
    for (i = 0; i < WORKERS; i++)
        pthread_join(threads[i], NULL);
    plb_poll(c.lb);
    for (n = 1; n < MEMBERS; n++) { /* the guest's counts went with it */
        plb_backend b = nth(n);
        plb_outlier_info info;
        ASSERT_EQ(PLB_OK, plb_find_outlier(c.lb, &b.addr, 0, &info));
        ASSERT_EQ_FMT((uint64_t)c.passed[n] + c.failed[n], info.requests, "%lu");
        ASSERT_EQ_FMT((uint64_t)c.failed[n], info.failures, "%lu");
        ASSERT(n % 2 != 0 || info.ejections == 0);
    }
    plb_destroy(c.lb);
    ASSERT(c.ejections >= EJECTIONS && c.returns >= EJECTIONS && c.wakes >= EJECTIONS);
    ASSERT_EQ_FMT(0u, c.over_share, "%u");
    PASS();
}

SUITE(outlier)
{
    uint32_t i;
    RUN_TESTp(five_failures_in_a_row_eject, PLB_OUTCOME_SERVER_ERROR);
    RUN_TESTp(five_failures_in_a_row_eject, PLB_OUTCOME_BROKEN);
    RUN_TESTp(five_failures_in_a_row_eject, PLB_OUTCOME_CONNECT_ERROR);
    RUN_TEST(failures_of_all_kinds_make_a_row);
    RUN_TEST(connect_errors_have_a_threshold_of_their_own);
    RUN_TEST(a_threshold_may_be_switched_off);
    RUN_TEST(the_row_is_judged_as_it_was_when_it_was_complete);
    RUN_TEST(without_detection_nothing_is_counted);
    RUN_TEST(what_is_known_can_be_asked);
    RUN_TEST(metrics_tell_requests_failures_and_ejections);
    RUN_TEST(an_ejection_ends_when_its_time_is_over);
    RUN_TEST(ejections_last_longer_each_time_up_to_a_limit);
    RUN_TEST(good_intervals_make_the_next_ejection_shorter);
    RUN_TEST(an_ejection_that_ends_with_an_interval_is_over_before_it);
    RUN_TEST(the_longest_ejection_is_no_shorter_than_the_first);
    RUN_TESTp(no_more_than_the_share_is_ejected, 0);
    RUN_TESTp(no_more_than_the_share_is_ejected, 1);
    RUN_TESTp(no_more_than_the_share_is_ejected, 34);
    RUN_TESTp(no_more_than_the_share_is_ejected, 100);
    RUN_TEST(what_is_spared_for_the_share_must_fail_anew);
    RUN_TEST(the_share_is_one_of_the_current_set);
    RUN_TEST(duplicates_are_one_backend);
    RUN_TEST(one_that_fails_more_often_than_the_others_is_ejected);
    for (i = 0; i < sizeof rate_cases / sizeof *rate_cases; i++)
        RUN_TESTp(the_success_rate_is_judged_by_its_settings, &rate_cases[i]);
    RUN_TEST(a_difference_that_rounding_hides_ejects_nobody);
    RUN_TEST(an_interval_stands_for_itself);
    RUN_TEST(the_ejected_are_not_compared);
    RUN_TESTp(it_does_what_a_reader_of_the_manual_would_write, 1, 50, 1);
    RUN_TESTp(it_does_what_a_reader_of_the_manual_would_write, 3, 10, 2);
    RUN_TESTp(it_does_what_a_reader_of_the_manual_would_write, 8, 40, 3);
    RUN_TESTp(it_does_what_a_reader_of_the_manual_would_write, 12, 100, 4);
    RUN_TESTp(a_probe_that_succeeds_ends_the_ejection, false);
    RUN_TESTp(a_probe_that_succeeds_ends_the_ejection, true);
    RUN_TESTp(a_neutral_probe_does_not_end_the_ejection, false);
    RUN_TESTp(a_neutral_probe_does_not_end_the_ejection, true);
    RUN_TEST(a_probe_that_began_before_the_ejection_does_not_end_it);
    RUN_TEST(a_probe_does_not_end_it_while_a_check_fails);
    RUN_TEST(one_that_comes_back_while_a_check_fails_is_not_ready);
    RUN_TEST(one_that_comes_back_starts_slowly);
    RUN_TEST(a_tier_that_panics_uses_the_ejected);
    RUN_TEST(the_only_backend_goes_only_where_all_may);
    RUN_TEST(updates_keep_what_is_known);
    RUN_TEST(one_that_leaves_takes_its_record_along);
    RUN_TESTp(word_of_one_that_has_left_is_ignored, true);
    RUN_TESTp(word_of_one_that_has_left_is_ignored, false);
    RUN_TEST(word_keeps_its_backend_until_it_is_read);
    for (i = 0; i < 4; i++)
        RUN_TESTp(it_may_be_destroyed_at_any_moment, i);
    RUN_TEST(settings_that_make_no_sense_are_refused);
    RUN_TEST(each_allocation_may_fail);
    RUN_TEST(strategies_and_checks_keep_their_bytes_beside_it);
    RUN_TEST(threads_count_together_and_one_ejects);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(outlier);
    GREATEST_MAIN_END();
}
