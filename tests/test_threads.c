/* Everything that any thread may call, called by several at once while one polls and the set keeps changing. Made to be
   run under the thread sanitizer, also with fewer reader cells than threads (-DPLB_READERS=1). */
#define _POSIX_C_SOURCE 200809L
#include "../pingora_lb.h"
#include <greatest.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

enum {
    WORKERS = 4,
    RUN_MS = 450,
    MEMBERS = 6,  /* of each generation */
    GUESTS = 4,   /* added and removed by the workers */
    HELD_MAX = 8, /* picks that a worker holds at a time */
    QUEUE = 256   /* probes that wait for their result */
};

#define LOAD(p)        __atomic_load_n((p), __ATOMIC_SEQ_CST)
#define STORE(p, v)    __atomic_store_n((p), (v), __ATOMIC_SEQ_CST)
#define ADD(p, amount) __atomic_fetch_add((p), (amount), __ATOMIC_SEQ_CST)

/* ==== WHAT IS IN A SET ============================================================================================

   One backend is in every set, and always ready: 10.9.9.9:9. The members of generation g are 10.0.0.k with port g, so
   that a pick tells which set it came from. Guests are 10.1.0.k:80. */

/* An ext is a block of memory that its release frees: to use it too late, or to release it twice, is seen. */
typedef struct parcel {
    uint32_t generation;
} parcel;

static uint32_t parcels_made, parcels_released;

static parcel *parcel_new(uint32_t generation)
{
    parcel *p = (parcel *)malloc(sizeof *p);
    if (p == NULL)
        abort();
    p->generation = generation;
    ADD(&parcels_made, 1);
    return p;
}

static void parcel_release(void *ext)
{
    ADD(&parcels_released, 1);
    free(ext);
}

static plb_backend backend_at(uint8_t net, uint8_t host, uint16_t port)
{
    plb_backend b;
    memset(&b, 0, sizeof b);
    b.addr.family = PLB_FAMILY_IPV4;
    b.addr.port = port;
    b.addr.u.v4[0] = 10;
    b.addr.u.v4[1] = net;
    b.addr.u.v4[3] = host;
    b.weight = 1;
    return b;
}

static plb_backend constant_backend(void)
{
    return backend_at(9, 9, 9);
}

static plb_backend member(uint32_t generation, uint8_t k)
{
    plb_backend b = backend_at(0, k, (uint16_t)generation);
    b.weight = 10;
    b.max_conns = k % 3 == 0 ? 2 : 0;
    b.name = "member.example";
    return b;
}

/* ==== THE SCENE =================================================================================================== */

typedef struct probe_wait {
    plb_token token;
    bool constant; /* of the backend that stays healthy */
} probe_wait;

typedef struct scene {
    plb_balancer *lb;
    uint32_t stop;
    uint32_t oldest; /* generation that a set which is current from now on can have, and */
    uint32_t newest;
    uint32_t stale, lost, wrong_ext; /* broken rules; all stay 0 */
    uint32_t picks;
    uint32_t began, ended; /* as the strategy was told */

    pthread_mutex_t lock;
    probe_wait queue[QUEUE];
    uint32_t queued;
} scene;

static scene *stage; /* where the check and the strategy, which have no user pointer, find it */

/* A probe's result comes from whichever worker takes it out of the queue. */
static plb_status check_start(void *state, void *probe, const plb_backend *target, plb_token token)
{
    plb_status status = PLB_ERR_LIMIT;
    (void)state;
    (void)probe;
    pthread_mutex_lock(&stage->lock);
    if (stage->queued < QUEUE) {
        stage->queue[stage->queued].token = token;
        stage->queue[stage->queued++].constant = target->addr.u.v4[1] == 9;
        status = PLB_OK;
    }
    pthread_mutex_unlock(&stage->lock);
    return status;
}

static void check_cancel(void *state, void *probe, plb_token token)
{
    uint32_t i;
    (void)state;
    (void)probe;
    pthread_mutex_lock(&stage->lock);
    for (i = 0; i < stage->queued; i++)
        if (stage->queue[i].token.op == token.op && stage->queue[i].token.generation == token.generation)
            stage->queue[i--] = stage->queue[--stage->queued];
    pthread_mutex_unlock(&stage->lock);
}

static const plb_check_ops check_ops = {"queue", 0, 0, NULL, NULL, check_start, check_cancel};

static bool take_probe(scene *s, probe_wait *out)
{
    bool taken = false;
    pthread_mutex_lock(&s->lock);
    if (s->queued > 0) {
        *out = s->queue[--s->queued];
        taken = true;
    }
    pthread_mutex_unlock(&s->lock);
    return taken;
}

static void count_began(void *state, uint32_t slot, void *data)
{
    (void)state;
    (void)slot;
    (void)data;
    ADD(&stage->began, 1);
}

static void count_ended(void *state, uint32_t slot, void *data, plb_outcome outcome, uint64_t latency_us)
{
    (void)state;
    (void)slot;
    (void)data;
    (void)outcome;
    (void)latency_us;
    ADD(&stage->ended, 1);
}

/* ==== WORKERS ===================================================================================================== */

typedef struct worker {
    scene *s;
    pthread_t thread;
    uint64_t random;
    uint32_t oldest; /* as it was before the call that is judged */
    plb_pick held[HELD_MAX];
} worker;

static uint32_t random_below(worker *w, uint32_t limit)
{
    w->random ^= w->random << 13;
    w->random ^= w->random >> 7;
    w->random ^= w->random << 17;
    return (uint32_t)(w->random % limit);
}

/* Was it in a set that was current during the call? */
static void judge(worker *w, const plb_addr *addr, const void *ext)
{
    scene *s = w->s;
    uint32_t newest = LOAD(&s->newest);
    if (addr->u.v4[1] != 0)
        return;
    if (addr->port < w->oldest || addr->port > newest)
        ADD(&s->stale, 1);
    if (ext != NULL && ((const parcel *)ext)->generation != addr->port)
        ADD(&s->wrong_ext, 1);
}

static void do_select(worker *w)
{
    plb_addr addr;
    uint64_t key = random_below(w, 1000);
    w->oldest = LOAD(&w->s->oldest);
    if (plb_select(w->s->lb, &key, sizeof key, 0, &addr) == PLB_OK)
        judge(w, &addr, NULL);
    else
        ADD(&w->s->lost, 1); /* one was ready all the time */
}

static bool accept_some(void *user, const plb_backend_info *info)
{
    worker *w = (worker *)user;
    judge(w, &info->backend.addr, info->backend.ext);
    return info->ready && random_below(w, 2) == 0;
}

static void do_begin(worker *w)
{
    plb_request request;
    plb_pick *pick = &w->held[random_below(w, HELD_MAX)];
    uint64_t key = random_below(w, 1000);
    uint32_t exclude = random_below(w, 20);
    bool plain = random_below(w, 2) == 0;
    memset(&request, 0, sizeof request);
    request.key = &key;
    request.key_length = sizeof key;
    if (!plain) {
        request.accept = accept_some;
        request.accept_user = w;
        request.exclude = &exclude;
        request.exclude_count = 1;
    }
    plb_end(pick, (plb_outcome)random_below(w, 5), 1000);
    w->oldest = LOAD(&w->s->oldest);
    if (plb_begin(w->s->lb, &request, pick) == PLB_OK) {
        judge(w, &pick->addr, pick->ext);
        ADD(&w->s->picks, 1);
    }
}

/* Held picks can still be read, whatever became of their sets. */
static void do_look_at_held(worker *w)
{
    const plb_pick *pick = &w->held[random_below(w, HELD_MAX)];
    if (pick->held == NULL || pick->addr.u.v4[1] != 0)
        return;
    if (((const parcel *)pick->ext)->generation != pick->addr.port || strcmp(pick->name, "member.example") != 0)
        ADD(&w->s->wrong_ext, 1);
}

static bool each_one(void *user, const plb_backend_info *info)
{
    judge((worker *)user, &info->backend.addr, info->backend.ext);
    return true;
}

static void do_walk(worker *w)
{
    plb_walk walk;
    uint32_t steps = random_below(w, 20);
    w->oldest = LOAD(&w->s->oldest);
    if (plb_walk_begin(&walk, w->s->lb, "k", 1) != PLB_OK) {
        ADD(&w->s->lost, 1);
        return;
    }
    while (steps-- > 0) {
        plb_backend_info info;
        plb_walk_next(&walk, &info);
        judge(w, &info.backend.addr, info.backend.ext);
    }
    plb_walk_end(&walk);
}

/* More readers at one moment than there are cells. */
static void do_crowd(worker *w)
{
    enum { MANY = 40 };
    plb_walk walks[MANY];
    int i;
    for (i = 0; i < MANY; i++)
        if (plb_walk_begin(&walks[i], w->s->lb, NULL, 0) != PLB_OK)
            ADD(&w->s->lost, 1);
    do_select(w);
    for (i = 0; i < MANY; i++)
        plb_walk_end(&walks[i]);
}

static void do_flip(worker *w)
{
    plb_backend b = member(LOAD(&w->s->newest), (uint8_t)random_below(w, MEMBERS));
    plb_set_enabled(w->s->lb, &b.addr, 0, random_below(w, 3) == 0);
    plb_ready(w->s->lb, &b.addr, 0);
}

static void do_guest(worker *w)
{
    plb_backend b = backend_at(1, (uint8_t)random_below(w, GUESTS), 80);
    if (random_below(w, 2) == 0) {
        plb_remove(w->s->lb, &b);
        return;
    }
    b.ext = parcel_new(80);
    b.ext_release = parcel_release;
    if (plb_add(w->s->lb, &b) != PLB_OK)
        parcel_release(b.ext);
}

static void do_probe_result(worker *w)
{
    probe_wait wait;
    if (!take_probe(w->s, &wait))
        return;
    plb_check_done(wait.token, wait.constant || random_below(w, 2) == 0 ? PLB_OK : PLB_ERR_REFUSED);
    plb_check_done(wait.token, PLB_ERR_TIMEOUT); /* a second one is ignored */
}

static void *work(void *user)
{
    worker *w = (worker *)user;
    while (LOAD(&w->s->stop) == 0) {
        uint32_t what = random_below(w, 200);
        if (what < 80)
            do_select(w);
        else if (what < 130)
            do_begin(w);
        else if (what < 150)
            do_look_at_held(w);
        else if (what < 160) {
            w->oldest = LOAD(&w->s->oldest);
            plb_each(w->s->lb, each_one, w);
        } else if (what < 170)
            do_walk(w);
        else if (what < 185)
            do_flip(w);
        else if (what < 195)
            do_probe_result(w);
        else if (what < 197)
            do_guest(w);
        else if (what < 198)
            plb_update_now(w->s->lb);
        else if (what < 199)
            plb_check_now(w->s->lb);
        else
            do_crowd(w);
    }
    return NULL;
}

/* Lets go of what a worker held when the end came. */
static void *let_go(void *user)
{
    worker *w = (worker *)user;
    int i;
    for (i = 0; i < HELD_MAX; i++)
        plb_end(&w->held[i], PLB_OUTCOME_CANCELLED, 0);
    return NULL;
}

/* ==== THE POLLING THREAD ========================================================================================== */

static bool note_generation(void *user, const plb_backend_info *info)
{
    if (info->backend.addr.u.v4[1] == 0)
        *(uint32_t *)user = info->backend.addr.port;
    return info->backend.addr.u.v4[1] != 0;
}

/* The whole list of one generation; its ext go to the balancer. */
static size_t generation_list(uint32_t generation, plb_backend *out)
{
    uint8_t k;
    out[0] = constant_backend();
    for (k = 0; k < MEMBERS; k++) {
        out[1 + k] = member(generation, k);
        out[1 + k].ext = parcel_new(generation);
        out[1 + k].ext_release = parcel_release;
    }
    return 1 + MEMBERS;
}

static void next_generation(scene *s)
{
    plb_backend list[1 + MEMBERS];
    uint32_t generation = LOAD(&s->newest) + 1;
    size_t count = generation_list(generation, list), i;
    STORE(&s->newest, generation);
    if (plb_replace(s->lb, list, count) == PLB_OK)
        return;
    for (i = 1; i < count; i++)
        parcel_release(list[i].ext);
}

static void poll_for(scene *s, uint32_t ms)
{
    struct timespec start, now;
    uint32_t polls, published = 0;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (polls = 0;; polls++) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        if ((now.tv_sec - start.tv_sec) * 1000 + (now.tv_nsec - start.tv_nsec) / 1000000 >= (long)ms)
            return;
        if (polls % 4 == 0 && LOAD(&s->newest) - published < 3)
            next_generation(s);
        plb_poll(s->lb);
        plb_each(s->lb, note_generation, &published);
        STORE(&s->oldest, published);
    }
}

static plb_balancer *scene_balancer(plb_strategy strategy)
{
    plb_backend list[1 + MEMBERS];
    plb_static_desc discovery;
    plb_balancer_desc desc;
    plb_balancer *lb;
    memset(&discovery, 0, sizeof discovery);
    memset(&desc, 0, sizeof desc);
    discovery.backends = list;
    discovery.backend_count = generation_list(1, list);
    desc.discovery = plb_static(&discovery);
    desc.strategy = strategy;
    desc.check.ops = &check_ops;
    desc.check.consecutive_failure = 2;
    return plb_create(&desc, &lb) == PLB_OK ? lb : NULL;
}

static enum greatest_test_res run_scene(plb_strategy strategy, bool counted)
{
    static worker workers[WORKERS];
    plb_update_info update;
    scene s;
    int i;
    memset(&s, 0, sizeof s);
    memset(workers, 0, sizeof workers);
    parcels_made = parcels_released = 0;
    pthread_mutex_init(&s.lock, NULL);
    s.oldest = s.newest = 1;
    stage = &s;
    s.lb = scene_balancer(strategy);
    ASSERT(s.lb != NULL);
    for (i = 0; i < WORKERS; i++) {
        workers[i].s = &s;
        workers[i].random = (uint64_t)i + 1;
        ASSERT_EQ(0, pthread_create(&workers[i].thread, NULL, work, &workers[i]));
    }
    poll_for(&s, RUN_MS);
    STORE(&s.stop, 1);
    for (i = 0; i < WORKERS; i++)
        pthread_join(workers[i].thread, NULL);
    plb_poll(s.lb); /* nobody reads: whatever had to wait goes on */
    plb_poll(s.lb);
    plb_last_update(s.lb, &update);
    let_go(&workers[0]);
    plb_destroy(s.lb);
    for (i = 1; i < WORKERS; i++) /* the others end together, after the balancer */
        ASSERT_EQ(0, pthread_create(&workers[i].thread, NULL, let_go, &workers[i]));
    for (i = 1; i < WORKERS; i++)
        pthread_join(workers[i].thread, NULL);
    pthread_mutex_destroy(&s.lock);
    ASSERT_EQ_FMT(0u, s.stale, "%u");
    ASSERT_EQ_FMT(0u, s.lost, "%u");
    ASSERT_EQ_FMT(0u, s.wrong_ext, "%u");
    ASSERT_EQ_FMT(parcels_made, parcels_released, "%u");
    ASSERT(s.picks > 0 && update.changes > 2);
    if (counted)
        ASSERT(s.began == s.picks && s.ended <= s.began && s.ended + (WORKERS - 1) * HELD_MAX >= s.began);
    PASS();
}

TEST round_robin_stays_true_among_threads(void)
{
    return run_scene(plb_round_robin(), false);
}

TEST random_choice_stays_true_among_threads(void)
{
    return run_scene(plb_random_choice(), false);
}

TEST fnv_stays_true_among_threads(void)
{
    return run_scene(plb_fnv(), false);
}

TEST ketama_stays_true_among_threads(void)
{
    return run_scene(plb_ketama(NULL), false);
}

/* Without a fast path, and told of each request. */
TEST an_own_strategy_stays_true_among_threads(void)
{
    plb_strategy strategy = plb_round_robin();
    plb_strategy_ops ops = *strategy.ops;
    ops.pick = NULL;
    ops.began = count_began;
    ops.ended = count_ended;
    strategy.ops = &ops;
    return run_scene(strategy, true);
}

SUITE(threads)
{
    RUN_TEST(round_robin_stays_true_among_threads);
    RUN_TEST(random_choice_stays_true_among_threads);
    RUN_TEST(fnv_stays_true_among_threads);
    RUN_TEST(ketama_stays_true_among_threads);
    RUN_TEST(an_own_strategy_stays_true_among_threads);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(threads);
    GREATEST_MAIN_END();
}
