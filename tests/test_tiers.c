/* Tiers, the panic threshold and slow start: which backends of a set requests get, and when others get them. And what a
   strategy is told of the view that it picks from. */
#define PINGORA_LB_IMPLEMENTATION
#include "../pingora_lb.h"
#define SIM_IMPLEMENTATION
#include "sim.h"
#include <greatest.h>
#include "rig.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

enum { HOSTS = 256 };

static uint64_t random_state = 1;

static uint32_t random_below(uint32_t limit)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)((random_state >> 16) % limit);
}

/* ==== A SCENE: BACKENDS BY NUMBER, AND WHICH OF THEM ARE DOWN ===================================================== */

typedef struct scene {
    rig r;
    feed f;
    bool down[HOSTS];
    uint32_t probes;
} scene;

typedef struct checker {
    scene *s;
} checker;

static plb_status checker_open(void *state, const void *desc, const plb_env *env)
{
    (void)env;
    memcpy(state, desc, sizeof(checker));
    return PLB_OK;
}

static plb_status checker_start(void *state, void *probe, const plb_backend *target, plb_token token)
{
    scene *s = ((checker *)state)->s;
    (void)probe;
    s->probes++;
    plb_check_done(token, s->down[target->addr.u.v4[3]] ? PLB_ERR_REFUSED : PLB_OK);
    return PLB_OK;
}

static void checker_cancel(void *state, void *probe, plb_token token)
{
    (void)state;
    (void)probe;
    (void)token;
}

static const plb_check_ops checker_ops = {"checker",     sizeof(checker), 0, checker_open, NULL,
                                          checker_start, checker_cancel};

/* Backend number n, in the order of numbers. */
static plb_backend nth(uint32_t n, uint32_t weight, uint32_t priority)
{
    plb_backend backend = rig_backend("10.0.0.1:80", weight);
    backend.addr.u.v4[3] = (uint8_t)n;
    backend.priority = priority;
    return backend;
}

static plb_addr addr_of(uint32_t n)
{
    return nth(n, 1, 0).addr;
}

static void begin(scene *s, plb_strategy strategy)
{
    static checker desc;
    memset(s, 0, sizeof *s);
    rig_begin(&s->r);
    s->r.desc.strategy = strategy;
    s->r.desc.discovery = feed_discovery(&s->f, false);
    desc.s = s;
    s->r.desc.check.ops = &checker_ops;
    s->r.desc.check.desc = &desc;
}

static plb_status create(scene *s, const plb_backend *backends, size_t count)
{
    plb_status status;
    feed_set(&s->f, backends, count);
    status = rig_create(&s->r);
    rig_run(&s->r, 1);
    return status;
}

static void update(scene *s, const plb_backend *backends, size_t count)
{
    feed_set(&s->f, backends, count);
    plb_update_now(s->r.lb);
    rig_run(&s->r, 1);
}

static void check_all(scene *s)
{
    plb_check_now(s->r.lb);
    rig_run(&s->r, 1);
}

static void flip(scene *s, uint32_t n, bool down)
{
    s->down[n] = down;
    check_all(s);
}

static bool ready(scene *s, uint32_t n)
{
    plb_addr addr = addr_of(n);
    return plb_ready(s->r.lb, &addr, 0);
}

static void enable(scene *s, uint32_t n, bool enabled)
{
    plb_addr addr = addr_of(n);
    plb_set_enabled(s->r.lb, &addr, 0, enabled);
}

static plb_backend_info find(scene *s, uint32_t n)
{
    plb_addr addr = addr_of(n);
    plb_backend_info info;
    memset(&info, 0, sizeof info);
    plb_find(s->r.lb, &addr, 0, &info);
    return info;
}

/* ==== WAYS TO PICK ================================================================================================ */

static plb_strategy ketama(void)
{
    return plb_ketama(NULL);
}

typedef plb_strategy (*strategy_fn)(void);
static const strategy_fn strategies[] = {plb_round_robin, plb_random_choice, plb_fnv, ketama};
static const uint32_t limits[] = {0, 256};

enum { WAY_SELECT, WAY_SELECT_WITH, WAY_BEGIN, WAY_HANDLE_SELECT, WAY_HANDLE_SELECT_WITH, WAY_HANDLE_BEGIN, WAYS };

/* The number of the backend that a request gets in one of the ways there are, or PLB_NONE. */
static uint32_t pick_by(scene *s, int way, const plb_request *request)
{
    plb_status status = PLB_ERR_MEMORY;
    plb_handle *handle = NULL;
    plb_pick pick;
    plb_addr addr;
    memset(&addr, 0, sizeof addr);
    if (way >= WAY_HANDLE_SELECT && plb_handle_open(s->r.lb, &handle) != PLB_OK)
        return PLB_NONE;
    if (way == WAY_SELECT)
        status = plb_select(s->r.lb, request->key, request->key_length, request->max_iterations, &addr);
    if (way == WAY_SELECT_WITH)
        status = plb_select_with(s->r.lb, request, &addr);
    if (way == WAY_HANDLE_SELECT)
        status = plb_handle_select(handle, request->key, request->key_length, request->max_iterations, &addr);
    if (way == WAY_HANDLE_SELECT_WITH)
        status = plb_handle_select_with(handle, request, &addr);
    if (way == WAY_BEGIN || way == WAY_HANDLE_BEGIN) {
        status = way == WAY_BEGIN ? plb_begin(s->r.lb, request, &pick) : plb_handle_begin(handle, request, &pick);
        addr = pick.addr;
        plb_end(&pick, PLB_OUTCOME_SUCCESS, 1);
    }
    plb_handle_close(handle);
    return status == PLB_OK ? addr.u.v4[3] : PLB_NONE;
}

static plb_request request_for(const uint32_t *key, uint32_t limit)
{
    plb_request request;
    memset(&request, 0, sizeof request);
    request.key = key;
    request.key_length = sizeof *key;
    request.max_iterations = limit;
    return request;
}

/* Do requests of many keys, in all ways, with and without a limit, get each of the backends `low` to `high`, and no
   other? */
static bool picks_are(scene *s, uint32_t low, uint32_t high)
{
    uint32_t key, i, seen[HOSTS] = {0}, n;
    int way;
    for (key = 0; key < 60; key++)
        for (i = 0; i < COUNT(limits); i++)
            for (way = 0; way < WAYS; way++) {
                plb_request request = request_for(&key, limits[i]);
                n = pick_by(s, way, &request);
                if (n < low || n > high)
                    return false;
                seen[n]++;
            }
    for (n = low; n <= high; n++)
        if (seen[n] == 0)
            return false;
    return true;
}

static uint32_t pick(scene *s, uint32_t key)
{
    plb_request request = request_for(&key, 0);
    return pick_by(s, WAY_SELECT, &request);
}

/* ==== TIERS ======================================================================================================= */

TEST picks_go_to_the_first_tier_with_a_ready_backend(strategy_fn strategy)
{
    plb_backend backends[8];
    uint32_t n;
    scene s;
    for (n = 1; n <= 8; n++) /* 1, 2: the first; 3, 4: the second; 5, 6 and 7, 8: backups */
        backends[8 - n] = nth(n, 1, n <= 2 ? 0 : n <= 4 ? 65535 : n <= 6 ? PLB_BACKUP : PLB_BACKUP + 1);
    begin(&s, strategy());
    ASSERT_EQ(PLB_OK, create(&s, backends, 8));
    ASSERT(picks_are(&s, 1, 2));
    flip(&s, 1, true);
    ASSERT(picks_are(&s, 2, 2)); /* one that is ready is enough */
    flip(&s, 2, true);
    ASSERT(picks_are(&s, 3, 4));
    enable(&s, 3, false); /* whatever makes it unready */
    ASSERT(picks_are(&s, 4, 4));
    flip(&s, 4, true);
    ASSERT(picks_are(&s, 5, 6));
    s.down[5] = true;
    flip(&s, 6, true);
    ASSERT(picks_are(&s, 7, 8));
    flip(&s, 6, false);
    ASSERT(picks_are(&s, 6, 6)); /* and back, at once */
    enable(&s, 3, true);
    ASSERT(picks_are(&s, 3, 3));
    s.down[1] = s.down[2] = false;
    check_all(&s);
    ASSERT(picks_are(&s, 1, 2));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST nothing_is_ready_when_no_tier_is(strategy_fn strategy)
{
    plb_backend backends[2];
    uint32_t key = 7, i;
    int way;
    scene s;
    backends[0] = nth(1, 1, 0);
    backends[1] = nth(2, 1, PLB_BACKUP);
    begin(&s, strategy());
    s.down[1] = s.down[2] = true;
    ASSERT_EQ(PLB_OK, create(&s, backends, 2));
    for (way = 0; way < WAYS; way++)
        for (i = 0; i < COUNT(limits); i++) {
            plb_request request = request_for(&key, limits[i]);
            ASSERT_EQ(PLB_NONE, pick_by(&s, way, &request));
        }
    flip(&s, 2, false);
    ASSERT(picks_are(&s, 2, 2));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* RFC 2782: the lowest priority that can be reached, and there by weight. */
TEST priorities_and_weights_work_as_in_srv_records(void)
{
    plb_backend backends[4];
    uint32_t i, got[5] = {0};
    scene s;
    backends[0] = nth(1, 3, 10);
    backends[1] = nth(2, 1, 10);
    backends[2] = nth(3, 1, 20);
    backends[3] = nth(4, 4, 20);
    begin(&s, plb_round_robin());
    ASSERT_EQ(PLB_OK, create(&s, backends, 4));
    for (i = 0; i < 400; i++)
        got[pick(&s, 0)]++;
    ASSERT_EQ(300, got[1]);
    ASSERT_EQ(100, got[2]);
    s.down[1] = s.down[2] = true;
    check_all(&s);
    for (i = 0; i < 400; i++)
        got[pick(&s, 0)]++;
    ASSERT_EQ(80, got[3]);
    ASSERT_EQ(320, got[4]);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

typedef struct listed {
    uint32_t count;
    plb_backend_info infos[HOSTS];
} listed;

static bool list_one(void *user, const plb_backend_info *info)
{
    listed *l = (listed *)user;
    if (l->count < HOSTS)
        l->infos[l->count++] = *info;
    return true;
}

static uint32_t number(const plb_backend_info *info)
{
    return info->backend.addr.u.v4[3];
}

TEST one_address_in_two_tiers_is_one_backend(void)
{
    plb_backend backends[3];
    listed l;
    plb_pick held;
    scene s;
    backends[0] = nth(1, 1, 0);
    backends[1] = nth(2, 1, 5);
    backends[2] = nth(1, 3, 5);
    begin(&s, plb_round_robin());
    ASSERT_EQ(PLB_OK, create(&s, backends, 3));
    ASSERT_EQ(2, s.probes); /* of which each is probed once */
    ASSERT_EQ(PLB_OK, plb_begin(s.r.lb, NULL, &held));
    l.count = 0;
    plb_each(s.r.lb, list_one, &l);
    ASSERT_EQ(3, l.count);
    ASSERT(number(&l.infos[0]) == 1 && number(&l.infos[1]) == 1 && number(&l.infos[2]) == 2);
    ASSERT_EQ(l.infos[0].slot, l.infos[1].slot);
    ASSERT(l.infos[0].in_flight == 1 && l.infos[1].in_flight == 1 && l.infos[2].in_flight == 0);
    ASSERT(l.infos[0].backend.weight == 1 && l.infos[1].backend.weight == 3);
    plb_end(&held, PLB_OUTCOME_SUCCESS, 1);
    flip(&s, 1, true);
    ASSERT(picks_are(&s, 2, 2)); /* it is down in both */
    l.count = 0;
    plb_each(s.r.lb, list_one, &l);
    ASSERT_FALSE(l.infos[0].ready || l.infos[1].ready || l.infos[0].healthy || l.infos[1].healthy);
    ASSERT(l.infos[2].ready);
    flip(&s, 1, false);
    ASSERT(picks_are(&s, 1, 1)); /* and up in both */
    backends[0].weight = 0;
    update(&s, backends, 3);
    ASSERT(ready(&s, 1)); /* where one of them is */
    ASSERT(picks_are(&s, 1, 2));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST another_priority_keeps_slot_and_ext_and_health(void)
{
    plb_backend backends[2];
    plb_backend_info before, after;
    plb_pick held;
    int releases = 0;
    scene s;
    backends[0] = rig_with_ext(nth(1, 1, 0), &releases);
    backends[1] = nth(2, 1, 1);
    begin(&s, plb_fnv());
    ASSERT_EQ(PLB_OK, create(&s, backends, 2));
    ASSERT_EQ(PLB_OK, plb_begin(s.r.lb, NULL, &held));
    flip(&s, 1, true);
    before = find(&s, 1);
    ASSERT_EQ(0, before.backend.priority);
    backends[0].priority = PLB_BACKUP;
    update(&s, backends, 2);
    after = find(&s, 1);
    ASSERT_EQ(2, s.r.changes);
    ASSERT_EQ(PLB_BACKUP, after.backend.priority);
    ASSERT_EQ(before.slot, after.slot);
    ASSERT_EQ(before.backend.ext, after.backend.ext);
    ASSERT_EQ(1, after.in_flight);
    ASSERT_FALSE(after.healthy);
    plb_end(&held, PLB_OUTCOME_SUCCESS, 1);
    backends[0].priority = 7; /* behind the other as before: a change all the same */
    update(&s, backends, 2);
    ASSERT_EQ(3, s.r.changes);
    ASSERT_EQ(7, find(&s, 1).backend.priority);
    ASSERT_EQ(0, releases);
    ASSERT_EQ(0, rig_end(&s.r));
    ASSERT_EQ(1, releases);
    PASS();
}

TEST a_tier_that_drains_leaves_it_to_the_next(strategy_fn strategy)
{
    plb_backend backends[2];
    scene s;
    backends[0] = nth(1, 0, 0);
    backends[1] = nth(2, 1, 1);
    begin(&s, strategy());
    ASSERT_EQ(PLB_OK, create(&s, backends, 2));
    ASSERT(picks_are(&s, 2, 2));
    backends[0].weight = 1;
    update(&s, backends, 2);
    ASSERT(picks_are(&s, 1, 1));
    update(&s, backends + 1, 1); /* the tier goes */
    ASSERT(picks_are(&s, 2, 2));
    update(&s, backends, 2); /* and comes back */
    ASSERT(picks_are(&s, 1, 1));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST full_backends_let_backups_serve(strategy_fn strategy, uint32_t limit)
{
    plb_backend backends[3];
    plb_pick held[5];
    uint32_t i, key = 1;
    plb_request request = request_for(&key, limit);
    scene s;
    backends[0] = nth(1, 1, 0);
    backends[1] = nth(2, 1, 0);
    backends[2] = nth(3, 1, PLB_BACKUP);
    backends[0].max_conns = backends[1].max_conns = 2;
    begin(&s, strategy());
    ASSERT_EQ(PLB_OK, create(&s, backends, 3));
    for (i = 0; i < 5; i++)
        ASSERT_EQ(PLB_OK, plb_begin(s.r.lb, &request, &held[i]));
    for (i = 0; i < 4; i++)
        ASSERT(held[i].addr.u.v4[3] < 3);
    ASSERT_EQ(3, held[4].addr.u.v4[3]);
    ASSERT(picks_are(&s, 3, 3));
    i = held[2].addr.u.v4[3];
    plb_end(&held[2], PLB_OUTCOME_SUCCESS, 1);
    ASSERT(picks_are(&s, i, i));
    for (i = 0; i < 5; i++)
        plb_end(&held[i], PLB_OUTCOME_SUCCESS, 1);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST a_retry_goes_on_to_the_next_tier(strategy_fn strategy, uint32_t limit)
{
    plb_backend backends[6];
    uint32_t tried[6], key, count, n;
    int way;
    scene s;
    for (n = 1; n <= 6; n++)
        backends[n - 1] = nth(n, 1, (n - 1) / 2);
    begin(&s, strategy());
    ASSERT_EQ(PLB_OK, create(&s, backends, 6));
    for (key = 0; key < 20; key++)
        for (way = 0; way < WAYS; way++) {
            plb_request request = request_for(&key, limit);
            if (way == WAY_SELECT || way == WAY_HANDLE_SELECT)
                continue; /* they exclude nothing */
            request.exclude = tried;
            for (count = 0; count < 6; count++) {
                request.exclude_count = count;
                n = pick_by(&s, way, &request);
                ASSERT_EQ_FMT(count / 2, (n - 1) / 2, "%u"); /* two of each tier, in turn */
                tried[count] = find(&s, n).slot;
            }
            request.exclude_count = count;
            ASSERT_EQ(PLB_NONE, pick_by(&s, way, &request));
        }
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

static bool refuse_and_list(void *user, const plb_backend_info *info)
{
    list_one(user, info);
    return false;
}

TEST accept_is_shown_every_tier_and_the_active_one_first(strategy_fn strategy, uint32_t limit)
{
    plb_backend backends[6];
    uint32_t n, key = 3, i;
    plb_request request = request_for(&key, limit);
    listed l;
    plb_addr out;
    scene s;
    for (n = 1; n <= 6; n++)
        backends[n - 1] = nth(n, 1, (n - 1) / 2);
    begin(&s, strategy());
    s.down[1] = s.down[2] = true;
    ASSERT_EQ(PLB_OK, create(&s, backends, 6));
    request.accept = refuse_and_list;
    request.accept_user = &l;
    l.count = 0;
    ASSERT_EQ(PLB_ERR_NOT_READY, plb_select_with(s.r.lb, &request, &out));
    ASSERT_EQ(6, l.count); /* each once, unready ones too */
    for (i = 0; i < 6; i++) {
        static const uint32_t order[] = {1, 0, 2};
        ASSERT_EQ(order[i / 2], l.infos[i].backend.priority);
        ASSERT_EQ(number(&l.infos[i]) > 2, l.infos[i].ready);
    }
    ASSERT(number(&l.infos[0]) != number(&l.infos[1]));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST a_walk_goes_through_the_active_tier(strategy_fn strategy)
{
    plb_backend backends[6];
    plb_backend_info info;
    plb_walk walk;
    uint32_t n;
    scene s;
    for (n = 1; n <= 6; n++)
        backends[n - 1] = nth(n, 1, (n - 1) / 3);
    begin(&s, strategy());
    ASSERT_EQ(PLB_OK, create(&s, backends, 6));
    ASSERT_EQ(PLB_OK, plb_walk_begin(&walk, s.r.lb, "k", 1));
    for (n = 0; n < 50; n++) {
        plb_walk_next(&walk, &info);
        ASSERT(number(&info) <= 3 && info.backend.priority == 0);
    }
    plb_walk_end(&walk);
    s.down[1] = s.down[2] = s.down[3] = true;
    check_all(&s);
    ASSERT_EQ(PLB_OK, plb_walk_begin(&walk, s.r.lb, "k", 1));
    for (n = 0; n < 50; n++) {
        plb_walk_next(&walk, &info);
        ASSERT(number(&info) > 3 && info.backend.priority == 1);
    }
    plb_walk_end(&walk);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST each_and_find_tell_the_priority_in_the_order_of_tiers(void)
{
    plb_backend backends[4];
    listed l;
    uint32_t i;
    scene s;
    backends[0] = nth(1, 1, PLB_PRIORITY_MAX);
    backends[1] = nth(2, 1, 7);
    backends[2] = nth(4, 1, 0);
    backends[3] = nth(3, 1, 7);
    begin(&s, plb_fnv());
    ASSERT_EQ(PLB_OK, create(&s, backends, 4));
    l.count = 0;
    plb_each(s.r.lb, list_one, &l);
    ASSERT_EQ(4, l.count);
    for (i = 0; i < 4; i++) {
        static const uint32_t order[] = {4, 2, 3, 1}, priorities[] = {0, 7, 7, PLB_PRIORITY_MAX};
        ASSERT_EQ(order[i], number(&l.infos[i]));
        ASSERT_EQ(priorities[i], l.infos[i].backend.priority);
        ASSERT_EQ(priorities[i], find(&s, order[i]).backend.priority);
    }
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST to_add_a_backend_again_replaces_its_priority(void)
{
    plb_backend backends[2], again;
    plb_static_desc list;
    scene s;
    memset(&list, 0, sizeof list);
    backends[0] = nth(1, 1, 0);
    backends[1] = nth(2, 1, 1);
    list.backends = backends;
    list.backend_count = 2;
    begin(&s, plb_round_robin());
    s.r.desc.discovery = plb_static(&list);
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    ASSERT(picks_are(&s, 1, 1));
    again = nth(1, 1, 2);
    ASSERT_EQ(PLB_OK, plb_add(s.r.lb, &again));
    rig_run(&s.r, 1);
    ASSERT(picks_are(&s, 2, 2));
    ASSERT_EQ(2, find(&s, 1).backend.priority);
    again.priority = PLB_PRIORITY_MAX + 1; /* to remove one, only address and id are looked at */
    again.weight = PLB_WEIGHT_MAX + 1;
    ASSERT_EQ(PLB_OK, plb_remove(s.r.lb, &again));
    rig_run(&s.r, 1);
    ASSERT_STR_EQ("10.0.0.2:80", rig_set(&s.r));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST a_priority_past_the_last_is_refused(void)
{
    plb_backend backends[2];
    plb_static_desc list;
    scene s;
    memset(&list, 0, sizeof list);
    backends[0] = nth(1, 1, 0);
    backends[1] = nth(2, 1, PLB_PRIORITY_MAX + 1);
    list.backends = backends;
    list.backend_count = 2;
    begin(&s, plb_round_robin());
    s.r.desc.discovery = plb_static(&list);
    ASSERT_EQ(PLB_ERR_ARGUMENT, rig_create(&s.r));
    ASSERT(rig_logged(&s.r, "10.0.0.2:80"));
    list.backend_count = 1;
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    ASSERT_EQ(PLB_ERR_ARGUMENT, plb_add(s.r.lb, &backends[1]));
    ASSERT_EQ(PLB_ERR_ARGUMENT, plb_replace(s.r.lb, backends, 2));
    rig_run(&s.r, 1);
    ASSERT_STR_EQ("10.0.0.1:80", rig_set(&s.r));
    ASSERT_EQ(0, rig_end(&s.r));
    begin(&s, plb_round_robin());
    ASSERT_EQ(PLB_OK, create(&s, backends, 1));
    update(&s, backends, 2); /* an answer of a discovery: the old set serves on */
    ASSERT_EQ(PLB_ERR_ARGUMENT, s.r.update.status);
    ASSERT_STR_EQ("10.0.0.1:80", rig_set(&s.r));
    ASSERT(picks_are(&s, 1, 1));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST each_backend_may_have_a_tier_of_its_own(strategy_fn strategy)
{
    plb_backend backends[100];
    uint32_t n;
    scene s;
    for (n = 0; n < 100; n++)
        backends[n] = nth(n, 1 + n % 3, n * 1300);
    begin(&s, strategy());
    ASSERT_EQ(PLB_OK, create(&s, backends, 100));
    for (n = 0; n < 99; n++) {
        ASSERT_EQ(n, pick(&s, n));
        flip(&s, n, true);
    }
    ASSERT_EQ(99, pick(&s, n));
    flip(&s, 50, false);
    ASSERT_EQ(50, pick(&s, n));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* A strategy that picks again whenever it is told of a flip, which is while the tiers are being brought up to date. */
static scene *curious;
static uint32_t curious_tells, curious_misses;

static void curious_flipped(void *state, void *table, const plb_view *view, uint32_t index, bool is_ready)
{
    uint32_t key = 0, i;
    int way;
    (void)state;
    (void)table;
    (void)view;
    (void)index;
    (void)is_ready;
    curious_tells++;
    for (way = 0; way < WAYS; way++)
        for (i = 0; i < COUNT(limits); i++) {
            plb_request request = request_for(&key, limits[i]);
            curious_misses += pick_by(curious, way, &request) == PLB_NONE;
        }
}

/* What another thread sees that comes between the last flip of a tier and the choice of the next. */
TEST a_backup_is_found_before_its_tier_is_the_active_one(strategy_fn strategy)
{
    plb_backend backends[3];
    plb_strategy_ops ops = *strategy().ops;
    plb_strategy told;
    uint32_t n;
    scene s;
    ops.flipped = curious_flipped;
    told = strategy();
    told.ops = &ops;
    for (n = 1; n <= 3; n++)
        backends[n - 1] = nth(n, 1, n);
    begin(&s, told);
    curious = &s;
    curious_tells = curious_misses = 0;
    ASSERT_EQ(PLB_OK, create(&s, backends, 3));
    flip(&s, 1, true);
    flip(&s, 2, true);
    flip(&s, 1, false);
    flip(&s, 1, true);
    ASSERT_EQ(4, curious_tells);
    ASSERT_EQ_FMT(0u, curious_misses, "%u");
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* ==== A MODEL ===================================================================================================== */

enum { NUMBERS = 12, ENTRIES_MAX = 20, HELD_MAX = 12 };

/* What the manual says, written down naively. */
typedef struct model {
    plb_backend entries[ENTRIES_MAX];
    uint32_t count;
    bool disabled[NUMBERS];
    uint32_t in_flight[NUMBERS], life[NUMBERS], max_conns[NUMBERS]; /* life: a number for each stay in the set */
    uint32_t panic_percent;
    plb_pick held[HELD_MAX];
    uint32_t held_life[HELD_MAX];
} model;

static uint32_t model_number(const model *m, uint32_t i)
{
    return m->entries[i].addr.u.v4[3];
}

static bool model_usable(const model *m, uint32_t i)
{
    return m->entries[i].weight > 0 && !m->disabled[model_number(m, i)];
}

static uint32_t model_healthy_in(const scene *s, const model *m, uint32_t priority, uint32_t *usable)
{
    uint32_t i, healthy = 0;
    for (*usable = 0, i = 0; i < m->count; i++)
        if (m->entries[i].priority == priority && model_usable(m, i)) {
            ++*usable;
            healthy += !s->down[model_number(m, i)];
        }
    return healthy;
}

static bool model_ready(const scene *s, const model *m, uint32_t i)
{
    uint32_t n = model_number(m, i), usable;
    uint32_t healthy = model_healthy_in(s, m, m->entries[i].priority, &usable);
    if (!model_usable(m, i) || (m->max_conns[n] > 0 && m->in_flight[n] >= m->max_conns[n]))
        return false;
    return !s->down[n] || healthy * 100 < usable * m->panic_percent;
}

/* The priority that picks come from, or PLB_NONE. */
static uint32_t model_tier(const scene *s, const model *m)
{
    uint32_t i, usable, tier = PLB_NONE, panicking = PLB_NONE;
    for (i = 0; i < m->count; i++) {
        uint32_t priority = m->entries[i].priority;
        if (!model_ready(s, m, i))
            continue;
        if (priority < panicking)
            panicking = priority;
        if (model_healthy_in(s, m, priority, &usable) > 0 && priority < tier)
            tier = priority;
    }
    return tier != PLB_NONE ? tier : panicking;
}

static bool model_may_pick(const scene *s, const model *m, uint32_t n)
{
    uint32_t i, tier = model_tier(s, m);
    for (i = 0; i < m->count; i++)
        if (model_number(m, i) == n && m->entries[i].priority == tier && model_ready(s, m, i))
            return true;
    return false;
}

static bool model_has(const model *m, uint32_t n)
{
    uint32_t i;
    for (i = 0; i < m->count; i++)
        if (model_number(m, i) == n)
            return true;
    return false;
}

static void model_update(scene *s, model *m)
{
    static const uint32_t priorities[] = {0, 0, 3, 9, PLB_BACKUP, PLB_BACKUP + 2};
    uint32_t i, n;
    for (n = 0; n < NUMBERS; n++)
        if (random_below(3) == 0)
            m->max_conns[n] = random_below(4) == 0 ? 1 + random_below(2) : 0;
    if (m->count == 0 || random_below(4) == 0)
        m->count = random_below(ENTRIES_MAX + 1);
    for (i = 0; i < m->count; i++) {
        if (m->entries[i].addr.family == PLB_FAMILY_NONE || random_below(3) == 0)
            m->entries[i] = nth(random_below(NUMBERS), random_below(4), priorities[random_below(COUNT(priorities))]);
        m->entries[i].max_conns = m->max_conns[model_number(m, i)];
    }
    for (i = 0; i < m->count; i++) /* exact duplicates would be one */
        for (n = 0; n < i; n++)
            if (model_number(m, n) == model_number(m, i) && m->entries[n].priority == m->entries[i].priority &&
                m->entries[n].weight == m->entries[i].weight)
                m->entries[i--] = m->entries[--m->count];
    for (n = 0; n < NUMBERS; n++)
        if (!model_has(m, n)) {
            m->disabled[n] = false;
            m->in_flight[n] = 0;
            m->life[n]++;
        }
    update(s, m->entries, m->count);
}

static void model_end(model *m, uint32_t h)
{
    uint32_t n = m->held[h].addr.u.v4[3];
    if (m->held[h].held == NULL)
        return;
    plb_end(&m->held[h], PLB_OUTCOME_SUCCESS, 1);
    if (m->held_life[h] == m->life[n])
        m->in_flight[n]--;
}

static bool model_begin(scene *s, model *m, uint32_t h)
{
    bool possible = model_tier(s, m) != PLB_NONE;
    uint32_t n, key = random_below(1000);
    plb_request request = request_for(&key, 0);
    plb_status status = plb_begin(s->r.lb, &request, &m->held[h]);
    if ((status == PLB_OK) != possible)
        return false;
    if (!possible)
        return true;
    n = m->held[h].addr.u.v4[3];
    if (!model_may_pick(s, m, n))
        return false;
    m->in_flight[n]++;
    m->held_life[h] = m->life[n];
    return true;
}

static bool model_agrees(scene *s, const model *m)
{
    uint32_t i, j, n;
    listed l;
    for (i = 0; i < 4; i++) {
        bool possible = model_tier(s, m) != PLB_NONE;
        n = pick(s, random_below(1000));
        if (possible ? n == PLB_NONE || !model_may_pick(s, m, n) : n != PLB_NONE)
            return false;
    }
    l.count = 0;
    plb_each(s->r.lb, list_one, &l);
    if (l.count != m->count)
        return false;
    for (i = 0; i < m->count; i++) {
        bool found = false;
        for (j = 0; j < l.count; j++)
            if (number(&l.infos[j]) == model_number(m, i) && l.infos[j].backend.priority == m->entries[i].priority &&
                l.infos[j].backend.weight == m->entries[i].weight)
                found = l.infos[j].ready == model_ready(s, m, i) &&
                        l.infos[j].in_flight == m->in_flight[model_number(m, i)];
        if (!found)
            return false;
    }
    for (n = 0; n < NUMBERS; n++) {
        bool any = false;
        for (i = 0; i < m->count; i++)
            any = any || (model_number(m, i) == n && model_ready(s, m, i));
        if (ready(s, n) != any)
            return false;
    }
    return true;
}

TEST every_pick_is_one_that_a_naive_model_allows(strategy_fn strategy, uint32_t panic_percent)
{
    static model m;
    uint32_t step;
    scene s;
    memset(&m, 0, sizeof m);
    random_state = 1 + panic_percent;
    m.panic_percent = panic_percent;
    begin(&s, strategy());
    s.r.desc.panic_percent = panic_percent;
    s.r.desc.log = NULL;
    ASSERT_EQ(PLB_OK, create(&s, NULL, 0));
    for (step = 0; step < 500; step++) {
        uint32_t what = random_below(20), n = random_below(NUMBERS), h = random_below(HELD_MAX);
        if (step % 50 == 0 || what == 0) {
            model_update(&s, &m);
        } else if (what < 8) {
            s.down[n] = random_below(100) < (step / 50 % 2 != 0 ? 80u : 30u);
        } else if (what < 11 && model_has(&m, n)) {
            m.disabled[n] = random_below(3) == 0;
            enable(&s, n, !m.disabled[n]);
        } else if (what < 15) {
            model_end(&m, h);
        } else {
            model_end(&m, h);
            ASSERT(model_begin(&s, &m, h));
        }
        check_all(&s);
        ASSERT(model_agrees(&s, &m));
    }
    for (step = 0; step < HELD_MAX; step++)
        model_end(&m, step);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* ==== THE PANIC THRESHOLD ========================================================================================= */

static uint32_t ready_of(scene *s, uint32_t low, uint32_t high)
{
    uint32_t n, count = 0;
    for (n = low; n <= high; n++)
        count += ready(s, n);
    return count;
}

TEST below_the_threshold_health_is_ignored_and_above_it_counts_again(strategy_fn strategy)
{
    plb_backend backends[10];
    uint32_t n;
    scene s;
    for (n = 1; n <= 10; n++)
        backends[n - 1] = nth(n, 1, 0);
    begin(&s, strategy());
    s.r.desc.panic_percent = 40;
    ASSERT_EQ(PLB_OK, create(&s, backends, 10));
    for (n = 1; n <= 6; n++) {
        flip(&s, n, true);
        ASSERT_EQ(10 - n, ready_of(&s, 1, 10));
    }
    ASSERT(picks_are(&s, 7, 10)); /* 40 percent are not below 40 percent */
    flip(&s, 7, true);
    ASSERT_EQ(10, ready_of(&s, 1, 10));
    ASSERT(picks_are(&s, 1, 10));
    ASSERT_FALSE(find(&s, 1).healthy); /* health itself is told as it is */
    ASSERT(find(&s, 1).ready);
    for (n = 8; n <= 10; n++)
        flip(&s, n, true);
    ASSERT(picks_are(&s, 1, 10));
    for (n = 1; n <= 3; n++)
        flip(&s, n, false);
    ASSERT(picks_are(&s, 1, 10));
    flip(&s, 4, false);
    ASSERT(picks_are(&s, 1, 4));
    ASSERT_EQ(4, ready_of(&s, 1, 10));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST panic_does_not_reach_what_is_switched_off_or_drains_or_is_full(void)
{
    plb_backend backends[5];
    plb_pick held;
    uint32_t n;
    scene s;
    for (n = 1; n <= 5; n++)
        backends[n - 1] = nth(n, n == 2 ? 0 : 1, 0);
    backends[2].max_conns = 1;
    begin(&s, plb_round_robin());
    s.r.desc.panic_percent = 100;
    for (n = 1; n <= 5; n++)
        s.down[n] = n != 3;
    ASSERT_EQ(PLB_OK, create(&s, backends, 5));
    ASSERT(ready(&s, 1) && !ready(&s, 2) && ready(&s, 3) && ready(&s, 4) && ready(&s, 5));
    enable(&s, 1, false);
    flip(&s, 3, true);
    do { /* fills number 3 */
        ASSERT_EQ(PLB_OK, plb_begin(s.r.lb, NULL, &held));
        if (held.addr.u.v4[3] != 3)
            plb_end(&held, PLB_OUTCOME_SUCCESS, 1);
    } while (held.held == NULL);
    ASSERT(picks_are(&s, 4, 5));
    ASSERT_EQ(2, ready_of(&s, 1, 5));
    plb_end(&held, PLB_OUTCOME_SUCCESS, 1);
    ASSERT(picks_are(&s, 3, 5));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* Neither counts what is switched off or drains: one healthy backend of one is 100 percent. */
TEST the_share_is_of_those_that_could_serve(void)
{
    plb_backend backends[4];
    uint32_t n;
    scene s;
    for (n = 1; n <= 4; n++)
        backends[n - 1] = nth(n, n == 4 ? 0 : 1, 0);
    begin(&s, plb_round_robin());
    s.r.desc.panic_percent = 60;
    ASSERT_EQ(PLB_OK, create(&s, backends, 4));
    flip(&s, 2, true);
    ASSERT_EQ(2, ready_of(&s, 1, 4)); /* two of three */
    flip(&s, 3, true);
    ASSERT_EQ(3, ready_of(&s, 1, 4)); /* one of three */
    enable(&s, 2, false);
    ASSERT_EQ(2, ready_of(&s, 1, 4)); /* one of two */
    enable(&s, 3, false);
    ASSERT(picks_are(&s, 1, 1)); /* one of one */
    enable(&s, 2, true);
    ASSERT(picks_are(&s, 1, 2));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST a_threshold_of_0_is_off_and_one_of_100_wants_all_of_them(void)
{
    plb_backend backends[3];
    uint32_t n;
    scene s;
    for (n = 1; n <= 3; n++)
        backends[n - 1] = nth(n, 1, 0);
    begin(&s, plb_fnv());
    ASSERT_EQ(PLB_OK, create(&s, backends, 3));
    flip(&s, 1, true);
    flip(&s, 2, true);
    ASSERT(picks_are(&s, 3, 3));
    flip(&s, 3, true);
    ASSERT_EQ(PLB_NONE, pick(&s, 1));
    ASSERT_EQ(0, rig_end(&s.r));
    begin(&s, plb_fnv());
    s.r.desc.panic_percent = 100;
    ASSERT_EQ(PLB_OK, create(&s, backends, 3));
    ASSERT(picks_are(&s, 1, 3));
    flip(&s, 2, true);
    ASSERT(ready(&s, 2));
    ASSERT(picks_are(&s, 1, 3));
    enable(&s, 2, false); /* all that could serve are healthy */
    flip(&s, 2, false);
    ASSERT_EQ(2, ready_of(&s, 1, 3));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST a_threshold_above_100_is_refused(void)
{
    scene s;
    begin(&s, plb_fnv());
    s.r.desc.panic_percent = 101;
    ASSERT_EQ(PLB_ERR_ARGUMENT, rig_create(&s.r));
    ASSERT(rig_logged(&s.r, "panic_percent"));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST a_tier_without_a_healthy_backend_yields_to_one_that_has_some(void)
{
    plb_backend backends[6];
    plb_backend_info info;
    plb_walk walk;
    uint32_t n;
    scene s;
    for (n = 1; n <= 6; n++)
        backends[n - 1] = nth(n, 1, (n - 1) / 2);
    begin(&s, plb_round_robin());
    s.r.desc.panic_percent = 60;
    ASSERT_EQ(PLB_OK, create(&s, backends, 6));
    flip(&s, 1, true);
    ASSERT(picks_are(&s, 1, 2)); /* half of it is down: it panics, and is used */
    flip(&s, 2, true);
    ASSERT(picks_are(&s, 3, 4));
    s.down[3] = true;
    flip(&s, 4, true);
    ASSERT(picks_are(&s, 5, 6));
    s.down[5] = true;
    flip(&s, 6, true);
    ASSERT(picks_are(&s, 1, 2)); /* none is left: the first panics */
    enable(&s, 1, false);
    enable(&s, 2, false);
    ASSERT(picks_are(&s, 3, 4)); /* or the first that can */
    ASSERT_EQ(PLB_OK, plb_walk_begin(&walk, s.r.lb, NULL, 0));
    plb_walk_next(&walk, &info);
    plb_walk_end(&walk);
    ASSERT_EQ(1, info.backend.priority);
    enable(&s, 1, true);
    enable(&s, 2, true);
    ASSERT(picks_are(&s, 1, 2));
    flip(&s, 6, false);
    ASSERT(picks_are(&s, 5, 6));
    flip(&s, 1, false);
    ASSERT(picks_are(&s, 1, 2));
    flip(&s, 2, false);
    flip(&s, 1, true);
    flip(&s, 1, false);
    ASSERT_EQ(2, ready_of(&s, 1, 2));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST panic_begins_and_ends_with_a_set_too(void)
{
    plb_backend backends[8];
    uint32_t n;
    scene s;
    for (n = 1; n <= 8; n++)
        backends[n - 1] = nth(n, 1, 0);
    begin(&s, ketama());
    s.r.desc.panic_percent = 50;
    ASSERT_EQ(PLB_OK, create(&s, backends, 4));
    s.down[1] = s.down[2] = true;
    check_all(&s);
    ASSERT(picks_are(&s, 3, 4));
    update(&s, backends, 3); /* one of three */
    ASSERT(picks_are(&s, 1, 3));
    update(&s, backends, 8); /* six of eight */
    ASSERT(picks_are(&s, 3, 8));
    backends[0].enablement = PLB_ENABLEMENT_OFF;
    update(&s, backends, 2);
    ASSERT(picks_are(&s, 2, 2));
    backends[0].enablement = PLB_ENABLEMENT_ON;
    update(&s, backends, 2);
    ASSERT(picks_are(&s, 1, 2));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* ==== SLOW START ================================================================================================== */

enum { SLOW_MS = 6400, PICKS = 20000 };

/* How many of 10 000 picks a backend gets. */
static uint32_t share_of(scene *s, uint32_t n)
{
    uint32_t key, got = 0;
    for (key = 0; key < PICKS; key++)
        got += pick(s, key) == n;
    return got * 10000 / PICKS;
}

/* `count` backends of which number 1 has just become healthy. */
static plb_status begin_slowly(scene *s, plb_strategy strategy, uint32_t count)
{
    static plb_backend backends[HOSTS];
    plb_status status;
    uint32_t n;
    for (n = 1; n <= count; n++)
        backends[n - 1] = nth(n, 1, 0);
    begin(s, strategy);
    s->r.desc.slow_start_ms = SLOW_MS;
    s->down[1] = true;
    status = create(s, backends, count);
    if (status == PLB_OK)
        flip(s, 1, false);
    return status;
}

static bool is_about(uint32_t value, uint32_t wanted)
{
    return value + 350 >= wanted && value <= wanted + 350;
}

TEST the_share_of_one_that_became_healthy_grows_with_time(strategy_fn strategy)
{
    uint32_t eighth;
    scene s;
    ASSERT_EQ(PLB_OK, begin_slowly(&s, strategy(), 2));
    ASSERT(ready(&s, 1)); /* from the start */
    for (eighth = 0; eighth <= 8; eighth++) {
        uint32_t got = share_of(&s, 1); /* of one of two whose weights are 1 and eighth / 8: by both ways to count */
        ASSERT(got + 350 >= 5000 * eighth / 8 && got <= 10000 * eighth / (8 + eighth) + 350);
        ASSERT(is_about(find(&s, 1).share * 10000u / 255, 10000 * eighth / 8));
        ASSERT_EQ(255, find(&s, 2).share);
        rig_run(&s.r, SLOW_MS / 8);
    }
    ASSERT_EQ(255, find(&s, 1).share);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* What each key gets, with and without a limit, at one moment. */
enum { KEYS = 2000 };

static void picks_of_keys(scene *s, uint32_t out[2][KEYS])
{
    uint32_t key, i;
    for (i = 0; i < 2; i++)
        for (key = 0; key < KEYS; key++) {
            plb_request request = request_for(&key, limits[i]);
            out[i][key] = pick_by(s, WAY_SELECT, &request);
        }
}

TEST keys_come_to_one_that_starts_slowly_and_none_goes(strategy_fn strategy)
{
    static uint32_t before[2][KEYS], now[2][KEYS], least[2][KEYS];
    uint32_t eighth, key, i, got[10] = {0};
    scene s;
    ASSERT_EQ(PLB_OK, begin_slowly(&s, strategy(), 10));
    for (key = 5; key < 10; key++) /* some are down, so that second choices count */
        flip(&s, key, true);
    rig_run(&s.r, 2 * SLOW_MS);
    flip(&s, 1, true);
    picks_of_keys(&s, least);
    flip(&s, 1, false);
    memcpy(before, least, sizeof before);
    for (eighth = 0; eighth < 9; eighth++) {
        picks_of_keys(&s, now);
        for (i = 0; i < 2; i++)
            for (key = 0; key < KEYS; key++) {
                ASSERT(before[i][key] != 1 || now[i][key] == 1);                         /* none goes */
                ASSERT(eighth < 8 || now[i][key] == 1 || now[i][key] == before[i][key]); /* the rest stays */
                got[eighth] += now[i][key] == 1;
            }
        memcpy(before, now, sizeof before);
        rig_run(&s.r, SLOW_MS / 8);
    }
    ASSERT(got[0] < 10 * 2 * KEYS / 255 && got[2] < got[5] && got[5] < got[8] && got[8] > 2 * KEYS / 8);
    for (i = 0; i < 2; i++)
        for (key = 0; key < KEYS; key++) /* those that were not for it were not touched */
            ASSERT(now[i][key] == 1 || now[i][key] == least[i][key]);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* Keys of others stay where they are while one starts slowly, and when it is over. */
TEST a_slow_start_moves_no_key_of_the_others(strategy_fn strategy)
{
    static uint32_t during[2][KEYS], again[2][KEYS], after[2][KEYS];
    uint32_t key, i;
    scene s;
    ASSERT_EQ(PLB_OK, begin_slowly(&s, strategy(), 10));
    for (key = 5; key < 10; key++)
        flip(&s, key, true);
    picks_of_keys(&s, during);
    picks_of_keys(&s, again); /* nor does it make one waver */
    ASSERT_EQ(0, memcmp(during, again, sizeof again));
    rig_run(&s.r, SLOW_MS);
    ASSERT_EQ(255, find(&s, 1).share);
    picks_of_keys(&s, after);
    for (i = 0; i < 2; i++)
        for (key = 0; key < KEYS; key++)
            ASSERT(after[i][key] == 1 || after[i][key] == during[i][key]);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST the_only_one_that_is_ready_gets_everything_however_slowly_it_starts(strategy_fn strategy)
{
    plb_backend backends[3];
    uint32_t key, nobody = 99;
    scene s;
    backends[0] = nth(1, 1, 0);
    backends[1] = nth(2, 1, 0);
    backends[2] = nth(3, 1, 1);
    begin(&s, strategy());
    s.r.desc.slow_start_ms = SLOW_MS;
    s.down[1] = s.down[2] = true;
    ASSERT_EQ(PLB_OK, create(&s, backends, 2));
    flip(&s, 1, false);
    ASSERT_EQ(1, find(&s, 1).share);
    ASSERT(picks_are(&s, 1, 1));
    update(&s, backends, 3); /* a backup is used only while none of them is ready */
    ASSERT_EQ(1, find(&s, 1).share);
    ASSERT(picks_are(&s, 1, 1));
    flip(&s, 2, false);
    ASSERT(picks_are(&s, 1, 2));     /* two that start together share it */
    for (key = 0; key < 20; key++) { /* even if one step is all that may be looked at */
        plb_request request = request_for(&key, 1);
        ASSERT(pick_by(&s, WAY_SELECT, &request) <= 2);
        request.exclude = &nobody;
        request.exclude_count = 1;
        ASSERT(pick_by(&s, WAY_SELECT_WITH, &request) <= 2);
    }
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

static uint32_t steps;

static uint32_t counting_next(const void *table, const plb_view *view, plb_reader *reader, plb_cursor *cursor)
{
    steps++;
    return plb_fnv().ops->next(table, view, reader, cursor);
}

/* When the first of many comes back after an outage, picks are not made to look at all the others. */
TEST one_of_many_that_starts_slowly_is_found_without_a_walk(void)
{
    enum { ALL = 250 };
    plb_backend backends[ALL];
    plb_strategy strategy = plb_fnv();
    plb_strategy_ops ops = *strategy.ops;
    uint32_t n;
    scene s;
    ops.next = counting_next;
    strategy.ops = &ops;
    begin(&s, strategy);
    s.r.desc.slow_start_ms = SLOW_MS;
    for (n = 0; n < ALL; n++) {
        backends[n] = nth(n, 1, 0);
        s.down[n] = true;
    }
    ASSERT_EQ(PLB_OK, create(&s, backends, ALL));
    check_all(&s);
    check_all(&s);
    flip(&s, 200, false);
    check_all(&s);
    ASSERT_LT(find(&s, 200).share, 10);
    steps = 0;
    for (n = 0; n < 100; n++)
        ASSERT_EQ(200, pick(&s, n));
    ASSERT_EQ(0, steps);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* A retry that excludes the others gets one that starts slowly before it gets a backup. */
TEST a_retry_takes_one_that_starts_slowly_before_it_goes_on(strategy_fn strategy, uint32_t limit)
{
    plb_backend backends[4];
    uint32_t key, exclude[2];
    scene s;
    for (key = 1; key <= 4; key++)
        backends[key - 1] = nth(key, 1, (key - 1) / 2);
    begin(&s, strategy());
    s.r.desc.slow_start_ms = SLOW_MS;
    s.down[1] = s.down[3] = true;
    ASSERT_EQ(PLB_OK, create(&s, backends, 4));
    s.down[3] = false;
    flip(&s, 1, false);
    exclude[0] = find(&s, 2).slot;
    exclude[1] = find(&s, 1).slot;
    for (key = 0; key < 100; key++) {
        plb_request request = request_for(&key, limit);
        request.exclude = exclude;
        request.exclude_count = 1;
        ASSERT_EQ(1, pick_by(&s, WAY_BEGIN, &request));
        request.exclude_count = 2;
        ASSERT(pick_by(&s, WAY_BEGIN, &request) >= 3);
    }
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* Shares of a backup that starts slowly count in its own tier. */
TEST a_slow_start_counts_in_a_tier_that_is_reached_by_a_retry(void)
{
    plb_backend backends[3];
    uint32_t key, exclude, got = 0;
    scene s;
    backends[0] = nth(1, 1, 0);
    backends[1] = nth(2, 1, 1);
    backends[2] = nth(3, 1, 1);
    begin(&s, plb_random_choice());
    s.r.desc.slow_start_ms = SLOW_MS;
    s.down[2] = true;
    ASSERT_EQ(PLB_OK, create(&s, backends, 3));
    flip(&s, 2, false);
    exclude = find(&s, 1).slot;
    for (key = 0; key < 1000; key++) {
        plb_request request = request_for(&key, 0);
        request.exclude = &exclude;
        request.exclude_count = 1;
        got += pick_by(&s, WAY_SELECT_WITH, &request) == 2;
    }
    ASSERT(got < 100);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST one_that_fails_again_starts_again(void)
{
    scene s;
    ASSERT_EQ(PLB_OK, begin_slowly(&s, plb_random_choice(), 2));
    rig_run(&s.r, SLOW_MS / 2);
    ASSERT(is_about(share_of(&s, 1), 2500));
    flip(&s, 1, true);
    ASSERT_EQ(0, share_of(&s, 1));
    rig_run(&s.r, SLOW_MS / 4);
    ASSERT_EQ(0, share_of(&s, 1));
    flip(&s, 1, false);
    ASSERT(is_about(share_of(&s, 1), 0) && share_of(&s, 1) > 0);
    rig_run(&s.r, SLOW_MS / 2);
    ASSERT(is_about(share_of(&s, 1), 2500));
    flip(&s, 1, true);
    rig_run(&s.r, SLOW_MS); /* its start ends while it is down */
    flip(&s, 1, false);
    ASSERT_EQ(1, find(&s, 1).share);
    rig_run(&s.r, SLOW_MS);
    ASSERT_EQ(255, find(&s, 1).share);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* Do picks go by the fast path, on which shares are not looked at? */
static bool is_fast(const scene *s)
{
    return plb__is_simple((const plb__set *)s->r.lb->current);
}

/* When it is over, no pick looks at shares any more and nothing wakes up for it. */
TEST a_slow_start_ends_exactly(void)
{
    uint64_t ends;
    scene s;
    ASSERT_EQ(PLB_OK, begin_slowly(&s, plb_fnv(), 2));
    ends = s.r.s->now_ms - 1 + SLOW_MS;
    ASSERT_GT(share_of(&s, 2), 9000);
    ASSERT_FALSE(is_fast(&s));
    ASSERT_LTE(plb_poll(s.r.lb), SLOW_MS / 64);
    rig_run(&s.r, (uint32_t)(ends - s.r.s->now_ms) - 1);
    ASSERT_LT(find(&s, 1).share, 255);
    ASSERT_EQ(1, plb_poll(s.r.lb));
    rig_run(&s.r, 1);
    ASSERT_EQ(255, find(&s, 1).share);
    ASSERT_EQ(PLB_FOREVER, plb_poll(s.r.lb));
    ASSERT(is_fast(&s));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST a_slow_start_goes_on_in_the_next_set(void)
{
    plb_backend backends[3];
    uint32_t n;
    scene s;
    for (n = 1; n <= 3; n++)
        backends[n - 1] = nth(n, 1, 0);
    ASSERT_EQ(PLB_OK, begin_slowly(&s, plb_random_choice(), 2));
    rig_run(&s.r, SLOW_MS / 2);
    update(&s, backends, 3);
    ASSERT(is_about(share_of(&s, 1), 3333 / 2));
    backends[0].priority = 1; /* another tier, of which it is the whole */
    backends[1].priority = backends[2].priority = 2;
    update(&s, backends, 3);
    ASSERT(picks_are(&s, 1, 1));
    backends[0].priority = 2;
    update(&s, backends, 3);
    rig_run(&s.r, SLOW_MS / 4);
    ASSERT(is_about(share_of(&s, 1), 3333 * 3 / 4));
    backends[0].priority = 3; /* one that is not in use */
    update(&s, backends, 3);
    rig_run(&s.r, SLOW_MS / 4);
    ASSERT_EQ(255, find(&s, 1).share);
    ASSERT_EQ(PLB_FOREVER, plb_poll(s.r.lb));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* A backend that drains is not picked, but it is still to be there in full when its weight comes back. */
TEST a_slow_start_ends_for_a_backend_of_weight_0_too(bool drained_before)
{
    plb_backend backends[2];
    scene s;
    backends[0] = nth(1, drained_before ? 0 : 1, 0);
    backends[1] = nth(2, 1, 0);
    begin(&s, plb_fnv());
    s.r.desc.slow_start_ms = SLOW_MS;
    s.down[1] = true;
    ASSERT_EQ(PLB_OK, create(&s, backends, 2));
    flip(&s, 1, false);
    backends[0].weight = 0;
    update(&s, backends, 2);
    rig_run(&s.r, SLOW_MS);
    ASSERT_EQ(255, find(&s, 1).share);
    ASSERT_EQ(10000, share_of(&s, 2));
    ASSERT(is_fast(&s));
    backends[0].weight = 1;
    update(&s, backends, 2);
    ASSERT(is_about(share_of(&s, 1), 5000));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST a_tier_that_panics_does_not_spare_the_one_that_recovers(void)
{
    plb_backend backends[3];
    uint32_t n;
    scene s;
    begin(&s, plb_random_choice());
    s.r.desc.slow_start_ms = SLOW_MS;
    s.r.desc.panic_percent = 100;
    for (n = 1; n <= 3; n++) {
        backends[n - 1] = nth(n, 1, 0);
        s.down[n] = n < 3;
    }
    ASSERT_EQ(PLB_OK, create(&s, backends, 3));
    flip(&s, 1, false); /* one is still down */
    ASSERT(is_about(share_of(&s, 1), 3333));
    flip(&s, 2, false); /* none is: the panic is over */
    ASSERT(share_of(&s, 2) < 500);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST slow_starts_need_a_clock(void)
{
    scene s;
    begin(&s, plb_fnv());
    s.r.desc.port.clock = NULL;
    s.r.desc.slow_start_ms = 1;
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, rig_create(&s.r));
    ASSERT(rig_logged(&s.r, "slow_start_ms"));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST without_a_slow_start_the_whole_share_is_there_at_once(void)
{
    plb_backend backends[2];
    scene s;
    backends[0] = nth(1, 1, 0);
    backends[1] = nth(2, 1, 0);
    begin(&s, plb_random_choice());
    s.down[1] = true;
    ASSERT_EQ(PLB_OK, create(&s, backends, 2));
    flip(&s, 1, false);
    ASSERT_EQ(255, find(&s, 1).share);
    ASSERT(is_about(share_of(&s, 1), 5000));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* ==== WHAT A STRATEGY IS TOLD ===================================================================================== */

/* A strategy that goes through the set in order, and writes down what it hears. */
typedef struct told {
    uint32_t tables, ticks, flips;
    uint32_t lies; /* rules that were broken */
    uint32_t slots_data;
    struct told_table *first;
} told;

typedef struct told_table {
    const plb_view *view;
    uint32_t ready, ready_weight, ticks;
    bool built;
    bool is_ready[HOSTS];
    struct told_table *next;
} told_table;

static told told_of;

enum { SLOT_SIZE = 20 }; /* no multiple of what it is aligned to */

typedef struct told_state {
    plb_allocator allocator;
} told_state;

static plb_status told_open(void *state, const void *desc, const plb_env *env)
{
    (void)desc;
    ((told_state *)state)->allocator = env->allocator;
    memset(&told_of, 0, sizeof told_of);
    return PLB_OK;
}

static void (*told_in_build)(void); /* called in the middle of each build, when set */

static plb_status told_build(void *state, const plb_view *view, const plb_view *old_view, const void *old_table,
                             void **table)
{
    const plb_allocator *a = &((told_state *)state)->allocator;
    told_table *t = (told_table *)a->alloc(a->user, sizeof *t);
    uint32_t i;
    (void)old_view;
    if (t == NULL)
        return PLB_ERR_MEMORY;
    memset(t, 0, sizeof *t);
    told_of.lies += (old_view == NULL) != (old_table == NULL);
    told_of.lies += old_table != NULL && ((const told_table *)old_table)->view != old_view;
    t->view = view;
    for (i = 0; i < plb_view_count(view); i++) {
        t->is_ready[i] = plb_view_ready(view, i);
        t->ready += t->is_ready[i];
        t->ready_weight += t->is_ready[i] ? plb_view_weight(view, i) : 0;
    }
    if (told_in_build != NULL)
        told_in_build();
    t->built = true;
    t->next = told_of.first;
    told_of.first = t;
    told_of.tables++;
    *table = t;
    return PLB_OK;
}

static void told_discard(void *state, void *table)
{
    const plb_allocator *a = &((told_state *)state)->allocator;
    told_table **link = &told_of.first;
    while (*link != (told_table *)table)
        link = &(*link)->next;
    *link = (*link)->next;
    told_of.tables--;
    a->dealloc(a->user, table, sizeof(told_table));
}

static uint32_t told_next(const void *table, const plb_view *view, plb_reader *reader, plb_cursor *cursor)
{
    (void)table;
    (void)reader;
    return (uint32_t)(cursor->words[0]++ % plb_view_count(view));
}

static uint32_t told_first(const void *table, const plb_view *view, plb_reader *reader, const void *key,
                           size_t key_length, plb_cursor *cursor)
{
    (void)key;
    (void)key_length;
    cursor->words[0] = 0;
    return told_next(table, view, reader, cursor);
}

static void told_flipped(void *state, void *table, const plb_view *view, uint32_t index, bool is_ready)
{
    told_table *t = (told_table *)table;
    (void)state;
    told_of.flips++;
    if (t == NULL || !t->built || t->view != view || t->is_ready[index] == is_ready) {
        told_of.lies++;
        return;
    }
    t->is_ready[index] = is_ready;
    t->ready += is_ready ? 1u : UINT32_MAX;
    t->ready_weight += is_ready ? plb_view_weight(view, index) : 0 - plb_view_weight(view, index);
}

static void told_tick(void *state, void *table, const plb_view *view)
{
    told_table *t = (told_table *)table;
    (void)state;
    told_of.ticks++;
    told_of.lies += t->view != view;
    t->ticks++;
}

static const plb_strategy_ops told_ops = {
    "told",     sizeof(told_state), SLOT_SIZE, false,        told_open, NULL, told_build, told_discard,
    told_first, told_next,          NULL,      told_flipped, NULL,      NULL, told_tick,  50};

static plb_strategy told_strategy(void)
{
    plb_strategy strategy;
    strategy.ops = &told_ops;
    strategy.desc = NULL;
    return strategy;
}

/* Do all the views say of themselves what was heard of them? */
static bool told_agrees(void)
{
    const told_table *t;
    for (t = told_of.first; t != NULL; t = t->next) {
        uint32_t i, nth_ready = 0;
        if (t->ready != plb_view_ready_count(t->view) || t->ready_weight != plb_view_ready_weight(t->view))
            return false;
        for (i = 0; i < plb_view_count(t->view); i++) {
            if (t->is_ready[i] != plb_view_ready(t->view, i))
                return false;
            if (t->is_ready[i] && plb_view_ready_nth(t->view, nth_ready++) != i)
                return false;
        }
        if (plb_view_ready_nth(t->view, nth_ready) != PLB_NONE)
            return false;
    }
    return told_of.lies == 0;
}

TEST a_strategy_hears_of_each_change_of_readiness_once(uint32_t panic_percent)
{
    static model m;
    uint32_t step;
    scene s;
    memset(&m, 0, sizeof m);
    random_state = 99;
    m.panic_percent = panic_percent;
    begin(&s, told_strategy());
    s.r.desc.panic_percent = panic_percent;
    s.r.desc.log = NULL;
    ASSERT_EQ(PLB_OK, create(&s, NULL, 0));
    for (step = 0; step < 600; step++) {
        uint32_t what = random_below(20), n = random_below(NUMBERS), h = random_below(HELD_MAX);
        model_end(&m, h);
        if (step % 100 == 0 || what == 0)
            model_update(&s, &m);
        else if (what < 8)
            s.down[n] = random_below(2) == 0;
        else if (what < 12)
            enable(&s, n, random_below(2) == 0);
        else if (plb_begin(s.r.lb, NULL, &m.held[h]) == PLB_OK)
            m.held_life[h] = UINT32_MAX; /* what the model says of it is not looked at here */
        check_all(&s);
        ASSERT(told_agrees());
    }
    ASSERT_GT(told_of.flips, 50);
    for (step = 0; step < HELD_MAX; step++)
        plb_end(&m.held[step], PLB_OUTCOME_SUCCESS, 1);
    ASSERT_EQ(0, rig_end(&s.r));
    ASSERT_EQ(0, told_of.tables);
    PASS();
}

static scene *flipping;

static void flip_all(void)
{
    uint32_t n;
    for (n = 1; n <= 4; n++)
        enable(flipping, n, n % 2 == 0);
}

/* What changes while the next set is being built shows in it, and is told of it once it is built. */
TEST no_change_is_lost_to_a_set_that_is_being_built(uint32_t panic_percent)
{
    plb_backend backends[6];
    uint32_t n;
    scene s;
    for (n = 1; n <= 6; n++)
        backends[n - 1] = nth(n, 1, n % 3);
    begin(&s, told_strategy());
    s.r.desc.panic_percent = panic_percent;
    ASSERT_EQ(PLB_OK, create(&s, backends, 4));
    enable(&s, 2, false);
    flipping = &s;
    told_in_build = flip_all;
    update(&s, backends, 6);
    told_in_build = NULL;
    ASSERT_STR_EQ("10.0.0.3:80 off 10.0.0.6:80 10.0.0.1:80 off 10.0.0.4:80 10.0.0.2:80 10.0.0.5:80", rig_set(&s.r));
    ASSERT(!ready(&s, 1) && ready(&s, 2) && !ready(&s, 3) && ready(&s, 4));
    ASSERT(told_agrees());
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* Else it would be told of flips at once, and build for nothing. */
TEST build_sees_how_it_is(void)
{
    plb_backend backends[6];
    uint32_t n;
    scene s;
    for (n = 1; n <= 6; n++)
        backends[n - 1] = nth(n, 1, n % 2);
    begin(&s, told_strategy());
    s.r.desc.panic_percent = 100;
    s.down[1] = true;
    ASSERT_EQ(PLB_OK, create(&s, backends, 5));
    enable(&s, 4, false);
    told_of.flips = 0;
    update(&s, backends, 6);
    ASSERT_EQ(2, s.r.changes);
    ASSERT_EQ(0, told_of.flips);
    ASSERT(ready(&s, 1) && !ready(&s, 4) && told_agrees());
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST tick_comes_at_its_times_for_each_tier(void)
{
    plb_backend backends[3];
    const told_table *t;
    scene s;
    backends[0] = nth(1, 1, 0);
    backends[1] = nth(2, 1, 1);
    backends[2] = nth(3, 1, 2);
    begin(&s, told_strategy());
    feed_set(&s.f, backends, 3);
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    rig_run(&s.r, 49);
    ASSERT_EQ(0, told_of.ticks);
    rig_run(&s.r, 1);
    ASSERT_EQ(3, told_of.ticks);
    rig_run(&s.r, 950);
    for (t = told_of.first; t != NULL; t = t->next)
        ASSERT_EQ(20, t->ticks);
    ASSERT_EQ(60, told_of.ticks);
    update(&s, backends, 1);
    rig_run(&s.r, 499);
    ASSERT_EQ(70, told_of.ticks);
    update(&s, backends, 0); /* a tier without backends has no table */
    rig_run(&s.r, 499);
    ASSERT_EQ(70, told_of.ticks);
    ASSERT_EQ(0, told_of.lies);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST without_a_clock_there_is_no_tick(void)
{
    plb_backend backend = nth(1, 1, 0);
    int i;
    scene s;
    begin(&s, told_strategy());
    s.r.desc.port.clock = NULL;
    feed_set(&s.f, &backend, 1);
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    for (i = 0; i < 10; i++)
        rig_run(&s.r, 100);
    ASSERT_EQ(0, told_of.ticks);
    ASSERT_EQ(PLB_FOREVER, plb_poll(s.r.lb));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

static unsigned char *data_of(uint32_t tier_from_last, uint32_t index)
{
    const told_table *t = told_of.first; /* the last that was built */
    for (; tier_from_last > 0; tier_from_last--)
        t = t->next;
    return (unsigned char *)plb_view_data(t->view, index);
}

static bool is_all(const unsigned char *bytes, unsigned char value)
{
    uint32_t i;
    for (i = 0; i < SLOT_SIZE; i++)
        if (bytes[i] != value)
            return false;
    return true;
}

TEST what_a_slot_keeps_for_the_strategy_lives_as_long_as_the_slot(void)
{
    plb_backend backends[3];
    scene s;
    uint32_t i;
    backends[0] = nth(1, 1, 0);
    backends[1] = rig_backend("[2001:db8::1]:80", 1); /* slots of other sizes */
    backends[2] = rig_backend("unix:/a", 1);
    backends[1].name = "some.example";
    begin(&s, told_strategy());
    ASSERT_EQ(PLB_OK, create(&s, backends, 3));
    for (i = 0; i < 3; i++) {
        unsigned char *data = data_of(0, i);
        ASSERT_EQ(0, (uintptr_t)data % 8);
        ASSERT(is_all(data, 0));
        memset(data, (int)(i + 1), SLOT_SIZE);
    }
    backends[0].weight = 5;
    update(&s, backends, 3);
    for (i = 0; i < 3; i++)
        ASSERT(is_all(data_of(0, i), (unsigned char)(i + 1)));
    backends[0].priority = 1; /* in a tier of its own, which is built last */
    update(&s, backends, 3);
    ASSERT(is_all(data_of(0, 0), 1) && is_all(data_of(1, 0), 2) && is_all(data_of(1, 1), 3));
    update(&s, backends + 1, 2);
    update(&s, backends, 3); /* gone, and another one */
    ASSERT(is_all(data_of(0, 0), 0) && is_all(data_of(1, 0), 2) && is_all(data_of(1, 1), 3));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST a_strategy_that_keeps_nothing_gets_nothing(void)
{
    plb_strategy_ops ops = told_ops;
    plb_strategy strategy = told_strategy();
    plb_backend backend = nth(1, 1, 0);
    scene s;
    ops.slot_size = 0;
    strategy.ops = &ops;
    begin(&s, strategy);
    ASSERT_EQ(PLB_OK, create(&s, &backend, 1));
    ASSERT_EQ(NULL, data_of(0, 0));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* ==== DRAWING ===================================================================================================== */

/* The views of told tables are there to draw from, too. */
static plb_reader drawer(uint64_t seed)
{
    plb_reader reader;
    memset(&reader, 0, sizeof reader);
    reader.random = seed;
    return reader;
}

/* Pearson's test, in whole numbers: 1000 times the sum of (got - expected)^2 / expected. */
static uint64_t chi_square_1000(const plb_view *view, uint64_t draws, const uint32_t *got)
{
    uint64_t sum = 0, all = plb_view_ready_weight(view);
    uint32_t i;
    for (i = 0; i < plb_view_count(view); i++)
        if (plb_view_ready(view, i)) {
            int64_t expected = (int64_t)(draws * plb_view_weight(view, i) / all), off = (int64_t)got[i] - expected;
            sum += (uint64_t)(off * off * 1000 / expected);
        }
    return sum;
}

typedef enum weights { WEIGHTS_EVEN, WEIGHTS_MIXED, WEIGHTS_ONE_HEAVY } weights;

TEST a_draw_is_as_likely_as_the_weights_say(weights how)
{
    /* The 99.9th percentiles of chi square for 19 degrees of freedom: 43.82. */
    enum { ALL = 200, UP = 20, DRAWS = 200000 };
    static uint32_t got[HOSTS];
    plb_backend backends[ALL];
    plb_reader reader = drawer(5);
    const plb_view *view;
    uint32_t i, index;
    scene s;
    memset(got, 0, sizeof got);
    for (i = 0; i < ALL; i++) {
        uint32_t weight = how == WEIGHTS_EVEN ? 3 : how == WEIGHTS_MIXED ? 1 + i / 10 : i == 40 ? 1000 : 100;
        backends[i] = nth(i, weight, 0);
    }
    begin(&s, told_strategy());
    for (i = 0; i < ALL; i++)
        s.down[i] = i % 10 != 0;
    ASSERT_EQ(PLB_OK, create(&s, backends, ALL));
    check_all(&s);
    view = told_of.first->view;
    ASSERT_EQ(UP, plb_view_ready_count(view));
    for (i = 0; i < DRAWS; i++) {
        index = plb_view_draw(view, &reader);
        ASSERT(index < ALL && index % 10 == 0);
        got[index]++;
    }
    ASSERT_LT(chi_square_1000(view, DRAWS, got), 43820);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* One that weighs so much more than the rest that nearly every draw of another is taken back. */
TEST the_heaviest_is_drawn_as_often_as_it_should_be(void)
{
    enum { ALL = 100, DRAWS = 10000 };
    plb_backend backends[ALL];
    plb_reader reader = drawer(6);
    uint32_t i, heavy = 0;
    scene s;
    for (i = 0; i < ALL; i++)
        backends[i] = nth(i, i == 70 ? 99 * 50 : 50, 0);
    begin(&s, told_strategy());
    ASSERT_EQ(PLB_OK, create(&s, backends, ALL));
    for (i = 0; i < DRAWS; i++)
        heavy += plb_view_draw(told_of.first->view, &reader) == 70;
    ASSERT(heavy > DRAWS * 47 / 100 && heavy < DRAWS * 53 / 100);
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

TEST only_what_is_ready_is_drawn(void)
{
    enum { ALL = 150 };
    plb_backend backends[ALL];
    plb_reader reader = drawer(7);
    uint32_t i, j, index;
    scene s;
    random_state = 3;
    for (i = 0; i < ALL; i++)
        backends[i] = nth(i, i % 5, 0); /* some weigh nothing */
    begin(&s, told_strategy());
    ASSERT_EQ(PLB_OK, create(&s, backends, ALL));
    for (i = 0; i < 400; i++) {
        const plb_view *view = told_of.first->view;
        enable(&s, random_below(ALL), random_below(100) < (i / 100 % 2 != 0 ? 95u : 5u));
        for (j = 0; j < 5; j++) {
            index = plb_view_draw(view, &reader);
            ASSERT(index != PLB_NONE && plb_view_ready(view, index));
        }
        index = random_below(ALL);
        j = plb_view_ready_after(view, index);
        ASSERT(plb_view_ready(view, j));
        for (; index != j; index = (index + 1) % ALL)
            ASSERT_FALSE(plb_view_ready(view, index));
    }
    for (i = 0; i < ALL; i++)
        enable(&s, i, false);
    ASSERT_EQ(PLB_NONE, plb_view_draw(told_of.first->view, &reader));
    ASSERT_EQ(PLB_NONE, plb_view_ready_after(told_of.first->view, 149));
    enable(&s, 149, true); /* the only one */
    ASSERT_EQ(149, plb_view_draw(told_of.first->view, &reader));
    ASSERT_EQ(149, plb_view_ready_after(told_of.first->view, 0));
    ASSERT_EQ(149, plb_view_ready_after(told_of.first->view, 149));
    ASSERT_EQ(0, rig_end(&s.r));
    PASS();
}

/* ==== MEMORY ====================================================================================================== */

enum { EXTS = 5, N_MAX = 400 };

/* An update from one tier to three, which brings a backend twice and moves another. */
static size_t bring(plb_backend *out, int *releases)
{
    out[0] = rig_with_ext(nth(1, 2, 4), &releases[0]);
    out[1] = rig_with_ext(nth(3, 1, 4), &releases[1]);
    out[2] = rig_with_ext(nth(4, 5, PLB_BACKUP), &releases[2]);
    out[3] = rig_with_ext(nth(3, 2, 9), &releases[1]); /* the same again, in another tier */
    out[4] = rig_with_ext(nth(1, 2, 4), &releases[4]); /* one that is there already: not needed */
    return 5;
}

TEST an_update_to_several_tiers_survives_each_failed_allocation(strategy_fn strategy)
{
    uint64_t n;
    uint32_t failures = 0;
    for (n = 1; n < N_MAX; n++) {
        plb_backend first[2], second[5];
        int releases[EXTS + 1] = {0}, i;
        size_t count;
        bool failed;
        scene s;
        begin(&s, strategy());
        first[0] = rig_with_ext(nth(1, 1, 0), &releases[0]);
        first[1] = rig_with_ext(nth(2, 1, 0), &releases[EXTS]);
        ASSERT_EQ(PLB_OK, create(&s, first, 2));
        count = bring(second, releases);
        s.r.memory.fail_at = s.r.memory.calls + n;
        update(&s, second, count);
        failed = s.r.memory.calls >= s.r.memory.fail_at;
        s.r.memory.fail_at = 0;
        if (s.r.update.status == PLB_ERR_MEMORY) { /* the old set serves on, and what was refused is released, once */
            failures++;
            ASSERT_STR_EQ("10.0.0.1:80 10.0.0.2:80", rig_set(&s.r));
            ASSERT(picks_are(&s, 1, 2));
        } else if (s.r.changes == 2) {
            ASSERT_STR_EQ("10.0.0.1:80*2 10.0.0.3:80 10.0.0.3:80*2 10.0.0.4:80*5", rig_set(&s.r));
            ASSERT_EQ(1, pick(&s, 1) % 2); /* 1 or 3 */
        }
        ASSERT(releases[0] == 0 && releases[1] <= 1 && releases[2] <= 1 && releases[4] <= 1);
        if (s.r.update.status == PLB_OK && s.r.changes == 2)
            ASSERT(releases[1] == 0 && releases[2] == 0 && releases[4] == 1 && releases[EXTS] == 1);
        ASSERT_EQ(0, rig_end(&s.r));
        ASSERT_EQ(1, releases[0]);
        ASSERT_EQ(1, releases[EXTS]);
        if (s.r.update.status == PLB_OK && s.r.changes == 2)
            for (i = 0; i < EXTS; i++)
                ASSERT_EQ(i != 3, releases[i]);
        if (!failed)
            break;
    }
    ASSERT_GT(failures, 5);
    ASSERT(n < N_MAX);
    PASS();
}

/* Of a list in tiers, whose changes wait when the end comes and there is no memory to carry them out. */
typedef enum ending { END_ADDED_TWICE, END_REPLACED_TWICE, END_REMOVED_AND_BACK } ending;

static void queue_changes(scene *s, ending how, int *releases)
{
    plb_backend known = rig_with_ext(nth(1, 1, 0), &releases[0]), other = rig_with_ext(nth(2, 1, 0), &releases[1]);
    plb_backend both[2];
    both[0] = known;
    both[1] = other;
    switch (how) {
    case END_ADDED_TWICE: /* the same pointer again is not a second one */
        plb_add(s->r.lb, &other);
        plb_add(s->r.lb, &known);
        plb_add(s->r.lb, &other);
        break;
    case END_REPLACED_TWICE:
        plb_replace(s->r.lb, both, 2);
        plb_replace(s->r.lb, both + 1, 1);
        plb_replace(s->r.lb, both, 2);
        break;
    default: /* END_REMOVED_AND_BACK: it is still in the set */
        plb_remove(s->r.lb, &known);
        plb_add(s->r.lb, &known);
        plb_add(s->r.lb, &other);
    }
}

TEST each_ext_of_changes_that_wait_is_released_once(ending how, bool polled)
{
    uint64_t n;
    for (n = 0; n < N_MAX; n++) {
        int releases[2] = {0, 0};
        plb_backend known;
        plb_static_desc list;
        bool failed;
        scene s;
        memset(&list, 0, sizeof list);
        known = rig_with_ext(nth(1, 1, 0), &releases[0]);
        list.backends = &known;
        list.backend_count = 1;
        begin(&s, plb_round_robin());
        s.r.desc.discovery = plb_static(&list);
        ASSERT_EQ(PLB_OK, rig_create(&s.r));
        rig_run(&s.r, 1);
        queue_changes(&s, how, releases);
        s.r.memory.fail_at = n > 0 ? s.r.memory.calls + n : 0;
        s.r.memory.fail_count = how == END_ADDED_TWICE ? 1 : UINT64_MAX;
        if (polled)
            plb_poll(s.r.lb);
        rig_destroy(&s.r);
        failed = n == 0 || s.r.memory.calls >= s.r.memory.fail_at;
        ASSERT_EQ(0, rig_end(&s.r));
        ASSERT_EQ_FMT(1, releases[0], "%d");
        ASSERT_EQ_FMT(1, releases[1], "%d");
        if (!failed)
            break;
    }
    ASSERT(n > 1 && n < N_MAX);
    PASS();
}

/* What is refused only when it is the list's turn, as a sum of weights is, may be in the set still. */
TEST a_change_that_is_refused_does_not_take_the_ext_of_the_set(void)
{
    enum { MANY = 65537 }; /* of the greatest weight: 2^32 - 1 together */
    static plb_backend backends[MANY];
    plb_backend known;
    plb_static_desc list;
    int releases = 0;
    uint32_t i;
    scene s;
    memset(&list, 0, sizeof list);
    for (i = 0; i < MANY; i++) {
        backends[i] = nth(i, PLB_WEIGHT_MAX, 0);
        backends[i].addr.u.v4[1] = (uint8_t)(1 + i / 65536);
        backends[i].addr.u.v4[2] = (uint8_t)(i / 256);
    }
    known = rig_with_ext(nth(1, 1, 0), &releases);
    list.backends = &known;
    list.backend_count = 1;
    begin(&s, plb_round_robin());
    s.r.desc.discovery = plb_static(&list);
    ASSERT_EQ(PLB_OK, rig_create(&s.r));
    ASSERT_EQ(PLB_OK, plb_replace(s.r.lb, backends, MANY)); /* which has it no more */
    ASSERT_EQ(PLB_OK, plb_add(s.r.lb, &known));
    plb_poll(s.r.lb);
    ASSERT(rig_logged(&s.r, "2^32"));
    ASSERT_EQ(0, rig_end(&s.r));
    ASSERT_EQ(1, releases);
    PASS();
}

/* ================================================================================================================== */

#define RUN_FOR_EACH_STRATEGY(test)                                                                                    \
    do {                                                                                                               \
        size_t each;                                                                                                   \
        for (each = 0; each < COUNT(strategies); each++)                                                               \
            RUN_TESTp(test, strategies[each]);                                                                         \
    } while (0)

#define RUN_FOR_EACH_STRATEGY_AND(test, value)                                                                         \
    do {                                                                                                               \
        size_t each;                                                                                                   \
        for (each = 0; each < COUNT(strategies); each++)                                                               \
            RUN_TESTp(test, strategies[each], value);                                                                  \
    } while (0)

SUITE(tiers)
{
    RUN_FOR_EACH_STRATEGY(picks_go_to_the_first_tier_with_a_ready_backend);
    RUN_FOR_EACH_STRATEGY(nothing_is_ready_when_no_tier_is);
    RUN_TEST(priorities_and_weights_work_as_in_srv_records);
    RUN_TEST(one_address_in_two_tiers_is_one_backend);
    RUN_TEST(another_priority_keeps_slot_and_ext_and_health);
    RUN_FOR_EACH_STRATEGY(a_tier_that_drains_leaves_it_to_the_next);
    RUN_FOR_EACH_STRATEGY_AND(full_backends_let_backups_serve, 0);
    RUN_FOR_EACH_STRATEGY_AND(full_backends_let_backups_serve, 256);
    RUN_FOR_EACH_STRATEGY_AND(a_retry_goes_on_to_the_next_tier, 0);
    RUN_FOR_EACH_STRATEGY_AND(a_retry_goes_on_to_the_next_tier, 256);
    RUN_FOR_EACH_STRATEGY_AND(accept_is_shown_every_tier_and_the_active_one_first, 0);
    RUN_FOR_EACH_STRATEGY_AND(accept_is_shown_every_tier_and_the_active_one_first, 1024);
    RUN_FOR_EACH_STRATEGY(a_walk_goes_through_the_active_tier);
    RUN_TEST(each_and_find_tell_the_priority_in_the_order_of_tiers);
    RUN_TEST(to_add_a_backend_again_replaces_its_priority);
    RUN_TEST(a_priority_past_the_last_is_refused);
    RUN_FOR_EACH_STRATEGY(each_backend_may_have_a_tier_of_its_own);
    RUN_FOR_EACH_STRATEGY(a_backup_is_found_before_its_tier_is_the_active_one);
    RUN_FOR_EACH_STRATEGY_AND(every_pick_is_one_that_a_naive_model_allows, 0);
    RUN_FOR_EACH_STRATEGY_AND(every_pick_is_one_that_a_naive_model_allows, 50);
    RUN_TESTp(every_pick_is_one_that_a_naive_model_allows, plb_random_choice, 1);
    RUN_TESTp(every_pick_is_one_that_a_naive_model_allows, plb_fnv, 100);
}

SUITE(panic)
{
    RUN_FOR_EACH_STRATEGY(below_the_threshold_health_is_ignored_and_above_it_counts_again);
    RUN_TEST(panic_does_not_reach_what_is_switched_off_or_drains_or_is_full);
    RUN_TEST(the_share_is_of_those_that_could_serve);
    RUN_TEST(a_threshold_of_0_is_off_and_one_of_100_wants_all_of_them);
    RUN_TEST(a_threshold_above_100_is_refused);
    RUN_TEST(a_tier_without_a_healthy_backend_yields_to_one_that_has_some);
    RUN_TEST(panic_begins_and_ends_with_a_set_too);
}

SUITE(slow_start)
{
    RUN_TESTp(the_share_of_one_that_became_healthy_grows_with_time, plb_round_robin);
    RUN_TESTp(the_share_of_one_that_became_healthy_grows_with_time, plb_random_choice);
    RUN_TESTp(keys_come_to_one_that_starts_slowly_and_none_goes, plb_fnv);
    RUN_TESTp(keys_come_to_one_that_starts_slowly_and_none_goes, ketama);
    RUN_TESTp(a_slow_start_moves_no_key_of_the_others, plb_fnv);
    RUN_TESTp(a_slow_start_moves_no_key_of_the_others, ketama);
    RUN_FOR_EACH_STRATEGY(the_only_one_that_is_ready_gets_everything_however_slowly_it_starts);
    RUN_FOR_EACH_STRATEGY_AND(a_retry_takes_one_that_starts_slowly_before_it_goes_on, 0);
    RUN_FOR_EACH_STRATEGY_AND(a_retry_takes_one_that_starts_slowly_before_it_goes_on, 256);
    RUN_TEST(one_of_many_that_starts_slowly_is_found_without_a_walk);
    RUN_TEST(a_slow_start_counts_in_a_tier_that_is_reached_by_a_retry);
    RUN_TEST(one_that_fails_again_starts_again);
    RUN_TEST(a_slow_start_ends_exactly);
    RUN_TEST(a_slow_start_goes_on_in_the_next_set);
    RUN_TESTp(a_slow_start_ends_for_a_backend_of_weight_0_too, false);
    RUN_TESTp(a_slow_start_ends_for_a_backend_of_weight_0_too, true);
    RUN_TEST(a_tier_that_panics_does_not_spare_the_one_that_recovers);
    RUN_TEST(slow_starts_need_a_clock);
    RUN_TEST(without_a_slow_start_the_whole_share_is_there_at_once);
}

SUITE(strategy)
{
    RUN_TESTp(a_strategy_hears_of_each_change_of_readiness_once, 0);
    RUN_TESTp(a_strategy_hears_of_each_change_of_readiness_once, 50);
    RUN_TESTp(no_change_is_lost_to_a_set_that_is_being_built, 0);
    RUN_TESTp(no_change_is_lost_to_a_set_that_is_being_built, 50);
    RUN_TEST(build_sees_how_it_is);
    RUN_TEST(tick_comes_at_its_times_for_each_tier);
    RUN_TEST(without_a_clock_there_is_no_tick);
    RUN_TEST(what_a_slot_keeps_for_the_strategy_lives_as_long_as_the_slot);
    RUN_TEST(a_strategy_that_keeps_nothing_gets_nothing);
    RUN_TESTp(a_draw_is_as_likely_as_the_weights_say, WEIGHTS_EVEN);
    RUN_TESTp(a_draw_is_as_likely_as_the_weights_say, WEIGHTS_MIXED);
    RUN_TESTp(a_draw_is_as_likely_as_the_weights_say, WEIGHTS_ONE_HEAVY);
    RUN_TEST(the_heaviest_is_drawn_as_often_as_it_should_be);
    RUN_TEST(only_what_is_ready_is_drawn);
}

SUITE(memory)
{
    RUN_FOR_EACH_STRATEGY(an_update_to_several_tiers_survives_each_failed_allocation);
    RUN_TESTp(each_ext_of_changes_that_wait_is_released_once, END_ADDED_TWICE, false);
    RUN_TESTp(each_ext_of_changes_that_wait_is_released_once, END_ADDED_TWICE, true);
    RUN_TESTp(each_ext_of_changes_that_wait_is_released_once, END_REPLACED_TWICE, false);
    RUN_TESTp(each_ext_of_changes_that_wait_is_released_once, END_REPLACED_TWICE, true);
    RUN_TESTp(each_ext_of_changes_that_wait_is_released_once, END_REMOVED_AND_BACK, false);
    RUN_TESTp(each_ext_of_changes_that_wait_is_released_once, END_REMOVED_AND_BACK, true);
    RUN_TEST(a_change_that_is_refused_does_not_take_the_ext_of_the_set);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(tiers);
    RUN_SUITE(panic);
    RUN_SUITE(slow_start);
    RUN_SUITE(strategy);
    RUN_SUITE(memory);
    GREATEST_MAIN_END();
}
