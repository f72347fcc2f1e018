/* plb_posix.h - plb_io over POSIX sockets, and the event loop that drives it. MIT license, see LICENSE.

   WHAT IT IS
   Everything that plb_port asks of a platform, for Linux, the BSDs, macOS and the like: TCP and Unix streams over IPv4,
   IPv6 and paths, UDP datagrams, a monotonic clock, random bytes, host names by getaddrinfo. The loop waits with epoll
   on Linux and with poll elsewhere.

   QUICK START
       #define PINGORA_LB_IMPLEMENTATION
       #include "pingora_lb.h"
       #define PLB_POSIX_IMPLEMENTATION
       #include "plb_posix.h"

       plb_posix *px;
       plb_posix_create(NULL, &px);
       desc.port = plb_posix_port(px);            // lend it to a balancer or a proxy
       plb_create(&desc, &lb);
       plb_posix_add(px, plb_balancer_task(lb));
       plb_posix_start_thread(px);                // or plb_posix_run(px), or a loop of your own, see below
       ...
       plb_posix_stop(px), plb_posix_join_thread(px);
       plb_posix_remove(px, plb_balancer_task(lb));
       plb_destroy(lb);
       plb_posix_destroy(px);

   Under -std=c99 the system's headers hide what this file needs: compile with -D_GNU_SOURCE, or -std=gnu99, or include
   this file before any other.

   THREE WAYS TO RUN IT
   The caller's thread     plb_posix_run, or plb_posix_step over and over.
   A background thread     plb_posix_start_thread. Other threads may use nothing of the port meanwhile but wake,
                           plb_posix_stop and the clock; what a balancer offers to every thread stays so.
   A loop of your own      Wait until plb_posix_fd is readable (or until something stirs in what plb_posix_fill wrote
                           into your pollfd array), at most plb_posix_timeout milliseconds; then plb_posix_step(px, 0).

   DEFINES
   PLB_POSIX_IMPLEMENTATION   In one C or C++ file: emits the code.
   PLB_POSIX_POLL             Use poll on Linux too.
   PLB_POSIX_GETADDRINFO      The function to use in place of getaddrinfo; its answer goes to freeaddrinfo.
   PLB_NO_THREADS             No pthreads. Names are then resolved inside the step, one a step, which blocks for as long
                              as getaddrinfo does, past a query's time-out too; plb_posix_start_thread is unsupported.
   PLB_STATIC                 See pingora_lb.h.

   THREADS
   A port belongs to one thread at a time: the one that steps it. Every call below is that thread's (or anybody's as
   long as nobody steps) unless it says otherwise. Of the tables, plb_io.wake and plb_clock may be called from any
   thread; wake from signal handlers too. From the first name on, one helper thread runs getaddrinfo. All signals are
   blocked in the helper and in the background thread, so that the program's own threads get them.

   MEMORY
   Comes from the allocator of the descriptor, and only in the stepping thread. On a 64-bit machine: 2 KiB for the port,
   40 bytes a stream or datagram socket and 208 more for a listener; a table entry of 16 bytes for each (24 with poll),
   which grows to the most there ever were at once; 120 bytes and the host name per resolution. The helper thread's
   shared state is one calloc, since it can outlive the port: a getaddrinfo that hangs while the port is destroyed is
   left to end by itself.

   WHEN THINGS RUN SHORT
   Without descriptors (or memory) accept returns PLB_AGAIN, and its callback comes when a stream of this port closed or
   after 100 ms; connect returns PLB_ERR_LIMIT, as it does when the local ports are used up. A Unix socket whose backlog
   is full is tried again each 10 ms, within the caller's deadline, as TCP would do by itself. A datagram that finds
   neither room nor memory in the system is not sent, and send says so.

   GOOD TO KNOW
   - SIGPIPE is never raised.
   - Nagle's algorithm delays nothing: TCP_NODELAY is set on every TCP stream, at the latest before the first write that
     it could hold back. An IPv6 listener is IPv6 only, on every platform.
   - On Linux the segment that ends a connection's handshake goes with what the callback of PLB_EVENT_CONNECT writes, or
     with the end of the stream if it closes; alone after it otherwise.
   - Closing gracefully leaves delivery to the system. A peer that goes on sending after that may see a reset: whoever
     cares sends shutdown first and reads to the end.
   - A datagram socket that was opened with a remote address is a connected one: the system drops what others send to
     it, and tells of ICMP errors (RFC 1122 section 4.1.3.3), each once, by receive or send. Datagrams may be
     fragmented. IPv6 sockets are IPv6 only, broadcasts are not sent.
   - An aborted Unix stream looks to its peer like an ended one; the system knows no reset there.
   - fork: create a port after it. A child must not touch its parent's port, not even to destroy it (that would take
     down the paths of Unix listeners); exec closes all descriptors. */

#ifndef PLB_POSIX_H
#define PLB_POSIX_H

#if defined(PLB_POSIX_IMPLEMENTATION) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* of effect when this is the first header of the file */
#endif

#ifndef PINGORA_LB_H
#include "../pingora_lb.h"
#endif

struct pollfd;

typedef struct plb_posix plb_posix;

typedef struct plb_posix_desc {
    plb_allocator allocator; /* zero: malloc and free. Used in the stepping thread only */
} plb_posix_desc;

/* Makes a port. `desc` may be NULL; it is read during the call only. PLB_OK, or PLB_ERR_MEMORY, PLB_ERR_LIMIT (no
   descriptors), PLB_ERR_IO. Any thread. */
PLB_API plb_status plb_posix_create(const plb_posix_desc *desc, plb_posix **out);

/* Ends the background thread if there is one, closes the streams that are still open, drops outstanding resolutions
   without a callback. Remove tasks, and destroy what the port was lent to, before. NULL is ignored. Not from a callback
   or a task of this port. */
PLB_API void plb_posix_destroy(plb_posix *px);

/* The tables to lend; they belong to the port and live as long as it does. Any thread. */
PLB_API plb_port plb_posix_port(plb_posix *px);

/* Adds a task (the caller's, in place until it is removed; in no loop yet): it is polled in the next step, which does
   not wait for that, then after every step and when the delay it returned is over. From callbacks and tasks too. */
PLB_API void plb_posix_add(plb_posix *px, plb_task *task);

/* Removes a task; nothing happens if it is not there. From callbacks and tasks too, the task's own poll included. */
PLB_API void plb_posix_remove(plb_posix *px, plb_task *task);

/* One turn: waits until something happens, but no longer than max_ms (0: not at all; PLB_FOREVER: no limit of the
   caller's) and no longer than plb_posix_timeout; then makes the callbacks and polls the tasks. Not from a callback
   or a task. */
PLB_API void plb_posix_step(plb_posix *px, uint32_t max_ms);

/* Steps until plb_posix_stop; at once if that was called since the last run ended. */
PLB_API void plb_posix_run(plb_posix *px);

/* Makes plb_posix_run, or the background thread, return after the step it is in. Any thread, and signal handlers. */
PLB_API void plb_posix_stop(plb_posix *px);

/* Calls plb_posix_run in a thread of its own. PLB_OK, or PLB_ERR_LIMIT (the system gives no thread), PLB_ERR_ARGUMENT
   (it runs already), PLB_ERR_UNSUPPORTED (PLB_NO_THREADS). */
PLB_API plb_status plb_posix_start_thread(plb_posix *px);

/* Waits until the background thread, told so by plb_posix_stop, has ended; at once if there is none. From the thread
   that started it. */
PLB_API void plb_posix_join_thread(plb_posix *px);

/* The one descriptor that is readable when a step has something to do, the time-out aside; -1 where the port waits with
   poll: see plb_posix_fill. Never read or close it. */
PLB_API int plb_posix_fd(const plb_posix *px);

/* Writes what a step would wait for into `fds`, at most `capacity` entries; returns how many there are. Call it anew
   before each wait. */
PLB_API size_t plb_posix_fill(const plb_posix *px, struct pollfd *fds, size_t capacity);

/* Milliseconds until a step has something to do even if no descriptor stirs; 0: now; -1: never. */
PLB_API int plb_posix_timeout(plb_posix *px);

#endif /* PLB_POSIX_H */

/* ================================================================================================================== */
/* ==== IMPLEMENTATION ============================================================================================== */
/* ================================================================================================================== */

#ifdef PLB_POSIX_IMPLEMENTATION
#ifndef PLB__POSIX_IMPLEMENTED
#define PLB__POSIX_IMPLEMENTED

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifndef CLOCK_MONOTONIC
#error "plb_posix.h: compile with -D_GNU_SOURCE, or include it before any other header"
#endif

#if defined(__linux__) && !defined(PLB_POSIX_POLL)
#define PLB__PX_EPOLL
#include <sys/epoll.h>
#include <sys/eventfd.h>
#endif

#ifdef __linux__
#include <sys/random.h>
#include <sys/syscall.h>
#endif

#ifndef PLB_NO_THREADS
#include <pthread.h>
#endif

#ifndef PLB_POSIX_GETADDRINFO
#define PLB_POSIX_GETADDRINFO getaddrinfo
#endif

#define PLB__PX_ACCEPT_MS  100 /* a listener without descriptors tries again after this */
#define PLB__PX_CONNECT_MS 10  /* and a Unix connection to a full backlog after this */
#define PLB__PX_BACKLOG    512
#define PLB__PX_HOST_MAX   255 /* RFC 1035 section 2.3.4 */
#define PLB__PX_NO_SLOT    UINT32_MAX

/* Directions of a stream; a listener reads. */
#define PLB__PX_READ  1u
#define PLB__PX_WRITE 2u

/* ==== TYPES ======================================================================================================= */

/* A circular list: a query is in one of the helper's, or linked to itself. */
typedef struct plb__px_link {
    struct plb__px_link *prev, *next;
} plb__px_link;

struct plb_query {
    plb__px_link link; /* the first member; the helper's lock guards it, and status and found */
    plb_posix *px;
    plb_names_fn fn;
    void *user;
    plb_timer deadline;
    plb_status status;
    struct addrinfo *found;
    uint16_t port;
    size_t host_size; /* of the name that stands behind this struct, NUL included */
};

/* What the port and its helper thread share. It goes with the last of them. */
typedef struct plb__px_helper {
#ifndef PLB_NO_THREADS
    pthread_mutex_t lock;
    pthread_cond_t work;
#endif
    plb_posix *px; /* NULL once the port is gone */
    unsigned owners;
    plb__px_link waiting, answered;
    plb_query *current; /* what getaddrinfo works at, unless nobody wants it any more */
    char host[PLB__PX_HOST_MAX + 1];
} plb__px_helper;

/* What only listeners and Unix connections in front of a full backlog need. */
typedef struct plb__px_extra {
    plb_posix *px;
    plb_stream *stream;
    plb_timer retry;
    struct plb__px_extra *next_paused; /* listeners that wait for descriptors */
    plb_addr addr;                     /* Unix: where it is bound, or wants to connect */
    dev_t device;                      /* Unix listener: the file that it made */
    ino_t inode;
} plb__px_extra;

struct plb_stream {
    plb_handler handler;
    plb__px_extra *extra; /* or NULL */
    int fd;
    uint32_t slot;
    uint8_t armed; /* directions that a callback was promised for */
    bool listener : 1;
    bool connecting : 1;
    bool wrote : 1;    /* there may be bytes on their way */
    bool at_end : 1;   /* nothing but the end can be left to read */
    bool prompt : 1;   /* TCP_NODELAY is set, or there is no such thing */
    bool ack_owed : 1; /* the handshake's last segment waits for the callback */
    bool datagrams : 1;
    bool has_remote : 1; /* datagrams: there is one place to send to and to hear from */
    uint8_t family;      /* datagrams: a plb_family */
#ifdef PLB__PX_EPOLL
    bool hung_up : 1;   /* nothing more will come, so that the last edge was told */
    uint8_t registered; /* directions that epoll tells the edges of */
    uint8_t ready;      /* directions that it told, and that have not been exhausted since */
#endif
};

/* Streams have a number that events carry. The generation tells a stream from those that had its number before. */
typedef struct plb__px_slot {
    plb_stream *stream; /* NULL: free */
    uint32_t generation;
    uint32_t next_free;
} plb__px_slot;

struct plb_posix {
    plb_allocator allocator;
    plb_io io;
    plb_clock clock;
    plb_random random;
    plb_names names;
    plb_dgram dgram;
    plb_barrier barrier; /* issue is NULL where the system has none */

    plb__px_slot *slots;
    uint32_t slot_count, slot_capacity, free_slot;

    plb_timers timers;
    plb__px_extra *paused;
    plb__px_helper *helper; /* NULL before the first name */

    plb_task *tasks, *next_task;
    uint64_t tasks_due_ms;

    uintptr_t busy;       /* atomic: the thread that makes callbacks or polls tasks, else 0 */
    uint32_t poll_again;  /* atomic, for a signal's sake: tasks are to be polled without waiting */
    uint32_t wake_sent;   /* atomic: a wake is on its way already */
    uint32_t stop_wanted; /* atomic */
#ifndef PLB_NO_THREADS
    pthread_t thread;
    bool has_thread;
#endif

#ifdef PLB__PX_EPOLL
    int epoll_fd, event_fd;
    struct epoll_event events[128];
#else
    int pipe_fds[2];
    struct pollfd *fds; /* [0] is the pipe, [1 + slot] the streams; those with nothing armed have -fd */
    uint32_t fds_capacity;
#endif
    int event_count;
};

/* ==== SYSTEM: small things that platforms spell differently ======================================================= */

static uint32_t plb__px_swap(uint32_t *flag, uint32_t value)
{
    return __atomic_exchange_n(flag, value, __ATOMIC_ACQ_REL);
}

/* A number that no other living thread has. */
static uintptr_t plb__px_self(void)
{
#ifdef PLB_NO_THREADS
    return 1;
#else
    return (uintptr_t)pthread_self();
#endif
}

#ifdef MSG_NOSIGNAL
#define PLB__PX_NO_SIGNAL MSG_NOSIGNAL
#else
#define PLB__PX_NO_SIGNAL 0
#endif

/* For those who have to do it after the fact. Closes what it cannot prepare. */
#if !defined(SOCK_NONBLOCK) || !defined(PLB__PX_EPOLL)
static int plb__px_prepare(int fd)
{
    if (fd < 0)
        return fd;
    if (fcntl(fd, F_SETFL, O_NONBLOCK) != 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}
#endif

#ifdef SOCK_NONBLOCK
#if defined(__linux__) && !defined(__USE_GNU) /* the system has it, but its headers were told to hide it */
#ifdef __cplusplus
extern "C" int accept4(int, struct sockaddr *, socklen_t *, int);
#else
extern int accept4(int, struct sockaddr *, socklen_t *, int);
#endif
#endif

static int plb__px_open_socket(int family, int type)
{
    return socket(family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
}

static int plb__px_accept_socket(int listener)
{
    return accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
}
#else
static int plb__px_without_signal(int fd)
{
#ifdef SO_NOSIGPIPE
    int on = 1;
    if (fd >= 0)
        setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof on);
#endif
    return fd;
}

static int plb__px_open_socket(int family, int type)
{
    return plb__px_without_signal(plb__px_prepare(socket(family, type, 0)));
}

static int plb__px_accept_socket(int listener)
{
    return plb__px_without_signal(plb__px_prepare(accept(listener, NULL, NULL)));
}
#endif

static bool plb__px_set(int fd, int level, int option, int value)
{
    return setsockopt(fd, level, option, &value, sizeof value) == 0;
}

static plb_status plb__px_status(int error)
{
    switch (error) {
    case ECONNREFUSED:
    case ENOENT: /* a Unix path where nothing is */
    case ENOTDIR:
        return PLB_ERR_REFUSED;
    case EHOSTUNREACH:
    case ENETUNREACH:
    case ENETDOWN:
#ifdef EHOSTDOWN
    case EHOSTDOWN:
#endif
        return PLB_ERR_UNREACHABLE;
    case ECONNRESET:
    case ECONNABORTED:
    case EPIPE:
    case ENOTCONN:
        return PLB_ERR_RESET;
    case ETIMEDOUT:
        return PLB_ERR_TIMEOUT;
    case ENOMEM:
        return PLB_ERR_MEMORY;
    case EMFILE:
    case ENFILE:
    case ENOBUFS:
    case ENOSPC:        /* epoll's max_user_watches */
    case EADDRNOTAVAIL: /* connect: no local port is left */
        return PLB_ERR_LIMIT;
    case EADDRINUSE:
        return PLB_ERR_IN_USE;
    case EACCES:
    case EPERM:
        return PLB_ERR_ACCESS;
    case EAFNOSUPPORT:
    case EPROTONOSUPPORT:
    case EPROTOTYPE:
    case EOPNOTSUPP:
        return PLB_ERR_UNSUPPORTED;
    default:
        return PLB_ERR_IO;
    }
}

static uint64_t plb__px_now_ms(void *self)
{
    struct timespec now;
    (void)self;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static uint64_t plb__px_now_us(void *self)
{
    struct timespec now;
    (void)self;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* Returns how many of the bytes it could fill. */
static size_t plb__px_system_random(void *bytes, size_t count)
{
    ssize_t got;
#ifdef __linux__
    got = getrandom(bytes, count, GRND_NONBLOCK);
#else
    int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    got = fd < 0 ? -1 : read(fd, bytes, count);
    if (fd >= 0)
        close(fd);
#endif
    return got > 0 ? (size_t)got : 0;
}

/* Where the system has none to give (early in its start, or out of descriptors) the clock and the place of the stack
   serve: the bytes are not for secrets. */
static void plb__px_fill_random(void *self, void *bytes, size_t count)
{
    size_t done = plb__px_system_random(bytes, count);
    uint64_t state = plb__px_now_us(self) ^ (uint64_t)(uintptr_t)&done ^ (uint64_t)getpid() << 40;
    for (; done < count; done++) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        ((uint8_t *)bytes)[done] = (uint8_t)(state >> 56);
    }
}

/* membarrier(2), since Linux 4.14. The C library has no function for it, nor need its headers have the numbers. */
#if defined(__linux__) && defined(SYS_membarrier) && !defined(PLB_NO_THREADS)
enum { PLB__PX_BARRIER = 1 << 3, PLB__PX_BARRIER_REGISTER = 1 << 4 }; /* the private, expedited one */

static void plb__px_issue_barrier(void *self)
{
    (void)self;
    syscall(SYS_membarrier, PLB__PX_BARRIER, 0, 0); /* cannot fail once it is registered */
}

static void plb__px_open_barrier(plb_barrier *barrier)
{
    if (syscall(SYS_membarrier, PLB__PX_BARRIER_REGISTER, 0, 0) == 0)
        barrier->issue = plb__px_issue_barrier;
}
#else
static void plb__px_open_barrier(plb_barrier *barrier)
{
    barrier->issue = NULL;
}
#endif

/* ==== MEMORY ====================================================================================================== */

/* Zeroed memory, or NULL. */
static void *plb__px_new(const plb_allocator *allocator, size_t size)
{
    void *ptr = allocator->alloc(allocator->user, size);
    if (ptr != NULL)
        memset(ptr, 0, size);
    return ptr;
}

static void plb__px_delete(const plb_allocator *allocator, void *ptr, size_t size)
{
    if (ptr != NULL)
        allocator->dealloc(allocator->user, ptr, size);
}

/* ==== ADDRESSES =================================================================================================== */

typedef struct plb__px_sockaddr {
    socklen_t size;
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
        struct sockaddr_un path;
    } u;
} plb__px_sockaddr;

/* False: the system has no such address. */
static bool plb__px_to_system(const plb_addr *addr, plb__px_sockaddr *out)
{
    memset(out, 0, sizeof *out);
    switch (addr->family) {
    case PLB_FAMILY_IPV4:
        out->size = (socklen_t)sizeof out->u.v4;
        out->u.v4.sin_family = AF_INET;
        out->u.v4.sin_port = htons(addr->port);
        memcpy(&out->u.v4.sin_addr, addr->u.v4, 4);
        return true;
    case PLB_FAMILY_IPV6:
        out->size = (socklen_t)sizeof out->u.v6;
        out->u.v6.sin6_family = AF_INET6;
        out->u.v6.sin6_port = htons(addr->port);
        out->u.v6.sin6_scope_id = addr->scope;
        memcpy(&out->u.v6.sin6_addr, addr->u.v6, 16);
        return true;
    case PLB_FAMILY_UNIX:
        if (addr->path_len == 0 || addr->path_len >= sizeof out->u.path.sun_path)
            return false;
        out->size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + addr->path_len + 1u);
        out->u.path.sun_family = AF_UNIX;
        memcpy(out->u.path.sun_path, addr->u.path, addr->path_len);
        return true;
    default:
        return false;
    }
}

/* A Unix stream without a name is PLB_FAMILY_UNIX with an empty path; so is an abstract one. */
static void plb__px_path_from_system(const plb__px_sockaddr *from, plb_addr *out)
{
    size_t head = offsetof(struct sockaddr_un, sun_path);
    size_t room = from->size > head ? (size_t)from->size - head : 0;
    out->family = PLB_FAMILY_UNIX;
    while (out->path_len < room && out->path_len < PLB_PATH_MAX && from->u.path.sun_path[out->path_len] != '\0') {
        out->u.path[out->path_len] = from->u.path.sun_path[out->path_len];
        out->path_len++;
    }
}

/* False, and an address of no family, for what has no place in a plb_addr. */
static bool plb__px_from_system(const plb__px_sockaddr *from, plb_addr *out)
{
    memset(out, 0, sizeof *out);
    switch (from->u.any.sa_family) {
    case AF_INET:
        out->family = PLB_FAMILY_IPV4;
        out->port = ntohs(from->u.v4.sin_port);
        memcpy(out->u.v4, &from->u.v4.sin_addr, 4);
        return true;
    case AF_INET6:
        out->family = PLB_FAMILY_IPV6;
        out->port = ntohs(from->u.v6.sin6_port);
        out->scope = from->u.v6.sin6_scope_id;
        memcpy(out->u.v6, &from->u.v6.sin6_addr, 16);
        return true;
    case AF_UNIX:
        plb__px_path_from_system(from, out);
        return true;
    default:
        return false;
    }
}

/* ==== STREAMS: their table ======================================================================================== */

static plb_stream *plb__px_find(const plb_posix *px, uint32_t slot, uint32_t generation)
{
    return px->slots[slot].generation == generation ? px->slots[slot].stream : NULL;
}

/* The kernel says that directions of a stream are worth trying. `failed`: it speaks of an error or a hang-up too. */
static void plb__px_event(plb_posix *px, plb_stream *stream, unsigned ready, bool failed);

/* What a back end provides, each in its own section below:
   plb__px_backend_open    everything it needs; a status that is not PLB_OK leaves something to close
   plb__px_backend_close   takes back whatever open has made
   plb__px_reserve         room for that many streams; false without memory
   plb__px_listen_for      from now on, events of that direction are told; a plb_status
   plb__px_forget          the stream is about to go
   plb__px_exhausted       a call has found out that the direction has nothing to offer now
   plb__px_is_ready        is the direction known to have something to offer?
   plb__px_is_idle         is it known to have nothing to offer, so that a call can be saved?
   plb__px_signal          ends a wait, or the next one; async-signal-safe
   plb__px_wait            waits for timeout_ms at most (-1: no limit)
   plb__px_dispatch        hands what the wait has found to plb__px_event */

#ifdef PLB__PX_EPOLL
/* ==== BACK END: epoll ==============================================================================================
   Edge-triggered, so that a stream costs one epoll_ctl in its life: it is registered when it first has to wait, a
   connection in progress for both directions at once. A socket that is closed leaves the set by itself. It does so late
   when a fork holds a copy of it; that is why events carry a slot and a generation, not a pointer. */

#define PLB__PX_WAKE_TAG UINT64_MAX

static plb_status plb__px_backend_open(plb_posix *px)
{
    struct epoll_event event;
    px->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    px->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (px->epoll_fd < 0 || px->event_fd < 0)
        return plb__px_status(errno);
    event.events = EPOLLIN | EPOLLET;
    event.data.u64 = PLB__PX_WAKE_TAG;
    return epoll_ctl(px->epoll_fd, EPOLL_CTL_ADD, px->event_fd, &event) == 0 ? PLB_OK : plb__px_status(errno);
}

static void plb__px_backend_close(plb_posix *px)
{
    if (px->event_fd >= 0)
        close(px->event_fd);
    if (px->epoll_fd >= 0)
        close(px->epoll_fd);
}

static bool plb__px_reserve(plb_posix *px, uint32_t streams)
{
    (void)px;
    (void)streams;
    return true;
}

static plb_status plb__px_listen_for(plb_posix *px, plb_stream *stream, unsigned direction)
{
    unsigned wanted = stream->registered | direction | (stream->connecting ? PLB__PX_READ : 0u);
    int operation = stream->registered == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
    struct epoll_event event;
    if (wanted == stream->registered)
        return PLB_OK;
    event.events = EPOLLET | EPOLLRDHUP;
    if (wanted & PLB__PX_READ)
        event.events |= EPOLLIN;
    if (wanted & PLB__PX_WRITE)
        event.events |= EPOLLOUT;
    event.data.u64 = (uint64_t)px->slots[stream->slot].generation << 32 | stream->slot;
    if (epoll_ctl(px->epoll_fd, operation, stream->fd, &event) != 0)
        return plb__px_status(errno);
    stream->registered = (uint8_t)wanted;
    return PLB_OK;
}

static void plb__px_forget(plb_posix *px, plb_stream *stream)
{
    (void)px;
    (void)stream;
}

static void plb__px_exhausted(plb_stream *stream, unsigned direction)
{
    if (direction == PLB__PX_WRITE || !stream->hung_up)
        stream->ready = (uint8_t)(stream->ready & ~direction);
    else
        stream->at_end = true;
}

static bool plb__px_is_ready(const plb_stream *stream, unsigned direction)
{
    return (stream->ready & direction) != 0;
}

static bool plb__px_is_idle(const plb_stream *stream, unsigned direction)
{
    return (stream->registered & ~stream->ready & direction) != 0;
}

static void plb__px_signal(plb_posix *px)
{
    uint64_t one = 1;
    ssize_t written = write(px->event_fd, &one, sizeof one);
    (void)written; /* a counter that is full wakes as well */
}

static void plb__px_wait(plb_posix *px, int timeout_ms)
{
    int room = (int)(sizeof px->events / sizeof px->events[0]);
    px->event_count = epoll_wait(px->epoll_fd, px->events, room, timeout_ms);
}

static void plb__px_dispatch_one(plb_posix *px, const struct epoll_event *event)
{
    uint32_t slot = (uint32_t)event->data.u64, generation = (uint32_t)(event->data.u64 >> 32);
    plb_stream *stream = plb__px_find(px, slot, generation);
    bool failed = (event->events & (EPOLLERR | EPOLLHUP)) != 0;
    unsigned ready = 0;
    if (stream == NULL)
        return;
    if (failed || (event->events & (EPOLLIN | EPOLLRDHUP)) != 0)
        ready |= PLB__PX_READ;
    if (failed || (event->events & EPOLLOUT) != 0)
        ready |= PLB__PX_WRITE;
    stream->ready = (uint8_t)(stream->ready | ready);
    if (!stream->datagrams && (failed || (event->events & EPOLLRDHUP) != 0)) /* errors of datagrams pass */
        stream->hung_up = true;
    plb__px_event(px, stream, ready, failed);
}

/* The event descriptor is never read: every write to it is an edge of its own. */
static void plb__px_dispatch(plb_posix *px)
{
    int i;
    for (i = 0; i < px->event_count; i++) {
        if (px->events[i].data.u64 == PLB__PX_WAKE_TAG)
            plb__px_swap(&px->wake_sent, 0);
        else
            plb__px_dispatch_one(px, &px->events[i]);
    }
}

PLB_API int plb_posix_fd(const plb_posix *px)
{
    return px->epoll_fd;
}

PLB_API size_t plb_posix_fill(const plb_posix *px, struct pollfd *fds, size_t capacity)
{
    if (capacity > 0) {
        fds[0].fd = px->epoll_fd;
        fds[0].events = POLLIN;
        fds[0].revents = 0;
    }
    return 1;
}

#else
/* ==== BACK END: poll ===============================================================================================
   Level-triggered: nothing needs to be remembered, as what is there is told again. A stream with nothing armed hides
   behind a negative descriptor, for poll tells of a hang-up even who has not asked. */

static bool plb__px_reserve(plb_posix *px, uint32_t streams)
{
    uint32_t capacity = streams + 1, i;
    struct pollfd *fds = (struct pollfd *)plb__px_new(&px->allocator, capacity * sizeof *fds);
    if (fds == NULL)
        return false;
    for (i = 0; i < capacity; i++) {
        if (i < px->fds_capacity)
            fds[i] = px->fds[i];
        else
            fds[i].fd = -1;
    }
    plb__px_delete(&px->allocator, px->fds, px->fds_capacity * sizeof *px->fds);
    px->fds = fds;
    px->fds_capacity = capacity;
    return true;
}

static plb_status plb__px_backend_open(plb_posix *px)
{
    px->pipe_fds[0] = px->pipe_fds[1] = -1;
    if (!plb__px_reserve(px, 8))
        return PLB_ERR_MEMORY;
    if (pipe(px->pipe_fds) != 0)
        return plb__px_status(errno);
    px->pipe_fds[0] = plb__px_prepare(px->pipe_fds[0]);
    px->pipe_fds[1] = plb__px_prepare(px->pipe_fds[1]);
    px->fds[0].fd = px->pipe_fds[0];
    px->fds[0].events = POLLIN;
    return px->pipe_fds[0] >= 0 && px->pipe_fds[1] >= 0 ? PLB_OK : PLB_ERR_IO;
}

static void plb__px_backend_close(plb_posix *px)
{
    if (px->pipe_fds[0] >= 0)
        close(px->pipe_fds[0]);
    if (px->pipe_fds[1] >= 0)
        close(px->pipe_fds[1]);
    plb__px_delete(&px->allocator, px->fds, px->fds_capacity * sizeof *px->fds);
}

static plb_status plb__px_listen_for(plb_posix *px, plb_stream *stream, unsigned direction)
{
    struct pollfd *entry = &px->fds[1 + stream->slot];
    entry->fd = stream->fd;
    entry->events = (short)(entry->events | (direction == PLB__PX_READ ? POLLIN : POLLOUT));
    return PLB_OK;
}

static void plb__px_forget(plb_posix *px, plb_stream *stream)
{
    struct pollfd *entry = &px->fds[1 + stream->slot];
    entry->fd = -1;
    entry->events = entry->revents = 0;
}

static void plb__px_exhausted(plb_stream *stream, unsigned direction)
{
    (void)stream;
    (void)direction;
}

static bool plb__px_is_ready(const plb_stream *stream, unsigned direction)
{
    (void)stream;
    (void)direction;
    return false;
}

static bool plb__px_is_idle(const plb_stream *stream, unsigned direction)
{
    (void)stream;
    (void)direction;
    return false;
}

static void plb__px_signal(plb_posix *px)
{
    ssize_t written = write(px->pipe_fds[1], "", 1);
    (void)written; /* a pipe that is full wakes as well */
}

/* Level-triggered: the pipe must be empty before the next wake may be sent. */
static void plb__px_empty_pipe(plb_posix *px)
{
    char bytes[64];
    while (read(px->pipe_fds[0], bytes, sizeof bytes) == (ssize_t)sizeof bytes)
        continue;
    plb__px_swap(&px->wake_sent, 0);
}

static void plb__px_wait(plb_posix *px, int timeout_ms)
{
    px->event_count = poll(px->fds, (nfds_t)(px->slot_count + 1), timeout_ms);
}

static void plb__px_dispatch_one(plb_posix *px, uint32_t slot)
{
    struct pollfd *entry = &px->fds[1 + slot];
    bool failed = (entry->revents & (POLLERR | POLLHUP | POLLNVAL)) != 0;
    unsigned ready = 0;
    if (failed || (entry->revents & POLLIN) != 0)
        ready |= PLB__PX_READ;
    if (failed || (entry->revents & POLLOUT) != 0)
        ready |= PLB__PX_WRITE;
    entry->events = (short)(failed ? 0 : entry->events & ~entry->revents);
    entry->revents = 0;
    if (entry->events == 0)
        entry->fd = -1;
    plb__px_event(px, px->slots[slot].stream, ready, failed);
}

/* Callbacks may open and close streams, and move the array; slots stay what they are. */
static void plb__px_dispatch(plb_posix *px)
{
    uint32_t slot, count = px->slot_count;
    if (px->event_count > 0 && px->fds[0].revents != 0)
        plb__px_empty_pipe(px);
    for (slot = 0; slot < count && px->event_count > 0; slot++) {
        if (px->fds[1 + slot].revents != 0)
            plb__px_dispatch_one(px, slot);
    }
}

PLB_API int plb_posix_fd(const plb_posix *px)
{
    (void)px;
    return -1;
}

PLB_API size_t plb_posix_fill(const plb_posix *px, struct pollfd *fds, size_t capacity)
{
    size_t i, needed = 0;
    for (i = 0; i <= px->slot_count; i++) {
        if (px->fds[i].fd < 0)
            continue;
        if (needed < capacity)
            fds[needed] = px->fds[i];
        needed++;
    }
    return needed;
}
#endif

/* ==== STREAMS: life =============================================================================================== */

/* Doubles the table. */
static bool plb__px_grow(plb_posix *px)
{
    uint32_t capacity = px->slot_capacity == 0 ? 8 : px->slot_capacity * 2;
    plb__px_slot *slots;
    if (capacity > PLB__PX_NO_SLOT / 2 || !plb__px_reserve(px, capacity))
        return false;
    slots = (plb__px_slot *)plb__px_new(&px->allocator, capacity * sizeof *slots);
    if (slots == NULL)
        return false;
    if (px->slot_capacity > 0)
        memcpy(slots, px->slots, px->slot_capacity * sizeof *slots);
    plb__px_delete(&px->allocator, px->slots, px->slot_capacity * sizeof *slots);
    px->slots = slots;
    px->slot_capacity = capacity;
    return true;
}

/* A stream without a descriptor yet, or NULL without memory. */
static plb_stream *plb__px_stream_new(plb_posix *px, plb_handler handler)
{
    plb_stream *stream;
    if (px->free_slot == PLB__PX_NO_SLOT && px->slot_count == px->slot_capacity && !plb__px_grow(px))
        return NULL;
    stream = (plb_stream *)plb__px_new(&px->allocator, sizeof *stream);
    if (stream == NULL)
        return NULL;
    stream->handler = handler;
    stream->fd = -1;
    if (px->free_slot != PLB__PX_NO_SLOT) {
        stream->slot = px->free_slot;
        px->free_slot = px->slots[stream->slot].next_free;
    } else {
        stream->slot = px->slot_count++;
    }
    px->slots[stream->slot].stream = stream;
    return stream;
}

static void plb__px_stop_pause(plb__px_extra *extra)
{
    plb__px_extra **at = &extra->px->paused;
    plb_timer_stop(&extra->px->timers, &extra->retry);
    while (*at != NULL && *at != extra)
        at = &(*at)->next_paused;
    if (*at != NULL)
        *at = extra->next_paused;
}

static void plb__px_stream_delete(plb_posix *px, plb_stream *stream)
{
    plb__px_slot *slot = &px->slots[stream->slot];
    if (stream->fd >= 0)
        close(stream->fd);
    if (stream->extra != NULL)
        plb__px_stop_pause(stream->extra);
    plb__px_delete(&px->allocator, stream->extra, sizeof *stream->extra);
    plb__px_forget(px, stream);
    slot->stream = NULL;
    slot->generation++;
    slot->next_free = px->free_slot;
    px->free_slot = stream->slot;
    plb__px_delete(&px->allocator, stream, sizeof *stream);
}

static bool plb__px_add_extra(plb_posix *px, plb_stream *stream, const plb_addr *addr, void (*retry)(void *user))
{
    plb__px_extra *extra = (plb__px_extra *)plb__px_new(&px->allocator, sizeof *extra);
    if (extra == NULL)
        return false;
    extra->px = px;
    extra->stream = stream;
    extra->addr = *addr;
    extra->retry.fn = retry;
    extra->retry.user = extra;
    stream->extra = extra;
    return true;
}

/* Promises a callback; PLB_AGAIN unless that cannot be. */
static plb_status plb__px_arm(plb_posix *px, plb_stream *stream, unsigned direction)
{
    plb_status status = plb__px_listen_for(px, stream, direction);
    if (status != PLB_OK)
        return status;
    stream->armed = (uint8_t)(stream->armed | direction);
    return PLB_AGAIN;
}

static void plb__px_call(plb_stream *stream, plb_event event, plb_status status)
{
    stream->handler.fn(stream->handler.user, stream, event, status);
}

static void plb__px_set_timer(plb__px_extra *extra, uint32_t delay_ms)
{
    plb_timers_update(&extra->px->timers, &extra->px->clock);
    plb_timer_set(&extra->px->timers, &extra->retry, delay_ms);
}

/* ==== STREAMS: connections ======================================================================================== */

/* Why a connection that the kernel gave up has failed; PLB_OK if it has not. */
static plb_status plb__px_socket_error(int fd)
{
    int error = 0;
    socklen_t size = (socklen_t)sizeof error;
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0)
        return PLB_ERR_IO;
    return error == 0 ? PLB_OK : plb__px_status(error);
}

/* The segment that ends the handshake waits until the callback of the connection is over, for our first bytes or our
   end of stream to take it along (RFC 9293 section 3.8.6.3): a backend that is only probed is woken once, not twice. */
static void plb__px_owe_ack(plb_stream *stream)
{
#ifdef TCP_QUICKACK
    stream->ack_owed = plb__px_set(stream->fd, IPPROTO_TCP, TCP_QUICKACK, 0);
#else
    (void)stream;
#endif
}

/* The peer may be the one who speaks first. */
static void plb__px_send_ack(plb_stream *stream)
{
#ifdef TCP_QUICKACK
    if (stream->ack_owed && !stream->wrote)
        plb__px_set(stream->fd, IPPROTO_TCP, TCP_QUICKACK, 1);
#endif
    stream->ack_owed = false;
}

static void plb__px_connected(plb_posix *px, plb_stream *stream, plb_status status)
{
    uint32_t slot = stream->slot, generation = px->slots[slot].generation;
    stream->connecting = false;
    stream->armed = 0;
    plb__px_call(stream, PLB_EVENT_CONNECT, status);
    stream = plb__px_find(px, slot, generation); /* the callback may have closed it */
    if (stream != NULL)
        plb__px_send_ack(stream);
}

static void plb__px_retry_connect(void *user);

/* One attempt; to be repeated for a Unix socket whose backlog is full. */
static plb_status plb__px_try_connect(plb_posix *px, plb_stream *stream, const plb_addr *addr,
                                      const plb__px_sockaddr *to)
{
    if (connect(stream->fd, &to->u.any, to->size) == 0)
        return PLB_OK;
    if (errno == EINPROGRESS || errno == EINTR) {
        stream->connecting = true;
        return plb__px_arm(px, stream, PLB__PX_WRITE);
    }
    if (errno != EAGAIN)
        return plb__px_status(errno);
    if (addr->family != PLB_FAMILY_UNIX)
        return PLB_ERR_LIMIT;
    if (stream->extra == NULL && !plb__px_add_extra(px, stream, addr, plb__px_retry_connect))
        return PLB_ERR_MEMORY;
    stream->connecting = true;
    plb__px_set_timer(stream->extra, PLB__PX_CONNECT_MS);
    return PLB_AGAIN;
}

static void plb__px_retry_connect(void *user)
{
    plb__px_extra *extra = (plb__px_extra *)user;
    plb__px_sockaddr to;
    plb_status status;
    plb__px_to_system(&extra->addr, &to);
    status = plb__px_try_connect(extra->px, extra->stream, &extra->addr, &to);
    if (status != PLB_AGAIN)
        plb__px_connected(extra->px, extra->stream, status);
}

static plb_status plb__px_bind(int fd, const plb_addr *addr, const plb__px_sockaddr *name)
{
    if (bind(fd, &name->u.any, name->size) == 0)
        return PLB_OK;
    if (errno == EADDRNOTAVAIL) /* not an address of this machine, or not any more */
        return PLB_ERR_ADDRESS;
    if (errno == EADDRINUSE && addr->port == 0 && addr->family != PLB_FAMILY_UNIX)
        return PLB_ERR_LIMIT;
    return plb__px_status(errno);
}

static plb_status plb__px_bind_source(int fd, const plb_addr *source)
{
    plb__px_sockaddr from;
    if (source->family == PLB_FAMILY_NONE)
        return PLB_OK;
    if (!plb__px_to_system(source, &from))
        return PLB_ERR_UNSUPPORTED;
    if (source->port != 0)
        plb__px_set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
#ifdef IP_BIND_ADDRESS_NO_PORT
    else if (source->family != PLB_FAMILY_UNIX) /* the port is chosen by connect, which may share it among peers */
        plb__px_set(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1);
#endif
    return plb__px_bind(fd, source, &from);
}

static plb_status plb__px_open_stream(plb_stream *stream, const plb_addr *addr, int type)
{
    static const int families[] = {AF_UNSPEC, AF_INET, AF_INET6, AF_UNIX}; /* by plb_family */
    stream->fd = plb__px_open_socket(families[addr->family], type);
    stream->prompt = addr->family == PLB_FAMILY_UNIX;
    return stream->fd >= 0 ? PLB_OK : plb__px_status(errno);
}

/* Nagle's algorithm holds back a short segment while another is on its way (RFC 9293 section 3.7.4), so it never holds
   a first write that fits into one; this is the least that a segment has room for (section 3.7.1). */
#define PLB__PX_SEGMENT 536

/* Takes Nagle's algorithm out of the way of a write that it could hold. A stream that says little, as a probe does,
   gets by without the call; one that is broken already fails in the write. */
static void plb__px_make_prompt(plb_stream *stream, size_t offered)
{
    if (stream->prompt || (!stream->wrote && offered <= PLB__PX_SEGMENT))
        return;
    plb__px_set(stream->fd, IPPROTO_TCP, TCP_NODELAY, 1);
    stream->prompt = true;
}

static plb_status plb__px_connect(void *self, const plb_peer *peer, plb_handler handler, plb_stream **out)
{
    plb_posix *px = (plb_posix *)self;
    plb__px_sockaddr to;
    plb_stream *stream;
    plb_status status;
    *out = NULL;
    if (peer->tls != NULL || !plb__px_to_system(&peer->addr, &to))
        return PLB_ERR_UNSUPPORTED;
    stream = plb__px_stream_new(px, handler);
    if (stream == NULL)
        return PLB_ERR_MEMORY;
    status = plb__px_open_stream(stream, &peer->addr, SOCK_STREAM);
    if (status == PLB_OK && peer->addr.family != PLB_FAMILY_UNIX)
        plb__px_owe_ack(stream);
    if (status == PLB_OK)
        status = plb__px_bind_source(stream->fd, &peer->source);
    if (status == PLB_OK)
        status = plb__px_try_connect(px, stream, &peer->addr, &to);
    if (status == PLB_OK || status == PLB_AGAIN)
        *out = stream;
    else
        plb__px_stream_delete(px, stream);
    return status;
}

static bool plb__px_would_block(int error)
{
    return error == EAGAIN || error == EWOULDBLOCK;
}

static plb_status plb__px_read(void *self, plb_stream *stream, void *buffer, size_t capacity, size_t *got)
{
    ssize_t count;
    *got = 0;
    if (plb__px_is_idle(stream, PLB__PX_READ))
        return plb__px_arm((plb_posix *)self, stream, PLB__PX_READ);
    do
        count = recv(stream->fd, buffer, capacity, 0);
    while (count < 0 && errno == EINTR);
    if (count < 0 && !plb__px_would_block(errno))
        return plb__px_status(errno);
    if (count == 0) {
        stream->at_end = true;
        return PLB_END;
    }
    if (count < 0 || (size_t)count < capacity) /* what comes from now on is a new edge */
        plb__px_exhausted(stream, PLB__PX_READ);
    if (count < 0)
        return plb__px_arm((plb_posix *)self, stream, PLB__PX_READ);
    *got = (size_t)count;
    return PLB_OK;
}

static plb_status plb__px_write(void *self, plb_stream *stream, const plb_chunk *chunks, size_t count, size_t *taken)
{
    struct iovec parts[PLB_CHUNKS_MAX];
    struct msghdr message;
    size_t i, offered = 0;
    ssize_t sent;
    *taken = 0;
    if (plb__px_is_idle(stream, PLB__PX_WRITE))
        return plb__px_arm((plb_posix *)self, stream, PLB__PX_WRITE);
    for (i = 0; i < count && i < PLB_CHUNKS_MAX; i++) {
        parts[i].iov_base = (void *)chunks[i].data;
        parts[i].iov_len = chunks[i].size;
        offered += chunks[i].size;
    }
    memset(&message, 0, sizeof message);
    message.msg_iov = parts;
    message.msg_iovlen = (unsigned)i;
    plb__px_make_prompt(stream, offered);
    do
        sent = sendmsg(stream->fd, &message, PLB__PX_NO_SIGNAL);
    while (sent < 0 && errno == EINTR);
    if (sent < 0 && !plb__px_would_block(errno))
        return plb__px_status(errno);
    if (sent < 0 || (size_t)sent < offered)
        plb__px_exhausted(stream, PLB__PX_WRITE);
    if (sent < 0)
        return plb__px_arm((plb_posix *)self, stream, PLB__PX_WRITE);
    stream->wrote = true;
    *taken = (size_t)sent;
    return PLB_OK;
}

/* An edge that was told may have been used up by calls that just fitted: only the kernel knows. */
static bool plb__px_still_ready(const plb_stream *stream, unsigned direction)
{
    struct pollfd entry;
    entry.fd = stream->fd;
    entry.events = direction == PLB__PX_READ ? POLLIN : POLLOUT;
    entry.revents = 0;
    return poll(&entry, 1, 0) > 0;
}

static plb_status plb__px_watch(void *self, plb_stream *stream, plb_event event)
{
    unsigned direction = event == PLB_EVENT_WRITE ? PLB__PX_WRITE : PLB__PX_READ;
    if (plb__px_is_ready(stream, direction)) {
        if (plb__px_still_ready(stream, direction))
            return PLB_OK;
        plb__px_exhausted(stream, direction);
    }
    return plb__px_arm((plb_posix *)self, stream, direction);
}

static plb_status plb__px_shutdown(void *self, plb_stream *stream)
{
    (void)self;
    return shutdown(stream->fd, SHUT_WR) == 0 ? PLB_OK : PLB_ERR_RESET;
}

/* Sockets that are closed over unread bytes reset their connection, and what was sent may be lost with it. */
static void plb__px_discard_input(plb_stream *stream)
{
    char sink[4096];
    int rounds = 16;
    if (!stream->wrote || stream->at_end || plb__px_is_idle(stream, PLB__PX_READ))
        return;
    while (rounds-- > 0 && recv(stream->fd, sink, sizeof sink, 0) == (ssize_t)sizeof sink)
        continue;
}

/* RFC 9293 section 3.9.1.6: ABORT. */
static void plb__px_make_abortive(int fd)
{
    struct linger now;
    now.l_onoff = 1;
    now.l_linger = 0;
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
}

static bool plb__px_name_of(int fd, int (*get)(int, struct sockaddr *, socklen_t *), plb_addr *out)
{
    plb__px_sockaddr name;
    memset(&name, 0, sizeof name);
    name.size = (socklen_t)sizeof name.u;
    return get(fd, &name.u.any, &name.size) == 0 && plb__px_from_system(&name, out);
}

static plb_status plb__px_info(void *self, plb_stream *stream, plb_stream_info *out)
{
    (void)self;
    memset(out, 0, sizeof *out);
    if (!plb__px_name_of(stream->fd, getsockname, &out->local))
        return PLB_ERR_IO;
    if (plb__px_name_of(stream->fd, getpeername, &out->remote) || stream->listener || stream->datagrams)
        return PLB_OK;
    return PLB_ERR_IO;
}

/* ==== STREAMS: listeners ========================================================================================== */

static void plb__px_resume(void *user)
{
    plb__px_extra *extra = (plb__px_extra *)user;
    plb__px_stop_pause(extra);
    plb__px_call(extra->stream, PLB_EVENT_ACCEPT, PLB_OK);
}

/* Out of descriptors: connections wait in the backlog, and the listener for better times. */
static plb_status plb__px_pause(plb_posix *px, plb_stream *listener)
{
    listener->armed = 0;
    listener->extra->next_paused = px->paused;
    px->paused = listener->extra;
    plb__px_set_timer(listener->extra, PLB__PX_ACCEPT_MS);
    return PLB_AGAIN;
}

/* A stream has gone: those that wait for a descriptor need not wait longer. */
static void plb__px_hurry(plb_posix *px)
{
    while (px->paused != NULL) {
        plb__px_extra *extra = px->paused;
        px->paused = extra->next_paused;
        extra->next_paused = NULL;
        plb__px_set_timer(extra, 0);
    }
}

static bool plb__px_is_shortage(int error)
{
    return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM;
}

/* Errors of a connection that died in the backlog are skipped, accept(2) names a dozen; the first that is not of that
   kind, or that comes too often, is left in errno. */
static int plb__px_accept_next(int listener)
{
    int tries, fd = -1;
    for (tries = 0; tries < 64; tries++) {
        fd = plb__px_accept_socket(listener);
        if (fd >= 0 || plb__px_would_block(errno) || plb__px_is_shortage(errno) || errno == EBADF || errno == EINVAL ||
            errno == ENOTSOCK)
            return fd;
    }
    errno = ENOBUFS;
    return -1;
}

static plb_status plb__px_accept(void *self, plb_stream *listener, plb_handler handler, plb_stream **out)
{
    plb_posix *px = (plb_posix *)self;
    plb_stream *stream;
    int error;
    *out = NULL;
    if (plb_timer_is_set(&listener->extra->retry))
        return PLB_AGAIN;
    if (plb__px_is_idle(listener, PLB__PX_READ))
        return plb__px_arm(px, listener, PLB__PX_READ);
    stream = plb__px_stream_new(px, handler);
    if (stream == NULL)
        return plb__px_pause(px, listener);
    stream->fd = plb__px_accept_next(listener->fd);
    if (stream->fd >= 0) {
        stream->prompt = true;
        *out = stream;
        return PLB_OK;
    }
    error = errno;
    plb__px_stream_delete(px, stream);
    if (plb__px_is_shortage(error))
        return plb__px_pause(px, listener);
    if (!plb__px_would_block(error))
        return PLB_ERR_IO;
    plb__px_exhausted(listener, PLB__PX_READ);
    return plb__px_arm(px, listener, PLB__PX_READ);
}

/* Is this the file of a Unix listener that is no more? Only a socket is looked at, for connecting to any other file is
   refused as well. */
static bool plb__px_is_stale(const plb__px_sockaddr *name)
{
    struct stat file;
    bool refused;
    int fd;
    if (lstat(name->u.path.sun_path, &file) != 0 || !S_ISSOCK(file.st_mode))
        return false;
    fd = plb__px_open_socket(AF_UNIX, SOCK_STREAM);
    if (fd < 0)
        return false;
    refused = connect(fd, &name->u.any, name->size) != 0 && errno == ECONNREFUSED;
    close(fd);
    return refused;
}

static plb_status plb__px_bind_path(plb_stream *listener, const plb__px_sockaddr *name)
{
    struct stat file;
    int result = bind(listener->fd, &name->u.any, name->size);
    if (result != 0 && errno == EADDRINUSE) {
        if (!plb__px_is_stale(name) || unlink(name->u.path.sun_path) != 0)
            return PLB_ERR_IN_USE;
        result = bind(listener->fd, &name->u.any, name->size);
    }
    if (result != 0)
        return errno == ENOENT || errno == ENOTDIR ? PLB_ERR_ADDRESS : plb__px_status(errno);
    if (lstat(name->u.path.sun_path, &file) == 0) {
        listener->extra->device = file.st_dev;
        listener->extra->inode = file.st_ino;
    }
    return PLB_OK;
}

/* Unless another has taken the place meanwhile. */
static void plb__px_unlink_path(const plb__px_extra *extra)
{
    struct stat file;
    if (extra->inode != 0 && lstat(extra->addr.u.path, &file) == 0 && file.st_dev == extra->device &&
        file.st_ino == extra->inode)
        unlink(extra->addr.u.path);
}

static plb_status plb__px_bind_listener(plb_stream *listener, const plb_listen_desc *desc, const plb__px_sockaddr *name)
{
    if (desc->addr.family == PLB_FAMILY_UNIX)
        return plb__px_bind_path(listener, name);
    if (!plb__px_set(listener->fd, SOL_SOCKET, SO_REUSEADDR, 1) ||
        !plb__px_set(listener->fd, IPPROTO_TCP, TCP_NODELAY, 1))
        return PLB_ERR_IO;
    if (desc->addr.family == PLB_FAMILY_IPV6 && !plb__px_set(listener->fd, IPPROTO_IPV6, IPV6_V6ONLY, 1))
        return PLB_ERR_IO;
#ifdef SO_REUSEPORT
    if (desc->reuse_port && !plb__px_set(listener->fd, SOL_SOCKET, SO_REUSEPORT, 1))
        return PLB_ERR_UNSUPPORTED;
#endif
    return plb__px_bind(listener->fd, &desc->addr, name);
}

/* The options are the listener's, for streams that it accepts inherit them. */
static plb_status plb__px_open_listener(plb_posix *px, plb_stream *listener, const plb_listen_desc *desc,
                                        const plb__px_sockaddr *name)
{
    int backlog = desc->backlog == 0 ? PLB__PX_BACKLOG : desc->backlog > INT_MAX ? INT_MAX : (int)desc->backlog;
    plb_status status;
    listener->listener = true;
    if (!plb__px_add_extra(px, listener, &desc->addr, plb__px_resume))
        return PLB_ERR_MEMORY;
    status = plb__px_open_stream(listener, &desc->addr, SOCK_STREAM);
    if (status == PLB_OK)
        status = plb__px_bind_listener(listener, desc, name);
    if (status == PLB_OK && listen(listener->fd, backlog) != 0)
        status = plb__px_status(errno);
    return status;
}

static void plb__px_close(void *self, plb_stream *stream, plb_close_how how);

static plb_status plb__px_listen(void *self, const plb_listen_desc *desc, plb_handler handler, plb_stream **out)
{
    plb_posix *px = (plb_posix *)self;
    plb__px_sockaddr name;
    plb_stream *listener;
    plb_status status;
    *out = NULL;
    if (desc->tls != NULL || !plb__px_to_system(&desc->addr, &name))
        return PLB_ERR_UNSUPPORTED;
    listener = plb__px_stream_new(px, handler);
    if (listener == NULL)
        return PLB_ERR_MEMORY;
    status = plb__px_open_listener(px, listener, desc, &name);
    if (status == PLB_OK)
        *out = listener;
    else
        plb__px_close(px, listener, PLB_CLOSE_GRACEFUL);
    return status;
}

/* ==== STREAMS: end and events ===================================================================================== */

static void plb__px_close(void *self, plb_stream *stream, plb_close_how how)
{
    plb_posix *px = (plb_posix *)self;
    if (stream->listener && stream->extra != NULL && stream->extra->addr.family == PLB_FAMILY_UNIX)
        plb__px_unlink_path(stream->extra);
    else if (!stream->listener && how == PLB_CLOSE_ABORT)
        plb__px_make_abortive(stream->fd);
    else if (!stream->listener)
        plb__px_discard_input(stream);
    plb__px_stream_delete(px, stream);
    plb__px_hurry(px);
}

static void plb__px_event(plb_posix *px, plb_stream *stream, unsigned ready, bool failed)
{
    uint32_t slot = stream->slot, generation = px->slots[slot].generation;
    if (stream->connecting) {
        if (ready & PLB__PX_WRITE)
            plb__px_connected(px, stream, failed ? plb__px_socket_error(stream->fd) : PLB_OK);
        return;
    }
    ready &= stream->armed;
    stream->armed = (uint8_t)(stream->armed & ~ready);
    if (ready & PLB__PX_READ)
        plb__px_call(stream, stream->listener ? PLB_EVENT_ACCEPT : PLB_EVENT_READ, PLB_OK);
    stream = plb__px_find(px, slot, generation); /* the callback may have closed it */
    if (stream != NULL && (ready & PLB__PX_WRITE) != 0)
        plb__px_call(stream, PLB_EVENT_WRITE, PLB_OK);
}

/* ==== DATAGRAMS =================================================================================================== */

/* What other errors there are tell that no way leads there: routes, or ICMP. */
static plb_status plb__px_dgram_status(int error)
{
    switch (error) {
    case ECONNREFUSED:
    case ECONNRESET:
        return PLB_ERR_REFUSED;
    case EAGAIN: /* connect: no local port is left */
    case ENOBUFS:
        return PLB_ERR_LIMIT;
    case ENOMEM:
        return PLB_ERR_MEMORY;
    case EACCES:
    case EPERM:
        return PLB_ERR_ACCESS;
    case EBADF:
    case EFAULT:
    case ENOTSOCK:
        return PLB_ERR_IO;
    default:
        return PLB_ERR_UNREACHABLE;
    }
}

/* A router that wants smaller packets is told of like an error; that is the system's business, and known to it once it
   was told. */
static bool plb__px_try_again(int error, int *tries)
{
    return error == EINTR || (error == EMSGSIZE && (*tries)++ == 0);
}

/* A socket hears everybody until it is connected: what came by then goes. It is finite, the system's buffer is. */
static plb_status plb__px_discard_strangers(int fd)
{
    char byte;
    int rounds;
    for (rounds = 0; rounds < 65536; rounds++) {
        if (recv(fd, &byte, 1, 0) < 0 && plb__px_would_block(errno))
            return PLB_OK;
    }
    return PLB_ERR_LIMIT;
}

static plb_status plb__px_connect_socket(plb_stream *socket, const plb__px_sockaddr *remote)
{
    socket->has_remote = true;
    if (connect(socket->fd, &remote->u.any, remote->size) != 0)
        return plb__px_dgram_status(errno);
    return plb__px_discard_strangers(socket->fd);
}

static plb_status plb__px_dgram_arguments(const plb_addr *local, const plb_addr *remote)
{
    const plb_addr *either = local != NULL ? local : remote;
    if (either == NULL || (remote != NULL && remote->family != either->family))
        return PLB_ERR_ARGUMENT;
    if (either->family != PLB_FAMILY_IPV4 && either->family != PLB_FAMILY_IPV6)
        return PLB_ERR_UNSUPPORTED;
    return remote == NULL || remote->port != 0 ? PLB_OK : PLB_ERR_ARGUMENT;
}

static plb_status plb__px_open_dgram(plb_stream *socket, const plb_addr *local, const plb_addr *remote)
{
    const plb_addr *either = local != NULL ? local : remote;
    plb__px_sockaddr name;
    plb_status status;
    socket->datagrams = true;
    socket->family = either->family;
    status = plb__px_open_stream(socket, either, SOCK_DGRAM);
    if (status == PLB_OK && either->family == PLB_FAMILY_IPV6 && !plb__px_set(socket->fd, IPPROTO_IPV6, IPV6_V6ONLY, 1))
        status = PLB_ERR_IO;
    if (status == PLB_OK && local != NULL && plb__px_to_system(local, &name))
        status = plb__px_bind(socket->fd, local, &name);
    if (status == PLB_OK && remote != NULL && plb__px_to_system(remote, &name))
        status = plb__px_connect_socket(socket, &name);
    return status;
}

static plb_status plb__px_dgram_open(void *self, const plb_addr *local, const plb_addr *remote, plb_handler handler,
                                     plb_stream **out)
{
    plb_posix *px = (plb_posix *)self;
    plb_stream *socket;
    plb_status status = plb__px_dgram_arguments(local, remote);
    *out = NULL;
    if (status != PLB_OK)
        return status;
    socket = plb__px_stream_new(px, handler);
    if (socket == NULL)
        return PLB_ERR_MEMORY;
    status = plb__px_open_dgram(socket, local, remote);
    if (status == PLB_OK)
        *out = socket;
    else
        plb__px_stream_delete(px, socket);
    return status;
}

/* Where a datagram goes; no name for the remote address of a socket that has one. */
static plb_status plb__px_dgram_target(const plb_stream *socket, const plb_addr *to, plb__px_sockaddr *name)
{
    memset(name, 0, sizeof *name);
    if ((to != NULL) == socket->has_remote)
        return PLB_ERR_ARGUMENT;
    if (to == NULL)
        return PLB_OK;
    if (to->family != socket->family || !plb__px_to_system(to, name))
        return PLB_ERR_UNSUPPORTED;
    return to->port != 0 ? PLB_OK : PLB_ERR_ARGUMENT;
}

static plb_status plb__px_dgram_send(void *self, plb_stream *socket, const plb_addr *to, const void *data, size_t size)
{
    plb__px_sockaddr name;
    plb_status status = plb__px_dgram_target(socket, to, &name);
    ssize_t sent;
    int tries = 0;
    (void)self;
    if (status != PLB_OK)
        return status;
    do
        sent = sendto(socket->fd, data, size, PLB__PX_NO_SIGNAL, to != NULL ? &name.u.any : NULL, name.size);
    while (sent < 0 && plb__px_try_again(errno, &tries));
    if (sent >= 0)
        return PLB_OK;
    return errno == EMSGSIZE ? PLB_ERR_ARGUMENT : plb__px_dgram_status(errno);
}

/* One datagram, as recvmsg tells of it; true in `cut` where it was longer. */
static ssize_t plb__px_take_datagram(int fd, void *buffer, size_t capacity, plb__px_sockaddr *name, bool *cut)
{
    struct iovec part;
    struct msghdr message;
    ssize_t count;
    part.iov_base = buffer;
    part.iov_len = capacity;
    memset(name, 0, sizeof *name);
    memset(&message, 0, sizeof message);
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_name = &name->u;
    message.msg_namelen = (socklen_t)sizeof name->u;
    count = recvmsg(fd, &message, 0);
    *cut = count >= 0 && (message.msg_flags & MSG_TRUNC) != 0;
    return count;
}

static plb_status plb__px_dgram_receive(void *self, plb_stream *socket, void *buffer, size_t capacity, size_t *got,
                                        plb_addr *from)
{
    plb__px_sockaddr name;
    ssize_t count;
    bool cut;
    int tries = 0;
    *got = 0;
    if (plb__px_is_idle(socket, PLB__PX_READ))
        return plb__px_arm((plb_posix *)self, socket, PLB__PX_READ);
    do
        count = plb__px_take_datagram(socket->fd, buffer, capacity, &name, &cut);
    while (count < 0 && plb__px_try_again(errno, &tries));
    if (count < 0 && plb__px_would_block(errno)) {
        plb__px_exhausted(socket, PLB__PX_READ);
        return plb__px_arm((plb_posix *)self, socket, PLB__PX_READ);
    }
    if (count < 0)
        return plb__px_dgram_status(errno);
    *got = cut ? capacity + 1 : (size_t)count;
    if (from != NULL)
        plb__px_from_system(&name, from);
    return PLB_OK;
}

static void plb__px_dgram_close(void *self, plb_stream *socket)
{
    plb__px_close(self, socket, PLB_CLOSE_GRACEFUL);
}

/* ==== NAMES: the helper ===========================================================================================
   One thread that calls getaddrinfo. It copies the host under the lock and touches a query only under the lock and only
   while the query is `current`; so a query can go at any time, and the port too. */

static void plb__px_list_init(plb__px_link *list)
{
    list->prev = list->next = list;
}

/* Out of whatever list it is in. */
static void plb__px_unlink(plb__px_link *link)
{
    link->prev->next = link->next;
    link->next->prev = link->prev;
    plb__px_list_init(link);
}

static void plb__px_append(plb__px_link *list, plb__px_link *link)
{
    link->prev = list->prev;
    link->next = list;
    list->prev->next = link;
    list->prev = link;
}

static plb_query *plb__px_first(plb__px_link *list)
{
    return list->next == list ? NULL : (plb_query *)(void *)list->next;
}

static void plb__px_wake(void *self);

static plb_status plb__px_lookup_status(int error)
{
    switch (error) {
    case 0:
        return PLB_OK;
    case EAI_MEMORY:
        return PLB_ERR_MEMORY;
    case EAI_SYSTEM:
        return errno == EMFILE || errno == ENFILE ? PLB_ERR_LIMIT : PLB_ERR_IO;
    default:
        return PLB_ERR_NAME;
    }
}

#ifdef PLB_NO_THREADS
static bool plb__px_helper_open(plb__px_helper *helper)
{
    helper->owners = 1;
    return true;
}

static void plb__px_lock(plb__px_helper *helper)
{
    (void)helper;
}

static void plb__px_unlock(plb__px_helper *helper)
{
    (void)helper;
}

static void plb__px_helper_call(plb__px_helper *helper)
{
    (void)helper;
}

/* Gives up the lock, and one owner's share. */
static void plb__px_helper_leave(plb__px_helper *helper)
{
    free(helper);
}
#else
static void *plb__px_helper_main(void *user);

/* Starts a thread that gets none of the program's signals. Without `out` it is detached. */
static bool plb__px_spawn(pthread_t *out, void *(*fn)(void *user), void *user)
{
    sigset_t all, before;
    pthread_t thread;
    bool started;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    started = pthread_create(&thread, NULL, fn, user) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (started && out != NULL)
        *out = thread;
    else if (started)
        pthread_detach(thread);
    return started;
}

static bool plb__px_helper_open(plb__px_helper *helper)
{
    helper->owners = 2;
    if (pthread_mutex_init(&helper->lock, NULL) != 0)
        return false;
    if (pthread_cond_init(&helper->work, NULL) != 0) {
        pthread_mutex_destroy(&helper->lock);
        return false;
    }
    if (plb__px_spawn(NULL, plb__px_helper_main, helper))
        return true;
    pthread_cond_destroy(&helper->work);
    pthread_mutex_destroy(&helper->lock);
    return false;
}

static void plb__px_lock(plb__px_helper *helper)
{
    pthread_mutex_lock(&helper->lock);
}

static void plb__px_unlock(plb__px_helper *helper)
{
    pthread_mutex_unlock(&helper->lock);
}

static void plb__px_helper_call(plb__px_helper *helper)
{
    pthread_cond_signal(&helper->work);
}

/* Gives up the lock, and one owner's share. */
static void plb__px_helper_leave(plb__px_helper *helper)
{
    bool last = --helper->owners == 0;
    pthread_mutex_unlock(&helper->lock);
    if (!last)
        return;
    pthread_cond_destroy(&helper->work);
    pthread_mutex_destroy(&helper->lock);
    free(helper);
}
#endif

/* Answers the query that waits longest. Called with the lock, which it gives up while it resolves. */
static void plb__px_helper_serve(plb__px_helper *helper)
{
    plb_query *query = plb__px_first(&helper->waiting);
    struct addrinfo hints, *found = NULL;
    plb_status status;
    memset(&hints, 0, sizeof hints);
    hints.ai_family = AF_UNSPEC;
    hints.ai_socktype = SOCK_STREAM;
    memcpy(helper->host, query + 1, query->host_size);
    helper->current = query;
    plb__px_unlink(&query->link);
    plb__px_unlock(helper);
    status = plb__px_lookup_status(PLB_POSIX_GETADDRINFO(helper->host, NULL, &hints, &found));
    plb__px_lock(helper);
    query = helper->current;
    helper->current = NULL;
    if (query == NULL) {
        if (found != NULL)
            freeaddrinfo(found);
        return;
    }
    query->status = status;
    query->found = found;
    plb__px_append(&helper->answered, &query->link);
    plb__px_wake(helper->px);
}

#ifndef PLB_NO_THREADS
static void *plb__px_helper_main(void *user)
{
    plb__px_helper *helper = (plb__px_helper *)user;
    plb__px_lock(helper);
    while (helper->px != NULL) {
        if (plb__px_first(&helper->waiting) != NULL)
            plb__px_helper_serve(helper);
        else
            pthread_cond_wait(&helper->work, &helper->lock);
    }
    plb__px_helper_leave(helper);
    return NULL;
}
#endif

/* ==== NAMES: queries ============================================================================================== */

static plb_status plb__px_start_helper(plb_posix *px)
{
    plb__px_helper *helper;
    if (px->helper != NULL)
        return PLB_OK;
    helper = (plb__px_helper *)calloc(1, sizeof *helper);
    if (helper == NULL)
        return PLB_ERR_MEMORY;
    helper->px = px;
    plb__px_list_init(&helper->waiting);
    plb__px_list_init(&helper->answered);
    if (!plb__px_helper_open(helper)) {
        free(helper);
        return PLB_ERR_LIMIT;
    }
    px->helper = helper;
    return PLB_OK;
}

/* Nobody works at the query, or wants it, any more. */
static void plb__px_query_delete(plb_query *query)
{
    plb_posix *px = query->px;
    plb_timer_stop(&px->timers, &query->deadline);
    if (query->found != NULL)
        freeaddrinfo(query->found);
    plb__px_delete(&px->allocator, query, sizeof *query + query->host_size);
}

static void plb__px_query_drop(plb_query *query)
{
    plb__px_helper *helper = query->px->helper;
    plb__px_lock(helper);
    plb__px_unlink(&query->link);
    if (helper->current == query)
        helper->current = NULL;
    plb__px_unlock(helper);
    plb__px_query_delete(query);
}

/* No such name can exist: nobody is asked, it is answered without an address, and its deadline brings that soon. */
static bool plb__px_is_too_long(const plb_query *query)
{
    return query->host_size > PLB__PX_HOST_MAX + 1;
}

static void plb__px_query_expired(void *user)
{
    plb_query *query = (plb_query *)user;
    plb_status status = plb__px_is_too_long(query) ? PLB_ERR_NAME : PLB_ERR_TIMEOUT;
    plb_names_fn fn = query->fn;
    void *fn_user = query->user;
    plb__px_query_drop(query);
    fn(fn_user, status, NULL, 0);
}

/* Appends an answer to `addrs` unless it is there already; returns the new count. */
static size_t plb__px_collect(plb_addr *addrs, size_t count, const struct addrinfo *answer, uint16_t port)
{
    plb__px_sockaddr name;
    size_t i;
    memset(&name, 0, sizeof name);
    if (answer->ai_family != AF_INET && answer->ai_family != AF_INET6)
        return count;
    memcpy(&name.u, answer->ai_addr, answer->ai_addrlen < sizeof name.u ? answer->ai_addrlen : sizeof name.u);
    plb__px_from_system(&name, &addrs[count]);
    addrs[count].port = port;
    for (i = 0; i < count; i++) {
        if (plb_addr_compare(&addrs[i], &addrs[count]) == 0)
            return count;
    }
    return count + 1;
}

/* Takes the query apart, then tells what came of it. */
static void plb__px_query_answer(plb_query *query)
{
    const plb_allocator allocator = query->px->allocator;
    plb_names_fn fn = query->fn;
    void *user = query->user;
    plb_status status = query->status;
    plb_addr *addrs = NULL;
    size_t count = 0, room = 0;
    struct addrinfo *at;
    for (at = query->found; at != NULL; at = at->ai_next)
        room++;
    if (status == PLB_OK && room > 0) {
        addrs = (plb_addr *)plb__px_new(&allocator, room * sizeof *addrs);
        status = addrs != NULL ? PLB_OK : PLB_ERR_MEMORY;
    }
    for (at = query->found; at != NULL && addrs != NULL; at = at->ai_next)
        count = plb__px_collect(addrs, count, at, query->port);
    if (status == PLB_OK && count == 0)
        status = PLB_ERR_NAME;
    plb__px_query_delete(query);
    fn(user, status, addrs, count);
    plb__px_delete(&allocator, addrs, room * sizeof *addrs);
}

/* Hands over what is answered by now; what callbacks ask for is answered in a later step. */
static void plb__px_answer_names(plb_posix *px)
{
    plb__px_link answered;
    plb_query *query;
    plb__px_list_init(&answered);
    if (px->helper == NULL)
        return;
    plb__px_lock(px->helper);
#ifdef PLB_NO_THREADS
    if (plb__px_first(&px->helper->waiting) != NULL)
        plb__px_helper_serve(px->helper);
#endif
    while ((query = plb__px_first(&px->helper->answered)) != NULL) {
        plb__px_unlink(&query->link);
        plb__px_append(&answered, &query->link);
    }
    plb__px_unlock(px->helper);
    while ((query = plb__px_first(&answered)) != NULL) {
        plb__px_unlink(&query->link);
        plb__px_query_answer(query);
    }
}

static plb_status plb__px_resolve(void *self, const char *host, uint16_t port, uint32_t timeout_ms, plb_names_fn fn,
                                  void *user, plb_query **out)
{
    plb_posix *px = (plb_posix *)self;
    size_t host_size = strlen(host) + 1;
    plb_query *query;
    plb_status status = plb__px_start_helper(px);
    *out = NULL;
    if (status != PLB_OK)
        return status;
    query = (plb_query *)plb__px_new(&px->allocator, sizeof *query + host_size);
    if (query == NULL)
        return PLB_ERR_MEMORY;
    query->px = px;
    query->fn = fn;
    query->user = user;
    query->port = port;
    query->host_size = host_size;
    memcpy(query + 1, host, host_size);
    query->deadline.fn = plb__px_query_expired;
    query->deadline.user = query;
    plb__px_list_init(&query->link);
    plb_timers_update(&px->timers, &px->clock);
    plb_timer_set(&px->timers, &query->deadline, plb__px_is_too_long(query) ? 0 : timeout_ms);
    plb__px_lock(px->helper);
    plb__px_append(plb__px_is_too_long(query) ? &px->helper->answered : &px->helper->waiting, &query->link);
    plb__px_helper_call(px->helper);
    plb__px_unlock(px->helper);
    *out = query;
    return PLB_AGAIN;
}

static void plb__px_cancel(void *self, plb_query *query)
{
    (void)self;
    plb__px_query_drop(query);
}

static void plb__px_close_helper(plb_posix *px)
{
    plb__px_helper *helper = px->helper;
    plb_query *query;
    if (helper == NULL)
        return;
    plb__px_lock(helper);
    helper->px = NULL;
    if (helper->current != NULL)
        plb__px_append(&helper->answered, &helper->current->link);
    helper->current = NULL;
    while ((query = plb__px_first(&helper->waiting)) != NULL || (query = plb__px_first(&helper->answered)) != NULL) {
        plb__px_unlink(&query->link);
        plb__px_query_delete(query);
    }
    plb__px_helper_call(helper);
    plb__px_helper_leave(helper);
}

/* ==== LOOP: tasks, steps, threads ================================================================================= */

/* Who makes callbacks or polls tasks polls the tasks afterwards anyway: no system call is needed. */
static void plb__px_wake(void *self)
{
    plb_posix *px = (plb_posix *)self;
    int error = errno;
    if (__atomic_load_n(&px->busy, __ATOMIC_RELAXED) == plb__px_self())
        plb__px_swap(&px->poll_again, 1);
    else if (plb__px_swap(&px->wake_sent, 1) == 0)
        plb__px_signal(px);
    errno = error;
}

PLB_API void plb_posix_add(plb_posix *px, plb_task *task)
{
    plb_task **at = &px->tasks;
    while (*at != NULL)
        at = &(*at)->next;
    task->next = NULL;
    *at = task;
    plb__px_swap(&px->poll_again, 1);
}

PLB_API void plb_posix_remove(plb_posix *px, plb_task *task)
{
    plb_task **at = &px->tasks;
    while (*at != NULL && *at != task)
        at = &(*at)->next;
    if (*at == NULL)
        return;
    *at = task->next;
    if (px->next_task == task)
        px->next_task = task->next;
    task->next = NULL;
}

static void plb__px_poll_tasks(plb_posix *px)
{
    uint32_t delay, soonest = PLB_FOREVER;
    plb_task *task;
    plb__px_swap(&px->poll_again, 0);
    for (task = px->tasks; task != NULL; task = px->next_task) {
        px->next_task = task->next;
        delay = task->poll(task->user);
        if (delay < soonest)
            soonest = delay;
    }
    px->tasks_due_ms = UINT64_MAX;
    if (soonest != PLB_FOREVER)
        px->tasks_due_ms = plb_timers_update(&px->timers, &px->clock) + soonest;
}

PLB_API int plb_posix_timeout(plb_posix *px)
{
    uint64_t now_ms = plb_timers_update(&px->timers, &px->clock);
    uint32_t delay = plb_timers_delay(&px->timers);
    if (__atomic_load_n(&px->poll_again, __ATOMIC_RELAXED) != 0 || px->tasks_due_ms <= now_ms)
        return 0;
#ifdef PLB_NO_THREADS
    if (px->helper != NULL && plb__px_first(&px->helper->waiting) != NULL)
        return 0;
#endif
    if (px->tasks_due_ms - now_ms < delay)
        delay = (uint32_t)(px->tasks_due_ms - now_ms);
    if (delay == PLB_FOREVER)
        return -1;
    return delay < INT_MAX ? (int)delay : INT_MAX;
}

PLB_API void plb_posix_step(plb_posix *px, uint32_t max_ms)
{
    int timeout_ms = plb_posix_timeout(px);
    if (timeout_ms < 0 ? max_ms <= INT_MAX : max_ms < (uint32_t)timeout_ms)
        timeout_ms = (int)max_ms;
    plb__px_wait(px, timeout_ms);
    __atomic_store_n(&px->busy, plb__px_self(), __ATOMIC_RELAXED);
    plb__px_dispatch(px);
    plb__px_answer_names(px);
    plb_timers_update(&px->timers, &px->clock);
    plb_timers_run(&px->timers);
    plb__px_poll_tasks(px);
    __atomic_store_n(&px->busy, 0, __ATOMIC_RELAXED);
}

PLB_API void plb_posix_run(plb_posix *px)
{
    while (plb__px_swap(&px->stop_wanted, 0) == 0)
        plb_posix_step(px, PLB_FOREVER);
}

PLB_API void plb_posix_stop(plb_posix *px)
{
    plb__px_swap(&px->stop_wanted, 1);
    plb__px_wake(px);
}

#ifdef PLB_NO_THREADS
PLB_API plb_status plb_posix_start_thread(plb_posix *px)
{
    (void)px;
    return PLB_ERR_UNSUPPORTED;
}

PLB_API void plb_posix_join_thread(plb_posix *px)
{
    (void)px;
}
#else
static void *plb__px_thread_main(void *user)
{
    plb_posix_run((plb_posix *)user);
    return NULL;
}

PLB_API plb_status plb_posix_start_thread(plb_posix *px)
{
    if (px->has_thread)
        return PLB_ERR_ARGUMENT;
    px->has_thread = plb__px_spawn(&px->thread, plb__px_thread_main, px);
    return px->has_thread ? PLB_OK : PLB_ERR_LIMIT;
}

PLB_API void plb_posix_join_thread(plb_posix *px)
{
    if (px->has_thread)
        pthread_join(px->thread, NULL);
    px->has_thread = false;
}
#endif

/* ==== PORT ======================================================================================================== */

static void plb__px_fill_tables(plb_posix *px)
{
    px->io.self = px->clock.self = px->random.self = px->names.self = px->dgram.self = px;
    px->io.connect = plb__px_connect;
    px->io.read = plb__px_read;
    px->io.write = plb__px_write;
    px->io.watch = plb__px_watch;
    px->io.shutdown = plb__px_shutdown;
    px->io.close = plb__px_close;
    px->io.info = plb__px_info;
    px->io.listen = plb__px_listen;
    px->io.accept = plb__px_accept;
    px->io.wake = plb__px_wake;
    px->clock.now_ms = plb__px_now_ms;
    px->clock.now_us = plb__px_now_us;
    px->random.fill = plb__px_fill_random;
    px->names.resolve = plb__px_resolve;
    px->names.cancel = plb__px_cancel;
    px->dgram.open = plb__px_dgram_open;
    px->dgram.send = plb__px_dgram_send;
    px->dgram.receive = plb__px_dgram_receive;
    px->dgram.info = plb__px_info;
    px->dgram.close = plb__px_dgram_close;
    plb__px_open_barrier(&px->barrier);
}

PLB_API plb_status plb_posix_create(const plb_posix_desc *desc, plb_posix **out)
{
    plb_allocator allocator;
    plb_posix *px;
    plb_status status;
    memset(&allocator, 0, sizeof allocator);
    if (desc != NULL)
        allocator = desc->allocator;
    allocator = plb_allocator_or_default(allocator);
    *out = NULL;
    px = (plb_posix *)plb__px_new(&allocator, sizeof *px);
    if (px == NULL)
        return PLB_ERR_MEMORY;
    px->allocator = allocator;
    px->free_slot = PLB__PX_NO_SLOT;
    px->tasks_due_ms = UINT64_MAX;
    plb__px_fill_tables(px);
    status = plb__px_backend_open(px);
    if (status != PLB_OK) {
        plb_posix_destroy(px);
        return status;
    }
    *out = px;
    return PLB_OK;
}

PLB_API void plb_posix_destroy(plb_posix *px)
{
    plb_allocator allocator;
    uint32_t slot;
    if (px == NULL)
        return;
    plb_posix_stop(px);
    plb_posix_join_thread(px);
    plb__px_close_helper(px);
    for (slot = 0; slot < px->slot_count; slot++) {
        if (px->slots[slot].stream != NULL)
            plb__px_close(px, px->slots[slot].stream, PLB_CLOSE_GRACEFUL);
    }
    plb__px_backend_close(px);
    allocator = px->allocator;
    plb__px_delete(&allocator, px->slots, px->slot_capacity * sizeof *px->slots);
    plb__px_delete(&allocator, px, sizeof *px);
}

PLB_API plb_port plb_posix_port(plb_posix *px)
{
    plb_port port;
    port.io = &px->io;
    port.clock = &px->clock;
    port.random = &px->random;
    port.names = &px->names;
    port.barrier = px->barrier.issue != NULL ? &px->barrier : NULL;
    port.dgram = &px->dgram;
    return port;
}

#endif /* PLB__POSIX_IMPLEMENTED */
#endif /* PLB_POSIX_IMPLEMENTATION */
