/* greatest.h - the part of the greatest test library's interface that these tests use.

   A stand-in written from the interface alone: the same names, meaning, command line, summary lines and exit status,
   so that the greatest.h of github.com/silentbicycle/greatest can take its place unchanged.

       #include "greatest.h"

       TEST one_and_one_is_two(void)
       {
           ASSERT_EQ_FMT(2, 1 + 1, "%d");
           PASS();
       }

       SUITE(arithmetic)
       {
           RUN_TEST(one_and_one_is_two);
       }

       GREATEST_MAIN_DEFS();

       int main(int argc, char **argv)
       {
           GREATEST_MAIN_BEGIN();
           RUN_SUITE(arithmetic);
           GREATEST_MAIN_END();
       }

   A test leaves through PASS, FAIL, SKIP or a failed assertion, each of which returns. An assertion whose name ends in
   m takes a message first. In comparisons the expected value comes before the one that was got; arguments of a
   _FMT assertion are evaluated a second time when it fails. A suite's setup and teardown end with the suite.
   main returns EXIT_FAILURE if any test failed. */
#ifndef GREATEST_H
#define GREATEST_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifndef GREATEST_STDOUT
#define GREATEST_STDOUT stdout
#endif
#ifndef GREATEST_FPRINTF
#define GREATEST_FPRINTF fprintf
#endif
#ifndef GREATEST_DEFAULT_WIDTH
#define GREATEST_DEFAULT_WIDTH 72 /* dots in a row of passed tests */
#endif
#ifndef GREATEST_USE_ABBREVS
#define GREATEST_USE_ABBREVS 1
#endif

/* ==== STATE ======================================================================================================= */

typedef enum greatest_test_res {
    GREATEST_TEST_RES_PASS = 0,
    GREATEST_TEST_RES_FAIL = -1,
    GREATEST_TEST_RES_SKIP = 1
} greatest_test_res;

typedef void greatest_suite_cb(void);
typedef void greatest_setup_cb(void *udata);
typedef void greatest_teardown_cb(void *udata);

/* What greatest_get_report fills: counts since GREATEST_INIT. */
struct greatest_report_t {
    unsigned int passed;
    unsigned int failed;
    unsigned int skipped;
    unsigned int assertions;
};

typedef struct greatest_run_info {
    struct greatest_report_t total;
    clock_t begin;
    unsigned int column;

    /* the test that runs, or ran last */
    const char *fail_file;
    unsigned int fail_line;
    const char *msg;
    clock_t test_begin;

    /* the suite that runs */
    greatest_setup_cb *setup;
    void *setup_udata;
    greatest_teardown_cb *teardown;
    void *teardown_udata;

    /* the command line */
    int verbose, list_only, first_fail, abort_on_fail, exact;
    const char *suite_filter, *test_filter, *test_exclude;
} greatest_run_info;

extern greatest_run_info greatest_info; /* GREATEST_MAIN_DEFS defines it */

/* ==== RUNNER ====================================================================================================== */

/* Does `name` pass a filter of the command line? No filter lets everything through. */
static inline int greatest_name_match(const char *name, const char *filter, int exact)
{
    if (filter == NULL)
        return 1;
    return exact ? strcmp(name, filter) == 0 : strstr(name, filter) != NULL;
}

/* Has -f ended the run? */
static inline int greatest_stopped(void)
{
    return greatest_info.first_fail && greatest_info.total.failed > 0;
}

static inline void greatest_end_row(void)
{
    if (greatest_info.column != 0)
        GREATEST_FPRINTF(GREATEST_STDOUT, "\n");
    greatest_info.column = 0;
}

static inline void greatest_print_time(clock_t begin)
{
    clock_t ticks = clock() - begin;
    GREATEST_FPRINTF(GREATEST_STDOUT, " (%lu ticks, %.3f sec)", (unsigned long)ticks,
                     (double)ticks / (double)CLOCKS_PER_SEC);
}

/* Is the test to run? Then its setup has been called. */
static inline int greatest_test_pre(const char *name)
{
    greatest_run_info *g = &greatest_info;
    if (!greatest_name_match(name, g->test_filter, g->exact) || greatest_stopped() ||
        (g->test_exclude != NULL && greatest_name_match(name, g->test_exclude, g->exact)))
        return 0;
    if (g->list_only) {
        GREATEST_FPRINTF(GREATEST_STDOUT, "  %s\n", name);
        return 0;
    }
    g->msg = NULL;
    g->fail_file = NULL;
    g->fail_line = 0;
    if (g->setup)
        g->setup(g->setup_udata);
    g->test_begin = clock();
    return 1;
}

/* One line for a test, or one letter in the row where nothing is to be said about it. */
static inline void greatest_print_result(const char *name, const char *word, char letter, int line)
{
    greatest_run_info *g = &greatest_info;
    if (!line) {
        GREATEST_FPRINTF(GREATEST_STDOUT, "%c", letter);
        if (++g->column % GREATEST_DEFAULT_WIDTH == 0)
            greatest_end_row();
        return;
    }
    greatest_end_row();
    GREATEST_FPRINTF(GREATEST_STDOUT, "%s %s", word, name);
    if (g->verbose)
        greatest_print_time(g->test_begin);
    GREATEST_FPRINTF(GREATEST_STDOUT, ": %s", g->msg ? g->msg : "");
    if (g->fail_file)
        GREATEST_FPRINTF(GREATEST_STDOUT, " (%s:%u)", g->fail_file, g->fail_line);
    GREATEST_FPRINTF(GREATEST_STDOUT, "\n");
}

static inline void greatest_test_post(const char *name, int res)
{
    greatest_run_info *g = &greatest_info;
    if (g->teardown)
        g->teardown(g->teardown_udata);
    if (res == GREATEST_TEST_RES_PASS) {
        g->total.passed++;
        greatest_print_result(name, "PASS", '.', g->verbose);
    } else if (res == GREATEST_TEST_RES_SKIP) {
        g->total.skipped++;
        greatest_print_result(name, "SKIP", 's', g->verbose);
    } else {
        g->total.failed++;
        greatest_print_result(name, "FAIL", 'F', 1);
    }
    fflush(GREATEST_STDOUT); /* so that a crash in the next test does not swallow what this one said */
}

static inline unsigned int greatest_tests_run(const struct greatest_report_t *report)
{
    return report->passed + report->failed + report->skipped;
}

static inline void greatest_run_suite(greatest_suite_cb *suite, const char *name)
{
    greatest_run_info *g = &greatest_info;
    struct greatest_report_t before = g->total;
    clock_t begin = clock();
    unsigned int run;
    if (!greatest_name_match(name, g->suite_filter, g->exact) || greatest_stopped())
        return;
    greatest_end_row();
    GREATEST_FPRINTF(GREATEST_STDOUT, "\n* Suite %s:\n", name);
    suite();
    greatest_end_row();
    run = greatest_tests_run(&g->total) - greatest_tests_run(&before);
    if (run > 0) {
        GREATEST_FPRINTF(GREATEST_STDOUT, "%u test%s - %u passed, %u failed, %u skipped", run, run == 1 ? "" : "s",
                         g->total.passed - before.passed, g->total.failed - before.failed,
                         g->total.skipped - before.skipped);
        greatest_print_time(begin);
        GREATEST_FPRINTF(GREATEST_STDOUT, "\n");
    }
    g->setup = NULL;
    g->setup_udata = NULL;
    g->teardown = NULL;
    g->teardown_udata = NULL;
}

static inline void GREATEST_SET_SETUP_CB(greatest_setup_cb *cb, void *udata)
{
    greatest_info.setup = cb;
    greatest_info.setup_udata = udata;
}

static inline void GREATEST_SET_TEARDOWN_CB(greatest_teardown_cb *cb, void *udata)
{
    greatest_info.teardown = cb;
    greatest_info.teardown_udata = udata;
}

static inline void greatest_get_report(struct greatest_report_t *report)
{
    if (report)
        *report = greatest_info.total;
}

static inline int greatest_all_passed(void)
{
    return greatest_info.total.failed == 0;
}

static inline void GREATEST_PRINT_REPORT(void)
{
    const struct greatest_report_t *total = &greatest_info.total;
    unsigned int run = greatest_tests_run(total);
    if (greatest_info.list_only)
        return;
    greatest_end_row();
    GREATEST_FPRINTF(GREATEST_STDOUT, "\nTotal: %u test%s", run, run == 1 ? "" : "s");
    greatest_print_time(greatest_info.begin);
    GREATEST_FPRINTF(GREATEST_STDOUT, ", %u assertion%s\n", total->assertions, total->assertions == 1 ? "" : "s");
    GREATEST_FPRINTF(GREATEST_STDOUT, "Pass: %u, fail: %u, skip: %u.\n", total->passed, total->failed, total->skipped);
}

/* ==== COMMAND LINE ================================================================================================ */

static inline void GREATEST_INIT(void)
{
    memset(&greatest_info, 0, sizeof greatest_info);
    greatest_info.begin = clock();
}

static inline void greatest_usage(const char *program)
{
    GREATEST_FPRINTF(GREATEST_STDOUT,
                     "usage: %s [-hlfave] [-s NAME] [-t NAME] [-x NAME]\n"
                     "  -h, --help  show this text\n"
                     "  -l          list the suites and tests, run none\n"
                     "  -f          end the run at the first failure\n"
                     "  -a          abort() at the first failure\n"
                     "  -v          a line for each test\n"
                     "  -s NAME     only suites whose name contains NAME\n"
                     "  -t NAME     only tests whose name contains NAME\n"
                     "  -x NAME     no tests whose name contains NAME\n"
                     "  -e          -s, -t and -x compare the whole name\n",
                     program);
}

static inline const char *greatest_option_value(int argc, char **argv, int *i)
{
    if (*i + 1 < argc)
        return argv[++*i];
    greatest_usage(argv[0]);
    exit(EXIT_FAILURE);
}

static inline void greatest_parse_flags(const char *program, const char *arg)
{
    greatest_run_info *g = &greatest_info;
    const char *flag;
    for (flag = arg + 1; *flag != '\0'; flag++) {
        switch (*flag) {
        case 'l':
            g->list_only = 1;
            break;
        case 'a':
            g->abort_on_fail = 1;
            g->first_fail = 1;
            break;
        case 'f':
            g->first_fail = 1;
            break;
        case 'v':
            g->verbose++;
            break;
        case 'e':
            g->exact = 1;
            break;
        case 'h':
            greatest_usage(program);
            exit(EXIT_SUCCESS);
        default:
            GREATEST_FPRINTF(GREATEST_STDOUT, "Unknown argument '%s'\n", arg);
            greatest_usage(program);
            exit(EXIT_FAILURE);
        }
    }
}

/* What follows "--" is the program's own. */
static inline void greatest_parse_options(int argc, char **argv)
{
    int i;
    for (i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], "--help") == 0)
            greatest_parse_flags(argv[0], "-h");
        else if (strcmp(argv[i], "-s") == 0)
            greatest_info.suite_filter = greatest_option_value(argc, argv, &i);
        else if (strcmp(argv[i], "-t") == 0)
            greatest_info.test_filter = greatest_option_value(argc, argv, &i);
        else if (strcmp(argv[i], "-x") == 0)
            greatest_info.test_exclude = greatest_option_value(argc, argv, &i);
        else if (argv[i][0] == '-' && argv[i][1] != '\0')
            greatest_parse_flags(argv[0], argv[i]);
        else {
            GREATEST_FPRINTF(GREATEST_STDOUT, "Unknown argument '%s'\n", argv[i]);
            greatest_usage(argv[0]);
            exit(EXIT_FAILURE);
        }
    }
}

#define GREATEST_MAIN_DEFS() greatest_run_info greatest_info

#define GREATEST_MAIN_BEGIN()                                                                                          \
    do {                                                                                                               \
        GREATEST_INIT();                                                                                               \
        greatest_parse_options(argc, argv);                                                                            \
    } while (0)

#define GREATEST_MAIN_END()                                                                                            \
    do {                                                                                                               \
        GREATEST_PRINT_REPORT();                                                                                       \
        return greatest_all_passed() ? EXIT_SUCCESS : EXIT_FAILURE;                                                    \
    } while (0)

/* ==== TESTS AND SUITES ============================================================================================ */

#define GREATEST_TEST static enum greatest_test_res

#define GREATEST_SUITE(NAME)                                                                                           \
    void NAME(void);                                                                                                   \
    void NAME(void)

#define GREATEST_SUITE_EXTERN(NAME) void NAME(void)

#define GREATEST_RUN_SUITE(NAME) greatest_run_suite(NAME, #NAME)

#define GREATEST__RUN(TEST, CALL)                                                                                      \
    do {                                                                                                               \
        if (greatest_test_pre(#TEST))                                                                                  \
            greatest_test_post(#TEST, CALL);                                                                           \
    } while (0)

#define GREATEST_RUN_TEST(TEST)       GREATEST__RUN(TEST, TEST())
#define GREATEST_RUN_TEST1(TEST, ENV) GREATEST__RUN(TEST, TEST(ENV))
#define GREATEST_RUN_TESTp(TEST, ...) GREATEST__RUN(TEST, TEST(__VA_ARGS__))

/* Runs a helper that returns as tests do, and passes on what is not a pass. */
#define GREATEST_CHECK_CALL(CALL)                                                                                      \
    do {                                                                                                               \
        enum greatest_test_res greatest_call_res = CALL;                                                               \
        if (greatest_call_res != GREATEST_TEST_RES_PASS)                                                               \
            return greatest_call_res;                                                                                  \
    } while (0)

/* ==== VERDICTS ==================================================================================================== */

#define GREATEST_PASSm(MSG)                                                                                            \
    do {                                                                                                               \
        greatest_info.msg = MSG;                                                                                       \
        return GREATEST_TEST_RES_PASS;                                                                                 \
    } while (0)

#define GREATEST_SKIPm(MSG)                                                                                            \
    do {                                                                                                               \
        greatest_info.msg = MSG;                                                                                       \
        return GREATEST_TEST_RES_SKIP;                                                                                 \
    } while (0)

#define GREATEST_FAILm(MSG)                                                                                            \
    do {                                                                                                               \
        greatest_info.fail_file = __FILE__;                                                                            \
        greatest_info.fail_line = (unsigned int)__LINE__;                                                              \
        greatest_info.msg = MSG;                                                                                       \
        if (greatest_info.abort_on_fail)                                                                               \
            abort();                                                                                                   \
        return GREATEST_TEST_RES_FAIL;                                                                                 \
    } while (0)

#define GREATEST_PASS() GREATEST_PASSm(NULL)
#define GREATEST_SKIP() GREATEST_SKIPm(NULL)
#define GREATEST_FAIL() GREATEST_FAILm(NULL)

/* ==== ASSERTIONS ================================================================================================== */

static inline int greatest_string_equal(const char *expected, const char *got)
{
    if (expected && got && strcmp(expected, got) == 0)
        return 1;
    greatest_end_row();
    GREATEST_FPRINTF(GREATEST_STDOUT, "Expected: \"%s\"\n     Got: \"%s\"\n", expected ? expected : "(null)",
                     got ? got : "(null)");
    return 0;
}

static inline int greatest_string_n_equal(const char *expected, const char *got, size_t size)
{
    int width = size > 10000 ? 10000 : (int)size;
    if (strncmp(expected, got, size) == 0)
        return 1;
    greatest_end_row();
    GREATEST_FPRINTF(GREATEST_STDOUT, "Expected: \"%.*s\"\n     Got: \"%.*s\"\n", width, expected, width, got);
    return 0;
}

static inline void greatest_print_bytes(const char *label, const unsigned char *bytes, size_t from, size_t size)
{
    size_t i;
    GREATEST_FPRINTF(GREATEST_STDOUT, "%s", label);
    for (i = from; i < size && i < from + 16; i++)
        GREATEST_FPRINTF(GREATEST_STDOUT, " %02x", bytes[i]);
    GREATEST_FPRINTF(GREATEST_STDOUT, "\n");
}

static inline int greatest_memory_equal(const void *expected, const void *got, size_t size)
{
    const unsigned char *e = (const unsigned char *)expected, *g = (const unsigned char *)got;
    size_t at = 0;
    while (at < size && e[at] == g[at])
        at++;
    if (at == size)
        return 1;
    greatest_end_row();
    GREATEST_FPRINTF(GREATEST_STDOUT, "First of %lu bytes to differ: %lu\n", (unsigned long)size, (unsigned long)at);
    greatest_print_bytes("Expected:", e, at, size);
    greatest_print_bytes("     Got:", g, at, size);
    return 0;
}

#define GREATEST_ASSERTm(MSG, COND)                                                                                    \
    do {                                                                                                               \
        greatest_info.total.assertions++;                                                                              \
        if (!(COND))                                                                                                   \
            GREATEST_FAILm(MSG);                                                                                       \
    } while (0)

#define GREATEST_ASSERT_FALSEm(MSG, COND) GREATEST_ASSERTm(MSG, !(COND))

#define GREATEST_ASSERT_EQm(MSG, EXP, GOT)  GREATEST_ASSERTm(MSG, (EXP) == (GOT))
#define GREATEST_ASSERT_NEQm(MSG, EXP, GOT) GREATEST_ASSERTm(MSG, (EXP) != (GOT))
#define GREATEST_ASSERT_GTm(MSG, EXP, GOT)  GREATEST_ASSERTm(MSG, (EXP) > (GOT))
#define GREATEST_ASSERT_GTEm(MSG, EXP, GOT) GREATEST_ASSERTm(MSG, (EXP) >= (GOT))
#define GREATEST_ASSERT_LTm(MSG, EXP, GOT)  GREATEST_ASSERTm(MSG, (EXP) < (GOT))
#define GREATEST_ASSERT_LTEm(MSG, EXP, GOT) GREATEST_ASSERTm(MSG, (EXP) <= (GOT))

#define GREATEST_ASSERT_EQ_FMTm(MSG, EXP, GOT, FMT)                                                                    \
    do {                                                                                                               \
        greatest_info.total.assertions++;                                                                              \
        if ((EXP) != (GOT)) {                                                                                          \
            greatest_end_row();                                                                                        \
            GREATEST_FPRINTF(GREATEST_STDOUT, "Expected: " FMT "\n     Got: " FMT "\n", EXP, GOT);                     \
            GREATEST_FAILm(MSG);                                                                                       \
        }                                                                                                              \
    } while (0)

#define GREATEST_ASSERT_STR_EQm(MSG, EXP, GOT)        GREATEST_ASSERTm(MSG, greatest_string_equal(EXP, GOT))
#define GREATEST_ASSERT_STRN_EQm(MSG, EXP, GOT, SIZE) GREATEST_ASSERTm(MSG, greatest_string_n_equal(EXP, GOT, SIZE))
#define GREATEST_ASSERT_MEM_EQm(MSG, EXP, GOT, SIZE)  GREATEST_ASSERTm(MSG, greatest_memory_equal(EXP, GOT, SIZE))

#define GREATEST_ASSERT(COND)                  GREATEST_ASSERTm(#COND, COND)
#define GREATEST_ASSERT_FALSE(COND)            GREATEST_ASSERT_FALSEm(#COND, COND)
#define GREATEST_ASSERT_EQ(EXP, GOT)           GREATEST_ASSERT_EQm(#EXP " != " #GOT, EXP, GOT)
#define GREATEST_ASSERT_NEQ(EXP, GOT)          GREATEST_ASSERT_NEQm(#EXP " == " #GOT, EXP, GOT)
#define GREATEST_ASSERT_GT(EXP, GOT)           GREATEST_ASSERT_GTm(#EXP " <= " #GOT, EXP, GOT)
#define GREATEST_ASSERT_GTE(EXP, GOT)          GREATEST_ASSERT_GTEm(#EXP " < " #GOT, EXP, GOT)
#define GREATEST_ASSERT_LT(EXP, GOT)           GREATEST_ASSERT_LTm(#EXP " >= " #GOT, EXP, GOT)
#define GREATEST_ASSERT_LTE(EXP, GOT)          GREATEST_ASSERT_LTEm(#EXP " > " #GOT, EXP, GOT)
#define GREATEST_ASSERT_EQ_FMT(EXP, GOT, FMT)  GREATEST_ASSERT_EQ_FMTm(#EXP " != " #GOT, EXP, GOT, FMT)
#define GREATEST_ASSERT_STR_EQ(EXP, GOT)       GREATEST_ASSERT_STR_EQm(#EXP " != " #GOT, EXP, GOT)
#define GREATEST_ASSERT_STRN_EQ(EXP, GOT, LEN) GREATEST_ASSERT_STRN_EQm(#EXP " != " #GOT, EXP, GOT, LEN)
#define GREATEST_ASSERT_MEM_EQ(EXP, GOT, LEN)  GREATEST_ASSERT_MEM_EQm(#EXP " != " #GOT, EXP, GOT, LEN)

/* ==== SHORT NAMES ================================================================================================= */

#if GREATEST_USE_ABBREVS
#define TEST            GREATEST_TEST
#define SUITE           GREATEST_SUITE
#define SUITE_EXTERN    GREATEST_SUITE_EXTERN
#define RUN_TEST        GREATEST_RUN_TEST
#define RUN_TEST1       GREATEST_RUN_TEST1
#define RUN_TESTp       GREATEST_RUN_TESTp
#define RUN_SUITE       GREATEST_RUN_SUITE
#define CHECK_CALL      GREATEST_CHECK_CALL
#define SET_SETUP       GREATEST_SET_SETUP_CB
#define SET_TEARDOWN    GREATEST_SET_TEARDOWN_CB
#define PASS            GREATEST_PASS
#define PASSm           GREATEST_PASSm
#define FAIL            GREATEST_FAIL
#define FAILm           GREATEST_FAILm
#define SKIP            GREATEST_SKIP
#define SKIPm           GREATEST_SKIPm
#define ASSERT          GREATEST_ASSERT
#define ASSERTm         GREATEST_ASSERTm
#define ASSERT_FALSE    GREATEST_ASSERT_FALSE
#define ASSERT_FALSEm   GREATEST_ASSERT_FALSEm
#define ASSERT_EQ       GREATEST_ASSERT_EQ
#define ASSERT_EQm      GREATEST_ASSERT_EQm
#define ASSERT_NEQ      GREATEST_ASSERT_NEQ
#define ASSERT_NEQm     GREATEST_ASSERT_NEQm
#define ASSERT_GT       GREATEST_ASSERT_GT
#define ASSERT_GTm      GREATEST_ASSERT_GTm
#define ASSERT_GTE      GREATEST_ASSERT_GTE
#define ASSERT_GTEm     GREATEST_ASSERT_GTEm
#define ASSERT_LT       GREATEST_ASSERT_LT
#define ASSERT_LTm      GREATEST_ASSERT_LTm
#define ASSERT_LTE      GREATEST_ASSERT_LTE
#define ASSERT_LTEm     GREATEST_ASSERT_LTEm
#define ASSERT_EQ_FMT   GREATEST_ASSERT_EQ_FMT
#define ASSERT_EQ_FMTm  GREATEST_ASSERT_EQ_FMTm
#define ASSERT_STR_EQ   GREATEST_ASSERT_STR_EQ
#define ASSERT_STR_EQm  GREATEST_ASSERT_STR_EQm
#define ASSERT_STRN_EQ  GREATEST_ASSERT_STRN_EQ
#define ASSERT_STRN_EQm GREATEST_ASSERT_STRN_EQm
#define ASSERT_MEM_EQ   GREATEST_ASSERT_MEM_EQ
#define ASSERT_MEM_EQm  GREATEST_ASSERT_MEM_EQm
#endif

#endif
