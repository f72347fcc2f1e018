/* balancer.h - pingora_lb.h as a small system has it. All files of a program must see the same defines. */
#ifndef BALANCER_H
#define BALANCER_H

#define PLB_NO_THREADS         /* one main loop does everything */
#define PLB_EXCHANGE_SIZE 1024 /* bytes through which probes read; answers' heads are no longer than that */
#define PLB_CRC_TABLES    1    /* KiB of flash, for Ketama */

/* There is no malloc: who forgets plb_balancer_desc.allocator hears of it at once (PLB_ERR_MEMORY). */
#define PLB_MALLOC(size) ((void)(size), NULL)
#define PLB_FREE(ptr)    ((void)(ptr))

#include "../../pingora_lb.h"

#endif
