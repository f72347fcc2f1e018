/* Handles: picks by them, their memory, and sets that go and stay while they are open. */
#define _POSIX_C_SOURCE 200809L
#include "../pingora_lb.h"
#define SIM_IMPLEMENTATION
#include "sim.h"
#include <greatest.h>
#include "rig.h"
#include <pthread.h>
#include <time.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* Backend number n, in the order of numbers. */
static plb_backend nth(uint32_t n, uint32_t weight)
{
    plb_backend backend = rig_backend("10.0.0.1:80", weight);
    backend.addr.u.v4[3] = (uint8_t)n;
    return backend;
}

static size_t backends_of(plb_backend *out, uint32_t count, uint32_t weight)
{
    uint32_t n;
    for (n = 0; n < count; n++)
        out[n] = nth(n, weight);
    return count;
}

static void begin(rig *r, feed *f, plb_strategy strategy)
{
    rig_begin(r);
    memset(f, 0, sizeof *f);
    r->desc.strategy = strategy;
    r->desc.discovery = feed_discovery(f, false);
    r->desc.log = NULL;
}

static plb_status create(rig *r, feed *f, plb_strategy strategy, uint32_t count)
{
    static plb_backend backends[256];
    begin(r, f, strategy);
    feed_set(f, backends, backends_of(backends, count, 1));
    return rig_create(r);
}

/* Publishes sets in which one backend weighs something else each time. */
static void publish(rig *r, feed *f, uint32_t times)
{
    static plb_backend backends[3];
    static uint32_t weight = 1;
    feed_set(f, backends, backends_of(backends, 3, 1));
    while (times-- > 0) {
        backends[1].weight = weight = weight % 1000 + 1;
        plb_update_now(r->lb);
        plb_poll(r->lb);
        plb_poll(r->lb);
    }
}

static plb_handle *open_handle(plb_balancer *lb)
{
    plb_handle *handle;
    if (plb_handle_open(lb, &handle) != PLB_OK) {
        fprintf(stderr, "test_handles: no handle\n");
        abort();
    }
    return handle;
}

static uint32_t by_handle(plb_handle *handle, uint32_t key, uint32_t limit)
{
    plb_addr addr;
    return plb_handle_select(handle, &key, sizeof key, limit, &addr) == PLB_OK ? addr.u.v4[3] : PLB_NONE;
}

static uint32_t by_anybody(plb_balancer *lb, uint32_t key, uint32_t limit)
{
    plb_addr addr;
    return plb_select(lb, &key, sizeof key, limit, &addr) == PLB_OK ? addr.u.v4[3] : PLB_NONE;
}

static plb_strategy ketama(void)
{
    return plb_ketama(NULL);
}

typedef plb_strategy (*strategy_fn)(void);
static const strategy_fn strategies[] = {plb_round_robin, plb_random_choice, plb_fnv, ketama};

/* ==== ANSWERS ===================================================================================================== */

TEST a_key_gets_the_same_by_a_handle(strategy_fn strategy)
{
    uint32_t key, i;
    plb_handle *handle;
    plb_addr addr;
    rig r;
    feed f;
    ASSERT_EQ(PLB_OK, create(&r, &f, strategy(), 20));
    for (i = 0; i < 20; i += 3) {
        addr = nth(i, 1).addr;
        plb_set_enabled(r.lb, &addr, 0, false);
    }
    handle = open_handle(r.lb);
    for (key = 0; key < 500; key++)
        for (i = 0; i < 3; i++) {
            static const uint32_t limits[] = {0, 2, 256};
            uint32_t wanted = by_anybody(r.lb, key, limits[i]);
            plb_request request;
            plb_pick pick;
            memset(&request, 0, sizeof request);
            request.key = &key;
            request.key_length = sizeof key;
            request.max_iterations = limits[i];
            ASSERT_EQ(wanted, by_handle(handle, key, limits[i]));
            ASSERT_EQ(wanted != PLB_NONE, plb_handle_select_with(handle, &request, &addr) == PLB_OK);
            ASSERT_EQ(wanted != PLB_NONE, plb_handle_begin(handle, &request, &pick) == PLB_OK);
            if (wanted == PLB_NONE)
                continue;
            ASSERT_EQ(wanted, addr.u.v4[3]);
            ASSERT_EQ(wanted, pick.addr.u.v4[3]);
            plb_end(&pick, PLB_OUTCOME_SUCCESS, 1);
        }
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST each_handle_goes_round_by_itself_and_leaves_the_common_turn_alone(void)
{
    plb_backend backends[5];
    plb_handle *first, *second;
    uint32_t i, by_first[5] = {0}, by_second[5] = {0}, before;
    rig r;
    feed f;
    begin(&r, &f, plb_round_robin());
    feed_set(&f, backends, backends_of(backends, 5, 1));
    ASSERT_EQ(PLB_OK, rig_create(&r));
    first = open_handle(r.lb);
    second = open_handle(r.lb);
    for (i = 0; i < 25; i++) { /* the common turn from 0, whatever the handles do */
        ASSERT_EQ(i % 5, by_anybody(r.lb, 0, 256));
        by_first[by_handle(first, 0, 256)]++;
        if (i % 5 < 2)
            by_second[by_handle(second, 0, 0)]++;
    }
    for (i = 0; i < 5; i++)
        ASSERT(by_first[i] == 5 && by_second[i] == 2);
    before = by_handle(first, 0, 0);
    for (i = 1; i < 10; i++)
        ASSERT_EQ((before + i) % 5, by_handle(first, 0, 0));
    backends[0].weight = 3; /* an update keeps every turn */
    plb_update_now(r.lb);
    rig_run(&r, 1);
    memset(by_first, 0, sizeof by_first);
    for (i = 0; i < 70; i++)
        by_first[by_handle(first, 0, 0)]++;
    ASSERT(by_first[0] == 30 && by_first[1] == 10 && by_first[4] == 10);
    ASSERT_EQ(25 % 7 - 2, by_anybody(r.lb, 0, 0)); /* of 0 0 0 1 2 3 4 */
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

/* Where the first choice is not ready, too. */
TEST the_common_turn_is_left_alone_by_walks_of_handles(void)
{
    plb_handle *handle;
    plb_addr addr = nth(1, 1).addr, out;
    plb_request request;
    uint32_t i, exclude;
    plb_backend_info info;
    rig r;
    feed f;
    ASSERT_EQ(PLB_OK, create(&r, &f, plb_round_robin(), 4));
    plb_set_enabled(r.lb, &addr, 0, false);
    handle = open_handle(r.lb);
    addr = nth(2, 1).addr;
    ASSERT_EQ(PLB_OK, plb_find(r.lb, &addr, 0, &info));
    exclude = info.slot;
    memset(&request, 0, sizeof request);
    request.exclude = &exclude;
    request.exclude_count = 1;
    for (i = 0; i < 20; i++) {
        ASSERT_EQ(PLB_OK, plb_handle_select_with(handle, &request, &out));
        ASSERT(out.u.v4[3] == 0 || out.u.v4[3] == 3);
        ASSERT(by_handle(handle, 0, 3) != 1);
    }
    ASSERT_EQ(0, by_anybody(r.lb, 0, 256));
    ASSERT_EQ(2, by_anybody(r.lb, 0, 256));
    ASSERT_EQ(3, by_anybody(r.lb, 0, 256));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST two_handles_draw_different_numbers(void)
{
    plb_handle *handles[4];
    uint32_t i, j, k, same;
    rig r;
    feed f;
    ASSERT_EQ(PLB_OK, create(&r, &f, plb_random_choice(), 200));
    for (i = 0; i < 4; i++)
        handles[i] = open_handle(r.lb);
    for (i = 0; i < 4; i++)
        for (j = 0; j < i; j++) {
            for (k = same = 0; k < 200; k++)
                same += by_handle(handles[i], 0, 0) == by_handle(handles[j], 0, 0);
            ASSERT_LT(same, 20); /* one is what chance would have */
        }
    for (k = same = 0; k < 200; k++)
        same += by_handle(handles[0], 0, 0) == by_anybody(r.lb, 0, 0);
    ASSERT_LT(same, 20);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST a_handle_says_what_is_wrong_like_anybody(void)
{
    plb_handle *handle;
    plb_backend backend = nth(1, 1);
    plb_addr out;
    plb_pick pick;
    rig r;
    feed f;
    begin(&r, &f, plb_fnv());
    f.later = true;
    ASSERT_EQ(PLB_OK, rig_create(&r));
    handle = open_handle(r.lb);
    ASSERT_EQ(PLB_ERR_EMPTY, plb_handle_select(handle, "k", 1, 0, &out)); /* before the first set */
    ASSERT_EQ(PLB_ERR_EMPTY, plb_handle_begin(handle, NULL, &pick));
    plb_end(&pick, PLB_OUTCOME_SUCCESS, 1); /* it holds nothing */
    feed_set(&f, NULL, 0);
    feed_answer(&f);
    rig_run(&r, 1);
    ASSERT_EQ(PLB_ERR_EMPTY, plb_handle_select(handle, "k", 1, 0, &out));
    f.later = false;
    feed_set(&f, &backend, 1);
    plb_update_now(r.lb);
    rig_run(&r, 1);
    ASSERT_EQ(PLB_OK, plb_handle_select(handle, "k", 1, 0, &out));
    plb_set_enabled(r.lb, &backend.addr, 0, false);
    ASSERT_EQ(PLB_ERR_NOT_READY, plb_handle_select(handle, "k", 1, 0, &out));
    ASSERT_EQ(PLB_ERR_NOT_READY, plb_handle_begin(handle, NULL, &pick));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

/* ==== MEMORY ====================================================================================================== */

TEST closed_handles_are_opened_again(void)
{
    plb_handle *handles[3], *again[3];
    size_t blocks;
    uint32_t i, j;
    rig r;
    feed f;
    ASSERT_EQ(PLB_OK, create(&r, &f, plb_round_robin(), 3));
    for (i = 0; i < 3; i++)
        handles[i] = open_handle(r.lb);
    ASSERT(handles[0] != handles[1] && handles[1] != handles[2] && handles[0] != handles[2]);
    blocks = r.memory.live_blocks;
    for (j = 0; j < 100; j++) {
        for (i = 0; i < 3; i++)
            plb_handle_close(handles[i]);
        for (i = 0; i < 3; i++)
            again[i] = open_handle(r.lb);
        ASSERT(again[0] != again[1] && again[1] != again[2] && again[0] != again[2]);
    }
    ASSERT_EQ(blocks, r.memory.live_blocks);
    plb_handle_close(NULL); /* nothing happens */
    plb_handle_close(again[1]);
    ASSERT_EQ(0, rig_end(&r)); /* which ends the open ones too */
    PASS();
}

TEST without_memory_a_handle_is_not_opened_and_nothing_else_is_lost(void)
{
    plb_handle *handle, *other;
    rig r;
    feed f;
    ASSERT_EQ(PLB_OK, create(&r, &f, plb_round_robin(), 3));
    r.memory.fail_at = r.memory.calls + 1;
    ASSERT_EQ(PLB_ERR_MEMORY, plb_handle_open(r.lb, &handle));
    r.memory.fail_at = 0;
    ASSERT(by_anybody(r.lb, 0, 0) < 3);
    ASSERT_EQ(PLB_OK, plb_handle_open(r.lb, &handle));
    r.memory.fail_at = r.memory.calls + 1;
    r.memory.fail_count = UINT64_MAX;
    ASSERT_EQ(PLB_ERR_MEMORY, plb_handle_open(r.lb, &other));
    plb_handle_close(handle);
    ASSERT_EQ(PLB_OK, plb_handle_open(r.lb, &other)); /* one that was closed needs none */
    ASSERT(by_handle(other, 0, 0) < 3);
    r.memory.fail_at = 0;
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST a_pick_outlives_its_handle_its_set_and_the_balancer(void)
{
    plb_backend backends[2];
    plb_handle *handle;
    plb_pick picks[3];
    int releases[2] = {0, 0}, i;
    rig r;
    feed f;
    begin(&r, &f, plb_round_robin());
    backends[0] = rig_with_ext(nth(0, 1), &releases[0]);
    backends[1] = rig_with_ext(nth(1, 1), &releases[1]);
    feed_set(&f, backends, 1);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    handle = open_handle(r.lb);
    for (i = 0; i < 3; i++)
        ASSERT_EQ(PLB_OK, plb_handle_begin(handle, NULL, &picks[i]));
    plb_handle_close(handle);
    feed_set(&f, backends + 1, 1);
    plb_update_now(r.lb);
    rig_run(&r, 1);
    plb_end(&picks[0], PLB_OUTCOME_SUCCESS, 1);
    plb_end(&picks[1], PLB_OUTCOME_SUCCESS, 1);
    rig_run(&r, 1);
    ASSERT(releases[0] == 0 && picks[2].ext == &releases[0]);
    rig_destroy(&r);
    ASSERT(releases[0] == 0 && releases[1] == 1);
    plb_end(&picks[2], PLB_OUTCOME_SUCCESS, 1);
    ASSERT_EQ(1, releases[0]);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

/* ==== SETS ======================================================================================================== */

static plb_handle *busy;
static rig *busy_rig;
static feed *busy_feed;
static uint32_t asked;

/* Whatever a callback does, by the very handle that asks it too. */
static bool accept_with_everything(void *user, const plb_backend_info *info)
{
    plb_request request;
    plb_addr addr = info->backend.addr;
    plb_pick pick;
    (void)user;
    if (asked++ > 0)
        return info->ready;
    memset(&request, 0, sizeof request);
    request.accept = accept_with_everything;
    publish(busy_rig, busy_feed, 3); /* the set under the walk is held */
    if (plb_addr_compare(&addr, &info->backend.addr) != 0)
        return false;
    if (by_handle(busy, 1, 0) == PLB_NONE || by_anybody(busy_rig->lb, 1, 0) == PLB_NONE)
        return false;
    if (plb_handle_select_with(busy, &request, &addr) != PLB_OK || plb_handle_begin(busy, &request, &pick) != PLB_OK)
        return false;
    plb_end(&pick, PLB_OUTCOME_SUCCESS, 1);
    publish(busy_rig, busy_feed, 3); /* still, whatever those picks let go of */
    return true;
}

TEST a_handle_may_be_used_inside_its_own_accept(strategy_fn strategy)
{
    plb_request request;
    plb_pick pick;
    size_t blocks;
    uint32_t i;
    rig r;
    feed f;
    ASSERT_EQ(PLB_OK, create(&r, &f, strategy(), 3));
    busy = open_handle(r.lb);
    busy_rig = &r;
    busy_feed = &f;
    memset(&request, 0, sizeof request);
    request.accept = accept_with_everything;
    publish(&r, &f, 4);
    blocks = r.memory.live_blocks;
    for (i = 0; i < 10; i++) {
        asked = 0;
        ASSERT_EQ(PLB_OK, plb_handle_begin(busy, &request, &pick));
        ASSERT_EQ(0, pick.held == NULL);
        plb_end(&pick, PLB_OUTCOME_SUCCESS, 1);
        publish(&r, &f, 2);
        ASSERT_EQ(blocks, r.memory.live_blocks); /* and it is let go of */
    }
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST idle_handles_do_not_hold_up_updates(void)
{
    plb_handle *handles[20];
    size_t blocks;
    uint32_t i;
    rig r;
    feed f;
    ASSERT_EQ(PLB_OK, create(&r, &f, plb_random_choice(), 3));
    for (i = 0; i < 20; i++) {
        handles[i] = open_handle(r.lb);
        by_handle(handles[i], 0, 0);
    }
    publish(&r, &f, 1);
    blocks = r.memory.live_blocks;
    for (i = 0; i < 50; i++) {
        publish(&r, &f, 1);
        ASSERT_EQ(2 + i + 1, r.changes);
        ASSERT_EQ(blocks, r.memory.live_blocks);
        by_handle(handles[i % 20], 0, 0);
    }
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

/* Two retired sets may wait; the updates after that come when it ends. */
TEST a_walk_that_is_held_keeps_its_set_and_delays_updates(void)
{
    plb_backend_info info;
    plb_walk walk;
    plb_handle *handle;
    size_t blocks;
    rig r;
    feed f;
    ASSERT_EQ(PLB_OK, create(&r, &f, plb_round_robin(), 3));
    handle = open_handle(r.lb);
    publish(&r, &f, 1);
    blocks = r.memory.live_blocks;
    ASSERT_EQ(PLB_OK, plb_walk_begin(&walk, r.lb, NULL, 0));
    publish(&r, &f, 1);
    ASSERT_GT(r.memory.live_blocks, blocks);
    publish(&r, &f, 5);
    plb_walk_next(&walk, &info);
    ASSERT_EQ(1, plb_poll(r.lb)); /* it asks for time to look again */
    ASSERT(by_handle(handle, 0, 0) < 3);
    plb_walk_end(&walk);
    publish(&r, &f, 1);
    ASSERT_EQ(blocks, r.memory.live_blocks);
    ASSERT_EQ(PLB_FOREVER, plb_poll(r.lb));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

typedef struct fence {
    rig *r;
    plb_handle *handle;
    uint32_t issued, missed;
} fence;

static uint32_t newest_weight(plb_balancer *lb)
{
    plb_addr addr = nth(1, 1).addr;
    plb_backend_info info;
    return plb_find(lb, &addr, 0, &info) == PLB_OK ? info.backend.weight : 0;
}

/* Called in the middle of publication: whoever reads now finds the new set. */
static void issue(void *self)
{
    fence *b = (fence *)self;
    b->issued++;
    if (b->handle == NULL)
        return;
    b->missed += by_handle(b->handle, b->issued, 0) == PLB_NONE;
    b->missed += by_anybody(b->r->lb, b->issued, 0) == PLB_NONE;
    b->missed += newest_weight(b->r->lb) != b->r->s->now_ms + 1;
}

TEST a_barrier_is_issued_once_for_each_set(void)
{
    plb_backend backends[3];
    plb_barrier barrier;
    plb_addr addr;
    fence b;
    uint32_t i;
    rig r;
    feed f;
    memset(&b, 0, sizeof b);
    barrier.self = &b;
    barrier.issue = issue;
    begin(&r, &f, plb_fnv());
    r.desc.port.barrier = &barrier;
    feed_set(&f, backends, backends_of(backends, 3, 1));
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_EQ(1, b.issued);
    b.r = &r;
    b.handle = open_handle(r.lb);
    for (i = 0; i < 10; i++) {
        rig_run(&r, 1);
        backends[1].weight = (uint32_t)r.s->now_ms + 1;
        plb_update_now(r.lb);
        rig_run(&r, 0);
        plb_poll(r.lb);
        ASSERT_EQ(2 + i, b.issued);
        ASSERT_EQ(2 + i, r.changes);
    }
    plb_update_now(r.lb); /* brings nothing new */
    rig_run(&r, 1);
    addr = nth(2, 1).addr;
    plb_set_enabled(r.lb, &addr, 0, false); /* nor is a flip a new set */
    for (i = 0; i < 100; i++)
        ASSERT(by_handle(b.handle, i, 0) < 2 && by_anybody(r.lb, i, 0) < 2);
    ASSERT_EQ(11, b.issued);
    ASSERT_EQ_FMT(0u, b.missed, "%u");
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

/* ==== THREADS ===================================================================================================== */

#ifndef PLB_NO_THREADS

enum { THREADS = 8, RUN_MS = 150, MEMBERS = 6 };

#define LOAD(p)        __atomic_load_n((p), __ATOMIC_SEQ_CST)
#define STORE(p, v)    __atomic_store_n((p), (v), __ATOMIC_SEQ_CST)
#define ADD(p, amount) __atomic_fetch_add((p), (amount), __ATOMIC_SEQ_CST)

/* Members of generation g are 10.0.0.k with port g, the first half a tier before the others; 10.9.9.9:9 is the last
   resort, and always ready. */
typedef struct crowd {
    plb_balancer *lb;
    uint32_t stop, oldest, newest; /* generations that a set which is current may have */
    uint32_t stale, lost, picks;
} crowd;

typedef struct crowd_thread {
    crowd *c;
    pthread_t thread;
    uint64_t random;
    bool by_handle;
} crowd_thread;

static plb_backend member(uint32_t generation, uint32_t k)
{
    plb_backend backend = nth(k, 1 + k);
    backend.addr.port = (uint16_t)generation;
    backend.priority = k < MEMBERS / 2 ? 0 : 1;
    backend.max_conns = k == 0 ? 1 : 0;
    return backend;
}

static uint32_t chance(crowd_thread *t, uint32_t limit)
{
    t->random ^= t->random << 13;
    t->random ^= t->random >> 7;
    t->random ^= t->random << 17;
    return (uint32_t)((t->random >> 16) % limit);
}

static void judge(crowd *c, const plb_addr *addr, uint32_t oldest)
{
    if (addr->u.v4[1] == 0 && (addr->port < oldest || addr->port > LOAD(&c->newest)))
        ADD(&c->stale, 1);
    ADD(&c->picks, 1);
}

static void pick_one(crowd_thread *t, plb_handle *handle)
{
    uint32_t key = chance(t, 1000), oldest = LOAD(&t->c->oldest), limit = chance(t, 2) * 256;
    plb_status status;
    plb_addr addr;
    plb_pick pick;
    if (chance(t, 3) > 0) {
        status = handle != NULL ? plb_handle_select(handle, &key, sizeof key, limit, &addr)
                                : plb_select(t->c->lb, &key, sizeof key, limit, &addr);
    } else {
        limit = 0;
        status = handle != NULL ? plb_handle_begin(handle, NULL, &pick) : plb_begin(t->c->lb, NULL, &pick);
        addr = pick.addr;
        plb_end(&pick, PLB_OUTCOME_SUCCESS, 1);
    }
    if (status == PLB_OK)
        judge(t->c, &addr, oldest);
    else if (limit == 0)
        ADD(&t->c->lost, 1); /* one was ready all the time */
}

static void *attend(void *user)
{
    crowd_thread *t = (crowd_thread *)user;
    plb_handle *handle = NULL;
    while (LOAD(&t->c->stop) == 0) {
        uint32_t i;
        plb_backend one = member(LOAD(&t->c->newest), chance(t, MEMBERS));
        if (t->by_handle && plb_handle_open(t->c->lb, &handle) != PLB_OK)
            break;
        for (i = 0; i < 50; i++)
            pick_one(t, handle);
        plb_handle_close(handle);
        plb_set_enabled(t->c->lb, &one.addr, 0, chance(t, 3) > 0);
    }
    return NULL;
}

/* Health that flips all the time. */
static plb_status coin_start(void *state, void *probe, const plb_backend *target, plb_token token)
{
    static uint32_t coin;
    (void)state;
    (void)probe;
    coin = coin * 1664525u + 1013904223u;
    plb_check_done(token, target->addr.u.v4[1] == 9 || coin >> 30 != 0 ? PLB_OK : PLB_ERR_REFUSED);
    return PLB_OK;
}

static void coin_cancel(void *state, void *probe, plb_token token)
{
    (void)state;
    (void)probe;
    (void)token;
}

static const plb_check_ops coin_ops = {"coin", 0, 0, NULL, NULL, coin_start, coin_cancel};

static bool note_generation(void *user, const plb_backend_info *info)
{
    if (info->backend.addr.u.v4[1] == 0)
        *(uint32_t *)user = info->backend.addr.port;
    return false;
}

static size_t generation(uint32_t number, plb_backend *out)
{
    uint32_t k;
    for (k = 0; k < MEMBERS; k++)
        out[k] = member(number, k);
    out[k] = rig_backend("10.9.9.9:9", 1);
    out[k].priority = PLB_BACKUP;
    return MEMBERS + 1;
}

static void poll_the_crowd(crowd *c)
{
    plb_backend list[MEMBERS + 1];
    struct timespec start, now;
    clock_gettime(CLOCK_MONOTONIC, &start);
    do {
        uint32_t published = 0;
        plb_poll(c->lb);
        plb_each(c->lb, note_generation, &published);
        STORE(&c->oldest, published);
        if (LOAD(&c->newest) - published < 3) {
            STORE(&c->newest, LOAD(&c->newest) + 1);
            plb_replace(c->lb, list, generation(LOAD(&c->newest), list));
        }
        plb_check_now(c->lb);
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((now.tv_sec - start.tv_sec) * 1000 + (now.tv_nsec - start.tv_nsec) / 1000000 < RUN_MS);
}

TEST handles_and_everybody_else_pick_while_sets_come_and_go(strategy_fn strategy)
{
    static crowd_thread threads[THREADS];
    plb_backend list[MEMBERS + 1];
    plb_static_desc discovery;
    plb_balancer_desc desc;
    plb_update_info update;
    crowd c;
    int i;
    memset(&c, 0, sizeof c);
    memset(&desc, 0, sizeof desc);
    memset(&discovery, 0, sizeof discovery);
    memset(threads, 0, sizeof threads);
    c.oldest = c.newest = 1;
    discovery.backends = list;
    discovery.backend_count = generation(1, list);
    desc.discovery = plb_static(&discovery);
    desc.strategy = strategy();
    desc.check.ops = &coin_ops;
    desc.panic_percent = 30;
    ASSERT_EQ(PLB_OK, plb_create(&desc, &c.lb));
    for (i = 0; i < THREADS; i++) {
        threads[i].c = &c;
        threads[i].random = (uint64_t)i + 1;
        threads[i].by_handle = i % 2 == 0;
        ASSERT_EQ(0, pthread_create(&threads[i].thread, NULL, attend, &threads[i]));
    }
    poll_the_crowd(&c);
    STORE(&c.stop, 1);
    for (i = 0; i < THREADS; i++)
        pthread_join(threads[i].thread, NULL);
    plb_last_update(c.lb, &update);
    plb_destroy(c.lb);
    ASSERT_EQ_FMT(0u, c.stale, "%u");
    ASSERT_EQ_FMT(0u, c.lost, "%u");
    ASSERT(c.picks > 0 && update.changes > 2);
    PASS();
}

#endif

SUITE(handles)
{
    size_t i;
    RUN_TESTp(a_key_gets_the_same_by_a_handle, plb_fnv);
    RUN_TESTp(a_key_gets_the_same_by_a_handle, ketama);
    RUN_TEST(each_handle_goes_round_by_itself_and_leaves_the_common_turn_alone);
    RUN_TEST(the_common_turn_is_left_alone_by_walks_of_handles);
    RUN_TEST(two_handles_draw_different_numbers);
    RUN_TEST(a_handle_says_what_is_wrong_like_anybody);
    RUN_TEST(closed_handles_are_opened_again);
    RUN_TEST(without_memory_a_handle_is_not_opened_and_nothing_else_is_lost);
    RUN_TEST(a_pick_outlives_its_handle_its_set_and_the_balancer);
    for (i = 0; i < COUNT(strategies); i++)
        RUN_TESTp(a_handle_may_be_used_inside_its_own_accept, strategies[i]);
    RUN_TEST(idle_handles_do_not_hold_up_updates);
    RUN_TEST(a_walk_that_is_held_keeps_its_set_and_delays_updates);
    RUN_TEST(a_barrier_is_issued_once_for_each_set);
#ifndef PLB_NO_THREADS
    for (i = 0; i < COUNT(strategies); i++)
        RUN_TESTp(handles_and_everybody_else_pick_while_sets_come_and_go, strategies[i]);
#endif
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(handles);
    GREATEST_MAIN_END();
}
