/* Any bytes as an agent's line: nothing is read past them, the letter case, what follows the line's end and words that
   are not known make no difference, and of two words that speak of the same thing the last one counts. */
#include "../../pingora_lb.h"

#include <stdlib.h>

#define REQUIRE(condition)                                                                                             \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            __builtin_trap();                                                                                          \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Parses bytes with a text behind them, from memory that is no longer. */
static plb_status parse(plb_agent_answer *out, const char *bytes, size_t size, const char *more)
{
    size_t extra = strlen(more);
    char *line = (char *)malloc(size + extra > 0 ? size + extra : 1);
    plb_status status;
    if (line == NULL)
        abort();
    if (size > 0)
        memcpy(line, bytes, size);
    memcpy(line + size, more, extra);
    status = plb_agent_parse(out, line, size + extra);
    free(line);
    return status;
}

static bool same(const plb_agent_answer *a, const plb_agent_answer *b)
{
    return a->verdict == b->verdict && a->enablement == b->enablement && a->has_share == b->has_share &&
           a->share == b->share;
}

static bool is_silent(const plb_agent_answer *a)
{
    return a->verdict == PLB_AGENT_SILENT && a->enablement == PLB_ENABLEMENT_KEEP && !a->has_share && a->share == 0;
}

static void flip_case(char *bytes, size_t size)
{
    size_t i;
    for (i = 0; i < size; i++)
        if ((bytes[i] >= 'a' && bytes[i] <= 'z') || (bytes[i] >= 'A' && bytes[i] <= 'Z'))
            bytes[i] = (char)(bytes[i] ^ 0x20);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *bytes = (const char *)data;
    plb_agent_answer first, again;
    plb_status status = parse(&first, bytes, size, "");
    size_t line = 0;
    char *copy;
    REQUIRE(status == PLB_OK || status == PLB_ERR_ANSWER);
    REQUIRE(status == PLB_OK || is_silent(&first));
    while (line < size && bytes[line] != '\r' && bytes[line] != '\n' && bytes[line] != '#')
        line++;
    REQUIRE(parse(&again, bytes, line, "") == status && same(&first, &again));
    REQUIRE(parse(&again, bytes, line, "\ndown drain 7%") == status && same(&first, &again));
    REQUIRE(parse(&again, bytes, line, "#down drain 7%") == status && same(&first, &again));
    REQUIRE(parse(&again, bytes, line, ",unknown") == status && same(&first, &again));
    REQUIRE(parse(&again, bytes, line, " down,drain\t40% up ready 20%") == PLB_OK);
    REQUIRE(again.verdict == PLB_AGENT_UP && again.enablement == PLB_ENABLEMENT_ON && again.share == 51);

    copy = (char *)malloc(size > 0 ? size : 1);
    if (copy == NULL)
        abort();
    if (size > 0)
        memcpy(copy, bytes, size);
    flip_case(copy, size);
    REQUIRE(plb_agent_parse(&again, copy, size) == status && same(&first, &again));
    free(copy);
    return 0;
}
