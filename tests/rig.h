/* rig.h - a balancer on the simulator, everything that it says written down, and extensions whose every move a test
   makes by hand. Test code; include it after pingora_lb.h, greatest.h and sim.h with their implementations.

       rig r;
       rig_begin(&r);                                   // sets r.desc; change it as the test needs it
       r.desc.strategy = plb_fnv();
       ASSERT_EQ(PLB_OK, rig_create(&r));
       rig_run(&r, 100);                                // milliseconds
       ASSERT_STR_EQ("10.0.0.1:80 10.0.0.2:80", rig_set(&r));
       ASSERT_EQ(0, rig_end(&r));                       // what was left behind: memory, streams, queries */
#ifndef RIG_H
#define RIG_H

typedef struct rig {
    sim *s;
    sim_alloc memory;
    plb_balancer_desc desc;
    plb_balancer *lb;
    /* how often each callback came, and what it said last */
    uint32_t changes, updates, flips, first_updates, first_checks;
    plb_update_info update;
    plb_status first_status, flip_status;
    plb_backend_info flip;
    void (*in_callback)(struct rig *r); /* called from each of them, when set */
    char log[2048];                     /* the last lines, each with a newline */
    char text[8192];
} rig;

static inline void rig__call(rig *r)
{
    if (r->in_callback != NULL)
        r->in_callback(r);
}

static inline void rig__on_change(void *user, plb_balancer *lb)
{
    rig *r = (rig *)user;
    r->changes++;
    r->lb = lb;
    rig__call(r);
}

static inline void rig__on_update(void *user, const plb_update_info *info)
{
    rig *r = (rig *)user;
    r->updates++;
    r->update = *info;
    rig__call(r);
}

static inline void rig__on_flip(void *user, const plb_backend_info *info, plb_status status)
{
    rig *r = (rig *)user;
    r->flips++;
    r->flip = *info;
    r->flip_status = status;
    rig__call(r);
}

static inline void rig__on_first_update(void *user, plb_balancer *lb, plb_status status)
{
    rig *r = (rig *)user;
    r->first_updates++;
    r->first_status = status;
    r->lb = lb;
    rig__call(r);
}

static inline void rig__on_first_checks(void *user, plb_balancer *lb)
{
    rig *r = (rig *)user;
    r->first_checks++;
    r->lb = lb;
    rig__call(r);
}

static inline void rig__log(void *user, plb_log_level level, const char *line)
{
    rig *r = (rig *)user;
    size_t length = strlen(line), used = strlen(r->log);
    (void)level;
    if (used + length + 2 > sizeof r->log)
        used = 0;
    snprintf(r->log + used, sizeof r->log - used, "%s\n", line);
}

static inline void rig_begin(rig *r)
{
    memset(r, 0, sizeof *r);
    r->s = sim_create(1);
    r->desc.port = sim_port(r->s);
    r->desc.allocator = sim_allocator(&r->memory);
    r->desc.user = r;
    r->desc.on_change = rig__on_change;
    r->desc.on_update = rig__on_update;
    r->desc.on_flip = rig__on_flip;
    r->desc.on_first_update = rig__on_first_update;
    r->desc.on_first_checks = rig__on_first_checks;
    r->desc.log = rig__log;
}

static inline plb_status rig_create(rig *r)
{
    plb_status status = plb_create(&r->desc, &r->lb);
    if (status == PLB_OK)
        sim_add_task(r->s, plb_balancer_task(r->lb));
    return status;
}

static inline void rig_run(rig *r, uint32_t ms)
{
    sim_run_for(r->s, ms);
}

static inline void rig_destroy(rig *r)
{
    if (r->lb == NULL)
        return;
    sim_remove_task(r->s, plb_balancer_task(r->lb));
    plb_destroy(r->lb);
    r->lb = NULL;
}

/* Ends it all; returns what was left behind. */
static inline int rig_end(rig *r)
{
    rig_destroy(r);
    return (int)(sim_destroy(r->s) + sim_alloc_leaks(&r->memory));
}

static inline bool rig__put(void *user, const plb_backend_info *info)
{
    rig *r = (rig *)user;
    size_t used = strlen(r->text);
    char addr[PLB_ADDR_TEXT_MAX];
    plb_addr_format(&info->backend.addr, addr, sizeof addr);
    used += (size_t)snprintf(r->text + used, sizeof r->text - used, "%s%s", used > 0 ? " " : "", addr);
    if (info->backend.weight != 1)
        used += (size_t)snprintf(r->text + used, sizeof r->text - used, "*%u", (unsigned)info->backend.weight);
    if (info->backend.id != 0)
        used += (size_t)snprintf(r->text + used, sizeof r->text - used, "#%u", (unsigned)info->backend.id);
    if (info->backend.name != NULL)
        used += (size_t)snprintf(r->text + used, sizeof r->text - used, "(%s)", info->backend.name);
    if (!info->healthy)
        used += (size_t)snprintf(r->text + used, sizeof r->text - used, " unhealthy");
    if (!info->enabled)
        used += (size_t)snprintf(r->text + used, sizeof r->text - used, " off");
    if (!info->ready && info->healthy && info->enabled)
        snprintf(r->text + used, sizeof r->text - used, " busy");
    return used < sizeof r->text / 2;
}

/* The current set as text: ADDRESS[*WEIGHT][#ID][(NAME)][ unhealthy][ off][ busy], where it is not usual. */
static inline const char *rig_set(rig *r)
{
    r->text[0] = '\0';
    plb_each(r->lb, rig__put, r);
    return r->text;
}

static inline bool rig_logged(const rig *r, const char *words)
{
    return strstr(r->log, words) != NULL;
}

/* "10.0.0.1:80" with a weight. */
static inline plb_backend rig_backend(const char *addr, uint32_t weight)
{
    plb_backend backend;
    memset(&backend, 0, sizeof backend);
    backend.addr = sim_addr(addr);
    backend.weight = weight;
    return backend;
}

/* A host name that is still to be resolved. */
static inline plb_backend rig_host(const char *name, uint16_t port, uint32_t weight)
{
    plb_backend backend;
    memset(&backend, 0, sizeof backend);
    backend.name = name;
    backend.addr.port = port;
    backend.weight = weight;
    return backend;
}

/* An ext that counts how often it was released: an int. */
static inline void rig_count_release(void *ext)
{
    ++*(int *)ext;
}

static inline plb_backend rig_with_ext(plb_backend backend, int *releases)
{
    backend.ext = releases;
    backend.ext_release = rig_count_release;
    return backend;
}

/* ---- a discovery that answers as it is told to ---- */

typedef struct feed {
    const plb_backend *backends; /* the answer */
    size_t count;
    plb_status status;
    bool later;              /* start does not answer: the test does, with feed_answer */
    plb_status start_status; /* what start returns; then it does not answer either */
    uint32_t starts, cancels, applied, closes, changes;
    plb_status applied_status;
    plb_token token;  /* of the last start */
    plb_token before; /* and of the one before */
} feed;

typedef struct feed__state {
    feed *f;
} feed__state;

static inline void feed_answer(feed *f)
{
    plb_discovery_done(f->token, f->status, f->backends, f->count);
}

static inline plb_status feed__open(void *state, const void *desc, const plb_env *env)
{
    (void)env;
    memcpy(state, desc, sizeof(feed__state));
    return PLB_OK;
}

static inline void feed__close(void *state)
{
    ((feed__state *)state)->f->closes++;
}

static inline plb_status feed__start(void *state, plb_token token)
{
    feed *f = ((feed__state *)state)->f;
    f->starts++;
    f->before = f->token;
    f->token = token;
    if (f->start_status == PLB_OK && !f->later)
        feed_answer(f);
    return f->start_status;
}

static inline void feed__cancel(void *state, plb_token token)
{
    feed *f = ((feed__state *)state)->f;
    (void)token;
    f->cancels++;
}

static inline void feed__applied(void *state, plb_status status)
{
    feed *f = ((feed__state *)state)->f;
    f->applied++;
    f->applied_status = status;
}

/* `keeper`: it has `applied`, so that it keeps the ext of what was refused. Both structs must outlive plb_create. */
static inline plb_discovery feed_discovery(feed *f, bool keeper)
{
    static const plb_discovery_ops plain = {"feed",      sizeof(feed__state), feed__open, feed__close,
                                            feed__start, feed__cancel,        NULL,       NULL};
    static const plb_discovery_ops keeping = {"feed",      sizeof(feed__state), feed__open,    feed__close,
                                              feed__start, feed__cancel,        feed__applied, NULL};
    static feed__state desc;
    plb_discovery discovery;
    desc.f = f;
    discovery.ops = keeper ? &keeping : &plain;
    discovery.desc = &desc;
    discovery.timeout_ms = 0;
    return discovery;
}

/* Says what the next answer is. */
static inline void feed_set(feed *f, const plb_backend *backends, size_t count)
{
    f->backends = backends;
    f->count = count;
    f->status = PLB_OK;
}

/* ---- a check that answers as it is told to ---- */

#define PROBES_MAX 256

typedef struct prober {
    plb_status result;       /* what a probe answers inside start */
    bool later;              /* or not: the test does, with plb_check_done(tokens[i], ...) */
    plb_status start_status; /* what start returns; then it does not answer */
    uint32_t starts, cancels, in_flight, most_in_flight;
    plb_token tokens[PROBES_MAX]; /* of start number n: tokens[n % PROBES_MAX], from 0; and its target */
    plb_addr targets[PROBES_MAX];
    uint32_t weights[PROBES_MAX];
    void *exts[PROBES_MAX];
} prober;

typedef struct prober__state {
    prober *p;
} prober__state;

static inline plb_status prober__open(void *state, const void *desc, const plb_env *env)
{
    (void)env;
    memcpy(state, desc, sizeof(prober__state));
    return PLB_OK;
}

static inline plb_status prober__start(void *state, void *probe, const plb_backend *target, plb_token token)
{
    prober *p = ((prober__state *)state)->p;
    uint32_t n = p->starts++ % PROBES_MAX;
    *(uint64_t *)probe = 1;
    p->tokens[n] = token;
    p->targets[n] = target->addr;
    p->weights[n] = target->weight;
    p->exts[n] = target->ext;
    if (p->start_status != PLB_OK)
        return p->start_status;
    if (!p->later) {
        plb_check_done(token, p->result);
        return PLB_OK;
    }
    if (++p->in_flight > p->most_in_flight)
        p->most_in_flight = p->in_flight;
    return PLB_OK;
}

static inline void prober__cancel(void *state, void *probe, plb_token token)
{
    prober *p = ((prober__state *)state)->p;
    (void)token;
    *(uint64_t *)probe = 2;
    p->cancels++;
    p->in_flight--;
}

static inline plb_check prober_check(prober *p)
{
    static const plb_check_ops ops = {"prober", sizeof(prober__state), sizeof(uint64_t), prober__open,
                                      NULL,     prober__start,         prober__cancel};
    static prober__state desc;
    plb_check check;
    memset(&check, 0, sizeof check);
    desc.p = p;
    check.ops = &ops;
    check.desc = &desc;
    return check;
}

/* Ends start number n, from 0. */
static inline void prober_done(prober *p, uint32_t n, plb_status status)
{
    p->in_flight--;
    plb_check_done(p->tokens[n % PROBES_MAX], status);
}

/* The number of the last start that probed the address, or PLB_NONE. */
static inline uint32_t prober_last(const prober *p, const char *addr)
{
    plb_addr wanted = sim_addr(addr);
    uint32_t n;
    for (n = p->starts; n > 0 && n + PROBES_MAX > p->starts; n--)
        if (plb_addr_compare(&p->targets[(n - 1) % PROBES_MAX], &wanted) == 0)
            return n - 1;
    return PLB_NONE;
}

#endif /* RIG_H */
