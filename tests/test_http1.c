/* The HTTP/1 codec: what it takes, what it refuses, and that it makes no difference how the bytes arrive. */
#include "../pingora_lb.h"
#include <greatest.h>

#include <stdlib.h>

#define HEADERS 8

static plb_http1_header headers[HEADERS];

static plb_http1_head new_head(void)
{
    plb_http1_head head;
    memset(&head, 0, sizeof head);
    head.headers = headers;
    head.header_capacity = HEADERS;
    return head;
}

/* Parses from a copy of exactly that size, so that the address sanitizer sees each byte read past it. */
static plb_status parse_exact(plb_http1_head *head, bool request, const char *bytes, size_t size)
{
    char *copy = (char *)malloc(size ? size : 1);
    plb_status status;
    memcpy(copy, bytes, size);
    status = request ? plb_http1_parse_request(head, copy, size) : plb_http1_parse_response(head, copy, size);
    free(copy);
    return status;
}

static plb_status request_status(const char *text)
{
    plb_http1_head head = new_head();
    return parse_exact(&head, true, text, strlen(text));
}

static plb_status response_status(const char *text)
{
    plb_http1_head head = new_head();
    return parse_exact(&head, false, text, strlen(text));
}

static bool is(plb_text text, const char *expected)
{
    return text.size == strlen(expected) && memcmp(text.data, expected, text.size) == 0;
}

/* ==== HEADS ======================================================================================================= */

TEST a_request_head_is_sliced(void)
{
    const char *text = "POST /a?b=c HTTP/1.1\r\nHost: x\r\nEmpty:\r\nPadded: \t a b\t \r\n\r\nbody";
    plb_http1_head head = new_head();
    ASSERT_EQ(PLB_OK, plb_http1_parse_request(&head, text, strlen(text)));
    ASSERT(is(head.method, "POST"));
    ASSERT(is(head.target, "/a?b=c"));
    ASSERT_EQ(1, head.minor);
    ASSERT_EQ(3u, head.header_count);
    ASSERT(is(headers[0].name, "Host"));
    ASSERT(is(headers[0].value, "x"));
    ASSERT(is(headers[1].value, ""));
    ASSERT(is(headers[2].value, "a b"));
    ASSERT_STR_EQ("body", text + head.size);
    ASSERT_EQ(&headers[0], plb_http1_find(&head, "host"));
    ASSERT_EQ(NULL, plb_http1_find(&head, "hos"));
    PASS();
}

TEST a_response_head_is_sliced(void)
{
    const char *text = "HTTP/1.0 404 Not  Found\r\nA: b\r\n\r\n";
    plb_http1_head head = new_head();
    ASSERT_EQ(PLB_OK, plb_http1_parse_response(&head, text, strlen(text)));
    ASSERT_EQ(404, head.status);
    ASSERT_EQ(0, head.minor);
    ASSERT(is(head.reason, "Not  Found"));
    ASSERT_EQ(1u, head.header_count);
    ASSERT_EQ(strlen(text), head.size);
    PASS();
}

/* For each length short of the whole, more is asked for, and nothing beyond is read. */
TEST heads_may_arrive_byte_by_byte(void)
{
    const char *texts[] = {"\r\nGET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n", "HTTP/1.1 200 OK\r\nServer: a\r\n\r\n"};
    size_t i, size;
    for (i = 0; i < 2; i++) {
        plb_http1_head head = new_head();
        for (size = 0; size < strlen(texts[i]); size++)
            ASSERT_EQ(PLB_AGAIN, parse_exact(&head, i == 0, texts[i], size));
        ASSERT_EQ(PLB_OK, parse_exact(&head, i == 0, texts[i], size));
        ASSERT_EQ(size, head.size);
    }
    PASS();
}

TEST malformed_requests_are_refused(void)
{
    static const char *const bad[] = {
        "GET / HTTP/1.1\nHost: a\n\n",                 /* bare LF */
        "GET / HTTP/1.1\r\nHost: a\n\r\n",             /* bare LF in the midst */
        "GET / HTTP/1.1\r\nHost: a\r\n\n",             /* bare LF at the end */
        "GET / HTTP/1.1\r\nA: b\rc\r\n\r\n",           /* bare CR */
        "GET / HTTP/1.1\r\rA: b\r\n\r\n",              /* bare CR */
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",          /* space before the colon */
        "GET / HTTP/1.1\r\nHost\t: a\r\n\r\n",         /* tab before the colon */
        "GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",        /* folded */
        "GET / HTTP/1.1\r\nA: b\r\n\tc\r\n\r\n",       /* folded */
        "GET / HTTP/1.1\r\n A: b\r\n\r\n",             /* space before the first header */
        "GET / HTTP/1.1\r\n: b\r\n\r\n",               /* no name */
        "GET / HTTP/1.1\r\nAb\r\n\r\n",                /* no colon */
        "GET / HTTP/1.1\r\nA\x01: b\r\n\r\n",          /* control byte in a name */
        "GET / HTTP/1.1\r\nA\xc3\xa4: b\r\n\r\n",      /* a name beyond ASCII */
        "GET / HTTP/1.1\r\nA(: b\r\n\r\n",             /* no token */
        "GET / HTTP/1.1\r\nA: b\x01\r\n\r\n",          /* control byte in a value */
        "GET / HTTP/1.1\r\nA: 0123456789\x7f\r\n\r\n", /* DEL */
        "GET  / HTTP/1.1\r\n\r\n",                     /* two spaces */
        "GET / HTTP/1.1 \r\n\r\n",                     /* a space at the end */
        "GET /\r\n\r\n",                               /* HTTP/0.9 */
        "GET / \r\n\r\n",                              /* no version */
        "GET HTTP/1.1\r\n\r\n",                        /* no target */
        "GET /\x01 HTTP/1.1\r\n\r\n",                  /* control byte in the target */
        "GET /\t HTTP/1.1\r\n\r\n",                    /* tab in the target */
        "GE(T / HTTP/1.1\r\n\r\n",                     /* no token */
        " GET / HTTP/1.1\r\n\r\n",                     /* space at the start */
        "GET / http/1.1\r\n\r\n",                      /* letter case of the version */
        "GET / HTTP/1.10\r\n\r\n",                     /* two digits */
        "GET / HTTP/11\r\n\r\n",                       /* no point */
        "\r\n\r\nGET / HTTP/1.1\r\n\r\n",              /* two empty lines */
        "\r\rGET / HTTP/1.1\r\n\r\n",                  /* a CR that is no empty line */
        "\n",                                          /* at once */
        "\x16\x03\x01",                                /* TLS: at once */
        "GET / HTTP/1.1\r\nHost: a\n",                 /* at once, not when the head has ended */
    };
    size_t i;
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++)
        ASSERT_EQm(bad[i], PLB_ERR_PROTOCOL, request_status(bad[i]));
    PASS();
}

TEST nul_bytes_are_refused_wherever_they_stand(void)
{
    const char text[] = "GET /path HTTP/1.1\r\nName: a longer value\r\n\r\n";
    size_t i, size = sizeof text - 1;
    for (i = 0; i < size; i++) {
        char copy[sizeof text];
        plb_http1_head head = new_head();
        memcpy(copy, text, size);
        copy[i] = '\0';
        ASSERT(plb_http1_parse_request(&head, copy, size) != PLB_OK);
    }
    PASS();
}

TEST versions_have_their_own_answer(void)
{
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, request_status("GET / HTTP/2.0\r\n\r\n"));
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, request_status("GET / HTTP/0.9\r\n\r\n"));
    ASSERT_EQ(PLB_OK, request_status("GET / HTTP/1.0\r\n\r\n"));
    ASSERT_EQ(PLB_OK, request_status("GET / HTTP/1.7\r\n\r\n"));
    PASS();
}

TEST odd_but_legal_requests_are_taken(void)
{
    ASSERT_EQ(PLB_OK, request_status("M-SEARCH * HTTP/1.1\r\n\r\n"));
    ASSERT_EQ(PLB_OK, request_status("GET http://a/ HTTP/1.1\r\n\r\n"));
    ASSERT_EQ(PLB_OK, request_status("GET /\xc3\xa4 HTTP/1.1\r\nA: \xc3\xa4\tb\x80\xff\r\n\r\n"));
    ASSERT_EQ(PLB_OK, request_status("GET / HTTP/1.1\r\n!#$%&'*+-.^_`|~09azAZ: 1\r\n\r\n"));
    PASS();
}

TEST malformed_responses_are_refused(void)
{
    static const char *const bad[] = {
        "HTTP/1.1 200 OK\n\n",         "HTTP/1.1  200 OK\r\n\r\n", "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",    "HTTP/1.1 099 OK\r\n\r\n",  "HTTP/1.1 2x0 OK\r\n\r\n",
        "HTTP/1.1 200 O\x01K\r\n\r\n", "ICY 200 OK\r\n\r\n",       "HTTP/1.1\r\n\r\n",
        "\r\nHTTP/1.1 200 OK\r\n\r\n", "HTTP/x.1 200 OK\r\n\r\n",  "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
    };
    size_t i;
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++)
        ASSERT_EQm(bad[i], PLB_ERR_PROTOCOL, response_status(bad[i]));
    ASSERT_EQ(PLB_OK, response_status("HTTP/1.1 200 \r\n\r\n"));
    ASSERT_EQ(PLB_OK, response_status("HTTP/1.1 200\r\n\r\n"));
    PASS();
}

TEST more_headers_than_there_is_room_for_are_a_limit(void)
{
    char text[256] = "GET / HTTP/1.1\r\n";
    int i;
    for (i = 0; i < HEADERS; i++)
        strcat(text, "A: b\r\n");
    strcat(text, "\r\n");
    ASSERT_EQ(PLB_OK, request_status(text));
    strcpy(text + strlen(text) - 2, "A: b\r\n\r\n");
    ASSERT_EQ(PLB_ERR_LIMIT, request_status(text));
    PASS();
}

/* ==== LISTS AND NUMBERS =========================================================================================== */

TEST lists_are_walked_without_their_blanks(void)
{
    static const char text[] = " ,a, ,\tb c ,,d";
    static const char *const expected[] = {"a", "b c", "d"};
    plb_text list, element;
    size_t at = 0, count = 0;
    list.data = text;
    list.size = strlen(text);
    while (plb_http1_list_next(list, &at, &element)) {
        ASSERT(count < 3);
        ASSERT(is(element, expected[count++]));
    }
    ASSERT_EQ(3u, count);
    PASS();
}

TEST content_length_is_digits_and_nothing_else(void)
{
    static const char *const bad[] = {
        "", "+1", "-1", "1 ", "0x1", "1,1", "1 1", "1.0", "18446744073709551616", "99999999999999999999999"};
    uint64_t value = 0;
    plb_text text;
    size_t i;
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        text.data = bad[i];
        text.size = strlen(bad[i]);
        ASSERT_EQm(bad[i], PLB_ERR_PROTOCOL, plb_http1_content_length(text, &value));
    }
    text.data = "18446744073709551615";
    text.size = 20;
    ASSERT_EQ(PLB_OK, plb_http1_content_length(text, &value));
    ASSERT_EQ(UINT64_MAX, value);
    text.data = "0001";
    text.size = 4;
    ASSERT_EQ(PLB_OK, plb_http1_content_length(text, &value));
    ASSERT_EQ(1u, value);
    PASS();
}

TEST only_known_idempotent_methods_are_idempotent(void)
{
    static const char *const yes[] = {"GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"};
    static const char *const no[] = {"POST", "PATCH", "CONNECT", "get", "GETS", "GE", "LOCK"};
    plb_text text;
    size_t i;
    for (i = 0; i < sizeof yes / sizeof yes[0]; i++) {
        text.data = yes[i];
        text.size = strlen(yes[i]);
        ASSERTm(yes[i], plb_http1_is_idempotent(text));
    }
    for (i = 0; i < sizeof no / sizeof no[0]; i++) {
        text.data = no[i];
        text.size = strlen(no[i]);
        ASSERT_FALSEm(no[i], plb_http1_is_idempotent(text));
    }
    PASS();
}

/* ==== FRAMING ===================================================================================================== */

typedef struct framing_case {
    const char *head;
    plb_status status;
    plb_http1_framing framing;
    uint64_t length;
} framing_case;

TEST the_body_of_a_request_has_one_length(void)
{
    static const framing_case cases[] = {
        {"", PLB_OK, PLB_HTTP1_EMPTY, 0},
        {"Content-Length: 0\r\n", PLB_OK, PLB_HTTP1_LENGTH, 0},
        {"content-length: 7\r\n", PLB_OK, PLB_HTTP1_LENGTH, 7},
        {"Transfer-Encoding: chunked\r\n", PLB_OK, PLB_HTTP1_CHUNKED, 0},
        {"Transfer-Encoding: CHUNKED\r\n", PLB_OK, PLB_HTTP1_CHUNKED, 0},
        {"Content-Length: 7\r\nContent-Length: 7\r\n", PLB_ERR_PROTOCOL, PLB_HTTP1_EMPTY, 0},
        {"Content-Length: 7\r\nContent-Length: 8\r\n", PLB_ERR_PROTOCOL, PLB_HTTP1_EMPTY, 0},
        {"Content-Length: 7, 7\r\n", PLB_ERR_PROTOCOL, PLB_HTTP1_EMPTY, 0},
        {"Content-Length: +7\r\n", PLB_ERR_PROTOCOL, PLB_HTTP1_EMPTY, 0},
        {"Content-Length:\r\n", PLB_ERR_PROTOCOL, PLB_HTTP1_EMPTY, 0},
        {"Content-Length: 7\r\nTransfer-Encoding: chunked\r\n", PLB_ERR_PROTOCOL, PLB_HTTP1_EMPTY, 0},
        {"Transfer-Encoding: chunked\r\nContent-Length: 7\r\n", PLB_ERR_PROTOCOL, PLB_HTTP1_EMPTY, 0},
        {"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", PLB_ERR_PROTOCOL, PLB_HTTP1_EMPTY, 0},
        {"Transfer-Encoding: gzip\r\nContent-Length: 7\r\n", PLB_ERR_PROTOCOL, PLB_HTTP1_EMPTY, 0},
        {"Transfer-Encoding: gzip, chunked\r\n", PLB_ERR_UNSUPPORTED, PLB_HTTP1_EMPTY, 0},
        {"Transfer-Encoding: chunked, identity\r\n", PLB_ERR_UNSUPPORTED, PLB_HTTP1_EMPTY, 0},
        {"Transfer-Encoding: xchunked\r\n", PLB_ERR_UNSUPPORTED, PLB_HTTP1_EMPTY, 0},
        {"Transfer-Encoding: \"chunked\"\r\n", PLB_ERR_UNSUPPORTED, PLB_HTTP1_EMPTY, 0},
        {"Transfer-Encoding:\r\n", PLB_ERR_UNSUPPORTED, PLB_HTTP1_EMPTY, 0},
    };
    size_t i;
    for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        plb_http1_head head = new_head();
        plb_http1_body body;
        char text[256] = "POST / HTTP/1.1\r\n";
        strcat(strcat(text, cases[i].head), "\r\n");
        ASSERT_EQ(PLB_OK, plb_http1_parse_request(&head, text, strlen(text)));
        ASSERT_EQm(cases[i].head, cases[i].status, plb_http1_request_body(&head, &body));
        if (cases[i].status != PLB_OK)
            continue;
        ASSERT_EQm(cases[i].head, cases[i].framing, body.framing);
        ASSERT_EQm(cases[i].head, cases[i].length, body.length);
    }
    PASS();
}

TEST a_transfer_coding_in_http_1_0_is_a_fault(void)
{
    const char *text = "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
    plb_http1_head head = new_head();
    plb_http1_body body;
    ASSERT_EQ(PLB_OK, plb_http1_parse_request(&head, text, strlen(text)));
    ASSERT_EQ(PLB_ERR_PROTOCOL, plb_http1_request_body(&head, &body));
    PASS();
}

static plb_http1_framing response_framing(const char *text, bool to_head)
{
    plb_http1_head head = new_head();
    plb_http1_body body;
    if (plb_http1_parse_response(&head, text, strlen(text)) != PLB_OK ||
        plb_http1_response_body(&head, to_head, &body) != PLB_OK)
        return (plb_http1_framing)-1;
    return body.framing;
}

TEST the_body_of_a_response_hangs_on_its_status_and_its_request(void)
{
    ASSERT_EQ(PLB_HTTP1_LENGTH, response_framing("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", false));
    ASSERT_EQ(PLB_HTTP1_EMPTY, response_framing("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true));
    ASSERT_EQ(PLB_HTTP1_EMPTY, response_framing("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", true));
    ASSERT_EQ(PLB_HTTP1_EMPTY, response_framing("HTTP/1.1 204 OK\r\n\r\n", false));
    ASSERT_EQ(PLB_HTTP1_EMPTY, response_framing("HTTP/1.1 304 OK\r\nContent-Length: 5\r\n\r\n", false));
    ASSERT_EQ(PLB_HTTP1_EMPTY, response_framing("HTTP/1.1 100 Continue\r\n\r\n", false));
    ASSERT_EQ(PLB_HTTP1_UNTIL_CLOSE, response_framing("HTTP/1.1 200 OK\r\n\r\n", false));
    ASSERT_EQ(PLB_HTTP1_CHUNKED, response_framing("HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n", false));
    ASSERT_EQ(-1, (int)response_framing("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", true));
    PASS();
}

TEST keep_alive_hangs_on_version_and_connection(void)
{
    static const struct {
        const char *text;
        bool keeps;
    } cases[] = {
        {"GET / HTTP/1.1\r\n\r\n", true},
        {"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", false},
        {"GET / HTTP/1.1\r\nConnection: a\r\nconnection: b , CLOSE\r\n\r\n", false},
        {"GET / HTTP/1.0\r\n\r\n", false},
        {"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", true},
        {"GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n", false},
    };
    size_t i;
    for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        plb_http1_head head = new_head();
        ASSERT_EQ(PLB_OK, plb_http1_parse_request(&head, cases[i].text, strlen(cases[i].text)));
        ASSERT_EQm(cases[i].text, cases[i].keeps, plb_http1_keeps_alive(&head));
    }
    PASS();
}

/* ==== CHUNKS ====================================================================================================== */

/* Decodes in pieces of `step` bytes; what came out is in `out`, NUL-terminated. */
static plb_status dechunk(const char *bytes, size_t size, size_t step, char *out, size_t *used)
{
    plb_http1_chunked chunked;
    plb_status status = PLB_AGAIN;
    size_t at = 0, out_size = 0;
    memset(&chunked, 0, sizeof chunked);
    while (status == PLB_AGAIN || status == PLB_OK) {
        size_t part = size - at < step ? size - at : step, n;
        char *copy = (char *)malloc(part ? part : 1);
        plb_text data;
        memcpy(copy, bytes + at, part);
        status = plb_http1_chunked_next(&chunked, copy, part, &n, &data);
        memcpy(out + out_size, data.data, data.size);
        out_size += data.size;
        free(copy);
        at += n;
        if (status == PLB_AGAIN && at == size)
            break;
    }
    out[out_size] = '\0';
    *used = at;
    return status;
}

TEST chunks_come_out_the_same_however_they_arrive(void)
{
    const char *text = "3\r\nabc\r\n0000A;x=\"y\";z\r\n0123456789\r\n1 ;b\r\n!\r\n0\r\nTrailer: a\r\nB: c\r\n\r\nnext";
    size_t step, used, size = strlen(text);
    char out[128];
    for (step = 1; step <= size; step++) {
        ASSERT_EQ(PLB_END, dechunk(text, size, step, out, &used));
        ASSERT_STR_EQ("abc0123456789!", out);
        ASSERT_STR_EQ("next", text + used);
    }
    for (size = 0; size < used; size++)
        ASSERT_EQ(PLB_AGAIN, dechunk(text, size, 7, out, &step));
    PASS();
}

TEST malformed_chunks_are_refused(void)
{
    static const char *const bad[] = {
        "\r\n",                  /* no size */
        "g\r\n",                 /* no digit */
        "-1\r\n",                /* no sign */
        "0x1\r\n",               /* no prefix */
        " 1\r\n",                /* no blank before */
        "1 \r\na",               /* nor after, without an extension */
        "1\na\r\n",              /* bare LF after the size */
        "1\r\ra",                /* bare CR */
        "1;a\nb",                /* bare LF in an extension */
        "1;a\x01\r\n",           /* control byte in an extension */
        "1\r\nab",               /* data longer than its size */
        "1\r\na\nb",             /* bare LF after the data */
        "00000000000000001\r\n", /* too many digits */
        "11111111111111111\r\n", /* overflow */
        "0\r\nA: b\n\r\n",       /* bare LF in a trailer */
        "0\r\n A: b\r\n\r\n",    /* folded trailer */
        "0\r\n\rx",              /* no LF at the end */
    };
    size_t i, step, used;
    char out[64];
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++)
        for (step = 1; step < 8; step++)
            ASSERT_EQm(bad[i], PLB_ERR_PROTOCOL, dechunk(bad[i], strlen(bad[i]), step, out, &used));
    PASS();
}

TEST extensions_and_trailers_are_bounded(void)
{
    static char text[PLB_HTTP1_EXTRA_MAX + 64];
    char out[8];
    size_t used;
    memset(text, 'a', sizeof text);
    memcpy(text, "1;", 2);
    ASSERT_EQ(PLB_ERR_LIMIT, dechunk(text, sizeof text, sizeof text, out, &used));
    memcpy(text, "0\r\n", 3);
    ASSERT_EQ(PLB_ERR_LIMIT, dechunk(text, sizeof text, 1, out, &used));
    PASS();
}

/* 2^64 - 1 is a legal size; a decoder that counts in 32 bits would take it for another one. */
TEST large_chunks_keep_their_size(void)
{
    plb_http1_chunked chunked;
    plb_text data;
    size_t used;
    memset(&chunked, 0, sizeof chunked);
    ASSERT_EQ(PLB_OK, plb_http1_chunked_next(&chunked, "ffffffffffffffff\r\nab", 20, &used, &data));
    ASSERT_EQ(2u, data.size);
    ASSERT_EQ(PLB_OK, plb_http1_chunked_next(&chunked, "0\r\n\r\n", 5, &used, &data));
    ASSERT_EQ(5u, data.size);
    PASS();
}

SUITE(heads)
{
    RUN_TEST(a_request_head_is_sliced);
    RUN_TEST(a_response_head_is_sliced);
    RUN_TEST(heads_may_arrive_byte_by_byte);
    RUN_TEST(malformed_requests_are_refused);
    RUN_TEST(nul_bytes_are_refused_wherever_they_stand);
    RUN_TEST(versions_have_their_own_answer);
    RUN_TEST(odd_but_legal_requests_are_taken);
    RUN_TEST(malformed_responses_are_refused);
    RUN_TEST(more_headers_than_there_is_room_for_are_a_limit);
}

SUITE(lists_and_numbers)
{
    RUN_TEST(lists_are_walked_without_their_blanks);
    RUN_TEST(content_length_is_digits_and_nothing_else);
    RUN_TEST(only_known_idempotent_methods_are_idempotent);
}

SUITE(framing)
{
    RUN_TEST(the_body_of_a_request_has_one_length);
    RUN_TEST(a_transfer_coding_in_http_1_0_is_a_fault);
    RUN_TEST(the_body_of_a_response_hangs_on_its_status_and_its_request);
    RUN_TEST(keep_alive_hangs_on_version_and_connection);
}

SUITE(chunks)
{
    RUN_TEST(chunks_come_out_the_same_however_they_arrive);
    RUN_TEST(malformed_chunks_are_refused);
    RUN_TEST(extensions_and_trailers_are_bounded);
    RUN_TEST(large_chunks_keep_their_size);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(heads);
    RUN_SUITE(lists_and_numbers);
    RUN_SUITE(framing);
    RUN_SUITE(chunks);
    GREATEST_MAIN_END();
}
