/* Fuzzes the reader of gRPC's health answers. The first byte says where the rest is cut in two; the rest is the body.
   What must hold for any bytes: that it comes in two parts, or byte by byte, makes no difference, and a status that is
   read can be read alone.

   Built with -fsanitize=fuzzer,address,undefined; with main.c and no fuzzer, a program that runs files. */
#include "../../pingora_lb.h"

#include <stdio.h>
#include <stdlib.h>

#define REQUIRE(condition)                                                                                             \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                            \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The first `cut` bytes, then pieces of `step`; each from a copy of exactly that size. */
static plb_status read_all(const uint8_t *data, size_t size, size_t cut, size_t step, uint32_t *serving)
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
        memcpy(copy, data + at, piece);
        status = plb_grpc_health_next(&reader, copy, piece);
        free(copy);
        at += piece;
        piece = step;
    }
    *serving = reader.serving;
    return status;
}

static void require_same_alone(uint32_t serving)
{
    uint8_t message[11] = {0, 0, 0, 0, 6, 8};
    uint32_t again, i;
    for (i = 0; i < 5; i++)
        message[6 + i] = (uint8_t)((serving >> 7 * i & 0x7f) | (i < 4 ? 0x80 : 0));
    REQUIRE(read_all(message, sizeof message, 0, 1, &again) == PLB_OK && again == serving);
    REQUIRE(plb_grpc_serving_name(serving)[0] != '\0' && plb_grpc_status_name(serving)[0] != '\0');
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint32_t serving, again;
    plb_status status;
    if (size < 2)
        return 0;
    status = read_all(data + 1, size - 1, size, size, &serving);
    REQUIRE(status == read_all(data + 1, size - 1, data[0], size, &again) && (status != PLB_OK || again == serving));
    REQUIRE(status == read_all(data + 1, size - 1, 1, 1, &again) && (status != PLB_OK || again == serving));
    if (status == PLB_OK)
        require_same_alone(serving);
    return 0;
}
