/* What tests/io_conformance.c asks of a port under test: a plb_port, a way to step it, and addresses to try. */
#ifndef IO_FIXTURE_H
#define IO_FIXTURE_H
#include "../pingora_lb.h"

typedef struct io_fixture {
    const char *name;
    plb_port port;
    void *self;
    /* Lends the port the thread: waits for at most max_ms (virtual time in a simulator) and makes the callbacks. */
    void (*step)(void *self, uint32_t max_ms);
    /* Where to listen: an address of the family with port 0 (or a fresh Unix path). False: the port lacks the
       family. */
    bool (*listen_addr)(void *self, plb_family family, plb_addr *out);
    /* An address that refuses connections. */
    void (*refused_addr)(void *self, plb_addr *out);
    /* An address where a connection neither succeeds nor fails. False: none can be had here. */
    bool (*silent_addr)(void *self, plb_addr *out);
    /* Both sides take part before a connection is made: PLB_EVENT_CONNECT comes after accept, as with TLS. */
    bool handshakes;
    /* What its peer may see of an aborted stream is an end: the transport knows no reset, or the system loses it. */
    bool aborts_quietly;
    /* How many streams the port was given, both ends counted; 0: as many as the system allows. */
    uint32_t streams;
    /* How long to wait, in milliseconds, for bytes that may be on their way still; 0: 5. */
    uint32_t settle_ms;
    /* Datagrams, where port.dgram is not NULL: at least four wait for receive on a socket, and none gets lost between
       two sockets of listen_addr's addresses. */
    uint32_t datagram_sockets; /* as `streams`, of sockets */
    bool tells_refusal;        /* a socket with a remote address hears that nobody listens there */
    /* Calls port.io->wake from another thread (or as if from one), soon but not before this call returns. */
    void (*wake_soon)(void *self);
} io_fixture;

/* Provided by the port's fixture file; NULL on failure. A fresh port each time. */
io_fixture *io_fixture_open(void);
void io_fixture_close(io_fixture *fixture);
#endif
