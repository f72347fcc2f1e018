/* What is left works when parts are left out: this is built with some of PLB_NO_..., and with all of them. */
#define PINGORA_LB_IMPLEMENTATION
#include "../../pingora_lb.h"

#include <stdio.h>

#include "greatest.h"

static uint64_t now_ms = 1;
static plb_handler connecting[3];
static size_t connections, closed;

static uint64_t clock_now(void *self)
{
    (void)self;
    return now_ms;
}

static plb_status io_connect(void *self, const plb_peer *peer, plb_handler handler, plb_stream **out)
{
    (void)peer;
    connecting[connections++ % 3] = handler;
    *out = (plb_stream *)self;
    return PLB_AGAIN;
}

static void io_close(void *self, plb_stream *stream, plb_close_how how)
{
    (void)self;
    (void)stream;
    (void)how;
    closed++;
}

static plb_status io_info(void *self, plb_stream *stream, plb_stream_info *out)
{
    (void)self;
    (void)stream;
    memset(out, 0, sizeof *out);
    return PLB_OK;
}

static char place;
static const plb_io io = {&place, io_connect, NULL, NULL, NULL, NULL, io_close, io_info, NULL, NULL, NULL};
static const plb_clock the_clock = {NULL, clock_now, NULL};
static const char *const addresses[3] = {"10.0.0.3:80", "10.0.0.1:80", "10.0.0.2:80"};

static plb_balancer_desc describe(plb_static_desc *list)
{
    plb_balancer_desc desc;
    memset(list, 0, sizeof *list);
    memset(&desc, 0, sizeof desc);
    list->addresses = addresses;
    list->address_count = 3;
    desc.port.io = &io;
    desc.port.clock = &the_clock;
    desc.discovery = plb_static(list);
    return desc;
}

static unsigned last_byte(plb_balancer *lb)
{
    plb_addr to;
    return plb_select(lb, NULL, 0, 0, &to) == PLB_OK ? to.u.v4[3] : 0;
}

TEST round_robin_goes_through_the_list_in_order(void)
{
    plb_static_desc list;
    plb_balancer_desc desc = describe(&list);
    plb_balancer *lb;
    plb_pick pick;
    unsigned first, i;
    ASSERT_EQ(PLB_OK, plb_create(&desc, &lb));
    first = last_byte(lb);
    for (i = 1; i < 7; i++)
        ASSERT_EQ((first - 1 + i) % 3 + 1, last_byte(lb));
    ASSERT_EQ(PLB_OK, plb_begin(lb, NULL, &pick));
    ASSERT_EQ(80, pick.addr.port);
    plb_end(&pick, PLB_OUTCOME_SUCCESS, 0);
    plb_destroy(lb);
    PASS();
}

TEST a_pick_may_outlive_the_balancer(void)
{
    plb_static_desc list;
    plb_balancer_desc desc = describe(&list);
    plb_balancer *lb;
    plb_pick pick;
    ASSERT_EQ(PLB_OK, plb_create(&desc, &lb));
    ASSERT_EQ(PLB_OK, plb_begin(lb, NULL, &pick));
    plb_destroy(lb);
    plb_end(&pick, PLB_OUTCOME_SUCCESS, 0);
    PASS();
}

/* Ends the probes in flight: that of connection `failing` finds nobody. */
static void answer(plb_balancer *lb, size_t failing)
{
    size_t i;
    for (i = 0; i < 3; i++)
        connecting[i].fn(connecting[i].user, (plb_stream *)(void *)&place, PLB_EVENT_CONNECT,
                         i == failing ? PLB_ERR_REFUSED : PLB_OK);
    plb_poll(lb);
}

TEST a_probe_that_fails_takes_its_backend_out_until_one_succeeds(void)
{
    plb_static_desc list;
    plb_balancer_desc desc = describe(&list);
    plb_balancer *lb;
    unsigned i;
    desc.check = plb_tcp_check(NULL);
    desc.check_every_ms = 1000;
    connections = closed = 0;
    ASSERT_EQ(PLB_OK, plb_create(&desc, &lb));
    plb_poll(lb);
    ASSERT_EQ(3, connections);
    answer(lb, 1); /* probes start in set order */
    ASSERT_EQ(3, closed);
    for (i = 0; i < 6; i++)
        ASSERT(last_byte(lb) != 2);
    now_ms += 1000;
    plb_poll(lb);
    ASSERT_EQ(6, connections);
    answer(lb, 3);
    for (i = 0; i < 3 && last_byte(lb) != 2; i++) {
    }
    ASSERT(i < 3);
    plb_destroy(lb);
    ASSERT_EQ(connections, closed);
    PASS();
}

TEST a_probe_without_an_answer_times_out(void)
{
    plb_static_desc list;
    plb_balancer_desc desc = describe(&list);
    plb_balancer *lb;
    desc.check = plb_tcp_check(NULL);
    desc.check_every_ms = 5000;
    connections = closed = 0;
    ASSERT_EQ(PLB_OK, plb_create(&desc, &lb));
    plb_poll(lb);
    now_ms += 1000;
    plb_poll(lb);
    ASSERT_EQ(3, closed);
    ASSERT_EQ(0, last_byte(lb));
    plb_destroy(lb);
    PASS();
}

TEST an_address_of_a_family_that_is_left_out_is_refused(void)
{
    plb_addr addr;
    plb_backend backend;
#ifdef PLB_NO_IPV6
    ASSERT_EQ(PLB_ERR_ADDRESS, plb_addr_parse(&addr, "[::1]:80", PLB_ZSTRING));
#else
    ASSERT_EQ(PLB_OK, plb_addr_parse(&addr, "[::1]:80", PLB_ZSTRING));
#endif
#ifdef PLB_NO_UNIX
    ASSERT_EQ(PLB_ERR_ADDRESS, plb_addr_parse(&addr, "unix:/run/x", PLB_ZSTRING));
#else
    ASSERT_EQ(PLB_OK, plb_addr_parse(&addr, "unix:/run/x", PLB_ZSTRING));
#endif
    ASSERT_EQ(PLB_OK, plb_addr_parse(&addr, "1.2.3.4:80", PLB_ZSTRING));
    ASSERT_EQ(PLB_ERR_ADDRESS, plb_backend_parse(&backend, "host:80", PLB_ZSTRING, NULL));
    PASS();
}

TEST a_bad_address_fails_creation_and_leaves_nothing(void)
{
    static const char *const bad[2] = {"10.0.0.1:80", "10.0.0.2"};
    static uint64_t memory[4096];
    plb_arena arena;
    plb_static_desc list;
    plb_balancer_desc desc = describe(&list);
    plb_balancer *lb;
    list.addresses = bad;
    list.address_count = 2;
    desc.allocator = plb_arena_allocator(&arena, memory, sizeof memory);
    ASSERT_EQ(PLB_ERR_ADDRESS, plb_create(&desc, &lb));
    ASSERT_EQ(NULL, lb);
    ASSERT_EQ(0, arena.used);
    PASS();
}

/* Serves so many blocks, then none. */
typedef struct meter {
    plb_allocator arena;
    int left;
} meter;

static void *meter_alloc(void *user, size_t size)
{
    meter *m = (meter *)user;
    return m->left-- > 0 ? m->arena.alloc(m->arena.user, size) : NULL;
}

static void meter_dealloc(void *user, void *ptr, size_t size)
{
    meter *m = (meter *)user;
    m->arena.dealloc(m->arena.user, ptr, size);
}

TEST every_allocation_may_fail(void)
{
    static uint64_t memory[4096];
    int blocks;
    for (blocks = 0; blocks < 60; blocks++) {
        plb_arena arena;
        plb_static_desc list;
        plb_balancer_desc desc = describe(&list);
        plb_balancer *lb;
        meter m;
        desc.check = plb_tcp_check(NULL);
        desc.check_every_ms = 1000;
        m.arena = plb_arena_allocator(&arena, memory, sizeof memory);
        m.left = blocks;
        desc.allocator.alloc = meter_alloc;
        desc.allocator.dealloc = meter_dealloc;
        desc.allocator.user = &m;
        if (plb_create(&desc, &lb) == PLB_OK) {
            plb_poll(lb);
            plb_destroy(lb);
        }
        ASSERT_EQ(0, arena.used);
    }
    PASS();
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_TEST(round_robin_goes_through_the_list_in_order);
    RUN_TEST(a_pick_may_outlive_the_balancer);
    RUN_TEST(a_probe_that_fails_takes_its_backend_out_until_one_succeeds);
    RUN_TEST(a_probe_without_an_answer_times_out);
    RUN_TEST(an_address_of_a_family_that_is_left_out_is_refused);
    RUN_TEST(a_bad_address_fails_creation_and_leaves_nothing);
    RUN_TEST(every_allocation_may_fail);
    GREATEST_MAIN_END();
}
