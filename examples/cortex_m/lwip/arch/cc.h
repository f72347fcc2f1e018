/* What lwIP asks of the compiler and the board: gcc for Arm, newlib's headers. */
#ifndef LWIP_ARCH_CC_H
#define LWIP_ARCH_CC_H

#include "board.h"

#define LWIP_PLATFORM_DIAG(arguments) ((void)0)
#define LWIP_PLATFORM_ASSERT(words)   (board_print(words), board_exit(4))

/* Source ports, and the first sequence numbers: of the board's random number generator. */
uint32_t board_random(void);
#define LWIP_RAND() board_random()

#endif
