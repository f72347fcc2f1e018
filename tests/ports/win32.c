/* What is the Windows port's own: the faults of WSAPoll, scarce sockets, threads, loops of a program's own, names. What
   it has in common with other ports is in io_conformance.c. */
#include <winsock2.h>
#include <ws2tcpip.h>
#include <windows.h>
#include <process.h>
#include <stdio.h>
#include <stdlib.h>

/* What the port needs of the system, in the tests' hands. */
static int test_poll(struct pollfd *fds, ULONG count, INT timeout_ms);
static int test_getaddrinfo(const char *host, const char *service, const struct addrinfo *hints, struct addrinfo **out);
static void *test_calloc(size_t count, size_t size);
static SOCKET WSAAPI test_socket(int family, int type, int protocol);
static SOCKET WSAAPI test_accept(SOCKET listener, struct sockaddr *name, int *size);
static int test_bind(SOCKET socket, const struct sockaddr *name, int size);
static int test_connect(SOCKET socket, const struct sockaddr *name, int size);
static int test_listen(SOCKET socket, int backlog);
static int test_send(SOCKET socket, const char *bytes, int size, int flags);
static int test_wsasend(SOCKET socket, WSABUF *parts, DWORD count, DWORD *sent);
static HANDLE test_find_first(LPCWSTR path, WIN32_FIND_DATAW *found);
static BOOL test_register_wait(PHANDLE wait, HANDLE object, WAITORTIMERCALLBACK fn, PVOID user, ULONG ms, ULONG flags);
#ifndef PLB_NO_THREADS
static uintptr_t test_beginthreadex(void *security, unsigned stack, unsigned(__stdcall *fn)(void *), void *user,
                                    unsigned flags, unsigned *id);
#endif

#define PINGORA_LB_IMPLEMENTATION
#include "../../pingora_lb.h"

/* Those with arguments are not to be found in plb_io. */
#ifndef PLB_NO_THREADS
#define _beginthreadex test_beginthreadex
#endif
#define calloc                                                     test_calloc
#define socket(family, type, protocol)                             test_socket(family, type, protocol)
#define accept(listener, name, size)                               test_accept(listener, name, size)
#define bind(socket, name, size)                                   test_bind(socket, name, size)
#define connect(socket, name, size)                                test_connect(socket, name, size)
#define listen(socket, backlog)                                    test_listen(socket, backlog)
#define send(socket, bytes, size, flags)                           test_send(socket, bytes, size, flags)
#define WSASend(socket, parts, count, sent, flags, overlapped, fn) test_wsasend(socket, parts, count, sent)
#define FindFirstFileW                                             test_find_first
#define RegisterWaitForSingleObject                                test_register_wait
#define PLB_WIN32_POLL                                             test_poll
#define PLB_WIN32_GETADDRINFO                                      test_getaddrinfo

#define PLB_WIN32_IMPLEMENTATION
#include "../../ports/plb_win32.h"

#undef _beginthreadex
#undef calloc
#undef socket
#undef accept
#undef bind
#undef connect
#undef listen
#undef send
#undef WSASend
#undef FindFirstFileW
#undef RegisterWaitForSingleObject

#include <greatest.h>

/* ==== HELPERS ===================================================================================================== */

#define STEPS 1000 /* of 10 ms at most: how long something that must happen may take */

static plb_win32 *wx; /* of the test that runs */
static const plb_io *io;

typedef struct end {
    plb_stream *stream;
    unsigned connects, reads, writes, accepts;
    plb_status connected;
    bool wake; /* from inside the callback */
} end;

static void on_event(void *user, plb_stream *stream, plb_event event, plb_status status)
{
    end *e = (end *)user;
    if (e->stream != stream)
        abort();
    e->connects += event == PLB_EVENT_CONNECT;
    e->reads += event == PLB_EVENT_READ;
    e->writes += event == PLB_EVENT_WRITE;
    e->accepts += event == PLB_EVENT_ACCEPT;
    if (event == PLB_EVENT_CONNECT)
        e->connected = status;
    if (e->wake)
        io->wake(io->self);
}

static plb_handler handler_of(end *e)
{
    plb_handler handler;
    memset(e, 0, sizeof *e);
    handler.fn = on_event;
    handler.user = e;
    return handler;
}

static void set_up(void *user)
{
    (void)user;
    if (plb_win32_create(NULL, &wx) != PLB_OK)
        abort();
    io = plb_win32_port(wx).io;
}

static void tear_down(void *user)
{
    (void)user;
    plb_win32_destroy(wx);
}

static uint64_t now_ms(void)
{
    const plb_clock *clock = plb_win32_port(wx).clock;
    return clock->now_ms(clock->self);
}

static bool reaches(const unsigned *counter, unsigned number)
{
    int i;
    for (i = 0; i < STEPS && *counter < number; i++)
        plb_win32_step(wx, 10);
    return *counter >= number;
}

static plb_addr addr_of(const char *text)
{
    plb_addr addr;
    if (plb_addr_parse(&addr, text, PLB_ZSTRING) != PLB_OK)
        abort();
    return addr;
}

static plb_status listen_at(end *e, plb_addr addr, uint32_t backlog)
{
    plb_listen_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.addr = addr;
    desc.backlog = backlog;
    return io->listen(io->self, &desc, handler_of(e), &e->stream);
}

/* On a port of the loopback that the system chooses, or on a path; returns where. */
static plb_addr listen_somewhere(end *e)
{
    plb_stream_info info;
    plb_addr addr = addr_of("127.0.0.1:1");
    addr.port = 0;
    if (listen_at(e, addr, 0) != PLB_OK || io->info(io->self, e->stream, &info) != PLB_OK)
        abort();
    return info.local;
}

static plb_status connect_to(end *e, const plb_addr *addr)
{
    plb_peer peer;
    memset(&peer, 0, sizeof peer);
    peer.addr = *addr;
    return io->connect(io->self, &peer, handler_of(e), &e->stream);
}

static plb_status accept_on(end *listener, end *e)
{
    return io->accept(io->self, listener->stream, handler_of(e), &e->stream);
}

static plb_status accept_wait(end *listener, end *e)
{
    int i;
    plb_status status = PLB_AGAIN;
    for (i = 0; i < STEPS && (status = accept_on(listener, e)) == PLB_AGAIN; i++)
        plb_win32_step(wx, 10);
    return status;
}

static bool connect_pair(end *listener, const plb_addr *addr, end *client, end *server)
{
    plb_status status = connect_to(client, addr);
    return (status == PLB_OK ||
            (status == PLB_AGAIN && reaches(&client->connects, 1) && client->connected == PLB_OK)) &&
           accept_wait(listener, server) == PLB_OK;
}

static plb_status write_text(end *e, const char *text)
{
    plb_chunk chunk;
    size_t taken;
    chunk.data = text;
    chunk.size = strlen(text);
    chunk.flags = 0;
    return io->write(io->self, e->stream, &chunk, 1, &taken);
}

static plb_status read_byte(end *e)
{
    char byte;
    size_t got;
    return io->read(io->self, e->stream, &byte, 1, &got);
}

static void drop(end *e)
{
    io->close(io->self, e->stream, PLB_CLOSE_GRACEFUL);
    e->stream = NULL;
}

/* ==== THE FAULTS OF WSAPOLL =======================================================================================
   All tests run with what Windows before 10 2004 does. */

static unsigned polls;         /* calls of WSAPoll */
static bool poll_fails;        /* WSAPoll says so */
static SOCKET hung_up_for_now; /* WSAPoll tells of its hang-up whenever it is asked about it, as Windows does */

static bool is_connecting(SOCKET fd)
{
    uint32_t i;
    for (i = 0; i < wx->slot_count; i++) {
        const plb_stream *stream = wx->slots[i].stream;
        if (stream != NULL && stream->socket == fd)
            return stream->connecting;
    }
    return false;
}

/* One look; returns how many entries have something to tell. */
static int look(struct pollfd *fds, ULONG count)
{
    int told = 0;
    ULONG i;
    if (WSAPoll(fds, count, 0) < 0)
        return -1;
    for (i = 0; i < count; i++) {
        if ((fds[i].revents & (POLLERR | POLLHUP)) != 0 && is_connecting(fds[i].fd))
            fds[i].revents = 0;
        if (hung_up_for_now != 0 && fds[i].fd == hung_up_for_now)
            fds[i].revents = (short)(fds[i].revents | POLLHUP);
        told += fds[i].revents != 0;
    }
    return told;
}

static int test_poll(struct pollfd *fds, ULONG count, INT timeout_ms)
{
    ULONGLONG start = GetTickCount64();
    int told;
    polls++;
    if (poll_fails) {
        WSASetLastError(WSAENOBUFS);
        return SOCKET_ERROR;
    }
    while ((told = look(fds, count)) == 0 && (timeout_ms < 0 || GetTickCount64() - start < (ULONGLONG)timeout_ms))
        Sleep(1);
    return told;
}

/* A port of the loopback that is bound, so that nobody else gets it, and refuses. */
static SOCKET refuse_somewhere(plb_addr *addr)
{
    struct sockaddr_in name;
    int size = (int)sizeof name;
    SOCKET fd = socket(AF_INET, SOCK_STREAM, 0);
    memset(&name, 0, sizeof name);
    name.sin_family = AF_INET;
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(fd, (struct sockaddr *)&name, size) != 0 || getsockname(fd, (struct sockaddr *)&name, &size) != 0)
        abort();
    *addr = addr_of("127.0.0.1:1");
    addr->port = ntohs(name.sin_port);
    return fd;
}

TEST a_refusal_is_noticed_at_once(void)
{
    plb_addr addr;
    end e;
    SOCKET refusing = refuse_somewhere(&addr);
    uint64_t before = now_ms();
    int turns;
    ASSERT_EQ(PLB_AGAIN, connect_to(&e, &addr));
    for (turns = 0; turns < 3 && e.connects == 0; turns++)
        plb_win32_step(wx, 20000);
    ASSERT_EQ_FMT(1u, e.connects, "%u");
    ASSERT_EQ(PLB_ERR_REFUSED, e.connected);
    ASSERT(now_ms() - before < 1000);
    closesocket(refusing);
    PASS();
}

/* Those that are silent do not hide those that have ended; and closing each in a callback of another is no harm. */
TEST refusals_are_told_apart(void)
{
    plb_addr addr, good;
    end refused[20], fine[20], listener;
    unsigned i, ended = 0, turns;
    SOCKET refusing = refuse_somewhere(&addr);
    good = listen_somewhere(&listener);
    for (i = 0; i < 20; i++) {
        ASSERT_EQ(PLB_AGAIN, connect_to(&refused[i], &addr));
        ASSERT_EQ(PLB_AGAIN, connect_to(&fine[i], &good));
    }
    drop(&refused[7]);
    for (turns = 0; turns < 200 && ended < 39; turns++) {
        plb_win32_step(wx, 1000);
        for (i = ended = 0; i < 20; i++)
            ended += refused[i].connects + fine[i].connects;
    }
    for (i = 0; i < 20; i++) {
        ASSERT_EQ_FMT(i == 7 ? 0u : 1u, refused[i].connects, "%u");
        ASSERT_EQ_FMT(1u, fine[i].connects, "%u");
        ASSERT_EQ(PLB_OK, fine[i].connected);
        ASSERT(i == 7 || refused[i].connected == PLB_ERR_REFUSED);
    }
    closesocket(refusing);
    PASS();
}

static size_t fill_up(end *e)
{
    static const char bytes[1u << 16];
    plb_chunk chunk = {bytes, sizeof bytes, 0};
    size_t taken, total = 0;
    while (total < (1u << 28) && io->write(io->self, e->stream, &chunk, 1, &taken) == PLB_OK)
        total += taken;
    return total;
}

TEST a_writer_to_a_peer_that_has_ended_its_side_does_not_spin(void)
{
    static char bytes[1u << 16];
    end listener, client, server;
    plb_addr addr = listen_somewhere(&listener);
    size_t total, got, read = 0;
    plb_status status = PLB_AGAIN;
    uint64_t until;
    unsigned turns;
    ASSERT(connect_pair(&listener, &addr, &client, &server));
    ASSERT_EQ(PLB_OK, io->shutdown(io->self, client.stream));
    hung_up_for_now = server.stream->socket;
    for (turns = 0; turns < 100 && (status = read_byte(&server)) == PLB_AGAIN; turns++)
        plb_win32_step(wx, 10);
    ASSERT_EQ(PLB_END, status);
    total = fill_up(&server);
    polls = 0;
    for (until = now_ms() + 300; now_ms() < until;) {
        plb_win32_step(wx, (uint32_t)(until - now_ms()));
        total += fill_up(&server);
    }
    ASSERT(polls <= 35);
    server.writes = 0;
    for (turns = 0; turns < 10000 && read < total; turns++) {
        status = io->read(io->self, client.stream, bytes, sizeof bytes, &got);
        ASSERT(status == PLB_OK || status == PLB_AGAIN);
        read += got;
        if (status == PLB_AGAIN)
            plb_win32_step(wx, 10);
    }
    ASSERT_EQ(total, read);
    ASSERT(reaches(&server.writes, 1));
    ASSERT_EQ(PLB_OK, write_text(&server, "x"));
    hung_up_for_now = 0;
    PASS();
}

TEST a_wait_that_fails_does_not_spin(void)
{
    uint64_t until;
    unsigned steps = 0;
    poll_fails = true;
    for (until = now_ms() + 200; now_ms() < until; steps++)
        plb_win32_step(wx, 1000);
    poll_fails = false;
    ASSERT(steps <= 25);
    PASS();
}

/* ==== SOCKETS ===================================================================================================== */

static bool no_sockets; /* not one more */
static int no_sockets_error = WSAEMFILE;

/* A system with Unix paths, which Wine is not: their sockets are made of TCP. */
static struct {
    bool exists;
    int bind_errors[2]; /* what the first and the second bind find wrong */
    unsigned binds, knocks;
    plb_addr knocked; /* who answers on the path */
    bool is_socket;   /* what is there already is a socket's */
} paths;

static SOCKET WSAAPI test_socket(int family, int type, int protocol)
{
    if (!no_sockets)
        return socket(paths.exists && family == AF_UNIX ? AF_INET : family, type, protocol);
    WSASetLastError(no_sockets_error);
    return INVALID_SOCKET;
}

static SOCKET WSAAPI test_accept(SOCKET listener, struct sockaddr *name, int *size)
{
    if (!no_sockets)
        return accept(listener, name, size);
    WSASetLastError(WSAEMFILE);
    return INVALID_SOCKET;
}

static int loopback_name(struct sockaddr_in *name, uint16_t port)
{
    memset(name, 0, sizeof *name);
    name->sin_family = AF_INET;
    name->sin_port = htons(port);
    name->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return (int)sizeof *name;
}

static int test_bind(SOCKET fd, const struct sockaddr *name, int size)
{
    struct sockaddr_in place;
    int error;
    if (name->sa_family != AF_UNIX)
        return bind(fd, name, size);
    error = paths.bind_errors[paths.binds++ % 2];
    if (error == 0)
        return bind(fd, (struct sockaddr *)&place, loopback_name(&place, 0));
    WSASetLastError(error);
    return SOCKET_ERROR;
}

static int test_connect(SOCKET fd, const struct sockaddr *name, int size)
{
    struct sockaddr_in place;
    if (name->sa_family != AF_UNIX)
        return connect(fd, name, size);
    paths.knocks++;
    return connect(fd, (struct sockaddr *)&place, loopback_name(&place, paths.knocked.port));
}

static HANDLE test_find_first(LPCWSTR path, WIN32_FIND_DATAW *found)
{
    HANDLE search = FindFirstFileW(path, found);
    if (paths.is_socket) {
        found->dwFileAttributes |= FILE_ATTRIBUTE_REPARSE_POINT;
        found->dwReserved0 = 0x80000023u;
    }
    return search;
}

static int last_backlog;

static int test_listen(SOCKET fd, int backlog)
{
    last_backlog = backlog;
    return listen(fd, backlog);
}

TEST without_sockets_accept_pauses_and_nothing_spins(void)
{
    end listener, client, second, server;
    plb_addr addr = listen_somewhere(&listener);
    uint64_t until;
    unsigned steps = 0;
    ASSERT_EQ(PLB_AGAIN, connect_to(&client, &addr));
    ASSERT_EQ(PLB_AGAIN, connect_to(&second, &addr));
    ASSERT(reaches(&client.connects, 1) && reaches(&second.connects, 1));
    no_sockets = true;
    for (until = now_ms() + 350; now_ms() < until; steps++) {
        accept_on(&listener, &server);
        plb_win32_step(wx, (uint32_t)(until - now_ms()));
    }
    no_sockets = false;
    ASSERT(listener.accepts >= 2 && listener.accepts <= 4); /* every 100 ms */
    ASSERT(steps <= 8);
    ASSERT_EQ(PLB_OK, accept_wait(&listener, &server));
    ASSERT_EQ(PLB_OK, accept_wait(&listener, &server));
    PASS();
}

TEST accept_resumes_when_a_stream_closes(void)
{
    end listener, client, server;
    plb_addr addr = listen_somewhere(&listener);
    uint64_t before;
    ASSERT_EQ(PLB_AGAIN, connect_to(&client, &addr));
    ASSERT(reaches(&client.connects, 1));
    no_sockets = true;
    ASSERT_EQ(PLB_AGAIN, accept_on(&listener, &server));
    before = now_ms();
    no_sockets = false;
    drop(&client);
    ASSERT(reaches(&listener.accepts, 1));
    ASSERT(now_ms() - before < PLB__W32_ACCEPT_MS / 2);
    ASSERT_EQ(PLB_OK, accept_on(&listener, &server));
    PASS();
}

TEST a_paused_listener_can_be_closed(void)
{
    end listener, client, server;
    plb_addr addr = listen_somewhere(&listener);
    ASSERT_EQ(PLB_AGAIN, connect_to(&client, &addr));
    ASSERT(reaches(&client.connects, 1));
    no_sockets = true;
    ASSERT_EQ(PLB_AGAIN, accept_on(&listener, &server));
    no_sockets = false;
    drop(&listener);
    drop(&client);
    ASSERT_EQ(-1, plb_win32_timeout(wx));
    PASS();
}

TEST without_sockets_connect_names_the_limit(void)
{
    end listener, client;
    plb_addr addr = listen_somewhere(&listener);
    plb_status status;
    no_sockets = true;
    status = connect_to(&client, &addr);
    no_sockets = false;
    ASSERT_EQ(PLB_ERR_LIMIT, status);
    ASSERT(plb_status_is_local(status));
    ASSERT(client.stream == NULL);
    ASSERT_EQ(PLB_AGAIN, connect_to(&client, &addr));
    PASS();
}

TEST without_sockets_there_is_no_port(void)
{
    plb_win32 *other = wx;
    plb_status status;
    no_sockets = true;
    status = plb_win32_create(NULL, &other);
    no_sockets = false;
    ASSERT_EQ(PLB_ERR_LIMIT, status);
    ASSERT(other == NULL);
    no_sockets = true;
    no_sockets_error = WSAENETDOWN; /* what is wrong is not for the caller to sort out */
    status = plb_win32_create(NULL, &other);
    no_sockets = false;
    no_sockets_error = WSAEMFILE;
    ASSERT_EQ(PLB_ERR_IO, status);
    PASS();
}

static bool no_pool; /* no thread of the system waits for us */

static BOOL test_register_wait(PHANDLE wait, HANDLE object, WAITORTIMERCALLBACK fn, PVOID user, ULONG ms, ULONG flags)
{
    return !no_pool && RegisterWaitForSingleObject(wait, object, fn, user, ms, flags);
}

TEST without_a_pool_there_is_no_port(void)
{
    plb_win32 *other = wx;
    plb_status status;
    no_pool = true;
    status = plb_win32_create(NULL, &other);
    no_pool = false;
    ASSERT_EQ(PLB_ERR_LIMIT, status);
    ASSERT(other == NULL);
    PASS();
}

TEST sockets_are_private_and_prompt(void)
{
    end listener, ends[2];
    plb_addr addr = listen_somewhere(&listener);
    int i;
    ASSERT(connect_pair(&listener, &addr, &ends[0], &ends[1]));
    for (i = 0; i < 2; i++) /* a first short write cannot be held back, a second one could be */
        ASSERT(write_text(&ends[i], "a") == PLB_OK && write_text(&ends[i], "b") == PLB_OK);
    for (i = 0; i < 2; i++) {
        DWORD prompt = 0, flags = HANDLE_FLAG_INHERIT;
        int size = (int)sizeof prompt;
        getsockopt(ends[i].stream->socket, IPPROTO_TCP, TCP_NODELAY, (char *)&prompt, &size);
        ASSERT((prompt & 1) != 0);
        ASSERT(GetHandleInformation((HANDLE)ends[i].stream->socket, &flags));
        ASSERT_EQ(0, flags & HANDLE_FLAG_INHERIT);
    }
    PASS();
}

TEST a_stream_that_nobody_asks_about_does_not_spin(void)
{
    end listener, client, server;
    plb_addr addr = listen_somewhere(&listener);
    uint64_t before;
    ASSERT(connect_pair(&listener, &addr, &client, &server));
    ASSERT_EQ(PLB_AGAIN, read_byte(&server));
    io->close(io->self, client.stream, PLB_CLOSE_ABORT);
    ASSERT(reaches(&server.reads, 1));
    before = now_ms();
    plb_win32_step(wx, 100);
    ASSERT(now_ms() - before >= 80);
    PASS();
}

TEST a_write_hands_over_no_more_than_it_should(void)
{
    static const char bytes[1u << 20];
    end listener, client, server;
    plb_addr addr = listen_somewhere(&listener);
    plb_chunk chunks[3] = {{bytes, 1000, 0}, {bytes, sizeof bytes, 0}, {bytes, sizeof bytes, 0}};
    size_t taken = 0;
    ASSERT(connect_pair(&listener, &addr, &client, &server));
    ASSERT_EQ(PLB_OK, io->write(io->self, client.stream, chunks, 3, &taken));
    ASSERT(taken >= 1000 && taken <= PLB__W32_WRITE_MAX);
    PASS();
}

static bool no_buffers; /* the kernel's memory is used up */

static int test_wsasend(SOCKET fd, WSABUF *parts, DWORD count, DWORD *sent)
{
    if (!no_buffers)
        return WSASend(fd, parts, count, sent, 0, NULL, NULL);
    WSASetLastError(WSAENOBUFS);
    return SOCKET_ERROR;
}

/* It is over soon, and WSAPoll says meanwhile that there is room in the socket. */
TEST a_writer_waits_until_the_system_has_memory_again(void)
{
    end listener, client, server;
    plb_addr addr = listen_somewhere(&listener);
    uint64_t until;
    ASSERT(connect_pair(&listener, &addr, &client, &server));
    no_buffers = true;
    polls = 0;
    for (until = now_ms() + 200; now_ms() < until;) {
        ASSERT_EQ(PLB_AGAIN, write_text(&client, "x"));
        ASSERT_EQ(PLB_AGAIN, read_byte(&client));
        plb_win32_step(wx, (uint32_t)(until - now_ms()));
    }
    ASSERT(client.writes >= 3);
    ASSERT(polls <= 50);
    ASSERT_EQ(PLB_AGAIN, write_text(&client, "x")); /* the last step may have called back */
    no_buffers = false;
    client.writes = 0;
    ASSERT(reaches(&client.writes, 1));
    ASSERT_EQ(PLB_OK, write_text(&client, "x"));
    fill_up(&client);
    ASSERT_EQ(-1, plb_win32_timeout(wx)); /* WSAPoll is believed again */
    PASS();
}

TEST addresses_that_are_not_ours_are_named(void)
{
    end e;
    plb_peer peer;
    ASSERT_EQ(PLB_ERR_ADDRESS, listen_at(&e, addr_of("192.0.2.1:80"), 0));
    memset(&peer, 0, sizeof peer);
    peer.addr = addr_of("127.0.0.1:80");
    peer.source = addr_of("192.0.2.1:80");
    ASSERT_EQ(PLB_ERR_ADDRESS, io->connect(io->self, &peer, handler_of(&e), &e.stream));
    peer.source.family = PLB_FAMILY_NONE;
    peer.addr.family = PLB_FAMILY_NONE;
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, io->connect(io->self, &peer, handler_of(&e), &e.stream));
    PASS();
}

TEST an_ipv6_listener_leaves_ipv4_alone(void)
{
    end four, six;
    plb_stream_info info;
    plb_addr addr = addr_of("0.0.0.0:1");
    addr.port = 0;
    ASSERT_EQ(PLB_OK, listen_at(&four, addr, 0));
    ASSERT_EQ(PLB_OK, io->info(io->self, four.stream, &info));
    addr = addr_of("[::]:1");
    addr.port = info.local.port;
    if (listen_at(&six, addr, 0) == PLB_ERR_UNSUPPORTED)
        SKIP();
    ASSERT(six.stream != NULL);
    PASS();
}

TEST nobody_else_gets_the_address_of_a_listener(void)
{
    end listener;
    plb_listen_desc desc;
    plb_addr addr = listen_somewhere(&listener);
    SOCKET thief = socket(AF_INET, SOCK_STREAM, 0);
    BOOL on = TRUE;
    struct sockaddr_in name;
    memset(&name, 0, sizeof name);
    name.sin_family = AF_INET;
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    name.sin_port = htons(addr.port);
    setsockopt(thief, SOL_SOCKET, SO_REUSEADDR, (const char *)&on, sizeof on);
    ASSERT(bind(thief, (struct sockaddr *)&name, sizeof name) != 0);
    closesocket(thief);
    memset(&desc, 0, sizeof desc);
    desc.addr = addr_of("127.0.0.1:1");
    desc.reuse_port = true;
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, io->listen(io->self, &desc, handler_of(&listener), &listener.stream));
    PASS();
}

/* Windows holds back 200 connections at most, unless it is asked in a way of its own; it refuses those beyond. */
TEST a_long_backlog_is_asked_for_as_windows_wants_it(void)
{
    end e;
    plb_addr addr = addr_of("127.0.0.1:1");
    addr.port = 0;
    ASSERT_EQ(PLB_OK, listen_at(&e, addr, 0));
    ASSERT_EQ_FMT(-512, last_backlog, "%d"); /* SOMAXCONN_HINT(512) */
    ASSERT_EQ(PLB_OK, listen_at(&e, addr, UINT32_MAX));
    ASSERT_EQ_FMT(-65535, last_backlog, "%d");
    ASSERT_EQ(PLB_OK, listen_at(&e, addr, 5));
    ASSERT_EQ_FMT(5, last_backlog, "%d");
    PASS();
}

/* A server that starts again need not wait for the connections of the one before. */
TEST an_address_is_free_again_while_connections_of_it_live(void)
{
    end listener, again, client, server;
    plb_addr addr = listen_somewhere(&listener);
    ASSERT(connect_pair(&listener, &addr, &client, &server));
    drop(&listener);
    ASSERT_EQ(PLB_OK, listen_at(&again, addr, 0));
    ASSERT(connect_pair(&again, &addr, &client, &server));
    PASS();
}

static plb_addr path_with_file(void)
{
    plb_addr addr = addr_of("unix:plb_win32_file");
    HANDLE file = CreateFileA("plb_win32_file", GENERIC_WRITE, 0, NULL, CREATE_ALWAYS, FILE_ATTRIBUTE_NORMAL, NULL);
    if (file == INVALID_HANDLE_VALUE)
        abort();
    CloseHandle(file);
    memset(&paths, 0, sizeof paths);
    paths.exists = paths.is_socket = true;
    paths.bind_errors[0] = WSAEADDRINUSE;
    return addr;
}

static bool file_is_there(void)
{
    return GetFileAttributesA("plb_win32_file") != INVALID_FILE_ATTRIBUTES;
}

static void forget_paths(void)
{
    DeleteFileA("plb_win32_file");
    memset(&paths, 0, sizeof paths);
}

TEST a_path_that_nobody_listens_on_any_more_is_replaced(void)
{
    plb_addr addr = path_with_file();
    SOCKET refusing = refuse_somewhere(&paths.knocked);
    end e;
    plb_status status = listen_at(&e, addr, 300);
    bool there = file_is_there();
    forget_paths();
    closesocket(refusing);
    ASSERT_EQ(PLB_OK, status);
    ASSERT(!there);
    ASSERT_EQ_FMT(300, last_backlog, "%d"); /* the other way is TCP's */
    PASS();
}

TEST a_path_in_use_is_left_alone(void)
{
    plb_addr addr = path_with_file();
    end listener, e;
    plb_status status;
    bool there;
    paths.knocked = listen_somewhere(&listener);
    status = listen_at(&e, addr, 0);
    there = file_is_there();
    forget_paths();
    ASSERT_EQ(PLB_ERR_IN_USE, status);
    ASSERT(there);
    PASS();
}

TEST a_file_that_is_no_socket_is_left_alone(void)
{
    plb_addr addr = path_with_file();
    plb_status status;
    unsigned knocks;
    bool there;
    end e;
    paths.is_socket = false;
    status = listen_at(&e, addr, 0);
    there = file_is_there();
    knocks = paths.knocks;
    forget_paths();
    ASSERT_EQ(PLB_ERR_IN_USE, status);
    ASSERT(there);
    ASSERT_EQ(0, knocks);
    PASS();
}

/* Windows calls the network down if there is no such folder. */
TEST a_path_that_cannot_be_is_no_address(void)
{
    plb_addr addr = path_with_file();
    plb_status status;
    end e;
    paths.bind_errors[0] = WSAENETDOWN;
    status = listen_at(&e, addr, 0);
    forget_paths();
    ASSERT_EQ(PLB_ERR_ADDRESS, status);
    PASS();
}

/* Where the system has paths at all, the conformance suite tries them. */
TEST paths_are_unsupported_where_the_system_has_none(void)
{
    SOCKET path = socket(AF_UNIX, SOCK_STREAM, 0);
    plb_addr addr = addr_of("unix:plb_win32_test");
    end e;
    closesocket(path);
    if (path != INVALID_SOCKET)
        SKIP();
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, connect_to(&e, &addr));
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, listen_at(&e, addr, 0));
    ASSERT(e.stream == NULL);
    PASS();
}

static volatile LONG send_delay_ms; /* the system takes its time */
static volatile LONG sends;
static bool sends_fail; /* for want of memory */

static int test_send(SOCKET fd, const char *bytes, int size, int flags)
{
    InterlockedIncrement(&sends);
    if (send_delay_ms != 0)
        Sleep((DWORD)send_delay_ms);
    if (!sends_fail)
        return send(fd, bytes, size, flags);
    WSASetLastError(WSAENOBUFS);
    return SOCKET_ERROR;
}

/* ==== TASKS AND LOOPS ============================================================================================= */

typedef struct chore {
    plb_task task;
    volatile LONG polls;
    uint32_t delay_ms;
    bool wakes, stops;
    struct chore *adds, *removes;
} chore;

static uint32_t poll_chore(void *user)
{
    chore *c = (chore *)user;
    InterlockedIncrement(&c->polls);
    if (c->wakes)
        io->wake(io->self);
    if (c->stops)
        plb_win32_stop(wx);
    if (c->adds != NULL)
        plb_win32_add(wx, &c->adds->task);
    if (c->removes != NULL)
        plb_win32_remove(wx, &c->removes->task);
    c->adds = c->removes = NULL;
    c->wakes = false;
    return c->delay_ms;
}

static void new_chore(chore *c, uint32_t delay_ms)
{
    memset(c, 0, sizeof *c);
    c->task.poll = poll_chore;
    c->task.user = c;
    c->delay_ms = delay_ms;
}

TEST a_task_is_polled_at_once_then_when_its_delay_is_over(void)
{
    chore c;
    uint64_t before = now_ms();
    new_chore(&c, 50);
    ASSERT_EQ(-1, plb_win32_timeout(wx));
    plb_win32_add(wx, &c.task);
    ASSERT_EQ(0, plb_win32_timeout(wx));
    plb_win32_step(wx, PLB_FOREVER);
    ASSERT_EQ_FMT(1L, c.polls, "%ld");
    ASSERT(plb_win32_timeout(wx) > 0 && plb_win32_timeout(wx) <= 50);
    plb_win32_step(wx, PLB_FOREVER);
    ASSERT(now_ms() - before >= 49 && now_ms() - before < 5000);
    ASSERT_EQ_FMT(2L, c.polls, "%ld");
    plb_win32_remove(wx, &c.task);
    plb_win32_remove(wx, &c.task);
    plb_win32_step(wx, 0);
    ASSERT_EQ_FMT(2L, c.polls, "%ld");
    PASS();
}

TEST tasks_may_add_and_remove_tasks(void)
{
    chore a, b, c;
    new_chore(&a, PLB_FOREVER);
    new_chore(&b, PLB_FOREVER);
    new_chore(&c, PLB_FOREVER);
    plb_win32_add(wx, &a.task);
    plb_win32_add(wx, &b.task);
    a.removes = &b;
    a.adds = &c;
    plb_win32_step(wx, 0);
    ASSERT_EQ_FMT(0L, b.polls, "%ld");
    plb_win32_step(wx, PLB_FOREVER); /* adding woke */
    ASSERT(c.polls > 0);
    a.removes = &a;
    plb_win32_step(wx, 0);
    plb_win32_step(wx, 0);
    ASSERT_EQ_FMT(3L, a.polls, "%ld");
    PASS();
}

/* How many wakes wait in the socket that carries them. */
static unsigned wakes_sent(void)
{
    char bytes[16];
    unsigned count = 0;
    while (recv(wx->wake_socket, bytes, sizeof bytes, 0) >= 0)
        count++;
    return count;
}

TEST a_wake_from_the_step_itself_costs_no_system_call(void)
{
    chore c;
    new_chore(&c, PLB_FOREVER);
    plb_win32_add(wx, &c.task);
    c.wakes = true;
    plb_win32_step(wx, 0);
    ASSERT_EQ(0, wakes_sent());
    ASSERT_EQ(0, plb_win32_timeout(wx)); /* tasks polled before it are to be polled again */
    plb_win32_step(wx, PLB_FOREVER);
    ASSERT_EQ(-1, plb_win32_timeout(wx));
    PASS();
}

TEST wakes_from_outside_are_sent_once(void)
{
    int i;
    for (i = 0; i < 5; i++)
        io->wake(io->self);
    ASSERT_EQ_FMT(1u, wakes_sent(), "%u");
    PASS();
}

TEST a_wake_that_got_lost_does_not_silence_later_ones(void)
{
    io->wake(io->self);
    Sleep(20);
    ASSERT_EQ_FMT(1u, wakes_sent(), "%u"); /* taken away, as a guard of the network might */
    plb_win32_step(wx, 0);
    io->wake(io->self);
    Sleep(20);
    ASSERT_EQ_FMT(1u, wakes_sent(), "%u");
    PASS();
}

TEST a_wake_that_could_not_be_sent_does_not_silence_later_ones(void)
{
    sends_fail = true;
    io->wake(io->self);
    sends_fail = false;
    io->wake(io->self);
    Sleep(20);
    ASSERT_EQ_FMT(1u, wakes_sent(), "%u");
    PASS();
}

/* Its socket is on the loopback, where every program can send. */
TEST strangers_cannot_wake(void)
{
    SOCKET stranger = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in name;
    int size = (int)sizeof name;
    ASSERT_EQ(0, getsockname(wx->wake_socket, (struct sockaddr *)&name, &size));
    ASSERT_EQ(1, sendto(stranger, "x", 1, 0, (struct sockaddr *)&name, size));
    Sleep(20);
    ASSERT_EQ(0, wakes_sent());
    closesocket(stranger);
    PASS();
}

TEST a_loop_of_ones_own_waits_for_sockets_and_time(void)
{
    end listener, client, server;
    plb_addr addr = listen_somewhere(&listener);
    chore c;
    int turns;
    new_chore(&c, 40);
    plb_win32_add(wx, &c.task);
    ASSERT_EQ(PLB_AGAIN, accept_on(&listener, &server));
    ASSERT_EQ(PLB_AGAIN, connect_to(&client, &addr));
    for (turns = 0; turns < 100 && (client.connects == 0 || listener.accepts == 0 || c.polls < 5); turns++) {
        struct pollfd fds[16];
        size_t count = plb_win32_fill(wx, fds, 16);
        ASSERT(count >= 1 && count <= 16);
        ASSERT_EQ(count, plb_win32_fill(wx, fds, 0));
        test_poll(fds, (ULONG)count, plb_win32_timeout(wx));
        plb_win32_step(wx, 0);
    }
    ASSERT(turns < 20); /* it waited, and did not run in circles */
    ASSERT_EQ(PLB_OK, accept_on(&listener, &server));
    plb_win32_remove(wx, &c.task);
    PASS();
}

TEST a_loop_of_ones_own_hears_of_a_refusal_at_once(void)
{
    struct pollfd fds[4];
    plb_addr addr;
    end e;
    SOCKET refusing = refuse_somewhere(&addr);
    uint64_t before = now_ms();
    int turns;
    ASSERT_EQ(PLB_AGAIN, connect_to(&e, &addr));
    for (turns = 0; turns < 3 && e.connects == 0; turns++) {
        ASSERT_EQ_FMT((size_t)1, plb_win32_fill(wx, fds, 4), "%zu");
        test_poll(fds, 1, 20000);
        plb_win32_step(wx, 0);
    }
    ASSERT_EQ(PLB_ERR_REFUSED, e.connected);
    ASSERT(now_ms() - before < 1000);
    closesocket(refusing);
    PASS();
}

TEST a_destroyed_port_closes_its_streams(void)
{
    end listener, client, server;
    plb_addr addr = listen_somewhere(&listener);
    SOCKET fd;
    char bytes[1];
    ASSERT(connect_pair(&listener, &addr, &client, &server));
    fd = server.stream->socket;
    plb_win32_destroy(wx);
    ASSERT_EQ(PLB_OK, plb_win32_create(NULL, &wx));
    ASSERT(recv(fd, bytes, 1, 0) < 0);
    ASSERT_EQ(WSAENOTSOCK, WSAGetLastError());
    plb_win32_destroy(NULL);
    PASS();
}

TEST a_stop_that_came_first_is_kept_and_used_up(void)
{
    chore c;
    new_chore(&c, PLB_FOREVER);
    plb_win32_add(wx, &c.task);
    plb_win32_stop(wx);
    plb_win32_run(wx);
    ASSERT_EQ_FMT(0u, c.polls, "%u");
    c.stops = true;
    plb_win32_run(wx);
    ASSERT(c.polls >= 1);
    plb_win32_remove(wx, &c.task);
    PASS();
}

/* ==== THREADS ===================================================================================================== */

#ifdef PLB_NO_THREADS
TEST there_is_no_background_thread(void)
{
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, plb_win32_start_thread(wx));
    plb_win32_join_thread(wx);
    PASS();
}
#else
static bool no_threads; /* the system has none to give */

static uintptr_t test_beginthreadex(void *security, unsigned stack, unsigned(__stdcall *fn)(void *), void *user,
                                    unsigned flags, unsigned *id)
{
    return no_threads ? 0 : _beginthreadex(security, stack, fn, user, flags, id);
}

/* Of a task that another thread polls. */
static bool polled_by_now(chore *c, LONG number)
{
    int i;
    for (i = 0; i < STEPS && InterlockedCompareExchange(&c->polls, 0, 0) < number; i++)
        Sleep(5);
    return i < STEPS;
}

TEST a_background_thread_polls_and_wakes_and_stops(void)
{
    chore c;
    LONG number;
    int i;
    new_chore(&c, PLB_FOREVER);
    plb_win32_add(wx, &c.task);
    ASSERT_EQ(PLB_OK, plb_win32_start_thread(wx));
    ASSERT_EQ(PLB_ERR_ARGUMENT, plb_win32_start_thread(wx));
    ASSERT(polled_by_now(&c, 1));
    for (i = 0; i < 100; i++) {
        number = InterlockedCompareExchange(&c.polls, 0, 0);
        io->wake(io->self);
        ASSERT(polled_by_now(&c, number + 1)); /* not one wake is lost */
    }
    plb_win32_stop(wx);
    plb_win32_join_thread(wx);
    number = c.polls;
    io->wake(io->self);
    Sleep(20);
    ASSERT_EQ(number, c.polls);
    ASSERT_EQ(PLB_OK, plb_win32_start_thread(wx)); /* and again */
    ASSERT(polled_by_now(&c, number + 1));
    plb_win32_destroy(wx); /* ends it too */
    ASSERT_EQ(PLB_OK, plb_win32_create(NULL, &wx));
    no_threads = true;
    ASSERT_EQ(PLB_ERR_LIMIT, plb_win32_start_thread(wx));
    no_threads = false;
    plb_win32_join_thread(wx);
    PASS();
}

static volatile LONG stopped;

/* What Windows does at a Ctrl-C: the handler runs in a thread of its own, which nobody can wait for. */
static unsigned __stdcall interrupt_main(void *user)
{
    plb_win32_stop((plb_win32 *)user);
    InterlockedExchange(&stopped, 1);
    return 0;
}

TEST a_port_outlives_the_thread_that_stops_it(void)
{
    HANDLE thread;
    LONG before = sends;
    stopped = 0;
    send_delay_ms = 100;
    thread = (HANDLE)_beginthreadex(NULL, 0, interrupt_main, wx, 0, NULL);
    while (InterlockedCompareExchange(&sends, 0, 0) == before)
        Sleep(1);
    send_delay_ms = 0;
    plb_win32_run(wx);
    plb_win32_destroy(wx);
    Sleep(20); /* it has just to return */
    ASSERT_EQ(1, InterlockedCompareExchange(&stopped, 0, 0));
    WaitForSingleObject(thread, INFINITE);
    CloseHandle(thread);
    ASSERT_EQ(PLB_OK, plb_win32_create(NULL, &wx));
    PASS();
}

#endif

/* ==== NAMES ======================================================================================================= */

static bool no_calloc;

static void *test_calloc(size_t count, size_t size)
{
    return no_calloc ? NULL : calloc(count, size);
}

typedef enum behaviour {
    ANSWER = 0,
    HANG, /* until `hanging` is cleared */
    FAIL_WITH,
    NOTHING
} behaviour;

static struct {
    SRWLOCK lock;
    CONDITION_VARIABLE changed;
    behaviour script;
    int error;
    unsigned asked, hung, ended;
} fake = {SRWLOCK_INIT, CONDITION_VARIABLE_INIT, ANSWER, 0, 0, 0, 0};

/* Every name is 127.0.0.1, ::1 and 127.0.0.1 once more. */
static int fake_answer(struct addrinfo **out)
{
    static const char *const hosts[] = {"127.0.0.1", "::1", "127.0.0.1"};
    struct addrinfo hints;
    int i;
    memset(&hints, 0, sizeof hints);
    hints.ai_flags = AI_NUMERICHOST;
    hints.ai_socktype = SOCK_STREAM;
    for (i = 0; i < 3; i++) {
        int error = getaddrinfo(hosts[i], NULL, &hints, out);
        if (error != 0)
            return error;
        out = &(*out)->ai_next;
    }
    return 0;
}

static int test_getaddrinfo(const char *host, const char *service, const struct addrinfo *hints, struct addrinfo **out)
{
    behaviour script;
    int error = 0;
    (void)host;
    AcquireSRWLockExclusive(&fake.lock);
    if (service != NULL || hints->ai_socktype != SOCK_STREAM || hints->ai_family != AF_UNSPEC)
        abort();
    fake.asked++;
    script = fake.script;
    if (script == HANG) {
        fake.hung++;
        while (fake.script == HANG)
            SleepConditionVariableSRW(&fake.changed, &fake.lock, INFINITE, 0);
    }
    if (script == FAIL_WITH)
        error = fake.error;
    fake.ended++;
    ReleaseSRWLockExclusive(&fake.lock);
    return script == ANSWER || script == HANG ? fake_answer(out) : error;
}

static void set_script(behaviour script, int error)
{
    AcquireSRWLockExclusive(&fake.lock);
    fake.script = script;
    fake.error = error;
    WakeAllConditionVariable(&fake.changed);
    ReleaseSRWLockExclusive(&fake.lock);
}

typedef struct answer {
    unsigned count;
    plb_status status;
    plb_addr addrs[4];
    size_t addr_count;
    plb_query *query, *cancels;
    const char *asks; /* from inside the callback */
    struct answer *next;
} answer;

static plb_status ask(answer *a, const char *host, uint32_t timeout_ms);

static void on_answer(void *user, plb_status status, const plb_addr *addrs, size_t count)
{
    answer *a = (answer *)user;
    const plb_names *names = plb_win32_port(wx).names;
    size_t i;
    a->count++;
    a->status = status;
    a->addr_count = count;
    for (i = 0; i < count && i < 4; i++)
        a->addrs[i] = addrs[i];
    if (a->cancels != NULL)
        names->cancel(names->self, a->cancels);
    if (a->next != NULL)
        ask(a->next, a->asks, 5000);
}

static plb_status ask(answer *a, const char *host, uint32_t timeout_ms)
{
    const plb_names *names = plb_win32_port(wx).names;
    return names->resolve(names->self, host, 8080, timeout_ms, on_answer, a, &a->query);
}

TEST a_name_becomes_its_addresses_once_each(void)
{
    answer a = {0};
    plb_addr four = addr_of("127.0.0.1:8080"), six = addr_of("[::1]:8080");
    ASSERT_EQ(PLB_AGAIN, ask(&a, "example.test", 5000));
    ASSERT_EQ(0, a.count); /* never from inside the call */
    ASSERT(reaches(&a.count, 1));
    ASSERT_EQ(PLB_OK, a.status);
    ASSERT_EQ_FMT((size_t)2, a.addr_count, "%zu");
    ASSERT_EQ(0, plb_addr_compare(&four, &a.addrs[0]));
    ASSERT_EQ(0, plb_addr_compare(&six, &a.addrs[1]));
    ASSERT_EQ(-1, plb_win32_timeout(wx)); /* the deadline went with it */
    PASS();
}

TEST failures_of_names_have_names(void)
{
    static const struct {
        behaviour script;
        int error;
        plb_status status;
    } cases[] = {
        {FAIL_WITH, EAI_NONAME, PLB_ERR_NAME}, {FAIL_WITH, EAI_AGAIN, PLB_ERR_NAME},
        {FAIL_WITH, EAI_FAIL, PLB_ERR_NAME},   {FAIL_WITH, EAI_MEMORY, PLB_ERR_MEMORY},
        {FAIL_WITH, WSAEMFILE, PLB_ERR_LIMIT}, {NOTHING, 0, PLB_ERR_NAME},
    };
    size_t i;
    for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        answer a = {0};
        set_script(cases[i].script, cases[i].error);
        ASSERT_EQ(PLB_AGAIN, ask(&a, "example.test", 5000));
        ASSERT(reaches(&a.count, 1));
        ASSERT_EQ(cases[i].status, a.status);
        ASSERT_EQ(0, a.addr_count);
    }
    set_script(ANSWER, 0);
    PASS();
}

TEST a_name_too_long_does_not_exist(void)
{
    answer a = {0};
    char host[400];
    memset(host, 'a', sizeof host);
    host[sizeof host - 1] = '\0';
    ASSERT_EQ(PLB_AGAIN, ask(&a, host, 5000));
    ASSERT(reaches(&a.count, 1));
    ASSERT_EQ(PLB_ERR_NAME, a.status);
    PASS();
}

TEST callbacks_may_ask_and_cancel(void)
{
    answer a = {0}, b = {0}, c = {0};
    a.next = &c;
    a.asks = "c.test";
    ASSERT_EQ(PLB_AGAIN, ask(&a, "a.test", 5000));
    ASSERT_EQ(PLB_AGAIN, ask(&b, "b.test", 5000));
    a.cancels = b.query;
    ASSERT(reaches(&c.count, 1));
    ASSERT_EQ(PLB_OK, c.status);
    ASSERT_EQ(0, b.count);
    PASS();
}

#ifndef PLB_NO_THREADS
static unsigned fake_count(const unsigned *counter)
{
    unsigned count;
    AcquireSRWLockExclusive(&fake.lock);
    count = *counter;
    ReleaseSRWLockExclusive(&fake.lock);
    return count;
}

/* Waits for the helper thread, wherever it is. */
static bool fake_reaches(const unsigned *counter, unsigned number)
{
    int i;
    for (i = 0; i < STEPS && fake_count(counter) < number; i++)
        Sleep(5);
    return i < STEPS;
}

/* One hangs in getaddrinfo, one waits behind it, one is called off there, one is called off inside. */
TEST a_hanging_lookup_keeps_the_deadline(void)
{
    const plb_names *names = plb_win32_port(wx).names;
    answer inside = {0}, behind = {0}, cancelled = {0}, later = {0};
    unsigned hung = fake_count(&fake.hung), ended;
    uint64_t before = now_ms();
    set_script(HANG, 0);
    ASSERT_EQ(PLB_AGAIN, ask(&inside, "a.test", 50));
    ASSERT(fake_reaches(&fake.hung, hung + 1));
    ASSERT_EQ(PLB_AGAIN, ask(&behind, "b.test", 60));
    ASSERT_EQ(PLB_AGAIN, ask(&cancelled, "c.test", 60));
    names->cancel(names->self, cancelled.query);
    ASSERT(reaches(&inside.count, 1) && reaches(&behind.count, 1));
    ASSERT_EQ(PLB_ERR_TIMEOUT, inside.status);
    ASSERT_EQ(PLB_ERR_TIMEOUT, behind.status);
    ASSERT(now_ms() - before < 5000);
    ended = fake_count(&fake.ended);
    set_script(ANSWER, 0);
    ASSERT(fake_reaches(&fake.ended, ended + 1));
    ASSERT_EQ(PLB_AGAIN, ask(&later, "d.test", 5000));
    ASSERT(reaches(&later.count, 1));
    ASSERT_EQ(PLB_OK, later.status);
    ASSERT_EQ(0, cancelled.count);
    ASSERT_EQ(1, inside.count);
    PASS();
}

TEST a_lookup_is_called_off_while_it_hangs(void)
{
    const plb_names *names = plb_win32_port(wx).names;
    answer a = {0}, b = {0};
    unsigned hung = fake_count(&fake.hung);
    set_script(HANG, 0);
    ASSERT_EQ(PLB_AGAIN, ask(&a, "a.test", 5000));
    ASSERT(fake_reaches(&fake.hung, hung + 1));
    names->cancel(names->self, a.query);
    set_script(ANSWER, 0);
    ASSERT_EQ(PLB_AGAIN, ask(&b, "b.test", 5000));
    ASSERT(reaches(&b.count, 1));
    ASSERT_EQ(0, a.count);
    PASS();
}

TEST a_port_is_destroyed_while_a_lookup_hangs(void)
{
    answer inside = {0}, behind = {0};
    unsigned hung = fake_count(&fake.hung), ended = fake_count(&fake.ended);
    set_script(HANG, 0);
    ASSERT_EQ(PLB_AGAIN, ask(&inside, "a.test", 5000));
    ASSERT_EQ(PLB_AGAIN, ask(&behind, "b.test", 5000));
    ASSERT(fake_reaches(&fake.hung, hung + 1));
    plb_win32_destroy(wx);
    ASSERT_EQ(PLB_OK, plb_win32_create(NULL, &wx));
    set_script(ANSWER, 0);
    ASSERT(fake_reaches(&fake.ended, ended + 1));
    ASSERT_EQ(0, inside.count + behind.count);
    PASS();
}
#endif

TEST a_port_without_helper_reports_it(void)
{
    answer a = {0};
    no_calloc = true;
    ASSERT_EQ(PLB_ERR_MEMORY, ask(&a, "a.test", 5000));
    no_calloc = false;
#ifndef PLB_NO_THREADS
    no_threads = true;
    ASSERT_EQ(PLB_ERR_LIMIT, ask(&a, "a.test", 5000));
    no_threads = false;
#endif
    ASSERT_EQ(PLB_AGAIN, ask(&a, "a.test", 5000));
    ASSERT(reaches(&a.count, 1));
    ASSERT_EQ(PLB_OK, a.status);
    PASS();
}

/* ==== MEMORY ====================================================================================================== */

typedef struct budget {
    size_t allocations, fail_at, in_use;
} budget;

static void *budget_alloc(void *user, size_t size)
{
    budget *b = (budget *)user;
    void *ptr = ++b->allocations == b->fail_at ? NULL : malloc(size);
    if (ptr != NULL)
        b->in_use += size;
    return ptr;
}

static void budget_dealloc(void *user, void *ptr, size_t size)
{
    ((budget *)user)->in_use -= size;
    free(ptr);
}

/* Everything once; any call may fail for want of memory, and say so. */
static bool run_through(void)
{
    end listener, clients[10], server;
    plb_addr addr = addr_of("127.0.0.1:1");
    plb_stream_info info;
    answer a = {0};
    plb_status status;
    int i;
    addr.port = 0;
    if (listen_at(&listener, addr, 0) != PLB_OK)
        return listener.stream == NULL;
    if (io->info(io->self, listener.stream, &info) != PLB_OK)
        return false;
    for (i = 0; i < 10; i++) {
        status = connect_to(&clients[i], &info.local);
        if (status != PLB_OK && status != PLB_AGAIN)
            return status == PLB_ERR_MEMORY && clients[i].stream == NULL;
    }
    for (i = 0; i < 10; i++) {
        if (accept_wait(&listener, &server) != PLB_OK) /* it only pauses */
            return false;
    }
    status = ask(&a, "a.test", 5000);
    if (status != PLB_AGAIN)
        return status == PLB_ERR_MEMORY;
    return reaches(&a.count, 1) && (a.status == PLB_OK || a.status == PLB_ERR_MEMORY);
}

TEST every_allocation_may_fail(void)
{
    plb_win32 *before = wx;
    plb_win32_desc desc;
    budget b;
    size_t n;
    bool survived = true;
    for (n = 1; n < 200 && survived; n++) {
        memset(&b, 0, sizeof b);
        b.fail_at = n;
        desc.allocator.alloc = budget_alloc;
        desc.allocator.dealloc = budget_dealloc;
        desc.allocator.user = &b;
        if (plb_win32_create(&desc, &wx) == PLB_OK) {
            io = plb_win32_port(wx).io;
            survived = run_through();
            plb_win32_destroy(wx);
        }
        survived = survived && b.in_use == 0;
        if (b.allocations < n)
            break; /* nothing failed any more */
    }
    wx = before;
    ASSERT(survived);
    ASSERT(n > 20 && n < 200);
    PASS();
}

/* Asked for, and not answered yet: one that somebody may work at, and one that nobody need work at. */
TEST a_destroyed_port_leaves_no_question_behind(void)
{
    plb_win32 *before = wx;
    plb_win32_desc desc;
    budget b;
    answer a, too_long;
    char host[400];
    memset(&a, 0, sizeof a);
    memset(&too_long, 0, sizeof too_long);
    memset(&desc, 0, sizeof desc);
    memset(&b, 0, sizeof b);
    memset(host, 'a', sizeof host);
    host[sizeof host - 1] = '\0';
    desc.allocator.alloc = budget_alloc;
    desc.allocator.dealloc = budget_dealloc;
    desc.allocator.user = &b;
    ASSERT_EQ(PLB_OK, plb_win32_create(&desc, &wx));
    ASSERT_EQ(PLB_AGAIN, ask(&a, "a.test", 5000));
    ASSERT_EQ(PLB_AGAIN, ask(&too_long, host, 5000));
    plb_win32_destroy(wx);
    wx = before;
    ASSERT_EQ(0, a.count + too_long.count);
    ASSERT_EQ(0, b.in_use);
    PASS();
}

/* ==== SUITES ====================================================================================================== */

SUITE(faults)
{
    SET_SETUP(set_up, NULL);
    SET_TEARDOWN(tear_down, NULL);
    RUN_TEST(a_refusal_is_noticed_at_once);
    RUN_TEST(refusals_are_told_apart);
    RUN_TEST(a_writer_to_a_peer_that_has_ended_its_side_does_not_spin);
    RUN_TEST(a_wait_that_fails_does_not_spin);
}

SUITE(sockets)
{
    SET_SETUP(set_up, NULL);
    SET_TEARDOWN(tear_down, NULL);
    RUN_TEST(without_sockets_accept_pauses_and_nothing_spins);
    RUN_TEST(accept_resumes_when_a_stream_closes);
    RUN_TEST(a_paused_listener_can_be_closed);
    RUN_TEST(without_sockets_connect_names_the_limit);
    RUN_TEST(without_sockets_there_is_no_port);
    RUN_TEST(without_a_pool_there_is_no_port);
    RUN_TEST(sockets_are_private_and_prompt);
    RUN_TEST(a_stream_that_nobody_asks_about_does_not_spin);
    RUN_TEST(a_write_hands_over_no_more_than_it_should);
    RUN_TEST(a_writer_waits_until_the_system_has_memory_again);
    RUN_TEST(addresses_that_are_not_ours_are_named);
    RUN_TEST(an_ipv6_listener_leaves_ipv4_alone);
    RUN_TEST(nobody_else_gets_the_address_of_a_listener);
    RUN_TEST(a_long_backlog_is_asked_for_as_windows_wants_it);
    RUN_TEST(an_address_is_free_again_while_connections_of_it_live);
    RUN_TEST(a_path_that_nobody_listens_on_any_more_is_replaced);
    RUN_TEST(a_path_in_use_is_left_alone);
    RUN_TEST(a_file_that_is_no_socket_is_left_alone);
    RUN_TEST(a_path_that_cannot_be_is_no_address);
    RUN_TEST(paths_are_unsupported_where_the_system_has_none);
}

SUITE(loops)
{
    SET_SETUP(set_up, NULL);
    SET_TEARDOWN(tear_down, NULL);
    RUN_TEST(a_task_is_polled_at_once_then_when_its_delay_is_over);
    RUN_TEST(tasks_may_add_and_remove_tasks);
    RUN_TEST(a_wake_from_the_step_itself_costs_no_system_call);
    RUN_TEST(wakes_from_outside_are_sent_once);
    RUN_TEST(a_wake_that_got_lost_does_not_silence_later_ones);
    RUN_TEST(a_wake_that_could_not_be_sent_does_not_silence_later_ones);
    RUN_TEST(strangers_cannot_wake);
    RUN_TEST(a_loop_of_ones_own_waits_for_sockets_and_time);
    RUN_TEST(a_loop_of_ones_own_hears_of_a_refusal_at_once);
    RUN_TEST(a_destroyed_port_closes_its_streams);
    RUN_TEST(a_stop_that_came_first_is_kept_and_used_up);
    RUN_TEST(every_allocation_may_fail);
    RUN_TEST(a_destroyed_port_leaves_no_question_behind);
}

SUITE(threads)
{
    SET_SETUP(set_up, NULL);
    SET_TEARDOWN(tear_down, NULL);
#ifdef PLB_NO_THREADS
    RUN_TEST(there_is_no_background_thread);
#else
    RUN_TEST(a_background_thread_polls_and_wakes_and_stops);
    RUN_TEST(a_port_outlives_the_thread_that_stops_it);
#endif
}

SUITE(names)
{
    SET_SETUP(set_up, NULL);
    SET_TEARDOWN(tear_down, NULL);
    RUN_TEST(a_name_becomes_its_addresses_once_each);
    RUN_TEST(failures_of_names_have_names);
    RUN_TEST(a_name_too_long_does_not_exist);
    RUN_TEST(callbacks_may_ask_and_cancel);
#ifndef PLB_NO_THREADS
    RUN_TEST(a_hanging_lookup_keeps_the_deadline);
    RUN_TEST(a_lookup_is_called_off_while_it_hangs);
    RUN_TEST(a_port_is_destroyed_while_a_lookup_hangs);
#endif
    RUN_TEST(a_port_without_helper_reports_it);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    WSADATA winsock;
    GREATEST_MAIN_BEGIN();
    WSAStartup(MAKEWORD(2, 2), &winsock);
    RUN_SUITE(faults);
    RUN_SUITE(sockets);
    RUN_SUITE(loops);
    RUN_SUITE(threads);
    RUN_SUITE(names);
    GREATEST_MAIN_END();
}
