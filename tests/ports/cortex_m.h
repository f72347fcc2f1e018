/* cortex_m.h - what the test programs for the microcontroller share: lines of text, rules, and how deep a call gets in
   the stack. Test code. */
#ifndef CORTEX_M_H
#define CORTEX_M_H

#include "balancer.h"
#include "board.h"

/* ---- lines ---- */

static inline void say_number(uint32_t number)
{
    char digits[11];
    size_t at = sizeof digits;
    digits[--at] = '\0';
    do
        digits[--at] = (char)('0' + number % 10);
    while ((number /= 10) > 0);
    board_print(digits + at);
}

static inline void say_figure(const char *what, uint32_t number)
{
    board_print(what);
    board_print(": ");
    say_number(number);
    board_print("\n");
}

/* ---- rules: "ok    RULE" or "FAIL  RULE" each, and a line that counts them ---- */

extern uint32_t rules_kept, rules_broken;

static inline void rule(const char *what, bool holds)
{
    holds ? rules_kept++ : rules_broken++;
    board_print(holds ? "ok    " : "FAIL  ");
    board_print(what);
    board_print("\n");
}

/* main's last words, and its status. */
static inline int rules_report(void)
{
    board_print("Pass: ");
    say_number(rules_kept);
    board_print(", fail: ");
    say_number(rules_broken);
    board_print(", skip: 0.\n");
    return rules_broken > 0;
}

/* ---- an address, a backend ---- */

static inline plb_addr addr_of(const char *text)
{
    plb_addr addr;
    if (plb_addr_parse(&addr, text, PLB_ZSTRING) != PLB_OK)
        rule(text, false);
    return addr;
}

/* Number n of many: 10.0.x.y:80. */
static inline plb_backend backend_of(uint32_t n, uint32_t weight)
{
    plb_backend backend;
    memset(&backend, 0, sizeof backend);
    backend.addr.family = PLB_FAMILY_IPV4;
    backend.addr.port = 80;
    backend.addr.u.v4[0] = 10;
    backend.addr.u.v4[2] = (uint8_t)(n >> 8);
    backend.addr.u.v4[3] = (uint8_t)n;
    backend.weight = weight;
    return backend;
}

#endif
