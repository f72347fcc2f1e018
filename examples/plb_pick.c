/* Which backend does each key go to? Reads keys, a line each, and says so; or how evenly they are spread, or how many
   move when a backend leaves. The strategies run as in a server, without one.

       printf '%s\n' /a /b /c | build/plb_pick -s ketama 10.0.0.1:80 10.0.0.2:80,weight=3 10.0.0.3:80,down */
#define PINGORA_LB_IMPLEMENTATION
#include "../pingora_lb.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef _WIN32 /* where streams of text lose bytes, and end at a Ctrl-Z */
#include <fcntl.h>
#include <io.h>
#define keep_every_byte(stream) _setmode(_fileno(stream), _O_BINARY)
#else
#define keep_every_byte(stream) ((void)(stream))
#endif

static const char usage[] =
    "usage: plb_pick -s STRATEGY [OPTION]... BACKEND... <KEYS\n"
    "\n"
    "Shows which backend each key goes to: for every line of the input, KEY<TAB>ADDRESS or KEY<TAB>none.\n"
    "\n"
    "  -s STRATEGY         rr, random, wrr (smooth), least_conn, p2c, ewma; or by the key: fnv, ketama, maglev,\n"
    "                      bounded, rendezvous, ip_hash\n"
    "  -n MAX_ITERATIONS   steps to look at past backends that are down; 0: find any that is ready (256, what\n"
    "                      pingora's users pass)\n"
    "  -m POINT_MULTIPLE   points on the ring for each unit of weight; ketama and bounded only (160)\n"
    "  --spread            instead: what share of the keys each backend gets, and what share its weight asks for\n"
    "  --without ADDRESS   instead: how many keys move when that backend leaves\n"
    "  -h, --help          this text\n"
    "\n"
    "BACKEND is ADDRESS[,weight=N][,down][,backup]; ADDRESS is 1.2.3.4:80, [::1]:80 or unix:/path; N is 0 to 65535 "
    "(1).\n"
    "KEYS: only the newline is taken off a line; every other byte, a carriage return or NUL too, belongs to the key. "
    "For\n"
    "ip_hash each line is an IPv4 or IPv6 address, with or without a port. A strategy without a key picks once for "
    "each\n"
    "line, in order. No request is in flight: least_conn, p2c, ewma and bounded show what they do at rest.\n"
    "\n"
    "Exits with 0; 2 if an argument or a line makes no sense; 1 if reading, writing or memory failed.\n";

/* ==== FAILURES ==================================================================================================== */

static void say(const char *format, va_list arguments)
{
    fflush(stdout);
    fputs("plb_pick: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
}

/* What was asked makes no sense. */
static void reject(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    say(format, arguments);
    va_end(arguments);
    fputs("Try 'plb_pick --help'.\n", stderr);
    exit(2);
}

/* It makes sense, but it did not work. */
static void give_up(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    say(format, arguments);
    va_end(arguments);
    exit(1);
}

static void *allocate(void *old, size_t size)
{
    void *memory = realloc(old, size);
    if (memory == NULL)
        give_up("out of memory");
    return memory;
}

/* ==== OPTIONS ===================================================================================================== */

typedef struct entry {
    plb_backend backend;
    char text[PLB_ADDR_TEXT_MAX]; /* its address */
    uint64_t keys;
} entry;

typedef struct options {
    const char *strategy;
    uint32_t max_iterations, point_multiple; /* 0: the default */
    bool spread, by_address;
    const char *without;
    entry *entries; /* in order of their addresses */
    size_t count, left_out;
} options;

typedef struct kind {
    const char *name;
    plb_strategy (*make)(void); /* NULL: those with a ring */
} kind;

static plb_strategy ewma(void)
{
    return plb_peak_ewma(NULL);
}

static plb_strategy maglev(void)
{
    return plb_maglev(NULL);
}

static const kind kinds[] = {{"rr", plb_round_robin},
                             {"random", plb_random_choice},
                             {"fnv", plb_fnv},
                             {"ketama", NULL},
                             {"wrr", plb_smooth_round_robin},
                             {"least_conn", plb_least_connections},
                             {"p2c", plb_two_choices},
                             {"ewma", ewma},
                             {"maglev", maglev},
                             {"bounded", NULL},
                             {"rendezvous", plb_rendezvous},
                             {"ip_hash", plb_ip_hash}};

static const kind *find_kind(const char *name)
{
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(kinds[i].name, name) == 0)
            return &kinds[i];
    reject("-s: '%s' is none of rr, random, fnv, ketama, wrr, least_conn, p2c, ewma, maglev, bounded, rendezvous, "
           "ip_hash",
           name);
    return NULL;
}

/* Reads a number of at most 10 digits and nothing else. */
static bool parse_number(const char *text, uint32_t min, uint32_t max, uint32_t *out)
{
    size_t length = strlen(text);
    unsigned long long number;
    if (length == 0 || length > 10 || strspn(text, "0123456789") != length)
        return false;
    number = strtoull(text, NULL, 10);
    *out = (uint32_t)number;
    return number >= min && number <= max;
}

static uint32_t number_option(const char *option, const char *text, uint32_t min)
{
    uint32_t number;
    if (!parse_number(text, min, UINT32_MAX, &number))
        reject("%s: '%s' is not a number from %u to %u", option, text, (unsigned)min, (unsigned)UINT32_MAX);
    return number;
}

static void parse_attribute(const char *argument, const char *attribute, plb_backend *backend)
{
    if (strcmp(attribute, "down") == 0) {
        backend->enablement = PLB_ENABLEMENT_OFF;
    } else if (strcmp(attribute, "backup") == 0) {
        backend->priority = PLB_BACKUP;
    } else if (strncmp(attribute, "weight=", 7) == 0) {
        if (!parse_number(attribute + 7, 0, PLB_WEIGHT_MAX, &backend->weight))
            reject("backend '%s': '%s' is not weight=N with N from 0 to %u", argument, attribute, PLB_WEIGHT_MAX);
    } else {
        reject("backend '%s': '%s' is none of weight=N, down, backup", argument, attribute);
    }
}

static void parse_backend(const char *argument, entry *e)
{
    char *text = (char *)allocate(NULL, strlen(argument) + 1), *attribute, *next;
    memset(e, 0, sizeof *e);
    strcpy(text, argument);
    next = strchr(text, ',');
    if (next != NULL)
        *next++ = '\0';
    if (plb_addr_parse(&e->backend.addr, text, PLB_ZSTRING) != PLB_OK)
        reject("backend '%s': '%s' is not an address such as 1.2.3.4:80, [::1]:80 or unix:/path", argument, text);
    e->backend.weight = 1;
    while (next != NULL) {
        attribute = next;
        next = strchr(attribute, ',');
        if (next != NULL)
            *next++ = '\0';
        parse_attribute(argument, attribute, &e->backend);
    }
    plb_addr_format(&e->backend.addr, e->text, sizeof e->text);
    free(text);
}

static int by_address(const void *a, const void *b)
{
    return plb_addr_compare(&((const entry *)a)->backend.addr, &((const entry *)b)->backend.addr);
}

static entry *find_entry(const options *o, const plb_addr *addr)
{
    entry wanted;
    wanted.backend.addr = *addr;
    return (entry *)bsearch(&wanted, o->entries, o->count, sizeof *o->entries, by_address);
}

/* What can only be seen once all arguments are read. */
static void check_options(options *o)
{
    if (o->strategy == NULL)
        reject("no strategy: -s is needed");
    if (o->count == 0)
        reject("no backend: at least one is needed");
    if (o->point_multiple != 0 && find_kind(o->strategy)->make != NULL)
        reject("-m: '%s' has no ring; it goes with ketama and bounded", o->strategy);
    if (o->spread && o->without != NULL)
        reject("--spread and --without: one of them at a time");
    o->by_address = strcmp(o->strategy, "ip_hash") == 0;
    qsort(o->entries, o->count, sizeof *o->entries, by_address);
    for (size_t i = 1; i < o->count; i++)
        if (by_address(&o->entries[i - 1], &o->entries[i]) == 0)
            reject("backend '%s' is given twice", o->entries[i].text);
    o->left_out = o->count;
    if (o->without != NULL) {
        plb_addr addr;
        const entry *found;
        memset(&addr, 0, sizeof addr);
        if (plb_addr_parse(&addr, o->without, PLB_ZSTRING) != PLB_OK)
            reject("--without: '%s' is not an address such as 1.2.3.4:80, [::1]:80 or unix:/path", o->without);
        found = find_entry(o, &addr);
        if (found == NULL)
            reject("--without: '%s' is not one of the backends", o->without);
        o->left_out = (size_t)(found - o->entries);
    }
}

static void parse_options(options *o, int argc, char **argv)
{
    memset(o, 0, sizeof *o);
    o->max_iterations = 256;
    o->entries = (entry *)allocate(NULL, (size_t)argc * sizeof *o->entries);
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (name[0] != '-') {
            parse_backend(name, &o->entries[o->count++]);
            continue;
        }
        if (strcmp(name, "-h") == 0 || strcmp(name, "--help") == 0) {
            fputs(usage, stdout);
            exit(fflush(stdout) == 0 ? 0 : 1);
        }
        if (strcmp(name, "--spread") == 0) {
            o->spread = true;
            continue;
        }
        if (strcmp(name, "-s") != 0 && strcmp(name, "-n") != 0 && strcmp(name, "-m") != 0 &&
            strcmp(name, "--without") != 0)
            reject("'%s' is not an option", name);
        if (value == NULL)
            reject("%s needs a value", name);
        i++;
        if (strcmp(name, "-s") == 0)
            o->strategy = find_kind(value)->name;
        else if (strcmp(name, "-n") == 0)
            o->max_iterations = number_option(name, value, 0);
        else if (strcmp(name, "-m") == 0)
            o->point_multiple = number_option(name, value, 1);
        else
            o->without = value;
    }
    check_options(o);
}

/* ==== PICKING ===================================================================================================== */

/* A balancer over all backends but one. */
static plb_balancer *new_balancer(const options *o, size_t left_out)
{
    const kind *k = find_kind(o->strategy);
    plb_backend *backends = (plb_backend *)allocate(NULL, o->count * sizeof *backends);
    plb_bounded_loads_desc bounded = {.ring = {.point_multiple = o->point_multiple}};
    plb_static_desc list = {.backends = backends};
    plb_balancer_desc desc = {.discovery = plb_static(&list)};
    plb_balancer *lb;
    plb_update_info update;
    plb_status status;
    for (size_t i = 0; i < o->count; i++)
        if (i != left_out)
            backends[list.backend_count++] = o->entries[i].backend;
    if (k->make != NULL)
        desc.strategy = k->make();
    else
        desc.strategy = strcmp(k->name, "ketama") == 0 ? plb_ketama(&bounded.ring) : plb_bounded_loads(&bounded);
    if (o->without != NULL && !desc.strategy.ops->keyed)
        reject("--without: '%s' has no key; it goes with fnv, ketama, maglev, bounded, rendezvous, ip_hash", k->name);
    status = plb_create(&desc, &lb);
    free(backends);
    if (status == PLB_OK) {
        plb_last_update(lb, &update);
        status = update.status;
    }
    if (status == PLB_ERR_POINTS)
        reject("the ring would have too many points: lower the weights, or -m");
    if (status != PLB_OK)
        give_up("no balancer: %s", plb_status_text(status));
    return lb;
}

/* Which backend gets the key, or NULL. */
static entry *pick(const options *o, plb_balancer *lb, const void *key, size_t length)
{
    plb_addr addr;
    if (plb_select(lb, key, length, o->max_iterations, &addr) != PLB_OK)
        return NULL;
    return find_entry(o, &addr);
}

/* ==== KEYS ======================================================================================================== */

typedef struct line {
    char *bytes;
    size_t length, capacity;
    uint64_t number; /* from 1 */
} line;

/* Reads the next line, without its newline; false at the end. */
static bool read_line(line *l)
{
    int c;
    l->number++;
    l->length = 0;
    while ((c = getc(stdin)) != '\n') {
        if (c == EOF) {
            if (ferror(stdin))
                give_up("standard input: %s", strerror(errno));
            return l->length > 0;
        }
        if (l->length == l->capacity) {
            l->capacity *= 2;
            l->bytes = (char *)allocate(l->bytes, l->capacity);
        }
        l->bytes[l->length++] = (char)c;
    }
    return true;
}

/* Reads an IPv4 or IPv6 address with or without a port: as it stands, with a port, in brackets with a port. */
static bool parse_client(const line *l, plb_addr *client)
{
    static const char *const frames[][2] = {{"", ""}, {"", ":1"}, {"[", "]:1"}};
    char text[80];
    if (l->length == 0 || l->length > sizeof text - 5)
        return false;
    for (size_t i = 0; i < sizeof frames / sizeof *frames; i++) {
        size_t before = strlen(frames[i][0]), after = strlen(frames[i][1]);
        memcpy(text, frames[i][0], before);
        memcpy(text + before, l->bytes, l->length);
        memcpy(text + before + l->length, frames[i][1], after);
        if (plb_addr_parse(client, text, before + l->length + after) == PLB_OK)
            return client->family != PLB_FAMILY_UNIX;
    }
    return false;
}

static void reject_line(const line *l)
{
    char shown[64];
    size_t i;
    for (i = 0; i < l->length && i < sizeof shown - 1; i++)
        shown[i] = isprint((unsigned char)l->bytes[i]) ? l->bytes[i] : '?';
    shown[i] = '\0';
    reject("line %llu: '%s%s' is not an address such as 1.2.3.4 or ::1", (unsigned long long)l->number, shown,
           i < l->length ? "..." : "");
}

/* The bytes of the key that a line stands for. */
static const void *key_of(const options *o, const line *l, plb_addr *client, size_t *length)
{
    if (!o->by_address) {
        *length = l->length;
        return l->bytes;
    }
    if (!parse_client(l, client))
        reject_line(l);
    *length = client->family == PLB_FAMILY_IPV4 ? sizeof client->u.v4 : sizeof client->u.v6;
    return client->family == PLB_FAMILY_IPV4 ? client->u.v4 : client->u.v6;
}

/* ==== ANSWERS ===================================================================================================== */

typedef struct counts {
    uint64_t keys, none; /* all; those that no backend got */
    uint64_t own, moved; /* --without: keys of the one that leaves; keys of others that moved too */
} counts;

static void check_output(void)
{
    if (ferror(stdout))
        give_up("standard output: %s", strerror(errno));
}

static void print_line(const line *l, const entry *e)
{
    fwrite(l->bytes, 1, l->length, stdout);
    putc('\t', stdout);
    fputs(e != NULL ? e->text : "none", stdout);
    putc('\n', stdout);
    check_output();
}

/* As a percentage with two decimals. */
static void print_share(uint64_t part, uint64_t whole)
{
    uint64_t share = whole > 0 ? (part * 10000 + whole / 2) / whole : 0;
    printf("  %3u.%02u%%", (unsigned)(share / 100), (unsigned)(share % 100));
}

/* Backends take keys if they are up and weigh something; backups, if no other does. */
static bool takes_keys(const entry *e, bool backup)
{
    return e->backend.enablement != PLB_ENABLEMENT_OFF && (e->backend.priority == PLB_BACKUP) == backup;
}

static uint64_t weight_of_those_that_take_keys(const options *o, bool backup)
{
    uint64_t weight = 0;
    for (size_t i = 0; i < o->count; i++)
        weight += takes_keys(&o->entries[i], backup) ? o->entries[i].backend.weight : 0;
    return weight;
}

static void print_spread(const options *o, const counts *c)
{
    enum { BAR = 40 };
    bool backup = weight_of_those_that_take_keys(o, false) == 0;
    uint64_t weight = weight_of_those_that_take_keys(o, backup), most = 1;
    int width = (int)strlen("backend");
    for (size_t i = 0; i < o->count; i++) {
        int length = (int)strlen(o->entries[i].text);
        width = length > width ? length : width;
        most = o->entries[i].keys > most ? o->entries[i].keys : most;
    }
    printf("%-*s  %10s  %7s  %7s\n", width, "backend", "keys", "share", "asked");
    for (size_t i = 0; i < o->count; i++) {
        const entry *e = &o->entries[i];
        uint64_t bar = (e->keys * BAR + most / 2) / most;
        printf("%-*s  %10llu", width, e->text, (unsigned long long)e->keys);
        print_share(e->keys, c->keys);
        print_share(takes_keys(e, backup) ? e->backend.weight : 0, weight);
        printf("%s%.*s\n", bar > 0 ? "  " : "", (int)bar, "########################################");
    }
    if (c->none > 0) {
        printf("%-*s  %10llu", width, "none", (unsigned long long)c->none);
        print_share(c->none, c->keys);
        putchar('\n');
    }
}

static void print_moves(const options *o, const counts *c)
{
    printf("%llu keys, without %s\n", (unsigned long long)c->keys, o->entries[o->left_out].text);
    printf("its own, which move     %10llu", (unsigned long long)c->own);
    print_share(c->own, c->keys);
    printf(" of all\nothers that moved too   %10llu", (unsigned long long)c->moved);
    print_share(c->moved, c->keys - c->own);
    printf(" of the others\n");
}

static void answer(const options *o, plb_balancer *lb, plb_balancer *without, const line *l, counts *c)
{
    plb_addr client;
    size_t length;
    const void *key = key_of(o, l, &client, &length);
    entry *e = pick(o, lb, key, length);
    c->keys++;
    if (without != NULL && e == &o->entries[o->left_out])
        c->own++;
    else if (without != NULL)
        c->moved += pick(o, without, key, length) != e;
    else if (!o->spread)
        print_line(l, e);
    else if (e != NULL)
        e->keys++;
    else
        c->none++;
}

int main(int argc, char **argv)
{
    options o;
    line l = {NULL, 0, 256, 0};
    counts c = {0, 0, 0, 0};
    plb_balancer *lb, *without = NULL;
    keep_every_byte(stdin);
    keep_every_byte(stdout);
    parse_options(&o, argc, argv);
    l.bytes = (char *)allocate(NULL, l.capacity);
    lb = new_balancer(&o, o.count);
    if (o.without != NULL)
        without = new_balancer(&o, o.left_out);
    while (read_line(&l))
        answer(&o, lb, without, &l, &c);
    if (o.spread)
        print_spread(&o, &c);
    if (o.without != NULL)
        print_moves(&o, &c);
    fflush(stdout);
    check_output();
    plb_destroy(lb);
    plb_destroy(without);
    free(l.bytes);
    free(o.entries);
    return 0;
}
