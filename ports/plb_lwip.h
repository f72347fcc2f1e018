/* plb_lwip.h - plb_io over lwIP's raw API, and the loop that drives it. MIT license, see LICENSE.

   WHAT IT IS
   Everything that plb_port asks of a platform, for lwIP 2.1 and later: TCP streams and datagrams over IPv4 and IPv6, the
   clock of lwIP, its random numbers, its DNS client. It uses the callbacks of tcp.h, udp.h and dns.h, so that it serves
   a single main loop (NO_SYS=1) as well as a system with the tcpip thread.

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
                           long it may (and sys_timeouts_sleeptime, for lwIP), and lets an interrupt, or `on_wake` of the
                           descriptor, end the sleep.
   NO_SYS=0, core locking  (LWIP_TCPIP_CORE_LOCKING=1) A thread of the program's steps; plb_lwip_run does that. The port
                           takes the core lock around its calls of lwIP and never holds it while it calls back. The
                           thread must not hold the lock when it calls the port, nor be the tcpip thread.
   NO_SYS=0 without it     Everything happens in the tcpip thread: give an `on_wake` that hands a function to
                           tcpip_try_callback; that function calls plb_lwip_step(&lw, 0) and has sys_timeout call it
                           again after plb_lwip_timeout. Balancers and proxies are made there too.

   DEFINES
   PLB_LWIP_IMPLEMENTATION   In one C or C++ file: emits the code.
   PLB_LWIP_DATAGRAMS        Datagrams that wait in one socket; more are dropped. 8 if not defined.
   PLB_STATIC                See pingora_lb.h.
   Of lwIP's: LWIP_TCP and LWIP_CALLBACK_API are needed. LWIP_UDP=0: plb_port.dgram is NULL. LWIP_DNS=0: plb_port.names
   is NULL. SO_REUSE=1 lets a listener take an address while connections of an earlier one linger. TCP_LISTEN_BACKLOG=1
   lets connections that would find no room wait in their makers; without it they are reset.

   THREADS
   A port belongs to one thread at a time: the one that steps it. Every call below is that thread's (or anybody's as
   long as nobody steps) unless it says otherwise. Of the tables, plb_io.wake and plb_clock may be called from any
   thread; wake from interrupts too where sys_arch_protect works there and nobody waits for a semaphore (NO_SYS=1, or an
   `on_wake` that may be called there).

   MEMORY
   The port allocates nothing. The program gives it streams: one for each connection, listener and socket. On a 32-bit
   machine a stream takes 48 bytes and the port some 200, on a 64-bit one 96 and 400; a query takes 90 and 150. What
   lwIP allocates for itself (pcbs, segments, pbufs) comes from lwIP's pools. Bytes that arrived and that nobody has read
   stay in the pbufs they came in, at most TCP_WND a stream.

   WHEN THINGS RUN SHORT
   Without a free stream connect and listen return PLB_ERR_LIMIT, without a pcb PLB_ERR_MEMORY. accept returns PLB_AGAIN,
   and its callback comes when a stream has been closed; until then connections wait, as many as plb_lwip_desc.waiting
   says. A write for which lwIP has no memory (ERR_MEM) is tried with less, then returns PLB_AGAIN; the callback comes
   when bytes were acknowledged or after 20 ms. Segments that could not leave, and closes that lwIP could not do, are
   tried again each 20 ms, so that nothing is lost; a stream that is being closed counts as used until lwIP took it over.

   GOOD TO KNOW
   - Only what is read opens the window again: a reader that stops stops its peer.
   - Chunks with PLB_CHUNK_CONSTANT are not copied, unless LWIP_NETIF_TX_SINGLE_PBUF forbids that.
   - Nagle's algorithm is off. An IPv6 listener is IPv6 only.
   - lwIP does not tell why it gave up a connection (ERR_ABRT): that is reported as PLB_ERR_TIMEOUT.
   - lwIP tells a datagram socket nothing about ports where nobody listens: no PLB_ERR_REFUSED there.
   - A listener cannot share its address: reuse_port is PLB_ERR_UNSUPPORTED. A backlog has 255 at most.
   - Closing gracefully leaves delivery to lwIP. A peer that goes on sending after that sees a reset: whoever cares sends
     shutdown first and reads to the end.
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
    bool at_end, shut;
    uint8_t datagrams;
} plb_lwip_stream;

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

typedef struct plb_lwip_desc {
    plb_lwip_stream *streams; /* the caller's; in place until plb_lwip_deinit. Needed */
    size_t stream_count;      /* at least 2 where the port listens */
    size_t waiting;          /* how many of them, once the port listens, are kept for connections that came and were not
                                 accepted yet, of all listeners together; 0: a quarter */
    plb_lwip_query *queries; /* the caller's, for names (LWIP_DNS); NULL: none. They stay in place as long as lwIP looks
                                 for a name, even after plb_lwip_deinit */
    size_t query_count;

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
    plb_names names;
    plb_dgram dgram;
    plb_lwip_desc desc;

    plb_lwip_link free_streams, ready; /* the core lock guards these and all streams and queries */
    plb_lwip_link free_queries, answered;
    size_t held, waiting, listeners; /* streams that callers have, that wait for accept, that listen */

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

/* Milliseconds until a step has something to do even if nothing stirs; 0: now; PLB_FOREVER: never. */
PLB_API uint32_t plb_lwip_timeout(plb_lwip *lw);

#if !NO_SYS
/* Steps until plb_lwip_stop; at once if that was called since the last run ended. For steps that wait. */
PLB_API void plb_lwip_run(plb_lwip *lw);

/* Makes plb_lwip_run return after the step it is in. Any thread. */
PLB_API void plb_lwip_stop(plb_lwip *lw);
#endif

#endif /* PLB_LWIP_H */
