/* Fuzzes header compression. The first byte is the memory, the second where the rest is cut in two; the rest are
   blocks, each a length of one byte and its bytes. What must hold for any bytes: fields lie inside the memory or are
   constants, the table keeps to its size, bytes that come in two parts mean the same as at once, and what was read can
   be written and read again.

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

static bool same(plb_text a, plb_text b)
{
    return a.size == b.size && (a.size == 0 || memcmp(a.data, b.data, a.size) == 0);
}

static void add(uint64_t *hash, plb_text text)
{
    size_t i;
    for (i = 0; i < text.size; i++)
        *hash = (*hash ^ (uint8_t)text.data[i]) * 1099511628211u;
    *hash = (*hash ^ text.size) * 1099511628211u;
}

static void require_round_trip(const plb_hpack_field *field)
{
    char bytes[1024], memory[4096];
    plb_hpack hpack;
    plb_hpack_field again;
    size_t used, size = plb_hpack_write(bytes, sizeof bytes, field->name, field->value);
    REQUIRE(size <= sizeof bytes && plb_hpack_open(&hpack, memory, sizeof memory) == PLB_OK);
    REQUIRE(plb_hpack_next(&hpack, bytes, size, &used, &again) == PLB_OK && used == size);
    REQUIRE(same(again.name, field->name) && same(again.value, field->value) && !again.cut);
    REQUIRE(plb_hpack_end(&hpack) == PLB_OK);
}

static void check(const plb_hpack *hpack, const plb_hpack_field *field)
{
    REQUIRE(hpack->counted <= hpack->table_size && hpack->counted <= hpack->peer_size);
    REQUIRE(hpack->stored + 28 * hpack->entries == hpack->counted);
    REQUIRE(field->size >= field->name.size + field->value.size + 32);
    REQUIRE(field->cut == (field->size > field->name.size + field->value.size + 32));
    require_round_trip(field);
}

/* One block in pieces of `step` bytes at most; the last status. */
static plb_status read_block(plb_hpack *hpack, const char *bytes, size_t size, size_t step, uint64_t *hash)
{
    plb_status status = PLB_AGAIN;
    size_t at = 0;
    while (at < size) {
        size_t piece = size - at < step ? size - at : step, used;
        plb_hpack_field field;
        status = plb_hpack_next(hpack, bytes + at, piece, &used, &field);
        REQUIRE(used <= piece && (status != PLB_AGAIN || used == piece));
        if (status == PLB_OK) {
            check(hpack, &field);
            add(hash, field.name);
            add(hash, field.value);
        } else if (status != PLB_AGAIN) {
            return status;
        }
        at += used;
    }
    return plb_hpack_end(hpack);
}

static plb_status read_blocks(size_t memory_size, const uint8_t *data, size_t size, size_t step, uint64_t *hash)
{
    char *memory = (char *)malloc(memory_size);
    plb_hpack hpack;
    plb_status status = plb_hpack_open(&hpack, memory, memory_size);
    size_t at = 0, block = 0;
    *hash = 14695981039346656037u;
    for (; status == PLB_OK && at < size; block++) {
        size_t length = data[at++];
        char *copy;
        if (length > size - at)
            length = size - at;
        copy = (char *)malloc(length ? length : 1);
        memcpy(copy, data + at, length);
        if (block == 1)
            plb_hpack_acknowledged(&hpack);
        status = read_block(&hpack, copy, length, step, hash);
        free(copy);
        at += length;
    }
    free(memory);
    return status;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint64_t hash, hash_again;
    plb_status status;
    if (size < 2)
        return 0;
    status = read_blocks(64 + 2 * (size_t)data[0], data + 2, size - 2, 256, &hash);
    REQUIRE(status == read_blocks(64 + 2 * (size_t)data[0], data + 2, size - 2, 1 + data[1] % 16, &hash_again));
    REQUIRE(hash == hash_again);
    return 0;
}
