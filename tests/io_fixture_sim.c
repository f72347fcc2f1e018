/* The simulator as a port under test: the fixture that tests/io_conformance.c asks for. */
#include "../pingora_lb.h"
#define SIM_IMPLEMENTATION
#include "sim.h"
#include "io_fixture.h"

#define STREAMS 64

typedef struct sim_fixture {
    io_fixture base;
    sim *s;
    unsigned paths; /* Unix paths handed out */
} sim_fixture;

static void step(void *self, uint32_t max_ms)
{
    sim_step(((sim_fixture *)self)->s, max_ms);
}

static bool listen_addr(void *self, plb_family family, plb_addr *out)
{
    sim_fixture *fixture = (sim_fixture *)self;
    char path[32];
    if (family == PLB_FAMILY_UNIX) {
        snprintf(path, sizeof path, "unix:/sim/%u", ++fixture->paths);
        *out = sim_addr(path);
    } else {
        *out = sim_addr(family == PLB_FAMILY_IPV6 ? "[::1]:0" : "127.0.0.1:0");
    }
    return true;
}

static void refused_addr(void *self, plb_addr *out)
{
    *out = sim_addr("127.0.0.1:1");
    sim_host(((sim_fixture *)self)->s, out)->fault = SIM_REFUSE;
}

static bool silent_addr(void *self, plb_addr *out)
{
    *out = sim_addr("192.0.2.1:80");
    sim_host(((sim_fixture *)self)->s, out)->fault = SIM_HANG;
    return true;
}

static void wake_soon(void *self)
{
    sim_wake_in(((sim_fixture *)self)->s, 10);
}

io_fixture *io_fixture_open(void)
{
    sim_fixture *fixture = (sim_fixture *)calloc(1, sizeof *fixture);
    if (!fixture)
        return NULL;
    fixture->s = sim_create(1);
    fixture->s->max_streams = STREAMS;
    fixture->base.name = "sim";
    fixture->base.port = sim_port(fixture->s);
    fixture->base.self = fixture;
    fixture->base.step = step;
    fixture->base.listen_addr = listen_addr;
    fixture->base.refused_addr = refused_addr;
    fixture->base.silent_addr = silent_addr;
    fixture->base.streams = STREAMS;
    fixture->base.datagram_sockets = STREAMS;
    fixture->base.tells_refusal = true;
    fixture->base.wake_soon = wake_soon;
    return &fixture->base;
}

/* A suite that passes but leaves streams open has not passed. */
void io_fixture_close(io_fixture *fixture)
{
    if (sim_destroy(((sim_fixture *)fixture->self)->s) != 0)
        abort();
    free(fixture->self);
}
