/* Timers: the heap against a list that is searched, and a clock that is not what it should be. */
#include "../pingora_lb.h"
#include <greatest.h>

static uint64_t random_state = 1;

static uint32_t random_below(uint32_t limit)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state % limit);
}

/* A clock that reads what it is told to, in so many bits. */
static uint64_t clock_reading;

static uint64_t read_clock(void *self)
{
    (void)self;
    return clock_reading;
}

static plb_clock test_clock(void)
{
    plb_clock clock;
    memset(&clock, 0, sizeof clock);
    clock.now_ms = read_clock;
    return clock;
}

static void start(plb_timers *timers, uint64_t reading)
{
    plb_clock clock = test_clock();
    memset(timers, 0, sizeof *timers);
    clock_reading = reading;
    plb_timers_update(timers, &clock);
}

/* The clock moves on, and what is due is called. */
static void advance(plb_timers *timers, uint64_t ms)
{
    plb_clock clock = test_clock();
    clock_reading += ms;
    plb_timers_update(timers, &clock);
    plb_timers_run(timers);
}

/* Timers that note their calls, and may do something in them. */
enum { TIMERS_MAX = 256, CALLS_MAX = 1024 };

typedef struct alarm_clock {
    plb_timer timer;
    plb_timers *timers;
    int number;
    int calls;
    struct alarm_clock *stops; /* in the callback */
    struct alarm_clock *sets;  /* likewise */
    uint32_t delay_ms;
} alarm_clock;

static int calls[CALLS_MAX]; /* numbers, in order */
static size_t call_count;

static void ring(void *user)
{
    alarm_clock *alarm = (alarm_clock *)user;
    alarm->calls++;
    if (call_count < CALLS_MAX)
        calls[call_count] = alarm->number;
    call_count++;
    if (alarm->stops != NULL)
        plb_timer_stop(alarm->timers, &alarm->stops->timer);
    if (alarm->sets != NULL)
        plb_timer_set(alarm->timers, &alarm->sets->timer, alarm->delay_ms);
}

static void prepare(alarm_clock *alarms, int count, plb_timers *timers)
{
    int i;
    memset(alarms, 0, (size_t)count * sizeof *alarms);
    for (i = 0; i < count; i++) {
        alarms[i].timers = timers;
        alarms[i].number = i;
        alarms[i].timer.fn = ring;
        alarms[i].timer.user = &alarms[i];
    }
    call_count = 0;
}

/* ==== SETTING, MOVING, STOPPING =================================================================================== */

TEST a_timer_is_called_once_when_its_time_has_come(void)
{
    plb_timers timers;
    alarm_clock a;
    start(&timers, 1000);
    prepare(&a, 1, &timers);
    ASSERT_FALSE(plb_timer_is_set(&a.timer));
    plb_timer_set(&timers, &a.timer, 10);
    ASSERT(plb_timer_is_set(&a.timer));
    advance(&timers, 9);
    ASSERT_EQ(0, a.calls);
    advance(&timers, 1);
    ASSERT_EQ(1, a.calls);
    ASSERT_FALSE(plb_timer_is_set(&a.timer));
    advance(&timers, 1000);
    ASSERT_EQ(1, a.calls);
    PASS();
}

TEST a_timer_that_is_set_again_has_moved(void)
{
    plb_timers timers;
    alarm_clock a;
    start(&timers, 0);
    prepare(&a, 1, &timers);
    plb_timer_set(&timers, &a.timer, 10);
    plb_timer_set(&timers, &a.timer, 20);
    advance(&timers, 19);
    ASSERT_EQ(0, a.calls);
    plb_timer_set(&timers, &a.timer, 5);
    advance(&timers, 5);
    ASSERT_EQ(1, a.calls);
    PASS();
}

TEST a_timer_that_is_stopped_is_not_called(void)
{
    plb_timers timers;
    alarm_clock a;
    start(&timers, 0);
    prepare(&a, 1, &timers);
    plb_timer_stop(&timers, &a.timer); /* was not set */
    plb_timer_set(&timers, &a.timer, 10);
    plb_timer_stop(&timers, &a.timer);
    plb_timer_stop(&timers, &a.timer);
    ASSERT_FALSE(plb_timer_is_set(&a.timer));
    ASSERT_EQ(PLB_FOREVER, plb_timers_delay(&timers));
    advance(&timers, 100);
    ASSERT_EQ(0, a.calls);
    PASS();
}

TEST a_delay_of_0_is_one_of_1(void)
{
    plb_timers timers;
    alarm_clock a;
    start(&timers, 0);
    prepare(&a, 1, &timers);
    plb_timer_set(&timers, &a.timer, 0);
    ASSERT_EQ(1, plb_timers_delay(&timers));
    plb_timers_run(&timers);
    ASSERT_EQ(0, a.calls);
    advance(&timers, 1);
    ASSERT_EQ(1, a.calls);
    PASS();
}

TEST the_delay_is_that_until_the_first(void)
{
    plb_timers timers;
    plb_clock clock = test_clock();
    alarm_clock a[3];
    start(&timers, 500);
    prepare(a, 3, &timers);
    ASSERT_EQ(PLB_FOREVER, plb_timers_delay(&timers));
    plb_timer_set(&timers, &a[0].timer, 30);
    plb_timer_set(&timers, &a[1].timer, 10);
    plb_timer_set(&timers, &a[2].timer, 20);
    ASSERT_EQ(10, plb_timers_delay(&timers));
    clock_reading += 4;
    plb_timers_update(&timers, &clock);
    ASSERT_EQ(6, plb_timers_delay(&timers));
    clock_reading += 16;
    plb_timers_update(&timers, &clock);
    ASSERT_EQ(0, plb_timers_delay(&timers)); /* two are overdue */
    plb_timers_run(&timers);
    ASSERT_EQ(10, plb_timers_delay(&timers));
    plb_timer_stop(&timers, &a[0].timer);
    ASSERT_EQ(PLB_FOREVER, plb_timers_delay(&timers));
    PASS();
}

TEST the_longest_delay_is_not_taken_for_none(void)
{
    plb_timers timers;
    alarm_clock a;
    start(&timers, 0);
    prepare(&a, 1, &timers);
    plb_timer_set(&timers, &a.timer, PLB_FOREVER);
    ASSERT_EQ(PLB_FOREVER - 1, plb_timers_delay(&timers));
    advance(&timers, PLB_FOREVER - 1);
    ASSERT_EQ(0, a.calls);
    ASSERT_EQ(1, plb_timers_delay(&timers));
    advance(&timers, 1);
    ASSERT_EQ(1, a.calls);
    PASS();
}

TEST timers_are_called_in_order_of_time(void)
{
    static const uint32_t delays[] = {50, 10, 40, 20, 30, 60, 5};
    static const int order[] = {6, 1, 3, 4, 2, 0, 5};
    plb_timers timers;
    alarm_clock a[7];
    int i;
    start(&timers, 77);
    prepare(a, 7, &timers);
    for (i = 0; i < 7; i++)
        plb_timer_set(&timers, &a[i].timer, delays[i]);
    advance(&timers, 1000);
    ASSERT_EQ(7, call_count);
    ASSERT_MEM_EQ(order, calls, sizeof order);
    PASS();
}

TEST timers_of_one_moment_are_each_called_once(void)
{
    plb_timers timers;
    alarm_clock a[TIMERS_MAX];
    int i;
    start(&timers, 0);
    prepare(a, TIMERS_MAX, &timers);
    for (i = 0; i < TIMERS_MAX; i++)
        plb_timer_set(&timers, &a[i].timer, 10);
    advance(&timers, 10);
    for (i = 0; i < TIMERS_MAX; i++)
        ASSERT_EQ(1, a[i].calls);
    PASS();
}

/* The model: whether and when each timer is due, searched from end to end. */
TEST the_heap_does_what_a_searched_list_does(void)
{
    enum { N = 100, STEPS = 30000 };
    static alarm_clock a[N];
    uint64_t due[N], now = 0, last;
    int expected[N], i, step;
    plb_timers timers;
    start(&timers, 12345);
    prepare(a, N, &timers);
    memset(due, 0, sizeof due);
    memset(expected, 0, sizeof expected);
    for (step = 0; step < STEPS; step++) {
        uint64_t first = UINT64_MAX;
        uint32_t ms;
        i = (int)random_below(N);
        switch (random_below(10)) {
        case 0:
            plb_timer_stop(&timers, &a[i].timer);
            due[i] = 0;
            break;
        case 1: /* time goes by */
            ms = random_below(30);
            now += ms;
            call_count = 0;
            advance(&timers, ms);
            for (i = 0, last = 0; i < (int)call_count; i++) {
                ASSERT(due[calls[i]] >= last && due[calls[i]] <= now && due[calls[i]] != 0);
                last = due[calls[i]];
                due[calls[i]] = 0;
                expected[calls[i]]++;
            }
            break;
        default: /* half of them crowded, so that there are ties */
            ms = random_below(2) == 0 ? random_below(20) : random_below(500);
            plb_timer_set(&timers, &a[i].timer, ms);
            due[i] = now + (ms > 0 ? ms : 1);
            break;
        }
        for (i = 0; i < N; i++) {
            ASSERT_EQ(due[i] != 0, plb_timer_is_set(&a[i].timer));
            ASSERT_EQ(expected[i], a[i].calls);
            if (due[i] != 0 && due[i] < first)
                first = due[i];
        }
        ASSERT_EQ(first == UINT64_MAX ? PLB_FOREVER : (uint32_t)(first - now), plb_timers_delay(&timers));
    }
    PASS();
}

/* ==== CALLBACKS =================================================================================================== */

TEST a_callback_may_set_its_own_timer_for_a_later_run(void)
{
    plb_timers timers;
    alarm_clock a;
    start(&timers, 0);
    prepare(&a, 1, &timers);
    a.sets = &a;
    plb_timer_set(&timers, &a.timer, 10);
    advance(&timers, 1000); /* late: still one call */
    ASSERT_EQ(1, a.calls);
    ASSERT(plb_timer_is_set(&a.timer));
    ASSERT_EQ(1, plb_timers_delay(&timers));
    advance(&timers, 1);
    ASSERT_EQ(2, a.calls);
    PASS();
}

TEST a_callback_may_stop_one_that_is_due_in_the_same_run(void)
{
    plb_timers timers;
    alarm_clock a[3];
    start(&timers, 0);
    prepare(a, 3, &timers);
    a[0].stops = &a[1];
    plb_timer_set(&timers, &a[0].timer, 10);
    plb_timer_set(&timers, &a[1].timer, 11);
    plb_timer_set(&timers, &a[2].timer, 12);
    advance(&timers, 100);
    ASSERT_EQ(1, a[0].calls);
    ASSERT_EQ(0, a[1].calls);
    ASSERT_EQ(1, a[2].calls);
    PASS();
}

TEST a_callback_may_stop_its_own_timer(void)
{
    plb_timers timers;
    alarm_clock a[2];
    start(&timers, 0);
    prepare(a, 2, &timers);
    a[0].stops = &a[0];
    plb_timer_set(&timers, &a[0].timer, 10);
    plb_timer_set(&timers, &a[1].timer, 10);
    advance(&timers, 10);
    ASSERT_EQ(1, a[0].calls);
    ASSERT_EQ(1, a[1].calls);
    PASS();
}

TEST a_callback_may_move_one_that_is_due_to_a_later_run(void)
{
    plb_timers timers;
    alarm_clock a[2];
    start(&timers, 0);
    prepare(a, 2, &timers);
    a[0].sets = &a[1];
    plb_timer_set(&timers, &a[0].timer, 10);
    plb_timer_set(&timers, &a[1].timer, 11);
    advance(&timers, 100);
    ASSERT_EQ(0, a[1].calls);
    advance(&timers, 1);
    ASSERT_EQ(1, a[1].calls);
    PASS();
}

typedef struct slow_callback {
    plb_timer timer;
    plb_timers *timers;
    int calls;
} slow_callback;

/* Takes 5 ms, reads the clock, and wants to be called again 1 ms later. */
static void slow_ring(void *user)
{
    slow_callback *slow = (slow_callback *)user;
    plb_clock clock = test_clock();
    if (++slow->calls > 10)
        return; /* a run that never ends, cut short */
    plb_timer_set(slow->timers, &slow->timer, 1);
    clock_reading += 5;
    plb_timers_update(slow->timers, &clock);
}

TEST what_a_callback_sets_waits_for_a_later_run_even_if_time_goes_by(void)
{
    plb_timers timers;
    slow_callback slow;
    start(&timers, 0);
    memset(&slow, 0, sizeof slow);
    slow.timers = &timers;
    slow.timer.fn = slow_ring;
    slow.timer.user = &slow;
    plb_timer_set(&timers, &slow.timer, 1);
    advance(&timers, 1);
    ASSERT_EQ(1, slow.calls);
    ASSERT_EQ(0, plb_timers_delay(&timers));
    plb_timers_run(&timers);
    ASSERT_EQ(2, slow.calls);
    PASS();
}

/* Whatever callbacks do to each other, each set timer is called once, or moved, or stopped; and the run ends. */
TEST callbacks_that_meddle_at_random_break_nothing(void)
{
    enum { N = 60 };
    static alarm_clock a[N];
    plb_timers timers;
    int i, round;
    start(&timers, 0);
    prepare(a, N, &timers);
    for (round = 0; round < 500; round++) {
        for (i = 0; i < N; i++) {
            a[i].calls = 0;
            a[i].stops = random_below(3) == 0 ? &a[random_below(N)] : NULL;
            a[i].sets = random_below(3) == 0 ? &a[random_below(N)] : NULL;
            a[i].delay_ms = random_below(20);
            plb_timer_set(&timers, &a[i].timer, random_below(10));
        }
        advance(&timers, 10);
        for (i = 0; i < N; i++) {
            ASSERT(a[i].calls <= 1);
            ASSERT(!plb_timer_is_set(&a[i].timer) || a[i].timer.at_ms > timers.now_ms);
        }
    }
    for (i = 0; i < N; i++)
        plb_timer_stop(&timers, &a[i].timer);
    ASSERT_EQ(PLB_FOREVER, plb_timers_delay(&timers));
    PASS();
}

/* ==== THE CLOCK =================================================================================================== */

TEST a_clock_that_wraps_at_32_bits_goes_on(void)
{
    plb_timers timers;
    plb_clock clock = test_clock();
    alarm_clock a[2];
    uint64_t before;
    start(&timers, UINT32_MAX - 5);
    prepare(a, 2, &timers);
    before = timers.now_ms;
    plb_timer_set(&timers, &a[0].timer, 4);  /* before the wrap */
    plb_timer_set(&timers, &a[1].timer, 20); /* after it */
    clock_reading = 13;                      /* 19 ms later */
    ASSERT_EQ_FMT((unsigned long long)before + 19, (unsigned long long)plb_timers_update(&timers, &clock), "%llu");
    plb_timers_run(&timers);
    ASSERT_EQ(1, a[0].calls);
    ASSERT_EQ(0, a[1].calls);
    advance(&timers, 1);
    ASSERT_EQ(1, a[1].calls);
    PASS();
}

TEST a_clock_wraps_as_often_as_it_likes(void)
{
    plb_timers timers;
    plb_clock clock = test_clock();
    uint64_t truth = 1, first;
    int i;
    start(&timers, truth);
    first = timers.now_ms;
    for (i = 0; i < 1000; i++) {
        truth += 1 + random_below((UINT32_C(1) << 31) - 1);
        clock_reading = (uint32_t)truth;
        plb_timers_update(&timers, &clock);
        ASSERT(timers.now_ms - first == truth - 1);
    }
    PASS();
}

TEST a_clock_that_steps_back_stands_still_and_then_goes_on(void)
{
    static const uint64_t starts[] = {5000, UINT64_C(1) << 40};
    size_t i;
    for (i = 0; i < 2; i++) {
        plb_timers timers;
        plb_clock clock = test_clock();
        alarm_clock a;
        uint64_t before;
        start(&timers, starts[i]);
        prepare(&a, 1, &timers);
        before = timers.now_ms;
        plb_timer_set(&timers, &a.timer, 10);
        clock_reading -= 4000;
        ASSERT(plb_timers_update(&timers, &clock) == before);
        plb_timers_run(&timers);
        ASSERT_EQ(0, a.calls);
        advance(&timers, 9);
        ASSERT_EQ(0, a.calls);
        advance(&timers, 1); /* 10 ms by the clock's own count: no stall of 4 seconds */
        ASSERT_EQ(1, a.calls);
    }
    PASS();
}

TEST a_clock_that_jumps_ahead_makes_everything_due_once(void)
{
    plb_timers timers;
    alarm_clock a[2];
    start(&timers, 0);
    prepare(a, 2, &timers);
    plb_timer_set(&timers, &a[0].timer, 10);
    plb_timer_set(&timers, &a[1].timer, 3600000);
    a[0].sets = &a[0];
    a[0].delay_ms = 10;
    advance(&timers, UINT64_C(100) * 86400000);
    ASSERT_EQ(1, a[0].calls);
    ASSERT_EQ(1, a[1].calls);
    ASSERT_EQ(10, plb_timers_delay(&timers));
    PASS();
}

TEST time_never_steps_back_whatever_the_clock_reads(void)
{
    plb_timers timers;
    plb_clock clock = test_clock();
    uint64_t last;
    int i;
    start(&timers, 0);
    last = timers.now_ms;
    for (i = 0; i < 10000; i++) {
        clock_reading = (uint64_t)random_below(UINT32_MAX) << random_below(20) >> random_below(30);
        plb_timers_update(&timers, &clock);
        ASSERT(timers.now_ms >= last);
        last = timers.now_ms;
    }
    PASS();
}

SUITE(setting_moving_stopping)
{
    RUN_TEST(a_timer_is_called_once_when_its_time_has_come);
    RUN_TEST(a_timer_that_is_set_again_has_moved);
    RUN_TEST(a_timer_that_is_stopped_is_not_called);
    RUN_TEST(a_delay_of_0_is_one_of_1);
    RUN_TEST(the_delay_is_that_until_the_first);
    RUN_TEST(the_longest_delay_is_not_taken_for_none);
    RUN_TEST(timers_are_called_in_order_of_time);
    RUN_TEST(timers_of_one_moment_are_each_called_once);
    RUN_TEST(the_heap_does_what_a_searched_list_does);
}

SUITE(callbacks)
{
    RUN_TEST(a_callback_may_set_its_own_timer_for_a_later_run);
    RUN_TEST(a_callback_may_stop_one_that_is_due_in_the_same_run);
    RUN_TEST(a_callback_may_stop_its_own_timer);
    RUN_TEST(a_callback_may_move_one_that_is_due_to_a_later_run);
    RUN_TEST(what_a_callback_sets_waits_for_a_later_run_even_if_time_goes_by);
    RUN_TEST(callbacks_that_meddle_at_random_break_nothing);
}

SUITE(the_clock)
{
    RUN_TEST(a_clock_that_wraps_at_32_bits_goes_on);
    RUN_TEST(a_clock_wraps_as_often_as_it_likes);
    RUN_TEST(a_clock_that_steps_back_stands_still_and_then_goes_on);
    RUN_TEST(a_clock_that_jumps_ahead_makes_everything_due_once);
    RUN_TEST(time_never_steps_back_whatever_the_clock_reads);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(setting_moving_stopping);
    RUN_SUITE(callbacks);
    RUN_SUITE(the_clock);
    GREATEST_MAIN_END();
}
