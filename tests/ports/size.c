/* Prints what a balancer, a backend and a TCP probe in flight take of RAM, as an arena counts them, and refers to all
   of the library that its configuration (tests/ports/size.h) is about, so that the linker keeps it. */
#include "size.h"

#include "../../examples/cortex_m/board.h"

#define BACKENDS 32u

static char memory[48 * 1024];
static uint64_t now_ms = 1;

static uint64_t clock_now(void *self)
{
    (void)self;
    return now_ms;
}

/* Every connection is on its way, for good. */
static plb_status io_connect(void *self, const plb_peer *peer, plb_handler handler, plb_stream **out)
{
    (void)peer;
    (void)handler;
    *out = (plb_stream *)self;
    return PLB_AGAIN;
}

static void io_close(void *self, plb_stream *stream, plb_close_how how)
{
    (void)self;
    (void)stream;
    (void)how;
}

static const plb_io io = {memory, io_connect, NULL, NULL, NULL, NULL, io_close, NULL, NULL, NULL, NULL};
static const plb_clock the_clock = {NULL, clock_now, NULL};

static void print_number(uint32_t number)
{
    char digits[12] = "", *at = digits + sizeof digits - 2;
    *at = ' ';
    do
        *--at = (char)('0' + number % 10);
    while ((number /= 10) > 0);
    board_print(at);
}

typedef void (*kept_fn)(void);

/* What is not called below. */
#if SIZE == 2
static const kept_fn kept[] = {(kept_fn)plb_random_choice, (kept_fn)plb_fnv,   (kept_fn)plb_ketama,
                               (kept_fn)plb_http_check,    (kept_fn)plb_begin, (kept_fn)plb_end};
#elif SIZE == 3
static const kept_fn kept[] = {(kept_fn)plb_random_choice,
                               (kept_fn)plb_fnv,
                               (kept_fn)plb_smooth_round_robin,
                               (kept_fn)plb_least_connections,
                               (kept_fn)plb_ip_hash,
                               (kept_fn)plb_two_choices,
                               (kept_fn)plb_rendezvous,
                               (kept_fn)plb_ketama,
                               (kept_fn)plb_bounded_loads,
                               (kept_fn)plb_peak_ewma,
                               (kept_fn)plb_maglev,
                               (kept_fn)plb_http_check,
                               (kept_fn)plb_http2_check,
                               (kept_fn)plb_grpc_check,
                               (kept_fn)plb_expect_check,
                               (kept_fn)plb_redis_check,
                               (kept_fn)plb_smtp_check,
                               (kept_fn)plb_mysql_check,
                               (kept_fn)plb_postgres_check,
                               (kept_fn)plb_memcached_check,
                               (kept_fn)plb_agent_check,
                               (kept_fn)plb_begin,
                               (kept_fn)plb_end,
                               (kept_fn)plb_select_with,
                               (kept_fn)plb_walk_begin,
                               (kept_fn)plb_walk_next,
                               (kept_fn)plb_walk_end,
                               (kept_fn)plb_add,
                               (kept_fn)plb_remove,
                               (kept_fn)plb_replace,
                               (kept_fn)plb_update_now,
                               (kept_fn)plb_check_now,
                               (kept_fn)plb_last_update,
                               (kept_fn)plb_set_enabled,
                               (kept_fn)plb_ready,
                               (kept_fn)plb_find,
                               (kept_fn)plb_find_probe,
                               (kept_fn)plb_find_outlier,
                               (kept_fn)plb_each,
                               (kept_fn)plb_metrics,
                               (kept_fn)plb_addr_format};
#else
static const kept_fn kept[] = {NULL};
#endif
static const kept_fn *volatile keep = kept;

typedef struct used {
    size_t idle, probing;
} used;

/* A balancer of so many backends, with a TCP check or none: the bytes it has before its first probe, and while it
   probes all of them. */
static used measure(uint32_t count, bool checked)
{
    static plb_backend backends[BACKENDS];
    plb_static_desc list;
    plb_balancer_desc desc;
    plb_balancer *lb = NULL;
    plb_arena arena;
    plb_addr to;
    used result;
    uint32_t i;
    memset(&list, 0, sizeof list);
    memset(&desc, 0, sizeof desc);
    for (i = 0; i < count; i++) {
        plb_backend_parse(&backends[i], "10.0.0.1:8000", PLB_ZSTRING, NULL);
        backends[i].addr.port = (uint16_t)(8000 + i);
    }
    list.backends = backends;
    list.backend_count = count;
    desc.allocator = plb_arena_allocator(&arena, memory, sizeof memory);
    desc.port.io = &io;
    desc.port.clock = &the_clock;
    desc.discovery = plb_static(&list);
    if (checked)
        desc.check = plb_tcp_check(NULL);
    desc.check_every_ms = 1000;
    memset(&result, 0, sizeof result);
    if (plb_create(&desc, &lb) != PLB_OK)
        board_exit(1);
    result.idle = arena.used;
    plb_poll(lb);
    result.probing = arena.used;
    if (plb_select(lb, NULL, 0, 256, &to) != (count > 0 ? PLB_OK : PLB_ERR_EMPTY))
        board_exit(1);
    plb_destroy(lb);
    if (arena.used != 0)
        board_exit(1);
    return result;
}

int main(void)
{
    used none = measure(0, false), half = measure(BACKENDS / 2, true), all = measure(BACKENDS, true);
    (void)keep;
    print_number((uint32_t)none.idle);
    print_number((uint32_t)(all.idle - half.idle) / (BACKENDS / 2));
    print_number((uint32_t)(half.probing - half.idle) / (BACKENDS / 2));
    board_print("\n");
    return 0;
}
