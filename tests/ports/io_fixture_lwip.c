/* The lwIP port under test: the fixture that tests/io_conformance.c asks for. Both ends of its connections are
   lwIP's. */
#include "../../pingora_lb.h"
#define PLB_LWIP_IMPLEMENTATION
#include "../../ports/plb_lwip.h"
#include "../io_fixture.h"
#include "lwip_netif.h"

#include <poll.h>
#include <pthread.h>
#include <stdio.h>

#define STREAMS 64
#define WAITING 64

typedef struct lwip_fixture {
    io_fixture base;
    plb_lwip lw;
    plb_lwip_stream streams[STREAMS + WAITING];
    pthread_t waker;
    bool has_waker;
} lwip_fixture;

static void step(void *self, uint32_t max_ms)
{
    plb_lwip_step(&((lwip_fixture *)self)->lw, max_ms);
}

static void address(plb_addr *out, const char *text, uint16_t port)
{
    if (plb_addr_parse(out, text, PLB_ZSTRING) != PLB_OK)
        abort();
    out->port = port;
}

static bool listen_addr(void *self, plb_family family, plb_addr *out)
{
    (void)self;
    if (family != PLB_FAMILY_IPV4 && family != PLB_FAMILY_IPV6)
        return false;
    address(out, family == PLB_FAMILY_IPV4 ? LWIP_NETIF_IPV4 ":1" : "[" LWIP_NETIF_IPV6 "]:1", 0);
    return true;
}

static void refused_addr(void *self, plb_addr *out)
{
    (void)self;
    address(out, LWIP_NETIF_IPV4 ":1", 1);
}

static bool silent_addr(void *self, plb_addr *out)
{
    (void)self;
    address(out, LWIP_NETIF_SILENT ":1", 80);
    return true;
}

static void *wake_main(void *user)
{
    const plb_io *io = ((lwip_fixture *)user)->base.port.io;
    poll(NULL, 0, 20);
    io->wake(io->self);
    return NULL;
}

static void join_waker(lwip_fixture *fixture)
{
    if (fixture->has_waker)
        pthread_join(fixture->waker, NULL);
    fixture->has_waker = false;
}

static void wake_soon(void *self)
{
    lwip_fixture *fixture = (lwip_fixture *)self;
    join_waker(fixture);
    fixture->has_waker = pthread_create(&fixture->waker, NULL, wake_main, fixture) == 0;
}

io_fixture *io_fixture_open(void)
{
    lwip_fixture *fixture = (lwip_fixture *)calloc(1, sizeof *fixture);
    plb_lwip_desc desc;
    if (fixture == NULL)
        return NULL;
    lwip_netif_start();
    memset(&desc, 0, sizeof desc);
    desc.streams = fixture->streams;
    desc.stream_count = STREAMS + WAITING;
    desc.waiting = WAITING;
    if (plb_lwip_init(&fixture->lw, &desc) != PLB_OK) {
        free(fixture);
        return NULL;
    }
    fixture->base.name = "lwip";
    fixture->base.port = plb_lwip_port(&fixture->lw);
    fixture->base.self = fixture;
    fixture->base.step = step;
    fixture->base.listen_addr = listen_addr;
    fixture->base.refused_addr = refused_addr;
    fixture->base.silent_addr = silent_addr;
    fixture->base.streams = STREAMS;
    fixture->base.settle_ms = 50;
    fixture->base.datagram_sockets = STREAMS;
    fixture->base.wake_soon = wake_soon;
    return &fixture->base;
}

void io_fixture_close(io_fixture *base)
{
    lwip_fixture *fixture;
    if (base == NULL)
        return;
    fixture = (lwip_fixture *)base->self;
    join_waker(fixture);
    plb_lwip_deinit(&fixture->lw);
    free(fixture);
}
