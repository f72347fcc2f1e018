/* What health checks cost: the program that tests/bench/probe.sh (make bench-probe) runs and measures from outside.

     bench_probe                                       prints the kinds of checks there are
     bench_probe KIND run PORT BACKENDS EVERY SECONDS  probes 127.0.0.1 and the addresses after it, each every EVERY
                                                       milliseconds; prints the checks that were made, the backends that
                                                       are healthy and the longest plb_poll (processor and passed time)
     bench_probe KIND held BACKENDS                    probes a listener that leaves every probe in flight, and prints
                                                       the memory each takes, and what it leaves behind when it is over
     bench_probe kernel run PORT BACKENDS EVERY SECONDS  socket, connect and close alone, in batches as large as the
                                                       balancer's: what no program can save */
#define PINGORA_LB_IMPLEMENTATION
#define PLB_POSIX_IMPLEMENTATION
#include "../../ports/plb_posix.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

/* ==== KINDS OF CHECKS ============================================================================================= */

static plb_check tcp_check(void)
{
    return plb_tcp_check(NULL);
}

static plb_check http_check(void)
{
    return plb_http_check(NULL);
}

typedef struct check_kind {
    const char *name;
    plb_check (*make)(void);
    uint32_t held_backlog; /* connections that the kernel takes from a listener which leaves its probes in flight */
} check_kind;

static const check_kind kinds[] = {
    {"tcp", tcp_check, 1}, /* those that the backlog has no room for stay unconnected */
    {"http", http_check, 4096},
};

static const check_kind *find_kind(const char *name)
{
    size_t i;
    for (i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(kinds[i].name, name) == 0)
            return &kinds[i];
    return NULL;
}

/* ==== WHAT IS COUNTED ============================================================================================= */

static plb_posix *px;
static plb_balancer *lb;
static uint64_t starts, polls, polls_too_long, longest_cpu_us, longest_us, first_cpu_us;
static size_t bytes, most_bytes;
static bool first_checks_over;

static plb_check_ops counting_ops;
static plb_status (*start_probe)(void *state, void *probe, const plb_backend *target, plb_token token);

static plb_status counting_start(void *state, void *probe, const plb_backend *target, plb_token token)
{
    starts++;
    return start_probe(state, probe, target, token);
}

static plb_check counting(plb_check check)
{
    counting_ops = *check.ops;
    start_probe = counting_ops.start;
    counting_ops.start = counting_start;
    check.ops = &counting_ops;
    return check;
}

static void *counting_alloc(void *user, size_t size)
{
    (void)user;
    bytes += size;
    if (bytes > most_bytes)
        most_bytes = bytes;
    return malloc(size);
}

static void counting_dealloc(void *user, void *ptr, size_t size)
{
    (void)user;
    bytes -= size;
    free(ptr);
}

static void on_first_checks(void *user, plb_balancer *balancer)
{
    (void)user;
    (void)balancer;
    first_checks_over = true;
}

static uint64_t now_us(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* The processor's time is the call's own, whatever else the machine does. Asking for it is a system call, one a poll. */
static uint32_t timed_poll(void *user)
{
    uint64_t began_us = now_us(CLOCK_MONOTONIC), began_cpu_us = now_us(CLOCK_THREAD_CPUTIME_ID), cpu_us, us;
    uint32_t delay = plb_poll((plb_balancer *)user);
    cpu_us = now_us(CLOCK_THREAD_CPUTIME_ID) - began_cpu_us;
    us = now_us(CLOCK_MONOTONIC) - began_us;
    if (cpu_us > longest_cpu_us)
        longest_cpu_us = cpu_us;
    if (us > longest_us)
        longest_us = us;
    polls_too_long += cpu_us > 5000;
    polls++;
    return delay;
}

static bool count_healthy(void *user, const plb_backend_info *info)
{
    *(uint32_t *)user += info->healthy;
    return true;
}

/* ==== RUNS ======================================================================================================== */

static void fail(const char *what)
{
    fprintf(stderr, "bench_probe: %s\n", what);
    exit(1);
}

static plb_backend *make_backends(uint32_t count, uint16_t port)
{
    plb_backend *backends = (plb_backend *)calloc(count, sizeof *backends);
    uint32_t i;
    for (i = 0; backends != NULL && i < count; i++) {
        uint32_t address = htonl(UINT32_C(0x7f000001) + i);
        backends[i].addr.family = PLB_FAMILY_IPV4;
        backends[i].addr.port = port;
        memcpy(backends[i].addr.u.v4, &address, 4);
        backends[i].weight = 1;
    }
    if (backends == NULL)
        fail("no memory");
    return backends;
}

static void make_balancer(const check_kind *kind, uint32_t count, uint16_t port, uint32_t every_ms)
{
    plb_allocator allocator = {counting_alloc, counting_dealloc, NULL};
    plb_backend *backends = make_backends(count, port);
    plb_posix_desc port_desc;
    plb_static_desc list;
    plb_balancer_desc desc;
    memset(&port_desc, 0, sizeof port_desc);
    memset(&list, 0, sizeof list);
    memset(&desc, 0, sizeof desc);
    port_desc.allocator = desc.allocator = allocator;
    list.backends = backends;
    list.backend_count = count;
    if (plb_posix_create(&port_desc, &px) != PLB_OK)
        fail("no port");
    desc.port = plb_posix_port(px);
    desc.discovery = plb_static(&list);
    desc.check = counting(kind->make());
    desc.check_every_ms = every_ms;
    desc.parallel_checks = PLB_UNLIMITED;
    desc.on_first_checks = on_first_checks;
    if (plb_create(&desc, &lb) != PLB_OK)
        fail("no balancer");
    free(backends);
}

static void destroy_balancer(void)
{
    plb_destroy(lb);
    plb_posix_destroy(px);
    if (bytes != 0)
        fail("memory was left behind");
}

static void run(const check_kind *kind, uint16_t port, uint32_t count, uint32_t every_ms, uint32_t seconds)
{
    uint64_t end_us = now_us(CLOCK_MONOTONIC) + (uint64_t)seconds * 1000000;
    uint32_t healthy = 0;
    plb_task task;
    make_balancer(kind, count, port, every_ms);
    memset(&task, 0, sizeof task);
    task.poll = timed_poll;
    task.user = lb;
    plb_posix_add(px, &task);
    plb_posix_step(px, 0);
    first_cpu_us = longest_cpu_us;
    while (now_us(CLOCK_MONOTONIC) < end_us)
        plb_posix_step(px, 100);
    plb_each(lb, count_healthy, &healthy);
    plb_posix_remove(px, &task);
    destroy_balancer();
    printf(
        "checks=%llu healthy=%u polls=%llu poll_cpu_us=%llu poll_us=%llu first_poll_cpu_us=%llu polls_over_5ms=%llu\n",
        (unsigned long long)starts, healthy, (unsigned long long)polls, (unsigned long long)longest_cpu_us,
        (unsigned long long)longest_us, (unsigned long long)first_cpu_us, (unsigned long long)polls_too_long);
}

static int open_listener(uint32_t backlog, uint16_t *port)
{
    struct sockaddr_in name;
    socklen_t size = (socklen_t)sizeof name;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    memset(&name, 0, sizeof name);
    name.sin_family = AF_INET;
    if (fd < 0 || bind(fd, (struct sockaddr *)&name, size) != 0 || listen(fd, (int)backlog) != 0 ||
        getsockname(fd, (struct sockaddr *)&name, &size) != 0)
        fail("no listener");
    *port = ntohs(name.sin_port);
    return fd;
}

/* One round, which ends by time-outs. */
static void run_held(const check_kind *kind, uint32_t count)
{
    uint64_t end_us = now_us(CLOCK_MONOTONIC) + 10000000;
    size_t before, held, left;
    uint16_t port;
    int fd = open_listener(kind->held_backlog, &port);
    make_balancer(kind, count, port, 0);
    plb_posix_add(px, plb_balancer_task(lb));
    before = most_bytes = bytes;
    while (!first_checks_over && now_us(CLOCK_MONOTONIC) < end_us)
        plb_posix_step(px, 100);
    held = most_bytes - before;
    left = bytes - before;
    plb_posix_remove(px, plb_balancer_task(lb));
    destroy_balancer();
    close(fd);
    if (!first_checks_over || starts < count)
        fail("the probes did not end");
    printf("in_flight=%u bytes_each=%zu left_each=%zu\n", count, held / count, left / count);
}

static void open_and_close(uint16_t port, uint32_t first, uint32_t count)
{
    static int fds[64];
    uint32_t i;
    struct sockaddr_in to;
    memset(&to, 0, sizeof to);
    to.sin_family = AF_INET;
    to.sin_port = htons(port);
    for (i = 0; i < count; i++) {
        to.sin_addr.s_addr = htonl(UINT32_C(0x7f000001) + first + i);
        fds[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (fds[i] < 0 || (connect(fds[i], (struct sockaddr *)&to, (socklen_t)sizeof to) != 0 && errno != EINPROGRESS))
            fail("no connection");
    }
    for (i = 0; i < count; i++)
        close(fds[i]);
}

static void run_kernel(uint16_t port, uint32_t count, uint32_t every_ms, uint32_t seconds)
{
    uint64_t due_us = now_us(CLOCK_MONOTONIC), end_us = due_us + (uint64_t)seconds * 1000000;
    uint32_t first;
    for (; due_us < end_us; due_us += (uint64_t)every_ms * 1000) {
        while (now_us(CLOCK_MONOTONIC) < due_us)
            usleep(1000);
        for (first = 0; first < count; first += 64)
            open_and_close(port, first, count - first < 64 ? count - first : 64);
        starts += count;
    }
    printf("checks=%llu\n", (unsigned long long)starts);
}

static void print_kinds(void)
{
    size_t i;
    for (i = 0; i < sizeof kinds / sizeof *kinds; i++)
        printf("%s\n", kinds[i].name);
}

static void raise_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

static uint32_t number(const char *text)
{
    return (uint32_t)strtoul(text, NULL, 10);
}

int main(int argc, char **argv)
{
    const check_kind *kind = argc > 1 ? find_kind(argv[1]) : NULL;
    raise_limit();
    if (argc == 1)
        print_kinds();
    else if (kind != NULL && argc == 7 && strcmp(argv[2], "run") == 0)
        run(kind, (uint16_t)number(argv[3]), number(argv[4]), number(argv[5]), number(argv[6]));
    else if (kind != NULL && argc == 4 && strcmp(argv[2], "held") == 0)
        run_held(kind, number(argv[3]));
    else if (argc == 7 && strcmp(argv[1], "kernel") == 0)
        run_kernel((uint16_t)number(argv[3]), number(argv[4]), number(argv[5]), number(argv[6]));
    else
        fail("see the head of tests/bench/probe.c");
    return 0;
}
