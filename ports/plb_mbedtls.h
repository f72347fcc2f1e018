/* plb_mbedtls.h - a plb_io that adds TLS to another one, by mbedTLS. MIT license, see LICENSE.

   WHAT IT IS
   TLS 1.2 (and 1.3 where mbedTLS has it), client and server, over any plb_io: sockets, lwIP, a simulator. It compiles
   with mbedTLS 2.28 and 3.x. Peers and listeners without a plb_tls pass through unchanged, so that one table serves
   both. Chain and host name are checked unless that is turned off, each by its own name.

   QUICK START
       #define PINGORA_LB_IMPLEMENTATION
       #include "pingora_lb.h"
       #define PLB_MBEDTLS_IMPLEMENTATION
       #include "plb_mbedtls.h"                     // link with -lmbedtls -lmbedx509 -lmbedcrypto

       plb_mbedtls_desc desc = {.io = plb_posix_port(px).io};
       plb_mbedtls *tls;
       plb_mbedtls_create(&desc, &tls);
       port = plb_posix_port(px);
       port.io = plb_mbedtls_io(tls);               // lend this one to balancers, proxies, or call it yourself:
       plb_tls session = {.name = "example.org"};
       plb_peer peer = {.addr = addr, .tls = &session};
       port.io->connect(port.io->self, &peer, handler, &stream);
       ...
       plb_mbedtls_destroy(tls);
       plb_posix_destroy(px);

   A server gives desc.credentials a certificate and its key (cert_file and key_file, say), and plb_listen_desc.tls.

   WHEN THINGS HAPPEN
   PLB_EVENT_CONNECT comes after the whole handshake and all checks. What is accepted shakes hands by itself from then
   on; until that is over read and write return PLB_AGAIN, and if it fails they tell why. There are no timers: whoever
   connects or accepts closes what takes too long. Work is done in the calls and in the callbacks of the port below;
   one handshake costs a fraction of a millisecond to some milliseconds of computing, all of it in the step.
   shutdown and a graceful close send what write took, then close_notify; where the port below has no room for that at
   once, it is sent as room comes, after close too: see plb_mbedtls_desc.lingering. An abort sends nothing.

   HOW ERRORS LOOK
   PLB_ERR_CERTIFICATE   the peer's certificate does not pass (or a client sent none, where one was asked for)
   PLB_ERR_TLS           the handshake, or the session, failed in another way
   PLB_ERR_TRUNCATED     the stream below ended without close_notify, after the handshake. PLB_END is close_notify only
   PLB_ERR_MEMORY        mbedTLS found no memory
   and what the port below returned, unchanged. plb_stream_info.tls_reason says it in words: "the certificate has
   expired", "the peer sent the alert: handshake failure; it wants a certificate of this side", ...

   CHECKS
   The certificate must be for plb_tls.name or alternative_name: one of its subjectAltNames, as RFC 9525 asks; the
   common name counts for nothing. "*.example.org" stands for one label. A name that is an IP address, "10.0.0.1" or
   "::1", is looked for among the addresses of the certificate. Revocation is not looked at. Validity in time is checked
   if mbedTLS was built with a clock.

   SESSIONS
   A client resumes sessions: of the same address, names, protocols, checks and credentials, so that none is taken for
   more than was checked when it began. A server hands out tickets (RFC 5077); a listener takes back its own only.
   Renegotiation is refused.

   MEMORY
   Streams, names and the cache come from the descriptor's allocator: 80 bytes a stream, 1.1 KiB more with TLS, 1 KiB
   and the names more for a listener or a connection that was begun; 320 bytes a place in the cache. mbedTLS allocates
   for itself, with calloc unless it was built otherwise. With Debian's 2.28 on a 64-bit machine a TLS stream costs 37
   KiB in all, most of it the record buffers (33 KiB; MBEDTLS_SSL_IN_CONTENT_LEN and MBEDTLS_SSL_OUT_CONTENT_LEN make
   them smaller), and 5 KiB more while it shakes hands; a session in the cache 1 KiB and more, by the size of the peer's
   certificate; the port 39 KiB, most of it mbedTLS's entropy pool; the system's authorities 460 KiB (no_ca leaves them
   out).

   THREADS
   A port, its credentials and its streams belong to the thread that steps the port below. Several ports may live in
   several threads. After a fork the child must not use its parent's port: both would draw the same random numbers.

   DEFINES
   PLB_MBEDTLS_IMPLEMENTATION   In one C or C++ file: emits the code.
   PLB_STATIC                   See pingora_lb.h. */

#ifndef PLB_MBEDTLS_H
#define PLB_MBEDTLS_H

#ifndef PINGORA_LB_H
#include "../pingora_lb.h"
#endif

typedef struct plb_mbedtls plb_mbedtls;

/* Whom to trust, and who one is. Zero: the system's authorities, no certificate. Files and texts are read during the
   call only; a text may be of several certificates. */
typedef struct plb_mbedtls_identity {
    const char *ca_file, *ca_pem; /* authorities, instead of the system's; both may be given */
    bool no_ca;                   /* no authorities but these: without them nobody is trusted. Saves the memory */
    const char *cert_file;        /* the certificate, then those that lead to the authority; PEM (or DER, if one) */
    const char *cert_pem;         /* or the text itself */
    const char *key_file, *key_pem, *key_password; /* its key; the password may be NULL */
    char *error;           /* where to write what is wrong, in words and with the file's name; or NULL */
    size_t error_capacity; /* bytes of it */
} plb_mbedtls_identity;

typedef struct plb_mbedtls_desc {
    const plb_io *io;              /* the port below; it must outlive this one */
    plb_allocator allocator;       /* zero: malloc and free */
    plb_mbedtls_identity identity; /* the credentials of those that bring none of their own */
    uint32_t sessions;             /* that a client may resume, at most; 0: 32 */
    bool no_sessions;              /* none, nor tickets of a server */
    uint32_t lingering;            /* streams that are closed but still have to send something, at most: the oldest is
                                      aborted when there is one more; 0: 64 */
} plb_mbedtls_desc;

/* Makes a port. `desc` is read during the call only. PLB_OK, or PLB_ERR_MEMORY, PLB_ERR_ARGUMENT (no io, or the
   identity makes no sense: see its error), PLB_ERR_IO (mbedTLS has no source of random numbers). Any thread. */
PLB_API plb_status plb_mbedtls_create(const plb_mbedtls_desc *desc, plb_mbedtls **out);

/* Closes the streams that are still open. Destroy what the port was lent to, and free credentials, before. NULL is
   ignored. Not from a callback. The port's thread. */
PLB_API void plb_mbedtls_destroy(plb_mbedtls *tls);

/* The table to lend; it belongs to the port and lives as long as it does. Any thread. */
PLB_API const plb_io *plb_mbedtls_io(const plb_mbedtls *tls);

/* Makes credentials for plb_tls, to be used with this port only. PLB_OK, or PLB_ERR_MEMORY, PLB_ERR_ARGUMENT: a file
   that cannot be read, a certificate or key that is none, or that do not belong together; identity->error names it. The
   port's thread. */
PLB_API plb_status plb_mbedtls_credentials(plb_mbedtls *tls, const plb_mbedtls_identity *identity,
                                           plb_credentials **out);

/* Gives them back; the memory goes with the last stream and listener that uses them. NULL is ignored. The port's
   thread, before the port is destroyed. */
PLB_API void plb_mbedtls_credentials_free(plb_credentials *credentials);

#endif /* PLB_MBEDTLS_H */

/* ================================================================================================================== */
/* ==== IMPLEMENTATION ============================================================================================== */
/* ================================================================================================================== */

#ifdef PLB_MBEDTLS_IMPLEMENTATION
#ifndef PLB__MBEDTLS_IMPLEMENTED
#define PLB__MBEDTLS_IMPLEMENTED

#include <string.h>

#include <mbedtls/ctr_drbg.h>
#include <mbedtls/entropy.h>
#include <mbedtls/error.h>
#include <mbedtls/pk.h>
#include <mbedtls/ssl.h>
#include <mbedtls/version.h>
#include <mbedtls/x509_crt.h>

#if defined(MBEDTLS_SSL_TICKET_C) && defined(MBEDTLS_SSL_SESSION_TICKETS)
#include <mbedtls/ssl_ticket.h>
#define PLB__MT_TICKETS
#endif

#if !defined(MBEDTLS_SSL_CLI_C) || !defined(MBEDTLS_SSL_SRV_C) || !defined(MBEDTLS_SSL_ALPN) ||                        \
    !defined(MBEDTLS_SSL_SERVER_NAME_INDICATION)
#error "plb_mbedtls.h: mbedTLS is needed with client, server, ALPN and server names"
#endif

/* What 3.0 renamed, hid or gave more arguments. */
#if MBEDTLS_VERSION_MAJOR == 2
#define PLB__MT_HIDDEN(member)  member
#define PLB__MT_RANDOM(tls)     /* parsing a key needs no random numbers yet */
#define PLB__MT_BAD_CERTIFICATE MBEDTLS_ERR_SSL_BAD_HS_CERTIFICATE
#define PLB__MT_BAD_VERSION     MBEDTLS_ERR_SSL_BAD_HS_PROTOCOL_VERSION
#elif MBEDTLS_VERSION_MAJOR == 3
#define PLB__MT_HIDDEN(member)  MBEDTLS_PRIVATE(member)
#define PLB__MT_RANDOM(tls)     , mbedtls_ctr_drbg_random, &(tls)->random
#define PLB__MT_BAD_CERTIFICATE MBEDTLS_ERR_SSL_BAD_CERTIFICATE
#define PLB__MT_BAD_VERSION     MBEDTLS_ERR_SSL_BAD_PROTOCOL_VERSION
#ifdef MBEDTLS_PSA_CRYPTO_C
#include <psa/crypto.h> /* TLS 1.3 computes with it */
#define PLB__MT_PSA
#endif
#else
#error "plb_mbedtls.h: mbedTLS 2.28 or 3.x is needed"
#endif

#define PLB__MT_SESSIONS    32
#define PLB__MT_LINGERING   64
#define PLB__MT_GATHER      1024  /* chunks below this share a record */
#define PLB__MT_TICKETS_MAX 16    /* that one call takes from a peer */
#define PLB__MT_TICKET_S    86400 /* how long a ticket is good */
#define PLB__MT_REASON_MAX  192

/* ==== TYPES ======================================================================================================= */

struct plb_credentials {
    plb_mbedtls *tls;
    uint32_t owners; /* the caller, and the profiles that use it */
    bool has_certificate, has_authorities;
    mbedtls_x509_crt authorities, certificate;
    mbedtls_pk_context key;
};

/* A name that a certificate may be for. */
typedef struct plb__mt_name {
    const char *text; /* NULL: none */
    size_t size;
    plb_addr ip; /* PLB_FAMILY_NONE: it is no IP address */
} plb__mt_name;

/* What a plb_tls asks for, kept: one for each connection that was begun, and one for all that a listener accepts. The
   pointers to the protocols and then all texts stand behind it. */
typedef struct plb__mt_profile {
    plb_mbedtls *tls;
    uint32_t owners;
    plb_credentials *credentials;
    bool server, any_chain, any_name;
    bool ticket_taken; /* by the handshake that is being worked at */
    plb__mt_name name, alternative;
    const char **alpn;      /* NULL: none */
    const char *text;       /* names and protocols, each with its NUL */
    size_t text_size, size; /* size: of all */
    mbedtls_ssl_config config;
#ifdef PLB__MT_TICKETS
    mbedtls_ssl_ticket_context tickets;
#endif
} plb__mt_profile;

/* A session to go on with, and all that it was checked for. */
typedef struct plb__mt_saved {
    bool used, any_chain, any_name;
    plb_credentials *credentials;
    plb_addr addr;
    char *text;
    size_t text_size;
    uint64_t saved_at; /* counts, for the oldest to go first */
    mbedtls_ssl_session session;
} plb__mt_saved;

/* Directions of a stream that a callback was promised for. */
#define PLB__MT_READ  1u
#define PLB__MT_WRITE 2u

/* What only a stream with TLS needs. */
typedef struct plb__mt_session {
    mbedtls_ssl_context ssl;
    plb__mt_profile *profile;
    plb_addr addr;                 /* of the server, for the cache */
    plb_status below;              /* what the port below said at last; PLB_OK if nothing bad */
    plb_status broken;             /* no further use; PLB_OK: it is not */
    uint8_t armed;                 /* directions */
    bool connecting;               /* PLB_EVENT_CONNECT is armed */
    bool ready;                    /* hands were shaken */
    bool ended;                    /* close_notify came */
    bool offered, vouched;         /* a session to resume; the peer's certificate was looked at */
    bool resumed;                  /* this session continues an earlier one */
    bool farewell, farewell_begun; /* close_notify is to be sent; mbedTLS was told so */
    const unsigned char *record;   /* what mbedTLS has not got rid of yet, from its beginning */
    size_t record_size, unsent;    /* the bytes of the caller's that are in it; those of the record that are left */
    char reason[PLB__MT_REASON_MAX];
} plb__mt_session;

/* The plb_stream of this port. */
typedef struct plb__mt_stream {
    plb_mbedtls *tls;
    struct plb__mt_stream *prev, *next;
    plb_stream *below;
    plb_handler handler;
    plb__mt_session *session; /* NULL: plain bytes, or a listener */
    plb__mt_profile *profile; /* a listener's */
    bool lingers;             /* its owner has closed it */
    bool *gone;               /* of the function that makes its callbacks: to be told when it goes */
} plb__mt_stream;

struct plb_mbedtls {
    plb_allocator allocator;
    const plb_io *below;
    plb_io io;
    plb_credentials *credentials;
    plb__mt_stream *streams;   /* those that are open */
    plb__mt_stream *lingering; /* those that are not, the newest first */
    uint32_t lingering_count, lingering_max;
    plb__mt_saved *saved;
    uint32_t saved_max;
    uint64_t saved_clock;
    bool no_sessions;
    mbedtls_entropy_context entropy;
    mbedtls_ctr_drbg_context random;
};

/* ==== SMALL TOOLS ================================================================================================= */

static void *plb__mt_new(const plb_allocator *allocator, size_t size)
{
    void *ptr = allocator->alloc(allocator->user, size);
    return ptr != NULL ? memset(ptr, 0, size) : NULL;
}

static void plb__mt_delete(const plb_allocator *allocator, void *ptr, size_t size)
{
    if (ptr != NULL)
        allocator->dealloc(allocator->user, ptr, size);
}

/* Appends to a text, as much as there is room for. */
static void plb__mt_say(char *text, size_t capacity, const char *more)
{
    size_t used, size = strlen(more);
    if (text == NULL || capacity == 0)
        return;
    used = strlen(text);
    if (size > capacity - 1 - used)
        size = capacity - 1 - used;
    memcpy(text + used, more, size);
    text[used + size] = '\0';
}

/* Errors of mbedTLS are a high-level one, a low-level one, or the sum of both. Not all of those named here have a
   header that is there with every configuration. */
static bool plb__mt_is_memory(int error)
{
    static const int high[] = {0x1180 /* PEM */, 0x2880 /* X509 */, 0x3400 /* DHM */,    0x3F80 /* PK */,
                               0x4D80 /* ECP */, 0x5180 /* MD */,   0x6180 /* CIPHER */, 0x7F00 /* SSL */};
    int top = error < 0 ? -error & ~0x7F : 0, low = error < 0 ? -error & 0x7F : 0;
    size_t i;
    for (i = 0; i < sizeof high / sizeof high[0]; i++) {
        if (top == high[i])
            return true;
    }
    return low == 0x10 /* MPI */ || low == 0x6A /* ASN1 */;
}

static void plb__mt_say_error(char *text, size_t capacity, int error)
{
#ifdef MBEDTLS_ERROR_C
    char words[128];
    mbedtls_strerror(error, words, sizeof words);
    plb__mt_say(text, capacity, words);
#else
    char digits[] = "mbedTLS error -0x0000";
    int i;
    for (i = 0; i < 4; i++)
        digits[20 - i] = "0123456789ABCDEF"[(-error >> (4 * i)) & 15];
    plb__mt_say(text, capacity, digits);
#endif
}

/* ==== NAMES ======================================================================================================= */

/* Reads "10.0.0.1" or "::1"; there is no port in a name, so one is lent. */
static void plb__mt_parse_ip(const char *text, size_t size, plb_addr *out)
{
    char with_port[64] = "[";
    memset(out, 0, sizeof *out);
    if (size > sizeof with_port - 5)
        return;
    memcpy(with_port + 1, text, size);
    memcpy(with_port + 1 + size, "]:1", 4);
    if (plb_addr_parse(out, with_port, PLB_ZSTRING) == PLB_OK)
        return;
    memcpy(with_port + 1 + size, ":1", 3);
    if (plb_addr_parse(out, with_port + 1, PLB_ZSTRING) != PLB_OK || out->family == PLB_FAMILY_UNIX)
        memset(out, 0, sizeof *out);
}

static unsigned plb__mt_lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (unsigned)c + 32u : (unsigned)c;
}

static bool plb__mt_same(const char *a, const char *b, size_t size)
{
    size_t i;
    for (i = 0; i < size; i++) {
        if (plb__mt_lower(a[i]) != plb__mt_lower(b[i]))
            return false;
    }
    return true;
}

/* RFC 9525 section 6.3: letters match in either case; a wildcard is the whole leftmost label and stands for one. What
   is left of the pattern then must have a dot of its own: nobody is certified for "*.com". */
static bool plb__mt_matches_dns(const plb__mt_name *name, const char *pattern, size_t size)
{
    const char *dot;
    if (size == name->size && plb__mt_same(name->text, pattern, size))
        return true;
    dot = (const char *)memchr(name->text, '.', name->size);
    if (size < 3 || pattern[0] != '*' || pattern[1] != '.' || memchr(pattern + 2, '.', size - 2) == NULL ||
        dot == NULL || dot == name->text)
        return false;
    return name->size - (size_t)(dot - name->text) == size - 1 && plb__mt_same(dot, pattern + 1, size - 1);
}

static bool plb__mt_matches_ip(const plb_addr *ip, const unsigned char *bytes, size_t size)
{
    if (ip->family == PLB_FAMILY_IPV4)
        return size == 4 && memcmp(ip->u.v4, bytes, 4) == 0;
    return size == 16 && memcmp(ip->u.v6, bytes, 16) == 0;
}

/* The tags of RFC 5280 section 4.2.1.6: 2 is a DNS name, 7 an address. */
static bool plb__mt_is_for(const mbedtls_x509_crt *certificate, const plb__mt_name *name)
{
    const mbedtls_x509_sequence *at;
    bool ip = name->ip.family != PLB_FAMILY_NONE;
    if (name->text == NULL)
        return false;
    for (at = &certificate->subject_alt_names; at != NULL; at = at->next) {
        int kind = at->buf.tag & MBEDTLS_ASN1_TAG_VALUE_MASK;
        if (at->buf.p == NULL)
            continue;
        if (ip && kind == 7 && plb__mt_matches_ip(&name->ip, at->buf.p, at->buf.len))
            return true;
        if (!ip && kind == 2 && plb__mt_matches_dns(name, (const char *)at->buf.p, at->buf.len))
            return true;
    }
    return false;
}

/* ==== CREDENTIALS ================================================================================================= */

/* Says which source it was and what is wrong with it. */
static plb_status plb__mt_refuse(const plb_mbedtls_identity *identity, const char *source, const char *file, int error)
{
    const char *name = file != NULL ? file : source;
    if (plb__mt_is_memory(error))
        return PLB_ERR_MEMORY;
    plb__mt_say(identity->error, identity->error_capacity, name);
    plb__mt_say(identity->error, identity->error_capacity, ": ");
    if (error > 0)
        plb__mt_say(identity->error, identity->error_capacity, "not all that is in it is a certificate");
    else
        plb__mt_say_error(identity->error, identity->error_capacity, error);
    return PLB_ERR_ARGUMENT;
}

static int plb__mt_read_chain(mbedtls_x509_crt *chain, const char *file, const char *pem)
{
    if (pem != NULL)
        return mbedtls_x509_crt_parse(chain, (const unsigned char *)pem, strlen(pem) + 1);
#ifdef MBEDTLS_FS_IO
    return mbedtls_x509_crt_parse_file(chain, file);
#else
    (void)file;
    return MBEDTLS_ERR_X509_FILE_IO_ERROR;
#endif
}

/* Where systems keep their bundle: Debian, Fedora, SUSE, Alpine and the BSDs, FreeBSD's package. A bundle may have
   certificates of kinds that this mbedTLS does not know. */
static plb_status plb__mt_read_system(plb_credentials *credentials)
{
    static const char *const places[] = {"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt",
                                         "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem",
                                         "/usr/local/share/certs/ca-root-nss.crt"};
    size_t i;
    for (i = 0; i < sizeof places / sizeof places[0]; i++) {
        int error = plb__mt_read_chain(&credentials->authorities, places[i], NULL);
        if (plb__mt_is_memory(error))
            return PLB_ERR_MEMORY;
        if (error >= 0)
            return PLB_OK;
    }
    return PLB_OK;
}

static plb_status plb__mt_read_authorities(plb_credentials *credentials, const plb_mbedtls_identity *identity)
{
    int error = 0;
    credentials->has_authorities = identity->ca_file != NULL || identity->ca_pem != NULL;
    if (identity->ca_file != NULL)
        error = plb__mt_read_chain(&credentials->authorities, identity->ca_file, NULL);
    if (error != 0)
        return plb__mt_refuse(identity, "", identity->ca_file, error);
    if (identity->ca_pem != NULL)
        error = plb__mt_read_chain(&credentials->authorities, NULL, identity->ca_pem);
    if (error != 0)
        return plb__mt_refuse(identity, "the authorities' text", NULL, error);
    return credentials->has_authorities || identity->no_ca ? PLB_OK : plb__mt_read_system(credentials);
}

static int plb__mt_read_key(plb_credentials *credentials, const plb_mbedtls_identity *identity)
{
    const char *password = identity->key_password;
    if (identity->key_pem != NULL)
        return mbedtls_pk_parse_key(&credentials->key, (const unsigned char *)identity->key_pem,
                                    strlen(identity->key_pem) + 1, (const unsigned char *)password,
                                    password != NULL ? strlen(password) : 0 PLB__MT_RANDOM(credentials->tls));
#ifdef MBEDTLS_FS_IO
    return mbedtls_pk_parse_keyfile(&credentials->key, identity->key_file, password PLB__MT_RANDOM(credentials->tls));
#else
    return MBEDTLS_ERR_PK_FILE_IO_ERROR;
#endif
}

static plb_status plb__mt_read_identity(plb_credentials *credentials, const plb_mbedtls_identity *identity)
{
    bool certificate = identity->cert_file != NULL || identity->cert_pem != NULL;
    bool key = identity->key_file != NULL || identity->key_pem != NULL;
    int error;
    if (certificate != key) {
        plb__mt_say(identity->error, identity->error_capacity, "a certificate and its key come together or not at all");
        return PLB_ERR_ARGUMENT;
    }
    if (!certificate)
        return PLB_OK;
    error = plb__mt_read_chain(&credentials->certificate, identity->cert_file, identity->cert_pem);
    if (error != 0)
        return plb__mt_refuse(identity, "the certificate's text", identity->cert_file, error);
    error = plb__mt_read_key(credentials, identity);
    if (error != 0)
        return plb__mt_refuse(identity, "the key's text", identity->key_file, error);
    error = mbedtls_pk_check_pair(&credentials->certificate.pk, &credentials->key PLB__MT_RANDOM(credentials->tls));
    if (plb__mt_is_memory(error))
        return PLB_ERR_MEMORY;
    if (error != 0) {
        plb__mt_say(identity->error, identity->error_capacity,
                    identity->key_file != NULL ? identity->key_file : "the key's text");
        plb__mt_say(identity->error, identity->error_capacity, ": the key is not that of the certificate");
        return PLB_ERR_ARGUMENT;
    }
    credentials->has_certificate = true;
    return PLB_OK;
}

static void plb__mt_forget_sessions(plb_mbedtls *tls, const plb_credentials *credentials);

static void plb__mt_credentials_leave(plb_credentials *credentials)
{
    plb_mbedtls *tls = credentials->tls;
    if (--credentials->owners > 0)
        return;
    plb__mt_forget_sessions(tls, credentials);
    mbedtls_pk_free(&credentials->key);
    mbedtls_x509_crt_free(&credentials->certificate);
    mbedtls_x509_crt_free(&credentials->authorities);
    plb__mt_delete(&tls->allocator, credentials, sizeof *credentials);
}

PLB_API plb_status plb_mbedtls_credentials(plb_mbedtls *tls, const plb_mbedtls_identity *identity,
                                           plb_credentials **out)
{
    plb_credentials *credentials = (plb_credentials *)plb__mt_new(&tls->allocator, sizeof *credentials);
    plb_status status;
    *out = NULL;
    if (identity->error != NULL && identity->error_capacity > 0)
        identity->error[0] = '\0';
    if (credentials == NULL)
        return PLB_ERR_MEMORY;
    credentials->tls = tls;
    credentials->owners = 1;
    mbedtls_x509_crt_init(&credentials->authorities);
    mbedtls_x509_crt_init(&credentials->certificate);
    mbedtls_pk_init(&credentials->key);
    status = plb__mt_read_authorities(credentials, identity);
    if (status == PLB_OK)
        status = plb__mt_read_identity(credentials, identity);
    if (status == PLB_OK)
        *out = credentials;
    else
        plb__mt_credentials_leave(credentials);
    return status;
}

PLB_API void plb_mbedtls_credentials_free(plb_credentials *credentials)
{
    if (credentials != NULL)
        plb__mt_credentials_leave(credentials);
}

/* ==== PROFILES ==================================================================================================== */

static void plb__mt_profile_leave(plb__mt_profile *profile)
{
    plb_mbedtls *tls = profile->tls;
    if (--profile->owners > 0)
        return;
#ifdef PLB__MT_TICKETS
    mbedtls_ssl_ticket_free(&profile->tickets);
#endif
    mbedtls_ssl_config_free(&profile->config);
    plb__mt_credentials_leave(profile->credentials);
    plb__mt_delete(&tls->allocator, profile, profile->size);
}

/* Without the dot that ends a fully qualified name: neither SNI (RFC 6066 section 3) nor a certificate has it. */
static size_t plb__mt_name_size(const char *text)
{
    size_t size = text != NULL ? strlen(text) : 0;
    return size > 1 && text[size - 1] == '.' ? size - 1 : size;
}

static char *plb__mt_copy_text(char *at, const char *text, size_t size)
{
    if (size > 0)
        memcpy(at, text, size);
    at[size] = '\0';
    return at + size + 1;
}

static char *plb__mt_copy_name(char *at, const char *text, plb__mt_name *name)
{
    name->size = plb__mt_name_size(text);
    name->text = name->size > 0 ? at : NULL;
    plb__mt_parse_ip(text != NULL ? text : "", name->size, &name->ip);
    return plb__mt_copy_text(at, text, name->size);
}

static plb__mt_profile *plb__mt_copy(plb_mbedtls *tls, const plb_tls *wanted)
{
    size_t text_size = plb__mt_name_size(wanted->name) + plb__mt_name_size(wanted->alternative_name) + 2;
    size_t count = 0, i, size;
    plb__mt_profile *profile;
    char *at;
    for (; wanted->alpn != NULL && wanted->alpn[count] != NULL; count++)
        text_size += strlen(wanted->alpn[count]) + 1;
    size = sizeof *profile + (count + 1) * sizeof(const char *) + text_size;
    profile = (plb__mt_profile *)plb__mt_new(&tls->allocator, size);
    if (profile == NULL)
        return NULL;
    profile->tls = tls;
    profile->owners = 1;
    profile->size = size;
    profile->any_chain = wanted->any_chain;
    profile->any_name = wanted->any_name;
    profile->alpn = count > 0 ? (const char **)(void *)(profile + 1) : NULL;
    at = (char *)(profile + 1) + (count + 1) * sizeof(const char *);
    profile->text = at;
    profile->text_size = text_size;
    at = plb__mt_copy_name(at, wanted->name, &profile->name);
    at = plb__mt_copy_name(at, wanted->alternative_name, &profile->alternative);
    for (i = 0; i < count; i++) {
        profile->alpn[i] = at;
        at = plb__mt_copy_text(at, wanted->alpn[i], strlen(wanted->alpn[i]));
    }
    return profile;
}

#ifdef PLB__MT_TICKETS
/* mbedTLS does not tell who it is that resumes: only that somebody's ticket is good. */
static int plb__mt_take_ticket(void *user, mbedtls_ssl_session *session, unsigned char *bytes, size_t size)
{
    plb__mt_profile *profile = (plb__mt_profile *)user;
    int error = mbedtls_ssl_ticket_parse(&profile->tickets, session, bytes, size);
    profile->ticket_taken = error == 0;
    return error;
}

static int plb__mt_give_ticket(void *user, const mbedtls_ssl_session *session, unsigned char *start,
                               const unsigned char *end, size_t *size, uint32_t *lifetime_s)
{
    return mbedtls_ssl_ticket_write(&((plb__mt_profile *)user)->tickets, session, start, end, size, lifetime_s);
}
#endif

/* The keys of the tickets are the listener's: a ticket that was had without a client's certificate is of no use where
   one is asked for. */
static int plb__mt_configure_tickets(plb__mt_profile *profile)
{
#ifdef PLB__MT_TICKETS
    int error;
    if (!profile->server || profile->tls->no_sessions)
        return 0;
    error = mbedtls_ssl_ticket_setup(&profile->tickets, mbedtls_ctr_drbg_random, &profile->tls->random,
                                     MBEDTLS_CIPHER_AES_256_GCM, PLB__MT_TICKET_S);
    if (error == 0)
        mbedtls_ssl_conf_session_tickets_cb(&profile->config, plb__mt_give_ticket, plb__mt_take_ticket, profile);
    return error;
#else
    (void)profile;
    return 0;
#endif
}

/* A chain of authorities that is empty is not the same to mbedTLS as none: the first vouches for nobody. */
static int plb__mt_configure(plb__mt_profile *profile, bool ask_client)
{
    mbedtls_ssl_config *config = &profile->config;
    plb_credentials *credentials = profile->credentials;
    int role = profile->server ? MBEDTLS_SSL_IS_SERVER : MBEDTLS_SSL_IS_CLIENT;
    int error = mbedtls_ssl_config_defaults(config, role, MBEDTLS_SSL_TRANSPORT_STREAM, MBEDTLS_SSL_PRESET_DEFAULT);
    if (error != 0)
        return error;
#if MBEDTLS_VERSION_MAJOR == 2
    mbedtls_ssl_conf_min_version(config, MBEDTLS_SSL_MAJOR_VERSION_3, MBEDTLS_SSL_MINOR_VERSION_3);
#endif
#if defined(MBEDTLS_SSL_PROTO_TLS1_3) && defined(MBEDTLS_SSL_SESSION_TICKETS) &&                                       \
    defined(MBEDTLS_SSL_TLS1_3_SIGNAL_NEW_SESSION_TICKETS_ENABLED)
    mbedtls_ssl_conf_tls13_enable_signal_new_session_tickets(config,
                                                             MBEDTLS_SSL_TLS1_3_SIGNAL_NEW_SESSION_TICKETS_ENABLED);
#endif
    mbedtls_ssl_conf_rng(config, mbedtls_ctr_drbg_random, &profile->tls->random);
    mbedtls_ssl_conf_authmode(config,
                              profile->server && !ask_client ? MBEDTLS_SSL_VERIFY_NONE : MBEDTLS_SSL_VERIFY_REQUIRED);
    mbedtls_ssl_conf_ca_chain(config, &credentials->authorities, NULL);
    if (credentials->has_certificate)
        error = mbedtls_ssl_conf_own_cert(config, &credentials->certificate, &credentials->key);
    if (error == 0 && profile->alpn != NULL)
        error = mbedtls_ssl_conf_alpn_protocols(config, profile->alpn);
    return error != 0 ? error : plb__mt_configure_tickets(profile);
}

static plb_status plb__mt_status_of_setup(int error)
{
    return plb__mt_is_memory(error) ? PLB_ERR_MEMORY : PLB_ERR_ARGUMENT;
}

/* PLB_OK, PLB_ERR_MEMORY or PLB_ERR_ARGUMENT. */
static plb_status plb__mt_profile_new(plb_mbedtls *tls, const plb_tls *wanted, bool server, plb__mt_profile **out)
{
    plb_credentials *credentials =
        wanted->credentials != NULL ? (plb_credentials *)wanted->credentials : tls->credentials;
    plb__mt_profile *profile;
    int error;
    if (server ? !credentials->has_certificate || (wanted->ask_client && !credentials->has_authorities)
               : !wanted->any_name && plb__mt_name_size(wanted->name) == 0)
        return PLB_ERR_ARGUMENT;
    profile = plb__mt_copy(tls, wanted);
    if (profile == NULL)
        return PLB_ERR_MEMORY;
    profile->server = server;
    profile->credentials = credentials;
    credentials->owners++;
    mbedtls_ssl_config_init(&profile->config);
#ifdef PLB__MT_TICKETS
    mbedtls_ssl_ticket_init(&profile->tickets);
#endif
    error = plb__mt_configure(profile, wanted->ask_client);
    if (error == 0) {
        *out = profile;
        return PLB_OK;
    }
    plb__mt_profile_leave(profile);
    return plb__mt_status_of_setup(error);
}

/* ==== SAVED SESSIONS ============================================================================================== */

static void plb__mt_saved_clear(plb_mbedtls *tls, plb__mt_saved *saved)
{
    if (!saved->used)
        return;
    mbedtls_ssl_session_free(&saved->session);
    plb__mt_delete(&tls->allocator, saved->text, saved->text_size);
    memset(saved, 0, sizeof *saved);
}

static void plb__mt_forget_sessions(plb_mbedtls *tls, const plb_credentials *credentials)
{
    uint32_t i;
    for (i = 0; i < tls->saved_max; i++) {
        if (tls->saved[i].credentials == credentials)
            plb__mt_saved_clear(tls, &tls->saved[i]);
    }
}

/* The session of this connection's kind, or NULL. */
static plb__mt_saved *plb__mt_saved_find(plb_mbedtls *tls, const plb__mt_session *session)
{
    const plb__mt_profile *profile = session->profile;
    uint32_t i;
    for (i = 0; i < tls->saved_max; i++) {
        plb__mt_saved *saved = &tls->saved[i];
        if (saved->used && saved->credentials == profile->credentials && saved->any_chain == profile->any_chain &&
            saved->any_name == profile->any_name && plb_addr_compare(&saved->addr, &session->addr) == 0 &&
            saved->text_size == profile->text_size && memcmp(saved->text, profile->text, saved->text_size) == 0)
            return saved;
    }
    return NULL;
}

/* One that is free, or the oldest, which goes. */
static plb__mt_saved *plb__mt_saved_place(plb_mbedtls *tls)
{
    plb__mt_saved *oldest = &tls->saved[0];
    uint32_t i;
    for (i = 0; i < tls->saved_max; i++) {
        if (tls->saved[i].saved_at < oldest->saved_at)
            oldest = &tls->saved[i];
    }
    plb__mt_saved_clear(tls, oldest);
    return oldest;
}

/* Nothing is lost but time when this fails. */
static void plb__mt_save(plb_mbedtls *tls, plb__mt_session *session)
{
    const plb__mt_profile *profile = session->profile;
    plb__mt_saved *saved;
    mbedtls_ssl_session copy;
    char *text;
    if (tls->saved_max == 0 || profile->server)
        return;
    mbedtls_ssl_session_init(&copy);
    text = (char *)plb__mt_new(&tls->allocator, profile->text_size);
    if (text == NULL || mbedtls_ssl_get_session(&session->ssl, &copy) != 0) {
        mbedtls_ssl_session_free(&copy);
        plb__mt_delete(&tls->allocator, text, profile->text_size);
        return;
    }
    saved = plb__mt_saved_find(tls, session);
    if (saved != NULL)
        plb__mt_saved_clear(tls, saved);
    saved = plb__mt_saved_place(tls);
    memcpy(text, profile->text, profile->text_size);
    saved->used = true;
    saved->any_chain = profile->any_chain;
    saved->any_name = profile->any_name;
    saved->credentials = profile->credentials;
    saved->addr = session->addr;
    saved->text = text;
    saved->text_size = profile->text_size;
    saved->saved_at = ++tls->saved_clock;
    saved->session = copy;
}

static void plb__mt_offer_saved(plb_mbedtls *tls, plb__mt_session *session)
{
    plb__mt_saved *saved = plb__mt_saved_find(tls, session);
    if (saved == NULL)
        return;
    session->offered = mbedtls_ssl_set_session(&session->ssl, &saved->session) == 0;
    if (!session->offered)
        plb__mt_saved_clear(tls, saved);
}

/* ==== WHAT WENT WRONG ============================================================================================= */

static const char *plb__mt_alert_text(unsigned alert)
{
    /* RFC 8446 section 6, and those of RFC 5246 that it dropped. */
    static const struct {
        unsigned alert;
        const char *text;
    } alerts[] = {{10, "unexpected message"},      {20, "bad record MAC"},        {22, "record overflow"},
                  {40, "handshake failure"},       {41, "no certificate"},        {42, "bad certificate"},
                  {43, "unsupported certificate"}, {44, "certificate revoked"},   {45, "certificate expired"},
                  {46, "certificate unknown"},     {47, "illegal parameter"},     {48, "unknown authority"},
                  {49, "access denied"},           {50, "decode error"},          {51, "decrypt error"},
                  {70, "protocol version"},        {71, "insufficient security"}, {80, "internal error"},
                  {86, "inappropriate fallback"},  {90, "user canceled"},         {109, "missing extension"},
                  {110, "unsupported extension"},  {112, "unrecognized name"},    {116, "certificate required"},
                  {120, "no application protocol"}};
    size_t i;
    for (i = 0; i < sizeof alerts / sizeof alerts[0]; i++) {
        if (alerts[i].alert == alert)
            return alerts[i].text;
    }
    return "one that is not known here";
}

static void plb__mt_explain(plb__mt_session *session, const char *words)
{
    if (session->reason[0] != '\0')
        plb__mt_say(session->reason, sizeof session->reason, "; ");
    plb__mt_say(session->reason, sizeof session->reason, words);
}

/* TLS 1.3 has an alert for it (116, RFC 8446 section 6.2). Servers of TLS 1.2 that miss a client's certificate say
   "handshake failure", "no certificate" or "bad certificate", once the client has answered without one. */
static bool plb__mt_missed_certificate(const plb__mt_session *session, unsigned alert)
{
    if (session->profile->server || session->profile->credentials->has_certificate)
        return false;
    return session->ssl.PLB__MT_HIDDEN(state) > MBEDTLS_SSL_CLIENT_CERTIFICATE &&
           ((alert >= 40 && alert <= 42) || alert == 116);
}

static void plb__mt_explain_alert(plb__mt_session *session)
{
    unsigned alert = session->ssl.PLB__MT_HIDDEN(in_msg)[1];
    plb__mt_explain(session, "the peer sent the alert: ");
    plb__mt_say(session->reason, sizeof session->reason, plb__mt_alert_text(alert));
    if (plb__mt_missed_certificate(session, alert))
        plb__mt_explain(session, "it wants a certificate of this side");
}

static void plb__mt_explain_certificate(plb__mt_session *session)
{
    static const struct {
        uint32_t flags;
        const char *text;
    } faults[] = {
        {MBEDTLS_X509_BADCERT_EXPIRED, "the certificate has expired"},
        {MBEDTLS_X509_BADCERT_FUTURE, "the certificate is not valid yet"},
        {MBEDTLS_X509_BADCERT_CN_MISMATCH, "the certificate is for another name"},
        {MBEDTLS_X509_BADCERT_NOT_TRUSTED, "nobody trusted vouches for the certificate"},
        {MBEDTLS_X509_BADCERT_MISSING, "the peer sent no certificate"},
        {MBEDTLS_X509_BADCERT_KEY_USAGE | MBEDTLS_X509_BADCERT_EXT_KEY_USAGE | MBEDTLS_X509_BADCERT_NS_CERT_TYPE,
         "the certificate is not meant for this use"},
        {MBEDTLS_X509_BADCERT_BAD_MD | MBEDTLS_X509_BADCERT_BAD_PK | MBEDTLS_X509_BADCERT_BAD_KEY,
         "the certificate is signed, or its key is made, in too weak a way"},
    };
    uint32_t flags = mbedtls_ssl_get_verify_result(&session->ssl);
    size_t i;
    for (i = 0; i < sizeof faults / sizeof faults[0] && flags != UINT32_MAX; i++) {
        if (flags & faults[i].flags)
            plb__mt_explain(session, faults[i].text);
    }
    if (session->reason[0] == '\0')
        plb__mt_explain(session, "the certificate is not accepted");
}

/* The handshake's, and the session's, errors. */
static plb_status plb__mt_explain_error(plb__mt_session *session, int error)
{
    if (plb__mt_is_memory(error))
        return PLB_ERR_MEMORY;
    if (error == MBEDTLS_ERR_X509_CERT_VERIFY_FAILED) {
        plb__mt_explain_certificate(session);
        return PLB_ERR_CERTIFICATE;
    }
    if (error == MBEDTLS_ERR_SSL_NO_CLIENT_CERTIFICATE) {
        /* mbedTLS leaves that to others: RFC 5246 section 7.4.6. */
        mbedtls_ssl_send_alert_message(&session->ssl, MBEDTLS_SSL_ALERT_LEVEL_FATAL,
                                       MBEDTLS_SSL_ALERT_MSG_HANDSHAKE_FAILURE);
        plb__mt_explain(session, "the client sent no certificate");
        return PLB_ERR_CERTIFICATE;
    }
    if (error == PLB__MT_BAD_CERTIFICATE) {
        plb__mt_explain(session, "the certificate cannot be used");
        return PLB_ERR_CERTIFICATE;
    }
    if (error == MBEDTLS_ERR_SSL_FATAL_ALERT_MESSAGE)
        plb__mt_explain_alert(session);
    else if (error == PLB__MT_BAD_VERSION)
        plb__mt_explain(session, "the peer offers no version of TLS that is taken here");
    else if (error == MBEDTLS_ERR_SSL_INVALID_RECORD && !session->ready)
        plb__mt_explain(session, "what the peer sent is not TLS");
    else
        plb__mt_say_error(session->reason, sizeof session->reason, error);
    return PLB_ERR_TLS;
}

/* The session has come to a bad end; returns how. */
static plb_status plb__mt_break(plb__mt_session *session, int error)
{
    if (session->below == PLB_END && session->ready) {
        session->broken = PLB_ERR_TRUNCATED;
    } else if (session->below == PLB_END) {
        plb__mt_explain(session, "the peer ended the connection during the handshake");
        session->broken = PLB_ERR_TLS;
    } else if (session->below != PLB_OK) {
        session->broken = session->below;
    } else {
        session->broken = plb__mt_explain_error(session, error);
    }
    return session->broken;
}

static bool plb__mt_waits(int result)
{
    return result == MBEDTLS_ERR_SSL_WANT_READ || result == MBEDTLS_ERR_SSL_WANT_WRITE;
}

/* ==== BELOW: where mbedTLS reads and writes ======================================================================= */

/* What mbedTLS is told when the port below has failed; what it was is in plb__mt_session.below. */
#define PLB__MT_FAILED MBEDTLS_ERR_SSL_INTERNAL_ERROR

static int plb__mt_receive(void *user, unsigned char *bytes, size_t capacity)
{
    plb__mt_stream *stream = (plb__mt_stream *)user;
    const plb_io *below = stream->tls->below;
    size_t got = 0;
    plb_status status = below->read(below->self, stream->below, bytes, capacity, &got);
    if (status == PLB_OK)
        return (int)got;
    if (status == PLB_AGAIN)
        return MBEDTLS_ERR_SSL_WANT_READ;
    stream->session->below = status;
    return PLB__MT_FAILED;
}

/* mbedTLS comes back with what is left of a record until all of it was taken, before it makes another. */
static int plb__mt_send(void *user, const unsigned char *bytes, size_t size)
{
    plb__mt_stream *stream = (plb__mt_stream *)user;
    plb__mt_session *session = stream->session;
    const plb_io *below = stream->tls->below;
    size_t taken = 0;
    plb_chunk chunk;
    plb_status status;
    chunk.data = bytes;
    chunk.size = size;
    chunk.flags = 0;
    if (session->unsent == 0)
        session->record = bytes;
    session->unsent = size;
    status = below->write(below->self, stream->below, &chunk, 1, &taken);
    if (status == PLB_OK) {
        session->unsent -= taken;
        return (int)taken;
    }
    if (status == PLB_AGAIN)
        return MBEDTLS_ERR_SSL_WANT_WRITE;
    session->below = status;
    return PLB__MT_FAILED;
}

/* ==== SESSIONS ==================================================================================================== */

/* Called by mbedTLS for each certificate of the chain, the peer's own (depth 0) last. mbedTLS 2.28 knows no addresses
   in certificates, and no second name: the name is judged here, alike with every version. */
static int plb__mt_judge(void *user, mbedtls_x509_crt *certificate, int depth, uint32_t *flags)
{
    plb__mt_session *session = (plb__mt_session *)user;
    const plb__mt_profile *profile = session->profile;
    session->vouched = true;
    if (profile->server)
        return 0;
    *flags &= ~(uint32_t)MBEDTLS_X509_BADCERT_CN_MISMATCH;
    if (profile->any_chain)
        *flags = 0;
    if (depth == 0 && !profile->any_name && !plb__mt_is_for(certificate, &profile->name) &&
        !plb__mt_is_for(certificate, &profile->alternative))
        *flags |= MBEDTLS_X509_BADCERT_CN_MISMATCH;
    return 0;
}

static void plb__mt_session_delete(plb_mbedtls *tls, plb__mt_session *session)
{
    if (session == NULL)
        return;
    mbedtls_ssl_free(&session->ssl);
    plb__mt_profile_leave(session->profile);
    plb__mt_delete(&tls->allocator, session, sizeof *session);
}

/* PLB_OK, PLB_ERR_MEMORY or PLB_ERR_ARGUMENT. */
static plb_status plb__mt_session_new(plb__mt_stream *stream, plb__mt_profile *profile, const plb_addr *addr)
{
    plb_mbedtls *tls = stream->tls;
    plb__mt_session *session = (plb__mt_session *)plb__mt_new(&tls->allocator, sizeof *session);
    const char *name = profile->name.ip.family == PLB_FAMILY_NONE ? profile->name.text : NULL;
    int error;
    if (session == NULL)
        return PLB_ERR_MEMORY;
    session->profile = profile;
    profile->owners++;
    mbedtls_ssl_init(&session->ssl);
    error = mbedtls_ssl_setup(&session->ssl, &profile->config);
    if (error == 0 && !profile->server) /* with NULL, too: 3.6 wants to hear that nobody is named */
        error = mbedtls_ssl_set_hostname(&session->ssl, name);
    if (error != 0) {
        plb__mt_session_delete(tls, session);
        return plb__mt_status_of_setup(error);
    }
    mbedtls_ssl_set_verify(&session->ssl, plb__mt_judge, session);
    mbedtls_ssl_set_bio(&session->ssl, stream, plb__mt_send, plb__mt_receive, NULL);
    stream->session = session;
    if (addr != NULL) {
        session->addr = *addr;
        plb__mt_offer_saved(tls, session);
    }
    return PLB_OK;
}

/* A session that was offered and brought nothing but an error is not offered again. */
static void plb__mt_drop_offered(plb__mt_stream *stream)
{
    plb__mt_saved *saved = stream->session->offered ? plb__mt_saved_find(stream->tls, stream->session) : NULL;
    if (saved != NULL)
        plb__mt_saved_clear(stream->tls, saved);
}

/* Goes on with the handshake. PLB_OK: it is over. PLB_AGAIN: the port below has armed a callback. */
static plb_status plb__mt_shake(plb__mt_stream *stream)
{
    plb__mt_session *session = stream->session;
    plb__mt_profile *profile = session->profile;
    int result;
    if (session->ready || session->broken != PLB_OK)
        return session->broken;
    profile->ticket_taken = false;
    result = mbedtls_ssl_handshake(&session->ssl);
    session->resumed = session->resumed || profile->ticket_taken;
    if (plb__mt_waits(result))
        return PLB_AGAIN;
    if (result != 0) {
        plb__mt_drop_offered(stream);
        return plb__mt_break(session, result);
    }
    session->ready = true;
    if (!profile->server)
        session->resumed = session->offered && !session->vouched;
    plb__mt_save(stream->tls, session);
    return PLB_OK;
}

/* Sends what is left of the last record, then the farewell if it is time for it. PLB_OK: nothing is left. */
static plb_status plb__mt_send_out(plb__mt_session *session)
{
    int result = 0;
    if (session->broken != PLB_OK)
        return session->broken;
    /* mbedTLS wants to be called with the same size again; the bytes were encrypted at the first time. */
    if (session->unsent > 0 && !session->farewell_begun)
        result = mbedtls_ssl_write(&session->ssl, session->record, session->record_size);
    if (result >= 0 && session->farewell && (!session->farewell_begun || session->unsent > 0)) {
        session->farewell_begun = true;
        result = mbedtls_ssl_close_notify(&session->ssl);
    }
    if (plb__mt_waits(result))
        return PLB_AGAIN;
    return result < 0 ? plb__mt_break(session, result) : PLB_OK;
}

/* What a read of mbedTLS's came to. */
static plb_status plb__mt_read_result(plb__mt_session *session, int result)
{
    if (plb__mt_waits(result))
        return PLB_AGAIN;
    if (result == MBEDTLS_ERR_SSL_PEER_CLOSE_NOTIFY) {
        session->ended = true;
        return PLB_END;
    }
    return plb__mt_break(session, result);
}

/* Reads up to `capacity` bytes; with 0, one record is only made ready. */
static plb_status plb__mt_read_record(plb__mt_stream *stream, void *buffer, size_t capacity, size_t *got)
{
    plb__mt_session *session = stream->session;
    unsigned char none = 0;
    int result, tickets = 0;
    if (session->broken != PLB_OK || session->ended)
        return session->ended ? PLB_END : session->broken;
    result = mbedtls_ssl_read(&session->ssl, capacity > 0 ? (unsigned char *)buffer : &none, capacity);
#ifdef MBEDTLS_ERR_SSL_RECEIVED_NEW_SESSION_TICKET
    while (result == MBEDTLS_ERR_SSL_RECEIVED_NEW_SESSION_TICKET && tickets++ < PLB__MT_TICKETS_MAX) {
        plb__mt_save(stream->tls, session);
        result = mbedtls_ssl_read(&session->ssl, capacity > 0 ? (unsigned char *)buffer : &none, capacity);
    }
#endif
    (void)tickets;
    if (result < 0 || (result == 0 && mbedtls_ssl_get_bytes_avail(&session->ssl) == 0))
        return plb__mt_read_result(session, result);
    *got = (size_t)result;
    return PLB_OK;
}

/* Is it worth calling read, or write? PLB_OK if so, or if that would tell of an error; PLB_AGAIN: the port below has
   armed what will make it so. */
static plb_status plb__mt_is_worth(plb__mt_stream *stream, unsigned direction)
{
    plb__mt_session *session = stream->session;
    const plb_io *below = stream->tls->below;
    size_t got;
    plb_status status = plb__mt_shake(stream);
    if (status == PLB_OK && direction == PLB__MT_READ)
        status = mbedtls_ssl_get_bytes_avail(&session->ssl) > 0 ? PLB_OK : plb__mt_read_record(stream, NULL, 0, &got);
    else if (status == PLB_OK)
        status = plb__mt_send_out(session);
    if (status == PLB_OK && direction == PLB__MT_WRITE)
        status = below->watch(below->self, stream->below, PLB_EVENT_WRITE);
    return status == PLB_AGAIN ? PLB_AGAIN : PLB_OK;
}

/* ==== STREAMS: life =============================================================================================== */

static plb_stream *plb__mt_handle(plb__mt_stream *stream)
{
    return (plb_stream *)(void *)stream;
}

static plb__mt_stream *plb__mt_stream_of(plb_stream *stream)
{
    return (plb__mt_stream *)(void *)stream;
}

static void plb__mt_link(plb__mt_stream **list, plb__mt_stream *stream)
{
    stream->prev = NULL;
    stream->next = *list;
    if (*list != NULL)
        (*list)->prev = stream;
    *list = stream;
}

static void plb__mt_unlink(plb__mt_stream **list, plb__mt_stream *stream)
{
    if (stream->next != NULL)
        stream->next->prev = stream->prev;
    if (stream->prev != NULL)
        stream->prev->next = stream->next;
    else
        *list = stream->next;
}

static plb__mt_stream *plb__mt_stream_new(plb_mbedtls *tls, plb_handler handler)
{
    plb__mt_stream *stream = (plb__mt_stream *)plb__mt_new(&tls->allocator, sizeof *stream);
    if (stream == NULL)
        return NULL;
    stream->tls = tls;
    stream->handler = handler;
    plb__mt_link(&tls->streams, stream);
    return stream;
}

/* The stream below has been closed, or never was. */
static void plb__mt_stream_delete(plb__mt_stream *stream)
{
    plb_mbedtls *tls = stream->tls;
    if (stream->gone != NULL)
        *stream->gone = true;
    if (stream->lingers)
        tls->lingering_count--;
    plb__mt_unlink(stream->lingers ? &tls->lingering : &tls->streams, stream);
    plb__mt_session_delete(tls, stream->session);
    if (stream->profile != NULL)
        plb__mt_profile_leave(stream->profile);
    plb__mt_delete(&tls->allocator, stream, sizeof *stream);
}

static void plb__mt_close_below(plb__mt_stream *stream, plb_close_how how)
{
    const plb_io *below = stream->tls->below;
    below->close(below->self, stream->below, how);
    plb__mt_stream_delete(stream);
}

/* ==== STREAMS: callbacks ========================================================================================== */

static void plb__mt_call(plb__mt_stream *stream, plb_event event, plb_status status)
{
    stream->handler.fn(stream->handler.user, plb__mt_handle(stream), event, status);
}

/* Its owner is gone, what it wrote is not. */
static void plb__mt_linger(plb__mt_stream *stream)
{
    if (plb__mt_send_out(stream->session) != PLB_AGAIN)
        plb__mt_close_below(stream, PLB_CLOSE_GRACEFUL);
}

static void plb__mt_tell(plb__mt_stream *stream, unsigned direction, plb_event event)
{
    plb__mt_session *session = stream->session;
    if ((session->armed & direction) == 0 || plb__mt_is_worth(stream, direction) == PLB_AGAIN)
        return;
    session->armed = (uint8_t)(session->armed & ~direction);
    plb__mt_call(stream, event, PLB_OK);
}

/* The port below has news of a stream: goes on with whatever waits, be it for this or for the other direction (a
   handshake writes in order to read), then tells those for whom it makes a difference. */
static void plb__mt_progress(plb__mt_stream *stream)
{
    plb__mt_session *session = stream->session;
    plb_status status = plb__mt_shake(stream);
    bool gone = false;
    if (session->connecting) {
        session->connecting = status == PLB_AGAIN;
        if (status != PLB_AGAIN)
            plb__mt_call(stream, PLB_EVENT_CONNECT, status);
        return;
    }
    if (session->ready && (session->unsent > 0 || session->farewell))
        plb__mt_send_out(session);
    stream->gone = &gone;
    plb__mt_tell(stream, PLB__MT_READ, PLB_EVENT_READ);
    if (!gone)
        plb__mt_tell(stream, PLB__MT_WRITE, PLB_EVENT_WRITE);
    if (!gone)
        stream->gone = NULL;
}

static void plb__mt_on_event(void *user, plb_stream *below, plb_event event, plb_status status)
{
    plb__mt_stream *stream = (plb__mt_stream *)user;
    (void)below;
    if (stream->session == NULL) {
        plb__mt_call(stream, event, status);
    } else if (stream->lingers) {
        plb__mt_linger(stream);
    } else if (event == PLB_EVENT_CONNECT && status != PLB_OK) {
        stream->session->connecting = false;
        stream->session->broken = status;
        plb__mt_call(stream, PLB_EVENT_CONNECT, status);
    } else {
        plb__mt_progress(stream);
    }
}

static plb_handler plb__mt_handler(plb__mt_stream *stream)
{
    plb_handler handler;
    handler.fn = plb__mt_on_event;
    handler.user = stream;
    return handler;
}

/* ==== STREAMS: plb_io ============================================================================================= */

/* Prepares all that can fail before the port below is asked. */
static plb_status plb__mt_prepare(plb__mt_stream *stream, const plb_peer *peer)
{
    plb__mt_profile *profile;
    plb_status status;
    if (peer->tls == NULL)
        return PLB_OK;
    status = plb__mt_profile_new(stream->tls, peer->tls, false, &profile);
    if (status != PLB_OK)
        return status;
    status = plb__mt_session_new(stream, profile, &peer->addr);
    plb__mt_profile_leave(profile);
    return status;
}

static plb_status plb__mt_connect(void *self, const plb_peer *peer, plb_handler handler, plb_stream **out)
{
    plb_mbedtls *tls = (plb_mbedtls *)self;
    plb__mt_stream *stream = plb__mt_stream_new(tls, handler);
    plb_peer plain = *peer;
    plb_status status;
    *out = NULL;
    if (stream == NULL)
        return PLB_ERR_MEMORY;
    plain.tls = NULL;
    status = plb__mt_prepare(stream, peer);
    if (status == PLB_OK)
        status = tls->below->connect(tls->below->self, &plain, plb__mt_handler(stream), &stream->below);
    if (status == PLB_OK && stream->session != NULL)
        status = plb__mt_shake(stream);
    if (status == PLB_OK || status == PLB_AGAIN) {
        if (stream->session != NULL)
            stream->session->connecting = status == PLB_AGAIN;
        *out = plb__mt_handle(stream);
        return status;
    }
    if (stream->below != NULL)
        tls->below->close(tls->below->self, stream->below, PLB_CLOSE_ABORT);
    plb__mt_stream_delete(stream);
    return status;
}

static plb_status plb__mt_listen(void *self, const plb_listen_desc *desc, plb_handler handler, plb_stream **out)
{
    plb_mbedtls *tls = (plb_mbedtls *)self;
    plb__mt_stream *stream = plb__mt_stream_new(tls, handler);
    plb_listen_desc plain = *desc;
    plb_status status = PLB_OK;
    *out = NULL;
    if (stream == NULL)
        return PLB_ERR_MEMORY;
    plain.tls = NULL;
    if (desc->tls != NULL)
        status = plb__mt_profile_new(tls, desc->tls, true, &stream->profile);
    if (status == PLB_OK)
        status = tls->below->listen(tls->below->self, &plain, plb__mt_handler(stream), &stream->below);
    if (status == PLB_OK)
        *out = plb__mt_handle(stream);
    else
        plb__mt_stream_delete(stream);
    return status;
}

static void plb__mt_ignore(void *user, plb_stream *stream, plb_event event, plb_status status)
{
    (void)user;
    (void)stream;
    (void)event;
    (void)status;
}

/* A stream for what will be accepted, ready to shake hands; NULL without memory. */
static plb__mt_stream *plb__mt_accepting(plb__mt_stream *listener, plb_handler handler)
{
    plb__mt_stream *stream = plb__mt_stream_new(listener->tls, handler);
    if (stream == NULL || listener->profile == NULL)
        return stream;
    if (plb__mt_session_new(stream, listener->profile, NULL) == PLB_OK)
        return stream;
    plb__mt_stream_delete(stream);
    return NULL;
}

/* Without memory a connection is taken and aborted: nothing would tell when to try again, and the peer can. */
static plb_status plb__mt_accept(void *self, plb_stream *listening, plb_handler handler, plb_stream **out)
{
    plb_mbedtls *tls = (plb_mbedtls *)self;
    plb__mt_stream *listener = plb__mt_stream_of(listening), *stream;
    plb_handler nobody;
    plb_stream *below;
    plb_status status;
    nobody.fn = plb__mt_ignore;
    nobody.user = NULL;
    *out = NULL;
    for (;;) {
        stream = plb__mt_accepting(listener, handler);
        status = tls->below->accept(tls->below->self, listener->below,
                                    stream != NULL ? plb__mt_handler(stream) : nobody, &below);
        if (status == PLB_OK && stream != NULL)
            break;
        if (stream != NULL)
            plb__mt_stream_delete(stream);
        if (status != PLB_OK)
            return status;
        tls->below->close(tls->below->self, below, PLB_CLOSE_ABORT);
    }
    stream->below = below;
    *out = plb__mt_handle(stream);
    if (stream->session != NULL)
        plb__mt_shake(stream); /* if it fails, read and write will tell */
    return PLB_OK;
}

/* PLB_AGAIN is a promise. */
static plb_status plb__mt_promise(plb__mt_session *session, unsigned direction, plb_status status)
{
    if (status == PLB_AGAIN)
        session->armed = (uint8_t)(session->armed | direction);
    return status;
}

static plb_status plb__mt_read(void *self, plb_stream *handle, void *buffer, size_t capacity, size_t *got)
{
    plb__mt_stream *stream = plb__mt_stream_of(handle);
    const plb_io *below = stream->tls->below;
    plb_status status;
    (void)self;
    *got = 0;
    if (stream->session == NULL)
        return below->read(below->self, stream->below, buffer, capacity, got);
    status = plb__mt_shake(stream);
    if (status == PLB_OK)
        status = plb__mt_read_record(stream, buffer, capacity < INT32_MAX ? capacity : INT32_MAX, got);
    return plb__mt_promise(stream->session, PLB__MT_READ, status);
}

/* Where a gathered write has got to. */
typedef struct plb__mt_cursor {
    const plb_chunk *chunks;
    size_t count, offset; /* chunks that are left; bytes of the first that are done */
} plb__mt_cursor;

static void plb__mt_skip_done(plb__mt_cursor *cursor)
{
    while (cursor->count > 0 && cursor->offset == cursor->chunks->size) {
        cursor->chunks++;
        cursor->count--;
        cursor->offset = 0;
    }
}

/* The bytes of the next record: a piece of a chunk as it lies there, or small ones put together in `room`, so that they
   do not cost a record each. */
static const unsigned char *plb__mt_next_bytes(plb__mt_cursor *cursor, unsigned char *room, size_t most, size_t *size)
{
    const unsigned char *first = (const unsigned char *)cursor->chunks->data + cursor->offset;
    *size = cursor->chunks->size - cursor->offset;
    if (cursor->count == 1 || *size >= PLB__MT_GATHER) {
        *size = *size < most ? *size : most;
        cursor->offset += *size;
        return first;
    }
    most = most < PLB__MT_GATHER ? most : PLB__MT_GATHER;
    for (*size = 0; cursor->count > 0 && *size < most; plb__mt_skip_done(cursor)) {
        size_t part = cursor->chunks->size - cursor->offset;
        if (part > most - *size)
            part = most - *size;
        memcpy(room + *size, (const char *)cursor->chunks->data + cursor->offset, part);
        *size += part;
        cursor->offset += part;
    }
    return room;
}

/* Encrypts record after record until all is done or the port below takes no more. What mbedTLS has encrypted counts as
   taken, whether it has left already or not. */
static plb_status plb__mt_write_records(plb__mt_session *session, plb__mt_cursor *cursor, size_t *taken)
{
    unsigned char room[PLB__MT_GATHER];
    int most = mbedtls_ssl_get_max_out_record_payload(&session->ssl);
    int result = most > 0 ? 0 : most;
    plb__mt_skip_done(cursor);
    while (result >= 0 && cursor->count > 0 && session->unsent == 0) {
        size_t size;
        const unsigned char *bytes = plb__mt_next_bytes(cursor, room, (size_t)most, &size);
        session->record_size = size;
        result = mbedtls_ssl_write(&session->ssl, bytes, size);
        if (result >= 0 || plb__mt_waits(result))
            *taken += size;
        plb__mt_skip_done(cursor);
    }
    if (result < 0 && !plb__mt_waits(result))
        plb__mt_break(session, result);
    return *taken > 0 ? PLB_OK : session->broken;
}

static plb_status plb__mt_write(void *self, plb_stream *handle, const plb_chunk *chunks, size_t count, size_t *taken)
{
    plb__mt_stream *stream = plb__mt_stream_of(handle);
    const plb_io *below = stream->tls->below;
    plb__mt_cursor cursor;
    plb_status status;
    (void)self;
    *taken = 0;
    if (stream->session == NULL)
        return below->write(below->self, stream->below, chunks, count, taken);
    cursor.chunks = chunks;
    cursor.count = count < PLB_CHUNKS_MAX ? count : PLB_CHUNKS_MAX;
    cursor.offset = 0;
    status = plb__mt_shake(stream);
    if (status == PLB_OK)
        status = plb__mt_send_out(stream->session);
    if (status == PLB_OK)
        status = plb__mt_write_records(stream->session, &cursor, taken);
    return plb__mt_promise(stream->session, PLB__MT_WRITE, status);
}

static plb_status plb__mt_watch(void *self, plb_stream *handle, plb_event event)
{
    plb__mt_stream *stream = plb__mt_stream_of(handle);
    const plb_io *below = stream->tls->below;
    unsigned direction = event == PLB_EVENT_WRITE ? PLB__MT_WRITE : PLB__MT_READ;
    (void)self;
    if (stream->session == NULL)
        return below->watch(below->self, stream->below, event);
    return plb__mt_promise(stream->session, direction, plb__mt_is_worth(stream, direction));
}

/* Only close_notify ends a side of a TLS stream; the transport stays open for alerts until close. */
static plb_status plb__mt_shutdown(void *self, plb_stream *handle)
{
    plb__mt_stream *stream = plb__mt_stream_of(handle);
    const plb_io *below = stream->tls->below;
    plb__mt_session *session = stream->session;
    plb_status status;
    (void)self;
    if (session == NULL)
        return below->shutdown(below->self, stream->below);
    session->farewell = true; /* in the midst of the handshake: it follows */
    status = session->ready ? plb__mt_send_out(session) : session->broken;
    return status == PLB_OK || status == PLB_AGAIN ? PLB_OK : PLB_ERR_RESET;
}

/* Closed, with something to send: goes on by itself, up to a number of such streams. */
static void plb__mt_keep(plb__mt_stream *stream)
{
    plb_mbedtls *tls = stream->tls;
    plb__mt_stream *oldest = tls->lingering;
    plb__mt_unlink(&tls->streams, stream);
    plb__mt_link(&tls->lingering, stream);
    stream->lingers = true;
    if (++tls->lingering_count <= tls->lingering_max || oldest == NULL)
        return;
    while (oldest->next != NULL)
        oldest = oldest->next;
    plb__mt_close_below(oldest, PLB_CLOSE_ABORT);
}

static void plb__mt_close(void *self, plb_stream *handle, plb_close_how how)
{
    plb__mt_stream *stream = plb__mt_stream_of(handle);
    plb__mt_session *session = stream->session;
    (void)self;
    if (session != NULL && session->ready && how == PLB_CLOSE_GRACEFUL) {
        session->farewell = true;
        if (plb__mt_send_out(session) == PLB_AGAIN) {
            if (stream->gone != NULL)
                *stream->gone = true;
            stream->gone = NULL;
            plb__mt_keep(stream);
            return;
        }
    }
    plb__mt_close_below(stream, how);
}

static plb_status plb__mt_info(void *self, plb_stream *handle, plb_stream_info *out)
{
    plb__mt_stream *stream = plb__mt_stream_of(handle);
    const plb_io *below = stream->tls->below;
    plb__mt_session *session = stream->session;
    plb_status status = below->info(below->self, stream->below, out);
    (void)self;
    if (session == NULL)
        return status;
    out->tls_reason = session->reason[0] != '\0' ? session->reason : NULL;
    if (!session->ready)
        return status;
    out->tls_version = mbedtls_ssl_get_version(&session->ssl);
    out->alpn = session->profile->alpn != NULL ? mbedtls_ssl_get_alpn_protocol(&session->ssl) : NULL;
    out->tls_resumed = session->resumed;
    return status;
}

static void plb__mt_wake(void *self)
{
    const plb_io *below = ((plb_mbedtls *)self)->below;
    below->wake(below->self);
}

/* ==== PORT ======================================================================================================== */

static void plb__mt_fill_table(plb_mbedtls *tls)
{
    tls->io.self = tls;
    tls->io.connect = plb__mt_connect;
    tls->io.read = plb__mt_read;
    tls->io.write = plb__mt_write;
    tls->io.watch = plb__mt_watch;
    tls->io.shutdown = plb__mt_shutdown;
    tls->io.close = plb__mt_close;
    tls->io.info = plb__mt_info;
    tls->io.listen = plb__mt_listen;
    tls->io.accept = plb__mt_accept;
    tls->io.wake = tls->below->wake != NULL ? plb__mt_wake : NULL;
}

static plb_status plb__mt_open_random(plb_mbedtls *tls)
{
    int error;
#ifdef PLB__MT_PSA
    psa_status_t psa = psa_crypto_init();
    if (psa != PSA_SUCCESS)
        return psa == PSA_ERROR_INSUFFICIENT_MEMORY ? PLB_ERR_MEMORY : PLB_ERR_IO;
#endif
    error = mbedtls_ctr_drbg_seed(&tls->random, mbedtls_entropy_func, &tls->entropy, NULL, 0);
    if (error == 0)
        return PLB_OK;
    return plb__mt_is_memory(error) ? PLB_ERR_MEMORY : PLB_ERR_IO;
}

static plb_status plb__mt_open(plb_mbedtls *tls, const plb_mbedtls_desc *desc)
{
    plb_status status = plb__mt_open_random(tls);
    if (status != PLB_OK)
        return status;
    if (!desc->no_sessions) {
        uint32_t count = desc->sessions != 0 ? desc->sessions : PLB__MT_SESSIONS;
        tls->saved = (plb__mt_saved *)plb__mt_new(&tls->allocator, count * sizeof *tls->saved);
        if (tls->saved == NULL)
            return PLB_ERR_MEMORY;
        tls->saved_max = count;
    }
    return plb_mbedtls_credentials(tls, &desc->identity, &tls->credentials);
}

PLB_API plb_status plb_mbedtls_create(const plb_mbedtls_desc *desc, plb_mbedtls **out)
{
    plb_allocator allocator = plb_allocator_or_default(desc->allocator);
    plb_mbedtls *tls;
    plb_status status;
    *out = NULL;
    if (desc->io == NULL)
        return PLB_ERR_ARGUMENT;
    tls = (plb_mbedtls *)plb__mt_new(&allocator, sizeof *tls);
    if (tls == NULL)
        return PLB_ERR_MEMORY;
    tls->allocator = allocator;
    tls->below = desc->io;
    tls->no_sessions = desc->no_sessions;
    tls->lingering_max = desc->lingering != 0 ? desc->lingering : PLB__MT_LINGERING;
    plb__mt_fill_table(tls);
    mbedtls_entropy_init(&tls->entropy);
    mbedtls_ctr_drbg_init(&tls->random);
    status = plb__mt_open(tls, desc);
    if (status == PLB_OK)
        *out = tls;
    else
        plb_mbedtls_destroy(tls);
    return status;
}

PLB_API void plb_mbedtls_destroy(plb_mbedtls *tls)
{
    plb_allocator allocator;
    uint32_t i;
    if (tls == NULL)
        return;
    while (tls->streams != NULL)
        plb__mt_close_below(tls->streams, PLB_CLOSE_GRACEFUL);
    while (tls->lingering != NULL)
        plb__mt_close_below(tls->lingering, PLB_CLOSE_GRACEFUL);
    if (tls->credentials != NULL)
        plb__mt_credentials_leave(tls->credentials);
    for (i = 0; i < tls->saved_max; i++)
        plb__mt_saved_clear(tls, &tls->saved[i]);
    allocator = tls->allocator;
    plb__mt_delete(&allocator, tls->saved, tls->saved_max * sizeof *tls->saved);
    mbedtls_ctr_drbg_free(&tls->random);
    mbedtls_entropy_free(&tls->entropy);
    plb__mt_delete(&allocator, tls, sizeof *tls);
}

PLB_API const plb_io *plb_mbedtls_io(const plb_mbedtls *tls)
{
    return &tls->io;
}

#endif /* PLB__MBEDTLS_IMPLEMENTED */
#endif /* PLB_MBEDTLS_IMPLEMENTATION */
