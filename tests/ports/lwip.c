/* What is the lwIP port's own: calls of lwIP that find no memory, pcbs that go away by themselves, streams that run
   out, windows that close, a loop of the program's own, names, and a balancer with a proxy on top. What it has in
   common with other ports is in io_conformance.c. Both ends of all connections are in this process, and in lwIP. */
#include "../../pingora_lb.h"
#define PLB_PROXY_IMPLEMENTATION
#include "../../ports/plb_proxy.h"
#define PLB_LWIP_IMPLEMENTATION
#include "../../ports/plb_lwip.h"
#include "lwip_netif.h"

#include <greatest.h>
#include <lwip/priv/tcp_priv.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>

/* ==== LWIP, WHICH FAILS WHEN TOLD TO ==============================================================================
   The linker has the port's calls of these functions come here (--wrap). The core lock guards `failing`. */

typedef enum call {
    CALL_NONE = 0,
    CALL_TCP_NEW,
    CALL_TCP_BIND,
    CALL_TCP_LISTEN,
    CALL_TCP_CONNECT,
    CALL_TCP_WRITE,
    CALL_TCP_OUTPUT,
    CALL_TCP_SHUTDOWN,
    CALL_TCP_CLOSE,
    CALL_UDP_NEW,
    CALL_UDP_BIND,
    CALL_UDP_CONNECT,
    CALL_UDP_SEND,
    CALL_PBUF_ALLOC,
    CALL_NEVER /* lwIP needs no memory for it */
} call;

static struct {
    call what;
    unsigned from, run; /* the calls that fail: numbers from, from + 1, ... from + run - 1 */
    unsigned calls;     /* that there were, the failed ones too */
} failing;

static bool fails(call what)
{
    if (failing.what != what)
        return false;
    failing.calls++;
    return failing.calls >= failing.from && failing.calls - failing.from < failing.run;
}

static void set_failing(call what, unsigned from, unsigned run)
{
    LOCK_TCPIP_CORE();
    failing.what = what;
    failing.from = from;
    failing.run = run;
    failing.calls = 0;
    UNLOCK_TCPIP_CORE();
}

static unsigned calls_made(void)
{
    unsigned calls;
    LOCK_TCPIP_CORE();
    calls = failing.calls;
    UNLOCK_TCPIP_CORE();
    return calls;
}

#define WRAP(result, name, parameters, arguments, what, failure)                                                       \
    result __real_##name parameters;                                                                                   \
    result __wrap_##name parameters;                                                                                   \
    result __wrap_##name parameters                                                                                    \
    {                                                                                                                  \
        return fails(what) ? failure : __real_##name arguments;                                                        \
    }

WRAP(struct tcp_pcb *, tcp_new_ip_type, (u8_t type), (type), CALL_TCP_NEW, NULL)
WRAP(err_t, tcp_bind, (struct tcp_pcb * pcb, const ip_addr_t *ip, u16_t port), (pcb, ip, port), CALL_TCP_BIND, ERR_BUF)
WRAP(err_t, tcp_connect, (struct tcp_pcb * pcb, const ip_addr_t *ip, u16_t port, tcp_connected_fn fn),
     (pcb, ip, port, fn), CALL_TCP_CONNECT, ERR_MEM)
WRAP(err_t, tcp_write, (struct tcp_pcb * pcb, const void *data, u16_t size, u8_t flags), (pcb, data, size, flags),
     CALL_TCP_WRITE, ERR_MEM)
WRAP(err_t, tcp_output, (struct tcp_pcb * pcb), (pcb), CALL_TCP_OUTPUT, ERR_MEM)
WRAP(err_t, tcp_shutdown, (struct tcp_pcb * pcb, int rx, int tx), (pcb, rx, tx), CALL_TCP_SHUTDOWN, ERR_MEM)
WRAP(err_t, tcp_close, (struct tcp_pcb * pcb), (pcb), pcb->state == LISTEN ? CALL_NEVER : CALL_TCP_CLOSE, ERR_MEM)
WRAP(struct udp_pcb *, udp_new_ip_type, (u8_t type), (type), CALL_UDP_NEW, NULL)
WRAP(err_t, udp_bind, (struct udp_pcb * pcb, const ip_addr_t *ip, u16_t port), (pcb, ip, port), CALL_UDP_BIND, ERR_USE)
WRAP(err_t, udp_connect, (struct udp_pcb * pcb, const ip_addr_t *ip, u16_t port), (pcb, ip, port), CALL_UDP_CONNECT,
     ERR_RTE)
WRAP(err_t, udp_sendto, (struct udp_pcb * pcb, struct pbuf *p, const ip_addr_t *ip, u16_t port), (pcb, p, ip, port),
     CALL_UDP_SEND, ERR_MEM)
WRAP(struct pbuf *, pbuf_alloc, (pbuf_layer layer, u16_t length, pbuf_type type), (layer, length, type),
     CALL_PBUF_ALLOC, NULL)

/* A wake that comes when the wait has just timed out. */
static bool wake_late;
static void wake(void);

u32_t __real_sys_arch_sem_wait(sys_sem_t *sem, u32_t timeout);
u32_t __wrap_sys_arch_sem_wait(sys_sem_t *sem, u32_t timeout);
u32_t __wrap_sys_arch_sem_wait(sys_sem_t *sem, u32_t timeout)
{
    if (!wake_late)
        return __real_sys_arch_sem_wait(sem, timeout);
    wake_late = false;
    wake();
    return SYS_ARCH_TIMEOUT;
}

struct tcp_pcb *__real_tcp_listen_with_backlog_and_err(struct tcp_pcb *pcb, u8_t backlog, err_t *err);
struct tcp_pcb *__wrap_tcp_listen_with_backlog_and_err(struct tcp_pcb *pcb, u8_t backlog, err_t *err);
struct tcp_pcb *__wrap_tcp_listen_with_backlog_and_err(struct tcp_pcb *pcb, u8_t backlog, err_t *err)
{
    *err = ERR_MEM;
    return fails(CALL_TCP_LISTEN) ? NULL : __real_tcp_listen_with_backlog_and_err(pcb, backlog, err);
}

/* ==== HELPERS ===================================================================================================== */

#define STEPS   1000 /* of 10 ms at most: how long something that must happen may take */
#define QUIET   6    /* steps in which something that must not happen would have happened */
#define STREAMS 24
#define WAITING 8
#define QUERIES 2
#define FEW     5
#define BULK    100000 /* more than one window */

static plb_lwip lw; /* of the test that runs */
static plb_lwip_stream streams[STREAMS];
static plb_lwip_query queries[QUERIES];
static plb_lwip few; /* a second port, with few streams */
static bool has_few;
static const plb_io *io;
static void (*turn)(uint32_t max_ms); /* steps the port */

static uint8_t sent[BULK], received[BULK];

/* One end of a connection, or a listener, and what it has heard. */
typedef struct end {
    plb_stream *stream;
    unsigned connects, reads, writes, accepts;
    plb_status connected;
} end;

static void on_event(void *user, plb_stream *stream, plb_event event, plb_status status)
{
    end *e = (end *)user;
    (void)stream;
    e->connects += event == PLB_EVENT_CONNECT;
    e->reads += event == PLB_EVENT_READ;
    e->writes += event == PLB_EVENT_WRITE;
    e->accepts += event == PLB_EVENT_ACCEPT;
    if (event == PLB_EVENT_CONNECT)
        e->connected = status;
}

static plb_handler handler_of(end *e)
{
    plb_handler handler;
    handler.fn = on_event;
    handler.user = e;
    return handler;
}

static void wake(void)
{
    io->wake(io->self);
}

static void step(uint32_t max_ms)
{
    plb_lwip_step(&lw, max_ms);
}

static void open_port(const plb_lwip_desc *given)
{
    plb_lwip_desc desc;
    memset(&desc, 0, sizeof desc);
    if (given != NULL)
        desc = *given;
    desc.streams = streams;
    desc.stream_count = STREAMS;
    if (desc.waiting == 0)
        desc.waiting = WAITING;
    desc.queries = queries;
    desc.query_count = QUERIES;
    if (plb_lwip_init(&lw, &desc) != PLB_OK)
        abort();
    io = plb_lwip_port(&lw).io;
    turn = step;
}

static void setup(void *user)
{
    size_t i;
    (void)user;
    lwip_netif_start();
    set_failing(CALL_NONE, 0, 0);
    for (i = 0; i < BULK; i++)
        sent[i] = (uint8_t)(i * 31 + i / 251);
    memset(received, 0, sizeof received);
    open_port(NULL);
}

/* Ends the port. lwIP must have nothing left that would touch it, or that nobody owns. */
static void close_port(void)
{
    struct tcp_pcb *pcb;
    bool orphans;
    plb_lwip_deinit(&lw);
    LOCK_TCPIP_CORE();
    orphans = tcp_bound_pcbs != NULL || tcp_listen_pcbs.pcbs != NULL || udp_pcbs != NULL;
    for (pcb = tcp_active_pcbs; pcb != NULL; pcb = pcb->next)
        orphans = orphans || pcb->callback_arg != NULL;
    UNLOCK_TCPIP_CORE();
    if (orphans)
        abort();
    memset(&lw, 0xff, sizeof lw);
    memset(streams, 0xff, sizeof streams);
}

static void teardown(void *user)
{
    (void)user;
    set_failing(CALL_NONE, 0, 0);
    if (has_few)
        plb_lwip_deinit(&few);
    has_few = false;
    close_port();
}

static void stay_quiet(void)
{
    int i;
    for (i = 0; i < QUIET; i++)
        turn(5);
}

static bool reaches(const unsigned *counter, unsigned number)
{
    int i;
    for (i = 0; i < STEPS && *counter < number; i++)
        turn(10);
    return *counter >= number;
}

/* Streams that callers have (those that are being closed too), and those that wait for accept. */
static bool is_used(size_t held, size_t waiting)
{
    bool used;
    LOCK_TCPIP_CORE();
    used = lw.held == held && lw.waiting == waiting;
    UNLOCK_TCPIP_CORE();
    return used;
}

static bool becomes_used(size_t held, size_t waiting)
{
    int i;
    for (i = 0; i < STEPS && !is_used(held, waiting); i++)
        turn(10);
    return is_used(held, waiting);
}

static plb_addr address(const char *text)
{
    plb_addr addr;
    if (plb_addr_parse(&addr, text, PLB_ZSTRING) != PLB_OK)
        abort();
    return addr;
}

static plb_addr any_port(void)
{
    plb_addr addr = address(LWIP_NETIF_IPV4 ":1");
    addr.port = 0;
    return addr;
}

static plb_status listen_at(end *e, plb_addr *addr)
{
    plb_listen_desc desc;
    plb_stream_info info;
    plb_status status;
    memset(&desc, 0, sizeof desc);
    memset(e, 0, sizeof *e);
    desc.addr = *addr;
    status = io->listen(io->self, &desc, handler_of(e), &e->stream);
    if (status == PLB_OK && io->info(io->self, e->stream, &info) == PLB_OK)
        *addr = info.local;
    return status;
}

static plb_status connect_to(end *e, const plb_addr *addr)
{
    plb_peer peer;
    memset(&peer, 0, sizeof peer);
    memset(e, 0, sizeof *e);
    peer.addr = *addr;
    return io->connect(io->self, &peer, handler_of(e), &e->stream);
}

static plb_status accept_now(end *listener, end *e)
{
    memset(e, 0, sizeof *e);
    return io->accept(io->self, listener->stream, handler_of(e), &e->stream);
}

static void drop(end *e, plb_close_how how)
{
    plb_stream *stream = e->stream;
    e->stream = NULL;
    if (stream != NULL)
        io->close(io->self, stream, how);
}

typedef struct pair {
    end listener, client, server;
    plb_addr addr;
} pair;

static bool connect_pair(pair *p)
{
    int i;
    if (connect_to(&p->client, &p->addr) != PLB_AGAIN || !reaches(&p->client.connects, 1))
        return false;
    for (i = 0; i < STEPS; i++) {
        if (accept_now(&p->listener, &p->server) == PLB_OK)
            return p->client.connected == PLB_OK;
        turn(10);
    }
    return false;
}

static bool open_pair(pair *p)
{
    p->addr = any_port();
    return listen_at(&p->listener, &p->addr) == PLB_OK && connect_pair(p);
}

static void close_pair(pair *p)
{
    drop(&p->client, PLB_CLOSE_GRACEFUL);
    drop(&p->server, PLB_CLOSE_GRACEFUL);
    drop(&p->listener, PLB_CLOSE_GRACEFUL);
}

static plb_status write_now(end *e, const uint8_t *bytes, size_t size, size_t *taken)
{
    plb_chunk chunks[3]; /* a copied, a constant, a copied one */
    size_t first = size / 3, second = size - 2 * first;
    chunks[0].data = bytes;
    chunks[0].size = chunks[2].size = first;
    chunks[1].data = bytes + first;
    chunks[1].size = second;
    chunks[2].data = bytes + first + second;
    chunks[0].flags = chunks[2].flags = 0;
    chunks[1].flags = PLB_CHUNK_CONSTANT;
    return io->write(io->self, e->stream, chunks, 3, taken);
}

static plb_status read_now(end *e, void *buffer, size_t capacity, size_t *got)
{
    return io->read(io->self, e->stream, buffer, capacity, got);
}

/* Steps until read has something else to say than PLB_AGAIN. */
static plb_status read_wait(end *e, void *buffer, size_t capacity, size_t *got)
{
    plb_status status = PLB_AGAIN;
    int i;
    for (i = 0; i < STEPS && (status = read_now(e, buffer, capacity, got)) == PLB_AGAIN; i++)
        turn(10);
    return status;
}

/* Reads and throws away until the stream ends in one way or the other. */
static plb_status read_to_end(end *e)
{
    plb_status status;
    size_t got;
    do
        status = read_wait(e, received, sizeof received, &got);
    while (status == PLB_OK);
    return status;
}

/* Has the bytes go from one end to the other, calling again only when called back. Are all there, and in order? */
static bool transfer(end *from, end *to, size_t size)
{
    size_t up = 0, down = 0, part;
    bool can_write = true;
    unsigned writes = from->writes;
    plb_status status = PLB_OK;
    int i;
    memset(received, 0, sizeof received);
    for (i = 0; i < STEPS && down < size; i++) {
        while (can_write && up < size) {
            status = write_now(from, sent + up, size - up, &part);
            up += part;
            can_write = status == PLB_OK;
        }
        while (down < size && read_now(to, received + down, size - down, &part) == PLB_OK)
            down += part;
        if (status != PLB_OK && status != PLB_AGAIN)
            return false;
        if (down < size)
            turn(10);
        can_write = can_write || from->writes > writes;
        writes = from->writes;
    }
    return down == size && memcmp(sent, received, size) == 0;
}

static plb_status shut(end *e)
{
    return io->shutdown(io->self, e->stream);
}

/* ==== LWIP WITHOUT MEMORY ========================================================================================= */

/* Everything that a connection goes through. What is refused for lack of memory is asked for again. */
static bool whole_life(void)
{
    pair p;
    plb_status status = PLB_ERR_MEMORY;
    int tries;
    p.addr = any_port();
    for (tries = 0; tries < 40 && (status == PLB_ERR_MEMORY || status == PLB_ERR_LIMIT); tries++)
        status = listen_at(&p.listener, &p.addr);
    if (status != PLB_OK)
        return false;
    for (tries = 0; tries < 40 && !connect_pair(&p); tries++)
        drop(&p.client, PLB_CLOSE_ABORT);
    if (tries == 40 || !transfer(&p.client, &p.server, BULK) || shut(&p.client) != PLB_OK ||
        read_to_end(&p.server) != PLB_END || !transfer(&p.server, &p.client, BULK))
        return false;
    drop(&p.server, PLB_CLOSE_GRACEFUL);
    if (read_to_end(&p.client) != PLB_END)
        return false;
    close_pair(&p);
    return becomes_used(0, 0);
}

/* The n-th call finds no memory, for n = 1, 2, 3, ... until there is no n-th; then several in a row. */
TEST a_call_without_memory_costs_no_byte(call what)
{
    static const unsigned runs[] = {1, 12};
    unsigned n, i, made;
    for (i = 0; i < 2; i++) {
        n = 0;
        do {
            set_failing(what, ++n, runs[i]);
            ASSERT(whole_life());
            made = calls_made();
            if (n > 12)
                n += n / 4;
        } while (made >= n);
        ASSERT(n > 1); /* it was called at all */
    }
    PASS();
}

/* Nothing is on its way that an acknowledgement could come for. */
TEST a_write_without_memory_is_called_back_all_the_same(void)
{
    pair p;
    size_t taken;
    ASSERT(open_pair(&p));
    set_failing(CALL_TCP_WRITE, 1, UINT_MAX);
    ASSERT_EQ(PLB_AGAIN, write_now(&p.client, sent, BULK, &taken));
    ASSERT_EQ(0, taken);
    ASSERT(calls_made() > 1); /* with less, too */
    ASSERT_EQ(PLB_AGAIN, io->watch(io->self, p.client.stream, PLB_EVENT_WRITE));
    ASSERT_EQ(0, p.client.writes);
    ASSERT(reaches(&p.client.writes, 1));
    ASSERT_EQ(PLB_AGAIN, write_now(&p.client, sent, BULK, &taken));
    set_failing(CALL_NONE, 0, 0);
    ASSERT(reaches(&p.client.writes, 2));
    ASSERT(transfer(&p.client, &p.server, BULK));
    close_pair(&p);
    PASS();
}

/* By the port, not only when lwIP's own timer comes by. */
TEST segments_that_could_not_leave_are_sent_later(void)
{
    pair p;
    size_t got;
    ASSERT(open_pair(&p));
    set_failing(CALL_TCP_OUTPUT, 1, 3);
    ASSERT_EQ(PLB_OK, write_now(&p.client, sent, 300, &got));
    ASSERT_EQ(300, got);
    for (int i = 0; i < STEPS && calls_made() < 4; i++)
        turn(10);
    ASSERT_EQ(4, calls_made());
    ASSERT_EQ(PLB_OK, read_wait(&p.server, received, sizeof received, &got));
    ASSERT_EQ(300, got);
    close_pair(&p);
    PASS();
}

static unsigned packets_refused(unsigned of)
{
    unsigned refused;
    LOCK_TCPIP_CORE();
    refused = of - lwip_netif_full;
    UNLOCK_TCPIP_CORE();
    return refused;
}

/* lwIP alone would wait for its time-out of three seconds. */
TEST a_connection_whose_first_segment_found_no_room_is_asked_for_again(void)
{
    plb_addr silent = address(LWIP_NETIF_SILENT ":80");
    unsigned before = sys_now();
    end e;
    LOCK_TCPIP_CORE();
    lwip_netif_full = 4;
    UNLOCK_TCPIP_CORE();
    ASSERT_EQ(PLB_AGAIN, connect_to(&e, &silent));
    ASSERT_EQ(1, packets_refused(4));
    for (int i = 0; i < STEPS && packets_refused(4) < 4; i++)
        turn(10);
    ASSERT_EQ(4, packets_refused(4));
    ASSERT(sys_now() - before < 2500);
    drop(&e, PLB_CLOSE_ABORT);
    PASS();
}

TEST a_close_without_memory_is_made_later(void)
{
    pair p;
    ASSERT(open_pair(&p));
    set_failing(CALL_TCP_CLOSE, 1, UINT_MAX);
    ASSERT(transfer(&p.server, &p.client, 100));
    drop(&p.server, PLB_CLOSE_GRACEFUL);
    stay_quiet();
    ASSERT(is_used(3, 0));
    ASSERT(reaches(&failing.calls, 3));
    set_failing(CALL_NONE, 0, 0);
    ASSERT_EQ(PLB_END, read_to_end(&p.client));
    ASSERT(becomes_used(2, 0));
    close_pair(&p);
    PASS();
}

TEST a_port_can_end_while_closes_are_pending(void)
{
    pair p;
    ASSERT(open_pair(&p));
    set_failing(CALL_TCP_CLOSE, 1, UINT_MAX);
    drop(&p.server, PLB_CLOSE_GRACEFUL);
    close_port();
    set_failing(CALL_NONE, 0, 0);
    open_port(NULL);
    PASS();
}

/* ==== PCBS THAT GO ================================================================================================ */

TEST a_connection_that_is_reset_before_accept_gives_its_stream_back(void)
{
    pair p;
    p.addr = any_port();
    ASSERT_EQ(PLB_OK, listen_at(&p.listener, &p.addr));
    ASSERT_EQ(PLB_AGAIN, connect_to(&p.client, &p.addr));
    ASSERT(becomes_used(2, 1));
    drop(&p.client, PLB_CLOSE_ABORT);
    ASSERT(becomes_used(1, 0));
    ASSERT_EQ(PLB_AGAIN, accept_now(&p.listener, &p.server));
    drop(&p.listener, PLB_CLOSE_GRACEFUL);
    PASS();
}

TEST a_reset_calls_both_directions(void)
{
    pair p;
    size_t part;
    int quiet = 0;
    ASSERT(open_pair(&p));
    while (quiet < 4) {
        if (write_now(&p.client, sent, BULK, &part) == PLB_OK) {
            quiet = 0;
        } else {
            quiet++;
            turn(30);
        }
    }
    p.client.writes = 0;
    ASSERT_EQ(PLB_AGAIN, read_now(&p.client, received, 1, &part));
    drop(&p.server, PLB_CLOSE_ABORT);
    ASSERT(reaches(&p.client.reads, 1));
    ASSERT(reaches(&p.client.writes, 1));
    stay_quiet();
    ASSERT(p.client.reads == 1 && p.client.writes == 1);
    close_pair(&p);
    PASS();
}

TEST what_came_before_a_reset_is_read_before_it(void)
{
    pair p;
    size_t got;
    ASSERT(open_pair(&p));
    ASSERT_EQ(PLB_OK, write_now(&p.client, sent, 300, &got));
    ASSERT(io->watch(io->self, p.server.stream, PLB_EVENT_READ) == PLB_OK || reaches(&p.server.reads, 1));
    drop(&p.client, PLB_CLOSE_ABORT);
    stay_quiet();
    ASSERT_EQ(PLB_ERR_RESET, write_now(&p.server, sent, 1, &got));
    ASSERT_EQ(PLB_OK, read_now(&p.server, received, sizeof received, &got));
    ASSERT_EQ(300, got);
    ASSERT_MEM_EQ(sent, received, 300);
    ASSERT_EQ(PLB_ERR_RESET, read_now(&p.server, received, sizeof received, &got));
    ASSERT_EQ(PLB_ERR_RESET, shut(&p.server));
    close_pair(&p);
    PASS();
}

TEST a_reset_after_shutdown_is_no_end(void)
{
    pair p;
    ASSERT(open_pair(&p));
    ASSERT_EQ(PLB_OK, shut(&p.client));
    ASSERT_EQ(PLB_END, read_to_end(&p.server));
    drop(&p.server, PLB_CLOSE_ABORT);
    ASSERT_EQ(PLB_ERR_RESET, read_to_end(&p.client));
    close_pair(&p);
    PASS();
}

TEST a_reset_ends_a_pending_close(void)
{
    pair p;
    ASSERT(open_pair(&p));
    set_failing(CALL_TCP_CLOSE, 1, UINT_MAX);
    drop(&p.server, PLB_CLOSE_GRACEFUL);
    ASSERT(is_used(3, 0));
    drop(&p.client, PLB_CLOSE_ABORT);
    ASSERT(becomes_used(1, 0));
    close_pair(&p);
    PASS();
}

/* lwIP frees a pcb in TIME_WAIT without a word; whoever kept it would touch freed memory. */
TEST a_pcb_that_ended_both_ways_is_let_go(bool at_once)
{
    pair p;
    plb_stream_info info;
    size_t got;
    ASSERT(open_pair(&p));
    ASSERT_EQ(PLB_OK, shut(&p.client));
    if (!at_once)
        ASSERT_EQ(PLB_END, read_to_end(&p.server));
    ASSERT_EQ(PLB_OK, shut(&p.server));
    ASSERT_EQ(PLB_END, read_to_end(&p.client));
    ASSERT_EQ(PLB_END, read_to_end(&p.server));
    stay_quiet();
    LOCK_TCPIP_CORE();
    while (tcp_tw_pcbs != NULL)
        tcp_abort(tcp_tw_pcbs);
    UNLOCK_TCPIP_CORE();
    ASSERT_EQ(PLB_END, read_now(&p.client, received, 1, &got));
    ASSERT_EQ(PLB_ERR_IO, io->info(io->self, p.client.stream, &info));
    ASSERT_EQ(PLB_FAMILY_NONE, info.local.family);
    close_pair(&p);
    ASSERT(is_used(0, 0));
    PASS();
}

/* As a timer of TCP's does. */
static void give_up(end *e)
{
    LOCK_TCPIP_CORE();
    tcp_abort((struct tcp_pcb *)((plb_lwip_stream *)(void *)e->stream)->pcb);
    UNLOCK_TCPIP_CORE();
}

TEST a_connection_that_lwip_gives_up_has_timed_out(void)
{
    pair p;
    plb_addr silent = address(LWIP_NETIF_SILENT ":80");
    size_t got;
    ASSERT(open_pair(&p));
    ASSERT_EQ(PLB_AGAIN, read_now(&p.server, received, 1, &got));
    give_up(&p.server);
    ASSERT(reaches(&p.server.reads, 1));
    ASSERT_EQ(PLB_ERR_TIMEOUT, read_now(&p.server, received, 1, &got));
    ASSERT_EQ(PLB_ERR_TIMEOUT, write_now(&p.server, sent, 1, &got));
    close_pair(&p);
    ASSERT_EQ(PLB_AGAIN, connect_to(&p.client, &silent));
    give_up(&p.client);
    ASSERT(reaches(&p.client.connects, 1));
    ASSERT_EQ(PLB_ERR_TIMEOUT, p.client.connected);
    drop(&p.client, PLB_CLOSE_ABORT);
    PASS();
}

/* The callback of connect is due, but was not made yet: it tells of the connection, and the next call of its end. */
TEST a_reset_right_behind_a_connection_is_told_after_it(void)
{
    pair p;
    size_t got;
    p.addr = any_port();
    ASSERT_EQ(PLB_OK, listen_at(&p.listener, &p.addr));
    ASSERT_EQ(PLB_AGAIN, connect_to(&p.client, &p.addr));
    for (int i = 0; i < STEPS && !is_used(2, 1); i++)
        poll(NULL, 0, 1);
    drop(&p.listener, PLB_CLOSE_GRACEFUL);
    poll(NULL, 0, 20);
    ASSERT(reaches(&p.client.connects, 1));
    ASSERT_EQ(PLB_OK, p.client.connected);
    ASSERT_EQ(PLB_ERR_RESET, read_wait(&p.client, received, 1, &got));
    drop(&p.client, PLB_CLOSE_GRACEFUL);
    PASS();
}

/* ==== STREAMS AND WINDOWS ========================================================================================= */

/* More connections than may wait are reset; those that wait are served. */
TEST connections_beyond_those_that_may_wait_are_reset(void)
{
    pair p;
    end clients[WAITING + 2], served;
    size_t i, got, resets = 0;
    p.addr = any_port();
    ASSERT_EQ(PLB_OK, listen_at(&p.listener, &p.addr));
    for (i = 0; i < WAITING + 2; i++)
        ASSERT_EQ(PLB_AGAIN, connect_to(&clients[i], &p.addr));
    for (i = 0; i < WAITING + 2; i++)
        ASSERT(reaches(&clients[i].connects, 1));
    stay_quiet();
    ASSERT(is_used(1 + WAITING + 2, WAITING));
    ASSERT_EQ(1 + WAITING + 2 + WAITING, plb_lwip_in_use(&lw));
    for (i = 0; i < WAITING + 2; i++)
        resets += read_now(&clients[i], received, 1, &got) == PLB_ERR_RESET;
    ASSERT_EQ(2, resets);
    ASSERT_EQ(PLB_OK, accept_now(&p.listener, &served));
    ASSERT(is_used(1 + WAITING + 2 + 1, WAITING - 1));
    drop(&served, PLB_CLOSE_GRACEFUL);
    for (i = 0; i < WAITING + 2; i++)
        drop(&clients[i], PLB_CLOSE_GRACEFUL);
    drop(&p.listener, PLB_CLOSE_GRACEFUL);
    ASSERT(becomes_used(0, 0));
    PASS();
}

/* Who only connects can use all of the streams. */
TEST streams_are_kept_for_accept_only_where_somebody_listens(void)
{
    plb_addr silent = address(LWIP_NETIF_SILENT ":80"), addr = any_port();
    end clients[STREAMS], listener, extra;
    size_t i;
    for (i = 0; i < STREAMS; i++)
        ASSERT_EQ(PLB_AGAIN, connect_to(&clients[i], &silent));
    ASSERT_EQ(PLB_ERR_LIMIT, connect_to(&extra, &silent));
    ASSERT_EQ(PLB_ERR_LIMIT, listen_at(&listener, &addr));
    for (i = 0; i < STREAMS; i++)
        drop(&clients[i], PLB_CLOSE_ABORT);
    ASSERT_EQ(PLB_OK, listen_at(&listener, &addr));
    for (i = 0; i < STREAMS - WAITING - 1; i++)
        ASSERT_EQ(PLB_AGAIN, connect_to(&clients[i], &silent));
    ASSERT_EQ(PLB_ERR_LIMIT, connect_to(&extra, &silent));
    for (i = 0; i < STREAMS - WAITING - 1; i++)
        drop(&clients[i], PLB_CLOSE_ABORT);
    drop(&listener, PLB_CLOSE_GRACEFUL);
    PASS();
}

static void step_few(uint32_t max_ms)
{
    plb_lwip_step(&few, 0);
    step(max_ms < 5 ? max_ms : 5);
}

static bool open_few(size_t count, size_t waiting)
{
    static plb_lwip_stream few_streams[FEW];
    plb_lwip_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.streams = few_streams;
    desc.stream_count = count;
    desc.waiting = waiting;
    turn = step_few;
    has_few = plb_lwip_init(&few, &desc) == PLB_OK;
    return has_few;
}

static plb_status few_listen(pair *p)
{
    plb_status status;
    p->addr = any_port();
    io = plb_lwip_port(&few).io;
    status = listen_at(&p->listener, &p->addr);
    io = plb_lwip_port(&lw).io;
    return status;
}

static plb_status few_accept(pair *p)
{
    plb_status status;
    io = plb_lwip_port(&few).io;
    status = accept_now(&p->listener, &p->server);
    io = plb_lwip_port(&lw).io;
    return status;
}

/* One that listens, one for who comes, one for who is served: `waiting` never takes the last of these. */
TEST three_streams_are_enough_to_serve(size_t waiting)
{
    pair p;
    end second;
    ASSERT(open_few(3, waiting));
    ASSERT_EQ(PLB_OK, few_listen(&p));
    ASSERT_EQ(PLB_AGAIN, few_accept(&p));
    ASSERT_EQ(PLB_AGAIN, connect_to(&p.client, &p.addr));
    ASSERT(reaches(&p.listener.accepts, 1));
    ASSERT_EQ(PLB_OK, few_accept(&p));
    ASSERT_EQ(PLB_AGAIN, connect_to(&second, &p.addr));
    ASSERT(reaches(&second.connects, 1));
    stay_quiet();
    drop(&p.client, PLB_CLOSE_GRACEFUL);
    drop(&p.server, PLB_CLOSE_GRACEFUL);
    ASSERT_EQ(PLB_OK, few_accept(&p));
    drop(&second, PLB_CLOSE_GRACEFUL);
    PASS();
}

/* Nobody who came would ever be accepted. */
TEST a_port_of_two_streams_does_not_listen(void)
{
    pair p;
    ASSERT(open_few(2, 0));
    ASSERT_EQ(PLB_ERR_LIMIT, few_listen(&p));
    PASS();
}

/* A listener that takes all it gets, as servers do; it owns one connection at a time. */
typedef struct greedy {
    end listener, server;
    unsigned served;
} greedy;

static void take_all(void *user, plb_stream *stream, plb_event event, plb_status status)
{
    greedy *g = (greedy *)user;
    plb_stream *accepted;
    const plb_io *of = plb_lwip_port(&few).io;
    (void)event;
    (void)status;
    while (of->accept(of->self, stream, handler_of(&g->server), &accepted) == PLB_OK) {
        if (g->server.stream != NULL)
            abort();
        g->server.stream = accepted;
        g->served++;
    }
}

static plb_status listen_greedily(greedy *g, plb_addr *addr)
{
    const plb_io *of = plb_lwip_port(&few).io;
    plb_listen_desc desc;
    plb_stream_info info;
    plb_handler handler;
    plb_status status;
    handler.fn = take_all;
    handler.user = g;
    memset(g, 0, sizeof *g);
    memset(&desc, 0, sizeof desc);
    desc.addr = any_port();
    status = of->listen(of->self, &desc, handler, &g->listener.stream);
    if (status == PLB_OK && of->info(of->self, g->listener.stream, &info) == PLB_OK)
        *addr = info.local;
    return status;
}

/* Two listeners, always somebody at both, and room for one connection. */
TEST listeners_take_turns_where_streams_are_short(void)
{
    greedy g[2];
    end clients[12];
    plb_addr addrs[2];
    size_t i, j;
    ASSERT(open_few(FEW, 2));
    for (i = 0; i < 2; i++) {
        ASSERT_EQ(PLB_OK, listen_greedily(&g[i], &addrs[i]));
        take_all(&g[i], g[i].listener.stream, PLB_EVENT_ACCEPT, PLB_OK);
    }
    for (i = 0; i < 2; i++) {
        ASSERT_EQ(PLB_AGAIN, connect_to(&clients[i], &addrs[i]));
        ASSERT(reaches(&clients[i].connects, 1));
        stay_quiet();
    }
    for (i = 2; i < 12; i++) {
        j = g[0].server.stream != NULL ? 0 : 1; /* whoever is served comes again */
        ASSERT_EQ_FMT((unsigned)i - 1, g[0].served + g[1].served, "%u");
        ASSERT_EQ(PLB_AGAIN, connect_to(&clients[i], &addrs[j]));
        ASSERT(reaches(&clients[i].connects, 1));
        stay_quiet();
        drop(&g[j].server, PLB_CLOSE_GRACEFUL);
        stay_quiet();
    }
    ASSERT(g[0].served >= 5 && g[1].served >= 5);
    for (i = 0; i < 12; i++)
        drop(&clients[i], PLB_CLOSE_ABORT);
    PASS();
}

static unsigned window_of(end *e)
{
    unsigned window;
    LOCK_TCPIP_CORE();
    window = (unsigned)((struct tcp_pcb *)((plb_lwip_stream *)(void *)e->stream)->pcb)->rcv_wnd;
    UNLOCK_TCPIP_CORE();
    return window;
}

/* A writer can be ahead of its reader by what both buffers hold, and no more. */
TEST a_reader_that_stops_closes_the_window(void)
{
    pair p;
    size_t total = 0, done = 0, part;
    int quiet;
    ASSERT(open_pair(&p));
    ASSERT(window_of(&p.server) > TCP_WND / 2);
    for (quiet = 0; quiet < 10;) {
        if (write_now(&p.client, sent + total % 1000, 1000, &part) == PLB_OK) {
            quiet = 0;
            total += part;
        } else {
            quiet++;
            turn(20);
        }
    }
    ASSERT(total <= (size_t)TCP_WND + TCP_SND_BUF);
    ASSERT(window_of(&p.server) < TCP_MSS);
    while (done < total && read_wait(&p.server, received, sizeof received, &part) == PLB_OK)
        done += part;
    ASSERT_EQ_FMT(total, done, "%zu");
    ASSERT(window_of(&p.server) > TCP_WND / 2);
    ASSERT(transfer(&p.client, &p.server, BULK));
    close_pair(&p);
    PASS();
}

/* Nagle's algorithm would hold the second until the first is acknowledged. */
TEST small_writes_leave_at_once(void)
{
    pair p;
    size_t taken;
    bool left;
    ASSERT(open_pair(&p));
    ASSERT_EQ(PLB_OK, write_now(&p.server, sent, 10, &taken));
    ASSERT_EQ(PLB_OK, write_now(&p.server, sent, 10, &taken));
    LOCK_TCPIP_CORE();
    left = ((struct tcp_pcb *)((plb_lwip_stream *)(void *)p.server.stream)->pcb)->unsent == NULL;
    UNLOCK_TCPIP_CORE();
    ASSERT(left);
    close_pair(&p);
    PASS();
}

/* lwIP hands those over whose bytes were all header, or came before. */
TEST pbufs_without_bytes_are_no_bytes(void)
{
    static const u16_t sizes[] = {0, 3, 0, 0, 4, 0};
    pair p;
    struct pbuf *chain = NULL;
    struct tcp_pcb *pcb;
    size_t i, got;
    ASSERT(open_pair(&p));
    ASSERT_EQ(PLB_AGAIN, io->watch(io->self, p.server.stream, PLB_EVENT_READ));
    LOCK_TCPIP_CORE();
    pcb = (struct tcp_pcb *)((plb_lwip_stream *)(void *)p.server.stream)->pcb;
    for (i = 0; i < 6; i++) {
        struct pbuf *next = pbuf_alloc(PBUF_RAW, sizes[i], PBUF_RAM);
        memcpy(next->payload, i == 1 ? "one" : "four", sizes[i]);
        if (chain == NULL)
            chain = next;
        else
            pbuf_cat(chain, next);
    }
    pcb->recv(pcb->callback_arg, pcb, chain, ERR_OK);
    UNLOCK_TCPIP_CORE();
    ASSERT(reaches(&p.server.reads, 1));
    ASSERT_EQ(PLB_OK, read_now(&p.server, received, 3, &got));
    ASSERT_EQ(3, got);
    ASSERT_EQ(PLB_OK, io->watch(io->self, p.server.stream, PLB_EVENT_READ));
    ASSERT_EQ(PLB_OK, read_now(&p.server, received + 3, 100, &got));
    ASSERT_EQ(4, got);
    ASSERT_MEM_EQ("onefour", received, 7);
    ASSERT_EQ(PLB_AGAIN, io->watch(io->self, p.server.stream, PLB_EVENT_READ));
    close_pair(&p);
    PASS();
}

TEST a_source_port_serves_one_connection_to_a_peer(void)
{
    plb_peer peer;
    plb_stream_info info;
    end first, second;
    memset(&peer, 0, sizeof peer);
    memset(&first, 0, sizeof first);
    peer.addr = address(LWIP_NETIF_SILENT ":80");
    peer.source = address(LWIP_NETIF_IPV4 ":40001");
    ASSERT_EQ(PLB_AGAIN, io->connect(io->self, &peer, handler_of(&first), &first.stream));
    ASSERT_EQ(PLB_OK, io->info(io->self, first.stream, &info));
    ASSERT_EQ(0, plb_addr_compare(&peer.source, &info.local));
    ASSERT_EQ(PLB_ERR_IN_USE, io->connect(io->self, &peer, handler_of(&second), &second.stream));
    ASSERT(second.stream == NULL);
    drop(&first, PLB_CLOSE_ABORT);
    PASS();
}

TEST what_the_port_cannot_do_is_named(void)
{
    const plb_dgram *dgram = plb_lwip_port(&lw).dgram;
    plb_listen_desc desc;
    plb_peer peer;
    plb_tls tls;
    end e;
    plb_stream *stream;
    memset(&desc, 0, sizeof desc);
    memset(&peer, 0, sizeof peer);
    memset(&tls, 0, sizeof tls);
    desc.addr = any_port();
    desc.reuse_port = true;
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, io->listen(io->self, &desc, handler_of(&e), &stream));
    desc.reuse_port = false;
    desc.tls = &tls;
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, io->listen(io->self, &desc, handler_of(&e), &stream));
    desc.tls = NULL;
    desc.addr = address("10.99.0.7:80");
    ASSERT_EQ(PLB_ERR_ADDRESS, io->listen(io->self, &desc, handler_of(&e), &stream));
    ASSERT_EQ(PLB_ERR_ADDRESS, dgram->open(dgram->self, &desc.addr, NULL, handler_of(&e), &stream));
    desc.addr = address("[fd99::7]:80");
    ASSERT_EQ(PLB_ERR_ADDRESS, io->listen(io->self, &desc, handler_of(&e), &stream));
    peer.addr = address(LWIP_NETIF_SILENT ":80");
    peer.tls = &tls;
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, io->connect(io->self, &peer, handler_of(&e), &stream));
    peer.tls = NULL;
    peer.source = address("[" LWIP_NETIF_IPV6 "]:1");
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, io->connect(io->self, &peer, handler_of(&e), &stream));
    peer.source = address("10.99.0.7:1");
    ASSERT_EQ(PLB_ERR_ADDRESS, io->connect(io->self, &peer, handler_of(&e), &stream));
    peer.addr = address("unix:/x");
    peer.source.family = PLB_FAMILY_NONE;
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, io->connect(io->self, &peer, handler_of(&e), &stream));
    peer.addr = peer.source = address("[" LWIP_NETIF_IPV6 "]:80");
    peer.source.scope = 256; /* lwIP's zones have 8 bits */
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, io->connect(io->self, &peer, handler_of(&e), &stream));
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, dgram->open(dgram->self, NULL, &peer.source, handler_of(&e), &stream));
    ASSERT(stream == NULL);
    ASSERT_EQ(PLB_OK, dgram->open(dgram->self, &peer.addr, NULL, handler_of(&e), &stream));
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, dgram->send(dgram->self, stream, &peer.source, "x", 1));
    dgram->close(dgram->self, stream);
    ASSERT(is_used(0, 0));
    PASS();
}

/* ==== DATAGRAMS =================================================================================================== */

/* Each call may fail; the next one works. What lwIP's thread has no memory for is lost, and only that. */
TEST a_datagram_without_memory_is_lost_and_no_more(call what)
{
    const plb_dgram *dgram = plb_lwip_port(&lw).dgram;
    plb_addr addr = any_port();
    plb_stream_info info;
    plb_status status;
    end e, f;
    size_t got;
    int i;
    memset(&e, 0, sizeof e);
    memset(&f, 0, sizeof f);
    ASSERT_EQ(PLB_OK, dgram->open(dgram->self, &addr, NULL, handler_of(&e), &e.stream));
    ASSERT_EQ(PLB_OK, dgram->info(dgram->self, e.stream, &info));
    set_failing(what, 1, 1);
    status = dgram->open(dgram->self, NULL, &info.local, handler_of(&f), &f.stream);
    if (status != PLB_OK) {
        ASSERT(f.stream == NULL);
        ASSERT_EQ(PLB_OK, dgram->open(dgram->self, NULL, &info.local, handler_of(&f), &f.stream));
    }
    status = dgram->send(dgram->self, f.stream, NULL, "one", 3);
    ASSERT(what == CALL_UDP_SEND || what == CALL_PBUF_ALLOC ? status == PLB_ERR_MEMORY : status == PLB_OK);
    set_failing(CALL_PBUF_ALLOC, 2, what == CALL_PBUF_ALLOC); /* the second is the receiver's */
    ASSERT_EQ(PLB_OK, dgram->send(dgram->self, f.stream, NULL, "two", 3));
    for (i = 0; i < QUIET; i++)
        poll(NULL, 0, 5);
    ASSERT_EQ(PLB_OK, dgram->send(dgram->self, f.stream, NULL, "three", 5));
    for (got = 0; got != 5;) {
        status = dgram->receive(dgram->self, e.stream, received, sizeof received, &got, NULL);
        ASSERT(status == PLB_OK || (status == PLB_AGAIN && reaches(&e.reads, e.reads + 1)));
    }
    ASSERT_MEM_EQ("three", received, 5);
    dgram->close(dgram->self, e.stream);
    dgram->close(dgram->self, f.stream);
    ASSERT(is_used(0, 0));
    PASS();
}

TEST a_socket_keeps_a_few_datagrams(void)
{
    const plb_dgram *dgram = plb_lwip_port(&lw).dgram;
    plb_addr addr = any_port();
    plb_stream_info info;
    end e;
    uint8_t i, count = 0;
    size_t got;
    memset(&e, 0, sizeof e);
    ASSERT_EQ(PLB_OK, dgram->open(dgram->self, &addr, NULL, handler_of(&e), &e.stream));
    ASSERT_EQ(PLB_OK, dgram->info(dgram->self, e.stream, &info));
    for (i = 0; i < PLB_LWIP_DATAGRAMS + 4; i++)
        ASSERT_EQ(PLB_OK, dgram->send(dgram->self, e.stream, &info.local, &i, 1));
    poll(NULL, 0, 30);
    while (dgram->receive(dgram->self, e.stream, received, sizeof received, &got, &addr) == PLB_OK) {
        ASSERT_EQ(count, received[0]);
        ASSERT_EQ(0, plb_addr_compare(&addr, &info.local));
        count++;
    }
    ASSERT_EQ(PLB_LWIP_DATAGRAMS, count);
    ASSERT_EQ(PLB_OK, dgram->send(dgram->self, e.stream, &info.local, "x", 1));
    dgram->send(dgram->self, e.stream, &info.local, "y", 1);
    ASSERT(reaches(&e.reads, 1));
    PASS(); /* the port ends with a socket, and with datagrams that wait */
}

/* A pbuf's length has 16 bits, and what the port puts in front of a datagram must not count. */
TEST the_longest_datagram_arrives_whole(void)
{
    const plb_dgram *dgram = plb_lwip_port(&lw).dgram;
    plb_addr addr = any_port();
    plb_stream_info info;
    end e;
    size_t got;
    memset(&e, 0, sizeof e);
    ASSERT_EQ(PLB_OK, dgram->open(dgram->self, &addr, NULL, handler_of(&e), &e.stream));
    ASSERT_EQ(PLB_OK, dgram->info(dgram->self, e.stream, &info));
    ASSERT_EQ(PLB_AGAIN, dgram->receive(dgram->self, e.stream, received, sizeof received, &got, NULL));
    ASSERT_EQ(PLB_OK, dgram->send(dgram->self, e.stream, &info.local, sent, 65507));
    ASSERT_EQ(PLB_ERR_ARGUMENT, dgram->send(dgram->self, e.stream, &info.local, sent, 65508));
    ASSERT(reaches(&e.reads, 1));
    ASSERT_EQ(PLB_OK, dgram->receive(dgram->self, e.stream, received, sizeof received, &got, NULL));
    ASSERT_EQ_FMT((size_t)65507, got, "%zu");
    ASSERT_MEM_EQ(sent, received, 65507);
    dgram->close(dgram->self, e.stream);
    PASS();
}

/* ==== NAMES =======================================================================================================
   Debian's lwIP has no DNS client: the port is built with LWIP_DNS for a client of the tests' own. */

static struct {
    err_t answer; /* what the call returns */
    dns_found_callback found[QUERIES];
    void *arg[QUERIES];
    unsigned asked;
    bool hasty; /* tells of its failure before the call returns */
} dns;

static ip_addr_t dns_address;

err_t dns_gethostbyname_addrtype(const char *hostname, ip_addr_t *addr, dns_found_callback found, void *arg, u8_t type)
{
    if (strcmp(hostname, "host.test") != 0 || type != LWIP_DNS_ADDRTYPE_DEFAULT)
        abort();
    if (dns.answer == ERR_OK)
        *addr = dns_address;
    if (dns.answer == ERR_INPROGRESS) {
        dns.found[dns.asked % QUERIES] = found;
        dns.arg[dns.asked % QUERIES] = arg;
        dns.asked++;
        if (dns.hasty)
            found(hostname, NULL, arg);
    }
    return dns.answer;
}

/* lwIP answers the n-th question, in its thread. */
static void answer_in_thread(void *user)
{
    size_t n = (size_t)(uintptr_t)user;
    dns.found[n]("host.test", dns.answer == ERR_INPROGRESS ? &dns_address : NULL, dns.arg[n]);
}

static void answer(size_t n)
{
    if (tcpip_callback_wait(answer_in_thread, (void *)(uintptr_t)n) != ERR_OK)
        abort();
}

typedef struct asker {
    unsigned answers;
    plb_status status;
    plb_addr addr;
    plb_query *query;
} asker;

static void on_answer(void *user, plb_status status, const plb_addr *addrs, size_t count)
{
    asker *a = (asker *)user;
    a->answers++;
    a->status = status;
    if (count != (status == PLB_OK))
        abort();
    if (count > 0)
        a->addr = addrs[0];
}

static plb_status ask(asker *a, uint32_t timeout_ms)
{
    const plb_names *names = plb_lwip_port(&lw).names;
    memset(a, 0, sizeof *a);
    return names->resolve(names->self, "host.test", 8080, timeout_ms, on_answer, a, &a->query);
}

static void prepare_dns(err_t result)
{
    memset(&dns, 0, sizeof dns);
    dns.answer = result;
    IP_ADDR4(&dns_address, 192, 0, 2, 7);
}

TEST a_name_is_answered_at_once_or_later(bool later)
{
    plb_addr expected = address("192.0.2.7:8080");
    asker a;
    prepare_dns(later ? ERR_INPROGRESS : ERR_OK);
    ASSERT_EQ(PLB_AGAIN, ask(&a, 5000));
    if (later) {
        stay_quiet();
        answer(0);
    }
    ASSERT_EQ(0, a.answers); /* never inside a call */
    ASSERT(reaches(&a.answers, 1));
    ASSERT_EQ(PLB_OK, a.status);
    ASSERT_EQ(0, plb_addr_compare(&expected, &a.addr));
    stay_quiet();
    ASSERT_EQ(1, a.answers);
    PASS();
}

TEST a_name_that_is_none_fails(err_t result)
{
    asker a;
    prepare_dns(result);
    ASSERT_EQ(PLB_AGAIN, ask(&a, 5000));
    if (result == ERR_INPROGRESS) {
        dns.answer = ERR_VAL;
        answer(0);
    }
    ASSERT(reaches(&a.answers, 1));
    ASSERT_EQ(PLB_ERR_NAME, a.status);
    PASS();
}

/* lwIP goes on looking: its query is in use until it has an answer, which nobody hears. */
TEST a_late_answer_finds_nobody(bool cancelled)
{
    const plb_names *names = plb_lwip_port(&lw).names;
    asker a, b, c;
    prepare_dns(ERR_INPROGRESS);
    ASSERT_EQ(PLB_AGAIN, ask(&a, 20));
    ASSERT_EQ(PLB_AGAIN, ask(&b, 5000));
    if (cancelled) {
        names->cancel(names->self, a.query);
        stay_quiet();
    } else {
        ASSERT(reaches(&a.answers, 1));
        ASSERT_EQ(PLB_ERR_TIMEOUT, a.status);
    }
    ASSERT_EQ(PLB_ERR_LIMIT, ask(&c, 5000));
    answer(0);
    stay_quiet();
    ASSERT_EQ(cancelled ? 0 : 1, a.answers);
    ASSERT_EQ(PLB_AGAIN, ask(&c, 5000));
    answer(1);
    answer(0);
    names->cancel(names->self, c.query); /* answered, but not told yet */
    ASSERT(reaches(&b.answers, 1));
    ASSERT_EQ(PLB_OK, b.status);
    stay_quiet();
    ASSERT_EQ(0, c.answers);
    PASS();
}

/* dns_send does it where it finds a server gone. */
TEST a_name_that_fails_inside_the_call_is_told_later(bool cancelled)
{
    const plb_names *names = plb_lwip_port(&lw).names;
    asker a;
    int i;
    prepare_dns(ERR_INPROGRESS);
    dns.hasty = true;
    for (i = 0; i < QUERIES + 1; i++) {
        ASSERT_EQ(PLB_AGAIN, ask(&a, 5000));
        ASSERT_EQ(0, a.answers);
        if (cancelled)
            names->cancel(names->self, a.query);
        else
            ASSERT(reaches(&a.answers, 1));
        stay_quiet();
        ASSERT_EQ(cancelled ? 0 : 1, a.answers);
        ASSERT_EQ(cancelled ? PLB_OK : PLB_ERR_NAME, a.status);
    }
    PASS();
}

TEST a_question_without_memory_may_be_asked_again(void)
{
    asker a;
    int i;
    for (i = 0; i < QUERIES + 1; i++) {
        prepare_dns(ERR_MEM);
        ASSERT_EQ(PLB_ERR_MEMORY, ask(&a, 5000));
    }
    prepare_dns(ERR_OK);
    ASSERT_EQ(PLB_AGAIN, ask(&a, 5000));
    ASSERT(reaches(&a.answers, 1));
    PASS();
}

TEST an_answer_after_the_port_has_ended_is_ignored(void)
{
    asker a;
    prepare_dns(ERR_INPROGRESS);
    ASSERT_EQ(PLB_AGAIN, ask(&a, 5000));
    close_port();
    answer(0);
    open_port(NULL);
    stay_quiet();
    ASSERT_EQ(0, a.answers);
    PASS();
}

/* ==== LOOP ======================================================================================================== */

typedef struct counted_task {
    plb_task task;
    unsigned polls;
    uint32_t delay_ms;
    bool stop, leave;
    plb_task *victim; /* to be removed by the next poll */
} counted_task;

static uint32_t poll_counted(void *user)
{
    counted_task *t = (counted_task *)user;
    t->polls++;
    if (t->leave)
        plb_lwip_remove(&lw, &t->task);
    if (t->victim != NULL)
        plb_lwip_remove(&lw, t->victim);
    if (t->stop)
        plb_lwip_stop(&lw);
    return t->delay_ms;
}

static void add_task(counted_task *t, uint32_t delay_ms)
{
    memset(t, 0, sizeof *t);
    t->task.poll = poll_counted;
    t->task.user = t;
    t->delay_ms = delay_ms;
    plb_lwip_add(&lw, &t->task);
}

TEST tasks_are_polled_when_they_are_due(void)
{
    counted_task slow, quick, gone;
    uint32_t before;
    add_task(&slow, PLB_FOREVER);
    add_task(&gone, PLB_FOREVER);
    add_task(&quick, 50);
    gone.leave = true;
    step(PLB_FOREVER); /* new tasks do not wait */
    ASSERT(slow.polls == 1 && gone.polls == 1 && quick.polls == 1);
    before = sys_now();
    step(PLB_FOREVER);
    ASSERT(sys_now() - before >= 40);
    ASSERT(slow.polls == 2 && gone.polls == 1 && quick.polls == 2);
    plb_lwip_remove(&lw, &gone.task);
    plb_lwip_remove(&lw, &quick.task);
    step(10);
    ASSERT_EQ(PLB_FOREVER, plb_lwip_timeout(&lw));
    plb_lwip_remove(&lw, &slow.task);
    PASS();
}

/* lwIP's clock wraps at 2^32: a wait of more than half of that looks like a step back. */
TEST a_task_of_next_month_has_the_clock_read_before(void)
{
    counted_task t;
    add_task(&t, 30u * 24 * 3600 * 1000);
    step(0);
    ASSERT(plb_lwip_timeout(&lw) <= UINT32_C(1) << 30);
    ASSERT(plb_lwip_timeout(&lw) > 7 * 24 * 3600 * 1000);
    plb_lwip_remove(&lw, &t.task);
    PASS();
}

TEST a_task_may_remove_the_next_one(void)
{
    counted_task first, second, third;
    add_task(&first, PLB_FOREVER);
    add_task(&second, PLB_FOREVER);
    add_task(&third, PLB_FOREVER);
    first.victim = &second.task;
    step(0);
    ASSERT(first.polls == 1 && second.polls == 0 && third.polls == 1);
    PASS();
}

static void *stop_main(void *user)
{
    (void)user;
    poll(NULL, 0, 20);
    plb_lwip_stop(&lw);
    return NULL;
}

TEST run_ends_when_it_is_told_to(void)
{
    counted_task t;
    pthread_t thread;
    add_task(&t, 0);
    t.stop = true;
    plb_lwip_run(&lw);
    ASSERT_EQ(1, t.polls);
    plb_lwip_remove(&lw, &t.task);
    plb_lwip_stop(&lw);
    plb_lwip_run(&lw); /* told before */
    ASSERT_EQ(0, pthread_create(&thread, NULL, stop_main, NULL));
    plb_lwip_run(&lw);
    pthread_join(thread, NULL);
    PASS();
}

static void *wake_main(void *user)
{
    int i;
    (void)user;
    for (i = 0; i < 20000; i++)
        io->wake(io->self);
    return NULL;
}

/* No wake is lost, and none is left over to end a later wait for nothing. */
TEST wakes_of_many_threads_leave_nothing_behind(void)
{
    counted_task t;
    pthread_t threads[3];
    unsigned before;
    size_t i;
    add_task(&t, 1);
    for (i = 0; i < 3; i++)
        ASSERT_EQ(0, pthread_create(&threads[i], NULL, wake_main, NULL));
    for (i = 0; i < 2000; i++)
        step(1);
    for (i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    step(0);
    t.delay_ms = PLB_FOREVER;
    step(0);
    before = sys_now();
    step(60);
    ASSERT(sys_now() - before >= 50);
    plb_lwip_remove(&lw, &t.task);
    PASS();
}

TEST a_wake_that_meets_the_end_of_a_wait_counts_once(void)
{
    counted_task t;
    uint32_t before;
    add_task(&t, PLB_FOREVER);
    step(0);
    wake_late = true;
    step(10);
    ASSERT_EQ(2, t.polls);
    before = sys_now();
    step(60);
    ASSERT(sys_now() - before >= 50);
    wake();
    step(PLB_FOREVER);
    ASSERT_EQ(4, t.polls);
    plb_lwip_remove(&lw, &t.task);
    PASS();
}

/* A loop of the program's own, with something of its own to wait for. */
static sys_sem_t own_wait;
static unsigned own_wakes;

static void on_wake(void *user)
{
    (void)user;
    __atomic_add_fetch(&own_wakes, 1, __ATOMIC_RELAXED);
    sys_sem_signal(&own_wait);
}

static void own_turn(uint32_t max_ms)
{
    uint32_t delay = plb_lwip_timeout(&lw);
    if (delay > max_ms)
        delay = max_ms;
    if (delay > 0)
        sys_arch_sem_wait(&own_wait, delay);
    plb_lwip_step(&lw, PLB_FOREVER); /* does not wait */
}

TEST a_loop_of_the_programs_own_is_woken(void)
{
    plb_lwip_desc desc;
    counted_task t;
    memset(&desc, 0, sizeof desc);
    desc.on_wake = on_wake;
    close_port();
    ASSERT_EQ(ERR_OK, sys_sem_new(&own_wait, 0));
    open_port(&desc);
    turn = own_turn;
    own_wakes = 0;
    add_task(&t, PLB_FOREVER);
    ASSERT_EQ_FMT(1u, own_wakes, "%u");
    io->wake(io->self); /* it was told already */
    ASSERT_EQ_FMT(1u, own_wakes, "%u");
    own_turn(1000);
    ASSERT_EQ(1, t.polls);
    io->wake(io->self);
    ASSERT_EQ_FMT(2u, own_wakes, "%u");
    ASSERT(whole_life());
    ASSERT(__atomic_load_n(&own_wakes, __ATOMIC_RELAXED) > 2);
    plb_lwip_remove(&lw, &t.task);
    close_port();
    sys_sem_free(&own_wait);
    open_port(NULL);
    PASS();
}

static void fill_with_a(void *user, void *bytes, size_t count)
{
    (void)user;
    memset(bytes, 'a', count);
}

TEST random_bytes_are_the_programs_if_it_has_some(void)
{
    plb_lwip_desc desc;
    const plb_random *random_port;
    char bytes[3] = {0};
    memset(&desc, 0, sizeof desc);
    desc.random = fill_with_a;
    close_port();
    open_port(&desc);
    random_port = plb_lwip_port(&lw).random;
    random_port->fill(random_port->self, bytes, 2);
    ASSERT_STR_EQ("aa", bytes);
    PASS();
}

TEST a_port_needs_streams(void)
{
    plb_lwip other;
    plb_lwip_desc desc;
    memset(&desc, 0, sizeof desc);
    ASSERT_EQ(PLB_ERR_ARGUMENT, plb_lwip_init(&other, &desc));
    PASS();
}

/* ==== A BALANCER AND A PROXY ====================================================================================== */

#define ORIGINS     2
#define CONNECTIONS 3 /* of clients at a time */
#define BODY        150000
#define REQUESTS    24

typedef struct origin origin;

/* One connection to an origin, which answers each request with a long body. */
typedef struct origin_connection {
    origin *owner;
    plb_stream *stream;
    char request[1024];
    size_t request_size;
    char head[64];
    size_t head_left, body_left;
} origin_connection;

struct origin {
    plb_stream *listener;
    plb_addr addr;
    origin_connection connections[8];
    unsigned served;
};

static void serve(origin_connection *c);

static void on_origin_connection(void *user, plb_stream *stream, plb_event event, plb_status status)
{
    (void)stream;
    (void)event;
    (void)status;
    serve((origin_connection *)user);
}

static void hang_up(origin_connection *c)
{
    io->close(io->self, c->stream, PLB_CLOSE_GRACEFUL);
    c->stream = NULL;
}

/* Writes what is left of an answer. False: there is no room, or the connection is gone. */
static bool serve_answer(origin_connection *c)
{
    while (c->head_left + c->body_left > 0) {
        plb_chunk chunks[2];
        plb_status status;
        size_t taken, of_head, at = (BODY - c->body_left) % BULK;
        chunks[0].data = c->head + strlen(c->head) - c->head_left;
        chunks[0].size = c->head_left;
        chunks[0].flags = 0;
        chunks[1].data = sent + at;
        chunks[1].size = c->body_left < BULK - at ? c->body_left : BULK - at;
        chunks[1].flags = PLB_CHUNK_CONSTANT;
        status = io->write(io->self, c->stream, chunks, 2, &taken);
        if (status != PLB_OK && status != PLB_AGAIN)
            hang_up(c);
        if (status != PLB_OK)
            return false;
        of_head = taken < c->head_left ? taken : c->head_left;
        c->head_left -= of_head;
        c->body_left -= taken - of_head;
    }
    return true;
}

static void serve(origin_connection *c)
{
    size_t got;
    plb_status status = PLB_OK;
    while (serve_answer(c)) {
        status =
            io->read(io->self, c->stream, c->request + c->request_size, sizeof c->request - 1 - c->request_size, &got);
        if (status == PLB_AGAIN)
            return;
        if (status != PLB_OK) {
            hang_up(c);
            return;
        }
        c->request_size += got;
        c->request[c->request_size] = '\0';
        if (strstr(c->request, "\r\n\r\n") == NULL)
            continue;
        c->request_size = 0;
        c->owner->served += strstr(c->request, "GET /data") != NULL;
        c->body_left = strstr(c->request, "GET /data") != NULL ? BODY : 2;
        snprintf(c->head, sizeof c->head, "HTTP/1.1 200 OK\r\nContent-Length: %u\r\n\r\n", (unsigned)c->body_left);
        c->head_left = strlen(c->head);
    }
}

static void on_origin(void *user, plb_stream *stream, plb_event event, plb_status status)
{
    origin *o = (origin *)user;
    plb_status accepted = PLB_OK;
    size_t i;
    (void)event;
    (void)status;
    for (i = 0; i < 8 && accepted == PLB_OK; i++) {
        plb_handler handler;
        handler.fn = on_origin_connection;
        handler.user = &o->connections[i];
        if (o->connections[i].stream != NULL)
            continue;
        memset(&o->connections[i], 0, sizeof o->connections[i]);
        o->connections[i].owner = o;
        accepted = io->accept(io->self, stream, handler, &o->connections[i].stream);
        if (accepted == PLB_OK)
            serve(&o->connections[i]);
    }
}

static bool start_origin(origin *o)
{
    plb_listen_desc desc;
    plb_stream_info info;
    plb_handler handler;
    memset(o, 0, sizeof *o);
    memset(&desc, 0, sizeof desc);
    desc.addr = any_port();
    handler.fn = on_origin;
    handler.user = o;
    if (io->listen(io->self, &desc, handler, &o->listener) != PLB_OK ||
        io->info(io->self, o->listener, &info) != PLB_OK)
        return false;
    o->addr = info.local;
    on_origin(o, o->listener, PLB_EVENT_ACCEPT, PLB_OK);
    return true;
}

static void kill_origin(origin *o)
{
    size_t i;
    if (o->listener != NULL)
        io->close(io->self, o->listener, PLB_CLOSE_ABORT);
    o->listener = NULL;
    for (i = 0; i < 8; i++) {
        if (o->connections[i].stream != NULL)
            io->close(io->self, o->connections[i].stream, PLB_CLOSE_ABORT);
        o->connections[i].stream = NULL;
    }
}

static plb_status pick_upstream(void *user, plb_session *session, plb_pick *pick)
{
    plb_request request;
    memset(&request, 0, sizeof request);
    request.exclude = plb_session_tried(session, &request.exclude_count);
    return plb_begin((plb_balancer *)user, &request, pick);
}

static bool try_another(void *user, plb_session *session, const plb_pick *pick, plb_status status)
{
    (void)user;
    (void)session;
    (void)pick;
    (void)status;
    return true;
}

typedef struct site {
    origin origins[ORIGINS];
    char texts[ORIGINS][PLB_ADDR_TEXT_MAX];
    plb_balancer *lb;
    plb_proxy *proxy;
    plb_addr addr; /* where the proxy listens */
} site;

static bool open_balancer(site *s)
{
    plb_balancer_desc desc;
    plb_static_desc list;
    plb_check checks[2];
    const char *addresses[ORIGINS];
    size_t i;
    memset(&desc, 0, sizeof desc);
    memset(&list, 0, sizeof list);
    for (i = 0; i < ORIGINS; i++) {
        if (!start_origin(&s->origins[i]))
            return false;
        plb_addr_format(&s->origins[i].addr, s->texts[i], sizeof s->texts[i]);
        addresses[i] = s->texts[i];
    }
    list.addresses = addresses;
    list.address_count = ORIGINS;
    checks[0] = plb_tcp_check(NULL);
    checks[1] = plb_http_check(NULL);
    desc.port = plb_lwip_port(&lw);
    desc.discovery = plb_static(&list);
    desc.checks = checks;
    desc.check_count = 2;
    desc.check_every_ms = 50;
    desc.start_unhealthy = true;
    return plb_create(&desc, &s->lb) == PLB_OK;
}

static bool open_site(site *s)
{
    plb_proxy_desc desc;
    plb_listen_desc listen;
    memset(s, 0, sizeof *s);
    memset(&desc, 0, sizeof desc);
    memset(&listen, 0, sizeof listen);
    if (!open_balancer(s))
        return false;
    desc.port = plb_lwip_port(&lw);
    desc.user = s->lb;
    desc.upstream_peer = pick_upstream;
    desc.fail_to_connect = try_another;
    listen.addr = any_port();
    if (plb_proxy_create(&desc, &s->proxy) != PLB_OK || plb_proxy_listen(s->proxy, &listen, &s->addr) != PLB_OK)
        return false;
    plb_lwip_add(&lw, plb_balancer_task(s->lb));
    plb_lwip_add(&lw, plb_proxy_task(s->proxy));
    return true;
}

static void close_site(site *s)
{
    size_t i;
    plb_lwip_remove(&lw, plb_balancer_task(s->lb));
    plb_lwip_remove(&lw, plb_proxy_task(s->proxy));
    plb_proxy_destroy(s->proxy);
    plb_destroy(s->lb);
    for (i = 0; i < ORIGINS; i++)
        kill_origin(&s->origins[i]);
}

static bool becomes_ready(site *s, size_t which, bool ready)
{
    int i;
    for (i = 0; i < STEPS && plb_ready(s->lb, &s->origins[which].addr, 0) != ready; i++)
        turn(10);
    return plb_ready(s->lb, &s->origins[which].addr, 0) == ready;
}

/* Bytes of a whole answer, or 0 if it is another than what an origin says. */
static size_t get(end *client)
{
    static const char request[] = "GET /data HTTP/1.1\r\nHost: a\r\n\r\n";
    static char answer_bytes[BODY + 512];
    plb_chunk chunk;
    size_t size = 0, wanted = 0, got, i, taken;
    chunk.data = request;
    chunk.size = sizeof request - 1;
    chunk.flags = PLB_CHUNK_CONSTANT;
    if (io->write(io->self, client->stream, &chunk, 1, &taken) != PLB_OK || taken != chunk.size)
        return 0;
    while (wanted == 0 || size < wanted) {
        char *body;
        if (read_wait(client, answer_bytes + size, sizeof answer_bytes - 1 - size, &got) != PLB_OK)
            return 0;
        size += got;
        answer_bytes[size] = '\0';
        body = strstr(answer_bytes, "\r\n\r\n");
        if (wanted == 0 && body != NULL)
            wanted = (size_t)(body + 4 - answer_bytes) + BODY;
    }
    if (size != wanted || memcmp(answer_bytes, "HTTP/1.1 200", 12) != 0)
        return 0;
    for (i = 0; i < BODY; i++) {
        if ((uint8_t)answer_bytes[size - BODY + i] != sent[i % BULK])
            return 0;
    }
    return size;
}

static bool open_clients(site *s, end *clients)
{
    size_t i;
    for (i = 0; i < CONNECTIONS; i++) {
        if (connect_to(&clients[i], &s->addr) != PLB_AGAIN || !reaches(&clients[i].connects, 1))
            return false;
    }
    return true;
}

TEST a_balancer_and_a_proxy_run_on_it(void)
{
    static site s;
    end clients[CONNECTIONS];
    unsigned before;
    size_t i;
    ASSERT(open_site(&s));
    ASSERT(becomes_ready(&s, 0, true) && becomes_ready(&s, 1, true));
    ASSERT(open_clients(&s, clients));
    for (i = 0; i < REQUESTS; i++)
        ASSERT(get(&clients[i % CONNECTIONS]) > BODY);
    ASSERT(s.origins[0].served > 0 && s.origins[1].served > 0);
    ASSERT_EQ(REQUESTS, s.origins[0].served + s.origins[1].served);
    kill_origin(&s.origins[0]);
    for (i = 0; i < REQUESTS; i++) /* those that meet it first are sent elsewhere */
        ASSERT(get(&clients[i % CONNECTIONS]) > BODY);
    ASSERT(becomes_ready(&s, 0, false));
    before = s.origins[1].served;
    for (i = 0; i < REQUESTS; i++)
        ASSERT(get(&clients[i % CONNECTIONS]) > BODY);
    ASSERT_EQ(before + REQUESTS, s.origins[1].served);
    for (i = 0; i < CONNECTIONS; i++)
        drop(&clients[i], PLB_CLOSE_GRACEFUL);
    close_site(&s);
    ASSERT(becomes_used(0, 0));
    PASS();
}

/* ==== SUITES ====================================================================================================== */

SUITE(without_memory)
{
    static const call calls[] = {CALL_TCP_NEW,   CALL_TCP_BIND,   CALL_TCP_LISTEN,   CALL_TCP_CONNECT,
                                 CALL_TCP_WRITE, CALL_TCP_OUTPUT, CALL_TCP_SHUTDOWN, CALL_TCP_CLOSE};
    static const call datagram_calls[] = {CALL_UDP_NEW, CALL_UDP_BIND, CALL_UDP_CONNECT, CALL_UDP_SEND,
                                          CALL_PBUF_ALLOC};
    size_t i;
    SET_SETUP(setup, NULL);
    SET_TEARDOWN(teardown, NULL);
    for (i = 0; i < sizeof calls / sizeof *calls; i++)
        RUN_TEST1(a_call_without_memory_costs_no_byte, calls[i]);
    RUN_TEST(a_write_without_memory_is_called_back_all_the_same);
    RUN_TEST(segments_that_could_not_leave_are_sent_later);
    RUN_TEST(a_connection_whose_first_segment_found_no_room_is_asked_for_again);
    RUN_TEST(a_close_without_memory_is_made_later);
    RUN_TEST(a_port_can_end_while_closes_are_pending);
    for (i = 0; i < sizeof datagram_calls / sizeof *datagram_calls; i++)
        RUN_TEST1(a_datagram_without_memory_is_lost_and_no_more, datagram_calls[i]);
    RUN_TEST(a_socket_keeps_a_few_datagrams);
    RUN_TEST(the_longest_datagram_arrives_whole);
}

SUITE(pcbs_that_go)
{
    SET_SETUP(setup, NULL);
    SET_TEARDOWN(teardown, NULL);
    RUN_TEST(a_connection_that_is_reset_before_accept_gives_its_stream_back);
    RUN_TEST(a_reset_calls_both_directions);
    RUN_TEST(what_came_before_a_reset_is_read_before_it);
    RUN_TEST(a_reset_after_shutdown_is_no_end);
    RUN_TEST(a_reset_ends_a_pending_close);
    RUN_TEST1(a_pcb_that_ended_both_ways_is_let_go, false);
    RUN_TEST1(a_pcb_that_ended_both_ways_is_let_go, true);
    RUN_TEST(a_connection_that_lwip_gives_up_has_timed_out);
    RUN_TEST(a_reset_right_behind_a_connection_is_told_after_it);
}

SUITE(streams_and_windows)
{
    SET_SETUP(setup, NULL);
    SET_TEARDOWN(teardown, NULL);
    RUN_TEST(connections_beyond_those_that_may_wait_are_reset);
    RUN_TEST(streams_are_kept_for_accept_only_where_somebody_listens);
    RUN_TEST1(three_streams_are_enough_to_serve, 0);
    RUN_TEST1(three_streams_are_enough_to_serve, 5);
    RUN_TEST(a_port_of_two_streams_does_not_listen);
    RUN_TEST(listeners_take_turns_where_streams_are_short);
    RUN_TEST(a_reader_that_stops_closes_the_window);
    RUN_TEST(small_writes_leave_at_once);
    RUN_TEST(pbufs_without_bytes_are_no_bytes);
    RUN_TEST(a_source_port_serves_one_connection_to_a_peer);
    RUN_TEST(what_the_port_cannot_do_is_named);
}

SUITE(names)
{
    SET_SETUP(setup, NULL);
    SET_TEARDOWN(teardown, NULL);
    RUN_TEST1(a_name_is_answered_at_once_or_later, false);
    RUN_TEST1(a_name_is_answered_at_once_or_later, true);
    RUN_TEST1(a_name_that_is_none_fails, ERR_VAL);
    RUN_TEST1(a_name_that_is_none_fails, ERR_ARG);
    RUN_TEST1(a_name_that_is_none_fails, ERR_INPROGRESS);
    RUN_TEST1(a_late_answer_finds_nobody, false);
    RUN_TEST1(a_late_answer_finds_nobody, true);
    RUN_TEST1(a_name_that_fails_inside_the_call_is_told_later, false);
    RUN_TEST1(a_name_that_fails_inside_the_call_is_told_later, true);
    RUN_TEST(a_question_without_memory_may_be_asked_again);
    RUN_TEST(an_answer_after_the_port_has_ended_is_ignored);
}

SUITE(the_loop)
{
    SET_SETUP(setup, NULL);
    SET_TEARDOWN(teardown, NULL);
    RUN_TEST(tasks_are_polled_when_they_are_due);
    RUN_TEST(a_task_of_next_month_has_the_clock_read_before);
    RUN_TEST(a_task_may_remove_the_next_one);
    RUN_TEST(run_ends_when_it_is_told_to);
    RUN_TEST(wakes_of_many_threads_leave_nothing_behind);
    RUN_TEST(a_wake_that_meets_the_end_of_a_wait_counts_once);
    RUN_TEST(a_loop_of_the_programs_own_is_woken);
    RUN_TEST(random_bytes_are_the_programs_if_it_has_some);
    RUN_TEST(a_port_needs_streams);
    RUN_TEST(a_balancer_and_a_proxy_run_on_it);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(without_memory);
    RUN_SUITE(pcbs_that_go);
    RUN_SUITE(streams_and_windows);
    RUN_SUITE(names);
    RUN_SUITE(the_loop);
    GREATEST_MAIN_END();
}
