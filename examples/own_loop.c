/* A program with a poll loop of its own embeds the balancer: it waits for its own descriptors and the port's together.
   Here its own descriptor is standard input: a line typed picks a backend, the end of input ends the program.

       printf 'one\ntwo\n' | build/own_loop 127.0.0.1:9001 127.0.0.1:9002

   Not for Windows, where a wait for sockets takes nothing else, standard input for one; plb_win32_fill is there for a
   loop over sockets. */
#define _GNU_SOURCE
#define PINGORA_LB_IMPLEMENTATION
#include "../pingora_lb.h"
#define PLB_POSIX_IMPLEMENTATION
#include "../ports/plb_posix.h"

#include <poll.h>
#include <stdio.h>
#include <unistd.h>

enum { DESCRIPTORS_MAX = 64 };

static void log_line(void *user, plb_log_level level, const char *line)
{
    (void)user, (void)level;
    fprintf(stderr, "%s\n", line);
}

/* Reads what is there, and picks a backend for each line. False: the input has ended. */
static bool serve_input(plb_balancer *lb)
{
    char bytes[512];
    ssize_t count = read(STDIN_FILENO, bytes, sizeof bytes);
    for (ssize_t i = 0; i < count; i++) {
        plb_addr addr;
        char text[PLB_ADDR_TEXT_MAX];
        plb_status status;
        if (bytes[i] != '\n')
            continue;
        status = plb_select(lb, NULL, 0, 0, &addr);
        if (status == PLB_OK) {
            plb_addr_format(&addr, text, sizeof text);
            puts(text);
        } else {
            puts(plb_status_text(status));
        }
    }
    return count > 0;
}

static void run(plb_posix *px, plb_balancer *lb)
{
    bool open = true;
    while (open) {
        struct pollfd fds[DESCRIPTORS_MAX] = {{.fd = STDIN_FILENO, .events = POLLIN}};
        size_t count = 1 + plb_posix_fill(px, fds + 1, DESCRIPTORS_MAX - 1);
        if (count > DESCRIPTORS_MAX)
            count = DESCRIPTORS_MAX;
        poll(fds, (nfds_t)count, plb_posix_timeout(px));
        plb_posix_step(px, 0); /* the port's callbacks, then the balancer's poll */
        if (fds[0].revents != 0)
            open = serve_input(lb);
    }
}

int main(int argc, char **argv)
{
    plb_static_desc list = {.addresses = (const char *const *)argv + 1, .address_count = (size_t)argc - 1};
    plb_balancer_desc desc = {
        .discovery = plb_static(&list), .check = plb_tcp_check(NULL), .check_every_ms = 1000, .log = log_line};
    plb_posix *px;
    plb_balancer *lb;
    if (argc < 2) {
        fprintf(stderr, "usage: own_loop ADDRESS...\n");
        return 2;
    }
    if (plb_posix_create(NULL, &px) != PLB_OK)
        return 1;
    desc.port = plb_posix_port(px);
    if (plb_create(&desc, &lb) != PLB_OK) { /* the log said why */
        plb_posix_destroy(px);
        return 2;
    }
    plb_posix_add(px, plb_balancer_task(lb));
    run(px, lb);
    plb_posix_remove(px, plb_balancer_task(lb));
    plb_destroy(lb);
    plb_posix_destroy(px);
    return 0;
}
