/* Bounded loads: Ketama's answer at rest, the next one with room under load, and never a backend above its bound. */
#define _POSIX_C_SOURCE 200809L
#define PINGORA_LB_IMPLEMENTATION
#include "../pingora_lb.h"
#include <greatest.h>
#include <pthread.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

enum { BACKENDS_MAX = 64, HELD_MAX = 600 };

static uint64_t random_state = 1;

static uint32_t random_below(uint32_t limit)
{
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)((random_state >> 32) * limit >> 32);
}

/* ==== BALANCERS TO PICK FROM ====================================================================================== */

static plb_backend nth_backend(uint32_t i, uint32_t weight)
{
    plb_backend b;
    memset(&b, 0, sizeof b);
    b.addr.family = PLB_FAMILY_IPV4;
    b.addr.port = 80;
    b.addr.u.v4[0] = 10;
    b.addr.u.v4[3] = (uint8_t)i;
    b.weight = weight;
    return b;
}

/* The number that nth_backend made this address from. */
static uint32_t index_of(const plb_addr *addr)
{
    return addr->u.v4[3];
}

static plb_status create(plb_strategy strategy, const uint32_t *weights, uint32_t count, plb_balancer **lb)
{
    plb_backend backends[BACKENDS_MAX];
    plb_static_desc list;
    plb_balancer_desc desc;
    uint32_t i;
    memset(&list, 0, sizeof list);
    memset(&desc, 0, sizeof desc);
    for (i = 0; i < count; i++)
        backends[i] = nth_backend(i, weights[i]);
    list.backends = backends;
    list.backend_count = count;
    desc.discovery = plb_static(&list);
    desc.strategy = strategy;
    return plb_create(&desc, lb);
}

static plb_balancer *balancer(plb_strategy strategy, const uint32_t *weights, uint32_t count)
{
    plb_balancer *lb;
    if (create(strategy, weights, count, &lb) != PLB_OK) {
        fprintf(stderr, "test_bounded: no balancer\n");
        abort();
    }
    return lb;
}

static plb_balancer *bounded(uint32_t factor_percent, const uint32_t *weights, uint32_t count)
{
    plb_bounded_loads_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.factor_percent = factor_percent;
    return balancer(plb_bounded_loads(&desc), weights, count);
}

static uint32_t random_weights(uint32_t *weights, uint32_t most)
{
    uint32_t count = 2 + random_below(most - 1), i;
    for (i = 0; i < count; i++)
        weights[i] = 1 + random_below(random_below(3) != 0 ? 3 : 12);
    return count;
}

static plb_request request_for(const char *key, uint32_t max_iterations)
{
    plb_request request;
    memset(&request, 0, sizeof request);
    request.key = key;
    request.key_length = strlen(key);
    request.max_iterations = max_iterations;
    return request;
}

/* Begins a request that stays in flight; the backend's number, or PLB_NONE. */
static uint32_t begin(plb_balancer *lb, const char *key, plb_pick *pick)
{
    plb_request request = request_for(key, 0);
    return plb_begin(lb, &request, pick) == PLB_OK ? index_of(&pick->addr) : PLB_NONE;
}

static uint32_t select_index(plb_balancer *lb, const char *key, uint32_t max_iterations)
{
    plb_addr addr;
    return plb_select(lb, key, strlen(key), max_iterations, &addr) == PLB_OK ? index_of(&addr) : PLB_NONE;
}

static void raw_sequence(plb_balancer *lb, const char *key, uint32_t *out, uint32_t count)
{
    plb_walk walk;
    plb_backend_info info;
    uint32_t i;
    if (plb_walk_begin(&walk, lb, key, strlen(key)) != PLB_OK)
        return;
    for (i = 0; i < count; i++) {
        plb_walk_next(&walk, &info);
        out[i] = index_of(&info.backend.addr);
    }
    plb_walk_end(&walk);
}

static void set_enabled(plb_balancer *lb, uint32_t i, bool enabled)
{
    plb_backend b = nth_backend(i, 1);
    plb_set_enabled(lb, &b.addr, 0, enabled);
}

static uintptr_t total_in_flight(const plb_balancer *lb)
{
    return PLB__LOAD(&((plb__bounded_state *)lb->strategy_state)->in_flight);
}

/* ==== AT REST ===================================================================================================== */

static enum greatest_test_res same_as_ketama(plb_balancer *lb, plb_balancer *ketama, int keys)
{
    char key[16];
    int i;
    for (i = 0; i < keys; i++) {
        uint32_t got[40], expected[40], limit = random_below(4);
        snprintf(key, sizeof key, "key %d", i);
        ASSERT_EQ(select_index(ketama, key, 0), select_index(lb, key, 0));
        ASSERT_EQ(select_index(ketama, key, limit), select_index(lb, key, limit));
        raw_sequence(ketama, key, expected, 40);
        raw_sequence(lb, key, got, 40);
        ASSERT_MEM_EQ(expected, got, sizeof got);
    }
    PASS();
}

TEST at_rest_it_is_ketama(void)
{
    int round;
    for (round = 0; round < 10; round++) {
        uint32_t weights[BACKENDS_MAX], count = random_weights(weights, BACKENDS_MAX), i;
        plb_balancer *lb = bounded(round % 2 != 0 ? 101 : 0, weights, count), *ketama;
        ketama = balancer(plb_ketama(NULL), weights, count);
        for (i = 0; i < count; i++) {
            bool up = random_below(3) != 0;
            set_enabled(lb, i, up);
            set_enabled(ketama, i, up);
        }
        CHECK_CALL(same_as_ketama(lb, ketama, 500));
        plb_destroy(lb);
        plb_destroy(ketama);
    }
    PASS();
}

TEST weights_that_are_all_0_are_not_ready_and_can_be_walked(void)
{
    static const uint32_t weights[] = {0, 0, 0};
    plb_balancer *lb = bounded(0, weights, 3);
    uint32_t got[3];
    ASSERT_EQ(PLB_NONE, select_index(lb, "key", 0));
    ASSERT_EQ(PLB_NONE, select_index(lb, "key", 256));
    raw_sequence(lb, "key", got, 3);
    ASSERT(got[0] != got[1] && got[1] != got[2] && got[2] != got[0]);
    plb_destroy(lb);
    PASS();
}

/* ==== UNDER LOAD ================================================================================================== */

/* What the test knows of the backends: the rule is worked out from this alone. */
typedef struct model {
    uint32_t factor, count, weights[BACKENDS_MAX], in_flight[BACKENDS_MAX];
    bool up[BACKENDS_MAX];
    plb_balancer *ketama;
} model;

static uint64_t model_bound(const model *m, uint32_t i)
{
    uint64_t ready_weight = 0, total = 0;
    uint32_t k;
    for (k = 0; k < m->count; k++) {
        ready_weight += m->up[k] ? m->weights[k] : 0;
        total += m->in_flight[k];
    }
    ready_weight *= 100;
    return ((uint64_t)m->factor * (total + 1) * m->weights[i] + ready_weight - 1) / ready_weight;
}

/* The first backend of Ketama's sequence that is ready and below its bound; PLB_NONE if it does not come soon. */
static uint32_t model_pick(const model *m, const char *key)
{
    uint32_t sequence[64], i;
    raw_sequence(m->ketama, key, sequence, COUNT(sequence));
    for (i = 0; i < COUNT(sequence); i++)
        if (m->up[sequence[i]] && m->in_flight[sequence[i]] < model_bound(m, sequence[i]))
            return sequence[i];
    return PLB_NONE;
}

/* kinds of keys: all the same, two in three the same, all different */
static void random_key(char key[16], int kind)
{
    snprintf(key, 16, "%u", kind == 0 || (kind == 1 && random_below(3) != 0) ? 0 : (unsigned)random_below(100000));
}

static enum greatest_test_res play(model *m, plb_balancer *lb, int kind, uint32_t limit)
{
    static plb_pick held[HELD_MAX];
    uint32_t holding = 0, steps, i;
    for (steps = 0; steps < 2500; steps++) {
        uint32_t index, expected;
        plb_request request;
        char key[16];
        if (holding == HELD_MAX || random_below(HELD_MAX) < holding) {
            uint32_t k = random_below(holding);
            m->in_flight[index_of(&held[k].addr)]--;
            plb_end(&held[k], (plb_outcome)random_below(5), 1);
            held[k] = held[--holding];
            continue;
        }
        random_key(key, kind);
        expected = model_pick(m, key);
        request = request_for(key, limit);
        ASSERT_EQ(PLB_OK, plb_begin(lb, &request, &held[holding]));
        index = index_of(&held[holding++].addr);
        ASSERT(m->up[index]);
        ASSERT_LT(m->in_flight[index], model_bound(m, index));
        if (expected != PLB_NONE)
            ASSERT_EQ_FMT(expected, index, "%u");
        m->in_flight[index]++;
    }
    for (i = 0; i < holding; i++)
        plb_end(&held[i], PLB_OUTCOME_SUCCESS, 1);
    memset(m->in_flight, 0, sizeof m->in_flight);
    PASS();
}

TEST no_backend_is_ever_above_its_bound_and_keys_are_as_near_home_as_it_allows(void)
{
    static const uint32_t factors[] = {101, 125, 200, 1000};
    uint32_t f, i;
    int kind, round;
    for (f = 0; f < COUNT(factors); f++)
        for (kind = 0; kind < 3; kind++)
            for (round = 0; round < 2; round++) {
                model m;
                plb_balancer *lb;
                memset(&m, 0, sizeof m);
                m.factor = factors[f];
                m.count = random_weights(m.weights, round == 0 ? 5 : 40);
                m.ketama = balancer(plb_ketama(NULL), m.weights, m.count);
                lb = bounded(m.factor, m.weights, m.count);
                for (i = 0; i < m.count; i++) {
                    m.up[i] = i == 0 || random_below(4) != 0;
                    set_enabled(lb, i, m.up[i]);
                }
                CHECK_CALL(play(&m, lb, kind, 0));
                CHECK_CALL(play(&m, lb, kind, 256));
                CHECK_CALL(same_as_ketama(lb, lb, 1));
                ASSERT_EQ(0, total_in_flight(lb));
                plb_destroy(lb);
                plb_destroy(m.ketama);
            }
    PASS();
}

TEST one_of_many_that_is_ready_takes_everything(void)
{
    uint32_t weights[BACKENDS_MAX], i, held;
    static plb_pick picks[100];
    plb_balancer *lb;
    for (i = 0; i < BACKENDS_MAX; i++)
        weights[i] = i == 7 ? 1 : 400; /* a walk of the ring hardly ever meets it */
    lb = bounded(101, weights, BACKENDS_MAX);
    for (i = 0; i < BACKENDS_MAX; i++)
        set_enabled(lb, i, i == 7);
    for (held = 0; held < COUNT(picks); held++)
        ASSERT_EQ(7, begin(lb, "key", &picks[held]));
    while (held-- > 0)
        plb_end(&picks[held], PLB_OUTCOME_SUCCESS, 1);
    plb_destroy(lb);
    PASS();
}

TEST keys_return_when_load_goes(void)
{
    static const uint32_t weights[] = {1, 1, 1, 1};
    plb_balancer *lb = bounded(125, weights, 4);
    uint32_t home = select_index(lb, "key", 0), i, away = 0;
    plb_pick picks[40];
    for (i = 0; i < COUNT(picks); i++)
        away += begin(lb, "key", &picks[i]) != home;
    ASSERT(away > COUNT(picks) / 2);
    ASSERT(select_index(lb, "key", 0) != home);
    for (i = 0; i < COUNT(picks); i++)
        if (index_of(&picks[i].addr) == home)
            plb_end(&picks[i], PLB_OUTCOME_CANCELLED, 0);
    ASSERT_EQ(home, select_index(lb, "key", 0));
    for (i = 0; i < COUNT(picks); i++)
        plb_end(&picks[i], PLB_OUTCOME_SUCCESS, 1);
    ASSERT_EQ(0, total_in_flight(lb));
    plb_destroy(lb);
    PASS();
}

TEST picks_that_outlive_their_set_are_counted_until_they_end(void)
{
    static const uint32_t weights[] = {1, 1, 1};
    plb_balancer *lb = bounded(125, weights, 3);
    plb_backend other = nth_backend(9, 1);
    plb_pick picks[10], last;
    uint32_t i;
    for (i = 0; i < COUNT(picks); i++)
        ASSERT(begin(lb, "key", &picks[i]) < 3);
    ASSERT_EQ(PLB_OK, plb_replace(lb, &other, 1));
    plb_poll(lb);
    ASSERT_EQ(9, begin(lb, "key", &last));
    ASSERT_EQ(COUNT(picks) + 1, total_in_flight(lb));
    for (i = 0; i < COUNT(picks); i++)
        plb_end(&picks[i], i % 2 != 0 ? PLB_OUTCOME_CANCELLED : PLB_OUTCOME_BROKEN, 1);
    plb_end(&picks[0], PLB_OUTCOME_SUCCESS, 1); /* twice has no effect */
    ASSERT_EQ(1, total_in_flight(lb));
    plb_poll(lb);
    plb_destroy(lb);
    plb_end(&last, PLB_OUTCOME_SUCCESS, 1); /* and it may outlive the balancer */
    PASS();
}

/* A retry excludes what has failed. */
static plb_status begin_without(plb_balancer *lb, const char *key, uint32_t limit, const uint32_t *exclude,
                                size_t exclude_count, plb_pick *pick)
{
    plb_request request = request_for(key, limit);
    request.exclude = exclude;
    request.exclude_count = exclude_count;
    return plb_begin(lb, &request, pick);
}

TEST a_retry_goes_to_one_that_has_room(void)
{
    static const uint32_t weights[] = {1, 1, 1, 1, 1, 1, 1, 1};
    plb_balancer *lb = bounded(125, weights, 8);
    uint32_t i, home = select_index(lb, "key", 0);
    plb_pick picks[40], retry;
    for (i = 0; i < COUNT(picks); i++)
        begin(lb, "key", &picks[i]);
    for (i = 0; i < COUNT(picks); i++) {
        uint32_t tried = picks[i].slot;
        ASSERT_EQ(PLB_OK, begin_without(lb, "key", 256, &tried, 1, &retry));
        ASSERT(retry.slot != tried);
        ASSERT(index_of(&retry.addr) != home);
        plb_end(&retry, PLB_OUTCOME_SUCCESS, 1);
    }
    for (i = 0; i < COUNT(picks); i++)
        plb_end(&picks[i], PLB_OUTCOME_SUCCESS, 1);
    plb_destroy(lb);
    PASS();
}

TEST a_retry_does_not_fail_for_the_bound(void)
{
    static const uint32_t weights[] = {1, 1};
    static const uint32_t limits[] = {0, 256};
    plb_balancer *lb = bounded(101, weights, 2);
    uint32_t full, room, i;
    plb_pick first, second, retry;
    full = begin(lb, "key", &first);
    ASSERT_EQ(full, begin(lb, "key", &second));
    room = select_index(lb, "key", 0);
    ASSERT(full != room);
    for (i = 0; i < COUNT(limits); i++) {
        uint32_t tried;
        plb_pick other;
        ASSERT_EQ(room, begin(lb, "key", &other));
        tried = other.slot;
        plb_end(&other, PLB_OUTCOME_CONNECT_ERROR, 1);
        ASSERT_EQ(PLB_OK, begin_without(lb, "key", limits[i], &tried, 1, &retry));
        ASSERT_EQ(full, index_of(&retry.addr));
        plb_end(&retry, PLB_OUTCOME_SUCCESS, 1);
    }
    plb_end(&first, PLB_OUTCOME_SUCCESS, 1);
    plb_end(&second, PLB_OUTCOME_SUCCESS, 1);
    plb_destroy(lb);
    PASS();
}

TEST a_walk_passes_over_full_backends_at_first_and_shows_them_in_time(void)
{
    static const uint32_t weights[] = {1, 1, 1};
    plb_balancer *lb = bounded(125, weights, 3);
    uint32_t sequence[400], home = select_index(lb, "key", 0), i, first_seen = 0;
    plb_pick pick;
    ASSERT_EQ(home, begin(lb, "key", &pick));
    raw_sequence(lb, "key", sequence, COUNT(sequence));
    for (i = 0; i < COUNT(sequence) && first_seen == 0; i++)
        first_seen = sequence[i] == home ? i : 0;
    ASSERT(first_seen > 50 && first_seen < 300);
    plb_end(&pick, PLB_OUTCOME_SUCCESS, 1);
    plb_destroy(lb);
    PASS();
}

/* As Ketama shows it, full or not: what an accept callback may take. */
TEST a_walk_shows_an_unready_backend_at_its_place(void)
{
    static const uint32_t weights[] = {1, 1, 1};
    plb_balancer *lb = bounded(125, weights, 3);
    uint32_t home = select_index(lb, "key", 0), i, shown;
    plb_pick picks[50];
    for (i = 0; i < 3; i++)
        set_enabled(lb, i, i == home);
    for (i = 0; i < COUNT(picks); i++)
        ASSERT_EQ(home, begin(lb, "key", &picks[i]));
    for (i = 0; i < 3; i++)
        set_enabled(lb, i, i != home);
    raw_sequence(lb, "key", &shown, 1);
    ASSERT_EQ_FMT(home, shown, "%u");
    ASSERT(select_index(lb, "key", 0) != home);
    for (i = 0; i < 3; i++)
        set_enabled(lb, i, true); /* now it is full */
    raw_sequence(lb, "key", &shown, 1);
    ASSERT(shown != home);
    for (i = 0; i < COUNT(picks); i++)
        plb_end(&picks[i], PLB_OUTCOME_SUCCESS, 1);
    plb_destroy(lb);
    PASS();
}

/* Duplicates share a slot, so what one has in flight fills the other: the bounds may then leave no room at all. */
TEST duplicates_of_one_address_never_block_each_other(void)
{
    static const uint32_t limits[] = {0, 256};
    plb_backend backends[2];
    plb_static_desc list;
    plb_balancer_desc desc;
    plb_balancer *lb;
    plb_pick picks[50];
    uint32_t k, i;
    memset(&list, 0, sizeof list);
    memset(&desc, 0, sizeof desc);
    backends[0] = nth_backend(0, 1);
    backends[1] = nth_backend(0, 2);
    list.backends = backends;
    list.backend_count = 2;
    desc.discovery = plb_static(&list);
    desc.strategy = plb_bounded_loads(NULL);
    ASSERT_EQ(PLB_OK, plb_create(&desc, &lb));
    for (k = 0; k < COUNT(limits); k++) {
        for (i = 0; i < COUNT(picks); i++) {
            plb_request request = request_for("key", limits[k]);
            ASSERT_EQ(PLB_OK, plb_begin(lb, &request, &picks[i]));
        }
        for (i = 0; i < 20; i++) { /* the one with the least for its weight, wherever the walk ended */
            char key[16];
            plb_pick pick;
            plb_request request;
            snprintf(key, sizeof key, "%u", (unsigned)i);
            request = request_for(key, limits[k]);
            ASSERT_EQ(PLB_OK, plb_begin(lb, &request, &pick));
            ASSERT_EQ(2, pick.weight);
            plb_end(&pick, PLB_OUTCOME_SUCCESS, 1);
        }
        for (i = 0; i < COUNT(picks); i++)
            plb_end(&picks[i], PLB_OUTCOME_SUCCESS, 1);
    }
    plb_destroy(lb);
    PASS();
}

/* ==== LARGE NUMBERS =============================================================================================== */

static plb_view *shown;

static plb_status showing_build(void *state, const plb_view *view, const plb_view *old_view, const void *old_table,
                                void **table)
{
    memcpy(&shown, &view, sizeof shown); /* not const: the test turns its counts up */
    return plb_bounded_loads(NULL).ops->build(state, view, old_view, old_table, table);
}

static uint32_t random_size(uint32_t limit)
{
    return random_below(2) != 0 ? limit - 1 - random_below(3) : random_below(limit);
}

TEST the_bound_is_exact_up_to_the_largest_counts(void)
{
    static const uint32_t weights[] = {65535, 1};
    plb_strategy_ops ops = *plb_bounded_loads(NULL).ops;
    plb_strategy strategy = {&ops, NULL};
    plb_bounded_loads_desc desc;
    plb_balancer *lb;
    int i, full = 0;
    memset(&desc, 0, sizeof desc);
    ops.build = showing_build;
    strategy.desc = &desc;
    lb = balancer(strategy, weights, 2);
    for (i = 0; i < 100000; i++) {
        __extension__ typedef unsigned __int128 wide;
        plb__bounded_state *state = (plb__bounded_state *)lb->strategy_state;
        uint32_t index = random_below(2), in_flight = random_size(1u << 29), ready_weight = random_size(UINT32_MAX) + 1;
        uint32_t total = random_size(UINT32_MAX);
        wide share, bound;
        state->factor_percent = 101 + random_size(65535 - 100);
        state->in_flight = total;
        shown->ready_weight = ready_weight;
        if (random_below(2) != 0) { /* near the bound */
            share = (wide)state->factor_percent * ((wide)total + 1) * weights[index] / ((wide)ready_weight * 100);
            if (share > 2 && share < (1u << 29) - 2)
                in_flight = (uint32_t)share - 2 + random_below(5);
        }
        shown->slots[index]->in_flight = in_flight;
        share = (wide)state->factor_percent * ((wide)total + 1) * weights[index];
        bound = (share + (wide)ready_weight * 100 - 1) / ((wide)ready_weight * 100);
        ASSERT_EQ(in_flight + (wide)1 > bound, plb__bounded_is_full(state, shown, index));
        full += in_flight + (wide)1 > bound;
        shown->slots[index]->in_flight = 0;
        state->in_flight = 0;
    }
    ASSERT(full > 10000 && full < 90000);
    plb_destroy(lb);
    PASS();
}

/* ==== DESCRIPTORS ================================================================================================= */

TEST a_factor_out_of_range_is_refused(void)
{
    static const uint32_t weights[] = {1}, bad[] = {1, 99, 100, 65536, UINT32_MAX}, good[] = {0, 101, 65535};
    plb_bounded_loads_desc desc;
    plb_balancer *lb;
    size_t i;
    memset(&desc, 0, sizeof desc);
    for (i = 0; i < COUNT(bad); i++) {
        desc.factor_percent = bad[i];
        ASSERT_EQ(PLB_ERR_ARGUMENT, create(plb_bounded_loads(&desc), weights, 1, &lb));
        ASSERT(lb == NULL);
    }
    for (i = 0; i < COUNT(good); i++) {
        desc.factor_percent = good[i];
        ASSERT_EQ(PLB_OK, create(plb_bounded_loads(&desc), weights, 1, &lb));
        plb_destroy(lb);
    }
    PASS();
}

TEST without_a_descriptor_the_factor_is_125(void)
{
    static const uint32_t weights[] = {1, 1, 1};
    plb_balancer *a = balancer(plb_bounded_loads(NULL), weights, 3), *b = bounded(125, weights, 3);
    plb_pick of_a[60], of_b[60];
    int i;
    for (i = 0; i < 60; i++)
        ASSERT_EQ(begin(b, "key", &of_b[i]), begin(a, "key", &of_a[i]));
    for (i = 0; i < 60; i++) {
        plb_end(&of_a[i], PLB_OUTCOME_SUCCESS, 1);
        plb_end(&of_b[i], PLB_OUTCOME_SUCCESS, 1);
    }
    plb_destroy(a);
    plb_destroy(b);
    PASS();
}

TEST the_ring_has_the_limits_of_its_descriptor(void)
{
    static const uint32_t weights[] = {1, 1};
    plb_bounded_loads_desc desc;
    plb_update_info info;
    plb_balancer *lb;
    memset(&desc, 0, sizeof desc);
    desc.ring.max_points = 319;
    lb = balancer(plb_bounded_loads(&desc), weights, 2);
    plb_last_update(lb, &info);
    ASSERT_EQ(PLB_ERR_POINTS, info.status);
    plb_destroy(lb);
    PASS();
}

/* ==== THREADS ===================================================================================================== */

static void *begin_and_end(void *opaque)
{
    plb_balancer *lb = (plb_balancer *)opaque;
    plb_pick picks[8];
    int round, i;
    for (round = 0; round < 500; round++) {
        for (i = 0; i < 8; i++)
            if (begin(lb, i % 2 != 0 ? "hot" : "cold", &picks[i]) == PLB_NONE)
                return lb;
        for (i = 0; i < 8; i++)
            plb_end(&picks[i], PLB_OUTCOME_SUCCESS, 1);
    }
    return NULL;
}

TEST threads_always_find_a_backend_and_leave_nothing_counted(void)
{
    static const uint32_t weights[] = {1, 2, 3};
    plb_balancer *lb = bounded(101, weights, 3), *ketama = balancer(plb_ketama(NULL), weights, 3);
    pthread_t threads[4];
    void *failed;
    size_t i;
    for (i = 0; i < COUNT(threads); i++)
        ASSERT_EQ(0, pthread_create(&threads[i], NULL, begin_and_end, lb));
    for (i = 0; i < COUNT(threads); i++) {
        ASSERT_EQ(0, pthread_join(threads[i], &failed));
        ASSERT(failed == NULL);
    }
    ASSERT_EQ(0, total_in_flight(lb));
    CHECK_CALL(same_as_ketama(lb, ketama, 100));
    plb_destroy(lb);
    plb_destroy(ketama);
    PASS();
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_TEST(at_rest_it_is_ketama);
    RUN_TEST(weights_that_are_all_0_are_not_ready_and_can_be_walked);
    RUN_TEST(no_backend_is_ever_above_its_bound_and_keys_are_as_near_home_as_it_allows);
    RUN_TEST(one_of_many_that_is_ready_takes_everything);
    RUN_TEST(keys_return_when_load_goes);
    RUN_TEST(picks_that_outlive_their_set_are_counted_until_they_end);
    RUN_TEST(a_retry_goes_to_one_that_has_room);
    RUN_TEST(a_retry_does_not_fail_for_the_bound);
    RUN_TEST(a_walk_passes_over_full_backends_at_first_and_shows_them_in_time);
    RUN_TEST(a_walk_shows_an_unready_backend_at_its_place);
    RUN_TEST(duplicates_of_one_address_never_block_each_other);
    RUN_TEST(the_bound_is_exact_up_to_the_largest_counts);
    RUN_TEST(a_factor_out_of_range_is_refused);
    RUN_TEST(without_a_descriptor_the_factor_is_125);
    RUN_TEST(the_ring_has_the_limits_of_its_descriptor);
    RUN_TEST(threads_always_find_a_backend_and_leave_nothing_counted);
    GREATEST_MAIN_END();
}
