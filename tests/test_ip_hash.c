/* IP hash gives the answers that nginx's ip_hash was recorded to give, and goes on hashing as nginx does. */
#define _POSIX_C_SOURCE 200809L
#include "../pingora_lb.h"
#include <greatest.h>
#include "vectors.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

static const char *const sets[] = {
    "127.0.0.1:1001 1,127.0.0.2:1001 1,127.0.0.3:1001 1",
    "127.0.0.1:1001 5,127.0.0.2:1001 1,127.0.0.3:1001 2,127.0.0.4:1001 1",
};

static plb_balancer *balancer(const char *text)
{
    vectors_set set = vectors_parse_set(text);
    return vectors_balancer(&set, plb_ip_hash());
}

/* `count` backends of weight 1, or of weights 1 to `weights` by turns. */
static plb_balancer *balancer_of(uint32_t count, uint32_t weights)
{
    plb_backend *backends = (plb_backend *)calloc(count, sizeof *backends);
    plb_static_desc list = {NULL, 0, NULL, 0, 0};
    plb_balancer_desc desc;
    plb_balancer *lb;
    uint32_t i;
    memset(&desc, 0, sizeof desc);
    for (i = 0; backends != NULL && i < count; i++) {
        backends[i].addr.family = PLB_FAMILY_IPV4;
        backends[i].addr.port = 80;
        backends[i].addr.u.v4[0] = 10;
        backends[i].addr.u.v4[2] = (uint8_t)(i / 256);
        backends[i].addr.u.v4[3] = (uint8_t)i;
        backends[i].weight = 1 + i % weights;
    }
    list.backends = backends;
    list.backend_count = count;
    desc.discovery = plb_static(&list);
    desc.strategy = plb_ip_hash();
    if (backends == NULL || plb_create(&desc, &lb) != PLB_OK)
        abort();
    free(backends);
    return lb;
}

static void enable(plb_balancer *lb, const char *text, bool enabled)
{
    plb_addr addr;
    if (plb_addr_parse(&addr, text, PLB_ZSTRING) != PLB_OK || plb_set_enabled(lb, &addr, 0, enabled) != PLB_OK)
        abort();
}

/* The address picked, as text. */
static const char *picked(plb_balancer *lb, const void *key, size_t length, uint32_t max_iterations)
{
    static char text[PLB_ADDR_TEXT_MAX];
    plb_addr addr;
    if (plb_select(lb, key, length, max_iterations, &addr) != PLB_OK)
        return "none";
    plb_addr_format(&addr, text, sizeof text);
    return text;
}

/* nginx's recurrence, a byte at a time, on from `hash`. */
static uint32_t nginx_hash(uint32_t hash, const uint8_t *bytes, size_t count)
{
    for (; count > 0; count--)
        hash = (hash * 113 + *bytes++) % 6271;
    return hash;
}

/* The n-th backend of a raw sequence, from 0, by its last byte. */
static void raw_sequence(plb_balancer *lb, const void *key, size_t length, uint32_t *out, uint32_t count)
{
    plb_walk walk;
    plb_backend_info info;
    uint32_t i;
    if (plb_walk_begin(&walk, lb, key, length) != PLB_OK)
        return;
    for (i = 0; i < count; i++) {
        plb_walk_next(&walk, &info);
        out[i] = info.backend.addr.u.v4[2] * 256u + info.backend.addr.u.v4[3];
    }
    plb_walk_end(&walk);
}

TEST answers_as_nginx_was_recorded(void)
{
    FILE *file = vectors_open("nginx-ip-hash.csv");
    plb_balancer *lb[2];
    char line[VECTORS_LINE];
    int lines = 0;
    lb[0] = balancer(sets[0]);
    lb[1] = balancer(sets[1]);
    while (fgets(line, sizeof line, file) != NULL) {
        char *f[3], text[64];
        plb_addr client;
        ASSERT_EQ(3, vectors_split(line, ';', f, 3));
        snprintf(text, sizeof text, strchr(f[1], ':') != NULL ? "[%s]:1" : "%s:1", f[1]);
        ASSERT_EQ(PLB_OK, plb_addr_parse(&client, text, PLB_ZSTRING));
        if (client.family == PLB_FAMILY_IPV4)
            ASSERT_STR_EQ(f[2], picked(lb[f[0][0] - 'a'], client.u.v4, 4, 256));
        else
            ASSERT_STR_EQ(f[2], picked(lb[f[0][0] - 'a'], client.u.v6, 16, 256));
        lines++;
    }
    ASSERT_EQ_FMT(520, lines, "%d");
    fclose(file);
    plb_destroy(lb[0]);
    plb_destroy(lb[1]);
    PASS();
}

TEST clients_of_one_class_c_network_stay_together(void)
{
    plb_balancer *lb = balancer_of(50, 1);
    uint8_t client[4] = {192, 0, 2, 0};
    char first[PLB_ADDR_TEXT_MAX];
    int i, others = 0;
    strcpy(first, picked(lb, client, 4, 0));
    for (i = 0; i < 256; i++) {
        client[3] = (uint8_t)i;
        ASSERT_STR_EQ(first, picked(lb, client, 4, 0));
    }
    for (i = 0; i < 256; i++) {
        client[2] = (uint8_t)i;
        others += strcmp(first, picked(lb, client, 4, 0)) != 0;
    }
    ASSERT(others > 200);
    plb_destroy(lb);
    PASS();
}

TEST of_any_other_key_all_bytes_count(void)
{
    plb_balancer *lb = balancer_of(200, 1);
    uint8_t key[100];
    uint32_t length, i, got;
    for (i = 0; i < sizeof key; i++)
        key[i] = (uint8_t)(i * 37 + 200);
    for (length = 0; length <= sizeof key; length++) {
        raw_sequence(lb, key, length, &got, 1);
        ASSERT_EQ_FMT(nginx_hash(89, key, length == 4 ? 3 : length) % 200, got, "%u");
    }
    ASSERT_STR_EQ("10.0.0.89:80", picked(lb, NULL, 0, 0));
    plb_destroy(lb);
    PASS();
}

/* nginx hashes 21 times before it goes round robin. */
TEST the_next_choices_go_on_hashing_then_go_through_the_set(void)
{
    static const size_t lengths[] = {4, 16, 5};
    plb_balancer *lb = balancer_of(300, 1);
    uint32_t got[21 + 300], k, i;
    for (k = 0; k < 60; k++) {
        size_t length = lengths[k % 3], used = length == 4 ? 3 : length;
        uint8_t key[16];
        uint32_t hash = 89;
        for (i = 0; i < 16; i++)
            key[i] = (uint8_t)(k * 71 + i * 13);
        raw_sequence(lb, key, length, got, COUNT(got));
        for (i = 0; i < 21; i++) {
            hash = nginx_hash(hash, key, used);
            ASSERT_EQ_FMT(hash % 300, got[i], "%u");
        }
        for (; i < COUNT(got); i++)
            ASSERT_EQ_FMT((got[i - 1] + 1) % 300, got[i], "%u");
    }
    plb_destroy(lb);
    PASS();
}

/* Limits count the raw sequence. Without one any ready backend may come where few are, the same for the same key. */
TEST a_pick_is_the_first_ready_one_of_the_sequence(void)
{
    plb_balancer *lb = balancer_of(100, 3);
    uint32_t k, i, ready[] = {0, 63, 64, 99}, up;
    for (i = 0; i < 100; i++) {
        char text[32];
        snprintf(text, sizeof text, "10.0.0.%u:80", (unsigned)i);
        enable(lb, text, false);
    }
    ASSERT_STR_EQ("none", picked(lb, "abc", 3, 0));
    for (up = 0; up < COUNT(ready); up++) {
        char text[PLB_ADDR_TEXT_MAX], now[PLB_ADDR_TEXT_MAX];
        snprintf(now, sizeof now, "10.0.0.%u:80", (unsigned)ready[up]);
        enable(lb, now, true);
        for (k = 0; k < 200; k++) {
            uint8_t key[4] = {(uint8_t)k, 7, (uint8_t)(k * 3), 0};
            uint32_t got[121];
            raw_sequence(lb, key, 4, got, COUNT(got));
            for (i = 0; i < COUNT(got) && got[i] != ready[up]; i++)
                if (up > 0 && got[i] == ready[0])
                    break;
            snprintf(text, sizeof text, "10.0.0.%u:80", (unsigned)got[i]);
            ASSERT_STR_EQ(text, picked(lb, key, 4, i + 1));
            if (i > 0)
                ASSERT_STR_EQ("none", picked(lb, key, 4, i));
            snprintf(text, sizeof text, "%s", picked(lb, key, 4, 0));
            ASSERT(strcmp(text, now) == 0 || (up > 0 && strcmp(text, "10.0.0.0:80") == 0));
            ASSERT_STR_EQ(text, picked(lb, key, 4, 0));
        }
        if (up > 0)
            enable(lb, now, false);
    }
    plb_destroy(lb);
    PASS();
}

/* 113^16 mod 6271 is not 1, so one hash leads to itself: that client's backend is down, and it is still served. */
TEST a_client_whose_hash_leads_to_itself_is_served(void)
{
    plb_balancer *lb = balancer("10.0.0.1:80 1,10.0.0.2:80 1");
    uint8_t key[16];
    uint32_t i, stuck = 0;
    memset(key, 0, sizeof key);
    for (i = 0; i < 65536 && stuck == 0; i++) {
        uint32_t hash;
        key[0] = (uint8_t)(i >> 8);
        key[15] = (uint8_t)i;
        hash = nginx_hash(89, key, sizeof key);
        stuck = nginx_hash(hash, key, sizeof key) == hash;
    }
    ASSERT(stuck);
    enable(lb, strcmp(picked(lb, key, 16, 0), "10.0.0.1:80") == 0 ? "10.0.0.1:80" : "10.0.0.2:80", false);
    ASSERT_STR_EQ("none", picked(lb, key, 16, 21));
    ASSERT(strcmp(picked(lb, key, 16, 22), "none") != 0);
    ASSERT(strcmp(picked(lb, key, 16, 0), "none") != 0);
    plb_destroy(lb);
    PASS();
}

TEST weights_that_are_all_0_are_not_ready_and_can_be_walked(void)
{
    plb_balancer *lb = balancer("10.0.0.1:80 0,10.0.0.2:80 0,10.0.0.3:80 0");
    uint32_t got[24];
    ASSERT_STR_EQ("none", picked(lb, "abc", 3, 0));
    raw_sequence(lb, "abc", 3, got, COUNT(got));
    ASSERT(got[21] != got[22] && got[22] != got[23] && got[23] != got[21]);
    plb_destroy(lb);
    PASS();
}

/* The manual says so: past 6271 in the sum of weights there are no keys of one's own. */
TEST what_stands_past_6271_is_reached_only_for_others(void)
{
    plb_balancer *lb = balancer("10.0.0.1:80 6270,10.0.0.2:80 1,10.0.0.3:80 6000");
    uint32_t i, second = 0;
    for (i = 0; i < 100000; i++) {
        uint8_t key[4] = {(uint8_t)(i >> 16), (uint8_t)(i >> 8), (uint8_t)i, 0};
        const char *got = picked(lb, key, 4, 0);
        ASSERT(strcmp(got, "10.0.0.3:80") != 0);
        second += strcmp(got, "10.0.0.2:80") == 0;
    }
    ASSERT(second > 0);
    enable(lb, "10.0.0.1:80", false);
    enable(lb, "10.0.0.2:80", false);
    ASSERT_STR_EQ("10.0.0.3:80", picked(lb, "abc", 3, 0));
    plb_destroy(lb);
    PASS();
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_TEST(answers_as_nginx_was_recorded);
    RUN_TEST(clients_of_one_class_c_network_stay_together);
    RUN_TEST(of_any_other_key_all_bytes_count);
    RUN_TEST(the_next_choices_go_on_hashing_then_go_through_the_set);
    RUN_TEST(a_pick_is_the_first_ready_one_of_the_sequence);
    RUN_TEST(a_client_whose_hash_leads_to_itself_is_served);
    RUN_TEST(weights_that_are_all_0_are_not_ready_and_can_be_walked);
    RUN_TEST(what_stands_past_6271_is_reached_only_for_others);
    GREATEST_MAIN_END();
}
