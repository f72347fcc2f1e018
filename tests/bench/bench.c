/* make bench: nanoseconds a pick and microseconds a build, beside the recorded figures of pingora-load-balancing.

   65 536 keys of 24 bytes in shuffled order, max_iterations 256. Backend i of the set is down when
   (7919 i + 13) mod 100 < P, but the last one stays up when all before it are down. The best of five short runs. */
#define _POSIX_C_SOURCE 200809L
#define PINGORA_LB_IMPLEMENTATION
#include "../../pingora_lb.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { KEYS = 65536, KEY_BYTES = 24, RUNS = 5 };

static char keys[KEYS][KEY_BYTES + 1];
static const uint32_t sizes[] = {2, 10, 100, 1000, 10000};
static const uint32_t downs[] = {0, 30, 90, 100};

/* pingora's recorded times on this kind of machine (tests/vectors/README.md); 100 % down: the least of its range. */
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

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

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
}

static plb_strategy strategy_named(const char *name)
{
    switch (name[1]) {
    case 'r':
        return plb_round_robin();
    case 'a':
        return plb_random_choice();
    case 'n':
        return plb_fnv();
    default:
        return plb_ketama(NULL);
    }
}

static plb_backend *make_backends(uint32_t count, uint32_t down_percent)
{
    plb_backend *backends = (plb_backend *)calloc(count, sizeof *backends);
    uint32_t i, up = 0;
    if (backends == NULL)
        abort();
    for (i = 0; i < count; i++) {
        bool down = (7919 * i + 13) % 100 < down_percent;
        plb_backend *b = &backends[i];
        b->addr.family = PLB_FAMILY_IPV4;
        b->addr.port = 80;
        b->addr.u.v4[0] = 10;
        b->addr.u.v4[1] = (uint8_t)(i >> 16);
        b->addr.u.v4[2] = (uint8_t)(i >> 8);
        b->addr.u.v4[3] = (uint8_t)i;
        b->weight = 1;
        if (down && i == count - 1 && up == 0 && down_percent < 100)
            down = false;
        up += !down;
        b->enablement = down ? PLB_ENABLEMENT_OFF : PLB_ENABLEMENT_ON;
    }
    return backends;
}

static plb_balancer *make_balancer(const char *strategy, uint32_t count, uint32_t down_percent)
{
    plb_backend *backends = make_backends(count, down_percent);
    plb_static_desc list = {NULL, 0, backends, count, 0};
    plb_balancer_desc desc;
    plb_balancer *lb = NULL;
    memset(&desc, 0, sizeof desc);
    desc.strategy = strategy_named(strategy);
    desc.discovery = plb_static(&list);
    if (plb_create(&desc, &lb) != PLB_OK)
        abort();
    free(backends);
    return lb;
}

static double time_select(plb_balancer *lb, uint32_t picks)
{
    double best = 1e30;
    uint32_t i, run, found = 0;
    for (run = 0; run < RUNS; run++) {
        double start = now_ns(), took;
        for (i = 0; i < picks; i++) {
            plb_addr addr;
            found += plb_select(lb, keys[i % KEYS], KEY_BYTES, 256, &addr) == PLB_OK;
        }
        took = (now_ns() - start) / picks;
        if (took < best)
            best = took;
    }
    if (found != 0 && found != RUNS * picks)
        fprintf(stderr, "warning: %u of %u picks found a backend\n", found, RUNS * picks);
    return best;
}

/* Builds what a set of n backends needs, from the discovery's answer to publication is more: see plb_last_update. */
static double time_build(const char *strategy, uint32_t count)
{
    plb_balancer *lb = make_balancer(strategy, count, 0);
    const plb__set *set = (const plb__set *)lb->current;
    uint32_t repeat = count >= 1000 ? 1 : 1000 / count, run, i;
    double best = 1e30;
    for (run = 0; run < 3 * RUNS; run++) {
        double start = now_ns(), took;
        for (i = 0; i < repeat; i++) {
            void *table = NULL;
            if (lb->strategy->build(lb->strategy_state, &set->tiers[0].view, NULL, NULL, &table) != PLB_OK)
                abort();
            lb->strategy->discard(lb->strategy_state, table);
        }
        took = (now_ns() - start) / repeat / 1000;
        if (took < best)
            best = took;
    }
    plb_destroy(lb);
    return best;
}

/* The share of pingora's recorded time, where there is one. */
static void print_ratio(double ours, double theirs)
{
    if (theirs > 0)
        printf("   pingora=%g ratio=1/%.1f", theirs, theirs / ours);
    printf("\n");
    fflush(stdout);
}

int main(void)
{
    size_t s, n, p;
    make_keys();
    for (s = 0; s < sizeof recorded / sizeof *recorded; s++) {
        const struct recorded *r = &recorded[s];
        for (n = 0; n < sizeof sizes / sizeof *sizes; n++) {
            for (p = 0; p < sizeof downs / sizeof *downs; p++) {
                plb_balancer *lb = make_balancer(r->strategy, sizes[n], downs[p]);
                double ns = time_select(lb, 4 * KEYS);
                printf("select %s n=%u down=%u%% ns=%.1f", r->strategy, sizes[n], downs[p], ns);
                print_ratio(ns, r->ns[n][p]);
                plb_destroy(lb);
            }
        }
        for (n = 0; n < sizeof sizes / sizeof *sizes; n++) {
            double us = time_build(r->strategy, sizes[n]);
            printf("build %s n=%u us=%.1f", r->strategy, sizes[n], us);
            print_ratio(us, r->build_us[n]);
        }
    }
    return 0;
}
