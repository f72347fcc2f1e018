/* Memory: the arena, the default allocator, a balancer without a heap. And what a program reads first: status,
   version. */
#include <stddef.h>
#include <stdlib.h>

static size_t heap_blocks;     /* of the library's, not given back yet */
static size_t heap_fails_from; /* the n-th request from now on fails, and all after it; 0: none does */
static size_t heap_requests;

static void *heap_malloc(size_t size)
{
    void *ptr;
    heap_requests++;
    if (heap_fails_from != 0 && heap_requests >= heap_fails_from)
        return NULL;
    ptr = malloc(size);
    heap_blocks += ptr != NULL;
    return ptr;
}

static void heap_free(void *ptr)
{
    heap_blocks--;
    free(ptr);
}

#define PINGORA_LB_IMPLEMENTATION
#define PLB_MALLOC(size) heap_malloc(size)
#define PLB_FREE(ptr)    heap_free(ptr)
#include "../pingora_lb.h"
#include <greatest.h>

/* Whatever a program may want to keep in a block. */
typedef union anything {
    void *pointer;
    void (*function)(void);
    uint64_t integer;
    double number;
} anything;

static uint64_t random_state = 1;

static uint32_t random_below(uint32_t limit)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state % limit);
}

/* The largest block that the allocator can serve now. */
static size_t largest(const plb_allocator *a, size_t limit)
{
    for (; limit > 0; limit--) {
        void *ptr = a->alloc(a->user, limit);
        if (ptr == NULL)
            continue;
        a->dealloc(a->user, ptr, limit);
        return limit;
    }
    return 0;
}

/* ==== ARENA ======================================================================================================= */

typedef struct block {
    unsigned char *bytes;
    size_t size;
    unsigned char fill;
} block;

static bool block_is_intact(const block *b)
{
    size_t i;
    for (i = 0; i < b->size; i++)
        if (b->bytes[i] != b->fill)
            return false;
    return true;
}

TEST blocks_never_overlap_and_all_come_back(void)
{
    enum { SIZE = 20000, BLOCKS = 64, STEPS = 20000 };
    static uint64_t memory[SIZE / 8];
    unsigned char *begin = (unsigned char *)memory, *end = begin + SIZE;
    block blocks[BLOCKS];
    plb_arena arena;
    plb_allocator a = plb_arena_allocator(&arena, memory, SIZE);
    size_t whole = largest(&a, SIZE), live = 0, peak;
    int step, served = 0, refused = 0;
    memset(blocks, 0, sizeof blocks);
    for (step = 0; step < STEPS; step++) {
        block *b = &blocks[random_below(BLOCKS)];
        if (b->bytes != NULL) {
            ASSERT(block_is_intact(b));
            a.dealloc(a.user, b->bytes, b->size);
            live -= b->size;
            b->bytes = NULL;
            continue;
        }
        b->size = 1 + random_below(random_below(4) == 0 ? 4000 : 100);
        b->bytes = (unsigned char *)a.alloc(a.user, b->size);
        if (b->bytes == NULL) {
            refused++;
            continue;
        }
        served++;
        ASSERT_EQ(0, (uintptr_t)b->bytes % sizeof(anything));
        ASSERT(b->bytes >= begin && b->bytes + b->size <= end);
        b->fill = (unsigned char)step;
        memset(b->bytes, b->fill, b->size);
        live += b->size;
        ASSERT(arena.used >= live && arena.used <= SIZE && arena.peak >= arena.used);
    }
    ASSERT(served > STEPS / 4 && refused > 0);
    peak = arena.peak;
    for (step = 0; step < BLOCKS; step++) {
        if (blocks[step].bytes == NULL)
            continue;
        ASSERT(block_is_intact(&blocks[step]));
        a.dealloc(a.user, blocks[step].bytes, blocks[step].size);
    }
    ASSERT_EQ(0, arena.used);
    ASSERT_EQ(peak, arena.peak);
    ASSERT_EQ(whole, largest(&a, SIZE));
    PASS();
}

/* Three neighbours given back in every order leave one hole, not three. */
TEST neighbours_are_merged_in_whatever_order_they_come_back(void)
{
    static const int orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    static uint64_t memory[64];
    int i, k;
    for (i = 0; i < 6; i++) {
        plb_arena arena;
        plb_allocator a = plb_arena_allocator(&arena, memory, sizeof memory);
        size_t whole = largest(&a, sizeof memory), third = whole / 3 / 16 * 16;
        void *parts[3];
        for (k = 0; k < 3; k++) {
            parts[k] = a.alloc(a.user, k < 2 ? third : whole - 2 * third);
            ASSERT(parts[k] != NULL);
        }
        ASSERT_EQ(NULL, a.alloc(a.user, 1));
        for (k = 0; k < 3; k++) {
            int part = orders[i][k];
            a.dealloc(a.user, parts[part], part < 2 ? third : whole - 2 * third);
        }
        ASSERT_EQ(whole, largest(&a, sizeof memory));
    }
    PASS();
}

TEST any_start_and_any_size_will_do(void)
{
    static uint64_t memory[40];
    unsigned char *bytes = (unsigned char *)memory;
    size_t start, size, i;
    for (start = 0; start < 20; start++) {
        for (size = 0; size < 100; size++) {
            plb_arena arena;
            plb_allocator a;
            void *ptr;
            memset(memory, 0xa5, sizeof memory);
            a = plb_arena_allocator(&arena, bytes + start, size);
            while ((ptr = a.alloc(a.user, 1)) != NULL) {
                ASSERT_EQ(0, (uintptr_t)ptr % sizeof(anything));
                memset(ptr, 0, sizeof(anything));
                ASSERT(arena.used <= size);
            }
            ASSERT(arena.used + 2 * sizeof(anything) + 16 > size); /* no more is lost than at both ends */
            for (i = 0; i < sizeof memory; i++)
                ASSERT((i >= start && i < start + size) || bytes[i] == 0xa5);
        }
    }
    PASS();
}

TEST an_arena_of_nothing_serves_nothing(void)
{
    plb_arena arena;
    plb_allocator a = plb_arena_allocator(&arena, NULL, 0);
    ASSERT_EQ(NULL, a.alloc(a.user, 1));
    ASSERT_EQ(0, arena.used);
    ASSERT_EQ(0, arena.peak);
    PASS();
}

TEST sizes_near_the_end_of_the_address_space_are_refused(void)
{
    static uint64_t memory[64];
    plb_arena arena;
    plb_allocator a = plb_arena_allocator(&arena, memory, sizeof memory);
    size_t less;
    for (less = 0; less < 70; less++)
        ASSERT_EQ(NULL, a.alloc(a.user, SIZE_MAX - less));
    ASSERT(a.alloc(a.user, 100) != NULL);
    PASS();
}

/* ==== A BALANCER WITHOUT A HEAP =================================================================================== */

/* Changes the set, holds picks over the changes, ends in between; whatever memory there is, nothing is lost. */
static void exercise(plb_balancer *lb)
{
    static const char *const texts[] = {"10.0.0.1:80", "10.0.0.2:80", "[::1]:80", "unix:/run/a", "10.0.0.3:80"};
    plb_backend backends[5];
    plb_pick picks[4];
    int i, round;
    for (i = 0; i < 5; i++)
        plb_backend_parse(&backends[i], texts[i], PLB_ZSTRING, NULL);
    for (round = 0; round < 10; round++) {
        for (i = 0; i < 4; i++)
            plb_begin(lb, NULL, &picks[i]);
        plb_replace(lb, backends + round % 3, 1 + (size_t)(round * 7 % 3));
        plb_poll(lb);
        plb_add(lb, &backends[(round + 4) % 5]);
        plb_poll(lb);
        for (i = 0; i < 4; i++)
            plb_end(&picks[i], PLB_OUTCOME_SUCCESS, 0);
        plb_poll(lb);
    }
}

static plb_status create_in(const plb_allocator *a, plb_balancer **lb)
{
    static const char *const addresses[] = {"10.0.0.1:80", "10.0.0.2:80"};
    plb_static_desc list;
    plb_balancer_desc desc;
    memset(&list, 0, sizeof list);
    memset(&desc, 0, sizeof desc);
    list.addresses = addresses;
    list.address_count = 2;
    desc.discovery = plb_static(&list);
    desc.strategy = plb_ketama(NULL);
    if (a != NULL)
        desc.allocator = *a;
    return plb_create(&desc, lb);
}

TEST a_balancer_lives_in_an_array_and_gives_all_of_it_back(void)
{
    static uint64_t memory[65536 / 8];
    size_t requests = heap_requests, whole;
    plb_balancer *lb;
    plb_addr addr;
    plb_arena arena;
    plb_allocator a = plb_arena_allocator(&arena, memory, sizeof memory);
    whole = largest(&a, sizeof memory);
    ASSERT_EQ(PLB_OK, create_in(&a, &lb));
    exercise(lb);
    ASSERT_EQ(PLB_OK, plb_select(lb, "key", 3, 0, &addr));
    plb_destroy(lb);
    ASSERT_EQ(0, arena.used);
    ASSERT_EQ(whole, largest(&a, sizeof memory));
    ASSERT_EQ(requests, heap_requests);
    PASS();
}

TEST nothing_grows_with_the_number_of_updates(void)
{
    static uint64_t memory[65536 / 8];
    size_t peak = 0;
    int round;
    plb_balancer *lb;
    plb_arena arena;
    plb_allocator a = plb_arena_allocator(&arena, memory, sizeof memory);
    ASSERT_EQ(PLB_OK, create_in(&a, &lb));
    for (round = 0; round < 50; round++) {
        exercise(lb);
        if (round == 3)
            peak = arena.peak;
    }
    ASSERT_EQ(peak, arena.peak);
    plb_destroy(lb);
    PASS();
}

TEST an_array_of_any_size_is_survived(void)
{
    static uint64_t memory[16384 / 8];
    size_t size, refused = 0, served = 0;
    for (size = 0; size <= sizeof memory; size += 24) {
        plb_balancer *lb;
        plb_arena arena;
        plb_allocator a = plb_arena_allocator(&arena, memory, size);
        plb_status status = create_in(&a, &lb);
        ASSERT(status == PLB_OK || status == PLB_ERR_MEMORY);
        if (status == PLB_OK) {
            exercise(lb);
            plb_destroy(lb);
            served++;
        } else {
            ASSERT_EQ(NULL, lb);
            refused++;
        }
        ASSERT_EQ(0, arena.used);
    }
    ASSERT(refused > 0 && served > 0);
    PASS();
}

TEST malloc_and_free_are_the_default(void)
{
    plb_balancer *lb;
    size_t requests = heap_requests;
    ASSERT_EQ(PLB_OK, create_in(NULL, &lb));
    exercise(lb);
    ASSERT(heap_requests > requests && heap_blocks > 0);
    plb_destroy(lb);
    ASSERT_EQ(0, heap_blocks);
    PASS();
}

TEST a_heap_that_runs_dry_at_any_moment_is_survived(void)
{
    size_t n, needed;
    plb_balancer *lb;
    heap_requests = 0;
    ASSERT_EQ(PLB_OK, create_in(NULL, &lb));
    exercise(lb);
    plb_destroy(lb);
    needed = heap_requests;
    for (n = 1; n <= needed; n++) {
        plb_status status;
        heap_requests = 0;
        heap_fails_from = n;
        status = create_in(NULL, &lb);
        if (status == PLB_OK) {
            exercise(lb);
            plb_destroy(lb);
        }
        heap_fails_from = 0;
        ASSERT(status == PLB_OK || status == PLB_ERR_MEMORY);
        ASSERT_EQ_FMT((size_t)0, heap_blocks, "%zu");
    }
    PASS();
}

/* A select, a pick and a look at every backend cost no memory. */
static bool look(void *user, const plb_backend_info *info)
{
    (void)user;
    return info->ready;
}

TEST picking_allocates_nothing(void)
{
    plb_request request;
    plb_balancer *lb;
    plb_addr addr;
    plb_pick pick;
    plb_walk walk;
    plb_backend_info info;
    size_t requests;
    ASSERT_EQ(PLB_OK, create_in(NULL, &lb));
    memset(&request, 0, sizeof request);
    requests = heap_requests;
    ASSERT_EQ(PLB_OK, plb_select(lb, "k", 1, 0, &addr));
    ASSERT_EQ(PLB_OK, plb_select_with(lb, &request, &addr));
    ASSERT_EQ(PLB_OK, plb_begin(lb, &request, &pick));
    plb_end(&pick, PLB_OUTCOME_SUCCESS, 1);
    ASSERT_EQ(PLB_OK, plb_walk_begin(&walk, lb, "k", 1));
    plb_walk_next(&walk, &info);
    plb_walk_end(&walk);
    plb_each(lb, look, NULL);
    ASSERT_EQ(PLB_OK, plb_set_enabled(lb, &addr, 0, false));
    ASSERT_FALSE(plb_ready(lb, &addr, 0));
    ASSERT_EQ(requests, heap_requests);
    plb_destroy(lb);
    PASS();
}

/* ==== STATUS AND VERSION ========================================================================================== */

/* A capital, some words, one full stop. */
static bool is_sentence(const char *text)
{
    size_t length = strlen(text), i;
    if (length < 8 || text[0] < 'A' || text[0] > 'Z' || text[length - 1] != '.')
        return false;
    for (i = 0; i < length; i++)
        if (text[i] < ' ' || text[i] > '~' || (text[i] == '.' && i < length - 1))
            return false;
    return true;
}

TEST every_status_has_a_sentence_of_its_own(void)
{
    int i, j;
    for (i = 0; i < PLB_STATUS_COUNT; i++) {
        const char *text = plb_status_text((plb_status)i);
        ASSERTm(text, is_sentence(text));
        for (j = 0; j < i; j++)
            ASSERT(strcmp(text, plb_status_text((plb_status)j)) != 0);
    }
    PASS();
}

TEST what_is_no_status_has_a_sentence_too(void)
{
    static const int values[] = {PLB_STATUS_COUNT, PLB_STATUS_COUNT + 1, 1 << 20, -1};
    size_t i;
    for (i = 0; i < sizeof values / sizeof *values; i++) {
        plb_status status;
        memset(&status, 0, sizeof status);
        memcpy(&status, &values[i], sizeof status < sizeof values[i] ? sizeof status : sizeof values[i]);
        ASSERT(is_sentence(plb_status_text(status)));
    }
    PASS();
}

TEST failures_of_this_side_are_told_from_the_peers(void)
{
    static const plb_status local[] = {PLB_ERR_ARGUMENT, PLB_ERR_MEMORY, PLB_ERR_LIMIT,    PLB_ERR_UNSUPPORTED,
                                       PLB_ERR_IN_USE,   PLB_ERR_ACCESS, PLB_ERR_CANCELLED};
    static const plb_status others[] = {
        PLB_OK,          PLB_AGAIN,        PLB_END,      PLB_ERR_REFUSED, PLB_ERR_UNREACHABLE, PLB_ERR_RESET,
        PLB_ERR_TIMEOUT, PLB_ERR_PROTOCOL, PLB_ERR_NAME, PLB_ERR_EMPTY,   PLB_ERR_NOT_READY};
    size_t i;
    for (i = 0; i < sizeof local / sizeof *local; i++)
        ASSERTm(plb_status_text(local[i]), plb_status_is_local(local[i]));
    for (i = 0; i < sizeof others / sizeof *others; i++)
        ASSERT_FALSEm(plb_status_text(others[i]), plb_status_is_local(others[i]));
    PASS();
}

TEST the_version_is_the_headers(void)
{
    char text[32];
    snprintf(text, sizeof text, "%d.%d.%d", PLB_VERSION_NUMBER / 10000, PLB_VERSION_NUMBER / 100 % 100,
             PLB_VERSION_NUMBER % 100);
    ASSERT_STR_EQ(PLB_VERSION, plb_version());
    ASSERT_STR_EQ(PLB_VERSION, text);
    PASS();
}

SUITE(arena)
{
    RUN_TEST(blocks_never_overlap_and_all_come_back);
    RUN_TEST(neighbours_are_merged_in_whatever_order_they_come_back);
    RUN_TEST(any_start_and_any_size_will_do);
    RUN_TEST(an_arena_of_nothing_serves_nothing);
    RUN_TEST(sizes_near_the_end_of_the_address_space_are_refused);
}

SUITE(balancers)
{
    RUN_TEST(a_balancer_lives_in_an_array_and_gives_all_of_it_back);
    RUN_TEST(nothing_grows_with_the_number_of_updates);
    RUN_TEST(an_array_of_any_size_is_survived);
    RUN_TEST(malloc_and_free_are_the_default);
    RUN_TEST(a_heap_that_runs_dry_at_any_moment_is_survived);
    RUN_TEST(picking_allocates_nothing);
}

SUITE(status_and_version)
{
    RUN_TEST(every_status_has_a_sentence_of_its_own);
    RUN_TEST(what_is_no_status_has_a_sentence_too);
    RUN_TEST(failures_of_this_side_are_told_from_the_peers);
    RUN_TEST(the_version_is_the_headers);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(arena);
    RUN_SUITE(balancers);
    RUN_SUITE(status_and_version);
    GREATEST_MAIN_END();
}
