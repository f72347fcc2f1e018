/* sim.h - a plb_port without a system: a network, a clock and names that exist in memory only. Test code.

   What runs over plb_port runs here as fast as the processor allows and the same way each time: the clock moves only
   inside sim_step, random numbers come from a seed, and every fault happens when the test says so. The simulator is
   also the judge of the code above it: a call that breaks the contract of plb_io (pingora_lb.h, section PORT) is
   reported and ends the program.

       #define PINGORA_LB_IMPLEMENTATION
       #include "../pingora_lb.h"
       #define SIM_IMPLEMENTATION
       #include "sim.h"

       TEST a_backend_out_of_reach_leaves_the_rotation(void)
       {
           const char *addresses[] = {"10.0.0.1:80", "10.0.0.2:80"};
           plb_static_desc list = {addresses, 2, NULL, 0, 0};
           plb_addr good = sim_addr(addresses[0]), bad = sim_addr(addresses[1]);
           plb_balancer_desc desc = {0};
           plb_balancer *lb;
           sim *s = sim_create(1);
           sim_serve(s, &good, NULL, NULL);
           sim_host(s, &bad)->fault = SIM_UNREACHABLE;
           desc.port = sim_port(s);
           desc.discovery = plb_static(&list);
           desc.check = plb_tcp_check(NULL);
           ASSERT_EQ(PLB_OK, plb_create(&desc, &lb));
           sim_add_task(s, plb_balancer_task(lb));
           sim_run_for(s, 100);
           ASSERT(plb_ready(lb, &good, 0));
           ASSERT_FALSE(plb_ready(lb, &bad, 0));
           sim_remove_task(s, plb_balancer_task(lb));
           plb_destroy(lb);
           ASSERT_EQ(0, sim_destroy(s)); // the number of streams that were left open
           PASS();
       }

   The network     Every address is a host of this one network, made when it is first mentioned. Whoever listens there,
                   through plb_io or by sim_serve, is reached. What is sent arrives `latency_ms` later and in order;
                   the room it took comes back to the sender the same time after the reader has read it.
   Datagrams       Travel between the sockets of plb_dgram and hosts that sim_serve_datagrams plays, as the host says
                   that was sent to, or that is played: after its latency, and some of them lost, doubled or late. Those
                   that find buffer_bytes of others in a socket are lost. Ports are apart from those of listeners.
   The far end     sim_serve and sim_dial play the other end of a connection with a callback, sim_serve_datagrams and
                   sim_datagram that of datagrams. What they do is not counted, never fails, and is not among the
                   streams of the program under test.
   Faults          Per host: see sim_fault. For the program: fail_io_at makes the n-th call fail, so that a loop over
                   n = 1, 2, 3, ... until nothing fails any more visits every error path. max_streams (sockets are
                   among them), max_read and max_write make things scarce. sim_alloc does the same for memory.
   Trace           With SIM_TRACE set in the environment every call and event is told on stderr.
   Memory          Of malloc. A closed stream is remembered until sim_destroy (some 500 bytes), so that its use after
                   close is seen.
   Threads         One. wake too must be called from it.
   Define          SIM_IMPLEMENTATION in one C file. Needs the implementation of pingora_lb.h in the program. */
#ifndef SIM_H
#define SIM_H

#include "../pingora_lb.h"

typedef struct sim sim;
typedef struct sim_conn sim_conn;

/* ==== HOSTS ======================================================================================================= */

/* What is wrong with a host. May be changed at any time: it holds for what arrives from then on. The connections that
   there are go on, except where it says so. SIM_REFUSE and SIM_UNREACHABLE meet datagrams too, and a sender hears of it
   if it has a remote address; in SIM_HANG and SIM_SILENT datagrams are lost. */
typedef enum sim_fault {
    SIM_FINE = 0,
    SIM_REFUSE,      /* connections are refused, as they are when nobody listens */
    SIM_UNREACHABLE, /* connections fail with PLB_ERR_UNREACHABLE */
    SIM_HANG,        /* nothing gets through, on no connection; what was sent arrives once this is lifted */
    SIM_SILENT,      /* connections succeed, nobody reads, nobody answers. No listener is needed */
    SIM_RESET,       /* any connection is reset once the host has sent fault_bytes on it; 0: as soon as it is made */
    SIM_TRUNCATE     /* the same, with an orderly end instead of a reset */
} sim_fault;

/* Plays one end of a connection. Called when it has opened, when bytes came, when the peer has ended its side, and when
   it broke: `conn` tells which. `bytes` are those that came and were not consumed yet, NUL-terminated; returns how many
   are consumed now. May call everything on any conn. */
typedef size_t (*sim_script)(void *user, sim_conn *conn, const char *bytes, size_t count);

/* Plays a host that datagrams are sent to: called with each that comes to it at `at`. May call everything. */
typedef void (*sim_datagram_script)(void *user, sim *s, const plb_addr *at, const plb_addr *from, const char *bytes,
                                    size_t count);

/* An address of the network, and how the way to it is. New ones are copies of sim.defaults. */
typedef struct sim_host {
    plb_addr addr;
    sim_fault fault;
    uint32_t fault_bytes;
    uint32_t latency_ms;   /* one way; default 1 */
    uint32_t bytes_per_ms; /* default 0: any amount at once */
    uint32_t buffer_bytes; /* on their way or unread, per direction and connection; default 65536; for new ones */

    uint32_t loss_percent;   /* of a hundred datagrams, so many are lost, */
    uint32_t double_percent; /* so many come twice, */
    uint32_t jitter_ms;      /* and each comes up to so much later: they overtake one another */

    uint32_t connects;  /* attempts that arrived here. Counters may be reset */
    uint32_t open;      /* connections whose connecting side has not closed them yet */
    uint32_t datagrams; /* that came here, doubled ones twice; what became of them does not matter */

    bool served; /* private, like the rest */
    sim_script script;
    void *script_user;
    sim_datagram_script datagram_script;
    void *datagram_user;
    struct sim_host *next;
} sim_host_t;

/* ==== CONNECTIONS ================================================================================================= */

typedef struct sim_bytes {
    char *data; /* NUL-terminated behind the last byte, or NULL */
    size_t start, size, capacity;
} sim_bytes;

/* One end of a connection, a listener, or a socket of datagrams. Tests may read what is not private. */
struct sim_conn {
    sim *s;
    uint32_t number; /* 1, 2, 3, ... in order of creation; the trace calls it #number */
    plb_addr local, remote;
    plb_status status; /* PLB_AGAIN: connecting; PLB_OK: open; else how it broke, or why it was never made */
    bool ended;        /* the peer has ended its side, and everything before was received */
    bool closed;
    bool paused;     /* a script's: bytes are left in the network, so that the peer runs out of room */
    uint64_t sent;   /* bytes that this end put on the line */
    sim_bytes inbox; /* a script's: bytes that it has not consumed */
    void *user;      /* a script's own, for what it wants to know of this connection */

    bool owned; /* private, like the rest: the program under test has it */
    bool listener, reuse_port, server_side, counted;
    sim_host_t *host; /* the host that was connected to */
    sim_conn *peer;
    plb_handler handler;
    unsigned armed; /* bit 1 << plb_event */

    sim_bytes line; /* bytes for this end, the first `arrived` of them here already */
    size_t arrived;
    size_t room;        /* bytes that this end may still send */
    uint64_t line_free; /* when the last thing that this end sent arrives */
    size_t line_left;   /* bytes that the host's rate still allows in that millisecond */
    bool end_sent, cut; /* nothing follows; a fault ended it */

    bool scripted, end_wanted, close_wanted;
    sim_script script;
    void *script_user;
    sim_bytes outbox; /* a script's: bytes that there was no room for */

    sim_conn *next_listener, *first_waiting, *next_waiting; /* a listener's queue */
    uint32_t waiting, backlog;

    bool datagrams; /* a socket */
    sim_conn *next_socket;
    struct sim__datagram *first_datagram; /* what has come */
    size_t datagram_bytes;
    plb_status trouble; /* what an earlier datagram met, if it was not told yet */
};

/* ==== NAMES ======================================================================================================= */

/* What a host name resolves to; may be changed at any time. Names nobody mentioned fail with PLB_ERR_NAME. */
typedef struct sim_name {
    plb_status status; /* what the answer is; PLB_OK: the addresses */
    uint32_t delay_ms; /* until the answer; past the caller's limit it is PLB_ERR_TIMEOUT then */
    bool hang;         /* no answer */
    uint32_t asked;    /* resolutions begun */

    char *host; /* private */
    plb_addr *addrs;
    size_t count;
    struct sim_name *next;
} sim_name_t;

/* ==== THE SIMULATOR =============================================================================================== */

struct sim {
    /* The way of things; may be changed at any time. */
    sim_host_t defaults;  /* what hosts are made from */
    uint32_t max_streams; /* of the program under test, listeners and sockets included; 0: no limit */
    uint32_t max_read;    /* bytes that one read, and */
    uint32_t max_write;   /* one write, moves at most; 1: one byte at a time; 0: no limit */
    bool random_sizes;    /* each read and write moves a random part of what it could */
    bool instant_connect; /* connect knows its result at once */
    unsigned lacks;       /* families that the port lacks: bit 1 << plb_family */
    uint64_t
        clock_offset;    /* what the clock reads at the start; add to it to let the clock jump, subtract to step back */
    uint32_t clock_bits; /* 64; 32: the clock wraps at 2^32 */

    uint64_t fail_io_at;       /* when io_calls gets here the call fails; 0: never */
    uint64_t fail_io_count;    /* and so do the next ones, this many in all; 0: 1 */
    plb_status fail_io_status; /* how, where the contract allows it for that call; else in that call's usual way */

    /* What happened; may be read at any time. */
    uint64_t now_ms;                /* virtual time since the start; not what the clock reads, and never steps back */
    uint64_t io_calls;              /* connect, read, write, shutdown, info, listen, accept, resolve, open, send,
                                       receive; may be reset */
    uint32_t streams, streams_peak; /* of the program under test */
    uint32_t wakes;                 /* calls of wake */

    plb_io io; /* private, like the rest */
    plb_clock clock;
    plb_random random;
    plb_names names;
    plb_dgram dgram;
    uint64_t random_state;
    bool trace, stepping, woken;
    uint32_t standstill;

    struct sim__event *events, *held; /* a binary heap, and those that a host's SIM_HANG keeps */
    size_t event_count, event_capacity, held_count, held_capacity;
    uint64_t sequence;

    sim_conn **conns; /* all there ever were: a handle that was closed is still known */
    size_t conn_count, conn_capacity;
    sim_conn *listeners, *sockets;
    struct plb_query **queries; /* likewise */
    size_t query_count, query_capacity;
    sim_host_t *hosts[256];
    sim_name_t *first_name;
    uint16_t next_port;

    plb_task *tasks, *task_cursor;
    uint64_t tasks_due;
};

/* A simulator whose random numbers follow from `seed`. Never NULL: without memory, tests end. */
sim *sim_create(uint64_t seed);
/* Ends it, and returns how many streams, queries and tasks the program under test left in it; stderr names them. */
size_t sim_destroy(sim *s);
/* What to lend to the code under test; io, clock, random, names and dgram, all of them `s`'s own. */
plb_port sim_port(sim *s);
/* Reads an address as plb_addr_parse does, port 0 too; what is none ends the test. */
plb_addr sim_addr(const char *text);

/* Moves the clock to what is due first, by max_ms at most (and not at all after a wake), makes the callbacks that are
   due then, and polls the tasks. */
void sim_step(sim *s, uint32_t max_ms);
/* Steps until `ms` have gone by. */
void sim_run_for(sim *s, uint32_t ms);
/* Steps until `done` says so, for max_ms at most; returns what it said last. */
bool sim_run_until(sim *s, bool (*done)(void *user), void *user, uint32_t max_ms);
/* The tasks that each step polls. A task must be removed before it goes. Both may be called at any time. */
void sim_add_task(sim *s, plb_task *task);
void sim_remove_task(sim *s, plb_task *task);
/* Calls wake delay_ms from now, as another thread would. */
void sim_wake_in(sim *s, uint32_t delay_ms);

/* The host of an address, made if need be. */
sim_host_t *sim_host(sim *s, const plb_addr *addr);
/* The entry of a name, made (without addresses) if need be; and the same with these addresses, whose ports do not
   matter. */
sim_name_t *sim_name(sim *s, const char *host);
sim_name_t *sim_name_set(sim *s, const char *host, const plb_addr *addrs, size_t count);

/* Answers connections to an address with a script; NULL: what comes is collected in each inbox, none is answered. */
void sim_serve(sim *s, const plb_addr *addr, sim_script script, void *user);
/* No longer. Connections that exist go on. */
void sim_unserve(sim *s, const plb_addr *addr);
/* Connects to an address, from outside of the program under test. The result is the simulator's. */
sim_conn *sim_dial(sim *s, const plb_addr *addr, sim_script script, void *user);
/* For ends that are played: sends bytes, or a text; what there is no room for is kept until there is. */
void sim_send(sim_conn *conn, const void *bytes, size_t count);
void sim_send_text(sim_conn *conn, const char *text);
/* Ends this side after what was sent, and goes on reading. */
void sim_end(sim_conn *conn);
/* The same, and what comes then is answered with a reset, as when a process closes its socket. */
void sim_close(sim_conn *conn);
/* Breaks the connection now. */
void sim_reset(sim_conn *conn);
/* Leaves what comes in the network, until it has no room for more; or takes it in again. */
void sim_pause(sim_conn *conn, bool paused);
/* Answers datagrams to an address with a script; NULL: no longer. */
void sim_serve_datagrams(sim *s, const plb_addr *addr, sim_datagram_script script, void *user);
/* Sends a datagram from outside of the program under test; `from` may be anybody. */
void sim_datagram(sim *s, const plb_addr *from, const plb_addr *to, const void *bytes, size_t count);
/* The newest connection that was made to an address, this end of it being the host's; NULL: there was none. */
sim_conn *sim_newest(sim *s, const plb_addr *addr);

/* Called with a sentence about what the code under test did wrong; must not return (longjmp). NULL: the sentence goes
   to stderr, and abort. */
extern void (*sim_on_misuse)(const char *sentence);

/* ==== MEMORY ====================================================================================================== */

/* An allocator that counts, fails when it is told to, and checks what it is given back. New memory is filled with 0xCD,
   freed memory with 0xDD. Zeroed, it is ready. Needs no simulator; one thread. */
typedef struct sim_alloc {
    uint64_t fail_at;    /* when `calls` gets here the allocation fails; 0: never */
    uint64_t fail_count; /* and so do the next ones, this many in all; 0: 1 */
    size_t max_bytes;    /* live_bytes never exceeds it; 0: no limit */

    uint64_t calls; /* allocations, failed ones too; may be reset */
    size_t live_blocks, live_bytes, peak_bytes;
    struct sim__block *blocks; /* private */
} sim_alloc;

plb_allocator sim_allocator(sim_alloc *memory);
/* Returns live_blocks, and names them on stderr by the value that `calls` had when they were allocated. */
size_t sim_alloc_leaks(const sim_alloc *memory);

#endif /* SIM_H */

/* ================================================================================================================== */
#ifdef SIM_IMPLEMENTATION
#ifndef SIM__IMPLEMENTED
#define SIM__IMPLEMENTED

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

/* ==== SMALL TOOLS ================================================================================================= */

#define SIM__STANDSTILL_MAX 1000000 /* steps in a row that find something due at once: somebody spins */

void (*sim_on_misuse)(const char *sentence);

static void sim__misuse(const char *format, ...)
{
    char sentence[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sentence, sizeof sentence, format, arguments);
    va_end(arguments);
    if (sim_on_misuse)
        sim_on_misuse(sentence);
    fprintf(stderr, "sim: %s\n", sentence);
    abort();
}

/* The simulator's own memory: a test does not go on without it. */
static void *sim__realloc(void *old, size_t size)
{
    void *memory = realloc(old, size);
    if (memory == NULL) {
        fprintf(stderr, "sim: out of memory\n");
        abort();
    }
    return memory;
}

static void *sim__zeroed(size_t size)
{
    return memset(sim__realloc(NULL, size), 0, size);
}

/* Makes room for one more element in an array. */
static void *sim__grow(void *array, size_t count, size_t *capacity, size_t element_size)
{
    if (count < *capacity)
        return array;
    *capacity = *capacity ? *capacity * 2 : 16;
    return sim__realloc(array, *capacity * element_size);
}

static void sim__trace(const sim *s, const sim_conn *conn, const char *format, ...)
{
    va_list arguments;
    if (!s->trace)
        return;
    fprintf(stderr, "%8llu ms  ", (unsigned long long)s->now_ms);
    if (conn)
        fprintf(stderr, "#%u ", (unsigned)conn->number);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\n");
}

static void sim__bytes_append(sim_bytes *bytes, const void *data, size_t count)
{
    if (count == 0)
        return;
    if (bytes->start + bytes->size + count + 1 > bytes->capacity) {
        if (bytes->start > 0)
            memmove(bytes->data, bytes->data + bytes->start, bytes->size);
        bytes->start = 0;
        if (bytes->size + count + 1 > bytes->capacity) {
            bytes->capacity = (bytes->size + count + 1) * 2;
            bytes->data = (char *)sim__realloc(bytes->data, bytes->capacity);
        }
    }
    memcpy(bytes->data + bytes->start + bytes->size, data, count);
    bytes->size += count;
    bytes->data[bytes->start + bytes->size] = '\0';
}

static const char *sim__bytes_first(const sim_bytes *bytes)
{
    return bytes->size > 0 ? bytes->data + bytes->start : "";
}

static void sim__bytes_drop(sim_bytes *bytes, size_t count)
{
    bytes->size -= count;
    bytes->start = bytes->size > 0 ? bytes->start + count : 0;
}

static void sim__bytes_free(sim_bytes *bytes)
{
    free(bytes->data);
    memset(bytes, 0, sizeof *bytes);
}

static size_t sim__min(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014. */
static uint64_t sim__random(sim *s)
{
    uint64_t z = s->random_state += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

/* ==== EVENTS ====================================================================================================== */

typedef enum sim__event_kind {
    /* what travels between two ends of a connection */
    SIM__CONNECT,   /* a connection attempt reaches the host */
    SIM__CONNECTED, /* its result reaches the one who tries */
    SIM__BYTES,     /* bytes arrive */
    SIM__END,       /* the end of the stream arrives */
    SIM__BROKEN,    /* a reset arrives */
    SIM__ROOM,      /* the sender learns that the reader has made room */
    /* what travels between sockets */
    SIM__DATAGRAM,
    SIM__TROUBLE, /* the sender learns what a datagram met */
    /* what happens in one place */
    SIM__ACCEPT, /* a listener may have something to accept */
    SIM__ANSWER, /* a name was resolved, or not */
    SIM__WAKE
} sim__event_kind;

typedef struct sim__datagram {
    sim_conn *sender; /* a socket of the program, or NULL */
    sim_host_t *host; /* whose way it takes */
    plb_addr from, to;
    size_t size; /* of what stands behind this struct, NUL-terminated */
    struct sim__datagram *next;
} sim__datagram;

typedef struct sim__event {
    uint64_t at, sequence; /* the order of things: by time, then by when they were set off */
    sim__event_kind kind;
    sim_conn *conn;
    plb_query *query;
    sim__datagram *datagram;
    plb_status status;
    size_t count;
    const char *constant; /* where the sender keeps these bytes, if it promised not to change them */
} sim__event;

static bool sim__earlier(const sim__event *a, const sim__event *b)
{
    return a->at != b->at ? a->at < b->at : a->sequence < b->sequence;
}

static void sim__push(sim *s, sim__event event)
{
    size_t i;
    s->events = (sim__event *)sim__grow(s->events, s->event_count, &s->event_capacity, sizeof event);
    for (i = s->event_count++; i > 0 && sim__earlier(&event, &s->events[(i - 1) / 2]); i = (i - 1) / 2)
        s->events[i] = s->events[(i - 1) / 2];
    s->events[i] = event;
}

static sim__event sim__pop(sim *s)
{
    sim__event first = s->events[0], last = s->events[--s->event_count];
    size_t i = 0, child;
    while ((child = 2 * i + 1) < s->event_count) {
        if (child + 1 < s->event_count && sim__earlier(&s->events[child + 1], &s->events[child]))
            child++;
        if (!sim__earlier(&s->events[child], &last))
            break;
        s->events[i] = s->events[child];
        i = child;
    }
    s->events[i] = last;
    return first;
}

static sim__event sim__event_of(sim__event_kind kind, sim_conn *conn)
{
    sim__event event;
    memset(&event, 0, sizeof event);
    event.kind = kind;
    event.conn = conn;
    return event;
}

static void sim__schedule(sim *s, sim__event event, uint64_t at)
{
    event.at = at;
    event.sequence = s->sequence++;
    sim__push(s, event);
}

/* When something that is sent now arrives: it cannot overtake what was sent before. */
static uint64_t sim__arrival(const sim_conn *from)
{
    uint64_t at = from->s->now_ms + from->host->latency_ms;
    return at < from->line_free ? from->line_free : at;
}

/* Puts something on the line to the peer. */
static void sim__transmit(sim_conn *from, sim__event event)
{
    from->line_free = sim__arrival(from);
    sim__schedule(from->s, event, from->line_free);
}

/* What a hanging host keeps from arriving. */
static bool sim__is_held(const sim__event *event)
{
    return event->kind <= SIM__ROOM && event->conn->host->fault == SIM_HANG;
}

static void sim__hold(sim *s, const sim__event *event)
{
    s->held = (sim__event *)sim__grow(s->held, s->held_count, &s->held_capacity, sizeof *event);
    s->held[s->held_count++] = *event;
}

/* Whose host hangs no more arrives now, in the old order and ahead of what was sent later. */
static void sim__release_held(sim *s)
{
    size_t i, kept = 0;
    for (i = 0; i < s->held_count; i++) {
        if (sim__is_held(&s->held[i])) {
            s->held[kept++] = s->held[i];
            continue;
        }
        s->held[i].at = s->now_ms;
        sim__push(s, s->held[i]);
    }
    s->held_count = kept;
}

/* ==== HOSTS ======================================================================================================= */

sim_host_t *sim_host(sim *s, const plb_addr *addr)
{
    sim_host_t **bucket = &s->hosts[plb_addr_hash(addr) % 256], *host;
    for (host = *bucket; host; host = host->next)
        if (plb_addr_compare(&host->addr, addr) == 0)
            return host;
    host = (sim_host_t *)sim__zeroed(sizeof *host);
    *host = s->defaults;
    host->addr = *addr;
    host->next = *bucket;
    *bucket = host;
    return host;
}

static const char *sim__text(const plb_addr *addr, char text[PLB_ADDR_TEXT_MAX])
{
    plb_addr_format(addr, text, PLB_ADDR_TEXT_MAX);
    return text;
}

plb_addr sim_addr(const char *text)
{
    plb_addr addr;
    size_t length = strlen(text);
    char copy[PLB_ADDR_TEXT_MAX + 1];
    if (plb_addr_parse(&addr, text, length) == PLB_OK)
        return addr;
    /* plb_addr_parse takes no port 0: read "...:1" in its place. */
    if (length > 2 && length < sizeof copy && strcmp(text + length - 2, ":0") == 0) {
        memcpy(copy, text, length + 1);
        copy[length - 1] = '1';
        if (plb_addr_parse(&addr, copy, length) == PLB_OK) {
            addr.port = 0;
            return addr;
        }
    }
    fprintf(stderr, "sim: %s is not an address\n", text);
    abort();
}

static sim_conn *sim__listener_at(const sim *s, const plb_addr *addr)
{
    sim_conn *listener;
    for (listener = s->listeners; listener; listener = listener->next_listener)
        if (plb_addr_compare(&listener->local, addr) == 0)
            return listener;
    return NULL;
}

static sim_conn *sim__socket_at(const sim *s, const plb_addr *addr)
{
    sim_conn *socket;
    for (socket = s->sockets; socket; socket = socket->next_socket)
        if (plb_addr_compare(&socket->local, addr) == 0)
            return socket;
    return NULL;
}

static plb_addr sim__any_of(const plb_addr *addr)
{
    plb_addr any = *addr;
    memset(&any.u, 0, sizeof any.u);
    any.scope = 0;
    return any;
}

/* Who listens for connections to an address: on it, or on all addresses of the family. Listeners that share an address
   take turns. */
static sim_conn *sim__listener_for(sim *s, const plb_addr *addr)
{
    sim_conn *listener = sim__listener_at(s, addr), **link;
    if (!listener && addr->family != PLB_FAMILY_UNIX) {
        plb_addr any = sim__any_of(addr);
        listener = sim__listener_at(s, &any);
    }
    if (listener && listener->reuse_port) {
        for (link = &s->listeners; *link != listener; link = &(*link)->next_listener)
            ;
        *link = listener->next_listener;
        while (*link)
            link = &(*link)->next_listener;
        *link = listener;
        listener->next_listener = NULL;
    }
    return listener;
}

/* Fills in a port where none was chosen: the ephemeral ones of RFC 6335, in turn. */
static void sim__choose_port(sim *s, plb_addr *addr)
{
    if (addr->family == PLB_FAMILY_UNIX || addr->family == PLB_FAMILY_NONE || addr->port != 0)
        return;
    do {
        s->next_port = s->next_port < 49152 || s->next_port == 65535 ? 49152 : (uint16_t)(s->next_port + 1);
        addr->port = s->next_port;
    } while (sim__listener_at(s, addr) || sim__socket_at(s, addr));
}

/* Where things come from that name no source; no port yet. */
static plb_addr sim__this_machine(const plb_addr *remote)
{
    plb_addr local;
    memset(&local, 0, sizeof local);
    if (remote->family == PLB_FAMILY_IPV4 || remote->family == PLB_FAMILY_IPV6) {
        local.family = remote->family;
        local.scope = remote->scope;
        if (remote->family == PLB_FAMILY_IPV4)
            local.u.v4[0] = 127, local.u.v4[3] = 1;
        else
            local.u.v6[15] = 1;
    }
    return local;
}

static plb_addr sim__local_for(sim *s, const plb_addr *remote)
{
    plb_addr local = sim__this_machine(remote);
    sim__choose_port(s, &local);
    return local;
}

/* ==== CONNECTIONS ================================================================================================= */

static sim_conn *sim__conn_new(sim *s, sim_host_t *host, const plb_addr *local, const plb_addr *remote)
{
    sim_conn *conn = (sim_conn *)sim__zeroed(sizeof *conn);
    s->conns = (sim_conn **)sim__grow(s->conns, s->conn_count, &s->conn_capacity, sizeof conn);
    s->conns[s->conn_count++] = conn;
    conn->s = s;
    conn->number = (uint32_t)s->conn_count;
    conn->host = host;
    conn->local = *local;
    conn->remote = *remote;
    conn->status = PLB_AGAIN;
    conn->room = host ? host->buffer_bytes : 0;
    return conn;
}

/* Gives a stream to the program under test. */
static plb_stream *sim__own(sim_conn *conn, plb_handler handler)
{
    sim *s = conn->s;
    conn->owned = true;
    conn->handler = handler;
    s->streams++;
    if (s->streams > s->streams_peak)
        s->streams_peak = s->streams;
    return (plb_stream *)(void *)conn;
}

static void sim__fire(sim_conn *conn, plb_event event, plb_status status)
{
    static const char *const names[] = {"", "connect", "read", "write", "accept"};
    if (conn->closed || !(conn->armed & (1u << event)))
        return;
    conn->armed &= ~(1u << event);
    sim__trace(conn->s, conn, "callback: %s, %s", names[event], plb_status_text(status));
    conn->handler.fn(conn->handler.user, (plb_stream *)(void *)conn, event, status);
}

static void sim__play(sim_conn *conn);

/* Something has changed for the one who reads, or writes. */
static void sim__readable(sim_conn *conn)
{
    if (conn->scripted)
        sim__play(conn);
    else
        sim__fire(conn, PLB_EVENT_READ, PLB_OK);
}

static void sim__transmit_end(sim_conn *conn)
{
    if (conn->end_sent || conn->status != PLB_OK)
        return;
    conn->end_sent = true;
    sim__transmit(conn, sim__event_of(SIM__END, conn->peer));
}

/* The connection is broken for this end, and will be for the peer. */
static void sim__break(sim_conn *conn, plb_status status)
{
    if (conn->status != PLB_OK)
        return;
    conn->status = status;
    sim__transmit(conn, sim__event_of(SIM__BROKEN, conn->peer));
}

/* Lets the host's fault cut a connection that has sent as much as it may. */
static void sim__cut(sim_conn *conn)
{
    sim_host_t *host = conn->host;
    if (!conn->server_side || conn->cut || (host->fault != SIM_RESET && host->fault != SIM_TRUNCATE) ||
        conn->sent < host->fault_bytes)
        return;
    conn->cut = true;
    sim__trace(conn->s, conn, "the host's fault ends it after %lu bytes", (unsigned long)conn->sent);
    if (host->fault == SIM_TRUNCATE) {
        sim__transmit_end(conn);
        return;
    }
    sim__transmit(conn, sim__event_of(SIM__BROKEN, conn->peer));
    sim__schedule(conn->s, sim__event_of(SIM__BROKEN, conn), conn->s->now_ms);
}

/* How many of these bytes the host's fault lets through. */
static size_t sim__uncut(const sim_conn *conn, size_t count)
{
    const sim_host_t *host = conn->host;
    if (conn->cut)
        return 0;
    if (!conn->server_side || (host->fault != SIM_RESET && host->fault != SIM_TRUNCATE))
        return count;
    return conn->sent < host->fault_bytes ? sim__min(count, (size_t)(host->fault_bytes - conn->sent)) : 0;
}

/* Of so many bytes, those that go within one millisecond: the one of the last thing that was sent, if it has room. */
static size_t sim__allowed(sim_conn *conn, size_t rate, size_t count)
{
    size_t part;
    if (conn->line_left == 0 || conn->line_free != sim__arrival(conn)) {
        conn->line_free = sim__arrival(conn) + 1;
        conn->line_left = rate;
    }
    part = sim__min(conn->line_left, count);
    conn->line_left -= part;
    return part;
}

/* Puts bytes on the line: all at once, or as many each millisecond as the host's rate allows. */
static void sim__transmit_bytes(sim_conn *conn, const char *data, size_t count, bool constant)
{
    size_t rate = conn->host->bytes_per_ms, part;
    conn->room -= count;
    count = sim__uncut(conn, count);
    conn->sent += count;
    if (!conn->peer->closed)
        sim__bytes_append(&conn->peer->line, data, count);
    for (; count > 0; data += part, count -= part) {
        sim__event event = sim__event_of(SIM__BYTES, conn->peer);
        part = rate ? sim__allowed(conn, rate, count) : count;
        event.count = part;
        event.constant = constant ? data : NULL;
        sim__transmit(conn, event);
    }
    sim__cut(conn);
}

/* Takes bytes that arrived off the line; the sender will hear of the room. */
static void sim__take(sim_conn *conn, size_t count)
{
    sim__event event = sim__event_of(SIM__ROOM, conn->peer);
    sim__bytes_drop(&conn->line, count);
    conn->arrived -= count;
    event.count = count;
    sim__schedule(conn->s, event, conn->s->now_ms + conn->host->latency_ms);
}

/* A call of the program is made to fail: what it has not read yet is lost as well. */
static plb_status sim__fail(sim_conn *conn, plb_status status)
{
    sim__break(conn, status);
    sim__bytes_free(&conn->line);
    conn->arrived = 0;
    return status;
}

static sim__datagram *sim__next_datagram(sim_conn *socket)
{
    sim__datagram *datagram = socket->first_datagram;
    if (!datagram)
        return NULL;
    socket->first_datagram = datagram->next;
    socket->datagram_bytes -= datagram->size;
    return datagram;
}

static void sim__gone(sim_conn *conn)
{
    sim__datagram *datagram;
    while ((datagram = sim__next_datagram(conn)) != NULL)
        free(datagram);
    conn->closed = true;
    conn->armed = 0;
    sim__bytes_free(&conn->line);
    sim__bytes_free(&conn->outbox);
    conn->arrived = 0;
    if (conn->counted)
        conn->host->open--;
    conn->counted = false;
}

/* Closes one end. A graceful close still delivers what was sent; but bytes that nobody will read are answered with a
   reset, so that whoever sent them does not wait for room for ever. */
static void sim__close(sim_conn *conn, plb_close_how how)
{
    size_t unread = conn->line.size;
    if (conn->peer && conn->status == PLB_OK) {
        if (how == PLB_CLOSE_GRACEFUL) {
            sim__transmit_end(conn);
            if (unread > 0)
                sim__transmit(conn, sim__event_of(SIM__BROKEN, conn->peer));
        } else {
            sim__break(conn, PLB_ERR_RESET);
        }
    }
    sim__gone(conn);
}

/* ==== PLAYED ENDS ================================================================================================= */

static sim_conn *sim__scripted(sim_conn *conn, sim_script script, void *user)
{
    conn->scripted = true;
    conn->script = script;
    conn->script_user = user;
    return conn;
}

/* Sends what there is room for, then the end if it was asked for. */
static void sim__pump(sim_conn *conn)
{
    size_t count = sim__min(conn->outbox.size, conn->room);
    if (conn->status != PLB_OK || conn->closed)
        return;
    if (count > 0) {
        sim__transmit_bytes(conn, sim__bytes_first(&conn->outbox), count, false);
        sim__bytes_drop(&conn->outbox, count);
    }
    if (conn->outbox.size > 0)
        return;
    if (conn->end_wanted)
        sim__transmit_end(conn);
    if (conn->close_wanted)
        sim__close(conn, PLB_CLOSE_GRACEFUL);
}

static void sim__play(sim_conn *conn)
{
    size_t used;
    if (!conn->paused && conn->arrived > 0) {
        size_t count = conn->arrived;
        sim__bytes_append(&conn->inbox, sim__bytes_first(&conn->line), count);
        sim__take(conn, count);
    }
    if (!conn->script)
        return;
    used = conn->script(conn->script_user, conn, sim__bytes_first(&conn->inbox), conn->inbox.size);
    if (used > conn->inbox.size)
        sim__misuse("the script of #%u consumed more than there is", (unsigned)conn->number);
    if (used > 0)
        sim__bytes_drop(&conn->inbox, used);
}

void sim_serve(sim *s, const plb_addr *addr, sim_script script, void *user)
{
    sim_host_t *host = sim_host(s, addr);
    host->served = true;
    host->script = script;
    host->script_user = user;
}

void sim_unserve(sim *s, const plb_addr *addr)
{
    sim_host(s, addr)->served = false;
}

sim_conn *sim_dial(sim *s, const plb_addr *addr, sim_script script, void *user)
{
    plb_addr local = sim__local_for(s, addr);
    sim_conn *conn = sim__scripted(sim__conn_new(s, sim_host(s, addr), &local, addr), script, user);
    sim__transmit(conn, sim__event_of(SIM__CONNECT, conn));
    return conn;
}

void sim_send(sim_conn *conn, const void *bytes, size_t count)
{
    if (conn->end_wanted)
        sim__misuse("sim_send after sim_end on #%u", (unsigned)conn->number);
    sim__bytes_append(&conn->outbox, bytes, count);
    sim__pump(conn);
}

void sim_send_text(sim_conn *conn, const char *text)
{
    sim_send(conn, text, strlen(text));
}

void sim_end(sim_conn *conn)
{
    conn->end_wanted = true;
    sim__pump(conn);
}

void sim_close(sim_conn *conn)
{
    conn->close_wanted = true;
    sim_end(conn);
}

void sim_reset(sim_conn *conn)
{
    sim__break(conn, PLB_ERR_RESET);
}

void sim_pause(sim_conn *conn, bool paused)
{
    conn->paused = paused;
    if (!paused)
        sim__schedule(conn->s, sim__event_of(SIM__BYTES, conn), conn->s->now_ms);
}

sim_conn *sim_newest(sim *s, const plb_addr *addr)
{
    sim_host_t *host = sim_host(s, addr);
    size_t i;
    for (i = s->conn_count; i > 0; i--)
        if (s->conns[i - 1]->host == host && s->conns[i - 1]->server_side)
            return s->conns[i - 1];
    return NULL;
}

/* ==== WHAT ARRIVES ================================================================================================ */

/* A connection attempt is at the host: who takes it, if anybody does? */
static plb_status sim__establish(sim_conn *client)
{
    sim *s = client->s;
    sim_host_t *host = client->host;
    bool mute = host->fault == SIM_SILENT ||
                ((host->fault == SIM_RESET || host->fault == SIM_TRUNCATE) && host->fault_bytes == 0);
    sim_conn *listener = NULL, *server, **link;
    host->connects++;
    if (host->fault == SIM_REFUSE)
        return PLB_ERR_REFUSED;
    if (host->fault == SIM_UNREACHABLE)
        return PLB_ERR_UNREACHABLE;
    if (!mute && !host->served) {
        listener = sim__listener_for(s, &host->addr);
        if (!listener || listener->waiting >= listener->backlog)
            return PLB_ERR_REFUSED;
    }
    server = sim__conn_new(s, host, &client->remote, &client->local);
    server->status = PLB_OK;
    server->server_side = true;
    server->peer = client;
    client->peer = server;
    client->counted = true;
    host->open++;
    if (mute || host->served) {
        sim__scripted(server, mute ? NULL : host->script, host->script_user)->paused = mute;
        return PLB_OK;
    }
    for (link = &listener->first_waiting; *link; link = &(*link)->next_waiting)
        ;
    *link = server;
    listener->waiting++;
    sim__schedule(s, sim__event_of(SIM__ACCEPT, listener), s->now_ms);
    return PLB_OK;
}

static void sim__greet(sim_conn *server)
{
    sim__cut(server);
    if (server->scripted && !server->cut)
        sim__play(server);
}

static void sim__on_connect(sim_conn *client)
{
    sim__event result = sim__event_of(SIM__CONNECTED, client);
    if (client->closed)
        return;
    result.status = sim__establish(client);
    /* Ahead of everything that the host sends: on its line if there is one. */
    if (result.status == PLB_OK) {
        sim__transmit(client->peer, result);
        sim__greet(client->peer);
    } else {
        sim__schedule(client->s, result, client->s->now_ms + client->host->latency_ms);
    }
}

static void sim__on_connected(sim_conn *client, plb_status status)
{
    if (client->closed) {
        /* Nobody waits for it any more. A host that made a connection of it is told. */
        if (status == PLB_OK)
            sim__transmit(client, sim__event_of(SIM__BROKEN, client->peer));
        return;
    }
    client->status = status;
    if (!client->scripted) {
        sim__fire(client, PLB_EVENT_CONNECT, status);
        return;
    }
    sim__pump(client);
    sim__play(client);
}

static void sim__on_bytes(sim_conn *conn, const sim__event *event)
{
    const char *bytes;
    if (conn->closed) {
        sim__transmit(conn, sim__event_of(SIM__BROKEN, conn->peer));
        return;
    }
    if (conn->status != PLB_OK)
        return;
    bytes = sim__bytes_first(&conn->line) + conn->arrived;
    if (event->constant && memcmp(bytes, event->constant, event->count) != 0)
        sim__misuse("bytes written to #%u as PLB_CHUNK_CONSTANT have changed", (unsigned)conn->peer->number);
    conn->arrived += event->count;
    sim__trace(conn->s, conn, "%lu bytes arrive", (unsigned long)event->count);
    sim__readable(conn);
}

static void sim__on_end(sim_conn *conn)
{
    if (conn->closed)
        return;
    sim__trace(conn->s, conn, "the end arrives");
    conn->ended = true;
    sim__readable(conn);
}

/* What had arrived before a reset may still be read. */
static void sim__on_broken(sim_conn *conn)
{
    if (conn->closed || conn->status != PLB_OK)
        return;
    sim__trace(conn->s, conn, "a reset arrives");
    conn->status = PLB_ERR_RESET;
    sim__readable(conn);
    sim__fire(conn, PLB_EVENT_WRITE, PLB_OK);
}

static void sim__on_room(sim_conn *conn, size_t count)
{
    if (conn->closed)
        return;
    conn->room += count;
    if (conn->scripted)
        sim__pump(conn);
    else
        sim__fire(conn, PLB_EVENT_WRITE, PLB_OK);
}

static bool sim__may_own_more(const sim *s)
{
    return s->max_streams == 0 || s->streams < s->max_streams;
}

static void sim__on_accept(sim_conn *listener)
{
    if (listener->waiting > 0 && sim__may_own_more(listener->s))
        sim__fire(listener, PLB_EVENT_ACCEPT, PLB_OK);
}

static void sim__on_answer(plb_query *query);
static void sim__on_datagram(sim *s, sim__datagram *datagram);
static void sim__on_trouble(sim_conn *socket, plb_status status);

static void sim__happen(sim *s, const sim__event *event)
{
    switch (event->kind) {
    case SIM__CONNECT:
        sim__on_connect(event->conn);
        break;
    case SIM__CONNECTED:
        sim__on_connected(event->conn, event->status);
        break;
    case SIM__BYTES:
        sim__on_bytes(event->conn, event);
        break;
    case SIM__END:
        sim__on_end(event->conn);
        break;
    case SIM__BROKEN:
        sim__on_broken(event->conn);
        break;
    case SIM__ROOM:
        sim__on_room(event->conn, event->count);
        break;
    case SIM__DATAGRAM:
        sim__on_datagram(s, event->datagram);
        break;
    case SIM__TROUBLE:
        sim__on_trouble(event->conn, event->status);
        break;
    case SIM__ACCEPT:
        sim__on_accept(event->conn);
        break;
    case SIM__ANSWER:
        sim__on_answer(event->query);
        break;
    case SIM__WAKE:
        s->io.wake(s);
        break;
    }
}

/* ==== FAILING CALLS =============================================================================================== */

/* A call that can fail, how it fails unless told otherwise, and what else the contract allows it to say. */
typedef struct sim__call {
    const char *name;
    plb_status usual;
    plb_status others[8]; /* ends with PLB_OK */
} sim__call;

static const sim__call sim__connect_call = {"connect",
                                            PLB_ERR_LIMIT,
                                            {PLB_ERR_MEMORY, PLB_ERR_UNSUPPORTED, PLB_ERR_REFUSED, PLB_ERR_UNREACHABLE,
                                             PLB_ERR_IN_USE, PLB_ERR_ACCESS, PLB_ERR_IO, PLB_OK}};
static const sim__call sim__read_call = {
    "read", PLB_ERR_RESET, {PLB_ERR_TIMEOUT, PLB_ERR_UNREACHABLE, PLB_ERR_IO, PLB_OK}};
static const sim__call sim__write_call = {
    "write", PLB_ERR_RESET, {PLB_ERR_TIMEOUT, PLB_ERR_UNREACHABLE, PLB_ERR_IO, PLB_OK}};
static const sim__call sim__shutdown_call = {"shutdown", PLB_ERR_RESET, {PLB_OK}};
static const sim__call sim__info_call = {"info", PLB_ERR_IO, {PLB_OK}};
static const sim__call sim__listen_call = {
    "listen",
    PLB_ERR_LIMIT,
    {PLB_ERR_IN_USE, PLB_ERR_ACCESS, PLB_ERR_MEMORY, PLB_ERR_ADDRESS, PLB_ERR_UNSUPPORTED, PLB_ERR_IO, PLB_OK}};
static const sim__call sim__accept_call = {"accept", PLB_ERR_IO, {PLB_ERR_MEMORY, PLB_OK}};
static const sim__call sim__resolve_call = {"resolve", PLB_ERR_LIMIT, {PLB_ERR_MEMORY, PLB_ERR_IO, PLB_OK}};
static const sim__call sim__open_call = {"open",
                                         PLB_ERR_LIMIT,
                                         {PLB_ERR_MEMORY, PLB_ERR_ADDRESS, PLB_ERR_IN_USE, PLB_ERR_ACCESS,
                                          PLB_ERR_UNREACHABLE, PLB_ERR_UNSUPPORTED, PLB_ERR_IO, PLB_OK}};
static const sim__call sim__send_call = {
    "send", PLB_ERR_LIMIT, {PLB_ERR_MEMORY, PLB_ERR_REFUSED, PLB_ERR_UNREACHABLE, PLB_ERR_ACCESS, PLB_ERR_IO, PLB_OK}};
static const sim__call sim__receive_call = {
    "receive",
    PLB_ERR_IO,
    {PLB_ERR_MEMORY, PLB_ERR_LIMIT, PLB_ERR_REFUSED, PLB_ERR_UNREACHABLE, PLB_ERR_ACCESS, PLB_OK}};

/* Is n within the calls that are to fail? */
static bool sim__is_chosen(uint64_t n, uint64_t at, uint64_t count)
{
    return at != 0 && n >= at && n - at < (count ? count : 1);
}

/* Counts a call, and says PLB_OK or how it is to fail. */
static plb_status sim__count(sim *s, const sim__call *call)
{
    plb_status status = call->usual;
    size_t i;
    s->io_calls++;
    if (!sim__is_chosen(s->io_calls, s->fail_io_at, s->fail_io_count))
        return PLB_OK;
    for (i = 0; call->others[i] != PLB_OK; i++)
        if (call->others[i] == s->fail_io_status)
            status = s->fail_io_status;
    sim__trace(s, NULL, "call %llu, %s, is made to fail: %s", (unsigned long long)s->io_calls, call->name,
               plb_status_text(status));
    return status;
}

/* ==== PLB_IO ====================================================================================================== */

/* Which stream is it, and may it be used so? Those that were closed are still known. */
static sim_conn *sim__known(void *self, plb_stream *stream, const char *call)
{
    sim_conn *conn = (sim_conn *)(void *)stream;
    if (!conn || conn->s != self || !conn->owned)
        sim__misuse("%s with something that is not a stream of this port", call);
    else if (conn->closed)
        sim__misuse("%s after close on #%u", call, (unsigned)conn->number);
    return conn;
}

static sim_conn *sim__stream(void *self, plb_stream *stream, const char *call)
{
    sim_conn *conn = sim__known(self, stream, call);
    if (conn->datagrams)
        sim__misuse("%s on #%u, which is a socket of datagrams", call, (unsigned)conn->number);
    return conn;
}

static sim_conn *sim__listener(void *self, plb_stream *stream, const char *call)
{
    sim_conn *conn = sim__stream(self, stream, call);
    if (!conn->listener)
        sim__misuse("%s on #%u, which is not a listener", call, (unsigned)conn->number);
    return conn;
}

static sim_conn *sim__connection(void *self, plb_stream *stream, const char *call)
{
    sim_conn *conn = sim__stream(self, stream, call);
    if (conn->listener)
        sim__misuse("%s on #%u, which is a listener", call, (unsigned)conn->number);
    if (!conn->peer || conn->status == PLB_AGAIN)
        sim__misuse("%s on #%u, which is not connected", call, (unsigned)conn->number);
    return conn;
}

static plb_status sim__arm(sim_conn *conn, plb_event event)
{
    conn->armed |= 1u << event;
    return PLB_AGAIN;
}

/* How much of `possible` one call moves. */
static size_t sim__portion(sim *s, size_t possible, uint32_t most)
{
    if (most > 0)
        possible = sim__min(possible, most);
    return s->random_sizes && possible > 1 ? 1 + (size_t)(sim__random(s) % possible) : possible;
}

/* Is there a connection between these two addresses? */
static bool sim__pair_exists(const sim *s, const plb_addr *local, const plb_addr *remote)
{
    size_t i;
    for (i = 0; i < s->conn_count; i++)
        if (!s->conns[i]->closed && plb_addr_compare(&s->conns[i]->local, local) == 0 &&
            plb_addr_compare(&s->conns[i]->remote, remote) == 0)
            return true;
    return false;
}

/* Finds the local address of a connection. */
static plb_status sim__source(sim *s, const plb_peer *peer, plb_addr *local)
{
    if (peer->source.family == PLB_FAMILY_NONE) {
        *local = sim__local_for(s, &peer->addr);
        return PLB_OK;
    }
    if (peer->source.family != peer->addr.family)
        return PLB_ERR_UNSUPPORTED;
    *local = peer->source;
    if (local->port != 0 && sim__pair_exists(s, local, &peer->addr))
        return PLB_ERR_IN_USE;
    sim__choose_port(s, local);
    return PLB_OK;
}

/* A connection whose result is known without waiting. */
static plb_status sim__connect_now(sim_conn *conn, plb_handler handler, plb_stream **out)
{
    plb_status status = sim__establish(conn);
    if (status != PLB_OK) {
        sim__gone(conn);
        return status;
    }
    conn->status = PLB_OK;
    *out = sim__own(conn, handler);
    sim__greet(conn->peer);
    return PLB_OK;
}

static plb_status sim__io_connect(void *self, const plb_peer *peer, plb_handler handler, plb_stream **out)
{
    sim *s = (sim *)self;
    sim_conn *conn;
    plb_addr local;
    char text[PLB_ADDR_TEXT_MAX];
    plb_status status = sim__count(s, &sim__connect_call);
    if (!handler.fn)
        sim__misuse("connect without a handler");
    if (status == PLB_OK &&
        (peer->tls != NULL || peer->addr.family == PLB_FAMILY_NONE || (s->lacks & (1u << peer->addr.family))))
        status = PLB_ERR_UNSUPPORTED;
    if (status == PLB_OK && !sim__may_own_more(s))
        status = PLB_ERR_LIMIT;
    if (status == PLB_OK)
        status = sim__source(s, peer, &local);
    if (status != PLB_OK) {
        sim__trace(s, NULL, "no connection to %s: %s", sim__text(&peer->addr, text), plb_status_text(status));
        return status;
    }
    conn = sim__conn_new(s, sim_host(s, &peer->addr), &local, &peer->addr);
    sim__trace(s, conn, "connects to %s", sim__text(&peer->addr, text));
    if (s->instant_connect && conn->host->fault != SIM_HANG)
        return sim__connect_now(conn, handler, out);
    *out = sim__own(conn, handler);
    sim__transmit(conn, sim__event_of(SIM__CONNECT, conn));
    return sim__arm(conn, PLB_EVENT_CONNECT);
}

static plb_status sim__io_read(void *self, plb_stream *stream, void *buffer, size_t capacity, size_t *got)
{
    sim_conn *conn = sim__connection(self, stream, "read");
    plb_status failure = sim__count(conn->s, &sim__read_call);
    if (!buffer || capacity == 0 || !got)
        sim__misuse("read of 0 bytes on #%u", (unsigned)conn->number);
    if (failure != PLB_OK)
        return sim__fail(conn, failure);
    if (conn->arrived > 0) {
        size_t count = sim__portion(conn->s, sim__min(capacity, conn->arrived), conn->s->max_read);
        memcpy(buffer, sim__bytes_first(&conn->line), count);
        sim__take(conn, count);
        sim__trace(conn->s, conn, "read: %lu bytes", (unsigned long)count);
        *got = count;
        return PLB_OK;
    }
    if (conn->ended)
        return PLB_END;
    return conn->status != PLB_OK ? conn->status : sim__arm(conn, PLB_EVENT_READ);
}

static size_t sim__offered(const sim_conn *conn, const plb_chunk *chunks, size_t count)
{
    size_t i, offered = 0;
    if (!chunks || count == 0 || count > PLB_CHUNKS_MAX)
        sim__misuse("write of %lu chunks on #%u", (unsigned long)count, (unsigned)conn->number);
    for (i = 0; i < count; i++)
        offered += chunks[i].size;
    if (offered == 0)
        sim__misuse("write of 0 bytes on #%u", (unsigned)conn->number);
    return offered;
}

static plb_status sim__io_write(void *self, plb_stream *stream, const plb_chunk *chunks, size_t count, size_t *taken)
{
    sim_conn *conn = sim__connection(self, stream, "write");
    plb_status failure = sim__count(conn->s, &sim__write_call);
    size_t offered = sim__offered(conn, chunks, count), left, part;
    if (conn->end_sent && !conn->cut)
        sim__misuse("write after shutdown on #%u", (unsigned)conn->number);
    if (failure != PLB_OK)
        return sim__fail(conn, failure);
    if (conn->status != PLB_OK)
        return conn->status;
    if (conn->room == 0)
        return sim__arm(conn, PLB_EVENT_WRITE);
    *taken = sim__portion(conn->s, sim__min(offered, conn->room), conn->s->max_write);
    sim__trace(conn->s, conn, "write: %lu of %lu bytes", (unsigned long)*taken, (unsigned long)offered);
    for (left = *taken; left > 0; left -= part, chunks++) {
        part = sim__min(left, chunks->size);
        if (part > 0)
            sim__transmit_bytes(conn, (const char *)chunks->data, part, (chunks->flags & PLB_CHUNK_CONSTANT) != 0);
    }
    return PLB_OK;
}

static plb_status sim__io_watch(void *self, plb_stream *stream, plb_event event)
{
    sim_conn *conn = sim__connection(self, stream, "watch");
    if (event != PLB_EVENT_READ && event != PLB_EVENT_WRITE)
        sim__misuse("watch for neither reading nor writing on #%u", (unsigned)conn->number);
    if (conn->status != PLB_OK)
        return PLB_OK;
    if (event == PLB_EVENT_READ ? conn->arrived > 0 || conn->ended : conn->room > 0)
        return PLB_OK;
    return sim__arm(conn, event);
}

static plb_status sim__io_shutdown(void *self, plb_stream *stream)
{
    sim_conn *conn = sim__connection(self, stream, "shutdown");
    plb_status failure = sim__count(conn->s, &sim__shutdown_call);
    sim__trace(conn->s, conn, "shutdown");
    if (failure != PLB_OK)
        return sim__fail(conn, failure);
    if (conn->status != PLB_OK)
        return PLB_ERR_RESET;
    sim__transmit_end(conn);
    return PLB_OK;
}

/* Those who wait to be accepted learn that nobody will. */
static void sim__close_listener(sim_conn *listener)
{
    sim_conn **link, *waiting;
    for (link = &listener->s->listeners; *link != listener; link = &(*link)->next_listener)
        ;
    *link = listener->next_listener;
    for (waiting = listener->first_waiting; waiting; waiting = waiting->next_waiting)
        sim__close(waiting, PLB_CLOSE_ABORT);
    sim__gone(listener);
}

/* There is room for a stream again. */
static void sim__offer_room(sim *s)
{
    sim_conn *listener;
    s->streams--;
    for (listener = s->listeners; listener; listener = listener->next_listener)
        if (listener->armed && listener->waiting > 0)
            sim__schedule(s, sim__event_of(SIM__ACCEPT, listener), s->now_ms);
}

static void sim__io_close(void *self, plb_stream *stream, plb_close_how how)
{
    sim_conn *conn = sim__stream(self, stream, "close");
    sim *s = conn->s;
    sim__trace(s, conn, how == PLB_CLOSE_GRACEFUL ? "close" : "close by abort");
    if (how != PLB_CLOSE_GRACEFUL && how != PLB_CLOSE_ABORT)
        sim__misuse("close in a way there is not on #%u", (unsigned)conn->number);
    if (conn->listener)
        sim__close_listener(conn);
    else
        sim__close(conn, how);
    sim__offer_room(s);
}

static plb_status sim__info_of(sim_conn *conn, plb_stream_info *out)
{
    plb_status failure = sim__count(conn->s, &sim__info_call);
    memset(out, 0, sizeof *out);
    if (failure != PLB_OK)
        return failure;
    out->local = conn->local;
    out->remote = conn->remote;
    return PLB_OK;
}

static plb_status sim__io_info(void *self, plb_stream *stream, plb_stream_info *out)
{
    return sim__info_of(sim__stream(self, stream, "info"), out);
}

static plb_status sim__io_listen(void *self, const plb_listen_desc *desc, plb_handler handler, plb_stream **out)
{
    sim *s = (sim *)self;
    plb_addr local = desc->addr, nowhere;
    sim_conn *listener;
    char text[PLB_ADDR_TEXT_MAX];
    plb_status failure = sim__count(s, &sim__listen_call);
    if (!handler.fn)
        sim__misuse("listen without a handler");
    if (failure != PLB_OK)
        return failure;
    if (desc->tls != NULL || local.family == PLB_FAMILY_NONE || (s->lacks & (1u << local.family)))
        return PLB_ERR_UNSUPPORTED;
    if (!sim__may_own_more(s))
        return PLB_ERR_LIMIT;
    sim__choose_port(s, &local);
    listener = sim__listener_at(s, &local);
    if (sim_host(s, &local)->served || (listener && !(listener->reuse_port && desc->reuse_port)))
        return PLB_ERR_IN_USE;
    memset(&nowhere, 0, sizeof nowhere);
    listener = sim__conn_new(s, NULL, &local, &nowhere);
    listener->listener = true;
    listener->reuse_port = desc->reuse_port;
    listener->backlog = desc->backlog ? desc->backlog : 512;
    listener->next_listener = s->listeners;
    s->listeners = listener;
    sim__trace(s, listener, "listens on %s", sim__text(&local, text));
    *out = sim__own(listener, handler);
    return PLB_OK;
}

static plb_status sim__io_accept(void *self, plb_stream *stream, plb_handler handler, plb_stream **out)
{
    sim_conn *listener = sim__listener(self, stream, "accept"), *conn;
    plb_status failure = sim__count(listener->s, &sim__accept_call);
    if (!handler.fn)
        sim__misuse("accept without a handler");
    if (failure != PLB_OK)
        return failure;
    conn = listener->first_waiting;
    if (!conn || !sim__may_own_more(listener->s))
        return sim__arm(listener, PLB_EVENT_ACCEPT);
    listener->first_waiting = conn->next_waiting;
    listener->waiting--;
    sim__trace(listener->s, conn, "is accepted by #%u", (unsigned)listener->number);
    *out = sim__own(conn, handler);
    return PLB_OK;
}

static void sim__io_wake(void *self)
{
    sim *s = (sim *)self;
    s->woken = true;
    s->wakes++;
}

/* ==== DATAGRAMS =================================================================================================== */

#define SIM__DATAGRAM_MAX 65507 /* RFC 768 over RFC 791: 65535 less both heads */

static bool sim__chance(sim *s, uint32_t percent)
{
    return percent > 0 && sim__random(s) % 100 < percent;
}

static void sim__post_copy(sim *s, const sim__datagram *head, const void *bytes)
{
    sim__event event = sim__event_of(SIM__DATAGRAM, NULL);
    const sim_host_t *host = head->host;
    uint64_t late_ms = host->jitter_ms > 0 ? sim__random(s) % (host->jitter_ms + UINT64_C(1)) : 0;
    char *copy = (char *)sim__realloc(NULL, sizeof *head + head->size + 1);
    memcpy(copy, head, sizeof *head);
    if (head->size > 0)
        memcpy(copy + sizeof *head, bytes, head->size);
    copy[sizeof *head + head->size] = '\0';
    event.datagram = (sim__datagram *)(void *)copy;
    sim__schedule(s, event, s->now_ms + host->latency_ms + late_ms);
}

/* Sends a datagram on its way, once, twice or not at all. */
static void sim__post(sim *s, const sim__datagram *head, const void *bytes)
{
    if (sim__chance(s, head->host->loss_percent)) {
        sim__trace(s, head->sender, "a datagram of %lu bytes gets lost", (unsigned long)head->size);
        return;
    }
    sim__post_copy(s, head, bytes);
    if (sim__chance(s, head->host->double_percent))
        sim__post_copy(s, head, bytes);
}

void sim_serve_datagrams(sim *s, const plb_addr *addr, sim_datagram_script script, void *user)
{
    sim_host_t *host = sim_host(s, addr);
    host->datagram_script = script;
    host->datagram_user = user;
}

void sim_datagram(sim *s, const plb_addr *from, const plb_addr *to, const void *bytes, size_t count)
{
    sim__datagram head;
    memset(&head, 0, sizeof head);
    head.host = sim_host(s, from);
    head.from = *from;
    head.to = *to;
    head.size = count;
    sim__post(s, &head, bytes);
}

/* The socket that hears it: one that has the sender as its remote address before one that hears everybody. */
static sim_conn *sim__socket_for(sim *s, const sim__datagram *datagram)
{
    plb_addr any = sim__any_of(&datagram->to);
    sim_conn *socket, *found = NULL;
    for (socket = s->sockets; socket; socket = socket->next_socket) {
        bool here = plb_addr_compare(&socket->local, &datagram->to) == 0 || plb_addr_compare(&socket->local, &any) == 0;
        bool for_one = socket->remote.family != PLB_FAMILY_NONE;
        if (!here || (for_one && plb_addr_compare(&socket->remote, &datagram->from) != 0))
            continue;
        if (for_one)
            return socket;
        found = socket;
    }
    return found;
}

/* True: the socket has it now. */
static bool sim__queue(sim_conn *socket, sim__datagram *datagram)
{
    sim__datagram **last = &socket->first_datagram;
    sim__trace(socket->s, socket, "a datagram of %lu bytes arrives", (unsigned long)datagram->size);
    if (socket->datagram_bytes + datagram->size > socket->s->defaults.buffer_bytes)
        return false;
    while (*last)
        last = &(*last)->next;
    *last = datagram;
    socket->datagram_bytes += datagram->size;
    sim__fire(socket, PLB_EVENT_READ, PLB_OK);
    return true;
}

/* What becomes of a datagram that has come to where it was sent. PLB_AGAIN: a socket has it. */
static plb_status sim__meet(sim *s, sim__datagram *datagram)
{
    sim_host_t *host = sim_host(s, &datagram->to);
    sim_conn *socket = sim__socket_for(s, datagram);
    sim_fault fault = datagram->host->fault;
    host->datagrams++;
    if (fault == SIM_HANG || fault == SIM_SILENT)
        return PLB_OK;
    if (fault == SIM_UNREACHABLE)
        return PLB_ERR_UNREACHABLE;
    if (fault == SIM_REFUSE || (!socket && !host->datagram_script))
        return PLB_ERR_REFUSED;
    if (socket)
        return sim__queue(socket, datagram) ? PLB_AGAIN : PLB_OK;
    host->datagram_script(host->datagram_user, s, &datagram->to, &datagram->from, (const char *)(datagram + 1),
                          datagram->size);
    return PLB_OK;
}

static void sim__on_datagram(sim *s, sim__datagram *datagram)
{
    sim__event trouble = sim__event_of(SIM__TROUBLE, datagram->sender);
    uint64_t back_ms = datagram->host->latency_ms;
    trouble.status = sim__meet(s, datagram);
    if (trouble.status == PLB_AGAIN)
        return;
    if (trouble.status != PLB_OK && trouble.conn)
        sim__schedule(s, trouble, s->now_ms + back_ms);
    free(datagram);
}

static void sim__on_trouble(sim_conn *socket, plb_status status)
{
    if (socket->closed || socket->remote.family == PLB_FAMILY_NONE)
        return;
    socket->trouble = status;
    sim__fire(socket, PLB_EVENT_READ, PLB_OK);
}

static sim_conn *sim__socket(void *self, plb_stream *stream, const char *call)
{
    sim_conn *conn = sim__known(self, stream, call);
    if (!conn->datagrams)
        sim__misuse("%s on #%u, which is no socket of datagrams", call, (unsigned)conn->number);
    return conn;
}

static plb_status sim__open_arguments(const sim *s, const plb_addr *local, const plb_addr *remote)
{
    const plb_addr *either = local ? local : remote;
    if (!either || (remote && remote->family != either->family))
        return PLB_ERR_ARGUMENT;
    if ((either->family != PLB_FAMILY_IPV4 && either->family != PLB_FAMILY_IPV6) || (s->lacks & (1u << either->family)))
        return PLB_ERR_UNSUPPORTED;
    if (remote && remote->port == 0)
        return PLB_ERR_ARGUMENT;
    return sim__may_own_more(s) ? PLB_OK : PLB_ERR_LIMIT;
}

static plb_status sim__dgram_open(void *self, const plb_addr *local, const plb_addr *remote, plb_handler handler,
                                  plb_stream **out)
{
    sim *s = (sim *)self;
    plb_addr here, nowhere;
    sim_conn *socket;
    char text[PLB_ADDR_TEXT_MAX];
    plb_status status = sim__count(s, &sim__open_call);
    if (!handler.fn)
        sim__misuse("open without a handler");
    *out = NULL;
    if (status == PLB_OK)
        status = sim__open_arguments(s, local, remote);
    if (status != PLB_OK)
        return status;
    memset(&nowhere, 0, sizeof nowhere);
    here = local ? *local : sim__this_machine(remote);
    sim__choose_port(s, &here);
    if (sim__socket_at(s, &here) || sim_host(s, &here)->datagram_script)
        return PLB_ERR_IN_USE;
    socket = sim__conn_new(s, NULL, &here, remote ? remote : &nowhere);
    socket->status = PLB_OK;
    socket->datagrams = true;
    socket->next_socket = s->sockets;
    s->sockets = socket;
    sim__trace(s, socket, "is a socket of datagrams on %s", sim__text(&here, text));
    *out = sim__own(socket, handler);
    return PLB_OK;
}

/* What stands in the way of sending, or receiving: a failure, or what an earlier datagram met. */
static plb_status sim__obstacle(sim_conn *socket, plb_status failure)
{
    plb_status trouble = socket->trouble;
    if (failure == PLB_ERR_IO)
        socket->status = PLB_ERR_IO;
    if (failure != PLB_OK || socket->status != PLB_OK)
        return failure != PLB_OK ? failure : socket->status;
    socket->trouble = PLB_OK;
    return trouble;
}

static plb_status sim__dgram_send(void *self, plb_stream *stream, const plb_addr *to, const void *data, size_t size)
{
    sim_conn *socket = sim__socket(self, stream, "send");
    sim *s = socket->s;
    sim__datagram head;
    plb_status status = sim__count(s, &sim__send_call);
    bool for_one = socket->remote.family != PLB_FAMILY_NONE;
    plb_addr any = sim__any_of(&socket->local);
    if (!data && size > 0)
        sim__misuse("send of nothing on #%u", (unsigned)socket->number);
    if ((to != NULL) == for_one)
        return PLB_ERR_ARGUMENT;
    if (to && to->family != socket->local.family)
        return PLB_ERR_UNSUPPORTED;
    if ((to && to->port == 0) || size > SIM__DATAGRAM_MAX)
        return PLB_ERR_ARGUMENT;
    status = sim__obstacle(socket, status);
    if (status != PLB_OK)
        return status;
    memset(&head, 0, sizeof head);
    head.sender = socket;
    head.to = to ? *to : socket->remote;
    head.host = sim_host(s, &head.to);
    head.from = socket->local;
    if (plb_addr_compare(&socket->local, &any) == 0) {
        head.from = sim__this_machine(&head.to);
        head.from.port = socket->local.port;
    }
    head.size = size;
    sim__trace(s, socket, "send: %lu bytes", (unsigned long)size);
    sim__post(s, &head, data);
    return PLB_OK;
}

static plb_status sim__dgram_receive(void *self, plb_stream *stream, void *buffer, size_t capacity, size_t *got,
                                     plb_addr *from)
{
    sim_conn *socket = sim__socket(self, stream, "receive");
    plb_status status = sim__obstacle(socket, sim__count(socket->s, &sim__receive_call));
    sim__datagram *datagram;
    if (!buffer || capacity == 0 || !got)
        sim__misuse("receive of 0 bytes on #%u", (unsigned)socket->number);
    *got = 0;
    if (status != PLB_OK)
        return status;
    datagram = sim__next_datagram(socket);
    if (!datagram)
        return sim__arm(socket, PLB_EVENT_READ);
    memcpy(buffer, datagram + 1, sim__min(datagram->size, capacity));
    *got = datagram->size;
    if (from)
        *from = datagram->from;
    sim__trace(socket->s, socket, "receive: %lu bytes", (unsigned long)*got);
    free(datagram);
    return PLB_OK;
}

static plb_status sim__dgram_info(void *self, plb_stream *stream, plb_stream_info *out)
{
    return sim__info_of(sim__socket(self, stream, "info"), out);
}

static void sim__dgram_close(void *self, plb_stream *stream)
{
    sim_conn *socket = sim__socket(self, stream, "close"), **link = &socket->s->sockets;
    sim__trace(socket->s, socket, "close");
    while (*link != socket)
        link = &(*link)->next_socket;
    *link = socket->next_socket;
    sim__gone(socket);
    sim__offer_room(socket->s);
}

/* ==== CLOCK AND RANDOM ============================================================================================ */

static uint64_t sim__wrapped(const sim *s, uint64_t reading)
{
    return s->clock_bits == 32 ? reading & UINT32_MAX : reading;
}

static uint64_t sim__now_ms(void *self)
{
    const sim *s = (const sim *)self;
    return sim__wrapped(s, s->now_ms + s->clock_offset);
}

static uint64_t sim__now_us(void *self)
{
    const sim *s = (const sim *)self;
    return sim__wrapped(s, (s->now_ms + s->clock_offset) * 1000);
}

static void sim__fill(void *self, void *bytes, size_t count)
{
    unsigned char *out = (unsigned char *)bytes;
    size_t i;
    for (i = 0; i < count; i++)
        out[i] = (unsigned char)(sim__random((sim *)self) >> 56);
}

/* ==== NAMES ======================================================================================================= */

typedef struct sim__query {
    sim *s;
    char *host;
    uint16_t port;
    bool late, over;
    plb_names_fn fn;
    void *user;
} sim__query;

static sim_name_t *sim__find_name(const sim *s, const char *host)
{
    sim_name_t *name = s->first_name;
    while (name && strcmp(name->host, host) != 0)
        name = name->next;
    return name;
}

static char *sim__copy_text(const char *text)
{
    size_t size = strlen(text) + 1;
    return (char *)memcpy(sim__realloc(NULL, size), text, size);
}

sim_name_t *sim_name(sim *s, const char *host)
{
    sim_name_t *name = sim__find_name(s, host);
    if (name)
        return name;
    name = (sim_name_t *)sim__zeroed(sizeof *name);
    name->host = sim__copy_text(host);
    name->next = s->first_name;
    s->first_name = name;
    return name;
}

sim_name_t *sim_name_set(sim *s, const char *host, const plb_addr *addrs, size_t count)
{
    sim_name_t *name = sim_name(s, host);
    free(name->addrs);
    name->addrs = NULL;
    name->count = count;
    if (count > 0)
        name->addrs = (plb_addr *)memcpy(sim__realloc(NULL, count * sizeof *addrs), addrs, count * sizeof *addrs);
    return name;
}

static plb_status sim__resolve(void *self, const char *host, uint16_t port, uint32_t timeout_ms, plb_names_fn fn,
                               void *user, plb_query **out)
{
    sim *s = (sim *)self;
    sim_name_t *name = sim__find_name(s, host);
    uint32_t delay_ms = name ? name->delay_ms : 0;
    sim__event answer = sim__event_of(SIM__ANSWER, NULL);
    sim__query *query;
    plb_status failure = sim__count(s, &sim__resolve_call);
    if (!fn)
        sim__misuse("resolve without a callback");
    if (name)
        name->asked++;
    if (failure != PLB_OK)
        return failure;
    query = (sim__query *)sim__zeroed(sizeof *query);
    s->queries = (plb_query **)sim__grow(s->queries, s->query_count, &s->query_capacity, sizeof query);
    answer.query = s->queries[s->query_count++] = (plb_query *)(void *)query;
    query->s = s;
    query->host = sim__copy_text(host);
    query->port = port;
    query->fn = fn;
    query->user = user;
    query->late = (name && name->hang) || delay_ms > timeout_ms;
    sim__schedule(s, answer, s->now_ms + (query->late ? timeout_ms : delay_ms));
    sim__trace(s, NULL, "resolve %s", host);
    *out = answer.query;
    return PLB_AGAIN;
}

/* Whose memory goes after the callback is the simulator's, so that the address sanitizer sees who keeps it. */
static void sim__on_answer(plb_query *handle)
{
    sim__query *query = (sim__query *)(void *)handle;
    const sim_name_t *name = sim__find_name(query->s, query->host);
    plb_status status = !name || (name->status == PLB_OK && name->count == 0) ? PLB_ERR_NAME : name->status;
    plb_addr *addrs = NULL;
    size_t i, count = 0;
    if (query->over)
        return;
    query->over = true;
    if (query->late)
        status = PLB_ERR_TIMEOUT;
    if (status == PLB_OK) {
        count = name->count;
        addrs = (plb_addr *)memcpy(sim__realloc(NULL, count * sizeof *addrs), name->addrs, count * sizeof *addrs);
        for (i = 0; i < count; i++)
            addrs[i].port = query->port;
    }
    sim__trace(query->s, NULL, "resolved %s: %s", query->host, plb_status_text(status));
    query->fn(query->user, status, addrs, count);
    free(addrs);
}

static void sim__cancel(void *self, plb_query *handle)
{
    sim *s = (sim *)self;
    sim__query *query = (sim__query *)(void *)handle;
    if (!query || query->s != s || query->over)
        sim__misuse("cancel of a query that is over, or never was");
    query->over = true;
}

/* ==== THE SIMULATOR =============================================================================================== */

sim *sim_create(uint64_t seed)
{
    sim *s = (sim *)sim__zeroed(sizeof *s);
    s->defaults.latency_ms = 1;
    s->defaults.buffer_bytes = 65536;
    s->clock_bits = 64;
    s->random_state = seed;
    s->trace = getenv("SIM_TRACE") != NULL;
    s->tasks_due = UINT64_MAX;
    s->io.self = s->clock.self = s->random.self = s->names.self = s->dgram.self = s;
    s->io.connect = sim__io_connect;
    s->io.read = sim__io_read;
    s->io.write = sim__io_write;
    s->io.watch = sim__io_watch;
    s->io.shutdown = sim__io_shutdown;
    s->io.close = sim__io_close;
    s->io.info = sim__io_info;
    s->io.listen = sim__io_listen;
    s->io.accept = sim__io_accept;
    s->io.wake = sim__io_wake;
    s->clock.now_ms = sim__now_ms;
    s->clock.now_us = sim__now_us;
    s->random.fill = sim__fill;
    s->names.resolve = sim__resolve;
    s->names.cancel = sim__cancel;
    s->dgram.open = sim__dgram_open;
    s->dgram.send = sim__dgram_send;
    s->dgram.receive = sim__dgram_receive;
    s->dgram.info = sim__dgram_info;
    s->dgram.close = sim__dgram_close;
    return s;
}

plb_port sim_port(sim *s)
{
    plb_port port;
    port.io = &s->io;
    port.clock = &s->clock;
    port.random = &s->random;
    port.names = &s->names;
    port.barrier = NULL;
    port.dgram = &s->dgram;
    return port;
}

static size_t sim__count_leaks(const sim *s)
{
    size_t i, leaks = 0;
    char text[PLB_ADDR_TEXT_MAX];
    const plb_task *task;
    for (i = 0; i < s->conn_count; i++) {
        const sim_conn *conn = s->conns[i];
        if (!conn->owned || conn->closed)
            continue;
        leaks++;
        fprintf(stderr, "sim: %s #%u was not closed: %s\n",
                conn->datagrams  ? "socket"
                : conn->listener ? "listener"
                                 : "connection",
                (unsigned)conn->number,
                sim__text(conn->datagrams || conn->listener ? &conn->local : &conn->remote, text));
    }
    for (i = 0; i < s->query_count; i++) {
        const sim__query *query = (const sim__query *)(const void *)s->queries[i];
        if (query->over)
            continue;
        leaks++;
        fprintf(stderr, "sim: the query for %s is still on its way\n", query->host);
    }
    for (task = s->tasks; task; task = task->next, leaks++)
        fprintf(stderr, "sim: a task was not removed\n");
    return leaks;
}

static void sim__free_names(sim *s)
{
    sim_name_t *name;
    size_t i;
    while ((name = s->first_name) != NULL) {
        s->first_name = name->next;
        free(name->host);
        free(name->addrs);
        free(name);
    }
    for (i = 0; i < s->query_count; i++) {
        free(((sim__query *)(void *)s->queries[i])->host);
        free(s->queries[i]);
    }
    free(s->queries);
}

static void sim__free_network(sim *s)
{
    sim_host_t *host;
    size_t i;
    for (i = 0; i < s->conn_count; i++) {
        sim__gone(s->conns[i]);
        sim__bytes_free(&s->conns[i]->inbox);
        free(s->conns[i]);
    }
    free(s->conns);
    for (i = 0; i < 256; i++) {
        while ((host = s->hosts[i]) != NULL) {
            s->hosts[i] = host->next;
            free(host);
        }
    }
    for (i = 0; i < s->event_count; i++)
        free(s->events[i].datagram);
    free(s->events);
    free(s->held);
}

size_t sim_destroy(sim *s)
{
    size_t leaks;
    if (s->stepping)
        sim__misuse("sim_destroy was called from a callback");
    leaks = sim__count_leaks(s);
    sim__free_network(s);
    sim__free_names(s);
    free(s);
    return leaks;
}

void sim_add_task(sim *s, plb_task *task)
{
    const plb_task *other;
    for (other = s->tasks; other; other = other->next)
        if (other == task)
            sim__misuse("a task was added twice");
    task->next = s->tasks;
    s->tasks = task;
    s->tasks_due = s->now_ms;
}

void sim_remove_task(sim *s, plb_task *task)
{
    plb_task **link = &s->tasks;
    while (*link && *link != task)
        link = &(*link)->next;
    if (!*link)
        sim__misuse("a task was removed that is not there");
    if (s->task_cursor == task)
        s->task_cursor = task->next;
    *link = task->next;
}

void sim_wake_in(sim *s, uint32_t delay_ms)
{
    sim__schedule(s, sim__event_of(SIM__WAKE, NULL), s->now_ms + delay_ms);
}

/* One that is added meanwhile leaves its mark in tasks_due and is polled next time. */
static void sim__poll_tasks(sim *s)
{
    s->tasks_due = UINT64_MAX;
    s->task_cursor = s->tasks;
    while (s->task_cursor) {
        plb_task *task = s->task_cursor;
        uint32_t delay_ms;
        s->task_cursor = task->next;
        delay_ms = task->poll(task->user);
        if (delay_ms != PLB_FOREVER && s->now_ms + delay_ms < s->tasks_due)
            s->tasks_due = s->now_ms + delay_ms;
    }
}

/* When the next thing happens: `until` at the latest. */
static uint64_t sim__next_time(const sim *s, uint64_t until)
{
    if (s->woken)
        return s->now_ms;
    if (s->event_count > 0 && s->events[0].at < until)
        until = s->events[0].at;
    return s->tasks_due < until ? s->tasks_due : until;
}

void sim_step(sim *s, uint32_t max_ms)
{
    uint64_t next, end_of_generation;
    if (s->stepping)
        sim__misuse("sim_step was called from a callback");
    s->stepping = true;
    sim__release_held(s);
    next = sim__next_time(s, s->now_ms + max_ms);
    s->standstill = next > s->now_ms || max_ms == 0 ? 0 : s->standstill + 1;
    if (s->standstill > SIM__STANDSTILL_MAX)
        sim__misuse("time stands still: a task asks for a delay of 0 again and again, or two ends never stop talking");
    s->now_ms = next;
    /* What these set off waits for the next step, even if it is due at once: steps end. */
    end_of_generation = s->sequence;
    while (s->event_count > 0 && s->events[0].at <= s->now_ms && s->events[0].sequence < end_of_generation) {
        sim__event event = sim__pop(s);
        if (sim__is_held(&event))
            sim__hold(s, &event);
        else
            sim__happen(s, &event);
    }
    s->woken = false;
    sim__poll_tasks(s);
    s->stepping = false;
}

void sim_run_for(sim *s, uint32_t ms)
{
    uint64_t end = s->now_ms + ms;
    do
        sim_step(s, (uint32_t)(end - s->now_ms));
    while (s->now_ms < end);
}

bool sim_run_until(sim *s, bool (*done)(void *user), void *user, uint32_t max_ms)
{
    uint64_t end = s->now_ms + max_ms;
    while (!done(user)) {
        if (s->now_ms >= end)
            return false;
        sim_step(s, (uint32_t)(end - s->now_ms));
    }
    return true;
}

/* ==== MEMORY ====================================================================================================== */

#define SIM__BLOCK_ALIVE 0xA11FEu

typedef struct sim__block {
    struct sim__block *next, *prev;
    size_t size;
    uint64_t call;
    uint32_t state;
} sim__block;

typedef union sim__block_head {
    sim__block block;
    long double aligned_as_float;
    void *aligned_as_pointer;
    char room[64]; /* a multiple of what malloc aligns to */
} sim__block_head;

static void *sim__alloc(void *user, size_t size)
{
    sim_alloc *memory = (sim_alloc *)user;
    sim__block_head *head;
    memory->calls++;
    if (size == 0)
        sim__misuse("an allocation of 0 bytes");
    if (sim__is_chosen(memory->calls, memory->fail_at, memory->fail_count) || size > SIZE_MAX - sizeof *head ||
        (memory->max_bytes > 0 && size > memory->max_bytes - memory->live_bytes))
        return NULL;
    head = (sim__block_head *)malloc(sizeof *head + size);
    if (!head)
        return NULL;
    memset(&head->block, 0, sizeof head->block);
    memset(head + 1, 0xCD, size);
    head->block.size = size;
    head->block.call = memory->calls;
    head->block.state = SIM__BLOCK_ALIVE;
    head->block.next = memory->blocks;
    if (memory->blocks)
        memory->blocks->prev = &head->block;
    memory->blocks = &head->block;
    memory->live_blocks++;
    memory->live_bytes += size;
    if (memory->live_bytes > memory->peak_bytes)
        memory->peak_bytes = memory->live_bytes;
    return head + 1;
}

static void sim__dealloc(void *user, void *ptr, size_t size)
{
    sim_alloc *memory = (sim_alloc *)user;
    sim__block_head *head = (sim__block_head *)ptr - 1;
    if (ptr == NULL)
        sim__misuse("dealloc of NULL");
    if (head->block.state != SIM__BLOCK_ALIVE)
        sim__misuse("dealloc of what was not allocated here, or a second dealloc");
    if (head->block.size != size)
        sim__misuse("dealloc says %lu bytes of allocation %llu, which has %lu", (unsigned long)size,
                    (unsigned long long)head->block.call, (unsigned long)head->block.size);
    if (head->block.prev)
        head->block.prev->next = head->block.next;
    else
        memory->blocks = head->block.next;
    if (head->block.next)
        head->block.next->prev = head->block.prev;
    memory->live_blocks--;
    memory->live_bytes -= size;
    memset(head, 0xDD, sizeof *head + size);
    free(head);
}

plb_allocator sim_allocator(sim_alloc *memory)
{
    plb_allocator allocator;
    allocator.alloc = sim__alloc;
    allocator.dealloc = sim__dealloc;
    allocator.user = memory;
    return allocator;
}

size_t sim_alloc_leaks(const sim_alloc *memory)
{
    const sim__block *block;
    for (block = memory->blocks; block; block = block->next)
        fprintf(stderr, "sim: allocation %llu, %lu bytes, was not freed\n", (unsigned long long)block->call,
                (unsigned long)block->size);
    return memory->live_blocks;
}

#endif /* SIM__IMPLEMENTED */
#endif /* SIM_IMPLEMENTATION */
