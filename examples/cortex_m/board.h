/* board.h - what the programs here use of the board: a line of text to the host, the end of the program, the bounds of
   memory. On hardware of your own, board_print is a UART's, and the rest of this file is not needed. */
#ifndef BOARD_H
#define BOARD_H

#include <stdint.h>

/* A request to the debugger or to QEMU by Arm's semihosting: its number, and a block of words. Returns its result. */
int board_host(int operation, const void *block);

/* Writes a NUL-terminated text to the host's terminal. */
void board_print(const char *text);

/* Ends the program, and QEMU with it, with this exit status. */
void board_exit(int status);

extern uint32_t board_stack[], board_stack_end[]; /* link.ld: from its bottom to its top */

#endif
