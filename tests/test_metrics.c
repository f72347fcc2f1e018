/* Metrics: a strict reader of the text format judges every line; then each value, right after what it tells of. */
#include "../pingora_lb.h"
#define SIM_IMPLEMENTATION
#include "sim.h"
#include <greatest.h>
#include "rig.h"

#define TEXT_MAX (1 << 18)

static char text[TEXT_MAX];

/* ---- a reader of the text exposition format 0.0.4 that takes nothing but what the format asks for ---- */

#define NAMES_MAX  64
#define SERIES_MAX 2048

typedef struct reader {
    char names[NAMES_MAX][80]; /* metrics so far; the last one is being told of */
    size_t name_count;
    bool helped, typed, counter;
    const char *series[SERIES_MAX]; /* name and labels */
    size_t lengths[SERIES_MAX];
    size_t series_count;
    const char *complaint;
} reader;

static bool complain(reader *r, const char *complaint)
{
    r->complaint = complaint;
    return false;
}

static bool is_name_start(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

static size_t name_length(const char *at)
{
    size_t n = 0;
    if (!is_name_start(at[0]))
        return 0;
    while (is_name_start(at[n]) || (at[n] >= '0' && at[n] <= '9'))
        n++;
    return n;
}

/* A label's value from behind its quote on; returns what follows the closing one, or NULL. */
static const char *label_value_end(const char *at)
{
    while (*at != '"') {
        uint8_t byte = (uint8_t)*at;
        size_t length = 1;
        if (byte < 0x20 || byte == 0x7f)
            return NULL;
        if (byte == '\\' && *++at != '\\' && *at != '"' && *at != 'n')
            return NULL;
        if (byte >= 0x80)
            length = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc2 ? 2 : 0;
        if (length == 0)
            return NULL;
        for (at++; --length > 0; at++)
            if (((uint8_t)*at & 0xc0) != 0x80)
                return NULL;
    }
    return at + 1;
}

/* Labels from the brace on; returns what follows the closing one, or NULL. */
static const char *labels_end(const char *at)
{
    const char *seen[16];
    size_t lengths[16], count = 0, i;
    do {
        size_t length = name_length(++at);
        if (length == 0 || count == 16)
            return NULL;
        for (i = 0; i < count; i++)
            if (lengths[i] == length && memcmp(seen[i], at, length) == 0)
                return NULL;
        seen[count] = at;
        lengths[count++] = length;
        at += length;
        if (*at++ != '=' || *at++ != '"')
            return NULL;
        at = label_value_end(at);
        if (at == NULL)
            return NULL;
    } while (*at == ',');
    return *at == '}' ? at + 1 : NULL;
}

static bool is_value(const char *at)
{
    size_t digits = strspn(at, "0123456789");
    if (digits == 0 || (digits > 1 && at[0] == '0'))
        return false;
    at += digits;
    if (*at == '.') {
        digits = strspn(++at, "0123456789");
        if (digits == 0)
            return false;
        at += digits;
    }
    return *at == '\n';
}

static bool ends_with(const char *name, const char *end)
{
    size_t length = strlen(name), end_length = strlen(end);
    return length >= end_length && strcmp(name + length - end_length, end) == 0;
}

static bool read_help(reader *r, const char *at)
{
    size_t length = name_length(at), i;
    if (length == 0 || length >= sizeof r->names[0] || at[length] != ' ' || at[length + 1] == '\n')
        return complain(r, "a HELP line without a name or a text");
    if (strncmp(at, "plb_", 4) != 0)
        return complain(r, "a name that does not begin with plb_");
    if (r->name_count == NAMES_MAX || (r->helped && !r->typed))
        return complain(r, "no TYPE follows a HELP");
    for (i = 0; i < r->name_count; i++)
        if (strlen(r->names[i]) == length && memcmp(r->names[i], at, length) == 0)
            return complain(r, "a metric comes twice");
    memcpy(r->names[r->name_count], at, length);
    r->names[r->name_count++][length] = '\0';
    r->helped = true;
    r->typed = false;
    return true;
}

static bool read_type(reader *r, const char *at)
{
    const char *name = r->name_count > 0 ? r->names[r->name_count - 1] : "";
    size_t length = strlen(name);
    if (!r->helped || r->typed || strncmp(at, name, length) != 0 || at[length] != ' ')
        return complain(r, "a TYPE without its HELP before it");
    at += length + 1;
    r->counter = strncmp(at, "counter\n", 8) == 0;
    if (!r->counter && strncmp(at, "gauge\n", 6) != 0)
        return complain(r, "an unknown type");
    if (r->counter != ends_with(name, "_total"))
        return complain(r, "counters, and they alone, end in _total");
    r->typed = true;
    return true;
}

static bool read_sample(reader *r, const char *line)
{
    size_t length = name_length(line), i;
    const char *name = r->name_count > 0 ? r->names[r->name_count - 1] : "", *at = line + length;
    if (!r->typed || strlen(name) != length || memcmp(line, name, length) != 0)
        return complain(r, "a sample away from its metric");
    if (*at == '{')
        at = labels_end(at);
    if (at == NULL || *at != ' ' || !is_value(at + 1))
        return complain(r, "labels or value are malformed");
    length = (size_t)(at - line);
    for (i = 0; i < r->series_count; i++)
        if (r->lengths[i] == length && memcmp(r->series[i], line, length) == 0)
            return complain(r, "a sample comes twice");
    if (r->series_count < SERIES_MAX) {
        r->series[r->series_count] = line;
        r->lengths[r->series_count++] = length;
    }
    return true;
}

/* NULL, or what is wrong with the text. */
static const char *judge(const char *at)
{
    static reader r;
    memset(&r, 0, sizeof r);
    while (*at != '\0') {
        const char *end = strchr(at, '\n');
        bool good;
        if (end == NULL)
            return "the last line does not end";
        if (strncmp(at, "# HELP ", 7) == 0)
            good = read_help(&r, at + 7);
        else if (strncmp(at, "# TYPE ", 7) == 0)
            good = read_type(&r, at + 7);
        else
            good = read_sample(&r, at);
        if (!good) {
            fprintf(stderr, "%.*s\n", (int)(end - at), at);
            return r.complaint;
        }
        at = end + 1;
    }
    return NULL;
}

/* The value of a sample, "" if there is none. */
static const char *value(const char *series)
{
    static char found[64];
    size_t length = strlen(series);
    const char *at = text;
    found[0] = '\0';
    while (*at != '\0') {
        size_t line = (size_t)(strchr(at, '\n') - at);
        if (strncmp(at, series, length) == 0 && at[length] == ' ') {
            snprintf(found, sizeof found, "%.*s", (int)(line - length - 1), at + length + 1);
            break;
        }
        at += line + 1;
    }
    return found;
}

/* Writes the metrics anew; NULL, or what is wrong with them. */
static const char *scrape(rig *r)
{
    size_t length = plb_metrics(r->lb, text, sizeof text);
    if (length >= sizeof text || length != strlen(text))
        return "not the length that was told";
    return judge(text);
}

#define SAYS(wanted, series) ASSERT_STR_EQ(wanted, value(series))

/* ---- the format ---- */

TEST all_of_it_is_well_formed(void)
{
    const char *addresses[] = {"10.0.0.1:80", "[::1]:80", "unix:/run/db"};
    plb_static_desc list = {addresses, 3, NULL, 0, 0};
    rig r;
    rig_begin(&r);
    r.desc.discovery = plb_static(&list);
    r.desc.check = plb_tcp_check(NULL);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_EQ(NULL, scrape(&r)); /* before any probe */
    rig_run(&r, 50);
    ASSERT_EQ(NULL, scrape(&r));
    SAYS("3", "plb_backends");
    SAYS("0", "plb_backend_healthy{address=\"[::1]:80\"}");
    SAYS("0", "plb_backend_healthy{address=\"unix:/run/db\"}");
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST a_balancer_without_a_set_has_metrics_too(void)
{
    rig r;
    feed f;
    rig_begin(&r);
    memset(&f, 0, sizeof f);
    f.later = true;
    r.desc.discovery = feed_discovery(&f, false);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_EQ(NULL, scrape(&r));
    SAYS("0", "plb_backends");
    SAYS("0", "plb_updates_total");
    SAYS("1", "plb_update_last_status{status=\"pending\"}");
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST odd_names_and_paths_are_escaped(void)
{
    static const char *const names[] = {"a\"b",
                                        "c\\d",
                                        "e\nf",
                                        "\x01\x7f",
                                        "gr\xc3\xbc\xc3\x9f",
                                        "\xff\xc3",
                                        "\xe2\x82",
                                        "\xed\xa0\x80",
                                        "\xf0\x9f\x98\x80",
                                        "\xc0\xaf",
                                        "\xf4\x90\x80\x80"};
    static const char *const written[] = {"a\\\"b",
                                          "c\\\\d",
                                          "e\\nf",
                                          "\\\\x01\\\\x7f",
                                          "gr\xc3\xbc\xc3\x9f",
                                          "\\\\xff\\\\xc3",
                                          "\\\\xe2\\\\x82",
                                          "\\\\xed\\\\xa0\\\\x80",
                                          "\xf0\x9f\x98\x80",
                                          "\\\\xc0\\\\xaf",
                                          "\\\\xf4\\\\x90\\\\x80\\\\x80"};
    size_t i;
    for (i = 0; i < sizeof names / sizeof *names; i++) {
        plb_backend backend = rig_backend("unix:/a", 1);
        char series[200];
        rig r;
        feed f;
        rig_begin(&r);
        memset(&f, 0, sizeof f);
        backend.name = names[i];
        backend.addr.path_len = (uint8_t)strlen(names[i]);
        memcpy(backend.addr.u.path, names[i], strlen(names[i]));
        r.desc.name = names[i];
        r.desc.discovery = feed_discovery(&f, false);
        feed_set(&f, &backend, 1);
        ASSERT_EQ(PLB_OK, rig_create(&r));
        ASSERT_EQ(NULL, scrape(&r));
        snprintf(series, sizeof series, "plb_backend_enabled{balancer=\"%s\",address=\"unix:%s\",name=\"%s\"}",
                 written[i], written[i], written[i]);
        SAYS("1", series);
        ASSERT_EQ(0, rig_end(&r));
    }
    PASS();
}

TEST a_path_with_a_nul_byte_does_not_end_the_text(void)
{
    plb_backend backend = rig_backend("unix:/abc", 1);
    rig r;
    feed f;
    rig_begin(&r);
    memset(&f, 0, sizeof f);
    backend.addr.u.path[0] = '\0';
    r.desc.discovery = feed_discovery(&f, false);
    feed_set(&f, &backend, 1);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_EQ(NULL, scrape(&r));
    SAYS("1", "plb_backend_enabled{address=\"unix:\\\\x00abc\"}");
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST a_text_that_is_cut_ends_with_a_whole_line(void)
{
    static char cut[TEXT_MAX];
    const char *addresses[] = {"10.0.0.1:80", "10.0.0.2:80"};
    plb_static_desc list = {addresses, 2, NULL, 0, 0};
    size_t length, capacity, room;
    rig r;
    rig_begin(&r);
    r.desc.discovery = plb_static(&list);
    r.desc.check = plb_tcp_check(NULL);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    rig_run(&r, 10);
    length = plb_metrics(r.lb, text, sizeof text);
    ASSERT_EQ(length, plb_metrics(r.lb, NULL, 0));
    for (capacity = 1; capacity <= length + 2; capacity++) {
        memset(cut, '#', capacity + 1);
        ASSERT_EQ(length, plb_metrics(r.lb, cut, capacity));
        ASSERT_EQ('#', cut[capacity]); /* nothing is written behind it */
        room = strlen(cut);
        ASSERT_LT(room, capacity);
        ASSERT_MEM_EQ(text, cut, room);
        ASSERT(room == 0 || cut[room - 1] == '\n');
        /* and it holds every line that fits */
        ASSERT(room == length || (size_t)(strchr(text + room, '\n') - text) + 1 >= capacity);
    }
    ASSERT_STR_EQ(text, cut);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST nothing_is_allocated(void)
{
    const char *addresses[] = {"10.0.0.1:80"};
    plb_static_desc list = {addresses, 1, NULL, 0, 0};
    uint64_t calls;
    rig r;
    rig_begin(&r);
    r.desc.discovery = plb_static(&list);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    calls = r.memory.calls;
    ASSERT_EQ(NULL, scrape(&r));
    ASSERT_EQ(calls, r.memory.calls);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

/* ---- whose the samples are ---- */

TEST one_address_has_one_sample_however_often_it_stands_in_the_set(void)
{
    plb_backend backends[5];
    rig r;
    feed f;
    prober p;
    rig_begin(&r);
    memset(&f, 0, sizeof f);
    memset(&p, 0, sizeof p);
    backends[0] = rig_backend("10.0.0.1:80", 0); /* three entries of one tier, then the same in another tier */
    backends[1] = rig_backend("10.0.0.1:80", 2);
    backends[2] = rig_backend("10.0.0.1:80", 3);
    backends[3] = rig_backend("10.0.0.1:80", 7);
    backends[3].priority = 4;
    backends[4] = rig_backend("10.0.0.1:80", 9); /* another service */
    backends[4].id = 6;
    r.desc.discovery = feed_discovery(&f, false);
    r.desc.check = prober_check(&p);
    feed_set(&f, backends, 5);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    rig_run(&r, 1);
    ASSERT_EQ(NULL, scrape(&r));
    SAYS("5", "plb_backends");
    SAYS("5", "plb_backend_weight{address=\"10.0.0.1:80\",priority=\"0\"}");
    SAYS("7", "plb_backend_weight{address=\"10.0.0.1:80\",priority=\"4\"}");
    SAYS("9", "plb_backend_weight{address=\"10.0.0.1:80\",id=\"6\",priority=\"0\"}");
    SAYS("1", "plb_backend_ready{address=\"10.0.0.1:80\",priority=\"0\"}");
    SAYS("1", "plb_backend_healthy{address=\"10.0.0.1:80\"}");
    SAYS("1", "plb_backend_healthy{address=\"10.0.0.1:80\",id=\"6\"}");
    SAYS("1", "plb_check_probes_total{address=\"10.0.0.1:80\",check=\"0\",kind=\"prober\",result=\"passed\"}");
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST several_balancers_share_one_text(void)
{
    const char *addresses[] = {"10.0.0.1:80"};
    char name[] = "one";
    plb_static_desc list = {addresses, 1, NULL, 0, 0};
    plb_balancer *both[2];
    rig a, b;
    rig_begin(&a);
    rig_begin(&b);
    a.desc.name = name;
    b.desc.name = "two";
    a.desc.discovery = b.desc.discovery = plb_static(&list);
    ASSERT_EQ(PLB_OK, rig_create(&a));
    ASSERT_EQ(PLB_OK, rig_create(&b));
    name[0] = 'X'; /* it was copied */
    both[0] = a.lb;
    both[1] = b.lb;
    ASSERT_LT(plb_metrics_of(both, 2, text, sizeof text), sizeof text);
    ASSERT_EQ(NULL, judge(text));
    SAYS("1", "plb_backends{balancer=\"one\"}");
    SAYS("1", "plb_backends{balancer=\"two\"}");
    SAYS("1", "plb_backend_healthy{balancer=\"two\",address=\"10.0.0.1:80\"}");
    ASSERT_EQ(0, rig_end(&a));
    ASSERT_EQ(0, rig_end(&b));
    PASS();
}

TEST a_name_needs_memory_and_creation_fails_without(void)
{
    const char *addresses[] = {"10.0.0.1:80"};
    plb_static_desc list = {addresses, 1, NULL, 0, 0};
    uint64_t n;
    bool failed = false;
    for (n = 1; n < 20 && !failed; n++) {
        rig r;
        rig_begin(&r);
        r.desc.name = "one";
        r.desc.discovery = plb_static(&list);
        r.memory.fail_at = n;
        failed = rig_create(&r) == PLB_OK;
        ASSERT_EQ(0, rig_end(&r));
    }
    ASSERT(failed); /* something was created in the end */
    PASS();
}

/* ---- the values ---- */

TEST backends_tell_what_befalls_them(void)
{
    plb_addr addr = sim_addr("10.0.0.1:80");
    plb_backend backends[2];
    plb_pick pick;
    rig r;
    feed f;
    rig_begin(&r);
    memset(&f, 0, sizeof f);
    backends[0] = rig_backend("10.0.0.1:80", 3);
    backends[1] = rig_backend("10.0.0.2:80", 0);
    r.desc.discovery = feed_discovery(&f, false);
    feed_set(&f, backends, 2);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_EQ(PLB_OK, plb_begin(r.lb, NULL, &pick));
    ASSERT_EQ(NULL, scrape(&r));
    SAYS("2", "plb_backends");
    SAYS("1", "plb_backends_ready");
    SAYS("2", "plb_backends_healthy");
    SAYS("0", "plb_backends_ejected");
    SAYS("3", "plb_backend_weight{address=\"10.0.0.1:80\",priority=\"0\"}");
    SAYS("0", "plb_backend_weight{address=\"10.0.0.2:80\",priority=\"0\"}");
    SAYS("1", "plb_backend_ready{address=\"10.0.0.1:80\",priority=\"0\"}");
    SAYS("0", "plb_backend_ready{address=\"10.0.0.2:80\",priority=\"0\"}");
    SAYS("1", "plb_backend_requests_in_flight{address=\"10.0.0.1:80\"}");
    SAYS("1", "plb_backend_enabled{address=\"10.0.0.1:80\"}");
    SAYS("0", "plb_backend_ejected{address=\"10.0.0.1:80\"}");
    SAYS("0", "plb_backend_advised_off{address=\"10.0.0.1:80\"}");
    SAYS("1.000", "plb_backend_share_ratio{address=\"10.0.0.1:80\"}");
    SAYS("0", "plb_backend_flips_total{address=\"10.0.0.1:80\"}");
    plb_end(&pick, PLB_OUTCOME_SUCCESS, 0);
    ASSERT_EQ(PLB_OK, plb_set_enabled(r.lb, &addr, 0, false));
    ASSERT_EQ(NULL, scrape(&r));
    SAYS("0", "plb_backend_requests_in_flight{address=\"10.0.0.1:80\"}");
    SAYS("0", "plb_backend_enabled{address=\"10.0.0.1:80\"}");
    SAYS("0", "plb_backend_ready{address=\"10.0.0.1:80\",priority=\"0\"}");
    SAYS("0", "plb_backends_ready");
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

/* A report for start number n. */
static void report(prober *p, uint32_t n, plb_status status, uint32_t code)
{
    plb_report said;
    memset(&said, 0, sizeof said);
    said.status = status;
    said.code = code;
    p->in_flight--;
    plb_check_report(p->tokens[n], &said);
}

#define OF_CHECK "{address=\"10.0.0.1:80\",check=\"0\",kind=\"prober\""

TEST checks_tell_of_their_probes(void)
{
    plb_backend backend = rig_backend("10.0.0.1:80", 1);
    rig r;
    feed f;
    prober p;
    rig_begin(&r);
    memset(&f, 0, sizeof f);
    memset(&p, 0, sizeof p);
    r.desc.discovery = feed_discovery(&f, false);
    r.desc.check = prober_check(&p);
    r.desc.check.every_ms = 1000;
    p.later = true;
    feed_set(&f, &backend, 1);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    rig_run(&r, 20);
    ASSERT_EQ(NULL, scrape(&r));
    SAYS("1", "plb_probes_in_flight");
    SAYS("1", "plb_check_passing" OF_CHECK "}");
    SAYS("1", "plb_check_last_status" OF_CHECK ",status=\"pending\"}");
    SAYS("", "plb_check_last_code" OF_CHECK "}"); /* nothing is known yet */
    SAYS("", "plb_check_last_duration_seconds" OF_CHECK "}");
    report(&p, 0, PLB_ERR_ANSWER, 503);
    rig_run(&r, 1);
    ASSERT_EQ(NULL, scrape(&r));
    SAYS("0", "plb_probes_in_flight");
    SAYS("0", "plb_check_passing" OF_CHECK "}");
    SAYS("0", "plb_check_probes_total" OF_CHECK ",result=\"passed\"}");
    SAYS("1", "plb_check_probes_total" OF_CHECK ",result=\"failed\"}");
    SAYS("1", "plb_check_last_status" OF_CHECK ",status=\"answer\"}");
    SAYS("503", "plb_check_last_code" OF_CHECK "}");
    SAYS("0.020000", "plb_check_last_duration_seconds" OF_CHECK "}");
    SAYS("0", "plb_backend_healthy{address=\"10.0.0.1:80\"}");
    SAYS("1", "plb_backend_flips_total{address=\"10.0.0.1:80\"}");
    SAYS("0", "plb_backends_healthy");
    rig_run(&r, 1004);
    report(&p, 1, PLB_OK, 200);
    rig_run(&r, 1);
    ASSERT_EQ(NULL, scrape(&r));
    SAYS("1", "plb_check_probes_total" OF_CHECK ",result=\"passed\"}");
    SAYS("1", "plb_check_probes_total" OF_CHECK ",result=\"failed\"}");
    SAYS("1", "plb_check_last_status" OF_CHECK ",status=\"ok\"}");
    SAYS("200", "plb_check_last_code" OF_CHECK "}");
    SAYS("2", "plb_backend_flips_total{address=\"10.0.0.1:80\"}");
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST an_agents_advice_shows(void)
{
    plb_backend backend = rig_backend("10.0.0.1:80", 1);
    plb_report said;
    rig r;
    feed f;
    prober p;
    rig_begin(&r);
    memset(&f, 0, sizeof f);
    memset(&p, 0, sizeof p);
    memset(&said, 0, sizeof said);
    r.desc.discovery = feed_discovery(&f, false);
    r.desc.check = prober_check(&p);
    p.later = true;
    feed_set(&f, &backend, 1);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    rig_run(&r, 1);
    said.has_share = true;
    said.share = 128;
    said.enablement = PLB_ENABLEMENT_OFF;
    plb_check_report(p.tokens[0], &said);
    p.in_flight--;
    rig_run(&r, 1);
    ASSERT_EQ(NULL, scrape(&r));
    SAYS("0.502", "plb_backend_share_ratio{address=\"10.0.0.1:80\"}");
    SAYS("1", "plb_backend_advised_off{address=\"10.0.0.1:80\"}");
    SAYS("0", "plb_backends_ready");
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST a_check_that_a_backend_does_not_have_has_no_samples(void)
{
    plb_backend backend = rig_backend("10.0.0.1:80", 1);
    rig r;
    feed f;
    prober p;
    rig_begin(&r);
    memset(&f, 0, sizeof f);
    memset(&p, 0, sizeof p);
    r.desc.discovery = feed_discovery(&f, false);
    r.desc.check = prober_check(&p);
    r.desc.check.by_name = true;
    feed_set(&f, &backend, 1);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    rig_run(&r, 1);
    ASSERT_EQ(NULL, scrape(&r));
    SAYS("", "plb_check_passing" OF_CHECK "}");
    backend.checks = 1;
    plb_update_now(r.lb);
    rig_run(&r, 1);
    ASSERT_EQ(NULL, scrape(&r));
    SAYS("1", "plb_check_passing" OF_CHECK "}");
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST updates_are_counted_and_timed(void)
{
    plb_backend backends[2];
    rig r;
    feed f;
    rig_begin(&r);
    memset(&f, 0, sizeof f);
    backends[0] = rig_backend("10.0.0.1:80", 1);
    backends[1] = rig_backend("10.0.0.2:80", 1);
    f.later = true;
    r.desc.discovery = feed_discovery(&f, false);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    rig_run(&r, 250);
    feed_set(&f, backends, 1);
    feed_answer(&f);
    rig_run(&r, 1);
    ASSERT_EQ(NULL, scrape(&r));
    SAYS("1", "plb_updates_total");
    SAYS("1", "plb_set_changes_total");
    SAYS("0", "plb_update_failures_total");
    SAYS("0.250000", "plb_discovery_duration_seconds");
    SAYS("0.000000", "plb_build_duration_seconds");
    SAYS("1", "plb_update_last_status{status=\"ok\"}");
    plb_update_now(r.lb);
    rig_run(&r, 1);
    feed_answer(&f); /* the same again */
    rig_run(&r, 1);
    ASSERT_EQ(NULL, scrape(&r));
    SAYS("2", "plb_updates_total");
    SAYS("1", "plb_set_changes_total");
    plb_update_now(r.lb);
    rig_run(&r, 1);
    plb_discovery_done(f.token, PLB_ERR_NAME, NULL, 0);
    rig_run(&r, 1);
    backends[1].weight = 70000; /* refused */
    feed_set(&f, backends, 2);
    plb_update_now(r.lb);
    rig_run(&r, 1);
    feed_answer(&f);
    rig_run(&r, 1);
    ASSERT_EQ(NULL, scrape(&r));
    SAYS("2", "plb_updates_total");
    SAYS("2", "plb_update_failures_total");
    SAYS("1", "plb_update_last_status{status=\"weight\"}");
    SAYS("1", "plb_backends");
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST sets_that_are_still_read_are_counted(void)
{
    plb_backend backends[2];
    plb_walk walk;
    rig r;
    feed f;
    rig_begin(&r);
    memset(&f, 0, sizeof f);
    backends[0] = rig_backend("10.0.0.1:80", 1);
    backends[1] = rig_backend("10.0.0.2:80", 1);
    r.desc.discovery = feed_discovery(&f, false);
    feed_set(&f, backends, 1);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_EQ(PLB_OK, plb_walk_begin(&walk, r.lb, NULL, 0));
    feed_set(&f, backends, 2);
    plb_update_now(r.lb);
    rig_run(&r, 1);
    ASSERT_EQ(NULL, scrape(&r));
    SAYS("1", "plb_retired_sets");
    plb_walk_end(&walk);
    rig_run(&r, 2);
    ASSERT_EQ(NULL, scrape(&r));
    SAYS("0", "plb_retired_sets");
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST every_status_has_a_label_of_its_own(void)
{
    plb_backend backend = rig_backend("10.0.0.1:80", 1);
    plb_status status;
    rig r;
    feed f;
    prober p;
    rig_begin(&r);
    memset(&f, 0, sizeof f);
    memset(&p, 0, sizeof p);
    r.desc.discovery = feed_discovery(&f, false);
    r.desc.check = prober_check(&p);
    feed_set(&f, &backend, 1);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    rig_run(&r, 1);
    for (status = PLB_ERR_ARGUMENT; status < PLB_STATUS_COUNT; status = (plb_status)(status + 1)) {
        static char seen[PLB_STATUS_COUNT][32];
        char *label, *end;
        int other;
        p.result = status;
        plb_check_now(r.lb);
        rig_run(&r, 1);
        if (plb_status_is_local(status))
            continue; /* says nothing of the backend */
        ASSERT_EQ(NULL, scrape(&r));
        label = strstr(text, "plb_check_last_status" OF_CHECK ",status=\"");
        ASSERT(label != NULL);
        label += strlen("plb_check_last_status" OF_CHECK ",status=\"");
        end = strchr(label, '"');
        ASSERT(end - label < 32);
        memcpy(seen[status], label, (size_t)(end - label));
        for (other = 0; other < (int)status; other++)
            ASSERT(strcmp(seen[other], seen[status]) != 0);
    }
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

SUITE(metrics)
{
    RUN_TEST(all_of_it_is_well_formed);
    RUN_TEST(a_balancer_without_a_set_has_metrics_too);
    RUN_TEST(odd_names_and_paths_are_escaped);
    RUN_TEST(a_path_with_a_nul_byte_does_not_end_the_text);
    RUN_TEST(a_text_that_is_cut_ends_with_a_whole_line);
    RUN_TEST(nothing_is_allocated);
    RUN_TEST(one_address_has_one_sample_however_often_it_stands_in_the_set);
    RUN_TEST(several_balancers_share_one_text);
    RUN_TEST(a_name_needs_memory_and_creation_fails_without);
    RUN_TEST(backends_tell_what_befalls_them);
    RUN_TEST(checks_tell_of_their_probes);
    RUN_TEST(an_agents_advice_shows);
    RUN_TEST(a_check_that_a_backend_does_not_have_has_no_samples);
    RUN_TEST(updates_are_counted_and_timed);
    RUN_TEST(sets_that_are_still_read_are_counted);
    RUN_TEST(every_status_has_a_label_of_its_own);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(metrics);
    GREATEST_MAIN_END();
}
