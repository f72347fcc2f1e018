/* Sets: how an answer of a discovery becomes the set that is picked from, and what stays across updates. */
#define PINGORA_LB_IMPLEMENTATION
#include "../pingora_lb.h"
#define SIM_IMPLEMENTATION
#include "sim.h"
#include <greatest.h>
#include "rig.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* A balancer whose sets come from `f`. */
static void begin(rig *r, feed *f)
{
    rig_begin(r);
    memset(f, 0, sizeof *f);
    r->desc.discovery = feed_discovery(f, false);
}

/* Has the balancer take over a set. */
static void update(rig *r, feed *f, const plb_backend *backends, size_t count)
{
    feed_set(f, backends, count);
    plb_update_now(r->lb);
    rig_run(r, 1);
}

static plb_addr at(const char *addr)
{
    return sim_addr(addr);
}

/* ---- comparing ---- */

TEST a_set_is_sorted_as_pingora_sorts(void)
{
    plb_backend backends[6];
    rig r;
    feed f;
    begin(&r, &f);
    backends[0] = rig_backend("unix:/b", 1);
    backends[1] = rig_backend("[::1]:80", 1);
    backends[2] = rig_backend("10.0.0.2:80", 1);
    backends[3] = rig_backend("10.0.0.10:80", 1);
    backends[4] = rig_backend("10.0.0.2:79", 1);
    backends[5] = rig_backend("unix:/a", 1);
    feed_set(&f, backends, COUNT(backends));
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_STR_EQ("10.0.0.2:79 10.0.0.2:80 10.0.0.10:80 [::1]:80 unix:/a unix:/b", rig_set(&r));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST duplicates_are_dropped_and_other_weights_and_ids_stay_apart(void)
{
    plb_backend backends[6];
    rig r;
    feed f;
    begin(&r, &f);
    backends[0] = rig_backend("10.0.0.1:80", 3);
    backends[1] = rig_backend("10.0.0.1:80", 2);
    backends[2] = rig_backend("10.0.0.1:80", 3);
    backends[3] = rig_backend("10.0.0.1:80", 1);
    backends[3].id = 7;
    backends[4] = rig_backend("10.0.0.1:80", 2);
    backends[5] = rig_backend("10.0.0.1:80", 3);
    feed_set(&f, backends, COUNT(backends));
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_STR_EQ("10.0.0.1:80*2 10.0.0.1:80*3 10.0.0.1:80#7", rig_set(&r));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST on_change_comes_only_when_the_set_changed(void)
{
    plb_backend two[2], turned[3];
    rig r;
    feed f;
    begin(&r, &f);
    turned[2] = turned[1] = two[0] = rig_backend("10.0.0.1:80", 1);
    turned[0] = two[1] = rig_backend("10.0.0.2:80", 1);
    feed_set(&f, two, 2);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_EQ(1, r.changes);
    ASSERT_EQ(1, r.updates);
    update(&r, &f, turned, 3); /* the same in another order, with a duplicate */
    ASSERT_EQ(1, r.changes);
    ASSERT_EQ(2, r.updates);
    two[1].weight = 2;
    update(&r, &f, two, 2);
    ASSERT_EQ(2, r.changes);
    two[1].id = 1;
    update(&r, &f, two, 2);
    ASSERT_EQ(3, r.changes);
    update(&r, &f, two, 1);
    ASSERT_EQ(4, r.changes);
    update(&r, &f, two, 0);
    ASSERT_EQ(5, r.changes);
    update(&r, &f, two, 0);
    ASSERT_EQ(5, r.changes);
    ASSERT_EQ(7, r.updates);
    ASSERT_EQ(5, r.update.changes);
    ASSERT_EQ(7, r.update.updates);
    ASSERT_EQ(0, r.update.backends);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST an_empty_set_is_a_set(void)
{
    plb_addr out;
    rig r;
    feed f;
    begin(&r, &f);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_EQ(1, r.changes);
    ASSERT_EQ(PLB_OK, r.first_status);
    ASSERT_EQ(PLB_ERR_EMPTY, plb_select(r.lb, "k", 1, 0, &out));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST what_stays_keeps_its_health(void)
{
    plb_backend a = rig_backend("10.0.0.1:80", 1), b = rig_backend("10.0.0.2:80", 1), now[3];
    rig r;
    feed f;
    prober p;
    begin(&r, &f);
    memset(&p, 0, sizeof p);
    p.later = true;
    r.desc.check = prober_check(&p);
    now[0] = a;
    now[1] = b;
    feed_set(&f, now, 2);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    rig_run(&r, 1);
    prober_done(&p, 0, PLB_ERR_REFUSED);
    prober_done(&p, 1, PLB_OK);
    rig_run(&r, 1);
    ASSERT_STR_EQ("10.0.0.1:80 unhealthy 10.0.0.2:80", rig_set(&r));
    now[0].weight = 5; /* another weight */
    update(&r, &f, now, 2);
    ASSERT_STR_EQ("10.0.0.1:80*5 unhealthy 10.0.0.2:80", rig_set(&r));
    now[2] = a; /* twice, with two weights */
    update(&r, &f, now, 3);
    ASSERT_STR_EQ("10.0.0.1:80 unhealthy 10.0.0.1:80*5 unhealthy 10.0.0.2:80", rig_set(&r));
    ASSERT_EQ(2, p.starts); /* nothing new to probe */
    update(&r, &f, &b, 1);  /* left */
    update(&r, &f, now, 2); /* returned: nothing is known of it */
    ASSERT_STR_EQ("10.0.0.1:80*5 10.0.0.2:80", rig_set(&r));
    ASSERT_EQ(3, p.starts);
    prober_done(&p, 2, PLB_ERR_REFUSED);
    rig_run(&r, 1);
    ASSERT_STR_EQ("10.0.0.1:80*5 unhealthy 10.0.0.2:80", rig_set(&r));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST an_update_switches_backends_on_and_off(void)
{
    plb_backend now[3];
    plb_addr second = at("10.0.0.2:80");
    rig r;
    feed f;
    begin(&r, &f);
    now[0] = rig_backend("10.0.0.1:80", 1);
    now[1] = rig_backend("10.0.0.2:80", 1);
    now[0].enablement = PLB_ENABLEMENT_OFF;
    feed_set(&f, now, 2);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_STR_EQ("10.0.0.1:80 off 10.0.0.2:80", rig_set(&r));
    ASSERT_EQ(PLB_OK, plb_set_enabled(r.lb, &second, 0, false));
    now[0].enablement = PLB_ENABLEMENT_KEEP;
    update(&r, &f, now, 2);
    ASSERT_STR_EQ("10.0.0.1:80 off 10.0.0.2:80 off", rig_set(&r));
    now[0].enablement = PLB_ENABLEMENT_ON;
    update(&r, &f, now, 2);
    ASSERT_STR_EQ("10.0.0.1:80 10.0.0.2:80 off", rig_set(&r));
    now[0].enablement = PLB_ENABLEMENT_OFF;
    now[1].enablement = PLB_ENABLEMENT_ON;
    now[2] = rig_backend("10.0.0.3:80", 1);
    now[2].enablement = PLB_ENABLEMENT_OFF;
    ASSERT_EQ(1, r.changes); /* none of it made another set */
    update(&r, &f, now, 3);
    ASSERT_STR_EQ("10.0.0.1:80 off 10.0.0.2:80 10.0.0.3:80 off", rig_set(&r));
    ASSERT_FALSE(plb_ready(r.lb, &now[0].addr, 0));
    ASSERT(plb_ready(r.lb, &now[1].addr, 0));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST an_update_changes_max_conns_without_another_set(void)
{
    plb_backend now = rig_backend("10.0.0.1:80", 1);
    plb_pick first, second;
    rig r;
    feed f;
    begin(&r, &f);
    feed_set(&f, &now, 1);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_EQ(PLB_OK, plb_begin(r.lb, NULL, &first));
    now.max_conns = 1;
    update(&r, &f, &now, 1);
    ASSERT_EQ(1, r.changes);
    ASSERT_STR_EQ("10.0.0.1:80 busy", rig_set(&r));
    ASSERT_EQ(PLB_ERR_NOT_READY, plb_begin(r.lb, NULL, &second));
    now.max_conns = 2;
    update(&r, &f, &now, 1);
    ASSERT_STR_EQ("10.0.0.1:80", rig_set(&r));
    ASSERT_EQ(PLB_OK, plb_begin(r.lb, NULL, &second));
    ASSERT_STR_EQ("10.0.0.1:80 busy", rig_set(&r));
    now.max_conns = 0;
    update(&r, &f, &now, 1);
    ASSERT_STR_EQ("10.0.0.1:80", rig_set(&r));
    plb_end(&first, PLB_OUTCOME_SUCCESS, 0);
    plb_end(&second, PLB_OUTCOME_SUCCESS, 0);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

/* ---- limits ---- */

TEST weights_from_0_to_65535_are_taken(void)
{
    plb_backend now[3];
    plb_addr out;
    rig r;
    feed f;
    begin(&r, &f);
    now[0] = rig_backend("10.0.0.1:80", 0);
    now[1] = rig_backend("10.0.0.2:80", PLB_WEIGHT_MAX);
    feed_set(&f, now, 1);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_EQ(PLB_ERR_NOT_READY, plb_select(r.lb, "k", 1, 0, &out));
    ASSERT_FALSE(plb_ready(r.lb, &now[0].addr, 0));
    update(&r, &f, now, 2);
    ASSERT_STR_EQ("10.0.0.1:80*0 busy 10.0.0.2:80*65535", rig_set(&r));
    ASSERT_EQ(PLB_OK, plb_select(r.lb, "k", 1, 0, &out));
    ASSERT_EQ(0, plb_addr_compare(&out, &now[1].addr));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST a_weight_above_is_refused_by_name_and_the_old_set_stays(void)
{
    plb_backend now[2];
    rig r;
    feed f;
    begin(&r, &f);
    now[0] = rig_backend("10.0.0.1:80", 1);
    now[1] = rig_backend("10.0.0.2:80", PLB_WEIGHT_MAX + 1);
    feed_set(&f, now, 1);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    update(&r, &f, now, 2);
    ASSERT_EQ(PLB_ERR_WEIGHT, r.update.status);
    ASSERT(rig_logged(&r, "10.0.0.2:80: A weight is above 65535"));
    ASSERT(rig_logged(&r, "the last good set serves on"));
    ASSERT_STR_EQ("10.0.0.1:80", rig_set(&r));
    ASSERT_EQ(1, r.changes);
    now[1].weight = 1;
    update(&r, &f, now, 2);
    ASSERT_EQ(PLB_OK, r.update.status);
    ASSERT_STR_EQ("10.0.0.1:80 10.0.0.2:80", rig_set(&r));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST a_backend_that_has_no_address_is_refused(void)
{
    plb_backend now[2];
    rig r;
    feed f;
    begin(&r, &f);
    now[0] = rig_backend("10.0.0.1:80", 1);
    now[1] = rig_backend("10.0.0.2:80", 1);
    feed_set(&f, now, 1);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    now[1].addr.port = 0;
    update(&r, &f, now, 2);
    ASSERT_EQ(PLB_ERR_ADDRESS, r.update.status);
    memset(&now[1].addr, 0, sizeof now[1].addr);
    update(&r, &f, now, 2);
    ASSERT_EQ(PLB_ERR_ADDRESS, r.update.status);
    now[1] = rig_host("a.example", 80, 1); /* names are the static list's */
    update(&r, &f, now, 2);
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, r.update.status);
    now[1] = rig_backend("unix:/x", 1);
    now[1].addr.path_len = 0;
    update(&r, &f, now, 2);
    ASSERT_EQ(PLB_ERR_ADDRESS, r.update.status);
    now[1].addr.path_len = PLB_PATH_MAX + 1;
    update(&r, &f, now, 2);
    ASSERT_EQ(PLB_ERR_ADDRESS, r.update.status);
    now[1].addr.family = 9;
    update(&r, &f, now, 2);
    ASSERT_EQ(PLB_ERR_ADDRESS, r.update.status);
    ASSERT_STR_EQ("10.0.0.1:80", rig_set(&r));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

/* count backends, each of its own address. */
static plb_backend *many(size_t count, uint32_t weight)
{
    plb_backend *backends = (plb_backend *)calloc(count, sizeof *backends);
    size_t i;
    for (i = 0; backends != NULL && i < count; i++) {
        backends[i] = rig_backend("10.0.0.0:80", weight);
        backends[i].addr.u.v4[1] = (uint8_t)(i >> 16);
        backends[i].addr.u.v4[2] = (uint8_t)(i >> 8);
        backends[i].addr.u.v4[3] = (uint8_t)i;
    }
    return backends;
}

TEST weights_may_add_up_to_less_than_2_to_the_32(void)
{
    /* 65537 * 65535 is 2^32 - 1 */
    plb_backend *backends = many(65538, PLB_WEIGHT_MAX);
    rig r;
    feed f;
    begin(&r, &f);
    feed_set(&f, backends, 65537);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_EQ(PLB_OK, r.update.status);
    ASSERT_EQ(65537, r.update.backends);
    backends[65537].weight = 1;
    update(&r, &f, backends, 65538);
    ASSERT_EQ(PLB_ERR_WEIGHT, r.update.status);
    ASSERT(rig_logged(&r, "update refused: the weights add up to 2^32 or more"));
    ASSERT_EQ(65537, r.update.backends);
    backends[65537].weight = 0;
    update(&r, &f, backends, 65538);
    ASSERT_EQ(PLB_OK, r.update.status);
    ASSERT_EQ(65538, r.update.backends);
    ASSERT_EQ(0, rig_end(&r));
    free(backends);
    PASS();
}

TEST a_ring_of_too_many_points_is_refused_and_the_old_one_stays(void)
{
    plb_ketama_desc ketama = {320, 0};
    plb_backend now[3];
    plb_addr out;
    rig r;
    feed f;
    begin(&r, &f);
    r.desc.strategy = plb_ketama(&ketama);
    now[0] = rig_backend("10.0.0.1:80", 1);
    now[1] = rig_backend("10.0.0.2:80", 1);
    now[2] = rig_backend("10.0.0.3:80", 1);
    feed_set(&f, now, 2);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_EQ(PLB_OK, r.update.status);
    update(&r, &f, now, 3);
    ASSERT_EQ(PLB_ERR_POINTS, r.update.status);
    ASSERT(rig_logged(&r, "update failed, the last good set serves on: The ring would need more points"));
    ASSERT_STR_EQ("10.0.0.1:80 10.0.0.2:80", rig_set(&r));
    ASSERT_EQ(PLB_OK, plb_select(r.lb, "k", 1, 0, &out));
    update(&r, &f, now + 1, 2);
    ASSERT_EQ(PLB_OK, r.update.status);
    ASSERT_STR_EQ("10.0.0.2:80 10.0.0.3:80", rig_set(&r));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

static bool same_addresses(void *user, const plb_backend_info *info)
{
    const plb_backend **next = (const plb_backend **)user;
    if (plb_addr_compare(&info->backend.addr, &(*next)->addr) != 0)
        return false;
    ++*next;
    return true;
}

TEST a_large_set_in_random_order_is_the_sorted_one(void)
{
    enum { LARGE = 20000 };
    plb_backend *sorted = many(LARGE, 1), *shuffled = many(LARGE, 1);
    const plb_backend *next = sorted;
    uint64_t random = 1;
    size_t i;
    rig r;
    feed f;
    for (i = LARGE - 1; i > 0; i--) {
        size_t j;
        plb_backend swap = shuffled[i];
        random = random * UINT64_C(6364136223846793005) + 1442695040888963407u;
        j = (size_t)(random >> 33) % (i + 1);
        shuffled[i] = shuffled[j];
        shuffled[j] = swap;
    }
    begin(&r, &f);
    feed_set(&f, shuffled, LARGE);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    plb_each(r.lb, same_addresses, &next);
    ASSERT(next == sorted + LARGE);
    update(&r, &f, sorted, LARGE);
    ASSERT_EQ(PLB_OK, r.update.status);
    ASSERT_EQ(1, r.changes);
    update(&r, &f, shuffled, LARGE / 2);
    update(&r, &f, shuffled, LARGE);
    ASSERT_EQ(3, r.changes);
    next = sorted;
    plb_each(r.lb, same_addresses, &next);
    ASSERT(next == sorted + LARGE);
    ASSERT_EQ(0, rig_end(&r));
    free(sorted);
    free(shuffled);
    PASS();
}

/* ---- ext ---- */

TEST ext_is_released_once_when_its_backend_leaves(void)
{
    int first = 0, second = 0;
    plb_backend now[2];
    rig r;
    feed f;
    begin(&r, &f);
    now[0] = rig_with_ext(rig_backend("10.0.0.1:80", 1), &first);
    now[1] = rig_with_ext(rig_backend("10.0.0.2:80", 1), &second);
    feed_set(&f, now, 2);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    update(&r, &f, now, 2); /* the same pointers again are no second ones */
    ASSERT_EQ(0, first + second);
    update(&r, &f, now + 1, 1);
    ASSERT_EQ(1, first);
    ASSERT_EQ(0, second);
    ASSERT_EQ(0, rig_end(&r));
    ASSERT_EQ(1, first);
    ASSERT_EQ(1, second);
    PASS();
}

TEST the_ext_that_is_there_stays_and_the_new_one_is_released(void)
{
    int old = 0, again = 0;
    plb_backend now = rig_with_ext(rig_backend("10.0.0.1:80", 1), &old);
    plb_pick pick;
    rig r;
    feed f;
    begin(&r, &f);
    feed_set(&f, &now, 1);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    now = rig_with_ext(rig_backend("10.0.0.1:80", 9), &again);
    update(&r, &f, &now, 1);
    ASSERT_EQ(1, again);
    ASSERT_EQ(0, old);
    ASSERT_EQ(PLB_OK, plb_begin(r.lb, NULL, &pick));
    ASSERT(pick.ext == &old);
    ASSERT_EQ(9, pick.weight);
    plb_end(&pick, PLB_OUTCOME_SUCCESS, 0);
    ASSERT_EQ(0, rig_end(&r));
    ASSERT_EQ(1, old);
    ASSERT_EQ(1, again);
    PASS();
}

TEST of_duplicates_one_ext_stays(void)
{
    int first = 0, second = 0;
    plb_backend now[4];
    rig r;
    feed f;
    begin(&r, &f);
    now[0] = rig_with_ext(rig_backend("10.0.0.1:80", 1), &first);
    now[1] = rig_with_ext(rig_backend("10.0.0.1:80", 2), &second);
    now[2] = rig_with_ext(rig_backend("10.0.0.1:80", 3), &first);
    now[3] = rig_with_ext(rig_backend("10.0.0.1:80", 4), &second);
    feed_set(&f, now, 4);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_EQ(0, first);
    ASSERT_EQ(1, second);
    ASSERT_EQ(0, rig_end(&r));
    ASSERT_EQ(1, first);
    ASSERT_EQ(1, second);
    PASS();
}

TEST a_pick_keeps_the_ext_of_a_backend_that_left(void)
{
    int first = 0, second = 0;
    plb_backend now = rig_with_ext(rig_backend("10.0.0.1:80", 1), &first);
    plb_pick pick, after;
    rig r;
    feed f;
    begin(&r, &f);
    feed_set(&f, &now, 1);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_EQ(PLB_OK, plb_begin(r.lb, NULL, &pick));
    update(&r, &f, NULL, 0);
    ASSERT_EQ(0, first);
    now = rig_with_ext(rig_backend("10.0.0.1:80", 1), &second);
    update(&r, &f, &now, 1); /* it returns: another one, with an ext of its own */
    ASSERT_EQ(PLB_OK, plb_begin(r.lb, NULL, &after));
    ASSERT(pick.ext == &first);
    ASSERT(after.ext == &second);
    ASSERT_NEQ(pick.slot, after.slot);
    plb_end(&pick, PLB_OUTCOME_SUCCESS, 0);
    rig_run(&r, 1);
    ASSERT_EQ(1, first);
    rig_destroy(&r);
    ASSERT_EQ(0, second);
    plb_end(&after, PLB_OUTCOME_SUCCESS, 0);
    ASSERT_EQ(1, second);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST a_refused_answers_ext_is_released_but_not_what_the_set_has(void)
{
    int have = 0, fresh = 0, twice = 0;
    plb_backend now[4];
    rig r;
    feed f;
    begin(&r, &f);
    now[0] = rig_with_ext(rig_backend("10.0.0.1:80", 1), &have);
    now[1] = rig_with_ext(rig_backend("10.0.0.2:80", PLB_WEIGHT_MAX + 1), &fresh);
    now[2] = rig_with_ext(rig_backend("10.0.0.3:80", 1), &twice);
    now[3] = rig_with_ext(rig_backend("10.0.0.3:80", 2), &twice);
    feed_set(&f, now, 1);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    update(&r, &f, now, 4);
    ASSERT_EQ(PLB_ERR_WEIGHT, r.update.status);
    ASSERT_EQ(0, have);
    ASSERT_EQ(1, fresh);
    ASSERT_EQ(1, twice);
    ASSERT_EQ(0, rig_end(&r));
    ASSERT_EQ(1, have);
    PASS();
}

TEST a_discovery_with_applied_keeps_the_ext_of_what_was_refused(void)
{
    int have = 0, fresh = 0;
    plb_backend now[2];
    rig r;
    feed f;
    begin(&r, &f);
    r.desc.discovery = feed_discovery(&f, true);
    now[0] = rig_with_ext(rig_backend("10.0.0.1:80", 1), &have);
    now[1] = rig_with_ext(rig_backend("10.0.0.2:80", PLB_WEIGHT_MAX + 1), &fresh);
    feed_set(&f, now, 1);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_EQ(1, f.applied);
    ASSERT_EQ(PLB_OK, f.applied_status);
    update(&r, &f, now, 2);
    ASSERT_EQ(2, f.applied);
    ASSERT_EQ(PLB_ERR_WEIGHT, f.applied_status);
    ASSERT_EQ(0, fresh);
    now[1].weight = 1;
    update(&r, &f, now, 2);
    ASSERT_EQ(PLB_OK, f.applied_status);
    ASSERT_EQ(0, fresh);
    ASSERT_EQ(0, rig_end(&r));
    ASSERT_EQ(1, have);
    ASSERT_EQ(1, fresh);
    PASS();
}

TEST an_answer_that_is_not_taken_leaves_ext_to_the_discovery(void)
{
    int have = 0, late = 0;
    plb_backend now[2];
    rig r;
    feed f;
    begin(&r, &f);
    now[0] = rig_with_ext(rig_backend("10.0.0.1:80", 1), &have);
    now[1] = rig_with_ext(rig_backend("10.0.0.2:80", 1), &late);
    feed_set(&f, now, 1);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_EQ(PLB_ERR_CANCELLED, plb_discovery_done(f.token, PLB_OK, now, 2)); /* a second one */
    f.later = true;
    plb_update_now(r.lb);
    rig_run(&r, 6000);
    ASSERT_EQ(1, f.cancels);
    ASSERT_EQ(PLB_ERR_CANCELLED, plb_discovery_done(f.token, PLB_OK, now, 2)); /* a late one */
    ASSERT_EQ(0, have + late);
    plb_update_now(r.lb);
    rig_run(&r, 1);
    r.memory.fail_at = r.memory.calls + 1;
    ASSERT_EQ(PLB_ERR_MEMORY, plb_discovery_done(f.token, PLB_OK, now, 2)); /* one that cannot be copied */
    ASSERT_EQ(0, have + late);
    f.later = false;
    update(&r, &f, now, 2);
    ASSERT_STR_EQ("10.0.0.1:80 10.0.0.2:80", rig_set(&r));
    ASSERT_EQ(0, rig_end(&r));
    ASSERT_EQ(1, have);
    ASSERT_EQ(1, late);
    PASS();
}

/* ---- a set that is read ---- */

TEST at_most_two_sets_wait_for_readers_and_updates_coalesce(void)
{
    plb_backend a = rig_backend("10.0.0.1:80", 1), b = rig_backend("10.0.0.2:80", 1);
    plb_backend c = rig_backend("10.0.0.3:80", 1), d = rig_backend("10.0.0.4:80", 1);
    plb_backend_info info;
    plb_walk first, second;
    rig r;
    feed f;
    begin(&r, &f);
    feed_set(&f, &a, 1);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_EQ(PLB_OK, plb_walk_begin(&first, r.lb, NULL, 0));
    update(&r, &f, &b, 1);
    ASSERT_EQ(PLB_OK, plb_walk_begin(&second, r.lb, NULL, 0));
    update(&r, &f, &c, 1);
    ASSERT_STR_EQ("10.0.0.3:80", rig_set(&r));
    ASSERT_EQ(3, f.starts);
    update(&r, &f, &d, 1); /* two are retired and read: these wait, and are one */
    update(&r, &f, &a, 1);
    update(&r, &f, &b, 1);
    ASSERT_STR_EQ("10.0.0.3:80", rig_set(&r));
    ASSERT_EQ(3, f.starts);
    ASSERT_EQ(3, r.updates);
    plb_walk_next(&first, &info); /* what is read is as it was */
    ASSERT_EQ(0, plb_addr_compare(&a.addr, &info.backend.addr));
    plb_walk_next(&second, &info);
    ASSERT_EQ(0, plb_addr_compare(&b.addr, &info.backend.addr));
    plb_walk_end(&first);
    plb_walk_end(&second);
    rig_run(&r, 2);
    ASSERT_STR_EQ("10.0.0.2:80", rig_set(&r));
    ASSERT_EQ(4, f.starts);
    ASSERT_EQ(4, r.updates);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST a_balancer_with_an_update_that_waits_can_be_destroyed(void)
{
    int waits = 0;
    plb_backend a = rig_backend("10.0.0.1:80", 1), b = rig_backend("10.0.0.2:80", 1);
    plb_backend c = rig_backend("10.0.0.3:80", 1), d = rig_with_ext(rig_backend("10.0.0.4:80", 1), &waits);
    plb_walk first, second;
    rig r;
    feed f;
    begin(&r, &f);
    feed_set(&f, &a, 1);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_EQ(PLB_OK, plb_walk_begin(&first, r.lb, NULL, 0));
    update(&r, &f, &b, 1);
    ASSERT_EQ(PLB_OK, plb_walk_begin(&second, r.lb, NULL, 0));
    update(&r, &f, &c, 1);
    update(&r, &f, &d, 1);
    plb_walk_end(&first);
    plb_walk_end(&second);
    ASSERT_EQ(0, rig_end(&r));
    ASSERT_EQ(0, waits); /* nobody asked for it: it is the discovery's still */
    PASS();
}

#ifndef PLB_NO_THREADS
TEST a_dense_stream_of_readers_beyond_the_cells_does_not_hold_up_updates(void)
{
    plb_backend a = rig_backend("10.0.0.1:80", 1), b = rig_backend("10.0.0.2:80", 1);
    plb_walk held[PLB__CELLS], stream[2];
    int cells = 0, i;
    rig r;
    feed f;
    begin(&r, &f);
    feed_set(&f, &a, 1);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    for (;;) { /* one walk for each cell that this thread can get, and no more */
        ASSERT_EQ(PLB_OK, plb_walk_begin(&held[cells], r.lb, NULL, 0));
        if (held[cells].hold.reader == &held[cells].hold.own)
            break;
        cells++;
    }
    plb_walk_end(&held[cells]);
    ASSERT_EQ(PLB_OK, plb_walk_begin(&stream[0], r.lb, NULL, 0));
    for (i = 1; i <= 20; i++) { /* at any moment one of them reads */
        ASSERT_EQ(PLB_OK, plb_walk_begin(&stream[i % 2], r.lb, NULL, 0));
        plb_walk_end(&stream[(i + 1) % 2]);
        update(&r, &f, i % 2 == 0 ? &a : &b, 1);
        rig_run(&r, 2);
    }
    ASSERT(r.changes >= 8);
    plb_walk_end(&stream[0]);
    while (cells > 0)
        plb_walk_end(&held[--cells]);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}
#endif

/* A strategy that lets things happen while a set is built, or while one is picked from, as other threads would. */
typedef struct meddler {
    rig *r;
    plb_addr target;
    void (*in_build)(struct meddler *m);
    void (*in_pick)(struct meddler *m);
    plb_pick pick;
    uint32_t barriers;
    bool ready_when_published;
} meddler;

static meddler *meddling; /* where the strategy, which has no user pointer, finds it */

static plb_status meddle_build(void *state, const plb_view *view, const plb_view *old_view, const void *old_table,
                               void **table)
{
    plb_status status = plb_round_robin().ops->build(state, view, old_view, old_table, table);
    if (meddling->in_build != NULL)
        meddling->in_build(meddling);
    return status;
}

/* The first one that is ready, whatever the key. */
static uint32_t meddle_pick(const void *table, const plb_view *view, plb_reader *reader, const void *key,
                            size_t key_length, uint32_t limit)
{
    void (*meddle)(meddler * m) = meddling->in_pick;
    (void)table;
    (void)reader;
    (void)key;
    (void)key_length;
    (void)limit;
    meddling->in_pick = NULL; /* once */
    if (meddle != NULL)
        meddle(meddling);
    return plb_view_ready_after(view, 0);
}

static void meddle_barrier(void *self)
{
    meddler *m = (meddler *)self;
    m->barriers++;
    m->ready_when_published = plb_ready(m->r->lb, &m->target, 0);
}

static void switch_target_off(meddler *m)
{
    plb_set_enabled(m->r->lb, &m->target, 0, false);
}

TEST what_is_switched_off_while_a_set_is_built_is_never_ready_in_it(void)
{
    plb_strategy_ops ops = *plb_round_robin().ops;
    plb_backend both[2];
    plb_barrier barrier;
    meddler m;
    rig r;
    feed f;
    begin(&r, &f);
    memset(&m, 0, sizeof m);
    m.r = &r;
    meddling = &m;
    ops.build = meddle_build;
    barrier.self = &m;
    barrier.issue = meddle_barrier; /* called as soon as others see the set */
    r.desc.strategy.ops = &ops;
    r.desc.port.barrier = &barrier;
    both[0] = rig_backend("10.0.0.1:80", 1);
    both[1] = rig_backend("10.0.0.2:80", 1);
    m.target = both[0].addr;
    feed_set(&f, both, 1);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    m.in_build = switch_target_off;
    m.barriers = 0;
    update(&r, &f, both, 2);
    ASSERT_EQ(1, m.barriers);
    ASSERT_FALSE(m.ready_when_published);
    ASSERT_FALSE(plb_ready(r.lb, &m.target, 0));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

static void replace_and_fill_target(meddler *m)
{
    plb_backend both[2];
    both[0] = rig_backend("10.0.0.1:80", 2);
    both[0].max_conns = 1;
    both[1] = rig_backend("10.0.0.2:80", 2);
    plb_replace(m->r->lb, both, 2);
    rig_run(m->r, 1);
    plb_begin(m->r->lb, NULL, &m->pick);
}

TEST a_pick_from_a_set_that_was_replaced_passes_over_what_is_full_by_now(void)
{
    plb_strategy_ops ops = *plb_round_robin().ops;
    plb_static_desc list;
    plb_backend both[2];
    plb_pick pick;
    meddler m;
    rig r;
    rig_begin(&r);
    memset(&m, 0, sizeof m);
    memset(&list, 0, sizeof list);
    m.r = &r;
    meddling = &m;
    ops.pick = meddle_pick;
    r.desc.strategy.ops = &ops;
    both[0] = rig_backend("10.0.0.1:80", 1);
    both[0].max_conns = 1;
    both[1] = rig_backend("10.0.0.2:80", 1);
    list.backends = both;
    list.backend_count = 2;
    r.desc.discovery = plb_static(&list);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    m.in_pick = replace_and_fill_target;
    ASSERT_EQ(PLB_OK, plb_begin(r.lb, NULL, &pick));
    ASSERT_STR_EQ("10.0.0.1:80*2 busy 10.0.0.2:80*2", rig_set(&r));
    ASSERT_EQ(0, plb_addr_compare(&both[1].addr, &pick.addr));
    plb_end(&pick, PLB_OUTCOME_SUCCESS, 0);
    plb_end(&m.pick, PLB_OUTCOME_SUCCESS, 0);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

/* ---- discoveries ---- */

TEST a_failed_discovery_leaves_the_last_good_set(void)
{
    plb_backend a = rig_backend("10.0.0.1:80", 1);
    rig r;
    feed f;
    begin(&r, &f);
    f.status = PLB_ERR_NAME;
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_EQ(1, r.first_updates);
    ASSERT_EQ(PLB_ERR_NAME, r.first_status);
    ASSERT_EQ(0, r.changes);
    update(&r, &f, &a, 1);
    ASSERT_STR_EQ("10.0.0.1:80", rig_set(&r));
    f.status = PLB_ERR_NAME;
    plb_update_now(r.lb);
    rig_run(&r, 1);
    ASSERT_EQ(PLB_ERR_NAME, r.update.status);
    ASSERT(rig_logged(&r, "update failed, the last good set serves on: The host name does not resolve."));
    ASSERT_STR_EQ("10.0.0.1:80", rig_set(&r));
    f.start_status = PLB_ERR_IO; /* a start that fails is complete */
    plb_update_now(r.lb);
    rig_run(&r, 1);
    ASSERT_EQ(PLB_ERR_IO, r.update.status);
    ASSERT_EQ(4, r.updates);
    ASSERT_EQ(1, r.first_updates);
    ASSERT_EQ(0, f.cancels);
    ASSERT_EQ(0, rig_end(&r));
    ASSERT_EQ(1, f.closes);
    PASS();
}

TEST a_failure_of_this_side_is_tried_again_after_a_second(void)
{
    plb_backend a = rig_backend("10.0.0.1:80", 1);
    rig r;
    feed f;
    begin(&r, &f);
    f.status = PLB_ERR_LIMIT;
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_EQ(PLB_ERR_LIMIT, r.update.status);
    feed_set(&f, &a, 1);
    rig_run(&r, 999);
    ASSERT_EQ(1, f.starts);
    rig_run(&r, 1);
    ASSERT_EQ(2, f.starts);
    ASSERT_STR_EQ("10.0.0.1:80", rig_set(&r));
    rig_run(&r, 10000);
    ASSERT_EQ(2, f.starts);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST a_hung_discovery_ends_at_its_time_out_and_its_late_answer_is_ignored(void)
{
    plb_backend a = rig_backend("10.0.0.1:80", 1), b = rig_backend("10.0.0.2:80", 1);
    rig r;
    feed f;
    begin(&r, &f);
    feed_set(&f, &a, 1);
    f.later = true;
    r.desc.discovery.timeout_ms = 700;
    ASSERT_EQ(PLB_OK, rig_create(&r));
    rig_run(&r, 699);
    ASSERT_EQ(0, r.updates);
    rig_run(&r, 1);
    ASSERT_EQ(1, r.updates);
    ASSERT_EQ(PLB_ERR_TIMEOUT, r.first_status);
    ASSERT_EQ(1, f.cancels);
    feed_answer(&f);
    rig_run(&r, 1);
    ASSERT_EQ(1, r.updates);
    plb_update_now(r.lb); /* the next one is under way when the late one comes once more */
    rig_run(&r, 1);
    feed_set(&f, &b, 1);
    plb_discovery_done(f.before, PLB_OK, &a, 1);
    rig_run(&r, 1);
    ASSERT_EQ(1, r.updates);
    feed_answer(&f);
    rig_run(&r, 1);
    ASSERT_STR_EQ("10.0.0.2:80", rig_set(&r));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST the_default_time_out_of_a_discovery_is_5_seconds(void)
{
    rig r;
    feed f;
    begin(&r, &f);
    f.later = true;
    ASSERT_EQ(PLB_OK, rig_create(&r));
    rig_run(&r, 4999);
    ASSERT_EQ(0, r.updates);
    rig_run(&r, 1);
    ASSERT_EQ(1, r.updates);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST of_two_answers_the_first_counts(void)
{
    plb_backend a = rig_backend("10.0.0.1:80", 1), b = rig_backend("10.0.0.2:80", 1);
    rig r;
    feed f;
    begin(&r, &f);
    f.later = true;
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_EQ(PLB_OK, plb_discovery_done(f.token, PLB_OK, &a, 1));
    ASSERT_EQ(PLB_ERR_CANCELLED, plb_discovery_done(f.token, PLB_OK, &b, 1));
    rig_run(&r, 1);
    plb_discovery_done(f.token, PLB_OK, &b, 1);
    rig_run(&r, 1);
    ASSERT_STR_EQ("10.0.0.1:80", rig_set(&r));
    ASSERT_EQ(1, r.updates);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST a_start_that_failed_is_complete(void)
{
    plb_backend a = rig_backend("10.0.0.1:80", 1);
    rig r;
    feed f;
    begin(&r, &f);
    f.later = true;
    f.start_status = PLB_ERR_IO;
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_EQ(PLB_ERR_IO, r.first_status);
    plb_discovery_done(f.token, PLB_OK, &a, 1);
    rig_run(&r, 1);
    ASSERT_EQ(1, r.updates);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST a_balancer_with_a_discovery_under_way_can_be_destroyed(void)
{
    int answered = 0;
    plb_backend a = rig_with_ext(rig_backend("10.0.0.1:80", 1), &answered);
    rig r;
    feed f;
    begin(&r, &f);
    f.later = true;
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_EQ(0, rig_end(&r));
    ASSERT_EQ(1, f.cancels);
    ASSERT_EQ(1, f.closes);
    begin(&r, &f); /* and with one whose answer nobody has looked at */
    f.later = true;
    feed_set(&f, &a, 1);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    feed_answer(&f);
    ASSERT_EQ(0, rig_end(&r));
    ASSERT_EQ(0, f.cancels);
    ASSERT_EQ(1, answered);
    PASS();
}

TEST an_answer_that_is_incomplete_is_applied_and_asked_for_again(void)
{
    plb_backend now[2];
    rig r;
    feed f;
    begin(&r, &f);
    now[0] = rig_backend("10.0.0.1:80", 1);
    now[1] = rig_backend("10.0.0.2:80", 1);
    feed_set(&f, now, 1);
    f.status = PLB_AGAIN;
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_EQ(PLB_OK, r.first_status);
    ASSERT_STR_EQ("10.0.0.1:80", rig_set(&r));
    feed_set(&f, now, 2);
    rig_run(&r, 999);
    ASSERT_EQ(1, f.starts);
    rig_run(&r, 1);
    ASSERT_STR_EQ("10.0.0.1:80 10.0.0.2:80", rig_set(&r));
    rig_run(&r, 10000);
    ASSERT_EQ(2, f.starts);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

#ifndef PLB_NO_THREADS
#include <pthread.h>

static void *answer_elsewhere(void *user)
{
    feed_answer((feed *)user);
    return NULL;
}

/* The simulator's wake is for one thread: the balancer gets its clock only. */
TEST an_answer_may_come_from_another_thread(void)
{
    plb_backend a = rig_backend("10.0.0.1:80", 1);
    pthread_t thread;
    int i;
    rig r;
    feed f;
    begin(&r, &f);
    f.later = true;
    r.desc.port.io = NULL;
    feed_set(&f, &a, 1);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_EQ(0, pthread_create(&thread, NULL, answer_elsewhere, &f));
    for (i = 0; i < 1000000 && r.updates == 0; i++)
        plb_poll(r.lb);
    ASSERT_EQ(0, pthread_join(thread, NULL));
    plb_poll(r.lb);
    ASSERT_STR_EQ("10.0.0.1:80", rig_set(&r));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}
/* A discovery that answers from a thread of its own, which close waits for. */
typedef struct threaded {
    pthread_t thread;
    bool running;
    int *releases;
    plb_token token;
} threaded;

static void *threaded_run(void *user)
{
    threaded *self = (threaded *)user;
    plb_backend a = rig_with_ext(rig_backend("10.0.0.1:80", 1), self->releases);
    if (plb_discovery_done(self->token, PLB_OK, &a, 1) != PLB_OK)
        rig_count_release(a.ext); /* it was not taken */
    return NULL;
}

static plb_status threaded_open(void *state, const void *desc, const plb_env *env)
{
    (void)env;
    memcpy(&((threaded *)state)->releases, desc, sizeof(int *));
    return PLB_OK;
}

static plb_status threaded_start(void *state, plb_token token)
{
    threaded *self = (threaded *)state;
    self->token = token;
    self->running = pthread_create(&self->thread, NULL, threaded_run, self) == 0;
    return self->running ? PLB_OK : PLB_ERR_LIMIT;
}

static void threaded_cancel(void *state, plb_token token)
{
    (void)state;
    (void)token;
}

static void threaded_close(void *state)
{
    threaded *self = (threaded *)state;
    if (self->running)
        pthread_join(self->thread, NULL);
}

TEST destroy_and_an_answer_may_race(void)
{
    static const plb_discovery_ops ops = {"threaded",     sizeof(threaded), threaded_open, threaded_close,
                                          threaded_start, threaded_cancel,  NULL,          NULL};
    int i;
    for (i = 0; i < 300; i++) {
        int releases = 0, *counter = &releases;
        plb_balancer_desc desc;
        plb_balancer *lb;
        int polls;
        memset(&desc, 0, sizeof desc);
        desc.discovery.ops = &ops;
        desc.discovery.desc = &counter;
        ASSERT_EQ(PLB_OK, plb_create(&desc, &lb));
        for (polls = 0; polls < i % 50; polls++)
            plb_poll(lb);
        plb_destroy(lb);
        ASSERT_EQ(1, releases);
    }
    PASS();
}
#endif

TEST the_last_update_tells_how_long_it_took(void)
{
    plb_backend a = rig_backend("10.0.0.1:80", 1);
    plb_update_info info;
    rig r;
    feed f;
    begin(&r, &f);
    f.later = true;
    rig_run(&r, 500);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    plb_last_update(r.lb, &info);
    ASSERT_EQ(PLB_AGAIN, info.status);
    ASSERT_EQ(0, info.updates);
    rig_run(&r, 30);
    feed_set(&f, &a, 1);
    feed_answer(&f);
    rig_run(&r, 1);
    plb_last_update(r.lb, &info);
    ASSERT_EQ(PLB_OK, info.status);
    ASSERT(info.discovery_us >= 30000 && info.discovery_us <= 31000);
    ASSERT_EQ(0, info.build_us); /* no time passes in here */
    ASSERT_EQ(1, info.updates);
    ASSERT_EQ(1, info.changes);
    ASSERT_EQ(1, info.backends);
    ASSERT(rig_logged(&r, "set of 1 backends published: discovery 3"));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

/* ---- callbacks ---- */

static plb_backend callback_backend;

/* Everything that a callback may do. */
static void do_everything(rig *r)
{
    plb_update_info info;
    plb_addr out;
    plb_pick pick;
    plb_update_now(r->lb);
    plb_check_now(r->lb);
    plb_set_enabled(r->lb, &callback_backend.addr, 0, false);
    plb_set_enabled(r->lb, &callback_backend.addr, 0, true);
    plb_ready(r->lb, &callback_backend.addr, 0);
    plb_last_update(r->lb, &info);
    plb_select(r->lb, "k", 1, 0, &out);
    if (plb_begin(r->lb, NULL, &pick) == PLB_OK)
        plb_end(&pick, PLB_OUTCOME_SUCCESS, 1);
    plb_add(r->lb, &callback_backend); /* a discovery without a list refuses it */
    rig_set(r);
    r->in_callback = NULL; /* once is enough: each update asks for another */
}

TEST callbacks_may_call_what_they_like(void)
{
    rig r;
    feed f;
    begin(&r, &f);
    callback_backend = rig_backend("10.0.0.1:80", 1);
    feed_set(&f, &callback_backend, 1);
    r.in_callback = do_everything;
    ASSERT_EQ(PLB_OK, rig_create(&r));
    rig_run(&r, 1);
    ASSERT_EQ(2, r.updates);
    ASSERT_EQ(1, r.changes);
    ASSERT_STR_EQ("10.0.0.1:80", rig_set(&r));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

SUITE(updates)
{
    RUN_TEST(a_set_is_sorted_as_pingora_sorts);
    RUN_TEST(duplicates_are_dropped_and_other_weights_and_ids_stay_apart);
    RUN_TEST(on_change_comes_only_when_the_set_changed);
    RUN_TEST(an_empty_set_is_a_set);
    RUN_TEST(what_stays_keeps_its_health);
    RUN_TEST(an_update_switches_backends_on_and_off);
    RUN_TEST(an_update_changes_max_conns_without_another_set);
    RUN_TEST(weights_from_0_to_65535_are_taken);
    RUN_TEST(a_weight_above_is_refused_by_name_and_the_old_set_stays);
    RUN_TEST(a_backend_that_has_no_address_is_refused);
    RUN_TEST(weights_may_add_up_to_less_than_2_to_the_32);
    RUN_TEST(a_ring_of_too_many_points_is_refused_and_the_old_one_stays);
    RUN_TEST(a_large_set_in_random_order_is_the_sorted_one);
    RUN_TEST(ext_is_released_once_when_its_backend_leaves);
    RUN_TEST(the_ext_that_is_there_stays_and_the_new_one_is_released);
    RUN_TEST(of_duplicates_one_ext_stays);
    RUN_TEST(a_pick_keeps_the_ext_of_a_backend_that_left);
    RUN_TEST(a_refused_answers_ext_is_released_but_not_what_the_set_has);
    RUN_TEST(a_discovery_with_applied_keeps_the_ext_of_what_was_refused);
    RUN_TEST(an_answer_that_is_not_taken_leaves_ext_to_the_discovery);
    RUN_TEST(at_most_two_sets_wait_for_readers_and_updates_coalesce);
    RUN_TEST(a_balancer_with_an_update_that_waits_can_be_destroyed);
#ifndef PLB_NO_THREADS
    RUN_TEST(a_dense_stream_of_readers_beyond_the_cells_does_not_hold_up_updates);
#endif
    RUN_TEST(what_is_switched_off_while_a_set_is_built_is_never_ready_in_it);
    RUN_TEST(a_pick_from_a_set_that_was_replaced_passes_over_what_is_full_by_now);
    RUN_TEST(a_failed_discovery_leaves_the_last_good_set);
    RUN_TEST(a_failure_of_this_side_is_tried_again_after_a_second);
    RUN_TEST(a_hung_discovery_ends_at_its_time_out_and_its_late_answer_is_ignored);
    RUN_TEST(the_default_time_out_of_a_discovery_is_5_seconds);
    RUN_TEST(of_two_answers_the_first_counts);
    RUN_TEST(a_start_that_failed_is_complete);
    RUN_TEST(a_balancer_with_a_discovery_under_way_can_be_destroyed);
    RUN_TEST(an_answer_that_is_incomplete_is_applied_and_asked_for_again);
#ifndef PLB_NO_THREADS
    RUN_TEST(an_answer_may_come_from_another_thread);
    RUN_TEST(destroy_and_an_answer_may_race);
#endif
    RUN_TEST(the_last_update_tells_how_long_it_took);
    RUN_TEST(callbacks_may_call_what_they_like);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(updates);
    GREATEST_MAIN_END();
}
