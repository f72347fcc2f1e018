/* The POSIX port under test: the fixture that tests/io_conformance.c asks for. PLB_POSIX_POLL: its other back end. */
#define _GNU_SOURCE
#include "../pingora_lb.h"
#define PLB_POSIX_IMPLEMENTATION
#include "../ports/plb_posix.h"
#include "io_fixture.h"

#include <stdio.h>
#include <sys/resource.h>

#define FILLERS 4

typedef struct posix_fixture {
    io_fixture base;
    plb_posix *px;
    char directory[32]; /* of the Unix paths */
    unsigned paths;
    int refusing;            /* bound, and nobody listens */
    int silent[1 + FILLERS]; /* a listener that never accepts, and what fills its backlog */
    pthread_t waker;
    bool has_waker;
} posix_fixture;

static void step(void *self, uint32_t max_ms)
{
    plb_posix_step(((posix_fixture *)self)->px, max_ms);
}

/* Binds a port of the loopback that the system chooses; -1 where there is no such family. */
static int bind_loopback(int family, int flags, struct sockaddr_storage *name, socklen_t *size)
{
    int fd = socket(family, SOCK_STREAM | flags, 0);
    memset(name, 0, sizeof *name);
    name->ss_family = (sa_family_t)family;
    *size = family == AF_INET6 ? (socklen_t)sizeof(struct sockaddr_in6) : (socklen_t)sizeof(struct sockaddr_in);
    if (family == AF_INET6)
        ((struct sockaddr_in6 *)name)->sin6_addr = in6addr_loopback;
    else
        ((struct sockaddr_in *)name)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || bind(fd, (struct sockaddr *)name, *size) != 0 ||
        getsockname(fd, (struct sockaddr *)name, size) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static void ipv4_addr(plb_addr *out, const struct sockaddr_storage *name)
{
    plb_addr_parse(out, "127.0.0.1:1", PLB_ZSTRING);
    out->port = name == NULL ? 0 : ntohs(((const struct sockaddr_in *)name)->sin_port);
}

static bool listen_addr(void *self, plb_family family, plb_addr *out)
{
    posix_fixture *fixture = (posix_fixture *)self;
    struct sockaddr_storage name;
    socklen_t size;
    char text[64];
    int fd;
    switch (family) {
    case PLB_FAMILY_IPV4:
        ipv4_addr(out, NULL);
        return true;
    case PLB_FAMILY_IPV6:
        fd = bind_loopback(AF_INET6, 0, &name, &size);
        if (fd < 0)
            return false;
        close(fd);
        plb_addr_parse(out, "[::1]:1", PLB_ZSTRING);
        out->port = 0;
        return true;
    default:
        snprintf(text, sizeof text, "unix:%s/%u", fixture->directory, ++fixture->paths);
        return plb_addr_parse(out, text, PLB_ZSTRING) == PLB_OK;
    }
}

static void refused_addr(void *self, plb_addr *out)
{
    posix_fixture *fixture = (posix_fixture *)self;
    struct sockaddr_storage name;
    socklen_t size;
    fixture->refusing = bind_loopback(AF_INET, 0, &name, &size);
    ipv4_addr(out, &name);
}

/* Linux drops what asks for a connection while the backlog is full. */
static bool silent_addr(void *self, plb_addr *out)
{
#ifdef __linux__
    posix_fixture *fixture = (posix_fixture *)self;
    struct sockaddr_storage name;
    socklen_t size;
    int i;
    fixture->silent[0] = bind_loopback(AF_INET, 0, &name, &size);
    if (fixture->silent[0] < 0 || listen(fixture->silent[0], 0) != 0)
        return false;
    for (i = 1; i <= FILLERS; i++) {
        fixture->silent[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        if (connect(fixture->silent[i], (struct sockaddr *)&name, size) != 0 && errno != EINPROGRESS)
            return false;
    }
    ipv4_addr(out, &name);
    return true;
#else
    (void)self;
    (void)out;
    return false;
#endif
}

static void *wake_main(void *user)
{
    const plb_io *io = ((posix_fixture *)user)->base.port.io;
    poll(NULL, 0, 20);
    io->wake(io->self);
    return NULL;
}

static void join_waker(posix_fixture *fixture)
{
    if (fixture->has_waker)
        pthread_join(fixture->waker, NULL);
    fixture->has_waker = false;
}

static void wake_soon(void *self)
{
    posix_fixture *fixture = (posix_fixture *)self;
    join_waker(fixture);
    fixture->has_waker = pthread_create(&fixture->waker, NULL, wake_main, fixture) == 0;
}

io_fixture *io_fixture_open(void)
{
    posix_fixture *fixture = (posix_fixture *)calloc(1, sizeof *fixture);
    struct rlimit limit;
    int i;
    if (fixture == NULL)
        return NULL;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max < 4096 ? limit.rlim_max : 4096;
    setrlimit(RLIMIT_NOFILE, &limit);
    strcpy(fixture->directory, "/tmp/plb_posix_XXXXXX");
    fixture->refusing = -1;
    for (i = 0; i <= FILLERS; i++)
        fixture->silent[i] = -1;
    if (mkdtemp(fixture->directory) == NULL || plb_posix_create(NULL, &fixture->px) != PLB_OK) {
        free(fixture);
        return NULL;
    }
    fixture->base.name = plb_posix_fd(fixture->px) >= 0 ? "posix (epoll)" : "posix (poll)";
    fixture->base.port = plb_posix_port(fixture->px);
    fixture->base.self = fixture;
    fixture->base.step = step;
    fixture->base.listen_addr = listen_addr;
    fixture->base.refused_addr = refused_addr;
    fixture->base.silent_addr = silent_addr;
    fixture->base.tells_refusal = true;
    fixture->base.wake_soon = wake_soon;
    return &fixture->base;
}

/* Whoever listened on a path has taken it away again, or the directory cannot go. */
void io_fixture_close(io_fixture *base)
{
    posix_fixture *fixture = (posix_fixture *)base->self;
    int i;
    join_waker(fixture);
    plb_posix_destroy(fixture->px);
    if (rmdir(fixture->directory) != 0)
        abort();
    close(fixture->refusing);
    for (i = 0; i <= FILLERS; i++)
        close(fixture->silent[i]);
    free(fixture);
}
