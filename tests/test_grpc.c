/* gRPC's health checking protocol as bytes, and one whole check over HTTP/2. Every message is fed at once, byte by byte
   and cut in two at every place. */
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

/* Reads `size` bytes, the first piece of which has `cut`, the others `step`; each from a copy of exactly that size. */
static plb_status read_pieces(const char *bytes, size_t size, size_t cut, size_t step, uint32_t *serving)
{
    plb_grpc_health reader;
    plb_status status = PLB_AGAIN;
    size_t at = 0, piece = cut;
    memset(&reader, 0, sizeof reader);
    while (at < size && (status == PLB_AGAIN || status == PLB_OK)) {
        char *copy;
        if (piece > size - at)
            piece = size - at;
        copy = (char *)malloc(piece ? piece : 1);
        memcpy(copy, bytes + at, piece);
        status = plb_grpc_health_next(&reader, copy, piece);
        free(copy);
        at += piece;
        piece = step;
    }
    *serving = reader.serving;
    return status;
}

static enum greatest_test_res check_bytes(const char *bytes, size_t size, plb_status status, uint32_t serving)
{
    uint32_t said;
    size_t i;
    for (i = 0; i < size; i++) {
        ASSERT_EQ(status, read_pieces(bytes, size, i, size, &said));
        if (status == PLB_OK)
            ASSERT_EQ(serving, said);
    }
    ASSERT_EQ(status, read_pieces(bytes, size, 1, 1, &said));
    if (status == PLB_OK)
        ASSERT_EQ(serving, said);
    PASS();
}

/* A message, with its prefix put before it. */
static enum greatest_test_res check(const char *message, size_t size, plb_status status, uint32_t serving)
{
    static char bytes[8192];
    memset(bytes, 0, 5);
    bytes[3] = (char)(size >> 8);
    bytes[4] = (char)(size & 0xff);
    memcpy(bytes + 5, message, size);
    return check_bytes(bytes, size + 5, status, serving);
}

#define SERVES(literal, serving) CHECK_CALL(check(literal, sizeof literal - 1, PLB_OK, serving))
#define REFUSED(literal)         CHECK_CALL(check(literal, sizeof literal - 1, PLB_ERR_PROTOCOL, 0))

/* ==== REQUESTS ==================================================================================================== */

TEST a_request_names_its_service(void)
{
    char out[300], service[201];
    ASSERT_EQ(5u, plb_grpc_health_request(out, sizeof out, text_of("")));
    ASSERT_MEM_EQ("\0\0\0\0\0", out, 5);
    ASSERT_EQ(10u, plb_grpc_health_request(out, sizeof out, text_of("a.B")));
    ASSERT_MEM_EQ("\0\0\0\0\5\x0a\3a.B", out, 10);
    memset(service, 's', 200);
    service[200] = '\0';
    ASSERT_EQ(5u + 3 + 200, plb_grpc_health_request(out, sizeof out, text_of(service)));
    ASSERT_MEM_EQ("\0\0\0\0\xcb\x0a\xc8\1sss", out, 11);
    PASS();
}

TEST a_request_without_room_is_only_counted(void)
{
    char out[10];
    memset(out, 'x', sizeof out);
    ASSERT_EQ(10u, plb_grpc_health_request(out, 9, text_of("a.B")));
    ASSERT_EQ('x', out[0]);
    ASSERT_EQ(10u, plb_grpc_health_request(NULL, 0, text_of("a.B")));
    ASSERT_EQ(10u, plb_grpc_health_request(out, 10, text_of("a.B")));
    ASSERT_EQ('B', out[9]);
    PASS();
}

/* ==== ANSWERS ===================================================================================================== */

TEST the_status_is_read(void)
{
    SERVES("\x08\x01", PLB_GRPC_SERVING);
    SERVES("\x08\x02", PLB_GRPC_NOT_SERVING);
    SERVES("\x08\x03", PLB_GRPC_SERVICE_UNKNOWN);
    SERVES("\x08\x00", PLB_GRPC_UNKNOWN);
    SERVES("", PLB_GRPC_UNKNOWN);                                       /* what is missing is 0 */
    SERVES("\x08\x07", 7);                                              /* a number of a later version */
    SERVES("\x08\x02\x08\x01", PLB_GRPC_SERVING);                       /* the last one counts */
    SERVES("\x08\x81\x80\x00", PLB_GRPC_SERVING);                       /* longer than it need be */
    SERVES("\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 0xffffffff); /* -1 */
    PASS();
}

TEST unknown_fields_are_skipped(void)
{
    SERVES("\x08\x01\x10\x96\x01", PLB_GRPC_SERVING); /* varint */
    SERVES("\x11"
           "12345678\x08\x01",
           PLB_GRPC_SERVING); /* 64 bits */
    SERVES("\x12\x03"
           "\x08\x02\x00\x08\x01",
           PLB_GRPC_SERVING);                     /* bytes */
    SERVES("\x12\x00\x08\x01", PLB_GRPC_SERVING); /* no bytes */
    SERVES("\x15"
           "1234\x08\x01",
           PLB_GRPC_SERVING);                                     /* 32 bits */
    SERVES("\x08\x01\x13\x08\x02\x14", PLB_GRPC_SERVING);         /* a group, with a field of that number in it */
    SERVES("\x08\x01\x13\x1b\x08\x02\x1c\x14", PLB_GRPC_SERVING); /* a group in a group */
    SERVES("\x08\x01\x0a\x01\x02", PLB_GRPC_SERVING);             /* the number, but another type */
    SERVES("\xf8\xff\xff\xff\x0f\x01\x08\x01", PLB_GRPC_SERVING); /* field 2^29 - 1 */
    PASS();
}

TEST malformed_messages_are_refused(void)
{
    REFUSED("\x08");                                             /* no value */
    REFUSED("\x08\x81");                                         /* half a value */
    REFUSED("\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02");     /* above 64 bits */
    REFUSED("\x08\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00"); /* 11 bytes */
    REFUSED("\x00\x01");                                         /* field 0 */
    REFUSED("\x0e");                                             /* no such type */
    REFUSED("\x0f");                                             /* no such type */
    REFUSED("\x80\x80\x80\x80\x10\x01");                         /* a field number of 30 bits */
    REFUSED("\x12\x05"
            "1234");                                         /* bytes beyond the message */
    REFUSED("\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"); /* 2^64 - 1 of them */
    REFUSED("\x11"
            "1234567"); /* 64 bits beyond the message */
    REFUSED("\x15"
            "123");          /* 32 bits beyond the message */
    REFUSED("\x14");         /* a group's end without it */
    REFUSED("\x13\x1c");     /* another group's end */
    REFUSED("\x13\x08\x01"); /* a group without an end */
    PASS();
}

TEST compressed_messages_are_refused(void)
{
    CHECK_CALL(check_bytes("\1\0\0\0\2\x08\x01", 7, PLB_ERR_PROTOCOL, 0));
    CHECK_CALL(check_bytes("\2\0\0\0\2\x08\x01", 7, PLB_ERR_PROTOCOL, 0));
    PASS();
}

TEST an_answer_is_one_message(void)
{
    CHECK_CALL(check_bytes("\0\0\0\0\2\x08\x01\0\0\0\0\0", 12, PLB_ERR_PROTOCOL, 0));
    CHECK_CALL(check_bytes("\0\0\0\0\0\0", 6, PLB_ERR_PROTOCOL, 0));
    CHECK_CALL(check_bytes("\0\0\0\0\2\x08", 6, PLB_AGAIN, 0));
    CHECK_CALL(check_bytes("\0\0\0\0", 4, PLB_AGAIN, 0));
    PASS();
}

TEST messages_and_groups_are_bounded(void)
{
    static char message[PLB_GRPC_MESSAGE_MAX + 1];
    memset(message, 0, sizeof message);
    memcpy(message, "\x12\xfb\x1f", 3); /* 4091 bytes */
    memcpy(message + 4094, "\x08\x01", 2);
    CHECK_CALL(check(message, PLB_GRPC_MESSAGE_MAX, PLB_OK, PLB_GRPC_SERVING));
    CHECK_CALL(check(message, PLB_GRPC_MESSAGE_MAX + 1, PLB_ERR_LIMIT, 0));
    CHECK_CALL(check_bytes("\0\xff\xff\xff\xff", 5, PLB_ERR_LIMIT, 0));
    SERVES("\x13\x13\x13\x13\x13\x13\x13\x13\x14\x14\x14\x14\x14\x14\x14\x14", PLB_GRPC_UNKNOWN);
    CHECK_CALL(check("\x13\x13\x13\x13\x13\x13\x13\x13\x13", 9, PLB_ERR_LIMIT, 0));
    PASS();
}

/* ==== STATUS ====================================================================================================== */

TEST statuses_are_numbers_with_names(void)
{
    uint32_t number = 99;
    ASSERT_EQ(PLB_OK, plb_grpc_status(text_of("0"), &number));
    ASSERT_EQ(0u, number);
    ASSERT_EQ(PLB_OK, plb_grpc_status(text_of("14"), &number));
    ASSERT_STR_EQ("UNAVAILABLE", plb_grpc_status_name(number));
    ASSERT_EQ(PLB_OK, plb_grpc_status(text_of("4294967295"), &number));
    ASSERT_EQ(UINT32_MAX, number);
    ASSERT_EQ(PLB_ERR_PROTOCOL, plb_grpc_status(text_of("4294967296"), &number));
    ASSERT_EQ(PLB_ERR_PROTOCOL, plb_grpc_status(text_of(""), &number));
    ASSERT_EQ(PLB_ERR_PROTOCOL, plb_grpc_status(text_of("-1"), &number));
    ASSERT_EQ(PLB_ERR_PROTOCOL, plb_grpc_status(text_of("1 "), &number));
    ASSERT_STR_EQ("OK", plb_grpc_status_name(0));
    ASSERT_STR_EQ("UNIMPLEMENTED", plb_grpc_status_name(12));
    ASSERT_STR_EQ("UNAUTHENTICATED", plb_grpc_status_name(16));
    ASSERT_STR_EQ("UNKNOWN", plb_grpc_status_name(2));
    ASSERT_STR_EQ("UNKNOWN", plb_grpc_status_name(17));
    ASSERT_STR_EQ("SERVING", plb_grpc_serving_name(PLB_GRPC_SERVING));
    ASSERT_STR_EQ("SERVICE_UNKNOWN", plb_grpc_serving_name(PLB_GRPC_SERVICE_UNKNOWN));
    ASSERT_STR_EQ("UNKNOWN", plb_grpc_serving_name(4));
    PASS();
}

/* ==== A WHOLE CHECK =============================================================================================== */

static size_t put_frame(char *at, uint8_t type, uint8_t flags, const char *payload, size_t size)
{
    memset(at, 0, 9);
    at[2] = (char)size;
    at[3] = (char)type;
    at[4] = (char)flags;
    at[8] = type == 4 ? 0 : 1;
    if (size > 0)
        memcpy(at + 9, payload, size);
    return size + 9;
}

TEST a_check_over_http2(void)
{
    plb_http2 h;
    plb_http2_header headers[PLB_GRPC_HEADERS];
    plb_http2_event event;
    plb_grpc_health reader;
    plb_status status, health = PLB_AGAIN;
    char memory[PLB_HTTP2_MEMORY_MIN], body[32], wire[256], sent[512];
    size_t size = 0, at = 0, used, sent_size = 0;
    uint32_t code = 99;
    plb_text request, out;
    memset(&reader, 0, sizeof reader);
    request.data = body;
    request.size = plb_grpc_health_request(body, sizeof body, text_of("shop"));
    plb_grpc_health_headers(headers, text_of("10.0.0.1:443"), true);
    ASSERT_EQ(PLB_OK, plb_http2_open(&h, memory, sizeof memory));
    ASSERT_EQ(PLB_OK, plb_http2_request(&h, headers, PLB_GRPC_HEADERS, request));
    for (out = plb_http2_output(&h); out.size > 0; out = plb_http2_output(&h)) {
        memcpy(sent + sent_size, out.data, out.size);
        sent_size += out.size;
        plb_http2_sent(&h, out.size);
    }
    ASSERT_MEM_EQ("\0\0\0\0\6\x0a\4shop", sent + sent_size - 11, 11); /* at the end, in a DATA frame */
    ASSERT_MEM_EQ("\0\0\x0b\0\1\0\0\0\1", sent + sent_size - 20, 9);

    size += put_frame(wire + size, 4, 0, "", 0);
    size += put_frame(wire + size, 4, 1, "", 0);
    size += put_frame(wire + size, 1, 4,
                      " \x88\x0f\x10\x10"
                      "application/grpc",
                      21);
    size += put_frame(wire + size, 0, 0, "\0\0\0\0\2\x08\1", 7);
    size += put_frame(wire + size, 1, 5,
                      "\0\x0bgrpc-status\1"
                      "0",
                      15);
    while ((status = plb_http2_next(&h, wire + at, size - at, &used, &event)) == PLB_OK) {
        at += used;
        if (event.kind == PLB_HTTP2_DATA)
            health = plb_grpc_health_next(&reader, event.data.data, event.data.size);
        if (event.kind == PLB_HTTP2_TRAILER && plb_text_is(event.name, "grpc-status"))
            ASSERT_EQ(PLB_OK, plb_grpc_status(event.value, &code));
        if (event.kind == PLB_HTTP2_END)
            break;
    }
    ASSERT_EQ(PLB_OK, status);
    ASSERT_EQ(PLB_OK, health);
    ASSERT_EQ(0u, code);
    ASSERT_EQ((uint32_t)PLB_GRPC_SERVING, reader.serving);
    PASS();
}

SUITE(requests)
{
    RUN_TEST(a_request_names_its_service);
    RUN_TEST(a_request_without_room_is_only_counted);
}

SUITE(answers)
{
    RUN_TEST(the_status_is_read);
    RUN_TEST(unknown_fields_are_skipped);
    RUN_TEST(malformed_messages_are_refused);
    RUN_TEST(compressed_messages_are_refused);
    RUN_TEST(an_answer_is_one_message);
    RUN_TEST(messages_and_groups_are_bounded);
}

SUITE(statuses)
{
    RUN_TEST(statuses_are_numbers_with_names);
    RUN_TEST(a_check_over_http2);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(requests);
    RUN_SUITE(answers);
    RUN_SUITE(statuses);
    GREATEST_MAIN_END();
}
