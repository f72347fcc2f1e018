/* Everything that can fail is made to, one call after another: nothing crashes, leaks or hangs, and once the failures
   are over every backend is served. */
#include "../pingora_lb.h"
#define SIM_IMPLEMENTATION
#include "sim.h"
#include <greatest.h>
#include "rig.h"

#define N_MAX 5000 /* a scenario has fewer calls than that, or it does not end */

/* ---- the scenario: names, checks, a ring, changes, requests ---- */

#define EXTS 4

typedef struct scenario {
    rig r;
    int releases[EXTS];
    bool handed[EXTS]; /* to the balancer, which then must release it, once */
    plb_pick pick;
    uint32_t check_every_ms;
} scenario;

static void serve(scenario *c, const char *addr)
{
    plb_addr at = sim_addr(addr);
    sim_serve(c->r.s, &at, NULL, NULL);
}

static void name_is(scenario *c, const char *host, const char *addr)
{
    plb_addr at = sim_addr(addr);
    sim_name_set(c->r.s, host, &at, 1)->delay_ms = 3;
}

static void begin(scenario *c)
{
    memset(c, 0, sizeof *c);
    rig_begin(&c->r);
    serve(c, "10.0.0.1:80");
    serve(c, "10.0.0.2:80");
    serve(c, "10.0.0.3:80");
    serve(c, "10.0.0.4:80");
    serve(c, "10.0.1.1:80");
    serve(c, "10.0.1.2:80");
    name_is(c, "a.example", "10.0.1.1:0");
    name_is(c, "b.example", "10.0.1.2:0");
}

static plb_backend with_ext(scenario *c, int n, const char *addr)
{
    return rig_with_ext(rig_backend(addr, 1), &c->releases[n]);
}

static plb_status create(scenario *c)
{
    const char *addresses[] = {"a.example:80", "10.0.0.1:80"};
    plb_backend backend = with_ext(c, 0, "10.0.0.2:80");
    plb_static_desc list;
    plb_ketama_desc ketama = {0};
    plb_status status;
    memset(&list, 0, sizeof list);
    list.addresses = addresses;
    list.address_count = 2;
    list.backends = &backend;
    list.backend_count = 1;
    c->r.desc.discovery = plb_static(&list);
    c->r.desc.strategy = plb_ketama(&ketama);
    c->r.desc.check = plb_tcp_check(NULL);
    c->r.desc.check_every_ms = c->check_every_ms;
    c->r.desc.start_unhealthy = true;
    status = rig_create(&c->r);
    c->handed[0] = c->handed[0] || status == PLB_OK;
    return status;
}

/* A program tries again what was refused for want of memory. */
static bool add(scenario *c, const plb_backend *backend)
{
    int tries;
    for (tries = 0; tries < 10; tries++) {
        if (plb_add(c->r.lb, backend) == PLB_OK)
            return true;
        rig_run(&c->r, 1);
    }
    return false;
}

static bool replace(scenario *c, const plb_backend *backends, size_t count)
{
    int tries;
    for (tries = 0; tries < 10; tries++) {
        if (plb_replace(c->r.lb, backends, count) == PLB_OK)
            return true;
        rig_run(&c->r, 1);
    }
    return false;
}

/* Runs through it all, up to `steps` of it. False: a call failed in a way that it must not. */
static bool run(scenario *c, int steps)
{
    plb_backend third = with_ext(c, 1, "10.0.0.3:80"), name = rig_host("b.example", 80, 1), all[4];
    int tries;
    for (tries = 0; c->r.lb == NULL; tries++)
        if (tries == 10 || (create(c) != PLB_OK && c->releases[0] != 0))
            return false;
    if (steps < 1)
        return true;
    rig_run(&c->r, 10);
    if (!add(c, &third))
        return false;
    c->handed[1] = true;
    if (steps < 2)
        return true;
    rig_run(&c->r, 2);
    plb_end(&c->pick, PLB_OUTCOME_SUCCESS, 100);
    plb_begin(c->r.lb, NULL, &c->pick); /* or nothing is ready yet */
    if (!add(c, &name))
        return false;
    if (steps < 3)
        return true;
    rig_run(&c->r, 10);
    plb_update_now(c->r.lb);
    plb_check_now(c->r.lb);
    rig_run(&c->r, 2);
    if (steps < 4)
        return true;
    all[0] = with_ext(c, 1, "10.0.0.3:80"); /* the same again */
    all[1] = with_ext(c, 2, "10.0.0.4:80");
    all[2] = rig_host("b.example", 80, 1);
    all[3] = rig_backend("10.0.0.1:80", 2);
    if (!replace(c, all, 4))
        return false;
    c->handed[2] = true;
    rig_run(&c->r, 10);
    plb_end(&c->pick, PLB_OUTCOME_SUCCESS, 100);
    return true;
}

/* Ends it; says whether nothing was left behind and each ext was released as often as it should be. */
static bool end(scenario *c)
{
    bool ok = true;
    int i;
    plb_end(&c->pick, PLB_OUTCOME_SUCCESS, 100);
    if (rig_end(&c->r) != 0)
        ok = false;
    for (i = 0; i < EXTS; i++)
        if (c->releases[i] != (c->handed[i] ? 1 : 0)) {
            fprintf(stderr, "ext %d was released %d times\n", i, c->releases[i]);
            ok = false;
        }
    return ok;
}

#define SERVED "10.0.0.1:80*2 10.0.0.3:80 10.0.0.4:80 10.0.1.2:80(b.example)"

TEST each_allocation_may_fail(uint64_t in_a_row)
{
    uint64_t n, failed = 0;
    for (n = 1; n < N_MAX; n++) {
        scenario c;
        bool over;
        begin(&c);
        c.r.memory.fail_at = n;
        c.r.memory.fail_count = in_a_row;
        ASSERT(run(&c, 4));
        over = c.r.memory.calls < n;
        c.r.memory.fail_at = 0;
        rig_run(&c.r, 8000);
        ASSERT_STR_EQ(SERVED, rig_set(&c.r));
        ASSERT(end(&c));
        if (over)
            break;
        failed++;
    }
    ASSERT_GT(failed, 50);
    ASSERT(n < N_MAX);
    PASS();
}

TEST a_start_that_was_short_of_memory_is_made_good(uint64_t in_a_row)
{
    uint64_t n;
    for (n = 1; n < N_MAX; n++) {
        scenario c;
        bool over;
        begin(&c);
        c.r.memory.fail_at = n;
        c.r.memory.fail_count = in_a_row;
        ASSERT(run(&c, 0));
        rig_run(&c.r, 100);
        over = c.r.memory.calls < n;
        c.r.memory.fail_at = 0;
        rig_run(&c.r, 4000);
        ASSERT_STR_EQ("10.0.0.1:80 10.0.0.2:80 10.0.1.1:80(a.example)", rig_set(&c.r));
        ASSERT(end(&c));
        if (over)
            break;
    }
    ASSERT(n < N_MAX);
    PASS();
}

TEST each_io_call_may_fail(uint64_t in_a_row, plb_status how)
{
    uint64_t n, failed = 0;
    for (n = 1; n < N_MAX; n++) {
        scenario c;
        bool over;
        begin(&c);
        c.check_every_ms = 3000; /* failures of the other side are made good by the next round */
        c.r.s->fail_io_at = n;
        c.r.s->fail_io_count = in_a_row;
        c.r.s->fail_io_status = how;
        ASSERT(run(&c, 4));
        over = c.r.s->io_calls < n;
        c.r.s->fail_io_at = 0;
        rig_run(&c.r, 8000);
        ASSERT_STR_EQ(SERVED, rig_set(&c.r));
        ASSERT(end(&c));
        if (over)
            break;
        failed++;
    }
    ASSERT_GT(failed, 10);
    ASSERT(n < N_MAX);
    PASS();
}

TEST the_end_may_come_after_any_failure(int steps)
{
    uint64_t n;
    for (n = 1; n < N_MAX; n++) {
        scenario c;
        bool over;
        begin(&c);
        c.r.memory.fail_at = n;
        c.r.memory.fail_count = 3;
        ASSERT(run(&c, steps));
        over = c.r.memory.calls < n;
        ASSERT(end(&c));
        if (over)
            break;
    }
    ASSERT(n < N_MAX);
    PASS();
}

/* From the n-th allocation on there is none: what is there goes on, and requests do not need any. */
TEST without_memory_the_last_good_set_serves_on(void)
{
    uint64_t n;
    for (n = 1; n < 200; n += 3) {
        plb_addr out;
        int i;
        scenario c;
        begin(&c);
        ASSERT(run(&c, 0));
        rig_run(&c.r, 100);
        c.r.memory.fail_at = c.r.memory.calls + n;
        c.r.memory.fail_count = UINT64_MAX;
        run(&c, 4);
        for (i = 0; i < 100; i++) {
            plb_pick pick;
            rig_run(&c.r, 100);
            ASSERT_EQ(PLB_OK, plb_select(c.r.lb, "k", 1, 0, &out));
            ASSERT_EQ(PLB_OK, plb_begin(c.r.lb, NULL, &pick));
            plb_end(&pick, PLB_OUTCOME_SUCCESS, 1);
        }
        c.r.memory.fail_at = 0;
        ASSERT(run(&c, 4));
        rig_run(&c.r, 8000);
        ASSERT_STR_EQ(SERVED, rig_set(&c.r));
        ASSERT(end(&c));
    }
    PASS();
}

TEST every_allocation_may_fail_with_a_discovery_of_the_programs_own(void)
{
    uint64_t n;
    for (n = 1; n < N_MAX; n++) {
        int releases[2] = {0, 0};
        plb_backend now[2];
        bool over;
        rig r;
        feed f;
        prober p;
        memset(&f, 0, sizeof f);
        memset(&p, 0, sizeof p);
        rig_begin(&r);
        r.desc.discovery = feed_discovery(&f, true); /* keeps what was refused, and so may hand it over again */
        r.desc.check = prober_check(&p);
        now[0] = rig_with_ext(rig_backend("10.0.0.1:80", 1), &releases[0]);
        now[1] = rig_with_ext(rig_backend("10.0.0.2:80", 1), &releases[1]);
        feed_set(&f, now, 1);
        r.memory.fail_at = n;
        while (rig_create(&r) != PLB_OK)
            ASSERT_EQ(0, f.starts); /* which opened nothing */
        rig_run(&r, 1100);
        feed_set(&f, now, 2);
        plb_update_now(r.lb);
        rig_run(&r, 3000);
        ASSERT_STR_EQ("10.0.0.1:80 10.0.0.2:80", rig_set(&r));
        ASSERT(p.starts >= 2);
        over = r.memory.calls < n;
        ASSERT_EQ(0, rig_end(&r));
        ASSERT_EQ(1, releases[0]);
        ASSERT_EQ(1, releases[1]);
        if (over)
            break;
    }
    ASSERT(n > 10 && n < N_MAX);
    PASS();
}

/* An arena of any size: plb_create works or says that it cannot. */
TEST an_arena_that_is_too_small_is_an_error(void)
{
    static unsigned char bytes[200000];
    size_t size;
    bool created = false;
    for (size = 0; size < sizeof bytes; size += size < 8000 ? 64 : 997) {
        const char *addresses[] = {"10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"};
        plb_static_desc list;
        plb_balancer_desc desc;
        plb_balancer *lb;
        plb_arena arena;
        plb_addr out;
        memset(&list, 0, sizeof list);
        memset(&desc, 0, sizeof desc);
        list.addresses = addresses;
        list.address_count = 3;
        desc.discovery = plb_static(&list);
        desc.strategy = plb_ketama(NULL);
        desc.allocator = plb_arena_allocator(&arena, bytes, size);
        if (plb_create(&desc, &lb) == PLB_OK) {
            plb_update_info info;
            plb_poll(lb);
            plb_last_update(lb, &info);
            created = plb_select(lb, "k", 1, 0, &out) == PLB_OK;
            ASSERT_EQ(created, info.status == PLB_OK);
            plb_destroy(lb);
        }
        ASSERT_EQ(0, arena.used);
    }
    ASSERT(created);
    PASS();
}

SUITE(failures)
{
    RUN_TESTp(each_allocation_may_fail, 1);
    RUN_TESTp(each_allocation_may_fail, 2);
    RUN_TESTp(each_allocation_may_fail, 5);
    RUN_TESTp(a_start_that_was_short_of_memory_is_made_good, 1);
    RUN_TESTp(a_start_that_was_short_of_memory_is_made_good, 3);
    RUN_TESTp(each_io_call_may_fail, 1, PLB_ERR_LIMIT);
    RUN_TESTp(each_io_call_may_fail, 1, PLB_ERR_MEMORY);
    RUN_TESTp(each_io_call_may_fail, 3, PLB_ERR_IO);
    RUN_TESTp(each_io_call_may_fail, 4, PLB_ERR_REFUSED);
    RUN_TESTp(the_end_may_come_after_any_failure, 0);
    RUN_TESTp(the_end_may_come_after_any_failure, 1);
    RUN_TESTp(the_end_may_come_after_any_failure, 2);
    RUN_TESTp(the_end_may_come_after_any_failure, 3);
    RUN_TESTp(the_end_may_come_after_any_failure, 4);
    RUN_TEST(without_memory_the_last_good_set_serves_on);
    RUN_TEST(every_allocation_may_fail_with_a_discovery_of_the_programs_own);
    RUN_TEST(an_arena_that_is_too_small_is_an_error);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(failures);
    GREATEST_MAIN_END();
}
