/* What is the POSIX port's own: scarce descriptors, threads, signals, loops of a program's own, names, Unix paths, what
   the system says of datagrams. What it has in common with other ports is in io_conformance.c. With PLB_POSIX_POLL: its
   other back end. */
#define _GNU_SOURCE
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/socket.h>

/* What datagrams, and the helper thread, need of the system, in the tests' hands. */
static int test_bind(int fd, const struct sockaddr *name, socklen_t size);
static ssize_t test_sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *to,
                           socklen_t to_size);
static ssize_t test_recvmsg(int fd, struct msghdr *message, int flags);
#define bind    test_bind
#define sendto  test_sendto
#define recvmsg test_recvmsg

static int test_getaddrinfo(const char *host, const char *service, const struct addrinfo *hints, struct addrinfo **out);
static void *test_calloc(size_t count, size_t size);
#ifndef PLB_NO_THREADS
static int test_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *), void *user);
#define pthread_create test_pthread_create
#endif
#define calloc                test_calloc
#define PLB_POSIX_GETADDRINFO test_getaddrinfo

#define PINGORA_LB_IMPLEMENTATION
#include "../pingora_lb.h"
#define PLB_POSIX_IMPLEMENTATION
#include "../ports/plb_posix.h"

#undef pthread_create
#undef calloc
#undef bind
#undef sendto
#undef recvmsg

#include <greatest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/time.h>

/* ==== HELPERS ===================================================================================================== */

#define STEPS 1000 /* of 10 ms at most: how long something that must happen may take */

static plb_posix *px; /* of the test that runs */
static const plb_io *io;
static const plb_dgram *dgram;
static char directory[32];

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
    strcpy(directory, "/tmp/plb_posix_XXXXXX");
    if (mkdtemp(directory) == NULL || plb_posix_create(NULL, &px) != PLB_OK)
        abort();
    io = plb_posix_port(px).io;
    dgram = plb_posix_port(px).dgram;
}

static void tear_down(void *user)
{
    (void)user;
    plb_posix_destroy(px);
    rmdir(directory);
}

static uint64_t now_ms(void)
{
    const plb_clock *clock = plb_posix_port(px).clock;
    return clock->now_ms(clock->self);
}

static bool reaches(const unsigned *counter, unsigned number)
{
    int i;
    for (i = 0; i < STEPS && *counter < number; i++)
        plb_posix_step(px, 10);
    return *counter >= number;
}

static plb_addr addr_of(const char *text)
{
    plb_addr addr;
    if (plb_addr_parse(&addr, text, PLB_ZSTRING) != PLB_OK)
        abort();
    return addr;
}

static plb_addr path_of(const char *name)
{
    char text[64];
    snprintf(text, sizeof text, "unix:%s/%s", directory, name);
    return addr_of(text);
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
        plb_posix_step(px, 10);
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

/* ==== DESCRIPTORS ================================================================================================= */

static struct rlimit given;

/* Not one descriptor more. */
static void close_the_tap(void)
{
    struct rlimit limit;
    int next = dup(0);
    close(next);
    getrlimit(RLIMIT_NOFILE, &given);
    limit = given;
    limit.rlim_cur = (rlim_t)next;
    setrlimit(RLIMIT_NOFILE, &limit);
}

static void open_the_tap(void)
{
    setrlimit(RLIMIT_NOFILE, &given);
}

TEST without_descriptors_accept_pauses_and_nothing_spins(void)
{
    end listener, client, second, server;
    plb_addr addr = listen_somewhere(&listener);
    uint64_t until;
    unsigned steps = 0;
    ASSERT_EQ(PLB_AGAIN, connect_to(&client, &addr));
    ASSERT_EQ(PLB_AGAIN, connect_to(&second, &addr));
    ASSERT(reaches(&client.connects, 1) && reaches(&second.connects, 1));
    close_the_tap();
    for (until = now_ms() + 350; now_ms() < until; steps++) {
        accept_on(&listener, &server);
        plb_posix_step(px, (uint32_t)(until - now_ms()));
    }
    open_the_tap();
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
    close_the_tap();
    ASSERT_EQ(PLB_AGAIN, accept_on(&listener, &server));
    before = now_ms();
    drop(&client);
    ASSERT(reaches(&listener.accepts, 1));
    ASSERT(now_ms() - before < PLB__PX_ACCEPT_MS / 2);
    ASSERT_EQ(PLB_OK, accept_on(&listener, &server));
    open_the_tap();
    PASS();
}

TEST a_paused_listener_can_be_closed(void)
{
    end listener, client, server;
    plb_addr addr = listen_somewhere(&listener);
    ASSERT_EQ(PLB_AGAIN, connect_to(&client, &addr));
    ASSERT(reaches(&client.connects, 1));
    close_the_tap();
    ASSERT_EQ(PLB_AGAIN, accept_on(&listener, &server));
    open_the_tap();
    drop(&listener);
    drop(&client);
    ASSERT_EQ(-1, plb_posix_timeout(px));
    PASS();
}

TEST without_descriptors_connect_names_the_limit(void)
{
    end listener, client;
    plb_addr addr = listen_somewhere(&listener);
    plb_status status;
    close_the_tap();
    status = connect_to(&client, &addr);
    open_the_tap();
    ASSERT_EQ(PLB_ERR_LIMIT, status);
    ASSERT(plb_status_is_local(status));
    ASSERT(client.stream == NULL);
    ASSERT_EQ(PLB_AGAIN, connect_to(&client, &addr));
    PASS();
}

TEST without_descriptors_there_is_no_port(void)
{
    plb_posix *other = px;
    plb_status status;
    close_the_tap();
    status = plb_posix_create(NULL, &other);
    open_the_tap();
    ASSERT_EQ(PLB_ERR_LIMIT, status);
    ASSERT(other == NULL);
    PASS();
}

TEST sockets_are_non_blocking_private_and_prompt(void)
{
    end listener, ends[2];
    plb_addr addr = listen_somewhere(&listener);
    int i;
    ASSERT(connect_pair(&listener, &addr, &ends[0], &ends[1]));
    for (i = 0; i < 2; i++) /* a first short write cannot be held back, a second one could be */
        ASSERT(write_text(&ends[i], "a") == PLB_OK && write_text(&ends[i], "b") == PLB_OK);
    for (i = 0; i < 2; i++) {
        int fd = ends[i].stream->fd, prompt = 0;
        socklen_t size = sizeof prompt;
        ASSERT(fcntl(fd, F_GETFL) & O_NONBLOCK);
        ASSERT(fcntl(fd, F_GETFD) & FD_CLOEXEC);
        ASSERT_EQ(0, getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &prompt, &size));
        ASSERT(prompt != 0);
    }
    PASS();
}

/* The loopback delivers within the call that sends, so nothing here has to wait. */
TEST a_peer_may_speak_first_at_once(void)
{
    end listener, client, server;
    plb_addr addr = listen_somewhere(&listener);
    ASSERT_EQ(PLB_AGAIN, connect_to(&client, &addr));
    ASSERT(reaches(&client.connects, 1));
    ASSERT_EQ(PLB_OK, accept_on(&listener, &server));
    PASS();
}

#ifdef TCP_QUICKACK
typedef struct early_end {
    end *listener, server;
    plb_status accepted;
    unsigned connects;
} early_end;

static void close_early(void *user, plb_stream *stream, plb_event event, plb_status status)
{
    early_end *e = (early_end *)user;
    e->connects += event == PLB_EVENT_CONNECT && status == PLB_OK;
    e->accepted = accept_on(e->listener, &e->server);
    io->close(io->self, stream, PLB_CLOSE_GRACEFUL);
}

/* It hears of the connection and of its end together, and is woken once. */
TEST a_peer_that_is_only_probed_hears_of_it_once(void)
{
    end listener;
    early_end client;
    plb_addr addr = listen_somewhere(&listener);
    plb_peer peer;
    plb_handler handler;
    plb_stream *stream;
    memset(&client, 0, sizeof client);
    client.listener = &listener;
    handler.fn = close_early;
    handler.user = &client;
    memset(&peer, 0, sizeof peer);
    peer.addr = addr;
    ASSERT_EQ(PLB_AGAIN, io->connect(io->self, &peer, handler, &stream));
    ASSERT(reaches(&client.connects, 1));
    ASSERT_EQ(PLB_AGAIN, client.accepted);
    ASSERT_EQ(PLB_OK, accept_wait(&listener, &client.server));
    ASSERT_EQ(PLB_END, read_byte(&client.server));
    PASS();
}
#endif

/* A fork in another thread can keep a closed socket alive for a while, and with it what the kernel tells of it. */
TEST events_of_a_socket_that_outlives_its_stream_reach_nobody(void)
{
    end listener, client, server, next, next_server;
    plb_addr addr = listen_somewhere(&listener);
    uint32_t slot;
    int copy;
    ASSERT(connect_pair(&listener, &addr, &client, &server));
    ASSERT_EQ(PLB_AGAIN, read_byte(&server));
    slot = server.stream->slot;
    copy = dup(server.stream->fd);
    drop(&server);
    ASSERT(connect_pair(&listener, &addr, &next, &next_server));
    ASSERT(next.stream->slot == slot || next_server.stream->slot == slot);
    ASSERT_EQ(PLB_AGAIN, read_byte(&next));
    ASSERT_EQ(PLB_AGAIN, read_byte(&next_server));
    ASSERT_EQ(PLB_OK, write_text(&client, "x"));
    plb_posix_step(px, 20);
    plb_posix_step(px, 20);
    close(copy);
    ASSERT_EQ(0, next.reads + next.writes + next_server.reads + next_server.writes);
    PASS();
}

TEST a_broken_stream_that_nobody_asks_about_does_not_spin(void)
{
    end listener, client, server;
    plb_addr addr = listen_somewhere(&listener);
    uint64_t before;
    ASSERT(connect_pair(&listener, &addr, &client, &server));
    ASSERT_EQ(PLB_AGAIN, read_byte(&server));
    io->close(io->self, client.stream, PLB_CLOSE_ABORT);
    ASSERT(reaches(&server.reads, 1));
    before = now_ms();
    plb_posix_step(px, 60);
    ASSERT(now_ms() - before >= 50);
    ASSERT_EQ(PLB_ERR_RESET, read_byte(&server));
    PASS();
}

#ifdef PLB__PX_EPOLL
/* An edge tells what comes next, so that a reader need not ask the kernel for the end of what is there. */
TEST a_short_read_saves_the_call_that_would_find_nothing(void)
{
    end listener, client, server;
    plb_addr addr = listen_somewhere(&listener);
    char text[8];
    size_t got;
    ASSERT(connect_pair(&listener, &addr, &client, &server));
    ASSERT_EQ(PLB_AGAIN, read_byte(&server));
    ASSERT_EQ(PLB_OK, write_text(&client, "abc"));
    ASSERT(reaches(&server.reads, 1));
    ASSERT(plb__px_is_ready(server.stream, PLB__PX_READ));
    ASSERT_EQ(PLB_OK, io->read(io->self, server.stream, text, sizeof text, &got));
    ASSERT(plb__px_is_idle(server.stream, PLB__PX_READ));
    PASS();
}
#endif

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

TEST listeners_may_share_a_port_when_all_agree(void)
{
    end first, second;
    plb_listen_desc desc;
    plb_stream_info info;
    memset(&desc, 0, sizeof desc);
    desc.addr = addr_of("127.0.0.1:1");
    desc.addr.port = 0;
    desc.reuse_port = true;
    ASSERT_EQ(PLB_OK, io->listen(io->self, &desc, handler_of(&first), &first.stream));
    ASSERT_EQ(PLB_OK, io->info(io->self, first.stream, &info));
    desc.addr = info.local;
    ASSERT_EQ(PLB_OK, io->listen(io->self, &desc, handler_of(&second), &second.stream));
    PASS();
}

/* ==== DATAGRAMS =================================================================================================== */

/* How the next calls of the system fail, and what comes between bind and connect. */
static struct {
    int error;
    unsigned failures; /* calls that still fail so */
    int stranger;      /* a socket that sends to whatever is bound; 0: none */
} mischief;

static bool is_made_to_fail(void)
{
    if (mischief.failures == 0)
        return false;
    mischief.failures--;
    errno = mischief.error;
    return true;
}

static int test_bind(int fd, const struct sockaddr *name, socklen_t size)
{
    struct sockaddr_storage bound;
    socklen_t bound_size = sizeof bound;
    int result = bind(fd, name, size);
    if (result == 0 && mischief.stranger > 0 && getsockname(fd, (struct sockaddr *)&bound, &bound_size) == 0 &&
        sendto(mischief.stranger, "forged", 6, 0, (struct sockaddr *)&bound, bound_size) != 6)
        abort();
    return result;
}

static ssize_t test_sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *to,
                           socklen_t to_size)
{
    return is_made_to_fail() ? -1 : sendto(fd, data, size, flags, to, to_size);
}

static ssize_t test_recvmsg(int fd, struct msghdr *message, int flags)
{
    return is_made_to_fail() ? -1 : recvmsg(fd, message, flags);
}

static void fail_next(int error, unsigned times)
{
    mischief.error = error;
    mischief.failures = times;
}

static plb_status open_socket(end *e, const plb_addr *local, const plb_addr *remote)
{
    return dgram->open(dgram->self, local, remote, handler_of(e), &e->stream);
}

/* On a port of the loopback that the system chooses; returns where. */
static plb_addr open_somewhere(end *e)
{
    plb_stream_info info;
    plb_addr addr = addr_of("127.0.0.1:1");
    addr.port = 0;
    if (open_socket(e, &addr, NULL) != PLB_OK || dgram->info(dgram->self, e->stream, &info) != PLB_OK)
        abort();
    return info.local;
}

static plb_status send_text(end *e, const plb_addr *to, const char *text)
{
    return dgram->send(dgram->self, e->stream, to, text, strlen(text));
}

static plb_status receive_byte(end *e)
{
    char byte;
    size_t got;
    return dgram->receive(dgram->self, e->stream, &byte, 1, &got, NULL);
}

/* What the system may say to a datagram, and what that means to who sends and who receives. */
static const struct {
    int error;
    plb_status sending, receiving;
} datagram_errors[] = {{EAGAIN, PLB_ERR_LIMIT, PLB_AGAIN},
                       {ENOBUFS, PLB_ERR_LIMIT, PLB_ERR_LIMIT},
                       {ENOMEM, PLB_ERR_MEMORY, PLB_ERR_MEMORY},
                       {EACCES, PLB_ERR_ACCESS, PLB_ERR_ACCESS},
                       {EPERM, PLB_ERR_ACCESS, PLB_ERR_ACCESS},
                       {ECONNREFUSED, PLB_ERR_REFUSED, PLB_ERR_REFUSED},
                       {EHOSTUNREACH, PLB_ERR_UNREACHABLE, PLB_ERR_UNREACHABLE},
                       {ENETUNREACH, PLB_ERR_UNREACHABLE, PLB_ERR_UNREACHABLE},
                       {ENOPROTOOPT, PLB_ERR_UNREACHABLE, PLB_ERR_UNREACHABLE}, /* ICMP: protocol unreachable */
                       {EBADF, PLB_ERR_IO, PLB_ERR_IO}};

TEST what_the_system_says_to_a_datagram_has_a_name(void)
{
    end e;
    plb_addr addr = open_somewhere(&e);
    size_t i;
    for (i = 0; i < sizeof datagram_errors / sizeof datagram_errors[0]; i++) {
        fail_next(datagram_errors[i].error, 1);
        ASSERT_EQ(datagram_errors[i].sending, send_text(&e, &addr, "x"));
        ASSERT_EQ(PLB_OK, send_text(&e, &addr, "x")); /* nothing has changed for the socket */
        plb_posix_step(px, 10);
        fail_next(datagram_errors[i].error, 1);
        ASSERT_EQ(datagram_errors[i].receiving, receive_byte(&e));
        plb_posix_step(px, 10);
        ASSERT_EQ(PLB_OK, receive_byte(&e));
        ASSERT_EQ(PLB_AGAIN, receive_byte(&e));
    }
    PASS();
}

/* A signal, and a router that asks for smaller packets, change nothing. */
TEST what_passes_by_itself_is_not_told(void)
{
    end e;
    plb_addr addr = open_somewhere(&e);
    static const int errors[] = {EINTR, EMSGSIZE};
    int i;
    for (i = 0; i < 2; i++) {
        fail_next(errors[i], 1);
        ASSERT_EQ(PLB_OK, send_text(&e, &addr, "x"));
        ASSERT_EQ(0, mischief.failures);
        fail_next(errors[i], 1);
        ASSERT_EQ(PLB_OK, receive_byte(&e));
        ASSERT_EQ(0, mischief.failures);
    }
    fail_next(EMSGSIZE, 2); /* the second time it is this datagram that is too big; what is received never is */
    ASSERT_EQ(PLB_ERR_ARGUMENT, send_text(&e, &addr, "x"));
    fail_next(EMSGSIZE, 2);
    ASSERT_EQ(PLB_ERR_UNREACHABLE, receive_byte(&e));
    PASS();
}

TEST a_datagram_from_before_the_remote_was_known_is_dropped(void)
{
    end server, e;
    plb_addr addr = open_somewhere(&server), local = addr;
    local.port = 0;
    mischief.stranger = socket(AF_INET, SOCK_DGRAM, 0);
    ASSERT(mischief.stranger > 0);
    ASSERT_EQ(PLB_OK, open_socket(&e, &local, &addr));
    close(mischief.stranger);
    mischief.stranger = 0;
    ASSERT_EQ(PLB_AGAIN, receive_byte(&e));
    plb_posix_step(px, 20);
    ASSERT_EQ(0, e.reads);
    PASS();
}

TEST places_that_no_datagram_gets_to_are_named(void)
{
    end e;
    plb_addr ours = addr_of("127.0.0.1:1"), theirs = addr_of("192.0.2.1:9"), all = addr_of("127.255.255.255:9");
    ours.port = 0;
    ASSERT_EQ(PLB_ERR_ADDRESS, open_socket(&e, &theirs, NULL));
    ASSERT(e.stream == NULL);
    ASSERT_EQ(PLB_ERR_UNREACHABLE, open_socket(&e, &ours, &theirs)); /* the loopback leads nowhere */
    ASSERT_EQ(PLB_ERR_ACCESS, open_socket(&e, NULL, &all));
    ASSERT(e.stream == NULL);
    open_somewhere(&e);
    ASSERT_EQ(PLB_ERR_UNREACHABLE, send_text(&e, &theirs, "x"));
    ASSERT_EQ(PLB_ERR_ACCESS, send_text(&e, &all, "x"));
    PASS();
}

TEST an_ipv6_socket_leaves_ipv4_alone(void)
{
    end four, six;
    plb_stream_info info;
    plb_addr addr = addr_of("0.0.0.0:1");
    addr.port = 0;
    ASSERT_EQ(PLB_OK, open_socket(&four, &addr, NULL));
    ASSERT_EQ(PLB_OK, dgram->info(dgram->self, four.stream, &info));
    addr = addr_of("[::]:1");
    addr.port = info.local.port;
    ASSERT_EQ(PLB_OK, open_socket(&six, &addr, NULL));
    PASS();
}

TEST without_descriptors_open_names_the_limit(void)
{
    end e;
    plb_addr addr = addr_of("127.0.0.1:9");
    plb_status status;
    close_the_tap();
    status = open_socket(&e, NULL, &addr);
    open_the_tap();
    ASSERT_EQ(PLB_ERR_LIMIT, status);
    ASSERT(e.stream == NULL);
    ASSERT_EQ(PLB_OK, open_socket(&e, NULL, &addr));
    ASSERT(fcntl(e.stream->fd, F_GETFL) & O_NONBLOCK);
    ASSERT(fcntl(e.stream->fd, F_GETFD) & FD_CLOEXEC);
    PASS();
}

/* An error that passes leaves the socket as it was: it neither spins, nor costs calls that find nothing. */
TEST a_refusal_leaves_nothing_behind(void)
{
    end server, e;
    plb_addr addr = open_somewhere(&server);
    uint64_t before;
    dgram->close(dgram->self, server.stream);
    ASSERT_EQ(PLB_OK, open_socket(&e, NULL, &addr));
    ASSERT_EQ(PLB_AGAIN, receive_byte(&e));
    ASSERT_EQ(PLB_OK, send_text(&e, NULL, "x"));
    ASSERT(reaches(&e.reads, 1));
    before = now_ms();
    plb_posix_step(px, 60); /* nobody asks */
    ASSERT(now_ms() - before >= 50);
    ASSERT_EQ(PLB_ERR_REFUSED, receive_byte(&e));
    ASSERT_EQ(PLB_AGAIN, receive_byte(&e));
    before = now_ms();
    plb_posix_step(px, 60); /* nothing comes */
    ASSERT(now_ms() - before >= 50);
    ASSERT_EQ(1, e.reads);
#ifdef PLB__PX_EPOLL
    fail_next(EBADF, 1);
    ASSERT_EQ(PLB_AGAIN, receive_byte(&e));
    ASSERT_EQ(1, mischief.failures); /* the system was not asked */
    fail_next(0, 0);
#endif
    PASS();
}

TEST a_destroyed_port_closes_its_sockets(void)
{
    end e;
    plb_addr addr = open_somewhere(&e);
    plb_posix_destroy(px);
    ASSERT_EQ(PLB_OK, plb_posix_create(NULL, &px));
    dgram = plb_posix_port(px).dgram;
    ASSERT_EQ(PLB_OK, open_socket(&e, &addr, NULL));
    PASS();
}

/* ==== UNIX PATHS ================================================================================================== */

static void leave_a_stale_socket(const plb_addr *addr)
{
    struct sockaddr_un name;
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    memset(&name, 0, sizeof name);
    name.sun_family = AF_UNIX;
    memcpy(name.sun_path, addr->u.path, addr->path_len);
    if (fd < 0 || bind(fd, (struct sockaddr *)&name, sizeof name) != 0)
        abort();
    close(fd);
}

TEST a_stale_path_is_replaced_and_taken_away_at_the_end(void)
{
    end listener, client, server;
    plb_addr addr = path_of("a");
    leave_a_stale_socket(&addr);
    ASSERT_EQ(0, access(addr.u.path, F_OK));
    ASSERT_EQ(PLB_OK, listen_at(&listener, addr, 0));
    ASSERT(connect_pair(&listener, &addr, &client, &server));
    drop(&listener);
    ASSERT(access(addr.u.path, F_OK) != 0);
    PASS();
}

TEST a_path_in_use_and_a_file_are_left_alone(void)
{
    end listener, second;
    plb_addr live = path_of("a"), file = path_of("b");
    ASSERT_EQ(PLB_OK, listen_at(&listener, live, 0));
    ASSERT_EQ(PLB_ERR_IN_USE, listen_at(&second, live, 0));
    ASSERT_EQ(0, access(live.u.path, F_OK));
    close(open(file.u.path, O_CREAT | O_WRONLY, 0600));
    ASSERT_EQ(PLB_ERR_IN_USE, listen_at(&second, file, 0));
    ASSERT_EQ(0, unlink(file.u.path)); /* it is there still */
    ASSERT_EQ(PLB_ERR_ADDRESS, listen_at(&second, path_of("no/such/place"), 0));
    PASS();
}

TEST a_path_that_another_took_over_stays(void)
{
    end listener;
    plb_addr addr = path_of("a");
    ASSERT_EQ(PLB_OK, listen_at(&listener, addr, 0));
    ASSERT_EQ(0, unlink(addr.u.path));
    leave_a_stale_socket(&addr);
    drop(&listener);
    ASSERT_EQ(0, unlink(addr.u.path));
    PASS();
}

TEST a_full_backlog_of_a_path_is_waited_for(void)
{
    end listener, clients[8], server;
    plb_addr addr = path_of("a");
    int i, waiting = -1;
    ASSERT_EQ(PLB_OK, listen_at(&listener, addr, 1));
    for (i = 0; i < 8; i++) {
        plb_status status = connect_to(&clients[i], &addr);
        ASSERT(status == PLB_OK || status == PLB_AGAIN);
        if (status == PLB_AGAIN)
            waiting = i;
    }
    ASSERT_EQ(7, waiting);
    plb_posix_step(px, 30);
    ASSERT_EQ(0, clients[7].connects);
    for (i = 0; i < 8; i++)
        ASSERT_EQ(PLB_OK, accept_wait(&listener, &server));
    ASSERT(reaches(&clients[7].connects, 1));
    ASSERT_EQ(PLB_OK, clients[7].connected);
    ASSERT_EQ(PLB_AGAIN, read_byte(&clients[7]));
    PASS();
}

TEST a_waiting_connection_hears_that_the_listener_has_gone(void)
{
    end listener, clients[8];
    plb_addr addr = path_of("a");
    int i;
    ASSERT_EQ(PLB_OK, listen_at(&listener, addr, 1));
    for (i = 0; i < 8; i++)
        connect_to(&clients[i], &addr);
    drop(&clients[6]); /* while it waits */
    drop(&listener);
    ASSERT(reaches(&clients[7].connects, 1));
    ASSERT_EQ(PLB_ERR_REFUSED, clients[7].connected);
    ASSERT_EQ(0, clients[6].connects);
    PASS();
}

/* ==== TASKS AND LOOPS ============================================================================================= */

typedef struct chore {
    plb_task task;
    unsigned polls;
    uint32_t delay_ms;
    bool wakes, stops, raises;
    struct chore *adds, *removes;
} chore;

static uint32_t poll_chore(void *user)
{
    chore *c = (chore *)user;
    __atomic_add_fetch(&c->polls, 1, __ATOMIC_SEQ_CST);
    if (c->wakes)
        io->wake(io->self);
    if (c->stops)
        plb_posix_stop(px);
    if (c->raises)
        raise(SIGALRM);
    if (c->adds != NULL)
        plb_posix_add(px, &c->adds->task);
    if (c->removes != NULL)
        plb_posix_remove(px, &c->removes->task);
    c->adds = c->removes = NULL;
    c->wakes = c->raises = false;
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
    ASSERT_EQ(-1, plb_posix_timeout(px));
    plb_posix_add(px, &c.task);
    ASSERT_EQ(0, plb_posix_timeout(px));
    plb_posix_step(px, PLB_FOREVER);
    ASSERT_EQ_FMT(1u, c.polls, "%u");
    ASSERT(plb_posix_timeout(px) > 0 && plb_posix_timeout(px) <= 50);
    plb_posix_step(px, PLB_FOREVER);
    ASSERT(now_ms() - before >= 49 && now_ms() - before < 5000);
    ASSERT_EQ_FMT(2u, c.polls, "%u");
    plb_posix_remove(px, &c.task);
    plb_posix_remove(px, &c.task);
    plb_posix_step(px, 0);
    ASSERT_EQ_FMT(2u, c.polls, "%u");
    PASS();
}

TEST tasks_may_add_and_remove_tasks(void)
{
    chore a, b, c;
    new_chore(&a, PLB_FOREVER);
    new_chore(&b, PLB_FOREVER);
    new_chore(&c, PLB_FOREVER);
    plb_posix_add(px, &a.task);
    plb_posix_add(px, &b.task);
    a.removes = &b;
    a.adds = &c;
    plb_posix_step(px, 0);
    ASSERT_EQ_FMT(0u, b.polls, "%u");
    plb_posix_step(px, PLB_FOREVER); /* adding woke */
    ASSERT(c.polls > 0);
    a.removes = &a;
    plb_posix_step(px, 0);
    plb_posix_step(px, 0);
    ASSERT_EQ_FMT(3u, a.polls, "%u");
    PASS();
}

/* How many wakes wait in the descriptor that carries them. */
static unsigned wakes_sent(void)
{
#ifdef PLB__PX_EPOLL
    uint64_t count = 0;
    return read(px->event_fd, &count, sizeof count) > 0 ? (unsigned)count : 0;
#else
    char bytes[16];
    ssize_t count = read(px->pipe_fds[0], bytes, sizeof bytes);
    return count > 0 ? (unsigned)count : 0;
#endif
}

TEST a_wake_from_the_step_itself_costs_no_system_call(void)
{
    chore c;
    end listener, client;
    plb_addr addr = listen_somewhere(&listener);
    new_chore(&c, PLB_FOREVER);
    plb_posix_add(px, &c.task);
    c.wakes = true;
    plb_posix_step(px, 0);
    ASSERT_EQ(0, wakes_sent());
    ASSERT_EQ(0, plb_posix_timeout(px)); /* tasks polled before it are to be polled again */
    plb_posix_step(px, PLB_FOREVER);
    ASSERT_EQ(-1, plb_posix_timeout(px));
    ASSERT_EQ(PLB_AGAIN, connect_to(&client, &addr));
    client.wake = true;
    ASSERT(reaches(&client.connects, 1));
    ASSERT_EQ(0, wakes_sent());
    ASSERT_EQ(-1, plb_posix_timeout(px)); /* tasks were polled after it */
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

TEST a_loop_of_ones_own_waits_for_descriptors_and_time(void)
{
    end listener, client, server;
    plb_addr addr = listen_somewhere(&listener);
    chore c;
    int turns;
    new_chore(&c, 40);
    plb_posix_add(px, &c.task);
    ASSERT_EQ(PLB_AGAIN, accept_on(&listener, &server));
    ASSERT_EQ(PLB_AGAIN, connect_to(&client, &addr));
    for (turns = 0; turns < 100 && (client.connects == 0 || listener.accepts == 0 || c.polls < 5); turns++) {
        struct pollfd fds[16];
        size_t count = plb_posix_fill(px, fds, 16);
        ASSERT(count >= 1 && count <= 16);
        ASSERT_EQ(count, plb_posix_fill(px, fds, 0));
        if (plb_posix_fd(px) >= 0) {
            ASSERT_EQ_FMT((size_t)1, count, "%zu");
            ASSERT_EQ(plb_posix_fd(px), fds[0].fd);
        }
        poll(fds, (nfds_t)count, plb_posix_timeout(px));
        plb_posix_step(px, 0);
    }
    ASSERT(turns < 20); /* it waited, and did not run in circles */
    ASSERT_EQ(PLB_OK, accept_on(&listener, &server));
    plb_posix_remove(px, &c.task);
    PASS();
}

TEST a_destroyed_port_closes_its_streams(void)
{
    end listener, client, server;
    plb_addr addr = listen_somewhere(&listener);
    int fd;
    char byte;
    ASSERT(connect_pair(&listener, &addr, &client, &server));
    fd = dup(client.stream->fd);
    drop(&server);
    plb_posix_destroy(px);
    ASSERT_EQ(0, recv(fd, &byte, 1, 0));
    close(fd);
    ASSERT_EQ(PLB_OK, plb_posix_create(NULL, &px));
    plb_posix_destroy(NULL);
    PASS();
}

/* ==== SIGNALS ===================================================================================================== */

static volatile sig_atomic_t signals;

static void on_alarm(int number)
{
    (void)number;
    signals++;
    plb_posix_stop(px);
}

static void catch_alarms(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_alarm;
    sigaction(SIGALRM, &action, NULL);
    signals = 0;
}

TEST a_signal_handler_may_stop_a_loop_that_waits(void)
{
    struct itimerval timer;
    memset(&timer, 0, sizeof timer);
    timer.it_value.tv_usec = 20000;
    catch_alarms();
    setitimer(ITIMER_REAL, &timer, NULL);
    plb_posix_run(px);
    ASSERT_EQ(1, signals);
    PASS();
}

TEST a_signal_handler_may_stop_a_loop_that_works(void)
{
    chore c;
    new_chore(&c, PLB_FOREVER);
    c.raises = true;
    plb_posix_add(px, &c.task);
    catch_alarms();
    plb_posix_run(px);
    ASSERT_EQ(1, signals);
    plb_posix_remove(px, &c.task);
    PASS();
}

TEST a_stop_that_came_first_is_kept_and_used_up(void)
{
    chore c;
    new_chore(&c, PLB_FOREVER);
    plb_posix_add(px, &c.task);
    plb_posix_stop(px);
    plb_posix_run(px);
    ASSERT_EQ_FMT(0u, c.polls, "%u");
    c.stops = true;
    plb_posix_run(px);
    ASSERT(c.polls >= 1);
    plb_posix_remove(px, &c.task);
    PASS();
}

TEST sigpipe_kills_nobody(void)
{
    end listener, client, server;
    plb_addr addr = listen_somewhere(&listener);
    plb_status status = PLB_OK;
    int i;
    signal(SIGPIPE, SIG_DFL);
    ASSERT(connect_pair(&listener, &addr, &client, &server));
    drop(&server);
    for (i = 0; i < STEPS && status != PLB_ERR_RESET; i++) {
        status = write_text(&client, "x");
        plb_posix_step(px, 1);
    }
    ASSERT_EQ(PLB_ERR_RESET, status);
    ASSERT_EQ(PLB_ERR_RESET, write_text(&client, "x"));
    PASS();
}

/* ==== THREADS ===================================================================================================== */

#ifdef PLB_NO_THREADS
TEST there_is_no_background_thread(void)
{
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, plb_posix_start_thread(px));
    plb_posix_join_thread(px);
    PASS();
}
#else
static bool no_threads; /* the system has none to give */

static int test_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *), void *user)
{
    return no_threads ? EAGAIN : pthread_create(thread, attr, fn, user);
}

/* Of a task that another thread polls. */
static bool polled_by_now(chore *c, unsigned polls)
{
    int i;
    for (i = 0; i < STEPS && __atomic_load_n(&c->polls, __ATOMIC_SEQ_CST) < polls; i++)
        poll(NULL, 0, 5);
    return i < STEPS;
}

TEST a_background_thread_polls_and_wakes_and_stops(void)
{
    chore c;
    unsigned polls;
    int i;
    new_chore(&c, PLB_FOREVER);
    plb_posix_add(px, &c.task);
    ASSERT_EQ(PLB_OK, plb_posix_start_thread(px));
    ASSERT_EQ(PLB_ERR_ARGUMENT, plb_posix_start_thread(px));
    ASSERT(polled_by_now(&c, 1));
    for (i = 0; i < 100; i++) {
        polls = __atomic_load_n(&c.polls, __ATOMIC_SEQ_CST);
        io->wake(io->self);
        ASSERT(polled_by_now(&c, polls + 1)); /* not one wake is lost */
    }
    plb_posix_stop(px);
    plb_posix_join_thread(px);
    polls = c.polls;
    io->wake(io->self);
    poll(NULL, 0, 20);
    ASSERT_EQ(polls, c.polls);
    ASSERT_EQ(PLB_OK, plb_posix_start_thread(px)); /* and again */
    ASSERT(polled_by_now(&c, polls + 1));
    plb_posix_destroy(px); /* ends it too */
    ASSERT_EQ(PLB_OK, plb_posix_create(NULL, &px));
    no_threads = true;
    ASSERT_EQ(PLB_ERR_LIMIT, plb_posix_start_thread(px));
    no_threads = false;
    plb_posix_join_thread(px);
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
    pthread_mutex_t lock;
    pthread_cond_t changed;
    behaviour script;
    int error, system_error;
    unsigned asked, hung, ended;
} fake = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, ANSWER, 0, 0, 0, 0, 0};

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
    pthread_mutex_lock(&fake.lock);
    if (service != NULL || hints->ai_socktype != SOCK_STREAM || hints->ai_family != AF_UNSPEC)
        abort();
    fake.asked++;
    script = fake.script;
    if (script == HANG) {
        fake.hung++;
        while (fake.script == HANG)
            pthread_cond_wait(&fake.changed, &fake.lock);
    }
    if (script == FAIL_WITH) {
        errno = fake.system_error;
        error = fake.error;
    }
    fake.ended++;
    pthread_mutex_unlock(&fake.lock);
    return script == ANSWER || script == HANG ? fake_answer(out) : error;
}

static void set_script(behaviour script, int error, int system_error)
{
    pthread_mutex_lock(&fake.lock);
    fake.script = script;
    fake.error = error;
    fake.system_error = system_error;
    pthread_cond_broadcast(&fake.changed);
    pthread_mutex_unlock(&fake.lock);
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
    const plb_names *names = plb_posix_port(px).names;
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
    const plb_names *names = plb_posix_port(px).names;
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
    ASSERT_EQ(-1, plb_posix_timeout(px)); /* the deadline went with it */
    PASS();
}

TEST failures_of_names_have_names(void)
{
    static const struct {
        behaviour script;
        int error, system_error;
        plb_status status;
    } cases[] = {
        {FAIL_WITH, EAI_NONAME, 0, PLB_ERR_NAME},
        {FAIL_WITH, EAI_AGAIN, 0, PLB_ERR_NAME},
        {FAIL_WITH, EAI_FAIL, 0, PLB_ERR_NAME},
        {FAIL_WITH, EAI_MEMORY, 0, PLB_ERR_MEMORY},
        {FAIL_WITH, EAI_SYSTEM, EMFILE, PLB_ERR_LIMIT},
        {FAIL_WITH, EAI_SYSTEM, EIO, PLB_ERR_IO},
        {NOTHING, 0, 0, PLB_ERR_NAME},
    };
    size_t i;
    for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        answer a = {0};
        set_script(cases[i].script, cases[i].error, cases[i].system_error);
        ASSERT_EQ(PLB_AGAIN, ask(&a, "example.test", 5000));
        ASSERT(reaches(&a.count, 1));
        ASSERT_EQ(cases[i].status, a.status);
        ASSERT_EQ(0, a.addr_count);
    }
    set_script(ANSWER, 0, 0);
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
    pthread_mutex_lock(&fake.lock);
    count = *counter;
    pthread_mutex_unlock(&fake.lock);
    return count;
}

/* Waits for the helper thread, wherever it is. */
static bool fake_reaches(const unsigned *counter, unsigned number)
{
    int i;
    for (i = 0; i < STEPS && fake_count(counter) < number; i++)
        poll(NULL, 0, 5);
    return i < STEPS;
}

/* One hangs in getaddrinfo, one waits behind it, one is called off there, one is called off inside. */
TEST a_hanging_lookup_keeps_the_deadline(void)
{
    const plb_names *names = plb_posix_port(px).names;
    answer inside = {0}, behind = {0}, cancelled = {0}, later = {0};
    unsigned hung = fake_count(&fake.hung), ended;
    uint64_t before = now_ms();
    set_script(HANG, 0, 0);
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
    set_script(ANSWER, 0, 0);
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
    const plb_names *names = plb_posix_port(px).names;
    answer a = {0}, b = {0};
    unsigned hung = fake_count(&fake.hung);
    set_script(HANG, 0, 0);
    ASSERT_EQ(PLB_AGAIN, ask(&a, "a.test", 5000));
    ASSERT(fake_reaches(&fake.hung, hung + 1));
    names->cancel(names->self, a.query);
    set_script(ANSWER, 0, 0);
    ASSERT_EQ(PLB_AGAIN, ask(&b, "b.test", 5000));
    ASSERT(reaches(&b.count, 1));
    ASSERT_EQ(0, a.count);
    PASS();
}

TEST a_port_is_destroyed_while_a_lookup_hangs(void)
{
    answer inside = {0}, behind = {0};
    unsigned hung = fake_count(&fake.hung), ended = fake_count(&fake.ended);
    set_script(HANG, 0, 0);
    ASSERT_EQ(PLB_AGAIN, ask(&inside, "a.test", 5000));
    ASSERT_EQ(PLB_AGAIN, ask(&behind, "b.test", 5000));
    ASSERT(fake_reaches(&fake.hung, hung + 1));
    plb_posix_destroy(px);
    ASSERT_EQ(PLB_OK, plb_posix_create(NULL, &px));
    set_script(ANSWER, 0, 0);
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
    end listener, path, clients[10], server, sockets[4];
    plb_addr addr = addr_of("127.0.0.1:1"), unix_addr = path_of("m");
    plb_stream_info info;
    answer a = {0};
    plb_status status;
    int i;
    addr.port = 0;
    if (listen_at(&listener, addr, 0) != PLB_OK)
        return listener.stream == NULL;
    if (io->info(io->self, listener.stream, &info) != PLB_OK)
        return false;
    if (listen_at(&path, unix_addr, 1) != PLB_OK)
        return path.stream == NULL;
    for (i = 0; i < 10; i++) {
        status = connect_to(&clients[i], i < 4 ? &unix_addr : &info.local);
        if (status != PLB_OK && status != PLB_AGAIN)
            return status == PLB_ERR_MEMORY && clients[i].stream == NULL;
    }
    for (i = 0; i < 6; i++) {
        if (accept_wait(&listener, &server) != PLB_OK) /* it only pauses */
            return false;
    }
    for (i = 0; i < 4; i++) {
        status = open_socket(&sockets[i], &addr, NULL);
        if (status != PLB_OK)
            return status == PLB_ERR_MEMORY && sockets[i].stream == NULL;
    }
    status = ask(&a, "a.test", 5000);
    if (status != PLB_AGAIN)
        return status == PLB_ERR_MEMORY;
    return reaches(&a.count, 1) && (a.status == PLB_OK || a.status == PLB_ERR_MEMORY);
}

TEST every_allocation_may_fail(void)
{
    plb_posix *before = px;
    plb_posix_desc desc;
    budget b;
    size_t n;
    bool survived = true;
    for (n = 1; n < 200 && survived; n++) {
        memset(&b, 0, sizeof b);
        b.fail_at = n;
        desc.allocator.alloc = budget_alloc;
        desc.allocator.dealloc = budget_dealloc;
        desc.allocator.user = &b;
        if (plb_posix_create(&desc, &px) == PLB_OK) {
            io = plb_posix_port(px).io;
            dgram = plb_posix_port(px).dgram;
            survived = run_through();
            plb_posix_destroy(px);
        }
        survived = survived && b.in_use == 0;
        if (b.allocations < n)
            break; /* nothing failed any more */
    }
    px = before;
    ASSERT(survived);
    ASSERT(n > 20 && n < 200);
    PASS();
}

/* Asked for, and not answered yet: one that somebody may work at, and one that nobody need work at. */
TEST a_destroyed_port_leaves_no_question_behind(void)
{
    plb_posix *before = px;
    plb_posix_desc desc;
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
    ASSERT_EQ(PLB_OK, plb_posix_create(&desc, &px));
    ASSERT_EQ(PLB_AGAIN, ask(&a, "a.test", 5000));
    ASSERT_EQ(PLB_AGAIN, ask(&too_long, host, 5000));
    plb_posix_destroy(px);
    px = before;
    ASSERT_EQ(0, a.count + too_long.count);
    ASSERT_EQ(0, b.in_use);
    PASS();
}

/* ==== SUITES ====================================================================================================== */

SUITE(descriptors)
{
    SET_SETUP(set_up, NULL);
    SET_TEARDOWN(tear_down, NULL);
    RUN_TEST(without_descriptors_accept_pauses_and_nothing_spins);
    RUN_TEST(accept_resumes_when_a_stream_closes);
    RUN_TEST(a_paused_listener_can_be_closed);
    RUN_TEST(without_descriptors_connect_names_the_limit);
    RUN_TEST(without_descriptors_there_is_no_port);
    RUN_TEST(sockets_are_non_blocking_private_and_prompt);
    RUN_TEST(a_peer_may_speak_first_at_once);
#ifdef TCP_QUICKACK
    RUN_TEST(a_peer_that_is_only_probed_hears_of_it_once);
#endif
    RUN_TEST(events_of_a_socket_that_outlives_its_stream_reach_nobody);
    RUN_TEST(a_broken_stream_that_nobody_asks_about_does_not_spin);
#ifdef PLB__PX_EPOLL
    RUN_TEST(a_short_read_saves_the_call_that_would_find_nothing);
#endif
    RUN_TEST(addresses_that_are_not_ours_are_named);
    RUN_TEST(an_ipv6_listener_leaves_ipv4_alone);
    RUN_TEST(listeners_may_share_a_port_when_all_agree);
}

SUITE(datagrams)
{
    SET_SETUP(set_up, NULL);
    SET_TEARDOWN(tear_down, NULL);
    RUN_TEST(what_the_system_says_to_a_datagram_has_a_name);
    RUN_TEST(what_passes_by_itself_is_not_told);
    RUN_TEST(a_datagram_from_before_the_remote_was_known_is_dropped);
    RUN_TEST(places_that_no_datagram_gets_to_are_named);
    RUN_TEST(an_ipv6_socket_leaves_ipv4_alone);
    RUN_TEST(without_descriptors_open_names_the_limit);
    RUN_TEST(a_refusal_leaves_nothing_behind);
    RUN_TEST(a_destroyed_port_closes_its_sockets);
}

SUITE(unix_paths)
{
    SET_SETUP(set_up, NULL);
    SET_TEARDOWN(tear_down, NULL);
    RUN_TEST(a_stale_path_is_replaced_and_taken_away_at_the_end);
    RUN_TEST(a_path_in_use_and_a_file_are_left_alone);
    RUN_TEST(a_path_that_another_took_over_stays);
    RUN_TEST(a_full_backlog_of_a_path_is_waited_for);
    RUN_TEST(a_waiting_connection_hears_that_the_listener_has_gone);
}

SUITE(loops)
{
    SET_SETUP(set_up, NULL);
    SET_TEARDOWN(tear_down, NULL);
    RUN_TEST(a_task_is_polled_at_once_then_when_its_delay_is_over);
    RUN_TEST(tasks_may_add_and_remove_tasks);
    RUN_TEST(a_wake_from_the_step_itself_costs_no_system_call);
    RUN_TEST(wakes_from_outside_are_sent_once);
    RUN_TEST(a_loop_of_ones_own_waits_for_descriptors_and_time);
    RUN_TEST(a_destroyed_port_closes_its_streams);
    RUN_TEST(a_signal_handler_may_stop_a_loop_that_waits);
    RUN_TEST(a_signal_handler_may_stop_a_loop_that_works);
    RUN_TEST(a_stop_that_came_first_is_kept_and_used_up);
    RUN_TEST(sigpipe_kills_nobody);
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
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(descriptors);
    RUN_SUITE(datagrams);
    RUN_SUITE(unix_paths);
    RUN_SUITE(loops);
    RUN_SUITE(threads);
    RUN_SUITE(names);
    GREATEST_MAIN_END();
}
