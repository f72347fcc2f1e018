/* network.h - a network without hardware: a plb_port whose backends do what a script says, and whose clock goes on by a
   millisecond with each step. It stands where a product has ports/plb_lwip.h, and its main loop is the same. */
#ifndef NETWORK_H
#define NETWORK_H

#include "balancer.h"

typedef enum network_state {
    NETWORK_SERVES = 0,
    NETWORK_REFUSES, /* connections are refused */
    NETWORK_HANGS,   /* nothing comes of them */
    NETWORK_RESETS   /* they break as soon as something is asked */
} network_state;

#define NETWORK_GREETS 1u /* the answer comes without being asked for */
#define NETWORK_ENDS   2u /* the connection ends behind it */
#define NETWORK_AGAIN  4u /* what is asked after it is answered likewise */
#define NETWORK_FAST   8u /* connect knows its result at once */

/* One host, whatever its port. */
typedef struct network_host {
    const char *address;
    network_state state;
    const void *answer; /* what it sends once something was asked; NULL: nothing */
    size_t answer_size;
    unsigned flags;
    uint32_t connects; /* how often it was connected to */
    uint8_t ip[4];     /* private */
} network_host;

#define NETWORK_STREAMS 8

struct plb_stream {
    struct network *net;
    network_host *host; /* NULL: unused */
    plb_handler handler;
    size_t asked, answered; /* bytes */
    unsigned armed;         /* bit 1 << plb_event */
    bool connected;
};

typedef struct network {
    network_host *hosts;
    size_t host_count;
    uint32_t now_ms;

    plb_io io; /* private, like the rest */
    plb_clock clock;
    plb_stream streams[NETWORK_STREAMS];
} network;

/* The port of a network, whose hosts the program has set. The network must stay where it is. */
plb_port network_port(network *net);

/* A millisecond goes by: makes the callbacks that are due. The main loop calls it, then plb_poll. */
void network_step(network *net);

#endif
