/* Any text: it is refused, or it is an address that is written and read back as itself. */
#include "../../pingora_lb.h"

#define REQUIRE(condition)                                                                                             \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            __builtin_trap();                                                                                          \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_address(const char *text, size_t length)
{
    char written[PLB_ADDR_TEXT_MAX], again[PLB_ADDR_TEXT_MAX];
    plb_addr first, second;
    size_t written_length;
    if (plb_addr_parse(&first, text, length) != PLB_OK)
        return;
    written_length = plb_addr_format(&first, written, sizeof written);
    REQUIRE(written_length < sizeof written && written[written_length] == '\0');
    REQUIRE(plb_addr_parse(&second, written, written_length) == PLB_OK);
    REQUIRE(memcmp(&first, &second, sizeof first) == 0);
    REQUIRE(plb_addr_compare(&first, &second) == 0 && plb_addr_hash(&first) == plb_addr_hash(&second));
    REQUIRE(plb_addr_format(&second, again, sizeof again) == written_length);
    REQUIRE(memcmp(written, again, written_length + 1) == 0);
}

static void check_backend(const char *text, size_t length)
{
    char name[256];
    plb_backend backend;
    plb_addr addr;
    bool is_address = plb_addr_parse(&addr, text, length) == PLB_OK;
    if (plb_backend_parse(&backend, text, length, name) != PLB_OK) {
        REQUIRE(!is_address);
        return;
    }
    REQUIRE(backend.weight == 1 && backend.ext == NULL);
    if (is_address) {
        REQUIRE(backend.name == NULL && plb_addr_compare(&addr, &backend.addr) == 0);
        return;
    }
    REQUIRE(backend.name == name && backend.addr.family == PLB_FAMILY_NONE && backend.addr.port != 0);
    REQUIRE(strlen(name) <= 253 && strlen(name) < length && memcmp(name, text, strlen(name)) == 0);
    REQUIRE(text[strlen(name)] == ':');
    REQUIRE(plb_backend_parse(&backend, text, length, NULL) == PLB_ERR_ADDRESS);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    check_address((const char *)data, size);
    check_backend((const char *)data, size);
    return 0;
}
