/* What plb_io promises, as tests that any port must pass. A port is linked in by its fixture (io_fixture.h); nothing
   but the fixture is called here. Waits are loops over the port's step, bounded in number. */
#include "io_fixture.h"
#include <greatest.h>

/* ==== HELPERS ===================================================================================================== */

#define STEPS     2000 /* of 10 ms at most: how long something that must happen may take */
#define QUIET     8    /* steps in which something that must not happen would have happened */
#define BULK      (1u << 20)
#define MANY      1000 /* streams, where the port has no limit of its own */
#define ENDS      (MANY + 16)
#define LONG_WAIT 20000u /* milliseconds that no test may really wait */

/* One end of a connection, or a listener, and what it has heard. */
typedef struct end {
    plb_stream *stream; /* NULL: not open */
    unsigned connects, reads, writes, accepts;
    plb_status connected;
    struct end *victim; /* to be closed by the next callback, after this end */
    bool close_self;
    bool datagrams; /* opened by plb_dgram */
} end;

static io_fixture *fixture;
static const plb_io *io;
static const plb_dgram *dgram; /* NULL: the port has none */
static end ends[ENDS];         /* of the test that runs; those that are open at its end are closed */
static size_t end_count;
static bool inside; /* a plb_io or plb_dgram call */
static unsigned calls_inside, calls_after_close;

static uint8_t sent[BULK], received[BULK];

static void drop(end *e, plb_close_how how)
{
    plb_stream *stream = e->stream;
    e->stream = NULL;
    inside = true;
    if (stream != NULL && e->datagrams)
        dgram->close(dgram->self, stream);
    else if (stream != NULL)
        io->close(io->self, stream, how);
    inside = false;
}

static void on_event(void *user, plb_stream *stream, plb_event event, plb_status status)
{
    end *e = (end *)user;
    calls_inside += inside;
    calls_after_close += e->stream != stream;
    e->connects += event == PLB_EVENT_CONNECT;
    e->reads += event == PLB_EVENT_READ;
    e->writes += event == PLB_EVENT_WRITE;
    e->accepts += event == PLB_EVENT_ACCEPT;
    if (event == PLB_EVENT_CONNECT)
        e->connected = status;
    if (e->close_self)
        drop(e, PLB_CLOSE_GRACEFUL);
    if (e->victim != NULL)
        drop(e->victim, PLB_CLOSE_ABORT);
}

static end *new_end(void)
{
    if (end_count == ENDS)
        abort();
    memset(&ends[end_count], 0, sizeof ends[end_count]);
    return &ends[end_count++];
}

static plb_handler handler_of(end *e)
{
    plb_handler handler;
    handler.fn = on_event;
    handler.user = e;
    return handler;
}

static void setup(void *user)
{
    size_t i;
    (void)user;
    fixture = io_fixture_open();
    if (fixture == NULL)
        abort();
    io = fixture->port.io;
    dgram = fixture->port.dgram;
    end_count = 0;
    for (i = 0; i < BULK; i++)
        sent[i] = (uint8_t)(i * 31 + i / 251);
    memset(received, 0, sizeof received);
}

static void teardown(void *user)
{
    size_t i;
    (void)user;
    for (i = 0; i < end_count; i++)
        drop(&ends[i], PLB_CLOSE_ABORT);
    io_fixture_close(fixture);
}

static void step(uint32_t max_ms)
{
    fixture->step(fixture->self, max_ms);
}

static void stay_quiet(void)
{
    int i;
    for (i = 0; i < QUIET; i++)
        step(5);
}

/* Steps until the counter has reached the number. */
static bool reaches(const unsigned *counter, unsigned number)
{
    int i;
    for (i = 0; i < STEPS && *counter < number; i++)
        step(10);
    return *counter >= number;
}

static plb_status listen_at(end *e, const plb_addr *addr)
{
    plb_listen_desc desc;
    plb_status status;
    memset(&desc, 0, sizeof desc);
    desc.addr = *addr;
    inside = true;
    status = io->listen(io->self, &desc, handler_of(e), &e->stream);
    inside = false;
    return status;
}

static plb_status connect_from(end *e, const plb_addr *source, const plb_addr *addr)
{
    plb_peer peer;
    plb_status status;
    memset(&peer, 0, sizeof peer);
    peer.addr = *addr;
    if (source != NULL)
        peer.source = *source;
    inside = true;
    status = io->connect(io->self, &peer, handler_of(e), &e->stream);
    inside = false;
    return status;
}

static plb_status connect_to(end *e, const plb_addr *addr)
{
    return connect_from(e, NULL, addr);
}

/* Connects, and waits for how it ends. */
static plb_status connect_wait(end *e, const plb_addr *addr)
{
    plb_status status = connect_to(e, addr);
    if (status != PLB_AGAIN)
        return status;
    return reaches(&e->connects, 1) ? e->connected : PLB_AGAIN;
}

static plb_status accept_now(end *listener, end *e)
{
    plb_status status;
    inside = true;
    status = io->accept(io->self, listener->stream, handler_of(e), &e->stream);
    inside = false;
    return status;
}

static plb_status accept_wait(end *listener, end *e)
{
    int i;
    for (i = 0; i < STEPS; i++) {
        plb_status status = accept_now(listener, e);
        if (status != PLB_AGAIN)
            return status;
        step(10);
    }
    return PLB_AGAIN;
}

static plb_status read_now(end *e, void *buffer, size_t capacity, size_t *got)
{
    plb_status status;
    inside = true;
    status = io->read(io->self, e->stream, buffer, capacity, got);
    inside = false;
    return status;
}

static plb_status write_chunks(end *e, const plb_chunk *chunks, size_t count, size_t *taken)
{
    plb_status status;
    inside = true;
    status = io->write(io->self, e->stream, chunks, count, taken);
    inside = false;
    return status;
}

static plb_status write_now(end *e, const void *bytes, size_t size, size_t *taken)
{
    plb_chunk chunk;
    chunk.data = bytes;
    chunk.size = size;
    chunk.flags = 0;
    return write_chunks(e, &chunk, 1, taken);
}

static plb_status watch(end *e, plb_event event)
{
    plb_status status;
    inside = true;
    status = io->watch(io->self, e->stream, event);
    inside = false;
    return status;
}

/* Reads until `size` bytes are there; what ended it otherwise, PLB_AGAIN if nothing did. */
static plb_status read_wait(end *e, void *buffer, size_t size)
{
    size_t done = 0, got;
    int i;
    for (i = 0; i < STEPS && done < size;) {
        plb_status status = read_now(e, (char *)buffer + done, size - done, &got);
        if (status == PLB_AGAIN) {
            step(10);
            i++;
        } else if (status != PLB_OK) {
            return status;
        } else {
            done += got;
        }
    }
    return done == size ? PLB_OK : PLB_AGAIN;
}

/* Reads and throws away until the stream ends in one way or the other. */
static plb_status read_to_end(end *e)
{
    char bytes[512];
    plb_status status;
    do
        status = read_wait(e, bytes, 1);
    while (status == PLB_OK);
    return status;
}

/* May a peer see the stream end so? */
static bool is_end_of(plb_close_how how, plb_status status)
{
    return status == (how == PLB_CLOSE_ABORT ? PLB_ERR_RESET : PLB_END) ||
           (fixture->aborts_quietly && status == PLB_END);
}

/* For bytes that fit into any connection. */
static plb_status write_wait(end *e, const void *bytes, size_t size)
{
    size_t done = 0, taken;
    int i;
    for (i = 0; i < STEPS && done < size;) {
        plb_status status = write_now(e, (const char *)bytes + done, size - done, &taken);
        if (status == PLB_AGAIN) {
            step(10);
            i++;
        } else if (status != PLB_OK) {
            return status;
        } else {
            done += taken;
        }
    }
    return done == size ? PLB_OK : PLB_AGAIN;
}

/* What the tests of connections begin with. */
typedef struct pair {
    end *listener, *client, *server;
    plb_addr addr; /* where the listener is */
} pair;

static bool open_listener(pair *p, plb_family family)
{
    plb_stream_info info;
    p->listener = new_end();
    if (!fixture->listen_addr(fixture->self, family, &p->addr) || listen_at(p->listener, &p->addr) != PLB_OK ||
        io->info(io->self, p->listener->stream, &info) != PLB_OK)
        return false;
    p->addr = info.local;
    return true;
}

/* Where both sides have to shake hands, a connection is made only after it was accepted. */
static bool connect_pair(pair *p)
{
    plb_status status;
    p->client = new_end();
    p->server = new_end();
    status = connect_to(p->client, &p->addr);
    if ((status != PLB_OK && status != PLB_AGAIN) || accept_wait(p->listener, p->server) != PLB_OK)
        return false;
    return status == PLB_OK || (reaches(&p->client->connects, 1) && p->client->connected == PLB_OK);
}

/* Knocks at a listener that does not accept: a connection that waits for it, unless that takes a handshake. */
static plb_status knock(const plb_addr *addr)
{
    plb_status status;
    if (!fixture->handshakes)
        return connect_wait(new_end(), addr);
    status = connect_to(new_end(), addr);
    stay_quiet();
    return status == PLB_AGAIN ? PLB_OK : status;
}

static bool open_pair(pair *p, plb_family family)
{
    return open_listener(p, family) && connect_pair(p);
}

static bool has_family(plb_family family)
{
    plb_addr addr;
    return fixture->listen_addr(fixture->self, family, &addr);
}

/* Writes until nothing more is taken; returns how much was, or 0 if it never ends. The last write armed a callback,
   which counts from here: some may have come meanwhile, where the other end takes bytes in its own time. */
static size_t fill_up(end *e)
{
    size_t total = 0, taken;
    int quiet = 0;
    while (total < 512u * BULK && quiet < 3) {
        plb_status status = write_now(e, sent + total % BULK, BULK - total % BULK, &taken);
        if (status == PLB_AGAIN) {
            quiet++;
            step(fixture->settle_ms != 0 ? fixture->settle_ms : 5); /* there may be room on the way still */
        } else if (status == PLB_OK) {
            quiet = 0;
            total += taken;
        } else {
            return 0;
        }
    }
    e->writes = 0;
    return quiet == 3 ? total : 0;
}

/* ==== CONNECT ===================================================================================================== */

TEST connect_reaches_the_listener(plb_family family)
{
    pair p;
    plb_stream_info client, server;
    if (!has_family(family))
        SKIP();
    ASSERT(open_pair(&p, family));
    ASSERT(p.client->connects <= 1);
    ASSERT_EQ(PLB_OK, io->info(io->self, p.client->stream, &client));
    ASSERT_EQ(PLB_OK, io->info(io->self, p.server->stream, &server));
    ASSERT_EQ(0, plb_addr_compare(&p.addr, &client.remote));
    ASSERT_EQ(0, plb_addr_compare(&p.addr, &server.local));
    ASSERT_EQ(0, plb_addr_compare(&client.local, &server.remote));
    stay_quiet();
    ASSERT_EQ(0, p.client->reads + p.client->writes + p.server->connects + p.server->reads + p.server->writes);
    PASS();
}

TEST a_refused_connection_is_reported_once(void)
{
    plb_addr addr;
    end *e = new_end();
    fixture->refused_addr(fixture->self, &addr);
    ASSERT_EQ(PLB_ERR_REFUSED, connect_wait(e, &addr));
    stay_quiet();
    ASSERT(e->connects <= 1);
    ASSERT_EQ(0, e->reads + e->writes);
    PASS();
}

TEST a_unix_path_without_listener_refuses(void)
{
    plb_addr addr;
    if (!fixture->listen_addr(fixture->self, PLB_FAMILY_UNIX, &addr))
        SKIP();
    ASSERT_EQ(PLB_ERR_REFUSED, connect_wait(new_end(), &addr));
    PASS();
}

TEST a_silent_peer_leaves_connect_pending_until_it_is_closed(void)
{
    plb_addr addr;
    end *e = new_end();
    if (!fixture->silent_addr(fixture->self, &addr))
        SKIP();
    ASSERT_EQ(PLB_AGAIN, connect_to(e, &addr));
    stay_quiet();
    ASSERT_EQ(0, e->connects);
    drop(e, PLB_CLOSE_ABORT);
    stay_quiet();
    ASSERT_EQ(0, e->connects);
    PASS();
}

TEST closing_cancels_a_connection_in_progress(void)
{
    pair p;
    end *e;
    ASSERT(open_listener(&p, PLB_FAMILY_IPV4));
    e = new_end();
    if (connect_to(e, &p.addr) == PLB_AGAIN)
        drop(e, PLB_CLOSE_GRACEFUL);
    stay_quiet();
    ASSERT_EQ(0, e->connects);
    PASS();
}

TEST connect_starts_from_the_source_address(void)
{
    pair p;
    plb_addr source;
    plb_stream_info info;
    plb_status status;
    ASSERT(open_listener(&p, PLB_FAMILY_IPV4));
    source = p.addr;
    source.port = 0;
    p.client = new_end();
    p.server = new_end();
    status = connect_from(p.client, &source, &p.addr);
    ASSERT(status == PLB_OK || status == PLB_AGAIN);
    ASSERT_EQ(PLB_OK, accept_wait(p.listener, p.server));
    ASSERT(status == PLB_OK || reaches(&p.client->connects, 1));
    ASSERT_EQ(PLB_OK, p.client->connected);
    ASSERT_EQ(PLB_OK, io->info(io->self, p.server->stream, &info));
    source.port = info.remote.port;
    ASSERT(source.port != 0);
    ASSERT_EQ(0, plb_addr_compare(&source, &info.remote));
    PASS();
}

/* ==== LISTEN AND ACCEPT =========================================================================================== */

TEST a_listener_knows_its_port_and_no_peer(void)
{
    pair p;
    plb_stream_info info;
    ASSERT(open_listener(&p, PLB_FAMILY_IPV4));
    ASSERT(p.addr.port != 0);
    ASSERT_EQ(PLB_OK, io->info(io->self, p.listener->stream, &info));
    ASSERT_EQ(PLB_FAMILY_NONE, info.remote.family);
    PASS();
}

TEST an_address_has_one_listener_at_a_time(plb_family family)
{
    pair p;
    end *second;
    if (!has_family(family))
        SKIP();
    ASSERT(open_pair(&p, family));
    second = new_end();
    ASSERT_EQ(PLB_ERR_IN_USE, listen_at(second, &p.addr));
    ASSERT(second->stream == NULL);
    drop(p.listener, PLB_CLOSE_GRACEFUL);
    ASSERT_EQ(PLB_OK, listen_at(second, &p.addr));
    PASS();
}

TEST connections_outlive_their_listener(void)
{
    pair p;
    char byte = 0;
    ASSERT(open_pair(&p, PLB_FAMILY_IPV4));
    drop(p.listener, PLB_CLOSE_GRACEFUL);
    ASSERT_EQ(PLB_OK, write_wait(p.client, "x", 1));
    ASSERT_EQ(PLB_OK, read_wait(p.server, &byte, 1));
    ASSERT_EQ('x', byte);
    ASSERT_EQ(PLB_ERR_REFUSED, connect_wait(new_end(), &p.addr));
    PASS();
}

TEST accept_arms_one_callback(void)
{
    pair p;
    end *first;
    ASSERT(open_listener(&p, PLB_FAMILY_IPV4));
    first = new_end();
    ASSERT_EQ(PLB_AGAIN, accept_now(p.listener, first));
    ASSERT_EQ(PLB_AGAIN, accept_now(p.listener, first));
    ASSERT(first->stream == NULL);
    ASSERT_EQ(PLB_OK, knock(&p.addr));
    ASSERT(reaches(&p.listener->accepts, 1));
    ASSERT_EQ(PLB_OK, knock(&p.addr));
    stay_quiet();
    ASSERT_EQ_FMT(1u, p.listener->accepts, "%u");
    ASSERT_EQ(PLB_OK, accept_now(p.listener, first));
    ASSERT_EQ(PLB_OK, accept_wait(p.listener, new_end()));
    ASSERT_EQ(PLB_AGAIN, accept_now(p.listener, new_end()));
    PASS();
}

TEST a_listener_that_was_not_asked_is_silent(void)
{
    pair p;
    ASSERT(open_listener(&p, PLB_FAMILY_IPV4));
    ASSERT_EQ(PLB_OK, knock(&p.addr));
    stay_quiet();
    ASSERT_EQ(0, p.listener->accepts);
    PASS();
}

/* ==== READ AND WRITE ============================================================================================== */

/* Both directions at once, as much as each side takes. */
TEST bytes_arrive_whole_and_in_order(plb_family family)
{
    pair p;
    size_t up = 0, down = 0, back = 0, taken, got;
    int i;
    if (!has_family(family))
        SKIP();
    ASSERT(open_pair(&p, family));
    for (i = 0; i < STEPS && back < BULK; i++) {
        while (up < BULK && write_now(p.client, sent + up, BULK - up, &taken) == PLB_OK)
            up += taken;
        while (read_now(p.server, received + down, BULK - down + (down == BULK), &got) == PLB_OK)
            down += got;
        while (back < down && write_now(p.server, received + back, down - back, &taken) == PLB_OK) {
            ASSERT_EQ(PLB_OK, read_wait(p.client, received + back, taken));
            back += taken;
        }
        step(10);
    }
    ASSERT_EQ_FMT((unsigned long)BULK, (unsigned long)back, "%lu");
    ASSERT_MEM_EQ(sent, received, BULK);
    PASS();
}

TEST a_gathered_write_keeps_the_order_of_its_chunks(void)
{
    pair p;
    plb_chunk chunks[PLB_CHUNKS_MAX];
    char text[2 * PLB_CHUNKS_MAX + 1] = {0};
    size_t i, taken;
    ASSERT(open_pair(&p, PLB_FAMILY_IPV4));
    for (i = 0; i < PLB_CHUNKS_MAX; i++) {
        chunks[i].data = &"aabbccddeeffgghh"[2 * i];
        chunks[i].size = i == 3 ? 0 : 2;
        chunks[i].flags = i % 2 == 0 ? PLB_CHUNK_CONSTANT : 0;
    }
    ASSERT_EQ(PLB_OK, write_chunks(p.client, chunks, PLB_CHUNKS_MAX, &taken));
    ASSERT(taken >= 1 && taken <= 14);
    ASSERT_EQ(PLB_OK, write_wait(p.client, &"aabbcceeffgghh"[taken], 14 - taken));
    ASSERT_EQ(PLB_OK, read_wait(p.server, text, 14));
    ASSERT_STR_EQ("aabbcceeffgghh", text);
    PASS();
}

TEST read_arms_one_callback(void)
{
    pair p;
    char byte;
    size_t got = 9;
    ASSERT(open_pair(&p, PLB_FAMILY_IPV4));
    ASSERT_EQ(PLB_AGAIN, read_now(p.server, &byte, 1, &got));
    ASSERT_EQ(PLB_AGAIN, read_now(p.server, &byte, 1, &got));
    stay_quiet();
    ASSERT_EQ(0, p.server->reads);
    ASSERT_EQ(PLB_OK, write_wait(p.client, "ab", 2));
    ASSERT(reaches(&p.server->reads, 1));
    ASSERT_EQ(PLB_OK, write_wait(p.client, "cd", 2));
    stay_quiet();
    ASSERT_EQ_FMT(1u, p.server->reads, "%u");
    ASSERT_EQ(0, p.server->writes);
    PASS();
}

TEST a_stream_that_was_not_asked_is_silent(void)
{
    pair p;
    ASSERT(open_pair(&p, PLB_FAMILY_IPV4));
    ASSERT_EQ(PLB_OK, write_wait(p.client, "ab", 2));
    stay_quiet();
    drop(p.client, PLB_CLOSE_ABORT);
    stay_quiet();
    ASSERT_EQ(0, p.server->reads + p.server->writes);
    PASS();
}

TEST bytes_that_came_unasked_are_read_later(void)
{
    pair p;
    char text[3] = {0};
    ASSERT(open_pair(&p, PLB_FAMILY_IPV4));
    ASSERT_EQ(PLB_AGAIN, watch(p.server, PLB_EVENT_READ));
    ASSERT_EQ(PLB_OK, write_wait(p.client, "a", 1));
    ASSERT(reaches(&p.server->reads, 1));
    ASSERT_EQ(PLB_OK, write_wait(p.client, "b", 1));
    stay_quiet();
    ASSERT_EQ(PLB_OK, read_wait(p.server, text, 2));
    ASSERT_STR_EQ("ab", text);
    PASS();
}

/* However a reader cuts the stream into pieces: what is there is told, and what is not there is not. */
TEST watch_tells_the_truth_whatever_the_size_of_reads(size_t capacity)
{
    pair p;
    char text[64];
    size_t got, done, round;
    ASSERT(open_pair(&p, PLB_FAMILY_IPV4));
    for (round = 0; round < 5; round++) {
        unsigned before = p.server->reads;
        ASSERT_EQ(PLB_AGAIN, watch(p.server, PLB_EVENT_READ));
        stay_quiet();
        ASSERT_EQ(before, p.server->reads);
        ASSERT_EQ(PLB_OK, write_wait(p.client, "twelve bytes", 12));
        ASSERT(reaches(&p.server->reads, before + 1));
        for (done = 0; done < 12; done += got) {
            plb_status status = watch(p.server, PLB_EVENT_READ);
            if (status == PLB_AGAIN)
                ASSERT(reaches(&p.server->reads, ++before + 1));
            ASSERT_EQ(PLB_OK, read_now(p.server, text, capacity, &got));
            ASSERT(got >= 1 && got <= capacity);
        }
        ASSERT_EQ_FMT((size_t)12, done, "%zu");
    }
    PASS();
}

TEST a_fresh_stream_may_be_written(void)
{
    pair p;
    ASSERT(open_pair(&p, PLB_FAMILY_IPV4));
    ASSERT(watch(p.client, PLB_EVENT_WRITE) == PLB_OK || reaches(&p.client->writes, 1));
    ASSERT(watch(p.server, PLB_EVENT_WRITE) == PLB_OK || reaches(&p.server->writes, 1));
    PASS();
}

TEST watching_wakes_for_the_end(plb_close_how how)
{
    pair p;
    ASSERT(open_pair(&p, PLB_FAMILY_IPV4));
    ASSERT_EQ(PLB_AGAIN, watch(p.server, PLB_EVENT_READ));
    drop(p.client, how);
    ASSERT(reaches(&p.server->reads, 1));
    ASSERT(is_end_of(how, read_to_end(p.server)));
    PASS();
}

/* ==== BACK-PRESSURE =============================================================================================== */

TEST a_writer_waits_for_its_reader(plb_family family)
{
    pair p;
    size_t total, done, got;
    unsigned before;
    int steps = 0;
    if (!has_family(family))
        SKIP();
    ASSERT(open_pair(&p, family));
    total = fill_up(p.client);
    ASSERT(total > 0);
    before = p.client->writes;
    stay_quiet();
    ASSERT_EQ_FMT(before, p.client->writes, "%u"); /* nobody reads, nothing is to be told */
    for (done = 0; done < total && steps < STEPS; steps++) {
        while (done < total && read_now(p.server, received, BULK - done % BULK, &got) == PLB_OK) {
            ASSERT_MEM_EQ(sent + done % BULK, received, got);
            done += got;
        }
        step(10);
    }
    ASSERT_EQ_FMT((unsigned long)total, (unsigned long)done, "%lu");
    ASSERT(reaches(&p.client->writes, before + 1));
    stay_quiet();
    ASSERT_EQ_FMT(before + 1, p.client->writes, "%u");
    ASSERT_EQ(PLB_OK, write_wait(p.client, "x", 1));
    PASS();
}

TEST a_full_stream_still_reads(void)
{
    pair p;
    char byte = 0;
    ASSERT(open_pair(&p, PLB_FAMILY_IPV4));
    ASSERT(fill_up(p.client) > 0);
    ASSERT_EQ(PLB_OK, write_wait(p.server, "x", 1));
    ASSERT_EQ(PLB_OK, read_wait(p.client, &byte, 1));
    ASSERT_EQ(0, p.client->writes);
    PASS();
}

/* ==== ENDS ======================================================================================================== */

TEST one_side_may_end_before_the_other(plb_family family)
{
    pair p;
    char text[6] = {0};
    size_t got;
    if (!has_family(family))
        SKIP();
    ASSERT(open_pair(&p, family));
    ASSERT_EQ(PLB_OK, write_wait(p.client, "query", 5));
    ASSERT_EQ(PLB_OK, io->shutdown(io->self, p.client->stream));
    ASSERT_EQ(PLB_OK, read_wait(p.server, text, 5));
    ASSERT_STR_EQ("query", text);
    ASSERT_EQ(PLB_END, read_wait(p.server, text, 1));
    ASSERT_EQ(PLB_END, read_now(p.server, text, 1, &got)); /* it stays so */
    ASSERT_EQ(PLB_OK, write_wait(p.server, "reply", 5));
    ASSERT_EQ(PLB_OK, read_wait(p.client, text, 5));
    ASSERT_STR_EQ("reply", text);
    drop(p.server, PLB_CLOSE_GRACEFUL);
    ASSERT_EQ(PLB_END, read_wait(p.client, text, 1));
    PASS();
}

TEST an_end_that_came_with_the_last_bytes_is_seen(void)
{
    pair p;
    char text[64] = {0};
    size_t got;
    ASSERT(open_pair(&p, PLB_FAMILY_IPV4));
    ASSERT_EQ(PLB_AGAIN, read_now(p.server, text, sizeof text, &got));
    ASSERT_EQ(PLB_OK, write_wait(p.client, "last", 4));
    drop(p.client, PLB_CLOSE_GRACEFUL);
    stay_quiet();
    ASSERT_EQ(PLB_OK, read_now(p.server, text, sizeof text, &got));
    ASSERT_STR_EQ("last", text);
    ASSERT(watch(p.server, PLB_EVENT_READ) == PLB_OK || reaches(&p.server->reads, 2));
    ASSERT_EQ(PLB_END, read_wait(p.server, text, 1));
    PASS();
}

TEST a_graceful_close_delivers_what_was_taken(plb_family family)
{
    pair p;
    size_t taken;
    if (!has_family(family))
        SKIP();
    ASSERT(open_pair(&p, family));
    ASSERT_EQ(PLB_OK, write_now(p.client, sent, BULK, &taken));
    drop(p.client, PLB_CLOSE_GRACEFUL);
    ASSERT_EQ(PLB_OK, read_wait(p.server, received, taken));
    ASSERT_MEM_EQ(sent, received, taken);
    ASSERT_EQ(PLB_END, read_wait(p.server, received, 1));
    PASS();
}

TEST a_graceful_close_delivers_in_spite_of_unread_bytes(void)
{
    pair p;
    char text[6] = {0};
    ASSERT(open_pair(&p, PLB_FAMILY_IPV4));
    ASSERT_EQ(PLB_OK, write_wait(p.server, sent, 1000));
    stay_quiet();
    ASSERT_EQ(PLB_OK, write_wait(p.client, "reply", 5));
    drop(p.client, PLB_CLOSE_GRACEFUL);
    ASSERT_EQ(PLB_OK, read_wait(p.server, text, 5));
    ASSERT_STR_EQ("reply", text);
    ASSERT_EQ(PLB_END, read_wait(p.server, text, 1));
    PASS();
}

TEST an_abort_is_a_reset_for_the_peer(plb_family family)
{
    pair p;
    char byte;
    if (!has_family(family))
        SKIP();
    ASSERT(open_pair(&p, family));
    drop(p.client, PLB_CLOSE_ABORT);
    ASSERT(is_end_of(PLB_CLOSE_ABORT, read_wait(p.server, &byte, 1)));
    PASS();
}

TEST an_aborted_unix_stream_ends(void)
{
    pair p;
    char byte;
    plb_status status;
    if (!has_family(PLB_FAMILY_UNIX))
        SKIP();
    ASSERT(open_pair(&p, PLB_FAMILY_UNIX));
    drop(p.client, PLB_CLOSE_ABORT);
    status = read_wait(p.server, &byte, 1);
    if (fixture->handshakes && status == PLB_ERR_TRUNCATED) /* an end that was not announced is none */
        status = PLB_END;
    ASSERT(status == PLB_END || status == PLB_ERR_RESET); /* not every system resets these */
    PASS();
}

TEST writing_to_a_peer_that_is_gone_fails(plb_family family)
{
    pair p;
    plb_status status = PLB_OK;
    size_t taken;
    int i;
    if (!has_family(family))
        SKIP();
    ASSERT(open_pair(&p, family));
    drop(p.server, PLB_CLOSE_GRACEFUL);
    for (i = 0; i < STEPS && (status == PLB_OK || status == PLB_AGAIN); i++) {
        status = write_now(p.client, "x", 1, &taken);
        step(1);
    }
    ASSERT_EQ(PLB_ERR_RESET, status);
    status = write_now(p.client, "x", 1, &taken);
    ASSERT_EQ(PLB_ERR_RESET, status);
    PASS();
}

TEST a_reset_wakes_a_writer(void)
{
    pair p;
    size_t taken;
    plb_status status = PLB_OK;
    ASSERT(open_pair(&p, PLB_FAMILY_IPV4));
    ASSERT(fill_up(p.client) > 0);
    drop(p.server, PLB_CLOSE_ABORT);
    ASSERT(reaches(&p.client->writes, 1));
    status = write_now(p.client, "x", 1, &taken);
    ASSERT_EQ(PLB_ERR_RESET, status);
    PASS();
}

/* ==== CALLBACKS =================================================================================================== */

TEST close_cancels_what_is_armed(void)
{
    pair p;
    size_t got;
    char byte;
    ASSERT(open_pair(&p, PLB_FAMILY_IPV4));
    ASSERT_EQ(PLB_AGAIN, read_now(p.server, &byte, 1, &got));
    ASSERT_EQ(PLB_OK, write_wait(p.client, "x", 1));
    drop(p.server, PLB_CLOSE_GRACEFUL);
    stay_quiet();
    ASSERT_EQ(0, p.server->reads);
    PASS();
}

TEST both_directions_are_armed_apart(void)
{
    pair p;
    size_t got;
    char byte;
    int i;
    ASSERT(open_pair(&p, PLB_FAMILY_IPV4));
    ASSERT(fill_up(p.client) > 0);
    ASSERT_EQ(PLB_AGAIN, read_now(p.client, &byte, 1, &got));
    ASSERT_EQ(PLB_OK, write_wait(p.server, "x", 1));
    ASSERT(reaches(&p.client->reads, 1));
    ASSERT_EQ(0, p.client->writes);
    for (i = 0; i < STEPS && p.client->writes == 0; i++) {
        while (read_now(p.server, received, BULK, &got) == PLB_OK)
            continue;
        step(10);
    }
    ASSERT_EQ_FMT(1u, p.client->writes, "%u");
    ASSERT_EQ_FMT(1u, p.client->reads, "%u");
    PASS();
}

TEST a_callback_may_close_its_stream(void)
{
    pair p;
    size_t got;
    char byte;
    ASSERT(open_pair(&p, PLB_FAMILY_IPV4));
    ASSERT_EQ(PLB_AGAIN, read_now(p.server, &byte, 1, &got));
    p.server->close_self = true;
    ASSERT_EQ(PLB_OK, write_wait(p.client, "x", 1));
    ASSERT(reaches(&p.server->reads, 1));
    ASSERT(p.server->stream == NULL);
    stay_quiet();
    ASSERT_EQ_FMT(1u, p.server->reads, "%u");
    PASS();
}

/* A reset makes both directions worth calling at once; the first callback takes the stream away. */
TEST a_callback_may_close_a_stream_with_more_to_tell(void)
{
    pair p;
    size_t got;
    char byte;
    ASSERT(open_pair(&p, PLB_FAMILY_IPV4));
    ASSERT(fill_up(p.client) > 0);
    ASSERT_EQ(PLB_AGAIN, read_now(p.client, &byte, 1, &got));
    p.client->close_self = true;
    drop(p.server, PLB_CLOSE_ABORT);
    reaches(&p.client->reads, 1);
    stay_quiet();
    ASSERT(p.client->stream == NULL);
    ASSERT_EQ_FMT(1u, p.client->reads + p.client->writes, "%u");
    PASS();
}

/* Two streams have something to tell in one step; whichever is first closes the other. */
TEST a_callback_may_close_another_stream(void)
{
    pair p, q;
    size_t got;
    char byte;
    ASSERT(open_pair(&p, PLB_FAMILY_IPV4));
    q = p;
    ASSERT(connect_pair(&q));
    ASSERT_EQ(PLB_AGAIN, read_now(p.server, &byte, 1, &got));
    ASSERT_EQ(PLB_AGAIN, read_now(q.server, &byte, 1, &got));
    p.server->victim = q.server;
    q.server->victim = p.server;
    ASSERT_EQ(PLB_OK, write_wait(p.client, "x", 1));
    ASSERT_EQ(PLB_OK, write_wait(q.client, "x", 1));
    stay_quiet();
    ASSERT_EQ_FMT(1u, p.server->reads + q.server->reads, "%u");
    PASS();
}

TEST a_connect_callback_may_close(void)
{
    pair p;
    plb_status status;
    ASSERT(open_listener(&p, PLB_FAMILY_IPV4));
    p.client = new_end();
    p.client->close_self = true;
    status = connect_to(p.client, &p.addr);
    ASSERT_EQ(PLB_OK, accept_wait(p.listener, new_end()));
    ASSERT(status == PLB_OK || reaches(&p.client->connects, 1));
    stay_quiet();
    ASSERT(p.client->connects <= 1);
    PASS();
}

TEST an_accept_callback_may_close_the_listener(void)
{
    pair p;
    ASSERT(open_listener(&p, PLB_FAMILY_IPV4));
    ASSERT_EQ(PLB_AGAIN, accept_now(p.listener, new_end()));
    p.listener->close_self = true;
    connect_to(new_end(), &p.addr);
    ASSERT(reaches(&p.listener->accepts, 1));
    ASSERT(p.listener->stream == NULL);
    stay_quiet();
    ASSERT_EQ_FMT(1u, p.listener->accepts, "%u");
    PASS();
}

/* ==== DATAGRAMS =================================================================================================== */

static plb_status open_socket(end *e, const plb_addr *local, const plb_addr *remote)
{
    plb_status status;
    e->datagrams = true;
    inside = true;
    status = dgram->open(dgram->self, local, remote, handler_of(e), &e->stream);
    inside = false;
    return status;
}

static bool local_of(end *e, plb_addr *out)
{
    plb_stream_info info;
    if (dgram->info(dgram->self, e->stream, &info) != PLB_OK)
        return false;
    *out = info.local;
    return true;
}

/* At a port that the system chooses, for everybody; NULL if that fails. `addr` is where. */
static end *open_somewhere(plb_family family, plb_addr *addr)
{
    end *e = new_end();
    if (!fixture->listen_addr(fixture->self, family, addr) || open_socket(e, addr, NULL) != PLB_OK ||
        !local_of(e, addr))
        return NULL;
    return e;
}

static plb_status send_now(end *e, const plb_addr *to, const void *data, size_t size)
{
    plb_status status;
    inside = true;
    status = dgram->send(dgram->self, e->stream, to, data, size);
    inside = false;
    return status;
}

static plb_status receive_now(end *e, void *buffer, size_t capacity, size_t *got, plb_addr *from)
{
    plb_status status;
    inside = true;
    status = dgram->receive(dgram->self, e->stream, buffer, capacity, got, from);
    inside = false;
    return status;
}

static plb_status receive_wait(end *e, void *buffer, size_t capacity, size_t *got, plb_addr *from)
{
    plb_status status = PLB_AGAIN;
    int i;
    for (i = 0; i < STEPS && (status = receive_now(e, buffer, capacity, got, from)) == PLB_AGAIN; i++)
        step(10);
    return status;
}

/* Is the next datagram this text? */
static bool hears(end *e, const char *text, plb_addr *from)
{
    char bytes[64];
    size_t got;
    return receive_wait(e, bytes, sizeof bytes, &got, from) == PLB_OK && got == strlen(text) &&
           memcmp(bytes, text, got) == 0;
}

/* Does nothing come? */
static bool hears_nothing(end *e)
{
    char bytes[64];
    size_t got;
    stay_quiet();
    return receive_now(e, bytes, sizeof bytes, &got, NULL) == PLB_AGAIN;
}

static plb_status send_text(end *e, const plb_addr *to, const char *text)
{
    return send_now(e, to, text, strlen(text));
}

TEST a_socket_knows_its_addresses(plb_family family)
{
    plb_addr asked, addr;
    plb_stream_info info;
    end *e = new_end(), *connected = new_end();
    ASSERT(fixture->listen_addr(fixture->self, family, &asked));
    ASSERT_EQ(PLB_OK, open_socket(e, &asked, NULL));
    ASSERT_EQ(PLB_OK, dgram->info(dgram->self, e->stream, &info));
    addr = info.local;
    ASSERT(addr.port != 0);
    asked.port = addr.port;
    ASSERT_EQ(0, plb_addr_compare(&asked, &addr));
    ASSERT_EQ(PLB_FAMILY_NONE, info.remote.family);
    ASSERT_EQ(PLB_OK, open_socket(connected, NULL, &addr));
    ASSERT_EQ(PLB_OK, dgram->info(dgram->self, connected->stream, &info));
    ASSERT_EQ(family, info.local.family);
    ASSERT(info.local.port != 0);
    ASSERT_EQ(0, plb_addr_compare(&addr, &info.remote));
    PASS();
}

TEST two_sockets_talk(plb_family family)
{
    plb_addr a_addr, b_addr, from;
    end *a = open_somewhere(family, &a_addr), *b = open_somewhere(family, &b_addr);
    ASSERT(a != NULL && b != NULL);
    ASSERT_EQ(PLB_OK, send_text(a, &b_addr, "ping"));
    ASSERT(hears(b, "ping", &from));
    ASSERT_EQ(0, plb_addr_compare(&a_addr, &from));
    ASSERT_EQ(PLB_OK, send_text(b, &from, "pong"));
    ASSERT(hears(a, "pong", &from));
    ASSERT_EQ(0, plb_addr_compare(&b_addr, &from));
    PASS();
}

TEST a_socket_on_any_address_hears_what_comes_to_each(plb_family family)
{
    plb_addr any, addr, from;
    end *e = new_end(), *sender = open_somewhere(family, &addr);
    ASSERT(sender != NULL);
    memset(&any, 0, sizeof any);
    any.family = addr.family;
    ASSERT_EQ(PLB_OK, open_socket(e, &any, NULL));
    ASSERT(local_of(e, &any));
    ASSERT(any.port != 0);
    from = addr;
    from.port = any.port;
    ASSERT_EQ(PLB_OK, send_text(sender, &from, "hello"));
    ASSERT(hears(e, "hello", &from));
    ASSERT_EQ(0, plb_addr_compare(&addr, &from));
    PASS();
}

/* With a local address of one's own, or with the system's choice. */
TEST a_socket_with_a_remote_knows_nobody_else(bool with_local)
{
    plb_addr server_addr, stranger_addr, addr, from;
    end *server = open_somewhere(PLB_FAMILY_IPV4, &server_addr), *e = new_end();
    end *stranger = open_somewhere(PLB_FAMILY_IPV4, &stranger_addr);
    ASSERT(server != NULL && stranger != NULL);
    fixture->listen_addr(fixture->self, PLB_FAMILY_IPV4, &addr);
    ASSERT_EQ(PLB_OK, open_socket(e, with_local ? &addr : NULL, &server_addr));
    ASSERT_EQ(PLB_OK, send_text(e, NULL, "who is there"));
    ASSERT(hears(server, "who is there", &addr));
    send_text(stranger, &addr, "me");
    ASSERT(hears_nothing(e));
    ASSERT_EQ(0, e->reads);
    ASSERT_EQ(PLB_OK, send_text(server, &addr, "nobody"));
    ASSERT(hears(e, "nobody", &from));
    ASSERT_EQ(0, plb_addr_compare(&server_addr, &from));
    ASSERT_EQ(PLB_ERR_ARGUMENT, send_text(e, &stranger_addr, "you"));
    ASSERT(hears_nothing(stranger));
    PASS();
}

TEST datagrams_keep_their_borders(void)
{
    plb_addr addr, from;
    end *e = open_somewhere(PLB_FAMILY_IPV4, &addr), *sender = open_somewhere(PLB_FAMILY_IPV4, &from);
    size_t got = 9;
    ASSERT(e != NULL && sender != NULL);
    ASSERT_EQ(PLB_OK, send_text(sender, &addr, "one"));
    ASSERT_EQ(PLB_OK, send_now(sender, &addr, NULL, 0));
    ASSERT_EQ(PLB_OK, send_text(sender, &addr, "three"));
    ASSERT_EQ(PLB_OK, send_now(sender, &addr, sent, 1400));
    ASSERT(hears(e, "one", NULL));
    ASSERT(hears(e, "", &from));
    ASSERT(hears(e, "three", NULL));
    ASSERT_EQ(PLB_OK, receive_wait(e, received, 1400, &got, NULL));
    ASSERT_EQ_FMT((size_t)1400, got, "%zu");
    ASSERT_MEM_EQ(sent, received, 1400);
    ASSERT(hears_nothing(e));
    PASS();
}

TEST a_datagram_longer_than_the_buffer_is_cut(void)
{
    plb_addr addr, from;
    end *e = open_somewhere(PLB_FAMILY_IPV4, &addr), *sender = open_somewhere(PLB_FAMILY_IPV4, &from);
    size_t got;
    ASSERT(e != NULL && sender != NULL);
    ASSERT_EQ(PLB_OK, send_now(sender, &addr, sent + 1, 100));
    ASSERT_EQ(PLB_OK, send_text(sender, &addr, "next"));
    ASSERT_EQ(PLB_OK, receive_wait(e, received, 10, &got, NULL));
    ASSERT(got > 10);
    ASSERT_MEM_EQ(sent + 1, received, 10);
    ASSERT_EQ(0, received[10]);
    ASSERT(hears(e, "next", NULL));
    PASS();
}

TEST a_datagram_too_big_is_refused_and_hurts_nothing(void)
{
    plb_addr addr;
    end *e = open_somewhere(PLB_FAMILY_IPV4, &addr);
    ASSERT(e != NULL);
    ASSERT_EQ(PLB_ERR_ARGUMENT, send_now(e, &addr, sent, 65536));
    ASSERT_EQ(PLB_OK, send_text(e, &addr, "to myself"));
    ASSERT(hears(e, "to myself", NULL));
    PASS();
}

TEST receive_arms_one_callback(void)
{
    plb_addr addr;
    end *e = open_somewhere(PLB_FAMILY_IPV4, &addr);
    char bytes[16];
    size_t got = 9;
    ASSERT(e != NULL);
    ASSERT_EQ(PLB_AGAIN, receive_now(e, bytes, sizeof bytes, &got, NULL));
    ASSERT_EQ(PLB_AGAIN, receive_now(e, bytes, sizeof bytes, &got, NULL));
    ASSERT_EQ(PLB_OK, send_text(e, &addr, "a"));
    ASSERT(reaches(&e->reads, 1));
    ASSERT_EQ(PLB_OK, send_text(e, &addr, "b"));
    stay_quiet();
    ASSERT_EQ_FMT(1u, e->reads, "%u");
    ASSERT(hears(e, "a", NULL) && hears(e, "b", NULL));
    ASSERT_EQ(PLB_AGAIN, receive_now(e, bytes, sizeof bytes, &got, NULL));
    ASSERT_EQ(PLB_OK, send_text(e, &addr, "c"));
    ASSERT(reaches(&e->reads, 2));
    ASSERT_EQ(0, e->writes + e->connects + e->accepts);
    PASS();
}

TEST a_socket_that_was_not_asked_is_silent(void)
{
    plb_addr addr;
    end *e = open_somewhere(PLB_FAMILY_IPV4, &addr);
    ASSERT(e != NULL);
    ASSERT_EQ(PLB_OK, send_text(e, &addr, "a"));
    ASSERT_EQ(PLB_OK, send_text(e, &addr, "b"));
    stay_quiet();
    ASSERT_EQ(0, e->reads);
    ASSERT(hears(e, "a", NULL));
    stay_quiet();
    ASSERT_EQ(0, e->reads);
    ASSERT(hears(e, "b", NULL));
    PASS();
}

TEST closing_a_socket_cancels_what_is_armed(void)
{
    plb_addr addr, from;
    end *e = open_somewhere(PLB_FAMILY_IPV4, &addr), *sender = open_somewhere(PLB_FAMILY_IPV4, &from);
    char byte;
    size_t got;
    ASSERT(e != NULL && sender != NULL);
    ASSERT_EQ(PLB_AGAIN, receive_now(e, &byte, 1, &got, NULL));
    ASSERT_EQ(PLB_OK, send_text(sender, &addr, "x"));
    drop(e, PLB_CLOSE_GRACEFUL);
    stay_quiet();
    ASSERT_EQ(0, e->reads);
    PASS();
}

TEST a_callback_may_close_its_socket(void)
{
    plb_addr addr, from;
    end *e = open_somewhere(PLB_FAMILY_IPV4, &addr), *sender = open_somewhere(PLB_FAMILY_IPV4, &from);
    char byte;
    size_t got;
    ASSERT(e != NULL && sender != NULL);
    ASSERT_EQ(PLB_AGAIN, receive_now(e, &byte, 1, &got, NULL));
    e->close_self = true;
    ASSERT_EQ(PLB_OK, send_text(sender, &addr, "x"));
    ASSERT_EQ(PLB_OK, send_text(sender, &addr, "x"));
    ASSERT(reaches(&e->reads, 1));
    ASSERT(e->stream == NULL);
    stay_quiet();
    ASSERT_EQ_FMT(1u, e->reads, "%u");
    PASS();
}

/* Two sockets have something to tell in one step; whichever is first closes the other. */
TEST a_callback_may_close_another_socket(void)
{
    plb_addr a_addr, b_addr;
    end *a = open_somewhere(PLB_FAMILY_IPV4, &a_addr), *b = open_somewhere(PLB_FAMILY_IPV4, &b_addr);
    char byte;
    size_t got;
    ASSERT(a != NULL && b != NULL);
    ASSERT_EQ(PLB_AGAIN, receive_now(a, &byte, 1, &got, NULL));
    ASSERT_EQ(PLB_AGAIN, receive_now(b, &byte, 1, &got, NULL));
    a->victim = b;
    b->victim = a;
    ASSERT_EQ(PLB_OK, send_text(b, &a_addr, "x"));
    ASSERT_EQ(PLB_OK, send_text(a, &b_addr, "x"));
    stay_quiet();
    ASSERT_EQ_FMT(1u, a->reads + b->reads, "%u");
    PASS();
}

TEST an_address_has_one_socket_at_a_time(plb_family family)
{
    plb_addr addr;
    end *first = open_somewhere(family, &addr), *second = new_end();
    ASSERT(first != NULL);
    ASSERT_EQ(PLB_ERR_IN_USE, open_socket(second, &addr, NULL));
    ASSERT(second->stream == NULL);
    drop(first, PLB_CLOSE_GRACEFUL);
    ASSERT_EQ(PLB_OK, open_socket(second, &addr, NULL));
    PASS();
}

/* Whether or not the platform tells. `armed`: a callback was promised before. */
TEST a_refusal_passes(bool armed)
{
    plb_addr addr;
    end *server = open_somewhere(PLB_FAMILY_IPV4, &addr), *e = new_end();
    char bytes[16];
    size_t got;
    ASSERT(server != NULL);
    drop(server, PLB_CLOSE_GRACEFUL);
    ASSERT_EQ(PLB_OK, open_socket(e, NULL, &addr));
    if (armed)
        ASSERT_EQ(PLB_AGAIN, receive_now(e, bytes, sizeof bytes, &got, NULL));
    ASSERT_EQ(PLB_OK, send_text(e, NULL, "anybody?"));
    if (fixture->tells_refusal) {
        ASSERT(!armed || reaches(&e->reads, 1));
        ASSERT_EQ(PLB_ERR_REFUSED, receive_wait(e, bytes, sizeof bytes, &got, NULL));
    }
    ASSERT(hears_nothing(e)); /* it is told once */
    ASSERT_EQ(PLB_OK, open_socket(server, &addr, NULL));
    ASSERT_EQ(PLB_OK, send_text(e, NULL, "again"));
    ASSERT(hears(server, "again", &addr));
    ASSERT_EQ(PLB_OK, send_text(server, &addr, "here"));
    ASSERT(hears(e, "here", NULL));
    PASS();
}

TEST what_makes_no_sense_is_named(void)
{
    plb_addr mine, addr, other, none;
    end *e = open_somewhere(PLB_FAMILY_IPV4, &mine), *bad = new_end();
    ASSERT(e != NULL);
    addr = mine;
    ASSERT_EQ(PLB_OK, plb_addr_parse(&other, "[::1]:7", PLB_ZSTRING));
    ASSERT_EQ(PLB_ERR_ARGUMENT, open_socket(bad, NULL, NULL));
    ASSERT_EQ(PLB_ERR_ARGUMENT, open_socket(bad, &other, &addr));
    ASSERT_EQ(PLB_ERR_ARGUMENT, send_text(e, NULL, "x"));
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, send_text(e, &other, "x"));
    addr.port = 0;
    ASSERT_EQ(PLB_ERR_ARGUMENT, open_socket(bad, NULL, &addr));
    ASSERT_EQ(PLB_ERR_ARGUMENT, send_text(e, &addr, "x"));
    ASSERT_EQ(PLB_OK, plb_addr_parse(&other, "unix:/tmp/none", PLB_ZSTRING));
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, open_socket(bad, &other, NULL));
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, open_socket(bad, NULL, &other));
    memset(&none, 0, sizeof none);
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, open_socket(bad, &none, NULL));
    ASSERT(bad->stream == NULL);
    ASSERT(send_text(e, &mine, "still here") == PLB_OK && hears(e, "still here", NULL));
    PASS();
}

TEST sockets_can_be_opened_again_and_again(void)
{
    plb_addr addr, other;
    end *e = open_somewhere(PLB_FAMILY_IPV4, &addr), *client = new_end();
    int i;
    ASSERT(e != NULL);
    for (i = 0; i < 200; i++) {
        ASSERT_EQ(PLB_OK, open_socket(client, NULL, &addr));
        ASSERT_EQ(PLB_OK, send_text(client, NULL, "hello"));
        ASSERT(hears(e, "hello", &other));
        drop(client, PLB_CLOSE_GRACEFUL);
    }
    PASS();
}

/* Where sockets are limited: the one too many is refused, and hurts nobody. */
TEST a_port_without_sockets_left_says_so_and_recovers(void)
{
    plb_addr addr, other;
    end *e = open_somewhere(PLB_FAMILY_IPV4, &addr), *last = NULL, *before = NULL;
    plb_status status = PLB_OK;
    ASSERT(e != NULL);
    while (status == PLB_OK && end_count < ENDS) {
        before = last;
        last = new_end();
        status = open_socket(last, NULL, &addr);
    }
    ASSERT(status == PLB_ERR_LIMIT || status == PLB_ERR_MEMORY);
    ASSERT(last->stream == NULL && before != NULL);
    ASSERT_EQ(PLB_OK, send_text(e, &addr, "still here"));
    ASSERT(hears(e, "still here", NULL));
    drop(before, PLB_CLOSE_GRACEFUL);
    ASSERT_EQ(PLB_OK, open_socket(last, NULL, &addr));
    ASSERT_EQ(PLB_OK, send_text(last, NULL, "I too"));
    ASSERT(hears(e, "I too", &other));
    PASS();
}

/* ==== WAKE, CLOCK, RANDOM ========================================================================================= */

static uint64_t now_ms(void)
{
    return fixture->port.clock->now_ms(fixture->port.clock->self);
}

TEST wake_ends_a_wait(void)
{
    uint64_t before;
    int i;
    if (io->wake == NULL || fixture->port.clock == NULL)
        SKIP();
    for (i = 0; i < 3; i++) {
        before = now_ms();
        fixture->wake_soon(fixture->self);
        step(LONG_WAIT);
        ASSERT(now_ms() - before < LONG_WAIT / 2);
    }
    PASS();
}

TEST a_wake_that_came_first_is_not_lost(void)
{
    uint64_t before;
    if (io->wake == NULL || fixture->port.clock == NULL)
        SKIP();
    before = now_ms();
    step(1);
    io->wake(io->self);
    io->wake(io->self);
    step(LONG_WAIT);
    ASSERT(now_ms() - before < LONG_WAIT / 2);
    step(1);
    io->wake(io->self);
    step(LONG_WAIT);
    ASSERT(now_ms() - before < LONG_WAIT / 2);
    PASS();
}

TEST the_clock_does_not_step_back(void)
{
    const plb_clock *clock = fixture->port.clock;
    uint64_t ms, us;
    int i;
    if (clock == NULL)
        SKIP();
    for (i = 0; i < 20; i++) {
        ms = clock->now_ms(clock->self);
        us = clock->now_us != NULL ? clock->now_us(clock->self) : 0;
        step(1);
        ASSERT(clock->now_ms(clock->self) >= ms);
        ASSERT(clock->now_us == NULL || clock->now_us(clock->self) >= us);
    }
    PASS();
}

TEST random_bytes_differ(void)
{
    const plb_random *random_port = fixture->port.random;
    uint8_t a[16] = {0}, b[16] = {0};
    if (random_port == NULL)
        SKIP();
    random_port->fill(random_port->self, a, sizeof a);
    random_port->fill(random_port->self, b, sizeof b - 1);
    ASSERT(memcmp(a, b, sizeof a - 1) != 0);
    ASSERT_EQ(0, b[15]);
    PASS();
}

/* ==== MANY ======================================================================================================== */

TEST many_streams_live_side_by_side(void)
{
    pair p;
    size_t i, count = fixture->streams == 0 ? MANY / 2 : (fixture->streams - 1) / 2;
    char text[24], echo[16];
    end *first;
    if (count > MANY / 2)
        count = MANY / 2;
    ASSERT(open_listener(&p, PLB_FAMILY_IPV4));
    first = &ends[end_count];
    for (i = 0; i < count; i++) {
        snprintf(text, sizeof text, "stream %05u", (unsigned)i);
        ASSERT(connect_pair(&p));
        ASSERT_EQ(PLB_OK, write_wait(p.client, text, 12));
    }
    for (i = 0; i < count; i++) {
        end *server = &first[2 * i + 1];
        ASSERT_EQ(PLB_OK, read_wait(server, echo, 12));
        ASSERT_EQ(PLB_OK, write_wait(server, echo, 12));
    }
    for (i = count; i-- > 0;) {
        memset(echo, 0, sizeof echo);
        snprintf(text, sizeof text, "stream %05u", (unsigned)i);
        ASSERT_EQ(PLB_OK, read_wait(&first[2 * i], echo, 12));
        ASSERT_STR_EQ(text, echo);
    }
    PASS();
}

/* Where streams are limited: the one too many is refused, and hurts nobody. */
TEST a_port_that_is_full_says_so_and_recovers(void)
{
    pair p;
    plb_status status = PLB_OK;
    end *last = NULL;
    char byte = 0;
    ASSERT(open_pair(&p, PLB_FAMILY_IPV4));
    while (status == PLB_OK && end_count < ENDS) {
        last = new_end();
        status = connect_wait(last, &p.addr);
    }
    ASSERT(status == PLB_ERR_LIMIT || status == PLB_ERR_MEMORY);
    ASSERT(last->stream == NULL);
    ASSERT_EQ(PLB_AGAIN, accept_now(p.listener, last)); /* connections are waiting, but there is no room */
    ASSERT_EQ(PLB_OK, write_wait(p.client, "x", 1));
    ASSERT_EQ(PLB_OK, read_wait(p.server, &byte, 1));
    drop(p.client, PLB_CLOSE_GRACEFUL);
    ASSERT(reaches(&p.listener->accepts, 1));
    ASSERT_EQ(PLB_OK, accept_now(p.listener, last));
    PASS();
}

/* What was given back can be used again, however often. */
TEST streams_can_be_opened_again_and_again(void)
{
    pair p;
    int i;
    ASSERT(open_listener(&p, PLB_FAMILY_IPV4));
    for (i = 0; i < 200; i++) {
        size_t mark = end_count;
        ASSERT(connect_pair(&p));
        drop(p.client, i % 2 == 0 ? PLB_CLOSE_ABORT : PLB_CLOSE_GRACEFUL);
        drop(p.server, PLB_CLOSE_ABORT);
        end_count = mark;
    }
    PASS();
}

/* Judges all that ran before it. */
TEST no_callback_came_from_inside_a_call_or_after_close(void)
{
    ASSERT_EQ_FMT(0u, calls_inside, "%u");
    ASSERT_EQ_FMT(0u, calls_after_close, "%u");
    PASS();
}

/* ==== SUITES ====================================================================================================== */

static const plb_family families[] = {PLB_FAMILY_IPV4, PLB_FAMILY_IPV6, PLB_FAMILY_UNIX};

SUITE(connecting)
{
    size_t i;
    SET_SETUP(setup, NULL);
    SET_TEARDOWN(teardown, NULL);
    for (i = 0; i < 3; i++)
        RUN_TEST1(connect_reaches_the_listener, families[i]);
    RUN_TEST(a_refused_connection_is_reported_once);
    RUN_TEST(a_unix_path_without_listener_refuses);
    RUN_TEST(a_silent_peer_leaves_connect_pending_until_it_is_closed);
    RUN_TEST(closing_cancels_a_connection_in_progress);
    RUN_TEST(connect_starts_from_the_source_address);
    RUN_TEST(a_listener_knows_its_port_and_no_peer);
    for (i = 0; i < 3; i++)
        RUN_TEST1(an_address_has_one_listener_at_a_time, families[i]);
    RUN_TEST(connections_outlive_their_listener);
    RUN_TEST(accept_arms_one_callback);
    RUN_TEST(a_listener_that_was_not_asked_is_silent);
}

SUITE(moving_bytes)
{
    static const size_t capacities[] = {1, 5, 12, 64};
    size_t i;
    SET_SETUP(setup, NULL);
    SET_TEARDOWN(teardown, NULL);
    for (i = 0; i < 3; i++) {
        RUN_TEST1(bytes_arrive_whole_and_in_order, families[i]);
        RUN_TEST1(a_writer_waits_for_its_reader, families[i]);
    }
    for (i = 0; i < 4; i++)
        RUN_TEST1(watch_tells_the_truth_whatever_the_size_of_reads, capacities[i]);
    RUN_TEST(a_gathered_write_keeps_the_order_of_its_chunks);
    RUN_TEST(read_arms_one_callback);
    RUN_TEST(a_stream_that_was_not_asked_is_silent);
    RUN_TEST(bytes_that_came_unasked_are_read_later);
    RUN_TEST(a_fresh_stream_may_be_written);
    RUN_TEST(a_full_stream_still_reads);
}

SUITE(ending)
{
    size_t i;
    SET_SETUP(setup, NULL);
    SET_TEARDOWN(teardown, NULL);
    for (i = 0; i < 3; i++) {
        RUN_TEST1(one_side_may_end_before_the_other, families[i]);
        RUN_TEST1(a_graceful_close_delivers_what_was_taken, families[i]);
        RUN_TEST1(writing_to_a_peer_that_is_gone_fails, families[i]);
    }
    for (i = 0; i < 2; i++)
        RUN_TEST1(an_abort_is_a_reset_for_the_peer, families[i]);
    RUN_TEST(an_aborted_unix_stream_ends);
    RUN_TEST(an_end_that_came_with_the_last_bytes_is_seen);
    RUN_TEST1(watching_wakes_for_the_end, PLB_CLOSE_GRACEFUL);
    RUN_TEST1(watching_wakes_for_the_end, PLB_CLOSE_ABORT);
    RUN_TEST(a_graceful_close_delivers_in_spite_of_unread_bytes);
    RUN_TEST(a_reset_wakes_a_writer);
}

SUITE(callbacks)
{
    SET_SETUP(setup, NULL);
    SET_TEARDOWN(teardown, NULL);
    RUN_TEST(close_cancels_what_is_armed);
    RUN_TEST(both_directions_are_armed_apart);
    RUN_TEST(a_callback_may_close_its_stream);
    RUN_TEST(a_callback_may_close_a_stream_with_more_to_tell);
    RUN_TEST(a_callback_may_close_another_stream);
    RUN_TEST(a_connect_callback_may_close);
    RUN_TEST(an_accept_callback_may_close_the_listener);
}

/* What the port under test has; where these suites can fill it up, `streams` and `sockets` are how many. */
typedef struct abilities {
    bool datagrams, families[4]; /* by plb_family */
    uint32_t streams, sockets;
} abilities;

static abilities of_the_port(void)
{
    abilities has;
    io_fixture *f = io_fixture_open();
    plb_addr addr;
    int family;
    memset(&has, 0, sizeof has);
    if (f == NULL)
        abort();
    for (family = PLB_FAMILY_IPV4; family <= PLB_FAMILY_UNIX; family++)
        has.families[family] = f->listen_addr(f->self, (plb_family)family, &addr);
    has.datagrams = f->port.dgram != NULL;
    has.streams = f->streams <= MANY ? f->streams : 0;
    has.sockets = f->datagram_sockets <= MANY ? f->datagram_sockets : 0;
    io_fixture_close(f);
    return has;
}

SUITE(datagrams)
{
    abilities has = of_the_port();
    size_t i;
    SET_SETUP(setup, NULL);
    SET_TEARDOWN(teardown, NULL);
    if (!has.datagrams)
        return;
    for (i = 0; i < 2; i++) {
        if (!has.families[families[i]])
            continue;
        RUN_TEST1(a_socket_knows_its_addresses, families[i]);
        RUN_TEST1(two_sockets_talk, families[i]);
        RUN_TEST1(a_socket_on_any_address_hears_what_comes_to_each, families[i]);
        RUN_TEST1(an_address_has_one_socket_at_a_time, families[i]);
    }
    RUN_TEST1(a_socket_with_a_remote_knows_nobody_else, false);
    RUN_TEST1(a_socket_with_a_remote_knows_nobody_else, true);
    RUN_TEST(datagrams_keep_their_borders);
    RUN_TEST(a_datagram_longer_than_the_buffer_is_cut);
    RUN_TEST(a_datagram_too_big_is_refused_and_hurts_nothing);
    RUN_TEST(receive_arms_one_callback);
    RUN_TEST(a_socket_that_was_not_asked_is_silent);
    RUN_TEST(closing_a_socket_cancels_what_is_armed);
    RUN_TEST(a_callback_may_close_its_socket);
    RUN_TEST(a_callback_may_close_another_socket);
    RUN_TEST1(a_refusal_passes, false);
    RUN_TEST1(a_refusal_passes, true);
    RUN_TEST(what_makes_no_sense_is_named);
    RUN_TEST(sockets_can_be_opened_again_and_again);
    if (has.sockets > 0)
        RUN_TEST(a_port_without_sockets_left_says_so_and_recovers);
}

SUITE(the_rest)
{
    SET_SETUP(setup, NULL);
    SET_TEARDOWN(teardown, NULL);
    RUN_TEST(wake_ends_a_wait);
    RUN_TEST(a_wake_that_came_first_is_not_lost);
    RUN_TEST(the_clock_does_not_step_back);
    RUN_TEST(random_bytes_differ);
    RUN_TEST(many_streams_live_side_by_side);
    if (of_the_port().streams > 0)
        RUN_TEST(a_port_that_is_full_says_so_and_recovers);
    RUN_TEST(streams_can_be_opened_again_and_again);
    RUN_TEST(no_callback_came_from_inside_a_call_or_after_close);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(connecting);
    RUN_SUITE(moving_bytes);
    RUN_SUITE(ending);
    RUN_SUITE(callbacks);
    RUN_SUITE(datagrams);
    RUN_SUITE(the_rest);
    GREATEST_MAIN_END();
}
