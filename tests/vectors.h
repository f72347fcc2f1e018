/* Reading tests/vectors/: sets of backends, strategies by their names there, lines split at a character. */
#ifndef VECTORS_H
#define VECTORS_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../pingora_lb.h"

#define VECTORS_BACKENDS 64
#define VECTORS_LINE     1024

typedef struct vectors_set {
    plb_backend backends[VECTORS_BACKENDS];
    size_t count;
} vectors_set;

static inline plb_strategy vectors_strategy(const char *name)
{
    plb_strategy none = {NULL, NULL};
    if (strcmp(name, "rr") == 0)
        return plb_round_robin();
    if (strcmp(name, "random") == 0)
        return plb_random_choice();
    if (strcmp(name, "fnv") == 0)
        return plb_fnv();
    if (strcmp(name, "ketama") == 0)
        return plb_ketama(NULL);
    fprintf(stderr, "unknown strategy %s\n", name);
    abort();
    return none;
}

/* Adds one backend; up false: switched off by its discovery. */
static inline void vectors_add(vectors_set *set, const char *addr, unsigned weight, int up)
{
    plb_backend *b = &set->backends[set->count];
    memset(b, 0, sizeof *b);
    if (set->count == VECTORS_BACKENDS || plb_addr_parse(&b->addr, addr, PLB_ZSTRING) != PLB_OK) {
        fprintf(stderr, "bad vector: %s\n", addr);
        abort();
    }
    b->weight = weight;
    b->enablement = up ? PLB_ENABLEMENT_ON : PLB_ENABLEMENT_OFF;
    set->count++;
}

/* "ADDR WEIGHT[ up|down],ADDR WEIGHT..." */
static inline vectors_set vectors_parse_set(const char *text)
{
    vectors_set set;
    char copy[4 * VECTORS_LINE], *entry, *rest = NULL;
    set.count = 0;
    snprintf(copy, sizeof copy, "%s", text);
    for (entry = strtok_r(copy, ",", &rest); entry != NULL; entry = strtok_r(NULL, ",", &rest)) {
        char addr[128], state[8] = "up";
        unsigned weight = 0;
        if (sscanf(entry, " %127s %u %7s", addr, &weight, state) < 2)
            abort();
        vectors_add(&set, addr, weight, strcmp(state, "up") == 0);
    }
    return set;
}

static inline plb_balancer *vectors_balancer(const vectors_set *set, plb_strategy strategy)
{
    plb_static_desc list = {NULL, 0, NULL, 0, 0};
    plb_balancer_desc desc;
    plb_balancer *lb = NULL;
    memset(&desc, 0, sizeof desc);
    list.backends = set->backends;
    list.backend_count = set->count;
    desc.discovery = plb_static(&list);
    desc.strategy = strategy;
    if (plb_create(&desc, &lb) != PLB_OK)
        abort();
    return lb;
}

/* Splits a line in place; returns the number of fields. The last one keeps what is left. */
static inline int vectors_split(char *line, char separator, char **fields, int max)
{
    int n = 0;
    line[strcspn(line, "\n")] = '\0';
    for (;;) {
        char *end;
        fields[n++] = line;
        end = n < max ? strchr(line, separator) : NULL;
        if (end == NULL)
            return n;
        *end = '\0';
        line = end + 1;
    }
}

static inline FILE *vectors_open(const char *name)
{
    char path[256];
    FILE *file;
    snprintf(path, sizeof path, "tests/vectors/%s", name);
    file = fopen(path, "r");
    if (file == NULL) {
        perror(path);
        abort();
    }
    return file;
}
#endif
