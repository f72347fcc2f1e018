/* Picking: which backend a request gets, what it holds, and what a strategy is told. */
#define _POSIX_C_SOURCE 200809L
#define PINGORA_LB_IMPLEMENTATION
#include "../pingora_lb.h"
#include <greatest.h>
#include <pthread.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

enum { BACKENDS_MAX = 1200, ASKED_MAX = 4096 };

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

static plb_strategy ketama(void)
{
    return plb_ketama(NULL);
}

static plb_strategy bounded_loads(void)
{
    return plb_bounded_loads(NULL);
}

static plb_strategy peak_ewma(void)
{
    return plb_peak_ewma(NULL);
}

static plb_strategy maglev(void)
{
    return plb_maglev(NULL);
}

static const strategy_fn strategies[] = {
    plb_round_robin, plb_random_choice, plb_fnv, ketama,        plb_smooth_round_robin, plb_least_connections,
    plb_two_choices, peak_ewma,         maglev,  bounded_loads, plb_rendezvous,         plb_ip_hash};
static const strategy_fn keyed_strategies[] = {plb_fnv, ketama, maglev, plb_rendezvous};

static plb_balancer *balancer(plb_strategy strategy, const plb_backend *backends, size_t count)
{
    plb_static_desc list;
    plb_balancer_desc desc;
    plb_balancer *lb;
    memset(&list, 0, sizeof list);
    memset(&desc, 0, sizeof desc);
    list.backends = backends;
    list.backend_count = count;
    desc.discovery = plb_static(&list);
    desc.strategy = strategy;
    if (plb_create(&desc, &lb) != PLB_OK) {
        fprintf(stderr, "test_pick: no balancer\n");
        abort();
    }
    return lb;
}

static plb_backend backend(const char *text, uint32_t weight)
{
    plb_backend b;
    if (plb_backend_parse(&b, text, PLB_ZSTRING, NULL) != PLB_OK) {
        fprintf(stderr, "test_pick: '%s' is no address\n", text);
        abort();
    }
    b.weight = weight;
    return b;
}

/* Number i of many, in set order. */
static plb_backend nth_backend(uint32_t i, uint32_t weight)
{
    char text[32];
    snprintf(text, sizeof text, "10.0.%u.%u:80", (unsigned)(i / 256), (unsigned)(i % 256));
    return backend(text, weight);
}

/* `count` backends of one weight; 0: weights 1 to 7 by turns. */
static plb_balancer *balancer_of(plb_strategy strategy, uint32_t count, uint32_t weight)
{
    static plb_backend backends[BACKENDS_MAX];
    uint32_t i;
    for (i = 0; i < count; i++)
        backends[i] = nth_backend(i, weight > 0 ? weight : 1 + i % 7);
    return balancer(strategy, backends, count);
}

static plb_status set_enabled(plb_balancer *lb, uint32_t i, bool enabled)
{
    plb_backend b = nth_backend(i, 1);
    return plb_set_enabled(lb, &b.addr, 0, enabled);
}

static bool ready(plb_balancer *lb, const char *text)
{
    plb_backend b = backend(text, 1);
    return plb_ready(lb, &b.addr, b.id);
}

/* The number that nth_backend made this address from. */
static uint32_t index_of(const plb_addr *addr)
{
    return addr->u.v4[2] * 256u + addr->u.v4[3];
}

static uint32_t select_index(plb_balancer *lb, const char *key, uint32_t max_iterations)
{
    plb_addr addr;
    return plb_select(lb, key, strlen(key), max_iterations, &addr) == PLB_OK ? index_of(&addr) : PLB_NONE;
}

/* The raw sequence of a key. */
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

/* What plb_request.accept was asked; says yes to `wanted` only, ready or not. */
typedef struct asked {
    uint32_t wanted;
    uint32_t count;
    uint32_t index[ASKED_MAX];
    bool ready[ASKED_MAX];
} asked;

static bool ask(void *user, const plb_backend_info *info)
{
    asked *a = (asked *)user;
    uint32_t index = index_of(&info->backend.addr);
    if (a->count < ASKED_MAX) {
        a->index[a->count] = index;
        a->ready[a->count] = info->ready;
    }
    a->count++;
    return index == a->wanted;
}

static bool accept_ready(void *user, const plb_backend_info *info)
{
    (void)user;
    return info->ready;
}

static plb_request request_for(const char *key)
{
    plb_request request;
    memset(&request, 0, sizeof request);
    request.key = key;
    request.key_length = strlen(key);
    return request;
}

static plb_status ask_all(plb_balancer *lb, const char *key, uint32_t max_iterations, asked *a, uint32_t wanted)
{
    plb_request request = request_for(key);
    plb_addr addr;
    memset(a, 0, sizeof *a);
    a->wanted = wanted;
    request.max_iterations = max_iterations;
    request.accept = ask;
    request.accept_user = a;
    return plb_select_with(lb, &request, &addr);
}

/* ==== SELECT ====================================================================================================== */

TEST an_empty_set_says_so(void)
{
    size_t s;
    for (s = 0; s < COUNT(strategies); s++) {
        plb_balancer *lb = balancer(strategies[s](), NULL, 0);
        plb_request request = request_for("k");
        plb_addr addr;
        plb_pick pick;
        plb_walk walk;
        ASSERT_EQ(PLB_ERR_EMPTY, plb_select(lb, "k", 1, 0, &addr));
        ASSERT_EQ(PLB_ERR_EMPTY, plb_select_with(lb, &request, &addr));
        ASSERT_EQ(PLB_ERR_EMPTY, plb_begin(lb, NULL, &pick));
        plb_end(&pick, PLB_OUTCOME_SUCCESS, 0);
        ASSERT_EQ(PLB_ERR_EMPTY, plb_walk_begin(&walk, lb, "k", 1));
        plb_walk_end(&walk);
        plb_destroy(lb);
    }
    PASS();
}

TEST a_set_without_a_ready_backend_says_so(void)
{
    size_t s;
    for (s = 0; s < COUNT(strategies); s++) {
        plb_balancer *lb = balancer_of(strategies[s](), 3, 1);
        plb_addr addr;
        plb_pick pick;
        uint32_t i;
        for (i = 0; i < 3; i++)
            ASSERT_EQ(PLB_OK, set_enabled(lb, i, false));
        ASSERT_EQ(PLB_ERR_NOT_READY, plb_select(lb, "k", 1, 0, &addr));
        ASSERT_EQ(PLB_ERR_NOT_READY, plb_select(lb, "k", 1, 100, &addr));
        ASSERT_EQ(PLB_ERR_NOT_READY, plb_begin(lb, NULL, &pick));
        ASSERT_EQ(PLB_OK, set_enabled(lb, 1, true));
        ASSERT_EQ(1, select_index(lb, "k", 0));
        plb_destroy(lb);
    }
    PASS();
}

TEST a_key_may_be_null(void)
{
    size_t s;
    for (s = 0; s < COUNT(strategies); s++) {
        plb_balancer *lb = balancer_of(strategies[s](), 5, 2);
        plb_request request;
        plb_addr null_key, empty_key;
        plb_walk walk;
        plb_backend_info info;
        memset(&request, 0, sizeof request);
        ASSERT_EQ(PLB_OK, plb_select(lb, NULL, 0, 0, &null_key));
        ASSERT_EQ(PLB_OK, plb_select(lb, "", 0, 0, &empty_key));
        if (strategies[s] == plb_fnv || strategies[s] == ketama)
            ASSERT_EQ(0, plb_addr_compare(&null_key, &empty_key));
        request.accept = accept_ready;
        ASSERT_EQ(PLB_OK, plb_select_with(lb, &request, &null_key));
        ASSERT_EQ(PLB_OK, plb_walk_begin(&walk, lb, NULL, 0));
        plb_walk_next(&walk, &info);
        plb_walk_end(&walk);
        plb_destroy(lb);
    }
    PASS();
}

TEST a_single_backend_gets_everything(void)
{
    static const char *const texts[] = {"10.0.0.0:80", "[::1]:80", "unix:/run/a"};
    size_t s, t;
    int i;
    for (s = 0; s < COUNT(strategies); s++) {
        for (t = 0; t < COUNT(texts); t++) {
            plb_backend b = backend(texts[t], 1 + (uint32_t)t * 1000);
            plb_balancer *lb = balancer(strategies[s](), &b, 1);
            for (i = 0; i < 20; i++) {
                plb_addr addr;
                ASSERT_EQ(PLB_OK, plb_select(lb, &i, sizeof i, (uint32_t)i, &addr));
                ASSERT_EQ(0, plb_addr_compare(&addr, &b.addr));
            }
            plb_destroy(lb);
        }
    }
    PASS();
}

/* Whatever the strategy, the size of the set, the key, and which one it is; with and without the walk. */
TEST without_a_limit_the_one_ready_backend_is_found(void)
{
    static const uint32_t sizes[] = {1, 2, 3, 31, 64, 65, 127, 128, 129, 200, 1000};
    size_t s, n;
    for (s = 0; s < COUNT(strategies); s++) {
        for (n = 0; n < COUNT(sizes); n++) {
            uint32_t i, round, none = UINT32_MAX;
            plb_balancer *lb = balancer_of(strategies[s](), sizes[n], s % 2 == 0 ? 1 : 0);
            for (i = 0; i < sizes[n]; i++)
                ASSERT_EQ(PLB_OK, set_enabled(lb, i, false));
            for (round = 0; round < 12; round++) {
                uint32_t only = round == 0 ? 0 : round == 1 ? sizes[n] - 1 : random_below(sizes[n]);
                char key[16];
                plb_addr addr;
                plb_request request = request_for(key);
                snprintf(key, sizeof key, "key-%u", (unsigned)round);
                request.key_length = strlen(key);
                ASSERT_EQ(PLB_OK, set_enabled(lb, only, true));
                ASSERT_EQ_FMT(only, select_index(lb, key, 0), "%u");
                request.exclude = &none;
                request.exclude_count = 1;
                ASSERT_EQ(PLB_OK, plb_select_with(lb, &request, &addr));
                ASSERT_EQ_FMT(only, index_of(&addr), "%u");
                request.accept = accept_ready;
                ASSERT_EQ(PLB_OK, plb_select_with(lb, &request, &addr));
                ASSERT_EQ_FMT(only, index_of(&addr), "%u");
                ASSERT_EQ(PLB_OK, set_enabled(lb, only, false));
            }
            plb_destroy(lb);
        }
    }
    PASS();
}

/* pingora: the first ready backend among the first max_iterations of the raw sequence. */
TEST with_a_limit_the_raw_sequence_is_followed_that_far(void)
{
    enum { N = 20, KEYS = 50, RAW = 400 };
    size_t s;
    uint32_t i, k;
    for (s = 0; s < COUNT(keyed_strategies); s++) {
        plb_balancer *lb = balancer_of(keyed_strategies[s](), N, 0);
        bool up[N];
        for (k = 0; k < KEYS; k++) {
            static uint32_t raw[RAW];
            char key[16];
            uint32_t limit, expected = PLB_NONE, found_at = 0;
            snprintf(key, sizeof key, "k%u", (unsigned)k);
            for (i = 0; i < N; i++) {
                up[i] = random_below(5) == 0;
                set_enabled(lb, i, up[i]);
            }
            raw_sequence(lb, key, raw, RAW);
            for (i = 0; i < RAW && expected == PLB_NONE; i++) {
                if (up[raw[i]])
                    expected = raw[i];
                found_at = i + 1;
            }
            for (limit = 1; limit < RAW; limit += 1 + limit / 8)
                ASSERT_EQ_FMT(limit >= found_at ? expected : PLB_NONE, select_index(lb, key, limit), "%u");
        }
        plb_destroy(lb);
    }
    PASS();
}

/* Two balancers side by side: one takes the fast path, the other asks accept for the same thing. */
TEST the_fast_path_and_the_walk_give_the_same_answers(void)
{
    static const strategy_fn deterministic[] = {plb_round_robin, plb_fnv, ketama};
    enum { N = 12, STEPS = 3000 };
    size_t s;
    int step;
    for (s = 0; s < COUNT(deterministic); s++) {
        plb_balancer *fast = balancer_of(deterministic[s](), N, 0), *slow = balancer_of(deterministic[s](), N, 0);
        for (step = 0; step < STEPS; step++) {
            uint32_t limit = 1 + random_below(20), i = random_below(N);
            bool enabled = random_below(3) == 0;
            char key[16];
            plb_request request = request_for(key);
            plb_addr a, b;
            plb_status status;
            set_enabled(fast, i, enabled);
            set_enabled(slow, i, enabled);
            snprintf(key, sizeof key, "%d", step % 97);
            request.key_length = strlen(key);
            request.max_iterations = limit;
            status = plb_select_with(fast, &request, &a);
            request.accept = accept_ready;
            ASSERT_EQ(status, plb_select_with(slow, &request, &b));
            if (status == PLB_OK)
                ASSERT_EQ(0, plb_addr_compare(&a, &b));
        }
        plb_destroy(fast);
        plb_destroy(slow);
    }
    PASS();
}

/* Where the counter stands is seen in what comes next, as if the set had never changed. */
/* Whichever one is down, the others get the same number of requests each. */
TEST round_robin_spreads_the_share_of_an_unready_backend_evenly(void)
{
    uint32_t down, i, k, counts[5];
    for (down = 0; down < 5; down++) {
        plb_balancer *lb = balancer_of(plb_round_robin(), 5, 1);
        plb_backend out = nth_backend(down, 1);
        ASSERT_EQ(PLB_OK, plb_set_enabled(lb, &out.addr, 0, false));
        memset(counts, 0, sizeof counts);
        for (i = 0; i < 400; i++) {
            plb_addr addr;
            ASSERT_EQ(PLB_OK, plb_select(lb, NULL, 0, 0, &addr));
            for (k = 0; k < 5; k++) {
                plb_backend b = nth_backend(k, 1);
                counts[k] += plb_addr_compare(&addr, &b.addr) == 0;
            }
        }
        for (k = 0; k < 5; k++)
            ASSERT_EQ_FMT(k == down ? 0u : 100u, (unsigned)counts[k], "%u");
        plb_destroy(lb);
    }
    PASS();
}

TEST find_tells_what_is_known_of_a_backend(void)
{
    plb_balancer *lb = balancer_of(plb_round_robin(), 3, 2);
    plb_backend wanted = nth_backend(1, 2), missing = nth_backend(7, 2);
    plb_backend_info info;
    ASSERT_EQ(PLB_ERR_ADDRESS, plb_find(lb, &missing.addr, 0, &info));
    ASSERT_EQ(PLB_ERR_ADDRESS, plb_find(lb, &wanted.addr, 5, &info));
    ASSERT_EQ(PLB_OK, plb_set_enabled(lb, &wanted.addr, 0, false));
    ASSERT_EQ(PLB_OK, plb_find(lb, &wanted.addr, 0, &info));
    ASSERT_EQ(0, plb_addr_compare(&wanted.addr, &info.backend.addr));
    ASSERT_EQ(2, info.backend.weight);
    ASSERT(!info.ready && !info.enabled && info.healthy);
    plb_destroy(lb);
    PASS();
}

TEST the_round_robin_counter_survives_updates(void)
{
    plb_backend backends[3];
    plb_balancer *lb;
    uint32_t i, round;
    for (i = 0; i < 3; i++)
        backends[i] = nth_backend(i, 1);
    lb = balancer(plb_round_robin(), backends, 3);
    for (round = 0; round < 10; round++) {
        ASSERT_EQ_FMT(round % 3, select_index(lb, "", 0), "%u");
        ASSERT_EQ(PLB_OK, plb_replace(lb, backends, 2));
        plb_poll(lb);
        ASSERT_EQ(PLB_OK, plb_replace(lb, backends, 3));
        plb_poll(lb);
    }
    plb_destroy(lb);
    PASS();
}

/* ==== WEIGHT 0, DUPLICATES, UNIX ================================================================================== */

static bool count_each(void *user, const plb_backend_info *info)
{
    (void)info;
    ++*(uint32_t *)user;
    return true;
}

TEST a_backend_of_weight_0_is_in_the_set_and_never_picked(void)
{
    size_t s;
    for (s = 0; s < COUNT(strategies); s++) {
        plb_backend backends[3];
        plb_balancer *lb;
        static asked a;
        uint32_t i, seen = 0;
        for (i = 0; i < 3; i++)
            backends[i] = nth_backend(i, i == 1 ? 0 : 3);
        lb = balancer(strategies[s](), backends, 3);
        for (i = 0; i < 300; i++) {
            char key[16];
            plb_addr addr;
            snprintf(key, sizeof key, "%u", (unsigned)i);
            ASSERT_EQ(PLB_OK, plb_select(lb, key, strlen(key), i % 4 == 0 ? 0 : 50, &addr));
            ASSERT(index_of(&addr) != 1);
        }
        plb_each(lb, count_each, &seen);
        ASSERT_EQ(3, seen);
        ASSERT_FALSE(ready(lb, "10.0.0.1:80"));
        ASSERT_EQ(PLB_OK, ask_all(lb, "k", 0, &a, 1)); /* accept is shown it as not ready, and may take it */
        ASSERT_FALSE(a.ready[a.count - 1]);
        ASSERT_EQ(PLB_OK, set_enabled(lb, 1, true)); /* that does not make it ready */
        ASSERT_FALSE(ready(lb, "10.0.0.1:80"));
        set_enabled(lb, 0, false);
        set_enabled(lb, 2, false);
        ASSERT_EQ(PLB_NONE, select_index(lb, "k", 0));
        plb_destroy(lb);
    }
    PASS();
}

TEST the_unweighted_walk_goes_through_backends_of_weight_0(void)
{
    plb_backend backends[3];
    plb_balancer *lb;
    uint32_t raw[10], i;
    bool seen = false;
    for (i = 0; i < 3; i++)
        backends[i] = nth_backend(i, i == 1 ? 0 : 1);
    lb = balancer(plb_round_robin(), backends, 3);
    raw_sequence(lb, "", raw, 10);
    for (i = 0; i < 10; i++)
        seen = seen || raw[i] == 1;
    ASSERT(seen);
    plb_destroy(lb);
    PASS();
}

TEST weights_that_are_all_0_are_not_ready_and_can_be_walked(void)
{
    size_t s;
    for (s = 0; s < COUNT(strategies); s++) {
        plb_backend backends[3];
        plb_balancer *lb;
        plb_addr addr;
        static asked a;
        uint32_t i, raw[30];
        for (i = 0; i < 3; i++)
            backends[i] = nth_backend(i, 0);
        lb = balancer(strategies[s](), backends, 3);
        ASSERT_EQ(PLB_ERR_NOT_READY, plb_select(lb, "k", 1, 0, &addr));
        ASSERT_EQ(PLB_ERR_NOT_READY, plb_select(lb, "k", 1, 7, &addr));
        raw_sequence(lb, "k", raw, 30);
        for (i = 0; i < 30; i++)
            ASSERT(raw[i] < 3);
        ASSERT_EQ(PLB_ERR_NOT_READY, ask_all(lb, "k", 0, &a, PLB_NONE));
        ASSERT_EQ(3, a.count);
        plb_destroy(lb);
    }
    PASS();
}

typedef struct seen_infos {
    uint32_t count;
    plb_backend_info info[4];
} seen_infos;

static bool keep_info(void *user, const plb_backend_info *info)
{
    seen_infos *seen = (seen_infos *)user;
    if (seen->count < 4)
        seen->info[seen->count] = *info;
    seen->count++;
    return true;
}

TEST duplicates_that_differ_in_weight_stay_apart_and_share_a_slot(void)
{
    size_t s;
    for (s = 0; s < COUNT(strategies); s++) {
        plb_backend backends[3];
        plb_balancer *lb;
        plb_pick pick;
        plb_addr addr;
        plb_request request = request_for("k");
        seen_infos seen;
        backends[0] = backend("10.0.0.1:80", 5);
        backends[1] = backend("10.0.0.1:80", 2);
        backends[2] = backend("10.0.0.1:80", 5); /* the same once more */
        lb = balancer(strategies[s](), backends, 3);
        ASSERT_EQ(PLB_OK, plb_begin(lb, NULL, &pick));
        memset(&seen, 0, sizeof seen);
        plb_each(lb, keep_info, &seen);
        ASSERT_EQ(2, seen.count);
        ASSERT_EQ(2, seen.info[0].backend.weight);
        ASSERT_EQ(5, seen.info[1].backend.weight);
        ASSERT_EQ(seen.info[0].slot, seen.info[1].slot);
        ASSERT_EQ(1, seen.info[0].in_flight);
        ASSERT_EQ(1, seen.info[1].in_flight);
        request.exclude = &pick.slot;
        request.exclude_count = 1;
        ASSERT_EQ(PLB_ERR_NOT_READY, plb_select_with(lb, &request, &addr));
        ASSERT_EQ(PLB_OK, plb_set_enabled(lb, &pick.addr, 0, false));
        ASSERT_EQ(PLB_ERR_NOT_READY, plb_select(lb, "k", 1, 0, &addr));
        ASSERT_EQ(PLB_OK, plb_set_enabled(lb, &pick.addr, 0, true));
        ASSERT_EQ(PLB_OK, plb_select(lb, "k", 1, 0, &addr));
        plb_end(&pick, PLB_OUTCOME_SUCCESS, 0);
        plb_destroy(lb);
    }
    PASS();
}

TEST two_services_on_one_address_are_told_apart_by_id(void)
{
    plb_backend backends[2];
    plb_balancer *lb;
    seen_infos seen;
    plb_pick pick;
    backends[0] = backend("10.0.0.1:80", 1);
    backends[1] = backends[0];
    backends[1].id = 7;
    lb = balancer(plb_round_robin(), backends, 2);
    memset(&seen, 0, sizeof seen);
    plb_each(lb, keep_info, &seen);
    ASSERT_EQ(2, seen.count);
    ASSERT(seen.info[0].slot != seen.info[1].slot);
    ASSERT_EQ(PLB_OK, plb_set_enabled(lb, &backends[0].addr, 0, false));
    ASSERT_FALSE(plb_ready(lb, &backends[0].addr, 0));
    ASSERT(plb_ready(lb, &backends[0].addr, 7));
    ASSERT_EQ(PLB_OK, plb_begin(lb, NULL, &pick));
    ASSERT_EQ(7, pick.id);
    plb_end(&pick, PLB_OUTCOME_SUCCESS, 0);
    ASSERT_EQ(PLB_ERR_ADDRESS, plb_set_enabled(lb, &backends[0].addr, 1, false));
    ASSERT_FALSE(plb_ready(lb, &backends[0].addr, 1));
    plb_destroy(lb);
    PASS();
}

TEST unix_sockets_are_on_the_ketama_ring(void)
{
    plb_backend backends[3];
    plb_balancer *lb;
    uint32_t i, unix_picks = 0;
    backends[0] = backend("unix:/run/a", 1);
    backends[1] = backend("unix:/run/b", 1);
    backends[2] = backend("10.0.0.1:80", 1);
    lb = balancer(ketama(), backends, 3);
    for (i = 0; i < 3000; i++) {
        plb_addr addr;
        ASSERT_EQ(PLB_OK, plb_select(lb, &i, sizeof i, 0, &addr));
        unix_picks += addr.family == PLB_FAMILY_UNIX;
    }
    ASSERT(unix_picks > 1500 && unix_picks < 2500);
    plb_destroy(lb);
    PASS();
}

/* ==== ACCEPT ====================================================================================================== */

/* Each once; first as the raw sequence has them, then, past what a pick remembers, in set order. */
TEST accept_is_asked_once_for_each_distinct_backend(void)
{
    static const uint32_t sizes[] = {1, 2, 7, 100, PLB_SEEN_MAX - 1, PLB_SEEN_MAX, PLB_SEEN_MAX + 1, 300, 1000};
    static asked a;
    size_t s, n;
    for (s = 0; s < COUNT(strategies); s++) {
        for (n = 0; n < COUNT(sizes); n++) {
            plb_balancer *lb = balancer_of(strategies[s](), sizes[n], 0);
            static bool seen[BACKENDS_MAX];
            uint32_t i;
            ASSERT_EQ(PLB_ERR_NOT_READY, ask_all(lb, "some key", 0, &a, PLB_NONE));
            ASSERT_EQ_FMT(sizes[n], a.count, "%u");
            memset(seen, 0, sizeof seen);
            for (i = 0; i < a.count; i++) {
                ASSERT_FALSE(seen[a.index[i]]);
                seen[a.index[i]] = true;
                ASSERT(a.ready[i]);
            }
            plb_destroy(lb);
        }
    }
    PASS();
}

TEST accept_is_asked_in_the_order_of_the_raw_sequence(void)
{
    enum { RAW = 256 };
    static const uint32_t sizes[] = {3, 30, 100, 300, 1000};
    static asked a;
    static uint32_t raw[RAW];
    size_t s, n;
    for (s = 0; s < COUNT(keyed_strategies); s++) {
        for (n = 0; n < COUNT(sizes); n++) {
            plb_balancer *lb = balancer_of(keyed_strategies[s](), sizes[n], 1);
            static bool seen[BACKENDS_MAX];
            uint32_t i, distinct = 0;
            ASSERT_EQ(PLB_ERR_NOT_READY, ask_all(lb, "a key", 0, &a, PLB_NONE));
            raw_sequence(lb, "a key", raw, RAW);
            memset(seen, 0, sizeof seen);
            for (i = 0; i < RAW && distinct < PLB_SEEN_MAX; i++) {
                if (seen[raw[i]])
                    continue;
                seen[raw[i]] = true;
                ASSERT_EQ_FMT(raw[i], a.index[distinct], "%u");
                distinct++;
            }
            for (i = PLB_SEEN_MAX + 1; i < a.count; i++)
                ASSERT(a.index[i] > a.index[i - 1]);
            plb_destroy(lb);
        }
    }
    PASS();
}

/* Every step of the raw sequence counts, repeated ones too. */
TEST accept_is_asked_within_the_limit_only(void)
{
    enum { RAW = 600 };
    static const uint32_t sizes[] = {5, 50, 400};
    static asked a;
    static uint32_t raw[RAW];
    size_t s, n;
    uint32_t limit;
    for (s = 0; s < COUNT(keyed_strategies); s++) {
        for (n = 0; n < COUNT(sizes); n++) {
            plb_balancer *lb = balancer_of(keyed_strategies[s](), sizes[n], 1);
            raw_sequence(lb, "key", raw, RAW);
            for (limit = 1; limit < RAW; limit += 1 + limit / 10) {
                static bool seen[BACKENDS_MAX];
                uint32_t i, expected = 0;
                memset(seen, 0, sizeof seen);
                for (i = 0; i < limit && expected < PLB_SEEN_MAX + 1; i++) {
                    expected += !seen[raw[i]];
                    seen[raw[i]] = true;
                }
                if (expected == PLB_SEEN_MAX + 1) /* this one began the sweep, and each step left asks one more */
                    expected += limit - i;
                if (expected > sizes[n])
                    expected = sizes[n];
                ASSERT_EQ(PLB_ERR_NOT_READY, ask_all(lb, "key", limit, &a, PLB_NONE));
                ASSERT_EQ_FMT(expected, a.count, "%u");
            }
            plb_destroy(lb);
        }
    }
    PASS();
}

enum { WIDE = 65536 + 2 * PLB_SEEN_MAX };

/* 0, 65536, 1, 65537, 2, ...: two that differ in their upper bits only, one after the other. */
static uint32_t far_index(uint64_t step)
{
    return (uint32_t)(step / 2 % PLB_SEEN_MAX + (step % 2) * 65536);
}

static uint32_t far_first(const void *table, const plb_view *view, plb_reader *reader, const void *key,
                          size_t key_length, plb_cursor *cursor)
{
    (void)table, (void)view, (void)reader, (void)key, (void)key_length;
    cursor->words[0] = 0;
    return far_index(0);
}

static uint32_t far_next(const void *table, const plb_view *view, plb_reader *reader, plb_cursor *cursor)
{
    (void)table, (void)view, (void)reader;
    return far_index(++cursor->words[0]);
}

static bool note_index(void *user, const plb_backend_info *info)
{
    asked *a = (asked *)user;
    if (a->count < ASKED_MAX)
        a->index[a->count] = info->backend.addr.u.v4[1] * 65536u + index_of(&info->backend.addr);
    a->count++;
    return false;
}

TEST accept_is_asked_once_for_each_of_more_than_65536_backends(void)
{
    static plb_strategy_ops ops;
    static asked a;
    plb_strategy strategy = {NULL, NULL};
    plb_backend *backends = (plb_backend *)calloc(WIDE, sizeof *backends);
    plb_request request = request_for("a key");
    plb_balancer *lb;
    plb_addr addr;
    uint32_t i;
    ASSERT(backends != NULL);
    for (i = 0; i < WIDE; i++) {
        backends[i] = nth_backend(i % 65536, 1);
        backends[i].addr.u.v4[1] = (uint8_t)(i >> 16);
    }
    ops.name = "far";
    ops.first = far_first;
    ops.next = far_next;
    strategy.ops = &ops;
    lb = balancer(strategy, backends, WIDE);
    free(backends);
    a.count = 0;
    request.accept = note_index;
    request.accept_user = &a;
    ASSERT_EQ(PLB_ERR_NOT_READY, plb_select_with(lb, &request, &addr));
    ASSERT_EQ_FMT((unsigned)WIDE, a.count, "%u");
    for (i = 0; i < PLB_SEEN_MAX / 2; i++) /* as the sequence has them, as far as a walk remembers; then in set order */
        ASSERT_EQ_FMT(far_index(i), a.index[i], "%u");
    for (; i < ASKED_MAX; i++)
        ASSERT_EQ_FMT(i - PLB_SEEN_MAX / 4, a.index[i], "%u");
    plb_destroy(lb);
    PASS();
}

TEST accept_may_take_any_backend_an_unready_one_too(void)
{
    static const uint32_t sizes[] = {2, 100, 500};
    static asked a;
    size_t s, n;
    for (s = 0; s < COUNT(strategies); s++) {
        for (n = 0; n < COUNT(sizes); n++) {
            plb_balancer *lb = balancer_of(strategies[s](), sizes[n], 0);
            uint32_t i;
            set_enabled(lb, 1, false);
            for (i = 0; i < 20; i++) {
                uint32_t wanted = i == 0 ? 1 : random_below(sizes[n]);
                ASSERT_EQ(PLB_OK, ask_all(lb, "key", 0, &a, wanted));
                ASSERT_EQ_FMT(wanted, a.index[a.count - 1], "%u");
                ASSERT_EQ(wanted != 1, a.ready[a.count - 1]);
            }
            plb_destroy(lb);
        }
    }
    PASS();
}

/* ==== EXCLUDE ===================================================================================================== */

/* A retry that excludes what it tried gets each backend once, then the end. */
TEST excluded_backends_are_not_taken(void)
{
    static const uint32_t sizes[] = {1, 2, 10, 150};
    size_t s, n;
    for (s = 0; s < COUNT(strategies); s++) {
        for (n = 0; n < COUNT(sizes); n++) {
            plb_balancer *lb = balancer_of(strategies[s](), sizes[n], 0);
            uint32_t tried[BACKENDS_MAX];
            plb_request request = request_for("key");
            plb_pick pick;
            uint32_t i;
            request.exclude = tried;
            for (i = 0; i < sizes[n]; i++) {
                uint32_t k;
                request.exclude_count = i;
                ASSERT_EQ(PLB_OK, plb_begin(lb, &request, &pick));
                for (k = 0; k < i; k++)
                    ASSERT(tried[k] != pick.slot);
                tried[i] = pick.slot;
                plb_end(&pick, PLB_OUTCOME_CONNECT_ERROR, 0);
            }
            request.exclude_count = sizes[n];
            ASSERT_EQ(PLB_ERR_NOT_READY, plb_begin(lb, &request, &pick));
            plb_destroy(lb);
        }
    }
    PASS();
}

TEST exclusion_counts_within_the_limit(void)
{
    size_t s;
    for (s = 0; s < COUNT(keyed_strategies); s++) {
        plb_balancer *lb = balancer_of(keyed_strategies[s](), 10, 1);
        plb_request request = request_for("key");
        plb_pick pick;
        plb_addr addr;
        uint32_t raw[200], first_other = 0;
        raw_sequence(lb, "key", raw, 200);
        while (raw[first_other] == raw[0])
            first_other++;
        ASSERT_EQ(PLB_OK, plb_begin(lb, &request, &pick));
        ASSERT_EQ(raw[0], index_of(&pick.addr));
        request.exclude = &pick.slot;
        request.exclude_count = 1;
        request.max_iterations = first_other;
        ASSERT_EQ(PLB_ERR_NOT_READY, plb_select_with(lb, &request, &addr));
        request.max_iterations = first_other + 1;
        ASSERT_EQ(PLB_OK, plb_select_with(lb, &request, &addr));
        ASSERT_EQ(raw[first_other], index_of(&addr));
        plb_end(&pick, PLB_OUTCOME_SUCCESS, 0);
        plb_destroy(lb);
    }
    PASS();
}

TEST accept_is_shown_excluded_backends_as_not_ready(void)
{
    plb_balancer *lb = balancer_of(plb_round_robin(), 3, 1);
    plb_request request = request_for("");
    static asked a;
    plb_addr addr;
    plb_pick pick;
    uint32_t i;
    ASSERT_EQ(PLB_OK, plb_begin(lb, NULL, &pick));
    memset(&a, 0, sizeof a);
    a.wanted = PLB_NONE;
    request.exclude = &pick.slot;
    request.exclude_count = 1;
    request.accept = ask;
    request.accept_user = &a;
    ASSERT_EQ(PLB_ERR_NOT_READY, plb_select_with(lb, &request, &addr));
    ASSERT_EQ(3, a.count);
    for (i = 0; i < 3; i++)
        ASSERT_EQ(a.index[i] != index_of(&pick.addr), a.ready[i]);
    a.wanted = index_of(&pick.addr); /* and it may take one all the same */
    ASSERT_EQ(PLB_OK, plb_select_with(lb, &request, &addr));
    plb_end(&pick, PLB_OUTCOME_SUCCESS, 0);
    plb_destroy(lb);
    PASS();
}

/* ==== BEGIN AND END =============================================================================================== */

/* What an ext is here: it counts its releases. */
typedef struct parcel {
    int released;
    int *clock; /* when: the clock's time */
    int when;
} parcel;

static void release(void *ext)
{
    parcel *p = (parcel *)ext;
    p->released++;
    if (p->clock != NULL)
        p->when = ++*p->clock;
}

static plb_backend backend_with(uint32_t i, parcel *p)
{
    plb_backend b = nth_backend(i, 1);
    b.ext = p;
    b.ext_release = release;
    return b;
}

TEST a_pick_tells_all_about_its_backend(void)
{
    plb_backend b = backend("[fe80::1%3]:80", 7);
    plb_balancer *lb;
    plb_pick pick;
    seen_infos seen;
    int ext;
    b.id = 42;
    b.name = "example.com";
    b.ext = &ext;
    lb = balancer(plb_round_robin(), &b, 1);
    ASSERT_EQ(PLB_OK, plb_begin(lb, NULL, &pick));
    ASSERT_EQ(0, plb_addr_compare(&b.addr, &pick.addr));
    ASSERT_EQ(7, pick.weight);
    ASSERT_EQ(42, pick.id);
    ASSERT_STR_EQ("example.com", pick.name);
    ASSERT(pick.name != b.name);
    ASSERT_EQ(&ext, pick.ext);
    memset(&seen, 0, sizeof seen);
    plb_each(lb, keep_info, &seen);
    ASSERT_EQ(1, seen.info[0].in_flight);
    ASSERT_EQ(pick.slot, seen.info[0].slot);
    ASSERT_EQ(&ext, seen.info[0].backend.ext);
    plb_end(&pick, PLB_OUTCOME_SUCCESS, 0);
    memset(&seen, 0, sizeof seen);
    plb_each(lb, keep_info, &seen);
    ASSERT_EQ(0, seen.info[0].in_flight);
    plb_destroy(lb);
    PASS();
}

TEST ending_twice_or_without_a_pick_has_no_effect(void)
{
    plb_balancer *lb = balancer_of(plb_round_robin(), 1, 1);
    plb_pick pick, other;
    seen_infos seen;
    ASSERT_EQ(PLB_OK, plb_begin(lb, NULL, &pick));
    ASSERT_EQ(PLB_OK, plb_begin(lb, NULL, &other));
    plb_end(&pick, PLB_OUTCOME_SUCCESS, 0);
    plb_end(&pick, PLB_OUTCOME_SUCCESS, 0);
    memset(&seen, 0, sizeof seen);
    plb_each(lb, keep_info, &seen);
    ASSERT_EQ(1, seen.info[0].in_flight);
    plb_end(&other, PLB_OUTCOME_BROKEN, 0);
    set_enabled(lb, 0, false);
    memset(&pick, 0x5a, sizeof pick);
    ASSERT_EQ(PLB_ERR_NOT_READY, plb_begin(lb, NULL, &pick));
    plb_end(&pick, PLB_OUTCOME_SUCCESS, 0);
    memset(&pick, 0, sizeof pick);
    plb_end(&pick, PLB_OUTCOME_SUCCESS, 0);
    plb_destroy(lb);
    PASS();
}

TEST a_pick_outlives_its_set(void)
{
    parcel p = {0, NULL, 0};
    plb_backend b = backend_with(0, &p);
    plb_balancer *lb;
    plb_pick first, second;
    b.name = "name";
    lb = balancer(plb_round_robin(), &b, 1);
    ASSERT_EQ(PLB_OK, plb_begin(lb, NULL, &first));
    ASSERT_EQ(PLB_OK, plb_begin(lb, NULL, &second));
    ASSERT_EQ(PLB_OK, plb_replace(lb, NULL, 0));
    plb_poll(lb);
    plb_poll(lb);
    ASSERT_EQ(0, p.released);
    plb_end(&first, PLB_OUTCOME_SUCCESS, 0);
    plb_poll(lb);
    ASSERT_EQ(0, p.released);
    ASSERT_STR_EQ("name", second.name);
    ASSERT_EQ(&p, second.ext);
    plb_end(&second, PLB_OUTCOME_SUCCESS, 0);
    plb_poll(lb);
    ASSERT_EQ(1, p.released);
    plb_destroy(lb);
    ASSERT_EQ(1, p.released);
    PASS();
}

TEST picks_outlive_the_balancer_and_the_last_end_releases(void)
{
    int clock = 0;
    parcel p[3] = {{0, NULL, 0}, {0, NULL, 0}, {0, NULL, 0}};
    plb_backend backends[3];
    plb_balancer *lb;
    plb_pick first, second, third;
    uint32_t i;
    for (i = 0; i < 3; i++) {
        p[i].clock = &clock;
        backends[i] = backend_with(i, &p[i]);
    }
    lb = balancer(plb_round_robin(), backends, 3);
    ASSERT_EQ(PLB_OK, plb_begin(lb, NULL, &first)); /* of backend 0 */
    ASSERT_EQ(PLB_OK, plb_begin(lb, NULL, &second));
    set_enabled(lb, 1, false);
    set_enabled(lb, 2, false);
    ASSERT_EQ(PLB_OK, plb_begin(lb, NULL, &third)); /* of backend 0 again */
    ASSERT_EQ(first.slot, third.slot);
    plb_destroy(lb);
    ASSERT_EQ(1, p[2].released);
    ASSERT_EQ(0, p[0].released + p[1].released);
    plb_end(&first, PLB_OUTCOME_SUCCESS, 0);
    ASSERT_EQ(0, p[0].released);
    plb_end(&third, PLB_OUTCOME_SUCCESS, 0);
    ASSERT_EQ(1, p[0].released);
    plb_end(&third, PLB_OUTCOME_SUCCESS, 0);
    plb_end(&second, PLB_OUTCOME_SUCCESS, 0);
    ASSERT_EQ(1, p[0].released);
    ASSERT_EQ(1, p[1].released);
    ASSERT(p[2].when < p[0].when && p[0].when < p[1].when);
    PASS();
}

/* An ext that was released because another one stays may come again: memory is used again. */
TEST an_ext_that_was_released_may_be_handed_over_again(void)
{
    parcel first = {0, NULL, 0}, second = {0, NULL, 0};
    plb_backend b = backend_with(0, &first);
    plb_balancer *lb = balancer(plb_round_robin(), &b, 1);
    b = backend_with(0, &second);
    ASSERT_EQ(PLB_OK, plb_remove(lb, &b)); /* and back within one update: the first ext stays */
    ASSERT_EQ(PLB_OK, plb_add(lb, &b));
    plb_poll(lb);
    ASSERT_EQ(0, first.released);
    ASSERT_EQ(1, second.released);
    ASSERT_EQ(PLB_OK, plb_add(lb, &b));
    plb_poll(lb);
    ASSERT_EQ(0, first.released);
    ASSERT_EQ(2, second.released);
    b = backend_with(0, &first);
    ASSERT_EQ(PLB_OK, plb_add(lb, &b)); /* the one that is there is not a second one */
    ASSERT_EQ(PLB_OK, plb_remove(lb, &b));
    plb_poll(lb);
    ASSERT_EQ(1, first.released);
    plb_destroy(lb);
    ASSERT_EQ(1, first.released);
    ASSERT_EQ(2, second.released);
    PASS();
}

/* ==== MAX_CONNS =================================================================================================== */

TEST a_backend_is_not_ready_while_max_conns_are_in_flight(void)
{
    size_t s;
    for (s = 0; s < COUNT(strategies); s++) {
        plb_backend b = nth_backend(0, 1);
        plb_balancer *lb;
        plb_pick picks[3], more;
        plb_addr addr;
        int i;
        b.max_conns = 3;
        lb = balancer(strategies[s](), &b, 1);
        for (i = 0; i < 3; i++) {
            ASSERT(plb_ready(lb, &b.addr, 0));
            ASSERT_EQ(PLB_OK, plb_begin(lb, NULL, &picks[i]));
        }
        ASSERT_FALSE(plb_ready(lb, &b.addr, 0));
        ASSERT_EQ(PLB_ERR_NOT_READY, plb_begin(lb, NULL, &more));
        ASSERT_EQ(PLB_ERR_NOT_READY, plb_select(lb, "k", 1, 0, &addr));
        plb_end(&picks[1], PLB_OUTCOME_SUCCESS, 0);
        ASSERT(plb_ready(lb, &b.addr, 0));
        ASSERT_EQ(PLB_OK, plb_begin(lb, NULL, &more));
        ASSERT_FALSE(plb_ready(lb, &b.addr, 0));
        plb_end(&more, PLB_OUTCOME_SUCCESS, 0);
        plb_end(&picks[0], PLB_OUTCOME_SUCCESS, 0);
        plb_end(&picks[2], PLB_OUTCOME_SUCCESS, 0);
        plb_destroy(lb);
    }
    PASS();
}

TEST others_are_picked_while_one_is_full(void)
{
    size_t s;
    for (s = 0; s < COUNT(strategies); s++) {
        plb_backend backends[2];
        plb_balancer *lb;
        plb_pick picks[50];
        uint32_t i, at_first = 0;
        backends[0] = nth_backend(0, 1);
        backends[0].max_conns = 2;
        backends[1] = nth_backend(1, 1);
        lb = balancer(strategies[s](), backends, 2);
        for (i = 0; i < 50; i++) {
            plb_request request = request_for("");
            request.key = &i;
            request.key_length = sizeof i;
            ASSERT_EQ(PLB_OK, plb_begin(lb, &request, &picks[i]));
            at_first += index_of(&picks[i].addr) == 0;
        }
        ASSERT_EQ(2, at_first);
        for (i = 0; i < 50; i++)
            plb_end(&picks[i], PLB_OUTCOME_SUCCESS, 0);
        ASSERT(plb_ready(lb, &backends[0].addr, 0));
        plb_destroy(lb);
    }
    PASS();
}

TEST max_conns_may_change_with_requests_in_flight(void)
{
    plb_backend b = nth_backend(0, 1);
    plb_balancer *lb = balancer(plb_round_robin(), &b, 1);
    plb_pick picks[4];
    int i;
    for (i = 0; i < 4; i++)
        ASSERT_EQ(PLB_OK, plb_begin(lb, NULL, &picks[i]));
    b.max_conns = 2; /* below what is in flight */
    ASSERT_EQ(PLB_OK, plb_add(lb, &b));
    plb_poll(lb);
    ASSERT_FALSE(plb_ready(lb, &b.addr, 0));
    plb_end(&picks[0], PLB_OUTCOME_SUCCESS, 0);
    plb_end(&picks[1], PLB_OUTCOME_SUCCESS, 0);
    ASSERT_FALSE(plb_ready(lb, &b.addr, 0));
    plb_end(&picks[2], PLB_OUTCOME_SUCCESS, 0);
    ASSERT(plb_ready(lb, &b.addr, 0));
    ASSERT_EQ(PLB_OK, plb_begin(lb, NULL, &picks[0]));
    ASSERT_FALSE(plb_ready(lb, &b.addr, 0));
    b.max_conns = 0;
    ASSERT_EQ(PLB_OK, plb_add(lb, &b));
    plb_poll(lb);
    ASSERT(plb_ready(lb, &b.addr, 0));
    plb_end(&picks[0], PLB_OUTCOME_SUCCESS, 0);
    plb_end(&picks[3], PLB_OUTCOME_SUCCESS, 0);
    plb_destroy(lb);
    PASS();
}

/* The count stays with the slot: a full backend that left and came back is still full. */
TEST a_full_backend_stays_full_across_updates(void)
{
    plb_backend backends[2];
    plb_balancer *lb;
    plb_pick pick;
    backends[0] = nth_backend(0, 1);
    backends[0].max_conns = 1;
    backends[1] = nth_backend(1, 1);
    lb = balancer(plb_round_robin(), backends, 1);
    ASSERT_EQ(PLB_OK, plb_begin(lb, NULL, &pick));
    ASSERT_EQ(PLB_OK, plb_replace(lb, backends, 2));
    plb_poll(lb);
    ASSERT_FALSE(plb_ready(lb, &backends[0].addr, 0));
    plb_end(&pick, PLB_OUTCOME_SUCCESS, 0);
    ASSERT(plb_ready(lb, &backends[0].addr, 0));
    plb_destroy(lb);
    PASS();
}

/* accept's word counts against health, not against the limit; a backend that is full is passed over, and not asked
   about again. */
TEST accept_cannot_exceed_max_conns(void)
{
    plb_backend backends[3];
    plb_balancer *lb;
    plb_pick first, second;
    plb_request request = request_for("");
    static asked a;
    uint32_t i;
    for (i = 0; i < 3; i++) {
        backends[i] = nth_backend(i, 1);
        backends[i].max_conns = 1;
    }
    lb = balancer(plb_round_robin(), backends, 3);
    memset(&a, 0, sizeof a);
    a.wanted = 1;
    request.accept = ask;
    request.accept_user = &a;
    ASSERT_EQ(PLB_OK, plb_begin(lb, &request, &first));
    ASSERT_EQ(1, index_of(&first.addr));
    a.count = 0;
    ASSERT_EQ(PLB_ERR_NOT_READY, plb_begin(lb, &request, &second));
    ASSERT_EQ_FMT(3u, a.count, "%u");
    plb_end(&first, PLB_OUTCOME_SUCCESS, 0);
    ASSERT_EQ(PLB_OK, plb_begin(lb, &request, &second));
    plb_end(&second, PLB_OUTCOME_SUCCESS, 0);
    plb_destroy(lb);
    PASS();
}

typedef struct crowd {
    plb_balancer *lb;
    uint32_t in_flight; /* counted beside the library */
    uint32_t most;
    uint32_t failed, served;
    bool walk;
} crowd;

enum { CROWD_THREADS = 4, CROWD_LIMIT = 2, CROWD_ROUNDS = 20000 };

static void *crowd_member(void *user)
{
    crowd *c = (crowd *)user;
    plb_request request = request_for("");
    int i;
    if (c->walk)
        request.accept = accept_ready;
    for (i = 0; i < CROWD_ROUNDS; i++) {
        plb_pick pick;
        uint32_t now, most;
        if (plb_begin(c->lb, &request, &pick) != PLB_OK) {
            __atomic_fetch_add(&c->failed, 1, __ATOMIC_RELAXED);
            continue;
        }
        now = __atomic_add_fetch(&c->in_flight, 1, __ATOMIC_SEQ_CST);
        most = __atomic_load_n(&c->most, __ATOMIC_SEQ_CST);
        while (now > most &&
               !__atomic_compare_exchange_n(&c->most, &most, now, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            continue;
        __atomic_fetch_add(&c->served, 1, __ATOMIC_RELAXED);
        __atomic_fetch_sub(&c->in_flight, 1, __ATOMIC_SEQ_CST);
        plb_end(&pick, PLB_OUTCOME_SUCCESS, 0);
    }
    return NULL;
}

TEST max_conns_is_exact_among_threads(void)
{
    int walk, i;
    for (walk = 0; walk < 2; walk++) {
        plb_backend b = nth_backend(0, 1);
        pthread_t threads[CROWD_THREADS];
        crowd c;
        memset(&c, 0, sizeof c);
        b.max_conns = CROWD_LIMIT;
        c.lb = balancer(plb_round_robin(), &b, 1);
        c.walk = walk;
        for (i = 0; i < CROWD_THREADS; i++)
            ASSERT_EQ(0, pthread_create(&threads[i], NULL, crowd_member, &c));
        for (i = 0; i < CROWD_THREADS; i++)
            pthread_join(threads[i], NULL);
        ASSERT(c.most <= CROWD_LIMIT);
        ASSERT(c.served > 0);
        ASSERT(plb_ready(c.lb, &b.addr, 0)); /* no end was lost on the view */
        plb_destroy(c.lb);
    }
    PASS();
}

/* Several threads switch backends on and off at once; when they are done and poll has run, each ready backend stands
   once in the list that draws are made from, and no other. */
enum { SWITCHERS = 4, SWITCHES = 20000 };

static void *switcher(void *user)
{
    plb_balancer *lb = (plb_balancer *)user;
    uint64_t state = (uint64_t)(uintptr_t)&state | 1;
    int i;
    for (i = 0; i < SWITCHES; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        set_enabled(lb, (uint32_t)(state >> 33) % BACKENDS_MAX, (state >> 63) != 0);
    }
    return NULL;
}

TEST what_threads_switch_at_once_can_all_be_drawn(void)
{
    plb_balancer *lb = balancer_of(plb_random_choice(), BACKENDS_MAX, 1);
    const plb_view *view = &((const plb__set *)lb->current)->tiers[0].view;
    static uint32_t drawn[BACKENDS_MAX];
    pthread_t threads[SWITCHERS];
    uint32_t i;
    for (i = 0; i < SWITCHERS; i++)
        ASSERT_EQ(0, pthread_create(&threads[i], NULL, switcher, lb));
    for (i = 0; i < SWITCHERS; i++)
        pthread_join(threads[i], NULL);
    plb_poll(lb);
    memset(drawn, 0, sizeof drawn);
    ASSERT_EQ_FMT(plb_view_ready_count(view), view->listed, "%u");
    for (i = 0; i < view->listed; i++)
        drawn[view->list[i]]++;
    for (i = 0; i < BACKENDS_MAX; i++)
        ASSERT_EQ_FMT(plb_view_ready(view, i) ? 1u : 0u, drawn[i], "%u");
    plb_destroy(lb);
    PASS();
}

static bool is_listed(const plb_view *view, uint32_t index)
{
    uint32_t i;
    for (i = 0; i < view->listed; i++)
        if (view->list[i] == index)
            return true;
    return false;
}

/* A thread that is at the list gives up when others go on changing bits: the next change, or poll, makes it right. */
TEST a_list_that_was_left_behind_catches_up(void)
{
    plb_balancer *lb = balancer_of(plb_random_choice(), 9, 1);
    plb_view *view = &((plb__set *)lb->current)->tiers[0].view;
    int way;
    for (way = 0; way < 2; way++) {
        view->list_changes = 1; /* another thread is at it */
        set_enabled(lb, 5, way == 1);
        ASSERT_EQ(way == 0, is_listed(view, 5));
        view->list_changes = 0; /* and leaves */
        view->list_behind = 1;
        if (way == 0)
            plb_poll(lb);
        else
            set_enabled(lb, 2, false);
        ASSERT_EQ(way == 1, is_listed(view, 5));
        ASSERT_EQ_FMT(8u, view->listed, "%u");
        ASSERT_EQ_FMT(0u, view->list_changes, "%u");
        ASSERT_EQ_FMT(0u, view->list_behind, "%u");
    }
    plb_destroy(lb);
    PASS();
}

/* While others begin and end, the limit comes and goes; after each time the view tells the truth. */
static void *limit_member(void *user)
{
    crowd *c = (crowd *)user;
    while (__atomic_load_n(&c->most, __ATOMIC_SEQ_CST) == 0) {
        plb_pick pick;
        if (plb_begin(c->lb, NULL, &pick) != PLB_OK)
            __atomic_fetch_add(&c->failed, 1, __ATOMIC_RELAXED);
        plb_end(&pick, PLB_OUTCOME_SUCCESS, 0);
    }
    return NULL;
}

TEST a_limit_that_comes_while_requests_end_leaves_no_backend_stuck(void)
{
    int round, i;
    for (round = 0; round < 300; round++) {
        plb_backend b = nth_backend(0, 1);
        pthread_t threads[2];
        crowd c;
        memset(&c, 0, sizeof c);
        c.lb = balancer(plb_round_robin(), &b, 1);
        for (i = 0; i < 2; i++)
            ASSERT_EQ(0, pthread_create(&threads[i], NULL, limit_member, &c));
        for (i = 0; i < 5; i++) {
            b.max_conns = i % 2 == 0;
            ASSERT_EQ(PLB_OK, plb_add(c.lb, &b));
            plb_poll(c.lb);
        }
        __atomic_store_n(&c.most, 1, __ATOMIC_SEQ_CST);
        for (i = 0; i < 2; i++)
            pthread_join(threads[i], NULL);
        ASSERT(plb_ready(c.lb, &b.addr, 0));
        plb_destroy(c.lb);
    }
    PASS();
}

/* ==== WALK AND EACH =============================================================================================== */

TEST a_walk_goes_on_over_its_set_while_sets_change(void)
{
    parcel p[3] = {{0, NULL, 0}, {0, NULL, 0}, {0, NULL, 0}};
    plb_backend backends[3], other = nth_backend(9, 1);
    plb_balancer *lb;
    plb_walk walk;
    plb_backend_info info;
    uint32_t i, round;
    for (i = 0; i < 3; i++)
        backends[i] = backend_with(i, &p[i]);
    lb = balancer(plb_round_robin(), backends, 3);
    ASSERT_EQ(PLB_OK, plb_walk_begin(&walk, lb, NULL, 0));
    for (round = 0; round < 10; round++) {
        plb_walk_next(&walk, &info);
        ASSERT(index_of(&info.backend.addr) < 3);
        ASSERT_EQ(&p[index_of(&info.backend.addr)], info.backend.ext);
        other = nth_backend(9 + round, 1);
        ASSERT_EQ(PLB_OK, plb_replace(lb, &other, 1));
        plb_poll(lb);
    }
    ASSERT_EQ(18, select_index(lb, "", 0)); /* others see the newest set: one retired set that is held is no more */
    ASSERT_EQ(0, p[0].released + p[1].released + p[2].released);
    plb_walk_end(&walk);
    plb_walk_end(&walk);
    plb_poll(lb);
    for (i = 0; i < 3; i++)
        ASSERT_EQ(1, p[i].released);
    plb_destroy(lb);
    PASS();
}

typedef struct looking {
    uint32_t stop_after;
    uint32_t count;
    uint32_t index[BACKENDS_MAX];
} looking;

static bool look(void *user, const plb_backend_info *info)
{
    looking *l = (looking *)user;
    l->index[l->count++] = index_of(&info->backend.addr);
    return l->count != l->stop_after;
}

TEST each_shows_every_backend_in_set_order_until_told_to_stop(void)
{
    static looking l;
    plb_balancer *lb;
    plb_backend backends[50];
    uint32_t i;
    for (i = 0; i < 50; i++)
        backends[i] = nth_backend((i * 7) % 50, 1 + i % 3);
    lb = balancer(plb_fnv(), backends, 50);
    memset(&l, 0, sizeof l);
    plb_each(lb, look, &l);
    ASSERT_EQ(50, l.count);
    for (i = 0; i < 50; i++)
        ASSERT_EQ(i, l.index[i]);
    memset(&l, 0, sizeof l);
    l.stop_after = 7;
    plb_each(lb, look, &l);
    ASSERT_EQ(7, l.count);
    plb_destroy(lb);
    PASS();
}

TEST enabling_is_told_apart_from_readiness(void)
{
    plb_balancer *lb = balancer_of(plb_round_robin(), 2, 1);
    plb_backend stranger = nth_backend(77, 1);
    seen_infos seen;
    ASSERT_EQ(PLB_OK, set_enabled(lb, 0, false));
    ASSERT_EQ(PLB_OK, set_enabled(lb, 0, false)); /* once more is no toggle */
    memset(&seen, 0, sizeof seen);
    plb_each(lb, keep_info, &seen);
    ASSERT(!seen.info[0].enabled && seen.info[0].healthy && !seen.info[0].ready);
    ASSERT(seen.info[1].enabled && seen.info[1].healthy && seen.info[1].ready);
    ASSERT_EQ(PLB_OK, set_enabled(lb, 0, true));
    ASSERT(ready(lb, "10.0.0.0:80"));
    ASSERT_EQ(PLB_ERR_ADDRESS, plb_set_enabled(lb, &stranger.addr, 0, false));
    ASSERT_FALSE(plb_ready(lb, &stranger.addr, 0));
    plb_destroy(lb);
    PASS();
}

/* ==== A STRATEGY OF ONE'S OWN ===================================================================================== */

/* Takes the backend with the fewest requests in flight; sees whether it is told the truth. */
typedef struct custom_state {
    int tables; /* built and not discarded */
    bool lied;
    int began, ended;
    uint32_t last_slot;
    int last_outcome;
    uint64_t last_latency_us;
} custom_state;

static custom_state *custom; /* of the balancer that was made last */
static int custom_closed;

static plb_status custom_open(void *state, const void *desc, const plb_env *env)
{
    custom = (custom_state *)state;
    custom->lied = desc == NULL || env->balancer == NULL;
    return PLB_OK;
}

static void custom_close(void *state)
{
    custom_closed += ((custom_state *)state)->tables == 0 ? 1 : 100;
}

/* The table is the list of slots, by index. */
static plb_status custom_build(void *state, const plb_view *view, const plb_view *old_view, const void *old_table,
                               void **table)
{
    uint32_t count = plb_view_count(view), i, k, sum = 0;
    uint32_t *slots = (uint32_t *)malloc((count + 1) * sizeof *slots);
    custom_state *self = (custom_state *)state;
    if (slots == NULL)
        return PLB_ERR_MEMORY;
    if (old_table != NULL && (old_view == NULL || plb_view_slot(old_view, 0) != *(const uint32_t *)old_table))
        self->lied = true;
    if (count == 0)
        self->lied = true;
    for (i = 0; i < count; i++) {
        slots[i] = plb_view_slot(view, i);
        sum += plb_view_weight(view, i);
        for (k = 0; k < i; k++) {
            plb_addr a, b;
            plb_view_addr(view, k, &a);
            plb_view_addr(view, i, &b);
            if (plb_addr_compare(&a, &b) > 0 || (slots[k] == slots[i]) != (plb_addr_compare(&a, &b) == 0))
                self->lied = true;
        }
    }
    if (sum != plb_view_weight_sum(view))
        self->lied = true;
    self->tables++;
    *table = slots;
    return PLB_OK;
}

static void custom_discard(void *state, void *table)
{
    ((custom_state *)state)->tables--;
    free(table);
}

static uint32_t custom_first(const void *table, const plb_view *view, plb_reader *reader, const void *key,
                             size_t key_length, plb_cursor *cursor)
{
    const uint32_t *slots = (const uint32_t *)table;
    uint32_t i, count = plb_view_count(view), ready_count = 0;
    custom_state *self = (custom_state *)plb_view_state(view);
    (void)reader;
    (void)key;
    (void)key_length;
    for (i = 0; i < count; i++) {
        if (slots[i] != plb_view_slot(view, i))
            self->lied = true;
        if (plb_view_ready(view, i) && plb_view_ready_nth(view, ready_count++) != i)
            self->lied = true;
    }
    if (ready_count != plb_view_ready_count(view) || plb_view_ready_nth(view, ready_count) != PLB_NONE)
        self->lied = true;
    memset(cursor, 0xff, sizeof *cursor); /* all of it is the strategy's */
    cursor->words[7] = 0;
    return 0;
}

static uint32_t custom_next(const void *table, const plb_view *view, plb_reader *reader, plb_cursor *cursor)
{
    (void)table;
    (void)reader;
    return (uint32_t)(++cursor->words[7] % plb_view_count(view));
}

static uint32_t custom_pick(const void *table, const plb_view *view, plb_reader *reader, const void *key,
                            size_t key_length, uint32_t limit)
{
    uint32_t nth, best = PLB_NONE, index;
    plb_cursor cursor;
    (void)limit;
    custom_first(table, view, reader, key, key_length, &cursor);
    for (nth = 0; (index = plb_view_ready_nth(view, nth)) != PLB_NONE; nth++)
        if (best == PLB_NONE || plb_view_in_flight(view, index) < plb_view_in_flight(view, best))
            best = index;
    return best;
}

static void custom_began(void *state, uint32_t slot, void *data)
{
    custom_state *self = (custom_state *)state;
    self->began++;
    (*(uint64_t *)data)++;
    self->last_slot = slot;
}

static void custom_ended(void *state, uint32_t slot, void *data, plb_outcome outcome, uint64_t latency_us)
{
    custom_state *self = (custom_state *)state;
    self->ended++;
    self->last_slot = slot;
    self->last_outcome = outcome;
    self->lied = self->lied || (*(uint64_t *)data)-- == 0;
    self->last_latency_us = latency_us;
}

static const plb_strategy_ops walking_ops = {.name = "walking",
                                             .state_size = sizeof(custom_state),
                                             .open = custom_open,
                                             .close = custom_close,
                                             .build = custom_build,
                                             .discard = custom_discard,
                                             .first = custom_first,
                                             .next = custom_next};
static const plb_strategy_ops picking_ops = {.name = "picking",
                                             .state_size = sizeof(custom_state),
                                             .slot_size = sizeof(uint64_t),
                                             .open = custom_open,
                                             .close = custom_close,
                                             .build = custom_build,
                                             .discard = custom_discard,
                                             .first = custom_first,
                                             .next = custom_next,
                                             .pick = custom_pick,
                                             .began = custom_began,
                                             .ended = custom_ended};

static uint32_t first_index(const void *table, const plb_view *view, plb_reader *reader, const void *key,
                            size_t key_length, plb_cursor *cursor)
{
    (void)table;
    (void)key;
    (void)key_length;
    cursor->words[0] = plb_reader_random(reader) % plb_view_count(view);
    return (uint32_t)cursor->words[0];
}

static uint32_t next_index(const void *table, const plb_view *view, plb_reader *reader, plb_cursor *cursor)
{
    (void)table;
    (void)reader;
    return (uint32_t)(++cursor->words[0] % plb_view_count(view));
}

static const plb_strategy_ops minimal_ops = {.name = "minimal", .first = first_index, .next = next_index};

static plb_strategy own_strategy(const plb_strategy_ops *ops)
{
    plb_strategy strategy;
    strategy.ops = ops;
    strategy.desc = ops;
    return strategy;
}

TEST a_strategy_may_be_a_first_and_a_next_and_nothing_else(void)
{
    plb_balancer *lb = balancer_of(own_strategy(&minimal_ops), 5, 1);
    uint32_t i, seen = 0;
    for (i = 0; i < 200; i++)
        seen |= 1u << select_index(lb, "", 0);
    ASSERT_EQ(31, seen);
    for (i = 0; i < 5; i++)
        set_enabled(lb, i, i == 3);
    for (i = 0; i < 20; i++)
        ASSERT_EQ(3, select_index(lb, "", 0));
    plb_destroy(lb);
    PASS();
}

TEST a_strategy_is_shown_the_truth_and_its_tables_are_discarded(void)
{
    const plb_strategy_ops *both[2];
    int which;
    both[0] = &walking_ops;
    both[1] = &picking_ops;
    for (which = 0; which < 2; which++) {
        plb_backend backends[8];
        plb_balancer *lb;
        uint32_t i, round;
        custom_closed = 0;
        for (i = 0; i < 8; i++)
            backends[i] = nth_backend(i, 1 + i);
        lb = balancer(own_strategy(both[which]), backends, 3);
        ASSERT_EQ(1, custom->tables);
        for (round = 0; round < 20; round++) {
            uint32_t from = random_below(6), count = random_below(9 - from);
            ASSERT_EQ(PLB_OK, plb_replace(lb, backends + from, count));
            plb_poll(lb);
            ASSERT_EQ(count > 0, custom->tables);
            set_enabled(lb, random_below(8), round % 2 == 0);
            ASSERT(select_index(lb, "", 0) == PLB_NONE || count > 0);
            ASSERT_FALSE(custom->lied);
        }
        plb_destroy(lb);
        ASSERT_EQ(1, custom_closed);
    }
    PASS();
}

TEST a_strategy_hears_of_each_request_once(void)
{
    plb_balancer *lb = balancer_of(own_strategy(&picking_ops), 3, 1);
    plb_pick picks[6];
    plb_addr addr;
    uint32_t per_slot[3] = {0, 0, 0};
    int i;
    for (i = 0; i < 6; i++) {
        ASSERT_EQ(PLB_OK, plb_begin(lb, NULL, &picks[i]));
        ASSERT_EQ(i + 1, custom->began);
        ASSERT_EQ(picks[i].slot, custom->last_slot);
        ASSERT(picks[i].slot < 3);
        per_slot[picks[i].slot]++;
    }
    for (i = 0; i < 3; i++)
        ASSERT_EQ(2, per_slot[i]); /* the fewest in flight, each time */
    ASSERT_EQ(PLB_OK, plb_select(lb, "", 0, 0, &addr));
    ASSERT_EQ(6, custom->began); /* a select holds nothing */
    for (i = 0; i < 5; i++) {
        plb_end(&picks[i], (plb_outcome)i, 100 + (uint64_t)i);
        plb_end(&picks[i], PLB_OUTCOME_SUCCESS, 0);
        ASSERT_EQ(i + 1, custom->ended);
        ASSERT_EQ(picks[i].slot, custom->last_slot);
        ASSERT_EQ(i, custom->last_outcome);
        ASSERT(custom->last_latency_us == 100 + (uint64_t)i);
    }
    plb_destroy(lb);
    plb_end(&picks[5], PLB_OUTCOME_SUCCESS, 0); /* the strategy is gone, and not told */
    PASS();
}

/* Numbers stay small however many backends come and go, so that a strategy may keep arrays by them. */
TEST slot_numbers_are_used_again(void)
{
    plb_balancer *lb = balancer_of(plb_round_robin(), 2, 1);
    uint32_t round, i;
    for (round = 0; round < 100; round++) {
        plb_backend backends[2];
        plb_pick pick;
        for (i = 0; i < 2; i++)
            backends[i] = nth_backend(2 * round + i, 1);
        ASSERT_EQ(PLB_OK, plb_replace(lb, backends, 2));
        plb_poll(lb);
        ASSERT_EQ(PLB_OK, plb_begin(lb, NULL, &pick));
        ASSERT(pick.slot < 6); /* two in the set, and two in each of the sets that wait to be freed */
        plb_end(&pick, PLB_OUTCOME_SUCCESS, 0);
    }
    plb_destroy(lb);
    PASS();
}

/* ==== THE LIST ==================================================================================================== */

SUITE(selecting)
{
    RUN_TEST(an_empty_set_says_so);
    RUN_TEST(a_set_without_a_ready_backend_says_so);
    RUN_TEST(a_key_may_be_null);
    RUN_TEST(a_single_backend_gets_everything);
    RUN_TEST(without_a_limit_the_one_ready_backend_is_found);
    RUN_TEST(with_a_limit_the_raw_sequence_is_followed_that_far);
    RUN_TEST(the_fast_path_and_the_walk_give_the_same_answers);
    RUN_TEST(round_robin_spreads_the_share_of_an_unready_backend_evenly);
    RUN_TEST(find_tells_what_is_known_of_a_backend);
    RUN_TEST(the_round_robin_counter_survives_updates);
    RUN_TEST(a_backend_of_weight_0_is_in_the_set_and_never_picked);
    RUN_TEST(the_unweighted_walk_goes_through_backends_of_weight_0);
    RUN_TEST(weights_that_are_all_0_are_not_ready_and_can_be_walked);
    RUN_TEST(duplicates_that_differ_in_weight_stay_apart_and_share_a_slot);
    RUN_TEST(two_services_on_one_address_are_told_apart_by_id);
    RUN_TEST(unix_sockets_are_on_the_ketama_ring);
}

SUITE(accepting_and_excluding)
{
    RUN_TEST(accept_is_asked_once_for_each_distinct_backend);
    RUN_TEST(accept_is_asked_in_the_order_of_the_raw_sequence);
    RUN_TEST(accept_is_asked_within_the_limit_only);
    RUN_TEST(accept_is_asked_once_for_each_of_more_than_65536_backends);
    RUN_TEST(accept_may_take_any_backend_an_unready_one_too);
    RUN_TEST(excluded_backends_are_not_taken);
    RUN_TEST(exclusion_counts_within_the_limit);
    RUN_TEST(accept_is_shown_excluded_backends_as_not_ready);
}

SUITE(holding)
{
    RUN_TEST(a_pick_tells_all_about_its_backend);
    RUN_TEST(ending_twice_or_without_a_pick_has_no_effect);
    RUN_TEST(a_pick_outlives_its_set);
    RUN_TEST(picks_outlive_the_balancer_and_the_last_end_releases);
    RUN_TEST(an_ext_that_was_released_may_be_handed_over_again);
    RUN_TEST(a_backend_is_not_ready_while_max_conns_are_in_flight);
    RUN_TEST(others_are_picked_while_one_is_full);
    RUN_TEST(max_conns_may_change_with_requests_in_flight);
    RUN_TEST(a_full_backend_stays_full_across_updates);
    RUN_TEST(accept_cannot_exceed_max_conns);
    RUN_TEST(max_conns_is_exact_among_threads);
    RUN_TEST(what_threads_switch_at_once_can_all_be_drawn);
    RUN_TEST(a_list_that_was_left_behind_catches_up);
    RUN_TEST(a_limit_that_comes_while_requests_end_leaves_no_backend_stuck);
}

SUITE(walking)
{
    RUN_TEST(a_walk_goes_on_over_its_set_while_sets_change);
    RUN_TEST(each_shows_every_backend_in_set_order_until_told_to_stop);
    RUN_TEST(enabling_is_told_apart_from_readiness);
}

SUITE(own_strategies)
{
    RUN_TEST(a_strategy_may_be_a_first_and_a_next_and_nothing_else);
    RUN_TEST(a_strategy_is_shown_the_truth_and_its_tables_are_discarded);
    RUN_TEST(a_strategy_hears_of_each_request_once);
    RUN_TEST(slot_numbers_are_used_again);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(selecting);
    RUN_SUITE(accepting_and_excluding);
    RUN_SUITE(holding);
    RUN_SUITE(walking);
    RUN_SUITE(own_strategies);
    GREATEST_MAIN_END();
}
