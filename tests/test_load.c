/* Strategies that keep count: smooth round robin against nginx and a model of it, least connections against a model. */
#define _POSIX_C_SOURCE 200809L
#define PINGORA_LB_IMPLEMENTATION
#include "../pingora_lb.h"
#include <greatest.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

enum { BACKENDS_MAX = 65536, MODEL_MAX = 256, THREADS = 4 };

static uint64_t random_state = 1;

static uint32_t random_below(uint32_t limit)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state % limit);
}

/* ==== BALANCERS TO PICK FROM ====================================================================================== */

typedef plb_strategy (*strategy_fn)(void);

static const strategy_fn strategies[] = {plb_smooth_round_robin, plb_least_connections};

/* Malloc that counts, and fails from one request on. */
typedef struct heap {
    size_t blocks, bytes;
    size_t requests, fails_from; /* 0: never */
} heap;

static void *heap_alloc(void *user, size_t size)
{
    heap *h = (heap *)user;
    void *ptr = ++h->requests >= h->fails_from && h->fails_from != 0 ? NULL : malloc(size);
    h->blocks += ptr != NULL;
    h->bytes += ptr != NULL ? size : 0;
    return ptr;
}

static void heap_dealloc(void *user, void *ptr, size_t size)
{
    heap *h = (heap *)user;
    h->blocks--;
    h->bytes -= size;
    free(ptr);
}

static plb_status create(plb_strategy strategy, const plb_backend *backends, size_t count, heap *h, plb_balancer **lb)
{
    plb_static_desc list;
    plb_balancer_desc desc;
    memset(&list, 0, sizeof list);
    memset(&desc, 0, sizeof desc);
    list.backends = backends;
    list.backend_count = count;
    desc.discovery = plb_static(&list);
    desc.strategy = strategy;
    if (h != NULL) {
        desc.allocator.alloc = heap_alloc;
        desc.allocator.dealloc = heap_dealloc;
        desc.allocator.user = h;
    }
    return plb_create(&desc, lb);
}

static plb_balancer *balancer(plb_strategy strategy, const plb_backend *backends, size_t count)
{
    plb_balancer *lb;
    if (create(strategy, backends, count, NULL, &lb) != PLB_OK) {
        fprintf(stderr, "test_load: no balancer\n");
        abort();
    }
    return lb;
}

/* Number i of many, in set order. */
static plb_backend nth_backend(uint32_t i, uint32_t weight)
{
    plb_backend b;
    memset(&b, 0, sizeof b);
    b.addr.family = PLB_FAMILY_IPV4;
    b.addr.port = 80;
    b.addr.u.v4[0] = 10;
    b.addr.u.v4[2] = (uint8_t)(i / 256);
    b.addr.u.v4[3] = (uint8_t)(i % 256);
    b.weight = weight;
    return b;
}

/* The number that nth_backend made this address from. */
static uint32_t index_of(const plb_addr *addr)
{
    return addr->u.v4[2] * 256u + addr->u.v4[3];
}

/* One of each weight; up NULL: all are. */
static plb_balancer *balancer_of(plb_strategy strategy, const uint32_t *weights, const bool *up, uint32_t count)
{
    static plb_backend backends[BACKENDS_MAX];
    uint32_t i;
    for (i = 0; i < count; i++) {
        backends[i] = nth_backend(i, weights[i]);
        backends[i].enablement = up == NULL || up[i] ? PLB_ENABLEMENT_ON : PLB_ENABLEMENT_OFF;
    }
    return balancer(strategy, backends, count);
}

static void set_enabled(plb_balancer *lb, uint32_t i, bool enabled)
{
    plb_backend b = nth_backend(i, 1);
    if (plb_set_enabled(lb, &b.addr, 0, enabled) != PLB_OK)
        abort();
}

static uint32_t pick(plb_balancer *lb)
{
    plb_addr addr;
    return plb_select(lb, NULL, 0, 0, &addr) == PLB_OK ? index_of(&addr) : PLB_NONE;
}

static bool accept_ready(void *user, const plb_backend_info *info)
{
    (void)user;
    return info->ready;
}

/* The same through the general walk. */
static uint32_t pick_by_walk(plb_balancer *lb)
{
    plb_request request;
    plb_addr addr;
    memset(&request, 0, sizeof request);
    request.accept = accept_ready;
    return plb_select_with(lb, &request, &addr) == PLB_OK ? index_of(&addr) : PLB_NONE;
}

/* The raw sequence. */
static void raw_sequence(plb_balancer *lb, uint32_t *out, uint32_t count)
{
    plb_walk walk;
    plb_backend_info info;
    uint32_t i;
    if (plb_walk_begin(&walk, lb, NULL, 0) != PLB_OK)
        abort();
    for (i = 0; i < count; i++) {
        plb_walk_next(&walk, &info);
        out[i] = index_of(&info.backend.addr);
    }
    plb_walk_end(&walk);
}

static uint32_t common_divisor(uint32_t a, uint32_t b)
{
    while (b != 0) {
        uint32_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* Picks until each of those that are up has had its weight, or a whole fraction of it. */
static uint32_t cycle_of(const uint32_t *weights, const bool *up, uint32_t count)
{
    uint32_t sum = 0, divisor = 0, i;
    for (i = 0; i < count; i++) {
        if (up != NULL && !up[i])
            continue;
        sum += weights[i];
        divisor = common_divisor(weights[i], divisor);
    }
    return divisor > 0 ? sum / divisor : 0;
}

/* ==== EVERY STRATEGY ============================================================================================== */

TEST nothing_to_pick_says_so(void)
{
    static const uint32_t zeros[3] = {0, 0, 0}, ones[3] = {1, 1, 1};
    static const bool down[3] = {false, false, false};
    size_t s;
    for (s = 0; s < COUNT(strategies); s++) {
        int kind;
        for (kind = 0; kind < 3; kind++) {
            plb_balancer *lb =
                balancer_of(strategies[s](), kind == 1 ? zeros : ones, kind == 2 ? down : NULL, kind == 0 ? 0 : 3);
            plb_status expected = kind == 0 ? PLB_ERR_EMPTY : PLB_ERR_NOT_READY;
            plb_addr addr;
            plb_pick held;
            uint32_t raw[6], i;
            ASSERT_EQ(expected, plb_select(lb, NULL, 0, 0, &addr));
            ASSERT_EQ(expected, plb_select(lb, NULL, 0, 9, &addr));
            ASSERT_EQ(expected, plb_begin(lb, NULL, &held));
            if (kind > 0) { /* the walk goes through the set in order */
                raw_sequence(lb, raw, 6);
                for (i = 1; i < 6; i++)
                    ASSERT_EQ_FMT((raw[i - 1] + 1) % 3, raw[i], "%u");
            }
            plb_destroy(lb);
        }
    }
    PASS();
}

TEST the_one_ready_backend_is_found_with_any_limit(void)
{
    static const uint32_t sizes[] = {1, 2, 63, 64, 65, 128, 129, 1000};
    size_t s, n;
    for (s = 0; s < COUNT(strategies); s++) {
        for (n = 0; n < COUNT(sizes); n++) {
            static uint32_t weights[1000];
            plb_balancer *lb;
            uint32_t i, round;
            for (i = 0; i < sizes[n]; i++)
                weights[i] = n % 2 == 0 ? 1 : 1 + i % 5;
            lb = balancer_of(strategies[s](), weights, NULL, sizes[n]);
            for (i = 0; i < sizes[n]; i++)
                set_enabled(lb, i, false);
            for (round = 0; round < 20; round++) {
                uint32_t only = round == 0 ? 0 : round == 1 ? sizes[n] - 1 : random_below(sizes[n]);
                plb_addr addr;
                set_enabled(lb, only, true);
                ASSERT_EQ_FMT(only, pick(lb), "%u");
                ASSERT_EQ_FMT(only, pick_by_walk(lb), "%u");
                ASSERT_EQ(PLB_OK, plb_select(lb, NULL, 0, 1, &addr));
                ASSERT_EQ_FMT(only, index_of(&addr), "%u");
                set_enabled(lb, only, false);
            }
            plb_destroy(lb);
        }
    }
    PASS();
}

/* Two balancers side by side: one takes the fast path, with and without a limit, the other walks. */
TEST the_fast_path_and_the_walk_give_the_same_answers(void)
{
    enum { N = 12, STEPS = 3000 };
    static const uint32_t weights[N] = {5, 1, 1, 3, 3, 0, 7, 1, 2, 2, 9, 4};
    size_t s;
    for (s = 0; s < COUNT(strategies); s++) {
        plb_balancer *fast = balancer_of(strategies[s](), weights, NULL, N);
        plb_balancer *slow = balancer_of(strategies[s](), weights, NULL, N);
        int step;
        for (step = 0; step < STEPS; step++) {
            plb_addr addr;
            bool found = plb_select(fast, NULL, 0, random_below(4), &addr) == PLB_OK;
            ASSERT_EQ_FMT(found ? index_of(&addr) : PLB_NONE, pick_by_walk(slow), "%u");
            if (step % 10 == 0) {
                uint32_t i = random_below(N);
                bool up = random_below(3) > 0;
                set_enabled(fast, i, up);
                set_enabled(slow, i, up);
            }
        }
        plb_destroy(fast);
        plb_destroy(slow);
    }
    PASS();
}

/* A retry that excludes what it has had gets another one each time, until there is none. */
TEST retries_reach_every_ready_backend(void)
{
    enum { N = 20 };
    size_t s;
    for (s = 0; s < COUNT(strategies); s++) {
        uint32_t weights[N], excluded[N], ready = 0, tried = 0, i;
        plb_balancer *lb;
        plb_request request;
        for (i = 0; i < N; i++)
            weights[i] = i == 3 ? 60000 : i % 4;
        lb = balancer_of(strategies[s](), weights, NULL, N);
        for (i = 0; i < N; i++)
            ready += weights[i] > 0;
        memset(&request, 0, sizeof request);
        request.exclude = excluded;
        request.max_iterations = 256;
        for (;;) {
            plb_pick held;
            request.exclude_count = tried;
            if (plb_begin(lb, &request, &held) != PLB_OK)
                break;
            ASSERT(tried < N);
            for (i = 0; i < tried; i++)
                ASSERT(excluded[i] != held.slot);
            excluded[tried++] = held.slot;
            plb_end(&held, PLB_OUTCOME_CONNECT_ERROR, 0);
        }
        ASSERT_EQ_FMT(ready, tried, "%u");
        plb_destroy(lb);
    }
    PASS();
}

TEST each_allocation_may_fail(void)
{
    size_t s;
    for (s = 0; s < COUNT(strategies); s++) {
        plb_backend backends[5];
        size_t fails_from;
        bool served = false;
        uint32_t i;
        for (i = 0; i < 5; i++)
            backends[i] = nth_backend(i, 1 + i % 2);
        for (fails_from = 1; !served; fails_from++) {
            heap h = {0, 0, 0, 0};
            plb_balancer *lb;
            h.fails_from = fails_from;
            if (create(strategies[s](), backends, 5, &h, &lb) == PLB_OK) {
                served = pick(lb) != PLB_NONE;
                plb_destroy(lb);
            }
            ASSERT_EQ_FMT((size_t)0, h.blocks, "%zu");
            ASSERT_EQ_FMT((size_t)0, h.bytes, "%zu");
            ASSERT(fails_from < 100);
        }
    }
    PASS();
}

/* ==== SMOOTH ROUND ROBIN ========================================================================================== */

/* nginx's own algorithm, backend by backend. */
typedef struct nginx {
    int64_t current[MODEL_MAX];
} nginx;

static uint32_t nginx_pick(nginx *n, const uint32_t *weights, const bool *up, uint32_t count)
{
    uint32_t best = PLB_NONE, i;
    int64_t sum = 0;
    for (i = 0; i < count; i++) {
        if (weights[i] == 0 || (up != NULL && !up[i]))
            continue;
        n->current[i] += weights[i];
        sum += weights[i];
        if (best == PLB_NONE || n->current[i] > n->current[best])
            best = i;
    }
    if (best != PLB_NONE)
        n->current[best] -= sum;
    return best;
}

TEST smooth_picks_are_those_that_nginx_made(void)
{
    FILE *file = fopen("tests/vectors/nginx-smooth-wrr.txt", "r");
    char line[1024];
    int lines = 0;
    ASSERT(file != NULL);
    while (fgets(line, sizeof line, file) != NULL) {
        uint32_t weights[MODEL_MAX], count = 0, picks = 0;
        plb_balancer *lb;
        char *at = line, *end;
        while (*at != ';') {
            weights[count++] = (uint32_t)strtoul(at, &end, 10);
            at = end;
        }
        lb = balancer_of(plb_smooth_round_robin(), weights, NULL, count);
        for (at++;; at = end, picks++) {
            uint32_t server = (uint32_t)strtoul(at, &end, 10);
            if (end == at)
                break;
            ASSERT_EQ_FMT(server - 1, pick(lb), "%u");
        }
        ASSERT_EQ_FMT(60u, picks, "%u");
        plb_destroy(lb);
        lines++;
    }
    fclose(file);
    ASSERT_EQ_FMT(5, lines, "%d");
    PASS();
}

/* Random weights, few or many of them distinct, some backends down from the start: two full cycles. */
TEST smooth_picks_are_nginxs_for_any_weights(void)
{
    static const uint32_t ranges[] = {1, 2, 3, 10, 100, 65536};
    int round;
    for (round = 0; round < 300; round++) {
        uint32_t weights[MODEL_MAX], count = 1 + random_below(round % 10 == 0 ? MODEL_MAX : 20), i, cycle;
        uint32_t range = ranges[random_below(COUNT(ranges))], down = random_below(3);
        bool up[MODEL_MAX];
        nginx model;
        plb_balancer *lb;
        for (i = 0; i < count; i++) {
            weights[i] = range == 1 ? 1 : random_below(range);
            up[i] = random_below(4) >= down;
        }
        lb = balancer_of(plb_smooth_round_robin(), weights, up, count);
        memset(&model, 0, sizeof model);
        cycle = cycle_of(weights, up, count);
        for (i = 0; i < 2 * cycle && i < 5000; i++)
            ASSERT_EQ_FMT(nginx_pick(&model, weights, up, count), pick(lb), "%u");
        plb_destroy(lb);
    }
    PASS();
}

/* Counters are 32 bits wide, and go on past the end. */
TEST smooth_picks_go_on_when_the_counters_wrap(void)
{
    enum { N = 6 };
    static const uint32_t weights[N] = {7, 7, 3, 2, 2, 1};
    plb_balancer *lb = balancer_of(plb_smooth_round_robin(), weights, NULL, N);
    plb__smooth_table *table = (plb__smooth_table *)((plb__set *)lb->current)->tiers[0].table;
    nginx model;
    uint32_t i;
    memset(&model, 0, sizeof model);
    table->sums->picks = UINT32_MAX - 100;
    for (i = 0; i < table->group_count; i++)
        table->groups[i].debt = table->sums->picks * table->groups[i].weight;
    for (i = 0; i < 500; i++)
        ASSERT_EQ_FMT(nginx_pick(&model, weights, NULL, N), pick(lb), "%u");
    plb_destroy(lb);
    PASS();
}

/* How far the counts of the next cycle are from the weights, in picks of one backend. */
static uint32_t worst_share(plb_balancer *lb, const uint32_t *weights, const bool *up, uint32_t count)
{
    static int64_t picked[MODEL_MAX];
    uint32_t sum = 0, worst = 0, i;
    memset(picked, 0, sizeof picked);
    for (i = 0; i < count; i++)
        sum += up == NULL || up[i] ? weights[i] : 0;
    for (i = 0; i < sum; i++) {
        uint32_t index = pick(lb);
        if (index == PLB_NONE || (up != NULL && !up[index]))
            return UINT32_MAX;
        picked[index]++;
    }
    for (i = 0; i < count; i++) {
        int64_t off = picked[i] - (up == NULL || up[i] ? weights[i] : 0);
        if (off < 0)
            off = -off;
        worst = off > worst ? (uint32_t)off : worst;
    }
    return worst;
}

TEST smooth_shares_are_right_within_a_cycle_after_flips(void)
{
    int round, flip;
    for (round = 0; round < 60; round++) {
        uint32_t weights[MODEL_MAX], count = 2 + random_below(30), range = round % 3 == 0 ? 4 : 100, i;
        bool up[MODEL_MAX];
        plb_balancer *lb;
        for (i = 0; i < count; i++) {
            weights[i] = round % 5 == 0 && i == 0 ? 5000 : 1 + random_below(range);
            if (round % 7 == 0) /* such as differ in one byte only */
                weights[i] = 1 + 255 * random_below(2) + random_below(2);
            up[i] = true;
        }
        lb = balancer_of(plb_smooth_round_robin(), weights, NULL, count);
        for (flip = 0; flip < 20; flip++) {
            uint32_t flips = 1 + random_below(count), j;
            for (j = random_below(1000); j > 0; j--)
                pick(lb);
            for (j = 0; j < flips; j++) {
                i = random_below(count);
                up[i] = !up[i];
                set_enabled(lb, i, up[i]);
            }
            ASSERT(worst_share(lb, weights, up, count) <= 2);
        }
        plb_destroy(lb);
    }
    PASS();
}

/* However long it was away. */
TEST smooth_lets_nobody_catch_up(void)
{
    static const uint32_t weights[] = {4, 3, 2, 2};
    static const uint32_t away[] = {1, 10, 1000, 100000};
    size_t a;
    for (a = 0; a < COUNT(away); a++) {
        plb_balancer *lb = balancer_of(plb_smooth_round_robin(), weights, NULL, 4);
        uint32_t back = 0, i;
        set_enabled(lb, 0, false);
        for (i = 0; i < away[a]; i++)
            ASSERT(pick(lb) != 0);
        set_enabled(lb, 0, true);
        for (i = 0; i < 11; i++)
            back += pick(lb) == 0;
        ASSERT(back >= 3 && back <= 5);
        plb_destroy(lb);
    }
    PASS();
}

/* One goes and comes all the time: the others share what it leaves, by weight, and it has some of its own. */
TEST smooth_shares_survive_a_backend_that_flaps(void)
{
    enum { N = 6, PICKS = 60000 };
    static const uint32_t weights[N] = {10, 5, 5, 3, 2, 1};
    uint32_t flapping;
    for (flapping = 0; flapping < N; flapping++) {
        plb_balancer *lb = balancer_of(plb_smooth_round_robin(), weights, NULL, N);
        uint64_t picked[N] = {0}, i;
        bool up = true;
        for (i = 0; i < PICKS; i++) {
            if (random_below(15) == 0) {
                up = !up;
                set_enabled(lb, flapping, up);
            }
            picked[pick(lb)]++;
        }
        ASSERT(picked[flapping] * 26 * 2 > PICKS * weights[flapping] * 3 / 4);
        for (i = 0; i < N; i++) {
            uint64_t fair = (PICKS - picked[flapping]) * weights[i] / (26 - weights[flapping]);
            if (i != flapping)
                ASSERT(picked[i] + fair / 40 >= fair && picked[i] <= fair + fair / 40);
        }
        plb_destroy(lb);
    }
    PASS();
}

/* Weights count anew in a new set, and one that is still read goes on as it was. */
TEST smooth_starts_anew_with_a_new_set(void)
{
    static const uint32_t before[3] = {5, 1, 1}, after[3] = {1, 2, 4};
    plb_balancer *lb = balancer_of(plb_smooth_round_robin(), before, NULL, 3);
    plb_backend backends[3];
    plb_walk walk;
    plb_backend_info info;
    nginx old_model, new_model;
    uint32_t i;
    memset(&old_model, 0, sizeof old_model);
    memset(&new_model, 0, sizeof new_model);
    for (i = 0; i < 10; i++)
        ASSERT_EQ_FMT(nginx_pick(&old_model, before, NULL, 3), pick(lb), "%u");
    ASSERT_EQ(PLB_OK, plb_walk_begin(&walk, lb, NULL, 0)); /* holds the old set */
    for (i = 0; i < 3; i++)
        backends[i] = nth_backend(i, after[i]);
    ASSERT_EQ(PLB_OK, plb_replace(lb, backends, 3));
    plb_poll(lb);
    for (i = 0; i < 10; i++)
        ASSERT_EQ_FMT(nginx_pick(&new_model, after, NULL, 3), pick(lb), "%u");
    plb_walk_next(&walk, &info);
    ASSERT_EQ_FMT(nginx_pick(&old_model, before, NULL, 3), index_of(&info.backend.addr), "%u");
    plb_walk_end(&walk);
    for (i = 0; i < 10; i++)
        ASSERT_EQ_FMT(nginx_pick(&new_model, after, NULL, 3), pick(lb), "%u");
    plb_destroy(lb);
    PASS();
}

/* The walk: choices by weight, each another one, then the set in order. The first is the pick it stands for. */
TEST smooth_walks_show_other_choices_first(void)
{
    enum { N = 10, RAW = 40 };
    static const uint32_t weights[N] = {50, 1, 1, 40, 1, 30, 1, 1, 1, 1};
    plb_balancer *lb = balancer_of(plb_smooth_round_robin(), weights, NULL, N);
    uint32_t raw[RAW], seen[N] = {0}, i, j;
    raw_sequence(lb, raw, RAW);
    ASSERT_EQ_FMT(0u, raw[0], "%u");
    ASSERT_EQ_FMT(3u, raw[1], "%u");
    ASSERT_EQ_FMT(5u, raw[2], "%u");
    for (i = 0; i < 6; i++)
        for (j = 0; j < i; j++)
            ASSERT(raw[i] != raw[j]);
    for (i = 6; i < RAW; i++)
        ASSERT_EQ_FMT((raw[i - 1] + 1) % N, raw[i], "%u");
    for (i = 0; i < RAW; i++)
        seen[raw[i]]++;
    for (i = 0; i < N; i++)
        ASSERT(seen[i] > 0);
    plb_destroy(lb);
    PASS();
}

/* Weights that add up to more than 2^26 are halved together: to share them as before, but for the rounding. */
TEST smooth_weights_may_be_as_large_as_any(void)
{
    enum { N = 2000, ROUNDS = 40 };
    static uint32_t weights[N], picked[N];
    plb_balancer *lb;
    uint32_t i;
    memset(picked, 0, sizeof picked);
    for (i = 0; i < N; i++)
        weights[i] = i % 100 == 0 ? 65535 / 4 : i == 1 ? 1 : 65535;
    lb = balancer_of(plb_smooth_round_robin(), weights, NULL, N);
    for (i = 0; i < N * ROUNDS; i++)
        picked[pick(lb)]++;
    for (i = 0; i < N; i++) {
        uint32_t fair = (uint32_t)((uint64_t)weights[i] * ROUNDS * 1000 / 993 / 65535);
        ASSERT(picked[i] <= fair + 2 && picked[i] + 2 >= fair);
    }
    plb_destroy(lb);
    PASS();
}

/* None is halved away: 33 to 96, six times halved, are 1 like each other. */
TEST smooth_halves_no_weight_to_nothing(void)
{
    enum { N = 65535, FROM = 32, TO = 96 };
    uint32_t *weights = (uint32_t *)malloc(N * sizeof *weights), seen[TO] = {0}, i;
    bool *up = (bool *)malloc(N * sizeof *up);
    plb_balancer *lb;
    ASSERT(weights != NULL && up != NULL);
    for (i = 0; i < N; i++) {
        weights[i] = i + 1;
        up[i] = i >= FROM && i < TO;
    }
    lb = balancer_of(plb_smooth_round_robin(), weights, up, N);
    for (i = FROM; i < TO; i++)
        seen[pick(lb)]++;
    for (i = FROM; i < TO; i++)
        ASSERT_EQ_FMT(1u, seen[i], "%u");
    plb_destroy(lb);
    free(weights);
    free(up);
    PASS();
}

TEST smooth_weights_may_all_differ(void)
{
    enum { N = 65535 };
    plb_backend *backends = (plb_backend *)malloc(N * sizeof *backends);
    heap smooth_heap = {0, 0, 0, 0}, random_heap = {0, 0, 0, 0};
    plb_balancer *smooth, *plain;
    uint32_t i;
    ASSERT(backends != NULL);
    for (i = 0; i < N; i++)
        backends[i] = nth_backend(i, i + 1);
    ASSERT_EQ(PLB_OK, create(plb_smooth_round_robin(), backends, N, &smooth_heap, &smooth));
    ASSERT_EQ(PLB_OK, create(plb_random_choice(), backends, N, &random_heap, &plain));
    for (i = 0; i < 64; i++) /* by the rule for large sums they are halved six times, and the heaviest 64 are equal */
        ASSERT_EQ_FMT(N - 64 + i, pick(smooth), "%u");
    ASSERT(smooth_heap.bytes < random_heap.bytes + N * (size_t)24);
    plb_destroy(smooth);
    plb_destroy(plain);
    free(backends);
    PASS();
}

/* Two flips in a row may be told in either order: what counts is how the view is. */
TEST smooth_believes_the_view_not_the_telling(void)
{
    static const uint32_t weights[3] = {5, 1, 1};
    plb_balancer *lb = balancer_of(plb_smooth_round_robin(), weights, NULL, 3);
    plb__set *set = (plb__set *)lb->current;
    uint32_t i, picked = 0;
    set_enabled(lb, 0, false);
    lb->strategy->flipped(lb->strategy_state, set->tiers[0].table, &set->tiers[0].view, 0, true);
    for (i = 0; i < 20; i++)
        ASSERT(pick(lb) != 0);
    set_enabled(lb, 0, true);
    lb->strategy->flipped(lb->strategy_state, set->tiers[0].table, &set->tiers[0].view, 0, false);
    for (i = 0; i < 70; i++)
        picked += pick(lb) == 0;
    ASSERT(picked >= 48 && picked <= 52);
    plb_destroy(lb);
    PASS();
}

typedef struct crowd {
    plb_balancer *lb;
    uint32_t picks, flips_below; /* the backends that flip */
    uint32_t seed;
    uint32_t picked[8];
} crowd;

static void *crowd_pick(void *user)
{
    crowd *c = (crowd *)user;
    uint32_t i, random = c->seed;
    for (i = 0; i < c->picks; i++) {
        uint32_t index = pick(c->lb);
        if (index != PLB_NONE)
            c->picked[index]++;
        random = random * 1664525u + 1013904223u;
        if (c->flips_below > 0 && i % 4 == 0)
            set_enabled(c->lb, (random >> 8) % c->flips_below, (random >> 24 & 1) != 0);
    }
    return NULL;
}

static bool crowd_run(crowd *crowds, plb_balancer *lb, uint32_t picks, uint32_t flips_below)
{
    pthread_t threads[THREADS];
    uint32_t i;
    memset(crowds, 0, THREADS * sizeof *crowds);
    for (i = 0; i < THREADS; i++) {
        crowds[i].lb = lb;
        crowds[i].picks = picks;
        crowds[i].flips_below = flips_below;
        crowds[i].seed = i + 1;
        if (pthread_create(&threads[i], NULL, crowd_pick, &crowds[i]) != 0)
            return false;
    }
    for (i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    return true;
}

TEST smooth_shares_are_exact_among_threads(void)
{
    enum { N = 8, SUM = 30, ROUNDS = 400 };
    static const uint32_t weights[N] = {9, 5, 5, 5, 2, 2, 1, 1};
    plb_balancer *lb = balancer_of(plb_smooth_round_robin(), weights, NULL, N);
    crowd crowds[THREADS];
    uint32_t i, t;
    ASSERT(crowd_run(crowds, lb, SUM * ROUNDS, 0));
    for (i = 0; i < N; i++) {
        uint32_t picked = 0, fair = weights[i] * ROUNDS * THREADS;
        for (t = 0; t < THREADS; t++)
            picked += crowds[t].picked[i];
        ASSERT(picked + THREADS + 2 >= fair && picked <= fair + THREADS + 2);
    }
    plb_destroy(lb);
    PASS();
}

/* Several threads flip the same backends while all pick. Nothing of it stays: the counts are those of the view. */
TEST smooth_counts_are_right_after_flips_by_threads(void)
{
    enum { N = 8 };
    static const uint32_t weights[N] = {9, 5, 5, 5, 2, 2, 1, 1};
    plb_balancer *lb = balancer_of(plb_smooth_round_robin(), weights, NULL, N);
    const plb__set *set = (const plb__set *)lb->current;
    const plb__smooth_table *table = (const plb__smooth_table *)set->tiers[0].table;
    crowd crowds[THREADS];
    uint32_t i, ready = 0;
    ASSERT(crowd_run(crowds, lb, 10000, N));
    ASSERT_EQ_FMT(plb_view_ready_weight(&set->tiers[0].view), table->sums->weight, "%u");
    for (i = 0; i < table->group_count; i++)
        ready += table->groups[i].ready;
    ASSERT_EQ_FMT(plb_view_ready_count(&set->tiers[0].view), ready, "%u");
    for (i = 0; i < N; i++)
        set_enabled(lb, i, true);
    ASSERT(worst_share(lb, weights, NULL, N) <= 2);
    plb_destroy(lb);
    PASS();
}

/* ==== LEAST CONNECTIONS =========================================================================================== */

enum { SAMPLE = 64 };

/* What the manual says, spelled out. */
typedef struct least {
    uint32_t count, turn;
    uint32_t weights[MODEL_MAX], in_flight[MODEL_MAX], max_conns[MODEL_MAX];
    bool up[MODEL_MAX];
} least;

static bool least_ready(const least *m, uint32_t i)
{
    return m->up[i] && m->weights[i] > 0 && (m->max_conns[i] == 0 || m->in_flight[i] < m->max_conns[i]);
}

/* Where the next search starts: in a list in which each backend stands `weight` times. */
static uint32_t least_start(least *m)
{
    uint32_t sum = 0, place, i;
    for (i = 0; i < m->count; i++)
        sum += m->weights[i];
    place = sum > 0 ? m->turn++ % sum : 0;
    for (i = 0; i < m->count && place >= m->weights[i]; i++)
        place -= m->weights[i];
    return i;
}

/* The sample, from the least loaded to the most, equals from the start on; then all that is not in it. */
static void least_sequence(least *m, uint32_t *out, uint32_t *sampled)
{
    uint32_t start = least_start(m), found = 0, d, i;
    for (d = 0; d < m->count && found < SAMPLE; d++) {
        uint32_t index = (start + d) % m->count;
        if (!least_ready(m, index))
            continue;
        for (i = found++; i > 0 && (uint64_t)m->in_flight[index] * m->weights[out[i - 1]] <
                                       (uint64_t)m->in_flight[out[i - 1]] * m->weights[index];
             i--)
            out[i] = out[i - 1];
        out[i] = index;
    }
    *sampled = found;
    for (d = 0; d < m->count; d++) {
        uint32_t index = (start + d) % m->count;
        for (i = 0; i < *sampled && out[i] != index;)
            i++;
        if (i == *sampled)
            out[found++] = index;
    }
}

static uint32_t least_pick(least *m)
{
    uint32_t sequence[MODEL_MAX], sampled;
    least_sequence(m, sequence, &sampled);
    return sampled > 0 ? sequence[0] : PLB_NONE;
}

static least random_least(uint32_t count, uint32_t range)
{
    bool sound = random_below(2) == 0; /* all up and none limited: no gap in the readiness */
    least m;
    uint32_t i;
    memset(&m, 0, sizeof m);
    m.count = count;
    for (i = 0; i < count; i++) {
        m.weights[i] = range == 1 ? 1 : random_below(range - sound) + sound;
        m.up[i] = sound || random_below(5) > 0;
        m.max_conns[i] = !sound && random_below(3) == 0 ? 1 + random_below(6) : 0;
    }
    m.weights[0] += m.weights[0] == 0; /* or there may be none */
    return m;
}

static plb_balancer *least_balancer(const least *m)
{
    plb_backend backends[MODEL_MAX];
    uint32_t i;
    for (i = 0; i < m->count; i++) {
        backends[i] = nth_backend(i, m->weights[i]);
        backends[i].max_conns = m->max_conns[i];
        backends[i].enablement = m->up[i] ? PLB_ENABLEMENT_ON : PLB_ENABLEMENT_OFF;
    }
    return balancer(plb_least_connections(), backends, m->count);
}

/* Picks held and let go at random, flips, other limits: each pick is the model's, also where the sample is not the
   whole set. */
static enum greatest_test_res play_least(uint32_t count, uint32_t range, uint32_t steps)
{
    enum { HELD = 600 };
    static plb_pick held[HELD];
    least m = random_least(count, range);
    plb_balancer *lb = least_balancer(&m);
    uint32_t taken = 0, step, i;
    for (step = 0; step < steps; step++) {
        uint32_t expected = least_pick(&m);
        plb_request request;
        memset(&request, 0, sizeof request);
        request.max_iterations = random_below(3);
        request.accept = random_below(2) == 0 ? accept_ready : NULL;
        if (expected == PLB_NONE) {
            ASSERT_EQ(PLB_ERR_NOT_READY, plb_begin(lb, &request, &held[taken]));
        } else {
            ASSERT_EQ(PLB_OK, plb_begin(lb, &request, &held[taken]));
            ASSERT_EQ_FMT(expected, index_of(&held[taken].addr), "%u");
            m.in_flight[expected]++;
            taken++;
        }
        while (taken == HELD || (taken > 0 && random_below(100) < 45)) {
            plb_pick *over = &held[random_below(taken)];
            m.in_flight[index_of(&over->addr)]--;
            plb_end(over, PLB_OUTCOME_SUCCESS, 0);
            *over = held[--taken];
        }
        if (step >= steps / 2 && step % 16 == 0) {
            i = random_below(count);
            m.up[i] = !m.up[i] || random_below(4) > 0;
            set_enabled(lb, i, m.up[i]);
        }
    }
    for (i = 0; i < taken; i++)
        plb_end(&held[i], PLB_OUTCOME_SUCCESS, 0);
    plb_destroy(lb);
    PASS();
}

TEST least_loaded_is_picked(void)
{
    static const uint32_t ranges[] = {1, 3, 10, 65536};
    int round;
    for (round = 0; round < 80; round++)
        CHECK_CALL(play_least(1 + random_below(SAMPLE), ranges[random_below(COUNT(ranges))], 300));
    PASS();
}

TEST least_loaded_of_a_sample_is_picked_in_a_large_set(void)
{
    int round;
    for (round = 0; round < 40; round++)
        CHECK_CALL(play_least(SAMPLE + 1 + random_below(MODEL_MAX - SAMPLE), round % 2 == 0 ? 1 : 10, 300));
    PASS();
}

/* While nothing is in flight it is round robin, by weight. */
TEST least_connections_ties_go_round_by_weight(void)
{
    static const uint32_t weights[] = {5, 1, 0, 2, 2, 7};
    plb_balancer *lb = balancer_of(plb_least_connections(), weights, NULL, COUNT(weights));
    plb_balancer *reference = balancer_of(plb_round_robin(), weights, NULL, COUNT(weights));
    int i;
    for (i = 0; i < 100; i++)
        ASSERT_EQ_FMT(pick(reference), pick(lb), "%u");
    plb_destroy(lb);
    plb_destroy(reference);
    PASS();
}

/* Loads and weights as large as they can be: their products do not fit into 32 bits. */
TEST large_loads_are_compared_exactly(void)
{
    static const uint32_t weights[3] = {65535, 65534, 65535};
    plb_balancer *lb = balancer_of(plb_least_connections(), weights, NULL, 3);
    const plb__set *set = (const plb__set *)lb->current;
    uint32_t i;
    set->tiers[0].view.slots[0]->in_flight = 65538;
    set->tiers[0].view.slots[1]->in_flight = 65536;
    set->tiers[0].view.slots[2]->in_flight = 500000000;
    for (i = 0; i < 10; i++)
        ASSERT_EQ_FMT(1u, pick(lb), "%u");
    for (i = 0; i < 3; i++)
        set->tiers[0].view.slots[i]->in_flight = 0;
    plb_destroy(lb);
    PASS();
}

TEST requests_in_flight_spread_by_weight(void)
{
    enum { N = 4, HELD = 160 };
    static const uint32_t weights[N] = {8, 4, 3, 1};
    plb_balancer *lb = balancer_of(plb_least_connections(), weights, NULL, N);
    plb_pick held[HELD];
    uint32_t counts[N] = {0}, i;
    for (i = 0; i < HELD; i++) {
        ASSERT_EQ(PLB_OK, plb_begin(lb, NULL, &held[i]));
        counts[index_of(&held[i].addr)]++;
    }
    for (i = 0; i < N; i++)
        ASSERT_EQ_FMT(weights[i] * HELD / 16, counts[i], "%u");
    for (i = 0; i < HELD; i++)
        plb_end(&held[i], PLB_OUTCOME_SUCCESS, 0);
    plb_destroy(lb);
    PASS();
}

/* The walk: the sample by load, then whoever is not in it, nobody twice; then the set in order, again and again. */
TEST least_walks_go_by_load(void)
{
    int round;
    for (round = 0; round < 60; round++) {
        uint32_t count = round % 2 == 0 ? 1 + random_below(SAMPLE) : 1 + random_below(MODEL_MAX), sampled, i;
        static plb_pick held[3 * MODEL_MAX];
        uint32_t raw[3 * MODEL_MAX], expected[MODEL_MAX], taken = 0;
        least m = random_least(count, round % 3 == 0 ? 1 : 5);
        plb_balancer *lb = least_balancer(&m);
        for (i = random_below(3 * count); i > 0; i--) {
            uint32_t index = least_pick(&m);
            if (plb_begin(lb, NULL, &held[taken]) == PLB_OK) {
                m.in_flight[index]++;
                taken++;
            }
        }
        for (i = 0; i < taken / 2; i++) { /* make it uneven */
            m.in_flight[index_of(&held[i].addr)]--;
            plb_end(&held[i], PLB_OUTCOME_SUCCESS, 0);
        }
        least_sequence(&m, expected, &sampled);
        raw_sequence(lb, raw, 3 * count);
        for (i = 0; i < count; i++)
            ASSERT_EQ_FMT(expected[i], raw[i], "%u");
        for (i = count + 1; i < 3 * count; i++)
            ASSERT_EQ_FMT((raw[i - 1] + 1) % count, raw[i], "%u");
        for (i = taken / 2; i < taken; i++)
            plb_end(&held[i], PLB_OUTCOME_SUCCESS, 0);
        plb_destroy(lb);
    }
    PASS();
}

TEST a_retry_gets_the_next_best(void)
{
    enum { N = 5 };
    static const uint32_t weights[N] = {1, 1, 1, 1, 1};
    plb_balancer *lb = balancer_of(plb_least_connections(), weights, NULL, N);
    plb_pick held[6], retry;
    uint32_t slots[N], loads[N], i;
    plb_request request;
    for (i = 0; i < N; i++)
        ASSERT_EQ(PLB_OK, plb_begin(lb, NULL, &held[i])); /* one each */
    plb_end(&held[2], PLB_OUTCOME_SUCCESS, 0);
    memset(&request, 0, sizeof request);
    request.exclude = slots;
    for (i = 0; i < N; i++) {
        plb_backend_info info;
        ASSERT_EQ(PLB_OK, plb_begin(lb, &request, &retry));
        ASSERT_EQ(PLB_OK, plb_find(lb, &retry.addr, 0, &info));
        loads[i] = info.in_flight - 1;
        slots[i] = retry.slot;
        plb_end(&retry, PLB_OUTCOME_CONNECT_ERROR, 0);
        request.exclude_count++;
        ASSERT_EQ_FMT(i == 0 ? 0u : 1u, loads[i], "%u");
    }
    ASSERT_EQ_FMT(held[2].slot, slots[0], "%u");
    ASSERT_EQ(PLB_ERR_NOT_READY, plb_begin(lb, &request, &retry));
    for (i = 0; i < N; i++)
        plb_end(&held[i], PLB_OUTCOME_SUCCESS, 0);
    plb_destroy(lb);
    PASS();
}

static void *crowd_hold(void *user)
{
    enum { HELD = 16 };
    crowd *c = (crowd *)user;
    plb_pick held[HELD];
    uint32_t i;
    memset(held, 0, sizeof held);
    for (i = 0; i < c->picks; i++) {
        plb_pick *slot = &held[i * 7 % HELD];
        plb_end(slot, PLB_OUTCOME_SUCCESS, 0);
        if (plb_begin(c->lb, NULL, slot) == PLB_OK)
            c->picked[index_of(&slot->addr)]++;
    }
    for (i = 0; i < HELD; i++)
        plb_end(&held[i], PLB_OUTCOME_SUCCESS, 0);
    return NULL;
}

TEST least_connections_counts_come_back_among_threads(void)
{
    enum { N = 8, PICKS = 3000 };
    static const uint32_t weights[N] = {3, 1, 1, 1, 2, 1, 1, 1};
    plb_balancer *lb = balancer_of(plb_least_connections(), weights, NULL, N);
    const plb__set *set = (const plb__set *)lb->current;
    pthread_t threads[THREADS];
    crowd crowds[THREADS];
    uint32_t i, t;
    memset(crowds, 0, sizeof crowds);
    for (t = 0; t < THREADS; t++) {
        crowds[t].lb = lb;
        crowds[t].picks = PICKS;
        ASSERT_EQ(0, pthread_create(&threads[t], NULL, crowd_hold, &crowds[t]));
    }
    for (t = 0; t < THREADS; t++)
        pthread_join(threads[t], NULL);
    for (i = 0; i < N; i++) {
        uint32_t picked = 0, fair = PICKS * THREADS * weights[i] / 11;
        for (t = 0; t < THREADS; t++)
            picked += crowds[t].picked[i];
        ASSERT(picked > fair / 2);
        ASSERT_EQ_FMT(0u, plb_view_in_flight(&set->tiers[0].view, i), "%u");
    }
    plb_destroy(lb);
    PASS();
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_TEST(nothing_to_pick_says_so);
    RUN_TEST(the_one_ready_backend_is_found_with_any_limit);
    RUN_TEST(the_fast_path_and_the_walk_give_the_same_answers);
    RUN_TEST(retries_reach_every_ready_backend);
    RUN_TEST(each_allocation_may_fail);
    RUN_TEST(smooth_picks_are_those_that_nginx_made);
    RUN_TEST(smooth_picks_are_nginxs_for_any_weights);
    RUN_TEST(smooth_picks_go_on_when_the_counters_wrap);
    RUN_TEST(smooth_shares_are_right_within_a_cycle_after_flips);
    RUN_TEST(smooth_lets_nobody_catch_up);
    RUN_TEST(smooth_shares_survive_a_backend_that_flaps);
    RUN_TEST(smooth_starts_anew_with_a_new_set);
    RUN_TEST(smooth_walks_show_other_choices_first);
    RUN_TEST(smooth_weights_may_be_as_large_as_any);
    RUN_TEST(smooth_halves_no_weight_to_nothing);
    RUN_TEST(smooth_weights_may_all_differ);
    RUN_TEST(smooth_believes_the_view_not_the_telling);
    RUN_TEST(smooth_shares_are_exact_among_threads);
    RUN_TEST(smooth_counts_are_right_after_flips_by_threads);
    RUN_TEST(least_loaded_is_picked);
    RUN_TEST(least_loaded_of_a_sample_is_picked_in_a_large_set);
    RUN_TEST(least_connections_ties_go_round_by_weight);
    RUN_TEST(large_loads_are_compared_exactly);
    RUN_TEST(requests_in_flight_spread_by_weight);
    RUN_TEST(least_walks_go_by_load);
    RUN_TEST(a_retry_gets_the_next_best);
    RUN_TEST(least_connections_counts_come_back_among_threads);
    GREATEST_MAIN_END();
}
