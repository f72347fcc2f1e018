/* The simulator keeps the contract of plb_io, its faults do what they say, and it notices who breaks the contract. */
#include "../pingora_lb.h"
#define SIM_IMPLEMENTATION
#include "sim.h"
#include <greatest.h>

#include <setjmp.h>

/* ==== HELPERS ===================================================================================================== */

#define ASSERT_COUNT(EXPECTED, GOT) ASSERT_EQ_FMT((unsigned long)(EXPECTED), (unsigned long)(GOT), "%lu")

static sim *s; /* of the test that runs */
static const plb_io *io;
static const plb_dgram *dgram;
static size_t left_open; /* by the tests up to now */

static void setup(void *user)
{
    (void)user;
    s = sim_create(1);
    io = sim_port(s).io;
    dgram = sim_port(s).dgram;
}

/* Tests that mean to leave something open destroy `s` themselves. */
static void teardown(void *user)
{
    (void)user;
    if (s)
        left_open += sim_destroy(s);
    s = NULL;
}

/* One end of a connection, or a listener, as the program under test has it: counts its callbacks. */
typedef struct end {
    plb_stream *stream;
    unsigned connects, reads, writes, accepts;
    plb_status connected;
} end;

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

static plb_status dial(const plb_addr *addr, end *e)
{
    plb_peer peer;
    memset(&peer, 0, sizeof peer);
    peer.addr = *addr;
    return io->connect(s, &peer, handler_of(e), &e->stream);
}

static plb_status dial_text(const char *addr, end *e)
{
    plb_addr parsed = sim_addr(addr);
    return dial(&parsed, e);
}

static plb_status dial_from(const char *source, const char *addr, end *e)
{
    plb_peer peer;
    memset(&peer, 0, sizeof peer);
    peer.addr = sim_addr(addr);
    peer.source = sim_addr(source);
    return io->connect(s, &peer, handler_of(e), &e->stream);
}

static plb_status listen_at(const char *addr, uint32_t backlog, bool reuse_port, end *e)
{
    plb_listen_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.addr = sim_addr(addr);
    desc.backlog = backlog;
    desc.reuse_port = reuse_port;
    return io->listen(s, &desc, handler_of(e), &e->stream);
}

static plb_status take(const end *listener, end *e)
{
    return io->accept(s, listener->stream, handler_of(e), &e->stream);
}

static plb_addr local_of(const end *e)
{
    plb_stream_info info;
    if (io->info(s, e->stream, &info) != PLB_OK)
        abort();
    return info.local;
}

static plb_status put(const end *e, const char *text, size_t *taken)
{
    plb_chunk chunk;
    chunk.data = text;
    chunk.size = strlen(text);
    chunk.flags = 0;
    return io->write(s, e->stream, &chunk, 1, taken);
}

static plb_status get(const end *e, char *text, size_t capacity)
{
    size_t got = 0;
    plb_status status = io->read(s, e->stream, text, capacity - 1, &got);
    text[status == PLB_OK ? got : 0] = '\0';
    return status;
}

static void drop(const end *e)
{
    io->close(s, e->stream, PLB_CLOSE_GRACEFUL);
}

/* A listener and both ends of a connection to it. */
typedef struct trio {
    end listener, client, server;
} trio;

static enum greatest_test_res connect_trio(trio *t, const char *addr)
{
    plb_addr local;
    ASSERT_EQ(PLB_OK, listen_at(addr, 0, false, &t->listener));
    local = local_of(&t->listener);
    ASSERT_EQ(PLB_AGAIN, dial(&local, &t->client));
    sim_run_for(s, 10);
    ASSERT_EQ(1, t->client.connects);
    ASSERT_EQ(PLB_OK, t->client.connected);
    ASSERT_EQ(PLB_OK, take(&t->listener, &t->server));
    PASS();
}

static void drop_trio(const trio *t)
{
    drop(&t->server);
    drop(&t->client);
    drop(&t->listener);
}

/* ==== STREAMS ===================================================================================================== */

TEST bytes_travel_both_ways_in_every_family(const char *addr)
{
    trio t;
    char text[16];
    size_t taken;
    CHECK_CALL(connect_trio(&t, addr));
    ASSERT_EQ(PLB_OK, put(&t.client, "ping", &taken));
    ASSERT_COUNT(4, taken);
    ASSERT_EQ(PLB_OK, put(&t.server, "pong", &taken));
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_OK, get(&t.server, text, sizeof text));
    ASSERT_STR_EQ("ping", text);
    ASSERT_EQ(PLB_OK, get(&t.client, text, sizeof text));
    ASSERT_STR_EQ("pong", text);
    drop_trio(&t);
    PASS();
}

TEST both_ends_know_their_addresses(void)
{
    trio t;
    plb_stream_info client, server, listener;
    CHECK_CALL(connect_trio(&t, "127.0.0.1:0"));
    ASSERT_EQ(PLB_OK, io->info(s, t.client.stream, &client));
    ASSERT_EQ(PLB_OK, io->info(s, t.server.stream, &server));
    ASSERT_EQ(PLB_OK, io->info(s, t.listener.stream, &listener));
    ASSERT_EQ(0, plb_addr_compare(&client.local, &server.remote));
    ASSERT_EQ(0, plb_addr_compare(&client.remote, &server.local));
    ASSERT_EQ(0, plb_addr_compare(&listener.local, &server.local));
    ASSERT_EQ(PLB_FAMILY_NONE, listener.remote.family);
    ASSERT_NEQ(0, listener.local.port);
    drop_trio(&t);
    PASS();
}

TEST what_is_sent_arrives_after_the_latency(void)
{
    trio t;
    char text[16];
    size_t taken;
    plb_addr addr;
    CHECK_CALL(connect_trio(&t, "10.0.0.1:80"));
    addr = local_of(&t.listener);
    sim_host(s, &addr)->latency_ms = 30;
    ASSERT_EQ(PLB_AGAIN, get(&t.server, text, sizeof text));
    ASSERT_EQ(PLB_OK, put(&t.client, "x", &taken));
    sim_run_for(s, 29);
    ASSERT_COUNT(0, t.server.reads);
    sim_run_for(s, 1);
    ASSERT_COUNT(1, t.server.reads);
    ASSERT_EQ(PLB_OK, get(&t.server, text, sizeof text));
    drop_trio(&t);
    PASS();
}

TEST a_rate_spreads_bytes_over_time(void)
{
    trio t;
    char text[16];
    size_t taken;
    plb_addr addr;
    CHECK_CALL(connect_trio(&t, "10.0.0.1:80"));
    addr = local_of(&t.listener);
    sim_host(s, &addr)->bytes_per_ms = 2;
    ASSERT_EQ(PLB_OK, put(&t.client, "abcdef", &taken));
    sim_run_for(s, 2);
    ASSERT_EQ(PLB_OK, get(&t.server, text, sizeof text));
    ASSERT_STR_EQ("ab", text);
    sim_run_for(s, 2);
    ASSERT_EQ(PLB_OK, get(&t.server, text, sizeof text));
    ASSERT_STR_EQ("cdef", text);
    drop_trio(&t);
    PASS();
}

/* However many writes they came in. */
TEST a_rate_is_one_of_bytes_and_not_of_writes(void)
{
    trio t;
    char text[16];
    size_t taken;
    plb_addr addr;
    CHECK_CALL(connect_trio(&t, "10.0.0.1:80"));
    addr = local_of(&t.listener);
    sim_host(s, &addr)->bytes_per_ms = 4;
    ASSERT_EQ(PLB_OK, put(&t.client, "a", &taken));
    ASSERT_EQ(PLB_OK, put(&t.client, "b", &taken));
    ASSERT_EQ(PLB_OK, put(&t.client, "cdefg", &taken));
    sim_run_for(s, 2);
    ASSERT_EQ(PLB_OK, get(&t.server, text, sizeof text));
    ASSERT_STR_EQ("abcd", text);
    sim_run_for(s, 1);
    ASSERT_EQ(PLB_OK, get(&t.server, text, sizeof text));
    ASSERT_STR_EQ("efg", text);
    drop_trio(&t);
    PASS();
}

TEST again_arms_one_callback_and_nothing_else_does(void)
{
    trio t;
    char text[16];
    size_t taken;
    CHECK_CALL(connect_trio(&t, "10.0.0.1:80"));
    ASSERT_EQ(PLB_OK, put(&t.client, "a", &taken));
    sim_run_for(s, 10);
    ASSERT_COUNT(0, t.server.reads);
    ASSERT_EQ(PLB_OK, get(&t.server, text, sizeof text));
    ASSERT_EQ(PLB_AGAIN, get(&t.server, text, sizeof text));
    ASSERT_EQ(PLB_AGAIN, get(&t.server, text, sizeof text));
    ASSERT_EQ(PLB_AGAIN, io->watch(s, t.server.stream, PLB_EVENT_READ));
    ASSERT_EQ(PLB_OK, put(&t.client, "b", &taken));
    ASSERT_COUNT(0, t.server.reads);
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_OK, put(&t.client, "c", &taken));
    sim_run_for(s, 10);
    ASSERT_COUNT(1, t.server.reads);
    ASSERT_EQ(PLB_OK, io->watch(s, t.server.stream, PLB_EVENT_READ));
    drop_trio(&t);
    PASS();
}

TEST close_cancels_what_was_armed(void)
{
    trio t;
    char text[16];
    size_t taken;
    CHECK_CALL(connect_trio(&t, "10.0.0.1:80"));
    ASSERT_EQ(PLB_AGAIN, get(&t.server, text, sizeof text));
    ASSERT_EQ(PLB_OK, put(&t.client, "a", &taken));
    drop_trio(&t);
    sim_run_for(s, 100);
    ASSERT_COUNT(0, t.server.reads);
    PASS();
}

TEST a_full_buffer_stops_the_writer_until_the_reader_reads(void)
{
    trio t;
    char text[16];
    size_t taken;
    s->defaults.buffer_bytes = 5;
    CHECK_CALL(connect_trio(&t, "10.0.0.1:80"));
    ASSERT_EQ(PLB_OK, put(&t.client, "abcdefgh", &taken));
    ASSERT_COUNT(5, taken);
    ASSERT_EQ(PLB_AGAIN, put(&t.client, "fgh", &taken));
    ASSERT_EQ(PLB_AGAIN, io->watch(s, t.client.stream, PLB_EVENT_WRITE));
    sim_run_for(s, 10);
    ASSERT_COUNT(0, t.client.writes);
    ASSERT_EQ(PLB_OK, get(&t.server, text, 3));
    ASSERT_STR_EQ("ab", text);
    sim_run_for(s, 10);
    ASSERT_COUNT(1, t.client.writes);
    ASSERT_EQ(PLB_OK, put(&t.client, "fgh", &taken));
    ASSERT_COUNT(2, taken);
    drop_trio(&t);
    PASS();
}

TEST transfers_can_be_one_byte_each(void)
{
    trio t;
    char text[16];
    size_t taken;
    s->max_read = s->max_write = 1;
    CHECK_CALL(connect_trio(&t, "10.0.0.1:80"));
    ASSERT_EQ(PLB_OK, put(&t.client, "abc", &taken));
    ASSERT_COUNT(1, taken);
    s->max_write = 0;
    ASSERT_EQ(PLB_OK, put(&t.client, "bc", &taken));
    ASSERT_COUNT(2, taken);
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_OK, get(&t.server, text, sizeof text));
    ASSERT_STR_EQ("a", text);
    drop_trio(&t);
    PASS();
}

TEST a_gathered_write_keeps_its_order(void)
{
    static const char *const pieces[] = {"one ", "", "two ", "three"};
    plb_chunk chunks[4];
    trio t;
    char text[32];
    size_t taken, i;
    for (i = 0; i < 4; i++) {
        chunks[i].data = pieces[i];
        chunks[i].size = strlen(pieces[i]);
        chunks[i].flags = PLB_CHUNK_CONSTANT;
    }
    CHECK_CALL(connect_trio(&t, "10.0.0.1:80"));
    ASSERT_EQ(PLB_OK, io->write(s, t.client.stream, chunks, 4, &taken));
    ASSERT_COUNT(13, taken);
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_OK, get(&t.server, text, sizeof text));
    ASSERT_STR_EQ("one two three", text);
    drop_trio(&t);
    PASS();
}

TEST half_a_connection_can_end(void)
{
    trio t;
    char text[16];
    size_t taken;
    CHECK_CALL(connect_trio(&t, "10.0.0.1:80"));
    ASSERT_EQ(PLB_OK, put(&t.client, "last", &taken));
    ASSERT_EQ(PLB_OK, io->shutdown(s, t.client.stream));
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_OK, get(&t.server, text, sizeof text));
    ASSERT_EQ(PLB_END, get(&t.server, text, sizeof text));
    ASSERT_EQ(PLB_OK, put(&t.server, "answer", &taken));
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_OK, get(&t.client, text, sizeof text));
    ASSERT_STR_EQ("answer", text);
    drop_trio(&t);
    PASS();
}

TEST a_graceful_close_delivers_what_was_written(void)
{
    trio t;
    char text[16];
    size_t taken;
    CHECK_CALL(connect_trio(&t, "10.0.0.1:80"));
    ASSERT_EQ(PLB_OK, put(&t.server, "never read", &taken));
    ASSERT_EQ(PLB_OK, put(&t.client, "last", &taken));
    sim_run_for(s, 10);
    drop(&t.client);
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_OK, get(&t.server, text, sizeof text));
    ASSERT_STR_EQ("last", text);
    ASSERT_EQ(PLB_END, get(&t.server, text, sizeof text));
    drop(&t.server);
    drop(&t.listener);
    PASS();
}

TEST a_writer_without_room_hears_that_nobody_will_read(void)
{
    trio t;
    size_t taken;
    s->defaults.buffer_bytes = 1;
    CHECK_CALL(connect_trio(&t, "10.0.0.1:80"));
    ASSERT_EQ(PLB_OK, put(&t.client, "xy", &taken));
    ASSERT_EQ(PLB_AGAIN, put(&t.client, "y", &taken));
    sim_run_for(s, 10);
    drop(&t.server);
    sim_run_for(s, 10);
    ASSERT_COUNT(1, t.client.writes);
    ASSERT_EQ(PLB_ERR_RESET, put(&t.client, "y", &taken));
    drop(&t.client);
    drop(&t.listener);
    PASS();
}

TEST writing_to_who_has_closed_ends_in_a_reset(void)
{
    trio t;
    size_t taken;
    CHECK_CALL(connect_trio(&t, "10.0.0.1:80"));
    drop(&t.client);
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_OK, put(&t.server, "x", &taken));
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_ERR_RESET, put(&t.server, "y", &taken));
    ASSERT_EQ(PLB_ERR_RESET, io->shutdown(s, t.server.stream));
    drop(&t.server);
    drop(&t.listener);
    PASS();
}

TEST an_abort_is_a_reset_for_the_peer(void)
{
    trio t;
    char text[16];
    CHECK_CALL(connect_trio(&t, "10.0.0.1:80"));
    ASSERT_EQ(PLB_AGAIN, get(&t.server, text, sizeof text));
    io->close(s, t.client.stream, PLB_CLOSE_ABORT);
    sim_run_for(s, 10);
    ASSERT_COUNT(1, t.server.reads);
    ASSERT_EQ(PLB_ERR_RESET, get(&t.server, text, sizeof text));
    drop(&t.server);
    drop(&t.listener);
    PASS();
}

TEST a_connection_given_up_early_is_reset_for_the_listener(void)
{
    end listener, client, server;
    char text[4];
    ASSERT_EQ(PLB_OK, listen_at("10.0.0.1:80", 0, false, &listener));
    ASSERT_EQ(PLB_AGAIN, dial_text("10.0.0.1:80", &client));
    sim_step(s, 1);
    drop(&client);
    sim_run_for(s, 10);
    ASSERT_COUNT(0, client.connects);
    ASSERT_EQ(PLB_OK, take(&listener, &server));
    ASSERT_EQ(PLB_ERR_RESET, get(&server, text, sizeof text));
    drop(&server);
    drop(&listener);
    PASS();
}

/* ==== LISTENERS =================================================================================================== */

TEST nobody_listens_nobody_connects(void)
{
    end client;
    ASSERT_EQ(PLB_AGAIN, dial_text("10.0.0.1:80", &client));
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_ERR_REFUSED, client.connected);
    drop(&client);
    PASS();
}

TEST an_address_is_taken_once_unless_all_agree_to_share(void)
{
    end a, b;
    ASSERT_EQ(PLB_OK, listen_at("10.0.0.1:80", 0, false, &a));
    ASSERT_EQ(PLB_ERR_IN_USE, listen_at("10.0.0.1:80", 0, true, &b));
    drop(&a);
    ASSERT_EQ(PLB_OK, listen_at("10.0.0.1:80", 0, true, &a));
    ASSERT_EQ(PLB_OK, listen_at("10.0.0.1:80", 0, true, &b));
    drop(&a);
    drop(&b);
    PASS();
}

TEST a_chosen_port_is_a_free_one(void)
{
    end a, b;
    ASSERT_EQ(PLB_OK, listen_at("10.0.0.1:49152", 0, false, &a));
    ASSERT_EQ(PLB_OK, listen_at("10.0.0.1:0", 0, false, &b));
    ASSERT_COUNT(49153, local_of(&b).port);
    drop(&a);
    drop(&b);
    PASS();
}

TEST listeners_that_share_take_turns(void)
{
    end a, b, first, second, unused;
    ASSERT_EQ(PLB_OK, listen_at("10.0.0.1:80", 0, true, &a));
    ASSERT_EQ(PLB_OK, listen_at("10.0.0.1:80", 0, true, &b));
    ASSERT_EQ(PLB_AGAIN, take(&a, &unused));
    ASSERT_EQ(PLB_AGAIN, take(&b, &unused));
    ASSERT_EQ(PLB_AGAIN, dial_text("10.0.0.1:80", &first));
    ASSERT_EQ(PLB_AGAIN, dial_text("10.0.0.1:80", &second));
    sim_run_for(s, 10);
    ASSERT_COUNT(1, a.accepts);
    ASSERT_COUNT(1, b.accepts);
    drop(&first);
    drop(&second);
    drop(&a);
    drop(&b);
    PASS();
}

TEST a_listener_on_all_addresses_takes_any(void)
{
    end listener, client, server;
    plb_stream_info info;
    plb_addr addr = sim_addr("10.9.8.7:80");
    ASSERT_EQ(PLB_OK, listen_at("0.0.0.0:80", 0, false, &listener));
    ASSERT_EQ(PLB_AGAIN, dial(&addr, &client));
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_OK, client.connected);
    ASSERT_EQ(PLB_OK, take(&listener, &server));
    ASSERT_EQ(PLB_OK, io->info(s, server.stream, &info));
    ASSERT_EQ(0, plb_addr_compare(&addr, &info.local));
    drop(&server);
    drop(&client);
    drop(&listener);
    PASS();
}

TEST a_full_backlog_refuses(void)
{
    end listener, first, second;
    ASSERT_EQ(PLB_OK, listen_at("10.0.0.1:80", 1, false, &listener));
    ASSERT_EQ(PLB_AGAIN, dial_text("10.0.0.1:80", &first));
    ASSERT_EQ(PLB_AGAIN, dial_text("10.0.0.1:80", &second));
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_OK, first.connected);
    ASSERT_EQ(PLB_ERR_REFUSED, second.connected);
    drop(&first);
    drop(&second);
    drop(&listener);
    PASS();
}

TEST a_closed_listener_resets_who_was_waiting(void)
{
    end listener, client;
    char text[4];
    ASSERT_EQ(PLB_OK, listen_at("10.0.0.1:80", 1, false, &listener));
    ASSERT_EQ(PLB_AGAIN, dial_text("10.0.0.1:80", &client));
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_AGAIN, get(&client, text, sizeof text));
    drop(&listener);
    sim_run_for(s, 10);
    ASSERT_COUNT(1, client.reads);
    ASSERT_EQ(PLB_ERR_RESET, get(&client, text, sizeof text));
    drop(&client);
    PASS();
}

TEST accept_waits_for_a_stream_to_be_free(void)
{
    end listener, client, server;
    s->max_streams = 2;
    ASSERT_EQ(PLB_OK, listen_at("10.0.0.1:80", 0, false, &listener));
    ASSERT_EQ(PLB_AGAIN, dial_text("10.0.0.1:80", &client));
    ASSERT_EQ(PLB_ERR_LIMIT, dial_text("10.0.0.1:80", &server));
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_AGAIN, take(&listener, &server));
    sim_run_for(s, 10);
    ASSERT_COUNT(0, listener.accepts);
    drop(&client);
    sim_run_for(s, 10);
    ASSERT_COUNT(1, listener.accepts);
    ASSERT_EQ(PLB_OK, take(&listener, &server));
    ASSERT_COUNT(2, s->streams_peak);
    drop(&server);
    drop(&listener);
    PASS();
}

TEST a_connection_comes_from_where_it_was_told_to(void)
{
    end listener, a, b;
    ASSERT_EQ(PLB_OK, listen_at("10.0.0.1:80", 0, false, &listener));
    ASSERT_EQ(PLB_AGAIN, dial_from("10.0.0.9:4000", "10.0.0.1:80", &a));
    ASSERT_COUNT(4000, local_of(&a).port);
    ASSERT_EQ(PLB_ERR_IN_USE, dial_from("10.0.0.9:4000", "10.0.0.1:80", &b));
    ASSERT_EQ(PLB_AGAIN, dial_from("10.0.0.9:0", "10.0.0.1:80", &b));
    ASSERT_NEQ(0, local_of(&b).port);
    ASSERT_EQ(9, local_of(&b).u.v4[3]);
    drop(&a);
    drop(&b);
    drop(&listener);
    PASS();
}

TEST a_family_can_be_missing(void)
{
    end e;
    s->lacks = 1u << PLB_FAMILY_IPV6;
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, dial_text("[::1]:80", &e));
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, listen_at("[::1]:80", 0, false, &e));
    PASS();
}

/* ==== FAULTS ====================================================================================================== */

static sim_host_t *host_with(const char *addr, sim_fault fault, uint32_t bytes)
{
    plb_addr parsed = sim_addr(addr);
    sim_host_t *host = sim_host(s, &parsed);
    host->fault = fault;
    host->fault_bytes = bytes;
    return host;
}

TEST a_fault_decides_how_connections_fail(void)
{
    end refused, lost, hanging;
    plb_addr addr = sim_addr("10.0.0.1:80");
    sim_serve(s, &addr, NULL, NULL);
    host_with("10.0.0.1:80", SIM_REFUSE, 0);
    host_with("10.0.0.2:80", SIM_UNREACHABLE, 0);
    host_with("10.0.0.3:80", SIM_HANG, 0);
    ASSERT_EQ(PLB_AGAIN, dial_text("10.0.0.1:80", &refused));
    ASSERT_EQ(PLB_AGAIN, dial_text("10.0.0.2:80", &lost));
    ASSERT_EQ(PLB_AGAIN, dial_text("10.0.0.3:80", &hanging));
    sim_run_for(s, 100000);
    ASSERT_EQ(PLB_ERR_REFUSED, refused.connected);
    ASSERT_EQ(PLB_ERR_UNREACHABLE, lost.connected);
    ASSERT_COUNT(0, hanging.connects);
    drop(&refused);
    drop(&lost);
    drop(&hanging);
    PASS();
}

TEST instant_connect_knows_at_once(void)
{
    end e;
    plb_addr addr = sim_addr("10.0.0.1:80");
    s->instant_connect = true;
    ASSERT_EQ(PLB_ERR_REFUSED, dial_text("10.0.0.1:80", &e));
    sim_serve(s, &addr, NULL, NULL);
    ASSERT_EQ(PLB_OK, dial_text("10.0.0.1:80", &e));
    sim_run_for(s, 10);
    ASSERT_COUNT(0, e.connects);
    drop(&e);
    ASSERT_COUNT(0, sim_host(s, &addr)->open);
    PASS();
}

TEST what_a_hang_held_back_arrives_in_order_when_it_is_lifted(void)
{
    trio t;
    char text[16];
    size_t taken;
    CHECK_CALL(connect_trio(&t, "10.0.0.1:80"));
    host_with("10.0.0.1:80", SIM_HANG, 0);
    ASSERT_EQ(PLB_OK, put(&t.client, "a", &taken));
    sim_run_for(s, 50);
    ASSERT_EQ(PLB_OK, put(&t.client, "b", &taken));
    sim_run_for(s, 50);
    ASSERT_EQ(PLB_AGAIN, get(&t.server, text, sizeof text));
    host_with("10.0.0.1:80", SIM_FINE, 0);
    ASSERT_EQ(PLB_OK, put(&t.client, "c", &taken));
    sim_step(s, 0);
    ASSERT_EQ(PLB_OK, get(&t.server, text, sizeof text));
    ASSERT_STR_EQ("ab", text);
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_OK, get(&t.server, text, sizeof text));
    ASSERT_STR_EQ("c", text);
    drop_trio(&t);
    PASS();
}

TEST a_silent_host_takes_bytes_until_it_is_full(void)
{
    end e;
    char text[4];
    size_t taken;
    s->defaults.buffer_bytes = 3;
    host_with("10.0.0.1:80", SIM_SILENT, 0);
    ASSERT_EQ(PLB_AGAIN, dial_text("10.0.0.1:80", &e));
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_OK, e.connected);
    ASSERT_EQ(PLB_OK, put(&e, "hello", &taken));
    ASSERT_EQ(PLB_AGAIN, put(&e, "lo", &taken));
    ASSERT_EQ(PLB_AGAIN, get(&e, text, sizeof text));
    sim_run_for(s, 100000);
    ASSERT_COUNT(0, e.reads + e.writes);
    drop(&e);
    PASS();
}

static size_t greet(void *user, sim_conn *conn, const char *bytes, size_t count)
{
    (void)bytes;
    if (conn->sent == 0 && !conn->end_wanted)
        sim_send_text(conn, (const char *)user);
    return count;
}

TEST a_host_cuts_a_connection_after_so_many_bytes(sim_fault fault, plb_status last)
{
    end e;
    char text[16], greeting[] = "hello, world";
    plb_addr addr = sim_addr("10.0.0.1:80");
    sim_serve(s, &addr, greet, greeting);
    host_with("10.0.0.1:80", fault, 5);
    ASSERT_EQ(PLB_AGAIN, dial_text("10.0.0.1:80", &e));
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_OK, get(&e, text, sizeof text));
    ASSERT_STR_EQ("hello", text);
    ASSERT_EQ(last, get(&e, text, sizeof text));
    drop(&e);
    PASS();
}

TEST a_host_cuts_a_connection_as_soon_as_it_is_made(sim_fault fault, plb_status last)
{
    end e;
    char text[16];
    host_with("10.0.0.1:80", fault, 0);
    ASSERT_EQ(PLB_AGAIN, dial_text("10.0.0.1:80", &e));
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_OK, e.connected);
    ASSERT_EQ(last, get(&e, text, sizeof text));
    drop(&e);
    PASS();
}

/* One of each call, as far as it gets. Returns false once a call failed. */
static bool visit_every_call(void)
{
    end listener, client, server;
    plb_stream_info info;
    char text[8];
    size_t taken;
    bool fine;
    if (listen_at("10.0.0.1:80", 0, false, &listener) != PLB_OK)
        return false;
    if (dial_text("10.0.0.1:80", &client) != PLB_AGAIN) {
        drop(&listener);
        return false;
    }
    sim_run_for(s, 10);
    fine = take(&listener, &server) == PLB_OK;
    if (fine) {
        fine = put(&client, "x", &taken) == PLB_OK && io->shutdown(s, client.stream) == PLB_OK;
        sim_run_for(s, 10);
        fine = fine && get(&server, text, sizeof text) == PLB_OK && io->info(s, server.stream, &info) == PLB_OK;
        drop(&server);
    }
    drop(&client);
    drop(&listener);
    return fine;
}

TEST the_nth_call_fails_for_every_n(void)
{
    uint64_t n;
    for (n = 1; n < 100; n++) {
        s->io_calls = 0;
        s->fail_io_at = n;
        if (visit_every_call())
            break;
        ASSERT_COUNT(0, s->streams);
    }
    ASSERT_COUNT(8, n); /* seven calls there are that can fail, and resolve */
    PASS();
}

TEST a_failing_call_says_what_the_contract_allows(void)
{
    end e;
    s->fail_io_at = 1;
    s->fail_io_count = 3;
    ASSERT_EQ(PLB_ERR_LIMIT, dial_text("10.0.0.1:80", &e));
    s->fail_io_status = PLB_ERR_UNREACHABLE;
    ASSERT_EQ(PLB_ERR_UNREACHABLE, dial_text("10.0.0.1:80", &e));
    s->fail_io_status = PLB_END;
    ASSERT_EQ(PLB_ERR_LIMIT, dial_text("10.0.0.1:80", &e));
    ASSERT_EQ(PLB_AGAIN, dial_text("10.0.0.1:80", &e));
    drop(&e);
    PASS();
}

TEST a_read_that_was_made_to_fail_breaks_the_connection_for_both(void)
{
    trio t;
    char text[4];
    size_t taken;
    CHECK_CALL(connect_trio(&t, "10.0.0.1:80"));
    ASSERT_EQ(PLB_OK, put(&t.server, "x", &taken));
    sim_run_for(s, 10);
    s->fail_io_at = s->io_calls + 1;
    ASSERT_EQ(PLB_ERR_RESET, get(&t.client, text, sizeof text));
    ASSERT_EQ(PLB_ERR_RESET, get(&t.client, text, sizeof text));
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_ERR_RESET, get(&t.server, text, sizeof text));
    drop_trio(&t);
    PASS();
}

/* ==== DATAGRAMS =================================================================================================== */

static plb_status open_socket(const char *local, const char *remote, end *e)
{
    plb_addr here, there;
    if (local)
        here = sim_addr(local);
    if (remote)
        there = sim_addr(remote);
    return dgram->open(s, local ? &here : NULL, remote ? &there : NULL, handler_of(e), &e->stream);
}

static plb_status post(const end *e, const char *to, const char *text)
{
    plb_addr addr;
    if (to)
        addr = sim_addr(to);
    return dgram->send(s, e->stream, to ? &addr : NULL, text, strlen(text));
}

static plb_status hear(const end *e, char *text, size_t capacity, plb_addr *from)
{
    size_t got = 0;
    plb_status status = dgram->receive(s, e->stream, text, capacity - 1, &got, from);
    text[status == PLB_OK && got < capacity ? got : 0] = '\0';
    return status;
}

/* How many datagrams are there? */
static unsigned hear_all(const end *e)
{
    char text[16];
    unsigned count = 0;
    while (hear(e, text, sizeof text, NULL) == PLB_OK)
        count++;
    return count;
}

static plb_addr address_of(const end *e)
{
    plb_stream_info info;
    if (dgram->info(s, e->stream, &info) != PLB_OK)
        abort();
    return info.local;
}

static void shut(const end *e)
{
    dgram->close(s, e->stream);
}

TEST a_datagram_arrives_after_the_latency(void)
{
    end server, client;
    char text[16];
    plb_addr from, addr = sim_addr("10.0.0.1:53"), here;
    ASSERT_EQ(PLB_OK, open_socket("10.0.0.1:53", NULL, &server));
    ASSERT_EQ(PLB_OK, open_socket(NULL, "10.0.0.1:53", &client));
    here = address_of(&client);
    sim_host(s, &addr)->latency_ms = 7;
    ASSERT_EQ(PLB_AGAIN, hear(&server, text, sizeof text, NULL));
    ASSERT_EQ(PLB_OK, post(&client, NULL, "query"));
    sim_run_for(s, 6);
    ASSERT_EQ(0, server.reads);
    sim_run_for(s, 1);
    ASSERT_EQ(1, server.reads);
    ASSERT_EQ(PLB_OK, hear(&server, text, sizeof text, &from));
    ASSERT_STR_EQ("query", text);
    ASSERT_EQ(0, plb_addr_compare(&here, &from));
    shut(&client);
    shut(&server);
    PASS();
}

TEST a_socket_on_any_address_speaks_for_this_machine(void)
{
    end server, client;
    char text[16];
    plb_addr from, expected = sim_addr("127.0.0.1:5353");
    ASSERT_EQ(PLB_OK, open_socket("0.0.0.0:5353", NULL, &server));
    ASSERT_EQ(PLB_OK, open_socket("10.0.0.9:7", NULL, &client));
    ASSERT_EQ(PLB_OK, post(&client, "10.0.0.3:5353", "hello"));
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_OK, hear(&server, text, sizeof text, &from));
    ASSERT_EQ(PLB_OK, dgram->send(s, server.stream, &from, "you", 3));
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_OK, hear(&client, text, sizeof text, &from));
    ASSERT_EQ(0, plb_addr_compare(&expected, &from));
    shut(&client);
    shut(&server);
    PASS();
}

TEST datagrams_get_lost_and_come_twice_as_often_as_told(void)
{
    static const struct {
        uint32_t loss, twice;
        unsigned least, most; /* of 1000 */
    } rows[] = {{0, 0, 1000, 1000}, {100, 0, 0, 0}, {0, 100, 2000, 2000}, {30, 0, 600, 800}, {0, 30, 1200, 1400}};
    end server, client;
    plb_addr addr = sim_addr("10.0.0.1:53");
    unsigned i, n, came;
    ASSERT_EQ(PLB_OK, open_socket("10.0.0.1:53", NULL, &server));
    ASSERT_EQ(PLB_OK, open_socket(NULL, "10.0.0.1:53", &client));
    for (i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        sim_host(s, &addr)->loss_percent = rows[i].loss;
        sim_host(s, &addr)->double_percent = rows[i].twice;
        for (n = 0; n < 1000; n++)
            ASSERT_EQ(PLB_OK, post(&client, NULL, "x"));
        sim_run_for(s, 10);
        came = hear_all(&server);
        ASSERT(came >= rows[i].least && came <= rows[i].most);
    }
    shut(&client);
    shut(&server);
    PASS();
}

TEST jitter_lets_datagrams_overtake_one_another(void)
{
    end server, client;
    char text[4], order[11] = "";
    plb_addr addr = sim_addr("10.0.0.1:53");
    int i;
    ASSERT_EQ(PLB_OK, open_socket("10.0.0.1:53", NULL, &server));
    ASSERT_EQ(PLB_OK, open_socket(NULL, "10.0.0.1:53", &client));
    sim_host(s, &addr)->jitter_ms = 20;
    for (i = 0; i < 10; i++) {
        text[0] = (char)('0' + i);
        text[1] = '\0';
        ASSERT_EQ(PLB_OK, post(&client, NULL, text));
    }
    sim_run_for(s, 21);
    for (i = 0; i < 10; i++) {
        ASSERT_EQ(PLB_OK, hear(&server, text, sizeof text, NULL));
        order[i] = text[0];
    }
    ASSERT(strcmp(order, "0123456789") != 0);
    shut(&client);
    shut(&server);
    PASS();
}

/* With a remote address what became of a datagram is told once, and the socket goes on; without one it is not told. */
TEST a_fault_decides_what_becomes_of_datagrams(void)
{
    static const struct {
        sim_fault fault;
        plb_status told;
    } rows[] = {{SIM_REFUSE, PLB_ERR_REFUSED},
                {SIM_UNREACHABLE, PLB_ERR_UNREACHABLE},
                {SIM_HANG, PLB_AGAIN},
                {SIM_SILENT, PLB_AGAIN}};
    end server, client, other;
    char text[16];
    plb_addr addr = sim_addr("10.0.0.1:53");
    size_t i;
    ASSERT_EQ(PLB_OK, open_socket("10.0.0.1:53", NULL, &server));
    ASSERT_EQ(PLB_OK, open_socket(NULL, "10.0.0.1:53", &client));
    ASSERT_EQ(PLB_OK, open_socket("10.0.0.2:7", NULL, &other));
    for (i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        sim_host(s, &addr)->fault = rows[i].fault;
        ASSERT_EQ(PLB_OK, post(&client, NULL, "x"));
        ASSERT_EQ(PLB_OK, post(&other, "10.0.0.1:53", "x"));
        sim_run_for(s, 10);
        ASSERT_EQ(0, hear_all(&server));
        ASSERT_EQ(PLB_AGAIN, hear(&other, text, sizeof text, NULL));
        ASSERT_EQ(rows[i].told, hear(&client, text, sizeof text, NULL));
        ASSERT_EQ(PLB_AGAIN, hear(&client, text, sizeof text, NULL));
    }
    ASSERT_EQ(0, other.reads);
    sim_host(s, &addr)->fault = SIM_FINE;
    sim_run_for(s, 10);
    ASSERT_EQ(0, hear_all(&server)); /* a hang does not keep them */
    ASSERT_EQ(PLB_OK, post(&client, NULL, "x"));
    sim_run_for(s, 10);
    ASSERT_EQ(1, hear_all(&server));
    shut(&other);
    shut(&client);
    shut(&server);
    PASS();
}

/* Whoever calls first hears of it: here the one who sends. */
TEST what_nobody_hears_is_refused(void)
{
    end client;
    char text[16];
    ASSERT_EQ(PLB_OK, open_socket(NULL, "10.0.0.1:53", &client));
    ASSERT_EQ(PLB_AGAIN, hear(&client, text, sizeof text, NULL));
    ASSERT_EQ(PLB_OK, post(&client, NULL, "x"));
    sim_run_for(s, 1);
    ASSERT_EQ(0, client.reads);
    sim_run_for(s, 1);
    ASSERT_EQ(1, client.reads);
    ASSERT_EQ(PLB_ERR_REFUSED, post(&client, NULL, "x"));
    ASSERT_EQ(PLB_OK, post(&client, NULL, "x"));
    shut(&client);
    sim_run_for(s, 10);
    PASS();
}

/* Answers with what it was told, backwards. */
static void answer_backwards(void *user, sim *network, const plb_addr *at, const plb_addr *from, const char *bytes,
                             size_t count)
{
    char answer[16];
    size_t i;
    for (i = 0; i < count; i++)
        answer[i] = bytes[count - 1 - i];
    ++*(unsigned *)user;
    sim_datagram(network, at, from, answer, count);
}

TEST a_host_of_datagrams_can_be_played(void)
{
    end client, rival;
    char text[16];
    unsigned calls = 0;
    plb_addr from, addr = sim_addr("10.0.0.1:53");
    sim_serve_datagrams(s, &addr, answer_backwards, &calls);
    sim_host(s, &addr)->latency_ms = 20;
    ASSERT_EQ(PLB_ERR_IN_USE, open_socket("10.0.0.1:53", NULL, &rival));
    ASSERT_EQ(PLB_OK, open_socket(NULL, "10.0.0.1:53", &client));
    ASSERT_EQ(PLB_OK, post(&client, NULL, "abc"));
    sim_run_for(s, 39); /* there and back, both as the host says */
    ASSERT_EQ(PLB_AGAIN, hear(&client, text, sizeof text, NULL));
    sim_run_for(s, 1);
    ASSERT_EQ(PLB_OK, hear(&client, text, sizeof text, &from));
    ASSERT_STR_EQ("cba", text);
    ASSERT_EQ(0, plb_addr_compare(&addr, &from));
    ASSERT_EQ(1, calls);
    ASSERT_COUNT(1, sim_host(s, &addr)->datagrams);
    sim_serve_datagrams(s, &addr, NULL, NULL);
    ASSERT_EQ(PLB_OK, post(&client, NULL, "abc"));
    sim_run_for(s, 40);
    ASSERT_EQ(PLB_ERR_REFUSED, hear(&client, text, sizeof text, NULL));
    shut(&client);
    PASS();
}

TEST a_forgery_reaches_only_who_hears_everybody(void)
{
    end client, open;
    plb_addr forger = sim_addr("10.6.6.6:53"), to;
    ASSERT_EQ(PLB_OK, open_socket(NULL, "10.0.0.1:53", &client));
    ASSERT_EQ(PLB_OK, open_socket("10.0.0.2:0", NULL, &open));
    to = address_of(&client);
    sim_datagram(s, &forger, &to, "forged", 6);
    to = address_of(&open);
    sim_datagram(s, &forger, &to, "forged", 6);
    sim_run_for(s, 10);
    ASSERT_EQ(0, hear_all(&client));
    ASSERT_EQ(1, hear_all(&open));
    shut(&open);
    shut(&client);
    PASS();
}

TEST what_a_socket_has_no_room_for_is_lost(void)
{
    end e;
    char bytes[1000] = {0}, text[4];
    plb_addr to;
    unsigned i;
    s->defaults.buffer_bytes = 3500;
    ASSERT_EQ(PLB_OK, open_socket("127.0.0.1:0", NULL, &e));
    to = address_of(&e);
    for (i = 0; i < 5; i++)
        ASSERT_EQ(PLB_OK, dgram->send(s, e.stream, &to, bytes, sizeof bytes));
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_OK, hear(&e, text, sizeof text, NULL)); /* cut, but it made room for a whole one */
    ASSERT_EQ(PLB_OK, dgram->send(s, e.stream, &to, bytes, sizeof bytes));
    sim_run_for(s, 10);
    ASSERT_EQ(3, hear_all(&e));
    ASSERT_EQ(PLB_OK, dgram->send(s, e.stream, &to, bytes, sizeof bytes));
    shut(&e); /* with one on its way, which nobody gets */
    PASS();
}

/* One of each call, as far as it gets. Returns false once a call failed. */
static bool visit_every_datagram_call(void)
{
    end e;
    plb_stream_info info;
    char text[8];
    bool fine;
    if (open_socket(NULL, "10.0.0.1:53", &e) != PLB_OK)
        return false;
    fine = post(&e, NULL, "x") == PLB_OK && hear(&e, text, sizeof text, NULL) == PLB_AGAIN &&
           dgram->info(s, e.stream, &info) == PLB_OK;
    shut(&e);
    return fine;
}

TEST the_nth_call_of_datagrams_fails_for_every_n(void)
{
    uint64_t n;
    for (n = 1; n < 100; n++) {
        s->io_calls = 0;
        s->fail_io_at = n;
        if (visit_every_datagram_call())
            break;
        ASSERT_COUNT(0, s->streams);
    }
    ASSERT_COUNT(5, n);
    PASS();
}

TEST a_receive_that_was_made_to_fail_breaks_the_socket_or_passes(void)
{
    end e;
    char text[8];
    ASSERT_EQ(PLB_OK, open_socket("10.0.0.1:53", NULL, &e));
    s->fail_io_at = s->io_calls + 1;
    s->fail_io_status = PLB_ERR_MEMORY;
    ASSERT_EQ(PLB_ERR_MEMORY, hear(&e, text, sizeof text, NULL));
    ASSERT_EQ(PLB_AGAIN, hear(&e, text, sizeof text, NULL));
    s->fail_io_at = s->io_calls + 1;
    s->fail_io_status = PLB_OK;
    ASSERT_EQ(PLB_ERR_IO, hear(&e, text, sizeof text, NULL));
    ASSERT_EQ(PLB_ERR_IO, hear(&e, text, sizeof text, NULL));
    ASSERT_EQ(PLB_ERR_IO, post(&e, "10.0.0.2:53", "x"));
    shut(&e);
    PASS();
}

TEST sockets_are_among_the_streams(void)
{
    end listener, socket, client, server;
    s->max_streams = 3;
    ASSERT_EQ(PLB_OK, listen_at("10.0.0.1:53", 0, false, &listener));
    ASSERT_EQ(PLB_OK, open_socket("10.0.0.1:53", NULL, &socket)); /* ports of their own */
    ASSERT_EQ(PLB_AGAIN, dial_text("10.0.0.1:53", &client));
    ASSERT_EQ(PLB_ERR_LIMIT, open_socket(NULL, "10.0.0.1:53", &server));
    ASSERT(server.stream == NULL);
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_AGAIN, take(&listener, &server));
    ASSERT_COUNT(3, s->streams);
    shut(&socket);
    sim_run_for(s, 10);
    ASSERT_EQ(1, listener.accepts);
    ASSERT_EQ(PLB_OK, take(&listener, &server));
    drop(&server);
    drop(&client);
    drop(&listener);
    PASS();
}

TEST a_family_of_datagrams_can_be_missing(void)
{
    end e;
    s->lacks = 1u << PLB_FAMILY_IPV6;
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, open_socket("[::1]:0", NULL, &e));
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, open_socket(NULL, "[::1]:53", &e));
    ASSERT_EQ(PLB_OK, open_socket("127.0.0.1:0", NULL, &e));
    shut(&e);
    PASS();
}

/* ==== PLAYED ENDS ================================================================================================= */

/* Answers each line with itself; closes when the other has ended. */
static size_t echo_lines(void *user, sim_conn *conn, const char *bytes, size_t count)
{
    const char *line_end = strchr(bytes, '\n');
    size_t length = line_end ? (size_t)(line_end - bytes) + 1 : 0;
    (void)user;
    (void)count;
    sim_send(conn, bytes, length);
    if (conn->ended)
        sim_close(conn);
    return length;
}

TEST a_script_answers_what_it_has_in_full(void)
{
    end e;
    char text[16];
    size_t taken;
    plb_addr addr = sim_addr("10.0.0.1:80");
    sim_serve(s, &addr, echo_lines, NULL);
    ASSERT_EQ(PLB_AGAIN, dial(&addr, &e));
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_OK, put(&e, "hel", &taken));
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_AGAIN, get(&e, text, sizeof text));
    ASSERT_EQ(PLB_OK, put(&e, "lo\n", &taken));
    ASSERT_EQ(PLB_OK, io->shutdown(s, e.stream));
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_OK, get(&e, text, sizeof text));
    ASSERT_STR_EQ("hello\n", text);
    ASSERT_EQ(PLB_END, get(&e, text, sizeof text));
    ASSERT_COUNT(1, sim_host(s, &addr)->connects);
    drop(&e);
    PASS();
}

TEST a_script_is_bound_by_the_readers_buffer(void)
{
    end e;
    char text[16];
    plb_addr addr = sim_addr("10.0.0.1:80");
    s->defaults.buffer_bytes = 4;
    sim_serve(s, &addr, NULL, NULL);
    ASSERT_EQ(PLB_AGAIN, dial(&addr, &e));
    sim_run_for(s, 10);
    sim_send_text(sim_newest(s, &addr), "0123456789");
    sim_end(sim_newest(s, &addr));
    sim_run_for(s, 10);
    ASSERT_COUNT(4, sim_newest(s, &addr)->sent);
    ASSERT_EQ(PLB_OK, get(&e, text, sizeof text));
    ASSERT_EQ(PLB_AGAIN, get(&e, text, sizeof text));
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_OK, get(&e, text, sizeof text));
    ASSERT_STR_EQ("4567", text);
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_OK, get(&e, text, sizeof text));
    ASSERT_EQ(PLB_END, get(&e, text, sizeof text));
    drop(&e);
    PASS();
}

TEST a_client_can_be_played_and_paused(void)
{
    end listener, server;
    sim_conn *client;
    size_t taken;
    plb_addr addr = sim_addr("10.0.0.1:80");
    s->defaults.buffer_bytes = 4;
    ASSERT_EQ(PLB_OK, listen_at("10.0.0.1:80", 0, false, &listener));
    client = sim_dial(s, &addr, NULL, NULL);
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_OK, client->status);
    ASSERT_EQ(PLB_OK, take(&listener, &server));
    sim_pause(client, true);
    ASSERT_EQ(PLB_OK, put(&server, "abcdef", &taken));
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_AGAIN, put(&server, "ef", &taken));
    ASSERT_COUNT(0, client->inbox.size);
    sim_pause(client, false);
    sim_run_for(s, 10);
    ASSERT_COUNT(1, server.writes);
    ASSERT_STRN_EQ("abcd", client->inbox.data, client->inbox.size);
    sim_reset(client);
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_ERR_RESET, put(&server, "ef", &taken));
    drop(&server);
    drop(&listener);
    PASS();
}

TEST an_address_can_stop_being_served(void)
{
    end before, after;
    plb_addr addr = sim_addr("10.0.0.1:80");
    sim_serve(s, &addr, NULL, NULL);
    ASSERT_EQ(PLB_AGAIN, dial(&addr, &before));
    sim_run_for(s, 10);
    sim_unserve(s, &addr);
    ASSERT_EQ(PLB_AGAIN, dial(&addr, &after));
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_OK, before.connected);
    ASSERT_EQ(PLB_ERR_REFUSED, after.connected);
    ASSERT_COUNT(2, sim_host(s, &addr)->connects);
    ASSERT_COUNT(1, sim_host(s, &addr)->open);
    drop(&before);
    drop(&after);
    PASS();
}

TEST what_reaches_a_script_that_has_closed_is_reset(void)
{
    end e;
    char text[4];
    size_t taken;
    plb_addr addr = sim_addr("10.0.0.1:80");
    sim_serve(s, &addr, NULL, NULL);
    ASSERT_EQ(PLB_AGAIN, dial(&addr, &e));
    sim_run_for(s, 10);
    sim_send_text(sim_newest(s, &addr), "bye");
    sim_close(sim_newest(s, &addr));
    ASSERT_EQ(PLB_OK, put(&e, "too late", &taken));
    sim_run_for(s, 10);
    ASSERT_EQ(PLB_OK, get(&e, text, sizeof text));
    ASSERT_STR_EQ("bye", text);
    ASSERT_EQ(PLB_END, get(&e, text, sizeof text));
    ASSERT_EQ(PLB_ERR_RESET, put(&e, "x", &taken));
    drop(&e);
    PASS();
}

/* Sends a text through a net that cuts it at random; returns a digest of the sizes in which it came. */
static uint64_t digest_of_random_run(uint64_t seed, char *text, size_t capacity)
{
    end e;
    uint64_t digest = 0;
    size_t length = 0, got;
    plb_addr addr = sim_addr("10.0.0.1:80");
    char greeting[] = "The quick brown fox jumps over the lazy dog";
    sim_destroy(s);
    setup(NULL);
    s->random_state = seed;
    s->random_sizes = true;
    sim_serve(s, &addr, greet, greeting);
    if (dial(&addr, &e) != PLB_AGAIN)
        return 0;
    sim_run_for(s, 10);
    while (length < capacity - 1 && io->read(s, e.stream, text + length, capacity - 1 - length, &got) == PLB_OK) {
        length += got;
        digest = digest * 31 + got;
    }
    text[length] = '\0';
    drop(&e);
    return digest;
}

TEST the_same_seed_gives_the_same_run(void)
{
    char text[64];
    uint64_t first = digest_of_random_run(7, text, sizeof text);
    ASSERT_STR_EQ("The quick brown fox jumps over the lazy dog", text);
    ASSERT_EQ(first, digest_of_random_run(7, text, sizeof text));
    ASSERT_NEQ(first, digest_of_random_run(8, text, sizeof text));
    PASS();
}

/* ==== CLOCK, TASKS, RANDOM ======================================================================================== */

TEST the_clock_wraps_jumps_and_steps_back(void)
{
    const plb_clock *clock = sim_port(s).clock;
    s->clock_bits = 32;
    s->clock_offset = UINT32_MAX - 5;
    ASSERT_EQ(UINT32_MAX - 5, clock->now_ms(clock->self));
    sim_run_for(s, 10);
    ASSERT_COUNT(4, clock->now_ms(clock->self));
    s->clock_offset += 1000;
    ASSERT_COUNT(1004, clock->now_ms(clock->self));
    s->clock_offset -= 4;
    ASSERT_COUNT(1000, clock->now_ms(clock->self));
    ASSERT_COUNT(10, s->now_ms);
    ASSERT_COUNT(1000000, clock->now_us(clock->self));
    PASS();
}

TEST random_bytes_follow_from_the_seed(void)
{
    unsigned char first[16], again[16];
    sim *other = sim_create(1);
    plb_port port = sim_port(other);
    port.random->fill(port.random->self, first, sizeof first);
    port.random->fill(port.random->self, again, sizeof again);
    ASSERT_NEQ(0, memcmp(first, again, sizeof first));
    port = sim_port(s);
    port.random->fill(port.random->self, again, sizeof again);
    sim_destroy(other);
    ASSERT_MEM_EQ(first, again, sizeof first);
    PASS();
}

typedef struct counted_task {
    plb_task task;
    unsigned polls;
    uint32_t delay_ms;
    plb_task *removes; /* when it is polled first */
} counted_task;

static uint32_t poll_counted(void *user)
{
    counted_task *task = (counted_task *)user;
    task->polls++;
    if (task->removes)
        sim_remove_task(s, task->removes);
    task->removes = NULL;
    return task->delay_ms;
}

static void make_task(counted_task *task, uint32_t delay_ms, plb_task *removes)
{
    memset(task, 0, sizeof *task);
    task->task.poll = poll_counted;
    task->task.user = task;
    task->delay_ms = delay_ms;
    task->removes = removes;
    sim_add_task(s, &task->task);
}

TEST tasks_are_polled_when_they_asked_for_it(void)
{
    counted_task every_ten, idle;
    make_task(&every_ten, 10, NULL);
    make_task(&idle, PLB_FOREVER, NULL);
    sim_run_for(s, 100);
    ASSERT_COUNT(11, every_ten.polls); /* when added, and each 10 ms */
    ASSERT_COUNT(11, idle.polls);      /* after each step */
    sim_remove_task(s, &every_ten.task);
    sim_remove_task(s, &idle.task);
    PASS();
}

TEST a_task_may_remove_itself_or_the_next_one(void)
{
    counted_task first, second, third;
    make_task(&third, 10, &third.task);
    make_task(&second, 10, NULL);
    make_task(&first, 10, &second.task); /* the newest is polled first */
    sim_run_for(s, 100);
    ASSERT_COUNT(11, first.polls);
    ASSERT_COUNT(0, second.polls);
    ASSERT_COUNT(1, third.polls);
    sim_remove_task(s, &first.task);
    PASS();
}

TEST wake_ends_a_step_early(void)
{
    counted_task idle;
    make_task(&idle, PLB_FOREVER, NULL);
    sim_step(s, 0);
    sim_wake_in(s, 7);
    sim_step(s, 1000);
    ASSERT_COUNT(7, s->now_ms);
    ASSERT_COUNT(2, idle.polls);
    io->wake(s);
    sim_step(s, 1000);
    ASSERT_COUNT(7, s->now_ms);
    sim_step(s, 1000);
    ASSERT_COUNT(1007, s->now_ms);
    sim_remove_task(s, &idle.task);
    PASS();
}

static bool polled_thrice(void *user)
{
    return ((counted_task *)user)->polls >= 3;
}

TEST a_run_ends_when_what_it_waits_for_is_there(void)
{
    counted_task task;
    make_task(&task, 10, NULL);
    ASSERT_FALSE(sim_run_until(s, polled_thrice, &task, 5));
    ASSERT(sim_run_until(s, polled_thrice, &task, 1000));
    ASSERT_COUNT(15, s->now_ms);
    sim_remove_task(s, &task.task);
    PASS();
}

/* ==== NAMES ======================================================================================================= */

typedef struct answer {
    unsigned calls;
    plb_status status;
    plb_addr first;
    size_t count;
} answer;

static void on_answer(void *user, plb_status status, const plb_addr *addrs, size_t count)
{
    answer *a = (answer *)user;
    a->calls++;
    a->status = status;
    a->count = count;
    if (count > 0)
        a->first = addrs[0];
}

static plb_status resolve(const char *host, uint32_t timeout_ms, answer *a, plb_query **query)
{
    const plb_names *names = sim_port(s).names;
    memset(a, 0, sizeof *a);
    return names->resolve(names->self, host, 8080, timeout_ms, on_answer, a, query);
}

TEST a_name_has_the_addresses_it_has_when_the_answer_comes(void)
{
    plb_addr addrs[2], wanted = sim_addr("10.0.0.2:8080");
    plb_query *query;
    answer a;
    addrs[0] = sim_addr("10.0.0.1:1");
    addrs[1] = sim_addr("10.0.0.2:1");
    sim_name_set(s, "app", addrs, 2)->delay_ms = 20;
    ASSERT_EQ(PLB_AGAIN, resolve("app", 1000, &a, &query));
    sim_name_set(s, "app", &addrs[1], 1);
    sim_run_for(s, 19);
    ASSERT_COUNT(0, a.calls);
    sim_run_for(s, 1);
    ASSERT_COUNT(1, a.calls);
    ASSERT_EQ(PLB_OK, a.status);
    ASSERT_COUNT(1, a.count);
    ASSERT_EQ(0, plb_addr_compare(&wanted, &a.first));
    PASS();
}

TEST names_fail_as_they_are_told_to(void)
{
    plb_addr addr = sim_addr("10.0.0.1:1");
    plb_query *query;
    answer unknown, broken, slow, hung;
    sim_name_set(s, "broken", &addr, 1)->status = PLB_ERR_IO;
    sim_name_set(s, "slow", &addr, 1)->delay_ms = 200;
    sim_name_set(s, "hung", &addr, 1)->hang = true;
    ASSERT_EQ(PLB_AGAIN, resolve("unknown", 100, &unknown, &query));
    ASSERT_EQ(PLB_AGAIN, resolve("broken", 100, &broken, &query));
    ASSERT_EQ(PLB_AGAIN, resolve("slow", 100, &slow, &query));
    ASSERT_EQ(PLB_AGAIN, resolve("hung", 100, &hung, &query));
    sim_run_for(s, 99);
    ASSERT_EQ(PLB_ERR_NAME, unknown.status);
    ASSERT_EQ(PLB_ERR_IO, broken.status);
    ASSERT_COUNT(0, slow.calls + hung.calls);
    sim_run_for(s, 1);
    ASSERT_EQ(PLB_ERR_TIMEOUT, slow.status);
    ASSERT_EQ(PLB_ERR_TIMEOUT, hung.status);
    s->fail_io_at = s->io_calls + 1;
    ASSERT_EQ(PLB_ERR_LIMIT, resolve("slow", 100, &slow, &query));
    PASS();
}

TEST a_cancelled_query_is_not_answered(void)
{
    const plb_names *names = sim_port(s).names;
    plb_query *query;
    answer a;
    ASSERT_EQ(PLB_AGAIN, resolve("app", 100, &a, &query));
    names->cancel(names->self, query);
    sim_run_for(s, 1000);
    ASSERT_COUNT(0, a.calls);
    PASS();
}

/* ==== MISUSE ====================================================================================================== */

static jmp_buf caught;
static char sentence[256];

static void catch_misuse(const char *text)
{
    snprintf(sentence, sizeof sentence, "%s", text);
    longjmp(caught, 1);
}

/* What the offences below use. */
static trio offended;
static plb_chunk offending_chunk;
static size_t moved;
static char changing[] = "constant";

static void offend_read_after_close(void)
{
    drop(&offended.client);
    get(&offended.client, changing, 2);
}

static void offend_close_twice(void)
{
    drop(&offended.client);
    drop(&offended.client);
}

static void offend_read_nothing(void)
{
    get(&offended.client, changing, 1);
}

static void offend_write_nothing(void)
{
    put(&offended.client, "", &moved);
}

static void offend_write_too_many_chunks(void)
{
    plb_chunk chunks[PLB_CHUNKS_MAX + 1];
    memset(chunks, 0, sizeof chunks);
    io->write(s, offended.client.stream, chunks, PLB_CHUNKS_MAX + 1, &moved);
}

static void offend_write_after_shutdown(void)
{
    io->shutdown(s, offended.client.stream);
    put(&offended.client, "x", &moved);
}

static void offend_read_a_listener(void)
{
    get(&offended.listener, changing, 2);
}

static void offend_accept_from_a_connection(void)
{
    end e;
    take(&offended.client, &e);
}

static void offend_write_before_connected(void)
{
    static end e;
    dial_text("10.0.0.2:80", &e);
    put(&e, "x", &moved);
}

static void offend_change_constant_bytes(void)
{
    offending_chunk.data = changing;
    offending_chunk.size = 4;
    offending_chunk.flags = PLB_CHUNK_CONSTANT;
    io->write(s, offended.client.stream, &offending_chunk, 1, &moved);
    changing[2]++;
    sim_run_for(s, 10);
}

static void offend_watch_for_accept(void)
{
    io->watch(s, offended.client.stream, PLB_EVENT_ACCEPT);
}

static void offend_foreign_stream(void)
{
    io->close(s, NULL, PLB_CLOSE_ABORT);
}

static end offended_socket;

static void offend_read_a_socket(void)
{
    open_socket("10.0.0.1:53", NULL, &offended_socket);
    get(&offended_socket, changing, 2);
}

static void offend_close_a_socket_as_a_stream(void)
{
    open_socket("10.0.0.1:53", NULL, &offended_socket);
    drop(&offended_socket);
}

static void offend_receive_from_a_connection(void)
{
    hear(&offended.client, changing, 2, NULL);
}

static void offend_receive_nothing(void)
{
    open_socket("10.0.0.1:53", NULL, &offended_socket);
    hear(&offended_socket, changing, 1, NULL);
}

static void offend_send_after_close(void)
{
    open_socket("10.0.0.1:53", NULL, &offended_socket);
    shut(&offended_socket);
    post(&offended_socket, "10.0.0.2:53", "x");
}

static void offend_spin(void)
{
    static counted_task task;
    make_task(&task, 0, NULL);
    sim_run_for(s, 1);
}

static void offend_cancel_twice(void)
{
    const plb_names *names = sim_port(s).names;
    plb_query *query = NULL;
    static answer a;
    resolve("app", 100, &a, &query);
    names->cancel(s, query);
    names->cancel(s, query);
}

static uint32_t step_again(void *user)
{
    (void)user;
    sim_step(s, 0);
    return PLB_FOREVER;
}

static void offend_step_in_a_step(void)
{
    static plb_task task;
    task.poll = step_again;
    sim_add_task(s, &task);
    sim_step(s, 0);
}

/* What an offence that was caught in its midst has left behind. */
static void drop_everything(void)
{
    size_t i;
    for (i = 0; i < s->conn_count; i++) {
        plb_stream *stream = (plb_stream *)(void *)s->conns[i];
        if (!s->conns[i]->owned || s->conns[i]->closed)
            continue;
        if (s->conns[i]->datagrams)
            dgram->close(s, stream);
        else
            io->close(s, stream, PLB_CLOSE_ABORT);
    }
    while (s->tasks)
        sim_remove_task(s, s->tasks);
    s->stepping = false;
}

TEST misuse_is_named(void (*offend)(void), const char *wanted)
{
    CHECK_CALL(connect_trio(&offended, "10.0.0.1:80"));
    sim_on_misuse = catch_misuse;
    sentence[0] = '\0';
    if (setjmp(caught) == 0)
        offend();
    sim_on_misuse = NULL;
    drop_everything();
    ASSERT_STR_EQ(wanted, sentence);
    PASS();
}

TEST no_other_test_left_anything_open(void)
{
    ASSERT_COUNT(0, left_open);
    PASS();
}

TEST what_was_left_open_is_counted(void)
{
    trio t;
    size_t leaks;
    CHECK_CALL(connect_trio(&t, "10.0.0.1:80"));
    drop(&t.client);
    leaks = sim_destroy(s);
    s = NULL;
    ASSERT_COUNT(2, leaks);
    PASS();
}

/* ==== MEMORY ====================================================================================================== */

TEST allocations_fail_when_they_are_told_to(void)
{
    sim_alloc memory = {0};
    plb_allocator allocator = sim_allocator(&memory);
    void *a, *b;
    memory.fail_at = 2;
    a = allocator.alloc(allocator.user, 10);
    ASSERT(a != NULL);
    ASSERT_EQ(NULL, allocator.alloc(allocator.user, 10));
    b = allocator.alloc(allocator.user, 20);
    ASSERT(b != NULL);
    ASSERT_COUNT(30, memory.live_bytes);
    ASSERT_COUNT(2, memory.live_blocks);
    allocator.dealloc(allocator.user, a, 10);
    ASSERT_COUNT(1, sim_alloc_leaks(&memory));
    allocator.dealloc(allocator.user, b, 20);
    ASSERT_COUNT(0, sim_alloc_leaks(&memory));
    ASSERT_COUNT(30, memory.peak_bytes);
    PASS();
}

TEST memory_can_run_out(void)
{
    sim_alloc memory = {0};
    plb_allocator allocator = sim_allocator(&memory);
    void *a;
    memory.max_bytes = 100;
    a = allocator.alloc(allocator.user, 60);
    ASSERT(a != NULL);
    ASSERT_EQ(NULL, allocator.alloc(allocator.user, 41));
    allocator.dealloc(allocator.user, a, 60);
    a = allocator.alloc(allocator.user, 100);
    ASSERT(a != NULL);
    allocator.dealloc(allocator.user, a, 100);
    ASSERT_EQ(NULL, allocator.alloc(allocator.user, SIZE_MAX));
    PASS();
}

TEST new_memory_holds_no_zeros(void)
{
    sim_alloc memory = {0};
    plb_allocator allocator = sim_allocator(&memory);
    unsigned char *a = (unsigned char *)allocator.alloc(allocator.user, 3);
    ASSERT_MEM_EQ("\xCD\xCD\xCD", a, 3);
    allocator.dealloc(allocator.user, a, 3);
    PASS();
}

TEST a_wrong_size_given_back_is_named(void)
{
    sim_alloc memory = {0};
    plb_allocator allocator = sim_allocator(&memory);
    void *volatile a = allocator.alloc(allocator.user, 10);
    sim_on_misuse = catch_misuse;
    if (setjmp(caught) == 0)
        allocator.dealloc(allocator.user, a, 11);
    sim_on_misuse = NULL;
    ASSERT_STR_EQ("dealloc says 11 bytes of allocation 1, which has 10", sentence);
    allocator.dealloc(allocator.user, a, 10);
    PASS();
}

/* ==== SUITES ====================================================================================================== */

SUITE(streams)
{
    SET_SETUP(setup, NULL);
    SET_TEARDOWN(teardown, NULL);
    RUN_TEST1(bytes_travel_both_ways_in_every_family, "127.0.0.1:0");
    RUN_TEST1(bytes_travel_both_ways_in_every_family, "[::1]:0");
    RUN_TEST1(bytes_travel_both_ways_in_every_family, "unix:/run/app");
    RUN_TEST(both_ends_know_their_addresses);
    RUN_TEST(what_is_sent_arrives_after_the_latency);
    RUN_TEST(a_rate_spreads_bytes_over_time);
    RUN_TEST(a_rate_is_one_of_bytes_and_not_of_writes);
    RUN_TEST(again_arms_one_callback_and_nothing_else_does);
    RUN_TEST(close_cancels_what_was_armed);
    RUN_TEST(a_full_buffer_stops_the_writer_until_the_reader_reads);
    RUN_TEST(transfers_can_be_one_byte_each);
    RUN_TEST(a_gathered_write_keeps_its_order);
    RUN_TEST(half_a_connection_can_end);
    RUN_TEST(a_graceful_close_delivers_what_was_written);
    RUN_TEST(a_writer_without_room_hears_that_nobody_will_read);
    RUN_TEST(writing_to_who_has_closed_ends_in_a_reset);
    RUN_TEST(an_abort_is_a_reset_for_the_peer);
    RUN_TEST(a_connection_given_up_early_is_reset_for_the_listener);
}

SUITE(listeners)
{
    SET_SETUP(setup, NULL);
    SET_TEARDOWN(teardown, NULL);
    RUN_TEST(nobody_listens_nobody_connects);
    RUN_TEST(an_address_is_taken_once_unless_all_agree_to_share);
    RUN_TEST(a_chosen_port_is_a_free_one);
    RUN_TEST(listeners_that_share_take_turns);
    RUN_TEST(a_listener_on_all_addresses_takes_any);
    RUN_TEST(a_full_backlog_refuses);
    RUN_TEST(a_closed_listener_resets_who_was_waiting);
    RUN_TEST(accept_waits_for_a_stream_to_be_free);
    RUN_TEST(a_connection_comes_from_where_it_was_told_to);
    RUN_TEST(a_family_can_be_missing);
}

SUITE(faults)
{
    SET_SETUP(setup, NULL);
    SET_TEARDOWN(teardown, NULL);
    RUN_TEST(a_fault_decides_how_connections_fail);
    RUN_TEST(instant_connect_knows_at_once);
    RUN_TEST(what_a_hang_held_back_arrives_in_order_when_it_is_lifted);
    RUN_TEST(a_silent_host_takes_bytes_until_it_is_full);
    RUN_TESTp(a_host_cuts_a_connection_after_so_many_bytes, SIM_RESET, PLB_ERR_RESET);
    RUN_TESTp(a_host_cuts_a_connection_after_so_many_bytes, SIM_TRUNCATE, PLB_END);
    RUN_TESTp(a_host_cuts_a_connection_as_soon_as_it_is_made, SIM_RESET, PLB_ERR_RESET);
    RUN_TESTp(a_host_cuts_a_connection_as_soon_as_it_is_made, SIM_TRUNCATE, PLB_END);
    RUN_TEST(the_nth_call_fails_for_every_n);
    RUN_TEST(a_failing_call_says_what_the_contract_allows);
    RUN_TEST(a_read_that_was_made_to_fail_breaks_the_connection_for_both);
}

SUITE(datagrams)
{
    SET_SETUP(setup, NULL);
    SET_TEARDOWN(teardown, NULL);
    RUN_TEST(a_datagram_arrives_after_the_latency);
    RUN_TEST(a_socket_on_any_address_speaks_for_this_machine);
    RUN_TEST(datagrams_get_lost_and_come_twice_as_often_as_told);
    RUN_TEST(jitter_lets_datagrams_overtake_one_another);
    RUN_TEST(a_fault_decides_what_becomes_of_datagrams);
    RUN_TEST(what_nobody_hears_is_refused);
    RUN_TEST(a_host_of_datagrams_can_be_played);
    RUN_TEST(a_forgery_reaches_only_who_hears_everybody);
    RUN_TEST(what_a_socket_has_no_room_for_is_lost);
    RUN_TEST(the_nth_call_of_datagrams_fails_for_every_n);
    RUN_TEST(a_receive_that_was_made_to_fail_breaks_the_socket_or_passes);
    RUN_TEST(sockets_are_among_the_streams);
    RUN_TEST(a_family_of_datagrams_can_be_missing);
}

SUITE(played_ends)
{
    SET_SETUP(setup, NULL);
    SET_TEARDOWN(teardown, NULL);
    RUN_TEST(a_script_answers_what_it_has_in_full);
    RUN_TEST(a_script_is_bound_by_the_readers_buffer);
    RUN_TEST(a_client_can_be_played_and_paused);
    RUN_TEST(an_address_can_stop_being_served);
    RUN_TEST(what_reaches_a_script_that_has_closed_is_reset);
    RUN_TEST(the_same_seed_gives_the_same_run);
}

SUITE(clock_tasks_names)
{
    SET_SETUP(setup, NULL);
    SET_TEARDOWN(teardown, NULL);
    RUN_TEST(the_clock_wraps_jumps_and_steps_back);
    RUN_TEST(random_bytes_follow_from_the_seed);
    RUN_TEST(tasks_are_polled_when_they_asked_for_it);
    RUN_TEST(a_task_may_remove_itself_or_the_next_one);
    RUN_TEST(wake_ends_a_step_early);
    RUN_TEST(a_run_ends_when_what_it_waits_for_is_there);
    RUN_TEST(a_name_has_the_addresses_it_has_when_the_answer_comes);
    RUN_TEST(names_fail_as_they_are_told_to);
    RUN_TEST(a_cancelled_query_is_not_answered);
}

SUITE(misuse)
{
    SET_SETUP(setup, NULL);
    SET_TEARDOWN(teardown, NULL);
    RUN_TESTp(misuse_is_named, offend_read_after_close, "read after close on #2");
    RUN_TESTp(misuse_is_named, offend_close_twice, "close after close on #2");
    RUN_TESTp(misuse_is_named, offend_read_nothing, "read of 0 bytes on #2");
    RUN_TESTp(misuse_is_named, offend_write_nothing, "write of 0 bytes on #2");
    RUN_TESTp(misuse_is_named, offend_write_too_many_chunks, "write of 9 chunks on #2");
    RUN_TESTp(misuse_is_named, offend_write_after_shutdown, "write after shutdown on #2");
    RUN_TESTp(misuse_is_named, offend_read_a_listener, "read on #1, which is a listener");
    RUN_TESTp(misuse_is_named, offend_accept_from_a_connection, "accept on #2, which is not a listener");
    RUN_TESTp(misuse_is_named, offend_write_before_connected, "write on #4, which is not connected");
    RUN_TESTp(misuse_is_named, offend_change_constant_bytes, "bytes written to #2 as PLB_CHUNK_CONSTANT have changed");
    RUN_TESTp(misuse_is_named, offend_watch_for_accept, "watch for neither reading nor writing on #2");
    RUN_TESTp(misuse_is_named, offend_foreign_stream, "close with something that is not a stream of this port");
    RUN_TESTp(misuse_is_named, offend_read_a_socket, "read on #4, which is a socket of datagrams");
    RUN_TESTp(misuse_is_named, offend_close_a_socket_as_a_stream, "close on #4, which is a socket of datagrams");
    RUN_TESTp(misuse_is_named, offend_receive_from_a_connection, "receive on #2, which is no socket of datagrams");
    RUN_TESTp(misuse_is_named, offend_receive_nothing, "receive of 0 bytes on #4");
    RUN_TESTp(misuse_is_named, offend_send_after_close, "send after close on #4");
    RUN_TESTp(misuse_is_named, offend_spin,
              "time stands still: a task asks for a delay of 0 again and again, or two ends never stop talking");
    RUN_TESTp(misuse_is_named, offend_cancel_twice, "cancel of a query that is over, or never was");
    RUN_TESTp(misuse_is_named, offend_step_in_a_step, "sim_step was called from a callback");
    RUN_TEST(what_was_left_open_is_counted);
    RUN_TEST(no_other_test_left_anything_open);
}

SUITE(memory)
{
    RUN_TEST(allocations_fail_when_they_are_told_to);
    RUN_TEST(memory_can_run_out);
    RUN_TEST(new_memory_holds_no_zeros);
    RUN_TEST(a_wrong_size_given_back_is_named);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(streams);
    RUN_SUITE(listeners);
    RUN_SUITE(faults);
    RUN_SUITE(datagrams);
    RUN_SUITE(played_ends);
    RUN_SUITE(clock_tasks_names);
    RUN_SUITE(misuse);
    RUN_SUITE(memory);
    GREATEST_MAIN_END();
}
