/* Two choices and peak EWMA: shares, load, latency, and what they do where little is ready or known. */
#define _POSIX_C_SOURCE 200809L
#define PLB_READERS     1 /* so that a thread has the same random numbers in each run */
#define PINGORA_LB_IMPLEMENTATION
#include "../pingora_lb.h"
#include <greatest.h>
#include <pthread.h>
#include <stdlib.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

enum { BACKENDS_MAX = 1000, TICK_MS = 100, MS = 1000 /* microseconds */ };

static bool near(double wanted, double got, double off)
{
    return got >= wanted - off && got <= wanted + off;
}

/* ==== BALANCERS TO PICK FROM ====================================================================================== */

static uint64_t no_time(void *self)
{
    (void)self;
    return 0;
}

/* The same random numbers in each run. */
static void fill_fixed(void *self, void *bytes, size_t count)
{
    (void)self;
    memset(bytes, 0x2b, count);
}

static const plb_clock clock_of_tests = {NULL, no_time, NULL};
static const plb_random random_of_tests = {NULL, fill_fixed};

typedef plb_strategy (*strategy_fn)(void);

static plb_strategy peak_ewma(void)
{
    return plb_peak_ewma(NULL);
}

static const strategy_fn strategies[] = {plb_two_choices, peak_ewma};

static plb_backend nth_backend(uint32_t i, uint32_t weight)
{
    plb_backend b;
    memset(&b, 0, sizeof b);
    b.addr.family = PLB_FAMILY_IPV4;
    b.addr.port = 80;
    b.addr.u.v4[0] = 10;
    b.addr.u.v4[2] = (uint8_t)(i >> 8);
    b.addr.u.v4[3] = (uint8_t)i;
    b.weight = weight;
    return b;
}

/* The number that nth_backend made this address from. */
static uint32_t index_of(const plb_addr *addr)
{
    return addr->u.v4[2] * 256u + addr->u.v4[3];
}

static plb_status create(plb_strategy strategy, const uint32_t *weights, uint32_t count, const plb_clock *clock,
                         const plb_allocator *allocator, plb_balancer **out)
{
    static plb_backend backends[BACKENDS_MAX];
    plb_static_desc list;
    plb_balancer_desc desc;
    uint32_t i;
    for (i = 0; i < count; i++)
        backends[i] = nth_backend(i, weights != NULL ? weights[i] : 1);
    memset(&list, 0, sizeof list);
    memset(&desc, 0, sizeof desc);
    list.backends = backends;
    list.backend_count = count;
    desc.port.clock = clock;
    desc.port.random = &random_of_tests;
    desc.discovery = plb_static(&list);
    desc.strategy = strategy;
    if (allocator != NULL)
        desc.allocator = *allocator;
    return plb_create(&desc, out);
}

/* weights NULL: each 1. */
static plb_balancer *balancer(plb_strategy strategy, const uint32_t *weights, uint32_t count)
{
    plb_balancer *lb;
    if (create(strategy, weights, count, &clock_of_tests, NULL, &lb) != PLB_OK) {
        fprintf(stderr, "test_choices: no balancer\n");
        abort();
    }
    return lb;
}

static void set_enabled(plb_balancer *lb, uint32_t i, bool enabled)
{
    plb_backend b = nth_backend(i, 1);
    plb_set_enabled(lb, &b.addr, 0, enabled);
}

static uint32_t select_index(plb_balancer *lb)
{
    plb_addr addr;
    return plb_select(lb, NULL, 0, 0, &addr) == PLB_OK ? index_of(&addr) : PLB_NONE;
}

static void count_selects(plb_balancer *lb, uint32_t picks, uint32_t *counts, uint32_t count)
{
    memset(counts, 0, count * sizeof *counts);
    while (picks-- > 0) {
        uint32_t i = select_index(lb);
        if (i < count)
            counts[i]++;
    }
}

static bool is_wanted(void *user, const plb_backend_info *info)
{
    return index_of(&info->backend.addr) == *(const uint32_t *)user;
}

/* A request for that backend. */
static plb_pick hold(plb_balancer *lb, uint32_t i)
{
    plb_request request;
    plb_pick pick;
    memset(&request, 0, sizeof request);
    request.accept = is_wanted;
    request.accept_user = &i;
    if (plb_begin(lb, &request, &pick) != PLB_OK)
        abort();
    return pick;
}

static void request_to(plb_balancer *lb, uint32_t i, plb_outcome outcome, uint64_t latency_us)
{
    plb_pick pick = hold(lb, i);
    plb_end(&pick, outcome, latency_us);
}

/* A request to each of the first `count`. */
static void request_each(plb_balancer *lb, uint32_t count, uint64_t latency_us)
{
    uint32_t i;
    for (i = 0; i < count; i++)
        request_to(lb, i, PLB_OUTCOME_SUCCESS, latency_us);
}

static const plb_view *view_of(const plb_balancer *lb)
{
    return &((const plb__set *)lb->current)->tiers[0].view;
}

static const plb__choices *table_of(const plb_balancer *lb)
{
    return (const plb__choices *)((const plb__set *)lb->current)->tiers[0].table;
}

static void tick(plb_balancer *lb)
{
    lb->strategy->tick(lb->strategy_state, ((const plb__set *)lb->current)->tiers[0].table, view_of(lb));
}

static uint32_t estimate_us(const plb_balancer *lb, uint32_t i)
{
    return ((const plb__ewma *)plb_view_data(view_of(lb), i))->estimate / PLB__EWMA_US;
}

/* Do the counts fit the weights? False for one honest sample in a thousand: `limit` is the 99.9 % point of chi-square
   for one degree of freedom less than there are weights above 0. */
static bool fits(const uint32_t *counts, const uint32_t *weights, uint32_t count, double limit)
{
    double picks = 0, weight_sum = 0, chi = 0;
    uint32_t i;
    for (i = 0; i < count; i++) {
        picks += counts[i];
        weight_sum += weights[i];
    }
    for (i = 0; i < count; i++) {
        double expected = picks * weights[i] / weight_sum, off = counts[i] - expected;
        if (weights[i] > 0)
            chi += off * off / expected;
        else if (counts[i] > 0)
            return false;
    }
    return picks > 0 && chi < limit;
}

static const uint32_t mixed[10] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
static const uint32_t equal[10] = {4, 4, 4, 4, 4, 4, 4, 4, 4, 4};
static const uint32_t skewed[10] = {0, 65535, 1000, 0, 20000, 3000, 0, 40000, 8, 500};
#define CHI_1 10.83
#define CHI_6 22.46
#define CHI_9 27.88

/* ==== DRAWING ===================================================================================================== */

/* Right to 2^-32 of a column for each column that a backend is in. */
TEST the_columns_hold_each_backend_to_its_weight(void)
{
    static uint32_t weights[BACKENDS_MAX];
    static uint64_t shares[BACKENDS_MAX];
    uint32_t round, i, count, random = 1;
    for (round = 0; round < 60; round++) {
        uint64_t sum = 0;
        plb_balancer *lb;
        count = round < 12 ? round + 2 : 2 + round * round % 777;
        for (i = 0; i < count; i++) {
            random = random * 1664525u + 1013904223u;
            weights[i] = round % 3 == 0   ? random >> 16
                         : round % 3 == 1 ? 1 + (random >> 16) % 10
                                          : 1u << (random >> 28);
            if (round % 4 == 0 && (random >> 8 & 3) == 0)
                weights[i] = 0;
        }
        weights[round % count] = 65535;
        weights[(round + 1) % count] = 1;
        for (i = 0; i < count; i++)
            sum += weights[i];
        lb = balancer(plb_two_choices(), weights, count);
        memset(shares, 0, sizeof shares);
        for (i = 0; i < count; i++) {
            const plb__column *column = &table_of(lb)->columns[i];
            ASSERT(column->other < count);
            shares[i] += column->own;
            shares[column->other] += (UINT64_C(1) << 32) - column->own;
        }
        for (i = 0; i < count; i++) {
            double wanted = 4294967296.0 * count * weights[i] / (double)sum;
            ASSERT(near(wanted, (double)shares[i], (double)count));
            ASSERT(weights[i] > 0 || shares[i] == 0);
        }
        plb_destroy(lb);
    }
    PASS();
}

TEST equal_weights_need_no_columns(void)
{
    plb_balancer *lb = balancer(plb_two_choices(), equal, 10);
    ASSERT_EQ(NULL, table_of(lb)->columns);
    ASSERT_EQ(sizeof(plb__choices), table_of(lb)->size);
    plb_destroy(lb);
    lb = balancer(plb_two_choices(), mixed, 10);
    ASSERT_EQ(sizeof(plb__choices) + 10 * 8, table_of(lb)->size);
    plb_destroy(lb);
    PASS();
}

/* Of one choice at random too. */
TEST at_rest_the_shares_are_those_of_the_weights(void)
{
    static const uint32_t one_to_nine[2] = {1, 9};
    size_t s;
    for (s = 0; s <= COUNT(strategies); s++) {
        strategy_fn strategy = s < COUNT(strategies) ? strategies[s] : plb_random_choice;
        uint32_t counts[10];
        plb_balancer *lb = balancer(strategy(), mixed, 10);
        count_selects(lb, 200000, counts, 10);
        ASSERT(fits(counts, mixed, 10, CHI_9));
        request_each(lb, 10, 5 * MS); /* what is known of all of them being the same */
        count_selects(lb, 200000, counts, 10);
        ASSERT(fits(counts, mixed, 10, CHI_9));
        plb_destroy(lb);
        lb = balancer(strategy(), equal, 10);
        count_selects(lb, 200000, counts, 10);
        ASSERT(fits(counts, equal, 10, CHI_9));
        plb_destroy(lb);
        lb = balancer(strategy(), skewed, 10);
        count_selects(lb, 400000, counts, 10);
        ASSERT(fits(counts, skewed, 10, CHI_6));
        plb_destroy(lb);
        lb = balancer(strategy(), one_to_nine, 2);
        count_selects(lb, 100000, counts, 2);
        ASSERT(fits(counts, one_to_nine, 2, CHI_1));
        plb_destroy(lb);
    }
    PASS();
}

/* The second one is as likely as its weight says too: it is what a loaded first one loses to. */
TEST the_second_choice_goes_by_weight_as_well(void)
{
    static const uint32_t weights[10] = {4, 4, 4, 4, 4, 4, 4, 4, 4, 4000};
    uint32_t counts[10], i;
    plb_balancer *lb = balancer(plb_two_choices(), equal, 10);
    plb_pick held = hold(lb, 3);
    count_selects(lb, 100000, counts, 10);
    ASSERT_EQ(0, counts[3]);
    counts[3] = counts[0];
    ASSERT(fits(counts, equal, 10, CHI_9));
    plb_end(&held, PLB_OUTCOME_SUCCESS, 1);
    plb_destroy(lb);
    lb = balancer(plb_two_choices(), weights, 10); /* the heavy one is nearly always both: it must not take all then */
    held = hold(lb, 9);
    count_selects(lb, 100000, counts, 10);
    ASSERT(counts[9] < 97500);
    for (i = 0; i < 9; i++)
        ASSERT(counts[i] > 200);
    plb_end(&held, PLB_OUTCOME_SUCCESS, 1);
    plb_destroy(lb);
    PASS();
}

TEST unready_ones_are_never_picked_and_their_share_goes_by_weight(void)
{
    static const uint32_t downs[] = {1, 3, 5, 7, 8};
    size_t s, d;
    for (s = 0; s < COUNT(strategies); s++) {
        for (d = 0; d < COUNT(downs); d++) {
            static const double limits[] = {26.12, 22.46, 18.47, 13.82, 10.83};
            plb_balancer *lb = balancer(strategies[s](), mixed, 10);
            uint32_t counts[10], weights[10], i;
            plb_pick held[10];
            memcpy(weights, mixed, sizeof weights);
            for (i = 0; i < downs[d]; i++) {
                uint32_t down = (3 + 7 * i) % 10;
                set_enabled(lb, down, false);
                weights[down] = 0;
            }
            count_selects(lb, 100000, counts, 10);
            ASSERT(fits(counts, weights, 10, limits[d]));
            for (i = 0; i < 10; i++)
                held[i] = hold(lb, weights[i] > 0 ? i : 3); /* then the unready ones have less to do, but for one */
            count_selects(lb, 10000, counts, 10);
            for (i = 0; i < 10; i++) {
                ASSERT(weights[i] > 0 || counts[i] == 0);
                plb_end(&held[i], PLB_OUTCOME_CANCELLED, 0);
            }
            plb_destroy(lb);
        }
    }
    PASS();
}

TEST one_backend_gets_everything(void)
{
    static const uint32_t weights[] = {1, 7, 65535};
    size_t s, w;
    uint32_t i;
    for (s = 0; s < COUNT(strategies); s++) {
        for (w = 0; w < COUNT(weights); w++) {
            plb_balancer *lb = balancer(strategies[s](), &weights[w], 1);
            plb_pick picks[50];
            for (i = 0; i < 50; i++)
                ASSERT_EQ(PLB_OK, plb_begin(lb, NULL, &picks[i]));
            for (i = 0; i < 50; i++)
                plb_end(&picks[i], PLB_OUTCOME_BROKEN, 1);
            ASSERT_EQ(0, select_index(lb));
            request_to(lb, 0, PLB_OUTCOME_SUCCESS, 1);
            set_enabled(lb, 0, false);
            ASSERT_EQ(PLB_NONE, select_index(lb));
            request_to(lb, 0, PLB_OUTCOME_SUCCESS, 1);
            plb_destroy(lb);
        }
    }
    PASS();
}

/* One look is enough, however few are ready. */
TEST the_last_ready_one_is_found_at_any_limit(void)
{
    static const uint32_t sizes[] = {1, 2, 3, 64, 65, 1000};
    size_t s, n;
    for (s = 0; s < COUNT(strategies); s++) {
        for (n = 0; n < COUNT(sizes); n++) {
            plb_balancer *lb = balancer(strategies[s](), n % 2 == 0 ? NULL : mixed, n % 2 == 0 ? sizes[n] : 2);
            uint32_t i, count = plb_view_count(view_of(lb)), limit;
            for (i = 0; i < count; i++)
                set_enabled(lb, i, i == count / 2);
            for (limit = 0; limit < 3; limit++) {
                plb_addr addr;
                ASSERT_EQ(PLB_OK, plb_select(lb, NULL, 0, limit, &addr));
                ASSERT_EQ(count / 2, index_of(&addr));
            }
            plb_destroy(lb);
        }
    }
    PASS();
}

TEST weights_of_0_alone_are_not_ready_and_can_be_walked(void)
{
    static const uint32_t zeros[3] = {0, 0, 0};
    size_t s;
    for (s = 0; s < COUNT(strategies); s++) {
        plb_balancer *lb = balancer(strategies[s](), zeros, 3);
        ASSERT_EQ(PLB_NONE, select_index(lb));
        request_each(lb, 3, 1);
        plb_destroy(lb);
    }
    PASS();
}

/* ==== WALKING ===================================================================================================== */

/* Without it the better of two would come up again and again, and it has just failed. */
TEST a_retry_finds_the_other_one_at_its_second_look(void)
{
    size_t s;
    uint32_t i;
    for (s = 0; s < COUNT(strategies); s++) {
        plb_balancer *lb = balancer(strategies[s](), NULL, 2);
        plb_pick held = hold(lb, 1);
        for (i = 0; i < 50; i++) {
            plb_request request;
            plb_pick first, second;
            memset(&request, 0, sizeof request);
            ASSERT_EQ(PLB_OK, plb_begin(lb, NULL, &first));
            ASSERT_EQ(0, index_of(&first.addr));
            plb_end(&first, PLB_OUTCOME_CANCELLED, 0);
            request.exclude = &first.slot;
            request.exclude_count = 1;
            request.max_iterations = 2;
            ASSERT_EQ(PLB_OK, plb_begin(lb, &request, &second));
            ASSERT_EQ(1, index_of(&second.addr));
            plb_end(&second, PLB_OUTCOME_CANCELLED, 0);
        }
        plb_end(&held, PLB_OUTCOME_CANCELLED, 0);
        plb_destroy(lb);
    }
    PASS();
}

TEST a_walk_begins_with_the_better_of_two_and_comes_to_all(void)
{
    size_t s;
    for (s = 0; s < COUNT(strategies); s++) {
        plb_balancer *lb = balancer(strategies[s](), mixed, 10);
        plb_pick held[9];
        plb_walk walk;
        plb_backend_info info;
        uint32_t i, seen = 0, firsts[10] = {0};
        for (i = 0; i < 9; i++)
            held[i] = hold(lb, i); /* all but the last are loaded */
        for (i = 0; i < 300; i++) {
            uint32_t first, second;
            ASSERT_EQ(PLB_OK, plb_walk_begin(&walk, lb, NULL, 0));
            plb_walk_next(&walk, &info);
            first = index_of(&info.backend.addr);
            plb_walk_next(&walk, &info);
            second = index_of(&info.backend.addr);
            ASSERT(first == 9 || second != 9);
            firsts[first]++;
            plb_walk_end(&walk);
        }
        ASSERT(firsts[9] > 60);
        ASSERT_EQ(PLB_OK, plb_walk_begin(&walk, lb, NULL, 0));
        for (i = 0; i < 300; i++) {
            plb_walk_next(&walk, &info);
            seen |= 1u << index_of(&info.backend.addr);
        }
        plb_walk_end(&walk);
        ASSERT_EQ(0x3ff, seen);
        for (i = 0; i < 9; i++)
            plb_end(&held[i], PLB_OUTCOME_CANCELLED, 0);
        plb_destroy(lb);
    }
    PASS();
}

TEST a_walk_where_none_is_ready_goes_by_weight(void)
{
    size_t s;
    for (s = 0; s < COUNT(strategies); s++) {
        plb_balancer *lb = balancer(strategies[s](), mixed, 10);
        uint32_t i, counts[10] = {0};
        plb_walk walk;
        for (i = 0; i < 10; i++)
            set_enabled(lb, i, false);
        ASSERT_EQ(PLB_NONE, select_index(lb));
        ASSERT_EQ(PLB_OK, plb_walk_begin(&walk, lb, NULL, 0));
        for (i = 0; i < 50000; i++) {
            plb_backend_info info;
            plb_walk_next(&walk, &info);
            counts[index_of(&info.backend.addr)]++;
        }
        plb_walk_end(&walk);
        ASSERT(fits(counts, mixed, 10, CHI_9));
        plb_destroy(lb);
    }
    PASS();
}

/* ==== LOAD ======================================================================================================== */

/* One random choice each would put 5 or 6 on the fullest. */
TEST the_fullest_of_1000_has_few_of_1000_requests(void)
{
    static plb_pick picks[BACKENDS_MAX];
    static uint32_t loads[BACKENDS_MAX];
    size_t s;
    uint32_t i;
    for (s = 0; s < COUNT(strategies); s++) {
        plb_balancer *lb = balancer(strategies[s](), NULL, BACKENDS_MAX);
        memset(loads, 0, sizeof loads);
        for (i = 0; i < BACKENDS_MAX; i++) {
            ASSERT_EQ(PLB_OK, plb_begin(lb, NULL, &picks[i]));
            loads[index_of(&picks[i].addr)]++;
        }
        for (i = 0; i < BACKENDS_MAX; i++)
            ASSERT(loads[i] <= 4);
        for (i = 0; i < BACKENDS_MAX; i++)
            plb_end(&picks[i], PLB_OUTCOME_SUCCESS, 1);
        plb_destroy(lb);
    }
    PASS();
}

TEST a_loaded_one_loses_against_any_idle_one(void)
{
    static const uint32_t sizes[] = {2, 3, 10};
    size_t s, n;
    for (s = 0; s < COUNT(strategies); s++) {
        for (n = 0; n < COUNT(sizes); n++) {
            uint32_t counts[10], known;
            for (known = 0; known < 2; known++) { /* whether latencies are known or not */
                plb_balancer *lb = balancer(strategies[s](), NULL, sizes[n]);
                plb_pick held;
                if (known)
                    request_each(lb, sizes[n], MS);
                held = hold(lb, 1);
                count_selects(lb, 10000, counts, sizes[n]);
                ASSERT_EQ(0, counts[1]);
                plb_end(&held, PLB_OUTCOME_SUCCESS, MS);
                request_each(lb, sizes[n], MS);
                count_selects(lb, 10000, counts, sizes[n]);
                ASSERT(counts[1] > 800);
                plb_destroy(lb);
            }
        }
    }
    PASS();
}

/* Two requests on a weight of 3 are less than one on a weight of 1, whatever the unit that weights are counted in. */
TEST load_counts_by_weight(void)
{
    static const uint32_t units[] = {1, 100, 20000};
    size_t s, u;
    for (s = 0; s < COUNT(strategies); s++) {
        for (u = 0; u < COUNT(units); u++) {
            uint32_t counts[2], weights[2], i;
            plb_pick light, heavy[4];
            plb_balancer *lb;
            weights[0] = units[u];
            weights[1] = 3 * units[u];
            lb = balancer(strategies[s](), weights, 2);
            request_each(lb, 2, MS);
            light = hold(lb, 0);
            heavy[0] = hold(lb, 1);
            heavy[1] = hold(lb, 1);
            count_selects(lb, 1000, counts, 2);
            ASSERT_EQ(0, counts[0]);
            heavy[2] = hold(lb, 1);
            heavy[3] = hold(lb, 1);
            count_selects(lb, 1000, counts, 2);
            ASSERT(counts[0] > 750); /* all but those where the heavy one was drawn time and again */
            plb_end(&light, PLB_OUTCOME_SUCCESS, MS);
            for (i = 0; i < 4; i++)
                plb_end(&heavy[i], PLB_OUTCOME_SUCCESS, MS);
            plb_destroy(lb);
        }
    }
    PASS();
}

TEST under_load_the_requests_in_flight_follow_the_weights(void)
{
    enum { PER_WEIGHT = 20, HELD = 55 * PER_WEIGHT };
    static plb_pick picks[HELD];
    size_t s;
    uint32_t i;
    for (s = 0; s < COUNT(strategies); s++) {
        plb_balancer *lb = balancer(strategies[s](), mixed, 10);
        request_each(lb, 10, MS);
        for (i = 0; i < HELD; i++)
            ASSERT_EQ(PLB_OK, plb_begin(lb, NULL, &picks[i]));
        for (i = 0; i < 10; i++)
            ASSERT(near(PER_WEIGHT * mixed[i], plb_view_in_flight(view_of(lb), i), 2 + mixed[i]));
        for (i = 0; i < HELD; i++)
            plb_end(&picks[i], PLB_OUTCOME_SUCCESS, MS);
        plb_destroy(lb);
    }
    PASS();
}

/* ==== LATENCY ===================================================================================================== */

static plb_balancer *two_with_decay(uint32_t decay_ms)
{
    plb_peak_ewma_desc desc;
    desc.decay_ms = decay_ms;
    return balancer(plb_peak_ewma(&desc), NULL, 2);
}

/* Ticks, with a request in each of them to number 1, until number 0 is chosen. */
static uint32_t ticks_until_tried(plb_balancer *lb, uint64_t latency_us)
{
    uint32_t ticks = 0;
    while (select_index(lb) != 0 && ticks < 100000) {
        request_to(lb, 1, PLB_OUTCOME_SUCCESS, latency_us);
        tick(lb);
        ticks++;
    }
    return ticks;
}

TEST a_slow_backend_gets_little_but_is_tried_again(void)
{
    plb_balancer *lb = balancer(plb_peak_ewma(NULL), NULL, 4);
    uint32_t t, i, counts[4] = {0};
    for (t = 0; t < 3000; t++) { /* five minutes, 40 requests a second */
        for (i = 0; i < 4; i++) {
            plb_pick pick;
            uint32_t to;
            ASSERT_EQ(PLB_OK, plb_begin(lb, NULL, &pick));
            to = index_of(&pick.addr);
            counts[to]++;
            plb_end(&pick, PLB_OUTCOME_SUCCESS, (to == 2 ? 50 * MS : 5 * MS) + (t * 4 + i) * 7919 % 1000);
        }
        tick(lb);
    }
    ASSERT(counts[2] > 3);
    ASSERT(counts[2] < 120);
    ASSERT(counts[0] > 2000 && counts[1] > 2000 && counts[3] > 2000);
    plb_destroy(lb);
    PASS();
}

/* Ten times the latency weighs as much as nine requests waiting; and drained backends have no say in that. */
TEST latency_and_load_are_weighed_against_each_other(void)
{
    static const uint32_t weights[10] = {4, 4};
    plb_balancer *lb = balancer(plb_peak_ewma(NULL), weights, 10);
    plb_pick held[9];
    uint32_t i, counts[2];
    request_to(lb, 0, PLB_OUTCOME_SUCCESS, 10 * MS + 1);
    request_to(lb, 1, PLB_OUTCOME_SUCCESS, MS);
    for (i = 0; i < 9; i++)
        held[i] = hold(lb, 1);
    count_selects(lb, 1000, counts, 2);
    ASSERT(counts[0] < 100); /* but for those where one was drawn time and again */
    request_to(lb, 1, PLB_OUTCOME_SUCCESS, MS + 2);
    count_selects(lb, 1000, counts, 2);
    ASSERT(counts[1] < 100);
    for (i = 0; i < 9; i++)
        plb_end(&held[i], PLB_OUTCOME_SUCCESS, MS);
    plb_destroy(lb);
    PASS();
}

/* The numbers that are compared grow past 64 bits. */
TEST the_largest_costs_are_still_told_apart(void)
{
    enum { HELD = 300 };
    static const uint32_t weights[2] = {65535, 65534};
    static plb_pick held[HELD];
    plb_balancer *lb = balancer(plb_peak_ewma(NULL), weights, 2);
    uint32_t i, counts[2];
    request_each(lb, 2, UINT64_MAX);
    for (i = 0; i < HELD; i++) {
        held[i] = hold(lb, 0);
        count_selects(lb, 20, counts, 2);
        ASSERT(counts[0] < 2);
    }
    for (i = 0; i < HELD; i++)
        plb_end(&held[i], PLB_OUTCOME_CANCELLED, 0);
    plb_destroy(lb);
    PASS();
}

TEST a_peak_is_seen_at_once(void)
{
    plb_balancer *lb = two_with_decay(0);
    uint32_t counts[2];
    request_each(lb, 2, MS);
    count_selects(lb, 1000, counts, 2);
    ASSERT(counts[0] > 400);
    request_to(lb, 0, PLB_OUTCOME_SUCCESS, 100 * MS);
    count_selects(lb, 1000, counts, 2);
    ASSERT_EQ(0, counts[0]);
    request_to(lb, 0, PLB_OUTCOME_SUCCESS, MS); /* one good answer does not make up for it */
    count_selects(lb, 1000, counts, 2);
    ASSERT_EQ(0, counts[0]);
    plb_destroy(lb);
    PASS();
}

/* 100 ms come down to 1 ms in ln 100 = 4.6 times the time constant, after the tick that folds the sample in. */
TEST a_peak_decays_with_its_time_constant(void)
{
    plb_balancer *lb = two_with_decay(1000);
    request_to(lb, 0, PLB_OUTCOME_SUCCESS, 100 * MS);
    ASSERT(near(47, ticks_until_tried(lb, MS), 1));
    plb_destroy(lb);
    lb = two_with_decay(0); /* 10 s */
    request_to(lb, 0, PLB_OUTCOME_SUCCESS, 100 * MS);
    ASSERT(near(461, ticks_until_tried(lb, MS), 2));
    plb_destroy(lb);
    PASS();
}

TEST the_time_constant_is_exact_at_any_length(void)
{
    static const uint32_t decays[] = {1, 100, 250, 1000, 10000, 60000};
    size_t d;
    for (d = 0; d < COUNT(decays); d++) {
        plb_balancer *lb = two_with_decay(decays[d]);
        uint32_t t, ticks = decays[d] < TICK_MS ? 1 : decays[d] / TICK_MS;
        request_to(lb, 0, PLB_OUTCOME_SUCCESS, 60000000);
        tick(lb); /* the sample itself is folded in */
        request_to(lb, 0, PLB_OUTCOME_SUCCESS, 60000000);
        ((plb__ewma *)plb_view_data(view_of(lb), 0))->recent = 0;
        for (t = 0; t < ticks; t++)
            tick(lb);
        /* 60 seconds / e, but 250 ms are two ticks: e^-0.8 */
        ASSERT(near(decays[d] == 250 ? 26959738 : 22072766, estimate_us(lb, 0), 50));
        plb_destroy(lb);
    }
    PASS();
}

/* What it is usually: the mean, not the peak, and not lower. */
TEST under_traffic_the_estimate_comes_down_to_what_is_usual(void)
{
    plb_balancer *lb = two_with_decay(1000);
    uint32_t t, i;
    request_to(lb, 0, PLB_OUTCOME_SUCCESS, 10000 * MS);
    for (t = 0; t < 300; t++) {
        for (i = 0; i < 1 + t % 20; i++)
            request_to(lb, 0, PLB_OUTCOME_SUCCESS, 200);
        tick(lb);
    }
    ASSERT(near(200, estimate_us(lb, 0), 1));
    for (t = 0; t < 3000; t++)
        tick(lb);
    ASSERT_EQ(0, estimate_us(lb, 0)); /* and is forgotten in the end */
    plb_destroy(lb);
    PASS();
}

/* Half of the samples are 300, half 100, and e^-1 of the peak is left. */
TEST a_tick_folds_in_the_mean_of_all_its_samples(void)
{
    plb_balancer *lb = two_with_decay(TICK_MS);
    uint32_t i;
    for (i = 0; i < 40; i++)
        request_to(lb, 0, PLB_OUTCOME_SUCCESS, i % 2 == 0 ? 300 : 100);
    tick(lb);
    ASSERT(near(300 * 0.368 + 200 * 0.632, estimate_us(lb, 0), 10));
    plb_destroy(lb);
    PASS();
}

TEST duplicates_that_share_a_slot_decay_once_a_tick(void)
{
    plb_backend backends[2];
    plb_static_desc list;
    plb_balancer_desc desc;
    plb_balancer *lb;
    uint32_t t;
    memset(&list, 0, sizeof list);
    memset(&desc, 0, sizeof desc);
    backends[0] = nth_backend(0, 1);
    backends[1] = nth_backend(0, 2);
    list.backends = backends;
    list.backend_count = 2;
    desc.port.clock = &clock_of_tests;
    desc.discovery = plb_static(&list);
    desc.strategy = plb_peak_ewma(NULL);
    ASSERT_EQ(PLB_OK, plb_create(&desc, &lb));
    ASSERT_EQ(2, plb_view_count(view_of(lb)));
    request_to(lb, 0, PLB_OUTCOME_SUCCESS, 1000 * MS);
    for (t = 0; t < 100; t++)
        tick(lb);
    ASSERT(near(371000, estimate_us(lb, 0), 4000));
    plb_destroy(lb);
    PASS();
}

/* Answering at once that it failed, the backend would be the fastest of all. */
TEST a_failing_backend_does_not_attract_requests(void)
{
    static const plb_outcome failures[] = {PLB_OUTCOME_CONNECT_ERROR, PLB_OUTCOME_BROKEN, PLB_OUTCOME_SERVER_ERROR};
    size_t f;
    uint32_t t, i, known;
    for (f = 0; f < COUNT(failures); f++) {
        for (known = 0; known < 2; known++) {
            plb_balancer *lb = balancer(plb_peak_ewma(NULL), NULL, 3);
            uint32_t counts[3] = {0};
            if (known)
                request_each(lb, 3, 20 * MS);
            for (t = 0; t < 1000; t++) { /* 100 seconds */
                for (i = 0; i < 10; i++) {
                    plb_pick pick;
                    uint32_t to;
                    ASSERT_EQ(PLB_OK, plb_begin(lb, NULL, &pick));
                    to = index_of(&pick.addr);
                    counts[to]++;
                    plb_end(&pick, to == 1 ? failures[f] : PLB_OUTCOME_SUCCESS, to == 1 ? 10 : 20 * MS);
                }
                tick(lb);
            }
            ASSERT(counts[1] > 0);
            ASSERT(counts[1] < 30);
            plb_destroy(lb);
        }
    }
    PASS();
}

TEST a_newcomer_that_fails_at_once_is_not_chosen_again(void)
{
    plb_balancer *lb = two_with_decay(0);
    uint32_t counts[2];
    request_to(lb, 1, PLB_OUTCOME_SUCCESS, 900 * MS);
    request_to(lb, 0, PLB_OUTCOME_CONNECT_ERROR, 10);
    count_selects(lb, 1000, counts, 2);
    ASSERT_EQ(0, counts[0]);
    plb_destroy(lb);
    PASS();
}

TEST a_single_failure_is_soon_forgiven(void)
{
    plb_balancer *lb = two_with_decay(1000);
    request_each(lb, 2, 20 * MS);
    tick(lb);
    request_to(lb, 0, PLB_OUTCOME_SERVER_ERROR, 10);
    ASSERT(near(40 * MS, estimate_us(lb, 0), MS));
    ((plb__ewma *)plb_view_data(view_of(lb), 0))->recent = 0;
    ASSERT(near(7, ticks_until_tried(lb, 20 * MS), 1)); /* ln 2 of the time constant */
    plb_destroy(lb);
    PASS();
}

TEST a_slow_failure_counts_as_long_as_it_took(void)
{
    plb_balancer *lb = two_with_decay(0);
    request_to(lb, 0, PLB_OUTCOME_BROKEN, 30000 * MS);
    request_to(lb, 1, PLB_OUTCOME_SUCCESS, 20 * MS);
    request_to(lb, 1, PLB_OUTCOME_BROKEN, 30000 * MS);
    ASSERT_EQ(30000 * MS, estimate_us(lb, 0));
    ASSERT_EQ(30000 * MS, estimate_us(lb, 1));
    plb_destroy(lb);
    PASS();
}

TEST a_cancelled_request_says_nothing(void)
{
    plb_balancer *lb = two_with_decay(0);
    uint32_t counts[2];
    request_to(lb, 0, PLB_OUTCOME_CANCELLED, 5);
    ASSERT_EQ(0, estimate_us(lb, 0));
    request_each(lb, 2, MS);
    request_to(lb, 0, PLB_OUTCOME_CANCELLED, 60000 * MS);
    request_to(lb, 1, PLB_OUTCOME_CANCELLED, 0);
    tick(lb);
    count_selects(lb, 10000, counts, 2);
    ASSERT(counts[0] > 4700 && counts[1] > 4700);
    plb_destroy(lb);
    PASS();
}

/* Neither 2^64 - 1 microseconds nor a hundred failures in a row turn into something small. */
TEST what_is_too_long_to_count_stays_long(void)
{
    plb_balancer *lb = two_with_decay(0);
    uint32_t i, counts[2];
    request_each(lb, 2, 1000 * MS);
    for (i = 0; i < 100; i++) {
        static const uint64_t latencies[] = {UINT64_MAX, UINT32_MAX, UINT64_C(1) << 32 | 5, 1 << 26, 100000000};
        request_to(lb, 0, i % 2 == 0 ? PLB_OUTCOME_SUCCESS : PLB_OUTCOME_BROKEN, latencies[i % COUNT(latencies)]);
        tick(lb);
        ASSERT(estimate_us(lb, 0) > 60000 * MS);
        ((plb__ewma *)plb_view_data(view_of(lb), 0))->estimate = 1; /* as if all had been forgotten */
    }
    for (i = 0; i < 100; i++) {
        request_to(lb, 1, PLB_OUTCOME_BROKEN, 0);
        ASSERT(i < 8 || estimate_us(lb, 1) > 60000 * MS);
    }
    for (i = 0; i < 100; i++)
        request_to(lb, 0, PLB_OUTCOME_SUCCESS, 0); /* 0 is a latency: the fastest there is */
    count_selects(lb, 1000, counts, 2);
    ASSERT(counts[0] + counts[1] == 1000);
    plb_destroy(lb);
    PASS();
}

TEST the_fastest_there_is_still_counts_as_known(void)
{
    plb_balancer *lb = two_with_decay(0);
    plb_pick held;
    request_each(lb, 2, 0);
    request_to(lb, 1, PLB_OUTCOME_SUCCESS, 60000 * MS);
    held = hold(lb, 0);
    ASSERT_EQ(0, select_index(lb));
    plb_end(&held, PLB_OUTCOME_SUCCESS, 0);
    plb_destroy(lb);
    PASS();
}

TEST a_newcomer_gets_one_request_until_it_has_answered(void)
{
    plb_balancer *lb = balancer(plb_peak_ewma(NULL), NULL, 4);
    static plb_pick picks[200];
    uint32_t i, to_newcomer = 0;
    for (i = 0; i < 3; i++)
        request_to(lb, i, PLB_OUTCOME_SUCCESS, 10 * MS);
    for (i = 0; i < 200; i++) {
        ASSERT_EQ(PLB_OK, plb_begin(lb, NULL, &picks[i]));
        if (index_of(&picks[i].addr) == 3) {
            ASSERT(i < 20);
            to_newcomer++;
        }
    }
    ASSERT_EQ(1, to_newcomer);
    for (i = 0; i < 200; i++)
        plb_end(&picks[i], PLB_OUTCOME_SUCCESS, 10 * MS);
    for (i = 0; i < 200; i++)
        to_newcomer += select_index(lb) == 3;
    ASSERT(to_newcomer > 30 && to_newcomer < 70);
    plb_destroy(lb);
    PASS();
}

/* A lost choice stands for a tick then: ln 100 * 256 of them. */
TEST without_a_clock_a_slow_backend_is_tried_again(void)
{
    plb_balancer *lb;
    uint32_t lost = 0;
    ASSERT_EQ(PLB_OK, create(plb_peak_ewma(NULL), NULL, 2, NULL, NULL, &lb));
    request_to(lb, 0, PLB_OUTCOME_SUCCESS, 100 * MS);
    request_to(lb, 1, PLB_OUTCOME_SUCCESS, MS);
    ((plb__ewma *)plb_view_data(view_of(lb), 0))->recent = 0;
    for (;;) {
        plb_pick pick;
        ASSERT_EQ(PLB_OK, plb_begin(lb, NULL, &pick));
        plb_end(&pick, PLB_OUTCOME_SUCCESS, MS);
        if (index_of(&pick.addr) == 0)
            break;
        lost++;
        ASSERT(lost < 2000);
    }
    ASSERT(near(1179, lost, 15));
    plb_destroy(lb);
    PASS();
}

/* ==== MEMORY AND THREADS ========================================================================================== */

typedef struct failing {
    uint32_t until; /* allocations before the one that fails */
    size_t live;
} failing;

static void *failing_alloc(void *self, size_t size)
{
    failing *f = (failing *)self;
    if (f->until == 0)
        return NULL;
    f->until--;
    f->live++;
    return malloc(size);
}

static void failing_free(void *self, void *ptr, size_t size)
{
    (void)size;
    ((failing *)self)->live -= ptr != NULL;
    free(ptr);
}

TEST every_allocation_may_fail(void)
{
    size_t s;
    for (s = 0; s < COUNT(strategies); s++) {
        uint32_t until;
        for (until = 0; until < 100; until++) {
            failing f;
            plb_allocator allocator;
            plb_balancer *lb;
            bool served = false;
            memset(&f, 0, sizeof f);
            memset(&allocator, 0, sizeof allocator);
            f.until = until;
            allocator.user = &f;
            allocator.alloc = failing_alloc;
            allocator.dealloc = failing_free;
            if (create(strategies[s](), mixed, 10, NULL, &allocator, &lb) == PLB_OK) {
                served = select_index(lb) != PLB_NONE;
                plb_destroy(lb);
            }
            ASSERT_EQ(0, f.live);
            if (served)
                break;
        }
        ASSERT(until > 5 && until < 100);
    }
    PASS();
}

enum { WORKERS = 3, REQUESTS = 6000 };

static void *work(void *opaque)
{
    plb_balancer *lb = (plb_balancer *)opaque;
    plb_pick held[8];
    uint32_t i;
    memset(held, 0, sizeof held);
    for (i = 0; i < REQUESTS; i++) {
        plb_pick *pick = &held[i % COUNT(held)];
        plb_end(pick, (plb_outcome)(i % 5), i * 37 % 5000);
        if (plb_begin(lb, NULL, pick) != PLB_OK)
            return NULL;
    }
    for (i = 0; i < COUNT(held); i++)
        plb_end(&held[i], PLB_OUTCOME_SUCCESS, 1);
    return opaque;
}

/* Picks, requests that end, ticks and flips side by side; with a clock and without. */
TEST threads_may_do_all_of_it_at_once(void)
{
    size_t s;
    for (s = 0; s < 2 * COUNT(strategies); s++) {
        pthread_t threads[WORKERS];
        plb_balancer *lb;
        uint32_t i, t;
        bool all = true;
        ASSERT_EQ(PLB_OK, create(strategies[s / 2](), mixed, 10, s % 2 == 0 ? &clock_of_tests : NULL, NULL, &lb));
        for (t = 0; t < WORKERS; t++)
            ASSERT_EQ(0, pthread_create(&threads[t], NULL, work, lb));
        for (i = 0; i < 500; i++) {
            set_enabled(lb, i % 9, i % 2 == 0); /* the last one is always ready */
            if (lb->strategy->tick != NULL)
                tick(lb);
        }
        for (t = 0; t < WORKERS; t++) {
            void *done;
            pthread_join(threads[t], &done);
            all = all && done != NULL;
        }
        ASSERT(all);
        for (i = 0; i < 10; i++)
            ASSERT_EQ(0, plb_view_in_flight(view_of(lb), i));
        plb_destroy(lb);
    }
    PASS();
}

/* ==== THE LIST ==================================================================================================== */

SUITE(drawing)
{
    RUN_TEST(the_columns_hold_each_backend_to_its_weight);
    RUN_TEST(equal_weights_need_no_columns);
    RUN_TEST(at_rest_the_shares_are_those_of_the_weights);
    RUN_TEST(the_second_choice_goes_by_weight_as_well);
    RUN_TEST(unready_ones_are_never_picked_and_their_share_goes_by_weight);
    RUN_TEST(one_backend_gets_everything);
    RUN_TEST(the_last_ready_one_is_found_at_any_limit);
    RUN_TEST(weights_of_0_alone_are_not_ready_and_can_be_walked);
}

SUITE(walking)
{
    RUN_TEST(a_retry_finds_the_other_one_at_its_second_look);
    RUN_TEST(a_walk_begins_with_the_better_of_two_and_comes_to_all);
    RUN_TEST(a_walk_where_none_is_ready_goes_by_weight);
}

SUITE(load)
{
    RUN_TEST(the_fullest_of_1000_has_few_of_1000_requests);
    RUN_TEST(a_loaded_one_loses_against_any_idle_one);
    RUN_TEST(load_counts_by_weight);
    RUN_TEST(under_load_the_requests_in_flight_follow_the_weights);
}

SUITE(latency)
{
    RUN_TEST(a_slow_backend_gets_little_but_is_tried_again);
    RUN_TEST(latency_and_load_are_weighed_against_each_other);
    RUN_TEST(the_largest_costs_are_still_told_apart);
    RUN_TEST(a_peak_is_seen_at_once);
    RUN_TEST(a_peak_decays_with_its_time_constant);
    RUN_TEST(the_time_constant_is_exact_at_any_length);
    RUN_TEST(under_traffic_the_estimate_comes_down_to_what_is_usual);
    RUN_TEST(a_tick_folds_in_the_mean_of_all_its_samples);
    RUN_TEST(duplicates_that_share_a_slot_decay_once_a_tick);
    RUN_TEST(a_failing_backend_does_not_attract_requests);
    RUN_TEST(a_newcomer_that_fails_at_once_is_not_chosen_again);
    RUN_TEST(a_single_failure_is_soon_forgiven);
    RUN_TEST(a_slow_failure_counts_as_long_as_it_took);
    RUN_TEST(a_cancelled_request_says_nothing);
    RUN_TEST(what_is_too_long_to_count_stays_long);
    RUN_TEST(the_fastest_there_is_still_counts_as_known);
    RUN_TEST(a_newcomer_gets_one_request_until_it_has_answered);
    RUN_TEST(without_a_clock_a_slow_backend_is_tried_again);
}

SUITE(memory_and_threads)
{
    RUN_TEST(every_allocation_may_fail);
    RUN_TEST(threads_may_do_all_of_it_at_once);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(drawing);
    RUN_SUITE(walking);
    RUN_SUITE(load);
    RUN_SUITE(latency);
    RUN_SUITE(memory_and_threads);
    GREATEST_MAIN_END();
}
