/* The library on a Cortex-M3, without a heap: it picks what it was recorded to pick elsewhere, its checks find out what
   the hosts of a scripted network are like, and its memory is an array of the program's. Reads tests/vectors/ on the
   host, by semihosting. */
#include "cortex_m.h"
#include "network.h"

uint32_t rules_kept, rules_broken;

static char memory[192 * 1024]; /* the rings of the vectors need most of it */
static plb_arena arena;

/* ---- files of the host ---- */

typedef struct host_file {
    int handle;
    char block[1024];
    size_t at, size;
} host_file;

static bool file_open(host_file *file, const char *name, size_t name_length)
{
    const uintptr_t block[3] = {(uintptr_t)name, 0, name_length}; /* mode 0: "r" */
    file->handle = board_host(0x01, block);                       /* SYS_OPEN */
    file->at = file->size = 0;
    return file->handle >= 0;
}

static void file_close(const host_file *file)
{
    board_host(0x02, &file->handle); /* SYS_CLOSE */
}

static int file_byte(host_file *file)
{
    if (file->at == file->size) {
        const uintptr_t block[3] = {(uintptr_t)file->handle, (uintptr_t)file->block, sizeof file->block};
        file->size = sizeof file->block - (size_t)board_host(0x06, block); /* SYS_READ tells what it did not read */
        file->at = 0;
    }
    return file->at < file->size ? (unsigned char)file->block[file->at++] : -1;
}

/* The next line without its end; false: there is none. */
static bool file_line(host_file *file, char *line, size_t capacity)
{
    size_t length = 0;
    int byte = file_byte(file);
    if (byte < 0)
        return false;
    for (; byte >= 0 && byte != '\n'; byte = file_byte(file))
        if (length + 1 < capacity)
            line[length++] = (char)byte;
    line[length] = '\0';
    return true;
}

/* ---- vectors ---- */

#define SET_MAX 64

typedef struct vector_set {
    plb_backend backends[SET_MAX];
    size_t count;
} vector_set;

static vector_set set;
static char line[2048];
static plb_balancer *lb;

/* Cuts a text at a character; returns what follows, or its end. */
static char *cut(char *text, char at)
{
    char *found = strchr(text, at);
    if (found == NULL)
        return text + strlen(text);
    *found = '\0';
    return found + 1;
}

static uint32_t number(const char *text)
{
    uint32_t value = 0;
    for (; *text >= '0' && *text <= '9'; text++)
        value = value * 10 + (uint32_t)(*text - '0');
    return value;
}

/* "ADDRESS WEIGHT[ up|down],ADDRESS WEIGHT..." */
static void set_parse(char *text)
{
    set.count = 0;
    while (*text != '\0' && set.count < SET_MAX) {
        plb_backend *backend = &set.backends[set.count++];
        char *next = cut(text, ','), *weight = cut(text, ' '), *state = cut(weight, ' ');
        plb_backend_parse(backend, text, PLB_ZSTRING, NULL);
        backend->weight = number(weight);
        backend->enablement = strcmp(state, "down") == 0 ? PLB_ENABLEMENT_OFF : PLB_ENABLEMENT_ON;
        text = next;
    }
}

static void set_named(const char *text)
{
    strcpy(line, text);
    set_parse(line);
}

static void renew(plb_strategy strategy)
{
    plb_static_desc list = {.backends = set.backends, .backend_count = set.count};
    plb_balancer_desc desc = {.discovery = plb_static(&list), .strategy = strategy};
    plb_destroy(lb);
    lb = NULL;
    desc.allocator = plb_arena_allocator(&arena, memory, sizeof memory);
    plb_create(&desc, &lb);
}

static plb_strategy strategy_named(const char *name)
{
    return strcmp(name, "rr") == 0       ? plb_round_robin()
           : strcmp(name, "random") == 0 ? plb_random_choice()
           : strcmp(name, "fnv") == 0    ? plb_fnv()
                                         : plb_ketama(NULL);
}

static bool accept_ready(void *user, const plb_backend_info *info)
{
    (void)user;
    return info->ready;
}

static bool by_walk; /* pick by the general walk, which must come to the same answers */

static const char *picked(const char *key, uint32_t max_iterations)
{
    static char text[PLB_ADDR_TEXT_MAX];
    plb_request request = {
        .key = key, .key_length = strlen(key), .max_iterations = max_iterations, .accept = accept_ready};
    plb_status status;
    plb_addr to;
    if (by_walk)
        status = plb_select_with(lb, &request, &to);
    else
        status = plb_select(lb, key, strlen(key), max_iterations, &to);
    if (status != PLB_OK)
        return "none";
    plb_addr_format(&to, text, sizeof text);
    return text;
}

/* Notes whether two names are others than last time. */
static bool changes(char *last, const char *a, const char *b)
{
    char now[64];
    bool changed;
    strcpy(now, a);
    strcat(now, ";");
    strcat(now, b);
    changed = strcmp(now, last) != 0;
    strcpy(last, now);
    return changed;
}

/* STRATEGY;CASE;KEY;MAX_ITERATIONS;ANSWER, set;CASE;SET, and flip;CASE;ADDRESS;up|down. */
static bool play_line(char *last)
{
    char *name = cut(line, ';'), *third = cut(name, ';'), *fourth, *fifth;
    if (strcmp(line, "set") == 0) {
        set_parse(third);
        last[0] = '\0';
        return false;
    }
    fourth = cut(third, ';');
    if (strcmp(line, "flip") == 0) {
        plb_addr addr = addr_of(third);
        plb_set_enabled(lb, &addr, 0, strcmp(fourth, "up") == 0);
        return false;
    }
    fifth = cut(fourth, ';');
    if (changes(last, line, name))
        renew(strategy_named(line));
    return strcmp(picked(third, number(fourth)), fifth) == 0;
}

/* Are so many answers of a file as recorded? */
static bool play(const char *path, uint32_t expected)
{
    char last[64] = "";
    uint32_t right = 0;
    host_file file;
    if (!file_open(&file, path, strlen(path)))
        return false;
    while (file_line(&file, line, sizeof line))
        right += play_line(last);
    file_close(&file);
    return right == expected;
}

/* Does the raw sequence of a key begin with these addresses? */
static bool yields(const char *key, char *wanted)
{
    plb_walk walk;
    bool same = plb_walk_begin(&walk, lb, key, strlen(key)) == PLB_OK;
    if (!same)
        return false;
    while (same && *wanted != '\0') {
        plb_backend_info info;
        char text[PLB_ADDR_TEXT_MAX], *next = cut(wanted, ' ');
        plb_walk_next(&walk, &info);
        plb_addr_format(&info.backend.addr, text, sizeof text);
        same = strcmp(text, wanted) == 0;
        wanted = next;
    }
    plb_walk_end(&walk);
    return same;
}

/* STRATEGY;SET;KEY;ADDRESS ADDRESS... */
static bool sequences(const char *path, uint32_t expected)
{
    static const char *const sets[] = {
        "1.1.1.1:80 1,1.0.0.1:80 10,1.0.0.255:80 1", "127.0.0.1:7777 1,127.0.0.1:7778 2,127.0.0.1:7779 3",
        "[::1]:7777 1,[::1]:7778 1,[2001:db8::1]:443 5,10.0.0.9:443 2", "192.0.2.1:1 1",
        "10.0.0.1:443 7,10.0.0.2:443 3,10.0.0.3:443 1,10.0.0.4:443 1,10.0.0.10:443 2,10.0.0.20:443 1,10.0.1.1:8443 1,"
        "10.0.0.1:80 1"};
    static char current[1024];
    char last[64] = "";
    uint32_t right = 0;
    host_file file;
    if (!file_open(&file, path, strlen(path)))
        return false;
    while (file_line(&file, current, sizeof current)) {
        char *name = cut(current, ';'), *key = cut(name, ';'), *wanted = cut(key, ';');
        if (changes(last, current, name)) {
            set_named(sets[name[0] - 'a']);
            renew(strategy_named(current));
        }
        right += yields(key, wanted);
    }
    file_close(&file);
    return right == expected;
}

/* KEY;ADDRESS, as nginx's `hash ... consistent` was recorded. */
static bool nginx_ring(const char *path, const char *backends)
{
    uint32_t right = 0;
    host_file file;
    set_named(backends);
    renew(plb_ketama(NULL));
    if (!file_open(&file, path, strlen(path)))
        return false;
    while (file_line(&file, line, sizeof line)) {
        char *wanted = strrchr(line, ';');
        *wanted++ = '\0';
        right += strcmp(picked(line, 0), wanted) == 0;
    }
    file_close(&file);
    return right == 1000;
}

/* WEIGHT WEIGHT...;NUMBER NUMBER..., as nginx's smooth weighted round robin was recorded. */
static bool nginx_smooth(const char *path)
{
    uint32_t right = 0;
    host_file file;
    if (!file_open(&file, path, strlen(path)))
        return false;
    while (file_line(&file, line, sizeof line)) {
        char *weight = line, *wanted = cut(line, ';'), *next;
        for (set.count = 0; *weight != '\0'; weight = next, set.count++) {
            next = cut(weight, ' ');
            set.backends[set.count] = backend_of((uint32_t)set.count + 1, number(weight));
        }
        renew(plb_smooth_round_robin());
        for (; *wanted != '\0'; wanted = next) {
            plb_addr to;
            next = cut(wanted, ' ');
            right += plb_select(lb, NULL, 0, 0, &to) == PLB_OK && to.u.v4[3] == number(wanted);
        }
    }
    file_close(&file);
    return right == 5 * 60;
}

static void selection(void)
{
    size_t peak;
    rule("raw sequences are as recorded", sequences("tests/vectors/sequences.txt", 760));
    rule("picks are as recorded with backends down", play("tests/vectors/select.txt", 1440));
    rule("picks are as recorded while backends flip", play("tests/vectors/flips.txt", 810));
    by_walk = true;
    rule("and so by the general walk, with backends down", play("tests/vectors/select.txt", 1440));
    rule("and while they flip", play("tests/vectors/flips.txt", 810));
    by_walk = false;
    rule("Ketama is nginx's ring, with weights too",
         nginx_ring("tests/vectors/nginx-b.csv",
                    "127.0.0.2:443 5,127.0.0.3:443 1,127.0.0.4:8080 2,127.0.0.5:443 10,127.0.0.6:1234 1,"
                    "127.0.0.7:443 3,127.0.0.8:443 1,127.0.0.9:65535 1"));
    rule("Ketama is nginx's ring",
         nginx_ring("tests/vectors/nginx-a.csv", "127.0.0.1:17001 1,127.0.0.1:17002 1,127.0.0.3:17003 1"));
    peak = arena.peak;
    plb_destroy(lb);
    lb = NULL;
    rule("smooth weighted round robin is nginx's", nginx_smooth("tests/vectors/nginx-smooth-wrr.txt"));
    plb_destroy(lb);
    rule("all memory came back", arena.used == 0 && peak > 0);
    lb = NULL;
}

/* ---- health ---- */

#define HOSTS 12

static const char page[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
static const char sorry[] = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";
static network_host hosts[HOSTS];
static network net;
static plb_backend backends[HOSTS];
static uint32_t probes, flips;
static plb_status flip_status;

static void count_probe(void *user, const plb_backend_info *info, uint32_t check, const plb_probe_info *probe)
{
    (void)user, (void)info, (void)check, (void)probe;
    probes++;
}

static void count_flip(void *user, const plb_backend_info *info, plb_status status)
{
    (void)user, (void)info;
    flips++;
    flip_status = status;
}

/* A network of hosts that serve a page, and `count` of them as backends, checked every 100 ms. */
static plb_balancer_desc healthy_hosts(plb_static_desc *list, size_t count, plb_check check)
{
    static const char *const addresses[HOSTS] = {"10.0.0.0:80", "10.0.0.1:80", "10.0.0.2:80",  "10.0.0.3:80",
                                                 "10.0.0.4:80", "10.0.0.5:80", "10.0.0.6:80",  "10.0.0.7:80",
                                                 "10.0.0.8:80", "10.0.0.9:80", "10.0.0.10:80", "10.0.0.11:80"};
    plb_balancer_desc desc = {.check = check, .check_every_ms = 100, .on_probe = count_probe, .on_flip = count_flip};
    memset(&net, 0, sizeof net);
    for (uint32_t i = 0; i < HOSTS; i++) {
        hosts[i] = (network_host){.address = addresses[i], .answer = page, .answer_size = sizeof page - 1};
        backends[i] = backend_of(i, 1);
    }
    net.hosts = hosts;
    net.host_count = HOSTS;
    *list = (plb_static_desc){.backends = backends, .backend_count = count};
    desc.port = network_port(&net);
    desc.discovery = plb_static(list);
    desc.allocator = plb_arena_allocator(&arena, memory, sizeof memory);
    probes = flips = 0;
    return desc;
}

static void run(uint32_t ms)
{
    for (; ms > 0; ms--) {
        network_step(&net);
        plb_poll(lb);
    }
}

/* Runs until so many more probes are over, a second at most. */
static void run_probes(uint32_t more)
{
    uint32_t until = probes + more, ms;
    for (ms = 0; probes < until && ms < 1000; ms++)
        run(1);
}

static bool is_ready(uint32_t n)
{
    return plb_ready(lb, &backends[n].addr, 0);
}

static bool is_picked(uint32_t n)
{
    bool found = false;
    for (int i = 0; i < 2 * HOSTS; i++) {
        plb_addr to;
        found = found || (plb_select(lb, NULL, 0, 0, &to) == PLB_OK && to.u.v4[3] == n);
    }
    return found;
}

static void thresholds(void)
{
    plb_static_desc list;
    plb_balancer_desc desc = healthy_hosts(&list, 2, plb_tcp_check(NULL));
    desc.check.consecutive_failure = 3;
    desc.check.consecutive_success = 2;
    plb_create(&desc, &lb);
    run_probes(2);
    hosts[1].state = NETWORK_REFUSES;
    run_probes(4);
    rule("two failures do not make a backend unhealthy when three are asked for", flips == 0 && is_ready(1));
    run_probes(2);
    rule("the third does", flips == 1 && flip_status == PLB_ERR_REFUSED && !is_ready(1) && !is_picked(1));
    hosts[1].state = NETWORK_SERVES;
    run_probes(2);
    rule("one success does not bring it back when two are asked for", flips == 1 && !is_ready(1));
    run_probes(2);
    rule("the second does", flips == 2 && is_ready(1) && is_picked(1));
    plb_destroy(lb);
}

static void time_outs(void)
{
    plb_static_desc list;
    plb_balancer_desc desc = healthy_hosts(&list, 2, plb_tcp_check(NULL));
    desc.check.timeout_ms = 50;
    plb_create(&desc, &lb);
    run(10);
    hosts[1].state = NETWORK_HANGS;
    run(90 + 49);
    rule("a connection that hangs fails no earlier than the time-out says", flips == 0);
    run(5);
    rule("and no later", flips == 1 && flip_status == PLB_ERR_TIMEOUT && !is_ready(1));
    plb_destroy(lb);
    desc = healthy_hosts(&list, 2, plb_tcp_check(NULL));
    desc.check.timeout_ms = 50;
    net.now_ms = UINT32_MAX - 120;
    plb_create(&desc, &lb);
    run(60);
    hosts[1].state = NETWORK_HANGS;
    run(95); /* asked 20 ms before the clock wraps */
    rule("a clock that wraps at 2^32 ends a probe in time", net.now_ms < 60 && flips == 1 && !is_ready(1));
    plb_destroy(lb);
}

static void http_answers(void)
{
    plb_static_desc list;
    plb_balancer_desc desc = healthy_hosts(&list, 4, plb_http_check(NULL));
    plb_probe_info probe;
    hosts[1].answer = sorry;
    hosts[1].answer_size = sizeof sorry - 1;
    hosts[2].answer_size = 0; /* says nothing */
    hosts[3].state = NETWORK_RESETS;
    plb_create(&desc, &lb);
    run(1100);
    rule("a page keeps a backend healthy", is_ready(0) && hosts[0].connects > 5);
    plb_find_probe(lb, &backends[1].addr, 0, 0, &probe);
    rule("a status that was not asked for does not",
         !is_ready(1) && probe.status == PLB_ERR_ANSWER && probe.code == 503);
    plb_find_probe(lb, &backends[2].addr, 0, 0, &probe);
    rule("nor does silence", !is_ready(2) && probe.status == PLB_ERR_TIMEOUT);
    plb_find_probe(lb, &backends[3].addr, 0, 0, &probe);
    rule("nor does a connection that breaks", !is_ready(3) && probe.status == PLB_ERR_RESET);
    plb_destroy(lb);
}

static void too_few_streams(void)
{
    plb_static_desc list;
    plb_balancer_desc desc = healthy_hosts(&list, HOSTS, plb_tcp_check(NULL));
    bool all = true;
    for (uint32_t i = 0; i < HOSTS; i++)
        hosts[i].state = i < NETWORK_STREAMS ? NETWORK_HANGS : NETWORK_SERVES;
    desc.check.timeout_ms = 300;
    plb_create(&desc, &lb);
    run(250);
    for (uint32_t i = NETWORK_STREAMS; i < HOSTS; i++)
        all = all && is_ready(i);
    rule("a port without a free stream is not held against a backend", all && flips == 0);
    for (uint32_t i = 0; i < NETWORK_STREAMS; i++)
        hosts[i].state = NETWORK_SERVES;
    run(1200);
    rule("which is probed when there is one", hosts[HOSTS - 1].connects > 0 && is_ready(HOSTS - 1));
    plb_destroy(lb);
}

/* ---- memory ---- */

static size_t used_by(size_t count, plb_check check)
{
    plb_static_desc list;
    plb_balancer_desc desc = healthy_hosts(&list, count, check);
    size_t used;
    plb_create(&desc, &lb);
    used = arena.used;
    plb_destroy(lb);
    return used;
}

/* Bytes for each of four probes that are in flight. */
static size_t probe_bytes(plb_check check)
{
    plb_static_desc list;
    plb_balancer_desc desc = healthy_hosts(&list, 4, check);
    size_t before, each;
    plb_create(&desc, &lb);
    run(1100);
    before = arena.used;
    for (int i = 0; i < 4; i++)
        hosts[i].state = NETWORK_HANGS;
    run(105);
    each = (arena.used - before) / 4;
    plb_destroy(lb);
    return each;
}

static void memory_used(void)
{
    plb_check none = {.ops = NULL};
    size_t few = used_by(2, none), many = used_by(10, none), checked = used_by(10, plb_tcp_check(NULL));
    say_figure("bytes of a balancer", (uint32_t)(few - (many - few) / 4));
    say_figure("bytes of a backend", (uint32_t)((many - few) / 8));
    say_figure("bytes of a backend with a check", (uint32_t)((checked - used_by(2, plb_tcp_check(NULL))) / 8));
    say_figure("bytes of a TCP probe in flight", (uint32_t)probe_bytes(plb_tcp_check(NULL)));
    say_figure("bytes of an HTTP probe in flight", (uint32_t)probe_bytes(plb_http_check(NULL)));
    rule("everything goes back to the arena", arena.used == 0);
}

/* A life with everything in it that needs memory; false if some was not there. */
static bool live(size_t bytes)
{
    plb_static_desc list;
    plb_balancer_desc desc = healthy_hosts(&list, 6, plb_http_check(NULL));
    plb_backend more = backend_of(7, 1);
    plb_pick pick;
    bool enough = true;
    desc.allocator = plb_arena_allocator(&arena, memory, bytes);
    if (plb_create(&desc, &lb) != PLB_OK)
        return false;
    run(30);
    enough = plb_add(lb, &more) == PLB_OK;
    run(120);
    enough = enough && is_picked(7) && probes >= 7 && hosts[7].connects > 0;
    if (plb_begin(lb, NULL, &pick) != PLB_OK)
        enough = false;
    plb_end(&pick, PLB_OUTCOME_SUCCESS, 1);
    enough = enough && flips == 0;
    plb_destroy(lb);
    return enough;
}

static void exhaustion(void)
{
    bool lost = false, healthy = true;
    size_t bytes = 0;
    while (bytes < sizeof memory && !live(bytes)) {
        lost = lost || arena.used != 0;
        healthy = healthy && flips == 0;
        bytes += 32;
    }
    rule("an arena that is too small, by whatever it is, is survived", bytes < 32 * 1024);
    rule("nothing is lost by it", !lost && arena.used == 0);
    rule("no backend is blamed for it", healthy);
    say_figure("bytes of an arena for a life of 7 backends", (uint32_t)bytes);
}

static void no_heap(void)
{
    plb_balancer_desc desc;
    plb_balancer *none;
    memset(&desc, 0, sizeof desc);
    rule("a balancer without an allocator is refused where there is no malloc",
         plb_create(&desc, &none) == PLB_ERR_MEMORY && none == NULL);
}

int main(void)
{
    selection();
    thresholds();
    time_outs();
    http_answers();
    too_few_streams();
    memory_used();
    exhaustion();
    no_heap();
    return rules_report();
}
