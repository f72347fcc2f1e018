/* The strategies give the answers that pingora-load-balancing and nginx were recorded to give. */
#define _POSIX_C_SOURCE 200809L
#include "../pingora_lb.h"
#include <greatest.h>
#include "vectors.h"

static const char *const sequence_sets[][2] = {
    {"a", "1.1.1.1:80 1,1.0.0.1:80 10,1.0.0.255:80 1"},
    {"b", "127.0.0.1:7777 1,127.0.0.1:7778 2,127.0.0.1:7779 3"},
    {"c", "[::1]:7777 1,[::1]:7778 1,[2001:db8::1]:443 5,10.0.0.9:443 2"},
    {"d", "192.0.2.1:1 1"},
    {"e", "10.0.0.1:443 7,10.0.0.2:443 3,10.0.0.3:443 1,10.0.0.4:443 1,10.0.0.10:443 2,10.0.0.20:443 1,10.0.1.1:8443 1,"
          "10.0.0.1:80 1"},
};

static const char *const nginx_sets[][2] = {
    {"nginx-a.csv", "127.0.0.1:17001 1,127.0.0.1:17002 1,127.0.0.3:17003 1"},
    {"nginx-b.csv", "127.0.0.2:443 5,127.0.0.3:443 1,127.0.0.4:8080 2,127.0.0.5:443 10,127.0.0.6:1234 1,"
                    "127.0.0.7:443 3,127.0.0.8:443 1,127.0.0.9:65535 1"},
};

static const char *sequence_set(const char *name)
{
    size_t i;
    for (i = 0; i < sizeof sequence_sets / sizeof *sequence_sets; i++)
        if (strcmp(sequence_sets[i][0], name) == 0)
            return sequence_sets[i][1];
    return "";
}

/* What the raw iterator yields for a key, as the recording writes it. */
static void raw_sequence(plb_balancer *lb, const char *key, int count, char *out, size_t capacity)
{
    plb_walk walk;
    size_t length = 0;
    int i;
    out[0] = '\0';
    if (plb_walk_begin(&walk, lb, key, strlen(key)) != PLB_OK)
        return;
    for (i = 0; i < count; i++) {
        plb_backend_info info;
        char addr[PLB_ADDR_TEXT_MAX];
        plb_walk_next(&walk, &info);
        plb_addr_format(&info.backend.addr, addr, sizeof addr);
        length += (size_t)snprintf(out + length, capacity - length, "%s%s", i > 0 ? " " : "", addr);
    }
    plb_walk_end(&walk);
}

TEST raw_iterators_yield_the_recorded_sequences(void)
{
    FILE *file = vectors_open("sequences.txt");
    char line[VECTORS_LINE], previous[64] = "";
    plb_balancer *lb = NULL;
    int lines = 0;
    while (fgets(line, sizeof line, file) != NULL) {
        char *f[4], got[VECTORS_LINE], current[64];
        ASSERT_EQ(4, vectors_split(line, ';', f, 4));
        snprintf(current, sizeof current, "%s;%s", f[0], f[1]);
        if (strcmp(current, previous) != 0) {
            vectors_set set = vectors_parse_set(sequence_set(f[1]));
            plb_destroy(lb);
            lb = vectors_balancer(&set, vectors_strategy(f[0]));
            strcpy(previous, current);
        }
        raw_sequence(lb, f[2], strcmp(f[0], "rr") == 0 ? 2 : 8, got, sizeof got);
        ASSERT_STR_EQ(f[3], got);
        lines++;
    }
    plb_destroy(lb);
    fclose(file);
    ASSERT_EQ_FMT(760, lines, "%d");
    PASS();
}

static void picked(plb_balancer *lb, const char *key, uint32_t max_iterations, char *out, size_t capacity)
{
    plb_addr addr;
    if (plb_select(lb, key, strlen(key), max_iterations, &addr) == PLB_OK)
        plb_addr_format(&addr, out, capacity);
    else
        snprintf(out, capacity, "none");
}

static bool accept_ready(void *user, const plb_backend_info *info)
{
    (void)user;
    return info->ready;
}

/* The general walk with an accept callback must come to the same answers as the fast path. */
static void picked_by_walk(plb_balancer *lb, const char *key, uint32_t max_iterations, char *out, size_t capacity)
{
    plb_request request;
    plb_addr addr;
    memset(&request, 0, sizeof request);
    request.key = key;
    request.key_length = strlen(key);
    request.max_iterations = max_iterations;
    request.accept = accept_ready;
    if (plb_select_with(lb, &request, &addr) == PLB_OK)
        plb_addr_format(&addr, out, capacity);
    else
        snprintf(out, capacity, "none");
}

typedef void pick_fn(plb_balancer *lb, const char *key, uint32_t max_iterations, char *out, size_t capacity);

/* Plays a file of picks and flips; a strategy's first pick in a case is from a fresh balancer. */
static enum greatest_test_res play(const char *name, pick_fn *pick, int picks_expected)
{
    FILE *file = vectors_open(name);
    char line[4 * VECTORS_LINE], previous[64] = "";
    vectors_set set = {0};
    plb_balancer *lb = NULL;
    int picks = 0;
    while (fgets(line, sizeof line, file) != NULL) {
        char *f[5], got[PLB_ADDR_TEXT_MAX], current[64];
        if (strncmp(line, "set;", 4) == 0) {
            ASSERT_EQ(3, vectors_split(line, ';', f, 3));
            set = vectors_parse_set(f[2]);
            previous[0] = '\0';
            continue;
        }
        if (strncmp(line, "flip;", 5) == 0) {
            plb_addr addr;
            ASSERT_EQ(4, vectors_split(line, ';', f, 4));
            ASSERT_EQ(PLB_OK, plb_addr_parse(&addr, f[2], PLB_ZSTRING));
            ASSERT_EQ(PLB_OK, plb_set_enabled(lb, &addr, 0, strcmp(f[3], "up") == 0));
            continue;
        }
        ASSERT_EQ(5, vectors_split(line, ';', f, 5));
        snprintf(current, sizeof current, "%s;%s", f[0], f[1]);
        if (strcmp(current, previous) != 0) {
            plb_destroy(lb);
            lb = vectors_balancer(&set, vectors_strategy(f[0]));
            strcpy(previous, current);
        }
        pick(lb, f[2], (uint32_t)strtoul(f[3], NULL, 10), got, sizeof got);
        ASSERT_STR_EQ(f[4], got);
        picks++;
    }
    plb_destroy(lb);
    fclose(file);
    ASSERT_EQ_FMT(picks_expected, picks, "%d");
    PASS();
}

TEST select_answers_as_recorded_with_backends_down(void)
{
    CHECK_CALL(play("select.txt", picked, 1440));
    CHECK_CALL(play("select.txt", picked_by_walk, 1440));
    PASS();
}

TEST select_answers_as_recorded_while_backends_flip(void)
{
    CHECK_CALL(play("flips.txt", picked, 810));
    CHECK_CALL(play("flips.txt", picked_by_walk, 810));
    PASS();
}

TEST ketama_is_the_ring_of_nginx(void)
{
    size_t i;
    for (i = 0; i < 2; i++) {
        FILE *file = vectors_open(nginx_sets[i][0]);
        vectors_set set = vectors_parse_set(nginx_sets[i][1]);
        plb_balancer *lb = vectors_balancer(&set, plb_ketama(NULL));
        char line[VECTORS_LINE];
        int lines = 0;
        while (fgets(line, sizeof line, file) != NULL) {
            char got[PLB_ADDR_TEXT_MAX], *upstream;
            line[strcspn(line, "\n")] = '\0';
            upstream = strrchr(line, ';');
            ASSERT(upstream != NULL);
            *upstream++ = '\0';
            picked(lb, line, 0, got, sizeof got);
            ASSERT_STR_EQ(upstream, got);
            lines++;
        }
        plb_destroy(lb);
        fclose(file);
        ASSERT_EQ_FMT(1000, lines, "%d");
    }
    PASS();
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_TEST(raw_iterators_yield_the_recorded_sequences);
    RUN_TEST(select_answers_as_recorded_with_backends_down);
    RUN_TEST(select_answers_as_recorded_while_backends_flip);
    RUN_TEST(ketama_is_the_ring_of_nginx);
    GREATEST_MAIN_END();
}
