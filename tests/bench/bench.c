/* make bench: what picking, building, updating and flipping cost, and the memory they take, beside the recorded figures
   of pingora-load-balancing and the limits that this library sets itself.

   65 536 keys of 24 bytes in shuffled order, max_iterations 256. Backend i of the set is down when
   (7919 i + 13) mod 100 < P, but the last one stays up when all before it are down. All keys are gone through five
   times; of each sixteenth of them the fastest time counts, so that what else the machine does is left out, and what
   its caches do is not.

   A line is a figure, then pingora's recorded one where there is one, then the limit where there is one ("missed" where
   it is); tests/bench/summary.awk counts those.
     ns        nanoseconds a pick, one after another
     latency   the same when a pick can only begin once the one before it has ended, as its key and what it asks depend
               on the address that the last one gave
     .handle   by a plb_handle; .single: by plb_select of a program that was compiled with PLB_NO_THREADS
     found     the share of picks that found a backend within max_iterations, where that was not all or none
     per_us    picks a microsecond of all threads together; counting: what threads that share nothing would gain
     limit=0   max_iterations 0; own: times the same with all up
   The selections also go to a file of comma-separated values, the program's argument. */
#define PINGORA_LB_IMPLEMENTATION
#define PLB_POSIX_IMPLEMENTATION
#include "../../ports/plb_posix.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#ifdef PLB_NO_THREADS
enum { SINGLE = 1 };
#else
enum { SINGLE = 0 };
#endif

enum {
    KEYS = 65536,
    KEY_BYTES = 24,
    PART = KEYS / 16, /* short enough to be often left alone */
    RUNS = 5,
    SIZES = 5,
    DOWNS = 4,
    MAX_ITERATIONS = 256,
    LARGE = 10000 /* backends */
};

static const uint32_t sizes[SIZES] = {2, 10, 100, 1000, LARGE};
static const uint32_t downs[DOWNS] = {0, 30, 90, 100};

/* ==== WHAT IS MEASURED ============================================================================================ */

static plb_strategy ketama(void)
{
    return plb_ketama(NULL);
}

static plb_strategy peak_ewma(void)
{
    return plb_peak_ewma(NULL);
}

static plb_strategy maglev(void)
{
    return plb_maglev(NULL);
}

static plb_strategy bounded_loads(void)
{
    return plb_bounded_loads(NULL);
}

enum { CLIENT_KEY = 1, COUNTS_REQUESTS = 2 }; /* the key is an IPv4 address; begin and end are timed */

typedef struct strategy {
    const char *name;
    plb_strategy (*make)(void);
    uint32_t weights; /* backend i weighs 1 + i mod weights */
    uint32_t most;    /* backends that it is meant for */
    uint32_t traits;
} strategy;

static const strategy strategies[] = {
    {"rr", plb_round_robin, 1, LARGE, 0},
    {"random", plb_random_choice, 1, LARGE, 0},
    {"fnv", plb_fnv, 1, LARGE, 0},
    {"ketama", ketama, 1, LARGE, 0},
    {"wrr", plb_smooth_round_robin, 10, LARGE, 0},
    {"least_conn", plb_least_connections, 10, LARGE, 0},
    {"p2c", plb_two_choices, 10, LARGE, COUNTS_REQUESTS},
    {"ewma", peak_ewma, 10, LARGE, COUNTS_REQUESTS},
    {"maglev", maglev, 10, LARGE, 0},
    {"bounded", bounded_loads, 10, LARGE, COUNTS_REQUESTS},
    {"rendezvous", plb_rendezvous, 10, 100, 0},
    {"ip_hash", plb_ip_hash, 10, LARGE, CLIENT_KEY},
};

enum { STRATEGIES = sizeof strategies / sizeof *strategies, RECORDED = 4 /* the first ones: pingora has them too */ };

/* Recorded times of pingora-load-balancing 0.8, best of three, by the same keys and sets; 100 % down: the least of its
   range. */
static const struct recorded {
    const char *strategy;
    double ns[5][4]; /* by size, by share of backends that are down */
    double build_us[5];
} recorded[] = {
    {"rr",
     {{134, 248, 248, 8600},
      {138, 183, 1354, 9400},
      {135, 189, 1408, 16800},
      {137, 189, 1426, 29000},
      {143, 199, 1439, 34900}},
     {0}},
    {"random",
     {{119, 198, 198, 8600},
      {120, 164, 842, 9400},
      {120, 172, 1133, 16800},
      {125, 176, 1198, 29000},
      {149, 215, 1415, 34900}},
     {0}},
    {"fnv",
     {{210, 337, 337, 8600},
      {251, 292, 1162, 9400},
      {196, 287, 1495, 16800},
      {196, 321, 1665, 29000},
      {220, 301, 1826, 34900}},
     {0}},
    {"ketama",
     {{296, 432, 432, 8600},
      {322, 394, 1350, 9400},
      {360, 432, 1748, 16800},
      {450, 594, 2256, 29000},
      {1482, 1341, 3494, 34900}},
     {15, 48, 436, 4565, 55977}},
};

/* The limits. Nanoseconds a pick unless the name says otherwise; n and the share that is down where they matter. */
#define ANY UINT32_MAX

static const struct limit {
    const char *figure;
    uint32_t n, down;
    double most;
} limits[] = {
    {"select rr", ANY, 0, 12},
    {"select rr.handle", ANY, 0, 5},
    {"select rr.single", ANY, 0, 4},
    {"select random", ANY, 0, 12},
    {"select random.handle", ANY, 0, 5},
    {"select random.single", ANY, 0, 4},
    {"select fnv", ANY, 0, 30},
    {"select fnv.handle", ANY, 0, 24},
    {"select fnv.single", ANY, 0, 22},
    {"select ketama.handle", 100, 0, 18},
    {"select ketama.handle", 1000, 0, 25},
    {"select ketama.handle", LARGE, 0, 60},
    {"select wrr.handle", ANY, 0, 30},
    {"select maglev.handle", ANY, 0, 20},
    {"select rr", ANY, 90, 60},
    {"select random", ANY, 90, 60},
    {"select fnv", ANY, 90, 170},
    {"select ketama", ANY, 90, 120},
    {"begin+end p2c.handle", 10, 0, 35},
    {"begin+end p2c.handle", 1000, 0, 50},
    {"begin+end p2c.handle", LARGE, 0, 80},
    {"begin+end ewma.handle", 10, 0, 35},
    {"begin+end ewma.handle", 1000, 0, 50},
    {"begin+end ewma.handle", LARGE, 0, 80},
    {"begin+end least_conn.handle", 10, 0, 40},
    {"begin+end least_conn.handle", 64, 0, 80},
    {"begin+end least_conn.handle", LARGE, 0, 120},
    {"build ketama us", LARGE, 0, 12000},
    {"update ketama ms", LARGE, 0, 3},
    {"ring bytes/point", LARGE, 0, 6.6},
    {"ring bytes/point", ANY, 0, 8.8},
    {"memory bytes/backend", ANY, 0, 128},
    {"flip", ANY, 0, 200},
    {"flip allocations", ANY, 0, 0},
};

static const double none_ready_limit = 10;         /* of any strategy */
static const double two_threads_limit = 1.8;       /* at least, against one */
static const double own_limit = 2, own_ketama = 3; /* 90 % down against none, max_iterations 0 */

static void put_limit(double limit, bool met)
{
    printf("   limit=%g%s", limit, met ? "" : " missed");
}

static void judge(const char *figure, uint32_t n, uint32_t down, double value)
{
    size_t i;
    for (i = 0; i < sizeof limits / sizeof *limits; i++) {
        const struct limit *l = &limits[i];
        if (strcmp(l->figure, figure) == 0 && (l->n == ANY || l->n == n) && l->down == down) {
            put_limit(l->most, value <= l->most);
            return;
        }
    }
}

/* The share of pingora's recorded time, where there is one. */
static void put_ratio(double ours, double theirs)
{
    if (theirs > 0)
        printf("   pingora=%g ratio=1/%.1f", theirs, theirs / ours);
}

static void end_line(void)
{
    printf("\n");
    fflush(stdout);
}

/* ==== SETS ======================================================================================================== */

static plb_posix *px; /* the port that all balancers have: with its barrier reading is cheap */

/* Counts what is handed out. From one thread: no pick allocates. */
static struct heap {
    size_t bytes, requests;
} heap;

static void *heap_alloc(void *user, size_t size)
{
    (void)user;
    heap.bytes += size;
    heap.requests++;
    return malloc(size);
}

static void heap_dealloc(void *user, void *ptr, size_t size)
{
    (void)user;
    heap.bytes -= size;
    free(ptr);
}

/* Plain memory, or the end. */
static void *must_alloc(size_t count, size_t size)
{
    void *ptr = calloc(count, size);
    if (ptr == NULL)
        abort();
    return ptr;
}

static char keys[KEYS][KEY_BYTES + 1];
static char clients[KEYS][KEY_BYTES + 1]; /* 4 bytes of each: an address */

static void make_keys(void)
{
    uint32_t i, random = 1;
    for (i = 0; i < KEYS; i++)
        snprintf(keys[i], sizeof keys[i], "/path/to/resource/%06u", i);
    for (i = KEYS - 1; i > 0; i--) {
        char swap[KEY_BYTES + 1];
        uint32_t j;
        random = random * 1664525u + 1013904223u;
        j = (uint32_t)((uint64_t)random * (i + 1) >> 32);
        memcpy(swap, keys[i], sizeof swap);
        memcpy(keys[i], keys[j], sizeof swap);
        memcpy(keys[j], swap, sizeof swap);
    }
    for (i = 0; i < KEYS; i++) {
        uint32_t client = i * UINT32_C(2654435761);
        memcpy(clients[i], &client, sizeof client);
    }
}

static plb_backend *make_backends(uint32_t count, uint32_t down_percent, uint32_t weights)
{
    plb_backend *backends = (plb_backend *)must_alloc(count + 1, sizeof *backends);
    uint32_t i, up = 0;
    for (i = 0; i < count; i++) {
        bool down = (7919 * i + 13) % 100 < down_percent;
        plb_backend *b = &backends[i];
        b->addr.family = PLB_FAMILY_IPV4;
        b->addr.port = 80;
        b->addr.u.v4[0] = 10;
        b->addr.u.v4[1] = (uint8_t)(i >> 16);
        b->addr.u.v4[2] = (uint8_t)(i >> 8);
        b->addr.u.v4[3] = (uint8_t)i;
        b->weight = 1 + i % weights;
        if (down && i == count - 1 && up == 0 && down_percent < 100)
            down = false;
        up += !down;
        b->enablement = down ? PLB_ENABLEMENT_OFF : PLB_ENABLEMENT_ON;
    }
    return backends;
}

/* A discovery that answers with what it was given at the start and keeps nothing, so that the memory of a balancer is
   that of its set. */
typedef struct given {
    const plb_backend *backends;
    size_t count;
} given;

static plb_status given_open(void *state, const void *desc, const plb_env *env)
{
    (void)env;
    *(given *)state = *(const given *)desc;
    return PLB_OK;
}

static plb_status given_start(void *state, plb_token token)
{
    const given *g = (const given *)state;
    return plb_discovery_done(token, PLB_OK, g->backends, g->count);
}

static void given_cancel(void *state, plb_token token)
{
    (void)state;
    (void)token;
}

static const plb_discovery_ops given_ops = {"given",     sizeof(given), given_open, NULL,
                                            given_start, given_cancel,  NULL,       NULL};

static plb_balancer *create(plb_strategy chosen, plb_discovery discovery)
{
    plb_balancer_desc desc;
    plb_balancer *lb = NULL;
    memset(&desc, 0, sizeof desc);
    desc.port = plb_posix_port(px);
    desc.allocator.alloc = heap_alloc;
    desc.allocator.dealloc = heap_dealloc;
    desc.strategy = chosen;
    desc.discovery = discovery;
    if (plb_create(&desc, &lb) != PLB_OK)
        abort();
    return lb;
}

static plb_balancer *make_balancer(const strategy *s, uint32_t count, uint32_t down_percent)
{
    plb_backend *backends = make_backends(count, down_percent, s->weights);
    given all = {backends, count};
    plb_discovery discovery = {&given_ops, &all, 0};
    plb_balancer *lb = create(s->make(), discovery);
    plb_update_info info;
    plb_last_update(lb, &info);
    if (info.status != PLB_OK || info.backends != count)
        abort();
    free(backends);
    return lb;
}

/* ==== TIME ======================================================================================================== */

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static double least(double a, double b)
{
    return a < b ? a : b;
}

static double most(double a, double b)
{
    return a > b ? a : b;
}

/* What is picked from, and how. */
typedef struct subject {
    plb_balancer *lb;
    plb_handle *handle; /* or NULL */
    char (*keys)[KEY_BYTES + 1];
    size_t key_length;
    uint32_t max_iterations;
    const plb_backend *backends; /* those to flip */
} subject;

static subject make_subject(const strategy *s, uint32_t count, uint32_t down, uint32_t max_iterations, bool by_handle)
{
    subject made;
    made.lb = make_balancer(s, count, down);
    made.handle = NULL;
    made.keys = s->traits & CLIENT_KEY ? clients : keys;
    made.key_length = s->traits & CLIENT_KEY ? 4 : KEY_BYTES;
    made.max_iterations = max_iterations;
    made.backends = NULL;
    if (by_handle && plb_handle_open(made.lb, &made.handle) != PLB_OK)
        abort();
    return made;
}

/* Does something for the keys from `first` to `end`; returns how often it came to something. */
typedef uint32_t run_fn(const subject *s, uint32_t first, uint32_t end);

/* Nanoseconds for a key. found_share may be NULL. */
static double time_run(run_fn *run, const subject *s, double *found_share)
{
    double best[KEYS / PART], sum = 0;
    uint32_t turn, part, found = 0;
    for (turn = 0; turn < RUNS; turn++) {
        for (part = 0; part < KEYS / PART; part++) {
            double start = now_ns(), took;
            found += run(s, part * PART, (part + 1) * PART);
            took = now_ns() - start;
            best[part] = turn == 0 ? took : least(best[part], took);
        }
    }
    for (part = 0; part < KEYS / PART; part++)
        sum += best[part];
    if (found_share != NULL)
        *found_share = (double)found / (RUNS * KEYS);
    return sum / KEYS;
}

/* ==== SELECT ====================================================================================================== */

static volatile uintptr_t zero; /* which the compiler cannot know */

/* Inlined with what is constant in each of its uses. */
PLB__INLINE uint32_t pick(const subject *s, uint32_t first, uint32_t end, bool by_handle, bool dependent)
{
    const subject at = *s;
    const uintptr_t mask = dependent ? zero : 0;
    uintptr_t last = 0; /* 0 by the mask, but the processor has to wait for the address to know it */
    uint32_t i, found = 0;
    for (i = first; i < end; i++) {
        const char *key = at.keys[i + last];
        plb_addr addr;
        plb_status status;
        if (dependent)
            addr.u.v4[3] = 0;
        if (by_handle)
            status = plb_handle_select((plb_handle *)(void *)((char *)at.handle + last), key, at.key_length,
                                       at.max_iterations, &addr);
        else
            status = plb_select((plb_balancer *)(void *)((char *)at.lb + last), key, at.key_length, at.max_iterations,
                                &addr);
        found += status == PLB_OK;
        if (dependent)
            last = (addr.u.v4[3] + (uintptr_t)status) & mask;
    }
    return found;
}

static uint32_t pick_plain(const subject *s, uint32_t first, uint32_t end)
{
    return pick(s, first, end, false, false);
}

static uint32_t pick_plain_in_turn(const subject *s, uint32_t first, uint32_t end)
{
    return pick(s, first, end, false, true);
}

static uint32_t pick_by_handle(const subject *s, uint32_t first, uint32_t end)
{
    return pick(s, first, end, true, false);
}

static uint32_t pick_by_handle_in_turn(const subject *s, uint32_t first, uint32_t end)
{
    return pick(s, first, end, true, true);
}

static FILE *csv; /* or NULL */

/* Measures and prints one selection, but for the end of its line; returns its nanoseconds. */
static double put_select(const strategy *s, const char *how, size_t n, size_t p, uint32_t max_iterations)
{
    bool plain = strcmp(how, "plain") == 0, by_handle = strcmp(how, "handle") == 0;
    subject from = make_subject(s, sizes[n], downs[p], max_iterations, by_handle);
    double found, theirs = 0;
    double ns = time_run(by_handle ? pick_by_handle : pick_plain, &from, &found);
    double latency = time_run(by_handle ? pick_by_handle_in_turn : pick_plain_in_turn, &from, NULL);
    char figure[64];
    if (s < strategies + RECORDED && max_iterations == MAX_ITERATIONS)
        theirs = recorded[s - strategies].ns[n][p];
    snprintf(figure, sizeof figure, "select %s%s%s", s->name, plain ? "" : ".", plain ? "" : how);
    printf("%s n=%u down=%u%%", figure, sizes[n], downs[p]);
    if (max_iterations == 0)
        printf(" limit=0");
    printf(" ns=%.1f latency=%.1f", ns, latency);
    if (found > 0 && found < 1)
        printf(" found=%.2f%%", 100 * found);
    put_ratio(ns, theirs);
    if (max_iterations != 0 && downs[p] == 100)
        put_limit(none_ready_limit, ns <= none_ready_limit);
    else if (max_iterations != 0)
        judge(figure, sizes[n], downs[p], ns);
    if (csv != NULL) {
        fprintf(csv, "%s,%s,%u,%u,%u,%.2f,%.2f,", s->name, how, sizes[n], downs[p], max_iterations, ns, latency);
        fprintf(csv, theirs > 0 ? "%g\n" : "\n", theirs);
    }
    plb_destroy(from.lb);
    return ns;
}

static void select_lines(const strategy *s, const char *how)
{
    size_t n, p;
    for (n = 0; n < SIZES && sizes[n] <= s->most; n++) {
        for (p = 0; p < DOWNS; p++) {
            put_select(s, how, n, p, MAX_ITERATIONS);
            end_line();
        }
    }
}

/* Without a limit to its steps a pick must find a ready backend, however few there are. */
static void unlimited_lines(const strategy *s)
{
    enum { NONE_DOWN = 0, MOST_DOWN = 2 };
    double limit = strcmp(s->name, "ketama") == 0 ? own_ketama : own_limit;
    size_t n;
    for (n = 0; n < SIZES && sizes[n] <= s->most; n++) {
        double own, all_up = put_select(s, "plain", n, NONE_DOWN, 0);
        end_line();
        own = put_select(s, "plain", n, MOST_DOWN, 0) / all_up;
        printf(" own=%.2fx", own);
        put_limit(limit, own <= limit);
        end_line();
    }
}

/* ==== BEGIN AND END =============================================================================================== */

/* Holds that many requests for each unit of weight, as evenly as the strategy spreads them. */
static plb_pick *hold_requests(const subject *s, uint32_t held, size_t *count)
{
    plb_pick *picks;
    plb_request request;
    size_t i;
    *count = (size_t)held * plb_view_weight_sum(&((const plb__set *)s->lb->current)->tiers[0].view);
    picks = (plb_pick *)must_alloc(*count + 1, sizeof *picks);
    memset(&request, 0, sizeof request);
    for (i = 0; i < *count; i++) {
        request.key = s->keys[i % KEYS];
        request.key_length = s->key_length;
        if (plb_handle_begin(s->handle, &request, &picks[i]) != PLB_OK)
            abort();
    }
    return picks;
}

static uint32_t begin_and_end(const subject *s, uint32_t first, uint32_t end)
{
    plb_request request;
    plb_pick taken;
    uint32_t i, found = 0;
    memset(&request, 0, sizeof request);
    request.key_length = s->key_length;
    request.max_iterations = s->max_iterations;
    for (i = first; i < end; i++) {
        request.key = s->keys[i];
        found += plb_handle_begin(s->handle, &request, &taken) == PLB_OK;
        plb_end(&taken, PLB_OUTCOME_SUCCESS, 1000 + i % 256);
    }
    return found;
}

static void request_line(const strategy *s, uint32_t count, uint32_t held)
{
    subject from = make_subject(s, count, 0, MAX_ITERATIONS, true);
    size_t pick_count, i;
    plb_pick *picks = hold_requests(&from, held, &pick_count);
    double ns = time_run(begin_and_end, &from, NULL);
    char figure[64];
    snprintf(figure, sizeof figure, "begin+end %s.handle", s->name);
    printf("%s n=%u", figure, count);
    if (held > 0)
        printf(" held=%u", held);
    printf(" ns=%.1f", ns);
    judge(figure, count, 0, ns);
    end_line();
    for (i = 0; i < pick_count; i++)
        plb_end(&picks[i], PLB_OUTCOME_SUCCESS, 1000);
    free(picks);
    plb_destroy(from.lb);
}

static void request_lines(const strategy *s)
{
    static const uint32_t own_sizes[] = {10, 64, LARGE}; /* of least connections, which compares up to 64 */
    size_t n;
    if (s->traits & COUNTS_REQUESTS) {
        for (n = 0; n < SIZES; n++)
            request_line(s, sizes[n], 0);
    } else if (strcmp(s->name, "least_conn") == 0) {
        for (n = 0; n < sizeof own_sizes / sizeof *own_sizes; n++) {
            request_line(s, own_sizes[n], 0);
            request_line(s, own_sizes[n], 3);
        }
    }
}

/* ==== BUILD AND UPDATE ============================================================================================ */

static void *build_table(plb_balancer *lb)
{
    const plb__set *set = (const plb__set *)lb->current;
    void *table = NULL;
    if (lb->strategy->build == NULL)
        return NULL;
    if (lb->strategy->build(lb->strategy_state, &set->tiers[0].view, NULL, NULL, &table) != PLB_OK)
        abort();
    return table;
}

static void discard_table(plb_balancer *lb, void *table)
{
    if (lb->strategy->build != NULL)
        lb->strategy->discard(lb->strategy_state, table);
}

/* What a strategy builds for a set of n backends, in microseconds. From the discovery's answer to publication is more:
   see update_lines. */
static double time_build(plb_balancer *lb, uint32_t count)
{
    uint32_t repeat = count >= 1000 ? 1 : 1000 / count, run, i;
    double best = 1e30;
    for (run = 0; run < 3 * RUNS; run++) {
        double start = now_ns();
        for (i = 0; i < repeat; i++)
            discard_table(lb, build_table(lb));
        best = least(best, (now_ns() - start) / repeat / 1000);
    }
    return best;
}

static void build_lines(const strategy *s)
{
    char figure[64];
    size_t n;
    snprintf(figure, sizeof figure, "build %s us", s->name);
    for (n = 0; n < SIZES && sizes[n] <= s->most; n++) {
        plb_balancer *lb = make_balancer(s, sizes[n], 0);
        if (lb->strategy->build != NULL) {
            double us = time_build(lb, sizes[n]);
            printf("build %s n=%u us=%.1f", s->name, sizes[n], us);
            put_ratio(us, s < strategies + RECORDED ? recorded[s - strategies].build_us[n] : 0);
            judge(figure, sizes[n], 0, us);
            end_line();
        }
        plb_destroy(lb);
    }
}

/* A change of the static list, from the discovery's answer to the publication of the new set, in milliseconds. */
static double time_change(plb_balancer *lb, plb_status (*change)(plb_balancer *, const plb_backend *),
                          const plb_backend *backend)
{
    plb_update_info before, after;
    plb_last_update(lb, &before);
    if (change(lb, backend) != PLB_OK)
        abort();
    do {
        plb_poll(lb);
        plb_last_update(lb, &after);
    } while (after.changes == before.changes);
    return (double)after.build_us / 1000;
}

static void update_lines(void)
{
    enum { TEXT = 24 };
    char(*texts)[TEXT] = (char(*)[TEXT])must_alloc(LARGE, TEXT);
    const char **addresses = (const char **)must_alloc(LARGE, sizeof *addresses);
    plb_static_desc list = {addresses, LARGE, NULL, 0, 0};
    double add = 1e30, removal = 1e30;
    plb_balancer *lb;
    uint32_t i;
    for (i = 0; i < LARGE; i++) {
        snprintf(texts[i], TEXT, "10.0.%u.%u:80", i / 100, i % 100);
        addresses[i] = texts[i];
    }
    lb = create(plb_ketama(NULL), plb_static(&list));
    for (i = 0; i < 2 * RUNS; i++) {
        char text[TEXT];
        plb_backend backend;
        snprintf(text, sizeof text, "10.0.%u.200:80", 9 * i);
        if (plb_backend_parse(&backend, text, PLB_ZSTRING, NULL) != PLB_OK)
            abort();
        add = least(add, time_change(lb, plb_add, &backend));
        removal = least(removal, time_change(lb, plb_remove, &backend));
    }
    printf("update ketama n=%u add ms=%.2f", (unsigned)LARGE, add);
    judge("update ketama ms", LARGE, 0, add);
    end_line();
    printf("update ketama n=%u remove ms=%.2f", (unsigned)LARGE, removal);
    judge("update ketama ms", LARGE, 0, removal);
    end_line();
    plb_destroy(lb);
    free(addresses);
    free(texts);
}

/* ==== MEMORY ====================================================================================================== */

static size_t table_bytes(const strategy *s, uint32_t count, size_t *slot_size)
{
    plb_balancer *lb = make_balancer(s, count, 0);
    size_t before = heap.bytes, bytes;
    void *table = build_table(lb);
    bytes = heap.bytes - before;
    *slot_size = lb->strategy->slot_size;
    discard_table(lb, table);
    plb_destroy(lb);
    return bytes;
}

static void ring_line(uint32_t count)
{
    const strategy ring = {"ketama", ketama, 1, ANY, 0};
    size_t unused;
    double each = (double)table_bytes(&ring, count, &unused) / count / 160;
    printf("memory ketama n=%u bytes/point=%.2f", count, each);
    judge("ring bytes/point", count, 0, each);
    end_line();
}

/* Slot, set and all that grows with their number. */
static void backend_line(void)
{
    const strategy *rr = &strategies[0];
    size_t before = heap.bytes, empty;
    double each;
    plb_balancer *lb = make_balancer(rr, 0, 0);
    empty = heap.bytes - before;
    plb_destroy(lb);
    lb = make_balancer(rr, LARGE, 0);
    each = (double)(heap.bytes - before - empty) / LARGE;
    plb_destroy(lb);
    printf("memory rr n=%u bytes/backend=%.1f", (unsigned)LARGE, each);
    judge("memory bytes/backend", LARGE, 0, each);
    end_line();
}

static void memory_lines(void)
{
    size_t i;
    ring_line(LARGE);
    ring_line(70000);
    backend_line();
    for (i = 0; i < STRATEGIES; i++) { /* bytes a backend: of the table, and in the slot */
        uint32_t count = strategies[i].most;
        size_t slot, table = table_bytes(&strategies[i], count, &slot);
        printf("memory %s n=%u table=%.1f slot=%u", strategies[i].name, count, (double)table / count, (unsigned)slot);
        end_line();
    }
}

/* ==== FLIP ======================================================================================================== */

/* One backend after another, in an order that no cache foresees, off and on again. */
static uint32_t flip(const subject *s, uint32_t first, uint32_t end)
{
    uint32_t i, found = 0;
    for (i = first; i < end; i++) {
        const plb_addr *addr = &s->backends[i * 7919u % LARGE].addr;
        found += plb_set_enabled(s->lb, addr, 0, false) == PLB_OK && plb_set_enabled(s->lb, addr, 0, true) == PLB_OK;
    }
    return found;
}

static void flip_line(const strategy *s)
{
    plb_backend *backends = make_backends(LARGE, 0, s->weights);
    subject from = make_subject(s, LARGE, 0, 0, false);
    size_t requests = heap.requests;
    double ns;
    from.backends = backends;
    ns = time_run(flip, &from, NULL) / 2;
    requests = heap.requests - requests;
    printf("flip %s n=%u ns=%.1f", s->name, (unsigned)LARGE, ns);
    judge("flip", LARGE, 0, ns);
    end_line();
    printf("flip %s n=%u allocations=%u", s->name, (unsigned)LARGE, (unsigned)requests);
    judge("flip allocations", LARGE, 0, (double)requests);
    end_line();
    plb_destroy(from.lb);
    free(backends);
}

static void flip_lines(void)
{
    size_t i;
    for (i = 0; i < STRATEGIES; i++)
        if (strcmp(strategies[i].name, "rr") == 0 || strcmp(strategies[i].name, "ketama") == 0 ||
            strcmp(strategies[i].name, "wrr") == 0)
            flip_line(&strategies[i]);
}

/* ==== THREADS ===================================================================================================== */

typedef struct worker {
    pthread_t thread;
    run_fn *run;
    subject from;
    double per_us;
} worker;

static void *work(void *opaque)
{
    worker *w = (worker *)opaque;
    double start = now_ns(), took;
    uint32_t found = 0;
    do {
        found += w->run(&w->from, 0, KEYS);
        took = now_ns() - start;
    } while (took < 30e6);
    w->per_us = found / took * 1000;
    return NULL;
}

/* Picks a microsecond of that many threads together, each with a handle of its own. */
static double throughput(worker *workers, uint32_t threads)
{
    double sum = 0;
    uint32_t t;
    for (t = 0; t < threads; t++)
        if (pthread_create(&workers[t].thread, NULL, work, &workers[t]) != 0)
            abort();
    for (t = 0; t < threads; t++) {
        pthread_join(workers[t].thread, NULL);
        sum += workers[t].per_us;
    }
    return sum;
}

/* Two threads against one; returns how many times as much they get done. */
static double compare_threads(worker *workers, const char *what)
{
    double one = 0, two = 0;
    uint32_t run;
    for (run = 0; run < 2 * RUNS; run++) {
        one = most(one, throughput(workers, 1));
        two = most(two, throughput(workers, 2));
    }
    printf("threads=1 %s per_us=%.1f", what, one);
    end_line();
    printf("threads=2 %s per_us=%.1f ratio=%.2fx", what, two, two / one);
    return two / one;
}

/* Shares nothing, so that it shows how much of two processors the machine has to give. */
static uint32_t count_up(const subject *s, uint32_t first, uint32_t end)
{
    volatile uint32_t i;
    (void)s;
    for (i = first; i < end; i++)
        ;
    return end - first;
}

static void thread_lines(const strategy *s)
{
    const uint32_t count = 1000;
    worker workers[2];
    char what[64];
    double ratio;
    workers[0].run = workers[1].run = pick_by_handle;
    workers[0].from = workers[1].from = make_subject(s, count, 0, MAX_ITERATIONS, true);
    if (plb_handle_open(workers[1].from.lb, &workers[1].from.handle) != PLB_OK)
        abort();
    snprintf(what, sizeof what, "%s.handle n=%u", s->name, count);
    ratio = compare_threads(workers, what);
    put_limit(two_threads_limit, ratio >= two_threads_limit);
    end_line();
    plb_destroy(workers[0].from.lb);
}

static void thread_control_lines(void)
{
    worker workers[2];
    memset(workers, 0, sizeof workers);
    workers[0].run = workers[1].run = count_up;
    compare_threads(workers, "counting");
    end_line();
}

/* ==== MACHINE ===================================================================================================== */

static void put_processor(void)
{
    FILE *file = fopen("/proc/cpuinfo", "r");
    char line[256] = "", *name = NULL;
    while (file != NULL && name == NULL && fgets(line, sizeof line, file) != NULL)
        if (strncmp(line, "model name", 10) == 0)
            name = strchr(line, ':');
    if (file != NULL)
        fclose(file);
    if (name != NULL)
        name[strcspn(name, "\n")] = '\0';
    printf("machine:%s", name != NULL ? name + 1 : " unknown");
}

/* What one costs that no other thread contends for: the unit in which lock-free code pays. */
static uint32_t locked_instruction(const subject *s, uint32_t first, uint32_t end)
{
    static uint32_t counter;
    uint32_t i;
    (void)s;
    for (i = first; i < end; i++)
        __atomic_fetch_add(&counter, 1, __ATOMIC_SEQ_CST);
    return end - first;
}

static void machine_line(void)
{
    put_processor();
    printf("; a locked instruction: %.1f ns; barrier for all threads: %s", time_run(locked_instruction, NULL, NULL),
           plb_posix_port(px).barrier != NULL ? "yes" : "no");
    end_line();
}

/* ==== ALL OF IT =================================================================================================== */

static void all_lines(void)
{
    size_t i;
    machine_line();
    for (i = 0; i < STRATEGIES; i++) {
        select_lines(&strategies[i], "plain");
        build_lines(&strategies[i]);
    }
    for (i = 0; i < STRATEGIES; i++)
        select_lines(&strategies[i], "handle");
    for (i = 0; i < STRATEGIES; i++)
        unlimited_lines(&strategies[i]);
    for (i = 0; i < STRATEGIES; i++)
        request_lines(&strategies[i]);
    update_lines();
    memory_lines();
    flip_lines();
    thread_control_lines();
    thread_lines(&strategies[0]);
    thread_lines(&strategies[1]);
    thread_lines(&strategies[3]);
}

/* The program without threads goes on in the file of the other. */
int main(int argc, char **argv)
{
    size_t i;
    if (argc > 1 && (csv = fopen(argv[1], SINGLE ? "a" : "w")) == NULL) {
        perror(argv[1]);
        return 1;
    }
    if (csv != NULL && !SINGLE)
        fprintf(csv, "strategy,how,n,down,limit,ns,latency,pingora_ns\n");
    if (plb_posix_create(NULL, &px) != PLB_OK)
        abort();
    make_keys();
    if (!SINGLE)
        all_lines();
    for (i = 0; i < RECORDED && SINGLE; i++)
        select_lines(&strategies[i], "single");
    plb_posix_destroy(px);
    return csv != NULL && fclose(csv) != 0;
}
