/* Maglev and rendezvous hashing, and the hash of keys under both: shares that follow the weights, keys that stay where
   they are, and answers that no later version may change. */
#define _POSIX_C_SOURCE 200809L
#define PINGORA_LB_IMPLEMENTATION
#include "../pingora_lb.h"
#include <greatest.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

enum { BACKENDS_MAX = 1000, KEYS = 100000 };

/* ==== BALANCERS TO PICK FROM ====================================================================================== */

typedef plb_strategy (*strategy_fn)(void);

static plb_strategy maglev(void)
{
    return plb_maglev(NULL);
}

static const strategy_fn strategies[] = {maglev, plb_rendezvous};

static char last_log[400];

static void keep_log(void *user, plb_log_level level, const char *line)
{
    (void)user;
    (void)level;
    snprintf(last_log, sizeof last_log, "%s", line);
}

static plb_status create(plb_strategy strategy, const plb_backend *backends, size_t count, plb_balancer **lb)
{
    plb_static_desc list;
    plb_balancer_desc desc;
    memset(&list, 0, sizeof list);
    memset(&desc, 0, sizeof desc);
    list.backends = backends;
    list.backend_count = count;
    desc.discovery = plb_static(&list);
    desc.strategy = strategy;
    desc.log = keep_log;
    return plb_create(&desc, lb);
}

static plb_balancer *balancer(plb_strategy strategy, const plb_backend *backends, size_t count)
{
    plb_balancer *lb;
    if (create(strategy, backends, count, &lb) != PLB_OK) {
        fprintf(stderr, "test_hashing: no balancer\n");
        abort();
    }
    return lb;
}

static plb_backend backend(const char *text, uint32_t weight)
{
    plb_backend b;
    if (plb_backend_parse(&b, text, PLB_ZSTRING, NULL) != PLB_OK) {
        fprintf(stderr, "test_hashing: '%s' is no address\n", text);
        abort();
    }
    b.weight = weight;
    return b;
}

/* Number i of many, in set order. */
static plb_backend nth_backend(uint32_t i, uint32_t weight)
{
    plb_backend b;
    memset(&b, 0, sizeof b);
    b.addr.family = PLB_FAMILY_IPV4;
    b.addr.port = 80;
    b.addr.u.v4[0] = 10;
    b.addr.u.v4[1] = (uint8_t)(i >> 16);
    b.addr.u.v4[2] = (uint8_t)(i >> 8);
    b.addr.u.v4[3] = (uint8_t)i;
    b.weight = weight;
    return b;
}

/* The number that nth_backend made this address from. */
static uint32_t index_of(const plb_addr *addr)
{
    return (uint32_t)addr->u.v4[1] << 16 | (uint32_t)addr->u.v4[2] << 8 | addr->u.v4[3];
}

static plb_backend backends_of[BACKENDS_MAX];

/* Backends 0 to count - 1, without `left_out`; weights[i % period]. */
static plb_balancer *balancer_of(plb_strategy strategy, uint32_t count, const uint32_t *weights, uint32_t period,
                                 uint32_t left_out)
{
    uint32_t i, used = 0;
    for (i = 0; i < count; i++)
        if (i != left_out)
            backends_of[used++] = nth_backend(i, weights[i % period]);
    return balancer(strategy, backends_of, used);
}

static const uint32_t ones[] = {1};
static const uint32_t one_to_ten[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};

static void set_enabled(plb_balancer *lb, uint32_t i, bool enabled)
{
    plb_backend b = nth_backend(i, 1);
    if (plb_set_enabled(lb, &b.addr, 0, enabled) != PLB_OK)
        abort();
}

static uint32_t select_limited(plb_balancer *lb, const void *key, size_t length, uint32_t limit)
{
    plb_addr addr;
    return plb_select(lb, key, length, limit, &addr) == PLB_OK ? index_of(&addr) : PLB_NONE;
}

/* Of key number k. */
static uint32_t select_key(plb_balancer *lb, uint32_t k)
{
    char key[24];
    return select_limited(lb, key, (size_t)snprintf(key, sizeof key, "/item/%u", (unsigned)k), 0);
}

static void raw_sequence(plb_balancer *lb, uint32_t k, uint32_t *out, uint32_t count)
{
    plb_walk walk;
    plb_backend_info info;
    char key[24];
    uint32_t i;
    if (plb_walk_begin(&walk, lb, key, (size_t)snprintf(key, sizeof key, "/item/%u", (unsigned)k)) != PLB_OK)
        abort();
    for (i = 0; i < count; i++) {
        plb_walk_next(&walk, &info);
        out[i] = index_of(&info.backend.addr);
    }
    plb_walk_end(&walk);
}

static const plb__set *set_of(const plb_balancer *lb)
{
    return (const plb__set *)lb->current;
}

/* How many places of a Maglev table each backend has. */
static void count_places(const plb_balancer *lb, uint32_t *places)
{
    const plb__maglev_table *table = (const plb__maglev_table *)set_of(lb)->tiers[0].table;
    uint32_t i;
    memset(places, 0, set_of(lb)->tiers[0].view.count * sizeof *places);
    for (i = 0; i < table->places; i++)
        places[plb__maglev_owner(table, i)]++;
}

/* ==== STATISTICS ================================================================================================== */

static double root(double x)
{
    double r = x > 1 ? x : 1;
    int i;
    for (i = 0; i < 60; i++)
        r = (r + x / r) / 2;
    return r;
}

/* Do the counts differ from what the weights say by less than chance does 999 times in 1000? Pearson's test; the
   quantile by Wilson and Hilferty. `left_out` must have none. */
static bool follows(const uint32_t *counts, const uint32_t *weights, uint32_t n, uint32_t left_out)
{
    double sum = 0, total = 0, chi = 0, freedom = -1, cube;
    uint32_t i;
    for (i = 0; i < n; i++) {
        if (i == left_out)
            continue;
        sum += weights[i];
        total += counts[i];
        freedom += weights[i] > 0;
    }
    for (i = 0; i < n; i++) {
        double expected = i == left_out ? 0 : total * weights[i] / sum;
        if (expected > 0)
            chi += (counts[i] - expected) * (counts[i] - expected) / expected;
        else if (counts[i] != 0)
            return false;
    }
    if (freedom < 1)
        return true;
    cube = 1 - 2 / (9 * freedom) + 3.0902 * root(2 / (9 * freedom));
    if (chi > freedom * cube * cube * cube)
        fprintf(stderr, "chi-square %.1f of %.1f\n", chi, freedom * cube * cube * cube);
    return chi <= freedom * cube * cube * cube;
}

static uint64_t random_state = 1;

static uint64_t random_bits(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state * UINT64_C(0x2545f4914f6cdd1d);
}

static uint32_t random_below(uint32_t limit)
{
    return (uint32_t)((random_bits() >> 32) * limit >> 32);
}

/* ==== THE HASH OF KEYS ============================================================================================ */

/* Whatever changes these moves every key of every user. */
TEST the_hash_never_changes(void)
{
    static const struct {
        const char *key;
        uint64_t hash;
    } golden[] = {
        {"", UINT64_C(0x04ea588fb5937223)},
        {"a", UINT64_C(0xa357c0c7070f3922)},
        {"ab", UINT64_C(0x2188f64144363156)},
        {"abc", UINT64_C(0xfce2f47c93921aa3)},
        {"/x/y", UINT64_C(0x5c40570e69daa69c)},
        {"12345", UINT64_C(0x8dfbb8be60c59cc2)},
        {"1234567", UINT64_C(0xe671212894163aa6)},
        {"12345678", UINT64_C(0x35a6e4a42b5089da)},
        {"123456789", UINT64_C(0xe1e2bcdecf167472)},
        {"/path/to/resource/000001", UINT64_C(0x020c1b0ee002596e)},
        {"0123456789abcdef", UINT64_C(0xdcc960a582afc975)},
        {"0123456789abcdefg", UINT64_C(0x022aa7168e35ae61)},
        {"0123456789abcdef0123456789abcdef", UINT64_C(0x24c51bc06d2d7374)},
        {"0123456789abcdef0123456789abcdef!", UINT64_C(0xbfc1cdfa41444b00)},
        {"the quick brown fox jumps over the lazy dog", UINT64_C(0x15a2e093e1559024)},
    };
    size_t i;
    for (i = 0; i < COUNT(golden); i++)
        ASSERT_EQ_FMT(golden[i].hash, plb__hash64(golden[i].key, strlen(golden[i].key)), "0x%016" PRIx64);
    ASSERT(plb__hash64(NULL, 0) == plb__hash64("", 0));
    PASS();
}

/* Whichever byte of a key a bit is flipped in, each bit of its hash flips half of the time: of 4096 keys with 2048,
   give or take six standard deviations. */
TEST each_byte_of_a_key_decides_over_each_bit_of_its_hash(void)
{
    static const size_t lengths[] = {2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 25, 32, 33, 50};
    enum { ROUNDS = 4096, TOLERANCE = 6 * 32 };
    size_t l, byte;
    for (l = 0; l < COUNT(lengths); l++) {
        for (byte = 0; byte < lengths[l]; byte++) {
            uint32_t bit = random_below(8), flips[64], round, i;
            memset(flips, 0, sizeof flips);
            for (round = 0; round < ROUNDS; round++) {
                uint8_t key[64];
                uint64_t hash;
                for (i = 0; i < lengths[l]; i++)
                    key[i] = (uint8_t)(random_bits() >> 40);
                hash = plb__hash64(key, lengths[l]);
                key[byte] ^= (uint8_t)(1u << bit);
                hash ^= plb__hash64(key, lengths[l]);
                for (i = 0; i < 64; i++)
                    flips[i] += (uint32_t)(hash >> i & 1);
            }
            for (i = 0; i < 64; i++)
                ASSERT(flips[i] > ROUNDS / 2 - TOLERANCE && flips[i] < ROUNDS / 2 + TOLERANCE);
        }
    }
    PASS();
}

/* Of any length, zeros too; and short keys are many: numbers, counted. */
TEST different_keys_have_different_hashes(void)
{
    static uint64_t seen[65536];
    static const uint8_t zeros[200] = {0};
    static const char *const forms[] = {"%u", "user %u", "/path/to/resource/%u",
                                        "/a/path/that/is/longer/%u/and/goes/on"};
    uint32_t i, j;
    size_t f;
    for (i = 0; i < 200; i++) {
        seen[i] = plb__hash64(zeros, i);
        for (j = 0; j < i; j++)
            ASSERT(seen[i] != seen[j]);
    }
    for (f = 0; f < COUNT(forms); f++) {
        memset(seen, 0, sizeof seen);
        for (i = 0; i < 40000; i++) { /* in a table of hashes, by their upper bits */
            char key[64];
            uint64_t hash = plb__hash64(key, (size_t)snprintf(key, sizeof key, forms[f], (unsigned)(i * 37)));
            for (j = (uint32_t)(hash >> 48); seen[j] != 0; j = (j + 1) % 65536)
                ASSERT(seen[j] != hash);
            seen[j] = hash;
        }
    }
    PASS();
}

/* Under the address sanitizer: not a byte past the key is read, wherever it lies. */
TEST a_hash_depends_on_the_bytes_of_the_key_alone(void)
{
    uint8_t bytes[100];
    size_t length, shift, i;
    for (i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)random_bits();
    for (length = 1; length <= sizeof bytes; length++) {
        for (shift = 0; shift < 8; shift++) {
            uint8_t *copy = (uint8_t *)malloc(shift + length);
            ASSERT(copy != NULL);
            memcpy(copy + shift, bytes, length);
            ASSERT(plb__hash64(copy + shift, length) == plb__hash64(bytes, length));
            free(copy);
        }
    }
    PASS();
}

/* ==== BOTH ======================================================================================================== */

/* An upgrade must not move keys. */
TEST the_answers_never_change(void)
{
    static const struct {
        uint32_t strategy, key, picks[4];
    } golden[] = {
        {0, 0, {6, 3, 4, 6}},  {0, 1, {4, 1, 0, 1}},  {0, 2, {3, 4, 4, 3}},     {0, 3, {6, 0, 3, 3}},
        {0, 10, {6, 3, 1, 6}}, {0, 77, {3, 6, 3, 3}}, {0, 12345, {1, 3, 2, 3}}, {0, 999999, {6, 4, 3, 6}},
        {1, 0, {0, 2, 4, 3}},  {1, 1, {6, 1, 2, 4}},  {1, 2, {6, 0, 4, 3}},     {1, 3, {6, 3, 2, 0}},
        {1, 10, {6, 4, 3, 2}}, {1, 77, {6, 5, 4, 3}}, {1, 12345, {3, 4, 6, 2}}, {1, 999999, {6, 4, 0, 5}},
    };
    static const char *const texts[] = {"10.0.0.1:80",    "10.0.0.2:80",      "10.0.0.2:81",
                                        "[fe80::1%3]:80", "[2001:db8::1]:80", "unix:/run/a"};
    plb_backend backends[7];
    size_t s, i;
    for (i = 0; i < 6; i++)
        backends[i] = backend(texts[i], (uint32_t)(1 + i % 3));
    backends[6] = backends[0];
    backends[6].id = 7;
    for (s = 0; s < COUNT(strategies); s++) {
        plb_balancer *lb = balancer(strategies[s](), backends, 7);
        for (i = 0; i < COUNT(golden); i++) {
            const plb__set *set = set_of(lb);
            plb_cursor cursor;
            char key[24];
            size_t length = (size_t)snprintf(key, sizeof key, "/item/%u", (unsigned)golden[i].key), p;
            uint32_t index;
            if (golden[i].strategy != s)
                continue;
            index = set->strategy->first(set->tiers[0].table, &set->tiers[0].view, NULL, key, length, &cursor);
            for (p = 0; p < 4; p++) {
                ASSERT_EQ_FMT(golden[i].picks[p], index, "%u");
                index = set->strategy->next(set->tiers[0].table, &set->tiers[0].view, NULL, &cursor);
            }
        }
        plb_destroy(lb);
    }
    PASS();
}

TEST the_order_in_which_a_set_is_told_does_not_matter(void)
{
    size_t s;
    uint32_t i, k;
    for (s = 0; s < COUNT(strategies); s++) {
        plb_backend forth[30], back[30];
        plb_balancer *a, *b;
        for (i = 0; i < 30; i++)
            forth[i] = back[29 - i] = nth_backend(i, 1 + i % 4);
        a = balancer(strategies[s](), forth, 30);
        b = balancer(strategies[s](), back, 30);
        for (k = 0; k < 1000; k++)
            ASSERT_EQ_FMT(select_key(a, k), select_key(b, k), "%u");
        plb_destroy(a);
        plb_destroy(b);
    }
    PASS();
}

TEST sets_of_none_and_one(void)
{
    static const char *const texts[] = {"10.0.0.0:80", "[::1]:80", "unix:/run/a"};
    size_t s, t;
    uint32_t k;
    plb_addr addr;
    for (s = 0; s < COUNT(strategies); s++) {
        plb_balancer *lb = balancer(strategies[s](), NULL, 0);
        ASSERT_EQ(PLB_ERR_EMPTY, plb_select(lb, "k", 1, 0, &addr));
        plb_destroy(lb);
        for (t = 0; t < COUNT(texts); t++) {
            plb_backend b = backend(texts[t], 1 + (uint32_t)t * 32767);
            lb = balancer(strategies[s](), &b, 1);
            for (k = 0; k < 100; k++) {
                ASSERT_EQ(PLB_OK, plb_select(lb, &k, k % 5 > 0 ? 4 : 0, k % 3, &addr));
                ASSERT_EQ(0, plb_addr_compare(&addr, &b.addr));
            }
            ASSERT_EQ(PLB_OK, plb_select(lb, NULL, 0, 0, &addr));
            ASSERT_EQ(PLB_OK, plb_set_enabled(lb, &b.addr, 0, false));
            ASSERT_EQ(PLB_ERR_NOT_READY, plb_select(lb, "k", 1, 0, &addr));
            ASSERT_EQ(PLB_ERR_NOT_READY, plb_select(lb, "k", 1, 100, &addr));
            plb_destroy(lb);
        }
    }
    PASS();
}

/* Two services on one address, and one backend with two weights, share the keys as any others. */
TEST backends_of_one_address_have_a_share_each(void)
{
    size_t s;
    uint32_t i, k;
    for (s = 0; s < COUNT(strategies); s++) {
        plb_backend backends[4];
        uint32_t counts[4] = {0, 0, 0, 0}, weights[4];
        plb_balancer *lb;
        const plb__set *set;
        for (i = 0; i < 4; i++) {
            backends[i] = backend("10.0.0.1:80", 1 + i % 2);
            backends[i].id = i / 2;
        }
        lb = balancer(strategies[s](), backends, 4);
        set = set_of(lb);
        ASSERT_EQ_FMT(4u, (unsigned)set->tiers[0].view.count, "%u");
        for (k = 0; k < KEYS; k++)
            counts[set->strategy->pick(set->tiers[0].table, &set->tiers[0].view, NULL, &k, sizeof k, 0)]++;
        for (i = 0; i < 4; i++)
            weights[i] = plb_view_weight(&set->tiers[0].view, i);
        ASSERT(follows(counts, weights, 4, PLB_NONE));
        plb_destroy(lb);
    }
    PASS();
}

/* In the set, and never picked; where all weigh 0, a walk still comes to each. */
TEST weight_0_gets_nothing(void)
{
    static const uint32_t weights[] = {0, 3, 0, 1}, zeros[] = {0};
    size_t s;
    uint32_t i, k, raw[10];
    for (s = 0; s < COUNT(strategies); s++) {
        plb_balancer *lb = balancer_of(strategies[s](), 10, weights, 4, PLB_NONE);
        for (k = 0; k < 2000; k++)
            ASSERT(weights[select_key(lb, k) % 4] > 0);
        plb_destroy(lb);
        lb = balancer_of(strategies[s](), 10, zeros, 1, PLB_NONE);
        ASSERT_EQ(PLB_NONE, select_key(lb, 1));
        ASSERT_EQ(PLB_NONE, select_limited(lb, "k", 1, 100));
        raw_sequence(lb, 1, raw, 10);
        for (i = 0; i < 10; i++)
            ASSERT_EQ_FMT(i, raw[i], "%u");
        plb_destroy(lb);
    }
    PASS();
}

/* The others' keys stay; its own go to the others as their weights say, and come back with it. */
TEST an_unready_backends_keys_are_shared_and_no_other_moves(void)
{
    enum { N = 20, DOWN = 7, MANY = 400000 };
    static uint32_t before[MANY];
    size_t s;
    uint32_t i, k, counts[N], weights[N];
    for (s = 0; s < COUNT(strategies); s++) {
        plb_balancer *lb = balancer_of(strategies[s](), N, one_to_ten, 10, PLB_NONE);
        for (k = 0; k < MANY; k++)
            before[k] = select_key(lb, k);
        set_enabled(lb, DOWN, false);
        memset(counts, 0, sizeof counts);
        for (k = 0; k < MANY; k++) {
            uint32_t now = select_key(lb, k);
            if (before[k] == DOWN)
                counts[now]++;
            else
                ASSERT_EQ_FMT(before[k], now, "%u");
        }
        for (i = 0; i < N; i++)
            weights[i] = one_to_ten[i % 10];
        if (strategies[s] == maglev)
            count_places(lb, weights);
        ASSERT(follows(counts, weights, N, DOWN));
        set_enabled(lb, DOWN, true);
        for (k = 0; k < MANY; k += 10)
            ASSERT_EQ_FMT(before[k], select_key(lb, k), "%u");
        plb_destroy(lb);
    }
    PASS();
}

/* And it is the same one each time. */
TEST without_a_limit_a_ready_backend_is_found(void)
{
    static const uint32_t sizes[] = {1, 2, 3, 31, 32, 33, 63, 64, 65, 128, 1000}, steep[] = {65535, 1, 1};
    size_t s, n;
    uint32_t i, round;
    for (s = 0; s < COUNT(strategies); s++) {
        for (n = 0; n < COUNT(sizes); n++) {
            plb_balancer *lb = balancer_of(strategies[s](), sizes[n], steep, 3, PLB_NONE);
            for (i = 0; i < sizes[n]; i++)
                set_enabled(lb, i, false);
            for (round = 0; round < 60; round++) {
                uint32_t a = round == 0 ? 0 : round == 1 ? sizes[n] - 1 : random_below(sizes[n]), got;
                uint32_t b = round < 20 ? a : random_below(sizes[n]);
                set_enabled(lb, a, true);
                set_enabled(lb, b, true);
                got = select_key(lb, round);
                ASSERT(got == a || got == b);
                ASSERT_EQ_FMT(got, select_key(lb, round), "%u");
                set_enabled(lb, a, false);
                set_enabled(lb, b, false);
            }
            plb_destroy(lb);
        }
    }
    PASS();
}

/* With most of them down the ready ones still share as their weights say, and a flip moves only the keys of the one
   that flips: of Maglev's, as long as a quarter is ready. */
TEST few_ready_backends_share_evenly_too(void)
{
    enum { N = 200 };
    static uint32_t before[KEYS];
    size_t s;
    uint32_t i, k, counts[N], weights[N], one_in;
    for (s = 0; s < 2 * COUNT(strategies); s++) {
        plb_balancer *lb = balancer_of(strategies[s / 2](), N, one_to_ten, 10, PLB_NONE);
        for (i = 0; i < N; i++)
            weights[i] = one_to_ten[i % 10];
        if (strategies[s / 2] == maglev)
            count_places(lb, weights);
        one_in = s % 2 == 0 ? 11 : 3;
        for (i = 0; i < N; i++) {
            set_enabled(lb, i, i % one_in == 14 % one_in);
            weights[i] = i % one_in == 14 % one_in ? weights[i] : 0;
        }
        memset(counts, 0, sizeof counts);
        for (k = 0; k < KEYS; k++)
            counts[before[k] = select_key(lb, k)]++;
        ASSERT(one_in == 3 || strategies[s / 2] != maglev || follows(counts, weights, N, PLB_NONE));
        set_enabled(lb, 14, false);
        for (k = 0; k < KEYS; k++)
            if (before[k] != 14 && (one_in == 3 || strategies[s / 2] != maglev))
                ASSERT_EQ_FMT(before[k], select_key(lb, k), "%u");
        plb_destroy(lb);
    }
    PASS();
}

/* The first ready backend among the first `limit` of the raw sequence. */
TEST limits_are_counted_along_the_raw_sequence(void)
{
    enum { N = 20, RAW = 300 };
    static uint32_t raw[RAW];
    size_t s;
    uint32_t i, k, limit;
    for (s = 0; s < COUNT(strategies); s++) {
        plb_balancer *lb = balancer_of(strategies[s](), N, one_to_ten, 10, PLB_NONE);
        for (k = 0; k < 60; k++) {
            uint32_t expected = PLB_NONE, found_at = 0;
            bool up[N];
            char key[24];
            size_t length = (size_t)snprintf(key, sizeof key, "/item/%u", (unsigned)k);
            for (i = 0; i < N; i++)
                set_enabled(lb, i, up[i] = random_below(6) == 0);
            raw_sequence(lb, k, raw, RAW);
            for (i = 0; i < RAW && expected == PLB_NONE; i++) {
                if (up[raw[i]])
                    expected = raw[i];
                found_at = i + 1;
            }
            for (limit = 1; limit < RAW; limit++)
                ASSERT_EQ_FMT(limit >= found_at ? expected : PLB_NONE, select_limited(lb, key, length, limit), "%u");
            ASSERT_EQ_FMT(expected, select_limited(lb, key, length, UINT32_MAX), "%u");
            if (expected != PLB_NONE && strategies[s] == maglev) /* few are ready, so it need not be the first */
                ASSERT(up[select_limited(lb, key, length, 0)]);
            else if (expected != PLB_NONE)
                ASSERT_EQ_FMT(expected, select_limited(lb, key, length, 0), "%u");
        }
        plb_destroy(lb);
    }
    PASS();
}

/* A retry that excludes what has failed gets what would be picked if that were down. */
TEST excluded_and_unready_come_to_the_same(void)
{
    size_t s;
    uint32_t k, first, slot;
    for (s = 0; s < COUNT(strategies); s++) {
        plb_balancer *lb = balancer_of(strategies[s](), 30, one_to_ten, 10, PLB_NONE);
        for (k = 0; k < 200; k++) {
            plb_request request;
            plb_backend_info info;
            plb_backend b;
            plb_addr addr;
            char key[24];
            memset(&request, 0, sizeof request);
            request.key = key;
            request.key_length = (size_t)snprintf(key, sizeof key, "/item/%u", (unsigned)k);
            first = select_key(lb, k);
            b = nth_backend(first, 1);
            ASSERT_EQ(PLB_OK, plb_find(lb, &b.addr, 0, &info));
            slot = info.slot;
            request.exclude = &slot;
            request.exclude_count = 1;
            ASSERT_EQ(PLB_OK, plb_select_with(lb, &request, &addr));
            set_enabled(lb, first, false);
            ASSERT_EQ_FMT(select_key(lb, k), index_of(&addr), "%u");
            ASSERT(index_of(&addr) != first);
            set_enabled(lb, first, true);
        }
        plb_destroy(lb);
    }
    PASS();
}

static int allocations_left;
static size_t bytes_out;

static void *scarce_alloc(void *user, size_t size)
{
    (void)user;
    if (allocations_left-- <= 0)
        return NULL;
    bytes_out += size;
    return malloc(size);
}

static void scarce_dealloc(void *user, void *ptr, size_t size)
{
    (void)user;
    bytes_out -= size;
    free(ptr);
}

/* Whichever allocation of a build fails, it says so and leaves nothing behind. */
TEST a_build_without_memory_leaves_nothing_behind(void)
{
    static const int allocations[] = {2, 1};
    size_t s;
    int n;
    for (s = 0; s < COUNT(strategies); s++) {
        plb_balancer *lb = balancer_of(strategies[s](), 20, one_to_ten, 10, PLB_NONE);
        const plb__set *set = set_of(lb);
        union {
            plb__maglev_state maglev;
            plb_allocator rendezvous;
        } state;
        plb_env env;
        void *table = NULL;
        memset(&state, 0, sizeof state);
        memset(&env, 0, sizeof env);
        env.balancer = lb;
        env.allocator.alloc = scarce_alloc;
        env.allocator.dealloc = scarce_dealloc;
        ASSERT_EQ(PLB_OK, set->strategy->open(&state, lb->desc.strategy.desc, &env));
        for (n = 0; n < allocations[s]; n++) {
            allocations_left = n;
            ASSERT_EQ(PLB_ERR_MEMORY, set->strategy->build(&state, &set->tiers[0].view, NULL, NULL, &table));
            ASSERT_EQ_FMT((size_t)0, bytes_out, "%zu");
        }
        allocations_left = n;
        ASSERT_EQ(PLB_OK, set->strategy->build(&state, &set->tiers[0].view, NULL, NULL, &table));
        set->strategy->discard(&state, table);
        ASSERT_EQ_FMT((size_t)0, bytes_out, "%zu");
        plb_destroy(lb);
    }
    PASS();
}

/* ==== MAGLEV ====================================================================================================== */

/* The example of the paper, table 1: seven places, three orders, and what the table is without the second of them. */
TEST the_table_is_filled_as_in_the_paper(void)
{
    static const uint16_t before[] = {1, 0, 1, 0, 2, 2, 0}, after[] = {0, 0, 0, 0, 2, 2, 2};
    static const uint32_t offsets[] = {3, 0, 3}, skips[] = {4, 2, 1};
    uint32_t round, i, weights[] = {1, 1, 1};
    for (round = 0; round < 2; round++) {
        plb_balancer *lb;
        const plb__set *set;
        plb__maglev_work work;
        plb__maglev_table *table;
        weights[1] = round == 0;
        lb = balancer_of(maglev(), 3, weights, 3, PLB_NONE);
        set = set_of(lb);
        table = plb__maglev_table_new(&lb->env.allocator, 7, 3);
        ASSERT(table != NULL && plb__maglev_work_open(&work, &lb->env.allocator, &set->tiers[0].view, 7));
        plb__maglev_start(&work, &set->tiers[0].view, 7);
        for (i = 0; i < 3; i++) {
            work.fillers[i].place = offsets[i];
            work.fillers[i].skip = skips[i];
        }
        plb__maglev_fill(table, &work, &set->tiers[0].view);
        for (i = 0; i < 7; i++)
            ASSERT_EQ_FMT(round == 0 ? before[i] : after[i], table->owners16[i], "%u");
        plb__delete(&lb->env.allocator, work.hashes, work.size);
        plb__table_discard(lb->strategy_state, table);
        plb_destroy(lb);
    }
    PASS();
}

/* Equal weights: within one place. Others: within one of what the weight says, and with 100 backends within a percent
   of it. */
TEST shares_of_the_table_follow_the_weights(void)
{
    static const struct {
        uint32_t n, weights[10];
    } sets[] = {{100, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1}},  {100, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}},
                {1000, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1}}, {7, {65535, 1000, 1, 1, 300, 65535, 7, 1, 1, 1}},
                {2, {1, 3, 1, 1, 1, 1, 1, 1, 1, 1}},    {999, {1, 65535, 1, 1, 10, 1, 1, 1, 1, 1}}};
    static uint32_t places[1000];
    size_t s;
    uint32_t i;
    for (s = 0; s < COUNT(sets); s++) {
        plb_balancer *lb = balancer_of(maglev(), sets[s].n, sets[s].weights, 10, PLB_NONE);
        double sum = plb_view_weight_sum(&set_of(lb)->tiers[0].view), total = 0, light = 0;
        count_places(lb, places);
        for (i = 0; i < sets[s].n; i++) /* places that are rounded up from less than one are not there for others */
            light += 65537 * sets[s].weights[i % 10] / sum < 1;
        for (i = 0; i < sets[s].n; i++) {
            double exact = 65537 * sets[s].weights[i % 10] / sum, off = places[i] - exact;
            ASSERT(places[i] > 0);
            ASSERT(off <= 1.0 + 1e-9 && off >= -1.0 - exact / 65537 * (light + sets[s].n));
            if (sets[s].n == 100)
                ASSERT(off <= exact / 100 && off >= -exact / 100);
            total += places[i];
        }
        ASSERT_EQ(65537, (int)total);
        plb_destroy(lb);
    }
    PASS();
}

TEST keys_follow_the_shares_of_the_table(void)
{
    enum { N = 100 };
    uint32_t i, k, counts[N], places[N], weights[N];
    plb_balancer *lb = balancer_of(maglev(), N, one_to_ten, 10, PLB_NONE);
    memset(counts, 0, sizeof counts);
    for (k = 0; k < KEYS; k++)
        counts[select_key(lb, k)]++;
    count_places(lb, places);
    ASSERT(follows(counts, places, N, PLB_NONE));
    for (i = 0; i < N; i++)
        weights[i] = one_to_ten[i % 10];
    ASSERT(follows(counts, weights, N, PLB_NONE));
    plb_destroy(lb);
    PASS();
}

/* The paper's claim, section 5.3: of the keys that need not move, 2 % at most do. */
TEST few_other_keys_move_when_a_backend_leaves(void)
{
    enum { N = 100 };
    static uint32_t before[KEYS];
    uint32_t k, leaves;
    plb_balancer *all = balancer_of(maglev(), N, ones, 1, PLB_NONE);
    for (k = 0; k < KEYS; k++)
        before[k] = select_key(all, k);
    for (leaves = 0; leaves < N; leaves += 9) {
        plb_balancer *rest = balancer_of(maglev(), N, ones, 1, leaves);
        uint32_t moved = 0;
        for (k = 0; k < KEYS; k++)
            moved += before[k] != leaves && before[k] != select_key(rest, k);
        ASSERT(moved <= KEYS * 2 / 100);
        plb_destroy(rest);
    }
    plb_destroy(all);
    PASS();
}

static plb_strategy ketama(void)
{
    return plb_ketama(NULL);
}

TEST only_its_keys_move_when_a_backend_leaves_the_ring(void)
{
    enum { N = 100, ASKED = 20000 };
    static uint32_t before[ASKED];
    uint32_t k, leaves, its = 0;
    plb_balancer *all = balancer_of(ketama(), N, one_to_ten, 10, PLB_NONE);
    for (k = 0; k < ASKED; k++)
        before[k] = select_key(all, k);
    for (leaves = 0; leaves < N; leaves += 33) {
        plb_balancer *rest = balancer_of(ketama(), N, one_to_ten, 10, leaves);
        for (k = 0; k < ASKED; k++) {
            uint32_t now = select_key(rest, k);
            its += before[k] == leaves;
            ASSERT(before[k] == leaves ? now != leaves : now == before[k]);
        }
        plb_destroy(rest);
    }
    ASSERT(its > 0);
    plb_destroy(all);
    PASS();
}

/* A walk comes to every place of the table, and so to every backend with weight. */
TEST a_walk_goes_through_the_whole_table(void)
{
    static const uint32_t sizes[] = {5, 101, 1009};
    static uint32_t raw[1009], places[5], counts[5];
    size_t s;
    uint32_t i, k;
    for (s = 0; s < COUNT(sizes); s++) {
        plb_maglev_desc desc;
        plb_balancer *lb;
        desc.table_size = sizes[s];
        lb = balancer_of(plb_maglev(&desc), 5, one_to_ten, 10, PLB_NONE);
        count_places(lb, places);
        for (k = 0; k < 50; k++) {
            raw_sequence(lb, k, raw, sizes[s]);
            memset(counts, 0, sizeof counts);
            for (i = 0; i < sizes[s]; i++)
                counts[raw[i]]++;
            ASSERT_MEM_EQ(places, counts, sizeof counts);
        }
        plb_destroy(lb);
    }
    PASS();
}

TEST a_table_size_is_a_prime_within_reason(void)
{
    static const uint32_t good[] = {2,   3,    5,    7,     11,    13,    101,    251,
                                    509, 1021, 4093, 16381, 65521, 65537, 131071, 16777213},
                          bad[] = {1,     4,      6,           9,        15,       25,       49,         65535,
                                   65536, 131078, 4087 * 4093, 16777201, 16777216, 16777259, 4294967291u};
    size_t i;
    for (i = 0; i < COUNT(good); i++) {
        plb_maglev_desc desc;
        plb_balancer *lb;
        uint32_t k;
        desc.table_size = good[i];
        lb = balancer_of(plb_maglev(&desc), 2, ones, 1, PLB_NONE);
        for (k = 0; k < 50; k++)
            ASSERT(select_key(lb, k) < 2);
        plb_destroy(lb);
    }
    for (i = 0; i < COUNT(bad); i++) {
        plb_maglev_desc desc;
        plb_balancer *lb = NULL;
        plb_backend b = nth_backend(0, 1);
        desc.table_size = bad[i];
        ASSERT_EQ_FMT((unsigned)PLB_ERR_ARGUMENT, (unsigned)create(plb_maglev(&desc), &b, 1, &lb), "%u");
        ASSERT(lb == NULL);
    }
    PASS();
}

/* As many backends with weight as places: one each. One more is refused, and what was there serves on. */
TEST more_backends_than_places_are_refused(void)
{
    enum { PLACES = 101 };
    static plb_backend more[PLACES + 11];
    static const uint32_t weights[] = {5, 1, 300};
    uint32_t i, places[PLACES];
    plb_maglev_desc desc;
    plb_balancer *lb;
    plb_update_info info;
    desc.table_size = PLACES;
    lb = balancer_of(plb_maglev(&desc), PLACES, weights, 3, PLB_NONE);
    count_places(lb, places);
    for (i = 0; i < PLACES; i++)
        ASSERT_EQ_FMT(1u, (unsigned)places[i], "%u");
    for (i = 0; i < COUNT(more); i++)
        more[i] = nth_backend(i, i <= PLACES);
    ASSERT_EQ(PLB_OK, plb_replace(lb, more, COUNT(more)));
    plb_poll(lb);
    plb_last_update(lb, &info);
    ASSERT_EQ(PLB_ERR_POINTS, info.status);
    ASSERT(strstr(last_log, "table_size") != NULL);
    ASSERT_EQ_FMT((unsigned)PLACES, (unsigned)info.backends, "%u");
    ASSERT(select_key(lb, 1) < PLACES);
    more[0].weight = 0;
    ASSERT_EQ(PLB_OK, plb_replace(lb, more, COUNT(more)));
    plb_poll(lb);
    plb_last_update(lb, &info);
    ASSERT_EQ(PLB_OK, info.status);
    plb_destroy(lb);
    PASS();
}

TEST more_backends_than_16_bits_can_number(void)
{
    enum { N = 70000, PLACES = 131071 };
    plb_backend *backends = (plb_backend *)calloc(N, sizeof *backends);
    uint32_t *places = (uint32_t *)calloc(N, sizeof *places), i;
    plb_maglev_desc desc;
    plb_balancer *lb;
    ASSERT(backends != NULL && places != NULL);
    for (i = 0; i < N; i++)
        backends[i] = nth_backend(i, 1);
    desc.table_size = PLACES;
    lb = balancer(plb_maglev(&desc), backends, N);
    count_places(lb, places);
    for (i = 0; i < N; i++)
        ASSERT(places[i] == 1 || places[i] == 2);
    for (i = 0; i < 100; i++)
        ASSERT(select_key(lb, i) < N);
    for (i = 0; i < N - 1; i++)
        set_enabled(lb, i, false);
    ASSERT_EQ_FMT((uint32_t)N - 1, select_key(lb, 5), "%u");
    plb_destroy(lb);
    free(places);
    free(backends);
    PASS();
}

/* Where the places hold no ready backend for long: the next in set order, from anywhere in it, wrapping. */
TEST the_next_ready_backend_is_the_next(void)
{
    enum { N = 130 };
    uint32_t i;
    plb_balancer *lb = balancer_of(maglev(), N, ones, 1, PLB_NONE);
    const plb_view *view = &set_of(lb)->tiers[0].view;
    for (i = 0; i < N; i++)
        set_enabled(lb, i, i == 3 || i == 40 || i == 60);
    for (i = 0; i < N; i++)
        ASSERT_EQ_FMT(i <= 3 || i > 60 ? 3u : i <= 40 ? 40u : 60u, plb_view_ready_after(view, i), "%u");
    set_enabled(lb, 3, false);
    set_enabled(lb, 40, false);
    for (i = 0; i < N; i++)
        ASSERT_EQ_FMT(60u, plb_view_ready_after(view, i), "%u");
    set_enabled(lb, 60, false);
    ASSERT_EQ(PLB_NONE, plb_view_ready_after(view, 77));
    plb_destroy(lb);
    PASS();
}

/* ==== RENDEZVOUS ================================================================================================== */

TEST keys_follow_the_weights(void)
{
    static const struct {
        uint32_t n, keys, weights[10];
    } sets[] = {{2, 1000000, {1, 1000}},
                {10, 1000000, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}},
                {5, 1000000, {1000, 1, 1, 1, 500}},
                {3, 1000000, {65535, 65534, 100}},
                {2, 1000000, {1, 1}},
                {100, 200000, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1}},
                {100, 200000, {3, 1, 4, 1, 5, 9, 2, 6, 5, 3}}};
    size_t s;
    uint32_t i, k, counts[100], weights[100];
    for (s = 0; s < COUNT(sets); s++) {
        plb_balancer *lb = balancer_of(plb_rendezvous(), sets[s].n, sets[s].weights, 10, PLB_NONE);
        memset(counts, 0, sizeof counts);
        for (k = 0; k < sets[s].keys; k++) {
            uint32_t index = select_limited(lb, &k, sizeof k, 0);
            ASSERT(index < sets[s].n);
            counts[index]++;
        }
        for (i = 0; i < sets[s].n; i++)
            weights[i] = sets[s].weights[i % 10];
        ASSERT(follows(counts, weights, sets[s].n, PLB_NONE));
        plb_destroy(lb);
    }
    PASS();
}

/* -ln(x), x from 0 to 1, by halving and 2 atanh((1 - x) / (1 + x)). */
static double slow_minus_ln(double x)
{
    double sum = 0, s, power;
    int i;
    for (; x < 0.5; x *= 2)
        sum += 0.69314718055994530942;
    s = (1 - x) / (1 + x);
    power = s;
    for (i = 1; i < 60; i += 2, power *= s * s)
        sum += 2 * power / i;
    return sum;
}

/* In a hundred thousand, where it is large and where it is small. */
TEST the_logarithm_is_one(void)
{
    const double unit = 4398046511104.0; /* 2^42 */
    uint32_t i;
    for (i = 0; i < 200000; i++) {
        uint64_t u = random_bits() >> random_below(60) | 1;
        double small, expected, got;
        if (i % 3 == 0)
            u = ~u; /* near 1 */
        small = (double)(~u) / 18446744073709551616.0;
        expected = small < 1e-4 ? small + small * small / 2 : slow_minus_ln((double)u / 18446744073709551616.0);
        got = (double)plb__minus_ln(u) / unit;
        ASSERT(got >= (double)(~u >> 22) / unit);
        ASSERT(got - expected < 1e-5 * expected + 2 / unit && expected - got < 1e-5 * expected + 2 / unit);
    }
    ASSERT(plb__minus_ln(0) < UINT64_C(1) << 48 && plb__minus_ln(0) >= plb__minus_ln(1));
    ASSERT_EQ(1, (int)plb__minus_ln(UINT64_MAX));
    PASS();
}

/* Whoever comes, leaves, or weighs more: no key goes from one of the others to another. */
TEST no_key_moves_that_need_not(void)
{
    enum { N = 30, CHANGED = 11 };
    static uint32_t before[KEYS];
    uint32_t k, weights[N], moved = 0, gained = 0;
    plb_balancer *all, *rest, *heavier;
    for (k = 0; k < N; k++)
        weights[k] = 1 + k % 7;
    all = balancer_of(plb_rendezvous(), N, weights, N, PLB_NONE);
    rest = balancer_of(plb_rendezvous(), N, weights, N, CHANGED);
    weights[CHANGED] *= 3;
    heavier = balancer_of(plb_rendezvous(), N, weights, N, PLB_NONE);
    for (k = 0; k < KEYS; k++) {
        uint32_t now = select_key(rest, k);
        before[k] = select_key(all, k);
        if (before[k] != CHANGED)
            ASSERT_EQ_FMT(before[k], now, "%u");
        moved += before[k] != now;
        now = select_key(heavier, k);
        if (now != CHANGED)
            ASSERT_EQ_FMT(before[k], now, "%u");
        gained += before[k] != now;
    }
    ASSERT(moved > 0 && gained > 0);
    plb_destroy(all);
    plb_destroy(rest);
    plb_destroy(heavier);
    PASS();
}

/* Weights count only against each other; where they are equal, the greatest lot wins. */
TEST equal_weights_are_as_good_as_none(void)
{
    enum { N = 40 };
    static const uint32_t sevens[] = {7};
    uint32_t k, i;
    plb_balancer *light = balancer_of(plb_rendezvous(), N, ones, 1, PLB_NONE);
    plb_balancer *heavy = balancer_of(plb_rendezvous(), N, sevens, 1, PLB_NONE);
    const plb__rendezvous_table *table = (const plb__rendezvous_table *)set_of(light)->tiers[0].table;
    for (k = 0; k < 20000; k++) {
        char key[24];
        uint64_t hash = plb__hash64(key, (size_t)snprintf(key, sizeof key, "/item/%u", (unsigned)k)), best = 0;
        uint32_t winner = 0;
        for (i = 0; i < N; i++) {
            uint64_t u = plb__mix(hash ^ table->hashes[i]);
            winner = u > best ? i : winner;
            best = u > best ? u : best;
        }
        ASSERT_EQ_FMT(winner, select_key(light, k), "%u");
        ASSERT_EQ_FMT(winner, select_key(heavy, k), "%u");
    }
    plb_destroy(light);
    plb_destroy(heavy);
    PASS();
}

/* Each once, weight 0 at the end; then it begins again. And each is what would win without those before it. */
TEST the_sequence_is_all_backends_best_first(void)
{
    enum { N = 24 };
    static const uint32_t weights[] = {1, 5, 0, 2, 1, 9, 0, 0};
    uint32_t k, i, raw[2 * N];
    plb_balancer *lb = balancer_of(plb_rendezvous(), N, weights, 8, PLB_NONE);
    for (k = 0; k < 300; k++) {
        raw_sequence(lb, k, raw, 2 * N);
        for (i = 0; i < N; i++) {
            ASSERT_EQ_FMT(raw[i], raw[i + N], "%u");
            ASSERT_EQ(i >= N - 9, weights[raw[i] % 8] == 0);
            if (i < N - 9)
                ASSERT_EQ_FMT(raw[i], select_key(lb, k), "%u");
            set_enabled(lb, raw[i], false);
        }
        ASSERT_EQ(PLB_NONE, select_key(lb, k));
        for (i = 0; i < N; i++)
            set_enabled(lb, i, true);
    }
    plb_destroy(lb);
    PASS();
}

/* ==== THE LIST ==================================================================================================== */

SUITE(key_hash)
{
    RUN_TEST(the_hash_never_changes);
    RUN_TEST(each_byte_of_a_key_decides_over_each_bit_of_its_hash);
    RUN_TEST(different_keys_have_different_hashes);
    RUN_TEST(a_hash_depends_on_the_bytes_of_the_key_alone);
}

SUITE(both)
{
    RUN_TEST(the_answers_never_change);
    RUN_TEST(the_order_in_which_a_set_is_told_does_not_matter);
    RUN_TEST(sets_of_none_and_one);
    RUN_TEST(backends_of_one_address_have_a_share_each);
    RUN_TEST(weight_0_gets_nothing);
    RUN_TEST(an_unready_backends_keys_are_shared_and_no_other_moves);
    RUN_TEST(without_a_limit_a_ready_backend_is_found);
    RUN_TEST(few_ready_backends_share_evenly_too);
    RUN_TEST(limits_are_counted_along_the_raw_sequence);
    RUN_TEST(excluded_and_unready_come_to_the_same);
    RUN_TEST(a_build_without_memory_leaves_nothing_behind);
}

SUITE(maglev_hashing)
{
    RUN_TEST(the_table_is_filled_as_in_the_paper);
    RUN_TEST(shares_of_the_table_follow_the_weights);
    RUN_TEST(keys_follow_the_shares_of_the_table);
    RUN_TEST(few_other_keys_move_when_a_backend_leaves);
    RUN_TEST(only_its_keys_move_when_a_backend_leaves_the_ring);
    RUN_TEST(a_walk_goes_through_the_whole_table);
    RUN_TEST(a_table_size_is_a_prime_within_reason);
    RUN_TEST(more_backends_than_places_are_refused);
    RUN_TEST(more_backends_than_16_bits_can_number);
    RUN_TEST(the_next_ready_backend_is_the_next);
}

SUITE(rendezvous_hashing)
{
    RUN_TEST(keys_follow_the_weights);
    RUN_TEST(the_logarithm_is_one);
    RUN_TEST(no_key_moves_that_need_not);
    RUN_TEST(equal_weights_are_as_good_as_none);
    RUN_TEST(the_sequence_is_all_backends_best_first);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(key_hash);
    RUN_SUITE(both);
    RUN_SUITE(maglev_hashing);
    RUN_SUITE(rendezvous_hashing);
    GREATEST_MAIN_END();
}
