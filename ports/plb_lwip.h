/* plb_lwip.h - plb_io over lwIP's raw API, and the loop that drives it. MIT license, see LICENSE.

   WHAT IT IS
   Everything that plb_port asks of a platform, for lwIP 2.1 and later: TCP streams and datagrams over IPv4 and IPv6,
   the clock of lwIP, its random numbers, its DNS client. It uses the callbacks of tcp.h, udp.h and dns.h, so that it
   serves a single main loop (NO_SYS=1) as well as a system with the tcpip thread.

   QUICK START
       #define PINGORA_LB_IMPLEMENTATION
       #include "pingora_lb.h"
       #define PLB_LWIP_IMPLEMENTATION
       #include "plb_lwip.h"

       static plb_lwip lw;
       static plb_lwip_stream streams[32];

       plb_lwip_desc settings = {0};
       settings.streams = streams;
       settings.stream_count = 32;
       plb_lwip_init(&lw, &settings);             // after lwip_init or tcpip_init
       desc.port = plb_lwip_port(&lw);            // lend it to a balancer or a proxy
       plb_create(&desc, &lb);
       plb_lwip_add(&lw, plb_balancer_task(lb));
       for (;;) {
           netif_of_yours_poll(&netif);           // NO_SYS=1 only: feed lwIP and its timers
           sys_check_timeouts();
           plb_lwip_step(&lw, PLB_FOREVER);       // waits with the tcpip thread at work; never waits with NO_SYS=1
       }

   THREE WAYS TO RUN IT
   NO_SYS=1                What you see above. A step never waits. A loop that wants to sleep asks plb_lwip_timeout how
                           long it may (and sys_timeouts_sleeptime, for lwIP), and lets an interrupt, or `on_wake` of
                           the descriptor, end the sleep.
   NO_SYS=0, core locking  (LWIP_TCPIP_CORE_LOCKING=1) A thread of the program's steps; plb_lwip_run does that. The port
                           takes the core lock around its calls of lwIP and never holds it while it calls back. The
                           thread must not hold the lock when it calls the port, nor be the tcpip thread.
   NO_SYS=0 without it     Everything happens in the tcpip thread: give an `on_wake` that hands a function to
                           tcpip_try_callback; that function calls plb_lwip_step(&lw, 0) and has sys_timeout call it
                           again after plb_lwip_timeout, but after 100 ms at most, for a mailbox that is full loses what
                           on_wake hands to it. Balancers and proxies are made in the tcpip thread, too.

   DEFINES
   PLB_LWIP_IMPLEMENTATION   In one C or C++ file: emits the code.
   PLB_LWIP_DATAGRAMS        Datagrams that wait in one socket; more are dropped. 8 if not defined, at most 255.
   PLB_STATIC                See pingora_lb.h.
   PLB_NO_NAMES              See pingora_lb.h: there are no queries then, and lwIP's DNS client is not used.
   PLB_NO_IPV6               See pingora_lb.h: IPv6 is not used, even if lwIP has it.
   Of lwIP's: LWIP_TCP and LWIP_CALLBACK_API are needed, and SYS_LIGHTWEIGHT_PROT with NO_SYS=0. LWIP_UDP=0:
   plb_port.dgram is NULL. LWIP_DNS=0: plb_port.names is NULL. SO_REUSE=1 lets a listener take an address while
   connections of an earlier one linger. TCP_LISTEN_BACKLOG=1 lets connections for which there is no room wait, unmade,
   with those who ask for them; without it they are reset. Debian's lwIP (liblwip-dev) compiles under -std=gnu99, or
   -std=c99 with -D_GNU_SOURCE.

   THREADS
   A port belongs to one thread at a time: the one that steps it. Every call below is that thread's (or anybody's as
   long as nobody steps) unless it says otherwise. Of the tables, plb_io.wake and plb_clock may be called from any
   thread. From interrupts too wake may be called with NO_SYS=1 and SYS_LIGHTWEIGHT_PROT=1, or with an `on_wake` that
   allows it.

   MEMORY
   The port allocates nothing. The program gives it streams: one for each connection, listener and socket. On a 32-bit
   machine a stream takes 40 bytes, a query 176 and the port 264; on a 64-bit one 72, 208 and 472. What lwIP allocates
   for itself (pcbs, segments, pbufs) comes from lwIP's pools. Bytes that arrived and that nobody has read stay in the
   pbufs they came in, at most TCP_WND a stream; a peer that sends them one by one has a pbuf for each. The code takes
   some 5 KiB of flash on a Cortex-M3 (-Os).

   WHEN THINGS RUN SHORT
   Without a free stream connect and listen return PLB_ERR_LIMIT, without a pcb PLB_ERR_MEMORY. accept returns
   PLB_AGAIN, and its callback comes when a stream has been closed; until then connections wait, as many as
   plb_lwip_desc.waiting says. A write for which lwIP has no memory (ERR_MEM) is tried with less, then returns
   PLB_AGAIN; the callback comes when bytes were acknowledged or after 20 ms. Segments that could not leave, and closes
   that lwIP could not do, are tried again each 20 ms, so that nothing is lost; a stream that is being closed counts as
   used until lwIP took it over.

   GOOD TO KNOW
   - Only what is read opens the window again: a reader that stops stops its peer.
   - Chunks with PLB_CHUNK_CONSTANT are not copied, unless LWIP_NETIF_TX_SINGLE_PBUF forbids that.
   - Nagle's algorithm is off. An IPv6 listener is IPv6 only.
   - lwIP does not tell why it gave up a connection (ERR_ABRT): that is reported as PLB_ERR_TIMEOUT.
   - lwIP tells a datagram socket nothing about ports where nobody listens: no PLB_ERR_REFUSED there.
   - A listener cannot share its address: reuse_port is PLB_ERR_UNSUPPORTED. A backlog has 255 at most.
   - Closing gracefully leaves delivery to lwIP. A peer that goes on sending after that sees a reset: whoever cares
     sends shutdown first and reads to the end.
   - Who closes first waits for two TCP_MSL, 120 s, in a pcb of lwIP's (TIME_WAIT; not in a stream). Without free pcbs
     lwIP takes the oldest of them. Until then it refuses a client that comes from the same port again: one that asks
     for thousands of connections, each closed by this side, stalls. Kept connections, or a smaller TCP_MSL, avoid that.
   - A name has one address: what dns_gethostbyname_addrtype gives for LWIP_DNS_ADDRTYPE_DEFAULT. */

#ifndef PLB_LWIP_H
#define PLB_LWIP_H

#ifndef PINGORA_LB_H
#include "../pingora_lb.h"
#endif

#include <lwip/opt.h>
#include <lwip/sys.h>

typedef struct plb_lwip plb_lwip;

/* Private: a circular list. */
typedef struct plb_lwip_link {
    struct plb_lwip_link *prev, *next;
} plb_lwip_link;

/* Room for a connection, a listener or a datagram socket. All members are private. */
typedef struct plb_lwip_stream {
    plb_lwip_link
        link; /* the first member: among the free, those with something to tell, or those that wait for accept */
    plb_lwip *lw;
    plb_handler handler;
    void *pcb; /* NULL: lwIP has given it back */
    union {
        struct {
            struct pbuf *first, *last; /* what came and was not read yet */
        } in;
        plb_lwip_link waiting; /* a listener's: connections that wait for accept */
    } u;
    uint8_t kind, armed, owed, status;
    bool at_end;
    uint8_t datagrams;
} plb_lwip_stream;

#ifndef PLB_NO_NAMES
/* Room for a resolution on its way. All members are private. */
typedef struct plb_lwip_query {
    plb_lwip_link link; /* the first member: among the free, or those with an answer */
    plb_lwip *lw;
    plb_names_fn fn;
    void *user;
    plb_timer deadline;
    plb_addr addr;
    uint8_t state, status;
} plb_lwip_query;
#endif

typedef struct plb_lwip_desc {
    plb_lwip_stream *streams; /* the caller's; in place until plb_lwip_deinit. Needed */
    size_t stream_count;      /* at least 3 where the port listens: with fewer, listen returns PLB_ERR_LIMIT */
    size_t waiting; /* how many of them, once the port listens, are kept for connections that came and were not accepted
                       yet, of all listeners together; all but 2 at most; 0: a quarter */
#ifndef PLB_NO_NAMES
    plb_lwip_query *queries; /* the caller's, for names (LWIP_DNS); NULL: none. They stay in place as long as lwIP looks
                                 for a name, even after plb_lwip_deinit: another port needs others until then */
    size_t query_count;
#endif

    /* Random bytes for seeds; NULL: LWIP_RAND where lwIP has that, else plb_port.random is NULL. */
    void (*random)(void *user, void *bytes, size_t count);

    /* Called when a step has something to do, at most once until the next step begins: from lwIP's callbacks and from
       wake, in whatever thread (or interrupt) that is, with the core locked or not; it may call nothing of the port's.
       NULL: a step waits for a semaphore of lwIP's (NO_SYS=0), or the loop steps anyway (NO_SYS=1). Given: steps never
       wait. */
    void (*on_wake)(void *user);
    void *user; /* handed to both */
} plb_lwip_desc;

/* The port. All members are private. */
struct plb_lwip {
    plb_io io;
    plb_clock clock;
    plb_random random;
#ifndef PLB_NO_NAMES
    plb_names names;
#endif
    plb_dgram dgram;
    plb_lwip_desc desc;

    plb_lwip_link free_streams, ready; /* the core lock guards these and all streams and queries */
    plb_lwip_link free_queries, answered;
    size_t held, waiting, listeners; /* streams that callers have, that wait for accept, that listen */
    size_t after_accept;             /* the index behind the listener that accepted last */

    plb_timers timers;
    plb_timer retry;
    plb_task *tasks, *next_task;
    uint64_t tasks_due_ms;

    uint8_t stirred; /* SYS_ARCH_PROTECT guards the rest: why the next step must not wait */
    bool asleep;     /* whoever stirs it is to end a wait */
    bool stop_wanted;
#if !NO_SYS
    sys_sem_t stir;
#endif
};

/* Prepares a port in the caller's memory; `desc` is read during the call only, what it points to is kept. lwIP is
   initialized by then. PLB_OK, or PLB_ERR_ARGUMENT (no streams), PLB_ERR_MEMORY (no semaphore; NO_SYS=0). */
PLB_API plb_status plb_lwip_init(plb_lwip *lw, const plb_lwip_desc *desc);

/* Closes the streams that are still open, drops outstanding resolutions without a callback; afterwards lwIP knows
   nothing of the port any more, desc.queries aside. Remove tasks, and destroy what the port was lent to, before. Not
   from a callback or a task of this port. */
PLB_API void plb_lwip_deinit(plb_lwip *lw);

/* The tables to lend; they belong to the port and live as long as it does. Any thread. */
PLB_API plb_port plb_lwip_port(plb_lwip *lw);

/* Adds a task (the caller's, in place until it is removed; in no loop yet): it is polled in the next step, which does
   not wait for that, then after every step and when the delay it returned is over. From callbacks and tasks too. */
PLB_API void plb_lwip_add(plb_lwip *lw, plb_task *task);

/* Removes a task; nothing happens if it is not there. From callbacks and tasks too, the task's own poll included. */
PLB_API void plb_lwip_remove(plb_lwip *lw, plb_task *task);

/* One turn: with NO_SYS=0 and without desc.on_wake, waits until something happens, but no longer than max_ms (0: not at
   all; PLB_FOREVER: no limit of the caller's) and no longer than plb_lwip_timeout; then makes the callbacks and polls
   the tasks. Not from a callback or a task. */
PLB_API void plb_lwip_step(plb_lwip *lw, uint32_t max_ms);

/* Milliseconds until a step has something to do even if nothing stirs; 0: now; PLB_FOREVER: never. Less where that is
   more than 12 days ahead, for lwIP's clock wraps. */
PLB_API uint32_t plb_lwip_timeout(plb_lwip *lw);

/* How many streams are not free now: those that callers have, those that wait to be accepted, and those that lwIP could
   not take over yet. To see how many a program needs, or that it gives all of them back. */
PLB_API size_t plb_lwip_in_use(plb_lwip *lw);

#if !NO_SYS
/* Steps until plb_lwip_stop; at once if that was called since the last run ended. For steps that wait. */
PLB_API void plb_lwip_run(plb_lwip *lw);

/* Makes plb_lwip_run return after the step it is in. Any thread. */
PLB_API void plb_lwip_stop(plb_lwip *lw);
#endif

#endif /* PLB_LWIP_H */

/* ================================================================================================================== */
/* ==== IMPLEMENTATION ============================================================================================== */
/* ================================================================================================================== */

#ifdef PLB_LWIP_IMPLEMENTATION
#ifndef PLB__LWIP_IMPLEMENTED
#define PLB__LWIP_IMPLEMENTED

#include <lwip/dns.h>
#include <lwip/init.h>
#include <lwip/ip_addr.h>
#include <lwip/netif.h>
#include <lwip/pbuf.h>
#include <lwip/tcp.h>
#include <lwip/tcpip.h>
#include <lwip/udp.h>

#if LWIP_VERSION_MAJOR < 2 || (LWIP_VERSION_MAJOR == 2 && LWIP_VERSION_MINOR < 1)
#error "plb_lwip.h: lwIP 2.1 or later is needed"
#endif
#if !LWIP_TCP || !LWIP_CALLBACK_API
#error "plb_lwip.h: LWIP_TCP and LWIP_CALLBACK_API are needed"
#endif
#if !NO_SYS && !SYS_LIGHTWEIGHT_PROT
#error "plb_lwip.h: several threads need SYS_LIGHTWEIGHT_PROT"
#endif

#ifndef PLB_LWIP_DATAGRAMS
#define PLB_LWIP_DATAGRAMS 8
#endif

#if LWIP_DNS && !defined(PLB_NO_NAMES)
#define PLB__LW_NAMES 1
#else
#define PLB__LW_NAMES 0
#endif
#if LWIP_IPV6 && !defined(PLB_NO_IPV6)
#define PLB__LW_IPV6 1
#else
#define PLB__LW_IPV6 0
#endif

#define PLB__LW_RETRY_MS 20                  /* what lwIP had no memory for is tried again after this */
#define PLB__LW_LONGEST  (UINT32_C(1) << 30) /* ms between two readings of lwIP's clock, which wraps at 2^32 */
#define PLB__LW_LEAST    128                 /* bytes: a write that finds no memory for as few is not cut further */

/* What a stream is. */
enum {
    PLB__LW_FREE = 0,
    PLB__LW_LISTENER,
    PLB__LW_WAITING, /* a connection that nobody has accepted yet */
    PLB__LW_CONNECTING,
    PLB__LW_CONNECTED,
    PLB__LW_CLOSING, /* its caller is through with it, and lwIP could not be yet */
    PLB__LW_DGRAM
};

/* Callbacks that a stream was promised; a listener reads. */
enum { PLB__LW_CONNECT = 1, PLB__LW_READ = 2, PLB__LW_WRITE = 4 };

/* What lwIP had no memory for. */
enum {
    PLB__LW_OUTPUT = 1, /* segments are to leave */
    PLB__LW_FIN = 2,    /* the end of the stream is to be queued */
    PLB__LW_CLOSE = 4,  /* the pcb is to be handed over */
    PLB__LW_ROOM = 8    /* bytes are to be queued; their writer waits */
};

/* Why a step must not wait. */
enum { PLB__LW_EVENTS = 1, PLB__LW_TASKS = 2 };

/* ==== CORE: its lock, and what ends a wait =========================================================================
   With the tcpip thread, the core lock guards streams and queries: lwIP's callbacks run with it, in the tcpip thread or
   inside a call of the port's own (tcp_new may abort a connection to make room). They note what happened and call
   nobody. */

#if NO_SYS
static void plb__lw_lock(void)
{
}

static void plb__lw_unlock(void)
{
}
#else
static void plb__lw_lock(void)
{
    LOCK_TCPIP_CORE();
}

static void plb__lw_unlock(void)
{
    UNLOCK_TCPIP_CORE();
}
#endif

/* Of several, the first wakes whoever sleeps. */
static void plb__lw_stir(plb_lwip *lw, unsigned why)
{
    bool sleeper;
    SYS_ARCH_DECL_PROTECT(level);
    SYS_ARCH_PROTECT(level);
    lw->stirred = (uint8_t)(lw->stirred | why);
    sleeper = lw->asleep;
    lw->asleep = false;
    SYS_ARCH_UNPROTECT(level);
    if (!sleeper)
        return;
    if (lw->desc.on_wake != NULL)
        lw->desc.on_wake(lw->desc.user);
#if !NO_SYS
    else
        sys_sem_signal(&lw->stir);
#endif
}

/* From here on, what stirs is for the next step. */
static void plb__lw_settle(plb_lwip *lw, unsigned why)
{
    SYS_ARCH_DECL_PROTECT(level);
    SYS_ARCH_PROTECT(level);
    lw->stirred = (uint8_t)(lw->stirred & ~why);
    SYS_ARCH_UNPROTECT(level);
}

static bool plb__lw_is_stirred(plb_lwip *lw)
{
    bool stirred;
    SYS_ARCH_DECL_PROTECT(level);
    SYS_ARCH_PROTECT(level);
    stirred = lw->stirred != 0;
    SYS_ARCH_UNPROTECT(level);
    return stirred;
}

/* False: something stirred already. */
static bool plb__lw_fall_asleep(plb_lwip *lw)
{
    bool asleep;
    SYS_ARCH_DECL_PROTECT(level);
    SYS_ARCH_PROTECT(level);
    asleep = lw->asleep = lw->stirred == 0;
    SYS_ARCH_UNPROTECT(level);
    return asleep;
}

/* False: it was woken, so that a signal came or is coming. */
static bool plb__lw_get_up(plb_lwip *lw)
{
    bool asleep;
    SYS_ARCH_DECL_PROTECT(level);
    SYS_ARCH_PROTECT(level);
    asleep = lw->asleep;
    lw->asleep = false;
    SYS_ARCH_UNPROTECT(level);
    return asleep;
}

#if NO_SYS
static plb_status plb__lw_open_wait(plb_lwip *lw)
{
    (void)lw;
    return PLB_OK;
}

static void plb__lw_close_wait(plb_lwip *lw)
{
    (void)lw;
}

static void plb__lw_wait(plb_lwip *lw, uint32_t timeout_ms)
{
    (void)lw;
    (void)timeout_ms;
}
#else
static plb_status plb__lw_open_wait(plb_lwip *lw)
{
    if (lw->desc.on_wake == NULL && sys_sem_new(&lw->stir, 0) != ERR_OK)
        return PLB_ERR_MEMORY;
    return PLB_OK;
}

static void plb__lw_close_wait(plb_lwip *lw)
{
    if (lw->desc.on_wake == NULL)
        sys_sem_free(&lw->stir);
}

/* Whoever finds the sleeper asleep signals once, and each signal is taken: the semaphore never counts above 1. */
static void plb__lw_wait(plb_lwip *lw, uint32_t timeout_ms)
{
    u32_t result;
    if (lw->desc.on_wake != NULL || timeout_ms == 0 || !plb__lw_fall_asleep(lw))
        return;
    result = sys_arch_sem_wait(&lw->stir, timeout_ms == PLB_FOREVER ? 0 : timeout_ms); /* 0: without a limit */
    if (!plb__lw_get_up(lw) && result == SYS_ARCH_TIMEOUT)
        sys_arch_sem_wait(&lw->stir, 0);
}
#endif

/* ==== LISTS ======================================================================================================= */

static void plb__lw_list_init(plb_lwip_link *list)
{
    list->prev = list->next = list;
}

static bool plb__lw_is_linked(const plb_lwip_link *link)
{
    return link->next != link;
}

/* Out of whatever list it is in. */
static void plb__lw_unlink(plb_lwip_link *link)
{
    link->prev->next = link->next;
    link->next->prev = link->prev;
    plb__lw_list_init(link);
}

static void plb__lw_append(plb_lwip_link *list, plb_lwip_link *link)
{
    link->prev = list->prev;
    link->next = list;
    list->prev->next = link;
    list->prev = link;
}

/* The first, taken out, or NULL. Links are the first members of what they link. */
static void *plb__lw_pop(plb_lwip_link *list)
{
    plb_lwip_link *link = list->next;
    if (link == list)
        return NULL;
    plb__lw_unlink(link);
    return link;
}

/* All of one list into an empty other. */
static void plb__lw_move(plb_lwip_link *from, plb_lwip_link *to)
{
    plb_lwip_link *link;
    plb__lw_list_init(to);
    while ((link = (plb_lwip_link *)plb__lw_pop(from)) != NULL)
        plb__lw_append(to, link);
}

/* ==== ADDRESSES AND ERRORS ======================================================================================== */

/* False: lwIP was built without that family, or has no such zone. */
static bool plb__lw_to_ip(const plb_addr *addr, ip_addr_t *out)
{
    memset(out, 0, sizeof *out);
    switch (addr->family) {
#if LWIP_IPV4
    case PLB_FAMILY_IPV4:
        IP_SET_TYPE_VAL(*out, IPADDR_TYPE_V4);
        memcpy(&ip_2_ip4(out)->addr, addr->u.v4, 4);
        return true;
#endif
#if PLB__LW_IPV6
    case PLB_FAMILY_IPV6:
        IP_SET_TYPE_VAL(*out, IPADDR_TYPE_V6);
        memcpy(ip_2_ip6(out)->addr, addr->u.v6, 16);
        ip6_addr_set_zone(ip_2_ip6(out), (u8_t)addr->scope);
        return addr->scope <= 255;
#endif
    default:
        return false;
    }
}

static void plb__lw_from_ip(const ip_addr_t *ip, uint16_t port, plb_addr *out)
{
    memset(out, 0, sizeof *out);
    out->port = port;
#if PLB__LW_IPV6
    if (IP_IS_V6(ip)) {
        out->family = PLB_FAMILY_IPV6;
        out->scope = ip6_addr_zone(ip_2_ip6(ip));
        memcpy(out->u.v6, ip_2_ip6(ip)->addr, 16);
        return;
    }
#endif
#if LWIP_IPV4
    out->family = PLB_FAMILY_IPV4;
    memcpy(out->u.v4, &ip_2_ip4(ip)->addr, 4);
#endif
}

static u8_t plb__lw_type(const plb_addr *addr)
{
    return (u8_t)(addr->family == PLB_FAMILY_IPV6 ? IPADDR_TYPE_V6 : IPADDR_TYPE_V4);
}

#if PLB__LW_IPV6
static bool plb__lw_has_ip6(struct netif *netif, const ip6_addr_t *ip)
{
    s8_t i;
    for (i = 0; i < LWIP_IPV6_NUM_ADDRESSES; i++) {
        if (!ip6_addr_isinvalid(netif_ip6_addr_state(netif, i)) && ip6_addr_cmp_zoneless(netif_ip6_addr(netif, i), ip))
            return true;
    }
    return false;
}
#endif

/* lwIP binds to any address there is. */
static bool plb__lw_is_local(const ip_addr_t *ip)
{
    struct netif *netif;
    if (ip_addr_isany(ip))
        return true;
    NETIF_FOREACH(netif)
    {
#if LWIP_IPV4
        if (IP_IS_V4(ip) && ip4_addr_cmp(netif_ip4_addr(netif), ip_2_ip4(ip)))
            return true;
#endif
#if PLB__LW_IPV6
        if (IP_IS_V6(ip) && plb__lw_has_ip6(netif, ip_2_ip6(ip)))
            return true;
#endif
    }
    return false;
}

/* What a call returned. */
static plb_status plb__lw_status(err_t err)
{
    switch (err) {
    case ERR_OK:
        return PLB_OK;
    case ERR_MEM:
        return PLB_ERR_MEMORY;
    case ERR_BUF: /* the local ports are used up */
        return PLB_ERR_LIMIT;
    case ERR_RTE:
        return PLB_ERR_UNREACHABLE;
    case ERR_USE:
        return PLB_ERR_IN_USE;
    case ERR_CONN:
    case ERR_CLSD:
    case ERR_RST:
    case ERR_ABRT:
        return PLB_ERR_RESET;
    default:
        return PLB_ERR_IO;
    }
}

/* ==== STREAMS: their slots ======================================================================================== */

static plb_lwip_stream *plb__lw_stream(plb_stream *stream)
{
    return (plb_lwip_stream *)(void *)stream;
}

static struct tcp_pcb *plb__lw_tcp(const plb_lwip_stream *stream)
{
    return (struct tcp_pcb *)stream->pcb;
}

/* Streams that callers may have. Some are kept for connections that come, once anybody listens. */
static bool plb__lw_is_full(const plb_lwip *lw)
{
    size_t kept = lw->listeners > 0 ? lw->desc.waiting : 0;
    return lw->held >= lw->desc.stream_count - kept || !plb__lw_is_linked(&lw->free_streams);
}

/* Is there something to tell to those who asked for it? */
static bool plb__lw_can_connect(const plb_lwip_stream *stream)
{
    return stream->kind == PLB__LW_CONNECTED || stream->status != PLB_OK;
}

static bool plb__lw_can_accept(const plb_lwip_stream *listener)
{
    const plb_lwip *lw = listener->lw;
    return plb__lw_is_linked(&listener->u.waiting) && lw->held < lw->desc.stream_count - lw->desc.waiting;
}

static bool plb__lw_can_read(const plb_lwip_stream *stream)
{
    return stream->u.in.first != NULL || stream->at_end || stream->status != PLB_OK;
}

/* Not for a few bytes: the low-water marks are those of lwIP's own sockets. */
static bool plb__lw_can_write(const plb_lwip_stream *stream)
{
    const struct tcp_pcb *pcb = plb__lw_tcp(stream);
    if (stream->status != PLB_OK || pcb == NULL)
        return true;
    return (stream->owed & PLB__LW_ROOM) == 0 && tcp_sndbuf(pcb) > TCP_SNDLOWAT &&
           tcp_sndqueuelen(pcb) < TCP_SNDQUEUELOWAT;
}

/* The one of the callbacks that a stream was promised whose time has come; 0: none. */
static unsigned plb__lw_due(const plb_lwip_stream *stream)
{
    if ((stream->armed & PLB__LW_CONNECT) != 0)
        return plb__lw_can_connect(stream) ? PLB__LW_CONNECT : 0;
    if ((stream->armed & PLB__LW_READ) != 0 &&
        (stream->kind == PLB__LW_LISTENER ? plb__lw_can_accept(stream) : plb__lw_can_read(stream)))
        return PLB__LW_READ;
    if ((stream->armed & PLB__LW_WRITE) != 0 && plb__lw_can_write(stream))
        return PLB__LW_WRITE;
    return 0;
}

/* Something has happened to a stream. */
static void plb__lw_note(plb_lwip_stream *stream)
{
    if (plb__lw_is_linked(&stream->link) || plb__lw_due(stream) == 0)
        return;
    plb__lw_append(&stream->lw->ready, &stream->link);
    plb__lw_stir(stream->lw, PLB__LW_EVENTS);
}

/* One of those that are free, or NULL. */
static plb_lwip_stream *plb__lw_stream_new(plb_lwip *lw, unsigned kind, plb_handler handler)
{
    plb_lwip_stream *stream = (plb_lwip_stream *)plb__lw_pop(&lw->free_streams);
    if (stream == NULL)
        return NULL;
    memset(stream, 0, sizeof *stream);
    plb__lw_list_init(&stream->link);
    stream->lw = lw;
    stream->kind = (uint8_t)kind;
    stream->handler = handler;
    if (kind == PLB__LW_LISTENER)
        plb__lw_list_init(&stream->u.waiting);
    *(kind == PLB__LW_WAITING ? &lw->waiting : &lw->held) += 1;
    lw->listeners += kind == PLB__LW_LISTENER;
    return stream;
}

/* Callers have one stream less: listeners for which there was none may go on. They take turns, for the first of them
   may take all that there is. */
static void plb__lw_note_listeners(plb_lwip *lw)
{
    size_t i;
    for (i = 0; i < lw->desc.stream_count; i++) {
        plb_lwip_stream *stream = &lw->desc.streams[(lw->after_accept + i) % lw->desc.stream_count];
        if (stream->kind == PLB__LW_LISTENER)
            plb__lw_note(stream);
    }
}

static void plb__lw_forget_input(plb_lwip_stream *stream)
{
    struct pbuf *first = stream->u.in.first;
    stream->u.in.first = stream->u.in.last = NULL;
    if (first != NULL)
        pbuf_free(first);
}

/* Its pcb is gone. */
static void plb__lw_stream_delete(plb_lwip_stream *stream)
{
    plb_lwip *lw = stream->lw;
    bool was_full = lw->listeners > 0 && plb__lw_is_full(lw);
    if (stream->kind == PLB__LW_LISTENER)
        lw->listeners--;
    else
        plb__lw_forget_input(stream);
    *(stream->kind == PLB__LW_WAITING ? &lw->waiting : &lw->held) -= 1;
    stream->kind = PLB__LW_FREE;
    stream->armed = stream->owed = 0;
    plb__lw_unlink(&stream->link);
    plb__lw_append(&lw->free_streams, &stream->link);
    if (was_full)
        plb__lw_note_listeners(lw);
}

/* Promises a callback. */
static plb_status plb__lw_arm(plb_lwip_stream *stream, unsigned direction)
{
    stream->armed = (uint8_t)(stream->armed | direction);
    return PLB_AGAIN;
}

/* lwIP had no memory: somebody has to come back to it, even if nothing else ever stirs this stream. */
static void plb__lw_owe(plb_lwip_stream *stream, unsigned what)
{
    plb_lwip *lw = stream->lw;
    stream->owed = (uint8_t)(stream->owed | what);
    if (plb_timer_is_set(&lw->retry))
        return;
    plb_timers_update(&lw->timers, &lw->clock);
    plb_timer_set(&lw->timers, &lw->retry, PLB__LW_RETRY_MS);
}

/* ==== STREAMS: what lwIP tells ==================================================================================== */

/* From now on lwIP tells nothing of a connection. */
static void plb__lw_detach(struct tcp_pcb *pcb)
{
    tcp_arg(pcb, NULL);
    tcp_recv(pcb, NULL);
    tcp_sent(pcb, NULL);
    tcp_err(pcb, NULL);
}

/* Keeps what came, in the pbufs it came in. They are linked one behind the other; no pbuf's tot_len counts what was
   linked later, for with window scaling all of it can exceed 16 bits. */
static void plb__lw_keep(plb_lwip_stream *stream, struct pbuf *p)
{
    if (stream->u.in.first == NULL)
        stream->u.in.first = p;
    else
        stream->u.in.last->next = p;
    while (p->next != NULL)
        p = p->next;
    stream->u.in.last = p;
}

/* Takes `size` bytes from the front of what was kept, and pbufs that are empty. */
static void plb__lw_take(plb_lwip_stream *stream, u16_t size)
{
    struct pbuf *first = stream->u.in.first;
    if (size > 0)
        first = pbuf_free_header(first, size);
    while (first != NULL && first->len == 0) {
        struct pbuf *empty = first;
        first = first->next;
        empty->next = NULL;
        pbuf_free(empty);
    }
    stream->u.in.first = first;
    if (first == NULL)
        stream->u.in.last = NULL;
}

/* After both ends of stream lwIP frees a pcb without a word (tcp_slowtmr, of TIME_WAIT): it must be let go of
   before. */
static void plb__lw_ended(plb_lwip_stream *stream, struct tcp_pcb *pcb)
{
    stream->at_end = true;
    if (pcb->state != CLOSING && pcb->state != TIME_WAIT)
        return;
    plb__lw_detach(pcb);
    stream->pcb = NULL;
    stream->owed = 0;
}

static err_t plb__lw_on_recv(void *arg, struct tcp_pcb *pcb, struct pbuf *p, err_t err)
{
    plb_lwip_stream *stream = (plb_lwip_stream *)arg;
    (void)err;
    if (p == NULL) {
        plb__lw_ended(stream, pcb);
    } else {
        plb__lw_keep(stream, p);
        plb__lw_take(stream, 0);
    }
    plb__lw_note(stream);
    return ERR_OK;
}

static err_t plb__lw_on_sent(void *arg, struct tcp_pcb *pcb, u16_t size)
{
    plb_lwip_stream *stream = (plb_lwip_stream *)arg;
    (void)pcb;
    (void)size;
    stream->owed = (uint8_t)(stream->owed & ~PLB__LW_ROOM);
    plb__lw_note(stream);
    return ERR_OK;
}

static err_t plb__lw_on_connected(void *arg, struct tcp_pcb *pcb, err_t err)
{
    plb_lwip_stream *stream = (plb_lwip_stream *)arg;
    (void)pcb;
    (void)err;
    stream->kind = PLB__LW_CONNECTED;
    plb__lw_note(stream);
    return ERR_OK;
}

/* ERR_CLSD: both ends were sent and received, and the peer has acknowledged it. ERR_ABRT is mostly a timer of TCP's. */
static plb_status plb__lw_why_broken(const plb_lwip_stream *stream, err_t err)
{
    if (err == ERR_CLSD && stream->at_end)
        return PLB_OK;
    if (err == ERR_ABRT)
        return PLB_ERR_TIMEOUT;
    return stream->kind == PLB__LW_CONNECTING ? PLB_ERR_REFUSED : PLB_ERR_RESET;
}

/* The pcb is gone. A connection that nobody has accepted yet goes with it. */
static void plb__lw_on_err(void *arg, err_t err)
{
    plb_lwip_stream *stream = (plb_lwip_stream *)arg;
    stream->pcb = NULL;
    stream->owed = 0;
    if (stream->kind == PLB__LW_WAITING || stream->kind == PLB__LW_CLOSING) {
        plb__lw_stream_delete(stream);
        return;
    }
    stream->status = (uint8_t)plb__lw_why_broken(stream, err);
    plb__lw_note(stream);
}

static void plb__lw_attach(plb_lwip_stream *stream, struct tcp_pcb *pcb)
{
    stream->pcb = pcb;
    tcp_arg(pcb, stream);
    tcp_recv(pcb, plb__lw_on_recv);
    tcp_sent(pcb, plb__lw_on_sent);
    tcp_err(pcb, plb__lw_on_err);
    tcp_nagle_disable(pcb);
}

/* ==== STREAMS: connections ======================================================================================== */

static void plb__lw_output(plb_lwip_stream *stream)
{
    err_t err = tcp_output(plb__lw_tcp(stream));
    if (err == ERR_MEM || err == ERR_BUF)
        plb__lw_owe(stream, PLB__LW_OUTPUT);
}

static plb_status plb__lw_bind_source(struct tcp_pcb *pcb, const plb_addr *source)
{
    ip_addr_t ip;
    err_t err;
    if (source->family == PLB_FAMILY_NONE)
        return PLB_OK;
    if (!plb__lw_to_ip(source, &ip))
        return PLB_ERR_UNSUPPORTED;
    if (!plb__lw_is_local(&ip))
        return PLB_ERR_ADDRESS;
    if (source->port != 0)
        ip_set_option(pcb, SOF_REUSEADDR);
    err = tcp_bind(pcb, &ip, source->port);
    return err == ERR_USE && source->port == 0 ? PLB_ERR_LIMIT : plb__lw_status(err);
}

/* The SYN may not have found a way out. */
static plb_status plb__lw_start(plb_lwip_stream *stream, const plb_peer *peer, const ip_addr_t *ip)
{
    struct tcp_pcb *pcb = plb__lw_tcp(stream);
    plb_status status = plb__lw_bind_source(pcb, &peer->source);
    if (status == PLB_OK)
        status = plb__lw_status(tcp_connect(pcb, ip, peer->addr.port, plb__lw_on_connected));
    if (status != PLB_OK) {
        plb__lw_detach(pcb);
        tcp_abort(pcb);
        return status;
    }
    if (pcb->unsent != NULL)
        plb__lw_owe(stream, PLB__LW_OUTPUT);
    return plb__lw_arm(stream, PLB__LW_CONNECT);
}

static plb_status plb__lw_connect_locked(plb_lwip *lw, const plb_peer *peer, plb_handler handler, const ip_addr_t *ip,
                                         plb_stream **out)
{
    plb_lwip_stream *stream;
    struct tcp_pcb *pcb;
    plb_status status;
    if (plb__lw_is_full(lw))
        return PLB_ERR_LIMIT;
    pcb = tcp_new_ip_type(plb__lw_type(&peer->addr));
    if (pcb == NULL)
        return PLB_ERR_MEMORY;
    stream = plb__lw_stream_new(lw, PLB__LW_CONNECTING, handler);
    plb__lw_attach(stream, pcb);
    status = plb__lw_start(stream, peer, ip);
    if (status == PLB_AGAIN)
        *out = (plb_stream *)(void *)stream;
    else
        plb__lw_stream_delete(stream);
    return status;
}

static plb_status plb__lw_connect(void *self, const plb_peer *peer, plb_handler handler, plb_stream **out)
{
    ip_addr_t ip;
    plb_status status;
    *out = NULL;
    if (peer->tls != NULL || !plb__lw_to_ip(&peer->addr, &ip) ||
        (peer->source.family != PLB_FAMILY_NONE && peer->source.family != peer->addr.family))
        return PLB_ERR_UNSUPPORTED;
    plb__lw_lock();
    status = plb__lw_connect_locked((plb_lwip *)self, peer, handler, &ip, out);
    plb__lw_unlock();
    return status;
}

/* Opens the window by so much. */
static void plb__lw_consumed(plb_lwip_stream *stream, size_t size)
{
    while (size > 0 && stream->pcb != NULL) {
        u16_t part = (u16_t)(size < 0xffffu ? size : 0xffffu);
        tcp_recved(plb__lw_tcp(stream), part);
        size -= part;
    }
}

/* Copies from the front of what was kept. */
static size_t plb__lw_copy_out(plb_lwip_stream *stream, uint8_t *to, size_t capacity)
{
    size_t done = 0;
    while (stream->u.in.first != NULL && done < capacity) {
        const struct pbuf *p = stream->u.in.first;
        u16_t part = (u16_t)(p->len < capacity - done ? p->len : capacity - done);
        memcpy(to + done, p->payload, part);
        done += part;
        plb__lw_take(stream, part);
    }
    return done;
}

/* What came before an end or a reset is read before it. */
static plb_status plb__lw_read(void *self, plb_stream *handle, void *buffer, size_t capacity, size_t *got)
{
    plb_lwip_stream *stream = plb__lw_stream(handle);
    plb_status status;
    (void)self;
    plb__lw_lock();
    *got = plb__lw_copy_out(stream, (uint8_t *)buffer, capacity);
    plb__lw_consumed(stream, *got);
    if (*got > 0)
        status = PLB_OK;
    else if (stream->status != PLB_OK)
        status = (plb_status)stream->status;
    else if (stream->at_end)
        status = PLB_END;
    else
        status = plb__lw_arm(stream, PLB__LW_READ);
    plb__lw_unlock();
    return status;
}

/* Queues of one chunk what there is room and memory for, and adds it to *taken. False: there was less of it than the
   chunk; `*err` is ERR_OK where that is for lack of room, so that an acknowledgement will tell of more. */
static bool plb__lw_queue(struct tcp_pcb *pcb, const plb_chunk *chunk, bool more, size_t *taken, err_t *err)
{
    size_t done = 0;
    *err = ERR_OK;
    while (done < chunk->size && *err == ERR_OK) {
        size_t left = chunk->size - done, room = tcp_sndbuf(pcb), part = left < room ? left : room, tried = part;
        unsigned flags = (chunk->flags & PLB_CHUNK_CONSTANT) != 0 ? 0 : TCP_WRITE_FLAG_COPY;
        if (part == 0 || tcp_sndqueuelen(pcb) >= TCP_SND_QUEUELEN)
            return false;
        if (more || part < left)
            flags |= TCP_WRITE_FLAG_MORE;
        *err = tcp_write(pcb, (const uint8_t *)chunk->data + done, (u16_t)part, (u8_t)flags);
        while (*err == ERR_MEM && part > PLB__LW_LEAST) {
            part /= 2;
            *err = tcp_write(pcb, (const uint8_t *)chunk->data + done, (u16_t)part, (u8_t)flags);
        }
        if (*err != ERR_OK)
            return false;
        done += part;
        *taken += part;
        if (part < tried)
            *err = ERR_MEM;
    }
    return *err == ERR_OK;
}

static plb_status plb__lw_write_locked(plb_lwip_stream *stream, const plb_chunk *chunks, size_t count, size_t *taken)
{
    struct tcp_pcb *pcb = plb__lw_tcp(stream);
    err_t err = ERR_OK;
    size_t i;
    if (stream->status != PLB_OK)
        return (plb_status)stream->status;
    if (pcb == NULL)
        return PLB_ERR_RESET;
    for (i = 0; i < count && i < PLB_CHUNKS_MAX; i++) {
        if (!plb__lw_queue(pcb, &chunks[i], i + 1 < count, taken, &err))
            break;
    }
    if (*taken > 0) {
        plb__lw_output(stream);
        return PLB_OK;
    }
    if (err != ERR_OK && err != ERR_MEM)
        return plb__lw_status(err);
    if (err == ERR_MEM)
        plb__lw_owe(stream, PLB__LW_ROOM);
    return plb__lw_arm(stream, PLB__LW_WRITE);
}

static plb_status plb__lw_write(void *self, plb_stream *handle, const plb_chunk *chunks, size_t count, size_t *taken)
{
    plb_status status;
    (void)self;
    *taken = 0;
    plb__lw_lock();
    status = plb__lw_write_locked(plb__lw_stream(handle), chunks, count, taken);
    plb__lw_unlock();
    return status;
}

static plb_status plb__lw_watch(void *self, plb_stream *handle, plb_event event)
{
    plb_lwip_stream *stream = plb__lw_stream(handle);
    plb_status status = PLB_OK;
    (void)self;
    plb__lw_lock();
    if (event == PLB_EVENT_WRITE ? !plb__lw_can_write(stream) : !plb__lw_can_read(stream))
        status = plb__lw_arm(stream, event == PLB_EVENT_WRITE ? PLB__LW_WRITE : PLB__LW_READ);
    plb__lw_unlock();
    return status;
}

/* ==== STREAMS: their end ========================================================================================== */

/* lwIP may have no memory for the segment that ends the stream. */
static void plb__lw_send_end(plb_lwip_stream *stream)
{
    err_t err = tcp_shutdown(plb__lw_tcp(stream), 0, 1);
    if (err == ERR_MEM)
        plb__lw_owe(stream, PLB__LW_FIN);
}

static plb_status plb__lw_shutdown(void *self, plb_stream *handle)
{
    plb_lwip_stream *stream = plb__lw_stream(handle);
    plb_status status;
    (void)self;
    plb__lw_lock();
    status = stream->status == PLB_OK && stream->pcb != NULL ? PLB_OK : PLB_ERR_RESET;
    if (status == PLB_OK)
        plb__lw_send_end(stream);
    plb__lw_unlock();
    return status;
}

static size_t plb__lw_unread(const plb_lwip_stream *stream)
{
    const struct pbuf *p;
    size_t size = 0;
    for (p = stream->u.in.first; p != NULL; p = p->next)
        size += p->len;
    return size;
}

/* Hands the pcb over to lwIP, which frees it in its own time. Without memory for that the stream stays, hears when the
   pcb goes, and tries again. */
static void plb__lw_hand_over(plb_lwip_stream *stream)
{
    struct tcp_pcb *pcb = plb__lw_tcp(stream);
    err_t err;
    plb__lw_detach(pcb);
    err = tcp_close(pcb);
    if (err == ERR_MEM) {
        tcp_arg(pcb, stream);
        tcp_err(pcb, plb__lw_on_err);
        stream->kind = PLB__LW_CLOSING;
        plb__lw_owe(stream, PLB__LW_CLOSE);
        return;
    }
    if (err != ERR_OK)
        tcp_abort(pcb);
    plb__lw_stream_delete(stream);
}

/* A pcb that is closed over bytes for which its window was not opened again resets its connection, and what was sent
   may be lost with it. */
static void plb__lw_close_connection(plb_lwip_stream *stream, plb_close_how how)
{
    struct tcp_pcb *pcb = plb__lw_tcp(stream);
    if (pcb == NULL) {
        plb__lw_stream_delete(stream);
    } else if (how == PLB_CLOSE_ABORT || stream->kind != PLB__LW_CONNECTED) {
        plb__lw_detach(pcb);
        tcp_abort(pcb);
        plb__lw_stream_delete(stream);
    } else {
        plb__lw_consumed(stream, plb__lw_unread(stream));
        plb__lw_forget_input(stream);
        plb__lw_hand_over(stream);
    }
}

static void plb__lw_close_listener(plb_lwip_stream *listener)
{
    struct tcp_pcb *pcb = plb__lw_tcp(listener);
    plb_lwip_stream *stream;
    while ((stream = (plb_lwip_stream *)plb__lw_pop(&listener->u.waiting)) != NULL)
        plb__lw_close_connection(stream, PLB_CLOSE_ABORT);
    tcp_arg(pcb, NULL);
    tcp_accept(pcb, NULL);
    tcp_close(pcb); /* of a listener's: it takes no memory */
    plb__lw_stream_delete(listener);
}

static void plb__lw_close_locked(plb_lwip_stream *stream, plb_close_how how)
{
    stream->armed = 0;
    plb__lw_unlink(&stream->link);
    if (stream->kind == PLB__LW_LISTENER)
        plb__lw_close_listener(stream);
    else
        plb__lw_close_connection(stream, how);
}

static void plb__lw_close(void *self, plb_stream *handle, plb_close_how how)
{
    (void)self;
    plb__lw_lock();
    plb__lw_close_locked(plb__lw_stream(handle), how);
    plb__lw_unlock();
}

/* A pcb that listens has the members that are read here in the same places (TCP_PCB_COMMON), and no remote port. */
static plb_status plb__lw_info(void *self, plb_stream *handle, plb_stream_info *out)
{
    const plb_lwip_stream *stream = plb__lw_stream(handle);
    const struct tcp_pcb *pcb;
    (void)self;
    memset(out, 0, sizeof *out);
    plb__lw_lock();
    pcb = plb__lw_tcp(stream);
    if (pcb != NULL)
        plb__lw_from_ip(&pcb->local_ip, pcb->local_port, &out->local);
    if (pcb != NULL && stream->kind != PLB__LW_LISTENER)
        plb__lw_from_ip(&pcb->remote_ip, pcb->remote_port, &out->remote);
    plb__lw_unlock();
    return pcb != NULL ? PLB_OK : PLB_ERR_IO;
}

/* Once more what lwIP had no memory for. */
static void plb__lw_retry_stream(plb_lwip_stream *stream)
{
    unsigned owed = stream->owed;
    stream->owed = 0;
    if ((owed & PLB__LW_CLOSE) != 0) {
        plb__lw_hand_over(stream);
        return;
    }
    if ((owed & PLB__LW_FIN) != 0)
        plb__lw_send_end(stream);
    if ((owed & PLB__LW_OUTPUT) != 0)
        plb__lw_output(stream);
    plb__lw_note(stream);
}

static void plb__lw_retry(void *user)
{
    plb_lwip *lw = (plb_lwip *)user;
    size_t i;
    plb__lw_lock();
    for (i = 0; i < lw->desc.stream_count; i++) {
        if (lw->desc.streams[i].owed != 0)
            plb__lw_retry_stream(&lw->desc.streams[i]);
    }
    plb__lw_unlock();
}

/* ==== STREAMS: listeners ==========================================================================================
   lwIP has connections made before it tells of them, and holds none back: they wait here, each in a stream. */

/* An error has lwIP reset the connection. */
static err_t plb__lw_on_accept(void *arg, struct tcp_pcb *pcb, err_t err)
{
    plb_lwip_stream *listener = (plb_lwip_stream *)arg, *stream = NULL;
    plb_handler nobody;
    memset(&nobody, 0, sizeof nobody);
    if (err != ERR_OK || pcb == NULL) /* lwIP is out of pcbs, and the peer will ask again */
        return ERR_VAL;
    if (listener->lw->waiting < listener->lw->desc.waiting)
        stream = plb__lw_stream_new(listener->lw, PLB__LW_WAITING, nobody);
    if (stream == NULL)
        return ERR_MEM;
    plb__lw_attach(stream, pcb);
    tcp_backlog_delayed(pcb);
    plb__lw_append(&listener->u.waiting, &stream->link);
    plb__lw_note(listener);
    return ERR_OK;
}

static u8_t plb__lw_backlog(const plb_lwip *lw, uint32_t wanted)
{
    size_t backlog = wanted == 0 || wanted > lw->desc.waiting ? lw->desc.waiting : wanted;
    return (u8_t)(backlog < 255 ? backlog : 255);
}

/* NULL, and why. tcp_listen gives another pcb and frees the first, if it can. */
static struct tcp_pcb *plb__lw_open_listener(plb_lwip *lw, const plb_listen_desc *desc, const ip_addr_t *ip, err_t *err)
{
    struct tcp_pcb *bound = tcp_new_ip_type(plb__lw_type(&desc->addr)), *listening = NULL;
    *err = ERR_MEM;
    if (bound == NULL)
        return NULL;
    ip_set_option(bound, SOF_REUSEADDR);
    *err = tcp_bind(bound, ip, desc->addr.port);
    if (*err == ERR_OK)
        listening = tcp_listen_with_backlog_and_err(bound, plb__lw_backlog(lw, desc->backlog), err);
    if (listening == NULL)
        tcp_abort(bound);
    return listening;
}

static plb_status plb__lw_listen_locked(plb_lwip *lw, const plb_listen_desc *desc, plb_handler handler,
                                        const ip_addr_t *ip, plb_stream **out)
{
    plb_lwip_stream *listener;
    struct tcp_pcb *pcb;
    err_t err;
    if (plb__lw_is_full(lw) || lw->desc.waiting == 0)
        return PLB_ERR_LIMIT;
    if (!plb__lw_is_local(ip))
        return PLB_ERR_ADDRESS;
    pcb = plb__lw_open_listener(lw, desc, ip, &err);
    if (pcb == NULL)
        return plb__lw_status(err);
    listener = plb__lw_stream_new(lw, PLB__LW_LISTENER, handler);
    listener->pcb = pcb;
    tcp_arg(pcb, listener);
    tcp_accept(pcb, plb__lw_on_accept);
    *out = (plb_stream *)(void *)listener;
    return PLB_OK;
}

static plb_status plb__lw_listen(void *self, const plb_listen_desc *desc, plb_handler handler, plb_stream **out)
{
    ip_addr_t ip;
    plb_status status;
    *out = NULL;
    if (desc->tls != NULL || desc->reuse_port || !plb__lw_to_ip(&desc->addr, &ip))
        return PLB_ERR_UNSUPPORTED;
    plb__lw_lock();
    status = plb__lw_listen_locked((plb_lwip *)self, desc, handler, &ip, out);
    plb__lw_unlock();
    return status;
}

static plb_status plb__lw_accept(void *self, plb_stream *handle, plb_handler handler, plb_stream **out)
{
    plb_lwip *lw = (plb_lwip *)self;
    plb_lwip_stream *listener = plb__lw_stream(handle), *stream;
    plb_status status = PLB_OK;
    *out = NULL;
    plb__lw_lock();
    if (plb__lw_can_accept(listener)) {
        stream = (plb_lwip_stream *)plb__lw_pop(&listener->u.waiting);
        stream->kind = PLB__LW_CONNECTED;
        stream->handler = handler;
        lw->waiting--;
        lw->held++;
        lw->after_accept = (size_t)(listener - lw->desc.streams) + 1;
        tcp_backlog_accepted(plb__lw_tcp(stream));
        *out = (plb_stream *)(void *)stream;
    } else {
        status = plb__lw_arm(listener, PLB__LW_READ);
    }
    plb__lw_unlock();
    return status;
}

/* ==== DATAGRAMS =================================================================================================== */

#if LWIP_UDP
/* What stands in front of a datagram that waits, in a pbuf of its own. That one's tot_len counts only itself: with the
   longest of datagrams it would exceed 16 bits. */
typedef struct plb__lw_sender {
    struct pbuf *next; /* the next datagram's */
    ip_addr_t ip;
    uint16_t port;
} plb__lw_sender;

static struct udp_pcb *plb__lw_udp(const plb_lwip_stream *stream)
{
    return (struct udp_pcb *)stream->pcb;
}

/* Datagrams for which there is no room are lost, as they may be. */
static void plb__lw_on_datagram(void *arg, struct udp_pcb *pcb, struct pbuf *p, const ip_addr_t *ip, u16_t port)
{
    plb_lwip_stream *stream = (plb_lwip_stream *)arg;
    plb__lw_sender sender;
    struct pbuf *head = NULL;
    (void)pcb;
    if (stream->datagrams < PLB_LWIP_DATAGRAMS)
        head = pbuf_alloc(PBUF_RAW, (u16_t)sizeof sender, PBUF_RAM);
    if (head == NULL) {
        pbuf_free(p);
        return;
    }
    sender.next = NULL;
    ip_addr_copy(sender.ip, *ip);
    sender.port = port;
    memcpy(head->payload, &sender, sizeof sender);
    head->next = p;
    if (stream->u.in.first == NULL)
        stream->u.in.first = head;
    else
        memcpy(stream->u.in.last->payload, &head, sizeof head);
    stream->u.in.last = head;
    stream->datagrams++;
    plb__lw_note(stream);
}

/* The first that waits, with its sender in front; NULL: none. */
static struct pbuf *plb__lw_next_datagram(plb_lwip_stream *stream, plb__lw_sender *sender)
{
    struct pbuf *head = stream->u.in.first;
    if (head == NULL)
        return NULL;
    memcpy(sender, head->payload, sizeof *sender);
    stream->u.in.first = sender->next;
    if (sender->next == NULL)
        stream->u.in.last = NULL;
    stream->datagrams--;
    return head;
}

static plb_status plb__lw_receive(void *self, plb_stream *handle, void *buffer, size_t capacity, size_t *got,
                                  plb_addr *from)
{
    plb_lwip_stream *stream = plb__lw_stream(handle);
    plb__lw_sender sender;
    struct pbuf *head;
    plb_status status = PLB_OK;
    (void)self;
    *got = 0;
    plb__lw_lock();
    head = plb__lw_next_datagram(stream, &sender);
    if (head == NULL)
        status = plb__lw_arm(stream, PLB__LW_READ);
    plb__lw_unlock();
    if (head == NULL)
        return status;
    *got = head->next->tot_len;
    pbuf_copy_partial(head->next, buffer, (u16_t)(*got < capacity ? *got : capacity), 0);
    if (from != NULL)
        plb__lw_from_ip(&sender.ip, sender.port, from);
    plb__lw_lock();
    pbuf_free(head);
    plb__lw_unlock();
    return PLB_OK;
}

static plb_status plb__lw_bind_datagrams(struct udp_pcb *pcb, const plb_addr *local, const plb_addr *remote)
{
    ip_addr_t ip;
    err_t err;
    plb__lw_to_ip(local, &ip);
    if (!plb__lw_is_local(&ip))
        return PLB_ERR_ADDRESS;
    err = udp_bind(pcb, &ip, local->port);
    if (err != ERR_OK)
        return err == ERR_USE && local->port == 0 ? PLB_ERR_LIMIT : plb__lw_status(err);
    if (remote == NULL)
        return PLB_OK;
    if (!plb__lw_to_ip(remote, &ip))
        return PLB_ERR_UNSUPPORTED;
    if (ip_route(&pcb->local_ip, &ip) == NULL)
        return PLB_ERR_UNREACHABLE;
    return plb__lw_status(udp_connect(pcb, &ip, remote->port));
}

static plb_status plb__lw_open_locked(plb_lwip *lw, const plb_addr *local, const plb_addr *remote, plb_handler handler,
                                      plb_stream **out)
{
    plb_lwip_stream *stream;
    struct udp_pcb *pcb;
    plb_status status;
    if (plb__lw_is_full(lw))
        return PLB_ERR_LIMIT;
    pcb = udp_new_ip_type(plb__lw_type(local));
    if (pcb == NULL)
        return PLB_ERR_MEMORY;
    status = plb__lw_bind_datagrams(pcb, local, remote);
    if (status != PLB_OK) {
        udp_remove(pcb);
        return status;
    }
    stream = plb__lw_stream_new(lw, PLB__LW_DGRAM, handler);
    stream->pcb = pcb;
    udp_recv(pcb, plb__lw_on_datagram, stream);
    *out = (plb_stream *)(void *)stream;
    return PLB_OK;
}

static plb_status plb__lw_open(void *self, const plb_addr *local, const plb_addr *remote, plb_handler handler,
                               plb_stream **out)
{
    plb_addr any;
    ip_addr_t ip;
    plb_status status;
    *out = NULL;
    if (local == NULL ? remote == NULL : remote != NULL && remote->family != local->family)
        return PLB_ERR_ARGUMENT;
    memset(&any, 0, sizeof any);
    any.family = remote != NULL ? remote->family : (uint8_t)PLB_FAMILY_NONE;
    if (local == NULL)
        local = &any;
    if (!plb__lw_to_ip(local, &ip))
        return PLB_ERR_UNSUPPORTED;
    if (remote != NULL && remote->port == 0)
        return PLB_ERR_ARGUMENT;
    plb__lw_lock();
    status = plb__lw_open_locked((plb_lwip *)self, local, remote, handler, out);
    plb__lw_unlock();
    return status;
}

/* Of 65535 bytes (pbufs count no more) the headers of IP and UDP take their share. */
static size_t plb__lw_datagram_max(const plb_addr *to)
{
    return to->family == PLB_FAMILY_IPV6 ? 65535u - 40 - 8 : 65535u - 20 - 8;
}

static plb_status plb__lw_send_locked(struct udp_pcb *pcb, const plb_addr *to, const void *data, size_t size)
{
    ip_addr_t ip;
    struct pbuf *p;
    err_t err;
    if (!plb__lw_to_ip(to, &ip))
        return PLB_ERR_UNSUPPORTED;
    p = pbuf_alloc(PBUF_TRANSPORT, (u16_t)size, PBUF_RAM);
    if (p == NULL)
        return PLB_ERR_MEMORY;
    if (size > 0)
        pbuf_take(p, data, (u16_t)size);
    err = udp_sendto(pcb, p, &ip, to->port);
    pbuf_free(p);
    return plb__lw_status(err);
}

static plb_status plb__lw_send(void *self, plb_stream *handle, const plb_addr *to, const void *data, size_t size)
{
    struct udp_pcb *pcb = plb__lw_udp(plb__lw_stream(handle));
    bool has_remote = (udp_flags(pcb) & UDP_FLAGS_CONNECTED) != 0;
    plb_addr remote;
    plb_status status;
    (void)self;
    if (has_remote == (to != NULL))
        return PLB_ERR_ARGUMENT;
    plb__lw_lock();
    plb__lw_from_ip(&pcb->remote_ip, pcb->remote_port, &remote);
    if (to == NULL)
        to = &remote;
    if (to->port == 0 || size > plb__lw_datagram_max(to))
        status = PLB_ERR_ARGUMENT;
    else if (to->family != remote.family)
        status = PLB_ERR_UNSUPPORTED;
    else
        status = plb__lw_send_locked(pcb, to, data, size);
    plb__lw_unlock();
    return status;
}

/* The address of a socket that is bound to any is the one that its datagrams to the remote address leave from. */
static plb_status plb__lw_dgram_info(void *self, plb_stream *handle, plb_stream_info *out)
{
    const struct udp_pcb *pcb = plb__lw_udp(plb__lw_stream(handle));
    const ip_addr_t *local = &pcb->local_ip;
    struct netif *netif;
    (void)self;
    memset(out, 0, sizeof *out);
    plb__lw_lock();
    if ((udp_flags(pcb) & UDP_FLAGS_CONNECTED) != 0) {
        plb__lw_from_ip(&pcb->remote_ip, pcb->remote_port, &out->remote);
        netif = ip_route(local, &pcb->remote_ip);
        if (ip_addr_isany(local) && netif != NULL && ip_netif_get_local_ip(netif, &pcb->remote_ip) != NULL)
            local = ip_netif_get_local_ip(netif, &pcb->remote_ip);
    }
    plb__lw_from_ip(local, pcb->local_port, &out->local);
    plb__lw_unlock();
    return PLB_OK;
}

static void plb__lw_close_datagrams(plb_lwip_stream *stream)
{
    plb__lw_sender sender;
    struct pbuf *head;
    udp_remove(plb__lw_udp(stream));
    while ((head = plb__lw_next_datagram(stream, &sender)) != NULL)
        pbuf_free(head);
    plb__lw_stream_delete(stream);
}

static void plb__lw_dgram_close(void *self, plb_stream *handle)
{
    (void)self;
    plb__lw_lock();
    plb__lw_close_datagrams(plb__lw_stream(handle));
    plb__lw_unlock();
}

static void plb__lw_fill_dgram(plb_dgram *dgram)
{
    dgram->open = plb__lw_open;
    dgram->send = plb__lw_send;
    dgram->receive = plb__lw_receive;
    dgram->info = plb__lw_dgram_info;
    dgram->close = plb__lw_dgram_close;
}
#else
static void plb__lw_fill_dgram(plb_dgram *dgram)
{
    (void)dgram;
}
#endif

/* ==== NAMES ======================================================================================================= */

#if PLB__LW_NAMES
/* What a query is. lwIP cannot be told to forget one: those that nobody wants stay until it has answered. */
enum { PLB__LW_IDLE = 0, PLB__LW_ASKED, PLB__LW_ANSWERED, PLB__LW_UNWANTED };

static void plb__lw_query_free(plb_lwip_query *query)
{
    query->state = PLB__LW_IDLE;
    plb__lw_unlink(&query->link);
    plb__lw_append(&query->lw->free_queries, &query->link);
}

static void plb__lw_answer(plb_lwip_query *query, plb_status status)
{
    query->state = PLB__LW_ANSWERED;
    query->status = (uint8_t)status;
    plb__lw_append(&query->lw->answered, &query->link);
    plb__lw_stir(query->lw, PLB__LW_EVENTS);
}

/* A query without a port is one that the port has left behind when it ended. */
static void plb__lw_on_found(const char *name, const ip_addr_t *ip, void *arg)
{
    plb_lwip_query *query = (plb_lwip_query *)arg;
    (void)name;
    if (query->lw == NULL)
        return;
    if (query->state == PLB__LW_UNWANTED) {
        plb__lw_query_free(query);
        return;
    }
    if (ip != NULL)
        plb__lw_from_ip(ip, query->addr.port, &query->addr);
    plb__lw_answer(query, ip != NULL ? PLB_OK : PLB_ERR_NAME);
}

static void plb__lw_query_expired(void *user)
{
    plb_lwip_query *query = (plb_lwip_query *)user;
    bool expired;
    plb__lw_lock();
    expired = query->state == PLB__LW_ASKED;
    if (expired)
        query->state = PLB__LW_UNWANTED;
    plb__lw_unlock();
    if (expired)
        query->fn(query->user, PLB_ERR_TIMEOUT, NULL, 0);
}

/* Of the families that a plb_addr can have. */
#if LWIP_IPV6 && !PLB__LW_IPV6
#define PLB__LW_ADDRTYPE LWIP_DNS_ADDRTYPE_IPV4
#else
#define PLB__LW_ADDRTYPE LWIP_DNS_ADDRTYPE_DEFAULT
#endif

/* lwIP may answer before the call returns. */
static plb_status plb__lw_ask(plb_lwip_query *query, const char *host)
{
    ip_addr_t ip;
    err_t err;
    query->state = PLB__LW_ASKED;
    err = dns_gethostbyname_addrtype(host, &ip, plb__lw_on_found, query, PLB__LW_ADDRTYPE);
    if (err == ERR_INPROGRESS)
        return PLB_AGAIN;
    if (err == ERR_MEM) {
        plb__lw_query_free(query);
        return PLB_ERR_MEMORY;
    }
    if (err == ERR_OK)
        plb__lw_from_ip(&ip, query->addr.port, &query->addr);
    plb__lw_answer(query, err == ERR_OK ? PLB_OK : PLB_ERR_NAME);
    return PLB_AGAIN;
}

static plb_status plb__lw_resolve(void *self, const char *host, uint16_t port, uint32_t timeout_ms, plb_names_fn fn,
                                  void *user, plb_query **out)
{
    plb_lwip *lw = (plb_lwip *)self;
    plb_lwip_query *query;
    plb_status status = PLB_ERR_LIMIT;
    *out = NULL;
    plb__lw_lock();
    query = (plb_lwip_query *)plb__lw_pop(&lw->free_queries);
    if (query != NULL) {
        query->fn = fn;
        query->user = user;
        query->addr.port = port;
        status = plb__lw_ask(query, host);
    }
    plb__lw_unlock();
    if (status != PLB_AGAIN)
        return status;
    plb_timers_update(&lw->timers, &lw->clock);
    plb_timer_set(&lw->timers, &query->deadline, timeout_ms);
    *out = (plb_query *)(void *)query;
    return PLB_AGAIN;
}

static void plb__lw_cancel(void *self, plb_query *handle)
{
    plb_lwip *lw = (plb_lwip *)self;
    plb_lwip_query *query = (plb_lwip_query *)(void *)handle;
    plb_timer_stop(&lw->timers, &query->deadline);
    plb__lw_lock();
    if (query->state == PLB__LW_ASKED)
        query->state = PLB__LW_UNWANTED;
    else
        plb__lw_query_free(query);
    plb__lw_unlock();
}

/* Takes the query apart, then tells what came of it. */
static void plb__lw_tell(plb_lwip *lw, plb_lwip_query *query)
{
    plb_addr addr = query->addr;
    plb_status status = (plb_status)query->status;
    plb_names_fn fn = query->fn;
    void *user = query->user;
    plb_timer_stop(&lw->timers, &query->deadline);
    plb__lw_query_free(query);
    plb__lw_unlock();
    fn(user, status, status == PLB_OK ? &addr : NULL, status == PLB_OK ? 1 : 0);
    plb__lw_lock();
}

/* What callbacks ask for is answered in a later step. */
static void plb__lw_answer_names(plb_lwip *lw)
{
    plb_lwip_link answered;
    plb_lwip_query *query;
    plb__lw_lock();
    plb__lw_move(&lw->answered, &answered);
    while ((query = (plb_lwip_query *)plb__lw_pop(&answered)) != NULL)
        plb__lw_tell(lw, query);
    plb__lw_unlock();
}

static void plb__lw_open_names(plb_lwip *lw)
{
    size_t i;
    lw->names.self = lw;
    lw->names.resolve = plb__lw_resolve;
    lw->names.cancel = plb__lw_cancel;
    for (i = 0; i < lw->desc.query_count; i++) {
        plb_lwip_query *query = &lw->desc.queries[i];
        memset(query, 0, sizeof *query);
        query->lw = lw;
        query->deadline.fn = plb__lw_query_expired;
        query->deadline.user = query;
        plb__lw_append(&lw->free_queries, &query->link);
    }
}

static void plb__lw_close_names(plb_lwip *lw)
{
    size_t i;
    for (i = 0; i < lw->desc.query_count; i++)
        lw->desc.queries[i].lw = NULL;
}
#else
static void plb__lw_answer_names(plb_lwip *lw)
{
    (void)lw;
}

static void plb__lw_open_names(plb_lwip *lw)
{
    (void)lw;
}

static void plb__lw_close_names(plb_lwip *lw)
{
    (void)lw;
}
#endif

/* ==== CLOCK AND RANDOM ============================================================================================ */

static uint64_t plb__lw_now_ms(void *self)
{
    (void)self;
    return sys_now();
}

/* The lowest bits of a generator can be its worst, and some have no more than 15. */
static void plb__lw_fill_random(void *self, void *bytes, size_t count)
{
    const plb_lwip *lw = (const plb_lwip *)self;
    if (lw->desc.random != NULL) {
        lw->desc.random(lw->desc.user, bytes, count);
        return;
    }
#ifdef LWIP_RAND
    while (count-- > 0)
        ((uint8_t *)bytes)[count] = (uint8_t)(LWIP_RAND() >> 7);
#endif
}

static bool plb__lw_has_random(const plb_lwip *lw)
{
#ifdef LWIP_RAND
    (void)lw;
    return true;
#else
    return lw->desc.random != NULL;
#endif
}

/* ==== LOOP: tasks and steps ======================================================================================= */

static void plb__lw_wake(void *self)
{
    plb__lw_stir((plb_lwip *)self, PLB__LW_TASKS);
}

PLB_API void plb_lwip_add(plb_lwip *lw, plb_task *task)
{
    plb_task **at = &lw->tasks;
    while (*at != NULL)
        at = &(*at)->next;
    task->next = NULL;
    *at = task;
    plb__lw_stir(lw, PLB__LW_TASKS);
}

PLB_API void plb_lwip_remove(plb_lwip *lw, plb_task *task)
{
    plb_task **at = &lw->tasks;
    while (*at != NULL && *at != task)
        at = &(*at)->next;
    if (*at == NULL)
        return;
    *at = task->next;
    if (lw->next_task == task)
        lw->next_task = task->next;
    task->next = NULL;
}

static void plb__lw_poll_tasks(plb_lwip *lw)
{
    uint32_t delay, soonest = PLB_FOREVER;
    plb_task *task;
    plb__lw_settle(lw, PLB__LW_TASKS);
    for (task = lw->tasks; task != NULL; task = lw->next_task) {
        lw->next_task = task->next;
        delay = task->poll(task->user);
        if (delay < soonest)
            soonest = delay;
    }
    lw->tasks_due_ms = UINT64_MAX;
    if (soonest != PLB_FOREVER)
        lw->tasks_due_ms = plb_timers_update(&lw->timers, &lw->clock) + soonest;
}

/* Makes the callback of a stream whose time has come. A listener's is the one for accepting. */
static void plb__lw_call(plb_lwip_stream *stream, unsigned due)
{
    plb_handler handler = stream->handler;
    plb_event event = PLB_EVENT_READ;
    plb_status status = PLB_OK;
    if (due == PLB__LW_CONNECT) {
        event = PLB_EVENT_CONNECT;
        status = stream->kind == PLB__LW_CONNECTED ? PLB_OK : (plb_status)stream->status;
    } else if (due == PLB__LW_WRITE) {
        event = PLB_EVENT_WRITE;
    } else if (stream->kind == PLB__LW_LISTENER) {
        event = PLB_EVENT_ACCEPT;
    }
    stream->armed = (uint8_t)(stream->armed & ~due);
    plb__lw_note(stream);
    plb__lw_unlock();
    handler.fn(handler.user, (plb_stream *)(void *)stream, event, status);
    plb__lw_lock();
}

/* One callback for each: it may close this stream, and any other. What is noted meanwhile, a second callback that is
   due to the same stream too, is for the next step. */
static void plb__lw_dispatch(plb_lwip *lw)
{
    plb_lwip_link ready;
    plb_lwip_stream *stream;
    unsigned due;
    plb__lw_settle(lw, PLB__LW_EVENTS);
    plb__lw_lock();
    plb__lw_move(&lw->ready, &ready);
    while ((stream = (plb_lwip_stream *)plb__lw_pop(&ready)) != NULL) {
        due = plb__lw_due(stream);
        if (due != 0)
            plb__lw_call(stream, due);
    }
    plb__lw_unlock();
}

PLB_API uint32_t plb_lwip_timeout(plb_lwip *lw)
{
    uint64_t now_ms = plb_timers_update(&lw->timers, &lw->clock);
    uint32_t delay = plb_timers_delay(&lw->timers);
    if (plb__lw_is_stirred(lw) || lw->tasks_due_ms <= now_ms)
        return 0;
    if (lw->tasks_due_ms - now_ms < delay)
        delay = (uint32_t)(lw->tasks_due_ms - now_ms);
    return delay < PLB__LW_LONGEST || delay == PLB_FOREVER ? delay : PLB__LW_LONGEST;
}

PLB_API size_t plb_lwip_in_use(plb_lwip *lw)
{
    size_t count;
    plb__lw_lock();
    count = lw->held + lw->waiting;
    plb__lw_unlock();
    return count;
}

PLB_API void plb_lwip_step(plb_lwip *lw, uint32_t max_ms)
{
    uint32_t timeout_ms = plb_lwip_timeout(lw);
    plb__lw_wait(lw, timeout_ms < max_ms ? timeout_ms : max_ms);
    plb__lw_get_up(lw);
    plb__lw_dispatch(lw);
    plb__lw_answer_names(lw);
    plb_timers_update(&lw->timers, &lw->clock);
    plb_timers_run(&lw->timers);
    plb__lw_poll_tasks(lw);
    if (lw->desc.on_wake != NULL && !plb__lw_fall_asleep(lw))
        lw->desc.on_wake(lw->desc.user);
}

#if !NO_SYS
static bool plb__lw_set_stop(plb_lwip *lw, bool wanted)
{
    bool before;
    SYS_ARCH_DECL_PROTECT(level);
    SYS_ARCH_PROTECT(level);
    before = lw->stop_wanted;
    lw->stop_wanted = wanted;
    SYS_ARCH_UNPROTECT(level);
    return before;
}

PLB_API void plb_lwip_run(plb_lwip *lw)
{
    while (!plb__lw_set_stop(lw, false))
        plb_lwip_step(lw, PLB_FOREVER);
}

PLB_API void plb_lwip_stop(plb_lwip *lw)
{
    plb__lw_set_stop(lw, true);
    plb__lw_stir(lw, PLB__LW_TASKS);
}
#endif

/* ==== PORT ======================================================================================================== */

static void plb__lw_fill_tables(plb_lwip *lw)
{
    lw->io.self = lw->clock.self = lw->random.self = lw->dgram.self = lw;
    lw->io.connect = plb__lw_connect;
    lw->io.read = plb__lw_read;
    lw->io.write = plb__lw_write;
    lw->io.watch = plb__lw_watch;
    lw->io.shutdown = plb__lw_shutdown;
    lw->io.close = plb__lw_close;
    lw->io.info = plb__lw_info;
    lw->io.listen = plb__lw_listen;
    lw->io.accept = plb__lw_accept;
    lw->io.wake = plb__lw_wake;
    lw->clock.now_ms = plb__lw_now_ms;
    lw->random.fill = plb__lw_fill_random;
    plb__lw_fill_dgram(&lw->dgram);
}

/* A quarter of the streams for those that come, unless the caller says otherwise. One is the listener's, and one is for
   the connection that is accepted. */
static size_t plb__lw_waiting(const plb_lwip_desc *desc)
{
    size_t waiting = desc->waiting != 0 ? desc->waiting : (desc->stream_count + 3) / 4;
    size_t most = desc->stream_count > 2 ? desc->stream_count - 2 : 0;
    return waiting < most ? waiting : most;
}

PLB_API plb_status plb_lwip_init(plb_lwip *lw, const plb_lwip_desc *desc)
{
    size_t i;
    memset(lw, 0, sizeof *lw);
    if (desc->streams == NULL || desc->stream_count == 0)
        return PLB_ERR_ARGUMENT;
    lw->desc = *desc;
    lw->desc.waiting = plb__lw_waiting(desc);
    lw->tasks_due_ms = UINT64_MAX;
    lw->retry.fn = plb__lw_retry;
    lw->retry.user = lw;
    lw->asleep = desc->on_wake != NULL;
    plb__lw_list_init(&lw->free_streams);
    plb__lw_list_init(&lw->ready);
    plb__lw_list_init(&lw->free_queries);
    plb__lw_list_init(&lw->answered);
    for (i = 0; i < desc->stream_count; i++) {
        memset(&desc->streams[i], 0, sizeof desc->streams[i]);
        plb__lw_append(&lw->free_streams, &desc->streams[i].link);
    }
    plb__lw_fill_tables(lw);
    plb__lw_open_names(lw);
    return plb__lw_open_wait(lw);
}

/* A stream that lwIP cannot take over now would find nobody who tries again. */
static void plb__lw_end_stream(plb_lwip_stream *stream)
{
#if LWIP_UDP
    if (stream->kind == PLB__LW_DGRAM)
        plb__lw_close_datagrams(stream);
#endif
    if (stream->kind == PLB__LW_LISTENER || stream->kind == PLB__LW_CONNECTING || stream->kind == PLB__LW_CONNECTED)
        plb__lw_close_locked(stream, PLB_CLOSE_GRACEFUL);
    if (stream->kind == PLB__LW_CLOSING)
        plb__lw_close_locked(stream, PLB_CLOSE_ABORT);
}

PLB_API void plb_lwip_deinit(plb_lwip *lw)
{
    size_t i;
    plb__lw_lock();
    for (i = 0; i < lw->desc.stream_count; i++)
        plb__lw_end_stream(&lw->desc.streams[i]);
    plb__lw_close_names(lw);
    plb__lw_unlock();
    plb__lw_close_wait(lw);
}

PLB_API plb_port plb_lwip_port(plb_lwip *lw)
{
    plb_port port;
    memset(&port, 0, sizeof port);
    port.io = &lw->io;
    port.clock = &lw->clock;
    if (plb__lw_has_random(lw))
        port.random = &lw->random;
#if PLB__LW_NAMES
    if (lw->desc.query_count > 0)
        port.names = &lw->names;
#endif
#if LWIP_UDP
    port.dgram = &lw->dgram;
#endif
    return port;
}

#endif /* PLB__LWIP_IMPLEMENTED */
#endif /* PLB_LWIP_IMPLEMENTATION */
