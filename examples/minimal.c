/* The smallest use of the library: two addresses, no port, no thread, no heap of its own. */
#define PINGORA_LB_IMPLEMENTATION
#include "../pingora_lb.h"
#include <stdio.h>

int main(void)
{
    const char *addresses[] = {"10.0.0.1:80", "10.0.0.2:80"};
    plb_static_desc list = {.addresses = addresses, .address_count = 2};
    plb_balancer_desc desc = {.discovery = plb_static(&list)};
    plb_balancer *lb;
    plb_status status = plb_create(&desc, &lb);
    if (status != PLB_OK) {
        fprintf(stderr, "%s\n", plb_status_text(status));
        return 1;
    }
    for (int i = 0; i < 4; i++) {
        plb_addr addr;
        char text[PLB_ADDR_TEXT_MAX];
        if (plb_select(lb, NULL, 0, 0, &addr) == PLB_OK) {
            plb_addr_format(&addr, text, sizeof text);
            printf("request %d goes to %s\n", i, text);
        }
        plb_poll(lb); /* what is due: checks, updates; here there is nothing */
    }
    plb_destroy(lb);
    return 0;
}
