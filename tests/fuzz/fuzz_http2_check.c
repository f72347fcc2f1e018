/* Fuzzes the HTTP/2 and the gRPC check. The first byte chooses the check's options, the second how the answer is cut
   into pieces, the third how much of the rest answers a second request on the same connection, where there is one. What
   must hold for any bytes: the probe ends, the same way with the same words however the answer is cut, nothing is left
   behind, and the connection begins as HTTP/2 does. */
#include "../../pingora_lb.h"

#include "peer.h"

/* Bits of the first byte; the last one is the peer's. */
enum { GRPC = 1, HEAD = 2, WIDE = 4, VALIDATED = 8, CONTAINS = 16, LIMITED = 32, KEPT = 64, ENDS = 128 };

static bool has_headers(void *user, uint32_t status, const plb_http1_header *headers, size_t count)
{
    size_t i, k;
    (void)user;
    REQUIRE(status >= 200 && status < 1000 && count <= 64);
    for (i = 0; i < count; i++) {
        REQUIRE(plb_http1_is_token(headers[i].name) && plb_http1_is_value(headers[i].value));
        for (k = 0; k < headers[i].name.size; k++)
            REQUIRE(headers[i].name.data[k] < 'A' || headers[i].name.data[k] > 'Z');
    }
    return count > 0;
}

static plb_http_check_desc page_of(uint8_t options)
{
    plb_http_check_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.method = (options & HEAD) != 0 ? "HEAD" : NULL;
    desc.statuses = (options & WIDE) != 0 ? "200-399,500" : NULL;
    desc.validate = (options & VALIDATED) != 0 ? has_headers : NULL;
    desc.contains = (options & CONTAINS) != 0 && (options & HEAD) == 0 ? "abab" : NULL;
    desc.body_limit = (options & LIMITED) != 0 ? 20 : 0;
    desc.reuse_connection = (options & KEPT) != 0;
    return desc;
}

static void require_opening(const peer *p)
{
    static const char opening[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\4\0\0\0\0\0";
    REQUIRE(p->request_size > sizeof opening - 1 && memcmp(p->request, opening, sizeof opening - 1) == 0);
}

/* How much a peer may ask before it listens depends on how much of it comes at once. */
static bool asked_too_much(const outcome *o)
{
    return strstr(o->text, "rules: error 11") != NULL;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint32_t seeds[] = {0, 1, 7, 99};
    outcome first, again;
    plb_http_check_desc page;
    plb_grpc_check_desc grpc;
    size_t i, second;
    if (size < 3)
        return 0;
    page = page_of(data[0]);
    memset(&grpc, 0, sizeof grpc);
    grpc.reuse_connection = page.reuse_connection;
    grpc.service = (data[0] & WIDE) != 0 ? "a.Service" : NULL;
    second = (size - 3) * data[2] / 255;
    for (i = 0; i < sizeof seeds / sizeof *seeds; i++) {
        outcome *o = i == 0 ? &first : &again;
        peer p;
        memset(&p, 0, sizeof p);
        p.answer = data + 3;
        p.size = size - 3 - second;
        p.ends = (data[0] & ENDS) != 0;
        p.pieces = seeds[i] == 0 ? 0 : seeds[i] * 1000 + data[1];
        p.hesitates = i % 2 != 0;
        peer_probe(&p, (data[0] & GRPC) != 0 ? plb_grpc_check(&grpc) : plb_http2_check(&page), data + size - second,
                   second, o);
        require_opening(&p);
        if (i > 0 && !asked_too_much(&first) && !asked_too_much(o))
            REQUIRE(first.status == o->status && first.code == o->code && strcmp(first.text, o->text) == 0);
    }
    return 0;
}
