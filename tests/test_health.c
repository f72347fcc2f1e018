/* Health: what results of probes do to backends, the TCP check, and checks of a program's own. */
#include "../pingora_lb.h"
#define SIM_IMPLEMENTATION
#include "sim.h"
#include <greatest.h>
#include "rig.h"

/* A balancer of up to three addresses. */
static plb_status create(rig *r, const char *first, const char *second, const char *third)
{
    static const char *addresses[3]; /* they and the descriptor are read in plb_create only */
    static plb_static_desc list;
    addresses[0] = first;
    addresses[1] = second;
    addresses[2] = third;
    list.addresses = addresses;
    list.address_count = first == NULL ? 0 : second == NULL ? 1 : third == NULL ? 2 : 3;
    r->desc.discovery = plb_static(&list);
    return rig_create(r);
}

/* With a check that is played by hand. */
static void begin(rig *r, prober *p)
{
    rig_begin(r);
    memset(p, 0, sizeof *p);
    r->desc.check = prober_check(p);
}

/* One round in which every probe ends so. */
static void check_round(rig *r, prober *p, plb_status result)
{
    p->result = result;
    plb_check_now(r->lb);
    rig_run(r, 1);
}

static void serve(rig *r, const char *addr)
{
    plb_addr at = sim_addr(addr);
    sim_serve(r->s, &at, NULL, NULL);
}

static sim_host_t *host(rig *r, const char *addr)
{
    plb_addr at = sim_addr(addr);
    return sim_host(r->s, &at);
}

static bool ready(rig *r, const char *addr)
{
    plb_addr at = sim_addr(addr);
    return plb_ready(r->lb, &at, 0);
}

/* ---- the state machine ---- */

/* What a reader of the manual would write down. */
typedef struct model {
    bool healthy;
    uint32_t in_a_row, up, down;
} model;

static bool model_observe(model *m, bool success)
{
    if (success == m->healthy) {
        m->in_a_row = 0;
        return false;
    }
    m->in_a_row++;
    if (m->in_a_row < (success ? m->up : m->down))
        return false;
    m->healthy = success;
    m->in_a_row = 0;
    return true;
}

TEST thresholds_decide_when_health_flips(uint32_t up, uint32_t down, bool start_unhealthy)
{
    uint64_t random = up * 100 + down + start_unhealthy;
    uint32_t flips = 0;
    int i;
    model m;
    rig r;
    prober p;
    begin(&r, &p);
    r.desc.check.consecutive_success = up;
    r.desc.check.consecutive_failure = down;
    r.desc.start_unhealthy = start_unhealthy;
    p.later = true;
    m.healthy = !start_unhealthy;
    m.in_a_row = 0;
    m.up = up;
    m.down = down;
    ASSERT_EQ(PLB_OK, create(&r, "10.0.0.1:80", NULL, NULL));
    rig_run(&r, 1);
    for (i = 0; i < 400; i++) {
        bool success;
        random = random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        success = (random >> 40) % 100 < (i / 50 % 2 != 0 ? 85 : 15);
        prober_done(&p, p.starts - 1, success ? PLB_OK : PLB_ERR_REFUSED);
        flips += model_observe(&m, success);
        plb_check_now(r.lb);
        rig_run(&r, 1);
        ASSERT_EQ(flips, r.flips);
        ASSERT_EQ(m.healthy, ready(&r, "10.0.0.1:80"));
    }
    ASSERT_GT(flips, 2);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST zero_thresholds_are_one(void)
{
    rig r;
    prober p;
    begin(&r, &p);
    p.result = PLB_ERR_REFUSED;
    ASSERT_EQ(PLB_OK, create(&r, "10.0.0.1:80", NULL, NULL));
    rig_run(&r, 1);
    ASSERT_STR_EQ("10.0.0.1:80 unhealthy", rig_set(&r));
    check_round(&r, &p, PLB_OK);
    ASSERT_STR_EQ("10.0.0.1:80", rig_set(&r));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST start_unhealthy_waits_for_the_checks_and_needs_one(void)
{
    plb_addr out;
    rig r;
    prober p;
    begin(&r, &p);
    p.later = true;
    r.desc.start_unhealthy = true;
    ASSERT_EQ(PLB_OK, create(&r, "10.0.0.1:80", NULL, NULL));
    ASSERT_EQ(PLB_ERR_NOT_READY, plb_select(r.lb, "k", 1, 0, &out));
    rig_run(&r, 1);
    prober_done(&p, 0, PLB_OK);
    rig_run(&r, 1);
    ASSERT_EQ(PLB_OK, plb_select(r.lb, "k", 1, 0, &out));
    ASSERT_EQ(0, rig_end(&r));
    rig_begin(&r);
    r.desc.start_unhealthy = true;
    ASSERT_EQ(PLB_ERR_ARGUMENT, create(&r, "10.0.0.1:80", NULL, NULL));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST the_observer_hears_of_each_flip_and_its_cause(void)
{
    rig r;
    prober p;
    begin(&r, &p);
    ASSERT_EQ(PLB_OK, create(&r, "10.0.0.1:80", NULL, NULL));
    rig_run(&r, 1);
    ASSERT_EQ(0, r.flips); /* it was healthy before */
    check_round(&r, &p, PLB_ERR_REFUSED);
    ASSERT_EQ(1, r.flips);
    ASSERT_EQ(PLB_ERR_REFUSED, r.flip_status);
    ASSERT_FALSE(r.flip.healthy);
    ASSERT_FALSE(r.flip.ready);
    ASSERT(r.flip.enabled);
    ASSERT_EQ(1, r.flip.backend.weight);
    ASSERT(rig_logged(&r, "unhealthy: 10.0.0.1:80: The connection was refused."));
    check_round(&r, &p, PLB_ERR_TIMEOUT);
    ASSERT_EQ(1, r.flips);
    check_round(&r, &p, PLB_OK);
    ASSERT_EQ(2, r.flips);
    ASSERT_EQ(PLB_OK, r.flip_status);
    ASSERT(r.flip.healthy);
    ASSERT(r.flip.ready);
    ASSERT(rig_logged(&r, "healthy again: 10.0.0.1:80\n"));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

static size_t summary(void *user, const plb_backend *backend, char *text, size_t capacity)
{
    (void)user;
    return (size_t)snprintf(text, capacity, "shop %u%300s", (unsigned)backend->id, "!");
}

TEST log_lines_call_a_backend_what_the_program_calls_it(void)
{
    plb_backend backend = rig_backend("10.0.0.1:80", 1);
    plb_static_desc list;
    rig r;
    prober p;
    memset(&list, 0, sizeof list);
    backend.id = 17;
    list.backends = &backend;
    list.backend_count = 1;
    begin(&r, &p);
    r.desc.summary = summary; /* longer than there is room for */
    r.desc.discovery = plb_static(&list);
    p.result = PLB_ERR_RESET;
    ASSERT_EQ(PLB_OK, rig_create(&r));
    rig_run(&r, 1);
    ASSERT(rig_logged(&r, "unhealthy: shop 17"));
    ASSERT(rig_logged(&r, ": The connection was reset."));
    ASSERT_FALSE(rig_logged(&r, "10.0.0.1"));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST the_switch_and_health_do_not_touch_each_other(void)
{
    plb_addr at = sim_addr("10.0.0.1:80"), other = sim_addr("10.0.0.2:80");
    rig r;
    prober p;
    begin(&r, &p);
    ASSERT_EQ(PLB_OK, create(&r, "10.0.0.1:80", NULL, NULL));
    rig_run(&r, 1);
    ASSERT_EQ(PLB_OK, plb_set_enabled(r.lb, &at, 0, false));
    ASSERT_STR_EQ("10.0.0.1:80 off", rig_set(&r));
    check_round(&r, &p, PLB_ERR_REFUSED); /* it is probed nevertheless */
    ASSERT_STR_EQ("10.0.0.1:80 unhealthy off", rig_set(&r));
    ASSERT_EQ(PLB_OK, plb_set_enabled(r.lb, &at, 0, true));
    ASSERT_STR_EQ("10.0.0.1:80 unhealthy", rig_set(&r));
    ASSERT_FALSE(ready(&r, "10.0.0.1:80"));
    ASSERT_EQ(PLB_OK, plb_set_enabled(r.lb, &at, 0, false));
    check_round(&r, &p, PLB_OK);
    ASSERT_STR_EQ("10.0.0.1:80 off", rig_set(&r));
    ASSERT_FALSE(ready(&r, "10.0.0.1:80"));
    ASSERT_EQ(PLB_OK, plb_set_enabled(r.lb, &at, 0, true));
    ASSERT(ready(&r, "10.0.0.1:80"));
    ASSERT_EQ(PLB_ERR_ADDRESS, plb_set_enabled(r.lb, &other, 0, false));
    ASSERT_EQ(PLB_ERR_ADDRESS, plb_set_enabled(r.lb, &at, 1, false));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST failures_of_this_side_count_for_nothing_and_are_retried_in_a_second(void)
{
    static const plb_status local[] = {PLB_ERR_LIMIT, PLB_ERR_MEMORY, PLB_ERR_CANCELLED, PLB_ERR_ACCESS};
    size_t i;
    for (i = 0; i < sizeof local / sizeof *local; i++) {
        rig r;
        prober p;
        begin(&r, &p);
        r.desc.check.consecutive_failure = 2;
        r.desc.check_every_ms = 60000;
        p.result = PLB_ERR_REFUSED;
        ASSERT_EQ(PLB_OK, create(&r, "10.0.0.1:80", "10.0.0.2:80", NULL));
        rig_run(&r, 1);
        p.result = local[i];
        plb_check_now(r.lb);
        rig_run(&r, 1);
        ASSERT_EQ(4, p.starts);
        ASSERT_STR_EQ("10.0.0.1:80 10.0.0.2:80", rig_set(&r));
        ASSERT(rig_logged(&r, "could not probe 10.0.0.1:80: "));
        p.result = PLB_OK;
        p.start_status = local[i]; /* the same from start */
        rig_run(&r, 1000);
        ASSERT_EQ(6, p.starts);
        p.start_status = PLB_OK;
        p.result = PLB_ERR_REFUSED; /* the second in a row */
        rig_run(&r, 998);
        ASSERT_EQ(6, p.starts);
        rig_run(&r, 2);
        ASSERT_EQ(8, p.starts);
        ASSERT_STR_EQ("10.0.0.1:80 unhealthy 10.0.0.2:80 unhealthy", rig_set(&r));
        rig_run(&r, 10000);
        ASSERT_EQ(8, p.starts);
        ASSERT_EQ(0, rig_end(&r));
    }
    PASS();
}

TEST only_what_could_not_be_probed_is_retried(void)
{
    rig r;
    prober p;
    begin(&r, &p);
    p.later = true;
    ASSERT_EQ(PLB_OK, create(&r, "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"));
    rig_run(&r, 1);
    prober_done(&p, prober_last(&p, "10.0.0.1:80"), PLB_OK);
    prober_done(&p, prober_last(&p, "10.0.0.2:80"), PLB_ERR_LIMIT);
    prober_done(&p, prober_last(&p, "10.0.0.3:80"), PLB_ERR_REFUSED);
    rig_run(&r, 500);
    ASSERT_EQ(3, p.starts);
    rig_run(&r, 501);
    ASSERT_EQ(4, p.starts);
    ASSERT_EQ(3, prober_last(&p, "10.0.0.2:80"));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST a_drained_backend_is_probed_and_never_ready(void)
{
    plb_backend drained = rig_backend("10.0.0.1:80", 0);
    plb_static_desc list;
    rig r;
    prober p;
    memset(&list, 0, sizeof list);
    list.backends = &drained;
    list.backend_count = 1;
    begin(&r, &p);
    r.desc.start_unhealthy = true;
    r.desc.discovery = plb_static(&list);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    rig_run(&r, 1);
    ASSERT_EQ(1, p.starts);
    ASSERT_EQ(0, p.weights[0]);
    ASSERT_EQ(1, r.flips);
    ASSERT(r.flip.healthy);
    ASSERT_FALSE(ready(&r, "10.0.0.1:80"));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST a_newcomer_is_probed_at_once_and_alone(void)
{
    int releases = 0;
    plb_backend newcomer = rig_with_ext(rig_backend("10.0.0.2:80", 3), &releases);
    rig r;
    prober p;
    begin(&r, &p);
    r.desc.check_every_ms = 60000;
    r.desc.start_unhealthy = true;
    ASSERT_EQ(PLB_OK, create(&r, "10.0.0.1:80", "10.0.0.3:80", NULL));
    rig_run(&r, 1);
    ASSERT_EQ(2, p.starts);
    rig_run(&r, 100);
    ASSERT_EQ(PLB_OK, plb_add(r.lb, &newcomer));
    rig_run(&r, 1);
    ASSERT_EQ(3, p.starts);
    ASSERT_EQ(2, prober_last(&p, "10.0.0.2:80"));
    ASSERT(p.exts[2] == &releases);
    ASSERT_STR_EQ("10.0.0.1:80 10.0.0.2:80*3 10.0.0.3:80", rig_set(&r));
    ASSERT_EQ(1, r.first_checks);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST duplicates_are_probed_once(void)
{
    plb_backend twice[2];
    plb_static_desc list;
    rig r;
    prober p;
    memset(&list, 0, sizeof list);
    twice[0] = rig_backend("10.0.0.1:80", 1);
    twice[1] = rig_backend("10.0.0.1:80", 2);
    list.backends = twice;
    list.backend_count = 2;
    begin(&r, &p);
    r.desc.discovery = plb_static(&list);
    p.result = PLB_ERR_REFUSED;
    ASSERT_EQ(PLB_OK, rig_create(&r));
    rig_run(&r, 1);
    ASSERT_EQ(1, p.starts);
    ASSERT_EQ(1, r.flips);
    ASSERT_STR_EQ("10.0.0.1:80 unhealthy 10.0.0.1:80*2 unhealthy", rig_set(&r));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

/* ---- checks of a program's own ---- */

TEST a_probe_that_never_ends_ends_at_its_time_out(void)
{
    rig r;
    prober p;
    begin(&r, &p);
    p.later = true;
    ASSERT_EQ(PLB_OK, create(&r, "10.0.0.1:80", NULL, NULL));
    rig_run(&r, 999);
    ASSERT_EQ(0, p.cancels);
    rig_run(&r, 2);
    ASSERT_EQ(1, p.cancels);
    ASSERT_EQ(1, r.flips);
    ASSERT_EQ(PLB_ERR_TIMEOUT, r.flip_status);
    ASSERT_EQ(1, r.first_checks);
    plb_check_done(p.tokens[0], PLB_OK); /* late: ignored */
    rig_run(&r, 1);
    ASSERT_STR_EQ("10.0.0.1:80 unhealthy", rig_set(&r));
    plb_check_now(r.lb);
    rig_run(&r, 1);
    plb_check_done(p.tokens[0], PLB_OK); /* later still, while another is under way */
    rig_run(&r, 1);
    ASSERT_STR_EQ("10.0.0.1:80 unhealthy", rig_set(&r));
    prober_done(&p, 1, PLB_OK);
    plb_check_done(p.tokens[1], PLB_ERR_REFUSED); /* twice: the first counts */
    rig_run(&r, 1);
    plb_check_done(p.tokens[1], PLB_ERR_REFUSED);
    rig_run(&r, 1);
    ASSERT_STR_EQ("10.0.0.1:80", rig_set(&r));
    ASSERT_EQ(2, r.flips);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST a_start_that_fails_is_a_result(void)
{
    rig r;
    prober p;
    begin(&r, &p);
    p.start_status = PLB_ERR_UNREACHABLE;
    ASSERT_EQ(PLB_OK, create(&r, "10.0.0.1:80", NULL, NULL));
    rig_run(&r, 1);
    ASSERT_EQ(PLB_ERR_UNREACHABLE, r.flip_status);
    plb_check_done(p.tokens[0], PLB_OK);
    rig_run(&r, 1);
    ASSERT_STR_EQ("10.0.0.1:80 unhealthy", rig_set(&r));
    ASSERT_EQ(0, p.cancels);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST a_result_for_a_backend_that_left_is_dropped(void)
{
    plb_backend leaves = rig_backend("10.0.0.1:80", 1);
    rig r;
    prober p;
    begin(&r, &p);
    p.later = true;
    ASSERT_EQ(PLB_OK, create(&r, "10.0.0.1:80", "10.0.0.2:80", NULL));
    rig_run(&r, 1);
    ASSERT_EQ(PLB_OK, plb_remove(r.lb, &leaves));
    rig_run(&r, 1);
    ASSERT_EQ(PLB_OK, plb_add(r.lb, &leaves)); /* another one now */
    rig_run(&r, 1);
    ASSERT_EQ(3, p.starts);
    prober_done(&p, 0, PLB_ERR_REFUSED);
    rig_run(&r, 1);
    ASSERT_EQ(0, r.flips);
    prober_done(&p, 2, PLB_ERR_REFUSED);
    rig_run(&r, 1);
    ASSERT_STR_EQ("10.0.0.1:80 unhealthy 10.0.0.2:80", rig_set(&r));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST the_ext_of_a_backend_that_left_lives_as_long_as_its_probe(void)
{
    int releases = 0;
    plb_backend backend = rig_with_ext(rig_backend("10.0.0.1:80", 1), &releases);
    rig r;
    prober p;
    begin(&r, &p);
    p.later = true;
    ASSERT_EQ(PLB_OK, create(&r, NULL, NULL, NULL));
    ASSERT_EQ(PLB_OK, plb_add(r.lb, &backend));
    rig_run(&r, 1);
    ASSERT_EQ(1, p.starts);
    ASSERT_EQ(PLB_OK, plb_remove(r.lb, &backend));
    rig_run(&r, 10);
    ASSERT_EQ(0, releases);
    prober_done(&p, 0, PLB_OK);
    rig_run(&r, 1);
    ASSERT_EQ(1, releases);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST a_balancer_can_be_destroyed_while_it_probes(void)
{
    rig r;
    prober p;
    begin(&r, &p);
    p.later = true;
    ASSERT_EQ(PLB_OK, create(&r, "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"));
    rig_run(&r, 1);
    prober_done(&p, 1, PLB_OK); /* nobody will look at it */
    ASSERT_EQ(0, rig_end(&r));
    ASSERT_EQ(2, p.cancels);
    PASS();
}

#ifndef PLB_NO_THREADS
#include <pthread.h>

static void *probes_end_elsewhere(void *user)
{
    prober *p = (prober *)user;
    uint32_t n;
    for (n = 0; n < 3; n++)
        plb_check_done(p->tokens[n], n == 1 ? PLB_ERR_REFUSED : PLB_OK);
    return NULL;
}

/* The simulator's wake is for one thread: the balancer gets its clock only. */
TEST results_may_come_from_another_thread(void)
{
    pthread_t thread;
    int i;
    rig r;
    prober p;
    begin(&r, &p);
    p.later = true;
    r.desc.port.io = NULL;
    ASSERT_EQ(PLB_OK, create(&r, "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"));
    plb_poll(r.lb);
    ASSERT_EQ(3, p.starts);
    ASSERT_EQ(0, pthread_create(&thread, NULL, probes_end_elsewhere, &p));
    for (i = 0; i < 1000000 && r.first_checks == 0; i++)
        plb_poll(r.lb);
    ASSERT_EQ(0, pthread_join(thread, NULL));
    plb_poll(r.lb);
    ASSERT_STR_EQ("10.0.0.1:80 10.0.0.2:80 unhealthy 10.0.0.3:80", rig_set(&r));
    p.in_flight = 0;
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}
#endif

/* ---- the TCP check ---- */

TEST a_connection_is_a_success_and_closed_at_once(void)
{
    rig r;
    rig_begin(&r);
    r.desc.check = plb_tcp_check(NULL);
    r.desc.start_unhealthy = true;
    serve(&r, "10.0.0.1:80");
    serve(&r, "[::1]:80");
    serve(&r, "unix:/a");
    ASSERT_EQ(PLB_OK, create(&r, "10.0.0.1:80", "[::1]:80", "unix:/a"));
    rig_run(&r, 10);
    ASSERT_STR_EQ("10.0.0.1:80 [::1]:80 unix:/a", rig_set(&r));
    ASSERT_EQ(0, r.s->streams);
    ASSERT_EQ(1, host(&r, "10.0.0.1:80")->connects);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST each_way_to_fail_is_told_apart(bool instant)
{
    rig r;
    rig_begin(&r);
    r.desc.check = plb_tcp_check(NULL);
    r.desc.check_every_ms = 5000;
    r.s->instant_connect = instant;
    serve(&r, "10.0.0.1:80");
    ASSERT_EQ(PLB_OK, create(&r, "10.0.0.1:80", NULL, NULL));
    rig_run(&r, 4000);
    ASSERT_EQ(0, r.flips);
    host(&r, "10.0.0.1:80")->fault = SIM_REFUSE;
    rig_run(&r, 5000);
    ASSERT_EQ(1, r.flips);
    ASSERT_EQ(PLB_ERR_REFUSED, r.flip_status);
    host(&r, "10.0.0.1:80")->fault = SIM_FINE;
    rig_run(&r, 5000);
    ASSERT_EQ(2, r.flips);
    host(&r, "10.0.0.1:80")->fault = SIM_UNREACHABLE;
    rig_run(&r, 5000);
    ASSERT_EQ(3, r.flips);
    ASSERT_EQ(PLB_ERR_UNREACHABLE, r.flip_status);
    host(&r, "10.0.0.1:80")->fault = SIM_FINE;
    rig_run(&r, 5000);
    ASSERT_EQ(4, r.flips);
    host(&r, "10.0.0.1:80")->fault = SIM_HANG;
    rig_run(&r, 5000);
    ASSERT_EQ(5, r.flips);
    ASSERT_EQ(PLB_ERR_TIMEOUT, r.flip_status);
    host(&r, "10.0.0.1:80")->fault = SIM_SILENT; /* a connection is all that is asked for */
    rig_run(&r, 5000);
    ASSERT_EQ(6, r.flips);
    host(&r, "10.0.0.1:80")->fault = SIM_RESET;
    rig_run(&r, 5000);
    ASSERT(r.flips == 6 || r.flip_status == PLB_ERR_RESET);
    ASSERT_EQ(0, r.s->streams);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST a_hung_connection_is_given_up_after_a_second_or_as_told(uint32_t timeout_ms)
{
    plb_tcp_check_desc tcp;
    uint32_t limit = timeout_ms > 0 ? timeout_ms : 1000;
    rig r;
    memset(&tcp, 0, sizeof tcp);
    tcp.timeout_ms = timeout_ms;
    rig_begin(&r);
    r.desc.check = plb_tcp_check(&tcp);
    serve(&r, "10.0.0.1:80");
    host(&r, "10.0.0.1:80")->fault = SIM_HANG;
    ASSERT_EQ(PLB_OK, create(&r, "10.0.0.1:80", NULL, NULL));
    rig_run(&r, limit - 1);
    ASSERT_EQ(0, r.flips);
    ASSERT_EQ(1, r.s->streams);
    rig_run(&r, 2);
    ASSERT_EQ(1, r.flips);
    ASSERT_EQ(PLB_ERR_TIMEOUT, r.flip_status);
    ASSERT_EQ(0, r.s->streams);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

/* The sim's own far end sees where a probe comes from. */
static plb_addr seen_source;

static size_t see_source(void *user, sim_conn *conn, const char *bytes, size_t count)
{
    (void)user;
    (void)bytes;
    seen_source = conn->remote;
    return count;
}

TEST probes_come_from_the_source_address_of_their_family(void)
{
    plb_tcp_check_desc tcp;
    plb_addr at = sim_addr("10.0.0.1:80"), source = sim_addr("10.7.7.7:0");
    rig r;
    memset(&tcp, 0, sizeof tcp);
    tcp.source = source;
    rig_begin(&r);
    r.desc.check = plb_tcp_check(&tcp);
    r.desc.start_unhealthy = true;
    sim_serve(r.s, &at, see_source, NULL);
    serve(&r, "[::1]:80");
    ASSERT_EQ(PLB_OK, create(&r, "10.0.0.1:80", "[::1]:80", NULL));
    rig_run(&r, 10);
    ASSERT_STR_EQ("10.0.0.1:80 [::1]:80", rig_set(&r));
    seen_source.port = 0;
    ASSERT_EQ(0, plb_addr_compare(&source, &seen_source));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST the_tcp_check_needs_streams_and_a_clock(void)
{
    rig r;
    rig_begin(&r);
    r.desc.check = plb_tcp_check(NULL);
    r.desc.port.io = NULL;
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, create(&r, "10.0.0.1:80", NULL, NULL));
    ASSERT(rig_logged(&r, "check tcp cannot start: The port or object in use cannot do this."));
    r.desc.port = sim_port(r.s);
    r.desc.port.clock = NULL;
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, create(&r, "10.0.0.1:80", NULL, NULL));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST running_out_of_streams_harms_no_backend(void)
{
    rig r;
    rig_begin(&r);
    r.desc.check = plb_tcp_check(NULL);
    r.desc.start_unhealthy = true;
    r.s->max_streams = 1;
    serve(&r, "10.0.0.1:80");
    serve(&r, "10.0.0.2:80");
    serve(&r, "10.0.0.3:80");
    ASSERT_EQ(PLB_OK, create(&r, "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"));
    rig_run(&r, 3500); /* one a second gets through */
    ASSERT_STR_EQ("10.0.0.1:80 10.0.0.2:80 10.0.0.3:80", rig_set(&r));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

/* ---- callbacks ---- */

static uint32_t meddled;

static void meddle(rig *r)
{
    plb_addr out, at = sim_addr("10.0.0.1:80");
    plb_backend more = rig_backend("10.0.0.2:80", 1);
    plb_pick pick;
    if (r->flips == meddled)
        return; /* once a flip: an update that asks for an update would never end */
    meddled = r->flips;
    plb_check_now(r->lb);
    plb_set_enabled(r->lb, &at, 0, r->flips % 2 == 0);
    plb_select(r->lb, "k", 1, 0, &out);
    if (plb_begin(r->lb, NULL, &pick) == PLB_OK)
        plb_end(&pick, PLB_OUTCOME_SUCCESS, 1);
    if (r->flips % 2 == 0)
        plb_remove(r->lb, &more);
    else
        plb_add(r->lb, &more);
    rig_set(r);
}

TEST an_observer_may_meddle(void)
{
    int i;
    rig r;
    prober p;
    begin(&r, &p);
    p.later = true;
    r.in_callback = meddle;
    ASSERT_EQ(PLB_OK, create(&r, "10.0.0.1:80", NULL, NULL));
    for (i = 0; i < 60; i++) {
        uint32_t n;
        plb_check_now(r.lb);
        rig_run(&r, 1);
        n = prober_last(&p, "10.0.0.1:80");
        if (n != PLB_NONE)
            prober_done(&p, n, r.flips % 2 == 0 ? PLB_ERR_REFUSED : PLB_OK);
        n = prober_last(&p, "10.0.0.2:80");
        if (n != PLB_NONE)
            prober_done(&p, n, PLB_OK);
    }
    ASSERT_GT(r.flips, 10);
    p.in_flight = 0;
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

SUITE(health)
{
    uint32_t up, down;
    for (up = 1; up <= 5; up++)
        for (down = 1; down <= 5; down++)
            RUN_TESTp(thresholds_decide_when_health_flips, up, down, (up + down) % 2 == 0);
    RUN_TEST(zero_thresholds_are_one);
    RUN_TEST(start_unhealthy_waits_for_the_checks_and_needs_one);
    RUN_TEST(the_observer_hears_of_each_flip_and_its_cause);
    RUN_TEST(log_lines_call_a_backend_what_the_program_calls_it);
    RUN_TEST(the_switch_and_health_do_not_touch_each_other);
    RUN_TEST(failures_of_this_side_count_for_nothing_and_are_retried_in_a_second);
    RUN_TEST(only_what_could_not_be_probed_is_retried);
    RUN_TEST(a_drained_backend_is_probed_and_never_ready);
    RUN_TEST(a_newcomer_is_probed_at_once_and_alone);
    RUN_TEST(duplicates_are_probed_once);
    RUN_TEST(a_probe_that_never_ends_ends_at_its_time_out);
    RUN_TEST(a_start_that_fails_is_a_result);
    RUN_TEST(a_result_for_a_backend_that_left_is_dropped);
    RUN_TEST(the_ext_of_a_backend_that_left_lives_as_long_as_its_probe);
    RUN_TEST(a_balancer_can_be_destroyed_while_it_probes);
#ifndef PLB_NO_THREADS
    RUN_TEST(results_may_come_from_another_thread);
#endif
    RUN_TEST(a_connection_is_a_success_and_closed_at_once);
    RUN_TESTp(each_way_to_fail_is_told_apart, false);
    RUN_TESTp(each_way_to_fail_is_told_apart, true);
    RUN_TESTp(a_hung_connection_is_given_up_after_a_second_or_as_told, 0);
    RUN_TESTp(a_hung_connection_is_given_up_after_a_second_or_as_told, 250);
    RUN_TEST(probes_come_from_the_source_address_of_their_family);
    RUN_TEST(the_tcp_check_needs_streams_and_a_clock);
    RUN_TEST(running_out_of_streams_harms_no_backend);
    RUN_TEST(an_observer_may_meddle);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(health);
    GREATEST_MAIN_END();
}
