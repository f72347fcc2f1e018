/* A balancer on a microcontroller: three backends, an HTTP check of each every second, no heap, no thread. The network
   is a script here (network.h), so that it runs under QEMU and on any board with a debugger; a product has lwIP and
   ports/plb_lwip.h in its place, for which lwip/ has a configuration.

       make cortex_m          builds it for a Cortex-M3 and runs it under QEMU
       make cortex_m_stack    prints how deep each call of the library gets in its stack

   balancer.h has the defines of a small system; startup.c and link.ld are the board. */
#include "balancer.h"
#include "board.h"
#include "network.h"

static char memory[8 * 1024]; /* all that the balancer and its probes ever have */
static plb_arena arena;

static void log_line(void *user, plb_log_level level, const char *line)
{
    (void)user, (void)level;
    board_print(line);
    board_print("\n");
}

/* What a product does for each request it has: asks where to. */
static void pick_some(plb_balancer *lb)
{
    for (int i = 0; i < 6; i++) {
        plb_addr addr;
        char text[PLB_ADDR_TEXT_MAX] = "nowhere";
        if (plb_select(lb, NULL, 0, 0, &addr) == PLB_OK)
            plb_addr_format(&addr, text, sizeof text);
        board_print(i == 0 ? "  requests go to " : ", ");
        board_print(text);
    }
    board_print("\n");
}

/* The main loop: the port's step, then the balancer's. A product sleeps as long as plb_poll allows. */
static void run(network *net, plb_balancer *lb, uint32_t ms)
{
    while (ms-- > 0) {
        network_step(net);
        plb_poll(lb);
    }
    pick_some(lb);
}

static void print_memory(const plb_arena *used)
{
    char digits[] = "      ";
    size_t left = used->peak, at = sizeof digits - 1;
    do
        digits[--at] = (char)('0' + left % 10);
    while ((left /= 10) > 0);
    board_print("bytes of memory at most:");
    board_print(digits);
    board_print(used->used == 0 ? ", all given back\n" : ", some of it lost\n");
}

int main(void)
{
    static const char page[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    static network_host hosts[] = {{.address = "10.0.0.1:80", .answer = page, .answer_size = sizeof page - 1},
                                   {.address = "10.0.0.2:80", .answer = page, .answer_size = sizeof page - 1},
                                   {.address = "10.0.0.3:80", .answer = page, .answer_size = sizeof page - 1}};
    static network net = {.hosts = hosts, .host_count = 3};
    const char *addresses[] = {"10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"};
    plb_static_desc list = {.addresses = addresses, .address_count = 3};
    plb_balancer_desc desc = {.port = network_port(&net),
                              .allocator = plb_arena_allocator(&arena, memory, sizeof memory),
                              .discovery = plb_static(&list),
                              .strategy = plb_round_robin(),
                              .check = plb_http_check(NULL),
                              .check_every_ms = 1000,
                              .log = log_line};
    plb_balancer *lb;
    plb_status status = plb_create(&desc, &lb);
    if (status != PLB_OK) {
        board_print(plb_status_text(status));
        return 1;
    }
    run(&net, lb, 3000);
    hosts[1].state = NETWORK_REFUSES;
    run(&net, lb, 3000);
    hosts[2].state = NETWORK_HANGS;
    run(&net, lb, 3000);
    hosts[1].state = hosts[2].state = NETWORK_SERVES;
    run(&net, lb, 3000);
    plb_destroy(lb);
    print_memory(&arena);
    return 0;
}
