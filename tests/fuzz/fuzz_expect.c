/* Fuzzes the answers that checks wait for. The first bytes choose the judge, the limit, how long the expected bytes and
   the closing ones are, and how large the portions that the answer comes in; then come those bytes, and the answer.
   What must hold: nothing outside of the answer is looked at; whatever the portions, the result is the same, and comes
   no later; it is what a reader of the manual would say; and what a failure says is printable and fits. */
#define PINGORA_LB_IMPLEMENTATION
#include "../../pingora_lb.h"

#include <stdlib.h>

#define REQUIRE(condition)                                                                                             \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            __builtin_trap();                                                                                          \
    } while (0)

#define HEADER 5

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct result {
    plb_status status;
    size_t used; /* PLB_OK: the answer */
    size_t seen; /* bytes that had come when it was known */
} result;

static void require_text(const char *text)
{
    size_t i;
    for (i = 0; text[i] != '\0'; i++)
        REQUIRE(i + 1 < PLB_REPORT_TEXT && text[i] >= 0x20 && text[i] < 0x7f);
}

static result match(const plb_expect_step *step, const uint8_t *answer, size_t size, size_t limit)
{
    char *bytes = (char *)malloc(size); /* no longer, so that a read past the end is seen */
    char why[PLB_REPORT_TEXT] = "";
    result r;
    if (bytes == NULL)
        abort();
    memcpy(bytes, answer, size);
    r.used = 0;
    r.seen = size;
    r.status = plb__expect_match(step, bytes, size, limit, &r.used, why);
    REQUIRE(r.status == PLB_OK || r.status == PLB_AGAIN || r.status == PLB_ERR_ANSWER);
    REQUIRE(r.status != PLB_OK || (r.used > 0 && r.used <= size && r.used <= limit));
    REQUIRE(r.status != PLB_AGAIN || size < limit);
    require_text(why);
    free(bytes);
    return r;
}

/* The answer in portions, as an exchange lends it: from its beginning each time. */
static result match_in_portions(const plb_expect_step *step, const uint8_t *answer, size_t size, size_t limit,
                                size_t portion)
{
    result r;
    size_t at = 0;
    do {
        at = size - at > portion ? at + portion : size;
        r = match(step, answer, at, limit);
    } while (r.status == PLB_AGAIN && at < size);
    return r;
}

static size_t find(const uint8_t *bytes, size_t size, const void *what, size_t what_size)
{
    size_t at;
    for (at = 0; at + what_size <= size; at++)
        if (memcmp(bytes + at, what, what_size) == 0)
            return at + what_size;
    return 0;
}

/* What the manual says of prefix and substring: where the answer ends, or 0. */
static size_t by_the_book(const plb_expect_step *step, const uint8_t *answer, size_t size, size_t limit)
{
    size_t end, more;
    if (size > limit)
        size = limit;
    end = find(answer, size, step->expect, step->expect_size);
    if (step->kind == PLB_EXPECT_PREFIX && end != step->expect_size)
        end = 0;
    if (end == 0 || step->until_size == 0)
        return end;
    more = find(answer + end, size - end, step->until, step->until_size);
    return more > 0 ? end + more : 0;
}

static void check_portions(const plb_expect_step *step, const uint8_t *answer, size_t size, size_t limit,
                           size_t portion)
{
    result at_once = match(step, answer, size, limit);
    result in_portions = match_in_portions(step, answer, size, limit, portion);
    REQUIRE(in_portions.seen <= size);
    if (step->judge == NULL && step->kind == PLB_EXPECT_EXACT) {
        bool begins = size >= step->expect_size && memcmp(answer, step->expect, step->expect_size) == 0;
        REQUIRE((at_once.status == PLB_OK) == (begins && size == step->expect_size));
        REQUIRE(at_once.status != PLB_OK || in_portions.status == PLB_OK);
        REQUIRE(in_portions.status != PLB_OK || begins);
        return;
    }
    REQUIRE(at_once.status == in_portions.status && at_once.used == in_portions.used);
    if (step->judge == NULL)
        REQUIRE(by_the_book(step, answer, size, limit) == (at_once.status == PLB_OK ? at_once.used : 0));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const plb_expect_fn judges[] = {plb__smtp_judge, plb__mysql_judge, plb__postgres_judge};
    const uint8_t *rest = data + HEADER;
    plb_expect_step step;
    size_t limit, portion;
    char line[PLB_REPORT_TEXT];
    plb__text text = plb__text_in(line, sizeof line);
    if (size <= HEADER)
        return 0;
    memset(&step, 0, sizeof step);
    limit = 1 + data[1];
    portion = 1 + data[2] % 16;
    size -= HEADER;
    if (data[0] % 6 < 3) {
        step.judge = judges[data[0] % 6];
    } else {
        step.kind = (plb_expect_kind)(data[0] % 6 - 3);
        step.expect_size = data[3] % 8;
        step.until_size = data[4] % 4;
        if (step.expect_size == 0 || step.expect_size + step.until_size >= size)
            return 0;
        step.expect = rest;
        step.until = step.until_size > 0 ? rest + step.expect_size : NULL;
        rest += step.expect_size + step.until_size;
        size -= step.expect_size + step.until_size;
        if (!plb__expect_makes_sense(&step, limit, false))
            return 0;
    }
    check_portions(&step, rest, size, limit, portion);
    plb__put_quoted(&text, (const char *)rest, size, 3 + data[3] % 70);
    REQUIRE(text.length < sizeof line && text.length <= 5u + data[3] % 70);
    require_text(line);
    return 0;
}
