/* How deep each public call gets in its stack on a Cortex-M3: all of it below the caller is painted, the call is made,
   and what it left unpainted is counted. No call may need more than 1 KiB, callbacks and the port included, which
   here are small. Prints "stack  BYTES  CALL" for each, and the rule. */
#include "cortex_m.h"
#include "network.h"

uint32_t rules_kept, rules_broken;

#define STACK_LIMIT 1024
#define PAINT       0xa5a5a5a5u
#define PAINTED     3072 /* bytes below the caller */
#define COUNT(a)    (sizeof(a) / sizeof *(a))

/* ---- measuring ---- */

typedef struct depth {
    const char *call;
    uint32_t bytes;
} depth;

static depth depths[192];
static size_t depth_count;

/* Paints the stack from `top` down. This function's own frame stays as it is: some words. */
static __attribute__((noinline)) void stack_paint(uint32_t *top)
{
    volatile uint32_t *at;
    uint32_t *own;
    __asm__ volatile("mov %0, sp" : "=r"(own));
    for (at = top - PAINTED / 4; at < own; at++)
        *at = PAINT;
}

static __attribute__((noinline)) void stack_note(const char *call, const uint32_t *top)
{
    const volatile uint32_t *at = top - PAINTED / 4;
    uint32_t bytes;
    size_t i = 0;
    while (at < top && *at == PAINT)
        at++;
    bytes = (uint32_t)(top - at) * 4;
    while (i < depth_count && strcmp(depths[i].call, call) != 0)
        i++;
    if (i == COUNT(depths))
        return;
    if (i == depth_count)
        depths[depth_count++].call = call;
    if (bytes > depths[i].bytes)
        depths[i].bytes = bytes;
}

/* Makes a call and notes how deep it got. Not within one that is being measured. */
#define STACK(call, statement)                                                                                         \
    do {                                                                                                               \
        uint32_t *top_;                                                                                                \
        __asm__ volatile("mov %0, sp" : "=r"(top_));                                                                   \
        stack_paint(top_);                                                                                             \
        statement;                                                                                                     \
        stack_note(call, top_);                                                                                        \
    } while (0)

static void stack_report(void)
{
    uint32_t deepest = 0;
    for (size_t i = 0; i < depth_count; i++) {
        board_print("stack  ");
        say_number(depths[i].bytes);
        board_print("  ");
        board_print(depths[i].call);
        board_print("\n");
        if (depths[i].bytes > deepest)
            deepest = depths[i].bytes;
    }
    say_figure("deepest", deepest);
    rule("no public call is deeper than 1 KiB in its stack", deepest <= STACK_LIMIT);
}

/* ---- a balancer on the scripted network ---- */

#define MANY 200

static char memory[160 * 1024];
static plb_arena arena;
static network net;
static network_host hosts[] = {{.address = "10.0.0.0:80"}, {.address = "10.0.0.1:80"}, {.address = "10.0.0.2:80"}};
static plb_backend backends[MANY];
static plb_balancer *lb;
static plb_random seeds;

static void random_fill(void *self, void *bytes, size_t count)
{
    (void)self;
    memset(bytes, 7, count);
}

static void ignore_log(void *user, plb_log_level level, const char *line)
{
    (void)user, (void)level, (void)line;
}

static size_t summary(void *user, const plb_backend *backend, char *text, size_t capacity)
{
    (void)user;
    return plb_addr_format(&backend->addr, text, capacity);
}

static void ignore_flip(void *user, const plb_backend_info *info, plb_status status)
{
    (void)user, (void)info, (void)status;
}

static void ignore_probe(void *user, const plb_backend_info *info, uint32_t check, const plb_probe_info *probe)
{
    (void)user, (void)info, (void)check, (void)probe;
}

static void ignore_eject(void *user, const plb_backend_info *info, plb_ejection why)
{
    (void)user, (void)info, (void)why;
}

static void ignore_update(void *user, const plb_update_info *info)
{
    (void)user, (void)info;
}

static void ignore_change(void *user, plb_balancer *balancer)
{
    (void)user, (void)balancer;
}

/* TLS is agreed to, and left out. */
static plb_io io;

static plb_status connect_without_tls(void *self, const plb_peer *peer, plb_handler handler, plb_stream **out)
{
    ((plb_peer *)(uintptr_t)peer)->tls = NULL; /* it lies in a stack, and nobody looks at it again */
    return net.io.connect(self, peer, handler, out);
}

static plb_status info_with_tls(void *self, plb_stream *stream, plb_stream_info *out)
{
    plb_status status = net.io.info(self, stream, out);
    out->alpn = "h2";
    out->tls_reason = "a reason";
    return status;
}

static plb_balancer_desc everything(const plb_static_desc *list)
{
    plb_balancer_desc desc = {.allocator = plb_arena_allocator(&arena, memory, sizeof memory),
                              .name = "everything",
                              .check_every_ms = 100,
                              .slow_start_ms = 500,
                              .panic_percent = 10,
                              .outlier = {.on = true, .consecutive_errors = 2, .interval_ms = 50},
                              .on_change = ignore_change,
                              .on_update = ignore_update,
                              .on_flip = ignore_flip,
                              .on_probe = ignore_probe,
                              .on_eject = ignore_eject,
                              .on_first_checks = ignore_change,
                              .log = ignore_log,
                              .log_level = PLB_LOG_DEBUG};
    net.hosts = hosts;
    net.host_count = COUNT(hosts);
    desc.port = network_port(&net);
    io = net.io;
    io.connect = connect_without_tls;
    io.info = info_with_tls;
    desc.port.io = &io;
    STACK("plb_static", desc.discovery = plb_static(list));
    desc.port.random = &seeds;
    seeds.fill = random_fill;
    return desc;
}

static void create(const plb_balancer_desc *desc)
{
    plb_status status;
    lb = NULL;
    STACK("plb_create", status = plb_create(desc, &lb));
    if (status != PLB_OK)
        rule(plb_status_text(status), false);
}

static void run(uint32_t ms)
{
    for (; lb != NULL && ms > 0; ms--) {
        STACK("(callbacks of plb_io)", network_step(&net));
        STACK("plb_poll", plb_poll(lb));
    }
}

static void destroy(void)
{
    STACK("plb_destroy", plb_destroy(lb));
    if (arena.used != 0)
        rule("all memory comes back", false);
    memset(net.streams, 0, sizeof net.streams);
}

static bool accept_last(void *user, const plb_backend_info *info)
{
    (void)user;
    return info->slot == MANY - 1;
}

static bool accept_none(void *user, const plb_backend_info *info)
{
    (void)user, (void)info;
    return false;
}

/* ---- picking, with each strategy ---- */

static void begin_and_end(const plb_request *request, plb_handle *handle)
{
    static plb_pick picks[8];
    for (size_t i = 0; i < COUNT(picks); i++) {
        if (handle != NULL)
            STACK("plb_handle_begin", plb_handle_begin(handle, request, &picks[i]));
        else
            STACK("plb_begin", plb_begin(lb, request, &picks[i]));
    }
    for (size_t i = 0; i < COUNT(picks); i++)
        STACK("plb_end", plb_end(&picks[i], i % 2 == 0 ? PLB_OUTCOME_CONNECT_ERROR : PLB_OUTCOME_SUCCESS, 1000 * i));
}

static void pick_every_way(void)
{
    static const uint32_t excluded[] = {0, 1, 2, 3};
    static plb_addr to;
    static plb_backend_info info;
    static plb_walk walk;
    plb_request requests[] = {{.key = "a key", .key_length = 5, .max_iterations = 3},
                              {.key = "another", .key_length = 7, .exclude = excluded, .exclude_count = 4},
                              {.key = "a third", .key_length = 7, .accept = accept_last},
                              {.accept = accept_none}};
    plb_handle *handle;
    STACK("plb_handle_open", plb_handle_open(lb, &handle));
    for (int i = 0; i < 8; i++) {
        STACK("plb_select", plb_select(lb, &i, sizeof i, i % 2 == 0 ? 0 : 256, &to));
        STACK("plb_handle_select", plb_handle_select(handle, &i, sizeof i, 0, &to));
    }
    for (size_t i = 0; i < COUNT(requests); i++) {
        STACK("plb_select_with", plb_select_with(lb, &requests[i], &to));
        STACK("plb_handle_select_with", plb_handle_select_with(handle, &requests[i], &to));
        begin_and_end(&requests[i], NULL);
        begin_and_end(&requests[i], handle);
    }
    STACK("plb_handle_close", plb_handle_close(handle));
    STACK("plb_walk_begin", plb_walk_begin(&walk, lb, "key", 3));
    for (int i = 0; i < 20; i++)
        STACK("plb_walk_next", plb_walk_next(&walk, &info));
    STACK("plb_walk_end", plb_walk_end(&walk));
}

static void strategies(void)
{
    static plb_ketama_desc ring = {.point_multiple = 10};
    static plb_bounded_loads_desc bounded = {.ring = {.point_multiple = 10}};
    static plb_maglev_desc table = {.table_size = 1009};
    static plb_strategy each[12];
    plb_static_desc list = {.backends = backends, .backend_count = MANY};
    STACK("plb_round_robin", each[0] = plb_round_robin());
    STACK("plb_random_choice", each[1] = plb_random_choice());
    STACK("plb_fnv", each[2] = plb_fnv());
    STACK("plb_ketama", each[3] = plb_ketama(&ring));
    STACK("plb_smooth_round_robin", each[4] = plb_smooth_round_robin());
    STACK("plb_least_connections", each[5] = plb_least_connections());
    STACK("plb_bounded_loads", each[6] = plb_bounded_loads(&bounded));
    STACK("plb_ip_hash", each[7] = plb_ip_hash());
    STACK("plb_two_choices", each[8] = plb_two_choices());
    STACK("plb_peak_ewma", each[9] = plb_peak_ewma(NULL));
    STACK("plb_maglev", each[10] = plb_maglev(&table));
    STACK("plb_rendezvous", each[11] = plb_rendezvous());
    for (size_t i = 0; i < COUNT(each); i++) {
        plb_balancer_desc desc = everything(&list);
        plb_backend more = backend_of(MANY, 3);
        desc.strategy = each[i];
        create(&desc);
        run(2);
        pick_every_way();
        run(120); /* ejections, and back */
        plb_set_enabled(lb, &backends[5].addr, 0, false);
        pick_every_way();
        more.max_conns = 1;
        STACK("plb_add", plb_add(lb, &more)); /* the ring is amended */
        run(2);
        STACK("plb_replace", plb_replace(lb, backends, MANY / 2)); /* or built anew */
        run(2);
        pick_every_way();
        STACK("plb_remove", plb_remove(lb, &backends[0]));
        run(2);
        destroy();
    }
}

/* ---- questions and changes ---- */

static bool look(void *user, const plb_backend_info *info)
{
    (void)user, (void)info;
    return true;
}

static void questions(void)
{
    static plb_backend_info info;
    static plb_probe_info probe;
    static plb_outlier_info outlier;
    static plb_update_info update;
    static char text[16 * 1024];
    static const char *const names[] = {"unix:/run/a-path", "[2001:db8:1111:2222:3333:4444:5555:6666%3]:80",
                                        "10.0.0.1:80", "10.0.0.2:80"};
    plb_static_desc list = {.addresses = names, .address_count = COUNT(names)};
    plb_balancer_desc desc = everything(&list);
    plb_addr addr = addr_of("10.0.0.1:80");
    plb_task *task;
    size_t size;
    desc.check = plb_tcp_check(NULL);
    desc.summary = summary;
    create(&desc);
    run(200);
    STACK("plb_balancer_task", task = plb_balancer_task(lb));
    rule("a balancer is a task", task->poll != NULL);
    STACK("plb_update_now", plb_update_now(lb));
    STACK("plb_check_now", plb_check_now(lb));
    run(2);
    STACK("plb_last_update", plb_last_update(lb, &update));
    STACK("plb_set_enabled", plb_set_enabled(lb, &addr, 0, false));
    STACK("plb_set_enabled", plb_set_enabled(lb, &addr, 0, true));
    STACK("plb_ready", plb_ready(lb, &addr, 0));
    STACK("plb_find", plb_find(lb, &addr, 0, &info));
    STACK("plb_find_probe", plb_find_probe(lb, &addr, 0, 0, &probe));
    STACK("plb_find_outlier", plb_find_outlier(lb, &addr, 0, &outlier));
    STACK("plb_each", plb_each(lb, look, NULL));
    STACK("plb_metrics", size = plb_metrics(lb, text, sizeof text));
    rule("metrics are told", size > 1000 && size < sizeof text);
    STACK("plb_metrics_of", plb_metrics_of(&lb, 1, text, sizeof text));
    destroy();
}

/* ---- addresses and the rest of small calls ---- */

static void small_calls(void)
{
    static const char *const texts[] = {"255.255.255.255:65535",
                                        "[2001:db8:1111:2222:3333:4444:55.55.66.66%4294967295]:80", "unix:/a/path",
                                        "nonsense"};
    static char name[256];
    static plb_backend backend;
    static plb_allocator none;
    plb_addr a, b;
    char text[PLB_ADDR_TEXT_MAX];
    memset(&a, 0, sizeof a);
    b = addr_of("10.0.0.1:80");
    STACK("plb_version", plb_version());
    STACK("plb_status_text", plb_status_text(PLB_ERR_IO));
    STACK("plb_status_is_local", plb_status_is_local(PLB_ERR_IO));
    STACK("plb_allocator_or_default", plb_allocator_or_default(none));
    STACK("plb_arena_allocator", plb_arena_allocator(&arena, memory, sizeof memory));
    for (size_t i = 0; i < COUNT(texts); i++) {
        STACK("plb_addr_parse", plb_addr_parse(&a, texts[i], PLB_ZSTRING));
        STACK("plb_addr_format", plb_addr_format(&a, text, sizeof text));
        STACK("plb_addr_compare", plb_addr_compare(&a, &b));
        STACK("plb_addr_hash", plb_addr_hash(&a));
        STACK("plb_backend_parse", plb_backend_parse(&backend, texts[i], PLB_ZSTRING, name));
    }
    STACK("plb_backend_parse", plb_backend_parse(&backend, "db.example.:5432", PLB_ZSTRING, name));
}

static void ring(void *user)
{
    ++*(uint32_t *)user;
}

static void timers(void)
{
    static plb_timer many[100];
    static plb_timers heap;
    uint32_t rung = 0;
    plb_clock clock = *network_port(&net).clock;
    STACK("plb_timers_update", plb_timers_update(&heap, &clock));
    for (uint32_t i = 0; i < COUNT(many); i++) {
        many[i].fn = ring;
        many[i].user = &rung;
        STACK("plb_timer_set", plb_timer_set(&heap, &many[i], 1 + i * 37 % 100));
    }
    for (uint32_t i = 0; i < COUNT(many); i += 3)
        STACK("plb_timer_stop", plb_timer_stop(&heap, &many[i]));
    STACK("plb_timer_is_set", plb_timer_is_set(&many[0]));
    STACK("plb_timers_delay", plb_timers_delay(&heap));
    net.now_ms += 1000;
    plb_timers_update(&heap, &clock);
    STACK("plb_timers_run", plb_timers_run(&heap));
    rule("timers ring", rung == COUNT(many) - (COUNT(many) + 2) / 3);
}

/* ---- checks of every kind, each with a good answer, a bad one, and hosts that are ill ---- */

#define H2_GREETING "\0\0\0\4\0\0\0\0\0\0\0\0\4\1\0\0\0\0"

static const char page[] =
    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-a: b\r\n\r\n"
    "2;x=y\r\nok\r\n0\r\nTrailer: x\r\n\r\n";
static const char h2_page[] = H2_GREETING "\0\0\1\1\4\0\0\0\1\x88"
                                          "\0\0\2\0\1\0\0\0\1ok";
static const char h2_grpc[] = H2_GREETING "\0\0\x13\1\4\0\0\0\1\x88\x5f\x10"
                                          "application/grpc"
                                          "\0\0\7\0\0\0\0\0\1\0\0\0\0\2\x08\1"
                                          "\0\0\x0f\1\5\0\0\0\1\0\x0bgrpc-status\1"
                                          "0";
static const char mysql[] = "\x0e\0\0\0\x0a"
                            "8.0\0\1\0\0\0abcde";

typedef struct kind {
    const char *rule;
    plb_check check;
    const void *answer;
    size_t answer_size;
    unsigned flags;
} kind;

static bool validate(void *user, uint32_t status, const struct plb_http1_header *headers, size_t count)
{
    (void)user, (void)headers, (void)count;
    return status == 200;
}

static size_t kinds_fill(kind *kinds)
{
    static const plb_tls tls = {.name = NULL};
    static const plb_tcp_check_desc over_tls = {.tls = &tls};
    static const plb_http_check_desc http = {.headers = "X-a: b\r\nX-c: d\r\n",
                                             .contains = "ok",
                                             .validate = validate,
                                             .reuse_connection = true,
                                             .connect = {.source = {.family = PLB_FAMILY_IPV4}}};
    static const plb_http_check_desc https = {.connect = {.tls = &tls}, .reuse_connection = true};
    static const plb_agent_check_desc agent = {.send = "how are you?\n", .must_answer = true};
    static const plb_grpc_check_desc grpc = {.service = "a.service", .host = "a.host"};
    size_t n = 0;
    STACK("plb_tcp_check", kinds[n++] = ((kind){"a TCP check passes", plb_tcp_check(NULL), NULL, 0, 0}));
    kinds[n++] = (kind){"a TCP check over TLS passes", plb_tcp_check(&over_tls), NULL, 0, 0};
    kinds[n++] = (kind){"an HTTPS check passes", plb_http_check(&https), page, sizeof page - 1, NETWORK_AGAIN};
    kinds[n++] = (kind){"an HTTP/2 check over TLS passes", plb_http2_check(&https), h2_page, sizeof h2_page - 1, 0};
    STACK("plb_http_check",
          kinds[n++] = ((kind){"an HTTP check passes", plb_http_check(&http), page, sizeof page - 1, 0}));
    kinds[n] = kinds[n - 1];
    kinds[n++].flags = NETWORK_AGAIN;
    kinds[n++] = (kind){"an HTTP check passes", plb_http_check(NULL), page, sizeof page - 1, NETWORK_ENDS};
    STACK("plb_http2_check",
          kinds[n++] = ((kind){"an HTTP/2 check passes", plb_http2_check(&http), h2_page, sizeof h2_page - 1, 0}));
    STACK("plb_grpc_check",
          kinds[n++] = ((kind){"a gRPC check passes", plb_grpc_check(&grpc), h2_grpc, sizeof h2_grpc - 1, 0}));
    STACK("plb_agent_check", kinds[n++] = ((kind){"an agent check passes", plb_agent_check(&agent), "up 50%\n", 7, 0}));
    STACK("plb_redis_check", kinds[n++] = ((kind){"a Redis check passes", plb_redis_check(NULL), "+PONG\r\n", 7, 0}));
    STACK("plb_smtp_check", kinds[n++] = ((kind){"an SMTP check passes", plb_smtp_check(NULL), "250 ok\r\n", 8,
                                                 NETWORK_GREETS | NETWORK_AGAIN}));
    STACK("plb_mysql_check", kinds[n++] = ((kind){"a MySQL check passes", plb_mysql_check(NULL), mysql,
                                                  sizeof mysql - 1, NETWORK_GREETS}));
    STACK("plb_postgres_check",
          kinds[n++] = ((kind){"a PostgreSQL check passes", plb_postgres_check(NULL), "S", 1, 0}));
    STACK("plb_memcached_check",
          kinds[n++] = ((kind){"a memcached check passes", plb_memcached_check(NULL), "VERSION 1.6\r\n", 13, 0}));
    return n;
}

static void check_in_every_state(const kind *k, unsigned flags)
{
    static const char *const names[] = {"10.0.0.0:80", "10.0.0.1:80", "10.0.0.2:80"};
    plb_static_desc list = {.addresses = names, .address_count = COUNT(names)};
    plb_balancer_desc desc = everything(&list);
    plb_probe_info probe;
    plb_addr addr = addr_of(names[0]);
    desc.check = k->check;
    desc.check.timeout_ms = 30;
    for (size_t i = 0; i < COUNT(hosts); i++) {
        hosts[i].flags = k->flags | flags;
        hosts[i].answer = i == 2 ? "nonsense\n nonsense\r\n\r\n" : k->answer;
        hosts[i].answer_size = i == 2 ? 22 : k->answer_size;
        hosts[i].state = NETWORK_SERVES;
    }
    create(&desc);
    run(50);
    rule(k->rule, plb_find_probe(lb, &addr, 0, 0, &probe) == PLB_OK && probe.passed > 0 && probe.failed == 0);
    run(200);
    for (int state = NETWORK_REFUSES; state <= NETWORK_RESETS; state++) {
        hosts[0].state = (network_state)state;
        hosts[1].state = NETWORK_SERVES;
        run(250);
        hosts[0].state = NETWORK_SERVES;
        run(200);
    }
    hosts[0].state = hosts[1].state = NETWORK_HANGS;
    run(105);
    destroy(); /* with probes in flight */
    hosts[0].state = hosts[1].state = NETWORK_SERVES;
}

static void checks(void)
{
    static kind kinds[24];
    size_t count = kinds_fill(kinds);
    for (size_t i = 0; i < count; i++) {
        check_in_every_state(&kinds[i], 0);
        check_in_every_state(&kinds[i], NETWORK_FAST);
    }
}

/* An HTTP/2 check with as much as a request may have, and expectations with a long one. */
static void long_descriptors(void)
{
    static char headers[1024], host[256];
    static const char *const names[] = {"10.0.0.0:80"};
    static const plb_expect_step steps[] = {{.send = "a", .expect = "b", .until = "\n"}, {.send = "c", .expect = "d"}};
    static plb_expect_check_desc expect = {.steps = steps, .step_count = COUNT(steps)};
    plb_static_desc list = {.addresses = names, .address_count = COUNT(names)};
    plb_balancer_desc desc = everything(&list);
    plb_http_check_desc http = {.headers = headers, .host = host};
    plb_check more[2];
    for (size_t i = 0; i < 24; i++)
        memcpy(headers + 8 * i, "X-a: b\r\n", 9);
    memset(host, 'a', 200);
    hosts[0].flags = NETWORK_FAST;
    hosts[0].answer = h2_page;
    hosts[0].answer_size = sizeof h2_page - 1;
    more[0] = plb_http2_check(&http);
    STACK("plb_expect_check", more[1] = plb_expect_check(&expect));
    desc.checks = more;
    desc.check_count = 2;
    create(&desc);
    run(300);
    destroy();
}

/* ---- extensions of the program's: what may be called from where ---- */

static uint32_t own_pick(const void *table, const plb_view *view, plb_reader *reader, const void *key,
                         size_t key_length, uint32_t limit)
{
    static uintptr_t turn;
    static plb_addr addr;
    uint32_t n = 0;
    (void)table, (void)key, (void)key_length, (void)limit;
    STACK("plb_view_count", n = plb_view_count(view));
    STACK("plb_view_weight", plb_view_weight(view, 0));
    STACK("plb_view_weight_sum", plb_view_weight_sum(view));
    STACK("plb_view_addr", plb_view_addr(view, 0, &addr));
    STACK("plb_view_ready", plb_view_ready(view, 0));
    STACK("plb_view_ready_count", plb_view_ready_count(view));
    STACK("plb_view_ready_nth", plb_view_ready_nth(view, n / 2));
    STACK("plb_view_in_flight", plb_view_in_flight(view, 0));
    STACK("plb_view_slot", plb_view_slot(view, 0));
    STACK("plb_view_state", plb_view_state(view));
    STACK("plb_view_data", plb_view_data(view, 0));
    STACK("plb_view_ready_weight", plb_view_ready_weight(view));
    STACK("plb_reader_random", plb_reader_random(reader));
    STACK("plb_reader_turn", plb_reader_turn(reader, &turn));
    STACK("plb_view_ready_after", plb_view_ready_after(view, 1));
    STACK("plb_view_draw", n = plb_view_draw(view, reader));
    return n;
}

static uint32_t own_first(const void *table, const plb_view *view, plb_reader *reader, const void *key,
                          size_t key_length, plb_cursor *cursor)
{
    (void)table, (void)view, (void)reader, (void)key, (void)key_length, (void)cursor;
    return 0;
}

static uint32_t own_next(const void *table, const plb_view *view, plb_reader *reader, plb_cursor *cursor)
{
    (void)table, (void)view, (void)reader, (void)cursor;
    return 1;
}

static plb_status own_discover(void *state, plb_token token)
{
    (void)state;
    STACK("plb_discovery_done", plb_discovery_done(token, PLB_OK, backends, MANY));
    return PLB_OK;
}

static void own_cancel(void *state, plb_token token)
{
    (void)state, (void)token;
}

static plb_status own_start(void *state, void *probe, const plb_backend *target, plb_token token)
{
    static const plb_report report = {.status = PLB_ERR_ANSWER, .text = "a report", .has_share = true, .share = 9};
    (void)state, (void)probe;
    STACK("plb_check_deadline", plb_check_deadline(token, 10));
    if (target->addr.u.v4[3] % 2 == 0)
        STACK("plb_check_done", plb_check_done(token, PLB_ERR_REFUSED));
    else
        STACK("plb_check_report", plb_check_report(token, &report));
    return PLB_OK;
}

static void own_probe_cancel(void *state, void *probe, plb_token token)
{
    (void)state, (void)probe, (void)token;
}

static plb_status talk_open(void *state, const void *desc, const plb_env *env)
{
    static const char *const alpn[] = {"a", "b", NULL};
    static const plb_tls tls = {.name = "a", .alpn = alpn};
    static const plb_connect_desc connect = {.tls = &tls};
    plb_exchange_check *check = (plb_exchange_check *)state;
    plb_status status;
    (void)desc;
    STACK("plb_exchange_open", status = plb_exchange_open(check, &connect, 0, env));
    STACK("plb_exchange_close", plb_exchange_close(check));
    memset(check, 0, sizeof *check);
    return status == PLB_OK ? plb_exchange_open(check, NULL, 0, env) : status;
}

static void talk_close(void *state)
{
    plb_exchange_close((plb_exchange_check *)state);
}

static plb_status talk_connected(plb_exchange *exchange)
{
    static const plb_chunk chunk = {"hello", 5, PLB_CHUNK_CONSTANT};
    static const plb_report report = {.text = "half way"};
    STACK("plb_exchange_send", plb_exchange_send(exchange, &chunk, 1));
    STACK("plb_exchange_say", plb_exchange_say(exchange, &report));
    return PLB_AGAIN;
}

static plb_status talk_received(plb_exchange *exchange, const char *bytes, size_t size, size_t *used)
{
    (void)exchange, (void)bytes;
    *used = size;
    return PLB_OK;
}

static plb_status talk_start(void *state, void *probe, const plb_backend *target, plb_token token)
{
    static const plb_exchange_ops ops = {talk_connected, talk_received, NULL};
    plb_exchange *exchange = (plb_exchange *)probe;
    plb_status status;
    if ((hosts[0].flags & NETWORK_FAST) != 0) /* then talk_connected is called from here */
        return plb_exchange_start(exchange, &ops, (const plb_exchange_check *)state, target, NULL, token);
    STACK("plb_exchange_start",
          status = plb_exchange_start(exchange, &ops, (const plb_exchange_check *)state, target, NULL, token));
    return status;
}

static void talk_cancel(void *state, void *probe, plb_token token)
{
    STACK("plb_exchange_cancel", plb_exchange_cancel(state, probe, token));
}

static void run_quietly(uint32_t ms)
{
    while (ms-- > 0) {
        network_step(&net);
        plb_poll(lb);
    }
}

static void extensions(void)
{
    static const plb_strategy_ops strategy = {.name = "own", .first = own_first, .next = own_next, .pick = own_pick};
    static const plb_discovery_ops discovery = {.name = "own", .start = own_discover, .cancel = own_cancel};
    static const plb_check_ops own = {.name = "own", .probe_size = 1, .start = own_start, .cancel = own_probe_cancel};
    static const plb_check_ops talk = {.name = "talk",
                                       .state_size = sizeof(plb_exchange_check),
                                       .probe_size = sizeof(plb_exchange),
                                       .open = talk_open,
                                       .close = talk_close,
                                       .start = talk_start,
                                       .cancel = talk_cancel};
    static const plb_check_ops *const each[] = {&own, &talk, &talk};
    for (size_t i = 0; i < COUNT(each); i++) {
        plb_balancer_desc desc = everything(NULL);
        plb_addr to;
        desc.strategy.ops = &strategy;
        desc.discovery.ops = &discovery;
        desc.check.ops = each[i];
        desc.check.timeout_ms = 20;
        desc.start_unhealthy = i == 0;
        hosts[0].flags = i == 2 ? NETWORK_FAST : 0;
        if (plb_create(&desc, &lb) != PLB_OK)
            rule("extensions open", false);
        hosts[1].state = NETWORK_HANGS;
        run_quietly(150);
        plb_select(lb, NULL, 0, 0, &to);
        plb_destroy(lb);
        memset(net.streams, 0, sizeof net.streams);
    }
    hosts[0].flags = 0;
    hosts[1].state = NETWORK_SERVES;
}

/* ---- names, which are resolved ---- */

static plb_names_fn resolved;
static void *resolved_user;

static plb_status resolve(void *self, const char *host, uint16_t port, uint32_t timeout_ms, plb_names_fn fn, void *user,
                          plb_query **out)
{
    (void)self, (void)host, (void)port, (void)timeout_ms;
    resolved = fn;
    resolved_user = user;
    *out = (plb_query *)(void *)&resolved;
    return PLB_AGAIN;
}

static void resolve_cancel(void *self, plb_query *query)
{
    (void)self, (void)query;
}

static void host_names(void)
{
    static const plb_names names = {NULL, resolve, resolve_cancel};
    static const char *const list_names[] = {"db.example:5432"};
    plb_static_desc list = {.addresses = list_names, .address_count = 1};
    plb_balancer_desc desc = everything(&list);
    plb_addr addrs[2] = {addr_of("10.0.0.1:5432"), addr_of("10.0.0.2:5432")};
    desc.port.names = &names;
    create(&desc);
    run(2);
    STACK("(callback of plb_names)", resolved(resolved_user, PLB_OK, addrs, 2));
    run(2);
    plb_update_now(lb);
    run(2);
    STACK("(callback of plb_names)", resolved(resolved_user, PLB_ERR_NAME, NULL, 0));
    run(2);
    destroy();
}

/* What a descriptor has wrong is told by the log. */
static void bad_descriptors(void)
{
    static const char *const names[] = {"10.0.0.1:80", "this is not an address"};
    plb_static_desc list = {.addresses = names, .address_count = COUNT(names)};
    plb_balancer_desc desc = everything(&list);
    plb_status status;
    STACK("plb_create", status = plb_create(&desc, &lb));
    rule("a bad address is told", status == PLB_ERR_ADDRESS);
}

/* ---- codecs ---- */

static plb_text text_of(const char *string)
{
    plb_text text = {string, strlen(string)};
    return text;
}

static void http1_codec(void)
{
    static const char request[] =
        "POST /path HTTP/1.1\r\nHost: a\r\nConnection: close, te\r\nContent-Length: 12\r\n\r\n";
    static const char chunks[] = "5;ext=1\r\nhello\r\n0\r\nTrailer: 1\r\n\r\n";
    static plb_http1_header headers[16];
    plb_http1_head head = {.headers = headers, .header_capacity = COUNT(headers)};
    plb_http1_chunked chunked = {.left = 0};
    plb_http1_body body;
    plb_text data;
    size_t used, at = 0;
    uint64_t length;
    plb_status status;
    STACK("plb_http1_parse_request", status = plb_http1_parse_request(&head, request, sizeof request - 1));
    STACK("plb_http1_request_body", plb_http1_request_body(&head, &body));
    STACK("plb_http1_find", plb_http1_find(&head, "content-length"));
    STACK("plb_http1_list_next", plb_http1_list_next(head.headers[1].value, &at, &data));
    STACK("plb_http1_lists", plb_http1_lists(&head, "connection", "te"));
    STACK("plb_http1_keeps_alive", plb_http1_keeps_alive(&head));
    STACK("plb_http1_is_idempotent", plb_http1_is_idempotent(head.method));
    STACK("plb_http1_is_token", plb_http1_is_token(head.method));
    STACK("plb_http1_is_value", plb_http1_is_value(head.target));
    STACK("plb_http1_content_length", plb_http1_content_length(text_of("1234567890123"), &length));
    STACK("plb_text_is", plb_text_is(head.method, "post"));
    rule("the HTTP/1 codec reads a request", status == PLB_OK && body.length == 12);
    memset(&head, 0, sizeof head);
    head.headers = headers;
    head.header_capacity = COUNT(headers);
    STACK("plb_http1_parse_response", status = plb_http1_parse_response(&head, page, sizeof page - 1));
    STACK("plb_http1_response_body", plb_http1_response_body(&head, false, &body));
    for (at = 0; status == PLB_OK; at += used)
        STACK("plb_http1_chunked_next",
              status = plb_http1_chunked_next(&chunked, chunks + at, sizeof chunks - 1 - at, &used, &data));
    rule("the HTTP/1 codec reads a chunked body", status == PLB_END);
}

static void hpack_codec(void)
{
    /* RFC 7541 appendix C.4.1 */
    static const char block[] = "\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff";
    static char room[512], out[64];
    static plb_hpack hpack;
    plb_hpack_field field;
    plb_status status = PLB_OK;
    size_t at = 0, used = 0, fields = 0;
    STACK("plb_hpack_open", plb_hpack_open(&hpack, room, sizeof room));
    STACK("plb_hpack_acknowledged", plb_hpack_acknowledged(&hpack));
    for (; status == PLB_OK; at += used, fields++)
        STACK("plb_hpack_next", status = plb_hpack_next(&hpack, block + at, sizeof block - 1 - at, &used, &field));
    STACK("plb_hpack_end", status = plb_hpack_end(&hpack));
    rule("the HPACK codec reads the RFC's block", status == PLB_OK && fields == 5);
    STACK("plb_hpack_write", plb_hpack_write(out, sizeof out, text_of("name"), text_of("value")));
}

static void http2_codec(void)
{
    static char room[PLB_HTTP2_MEMORY], body[64];
    static plb_http2 h;
    static plb_grpc_health health;
    plb_http2_header headers[PLB_GRPC_HEADERS];
    plb_http2_event event;
    plb_text out;
    size_t at = 0, used = 0;
    uint32_t grpc_status;
    plb_status status = PLB_OK, message = PLB_AGAIN;
    bool ended = false;
    STACK("plb_grpc_health_headers", plb_grpc_health_headers(headers, text_of("a.host"), false));
    STACK("plb_grpc_health_request", out.size = plb_grpc_health_request(body, sizeof body, text_of("a.service")));
    out.data = body;
    STACK("plb_http2_open", plb_http2_open(&h, room, sizeof room));
    STACK("plb_http2_request", status = plb_http2_request(&h, headers, PLB_GRPC_HEADERS, out));
    for (int i = 0; i < 8; i++) {
        STACK("plb_http2_output", out = plb_http2_output(&h));
        STACK("plb_http2_sent", plb_http2_sent(&h, out.size));
    }
    for (; status == PLB_OK; at += used) {
        STACK("plb_http2_next", status = plb_http2_next(&h, h2_grpc + at, sizeof h2_grpc - 1 - at, &used, &event));
        if (status == PLB_OK && event.kind == PLB_HTTP2_DATA)
            STACK("plb_grpc_health_next", message = plb_grpc_health_next(&health, event.data.data, event.data.size));
        ended = ended || (status == PLB_OK && event.kind == PLB_HTTP2_END);
    }
    rule("the HTTP/2 codec reads an answer", ended && message == PLB_OK && health.serving == PLB_GRPC_SERVING);
    STACK("plb_grpc_status", plb_grpc_status(text_of("14"), &grpc_status));
    STACK("plb_grpc_status_name", plb_grpc_status_name(14));
    STACK("plb_grpc_serving_name", plb_grpc_serving_name(1));
    plb_http2_request(&h, headers, PLB_GRPC_HEADERS, text_of(""));
    STACK("plb_http2_cancel", plb_http2_cancel(&h));
    STACK("plb_http2_close", plb_http2_close(&h));
}

static void agent_line(void)
{
    static const char line[] = "up 50% ready maxconn:30 #fine\r\n";
    plb_agent_answer answer;
    STACK("plb_agent_parse", plb_agent_parse(&answer, line, sizeof line - 1));
}

int main(void)
{
    for (uint32_t i = 0; i < MANY; i++)
        backends[i] = backend_of(i, 1 + i % 3);
    for (uint32_t i = 0; i < 20; i++)
        backends[i].priority = 1;
    small_calls();
    timers();
    strategies();
    questions();
    checks();
    long_descriptors();
    extensions();
    host_names();
    bad_descriptors();
    http1_codec();
    hpack_codec();
    http2_codec();
    agent_line();
    stack_report();
    return rules_report();
}
