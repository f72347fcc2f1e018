/* The Ketama ring yields what a sorted array of the same points would: every point once, in order, of equal ones the
   backend that comes first in the set, and from any hash the first point at or after it. The reference shares no code
   with the ring: a CRC bit by bit, labels by snprintf, qsort. */
#define _POSIX_C_SOURCE 200809L
#define PINGORA_LB_IMPLEMENTATION
#include "../pingora_lb.h"
#include <greatest.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ==== the reference ==== */

typedef struct naive_point {
    uint32_t point, owner;
} naive_point;

typedef struct naive_ring {
    naive_point *points;
    size_t count;
} naive_ring;

static uint32_t naive_crc(uint32_t crc, const void *bytes, size_t count)
{
    const uint8_t *at = (const uint8_t *)bytes;
    int bit;
    for (crc = ~crc; count > 0; count--)
        for (crc ^= *at++, bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ ((crc & 1) != 0 ? UINT32_C(0xedb88320) : 0);
    return ~crc;
}

/* HOST NUL PORT, or PATH NUL. */
static size_t naive_label(const plb_addr *addr, char label[PLB_ADDR_TEXT_MAX])
{
    char text[PLB_ADDR_TEXT_MAX];
    plb_addr copy = *addr;
    size_t length;
    if (addr->family == PLB_FAMILY_UNIX)
        return (size_t)snprintf(label, PLB_ADDR_TEXT_MAX, "%s", addr->u.path) + 1;
    if (addr->family == PLB_FAMILY_IPV4) {
        length = (size_t)snprintf(label, PLB_ADDR_TEXT_MAX, "%d.%d.%d.%d", addr->u.v4[0], addr->u.v4[1], addr->u.v4[2],
                                  addr->u.v4[3]);
    } else {
        copy.port = 1; /* "[host]:1" */
        length = plb_addr_format(&copy, text, sizeof text) - strlen("[]:1");
        snprintf(label, PLB_ADDR_TEXT_MAX, "%.*s", (int)length, text + 1);
    }
    return length + 1 +
           (size_t)snprintf(label + length + 1, PLB_ADDR_TEXT_MAX - length - 1, "%u", (unsigned)addr->port);
}

static int naive_order(const void *a_point, const void *b_point)
{
    const naive_point *a = (const naive_point *)a_point, *b = (const naive_point *)b_point;
    if (a->point != b->point)
        return a->point < b->point ? -1 : 1;
    return a->owner < b->owner ? -1 : a->owner > b->owner;
}

static naive_ring naive_build(const plb_view *view)
{
    naive_ring ring = {NULL, 0};
    size_t kept = 0, i;
    uint32_t owner;
    ring.points = (naive_point *)malloc(((size_t)plb_view_weight_sum(view) * 160 + 1) * sizeof *ring.points);
    for (owner = 0; ring.points != NULL && owner < plb_view_count(view); owner++) {
        uint32_t left = plb_view_weight(view, owner) * 160, point = 0, prefix;
        char label[PLB_ADDR_TEXT_MAX];
        plb_addr addr;
        size_t length;
        memset(&addr, 0, sizeof addr);
        plb_view_addr(view, owner, &addr);
        length = naive_label(&addr, label);
        prefix = naive_crc(0, label, length);
        for (; left > 0; left--) {
            uint8_t previous[4];
            previous[0] = (uint8_t)point, previous[1] = (uint8_t)(point >> 8);
            previous[2] = (uint8_t)(point >> 16), previous[3] = (uint8_t)(point >> 24);
            point = naive_crc(prefix, previous, 4);
            ring.points[ring.count].point = point;
            ring.points[ring.count++].owner = owner;
        }
    }
    if (ring.count > 0)
        qsort(ring.points, ring.count, sizeof *ring.points, naive_order);
    for (i = 0; i < ring.count; i++)
        if (i == 0 || ring.points[i].point != ring.points[kept - 1].point)
            ring.points[kept++] = ring.points[i];
    ring.count = kept;
    return ring;
}

/* The first at or after a hash, wrapping. */
static const naive_point *naive_find(const naive_ring *ring, uint32_t hash)
{
    size_t low = 0, high = ring->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (ring->points[middle].point < hash)
            low = middle + 1;
        else
            high = middle;
    }
    return &ring->points[low < ring->count ? low : 0];
}

/* ==== random sets ==== */

static uint64_t random_state = 1;

static uint32_t random_below(uint32_t limit)
{
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)((random_state >> 32) * limit >> 32);
}

static plb_addr random_addr(void)
{
    plb_addr addr;
    uint32_t i, kind = random_below(8);
    memset(&addr, 0, sizeof addr);
    addr.family = PLB_FAMILY_IPV4;
    addr.port = (uint16_t)(1 + random_below(random_below(2) != 0 ? 65535 : 9));
    for (i = 0; i < 4; i++)
        addr.u.v4[i] = (uint8_t)random_below(256);
    if (kind == 0) {
        addr.family = PLB_FAMILY_IPV6;
        for (i = 0; i < 16; i++)
            addr.u.v6[i] = (uint8_t)(random_below(2) != 0 ? random_below(256) : 0);
    } else if (kind == 1) {
        char path[64];
        snprintf(path, sizeof path, "unix:/run/%u", (unsigned)random_below(1000000));
        plb_addr_parse(&addr, path, PLB_ZSTRING);
    }
    return addr;
}

static plb_backend *new_backends(size_t count)
{
    return (plb_backend *)calloc(count, sizeof(plb_backend));
}

static plb_balancer *new_balancer(plb_backend *backends, size_t count)
{
    plb_static_desc list = {NULL, 0, NULL, 0, 0};
    plb_balancer_desc desc;
    plb_balancer *lb = NULL;
    memset(&desc, 0, sizeof desc);
    list.backends = backends;
    list.backend_count = count;
    desc.discovery = plb_static(&list);
    desc.strategy = plb_ketama(NULL);
    if (backends == NULL || plb_create(&desc, &lb) != PLB_OK)
        abort();
    free(backends);
    return lb;
}

static const plb__set *set_of(const plb_balancer *lb)
{
    return (const plb__set *)lb->current;
}

/* ==== the rules ==== */

/* Where a point found stands: its owner, and whether the position is just past the point. */
static bool found(const plb__ring *ring, uint64_t *position, const naive_point *expected)
{
    uint32_t owner = plb__ring_find(ring, position);
    return owner == expected->owner && *position == plb__ring_position(expected->point, ring->groups) + 1;
}

static bool found_from(const plb__ring *ring, const naive_ring *naive, uint32_t hash)
{
    uint64_t position = plb__ring_position(hash, ring->groups);
    return found(ring, &position, naive_find(naive, hash));
}

TEST equals_the_sorted_array(plb_balancer *lb)
{
    const plb__set *set = set_of(lb);
    const plb__ring *ring = (const plb__ring *)set->tiers[0].table;
    naive_ring naive = naive_build(&set->tiers[0].view);
    uint64_t position = 0;
    size_t i;
    ASSERT(naive.points != NULL && naive.count > 0);
    for (i = 0; i < naive.count; i++)
        ASSERTm("a walk around the ring", found(ring, &position, &naive.points[i]));
    ASSERTm("the walk begins again", found(ring, &position, &naive.points[0]));
    for (i = 0; i < 2000; i++) {
        uint32_t point = naive.points[random_below((uint32_t)naive.count)].point;
        ASSERTm("from a point", found_from(ring, &naive, point));
        ASSERTm("from just behind a point", found_from(ring, &naive, point + 1));
        ASSERTm("from any hash", found_from(ring, &naive, random_below(UINT32_MAX)));
    }
    ASSERT(found_from(ring, &naive, 0) && found_from(ring, &naive, UINT32_MAX));
    free(naive.points);
    plb_destroy(lb);
    PASS();
}

TEST random_sets(void)
{
    int round;
    for (round = 0; round < 40; round++) {
        size_t count = 1 + random_below(random_below(2) != 0 ? 300 : 4), i;
        uint32_t max_weight = random_below(3) != 0 ? 3 : 51;
        plb_backend *backends = new_backends(count);
        for (i = 0; i < count; i++) {
            backends[i].addr = i > 0 && random_below(8) == 0 ? backends[i - 1].addr : random_addr();
            backends[i].weight = random_below(max_weight);
        }
        backends[0].weight = 1 + random_below(50);
        CHECK_CALL(equals_the_sorted_array(new_balancer(backends, count)));
    }
    PASS();
}

/* All points of the lighter ones are points of the heavier ones too: batches overflow, groups are long or empty. */
TEST one_address_with_many_weights(void)
{
    uint32_t i, count = 60;
    plb_backend *backends = new_backends(count);
    for (i = 0; i < count; i++) {
        plb_addr_parse(&backends[i].addr, "10.0.0.1:80", PLB_ZSTRING);
        backends[i].weight = i + 1;
    }
    return equals_the_sorted_array(new_balancer(backends, count));
}

TEST one_heavy_backend(void)
{
    plb_backend *backends = new_backends(1);
    backends->addr = random_addr();
    backends->weight = 3000;
    return equals_the_sorted_array(new_balancer(backends, 1));
}

TEST more_backends_than_16_bits_can_number(void)
{
    uint32_t i, count = 70000;
    plb_backend *backends = new_backends(count);
    for (i = 0; i < count; i++) {
        backends[i].addr.family = PLB_FAMILY_IPV4;
        backends[i].addr.port = (uint16_t)(1 + i % 60000);
        backends[i].addr.u.v4[0] = (uint8_t)(1 + i / 60000);
        backends[i].addr.u.v4[3] = (uint8_t)i;
        backends[i].weight = i % 200 == 199;
    }
    return equals_the_sorted_array(new_balancer(backends, count));
}

/* The manual promises 6.6 bytes a point. */
TEST a_ring_is_no_larger_than_promised(void)
{
    uint32_t i, count = 100;
    plb_backend *backends = new_backends(count);
    plb_balancer *lb;
    const plb__ring *ring;
    for (i = 0; i < count; i++) {
        backends[i].addr = random_addr();
        backends[i].weight = 1;
    }
    lb = new_balancer(backends, count);
    ring = (const plb__ring *)set_of(lb)->tiers[0].table;
    ASSERT(ring->size * 10 <= (size_t)count * 160 * 66 + 10 * sizeof *ring);
    plb_destroy(lb);
    PASS();
}

/* ==== builds that fail ==== */

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

TEST a_build_without_memory_leaves_nothing_behind(void)
{
    plb_backend *backends = new_backends(20);
    plb__ketama_state state = {{scarce_alloc, scarce_dealloc, NULL}, 1u << 24};
    plb_balancer *lb;
    void *table = NULL;
    int i;
    for (i = 0; i < 20; i++) {
        backends[i].addr = random_addr();
        backends[i].weight = 1;
    }
    lb = new_balancer(backends, 20);
    for (i = 0; i < 2; i++) {
        allocations_left = i;
        ASSERT_EQ(PLB_ERR_MEMORY, plb__ketama_build(&state, &set_of(lb)->tiers[0].view, NULL, NULL, &table));
        ASSERT_EQ_FMT((size_t)0, bytes_out, "%zu");
    }
    allocations_left = 2;
    ASSERT_EQ(PLB_OK, plb__ketama_build(&state, &set_of(lb)->tiers[0].view, NULL, NULL, &table));
    plb__ketama_discard(&state, table);
    ASSERT_EQ_FMT((size_t)0, bytes_out, "%zu");
    state.max_points = 20 * 160 - 1;
    allocations_left = 2;
    ASSERT_EQ(PLB_ERR_POINTS, plb__ketama_build(&state, &set_of(lb)->tiers[0].view, NULL, NULL, &table));
    plb_destroy(lb);
    PASS();
}

SUITE(ring)
{
    RUN_TEST(random_sets);
    RUN_TEST(one_address_with_many_weights);
    RUN_TEST(one_heavy_backend);
    RUN_TEST(more_backends_than_16_bits_can_number);
    RUN_TEST(a_ring_is_no_larger_than_promised);
    RUN_TEST(a_build_without_memory_leaves_nothing_behind);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(ring);
    GREATEST_MAIN_END();
}
