/* tls_certificates.h - certificates for tests, made when they are needed: ECDSA on P-256, SHA-256. Test code.

       tls_certificate ca, server;
       tls_certify(&ca, &(...){"CN=Test CA", NULL, ...}) and so on: see tls_wish. Without success the program ends. */
#ifndef TLS_CERTIFICATES_H
#define TLS_CERTIFICATES_H

#include <mbedtls/ctr_drbg.h>
#include <mbedtls/entropy.h>
#include <mbedtls/oid.h>
#include <mbedtls/pk.h>
#include <mbedtls/version.h>
#include <mbedtls/x509_crt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct tls_certificate {
    char subject[64];
    char pem[2048], key[1024];
} tls_certificate;

/* What a certificate is to be like. */
typedef struct tls_wish {
    const char *subject;           /* "CN=..." */
    const tls_certificate *issuer; /* NULL: it vouches for itself */
    bool authority;
    const char *dns[3];       /* names, NULL at the end */
    const unsigned char *ip;  /* or NULL */
    size_t ip_size;           /* 4 or 16 */
    const char *from, *until; /* "YYYYMMDDhhmmss"; NULL: from 2020 to 2099 */
} tls_wish;

static inline void tls__must(int error, const char *what)
{
    if (error == 0)
        return;
    fprintf(stderr, "tls_certificates: %s: -0x%04x\n", what, (unsigned)-error);
    abort();
}

/* RFC 5280 section 4.2.1.6: a sequence of names, each with its kind as its tag; all of them are short here. */
static inline size_t tls__names(const tls_wish *wish, unsigned char *out)
{
    size_t i, size = 2;
    for (i = 0; i < 3 && wish->dns[i] != NULL; i++) {
        size_t length = strlen(wish->dns[i]);
        out[size] = 0x82;
        out[size + 1] = (unsigned char)length;
        memcpy(out + size + 2, wish->dns[i], length);
        size += 2 + length;
    }
    if (wish->ip != NULL) {
        out[size] = 0x87;
        out[size + 1] = (unsigned char)wish->ip_size;
        memcpy(out + size + 2, wish->ip, wish->ip_size);
        size += 2 + wish->ip_size;
    }
    out[0] = 0x30;
    out[1] = (unsigned char)(size - 2);
    return size;
}

static inline void tls__sign(tls_certificate *out, const tls_wish *wish, mbedtls_pk_context *key,
                             mbedtls_pk_context *issuer_key, mbedtls_ctr_drbg_context *random)
{
    static unsigned char serial = 1;
    mbedtls_x509write_cert cert;
    unsigned char names[128];
    size_t size = tls__names(wish, names);
    mbedtls_x509write_crt_init(&cert);
    mbedtls_x509write_crt_set_version(&cert, MBEDTLS_X509_CRT_VERSION_3);
    mbedtls_x509write_crt_set_md_alg(&cert, MBEDTLS_MD_SHA256);
    mbedtls_x509write_crt_set_subject_key(&cert, key);
    mbedtls_x509write_crt_set_issuer_key(&cert, issuer_key);
    tls__must(mbedtls_x509write_crt_set_subject_name(&cert, wish->subject), "subject");
    tls__must(mbedtls_x509write_crt_set_issuer_name(&cert, wish->issuer ? wish->issuer->subject : wish->subject),
              "issuer");
    tls__must(mbedtls_x509write_crt_set_validity(&cert, wish->from ? wish->from : "20200101000000",
                                                 wish->until ? wish->until : "20991231235959"),
              "validity");
    tls__must(mbedtls_x509write_crt_set_basic_constraints(&cert, wish->authority, -1), "constraints");
    if (size > 2)
        tls__must(mbedtls_x509write_crt_set_extension(&cert, MBEDTLS_OID_SUBJECT_ALT_NAME,
                                                      MBEDTLS_OID_SIZE(MBEDTLS_OID_SUBJECT_ALT_NAME), 0, names, size),
                  "names");
#if MBEDTLS_VERSION_NUMBER >= 0x03040000
    tls__must(mbedtls_x509write_crt_set_serial_raw(&cert, &serial, 1), "serial");
#else
    mbedtls_mpi number;
    mbedtls_mpi_init(&number);
    tls__must(mbedtls_mpi_lset(&number, serial), "serial");
    tls__must(mbedtls_x509write_crt_set_serial(&cert, &number), "serial");
    mbedtls_mpi_free(&number);
#endif
    serial++;
    tls__must(
        mbedtls_x509write_crt_pem(&cert, (unsigned char *)out->pem, sizeof out->pem, mbedtls_ctr_drbg_random, random),
        "signature");
    mbedtls_x509write_crt_free(&cert);
}

static inline void tls_certify(tls_certificate *out, const tls_wish *wish)
{
    mbedtls_entropy_context entropy;
    mbedtls_ctr_drbg_context random;
    mbedtls_pk_context key, issuer_key;
    mbedtls_entropy_init(&entropy);
    mbedtls_ctr_drbg_init(&random);
    mbedtls_pk_init(&key);
    mbedtls_pk_init(&issuer_key);
    tls__must(mbedtls_ctr_drbg_seed(&random, mbedtls_entropy_func, &entropy, NULL, 0), "random numbers");
    tls__must(mbedtls_pk_setup(&key, mbedtls_pk_info_from_type(MBEDTLS_PK_ECKEY)), "key");
    tls__must(mbedtls_ecp_gen_key(MBEDTLS_ECP_DP_SECP256R1, mbedtls_pk_ec(key), mbedtls_ctr_drbg_random, &random),
              "key");
    tls__must(mbedtls_pk_write_key_pem(&key, (unsigned char *)out->key, sizeof out->key), "key");
    snprintf(out->subject, sizeof out->subject, "%s", wish->subject);
    if (wish->issuer != NULL) {
        const unsigned char *pem = (const unsigned char *)wish->issuer->key;
#if MBEDTLS_VERSION_MAJOR >= 3
        tls__must(mbedtls_pk_parse_key(&issuer_key, pem, strlen(wish->issuer->key) + 1, NULL, 0,
                                       mbedtls_ctr_drbg_random, &random),
                  "issuer's key");
#else
        tls__must(mbedtls_pk_parse_key(&issuer_key, pem, strlen(wish->issuer->key) + 1, NULL, 0), "issuer's key");
#endif
    }
    tls__sign(out, wish, &key, wish->issuer != NULL ? &issuer_key : &key, &random);
    mbedtls_pk_free(&issuer_key);
    mbedtls_pk_free(&key);
    mbedtls_ctr_drbg_free(&random);
    mbedtls_entropy_free(&entropy);
}

#endif
