/* Start-up of a Cortex-M (ARMv6-M, ARMv7-M): vectors, RAM as C wants it, faults that say where, semihosting. */
#include "board.h"

extern uint32_t board_data[], board_data_end[], board_bss[], board_bss_end[]; /* link.ld */
extern const uint32_t board_data_stored[];

void board_reset(void);
void board_fault(const uint32_t *frame);
int main(void);

int board_host(int operation, const void *block)
{
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = block;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

void board_print(const char *text)
{
    board_host(0x04, text); /* SYS_WRITE0 */
}

void board_exit(int status)
{
    const int block[2] = {0x20026, status}; /* ADP_Stopped_ApplicationExit */
    board_host(0x20, block);                /* SYS_EXIT_EXTENDED */
    for (;;) {                              /* no debugger is there */
    }
}

void board_reset(void)
{
    const uint32_t *from = board_data_stored;
    uint32_t *to;
    for (to = board_data; to < board_data_end; to++)
        *to = *from++;
    for (to = board_bss; to < board_bss_end; to++)
        *to = 0;
    board_exit(main());
}

/* The processor has stored r0 to r3, r12, lr, pc and psr in `frame`. */
void board_fault(const uint32_t *frame)
{
    static char text[] = "fault at ........, called from ........\n";
    int i;
    for (i = 0; i < 8; i++) {
        text[9 + i] = "0123456789abcdef"[frame[6] >> (28 - 4 * i) & 15];
        text[31 + i] = "0123456789abcdef"[frame[5] >> (28 - 4 * i) & 15];
    }
    board_print(text);
    board_exit(3);
}

/* Every exception but reset comes here: none is expected. */
__attribute__((naked)) static void exception(void)
{
    __asm__ volatile("mov r0, sp\n ldr r1, =board_fault\n bx r1\n .ltorg");
}

typedef void handler(void);
typedef struct vectors {
    uint32_t *stack;
    handler *handlers[15]; /* reset, NMI, HardFault and on to SysTick; add those of your device's interrupts */
} vectors;

__attribute__((section(".vectors"), used)) static const vectors table = {
    board_stack_end,
    {board_reset, exception, exception, exception, exception, exception, exception, exception, exception, exception,
     exception, exception, exception, exception, exception}};
