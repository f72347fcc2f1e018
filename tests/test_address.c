/* Addresses and backends as text: what is read, how it is written, and how addresses compare. */
#include "../pingora_lb.h"
#include <greatest.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

static uint64_t random_state = 1;

static uint64_t random_bits(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static uint32_t random_below(uint32_t limit)
{
    return (uint32_t)(random_bits() % limit);
}

static plb_addr addr_of(const char *text)
{
    plb_addr addr;
    memset(&addr, 0, sizeof addr);
    if (plb_addr_parse(&addr, text, PLB_ZSTRING) != PLB_OK)
        fprintf(stderr, "test_address: '%s' is no address\n", text);
    return addr;
}

/* The text is read, every byte of it counts, and it is written back as `canonical`. */
static enum greatest_test_res check_good(const char *text, const char *canonical)
{
    char written[PLB_ADDR_TEXT_MAX];
    plb_addr addr, again;
    size_t length = strlen(text);
    char *exact = (char *)malloc(length); /* no NUL behind it: reading on would be seen */
    plb_status status;
    ASSERT(exact != NULL);
    memcpy(exact, text, length);
    status = plb_addr_parse(&addr, exact, length);
    free(exact);
    ASSERT_EQm(text, PLB_OK, status);
    ASSERT_EQ_FMT(strlen(canonical), plb_addr_format(&addr, written, sizeof written), "%zu");
    ASSERT_STR_EQ(canonical, written);
    ASSERT_EQ(PLB_OK, plb_addr_parse(&again, written, PLB_ZSTRING));
    ASSERT_EQ(0, plb_addr_compare(&addr, &again));
    ASSERT_EQ(plb_addr_hash(&addr), plb_addr_hash(&again));
    PASS();
}

/* The text is refused and `out` is as it was. */
static enum greatest_test_res check_bad(const char *text, size_t length)
{
    plb_addr addr, before;
    char *exact = (char *)malloc(length + 1);
    plb_status status;
    ASSERT(exact != NULL);
    memcpy(exact, text, length);
    memset(&before, 0x5a, sizeof before);
    memset(&addr, 0x5a, sizeof addr);
    status = plb_addr_parse(&addr, exact, length);
    free(exact);
    ASSERT_EQm(text, PLB_ERR_ADDRESS, status);
    ASSERT_MEM_EQ(&before, &addr, sizeof addr);
    PASS();
}

/* ==== READING AND WRITING ========================================================================================= */

TEST ipv4_is_read_field_by_field(void)
{
    plb_addr addr = addr_of("1.2.3.4:80");
    static const uint8_t bytes[4] = {1, 2, 3, 4};
    ASSERT_EQ(PLB_FAMILY_IPV4, addr.family);
    ASSERT_MEM_EQ(bytes, addr.u.v4, 4);
    ASSERT_EQ(80, addr.port);
    ASSERT_EQ(0, addr.scope);
    PASS();
}

TEST ipv6_is_read_field_by_field(void)
{
    plb_addr addr = addr_of("[fe80::1%3]:443");
    static const uint8_t bytes[16] = {0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1};
    ASSERT_EQ(PLB_FAMILY_IPV6, addr.family);
    ASSERT_MEM_EQ(bytes, addr.u.v6, 16);
    ASSERT_EQ(443, addr.port);
    ASSERT_EQ(3, addr.scope);
    PASS();
}

TEST a_unix_path_is_read_with_its_length_and_a_nul(void)
{
    plb_addr addr = addr_of("unix:/run/app.sock");
    ASSERT_EQ(PLB_FAMILY_UNIX, addr.family);
    ASSERT_EQ(strlen("/run/app.sock"), addr.path_len);
    ASSERT_STR_EQ("/run/app.sock", addr.u.path);
    ASSERT_EQ(0, addr.port);
    PASS();
}

TEST good_texts_are_read_and_written_in_one_form(void)
{
    static const char *const texts[][2] = {
        {"1.2.3.4:80", "1.2.3.4:80"},
        {"0.0.0.0:1", "0.0.0.0:1"},
        {"255.255.255.255:65535", "255.255.255.255:65535"},
        {"[::]:80", "[::]:80"},
        {"[::1]:80", "[::1]:80"},
        {"[1::]:80", "[1::]:80"},
        {"[::1%7]:80", "[::1%7]:80"},
        {"[fe80::1%3]:80", "[fe80::1%3]:80"},
        {"[fe80::1%4294967295]:80", "[fe80::1%4294967295]:80"},
        {"[fe80::1%0]:80", "[fe80::1]:80"},
        {"[1:2:3:4:5:6:7:8]:80", "[1:2:3:4:5:6:7:8]:80"},
        {"[1:2:3:4:5:6:1.2.3.4]:80", "[1:2:3:4:5:6:102:304]:80"},
        {"[::1.2.3.4]:80", "[::102:304]:80"},
        {"[1::1.2.3.4]:80", "[1::102:304]:80"},
        {"[64:ff9b::192.0.2.33]:80", "[64:ff9b::c000:221]:80"},
        {"[1:2:3:4:5:6:7::]:80", "[1:2:3:4:5:6:7:0]:80"},
        {"[::2:3:4:5:6:7:8]:80", "[0:2:3:4:5:6:7:8]:80"},
        {"unix:/", "unix:/"},
        {"unix:relative", "unix:relative"},
        {"unix:80", "unix:80"},
        {"unix:unix:/a b:80", "unix:unix:/a b:80"},
    };
    size_t i;
    for (i = 0; i < COUNT(texts); i++)
        CHECK_CALL(check_good(texts[i][0], texts[i][1]));
    PASS();
}

/* RFC 5952 section 4, and its section 5 for addresses that hold an IPv4 one. */
TEST ipv6_is_written_as_rfc_5952_asks(void)
{
    static const char *const texts[][2] = {
        {"[2001:0db8::0001]:80", "[2001:db8::1]:80"},               /* 4.1: no leading zeros */
        {"[2001:db8:0:0:0:0:2:1]:80", "[2001:db8::2:1]:80"},        /* 4.2.1: as short as can be */
        {"[2001:db8:0:1:1:1:1:1]:80", "[2001:db8:0:1:1:1:1:1]:80"}, /* 4.2.2: not for one group */
        {"[2001:db8::1:1:1:1:1]:80", "[2001:db8:0:1:1:1:1:1]:80"},  /* the same, read */
        {"[2001:0:0:1:0:0:0:1]:80", "[2001:0:0:1::1]:80"},          /* 4.2.3: the longest run */
        {"[2001:db8:0:0:1:0:0:1]:80", "[2001:db8::1:0:0:1]:80"},    /* of equals the first */
        {"[0:0:1:0:0:0:0:0]:80", "[0:0:1::]:80"},                   /* a longer run at the end */
        {"[0:0:0:0:0:0:0:0]:80", "[::]:80"},                        /* nothing but zeros */
        {"[2001:DB8::ABCD]:80", "[2001:db8::abcd]:80"},             /* 4.3: lower case */
        {"[0:0:0:0:0:ffff:c000:221]:80", "[::ffff:192.0.2.33]:80"}, /* 5: an IPv4-mapped address */
        {"[::FFFF:1.2.3.4]:80", "[::ffff:1.2.3.4]:80"},
        {"[0:0:0:0:ffff:0:102:304]:80", "[::ffff:0:102:304]:80"}, /* not a mapped one */
    };
    size_t i;
    for (i = 0; i < COUNT(texts); i++)
        CHECK_CALL(check_good(texts[i][0], texts[i][1]));
    PASS();
}

TEST bad_texts_are_refused_and_leave_out_untouched(void)
{
    static const char *const texts[] = {
        "",
        ":",
        ":80",
        "80",
        "1.2.3.4",
        "1.2.3.4:",
        "1.2.3.4:0",
        "1.2.3.4:65536",
        "1.2.3.4:99999999999999999999",
        "1.2.3.4:-1",
        "1.2.3.4:+1",
        "1.2.3.4: 80",
        "1.2.3.4:80 ",
        " 1.2.3.4:80",
        "1.2.3.4:80x",
        "1.2.3.4:080",
        "1.2.3.4:00",
        "1.2.3.4:0x50",
        "1.2.3:80",
        "0x7f.1:80",
        "0x7f000001:80",
        "127.0.0.0x1:80",
        "host.1:80",
        "host.-a:80",
        ".:80",
        "a..:80",
        "1.2.3.4.5:80",
        "1.2.3.:80",
        ".1.2.3:80",
        "1..2.3:80",
        "1.2.3.256:80",
        "1.2.3.4294967297:80",
        "1.2.3.01:80",
        "01.2.3.4:80",
        "1.2.3.00:80",
        "1.2.3.-4:80",
        "1,2,3,4:80",
        "[1.2.3.4]:80",
        "::1:80",
        "::1",
        "[::1]",
        "[::1]:",
        "[::1]:0",
        "[::1]:65536",
        "[::1]80",
        "[::1:80",
        "::1]:80",
        "[[::1]]:80",
        "[]:80",
        "[:]:80",
        "[:::]:80",
        "[:1]:80",
        "[1:]:80",
        "[::1:]:80",
        "[1:2:3:4:5:6:7]:80",
        "[1:2:3:4:5:6:7:8:9]:80",
        "[1:2:3:4:5:6:7:8::]:80",
        "[::1:2:3:4:5:6:7:8]:80",
        "[1::2::3]:80",
        "[1:2:3:4::5:6:7:8]:80",
        "[12345::]:80",
        "[00001::]:80",
        "[g::]:80",
        "[::1.2.3]:80",
        "[::1.2.3.4.5]:80",
        "[::1.2.3.256]:80",
        "[::1.2.3.04]:80",
        "[1.2.3.4::]:80",
        "[::1.2.3.4:5]:80",
        "[1:2:3:4:5:6:7:1.2.3.4]:80",
        "[fe80::1%]:80",
        "[fe80::1%eth0]:80",
        "[fe80::1%03]:80",
        "[fe80::1%-1]:80",
        "[fe80::1%4294967296]:80",
        "[fe80::1%3:80",
        "[%3]:80",
        "[::1 ]:80",
        "[ ::1]:80",
        "[::1]:80]",
        "unix:",
        "unix",
        "UNIX:/a",
        "unix /a",
        "localhost:80",
        "example.com:80",
        "http://1.2.3.4:80",
    };
    size_t i;
    for (i = 0; i < COUNT(texts); i++)
        CHECK_CALL(check_bad(texts[i], strlen(texts[i])));
    PASS();
}

TEST an_embedded_nul_is_refused_wherever_it_stands(void)
{
    static const char *const texts[] = {"1.2.3.4:80", "[fe80::1%3]:80", "unix:/run/a"};
    size_t i, at;
    for (i = 0; i < COUNT(texts); i++) {
        size_t length = strlen(texts[i]);
        char text[32];
        for (at = 0; at < length; at++) {
            memcpy(text, texts[i], length + 1);
            text[at] = '\0';
            CHECK_CALL(check_bad(text, length));
        }
        CHECK_CALL(check_bad(texts[i], length + 1)); /* the string's own */
    }
    PASS();
}

/* Every prefix of an address is something else, or nothing. */
TEST nothing_is_half_read(void)
{
    static const char text[] = "[2001:db8::1%12]:8080";
    size_t length;
    for (length = 0; length < sizeof text - 4; length++) /* what is left below has a port */
        CHECK_CALL(check_bad(text, length));
    PASS();
}

TEST no_text_at_all_is_refused(void)
{
    plb_addr addr;
    plb_backend backend;
    ASSERT_EQ(PLB_ERR_ADDRESS, plb_addr_parse(&addr, NULL, 0));
    ASSERT_EQ(PLB_ERR_ADDRESS, plb_backend_parse(&backend, NULL, 0, NULL));
    PASS();
}

TEST a_path_may_have_as_many_bytes_as_path_max_and_no_more(void)
{
    char text[5 + PLB_PATH_MAX + 2], written[PLB_ADDR_TEXT_MAX];
    plb_addr addr;
    memset(text, 'a', sizeof text);
    memcpy(text, "unix:", 5);
    ASSERT_EQ(PLB_OK, plb_addr_parse(&addr, text, 5 + PLB_PATH_MAX));
    ASSERT_EQ(PLB_PATH_MAX, addr.path_len);
    ASSERT_EQ('\0', addr.u.path[PLB_PATH_MAX]);
    ASSERT_EQ(5 + PLB_PATH_MAX, plb_addr_format(&addr, written, sizeof written));
    ASSERT_MEM_EQ(text, written, 5 + PLB_PATH_MAX);
    CHECK_CALL(check_bad(text, 5 + PLB_PATH_MAX + 1));
    PASS();
}

TEST a_text_that_does_not_fit_is_cut_and_its_length_told(void)
{
    static const char *const texts[] = {"255.255.255.255:65535", "[fe80::1%3]:80", "[::ffff:1.2.3.4]:80",
                                        "unix:/run/a"};
    size_t i, capacity;
    for (i = 0; i < COUNT(texts); i++) {
        plb_addr addr = addr_of(texts[i]);
        size_t length = strlen(texts[i]);
        ASSERT_EQ(length, plb_addr_format(&addr, NULL, 0));
        for (capacity = 1; capacity <= length + 1; capacity++) {
            char *written = (char *)malloc(capacity); /* exact, so that a byte too many is seen */
            size_t told = plb_addr_format(&addr, written, capacity);
            bool same = memcmp(written, texts[i], capacity - 1) == 0 && written[capacity - 1] == '\0';
            free(written);
            ASSERT_EQ(length, told);
            ASSERT(same);
        }
    }
    PASS();
}

TEST no_address_is_written_too(void)
{
    char text[PLB_ADDR_TEXT_MAX] = "x";
    plb_addr none;
    memset(&none, 0, sizeof none);
    ASSERT(plb_addr_format(&none, text, sizeof text) > 0);
    ASSERT_EQ(strlen(text), plb_addr_format(&none, NULL, 0));
    PASS();
}

static plb_addr random_addr(void)
{
    plb_addr addr;
    uint32_t i;
    memset(&addr, 0, sizeof addr);
    addr.port = (uint16_t)(1 + random_below(65535));
    switch (random_below(3)) {
    case 0:
        addr.family = PLB_FAMILY_IPV4;
        for (i = 0; i < 4; i++)
            addr.u.v4[i] = (uint8_t)random_below(256);
        break;
    case 1:
        addr.family = PLB_FAMILY_IPV6;
        for (i = 0; i < 16; i += 2) { /* runs of zeros and short groups are likely */
            uint64_t group = random_below(3) == 0 ? random_bits() : random_below(3) == 0 ? random_below(256) : 0;
            addr.u.v6[i] = (uint8_t)(group >> 8);
            addr.u.v6[i + 1] = (uint8_t)group;
        }
        if (random_below(8) == 0)
            memcpy(addr.u.v6, "\0\0\0\0\0\0\0\0\0\0\xff\xff", 12);
        addr.scope = random_below(2) == 0 ? 0 : (uint32_t)random_bits();
        break;
    default:
        addr.family = PLB_FAMILY_UNIX;
        addr.port = 0;
        addr.path_len = (uint8_t)(1 + random_below(PLB_PATH_MAX));
        for (i = 0; i < addr.path_len; i++)
            addr.u.path[i] = (char)(1 + random_below(255));
        break;
    }
    return addr;
}

TEST what_was_written_is_read_back_the_same(void)
{
    int i;
    for (i = 0; i < 20000; i++) {
        char text[PLB_ADDR_TEXT_MAX];
        plb_addr addr = random_addr(), again;
        size_t length = plb_addr_format(&addr, text, sizeof text);
        ASSERT(length < sizeof text);
        memset(&again, 0x5a, sizeof again);
        ASSERT_EQm(text, PLB_OK, plb_addr_parse(&again, text, length));
        ASSERT_MEM_EQ(&addr, &again, sizeof addr); /* unused bytes are zero */
    }
    PASS();
}

/* ==== ORDER AND HASH ============================================================================================== */

TEST addresses_sort_by_family_then_bytes_then_port_then_scope(void)
{
    static const char *const sorted[] = {
        "1.2.3.4:80",   "1.2.3.4:81",   "1.2.3.4:65535",  "1.2.3.5:1",      "1.2.4.0:1",    "2.0.0.0:1", "127.0.0.1:80",
        "128.0.0.1:80", "255.0.0.0:80", "[::]:1",         "[::1]:80",       "[::1%9]:80",   "[::1]:81",  "[::2]:1",
        "[7f00::]:1",   "[8000::]:1",   "[fe80::1%1]:80", "[fe80::1%2]:80", "[fe80::1]:81", "unix:/",    "unix:/a",
        "unix:/a/b",    "unix:/aa",     "unix:/b",        "unix:\x7f",      "unix:\x80",
    };
    plb_addr none;
    size_t i, j;
    memset(&none, 0, sizeof none);
    for (i = 0; i < COUNT(sorted); i++) {
        plb_addr a = addr_of(sorted[i]);
        ASSERT(plb_addr_compare(&none, &a) < 0);
        for (j = 0; j < COUNT(sorted); j++) {
            plb_addr b = addr_of(sorted[j]);
            int order = plb_addr_compare(&a, &b);
            ASSERT_EQm(sorted[i], i < j, order < 0);
            ASSERT_EQm(sorted[i], i > j, order > 0);
            ASSERT_EQm(sorted[i], i == j, plb_addr_hash(&a) == plb_addr_hash(&b));
        }
    }
    PASS();
}

TEST bytes_that_the_family_does_not_use_count_for_nothing(void)
{
    static const char *const texts[] = {"1.2.3.4:80", "[::1]:80", "unix:/run/a"};
    static const size_t used[] = {4, 16, 6};
    size_t i;
    for (i = 0; i < COUNT(texts); i++) {
        plb_addr a = addr_of(texts[i]), b = a;
        memset((char *)&b.u + used[i] + 1, 0x77, sizeof b.u - used[i] - 1);
        ASSERT_EQ(0, plb_addr_compare(&a, &b));
        ASSERT_EQ(plb_addr_hash(&a), plb_addr_hash(&b));
    }
    PASS();
}

static int compare_addrs(const void *a, const void *b)
{
    return plb_addr_compare((const plb_addr *)a, (const plb_addr *)b);
}

TEST the_order_is_total(void)
{
    enum { N = 300 };
    static plb_addr addrs[N];
    int i, j;
    for (i = 0; i < N; i++) {
        addrs[i] = random_addr();
        if (i > 0 && random_below(2) == 0) { /* near neighbours */
            addrs[i] = addrs[i - 1];
            if (addrs[i].family != PLB_FAMILY_UNIX)
                addrs[i].port = (uint16_t)(1 + random_below(3));
        }
    }
    qsort(addrs, N, sizeof *addrs, compare_addrs);
    for (i = 0; i < N; i++) {
        for (j = i; j < N; j++) {
            int order = plb_addr_compare(&addrs[i], &addrs[j]), back = plb_addr_compare(&addrs[j], &addrs[i]);
            ASSERT(order <= 0 && back >= 0);
            ASSERT_EQ(order == 0, back == 0);
            ASSERT_EQ(order == 0, plb_addr_hash(&addrs[i]) == plb_addr_hash(&addrs[j]));
        }
    }
    PASS();
}

/* ==== BACKENDS ==================================================================================================== */

TEST a_backend_from_an_address_has_weight_1_and_no_name(void)
{
    plb_backend backend;
    plb_addr addr = addr_of("[::1]:80");
    memset(&backend, 0x5a, sizeof backend);
    ASSERT_EQ(PLB_OK, plb_backend_parse(&backend, "[::1]:80", PLB_ZSTRING, NULL));
    ASSERT_EQ(0, plb_addr_compare(&addr, &backend.addr));
    ASSERT_EQ(1, backend.weight);
    ASSERT_EQ(0, backend.max_conns);
    ASSERT_EQ(0, backend.id);
    ASSERT_EQ(PLB_ENABLEMENT_KEEP, backend.enablement);
    ASSERT_EQ(NULL, backend.name);
    ASSERT_EQ(NULL, backend.ext);
    ASSERT(backend.ext_release == NULL);
    PASS();
}

TEST a_backend_from_a_host_name_has_a_port_and_is_still_to_be_resolved(void)
{
    static const char *const hosts[] = {"localhost",    "example.com",          "a",
                                        "3com.example", "my-host_1.internal",   "EXAMPLE.com",
                                        "example.com.", "xn--bcher-kva.example"};
    size_t i;
    for (i = 0; i < COUNT(hosts); i++) {
        char text[64], name[256];
        plb_backend backend;
        snprintf(text, sizeof text, "%s:8080 ignored", hosts[i]);
        ASSERT_EQm(hosts[i], PLB_OK, plb_backend_parse(&backend, text, strlen(hosts[i]) + 5, name));
        ASSERT_EQ(PLB_FAMILY_NONE, backend.addr.family);
        ASSERT_EQ(8080, backend.addr.port);
        ASSERT_EQ(name, backend.name);
        ASSERT_STR_EQ(hosts[i], name);
        ASSERT_EQ(1, backend.weight);
    }
    PASS();
}

static enum greatest_test_res check_bad_backend(const char *text, size_t length)
{
    char name[256], name_before[256];
    plb_backend backend, before;
    memset(&before, 0x5a, sizeof before);
    memset(&backend, 0x5a, sizeof backend);
    memset(name_before, 0x5a, sizeof name_before);
    memset(name, 0x5a, sizeof name);
    ASSERT_EQm(text, PLB_ERR_ADDRESS, plb_backend_parse(&backend, text, length, name));
    ASSERT_MEM_EQ(&before, &backend, sizeof backend);
    ASSERT_MEM_EQ(name_before, name, sizeof name);
    PASS();
}

TEST what_is_neither_address_nor_host_name_is_refused(void)
{
    static const char *const texts[] = {
        "",
        ":80",
        "localhost",
        "localhost:",
        "localhost:0",
        "localhost:65536",
        "localhost:80 ",
        "localhost:http",
        " localhost:80",
        "local host:80",
        "-host:80",
        ".host:80",
        "a..b:80",
        "host/:80",
        "user@host:80",
        "http://host:80",
        "1.2.3:80",
        "0x7f.1:80",
        "0x7f000001:80",
        "127.0.0.0x1:80",
        "host.1:80",
        "host.-a:80",
        ".:80",
        "a..:80",
        "1.2.3.4.5:80",
        "999.1.1.1:80",
        "1.2.3.04:80",
        "80:80",
        "::1:80",
        "[::1]:0",
        "[localhost]:80",
        "host:1:2",
        "*:80",
        "h\xc3\xb6st:80",
        "unix:",
    };
    size_t i;
    for (i = 0; i < COUNT(texts); i++)
        CHECK_CALL(check_bad_backend(texts[i], strlen(texts[i])));
    CHECK_CALL(check_bad_backend("ho\0st:80", 8));
    CHECK_CALL(check_bad_backend("host:8\0", 7));
    PASS();
}

TEST a_host_name_is_refused_without_a_place_for_it(void)
{
    plb_backend backend;
    ASSERT_EQ(PLB_ERR_ADDRESS, plb_backend_parse(&backend, "localhost:80", PLB_ZSTRING, NULL));
    ASSERT_EQ(PLB_OK, plb_backend_parse(&backend, "127.0.0.1:80", PLB_ZSTRING, NULL));
    PASS();
}

/* RFC 1035 section 2.3.4: 255 octets on the wire are 253 characters. */
TEST a_host_name_has_253_characters_at_most(void)
{
    char text[300], name[256];
    plb_backend backend;
    size_t i;
    for (i = 0; i < sizeof text; i++)
        text[i] = i % 50 == 49 ? '.' : 'a';
    memcpy(text + 253, ":65535", 6);
    ASSERT_EQ(PLB_OK, plb_backend_parse(&backend, text, 259, name));
    ASSERT_EQ(253, strlen(name));
    text[253] = 'a';
    memcpy(text + 254, ":65535", 6);
    CHECK_CALL(check_bad_backend(text, 260));
    PASS();
}

SUITE(reading_and_writing)
{
    RUN_TEST(ipv4_is_read_field_by_field);
    RUN_TEST(ipv6_is_read_field_by_field);
    RUN_TEST(a_unix_path_is_read_with_its_length_and_a_nul);
    RUN_TEST(good_texts_are_read_and_written_in_one_form);
    RUN_TEST(ipv6_is_written_as_rfc_5952_asks);
    RUN_TEST(bad_texts_are_refused_and_leave_out_untouched);
    RUN_TEST(an_embedded_nul_is_refused_wherever_it_stands);
    RUN_TEST(nothing_is_half_read);
    RUN_TEST(no_text_at_all_is_refused);
    RUN_TEST(a_path_may_have_as_many_bytes_as_path_max_and_no_more);
    RUN_TEST(a_text_that_does_not_fit_is_cut_and_its_length_told);
    RUN_TEST(no_address_is_written_too);
    RUN_TEST(what_was_written_is_read_back_the_same);
}

SUITE(order_and_hash)
{
    RUN_TEST(addresses_sort_by_family_then_bytes_then_port_then_scope);
    RUN_TEST(bytes_that_the_family_does_not_use_count_for_nothing);
    RUN_TEST(the_order_is_total);
}

SUITE(backends)
{
    RUN_TEST(a_backend_from_an_address_has_weight_1_and_no_name);
    RUN_TEST(a_backend_from_a_host_name_has_a_port_and_is_still_to_be_resolved);
    RUN_TEST(what_is_neither_address_nor_host_name_is_refused);
    RUN_TEST(a_host_name_is_refused_without_a_place_for_it);
    RUN_TEST(a_host_name_has_253_characters_at_most);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(reading_and_writing);
    RUN_SUITE(order_and_hash);
    RUN_SUITE(backends);
    GREATEST_MAIN_END();
}
