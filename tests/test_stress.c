/* The proof that selecting needs no lock: eight threads pick without pause while one updates the set, one flips health
   and one switches backends on and off. Each single pick is judged: was that backend a member, enabled and healthy at
   some moment of the call? Made for the thread sanitizer, for real barriers and for none, for more readers than cells
   (-DPLB_READERS=2) and for threads that cannot be told apart (-DPLB_NO_THREAD_LOCAL). */
#define _GNU_SOURCE
#include "../pingora_lb.h"
#include <greatest.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#ifdef __SANITIZE_THREAD__
#define SCALE 10
#else
#define SCALE 1
#endif

#if PLB_READERS < 8 || defined(PLB_NO_THREAD_LOCAL)
#define RUN_MS (16 * SCALE)
#else
#define RUN_MS (85 * SCALE)
#endif

enum {
    READERS = 8, /* every other one by a handle */
    LIFE = 3000, /* calls that a reader makes before another thread takes its place */
    HELD = 6,    /* picks that a reader holds at a time */
    SIGNAL_US = 200,
    MEMBERS = 24,
    SETS_MIN = 20, /* a run goes on until it has published so many sets, */
    PICKS_MIN = 1000,
    PATIENCE_MS = 120000,
    STALL_UPDATES = 300,
    SETS_ALIVE = 3, /* the current one, and two that are retired, or one and the next */
    TIERS = 2
};

/* The judges add as little order between threads as they can, for it would hide what the sanitizer is to find: the
   changing threads release and do not acquire, the reading ones acquire and do not release. */
#define READ(p)          __atomic_load_n((p), __ATOMIC_SEQ_CST)
#define WRITE(p, v)      __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define NOTE(p, v)       __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define COUNT(p, amount) __atomic_add_fetch((p), (amount), __ATOMIC_RELAXED)
#define PEEK(p)          __atomic_load_n((p), __ATOMIC_RELAXED)

/* ==== WHAT IS TRUE ================================================================================================

   For each member and each fact one word: since when it is certainly not so, as a number of a clock that counts such
   moments; 0: perhaps it is. Who makes it so says "perhaps" before the call; who unmakes it says "not" after the call
   has returned. So a pick is wrong if afterwards the word names a moment that had come before the call began. No
   reader waits for anybody. The upper half is the member's incarnation: whoever speaks of an earlier one is late, and
   changes nothing. */

enum { A_MEMBER, ENABLED, HEALTHY, NOT_EJECTED, FACTS };

static const char *const fact_names[FACTS] = {"a member", "enabled", "healthy", "not ejected"};

static uint64_t truth[MEMBERS][FACTS];
static uint32_t moments;

static uint32_t incarnation(uint32_t k)
{
    return (uint32_t)(PEEK(&truth[k][A_MEMBER]) >> 32);
}

static bool truth_replace(uint64_t *word, uint64_t seen, uint64_t next)
{
    return __atomic_compare_exchange_n(word, &seen, next, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED);
}

static void perhaps(uint32_t k, int fact, uint32_t of)
{
    uint64_t seen;
    do
        seen = PEEK(&truth[k][fact]);
    while (seen >> 32 == of && !truth_replace(&truth[k][fact], seen, (uint64_t)of << 32));
}

static void certainly_not(uint32_t k, int fact, uint32_t of)
{
    uint32_t moment = __atomic_add_fetch(&moments, 1, __ATOMIC_RELEASE);
    truth_replace(&truth[k][fact], (uint64_t)of << 32, (uint64_t)of << 32 | moment);
}

/* A member is about to come, or to come back: of its new incarnation, everything may be so. The word from which others
   read the incarnation is the last: who speaks of the new one finds its words there. */
static void born(uint32_t k)
{
    uint64_t next = (uint64_t)(incarnation(k) + 1) << 32;
    int fact;
    for (fact = FACTS; fact-- > A_MEMBER;)
        WRITE(&truth[k][fact], next);
}

/* ==== WHAT IS IN A SET ============================================================================================

   One backend is in every set, and always ready; it changes tiers. One of weight 0 names the generation in its port.
   The rest are members: every fourth one has an IPv6 address, which is copied out of the slot, some have max_conns,
   some have no weight. */

enum { NET_MEMBER, NET_CONSTANT, NET_TAG };

/* An ext is memory that its release poisons and frees: to use it too late, or to release it twice, is seen. */
typedef struct parcel {
    uint32_t member, incarnation;
} parcel;

#define POISON 0xdeadu

static uint32_t parcels_made, parcels_released;

static void parcel_release(void *ext)
{
    ((parcel *)ext)->member = POISON;
    COUNT(&parcels_released, 1);
    free(ext);
}

static plb_backend backend_at(uint8_t net, uint8_t host, uint16_t port)
{
    plb_backend b;
    memset(&b, 0, sizeof b);
    b.addr.family = PLB_FAMILY_IPV4;
    if (net == NET_MEMBER && host % 4 == 3)
        b.addr.family = PLB_FAMILY_IPV6;
    b.addr.port = port;
    b.addr.u.v4[0] = 10;
    b.addr.u.v4[1] = net;
    b.addr.u.v4[3] = host;
    b.weight = 1;
    return b;
}

static plb_backend constant_backend(uint32_t generation)
{
    plb_backend b = backend_at(NET_CONSTANT, 9, 9);
    b.priority = generation / 4 % TIERS;
    return b;
}

static plb_backend tag_backend(uint32_t generation)
{
    plb_backend b = backend_at(NET_TAG, (uint8_t)(generation >> 12), (uint16_t)(generation % 4096 + 1));
    b.weight = 0;
    return b;
}

static uint32_t tag_generation(const plb_addr *addr)
{
    return (uint32_t)addr->u.v4[3] << 12 | (addr->port - 1u);
}

static bool has_no_weight(uint32_t k)
{
    return k % 8 == 5;
}

static plb_backend member_address(uint32_t k)
{
    return backend_at(NET_MEMBER, (uint8_t)k, 80);
}

static plb_backend member(uint32_t k, uint32_t generation)
{
    plb_backend b = member_address(k);
    parcel *p = (parcel *)malloc(sizeof *p);
    if (p == NULL)
        abort();
    p->member = k;
    p->incarnation = incarnation(k);
    COUNT(&parcels_made, 1);
    b.weight = has_no_weight(k) ? 0 : 1 + (k + generation / 4) % 2;
    b.max_conns = k % 3 == 1 ? 1 + k % 2 : 0;
    b.priority = (k + generation / 8) % 4 == 0;
    b.name = "member.example";
    b.ext = p;
    b.ext_release = parcel_release;
    return b;
}

/* ==== THE SCENE =================================================================================================== */

typedef struct probe_wait {
    plb_token token;
    uint32_t member, incarnation;
    bool constant;
} probe_wait;

typedef struct scene {
    plb_balancer *lb;
    uint32_t stop;
    uint32_t constant_slot;
    /* broken rules; all stay 0 */
    uint32_t wrong[FACTS], wrong_ext, no_weight, none_ready, excluded_taken;
    uint32_t last_words; /* backends that are not shown as they are, when all is quiet */
    uint32_t picks, sets, flips, switches, stalls;
    uint32_t tables, tables_peak; /* of the strategy: one for each tier of each set */
    uint32_t blocks, blocks_peak; /* of the balancer's memory */

    pthread_mutex_t lock;
    probe_wait queue[256];
    uint32_t queued;

    /* the polling thread's */
    uint64_t random;
    uint32_t generation, applied;
    bool wanted[MEMBERS];  /* as of the change that was handed over last */
    bool pending[MEMBERS]; /* by any change that may still become a set */
    bool current[MEMBERS];
    bool lively;     /* whatever had to come came, in time */
    bool outlier;    /* is outlier detection on? */
    uint64_t now_ms; /* one poll, one millisecond */
    uint32_t ejections, returns;
} scene;

static scene *stage; /* where callbacks that have no user pointer find it */

static uint32_t below(uint64_t *random, uint32_t limit)
{
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    return (uint32_t)((*random >> 11) % limit);
}

static void count_up(uint32_t *count, uint32_t *peak)
{
    uint32_t now = COUNT(count, 1), most = PEEK(peak);
    while (now > most && !__atomic_compare_exchange_n(peak, &most, now, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
}

static void *counted_alloc(void *user, size_t size)
{
    (void)user;
    count_up(&stage->blocks, &stage->blocks_peak);
    return malloc(size);
}

static void counted_dealloc(void *user, void *memory, size_t size)
{
    (void)user;
    memset(memory, 0xdd, size);
    COUNT(&stage->blocks, UINT32_MAX);
    free(memory);
}

/* Any strategy, with its tables counted: as many live as the sets have tiers. */
static plb_strategy_ops counted_ops;
static const plb_strategy_ops *real_ops;

static plb_status counted_build(void *state, const plb_view *view, const plb_view *old_view, const void *old_table,
                                void **table)
{
    plb_status status = real_ops->build(state, view, old_view, old_table, table);
    if (status == PLB_OK)
        count_up(&stage->tables, &stage->tables_peak);
    return status;
}

static void counted_discard(void *state, void *table)
{
    COUNT(&stage->tables, UINT32_MAX);
    real_ops->discard(state, table);
}

static plb_strategy counted(plb_strategy strategy)
{
    real_ops = strategy.ops;
    counted_ops = *real_ops;
    if (real_ops->build != NULL) {
        counted_ops.build = counted_build;
        counted_ops.discard = counted_discard;
    }
    strategy.ops = &counted_ops;
    return strategy;
}

#if defined(__linux__) && defined(SYS_membarrier)
static void issue_barrier(void *self)
{
    (void)self;
    if (syscall(SYS_membarrier, 1 << 3, 0, 0) != 0)
        abort();
}

static bool has_barrier(void)
{
    return syscall(SYS_membarrier, 1 << 4, 0, 0) == 0;
}
#else
static void issue_barrier(void *self)
{
    (void)self;
}

static bool has_barrier(void)
{
    return false;
}
#endif

static const plb_barrier real_barrier = {NULL, issue_barrier};

/* ==== THE READING THREADS ========================================================================================= */

typedef struct reader {
    scene *s;
    pthread_t thread;
    uint64_t random;
    plb_handle *handle;
    bool with_handle, running;
    uint32_t began; /* the moment that had come when the call began */
    plb_pick held[HELD];
} reader;

static void judge_fact(const reader *r, uint32_t k, int fact)
{
    uint32_t since = (uint32_t)READ(&truth[k][fact]);
    if (since != 0 && since <= r->began)
        COUNT(&r->s->wrong[fact], 1);
}

/* Was it a member, and if it was said to be ready, was it that, during the call? */
static void judge(const reader *r, const plb_addr *addr, bool ready)
{
    uint32_t k = addr->u.v4[3];
    if (addr->u.v4[1] == NET_TAG && ready)
        COUNT(&r->s->no_weight, 1);
    if (addr->u.v4[1] != NET_MEMBER)
        return;
    judge_fact(r, k, A_MEMBER);
    if (!ready)
        return;
    judge_fact(r, k, ENABLED);
    judge_fact(r, k, HEALTHY);
    judge_fact(r, k, NOT_EJECTED);
    if (has_no_weight(k))
        COUNT(&r->s->no_weight, 1);
}

static void judge_ext(const reader *r, const plb_addr *addr, const void *ext)
{
    if (addr->u.v4[1] == NET_MEMBER && ((const parcel *)ext)->member != addr->u.v4[3])
        COUNT(&r->s->wrong_ext, 1);
}

static void judge_info(const reader *r, const plb_backend_info *info)
{
    judge(r, &info->backend.addr, info->ready);
    judge_ext(r, &info->backend.addr, info->backend.ext);
}

static void begin_call(reader *r)
{
    r->began = READ(&moments);
}

/* `always`: a backend that is ready all the time would have done. */
static void end_select(const reader *r, plb_status status, const plb_addr *addr, bool always)
{
    if (status == PLB_OK) {
        judge(r, addr, true);
        COUNT(&r->s->picks, 1);
    } else if (always) {
        COUNT(&r->s->none_ready, 1);
    }
}

static void do_select(reader *r)
{
    uint64_t key = below(&r->random, 1000);
    uint32_t limit = below(&r->random, 4) == 0 ? 3 : 0;
    plb_status status;
    plb_addr addr;
    begin_call(r);
    status = r->with_handle ? plb_handle_select(r->handle, &key, sizeof key, limit, &addr)
                            : plb_select(r->s->lb, &key, sizeof key, limit, &addr);
    end_select(r, status, &addr, limit == 0);
}

static bool accept_some(void *user, const plb_backend_info *info)
{
    reader *r = (reader *)user;
    judge_info(r, info);
    if (below(&r->random, 16) == 0) { /* a pick within a pick */
        plb_addr addr;
        uint32_t began = r->began;
        do_select(r);
        r->began = began;
        end_select(r, plb_select(r->s->lb, "k", 1, 0, &addr), &addr, true);
    }
    return info->ready && below(&r->random, 2) == 0;
}

/* A request that a backend that is ready all the time can serve, unless accept is asked. */
static void make_request(reader *r, plb_request *request, const uint64_t *key, uint32_t *exclude)
{
    memset(request, 0, sizeof *request);
    request->key = key;
    request->key_length = sizeof *key;
    *exclude = below(&r->random, MEMBERS);
    if (*exclude != r->s->constant_slot && below(&r->random, 2) == 0) {
        request->exclude = exclude;
        request->exclude_count = 1;
    }
    if (below(&r->random, 4) == 0) {
        request->accept = accept_some;
        request->accept_user = r;
    }
}

static void do_select_with(reader *r)
{
    uint64_t key = below(&r->random, 1000);
    uint32_t exclude;
    plb_request request;
    plb_status status;
    plb_addr addr;
    make_request(r, &request, &key, &exclude);
    begin_call(r);
    status = r->with_handle ? plb_handle_select_with(r->handle, &request, &addr)
                            : plb_select_with(r->s->lb, &request, &addr);
    end_select(r, status, &addr, request.accept == NULL);
}

/* Odd members fail most of the time, even ones now and then, the others never. */
static plb_outcome outcome_of(reader *r, const plb_pick *pick)
{
    uint32_t k = pick->addr.u.v4[3], dice = below(&r->random, 16);
    if (pick->addr.u.v4[1] != NET_MEMBER || dice >= (k % 2 != 0 ? 14u : 2u))
        return PLB_OUTCOME_SUCCESS;
    return dice % 2 == 0 ? PLB_OUTCOME_CONNECT_ERROR : PLB_OUTCOME_BROKEN;
}

/* Ends a pick that was held since some earlier turn, and takes another. */
static void do_begin(reader *r)
{
    plb_pick *pick = &r->held[below(&r->random, HELD)];
    uint64_t key = below(&r->random, 1000);
    bool any = below(&r->random, 2) == 0;
    uint32_t exclude;
    plb_request request;
    plb_status status;
    if (pick->held != NULL)
        judge_ext(r, &pick->addr, pick->ext);
    plb_end(pick, outcome_of(r, pick), 1000);
    make_request(r, &request, &key, &exclude);
    begin_call(r);
    status = r->with_handle ? plb_handle_begin(r->handle, any ? NULL : &request, pick)
                            : plb_begin(r->s->lb, any ? NULL : &request, pick);
    end_select(r, status, &pick->addr, any || request.accept == NULL);
    if (status != PLB_OK)
        return;
    judge_ext(r, &pick->addr, pick->ext);
    if (!any && request.exclude_count > 0 && pick->slot == exclude)
        COUNT(&r->s->excluded_taken, 1);
}

static void do_walk(reader *r)
{
    plb_walk walk;
    uint32_t steps = below(&r->random, 12);
    begin_call(r);
    if (plb_walk_begin(&walk, r->s->lb, "k", 1) != PLB_OK) {
        COUNT(&r->s->none_ready, 1);
        return;
    }
    for (; steps > 0; steps--) {
        plb_backend_info info;
        plb_walk_next(&walk, &info);
        judge_info(r, &info);
    }
    plb_walk_end(&walk);
}

static bool each_one(void *user, const plb_backend_info *info)
{
    judge_info((const reader *)user, info);
    return true;
}

static void do_look(reader *r)
{
    plb_backend b = member_address(below(&r->random, MEMBERS));
    plb_backend_info info;
    begin_call(r);
    if (plb_ready(r->s->lb, &b.addr, 0))
        judge(r, &b.addr, true);
    begin_call(r);
    if (plb_find(r->s->lb, &b.addr, 0, &info) == PLB_OK)
        judge(r, &info.backend.addr, info.ready);
    begin_call(r);
    plb_each(r->s->lb, each_one, r);
}

/* Signals come at any instruction. The handler lets other threads run for a while, so each gap between two instructions
   of a call is as wide as can be, now and then. In a reading thread it picks, too. */
static __thread reader *interrupted;

static void in_signal(int number)
{
    reader here;
    plb_addr addr;
    uint32_t i;
    (void)number;
    if (interrupted != NULL) {
        here.s = interrupted->s;
        begin_call(&here);
        end_select(&here, plb_select(here.s->lb, "s", 1, 0, &addr), &addr, true);
    }
    for (i = PEEK(&moments) % 4; i < 4; i++)
        sched_yield();
}

static void signals(int how)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGALRM);
    pthread_sigmask(how, &set, NULL);
}

static void signal_every(uint32_t us)
{
    struct sigaction action;
    struct itimerval timer;
    memset(&action, 0, sizeof action);
    memset(&timer, 0, sizeof timer);
    action.sa_handler = in_signal;
    action.sa_flags = SA_RESTART;
    sigaction(SIGALRM, &action, NULL);
    timer.it_interval.tv_usec = timer.it_value.tv_usec = (suseconds_t)us;
    setitimer(ITIMER_REAL, &timer, NULL);
}

static void *read_for_life(void *user)
{
    reader *r = (reader *)user;
    uint32_t calls;
    interrupted = r;
    signals(SIG_UNBLOCK);
    if (r->with_handle && plb_handle_open(r->s->lb, &r->handle) != PLB_OK)
        abort();
    for (calls = 0; calls < LIFE && PEEK(&r->s->stop) == 0; calls++) {
        uint32_t what = below(&r->random, 100);
        if (what < 50)
            do_select(r);
        else if (what < 65)
            do_select_with(r);
        else if (what < 90)
            do_begin(r);
        else if (what < 95)
            do_walk(r);
        else
            do_look(r);
        if (what < 3)
            sched_yield();
    }
    signals(SIG_BLOCK);
    if (r->with_handle)
        plb_handle_close(r->handle);
    return NULL;
}

/* ==== THE THREADS THAT CHANGE THINGS ============================================================================== */

static void *switch_on_and_off(void *user)
{
    scene *s = (scene *)user;
    uint64_t random = 77;
    signals(SIG_UNBLOCK);
    while (PEEK(&s->stop) == 0) {
        uint32_t k = below(&random, MEMBERS), of = incarnation(k);
        plb_backend b = member_address(k);
        if (below(&random, 2) == 0) {
            perhaps(k, ENABLED, of);
            plb_set_enabled(s->lb, &b.addr, 0, true);
        } else if (plb_set_enabled(s->lb, &b.addr, 0, false) == PLB_OK) {
            certainly_not(k, ENABLED, of);
            COUNT(&s->switches, 1);
        }
        if (below(&random, 4) == 0)
            sched_yield();
    }
    return NULL;
}

static plb_status check_start(void *state, void *probe, const plb_backend *target, plb_token token)
{
    plb_status status = PLB_ERR_LIMIT;
    (void)state;
    (void)probe;
    pthread_mutex_lock(&stage->lock);
    if (stage->queued < sizeof stage->queue / sizeof *stage->queue) {
        probe_wait *wait = &stage->queue[stage->queued++];
        const parcel *p = (const parcel *)target->ext;
        wait->token = token;
        wait->constant = p == NULL;
        wait->member = p != NULL ? p->member : 0;
        wait->incarnation = p != NULL ? p->incarnation : 0;
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

static const plb_check_ops check_ops = {"stress", 0, 0, NULL, NULL, check_start, check_cancel};

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

static void *flip_health(void *user)
{
    scene *s = (scene *)user;
    uint64_t random = 99;
    while (PEEK(&s->stop) == 0) {
        probe_wait wait;
        if (!take_probe(s, &wait)) {
            plb_check_now(s->lb);
            sched_yield();
            continue;
        }
        if (wait.constant || below(&random, 2) == 0) {
            if (!wait.constant)
                perhaps(wait.member, HEALTHY, wait.incarnation);
            plb_check_done(wait.token, PLB_OK);
        } else {
            plb_check_done(wait.token, PLB_ERR_REFUSED);
        }
    }
    return NULL;
}

static void on_flip(void *user, const plb_backend_info *info, plb_status status)
{
    scene *s = (scene *)user;
    const parcel *p = (const parcel *)info->backend.ext;
    (void)status;
    COUNT(&s->flips, 1);
    if (!info->healthy && p != NULL)
        certainly_not(p->member, HEALTHY, p->incarnation);
}

static void on_eject(void *user, const plb_backend_info *info, plb_ejection why)
{
    scene *s = (scene *)user;
    const parcel *p = (const parcel *)info->backend.ext;
    s->ejections += why < PLB_EJECTION_TIME_OVER;
    s->returns += why >= PLB_EJECTION_TIME_OVER;
    if (why < PLB_EJECTION_TIME_OVER)
        certainly_not(p->member, NOT_EJECTED, p->incarnation);
}

static void on_change(void *user, plb_balancer *lb)
{
    (void)lb;
    COUNT(&((scene *)user)->sets, 1);
}

/* ==== THE POLLING THREAD ========================================================================================== */

static void must(plb_status status)
{
    if (status != PLB_OK)
        abort();
}

static void want(scene *s, uint32_t k, bool wanted)
{
    if (wanted && !s->wanted[k])
        born(k);
    s->wanted[k] = wanted;
    s->pending[k] = s->pending[k] || wanted;
}

static size_t whole_list(scene *s, plb_backend *list)
{
    size_t count = 0;
    uint32_t k;
    list[count++] = constant_backend(s->generation);
    list[count++] = tag_backend(s->generation);
    for (k = 0; k < MEMBERS; k++)
        if (s->wanted[k])
            list[count++] = member(k, s->generation);
    return count;
}

static void replace_all(scene *s)
{
    plb_backend list[MEMBERS + 2];
    uint32_t k;
    s->generation++;
    for (k = 0; k < MEMBERS; k++)
        want(s, k, below(&s->random, 4) == 0 ? !s->wanted[k] : s->wanted[k]);
    must(plb_replace(s->lb, list, whole_list(s, list)));
}

/* One comes or goes; the tag says how far the changes have got. */
static void replace_one(scene *s)
{
    uint32_t k = below(&s->random, MEMBERS);
    plb_backend old_tag = tag_backend(s->generation++), tag = tag_backend(s->generation), b;
    want(s, k, !s->wanted[k]);
    if (s->wanted[k]) {
        b = member(k, s->generation);
        must(plb_add(s->lb, &b));
    } else {
        b = member_address(k);
        must(plb_remove(s->lb, &b));
    }
    must(plb_remove(s->lb, &old_tag));
    must(plb_add(s->lb, &tag));
}

static bool note_one(void *user, const plb_backend_info *info)
{
    scene *s = (scene *)user;
    if (info->backend.addr.u.v4[1] == NET_TAG)
        s->applied = tag_generation(&info->backend.addr);
    else if (info->backend.addr.u.v4[1] == NET_MEMBER)
        s->current[info->backend.addr.u.v4[3]] = true;
    return true;
}

/* A millisecond passes: whose ejection will be over may come back. */
static void tick(scene *s)
{
    plb_outlier_info info;
    uint32_t k;
    COUNT(&s->now_ms, 1);
    for (k = 0; s->outlier && k < MEMBERS; k++) {
        plb_backend b = member_address(k);
        if (plb_find_outlier(s->lb, &b.addr, 0, &info) == PLB_OK && info.ejected && info.back_ms <= 1)
            perhaps(k, NOT_EJECTED, incarnation(k));
    }
}

static uint64_t now_ms(void *self)
{
    (void)self;
    return PEEK(&stage->now_ms);
}

static const plb_clock poll_clock = {NULL, now_ms, NULL};

/* Polls, and notes who is no member any more. */
static void poll_once(scene *s)
{
    uint32_t k;
    tick(s);
    plb_poll(s->lb);
    memset(s->current, 0, sizeof s->current);
    plb_each(s->lb, note_one, s);
    if (s->applied == s->generation)
        memcpy(s->pending, s->wanted, sizeof s->pending);
    for (k = 0; k < MEMBERS; k++)
        if (!s->current[k] && !s->pending[k] && (uint32_t)PEEK(&truth[k][A_MEMBER]) == 0)
            certainly_not(k, A_MEMBER, incarnation(k));
}

static uint32_t ms_since(const struct timespec *start)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint32_t)((now.tv_sec - start->tv_sec) * 1000 + (now.tv_nsec - start->tv_nsec) / 1000000);
}

/* Polls until the last change is in the set; false: it never was. */
static bool settle(scene *s)
{
    struct timespec start;
    clock_gettime(CLOCK_MONOTONIC, &start);
    while (s->applied != s->generation) {
        if (ms_since(&start) > PATIENCE_MS)
            return false;
        poll_once(s);
        sched_yield();
    }
    return true;
}

/* Two readers stand still, each in a set of its own; where readers are only counted, one will do. Updates wait and
   become one; the memory does not grow; when the readers go on, so do they. */
static bool stall(scene *s)
{
    uint32_t sets, blocks = 0, i;
    bool settled = settle(s), bounded = true;
    plb_backend_info info;
    plb_walk walks[2];
    must(plb_walk_begin(&walks[0], s->lb, "k", 1));
    replace_all(s);
    if (walks[0].hold.reader != &walks[0].hold.own)
        settled = settled && settle(s);
    must(plb_walk_begin(&walks[1], s->lb, "k", 1));
    sets = s->sets;
    for (i = 0; i < STALL_UPDATES; i++) {
        replace_all(s);
        poll_once(s);
        plb_walk_next(&walks[i % 2], &info);
        if (i == STALL_UPDATES / 3)
            blocks = PEEK(&s->blocks);
        if (i > STALL_UPDATES / 3 && PEEK(&s->blocks) > blocks + STALL_UPDATES / 3)
            bounded = false;
    }
    if (!bounded || s->sets > sets + 2)
        printf("during a stall: %u sets, %u blocks more\n", s->sets - sets, PEEK(&s->blocks) - blocks);
    bounded = bounded && s->sets <= sets + 2;
    plb_walk_end(&walks[0]);
    plb_walk_end(&walks[1]);
    s->stalls++;
    return settled && bounded && settle(s);
}

static bool has_seen_enough(const scene *s)
{
    bool seen = s->sets >= SETS_MIN && PEEK(&s->picks) >= PICKS_MIN && s->stalls == 2;
    seen = seen && PEEK(&s->flips) > 0 && PEEK(&s->switches) > 0;
    return seen && (!s->outlier || (PEEK(&s->ejections) > 0 && PEEK(&s->returns) > 0));
}

/* Changes the set for so long, and until enough has happened. */
static bool change_for(scene *s, uint32_t ms)
{
    struct timespec start;
    uint32_t passed = 0;
    clock_gettime(CLOCK_MONOTONIC, &start);
    while ((passed < ms || !has_seen_enough(s)) && passed < PATIENCE_MS) {
        uint32_t what = below(&s->random, 8);
        if (what < 2)
            replace_all(s);
        else if (what < 4)
            replace_one(s);
        poll_once(s);
        sched_yield();
        passed = ms_since(&start);
        if (s->stalls <= passed * 2 / ms && s->stalls < 2 && !stall(s))
            return false;
    }
    return true;
}

static void *keep_changing(void *user)
{
    scene *s = (scene *)user;
    signals(SIG_UNBLOCK);
    poll_once(s);
    s->lively = change_for(s, RUN_MS);
    NOTE(&s->stop, 1);
    return NULL;
}

/* ==== THE RUNS ==================================================================================================== */

static plb_balancer *scene_balancer(scene *s, plb_strategy strategy, bool barrier)
{
    plb_backend list[MEMBERS + 2];
    plb_static_desc discovery;
    plb_balancer_desc desc;
    plb_balancer *lb;
    memset(&discovery, 0, sizeof discovery);
    memset(&desc, 0, sizeof desc);
    discovery.backends = list;
    discovery.backend_count = whole_list(s, list);
    desc.port.barrier = barrier ? &real_barrier : NULL;
    desc.allocator.alloc = counted_alloc;
    desc.allocator.dealloc = counted_dealloc;
    desc.discovery = plb_static(&discovery);
    desc.strategy = counted(strategy);
    desc.check.ops = &check_ops;
    desc.user = s;
    desc.on_change = on_change;
    desc.on_flip = on_flip;
    if (s->outlier) {
        desc.port.clock = &poll_clock;
        desc.check.timeout_ms = UINT32_MAX / 2; /* polls come fast */
        desc.on_eject = on_eject;
        desc.outlier.on = true;
        desc.outlier.ignore_probes = true;
        desc.outlier.base_ejection_ms = 10;
        desc.outlier.max_ejection_ms = 40;
        desc.outlier.interval_ms = 100;
        desc.outlier.max_ejection_percent = 50;
    }
    return plb_create(&desc, &lb) == PLB_OK ? lb : NULL;
}

static void start_reader(scene *s, reader *r)
{
    r->s = s;
    if (pthread_create(&r->thread, NULL, read_for_life, r) != 0)
        abort();
}

/* Whenever a reader has lived its life, another thread goes on with what it holds. */
static void *keep_reading(void *user)
{
    static reader readers[READERS];
    scene *s = (scene *)user;
    uint32_t i, p;
    memset(readers, 0, sizeof readers);
    for (i = 0; i < READERS; i++) {
        readers[i].random = i + 1;
        readers[i].with_handle = i % 2 == 0;
        start_reader(s, &readers[i]);
    }
    for (i = 0; PEEK(&s->stop) == 0; i = (i + 1) % READERS) {
        pthread_join(readers[i].thread, NULL);
        start_reader(s, &readers[i]);
    }
    for (i = 0; i < READERS; i++)
        pthread_join(readers[i].thread, NULL);
    for (i = 0; i < READERS; i++)
        for (p = 0; p < HELD; p++)
            plb_end(&readers[i].held[p], PLB_OUTCOME_CANCELLED, 0);
    return NULL;
}

/* All is quiet: is each backend shown as it is, with nothing in flight? */
static bool check_last_word(void *user, const plb_backend_info *info)
{
    bool ready = info->healthy && info->enabled && !info->ejected && info->backend.weight > 0;
    ((scene *)user)->last_words += info->ready != ready || info->in_flight != 0;
    return true;
}

static void report(const scene *s, const char *name, bool barrier, uint32_t ms)
{
    int fact;
    printf("%-12s%-14s %8u picks, %6u a ms; %5u sets, %6u flips, %7u switches; at most %u tables, %u blocks\n", name,
           barrier      ? ", a barrier"
           : s->outlier ? ", ejections"
                        : "",
           s->picks, s->picks / (ms > 0 ? ms : 1), s->sets, s->flips, s->switches, s->tables_peak, s->blocks_peak);
    for (fact = 0; fact < FACTS; fact++)
        if (s->wrong[fact] > 0)
            printf("%u picks of what was not %s at any moment of the call\n", s->wrong[fact], fact_names[fact]);
}

static enum greatest_test_res judge_scene(const scene *s)
{
    ASSERT_EQ_FMT(0u, s->wrong[A_MEMBER], "%u");
    ASSERT_EQ_FMT(0u, s->wrong[ENABLED], "%u");
    ASSERT_EQ_FMT(0u, s->wrong[HEALTHY], "%u");
    ASSERT_EQ_FMT(0u, s->wrong[NOT_EJECTED], "%u");
    ASSERT_EQ_FMT(s->outlier, s->ejections > 0 && s->returns > 0, "%d");
    ASSERT_EQ_FMT(0u, s->wrong_ext, "%u");
    ASSERT_EQ_FMT(0u, s->no_weight, "%u");
    ASSERT_EQ_FMT(0u, s->none_ready, "%u");
    ASSERT_EQ_FMT(0u, s->excluded_taken, "%u");
    ASSERT_EQ_FMT(0u, s->last_words, "%u");
    ASSERT_EQ_FMT(parcels_made, parcels_released, "%u");
    ASSERT_EQ_FMT(0u, s->blocks, "%u");
    ASSERT_EQ_FMT(0u, s->tables, "%u");
    ASSERT(s->tables_peak <= SETS_ALIVE * TIERS);
    ASSERT(s->sets >= SETS_MIN && s->picks >= PICKS_MIN && s->flips > 0 && s->switches > 0 && s->stalls == 2);
    PASS();
}

static enum greatest_test_res run_scene(const char *name, plb_strategy strategy, bool barrier, bool outlier)
{
    pthread_t polling, reading, switching, flipping;
    plb_backend constant = constant_backend(0);
    plb_backend_info info;
    struct timespec start;
    uint32_t k;
    scene s;
    memset(&s, 0, sizeof s);
    memset(truth, 0, sizeof truth);
    moments = parcels_made = parcels_released = 0;
    pthread_mutex_init(&s.lock, NULL);
    s.random = 4711;
    s.outlier = outlier;
    stage = &s;
    for (k = 0; k < MEMBERS; k++)
        want(&s, k, k % 2 == 0);
    s.lb = scene_balancer(&s, strategy, barrier);
    ASSERT(s.lb != NULL);
    ASSERT_EQ(PLB_OK, plb_find(s.lb, &constant.addr, 0, &info));
    s.constant_slot = info.slot;
    clock_gettime(CLOCK_MONOTONIC, &start);
    signals(SIG_BLOCK);
    signal_every(SIGNAL_US);
    if (pthread_create(&reading, NULL, keep_reading, &s) != 0 ||
        pthread_create(&switching, NULL, switch_on_and_off, &s) != 0 ||
        pthread_create(&flipping, NULL, flip_health, &s) != 0 || pthread_create(&polling, NULL, keep_changing, &s) != 0)
        abort();
    pthread_join(polling, NULL);
    pthread_join(reading, NULL);
    pthread_join(switching, NULL);
    pthread_join(flipping, NULL);
    signal_every(0);
    plb_each(s.lb, check_last_word, &s);
    plb_destroy(s.lb);
    pthread_mutex_destroy(&s.lock);
    report(&s, name, barrier, ms_since(&start));
    ASSERT(s.lively);
    return judge_scene(&s);
}

/* Whoever writes another strategy adds a line. */
typedef struct contender {
    const char *name;
    plb_strategy (*make)(void);
} contender;

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
    static const plb_maglev_desc small = {251};
    return plb_maglev(&small);
}

static const contender contenders[] = {
    {"round robin", plb_round_robin},
    {"random", plb_random_choice},
    {"fnv", plb_fnv},
    {"ketama", ketama},
    {"smooth round robin", plb_smooth_round_robin},
    {"least connections", plb_least_connections},
    {"two choices", plb_two_choices},
    {"peak ewma", peak_ewma},
    {"maglev", maglev},
    {"bounded loads", bounded_loads},
    {"rendezvous", plb_rendezvous},
    {"ip hash", plb_ip_hash},
};

TEST every_pick_was_ready_during_the_call(const contender *c)
{
    return run_scene(c->name, c->make(), false, false);
}

TEST every_pick_was_ready_with_a_barrier(const contender *c)
{
    return run_scene(c->name, c->make(), true, false);
}

TEST every_pick_was_ready_with_outlier_detection(const contender *c)
{
    return run_scene(c->name, c->make(), false, true);
}

/* ==== ONE BACKEND, MANY MINDS ===================================================================================== */

enum { FILLERS = 3, TOGGLES = 1000000 / SCALE, LOOKS = 4 };

typedef struct filling {
    plb_balancer *lb;
    uint32_t stop;
} filling;

/* Each request fills the backend, and its end makes room: both change whether it is ready. */
static void *fill(void *user)
{
    filling *f = (filling *)user;
    signals(SIG_UNBLOCK);
    while (PEEK(&f->stop) == 0) {
        plb_pick pick;
        if (plb_begin(f->lb, NULL, &pick) == PLB_OK)
            plb_end(&pick, PLB_OUTCOME_SUCCESS, 0);
    }
    return NULL;
}

TEST what_is_switched_off_is_not_ready_for_a_moment_whoever_makes_room(void)
{
    plb_backend b = backend_at(NET_CONSTANT, 1, 80);
    pthread_t threads[FILLERS];
    plb_static_desc discovery;
    plb_balancer_desc desc;
    uint32_t i, look, wrong = 0;
    filling f;
    memset(&f, 0, sizeof f);
    memset(&discovery, 0, sizeof discovery);
    memset(&desc, 0, sizeof desc);
    b.max_conns = 1;
    discovery.backends = &b;
    discovery.backend_count = 1;
    desc.discovery = plb_static(&discovery);
    ASSERT_EQ(PLB_OK, plb_create(&desc, &f.lb));
    signals(SIG_BLOCK);
    signal_every(SIGNAL_US);
    for (i = 0; i < FILLERS; i++)
        ASSERT_EQ(0, pthread_create(&threads[i], NULL, fill, &f));
    for (i = 0; i < TOGGLES; i++) {
        plb_set_enabled(f.lb, &b.addr, 0, false);
        for (look = 0; look < LOOKS; look++)
            wrong += plb_ready(f.lb, &b.addr, 0);
        plb_set_enabled(f.lb, &b.addr, 0, true);
        for (look = 0; look < LOOKS; look++)
            plb_ready(f.lb, &b.addr, 0);
    }
    NOTE(&f.stop, 1);
    for (i = 0; i < FILLERS; i++)
        pthread_join(threads[i], NULL);
    signal_every(0);
    ASSERT_EQ_FMT(0u, wrong, "%u");
    ASSERT(plb_ready(f.lb, &b.addr, 0));
    plb_destroy(f.lb);
    PASS();
}

SUITE(stress)
{
    size_t i;
    bool barrier = has_barrier();
    for (i = 0; i < sizeof contenders / sizeof *contenders; i++) {
        RUN_TESTp(every_pick_was_ready_during_the_call, &contenders[i]);
        if (barrier)
            RUN_TESTp(every_pick_was_ready_with_a_barrier, &contenders[i]);
        if (i % 7 == 0) /* nothing is kept for it beside the record, or much */
            RUN_TESTp(every_pick_was_ready_with_outlier_detection, &contenders[i]);
    }
    RUN_TEST(what_is_switched_off_is_not_ready_for_a_moment_whoever_makes_room);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(stress);
    GREATEST_MAIN_END();
}
