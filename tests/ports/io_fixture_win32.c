/* The Windows port under test: the fixture that tests/io_conformance.c asks for. */
#include "../../pingora_lb.h"
#define PLB_WIN32_IMPLEMENTATION
#include "../../ports/plb_win32.h"
#include "../io_fixture.h"

#include <stdio.h>

#define FILLERS 4

typedef struct win32_fixture {
    io_fixture base;
    plb_win32 *wx;
    unsigned paths;
    SOCKET refusing;            /* bound, and nobody listens */
    SOCKET silent[1 + FILLERS]; /* a listener that never accepts, and what fills its backlog */
    HANDLE waker;
} win32_fixture;

static void step(void *self, uint32_t max_ms)
{
    plb_win32_step(((win32_fixture *)self)->wx, max_ms);
}

/* Binds a port of the loopback that the system chooses; INVALID_SOCKET where there is no such family. */
static SOCKET bind_loopback(int family, plb_addr *out)
{
    SOCKET fd = socket(family, SOCK_STREAM, 0);
    struct sockaddr_in6 name;
    int size = family == AF_INET6 ? (int)sizeof name : (int)sizeof(struct sockaddr_in);
    memset(&name, 0, sizeof name);
    name.sin6_family = (short)family;
    if (family == AF_INET6)
        name.sin6_addr.s6_addr[15] = 1;
    else
        ((struct sockaddr_in *)(void *)&name)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd == INVALID_SOCKET || bind(fd, (struct sockaddr *)&name, size) != 0 ||
        getsockname(fd, (struct sockaddr *)&name, &size) != 0) {
        closesocket(fd);
        return INVALID_SOCKET;
    }
    plb_addr_parse(out, family == AF_INET6 ? "[::1]:1" : "127.0.0.1:1", PLB_ZSTRING);
    out->port = ntohs(name.sin6_port);
    return fd;
}

static bool listen_addr(void *self, plb_family family, plb_addr *out)
{
    win32_fixture *fixture = (win32_fixture *)self;
    char text[64];
    SOCKET fd;
    if (family == PLB_FAMILY_UNIX) {
        fd = socket(AF_UNIX, SOCK_STREAM, 0);
        closesocket(fd);
        snprintf(text, sizeof text, "unix:plb_win32_%lu_%u", (unsigned long)GetCurrentProcessId(), ++fixture->paths);
        return fd != INVALID_SOCKET && plb_addr_parse(out, text, PLB_ZSTRING) == PLB_OK;
    }
    fd = bind_loopback(family == PLB_FAMILY_IPV6 ? AF_INET6 : AF_INET, out);
    closesocket(fd);
    out->port = 0;
    return fd != INVALID_SOCKET;
}

static void refused_addr(void *self, plb_addr *out)
{
    ((win32_fixture *)self)->refusing = bind_loopback(AF_INET, out);
}

static bool is_wine(void)
{
    HMODULE ntdll = GetModuleHandleA("ntdll.dll");
    return ntdll != NULL && GetProcAddress(ntdll, "wine_get_version") != NULL;
}

/* Wine's sockets are Linux's, which drops what asks for a connection while the backlog is full; Windows refuses. */
static bool silent_addr(void *self, plb_addr *out)
{
    win32_fixture *fixture = (win32_fixture *)self;
    u_long on = 1;
    plb_addr addr;
    struct sockaddr_in name;
    int i;
    if (!is_wine())
        return false;
    fixture->silent[0] = bind_loopback(AF_INET, &addr);
    if (fixture->silent[0] == INVALID_SOCKET || listen(fixture->silent[0], 0) != 0)
        return false;
    memset(&name, 0, sizeof name);
    name.sin_family = AF_INET;
    name.sin_port = htons(addr.port);
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (i = 1; i <= FILLERS; i++) {
        fixture->silent[i] = socket(AF_INET, SOCK_STREAM, 0);
        ioctlsocket(fixture->silent[i], (long)FIONBIO, &on);
        if (connect(fixture->silent[i], (struct sockaddr *)&name, sizeof name) != 0 &&
            WSAGetLastError() != WSAEWOULDBLOCK)
            return false;
    }
    *out = addr;
    return true;
}

static unsigned __stdcall wake_main(void *user)
{
    const plb_io *io = ((win32_fixture *)user)->base.port.io;
    Sleep(20);
    io->wake(io->self);
    return 0;
}

static void join_waker(win32_fixture *fixture)
{
    if (fixture->waker == NULL)
        return;
    WaitForSingleObject(fixture->waker, INFINITE);
    CloseHandle(fixture->waker);
    fixture->waker = NULL;
}

static void wake_soon(void *self)
{
    win32_fixture *fixture = (win32_fixture *)self;
    join_waker(fixture);
    fixture->waker = (HANDLE)_beginthreadex(NULL, 0, wake_main, fixture, 0, NULL);
}

io_fixture *io_fixture_open(void)
{
    win32_fixture *fixture = (win32_fixture *)calloc(1, sizeof *fixture);
    int i;
    if (fixture == NULL)
        return NULL;
    fixture->refusing = INVALID_SOCKET;
    for (i = 0; i <= FILLERS; i++)
        fixture->silent[i] = INVALID_SOCKET;
    if (plb_win32_create(NULL, &fixture->wx) != PLB_OK) {
        free(fixture);
        return NULL;
    }
    fixture->base.name = "win32";
    fixture->base.port = plb_win32_port(fixture->wx);
    fixture->base.self = fixture;
    fixture->base.step = step;
    fixture->base.listen_addr = listen_addr;
    fixture->base.refused_addr = refused_addr;
    fixture->base.silent_addr = silent_addr;
    /* Wine ends a connection in good order before it resets it, and keeps to itself that a datagram met nobody. */
    fixture->base.aborts_quietly = is_wine();
    fixture->base.tells_refusal = !is_wine();
    fixture->base.wake_soon = wake_soon;
    return &fixture->base;
}

void io_fixture_close(io_fixture *base)
{
    win32_fixture *fixture = (win32_fixture *)base->self;
    int i;
    join_waker(fixture);
    closesocket(fixture->refusing);
    for (i = 0; i <= FILLERS; i++)
        closesocket(fixture->silent[i]);
    plb_win32_destroy(fixture->wx); /* Winsock's last user here */
    free(fixture);
}
