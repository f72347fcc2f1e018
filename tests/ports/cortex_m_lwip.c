/* ports/plb_lwip.h compiles for a microcontroller, over the configuration of lwIP in examples/cortex_m/lwip. */
#include "balancer.h"
#define PLB_LWIP_IMPLEMENTATION
#include "../../ports/plb_lwip.h"

#if !NO_SYS || MEMP_NUM_TCP_PCB != 10
#error "another lwipopts.h than the example's was found"
#endif
