/* The Ketama ring yields what a sorted array of the same points would: every point once, in order, of equal ones the
   backend that comes first in the set, and from any hash the first point at or after it. The reference shares no code
   with the ring: a CRC bit by bit, labels by snprintf, qsort. A ring made from another is the one that would have been
   built, to the last bit. */
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

static naive_ring naive_build(const plb_view *view, uint32_t multiple)
{
    naive_ring ring = {NULL, 0};
    size_t kept = 0, i;
    uint32_t owner;
    ring.points = (naive_point *)malloc(((size_t)plb_view_weight_sum(view) * multiple + 1) * sizeof *ring.points);
    for (owner = 0; ring.points != NULL && owner < plb_view_count(view); owner++) {
        uint32_t left = plb_view_weight(view, owner) * multiple, point = 0, prefix;
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

static plb_balancer *new_balancer_of(plb_backend *backends, size_t count, const plb_ketama_desc *ketama)
{
    plb_static_desc list = {NULL, 0, NULL, 0, 0};
    plb_balancer_desc desc;
    plb_balancer *lb = NULL;
    memset(&desc, 0, sizeof desc);
    list.backends = backends;
    list.backend_count = count;
    desc.discovery = plb_static(&list);
    desc.strategy = plb_ketama(ketama);
    if (backends == NULL || plb_create(&desc, &lb) != PLB_OK)
        abort();
    free(backends);
    return lb;
}

static plb_balancer *new_balancer(plb_backend *backends, size_t count)
{
    return new_balancer_of(backends, count, NULL);
}

static const plb__set *set_of(const plb_balancer *lb)
{
    return (const plb__set *)lb->current;
}

/* ==== the rules ==== */

static bool found_from(const plb__ring *ring, const naive_ring *naive, uint32_t hash)
{
    const naive_point *expected = naive_find(naive, hash);
    uint32_t at = plb__ring_seek(ring, hash);
    return ring->points[at] == expected->point && plb__ring_owner(ring, at) == expected->owner;
}

TEST equals_the_sorted_array(plb_balancer *lb, uint32_t multiple)
{
    const plb__set *set = set_of(lb);
    const plb__ring *ring = (const plb__ring *)set->tiers[0].table;
    naive_ring naive = naive_build(&set->tiers[0].view, multiple);
    uint32_t at;
    size_t i;
    ASSERT(naive.points != NULL && naive.count > 0);
    for (at = plb__ring_seek(ring, 0), i = 0; i < naive.count; i++, at = plb__ring_next(ring, at)) {
        ASSERT_EQ_FMTm("a walk around the ring", naive.points[i].point, ring->points[at], "%x");
        ASSERT_EQ_FMTm("a walk around the ring", naive.points[i].owner, plb__ring_owner(ring, at), "%u");
    }
    ASSERT_EQ_FMTm("the walk begins again", plb__ring_seek(ring, 0), at, "%u");
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

TEST the_crc_is_that_of_its_definition(void)
{
    uint8_t bytes[80];
    size_t length, from;
    for (length = 0; length < sizeof bytes; length++)
        bytes[length] = (uint8_t)random_below(256);
    for (from = 0; from < 16; from++)
        for (length = 0; from + length <= sizeof bytes; length++)
            ASSERT_EQ_FMT(naive_crc(0, bytes + from, length), ~plb__crc_update(UINT32_MAX, bytes + from, length), "%x");
    ASSERT_EQ_FMT(UINT32_C(0xcbf43926), ~plb__crc_update(UINT32_MAX, "123456789", 9), "%x");
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
        CHECK_CALL(equals_the_sorted_array(new_balancer(backends, count), 160));
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
    return equals_the_sorted_array(new_balancer(backends, count), 160);
}

TEST one_heavy_backend(void)
{
    plb_backend *backends = new_backends(1);
    backends->addr = random_addr();
    backends->weight = 3000;
    return equals_the_sorted_array(new_balancer(backends, 1), 160);
}

TEST any_number_of_points_for_a_unit_of_weight(void)
{
    static const uint32_t multiples[] = {1, 2, 3, 4, 5, 40, 159, 161, 1000};
    size_t m, i, count;
    for (m = 0; m < sizeof multiples / sizeof *multiples; m++) {
        for (count = 1; count <= 64; count *= 8) {
            plb_ketama_desc desc = {0, 0};
            plb_backend *backends = new_backends(count);
            desc.point_multiple = multiples[m];
            for (i = 0; i < count; i++) {
                backends[i].addr = random_addr();
                backends[i].weight = 1 + (uint32_t)i % 3;
            }
            CHECK_CALL(equals_the_sorted_array(new_balancer_of(backends, count, &desc), multiples[m]));
        }
    }
    PASS();
}

/* One address under many ids: every point stands on the ring a thousand times and counts once. */
TEST one_address_with_many_ids(void)
{
    uint32_t i, count = 1000;
    plb_backend *backends = new_backends(count);
    for (i = 0; i < count; i++) {
        plb_addr_parse(&backends[i].addr, "10.0.0.1:80", PLB_ZSTRING);
        backends[i].weight = 1;
        backends[i].id = i;
    }
    return equals_the_sorted_array(new_balancer(backends, count), 160);
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
    return equals_the_sorted_array(new_balancer(backends, count), 160);
}

/* The manual promises 6.6 bytes a point, and 9.3 for the time of a build. */
TEST a_ring_is_no_larger_than_promised(void)
{
    uint32_t points;
    for (points = 0; points < 40000000; points += 1 + points / 50) {
        plb__ring ring;
        size_t groups;
        ring.shift = plb__ring_shift(points);
        groups = plb__ring_groups(&ring);
        ASSERT(groups * 4 * 10 <= (size_t)points * 6 + 80);
        ASSERT(groups < 4 || groups * 2 * PLB__GROUP_POINTS >= points / 2);
    }
    PASS();
}

/* ==== rings made from others ==== */

static bool same_ring(const plb__ring *a, const plb__ring *b)
{
    return a->size == b->size && a->count == b->count && a->backends == b->backends && a->shift == b->shift &&
           memcmp(a + 1, b + 1, a->size - sizeof *a) == 0;
}

/* The published ring, however it came about, is the one that a build from nothing makes. */
static bool as_if_built(const plb_balancer *lb)
{
    const plb__set *set = set_of(lb);
    void *fresh = NULL;
    bool same;
    if (plb__ketama_build(lb->strategy_state, &set->tiers[0].view, NULL, NULL, &fresh) != PLB_OK)
        abort();
    same = same_ring((const plb__ring *)set->tiers[0].table, (const plb__ring *)fresh);
    plb__table_discard(lb->strategy_state, fresh);
    return same;
}

static bool replace(plb_balancer *lb, const plb_backend *backends, size_t count)
{
    if (plb_replace(lb, backends, count) != PLB_OK)
        abort();
    plb_poll(lb);
    return plb_view_count(&set_of(lb)->tiers[0].view) > 0;
}

static void change_at_random(plb_backend *list, size_t *count, size_t capacity)
{
    size_t at = random_below((uint32_t)*count), gone = random_below(4) == 0 ? 1 + random_below(5) : 1;
    switch (random_below(4)) {
    case 0:
        for (; gone > 0 && *count > 2; gone--) {
            at = random_below((uint32_t)*count);
            list[at] = list[--*count];
        }
        break;
    case 1:
        list[at].weight = random_below(6);
        break;
    default:
        if (*count == capacity)
            break;
        memset(&list[*count], 0, sizeof *list);
        list[*count].addr = random_below(4) == 0 ? list[at].addr : random_addr();
        list[*count].id = random_below(3);
        list[(*count)++].weight = random_below(4);
    }
}

TEST an_amended_ring_is_as_if_built(void)
{
    enum { CAPACITY = 400 };
    int round, step;
    for (round = 0; round < (PLB__SMALL ? 1 : 6); round++) { /* small code amends nothing */
        plb_backend *list = new_backends(CAPACITY), *first = new_backends(1);
        size_t count = 150 + random_below(200), i;
        plb_ketama_desc desc = {0, 0};
        plb_balancer *lb;
        desc.point_multiple = round % 2 != 0 ? 0 : 1 + random_below(50);
        for (i = 0; i < count; i++) {
            list[i].addr = random_addr();
            list[i].weight = 1 + random_below(3);
        }
        first[0] = list[0];
        lb = new_balancer_of(first, 1, &desc);
        for (step = 0; step < 150; step++) {
            ASSERT(replace(lb, list, count));
            ASSERT(as_if_built(lb));
            change_at_random(list, &count, CAPACITY);
        }
        plb_destroy(lb);
        free(list);
    }
    PASS();
}

/* Real addresses of which two have a point in common: the first in the set has it, then the other, then the first
   again. */
TEST a_shadowed_point_comes_back(void)
{
    uint32_t i, count = 2000, at, pairs = 0;
    plb_backend *list = new_backends(count), *copy = new_backends(count), *without = new_backends(count);
    plb_balancer *lb;
    plb__ring *ring;
    for (i = 0; i < count; i++) {
        char text[PLB_ADDR_TEXT_MAX];
        snprintf(text, sizeof text, "10.1.%u.%u:80", (unsigned)(i / 250), (unsigned)(i % 250));
        plb_addr_parse(&list[i].addr, text, PLB_ZSTRING);
        list[i].weight = 1;
    }
    memcpy(copy, list, count * sizeof *list);
    lb = new_balancer(copy, count);
    for (at = 1; at < count * 160; at++) {
        uint32_t point, one, other, left = 0;
        plb_addr loser;
        ring = (plb__ring *)set_of(lb)->tiers[0].table;
        point = ring->points[at];
        if (point != ring->points[at - 1])
            continue;
        one = plb__ring_owner(ring, at - 1), other = plb__ring_owner(ring, at);
        ASSERT(one < other);
        ASSERT_EQ_FMT(one, plb__ring_owner(ring, plb__ring_seek(ring, point)), "%u");
        ASSERTm("passed over", ring->points[plb__ring_next(ring, at - 1)] != point);
        plb_view_addr(&set_of(lb)->tiers[0].view, one, &loser);
        for (i = 0; i < count; i++)
            if (plb_addr_compare(&list[i].addr, &loser) != 0)
                without[left++] = list[i];
        ASSERT_EQ(count - 1, left);
        ASSERT(replace(lb, without, left) && as_if_built(lb));
        ring = (plb__ring *)set_of(lb)->tiers[0].table;
        ASSERT_EQ_FMT(other - 1, plb__ring_owner(ring, plb__ring_seek(ring, point)), "%u");
        ASSERT(replace(lb, list, count) && as_if_built(lb));
        pairs++;
    }
    ASSERTm("no two addresses with a point in common", pairs > 0);
    plb_destroy(lb);
    free(list);
    free(without);
    PASS();
}

/* A larger ring has more groups, so one backend more may mean that nothing can be kept. */
TEST a_ring_that_outgrows_its_groups_and_shrinks_again(void)
{
    uint32_t i, count = 200, capacity = 1000;
    plb_backend *list = new_backends(capacity), *copy = new_backends(capacity);
    plb_balancer *lb;
    for (i = 0; i < capacity; i++) {
        list[i].addr = random_addr();
        list[i].weight = 1;
    }
    while (plb__ring_shift(count * 160) == plb__ring_shift(count * 160 + 160))
        count++;
    memcpy(copy, list, capacity * sizeof *list);
    lb = new_balancer(copy, count);
    ASSERT(replace(lb, list, count + 1) && as_if_built(lb));
    ASSERT(replace(lb, list, count) && as_if_built(lb));
    plb_destroy(lb);
    free(list);
    PASS();
}

/* Numbers of backends take more bytes from here on. */
TEST a_set_that_outgrows_16_bits_and_shrinks_again(void)
{
    uint32_t i, count = 65540, sizes[6] = {65534, 65535, 65536, 65538, 65535, 65533}, s;
    plb_backend *list = new_backends(count), *copy = new_backends(count);
    plb_balancer *lb;
    for (i = 0; i < count; i++) {
        list[i].addr.family = PLB_FAMILY_IPV4;
        list[i].addr.port = 80;
        list[i].addr.u.v4[1] = (uint8_t)(i >> 16), list[i].addr.u.v4[2] = (uint8_t)(i >> 8);
        list[i].addr.u.v4[3] = (uint8_t)i;
        list[i].weight = i % 100 == 0 || i > 65530;
    }
    memcpy(copy, list, count * sizeof *list);
    lb = new_balancer(copy, 65533);
    for (s = 0; s < 6; s++)
        ASSERT(replace(lb, list, sizes[s]) && as_if_built(lb));
    /* one address twice at the end: the first of them goes on, the second leaves, another comes elsewhere */
    list[65535].addr = list[65534].addr;
    list[65535].id = 1;
    ASSERT(replace(lb, list, 65536) && as_if_built(lb));
    list[65535].addr = list[0].addr;
    ASSERT(replace(lb, list, 65536) && as_if_built(lb));
    plb_destroy(lb);
    free(list);
    PASS();
}

/* ==== builds that fail ==== */

static int allocations_left;
static size_t bytes_out, bytes_most;

static void *scarce_alloc(void *user, size_t size)
{
    (void)user;
    if (allocations_left-- <= 0)
        return NULL;
    bytes_out += size;
    bytes_most = bytes_out > bytes_most ? bytes_out : bytes_most;
    return malloc(size);
}

static void scarce_dealloc(void *user, void *ptr, size_t size)
{
    (void)user;
    bytes_out -= size;
    free(ptr);
}

/* Makes allocation after allocation fail until the build succeeds, and says how many it takes. */
static enum greatest_test_res build_step_by_step(plb__ketama_state *state, const plb_view *view,
                                                 const plb_view *old_view, void *old_table, int *allocations)
{
    plb_status status;
    void *table = NULL, *before = NULL;
    int i;
    if (old_table != NULL) {
        before = malloc(((plb__ring *)old_table)->size);
        memcpy(before, old_table, ((plb__ring *)old_table)->size);
    }
    for (i = 0;; i++) {
        allocations_left = i;
        status = plb__ketama_build(state, view, old_view, old_table, &table);
        if (status == PLB_OK)
            break;
        ASSERT_EQ(PLB_ERR_MEMORY, status);
        ASSERT_EQ_FMT((size_t)0, bytes_out, "%zu");
    }
    ASSERT_EQ_FMT(((plb__ring *)table)->size, bytes_out, "%zu");
    plb__table_discard(state, table);
    ASSERT_EQ_FMT((size_t)0, bytes_out, "%zu");
    if (old_table != NULL)
        ASSERT_EQm("the old ring is as it was", 0, memcmp(before, old_table, ((plb__ring *)old_table)->size));
    free(before);
    *allocations = i;
    PASS();
}

static plb_balancer *row_of_backends(uint32_t count)
{
    plb_backend *backends = new_backends(count);
    uint32_t i;
    for (i = 0; i < count; i++) {
        backends[i].addr.family = PLB_FAMILY_IPV4;
        backends[i].addr.port = 80;
        backends[i].addr.u.v4[2] = (uint8_t)(i >> 8), backends[i].addr.u.v4[3] = (uint8_t)i;
        backends[i].weight = 1;
    }
    return new_balancer(backends, count);
}

TEST a_build_without_memory_leaves_nothing_behind(void)
{
    plb__ketama_state state = {{scarce_alloc, scarce_dealloc, NULL}, 1u << 24, 160};
    plb_balancer *lb = row_of_backends(100), *other = row_of_backends(101);
    const plb__set *set = set_of(lb), *one_more = set_of(other);
    int allocations;
    void *table = NULL;
    CHECK_CALL(build_step_by_step(&state, &set->tiers[0].view, NULL, NULL, &allocations));
    ASSERT_EQ(PLB__SMALL ? 1 : 3, allocations);
    CHECK_CALL(
        build_step_by_step(&state, &one_more->tiers[0].view, &set->tiers[0].view, set->tiers[0].table, &allocations));
    ASSERT_EQm("one for the difference, a ring and twice three", PLB__SMALL ? 1 : 8, allocations);
    state.max_points = 100 * 160 - 1;
    allocations_left = 100;
    ASSERT_EQ(PLB_ERR_POINTS, plb__ketama_build(&state, &set->tiers[0].view, NULL, NULL, &table));
    state.max_points = UINT32_MAX;
    state.point_multiple = UINT32_C(1) << 31;
    ASSERT_EQ(PLB_ERR_POINTS, plb__ketama_build(&state, &set->tiers[0].view, NULL, NULL, &table));
    plb_destroy(lb);
    plb_destroy(other);
    PASS();
}

TEST a_build_takes_no_more_memory_than_promised(void)
{
    uint32_t count;
    for (count = 900; count < 4000; count += 217) {
        plb__ketama_state state = {{scarce_alloc, scarce_dealloc, NULL}, 1u << 24, 160};
        plb_balancer *lb = row_of_backends(count), *other = row_of_backends(count + 1);
        const plb__set *set = set_of(lb), *one_more = set_of(other);
        size_t points = (size_t)count * 160, ring_bytes;
        void *table = NULL;
        allocations_left = 100;
        bytes_most = 0;
        ASSERT_EQ(PLB_OK, plb__ketama_build(&state, &set->tiers[0].view, NULL, NULL, &table));
        ring_bytes = bytes_out;
        ASSERT(ring_bytes * 10 <= points * 66);
        ASSERT((bytes_most - ring_bytes) * 10 <= points * 93 + 10 * 48 * 1024);
        plb__table_discard(&state, table);
        bytes_most = 0;
        ASSERT_EQ(PLB_OK, plb__ketama_build(&state, &one_more->tiers[0].view, &set->tiers[0].view, set->tiers[0].table,
                                            &table));
        if (plb__ring_shift(count * 160) == plb__ring_shift(count * 160 + 160))
            ASSERTm("amended", bytes_most - bytes_out < points / 2);
        plb__table_discard(&state, table);
        plb_destroy(lb);
        plb_destroy(other);
    }
    PASS();
}

SUITE(ring)
{
    RUN_TEST(the_crc_is_that_of_its_definition);
    RUN_TEST(random_sets);
    RUN_TEST(any_number_of_points_for_a_unit_of_weight);
    RUN_TEST(one_address_with_many_ids);
    RUN_TEST(one_address_with_many_weights);
    RUN_TEST(one_heavy_backend);
    RUN_TEST(more_backends_than_16_bits_can_number);
    RUN_TEST(a_ring_is_no_larger_than_promised);
    RUN_TEST(an_amended_ring_is_as_if_built);
    RUN_TEST(a_shadowed_point_comes_back);
    RUN_TEST(a_ring_that_outgrows_its_groups_and_shrinks_again);
    RUN_TEST(a_set_that_outgrows_16_bits_and_shrinks_again);
    RUN_TEST(a_build_without_memory_leaves_nothing_behind);
    RUN_TEST(a_build_takes_no_more_memory_than_promised);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(ring);
    GREATEST_MAIN_END();
}
