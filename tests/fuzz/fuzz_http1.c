/* Fuzzes the HTTP/1 codec. The first byte chooses what the rest is (even: a request, odd: a response) and where it is
   cut in two; the rest is taken as a head, and what follows the head as a chunked body. What must hold for any bytes:
   slices lie inside of them, bytes that come in two parts mean the same as at once, and a head that is taken is clean
   enough to be written out again and read back as the same one.

   Built with -fsanitize=fuzzer,address,undefined; with main.c and no fuzzer, a program that runs files. */
#include "../../pingora_lb.h"

#include <stdio.h>
#include <stdlib.h>

#define HEADERS 32

#define REQUIRE(condition)                                                                                             \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                            \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static plb_http1_head new_head(plb_http1_header *headers)
{
    plb_http1_head head;
    memset(&head, 0, sizeof head);
    head.headers = headers;
    head.header_capacity = HEADERS;
    return head;
}

static plb_status parse(plb_http1_head *head, bool request, const char *bytes, size_t size)
{
    return request ? plb_http1_parse_request(head, bytes, size) : plb_http1_parse_response(head, bytes, size);
}

static void require_inside(plb_text text, const char *bytes, size_t size)
{
    if (text.size > 0)
        REQUIRE(text.data >= bytes && text.data + text.size <= bytes + size);
}

static bool same(plb_text a, plb_text b)
{
    return a.size == b.size && (a.size == 0 || memcmp(a.data, b.data, a.size) == 0);
}

static void put(char *out, size_t *at, plb_text text, const char *after)
{
    if (text.size > 0)
        memcpy(out + *at, text.data, text.size);
    *at += text.size;
    memcpy(out + *at, after, strlen(after));
    *at += strlen(after);
}

/* Writes a head out as a proxy would, and reads it again. */
static void require_round_trip(const plb_http1_head *head, bool request)
{
    plb_http1_header headers[HEADERS];
    plb_http1_head again = new_head(headers);
    char *out = (char *)malloc(head->size * 2 + 64 + HEADERS * 8);
    plb_text code;
    char digits[8];
    size_t i, at = 0;
    if (request) {
        put(out, &at, head->method, " ");
        put(out, &at, head->target, " HTTP/1.1\r\n");
    } else {
        snprintf(digits, sizeof digits, "%u", (unsigned)head->status);
        code.data = digits;
        code.size = 3;
        memcpy(out, "HTTP/1.1 ", 9);
        at = 9;
        put(out, &at, code, " ");
        put(out, &at, head->reason, "\r\n");
    }
    for (i = 0; i < head->header_count; i++) {
        put(out, &at, head->headers[i].name, ": ");
        put(out, &at, head->headers[i].value, "\r\n");
    }
    memcpy(out + at, "\r\n", 2);
    at += 2;
    REQUIRE(parse(&again, request, out, at) == PLB_OK);
    REQUIRE(again.size == at && again.header_count == head->header_count && again.status == head->status);
    REQUIRE(same(again.method, head->method) && same(again.target, head->target) && same(again.reason, head->reason));
    for (i = 0; i < head->header_count; i++)
        REQUIRE(same(again.headers[i].name, head->headers[i].name) &&
                same(again.headers[i].value, head->headers[i].value));
    free(out);
}

static void check_head(const plb_http1_head *head, bool request, const char *bytes, size_t size)
{
    plb_http1_body body;
    size_t i;
    REQUIRE(head->size <= size && head->header_count <= HEADERS);
    require_inside(head->method, bytes, size);
    require_inside(head->target, bytes, size);
    require_inside(head->reason, bytes, size);
    for (i = 0; i < head->header_count; i++) {
        plb_text element;
        size_t at = 0, bytes_listed = 0;
        require_inside(head->headers[i].name, bytes, size);
        require_inside(head->headers[i].value, bytes, size);
        REQUIRE(plb_http1_is_token(head->headers[i].name) && plb_http1_is_value(head->headers[i].value));
        while (plb_http1_list_next(head->headers[i].value, &at, &element)) {
            require_inside(element, bytes, size);
            bytes_listed += element.size;
        }
        REQUIRE(bytes_listed <= head->headers[i].value.size);
    }
    (void)plb_http1_keeps_alive(head);
    if (request && plb_http1_request_body(head, &body) == PLB_OK) /* one length, or none: no second reading of it */
        REQUIRE(plb_http1_find(head, "content-length") == NULL || plb_http1_find(head, "transfer-encoding") == NULL);
    if (!request && plb_http1_response_body(head, false, &body) == PLB_OK)
        REQUIRE(body.framing == PLB_HTTP1_LENGTH || body.length == 0);
    require_round_trip(head, request);
}

/* Decodes in two parts; returns the last status, and the body's bytes as a hash that does not know where pieces end. */
static plb_status dechunk(const char *bytes, size_t size, size_t cut, uint64_t *hash, size_t *consumed)
{
    plb_http1_chunked chunked;
    plb_status status = PLB_AGAIN;
    size_t at = 0;
    memset(&chunked, 0, sizeof chunked);
    *hash = 14695981039346656037u;
    while (status == PLB_OK || (status == PLB_AGAIN && at < size)) {
        size_t end = at < cut ? cut : size, used, i;
        plb_text data;
        status = plb_http1_chunked_next(&chunked, bytes + at, end - at, &used, &data);
        REQUIRE(used <= end - at && (status == PLB_OK) == (data.size > 0));
        require_inside(data, bytes + at, used);
        for (i = 0; i < data.size; i++)
            *hash = (*hash ^ (uint8_t)data.data[i]) * 1099511628211u;
        at += used;
    }
    *consumed = at;
    return status;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    plb_http1_header headers[HEADERS], headers_again[HEADERS];
    plb_http1_head head = new_head(headers), again = new_head(headers_again);
    char *bytes;
    bool request;
    size_t cut, at, at_again;
    uint64_t hash, hash_again;
    plb_status status, status_again;
    if (size == 0)
        return 0;
    request = (data[0] & 1) == 0;
    cut = --size > 0 ? (size_t)(data[0] >> 1) * size / 128 : 0;
    bytes = (char *)malloc(size > 0 ? size : 1); /* no larger, so that a read past the end is seen */
    memcpy(bytes, data + 1, size);

    status = parse(&head, request, bytes, size);
    status_again = parse(&again, request, bytes, cut);
    if (status_again == PLB_AGAIN)
        status_again = parse(&again, request, bytes, size);
    REQUIRE(status == status_again || (status != PLB_OK && status_again != PLB_OK));
    at = 0;
    if (status == PLB_OK) {
        REQUIRE(head.size == again.size && head.header_count == again.header_count);
        check_head(&head, request, bytes, size);
        at = head.size;
    }
    status = dechunk(bytes + at, size - at, size - at, &hash, &at_again);
    status_again = dechunk(bytes + at, size - at, cut < size - at ? cut : 0, &hash_again, &cut);
    REQUIRE(status == status_again && hash == hash_again && at_again == cut);
    free(bytes);
    return 0;
}
