/* plb_win32.h - plb_io over Winsock, and the event loop that drives it. MIT license, see LICENSE.

   WHAT IT IS
   Everything that plb_port asks of a platform, for Windows 7 and later: TCP and Unix streams over IPv4, IPv6 and paths,
   UDP, a monotonic clock, random bytes, host names by getaddrinfo. The loop waits with WSAPoll.

   QUICK START
       #define PINGORA_LB_IMPLEMENTATION
       #include "pingora_lb.h"
       #define PLB_WIN32_IMPLEMENTATION
       #include "plb_win32.h"

       plb_win32 *wx;
       plb_win32_create(NULL, &wx);
       desc.port = plb_win32_port(wx);            // lend it to a balancer or a proxy
       plb_create(&desc, &lb);
       plb_win32_add(wx, plb_balancer_task(lb));
       plb_win32_start_thread(wx);                // or plb_win32_run(wx), or a loop of your own, see below
       ...
       plb_win32_stop(wx), plb_win32_join_thread(wx);
       plb_win32_remove(wx, plb_balancer_task(lb));
       plb_destroy(lb);
       plb_win32_destroy(wx);

   To be linked: -lws2_32 -lbcrypt; Microsoft's compiler (/std:c11, or C++) is told so by this file. windows.h draws in
   a Winsock that is too old: include this file before it, or winsock2.h, or define WIN32_LEAN_AND_MEAN.

   THREE WAYS TO RUN IT
   The caller's thread     plb_win32_run, or plb_win32_step over and over.
   A background thread     plb_win32_start_thread. Other threads may use nothing of the port meanwhile but wake,
                           plb_win32_stop and the clock; what a balancer offers to every thread stays so.
   A loop of your own      Wait with WSAPoll until something stirs in what plb_win32_fill wrote into your array, at most
                           plb_win32_timeout milliseconds; then plb_win32_step(wx, 0).

   DEFINES
   PLB_WIN32_IMPLEMENTATION   In one C or C++ file: emits the code.
   PLB_WIN32_POLL             The function to use in place of WSAPoll.
   PLB_WIN32_GETADDRINFO      The function to use in place of getaddrinfo; its answer goes to freeaddrinfo.
   PLB_NO_THREADS             No threads of the port's own. Names are then resolved inside the step, one a step, which
                              blocks for as long as getaddrinfo does, past a query's time-out too;
                              plb_win32_start_thread is unsupported.
   PLB_STATIC                 See pingora_lb.h.

   THREADS
   A port belongs to one thread at a time: the one that steps it. Every call below is that thread's (or anybody's as
   long as nobody steps) unless it says otherwise. Of the tables, plb_io.wake and plb_clock may be called from any
   thread; wake from handlers of Ctrl-C too, which Windows runs in a thread of their own. From the first name on, one
   helper thread runs getaddrinfo. One thread of the system's pool waits for connections that end, and wakes the port.

   MEMORY
   Comes from the allocator of the descriptor, and only in the stepping thread. On a 64-bit machine: 500 bytes for the
   port, 56 a stream and 208 more for a listener; table entries of 40 bytes a stream, which grow to the most streams
   there ever were at once; 120 bytes and the host name per resolution. The helper thread's shared state is one calloc,
   since it can outlive the port: a getaddrinfo that hangs while the port is destroyed is left to end by itself.

   WHEN THINGS RUN SHORT
   Without sockets (or memory) accept returns PLB_AGAIN, and its callback comes when a stream of this port closed or
   after 100 ms; connect returns PLB_ERR_LIMIT, as it does when the local ports are used up. One write hands 256 KiB at
   most to the system, which would take a whole movie at once otherwise, and keep it in its memory. While the kernel
   has no memory (WSAENOBUFS) a write returns PLB_AGAIN and is tried again each 10 ms.

   GOOD TO KNOW
   - Before Windows 10 2004 WSAPoll never tells of a connection that failed. It is not asked: how connections end is
     told by FD_CONNECT (WSAEventSelect), on every Windows, and the wait for it ends at once.
   - Windows asks a port that refuses thrice, half a second apart, before it believes that: a refusal takes one to two
     seconds. Over loopback this file has it ask once (since Windows 10 1709; since Windows 8 twice).
   - Windows wakes sleepers on the ticks of its clock, 15.6 ms apart unless a program has asked for less
     (timeBeginPeriod). What has to do with sockets does not wait for ticks.
   - Once a peer has ended its side, WSAPoll returns at once whatever it is asked; a write that waits for such a peer
     is therefore tried again each 10 ms.
   - Nagle's algorithm delays nothing: TCP_NODELAY is set on every TCP stream, at the latest before the first write that
     it could hold back. An IPv6 listener is IPv6 only.
   - Nobody else can bind to a listener's address, whatever he asks for (SO_EXCLUSIVEADDRUSE). Once the listener is
     closed a new one can have it at once. Microsoft's documentation says that it could not, PLB_ERR_IN_USE, for as long
     as connections that were accepted there live on; tests that others made with Windows 7 and 10 say that only
     listeners are in each other's way. plb_listen_desc.reuse_port is unsupported.
   - A full backlog refuses clients, or resets them once they are connected, where other systems let them wait.
   - Unix paths work where the system has them (since Windows 10 1803), are UTF-8, and else get PLB_ERR_UNSUPPORTED.
     This file's part of that is compiled, and tested no further: Wine has no such sockets.
   - Closing gracefully leaves delivery to the system. A peer that goes on sending after that may see a reset: whoever
     cares sends shutdown first and reads to the end.
   - Child processes do not inherit the sockets; but one that another thread starts in the very moment in which a socket
     is made may.
   - An address that somebody else has with all addresses of the machine (0.0.0.0), or that Windows has set aside (netsh
     interface ipv4 show excludedportrange), may be PLB_ERR_ACCESS instead of PLB_ERR_IN_USE.
   - Under Wine there is no plb_barrier: not in every version does FlushProcessWriteBuffers do anything. */

#ifndef PLB_WIN32_H
#define PLB_WIN32_H

#ifndef PINGORA_LB_H
#include "../pingora_lb.h"
#endif

struct pollfd; /* WSAPOLLFD */

typedef struct plb_win32 plb_win32;

typedef struct plb_win32_desc {
    plb_allocator allocator; /* zero: malloc and free. Used in the stepping thread only */
} plb_win32_desc;

/* Makes a port. `desc` may be NULL; it is read during the call only. PLB_OK, or PLB_ERR_MEMORY, PLB_ERR_LIMIT (no
   sockets, or no thread of the pool), PLB_ERR_IO. Any thread. */
PLB_API plb_status plb_win32_create(const plb_win32_desc *desc, plb_win32 **out);

/* Ends the background thread if there is one, closes the streams that are still open, drops outstanding resolutions
   without a callback. Remove tasks, and destroy what the port was lent to, before. NULL is ignored. Not from a callback
   or a task of this port. */
PLB_API void plb_win32_destroy(plb_win32 *wx);

/* The tables to lend; they belong to the port and live as long as it does. Any thread. */
PLB_API plb_port plb_win32_port(plb_win32 *wx);

/* Adds a task (the caller's, in place until it is removed; in no loop yet): it is polled in the next step, which does
   not wait for that, then after every step and when the delay it returned is over. From callbacks and tasks too. */
PLB_API void plb_win32_add(plb_win32 *wx, plb_task *task);

/* Removes a task; nothing happens if it is not there. From callbacks and tasks too, the task's own poll included. */
PLB_API void plb_win32_remove(plb_win32 *wx, plb_task *task);

/* One turn: waits until something happens, but no longer than max_ms (0: not at all; PLB_FOREVER: no limit of the
   caller's) and no longer than plb_win32_timeout; then makes the callbacks and polls the tasks. Not from a callback
   or a task. */
PLB_API void plb_win32_step(plb_win32 *wx, uint32_t max_ms);

/* Steps until plb_win32_stop; at once if that was called since the last run ended. */
PLB_API void plb_win32_run(plb_win32 *wx);

/* Makes plb_win32_run, or the background thread, return after the step it is in. Any thread, and handlers of Ctrl-C;
   plb_win32_destroy waits for calls that have begun. */
PLB_API void plb_win32_stop(plb_win32 *wx);

/* Calls plb_win32_run in a thread of its own. PLB_OK, or PLB_ERR_LIMIT (the system gives no thread), PLB_ERR_ARGUMENT
   (it runs already), PLB_ERR_UNSUPPORTED (PLB_NO_THREADS). */
PLB_API plb_status plb_win32_start_thread(plb_win32 *wx);

/* Waits until the background thread, told so by plb_win32_stop, has ended; at once if there is none. From the thread
   that started it. */
PLB_API void plb_win32_join_thread(plb_win32 *wx);

/* Writes what a step would wait for into `fds`, at most `capacity` entries; returns how many there are. Call it anew
   before each wait. */
PLB_API size_t plb_win32_fill(const plb_win32 *wx, struct pollfd *fds, size_t capacity);

/* Milliseconds until a step has something to do even if no socket stirs; 0: now; -1: never. */
PLB_API int plb_win32_timeout(plb_win32 *wx);

#endif /* PLB_WIN32_H */

/* ================================================================================================================== */
/* ==== IMPLEMENTATION ============================================================================================== */
/* ================================================================================================================== */

#ifdef PLB_WIN32_IMPLEMENTATION
#ifndef PLB__WIN32_IMPLEMENTED
#define PLB__WIN32_IMPLEMENTED

#if defined(_WINSOCKAPI_) && !defined(_WINSOCK2API_)
#error "plb_win32.h: include it before windows.h, or winsock2.h, or define WIN32_LEAN_AND_MEAN"
#endif

#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif

#include <winsock2.h>
#include <ws2tcpip.h>
#include <windows.h>
#include <bcrypt.h>
#include <limits.h>
#include <process.h>
#include <stdlib.h>

#if _WIN32_WINNT < 0x0600
#error "plb_win32.h: WSAPoll and the like need _WIN32_WINNT to be 0x0600 or above"
#endif

#ifdef _MSC_VER
#pragma comment(lib, "ws2_32.lib")
#pragma comment(lib, "bcrypt.lib")
#endif

#ifndef PLB_WIN32_POLL
#define PLB_WIN32_POLL WSAPoll
#endif

#ifndef PLB_WIN32_GETADDRINFO
#define PLB_WIN32_GETADDRINFO getaddrinfo
#endif

#define PLB__W32_ACCEPT_MS 100          /* a listener without sockets tries again after this */
#define PLB__W32_WRITE_MS  10           /* and a write that WSAPoll is no help with after this */
#define PLB__W32_FAULT_MS  10           /* how long a step waits when WSAPoll does not work */
#define PLB__W32_WRITE_MAX (256u << 10) /* bytes that one write hands over */
#define PLB__W32_KNOCK_MS  100          /* how long a Unix listener may take to refuse or to take a connection */
#define PLB__W32_BACKLOG   512
#define PLB__W32_HOST_MAX  255 /* RFC 1035 section 2.3.4 */
#define PLB__W32_NO_SLOT   UINT32_MAX

/* Directions of a stream; a listener reads. */
#define PLB__W32_READ  1u
#define PLB__W32_WRITE 2u

/* ==== TYPES ======================================================================================================= */

/* A circular list: a query is in one of the helper's, or linked to itself. */
typedef struct plb__w32_link {
    struct plb__w32_link *prev, *next;
} plb__w32_link;

struct plb_query {
    plb__w32_link link; /* the first member; the helper's lock guards it, and status and found */
    plb_win32 *wx;
    plb_names_fn fn;
    void *user;
    plb_timer deadline;
    plb_status status;
    struct addrinfo *found;
    uint16_t port;
    size_t host_size; /* of the name that stands behind this struct, NUL included */
};

/* What the port and its helper thread share. It goes with the last of them. */
typedef struct plb__w32_helper {
#ifndef PLB_NO_THREADS
    SRWLOCK lock;
    CONDITION_VARIABLE work;
#endif
    plb_win32 *wx; /* NULL once the port is gone */
    unsigned owners;
    plb__w32_link waiting, answered;
    plb_query *current; /* what getaddrinfo works at, unless nobody wants it any more */
    char host[PLB__W32_HOST_MAX + 1];
} plb__w32_helper;

/* Tells a file from those that take its name later. */
typedef struct plb__w32_file {
    bool known;
    DWORD volume, index_high, index_low;
} plb__w32_file;

/* What only listeners need. */
typedef struct plb__w32_extra {
    plb_win32 *wx;
    plb_stream *stream;
    plb_timer retry;
    struct plb__w32_extra *next_paused; /* listeners that wait for sockets */
    plb_addr addr;                      /* where it is bound */
    plb__w32_file file;                 /* Unix: the file that it made */
} plb__w32_extra;

struct plb_stream {
    plb_handler handler;
    plb__w32_extra *extra; /* or NULL */
    SOCKET socket;
    plb_stream *next_connecting, *prev_connecting; /* the port's list of those whose FD_CONNECT is to come */
    uint32_t slot;
    uint8_t family;      /* of a datagram socket */
    uint8_t armed;       /* directions that a callback was promised for */
    bool listener : 1;   /* its READ is PLB_EVENT_ACCEPT */
    bool peerless : 1;   /* a listener, or a datagram socket for everybody */
    bool connecting : 1; /* it is in the list, and WSAPoll is not asked for it */
    bool by_time : 1;    /* writes wait for a timer: WSAPoll would return at once, whether there is room or not */
    bool wrote : 1;      /* there may be bytes on their way */
    bool at_end : 1;     /* nothing but the end can be left to read */
    bool prompt : 1;     /* TCP_NODELAY is set, or there is no such thing */
};

/* The generation tells a stream from those that had its number before. */
typedef struct plb__w32_slot {
    plb_stream *stream; /* NULL: free */
    uint32_t generation;
    uint32_t next_free;
} plb__w32_slot;

/* Whom an entry of the array for WSAPoll is about. */
typedef struct plb__w32_polled {
    uint32_t slot, generation;
} plb__w32_polled;

struct plb_win32 {
    plb_allocator allocator;
    plb_io io;
    plb_clock clock;
    plb_random random;
    plb_names names;
    plb_barrier barrier; /* issue is NULL where the system has none */
    plb_dgram dgram;
    uint64_t ticks_per_second; /* of the performance counter */

    plb__w32_slot *slots;
    uint32_t slot_count, slot_capacity, free_slot;

    struct pollfd *fds; /* what WSAPoll is asked, [0] for the socket that wakes, and about whom: as of the last wait */
    plb__w32_polled *polled;
    uint32_t fds_capacity, fds_count;
    int event_count;

    plb_stream *connecting, *next_connecting; /* the list, and where the walk through it is */
    HANDLE connect_event, connect_wait;       /* set by any FD_CONNECT; the pool's thread that waits for it */
    SOCKET wake_socket;                       /* UDP, connected to itself: nobody else's datagrams arrive */

    plb_timers timers;
    plb_timer write_retry; /* for writers that wait for time */
    plb__w32_extra *paused;
    plb__w32_helper *helper; /* NULL before the first name */

    plb_task *tasks, *next_task;
    uint64_t tasks_due_ms;

    volatile LONG busy;          /* the thread that makes callbacks or polls tasks, else 0 */
    volatile LONG poll_again;    /* tasks are to be polled without waiting */
    volatile LONG wake_sent;     /* a wake is on its way already */
    volatile LONG connect_ended; /* the list of those that connect is worth a walk */
    volatile LONG stop_wanted;
    volatile LONG stoppers; /* threads that are inside plb_win32_stop */
#ifndef PLB_NO_THREADS
    HANDLE thread;
#endif
    bool has_winsock;
};

/* ==== SYSTEM: atomics, status, clock, random, barrier ============================================================= */

static LONG plb__w32_swap(volatile LONG *flag, LONG value)
{
    return InterlockedExchange(flag, value);
}

static LONG plb__w32_load(volatile LONG *flag)
{
    return InterlockedCompareExchange(flag, 0, 0);
}

/* A number that no other living thread has. */
static LONG plb__w32_self(void)
{
    return (LONG)GetCurrentThreadId();
}

static bool plb__w32_set(SOCKET socket, int level, int option, DWORD value)
{
    return setsockopt(socket, level, option, (const char *)&value, sizeof value) == 0;
}

static plb_status plb__w32_status(int error)
{
    switch (error) {
    case WSAECONNREFUSED:
        return PLB_ERR_REFUSED;
    case WSAEHOSTUNREACH:
    case WSAENETUNREACH:
    case WSAENETDOWN:
    case WSAEHOSTDOWN:
    case WSAEADDRNOTAVAIL: /* connect: not an address that anybody could have */
        return PLB_ERR_UNREACHABLE;
    case WSAECONNRESET:
    case WSAECONNABORTED:
    case WSAENETRESET:
    case WSAENOTCONN:
    case WSAESHUTDOWN:
    case WSAEDISCON:
        return PLB_ERR_RESET;
    case WSAETIMEDOUT:
        return PLB_ERR_TIMEOUT;
    case WSA_NOT_ENOUGH_MEMORY:
        return PLB_ERR_MEMORY;
    case WSAEMFILE:
    case WSAENOBUFS: /* connect: no local port is left */
        return PLB_ERR_LIMIT;
    case WSAEADDRINUSE:
        return PLB_ERR_IN_USE;
    case WSAEACCES:
        return PLB_ERR_ACCESS;
    case WSAEAFNOSUPPORT:
    case WSAEPROTONOSUPPORT:
    case WSAESOCKTNOSUPPORT:
    case WSAEPROTOTYPE:
    case WSAEOPNOTSUPP:
        return PLB_ERR_UNSUPPORTED;
    default:
        return PLB_ERR_IO;
    }
}

/* The performance counter in units of which there are so many a second. */
static uint64_t plb__w32_now(const plb_win32 *wx, uint64_t units)
{
    LARGE_INTEGER counter;
    uint64_t ticks;
    QueryPerformanceCounter(&counter);
    ticks = (uint64_t)counter.QuadPart;
    return ticks / wx->ticks_per_second * units + ticks % wx->ticks_per_second * units / wx->ticks_per_second;
}

static uint64_t plb__w32_now_ms(void *self)
{
    return plb__w32_now((const plb_win32 *)self, 1000);
}

static uint64_t plb__w32_now_us(void *self)
{
    return plb__w32_now((const plb_win32 *)self, 1000000);
}

/* Where the system has none to give the clock and the place of the stack serve: the bytes are not for secrets. */
static void plb__w32_fill_random(void *self, void *bytes, size_t count)
{
    uint64_t state = plb__w32_now_us(self) ^ (uint64_t)(uintptr_t)&bytes ^ (uint64_t)GetCurrentProcessId() << 40;
    size_t i, room;
    for (i = 0; i < count; i += room) {
        room = count - i < 65536 ? count - i : 65536;
        if (BCryptGenRandom(NULL, (PUCHAR)bytes + i, (ULONG)room, BCRYPT_USE_SYSTEM_PREFERRED_RNG) < 0)
            break;
    }
    for (; i < count; i++) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        ((uint8_t *)bytes)[i] = (uint8_t)(state >> 56);
    }
}

#ifndef PLB_NO_THREADS
static void plb__w32_issue_barrier(void *self)
{
    (void)self;
    FlushProcessWriteBuffers();
}

/* Under Wine it may be no more than a name; which versions have more of it is not for this file to know. */
static bool plb__w32_has_barrier(void)
{
    HMODULE ntdll = GetModuleHandleA("ntdll.dll");
    return ntdll != NULL && GetProcAddress(ntdll, "wine_get_version") == NULL;
}

static void plb__w32_open_barrier(plb_barrier *barrier)
{
    if (plb__w32_has_barrier())
        barrier->issue = plb__w32_issue_barrier;
}
#else
static void plb__w32_open_barrier(plb_barrier *barrier)
{
    barrier->issue = NULL;
}
#endif

/* ==== MEMORY ====================================================================================================== */

/* Zeroed memory, or NULL. */
static void *plb__w32_new(const plb_allocator *allocator, size_t size)
{
    void *ptr = allocator->alloc(allocator->user, size);
    if (ptr != NULL)
        memset(ptr, 0, size);
    return ptr;
}

static void plb__w32_delete(const plb_allocator *allocator, void *ptr, size_t size)
{
    if (ptr != NULL)
        allocator->dealloc(allocator->user, ptr, size);
}

/* ==== ADDRESSES =================================================================================================== */

/* afunix.h's sockaddr_un, which not every SDK has. */
typedef struct plb__w32_sockaddr_un {
    ADDRESS_FAMILY sun_family;
    char sun_path[108];
} plb__w32_sockaddr_un;

typedef struct plb__w32_sockaddr {
    int size;
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
        plb__w32_sockaddr_un path;
    } u;
} plb__w32_sockaddr;

/* False: the system has no such address. */
static bool plb__w32_to_system(const plb_addr *addr, plb__w32_sockaddr *out)
{
    memset(out, 0, sizeof *out);
    switch (addr->family) {
    case PLB_FAMILY_IPV4:
        out->size = (int)sizeof out->u.v4;
        out->u.v4.sin_family = AF_INET;
        out->u.v4.sin_port = htons(addr->port);
        memcpy(&out->u.v4.sin_addr, addr->u.v4, 4);
        return true;
    case PLB_FAMILY_IPV6:
        out->size = (int)sizeof out->u.v6;
        out->u.v6.sin6_family = AF_INET6;
        out->u.v6.sin6_port = htons(addr->port);
        out->u.v6.sin6_scope_id = addr->scope;
        memcpy(&out->u.v6.sin6_addr, addr->u.v6, 16);
        return true;
    case PLB_FAMILY_UNIX:
        if (addr->path_len == 0 || addr->path_len >= sizeof out->u.path.sun_path)
            return false;
        out->size = (int)sizeof out->u.path;
        out->u.path.sun_family = AF_UNIX;
        memcpy(out->u.path.sun_path, addr->u.path, addr->path_len);
        return true;
    default:
        return false;
    }
}

/* A Unix stream without a name is PLB_FAMILY_UNIX with an empty path. */
static void plb__w32_path_from_system(const plb__w32_sockaddr *from, plb_addr *out)
{
    size_t head = offsetof(plb__w32_sockaddr_un, sun_path);
    size_t room = (size_t)from->size > head ? (size_t)from->size - head : 0;
    out->family = PLB_FAMILY_UNIX;
    while (out->path_len < room && out->path_len < PLB_PATH_MAX && from->u.path.sun_path[out->path_len] != '\0') {
        out->u.path[out->path_len] = from->u.path.sun_path[out->path_len];
        out->path_len++;
    }
}

/* False, and an address of no family, for what has no place in a plb_addr. */
static bool plb__w32_from_system(const plb__w32_sockaddr *from, plb_addr *out)
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
        plb__w32_path_from_system(from, out);
        return true;
    default:
        return false;
    }
}

static bool plb__w32_is_loopback(const plb_addr *addr)
{
    static const uint8_t v6[16] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1};
    return addr->family == PLB_FAMILY_IPV4 ? addr->u.v4[0] == 127
                                           : addr->family == PLB_FAMILY_IPV6 && memcmp(addr->u.v6, v6, 16) == 0;
}

/* ==== SOCKETS ===================================================================================================== */

/* Non-blocking, and kept from child processes. Closes what it cannot prepare. */
static SOCKET plb__w32_prepare(SOCKET socket)
{
    u_long on = 1;
    int error;
    if (socket == INVALID_SOCKET)
        return socket;
    SetHandleInformation((HANDLE)socket, HANDLE_FLAG_INHERIT, 0);
    if (ioctlsocket(socket, (long)FIONBIO, &on) == 0)
        return socket;
    error = WSAGetLastError();
    closesocket(socket);
    WSASetLastError(error);
    return INVALID_SOCKET;
}

static SOCKET plb__w32_open_socket(int family, int type)
{
    return plb__w32_prepare(socket(family, type, 0));
}

static bool plb__w32_would_block(int error)
{
    return error == WSAEWOULDBLOCK;
}

static bool plb__w32_is_shortage(int error)
{
    return error == WSAEMFILE || error == WSAENOBUFS || error == WSA_NOT_ENOUGH_MEMORY;
}

/* What the two of Winsock's functions have in common. */
typedef int(WSAAPI *plb__w32_name_fn)(SOCKET socket, struct sockaddr *name, int *size);

static bool plb__w32_name_of(SOCKET socket, plb__w32_name_fn get, plb_addr *out)
{
    plb__w32_sockaddr name;
    memset(&name, 0, sizeof name);
    name.size = (int)sizeof name.u;
    return get(socket, &name.u.any, &name.size) == 0 && plb__w32_from_system(&name, out);
}

static plb_status plb__w32_info(void *self, plb_stream *stream, plb_stream_info *out)
{
    (void)self;
    memset(out, 0, sizeof *out);
    if (!plb__w32_name_of(stream->socket, getsockname, &out->local))
        return PLB_ERR_IO;
    return stream->peerless || plb__w32_name_of(stream->socket, getpeername, &out->remote) ? PLB_OK : PLB_ERR_IO;
}

/* ==== WAITING =====================================================================================================
   WSAPoll is level-triggered: nothing needs to be remembered, as what is there is told again. Its array is made anew
   for each wait, of the streams that a callback was promised to. Two things it gets wrong. It may never tell of a
   connection that failed; those in progress are followed by WSAEventSelect instead, all with one event, for which a
   thread of the system's pool waits, and wakes the port. And it tells of a hang-up to those who just want to write, and
   of room in a socket for which the kernel has no memory; these wait for a timer. */

static plb_stream *plb__w32_find(const plb_win32 *wx, uint32_t slot, uint32_t generation)
{
    return wx->slots[slot].generation == generation ? wx->slots[slot].stream : NULL;
}

/* Directions to ask WSAPoll for. */
static unsigned plb__w32_wanted(const plb_stream *stream)
{
    if (stream == NULL || stream->connecting)
        return 0;
    return stream->armed & ~(stream->by_time ? PLB__W32_WRITE : 0u);
}

static void plb__w32_ask(struct pollfd *entry, SOCKET socket, unsigned directions)
{
    entry->fd = socket;
    entry->events = (short)((directions & PLB__W32_READ ? POLLRDNORM : 0) | /* not bytes that are out of band */
                            (directions & PLB__W32_WRITE ? POLLWRNORM : 0));
    entry->revents = 0;
}

/* Returns how many entries there are, even if there is no room for all; `polled` may be NULL. */
static size_t plb__w32_ask_all(const plb_win32 *wx, struct pollfd *fds, plb__w32_polled *polled, size_t capacity)
{
    size_t count = 1;
    uint32_t slot;
    if (capacity > 0)
        plb__w32_ask(&fds[0], wx->wake_socket, PLB__W32_READ);
    for (slot = 0; slot < wx->slot_count; slot++) {
        unsigned wanted = plb__w32_wanted(wx->slots[slot].stream);
        if (wanted == 0)
            continue;
        if (count < capacity)
            plb__w32_ask(&fds[count], wx->slots[slot].stream->socket, wanted);
        if (count < capacity && polled != NULL) {
            polled[count].slot = slot;
            polled[count].generation = wx->slots[slot].generation;
        }
        count++;
    }
    return count;
}

PLB_API size_t plb_win32_fill(const plb_win32 *wx, struct pollfd *fds, size_t capacity)
{
    return plb__w32_ask_all(wx, fds, NULL, capacity);
}

static void plb__w32_wait(plb_win32 *wx, int timeout_ms)
{
    wx->fds_count = (uint32_t)plb__w32_ask_all(wx, wx->fds, wx->polled, wx->fds_capacity);
    wx->event_count = PLB_WIN32_POLL(wx->fds, wx->fds_count, timeout_ms);
    if (wx->event_count < 0 && timeout_ms != 0) /* without memory, say: no reason to spin */
        Sleep(timeout_ms < 0 || timeout_ms > PLB__W32_FAULT_MS ? PLB__W32_FAULT_MS : (DWORD)timeout_ms);
}

/* Room for that many streams; false without memory. */
static bool plb__w32_reserve(plb_win32 *wx, uint32_t streams)
{
    uint32_t capacity = streams + 1;
    struct pollfd *fds = (struct pollfd *)plb__w32_new(&wx->allocator, capacity * sizeof *fds);
    plb__w32_polled *polled = (plb__w32_polled *)plb__w32_new(&wx->allocator, capacity * sizeof *polled);
    if (fds == NULL || polled == NULL) {
        plb__w32_delete(&wx->allocator, fds, capacity * sizeof *fds);
        plb__w32_delete(&wx->allocator, polled, capacity * sizeof *polled);
        return false;
    }
    if (wx->fds_count > 0) { /* a callback may be on its way through them */
        memcpy(fds, wx->fds, wx->fds_count * sizeof *fds);
        memcpy(polled, wx->polled, wx->fds_count * sizeof *polled);
    }
    plb__w32_delete(&wx->allocator, wx->fds, wx->fds_capacity * sizeof *wx->fds);
    plb__w32_delete(&wx->allocator, wx->polled, wx->fds_capacity * sizeof *wx->polled);
    wx->fds = fds;
    wx->polled = polled;
    wx->fds_capacity = capacity;
    return true;
}

/* Ends a wait, or the next one; without memory for that the next wake tries again. Any thread. */
static void plb__w32_signal(plb_win32 *wx)
{
    if (send(wx->wake_socket, "", 1, 0) < 0 && !plb__w32_would_block(WSAGetLastError()))
        plb__w32_swap(&wx->wake_sent, 0); /* a buffer that is full wakes as well */
}

/* The socket is emptied before the next wake may be sent; that, however, may be even if this one got lost. */
static void plb__w32_take_wake(plb_win32 *wx, bool came)
{
    char bytes[1];
    int rounds = came ? 16 : 0;
    while (rounds-- > 0 && recv(wx->wake_socket, bytes, sizeof bytes, 0) >= 0)
        continue;
    plb__w32_swap(&wx->wake_sent, 0);
}

/* Connected to its own address, it hears nobody else: a forger would have to have that address. */
static plb_status plb__w32_open_wake(plb_win32 *wx)
{
    plb__w32_sockaddr name;
    memset(&name, 0, sizeof name);
    name.size = (int)sizeof name.u.v4;
    name.u.v4.sin_family = AF_INET;
    name.u.v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    wx->wake_socket = plb__w32_open_socket(AF_INET, SOCK_DGRAM);
    if (wx->wake_socket == INVALID_SOCKET)
        return plb__w32_is_shortage(WSAGetLastError()) ? PLB_ERR_LIMIT : PLB_ERR_IO;
    if (!plb__w32_set(wx->wake_socket, SOL_SOCKET, SO_EXCLUSIVEADDRUSE, 1) ||
        bind(wx->wake_socket, &name.u.any, name.size) != 0 ||
        getsockname(wx->wake_socket, &name.u.any, &name.size) != 0 ||
        connect(wx->wake_socket, &name.u.any, name.size) != 0)
        return PLB_ERR_IO;
    return PLB_OK;
}

static void plb__w32_wake(void *self);

/* In a thread of the pool. */
static VOID CALLBACK plb__w32_on_connect_event(PVOID user, BOOLEAN timed_out)
{
    plb_win32 *wx = (plb_win32 *)user;
    (void)timed_out;
    plb__w32_swap(&wx->connect_ended, 1);
    plb__w32_wake(wx);
}

static plb_status plb__w32_open_waiting(plb_win32 *wx)
{
    WSADATA winsock;
    plb_status status;
    wx->wake_socket = INVALID_SOCKET;
    wx->has_winsock = WSAStartup(MAKEWORD(2, 2), &winsock) == 0;
    if (!wx->has_winsock)
        return PLB_ERR_IO;
    if (!plb__w32_reserve(wx, 8))
        return PLB_ERR_MEMORY;
    status = plb__w32_open_wake(wx);
    if (status != PLB_OK)
        return status;
    wx->connect_event = CreateEventA(NULL, FALSE, FALSE, NULL);
    if (wx->connect_event == NULL ||
        !RegisterWaitForSingleObject(&wx->connect_wait, wx->connect_event, plb__w32_on_connect_event, wx, INFINITE,
                                     WT_EXECUTEINWAITTHREAD))
        return PLB_ERR_LIMIT;
    return PLB_OK;
}

/* The pool's thread is out of our functions when this returns. */
static void plb__w32_close_waiting(plb_win32 *wx)
{
    if (wx->connect_wait != NULL)
        UnregisterWaitEx(wx->connect_wait, INVALID_HANDLE_VALUE);
    if (wx->connect_event != NULL)
        CloseHandle(wx->connect_event);
    if (wx->wake_socket != INVALID_SOCKET)
        closesocket(wx->wake_socket);
    plb__w32_delete(&wx->allocator, wx->fds, wx->fds_capacity * sizeof *wx->fds);
    plb__w32_delete(&wx->allocator, wx->polled, wx->fds_capacity * sizeof *wx->polled);
    if (wx->has_winsock)
        WSACleanup();
}

/* ==== STREAMS: life =============================================================================================== */

/* Doubles the table. */
static bool plb__w32_grow(plb_win32 *wx)
{
    uint32_t capacity = wx->slot_capacity == 0 ? 8 : wx->slot_capacity * 2;
    plb__w32_slot *slots;
    if (capacity > PLB__W32_NO_SLOT / 2 || !plb__w32_reserve(wx, capacity))
        return false;
    slots = (plb__w32_slot *)plb__w32_new(&wx->allocator, capacity * sizeof *slots);
    if (slots == NULL)
        return false;
    if (wx->slot_capacity > 0)
        memcpy(slots, wx->slots, wx->slot_capacity * sizeof *slots);
    plb__w32_delete(&wx->allocator, wx->slots, wx->slot_capacity * sizeof *slots);
    wx->slots = slots;
    wx->slot_capacity = capacity;
    return true;
}

/* A stream without a socket yet, or NULL without memory. */
static plb_stream *plb__w32_stream_new(plb_win32 *wx, plb_handler handler)
{
    plb_stream *stream;
    if (wx->free_slot == PLB__W32_NO_SLOT && wx->slot_count == wx->slot_capacity && !plb__w32_grow(wx))
        return NULL;
    stream = (plb_stream *)plb__w32_new(&wx->allocator, sizeof *stream);
    if (stream == NULL)
        return NULL;
    stream->handler = handler;
    stream->socket = INVALID_SOCKET;
    if (wx->free_slot != PLB__W32_NO_SLOT) {
        stream->slot = wx->free_slot;
        wx->free_slot = wx->slots[stream->slot].next_free;
    } else {
        stream->slot = wx->slot_count++;
    }
    wx->slots[stream->slot].stream = stream;
    return stream;
}

static void plb__w32_stop_pause(plb__w32_extra *extra)
{
    plb__w32_extra **at = &extra->wx->paused;
    plb_timer_stop(&extra->wx->timers, &extra->retry);
    while (*at != NULL && *at != extra)
        at = &(*at)->next_paused;
    if (*at != NULL)
        *at = extra->next_paused;
}

/* Out of the list of those that connect. */
static void plb__w32_stop_connecting(plb_win32 *wx, plb_stream *stream)
{
    if (!stream->connecting)
        return;
    if (wx->next_connecting == stream)
        wx->next_connecting = stream->next_connecting;
    if (stream->next_connecting != NULL)
        stream->next_connecting->prev_connecting = stream->prev_connecting;
    if (stream->prev_connecting != NULL)
        stream->prev_connecting->next_connecting = stream->next_connecting;
    else
        wx->connecting = stream->next_connecting;
    stream->connecting = false;
}

static void plb__w32_stream_delete(plb_win32 *wx, plb_stream *stream)
{
    plb__w32_slot *slot = &wx->slots[stream->slot];
    plb__w32_stop_connecting(wx, stream);
    if (stream->socket != INVALID_SOCKET)
        closesocket(stream->socket);
    if (stream->extra != NULL)
        plb__w32_stop_pause(stream->extra);
    plb__w32_delete(&wx->allocator, stream->extra, sizeof *stream->extra);
    slot->stream = NULL;
    slot->generation++;
    slot->next_free = wx->free_slot;
    wx->free_slot = stream->slot;
    plb__w32_delete(&wx->allocator, stream, sizeof *stream);
}

static void plb__w32_retry_soon(plb_win32 *wx)
{
    if (plb_timer_is_set(&wx->write_retry))
        return;
    plb_timers_update(&wx->timers, &wx->clock);
    plb_timer_set(&wx->timers, &wx->write_retry, PLB__W32_WRITE_MS);
}

/* Promises a callback. */
static plb_status plb__w32_arm(plb_win32 *wx, plb_stream *stream, unsigned direction)
{
    stream->armed = (uint8_t)(stream->armed | direction);
    if (stream->by_time && (stream->armed & PLB__W32_WRITE) != 0)
        plb__w32_retry_soon(wx);
    return PLB_AGAIN;
}

static void plb__w32_call(plb_stream *stream, plb_event event, plb_status status)
{
    stream->handler.fn(stream->handler.user, stream, event, status);
}

/* ==== STREAMS: connections ======================================================================================== */

/* A port of this machine that refuses is asked once, or as seldom as this Windows can; no matter if that fails. */
static void plb__w32_ask_once(SOCKET socket)
{
    static const struct plb__w32_initial_rto { /* mstcpip.h's TCP_INITIAL_RTO_PARAMETERS */
        USHORT rtt;
        UCHAR retransmissions;
    } tries[2] = {{0xffff, 0xfe}, {0xffff, 1}}; /* as the system has it; none, which older ones do not know, or one */
    DWORD size = 0;
    int i, result = SOCKET_ERROR;
    for (i = 0; i < 2 && result != 0; i++)
        result =
            WSAIoctl(socket, _WSAIOW(IOC_VENDOR, 17), (void *)&tries[i], sizeof tries[i], NULL, 0, &size, NULL, NULL);
}

static plb_status plb__w32_try_connect(plb_win32 *wx, plb_stream *stream, const plb__w32_sockaddr *to)
{
    int error;
    if (WSAEventSelect(stream->socket, wx->connect_event, FD_CONNECT) != 0)
        return plb__w32_status(WSAGetLastError());
    if (connect(stream->socket, &to->u.any, to->size) == 0) {
        WSAEventSelect(stream->socket, NULL, 0);
        return PLB_OK;
    }
    error = WSAGetLastError();
    if (!plb__w32_would_block(error))
        return plb__w32_status(error);
    stream->connecting = true;
    stream->next_connecting = wx->connecting;
    if (wx->connecting != NULL)
        wx->connecting->prev_connecting = stream;
    wx->connecting = stream;
    return PLB_AGAIN;
}

static plb_status plb__w32_bind_source(SOCKET socket, const plb_addr *source)
{
    plb__w32_sockaddr from;
    int error;
    if (source->family == PLB_FAMILY_NONE)
        return PLB_OK;
    if (!plb__w32_to_system(source, &from))
        return PLB_ERR_UNSUPPORTED;
    if (bind(socket, &from.u.any, from.size) == 0)
        return PLB_OK;
    error = WSAGetLastError();
    if (error == WSAEADDRNOTAVAIL) /* not an address of this machine, or not any more */
        return PLB_ERR_ADDRESS;
    if (error == WSAEFAULT) /* of another family */
        return PLB_ERR_UNSUPPORTED;
    return error == WSAEADDRINUSE && source->port == 0 ? PLB_ERR_LIMIT : plb__w32_status(error);
}

static plb_status plb__w32_open_stream(plb_stream *stream, const plb_addr *addr, int type)
{
    static const int families[] = {AF_UNSPEC, AF_INET, AF_INET6, AF_UNIX}; /* by plb_family */
    stream->socket = plb__w32_open_socket(families[addr->family], type);
    stream->prompt = addr->family == PLB_FAMILY_UNIX;
    return stream->socket != INVALID_SOCKET ? PLB_OK : plb__w32_status(WSAGetLastError());
}

static plb_status plb__w32_connect(void *self, const plb_peer *peer, plb_handler handler, plb_stream **out)
{
    plb_win32 *wx = (plb_win32 *)self;
    plb__w32_sockaddr to;
    plb_stream *stream;
    plb_status status;
    *out = NULL;
    if (peer->tls != NULL || !plb__w32_to_system(&peer->addr, &to))
        return PLB_ERR_UNSUPPORTED;
    if (peer->source.family != PLB_FAMILY_NONE && peer->source.family != peer->addr.family)
        return PLB_ERR_UNSUPPORTED;
    stream = plb__w32_stream_new(wx, handler);
    if (stream == NULL)
        return PLB_ERR_MEMORY;
    status = plb__w32_open_stream(stream, &peer->addr, SOCK_STREAM);
    if (status == PLB_OK && plb__w32_is_loopback(&peer->addr))
        plb__w32_ask_once(stream->socket);
    if (status == PLB_OK)
        status = plb__w32_bind_source(stream->socket, &peer->source);
    if (status == PLB_OK)
        status = plb__w32_try_connect(wx, stream, &to);
    if (status == PLB_OK || status == PLB_AGAIN)
        *out = stream;
    else
        plb__w32_stream_delete(wx, stream);
    return status;
}

/* Nagle's algorithm holds back a short segment while another is on its way (RFC 9293 section 3.7.4), so it never holds
   a first write that fits into one; this is the least that a segment has room for (section 3.7.1). */
#define PLB__W32_SEGMENT 536

/* Takes Nagle's algorithm out of the way of a write that it could hold. */
static void plb__w32_make_prompt(plb_stream *stream, size_t offered)
{
    if (stream->prompt || (!stream->wrote && offered <= PLB__W32_SEGMENT))
        return;
    plb__w32_set(stream->socket, IPPROTO_TCP, TCP_NODELAY, 1);
    stream->prompt = true;
}

static plb_status plb__w32_read(void *self, plb_stream *stream, void *buffer, size_t capacity, size_t *got)
{
    int count = recv(stream->socket, (char *)buffer, capacity < INT_MAX ? (int)capacity : INT_MAX, 0), error;
    *got = 0;
    if (count > 0) {
        *got = (size_t)count;
        return PLB_OK;
    }
    if (count == 0) {
        stream->at_end = true;
        return PLB_END;
    }
    error = WSAGetLastError();
    return plb__w32_would_block(error) ? plb__w32_arm((plb_win32 *)self, stream, PLB__W32_READ)
                                       : plb__w32_status(error);
}

static plb_status plb__w32_write(void *self, plb_stream *stream, const plb_chunk *chunks, size_t count, size_t *taken)
{
    WSABUF parts[PLB_CHUNKS_MAX];
    size_t offered = 0;
    DWORD used, sent = 0;
    int error;
    *taken = 0;
    for (used = 0; used < count && used < PLB_CHUNKS_MAX && offered < PLB__W32_WRITE_MAX; used++) {
        size_t room = PLB__W32_WRITE_MAX - offered, size = chunks[used].size < room ? chunks[used].size : room;
        parts[used].buf = (CHAR *)chunks[used].data;
        parts[used].len = (ULONG)size;
        offered += size;
    }
    plb__w32_make_prompt(stream, offered);
    if (WSASend(stream->socket, parts, used, &sent, 0, NULL, NULL) == 0) {
        stream->wrote = true;
        stream->by_time = false;
        *taken = sent;
        return PLB_OK;
    }
    error = WSAGetLastError();
    if (error == WSAENOBUFS) /* the kernel's memory is short; there is room in the socket */
        stream->by_time = true;
    return error == WSAENOBUFS || plb__w32_would_block(error) ? plb__w32_arm((plb_win32 *)self, stream, PLB__W32_WRITE)
                                                              : plb__w32_status(error);
}

static plb_status plb__w32_watch(void *self, plb_stream *stream, plb_event event)
{
    return plb__w32_arm((plb_win32 *)self, stream, event == PLB_EVENT_WRITE ? PLB__W32_WRITE : PLB__W32_READ);
}

static plb_status plb__w32_shutdown(void *self, plb_stream *stream)
{
    (void)self;
    return shutdown(stream->socket, SD_SEND) == 0 ? PLB_OK : PLB_ERR_RESET;
}

/* Sockets that are closed over unread bytes reset their connection, and what was sent may be lost with it. */
static void plb__w32_discard_input(plb_stream *stream)
{
    char sink[4096];
    int rounds = 16;
    if (!stream->wrote || stream->at_end)
        return;
    while (rounds-- > 0 && recv(stream->socket, sink, sizeof sink, 0) == (int)sizeof sink)
        continue;
}

/* RFC 9293 section 3.9.1.6: ABORT. */
static void plb__w32_make_abortive(SOCKET socket)
{
    struct linger now;
    now.l_onoff = 1;
    now.l_linger = 0;
    setsockopt(socket, SOL_SOCKET, SO_LINGER, (const char *)&now, sizeof now);
}

/* ==== STREAMS: Unix paths ========================================================================================= */

static bool plb__w32_wide_path(const plb_addr *addr, WCHAR *out)
{
    int length = MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, addr->u.path, addr->path_len, out, PLB_PATH_MAX);
    out[length] = 0;
    return length > 0;
}

static plb__w32_file plb__w32_file_at(const plb_addr *addr)
{
    plb__w32_file file;
    WCHAR path[PLB_PATH_MAX + 1];
    BY_HANDLE_FILE_INFORMATION about;
    HANDLE handle = INVALID_HANDLE_VALUE;
    memset(&file, 0, sizeof file);
    if (plb__w32_wide_path(addr, path))
        handle = CreateFileW(path, 0, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, NULL, OPEN_EXISTING,
                             FILE_FLAG_BACKUP_SEMANTICS | FILE_FLAG_OPEN_REPARSE_POINT, NULL);
    if (handle == INVALID_HANDLE_VALUE)
        return file;
    file.known = GetFileInformationByHandle(handle, &about) != 0;
    if (file.known) {
        file.volume = about.dwVolumeSerialNumber;
        file.index_high = about.nFileIndexHigh;
        file.index_low = about.nFileIndexLow;
    }
    CloseHandle(handle);
    return file;
}

static bool plb__w32_remove_path(const plb_addr *addr)
{
    WCHAR path[PLB_PATH_MAX + 1];
    return plb__w32_wide_path(addr, path) && DeleteFileW(path);
}

/* Only a socket is one; its tag is IO_REPARSE_TAG_AF_UNIX. */
static bool plb__w32_is_socket_file(const plb_addr *addr)
{
    WCHAR path[PLB_PATH_MAX + 1];
    WIN32_FIND_DATAW found;
    HANDLE search = plb__w32_wide_path(addr, path) ? FindFirstFileW(path, &found) : INVALID_HANDLE_VALUE;
    if (search == INVALID_HANDLE_VALUE)
        return false;
    FindClose(search);
    return (found.dwFileAttributes & FILE_ATTRIBUTE_REPARSE_POINT) != 0 && found.dwReserved0 == 0x80000023u;
}

/* Who listens on this machine answers at once; the time is for Windows to pass it on. */
static bool plb__w32_is_refused(SOCKET knock, const plb__w32_sockaddr *name)
{
    struct timeval patience = {0, PLB__W32_KNOCK_MS * 1000};
    fd_set made, failed;
    int error, size = (int)sizeof error;
    if (connect(knock, &name->u.any, name->size) == 0)
        return false;
    error = WSAGetLastError();
    if (!plb__w32_would_block(error))
        return error == WSAECONNREFUSED;
    FD_ZERO(&made);
    FD_ZERO(&failed);
    FD_SET(knock, &made);
    FD_SET(knock, &failed);
    return select(0, NULL, &made, &failed, &patience) > 0 && FD_ISSET(knock, &failed) &&
           getsockopt(knock, SOL_SOCKET, SO_ERROR, (char *)&error, &size) == 0 && error == WSAECONNREFUSED;
}

/* Is this the file of a Unix listener that is no more? */
static bool plb__w32_is_stale(const plb_addr *addr, const plb__w32_sockaddr *name)
{
    SOCKET knock;
    bool refused;
    if (!plb__w32_is_socket_file(addr))
        return false;
    knock = plb__w32_open_socket(AF_UNIX, SOCK_STREAM);
    if (knock == INVALID_SOCKET)
        return false;
    refused = plb__w32_is_refused(knock, name);
    closesocket(knock);
    return refused;
}

/* A path where no file can be made, for want of the folder, say, is told as a network that is down. */
static plb_status plb__w32_path_status(int error)
{
    return error == WSAENETDOWN || error == WSAEINVAL || error == WSAEADDRNOTAVAIL ? PLB_ERR_ADDRESS
                                                                                   : plb__w32_status(error);
}

static plb_status plb__w32_bind_path(plb_stream *listener, const plb__w32_sockaddr *name)
{
    const plb_addr *addr = &listener->extra->addr;
    int result = bind(listener->socket, &name->u.any, name->size);
    if (result != 0 && WSAGetLastError() == WSAEADDRINUSE) {
        if (!plb__w32_is_stale(addr, name) || !plb__w32_remove_path(addr))
            return PLB_ERR_IN_USE;
        result = bind(listener->socket, &name->u.any, name->size);
    }
    if (result != 0)
        return plb__w32_path_status(WSAGetLastError());
    listener->extra->file = plb__w32_file_at(addr);
    return PLB_OK;
}

/* Unless another has taken the place meanwhile. */
static void plb__w32_unlink_path(const plb__w32_extra *extra)
{
    plb__w32_file now = plb__w32_file_at(&extra->addr);
    if (extra->file.known && now.known && now.volume == extra->file.volume && now.index_low == extra->file.index_low &&
        now.index_high == extra->file.index_high)
        plb__w32_remove_path(&extra->addr);
}

/* ==== STREAMS: listeners ========================================================================================== */

static void plb__w32_set_pause(plb__w32_extra *extra, uint32_t delay_ms)
{
    plb_timers_update(&extra->wx->timers, &extra->wx->clock);
    plb_timer_set(&extra->wx->timers, &extra->retry, delay_ms);
}

static void plb__w32_resume(void *user)
{
    plb__w32_extra *extra = (plb__w32_extra *)user;
    plb__w32_stop_pause(extra);
    plb__w32_call(extra->stream, PLB_EVENT_ACCEPT, PLB_OK);
}

/* Out of sockets: connections wait in the backlog, and the listener for better times. */
static plb_status plb__w32_pause(plb_win32 *wx, plb_stream *listener)
{
    listener->armed = 0;
    listener->extra->next_paused = wx->paused;
    wx->paused = listener->extra;
    plb__w32_set_pause(listener->extra, PLB__W32_ACCEPT_MS);
    return PLB_AGAIN;
}

/* A stream has gone: those that wait for a socket need not wait longer. */
static void plb__w32_hurry(plb_win32 *wx)
{
    while (wx->paused != NULL) {
        plb__w32_extra *extra = wx->paused;
        wx->paused = extra->next_paused;
        extra->next_paused = NULL;
        plb__w32_set_pause(extra, 0);
    }
}

/* Connections that died in the backlog are skipped; the first error that is not of that kind, or that comes too often,
   is left to WSAGetLastError. */
static SOCKET plb__w32_accept_next(SOCKET listener)
{
    int tries, error = WSAENOBUFS;
    for (tries = 0; tries < 64; tries++) {
        SOCKET taken = plb__w32_prepare(accept(listener, NULL, NULL));
        if (taken != INVALID_SOCKET)
            return taken;
        error = WSAGetLastError();
        if (error != WSAECONNRESET && error != WSAECONNABORTED)
            break;
        error = WSAENOBUFS;
    }
    WSASetLastError(error);
    return INVALID_SOCKET;
}

static plb_status plb__w32_accept(void *self, plb_stream *listener, plb_handler handler, plb_stream **out)
{
    plb_win32 *wx = (plb_win32 *)self;
    plb_stream *stream;
    int error;
    *out = NULL;
    if (plb_timer_is_set(&listener->extra->retry))
        return PLB_AGAIN;
    stream = plb__w32_stream_new(wx, handler);
    if (stream == NULL)
        return plb__w32_pause(wx, listener);
    stream->socket = plb__w32_accept_next(listener->socket);
    if (stream->socket != INVALID_SOCKET) {
        stream->prompt = listener->prompt;
        *out = stream;
        return PLB_OK;
    }
    error = WSAGetLastError();
    plb__w32_stream_delete(wx, stream);
    if (plb__w32_is_shortage(error))
        return plb__w32_pause(wx, listener);
    return plb__w32_would_block(error) ? plb__w32_arm(wx, listener, PLB__W32_READ) : PLB_ERR_IO;
}

/* Nobody else gets the address, whatever options he has. */
static plb_status plb__w32_bind_alone(SOCKET socket, const plb_addr *addr, const plb__w32_sockaddr *name)
{
    if (!plb__w32_set(socket, SOL_SOCKET, SO_EXCLUSIVEADDRUSE, 1))
        return PLB_ERR_IO;
    if (addr->family == PLB_FAMILY_IPV6 && !plb__w32_set(socket, IPPROTO_IPV6, IPV6_V6ONLY, 1))
        return PLB_ERR_IO;
    if (bind(socket, &name->u.any, name->size) == 0)
        return PLB_OK;
    return WSAGetLastError() == WSAEADDRNOTAVAIL ? PLB_ERR_ADDRESS : plb__w32_status(WSAGetLastError());
}

/* Windows lets 200 connections wait at most and refuses those beyond, unless it is given the negative number, which is
   what SOMAXCONN_HINT makes of it; only TCP knows that. */
static int plb__w32_listen_on(SOCKET socket, const plb_listen_desc *desc)
{
    uint32_t wanted = desc->backlog == 0 ? PLB__W32_BACKLOG : desc->backlog;
    int backlog = wanted < 65535 ? (int)wanted : 65535;
    if (backlog > 200 && desc->addr.family != PLB_FAMILY_UNIX && listen(socket, -backlog) == 0)
        return 0;
    return listen(socket, backlog);
}

static plb_status plb__w32_open_listener(plb_win32 *wx, plb_stream *listener, const plb_listen_desc *desc,
                                         const plb__w32_sockaddr *name)
{
    plb_status status;
    listener->listener = listener->peerless = true;
    listener->extra = (plb__w32_extra *)plb__w32_new(&wx->allocator, sizeof *listener->extra);
    if (listener->extra == NULL)
        return PLB_ERR_MEMORY;
    listener->extra->wx = wx;
    listener->extra->stream = listener;
    listener->extra->addr = desc->addr;
    listener->extra->retry.fn = plb__w32_resume;
    listener->extra->retry.user = listener->extra;
    status = plb__w32_open_stream(listener, &desc->addr, SOCK_STREAM);
    if (status == PLB_OK)
        status = desc->addr.family == PLB_FAMILY_UNIX ? plb__w32_bind_path(listener, name)
                                                      : plb__w32_bind_alone(listener->socket, &desc->addr, name);
    if (status == PLB_OK && plb__w32_listen_on(listener->socket, desc) != 0)
        status = plb__w32_status(WSAGetLastError());
    return status;
}

static void plb__w32_close(void *self, plb_stream *stream, plb_close_how how);

static plb_status plb__w32_listen(void *self, const plb_listen_desc *desc, plb_handler handler, plb_stream **out)
{
    plb_win32 *wx = (plb_win32 *)self;
    plb__w32_sockaddr name;
    plb_stream *listener;
    plb_status status;
    *out = NULL;
    if (desc->tls != NULL || desc->reuse_port || !plb__w32_to_system(&desc->addr, &name))
        return PLB_ERR_UNSUPPORTED;
    listener = plb__w32_stream_new(wx, handler);
    if (listener == NULL)
        return PLB_ERR_MEMORY;
    status = plb__w32_open_listener(wx, listener, desc, &name);
    if (status == PLB_OK)
        *out = listener;
    else
        plb__w32_close(wx, listener, PLB_CLOSE_GRACEFUL);
    return status;
}

/* ==== STREAMS: end and events ===================================================================================== */

static void plb__w32_close(void *self, plb_stream *stream, plb_close_how how)
{
    plb_win32 *wx = (plb_win32 *)self;
    if (stream->listener && stream->extra != NULL && stream->extra->addr.family == PLB_FAMILY_UNIX)
        plb__w32_unlink_path(stream->extra);
    else if (!stream->listener && how == PLB_CLOSE_ABORT)
        plb__w32_make_abortive(stream->socket);
    else if (!stream->listener)
        plb__w32_discard_input(stream);
    plb__w32_stream_delete(wx, stream);
    plb__w32_hurry(wx);
}

/* Directions of a stream are worth trying. */
static void plb__w32_event(plb_win32 *wx, plb_stream *stream, unsigned ready)
{
    uint32_t slot = stream->slot, generation = wx->slots[slot].generation;
    ready &= stream->armed;
    stream->armed = (uint8_t)(stream->armed & ~ready);
    if (ready & PLB__W32_READ)
        plb__w32_call(stream, stream->listener ? PLB_EVENT_ACCEPT : PLB_EVENT_READ, PLB_OK);
    stream = plb__w32_find(wx, slot, generation); /* the callback may have closed it */
    if (stream != NULL && (ready & PLB__W32_WRITE) != 0)
        plb__w32_call(stream, PLB_EVENT_WRITE, PLB_OK);
}

static void plb__w32_dispatch_one(plb_win32 *wx, plb_stream *stream, short revents)
{
    unsigned ready = 0;
    if (revents & (POLLRDNORM | POLLHUP | POLLERR | POLLNVAL))
        ready |= PLB__W32_READ;
    if (revents & (POLLWRNORM | POLLERR | POLLNVAL))
        ready |= PLB__W32_WRITE;
    if (revents & POLLHUP)
        stream->by_time = true;
    if (stream->by_time && (stream->armed & ~ready & PLB__W32_WRITE) != 0)
        plb__w32_retry_soon(wx);
    plb__w32_event(wx, stream, ready);
}

/* Those who wait for a timer find out by themselves whether there is room now. */
static void plb__w32_retry_writes(void *user)
{
    plb_win32 *wx = (plb_win32 *)user;
    uint32_t slot, count = wx->slot_count;
    for (slot = 0; slot < count; slot++) {
        plb_stream *stream = wx->slots[slot].stream;
        if (stream != NULL && stream->by_time)
            plb__w32_event(wx, stream, PLB__W32_WRITE);
    }
}

/* Callbacks may open and close streams; what is opened meanwhile comes before the place of the walk. */
static void plb__w32_finish_connects(plb_win32 *wx)
{
    plb_stream *stream;
    if (plb__w32_swap(&wx->connect_ended, 0) == 0)
        return;
    for (stream = wx->connecting; stream != NULL; stream = wx->next_connecting) {
        WSANETWORKEVENTS events;
        int error;
        wx->next_connecting = stream->next_connecting;
        if (WSAEnumNetworkEvents(stream->socket, NULL, &events) != 0)
            error = WSAGetLastError();
        else if (events.lNetworkEvents & FD_CONNECT)
            error = events.iErrorCode[FD_CONNECT_BIT];
        else
            continue;
        plb__w32_stop_connecting(wx, stream);
        WSAEventSelect(stream->socket, NULL, 0);
        plb__w32_call(stream, PLB_EVENT_CONNECT, error == 0 ? PLB_OK : plb__w32_status(error));
    }
}

/* Callbacks may move the arrays, and give a slot to another stream. */
static void plb__w32_dispatch(plb_win32 *wx)
{
    uint32_t i, count = wx->event_count > 0 ? wx->fds_count : 0;
    plb__w32_take_wake(wx, count > 0 && wx->fds[0].revents != 0);
    plb__w32_finish_connects(wx);
    for (i = 1; i < count; i++) {
        short revents = wx->fds[i].revents;
        plb_stream *stream = plb__w32_find(wx, wx->polled[i].slot, wx->polled[i].generation);
        if (revents != 0 && stream != NULL)
            plb__w32_dispatch_one(wx, stream, revents);
    }
}

/* ==== DATAGRAMS =================================================================================================== */

/* What other errors there are tell that no way leads there: routes, or ICMP. Windows reports the ICMP message that
   nobody listens as a reset. */
static plb_status plb__w32_dgram_status(int error)
{
    switch (error) {
    case WSAECONNRESET:
    case WSAECONNREFUSED:
        return PLB_ERR_REFUSED;
    case WSAEMSGSIZE:
        return PLB_ERR_ARGUMENT;
    case WSAEWOULDBLOCK:
    case WSAENOBUFS:
        return PLB_ERR_LIMIT;
    case WSA_NOT_ENOUGH_MEMORY:
        return PLB_ERR_MEMORY;
    case WSAEACCES:
        return PLB_ERR_ACCESS;
    case WSAEFAULT:
    case WSAEINVAL:
    case WSAENOTSOCK:
        return PLB_ERR_IO;
    default:
        return PLB_ERR_UNREACHABLE;
    }
}

/* Who serves everybody must not care about what one of them does, and Windows does not even tell which one it was. */
static void plb__w32_ignore_refusals(SOCKET socket)
{
    BOOL off = FALSE;
    DWORD size = 0;
    WSAIoctl(socket, _WSAIOW(IOC_VENDOR, 12), &off, sizeof off, NULL, 0, &size, NULL, NULL); /* SIO_UDP_CONNRESET */
    WSAIoctl(socket, _WSAIOW(IOC_VENDOR, 15), &off, sizeof off, NULL, 0, &size, NULL, NULL); /* SIO_UDP_NETRESET */
}

/* A socket hears everybody until it is connected: what came by then goes. It is finite, the system's buffer is. */
static plb_status plb__w32_discard_strangers(SOCKET socket)
{
    char bytes[1];
    int rounds;
    for (rounds = 0; rounds < 65536; rounds++) {
        if (recv(socket, bytes, sizeof bytes, 0) < 0 && plb__w32_would_block(WSAGetLastError()))
            return PLB_OK;
    }
    return PLB_ERR_LIMIT;
}

static plb_status plb__w32_dgram_arguments(const plb_addr *local, const plb_addr *remote)
{
    const plb_addr *either = local != NULL ? local : remote;
    if (either == NULL || (remote != NULL && remote->family != either->family))
        return PLB_ERR_ARGUMENT;
    if (either->family != PLB_FAMILY_IPV4 && either->family != PLB_FAMILY_IPV6)
        return PLB_ERR_UNSUPPORTED;
    return remote == NULL || remote->port != 0 ? PLB_OK : PLB_ERR_ARGUMENT;
}

static plb_status plb__w32_open_dgram(plb_stream *socket, const plb_addr *local, const plb_addr *remote)
{
    const plb_addr *either = local != NULL ? local : remote;
    plb__w32_sockaddr name;
    plb_status status;
    socket->family = either->family;
    socket->peerless = remote == NULL;
    status = plb__w32_open_stream(socket, either, SOCK_DGRAM);
    if (status == PLB_OK && local != NULL && plb__w32_to_system(local, &name))
        status = plb__w32_bind_alone(socket->socket, local, &name);
    if (status != PLB_OK)
        return status;
    if (remote == NULL) {
        plb__w32_ignore_refusals(socket->socket);
        return PLB_OK;
    }
    plb__w32_to_system(remote, &name);
    if (connect(socket->socket, &name.u.any, name.size) != 0)
        return plb__w32_dgram_status(WSAGetLastError());
    return plb__w32_discard_strangers(socket->socket);
}

static plb_status plb__w32_dgram_open(void *self, const plb_addr *local, const plb_addr *remote, plb_handler handler,
                                      plb_stream **out)
{
    plb_win32 *wx = (plb_win32 *)self;
    plb_stream *socket;
    plb_status status = plb__w32_dgram_arguments(local, remote);
    *out = NULL;
    if (status != PLB_OK)
        return status;
    socket = plb__w32_stream_new(wx, handler);
    if (socket == NULL)
        return PLB_ERR_MEMORY;
    status = plb__w32_open_dgram(socket, local, remote);
    if (status == PLB_OK)
        *out = socket;
    else
        plb__w32_stream_delete(wx, socket);
    return status;
}

/* Where a datagram goes; no name for the remote address of a socket that has one. */
static plb_status plb__w32_dgram_target(const plb_stream *socket, const plb_addr *to, plb__w32_sockaddr *name)
{
    memset(name, 0, sizeof *name);
    if ((to != NULL) != socket->peerless)
        return PLB_ERR_ARGUMENT;
    if (to == NULL)
        return PLB_OK;
    if (to->family != socket->family || !plb__w32_to_system(to, name))
        return PLB_ERR_UNSUPPORTED;
    return to->port != 0 ? PLB_OK : PLB_ERR_ARGUMENT;
}

static plb_status plb__w32_dgram_send(void *self, plb_stream *socket, const plb_addr *to, const void *data, size_t size)
{
    plb__w32_sockaddr name;
    plb_status status = plb__w32_dgram_target(socket, to, &name);
    (void)self;
    if (status != PLB_OK)
        return status;
    if (size > INT_MAX)
        return PLB_ERR_ARGUMENT;
    if (sendto(socket->socket, (const char *)data, (int)size, 0, to != NULL ? &name.u.any : NULL, name.size) >= 0)
        return PLB_OK;
    return plb__w32_dgram_status(WSAGetLastError());
}

/* Windows cuts a datagram that is too long, and does not say how long it was. */
static plb_status plb__w32_dgram_receive(void *self, plb_stream *socket, void *buffer, size_t capacity, size_t *got,
                                         plb_addr *from)
{
    int room = capacity < INT_MAX ? (int)capacity : INT_MAX, count, error = 0;
    plb__w32_sockaddr name;
    memset(&name, 0, sizeof name);
    name.size = (int)sizeof name.u;
    *got = 0;
    count = recvfrom(socket->socket, (char *)buffer, room, 0, &name.u.any, &name.size);
    if (count < 0)
        error = WSAGetLastError();
    if (plb__w32_would_block(error))
        return plb__w32_arm((plb_win32 *)self, socket, PLB__W32_READ);
    if (error != 0 && error != WSAEMSGSIZE)
        return plb__w32_dgram_status(error);
    *got = error != 0 ? capacity + 1 : (size_t)count;
    if (from != NULL)
        plb__w32_from_system(&name, from);
    return PLB_OK;
}

static void plb__w32_dgram_close(void *self, plb_stream *socket)
{
    plb__w32_close(self, socket, PLB_CLOSE_GRACEFUL);
}

/* ==== NAMES: the helper ===========================================================================================
   One thread that calls getaddrinfo. It copies the host under the lock and touches a query only under the lock and only
   while the query is `current`; so a query can go at any time, and the port too. */

static void plb__w32_list_init(plb__w32_link *list)
{
    list->prev = list->next = list;
}

/* Out of whatever list it is in. */
static void plb__w32_unlink(plb__w32_link *link)
{
    link->prev->next = link->next;
    link->next->prev = link->prev;
    plb__w32_list_init(link);
}

static void plb__w32_append(plb__w32_link *list, plb__w32_link *link)
{
    link->prev = list->prev;
    link->next = list;
    list->prev->next = link;
    list->prev = link;
}

static plb_query *plb__w32_first(plb__w32_link *list)
{
    return list->next == list ? NULL : (plb_query *)(void *)list->next;
}

static void plb__w32_wake(void *self);

static plb_status plb__w32_lookup_status(int error)
{
    switch (error) {
    case 0:
        return PLB_OK;
    case WSA_NOT_ENOUGH_MEMORY:
        return PLB_ERR_MEMORY;
    case WSAEMFILE:
    case WSAENOBUFS:
        return PLB_ERR_LIMIT;
    default:
        return PLB_ERR_NAME;
    }
}

#ifdef PLB_NO_THREADS
static bool plb__w32_helper_open(plb__w32_helper *helper)
{
    helper->owners = 1;
    return true;
}

static void plb__w32_lock(plb__w32_helper *helper)
{
    (void)helper;
}

static void plb__w32_unlock(plb__w32_helper *helper)
{
    (void)helper;
}

static void plb__w32_helper_call(plb__w32_helper *helper)
{
    (void)helper;
}

/* Gives up the lock, and one owner's share. */
static void plb__w32_helper_leave(plb__w32_helper *helper)
{
    free(helper);
}
#else
typedef unsigned(__stdcall *plb__w32_thread_fn)(void *user);

static unsigned __stdcall plb__w32_helper_main(void *user);

/* NULL without a thread. */
static HANDLE plb__w32_spawn(plb__w32_thread_fn fn, void *user)
{
    return (HANDLE)_beginthreadex(NULL, 0, fn, user, 0, NULL);
}

static bool plb__w32_helper_open(plb__w32_helper *helper)
{
    HANDLE thread;
    helper->owners = 2;
    InitializeSRWLock(&helper->lock);
    InitializeConditionVariable(&helper->work);
    thread = plb__w32_spawn(plb__w32_helper_main, helper);
    if (thread != NULL)
        CloseHandle(thread);
    return thread != NULL;
}

static void plb__w32_lock(plb__w32_helper *helper)
{
    AcquireSRWLockExclusive(&helper->lock);
}

static void plb__w32_unlock(plb__w32_helper *helper)
{
    ReleaseSRWLockExclusive(&helper->lock);
}

static void plb__w32_helper_call(plb__w32_helper *helper)
{
    WakeConditionVariable(&helper->work);
}

/* Gives up the lock, and one owner's share. */
static void plb__w32_helper_leave(plb__w32_helper *helper)
{
    bool last = --helper->owners == 0;
    plb__w32_unlock(helper);
    if (last)
        free(helper);
}
#endif

/* Answers the query that waits longest. Called with the lock, which it gives up while it resolves. */
static void plb__w32_helper_serve(plb__w32_helper *helper)
{
    plb_query *query = plb__w32_first(&helper->waiting);
    struct addrinfo hints, *found = NULL;
    plb_status status;
    memset(&hints, 0, sizeof hints);
    hints.ai_family = AF_UNSPEC;
    hints.ai_socktype = SOCK_STREAM;
    memcpy(helper->host, query + 1, query->host_size);
    helper->current = query;
    plb__w32_unlink(&query->link);
    plb__w32_unlock(helper);
    status = plb__w32_lookup_status(PLB_WIN32_GETADDRINFO(helper->host, NULL, &hints, &found));
    plb__w32_lock(helper);
    query = helper->current;
    helper->current = NULL;
    if (query == NULL) {
        if (found != NULL)
            freeaddrinfo(found);
        return;
    }
    query->status = status;
    query->found = found;
    plb__w32_append(&helper->answered, &query->link);
    plb__w32_wake(helper->wx);
}

#ifndef PLB_NO_THREADS
/* It may outlive the port, and then still needs Winsock. */
static unsigned __stdcall plb__w32_helper_main(void *user)
{
    plb__w32_helper *helper = (plb__w32_helper *)user;
    WSADATA winsock;
    bool has_winsock = WSAStartup(MAKEWORD(2, 2), &winsock) == 0;
    plb__w32_lock(helper);
    while (helper->wx != NULL) {
        if (plb__w32_first(&helper->waiting) != NULL)
            plb__w32_helper_serve(helper);
        else
            SleepConditionVariableSRW(&helper->work, &helper->lock, INFINITE, 0);
    }
    plb__w32_helper_leave(helper);
    if (has_winsock)
        WSACleanup();
    return 0;
}
#endif

/* ==== NAMES: queries ============================================================================================== */

static plb_status plb__w32_start_helper(plb_win32 *wx)
{
    plb__w32_helper *helper;
    if (wx->helper != NULL)
        return PLB_OK;
    helper = (plb__w32_helper *)calloc(1, sizeof *helper);
    if (helper == NULL)
        return PLB_ERR_MEMORY;
    helper->wx = wx;
    plb__w32_list_init(&helper->waiting);
    plb__w32_list_init(&helper->answered);
    if (!plb__w32_helper_open(helper)) {
        free(helper);
        return PLB_ERR_LIMIT;
    }
    wx->helper = helper;
    return PLB_OK;
}

/* Nobody works at the query, or wants it, any more. */
static void plb__w32_query_delete(plb_query *query)
{
    plb_win32 *wx = query->wx;
    plb_timer_stop(&wx->timers, &query->deadline);
    if (query->found != NULL)
        freeaddrinfo(query->found);
    plb__w32_delete(&wx->allocator, query, sizeof *query + query->host_size);
}

static void plb__w32_query_drop(plb_query *query)
{
    plb__w32_helper *helper = query->wx->helper;
    plb__w32_lock(helper);
    plb__w32_unlink(&query->link);
    if (helper->current == query)
        helper->current = NULL;
    plb__w32_unlock(helper);
    plb__w32_query_delete(query);
}

/* No such name can exist: nobody is asked, it is answered without an address, and its deadline brings that soon. */
static bool plb__w32_is_too_long(const plb_query *query)
{
    return query->host_size > PLB__W32_HOST_MAX + 1;
}

static void plb__w32_query_expired(void *user)
{
    plb_query *query = (plb_query *)user;
    plb_status status = plb__w32_is_too_long(query) ? PLB_ERR_NAME : PLB_ERR_TIMEOUT;
    plb_names_fn fn = query->fn;
    void *fn_user = query->user;
    plb__w32_query_drop(query);
    fn(fn_user, status, NULL, 0);
}

/* Appends an answer to `addrs` unless it is there already; returns the new count. */
static size_t plb__w32_collect(plb_addr *addrs, size_t count, const struct addrinfo *answer, uint16_t port)
{
    plb__w32_sockaddr name;
    size_t i;
    memset(&name, 0, sizeof name);
    if (answer->ai_family != AF_INET && answer->ai_family != AF_INET6)
        return count;
    memcpy(&name.u, answer->ai_addr, answer->ai_addrlen < sizeof name.u ? answer->ai_addrlen : sizeof name.u);
    plb__w32_from_system(&name, &addrs[count]);
    addrs[count].port = port;
    for (i = 0; i < count; i++) {
        if (plb_addr_compare(&addrs[i], &addrs[count]) == 0)
            return count;
    }
    return count + 1;
}

/* Takes the query apart, then tells what came of it. */
static void plb__w32_query_answer(plb_query *query)
{
    const plb_allocator allocator = query->wx->allocator;
    plb_names_fn fn = query->fn;
    void *user = query->user;
    plb_status status = query->status;
    plb_addr *addrs = NULL;
    size_t count = 0, room = 0;
    struct addrinfo *at;
    for (at = query->found; at != NULL; at = at->ai_next)
        room++;
    if (status == PLB_OK && room > 0) {
        addrs = (plb_addr *)plb__w32_new(&allocator, room * sizeof *addrs);
        status = addrs != NULL ? PLB_OK : PLB_ERR_MEMORY;
    }
    for (at = query->found; at != NULL && addrs != NULL; at = at->ai_next)
        count = plb__w32_collect(addrs, count, at, query->port);
    if (status == PLB_OK && count == 0)
        status = PLB_ERR_NAME;
    plb__w32_query_delete(query);
    fn(user, status, addrs, count);
    plb__w32_delete(&allocator, addrs, room * sizeof *addrs);
}

/* Hands over what is answered by now; what callbacks ask for is answered in a later step. */
static void plb__w32_answer_names(plb_win32 *wx)
{
    plb__w32_link answered;
    plb_query *query;
    plb__w32_list_init(&answered);
    if (wx->helper == NULL)
        return;
    plb__w32_lock(wx->helper);
#ifdef PLB_NO_THREADS
    if (plb__w32_first(&wx->helper->waiting) != NULL)
        plb__w32_helper_serve(wx->helper);
#endif
    while ((query = plb__w32_first(&wx->helper->answered)) != NULL) {
        plb__w32_unlink(&query->link);
        plb__w32_append(&answered, &query->link);
    }
    plb__w32_unlock(wx->helper);
    while ((query = plb__w32_first(&answered)) != NULL) {
        plb__w32_unlink(&query->link);
        plb__w32_query_answer(query);
    }
}

static plb_status plb__w32_resolve(void *self, const char *host, uint16_t port, uint32_t timeout_ms, plb_names_fn fn,
                                   void *user, plb_query **out)
{
    plb_win32 *wx = (plb_win32 *)self;
    size_t host_size = strlen(host) + 1;
    plb_query *query;
    plb_status status = plb__w32_start_helper(wx);
    *out = NULL;
    if (status != PLB_OK)
        return status;
    query = (plb_query *)plb__w32_new(&wx->allocator, sizeof *query + host_size);
    if (query == NULL)
        return PLB_ERR_MEMORY;
    query->wx = wx;
    query->fn = fn;
    query->user = user;
    query->port = port;
    query->host_size = host_size;
    memcpy(query + 1, host, host_size);
    query->deadline.fn = plb__w32_query_expired;
    query->deadline.user = query;
    plb__w32_list_init(&query->link);
    plb_timers_update(&wx->timers, &wx->clock);
    plb_timer_set(&wx->timers, &query->deadline, plb__w32_is_too_long(query) ? 0 : timeout_ms);
    plb__w32_lock(wx->helper);
    plb__w32_append(plb__w32_is_too_long(query) ? &wx->helper->answered : &wx->helper->waiting, &query->link);
    plb__w32_helper_call(wx->helper);
    plb__w32_unlock(wx->helper);
    *out = query;
    return PLB_AGAIN;
}

static void plb__w32_cancel(void *self, plb_query *query)
{
    (void)self;
    plb__w32_query_drop(query);
}

static void plb__w32_close_helper(plb_win32 *wx)
{
    plb__w32_helper *helper = wx->helper;
    plb_query *query;
    if (helper == NULL)
        return;
    plb__w32_lock(helper);
    helper->wx = NULL;
    if (helper->current != NULL)
        plb__w32_append(&helper->answered, &helper->current->link);
    helper->current = NULL;
    while ((query = plb__w32_first(&helper->waiting)) != NULL || (query = plb__w32_first(&helper->answered)) != NULL) {
        plb__w32_unlink(&query->link);
        plb__w32_query_delete(query);
    }
    plb__w32_helper_call(helper);
    plb__w32_helper_leave(helper);
}

/* ==== LOOP: tasks, steps, threads ================================================================================= */

/* Who makes callbacks or polls tasks polls the tasks afterwards anyway: no system call is needed. */
static void plb__w32_wake(void *self)
{
    plb_win32 *wx = (plb_win32 *)self;
    if (plb__w32_load(&wx->busy) == plb__w32_self())
        plb__w32_swap(&wx->poll_again, 1);
    else if (plb__w32_swap(&wx->wake_sent, 1) == 0)
        plb__w32_signal(wx);
}

PLB_API void plb_win32_add(plb_win32 *wx, plb_task *task)
{
    plb_task **at = &wx->tasks;
    while (*at != NULL)
        at = &(*at)->next;
    task->next = NULL;
    *at = task;
    plb__w32_swap(&wx->poll_again, 1);
}

PLB_API void plb_win32_remove(plb_win32 *wx, plb_task *task)
{
    plb_task **at = &wx->tasks;
    while (*at != NULL && *at != task)
        at = &(*at)->next;
    if (*at == NULL)
        return;
    *at = task->next;
    if (wx->next_task == task)
        wx->next_task = task->next;
    task->next = NULL;
}

static void plb__w32_poll_tasks(plb_win32 *wx)
{
    uint32_t delay, soonest = PLB_FOREVER;
    plb_task *task;
    plb__w32_swap(&wx->poll_again, 0);
    for (task = wx->tasks; task != NULL; task = wx->next_task) {
        wx->next_task = task->next;
        delay = task->poll(task->user);
        if (delay < soonest)
            soonest = delay;
    }
    wx->tasks_due_ms = UINT64_MAX;
    if (soonest != PLB_FOREVER)
        wx->tasks_due_ms = plb_timers_update(&wx->timers, &wx->clock) + soonest;
}

PLB_API int plb_win32_timeout(plb_win32 *wx)
{
    uint64_t now_ms = plb_timers_update(&wx->timers, &wx->clock);
    uint32_t delay = plb_timers_delay(&wx->timers);
    if (plb__w32_load(&wx->poll_again) != 0 || wx->tasks_due_ms <= now_ms)
        return 0;
#ifdef PLB_NO_THREADS
    if (wx->helper != NULL && plb__w32_first(&wx->helper->waiting) != NULL)
        return 0;
#endif
    if (wx->tasks_due_ms - now_ms < delay)
        delay = (uint32_t)(wx->tasks_due_ms - now_ms);
    if (delay == PLB_FOREVER)
        return -1;
    return delay < INT_MAX ? (int)delay : INT_MAX;
}

PLB_API void plb_win32_step(plb_win32 *wx, uint32_t max_ms)
{
    int timeout_ms = plb_win32_timeout(wx);
    if (timeout_ms < 0 ? max_ms <= INT_MAX : max_ms < (uint32_t)timeout_ms)
        timeout_ms = (int)max_ms;
    plb__w32_wait(wx, timeout_ms);
    plb__w32_swap(&wx->busy, plb__w32_self());
    plb__w32_dispatch(wx);
    plb__w32_answer_names(wx);
    plb_timers_update(&wx->timers, &wx->clock);
    plb_timers_run(&wx->timers);
    plb__w32_poll_tasks(wx);
    plb__w32_swap(&wx->busy, 0);
}

PLB_API void plb_win32_run(plb_win32 *wx)
{
    while (plb__w32_swap(&wx->stop_wanted, 0) == 0)
        plb_win32_step(wx, PLB_FOREVER);
}

PLB_API void plb_win32_stop(plb_win32 *wx)
{
    InterlockedIncrement(&wx->stoppers);
    plb__w32_swap(&wx->stop_wanted, 1);
    plb__w32_wake(wx);
    InterlockedDecrement(&wx->stoppers);
}

/* Who is told to stop may end the port before the one that told so is out of it, and nobody can wait for the thread of
   a Ctrl-C handler. It has a system call to go; longer than a second takes only one that was killed there. */
static void plb__w32_wait_for_stoppers(plb_win32 *wx)
{
    int rounds = 100;
    while (plb__w32_load(&wx->stoppers) != 0 && rounds-- > 0)
        Sleep(10);
}

#ifdef PLB_NO_THREADS
PLB_API plb_status plb_win32_start_thread(plb_win32 *wx)
{
    (void)wx;
    return PLB_ERR_UNSUPPORTED;
}

PLB_API void plb_win32_join_thread(plb_win32 *wx)
{
    (void)wx;
}
#else
static unsigned __stdcall plb__w32_thread_main(void *user)
{
    plb_win32_run((plb_win32 *)user);
    return 0;
}

PLB_API plb_status plb_win32_start_thread(plb_win32 *wx)
{
    if (wx->thread != NULL)
        return PLB_ERR_ARGUMENT;
    wx->thread = plb__w32_spawn(plb__w32_thread_main, wx);
    return wx->thread != NULL ? PLB_OK : PLB_ERR_LIMIT;
}

PLB_API void plb_win32_join_thread(plb_win32 *wx)
{
    if (wx->thread == NULL)
        return;
    WaitForSingleObject(wx->thread, INFINITE);
    CloseHandle(wx->thread);
    wx->thread = NULL;
}
#endif

/* ==== PORT ======================================================================================================== */

static void plb__w32_fill_tables(plb_win32 *wx)
{
    wx->io.self = wx->clock.self = wx->random.self = wx->names.self = wx->dgram.self = wx;
    wx->io.connect = plb__w32_connect;
    wx->io.read = plb__w32_read;
    wx->io.write = plb__w32_write;
    wx->io.watch = plb__w32_watch;
    wx->io.shutdown = plb__w32_shutdown;
    wx->io.close = plb__w32_close;
    wx->io.info = plb__w32_info;
    wx->io.listen = plb__w32_listen;
    wx->io.accept = plb__w32_accept;
    wx->io.wake = plb__w32_wake;
    wx->clock.now_ms = plb__w32_now_ms;
    wx->clock.now_us = plb__w32_now_us;
    wx->random.fill = plb__w32_fill_random;
    wx->names.resolve = plb__w32_resolve;
    wx->names.cancel = plb__w32_cancel;
    wx->dgram.open = plb__w32_dgram_open;
    wx->dgram.send = plb__w32_dgram_send;
    wx->dgram.receive = plb__w32_dgram_receive;
    wx->dgram.info = plb__w32_info;
    wx->dgram.close = plb__w32_dgram_close;
    plb__w32_open_barrier(&wx->barrier);
}

PLB_API plb_status plb_win32_create(const plb_win32_desc *desc, plb_win32 **out)
{
    plb_allocator allocator;
    LARGE_INTEGER frequency;
    plb_win32 *wx;
    plb_status status;
    memset(&allocator, 0, sizeof allocator);
    if (desc != NULL)
        allocator = desc->allocator;
    allocator = plb_allocator_or_default(allocator);
    *out = NULL;
    wx = (plb_win32 *)plb__w32_new(&allocator, sizeof *wx);
    if (wx == NULL)
        return PLB_ERR_MEMORY;
    wx->allocator = allocator;
    wx->free_slot = PLB__W32_NO_SLOT;
    wx->tasks_due_ms = UINT64_MAX;
    wx->write_retry.fn = plb__w32_retry_writes;
    wx->write_retry.user = wx;
    QueryPerformanceFrequency(&frequency); /* cannot fail since Windows XP */
    wx->ticks_per_second = (uint64_t)frequency.QuadPart;
    plb__w32_fill_tables(wx);
    status = plb__w32_open_waiting(wx);
    if (status != PLB_OK) {
        plb_win32_destroy(wx);
        return status;
    }
    *out = wx;
    return PLB_OK;
}

PLB_API void plb_win32_destroy(plb_win32 *wx)
{
    plb_allocator allocator;
    uint32_t slot;
    if (wx == NULL)
        return;
    plb_win32_stop(wx);
    plb_win32_join_thread(wx);
    plb__w32_wait_for_stoppers(wx);
    plb__w32_close_helper(wx);
    for (slot = 0; slot < wx->slot_count; slot++) {
        if (wx->slots[slot].stream != NULL)
            plb__w32_close(wx, wx->slots[slot].stream, PLB_CLOSE_GRACEFUL);
    }
    plb__w32_close_waiting(wx);
    allocator = wx->allocator;
    plb__w32_delete(&allocator, wx->slots, wx->slot_capacity * sizeof *wx->slots);
    plb__w32_delete(&allocator, wx, sizeof *wx);
}

PLB_API plb_port plb_win32_port(plb_win32 *wx)
{
    plb_port port;
    port.io = &wx->io;
    port.clock = &wx->clock;
    port.random = &wx->random;
    port.names = &wx->names;
    port.barrier = wx->barrier.issue != NULL ? &wx->barrier : NULL;
    port.dgram = &wx->dgram;
    return port;
}

#endif /* PLB__WIN32_IMPLEMENTED */
#endif /* PLB_WIN32_IMPLEMENTATION */
