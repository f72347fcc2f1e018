/* Fuzzes the HTTP check: a real probe of a real balancer, over a plb_io whose only peer answers with the input. The
   first two bytes choose the check's options and how the answer is cut into pieces; the rest is the answer. What must
   hold for any bytes: the probe ends, the same way with the same words however the answer is cut, nothing is left
   behind, and the request was sent whole. */
#include "../../pingora_lb.h"

#include "peer.h"

static bool has_headers(void *user, uint32_t status, const plb_http1_header *headers, size_t count)
{
    size_t i;
    (void)user;
    REQUIRE(status >= 200 && status < 1000);
    for (i = 0; i < count; i++)
        REQUIRE(plb_http1_is_token(headers[i].name) && plb_http1_is_value(headers[i].value));
    return count > 0;
}

/* Bits of the first byte; the last one is the peer's. */
enum { HEAD = 1, WIDE = 2, VALIDATED = 4, CONTAINS = 8, LIMITED = 16, KEPT = 32, ENDS = 64 };

static plb_http_check_desc check_of(uint8_t options)
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

static void require_whole_request(const peer *p, uint8_t options)
{
    const char *begin =
        (options & HEAD) != 0 ? "HEAD / HTTP/1.1\r\nHost: 10.0.0.1\r\n" : "GET / HTTP/1.1\r\nHost: 10.0.0.1\r\n";
    REQUIRE(p->request_size > strlen(begin) && memcmp(p->request, begin, strlen(begin)) == 0);
    REQUIRE(memcmp(p->request + p->request_size - 4, "\r\n\r\n", 4) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint32_t seeds[] = {0, 1, 7, 99};
    outcome first, again;
    plb_http_check_desc http;
    peer p;
    size_t i;
    if (size < 2)
        return 0;
    http = check_of(data[0]);
    for (i = 0; i < sizeof seeds / sizeof *seeds; i++) {
        memset(&p, 0, sizeof p);
        p.answer = data + 2;
        p.size = size - 2;
        p.ends = (data[0] & ENDS) != 0;
        p.pieces = seeds[i] == 0 ? 0 : seeds[i] * 1000 + data[1];
        p.hesitates = i % 2 != 0;
        peer_probe(&p, plb_http_check(&http), NULL, 0, i == 0 ? &first : &again);
        require_whole_request(&p, data[0]);
        if (i > 0)
            REQUIRE(first.status == again.status && first.code == again.code && strcmp(first.text, again.text) == 0);
    }
    return 0;
}
