/* Header compression: the examples of RFC 7541 appendix C, its limits, and that it makes no difference how the bytes
   arrive. */
#define PINGORA_LB_IMPLEMENTATION
#include "../pingora_lb.h"
#include <greatest.h>

#include <stdio.h>
#include <stdlib.h>

static plb_text text_of(const char *string)
{
    plb_text text;
    text.data = string;
    text.size = strlen(string);
    return text;
}

static unsigned hex_digit(char c)
{
    return (unsigned)(c <= '9' ? c - '0' : c - 'a' + 10);
}

/* "8286 84" to bytes; returns how many. */
static size_t unhex(const char *hex, char *out)
{
    size_t size = 0;
    for (; *hex != '\0'; hex += *hex == ' ' ? 1 : 2)
        if (*hex != ' ')
            out[size++] = (char)(hex_digit(hex[0]) << 4 | hex_digit(hex[1]));
    return size;
}

/* Reads a block, `step` bytes at a time, each from a copy of exactly that size; what it says is added to `said` as
   "name: value\n". The last status: PLB_OK when the block ends well. */
static plb_status read_block(plb_hpack *hpack, const char *bytes, size_t size, size_t step, char *said)
{
    size_t at = 0;
    while (at < size) {
        size_t piece = size - at < step ? size - at : step, used = 0, from;
        char *copy = (char *)malloc(piece);
        plb_status status = PLB_OK;
        memcpy(copy, bytes + at, piece);
        for (from = 0; status == PLB_OK; from += used) {
            plb_hpack_field field;
            status = plb_hpack_next(hpack, copy + from, piece - from, &used, &field);
            if (status == PLB_OK)
                said += sprintf(said, "%.*s: %.*s\n", (int)field.name.size, field.name.data, (int)field.value.size,
                                field.value.data);
        }
        free(copy);
        if (status != PLB_AGAIN)
            return status;
        at += piece;
    }
    return plb_hpack_end(hpack);
}

static plb_status read_hex(plb_hpack *hpack, const char *hex, char *said)
{
    char bytes[512];
    size_t size = unhex(hex, bytes);
    *said = '\0';
    return read_block(hpack, bytes, size, size, said);
}

/* The status of a block on a connection of its own. */
static plb_status status_of(const char *hex)
{
    plb_hpack hpack;
    char memory[512], said[1024];
    if (plb_hpack_open(&hpack, memory, sizeof memory) != PLB_OK)
        return PLB_ERR_ARGUMENT;
    return read_hex(&hpack, hex, said);
}

/* ==== RFC 7541 APPENDIX C ========================================================================================= */

#define AUTHORITY ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com\n"
#define CUSTOM                                                                                                         \
    ":method: GET\n:scheme: https\n:path: /index.html\n:authority: www.example.com\ncustom-key: custom-value\n"
#define PRIVATE "cache-control: private\ndate: Mon, 21 Oct 2013 20:13:21 GMT\nlocation: https://www.example.com\n"
#define COOKIE                                                                                                         \
    ":status: 200\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:22 GMT\nlocation: "                            \
    "https://www.example.com\ncontent-encoding: gzip\nset-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; "     \
    "version=1\n"

typedef struct example {
    const char *name;
    struct {
        const char *hex, *said;
        uint32_t counted; /* of the dynamic table, afterwards */
    } blocks[3];
} example;

static const example examples[] = {
    {"C.2.1",
     {{"400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572", "custom-key: custom-header\n", 55}}},
    {"C.2.2", {{"040c 2f73 616d 706c 652f 7061 7468", ":path: /sample/path\n", 0}}},
    {"C.2.3", {{"1008 7061 7373 776f 7264 0673 6563 7265 74", "password: secret\n", 0}}},
    {"C.2.4", {{"82", ":method: GET\n", 0}}},
    {"C.3",
     {{"8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d", AUTHORITY, 57},
      {"8286 84be 5808 6e6f 2d63 6163 6865", AUTHORITY "cache-control: no-cache\n", 110},
      {"8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65", CUSTOM, 164}}},
    {"C.4",
     {{"8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff", AUTHORITY, 57},
      {"8286 84be 5886 a8eb 1064 9cbf", AUTHORITY "cache-control: no-cache\n", 110},
      {"8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf", CUSTOM, 164}}},
    {"C.5",
     {{"4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 474d "
       "546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
       ":status: 302\n" PRIVATE, 222},
      {"4803 3330 37c1 c0bf", ":status: 307\n" PRIVATE, 222},
      {"88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738 666f "
       "6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b "
       "2076 6572 7369 6f6e 3d31",
       COOKIE, 215}}},
    {"C.6",
     {{"4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 63c7 "
       "8f0b 97c8 e9ae 82ae 43d3",
       ":status: 302\n" PRIVATE, 222},
      {"4883 640e ffc1 c0bf", ":status: 307\n" PRIVATE, 222},
      {"88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 b335 "
       "dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
       COOKIE, 215}}},
};

/* The RFC's table of 256 bytes, as evictions are told for it. In steps of every size from 1 on. */
TEST the_examples_of_the_rfc_read_the_same_in_pieces_of_any_size(void)
{
    size_t i, block, step;
    for (i = 0; i < sizeof examples / sizeof examples[0]; i++)
        for (step = 1; step <= 80; step++) {
            plb_hpack hpack;
            char memory[512], bytes[256], said[1024];
            ASSERT_EQ(PLB_OK, plb_hpack_open(&hpack, memory, sizeof memory));
            ASSERT_EQ(256u, hpack.table_size);
            for (block = 0; block < 3 && examples[i].blocks[block].hex != NULL; block++) {
                size_t size = unhex(examples[i].blocks[block].hex, bytes);
                said[0] = '\0';
                ASSERT_EQm(examples[i].name, PLB_OK, read_block(&hpack, bytes, size, step, said));
                ASSERT_STR_EQm(examples[i].name, examples[i].blocks[block].said, said);
                ASSERT_EQm(examples[i].name, examples[i].blocks[block].counted, hpack.counted);
            }
        }
    PASS();
}

/* C.1: 10 and 1337 with 5 bits, 42 with 8, here as the lengths and indices that they can be. */
TEST integers_are_read_over_several_bytes(void)
{
    plb_hpack hpack;
    char memory[8192], bytes[1400], said[2048];
    size_t size = 4;
    ASSERT_EQ(PLB_OK, plb_hpack_open(&hpack, memory, sizeof memory));
    ASSERT_EQ(PLB_AGAIN, plb_hpack_next(&hpack, "\x2a", 1, &size, &(plb_hpack_field){0}));
    ASSERT_EQ(10u, hpack.peer_size);
    ASSERT_EQ(PLB_AGAIN, plb_hpack_next(&hpack, "\x3f\x9a\x0a", 3, &size, &(plb_hpack_field){0}));
    ASSERT_EQ(1337u, hpack.peer_size);
    memcpy(bytes, "\x00\x01x\x7f\xba\x09", 6); /* 1337 with 7 bits: 127 + 58 + 9 * 128 */
    memset(bytes + 6, 'v', 1337);
    ASSERT_EQ(PLB_OK, read_block(&hpack, bytes, 6 + 1337, 7, said));
    ASSERT_EQ(1337u + 4, strlen(said));
    PASS();
}

TEST integers_that_grow_too_long_are_refused(void)
{
    ASSERT_EQ(PLB_ERR_PROTOCOL, status_of("ff80 8080 8000"));      /* five more bytes, for zero */
    ASSERT_EQ(PLB_ERR_PROTOCOL, status_of("ffff ffff ff0f"));      /* 2^32 and more */
    ASSERT_EQ(PLB_ERR_PROTOCOL, status_of("007f ffff ffff ff7f")); /* as a length */
    ASSERT_EQ(PLB_ERR_PROTOCOL, status_of("0f80 8080 8000 0161")); /* five more bytes, for zero, again */
    ASSERT_EQ(PLB_OK, status_of("0f80 8080 0001 61"));             /* four more bytes, for zero: 15 */
    PASS();
}

/* ==== STRINGS ===================================================================================================== */

/* Every symbol, by its code: bits are gathered from the table's own order, and the RFC's examples hold the table. */
TEST every_byte_has_its_huffman_code(void)
{
    size_t at = 0, i, length;
    uint32_t code = 0;
    for (length = 1; length <= 30; length++, code <<= 1)
        for (i = 0; i < plb__huffman_counts[length]; i++, code++, at++) {
            plb_hpack hpack;
            plb_hpack_field field;
            char memory[512], bytes[16];
            uint64_t bits;
            size_t size = (length + 7) / 8, b, used;
            if (at == 256)
                continue; /* EOS */
            bits = ((uint64_t)code << (64 - length)) | (UINT64_MAX >> length);
            bytes[0] = 0x04;
            bytes[1] = (char)(0x80 | size);
            for (b = 0; b < size; b++)
                bytes[2 + b] = (char)(bits >> (56 - 8 * b) & 0xff);
            ASSERT_EQ(PLB_OK, plb_hpack_open(&hpack, memory, sizeof memory));
            ASSERT_EQ(PLB_OK, plb_hpack_next(&hpack, bytes, 2 + size, &used, &field));
            ASSERT_EQ(1u, field.value.size);
            ASSERT_EQ(plb__huffman_symbols[at], (uint8_t)field.value.data[0]);
        }
    ASSERT_EQ(257u, at);
    ASSERT_EQ((uint32_t)1 << 31, code); /* the code is complete: no bits are without a meaning */
    PASS();
}

/* RFC 7541 section 5.2. */
TEST huffman_padding_is_less_than_a_byte_of_ones(void)
{
    ASSERT_EQ(PLB_OK, status_of("0481 07"));                     /* "0" and three ones */
    ASSERT_EQ(PLB_OK, status_of("0480"));                        /* nothing, no padding */
    ASSERT_EQ(PLB_ERR_PROTOCOL, status_of("0481 06"));           /* not all ones */
    ASSERT_EQ(PLB_ERR_PROTOCOL, status_of("0481 03"));           /* not all ones */
    ASSERT_EQ(PLB_ERR_PROTOCOL, status_of("0482 07ff"));         /* a byte too many */
    ASSERT_EQ(PLB_ERR_PROTOCOL, status_of("0481 ff"));           /* nothing but padding */
    ASSERT_EQ(PLB_ERR_PROTOCOL, status_of("0484 ffff fffc"));    /* EOS */
    ASSERT_EQ(PLB_ERR_PROTOCOL, status_of("0485 07ff ffff ff")); /* EOS within */
    PASS();
}

/* It is told, and the table is as it must be after a field of its size: empty. */
TEST a_field_longer_than_the_room_is_cut(void)
{
    plb_hpack hpack;
    char memory[512], bytes[600], said[1200];
    plb_hpack_field field;
    size_t used, i;
    ASSERT_EQ(PLB_OK, plb_hpack_open(&hpack, memory, sizeof memory));
    ASSERT_EQ(PLB_OK, read_hex(&hpack, "400161 0162", said));
    ASSERT_EQ(1u, hpack.entries);
    memcpy(bytes, "\x40\x03xyz\x7f\xad\x02", 8); /* 127 + 45 + 2 * 128 = 428 */
    for (i = 0; i < 428; i++)
        bytes[8 + i] = (char)('a' + i % 26);
    ASSERT_EQ(PLB_OK, plb_hpack_next(&hpack, bytes, 8 + 428, &used, &field));
    ASSERT(field.cut);
    ASSERT_EQ(436u, used);
    ASSERT_EQ(3u + 428 + 32, field.size);
    ASSERT_EQ(3u, field.name.size);
    ASSERT_EQ(256u - 3, field.value.size);
    ASSERT_MEM_EQ(bytes + 8, field.value.data, field.value.size);
    ASSERT_EQ(0u, hpack.entries);
    ASSERT_EQ(PLB_OK, read_hex(&hpack, "400161 0162 be", said)); /* and what follows is read right */
    ASSERT_STR_EQ("a: b\na: b\n", said);

    bytes[0] = 0; /* a name that has no end */
    memcpy(bytes + 1, "\x7f\xad\x02", 3);
    bytes[4 + 428] = 1;
    bytes[4 + 429] = 'v';
    memset(bytes + 4, 'n', 428);
    ASSERT_EQ(PLB_OK, plb_hpack_next(&hpack, bytes, 4 + 430, &used, &field));
    ASSERT(field.cut);
    ASSERT_EQ(256u, field.name.size);
    ASSERT_EQ(0u, field.value.size);
    PASS();
}

TEST a_block_that_ends_within_a_field_is_refused(void)
{
    static const char *const bad[] = {"40", "4001", "400161", "40016101", "ff", "7f", "0f", "3f"};
    size_t i;
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++)
        ASSERT_EQm(bad[i], PLB_ERR_PROTOCOL, status_of(bad[i]));
    PASS();
}

/* ==== TABLES ====================================================================================================== */

TEST indices_beyond_the_tables_are_refused(void)
{
    ASSERT_EQ(PLB_ERR_PROTOCOL, status_of("80"));      /* 0 */
    ASSERT_EQ(PLB_OK, status_of("bd"));                /* 61 */
    ASSERT_EQ(PLB_ERR_PROTOCOL, status_of("be"));      /* 62: the dynamic table is empty */
    ASSERT_EQ(PLB_ERR_PROTOCOL, status_of("7e 0161")); /* 62, as a name */
    ASSERT_EQ(PLB_OK, status_of("400161 0162 be"));
    ASSERT_EQ(PLB_ERR_PROTOCOL, status_of("400161 0162 bf"));
    ASSERT_EQ(PLB_ERR_PROTOCOL, status_of("ffff ffff 7f"));
    PASS();
}

/* RFC 7541 section 4.2 and RFC 9113 section 4.3.1. */
TEST the_size_of_the_table_changes_only_at_the_start_of_a_block(void)
{
    plb_hpack hpack;
    char memory[512], said[1024];
    ASSERT_EQ(PLB_OK, status_of("20 82"));
    ASSERT_EQ(PLB_OK, status_of("20 3fe10f 82")); /* 0, then 2048; not acknowledged: 4096 is allowed */
    ASSERT_EQ(PLB_ERR_PROTOCOL, status_of("82 20"));
    ASSERT_EQ(PLB_ERR_PROTOCOL, status_of("3fe21f 82")); /* 4097 */
    ASSERT_EQ(PLB_OK, plb_hpack_open(&hpack, memory, sizeof memory));
    ASSERT_EQ(PLB_OK, read_hex(&hpack, "400161 0162", said));
    ASSERT_EQ(PLB_OK, read_hex(&hpack, "20 3fe101", said)); /* 0, then 256: it is empty */
    ASSERT_EQ(PLB_ERR_PROTOCOL, read_hex(&hpack, "be", said));
    PASS();
}

TEST an_acknowledged_size_binds_the_peer(void)
{
    plb_hpack hpack;
    char memory[512], said[1024];
    ASSERT_EQ(PLB_OK, plb_hpack_open(&hpack, memory, sizeof memory));
    plb_hpack_acknowledged(&hpack);
    ASSERT_EQ(PLB_ERR_PROTOCOL, read_hex(&hpack, "3fe201", said)); /* 257 */
    ASSERT_EQ(PLB_OK, plb_hpack_open(&hpack, memory, sizeof memory));
    plb_hpack_acknowledged(&hpack);
    ASSERT_EQ(PLB_OK, read_hex(&hpack, "3fe101 82", said));
    ASSERT_EQ(PLB_OK, read_hex(&hpack, "82", said)); /* once is enough */
    PASS();
}

/* RFC 9113 section 4.3.1: only a table that held more than the new maximum has to be made smaller in so many words. A
   server that never fills its table, as small ones do, is in order. */
TEST only_a_table_that_was_larger_must_be_made_smaller(void)
{
    plb_hpack hpack;
    char memory[512], bytes[64], said[1024];
    int i, size;
    ASSERT_EQ(PLB_OK, plb_hpack_open(&hpack, memory, sizeof memory));
    ASSERT_EQ(PLB_OK, read_hex(&hpack, "400161 0162", said));
    plb_hpack_acknowledged(&hpack);
    ASSERT_EQ(PLB_OK, read_hex(&hpack, "82 be", said));
    ASSERT_EQ(PLB_ERR_PROTOCOL, read_hex(&hpack, "3fe201", said)); /* 257: the limit holds all the same */
    for (i = 0; i < 2; i++) {
        int fields = i == 0 ? 7 : 8; /* of 35 bytes each: 245, 280 */
        ASSERT_EQ(PLB_OK, plb_hpack_open(&hpack, memory, sizeof memory));
        while (fields-- > 0) {
            size = sprintf(bytes, "@%cn%c%d", 1, 2, 10 + fields);
            ASSERT_EQ(PLB_OK, read_block(&hpack, bytes, (size_t)size, 3, said));
        }
        plb_hpack_acknowledged(&hpack);
        ASSERT_EQ(i == 0 ? PLB_OK : PLB_ERR_PROTOCOL, read_hex(&hpack, "82", said));
    }
    PASS();
}

/* A peer with a table of 4096 and a reader of 256: what was forgotten is a fault, what is there is right. */
TEST a_table_larger_than_the_memory_is_never_read_wrong(void)
{
    plb_hpack hpack;
    char memory[512], bytes[64], said[1024], expected[16];
    int i;
    ASSERT_EQ(PLB_OK, plb_hpack_open(&hpack, memory, sizeof memory));
    for (i = 0; i < 20; i++) {
        int size = sprintf(bytes, "@%cn%c%d", 1, 2, 10 + i);
        ASSERT_EQ(PLB_OK, read_block(&hpack, bytes, (size_t)size, 3, said));
    }
    ASSERT_EQ(7u, hpack.entries); /* of 35 bytes */
    for (i = 0; i < 20; i++) {
        bytes[0] = (char)(0x80 | (62 + i));
        if (i < 7) {
            said[0] = '\0';
            ASSERT_EQ(PLB_OK, read_block(&hpack, bytes, 1, 1, said));
            sprintf(expected, "n: %d\n", 29 - i);
            ASSERT_STR_EQ(expected, said);
        } else {
            ASSERT_EQ(PLB_ERR_PROTOCOL, read_block(&hpack, bytes, 1, 1, said));
        }
    }
    PASS();
}

/* RFC 7541 section 4.4: the entry that names a field may be the one that has to leave for it. */
TEST a_name_may_be_evicted_by_the_field_that_uses_it(void)
{
    plb_hpack hpack;
    char memory[512], bytes[300], said[1024];
    ASSERT_EQ(PLB_OK, plb_hpack_open(&hpack, memory, sizeof memory));
    ASSERT_EQ(PLB_OK, read_hex(&hpack, "4005 6e616d6573 0162", said));
    bytes[0] = 0x7e; /* 62, with indexing */
    bytes[1] = 0x7f;
    bytes[2] = 200 - 127;
    memset(bytes + 3, 'v', 200);
    ASSERT_EQ(PLB_OK, read_block(&hpack, bytes, 203, 203, said));
    ASSERT_EQ(0, memcmp("names: vvv", said, 10));
    ASSERT_EQ(1u, hpack.entries);
    ASSERT_EQ(PLB_OK, read_hex(&hpack, "be", said));
    ASSERT_EQ(0, memcmp("names: vvv", said, 10));
    PASS();
}

TEST too_little_memory_is_an_argument(void)
{
    plb_hpack hpack;
    char memory[64];
    ASSERT_EQ(PLB_ERR_ARGUMENT, plb_hpack_open(&hpack, memory, 63));
    ASSERT_EQ(PLB_ERR_ARGUMENT, plb_hpack_open(&hpack, NULL, 64));
    ASSERT_EQ(PLB_OK, plb_hpack_open(&hpack, memory, 64));
    PASS();
}

/* ==== WRITING ===================================================================================================== */

TEST what_is_written_is_read_back(void)
{
    static const char *const fields[][2] = {{":method", "GET"}, {":method", "PUT"},     {":path", "/x"},
                                            {"x-own", ""},      {"user-agent", "a b"},  {"accept", ""},
                                            {"x", "y"},         {":authority", "[::1]"}};
    size_t i, long_value;
    for (i = 0; i < sizeof fields / sizeof fields[0]; i++)
        for (long_value = 0; long_value < 2; long_value++) {
            plb_hpack hpack;
            char memory[2048], bytes[512], said[1024], expected[1024], value[301];
            size_t size;
            memset(value, 'w', 300);
            value[300] = '\0';
            if (long_value == 0)
                strcpy(value, fields[i][1]);
            size = plb_hpack_write(bytes, sizeof bytes, text_of(fields[i][0]), text_of(value));
            ASSERT_EQ(size, plb_hpack_write(NULL, 0, text_of(fields[i][0]), text_of(value)));
            ASSERT_EQ(PLB_OK, plb_hpack_open(&hpack, memory, sizeof memory));
            said[0] = '\0';
            ASSERT_EQ(PLB_OK, read_block(&hpack, bytes, size, 5, said));
            sprintf(expected, "%s: %s\n", fields[i][0], value);
            ASSERT_STR_EQ(expected, said);
            ASSERT_EQ(0u, hpack.entries); /* it asks nothing of the peer's memory */
        }
    PASS();
}

TEST the_static_table_makes_fields_short(void)
{
    char bytes[64];
    ASSERT_EQ(1u, plb_hpack_write(bytes, sizeof bytes, text_of(":method"), text_of("GET")));
    ASSERT_EQ('\x82', bytes[0]);
    ASSERT_EQ(1u, plb_hpack_write(bytes, sizeof bytes, text_of(":scheme"), text_of("https")));
    ASSERT_EQ(1u + 1 + 3, plb_hpack_write(bytes, sizeof bytes, text_of(":authority"), text_of("a:1")));
    ASSERT_EQ(2u + 1 + 1, plb_hpack_write(bytes, sizeof bytes, text_of("user-agent"), text_of("x")));
    PASS();
}

SUITE(appendix_c)
{
    RUN_TEST(the_examples_of_the_rfc_read_the_same_in_pieces_of_any_size);
    RUN_TEST(integers_are_read_over_several_bytes);
    RUN_TEST(integers_that_grow_too_long_are_refused);
}

SUITE(strings)
{
    RUN_TEST(every_byte_has_its_huffman_code);
    RUN_TEST(huffman_padding_is_less_than_a_byte_of_ones);
    RUN_TEST(a_field_longer_than_the_room_is_cut);
    RUN_TEST(a_block_that_ends_within_a_field_is_refused);
}

SUITE(tables)
{
    RUN_TEST(indices_beyond_the_tables_are_refused);
    RUN_TEST(the_size_of_the_table_changes_only_at_the_start_of_a_block);
    RUN_TEST(an_acknowledged_size_binds_the_peer);
    RUN_TEST(only_a_table_that_was_larger_must_be_made_smaller);
    RUN_TEST(a_table_larger_than_the_memory_is_never_read_wrong);
    RUN_TEST(a_name_may_be_evicted_by_the_field_that_uses_it);
    RUN_TEST(too_little_memory_is_an_argument);
}

SUITE(writing)
{
    RUN_TEST(what_is_written_is_read_back);
    RUN_TEST(the_static_table_makes_fields_short);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(appendix_c);
    RUN_SUITE(strings);
    RUN_SUITE(tables);
    RUN_SUITE(writing);
    GREATEST_MAIN_END();
}
