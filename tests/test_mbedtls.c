/* The mbedTLS port over the simulator: what a certificate is worth, what comes of every fault, what is resumed. What it
   has in common with other ports is in io_conformance.c. */
#define _GNU_SOURCE
#include <dlfcn.h>

#include "../pingora_lb.h"
#define PLB_MBEDTLS_IMPLEMENTATION
#include "../ports/plb_mbedtls.h"
#define SIM_IMPLEMENTATION
#include "sim.h"
#include "tls_certificates.h"
#include <greatest.h>

/* ==== MEMORY OF MBEDTLS =========================================================================================== */

static unsigned long calloc_calls, calloc_fail_at; /* 0: never */
static size_t calloc_bytes;                        /* asked for so far */

/* mbedTLS takes all its memory from here. */
void *calloc(size_t count, size_t size)
{
    static void *(*real)(size_t, size_t);
    if (real == NULL)
        *(void **)&real = dlsym(RTLD_NEXT, "calloc");
    calloc_bytes += count * size;
    return ++calloc_calls == calloc_fail_at ? NULL : real(count, size);
}

/* ==== CERTIFICATES ================================================================================================ */

static const unsigned char ipv4[4] = {10, 0, 0, 7};
static const unsigned char ipv6[16] = {0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7};

static tls_certificate authority, server_cert, address_cert, expired_cert, future_cert, self_cert, client_cert;
static tls_certificate strange_authority, strange_client;

static void certify(tls_certificate *out, const char *subject, const tls_certificate *issuer, const char *dns)
{
    tls_wish wish;
    memset(&wish, 0, sizeof wish);
    wish.subject = subject;
    wish.issuer = issuer;
    wish.authority = issuer == NULL && dns == NULL;
    wish.dns[0] = dns;
    if (out == &server_cert)
        wish.dns[1] = "*.wild.test";
    if (out == &address_cert) {
        wish.ip = ipv4;
        wish.ip_size = sizeof ipv4;
    }
    if (out == &expired_cert)
        wish.until = "20200201000000";
    if (out == &future_cert)
        wish.from = "20900101000000";
    tls_certify(out, &wish);
}

static void certify_all(void)
{
    certify(&authority, "CN=authority", NULL, NULL);
    certify(&server_cert, "CN=common.test", &authority, "good.test");
    certify(&address_cert, "CN=address", &authority, "good.test");
    certify(&expired_cert, "CN=expired", &authority, "good.test");
    certify(&future_cert, "CN=future", &authority, "good.test");
    certify(&self_cert, "CN=self", NULL, "good.test");
    certify(&client_cert, "CN=client", &authority, "client.test");
    certify(&strange_authority, "CN=strange", NULL, NULL);
    certify(&strange_client, "CN=strange client", &strange_authority, "client.test");
}

/* ==== HELPERS ===================================================================================================== */

#define PATIENCE 3000 /* virtual milliseconds that anything may take */

typedef struct end {
    plb_stream *stream;
    unsigned connects, reads, writes, accepts;
    plb_status connected;
} end;

static sim *s;
static sim_alloc memory;
static plb_mbedtls *tls;
static const plb_io *io;
static plb_credentials *made[4];
static size_t made_count;
static plb_addr addr; /* where the server listens */
static end listener, client, server;
static char reason[256]; /* of the stream that failed last */

static void on_event(void *user, plb_stream *stream, plb_event event, plb_status status)
{
    end *e = (end *)user;
    if (e->stream != stream)
        abort();
    e->connects += event == PLB_EVENT_CONNECT;
    e->reads += event == PLB_EVENT_READ;
    e->writes += event == PLB_EVENT_WRITE;
    e->accepts += event == PLB_EVENT_ACCEPT;
    if (event == PLB_EVENT_CONNECT)
        e->connected = status;
}

static plb_handler handler_of(end *e)
{
    plb_handler handler;
    memset(e, 0, sizeof *e);
    handler.fn = on_event;
    handler.user = e;
    return handler;
}

static void drop(end *e, plb_close_how how)
{
    plb_stream *stream = e->stream;
    e->stream = NULL;
    if (stream != NULL)
        io->close(io->self, stream, how);
}

static plb_mbedtls_identity identity_of(const tls_certificate *ca, const tls_certificate *own)
{
    plb_mbedtls_identity identity;
    memset(&identity, 0, sizeof identity);
    identity.no_ca = true;
    identity.ca_pem = ca != NULL ? ca->pem : NULL;
    identity.cert_pem = own != NULL ? own->pem : NULL;
    identity.key_pem = own != NULL ? own->key : NULL;
    return identity;
}

/* They are given back when the test is over. */
static plb_credentials *credentials_of(const tls_certificate *ca, const tls_certificate *own)
{
    plb_mbedtls_identity identity = identity_of(ca, own);
    plb_credentials **credentials = &made[made_count++];
    if (plb_mbedtls_credentials(tls, &identity, credentials) != PLB_OK)
        abort();
    return *credentials;
}

static plb_mbedtls_desc desc_of(void)
{
    plb_mbedtls_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.io = sim_port(s).io;
    desc.allocator = sim_allocator(&memory);
    desc.identity = identity_of(&authority, &server_cert);
    return desc;
}

static void open_port(const plb_mbedtls_desc *desc)
{
    if (plb_mbedtls_create(desc, &tls) != PLB_OK)
        abort();
    io = plb_mbedtls_io(tls);
}

static void set_up(void *user)
{
    plb_mbedtls_desc desc;
    (void)user;
    memset(&memory, 0, sizeof memory);
    memset(&listener, 0, sizeof listener);
    memset(&client, 0, sizeof client);
    memset(&server, 0, sizeof server);
    reason[0] = '\0';
    s = sim_create(1);
    addr = sim_addr("10.0.0.7:443");
    desc = desc_of();
    open_port(&desc);
}

static void drop_all(void)
{
    drop(&client, PLB_CLOSE_ABORT);
    drop(&server, PLB_CLOSE_ABORT);
    drop(&listener, PLB_CLOSE_ABORT);
}

/* What a test leaves behind is a failure of all of them. */
static void tear_down(void *user)
{
    (void)user;
    drop_all();
    while (made_count > 0)
        plb_mbedtls_credentials_free(made[--made_count]);
    plb_mbedtls_destroy(tls);
    if (sim_destroy(s) != 0 || sim_alloc_leaks(&memory) != 0)
        abort();
}

static plb_tls named(const char *name)
{
    plb_tls wanted;
    memset(&wanted, 0, sizeof wanted);
    wanted.name = name;
    return wanted;
}

static plb_status listen_with(const plb_tls *wanted)
{
    plb_listen_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.addr = addr;
    desc.tls = wanted;
    return io->listen(io->self, &desc, handler_of(&listener), &listener.stream);
}

static plb_status connect_with(const plb_tls *wanted)
{
    plb_peer peer;
    memset(&peer, 0, sizeof peer);
    peer.addr = addr;
    peer.tls = wanted;
    return io->connect(io->self, &peer, handler_of(&client), &client.stream);
}

static bool accepted(void)
{
    return server.stream != NULL ||
           (listener.stream != NULL &&
            io->accept(io->self, listener.stream, handler_of(&server), &server.stream) == PLB_OK);
}

static void note_reason(const end *e)
{
    plb_stream_info info;
    io->info(io->self, e->stream, &info);
    snprintf(reason, sizeof reason, "%s", info.tls_reason != NULL ? info.tls_reason : "");
}

/* Connects and accepts; how the client's connection came out, PLB_AGAIN if it did not. */
static plb_status shake(const plb_tls *wanted)
{
    uint64_t until = s->now_ms + PATIENCE;
    plb_status status = connect_with(wanted);
    while (status == PLB_AGAIN && client.connects == 0 && s->now_ms < until) {
        sim_step(s, 10);
        accepted();
    }
    if (status == PLB_AGAIN && client.connects > 0)
        status = client.connected;
    if (status != PLB_OK && status != PLB_AGAIN && client.stream != NULL)
        note_reason(&client);
    sim_run_for(s, 20);
    return status;
}

static void hang_up(void)
{
    drop(&client, PLB_CLOSE_GRACEFUL);
    drop(&server, PLB_CLOSE_GRACEFUL);
    sim_run_for(s, 50);
}

static plb_status write_some(end *e, const void *bytes, size_t size, size_t *taken)
{
    plb_chunk chunk;
    chunk.data = bytes;
    chunk.size = size;
    chunk.flags = 0;
    return io->write(io->self, e->stream, &chunk, 1, taken);
}

static plb_status write_all(end *e, const char *bytes, size_t size)
{
    uint64_t until = s->now_ms + PATIENCE;
    plb_status status = PLB_AGAIN;
    size_t done = 0, taken;
    while (done < size && s->now_ms < until) {
        status = write_some(e, bytes + done, size - done, &taken);
        if (status == PLB_AGAIN)
            sim_step(s, 10);
        else if (status != PLB_OK)
            return status;
        done += status == PLB_OK ? taken : 0;
    }
    return done == size ? PLB_OK : status;
}

static plb_status read_all(end *e, char *bytes, size_t size)
{
    uint64_t until = s->now_ms + PATIENCE;
    plb_status status = PLB_AGAIN;
    size_t done = 0, got;
    while (done < size && s->now_ms < until) {
        status = io->read(io->self, e->stream, bytes + done, size - done, &got);
        if (status == PLB_AGAIN)
            sim_step(s, 10);
        else if (status != PLB_OK)
            return status;
        done += status == PLB_OK ? got : 0;
    }
    return done == size ? PLB_OK : status;
}

/* Sends a text one way and back. */
static bool echoes(void)
{
    char text[16] = {0};
    return write_all(&client, "there", 5) == PLB_OK && read_all(&server, text, 5) == PLB_OK &&
           write_all(&server, "and back", 8) == PLB_OK && read_all(&client, text + 5, 8) == PLB_OK &&
           strcmp(text, "thereand back") == 0;
}

static plb_stream_info info_of(const end *e)
{
    plb_stream_info info;
    io->info(io->self, e->stream, &info);
    return info;
}

static bool says(const char *words)
{
    if (strstr(reason, words) != NULL)
        return true;
    fprintf(stderr, "the reason is: %s\n", reason);
    return false;
}

/* ==== SESSIONS ==================================================================================================== */

TEST a_session_carries_bytes_both_ways(void)
{
    plb_tls wanted = named("good.test"), own = named(NULL);
    plb_stream_info info;
    ASSERT_EQ(PLB_OK, listen_with(&own));
    ASSERT_EQ(PLB_OK, shake(&wanted));
    ASSERT(echoes());
    ASSERT(strncmp(info_of(&client).tls_version, "TLSv1.", 6) == 0);
    ASSERT_STR_EQ(info_of(&client).tls_version, info_of(&server).tls_version);
    ASSERT_FALSE(info_of(&client).tls_resumed);
    ASSERT_EQ(NULL, info_of(&client).tls_reason);
    info = info_of(&client);
    ASSERT_EQ(0, plb_addr_compare(&addr, &info.remote));
    ASSERT_EQ(1u, client.connects);
    PASS();
}

TEST nothing_readable_is_on_the_wire(void)
{
    plb_tls wanted = named("good.test"), own = named(NULL);
    char text[7] = {0};
    ASSERT_EQ(PLB_OK, listen_with(&own));
    ASSERT_EQ(PLB_OK, shake(&wanted));
    sim_host(s, &addr)->fault = SIM_HANG;
    ASSERT_EQ(PLB_OK, write_all(&client, "secret", 6));
    ASSERT_EQ(NULL, memmem(s->conns[1]->line.data, s->conns[1]->line.size, "secret", 6));
    sim_host(s, &addr)->fault = SIM_FINE;
    ASSERT_EQ(PLB_OK, read_all(&server, text, 6));
    ASSERT_STR_EQ("secret", text);
    PASS();
}

TEST peers_without_tls_pass_through(void)
{
    ASSERT_EQ(PLB_OK, listen_with(NULL));
    ASSERT_EQ(PLB_OK, shake(NULL));
    ASSERT(echoes());
    ASSERT_EQ(NULL, info_of(&client).tls_version);
    drop(&client, PLB_CLOSE_GRACEFUL);
    ASSERT_EQ(PLB_END, read_all(&server, reason, 1));
    PASS();
}

TEST large_and_gathered_writes_arrive_whole(uint32_t portion)
{
    static char bytes[100000], back[100000];
    plb_tls wanted = named("good.test"), own = named(NULL);
    plb_chunk chunks[4];
    size_t i, taken;
    for (i = 0; i < sizeof bytes; i++)
        bytes[i] = (char)(i * 7 + i / 251);
    ASSERT_EQ(PLB_OK, listen_with(&own));
    s->max_read = s->max_write = portion;
    ASSERT_EQ(PLB_OK, shake(&wanted));
    for (i = 0; i < 4; i++) { /* 10, none, 3000 and 5 bytes */
        chunks[i].data = bytes + (i == 0 ? 0 : i < 3 ? 10 : 3010);
        chunks[i].size = (size_t)(i == 0 ? 10 : i == 1 ? 0 : i == 2 ? 3000 : 5);
        chunks[i].flags = 0;
    }
    ASSERT_EQ(PLB_OK, io->write(io->self, client.stream, chunks, 4, &taken));
    for (i = 0; i < sizeof back; i += 1000) {
        size_t more;
        if (taken < sizeof bytes && write_some(&client, bytes + taken, sizeof bytes - taken, &more) == PLB_OK)
            taken += more;
        ASSERT_EQ(PLB_OK, read_all(&server, back + i, 1000));
    }
    ASSERT_MEM_EQ(bytes, back, sizeof bytes);
    PASS();
}

TEST an_accepted_stream_shakes_hands_unasked_and_tells_of_data_once(void)
{
    plb_tls wanted = named("good.test"), own = named(NULL);
    char byte;
    size_t got;
    ASSERT_EQ(PLB_OK, listen_with(&own));
    ASSERT_EQ(PLB_AGAIN, connect_with(&wanted));
    while (!accepted())
        sim_step(s, 10);
    ASSERT_EQ(PLB_AGAIN, io->read(io->self, server.stream, &byte, 1, &got));
    ASSERT_EQ(PLB_AGAIN, io->watch(io->self, server.stream, PLB_EVENT_WRITE));
    sim_run_for(s, 100);
    ASSERT_EQ(PLB_OK, client.connected);
    ASSERT_EQ_FMT(1u, server.writes, "%u");
    ASSERT_EQ_FMT(0u, server.reads, "%u");
    s->max_write = 1; /* a record that comes in pieces is told when it is there */
    ASSERT_EQ(PLB_OK, write_all(&client, "ab", 2));
    sim_run_for(s, 1000);
    ASSERT_EQ_FMT(1u, server.reads, "%u");
    ASSERT_EQ(PLB_OK, io->read(io->self, server.stream, &byte, 1, &got));
    ASSERT_EQ(PLB_OK, io->watch(io->self, server.stream, PLB_EVENT_READ)); /* the other half is in mbedTLS */
    ASSERT_EQ(PLB_OK, io->read(io->self, server.stream, &byte, 1, &got));
    ASSERT_EQ('b', byte);
    ASSERT_EQ(PLB_AGAIN, io->watch(io->self, server.stream, PLB_EVENT_READ));
    PASS();
}

/* ==== CERTIFICATES ================================================================================================ */

typedef struct trial {
    const tls_certificate *shown;
    const char *name, *alternative;
    bool any_chain, any_name;
    plb_status status;
    const char *words;
} trial;

static const trial trials[] = {
    {&server_cert, "good.test", NULL, 0, 0, PLB_OK, ""},
    {&server_cert, "GOOD.Test", NULL, 0, 0, PLB_OK, ""},
    {&server_cert, "good.test.", NULL, 0, 0, PLB_OK, ""},
    {&server_cert, "other.test", NULL, 0, 0, PLB_ERR_CERTIFICATE, "another name"},
    {&server_cert, "ood.test", NULL, 0, 0, PLB_ERR_CERTIFICATE, "another name"},
    {&server_cert, "common.test", NULL, 0, 0, PLB_ERR_CERTIFICATE, "another name"},
    {&server_cert, "a.wild.test", NULL, 0, 0, PLB_OK, ""},
    {&server_cert, "wild.test", NULL, 0, 0, PLB_ERR_CERTIFICATE, "another name"},
    {&server_cert, ".wild.test", NULL, 0, 0, PLB_ERR_CERTIFICATE, "another name"},
    {&server_cert, "a.b.wild.test", NULL, 0, 0, PLB_ERR_CERTIFICATE, "another name"},
    {&server_cert, "other.test", "good.test", 0, 0, PLB_OK, ""},
    {&server_cert, "other.test", "another.test", 0, 0, PLB_ERR_CERTIFICATE, "another name"},
    {&server_cert, "other.test", NULL, 0, 1, PLB_OK, ""},
    {&server_cert, NULL, NULL, 0, 1, PLB_OK, ""},
    {&server_cert, "other.test", NULL, 1, 0, PLB_ERR_CERTIFICATE, "another name"},
    {&server_cert, "10.0.0.7", NULL, 0, 0, PLB_ERR_CERTIFICATE, "another name"},
    {&address_cert, "10.0.0.7", NULL, 0, 0, PLB_OK, ""},
    {&address_cert, "10.0.0.8", NULL, 0, 0, PLB_ERR_CERTIFICATE, "another name"},
    {&address_cert, "::ffff:10.0.0.7", NULL, 0, 0, PLB_ERR_CERTIFICATE, "another name"},
    {&expired_cert, "good.test", NULL, 0, 0, PLB_ERR_CERTIFICATE, "expired"},
    {&expired_cert, "good.test", NULL, 0, 1, PLB_ERR_CERTIFICATE, "expired"},
    {&expired_cert, "good.test", NULL, 1, 0, PLB_OK, ""},
    {&future_cert, "good.test", NULL, 0, 0, PLB_ERR_CERTIFICATE, "not valid yet"},
    {&self_cert, "good.test", NULL, 0, 0, PLB_ERR_CERTIFICATE, "nobody trusted"},
    {&self_cert, "good.test", NULL, 0, 1, PLB_ERR_CERTIFICATE, "nobody trusted"},
    {&self_cert, "good.test", NULL, 1, 0, PLB_OK, ""},
    {&self_cert, "other.test", NULL, 1, 0, PLB_ERR_CERTIFICATE, "another name"},
    {&self_cert, "other.test", NULL, 1, 1, PLB_OK, ""},
};

/* The same for the second connection, which may resume. */
TEST a_certificate_is_taken_for_what_it_is(const void *which)
{
    const trial *t = (const trial *)which;
    plb_tls wanted = named(t->name), own = named(NULL);
    plb_credentials *credentials = credentials_of(NULL, t->shown);
    int round;
    own.credentials = credentials;
    wanted.alternative_name = t->alternative;
    wanted.any_chain = t->any_chain;
    wanted.any_name = t->any_name;
    ASSERT_EQ(PLB_OK, listen_with(&own));
    for (round = 0; round < 2; round++) {
        ASSERT_EQ_FMT(t->status, shake(&wanted), "%d");
        ASSERT(says(t->words));
        ASSERT_EQ(t->status == PLB_OK, t->status == PLB_OK && echoes());
        hang_up();
    }
    PASS();
}

TEST an_ipv6_address_in_a_certificate_is_matched(void)
{
    tls_certificate certificate;
    tls_wish wish;
    plb_tls wanted = named("2001:db8::7"), own = named(NULL);
    plb_credentials *credentials;
    memset(&wish, 0, sizeof wish);
    wish.subject = "CN=six";
    wish.issuer = &authority;
    wish.ip = ipv6;
    wish.ip_size = sizeof ipv6;
    tls_certify(&certificate, &wish);
    credentials = credentials_of(NULL, &certificate);
    own.credentials = credentials;
    ASSERT_EQ(PLB_OK, listen_with(&own));
    ASSERT_EQ(PLB_OK, shake(&wanted));
    hang_up();
    wanted.name = "2001:db8::8";
    ASSERT_EQ(PLB_ERR_CERTIFICATE, shake(&wanted));
    PASS();
}

TEST nobody_is_trusted_without_authorities(void)
{
    plb_tls wanted = named("good.test"), own = named(NULL);
    plb_credentials *credentials = credentials_of(NULL, NULL);
    wanted.credentials = credentials;
    ASSERT_EQ(PLB_OK, listen_with(&own));
    ASSERT_EQ(PLB_ERR_CERTIFICATE, shake(&wanted));
    ASSERT(says("nobody trusted"));
    PASS();
}

/* RFC 6066 section 3: a name goes out, an address does not. */
TEST the_server_hears_the_name(const char *name, bool heard)
{
    plb_tls wanted = named(name);
    sim_conn *far;
    sim_serve(s, &addr, NULL, NULL);
    ASSERT_EQ(PLB_AGAIN, connect_with(&wanted));
    sim_run_for(s, 20);
    far = sim_newest(s, &addr);
    ASSERT(far != NULL && far->inbox.size > 0);
    ASSERT_EQ(heard, memmem(far->inbox.data, far->inbox.size, name, strlen(name)) != NULL);
    PASS();
}

TEST what_makes_no_sense_is_refused_at_once(void)
{
    plb_tls wanted = named(NULL);
    const char *too_long[2] = {NULL, NULL};
    plb_credentials *nobody = credentials_of(NULL, NULL);
    char name[300];
    memset(name, 'a', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    ASSERT_EQ(PLB_ERR_ARGUMENT, connect_with(&wanted)); /* no name to check */
    wanted.name = "";
    ASSERT_EQ(PLB_ERR_ARGUMENT, connect_with(&wanted));
    wanted.name = name;
    ASSERT_EQ(PLB_ERR_ARGUMENT, connect_with(&wanted));
    wanted.name = "good.test";
    too_long[0] = name;
    wanted.alpn = too_long;
    ASSERT_EQ(PLB_ERR_ARGUMENT, connect_with(&wanted));
    wanted.alpn = NULL;
    wanted.credentials = nobody;
    ASSERT_EQ(PLB_ERR_ARGUMENT, listen_with(&wanted)); /* no certificate to show */
    nobody = credentials_of(NULL, &server_cert);
    wanted.credentials = nobody;
    wanted.ask_client = true;
    ASSERT_EQ(PLB_ERR_ARGUMENT, listen_with(&wanted)); /* nobody who could vouch for clients */
    ASSERT_EQ(NULL, client.stream);
    ASSERT_EQ(NULL, listener.stream);
    PASS();
}

/* ==== CLIENTS' CERTIFICATES, PROTOCOLS ============================================================================ */

static plb_status server_status(void)
{
    char byte;
    plb_status status = read_all(&server, &byte, 1);
    note_reason(&server);
    return status;
}

TEST a_client_shows_its_certificate(void)
{
    plb_tls wanted = named("good.test"), own = named(NULL);
    plb_credentials *credentials = credentials_of(&authority, &client_cert);
    wanted.credentials = credentials;
    own.ask_client = true;
    ASSERT_EQ(PLB_OK, listen_with(&own));
    ASSERT_EQ(PLB_OK, shake(&wanted));
    ASSERT(echoes());
    PASS();
}

/* TLS 1.3 clients learn it after their own handshake. */
static plb_status client_status(const plb_tls *wanted)
{
    char byte;
    plb_status status = shake(wanted);
    if (status == PLB_OK) {
        status = read_all(&client, &byte, 1);
        note_reason(&client);
    }
    return status;
}

TEST a_client_without_certificate_is_turned_away(void)
{
    plb_tls wanted = named("good.test"), own = named(NULL);
    plb_credentials *credentials = credentials_of(&authority, NULL);
    wanted.credentials = credentials;
    own.ask_client = true;
    ASSERT_EQ(PLB_OK, listen_with(&own));
    ASSERT_EQ(PLB_ERR_TLS, client_status(&wanted));
    ASSERT(says("it wants a certificate of this side"));
    ASSERT_EQ(PLB_ERR_CERTIFICATE, server_status());
    ASSERT(says("the client sent no certificate"));
    PASS();
}

TEST a_client_that_nobody_vouches_for_is_turned_away(void)
{
    plb_tls wanted = named("good.test"), own = named(NULL);
    plb_credentials *credentials = credentials_of(&authority, &strange_client);
    wanted.credentials = credentials;
    own.ask_client = true;
    ASSERT_EQ(PLB_OK, listen_with(&own));
    ASSERT_EQ(PLB_ERR_TLS, client_status(&wanted));
    ASSERT(says("alert: unknown authority"));
    ASSERT_EQ(PLB_ERR_CERTIFICATE, server_status());
    ASSERT(says("nobody trusted vouches"));
    PASS();
}

TEST protocols_are_agreed_on(void)
{
    const char *offered[] = {"h2", "http/1.1", NULL}, *known[] = {"spdy/9", "http/1.1", NULL};
    plb_tls wanted = named("good.test"), own = named(NULL);
    wanted.alpn = offered;
    own.alpn = known;
    ASSERT_EQ(PLB_OK, listen_with(&own));
    ASSERT_EQ(PLB_OK, shake(&wanted));
    known[1] = offered[1] = NULL; /* the port has its own copies */
    ASSERT_STR_EQ("http/1.1", info_of(&client).alpn);
    ASSERT_STR_EQ("http/1.1", info_of(&server).alpn);
    hang_up();
    wanted.alpn = NULL;
    ASSERT_EQ(PLB_OK, shake(&wanted));
    ASSERT_EQ(NULL, info_of(&client).alpn);
    ASSERT_EQ(NULL, info_of(&server).alpn);
    PASS();
}

TEST without_a_common_protocol_there_is_no_session(void)
{
    const char *offered[] = {"h2", NULL}, *known[] = {"http/1.1", NULL};
    plb_tls wanted = named("good.test"), own = named(NULL);
    wanted.alpn = offered;
    own.alpn = known;
    ASSERT_EQ(PLB_OK, listen_with(&own));
    ASSERT_EQ(PLB_ERR_TLS, shake(&wanted));
    ASSERT(says("alert: no application protocol"));
    PASS();
}

/* ==== RESUMPTION ================================================================================================== */

/* Connects once and hangs up; was it resumed, on both sides alike? -1: no connection, or they do not agree. */
static int resumes(const plb_tls *wanted)
{
    int client_says, server_says;
    if (shake(wanted) != PLB_OK || !echoes())
        return -1;
    client_says = info_of(&client).tls_resumed;
    server_says = info_of(&server).tls_resumed;
    hang_up();
    return client_says == server_says ? client_says : -1;
}

TEST a_session_is_resumed(void)
{
    plb_tls wanted = named("good.test"), own = named(NULL);
    ASSERT_EQ(PLB_OK, listen_with(&own));
    ASSERT_EQ(0, resumes(&wanted));
    ASSERT_EQ(1, resumes(&wanted));
    ASSERT_EQ(1, resumes(&wanted));
    PASS();
}

/* Resuming skips the checks: what was not checked before must not pass then. */
TEST a_session_is_resumed_for_what_it_was_checked_for_only(void)
{
    plb_tls wanted = named("good.test"), own = named(NULL);
    plb_credentials *self = credentials_of(NULL, &self_cert), *mine = credentials_of(&authority, NULL);
    const char *protocols[] = {"h2", NULL};
    own.credentials = self;
    ASSERT_EQ(PLB_OK, listen_with(&own));
    wanted.any_chain = true;
    ASSERT_EQ(0, resumes(&wanted));
    wanted.any_name = true;
    ASSERT_EQ(0, resumes(&wanted));
    wanted.alternative_name = "x.test";
    ASSERT_EQ(0, resumes(&wanted));
    wanted.alpn = protocols;
    ASSERT_EQ(0, resumes(&wanted));
    wanted.credentials = mine;
    ASSERT_EQ(0, resumes(&wanted));
    ASSERT_EQ(1, resumes(&wanted));
    wanted = named("good.test");
    ASSERT_EQ(PLB_ERR_CERTIFICATE, shake(&wanted));
    hang_up();
    wanted.any_chain = true;
    ASSERT_EQ(1, resumes(&wanted));
    addr = sim_addr("10.0.0.8:443");
    drop(&listener, PLB_CLOSE_ABORT);
    ASSERT_EQ(PLB_OK, listen_with(&own));
    ASSERT_EQ(0, resumes(&wanted));
    PASS();
}

/* Else a ticket of a listener that asks no certificate would open one that does. */
TEST a_listener_takes_its_own_tickets_only(void)
{
    plb_tls wanted = named("good.test"), own = named(NULL);
    plb_credentials *mine = credentials_of(&authority, NULL);
    wanted.credentials = mine;
    ASSERT_EQ(PLB_OK, listen_with(&own));
    ASSERT_EQ(0, resumes(&wanted));
    drop(&listener, PLB_CLOSE_ABORT);
    own.ask_client = true;
    ASSERT_EQ(PLB_OK, listen_with(&own));
    ASSERT_EQ(PLB_ERR_TLS, client_status(&wanted));
    PASS();
}

TEST sessions_go_with_the_oldest_first(void)
{
    plb_mbedtls_desc desc = desc_of();
    plb_tls a = named("good.test"), b = named("a.wild.test"), c = named("b.wild.test"), own = named(NULL);
    plb_mbedtls_destroy(tls);
    desc.sessions = 2;
    open_port(&desc);
    ASSERT_EQ(PLB_OK, listen_with(&own));
    ASSERT_EQ(0, resumes(&a));
    ASSERT_EQ(0, resumes(&b));
    ASSERT_EQ(1, resumes(&a));
    ASSERT_EQ(0, resumes(&c));
    ASSERT_EQ(1, resumes(&a));
    ASSERT_EQ(0, resumes(&b));
    PASS();
}

TEST sessions_may_be_turned_off(void)
{
    plb_mbedtls_desc desc = desc_of();
    plb_tls wanted = named("good.test"), own = named(NULL);
    plb_mbedtls_destroy(tls);
    desc.no_sessions = true;
    open_port(&desc);
    ASSERT_EQ(PLB_OK, listen_with(&own));
    ASSERT_EQ(0, resumes(&wanted));
    ASSERT_EQ(0, resumes(&wanted));
    PASS();
}

/* ==== ENDS ======================================================================================================== */

static bool open_pair(void)
{
    plb_tls wanted = named("good.test"), own = named(NULL);
    return listen_with(&own) == PLB_OK && shake(&wanted) == PLB_OK && echoes();
}

TEST only_a_farewell_is_an_end(void)
{
    char byte;
    ASSERT(open_pair());
    ASSERT_EQ(PLB_OK, io->shutdown(io->self, client.stream));
    ASSERT_EQ(PLB_END, read_all(&server, &byte, 1));
    ASSERT_EQ(PLB_OK, write_all(&server, "x", 1)); /* the other side may go on */
    ASSERT_EQ(PLB_OK, read_all(&client, &byte, 1));
    drop(&server, PLB_CLOSE_GRACEFUL);
    ASSERT_EQ(PLB_END, read_all(&client, &byte, 1));
    PASS();
}

TEST a_bare_end_is_a_truncation(void)
{
    char byte;
    ASSERT(open_pair());
    sim_host(s, &addr)->fault = SIM_TRUNCATE;
    sim_host(s, &addr)->fault_bytes = 1; /* it has sent more than that */
    ASSERT_EQ(PLB_OK, write_all(&server, "x", 1));
    ASSERT_EQ(PLB_ERR_TRUNCATED, read_all(&client, &byte, 1));
    ASSERT_EQ(PLB_ERR_TRUNCATED, read_all(&client, &byte, 1));
    PASS();
}

TEST a_reset_stays_a_reset(void)
{
    char byte;
    ASSERT(open_pair());
    drop(&server, PLB_CLOSE_ABORT);
    ASSERT_EQ(PLB_ERR_RESET, read_all(&client, &byte, 1));
    PASS();
}

/* Changes one byte of what is on its way to the server. */
TEST a_byte_that_was_changed_breaks_the_session(void)
{
    char byte;
    sim_conn *far;
    ASSERT(open_pair());
    ASSERT_EQ(PLB_OK, write_all(&client, "precious", 8));
    far = s->conns[s->conn_count - 1]->line.size > 0 ? s->conns[s->conn_count - 1] : s->conns[s->conn_count - 2];
    ASSERT(far->line.size > 8);
    far->line.data[far->line.start + far->line.size - 1] ^= 1;
    ASSERT_EQ(PLB_ERR_TLS, read_all(&server, &byte, 1));
    note_reason(&server);
    ASSERT(reason[0] != '\0');
    ASSERT_EQ(PLB_ERR_TLS, read_all(&client, &byte, 1));
    note_reason(&client);
    ASSERT(says("alert: bad record MAC"));
    PASS();
}

static char bulk[400000];

/* Fills the way to the server; returns how many bytes were taken. */
static size_t fill(end *e)
{
    size_t total = 0, taken;
    while (write_some(e, bulk, 30000, &taken) == PLB_OK)
        total += taken;
    return total;
}

TEST a_graceful_close_sends_the_rest_as_room_comes(void)
{
    static char got[400000];
    size_t total;
    uint32_t before;
    ASSERT(open_pair());
    total = fill(&client);
    ASSERT(total > 0 && total < sizeof got);
    before = s->streams;
    drop(&client, PLB_CLOSE_GRACEFUL);
    sim_run_for(s, 100);
    ASSERT_EQ_FMT(before, s->streams, "%u"); /* below it is still there */
    ASSERT_EQ(PLB_OK, read_all(&server, got, total));
    ASSERT_EQ(PLB_END, read_all(&server, got, 1));
    sim_run_for(s, 100);
    ASSERT_EQ_FMT(before - 1, s->streams, "%u");
    PASS();
}

TEST a_shutdown_follows_what_was_written(void)
{
    static char got[400000];
    size_t total;
    ASSERT(open_pair());
    total = fill(&client);
    ASSERT_EQ(PLB_OK, io->shutdown(io->self, client.stream));
    ASSERT_EQ(PLB_OK, read_all(&server, got, total));
    ASSERT_EQ(PLB_END, read_all(&server, got, 1));
    ASSERT_EQ(PLB_OK, write_all(&server, "x", 1));
    ASSERT_EQ(PLB_OK, read_all(&client, got, 1));
    PASS();
}

TEST a_shutdown_may_come_before_the_handshake_is_over(void)
{
    plb_tls wanted = named("good.test"), own = named(NULL);
    char byte;
    ASSERT_EQ(PLB_OK, listen_with(&own));
    ASSERT_EQ(PLB_AGAIN, connect_with(&wanted));
    while (!accepted())
        sim_step(s, 10);
    ASSERT_EQ(PLB_OK, io->shutdown(io->self, server.stream));
    sim_run_for(s, 100);
    ASSERT_EQ(PLB_OK, client.connected);
    ASSERT_EQ(PLB_END, read_all(&client, &byte, 1));
    PASS();
}

TEST those_that_linger_are_limited(void)
{
    plb_mbedtls_desc desc = desc_of();
    end first, first_server;
    size_t got;
    plb_tls wanted = named("good.test"), own = named(NULL);
    plb_status status;
    plb_mbedtls_destroy(tls);
    desc.lingering = 1;
    open_port(&desc);
    ASSERT_EQ(PLB_OK, listen_with(&own));
    ASSERT_EQ(PLB_OK, shake(&wanted));
    fill(&client);
    first = client;
    first_server = server;
    client.stream = server.stream = NULL;
    ASSERT_EQ(PLB_OK, shake(&wanted));
    fill(&client);
    drop(&first, PLB_CLOSE_GRACEFUL);
    ASSERT_EQ_FMT(5u, s->streams, "%u");
    drop(&client, PLB_CLOSE_GRACEFUL);
    ASSERT_EQ_FMT(4u, s->streams, "%u");
    sim_run_for(s, 20);
    do
        status = io->read(io->self, first_server.stream, bulk, sizeof bulk, &got);
    while (status == PLB_OK);
    io->close(io->self, first_server.stream, PLB_CLOSE_ABORT);
    ASSERT_EQ(PLB_ERR_RESET, status);
    PASS();
}

/* ==== FAULTS ====================================================================================================== */

TEST what_the_port_below_says_is_passed_on(void)
{
    plb_tls wanted = named("good.test");
    ASSERT_EQ(PLB_ERR_REFUSED, shake(&wanted));
    drop(&client, PLB_CLOSE_ABORT);
    sim_host(s, &addr)->fault = SIM_UNREACHABLE;
    ASSERT_EQ(PLB_ERR_UNREACHABLE, shake(&wanted));
    PASS();
}

TEST a_silent_server_leaves_it_to_the_deadline(sim_fault fault)
{
    plb_tls wanted = named("good.test");
    sim_host(s, &addr)->fault = fault;
    ASSERT_EQ(PLB_AGAIN, shake(&wanted));
    ASSERT_EQ(0u, client.connects);
    PASS();
}

/* The server's side is cut after each number of bytes: the client says so, once. */
TEST a_handshake_may_break_after_any_byte(sim_fault fault)
{
    plb_tls wanted = named("good.test"), own = named(NULL);
    uint32_t cut;
    plb_status status = PLB_AGAIN;
    plb_mbedtls_desc desc = desc_of();
    plb_mbedtls_destroy(tls);
    desc.no_sessions = true;
    open_port(&desc);
    ASSERT_EQ(PLB_OK, listen_with(&own));
    for (cut = 1; cut < 4000 && status != PLB_OK; cut += cut < 100 ? 1 : 13) {
        sim_host(s, &addr)->fault = fault;
        sim_host(s, &addr)->fault_bytes = cut;
        status = shake(&wanted);
        if (status != PLB_OK) {
            ASSERT_EQ_FMT(fault == SIM_RESET ? PLB_ERR_RESET : PLB_ERR_TLS, status, "%d");
            ASSERT_EQ(1u, client.connects);
            ASSERT(fault == SIM_RESET || says("during the handshake"));
        }
        sim_host(s, &addr)->fault = SIM_FINE;
        hang_up();
    }
    ASSERT(cut > 300 && cut < 4000);
    PASS();
}

static const char *garbage;
static size_t garbage_size;

static size_t send_garbage(void *user, sim_conn *conn, const char *bytes, size_t count)
{
    (void)user;
    (void)bytes;
    if (conn->status == PLB_OK && garbage != NULL)
        sim_send(conn, garbage, garbage_size);
    garbage = NULL;
    return count;
}

TEST an_answer_that_is_not_tls_is_seen_as_that(void)
{
    plb_tls wanted = named("good.test");
    sim_serve(s, &addr, send_garbage, NULL);
    garbage = "HTTP/1.1 400 Bad Request\r\n\r\n";
    garbage_size = strlen(garbage);
    ASSERT_EQ(PLB_ERR_TLS, shake(&wanted));
    ASSERT(says("not TLS"));
    PASS();
}

/* Alerts, lengths and kinds of record that make no sense; bytes at random. */
TEST garbage_ends_the_handshake_of_either_side(void)
{
    static const char *const starts[] = {
        "\x16\x03\x03\x00\x00",         "\x16\x03\x03\xff\xff",  "\x16\x03\x03\x00\x04\x02\xff\xff\xff",
        "\x15\x03\x03\x00\x02\x02\x28", "\x17\x03\x03\x00\x01x", "\x14\x03\x03\x00\x01\x01"};
    static const size_t sizes[] = {5, 5, 9, 7, 6, 6};
    plb_tls wanted = named("good.test"), own = named(NULL);
    char bytes[600], byte;
    size_t i, got;
    for (i = 0; i < 60; i++) {
        sim__fill(s, bytes, sizeof bytes);
        if (i % 2 == 0)
            memcpy(bytes, starts[i / 2 % 6], sizes[i / 2 % 6]);
        sim_serve(s, &addr, send_garbage, NULL);
        garbage = bytes;
        garbage_size = sizeof bytes;
        ASSERT_EQ(PLB_ERR_TLS, shake(&wanted));
        hang_up();
        sim_unserve(s, &addr);
        ASSERT_EQ(PLB_OK, listen_with(&own));
        sim_send(sim_dial(s, &addr, NULL, NULL), bytes, sizeof bytes);
        while (!accepted())
            sim_step(s, 10);
        sim_run_for(s, 20);
        ASSERT_EQ(PLB_ERR_TLS, io->read(io->self, server.stream, &byte, 1, &got));
        hang_up();
        drop(&listener, PLB_CLOSE_ABORT);
    }
    PASS();
}

/* A port, a listener, a connection, bytes both ways, a second connection. False: something failed. */
static bool live(const plb_mbedtls_desc *desc)
{
    plb_tls wanted = named("good.test"), own = named(NULL);
    bool fine;
    if (plb_mbedtls_create(desc, &tls) != PLB_OK)
        return false;
    io = plb_mbedtls_io(tls);
    fine = listen_with(&own) == PLB_OK && shake(&wanted) == PLB_OK && echoes();
    hang_up();
    fine = fine && shake(&wanted) == PLB_OK && echoes();
    drop_all();
    return fine;
}

static void die(void)
{
    plb_mbedtls_destroy(tls);
    tls = NULL;
    sim_run_for(s, 10);
}

/* sim_step gives up when nothing is to happen, so that a handshake that waits for nobody ends, too. */
TEST any_allocation_of_ours_may_fail(void)
{
    plb_mbedtls_desc desc = desc_of();
    uint64_t n;
    bool fine = false;
    die();
    for (n = 1; n < 100 && !fine; n++) {
        memory.calls = 0;
        memory.fail_at = n;
        fine = live(&desc) && memory.calls < n;
        memory.fail_at = 0;
        die();
        ASSERT_EQ(0u, sim_alloc_leaks(&memory));
        ASSERT_EQ_FMT(0u, s->streams, "%u");
    }
    ASSERT(fine && n > 8);
    PASS();
}

TEST any_allocation_of_mbedtls_may_fail(void)
{
    plb_mbedtls_desc desc = desc_of();
    unsigned long n, total;
    unsigned failures = 0;
    die();
    calloc_calls = 0;
    ASSERT(live(&desc));
    total = calloc_calls;
    die();
    for (n = 1; n < total; n += n < 150 ? 1 : 1 + total / 150) {
        calloc_calls = 0;
        calloc_fail_at = n;
        failures += !live(&desc);
        calloc_fail_at = 0;
        die();
        ASSERT_EQ(0u, sim_alloc_leaks(&memory));
        ASSERT_EQ_FMT(0u, s->streams, "%u");
    }
    ASSERT(failures > 50);
    PASS();
}

TEST any_call_of_the_port_below_may_fail(plb_status how)
{
    plb_mbedtls_desc desc = desc_of();
    uint64_t n;
    bool fine = false;
    die();
    for (n = 1; n < 500 && !fine; n++) {
        s->io_calls = 0;
        s->fail_io_at = n;
        s->fail_io_status = how;
        fine = live(&desc) && s->io_calls < n;
        s->fail_io_at = 0;
        die();
        ASSERT_EQ(0u, sim_alloc_leaks(&memory));
        ASSERT_EQ_FMT(0u, s->streams, "%u");
    }
    ASSERT(fine && n > 20);
    PASS();
}

/* Memory that comes short on the server's side costs connections, not the listener. */
TEST a_listener_survives_a_shortage(void)
{
    plb_tls wanted = named("good.test"), own = named(NULL);
    ASSERT_EQ(PLB_OK, listen_with(&own));
    ASSERT_EQ(PLB_AGAIN, connect_with(&wanted));
    sim_run_for(s, 10);
    memory.max_bytes = memory.live_bytes;
    ASSERT_FALSE(accepted());
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_ERR_RESET, client.connected);
    drop(&client, PLB_CLOSE_ABORT);
    memory.max_bytes = 0;
    ASSERT_EQ(PLB_OK, shake(&wanted));
    ASSERT(echoes());
    PASS();
}

/* ==== IDENTITIES ================================================================================================== */

TEST what_is_wrong_with_an_identity_is_named(void)
{
    plb_mbedtls_identity identity = identity_of(NULL, NULL);
    plb_credentials *credentials;
    char error[200], small[9];
    identity.error = error;
    identity.error_capacity = sizeof error;
    identity.ca_file = "/nowhere/ca.pem";
    ASSERT_EQ(PLB_ERR_ARGUMENT, plb_mbedtls_credentials(tls, &identity, &credentials));
    ASSERT(strncmp(error, "/nowhere/ca.pem: ", 17) == 0 && strlen(error) > 17);
    ASSERT_EQ(NULL, credentials);
    identity.ca_file = "/dev/null";
    ASSERT_EQ(PLB_ERR_ARGUMENT, plb_mbedtls_credentials(tls, &identity, &credentials));
    identity.ca_file = NULL;
    identity.cert_pem = "nonsense";
    ASSERT_EQ(PLB_ERR_ARGUMENT, plb_mbedtls_credentials(tls, &identity, &credentials));
    ASSERT(strstr(error, "come together") != NULL);
    identity.key_pem = server_cert.key;
    ASSERT_EQ(PLB_ERR_ARGUMENT, plb_mbedtls_credentials(tls, &identity, &credentials));
    ASSERT(strncmp(error, "the certificate's text: ", 24) == 0);
    identity.cert_pem = client_cert.pem;
    ASSERT_EQ(PLB_ERR_ARGUMENT, plb_mbedtls_credentials(tls, &identity, &credentials));
    ASSERT_STR_EQ("the key's text: the key is not that of the certificate", error);
    identity.error = small;
    identity.error_capacity = sizeof small;
    ASSERT_EQ(PLB_ERR_ARGUMENT, plb_mbedtls_credentials(tls, &identity, &credentials));
    ASSERT_STR_EQ("the key'", small);
    identity.key_pem = client_cert.key;
    ASSERT_EQ(PLB_OK, plb_mbedtls_credentials(tls, &identity, &credentials));
    ASSERT_STR_EQ("", small);
    plb_mbedtls_credentials_free(credentials);
    PASS();
}

static bool put_file(char *path, const char *text)
{
    int fd = mkstemp(path);
    FILE *file = fd >= 0 ? fdopen(fd, "w") : NULL;
    return file != NULL && fputs(text, file) >= 0 && fclose(file) == 0;
}

TEST identities_come_from_files_too(void)
{
    char ca[] = "/tmp/plb_tls_XXXXXX", cert[] = "/tmp/plb_tls_XXXXXX", key[] = "/tmp/plb_tls_XXXXXX";
    plb_mbedtls_identity identity = identity_of(NULL, NULL);
    plb_tls wanted = named("good.test"), own = named(NULL);
    plb_credentials *credentials;
    plb_status status;
    ASSERT(put_file(ca, authority.pem) && put_file(cert, server_cert.pem) && put_file(key, server_cert.key));
    identity.ca_file = ca;
    identity.cert_file = cert;
    identity.key_file = key;
    status = plb_mbedtls_credentials(tls, &identity, &credentials);
    remove(ca), remove(cert), remove(key);
    ASSERT_EQ(PLB_OK, status);
    own.credentials = wanted.credentials = credentials;
    ASSERT_EQ(PLB_OK, listen_with(&own));
    ASSERT_EQ(PLB_AGAIN, connect_with(&wanted));
    plb_mbedtls_credentials_free(credentials); /* those who use them have them still */
    while (!accepted())
        sim_step(s, 10);
    sim_run_for(s, 50);
    ASSERT(echoes());
    PASS();
}

TEST without_authorities_of_its_own_a_port_takes_the_systems(void)
{
    plb_mbedtls_desc desc = desc_of();
    plb_tls wanted = named("good.test"), own = named(NULL);
    plb_mbedtls_destroy(tls);
    desc.identity.no_ca = false;
    desc.identity.ca_pem = NULL;
    open_port(&desc);
    ASSERT_EQ(PLB_OK, listen_with(&own));
    ASSERT_EQ(PLB_ERR_CERTIFICATE, shake(&wanted)); /* none of which has heard of ours */
    PASS();
}

/* The figure of the manual. */
TEST a_stream_costs_what_the_manual_says(void)
{
    size_t before, ours;
    plb_tls wanted = named("good.test"), own = named(NULL);
    ASSERT_EQ(PLB_OK, listen_with(&own));
    ours = memory.live_bytes;
    before = calloc_bytes;
    ASSERT_EQ(PLB_AGAIN, connect_with(&wanted));
    ASSERT(memory.live_bytes - ours < 2560);
    ASSERT(calloc_bytes - before < 40000);
    PASS();
}

/* ==== SUITES ====================================================================================================== */

SUITE(sessions)
{
    SET_SETUP(set_up, NULL);
    SET_TEARDOWN(tear_down, NULL);
    RUN_TEST(a_session_carries_bytes_both_ways);
    RUN_TEST(nothing_readable_is_on_the_wire);
    RUN_TEST(peers_without_tls_pass_through);
    RUN_TEST1(large_and_gathered_writes_arrive_whole, 0);
    RUN_TEST1(large_and_gathered_writes_arrive_whole, 1);
    RUN_TEST1(large_and_gathered_writes_arrive_whole, 777);
    RUN_TEST(an_accepted_stream_shakes_hands_unasked_and_tells_of_data_once);
    RUN_TEST(a_session_is_resumed);
    RUN_TEST(a_session_is_resumed_for_what_it_was_checked_for_only);
    RUN_TEST(a_listener_takes_its_own_tickets_only);
    RUN_TEST(sessions_go_with_the_oldest_first);
    RUN_TEST(sessions_may_be_turned_off);
    RUN_TEST(a_stream_costs_what_the_manual_says);
}

SUITE(certificates)
{
    size_t i;
    SET_SETUP(set_up, NULL);
    SET_TEARDOWN(tear_down, NULL);
    for (i = 0; i < sizeof trials / sizeof trials[0]; i++)
        RUN_TEST1(a_certificate_is_taken_for_what_it_is, &trials[i]);
    RUN_TEST(an_ipv6_address_in_a_certificate_is_matched);
    RUN_TEST(nobody_is_trusted_without_authorities);
    RUN_TESTp(the_server_hears_the_name, "good.test", true);
    RUN_TESTp(the_server_hears_the_name, "10.0.0.7", false);
    RUN_TEST(what_makes_no_sense_is_refused_at_once);
    RUN_TEST(a_client_shows_its_certificate);
    RUN_TEST(a_client_without_certificate_is_turned_away);
    RUN_TEST(a_client_that_nobody_vouches_for_is_turned_away);
    RUN_TEST(protocols_are_agreed_on);
    RUN_TEST(without_a_common_protocol_there_is_no_session);
    RUN_TEST(what_is_wrong_with_an_identity_is_named);
    RUN_TEST(identities_come_from_files_too);
    RUN_TEST(without_authorities_of_its_own_a_port_takes_the_systems);
}

SUITE(ends_and_faults)
{
    SET_SETUP(set_up, NULL);
    SET_TEARDOWN(tear_down, NULL);
    RUN_TEST(only_a_farewell_is_an_end);
    RUN_TEST(a_bare_end_is_a_truncation);
    RUN_TEST(a_reset_stays_a_reset);
    RUN_TEST(a_byte_that_was_changed_breaks_the_session);
    RUN_TEST(a_graceful_close_sends_the_rest_as_room_comes);
    RUN_TEST(a_shutdown_follows_what_was_written);
    RUN_TEST(a_shutdown_may_come_before_the_handshake_is_over);
    RUN_TEST(those_that_linger_are_limited);
    RUN_TEST(what_the_port_below_says_is_passed_on);
    RUN_TEST1(a_silent_server_leaves_it_to_the_deadline, SIM_HANG);
    RUN_TEST1(a_silent_server_leaves_it_to_the_deadline, SIM_SILENT);
    RUN_TEST1(a_handshake_may_break_after_any_byte, SIM_RESET);
    RUN_TEST1(a_handshake_may_break_after_any_byte, SIM_TRUNCATE);
    RUN_TEST(an_answer_that_is_not_tls_is_seen_as_that);
    RUN_TEST(garbage_ends_the_handshake_of_either_side);
    RUN_TEST(any_allocation_of_ours_may_fail);
    RUN_TEST(any_allocation_of_mbedtls_may_fail);
    RUN_TEST1(any_call_of_the_port_below_may_fail, PLB_ERR_RESET);
    RUN_TEST1(any_call_of_the_port_below_may_fail, PLB_ERR_IO);
    RUN_TEST(a_listener_survives_a_shortage);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    certify_all();
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(sessions);
    RUN_SUITE(certificates);
    RUN_SUITE(ends_and_faults);
    GREATEST_MAIN_END();
}
