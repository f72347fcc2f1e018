/* The mbedTLS port over the POSIX port as the port under test: that one's fixture, and TLS on every connection. */
#define io_fixture_open  posix_fixture_open
#define io_fixture_close posix_fixture_close
#include "io_fixture_posix.c"
#undef io_fixture_open
#undef io_fixture_close

#define PLB_MBEDTLS_IMPLEMENTATION
#include "../ports/plb_mbedtls.h"
#include "tls_certificates.h"

typedef struct tls_fixture {
    io_fixture base; /* a copy of that of posix, whose functions go on with its own */
    io_fixture *posix;
    plb_mbedtls *tls;
    plb_io io; /* that of tls, but for connect and listen */
} tls_fixture;

static plb_status connect_by_tls(void *self, const plb_peer *peer, plb_handler handler, plb_stream **out)
{
    plb_tls wanted;
    plb_peer with_tls = *peer;
    memset(&wanted, 0, sizeof wanted);
    wanted.name = "peer.test";
    with_tls.tls = &wanted;
    return plb_mbedtls_io((plb_mbedtls *)self)->connect(self, &with_tls, handler, out);
}

static plb_status listen_by_tls(void *self, const plb_listen_desc *desc, plb_handler handler, plb_stream **out)
{
    plb_tls wanted;
    plb_listen_desc with_tls = *desc;
    memset(&wanted, 0, sizeof wanted);
    with_tls.tls = &wanted;
    return plb_mbedtls_io((plb_mbedtls *)self)->listen(self, &with_tls, handler, out);
}

/* One certificate that vouches for itself, for all tests. */
static plb_status open_tls(const plb_io *below, plb_mbedtls **out)
{
    static tls_certificate certificate;
    tls_wish wish;
    plb_mbedtls_desc desc;
    memset(&wish, 0, sizeof wish);
    wish.subject = "CN=peer";
    wish.dns[0] = "peer.test";
    if (certificate.pem[0] == '\0')
        tls_certify(&certificate, &wish);
    memset(&desc, 0, sizeof desc);
    desc.io = below;
    desc.identity.ca_pem = desc.identity.cert_pem = certificate.pem;
    desc.identity.key_pem = certificate.key;
    return plb_mbedtls_create(&desc, out);
}

static tls_fixture *opened; /* one at a time */

io_fixture *io_fixture_open(void)
{
    tls_fixture *fixture = (tls_fixture *)calloc(1, sizeof *fixture);
    if (fixture == NULL || (fixture->posix = posix_fixture_open()) == NULL ||
        open_tls(fixture->posix->port.io, &fixture->tls) != PLB_OK)
        abort();
    fixture->io = *plb_mbedtls_io(fixture->tls);
    fixture->io.connect = connect_by_tls;
    fixture->io.listen = listen_by_tls;
    fixture->base = *fixture->posix;
    fixture->base.name = "mbedtls over posix";
    fixture->base.port.io = &fixture->io;
    fixture->base.handshakes = true;
    opened = fixture;
    return &fixture->base;
}

void io_fixture_close(io_fixture *fixture)
{
    (void)fixture;
    plb_mbedtls_destroy(opened->tls);
    posix_fixture_close(opened->posix);
    free(opened);
    opened = NULL;
}
