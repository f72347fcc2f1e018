/* pingora_lb.h - a load balancer that drops into any C program. MIT license, see LICENSE.

   WHAT IT IS
   It keeps a set of backends (addresses with weights), finds out which of them may be used now, and answers one
   question from any thread in tens of nanoseconds: where does this request go? It does what Cloudflare's
   pingora-load-balancing crate does, with the same answers, in one header of C99 that compiles as C++11 too. It owns no
   socket, no thread, no clock and no heap: the program lends it those through small tables (a port). Ports for common
   platforms, and an HTTP reverse proxy built the same way, are in ports/.

   QUICK START
     1. In one C file:
            #define PINGORA_LB_IMPLEMENTATION
            #include "pingora_lb.h"
        and in the others just the #include.
     2. Say what there is; every member that is left zero has its default:
            const char *addresses[] = {"10.0.0.1:80", "10.0.0.2:80", "db.example:5432"};
            plb_static_desc list = {.addresses = addresses, .address_count = 3};
            plb_balancer_desc desc = {.port = plb_posix_port(px),          // ports/plb_posix.h
                                      .discovery = plb_static(&list),
                                      .strategy = plb_round_robin(),
                                      .check = plb_tcp_check(NULL),
                                      .check_every_ms = 1000};
     3. Make it, and let something call plb_poll: a loop of yours, or the port's, or its background thread.
            plb_create(&desc, &lb);
            plb_posix_add(px, plb_balancer_task(lb));
            plb_posix_start_thread(px);
     4. Ask, from any thread.
            plb_addr to;
            if (plb_select(lb, key, key_length, 256, &to) == PLB_OK) ...
        or, to be counted as a request in flight, and to keep the backend alive meanwhile:
            plb_pick pick;
            if (plb_begin(lb, NULL, &pick) == PLB_OK) { ...; plb_end(&pick, PLB_OUTCOME_SUCCESS, microseconds); }
     5. plb_destroy(lb).
   Literal addresses without checks need no port at all: examples/minimal.c.

   CONTENTS
   Sections begin with "==== NAME". Interface:
     WHAT IS LEFT OUT    which parts go with which
     COMPILER            linkage, atomics, wide multiplication: all that depends on the compiler
     VERSION             of the interface and of what was linked
     STATUS              the names of everything that can go wrong
     MEMORY              the allocator, and an arena for programs without a heap
     ADDRESS             IPv4, IPv6, Unix paths: parse, print, compare, hash
     PORT                what a platform lends: plb_io (streams), plb_dgram, plb_clock, plb_random, plb_names, ...
     TIMER               deadlines of everything above the port
     BACKEND             an address with its weight, name, id, ext
     EXTENSION POINTS    what discovery, checks and strategies have in common; the completion contract
     DISCOVERY           where sets come from; the static list
     HEALTH CHECK        how health is found out, and when; the TCP check
     EXCHANGE            probes over streams, for checks of all kinds
     HTTP CHECK          a request and what its answer must be
     SEND AND EXPECT     checks that say something and look at the answer: Redis, SMTP, MySQL, PostgreSQL, memcached
     AGENT CHECK         a backend's agent says how much it can take
     GRPC CHECK          asks a gRPC server's health service
     STRATEGY            how a backend is chosen: twelve ways, and what one of your own needs
     OUTLIER DETECTION   which backends are taken out for what their requests met with
     BALANCER            create, poll, destroy, observe
     PICKING             select, begin and end, handles, walk
     METRICS             all of it as Prometheus text
     HTTP/1              the wire codec that probes and proxies use
     HPACK               header compression of HTTP/2
     HTTP/2              the client's side of a connection, for probes: bytes in, events and bytes out
     GRPC                the health checking protocol of gRPC as bytes
   Implementation:
     COMPILER, VERSION AND STATUS, MEMORY, TEXT, ADDRESS, TIMER, RANDOM NUMBERS
     SLOT, SET AND VIEW, MAILBOX, BALANCER MEMORY, LOG, READERS, OUTLIER RECORDS, PICKING
     ROUND ROBIN RANDOM FNV, CRC-32, KETAMA, SMOOTH ROUND ROBIN, LEAST CONNECTIONS, BOUNDED LOADS, IP HASH
     POWER OF TWO CHOICES, PEAK EWMA, KEY HASH, MAGLEV, RENDEZVOUS
     OPS, LISTS, SCHEDULE, UPDATE, DISCOVERY, STATIC DISCOVERY
     HEALTH CHECK, EXCHANGE, TCP CHECK, HTTP CHECK, SEND AND EXPECT, AGENT CHECK, HTTP/2 CHECK, GRPC CHECK,
     OUTLIER DETECTION
     BALANCER, METRICS, HTTP/1, HPACK, HTTP/2, GRPC

   WORDS
   backend     an address, a weight, and what the program hangs on it (id, ext)
   set         the backends of one moment: sorted, immutable, published whole
   slot        what outlives sets, one per (address, id): health, enablement, requests in flight
   view        a set as a strategy sees it: its backends and which of them are ready
   strategy    how one is chosen; discovery: where sets come from; check: how health is found out
   ejection    a backend is taken out for a while for what its requests met with, whatever its checks say
   port        what a platform lends: plb_io (streams) and tables for time, random bytes, names

   DEFINES
   PINGORA_LB_IMPLEMENTATION  in one file: emits the code
   PLB_STATIC                 every function is static, for a program that is one file
   PLB_NO_THREADS             no atomics: everything from one thread (or with interrupts kept out by the program)
   PLB_NO_THREAD_LOCAL        no thread-local byte is used to tell threads apart: reading then costs two locked
                              instructions
   PLB_READERS                threads that get a cache line of their own to read by; as many lines more are for the
                              threads that got none, and readers beyond those share one counter (16)
   PLB_SEEN_MAX               distinct backends that one walk remembers exactly, 2 bytes of stack each (128); half as
                              many in a tier of more than 65 536
   PLB_EXCHANGE_SIZE          bytes of the buffer through which probes read; the longest head of an answer (8192)
   PLB_HTTP1_EXTRA_MAX        bytes of chunk extensions and trailers that one body may have (4096)
   PLB_CRC_TABLES             KiB of constant tables for CRC-32: 0 (64 bytes), 1, 8 or 16; more are faster (16)
   PLB_MALLOC, PLB_FREE       in place of malloc and free; <stdlib.h> is then not included
   All files of a program must see the same ones: a header of its own that sets them and includes this one does it.
   The following leave parts out, for small systems. What is left out is not declared, members of structs included, so
   that using it does not compile; what needs it is left out with it (in brackets). The figure is what it saves of flash
   on a Cortex-M3 (-Os) where all else is there.
   PLB_NO_AGENT               plb_agent_check; 0.9 KiB
   PLB_NO_BOUNDED             plb_bounded_loads; 0.7 KiB
   PLB_NO_CHANGES             plb_add, plb_remove, plb_replace; 1.4 KiB
   PLB_NO_CHECK_LIST          more than one check, checks by name, intervals of their own, jitter, plb_check_now;
                              1.3 KiB, 8 bytes of RAM a backend
   PLB_NO_CHOICES             plb_two_choices [PLB_NO_EWMA]; 1.8 KiB
   PLB_NO_DRAW                plb_view_draw [PLB_NO_CHOICES, FNV, IP_HASH, KETAMA, MAGLEV, RANDOM, SHARES, SMOOTH];
                              12 KiB, 8 bytes of RAM a backend
   PLB_NO_EWMA                plb_peak_ewma; 0.8 KiB
   PLB_NO_EXCHANGE            probes that say or hear something, connections kept: the TCP check is left, and checks of
                              one's own [PLB_NO_AGENT, EXPECT, HTTP1]; 22 KiB
   PLB_NO_EXPECT              plb_expect_check, Redis and the like; 2.5 KiB
   PLB_NO_FNV                 plb_fnv; 0.3 KiB
   PLB_NO_GRPC                plb_grpc_check, the codec; 2.1 KiB
   PLB_NO_HANDLES             plb_handle_...; 0.4 KiB
   PLB_NO_HTTP1               the codec, plb_http_check [PLB_NO_HTTP2]; 17 KiB
   PLB_NO_HTTP2               the codec, HPACK, plb_http2_check [PLB_NO_GRPC]; 11 KiB
   PLB_NO_IP_HASH             plb_ip_hash; 0.5 KiB
   PLB_NO_IPV6                such addresses are PLB_ERR_ADDRESS; 0.7 KiB
   PLB_NO_KETAMA              plb_ketama, CRC-32 [PLB_NO_BOUNDED]; 4 KiB
   PLB_NO_LEAST               plb_least_connections; 0.8 KiB
   PLB_NO_LIMITS              plb_backend.max_conns; 0.2 KiB, 4 bytes of RAM a backend
   PLB_NO_LOG                 log, summary, what probes say in words, plb_status_text; 4.4 KiB
   PLB_NO_MAGLEV              plb_maglev; 1.3 KiB
   PLB_NO_METRICS             plb_metrics; 4.7 KiB
   PLB_NO_NAMES               host names: in the list, in plb_backend and plb_pick; 1 KiB
   PLB_NO_OUTLIER             outlier detection; 2.5 KiB
   PLB_NO_PROBE_INFO          on_probe, plb_find_probe, flips [PLB_NO_METRICS]; 5.2 KiB, 20 bytes of RAM a backend
   PLB_NO_RANDOM              plb_random_choice; 0.2 KiB
   PLB_NO_RENDEZVOUS          plb_rendezvous; 1.6 KiB
   PLB_NO_SHARES              slow start, shares of agents [PLB_NO_AGENT]; 2 KiB, 8 bytes of RAM a backend
   PLB_NO_SMOOTH              plb_smooth_round_robin; 1.6 KiB
   PLB_NO_TICK                plb_strategy_ops.tick [PLB_NO_EWMA]; 0.9 KiB
   PLB_NO_TIERS               priorities, backups, panic: all backends are one tier; 1.7 KiB
   PLB_NO_TLS                 TLS of checks; 0.6 KiB
   PLB_NO_UNIX                paths of Unix sockets: a plb_addr has 116 bytes with them, 24 with IPv6, 8 with neither
   PLB_NO_UPDATES             any set but that which plb_create makes of plb_static's list, discoveries of one's own
                              [PLB_NO_CHANGES, METRICS, NAMES]; 12 KiB, 60 bytes of RAM a backend. plb_create then
                              returns what on_first_update would have told
   PLB_NO_WALK                plb_walk_..., exclude and accept of plb_request; a strategy then needs its pick
                              [PLB_NO_SHARES]; 4.6 KiB
   PLB_NO_WEIGHTS             weights: each is 1 [PLB_NO_DRAW, LEAST, RENDEZVOUS]; round robin is left; 16 KiB,
                              2 bytes of RAM a backend
   A compiler that is asked for small code (-Os) is given less: what is there for speed alone is left out, such as the
   amending of Ketama's rings. What is picked is the same.

   FAITHFUL, THEN BETTER
   Sets are ordered, walked and limited exactly as by pingora-load-balancing 0.8, `max_iterations` included; the
   recorded answers in tests/vectors/ show it. Where it falls down, this does not: a weight of 0 drains a backend; all
   weights 0, or no backend, is a status; a failed or hung discovery leaves the last good set; a new weight keeps the
   health; an update keeps the round-robin counter; `max_iterations` 0 finds a ready backend if there is one; a failure
   of this side (no memory, no descriptors) is never held against a backend; newcomers are probed at once, not at the
   next round. Probes run 64 side by side; parallel_checks = 1 has them one after another, as pingora's default.

   THREADS
   One thread at a time calls plb_poll (plb_create and plb_destroy too). From any thread, meanwhile: plb_select and
   plb_select_with, plb_begin and plb_end, plb_ready, plb_find, plb_each, plb_walk_..., plb_set_enabled, plb_add,
   plb_remove, plb_replace, plb_update_now, plb_check_now, plb_discovery_done, plb_check_done, plb_check_report,
   plb_handle_... None of them takes a lock, waits or makes a system call, but for plb_add and its like and
   plb_handle_open, which allocate, and what plb_io.wake does. With the allocator from several threads it must be
   thread-safe: malloc is, plb_arena is not. Callbacks (on_..., log, summary, ext_release) come from the polling
   thread; they may call anything but plb_poll and plb_destroy; during plb_destroy, nothing. An accept callback comes
   from the thread that picks, and may pick. So may a signal handler, by plb_select and plb_select_with, whatever it
   interrupts. A walk may end on another thread than it began on.

   HOW A SET STAYS ALIVE WHILE IT IS READ
   A set is published by one atomic store of a pointer. Readers are hazard pointers (Michael 2004): a reader stores the
   set that it found into a cell that nobody else writes, then looks again: if another set is published by now, it moves
   on to that. The writer stores the new pointer and reads the cells afterwards. All four are sequentially consistent,
   so the second look finds the new set, or the writer finds the cell: a retired set that no cell names is read by
   nobody, and as it is never published again, nobody can come to it. (If its memory is, as another set, the second look
   found that one, and the writer's next look at the cells spares it.) Letting go is a release that the writer's look
   acquires, so all reading is over before the memory goes. With plb_barrier the reader's store is a plain one: a reader
   whose second look came before the barrier has its store seen after it, any later look finds the new set.
   Readers without a cell count themselves before they look, on one of two sides. Whoever reads a retired set was
   counted before it retired; once each side was seen at 0 since, at whatever moments, all of them have left. New ones
   go to the side that is empty, so the other one gets there, however many they are.
   No reader waits or registers. At most two retired sets exist: two readers that stand still in different sets (or one
   that is only counted) hold up updates, which become one until they go on, but never memory. What a pick holds beyond
   the call is the slot: it counts itself there while the set, which holds the slot too, is still announced.
   A flip writes the slot, then the bits of the set that is about to be published, then those of the one that is.
   Publication names the new set to flips, then reads every slot, then shows the set to readers: a flip finds the new
   set, or its slot was read after it. A bit is put on only if none of its word was put out since the slot was read; so
   a thread that was held up never shows as ready what was switched off meanwhile.

   WHICH STRATEGY
   Requests that are alike                   round robin; smooth round robin where weights differ and bursts hurt
   Requests that last or differ              two choices; least connections for few backends; peak EWMA where backends
                                             are fast and slow at different times (these count plb_begin and plb_end)
   One key, one backend, as few moves as
   can be when the set changes               Ketama (as nginx and pingora), rendezvous for few backends, Maglev for
                                             many and the same cost for all; bounded loads where a hot key would drown
                                             one of them
   One client, one backend, as nginx         IP hash
   Faithful to pingora                       round robin, random, FNV, Ketama
   Section STRATEGY has each one's cost, memory and source; build/plb_pick shows what they do with your keys.

   TIERS, PANIC, SLOW START
   plb_backend.priority makes tiers: picks come from the first one that has a ready backend, and go back as soon as an
   earlier one has. PLB_BACKUP as a priority is nginx's `backup`; 0 to 65535 are DNS SRV's. A walk that refuses all of a
   tier (plb_request.exclude, accept) goes on to the next. Each tier has a table of its strategy of its own.
   panic_percent: when so few backends of a tier are healthy that the rest would drown, health is ignored there; not so
   disablement, weight 0 and max_conns. A tier without a healthy one panics only if no other tier has one.
   slow_start_ms: a backend that becomes healthy is offered its requests as before, but refuses all but a share that
   grows over this time: for strategies with a key, of the keys, so that they come one after another and stay; for the
   others at random. What it refuses goes to one that is drawn, for a key the same each time; the requests of the others
   stay where they are. A tier that panics spares nobody.

   HEALTH
   A balancer has up to eight checks, and a backend is healthy while all of its checks pass: each has its own
   thresholds, interval, and last result (plb_find_probe, on_probe). Which one?
   Does anything listen                      plb_tcp_check; with TLS and a certificate that holds: .tls = &tls
   Does it serve                             plb_http_check (HTTP/1.1, HTTPS), plb_http2_check: a status, a header, a
                                             text in the page
   Does it say so itself                     plb_grpc_check (grpc.health.v1); plb_agent_check, by which a backend also
                                             asks for less, or for no more requests
   Redis, SMTP, MySQL, PostgreSQL,           plb_redis_check and so on; anything else that answers when it is spoken to:
   memcached                                 plb_expect_check
   Something of your own                     a plb_check_ops; over streams, section EXCHANGE leaves two functions to
                                             write, with the codecs HTTP/1, HTTP/2 and GRPC at hand
   All backends have all checks, but for those with by_name, which only those have that name them in plb_backend.checks.
   A backend whose port, path or host is its own: plb_http_check_desc.target, or a check by_name. Intervals: every_ms,
   shorter or longer while in doubt (fast_every_ms) and while down (down_every_ms), jitter_percent against step, and
   plb_backend.check_every_ms. parallel_checks bounds what is in flight. build/plb_probe tries any of it by hand.
       plb_check checks[2] = {plb_tcp_check(NULL), plb_http_check(&(plb_http_check_desc){.path = "/health"})};
       checks[1].every_ms = 5000, checks[1].down_every_ms = 1000, checks[1].consecutive_failure = 3;
       plb_balancer_desc desc = {.checks = checks, .check_count = 2, .check_every_ms = 1000, ...};
   plb_metrics writes all that is known as text for Prometheus.

   OUTLIER DETECTION
   With plb_balancer_desc.outlier.on, what plb_end is told ejects backends: so many failures in a row, or a success rate
   far below that of the others. The thread that meets the last failure leaves word, the next plb_poll ejects, and the
   port's wake sees to it that it is soon. It costs a request 4 ns. Ejected backends come back when their time is over,
   by slow start if there is one, or by a passed probe. A tier that panics uses them all the same. plb_find_outlier and
   on_eject tell what happens.

   MEMORY (64-bit)
   a balancer                  3 KiB (1 KiB with PLB_NO_THREADS)
   the static list             232 bytes an entry and its name
   a backend                   84 bytes of slot for IPv4 (96 IPv6) and its name; 27 bytes in each set
   checks                      16 bytes a backend, and 32 for each of its checks
   outlier detection           144 bytes a backend more, 112 where it has checks
   a handle                    184 bytes
   round robin, random, FNV,   8 bytes a backend, none where each weighs 1
   least connections, IP hash
   two choices, peak EWMA      8 bytes a backend, none where all weigh the same; peak EWMA 8 bytes a slot more
   Maglev                      2 bytes a place of the table, 65 537 places; 4 above 65 536 backends
   rendezvous                  8 bytes a backend
   smooth round robin          4.1 bytes a backend and 20 for each distinct weight
   Ketama, bounded loads       6.3 to 6.6 bytes a point, 160 points for each unit of weight unless told otherwise; from
                               65 536 backends on 2 more
   a probe in flight           496 bytes (TCP), 632 (HTTP; more while an answer's head comes in pieces), 1.9 KiB
                               (HTTP/2, gRPC; 7.9 KiB with a validator), and the port's stream; all share one buffer
                               of PLB_EXCHANGE_SIZE
   an update                   for its duration: 180 bytes a backend and the new set; Ketama: 9.3 bytes a point, or,
                               where little changes, 6 a backend and 16 for each point that does
   an HTTP/2 connection        240 bytes, and 512 to 1024 for its tables and what it is about to send
   constant tables             16 KiB, of CRC-32 (PLB_CRC_TABLES); 2 KiB, of header compression
   On a Cortex-M3 (32-bit, one thread, -Os) by what is left out; `make size` prints it:
   round robin, a fixed list,  8 KiB of flash; 456 bytes a balancer, 68 a backend, 129 a probe in flight
   the TCP check
   random, FNV, Ketama, the    19 KiB of flash; 496 bytes a balancer, 78 a backend, 241 a TCP probe in flight
   HTTP/1 check beside them
   all but TLS, Unix paths and 64 KiB of flash; 1 KiB a balancer, 227 bytes a backend, 332 a TCP probe in flight
   handles
   Nothing grows with time or with traffic. The memory of probes goes back when they end, except 16 bytes for each of as
   many as ever ran side by side, which late completions may still point at. Every allocation may fail: the call reports
   it, what was there before goes on, and the balancer tries again after a second.

   TIME
   Milliseconds of plb_clock, which may wrap at 2^32. A clock that jumps ahead makes each schedule due once; one that
   steps back stands still. plb_poll starts 64 probes at most, or what takes 2 ms, and sees to some hundreds that end.
   Building a set runs to its end inside plb_poll: 10 000 backends take some 0.6 ms, with Ketama 10 ms more; where less
   than an eighth of the weights changes, the ring is made from the old one, in 1.5 ms. The end of an interval of
   outlier detection takes 0.2 ms for 10 000 backends. A loop that cannot spare that runs plb_poll on the port's
   background thread.

   FORK
   After fork the child has a copy of the balancer, frozen: it may select from it (its random numbers go on as the
   parent's do), but neither poll nor destroy it, for both would act on the parent's port. A child that wants checks and
   updates makes a port and a balancer of its own. Threads do not survive fork: do not fork while another one is inside
   a call.

   HOW TO WRITE A PORT
   A port is one plb_io: streams on a platform, nothing of balancing. ports/plb_posix.h is the one to copy from where
   there are sockets, ports/plb_lwip.h where the stack calls back, tests/sim.h to see a whole one in memory. The
   contract of each function, with every status it may return, is in section PORT; this is how it hangs together.

   The bargain. The caller asks, and the port answers at once: it is done, or why it cannot be, or PLB_AGAIN. PLB_AGAIN
   is a promise: this stream and direction will be called back once, from the port's step, when asking again is worth
   it. Nothing else calls back.
       caller            port                                   the port's step
       connect    -->    PLB_AGAIN
                                                                handler(stream, PLB_EVENT_CONNECT, PLB_OK)
       write      -->    PLB_OK, *taken = 40
       read       -->    PLB_AGAIN
                                                                handler(stream, PLB_EVENT_READ, PLB_OK)
       read       -->    PLB_OK, *got = 512
       close      -->    whatever was promised is off; the stream is gone

   function   may return             callback that PLB_AGAIN promises   notes
   connect    AGAIN, OK, errors      CONNECT, with how it ended         an error returned: nothing was made. An error in
                                                                        the callback: the stream is still to be closed
   read       OK, AGAIN, END,        READ                               END stays END; bytes that came before it first.
              errors                                                    A reset is an error, never END
   write      OK, AGAIN, errors      WRITE                              OK may be for a part of it; AGAIN: for nothing
   watch      OK, AGAIN              READ or WRITE, as asked            arms as read and write do, without a buffer
   shutdown   OK, RESET              -                                  what was written goes out before the end does
   close      -                      -                                  once for each stream, listener, failed connect
   info       OK, IO                 -
   listen     OK, errors             -
   accept     OK, AGAIN, errors      ACCEPT                             AGAIN also while the port has no stream to spare
   wake       -                      -                                  the step in progress, or else the next one,
                                                                        returns at once; tasks are polled
   A port that lacks something (listening, IPv6, Unix paths, TLS) returns PLB_ERR_UNSUPPORTED.

   Which thread. All calls come from the thread that steps the port, and from callbacks, which that thread makes in its
   step. wake alone comes from anywhere. Where a stack has a thread of its own (lwIP's), its callbacks only note what
   happened, and the step passes it on.
   Who owns what. plb_peer and plb_listen_desc are read during the call; the handler is copied. What read fills is the
   caller's buffer. What write accepted is the port's: it copies, but for chunks with PLB_CHUNK_CONSTANT, which stay
   where they are. A stream is the port's memory from connect, listen or accept until the caller closes it, whatever
   becomes of the connection; the port never closes one by itself. Texts that info points at live as long as the stream.
   Time. A port needs no timer for its streams: whoever calls it has the deadlines, and closes what takes too long.
   Shortage. Out of memory, descriptors or streams is PLB_ERR_MEMORY or PLB_ERR_LIMIT (of accept: PLB_AGAIN, and the
   callback when it can accept again): this side's fault, held against no backend.
   The step is the program's way in, and its form is yours: wait until something stirs or a task is due (wake ends the
   wait), make the callbacks, poll the tasks (plb_task), each after every step and when its delay is over.

   What goes wrong, in the order in which it is met:
   - A callback from inside connect, because the refusal is known at once. Return it instead.
   - Level-triggered callbacks: a stream that nobody asked about is called back since bytes wait there.
   - Two callbacks, since the caller asked twice before the first came.
   - A callback after close: of two events that one step found, the first one's callback closed the other's stream. Look
     whether the stream is still the same (a generation number) before each callback.
   - An end or a reset that comes together with the last bytes, told only once and then forgotten.
   - A graceful close that resets since bytes wait unread, and takes away what the peer has not read yet.
   - A wake between the last look and the wait, lost.
   - A write that raises a signal or blocks, a buffer full to the last byte, a listener out of descriptors that spins.

   A check needs connect, close and info; HTTP checks read, write and shutdown, too; the proxy all of it. Of the other
   tables plb_clock is always needed with checks (sys_now and the like; it may wrap at 2^32); plb_random where instances
   should differ; plb_names for host names; plb_dgram and plb_barrier where they come cheap.
   To try a port, write a fixture: two functions that open and close a port of yours, and say where it can listen and
   what refuses (tests/io_fixture.h; tests/io_fixture_posix.c is one). Then
       cc -I. -isystem tests tests/io_conformance.c my_fixture.c tests/core.c -o conformance && ./conformance
   runs every rule above over it, some eighty, in seconds. If all of them pass, checks and proxy run on your
   platform. On a device without an operating system, link the same files into an image and let printf and exit go where
   you see them; a fixture whose `streams` is set keeps the suite within what the port has. */
#ifndef PINGORA_LB_H
#define PINGORA_LB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* ==== WHAT IS LEFT OUT ===============================================================================================
   A part that is left out takes with it what needs it: the list in DEFINES, and this is where it is carried out. */

#ifdef PLB_NO_UPDATES
#ifndef PLB_NO_CHANGES
#define PLB_NO_CHANGES
#endif
#ifndef PLB_NO_NAMES
#define PLB_NO_NAMES
#endif
#ifndef PLB_NO_METRICS
#define PLB_NO_METRICS
#endif
#endif
#ifdef PLB_NO_PROBE_INFO
#ifndef PLB_NO_METRICS
#define PLB_NO_METRICS
#endif
#endif
#ifdef PLB_NO_WALK
#ifndef PLB_NO_SHARES
#define PLB_NO_SHARES
#endif
#endif
#ifdef PLB_NO_WEIGHTS
#ifndef PLB_NO_DRAW
#define PLB_NO_DRAW
#endif
#ifndef PLB_NO_LEAST
#define PLB_NO_LEAST
#endif
#ifndef PLB_NO_RENDEZVOUS
#define PLB_NO_RENDEZVOUS
#endif
#endif
#ifdef PLB_NO_DRAW
#ifndef PLB_NO_SHARES
#define PLB_NO_SHARES
#endif
#ifndef PLB_NO_RANDOM
#define PLB_NO_RANDOM
#endif
#ifndef PLB_NO_FNV
#define PLB_NO_FNV
#endif
#ifndef PLB_NO_KETAMA
#define PLB_NO_KETAMA
#endif
#ifndef PLB_NO_SMOOTH
#define PLB_NO_SMOOTH
#endif
#ifndef PLB_NO_IP_HASH
#define PLB_NO_IP_HASH
#endif
#ifndef PLB_NO_CHOICES
#define PLB_NO_CHOICES
#endif
#ifndef PLB_NO_MAGLEV
#define PLB_NO_MAGLEV
#endif
#endif
#ifdef PLB_NO_SHARES
#ifndef PLB_NO_AGENT
#define PLB_NO_AGENT
#endif
#endif
#ifdef PLB_NO_KETAMA
#ifndef PLB_NO_BOUNDED
#define PLB_NO_BOUNDED
#endif
#endif
#ifdef PLB_NO_TICK
#ifndef PLB_NO_EWMA
#define PLB_NO_EWMA
#endif
#endif
#ifdef PLB_NO_CHOICES
#ifndef PLB_NO_EWMA
#define PLB_NO_EWMA
#endif
#endif
#ifdef PLB_NO_EXCHANGE
#ifndef PLB_NO_HTTP1
#define PLB_NO_HTTP1
#endif
#ifndef PLB_NO_EXPECT
#define PLB_NO_EXPECT
#endif
#ifndef PLB_NO_AGENT
#define PLB_NO_AGENT
#endif
#endif
#ifdef PLB_NO_HTTP1
#ifndef PLB_NO_HTTP2
#define PLB_NO_HTTP2
#endif
#endif
#ifdef PLB_NO_HTTP2
#ifndef PLB_NO_GRPC
#define PLB_NO_GRPC
#endif
#endif

/* ==== COMPILER =======================================================================================================
   The only section that asks which compiler this is: linkage, atomics, wide multiplication. */

#ifdef PLB_STATIC
#if defined(__GNUC__)
#define PLB_API static __attribute__((unused)) /* a program that uses half of the calls gets no warning */
#elif defined(_MSC_VER)
#define PLB_API static __inline
#else
#define PLB_API static
#endif
#elif defined(__cplusplus)
#define PLB_API extern "C"
#else
#define PLB_API extern
#endif

/* ==== VERSION ========================================================================================================
   Of the interface, and of the implementation that was linked. */

#define PLB_VERSION        "0.1.0"
#define PLB_VERSION_NUMBER 100 /* major * 10000 + minor * 100 + patch */

/* The version of the implementation that was linked; compare with PLB_VERSION. Any thread. */
PLB_API const char *plb_version(void);

/* ==== STATUS =========================================================================================================
   Everything that can go wrong has a name here; no call reports anything through errno. */

typedef enum plb_status {
    PLB_OK = 0,          /* done */
    PLB_AGAIN,           /* not yet: one callback is armed (plb_io), or more bytes are needed (codecs) */
    PLB_END,             /* the peer ended its side of the stream in good order */
    PLB_ERR_ARGUMENT,    /* a descriptor or argument makes no sense */
    PLB_ERR_ADDRESS,     /* not an address this library understands */
    PLB_ERR_WEIGHT,      /* a weight above 65535, or weights that add up to 2^32 or more */
    PLB_ERR_POINTS,      /* a ring would need more points than max_points, or a table more places than table_size */
    PLB_ERR_MEMORY,      /* the allocator returned NULL */
    PLB_ERR_LIMIT,       /* this side has run out of streams, descriptors or ports */
    PLB_ERR_UNSUPPORTED, /* the port, or the object asked, cannot do this */
    PLB_ERR_EMPTY,       /* there is no backend at all */
    PLB_ERR_NOT_READY,   /* there are backends, but none may be used now */
    PLB_ERR_REFUSED,     /* the peer refused the connection */
    PLB_ERR_UNREACHABLE, /* no route leads to the peer */
    PLB_ERR_RESET,       /* the peer, or something on the way, broke the connection */
    PLB_ERR_TIMEOUT,     /* it took longer than allowed */
    PLB_ERR_NAME,        /* the host name did not resolve */
    PLB_ERR_IN_USE,      /* the local address is taken */
    PLB_ERR_ACCESS,      /* the system does not permit it */
    PLB_ERR_PROTOCOL,    /* the peer's bytes break the protocol's rules */
    PLB_ERR_ANSWER,      /* the peer answered in good order, but not what was asked for */
    PLB_ERR_TRUNCATED,   /* the stream ended without the farewell that TLS asks for */
    PLB_ERR_TLS,         /* no TLS session came about */
    PLB_ERR_CERTIFICATE, /* the peer's certificate is not accepted */
    PLB_ERR_CANCELLED,   /* called off before it ended */
    PLB_ERR_IO,          /* any other failure of the port */
    PLB_STATUS_COUNT
} plb_status;

#ifndef PLB_NO_LOG
/* One English sentence, static, never NULL, for any value. Any thread. */
PLB_API const char *plb_status_text(plb_status status);
#endif

/* Is the failure this side's own (memory, descriptors, a call that was wrong or called off) rather than the peer's?
   A probe that ends so says nothing about its backend. Any thread. */
PLB_API bool plb_status_is_local(plb_status status);

/* ==== MEMORY =========================================================================================================
   All memory comes from one allocator, handed in at creation. Zero members: malloc and free. When several threads use
   a balancer, its allocator must be safe to call from them. */

typedef struct plb_allocator {
    void *(*alloc)(void *user, size_t size);             /* aligned for any type, or NULL; size is above 0 */
    void (*dealloc)(void *user, void *ptr, size_t size); /* ptr is never NULL; size is what alloc was asked for */
    void *user;
} plb_allocator;

/* The allocator itself, or malloc and free if its members are zero. What a layer above calls once. Any thread. */
PLB_API plb_allocator plb_allocator_or_default(plb_allocator allocator);

/* An allocator that serves from a caller's array and takes back: first fit, neighbours merged. For programs without
   a heap. Not thread-safe. The array must outlive all that was served from it. */
typedef struct plb_arena {
    void *first_free;  /* private */
    size_t used, peak; /* bytes handed out now and at most, each block rounded up to what alignment needs */
} plb_arena;

/* Prepares `arena` over `bytes` bytes at `memory` (any alignment) and returns the allocator that serves from it. */
PLB_API plb_allocator plb_arena_allocator(plb_arena *arena, void *memory, size_t bytes);

/* ==== ADDRESS ========================================================================================================
   IPv4, IPv6 and Unix paths: read, written, ordered, hashed. */

typedef enum plb_family {
    PLB_FAMILY_NONE = 0, /* no address: all zero bytes, or a name that is still to be resolved */
    PLB_FAMILY_IPV4,
    PLB_FAMILY_IPV6,
    PLB_FAMILY_UNIX
} plb_family;

#define PLB_PATH_MAX      107 /* bytes of a Unix socket's path, without its NUL */
#define PLB_ADDR_TEXT_MAX 120 /* room for any address as text, NUL included */

typedef struct plb_addr {
    uint8_t family; /* a plb_family */
#ifndef PLB_NO_UNIX
    uint8_t path_len; /* Unix: bytes of path */
#endif
    uint16_t port; /* 1 to 65535, in the processor's own byte order; 0 for Unix */
#ifndef PLB_NO_IPV6
    uint32_t scope; /* IPv6: the zone index of a link-local address, else 0 */
#endif
    union {
        uint8_t v4[4]; /* network order */
#ifndef PLB_NO_IPV6
        uint8_t v6[16]; /* network order */
#endif
#ifndef PLB_NO_UNIX
        char path[PLB_PATH_MAX + 1];
#endif
    } u;
} plb_addr;

#define PLB_ZSTRING ((size_t)-1) /* as a length: the text ends at its NUL */

/* Reads "1.2.3.4:80", "[::1]:80", "[fe80::1%3]:80" or "unix:/path" from `length` bytes of `text`. PLB_ERR_ADDRESS, and
   `out` untouched, on anything else: no port, port 0 or above 65535, missing brackets, leading zeros, trailing bytes,
   an empty path or one above PLB_PATH_MAX, an embedded NUL, a host name. Any thread. */
PLB_API plb_status plb_addr_parse(plb_addr *out, const char *text, size_t length);

/* Writes the address as plb_addr_parse reads it (IPv6 as RFC 5952 asks), cut to fit and NUL-terminated when capacity
   is above 0; returns the length of the whole text. PLB_ADDR_TEXT_MAX always suffices. Any thread. */
PLB_API size_t plb_addr_format(const plb_addr *addr, char *text, size_t capacity);

/* Pingora's order: IPv4, IPv6, Unix; then bytes, then port, then scope. Negative, 0 or positive. Any thread. */
PLB_API int plb_addr_compare(const plb_addr *a, const plb_addr *b);

/* A hash for tables in memory; equal addresses have equal hashes on one machine, in one version. Any thread. */
PLB_API uint64_t plb_addr_hash(const plb_addr *addr);

/* ==== PORT ===========================================================================================================
   A port is one plb_io and some small companion tables. Rules for all of plb_io:
   - Nothing blocks. A call that returned PLB_AGAIN has armed exactly one callback for that stream and direction;
     nothing else arms one. Calling again before it came keeps the one that is armed.
   - Callbacks run only from the port's step (the function in which the program lends it the thread), never inside a
     plb_io call. In a callback everything is allowed, closing any stream included.
   - plb_io calls come from the thread that steps the port; only wake may be called from anywhere.
   - Before its PLB_EVENT_CONNECT, and after one that told of an error, a stream knows close and info only. After
     shutdown, write is not called any more.
   - close cancels what was armed; after it the stream is gone and no callback mentions it. */

typedef struct plb_stream plb_stream; /* a connection, a listener, or a datagram socket; the port's own */

typedef enum plb_event {
    PLB_EVENT_CONNECT = 1, /* connect has ended; status says how. After an error, close is still the caller's to call */
    PLB_EVENT_READ,        /* read or watch is worth calling again */
    PLB_EVENT_WRITE,       /* write or watch is worth calling again */
    PLB_EVENT_ACCEPT       /* accept is worth calling again */
} plb_event;

/* Where a stream's callbacks go; copied by connect, listen and accept. */
typedef struct plb_handler {
    /* `status` is the result for PLB_EVENT_CONNECT and PLB_OK for the others: what is wrong, the call tells. */
    void (*fn)(void *user, plb_stream *stream, plb_event event, plb_status status);
    void *user;
} plb_handler;

typedef struct plb_credentials plb_credentials; /* whom to trust, who one is: a TLS port's own, made by it */

/* What a TLS session needs. Zero members: the port's credentials, every check made, no ALPN. Read during connect or
   listen only; when credentials may be given back their port says. TLS 1.2 or later, always. */
typedef struct plb_tls {
    const char *name;                   /* client: sent as SNI (RFC 6066; not where it is an IP address), and what the
                                     certificate must be for. Needed unless any_name */
    const char *alternative_name;       /* client: another name that the certificate may be for */
    const char *const *alpn;            /* protocols (RFC 7301), the preferred one first, NULL at the end; NULL: none */
    const plb_credentials *credentials; /* NULL: the port's own */
    bool any_chain;                     /* client: take a certificate that nobody vouches for, or that is out of date */
    bool any_name;                      /* client: take a certificate that is for somebody else */
    bool ask_client; /* server: clients need a certificate that the credentials' authorities vouch for */
} plb_tls;

/* What a connection needs. Zero members: any source, plain bytes. Read during connect only. */
typedef struct plb_peer {
    plb_addr addr;
    plb_addr source;    /* the local address to connect from, of the same family (else PLB_ERR_UNSUPPORTED); its port
                           may be 0; PLB_FAMILY_NONE: the system's choice */
    const plb_tls *tls; /* NULL: plain bytes. A port without TLS: PLB_ERR_UNSUPPORTED */
} plb_peer;

typedef struct plb_listen_desc {
    plb_addr addr;      /* its port may be 0: the system's choice, which info tells */
    uint32_t backlog;   /* connections waiting to be accepted; 0: 512 */
    bool reuse_port;    /* several listeners may share the address (SO_REUSEPORT) */
    const plb_tls *tls; /* as plb_peer's. What is accepted shakes hands by itself; read and write tell if that fails */
} plb_listen_desc;

#define PLB_CHUNK_CONSTANT 1u /* the bytes never change nor go away (static data): a port need not copy them */
#define PLB_CHUNKS_MAX     8  /* chunks that one write looks at */

/* One piece of a gathered write. */
typedef struct plb_chunk {
    const void *data;
    size_t size;
    uint32_t flags;
} plb_chunk;

typedef enum plb_close_how {
    PLB_CLOSE_GRACEFUL = 0, /* what write accepted is still sent, then the end of stream */
    PLB_CLOSE_ABORT         /* at once; the peer sees a reset (or, where the transport has none, the end) */
} plb_close_how;

/* The texts live as long as the stream. */
typedef struct plb_stream_info {
    plb_addr local, remote;  /* of a listener: remote is PLB_FAMILY_NONE */
    const char *tls_version; /* "TLSv1.2", ...; NULL: plain, or not agreed yet */
    const char *alpn;        /* the protocol that was agreed; NULL: none */
    const char *tls_reason;  /* why there is no session, what is wrong with the certificate; NULL: nothing known */
    bool tls_resumed;        /* the session continues an earlier one */
} plb_stream_info;

typedef struct plb_io {
    void *self; /* handed to each function */

    /* Begins a connection. PLB_AGAIN: *out is the stream and PLB_EVENT_CONNECT is armed. PLB_OK: *out is connected
       already. Else nothing was made: PLB_ERR_LIMIT, PLB_ERR_MEMORY, PLB_ERR_UNSUPPORTED (a family, or TLS, that the
       port lacks), PLB_ERR_ARGUMENT (TLS without a name, say), PLB_ERR_ADDRESS (the source is not an address of this
       machine), PLB_ERR_REFUSED, PLB_ERR_UNREACHABLE, PLB_ERR_IN_USE, PLB_ERR_ACCESS, PLB_ERR_IO; what read returns, if
       a handshake fails so soon. */
    plb_status (*connect)(void *self, const plb_peer *peer, plb_handler handler, plb_stream **out);

    /* Reads what is there into the caller's buffer. PLB_OK: 1 to capacity bytes in *got. PLB_AGAIN: nothing yet;
       PLB_EVENT_READ is armed. PLB_END: the peer ended its side; writing may go on. PLB_ERR_RESET, PLB_ERR_TIMEOUT,
       PLB_ERR_UNREACHABLE, PLB_ERR_TRUNCATED, PLB_ERR_TLS, PLB_ERR_CERTIFICATE, PLB_ERR_MEMORY (of a TLS library),
       PLB_ERR_IO: the stream is broken; close it. capacity is above 0. */
    plb_status (*read)(void *self, plb_stream *stream, void *buffer, size_t capacity, size_t *got);

    /* Offers `count` chunks (1 to PLB_CHUNKS_MAX), in order. PLB_OK: the first *taken bytes (1 or more) are the port's
       now; fewer than offered is no error and arms nothing. PLB_AGAIN: none taken; PLB_EVENT_WRITE is armed.
       PLB_ERR_RESET and the like: the stream is broken. Never raises a signal. At least one chunk is not empty. */
    plb_status (*write)(void *self, plb_stream *stream, const plb_chunk *chunks, size_t count, size_t *taken);

    /* Waits without a buffer: `event` is PLB_EVENT_READ or PLB_EVENT_WRITE. PLB_AGAIN: armed. PLB_OK: read or write
       is known to be worth calling now; nothing is armed. The end of the stream and errors count as readable. */
    plb_status (*watch)(void *self, plb_stream *stream, plb_event event);

    /* Ends the sending side after what write accepted; reading goes on. PLB_OK, or PLB_ERR_RESET if it is broken. */
    plb_status (*shutdown)(void *self, plb_stream *stream);

    /* Gives the stream back, listener or connection. Cannot fail. */
    void (*close)(void *self, plb_stream *stream, plb_close_how how);

    /* What is known about a stream. PLB_OK, or PLB_ERR_IO: not the addresses, for it is broken. *out is zeroed
       first. */
    plb_status (*info)(void *self, plb_stream *stream, plb_stream_info *out);

    /* Listens; PLB_EVENT_ACCEPT is not armed yet. PLB_ERR_IN_USE, PLB_ERR_ACCESS, PLB_ERR_LIMIT, PLB_ERR_MEMORY,
       PLB_ERR_ADDRESS (not an address of this machine), PLB_ERR_UNSUPPORTED, PLB_ERR_ARGUMENT (TLS without a
       certificate to show, say), PLB_ERR_IO. A Unix path that nobody listens on any more is replaced. */
    plb_status (*listen)(void *self, const plb_listen_desc *desc, plb_handler handler, plb_stream **out);

    /* Takes one waiting connection; `handler` is the new stream's. PLB_AGAIN: none; PLB_EVENT_ACCEPT is armed. A port
       that is out of descriptors or streams also returns PLB_AGAIN, and makes the callback when it can accept again.
       Any other status means the listener is broken. */
    plb_status (*accept)(void *self, plb_stream *listener, plb_handler handler, plb_stream **out);

    /* Makes the port's step return soon, or the next one return at once, so that tasks are polled. Any thread, and
       signal or interrupt handlers where the platform allows it. May be NULL where one thread does everything. */
    void (*wake)(void *self);
} plb_io;

/* Time. Both count from an arbitrary start. */
typedef struct plb_clock {
    void *self;
    uint64_t (*now_ms)(
        void *self); /* monotonic milliseconds; may wrap at 2^32 (then: a reading at least each 24 days) */
    uint64_t (*now_us)(void *self); /* microseconds for durations below an hour, may wrap at 2^32; NULL: now_ms * 1000.
                                       Any thread. */
} plb_clock;

/* Random bytes to seed from; quality decides how well guests of a fleet differ, not security. */
typedef struct plb_random {
    void *self;
    void (*fill)(void *self, void *bytes, size_t count);
} plb_random;

#ifndef PLB_NO_NAMES
typedef struct plb_query plb_query; /* a resolution on its way; the port's own */

/* The answer, from the port's step, once: PLB_OK and 1 or more addresses with the port that was asked for, or
   PLB_ERR_NAME, PLB_ERR_TIMEOUT, PLB_ERR_MEMORY, PLB_ERR_LIMIT, PLB_ERR_IO and none. The query is gone afterwards; the
   array lives until the callback returns. */
typedef void (*plb_names_fn)(void *user, plb_status status, const plb_addr *addrs, size_t count);

/* Host names to addresses. Same thread rule as plb_io. */
typedef struct plb_names {
    void *self;
    /* Resolves `host` (copied). PLB_AGAIN: `fn` will be called, after timeout_ms at the latest. Else it won't:
       PLB_ERR_MEMORY, PLB_ERR_LIMIT, PLB_ERR_IO. */
    plb_status (*resolve)(void *self, const char *host, uint16_t port, uint32_t timeout_ms, plb_names_fn fn, void *user,
                          plb_query **out);
    void (*cancel)(void *self, plb_query *query); /* fn will not be called any more */
} plb_names;
#endif

/* Datagrams (UDP). Rules and thread as for plb_io, whose plb_stream and plb_handler serve here too, but such a socket
   is given to these functions only. Datagrams may get lost, doubled or out of order, and those that wait too long for
   receive are lost, too: those who use them expect it. */
typedef struct plb_dgram {
    void *self;

    /* Opens a socket. `local`: an address of this machine, or all zero bytes behind its family (any), and a port, 0:
       the system's choice; NULL: any. `remote`: the one place to send to and to hear from, so that forgeries from
       elsewhere are dropped below (RFC 5452 section 9); NULL: everybody. Both are read during the call only. PLB_OK, or
       PLB_ERR_ARGUMENT (both are NULL, or of different families; no port in `remote`), PLB_ERR_UNSUPPORTED (a family
       that the port lacks; Unix paths), PLB_ERR_ADDRESS (not an address of this machine), PLB_ERR_IN_USE,
       PLB_ERR_ACCESS, PLB_ERR_UNREACHABLE, PLB_ERR_LIMIT, PLB_ERR_MEMORY, PLB_ERR_IO; *out is NULL then. */
    plb_status (*open)(void *self, const plb_addr *local, const plb_addr *remote, plb_handler handler,
                       plb_stream **out);

    /* Sends one datagram of `size` bytes (0 too), which are the caller's again when it returns, to `to`; to the remote
       address, where there is one, and `to` is NULL. PLB_OK: it is on its way. Else it is not; nothing is armed:
       PLB_ERR_ARGUMENT (`to` without port, missing, or given beside a remote address; more bytes than a datagram may
       have), PLB_ERR_UNSUPPORTED (another family), PLB_ERR_LIMIT (no room now), PLB_ERR_MEMORY, PLB_ERR_REFUSED (an
       earlier one met nobody), PLB_ERR_UNREACHABLE, PLB_ERR_ACCESS: the socket is as good as before. PLB_ERR_IO: it is
       broken. */
    plb_status (*send)(void *self, plb_stream *socket, const plb_addr *to, const void *data, size_t size);

    /* Takes one datagram. PLB_OK: min(*got, capacity) bytes are in the buffer; *got above capacity: it was longer, no
       matter by how much, and the rest is lost. *from (may be NULL) is its sender. PLB_AGAIN: none; PLB_EVENT_READ is
       armed. Else nothing is armed: PLB_ERR_REFUSED (nobody listens at the remote address), PLB_ERR_UNREACHABLE,
       PLB_ERR_ACCESS: what became of earlier datagrams, as far as the platform tells; PLB_ERR_LIMIT, PLB_ERR_MEMORY:
       the socket is as good as before. PLB_ERR_IO: it is broken. capacity is above 0. */
    plb_status (*receive)(void *self, plb_stream *socket, void *buffer, size_t capacity, size_t *got, plb_addr *from);

    /* As plb_io's; remote is PLB_FAMILY_NONE where everybody is heard. */
    plb_status (*info)(void *self, plb_stream *socket, plb_stream_info *out);
    void (*close)(void *self, plb_stream *socket);
} plb_dgram;

/* A memory barrier for all threads at once: when issue returns, every thread of the process that runs has passed a full
   barrier since the call (membarrier on Linux, FlushProcessWriteBuffers on Windows). With it, reading costs no locked
   instruction; a balancer issues one for each set that it publishes. */
typedef struct plb_barrier {
    void *self;
    void (*issue)(void *self); /* cannot fail: a port that is not sure of it has no plb_barrier. Any thread */
} plb_barrier;

/* What a program lends to a balancer or a proxy. Each may be NULL where nothing needs it: a balancer of literal
   addresses without checks needs nothing at all. The tables must outlive what they were lent to. */
typedef struct plb_port {
    const plb_io *io;
    const plb_clock *clock;
    const plb_random *random;
#ifndef PLB_NO_NAMES
    const plb_names *names;
#endif
    const plb_barrier *barrier;
    const plb_dgram *dgram;
} plb_port;

#define PLB_FOREVER UINT32_MAX /* as a delay: nothing is due */

/* Something that a loop calls: after each of its steps, and when the delay it returned last (milliseconds,
   PLB_FOREVER: never) is over. The caller owns it; it must stay in place while a loop knows it. */
typedef struct plb_task {
    uint32_t (*poll)(void *user);
    void *user;
    struct plb_task *next; /* the loop's */
} plb_task;

/* ==== TIMER ==========================================================================================================
   Deadlines of everything above the port: a pairing heap (Fredman, Sedgewick, Sleator, Tarjan 1986) threaded through
   the caller's timers, so that nothing is allocated. One thread. Zeroed structs are ready for use. */

typedef struct plb_timer {
    void (*fn)(void *user); /* from plb_timers_run; the timer is unset by then and may be set again */
    void *user;
    uint64_t at_ms;
    struct plb_timer *child, *next, *prev; /* private; prev is NULL when the timer is not set */
} plb_timer;

typedef struct plb_timers {
    uint64_t now_ms; /* never steps back, whatever the clock does */
    uint64_t raw_ms; /* private: the clock's last reading */
    plb_timer *root; /* private */
} plb_timers;

/* Reads the clock; call it before the first timer is set, and before each run. A clock that wraps at 2^32 goes on
   counting; one that steps back stands still. Returns now_ms. */
PLB_API uint64_t plb_timers_update(plb_timers *timers, const plb_clock *clock);
/* Sets or moves a timer to delay_ms after timers->now_ms; 0 counts as 1. O(1), O(log n) amortized to move. */
PLB_API void plb_timer_set(plb_timers *timers, plb_timer *timer, uint32_t delay_ms);
/* Unsets it; nothing happens if it is not set. O(log n) amortized. */
PLB_API void plb_timer_stop(plb_timers *timers, plb_timer *timer);
/* Is it set? */
PLB_API bool plb_timer_is_set(const plb_timer *timer);
/* Calls what is due by now_ms, in order of time. What is set meanwhile is due in a later run. */
PLB_API void plb_timers_run(plb_timers *timers);
/* Milliseconds from now_ms until the first is due; 0 if it is overdue, PLB_FOREVER if none is set. */
PLB_API uint32_t plb_timers_delay(const plb_timers *timers);

/* ==== BACKEND ========================================================================================================
   One place that serves requests. A value: fill it in, or let plb_backend_parse do so. */

typedef struct plb_balancer plb_balancer;

#define PLB_WEIGHT_MAX 65535u
#ifndef PLB_NO_TIERS
#define PLB_BACKUP       65536u /* as a priority: a backup, used only while no other backend is ready */
#define PLB_PRIORITY_MAX 131071u
#endif

typedef enum plb_enablement {
    PLB_ENABLEMENT_KEEP = 0, /* a discovery says nothing of it */
    PLB_ENABLEMENT_ON,
    PLB_ENABLEMENT_OFF
} plb_enablement;

typedef struct plb_backend {
    plb_addr addr; /* PLB_FAMILY_NONE with a port: `name` is still to be resolved (static discovery does) */
#ifndef PLB_NO_WEIGHTS
    uint32_t weight; /* its share, 0 to 65535. It means what it says: 0 is draining, never picked. Usually 1 */
#endif
#ifndef PLB_NO_LIMITS
    uint32_t max_conns; /* requests in flight (plb_begin to plb_end) past which it is not ready; 0: no limit */
#endif
#ifndef PLB_NO_TIERS
    uint32_t priority; /* its tier: those of a greater number are used only while none of a smaller one is ready. 0 to
                          65535, as in DNS SRV (RFC 2782); PLB_BACKUP added: after all that are no backups */
#endif
    uint32_t id;               /* tells two services on one address apart; usually 0 */
    plb_enablement enablement; /* from a discovery: switch it on or off with this update */
#ifndef PLB_NO_CHECK_LIST
    uint32_t checks; /* which of the balancer's checks it has, a bit each, the first one's is 1; 0: all but those
                                that are by_name */
    uint32_t check_every_ms; /* instead of each check's every_ms; 0: as there. One that an update changes holds from
                                the next probe on */
#endif
#ifndef PLB_NO_NAMES
    const char *name; /* the host name it came from, or NULL. Copied. The first name of an address stays */
#endif
    void *ext;                      /* the program's own */
    void (*ext_release)(void *ext); /* called once when nothing reaches ext any more, or NULL */
} plb_backend;

/* Who owns ext: the balancer, from the call that hands the backend over. It calls ext_release exactly once: after the
   last pick that can reach ext, or at once when the address is in the set already (the ext that is there stays; the
   same pointer again is not a second one) or when the backend was refused. It does so in plb_create, plb_poll,
   plb_destroy, or the last plb_end after plb_destroy. */

/* Reads an address, or "host:port" with a host name to be resolved, into a backend of weight 1. `name` then points
   into name_buffer (at least 256 bytes, the caller's; may be NULL: names are refused). PLB_ERR_ADDRESS. Any thread. */
PLB_API plb_status plb_backend_parse(plb_backend *out, const char *text, size_t length, char *name_buffer);

/* ==== EXTENSION POINTS ===============================================================================================
   Each is a table of functions and a descriptor; the built-in ones use nothing that a user's own could not. The
   descriptor is read during plb_create only, so it may be a compound literal or live on the stack. Each object gets
   `state_size` zeroed bytes for itself, handed to every function, released by the balancer after close. */

/* What an extension may use; the balancer's own, valid while it lives. */
typedef struct plb_env {
    plb_port port;
    plb_allocator allocator;
    plb_balancer *balancer;
} plb_env;

/* Names one start, so that its completion can be told from a late one. Copy it freely. */
typedef struct plb_token {
    plb_balancer *balancer;
    void *op;            /* private */
    uint32_t generation; /* private */
} plb_token;

/* The completion contract. start(token) begins something; it is completed by one call of plb_discovery_done or
   plb_check_done with that token, from any thread, inside start too. A start that returned an error is complete
   without it. cancel(token) ends it otherwise, at its time-out for one: when cancel returns, the work has let go of
   the probe's memory and of everything it was handed. A completion that comes after cancel, or a second one, is
   ignored, as long as the balancer lives: before close returns, a threaded extension sees to it that none can come
   later. start and cancel are called from plb_poll (discovery's first start from plb_create), cancel from plb_destroy
   too. */

/* ==== DISCOVERY ======================================================================================================
   Where sets come from. */

#ifndef PLB_NO_UPDATES
typedef enum plb_change {
    PLB_CHANGE_ADD = 0,
    PLB_CHANGE_REMOVE,  /* addr (or name and port) and id say which; the rest is not looked at */
    PLB_CHANGE_REPLACE, /* all of them */
    PLB_CHANGE_NONE     /* nothing: only what comes of their ext is asked for, and no memory may be needed for it */
} plb_change;

typedef struct plb_discovery_ops {
    const char *name;
    size_t state_size;
    plb_status (*open)(void *state, const void *desc, const plb_env *env); /* may be NULL; an error fails plb_create */
    void (*close)(void *state);                                            /* may be NULL; also after a failed open */
    plb_status (*start)(void *state, plb_token token);
    void (*cancel)(void *state, plb_token token);
    /* What became of the answer, from plb_poll; PLB_OK: it is the set now, or equals it. May be NULL. A discovery that
       has it keeps the ext of every answer that was not PLB_OK; without it the balancer releases them. */
    void (*applied)(void *state, plb_status status);
    /* plb_add, plb_remove, plb_replace, from plb_poll and plb_destroy; a new start follows. The backends' memory is the
       caller's; their ext is the discovery's from here on, whatever is returned, but for PLB_ERR_MEMORY: nothing was
       done then, and the same comes again in a second, or from plb_destroy as PLB_CHANGE_NONE. NULL: changes are
       refused with PLB_ERR_UNSUPPORTED. */
    plb_status (*change)(void *state, plb_change change, const plb_backend *backends, size_t count);
} plb_discovery_ops;
#endif

typedef struct plb_discovery {
#ifndef PLB_NO_UPDATES
    const plb_discovery_ops *ops; /* NULL: plb_static(NULL) */
#endif
    const void *desc;
#ifndef PLB_NO_UPDATES
    uint32_t timeout_ms; /* an answer that takes longer counts as failed; 0: 5000 */
#endif
} plb_discovery;

#ifndef PLB_NO_UPDATES

/* Completes a discovery. PLB_OK: `backends` (copied, in any order) is the whole new set; count may be 0. PLB_AGAIN: the
   same, but it is known to be incomplete, so another start follows in a second. Else the last good set serves on and
   the failure is reported. Returns PLB_OK; PLB_ERR_CANCELLED (too late, or a second one: ignored) or PLB_ERR_MEMORY (it
   could not be copied: it counts as failed). Unless status was PLB_OK or PLB_AGAIN and PLB_OK is returned, every ext
   stays the caller's. Any thread. */
PLB_API plb_status plb_discovery_done(plb_token token, plb_status status, const plb_backend *backends, size_t count);
#endif

/* Static discovery: a list from the program, which it may change at run time. */
typedef struct plb_static_desc {
    const char *const *addresses; /* as plb_backend_parse reads them, weight 1 */
    size_t address_count;
    const plb_backend *backends; /* those with PLB_FAMILY_NONE, a name and a port are resolved */
    size_t backend_count;
#ifndef PLB_NO_NAMES
    uint32_t timeout_ms; /* for all names of one update together; 0: 5000 */
#endif
} plb_static_desc;

/* Names are resolved through plb_port.names at each update, side by side. Every address of a name becomes a backend
   that remembers the name. When a name fails, its addresses of last time serve on; the failure is logged. NULL: an
   empty list. plb_create then reports PLB_ERR_ADDRESS or PLB_ERR_WEIGHT for bad entries (the log names them) and
   PLB_ERR_UNSUPPORTED for names without plb_port.names. Any thread. */
PLB_API plb_discovery plb_static(const plb_static_desc *desc);

#ifndef PLB_NO_CHANGES
/* Change the static list; an update follows at once. The backends are copied. PLB_ERR_ADDRESS, PLB_ERR_WEIGHT,
   PLB_ERR_ARGUMENT (a priority, or bits of checks past PLB_CHECKS_MAX), PLB_ERR_MEMORY, PLB_ERR_UNSUPPORTED (the
   discovery has no list, or a name cannot be resolved here): nothing changes and ext stays the caller's. What only
   shows later (a sum of weights of 2^32 or more) is logged and undone. Adding what is there already replaces its
   weight, max_conns, priority, checks, check_every_ms and enablement. Any thread. */
PLB_API plb_status plb_add(plb_balancer *lb, const plb_backend *backend);
PLB_API plb_status plb_remove(plb_balancer *lb, const plb_backend *backend);
PLB_API plb_status plb_replace(plb_balancer *lb, const plb_backend *backends, size_t count);
#endif

/* ==== HEALTH CHECK ===================================================================================================
   How a backend's health is found out, and when. Each check of each backend has one of two states and a counter:
   `consecutive_failure` failures in a row make it fail, `consecutive_success` successes in a row make it pass again; a
   result that agrees with the state clears the counter (as pingora-load-balancing). A backend is healthy while all of
   its checks pass. Failures of this side (plb_status_is_local) count for nothing and are tried again in a second. An
   update to a set with more than 2^24 backends, times the number of checks, is refused with PLB_ERR_LIMIT. */

#define PLB_CHECKS_MAX 8 /* of one balancer */

typedef struct plb_check_ops {
    const char *name;
    size_t state_size; /* of the whole check */
    size_t probe_size; /* zeroed bytes handed to each start as `probe`; the balancer's */
    plb_status (*open)(void *state, const void *desc, const plb_env *env); /* may be NULL; an error fails plb_create */
    void (*close)(void *state);                                            /* may be NULL; also after a failed open */
    /* Begins one probe. `target` is valid until start returns; its name and ext until the probe is over. After a
       report with `keep`, the backend's next start gets the same bytes as they were left; a start that fails then must
       have let go of what is open in there. */
    plb_status (*start)(void *state, void *probe, const plb_backend *target, plb_token token);
    /* Ends a probe, or what was kept of one: the bytes go when it returns. */
    void (*cancel)(void *state, void *probe, plb_token token);
} plb_check_ops;

/* A check and its schedule. Zero members: the default. The constructors below fill in `ops` and `desc` and leave the
   rest to the program. */
typedef struct plb_check {
    const plb_check_ops *ops; /* NULL: no check; every backend stays healthy */
    const void *desc;
    uint32_t timeout_ms;          /* for one probe, or until it asks for more time (plb_check_deadline), as those over
                                     streams do once they are connected; past it: PLB_ERR_TIMEOUT; 0: 1000 */
    uint32_t consecutive_success; /* at most 65535; 0: 1 */
    uint32_t consecutive_failure; /* at most 65535; 0: 1 */
    uint32_t every_ms;            /* from one probe's start to the next; 0: check_every_ms of plb_balancer_desc */
#ifndef PLB_NO_CHECK_LIST
    uint32_t fast_every_ms;  /* the same while results speak against the state (HAProxy's fastinter); 0: as every_ms */
    uint32_t down_every_ms;  /* the same while the check fails (HAProxy's downinter); 0: as every_ms */
    uint32_t jitter_percent; /* each interval is longer or shorter by up to so much of it, at random, so that a fleet
                                does not probe in step; at most 100; 0: none */
    bool by_name;            /* only for backends that name it (plb_backend.checks) */
#endif
} plb_check;

/* What a probe found out. Zero members: nothing more to say. */
typedef struct plb_report {
    plb_status status; /* PLB_OK: success */
    uint32_t code;     /* the protocol's own number (HTTP status, ...), up to 65535; 0: none */
#ifndef PLB_NO_LOG
    const char
        *text; /* one line for logs and callbacks, copied up to PLB_REPORT_TEXT bytes; NULL: the status says it */
#endif
#ifndef PLB_NO_EXCHANGE
    bool keep; /* keep the probe's bytes for the next start: what is open in there stays open. When it is
                          reported while plb_destroy runs, no cancel follows: close gives it back */
#endif
#ifndef PLB_NO_SHARES
    bool neutral;   /* it says nothing of the backend's health: written down, but no success and no failure. Only
                          where start_unhealthy waits for a first result, it is a success */
    bool has_share; /* `share` is meant, until another report has one */
    uint8_t share;  /* requests that the backend wants, in 255ths of its weight; 0: no new ones */
    plb_enablement enablement; /* does it want new requests at all, whatever its health? Holds until another report
                                  says something else than PLB_ENABLEMENT_KEEP */
#endif
} plb_report;

#define PLB_REPORT_TEXT 80

/* Complete a probe. PLB_AGAIN is no result: it counts as PLB_ERR_ARGUMENT. Any thread. */
PLB_API void plb_check_done(plb_token token, plb_status status);
PLB_API void plb_check_report(plb_token token, const plb_report *report);

/* Gives a probe that is on its way `delay_ms` from now. From the polling thread; no effect once it is over. */
PLB_API void plb_check_deadline(plb_token token, uint32_t delay_ms);

/* How probes over streams connect. Zero members: the default. */
typedef struct plb_connect_desc {
    uint32_t timeout_ms; /* for the connection, TLS included, and for the answer where nothing else is said; 0: 1000 */
    uint16_t port;       /* other than the backend's; 0: that */
    plb_addr source;     /* the local address to probe from, port 0; PLB_FAMILY_NONE: the system's choice */
#ifndef PLB_NO_TLS
    const plb_tls *tls; /* NULL: plain; copied but for its credentials. No name: the host or name of the backend, or
                           else its IP address */
#endif
} plb_connect_desc;

/* TCP check: a connection that is established is a success; it is closed at once. With `tls`: a whole handshake. Zero
   members: the default. */
typedef plb_connect_desc plb_tcp_check_desc;

/* Needs plb_port.io and plb_port.clock. NULL: all defaults. Any thread. */
PLB_API plb_check plb_tcp_check(const plb_tcp_check_desc *desc);

/* ==== EXCHANGE =======================================================================================================
   A probe over a stream, for checks of all kinds: connects, sends, receives, reports. A check's state begins with a
   plb_exchange_check and its probe with a plb_exchange:
       open      calls plb_exchange_open            close    calls plb_exchange_close
       start     calls plb_exchange_start           cancel   is plb_exchange_cancel
   Received bytes are lent; those that are not used come again, together with more, up to PLB_EXCHANGE_SIZE. What
   arrives goes through one buffer for all probes, so a probe that waits for an answer needs none. */

#ifndef PLB_EXCHANGE_SIZE
#define PLB_EXCHANGE_SIZE 8192
#endif

typedef struct plb_exchange plb_exchange;

typedef struct plb_exchange_ops {
    /* The connection is there: PLB_OK: that is a success; PLB_AGAIN: go on, having called plb_exchange_send or not;
       else the probe has failed. */
    plb_status (*connected)(plb_exchange *exchange);
    /* Bytes came; size 0: the peer has ended its side. *used: how many were consumed. PLB_AGAIN: more are needed.
       PLB_END where the connection was kept (resumed): the peer did not look at what was asked; once more, on a new
       one. Any other status is the probe's, and may come with a text, see plb_exchange_say. */
    plb_status (*received)(plb_exchange *exchange, const char *bytes, size_t size, size_t *used);
    /* All that was handed to plb_exchange_send is the port's now. May be NULL. */
    void (*sent)(plb_exchange *exchange);
} plb_exchange_ops;

/* The part of a check's state that belongs to this section. */
typedef struct plb_exchange_check {
    const plb_env *env; /* readable, like the next one */
    plb_connect_desc connect;
    uint32_t answer_ms;
#ifndef PLB_NO_TLS
    void *memory; /* private, like the rest */
    size_t memory_size;
#endif
} plb_exchange_check;

#define PLB_EXCHANGE_CHUNKS 6

/* The part of a probe. */
struct plb_exchange {
    const plb_exchange_check *check; /* readable, like the next one */
    plb_stream *stream;
    plb_token token; /* private, like the next one */
    const char *tls_name;
#ifndef PLB_NO_EXCHANGE
    const plb_exchange_ops *ops;
    bool resumed;        /* readable: this start goes on with a connection that was kept */
    bool keep;           /* writable: after a success, keep the connection for the next start */
    uint16_t port;       /* writable before start: another port than the check's; 0: that */
    bool answered, idle; /* private, like the rest */
    uint8_t chunk_count;
    char *rest; /* readable when the peer has ended its side: what was lent and not used. NULL: nothing */
    size_t rest_size;
    plb_chunk chunks[PLB_EXCHANGE_CHUNKS];
#endif
};

/* For a check's open. `connect` may be NULL: all defaults; its tls is copied. answer_ms: from the connection to the end
   of the probe; 0: as connect's timeout_ms. PLB_ERR_UNSUPPORTED (no plb_port.io or no clock), PLB_ERR_MEMORY,
   PLB_ERR_ARGUMENT. */
PLB_API plb_status plb_exchange_open(plb_exchange_check *check, const plb_connect_desc *connect, uint32_t answer_ms,
                                     const plb_env *env);
PLB_API void plb_exchange_close(plb_exchange_check *check);

/* For start: connects to where the check and the target say, or goes on with what was kept. tls_name: the name that
   certificates must be for and that is asked for, where the check's tls has none; NULL: the target's name, or else its
   IP address. What it returns is start's to return. `exchange` may be over, and its memory gone, when it returns. */
PLB_API plb_status plb_exchange_start(plb_exchange *exchange, const plb_exchange_ops *ops,
                                      const plb_exchange_check *check, const plb_backend *target, const char *tls_name,
                                      plb_token token);

#ifndef PLB_NO_EXCHANGE
/* Sends up to PLB_EXCHANGE_CHUNKS chunks, whose bytes must stay until ops->sent or the end, in place of what is still
   to be sent. From connected, received or sent. What is left when the probe ends is offered once, as a farewell. */
PLB_API void plb_exchange_send(plb_exchange *exchange, const plb_chunk *chunks, size_t count);

/* What the probe's report is to say beside its status: members status and keep are not looked at. Copied. Before the
   status is returned that ends the probe. */
PLB_API void plb_exchange_say(plb_exchange *exchange, const plb_report *report);
#endif

/* plb_check_ops.cancel. */
PLB_API void plb_exchange_cancel(void *state, void *probe, plb_token token);

/* ==== HTTP CHECK =====================================================================================================
   A request, and what its answer must be. HTTP/1.1, over TLS where `connect` has it. As pingora's
   HttpHealthCheck: GET /, a second to connect and a second for the answer, status 200 and no other, the body read
   to its end, a connection of its own each time. Interim answers (1xx) are skipped. What failed is told by the
   report: PLB_ERR_ANSWER when the answer is not the one that was asked for, PLB_ERR_PROTOCOL when it is not HTTP,
   PLB_ERR_RESET when it ended too early, each with words, and the HTTP status as its code once there is one. */

#ifndef PLB_NO_HTTP1
struct plb_http1_header;

/* Is the answer a good one? Header names in any case; their texts are lent. From the polling thread. */
typedef bool (*plb_http_validate_fn)(void *user, uint32_t status, const struct plb_http1_header *headers, size_t count);

/* Where one probe goes and what it asks for. The texts must live until the probe is over. */
typedef struct plb_http_target {
    uint16_t port;    /* 0: the check's, else the backend's */
    const char *path; /* as plb_http_check_desc's */
    const char *host; /* the same */
} plb_http_target;

/* Called at each start with the check's values in `target`, to change them for this backend: its ext knows how. One
   that makes no sense means that the backend cannot be probed (PLB_ERR_ARGUMENT). From the polling thread. */
typedef void (*plb_http_target_fn)(void *user, const plb_backend *backend, plb_http_target *target);

/* Zero members: the default. Read in plb_create, and copied. */
typedef struct plb_http_check_desc {
    plb_connect_desc connect;
    uint32_t answer_ms; /* from the connection to the end of the answer; 0: as connect.timeout_ms */
    const char *method; /* any but CONNECT; NULL: "GET" */
    const char *path;   /* with its query; begins with '/', or is "*"; NULL: "/" */
    const char *host;   /* Host as it is sent, and, where connect.tls has no name, TLS's: then without a port. NULL: the
                           backend's name or else its address, with the port unless that is 80 (443 with TLS);
                           "localhost" for a Unix path */
    const char *headers;   /* more header lines, each ending in CR LF. Not Host, Connection, Transfer-Encoding; no
                              body is sent, so a Content-Length is 0; a User-Agent replaces the library's. NULL:
                              none */
    const char *statuses;  /* what is accepted: "200-299,301", from 200 to 999; NULL: "200" */
    const char *contains;  /* the body must contain these bytes, at most 65535; NULL: any body */
    uint32_t body_limit;   /* bytes of body that are looked at. A longer body is no failure: it is judged by
                              these, and the connection closed. 0: 65536 */
    bool reuse_connection; /* keep the connection for the next probe, where the answer allows it. One that was
                              closed meanwhile is made anew, which is no failure */
    plb_http_validate_fn validate; /* instead of `statuses`; asked for final answers, from status 200 on */
    void *validate_user;
    plb_http_target_fn target; /* NULL: all backends alike */
    void *target_user;
} plb_http_check_desc;

/* Needs plb_port.io and plb_port.clock. NULL: all defaults. plb_create returns PLB_ERR_ARGUMENT for a descriptor that
   makes no sense: what is no token, line, path or list of statuses, a text in a HEAD's body or past body_limit. Any
   thread. */
PLB_API plb_check plb_http_check(const plb_http_check_desc *desc);

#ifndef PLB_NO_HTTP2
/* The same over HTTP/2: with TLS where the server agrees to "h2" by ALPN (asked for unless connect.tls has another
   list), without TLS by prior knowledge. `validate`, which must be set by now, sees the first 64 headers, names in
   small letters, each cut at 256 bytes, and without those that do not fit 4096 bytes together. PLB_ERR_ARGUMENT also
   for headers that HTTP/2 does not know (RFC 9113 section 8.2.2), more than 32 of them, or more than fit
   PLB_HTTP2_MEMORY.
   Any thread. */
PLB_API plb_check plb_http2_check(const plb_http_check_desc *desc);
#endif

#endif

/* ==== SEND AND EXPECT ================================================================================================
   Checks in steps: each sends some bytes, or none, and looks at the answer. What makes the answer wrong ends the probe
   as soon as it is seen, with PLB_ERR_ANSWER, the number of the step (from 1) as the report's code, and a text such as
   `step 2: expected "+PONG", got "-NOAUTH Authentication required.\r\n"`. */

#ifndef PLB_NO_EXPECT
typedef enum plb_expect_kind {
    PLB_EXPECT_PREFIX = 0, /* the answer begins with these bytes */
    PLB_EXPECT_SUBSTRING,  /* they are somewhere in it */
    PLB_EXPECT_EXACT       /* they are all of it: when the last of them has come, nothing has come behind it */
} plb_expect_kind;

/* Judges an answer, of which `size` bytes have come so far (1 or more, at most receive_limit). PLB_OK: the first *used
   of them are the answer. PLB_AGAIN: more are needed; the same bytes come again, with more. Any other status is the
   probe's, and what was written to `why` (PLB_REPORT_TEXT bytes, an empty text) takes the place of what was got. */
typedef plb_status (*plb_expect_fn)(const char *bytes, size_t size, size_t *used, char *why);

/* A size of 0 means that the text ends at its NUL. */
typedef struct plb_expect_step {
    const void *send; /* NULL: nothing */
    size_t send_size;
    plb_expect_kind kind;
    const void *expect; /* what is to come. NULL, in a last step that is not the first: nothing; what is sent is a
                           farewell, offered once before the connection is closed */
    size_t expect_size;
    const void *until; /* the answer goes on to the end of these bytes, the end of a line for one; what follows is the
                          next step's. NULL: it ends with what was expected */
    size_t until_size;
    plb_expect_fn judge; /* instead of kind, expect and until */
} plb_expect_step;

typedef struct plb_expect_check_desc {
    plb_connect_desc connect;
    uint32_t answer_ms;           /* for all steps together, from the connection on; 0: as connect.timeout_ms */
    const plb_expect_step *steps; /* with all that they point to: copied by plb_create */
    size_t step_count;            /* 1 or more */
    uint32_t receive_limit;       /* bytes of each answer that are looked at, below PLB_EXCHANGE_SIZE; 0: 4096 */
} plb_expect_check_desc;

/* Needs plb_port.io and plb_port.clock. plb_create reports PLB_ERR_ARGUMENT where a step expects nothing, more than
   receive_limit, or two things (`judge` with another, `until` after PLB_EXPECT_EXACT). A step that is to send while the
   last one's bytes are not all sent, for its answer came first, ends the probe with PLB_ERR_PROTOCOL. Any thread. */
PLB_API plb_check plb_expect_check(const plb_expect_check_desc *desc);

/* Ready-made ones. NULL: all defaults. Any thread.
   Redis: PING, +PONG. As in HAProxy's redis-check a server that asks for a password (-NOAUTH), loads its data
   (-LOADING) or has lost its master (-MASTERDOWN) fails, and the text says which. To log in, have a first step that
   sends AUTH and expects +OK. */
PLB_API plb_check plb_redis_check(const plb_connect_desc *connect);

/* SMTP (RFC 5321): a greeting, EHLO localhost, QUIT, each of which has to be answered with a code of 200 to 299. */
PLB_API plb_check plb_smtp_check(const plb_connect_desc *connect);

/* MySQL and MariaDB: the server's first packet is a handshake of protocol version 10. Of an error packet (too many
   connections, host is blocked) the text tells number and message. As nobody logs in, a server that counts
   interrupted connections (max_connect_errors) blocks this host in the end, unless others on it log in meanwhile. */
PLB_API plb_check plb_mysql_check(const plb_connect_desc *connect);

/* PostgreSQL: an SSLRequest, answered with `S` or `N`; needs no role and leaves no session behind. A server that has
   TLS switched on (`S`) logs a line that no handshake followed; one without it logs nothing. */
PLB_API plb_check plb_postgres_check(const plb_connect_desc *connect);

/* memcached's text protocol: version, VERSION. */
PLB_API plb_check plb_memcached_check(const plb_connect_desc *connect);
#endif

/* ==== AGENT CHECK ====================================================================================================
   A program beside the backend says how it is: HAProxy's agent-check. It is connected to, may be sent a text, and
   answers with one line, which ends with a CR, an LF or the stream. Its words stand between spaces, tabs or commas, in
   any order and letter case; of two that speak of the same thing the last one counts:
       75%                            the share of its weight that the backend wants; above 100 is 100; 0%: no new
                                      requests
       ready, drain, maint            it wants new requests; it wants none (both)
       up, down, fail(ed), stopped    the check passes; it fails (all three)
       maxconn:30                     known, without effect: plb_backend.max_conns is the program's
       #text                          why; the rest of the line, for people
   Other words are passed over. What a line does not speak of stays as it was, so only the agent takes back what the
   agent said. No set is rebuilt. Several agents combine: the least share holds, and one that wants no requests is
   enough.
   An agent that is not there, does not answer in time or says nothing that is known is no failure (the backend's other
   checks find out about the backend): the result is written down, but is neutral (plb_report). So is an answer that
   speaks neither of up nor of down. */

#ifndef PLB_NO_AGENT
typedef enum plb_agent_verdict { PLB_AGENT_SILENT = 0, PLB_AGENT_UP, PLB_AGENT_DOWN } plb_agent_verdict;

typedef struct plb_agent_answer {
    plb_agent_verdict verdict;
    plb_enablement enablement; /* PLB_ENABLEMENT_KEEP: the line does not say */
    bool has_share;
    uint8_t share; /* in 255ths; above 0 unless the line says 0% */
} plb_agent_answer;

/* Reads a line, up to the first CR or LF if there is one. PLB_ERR_ANSWER: no word of it is known. Any thread. */
PLB_API plb_status plb_agent_parse(plb_agent_answer *out, const char *line, size_t size);

typedef struct plb_agent_check_desc {
    plb_connect_desc connect; /* its port is the agent's; 0: the backend's own */
    uint32_t answer_ms;       /* from the connection to the line's end; 0: as connect.timeout_ms */
    const char *send;         /* sent first, as it is; copied by plb_create; NULL: nothing (HAProxy's agent-send) */
    bool must_answer;         /* an agent that is not there, or says nothing that is known, is a failure; any answer but
                                 down, fail and stopped is then a success */
} plb_agent_check_desc;

/* Needs plb_port.io and plb_port.clock. NULL: all defaults. Any thread. */
PLB_API plb_check plb_agent_check(const plb_agent_check_desc *desc);
#endif

/* ==== GRPC CHECK =====================================================================================================
   The health service that gRPC servers have (grpc.health.v1.Health/Check), over HTTP/2: with TLS by ALPN, without by
   prior knowledge. SERVING is the success. Else the report says which: PLB_ERR_ANSWER with the text "NOT_SERVING",
   "SERVICE_UNKNOWN", "UNKNOWN" and the number of that status as its code, or "gRPC status UNIMPLEMENTED" and the like
   with that one's. Source: "GRPC Health Checking Protocol" of the gRPC project. */

#ifndef PLB_NO_GRPC
/* Zero members: the default. Read in plb_create, and copied. */
typedef struct plb_grpc_check_desc {
    plb_connect_desc connect;
    uint32_t answer_ms;    /* from the connection to the end of the answer; 0: as connect.timeout_ms */
    const char *service;   /* at most 256 bytes; NULL: the server as a whole */
    const char *host;      /* :authority, as plb_http_check_desc's host */
    bool reuse_connection; /* as plb_http_check_desc's */
} plb_grpc_check_desc;

/* Needs plb_port.io and plb_port.clock. NULL: all defaults. Any thread. */
PLB_API plb_check plb_grpc_check(const plb_grpc_check_desc *desc);
#endif

/* ==== STRATEGY =======================================================================================================
   How a backend is chosen from a set. A strategy sees a view: backends 0 to count - 1 in pingora's order (address,
   then weight), which do not change, and their readiness, which does. */

#define PLB_NONE UINT32_MAX /* as an index: no backend */

/* How a request went, as plb_end is told. */
typedef enum plb_outcome {
    PLB_OUTCOME_SUCCESS = 0,
    PLB_OUTCOME_CONNECT_ERROR, /* no connection could be had */
    PLB_OUTCOME_BROKEN,        /* it broke, or timed out, before the answer was complete */
    PLB_OUTCOME_SERVER_ERROR,  /* it answered that it failed (HTTP 5xx) */
    PLB_OUTCOME_CANCELLED      /* the request was given up for reasons of this side: says nothing about the backend */
} plb_outcome;

typedef struct plb_view plb_view;
PLB_API uint32_t plb_view_count(const plb_view *view);
PLB_API uint32_t plb_view_weight(const plb_view *view, uint32_t index);
PLB_API uint32_t plb_view_weight_sum(const plb_view *view);
PLB_API void plb_view_addr(const plb_view *view, uint32_t index, plb_addr *out);
PLB_API bool plb_view_ready(const plb_view *view, uint32_t index); /* healthy, enabled, weight above 0, ... */
PLB_API uint32_t plb_view_ready_count(const plb_view *view);
PLB_API uint32_t plb_view_ready_nth(const plb_view *view, uint32_t nth);   /* in set order, from 0; or PLB_NONE */
PLB_API uint32_t plb_view_in_flight(const plb_view *view, uint32_t index); /* plb_begin without plb_end yet */
PLB_API uint32_t plb_view_slot(const plb_view *view, uint32_t index);      /* a small number, the same in every set */
PLB_API void *plb_view_state(const plb_view *view);                        /* the strategy's */
PLB_API void *plb_view_data(const plb_view *view, uint32_t index);         /* the strategy's slot_size bytes, or NULL */
PLB_API uint32_t plb_view_ready_weight(const plb_view *view);              /* of the ready backends together */

/* What belongs to the calling thread for the time of a pick, so that it may be used without atomic operations. */
typedef struct plb_reader {
    uintptr_t set; /* private, like the rest */
    uint64_t random;
    uintptr_t turn;
    bool own_turn;
} plb_reader;
PLB_API uint64_t plb_reader_random(plb_reader *reader); /* 64 random bits (SplitMix64), not for secrets */

/* The next number of a count that goes up by one each time: the reader's own if it is a handle, else that at `shared`,
   one for all threads. */
PLB_API uintptr_t plb_reader_turn(plb_reader *reader, uintptr_t *shared);

#ifndef PLB_NO_DRAW
/* A ready backend at random, each as likely as its weight says; PLB_NONE if there is none. O(1), whatever the share of
   those that are ready; but O(n) now and then where the heaviest weighs many times the average. */
PLB_API uint32_t plb_view_draw(const plb_view *view, plb_reader *reader);
#endif

/* The first ready backend at or after an index, wrapping; PLB_NONE if there is none. */
PLB_API uint32_t plb_view_ready_after(const plb_view *view, uint32_t index);

/* One call's hold on a set. */
typedef struct plb_hold {
    plb_reader *reader; /* private */
    plb_reader own;     /* private */
} plb_hold;

/* Where a raw iteration stands; a strategy lays it out as it likes. */
typedef struct plb_cursor {
    uint64_t words[8];
} plb_cursor;

typedef struct plb_strategy_ops {
    const char *name;
    size_t state_size; /* outlives every set: counters, seeds. Shared by all threads that pick */
    size_t slot_size;  /* zeroed bytes, aligned to 8, that each slot has for the strategy (plb_view_data); they outlive
                          sets as slots do. Shared by all threads: atomic operations only */
    bool keyed;        /* one key means one backend, as long as nothing changes */
    plb_status (*open)(void *state, const void *desc, const plb_env *env); /* may be NULL; an error fails plb_create */
    void (*close)(void *state);                                            /* may be NULL; also after a failed open */
    /* Builds the table for one view, in *table, from plb_poll; an error keeps the old set. May be NULL: no table.
       Called for views with at least one backend. old_view and old_table are what is published at the time, for a
       strategy that would rather amend than build, or NULL; both are read by other threads. */
    plb_status (*build)(void *state, const plb_view *view, const plb_view *old_view, const void *old_table,
                        void **table);
    void (*discard)(void *state, void *table); /* NULL when build is */
    /* The raw sequence for a key: the first backend, and each next one. It may repeat, it never ends. Any thread. These
       three find the state by plb_view_state: six arguments fit into registers, seven do not. */
    uint32_t (*first)(const void *table, const plb_view *view, plb_reader *reader, const void *key, size_t key_length,
                      plb_cursor *cursor);
    uint32_t (*next)(const void *table, const plb_view *view, plb_reader *reader, plb_cursor *cursor);
    /* The fast path of a plain select: the first ready backend among the first `limit` of the raw sequence, or
       PLB_NONE. limit 0: a ready one if there is one. Same effects on `state` as walking. Any thread, no lock, no
       allocation. NULL: the balancer walks with first and next. */
    uint32_t (*pick)(const void *table, const plb_view *view, plb_reader *reader, const void *key, size_t key_length,
                     uint32_t limit);
    /* A backend of the view became ready, or ceased to be, after build (which sees how it is). May be NULL. Any thread;
       two flips of one backend in a row may be told in either order. */
    void (*flipped)(void *state, void *table, const plb_view *view, uint32_t index, bool ready);
    /* A request was given to the backend of that slot, and is over; for strategies that learn. `data`: the slot's
       slot_size bytes, or NULL. May be NULL. Any thread; ended is not called after plb_destroy. */
    void (*began)(void *state, uint32_t slot, void *data);
    void (*ended)(void *state, uint32_t slot, void *data, plb_outcome outcome, uint64_t latency_us);
    /* Called from plb_poll for each view every tick_ms milliseconds, where there is a clock. May be NULL. */
    void (*tick)(void *state, void *table, const plb_view *view);
    uint32_t tick_ms;
} plb_strategy_ops;

typedef struct plb_strategy {
    const plb_strategy_ops *ops; /* NULL: plb_round_robin() */
    const void *desc;
} plb_strategy;

/* Each honours weights; each gives pingora-load-balancing 0.8's answers, `max_iterations` included.
   round robin   a counter walks a list in which each backend stands `weight` times; shared by all threads; 8 bytes a
                 backend. Past an unready backend it goes through the unweighted set.
   random        the same with a random number. Seeded from plb_port.random where there is one.
   FNV           the same with the FNV-1a 64 hash of the key: one key, one backend, until the set changes.
   Ketama        consistent hashing: weight * 160 points a backend on a ring of CRC-32s (nginx's `hash ... consistent`
                 bit for bit for IPv4). When a backend leaves, only its keys move. 6.6 bytes a point. An update that
                 changes little amends the ring, so its cost is that of a copy. */
PLB_API plb_strategy plb_round_robin(void);
#ifndef PLB_NO_RANDOM
PLB_API plb_strategy plb_random_choice(void);
#endif
#ifndef PLB_NO_FNV
PLB_API plb_strategy plb_fnv(void);
#endif

#ifndef PLB_NO_KETAMA
typedef struct plb_ketama_desc {
    uint32_t max_points;     /* of the whole ring; more is refused with PLB_ERR_POINTS. 0: 16777216 */
    uint32_t point_multiple; /* points for each unit of weight; 0: 160, as pingora and nginx have it */
} plb_ketama_desc;
PLB_API plb_strategy plb_ketama(const plb_ketama_desc *desc);
#endif

#ifndef PLB_NO_SMOOTH
/* nginx's smooth weighted round robin, pick for pick: weights 5, 1, 1 give a a b a c a a, where round robin gives
   a a a a a b c. For few backends with unequal weights, when a run of requests to one of them hurts.
   A pick takes the time of the distinct weights, some 2 ns for each, and so does a flip; where there are more than a
   hundred, prefer round robin. 4.1 bytes a backend and 20 for each distinct weight. From one thread each pick is
   nginx's, as long as readiness stays as it is; threads that pick at the same moment may take the same backend, which
   the next picks make up for. A flip keeps who is ahead and who behind, within one turn; a backend that comes back does
   not catch up on what it missed. Another set starts anew. A retry gets the next choice, another backend each time.
   Weights that add up to more than 2^26 are halved together until they do not. */
PLB_API plb_strategy plb_smooth_round_robin(void);
#endif

#ifndef PLB_NO_LEAST
/* The ready backend with the fewest requests in flight for its weight (nginx's least_conn); ties go round by weight, so
   that it is a weighted round robin while nothing is in flight. For requests that take unequal time. Only picks that
   are held count: plb_begin until plb_end.
   Exact for up to 64 ready backends; of more, the best of the 64 that follow the turn, which moves on with each pick.
   A pick takes some 1 ns for each that it compares; one with nothing in flight ends it at once. 8 bytes a backend, none
   where each weighs 1. A retry gets the next best. */
PLB_API plb_strategy plb_least_connections(void);
#endif

#ifndef PLB_NO_BOUNDED
/* Bounded loads: Ketama, but no backend takes a request that would put it above its share of those in flight times
   `factor_percent`: ceil(factor * (in flight + 1) * weight / weight of the ready ones). For caches and sessions where
   one hot key, or a few, would drown their backend: what it may not take goes to the next on the ring, and comes back
   as soon as there is room. The smaller the factor, the more even the load and the more keys away from home. Only
   plb_begin and plb_end are counted: with plb_select alone it is Ketama. A pick costs 4 ns more than Ketama's, and
   some 10 ns for each point of a full backend that it passes; past 64 of those it takes one that has room at random,
   for such a key is on dozens of backends already. plb_begin and plb_end cost an atomic addition each to a count that
   all threads share. Memory as Ketama. Raw walks pass over full backends too, up to 64 times: exclusion and accept
   would rather go above the bound than fail. So may threads that pick at the same moment, by a request each. Source:
   Mirrokni, Thorup, Zadimoghaddam 2016, "Consistent Hashing with Bounded Loads"; hash-balance-factor of HAProxy. A
   factor out of range fails plb_create with PLB_ERR_ARGUMENT. */
typedef struct plb_bounded_loads_desc {
    plb_ketama_desc ring;
    uint32_t factor_percent; /* 101 to 65535; 0: 125 */
} plb_bounded_loads_desc;
PLB_API plb_strategy plb_bounded_loads(const plb_bounded_loads_desc *desc);
#endif

#ifndef PLB_NO_IP_HASH
/* IP hash: nginx's ip_hash, for a set that nginx lists in the same order (address, then port). The key is the client's
   address, its bytes alone: 4 of IPv4, of which the first three count, so that a /24 stays together; or 16 of IPv6, all
   of which count. For a client whose address is a plb_addr:
       plb_request request = {.key = client.u.v4, .key_length = 4};
   Of any other key all bytes count. An unready backend makes it hash again, as nginx, up to 21 times; then the set is
   gone through in order from there. For clients without any other mark, and for moving from nginx with sessions in
   place; when the set changes, most clients change their backend. The hash is below 6271, so what stands past that in
   the sum of weights gets only what is turned away elsewhere: there, and for evenness, FNV or Ketama serve better. 8
   bytes a backend, none where each weighs 1. */
PLB_API plb_strategy plb_ip_hash(void);
#endif

#ifndef PLB_NO_CHOICES
/* For requests that differ in what they cost, and backends that differ in how fast they are. Both look at two ready
   backends, drawn at random by weight, and take the better one (Mitzenmacher 2001): no backend gets far ahead of the
   others, several balancers do not run to the same one, and the cost is that of two draws, however many there are. 8
   bytes a backend, none where all weigh the same; keys and max_iterations are not looked at. What they go by are
   requests between plb_begin and plb_end; without those they choose at random by weight.
   two choices   fewer requests in flight for its weight wins (Envoy's least request). The one to take for requests
                 that last.
   peak EWMA     the lower estimate of the time to an answer wins (Finagle): latency, times the requests in flight for
                 its weight and one more. For backends that are fast and slow at different times. The estimate is at
                 once as high as any slower answer, and falls with the time constant decay_ms to what is usual, or,
                 where nothing is asked, towards nothing, so that a slow backend is tried again. A failure doubles it
                 (1 second where nothing is known); PLB_OUTCOME_CANCELLED says nothing. A new backend gets one request
                 at a time until it has answered one. It falls by the clock of the port, each 100 ms; without one, by
                 1/256 with each choice that is lost. 8 bytes a slot more. */
PLB_API plb_strategy plb_two_choices(void);

#ifndef PLB_NO_EWMA
typedef struct plb_peak_ewma_desc {
    uint32_t decay_ms; /* in which an estimate falls to 1/e; 100 at least. 0: 10000 */
} plb_peak_ewma_desc;
PLB_API plb_strategy plb_peak_ewma(const plb_peak_ewma_desc *desc); /* NULL: all defaults */
#endif
#endif

#ifndef PLB_NO_MAGLEV
/* Maglev hashing (Eisenbud and others, NSDI 2016; weights as in Envoy): a key's hash is a place in a table, and the
   place has its backend. For many keys and many backends: a pick costs the same however many there are, and the shares
   are even, each within a place or two of what its weight says; with any weight, one place at least. When a backend
   leaves, its keys move, and fewer than one in a hundred of the others; an unready one's keys go to the others in
   proportion, and no other moves (without a limit: while a quarter is ready). 2 bytes a place (4 above 65 536
   backends). A build of 65 537 places takes some 2 ms, and for its duration 24 bytes a backend and, where weights
   differ much, up to 4 a place. */
typedef struct plb_maglev_desc {
    /* Places, a prime below 2^24; 100 for each backend make shares exact to a percent. An update with more backends of
       weight above 0 than places is refused with PLB_ERR_POINTS. 0: 65537 */
    uint32_t table_size;
} plb_maglev_desc;

/* PLB_ERR_ARGUMENT from plb_create: table_size is not a prime, or 2^24 or more. NULL: the default. */
PLB_API plb_strategy plb_maglev(const plb_maglev_desc *desc);
#endif

#ifndef PLB_NO_RENDEZVOUS
/* Rendezvous hashing (Thaler and Ravishankar 1998): a key draws a lot for each backend, and the best one wins. For
   small sets, as a pick takes 50 ns and 2 more for each backend: but when one leaves, or another comes, or a weight
   changes, not a single key moves that need not, and the second choices of one backend's keys are spread as evenly as
   the first. Weights are exact. 8 bytes a backend. */
PLB_API plb_strategy plb_rendezvous(void);
#endif

/* ==== OUTLIER DETECTION ==============================================================================================
   Passive health, by the rules of Envoy's outlier detection: what plb_end is told decides whether a backend is taken
   out for a while. PLB_OUTCOME_CANCELLED counts for nothing; every other outcome is a request. */

#ifndef PLB_NO_OUTLIER
/* Zero members: the default, which is Envoy's. */
typedef struct plb_outlier_desc {
    bool on;                     /* needs port.clock */
    bool ignore_success_rate;    /* only failures in a row eject */
    bool ignore_probes;          /* ejections end by time only. Else a success of any check ends one too, if the
                              probe began after the ejection and no check fails */
    uint32_t consecutive_errors; /* failures of any kind in a row that eject; 0: 5; PLB_UNLIMITED: never */
    uint32_t
        consecutive_connect_errors; /* PLB_OUTCOME_CONNECT_ERRORs in a row that eject; 0: 5; PLB_UNLIMITED: never */
    uint32_t interval_ms;           /* between two looks at the success rates; 0: 10000 */
    uint32_t base_ejection_ms;      /* how long the first ejection lasts; 0: 30000. The next ones last 2, 3, ...
                                          times as long; one less for each interval that ends while the backend is not
                                          ejected */
    uint32_t max_ejection_ms;       /* the longest; 0: 300000. At least base_ejection_ms */
    uint32_t max_ejection_percent;  /* of the backends of the set, at most, are ejected; 0: 10; up to 100. One may be
                                  ejected however few there are, unless it is the only one and this is below 100 */
    uint32_t success_rate_backends; /* so many must have requests enough, or no rate is judged; 0: 5 */
    uint32_t success_rate_requests; /* in one interval that are enough; 0: 100 */
    uint32_t success_rate_stdev_factor; /* thousandths: a rate below the mean of the rates by more than so many standard
                                       deviations ejects; 0: 1900 */
} plb_outlier_desc;

/* Why a backend was ejected, or came back. */
typedef enum plb_ejection {
    PLB_EJECTION_NONE = 0,
    PLB_EJECTION_ERRORS,         /* ejected: consecutive_errors */
    PLB_EJECTION_CONNECT_ERRORS, /* ejected: consecutive_connect_errors */
    PLB_EJECTION_SUCCESS_RATE,   /* ejected: its success rate, compared with the others' */
    PLB_EJECTION_TIME_OVER,      /* back: the ejection lasted as long as it should */
    PLB_EJECTION_PROBE_PASSED    /* back: a probe found it in good health */
} plb_ejection;

#define PLB_SUCCESS_RATE_ONE 65536u /* every request succeeded */

/* What is known of one backend's requests since it came into the set. */
typedef struct plb_outlier_info {
    uint64_t requests, failures; /* that ended; failures are among the requests */
    uint32_t ejections;          /* how often it was ejected */
    uint32_t success_rate;       /* in the last interval, of PLB_SUCCESS_RATE_ONE; PLB_NONE: too few requests */
    uint32_t errors_in_a_row;    /* at the moment */
    uint32_t connect_errors_in_a_row;
    bool ejected;
    uint32_t back_ms; /* if it is: from now until its time is over */
} plb_outlier_info;

/* What is known of one backend of the current set. PLB_ERR_ADDRESS: not in the set; PLB_ERR_UNSUPPORTED: detection is
   off. From the polling thread. */
PLB_API plb_status plb_find_outlier(plb_balancer *lb, const plb_addr *addr, uint32_t id, plb_outlier_info *out);
#endif

/* ==== BALANCER =======================================================================================================
   The whole: made, polled, observed, ended. */

typedef enum plb_log_level { PLB_LOG_NONE = 0, PLB_LOG_ERROR, PLB_LOG_WARN, PLB_LOG_INFO, PLB_LOG_DEBUG } plb_log_level;

/* A backend of the current set and how it is. Pointers live as long as the callback that it was handed to. */
typedef struct plb_backend_info {
    plb_backend backend;
    uint32_t slot;      /* as plb_pick.slot */
    uint32_t in_flight; /* plb_begin without plb_end yet */
#ifndef PLB_NO_SHARES
    uint8_t share; /* of its weight, in 255ths; below 255 while it starts slowly, or as its agent advises */
#endif
    bool ready; /* may be picked: all of the following, and below max_conns, and weight above 0; when its tier
                           panics, an unhealthy one too */
    bool healthy;
    bool enabled;
#ifndef PLB_NO_OUTLIER
    bool ejected; /* taken out for what requests met with (section OUTLIER DETECTION) */
#endif
#ifndef PLB_NO_SHARES
    bool advised_off; /* its agent wants no new requests */
#endif
#ifndef PLB_NO_CHECK_LIST
    uint32_t failing; /* checks that fail, a bit each, as plb_backend.checks */
#endif
#ifndef PLB_NO_PROBE_INFO
    uint32_t flips; /* how often it became healthy or unhealthy */
#endif
} plb_backend_info;

#ifndef PLB_NO_PROBE_INFO
/* The probes of one check of one backend. */
typedef struct plb_probe_info {
    plb_status status;       /* of the last one; PLB_AGAIN: none is over yet */
    uint32_t code;           /* of the last one: plb_report.code */
    uint32_t latency_us;     /* of the last one, from its start */
    uint32_t passed, failed; /* how many; neutral ones (plb_report) and failures of this side are neither */
    bool passing;            /* the check's state */
#ifndef PLB_NO_LOG
    const char *text; /* in on_probe: what the probe said, or what its status means. Else what the status means */
#endif
} plb_probe_info;
#endif

#ifndef PLB_NO_UPDATES
typedef struct plb_update_info {
    plb_status status;     /* of the last update; PLB_AGAIN before the first */
    uint64_t discovery_us; /* from start to its answer */
    uint64_t build_us;     /* comparing, building, publishing */
    uint64_t updates;      /* answers applied, those that changed nothing too */
    uint64_t changes;      /* sets published */
    uint64_t failures;     /* discoveries that failed, and answers that were refused */
    uint32_t backends;     /* in the current set */
} plb_update_info;
#endif

#define PLB_UNLIMITED UINT32_MAX

/* Everything about a balancer. Zero members: the default. Callbacks come from plb_poll (and plb_create) and may call
   anything but plb_poll and plb_destroy of the same balancer. */
typedef struct plb_balancer_desc {
    plb_port port;
    plb_allocator allocator;
#ifndef PLB_NO_METRICS
    const char *name; /* of this balancer, in plb_metrics; copied. NULL: none */
#endif
    plb_strategy strategy;
    plb_discovery discovery;
    plb_check check; /* of every backend; its ops are NULL: none */
#ifndef PLB_NO_CHECK_LIST
    const plb_check *checks; /* more of them; all must pass. With `check`, which is the first, PLB_CHECKS_MAX at most */
    size_t check_count;
#endif
#ifndef PLB_NO_UPDATES
    uint32_t update_every_ms; /* from one discovery's start to the next; 0: one discovery, at the start */
#endif
    uint32_t check_every_ms;  /* for checks that do not say; 0: one probe, at the start */
    uint32_t parallel_checks; /* probes in flight at most; 1: one after another, as pingora's default; 0: 64;
                                 PLB_UNLIMITED */
    bool start_unhealthy;     /* backends are unhealthy until checks say otherwise; needs a check */
#ifndef PLB_NO_SHARES
    uint32_t slow_start_ms; /* a backend that becomes healthy gets its share bit by bit over this time, so that cold
                                 caches can fill; needs port.clock; 0: at once */
#endif
#ifndef PLB_NO_TIERS
    uint32_t panic_percent; /* a tier in which less than this share of the enabled backends is healthy ignores health:
                                 failing some requests beats drowning the last ones. 0: never; up to 100 */
#endif
#ifndef PLB_NO_OUTLIER
    plb_outlier_desc outlier; /* passive health */
#endif

    void *user; /* handed to the callbacks below */
#ifndef PLB_NO_UPDATES
    void (*on_change)(void *user, plb_balancer *lb);                          /* another set was published */
    void (*on_update)(void *user, const plb_update_info *info);               /* a discovery is over, failed or not */
    void (*on_first_update)(void *user, plb_balancer *lb, plb_status status); /* the first discovery is over */
#endif
    void (*on_flip)(void *user, const plb_backend_info *info, plb_status status); /* health flipped; status: the
                                                                            probe's result that did it */
#ifndef PLB_NO_PROBE_INFO
    void (*on_probe)(void *user, const plb_backend_info *info, uint32_t check, const plb_probe_info *probe); /* a probe
                                is over; check: 0 to PLB_CHECKS_MAX - 1. Before on_flip */
#endif
#ifndef PLB_NO_OUTLIER
    void (*on_eject)(void *user, const plb_backend_info *info, plb_ejection why); /* was ejected, or came back */
#endif
    void (*on_first_checks)(void *user, plb_balancer *lb); /* each check of each backend has a result */
#ifndef PLB_NO_LOG
    size_t (*summary)(void *user, const plb_backend *backend, char *text, size_t capacity); /* names a backend in
                                                log lines, as snprintf would; default: its address */
    void (*log)(void *user, plb_log_level level, const char *line);                         /* no newline at the end */
    plb_log_level log_level; /* the most talkative level that is logged; 0: PLB_LOG_INFO */
#endif
} plb_balancer_desc;

/* Makes a balancer and starts its first discovery; one that answers at once (a static list of addresses) can be
   selected from when plb_create returns. PLB_ERR_ARGUMENT, PLB_ERR_ADDRESS, PLB_ERR_WEIGHT, PLB_ERR_MEMORY,
   PLB_ERR_UNSUPPORTED (something needs a part of the port that is not there): *out is NULL, nothing is left behind, and
   every ext stays the caller's. How the first update went (PLB_ERR_POINTS, say), on_first_update and plb_last_update
   tell. One thread. */
PLB_API plb_status plb_create(const plb_balancer_desc *desc, plb_balancer **out);

/* Ends it: cancels what is in flight and releases everything, except what outstanding picks hold, which goes with
   their plb_end. No other thread may be inside a call on this balancer, and no walk be open; plb_end may be called
   afterwards. NULL is fine. */
PLB_API void plb_destroy(plb_balancer *lb);

/* Does what is due and returns after how many milliseconds it wants to be called again (PLB_FOREVER: when a callback
   or a wake says so). One thread at a time, the one that steps the port. */
PLB_API uint32_t plb_poll(plb_balancer *lb);

/* The same as a task, for a loop to hold; its memory is the balancer's. */
PLB_API plb_task *plb_balancer_task(plb_balancer *lb);

/* Start a discovery, or all checks of all backends, as soon as poll runs; what is running is followed by another. Any
   thread. */
#ifndef PLB_NO_UPDATES
PLB_API void plb_update_now(plb_balancer *lb);
#endif
#ifndef PLB_NO_CHECK_LIST
PLB_API void plb_check_now(plb_balancer *lb);
#endif

#ifndef PLB_NO_UPDATES
/* How the last update went. From the polling thread. */
PLB_API void plb_last_update(const plb_balancer *lb, plb_update_info *out);
#endif

/* Switches a backend of the current set on or off, whatever its health. Off: no pick that begins after this returned
   takes it, nor is it ready in any set that is published later; what was picked before runs on (in_flight). When it
   leaves the set and comes back, it is on. PLB_ERR_ADDRESS: not in the set. Any thread. */
PLB_API plb_status plb_set_enabled(plb_balancer *lb, const plb_addr *addr, uint32_t id, bool enabled);

/* Would a pick take it? false too when it is not in the set. Any thread. */
PLB_API bool plb_ready(plb_balancer *lb, const plb_addr *addr, uint32_t id);

/* What is known of one backend of the current set; of duplicates that differ in weight, the first. PLB_ERR_ADDRESS: not
   in the set. Any thread; but name and ext may go with the next update, so only the polling thread may rely on them. */
PLB_API plb_status plb_find(plb_balancer *lb, const plb_addr *addr, uint32_t id, plb_backend_info *info);

#ifndef PLB_NO_PROBE_INFO
/* What is known of one check of it: `check` as in on_probe. PLB_ERR_ADDRESS: not in the set; PLB_ERR_ARGUMENT: it has
   no such check. From the polling thread. */
PLB_API plb_status plb_find_probe(plb_balancer *lb, const plb_addr *addr, uint32_t id, uint32_t check,
                                  plb_probe_info *out);
#endif

/* Calls fn for each backend of the current set, in set order, until it returns false. Duplicates that differ in weight
   come one by one. Keep it short: the set cannot be reclaimed meanwhile. Any thread. */
PLB_API void plb_each(plb_balancer *lb, bool (*fn)(void *user, const plb_backend_info *info), void *user);

/* ==== PICKING ========================================================================================================
   Any thread, no lock, no allocation, no system call, bounded. */

#ifndef PLB_NO_WALK
/* Asked once per distinct backend, readiness told; true takes it, an unready one too. Only max_conns stands above it:
   plb_begin passes over a backend that is full. */
typedef bool (*plb_accept_fn)(void *user, const plb_backend_info *info);

/* Distinct backends that one pick remembers exactly, of a tier of up to 65 536, half as many of a larger one; past it,
   the walk becomes one sweep in set order over the rest. 2 bytes of stack each. */
#ifndef PLB_SEEN_MAX
#define PLB_SEEN_MAX 128
#endif
#endif

/* What to pick for. Zero members: no key, no limit, any ready backend. */
typedef struct plb_request {
    const void *key; /* for strategies with a key; others ignore it */
    size_t key_length;
    uint32_t max_iterations; /* steps of the raw sequence to look at, as pingora counts them; 0: find a ready backend if
                                there is one. Where the sequence would be long, for few are ready, that may be another
                                than its first ready one, but for a key the same each time */
#ifndef PLB_NO_WALK
    const uint32_t *exclude; /* slots (plb_pick.slot) not to take: what a retry has tried already */
    size_t exclude_count;
    plb_accept_fn accept; /* NULL: the first ready one. Excluded backends are shown to it as not ready */
    void *accept_user;
#endif
} plb_request;

/* Copies the address of the backend to use now (the bytes that its family uses); holds nothing. PLB_ERR_EMPTY,
   PLB_ERR_NOT_READY (also: not found within max_iterations). */
PLB_API plb_status plb_select(plb_balancer *lb, const void *key, size_t key_length, uint32_t max_iterations,
                              plb_addr *out);

/* The same for a full request. */
PLB_API plb_status plb_select_with(plb_balancer *lb, const plb_request *request, plb_addr *out);

/* A backend taken for one request; the caller's memory. Its members stay valid until plb_end. */
typedef struct plb_pick {
    plb_addr addr; /* bytes past what the family uses are not set */
#ifndef PLB_NO_WEIGHTS
    uint32_t weight;
#endif
    uint32_t id;
    uint32_t slot; /* its small number: for plb_request.exclude */
#ifndef PLB_NO_NAMES
    const char *name; /* or NULL */
#endif
    void *ext;
    plb_balancer *balancer; /* private */
    void *held;             /* private; NULL when the pick holds nothing */
} plb_pick;

/* Picks and holds: the backend counts one more request in flight until plb_end. request may be NULL. Statuses as
   plb_select; on any but PLB_OK the pick holds nothing. A pick may outlive its set and the balancer. */
PLB_API plb_status plb_begin(plb_balancer *lb, const plb_request *request, plb_pick *pick);

/* Lets go, and says how it went and how long it took. Once per plb_begin; of a pick that holds nothing: no effect. Any
   thread. */
PLB_API void plb_end(plb_pick *pick, plb_outcome outcome, uint64_t latency_us);

#ifndef PLB_NO_HANDLES
/* One thread's own way in, for those who count nanoseconds: it has its own round-robin turn and random numbers, and
   writes no cache line that another thread writes. The balancer's memory, a few cache lines; open allocates, or reuses
   one that was closed: PLB_OK or PLB_ERR_MEMORY. One thread at a time uses a handle; any thread may open and close.
   plb_destroy ends all of them. It pays most where the port has a barrier (plb_barrier). */
typedef struct plb_handle plb_handle;
PLB_API plb_status plb_handle_open(plb_balancer *lb, plb_handle **out);
PLB_API void plb_handle_close(plb_handle *handle);

/* As plb_select, plb_select_with and plb_begin; the pick is ended by plb_end, from any thread. */
PLB_API plb_status plb_handle_select(plb_handle *handle, const void *key, size_t key_length, uint32_t max_iterations,
                                     plb_addr *out);
PLB_API plb_status plb_handle_select_with(plb_handle *handle, const plb_request *request, plb_addr *out);
PLB_API plb_status plb_handle_begin(plb_handle *handle, const plb_request *request, plb_pick *pick);
#endif

#ifndef PLB_NO_WALK
/* Raw iteration: the strategy's sequence for a key through the tier that is in use, unready and repeated backends
   included. The caller's memory; between begin and end the set cannot be reclaimed, so keep it short. begin: PLB_OK or
   PLB_ERR_EMPTY, after which end need not be called. next: *info is valid until the next call. */
typedef struct plb_walk {
    plb_balancer *balancer; /* private, like the rest */
    const void *tier;
    plb_hold hold;
    bool started;
    const void *key;
    size_t key_length;
    plb_cursor cursor;
} plb_walk;
PLB_API plb_status plb_walk_begin(plb_walk *walk, plb_balancer *lb, const void *key, size_t key_length);
PLB_API void plb_walk_next(plb_walk *walk, plb_backend_info *info);
PLB_API void plb_walk_end(plb_walk *walk);
#endif

/* ==== METRICS ========================================================================================================
   What is known of balancers, backends and checks, in the text format that Prometheus reads: version 0.0.4, to be
   served as "text/plain; version=0.0.4; charset=utf-8". Names begin with plb_; counters end in _total, times are in
   seconds, shares are ratios. Labels: balancer (plb_balancer_desc.name, where there is one), address, id (unless 0),
   name (where there is one); priority for weight and readiness, of which an address may have several; check (its
   number) and kind (plb_check_ops.name). Bytes that may not stand in a label's value are written as \xNN. The HELP
   lines say what each metric is. */

#ifndef PLB_NO_METRICS
/* Writes the metrics of `lb` as snprintf would: returns the length of the whole text, writes what fits, and a NUL when
   capacity is above 0. A text that is cut ends with a whole line. With one check, 1 KiB and 5 us a backend.
   Allocates nothing. From the polling thread. */
PLB_API size_t plb_metrics(plb_balancer *lb, char *text, size_t capacity);

/* The same for several balancers in one text, in which the format wants the samples of a metric to stand together.
   They are told apart by their names, which must differ. From the thread that polls all of them. */
PLB_API size_t plb_metrics_of(plb_balancer *const *balancers, size_t count, char *text, size_t capacity);
#endif

/* ==== HTTP/1 =========================================================================================================
   The wire format of HTTP/1.0 and HTTP/1.1 (RFC 9112): bytes in, slices of those bytes out. Nothing is copied, kept or
   allocated, and nothing is read past the size given. Strict where two readers of the same bytes might disagree, for
   that is how requests are smuggled: lines end in CR LF and nothing else, no folded lines, no space before a colon, no
   control bytes, one way to say how long a body is. Any thread. */

/* Bytes that belong to someone else; not NUL-terminated. */
typedef struct plb_text {
    const char *data;
    size_t size;
} plb_text;

/* Is it that ASCII text, letter case aside? `lower` is NUL-terminated and has no capitals. */
PLB_API bool plb_text_is(plb_text text, const char *lower);

#ifndef PLB_NO_HTTP1
typedef struct plb_http1_header {
    plb_text name;  /* a token, letter case as sent */
    plb_text value; /* without the white space around it; may be empty */
} plb_http1_header;

/* The head of a message: start line and headers. The slices live as long as the bytes they were parsed from. */
typedef struct plb_http1_head {
    plb_text method; /* request: a token; letter case counts */
    plb_text target; /* request: 1 byte or more, no space and no control bytes; its form is for the caller to judge */
    plb_text reason; /* response: may be empty */
    uint16_t status; /* response: 100 to 999 */
    uint8_t minor;   /* x of HTTP/1.x: 0 to 9; 2 and above count as 1 (RFC 9110 section 2.5) */
    plb_http1_header *headers; /* the caller's array, in the order of the wire */
    size_t header_capacity;    /* its length */
    size_t header_count;
    size_t size;    /* bytes of the head, the blank line included: the body begins there */
    size_t scanned; /* private: how far earlier calls looked; 0 for a new head */
} plb_http1_head;

/* Parse a head from its first `size` bytes, at `bytes`. The caller sets headers and header_capacity, and the rest to
   zero, and may call again with more bytes, at the same place or another one; each byte is looked at once until the
   head is whole. A request may be preceded by one empty line (RFC 9112 section 2.2), which `size` counts.
   PLB_OK: *head is filled in. PLB_AGAIN: more bytes are needed (when the caller's buffer is full: the head is too
   long). PLB_ERR_PROTOCOL: malformed. PLB_ERR_LIMIT: more than header_capacity headers. PLB_ERR_UNSUPPORTED: another
   major version than 1. */
PLB_API plb_status plb_http1_parse_request(plb_http1_head *head, const char *bytes, size_t size);
PLB_API plb_status plb_http1_parse_response(plb_http1_head *head, const char *bytes, size_t size);

/* The first header of that name (`lower`: as plb_text_is), or NULL. */
PLB_API const plb_http1_header *plb_http1_find(const plb_http1_head *head, const char *lower);

/* Walks a comma-separated list. Start with *at = 0; false: no element is left. Elements come without the white space
   around them; empty ones are skipped (RFC 9110 section 5.6.1). Quoted strings are not understood: for lists of
   tokens (Connection, Transfer-Encoding). */
PLB_API bool plb_http1_list_next(plb_text list, size_t *at, plb_text *element);

/* Does a header of that name, any of them, list that token? Both as plb_text_is. */
PLB_API bool plb_http1_lists(const plb_http1_head *head, const char *lower_name, const char *lower_token);

/* May another message follow on this connection, as far as the head tells (RFC 9112 section 9.3)? */
PLB_API bool plb_http1_keeps_alive(const plb_http1_head *head);

/* Is the method idempotent (RFC 9110 section 9.2.2), so that a request whose fate is unknown may be sent again? False
   for methods that are not known. */
PLB_API bool plb_http1_is_idempotent(plb_text method);

/* Can it stand in a head as it is? A name is a token; a value has no control bytes but tabs. */
PLB_API bool plb_http1_is_token(plb_text text);
PLB_API bool plb_http1_is_value(plb_text text);

/* Reads the value of a Content-Length: digits, at least one, and nothing else. PLB_OK, or PLB_ERR_PROTOCOL: not so, or
   2^64 and above. */
PLB_API plb_status plb_http1_content_length(plb_text value, uint64_t *out);

typedef enum plb_http1_framing {
    PLB_HTTP1_EMPTY = 0,  /* no body */
    PLB_HTTP1_LENGTH,     /* `length` bytes; may be 0 */
    PLB_HTTP1_CHUNKED,    /* as plb_http1_chunked reads it */
    PLB_HTTP1_UNTIL_CLOSE /* response: to the end of the stream */
} plb_http1_framing;

typedef struct plb_http1_body {
    plb_http1_framing framing;
    uint64_t length; /* 0 unless the framing is PLB_HTTP1_LENGTH */
} plb_http1_body;

/* How the body is delimited (RFC 9112 section 6.3). PLB_ERR_PROTOCOL: a Content-Length that is malformed or repeated,
   one beside a Transfer-Encoding, or a Transfer-Encoding in HTTP/1.0. PLB_ERR_UNSUPPORTED: a Transfer-Encoding other
   than exactly "chunked". to_head: the response answers a HEAD request. Statuses 1xx, 204 and 304 have no body either,
   but their headers are judged all the same. */
PLB_API plb_status plb_http1_request_body(const plb_http1_head *head, plb_http1_body *out);
PLB_API plb_status plb_http1_response_body(const plb_http1_head *head, bool to_head, plb_http1_body *out);

/* Bytes of chunk extensions and trailers together that one body may have; they are skipped. */
#ifndef PLB_HTTP1_EXTRA_MAX
#define PLB_HTTP1_EXTRA_MAX 4096
#endif

/* Reads a chunked body (RFC 9112 section 7.1). All zero: ready for the first byte. */
typedef struct plb_http1_chunked {
    uint64_t left;  /* private, like the rest: bytes of the chunk's data still to come */
    uint32_t extra; /* extension and trailer bytes so far */
    uint8_t digits; /* of the chunk's size */
    uint8_t state;
} plb_http1_chunked;

/* Reads on from the next `size` bytes at `bytes`. *used: how many it consumed. PLB_OK: *data is a piece of the body, 1
   byte or more, within them; call again with what is left. PLB_AGAIN: all consumed, more bytes are needed. PLB_END: the
   body is complete; what follows *used is the next message. PLB_ERR_PROTOCOL; PLB_ERR_LIMIT: more than
   PLB_HTTP1_EXTRA_MAX. *data is empty for all but PLB_OK. */
PLB_API plb_status plb_http1_chunked_next(plb_http1_chunked *chunked, const char *bytes, size_t size, size_t *used,
                                          plb_text *data);
#endif

/* ==== HPACK ==========================================================================================================
   Header compression for HTTP/2 (RFC 7541): reads header blocks as their bytes come, one field at a time, and writes
   fields that need no memory on this side (static table, literals without indexing, no Huffman coding). Any thread, one
   at a time for each plb_hpack. */

#ifndef PLB_NO_HTTP2
typedef struct plb_hpack_field {
    plb_text name, value; /* live until the next call with the same plb_hpack, or in constants */
    size_t size;          /* as RFC 7541 section 4.1 counts: the bytes of both as sent, and 32 */
    bool cut;             /* longer than the room for it: these are its first bytes, and nobody looked at the rest */
} plb_hpack_field;

/* The reading side of one connection. */
typedef struct plb_hpack {
    uint32_t table_size; /* what to announce as SETTINGS_HEADER_TABLE_SIZE; the rest is private */
    uint8_t huffman_bits, state, kind, continued; /* continued: bytes of an integer that is not whole */
    bool huffman, huffman_ones, at_start;
    bool overfull; /* the peer's table held more than table_size */
    uint32_t room_size;
    char *table, *room;
    uint32_t stored, counted, entries; /* the dynamic table: bytes here, bytes as the RFC counts, fields */
    uint32_t peer_size, peer_limit;    /* of the peer's table: now, and at most */
    uint32_t name_size, value_size;    /* of the field that is being read, as sent */
    uint32_t integer, left;            /* the last integer; bytes of the string to come */
    uint32_t huffman_code, huffman_at; /* see plb__huffman_bit */
} plb_hpack;

/* Prepares it over `size` bytes at `memory` (any alignment), which must stay until it is used no more. Half of them,
   and at most 65535, are the dynamic table, the rest is room for one field. PLB_ERR_ARGUMENT: fewer than 64 bytes. */
PLB_API plb_status plb_hpack_open(plb_hpack *hpack, void *memory, size_t size);

/* The peer has acknowledged table_size. Until then it may use 4096 bytes (RFC 9113 section 6.5.2): what does not fit
   the memory is forgotten from its old end, so that a field that needs it is a fault and never a wrong field. */
PLB_API void plb_hpack_acknowledged(plb_hpack *hpack);

/* Reads on from the next `size` bytes at `bytes` of a header block. *used: how many it consumed. PLB_OK: *field is the
   next one; call again with what is left. PLB_AGAIN: all consumed; more bytes are needed, or the block ends here.
   PLB_ERR_PROTOCOL: not HPACK; nothing more can be read on this connection. */
PLB_API plb_status plb_hpack_next(plb_hpack *hpack, const char *bytes, size_t size, size_t *used,
                                  plb_hpack_field *field);

/* The block has ended. PLB_OK: the next one may begin. PLB_ERR_PROTOCOL: it ended in the midst of a field. */
PLB_API plb_status plb_hpack_end(plb_hpack *hpack);

/* Writes one field of a block and returns its length; only counts when capacity is less than that. */
PLB_API size_t plb_hpack_write(char *out, size_t capacity, plb_text name, plb_text value);
#endif

/* ==== HTTP/2 =========================================================================================================
   The client's side of an HTTP/2 connection (RFC 9113), for one request after another: bytes in, events and bytes out.
   It opens no socket, asks no clock and allocates nothing. The bytes may travel over TLS (ALPN "h2") or in the clear
   where the server is known to speak HTTP/2.

       plb_http2_open(&h, memory, sizeof memory);
       plb_http2_request(&h, headers, header_count, body);
       for each turn of the loop:
           while ((out = plb_http2_output(&h)).size > 0) { n = send(out.data, out.size); plb_http2_sent(&h, n); }
           n = receive(bytes);
           while ((status = plb_http2_next(&h, bytes + at, n - at, &used, &event)) == PLB_OK) { at += used; ... }

   Events of an answer come in this order: PLB_HTTP2_STATUS, PLB_HTTP2_HEADER for each, PLB_HTTP2_HEADERS_END (all of
   this once more for each interim answer, status 100 to 199), PLB_HTTP2_DATA, PLB_HTTP2_TRAILER, PLB_HTTP2_END. It may
   end early by PLB_HTTP2_RESET, or by PLB_HTTP2_GOAWAY that does not cover it. Data is handed on at once and the flow
   control windows (65535 bytes) are opened again as it is; who wants less of it reads less. Peers are kept from wearing
   this side down: PLB_HTTP2_HEADER_LIST_MAX for a header block, 64 CONTINUATION frames in it, 1000 frames between two
   requests, pieces of data or of the request's body, and no more answers to PING and SETTINGS than there is room for.
   Memory: sizeof(plb_http2), 240 bytes, and what plb_http2_open is given. Any thread, one at a time for each plb_http2.
   The end of the stream is for the caller to judge: before PLB_HTTP2_END, the answer is not whole. */

#ifndef PLB_NO_HTTP2
#define PLB_HTTP2_MEMORY_MIN      512   /* enough for a probe with short names */
#define PLB_HTTP2_MEMORY          1024  /* recommended: request headers of 420 bytes, response headers of 256 each */
#define PLB_HTTP2_HEADER_LIST_MAX 16384 /* bytes of one header block, packed and unpacked (RFC 9113 section 10.5.1) */

/* RFC 9113 section 7. */
typedef enum plb_http2_code {
    PLB_HTTP2_NO_ERROR = 0,
    PLB_HTTP2_PROTOCOL_ERROR,
    PLB_HTTP2_INTERNAL_ERROR,
    PLB_HTTP2_FLOW_CONTROL_ERROR,
    PLB_HTTP2_SETTINGS_TIMEOUT,
    PLB_HTTP2_STREAM_CLOSED,
    PLB_HTTP2_FRAME_SIZE_ERROR,
    PLB_HTTP2_REFUSED_STREAM,
    PLB_HTTP2_CANCEL,
    PLB_HTTP2_COMPRESSION_ERROR,
    PLB_HTTP2_CONNECT_ERROR,
    PLB_HTTP2_ENHANCE_YOUR_CALM,
    PLB_HTTP2_INADEQUATE_SECURITY,
    PLB_HTTP2_HTTP_1_1_REQUIRED
} plb_http2_code;

typedef struct plb_http2_header {
    plb_text name;  /* no capitals */
    plb_text value; /* without white space around it; may be empty */
} plb_http2_header;

typedef enum plb_http2_event_kind {
    PLB_HTTP2_NONE = 0,    /* with any status but PLB_OK */
    PLB_HTTP2_STATUS,      /* an answer begins: status */
    PLB_HTTP2_HEADER,      /* name, value, cut */
    PLB_HTTP2_HEADERS_END, /* status; below 200 another answer follows */
    PLB_HTTP2_DATA,        /* data: 1 byte or more */
    PLB_HTTP2_TRAILER,     /* name, value, cut */
    PLB_HTTP2_END,         /* the answer is whole; the next request may begin */
    PLB_HTTP2_RESET,       /* the answer will not be whole: code, ours */
    PLB_HTTP2_GOAWAY       /* the peer takes no further request: code, covered */
} plb_http2_event_kind;

typedef struct plb_http2_event {
    plb_http2_event_kind kind;
    uint16_t status;      /* 100 to 999 */
    bool cut;             /* the field is longer than the room for it: these are its first bytes */
    bool ours;            /* this side ended the stream, since the answer was malformed (RFC 9113 section 8.1.1) */
    bool covered;         /* the request in flight, if any, is still being answered; if not, it was not acted upon */
    uint32_t code;        /* a plb_http2_code, or one that is not known; also with PLB_ERR_PROTOCOL and PLB_ERR_LIMIT */
    plb_text name, value; /* live until the next call */
    plb_text data;        /* within the bytes that were fed */
} plb_http2_event;

/* A connection. All members are private. What is small stands first, where short instructions reach it. */
typedef struct plb_http2 {
    /* the frame and the header block that are being read */
    uint8_t frame_type, frame_flags, frame_padding, phase, continuations, collected;
    bool block_open, block_ends_stream;
    uint8_t bytes[9];
    /* the answer */
    uint8_t exchange;
    bool content_known, to_head;
    uint16_t answer_status;
    /* the connection */
    uint8_t failed; /* a plb_status */
    bool settings_seen, streams_allowed, going_away, goaway_sent, hpack_began;
    uint16_t frames;
    uint32_t code;
    /* the frame, the header block and the answer again */
    uint32_t frame_stream, frame_left, block_size, list_size;
    uint64_t content_left;
    /* streams: the next, the one in flight, the last one that this side ended; their windows */
    uint32_t next_stream, stream, reset_stream;
    int32_t send_window, stream_send_window, receive_window, stream_receive_window;
    uint32_t peer_window, peer_frame_size;
    /* output: queued bytes, out_before_body of which precede the body_framed bytes of the body */
    uint32_t out_capacity, out_at, out_end, out_before_body;
    char *out;
    plb_text body;
    size_t body_framed;
    plb_hpack hpack;
} plb_http2;

/* Prepares a connection over `size` bytes at `memory` (any alignment), which must stay until it is used no more, and
   queues the connection preface and SETTINGS. A half is for the dynamic table and one field, as plb_hpack_open has it,
   a half for output. PLB_ERR_ARGUMENT: less than PLB_HTTP2_MEMORY_MIN. */
PLB_API plb_status plb_http2_open(plb_http2 *h, void *memory, size_t size);

/* Queues a request: pseudo-header fields first (":method", ":scheme", ":path", ":authority"), as RFC 9113 section 8.3.1
   asks; a content-length is the caller's to add. Headers are copied; the body's bytes must stay as they are until the
   next request is accepted or the connection is given up. PLB_OK. PLB_AGAIN: not now: the last answer is not over,
   output is waiting, or the peer allows no stream at present. PLB_END: not on this connection: the peer or this side
   said GOAWAY, or 2^30 requests were made. PLB_ERR_ARGUMENT: a field that may not be in a request. PLB_ERR_LIMIT: the
   headers do not fit the memory. After a fault: its status. */
PLB_API plb_status plb_http2_request(plb_http2 *h, const plb_http2_header *headers, size_t header_count, plb_text body);

/* The next bytes to send; size 0: none now. They live until the next call. */
PLB_API plb_text plb_http2_output(plb_http2 *h);

/* The first `size` of those bytes were sent. */
PLB_API void plb_http2_sent(plb_http2 *h, size_t size);

/* Reads on from the next `size` bytes at `bytes`. *used: how many it consumed. PLB_OK: *event tells what came; call
   again, even if no byte is left, until it is PLB_AGAIN: all consumed, more bytes are needed. PLB_ERR_PROTOCOL: the
   peer breaks the rules or floods; PLB_ERR_LIMIT: a header block above PLB_HTTP2_HEADER_LIST_MAX. After these two the
   connection is over; event->code tells the fault, and output has a GOAWAY that says so. */
PLB_API plb_status plb_http2_next(plb_http2 *h, const char *bytes, size_t size, size_t *used, plb_http2_event *event);

/* Gives up the request in flight, if there is one; no event comes of it any more. The next one may follow. */
PLB_API void plb_http2_cancel(plb_http2 *h);

/* Queues a GOAWAY, as is polite before the stream is closed; no further request. */
PLB_API void plb_http2_close(plb_http2 *h);
#endif

/* ==== GRPC ===========================================================================================================
   The health checking protocol of gRPC (grpc.health.v1.Health/Check) as bytes: what goes into the request of
   plb_http2_request, and what the answer's data and its grpc-status say. Source: "gRPC over HTTP2" and "GRPC Health
   Checking Protocol" of the gRPC project, "Encoding" of Protocol Buffers. Any thread. */

#ifndef PLB_NO_GRPC
#define PLB_GRPC_MESSAGE_MAX 4096 /* bytes of an answer's message; it is read as it comes and none of it is kept */
#define PLB_GRPC_GROUP_MAX   8    /* groups inside of groups, in fields that are not known */
#define PLB_GRPC_HEADERS     6

typedef enum plb_grpc_serving {
    PLB_GRPC_UNKNOWN = 0,
    PLB_GRPC_SERVING,
    PLB_GRPC_NOT_SERVING,
    PLB_GRPC_SERVICE_UNKNOWN
} plb_grpc_serving;

/* "SERVING" and so on; "UNKNOWN" for any other number. Static. */
PLB_API const char *plb_grpc_serving_name(uint32_t serving);

/* The header fields of the request. `authority` must stay until it was queued. */
PLB_API void plb_grpc_health_headers(plb_http2_header headers[PLB_GRPC_HEADERS], plb_text authority, bool tls);

/* Writes the request's body: a message that asks for `service` (may be empty: the server as a whole). Returns its
   length, which is at most 15 more than the service's; only counts when capacity is less than that. */
PLB_API size_t plb_grpc_health_request(char *out, size_t capacity, plb_text service);

/* Reads the answer's body. All zero: ready for the first byte. */
typedef struct plb_grpc_health {
    uint32_t serving; /* after PLB_OK: a plb_grpc_serving, or a number that is not known; the rest is private */
    uint32_t left;    /* bytes of the message still to come */
    uint8_t state, shift, depth, prefix_read;
    uint32_t skip;
    uint64_t varint;
    uint32_t field;
    uint32_t groups[PLB_GRPC_GROUP_MAX];
} plb_grpc_health;

/* Reads on from the next `size` bytes at `bytes`, and consumes all of them. PLB_OK: the message is whole. PLB_AGAIN:
   more bytes are needed. PLB_ERR_PROTOCOL: malformed, more than one message, or compressed, which nobody offered.
   PLB_ERR_LIMIT: above PLB_GRPC_MESSAGE_MAX or PLB_GRPC_GROUP_MAX. */
PLB_API plb_status plb_grpc_health_next(plb_grpc_health *reader, const char *bytes, size_t size);

/* Reads the value of grpc-status, a header or a trailer: PLB_OK, or PLB_ERR_PROTOCOL: not a number below 2^32. */
PLB_API plb_status plb_grpc_status(plb_text value, uint32_t *out);

/* "OK", "CANCELLED" to "UNAUTHENTICATED"; "UNKNOWN" for any number that is not one of the 17. Static. */
PLB_API const char *plb_grpc_status_name(uint32_t status);
#endif

#endif /* PINGORA_LB_H */

/* ================================================================================================================== */
/* ==== IMPLEMENTATION ============================================================================================== */
/* ================================================================================================================== */
#ifdef PINGORA_LB_IMPLEMENTATION
#ifndef PLB__IMPLEMENTED
#define PLB__IMPLEMENTED

/* ==== COMPILER =======================================================================================================
   Atomics, wide multiplication, bits. */

/* 1 where the compiler is asked for small code: then what is there for speed alone is left out. */
#if defined(__OPTIMIZE_SIZE__)
#define PLB__SMALL 1
#else
#define PLB__SMALL 0
#endif

/* PLB__INLINE stands on what a pick runs through. Its helpers are large enough for a compiler to make calls of them,
   which cost more than they do; so they are inlined by order, and PLB__RARE stands on what is off that path, whose
   registers it shall not take. Where small code is asked for the compiler finds out itself what is smaller; but for
   PLB__ONCE, of which it thinks wrongly. PLB__APART has a large frame, to be gone before what comes after it. */
#if defined(__GNUC__)
#define PLB__LIKELY(x)   __builtin_expect(!!(x), 1)
#define PLB__UNLIKELY(x) __builtin_expect(!!(x), 0)
#define PLB__UNUSED      __attribute__((unused)) /* a static function that only some builds call */
#define PLB__APART       static __attribute__((noinline))
#if PLB__SMALL
#define PLB__INLINE static inline PLB__UNUSED
#define PLB__RARE   static PLB__UNUSED
#define PLB__ONCE   static __attribute__((noinline))
#else
#define PLB__INLINE static inline PLB__UNUSED __attribute__((always_inline))
#define PLB__RARE   static PLB__UNUSED __attribute__((noinline))
#define PLB__ONCE   static
#endif
#elif defined(_MSC_VER)
#include <intrin.h>
#define PLB__LIKELY(x)   (x)
#define PLB__UNLIKELY(x) (x)
#define PLB__UNUSED
#define PLB__APART  static __declspec(noinline)
#define PLB__INLINE static __forceinline
#define PLB__RARE   static __declspec(noinline)
#define PLB__ONCE   static
#else
#define PLB__LIKELY(x)   (x)
#define PLB__UNLIKELY(x) (x)
#define PLB__UNUSED
#define PLB__APART  static
#define PLB__INLINE static
#define PLB__RARE   static
#define PLB__ONCE   static
#endif

/* PLB__IF_X(with, without): the one, or, where PLB_NO_X leaves out what it needs, the other. What only a part that is
   left out has is read and written by these, in one place each. */
#ifndef PLB_NO_IPV6
#define PLB__IF_IPV6(with, without) with
#else
#define PLB__IF_IPV6(with, without) without
#endif
#ifndef PLB_NO_UNIX
#define PLB__IF_UNIX(with, without) with
#else
#define PLB__IF_UNIX(with, without) without
#endif
#ifndef PLB_NO_NAMES
#define PLB__IF_NAMES(with, without) with
#else
#define PLB__IF_NAMES(with, without) without
#endif
#ifndef PLB_NO_CHANGES
#define PLB__IF_CHANGES(with, without) with
#else
#define PLB__IF_CHANGES(with, without) without
#endif
#ifndef PLB_NO_UPDATES
#define PLB__IF_UPDATES(with, without) with
#else
#define PLB__IF_UPDATES(with, without) without
#endif
#ifndef PLB_NO_TIERS
#define PLB__IF_TIERS(with, without) with
#else
#define PLB__IF_TIERS(with, without) without
#endif
#ifndef PLB_NO_SHARES
#define PLB__IF_SHARES(with, without) with
#else
#define PLB__IF_SHARES(with, without) without
#endif
#ifndef PLB_NO_LIMITS
#define PLB__IF_LIMITS(with, without) with
#else
#define PLB__IF_LIMITS(with, without) without
#endif
#ifndef PLB_NO_OUTLIER
#define PLB__IF_OUTLIER(with, without) with
#else
#define PLB__IF_OUTLIER(with, without) without
#endif
#ifndef PLB_NO_LOG
#define PLB__IF_LOG(with, without) with
#else
#define PLB__IF_LOG(with, without) without
#endif
#ifndef PLB_NO_WALK
#define PLB__IF_WALK(with, without) with
#else
#define PLB__IF_WALK(with, without) without
#endif
#ifndef PLB_NO_PROBE_INFO
#define PLB__IF_PROBE_INFO(with, without) with
#else
#define PLB__IF_PROBE_INFO(with, without) without
#endif
#ifndef PLB_NO_TLS
#define PLB__IF_TLS(with, without) with
#else
#define PLB__IF_TLS(with, without) without
#endif
#ifndef PLB_NO_EXCHANGE
#define PLB__IF_EXCHANGE(with, without) with
#else
#define PLB__IF_EXCHANGE(with, without) without
#endif
#ifndef PLB_NO_DRAW
#define PLB__IF_DRAW(with, without) with
#else
#define PLB__IF_DRAW(with, without) without
#endif
#ifndef PLB_NO_GRPC
#define PLB__IF_GRPC(with, without) with
#else
#define PLB__IF_GRPC(with, without) without
#endif
#ifndef PLB_NO_WEIGHTS
#define PLB__IF_WEIGHTS(with, without) with
#else
#define PLB__IF_WEIGHTS(with, without) without
#endif
#ifndef PLB_NO_CHECK_LIST
#define PLB__IF_CHECK_LIST(with, without) with
#else
#define PLB__IF_CHECK_LIST(with, without) without
#endif
#ifndef PLB_NO_TICK
#define PLB__IF_TICK(with, without) with
#else
#define PLB__IF_TICK(with, without) without
#endif
#ifndef PLB_NO_METRICS
#define PLB__IF_METRICS(with, without) with
#else
#define PLB__IF_METRICS(with, without) without
#endif
#ifndef PLB_NO_HANDLES
#define PLB__IF_HANDLES(with, without) with
#else
#define PLB__IF_HANDLES(with, without) without
#endif

/* A cache line that will be needed soon, or so much later that it must not drive others from the first-level cache. */
#if defined(__GNUC__)
#define PLB__PREFETCH(p)       __builtin_prefetch(p)
#define PLB__PREFETCH_LATER(p) __builtin_prefetch((p), 0, 2)
#elif defined(_MSC_VER) && defined(_M_X64)
#define PLB__PREFETCH(p)       _mm_prefetch((const char *)(p), _MM_HINT_T0)
#define PLB__PREFETCH_LATER(p) _mm_prefetch((const char *)(p), _MM_HINT_T1)
#else
#define PLB__PREFETCH(p)       ((void)(p))
#define PLB__PREFETCH_LATER(p) ((void)(p))
#endif

#ifdef PLB_NO_THREADS
#define PLB__LOAD_RELAXED(p)     (*(p))
#define PLB__LOAD_ACQUIRE(p)     (*(p))
#define PLB__LOAD(p)             (*(p))
#define PLB__KEEP_ORDER()        ((void)0)
#define PLB__STORE_RELAXED(p, v) ((void)(*(p) = (v)))
#define PLB__STORE(p, v)         ((void)(*(p) = (v)))
#define PLB__STORE_RELEASE(p, v) ((void)(*(p) = (v)))
PLB__INLINE uint32_t plb__fetch_add(uint32_t *p, uint32_t v)
{
    uint32_t old = *p;
    *p = old + v;
    return old;
}
PLB__INLINE uintptr_t plb__fetch_add_relaxed(uintptr_t *p, uintptr_t v)
{
    uintptr_t old = *p;
    *p = old + v;
    return old;
}
PLB__INLINE uintptr_t plb__fetch_or(uintptr_t *p, uintptr_t v)
{
    uintptr_t old = *p;
    *p = old | v;
    return old;
}
PLB__INLINE uintptr_t plb__fetch_and(uintptr_t *p, uintptr_t v)
{
    uintptr_t old = *p;
    *p = old & v;
    return old;
}
PLB__INLINE uintptr_t plb__exchange(uintptr_t *p, uintptr_t v)
{
    uintptr_t old = *p;
    *p = v;
    return old;
}
PLB__INLINE bool plb__cas(uintptr_t *p, uintptr_t expected, uintptr_t v)
{
    if (*p != expected)
        return false;
    *p = v;
    return true;
}
PLB__INLINE bool plb__cas32(uint32_t *p, uint32_t expected, uint32_t v)
{
    if (*p != expected)
        return false;
    *p = v;
    return true;
}
#elif defined(__GNUC__)
/* Sequentially consistent unless the name says otherwise: on the paths that matter the strong forms cost the same. */
#define PLB__LOAD_RELAXED(p)     __atomic_load_n((p), __ATOMIC_RELAXED)
#define PLB__LOAD_ACQUIRE(p)     __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define PLB__LOAD(p)             __atomic_load_n((p), __ATOMIC_SEQ_CST)
#define PLB__KEEP_ORDER()        __atomic_signal_fence(__ATOMIC_SEQ_CST) /* the compiler's, not the processor's */
#define PLB__STORE_RELAXED(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define PLB__STORE(p, v)         __atomic_store_n((p), (v), __ATOMIC_SEQ_CST)
#define PLB__STORE_RELEASE(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
PLB__INLINE uint32_t plb__fetch_add(uint32_t *p, uint32_t v)
{
    return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);
}
PLB__INLINE uintptr_t plb__fetch_add_relaxed(uintptr_t *p, uintptr_t v)
{
    return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
PLB__INLINE uintptr_t plb__fetch_or(uintptr_t *p, uintptr_t v)
{
    return __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST);
}
PLB__INLINE uintptr_t plb__fetch_and(uintptr_t *p, uintptr_t v)
{
    return __atomic_fetch_and(p, v, __ATOMIC_SEQ_CST);
}
PLB__INLINE uintptr_t plb__exchange(uintptr_t *p, uintptr_t v)
{
    return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);
}
PLB__INLINE bool plb__cas(uintptr_t *p, uintptr_t expected, uintptr_t v)
{
    return __atomic_compare_exchange_n(p, &expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}
PLB__INLINE bool plb__cas32(uint32_t *p, uint32_t expected, uint32_t v)
{
    return __atomic_compare_exchange_n(p, &expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}
#elif defined(_MSC_VER) && defined(_WIN64)
/* Microsoft's compiler: interlocked functions, which are full barriers, and accesses that it neither repeats nor leaves
   out. An x64 processor orders these among each other well enough, but for a store and a later load; an ARM64 does
   not. */
#pragma warning(push)
#pragma warning(disable : 4996) /* it would have <atomic> instead, which is C++ */
PLB__INLINE void plb__keep_order(void)
{
    _ReadWriteBarrier();
}
#pragma warning(pop)
#ifdef _M_ARM64
#define PLB__ORDER() __dmb(_ARM64_BARRIER_ISH)
#else
#define PLB__ORDER() plb__keep_order()
#endif
PLB__INLINE uint8_t plb__atomic_read8(const uint8_t *p)
{
    return (uint8_t)__iso_volatile_load8((const volatile char *)p);
}
PLB__INLINE uint32_t plb__atomic_read32(const uint32_t *p)
{
    return (uint32_t)__iso_volatile_load32((const volatile int *)p);
}
PLB__INLINE uintptr_t plb__atomic_read64(const uintptr_t *p)
{
    return (uintptr_t)__iso_volatile_load64((const volatile long long *)p);
}
PLB__INLINE uint8_t plb__atomic_acquire8(const uint8_t *p)
{
    uint8_t value = plb__atomic_read8(p);
    PLB__ORDER();
    return value;
}
PLB__INLINE uint32_t plb__atomic_acquire32(const uint32_t *p)
{
    uint32_t value = plb__atomic_read32(p);
    PLB__ORDER();
    return value;
}
PLB__INLINE uintptr_t plb__atomic_acquire64(const uintptr_t *p)
{
    uintptr_t value = plb__atomic_read64(p);
    PLB__ORDER();
    return value;
}
#ifdef __cplusplus
#define PLB__OVERLOAD(name, type, bits)                                                                                \
    PLB__INLINE type name(const type *p)                                                                               \
    {                                                                                                                  \
        return name##bits(p);                                                                                          \
    }
PLB__OVERLOAD(plb__atomic_read, uint8_t, 8)
PLB__OVERLOAD(plb__atomic_read, uint32_t, 32)
PLB__OVERLOAD(plb__atomic_read, uintptr_t, 64)
PLB__OVERLOAD(plb__atomic_acquire, uint8_t, 8)
PLB__OVERLOAD(plb__atomic_acquire, uint32_t, 32)
PLB__OVERLOAD(plb__atomic_acquire, uintptr_t, 64)
#define PLB__BY_TYPE(name, p) name(p)
#else
#define PLB__BY_TYPE(name, p) _Generic(*(p), uint8_t : name##8, uint32_t : name##32, uintptr_t : name##64)(p)
#endif
PLB__INLINE void plb__atomic_write(void *p, size_t size, uint64_t v)
{
    if (size == 1)
        __iso_volatile_store8((volatile char *)p, (char)v);
    else if (size == 4)
        __iso_volatile_store32((volatile int *)p, (int)v);
    else
        __iso_volatile_store64((volatile long long *)p, (long long)v);
}
PLB__INLINE void plb__atomic_release(void *p, size_t size, uint64_t v)
{
    PLB__ORDER();
    plb__atomic_write(p, size, v);
}
PLB__INLINE void plb__atomic_store(void *p, size_t size, uint64_t v)
{
    if (size == 1)
        _InterlockedExchange8((volatile char *)p, (char)v);
    else if (size == 4)
        _InterlockedExchange((volatile long *)p, (long)v);
    else
        _InterlockedExchange64((volatile long long *)p, (long long)v);
}
#define PLB__LOAD_RELAXED(p)     PLB__BY_TYPE(plb__atomic_read, p)
#define PLB__LOAD_ACQUIRE(p)     PLB__BY_TYPE(plb__atomic_acquire, p)
#define PLB__LOAD(p)             PLB__BY_TYPE(plb__atomic_acquire, p)
#define PLB__KEEP_ORDER()        plb__keep_order()
#define PLB__STORE_RELAXED(p, v) plb__atomic_write((p), sizeof *(p), (uint64_t)(v))
#define PLB__STORE(p, v)         plb__atomic_store((p), sizeof *(p), (uint64_t)(v))
#define PLB__STORE_RELEASE(p, v) plb__atomic_release((p), sizeof *(p), (uint64_t)(v))
PLB__INLINE uint32_t plb__fetch_add(uint32_t *p, uint32_t v)
{
    return (uint32_t)_InterlockedExchangeAdd((volatile long *)p, (long)v);
}
PLB__INLINE uintptr_t plb__fetch_add_relaxed(uintptr_t *p, uintptr_t v)
{
    return (uintptr_t)_InterlockedExchangeAdd64((volatile long long *)p, (long long)v);
}
PLB__INLINE uintptr_t plb__fetch_or(uintptr_t *p, uintptr_t v)
{
    return (uintptr_t)_InterlockedOr64((volatile long long *)p, (long long)v);
}
PLB__INLINE uintptr_t plb__fetch_and(uintptr_t *p, uintptr_t v)
{
    return (uintptr_t)_InterlockedAnd64((volatile long long *)p, (long long)v);
}
PLB__INLINE uintptr_t plb__exchange(uintptr_t *p, uintptr_t v)
{
    return (uintptr_t)_InterlockedExchange64((volatile long long *)p, (long long)v);
}
PLB__INLINE bool plb__cas(uintptr_t *p, uintptr_t expected, uintptr_t v)
{
    return (uintptr_t)_InterlockedCompareExchange64((volatile long long *)p, (long long)v, (long long)expected) ==
           expected;
}
PLB__INLINE bool plb__cas32(uint32_t *p, uint32_t expected, uint32_t v)
{
    return (uint32_t)_InterlockedCompareExchange((volatile long *)p, (long)v, (long)expected) == expected;
}
#else
#error "pingora_lb.h knows no atomics for this compiler: define PLB_NO_THREADS for use from one thread"
#endif

/* UINT64_MAX divided by a number, which is not 0. */
PLB__INLINE uint64_t plb__inverse(uint32_t value)
{
#if defined(__SIZEOF_INT128__)
    return UINT64_MAX / value;
#else
    uint64_t quotient = 0, rest = 0;
    int bit;
    for (bit = 0; bit < 64; bit++) { /* digit by digit: small processors divide 32 bits at most */
        bool fits;
        rest = rest << 1 | 1;
        fits = rest >= value;
        rest -= fits ? value : 0;
        quotient = quotient << 1 | fits;
    }
    return quotient;
#endif
}

/* A number that no other running thread has: where its copy of a thread-local byte lies. 0: unknown here. */
#if !defined(PLB_NO_THREADS) && !defined(PLB_NO_THREAD_LOCAL)
#if defined(_MSC_VER) && !defined(__GNUC__)
static __declspec(thread) char plb__thread_byte;
#else
static __thread char plb__thread_byte;
#endif
PLB__INLINE uintptr_t plb__thread(void)
{
    return (uintptr_t)&plb__thread_byte;
}
#else
PLB__INLINE uintptr_t plb__thread(void)
{
    return 0;
}
#endif

/* The upper 64 bits of a product. */
PLB__INLINE uint64_t plb__multiply_high(uint64_t a, uint64_t b)
{
#if defined(__SIZEOF_INT128__)
    __extension__ typedef unsigned __int128 wide;
    return (uint64_t)(((wide)a * b) >> 64);
#elif defined(_MSC_VER) && defined(_WIN64)
    return __umulh(a, b);
#else
    uint64_t a_low = a & UINT32_MAX, a_high = a >> 32, b_low = b & UINT32_MAX, b_high = b >> 32;
    uint64_t middle = a_high * b_low + ((a_low * b_low) >> 32);
    uint64_t other = a_low * b_high + (middle & UINT32_MAX);
    return a_high * b_high + (middle >> 32) + (other >> 32);
#endif
}

PLB__INLINE uint32_t plb__load_le32(const uint8_t *at)
{
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

PLB__INLINE uint32_t plb__count_ones(uintptr_t word)
{
#if defined(__GNUC__)
    return (uint32_t)(sizeof word == sizeof(unsigned) ? __builtin_popcount((unsigned)word)
                                                      : __builtin_popcountll((unsigned long long)word));
#else /* not every processor has an instruction; sums of two bits, four, eight, then all bytes added up */
    uint64_t ones = word;
    ones -= ones >> 1 & UINT64_C(0x5555555555555555);
    ones = (ones & UINT64_C(0x3333333333333333)) + (ones >> 2 & UINT64_C(0x3333333333333333));
    ones = (ones + (ones >> 4)) & UINT64_C(0x0f0f0f0f0f0f0f0f);
    return (uint32_t)(ones * UINT64_C(0x0101010101010101) >> 56);
#endif
}

/* Where the lowest one of a word stands; the word is not 0. */
PLB__INLINE uint32_t plb__lowest_one(uintptr_t word)
{
#if defined(__GNUC__)
    return (uint32_t)(sizeof word == sizeof(unsigned) ? __builtin_ctz((unsigned)word)
                                                      : __builtin_ctzll((unsigned long long)word));
#elif defined(_MSC_VER) && defined(_WIN64)
    unsigned long place;
    _BitScanForward64(&place, word);
    return (uint32_t)place;
#else
    return plb__count_ones((word & (0 - word)) - 1);
#endif
}

/* ==== VERSION AND STATUS =============================================================================================
   Texts. */

PLB_API const char *plb_version(void)
{
    return PLB_VERSION;
}

#ifndef PLB_NO_LOG
PLB_API const char *plb_status_text(plb_status status)
{
    static const char *const texts[PLB_STATUS_COUNT] = {
        "It went well.",
        "It is not complete yet.",
        "The peer has ended its side of the stream.",
        "An argument makes no sense.",
        "This is not an address in a form that is understood.",
        "A weight is above 65535, or the weights add up to 2^32 or more.",
        "The ring would need more points than max_points, or the table more places than table_size.",
        "There is not enough memory.",
        "This side has run out of streams, descriptors or ports.",
        "The port or object in use cannot do this.",
        "There is no backend.",
        "No backend is ready.",
        "The connection was refused.",
        "The peer cannot be reached.",
        "The connection was reset.",
        "It took longer than allowed.",
        "The host name does not resolve.",
        "The local address is in use.",
        "The system does not permit this.",
        "The peer has broken the protocol.",
        "The answer was not the one that was asked for.",
        "The stream ended without TLS's farewell.",
        "No TLS session came about.",
        "The certificate is not accepted.",
        "It was called off.",
        "Input or output has failed.",
    };
    return (unsigned)status < PLB_STATUS_COUNT ? texts[status] : "This is not a status.";
}
#endif

PLB_API bool plb_status_is_local(plb_status status)
{
    switch (status) {
    case PLB_ERR_ARGUMENT:
    case PLB_ERR_ADDRESS:
    case PLB_ERR_MEMORY:
    case PLB_ERR_LIMIT:
    case PLB_ERR_UNSUPPORTED:
    case PLB_ERR_IN_USE:
    case PLB_ERR_ACCESS:
    case PLB_ERR_CANCELLED:
        return true;
    default:
        return false;
    }
}

/* ==== MEMORY =========================================================================================================
   malloc and free as an allocator, and the arena. */

#ifndef PLB_MALLOC
#include <stdlib.h>
#define PLB_MALLOC(size) malloc(size)
#define PLB_FREE(ptr)    free(ptr)
#endif

static void *plb__malloc(void *user, size_t size)
{
    (void)user;
    return PLB_MALLOC(size);
}

static void plb__free(void *user, void *ptr, size_t size)
{
    (void)user;
    (void)size;
    PLB_FREE(ptr);
}

PLB_API plb_allocator plb_allocator_or_default(plb_allocator allocator)
{
    if (allocator.alloc == NULL) {
        allocator.alloc = plb__malloc;
        allocator.dealloc = plb__free;
    }
    return allocator;
}

/* Zeroed memory, or NULL. */
static void *plb__new(const plb_allocator *a, size_t size)
{
    void *ptr = a->alloc(a->user, size);
    if (ptr != NULL)
        memset(ptr, 0, size);
    return ptr;
}

PLB__INLINE void plb__delete(const plb_allocator *a, void *ptr, size_t size)
{
    if (ptr != NULL)
        a->dealloc(a->user, ptr, size);
}

/* A hole in an arena. As dealloc is told the size, blocks in use need no header; holes are kept in order of address so
   that neighbours can be merged. */
typedef struct plb__hole {
    size_t size;
    struct plb__hole *next;
} plb__hole;

/* Serves any type: at least the alignment of a pointer, of a uint64_t and of two pointers. */
#define PLB__ARENA_UNIT (sizeof(plb__hole) < 8 ? 8 : sizeof(plb__hole))

static size_t plb__arena_round(size_t size)
{
    return size == 0 ? PLB__ARENA_UNIT : (size + PLB__ARENA_UNIT - 1) / PLB__ARENA_UNIT * PLB__ARENA_UNIT;
}

static void *plb__arena_alloc(void *user, size_t size)
{
    plb_arena *arena = (plb_arena *)user;
    plb__hole *hole = (plb__hole *)arena->first_free, *before = NULL, *rest;
    if (size > SIZE_MAX - PLB__ARENA_UNIT)
        return NULL;
    size = plb__arena_round(size);
    for (; hole != NULL && hole->size < size; hole = hole->next)
        before = hole;
    if (hole == NULL)
        return NULL;
    rest = hole->next;
    if (hole->size > size) {
        plb__hole *tail = (plb__hole *)(void *)((char *)hole + size);
        tail->size = hole->size - size;
        tail->next = hole->next;
        rest = tail;
    }
    if (before != NULL)
        before->next = rest;
    else
        arena->first_free = rest;
    arena->used += size;
    if (arena->used > arena->peak)
        arena->peak = arena->used;
    return hole;
}

/* Joins a hole with the one behind it if they touch. */
static void plb__arena_merge(plb__hole *hole)
{
    plb__hole *next = hole->next;
    if (next != NULL && (char *)hole + hole->size == (char *)next) {
        hole->size += next->size;
        hole->next = next->next;
    }
}

static void plb__arena_dealloc(void *user, void *ptr, size_t size)
{
    plb_arena *arena = (plb_arena *)user;
    plb__hole *hole = (plb__hole *)ptr, *before = NULL, *after = (plb__hole *)arena->first_free;
    size = plb__arena_round(size);
    for (; after != NULL && (char *)after < (char *)ptr; after = after->next)
        before = after;
    hole->size = size;
    hole->next = after;
    arena->used -= size;
    plb__arena_merge(hole);
    if (before == NULL) {
        arena->first_free = hole;
    } else {
        before->next = hole;
        plb__arena_merge(before);
    }
}

PLB_API plb_allocator plb_arena_allocator(plb_arena *arena, void *memory, size_t bytes)
{
    plb_allocator allocator;
    size_t skew = (PLB__ARENA_UNIT - (uintptr_t)memory % PLB__ARENA_UNIT) % PLB__ARENA_UNIT;
    memset(arena, 0, sizeof *arena);
    if (bytes >= skew + PLB__ARENA_UNIT) {
        plb__hole *hole = (plb__hole *)(void *)((char *)memory + skew);
        hole->size = (bytes - skew) / PLB__ARENA_UNIT * PLB__ARENA_UNIT;
        hole->next = NULL;
        arena->first_free = hole;
    }
    allocator.alloc = plb__arena_alloc;
    allocator.dealloc = plb__arena_dealloc;
    allocator.user = arena;
    return allocator;
}

/* ==== TEXT ===========================================================================================================
   Lines for logs and addresses, cut where their buffer ends. */

/* Text that is cut where its buffer ends; `length` goes on counting. */
typedef struct plb__text {
    char *buffer;
    size_t capacity, length;
} plb__text;

static plb__text plb__text_in(char *buffer, size_t capacity)
{
    plb__text text;
    text.buffer = buffer;
    text.capacity = capacity;
    text.length = 0;
    if (capacity > 0)
        buffer[0] = '\0';
    return text;
}

static void plb__put_char(plb__text *text, char c)
{
    if (text->length + 1 < text->capacity) {
        text->buffer[text->length] = c;
        text->buffer[text->length + 1] = '\0';
    }
    text->length++;
}

static void plb__put_bytes(plb__text *text, const char *bytes, size_t size)
{
    if (text->length + 1 < text->capacity) {
        size_t room = text->capacity - text->length - 1, fits = size < room ? size : room;
        memcpy(text->buffer + text->length, bytes, fits);
        text->buffer[text->length + fits] = '\0';
    }
    text->length += size;
}

static void plb__put(plb__text *text, const char *string)
{
    plb__put_bytes(text, string, strlen(string));
}

/* The first byte like that, or NULL: memchr, which is written for speed and larger than all that is searched for where
   small code is asked for. */
static PLB__UNUSED const char *plb__find_byte(const char *bytes, char byte, size_t size)
{
    if (!PLB__SMALL)
        return (const char *)memchr(bytes, byte, size);
    for (; size > 0; size--, bytes++)
        if (*bytes == byte)
            return bytes;
    return NULL;
}

/* What strcmp says. That is written for speed, and larger than all that is compared here. */
static PLB__UNUSED int plb__compare(const char *a, const char *b)
{
    while (*a == *b && *a != '\0') {
        a++;
        b++;
    }
    return (int)(unsigned char)*a - (int)(unsigned char)*b;
}

/* Writes digits and no NUL; returns their end. */
static char *plb__decimal(char *at, uint32_t number)
{
    if (number >= 10)
        at = plb__decimal(at, number / 10);
    *at++ = (char)('0' + number % 10);
    return at;
}

static PLB__UNUSED bool plb__same_text(const char *a, const char *b)
{
    return plb__compare(a, b) == 0;
}

/* Moves bytes towards the beginning of their buffer. */
static PLB__UNUSED void plb__move_down(char *to, const char *from, size_t size)
{
    if (!PLB__SMALL)
        memmove(to, from, size);
    for (; PLB__SMALL && size > 0; size--)
        *to++ = *from++;
}

static void plb__put_decimal(plb__text *text, uint32_t number)
{
    char digits[10];
    plb__put_bytes(text, digits, (size_t)(plb__decimal(digits, number) - digits));
}

static PLB__UNUSED void plb__put_number(plb__text *text, uint64_t number, uint32_t base)
{
    char digits[20];
    size_t at = sizeof digits;
    do {
        digits[--at] = "0123456789abcdef"[number % base];
        number /= base;
    } while (number != 0);
    plb__put_bytes(text, digits + at, sizeof digits - at);
}

#ifndef PLB_NO_EXCHANGE
/* A byte as it may stand between quotes: itself, or the escape that C has for it. Returns the length. */
static size_t plb__escape(uint8_t byte, char escaped[4])
{
    static const char digits[] = "0123456789abcdef";
    escaped[0] = '\\';
    if (byte == '\r' || byte == '\n' || byte == '"' || byte == '\\') {
        escaped[1] = byte == '\r' ? 'r' : byte == '\n' ? 'n' : (char)byte;
        return 2;
    }
    if (byte >= 0x20 && byte < 0x7f) {
        escaped[0] = (char)byte;
        return 1;
    }
    escaped[1] = 'x';
    escaped[2] = digits[byte >> 4];
    escaped[3] = digits[byte & 15];
    return 4;
}

/* Any bytes between quotes, in printable ASCII; where that takes more than `room` (3 or more) characters, three dots
   stand for the end. */
static PLB__UNUSED void plb__put_quoted(plb__text *text, const char *bytes, size_t size, size_t room)
{
    size_t i, length = 0, shown;
    char escaped[4];
    bool cut;
    for (i = 0; i < size && length <= room; i++)
        length += plb__escape((uint8_t)bytes[i], escaped);
    cut = length > room;
    plb__put_char(text, '"');
    for (i = 0, length = 0; i < size; i++, length += shown) {
        shown = plb__escape((uint8_t)bytes[i], escaped);
        if (cut && length + shown + 3 > room)
            break;
        plb__put_bytes(text, escaped, shown);
    }
    plb__put(text, cut ? "...\"" : "\"");
}
#endif

/* ==== ADDRESS ========================================================================================================
   Text to address and back. Reading is all or nothing: a scan moves on only over what it understood. */

/* What is being read: `at` moves on only over what was understood. */
typedef struct plb__scan {
    const char *at, *end;
} plb__scan;

static bool plb__scan_char(plb__scan *s, char c)
{
    if (s->at == s->end || *s->at != c)
        return false;
    s->at++;
    return true;
}

/* A decimal number up to max, without leading zeros (1.2.3.010 means different things to different parsers). */
static bool plb__scan_decimal(plb__scan *s, uint32_t max, uint32_t *out)
{
    const char *first = s->at;
    uint64_t value = 0;
    while (s->at < s->end && *s->at >= '0' && *s->at <= '9') {
        value = value * 10 + (uint64_t)(*s->at++ - '0');
        if (value > max)
            return false;
    }
    if (s->at == first || (*first == '0' && s->at - first > 1))
        return false;
    *out = (uint32_t)value;
    return true;
}

static bool plb__scan_v4(plb__scan *s, uint8_t out[4])
{
    int i;
    for (i = 0; i < 4; i++) {
        uint32_t byte = 0;
        if ((i > 0 && !plb__scan_char(s, '.')) || !plb__scan_decimal(s, 255, &byte))
            return false;
        out[i] = (uint8_t)byte;
    }
    return true;
}

static bool plb__scan_port(plb__scan *s, uint16_t *out)
{
    uint32_t port = 0;
    if (!plb__scan_char(s, ':') || !plb__scan_decimal(s, 65535, &port) || port == 0 || s->at != s->end)
        return false;
    *out = (uint16_t)port;
    return true;
}

#ifndef PLB_NO_IPV6
/* One to four hexadecimal digits. */
static bool plb__scan_group(plb__scan *s, uint32_t *out)
{
    const char *first = s->at;
    uint32_t value = 0;
    while (s->at < s->end && s->at - first < 4) {
        char c = *s->at;
        if (c >= '0' && c <= '9')
            value = value * 16 + (uint32_t)(c - '0');
        else if ((c | 32) >= 'a' && (c | 32) <= 'f')
            value = value * 16 + (uint32_t)((c | 32) - 'a' + 10);
        else
            break;
        s->at++;
    }
    *out = value;
    return s->at > first;
}

/* RFC 4291 section 2.2: eight groups, one run of which may be "::", the last two of which may be dotted. */
static bool plb__scan_v6(plb__scan *s, uint8_t out[16])
{
    uint8_t bytes[16];
    int used = 0, gap = -1;
    memset(bytes, 0, sizeof bytes);
    if (plb__scan_char(s, ':')) {
        if (!plb__scan_char(s, ':'))
            return false;
        gap = 0;
    }
    while (used < 16) {
        plb__scan dotted = *s;
        uint32_t group;
        if (used <= 12 && plb__scan_v4(&dotted, bytes + used)) {
            *s = dotted;
            used += 4;
            break;
        }
        if (!plb__scan_group(s, &group)) {
            if (gap == used)
                break; /* the address ends in "::" */
            return false;
        }
        bytes[used++] = (uint8_t)(group >> 8);
        bytes[used++] = (uint8_t)group;
        if (used == 16 || !plb__scan_char(s, ':'))
            break;
        if (plb__scan_char(s, ':')) {
            if (gap >= 0)
                return false;
            gap = used;
        }
    }
    if (gap < 0 ? used != 16 : used > 14)
        return false;
    if (gap < 0)
        gap = used;
    memset(out, 0, 16);
    memcpy(out, bytes, (size_t)gap);
    memcpy(out + 16 - (used - gap), bytes + gap, (size_t)(used - gap));
    return true;
}

static bool plb__scan_bracketed(plb__scan *s, plb_addr *out)
{
    out->family = PLB_FAMILY_IPV6;
    if (!plb__scan_v6(s, out->u.v6))
        return false;
    if (plb__scan_char(s, '%') && !plb__scan_decimal(s, UINT32_MAX, &out->scope))
        return false;
    return plb__scan_char(s, ']') && plb__scan_port(s, &out->port);
}

#endif

PLB__INLINE uint32_t plb__addr_scope(const plb_addr *addr)
{
    (void)addr;
    return PLB__IF_IPV6(addr->scope, 0);
}

#ifndef PLB_NO_UNIX
static bool plb__scan_path(plb__scan *s, plb_addr *out)
{
    size_t length = (size_t)(s->end - s->at) - 5;
    if (length > PLB_PATH_MAX || plb__find_byte(s->at + 5, '\0', length) != NULL)
        return false;
    out->family = PLB_FAMILY_UNIX;
    out->path_len = (uint8_t)length;
    memcpy(out->u.path, s->at + 5, length);
    return true;
}
#endif

/* The family of an address, as far as there are such here. */
PLB__INLINE bool plb__addr_is_v6(const plb_addr *addr)
{
    return PLB__IF_IPV6(addr->family == PLB_FAMILY_IPV6, ((void)addr, false));
}

PLB__INLINE bool plb__addr_is_path(const plb_addr *addr)
{
    return PLB__IF_UNIX(addr->family == PLB_FAMILY_UNIX, ((void)addr, false));
}

PLB__INLINE bool plb__addr_is_ip(const plb_addr *addr)
{
    return addr->family == PLB_FAMILY_IPV4 || plb__addr_is_v6(addr);
}

static bool plb__scan_addr(plb__scan *s, plb_addr *out)
{
    if (PLB__IF_UNIX(s->end - s->at > 5 && memcmp(s->at, "unix:", 5) == 0, false))
        return PLB__IF_UNIX(plb__scan_path(s, out), false);
    if (plb__scan_char(s, '['))
        return PLB__IF_IPV6(plb__scan_bracketed(s, out), false);
    out->family = PLB_FAMILY_IPV4;
    return plb__scan_v4(s, out->u.v4) && plb__scan_port(s, &out->port);
}

/* Reads all of a text; what fails may leave something in *out. */
static bool plb__read_addr(plb_addr *out, const char *text, size_t length)
{
    plb__scan scan;
    scan.at = text;
    scan.end = text + length;
    memset(out, 0, sizeof *out);
    return plb__scan_addr(&scan, out);
}

PLB_API plb_status plb_addr_parse(plb_addr *out, const char *text, size_t length)
{
    plb_addr addr;
    if (text == NULL || !plb__read_addr(&addr, text, length == PLB_ZSTRING ? strlen(text) : length))
        return PLB_ERR_ADDRESS;
    *out = addr;
    return PLB_OK;
}

#define PLB__V4_TEXT 15 /* characters at most */

/* Writes no NUL; returns the end. */
static char *plb__write_v4(char *at, const uint8_t *bytes)
{
    int i;
    for (i = 0; i < 4; i++) {
        if (i > 0)
            *at++ = '.';
        at = plb__decimal(at, bytes[i]);
    }
    return at;
}

static void plb__put_v4(plb__text *text, const uint8_t *bytes)
{
    char v4[PLB__V4_TEXT];
    plb__put_bytes(text, v4, (size_t)(plb__write_v4(v4, bytes) - v4));
}

#ifndef PLB_NO_IPV6
/* RFC 5952: lower case, the longest run of two or more zero groups (the first of equals) as "::". */
static void plb__put_v6(plb__text *text, const uint8_t *bytes)
{
    static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    int i, run = 0, best = 0, best_at = -1;
    if (memcmp(bytes, mapped, sizeof mapped) == 0) {
        plb__put(text, "::ffff:");
        plb__put_v4(text, bytes + 12);
        return;
    }
    for (i = 0; i < 8; i++) {
        run = bytes[2 * i] == 0 && bytes[2 * i + 1] == 0 ? run + 1 : 0;
        if (run > best) {
            best = run;
            best_at = i - run + 1;
        }
    }
    for (i = 0; i < 8; i++) {
        if (best > 1 && i == best_at) {
            plb__put(text, "::");
            i += best - 1;
            continue;
        }
        if (i > 0 && !(best > 1 && i == best_at + best))
            plb__put_char(text, ':');
        plb__put_number(text, (uint64_t)bytes[2 * i] << 8 | bytes[2 * i + 1], 16);
    }
}
#endif

/* The address without its port, as Rust prints an IpAddr: this is what Ketama hashes. */
static void plb__put_host(plb__text *text, const plb_addr *addr)
{
    if (addr->family == PLB_FAMILY_IPV4)
        plb__put_v4(text, addr->u.v4);
    else if (plb__addr_is_v6(addr))
        PLB__IF_IPV6(plb__put_v6(text, addr->u.v6), (void)0);
    else if (plb__addr_is_path(addr))
        PLB__IF_UNIX(plb__put_bytes(text, addr->u.path, addr->path_len), (void)0);
    else
        plb__put(text, "(none)");
}

/* The same as it stands before a port: IPv6 in brackets. */
static void plb__put_bracketed(plb__text *text, const plb_addr *addr, uint32_t scope)
{
    bool is_v6 = plb__addr_is_v6(addr);
    if (is_v6)
        plb__put_char(text, '[');
    plb__put_host(text, addr);
    if (is_v6 && scope != 0) {
        plb__put_char(text, '%');
        plb__put_decimal(text, scope);
    }
    if (is_v6)
        plb__put_char(text, ']');
}

static void plb__put_port(plb__text *text, uint16_t port)
{
    plb__put_char(text, ':');
    plb__put_decimal(text, port);
}

static void plb__put_addr(plb__text *text, const plb_addr *addr)
{
    if (plb__addr_is_path(addr))
        plb__put(text, "unix:");
    plb__put_bracketed(text, addr, plb__addr_scope(addr));
    if (plb__addr_is_ip(addr))
        plb__put_port(text, addr->port);
}

PLB_API size_t plb_addr_format(const plb_addr *addr, char *buffer, size_t capacity)
{
    plb__text text = plb__text_in(buffer, capacity);
    plb__put_addr(&text, addr);
    return text.length;
}

static size_t plb__addr_bytes(const plb_addr *addr)
{
    if (plb__addr_is_path(addr))
        return PLB__IF_UNIX(addr->path_len, 0);
    return addr->family == PLB_FAMILY_IPV4 ? 4 : plb__addr_is_v6(addr) ? 16 : 0;
}

#define PLB__ADDR_HEAD offsetof(plb_addr, u)

/* How much of a plb_addr its family uses; a path with its NUL. */
static size_t plb__addr_used(const plb_addr *addr)
{
    return PLB__ADDR_HEAD + plb__addr_bytes(addr) + plb__addr_is_path(addr);
}

/* Copies what is used: the source may be stored without the rest. */
static void plb__addr_copy(plb_addr *to, const plb_addr *from)
{
    memcpy(to, from, plb__addr_used(from));
}

PLB_API int plb_addr_compare(const plb_addr *a, const plb_addr *b)
{
    size_t a_bytes = plb__addr_bytes(a), b_bytes = plb__addr_bytes(b);
    int order;
    if (a->family != b->family)
        return a->family < b->family ? -1 : 1;
    order = memcmp(&a->u, &b->u, a_bytes < b_bytes ? a_bytes : b_bytes);
    if (order != 0)
        return order;
    if (a_bytes != b_bytes)
        return a_bytes < b_bytes ? -1 : 1;
    if (a->port != b->port)
        return a->port < b->port ? -1 : 1;
    if (plb__addr_scope(a) != plb__addr_scope(b))
        return plb__addr_scope(a) < plb__addr_scope(b) ? -1 : 1;
    return 0;
}

/* FNV-1a, 64 bits: http://www.isthe.com/chongo/tech/comp/fnv/ */
#define PLB__FNV_BASIS UINT64_C(0xcbf29ce484222325)
#define PLB__FNV_PRIME UINT64_C(0x100000001b3)

PLB__INLINE uint64_t plb__fnv1a(uint64_t hash, const void *bytes, size_t count)
{
    const uint8_t *at = (const uint8_t *)bytes;
    for (; count > 0; count--) /* bytes may be NULL then, to which nothing may be added */
        hash = (hash ^ *at++) * PLB__FNV_PRIME;
    return hash;
}

PLB_API uint64_t plb_addr_hash(const plb_addr *addr)
{
    uint64_t hash = plb__fnv1a(PLB__FNV_BASIS, &addr->u, plb__addr_bytes(addr));
    uint32_t scope = plb__addr_scope(addr);
    hash = plb__fnv1a(hash, &addr->port, sizeof addr->port);
    hash = plb__fnv1a(hash, &scope, sizeof scope);
    return plb__fnv1a(hash, &addr->family, sizeof addr->family);
}

/* ==== TIMER ==========================================================================================================
   The clock made steady, and the pairing heap. */

PLB_API uint64_t plb_timers_update(plb_timers *timers, const plb_clock *clock)
{
    uint64_t raw = clock->now_ms(clock->self);
    if (raw >= timers->raw_ms) {
        timers->now_ms += raw - timers->raw_ms;
    } else {
        /* Behind the last reading: a 32-bit counter that wrapped, unless that would be a jump of more than 24 days. */
        uint32_t ahead = (uint32_t)(raw - timers->raw_ms);
        if (ahead < UINT32_C(1) << 31 && timers->raw_ms <= UINT32_MAX)
            timers->now_ms += ahead;
    }
    timers->raw_ms = raw;
    return timers->now_ms;
}

static plb_timer *plb__heap_meld(plb_timer *a, plb_timer *b)
{
    plb_timer *top;
    if (a == NULL)
        return b;
    if (b == NULL)
        return a;
    if (b->at_ms < a->at_ms) {
        top = b;
        b = a;
        a = top;
    }
    b->prev = a; /* the first child's prev is its parent */
    b->next = a->child;
    if (a->child != NULL)
        a->child->prev = b;
    a->child = b;
    return a;
}

/* Two passes: pair up from the left, then meld from the right. The pairs wait in a list through `prev`. */
static plb_timer *plb__heap_pair(plb_timer *first)
{
    plb_timer *pairs = NULL, *top = NULL;
    while (first != NULL) {
        plb_timer *a = first, *b = a->next;
        first = b != NULL ? b->next : NULL;
        a->next = NULL;
        if (b != NULL)
            b->next = NULL;
        a = plb__heap_meld(a, b);
        a->prev = pairs;
        pairs = a;
    }
    while (pairs != NULL) {
        plb_timer *pair = pairs;
        pairs = pair->prev;
        top = plb__heap_meld(top, pair);
    }
    return top;
}

PLB_API bool plb_timer_is_set(const plb_timer *timer)
{
    return timer->prev != NULL;
}

PLB_API void plb_timer_stop(plb_timers *timers, plb_timer *timer)
{
    plb_timer *children;
    if (timer->prev == NULL)
        return;
    children = plb__heap_pair(timer->child);
    if (timers->root == timer) {
        timers->root = children;
        if (children != NULL)
            children->prev = children; /* a root is its own prev, so that it counts as set */
    } else {
        if (timer->prev->child == timer)
            timer->prev->child = timer->next;
        else
            timer->prev->next = timer->next;
        if (timer->next != NULL)
            timer->next->prev = timer->prev;
        timers->root = plb__heap_meld(timers->root, children);
        timers->root->prev = timers->root;
    }
    timer->child = timer->next = timer->prev = NULL;
}

PLB_API void plb_timer_set(plb_timers *timers, plb_timer *timer, uint32_t delay_ms)
{
    plb_timer_stop(timers, timer);
    timer->at_ms = timers->now_ms + (delay_ms > 0 ? delay_ms : 1); /* never due in the run that sets it */
    timers->root = plb__heap_meld(timers->root, timer);
    timers->root->prev = timers->root;
}

/* So many at most; the next ones stay due. */
static void plb__timers_run_some(plb_timers *timers, size_t most)
{
    uint64_t now_ms = timers->now_ms; /* a callback may update it */
    for (; most > 0 && timers->root != NULL && timers->root->at_ms <= now_ms; most--) {
        plb_timer *timer = timers->root;
        plb_timer_stop(timers, timer);
        timer->fn(timer->user);
    }
}

PLB_API void plb_timers_run(plb_timers *timers)
{
    plb__timers_run_some(timers, SIZE_MAX);
}

PLB_API uint32_t plb_timers_delay(const plb_timers *timers)
{
    uint64_t delay;
    if (timers->root == NULL)
        return PLB_FOREVER;
    if (timers->root->at_ms <= timers->now_ms)
        return 0;
    delay = timers->root->at_ms - timers->now_ms;
    return delay < PLB_FOREVER ? (uint32_t)delay : PLB_FOREVER - 1;
}

/* ==== RANDOM NUMBERS =================================================================================================
   For spreading load, not for secrets. */

#define PLB__GOLDEN UINT64_C(0x9e3779b97f4a7c15)

/* SplitMix64 (Steele, Lea, Flood 2014): a counter, and what makes its steps look random. */
PLB__INLINE uint64_t plb__mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

PLB__INLINE uint64_t plb__random(plb_reader *reader)
{
    reader->random += PLB__GOLDEN;
    return plb__mix(reader->random);
}

PLB_API uint64_t plb_reader_random(plb_reader *reader)
{
    return plb__random(reader);
}

PLB__INLINE uintptr_t plb__turns_pass(plb_reader *reader, uintptr_t *shared, uintptr_t turns)
{
    uintptr_t turn = reader->turn;
    if (!reader->own_turn)
        return plb__fetch_add_relaxed(shared, turns);
    reader->turn = turn + turns;
    return turn;
}

PLB_API uintptr_t plb_reader_turn(plb_reader *reader, uintptr_t *shared)
{
    return plb__turns_pass(reader, shared, 1);
}

/* ==== SLOT ===========================================================================================================
   What outlives sets: one backend's state, and who holds it. */

enum {
    PLB__DISABLED = 1u,    /* the program or the discovery says so */
    PLB__ADVISED_OFF = 2u, /* its agent says so */
    PLB__EJECTED = 4u,     /* passive health says so */
    PLB__FULL = 8u,        /* of plb__slot_state only: max_conns requests are in flight */
    PLB__PARTIAL = 16u,    /* of plb__slot_state only: it has less than its full share */
    PLB__FAILING = 256u,   /* the first check fails; the bits of the others follow */
    PLB__UNHEALTHY = PLB__FAILING * ((1u << PLB_CHECKS_MAX) - 1),
    PLB__OFF = PLB__DISABLED | PLB__ADVISED_OFF, /* whatever its health: never picked */
    PLB__UNFIT = PLB__UNHEALTHY | PLB__EJECTED   /* not picked unless its tier panics */
};

PLB__INLINE uint32_t plb__failing(uint32_t check)
{
    return (uint32_t)PLB__FAILING << check;
}

#define PLB__SHARE_ALL 255u

/* The upper bits of plb__slot.in_flight. */
#define PLB__DEPARTED   (UINT32_C(1) << 31) /* in no set any more: the last plb_end wakes poll, which frees the slot */
#define PLB__ORPHANED   (UINT32_C(1) << 30) /* the balancer is gone: the last plb_end frees the slot */
#define PLB__LIMITED    (UINT32_C(1) << 29) /* max_conns is not 0: whoever counts up or down has the view told */
#define PLB__COUNT_MASK (PLB__LIMITED - 1)

enum {
    PLB__VITAL_NEW = 0, /* not on the schedule yet */
    PLB__VITAL_WAITING, /* on the schedule */
    PLB__VITAL_RUNNING, /* a probe is in flight */
    PLB__VITAL_DONE     /* nothing more is due, or the backend does not have this check */
};

/* One check of one slot. The polling thread's. */
typedef struct plb__vital {
#ifndef PLB_NO_EXCHANGE
    struct plb__op *kept; /* of the last probe, for the next one */
#endif
#ifndef PLB_NO_PROBE_INFO
    uint32_t latency_us;
    uint32_t passed, failed;
    uint16_t code;
#endif
    uint16_t streak; /* results in a row that speak against the state */
    uint8_t status;  /* of the last probe */
    uint8_t stage;
#ifndef PLB_NO_CHECK_LIST
    bool absent; /* the backend does not have this check */
    bool again;  /* once more as soon as the one that runs is over */
#endif
#ifndef PLB_NO_SHARES
    uint8_t share;    /* that an agent advises; 0: no new requests */
    bool advised_off; /* the agent wants no new requests, whatever its share */
    bool judged;      /* a result was more than neutral */
#endif
} plb__vital;

/* What is kept of a slot's health as a whole, only where anything watches it. */
#if !defined(PLB_NO_CHECK_LIST) || !defined(PLB_NO_PROBE_INFO) || !defined(PLB_NO_SHARES)
typedef struct plb__care {
#ifndef PLB_NO_CHECK_LIST
    uint32_t every_ms; /* plb_backend's check_every_ms; any thread reads it, and the next ones */
#endif
#ifndef PLB_NO_PROBE_INFO
    uint32_t flips;
#endif
#ifndef PLB_NO_SHARES
    uint32_t ramp_ms; /* when its share began to grow; the lower half of the timers' clock */
    bool ramping;     /* is it growing? */
#endif
#ifndef PLB_NO_CHECK_LIST
    uint8_t checks; /* plb_backend's */
#endif
} plb__care;

/* What follows it has pointers. */
#define PLB__CARE_SIZE ((sizeof(plb__care) + sizeof(void *) - 1) / sizeof(void *) * sizeof(void *))
#else
typedef struct plb__care plb__care;
#define PLB__CARE_SIZE 0
#endif

/* One per (address, id). Allocated just as long as its address and name need; before it in the same allocation stand
   its care and its checks, its record, then what the strategy keeps for it, next to what is read with it. */
typedef struct plb__slot {
    /* any thread */
    uint32_t in_flight;
    uint32_t flags;
#ifndef PLB_NO_LIMITS
    uint32_t max_conns;
#endif
    uint32_t index; /* a hint: where it stands in the current set */
    /* set once */
    uint32_t id;
    uint16_t lead; /* bytes of this allocation before this struct */
    uint8_t data;  /* how many of them are the strategy's, in units of PLB__SLOT_UNIT */
    uint8_t share; /* of its weight, in 255ths, as it starts slowly or its agent advises; any thread reads it */
#ifndef PLB_NO_NAMES
    const char *name;
#endif
    void *ext;
    void (*ext_release)(void *ext);
    union {
        struct {
            uint32_t number;  /* set once */
            uint32_t holders; /* sets and probes; the polling thread's, like the next one */
            struct plb__slot *next_departed;
        } control;
        plb_allocator estate; /* once the balancer is gone: where to give the memory back */
    } u;
    plb_addr addr; /* only plb__addr_used bytes of it; then the name */
} plb__slot;

static size_t plb__name_size(const char *name)
{
    return name != NULL ? strlen(name) + 1 : 0;
}

PLB__INLINE const char *plb__name_of(const plb_backend *backend)
{
    (void)backend;
    return PLB__IF_NAMES(backend->name, NULL);
}

PLB__INLINE const char *plb__slot_name(const plb__slot *slot)
{
    (void)slot;
    return PLB__IF_NAMES(slot->name, NULL);
}

PLB__INLINE uint32_t plb__limit_of(const plb_backend *backend)
{
    (void)backend;
    return PLB__IF_LIMITS(backend->max_conns, 0);
}

PLB__INLINE uint32_t plb__checks_of(const plb_backend *backend)
{
    (void)backend;
    return PLB__IF_CHECK_LIST(backend->checks, 0);
}

PLB__INLINE bool plb__is_absent(const plb__vital *vital)
{
    (void)vital;
    return PLB__IF_CHECK_LIST(vital->absent, false);
}

PLB__INLINE uint32_t plb__weight_of(const plb_backend *backend)
{
    (void)backend;
    return PLB__IF_WEIGHTS(backend->weight, 1);
}

PLB__INLINE uint32_t plb__priority_of(const plb_backend *backend)
{
    (void)backend;
    return PLB__IF_TIERS(backend->priority, 0);
}

/* Copies a text to *at, which moves on. NULL stays NULL. */
static const char *plb__copy_text(char **at, const char *text)
{
    size_t size = plb__name_size(text);
    char *copy = *at;
    if (text == NULL)
        return NULL;
    memcpy(copy, text, size);
    *at += size;
    return copy;
}

static void plb__release_ext(void *ext, void (*release)(void *ext))
{
    if (ext != NULL && release != NULL)
        release(ext);
}

/* Bytes before a slot for something of that size: a multiple of what malloc and the slot itself are aligned to. */
#define PLB__SLOT_UNIT       (2 * sizeof(void *))
#define PLB__SLOT_LEAD(size) (((size) + PLB__SLOT_UNIT - 1) / PLB__SLOT_UNIT * PLB__SLOT_UNIT)

/* What the strategy keeps for a slot. */
PLB__INLINE void *plb__slot_data(plb__slot *slot)
{
    return slot->data > 0 ? (char *)slot - (size_t)slot->data * PLB__SLOT_UNIT : NULL;
}

/* NULL: nothing watches it. */
static plb__care *plb__slot_care(const plb__slot *slot)
{
    if (slot->lead == slot->data * PLB__SLOT_UNIT)
        return NULL;
    return (plb__care *)((uintptr_t)slot - slot->lead);
}

/* The first of its checks. */
static plb__vital *plb__slot_vitals(plb__slot *slot)
{
    return (plb__vital *)(void *)((char *)slot - slot->lead + PLB__CARE_SIZE);
}

/* A slot without its ext: that is handed over when the update is certain. `lead` and `data`, of which the strategy's is
   a part, are results of PLB__SLOT_LEAD, so what follows is aligned. */
static plb__slot *plb__slot_new(const plb_allocator *a, const plb_backend *backend, size_t lead, size_t data)
{
    size_t addr_size = plb__addr_used(&backend->addr), name_size = plb__name_size(plb__name_of(backend));
    char *memory = (char *)plb__new(a, lead + offsetof(plb__slot, addr) + addr_size + name_size);
    plb__slot *slot = (plb__slot *)(void *)(memory + lead);
    const char *name;
    char *end;
    if (memory == NULL)
        return NULL;
    slot->lead = (uint16_t)lead;
    slot->data = (uint8_t)(data / PLB__SLOT_UNIT);
    slot->share = PLB__SHARE_ALL;
    slot->id = backend->id;
    plb__addr_copy(&slot->addr, &backend->addr);
    end = (char *)&slot->addr + addr_size;
    name = plb__copy_text(&end, plb__name_of(backend));
    PLB__IF_NAMES(slot->name = name, (void)name);
    return slot;
}

static void plb__slot_delete(const plb_allocator *a, plb__slot *slot)
{
    size_t size = slot->lead + offsetof(plb__slot, addr) + plb__addr_used(&slot->addr);
    plb__release_ext(slot->ext, slot->ext_release);
    plb__delete(a, (char *)slot - slot->lead, size + plb__name_size(plb__slot_name(slot)));
}

/* Changes the limit. The bit stands beside the count, so that a count that was changed without a look at the limit was
   changed before the bit was set, and is seen by the caller's look at the slot afterwards. */
static void plb__slot_limit(plb__slot *slot, uint32_t max_conns)
{
    bool limited = (PLB__LOAD(&slot->in_flight) & PLB__LIMITED) != 0;
    PLB__IF_LIMITS(PLB__STORE(&slot->max_conns, max_conns), (void)0);
    if (limited != (max_conns != 0))
        plb__fetch_add(&slot->in_flight, max_conns != 0 ? PLB__LIMITED : 0 - PLB__LIMITED);
}

PLB__INLINE uint32_t plb__slot_max_conns(const plb__slot *slot)
{
    (void)slot;
    return PLB__IF_LIMITS(PLB__LOAD(&slot->max_conns), 0);
}

/* How much of its weight it takes. */
PLB__INLINE uint32_t plb__slot_share(const plb__slot *slot)
{
    (void)slot;
    return PLB__IF_SHARES(PLB__LOAD(&slot->share), PLB__SHARE_ALL);
}

/* Everything that a view shows of a slot, in one number: flags, whether it is full, whether its share is partial. */
static uint32_t plb__slot_state(plb__slot *slot)
{
    uint32_t max_conns = plb__slot_max_conns(slot), state = PLB__LOAD(&slot->flags);
    if (max_conns != 0 && (PLB__LOAD(&slot->in_flight) & PLB__COUNT_MASK) >= max_conns)
        state |= PLB__FULL;
    if (plb__slot_share(slot) != PLB__SHARE_ALL)
        state |= PLB__PARTIAL;
    return state;
}

static int plb__identity_compare(const plb_addr *a, uint32_t a_id, const plb_addr *b, uint32_t b_id)
{
    int order = plb_addr_compare(a, b);
    return order != 0 || a_id == b_id ? order : a_id < b_id ? -1 : 1;
}

/* ==== SET AND VIEW ===================================================================================================
   A set's memory, its readiness bits and how they follow the slots, and what strategies may see of it. */

/* Bitmaps use the lower half of each word. Of readiness, the upper half counts how often a bit was put out. */
#define PLB__WORD_BITS ((uint32_t)(sizeof(uintptr_t) * 4))
#define PLB__ONE_OUT   ((uintptr_t)1 << PLB__WORD_BITS)
#define PLB__BITS      (PLB__ONE_OUT - 1)

/* Small systems copy addresses from the slots themselves. */
#if PLB__SMALL || (defined(PLB_NO_IPV6) && defined(PLB_NO_UNIX))
#define PLB__NO_COMPACT
#endif

#ifndef PLB__NO_COMPACT
/* An IPv4 address in 8 bytes, so that copying it out does not fetch the slot: a plb_addr without its scope, which is 0.
   Other families: all zero. */
typedef struct plb__compact {
    uint8_t family, path_len;
    uint16_t port;
    uint8_t v4[4];
} plb__compact;
#define PLB__COMPACT_SIZE sizeof(plb__compact)
#else
#define PLB__COMPACT_SIZE 0
#endif

/* One tier of a set as its strategy sees it. Fixed when built, but for the readiness: bits, and what follows from them.
   The ready backends also stand in a list, in no order, so that one can be drawn in one step; the bits are the truth,
   and the list may lag behind them. */
struct plb_view {
    uint32_t count;
    uint32_t ready_count;
    uint32_t ready_weight;
    uint32_t partial_count; /* backends that have less than their full share */
    uintptr_t *ready;
    void *state; /* the strategy's */
#ifndef PLB__NO_COMPACT
    plb__compact *addrs;
#endif
    plb__slot **slots;
#ifndef PLB_NO_WEIGHTS
    uint16_t *weights;
#endif
#ifndef PLB_NO_DRAW
    uint32_t *list;
    uint32_t listed;       /* backends in the list */
    uint32_t list_changes; /* since the thread began that is at the list; 0: none is */
    uint32_t list_behind;  /* 1: all of it must be looked through */
    uint32_t *places;      /* in the list, by index, plus 1; 0: not there */
#endif
    uint32_t words; /* of each bitmap */
    uint32_t weight_sum;
    uint32_t weight_min, weight_max; /* of those above 0 */
};

/* Which backends count in a tier: enabled and of a weight above 0; healthy too; of partial share. */
enum { PLB__BITS_USABLE, PLB__BITS_HEALTHY, PLB__BITS_PARTIAL, PLB__BITMAPS };

typedef struct plb__tier {
    plb_view view;
    void *table; /* the strategy's */
    uint32_t priority;
    uint32_t start;   /* its first backend in the set */
    uint32_t usable;  /* how many bits there are */
    uint32_t healthy; /* the same */
    uint32_t panic;   /* 1: so few are healthy that health is ignored */
    uint32_t cursor;  /* the polling thread's, while it compares the set with an answer */
    uintptr_t *bits[PLB__BITMAPS];
} plb__tier;

/* Sets are published whole. One allocation holds the set, its tiers and their arrays. */
typedef struct plb__set {
    const plb_strategy_ops *strategy;
    void *strategy_state;
    bool simple; /* one tier, with backends, and a strategy that picks by itself */
    uint32_t count;
    uint32_t active; /* the tier that picks come from */
    uint32_t tier_count;
    uint32_t panic_percent;
    size_t size; /* of this allocation */
    plb__slot **slots;
#ifndef PLB_NO_WEIGHTS
    uint16_t *weights;
#endif
    plb__tier tiers[1]; /* tier_count of them */
} plb__set;

/* Where nothing needs them, neither bits nor numbers of tiers are kept. */
PLB__INLINE bool plb__has_bits(int which)
{
    return which == PLB__BITS_PARTIAL ? PLB__IF_SHARES(true, false) : PLB__IF_TIERS(true, false);
}

PLB__INLINE uint32_t plb__set_tiers(const plb__set *set)
{
    (void)set;
    return PLB__IF_TIERS(set->tier_count, 1);
}

PLB__INLINE uint32_t plb__set_weight(const plb__set *set, size_t index)
{
    (void)set;
    (void)index;
    return PLB__IF_WEIGHTS(set->weights[index], 1);
}

/* The tier that picks come from. */
PLB__INLINE const plb__tier *plb__set_active(const plb__set *set)
{
    return &set->tiers[PLB__IF_TIERS(PLB__LOAD_RELAXED(&set->active), 0)];
}

PLB__INLINE uint32_t plb__view_weight(const plb_view *view, uint32_t index)
{
    (void)view;
    (void)index;
    return PLB__IF_WEIGHTS(view->weights[index], 1);
}

PLB__INLINE uint32_t plb__tier_priority(const plb__tier *tier)
{
    (void)tier;
    return PLB__IF_TIERS(tier->priority, 0);
}

PLB__INLINE uint32_t plb__tier_panics(const plb__tier *tier)
{
    (void)tier;
    return PLB__IF_TIERS(PLB__LOAD(&tier->panic), 0);
}

static uint32_t plb__words(uint32_t bits)
{
    return (bits + PLB__WORD_BITS - 1) / PLB__WORD_BITS;
}

/* Takes `count` things of `size` from the memory at *at. */
static void *plb__carve(char **at, size_t count, size_t size)
{
    char *taken = *at;
    *at += count * size;
    return taken;
}

/* What is copied from the slots, to be read in one place; and the list of those that are ready. */
static void plb__view_carve(plb_view *view, char **at)
{
    (void)view;
    (void)at;
#ifndef PLB__NO_COMPACT
    view->addrs = (plb__compact *)plb__carve(at, view->count, sizeof(plb__compact));
#endif
    PLB__IF_DRAW(view->list = (uint32_t *)plb__carve(at, view->count, sizeof(uint32_t)), (void)0);
    PLB__IF_DRAW(view->places = (uint32_t *)plb__carve(at, view->count, sizeof(uint32_t)), (void)0);
}

/* A set of `tier_count` tiers, one at least, whose sizes are `counts`. */
static plb__set *plb__set_new(const plb_allocator *a, const uint32_t *counts, uint32_t tier_count)
{
    size_t count = 0, words = 0, size, each = sizeof(plb__slot *) + PLB__IF_WEIGHTS(sizeof(uint16_t), 0);
    plb__set *set;
    uint32_t t;
    char *at;
    for (t = 0; t < tier_count; t++) {
        count += counts[t];
        words += plb__words(counts[t]);
    }
    size = sizeof *set + (tier_count - 1) * sizeof(plb__tier);
    size += words * (1 + PLB__IF_TIERS(2, 0) + PLB__IF_SHARES(1, 0)) * sizeof(uintptr_t);
    size += count * (each + PLB__COMPACT_SIZE + PLB__IF_DRAW(2 * sizeof(uint32_t), 0));
    set = (plb__set *)plb__new(a, size);
    if (set == NULL)
        return NULL;
    set->size = size;
    set->count = (uint32_t)count;
    set->tier_count = tier_count;
    at = (char *)(set->tiers + tier_count);
    set->slots = (plb__slot **)plb__carve(&at, count, sizeof(plb__slot *));
    for (t = 0, count = 0; t < tier_count; count += counts[t++]) {
        plb__tier *tier = &set->tiers[t];
        plb_view *view = &tier->view;
        int b;
        tier->start = (uint32_t)count;
        view->count = counts[t];
        view->words = plb__words(counts[t]);
        view->slots = set->slots + count;
        view->ready = (uintptr_t *)plb__carve(&at, view->words, sizeof(uintptr_t));
        for (b = 0; b < PLB__BITMAPS; b++)
            if (plb__has_bits(b))
                tier->bits[b] = (uintptr_t *)plb__carve(&at, view->words, sizeof(uintptr_t));
    }
    for (t = 0; t < tier_count; t++)
        plb__view_carve(&set->tiers[t].view, &at);
    PLB__IF_WEIGHTS(set->weights = (uint16_t *)plb__carve(&at, set->count, sizeof(uint16_t)), (void)0);
    for (t = 0; t < tier_count; t++)
        PLB__IF_WEIGHTS(set->tiers[t].view.weights = set->weights + set->tiers[t].start, (void)0);
    return set;
}

#ifndef PLB__NO_COMPACT
static void plb__compact_fill(plb_view *view, uint32_t index, const plb_addr *addr)
{
    plb__compact compact;
    if (addr->family != PLB_FAMILY_IPV4)
        return;
    memset(&compact, 0, sizeof compact);
    compact.family = PLB_FAMILY_IPV4;
    compact.port = addr->port;
    memcpy(compact.v4, addr->u.v4, sizeof compact.v4);
    view->addrs[index] = compact;
}

PLB__RARE void plb__view_copy_slot_addr(const plb_view *view, uint32_t index, plb_addr *out)
{
    plb__addr_copy(out, &view->slots[index]->addr);
}

PLB__INLINE void plb__view_copy_addr(const plb_view *view, uint32_t index, plb_addr *out)
{
    const plb__compact *compact = &view->addrs[index];
    if (PLB__LIKELY(compact->family == PLB_FAMILY_IPV4)) {
        memcpy(out, compact, offsetof(plb__compact, v4)); /* family, path_len (or what fills its place), port */
        PLB__IF_IPV6(out->scope = 0, (void)0);
        memcpy(out->u.v4, compact->v4, sizeof compact->v4);
    } else {
        plb__view_copy_slot_addr(view, index, out);
    }
}
#else
PLB__INLINE void plb__compact_fill(plb_view *view, uint32_t index, const plb_addr *addr)
{
    (void)view;
    (void)index;
    (void)addr;
}

PLB__INLINE void plb__view_copy_addr(const plb_view *view, uint32_t index, plb_addr *out)
{
    plb__addr_copy(out, &view->slots[index]->addr);
}
#endif

/* Puts a backend in its place, in a set that nobody sees yet. */
static void plb__set_fill(plb__tier *tier, uint32_t index, plb__slot *slot, uint32_t weight)
{
    plb_view *view = &tier->view;
    view->slots[index] = slot;
    PLB__IF_WEIGHTS(view->weights[index] = (uint16_t)weight, (void)0);
    view->weight_sum += weight;
    if (weight > view->weight_max)
        view->weight_max = weight;
    if (weight > 0 && (view->weight_min == 0 || weight < view->weight_min))
        view->weight_min = weight;
    plb__compact_fill(view, index, &slot->addr);
}

static void plb__bit_fill(plb__tier *tier, int which, uint32_t *count, uint32_t index, bool on)
{
    if (!plb__has_bits(which))
        return;
    tier->bits[which][index / PLB__WORD_BITS] |= (uintptr_t)on << index % PLB__WORD_BITS;
    *count += on;
}

/* The list of those that are ready, of a set that nobody sees yet. */
PLB__INLINE void plb__list_fill(plb_view *view, uint32_t index)
{
    (void)view;
    (void)index;
    PLB__IF_DRAW(view->places[index] = view->listed + 1, (void)0);
    PLB__IF_DRAW(view->list[view->listed++] = index, (void)0);
}

static uint32_t plb__should_panic(const plb__set *set, const plb__tier *tier)
{
    uint64_t healthy = PLB__LOAD(&tier->healthy), usable = PLB__LOAD(&tier->usable);
    return PLB__IF_TIERS(healthy * 100 < usable * set->panic_percent, ((void)healthy, (void)usable, (void)set, 0));
}

/* The readiness of a set that nobody sees yet, all at once. */
PLB__ONCE void plb__set_fill_ready(const plb__set *set, plb__tier *tier)
{
    plb_view *view = &tier->view;
    uint32_t i;
    for (i = 0; i < view->count; i++) {
        uint32_t state = plb__slot_state(view->slots[i]);
        bool usable = plb__view_weight(view, i) > 0 && (state & PLB__OFF) == 0;
        plb__bit_fill(tier, PLB__BITS_USABLE, &tier->usable, i, usable);
        plb__bit_fill(tier, PLB__BITS_HEALTHY, &tier->healthy, i, usable && (state & PLB__UNFIT) == 0);
        plb__bit_fill(tier, PLB__BITS_PARTIAL, &view->partial_count, i, (state & PLB__PARTIAL) != 0);
    }
    tier->panic = plb__should_panic(set, tier);
    for (i = 0; i < view->count; i++) {
        uint32_t bars = PLB__OFF | PLB__FULL | (tier->panic != 0 ? 0 : PLB__UNFIT);
        if (plb__view_weight(view, i) == 0 || (plb__slot_state(view->slots[i]) & bars) != 0)
            continue;
        view->ready[i / PLB__WORD_BITS] |= (uintptr_t)1 << i % PLB__WORD_BITS;
        view->ready_count++;
        view->ready_weight += plb__view_weight(view, i);
        plb__list_fill(view, i);
    }
}

PLB__INLINE bool plb__bit(const uintptr_t *words, uint32_t index)
{
    return (PLB__LOAD_RELAXED(&words[index / PLB__WORD_BITS]) >> index % PLB__WORD_BITS & 1) != 0;
}

PLB__INLINE bool plb__view_ready(const plb_view *view, uint32_t index)
{
    return plb__bit(view->ready, index);
}

PLB_API uint32_t plb_view_count(const plb_view *view)
{
    return view->count;
}

PLB_API uint32_t plb_view_weight(const plb_view *view, uint32_t index)
{
    return plb__view_weight(view, index);
}

PLB_API uint32_t plb_view_weight_sum(const plb_view *view)
{
    return view->weight_sum;
}

PLB_API void plb_view_addr(const plb_view *view, uint32_t index, plb_addr *out)
{
    plb__view_copy_addr(view, index, out);
}

PLB_API bool plb_view_ready(const plb_view *view, uint32_t index)
{
    return plb__view_ready(view, index);
}

PLB_API uint32_t plb_view_ready_count(const plb_view *view)
{
    return PLB__LOAD_RELAXED(&view->ready_count);
}

PLB_API uint32_t plb_view_ready_weight(const plb_view *view)
{
    return PLB__LOAD_RELAXED(&view->ready_weight);
}

PLB_API void *plb_view_state(const plb_view *view)
{
    return view->state;
}

PLB_API void *plb_view_data(const plb_view *view, uint32_t index)
{
    return plb__slot_data(view->slots[index]);
}

PLB_API uint32_t plb_view_ready_nth(const plb_view *view, uint32_t nth)
{
    uint32_t w;
    for (w = 0; w < view->words; w++) {
        uintptr_t word = PLB__LOAD_RELAXED(&view->ready[w]) & PLB__BITS;
        uint32_t ones = plb__count_ones(word);
        if (nth >= ones) {
            nth -= ones;
            continue;
        }
        for (; nth > 0; nth--)
            word &= word - 1;
        return w * PLB__WORD_BITS + plb__lowest_one(word);
    }
    return PLB_NONE;
}

/* The first ready backend at or after an index, wrapping, or PLB_NONE. */
PLB__INLINE uint32_t plb__view_ready_after(const plb_view *view, uint32_t index)
{
    uint32_t w = index / PLB__WORD_BITS, tries = view->words;
    uintptr_t word = PLB__LOAD_RELAXED(&view->ready[w]) & PLB__BITS & PLB__BITS << index % PLB__WORD_BITS;
    for (;; tries--) {
        if (PLB__LIKELY(word != 0))
            return w * PLB__WORD_BITS + plb__lowest_one(word);
        if (tries == 0 || PLB__LOAD_RELAXED(&view->ready_count) == 0)
            return PLB_NONE;
        w = w + 1 < view->words ? w + 1 : 0;
        word = PLB__LOAD_RELAXED(&view->ready[w]) & PLB__BITS;
    }
}

PLB_API uint32_t plb_view_ready_after(const plb_view *view, uint32_t index)
{
    return plb__view_ready_after(view, index);
}

#ifndef PLB_NO_DRAW
/* A ready backend at random, each as likely as its weight says, by going through all of them. */
PLB__RARE uint32_t plb__view_draw_slowly(const plb_view *view, plb_reader *reader)
{
    uint32_t place = (uint32_t)((plb__random(reader) >> 32) * PLB__LOAD_RELAXED(&view->ready_weight) >> 32), w;
    for (w = 0; w < view->words; w++) {
        uintptr_t word = PLB__LOAD_RELAXED(&view->ready[w]) & PLB__BITS;
        for (; word != 0; word &= word - 1) {
            uint32_t index = w * PLB__WORD_BITS + plb__lowest_one(word);
            if (place < view->weights[index])
                return index;
            place -= view->weights[index];
        }
    }
    return plb__view_ready_after(view, 0); /* some ceased to be ready meanwhile */
}

/* Where weights differ, a draw is taken back with a probability that makes lighter backends come up more seldom. Four
   draws are made at a time, since they take less than a branch that cannot be foreseen; after so many rounds in vain,
   as where one backend is heavy among many light ones, all are gone through. */
#define PLB__DRAW_ROUNDS 8

PLB__RARE uint32_t plb__draw_by_weight(const plb_view *view, plb_reader *reader, uint32_t listed)
{
    uint32_t round, i, drawn[4] = {0, 0, 0, 0};
    for (round = 0; round < PLB__DRAW_ROUNDS; round++) {
        uint32_t kept = 0;
        for (i = 0; i < 4; i++) {
            uint64_t random = plb__random(reader);
            uint32_t index = PLB__LOAD_RELAXED(&view->list[(random >> 32) * listed >> 32]);
            kept |= (uint32_t)((random & UINT32_MAX) * view->weight_max >> 32 < view->weights[index]) << i;
            drawn[i] = index;
        }
        if (PLB__LIKELY(kept != 0)) {
            i = drawn[plb__lowest_one(kept)];
            return PLB__LIKELY(plb__view_ready(view, i)) ? i : plb__view_ready_after(view, i);
        }
    }
    return plb__view_draw_slowly(view, reader);
}

PLB__INLINE uint32_t plb__view_draw(const plb_view *view, plb_reader *reader)
{
    uint32_t listed = PLB__LOAD_RELAXED(&view->listed), index;
    if (PLB__UNLIKELY(listed == 0))
        return plb__view_ready_after(view, 0);
    if (view->weight_min != view->weight_max)
        return plb__draw_by_weight(view, reader, listed);
    index = PLB__LOAD_RELAXED(&view->list[(plb__random(reader) >> 32) * listed >> 32]);
    return PLB__LIKELY(plb__view_ready(view, index)) ? index : plb__view_ready_after(view, index);
}

PLB_API uint32_t plb_view_draw(const plb_view *view, plb_reader *reader)
{
    return plb__view_draw(view, reader);
}

/* Is less than a quarter of it ready? */
PLB__INLINE bool plb__view_is_sparse(const plb_view *view)
{
    return PLB__LOAD_RELAXED(&view->ready_count) < (view->count + 3) / 4;
}

/* Places that a key without a limit tries while enough backends are ready: so most keys that have moved stay where they
   are when another backend fails. Hashing a hash again takes six times as long as this, so the faithful sequence is
   kept for those who set a limit. */
#define PLB__KEYED_TRIES 16

/* A ready backend for the hash of a key, the same as long as nothing changes. When few are ready it is drawn by the
   hash, which needs no trying; which one that is depends on the order in which they became ready. */
PLB__RARE uint32_t plb__keyed_rest(const plb_view *view, uint64_t hash)
{
    uint32_t tries, index = 0;
    if (plb__view_is_sparse(view)) {
        plb_reader lots;
        memset(&lots, 0, sizeof lots);
        lots.random = hash;
        return plb__view_draw(view, &lots);
    }
    hash = plb__mix(hash);
    for (tries = 0; tries < PLB__KEYED_TRIES; tries++, hash *= PLB__GOLDEN) {
        index = (uint32_t)((hash >> 32) * view->count >> 32);
        if (plb__view_ready(view, index))
            return index;
    }
    return plb__view_ready_after(view, index);
}
#endif

PLB_API uint32_t plb_view_in_flight(const plb_view *view, uint32_t index)
{
    return PLB__LOAD_RELAXED(&view->slots[index]->in_flight) & PLB__COUNT_MASK;
}

PLB_API uint32_t plb_view_slot(const plb_view *view, uint32_t index)
{
    return view->slots[index]->u.control.number;
}

#ifndef PLB_NO_DRAW
/* Puts a backend into the list or takes it out, as its bit says. */
static void plb__list_follow(plb_view *view, uint32_t index)
{
    uint32_t place = view->places[index], listed = view->listed;
    if (plb__view_ready(view, index) == (place != 0))
        return;
    if (place == 0) {
        view->places[index] = listed + 1;
        PLB__STORE_RELAXED(&view->list[listed], index);
        PLB__STORE_RELAXED(&view->listed, listed + 1);
    } else { /* the last one takes its place; for a moment it stands twice */
        uint32_t last = view->list[listed - 1];
        view->places[last] = place;
        PLB__STORE_RELAXED(&view->list[place - 1], last);
        PLB__STORE_RELAXED(&view->listed, listed - 1);
        view->places[index] = 0;
    }
}

/* How often a thread goes over the whole list because others keep changing bits, before it leaves it behind. */
#define PLB__LIST_ROUNDS 2u

/* Brings the list up to date after the bit at `index` changed. One thread at a time does so; another that comes
   meanwhile leaves word, and the one at work then goes over the whole list. So nobody waits; and nobody is kept at it
   for long: a list that is left behind is seen to by the next change, or by plb_poll. */
static void plb__list_changed(plb_view *view, uint32_t index)
{
    uint32_t seen = 1, changes, i, rounds = 0;
    if (plb__fetch_add(&view->list_changes, 1) != 0)
        return;
    if (PLB__LOAD(&view->list_behind) != 0) {
        PLB__STORE(&view->list_behind, 0);
        for (i = 0; i < view->count; i++)
            plb__list_follow(view, i);
    }
    plb__list_follow(view, index);
    while ((changes = plb__fetch_add(&view->list_changes, 0u - seen)) != seen) {
        seen = changes - seen;
        if (rounds++ == PLB__LIST_ROUNDS)
            PLB__STORE(&view->list_behind, 1);
        for (i = 0; i < view->count && rounds <= PLB__LIST_ROUNDS; i++)
            plb__list_follow(view, i);
    }
}
#else
PLB__INLINE void plb__list_changed(plb_view *view, uint32_t index)
{
    (void)view;
    (void)index;
}
#endif

/* Sets or clears a bit; did that change it? */
static bool plb__bit_put(uintptr_t *words, uint32_t index, bool on)
{
    uintptr_t bit = (uintptr_t)1 << index % PLB__WORD_BITS, *word = &words[index / PLB__WORD_BITS];
    if (((PLB__LOAD(word) & bit) != 0) == on)
        return false;
    return ((on ? plb__fetch_or(word, bit) : plb__fetch_and(word, ~bit)) & bit) == (on ? 0 : bit);
}

/* A bit, and the number of those that are set. */
static void plb__bit_count(plb__tier *tier, int which, uint32_t *count, uint32_t index, bool on)
{
    if (plb__has_bits(which) && plb__bit_put(tier->bits[which], index, on))
        plb__fetch_add(count, on ? 1 : UINT32_MAX);
}

/* Puts a bit of readiness on, if none of its word was put out since the word was `seen`. */
static bool plb__ready_on(plb_view *view, uint32_t index, uintptr_t seen)
{
    bool on;
    plb__fetch_add(&view->ready_weight, plb__view_weight(view, index));
    plb__fetch_add(&view->ready_count, 1);
    on = plb__cas(&view->ready[index / PLB__WORD_BITS], seen, seen | (uintptr_t)1 << index % PLB__WORD_BITS);
    if (!on) {
        plb__fetch_add(&view->ready_count, UINT32_MAX);
        plb__fetch_add(&view->ready_weight, 0u - plb__view_weight(view, index));
    }
    return on;
}

/* Puts it out, and says whether it was on. */
static bool plb__ready_out(plb_view *view, uint32_t index)
{
    uintptr_t bit = (uintptr_t)1 << index % PLB__WORD_BITS, *word = &view->ready[index / PLB__WORD_BITS], seen;
    do
        seen = PLB__LOAD(word);
    while (!plb__cas(word, seen, (seen & ~bit) + PLB__ONE_OUT));
    if ((seen & bit) == 0)
        return false;
    plb__fetch_add(&view->ready_count, UINT32_MAX);
    plb__fetch_add(&view->ready_weight, 0u - plb__view_weight(view, index));
    return true;
}

/* Makes a bit of readiness say so; false: another thread was faster. `seen` is its word as it was before the state was
   read that decided: so a thread that is held up in between never shows as ready what has been put out meanwhile, not
   even for a moment. The count goes up before the bits do, and down after them: too high for a while, never too low,
   which would hide a backend that is ready. */
static bool plb__view_set_ready(const plb__set *set, plb__tier *tier, uint32_t index, uintptr_t seen, bool ready)
{
    plb_view *view = &tier->view;
    bool is_on = (seen >> index % PLB__WORD_BITS & 1) != 0;
    if (ready && is_on)
        return true;
    if (ready ? !plb__ready_on(view, index, seen) : !plb__ready_out(view, index))
        return !ready;
    plb__list_changed(view, index);
    if (set->strategy->flipped != NULL)
        set->strategy->flipped(set->strategy_state, tier->table, view, index, ready);
    return true;
}

/* Makes one entry say what its slot says. Several threads may be at it: who writes last looks again afterwards, so the
   last word is right. Going round again means that another thread got on with its work. */
static void plb__entry_sync(const plb__set *set, plb__tier *tier, uint32_t index)
{
    plb__slot *slot = tier->view.slots[index];
    uint32_t state, panic;
    bool done;
    do {
        uintptr_t seen = PLB__LOAD(&tier->view.ready[index / PLB__WORD_BITS]);
        bool usable, healthy;
        state = plb__slot_state(slot);
        panic = plb__tier_panics(tier);
        usable = plb__view_weight(&tier->view, index) > 0 && (state & PLB__OFF) == 0;
        healthy = usable && (state & PLB__UNFIT) == 0;
        plb__bit_count(tier, PLB__BITS_USABLE, &tier->usable, index, usable);
        plb__bit_count(tier, PLB__BITS_HEALTHY, &tier->healthy, index, healthy);
        plb__bit_count(tier, PLB__BITS_PARTIAL, &tier->view.partial_count, index, (state & PLB__PARTIAL) != 0);
        done = plb__view_set_ready(set, tier, index, seen,
                                   (healthy || (usable && panic != 0)) && (state & PLB__FULL) == 0);
    } while (!done || plb__slot_state(slot) != state || plb__tier_panics(tier) != panic);
}

/* The first tier with a healthy backend that is ready; else the first that panics; else the first. */
static uint32_t plb__choose_tier(const plb__set *set)
{
    uint32_t t, panicking = 0;
    for (t = plb__set_tiers(set); t-- > 0;)
        if (PLB__LOAD(&set->tiers[t].view.ready_count) > 0)
            panicking = t;
    for (t = 0; t < plb__set_tiers(set); t++)
        if (PLB__LOAD(&set->tiers[t].view.ready_count) > 0 && PLB__LOAD(&set->tiers[t].healthy) > 0)
            return t;
    return panicking;
}

/* After entries were brought up to date: what follows from them for the tier, and for the set. */
static void plb__tier_sync(plb__set *set, plb__tier *tier)
{
    uint32_t wanted, i;
    if (PLB__IF_TIERS(false, true))
        return;
    while ((wanted = plb__should_panic(set, tier)) != PLB__LOAD(&tier->panic)) {
        PLB__STORE(&tier->panic, wanted);
        for (i = 0; i < tier->view.count; i++)
            plb__entry_sync(set, tier, i);
    }
    while ((wanted = plb__choose_tier(set)) != PLB__LOAD(&set->active))
        PLB__STORE(&set->active, wanted);
}

static int plb__entry_compare(const plb_view *view, uint32_t index, const plb_addr *addr, uint32_t id)
{
    const plb__slot *slot = view->slots[index];
    return plb__identity_compare(&slot->addr, slot->id, addr, id);
}

#ifndef PLB__NO_COMPACT
/* IPv4 addresses as numbers in their order; other families stand behind them. */
PLB__INLINE uint64_t plb__v4_rank(uint8_t family, const uint8_t *v4, uint16_t port)
{
    if (family != PLB_FAMILY_IPV4)
        return UINT64_MAX;
    return (uint64_t)v4[0] << 40 | (uint64_t)v4[1] << 32 | (uint64_t)v4[2] << 24 | (uint64_t)v4[3] << 16 | port;
}

/* Where an IPv4 address would stand, without a look at the slots and without a branch that depends on what is found. */
static uint32_t plb__view_find_rank(const plb_view *view, uint64_t rank)
{
    uint32_t low = 0, left = view->count;
    while (left > 0) {
        uint32_t half = left / 2;
        const plb__compact *compact = &view->addrs[low + half];
        bool before = plb__v4_rank(compact->family, compact->v4, compact->port) < rank;
        low = before ? low + half + 1 : low;
        left = before ? left - half - 1 : half;
    }
    return low;
}

/* Narrows down where (addr, id) would stand. */
static void plb__view_narrow(const plb_view *view, const plb_addr *addr, uint32_t id, uint32_t *low, uint32_t *high)
{
    if (addr->family != PLB_FAMILY_IPV4)
        return;
    *low = plb__view_find_rank(view, plb__v4_rank(addr->family, addr->u.v4, addr->port));
    while (*low < view->count && plb__entry_compare(view, *low, addr, id) < 0)
        ++*low; /* past other ids */
    *high = *low;
}
#else
PLB__INLINE void plb__view_narrow(const plb_view *view, const plb_addr *addr, uint32_t id, uint32_t *low,
                                  uint32_t *high)
{
    (void)view;
    (void)addr;
    (void)id;
    (void)low;
    (void)high;
}
#endif

/* The first entry of (addr, id), or PLB_NONE. */
static uint32_t plb__view_find(const plb_view *view, const plb_addr *addr, uint32_t id)
{
    uint32_t low = 0, high = view->count;
    plb__view_narrow(view, addr, id, &low, &high);
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (plb__entry_compare(view, middle, addr, id) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low < view->count && plb__entry_compare(view, low, addr, id) == 0 ? low : PLB_NONE;
}

/* The same in any tier: the first that has it. */
static uint32_t plb__set_find(const plb__set *set, const plb_addr *addr, uint32_t id, const plb__tier **out)
{
    uint32_t t, index = PLB_NONE;
    for (t = 0; t < plb__set_tiers(set) && index == PLB_NONE; t++) {
        *out = &set->tiers[t];
        index = plb__view_find(&set->tiers[t].view, addr, id);
    }
    return index;
}

/* The first entry of a slot in a tier, or PLB_NONE. */
static uint32_t plb__tier_find_slot(const plb__tier *tier, plb__slot *slot)
{
    uint32_t index = PLB__LOAD_RELAXED(&slot->index) - tier->start;
    const plb_view *view = &tier->view;
    if (index < view->count && view->slots[index] == slot && (index == 0 || view->slots[index - 1] != slot))
        return index;
    index =
        PLB__IF_UPDATES(plb__view_find(view, &slot->addr, slot->id), PLB_NONE); /* the one set is where hints point */
    return index != PLB_NONE && view->slots[index] == slot ? index : PLB_NONE;
}

/* The same in any tier: the first that has it. */
static uint32_t plb__set_find_slot(const plb__set *set, plb__slot *slot, const plb__tier **out)
{
    uint32_t t, index = PLB_NONE;
    for (t = 0; t < plb__set_tiers(set) && index == PLB_NONE; t++) {
        *out = &set->tiers[t];
        index = plb__tier_find_slot(*out, slot);
    }
    return index;
}

/* Does it have the slot where the slot's hint, which publication sets right, says so? */
static bool plb__set_has_slot(const plb__set *set, const plb__slot *slot)
{
    uint32_t index = PLB__LOAD_RELAXED(&slot->index);
    return set != NULL && index < set->count && set->slots[index] == slot;
}

/* Makes a set say what a slot says, wherever it stands in it. */
static void plb__set_sync(plb__set *set, plb__slot *slot)
{
    uint32_t t, index;
    for (t = 0; t < plb__set_tiers(set); t++) {
        plb__tier *tier = &set->tiers[t];
        index = plb__tier_find_slot(tier, slot);
        if (index == PLB_NONE)
            continue;
        for (; index < tier->view.count && tier->view.slots[index] == slot; index++)
            plb__entry_sync(set, tier, index);
        plb__tier_sync(set, tier);
    }
}

#ifndef PLB_NO_UPDATES
/* The same for all of them. */
static void plb__set_sync_all(plb__set *set)
{
    uint32_t t, index;
    for (t = 0; t < plb__set_tiers(set); t++) {
        for (index = 0; index < set->tiers[t].view.count; index++)
            plb__entry_sync(set, &set->tiers[t], index);
        plb__tier_sync(set, &set->tiers[t]);
    }
}
#endif

/* ==== MAILBOX ========================================================================================================
   A list that grows by compare-and-swap and is taken whole, so that there is no ABA problem. */

enum { PLB__MAIL_DONE, PLB__MAIL_CHANGE, PLB__MAIL_SUSPECT };

typedef struct plb__mail {
    struct plb__mail *next;
    int kind;
} plb__mail;

static void plb__mail_push(uintptr_t *box, plb__mail *mail)
{
    uintptr_t head;
    do {
        head = PLB__LOAD(box);
        mail->next = (plb__mail *)head;
    } while (!plb__cas(box, head, (uintptr_t)mail));
}

/* Everything that came, oldest first. */
static plb__mail *plb__mail_take(uintptr_t *box)
{
    plb__mail *newest = (plb__mail *)plb__exchange(box, 0), *oldest = NULL;
    while (newest != NULL) {
        plb__mail *next = newest->next;
        newest->next = oldest;
        oldest = newest;
        newest = next;
    }
    return oldest;
}

/* ==== BALANCER MEMORY ================================================================================================
   Everything that a balancer consists of, by who writes it. */

/* Cells that threads own, and as many that are common. */
#ifndef PLB_READERS
#define PLB_READERS 16
#endif
#ifdef PLB_NO_THREADS
#define PLB__CELLS 1
#else
#define PLB__CELLS (2 * PLB_READERS)
#endif

#define PLB__CACHE_LINE 64

/* Where a reader says which set it reads (plb_reader.set; 0: none). */
typedef struct plb__cell {
    plb_reader reader;
    uintptr_t owner; /* the thread whose cell it is; 0: not taken, or common */
#ifndef PLB_NO_THREADS
    char pad[PLB__CACHE_LINE - sizeof(plb_reader) - sizeof(uintptr_t)];
#endif
} plb__cell;

#ifndef PLB_NO_HANDLES
/* Padded on both sides, for nobody knows what the allocator puts beside it. */
struct plb_handle {
    char before[PLB__CACHE_LINE];
    plb_reader reader;
    plb_balancer *balancer;
    uintptr_t open;
    plb_handle *next;
    char after[PLB__CACHE_LINE];
};
#endif

/* A copied list of backends: the answer of a discovery, or the argument of plb_add and its kind. Room to sort it and
   the names follow. */
typedef struct plb__list {
    size_t size; /* of this allocation */
    size_t count;
    plb_backend *backends;
    uint32_t *order;          /* indices of backends, by identity */
    uint32_t *members;        /* the same, as they stand in a set: by tier, then by identity */
    uint32_t *spare;          /* room to sort */
    struct plb__slot **slots; /* of an update: by index in backends; NULL: none is known */
} plb__list;

#ifndef PLB_NO_CHANGES
typedef struct plb__change {
    plb__mail mail;
    plb_change what;
    plb__list *list;
} plb__change;
#endif

enum { PLB__OP_FREE, PLB__OP_RUNNING, PLB__OP_COMPLETED };
#define PLB__OP_PHASES 4u /* a ticket's state is generation * PLB__OP_PHASES + phase */

/* What a token points at. Tickets are used again but never given back before plb_destroy, so that a late completion
   finds one; all else that a start needs comes and goes. */
typedef struct plb__ticket {
    uint32_t state;
    union {
        struct plb__op *op;
        struct plb__ticket *next_free;
    } u;
} plb__ticket;

#define PLB__TICKETS 8 /* allocated at a time */

typedef struct plb__tickets {
    struct plb__tickets *next;
    plb__ticket tickets[PLB__TICKETS];
} plb__tickets;

/* One check of the balancer's. */
typedef struct plb__check {
    plb_check what; /* defaults filled in; its desc may be gone */
    void *state;
} plb__check;

/* One start of a discovery or a check. A probe's own bytes follow. */
typedef struct plb__op {
    plb__mail mail;
    plb__ticket *ticket;
    plb_balancer *lb;
    struct plb__op *next_running, **running_link;
    plb_timer deadline;
    uint64_t started_us, started_ms;
    uint64_t latency_us;
#ifndef PLB_NO_UPDATES
    plb__list *answer; /* of a discovery */
#endif
    plb__slot *slot; /* of a probe, like the rest */
    uint32_t check;
    plb_report report; /* its status is a discovery's too */
#ifndef PLB_NO_LOG
    char text[PLB_REPORT_TEXT];
#endif
#ifndef PLB_NO_EXCHANGE
    bool unread; /* its exchange has more to read, in another turn */
#endif
} plb__op;

#define PLB__OP_SIZE ((sizeof(plb__op) + 15) / 16 * 16)

enum { PLB__WANT_UPDATE = 1u, PLB__WANT_CHECK = 2u, PLB__WANT_READ = 4u };

struct plb_balancer {
    /* hot: any thread */
    uintptr_t current; /* the published plb__set */
    void *strategy_state;
    const plb_strategy_ops *strategy;
    plb_env env;
    uintptr_t watches; /* 1: outlier detection is on */
#ifndef PLB_NO_THREADS
    char pad[2 * PLB__CACHE_LINE - 4 * sizeof(void *) - sizeof(plb_env)]; /* so that no reader straddles two lines */
#endif
    plb__cell cells[PLB__CELLS];
    /* other threads now and then */
    uintptr_t newest;    /* the plb__set that is published, or about to be */
    uint32_t spilled[2]; /* readers beyond those, on either side */
    uint32_t side;       /* where the next one counts itself */
    uintptr_t mailbox;
    uintptr_t wanted; /* PLB__WANT_... */
#if !defined(PLB_NO_THREADS) || !defined(PLB_NO_HANDLES)
    uintptr_t spills; /* seeds given to those, and to handles */
    uintptr_t handles;
#endif
    uint64_t seed;
    /* the polling thread */
    plb_timers timers;
    plb__check *checks;
    uint32_t check_count;
    uint32_t scheduled, schedule_capacity;
    uint64_t *schedule; /* heap of plb__task_key */
    uint32_t probes;    /* in flight */
    uint32_t unknown;   /* checks of the current set's backends without a result */
    uint64_t epoch_ms;  /* what the schedule counts from */
    plb__op *running;
    plb__mail *completions, **completions_end; /* of those, in order */
    plb__ticket *free_tickets;
    plb__tickets *tickets;
    plb__slot *departed;
    uint32_t next_number; /* of slots */
    bool first_checks_over;
#ifndef PLB_NO_LOG
    struct plb__line *line; /* that is being written; NULL: nobody listens */
#endif
#ifndef PLB_NO_UPDATES
    /* discovery */
    bool update_due, first_update_over;
    plb__op *discovery; /* running */
    void *discovery_state;
    plb__set *retired[2];
    uint32_t left[2];       /* sides of `spilled` that were seen empty since it retired, a bit each */
    uint32_t *free_numbers; /* of slots; holds numbers_capacity */
    uint32_t free_number_count, numbers_capacity;
    plb_timer update_timer;
    plb_update_info update;
#endif
#ifndef PLB_NO_CHANGES
    plb__mail *changes, **changes_end; /* queued plb__change */
    bool changes_stalled;              /* there was no memory for the first of them */
#endif
#ifndef PLB_NO_OUTLIER
    struct plb__record *ejected; /* of the current set */
    uint32_t ejected_count;
    uint32_t watched; /* slots in the current set */
    plb_timer interval_timer, return_timer;
#endif
#ifndef PLB_NO_EXCHANGE
    void *scratch; /* PLB_EXCHANGE_SIZE bytes, once an exchange needed them */
#endif
#ifndef PLB_NO_CHECK_LIST
    uint64_t jitter; /* random numbers */
#endif
#ifndef PLB_NO_TICK
    plb_timer tick_timer; /* the strategy's */
#endif
#ifndef PLB_NO_SHARES
    plb_timer ramp_timer; /* of slow starts */
#endif
    plb_task task;
    plb_balancer_desc desc; /* defaults filled in; what it points at may be gone */
};

/* The discovery that runs, or NULL. */
PLB__INLINE plb__op *plb__discovery_op(const plb_balancer *lb)
{
    (void)lb;
    return PLB__IF_UPDATES(lb->discovery, NULL);
}

/* Does anything ask for what requests meet with? */
PLB__INLINE bool plb__watches(const plb_balancer *lb)
{
    (void)lb;
    return PLB__IF_OUTLIER(lb->watches != 0, false);
}

static void plb__wake(plb_balancer *lb)
{
    if (lb->env.port.io != NULL && lb->env.port.io->wake != NULL)
        lb->env.port.io->wake(lb->env.port.io->self);
}

static uint64_t plb__now_us(const plb_balancer *lb)
{
    const plb_clock *clock = lb->env.port.clock;
    if (clock == NULL)
        return 0;
    return clock->now_us != NULL ? clock->now_us(clock->self) : clock->now_ms(clock->self) * 1000;
}

/* From an earlier reading to now; right across a wrap of 32 bits. */
static uint64_t plb__since_us(const plb_balancer *lb, uint64_t start)
{
    uint64_t now = plb__now_us(lb);
    return now >= start ? now - start : (uint32_t)(now - start);
}

static uint32_t plb__or(uint32_t value, uint32_t default_value)
{
    return value > 0 ? value : default_value;
}

static PLB__UNUSED void plb__timer_init(plb_timer *timer, void (*fn)(void *user), plb_balancer *lb)
{
    timer->fn = fn;
    timer->user = lb;
}

/* ==== LOG ============================================================================================================
   What is told to the program, a line at a time. */

/* What a status means, for those who are told. */
PLB__INLINE const char *plb__words_of(plb_status status)
{
    (void)status;
    return PLB__IF_LOG(plb_status_text(status), "");
}

#define PLB__LINE_MAX    320
#define PLB__SUMMARY_MAX 160 /* of a backend in it, so that there is room for the rest */

/* The polling thread's, one at a time; in memory of the balancer's, for stacks may be small. */
typedef struct plb__line {
    plb__text text;
    plb_log_level level;
    char buffer[PLB__LINE_MAX];
} plb__line;

#ifndef PLB_NO_LOG
/* Is so much told? */
static bool plb__logs(const plb_balancer *lb, plb_log_level level)
{
    return lb->line != NULL && level <= lb->desc.log_level;
}

/* Begins a line; NULL: nobody wants to hear of it. */
static plb__text *plb__log_begin(const plb_balancer *lb, plb_log_level level, const char *words)
{
    if (!plb__logs(lb, level))
        return NULL;
    lb->line->level = level;
    lb->line->text = plb__text_in(lb->line->buffer, sizeof lb->line->buffer);
    plb__put(&lb->line->text, words);
    return &lb->line->text;
}

static void plb__log_end(const plb_balancer *lb)
{
    lb->desc.log(lb->desc.user, lb->line->level, lb->line->buffer);
}

static void plb__log(const plb_balancer *lb, plb_log_level level, const char *words, plb_status status)
{
    plb__text *line = plb__log_begin(lb, level, words);
    if (line == NULL)
        return;
    if (status != PLB_OK) {
        plb__put(line, ": ");
        plb__put(line, plb_status_text(status));
    }
    plb__log_end(lb);
}

/* A backend as the program calls it. */
static void plb__put_backend(const plb_balancer *lb, plb__text *text, const plb_backend *backend)
{
    if (lb->desc.summary != NULL && text->length + PLB__SUMMARY_MAX < text->capacity) {
        char *summary = text->buffer + text->length;
        lb->desc.summary(lb->desc.user, backend, summary, PLB__SUMMARY_MAX);
        summary[PLB__SUMMARY_MAX - 1] = '\0';
        text->length += strlen(summary);
    } else if (backend->addr.family == PLB_FAMILY_NONE && plb__name_of(backend) != NULL) {
        plb__put(text, plb__name_of(backend));
        plb__put_port(text, backend->addr.port);
    } else {
        plb__put_addr(text, &backend->addr);
    }
}

/* "WORDS BACKEND: WHY". */
static void plb__log_backend(const plb_balancer *lb, plb_log_level level, const char *words, const plb_backend *backend,
                             const char *why)
{
    plb__text *line = plb__log_begin(lb, level, words);
    if (line == NULL)
        return;
    plb__put_char(line, ' ');
    plb__put_backend(lb, line, backend);
    if (why != NULL) {
        plb__put(line, ": ");
        plb__put(line, why);
    }
    plb__log_end(lb);
}
#else
PLB__INLINE plb__text *plb__log_begin(const plb_balancer *lb, plb_log_level level, const char *words)
{
    (void)lb;
    (void)level;
    (void)words;
    return NULL;
}

PLB__INLINE void plb__log_end(const plb_balancer *lb)
{
    (void)lb;
}

PLB__INLINE void plb__log(const plb_balancer *lb, plb_log_level level, const char *words, plb_status status)
{
    (void)lb;
    (void)level;
    (void)words;
    (void)status;
}

PLB__INLINE void plb__log_backend(const plb_balancer *lb, plb_log_level level, const char *words,
                                  const plb_backend *backend, const char *why)
{
    (void)lb;
    (void)level;
    (void)words;
    (void)backend;
    (void)why;
}
#endif

/* ==== READERS ========================================================================================================
   Hazard pointers (Michael 2004), one to a reader, taken for the time of a call. The manual says why it works.

   It works only if neither side's store can be overtaken by its load. A port that has a barrier for all threads
   (plb_barrier) lets the rare writer pay for both: the reader's store is then a relaxed one. It continues the release
   sequence of its thread's last withdrawal, so the writer, who may see it instead of the 0 before it, acquires that
   too. Without a barrier the store is sequentially consistent, as the writer's always is.

   A cell belongs to one thread for good: to that of a handle, or to the one whose thread-local byte it is named after.
   When that thread has ended, another one may get its byte, and the cell with it: no two that live have the same. A
   cell that is not 0 is in use further up, by a call that called back, was interrupted, or began a walk: then, and for
   threads beyond those, a common cell is claimed for the call by compare-and-swap. If all are claimed, readers count
   themselves in `spilled`. After fork, cells that other threads had claimed stay so in the child, which frees nothing.
   */

#ifndef PLB_NO_THREADS
/* Announces a reader in a cell that nobody else writes, and returns the set at `where`, which is lb->current or
   lb->newest; NULL, and nothing to leave, before the first one. */
PLB__INLINE plb__set *plb__announce(plb_balancer *lb, const uintptr_t *where, plb_reader *reader)
{
    uintptr_t set = PLB__LOAD_ACQUIRE(where), seen;
    do {
        seen = set;
        if (PLB__LIKELY(lb->env.port.barrier != NULL))
            PLB__STORE_RELAXED(&reader->set, seen);
        else
            PLB__STORE(&reader->set, seen);
        PLB__KEEP_ORDER();
        set = PLB__LOAD(where);
    } while (PLB__UNLIKELY(set != seen));
    return (plb__set *)set;
}

static plb__set *plb__enter_spilled(plb_balancer *lb, const uintptr_t *where, plb_hold *hold)
{
    plb__set *set;
    hold->own.set = PLB__LOAD_RELAXED(&lb->side);
    plb__fetch_add(&lb->spilled[hold->own.set], 1);
    hold->reader = &hold->own;
    hold->own.own_turn = false;
    hold->own.random = plb__mix(lb->seed + plb__fetch_add_relaxed(&lb->spills, 1) * PLB__GOLDEN);
    set = (plb__set *)PLB__LOAD(where);
    if (set == NULL)
        plb__fetch_add(&lb->spilled[hold->own.set], UINT32_MAX);
    return set;
}

PLB__INLINE void plb__withdraw(plb_reader *reader)
{
    PLB__STORE_RELEASE(&reader->set, 0);
}

#define PLB__HOMES 4u /* cells that a thread tries to own */

/* Threads run on stacks of their own, so where one stands tells them apart where there is no thread-local storage. */
PLB__INLINE uint32_t plb__spread(uintptr_t place, uint32_t cells)
{
    return (uint32_t)((uint64_t)((uint32_t)(place >> 6) * UINT32_C(2654435761)) * cells >> 32);
}

/* The cell that this thread owns, or owns from now on; NULL: none is left for it, or it is in use further up. */
static plb__cell *plb__own_cell(plb_balancer *lb, uintptr_t me)
{
    uint32_t i, home = plb__spread(me, PLB_READERS);
    for (i = 0; i < PLB__HOMES && me != 0; i++) {
        plb__cell *cell = &lb->cells[(home + i) % PLB_READERS];
        uintptr_t owner = PLB__LOAD_RELAXED(&cell->owner);
        if (owner == me || (owner == 0 && plb__cas(&cell->owner, 0, me)))
            return PLB__LOAD_ACQUIRE(&cell->reader.set) == 0 ? cell : NULL;
    }
    return NULL;
}

static plb__set *plb__enter_common(plb_balancer *lb, const uintptr_t *where, plb_hold *hold)
{
    uintptr_t set = PLB__LOAD(where);
    uint32_t tries, at = plb__spread((uintptr_t)hold >> 6, PLB_READERS);
    for (tries = set != 0 ? PLB_READERS : 0; tries > 0; tries--, at = at + 1 < PLB_READERS ? at + 1 : 0) {
        plb_reader *reader = &lb->cells[PLB_READERS + at].reader;
        if (PLB__LOAD_RELAXED(&reader->set) == 0 && plb__cas(&reader->set, 0, set)) {
            uintptr_t now;
            while (PLB__UNLIKELY((now = PLB__LOAD(where)) != set)) {
                set = now;
                PLB__STORE(&reader->set, set);
            }
            hold->reader = reader;
            return (plb__set *)set;
        }
    }
    return plb__enter_spilled(lb, where, hold);
}

PLB__RARE plb__set *plb__enter_elsewhere(plb_balancer *lb, const uintptr_t *where, plb_hold *hold)
{
    plb__cell *cell = plb__own_cell(lb, plb__thread());
    if (cell == NULL)
        return plb__enter_common(lb, where, hold);
    hold->reader = &cell->reader;
    return plb__announce(lb, where, &cell->reader);
}

/* The cell where this thread looks first, if it owns it and does not use it further up; else NULL. */
PLB__INLINE plb_reader *plb__home_reader(plb_balancer *lb)
{
    uintptr_t me = plb__thread();
    plb__cell *home = &lb->cells[plb__spread(me, PLB_READERS)];
    if (PLB__UNLIKELY(me == 0 || PLB__LOAD_RELAXED(&home->owner) != me || PLB__LOAD_ACQUIRE(&home->reader.set) != 0))
        return NULL;
    return &home->reader;
}

/* Announces a reader and returns the published set; NULL, and nothing to leave, before the first one. */
PLB__INLINE plb__set *plb__enter(plb_balancer *lb, plb_hold *hold)
{
    plb_reader *reader = plb__home_reader(lb);
    if (PLB__UNLIKELY(reader == NULL))
        return plb__enter_elsewhere(lb, &lb->current, hold);
    hold->reader = reader;
    return plb__announce(lb, &lb->current, reader);
}

#ifndef PLB_NO_HANDLES
/* As plb__enter, by a handle. An accept callback may pick by the handle that is picking: then as anybody. */
PLB__INLINE plb__set *plb__enter_by(plb_handle *handle, plb_hold *hold)
{
    if (PLB__UNLIKELY(PLB__LOAD_RELAXED(&handle->reader.set) != 0))
        return plb__enter(handle->balancer, hold);
    hold->reader = &handle->reader;
    return plb__announce(handle->balancer, &handle->balancer->current, &handle->reader);
}
#endif

PLB__INLINE void plb__leave(plb_balancer *lb, plb_hold *hold)
{
    if (PLB__UNLIKELY(hold->reader == &hold->own))
        plb__fetch_add(&lb->spilled[hold->own.set], UINT32_MAX);
    else
        plb__withdraw(hold->reader);
}
#else
/* With one thread the count is all that is needed, and not even that by a pick that calls nobody back. */
PLB__INLINE plb__set *plb__announce(plb_balancer *lb, const uintptr_t *where, plb_reader *reader)
{
    (void)lb;
    (void)reader;
    return (plb__set *)*where;
}

PLB__INLINE void plb__withdraw(plb_reader *reader)
{
    (void)reader;
}

PLB__INLINE plb_reader *plb__home_reader(plb_balancer *lb)
{
    return &lb->cells[0].reader;
}

PLB__INLINE plb__set *plb__enter_elsewhere(plb_balancer *lb, const uintptr_t *where, plb_hold *hold)
{
    hold->reader = &lb->cells[0].reader;
    hold->own.set = lb->side;
    lb->spilled[lb->side] += *where != 0;
    return (plb__set *)*where;
}

PLB__INLINE plb__set *plb__enter(plb_balancer *lb, plb_hold *hold)
{
    return plb__enter_elsewhere(lb, &lb->current, hold);
}

#ifndef PLB_NO_HANDLES
PLB__INLINE plb__set *plb__enter_by(plb_handle *handle, plb_hold *hold)
{
    plb__set *set = plb__enter(handle->balancer, hold);
    hold->reader = &handle->reader;
    return set;
}
#endif

PLB__INLINE void plb__leave(plb_balancer *lb, plb_hold *hold)
{
    lb->spilled[hold->own.set]--;
}
#endif

#ifndef PLB_NO_UPDATES
/* Looks who has left of those that are only counted. Whoever reads a retired set was counted before it retired; so once
   each side was seen empty since then, at whatever moments, none of them is left. New ones are sent to the side that is
   empty: the other one runs dry, and no stream of readers, however dense, holds up an update. */
static void plb__look_at_spilled(plb_balancer *lb)
{
    uint32_t side;
    for (side = 0; side < 2; side++) {
        if (PLB__LOAD(&lb->spilled[side]) != 0)
            continue;
        lb->left[0] |= 1u << side;
        lb->left[1] |= 1u << side;
        PLB__STORE_RELAXED(&lb->side, side);
    }
}

#ifndef PLB_NO_HANDLES
static bool plb__is_read_by_handle(plb_balancer *lb, const plb__set *set)
{
    const plb_handle *handle = (const plb_handle *)PLB__LOAD(&lb->handles);
    for (; handle != NULL; handle = handle->next)
        if (PLB__LOAD(&handle->reader.set) == (uintptr_t)set)
            return true;
    return false;
}
#endif

/* Does a cell or a handle name that set? */
static bool plb__is_read(plb_balancer *lb, const plb__set *set)
{
    uint32_t i = PLB__CELLS;
    while (i-- > 0)
        if (PLB__LOAD(&lb->cells[i].reader.set) == (uintptr_t)set)
            return true;
    return PLB__IF_HANDLES(plb__is_read_by_handle(lb, set), false);
}
#endif

#ifndef PLB_NO_UPDATES
/* Makes the set at `where` say what a slot says, if it is in there, and returns the set. */
static uintptr_t plb__slot_tell(plb_balancer *lb, const uintptr_t *where, const plb__slot *slot, uint32_t index)
{
    plb_hold hold;
    plb__set *set = plb__enter_elsewhere(lb, where, &hold);
    if (set == NULL)
        return 0;
    if (index >= set->count || set->slots[index] != slot) /* else it is there, so it may be looked at */
        for (index = 0; index < set->count && set->slots[index] != slot;)
            index++;
    if (index < set->count)
        plb__set_sync(set, set->slots[index]);
    plb__leave(lb, &hold);
    return (uintptr_t)set;
}

/* The slot, perhaps gone by now, has changed: says so in the set that is about to be published, then in the one that
   is. A set that comes later will have been read from the slots as they are now. `index`: where it may stand. */
static void plb__slot_changed(plb_balancer *lb, const plb__slot *slot, uint32_t index)
{
    uintptr_t newest = plb__slot_tell(lb, &lb->newest, slot, index);
    if (PLB__LOAD(&lb->current) != newest)
        plb__slot_tell(lb, &lb->current, slot, index);
}
#else
/* The slot has changed: says so in the one set. */
static void plb__slot_changed(plb_balancer *lb, const plb__slot *slot, uint32_t index)
{
    plb__set *set = (plb__set *)PLB__LOAD(&lb->newest);
    if (set != NULL)
        plb__set_sync(set, set->slots[index]);
    (void)slot;
}
#endif

static void plb__slot_flag(plb_balancer *lb, plb__slot *slot, uint32_t flag, bool on)
{
    uint32_t flags;
    do
        flags = PLB__LOAD(&slot->flags);
    while (!plb__cas32(&slot->flags, flags, on ? flags | flag : flags & ~flag));
    plb__slot_changed(lb, slot, PLB__LOAD_RELAXED(&slot->index));
}

#ifndef PLB_NO_HANDLES
/* Handles are never given back before plb_destroy, so that the list of them can be read at any time; one that was
   closed is opened again. */
static plb_handle *plb__handle_reuse(plb_balancer *lb)
{
    plb_handle *handle = (plb_handle *)PLB__LOAD(&lb->handles);
    while (handle != NULL && !plb__cas(&handle->open, 0, 1))
        handle = handle->next;
    return handle;
}

PLB_API plb_status plb_handle_open(plb_balancer *lb, plb_handle **out)
{
    plb_handle *handle = plb__handle_reuse(lb);
    uintptr_t head;
    *out = handle;
    if (handle != NULL)
        return PLB_OK;
    handle = (plb_handle *)plb__new(&lb->env.allocator, sizeof *handle);
    if (handle == NULL)
        return PLB_ERR_MEMORY;
    handle->balancer = lb;
    handle->open = 1;
    handle->reader.own_turn = true;
    handle->reader.random = plb__mix(lb->seed + plb__fetch_add_relaxed(&lb->spills, 1) * PLB__GOLDEN);
    handle->reader.turn = (uintptr_t)plb__random(&handle->reader);
    do {
        head = PLB__LOAD(&lb->handles);
        handle->next = (plb_handle *)head;
    } while (!plb__cas(&lb->handles, head, (uintptr_t)handle));
    *out = handle;
    return PLB_OK;
}

PLB_API void plb_handle_close(plb_handle *handle)
{
    if (handle != NULL)
        PLB__STORE_RELEASE(&handle->open, 0);
}

static void plb__handles_free(plb_balancer *lb)
{
    plb_handle *handle = (plb_handle *)lb->handles;
    while (handle != NULL) {
        plb_handle *next = handle->next;
        plb__delete(&lb->env.allocator, handle, sizeof *handle);
        handle = next;
    }
}
#endif

static void plb__fill_backend(const plb__slot *slot, uint32_t weight, plb_backend *out)
{
    const plb__care *care = plb__slot_care(slot);
    memset(out, 0, sizeof *out);
    plb__addr_copy(&out->addr, &slot->addr);
    PLB__IF_WEIGHTS(out->weight = weight, (void)weight);
    PLB__IF_LIMITS(out->max_conns = PLB__LOAD_RELAXED(&slot->max_conns), (void)0);
    if (care != NULL) {
        PLB__IF_CHECK_LIST(out->checks = PLB__LOAD_RELAXED(&care->checks), (void)0);
        PLB__IF_CHECK_LIST(out->check_every_ms = PLB__LOAD_RELAXED(&care->every_ms), (void)0);
    }
    out->id = slot->id;
    PLB__IF_NAMES(out->name = slot->name, (void)0);
    out->ext = slot->ext;
    out->ext_release = slot->ext_release;
}

static void plb__fill_info(const plb__tier *tier, uint32_t index, plb_backend_info *info)
{
    const plb_view *view = &tier->view;
    plb__slot *slot = view->slots[index];
    const plb__care *care = plb__slot_care(slot);
    uint32_t flags = PLB__LOAD(&slot->flags);
    plb__fill_backend(slot, plb__view_weight(view, index), &info->backend);
    PLB__IF_TIERS(info->backend.priority = tier->priority, (void)0);
    info->slot = slot->u.control.number;
    info->in_flight = PLB__LOAD_RELAXED(&slot->in_flight) & PLB__COUNT_MASK;
    PLB__IF_SHARES(info->share = PLB__LOAD_RELAXED(&slot->share), (void)0);
    info->ready = plb__view_ready(view, index);
    info->healthy = (flags & PLB__UNHEALTHY) == 0;
    info->enabled = (flags & PLB__DISABLED) == 0;
    PLB__IF_OUTLIER(info->ejected = (flags & PLB__EJECTED) != 0, (void)0);
    PLB__IF_SHARES(info->advised_off = (flags & PLB__ADVISED_OFF) != 0, (void)0);
    PLB__IF_CHECK_LIST(info->failing = (flags & PLB__UNHEALTHY) / PLB__FAILING, (void)0);
    PLB__IF_PROBE_INFO(info->flips = care != NULL ? PLB__LOAD_RELAXED(&care->flips) : 0, (void)care);
}

/* ==== OUTLIER RECORDS ================================================================================================
   What requests leave behind for outlier detection: counted by the threads that end them, read by plb_poll. */

#ifndef PLB_NO_OUTLIER
/* What is kept of one slot's requests, in its allocation between its checks and what the strategy has. */
typedef struct plb__record {
    plb__mail mail; /* in the mailbox while told is not 0 */
    plb__slot *slot;
    /* any thread */
    uint32_t passed, failed;         /* requests; they may wrap */
    uint32_t errors, connect_errors; /* in a row */
    uint32_t told;                   /* the plb_ejection that plb_poll is asked for; 0: none */
    /* the polling thread */
    uint32_t passed_before, failed_before; /* as they were when they were looked at last */
    uint32_t rate;                         /* plb_outlier_info.success_rate */
    uint32_t ejections;
    uint32_t multiplier;         /* of the last ejection's time, less what good behaviour took off */
    uint64_t requests, failures; /* up to the last look */
    uint64_t ejected_ms, back_ms;
    struct plb__record *next_ejected, **ejected_link;
} plb__record;

#define PLB__RECORD_LEAD PLB__SLOT_LEAD(sizeof(plb__record))

static plb__record *plb__slot_record(plb__slot *slot)
{
    return (plb__record *)(void *)((char *)slot - (size_t)slot->data * PLB__SLOT_UNIT - PLB__RECORD_LEAD);
}

static void plb__record_init(plb__slot *slot)
{
    plb__record *record = plb__slot_record(slot);
    record->mail.kind = PLB__MAIL_SUSPECT;
    record->slot = slot;
    record->rate = PLB_NONE;
}

/* Is word of it on its way? Then it must stay, though nothing else may hold it. Asked once no request is in flight. */
static bool plb__slot_is_suspect(const plb_balancer *lb, plb__slot *slot)
{
    return plb__watches(lb) && PLB__LOAD(&plb__slot_record(slot)->told) != PLB_EJECTION_NONE;
}

/* Asks plb_poll to eject, unless it was asked already. */
static void plb__record_tell(plb_balancer *lb, plb__record *record, plb_ejection why)
{
    if (PLB__LOAD(&record->told) != PLB_EJECTION_NONE || !plb__cas32(&record->told, PLB_EJECTION_NONE, (uint32_t)why))
        return;
    plb__mail_push(&lb->mailbox, &record->mail);
    plb__wake(lb);
}

/* Most of the time there is nothing to clear, and the line stays as it is. */
static void plb__streak_end(uint32_t *streak)
{
    if (PLB__LOAD_RELAXED(streak) != 0)
        PLB__STORE_RELAXED(streak, 0);
}

static void plb__record_failure(plb_balancer *lb, plb__record *record, plb_outcome outcome)
{
    uint32_t errors = plb__fetch_add(&record->errors, 1) + 1, connect_errors = 0;
    plb__fetch_add(&record->failed, 1);
    if (outcome == PLB_OUTCOME_CONNECT_ERROR)
        connect_errors = plb__fetch_add(&record->connect_errors, 1) + 1;
    else
        plb__streak_end(&record->connect_errors);
    if (connect_errors >= lb->desc.outlier.consecutive_connect_errors)
        plb__record_tell(lb, record, PLB_EJECTION_CONNECT_ERRORS);
    else if (errors >= lb->desc.outlier.consecutive_errors)
        plb__record_tell(lb, record, PLB_EJECTION_ERRORS);
}

/* A request is over that still holds the slot. */
PLB__RARE void plb__record_outcome(plb_balancer *lb, plb__slot *slot, plb_outcome outcome)
{
    plb__record *record = plb__slot_record(slot);
    if (outcome == PLB_OUTCOME_CANCELLED)
        return;
    if (outcome != PLB_OUTCOME_SUCCESS) {
        plb__record_failure(lb, record, outcome);
        return;
    }
    plb__fetch_add(&record->passed, 1);
    plb__streak_end(&record->errors);
    plb__streak_end(&record->connect_errors);
}

static void plb__record_link(plb_balancer *lb, plb__record *record)
{
    record->next_ejected = lb->ejected;
    record->ejected_link = &lb->ejected;
    if (lb->ejected != NULL)
        lb->ejected->ejected_link = &record->next_ejected;
    lb->ejected = record;
    lb->ejected_count++;
}

static void plb__record_unlink(plb_balancer *lb, plb__record *record)
{
    *record->ejected_link = record->next_ejected;
    if (record->next_ejected != NULL)
        record->next_ejected->ejected_link = record->ejected_link;
    lb->ejected_count--;
}

/* A set takes the current one's place, and its slots know where they stand: whoever left is no more among the ejected,
   so that their share is one of this set. */
static void plb__records_move(plb_balancer *lb, const plb__set *set)
{
    plb__record *record, *next;
    const plb__tier *tier;
    uint32_t i;
    if (lb->watches == 0)
        return;
    lb->watched = 0;
    for (i = 0; i < set->count; i++)
        lb->watched += PLB__LOAD_RELAXED(&set->slots[i]->index) == i; /* duplicates share a slot */
    for (record = lb->ejected; record != NULL; record = next) {
        next = record->next_ejected;
        if (plb__set_find_slot(set, record->slot, &tier) == PLB_NONE)
            plb__record_unlink(lb, record);
    }
}
#else
#define PLB__RECORD_LEAD 0

PLB__INLINE void plb__record_init(plb__slot *slot)
{
    (void)slot;
}

PLB__INLINE bool plb__slot_is_suspect(const plb_balancer *lb, plb__slot *slot)
{
    (void)lb;
    (void)slot;
    return false;
}

PLB__INLINE void plb__record_outcome(plb_balancer *lb, plb__slot *slot, plb_outcome outcome)
{
    (void)lb;
    (void)slot;
    (void)outcome;
}

PLB__INLINE void plb__records_move(plb_balancer *lb, const plb__set *set)
{
    (void)lb;
    (void)set;
}
#endif

/* ==== PICKING ========================================================================================================
   The hot path, the general walk, and what a pick holds. */

/* Counts one request less. */
static void plb__slot_drop(plb_balancer *lb, plb__slot *slot)
{
    uint32_t index = PLB__LOAD_RELAXED(&slot->index);
    uint32_t before = plb__fetch_add(&slot->in_flight, UINT32_MAX); /* from here on the slot may be gone */
    if (PLB__IF_LIMITS(PLB__UNLIKELY((before & PLB__LIMITED) != 0), false))
        plb__slot_changed(lb, slot, index);
    if (PLB__UNLIKELY((before & ~PLB__LIMITED) == (PLB__DEPARTED | 1)))
        plb__wake(lb);
}

/* Takes one request more, or nothing if that would be more than max_conns. The set is held by the caller. */
PLB__INLINE bool plb__slot_take(plb_balancer *lb, plb__slot *slot)
{
    uint32_t before = plb__fetch_add(&slot->in_flight, 1), count = (before & PLB__COUNT_MASK) + 1, max_conns;
    if (PLB__IF_LIMITS(PLB__LIKELY((before & PLB__LIMITED) == 0), true))
        return true;
    max_conns = plb__slot_max_conns(slot);
    if (max_conns == 0)
        return true; /* the limit is about to go */
    if (count > max_conns)
        plb__fetch_add(&slot->in_flight, UINT32_MAX);
    if (count >= max_conns)
        plb__slot_changed(lb, slot, PLB__LOAD_RELAXED(&slot->index));
    return count <= max_conns;
}

/* No backend starts slowly; or the tier panics, and then one that has recovered is not the one to spare. */
PLB__INLINE bool plb__is_whole(const plb__tier *tier)
{
    return PLB__IF_SHARES(PLB__LIKELY(PLB__LOAD_RELAXED(&tier->view.partial_count) == 0), true) ||
           plb__tier_panics(tier) != 0;
}

/* Any ready backend will do, and the strategy finds one by itself. */
PLB__INLINE bool plb__is_plain(const plb_balancer *lb, const plb_request *request)
{
    (void)lb;
    (void)request;
    return PLB__IF_WALK(
        PLB__LIKELY(request->accept == NULL && request->exclude_count == 0 && lb->strategy->pick != NULL), true);
}

PLB__INLINE uint32_t plb__tier_pick(const plb_balancer *lb, const plb__tier *tier, plb_reader *reader, const void *key,
                                    size_t key_length, uint32_t limit)
{
    return lb->strategy->pick(tier->table, &tier->view, reader, key, key_length, limit);
}

/* The active tier has just run out, and the one that follows it is not active yet. */
static uint32_t plb__pick_from_others(const plb_balancer *lb, const plb__set *set, plb_reader *reader, const void *key,
                                      size_t key_length, uint32_t limit, const plb__tier **tier)
{
    uint32_t t, index = PLB_NONE;
    for (t = 0; t < plb__set_tiers(set) && index == PLB_NONE; t++) {
        *tier = &set->tiers[t];
        index = plb__tier_pick(lb, *tier, reader, key, key_length, limit);
        if (index == PLB_NONE && limit > 0 && plb__view_ready_after(&(*tier)->view, 0) != PLB_NONE)
            break; /* it has not run out: the limit is too low */
    }
    return index;
}

PLB__INLINE uint32_t plb__plain_pick(const plb_balancer *lb, const plb__set *set, plb_reader *reader, const void *key,
                                     size_t key_length, uint32_t limit, const plb__tier **tier)
{
    uint32_t index = plb__tier_pick(lb, *tier, reader, key, key_length, limit);
    if (PLB__UNLIKELY(index == PLB_NONE && plb__set_tiers(set) > 1))
        return plb__pick_from_others(lb, set, reader, key, key_length, limit, tier);
    return index;
}

#ifndef PLB_NO_WALK
static bool plb__excluded(const plb_request *request, uint32_t slot)
{
    size_t i;
    for (i = 0; i < request->exclude_count; i++)
        if (request->exclude[i] == slot)
            return true;
    return false;
}

/* A walk under way: the request, and for whom. */
typedef struct plb__walk {
    const plb_request *request;
    const plb__set *set;
    plb_reader *reader;
    plb_balancer *taker; /* NULL unless the backend is to be taken: accept does not reach past max_conns */
    uint64_t luck;       /* of the key, or of this walk: decides about partial shares; 0: not known yet */
    bool shares;         /* are partial shares to be looked at? */
} plb__walk;

/* A backend that starts slowly refuses those whose luck is above its share. One luck for each key and backend: as the
   share grows, keys come and none goes. */
static bool plb__admits(plb__walk *walk, plb__slot *slot)
{
    uint32_t share = plb__slot_share(slot);
    const plb_request *request = walk->request;
    if (walk->luck == 0)
        walk->luck = walk->set->strategy->keyed ? plb__fnv1a(PLB__FNV_BASIS, request->key, request->key_length)
                                                : plb__random(walk->reader);
    return share == PLB__SHARE_ALL ||
           plb__mix(walk->luck + slot->u.control.number * PLB__GOLDEN) % PLB__SHARE_ALL < share;
}

/* Does the program want it? */
PLB__APART bool plb__is_wanted(const plb_request *request, const plb__tier *tier, uint32_t index, bool excluded)
{
    plb_backend_info info;
    plb__fill_info(tier, index, &info);
    if (excluded)
        info.ready = false;
    return request->accept(request->accept_user, &info);
}

/* Is it this one? */
static bool plb__accepts(plb__walk *walk, const plb__tier *tier, uint32_t index)
{
    const plb_request *request = walk->request;
    plb__slot *slot = tier->view.slots[index];
    bool excluded = plb__excluded(request, slot->u.control.number), accepted;
    if (request->accept == NULL)
        accepted = !excluded && plb__view_ready(&tier->view, index) && (!walk->shares || plb__admits(walk, slot));
    else
        accepted = plb__is_wanted(request, tier, index, excluded);
    return accepted && (walk->taker == NULL || plb__slot_take(walk->taker, slot));
}

/* What one walk has asked already: indexes, in 16 bits where that is enough, else in two times 16. */
typedef struct plb__seen {
    uint32_t count, width;
    uint16_t halves[PLB_SEEN_MAX];
} plb__seen;

static bool plb__seen_has(const plb__seen *seen, uint32_t index)
{
    const uint16_t *at = seen->halves, *end = at + seen->count * seen->width;
    for (; at < end; at += seen->width)
        if (at[0] == (uint16_t)index && (seen->width == 1 || at[1] == index >> 16))
            return true;
    return false;
}

/* Notes one that is not among them; false: there is no room for it. */
static bool plb__seen_add(plb__seen *seen, uint32_t index)
{
    uint16_t *at = seen->halves + seen->count * seen->width;
    if ((seen->count + 1) * seen->width > PLB_SEEN_MAX)
        return false;
    at[0] = (uint16_t)index;
    if (seen->width > 1)
        at[1] = (uint16_t)(index >> 16);
    seen->count++;
    return true;
}

/* Asks every backend that was not asked yet, in set order, within *left of them. */
static uint32_t plb__sweep(plb__walk *walk, const plb__tier *tier, const plb__seen *seen, uint32_t *left)
{
    uint32_t i;
    for (i = 0; *left > 0 && i < tier->view.count; i++) {
        if (plb__seen_has(seen, i))
            continue;
        if (plb__accepts(walk, tier, i))
            return i;
        --*left;
    }
    return PLB_NONE;
}

/* Steps after which a walk without a limit gives up on the raw sequence, which may repeat for long, and sweeps. */
#define PLB__PATIENCE (4 * PLB_SEEN_MAX)

/* pingora's UniqueIterator: every step counts, a backend is asked once, and the sequence has moved on once more when
   the limit is noticed. *left: the steps that may still be taken. Once all were asked, the steps that are left are
   pingora's only where there is nothing else to try. */
static uint32_t plb__walk_tier(const plb_balancer *lb, plb__walk *walk, const plb__tier *tier, uint32_t *left)
{
    const plb_request *request = walk->request;
    const plb_view *view = &tier->view;
    bool endless = request->max_iterations == 0, goes_on = endless || walk->shares || plb__set_tiers(walk->set) > 1;
    uint32_t steps = 0, index;
    plb_cursor cursor;
    plb__seen seen;
    index = lb->strategy->first(tier->table, view, walk->reader, request->key, request->key_length, &cursor);
    seen.count = 0;
    seen.width = view->count > 65536 ? 2 : 1;
    for (; *left > 0; --*left, steps++) {
        if (!plb__seen_has(&seen, index)) {
            if (!plb__seen_add(&seen, index))
                return plb__sweep(walk, tier, &seen, left);
            if (plb__accepts(walk, tier, index))
                return index;
        }
        if ((goes_on && seen.count == view->count) || (endless && steps == PLB__PATIENCE))
            return plb__sweep(walk, tier, &seen, left);
        index = lb->strategy->next(tier->table, view, walk->reader, &cursor);
    }
    return PLB_NONE;
}

/* Those that start slowly and refuse are passed over, unless that leaves none in the tier. */
static uint32_t plb__walk_shares(const plb_balancer *lb, plb__walk *walk, const plb__tier *tier, uint32_t *left)
{
    uint32_t before = *left, index;
    walk->shares = walk->request->accept == NULL && !plb__is_whole(tier);
    index = plb__walk_tier(lb, walk, tier, left);
    if (index != PLB_NONE || !walk->shares)
        return index;
    walk->shares = false;
    *left = before;
    return plb__walk_tier(lb, walk, tier, left);
}

/* Through the tier that picks come from, then through the others. */
static uint32_t plb__walk_tiers(const plb_balancer *lb, plb__walk *walk, const plb__tier **tier)
{
    uint32_t t, index, left = walk->request->max_iterations > 0 ? walk->request->max_iterations : UINT32_MAX;
    const plb__tier *active = *tier;
    index = plb__walk_shares(lb, walk, active, &left);
    for (t = 0; t < plb__set_tiers(walk->set) && index == PLB_NONE && left > 0; t++) {
        *tier = &walk->set->tiers[t];
        if (*tier != active)
            index = plb__walk_shares(lb, walk, *tier, &left);
    }
    return index;
}

#ifndef PLB_NO_SHARES
/* Draws in place of a backend that refuses, before it has to take the request after all. */
#define PLB__REFUSALS_MAX 16

/* Only the requests of those that start slowly and refuse go elsewhere: to one drawn at random, for a key the same as
   long as nothing changes. Walking instead would be long where few are ready. */
PLB__APART uint32_t plb__pick_instead(plb__walk *walk, const plb_view *view, uint32_t index)
{
    uint32_t tries, drawn = index;
    plb_reader lots;
    memset(&lots, 0, sizeof lots);
    for (tries = 0; tries < PLB__REFUSALS_MAX && drawn != PLB_NONE; tries++) {
        if (plb__admits(walk, view->slots[drawn]))
            return drawn;
        if (tries == 0)
            lots.random = walk->luck;
        drawn = plb_view_draw(view, &lots);
    }
    return index;
}
#else
PLB__INLINE uint32_t plb__pick_instead(plb__walk *walk, const plb_view *view, uint32_t index)
{
    (void)walk;
    (void)view;
    return index;
}
#endif

/* A pick that is not plain, or from a tier in which backends start slowly. */
static uint32_t plb__walk_pick(plb_balancer *lb, const plb__set *set, plb_reader *reader, const plb_request *request,
                               plb_balancer *taker, const plb__tier **tier)
{
    const plb__tier *active = *tier;
    plb__walk walk;
    walk.request = request;
    walk.set = set;
    walk.reader = reader;
    walk.taker = taker;
    walk.luck = 0;
    if (plb__is_plain(lb, request)) {
        uint32_t index =
            plb__plain_pick(lb, set, reader, request->key, request->key_length, request->max_iterations, tier);
        if (index == PLB_NONE)
            return PLB_NONE;
        index = plb__pick_instead(&walk, &(*tier)->view, index);
        if (taker == NULL || plb__slot_take(taker, (*tier)->view.slots[index]))
            return index;
    }
    *tier = active;
    return plb__walk_tiers(lb, &walk, tier);
}
#else
/* A pick that met a full backend: any that has room. */
static uint32_t plb__walk_pick(plb_balancer *lb, const plb__set *set, plb_reader *reader, const plb_request *request,
                               plb_balancer *taker, const plb__tier **tier)
{
    uint32_t t, i;
    (void)lb;
    (void)reader;
    (void)request;
    for (t = 0; t < plb__set_tiers(set); t++) {
        *tier = &set->tiers[t];
        for (i = 0; i < (*tier)->view.count; i++)
            if (plb__view_ready(&(*tier)->view, i) && plb__slot_take(taker, (*tier)->view.slots[i]))
                return i;
    }
    return PLB_NONE;
}
#endif

/* Copies the address that was picked, and leaves. */
PLB__INLINE plb_status plb__select_end(plb_balancer *lb, plb_hold *hold, const plb__set *set, const plb__tier *tier,
                                       uint32_t index, plb_addr *out)
{
    plb_status status = PLB_OK;
    if (PLB__LIKELY(index != PLB_NONE))
        plb__view_copy_addr(&tier->view, index, out);
    else
        status = set->count > 0 ? PLB_ERR_NOT_READY : PLB_ERR_EMPTY;
    plb__leave(lb, hold);
    return status;
}

/* Selects for a full request, from a set that was entered. */
static plb_status plb__select_full(plb_balancer *lb, plb_hold *hold, plb__set *set, const plb_request *request,
                                   plb_addr *out)
{
    const plb__tier *tier = plb__set_active(set);
    uint32_t index = PLB_NONE;
    if (set->count > 0)
        index = plb__is_plain(lb, request) && plb__is_whole(tier)
                    ? plb__plain_pick(lb, set, hold->reader, request->key, request->key_length, request->max_iterations,
                                      &tier)
                    : plb__walk_pick(lb, set, hold->reader, request, NULL, &tier);
    return plb__select_end(lb, hold, set, tier, index, out);
}

/* Selects for a key in any set, whoever the reader is. */
PLB__RARE plb_status plb__select_entered(plb_balancer *lb, plb_hold *hold, plb__set *set, const void *key,
                                         size_t key_length, uint32_t max_iterations, plb_addr *out)
{
    plb_request request;
    if (set == NULL)
        return PLB_ERR_EMPTY;
    memset(&request, 0, sizeof request);
    request.key = key;
    request.key_length = key_length;
    request.max_iterations = max_iterations;
    return plb__select_full(lb, hold, set, &request, out);
}

/* Nothing to look at but the one tier's pick? */
PLB__INLINE bool plb__is_simple(const plb__set *set)
{
    return PLB__LIKELY(set != NULL && set->simple && plb__is_whole(&set->tiers[0]));
}

/* What remains to be done after a pick. Not inlined, so that the pick before it keeps three values and no more. */
PLB__RARE plb_status plb__select_finish(const plb_view *view, plb_reader *reader, uint32_t index, plb_addr *out)
{
    if (PLB__UNLIKELY(index == PLB_NONE)) {
        plb__withdraw(reader);
        return PLB_ERR_NOT_READY;
    }
    plb__view_copy_addr(view, index, out);
    plb__withdraw(reader);
    return PLB_OK;
}

/* The hot path: as few instructions as can be between the call and the strategy, and after it. */
PLB__INLINE plb_status plb__select_simple(const plb__set *set, plb_reader *reader, const void *key, size_t key_length,
                                          uint32_t max_iterations, plb_addr *out)
{
    const plb__tier *tier = &set->tiers[0];
    uint32_t index = set->strategy->pick(tier->table, &tier->view, reader, key, key_length, max_iterations);
    return plb__select_finish(&tier->view, reader, index, out);
}

PLB__RARE plb_status plb__select_elsewhere(plb_balancer *lb, const void *key, size_t key_length,
                                           uint32_t max_iterations, plb_addr *out)
{
    plb_hold hold;
    plb__set *set = plb__enter(lb, &hold);
    return plb__select_entered(lb, &hold, set, key, key_length, max_iterations, out);
}

PLB_API plb_status plb_select(plb_balancer *lb, const void *key, size_t key_length, uint32_t max_iterations,
                              plb_addr *out)
{
    plb_reader *reader = PLB__SMALL ? NULL : plb__home_reader(lb);
    if (PLB__LIKELY(reader != NULL)) {
        const plb__set *set = plb__announce(lb, &lb->current, reader);
        if (plb__is_simple(set))
            return plb__select_simple(set, reader, key, key_length, max_iterations, out);
        plb__withdraw(reader);
    }
    return plb__select_elsewhere(lb, key, key_length, max_iterations, out);
}

#ifndef PLB_NO_HANDLES
PLB__RARE plb_status plb__handle_select_elsewhere(plb_handle *handle, const void *key, size_t key_length,
                                                  uint32_t max_iterations, plb_addr *out)
{
    plb_hold hold;
    plb__set *set = plb__enter_by(handle, &hold);
    return plb__select_entered(handle->balancer, &hold, set, key, key_length, max_iterations, out);
}

PLB_API plb_status plb_handle_select(plb_handle *handle, const void *key, size_t key_length, uint32_t max_iterations,
                                     plb_addr *out)
{
    plb_reader *reader = &handle->reader;
    if (PLB__LIKELY(PLB__LOAD_RELAXED(&reader->set) == 0)) {
        const plb__set *set = plb__announce(handle->balancer, &handle->balancer->current, reader);
        if (plb__is_simple(set))
            return plb__select_simple(set, reader, key, key_length, max_iterations, out);
        plb__withdraw(reader);
    }
    return plb__handle_select_elsewhere(handle, key, key_length, max_iterations, out);
}
#endif

PLB_API plb_status plb_select_with(plb_balancer *lb, const plb_request *request, plb_addr *out)
{
    plb_hold hold;
    plb__set *set = plb__enter(lb, &hold);
    return set != NULL ? plb__select_full(lb, &hold, set, request, out) : PLB_ERR_EMPTY;
}

#ifndef PLB_NO_HANDLES
PLB_API plb_status plb_handle_select_with(plb_handle *handle, const plb_request *request, plb_addr *out)
{
    plb_hold hold;
    plb__set *set = plb__enter_by(handle, &hold);
    return set != NULL ? plb__select_full(handle->balancer, &hold, set, request, out) : PLB_ERR_EMPTY;
}
#endif

/* Picks a backend and takes it. Where another thread was faster to fill it up to max_conns, goes the long way, which
   asks each one: the bits of a set that has been replaced meanwhile may say for good that this one has room. */
PLB__INLINE uint32_t plb__take_index(plb_balancer *lb, const plb__set *set, plb_reader *reader,
                                     const plb_request *request, const plb__tier **tier)
{
    const plb__tier *active = *tier;
    if (PLB__LIKELY(plb__is_plain(lb, request) && plb__is_whole(active))) {
        uint32_t index =
            plb__plain_pick(lb, set, reader, request->key, request->key_length, request->max_iterations, tier);
        if (index == PLB_NONE || PLB__LIKELY(plb__slot_take(lb, (*tier)->view.slots[index])))
            return index;
    }
    *tier = active;
    return plb__walk_pick(lb, set, reader, request, lb, tier);
}

PLB__INLINE plb_status plb__begin_in(plb_balancer *lb, plb__set *set, plb_reader *reader, const plb_request *request,
                                     plb_pick *pick)
{
    const plb__tier *tier = plb__set_active(set);
    plb__slot *slot;
    uint32_t index;
    if (set->count == 0)
        return PLB_ERR_EMPTY;
    index = plb__take_index(lb, set, reader, request, &tier);
    if (index == PLB_NONE)
        return PLB_ERR_NOT_READY;
    slot = tier->view.slots[index];
    plb__view_copy_addr(&tier->view, index, &pick->addr);
    PLB__IF_WEIGHTS(pick->weight = tier->view.weights[index], (void)0);
    pick->id = slot->id;
    pick->slot = slot->u.control.number;
    PLB__IF_NAMES(pick->name = slot->name, (void)0);
    pick->ext = slot->ext;
    pick->balancer = lb;
    pick->held = slot;
    if (lb->strategy->began != NULL)
        lb->strategy->began(lb->strategy_state, slot->u.control.number, plb__slot_data(slot));
    return PLB_OK;
}

/* No key, no limit, any ready backend. */
static const plb_request plb__any_request = {NULL, 0, 0,
#ifndef PLB_NO_WALK
                                             NULL, 0, NULL,
                                             NULL
#endif
};

/* Begins in a set that was entered, if there is one, and leaves it. */
PLB__INLINE plb_status plb__begin_and_leave(plb_balancer *lb, plb_hold *hold, plb__set *set, const plb_request *request,
                                            plb_pick *pick)
{
    plb_status status;
    pick->held = NULL;
    if (set == NULL)
        return PLB_ERR_EMPTY;
    status = plb__begin_in(lb, set, hold->reader, request != NULL ? request : &plb__any_request, pick);
    plb__leave(lb, hold);
    return status;
}

PLB_API plb_status plb_begin(plb_balancer *lb, const plb_request *request, plb_pick *pick)
{
    plb_hold hold;
    plb__set *set = plb__enter(lb, &hold);
    return plb__begin_and_leave(lb, &hold, set, request, pick);
}

#ifndef PLB_NO_HANDLES
PLB_API plb_status plb_handle_begin(plb_handle *handle, const plb_request *request, plb_pick *pick)
{
    plb_hold hold;
    plb__set *set = plb__enter_by(handle, &hold);
    return plb__begin_and_leave(handle->balancer, &hold, set, request, pick);
}
#endif

PLB_API void plb_end(plb_pick *pick, plb_outcome outcome, uint64_t latency_us)
{
    plb__slot *slot = (plb__slot *)pick->held;
    plb_balancer *lb = pick->balancer;
    if (slot == NULL)
        return;
    pick->held = NULL;
    if (PLB__UNLIKELY((PLB__LOAD(&slot->in_flight) & PLB__ORPHANED) != 0)) {
        if ((plb__fetch_add(&slot->in_flight, UINT32_MAX) & PLB__COUNT_MASK) == 1) {
            plb_allocator allocator = slot->u.estate;
            plb__slot_delete(&allocator, slot);
        }
        return;
    }
    if (lb->strategy->ended != NULL)
        lb->strategy->ended(lb->strategy_state, slot->u.control.number, plb__slot_data(slot), outcome, latency_us);
    if (PLB__UNLIKELY(plb__watches(lb)))
        plb__record_outcome(lb, slot, outcome);
    plb__slot_drop(lb, slot);
}

PLB_API plb_status plb_set_enabled(plb_balancer *lb, const plb_addr *addr, uint32_t id, bool enabled)
{
    const plb__tier *tier;
    plb_hold hold;
    plb__set *set = plb__enter(lb, &hold);
    uint32_t index;
    if (set == NULL)
        return PLB_ERR_ADDRESS;
    index = plb__set_find(set, addr, id, &tier);
    if (index != PLB_NONE)
        plb__slot_flag(lb, tier->view.slots[index], PLB__DISABLED, !enabled);
    plb__leave(lb, &hold);
    return index != PLB_NONE ? PLB_OK : PLB_ERR_ADDRESS;
}

PLB_API bool plb_ready(plb_balancer *lb, const plb_addr *addr, uint32_t id)
{
    plb_hold hold;
    plb__set *set = plb__enter(lb, &hold);
    bool ready = false;
    uint32_t t, index;
    if (set == NULL)
        return false;
    for (t = 0; t < plb__set_tiers(set); t++) {
        const plb_view *view = &set->tiers[t].view;
        for (index = plb__view_find(view, addr, id); index < view->count && !ready; index++) {
            const plb__slot *slot = view->slots[index];
            if (plb__identity_compare(&slot->addr, slot->id, addr, id) != 0)
                break;
            ready = plb__view_ready(view, index);
        }
    }
    plb__leave(lb, &hold);
    return ready;
}

PLB_API plb_status plb_find(plb_balancer *lb, const plb_addr *addr, uint32_t id, plb_backend_info *info)
{
    const plb__tier *tier;
    plb_hold hold;
    plb__set *set = plb__enter(lb, &hold);
    uint32_t index;
    if (set == NULL)
        return PLB_ERR_ADDRESS;
    index = plb__set_find(set, addr, id, &tier);
    if (index != PLB_NONE)
        plb__fill_info(tier, index, info);
    plb__leave(lb, &hold);
    return index != PLB_NONE ? PLB_OK : PLB_ERR_ADDRESS;
}

PLB_API void plb_each(plb_balancer *lb, bool (*fn)(void *user, const plb_backend_info *info), void *user)
{
    plb_hold hold;
    plb__set *set = plb__enter(lb, &hold);
    bool more = true;
    uint32_t t, i;
    if (set == NULL)
        return;
    for (t = 0; t < plb__set_tiers(set) && more; t++) {
        for (i = 0; i < set->tiers[t].view.count && more; i++) {
            plb_backend_info info;
            plb__fill_info(&set->tiers[t], i, &info);
            more = fn(user, &info);
        }
    }
    plb__leave(lb, &hold);
}

#ifndef PLB_NO_WALK
PLB_API plb_status plb_walk_begin(plb_walk *walk, plb_balancer *lb, const void *key, size_t key_length)
{
    plb__set *set = plb__enter(lb, &walk->hold);
    walk->balancer = lb;
    walk->tier = NULL;
    walk->started = false;
    walk->key = key;
    walk->key_length = key_length;
    if (set == NULL)
        return PLB_ERR_EMPTY;
    if (set->count == 0) {
        plb__leave(lb, &walk->hold);
        return PLB_ERR_EMPTY;
    }
    walk->tier = plb__set_active(set);
    return PLB_OK;
}

PLB_API void plb_walk_next(plb_walk *walk, plb_backend_info *info)
{
    const plb_balancer *lb = walk->balancer;
    const plb__tier *tier = (const plb__tier *)walk->tier;
    uint32_t index;
    if (walk->started)
        index = lb->strategy->next(tier->table, &tier->view, walk->hold.reader, &walk->cursor);
    else
        index = lb->strategy->first(tier->table, &tier->view, walk->hold.reader, walk->key, walk->key_length,
                                    &walk->cursor);
    walk->started = true;
    plb__fill_info(tier, index, info);
}

PLB_API void plb_walk_end(plb_walk *walk)
{
    if (walk->tier != NULL)
        plb__leave(walk->balancer, &walk->hold);
    walk->tier = NULL;
}
#endif

/* ==== ROUND ROBIN RANDOM FNV =========================================================================================
   pingora's Weighted<H>: the first pick is from a list that holds each backend `weight` times, each further one from
   the plain set; what differs is where the numbers come from. */

/* Division by a number that stays the same: the quotient by multiplication is at most one too small. */
typedef struct plb__divisor {
    uint64_t inverse;
    uint32_t value;
} plb__divisor;

PLB__ONCE plb__divisor plb__divisor_of(uint32_t value)
{
    plb__divisor divisor;
    divisor.value = value;
    divisor.inverse = value > 0 ? plb__inverse(value) : 0;
    return divisor;
}

PLB__INLINE uint32_t plb__remainder(uint64_t number, const plb__divisor *divisor)
{
    uint64_t rest = number - plb__multiply_high(number, divisor->inverse) * divisor->value;
    return (uint32_t)(rest >= divisor->value ? rest - divisor->value : rest);
}

/* The same for a number that is a pointer's size at most, which a small processor divides by itself. */
PLB__INLINE uint32_t plb__turn_remainder(uintptr_t number, const plb__divisor *divisor)
{
    return sizeof number > sizeof(uint32_t) ? plb__remainder(number, divisor) : (uint32_t)number % divisor->value;
}

/* A random number, scaled to below `count`: faster than the remainder, and as good. */
PLB__INLINE uint32_t plb__share(uint64_t number, uint32_t count)
{
    return (uint32_t)((number >> 32) * count >> 32);
}

/* The states of the built-in strategies begin with their allocator, and their tables with the size of the allocation,
   so that what has no options is opened, and all tables are discarded, by these two. */
static plb_status plb__strategy_open(void *state, const void *desc, const plb_env *env)
{
    (void)desc;
    *(plb_allocator *)state = env->allocator;
    return PLB_OK;
}

static void plb__table_discard(void *state, void *table)
{
    plb__delete((plb_allocator *)state, table, *(size_t *)table);
}

typedef struct plb__weighted_state {
    plb_allocator allocator;
    uintptr_t counter; /* one for all threads; wraps as pingora's usize does */
} plb__weighted_state;

/* The list, without being one: ends[i] is where the last copy of backend i ends, and starts[b] the backend that owns
   place b << shift. As many starts as backends or fewer, so looking up takes a few steps whatever the weights are; or
   two, where small code is asked for, so that it takes less memory and a few steps more.
   Where each backend weighs 1, the list is the set, and neither is there. */
typedef struct plb__weighted_table {
    size_t size; /* of this allocation */
    plb__divisor count, places;
#ifndef PLB_NO_WEIGHTS
    uint32_t *ends, *starts;
    uint32_t shift;
#endif
} plb__weighted_table;

#ifndef PLB_NO_WEIGHTS
static bool plb__weighs_one_each(const plb_view *view)
{
    uint32_t i;
    for (i = 0; i < view->count; i++)
        if (plb__view_weight(view, i) != 1)
            return false;
    return true;
}

static void plb__weighted_fill(plb__weighted_table *table, const plb_view *view, uint32_t starts)
{
    uint32_t i, b = 0, end = 0;
    for (i = 0; i < view->count; i++) {
        end += view->weights[i];
        table->ends[i] = end;
        while (b < starts && (uint64_t)b << table->shift < end)
            table->starts[b++] = i;
    }
    table->starts[starts] = view->count - 1;
}

static plb_status plb__weighted_build(void *state, const plb_view *view, const plb_view *old_view,
                                      const void *old_table, void **out)
{
    const plb_allocator *a = &((plb__weighted_state *)state)->allocator;
    uint32_t places = view->weight_sum, most = PLB__SMALL ? 2 : view->count, shift = 0, starts;
    bool listed = places > 0 && !plb__weighs_one_each(view);
    plb__weighted_table *table;
    size_t size = sizeof *table;
    (void)old_view;
    (void)old_table;
    while (places > 0 && ((places - 1) >> shift) + 1 > most)
        shift++;
    starts = places > 0 ? ((places - 1) >> shift) + 1 : 0;
    if (listed)
        size += ((size_t)view->count + starts + 1) * sizeof(uint32_t);
    table = (plb__weighted_table *)plb__new(a, size);
    if (table == NULL)
        return PLB_ERR_MEMORY;
    table->size = size;
    table->count = plb__divisor_of(view->count);
    table->places = plb__divisor_of(places > 0 ? places : view->count); /* none ready then; it is only walked */
    table->shift = shift;
    if (listed) {
        table->ends = (uint32_t *)(table + 1);
        table->starts = table->ends + view->count;
        plb__weighted_fill(table, view, starts);
    }
    *out = table;
    return PLB_OK;
}

PLB__INLINE uint32_t plb__weighted_search(const plb__weighted_table *table, uint32_t place)
{
    uint32_t low = table->starts[place >> table->shift], high = table->starts[(place >> table->shift) + 1];
    while (PLB__UNLIKELY(high - low > 8)) {
        uint32_t middle = low + (high - low) / 2;
        if (table->ends[middle] <= place)
            low = middle + 1;
        else
            high = middle;
    }
    while (table->ends[low] <= place)
        low++;
    return low;
}

/* Is the list the set? */
PLB__INLINE bool plb__weighted_is_even(const plb__weighted_table *table)
{
    return table->ends == NULL;
}
#else
static plb_status plb__weighted_build(void *state, const plb_view *view, const plb_view *old_view,
                                      const void *old_table, void **out)
{
    plb__weighted_table *table =
        (plb__weighted_table *)plb__new(&((plb__weighted_state *)state)->allocator, sizeof *table);
    (void)old_view;
    (void)old_table;
    if (table == NULL)
        return PLB_ERR_MEMORY;
    table->size = sizeof *table;
    table->count.value = view->count;
    if (sizeof(uintptr_t) > sizeof(uint32_t)) /* else turns are divided as they are */
        table->count = plb__divisor_of(view->count);
    table->places = table->count;
    *out = table;
    return PLB_OK;
}

PLB__INLINE bool plb__weighted_is_even(const plb__weighted_table *table)
{
    (void)table;
    return true;
}
#endif

/* Which backend stands at a place of the list. */
PLB__INLINE uint32_t plb__weighted_owner(const plb__weighted_table *table, uint32_t place)
{
    return PLB__LIKELY(plb__weighted_is_even(table)) ? place : PLB__IF_WEIGHTS(plb__weighted_search(table, place), 0);
}

PLB__INLINE uint32_t plb__weighted_turn(const plb__weighted_table *table, uintptr_t turn)
{
    return plb__weighted_owner(table, plb__turn_remainder(turn, &table->places));
}

PLB__INLINE uint32_t plb__weighted_start(const plb__weighted_table *table, uint64_t number)
{
    return plb__weighted_owner(table, plb__remainder(number, &table->places));
}

/* The walk goes on from a number that is one more each time: to the next ready backend. *turns: how far it counts. */
static uint32_t plb__round_robin_walk(const plb__weighted_table *table, const plb_view *view, uintptr_t number,
                                      uint32_t limit, uintptr_t *turns)
{
    uint32_t from = plb__turn_remainder(number + 1, &table->count), index = plb__view_ready_after(view, from);
    *turns = (uintptr_t)2 + (index >= from ? index - from : view->count - from + index);
    if (index != PLB_NONE && (limit == 0 || *turns <= limit))
        return index;
    *turns = (uintptr_t)limit + 1; /* moved on once more by the time the limit is noticed */
    return PLB_NONE;
}

PLB__RARE uint32_t plb__round_robin_rest(const plb__weighted_table *table, const plb_view *view, plb_reader *reader,
                                         uintptr_t number, uint32_t limit)
{
    uintptr_t turns;
    uint32_t index = plb__round_robin_walk(table, view, number, limit, &turns);
    reader->turn = number + turns;
    return index;
}

/* Where weights differ, or the turn is everybody's: then the pick is made from the turn that is shown, and counts as
   far as it went; should another thread have been faster, again from the turn that this one got. */
PLB__RARE uint32_t plb__round_robin_listed(plb__weighted_state *state, const plb__weighted_table *table,
                                           const plb_view *view, plb_reader *reader, uint32_t limit)
{
    uintptr_t shown = reader->own_turn ? reader->turn : PLB__LOAD_RELAXED(&state->counter), number, turns = 1;
    uint32_t index = plb__weighted_turn(table, shown);
    if (PLB__UNLIKELY(!plb__view_ready(view, index)))
        index = plb__round_robin_walk(table, view, shown, limit, &turns);
    number = plb__turns_pass(reader, &state->counter, turns);
    if (PLB__LIKELY(number == shown))
        return index;
    index = plb__weighted_turn(table, number);
    return plb__view_ready(view, index) ? index : plb__round_robin_walk(table, view, number, limit, &turns);
}

static uint32_t plb__round_robin_pick(const void *opaque_table, const plb_view *view, plb_reader *reader,
                                      const void *key, size_t key_length, uint32_t limit)
{
    plb__weighted_state *state = (plb__weighted_state *)view->state;
    const plb__weighted_table *table = (const plb__weighted_table *)opaque_table;
    uintptr_t number = reader->turn;
    uint32_t index;
    (void)key;
    (void)key_length;
    if (PLB__SMALL || PLB__UNLIKELY(!reader->own_turn || !plb__weighted_is_even(table)))
        return plb__round_robin_listed(state, table, view, reader, limit);
    reader->turn = number + 1;
    index = plb__turn_remainder(number, &table->places);
    if (PLB__LIKELY(plb__view_ready(view, index)))
        return index;
    return plb__round_robin_rest(table, view, reader, number, limit);
}

#ifndef PLB_NO_RANDOM
PLB__RARE uint32_t plb__random_rest(const plb_view *view, plb_reader *reader, uint32_t limit)
{
    uint32_t index;
    if (PLB__LOAD_RELAXED(&view->ready_count) == 0)
        return PLB_NONE;
    if (limit == 0)
        return plb_view_draw(view, reader);
    for (; limit > 1; limit--) {
        index = plb__share(plb__random(reader), view->count);
        if (plb__view_ready(view, index))
            return index;
    }
    return PLB_NONE;
}

PLB__RARE uint32_t plb__random_listed(const plb__weighted_table *table, const plb_view *view, plb_reader *reader,
                                      uint32_t limit, uint64_t number)
{
    uint32_t index = plb__weighted_owner(table, plb__share(number, table->places.value));
    return PLB__LIKELY(plb__view_ready(view, index)) ? index : plb__random_rest(view, reader, limit);
}

static uint32_t plb__random_pick(const void *opaque_table, const plb_view *view, plb_reader *reader, const void *key,
                                 size_t key_length, uint32_t limit)
{
    const plb__weighted_table *table = (const plb__weighted_table *)opaque_table;
    uint64_t number = plb__random(reader);
    uint32_t index;
    (void)key;
    (void)key_length;
    if (PLB__SMALL || PLB__UNLIKELY(!plb__weighted_is_even(table)))
        return plb__random_listed(table, view, reader, limit, number);
    index = plb__share(number, view->count); /* each weighs 1 */
    return PLB__LIKELY(plb__view_ready(view, index)) ? index : plb__random_rest(view, reader, limit);
}
#endif

/* The hash of a hash's 8 bytes, from the lowest on. */
PLB__INLINE uint64_t plb__fnv_again(uint64_t number)
{
    uint64_t hash = PLB__FNV_BASIS;
    int i;
    for (i = 0; i < 8; i++, number >>= 8)
        hash = (hash ^ (number & 0xff)) * PLB__FNV_PRIME;
    return hash;
}

#ifndef PLB_NO_FNV
static uint32_t plb__fnv_pick(const void *opaque_table, const plb_view *view, plb_reader *reader, const void *key,
                              size_t key_length, uint32_t limit)
{
    const plb__weighted_table *table = (const plb__weighted_table *)opaque_table;
    uint64_t hash;
    uint32_t index;
    (void)reader;
    if (PLB__UNLIKELY(PLB__LOAD_RELAXED(&view->ready_count) == 0))
        return PLB_NONE;
    hash = plb__fnv1a(PLB__FNV_BASIS, key, key_length);
    index = plb__weighted_start(table, hash);
    if (PLB__LIKELY(plb__view_ready(view, index)))
        return index;
    if (limit == 0)
        return plb__keyed_rest(view, hash);
    for (; limit > 1; limit--) {
        hash = plb__fnv_again(hash);
        index = plb__remainder(hash, &table->count);
        if (plb__view_ready(view, index))
            return index;
    }
    return PLB_NONE;
}
#endif

#ifndef PLB_NO_WALK
/* The raw sequences: the first number is a place of the list, each further one a backend of the set. */
PLB__INLINE uint32_t plb__weighted_next(const void *table, uint64_t number)
{
    return plb__remainder(number, &((const plb__weighted_table *)table)->count);
}

static uint32_t plb__round_robin_first(const void *table, const plb_view *view, plb_reader *reader, const void *key,
                                       size_t key_length, plb_cursor *cursor)
{
    plb__weighted_state *state = (plb__weighted_state *)view->state;
    (void)key;
    (void)key_length;
    (void)cursor;
    return plb__weighted_start((const plb__weighted_table *)table, plb__turns_pass(reader, &state->counter, 1));
}

static uint32_t plb__round_robin_next(const void *table, const plb_view *view, plb_reader *reader, plb_cursor *cursor)
{
    (void)cursor;
    return plb__weighted_next(table, plb__turns_pass(reader, &((plb__weighted_state *)view->state)->counter, 1));
}

static PLB__UNUSED uint32_t plb__random_first(const void *table, const plb_view *view, plb_reader *reader,
                                              const void *key, size_t key_length, plb_cursor *cursor)
{
    (void)view;
    (void)key;
    (void)key_length;
    (void)cursor;
    return plb__weighted_start((const plb__weighted_table *)table, plb__random(reader));
}

static PLB__UNUSED uint32_t plb__random_next(const void *table, const plb_view *view, plb_reader *reader,
                                             plb_cursor *cursor)
{
    (void)view;
    (void)cursor;
    return plb__weighted_next(table, plb__random(reader));
}

static PLB__UNUSED uint32_t plb__fnv_first(const void *table, const plb_view *view, plb_reader *reader, const void *key,
                                           size_t key_length, plb_cursor *cursor)
{
    (void)view;
    (void)reader;
    cursor->words[0] = plb__fnv1a(PLB__FNV_BASIS, key, key_length);
    return plb__weighted_start((const plb__weighted_table *)table, cursor->words[0]);
}

static PLB__UNUSED uint32_t plb__fnv_next(const void *table, const plb_view *view, plb_reader *reader,
                                          plb_cursor *cursor)
{
    (void)view;
    (void)reader;
    cursor->words[0] = plb__fnv_again(cursor->words[0]);
    return plb__weighted_next(table, cursor->words[0]);
}
#endif

#define PLB__WEIGHTED_OPS(name, keyed, first, next, pick)                                                              \
    {                                                                                                                  \
        name, sizeof(plb__weighted_state), 0, keyed, plb__strategy_open, NULL, plb__weighted_build,                    \
            plb__table_discard, PLB__IF_WALK(first, NULL), PLB__IF_WALK(next, NULL), pick, NULL, NULL, NULL, NULL, 0   \
    }

static const plb_strategy_ops plb__round_robin_ops =
    PLB__WEIGHTED_OPS("round robin", false, plb__round_robin_first, plb__round_robin_next, plb__round_robin_pick);

static plb_strategy plb__strategy(const plb_strategy_ops *ops, const void *desc)
{
    plb_strategy strategy;
    strategy.ops = ops;
    strategy.desc = desc;
    return strategy;
}

PLB_API plb_strategy plb_round_robin(void)
{
    return plb__strategy(&plb__round_robin_ops, NULL);
}

#ifndef PLB_NO_RANDOM
static const plb_strategy_ops plb__random_ops =
    PLB__WEIGHTED_OPS("random", false, plb__random_first, plb__random_next, plb__random_pick);

PLB_API plb_strategy plb_random_choice(void)
{
    return plb__strategy(&plb__random_ops, NULL);
}
#endif

#ifndef PLB_NO_FNV
static const plb_strategy_ops plb__fnv_ops =
    PLB__WEIGHTED_OPS("fnv", true, plb__fnv_first, plb__fnv_next, plb__fnv_pick);

PLB_API plb_strategy plb_fnv(void)
{
    return plb__strategy(&plb__fnv_ops, NULL);
}
#endif

/* ==== CRC-32 =========================================================================================================
   zlib's, sixteen bytes at a time (Kounavis and Berry 2005, "slicing"). CRCs are linear: an entry is the sum of the
   entries of its bits, so eight constants spell out a table of 256. */

#ifndef PLB_NO_KETAMA
#ifndef PLB_CRC_TABLES
#define PLB_CRC_TABLES 16
#endif
#if PLB_CRC_TABLES != 0 && PLB_CRC_TABLES != 1 && PLB_CRC_TABLES != 8 && PLB_CRC_TABLES != 16
#error "PLB_CRC_TABLES is 0, 1, 8 or 16"
#endif

#define PLB__CRC_BIT(i, bit, value) ((i) >> (bit)&1 ? UINT32_C(value) : 0)
#define PLB__CRC_1(i, a, b, c, d, e, f, g, h)                                                                          \
    (PLB__CRC_BIT(i, 0, a) ^ PLB__CRC_BIT(i, 1, b) ^ PLB__CRC_BIT(i, 2, c) ^ PLB__CRC_BIT(i, 3, d) ^                   \
     PLB__CRC_BIT(i, 4, e) ^ PLB__CRC_BIT(i, 5, f) ^ PLB__CRC_BIT(i, 6, g) ^ PLB__CRC_BIT(i, 7, h))
#define PLB__CRC_4(i, a, b, c, d, e, f, g, h)                                                                          \
    PLB__CRC_1(i, a, b, c, d, e, f, g, h), PLB__CRC_1(i + 1, a, b, c, d, e, f, g, h),                                  \
        PLB__CRC_1(i + 2, a, b, c, d, e, f, g, h), PLB__CRC_1(i + 3, a, b, c, d, e, f, g, h)
#define PLB__CRC_16(i, a, b, c, d, e, f, g, h)                                                                         \
    PLB__CRC_4(i, a, b, c, d, e, f, g, h), PLB__CRC_4(i + 4, a, b, c, d, e, f, g, h),                                  \
        PLB__CRC_4(i + 8, a, b, c, d, e, f, g, h), PLB__CRC_4(i + 12, a, b, c, d, e, f, g, h)
#define PLB__CRC_64(i, a, b, c, d, e, f, g, h)                                                                         \
    PLB__CRC_16(i, a, b, c, d, e, f, g, h), PLB__CRC_16(i + 16, a, b, c, d, e, f, g, h),                               \
        PLB__CRC_16(i + 32, a, b, c, d, e, f, g, h), PLB__CRC_16(i + 48, a, b, c, d, e, f, g, h)
#define PLB__CRC_256(a, b, c, d, e, f, g, h)                                                                           \
    PLB__CRC_64(0, a, b, c, d, e, f, g, h), PLB__CRC_64(64, a, b, c, d, e, f, g, h),                                   \
        PLB__CRC_64(128, a, b, c, d, e, f, g, h), PLB__CRC_64(192, a, b, c, d, e, f, g, h)

#if PLB_CRC_TABLES == 0
/* plb__crc_nibble[n]: four bits. */
static const uint32_t plb__crc_nibble[16] = {
    PLB__CRC_16(0, 0x1db71064, 0x3b6e20c8, 0x76dc4190, 0xedb88320, 0, 0, 0, 0)};

/* The register after one more byte. */
PLB__INLINE uint32_t plb__crc_byte(uint32_t crc, uint8_t byte)
{
    crc ^= byte;
    crc = plb__crc_nibble[crc & 15] ^ crc >> 4;
    return plb__crc_nibble[crc & 15] ^ crc >> 4;
}
#else
/* plb__crc_table[k][byte]: the byte, followed by k zero bytes. */
static const uint32_t plb__crc_table[PLB_CRC_TABLES][256] = {
    {PLB__CRC_256(0x77073096, 0xee0e612c, 0x076dc419, 0x0edb8832, 0x1db71064, 0x3b6e20c8, 0x76dc4190, 0xedb88320)},
#if PLB_CRC_TABLES >= 8
    {PLB__CRC_256(0x191b3141, 0x32366282, 0x646cc504, 0xc8d98a08, 0x4ac21251, 0x958424a2, 0xf0794f05, 0x3b83984b)},
    {PLB__CRC_256(0x01c26a37, 0x0384d46e, 0x0709a8dc, 0x0e1351b8, 0x1c26a370, 0x384d46e0, 0x709a8dc0, 0xe1351b80)},
    {PLB__CRC_256(0xb8bc6765, 0xaa09c88b, 0x8f629757, 0xc5b428ef, 0x5019579f, 0xa032af3e, 0x9b14583d, 0xed59b63b)},
    {PLB__CRC_256(0x3d6029b0, 0x7ac05360, 0xf580a6c0, 0x30704bc1, 0x60e09782, 0xc1c12f04, 0x58f35849, 0xb1e6b092)},
    {PLB__CRC_256(0xcb5cd3a5, 0x4dc8a10b, 0x9b914216, 0xec53826d, 0x03d6029b, 0x07ac0536, 0x0f580a6c, 0x1eb014d8)},
    {PLB__CRC_256(0xa6770bb4, 0x979f1129, 0xf44f2413, 0x33ef4e67, 0x67de9cce, 0xcfbd399c, 0x440b7579, 0x8816eaf2)},
    {PLB__CRC_256(0xccaa009e, 0x4225077d, 0x844a0efa, 0xd3e51bb5, 0x7cbb312b, 0xf9766256, 0x299dc2ed, 0x533b85da)},
#endif
#if PLB_CRC_TABLES >= 16
    {PLB__CRC_256(0x177b1443, 0x2ef62886, 0x5dec510c, 0xbbd8a218, 0xacc04271, 0x82f182a3, 0xde920307, 0x6655004f)},
    {PLB__CRC_256(0xefc26b3e, 0x04f5d03d, 0x09eba07a, 0x13d740f4, 0x27ae81e8, 0x4f5d03d0, 0x9eba07a0, 0xe6050901)},
    {PLB__CRC_256(0xc18edfc0, 0x586cb9c1, 0xb0d97382, 0xbac3e145, 0xaef6c4cb, 0x869c8fd7, 0xd64819ef, 0x77e1359f)},
    {PLB__CRC_256(0x9ba54c6f, 0xec3b9e9f, 0x03063b7f, 0x060c76fe, 0x0c18edfc, 0x1831dbf8, 0x3063b7f0, 0x60c76fe0)},
    {PLB__CRC_256(0xdd96d985, 0x605cb54b, 0xc0b96a96, 0x5a03d36d, 0xb407a6da, 0xb37e4bf5, 0xbd8d91ab, 0xa06a2517)},
    {PLB__CRC_256(0x9d0fe176, 0xe16ec4ad, 0x19ac8f1b, 0x33591e36, 0x66b23c6c, 0xcd6478d8, 0x41b9f7f1, 0x8373efe2)},
    {PLB__CRC_256(0xb9fbdbe8, 0xa886b191, 0x8a7c6563, 0xcf89cc87, 0x44629f4f, 0x88c53e9e, 0xcafb7b7d, 0x4e87f0bb)},
    {PLB__CRC_256(0xae689191, 0x87a02563, 0xd4314c87, 0x73139f4f, 0xe6273e9e, 0x173f7b7d, 0x2e7ef6fa, 0x5cfdedf4)},
#endif
};

PLB__INLINE uint32_t plb__crc_byte(uint32_t crc, uint8_t byte)
{
    return plb__crc_table[0][(crc ^ byte) & 0xff] ^ crc >> 8;
}
#endif

/* What a CRC register becomes after 4 * words zero bytes: at once, as far as there are tables. */
PLB__INLINE uint32_t plb__crc_shift(uint32_t crc, uint32_t words)
{
#if PLB_CRC_TABLES >= 8
    const uint32_t most = PLB_CRC_TABLES / 4;
    while (words > 0) {
        uint32_t now = words < most ? words : most;
        const uint32_t(*table)[256] = &plb__crc_table[4 * (now - 1)];
        crc = table[3][crc & 0xff] ^ table[2][crc >> 8 & 0xff] ^ table[1][crc >> 16 & 0xff] ^ table[0][crc >> 24];
        words -= now;
    }
#else
    for (words *= 4; words > 0; words--)
        crc = plb__crc_byte(crc, 0);
#endif
    return crc;
}

/* The register after `count` more bytes; the CRC-32 is its complement, and it starts at 0xffffffff. */
PLB__INLINE uint32_t plb__crc_update(uint32_t crc, const void *bytes, size_t count)
{
    const uint8_t *at = (const uint8_t *)bytes;
    for (; PLB_CRC_TABLES >= 16 && count >= 16; count -= 16, at += 16)
        crc = plb__crc_shift(crc ^ plb__load_le32(at), 4) ^ plb__crc_shift(plb__load_le32(at + 4), 3) ^
              plb__crc_shift(plb__load_le32(at + 8), 2) ^ plb__crc_shift(plb__load_le32(at + 12), 1);
    for (; PLB_CRC_TABLES >= 8 && count >= 8; count -= 8, at += 8)
        crc = plb__crc_shift(crc ^ plb__load_le32(at), 2) ^ plb__crc_shift(plb__load_le32(at + 4), 1);
    for (; count >= 4; count -= 4, at += 4)
        crc = plb__crc_shift(crc ^ plb__load_le32(at), 1);
    for (; count > 0; count--)
        crc = plb__crc_byte(crc, *at++);
    return crc;
}
#endif

/* ==== KETAMA =========================================================================================================
   pingora-ketama's ring, which is nginx's: libketama's idea with CRC-32 for MD5. */

#ifndef PLB_NO_KETAMA
#define PLB__POINT_MULTIPLE_DEFAULT 160u
#define PLB__MAX_POINTS_DEFAULT     (UINT32_C(1) << 24)
#define PLB__MAX_POINTS_LIMIT       (UINT32_C(1) << 31) /* keeps sizes within their types */

typedef struct plb__ketama_state {
    plb_allocator allocator;
    uint32_t max_points;
    uint32_t point_multiple;
} plb__ketama_state;

/* Numbers of backends: 2 bytes each where that is enough. */
typedef struct plb__owners {
    uint16_t *narrow; /* or NULL: */
    uint32_t *wide;
} plb__owners;

/* Taken from `memory`. */
PLB__INLINE plb__owners plb__owners_in(uint32_t *memory, bool narrow)
{
    plb__owners owners;
    owners.narrow = narrow ? (uint16_t *)memory : NULL;
    owners.wide = narrow ? NULL : memory;
    return owners;
}

/* One number more than there are backends must fit: that of what comes after the last. */
PLB__INLINE bool plb__owners_narrow(uint32_t backends)
{
    return backends <= UINT16_MAX;
}

PLB__INLINE size_t plb__owners_size(bool narrow, size_t count)
{
    return count * (narrow ? sizeof(uint16_t) : sizeof(uint32_t));
}

PLB__INLINE uint32_t plb__owners_get(const plb__owners *owners, uint32_t at)
{
    return PLB__LIKELY(owners->narrow != NULL) ? owners->narrow[at] : owners->wide[at];
}

PLB__INLINE void plb__owners_set(const plb__owners *owners, uint32_t at, uint32_t owner)
{
    if (PLB__LIKELY(owners->narrow != NULL))
        owners->narrow[at] = (uint16_t)owner;
    else
        owners->wide[at] = owner;
}

/* The points of all backends in order, and whose they are; of equal points the one whose owner comes first in the set
   stands first, and it alone counts: the others are shadowed. The circle of hashes is divided into groups by the upper
   bits, and `starts` says where in the array each begins, so that a search is a look at a few neighbours. 6 bytes a
   point and 4 a group. */
typedef struct plb__ring {
    size_t size; /* of this allocation */
    uint32_t count;
    uint32_t backends;
    uint32_t shift;   /* of a point: what is left is its group */
    uint32_t *starts; /* by group */
    uint32_t *points; /* and PLB__RING_GLANCE more that are before no hash */
    plb__owners owners;
} plb__ring;

#define PLB__RING_GLANCE  16u /* points that a search looks at together: more than it passes in nearly all groups */
#define PLB__GROUP_POINTS 7u  /* at least, on average, and less than twice as many */

/* Rings of about the same size have the same groups: one can be made from the other. */
static uint32_t plb__ring_shift(uint32_t points)
{
    uint32_t shift = 31;
    while (points / PLB__GROUP_POINTS >> (33 - shift) > 0)
        shift--;
    return shift;
}

static uint32_t plb__ring_groups(const plb__ring *ring)
{
    return UINT32_C(1) << (32 - ring->shift);
}

static plb_status plb__ketama_open(void *opaque, const void *opaque_desc, const plb_env *env)
{
    plb__ketama_state *state = (plb__ketama_state *)opaque;
    const plb_ketama_desc *desc = (const plb_ketama_desc *)opaque_desc;
    state->allocator = env->allocator;
    state->max_points = desc != NULL && desc->max_points > 0 ? desc->max_points : PLB__MAX_POINTS_DEFAULT;
    if (state->max_points > PLB__MAX_POINTS_LIMIT)
        state->max_points = PLB__MAX_POINTS_LIMIT;
    state->point_multiple =
        desc != NULL && desc->point_multiple > 0 ? desc->point_multiple : PLB__POINT_MULTIPLE_DEFAULT;
    return PLB_OK;
}

/* A ring without its starts, points and owners. */
static plb__ring *plb__ring_new(const plb_allocator *a, uint32_t points, uint32_t backends)
{
    bool narrow = plb__owners_narrow(backends);
    uint32_t shift = plb__ring_shift(points), groups = UINT32_C(1) << (32 - shift);
    size_t numbers = (size_t)groups + points + PLB__RING_GLANCE;
    size_t size = sizeof(plb__ring) + numbers * sizeof(uint32_t) + plb__owners_size(narrow, points);
    plb__ring *ring = (plb__ring *)a->alloc(a->user, size);
    if (ring == NULL)
        return NULL;
    ring->size = size;
    ring->count = points;
    ring->backends = backends;
    ring->shift = shift;
    ring->starts = (uint32_t *)(ring + 1);
    ring->points = ring->starts + groups;
    ring->owners = plb__owners_in(ring->starts + numbers, narrow);
    memset(ring->points + points, 0xff, PLB__RING_GLANCE * sizeof(uint32_t));
    return ring;
}

static void plb__ring_delete(const plb_allocator *a, plb__ring *ring)
{
    if (ring != NULL)
        plb__delete(a, ring, ring->size);
}

/* ---- on the ring: `at` numbers its points from 0; a ring without points is not asked ---- */

/* The first point at or after a hash, wrapping. Points stand in order, so counting those before the hash finds it, and
   counting a fixed number of them takes no branch that could go wrong. */
PLB__INLINE uint32_t plb__ring_seek(const plb__ring *ring, uint32_t hash)
{
    uint32_t at = ring->starts[hash >> ring->shift], before, i;
    if (PLB__LIKELY(ring->owners.narrow != NULL)) /* it will be wanted as well */
        PLB__PREFETCH(ring->owners.narrow + at + PLB__GROUP_POINTS / 2);
    do {
        const uint32_t *points = ring->points + at;
        for (before = i = 0; i < PLB__RING_GLANCE; i++)
            before += points[i] < hash;
        at += before;
    } while (PLB__UNLIKELY(before == PLB__RING_GLANCE));
    return PLB__LIKELY(at < ring->count) ? at : 0;
}

PLB__INLINE uint32_t plb__ring_seek_key(const plb__ring *ring, const void *key, size_t key_length)
{
    return plb__ring_seek(ring, ~plb__crc_update(UINT32_MAX, key, key_length));
}

PLB__INLINE uint32_t plb__ring_owner(const plb__ring *ring, uint32_t at)
{
    return plb__owners_get(&ring->owners, at);
}

/* The next point, past those that are shadowed. */
PLB__INLINE uint32_t plb__ring_next(const plb__ring *ring, uint32_t at)
{
    do {
        if (PLB__UNLIKELY(++at == ring->count))
            return 0;
    } while (PLB__UNLIKELY(ring->points[at] == ring->points[at - 1]));
    return at;
}

/* ---- building a ring ---- */

/* While it is built, a point with its owner is one number, and the order of these numbers is that of the ring. */
PLB__INLINE uint64_t plb__ring_entry(uint32_t point, uint32_t owner)
{
    return (uint64_t)point << 32 | owner;
}

/* Points come in random order. Writing them all over a large ring would miss every cache, so they are first collected
   in batches, by their upper bits; then one batch after the other is sorted. To that end a batch is divided into
   buckets by the next bits, so many that few get two points. */
#define PLB__BATCH_POINTS 1536u /* at least, on average, and less than twice as many */
#define PLB__BUCKET_BITS  11
#define PLB__BUCKETS      (1u << PLB__BUCKET_BITS)

/* Where the next point of a batch goes, and where the batch ends; it begins where the one before it ends. */
typedef struct plb__ring_batch {
    uint32_t next, limit;
} plb__ring_batch;

/* What a build needs until it is over: an allocation with room for all batches. */
typedef struct plb__ring_work {
    size_t size; /* of the allocation */
    uint64_t *entries;
    plb__ring_batch *batches;
    uint32_t count;
    uint32_t shift; /* of a point: what is left is its batch */
} plb__ring_work;

#define PLB__LINE_ENTRIES  ((uint32_t)(PLB__CACHE_LINE / sizeof(uint64_t)))
#define PLB__ENTRIES_AHEAD (4 * PLB__LINE_ENTRIES) /* how far ahead a batch is fetched; it must be in the array */

/* A batch has room for six standard deviations more than the mean. That is an odd number of cache lines, lest all
   batches compete for the same sets of a cache. */
static bool plb__ring_work_open(plb__ring_work *work, const plb_allocator *a, uint32_t points)
{
    uint32_t shift = 31, count, room, i;
    size_t entries;
    while (points / PLB__BATCH_POINTS >> (33 - shift) > 0)
        shift--;
    count = UINT32_C(1) << (32 - shift);
    room = points / count;
    room = ((room + room / 8 + 40) / PLB__LINE_ENTRIES | 1) * PLB__LINE_ENTRIES;
    entries = (size_t)room * count + PLB__ENTRIES_AHEAD;
    work->size = entries * sizeof(uint64_t) + count * sizeof(plb__ring_batch);
    work->entries = (uint64_t *)a->alloc(a->user, work->size);
    if (work->entries == NULL)
        return false;
    work->batches = (plb__ring_batch *)(work->entries + entries);
    work->count = count;
    work->shift = shift;
    for (i = 0; i < count; i++) {
        work->batches[i].next = i * room;
        work->batches[i].limit = (i + 1) * room;
    }
    return true;
}

/* The CRC register after what all points of a backend start with: HOST NUL PORT; for a Unix path: PATH NUL, as nginx.
   Where each weighs 1 this was a tenth of a build, hence the short cut for IPv4. */
static uint32_t plb__ring_base(const plb_addr *addr)
{
    char buffer[PLB_ADDR_TEXT_MAX], *at = buffer;
    if (addr->family == PLB_FAMILY_IPV4) {
        at = plb__write_v4(at, addr->u.v4);
        *at++ = '\0';
    } else {
        plb__text text = plb__text_in(buffer, sizeof buffer);
        plb__put_host(&text, addr);
        at += text.length + 1; /* the text ends with its NUL */
    }
    if (!plb__addr_is_path(addr))
        at = plb__decimal(at, addr->port);
    return plb__crc_update(UINT32_MAX, buffer, (size_t)(at - buffer));
}

/* Adds a point to its batch; past its limit a batch only counts. */
PLB__INLINE void plb__ring_put(const plb__ring_work *work, uint32_t point, uint32_t owner)
{
    plb__ring_batch *batch = &work->batches[point >> work->shift];
    uint32_t at = batch->next++;
    if (PLB__LIKELY(at < batch->limit)) {
        work->entries[at] = plb__ring_entry(point, owner);
        PLB__PREFETCH_LATER(&work->entries[at + PLB__LINE_ENTRIES]);
    }
}

/* Computes all points. Each is the complement of the CRC register after the base and the point before it, from 0 on.
   CRCs are linear, so that is the point before, shifted through, plus the first point; as well it is the point four
   steps before, shifted through four times as far, plus the fourth point. So four points at once come from one. */
static void plb__ring_fill(const plb__ring_work *target, const plb_view *view, const uint16_t *weights,
                           uint32_t multiple)
{
    plb__ring_work work = *target; /* a copy, which no store can change */
    uint32_t i;
    for (i = 0; i < view->count; i++) {
        uint32_t left = weights[i] * multiple, point = 0, first, second, third, fourth;
        if (left == 0)
            continue;
        first = ~plb__crc_shift(plb__ring_base(&view->slots[i]->addr), 1);
        second = plb__crc_shift(first, 1) ^ first;
        third = plb__crc_shift(second, 1) ^ first;
        fourth = plb__crc_shift(third, 1) ^ first;
        for (; left >= 4; left -= 4) {
            plb__ring_put(&work, plb__crc_shift(point, 1) ^ first, i);
            plb__ring_put(&work, plb__crc_shift(point, 2) ^ second, i);
            plb__ring_put(&work, plb__crc_shift(point, 3) ^ third, i);
            point = plb__crc_shift(point, 4) ^ fourth;
            plb__ring_put(&work, point, i);
        }
        for (; left > 0; left--) {
            point = plb__crc_shift(point, 1) ^ first;
            plb__ring_put(&work, point, i);
        }
    }
}

/* Where a batch was too small (one address many times), gives each the room that it turned out to need, and lets it
   begin anew. False if there was room. */
static bool plb__ring_make_room(plb__ring_work *work)
{
    uint32_t i, start = 0, room = 0;
    bool full = false;
    for (i = 0; i < work->count; i++)
        full = full || work->batches[i].next > work->batches[i].limit;
    for (i = 0; full && i < work->count; i++) {
        plb__ring_batch *batch = &work->batches[i];
        uint32_t points = batch->next - start;
        start = batch->limit;
        batch->next = room;
        batch->limit = room += points;
    }
    return full;
}

/* What sorting a batch needs: a number for each of its buckets, and room for the largest batch. */
typedef struct plb__ring_sorter {
    size_t size; /* of the allocation */
    uint64_t *sorted;
    uint32_t *buckets;
    uint32_t shift; /* of an entry: what is left, but for the batch, is its bucket */
} plb__ring_sorter;

static bool plb__ring_sorter_open(plb__ring_sorter *sorter, const plb_allocator *a, const plb__ring_work *work)
{
    uint32_t largest = 0, from = 0, i;
    for (i = 0; i < work->count; i++) {
        uint32_t count = work->batches[i].next - from;
        largest = count > largest ? count : largest;
        from = work->batches[i].limit;
    }
    sorter->size = largest * sizeof(uint64_t) + PLB__BUCKETS * sizeof(uint32_t);
    sorter->sorted = (uint64_t *)a->alloc(a->user, sorter->size);
    if (sorter->sorted == NULL)
        return false;
    sorter->buckets = (uint32_t *)(sorter->sorted + largest);
    sorter->shift = 32 + work->shift - PLB__BUCKET_BITS;
    return true;
}

PLB__INLINE uint32_t *plb__ring_bucket(const plb__ring_sorter *sorter, uint64_t entry)
{
    return &sorter->buckets[(entry >> sorter->shift) & (PLB__BUCKETS - 1)];
}

/* Finds where in the sorted batch each bucket will start. */
static void plb__ring_count(const plb__ring_sorter *target, const uint64_t *entries, uint32_t count)
{
    plb__ring_sorter sorter = *target;
    uint32_t i, sum = 0;
    memset(sorter.buckets, 0, PLB__BUCKETS * sizeof *sorter.buckets);
    for (i = 0; i < count; i++) {
        PLB__PREFETCH(&entries[i + PLB__ENTRIES_AHEAD]);
        ++*plb__ring_bucket(&sorter, entries[i]);
    }
    for (i = 0; i < PLB__BUCKETS; i++) {
        uint32_t here = sorter.buckets[i];
        sorter.buckets[i] = sum;
        sum += here;
    }
}

/* Puts the entries of a batch into their buckets. */
static void plb__ring_sort(const plb__ring_sorter *target, const uint64_t *entries, uint32_t count)
{
    plb__ring_sorter sorter = *target;
    uint32_t i;
    for (i = 0; i < count; i++)
        sorter.sorted[(*plb__ring_bucket(&sorter, entries[i]))++] = entries[i];
}

/* Stores a batch, sorted but for the order within its buckets, from point `at` of the ring on: by insertion, which has
   little to do. To take even fewer branches that go wrong, it holds back the greatest entry so far. */
static void plb__ring_store(const plb__ring *target, uint32_t at, const uint64_t *sorted, uint32_t count)
{
    uint32_t *points = target->points, i;
    plb__owners owners = target->owners;
    uint64_t last = 0, greatest = count > 0 ? sorted[0] : 0;
    for (i = 1; i <= count; i++) {
        uint64_t next = i < count ? sorted[i] : UINT64_MAX;
        uint64_t entry = next < greatest ? next : greatest;
        uint32_t to = at + i - 1;
        greatest = next < greatest ? greatest : next;
        if (PLB__LIKELY(entry >= last)) {
            last = entry;
        } else {
            for (; to > at && plb__ring_entry(points[to - 1], plb__owners_get(&owners, to - 1)) > entry; to--) {
                points[to] = points[to - 1];
                plb__owners_set(&owners, to, plb__owners_get(&owners, to - 1));
            }
        }
        points[to] = (uint32_t)(entry >> 32);
        plb__owners_set(&owners, to, (uint32_t)entry);
    }
}

/* Sorts batch after batch into the ring. A group is a run of buckets, and starts where the first of them does. */
static void plb__ring_collect(plb__ring *ring, const plb__ring_work *work, const plb__ring_sorter *sorter)
{
    uint32_t groups = plb__ring_groups(ring) / work->count, i, g, from = 0, at = 0;
    for (i = 0; i < work->count; i++) {
        uint32_t count = work->batches[i].next - from;
        plb__ring_count(sorter, work->entries + from, count);
        for (g = 0; g < groups; g++)
            ring->starts[i * groups + g] = at + sorter->buckets[g * (PLB__BUCKETS / groups)];
        plb__ring_sort(sorter, work->entries + from, count);
        plb__ring_store(ring, at, sorter->sorted, count);
        at += count;
        from = work->batches[i].limit;
    }
}

/* Fills and sorts a ring by way of batches, fast however large it is; false if there is no memory for them. */
static bool plb__ring_sort_apart(plb__ring *ring, const plb__ketama_state *state, const plb_view *view,
                                 const uint16_t *weights)
{
    const plb_allocator *a = &state->allocator;
    plb__ring_work work;
    plb__ring_sorter sorter;
    bool built = false;
    if (plb__ring_work_open(&work, a, ring->count)) {
        plb__ring_fill(&work, view, weights, state->point_multiple);
        if (plb__ring_make_room(&work))
            plb__ring_fill(&work, view, weights, state->point_multiple);
        built = plb__ring_sorter_open(&sorter, a, &work);
        if (built) {
            plb__ring_collect(ring, &work, &sorter);
            plb__delete(a, sorter.sorted, sorter.size);
        }
        plb__delete(a, work.entries, work.size);
    }
    return built;
}

/* ---- the same where small code is asked for: a heap sort, which needs no memory but the ring's own ---- */

static uint64_t plb__ring_get(const plb__ring *ring, uint32_t at)
{
    return plb__ring_entry(ring->points[at], plb__ring_owner(ring, at));
}

static void plb__ring_set(plb__ring *ring, uint32_t at, uint64_t entry)
{
    ring->points[at] = (uint32_t)(entry >> 32);
    plb__owners_set(&ring->owners, at, (uint32_t)entry);
}

/* Lets an entry sink from `at` on to its place in the heap of the first `count`. */
static void plb__ring_sink(plb__ring *ring, uint32_t at, uint32_t count, uint64_t entry)
{
    uint32_t child = at;
    while (child < count / 2) {
        child = 2 * child + 1;
        if (child + 1 < count && plb__ring_get(ring, child + 1) > plb__ring_get(ring, child))
            child++;
        if (plb__ring_get(ring, child) <= entry)
            break;
        plb__ring_set(ring, at, plb__ring_get(ring, child));
        at = child;
    }
    plb__ring_set(ring, at, entry);
}

static void plb__ring_sort_in_place(plb__ring *ring, const plb__ketama_state *state, const plb_view *view,
                                    const uint16_t *weights)
{
    uint32_t count = 0, i;
    for (i = 0; i < view->count; i++) {
        uint32_t left = weights[i] * state->point_multiple, point = 0, first;
        first = ~plb__crc_shift(plb__ring_base(&view->slots[i]->addr), 1);
        for (; left > 0; left--) {
            point = plb__crc_shift(point, 1) ^ first;
            plb__ring_set(ring, count++, plb__ring_entry(point, i));
        }
    }
    for (i = count / 2; i-- > 0;)
        plb__ring_sink(ring, i, count, plb__ring_get(ring, i));
    for (i = count; i-- > 1;) {
        uint64_t entry = plb__ring_get(ring, i);
        plb__ring_set(ring, i, plb__ring_get(ring, 0));
        plb__ring_sink(ring, 0, i, entry);
    }
    for (i = count = 0; i < plb__ring_groups(ring); i++) {
        while (count < ring->count && ring->points[count] >> ring->shift < i)
            count++;
        ring->starts[i] = count;
    }
}

/* ---- either way ---- */

/* The ring of a view, with weights that may be others than its own; NULL if there is no memory. */
static plb__ring *plb__ring_build(const plb__ketama_state *state, const plb_view *view, const uint16_t *weights,
                                  uint32_t points)
{
    plb__ring *ring = plb__ring_new(&state->allocator, points, view->count);
    if (ring == NULL)
        return NULL;
    if (PLB__SMALL) {
        plb__ring_sort_in_place(ring, state, view, weights);
    } else if (!plb__ring_sort_apart(ring, state, view, weights)) {
        plb__ring_delete(&state->allocator, ring);
        return NULL;
    }
    return ring;
}

#ifndef PLB_NO_UPDATES
/* ---- amending a ring: the published one, without the points of those that leave, with those of the newcomers ----
   Both are rings of their own, built as any other. Shadowed points stand on every ring, so that one comes to light when
   the owner of its equal leaves. */

/* How two views differ. */
typedef struct plb__ring_change {
    size_t size; /* of the allocation */
    uint32_t *memory;
    plb__owners numbers; /* by old index: the new one; of one that leaves, the new one of what comes after it */
    uint16_t *leaving;   /* by old index: the weight, 0 of those that stay */
    uint16_t *coming;    /* by new index: likewise */
    uint32_t leaving_sum, coming_sum;
} plb__ring_change;

/* In the order of sets. An entry that has another weight is another entry. */
static int plb__ring_entry_compare(const plb_view *a, uint32_t i, const plb_view *b, uint32_t j)
{
    const plb__slot *x = a->slots[i], *y = b->slots[j];
    int order = x == y ? 0 : plb__identity_compare(&x->addr, x->id, &y->addr, y->id);
    return order != 0 ? order : (int)a->weights[i] - (int)b->weights[j];
}

static bool plb__ring_change_open(plb__ring_change *change, const plb_allocator *a, const plb_view *old,
                                  const plb_view *view)
{
    bool narrow = plb__owners_narrow(view->count);
    size_t numbers_size = plb__owners_size(narrow, old->count);
    uint32_t i = 0, j = 0;
    change->size = numbers_size + ((size_t)old->count + view->count) * sizeof(uint16_t);
    change->memory = (uint32_t *)plb__new(a, change->size);
    if (change->memory == NULL)
        return false;
    change->numbers = plb__owners_in(change->memory, narrow);
    change->leaving = (uint16_t *)(void *)((char *)change->memory + numbers_size);
    change->coming = change->leaving + old->count;
    change->leaving_sum = change->coming_sum = 0;
    while (i < old->count || j < view->count) {
        int order = i == old->count ? 1 : j == view->count ? -1 : plb__ring_entry_compare(old, i, view, j);
        if (order <= 0)
            plb__owners_set(&change->numbers, i, j);
        if (order < 0)
            change->leaving_sum += change->leaving[i] = old->weights[i];
        if (order > 0)
            change->coming_sum += change->coming[j] = view->weights[j];
        i += order <= 0;
        j += order >= 0;
    }
    return true;
}

/* A new ring on its way: how far the old one has been copied, and where the copy has got to. */
typedef struct plb__ring_copy {
    plb__ring *ring;
    const plb__ring *old;
    const plb__owners *numbers;
    uint32_t from, to, group;
} plb__ring_copy;

/* Copies the old points before `end`, and the starts of the groups before `group`: they have moved as the points
   have. */
static void plb__ring_copy_run(plb__ring_copy *copy, uint32_t end, uint32_t group)
{
    plb__ring *ring = copy->ring;
    const plb__ring *old = copy->old;
    uint32_t from = copy->from, to = copy->to, shift = to - from, count = end - from, i;
    for (; copy->group < group; copy->group++)
        ring->starts[copy->group] = old->starts[copy->group] + shift;
    memcpy(ring->points + to, old->points + from, count * sizeof *ring->points);
    if (ring->owners.narrow != NULL) {
        const uint16_t *numbers = copy->numbers->narrow, *source = old->owners.narrow + from;
        uint16_t *target = ring->owners.narrow + to;
        for (i = 0; i < count; i++)
            target[i] = numbers[source[i]];
    } else {
        const uint32_t *numbers = copy->numbers->wide, *source = old->owners.wide + from;
        uint32_t *target = ring->owners.wide + to;
        for (i = 0; i < count; i++)
            target[i] = numbers[source[i]];
    }
    copy->from = end;
    copy->to += count;
}

/* Where in the old ring an entry is, or would be; owners are new ones. */
static uint32_t plb__ring_place(const plb__ring_copy *copy, uint64_t entry)
{
    const plb__ring *old = copy->old;
    uint32_t at = old->starts[(uint32_t)(entry >> 32) >> old->shift];
    if (at < copy->from)
        at = copy->from;
    while (at < old->count &&
           plb__ring_entry(old->points[at], plb__owners_get(copy->numbers, plb__ring_owner(old, at))) < entry)
        at++;
    return at;
}

static void plb__ring_merge(plb__ring *ring, const plb__ring *old, const plb__owners *numbers, const plb__ring *leaving,
                            const plb__ring *coming)
{
    plb__ring_copy copy;
    uint32_t i = 0, j = 0;
    copy.ring = ring;
    copy.old = old;
    copy.numbers = numbers;
    copy.from = copy.to = copy.group = 0;
    while (i < leaving->count || j < coming->count) {
        uint64_t leaves = UINT64_MAX, comes = UINT64_MAX, entry;
        if (i < leaving->count)
            leaves = plb__ring_entry(leaving->points[i], plb__owners_get(numbers, plb__ring_owner(leaving, i)));
        if (j < coming->count)
            comes = plb__ring_entry(coming->points[j], plb__ring_owner(coming, j));
        entry = comes <= leaves ? comes : leaves;
        plb__ring_copy_run(&copy, plb__ring_place(&copy, entry), ((uint32_t)(entry >> 32) >> ring->shift) + 1);
        if (comes <= leaves) {
            ring->points[copy.to] = coming->points[j];
            plb__owners_set(&ring->owners, copy.to, plb__ring_owner(coming, j));
            copy.to++;
            j++;
        } else {
            copy.from++;
            i++;
        }
    }
    plb__ring_copy_run(&copy, old->count, plb__ring_groups(ring));
}

/* Can a ring of so many points and backends be made from the old one? It is the same ring, sooner. */
static bool plb__ring_amendable(const plb__ring *old, uint32_t points, uint32_t backends)
{
    return !PLB__SMALL && old != NULL && old->count > 0 && old->shift == plb__ring_shift(points) &&
           plb__owners_narrow(old->backends) == plb__owners_narrow(backends);
}

static plb__ring *plb__ring_amend(const plb__ketama_state *state, const plb_view *view, uint32_t points,
                                  const plb__ring *old, const plb__ring_change *change, const plb_view *old_view)
{
    const plb_allocator *a = &state->allocator;
    uint32_t multiple = state->point_multiple;
    plb__ring *leaving = plb__ring_build(state, old_view, change->leaving, change->leaving_sum * multiple);
    plb__ring *coming = plb__ring_build(state, view, change->coming, change->coming_sum * multiple);
    plb__ring *ring = leaving != NULL && coming != NULL ? plb__ring_new(a, points, view->count) : NULL;
    if (ring != NULL)
        plb__ring_merge(ring, old, &change->numbers, leaving, coming);
    plb__ring_delete(a, leaving);
    plb__ring_delete(a, coming);
    return ring;
}

/* Up to so large a part of the points, amending is faster than building. */
#define PLB__AMENDED_PART 8

/* The ring for a view, made in the way that is shorter. NULL: no memory. */
static plb__ring *plb__ring_make(const plb__ketama_state *state, const plb_view *view, uint32_t points,
                                 const plb_view *old_view, const plb__ring *old)
{
    plb__ring *ring;
    plb__ring_change change;
    if (!plb__ring_amendable(old, points, view->count))
        return plb__ring_build(state, view, view->weights, points);
    if (!plb__ring_change_open(&change, &state->allocator, old_view, view))
        return NULL;
    if (((uint64_t)change.leaving_sum + change.coming_sum) * PLB__AMENDED_PART <= view->weight_sum)
        ring = plb__ring_amend(state, view, points, old, &change, old_view);
    else
        ring = plb__ring_build(state, view, view->weights, points);
    plb__delete(&state->allocator, change.memory, change.size);
    return ring;
}
#else
PLB__INLINE plb__ring *plb__ring_make(const plb__ketama_state *state, const plb_view *view, uint32_t points,
                                      const plb_view *old_view, const plb__ring *old)
{
    (void)old_view;
    (void)old;
    return plb__ring_build(state, view, view->weights, points);
}
#endif

static plb_status plb__ketama_build(void *opaque, const plb_view *view, const plb_view *old_view, const void *old_table,
                                    void **out)
{
    const plb__ketama_state *state = (const plb__ketama_state *)opaque;
    uint64_t sum = (uint64_t)view->weight_sum * state->point_multiple;
    if (sum > state->max_points)
        return PLB_ERR_POINTS;
    if (sum >= SIZE_MAX / 16)
        return PLB_ERR_MEMORY;
    *out = plb__ring_make(state, view, (uint32_t)sum, old_view, (const plb__ring *)old_table);
    return *out != NULL ? PLB_OK : PLB_ERR_MEMORY;
}

/* Points that a pick without a limit looks at before it goes to the ready backends directly. */
#define PLB__RING_PATIENCE 256

static uint32_t plb__ketama_pick(const void *table, const plb_view *view, plb_reader *reader, const void *key,
                                 size_t key_length, uint32_t limit)
{
    const plb__ring *ring = (const plb__ring *)table;
    uint32_t steps = limit > 0 ? limit : PLB__RING_PATIENCE, ready = PLB__LOAD_RELAXED(&view->ready_count), at;
    (void)reader;
    if (PLB__UNLIKELY(ready == 0))
        return PLB_NONE;
    for (at = plb__ring_seek_key(ring, key, key_length); steps > 0; steps--, at = plb__ring_next(ring, at)) {
        uint32_t owner = plb__ring_owner(ring, at);
        if (PLB__LIKELY(plb__view_ready(view, owner)))
            return owner;
    }
    return limit > 0 ? PLB_NONE : plb__keyed_rest(view, at);
}

#if !defined(PLB_NO_WALK) || !defined(PLB_NO_BOUNDED)
/* The raw sequence remembers the point it has come to. Where all weights are 0 there is no point, and it goes through
   the set. */
static uint32_t plb__ketama_first(const void *table, const plb_view *view, plb_reader *reader, const void *key,
                                  size_t key_length, plb_cursor *cursor)
{
    const plb__ring *ring = (const plb__ring *)table;
    (void)view;
    (void)reader;
    cursor->words[0] = 0;
    if (ring->count == 0)
        return 0;
    cursor->words[0] = plb__ring_seek_key(ring, key, key_length);
    return plb__ring_owner(ring, (uint32_t)cursor->words[0]);
}

static uint32_t plb__ketama_next(const void *table, const plb_view *view, plb_reader *reader, plb_cursor *cursor)
{
    const plb__ring *ring = (const plb__ring *)table;
    (void)view;
    (void)reader;
    if (ring->count == 0)
        return (uint32_t)(++cursor->words[0] % ring->backends);
    cursor->words[0] = plb__ring_next(ring, (uint32_t)cursor->words[0]);
    return plb__ring_owner(ring, (uint32_t)cursor->words[0]);
}
#endif

static const plb_strategy_ops plb__ketama_ops = {"ketama",
                                                 sizeof(plb__ketama_state),
                                                 0,
                                                 true,
                                                 plb__ketama_open,
                                                 NULL,
                                                 plb__ketama_build,
                                                 plb__table_discard,
                                                 PLB__IF_WALK(plb__ketama_first, NULL),
                                                 PLB__IF_WALK(plb__ketama_next, NULL),
                                                 plb__ketama_pick,
                                                 NULL,
                                                 NULL,
                                                 NULL,
                                                 NULL,
                                                 0};

PLB_API plb_strategy plb_ketama(const plb_ketama_desc *desc)
{
    return plb__strategy(&plb__ketama_ops, desc);
}
#endif

/* ==== SMOOTH ROUND ROBIN =============================================================================================
   nginx's smooth weighted round robin, by groups of equal weight instead of by backend.

   nginx keeps a value for each backend: a pick adds the backend's weight to each value, takes the backend of the
   largest (of equals the first) and takes the sum of the weights off that value. So after t picks a value is
   t * weight - (times picked) * sum. Backends of equal weight differ in the second term alone: whoever was picked less
   often is ahead, and they go round in order. Hence one number says it for all of a group: its debt, which grows by the
   sum each time that the group has gone round. The value of the member whose turn it is, the largest in the group, is
   t * weight - debt.

   Nothing of this is written in one piece, and need not be: threads that pick at the same moment may choose the same
   group, but each pays for it, and what was paid decides the next picks. So shares are exact in the long run, whatever
   happens in between, and from one thread every pick is nginx's. */

#ifndef PLB_NO_SMOOTH
/* All arithmetic of values is modulo 2^32, on every platform: they only need to lie close together, within a few times
   the sum of the weights. Where the weights add up to more than this, all are halved until they do not. */
#define PLB__SMOOTH_SUM_MAX (UINT32_C(1) << 26)

/* Backends of one weight. */
typedef struct plb__smooth_group {
    uint32_t weight; /* fixed when built */
    uint32_t ready;  /* members that are */
    uint32_t next;   /* place of the member whose turn it is */
    uint32_t debt;   /* what its turns have cost */
} plb__smooth_group;

/* What every pick changes. */
typedef struct plb__smooth_sums {
    uint32_t picks;
    uint32_t weight; /* of the ready members of all groups */
} plb__smooth_sums;

/* Places are the backends by weight, then in set order, so the members of a group stand side by side. They have
   readiness bits of their own: to find the next ready member of a group is to look for the next one in a few words. */
typedef struct plb__smooth_table {
    size_t size; /* of this allocation */
    plb__smooth_sums *sums;
    plb__smooth_group *groups; /* by weight */
    uintptr_t *ready;          /* a bit a place */
    uint32_t *members;         /* by place: index in the view */
    uint32_t *starts;          /* of each group's places, and where the last one ends */
    uint32_t group_count;
    uint32_t shift; /* how often weights were halved */
} plb__smooth_table;

/* The weight that counts. One that is not 0 does not become 0. */
PLB__INLINE uint32_t plb__smooth_weight(const plb_view *view, uint32_t index, uint32_t shift)
{
    uint32_t weight = view->weights[index];
    return weight > 0 && weight >> shift == 0 ? 1 : weight >> shift;
}

static uint32_t plb__smooth_shift(const plb_view *view)
{
    uint32_t shift = 0;
    if (view->weight_sum > PLB__SMOOTH_SUM_MAX)
        while (shift < 16 && (view->weight_sum >> shift) + view->count > PLB__SMOOTH_SUM_MAX)
            shift++;
    return shift;
}

/* One pass of a radix sort, by four bits of the weight; stable. `from` NULL: the view's own order. */
static void plb__smooth_sort(const plb_view *view, uint32_t bits, const uint32_t *from, uint32_t *to)
{
    uint32_t ends[16], i, end = 0;
    memset(ends, 0, sizeof ends);
    for (i = 0; i < view->count; i++)
        ends[view->weights[i] >> bits & 15]++;
    for (i = 0; i < 16; i++) {
        uint32_t here = ends[i];
        ends[i] = end;
        end += here;
    }
    for (i = 0; i < view->count; i++) {
        uint32_t index = from != NULL ? from[i] : i;
        to[ends[view->weights[index] >> bits & 15]++] = index;
    }
}

static plb__smooth_table *plb__smooth_new(const plb_allocator *a, const plb_view *view, uint32_t groups)
{
    size_t ready_size = view->words * sizeof(uintptr_t), groups_size = groups * sizeof(plb__smooth_group);
    size_t size = sizeof(plb__smooth_table) + ready_size + sizeof(plb__smooth_sums) + groups_size +
                  ((size_t)groups + 1 + view->count) * sizeof(uint32_t);
    plb__smooth_table *table = (plb__smooth_table *)plb__new(a, size);
    if (table == NULL)
        return NULL;
    table->size = size;
    table->ready = (uintptr_t *)(table + 1);
    table->sums = (plb__smooth_sums *)(void *)(table->ready + view->words);
    table->groups = (plb__smooth_group *)(table->sums + 1);
    table->starts = (uint32_t *)(table->groups + groups);
    table->members = table->starts + groups + 1;
    return table;
}

/* The first ready place from one on. If that is not before `end`, there is none before it. */
PLB__INLINE uint32_t plb__smooth_find(const plb__smooth_table *table, uint32_t place, uint32_t end)
{
    while (place < end) {
        uintptr_t word = PLB__LOAD_RELAXED(&table->ready[place / PLB__WORD_BITS]) >> place % PLB__WORD_BITS;
        if (PLB__LIKELY(word != 0))
            return place + plb__lowest_one(word);
        place += PLB__WORD_BITS - place % PLB__WORD_BITS;
    }
    return place;
}

/* Fills in a table for the backends in their order by weight. */
static void plb__smooth_fill(plb__smooth_table *table, const plb_view *view, const uint32_t *order)
{
    plb__smooth_group *group = NULL;
    uint32_t place, g;
    for (place = 0; place < view->count; place++) {
        uint32_t index = order[place], weight = plb__smooth_weight(view, index, table->shift);
        if (group == NULL || group->weight != weight) {
            group = &table->groups[table->group_count];
            group->weight = weight;
            table->starts[table->group_count++] = place;
        }
        table->members[place] = index;
        if (plb__view_ready(view, index)) {
            table->ready[place / PLB__WORD_BITS] |= (uintptr_t)1 << place % PLB__WORD_BITS;
            table->sums->weight += weight;
            group->ready++;
        }
    }
    table->starts[table->group_count] = view->count;
    for (g = 0; g < table->group_count; g++) {
        uint32_t end = table->starts[g + 1], first = plb__smooth_find(table, table->starts[g], end);
        table->groups[g].next = first < end ? first : table->starts[g];
    }
}

static plb_status plb__smooth_build(void *opaque, const plb_view *view, const plb_view *old_view, const void *old_table,
                                    void **out)
{
    const plb_allocator *a = (const plb_allocator *)opaque;
    size_t order_size = 2 * (size_t)view->count * sizeof(uint32_t);
    uint32_t *order = (uint32_t *)a->alloc(a->user, order_size), *half;
    uint32_t shift = plb__smooth_shift(view), groups = 1, i;
    plb__smooth_table *table;
    (void)old_view;
    (void)old_table;
    if (order == NULL)
        return PLB_ERR_MEMORY;
    half = order + view->count;
    plb__smooth_sort(view, 0, NULL, half);
    plb__smooth_sort(view, 4, half, order);
    plb__smooth_sort(view, 8, order, half);
    plb__smooth_sort(view, 12, half, order);
    for (i = 1; i < view->count; i++)
        groups += plb__smooth_weight(view, order[i], shift) != plb__smooth_weight(view, order[i - 1], shift);
    table = plb__smooth_new(a, view, groups);
    if (table != NULL) {
        table->shift = shift;
        plb__smooth_fill(table, view, order);
        *out = table;
    }
    plb__delete(a, order, order_size);
    return table != NULL ? PLB_OK : PLB_ERR_MEMORY;
}

/* A walk remembers the choices that it has shown, so that each is another one; after that many it goes through the set
   in order. */
#define PLB__SMOOTH_CHOICES 6

enum { PLB__SMOOTH_SHOWN, PLB__SMOOTH_FIRST_SHOWN, PLB__SMOOTH_PLAIN = PLB__SMOOTH_FIRST_SHOWN + PLB__SMOOTH_CHOICES };

static bool plb__smooth_shown(const plb_cursor *cursor, uint32_t index)
{
    uint64_t i;
    for (i = 0; i < cursor->words[PLB__SMOOTH_SHOWN]; i++)
        if (cursor->words[PLB__SMOOTH_FIRST_SHOWN + i] == index)
            return true;
    return false;
}

/* The group whose member is next, or NULL. One number ranks values, and of equal ones the smaller index. */
PLB__INLINE plb__smooth_group *plb__smooth_choose(const plb__smooth_table *table, const plb_cursor *shown)
{
    plb__smooth_group *group = table->groups, *end = group + table->group_count, *chosen = NULL;
    uint32_t picks = PLB__LOAD_RELAXED(&table->sums->picks) + 1;
    int64_t best = INT64_MIN;
    for (; group < end; group++) {
        uint32_t index = table->members[PLB__LOAD_RELAXED(&group->next)];
        uint32_t value = picks * group->weight - PLB__LOAD_RELAXED(&group->debt);
        int64_t rank = (int64_t)((uint64_t)value << 32) - index;
        if (PLB__LOAD_RELAXED(&group->ready) == 0 || (shown != NULL && plb__smooth_shown(shown, index)))
            continue;
        chosen = rank > best ? group : chosen;
        best = rank > best ? rank : best;
    }
    return chosen;
}

/* The ready place whose turn it is, from one on; goes round once, and counts that. Not before `end`: there is none. */
PLB__INLINE uint32_t plb__smooth_turn(const plb__smooth_table *table, uint32_t place, uint32_t start, uint32_t end,
                                      uint32_t *turns)
{
    uint32_t found = plb__smooth_find(table, place, end);
    if (found < end)
        return found;
    ++*turns;
    return plb__smooth_find(table, start, end);
}

/* One pick. Only a thread that moves a group on in the same moment makes another one choose again. PLB_NONE: nothing is
   ready, or its flip is being told. */
PLB__INLINE uint32_t plb__smooth_take(const plb__smooth_table *table, const plb_cursor *shown)
{
    plb__smooth_group *group;
    while ((group = plb__smooth_choose(table, shown)) != NULL) {
        const uint32_t *bounds = table->starts + (group - table->groups);
        uint32_t start = bounds[0], end = bounds[1], turns = 0, place = PLB__LOAD_RELAXED(&group->next);
        uint32_t found = plb__smooth_turn(table, place, start, end, &turns), next;
        if (PLB__UNLIKELY(found >= end))
            break;
        next = plb__smooth_turn(table, found + 1, start, end, &turns);
        if (PLB__UNLIKELY(next >= end))
            next = found; /* it went down in this moment */
        if (next != place && !plb__cas32(&group->next, place, next))
            continue;
        if (turns > 0)
            plb__fetch_add(&group->debt, turns * PLB__LOAD_RELAXED(&table->sums->weight));
        plb__fetch_add(&table->sums->picks, 1);
        return table->members[found];
    }
    return PLB_NONE;
}

static uint32_t plb__smooth_pick(const void *table, const plb_view *view, plb_reader *reader, const void *key,
                                 size_t key_length, uint32_t limit)
{
    uint32_t index;
    (void)key;
    (void)key_length;
    (void)limit; /* the first of the sequence is a ready one, if there is one */
    if (PLB__UNLIKELY(PLB__LOAD_RELAXED(&view->ready_count) == 0))
        return PLB_NONE;
    index = plb__smooth_take((const plb__smooth_table *)table, NULL);
    if (PLB__LIKELY(index != PLB_NONE && plb__view_ready(view, index)))
        return index;
    return plb_view_draw(view, reader); /* a flip is still to be told to the table */
}

#ifndef PLB_NO_WALK
static uint32_t plb__smooth_next(const void *table, const plb_view *view, plb_reader *reader, plb_cursor *cursor)
{
    (void)reader;
    if (cursor->words[PLB__SMOOTH_SHOWN] < PLB__SMOOTH_CHOICES) {
        uint32_t index = plb__smooth_take((const plb__smooth_table *)table, cursor);
        if (index != PLB_NONE) {
            cursor->words[PLB__SMOOTH_FIRST_SHOWN + cursor->words[PLB__SMOOTH_SHOWN]++] = index;
            cursor->words[PLB__SMOOTH_PLAIN] = index + UINT64_C(1);
            return index;
        }
    }
    return (uint32_t)(cursor->words[PLB__SMOOTH_PLAIN]++ % view->count);
}

static uint32_t plb__smooth_first(const void *table, const plb_view *view, plb_reader *reader, const void *key,
                                  size_t key_length, plb_cursor *cursor)
{
    (void)key;
    (void)key_length;
    cursor->words[PLB__SMOOTH_SHOWN] = cursor->words[PLB__SMOOTH_PLAIN] = 0;
    return plb__smooth_next(table, view, reader, cursor);
}
#endif

/* Where a number stands in a rising array, which has it. */
static uint32_t plb__smooth_place(const plb__smooth_table *table, uint32_t low, uint32_t high, uint32_t index)
{
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (table->members[middle] < index)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static uint32_t plb__smooth_group_of(const plb__smooth_table *table, uint32_t weight)
{
    uint32_t low = 0, high = table->group_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (table->groups[middle].weight < weight)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* After a flip. nginx's values add up to 0, but who came or went brought a value or took one along. As all pay the
   whole sum for a turn, a total that sinks with each flip would lower all values alike, which light backends gain by.
   So what is missing is shared out by weight, that is, as so many picks. And values were made with the sum as it was:
   where it is much less now they would be turns ahead or behind, so none is more than one turn off. */
static void plb__smooth_settle(const plb__smooth_table *table)
{
    uint32_t picks = PLB__LOAD(&table->sums->picks), sum = PLB__LOAD(&table->sums->weight), surplus, g;
    uint64_t total = 0; /* modulo 2^64 */
    bool below;
    if (sum == 0)
        return;
    for (g = 0; g < table->group_count; g++) {
        plb__smooth_group *group = &table->groups[g];
        int32_t value = (int32_t)(picks * group->weight - PLB__LOAD(&group->debt));
        total += (uint64_t)((int64_t)PLB__LOAD(&group->ready) * value);
    }
    below = total >> 63 != 0;
    surplus = (uint32_t)((below ? 0 - total : total) / sum);
    surplus = below ? 0u - surplus : surplus;
    picks = plb__fetch_add(&table->sums->picks, 0u - surplus) - surplus;
    for (g = 0; g < table->group_count; g++) {
        plb__smooth_group *group = &table->groups[g];
        uint32_t debt = PLB__LOAD(&group->debt), value = picks * group->weight - debt;
        if (PLB__LOAD(&group->ready) > 0 && value + sum > 2 * sum)
            plb__cas32(&group->debt, debt, value >> 31 != 0 ? debt + value + sum : debt + value - sum);
    }
}

/* The counts go up before the bit does, and down after it, as those of the view. */
static void plb__smooth_set_ready(const plb__smooth_table *table, plb__smooth_group *group, uint32_t place, bool ready)
{
    uintptr_t bit = (uintptr_t)1 << place % PLB__WORD_BITS, *word = &table->ready[place / PLB__WORD_BITS];
    bool was = (PLB__LOAD(word) & bit) != 0;
    if (was == ready)
        return;
    if (ready) {
        if (PLB__LOAD(&group->ready) == 0) /* it comes back to the middle, 0 */
            PLB__STORE(&group->debt, PLB__LOAD(&table->sums->picks) * group->weight);
        plb__fetch_add(&table->sums->weight, group->weight);
        plb__fetch_add(&group->ready, 1);
        was = (plb__fetch_or(word, bit) & bit) != 0;
    } else {
        was = (plb__fetch_and(word, ~bit) & bit) != 0;
    }
    if (was) {
        plb__fetch_add(&group->ready, UINT32_MAX);
        plb__fetch_add(&table->sums->weight, 0u - group->weight);
    }
}

/* Flips may be told in any order, so what counts is the view; who writes last looks at it again afterwards. */
static void plb__smooth_flipped(void *state, void *opaque_table, const plb_view *view, uint32_t index, bool ready)
{
    const plb__smooth_table *table = (const plb__smooth_table *)opaque_table;
    uint32_t g = plb__smooth_group_of(table, plb__smooth_weight(view, index, table->shift));
    uint32_t place = plb__smooth_place(table, table->starts[g], table->starts[g + 1], index);
    (void)state;
    do {
        ready = plb_view_ready(view, index);
        plb__smooth_set_ready(table, &table->groups[g], place, ready);
    } while (plb_view_ready(view, index) != ready);
    plb__smooth_settle(table);
}

static const plb_strategy_ops plb__smooth_ops = {"smooth round robin",
                                                 sizeof(plb_allocator),
                                                 0,
                                                 false,
                                                 plb__strategy_open,
                                                 NULL,
                                                 plb__smooth_build,
                                                 plb__table_discard,
                                                 PLB__IF_WALK(plb__smooth_first, NULL),
                                                 PLB__IF_WALK(plb__smooth_next, NULL),
                                                 plb__smooth_pick,
                                                 plb__smooth_flipped,
                                                 NULL,
                                                 NULL,
                                                 NULL,
                                                 0};

PLB_API plb_strategy plb_smooth_round_robin(void)
{
    return plb__strategy(&plb__smooth_ops, NULL);
}
#endif

/* ==== LEAST CONNECTIONS ==============================================================================================
   The least loaded of the ready backends that follow a turn. The turn is round robin's, with its list and counter. */

#ifndef PLB_NO_LEAST
/* Ready backends that a pick compares: all there are in most sets. */
#define PLB__LEAST_SAMPLE 64

/* Requests in flight for a weight, a fraction; and which backend that is, how far from the start of the search. */
typedef struct plb__load {
    uint32_t in_flight, weight;
    uint32_t index, distance;
} plb__load;

PLB__INLINE bool plb__load_below(uint32_t in_flight, uint32_t weight, const plb__load *other)
{
    return (uint64_t)in_flight * other->weight < (uint64_t)other->in_flight * weight;
}

/* Distances go upwards from the start of a search and around. */
PLB__INLINE uint32_t plb__least_distance(const plb_view *view, uint32_t start, uint32_t index)
{
    return index >= start ? index - start : index + (view->count - start);
}

/* Does a backend come later in the sequence than `last`? */
PLB__INLINE bool plb__least_follows(uint32_t in_flight, uint32_t weight, uint32_t distance, const plb__load *last)
{
    if (plb__load_below(in_flight, weight, last))
        return false;
    return distance > last->distance || (uint64_t)in_flight * last->weight != (uint64_t)last->in_flight * weight;
}

/* Compares one more with the best so far; where `last` is given, only if it comes after that. True: nothing can be
   less. */
PLB__INLINE bool plb__least_try(const plb_view *view, uint32_t start, uint32_t index, bool even, const plb__load *last,
                                plb__load *best)
{
    uint32_t in_flight = plb_view_in_flight(view, index), weight = even ? 1 : view->weights[index];
    if (PLB__LIKELY(!plb__load_below(in_flight, weight, best)))
        return false;
    if (last != NULL && !plb__least_follows(in_flight, weight, plb__least_distance(view, start, index), last))
        return false;
    best->in_flight = in_flight;
    best->weight = weight;
    best->index = index;
    return in_flight == 0;
}

/* Of the first ready backends from `start` on, the least loaded, the first of equals; where `last` is given, of those
   that come after it in this order. `even`: each weighs 1. index PLB_NONE: there is none. Goes by words of readiness;
   one without gaps is the usual case, and twice as fast. */
PLB__INLINE plb__load plb__least_find(const plb_view *view, uint32_t start, bool even, const plb__load *last)
{
    uint32_t from = start, left = view->count, sample = PLB__LEAST_SAMPLE;
    plb__load best;
    best.in_flight = UINT32_MAX;
    best.weight = 1;
    best.index = PLB_NONE;
    best.distance = 0;
    while (left > 0 && sample > 0) {
        uint32_t room = left < view->count - from ? left : view->count - from, shift = from % PLB__WORD_BITS;
        uint32_t span = PLB__WORD_BITS - shift < room ? PLB__WORD_BITS - shift : room;
        uintptr_t all = PLB__BITS >> (PLB__WORD_BITS - span);
        uintptr_t word = PLB__LOAD_RELAXED(&view->ready[from / PLB__WORD_BITS]) >> shift & all;
        if (!PLB__SMALL && word == all) {
            uint32_t end = from + (span < sample ? span : sample), i;
            sample -= end - from;
            for (i = from; i < end; i++)
                if (plb__least_try(view, start, i, even, last, &best))
                    return best;
        } else {
            for (; word != 0; word &= word - 1)
                if (plb__least_try(view, start, from + plb__lowest_one(word), even, last, &best) || --sample == 0)
                    return best;
        }
        left -= span;
        from = from + span < view->count ? from + span : 0;
    }
    return best;
}

static uint32_t plb__least_pick(const void *opaque_table, const plb_view *view, plb_reader *reader, const void *key,
                                size_t key_length, uint32_t limit)
{
    plb__weighted_state *state = (plb__weighted_state *)view->state;
    const plb__weighted_table *table = (const plb__weighted_table *)opaque_table;
    uint32_t start = plb__weighted_start(table, plb_reader_turn(reader, &state->counter));
    (void)key;
    (void)key_length;
    (void)limit; /* the first of the sequence is a ready one, if there is one */
    if (PLB__UNLIKELY(PLB__LOAD_RELAXED(&view->ready_count) == 0))
        return PLB_NONE;
    if (!PLB__SMALL && table->ends == NULL)
        return plb__least_find(view, start, true, NULL).index;
    return plb__least_find(view, start, false, NULL).index;
}

/* The sample by load, then the rest of the set in order, then the whole set in order for ever. */
typedef struct plb__least_walk {
    plb__load last; /* of the sample, once one was shown */
    uint32_t start;
    uint32_t shown;  /* of the sample */
    uint32_t passed; /* of the sample, while the rest is shown */
    uint32_t rest;   /* how far that has come */
} plb__least_walk;

#ifndef PLB_NO_WALK
static uint32_t plb__least_rest(const plb_view *view, plb__least_walk *walk)
{
    for (;;) {
        uint32_t index;
        if (walk->rest == view->count) {
            walk->rest = 0;
            walk->passed = walk->shown;
        }
        index = walk->rest < view->count - walk->start ? walk->start + walk->rest
                                                       : walk->rest - (view->count - walk->start);
        walk->rest++;
        if (walk->passed == walk->shown || !plb__view_ready(view, index))
            return index;
        walk->passed++;
    }
}

static uint32_t plb__least_next(const void *table, const plb_view *view, plb_reader *reader, plb_cursor *cursor)
{
    plb__least_walk walk;
    uint32_t index = PLB_NONE;
    (void)table;
    (void)reader;
    memcpy(&walk, cursor, sizeof walk);
    if (walk.rest == 0) {
        plb__load load = plb__least_find(view, walk.start, false, walk.shown > 0 ? &walk.last : NULL);
        index = load.index;
        if (index != PLB_NONE) {
            walk.last = load;
            walk.last.distance = plb__least_distance(view, walk.start, index);
            walk.shown++;
        }
    }
    if (index == PLB_NONE)
        index = plb__least_rest(view, &walk);
    memcpy(cursor, &walk, sizeof walk);
    return index;
}

static uint32_t plb__least_first(const void *table, const plb_view *view, plb_reader *reader, const void *key,
                                 size_t key_length, plb_cursor *cursor)
{
    plb__weighted_state *state = (plb__weighted_state *)view->state;
    plb__least_walk walk;
    (void)key;
    (void)key_length;
    memset(&walk, 0, sizeof walk);
    walk.start = plb__weighted_start((const plb__weighted_table *)table, plb_reader_turn(reader, &state->counter));
    memcpy(cursor, &walk, sizeof walk);
    return plb__least_next(table, view, reader, cursor);
}
#endif

static const plb_strategy_ops plb__least_ops = {"least connections",
                                                sizeof(plb__weighted_state),
                                                0,
                                                false,
                                                plb__strategy_open,
                                                NULL,
                                                plb__weighted_build,
                                                plb__table_discard,
                                                PLB__IF_WALK(plb__least_first, NULL),
                                                PLB__IF_WALK(plb__least_next, NULL),
                                                plb__least_pick,
                                                NULL,
                                                NULL,
                                                NULL,
                                                NULL,
                                                0};

PLB_API plb_strategy plb_least_connections(void)
{
    return plb__strategy(&plb__least_ops, NULL);
}
#endif

/* ==== BOUNDED LOADS ==================================================================================================
   Ketama's walk, past the backends that have their share in flight. */

#ifndef PLB_NO_BOUNDED
#define PLB__FACTOR_DEFAULT 125u
#define PLB__FACTOR_MIN     101u
#define PLB__FACTOR_MAX     65535u /* keeps the products below within 64 bits */

typedef struct plb__bounded_state {
    plb__ketama_state ring; /* first, so that Ketama's functions take this state for theirs */
    uint32_t factor_percent;
    uintptr_t in_flight; /* requests of all backends together */
} plb__bounded_state;

static plb_status plb__bounded_open(void *opaque, const void *opaque_desc, const plb_env *env)
{
    plb__bounded_state *state = (plb__bounded_state *)opaque;
    const plb_bounded_loads_desc *desc = (const plb_bounded_loads_desc *)opaque_desc;
    uint32_t factor = desc != NULL && desc->factor_percent > 0 ? desc->factor_percent : PLB__FACTOR_DEFAULT;
    if (factor < PLB__FACTOR_MIN || factor > PLB__FACTOR_MAX)
        return PLB_ERR_ARGUMENT;
    state->factor_percent = factor;
    return plb__ketama_open(&state->ring, desc != NULL ? &desc->ring : NULL, env);
}

/* Would one request more put a ready backend above ceil(factor * (total + 1) * weight / ready weight)? For whole
   numbers n + 1 > ceil(x) says n >= x; both sides of that are multiplied by 100 * ready weight. The product on the left
   may need more than 64 bits. The one on the right does not: factor and weight have 16 each, and the total less than
   32, as each request in flight has a plb_pick somewhere. */
PLB__INLINE bool plb__bounded_is_full(const plb__bounded_state *state, const plb_view *view, uint32_t index)
{
    uint64_t in_flight, whole, share;
    if (!plb__view_ready(view, index))
        return false;
    in_flight = plb_view_in_flight(view, index);
    if (in_flight == 0)
        return false;
    whole = (uint64_t)plb_view_ready_weight(view) * 100;
    share = (uint64_t)(state->factor_percent * plb_view_weight(view, index));
    share *= (uint64_t)PLB__LOAD_RELAXED(&state->in_flight) + 1;
    return plb__multiply_high(in_flight, whole) != 0 || in_flight * whole >= share;
}

/* A ready backend that is not full, the first in set order from a random place: always the same place would be the
   first to be surrounded by full ones. There is one, unless other threads count meanwhile or one slot serves several
   weights; then it is the one with the least in flight for its weight. If none is ready any more, `index`. */
static uint32_t plb__bounded_sweep(const plb__bounded_state *state, const plb_view *view, plb_reader *reader,
                                   uint32_t index)
{
    uint32_t at = (uint32_t)((plb_reader_random(reader) >> 32) * view->count >> 32), left;
    uint64_t least_in_flight = 1, least_weight = 0; /* worse than any that is ready */
    for (left = plb_view_ready_count(view); left > 0; left--) {
        uint64_t in_flight, weight;
        at = plb_view_ready_after(view, at);
        if (at == PLB_NONE)
            break;
        if (!plb__bounded_is_full(state, view, at))
            return at;
        in_flight = plb_view_in_flight(view, at);
        weight = plb_view_weight(view, at);
        if (in_flight * least_weight < least_in_flight * weight) {
            index = at;
            least_in_flight = in_flight;
            least_weight = weight;
        }
        at = at + 1 < view->count ? at + 1 : 0;
    }
    return index;
}

/* Points of full backends that a walk passes over. Full ones hold at most 1 / factor of the ready weight, else more
   would be in flight than there is; so among many keys that many in a row are met once in a million picks at 125 %. One
   hot key by itself fills its whole way; once it is that long, staying on it serves nothing. The count left is kept in
   the cursor, past the words of Ketama. */
#define PLB__BOUNDED_PATIENCE 64
#define PLB__BOUNDED_LEFT     7

/* From a step of Ketama's sequence on to a backend that is not full. Where patience ends, the sweep finds one; after
   that the sequence is Ketama's, so a walk that excludes whatever is not full still reaches the others. */
PLB__INLINE uint32_t plb__bounded_pass(const void *table, const plb_view *view, plb_reader *reader, plb_cursor *cursor,
                                       uint32_t index)
{
    const plb__bounded_state *own = (const plb__bounded_state *)view->state;
    uint64_t *left = &cursor->words[PLB__BOUNDED_LEFT];
    while (*left > 0 && PLB__UNLIKELY(plb__bounded_is_full(own, view, index))) {
        if (--*left == 0)
            return plb__bounded_sweep(own, view, reader, index);
        index = plb__ketama_next(table, view, reader, cursor);
    }
    return index;
}

static uint32_t plb__bounded_first(const void *table, const plb_view *view, plb_reader *reader, const void *key,
                                   size_t key_length, plb_cursor *cursor)
{
    uint32_t index = plb__ketama_first(table, view, reader, key, key_length, cursor);
    cursor->words[PLB__BOUNDED_LEFT] = PLB__BOUNDED_PATIENCE;
    return plb__bounded_pass(table, view, reader, cursor, index);
}

static uint32_t plb__bounded_next(const void *table, const plb_view *view, plb_reader *reader, plb_cursor *cursor)
{
    uint32_t index = plb__ketama_next(table, view, reader, cursor);
    return plb__bounded_pass(table, view, reader, cursor, index);
}

static uint32_t plb__bounded_pick(const void *table, const plb_view *view, plb_reader *reader, const void *key,
                                  size_t key_length, uint32_t limit)
{
    uint32_t steps = limit > 0 ? limit : PLB__RING_PATIENCE, index;
    plb_cursor cursor;
    if (PLB__UNLIKELY(plb_view_ready_count(view) == 0))
        return PLB_NONE;
    index = plb__bounded_first(table, view, reader, key, key_length, &cursor);
    while (PLB__UNLIKELY(!plb__view_ready(view, index))) {
        if (--steps == 0)
            return limit > 0 ? PLB_NONE
                             : plb__bounded_sweep((const plb__bounded_state *)view->state, view, reader, PLB_NONE);
        index = plb__bounded_next(table, view, reader, &cursor);
    }
    return index;
}

static void plb__bounded_began(void *state, uint32_t slot, void *data)
{
    (void)slot;
    (void)data;
    plb__fetch_add_relaxed(&((plb__bounded_state *)state)->in_flight, 1);
}

static void plb__bounded_ended(void *state, uint32_t slot, void *data, plb_outcome outcome, uint64_t latency_us)
{
    (void)slot;
    (void)data;
    (void)outcome;
    (void)latency_us;
    plb__fetch_add_relaxed(&((plb__bounded_state *)state)->in_flight, UINTPTR_MAX);
}

static const plb_strategy_ops plb__bounded_ops = {"bounded loads",
                                                  sizeof(plb__bounded_state),
                                                  0,
                                                  true,
                                                  plb__bounded_open,
                                                  NULL,
                                                  plb__ketama_build,
                                                  plb__table_discard,
                                                  PLB__IF_WALK(plb__bounded_first, NULL),
                                                  PLB__IF_WALK(plb__bounded_next, NULL),
                                                  plb__bounded_pick,
                                                  NULL,
                                                  plb__bounded_began,
                                                  plb__bounded_ended,
                                                  NULL,
                                                  0};

PLB_API plb_strategy plb_bounded_loads(const plb_bounded_loads_desc *desc)
{
    return plb__strategy(&plb__bounded_ops, desc);
}
#endif

/* ==== IP HASH ========================================================================================================
   nginx's ip_hash: a place in the list of section ROUND ROBIN RANDOM FNV, by a hash below 6271. */

#ifndef PLB_NO_IP_HASH
#define PLB__IP_HASH_START   89u
#define PLB__IP_HASH_FACTOR  113u
#define PLB__IP_HASH_MODULUS 6271u
#define PLB__IP_HASH_TRIES   21u /* nginx's "tries > 20" */

/* A round of hashing takes each byte of the key as hash = (hash * 113 + byte) mod 6271. All of them together are one
   such step, hash * factor + addend, so that further rounds need no key. */
typedef struct plb__ip_hash_walk {
    uint32_t hash; /* once the tries are over it counts through the set */
    uint32_t factor, addend;
    uint32_t tries; /* left */
} plb__ip_hash_walk;

/* Of an IPv4 address the first three bytes count: neighbours share a backend. */
PLB__INLINE plb__ip_hash_walk plb__ip_hash_start(const void *key, size_t key_length)
{
    const uint8_t *at = (const uint8_t *)key;
    plb__ip_hash_walk walk;
    walk.hash = PLB__IP_HASH_START;
    walk.factor = 1;
    walk.addend = 0;
    walk.tries = PLB__IP_HASH_TRIES;
    for (key_length = key_length == 4 ? 3 : key_length; key_length > 0; key_length--) {
        walk.factor = walk.factor * PLB__IP_HASH_FACTOR % PLB__IP_HASH_MODULUS;
        walk.addend = (walk.addend * PLB__IP_HASH_FACTOR + *at++) % PLB__IP_HASH_MODULUS;
    }
    return walk;
}

/* The backend of one more round of hashing. After nginx's number of tries come all others in set order, where nginx
   would go round robin. */
PLB__INLINE uint32_t plb__ip_hash_step(plb__ip_hash_walk *walk, const plb__weighted_table *table)
{
    if (PLB__UNLIKELY(walk->tries == 0)) {
        walk->hash = plb__remainder(walk->hash + 1, &table->count);
        return walk->hash;
    }
    walk->tries--;
    walk->hash = (walk->hash * walk->factor + walk->addend) % PLB__IP_HASH_MODULUS;
    return plb__weighted_start(table, walk->hash);
}

#ifndef PLB_NO_WALK
static uint32_t plb__ip_hash_next(const void *table, const plb_view *view, plb_reader *reader, plb_cursor *cursor)
{
    plb__ip_hash_walk walk;
    uint32_t index;
    (void)view;
    (void)reader;
    memcpy(&walk, cursor, sizeof walk);
    index = plb__ip_hash_step(&walk, (const plb__weighted_table *)table);
    memcpy(cursor, &walk, sizeof walk);
    return index;
}

static uint32_t plb__ip_hash_first(const void *table, const plb_view *view, plb_reader *reader, const void *key,
                                   size_t key_length, plb_cursor *cursor)
{
    plb__ip_hash_walk walk = plb__ip_hash_start(key, key_length);
    memcpy(cursor, &walk, sizeof walk);
    return plb__ip_hash_next(table, view, reader, cursor);
}
#endif

static uint32_t plb__ip_hash_pick(const void *table, const plb_view *view, plb_reader *reader, const void *key,
                                  size_t key_length, uint32_t limit)
{
    plb__ip_hash_walk walk = plb__ip_hash_start(key, key_length);
    uint32_t steps = limit > 0 ? limit : PLB__IP_HASH_TRIES + 1, index = 0;
    (void)reader;
    if (PLB__UNLIKELY(plb_view_ready_count(view) == 0))
        return PLB_NONE;
    for (; steps > 0; steps--) {
        index = plb__ip_hash_step(&walk, (const plb__weighted_table *)table);
        if (PLB__LIKELY(plb__view_ready(view, index)))
            return index;
        if (limit == 0 && plb__view_is_sparse(view))
            return plb__keyed_rest(view, walk.hash);
    }
    return limit > 0 ? PLB_NONE : plb_view_ready_after(view, index);
}

static const plb_strategy_ops plb__ip_hash_ops = {"ip hash",
                                                  sizeof(plb__weighted_state),
                                                  0,
                                                  true,
                                                  plb__strategy_open,
                                                  NULL,
                                                  plb__weighted_build,
                                                  plb__table_discard,
                                                  PLB__IF_WALK(plb__ip_hash_first, NULL),
                                                  PLB__IF_WALK(plb__ip_hash_next, NULL),
                                                  plb__ip_hash_pick,
                                                  NULL,
                                                  NULL,
                                                  NULL,
                                                  NULL,
                                                  0};

PLB_API plb_strategy plb_ip_hash(void)
{
    return plb__strategy(&plb__ip_hash_ops, NULL);
}
#endif

/* ==== POWER OF TWO CHOICES ===========================================================================================
   Two ready backends at random, the better one wins (Mitzenmacher 2001): of n requests on n backends the fullest then
   has some log log n, where one random choice gives it log n / log log n. And unlike picking the least loaded of all,
   nobody looks at all, and several balancers do not all run to the same one. Drawing by weight is an alias table
   (Walker 1977). */

#ifndef PLB_NO_CHOICES
/* The draw falls into a column, all equally likely; the column is one backend's up to `own`, in 1 / 2^32, and another's
   above it. */
typedef struct plb__column {
    uint32_t own;
    uint32_t other;
} plb__column;

typedef struct plb__choices {
    size_t size;          /* of this allocation */
    plb__column *columns; /* one a backend; NULL where all weigh the same */
    uint32_t mean_weight; /* of the backends that have one */
} plb__choices;

/* Two backends to choose from, the better one first once they are ordered. They are the same where only one is ready,
   and PLB_NONE where none is. */
typedef struct plb__two {
    uint32_t one;
    uint32_t other;
} plb__two;

typedef struct plb__choices_state {
    plb_allocator allocator;
    plb__two (*order)(const void *state, const plb__choices *table, const plb_view *view, plb__two two);
    uint32_t keep; /* peak EWMA: what a fold leaves of an estimate, in 1 / 2^31 */
    bool ticks;    /* there is a clock, so tick folds */
} plb__choices_state;

/* Vose's method in integers. A backend has a mass of weight * count, a column holds weight_sum, and the masses fill the
   columns exactly. A backend with less than a column (a small one) is topped up by one with more, its donor, which goes
   on to the next small one until less than a column is left of it: then it is a small one itself, and topped up by the
   next donor. What remains in the end are donors with exactly a column each. The shares are rounded to 2^-32 of a
   column. */
static void plb__choices_fill(plb__column *columns, const plb_view *view)
{
    const uint64_t full = view->weight_sum, count = view->count;
    uint32_t i, donor = 0;
    uint64_t left = view->weights[0] * count; /* of the donor */
    for (i = 0; i < view->count; i++)
        columns[i].other = i;
    for (i = 0; i < view->count; i++) {
        uint32_t small = i;
        uint64_t mass = view->weights[i] * count;
        while (mass < full) {
            while (left < full)
                left = view->weights[++donor] * count;
            columns[small].own = (uint32_t)((mass << 32) / full);
            columns[small].other = donor;
            left -= full - mass;
            if (left >= full)
                break;
            small = donor;
            mass = left;
        }
    }
}

static plb_status plb__choices_build(void *state, const plb_view *view, const plb_view *old_view, const void *old_table,
                                     void **out)
{
    uint32_t i, weighted = 0;
    bool equal = true;
    plb__choices *table;
    size_t size = sizeof *table;
    (void)old_view;
    (void)old_table;
    for (i = 0; i < view->count; i++) {
        equal = equal && view->weights[i] == view->weights[0];
        weighted += view->weights[i] > 0;
    }
    if (!equal)
        size += view->count * sizeof(plb__column);
    table = (plb__choices *)plb__new(&((plb__choices_state *)state)->allocator, size);
    if (table == NULL)
        return PLB_ERR_MEMORY;
    table->size = size;
    table->mean_weight = weighted > 0 ? view->weight_sum / weighted : 1;
    if (!equal) {
        table->columns = (plb__column *)(void *)(table + 1);
        plb__choices_fill(table->columns, view);
    }
    *out = table;
    return PLB_OK;
}

/* yes ? one : other, without a branch: what is random cannot be foreseen. */
PLB__INLINE uint32_t plb__choose(bool yes, uint32_t one, uint32_t other)
{
    return other ^ ((one ^ other) & (0 - (uint32_t)yes));
}

/* Which backend is at a place: the column, and how far up in it. */
PLB__INLINE uint32_t plb__choices_at(const plb__choices *table, uint64_t place)
{
    uint32_t column = (uint32_t)(place >> 32);
    const plb__column *at;
    if (table->columns == NULL)
        return column;
    at = table->columns + column;
    return plb__choose((uint32_t)place < at->own, column, at->other);
}

/* Two backends, each as likely as its weight says. 32 random bits serve for each: every share is right to 2^-32 of the
   whole for each column that it is in. The columns are two different ones, which leaves the shares as they are and
   makes the backends two different ones: always, where all weigh the same, else mostly. There are two or more. */
PLB__INLINE plb__two plb__two_columns(const plb__choices *table, const plb_view *view, plb_reader *reader)
{
    uint64_t number = plb__random(reader);
    uint64_t one = (number >> 32) * view->count, other = (number & UINT32_MAX) * (view->count - 1);
    plb__two two;
    other += (uint64_t)(other >> 32 >= one >> 32) << 32;
    two.one = plb__choices_at(table, one);
    two.other = plb__choices_at(table, other);
    return two;
}

/* The same, from the ready ones alone. */
static plb__two plb__two_ready(const plb_view *view, plb_reader *reader)
{
    plb__two two;
    int tries = 4;
    two.one = two.other = plb_view_draw(view, reader);
    if (plb_view_ready_count(view) > 1)
        while (tries-- > 0 && (two.other == two.one || two.other == PLB_NONE))
            two.other = plb_view_draw(view, reader);
    if (two.other == PLB_NONE) /* it has ceased to be ready just now */
        two.other = two.one;
    return two;
}

PLB__INLINE bool plb__two_good(const plb_view *view, plb__two two)
{
    return two.one != two.other && plb__view_ready(view, two.one) && plb__view_ready(view, two.other);
}

/* Draws again what is not ready, and the second where it is the first. A few times: a backend with nearly all the
   weight may then stand alone, and takes the request. The first must stay, or its share would be less. */
static plb__two plb__two_again(const plb__choices *table, const plb_view *view, plb_reader *reader, plb__two two)
{
    int tries;
    for (tries = 4; tries > 0 && !plb__two_good(view, two); tries--) {
        plb__two fresh = plb__two_columns(table, view, reader);
        two.other = plb__choose(plb__view_ready(view, two.other) && two.other != two.one, two.other, fresh.other);
        two.one = plb__choose(plb__view_ready(view, two.one), two.one, fresh.one);
    }
    if (!plb__view_ready(view, two.one))
        return plb__two_ready(view, reader);
    if (!plb__view_ready(view, two.other))
        two.other = two.one;
    return two;
}

/* Two ready backends, or one twice, or none. */
PLB__INLINE plb__two plb__two_draw(const plb__choices *table, const plb_view *view, plb_reader *reader)
{
    uint32_t ready = PLB__LOAD_RELAXED(&view->ready_count);
    plb__two two;
    if (PLB__UNLIKELY(ready < 2 || ready < view->count / 2))
        return plb__two_ready(view, reader);
    two = plb__two_columns(table, view, reader);
    if (PLB__LIKELY(plb__two_good(view, two)))
        return two;
    return plb__two_again(table, view, reader, two);
}

PLB__INLINE plb__two plb__two_ordered(plb__two two, bool swap)
{
    plb__two ordered;
    ordered.one = plb__choose(swap, two.other, two.one);
    ordered.other = two.one ^ two.other ^ ordered.one;
    return ordered;
}

/* Inlined for each order. */
PLB__INLINE uint32_t plb__choices_pick(const void *state, const void *opaque, const plb_view *view, plb_reader *reader,
                                       plb__two (*order)(const void *state, const plb__choices *table,
                                                         const plb_view *view, plb__two two))
{
    const plb__choices *table = (const plb__choices *)opaque;
    plb__two two;
    if (PLB__UNLIKELY(PLB__LOAD_RELAXED(&view->ready_count) == 0))
        return PLB_NONE;
    two = plb__two_draw(table, view, reader);
    return PLB__LIKELY(two.one != PLB_NONE) ? order(state, table, view, two).one : PLB_NONE;
}

#ifndef PLB_NO_WALK
/* The raw sequence: the better of two, then the other one (a retry that excludes the first finds it at once), then two
   new ones. Where none is ready: any, by weight. */
static uint32_t plb__choices_next(const void *opaque_table, const plb_view *view, plb_reader *reader,
                                  plb_cursor *cursor)
{
    const plb__choices_state *state = (const plb__choices_state *)view->state;
    const plb__choices *table = (const plb__choices *)opaque_table;
    uint32_t kept = (uint32_t)cursor->words[0];
    plb__two two;
    cursor->words[0] = PLB_NONE;
    if (kept != PLB_NONE)
        return kept;
    two = plb__two_draw(table, view, reader);
    if (two.one == PLB_NONE)
        return plb__choices_at(table, (plb__random(reader) >> 32) * view->count);
    two = state->order(state, table, view, two);
    cursor->words[0] = two.other;
    return two.one;
}

static uint32_t plb__choices_first(const void *table, const plb_view *view, plb_reader *reader, const void *key,
                                   size_t key_length, plb_cursor *cursor)
{
    (void)key;
    (void)key_length;
    cursor->words[0] = PLB_NONE;
    return plb__choices_next(table, view, reader, cursor);
}
#endif

PLB__INLINE uint32_t plb__slot_load(const plb__slot *slot)
{
    return PLB__LOAD_RELAXED(&slot->in_flight) & PLB__COUNT_MASK;
}

/* Requests in flight per unit of weight; of equals the first. With nothing in flight the shares are those of the
   weights. */
PLB__INLINE plb__two plb__order_by_load(const void *state, const plb__choices *table, const plb_view *view,
                                        plb__two two)
{
    uint64_t one = (uint64_t)plb__slot_load(view->slots[two.one]) * view->weights[two.other];
    uint64_t other = (uint64_t)plb__slot_load(view->slots[two.other]) * view->weights[two.one];
    (void)state;
    (void)table;
    return plb__two_ordered(two, other < one);
}

static plb_status plb__two_choices_open(void *opaque, const void *desc, const plb_env *env)
{
    plb__choices_state *state = (plb__choices_state *)opaque;
    (void)desc;
    state->allocator = env->allocator;
    state->order = plb__order_by_load;
    return PLB_OK;
}

static uint32_t plb__two_choices_pick(const void *table, const plb_view *view, plb_reader *reader, const void *key,
                                      size_t key_length, uint32_t limit)
{
    (void)key;
    (void)key_length;
    (void)limit; /* the first of the raw sequence is a ready one if there is one */
    return plb__choices_pick(view->state, table, view, reader, plb__order_by_load);
}

static const plb_strategy_ops plb__two_choices_ops = {"two choices",
                                                      sizeof(plb__choices_state),
                                                      0,
                                                      false,
                                                      plb__two_choices_open,
                                                      NULL,
                                                      plb__choices_build,
                                                      plb__table_discard,
                                                      PLB__IF_WALK(plb__choices_first, NULL),
                                                      PLB__IF_WALK(plb__choices_next, NULL),
                                                      plb__two_choices_pick,
                                                      NULL,
                                                      NULL,
                                                      NULL,
                                                      NULL,
                                                      0};

PLB_API plb_strategy plb_two_choices(void)
{
    return plb__strategy(&plb__two_choices_ops, NULL);
}
#endif

/* ==== PEAK EWMA ======================================================================================================
   Finagle's: of two choices the one where a request should take less long. Reading a clock for each request would cost
   more than the rest of a pick, so requests only leave what they took, and plb_poll folds it in by the tick. */

#ifndef PLB_NO_EWMA
#define PLB__EWMA_TICK_MS  100
#define PLB__EWMA_DECAY_MS 10000

/* Latencies in 1 / 64 microsecond: with the usual decay, rounding then costs no more than 2 microseconds. What takes
   longer than 67 seconds is not worse for it. */
#define PLB__EWMA_US     UINT32_C(64)
#define PLB__EWMA_MAX_US (UINT32_MAX / PLB__EWMA_US)

#define PLB__EWMA_FAILED (1000000 * PLB__EWMA_US) /* what a failure counts as where nothing is known */

#define PLB__EWMA_ONE (UINT32_C(1) << 31) /* 1, as plb__choices_state.keep counts */

/* What a slot knows. 0: nothing. Each is one word, whole at any moment, though the two need not fit together. */
typedef struct plb__ewma {
    uint32_t estimate; /* at once as high as the highest sample, then down to the usual one */
    uint32_t recent;   /* mean of the samples since the last fold, later ones counting more */
} plb__ewma;

/* As plb_view_data, but where it is need not be looked up. */
PLB__INLINE plb__ewma *plb__ewma_of(plb__slot *slot)
{
    return (plb__ewma *)(void *)((char *)slot - PLB__SLOT_LEAD(sizeof(plb__ewma)));
}

/* e to the power of -part / whole, in 1 / 2^31; part <= whole. Its series, the small terms first. */
static uint32_t plb__ewma_keep(uint32_t part, uint32_t whole)
{
    uint64_t x = ((uint64_t)part << 31) / whole, e = PLB__EWMA_ONE;
    uint32_t i;
    for (i = 12; i > 0; i--)
        e = PLB__EWMA_ONE - (uint32_t)(x * e >> 31) / i;
    return (uint32_t)e;
}

/* Some time has passed. Without samples the estimate falls towards nothing, so that a slow backend is tried again. A
   peak that comes at the same moment stands, and the fold is left to the next; a sample that does is forgotten. */
static void plb__ewma_fold(plb__ewma *ewma, uint32_t keep)
{
    uint32_t estimate = PLB__LOAD_RELAXED(&ewma->estimate), recent = PLB__LOAD_RELAXED(&ewma->recent);
    if (estimate == 0)
        return;
    if (recent != 0)
        PLB__STORE_RELAXED(&ewma->recent, 0);
    plb__cas32(&ewma->estimate, estimate,
               (uint32_t)(((uint64_t)estimate * keep + (uint64_t)recent * (PLB__EWMA_ONE - keep)) >> 31));
}

/* A failure must not look like a fast answer: it doubles the estimate, so one does little harm and a few in a row do a
   lot. */
static uint32_t plb__ewma_sample(uint32_t estimate, plb_outcome outcome, uint64_t latency_us)
{
    uint32_t sample = (latency_us < PLB__EWMA_MAX_US ? (uint32_t)latency_us : PLB__EWMA_MAX_US) * PLB__EWMA_US;
    uint32_t penalty = PLB__EWMA_FAILED;
    if (estimate > 0)
        penalty = estimate <= UINT32_MAX / 2 ? 2 * estimate : UINT32_MAX;
    if (outcome != PLB_OUTCOME_SUCCESS && sample < penalty)
        sample = penalty;
    return sample > 0 ? sample : 1;
}

/* Racing threads may lose a sample from the mean, which stays between the samples there were; no peak is lost. */
static void plb__ewma_ended(void *state, uint32_t slot, void *data, plb_outcome outcome, uint64_t latency_us)
{
    plb__ewma *ewma = (plb__ewma *)data;
    uint32_t estimate = PLB__LOAD_RELAXED(&ewma->estimate), recent = PLB__LOAD_RELAXED(&ewma->recent), sample;
    (void)state;
    (void)slot;
    if (outcome == PLB_OUTCOME_CANCELLED)
        return;
    sample = plb__ewma_sample(estimate, outcome, latency_us);
    PLB__STORE_RELAXED(&ewma->recent, recent == 0 ? sample : recent - recent / 8 + sample / 8);
    while (PLB__UNLIKELY(sample > estimate) && !plb__cas32(&ewma->estimate, estimate, sample))
        estimate = PLB__LOAD_RELAXED(&ewma->estimate);
}

static void plb__ewma_tick(void *opaque, void *table, const plb_view *view)
{
    const plb__choices_state *state = (const plb__choices_state *)opaque;
    uint32_t i;
    (void)table;
    for (i = 0; i < view->count; i++)
        if (i == 0 || view->slots[i] != view->slots[i - 1]) /* duplicates share a slot */
            plb__ewma_fold(plb__ewma_of(view->slots[i]), state->keep);
}

/* A cost times the weights of both. */
typedef struct plb__cost {
    uint64_t high;
    uint64_t low;
} plb__cost;

/* estimate * (1 + in flight * mean weight / weight), without the division: what the estimate says, once for the new
   request and once for each that is waiting where the weight is as usual, less often where it is more. As it is drawn
   by weight already, the weight must not tell when nothing is in flight: between equally fast backends that would send
   all to the heavier one. With equal latencies the shares so follow the weights, at rest and under load.
   A newcomer, of which nothing is known, costs nothing while it has no request, so it gets one soon; and then more than
   anything that is known, so it gets no second one before it has answered the first. */
PLB__INLINE plb__cost plb__ewma_cost(const plb__choices *table, plb__slot *slot, uint32_t weight, uint32_t other_weight)
{
    uint32_t estimate = PLB__LOAD_RELAXED(&plb__ewma_of(slot)->estimate), load = plb__slot_load(slot);
    uint64_t factor = weight + (uint64_t)load * table->mean_weight, time;
    plb__cost cost;
    if (estimate == 0 && load > 0)
        estimate = UINT32_MAX;
    time = (uint64_t)estimate * other_weight;
    cost.high = plb__multiply_high(time, factor);
    cost.low = time * factor;
    return cost;
}

/* Without a clock a lost choice stands for a tick: so a slow backend comes down and is tried again, as long as there
   are requests at all. */
PLB__INLINE plb__two plb__order_by_cost(const void *opaque, const plb__choices *table, const plb_view *view,
                                        plb__two two)
{
    const plb__choices_state *state = (const plb__choices_state *)opaque;
    uint32_t one_weight = view->weights[two.one], other_weight = view->weights[two.other];
    plb__cost one = plb__ewma_cost(table, view->slots[two.one], one_weight, other_weight);
    plb__cost other = plb__ewma_cost(table, view->slots[two.other], other_weight, one_weight);
    two = plb__two_ordered(two, other.high < one.high + (other.low < one.low)); /* a long subtraction's borrow */
    if (PLB__UNLIKELY(!state->ticks) && two.one != two.other)
        plb__ewma_fold(plb__ewma_of(view->slots[two.other]), state->keep);
    return two;
}

static plb_status plb__peak_ewma_open(void *opaque, const void *desc, const plb_env *env)
{
    plb__choices_state *state = (plb__choices_state *)opaque;
    uint32_t decay_ms = desc != NULL ? ((const plb_peak_ewma_desc *)desc)->decay_ms : 0;
    if (decay_ms == 0)
        decay_ms = PLB__EWMA_DECAY_MS;
    if (decay_ms < PLB__EWMA_TICK_MS)
        decay_ms = PLB__EWMA_TICK_MS;
    state->allocator = env->allocator;
    state->order = plb__order_by_cost;
    state->ticks = env->port.clock != NULL;
    state->keep = state->ticks ? plb__ewma_keep(PLB__EWMA_TICK_MS, decay_ms) : PLB__EWMA_ONE - PLB__EWMA_ONE / 256;
    return PLB_OK;
}

static uint32_t plb__peak_ewma_pick(const void *table, const plb_view *view, plb_reader *reader, const void *key,
                                    size_t key_length, uint32_t limit)
{
    (void)key;
    (void)key_length;
    (void)limit; /* as with two choices */
    return plb__choices_pick(view->state, table, view, reader, plb__order_by_cost);
}

static const plb_strategy_ops plb__peak_ewma_ops = {"peak ewma",
                                                    sizeof(plb__choices_state),
                                                    sizeof(plb__ewma),
                                                    false,
                                                    plb__peak_ewma_open,
                                                    NULL,
                                                    plb__choices_build,
                                                    plb__table_discard,
                                                    PLB__IF_WALK(plb__choices_first, NULL),
                                                    PLB__IF_WALK(plb__choices_next, NULL),
                                                    plb__peak_ewma_pick,
                                                    NULL,
                                                    NULL,
                                                    plb__ewma_ended,
                                                    plb__ewma_tick,
                                                    PLB__EWMA_TICK_MS};

PLB_API plb_strategy plb_peak_ewma(const plb_peak_ewma_desc *desc)
{
    return plb__strategy(&plb__peak_ewma_ops, desc);
}
#endif

/* ==== KEY HASH =======================================================================================================
   64 bits of a key, or of a backend, for Maglev and rendezvous: the same on every machine. Two words are multiplied and
   the halves of the product folded together, the idea of wyhash (Wang Yi 2019): 16 bytes are mixed in the time in which
   FNV takes one or two. Not for secrets: who wants keys to collide can make them. */

#if !defined(PLB_NO_MAGLEV) || !defined(PLB_NO_RENDEZVOUS)
/* The fractions of the square roots of 2, 3, 5, 7. */
#define PLB__ROOT_2 UINT64_C(0x6a09e667f3bcc908)
#define PLB__ROOT_3 UINT64_C(0xbb67ae8584caa73b)
#define PLB__ROOT_5 UINT64_C(0x3c6ef372fe94f82b)
#define PLB__ROOT_7 UINT64_C(0xa54ff53a5f1d36f1)

PLB__INLINE uint64_t plb__load_le64(const uint8_t *at)
{
    return plb__load_le32(at) | (uint64_t)plb__load_le32(at + 4) << 32;
}

PLB__INLINE uint64_t plb__fold(uint64_t a, uint64_t b)
{
    return (a * b) ^ plb__multiply_high(a, b);
}

/* The last 1 to 16 bytes are read as two words that may overlap; the length tells apart what then looks the same, and
   comes in late, where no byte of the key can undo it. They do not wait for the bytes before them. */
PLB__INLINE uint64_t plb__hash64(const void *key, size_t length)
{
    const uint8_t *at = (const uint8_t *)key;
    uint64_t whole = length, body = PLB__ROOT_2, tail, first = 0, last = 0;
    for (; length > 16; length -= 16, at += 16)
        body = plb__fold(plb__load_le64(at) ^ PLB__ROOT_5, plb__load_le64(at + 8) ^ body);
    if (length >= 8) {
        first = plb__load_le64(at);
        last = plb__load_le64(at + length - 8);
    } else if (length >= 4) {
        first = plb__load_le32(at);
        last = plb__load_le32(at + length - 4);
    } else if (length > 0) {
        first = (uint32_t)at[0] | (uint32_t)at[length / 2] << 8 | (uint32_t)at[length - 1] << 16;
    }
    tail = plb__fold(first ^ PLB__ROOT_7, last ^ PLB__ROOT_3);
    return plb__fold(body ^ whole, tail);
}

static uint64_t plb__hash_identity(const plb_addr *addr, uint32_t id)
{
    uint64_t hash = plb__hash64(&addr->u, plb__addr_bytes(addr));
    hash = plb__mix(hash ^ ((uint64_t)id << 32 | (uint32_t)addr->port << 8 | addr->family));
    return plb__mix(hash + plb__addr_scope(addr) * PLB__GOLDEN);
}

/* A number for each backend. Duplicates that differ in weight get different ones, or one would stand in the other's
   way. */
static void plb__hash_backends(const plb_view *view, uint64_t *hashes)
{
    uint32_t i;
    for (i = 0; i < view->count; i++) {
        if (i > 0 && view->slots[i] == view->slots[i - 1])
            hashes[i] = plb__mix(hashes[i - 1] + PLB__GOLDEN);
        else
            hashes[i] = plb__hash_identity(&view->slots[i]->addr, view->slots[i]->id);
    }
}
#endif

/* ==== MAGLEV =========================================================================================================
   Maglev hashing (Eisenbud and others, NSDI 2016, section 3.4): a table of places, which the backends fill by turns,
   each in an order of its own. */

#ifndef PLB_NO_MAGLEV
#define PLB__MAGLEV_PLACES_DEFAULT UINT32_C(65537)
#define PLB__MAGLEV_PLACES_LIMIT   (UINT32_C(1) << 24)

typedef struct plb__maglev_state {
    plb_allocator allocator;
    uint32_t places;
} plb__maglev_state;

typedef struct plb__maglev_table {
    size_t size;     /* of this allocation */
    uint32_t places; /* 0: no backend has weight */
    uint32_t backends;
    uint16_t *owners16; /* whose each place is, up to 65 536 backends; above, owners32 */
    uint32_t *owners32;
} plb__maglev_table;

static bool plb__is_prime(uint32_t number)
{
    uint32_t divisor;
    for (divisor = 2; (uint64_t)divisor * divisor <= number; divisor++)
        if (number % divisor == 0)
            return false;
    return number >= 2;
}

static plb_status plb__maglev_open(void *opaque, const void *opaque_desc, const plb_env *env)
{
    plb__maglev_state *state = (plb__maglev_state *)opaque;
    const plb_maglev_desc *desc = (const plb_maglev_desc *)opaque_desc;
    state->allocator = env->allocator;
    state->places = desc != NULL && desc->table_size > 0 ? desc->table_size : PLB__MAGLEV_PLACES_DEFAULT;
    if (state->places <= PLB__MAGLEV_PLACES_LIMIT && plb__is_prime(state->places))
        return PLB_OK;
    plb__log(env->balancer, PLB_LOG_ERROR, "maglev: table_size must be a prime below 2^24", PLB_OK);
    return PLB_ERR_ARGUMENT;
}

/* A hash makes an order of all places: from one of them on with a skip, round and round; as their number is a prime,
   each comes up once. The place is the whole part of hash * places / 2^64, the skip comes from the fraction. */
PLB__INLINE uint32_t plb__maglev_place(uint64_t hash, uint32_t places)
{
    return (uint32_t)plb__multiply_high(hash, places);
}

PLB__INLINE uint32_t plb__maglev_skip(uint64_t hash, uint32_t places)
{
    return 1 + (uint32_t)plb__multiply_high(hash * places, places - 1);
}

PLB__INLINE uint32_t plb__maglev_after(uint32_t place, uint32_t skip, uint32_t places)
{
    place += skip;
    return place < places ? place : place - places;
}

PLB__INLINE uint32_t plb__maglev_owner(const plb__maglev_table *table, uint32_t place)
{
    return PLB__LIKELY(table->owners16 != NULL) ? table->owners16[place] : table->owners32[place];
}

/* A backend while the table is filled: where it stands in its order, and when its next turn is. */
typedef struct plb__maglev_filler {
    uint32_t place, skip;
    uint32_t rest; /* what rounding up has left over for the turn after: turns are heaviest / weight rounds apart */
    uint32_t next; /* the one after it in the same round; after the last comes the first */
} plb__maglev_filler;

/* What a build needs until it is over, one allocation. */
typedef struct plb__maglev_work {
    size_t size; /* of the allocation */
    uint64_t *hashes;
    uintptr_t *taken;            /* a bit for each place */
    plb__maglev_filler *fillers; /* one for each backend */
    uint32_t *rounds;            /* the last filler that has a turn, or PLB_NONE */
    uint32_t round_count;
    uint32_t heaviest; /* of all weights; has a turn in every round */
} plb__maglev_work;

static bool plb__maglev_work_open(plb__maglev_work *work, const plb_allocator *a, const plb_view *view, uint32_t places)
{
    size_t hashes_size = view->count * sizeof(uint64_t), fillers_size = view->count * sizeof(plb__maglev_filler);
    size_t taken_size = (places / PLB__WORD_BITS + 1) * sizeof(uintptr_t), rounds_size;
    uint32_t i;
    char *at;
    work->heaviest = 0;
    for (i = 0; i < view->count; i++)
        if (view->weights[i] > work->heaviest)
            work->heaviest = view->weights[i];
    /* By the end of round r, from 0, there were more than r * weight_sum / heaviest turns. */
    work->round_count = (uint32_t)((uint64_t)places * work->heaviest / view->weight_sum) + 2;
    rounds_size = work->round_count * sizeof(uint32_t);
    work->size = hashes_size + taken_size + fillers_size + rounds_size;
    at = (char *)a->alloc(a->user, work->size);
    if (at == NULL)
        return false;
    work->hashes = (uint64_t *)(void *)at;
    work->taken = (uintptr_t *)(void *)(at + hashes_size);
    work->fillers = (plb__maglev_filler *)(void *)(at + hashes_size + taken_size);
    work->rounds = (uint32_t *)(void *)(at + hashes_size + taken_size + fillers_size);
    memset(work->taken, 0, taken_size);
    memset(work->rounds, 0xff, rounds_size);
    return true;
}

/* Puts a filler behind those that have a turn in that round already; rounds that will not come are none. */
static void plb__maglev_enqueue(plb__maglev_work *work, uint32_t filler, uint64_t round)
{
    uint32_t last;
    if (round >= work->round_count)
        return;
    last = work->rounds[round];
    if (last == PLB_NONE) {
        work->fillers[filler].next = filler;
    } else {
        work->fillers[filler].next = work->fillers[last].next;
        work->fillers[last].next = filler;
    }
    work->rounds[round] = filler;
}

/* All with weight have a turn in the first round, in set order, and so a place at least. */
static void plb__maglev_start(plb__maglev_work *work, const plb_view *view, uint32_t places)
{
    uint32_t i;
    plb__hash_backends(view, work->hashes);
    for (i = 0; i < view->count; i++) {
        plb__maglev_filler *filler = &work->fillers[i];
        if (view->weights[i] == 0)
            continue;
        filler->place = plb__maglev_place(work->hashes[i], places);
        filler->skip = plb__maglev_skip(work->hashes[i], places);
        filler->rest = view->weights[i] - 1u;
        plb__maglev_enqueue(work, i, 0);
    }
}

/* The next place in the filler's order that is still free. */
static uint32_t plb__maglev_take(plb__maglev_work *work, plb__maglev_filler *filler, uint32_t places)
{
    uint32_t place = filler->place;
    const uint32_t skip = filler->skip;
    const uintptr_t *taken = work->taken;
    while ((taken[place / PLB__WORD_BITS] >> place % PLB__WORD_BITS & 1) != 0)
        place = plb__maglev_after(place, skip, places);
    filler->place = place;
    work->taken[place / PLB__WORD_BITS] |= (uintptr_t)1 << place % PLB__WORD_BITS;
    return place;
}

/* A backend's turn k, from 0, is in round k * heaviest / weight, rounded up: as often in proportion as its weight says,
   and whatever the others weigh, so that its turns stay when one that is not the heaviest leaves. */
static void plb__maglev_fill(plb__maglev_table *table, plb__maglev_work *work, const plb_view *view)
{
    uint32_t round, filled = 0;
    for (round = 0; filled < table->places; round++) {
        uint32_t last = work->rounds[round], next = last != PLB_NONE ? work->fillers[last].next : 0, i = PLB_NONE;
        while (i != last && filled < table->places) {
            plb__maglev_filler *filler = &work->fillers[next];
            uint32_t place = plb__maglev_take(work, filler, table->places), wait = work->heaviest + filler->rest;
            i = next;
            next = filler->next;
            if (table->owners16 != NULL)
                table->owners16[place] = (uint16_t)i;
            else
                table->owners32[place] = i;
            filler->rest = wait % view->weights[i];
            plb__maglev_enqueue(work, i, (uint64_t)round + wait / view->weights[i]);
            filled++;
        }
    }
}

static plb__maglev_table *plb__maglev_table_new(const plb_allocator *a, uint32_t places, uint32_t backends)
{
    bool narrow = backends <= 65536;
    size_t size = sizeof(plb__maglev_table) + places * (narrow ? sizeof(uint16_t) : sizeof(uint32_t));
    plb__maglev_table *table = (plb__maglev_table *)a->alloc(a->user, size);
    if (table == NULL)
        return NULL;
    table->size = size;
    table->places = places;
    table->backends = backends;
    table->owners16 = narrow ? (uint16_t *)(table + 1) : NULL;
    table->owners32 = narrow ? NULL : (uint32_t *)(table + 1);
    return table;
}

static plb_status plb__maglev_build(void *opaque, const plb_view *view, const plb_view *old_view, const void *old_table,
                                    void **out)
{
    const plb__maglev_state *state = (const plb__maglev_state *)opaque;
    const plb_allocator *a = &state->allocator;
    uint32_t weighty = 0, i;
    plb__maglev_table *table;
    plb__maglev_work work;
    (void)old_view;
    (void)old_table;
    for (i = 0; i < view->count; i++)
        weighty += view->weights[i] > 0;
    if (weighty > state->places)
        return PLB_ERR_POINTS;
    table = plb__maglev_table_new(a, weighty > 0 ? state->places : 0, view->count);
    if (table == NULL)
        return PLB_ERR_MEMORY;
    if (weighty > 0) {
        if (!plb__maglev_work_open(&work, a, view, table->places)) {
            plb__delete(a, table, table->size);
            return PLB_ERR_MEMORY;
        }
        plb__maglev_start(&work, view, table->places);
        plb__maglev_fill(table, &work, view);
        plb__delete(a, work.hashes, work.size);
    }
    *out = table;
    return PLB_OK;
}

/* Places that a pick without a limit looks at before it goes to the ready backends directly. */
#define PLB__MAGLEV_PATIENCE 256

/* A key goes through the places as a backend did: from its own on, with a skip of its own. So the keys of one backend
   part, each to another in proportion to weight, and every backend with weight comes up in time. */
static uint32_t plb__maglev_rest(const plb__maglev_table *table, const plb_view *view, uint64_t hash, uint32_t limit)
{
    const uint32_t places = table->places, skip = plb__maglev_skip(hash, places);
    uint32_t place = plb__maglev_place(hash, places), steps = limit > 0 ? limit : PLB__MAGLEV_PATIENCE;
    if (limit == 0 && plb__view_is_sparse(view))
        return plb__keyed_rest(view, hash);
    if (steps > places)
        steps = places; /* it would only begin again */
    while (--steps > 0) {
        uint32_t owner;
        place = plb__maglev_after(place, skip, places);
        owner = plb__maglev_owner(table, place);
        if (plb__view_ready(view, owner))
            return owner;
    }
    return limit > 0 ? PLB_NONE
                     : plb__view_ready_after(view, (uint32_t)plb__multiply_high(plb__mix(hash), view->count));
}

static uint32_t plb__maglev_pick(const void *opaque_table, const plb_view *view, plb_reader *reader, const void *key,
                                 size_t key_length, uint32_t limit)
{
    const plb__maglev_table *table = (const plb__maglev_table *)opaque_table;
    uint64_t hash;
    uint32_t owner;
    (void)reader;
    if (PLB__UNLIKELY(PLB__LOAD_RELAXED(&view->ready_count) == 0))
        return PLB_NONE;
    hash = plb__hash64(key, key_length);
    owner = plb__maglev_owner(table, plb__maglev_place(hash, table->places));
    if (PLB__LIKELY(plb__view_ready(view, owner)))
        return owner;
    return plb__maglev_rest(table, view, hash, limit);
}

#ifndef PLB_NO_WALK
/* The cursor: the place to look at next, and the skip. Where no backend has weight there is no place, and it goes
   through the set. */
static uint32_t plb__maglev_next(const void *opaque_table, const plb_view *view, plb_reader *reader, plb_cursor *cursor)
{
    const plb__maglev_table *table = (const plb__maglev_table *)opaque_table;
    uint32_t place = (uint32_t)cursor->words[0];
    (void)view;
    (void)reader;
    if (table->places == 0)
        return (uint32_t)(cursor->words[0]++ % table->backends);
    cursor->words[0] = plb__maglev_after(place, (uint32_t)cursor->words[1], table->places);
    return plb__maglev_owner(table, place);
}

static uint32_t plb__maglev_first(const void *opaque_table, const plb_view *view, plb_reader *reader, const void *key,
                                  size_t key_length, plb_cursor *cursor)
{
    const plb__maglev_table *table = (const plb__maglev_table *)opaque_table;
    uint64_t hash = plb__hash64(key, key_length);
    cursor->words[0] = plb__maglev_place(hash, table->places);
    cursor->words[1] = plb__maglev_skip(hash, table->places);
    return plb__maglev_next(table, view, reader, cursor);
}
#endif

static const plb_strategy_ops plb__maglev_ops = {"maglev",
                                                 sizeof(plb__maglev_state),
                                                 0,
                                                 true,
                                                 plb__maglev_open,
                                                 NULL,
                                                 plb__maglev_build,
                                                 plb__table_discard,
                                                 PLB__IF_WALK(plb__maglev_first, NULL),
                                                 PLB__IF_WALK(plb__maglev_next, NULL),
                                                 plb__maglev_pick,
                                                 NULL,
                                                 NULL,
                                                 NULL,
                                                 NULL,
                                                 0};

PLB_API plb_strategy plb_maglev(const plb_maglev_desc *desc)
{
    return plb__strategy(&plb__maglev_ops, desc);
}
#endif

/* ==== RENDEZVOUS =====================================================================================================
   Highest random weight (Thaler and Ravishankar 1998): each key has a number u between 0 and 1 for each backend, and
   the least -ln(u) / weight wins, which happens to each backend as often as its weight says. */

#ifndef PLB_NO_RENDEZVOUS
typedef struct plb__rendezvous_table {
    size_t size;      /* of this allocation */
    uint64_t *hashes; /* of the backends */
} plb__rendezvous_table;

static plb_status plb__rendezvous_build(void *state, const plb_view *view, const plb_view *old_view,
                                        const void *old_table, void **out)
{
    const plb_allocator *a = (const plb_allocator *)state;
    size_t size = sizeof(plb__rendezvous_table) + view->count * sizeof(uint64_t);
    plb__rendezvous_table *table = (plb__rendezvous_table *)a->alloc(a->user, size);
    (void)old_view;
    (void)old_table;
    if (table == NULL)
        return PLB_ERR_MEMORY;
    table->size = size;
    table->hashes = (uint64_t *)(void *)(table + 1);
    plb__hash_backends(view, table->hashes);
    *out = table;
    return PLB_OK;
}

/* Logarithms and what is compared with them are in units of 2^-42: the greatest, 64 ln 2, times the greatest weight
   then fits 64 bits. */
#define PLB__LN_SHIFT 22
#define PLB__LN_2     UINT64_C(0x2c5c85fdf47)

/* -ln(u / 2^64). Doubled until it lies in the upper half, u is in one of 32 parts; its end is at (33 + part) / 64.
   -ln(end) is in a table, and what u lacks to the end, as a fraction w < 1/33 of it, gives the rest:
   -ln(1 - w) = w + w^2/2 + w^3/3 + w^4/4. The last part ends at 1, so what is small is as exact as the rest. */
#define PLB__INVERSE_4(n) UINT64_MAX / (n), UINT64_MAX / (n + 1), UINT64_MAX / (n + 2), UINT64_MAX / (n + 3)
static const uint64_t plb__inverses[32] = {PLB__INVERSE_4(33), PLB__INVERSE_4(37), PLB__INVERSE_4(41),
                                           PLB__INVERSE_4(45), PLB__INVERSE_4(49), PLB__INVERSE_4(53),
                                           PLB__INVERSE_4(57), PLB__INVERSE_4(61)};
static const uint64_t plb__logarithms[32] = {0x2a645c4d0cf, 0x287b3fe5f24, 0x26a0515b3b2, 0x24d2c42269b,
                                             0x2311dc81e48, 0x215cedc5a0b, 0x1fb358af7a5, 0x1e148a1a272,
                                             0x1c7ff9c7455, 0x1af5295248d, 0x1973a343135, 0x17fafa3bd81,
                                             0x168ac83e9c7, 0x1522ae0738a, 0x13c25277333, 0x1269621134e,
                                             0x11178e8227e, 0x0fcc8e3659e, 0x0e881bf932b, 0x0d49f69e457,
                                             0x0c11e0b2a8d, 0x0adfa035aa2, 0x09b2fe580ad, 0x088bc74113f,
                                             0x0769c9d8e11, 0x064cd797565, 0x0534c457482, 0x0421662d679,
                                             0x0312954293f, 0x02082bb13cf, 0x01020565893, 0};

static uint64_t plb__minus_ln(uint64_t u)
{
    const uint64_t least = (~u >> PLB__LN_SHIFT) + 1; /* -ln(u) > 1 - u, whatever rounding does */
    uint64_t ln = 0, w, square;
    uint32_t part;
    for (u += u == 0; u >> 63 == 0; u <<= 1)
        ln += PLB__LN_2;
    part = (uint32_t)(u >> 58) - 32;
    w = plb__multiply_high(~u << 6, PLB__SMALL ? UINT64_MAX / (33 + part) : plb__inverses[part]);
    square = (w >> 32) * (w >> 32);
    ln += plb__logarithms[part] + (w >> PLB__LN_SHIFT);
    ln += (square >> 22) * ((UINT64_C(1) << 31) + (uint32_t)(w >> 32) / 3 + (square >> 34)) >> 32;
    return ln > least ? ln : least;
}

/* What a backend bids for a key: cost / weight, the least wins, of equal ones the first in the set. Weight 0: the cost
   is above 0, so it comes after all that have weight. */
typedef struct plb__bid {
    uint64_t cost;
    uint32_t weight, index;
} plb__bid;

PLB__INLINE bool plb__bid_before(const plb__bid *a, const plb__bid *b)
{
    uint64_t a_cost = a->cost * b->weight, b_cost = b->cost * a->weight;
    return a_cost < b_cost || (a_cost == b_cost && a->index < b->index);
}

/* The least bid of all, or of those after `last`, or of the ready ones; its index is PLB_NONE if there is none. A
   logarithm is taken only where the least that it can be, 1 - u, would win: a few times for a key. */
PLB__INLINE plb__bid plb__rendezvous_best(const plb__rendezvous_table *table, const plb_view *view, uint64_t key,
                                          const plb__bid *last, bool ready_only)
{
    const uint64_t *hashes = table->hashes;
    const uint16_t *weights = view->weights;
    const uint32_t count = view->count;
    plb__bid best, bid;
    best.cost = 0;
    best.weight = 0;
    best.index = PLB_NONE;
    for (bid.index = 0; bid.index < count; bid.index++) {
        uint64_t u = plb__mix(key ^ hashes[bid.index]);
        bid.weight = weights[bid.index];
        bid.cost = ~u >> PLB__LN_SHIFT;
        if (bid.cost * best.weight >= best.cost * bid.weight && best.index != PLB_NONE)
            continue;
        if (ready_only && !plb__view_ready(view, bid.index))
            continue;
        bid.cost = plb__minus_ln(u);
        if ((best.index == PLB_NONE || plb__bid_before(&bid, &best)) && (last == NULL || plb__bid_before(last, &bid)))
            best = bid;
    }
    return best;
}

/* Does the bid come within the first `limit` of all? */
static bool plb__rendezvous_within(const plb__rendezvous_table *table, const plb_view *view, uint64_t key,
                                   const plb__bid *best, uint32_t limit)
{
    uint32_t ahead = 0;
    plb__bid bid;
    for (bid.index = 0; bid.index < view->count && ahead < limit; bid.index++) {
        uint64_t u = plb__mix(key ^ table->hashes[bid.index]);
        bid.weight = view->weights[bid.index];
        bid.cost = ~u >> PLB__LN_SHIFT;
        if (bid.cost * best->weight > best->cost * bid.weight)
            continue;
        bid.cost = plb__minus_ln(u);
        ahead += plb__bid_before(&bid, best);
    }
    return ahead < limit;
}

static uint32_t plb__rendezvous_pick(const void *opaque_table, const plb_view *view, plb_reader *reader,
                                     const void *key, size_t key_length, uint32_t limit)
{
    const plb__rendezvous_table *table = (const plb__rendezvous_table *)opaque_table;
    uint64_t hash;
    plb__bid best;
    (void)reader;
    if (PLB__UNLIKELY(PLB__LOAD_RELAXED(&view->ready_count) == 0))
        return PLB_NONE;
    hash = plb__hash64(key, key_length);
    best = plb__rendezvous_best(table, view, hash, NULL, true);
    if (limit == 0 || limit >= view->count || best.index == PLB_NONE)
        return best.index;
    return plb__rendezvous_within(table, view, hash, &best, limit) ? best.index : PLB_NONE;
}

#ifndef PLB_NO_WALK
/* The cursor: the key's hash, and the bid that was last. After the greatest comes the least again. */
static uint32_t plb__rendezvous_show(plb_cursor *cursor, const plb__bid *bid)
{
    cursor->words[1] = bid->cost;
    cursor->words[2] = bid->weight;
    cursor->words[3] = bid->index;
    return bid->index;
}

static uint32_t plb__rendezvous_next(const void *opaque_table, const plb_view *view, plb_reader *reader,
                                     plb_cursor *cursor)
{
    const plb__rendezvous_table *table = (const plb__rendezvous_table *)opaque_table;
    plb__bid last, bid;
    (void)reader;
    last.cost = cursor->words[1];
    last.weight = (uint32_t)cursor->words[2];
    last.index = (uint32_t)cursor->words[3];
    bid = plb__rendezvous_best(table, view, cursor->words[0], &last, false);
    if (bid.index == PLB_NONE)
        bid = plb__rendezvous_best(table, view, cursor->words[0], NULL, false);
    return plb__rendezvous_show(cursor, &bid);
}

static uint32_t plb__rendezvous_first(const void *opaque_table, const plb_view *view, plb_reader *reader,
                                      const void *key, size_t key_length, plb_cursor *cursor)
{
    const plb__rendezvous_table *table = (const plb__rendezvous_table *)opaque_table;
    plb__bid bid;
    (void)reader;
    cursor->words[0] = plb__hash64(key, key_length);
    bid = plb__rendezvous_best(table, view, cursor->words[0], NULL, false);
    return plb__rendezvous_show(cursor, &bid);
}
#endif

static const plb_strategy_ops plb__rendezvous_ops = {"rendezvous",
                                                     sizeof(plb_allocator),
                                                     0,
                                                     true,
                                                     plb__strategy_open,
                                                     NULL,
                                                     plb__rendezvous_build,
                                                     plb__table_discard,
                                                     PLB__IF_WALK(plb__rendezvous_first, NULL),
                                                     PLB__IF_WALK(plb__rendezvous_next, NULL),
                                                     plb__rendezvous_pick,
                                                     NULL,
                                                     NULL,
                                                     NULL,
                                                     NULL,
                                                     0};

PLB_API plb_strategy plb_rendezvous(void)
{
    return plb__strategy(&plb__rendezvous_ops, NULL);
}
#endif

/* ==== OPS ============================================================================================================
   Starts of discoveries and probes, and their completion from any thread, once. */

static plb__ticket *plb__ticket_take(plb_balancer *lb)
{
    plb__ticket *ticket;
    if (lb->free_tickets == NULL) {
        plb__tickets *more = (plb__tickets *)plb__new(&lb->env.allocator, sizeof *more);
        int i;
        if (more == NULL)
            return NULL;
        more->next = lb->tickets;
        lb->tickets = more;
        for (i = PLB__TICKETS; i-- > 0;) {
            more->tickets[i].u.next_free = lb->free_tickets;
            lb->free_tickets = &more->tickets[i];
        }
    }
    ticket = lb->free_tickets;
    lb->free_tickets = ticket->u.next_free;
    return ticket;
}

static void plb__report_clear(plb__op *op)
{
    memset(&op->report, 0, sizeof op->report);
    PLB__IF_LOG(op->text[0] = '\0', (void)0);
}

#ifndef PLB_NO_LOG
static void plb__op_write(plb__op *op, const char *words)
{
    plb__text text = plb__text_in(op->text, sizeof op->text);
    plb__put(&text, words != NULL ? words : "");
}
#endif

/* What is said of a probe's result, beside its status. */
PLB__INLINE void plb__op_say(plb__op *op, const char *words)
{
    PLB__IF_LOG(plb__op_write(op, words), ((void)op, (void)words));
}

/* What it said, or what its status means. */
static const char *plb__op_why(const plb__op *op)
{
    (void)op;
    return PLB__IF_LOG(op->text[0] != '\0' ? op->text : plb_status_text(op->report.status), "");
}

/* Starts one that was made or kept; false: no memory. */
static bool plb__op_start(plb_balancer *lb, plb__op *op)
{
    plb__ticket *ticket = plb__ticket_take(lb);
    if (ticket == NULL)
        return false;
    ticket->u.op = op;
    op->ticket = ticket;
    op->next_running = lb->running;
    op->running_link = &lb->running;
    if (lb->running != NULL)
        lb->running->running_link = &op->next_running;
    lb->running = op;
    op->started_us = plb__now_us(lb);
    op->started_ms = lb->timers.now_ms;
    plb__report_clear(op);
    PLB__IF_EXCHANGE(op->unread = false, (void)0);
    PLB__STORE(&ticket->state,
               (PLB__LOAD_RELAXED(&ticket->state) / PLB__OP_PHASES + 1) * PLB__OP_PHASES + PLB__OP_RUNNING);
    return true;
}

/* With so many bytes for a probe after it. */
static plb__op *plb__op_new(plb_balancer *lb, size_t probe_size)
{
    plb__op *op = (plb__op *)plb__new(&lb->env.allocator, PLB__OP_SIZE + probe_size);
    if (op == NULL)
        return NULL;
    op->mail.kind = PLB__MAIL_DONE;
    op->lb = lb;
    return op;
}

static void *plb__op_probe(plb__op *op)
{
    return (char *)op + PLB__OP_SIZE;
}

static plb_token plb__op_token(const plb__op *op)
{
    plb_token token;
    token.balancer = op->lb;
    token.op = op->ticket;
    token.generation = PLB__LOAD_RELAXED(&op->ticket->state) / PLB__OP_PHASES;
    return token;
}

/* Whoever moves a running op on has its completion: a done call, a cancellation, or a start that failed. Else NULL. */
static plb__op *plb__op_claim(plb_token token)
{
    plb__ticket *ticket = (plb__ticket *)token.op; /* NULL where nothing runs: what was kept is cancelled */
    uint32_t base = token.generation * PLB__OP_PHASES;
    if (ticket == NULL || !plb__cas32(&ticket->state, base + PLB__OP_RUNNING, base + PLB__OP_COMPLETED))
        return NULL;
    return ticket->u.op;
}

/* The op while it is running, for the polling thread; or NULL. */
static plb__op *plb__op_running(plb_token token)
{
    plb__ticket *ticket = (plb__ticket *)token.op;
    if (ticket == NULL || PLB__LOAD(&ticket->state) != token.generation * PLB__OP_PHASES + PLB__OP_RUNNING)
        return NULL;
    return ticket->u.op;
}

static void plb__op_complete(plb__op *op, plb_status status)
{
    plb_balancer *lb = op->lb;
    op->report.status = status;
    op->latency_us = plb__since_us(lb, op->started_us);
    plb__mail_push(&lb->mailbox, &op->mail);
    plb__wake(lb);
}

/* It is not running any more: gives its ticket back. */
static void plb__op_stop(plb_balancer *lb, plb__op *op)
{
    plb_timer_stop(&lb->timers, &op->deadline);
    *op->running_link = op->next_running;
    if (op->next_running != NULL)
        op->next_running->running_link = op->running_link;
    op->ticket->u.next_free = lb->free_tickets;
    lb->free_tickets = op->ticket;
}

static void plb__op_delete(plb_balancer *lb, plb__op *op, size_t probe_size)
{
    plb__delete(&lb->env.allocator, op, PLB__OP_SIZE + probe_size);
}

static void plb__op_deadline(plb_balancer *lb, plb__op *op, void (*fn)(void *user), uint32_t delay_ms)
{
    if (lb->env.port.clock == NULL)
        return;
    op->deadline.fn = fn;
    op->deadline.user = op;
    plb_timer_set(&lb->timers, &op->deadline, delay_ms);
}

/* ==== LISTS ==========================================================================================================
   Backends on their way: copied, checked, sorted. */

/* For so many backends, to be filled in, and for names of so many bytes behind all else. */
static plb__list *plb__list_new(const plb_allocator *a, size_t count, size_t names_size)
{
    size_t each = sizeof(plb_backend) + sizeof(struct plb__slot *) + 3 * sizeof(uint32_t);
    size_t size = sizeof(plb__list) + count * each + names_size;
    plb__list *list = (plb__list *)plb__new(a, size);
    if (list == NULL)
        return NULL;
    list->size = size;
    list->count = count;
    list->backends = (plb_backend *)(list + 1);
    list->slots = (struct plb__slot **)(void *)(list->backends + count);
    list->order = (uint32_t *)(void *)(list->slots + count);
    list->members = list->order + count;
    list->spare = list->members + count;
    return list;
}

#ifndef PLB_NO_UPDATES
static plb__list *plb__list_copy(const plb_allocator *a, const plb_backend *backends, size_t count)
{
    size_t i, names_size = 0;
    plb__list *list;
    char *names;
    for (i = 0; i < count; i++)
        names_size += plb__name_size(plb__name_of(&backends[i]));
    list = plb__list_new(a, count, names_size);
    if (list == NULL)
        return NULL;
    names = (char *)(list->spare + count);
    for (i = 0; i < count; i++) {
        const char *name = plb__copy_text(&names, plb__name_of(&backends[i]));
        list->order[i] = (uint32_t)i;
        list->backends[i] = backends[i];
        PLB__IF_NAMES(list->backends[i].name = name, (void)name);
    }
    return list;
}
#endif

/* Can it be connected to? */
static plb_status plb__addr_check(const plb_addr *addr)
{
    if (plb__addr_is_path(addr))
        return PLB__IF_UNIX(addr->path_len > 0 && addr->path_len <= PLB_PATH_MAX, false) ? PLB_OK : PLB_ERR_ADDRESS;
    if (!plb__addr_is_ip(addr) || addr->port == 0)
        return PLB_ERR_ADDRESS;
    return plb__addr_is_v6(addr) || plb__addr_scope(addr) == 0 ? PLB_OK : PLB_ERR_ADDRESS;
}

/* Is it fit to be in a set? `names`: one that is still to be resolved will do. */
static plb_status plb__backend_check(const plb_backend *backend, bool names)
{
    if (plb__weight_of(backend) > PLB_WEIGHT_MAX)
        return PLB_ERR_WEIGHT;
    if (PLB__IF_TIERS(backend->priority > PLB_PRIORITY_MAX, false) || plb__checks_of(backend) >> PLB_CHECKS_MAX != 0)
        return PLB_ERR_ARGUMENT;
    if (backend->addr.family != PLB_FAMILY_NONE)
        return plb__addr_check(&backend->addr);
    if (plb__name_of(backend) == NULL || backend->addr.port == 0)
        return PLB_ERR_ADDRESS;
    return names ? PLB_OK : PLB_ERR_UNSUPPORTED;
}

static int plb__tier_compare(const plb_backend *a, const plb_backend *b)
{
    uint32_t x = plb__priority_of(a), y = plb__priority_of(b);
    return x == y ? 0 : x < y ? -1 : 1;
}

/* The order of a tier: address, id, weight. */
static int plb__backend_compare(const plb_backend *a, const plb_backend *b)
{
    int order = plb__identity_compare(&a->addr, a->id, &b->addr, b->id);
    if (order == 0 && plb__weight_of(a) != plb__weight_of(b))
        order = plb__weight_of(a) < plb__weight_of(b) ? -1 : 1;
    return order == 0 ? plb__tier_compare(a, b) : order;
}

typedef int (*plb__compare_fn)(const plb_backend *a, const plb_backend *b);

static size_t plb__run_end(const plb__list *list, const uint32_t *order, size_t at, plb__compare_fn compare)
{
    for (at++; at < list->count; at++)
        if (compare(&list->backends[order[at - 1]], &list->backends[order[at]]) > 0)
            break;
    return at;
}

/* Natural merge sort (Knuth, volume 3, 5.2.4): linear for lists that are nearly in order, as most updates are.
   Stable. */
static void plb__list_sort_by(const plb__list *list, uint32_t *to_sort, plb__compare_fn compare)
{
    uint32_t *order = to_sort, *spare = list->spare;
    while (plb__run_end(list, order, 0, compare) < list->count) {
        size_t at = 0, to = 0;
        uint32_t *swap = order;
        while (at < list->count) {
            size_t left = at, middle = plb__run_end(list, order, at, compare), right = middle;
            size_t end = middle < list->count ? plb__run_end(list, order, middle, compare) : middle;
            while (left < middle || right < end) {
                bool from_left = right == end || (left < middle && compare(&list->backends[order[left]],
                                                                           &list->backends[order[right]]) <= 0);
                spare[to++] = from_left ? order[left++] : order[right++];
            }
            at = end;
        }
        order = spare;
        spare = swap;
    }
    if (order != to_sort)
        memcpy(to_sort, order, list->count * sizeof *order);
}

static void plb__list_sort(plb__list *list)
{
    plb__list_sort_by(list, list->order, plb__backend_compare);
}

static const plb_backend *plb__list_at(const plb__list *list, size_t position)
{
    return &list->backends[list->order[position]];
}

/* In a sorted list: is it for the same (address, id) as the one before? */
static bool plb__list_continues(const plb__list *list, size_t position)
{
    const plb_backend *x, *y;
    if (position == 0)
        return false;
    x = plb__list_at(list, position - 1);
    y = plb__list_at(list, position);
    return plb__identity_compare(&x->addr, x->id, &y->addr, y->id) == 0;
}

#ifndef PLB_NO_UPDATES
/* In a sorted list: does one before, for the same (address, id), bring the same ext? */
static bool plb__list_repeats_ext(const plb__list *list, size_t position)
{
    const void *ext = plb__list_at(list, position)->ext;
    while (plb__list_continues(list, position))
        if (plb__list_at(list, --position)->ext == ext)
            return true;
    return false;
}
#endif

/* ==== SCHEDULE =======================================================================================================
   Which check of which backend is due when: a heap of numbers, the time above the task, so that those which are due
   together come in set order, as pingora's. A task is an index of the current set times the number of checks, plus the
   check. */

#define PLB__TASK_BITS 24
#define PLB__TASKS_MAX (UINT32_C(1) << PLB__TASK_BITS)

static uint64_t plb__task_key(const plb_balancer *lb, uint64_t due_ms, uint32_t task)
{
    return (due_ms - lb->epoch_ms) << PLB__TASK_BITS | task;
}

static uint64_t plb__schedule_first_ms(const plb_balancer *lb)
{
    return (lb->schedule[0] >> PLB__TASK_BITS) + lb->epoch_ms;
}

/* Puts a key where it belongs on the way from a free place up to `top`. */
static void plb__schedule_rise(uint64_t *heap, size_t at, size_t top, uint64_t key)
{
    for (; at > top && heap[(at - 1) / 2] > key; at = (at - 1) / 2)
        heap[at] = heap[(at - 1) / 2];
    heap[at] = key;
}

static void plb__schedule_add(plb_balancer *lb, uint64_t due_ms, uint32_t task)
{
    plb__schedule_rise(lb->schedule, lb->scheduled++, 0, plb__task_key(lb, due_ms, task));
}

/* Lets what stands at a place sink to where it belongs: the lesser children move up all the way, and it rises from the
   bottom. That takes half the comparisons, as most belong near there (Wegener, "Bottom-up heapsort", 1993). */
static void plb__schedule_sink(const plb_balancer *lb, size_t top)
{
    uint64_t *heap = lb->schedule, key = heap[top];
    size_t at = top, count = lb->scheduled, child;
    for (child = 2 * at + 2; child < count; child = 2 * at + 2) {
        child -= heap[child - 1] < heap[child];
        heap[at] = heap[child];
        at = child;
    }
    if (child == count) { /* a child without a sibling */
        heap[at] = heap[child - 1];
        at = child - 1;
    }
    plb__schedule_rise(heap, at, top, key);
}

/* Makes a heap of it again. */
static PLB__UNUSED void plb__schedule_order(const plb_balancer *lb)
{
    uint32_t i;
    for (i = lb->scheduled / 2; i-- > 0;)
        plb__schedule_sink(lb, i);
}

/* Takes the first task. */
static uint32_t plb__schedule_take(plb_balancer *lb)
{
    uint32_t task = (uint32_t)(lb->schedule[0] % PLB__TASKS_MAX);
    lb->schedule[0] = lb->schedule[--lb->scheduled];
    if (lb->scheduled > 0)
        plb__schedule_sink(lb, 0);
    return task;
}

/* Makes sure that a set of `count` backends has room, and the current one too, which stays should the update fail. */
static plb_status plb__schedule_reserve(plb_balancer *lb, uint32_t count)
{
    const plb_allocator *a = &lb->env.allocator;
    const plb__set *current = (const plb__set *)lb->current;
    uint64_t *heap;
    if (lb->check_count == 0)
        return PLB_OK;
    if (count > PLB__TASKS_MAX / lb->check_count)
        return PLB_ERR_LIMIT;
    if (PLB__IF_UPDATES(current != NULL && count < current->count, ((void)current, false)))
        count = current->count;
    count *= lb->check_count;
    if (count == 0 || (count <= lb->schedule_capacity && count >= lb->schedule_capacity / 2))
        return PLB_OK;
    heap = (uint64_t *)plb__new(a, count * sizeof *heap);
    if (heap == NULL)
        return PLB_ERR_MEMORY;
    if (lb->scheduled > 0)
        memcpy(heap, lb->schedule, lb->scheduled * sizeof *heap);
    plb__delete(a, lb->schedule, lb->schedule_capacity * sizeof *heap);
    lb->schedule = heap;
    lb->schedule_capacity = count;
    return PLB_OK;
}

/* The checks that each backend has, if it has any. */
PLB__INLINE uint32_t plb__tasks_each(const plb_balancer *lb)
{
    (void)lb;
    return PLB__IF_CHECK_LIST(lb->check_count, 1);
}

/* Puts a check of a slot that is in the current set on the schedule. */
static void plb__vital_due(plb_balancer *lb, plb__slot *slot, uint32_t check, uint64_t due_ms)
{
    plb__slot_vitals(slot)[check].stage = PLB__VITAL_WAITING;
    plb__schedule_add(lb, due_ms, PLB__LOAD_RELAXED(&slot->index) * plb__tasks_each(lb) + check);
}

#ifndef PLB_NO_EXCHANGE
/* Gives back what the last probe of a check has left open. */
static void plb__vital_drop_kept(plb_balancer *lb, plb__vital *vital, uint32_t check)
{
    plb__op *op = vital->kept;
    const plb_check_ops *ops = lb->checks[check].what.ops;
    plb_token nothing;
    if (op == NULL)
        return;
    memset(&nothing, 0, sizeof nothing);
    nothing.balancer = lb;
    vital->kept = NULL;
    ops->cancel(lb->checks[check].state, plb__op_probe(op), nothing);
    plb__op_delete(lb, op, ops->probe_size);
}

static void plb__slot_drop_kept(plb_balancer *lb, plb__slot *slot)
{
    uint32_t c;
    for (c = 0; c < lb->check_count; c++)
        plb__vital_drop_kept(lb, &plb__slot_vitals(slot)[c], c);
}
#else
PLB__INLINE void plb__vital_drop_kept(plb_balancer *lb, plb__vital *vital, uint32_t check)
{
    (void)lb;
    (void)vital;
    (void)check;
}

PLB__INLINE void plb__slot_drop_kept(plb_balancer *lb, plb__slot *slot)
{
    (void)lb;
    (void)slot;
}
#endif

/* Does the next start get its bytes? */
PLB__INLINE bool plb__op_keeps(const plb__op *op)
{
    (void)op;
    return PLB__IF_EXCHANGE(op->report.keep, false);
}

PLB__INLINE plb__op *plb__vital_kept(const plb__vital *vital)
{
    (void)vital;
    return PLB__IF_EXCHANGE(vital->kept, NULL);
}

/* Newcomers are due at once. */
static void plb__schedule_newcomers(plb_balancer *lb, const plb__set *set)
{
    uint32_t i, c;
    lb->unknown = 0;
    for (i = 0; i < set->count; i++) {
        if (PLB__LOAD_RELAXED(&set->slots[i]->index) != i)
            continue; /* the same slot again */
        for (c = 0; c < lb->check_count; c++) {
            plb__vital *vital = &plb__slot_vitals(set->slots[i])[c];
            lb->unknown += !plb__is_absent(vital) && vital->status == PLB_AGAIN;
            if (!plb__is_absent(vital) && vital->stage == PLB__VITAL_NEW)
                plb__vital_due(lb, set->slots[i], c, lb->timers.now_ms);
        }
    }
}

#ifndef PLB_NO_UPDATES
/* Before a set takes the current one's place, and after its slots were told where they stand in it. */
static void plb__schedule_move(plb_balancer *lb, const plb__set *set)
{
    const plb__set *old = (const plb__set *)lb->current;
    uint32_t i, left = 0, count = lb->check_count;
    if (count == 0)
        return;
    for (i = 0; i < lb->scheduled; i++) {
        uint32_t task = (uint32_t)(lb->schedule[i] % PLB__TASKS_MAX);
        plb__slot *slot = old->slots[task / count];
        if (plb__set_has_slot(set, slot))
            lb->schedule[left++] = lb->schedule[i] - task + PLB__LOAD_RELAXED(&slot->index) * count + task % count;
    }
    lb->scheduled = left;
    plb__schedule_order(lb);
    for (i = 0; old != NULL && i < old->count; i++)
        if (!plb__set_has_slot(set, old->slots[i]))
            plb__slot_drop_kept(lb, old->slots[i]);
    plb__schedule_newcomers(lb, set);
}
#else
static void plb__schedule_move(plb_balancer *lb, const plb__set *set)
{
    plb__schedule_newcomers(lb, set);
}
#endif

#ifndef PLB_NO_CHECK_LIST
/* Everything is due now; what is in flight, once more afterwards. What is overdue keeps its place, so that no number of
   calls keeps the last ones waiting. */
static void plb__schedule_all(plb_balancer *lb)
{
    const plb__set *set = (const plb__set *)lb->current;
    uint32_t i, c;
    for (i = 0; i < lb->scheduled; i++) {
        uint64_t now = plb__task_key(lb, lb->timers.now_ms, (uint32_t)(lb->schedule[i] % PLB__TASKS_MAX));
        if (lb->schedule[i] > now)
            lb->schedule[i] = now;
    }
    plb__schedule_order(lb);
    for (i = 0; set != NULL && i < set->count; i++) {
        if (PLB__LOAD_RELAXED(&set->slots[i]->index) != i)
            continue;
        for (c = 0; c < lb->check_count; c++) {
            plb__vital *vital = &plb__slot_vitals(set->slots[i])[c];
            if (vital->stage == PLB__VITAL_RUNNING)
                vital->again = true;
            else if (!plb__is_absent(vital) && vital->stage != PLB__VITAL_WAITING)
                plb__vital_due(lb, set->slots[i], c, lb->timers.now_ms);
        }
    }
}
#endif

#ifndef PLB_NO_CHECK_LIST
/* Is a check for backends with these plb_backend.checks? */
static bool plb__check_is_for(const plb_balancer *lb, uint32_t check, uint32_t checks)
{
    return PLB__IF_CHECK_LIST(checks != 0, false) ? (checks >> check & 1) != 0
                                                  : PLB__IF_CHECK_LIST(!lb->checks[check].what.by_name, true);
}
#endif

/* ==== UPDATE =========================================================================================================
   From an answer to the published set, wholly or not at all; and what becomes of the old one. */

/* One update under way: the answer, each backend with the slot that it has already (NULL: a new one). */
typedef struct plb__update {
    plb__list *list;
    bool changed;
    uint32_t *counts; /* backends of each tier */
    uint32_t tiers;
    uint32_t members;   /* of the set; the count of a tier that is the only one */
    plb__slot *created; /* new slots, through next_departed */
    plb__set *set;
} plb__update;

static plb_status plb__update_check(const plb_balancer *lb, const plb__list *list)
{
    uint64_t sum = 0;
    size_t i;
    for (i = 0; i < list->count; i++) {
        plb_status status = plb__backend_check(&list->backends[i], false);
        if (status != PLB_OK) {
            plb__log_backend(lb, PLB_LOG_ERROR, "update refused because of", &list->backends[i], plb__words_of(status));
            return status;
        }
        sum += plb__weight_of(&list->backends[i]);
    }
    if (sum <= UINT32_MAX && list->count < PLB_NONE)
        return PLB_OK;
    plb__log(lb, PLB_LOG_ERROR, "update refused: the weights add up to 2^32 or more", PLB_OK);
    return PLB_ERR_WEIGHT;
}

#ifndef PLB_NO_UPDATES
/* The slot that the current set has for a backend, or NULL. Asked for one after another in order of identity, so each
   tier is gone through once. */
static plb__slot *plb__update_find(plb__set *current, const plb_backend *backend)
{
    uint32_t t;
    for (t = 0; current != NULL && t < plb__set_tiers(current); t++) {
        plb__tier *tier = &current->tiers[t];
        for (; tier->cursor < tier->view.count; tier->cursor++) {
            plb__slot *slot = tier->view.slots[tier->cursor];
            int order = plb__identity_compare(&slot->addr, slot->id, &backend->addr, backend->id);
            if (order == 0)
                return slot;
            if (order > 0)
                break;
        }
    }
    return NULL;
}
static void plb__update_match(const plb_balancer *lb, const plb__update *u)
{
    plb__set *current = (plb__set *)lb->current;
    uint32_t t;
    size_t i;
    for (t = 0; current != NULL && t < plb__set_tiers(current); t++)
        current->tiers[t].cursor = 0;
    for (i = 0; i < u->list->count; i++)
        u->list->slots[u->list->order[i]] = plb__update_find(current, plb__list_at(u->list, i));
}
#endif

static const plb_backend *plb__list_member(const plb__list *list, size_t position)
{
    return &list->backends[list->members[position]];
}

/* Puts the backends in the order of a set, without exact duplicates, which end up behind; counts the tiers. */
static void plb__update_arrange(plb__update *u)
{
    plb__list *list = u->list;
    size_t i;
    uint32_t members = 0;
    memcpy(list->members, list->order, list->count * sizeof *list->members);
    PLB__IF_TIERS(plb__list_sort_by(list, list->members, plb__tier_compare), (void)0);
    u->tiers = 1;
    for (i = 0; i < list->count; i++) {
        const plb_backend *backend = plb__list_member(list, i);
        if (members > 0 && plb__backend_compare(plb__list_member(list, members - 1), backend) == 0)
            continue;
        if (members > 0 && plb__tier_compare(plb__list_member(list, members - 1), backend) != 0)
            u->tiers++;
        list->members[members++] = list->members[i];
    }
    u->members = members;
}

/* How many tiers there will be. */
PLB__INLINE uint32_t plb__update_tiers(const plb__update *u)
{
    (void)u;
    return PLB__IF_TIERS(u->tiers, 1);
}

#ifndef PLB_NO_UPDATES
/* Is it the set that is there already? */
static bool plb__update_differs(const plb_balancer *lb, const plb__update *u)
{
    const plb__set *current = (const plb__set *)lb->current;
    uint32_t t = 0;
    size_t i;
    if (current == NULL || current->count != u->members || plb__set_tiers(current) != u->tiers)
        return true;
    for (i = 0; i < u->members; i++) {
        const plb_backend *backend = plb__list_member(u->list, i);
        while (i >= current->tiers[t].start + current->tiers[t].view.count)
            t++;
        if (current->slots[i] != u->list->slots[u->list->members[i]] ||
            plb__set_weight(current, i) != plb__weight_of(backend) ||
            plb__tier_priority(&current->tiers[t]) != plb__priority_of(backend))
            return true;
    }
    return false;
}

/* Makes sure of one number more. They are small and used again, so that strategies may keep arrays by them. */
static plb_status plb__numbers_reserve(plb_balancer *lb)
{
    const plb_allocator *a = &lb->env.allocator;
    uint32_t capacity = lb->numbers_capacity > 0 ? lb->numbers_capacity * 2 : 16;
    uint32_t *numbers;
    if (lb->free_number_count > 0 || lb->next_number < lb->numbers_capacity)
        return PLB_OK;
    numbers = (uint32_t *)a->alloc(a->user, capacity * sizeof *numbers);
    if (numbers == NULL)
        return PLB_ERR_MEMORY;
    if (lb->free_number_count > 0)
        memcpy(numbers, lb->free_numbers, lb->free_number_count * sizeof *numbers);
    plb__delete(a, lb->free_numbers, lb->numbers_capacity * sizeof *numbers);
    lb->free_numbers = numbers;
    lb->numbers_capacity = capacity;
    return PLB_OK;
}

static uint32_t plb__number_take(plb_balancer *lb)
{
    return lb->free_number_count > 0 ? lb->free_numbers[--lb->free_number_count] : lb->next_number++;
}
#else
PLB__INLINE plb_status plb__numbers_reserve(plb_balancer *lb)
{
    (void)lb;
    return PLB_OK;
}

PLB__INLINE uint32_t plb__number_take(plb_balancer *lb)
{
    return lb->next_number++;
}
#endif

static size_t plb__slot_lead(const plb_balancer *lb)
{
    size_t care = lb->check_count > 0 || plb__watches(lb) ? PLB__CARE_SIZE : 0;
    size_t record = plb__watches(lb) ? PLB__RECORD_LEAD : 0;
    care += lb->check_count * sizeof(plb__vital);
    return PLB__SLOT_LEAD(care) + record + PLB__SLOT_LEAD(lb->strategy->slot_size);
}

/* A new slot's state: before anybody can see it. */
static void plb__slot_init(const plb_balancer *lb, plb__slot *slot, const plb_backend *backend)
{
    uint32_t c;
    for (c = 0; c < lb->check_count; c++) {
        plb__vital *vital = &plb__slot_vitals(slot)[c];
        vital->status = PLB_AGAIN;
        PLB__IF_SHARES(vital->share = PLB__SHARE_ALL, (void)0);
        PLB__IF_CHECK_LIST(vital->absent = !plb__check_is_for(lb, c, backend->checks), (void)0);
        if (lb->desc.start_unhealthy && !plb__is_absent(vital))
            slot->flags |= plb__failing(c);
    }
    if (plb__slot_care(slot) != NULL) {
        PLB__IF_CHECK_LIST(plb__slot_care(slot)->checks = (uint8_t)backend->checks, (void)0);
        PLB__IF_CHECK_LIST(plb__slot_care(slot)->every_ms = backend->check_every_ms, (void)0);
    }
    if (plb__watches(lb))
        plb__record_init(slot);
    if (backend->enablement == PLB_ENABLEMENT_OFF)
        slot->flags |= PLB__DISABLED;
    plb__slot_limit(slot, plb__limit_of(backend));
}

static plb_status plb__update_create_slots(plb_balancer *lb, plb__update *u)
{
    size_t i;
    for (i = 0; i < u->list->count; i++) {
        plb__slot **slots = u->list->slots, *slot = slots[u->list->order[i]];
        if (slot != NULL)
            continue;
        if (plb__list_continues(u->list, i)) {
            slots[u->list->order[i]] = slots[u->list->order[i - 1]];
            continue;
        }
        if (plb__numbers_reserve(lb) == PLB_OK)
            slot = plb__slot_new(&lb->env.allocator, plb__list_at(u->list, i), plb__slot_lead(lb),
                                 PLB__SLOT_LEAD(lb->strategy->slot_size));
        if (slot == NULL)
            return PLB_ERR_MEMORY;
        slot->u.control.number = plb__number_take(lb);
        plb__slot_init(lb, slot, plb__list_at(u->list, i));
        slot->u.control.next_departed = u->created;
        u->created = slot;
        slots[u->list->order[i]] = slot;
    }
    return PLB_OK;
}

/* The tier of the current set that has this priority, or NULL. */
static const plb__tier *plb__update_old_tier(const plb_balancer *lb, uint32_t priority)
{
    const plb__set *old = (const plb__set *)lb->current;
    uint32_t t;
    for (t = 0; old != NULL && t < plb__set_tiers(old); t++)
        if (plb__tier_priority(&old->tiers[t]) == priority && old->tiers[t].table != NULL)
            return &old->tiers[t];
    return NULL;
}

/* A tier's backends, readiness and table. */
PLB__ONCE plb_status plb__update_fill_tier(plb_balancer *lb, plb__update *u, plb__tier *tier)
{
    plb_view *view = &tier->view;
    const plb__tier *old;
    uint32_t i;
    view->state = lb->strategy_state;
    for (i = 0; i < view->count; i++) {
        uint32_t index = u->list->members[tier->start + i];
        plb__set_fill(tier, i, u->list->slots[index], plb__weight_of(&u->list->backends[index]));
    }
    plb__set_fill_ready(u->set, tier);
    if (view->count > 0)
        tier->priority = plb__priority_of(plb__list_member(u->list, tier->start));
    if (view->count == 0 || lb->strategy->build == NULL)
        return PLB_OK;
    old = plb__update_old_tier(lb, tier->priority);
    return lb->strategy->build(lb->strategy_state, view, old != NULL ? &old->view : NULL,
                               old != NULL ? old->table : NULL, &tier->table);
}

/* How large each tier will be. */
static plb_status plb__update_count_tiers(const plb_balancer *lb, plb__update *u)
{
    const plb_allocator *a = &lb->env.allocator;
    uint32_t t = 0, i;
    u->counts = &u->members;
    if (plb__update_tiers(u) == 1)
        return PLB_OK;
    u->counts = (uint32_t *)plb__new(a, u->tiers * sizeof *u->counts);
    if (u->counts == NULL)
        return PLB_ERR_MEMORY;
    for (i = 0; i < u->members; i++) {
        if (i > 0 && plb__tier_compare(plb__list_member(u->list, i), plb__list_member(u->list, i - 1)) != 0)
            t++;
        u->counts[t]++;
    }
    return PLB_OK;
}

/* The new set. */
static plb_status plb__update_build(plb_balancer *lb, plb__update *u)
{
    plb_status status = plb__update_create_slots(lb, u);
    uint32_t t;
    if (status == PLB_OK)
        status = plb__update_count_tiers(lb, u);
    if (status != PLB_OK)
        return status;
    u->set = plb__set_new(&lb->env.allocator, u->counts, plb__update_tiers(u));
    if (u->set == NULL)
        return PLB_ERR_MEMORY;
    status = plb__schedule_reserve(lb, u->set->count);
    if (status != PLB_OK)
        return status;
    u->set->strategy = lb->strategy;
    u->set->strategy_state = lb->strategy_state;
    u->set->panic_percent = PLB__IF_TIERS(lb->desc.panic_percent, 0);
    u->set->simple = plb__update_tiers(u) == 1 && u->members > 0 && lb->strategy->pick != NULL;
    for (t = 0; t < plb__update_tiers(u) && status == PLB_OK; t++)
        status = plb__update_fill_tier(lb, u, &u->set->tiers[t]);
    u->set->active = plb__choose_tier(u->set);
    return status;
}

#ifndef PLB_NO_UPDATES
#ifndef PLB_NO_CHECK_LIST
/* Section HEALTH CHECK. */
static void plb__slot_checks(plb_balancer *lb, plb__slot *slot, const plb_backend *backend);
#endif

/* Hands over what the answer says beside addresses and weights: ext, max_conns, checks, enablement. */
static void plb__update_settle(plb_balancer *lb, plb__update *u)
{
    size_t i;
    for (i = 0; i < u->list->count; i++) {
        const plb_backend *backend = plb__list_at(u->list, i);
        plb__slot *slot = u->list->slots[u->list->order[i]];
        if (!plb__list_continues(u->list, i)) {
            if (plb__slot_max_conns(slot) != plb__limit_of(backend)) {
                plb__slot_limit(slot, plb__limit_of(backend));
                plb__slot_changed(lb, slot, PLB__LOAD_RELAXED(&slot->index));
            }
            PLB__IF_CHECK_LIST(plb__slot_checks(lb, slot, backend), (void)0);
        }
        if (backend->enablement != PLB_ENABLEMENT_KEEP)
            plb__slot_flag(lb, slot, PLB__DISABLED, backend->enablement == PLB_ENABLEMENT_OFF);
        if (backend->ext != slot->ext && !plb__list_repeats_ext(u->list, i))
            plb__release_ext(backend->ext, backend->ext_release);
    }
}
#endif

/* New slots take over their first backend's ext, before anybody can see them. */
static void plb__update_adopt(plb__update *u)
{
    size_t i;
    for (i = 0; i < u->list->count; i++) {
        const plb_backend *backend = plb__list_at(u->list, i);
        plb__slot *slot = u->list->slots[u->list->order[i]];
        if (slot->u.control.holders > 0 || plb__list_continues(u->list, i))
            continue;
        slot->ext = backend->ext;
        slot->ext_release = backend->ext_release;
    }
}

static void plb__slot_free(plb_balancer *lb, plb__slot *slot)
{
    PLB__IF_UPDATES(lb->free_numbers[lb->free_number_count++] = slot->u.control.number, (void)0);
    plb__slot_delete(&lb->env.allocator, slot);
}

/* One holder less. A slot that nothing holds departs: at once, or with the last request in flight and what it left. */
static void plb__slot_let_go(plb_balancer *lb, plb__slot *slot)
{
    if (--slot->u.control.holders > 0)
        return;
    plb__slot_drop_kept(lb, slot);
    if ((plb__fetch_add(&slot->in_flight, PLB__DEPARTED) & PLB__COUNT_MASK) == 0 && !plb__slot_is_suspect(lb, slot)) {
        plb__slot_free(lb, slot);
        return;
    }
    slot->u.control.next_departed = lb->departed;
    lb->departed = slot;
}

/* A set whose slots are not its own, or not any more. */
static void plb__set_free(plb_balancer *lb, plb__set *set)
{
    uint32_t t;
    for (t = 0; t < plb__set_tiers(set); t++)
        if (set->tiers[t].table != NULL)
            lb->strategy->discard(lb->strategy_state, set->tiers[t].table);
    plb__delete(&lb->env.allocator, set, set->size);
}

static void plb__set_delete(plb_balancer *lb, plb__set *set)
{
    uint32_t i;
    for (i = 0; i < set->count; i++)
        plb__slot_let_go(lb, set->slots[i]);
    plb__set_free(lb, set);
}

#ifndef PLB_NO_UPDATES
/* Frees what nobody reads or holds any more; says whether something is left. */
static bool plb__reclaim(plb_balancer *lb)
{
    plb__slot **link = &lb->departed;
    int i;
    plb__look_at_spilled(lb);
    for (i = 0; i < 2; i++) {
        if (lb->retired[i] != NULL && lb->left[i] == 3 && !plb__is_read(lb, lb->retired[i])) {
            plb__set_delete(lb, lb->retired[i]);
            lb->retired[i] = NULL;
        }
    }
    while (*link != NULL) {
        plb__slot *slot = *link;
        if ((PLB__LOAD(&slot->in_flight) & PLB__COUNT_MASK) != 0 || plb__slot_is_suspect(lb, slot)) {
            link = &slot->u.control.next_departed;
            continue;
        }
        *link = slot->u.control.next_departed;
        plb__slot_free(lb, slot);
    }
    return lb->retired[0] != NULL || lb->retired[1] != NULL;
}
#endif

#ifndef PLB_NO_UPDATES
/* The set takes the current one's place. */
static void plb__succeed(plb_balancer *lb, plb__set *set)
{
    plb__set *old = (plb__set *)lb->current;
    uint32_t i;
    PLB__STORE(&lb->current, (uintptr_t)set);
    if (lb->env.port.barrier != NULL)
        lb->env.port.barrier->issue(lb->env.port.barrier->self);
    if (old != NULL) {
        i = lb->retired[0] != NULL;
        lb->retired[i] = old;
        lb->left[i] = 0;
    }
    plb__reclaim(lb);
}
#endif

/* Publishes a set. From the first store on, flips are told to it; those that came before are read from the slots; then
   readers may have it. So a backend that was switched off before is not picked from it, not even for a moment. */
static void plb__publish(plb_balancer *lb, plb__set *set)
{
    uint32_t i;
    for (i = 0; i < set->count; i++) {
        set->slots[i]->u.control.holders++;
        if (i == 0 || set->slots[i - 1] != set->slots[i])
            PLB__STORE_RELAXED(&set->slots[i]->index, i);
    }
    plb__schedule_move(lb, set);
    plb__records_move(lb, set);
    PLB__STORE(&lb->newest, (uintptr_t)set);
    PLB__IF_UPDATES(plb__set_sync_all(set), (void)0);
    PLB__IF_UPDATES(plb__succeed(lb, set), PLB__STORE(&lb->current, (uintptr_t)set));
}

static void plb__update_free(plb_balancer *lb, plb__update *u)
{
    while (u->created != NULL) {
        plb__slot *slot = u->created;
        u->created = slot->u.control.next_departed;
        plb__slot_free(lb, slot);
    }
    if (u->set != NULL)
        plb__set_free(lb, u->set);
    if (u->counts != &u->members)
        plb__delete(&lb->env.allocator, u->counts, u->tiers * sizeof *u->counts);
}

/* Carries out an answer wholly, or not at all. */
static plb_status plb__update_apply(plb_balancer *lb, plb__list *list, bool *changed)
{
    plb__update u;
    plb_status status;
    memset(&u, 0, sizeof u);
    u.list = list;
    plb__list_sort(list);
    status = plb__update_check(lb, list);
    if (status == PLB_OK) {
        PLB__IF_UPDATES(plb__update_match(lb, &u), (void)0);
        plb__update_arrange(&u);
        u.changed = PLB__IF_UPDATES(plb__update_differs(lb, &u), true);
    }
    if (status == PLB_OK && u.changed)
        status = plb__update_build(lb, &u);
    if (status == PLB_OK) {
        plb__set *set = u.set;
        u.set = NULL;
        u.created = NULL; /* they are the set's now */
        if (u.changed) {
            plb__update_adopt(&u);
            plb__publish(lb, set);
        }
        PLB__IF_UPDATES(plb__update_settle(lb, &u), (void)0);
        *changed = u.changed;
    }
    plb__update_free(lb, &u);
    return status;
}

#ifndef PLB_NO_UPDATES
/* Releases every ext that the set does not have. */
static void plb__release_strangers(plb_balancer *lb, plb__list *list)
{
    const plb__set *current = (const plb__set *)lb->current;
    size_t i;
    plb__list_sort(list);
    for (i = 0; i < list->count; i++) {
        const plb_backend *backend = plb__list_at(list, i);
        const plb__tier *tier = NULL;
        uint32_t at = current != NULL ? plb__set_find(current, &backend->addr, backend->id, &tier) : PLB_NONE;
        if (at != PLB_NONE && tier->view.slots[at]->ext == backend->ext)
            continue;
        if (!plb__list_repeats_ext(list, i))
            plb__release_ext(backend->ext, backend->ext_release);
    }
}

/* An answer that was not applied: its ext is released, unless the discovery wants to know. */
static void plb__update_refuse(plb_balancer *lb, plb__list *list)
{
    if (lb->desc.discovery.ops->applied == NULL)
        plb__release_strangers(lb, list);
}
#endif

/* ==== DISCOVERY ======================================================================================================
   The balancer's side: when a discovery starts, what becomes of its answer, changes from other threads. */

/* After a failure of this side, which is no answer, the next try; and while an update waits for readers, or memory
   for them to leave. */
#define PLB__RETRY_MS        1000
#define PLB__WAIT_READERS_MS 1

#ifndef PLB_NO_UPDATES
static bool plb__is_name(const plb_backend *backend)
{
    (void)backend;
    return PLB__IF_NAMES(backend->addr.family == PLB_FAMILY_NONE, false);
}

PLB_API plb_status plb_discovery_done(plb_token token, plb_status status, const plb_backend *backends, size_t count)
{
    const plb_allocator *a = &token.balancer->env.allocator;
    plb__list *list = NULL;
    plb__op *op;
    bool answered = status == PLB_OK || status == PLB_AGAIN;
    if (answered)
        list = plb__list_copy(a, backends, count);
    op = plb__op_claim(token);
    if (op == NULL) {
        if (list != NULL)
            plb__delete(a, list, list->size);
        return PLB_ERR_CANCELLED;
    }
    op->answer = list;
    if (answered && list == NULL) {
        plb__op_complete(op, PLB_ERR_MEMORY);
        return PLB_ERR_MEMORY;
    }
    plb__op_complete(op, status);
    return PLB_OK;
}

static void plb__update_retry(plb_balancer *lb)
{
    uint32_t regular = lb->desc.update_every_ms;
    if (lb->env.port.clock != NULL && (regular == 0 || regular > PLB__RETRY_MS))
        plb_timer_set(&lb->timers, &lb->update_timer, PLB__RETRY_MS);
}

static void plb__update_over(plb_balancer *lb, plb_status status, bool changed)
{
    plb__op *op = lb->discovery;
    const plb__set *current = (const plb__set *)lb->current;
    bool again = plb_status_is_local(status);
    if (op->answer != NULL) {
        again = again || op->report.status == PLB_AGAIN;
        if (status != PLB_OK)
            plb__update_refuse(lb, op->answer);
        plb__delete(&lb->env.allocator, op->answer, op->answer->size);
    }
    plb__op_stop(lb, op);
    plb__op_delete(lb, op, 0);
    lb->discovery = NULL;
    lb->update.status = status;
    lb->update.updates += status == PLB_OK;
    lb->update.changes += changed;
    lb->update.failures += status != PLB_OK;
    lb->update.backends = current != NULL ? current->count : 0;
    if (lb->desc.discovery.ops->applied != NULL)
        lb->desc.discovery.ops->applied(lb->discovery_state, status);
    if (status != PLB_OK)
        plb__log(lb, PLB_LOG_ERROR, "update failed, the last good set serves on", status);
    if (again)
        plb__update_retry(lb);
    if (changed && lb->desc.on_change != NULL)
        lb->desc.on_change(lb->desc.user, lb);
    if (lb->desc.on_update != NULL)
        lb->desc.on_update(lb->desc.user, &lb->update);
    if (!lb->first_update_over) {
        lb->first_update_over = true;
        if (lb->desc.on_first_update != NULL)
            lb->desc.on_first_update(lb->desc.user, lb, status);
    }
}

static void plb__log_update(const plb_balancer *lb)
{
    plb__text *line = plb__log_begin(lb, PLB_LOG_INFO, "set of ");
    if (line == NULL)
        return;
    plb__put_number(line, lb->update.backends, 10);
    plb__put(line, " backends published: discovery ");
    plb__put_number(line, lb->update.discovery_us, 10);
    plb__put(line, " us, build ");
    plb__put_number(line, lb->update.build_us, 10);
    plb__put(line, " us");
    plb__log_end(lb);
}

static void plb__answer_apply(plb_balancer *lb)
{
    uint64_t start = plb__now_us(lb);
    bool changed = false;
    plb_status status = plb__update_apply(lb, lb->discovery->answer, &changed);
    lb->update.build_us = plb__since_us(lb, start);
    plb__update_over(lb, status, changed);
    if (changed)
        plb__log_update(lb);
    else if (status == PLB_OK)
        plb__log(lb, PLB_LOG_DEBUG, "update brought nothing new", PLB_OK);
}

static void plb__discovery_answered(plb_balancer *lb, plb_status status)
{
    plb_timer_stop(&lb->timers, &lb->discovery->deadline);
    lb->update.discovery_us = plb__since_us(lb, lb->discovery->started_us);
    if (lb->discovery->answer == NULL) {
        plb__update_over(lb, status, false);
        return;
    }
    plb__answer_apply(lb);
}

static void plb__discovery_timeout(void *user)
{
    plb__op *op = (plb__op *)user;
    plb_balancer *lb = op->lb;
    plb_token token = plb__op_token(op);
    if (plb__op_claim(token) == NULL)
        return; /* its completion is in the mailbox */
    lb->desc.discovery.ops->cancel(lb->discovery_state, token);
    plb__discovery_answered(lb, PLB_ERR_TIMEOUT);
}

/* One discovery runs at a time, and it starts when there is room for one more retired set: so its answer never has to
   wait, and the changes that come meanwhile, which the discovery takes in, become one update. */
static bool plb__discovery_can_start(const plb_balancer *lb)
{
    return lb->update_due && lb->discovery == NULL && (lb->retired[0] == NULL || lb->retired[1] == NULL);
}

static void plb__discovery_start(plb_balancer *lb)
{
    plb_token token;
    plb_status status;
    lb->update_due = false;
    if (lb->desc.update_every_ms > 0)
        plb_timer_set(&lb->timers, &lb->update_timer, lb->desc.update_every_ms);
    lb->discovery = plb__op_new(lb, 0);
    if (lb->discovery != NULL && !plb__op_start(lb, lb->discovery)) {
        plb__op_delete(lb, lb->discovery, 0);
        lb->discovery = NULL;
    }
    if (lb->discovery == NULL) {
        plb__log(lb, PLB_LOG_ERROR, "discovery did not start", PLB_ERR_MEMORY);
        plb__update_retry(lb);
        return;
    }
    plb__op_deadline(lb, lb->discovery, plb__discovery_timeout, lb->desc.discovery.timeout_ms);
    token = plb__op_token(lb->discovery);
    status = lb->desc.discovery.ops->start(lb->discovery_state, token);
    if (status != PLB_OK && plb__op_claim(token) != NULL)
        plb__discovery_answered(lb, status);
}

static void plb__update_due(void *user)
{
    ((plb_balancer *)user)->update_due = true;
}

PLB_API void plb_update_now(plb_balancer *lb)
{
    plb__fetch_or(&lb->wanted, PLB__WANT_UPDATE);
    plb__wake(lb);
}

PLB_API void plb_last_update(const plb_balancer *lb, plb_update_info *out)
{
    *out = lb->update;
}

#ifndef PLB_NO_CHANGES
/* What tells nothing about which backend it is. */
static void plb__backend_ignore(plb_backend *backend)
{
    PLB__IF_WEIGHTS(backend->weight = 0, (void)0);
    PLB__IF_CHECK_LIST(backend->checks = 0, (void)0);
    PLB__IF_TIERS(backend->priority = 0, (void)0);
}

/* Changes of the list, from any thread. */
static plb_status plb__change_push(plb_balancer *lb, plb_change what, const plb_backend *backends, size_t count)
{
    const plb_allocator *a = &lb->env.allocator;
    plb__change *change;
    size_t i;
    if (lb->desc.discovery.ops->change == NULL)
        return PLB_ERR_UNSUPPORTED;
    for (i = 0; i < count; i++) {
        plb_backend backend = backends[i];
        plb_status status;
        if (what == PLB_CHANGE_REMOVE)
            plb__backend_ignore(&backend);
        status =
            plb__backend_check(&backend, PLB__IF_NAMES(lb->env.port.names != NULL, false) || what == PLB_CHANGE_REMOVE);
        if (status != PLB_OK)
            return status;
        if (plb__is_name(&backend) && backend.ext != NULL && what != PLB_CHANGE_REMOVE)
            return PLB_ERR_ARGUMENT; /* one ext cannot belong to each address that the name may have */
    }
    change = (plb__change *)plb__new(a, sizeof *change);
    if (change == NULL)
        return PLB_ERR_MEMORY;
    change->list = plb__list_copy(a, backends, count);
    if (change->list == NULL) {
        plb__delete(a, change, sizeof *change);
        return PLB_ERR_MEMORY;
    }
    for (i = 0; i < count && what == PLB_CHANGE_REMOVE; i++)
        change->list->backends[i].ext = NULL;
    change->mail.kind = PLB__MAIL_CHANGE;
    change->what = what;
    plb__mail_push(&lb->mailbox, &change->mail);
    plb__wake(lb);
    return PLB_OK;
}

PLB_API plb_status plb_add(plb_balancer *lb, const plb_backend *backend)
{
    return plb__change_push(lb, PLB_CHANGE_ADD, backend, 1);
}

PLB_API plb_status plb_remove(plb_balancer *lb, const plb_backend *backend)
{
    return plb__change_push(lb, PLB_CHANGE_REMOVE, backend, 1);
}

PLB_API plb_status plb_replace(plb_balancer *lb, const plb_backend *backends, size_t count)
{
    return plb__change_push(lb, PLB_CHANGE_REPLACE, backends, count);
}

/* Is an answer there that has not been applied yet? */
static bool plb__has_answer(const plb_balancer *lb)
{
    return lb->discovery != NULL && PLB__LOAD(&lb->discovery->ticket->state) % PLB__OP_PHASES == PLB__OP_COMPLETED;
}

static plb_status plb__change_offer(plb_balancer *lb)
{
    const plb__change *oldest = (const plb__change *)(void *)lb->changes;
    return lb->desc.discovery.ops->change(lb->discovery_state, oldest->what, oldest->list->backends,
                                          oldest->list->count);
}

static void plb__change_pop(plb_balancer *lb)
{
    const plb_allocator *a = &lb->env.allocator;
    plb__change *oldest = (plb__change *)(void *)lb->changes;
    lb->changes = oldest->mail.next;
    if (lb->changes == NULL)
        lb->changes_end = &lb->changes;
    plb__delete(a, oldest->list, oldest->list->size);
    plb__delete(a, oldest, sizeof *oldest);
}

/* Hands the changes that came to the discovery: not while an answer waits, whose ext is neither's yet. */
static void plb__changes_apply(plb_balancer *lb)
{
    lb->changes_stalled = false;
    while (lb->changes != NULL && !plb__has_answer(lb) && !lb->changes_stalled) {
        plb_status status = plb__change_offer(lb);
        if (status != PLB_OK)
            plb__log(lb, PLB_LOG_ERROR, "a change of the list of backends was not possible", status);
        if (status == PLB_ERR_MEMORY) {
            lb->changes_stalled = true;
            plb__update_retry(lb);
        } else {
            lb->update_due = true;
            plb__change_pop(lb);
        }
    }
}

/* Leaves what the oldest change brings and a later one brings again to the later one. */
static void plb__change_forget_repeated(plb_balancer *lb)
{
    const plb__change *oldest = (const plb__change *)(void *)lb->changes;
    const plb__mail *mail;
    size_t i, j;
    for (mail = oldest->mail.next; mail != NULL; mail = mail->next) {
        const plb__list *later = ((const plb__change *)(const void *)mail)->list;
        for (i = 0; i < oldest->list->count; i++) {
            plb_backend *x = &oldest->list->backends[i];
            for (j = 0; j < later->count && x->ext != NULL; j++) {
                const plb_backend *y = &later->backends[j];
                if (x->ext == y->ext && plb__identity_compare(&x->addr, x->id, &y->addr, y->id) == 0)
                    x->ext = NULL;
            }
        }
    }
}

/* At the end: the discovery knows which ext it has already, and releases what there is no memory for. */
static void plb__changes_end(plb_balancer *lb)
{
    while (lb->changes != NULL) {
        if (plb__change_offer(lb) == PLB_ERR_MEMORY) {
            plb__change_forget_repeated(lb);
            ((plb__change *)(void *)lb->changes)->what = PLB_CHANGE_NONE;
            plb__change_offer(lb);
        }
        plb__change_pop(lb);
    }
}
#endif
#endif

/* ==== STATIC DISCOVERY ===============================================================================================
   The program's list, and the names in it. */

#ifndef PLB_NO_UPDATES
typedef struct plb__static plb__static;

/* One line of the list: a backend, or a name and the addresses that it had last. */
typedef struct plb__static_entry {
    struct plb__static_entry *next;
    bool offered; /* its ext is in the answer under way */
    bool given;   /* its ext is the balancer's */
#ifndef PLB_NO_NAMES
    plb__static *list;
    plb_query *query;
    plb_addr *addrs;
    size_t addr_count;
#endif
    plb_backend backend; /* the name stands behind it */
} plb__static_entry;

struct plb__static {
    const plb_env *env;
    uint32_t timeout_ms;
    plb__static_entry *entries;
    plb_token token;
    size_t unresolved;  /* names that this update still waits for; 0: none is under way */
    plb_status failure; /* of a name in this update; one of this side before others */
};

static uint32_t plb__static_timeout(const plb_static_desc *desc)
{
    uint32_t timeout_ms = 0;
    if (desc != NULL)
        PLB__IF_NAMES(timeout_ms = desc->timeout_ms, (void)0);
    return plb__or(timeout_ms, 5000);
}

/* The order of the list, names last; 0: they are one line. */
static int plb__static_compare(const plb_backend *a, const plb_backend *b)
{
    int order = 0;
    if (plb__is_name(a) != plb__is_name(b))
        return plb__is_name(a) ? 1 : -1;
    if (plb__is_name(a))
        order = PLB__IF_NAMES(plb__compare(a->name, b->name), 0);
    return order != 0 ? order : plb__identity_compare(&a->addr, a->id, &b->addr, b->id);
}

static size_t plb__static_entry_size(const plb_backend *backend)
{
    return sizeof(plb__static_entry) + plb__name_size(plb__name_of(backend));
}

static plb__static_entry *plb__static_entry_new(plb__static *self, const plb_backend *backend)
{
    const plb_allocator *a = &self->env->allocator;
    plb__static_entry *entry = (plb__static_entry *)plb__new(a, plb__static_entry_size(backend));
    char *name = (char *)(entry + 1);
    if (entry == NULL)
        return NULL;
    entry->backend = *backend;
    PLB__IF_NAMES(entry->list = self, (void)0);
    PLB__IF_NAMES(entry->backend.name = plb__copy_text(&name, backend->name), (void)name);
    return entry;
}

/* Releases an ext that the list does not have any more, unless the set has it. */
static void plb__static_release(const plb__static *self, const plb_backend *backend)
{
    plb_backend_info info;
    if (backend->ext == NULL)
        return;
    if (plb_find(self->env->balancer, &backend->addr, backend->id, &info) != PLB_OK || info.backend.ext != backend->ext)
        plb__release_ext(backend->ext, backend->ext_release);
}

#ifndef PLB_NO_NAMES
/* Gives up what is being asked, and what was answered. */
static void plb__static_forget(plb__static *self, plb__static_entry *entry)
{
    const plb_names *names = self->env->port.names;
    if (entry->query != NULL) {
        names->cancel(names->self, entry->query);
        self->unresolved--;
    }
    plb__delete(&self->env->allocator, entry->addrs, entry->addr_count * sizeof(plb_addr));
}
#endif

static void plb__static_entry_free(plb__static *self, plb__static_entry *entry)
{
    PLB__IF_NAMES(plb__static_forget(self, entry), (void)0);
    if (!entry->given)
        plb__static_release(self, &entry->backend);
    plb__delete(&self->env->allocator, entry, plb__static_entry_size(&entry->backend));
}

static void plb__static_free_all(plb__static *self, plb__static_entry *entries)
{
    while (entries != NULL) {
        plb__static_entry *next = entries->next;
        plb__static_entry_free(self, entries);
        entries = next;
    }
}

/* Appends a line. On failure ext stays the caller's. */
static plb_status plb__static_append(plb__static *self, plb__static_entry ***end, const plb_backend *backend)
{
    plb_status status = plb__backend_check(backend, PLB__IF_NAMES(self->env->port.names != NULL, false));
    if (status == PLB_OK && plb__is_name(backend) && backend->ext != NULL)
        status = PLB_ERR_ARGUMENT;
    if (status == PLB_OK) {
        **end = plb__static_entry_new(self, backend);
        if (**end == NULL)
            return PLB_ERR_MEMORY;
        *end = &(**end)->next;
        return PLB_OK;
    }
    plb__log_backend(self->env->balancer, PLB_LOG_ERROR, "bad entry", backend, plb__words_of(status));
    return status;
}

/* May the list consist of these? `added`: it takes the place of those like it, or is NULL. */
static plb_status plb__static_check_sum(const plb__static *self, const plb__static_entry *entries,
                                        const plb_backend *added)
{
    uint64_t sum = added != NULL ? plb__weight_of(added) : 0;
    for (; entries != NULL; entries = entries->next)
        if (added == NULL || plb__static_compare(&entries->backend, added) != 0)
            sum += plb__weight_of(&entries->backend);
    if (sum <= UINT32_MAX)
        return PLB_OK;
    plb__log(self->env->balancer, PLB_LOG_ERROR, "the weights of the list add up to 2^32 or more", PLB_OK);
    return PLB_ERR_WEIGHT;
}

/* Two sorted lists as one; of equal lines those of a are first. */
static plb__static_entry *plb__static_merge(plb__static_entry *a, plb__static_entry *b)
{
    plb__static_entry *merged = NULL, **end = &merged;
    while (a != NULL && b != NULL) {
        plb__static_entry **least = plb__static_compare(&a->backend, &b->backend) <= 0 ? &a : &b;
        *end = *least;
        end = &(*end)->next;
        *least = *end;
    }
    *end = a != NULL ? a : b;
    return merged;
}

/* Merge sort: bin i holds 2^i lines or none. Stable. Then an ext that several equal lines bring is the first one's. */
static plb__static_entry *plb__static_sort(plb__static_entry *entries)
{
    plb__static_entry *bins[32] = {NULL}, *sorted = NULL, *first, *entry;
    size_t i;
    while (entries != NULL) {
        entry = entries;
        entries = entry->next;
        entry->next = NULL;
        for (i = 0; bins[i] != NULL; bins[i++] = NULL)
            entry = plb__static_merge(bins[i], entry);
        bins[i] = entry;
    }
    for (i = 0; i < sizeof bins / sizeof *bins; i++)
        sorted = plb__static_merge(bins[i], sorted);
    for (first = sorted; first != NULL; first = first->next)
        for (entry = first->next; entry != NULL && plb__static_compare(&first->backend, &entry->backend) == 0;
             entry = entry->next)
            if (entry->backend.ext == first->backend.ext)
                entry->backend.ext = NULL;
    return sorted;
}

static plb_status plb__static_parse(plb__static *self, plb__static_entry ***end, const char *text)
{
    char name[256];
    plb_backend backend;
    plb__text *line;
    plb_status status = plb_backend_parse(&backend, text, PLB_ZSTRING, name);
    if (status == PLB_OK)
        return plb__static_append(self, end, &backend);
    line = plb__log_begin(self->env->balancer, PLB_LOG_ERROR, "bad address '");
    if (line != NULL) {
        plb__put(line, text);
        plb__put(line, "': expected 1.2.3.4:80, [::1]:80, unix:/path or host:80");
        plb__log_end(self->env->balancer);
    }
    return status;
}

static plb_status plb__static_open(void *opaque, const void *opaque_desc, const plb_env *env)
{
    plb__static *self = (plb__static *)opaque;
    const plb_static_desc *desc = (const plb_static_desc *)opaque_desc;
    plb__static_entry **end = &self->entries;
    plb_status status = PLB_OK;
    size_t i;
    self->env = env;
    self->timeout_ms = plb__static_timeout(desc);
    for (i = 0; desc != NULL && i < desc->address_count && status == PLB_OK; i++)
        status = plb__static_parse(self, &end, desc->addresses[i]);
    for (i = 0; desc != NULL && i < desc->backend_count && status == PLB_OK; i++)
        status = plb__static_append(self, &end, &desc->backends[i]);
    if (status == PLB_OK)
        status = plb__static_check_sum(self, self->entries, NULL);
    self->entries = plb__static_sort(self->entries);
    if (status != PLB_OK) { /* plb_create fails, so every ext stays the caller's */
        plb__static_entry *entry;
        for (entry = self->entries; entry != NULL; entry = entry->next)
            entry->backend.ext = NULL;
    }
    return status;
}

static void plb__static_close(void *opaque)
{
    plb__static *self = (plb__static *)opaque;
    plb__static_free_all(self, self->entries);
}

/* How many backends a line stands for. */
static size_t plb__static_count(const plb__static_entry *entry)
{
    return plb__is_name(&entry->backend) ? PLB__IF_NAMES(entry->addr_count, 0) : 1;
}

#ifndef PLB_NO_NAMES
static void plb__static_offer_name(const plb__static_entry *entry, plb_backend *out)
{
    size_t i;
    for (i = 0; i < entry->addr_count; i++) {
        out[i] = entry->backend;
        out[i].addr = entry->addrs[i];
    }
}

/* What an older line for the same name had found out. */
static PLB__UNUSED void plb__static_inherit_addrs(plb__static_entry *entry, plb__static_entry *old)
{
    plb_addr *addrs = entry->addrs;
    size_t count = entry->addr_count;
    entry->addrs = old->addrs;
    entry->addr_count = old->addr_count;
    old->addrs = addrs;
    old->addr_count = count;
}
#endif

/* Writes them down. */
static void plb__static_offer(plb__static_entry *entry, plb_backend *out)
{
    if (plb__is_name(&entry->backend)) {
        PLB__IF_NAMES(plb__static_offer_name(entry, out), (void)0);
        return;
    }
    *out = entry->backend;
    if (entry->given)
        out->ext = NULL; /* the balancer has it already, and keeps it */
    else
        entry->offered = true;
}

static void plb__static_answer(plb__static *self)
{
    const plb_allocator *a = &self->env->allocator;
    plb__static_entry *entry;
    plb_backend *backends = NULL;
    plb_status status = PLB_OK;
    size_t count = 0, n = 0;
    for (entry = self->entries; entry != NULL; entry = entry->next)
        count += plb__static_count(entry);
    if (count == 0) {
        status = self->failure;
    } else {
        backends = (plb_backend *)a->alloc(a->user, count * sizeof *backends);
        if (backends == NULL)
            status = PLB_ERR_MEMORY;
    }
    for (entry = self->entries; entry != NULL && status == PLB_OK; entry = entry->next) {
        if (plb__static_count(entry) > 0)
            plb__static_offer(entry, backends + n);
        n += plb__static_count(entry);
    }
    /* A name that failed for want of memory or the like should not wait for the next regular update. */
    if (status == PLB_OK && plb_status_is_local(self->failure))
        status = PLB_AGAIN;
    plb_discovery_done(self->token, status, backends, n);
    plb__delete(a, backends, count * sizeof *backends);
}

#ifndef PLB_NO_NAMES
static void plb__static_failed(plb__static *self, const plb__static_entry *entry, plb_status status)
{
    if (!plb_status_is_local(self->failure))
        self->failure = status;
    plb__log_backend(self->env->balancer, PLB_LOG_WARN, "could not resolve", &entry->backend, plb__words_of(status));
}

static void plb__static_resolved(void *user, plb_status status, const plb_addr *addrs, size_t count)
{
    plb__static_entry *entry = (plb__static_entry *)user;
    plb__static *self = entry->list;
    const plb_allocator *a = &self->env->allocator;
    plb_addr *copy = NULL;
    entry->query = NULL;
    if (status == PLB_OK) {
        copy = (plb_addr *)a->alloc(a->user, count * sizeof *copy);
        if (copy == NULL)
            status = PLB_ERR_MEMORY;
    }
    if (status == PLB_OK) {
        memcpy(copy, addrs, count * sizeof *copy);
        plb__delete(a, entry->addrs, entry->addr_count * sizeof *copy);
        entry->addrs = copy;
        entry->addr_count = count;
    } else {
        plb__static_failed(self, entry, status);
    }
    if (--self->unresolved == 0)
        plb__static_answer(self);
}

static plb_status plb__static_start(void *opaque, plb_token token)
{
    plb__static *self = (plb__static *)opaque;
    const plb_names *names = self->env->port.names;
    plb__static_entry *entry;
    self->token = token;
    self->failure = PLB_OK;
    self->unresolved = 1; /* this loop itself */
    for (entry = self->entries; entry != NULL; entry = entry->next) {
        plb_status status;
        if (!plb__is_name(&entry->backend))
            continue;
        status = names->resolve(names->self, entry->backend.name, entry->backend.addr.port, self->timeout_ms,
                                plb__static_resolved, entry, &entry->query);
        if (status == PLB_AGAIN)
            self->unresolved++;
        else
            plb__static_failed(self, entry, status);
    }
    if (--self->unresolved == 0)
        plb__static_answer(self);
    return PLB_OK;
}

static void plb__static_cancel(void *opaque, plb_token token)
{
    plb__static *self = (plb__static *)opaque;
    plb__static_entry *entry;
    (void)token;
    for (entry = self->entries; entry != NULL; entry = entry->next) {
        if (entry->query != NULL)
            self->env->port.names->cancel(self->env->port.names->self, entry->query);
        entry->query = NULL;
    }
    self->unresolved = 0;
}
#else
static plb_status plb__static_start(void *opaque, plb_token token)
{
    plb__static *self = (plb__static *)opaque;
    self->token = token;
    plb__static_answer(self);
    return PLB_OK;
}

PLB__INLINE void plb__static_cancel(void *opaque, plb_token token)
{
    (void)opaque;
    (void)token;
}
#endif

/* Which ext is the set's now: the one that was offered, or one that was there already and stays, and then the offered
   one is gone and its address may be used again. */
static void plb__static_settle(const plb__static *self, plb__static_entry *entry)
{
    plb_backend_info info;
    entry->given = true;
    if (plb_find(self->env->balancer, &entry->backend.addr, entry->backend.id, &info) != PLB_OK)
        return;
    entry->backend.ext = info.backend.ext;
    entry->backend.ext_release = info.backend.ext_release;
}

static void plb__static_applied(void *opaque, plb_status status)
{
    plb__static *self = (plb__static *)opaque;
    plb__static_entry *entry;
    for (entry = self->entries; entry != NULL; entry = entry->next) {
        if (entry->offered && status == PLB_OK)
            plb__static_settle(self, entry);
        entry->offered = false;
    }
}

#ifndef PLB_NO_CHANGES
/* Unlinks the line that matches and every duplicate of it; returns them. */
static plb__static_entry *plb__static_take(plb__static_entry **link, const plb_backend *backend)
{
    plb__static_entry *taken = NULL;
    while (*link != NULL) {
        plb__static_entry *entry = *link;
        if (plb__static_compare(&entry->backend, backend) != 0) {
            link = &entry->next;
            continue;
        }
        *link = entry->next;
        entry->next = taken;
        taken = entry;
    }
    return taken;
}

/* A line takes the place of an older one for the same address: what that one owned, or had found out, stays. */
static void plb__static_inherit(const plb__static *self, plb__static_entry *entry, plb__static_entry *old)
{
    if (plb__is_name(&entry->backend)) {
        PLB__IF_NAMES(plb__static_inherit_addrs(entry, old), (void)0);
        return;
    }
    if (entry->given || old->backend.ext == NULL)
        return;
    if (entry->backend.ext != old->backend.ext)
        plb__static_release(self, &entry->backend);
    entry->backend.ext = old->backend.ext;
    entry->backend.ext_release = old->backend.ext_release;
    entry->given = old->given;
    old->backend.ext = NULL;
}

/* Releases the ext of backends that do not get into the list, unless it has the same or has it twice. */
static void plb__static_reject(const plb__static *self, const plb_backend *backends, size_t count)
{
    const plb__static_entry *entry;
    size_t i, j;
    for (i = 0; i < count; i++) {
        bool known = backends[i].ext == NULL;
        for (j = 0; j < i && !known; j++)
            known = backends[j].ext == backends[i].ext && plb__static_compare(&backends[j], &backends[i]) == 0;
        for (entry = self->entries; entry != NULL && !known; entry = entry->next)
            known = entry->backend.ext == backends[i].ext && plb__static_compare(&entry->backend, &backends[i]) == 0;
        if (!known)
            plb__static_release(self, &backends[i]);
    }
}

static plb_status plb__static_add(plb__static *self, const plb_backend *backend)
{
    plb__static_entry *added = NULL, **end = &added, **link = &self->entries, *old, *o;
    plb_status status = plb__static_check_sum(self, self->entries, backend);
    if (status == PLB_OK)
        status = plb__static_append(self, &end, backend);
    if (status != PLB_OK) {
        if (status != PLB_ERR_MEMORY)
            plb__static_reject(self, backend, 1);
        return status;
    }
    old = plb__static_take(&self->entries, backend);
    for (o = old; o != NULL; o = o->next)
        plb__static_inherit(self, added, o);
    plb__static_free_all(self, old);
    while (*link != NULL && plb__static_compare(&(*link)->backend, backend) < 0)
        link = &(*link)->next;
    added->next = *link;
    *link = added;
    return PLB_OK;
}

static plb_status plb__static_replace(plb__static *self, const plb_backend *backends, size_t count)
{
    plb__static_entry *entries = NULL, **end = &entries, *entry, *old;
    plb_status status = PLB_OK;
    size_t i;
    for (i = 0; i < count && status == PLB_OK; i++)
        status = plb__static_append(self, &end, &backends[i]);
    if (status == PLB_OK)
        status = plb__static_check_sum(self, entries, NULL);
    if (status != PLB_OK) {
        for (entry = entries; entry != NULL; entry = entry->next)
            entry->backend.ext = NULL;
        plb__static_free_all(self, entries);
        if (status != PLB_ERR_MEMORY)
            plb__static_reject(self, backends, count);
        return status;
    }
    entry = entries = plb__static_sort(entries);
    old = self->entries;
    while (entry != NULL && old != NULL) {
        int order = plb__static_compare(&entry->backend, &old->backend);
        if (order == 0)
            plb__static_inherit(self, entry, old);
        if (order < 0)
            entry = entry->next;
        else
            old = old->next;
    }
    plb__static_free_all(self, self->entries);
    self->entries = entries;
    return PLB_OK;
}

static plb_status plb__static_change(void *opaque, plb_change change, const plb_backend *backends, size_t count)
{
    plb__static *self = (plb__static *)opaque;
    bool resolving = self->unresolved > 0;
    plb_status status = PLB_OK;
    switch (change) {
    case PLB_CHANGE_ADD:
        status = plb__static_add(self, backends);
        break;
    case PLB_CHANGE_REMOVE:
        plb__static_free_all(self, plb__static_take(&self->entries, backends));
        break;
    case PLB_CHANGE_NONE:
        plb__static_reject(self, backends, count);
        break;
    default:
        status = plb__static_replace(self, backends, count);
    }
    if (resolving && self->unresolved == 0) /* with the lines went the last names that were waited for */
        plb__static_answer(self);
    return status;
}
#endif

static const plb_discovery_ops plb__static_ops = {
    "static",          sizeof(plb__static), plb__static_open,    plb__static_close,
    plb__static_start, plb__static_cancel,  plb__static_applied, PLB__IF_CHANGES(plb__static_change, NULL)};

PLB_API plb_discovery plb_static(const plb_static_desc *desc)
{
    plb_discovery discovery;
    discovery.ops = &plb__static_ops;
    discovery.desc = desc;
    /* The names' own deadline comes first, so that one that hangs does not hold up the others' answer. */
    discovery.timeout_ms = plb__static_timeout(desc) + 1000;
    return discovery;
}
#else
/* The list as it was handed in. */
static plb_status plb__static_fill(plb_balancer *lb, const plb_static_desc *desc, plb__list *list)
{
    plb_status status = PLB_OK;
    size_t i;
    for (i = 0; i < list->count && status == PLB_OK; i++) {
        list->order[i] = (uint32_t)i;
        if (i < desc->address_count)
            status = plb_backend_parse(&list->backends[i], desc->addresses[i], PLB_ZSTRING, NULL);
        else
            list->backends[i] = desc->backends[i - desc->address_count];
    }
    if (status != PLB_OK)
        plb__log(lb, PLB_LOG_ERROR, "bad address", PLB_OK);
    return status;
}

/* The first set, and the last one. */
static plb_status plb__static_apply(plb_balancer *lb)
{
    const plb_static_desc *desc = (const plb_static_desc *)lb->desc.discovery.desc;
    size_t count = desc != NULL ? desc->address_count + desc->backend_count : 0;
    plb__list *list = plb__list_new(&lb->env.allocator, count, 0);
    plb_status status = PLB_ERR_MEMORY;
    bool changed;
    if (list == NULL)
        return PLB_ERR_MEMORY;
    status = plb__static_fill(lb, desc, list);
    if (status == PLB_OK)
        status = plb__update_apply(lb, list, &changed);
    plb__delete(&lb->env.allocator, list, list->size);
    return status;
}

PLB_API plb_discovery plb_static(const plb_static_desc *desc)
{
    plb_discovery discovery;
    discovery.desc = desc;
    return discovery;
}
#endif

#ifndef PLB_NO_NAMES
static bool plb__is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* A host name as RFC 1123 section 2.1 and RFC 952 have it, underscores tolerated. Its last label is no number, decimal
   or hexadecimal: resolvers would take the whole for an address in one of its older notations. */
static bool plb__is_host(const char *text, size_t length)
{
    size_t i, label = 0, digits = 0;
    if (length == 0 || length > 253)
        return false;
    for (i = 0; i < length; i++) {
        char c = text[i];
        if (c == '.' && i > label) {
            label = i + 1;
            digits = 0;
        } else if (plb__is_digit(c)) {
            digits++;
        } else if (!((c | 32) >= 'a' && (c | 32) <= 'z') && c != '_' && (c != '-' || i == label)) {
            return false;
        }
    }
    if (label == length) /* a dot at the end, for a name that is absolute */
        return plb__is_host(text, length - 1);
    return digits < length - label && !(text[label] == '0' && (text[label + 1] | 32) == 'x');
}

/* "host:port", the host into name_buffer. */
static bool plb__scan_name(const char *text, size_t length, uint16_t *port, char *name_buffer)
{
    const char *colon = plb__find_byte(text, ':', length);
    plb__scan scan;
    if (colon == NULL || name_buffer == NULL || !plb__is_host(text, (size_t)(colon - text)))
        return false;
    scan.at = colon;
    scan.end = text + length;
    if (!plb__scan_port(&scan, port))
        return false;
    memcpy(name_buffer, text, (size_t)(colon - text));
    name_buffer[colon - text] = '\0';
    return true;
}
#endif

PLB_API plb_status plb_backend_parse(plb_backend *out, const char *text, size_t length, char *name_buffer)
{
    plb_addr addr;
    bool named = false;
    (void)name_buffer;
    if (text == NULL)
        return PLB_ERR_ADDRESS;
    if (length == PLB_ZSTRING)
        length = strlen(text);
    if (!plb__read_addr(&addr, text, length)) {
        memset(&addr, 0, sizeof addr);
        named = PLB__IF_NAMES(plb__scan_name(text, length, &addr.port, name_buffer), false);
        if (!named)
            return PLB_ERR_ADDRESS;
    }
    memset(out, 0, sizeof *out);
    out->addr = addr;
    PLB__IF_WEIGHTS(out->weight = 1, (void)0);
    PLB__IF_NAMES(out->name = named ? name_buffer : NULL, (void)named);
    return PLB_OK;
}

/* ==== HEALTH CHECK ===================================================================================================
   The balancer's side: what results do to backends, and probes in flight. */

PLB_API void plb_check_done(plb_token token, plb_status status)
{
    plb__op *op = plb__op_claim(token);
    if (op != NULL)
        plb__op_complete(op, status);
}

static void plb__report_set(plb__op *op, const plb_report *report)
{
    op->report = *report;
    plb__op_say(op, PLB__IF_LOG(report->text, NULL));
    PLB__IF_LOG(op->report.text = NULL, (void)0);
}

PLB_API void plb_check_report(plb_token token, const plb_report *report)
{
    plb__op *op = plb__op_claim(token);
    if (op == NULL)
        return;
    plb__report_set(op, report);
    plb__op_complete(op, report->status);
}

/* A probe that is over. */
typedef struct plb__result {
    plb__op *op;
    plb__slot *slot;
    plb__vital *vital;
    const char *why; /* what the probe said, or what its status means */
} plb__result;

#ifndef PLB_NO_SHARES
/* Slow start: a share grows in so many steps, so that what wakes up for it is bounded. */
#define PLB__RAMP_STEPS 64u

static void plb__ramp_wait(plb_balancer *lb)
{
    if (!plb_timer_is_set(&lb->ramp_timer))
        plb_timer_set(&lb->timers, &lb->ramp_timer, lb->desc.slow_start_ms / PLB__RAMP_STEPS);
}

/* How far a slow start has come. */
static uint32_t plb__ramp_share(plb_balancer *lb, plb__slot *slot)
{
    plb__care *care = plb__slot_care(slot);
    uint32_t elapsed = (uint32_t)lb->timers.now_ms - care->ramp_ms;
    uint64_t share;
    if (!care->ramping)
        return PLB__SHARE_ALL;
    share = (uint64_t)elapsed * PLB__SHARE_ALL / lb->desc.slow_start_ms;
    care->ramping = share < PLB__SHARE_ALL;
    if (!care->ramping)
        return PLB__SHARE_ALL;
    plb__ramp_wait(lb);
    return share > 0 ? (uint32_t)share : 1;
}

/* Makes a slot's share what slow start and agents say. */
static void plb__share_update(plb_balancer *lb, plb__slot *slot)
{
    uint32_t share = PLB__SHARE_ALL, before = PLB__LOAD(&slot->share), c;
    for (c = 0; c < lb->check_count; c++)
        if (plb__slot_vitals(slot)[c].share < share)
            share = plb__slot_vitals(slot)[c].share;
    share = (share * plb__ramp_share(lb, slot) + PLB__SHARE_ALL - 1) / PLB__SHARE_ALL;
    PLB__STORE(&slot->share, (uint8_t)share);
    if ((share == PLB__SHARE_ALL) != (before == PLB__SHARE_ALL))
        plb__slot_changed(lb, slot, PLB__LOAD_RELAXED(&slot->index));
}

/* Makes a slot what its agents want together: the least of the shares, nothing where one of them wants nothing. */
static void plb__slot_advise(plb_balancer *lb, plb__slot *slot)
{
    bool off = false;
    uint32_t c;
    for (c = 0; c < lb->check_count; c++)
        off = off || plb__slot_vitals(slot)[c].advised_off || plb__slot_vitals(slot)[c].share == 0;
    plb__share_update(lb, slot);
    if (off != ((PLB__LOAD(&slot->flags) & PLB__ADVISED_OFF) != 0))
        plb__slot_flag(lb, slot, PLB__ADVISED_OFF, off);
}

/* The slot is about to become healthy. The share comes first, so that nobody sees it healthy with all of it. */
static void plb__ramp_start(plb_balancer *lb, plb__slot *slot)
{
    if (lb->desc.slow_start_ms == 0)
        return;
    plb__slot_care(slot)->ramp_ms = (uint32_t)lb->timers.now_ms;
    plb__slot_care(slot)->ramping = true;
    plb__share_update(lb, slot);
}

/* Lets the shares grow that are still partial. */
static void plb__ramp_go_on(void *user)
{
    plb_balancer *lb = (plb_balancer *)user;
    const plb__set *set = (const plb__set *)lb->current;
    uint32_t t, w;
    for (t = 0; set != NULL && t < plb__set_tiers(set); t++) {
        const plb__tier *tier = &set->tiers[t];
        for (w = 0; w < tier->view.words; w++) {
            uintptr_t word = PLB__LOAD(&tier->bits[PLB__BITS_PARTIAL][w]);
            for (; word != 0; word &= word - 1)
                plb__share_update(lb, tier->view.slots[w * PLB__WORD_BITS + plb__lowest_one(word)]);
        }
    }
}

/* What the report advises, if it does. */
static void plb__health_advise(plb_balancer *lb, const plb__result *r)
{
    const plb_report *report = &r->op->report;
    if (!report->has_share && report->enablement == PLB_ENABLEMENT_KEEP)
        return;
    if (report->has_share)
        r->vital->share = report->share;
    if (report->enablement != PLB_ENABLEMENT_KEEP)
        r->vital->advised_off = report->enablement == PLB_ENABLEMENT_OFF;
    plb__slot_advise(lb, r->slot);
}
#else
PLB__INLINE void plb__ramp_start(plb_balancer *lb, plb__slot *slot)
{
    (void)lb;
    (void)slot;
}

PLB__INLINE void plb__health_advise(plb_balancer *lb, const plb__result *r)
{
    (void)lb;
    (void)r;
}
#endif

PLB__INLINE bool plb__is_neutral(const plb__op *op)
{
    (void)op;
    return PLB__IF_SHARES(op->report.neutral, false);
}

/* One check flips; the backend with it, unless another check fails. */
static void plb__vital_flip(plb_balancer *lb, plb__slot *slot, uint32_t check, bool success, plb_status status,
                            const char *why)
{
    uint32_t bit = plb__failing(check), failing = PLB__LOAD(&slot->flags) & PLB__UNHEALTHY, index;
    bool flips = (failing & ~bit) == 0;
    const plb__tier *tier = NULL;
    plb_backend_info info;
    if (success && flips)
        plb__ramp_start(lb, slot);
    PLB__IF_PROBE_INFO(
        PLB__STORE_RELAXED(&plb__slot_care(slot)->flips, plb__slot_care(slot)->flips + (flips ? 1u : 0u)), (void)0);
    plb__slot_flag(lb, slot, bit, !success);
    if (!flips)
        return;
    index = plb__set_find_slot((const plb__set *)lb->current, slot, &tier);
    plb__fill_info(tier, index, &info);
    plb__log_backend(lb, success ? PLB_LOG_INFO : PLB_LOG_WARN,
                     success ? "healthy again:" : "unhealthy:", &info.backend, why);
    if (lb->desc.on_flip != NULL)
        lb->desc.on_flip(lb->desc.user, &info, status);
}

#if !defined(PLB_NO_UPDATES) && !defined(PLB_NO_CHECK_LIST)
#ifndef PLB_NO_SHARES
/* A check is gone, and what its agent said. */
static void plb__vital_unadvise(plb_balancer *lb, plb__slot *slot, plb__vital *vital)
{
    vital->share = PLB__SHARE_ALL;
    vital->advised_off = false;
    plb__slot_advise(lb, slot);
}
#endif

/* A backend gets a check, or loses it: what that said goes with it. */
static void plb__vital_switch(plb_balancer *lb, plb__slot *slot, uint32_t check, bool absent)
{
    plb__vital *vital = &plb__slot_vitals(slot)[check];
    vital->absent = absent;
    if (absent) {
        lb->unknown -= vital->status == PLB_AGAIN ? 1u : 0u;
        plb__vital_drop_kept(lb, vital, check);
        PLB__IF_SHARES(plb__vital_unadvise(lb, slot, vital), (void)0);
        if ((PLB__LOAD(&slot->flags) & plb__failing(check)) != 0)
            plb__vital_flip(lb, slot, check, true, PLB_OK, "it is not checked so any more");
    } else {
        vital->status = PLB_AGAIN;
        vital->streak = 0;
        lb->unknown++;
        if (vital->stage == PLB__VITAL_NEW || vital->stage == PLB__VITAL_DONE)
            plb__vital_due(lb, slot, check, lb->timers.now_ms);
    }
}

/* Brings a slot's checks in line with what an update says of them. */
static void plb__slot_checks(plb_balancer *lb, plb__slot *slot, const plb_backend *backend)
{
    plb__care *care = plb__slot_care(slot);
    bool changes;
    uint32_t c;
    if (care == NULL)
        return;
    changes = care->every_ms != backend->check_every_ms;
    PLB__STORE_RELAXED(&care->every_ms, backend->check_every_ms);
    PLB__STORE_RELAXED(&care->checks, (uint8_t)backend->checks);
    for (c = 0; c < lb->check_count; c++) {
        bool absent = !plb__check_is_for(lb, c, backend->checks);
        plb__vital *vital = &plb__slot_vitals(slot)[c];
        if (absent != vital->absent)
            plb__vital_switch(lb, slot, c, absent);
        if (changes && !absent && vital->stage == PLB__VITAL_DONE)
            plb__vital_due(lb, slot, c, lb->timers.now_ms); /* nothing more was due */
    }
}
#endif

/* The state machine of pingora-load-balancing's Health::observe_health. */
static void plb__health_observe(plb_balancer *lb, const plb__result *r)
{
    const plb_check *check = &lb->checks[r->op->check].what;
    bool success = r->op->report.status == PLB_OK || plb__is_neutral(r->op);
    bool passing = (PLB__LOAD(&r->slot->flags) & plb__failing(r->op->check)) == 0;
    if (plb__is_neutral(r->op) && PLB__IF_SHARES(r->vital->judged, false))
        return;
    if (success == passing) {
        r->vital->streak = 0;
        return;
    }
    if (++r->vital->streak < (success ? check->consecutive_success : check->consecutive_failure))
        return;
    r->vital->streak = 0;
    plb__vital_flip(lb, r->slot, r->op->check, success, r->op->report.status, success ? NULL : r->why);
}

#ifndef PLB_NO_PROBE_INFO
/* Writes down what a result tells beside its status. */
static void plb__vital_detail(const plb__result *r)
{
    plb__vital *vital = r->vital;
    vital->code = (uint16_t)r->op->report.code;
    vital->latency_us = r->op->latency_us < UINT32_MAX ? (uint32_t)r->op->latency_us : UINT32_MAX;
    vital->passed += vital->status == PLB_OK && !plb__is_neutral(r->op);
    vital->failed += vital->status != PLB_OK && !plb__is_neutral(r->op);
}

static void plb__probe_fill(const plb__slot *slot, const plb__vital *vital, uint32_t check, plb_probe_info *out)
{
    memset(out, 0, sizeof *out);
    out->status = (plb_status)vital->status;
    out->code = vital->code;
    out->latency_us = vital->latency_us;
    out->passed = vital->passed;
    out->failed = vital->failed;
    out->passing = (PLB__LOAD(&slot->flags) & plb__failing(check)) == 0;
    PLB__IF_LOG(out->text = plb_status_text(out->status), (void)0);
}

PLB__APART void plb__probe_tell(plb_balancer *lb, const plb__result *r)
{
    const plb__tier *tier = NULL;
    plb_backend_info info;
    plb_probe_info probe;
    uint32_t index;
    if (lb->desc.on_probe == NULL && PLB__IF_LOG(!plb__logs(lb, PLB_LOG_DEBUG), true))
        return;
    index = plb__set_find_slot((const plb__set *)lb->current, r->slot, &tier);
    plb__fill_info(tier, index, &info);
    plb__probe_fill(r->slot, r->vital, r->op->check, &probe);
    probe.status = r->op->report.status;
    PLB__IF_LOG(probe.text = r->why, (void)0);
    plb__log_backend(lb, PLB_LOG_DEBUG, probe.status == PLB_OK ? "probe succeeded:" : "probe failed:", &info.backend,
                     probe.status == PLB_OK && PLB__IF_LOG(r->op->text[0] == '\0', true) ? NULL : r->why);
    if (lb->desc.on_probe != NULL)
        lb->desc.on_probe(lb->desc.user, &info, r->op->check, &probe);
}
#else
PLB__INLINE void plb__vital_detail(const plb__result *r)
{
    (void)r;
}

PLB__INLINE void plb__probe_tell(plb_balancer *lb, const plb__result *r)
{
    (void)lb;
    (void)r;
}
#endif

/* Writes a result down. */
static void plb__vital_record(plb_balancer *lb, const plb__result *r)
{
    lb->unknown -= r->vital->status == PLB_AGAIN ? 1u : 0u;
    PLB__IF_SHARES(r->vital->judged = r->vital->judged || !plb__is_neutral(r->op), (void)0);
    r->vital->status = (uint8_t)r->op->report.status;
    plb__vital_detail(r);
}

/* A backend could not be probed for reasons of this side, which says nothing of it. */
static void plb__probe_impossible(plb_balancer *lb, plb__slot *slot, uint32_t check, const char *why)
{
    plb__vital *vital = &plb__slot_vitals(slot)[check];
    plb_backend backend;
    plb__fill_backend(slot, 0, &backend);
    plb__log_backend(lb, PLB_LOG_WARN, "could not probe", &backend, why);
    if (PLB__IF_CHECK_LIST(vital->again, false))
        plb__vital_due(lb, slot, check, lb->timers.now_ms);
    else if (lb->env.port.clock != NULL)
        plb__vital_due(lb, slot, check, lb->timers.now_ms + PLB__RETRY_MS);
    else
        vital->stage = PLB__VITAL_DONE;
    PLB__IF_CHECK_LIST(vital->again = false, (void)0);
}

#ifndef PLB_NO_CHECK_LIST
/* From the start of a check's last probe to the next; 0: there is none. */
PLB__ONCE uint32_t plb__probe_interval(plb_balancer *lb, plb__slot *slot, uint32_t check)
{
    const plb_check *what = &lb->checks[check].what;
    uint32_t own_ms = plb__slot_care(slot)->every_ms, every_ms = own_ms > 0 ? own_ms : what->every_ms;
    uint32_t spread;
    uint64_t wait;
    if (plb__slot_vitals(slot)[check].streak > 0 && what->fast_every_ms > 0)
        every_ms = what->fast_every_ms;
    else if ((PLB__LOAD(&slot->flags) & plb__failing(check)) != 0 && what->down_every_ms > 0)
        every_ms = what->down_every_ms;
    if (every_ms == 0 || what->jitter_percent == 0)
        return every_ms;
    spread = every_ms / 100 * what->jitter_percent + every_ms % 100 * what->jitter_percent / 100;
    lb->jitter = plb__mix(lb->jitter + PLB__GOLDEN);
    wait = every_ms - spread + ((lb->jitter >> 32) * (2 * (uint64_t)spread + 1) >> 32);
    return wait == 0 ? 1 : wait < UINT32_MAX ? (uint32_t)wait : UINT32_MAX;
}
#else
PLB__INLINE uint32_t plb__probe_interval(plb_balancer *lb, plb__slot *slot, uint32_t check)
{
    (void)slot;
    return lb->checks[check].what.every_ms;
}
#endif

static void plb__probe_again(plb_balancer *lb, const plb__result *r)
{
    uint32_t interval = plb__probe_interval(lb, r->slot, r->op->check);
    uint64_t due_ms = r->op->started_ms + interval;
    bool again = PLB__IF_CHECK_LIST(r->vital->again, false);
    if (again || due_ms < lb->timers.now_ms)
        due_ms = lb->timers.now_ms;
    if (again || (interval > 0 && lb->env.port.clock != NULL))
        plb__vital_due(lb, r->slot, r->op->check, due_ms);
    PLB__IF_CHECK_LIST(r->vital->again = false, (void)0);
}

static void plb__outlier_absolve(plb_balancer *lb, const plb__result *r);

/* The op is over, and the backend still there with that check. */
PLB__ONCE void plb__probe_judge(plb_balancer *lb, const plb__result *r)
{
    const plb_report *report = &r->op->report;
    bool local = plb_status_is_local(report->status);
    if (!local)
        plb__vital_record(lb, r);
    plb__probe_tell(lb, r);
    if (local) {
        plb__probe_impossible(lb, r->slot, r->op->check, r->why);
        return;
    }
    plb__health_advise(lb, r);
    plb__health_observe(lb, r);
    plb__outlier_absolve(lb, r);
    plb__probe_again(lb, r);
}

static void plb__probe_over(plb_balancer *lb, plb__op *op, plb_status status)
{
    size_t probe_size = lb->checks[op->check].what.ops->probe_size;
    plb__result r;
    bool senseless = status == PLB_AGAIN || (uint32_t)status >= PLB_STATUS_COUNT; /* as a result */
    op->report.status = senseless ? PLB_ERR_ARGUMENT : status;
    r.op = op;
    r.slot = op->slot;
    r.vital = &plb__slot_vitals(op->slot)[op->check];
    r.why = plb__op_why(op);
    lb->probes--;
    plb__op_stop(lb, op);
    r.vital->stage = PLB__VITAL_DONE;
    if (plb__set_has_slot((const plb__set *)lb->current, r.slot) &&
        !plb__is_absent(r.vital)) { /* else it has left meanwhile */
        if (plb__op_keeps(op))
            PLB__IF_EXCHANGE(r.vital->kept = op, (void)0);
        plb__probe_judge(lb, &r);
    } else if (plb__op_keeps(op)) {
        lb->checks[op->check].what.ops->cancel(lb->checks[op->check].state, plb__op_probe(op), plb__op_token(op));
    }
    if (plb__vital_kept(r.vital) != op)
        plb__op_delete(lb, op, probe_size);
    plb__slot_let_go(lb, r.slot);
}

static void plb__probe_timeout(void *user)
{
    plb__op *op = (plb__op *)user;
    plb_token token = plb__op_token(op);
    plb_balancer *lb = op->lb;
    const plb__check *check = &lb->checks[op->check];
    if (plb__op_claim(token) == NULL)
        return; /* its completion is in the mailbox */
    op->latency_us = plb__since_us(lb, op->started_us);
    check->what.ops->cancel(check->state, plb__op_probe(op), token);
    plb__probe_over(lb, op, PLB_ERR_TIMEOUT);
}

PLB_API void plb_check_deadline(plb_token token, uint32_t delay_ms)
{
    plb__op *op = plb__op_running(token);
    if (op == NULL || op->lb->env.port.clock == NULL)
        return;
    plb_timers_update(&op->lb->timers, op->lb->env.port.clock); /* the port's callbacks come long after the last poll */
    plb__op_deadline(op->lb, op, plb__probe_timeout, delay_ms);
}

/* An op for the next probe: the one that was kept, or a new one; NULL: no memory. */
static plb__op *plb__probe_op(plb_balancer *lb, plb__vital *vital, const plb__check *check)
{
    plb__op *op = plb__vital_kept(vital);
    if (op == NULL)
        op = plb__op_new(lb, check->what.ops->probe_size);
    if (op == NULL)
        return NULL;
    if (plb__op_start(lb, op)) {
        PLB__IF_EXCHANGE(vital->kept = NULL, (void)0);
        return op;
    }
    if (op != plb__vital_kept(vital))
        plb__op_delete(lb, op, check->what.ops->probe_size);
    return NULL;
}

PLB__APART void plb__probe_start(plb_balancer *lb, plb__slot *slot, uint32_t c, uint32_t weight)
{
    const plb__check *check = &lb->checks[c];
    plb__vital *vital = &plb__slot_vitals(slot)[c];
    plb__op *op = plb__probe_op(lb, vital, check);
    plb_backend backend;
    plb_token token;
    plb_status status;
    if (op == NULL) {
        plb__probe_impossible(lb, slot, c, plb__words_of(PLB_ERR_MEMORY));
        return;
    }
    op->slot = slot;
    op->check = c;
    vital->stage = PLB__VITAL_RUNNING;
    slot->u.control.holders++;
    lb->probes++;
    token = plb__op_token(op);
    plb__op_deadline(lb, op, plb__probe_timeout, check->what.timeout_ms);
    plb__fill_backend(slot, weight, &backend);
    status = check->what.ops->start(check->state, plb__op_probe(op), &backend, token);
    if (status != PLB_OK && plb__op_claim(token) != NULL)
        plb__probe_over(lb, op, status);
}

/* Probes that one poll starts at most, and how long it goes on starting them: it is to stay short where connecting is
   dear, too. On loopback the system does the peer's part of it in the same call. */
#define PLB__STARTS_PER_POLL  64
#define PLB__STARTS_AT_A_TIME 8 /* between two looks at the clock */
#define PLB__STARTS_US        2000

static bool plb__probe_can_start(const plb_balancer *lb)
{
    return lb->scheduled > 0 && lb->probes < lb->desc.parallel_checks &&
           plb__schedule_first_ms(lb) <= lb->timers.now_ms;
}

/* Does a poll that has started so many since then start one more? */
static bool plb__probes_go_on(const plb_balancer *lb, uint32_t starts, uint64_t begun_us)
{
    if (starts == PLB__STARTS_PER_POLL || !plb__probe_can_start(lb))
        return false;
    return starts == 0 || starts % PLB__STARTS_AT_A_TIME != 0 || plb__since_us(lb, begun_us) < PLB__STARTS_US;
}

/* Starts what is due. */
static void plb__probes_start(plb_balancer *lb)
{
    const plb__set *set = (const plb__set *)lb->current;
    uint64_t begun_us = plb__now_us(lb);
    uint32_t starts;
    for (starts = 0; plb__probes_go_on(lb, starts, begun_us); starts++) {
        uint32_t task = plb__schedule_take(lb), index = task / plb__tasks_each(lb), c = task % plb__tasks_each(lb);
        plb__vital *vital = &plb__slot_vitals(set->slots[index])[c];
        if (plb__is_absent(vital))
            vital->stage = PLB__VITAL_DONE;
        else
            plb__probe_start(lb, set->slots[index], c, plb__set_weight(set, index));
    }
}

#ifndef PLB_NO_CHECK_LIST
PLB_API void plb_check_now(plb_balancer *lb)
{
    plb__fetch_or(&lb->wanted, PLB__WANT_CHECK);
    plb__wake(lb);
}
#endif

#ifndef PLB_NO_PROBE_INFO
PLB_API plb_status plb_find_probe(plb_balancer *lb, const plb_addr *addr, uint32_t id, uint32_t check,
                                  plb_probe_info *out)
{
    const plb__set *set = (const plb__set *)lb->current;
    const plb__tier *tier = NULL;
    uint32_t index = set != NULL ? plb__set_find(set, addr, id, &tier) : PLB_NONE;
    if (index == PLB_NONE)
        return PLB_ERR_ADDRESS;
    if (check >= lb->check_count || plb__is_absent(&plb__slot_vitals(tier->view.slots[index])[check]))
        return PLB_ERR_ARGUMENT;
    plb__probe_fill(tier->view.slots[index], &plb__slot_vitals(tier->view.slots[index])[check], check, out);
    return PLB_OK;
}
#endif

/* ==== EXCHANGE =======================================================================================================
   A probe over a stream. */

#ifndef PLB_NO_TLS
/* A copy of what a check's TLS sessions need, in one allocation: the struct, the list of protocols, the texts. */
static size_t plb__tls_size(const plb_tls *tls, size_t *protocols)
{
    size_t size = sizeof *tls + plb__name_size(tls->name) + plb__name_size(tls->alternative_name), i;
    for (i = 0; tls->alpn != NULL && tls->alpn[i] != NULL; i++)
        size += plb__name_size(tls->alpn[i]);
    *protocols = i;
    return size + (i + 1) * sizeof(char *);
}

static plb_tls *plb__tls_copy(const plb_allocator *a, const plb_tls *tls, size_t *size)
{
    size_t protocols, i;
    plb_tls *copy;
    const char **alpn;
    char *at;
    *size = plb__tls_size(tls, &protocols);
    copy = (plb_tls *)plb__new(a, *size);
    if (copy == NULL)
        return NULL;
    *copy = *tls;
    alpn = (const char **)(void *)(copy + 1);
    at = (char *)(alpn + protocols + 1);
    copy->name = plb__copy_text(&at, tls->name);
    copy->alternative_name = plb__copy_text(&at, tls->alternative_name);
    for (i = 0; i < protocols; i++)
        alpn[i] = plb__copy_text(&at, tls->alpn[i]);
    copy->alpn = protocols > 0 ? alpn : NULL;
    return copy;
}

static plb_status plb__exchange_take_tls(plb_exchange_check *check, const plb_connect_desc *connect)
{
    check->connect.tls = NULL;
    if (connect == NULL || connect->tls == NULL)
        return PLB_OK;
    check->connect.tls = plb__tls_copy(&check->env->allocator, connect->tls, &check->memory_size);
    check->memory = (void *)(uintptr_t)check->connect.tls;
    return check->memory != NULL ? PLB_OK : PLB_ERR_MEMORY;
}

/* It may never have been opened. */
static void plb__exchange_drop_tls(plb_exchange_check *check)
{
    if (check->memory != NULL)
        plb__delete(&check->env->allocator, check->memory, check->memory_size);
}
#endif

PLB_API plb_status plb_exchange_open(plb_exchange_check *check, const plb_connect_desc *connect, uint32_t answer_ms,
                                     const plb_env *env)
{
    check->env = env;
    if (env->port.io == NULL || env->port.clock == NULL)
        return PLB_ERR_UNSUPPORTED;
    if (connect != NULL)
        check->connect = *connect;
    if (check->connect.timeout_ms == 0)
        check->connect.timeout_ms = 1000;
    check->answer_ms = answer_ms > 0 ? answer_ms : check->connect.timeout_ms;
    return PLB__IF_TLS(plb__exchange_take_tls(check, connect), PLB_OK);
}

PLB_API void plb_exchange_close(plb_exchange_check *check)
{
    (void)check;
    PLB__IF_TLS(plb__exchange_drop_tls(check), (void)0);
}

/* The TLS of its probes, or NULL. */
PLB__INLINE const plb_tls *plb__exchange_tls(const plb_exchange_check *check)
{
    (void)check;
    return PLB__IF_TLS(check->connect.tls, NULL);
}

#ifndef PLB_NO_EXCHANGE
static void plb__exchange_forget_rest(plb_exchange *x)
{
    if (x->rest != NULL)
        plb__delete(&x->check->env->allocator, x->rest, x->rest_size);
    x->rest = NULL;
    x->rest_size = 0;
}
#endif

static void plb__exchange_close_stream(plb_exchange *x, plb_close_how how)
{
    const plb_io *io = x->check->env->port.io;
    plb_stream *stream = x->stream;
    x->stream = NULL;
    PLB__IF_EXCHANGE(plb__exchange_forget_rest(x), (void)0);
    if (stream != NULL)
        io->close(io->self, stream, how);
}

#if !defined(PLB_NO_EXCHANGE) || !defined(PLB_NO_TLS)
/* Says why, and leaves the rest of the report as it is. */
static void plb__exchange_explain(plb_exchange *x, const char *why)
{
    plb__op *op = plb__op_running(x->token);
    if (op != NULL)
        plb__op_say(op, why);
}
#endif

/* The probe is over with a stream that is broken, or not worth more words. */
static void plb__exchange_over(plb_exchange *x, plb_status status)
{
    plb__exchange_close_stream(x, PLB_CLOSE_ABORT);
    plb_check_done(x->token, status);
}

#ifndef PLB_NO_EXCHANGE
PLB_API void plb_exchange_say(plb_exchange *x, const plb_report *report)
{
    plb__op *op = plb__op_running(x->token);
    bool keep;
    if (op == NULL)
        return;
    keep = op->report.keep;
    plb__report_set(op, report);
    op->report.keep = keep;
}

/* Leaves the connection open for the next start. What comes on it meanwhile can only be its end. */
static bool plb__exchange_rest_idle(plb_exchange *x)
{
    const plb_io *io = x->check->env->port.io;
    plb__op *op = plb__op_running(x->token);
    if (!x->keep || op == NULL || x->chunk_count > 0 || io->watch(io->self, x->stream, PLB_EVENT_READ) != PLB_AGAIN)
        return false;
    plb__exchange_forget_rest(x);
    op->report.keep = true;
    x->idle = true;
    return true;
}

/* Takes so many bytes off what is to be sent. */
static void plb__exchange_taken(plb_exchange *x, size_t taken)
{
    uint8_t gone = 0, i;
    while (gone < x->chunk_count && taken >= x->chunks[gone].size)
        taken -= x->chunks[gone++].size;
    x->chunk_count = (uint8_t)(x->chunk_count - gone);
    for (i = 0; i < x->chunk_count; i++)
        x->chunks[i] = x->chunks[i + gone];
    if (taken > 0) {
        x->chunks[0].data = (const char *)x->chunks[0].data + taken;
        x->chunks[0].size -= taken;
    }
}

/* Offers what is to be sent to the port, and tells the protocol once all of it is taken. */
static plb_status plb__exchange_offer(plb_exchange *x)
{
    const plb_io *io = x->check->env->port.io;
    size_t taken = 0;
    plb_status status = io->write(io->self, x->stream, x->chunks, x->chunk_count, &taken);
    if (status != PLB_OK)
        return status;
    plb__exchange_taken(x, taken);
    if (x->chunk_count == 0 && x->ops->sent != NULL)
        x->ops->sent(x);
    return PLB_OK;
}

/* What is still to be sent is a farewell, and goes as far as it goes at once. Is the connection kept? */
static bool plb__exchange_part(plb_exchange *x, plb_status status)
{
    if (x->chunk_count > 0)
        plb__exchange_offer(x);
    return status == PLB_OK && plb__exchange_rest_idle(x);
}
#endif

/* The probe is over in good order, whatever it found. */
static void plb__exchange_end(plb_exchange *x, plb_status status)
{
    if (!PLB__IF_EXCHANGE(plb__exchange_part(x, status), false))
        plb__exchange_close_stream(x, PLB_CLOSE_GRACEFUL);
    plb_check_done(x->token, status);
}

static void plb__exchange_event(void *user, plb_stream *stream, plb_event event, plb_status status);

/* The port that a probe connects to; `port`: plb_exchange's. */
static uint16_t plb__exchange_port(const plb_exchange_check *check, uint16_t port, const plb_addr *addr)
{
    if (plb__addr_is_path(addr))
        return 0;
    return port != 0 ? port : check->connect.port != 0 ? check->connect.port : addr->port;
}

#ifndef PLB_NO_TLS
#define PLB__IP_TEXT_MAX 46 /* of an IPv6 address that ends as an IPv4 one, NUL included */

/* An IP address as certificates have it: without port and zone. NULL: it is none. */
static const char *plb__ip_text(const plb_addr *addr, char *text)
{
    plb__text ip = plb__text_in(text, PLB__IP_TEXT_MAX);
    if (!plb__addr_is_ip(addr))
        return NULL;
    plb__put_host(&ip, addr);
    return text;
}

#endif

static plb_status plb__exchange_connect_peer(plb_exchange *x, const plb_peer *peer)
{
    const plb_io *io = x->check->env->port.io;
    plb_handler handler;
    handler.fn = plb__exchange_event;
    handler.user = x;
    return io->connect(io->self, peer, handler, &x->stream);
}

#ifndef PLB_NO_TLS
/* The same with TLS, for which there is a name. */
PLB__APART plb_status plb__exchange_connect_tls(plb_exchange *x, const char *name, plb_peer *peer)
{
    char ip[PLB__IP_TEXT_MAX];
    plb_tls tls = *x->check->connect.tls;
    if (tls.name == NULL)
        tls.name = x->tls_name != NULL ? x->tls_name : name;
    if (tls.name == NULL)
        tls.name = plb__ip_text(&peer->addr, ip);
    peer->tls = &tls;
    return plb__exchange_connect_peer(x, peer);
}
#endif

/* Connects to a backend's address and name. What it returns is start's to return. */
PLB__APART plb_status plb__exchange_connect(plb_exchange *x, const plb_addr *addr, const char *name)
{
    const plb_connect_desc *connect = &x->check->connect;
    plb_peer peer;
    (void)name;
    memset(&peer, 0, sizeof peer);
    plb__addr_copy(&peer.addr, addr);
    peer.addr.port = plb__exchange_port(x->check, PLB__IF_EXCHANGE(x->port, 0), addr);
    if (connect->source.family == addr->family)
        peer.source = connect->source;
    if (plb__exchange_tls(x->check) != NULL)
        return PLB__IF_TLS(plb__exchange_connect_tls(x, name, &peer), PLB_ERR_UNSUPPORTED);
    return plb__exchange_connect_peer(x, &peer);
}

#ifndef PLB_NO_EXCHANGE
/* A connection that was kept had gone: once more, on one of its own. */
static bool plb__exchange_renew(plb_exchange *x)
{
    plb__op *op = plb__op_running(x->token);
    plb_status status;
    if (!x->resumed || x->answered || op == NULL)
        return false;
    plb__exchange_close_stream(x, PLB_CLOSE_ABORT);
    x->resumed = false;
    x->chunk_count = 0;
    plb__report_clear(op);
    plb_check_deadline(x->token, x->check->connect.timeout_ms);
    status = plb__exchange_connect(x, &op->slot->addr, plb__slot_name(op->slot));
    if (status == PLB_OK)
        plb__exchange_event(x, x->stream, PLB_EVENT_CONNECT, PLB_OK);
    else if (status != PLB_AGAIN)
        plb__exchange_over(x, status);
    return true;
}
#endif

#ifndef PLB_NO_TLS
/* What the port knows of a session that did not come about. */
PLB__APART void plb__exchange_tell_tls(plb_exchange *x)
{
    const plb_io *io = x->check->env->port.io;
    plb_stream_info info;
    if (io->info(io->self, x->stream, &info) == PLB_OK && info.tls_reason != NULL)
        plb__exchange_explain(x, info.tls_reason);
}
#endif

/* The connection broke. */
static void plb__exchange_broke(plb_exchange *x, plb_status status)
{
    if (PLB__IF_EXCHANGE(plb__exchange_renew(x), false))
        return;
    PLB__IF_TLS(plb__exchange_tell_tls(x), (void)0);
    plb__exchange_over(x, status);
}

#ifndef PLB_NO_EXCHANGE
PLB_API void plb_exchange_send(plb_exchange *x, const plb_chunk *chunks, size_t count)
{
    size_t i;
    x->chunk_count = 0;
    for (i = 0; i < count; i++)
        if (chunks[i].size > 0)
            x->chunks[x->chunk_count++] = chunks[i];
}

/* Sends what there is to send; false: the probe is over. */
static bool plb__exchange_write(plb_exchange *x)
{
    plb_status status = PLB_OK;
    while (x->chunk_count > 0 && status == PLB_OK)
        status = plb__exchange_offer(x);
    if (status == PLB_OK || status == PLB_AGAIN)
        return true;
    plb__exchange_broke(x, status);
    return false;
}

/* The buffer that all exchanges of a balancer share, or NULL. */
static char *plb__exchange_scratch(plb_balancer *lb)
{
    if (lb->scratch == NULL)
        lb->scratch = plb__new(&lb->env.allocator, PLB_EXCHANGE_SIZE);
    return (char *)lb->scratch;
}

/* Keeps what was not used for the next time. */
static plb_status plb__exchange_keep_rest(plb_exchange *x, const char *bytes, size_t size)
{
    plb__exchange_forget_rest(x);
    if (size == PLB_EXCHANGE_SIZE) {
        plb__exchange_explain(x, "The answer is longer than there is room for (PLB_EXCHANGE_SIZE).");
        return PLB_ERR_PROTOCOL;
    }
    if (size == 0)
        return PLB_AGAIN;
    x->rest = (char *)plb__new(&x->check->env->allocator, size);
    if (x->rest == NULL)
        return PLB_ERR_MEMORY;
    memcpy(x->rest, bytes, size);
    x->rest_size = size;
    return PLB_AGAIN;
}

/* Hands bytes on; none: the end of the stream. */
static plb_status plb__exchange_hand_on(plb_exchange *x, const char *bytes, size_t size)
{
    size_t used = 0;
    plb_status status = x->ops->received(x, bytes, size, &used);
    x->keep = x->keep && (status == PLB_AGAIN || used == size); /* else the next answer would begin in the middle */
    if (status != PLB_AGAIN)
        return status;
    if (size == 0)
        return PLB_ERR_RESET; /* it wants more than there will ever be */
    return plb__exchange_keep_rest(x, bytes + used, size - used);
}

/* Reads once. PLB_OK: it is worth trying again; PLB_AGAIN: not yet; PLB_END: the probe is over. */
static plb_status plb__exchange_read_once(plb_exchange *x)
{
    const plb_io *io = x->check->env->port.io;
    char *scratch = plb__exchange_scratch(x->token.balancer);
    size_t before = x->rest_size, room = PLB_EXCHANGE_SIZE - before, got = 0;
    plb_status status = PLB_ERR_MEMORY;
    bool full;
    if (scratch != NULL) {
        if (before > 0)
            memcpy(scratch, x->rest, before);
        status = io->read(io->self, x->stream, scratch + before, room, &got);
        if (status == PLB_AGAIN)
            return PLB_AGAIN;
        if (status != PLB_OK && status != PLB_END) {
            plb__exchange_broke(x, status);
            return PLB_END;
        }
        if (status == PLB_END && plb__exchange_renew(x))
            return PLB_END;
        x->answered = true;
        status = plb__exchange_hand_on(x, scratch, status == PLB_END ? 0 : before + got);
        x->answered = status != PLB_END;
        if (status == PLB_END && plb__exchange_renew(x))
            return PLB_END;
    }
    full = got == room;
    if (status == PLB_AGAIN)
        return full ? PLB_OK : PLB_AGAIN;
    plb__exchange_end(x, status);
    return PLB_END;
}

/* The rest is for the next poll, so that a peer that never stops leaves a turn to others, and to its deadline. */
static void plb__exchange_put_off(plb_exchange *x)
{
    plb__op *op = plb__op_running(x->token);
    if (op == NULL)
        return;
    op->unread = true;
    plb__fetch_or(&op->lb->wanted, PLB__WANT_READ);
    plb__wake(op->lb);
}

#define PLB__EXCHANGE_READS 64 /* in one turn */

static void plb__exchange_read(plb_exchange *x)
{
    const plb_io *io = x->check->env->port.io;
    plb_status status = PLB_OK;
    int reads;
    for (reads = 0; reads < PLB__EXCHANGE_READS && status == PLB_OK; reads++) {
        status = plb__exchange_read_once(x);
        if (status == PLB_END || !plb__exchange_write(x))
            return;
        if (status == PLB_AGAIN)
            status = io->watch(io->self, x->stream, PLB_EVENT_READ);
    }
    if (status == PLB_OK)
        plb__exchange_put_off(x);
}

/* Reads on where it was put off. */
static void plb__exchanges_go_on(plb_balancer *lb)
{
    plb__op *op;
    for (op = lb->running; op != NULL; op = op->next_running) {
        plb_exchange *x = (plb_exchange *)plb__op_probe(op);
        if (!op->unread)
            continue;
        op->unread = false;
        if (x->stream != NULL && !x->idle)
            plb__exchange_read(x);
    }
}

/* Is called anew for a connection that was kept. */
static void plb__exchange_connected(plb_exchange *x)
{
    const plb_io *io = x->check->env->port.io;
    plb_status status = PLB_OK;
    if (x->ops->connected != NULL) {
        plb_check_deadline(x->token, x->check->answer_ms);
        status = x->ops->connected(x);
    }
    if (status != PLB_AGAIN && (status == PLB_OK || !plb__exchange_renew(x)))
        plb__exchange_end(x, status);
    else if (status == PLB_AGAIN && plb__exchange_write(x) && io->watch(io->self, x->stream, PLB_EVENT_READ) == PLB_OK)
        plb__exchange_read(x);
}

/* Something may be read or written. */
static void plb__exchange_go_on(plb_exchange *x, plb_event event)
{
    if (event == PLB_EVENT_READ)
        plb__exchange_read(x);
    else
        plb__exchange_write(x);
}

/* A start: what was left of an earlier one is a connection, or nothing. */
static void plb__exchange_begin(plb_exchange *x, const plb_exchange_ops *ops)
{
    x->ops = ops;
    x->idle = x->keep = x->answered = false;
    x->chunk_count = 0;
    x->resumed = x->stream != NULL;
}
#else
PLB__INLINE void plb__exchange_connected(plb_exchange *x)
{
    plb__exchange_end(x, PLB_OK);
}
#endif

static void plb__exchange_event(void *user, plb_stream *stream, plb_event event, plb_status status)
{
    plb_exchange *x = (plb_exchange *)user;
    (void)stream;
    if (PLB__IF_EXCHANGE(x->idle, false))
        plb__exchange_close_stream(x, PLB_CLOSE_GRACEFUL);
    else if (status != PLB_OK)
        plb__exchange_broke(x, status);
    else if (event == PLB_EVENT_CONNECT)
        plb__exchange_connected(x);
    else
        PLB__IF_EXCHANGE(plb__exchange_go_on(x, event), (void)0);
}

PLB_API plb_status plb_exchange_start(plb_exchange *x, const plb_exchange_ops *ops, const plb_exchange_check *check,
                                      const plb_backend *target, const char *tls_name, plb_token token)
{
    plb_status status = PLB_OK;
    x->check = check;
    x->token = token;
    x->tls_name = tls_name;
    PLB__IF_EXCHANGE(plb__exchange_begin(x, ops), (void)ops);
    if (PLB__IF_EXCHANGE(!x->resumed, true)) {
        status = plb__exchange_connect(x, &target->addr, plb__name_of(target));
        if (status == PLB_AGAIN)
            return PLB_OK;
    }
    if (status == PLB_OK)
        plb__exchange_connected(x);
    return status;
}

PLB_API void plb_exchange_cancel(void *state, void *probe, plb_token token)
{
    plb_exchange *x = (plb_exchange *)probe;
    (void)state;
    (void)token;
    if (x->check != NULL)
        plb__exchange_close_stream(x, PLB__IF_EXCHANGE(x->idle, false) ? PLB_CLOSE_GRACEFUL : PLB_CLOSE_ABORT);
}

/* plb_check_ops.close, where nothing else is to be closed. */
static void plb__exchange_check_close(void *state)
{
    plb_exchange_close((plb_exchange_check *)state);
}

/* What the constructors of checks have in common. */
static plb_check plb__check_of(const plb_check_ops *ops, const void *desc, const plb_connect_desc *connect)
{
    plb_check check;
    memset(&check, 0, sizeof check);
    check.ops = ops;
    check.desc = desc;
    if (connect != NULL)
        check.timeout_ms = connect->timeout_ms;
    return check;
}

/* ==== TCP CHECK ======================================================================================================
   A connection, closed as soon as it is there. */

static plb_status plb__tcp_check_open(void *state, const void *desc, const plb_env *env)
{
    return plb_exchange_open((plb_exchange_check *)state, (const plb_connect_desc *)desc, 0, env);
}

static plb_status plb__tcp_check_start(void *state, void *probe, const plb_backend *target, plb_token token)
{
    static const plb_exchange_ops ops = {NULL, NULL, NULL};
    return plb_exchange_start((plb_exchange *)probe, &ops, (const plb_exchange_check *)state, target, NULL, token);
}

static const plb_check_ops plb__tcp_check_ops = {"tcp",
                                                 sizeof(plb_exchange_check),
                                                 sizeof(plb_exchange),
                                                 plb__tcp_check_open,
                                                 plb__exchange_check_close,
                                                 plb__tcp_check_start,
                                                 plb_exchange_cancel};

PLB_API plb_check plb_tcp_check(const plb_tcp_check_desc *desc)
{
    return plb__check_of(&plb__tcp_check_ops, desc, desc);
}

/* ==== HTTP CHECK =====================================================================================================
   What a request says and how its answer is judged, whatever version carries them; then HTTP/1.1. */

#ifndef PLB_NO_HTTP1
#define PLB__HTTP_STATUSES 1000
#define PLB__HTTP_HEADERS  64 /* of an answer */
#define PLB__HTTP_PORT     80
#define PLB__HTTPS_PORT    443

typedef struct plb__http_check {
    plb_exchange_check exchange;
    plb_http_check_desc desc; /* defaults filled in; its texts are in `memory`, like what follows */
    uint32_t accepted[(PLB__HTTP_STATUSES + 31) / 32];
    size_t contains_size;
    uint16_t *fallbacks; /* of desc.contains, see plb__http_find */
    plb_text begin;      /* "GET /path HTTP/1.1 CR LF Host: " */
    plb_text rest;       /* what follows the host */
    char *memory;
    size_t memory_size;
} plb__http_check;

/* Room for an IPv6 address in brackets, or for what follows a name, with a port. */
#define PLB__HTTP_AUTHORITY 48

/* What a probe of any version begins with. */
typedef struct plb__http_probe {
    plb_exchange exchange;
    plb_http_target target;
    char authority[PLB__HTTP_AUTHORITY]; /* the part of the host that is the probe's own, after target.host */
    uint64_t peer;      /* tells whether a connection that was kept leads where the next one is to go */
    uint32_t body_size; /* bytes of the answer's body that were looked at */
    uint32_t matched;   /* bytes of desc.contains that the body ends in so far */
    uint16_t status;    /* 0: none yet */
    bool found;         /* desc.contains, somewhere in the body */
} plb__http_probe;

static const plb__http_check *plb__http_check_of(const plb__http_probe *probe)
{
    return (const plb__http_check *)(const void *)probe->exchange.check;
}

/* Words for the report; returns the status, for the probe to end with. */
static plb_status plb__http_say(plb__http_probe *probe, plb_status status, const char *words)
{
    plb_report report;
    memset(&report, 0, sizeof report);
    report.code = probe->status;
    PLB__IF_LOG(report.text = words, (void)words);
    plb_exchange_say(&probe->exchange, &report);
    return status;
}

/* The same, with the answer's status behind the words. */
static plb_status plb__http_say_status(plb__http_probe *probe, const char *words)
{
    char line[PLB_REPORT_TEXT];
    plb__text text = plb__text_in(line, sizeof line);
    plb__put(&text, words);
    plb__put_decimal(&text, probe->status);
    return plb__http_say(probe, PLB_ERR_ANSWER, line);
}

/* Another answer is awaited. */
static void plb__http_await(plb__http_probe *probe)
{
    probe->body_size = probe->matched = 0;
    probe->status = 0;
    probe->found = plb__http_check_of(probe)->contains_size == 0;
}

/* The head of a final answer, or 101, which nobody asked for. PLB_AGAIN: now its body. */
static plb_status plb__http_judge_head(plb__http_probe *probe, uint32_t status, const plb_http1_header *headers,
                                       size_t count)
{
    const plb__http_check *check = plb__http_check_of(probe);
    probe->status = (uint16_t)status;
    if (status < 200)
        return plb__http_say_status(probe, "HTTP status ");
    if (check->desc.validate != NULL && !check->desc.validate(check->desc.validate_user, status, headers, count))
        return plb__http_say_status(probe, "The program does not accept the answer with HTTP status ");
    if (check->desc.validate == NULL && (check->accepted[status / 32] >> (status % 32) & 1) == 0)
        return plb__http_say_status(probe, "HTTP status ");
    return plb__http_say(probe, PLB_AGAIN, NULL);
}

/* Looks for desc.contains across pieces by Knuth, Morris and Pratt's algorithm ("Fast pattern matching in strings",
   1977): all that is kept of earlier pieces is how much of the text they end in. */
static void plb__http_find(plb__http_probe *probe, const char *bytes, size_t size)
{
    const plb__http_check *check = plb__http_check_of(probe);
    const char *text = check->desc.contains, *end = bytes + size;
    size_t matched = probe->matched;
    while (bytes < end && matched < check->contains_size) {
        if (matched == 0) {
            bytes = plb__find_byte(bytes, text[0], (size_t)(end - bytes));
            if (bytes == NULL)
                break;
        }
        if (*bytes == text[matched]) {
            matched++;
            bytes++;
        } else {
            matched = check->fallbacks[matched - 1];
        }
    }
    probe->matched = (uint32_t)matched;
    probe->found = matched == check->contains_size;
}

/* The body has ended. */
static plb_status plb__http_judge_end(plb__http_probe *probe)
{
    return probe->found ? PLB_OK
                        : plb__http_say(probe, PLB_ERR_ANSWER, "The body lacks the text that it must contain.");
}

/* A piece of the body. PLB_AGAIN: the next one, or the end; else that was enough. */
static plb_status plb__http_judge_body(plb__http_probe *probe, const char *bytes, size_t size)
{
    uint32_t left = plb__http_check_of(probe)->desc.body_limit - probe->body_size;
    bool over = size > left;
    if (over)
        size = left;
    probe->body_size += (uint32_t)size;
    if (!probe->found)
        plb__http_find(probe, bytes, size);
    if (!over)
        return PLB_AGAIN;
    probe->exchange.keep = false;
    if (probe->found)
        return PLB_OK;
    return plb__http_say(probe, PLB_ERR_ANSWER, "What was read of the body (body_limit) lacks the text.");
}

static bool plb__http_is_visible(const char *text)
{
    for (; *text != '\0'; text++)
        if ((unsigned char)*text <= ' ' || *text == 0x7f)
            return false;
    return true;
}

static bool plb__http_is_path(const char *path)
{
    return (path[0] == '/' || plb__same_text(path, "*")) && plb__http_is_visible(path);
}

/* NULL: it is the backend's. TLS's name has no port. */
static bool plb__http_is_host(const plb__http_check *check, const char *host)
{
    const plb_tls *tls = plb__exchange_tls(&check->exchange);
    if (host == NULL)
        return true;
    return *host != '\0' && plb__http_is_visible(host) &&
           (tls == NULL || tls->name != NULL || plb__find_byte(host, ':', strlen(host)) == NULL);
}

/* Walks the lines of desc.headers. PLB_AGAIN: *out is the next one; PLB_END: there is none; else PLB_ERR_ARGUMENT. */
static plb_status plb__http_next_header(const char **at, plb_http1_header *out)
{
    const char *line = *at, *end = plb__find_byte(line, '\n', strlen(line)), *colon;
    if (*line == '\0')
        return PLB_END;
    if (end == NULL || end == line || end[-1] != '\r')
        return PLB_ERR_ARGUMENT;
    colon = plb__find_byte(line, ':', (size_t)(end - line));
    if (colon == NULL)
        return PLB_ERR_ARGUMENT;
    *at = end-- + 1;
    out->name.data = line;
    out->name.size = (size_t)(colon++ - line);
    while (colon < end && (*colon == ' ' || *colon == '\t'))
        colon++;
    while (end > colon && (end[-1] == ' ' || end[-1] == '\t'))
        end--;
    out->value.data = colon;
    out->value.size = (size_t)(end - colon);
    return plb_http1_is_token(out->name) && plb_http1_is_value(out->value) ? PLB_AGAIN : PLB_ERR_ARGUMENT;
}

/* May a program send this header? What frames the message, and what says for whom it is, is the library's. */
static bool plb__http_is_extra(const plb_http1_header *header)
{
    if (plb_text_is(header->name, "content-length"))
        return plb_text_is(header->value, "0");
    return !plb_text_is(header->name, "host") && !plb_text_is(header->name, "connection") &&
           !plb_text_is(header->name, "transfer-encoding");
}

/* Are they all fit to be sent? Notes whether one is of that name. */
static bool plb__http_headers_fit(const char *headers, const char *lower, bool *has)
{
    plb_http1_header header;
    plb_status status;
    *has = false;
    while ((status = plb__http_next_header(&headers, &header)) == PLB_AGAIN) {
        if (!plb__http_is_extra(&header))
            return false;
        *has = *has || plb_text_is(header.name, lower);
    }
    return status == PLB_END;
}

/* "200" or "200-299" */
static bool plb__http_accept(plb__http_check *check, plb_text range)
{
    plb__scan scan;
    uint32_t from = 0, to;
    scan.at = range.data;
    scan.end = range.data + range.size;
    if (!plb__scan_decimal(&scan, PLB__HTTP_STATUSES - 1, &from))
        return false;
    to = from;
    if (plb__scan_char(&scan, '-') && !plb__scan_decimal(&scan, PLB__HTTP_STATUSES - 1, &to))
        return false;
    if (scan.at != scan.end || from < 200 || from > to)
        return false;
    for (; from <= to; from++)
        check->accepted[from / 32] |= UINT32_C(1) << (from % 32);
    return true;
}

static bool plb__http_accept_all(plb__http_check *check, const char *statuses)
{
    plb_text list, range;
    size_t at = 0;
    list.data = statuses;
    list.size = strlen(statuses);
    if (!plb_http1_list_next(list, &at, &range))
        return false;
    do {
        if (!plb__http_accept(check, range))
            return false;
    } while (plb_http1_list_next(list, &at, &range));
    return true;
}

/* The descriptor with its defaults. PLB_ERR_ARGUMENT: it makes no sense. */
PLB__ONCE plb_status plb__http_resolve(plb__http_check *check, bool *has_agent)
{
    plb_http_check_desc *desc = &check->desc;
    plb_text method;
    desc->method = desc->method != NULL ? desc->method : "GET";
    desc->path = desc->path != NULL ? desc->path : "/";
    desc->headers = desc->headers != NULL ? desc->headers : "";
    desc->statuses = desc->statuses != NULL ? desc->statuses : "200";
    desc->contains = desc->contains != NULL ? desc->contains : "";
    desc->body_limit = desc->body_limit > 0 ? desc->body_limit : 65536;
    check->contains_size = strlen(desc->contains);
    method.data = desc->method;
    method.size = strlen(desc->method);
    if (!plb_http1_is_token(method) || plb__same_text(desc->method, "CONNECT"))
        return PLB_ERR_ARGUMENT;
    if (check->contains_size > UINT16_MAX || check->contains_size > desc->body_limit ||
        (check->contains_size > 0 && plb__same_text(desc->method, "HEAD")))
        return PLB_ERR_ARGUMENT;
    if (!plb__http_is_path(desc->path) || !plb__http_is_host(check, desc->host) ||
        !plb__http_headers_fit(desc->headers, "user-agent", has_agent) || !plb__http_accept_all(check, desc->statuses))
        return PLB_ERR_ARGUMENT;
    return PLB_OK;
}

/* A request but for its host; returns how much of it stands before that. Nothing says that the connection will close,
   though RFC 9112 section 9.6 would like a hint: a server that knows closes first, and every backend would keep each
   probe in TIME-WAIT (RFC 9293 section 3.6.1). Who probes, keeps it here. */
static size_t plb__http_put_request(plb__text *text, const plb_http_check_desc *desc, bool has_agent)
{
    size_t begin;
    plb__put(text, desc->method);
    plb__put_char(text, ' ');
    plb__put(text, desc->path);
    plb__put(text, " HTTP/1.1\r\nHost: ");
    begin = text->length;
    plb__put(text, "\r\n");
    if (!has_agent)
        plb__put(text, "User-Agent: pingora_lb/" PLB_VERSION "\r\n");
    plb__put(text, desc->headers);
    plb__put(text, "\r\n");
    return begin;
}

/* For each length that may have been matched, less one: how much of it still is when the next byte is another one. */
static void plb__http_fill_fallbacks(plb__http_check *check)
{
    const char *text = check->desc.contains;
    size_t i, matched = 0;
    for (i = 1; i < check->contains_size; i++) {
        while (matched > 0 && text[i] != text[matched])
            matched = check->fallbacks[matched - 1];
        if (text[i] == text[matched])
            matched++;
        check->fallbacks[i] = (uint16_t)matched;
    }
}

/* Copies the descriptor's texts, and writes down once what all requests have in common. */
static plb_status plb__http_copy(plb__http_check *check, bool has_agent)
{
    plb_http_check_desc *desc = &check->desc;
    plb__text request = plb__text_in(NULL, 0);
    size_t numbers = check->contains_size * sizeof *check->fallbacks;
    char *at;
    check->begin.size = plb__http_put_request(&request, desc, has_agent);
    check->rest.size = request.length - check->begin.size;
    check->memory_size = numbers + request.length + 1 + plb__name_size(desc->method) + plb__name_size(desc->path) +
                         plb__name_size(desc->host) + plb__name_size(desc->headers) + plb__name_size(desc->contains);
    check->memory = (char *)plb__new(&check->exchange.env->allocator, check->memory_size);
    if (check->memory == NULL)
        return PLB_ERR_MEMORY;
    check->fallbacks = (uint16_t *)(void *)check->memory;
    at = check->memory + numbers;
    check->begin.data = at;
    check->rest.data = at + check->begin.size;
    request = plb__text_in(at, request.length + 1);
    plb__http_put_request(&request, desc, has_agent);
    at += request.length + 1;
    desc->method = plb__copy_text(&at, desc->method);
    desc->path = plb__copy_text(&at, desc->path);
    desc->host = plb__copy_text(&at, desc->host);
    desc->headers = plb__copy_text(&at, desc->headers);
    desc->contains = plb__copy_text(&at, desc->contains);
    plb__http_fill_fallbacks(check);
    return PLB_OK;
}

static plb_status plb__http_check_open(void *state, const void *desc, const plb_env *env)
{
    plb__http_check *check = (plb__http_check *)state;
    bool has_agent = false;
    plb_status status;
    if (desc != NULL)
        check->desc = *(const plb_http_check_desc *)desc;
    status = plb_exchange_open(&check->exchange, &check->desc.connect, check->desc.answer_ms, env);
    if (status == PLB_OK)
        status = plb__http_resolve(check, &has_agent);
    check->desc.statuses = NULL; /* the program's; what they say is in `accepted` */
    check->desc.connect = check->exchange.connect;
    return status == PLB_OK ? plb__http_copy(check, has_agent) : status;
}

static void plb__http_check_close(void *state)
{
    plb__http_check *check = (plb__http_check *)state;
    if (check->memory != NULL)
        plb__delete(&check->exchange.env->allocator, check->memory, check->memory_size);
    plb_exchange_close(&check->exchange);
}

/* RFC 9110 section 7.2: the host, with the port unless it is the scheme's own (section 4.2.3); a zone says something to
   this machine only (RFC 6874 section 4). */
PLB__APART void plb__http_fill_authority(plb__http_probe *probe, const plb__http_check *check,
                                         const plb_backend *backend)
{
    plb__text text = plb__text_in(probe->authority, sizeof probe->authority);
    uint16_t port = plb__exchange_port(&check->exchange, probe->target.port, &backend->addr);
    bool is_unix = plb__addr_is_path(&backend->addr);
    if (probe->target.host != NULL)
        return;
    probe->target.host = plb__name_of(backend);
    if (probe->target.host == NULL)
        probe->target.host = is_unix ? "localhost" : "";
    if (is_unix)
        return;
    if (plb__name_of(backend) == NULL)
        plb__put_bracketed(&text, &backend->addr, 0);
    if (port != (plb__exchange_tls(&check->exchange) != NULL ? PLB__HTTPS_PORT : PLB__HTTP_PORT))
        plb__put_port(&text, port);
}

/* Says where a probe goes, and drops a connection that was kept and leads elsewhere. */
static plb_status plb__http_aim(plb__http_probe *probe, const plb__http_check *check, const plb_backend *backend,
                                plb_token token)
{
    uint64_t peer;
    probe->target.port = 0;
    probe->target.path = check->desc.path;
    probe->target.host = check->desc.host;
    if (check->desc.target != NULL)
        check->desc.target(check->desc.target_user, backend, &probe->target);
    if (probe->target.path == NULL)
        probe->target.path = "/";
    if (!plb__http_is_path(probe->target.path) || !plb__http_is_host(check, probe->target.host)) {
        plb_exchange_cancel((void *)(uintptr_t)check, probe, token);
        return PLB_ERR_ARGUMENT;
    }
    peer = probe->target.port;
    if (probe->target.host != NULL)
        peer = plb__fnv1a(peer, probe->target.host, strlen(probe->target.host));
    if (probe->exchange.stream != NULL && probe->peer != peer)
        plb_exchange_cancel((void *)(uintptr_t)check, probe, token);
    probe->peer = peer;
    probe->exchange.port = probe->target.port;
    return PLB_OK;
}

/* What plb_check_ops.start does in any version. */
static plb_status plb__http_start(const plb__http_check *check, plb__http_probe *probe, const plb_exchange_ops *ops,
                                  const plb_backend *backend, plb_token token)
{
    const char *tls_name;
    plb_status status = plb__http_aim(probe, check, backend, token);
    if (status != PLB_OK)
        return status;
    tls_name = probe->target.host;
    plb__http_fill_authority(probe, check, backend);
    return plb_exchange_start(&probe->exchange, ops, &check->exchange, backend, tls_name, token);
}

/* ---- HTTP/1.1 ---- */

typedef struct plb__http1_check {
    plb__http_check http;
    plb_http1_header headers[PLB__HTTP_HEADERS]; /* of the answer that is being judged: a stack may be too small */
} plb__http1_check;

typedef struct plb__http1_probe {
    plb__http_probe http;
    plb_http1_body body;
    plb_http1_chunked chunked;
    uint32_t scanned; /* bytes of the head that were looked at */
    bool in_body;
} plb__http1_probe;

/* None of it is PLB_CHUNK_CONSTANT: a port may still send it when the balancer, whose memory it is, is gone. */
static size_t plb__http1_chunk(plb_chunk *chunk, const char *bytes, size_t size)
{
    chunk->data = bytes;
    chunk->size = size;
    chunk->flags = 0;
    return 1;
}

/* The request: what is common to all probes, around what is this one's own. */
static plb_status plb__http1_probe_connected(plb_exchange *x)
{
    plb__http1_probe *probe = (plb__http1_probe *)(void *)x;
    const plb__http_check *check = plb__http_check_of(&probe->http);
    const plb_http_target *target = &probe->http.target;
    plb_chunk chunks[PLB_EXCHANGE_CHUNKS];
    size_t count = 0, skip = 0;
    plb__http_await(&probe->http);
    memset(&probe->chunked, 0, sizeof probe->chunked);
    probe->scanned = 0;
    probe->in_body = false;
    if (target->path != check->desc.path) {
        skip = strlen(check->desc.method) + 1;
        count += plb__http1_chunk(&chunks[count], check->begin.data, skip);
        count += plb__http1_chunk(&chunks[count], target->path, strlen(target->path));
        skip += strlen(check->desc.path);
    }
    count += plb__http1_chunk(&chunks[count], check->begin.data + skip, check->begin.size - skip);
    count += plb__http1_chunk(&chunks[count], target->host, strlen(target->host));
    count += plb__http1_chunk(&chunks[count], probe->http.authority, strlen(probe->http.authority));
    count += plb__http1_chunk(&chunks[count], check->rest.data, check->rest.size);
    plb_exchange_send(x, chunks, count);
    return PLB_AGAIN;
}

/* What is not HTTP/1, as a failure of the peer, whatever the codec calls it. */
static plb_status plb__http1_probe_garbage(plb__http1_probe *probe, plb_status status)
{
    const char *words = "The answer is not well-formed HTTP/1.";
    if (status == PLB_ERR_LIMIT)
        words = probe->in_body ? "The trailers are longer than allowed." : "The answer has more headers than allowed.";
    else if (status == PLB_ERR_UNSUPPORTED)
        words = probe->http.status > 0 ? "The answer's transfer coding is unknown." : "The answer is not HTTP/1.";
    return plb__http_say(&probe->http, PLB_ERR_PROTOCOL, words);
}

/* A final answer's head. PLB_AGAIN: now its body. */
static plb_status plb__http1_probe_final(plb__http1_probe *probe, const plb_http1_head *head)
{
    const plb__http_check *check = plb__http_check_of(&probe->http);
    plb_status status = plb__http_judge_head(&probe->http, head->status, head->headers, head->header_count);
    if (status != PLB_AGAIN)
        return status;
    status = plb_http1_response_body(head, plb__same_text(check->desc.method, "HEAD"), &probe->body);
    if (status != PLB_OK)
        return plb__http1_probe_garbage(probe, status);
    probe->in_body = true;
    probe->http.exchange.keep =
        check->desc.reuse_connection && plb_http1_keeps_alive(head) && probe->body.framing != PLB_HTTP1_UNTIL_CLOSE;
    return PLB_AGAIN;
}

/* PLB_AGAIN: *used is 0: more bytes are needed; else a head was taken, and what comes next is another one or a body. */
static plb_status plb__http1_probe_head(plb__http1_probe *probe, const char *bytes, size_t size, size_t *used)
{
    plb_http1_head head;
    plb_status status;
    memset(&head, 0, sizeof head);
    head.headers = ((plb__http1_check *)(uintptr_t)plb__http_check_of(&probe->http))->headers;
    head.header_capacity = PLB__HTTP_HEADERS;
    head.scanned = probe->scanned;
    *used = 0;
    status = plb_http1_parse_response(&head, bytes, size);
    if (status == PLB_AGAIN && size == PLB_EXCHANGE_SIZE)
        return plb__http_say(&probe->http, PLB_ERR_PROTOCOL, "The answer's head is longer than PLB_EXCHANGE_SIZE.");
    probe->scanned = (uint32_t)(status == PLB_AGAIN ? head.scanned : 0);
    if (status == PLB_AGAIN)
        return PLB_AGAIN;
    if (status != PLB_OK)
        return plb__http1_probe_garbage(probe, status);
    *used = head.size;
    if (head.status < 200 && head.status != 101)
        return PLB_AGAIN;
    return plb__http1_probe_final(probe, &head);
}

static plb_status plb__http1_probe_chunks(plb__http1_probe *probe, const char *bytes, size_t size, size_t *used)
{
    plb_status status = PLB_AGAIN;
    *used = 0;
    while (status == PLB_AGAIN) {
        plb_text data;
        size_t taken;
        plb_status found = plb_http1_chunked_next(&probe->chunked, bytes + *used, size - *used, &taken, &data);
        *used += taken;
        if (found == PLB_AGAIN)
            break;
        if (found == PLB_END)
            status = plb__http_judge_end(&probe->http);
        else if (found == PLB_OK)
            status = plb__http_judge_body(&probe->http, data.data, data.size);
        else
            status = plb__http1_probe_garbage(probe, found);
    }
    return status;
}

/* As much of the body as is there. */
static plb_status plb__http1_probe_body(plb__http1_probe *probe, const char *bytes, size_t size, size_t *used)
{
    plb_status status;
    if (probe->body.framing == PLB_HTTP1_CHUNKED)
        return plb__http1_probe_chunks(probe, bytes, size, used);
    if (probe->body.framing != PLB_HTTP1_UNTIL_CLOSE && size > probe->body.length)
        size = (size_t)probe->body.length;
    *used = size;
    status = plb__http_judge_body(&probe->http, bytes, size);
    if (status != PLB_AGAIN || probe->body.framing == PLB_HTTP1_UNTIL_CLOSE)
        return status;
    probe->body.length -= size;
    return probe->body.length == 0 ? plb__http_judge_end(&probe->http) : PLB_AGAIN;
}

/* The peer has ended its side, which is how some bodies end. */
static plb_status plb__http1_probe_ended(plb__http1_probe *probe)
{
    if (probe->in_body && probe->body.framing == PLB_HTTP1_UNTIL_CLOSE)
        return plb__http_judge_end(&probe->http);
    return plb__http_say(&probe->http, PLB_ERR_RESET,
                         probe->in_body ? "The connection ended within the answer's body."
                                        : "The connection ended before an answer.");
}

static plb_status plb__http1_probe_received(plb_exchange *x, const char *bytes, size_t size, size_t *used)
{
    plb__http1_probe *probe = (plb__http1_probe *)(void *)x;
    plb_status status = PLB_AGAIN;
    size_t taken = 1;
    if (size == 0)
        return plb__http1_probe_ended(probe);
    while (status == PLB_AGAIN && !probe->in_body && taken > 0) {
        status = plb__http1_probe_head(probe, bytes + *used, size - *used, &taken);
        *used += taken;
    }
    if (status == PLB_AGAIN && probe->in_body) {
        status = plb__http1_probe_body(probe, bytes + *used, size - *used, &taken);
        *used += taken;
    }
    return status;
}

static plb_status plb__http1_check_start(void *state, void *probe, const plb_backend *target, plb_token token)
{
    static const plb_exchange_ops ops = {plb__http1_probe_connected, plb__http1_probe_received, NULL};
    return plb__http_start((const plb__http_check *)state, (plb__http_probe *)probe, &ops, target, token);
}

static const plb_check_ops plb__http_check_ops = {"http",
                                                  sizeof(plb__http1_check),
                                                  sizeof(plb__http1_probe),
                                                  plb__http_check_open,
                                                  plb__http_check_close,
                                                  plb__http1_check_start,
                                                  plb_exchange_cancel};

PLB_API plb_check plb_http_check(const plb_http_check_desc *desc)
{
    return plb__check_of(&plb__http_check_ops, desc, desc != NULL ? &desc->connect : NULL);
}
#endif

/* ==== SEND AND EXPECT ================================================================================================
   Steps, each a text to send and an answer to judge. */

#ifndef PLB_NO_EXPECT
#define PLB__EXPECT_LIMIT 4096u

typedef struct plb__expect_check {
    plb_exchange_check exchange;
    plb_expect_step *steps; /* then their bytes, in the same allocation */
    size_t count, size;
    size_t limit;
} plb__expect_check;

typedef struct plb__expect_probe {
    plb_exchange exchange;
    uint32_t step;
    bool sending; /* the step's text is not all sent */
} plb__expect_probe;

static size_t plb__expect_size(const void *bytes, size_t size)
{
    return bytes == NULL ? 0 : size > 0 ? size : strlen((const char *)bytes);
}

static bool plb__expect_makes_sense(const plb_expect_step *step, size_t limit, bool may_be_farewell)
{
    size_t expect = plb__expect_size(step->expect, step->expect_size);
    size_t until = plb__expect_size(step->until, step->until_size);
    if (step->judge != NULL || (expect == 0 && may_be_farewell))
        return expect == 0 && until == 0;
    return expect > 0 && expect <= limit && until <= limit - expect &&
           (step->kind == PLB_EXPECT_PREFIX || step->kind == PLB_EXPECT_SUBSTRING ||
            (step->kind == PLB_EXPECT_EXACT && until == 0));
}

static void plb__expect_put(char **at, const void **bytes, size_t *size)
{
    *size = plb__expect_size(*bytes, *size);
    if (*size > 0)
        memcpy(*at, *bytes, *size);
    *bytes = *at;
    *at += *size;
}

/* Copies steps that make sense. */
static plb_status plb__expect_copy(plb__expect_check *check, const plb_expect_step *steps, size_t count)
{
    size_t size = count * sizeof *steps, i;
    char *at;
    for (i = 0; i < count; i++)
        size += plb__expect_size(steps[i].send, steps[i].send_size) +
                plb__expect_size(steps[i].expect, steps[i].expect_size) +
                plb__expect_size(steps[i].until, steps[i].until_size);
    check->steps = (plb_expect_step *)plb__new(&check->exchange.env->allocator, size);
    if (check->steps == NULL)
        return PLB_ERR_MEMORY;
    check->count = count;
    check->size = size;
    at = (char *)(check->steps + count);
    for (i = 0; i < count; i++) {
        plb_expect_step *step = &check->steps[i];
        *step = steps[i];
        plb__expect_put(&at, &step->send, &step->send_size);
        plb__expect_put(&at, &step->expect, &step->expect_size);
        plb__expect_put(&at, &step->until, &step->until_size);
    }
    return PLB_OK;
}

static plb_status plb__expect_open_with(plb__expect_check *check, const plb_connect_desc *connect,
                                        const plb_expect_check_desc *desc, const plb_env *env)
{
    plb_status status = plb_exchange_open(&check->exchange, connect, desc->answer_ms, env);
    size_t i;
    check->limit = desc->receive_limit;
    if (check->limit == 0)
        check->limit = PLB__EXPECT_LIMIT < PLB_EXCHANGE_SIZE ? PLB__EXPECT_LIMIT : PLB_EXCHANGE_SIZE - 1;
    if (status != PLB_OK)
        return status;
    if (desc->steps == NULL || desc->step_count == 0 || check->limit >= PLB_EXCHANGE_SIZE)
        return PLB_ERR_ARGUMENT;
    for (i = 0; i < desc->step_count; i++)
        if (!plb__expect_makes_sense(&desc->steps[i], check->limit, i > 0 && i + 1 == desc->step_count))
            return PLB_ERR_ARGUMENT;
    return plb__expect_copy(check, desc->steps, desc->step_count);
}

static plb_status plb__expect_open(void *state, const void *desc, const plb_env *env)
{
    const plb_expect_check_desc *expect = (const plb_expect_check_desc *)desc;
    return expect != NULL ? plb__expect_open_with((plb__expect_check *)state, &expect->connect, expect, env)
                          : PLB_ERR_ARGUMENT;
}

static void plb__expect_close(void *state)
{
    plb__expect_check *check = (plb__expect_check *)state;
    if (check->steps != NULL)
        plb__delete(&check->exchange.env->allocator, check->steps, check->size);
    plb_exchange_close(&check->exchange);
}

/* Where bytes first stand among others, or NULL. */
static const char *plb__expect_search(const char *bytes, size_t size, const void *what, size_t what_size)
{
    const char *at = bytes, *end = bytes + size;
    while ((size_t)(end - at) >= what_size) {
        at = plb__find_byte(at, *(const char *)what, (size_t)(end - at) - what_size + 1);
        if (at == NULL || memcmp(at, what, what_size) == 0)
            return at;
        at++;
    }
    return NULL;
}

/* PLB_OK: what was expected is there, and ends at *end. */
static plb_status plb__expect_find(const plb_expect_step *step, const char *bytes, size_t size, size_t limit,
                                   size_t *end)
{
    size_t wanted = step->expect_size, compared = size < wanted ? size : wanted;
    const char *at = bytes;
    if (step->kind == PLB_EXPECT_SUBSTRING) {
        at = plb__expect_search(bytes, size < limit ? size : limit, step->expect, wanted);
        if (at == NULL)
            return PLB_AGAIN;
    } else if (memcmp(bytes, step->expect, compared) != 0) {
        return PLB_ERR_ANSWER;
    } else if (size < wanted) {
        return PLB_AGAIN;
    } else if (step->kind == PLB_EXPECT_EXACT && size > wanted) {
        return PLB_ERR_ANSWER;
    }
    *end = (size_t)(at - bytes) + wanted;
    return PLB_OK;
}

/* What one step says to the bytes that have come for it so far. PLB_OK: the first *used are its answer. But for
   PLB_EXPECT_EXACT it is the same whatever the portions that they come in. */
static plb_status plb__expect_match(const plb_expect_step *step, const char *bytes, size_t size, size_t limit,
                                    size_t *used, char *why)
{
    size_t seen = size < limit ? size : limit, end = 0;
    const char *at;
    plb_status status;
    if (step->judge != NULL) {
        status = step->judge(bytes, seen, &end, why);
    } else {
        status = plb__expect_find(step, bytes, size, limit, &end);
        if (status == PLB_OK && step->until_size > 0) {
            at = plb__expect_search(bytes + end, seen - end, step->until, step->until_size);
            status = at != NULL ? PLB_OK : PLB_AGAIN;
            end = at != NULL ? (size_t)(at - bytes) + step->until_size : 0;
        }
    }
    *used = end < seen ? end : seen;
    return status == PLB_AGAIN && size >= limit ? PLB_ERR_ANSWER : status;
}

static const plb__expect_check *plb__expect_check_of(const plb_exchange *x)
{
    return (const plb__expect_check *)(const void *)x->check;
}

#define PLB__EXPECT_SHOWN 24u /* characters of what was expected; the rest of the text shows what came */

/* The step that is on has failed. `why`: an empty text where what came shows it. */
static plb_status plb__expect_fail(plb__expect_probe *probe, plb_status status, const char *bytes, size_t size,
                                   bool ended, const char *why)
{
    const plb_expect_step *step = &plb__expect_check_of(&probe->exchange)->steps[probe->step];
    char line[PLB_REPORT_TEXT];
    plb__text text = plb__text_in(line, sizeof line);
    plb_report report;
    memset(&report, 0, sizeof report);
    report.code = probe->step + 1;
    PLB__IF_LOG(report.text = line, (void)line);
    plb__put(&text, "step ");
    plb__put_number(&text, report.code, 10);
    plb__put(&text, ": ");
    plb__put(&text, why);
    if (why[0] == '\0') {
        if (step->judge == NULL) {
            plb__put(&text, "expected ");
            plb__put_quoted(&text, (const char *)step->expect, step->expect_size, PLB__EXPECT_SHOWN);
            plb__put(&text, ", ");
        }
        plb__put(&text, "got ");
        if (size > 0)
            plb__put_quoted(&text, bytes, size, sizeof line - text.length - (ended ? sizeof " and the end" : 1) - 2);
        if (ended)
            plb__put(&text, size > 0 ? " and the end" : "the end");
    }
    plb_exchange_say(&probe->exchange, &report);
    return status;
}

static void plb__expect_send(plb__expect_probe *probe)
{
    const plb_expect_step *step = &plb__expect_check_of(&probe->exchange)->steps[probe->step];
    plb_chunk chunk;
    chunk.data = step->send;
    chunk.size = step->send_size;
    chunk.flags = 0;
    probe->sending = chunk.size > 0;
    plb_exchange_send(&probe->exchange, &chunk, 1);
}

static plb_status plb__expect_connected(plb_exchange *x)
{
    plb__expect_probe *probe = (plb__expect_probe *)(void *)x;
    probe->step = 0;
    plb__expect_send(probe);
    return PLB_AGAIN;
}

static void plb__expect_sent(plb_exchange *x)
{
    ((plb__expect_probe *)(void *)x)->sending = false;
}

static plb_status plb__expect_received(plb_exchange *x, const char *bytes, size_t size, size_t *used)
{
    plb__expect_probe *probe = (plb__expect_probe *)(void *)x;
    const plb__expect_check *check = plb__expect_check_of(x);
    char why[PLB_REPORT_TEXT];
    if (size == 0)
        return plb__expect_fail(probe, PLB_ERR_ANSWER, x->rest, x->rest_size, true, "");
    while (*used < size) {
        size_t taken = 0;
        plb_status status;
        why[0] = '\0';
        status = plb__expect_match(&check->steps[probe->step], bytes + *used, size - *used, check->limit, &taken, why);
        why[sizeof why - 1] = '\0';
        if (status == PLB_AGAIN)
            return PLB_AGAIN;
        if (status != PLB_OK)
            return plb__expect_fail(probe, status, bytes + *used, size - *used, false, why);
        *used += taken;
        if (probe->step + 1 == check->count)
            return PLB_OK;
        if (probe->sending)
            return plb__expect_fail(probe, PLB_ERR_PROTOCOL, NULL, 0, false, "answered before all was sent");
        probe->step++;
        plb__expect_send(probe);
        if (check->steps[probe->step].judge == NULL && check->steps[probe->step].expect_size == 0)
            return PLB_OK;
    }
    return PLB_AGAIN;
}

static plb_status plb__expect_start(void *state, void *probe, const plb_backend *target, plb_token token)
{
    static const plb_exchange_ops ops = {plb__expect_connected, plb__expect_received, plb__expect_sent};
    return plb_exchange_start((plb_exchange *)probe, &ops, (const plb_exchange_check *)state, target, NULL, token);
}

static const plb_check_ops plb__expect_check_ops = {
    "expect",          sizeof(plb__expect_check), sizeof(plb__expect_probe), plb__expect_open,
    plb__expect_close, plb__expect_start,         plb_exchange_cancel};

PLB_API plb_check plb_expect_check(const plb_expect_check_desc *desc)
{
    return plb__check_of(&plb__expect_check_ops, desc, desc != NULL ? &desc->connect : NULL);
}

/* For the open of a ready-made check. */
static plb_status plb__expect_open_steps(void *state, const void *connect, const plb_env *env,
                                         const plb_expect_step *steps, size_t count)
{
    plb_expect_check_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.steps = steps;
    desc.step_count = count;
    return plb__expect_open_with((plb__expect_check *)state, (const plb_connect_desc *)connect, &desc, env);
}

static plb_status plb__redis_open(void *state, const void *desc, const plb_env *env)
{
    static const plb_expect_step steps[] = {{"PING\r\n", 0, PLB_EXPECT_PREFIX, "+PONG\r\n", 0, NULL, 0, NULL}};
    return plb__expect_open_steps(state, desc, env, steps, 1);
}

PLB_API plb_check plb_redis_check(const plb_connect_desc *connect)
{
    static const plb_check_ops ops = {
        "redis",           sizeof(plb__expect_check), sizeof(plb__expect_probe), plb__redis_open,
        plb__expect_close, plb__expect_start,         plb_exchange_cancel};
    return plb__check_of(&ops, connect, connect);
}

static plb_status plb__memcached_open(void *state, const void *desc, const plb_env *env)
{
    static const plb_expect_step steps[] = {{"version\r\n", 0, PLB_EXPECT_PREFIX, "VERSION ", 0, "\r\n", 0, NULL}};
    return plb__expect_open_steps(state, desc, env, steps, 1);
}

PLB_API plb_check plb_memcached_check(const plb_connect_desc *connect)
{
    static const plb_check_ops ops = {"memcached",         sizeof(plb__expect_check), sizeof(plb__expect_probe),
                                      plb__memcached_open, plb__expect_close,         plb__expect_start,
                                      plb_exchange_cancel};
    return plb__check_of(&ops, connect, connect);
}

/* A reply of SMTP, RFC 5321 section 4.2: lines that begin with three digits, all but the last with a hyphen behind
   them. A wrong first line is told once it is whole, for it says why. */
static plb_status plb__smtp_judge(const char *bytes, size_t size, size_t *used, char *why)
{
    size_t at = 0, i;
    (void)why;
    for (;;) {
        const char *line = bytes + at, *end = plb__find_byte(line, '\n', size - at);
        size_t length = end != NULL ? (size_t)(end - line) : size - at;
        for (i = 0; i < length && i < 3; i++)
            if (line[i] < '0' || line[i] > '9')
                return PLB_ERR_ANSWER;
        if (end == NULL)
            return PLB_AGAIN;
        if (length < 3 || line[0] != '2')
            return PLB_ERR_ANSWER;
        at += length + 1;
        if (line[3] != '-')
            break;
        if (at == size)
            return PLB_AGAIN;
    }
    *used = at;
    return PLB_OK;
}

static plb_status plb__smtp_open(void *state, const void *desc, const plb_env *env)
{
    static const plb_expect_step steps[] = {
        {NULL, 0, PLB_EXPECT_PREFIX, NULL, 0, NULL, 0, plb__smtp_judge},
        {"EHLO localhost\r\n", 0, PLB_EXPECT_PREFIX, NULL, 0, NULL, 0, plb__smtp_judge},
        {"QUIT\r\n", 0, PLB_EXPECT_PREFIX, NULL, 0, NULL, 0, plb__smtp_judge}};
    return plb__expect_open_steps(state, desc, env, steps, 3);
}

PLB_API plb_check plb_smtp_check(const plb_connect_desc *connect)
{
    static const plb_check_ops ops = {"smtp",
                                      sizeof(plb__expect_check),
                                      sizeof(plb__expect_probe),
                                      plb__smtp_open,
                                      plb__expect_close,
                                      plb__expect_start,
                                      plb_exchange_cancel};
    return plb__check_of(&ops, connect, connect);
}

/* An error packet: 0xFF, the number, and in later protocols "#" with five characters of state; then the message. */
static void plb__mysql_tell(const char *packet, size_t size, char *why)
{
    plb__text text = plb__text_in(why, PLB_REPORT_TEXT);
    size_t at = size > 3 && packet[3] == '#' ? 9 : 3;
    if (size < at)
        return;
    plb__put(&text, "error ");
    plb__put_number(&text, (uint8_t)packet[1] | (uint32_t)(uint8_t)packet[2] << 8, 10);
    plb__put(&text, ", ");
    plb__put_quoted(&text, packet + at, size - at, PLB_REPORT_TEXT - sizeof "step 1: " - text.length - 2);
}

/* The first packet of MySQL's protocol: three bytes of length, the lowest first, a sequence number, which is 0, and
   the packet, whose first byte says what it is. */
static plb_status plb__mysql_judge(const char *bytes, size_t size, size_t *used, char *why)
{
    size_t header = 4, length;
    if (size >= header && bytes[3] != 0)
        return PLB_ERR_ANSWER;
    if (size <= header)
        return PLB_AGAIN;
    length = (uint8_t)bytes[0] | (size_t)(uint8_t)bytes[1] << 8 | (size_t)(uint8_t)bytes[2] << 16;
    if (length == 0 || ((uint8_t)bytes[header] != 10 && (uint8_t)bytes[header] != 0xff))
        return PLB_ERR_ANSWER;
    if (size - header < length)
        return PLB_AGAIN;
    *used = header + length;
    if (bytes[header] == 10)
        return PLB_OK;
    plb__mysql_tell(bytes + header, length, why);
    return PLB_ERR_ANSWER;
}

static plb_status plb__mysql_open(void *state, const void *desc, const plb_env *env)
{
    static const plb_expect_step steps[] = {{NULL, 0, PLB_EXPECT_PREFIX, NULL, 0, NULL, 0, plb__mysql_judge}};
    return plb__expect_open_steps(state, desc, env, steps, 1);
}

PLB_API plb_check plb_mysql_check(const plb_connect_desc *connect)
{
    static const plb_check_ops ops = {
        "mysql",           sizeof(plb__expect_check), sizeof(plb__expect_probe), plb__mysql_open,
        plb__expect_close, plb__expect_start,         plb_exchange_cancel};
    return plb__check_of(&ops, connect, connect);
}

static plb_status plb__postgres_judge(const char *bytes, size_t size, size_t *used, char *why)
{
    (void)size;
    (void)why;
    *used = 1;
    return bytes[0] == 'S' || bytes[0] == 'N' ? PLB_OK : PLB_ERR_ANSWER;
}

static plb_status plb__postgres_open(void *state, const void *desc, const plb_env *env)
{
    /* SSLRequest of PostgreSQL's protocol 3.0: its length, 8, and the number 80877103 */
    static const plb_expect_step steps[] = {
        {"\0\0\0\x08\x04\xd2\x16\x2f", 8, PLB_EXPECT_PREFIX, NULL, 0, NULL, 0, plb__postgres_judge}};
    return plb__expect_open_steps(state, desc, env, steps, 1);
}

PLB_API plb_check plb_postgres_check(const plb_connect_desc *connect)
{
    static const plb_check_ops ops = {"postgres",         sizeof(plb__expect_check), sizeof(plb__expect_probe),
                                      plb__postgres_open, plb__expect_close,         plb__expect_start,
                                      plb_exchange_cancel};
    return plb__check_of(&ops, connect, connect);
}
#endif

/* ==== AGENT CHECK ====================================================================================================
   One line from a backend's agent. */

#ifndef PLB_NO_AGENT
/* "75%": a share in 255ths. */
static bool plb__agent_share(plb_text word, uint8_t *share)
{
    uint32_t percent = 0;
    size_t i;
    if (word.size < 2 || word.data[word.size - 1] != '%')
        return false;
    for (i = 0; i + 1 < word.size; i++) {
        if (word.data[i] < '0' || word.data[i] > '9')
            return false;
        percent = percent * 10 + (uint32_t)(word.data[i] - '0');
        if (percent > 100)
            percent = 100;
    }
    *share = (uint8_t)((percent * PLB__SHARE_ALL + 50) / 100);
    return true;
}

/* Is the word known? Then the answer has it. */
static bool plb__agent_word(plb_agent_answer *out, plb_text word)
{
    static const struct {
        const char *word;
        plb_agent_verdict verdict;
        plb_enablement enablement;
    } known[] = {{"up", PLB_AGENT_UP, PLB_ENABLEMENT_KEEP},        {"down", PLB_AGENT_DOWN, PLB_ENABLEMENT_KEEP},
                 {"fail", PLB_AGENT_DOWN, PLB_ENABLEMENT_KEEP},    {"failed", PLB_AGENT_DOWN, PLB_ENABLEMENT_KEEP},
                 {"stopped", PLB_AGENT_DOWN, PLB_ENABLEMENT_KEEP}, {"ready", PLB_AGENT_SILENT, PLB_ENABLEMENT_ON},
                 {"drain", PLB_AGENT_SILENT, PLB_ENABLEMENT_OFF},  {"maint", PLB_AGENT_SILENT, PLB_ENABLEMENT_OFF}};
    static const char limit[] = "maxconn:";
    plb_text begin = word;
    size_t i;
    for (i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (!plb_text_is(word, known[i].word))
            continue;
        if (known[i].verdict != PLB_AGENT_SILENT)
            out->verdict = known[i].verdict;
        if (known[i].enablement != PLB_ENABLEMENT_KEEP)
            out->enablement = known[i].enablement;
        return true;
    }
    if (plb__agent_share(word, &out->share)) {
        out->has_share = true;
        return true;
    }
    begin.size = sizeof limit - 1;
    return word.size > begin.size && plb_text_is(begin, limit);
}

static bool plb__agent_line_ends(char c)
{
    return c == '\r' || c == '\n';
}

static bool plb__agent_separates(char c)
{
    return c == ' ' || c == '\t' || c == ',';
}

PLB_API plb_status plb_agent_parse(plb_agent_answer *out, const char *line, size_t size)
{
    plb_status status = PLB_ERR_ANSWER;
    size_t at = 0;
    memset(out, 0, sizeof *out);
    while (at < size && line[at] != '#' && !plb__agent_line_ends(line[at])) {
        plb_text word;
        word.data = line + at;
        for (word.size = 0; at < size && line[at] != '#' && !plb__agent_line_ends(line[at]); word.size++)
            if (plb__agent_separates(line[at++]))
                break;
        if (plb__agent_word(out, word))
            status = PLB_OK;
    }
    return status;
}

typedef struct plb__agent_check {
    plb_exchange_check exchange;
    char *send;
    size_t send_size;
    bool must_answer;
} plb__agent_check;

static const plb__agent_check *plb__agent_check_of(const plb_exchange *x)
{
    return (const plb__agent_check *)(const void *)x->check;
}

static plb_status plb__agent_open(void *state, const void *desc, const plb_env *env)
{
    plb__agent_check *check = (plb__agent_check *)state;
    const plb_agent_check_desc *agent = (const plb_agent_check_desc *)desc;
    plb_status status = plb_exchange_open(&check->exchange, agent != NULL ? &agent->connect : NULL,
                                          agent != NULL ? agent->answer_ms : 0, env);
    if (status != PLB_OK || agent == NULL)
        return status;
    check->must_answer = agent->must_answer;
    check->send_size = agent->send != NULL ? strlen(agent->send) : 0;
    if (check->send_size == 0)
        return PLB_OK;
    check->send = (char *)plb__new(&env->allocator, check->send_size);
    if (check->send == NULL)
        return PLB_ERR_MEMORY;
    memcpy(check->send, agent->send, check->send_size);
    return PLB_OK;
}

static void plb__agent_close(void *state)
{
    plb__agent_check *check = (plb__agent_check *)state;
    if (check->send != NULL)
        plb__delete(&check->exchange.env->allocator, check->send, check->send_size);
    plb_exchange_close(&check->exchange);
}

static plb_status plb__agent_connected(plb_exchange *x)
{
    plb_chunk chunk;
    chunk.data = plb__agent_check_of(x)->send;
    chunk.size = plb__agent_check_of(x)->send_size;
    chunk.flags = 0;
    plb_exchange_send(x, &chunk, 1);
    return PLB_AGAIN;
}

/* Says what a line says; its text is the line itself. */
static plb_status plb__agent_judge(plb_exchange *x, const char *line, size_t size)
{
    char said[PLB_REPORT_TEXT];
    plb__text text = plb__text_in(said, sizeof said);
    plb_agent_answer answer;
    plb_report report;
    plb_status status = plb_agent_parse(&answer, line, size);
    memset(&report, 0, sizeof report);
    plb__put(&text, "agent: ");
    plb__put_quoted(&text, line, size, sizeof said - 1 - text.length - 2);
    PLB__IF_LOG(report.text = said, (void)said);
    report.has_share = answer.has_share;
    report.share = answer.share;
    report.enablement = answer.enablement;
    report.neutral = answer.verdict == PLB_AGENT_SILENT && !plb__agent_check_of(x)->must_answer;
    plb_exchange_say(x, &report);
    return answer.verdict == PLB_AGENT_DOWN ? PLB_ERR_ANSWER : status;
}

static plb_status plb__agent_received(plb_exchange *x, const char *bytes, size_t size, size_t *used)
{
    size_t i;
    (void)used;
    if (size == 0)
        return plb__agent_judge(x, x->rest, x->rest_size);
    for (i = 0; i < size; i++)
        if (plb__agent_line_ends(bytes[i]))
            return plb__agent_judge(x, bytes, i);
    return PLB_AGAIN;
}

/* Until a line has come, the probe has nothing to say of its backend, however it ends. */
static plb_status plb__agent_start(void *state, void *probe, const plb_backend *target, plb_token token)
{
    static const plb_exchange_ops ops = {plb__agent_connected, plb__agent_received, NULL};
    const plb__agent_check *check = (const plb__agent_check *)state;
    plb_exchange *x = (plb_exchange *)probe;
    plb_report report;
    memset(&report, 0, sizeof report);
    report.neutral = !check->must_answer;
    x->token = token;
    plb_exchange_say(x, &report);
    return plb_exchange_start(x, &ops, &check->exchange, target, NULL, token);
}

PLB_API plb_check plb_agent_check(const plb_agent_check_desc *desc)
{
    static const plb_check_ops ops = {"agent",          sizeof(plb__agent_check), sizeof(plb_exchange), plb__agent_open,
                                      plb__agent_close, plb__agent_start,         plb_exchange_cancel};
    return plb__check_of(&ops, desc, desc != NULL ? &desc->connect : NULL);
}
#endif

/* ==== HTTP/2 CHECK ===================================================================================================
   One request at a time over HTTP/2: a page, or gRPC's health service. */

#ifndef PLB_NO_HTTP2
#define PLB__HTTP2_EXTRA     32 /* headers of the program's in a request */
#define PLB__HTTP2_AUTHORITY 320

typedef struct plb__http2_probe plb__http2_probe;

typedef struct plb__http2_check {
    plb__http_check http;
    plb_http2_header
        headers[4 + PLB__HTTP2_EXTRA + 1]; /* of the request that is being made: a stack may be too small */
    char authority[PLB__HTTP2_AUTHORITY];  /* its, too */
    plb_status (*request)(plb__http2_probe *probe, plb_text authority);
    plb_status (*event)(plb__http2_probe *probe, const plb_http2_event *event); /* PLB_AGAIN: the next one */
    char *service;                                                              /* gRPC: the request's body */
    size_t service_size;
} plb__http2_check;

/* Headers of an answer, for a validator. */
typedef struct plb__http2_fields {
    plb_http1_header headers[PLB__HTTP_HEADERS];
    size_t count, used;
    char text[4096];
} plb__http2_fields;

struct plb__http2_probe {
    plb__http_probe http;
    plb_http2 connection;
    size_t offered; /* bytes of output that the exchange was given */
#ifndef PLB_NO_GRPC
    plb_grpc_health health;
#endif
    uint32_t grpc_status;
    bool has_grpc_status, has_health;
    char memory[PLB_HTTP2_MEMORY];
};

/* A probe whose check has a validator. */
typedef struct plb__http2_fields_probe {
    plb__http2_probe probe;
    plb__http2_fields fields;
} plb__http2_fields_probe;

/* The check's state, which exchanges may only read, and probes write too. */
static plb__http2_check *plb__http2_check_of(const plb__http2_probe *probe)
{
    return (plb__http2_check *)(uintptr_t)probe->http.exchange.check;
}

/* Bytes that the exchange has sent of the codec's output are the codec's no more; what is left is taken back, for the
   codec may move it. */
static void plb__http2_take_back(plb__http2_probe *probe)
{
    plb_exchange *x = &probe->http.exchange;
    size_t left = x->chunk_count > 0 ? x->chunks[0].size : 0;
    plb_http2_sent(&probe->connection, probe->offered - left);
    plb_exchange_send(x, NULL, 0);
    probe->offered = 0;
}

static void plb__http2_offer(plb__http2_probe *probe)
{
    plb_text out = plb_http2_output(&probe->connection);
    plb_chunk chunk;
    chunk.data = out.data;
    chunk.size = out.size;
    chunk.flags = 0;
    probe->offered = out.size;
    plb_exchange_send(&probe->http.exchange, &chunk, 1);
}

static void plb__http2_probe_sent(plb_exchange *x)
{
    plb__http2_probe *probe = (plb__http2_probe *)(void *)x;
    plb__http2_take_back(probe);
    plb__http2_offer(probe);
}

/* Over TLS the two sides must have agreed. */
PLB__APART bool plb__http2_is_spoken(plb_exchange *x)
{
    const plb_io *io = x->check->env->port.io;
    plb_stream_info info;
    if (plb__exchange_tls(x->check) == NULL)
        return true;
    return io->info(io->self, x->stream, &info) == PLB_OK && info.alpn != NULL && plb__same_text(info.alpn, "h2");
}

static plb_status plb__http2_probe_connected(plb_exchange *x)
{
    plb__http2_probe *probe = (plb__http2_probe *)(void *)x;
    plb__http2_check *check = plb__http2_check_of(probe);
    plb__text text = plb__text_in(check->authority, sizeof check->authority);
    plb_text host;
    plb_status status;
    plb__http_await(&probe->http);
    PLB__IF_GRPC(memset(&probe->health, 0, sizeof probe->health), (void)0);
    probe->has_grpc_status = probe->has_health = false;
    probe->offered = 0;
    if (!plb__http2_is_spoken(x))
        return plb__http_say(&probe->http, PLB_ERR_PROTOCOL, "The server does not agree to HTTP/2 (ALPN h2).");
    if (!x->resumed)
        plb_http2_open(&probe->connection, probe->memory, sizeof probe->memory);
    plb__put(&text, probe->http.target.host);
    plb__put(&text, probe->http.authority);
    host.data = check->authority;
    host.size = text.length;
    status = text.length < sizeof check->authority ? check->request(probe, host) : PLB_ERR_ARGUMENT;
    if (status == PLB_AGAIN || status == PLB_END) /* a connection that was kept takes no more requests */
        return PLB_ERR_RESET;
    if (status != PLB_OK)
        return status;
    plb__http2_offer(probe);
    x->keep = check->http.desc.reuse_connection;
    return PLB_AGAIN;
}

/* "WORDS NUMBER" as the report's text. */
static plb_status plb__http2_say_code(plb__http2_probe *probe, plb_status status, const char *words, uint32_t code)
{
    char line[PLB_REPORT_TEXT];
    plb__text text = plb__text_in(line, sizeof line);
    plb__put(&text, words);
    plb__put_number(&text, code, 10);
    return plb__http_say(&probe->http, status, line);
}

/* What ends an answer of any kind too early. PLB_AGAIN: nothing of that. */
static plb_status plb__http2_judge_event(plb__http2_probe *probe, const plb_http2_event *event)
{
    if (event->kind == PLB_HTTP2_RESET && event->ours)
        return plb__http_say(&probe->http, PLB_ERR_PROTOCOL, "The answer is not well-formed HTTP/2.");
    if (event->kind == PLB_HTTP2_RESET)
        return plb__http2_say_code(probe, PLB_ERR_RESET, "The server reset the stream: HTTP/2 error ", event->code);
    if (event->kind == PLB_HTTP2_GOAWAY)
        probe->http.exchange.keep = false;
    if (event->kind == PLB_HTTP2_GOAWAY && !event->covered) /* RFC 9113 section 8.7: safe to ask again */
        return plb__http2_say_code(probe, probe->http.exchange.resumed ? PLB_END : PLB_ERR_RESET,
                                   "The server goes away: HTTP/2 error ", event->code);
    return plb__http2_check_of(probe)->event(probe, event);
}

/* The codec has given up the connection, and said so to the peer. */
static plb_status plb__http2_give_up(plb__http2_probe *probe, plb_status status, uint32_t code)
{
    if (status == PLB_ERR_LIMIT)
        return plb__http_say(&probe->http, PLB_ERR_PROTOCOL, "The answer's headers are longer than allowed.");
    if (!probe->connection.settings_seen)
        return plb__http_say(&probe->http, PLB_ERR_PROTOCOL, "The answer is not HTTP/2.");
    return plb__http2_say_code(probe, PLB_ERR_PROTOCOL, "The server breaks HTTP/2's rules: error ", code);
}

static plb_status plb__http2_probe_received(plb_exchange *x, const char *bytes, size_t size, size_t *used)
{
    plb__http2_probe *probe = (plb__http2_probe *)(void *)x;
    plb_status result = PLB_AGAIN;
    if (size == 0)
        return plb__http_say(&probe->http, PLB_ERR_RESET, "The connection ended before the answer was complete.");
    plb__http2_take_back(probe);
    while (result == PLB_AGAIN) {
        plb_http2_event event;
        size_t taken = 0;
        plb_status status = plb_http2_next(&probe->connection, bytes + *used, size - *used, &taken, &event);
        *used += taken;
        if (status == PLB_AGAIN)
            break;
        result =
            status == PLB_OK ? plb__http2_judge_event(probe, &event) : plb__http2_give_up(probe, status, event.code);
    }
    if (*used < size)
        x->keep = false;
    if (result != PLB_AGAIN && (result != PLB_OK || !x->keep))
        plb_http2_close(&probe->connection);
    plb__http2_offer(probe);
    return result;
}

static plb_status plb__http2_probe_start(void *state, void *probe, const plb_backend *target, plb_token token)
{
    static const plb_exchange_ops ops = {plb__http2_probe_connected, plb__http2_probe_received, plb__http2_probe_sent};
    return plb__http_start((const plb__http_check *)state, (plb__http_probe *)probe, &ops, target, token);
}

static void plb__http2_check_close(void *state)
{
    plb__http2_check *check = (plb__http2_check *)state;
    if (check->service != NULL)
        plb__delete(&check->http.exchange.env->allocator, check->service, check->service_size);
    plb__http_check_close(state);
}

#ifndef PLB_NO_TLS
/* "h2" is what TLS asks for, unless the program has something else. */
static void plb__http2_ask(plb_connect_desc *connect, plb_tls *tls)
{
    static const char *const alpn[] = {"h2", NULL};
    if (connect->tls == NULL)
        return;
    *tls = *connect->tls;
    if (tls->alpn == NULL)
        tls->alpn = alpn;
    connect->tls = tls;
}
#endif

/* Opens the part that both kinds have. */
static plb_status plb__http2_open_check(plb__http2_check *check, const plb_http_check_desc *desc, const plb_env *env)
{
    plb_http_check_desc with;
    plb_tls tls;
    memset(&with, 0, sizeof with);
    if (desc != NULL)
        with = *desc;
    PLB__IF_TLS(plb__http2_ask(&with.connect, &tls), (void)&tls);
    return plb__http_check_open(&check->http, &with, env);
}

/* ---- a page ---- */

static void plb__http2_put_header(plb_http2_header *headers, size_t *count, const char *name, const char *value)
{
    headers[*count].name.data = name;
    headers[*count].name.size = strlen(name);
    headers[*count].value.data = value;
    headers[(*count)++].value.size = strlen(value);
}

/* desc.headers as HTTP/2 has them, after those that each request has. */
static plb_status plb__http2_page_headers(const plb__http_check *check, plb_http2_header *headers, size_t *count)
{
    static const char agent[] = "user-agent";
    const char *at = check->desc.headers;
    plb_http1_header line;
    bool has_agent = false;
    size_t first = *count;
    while (plb__http_next_header(&at, &line) == PLB_AGAIN) {
        if (*count - first == PLB__HTTP2_EXTRA)
            return PLB_ERR_ARGUMENT;
        has_agent = has_agent || plb_text_is(line.name, agent);
        headers[*count].name = line.name;
        headers[(*count)++].value = line.value;
    }
    if (!has_agent)
        plb__http2_put_header(headers, count, agent, "pingora_lb/" PLB_VERSION);
    return PLB_OK;
}

static plb_status plb__http2_page_queue(plb__http2_check *check, plb_http2 *connection, const char *path,
                                        plb_text authority)
{
    plb_http2_header *headers = check->headers;
    plb_text no_body;
    plb_status status;
    size_t count = 0;
    memset(&no_body, 0, sizeof no_body);
    plb__http2_put_header(headers, &count, ":method", check->http.desc.method);
    plb__http2_put_header(headers, &count, ":scheme",
                          plb__exchange_tls(&check->http.exchange) != NULL ? "https" : "http");
    plb__http2_put_header(headers, &count, ":path", path);
    plb__http2_put_header(headers, &count, ":authority", "");
    headers[count - 1].value = authority;
    status = plb__http2_page_headers(&check->http, headers, &count);
    return status == PLB_OK ? plb_http2_request(connection, headers, count, no_body) : status;
}

static plb__http2_fields *plb__http2_fields_of(plb__http2_probe *probe)
{
    if (plb__http2_check_of(probe)->http.desc.validate == NULL)
        return NULL;
    return &((plb__http2_fields_probe *)(void *)probe)->fields;
}

static plb_status plb__http2_page_request(plb__http2_probe *probe, plb_text authority)
{
    plb__http2_check *check = plb__http2_check_of(probe);
    return plb__http2_page_queue(check, &probe->connection, probe->http.target.path, authority);
}

/* Keeps a header for the validator, as far as there is room. */
static void plb__http2_keep_field(plb__http2_fields *fields, const plb_http2_event *event)
{
    plb_http1_header *header;
    if (fields->count == PLB__HTTP_HEADERS || event->name.size + event->value.size > sizeof fields->text - fields->used)
        return;
    header = &fields->headers[fields->count++];
    header->name.data = fields->text + fields->used;
    header->name.size = event->name.size;
    memcpy(fields->text + fields->used, event->name.data, event->name.size);
    fields->used += event->name.size;
    header->value.data = fields->text + fields->used;
    header->value.size = event->value.size;
    memcpy(fields->text + fields->used, event->value.data, event->value.size);
    fields->used += event->value.size;
}

static plb_status plb__http2_page_event(plb__http2_probe *probe, const plb_http2_event *event)
{
    plb__http2_fields *fields = plb__http2_fields_of(probe);
    switch (event->kind) {
    case PLB_HTTP2_STATUS:
        if (fields != NULL)
            fields->count = fields->used = 0;
        return PLB_AGAIN;
    case PLB_HTTP2_HEADER:
        if (fields != NULL)
            plb__http2_keep_field(fields, event);
        return PLB_AGAIN;
    case PLB_HTTP2_HEADERS_END:
        if (event->status < 200)
            return PLB_AGAIN;
        return plb__http_judge_head(&probe->http, event->status, fields != NULL ? fields->headers : NULL,
                                    fields != NULL ? fields->count : 0);
    case PLB_HTTP2_DATA:
        return plb__http_judge_body(&probe->http, event->data.data, event->data.size);
    case PLB_HTTP2_END:
        return plb__http_judge_end(&probe->http);
    default:
        return PLB_AGAIN;
    }
}

/* Names in small letters, as HTTP/2 has them (RFC 9113 section 8.2.1): in the check's own copy. */
static void plb__http2_lower_names(plb__http_check *check)
{
    char *at = check->memory + (check->desc.headers - check->memory);
    bool in_name = true;
    for (; *at != '\0'; at++) {
        in_name = in_name && *at != ':';
        if (in_name && *at >= 'A' && *at <= 'Z')
            *at = (char)(*at + 'a' - 'A');
        in_name = in_name || *at == '\n';
    }
}

/* A request on trial, so that what HTTP/2 cannot carry fails plb_create and not each probe. */
static plb_status plb__http2_page_try(plb__http2_check *check)
{
    const plb_allocator *a = &check->http.exchange.env->allocator;
    plb_http2 *connection = (plb_http2 *)plb__new(a, sizeof *connection + PLB_HTTP2_MEMORY);
    plb_text authority;
    plb_status status;
    if (connection == NULL)
        return PLB_ERR_MEMORY;
    authority.data = check->http.desc.host != NULL ? check->http.desc.host : "a";
    authority.size = strlen(authority.data);
    plb_http2_open(connection, connection + 1, PLB_HTTP2_MEMORY);
    status = plb__http2_page_queue(check, connection, check->http.desc.path, authority);
    plb__delete(a, connection, sizeof *connection + PLB_HTTP2_MEMORY);
    return status == PLB_ERR_LIMIT ? PLB_ERR_ARGUMENT : status;
}

static plb_status plb__http2_fields_open(void *state, const void *desc, const plb_env *env)
{
    plb__http2_check *check = (plb__http2_check *)state;
    plb_status status = plb__http2_open_check(check, (const plb_http_check_desc *)desc, env);
    if (status != PLB_OK)
        return status;
    check->request = plb__http2_page_request;
    check->event = plb__http2_page_event;
    plb__http2_lower_names(&check->http);
    return plb__http2_page_try(check);
}

/* Where probes were given no room for headers. */
static plb_status plb__http2_page_open(void *state, const void *desc, const plb_env *env)
{
    if (desc != NULL && ((const plb_http_check_desc *)desc)->validate != NULL)
        return PLB_ERR_ARGUMENT;
    return plb__http2_fields_open(state, desc, env);
}

PLB_API plb_check plb_http2_check(const plb_http_check_desc *desc)
{
    static const plb_check_ops plain = {"http2",
                                        sizeof(plb__http2_check),
                                        sizeof(plb__http2_probe),
                                        plb__http2_page_open,
                                        plb__http2_check_close,
                                        plb__http2_probe_start,
                                        plb_exchange_cancel};
    static const plb_check_ops with_fields = {"http2",
                                              sizeof(plb__http2_check),
                                              sizeof(plb__http2_fields_probe),
                                              plb__http2_fields_open,
                                              plb__http2_check_close,
                                              plb__http2_probe_start,
                                              plb_exchange_cancel};
    bool validates = desc != NULL && desc->validate != NULL;
    return plb__check_of(validates ? &with_fields : &plain, desc, desc != NULL ? &desc->connect : NULL);
}
#endif

/* ==== GRPC CHECK =====================================================================================================
   A call of grpc.health.v1.Health/Check. */

#ifndef PLB_NO_GRPC
#define PLB__GRPC_SERVICE_MAX 256

static plb_status plb__grpc_request(plb__http2_probe *probe, plb_text authority)
{
    const plb__http2_check *check = plb__http2_check_of(probe);
    plb_http2_header headers[PLB_GRPC_HEADERS];
    plb_text body;
    body.data = check->service;
    body.size = check->service_size;
    plb_grpc_health_headers(headers, authority, plb__exchange_tls(&check->http.exchange) != NULL);
    return plb_http2_request(&probe->connection, headers, PLB_GRPC_HEADERS, body);
}

/* "gRPC status UNAVAILABLE", or what the health service says. */
static plb_status plb__grpc_say(plb__http2_probe *probe, uint32_t code, const char *words, const char *name)
{
    char line[PLB_REPORT_TEXT];
    plb__text text = plb__text_in(line, sizeof line);
    plb_report report;
    plb__put(&text, words);
    plb__put(&text, name);
    memset(&report, 0, sizeof report);
    report.code = code < UINT16_MAX ? code : UINT16_MAX;
    PLB__IF_LOG(report.text = line, (void)line);
    plb_exchange_say(&probe->http.exchange, &report);
    return PLB_ERR_ANSWER;
}

static plb_status plb__grpc_judge(plb__http2_probe *probe)
{
    uint32_t serving = probe->health.serving;
    if (!probe->has_grpc_status)
        return plb__http_say(&probe->http, PLB_ERR_PROTOCOL, "The answer has no grpc-status.");
    if (probe->grpc_status != 0)
        return plb__grpc_say(probe, probe->grpc_status, "gRPC status ", plb_grpc_status_name(probe->grpc_status));
    if (!probe->has_health)
        return plb__http_say(&probe->http, PLB_ERR_PROTOCOL, "The answer has no message.");
    if (serving != PLB_GRPC_SERVING)
        return plb__grpc_say(probe, serving, "", plb_grpc_serving_name(serving));
    return PLB_OK;
}

static plb_status plb__grpc_field(plb__http2_probe *probe, const plb_http2_event *event)
{
    if (event->status < 200 || !plb_text_is(event->name, "grpc-status")) /* not in an interim answer */
        return PLB_AGAIN;
    if (plb_grpc_status(event->value, &probe->grpc_status) != PLB_OK)
        return plb__http_say(&probe->http, PLB_ERR_PROTOCOL, "The answer's grpc-status is no number.");
    probe->has_grpc_status = true;
    return PLB_AGAIN;
}

static plb_status plb__grpc_data(plb__http2_probe *probe, plb_text data)
{
    plb_status status = plb_grpc_health_next(&probe->health, data.data, data.size);
    if (status != PLB_OK && status != PLB_AGAIN)
        return plb__http_say(&probe->http, PLB_ERR_PROTOCOL,
                             "The answer's message is malformed, compressed or too long.");
    probe->has_health = probe->has_health || status == PLB_OK;
    return PLB_AGAIN;
}

static plb_status plb__grpc_event(plb__http2_probe *probe, const plb_http2_event *event)
{
    switch (event->kind) {
    case PLB_HTTP2_HEADER:
    case PLB_HTTP2_TRAILER:
        return plb__grpc_field(probe, event);
    case PLB_HTTP2_HEADERS_END:
        if (event->status < 200)
            return PLB_AGAIN;
        probe->http.status = event->status;
        return event->status == 200 ? PLB_AGAIN : plb__http_say_status(&probe->http, "HTTP status ");
    case PLB_HTTP2_DATA:
        return plb__grpc_data(probe, event->data);
    case PLB_HTTP2_END:
        return plb__grpc_judge(probe);
    default:
        return PLB_AGAIN;
    }
}

static plb_status plb__grpc_open(void *state, const void *opaque_desc, const plb_env *env)
{
    plb__http2_check *check = (plb__http2_check *)state;
    const plb_grpc_check_desc *desc = (const plb_grpc_check_desc *)opaque_desc;
    plb_http_check_desc http;
    plb_text service;
    plb_status status;
    memset(&http, 0, sizeof http);
    service.data = desc != NULL && desc->service != NULL ? desc->service : "";
    service.size = strlen(service.data);
    if (desc != NULL) {
        http.connect = desc->connect;
        http.answer_ms = desc->answer_ms;
        http.host = desc->host;
        http.reuse_connection = desc->reuse_connection;
    }
    status = plb__http2_open_check(check, &http, env);
    if (status == PLB_OK && service.size > PLB__GRPC_SERVICE_MAX)
        status = PLB_ERR_ARGUMENT;
    if (status != PLB_OK)
        return status;
    check->request = plb__grpc_request;
    check->event = plb__grpc_event;
    check->service_size = plb_grpc_health_request(NULL, 0, service);
    check->service = (char *)plb__new(&env->allocator, check->service_size);
    if (check->service == NULL)
        return PLB_ERR_MEMORY;
    plb_grpc_health_request(check->service, check->service_size, service);
    return PLB_OK;
}

PLB_API plb_check plb_grpc_check(const plb_grpc_check_desc *desc)
{
    static const plb_check_ops ops = {"grpc",
                                      sizeof(plb__http2_check),
                                      sizeof(plb__http2_probe),
                                      plb__grpc_open,
                                      plb__http2_check_close,
                                      plb__http2_probe_start,
                                      plb_exchange_cancel};
    return plb__check_of(&ops, desc, desc != NULL ? &desc->connect : NULL);
}
#endif

/* ==== OUTLIER DETECTION ==============================================================================================
   What is made of the records: who is ejected, for how long, and who comes back. */

#ifndef PLB_NO_OUTLIER
static void plb__outlier_tell(plb_balancer *lb, const plb__record *record, plb_ejection why, const char *reason)
{
    bool back = why >= PLB_EJECTION_TIME_OVER;
    const plb__tier *tier = NULL;
    uint32_t index = plb__set_find_slot((const plb__set *)lb->current, record->slot, &tier);
    plb_backend_info info;
    plb__fill_info(tier, index, &info);
    plb__log_backend(lb, back ? PLB_LOG_INFO : PLB_LOG_WARN, back ? "no longer ejected:" : "ejected:", &info.backend,
                     reason);
    if (lb->desc.on_eject != NULL)
        lb->desc.on_eject(lb->desc.user, &info, why);
}

/* Takes note of the requests since the last look. */
static void plb__record_look(plb__record *record, uint32_t *passed, uint32_t *failed)
{
    uint32_t passed_now = PLB__LOAD_RELAXED(&record->passed), failed_now = PLB__LOAD_RELAXED(&record->failed);
    *passed = passed_now - record->passed_before;
    *failed = failed_now - record->failed_before;
    record->passed_before = passed_now;
    record->failed_before = failed_now;
    record->requests += (uint64_t)*passed + *failed;
    record->failures += *failed;
}

static void plb__record_forgive(plb__record *record)
{
    PLB__STORE_RELAXED(&record->errors, 0);
    PLB__STORE_RELAXED(&record->connect_errors, 0);
}

static bool plb__record_is_ejected(const plb__record *record)
{
    return (PLB__LOAD(&record->slot->flags) & PLB__EJECTED) != 0;
}

/* What it did before the ejection is not held against it again. */
static void plb__outlier_return(plb_balancer *lb, plb__record *record, plb_ejection why)
{
    uint32_t passed, failed;
    plb__record_unlink(lb, record);
    plb__record_forgive(record);
    plb__record_look(record, &passed, &failed);
    if ((PLB__LOAD(&record->slot->flags) & PLB__UNHEALTHY) == 0)
        plb__ramp_start(lb, record->slot);
    plb__slot_flag(lb, record->slot, PLB__EJECTED, false);
    plb__outlier_tell(lb, record, why, why == PLB_EJECTION_TIME_OVER ? "its time is over" : "a probe succeeded");
}

static void plb__outlier_wait(plb_balancer *lb, uint64_t until_ms)
{
    uint64_t now_ms = lb->timers.now_ms;
    if (!plb_timer_is_set(&lb->return_timer) || until_ms < lb->return_timer.at_ms)
        plb_timer_set(&lb->timers, &lb->return_timer, until_ms > now_ms ? (uint32_t)(until_ms - now_ms) : 0);
}

/* Lets those come back whose time is over. */
static void plb__outlier_returns(void *user)
{
    plb_balancer *lb = (plb_balancer *)user;
    plb__record *record, *next;
    for (record = lb->ejected; record != NULL; record = next) {
        next = record->next_ejected;
        if (record->back_ms <= lb->timers.now_ms)
            plb__outlier_return(lb, record, PLB_EJECTION_TIME_OVER);
        else
            plb__outlier_wait(lb, record->back_ms);
    }
}

/* A probe found a backend in good health. One that began before the ejection knows nothing of what led to it. */
static void plb__outlier_absolve(plb_balancer *lb, const plb__result *r)
{
    uint32_t flags = PLB__LOAD(&r->slot->flags);
    if ((flags & PLB__EJECTED) == 0 || (flags & PLB__UNHEALTHY) != 0 || lb->desc.outlier.ignore_probes)
        return;
    if (r->op->report.status == PLB_OK && !plb__is_neutral(r->op) &&
        r->op->started_ms > plb__slot_record(r->slot)->ejected_ms)
        plb__outlier_return(lb, plb__slot_record(r->slot), PLB_EJECTION_PROBE_PASSED);
}

/* Would one more be within the share? The only backend goes only where all may. */
static bool plb__outlier_may_eject(const plb_balancer *lb)
{
    uint64_t share = (uint64_t)lb->watched * lb->desc.outlier.max_ejection_percent;
    return ((uint64_t)lb->ejected_count + 1) * 100 <= share || (lb->ejected_count == 0 && lb->watched > 1);
}

/* The time of an ejection, which has just become its last: longer each time, up to the limit. */
static uint32_t plb__outlier_time(const plb_balancer *lb, plb__record *record)
{
    uint64_t base_ms = lb->desc.outlier.base_ejection_ms, max_ms = lb->desc.outlier.max_ejection_ms;
    if (base_ms * record->multiplier < max_ms) /* beyond that, good behaviour would take long to show */
        record->multiplier++;
    return (uint32_t)(base_ms * record->multiplier < max_ms ? base_ms * record->multiplier : max_ms);
}

/* Ejects a backend of the current set, unless it is ejected already or too many are. */
static void plb__outlier_eject(plb_balancer *lb, plb__record *record, plb_ejection why, plb__text *reason)
{
    uint32_t time_ms;
    if (plb__record_is_ejected(record) || !plb__outlier_may_eject(lb))
        return;
    time_ms = plb__outlier_time(lb, record);
    record->ejections++;
    record->ejected_ms = lb->timers.now_ms;
    record->back_ms = lb->timers.now_ms + time_ms;
    plb__record_link(lb, record);
    plb__outlier_wait(lb, record->back_ms);
    plb__slot_flag(lb, record->slot, PLB__EJECTED, true);
    plb__put(reason, ", for ");
    plb__put_number(reason, time_ms, 10);
    plb__put(reason, " ms");
    plb__outlier_tell(lb, record, why, reason->buffer);
}

#define PLB__REASON_MAX 120

/* A thread left word. New failures are counted from here on, and may leave word again. */
PLB__APART void plb__outlier_suspected(plb_balancer *lb, plb__mail *mail)
{
    plb__record *record = (plb__record *)(void *)mail;
    plb_ejection why = (plb_ejection)PLB__LOAD(&record->told);
    const plb__tier *tier = NULL;
    char buffer[PLB__REASON_MAX];
    plb__text reason = plb__text_in(buffer, sizeof buffer);
    bool connect = why == PLB_EJECTION_CONNECT_ERRORS;
    plb__record_forgive(record);
    PLB__STORE(&record->told, PLB_EJECTION_NONE);
    if (plb__set_find_slot((const plb__set *)lb->current, record->slot, &tier) == PLB_NONE)
        return; /* it has left */
    plb__put_number(&reason,
                    connect ? lb->desc.outlier.consecutive_connect_errors : lb->desc.outlier.consecutive_errors, 10);
    plb__put(&reason, connect ? " connect errors in a row" : " errors in a row");
    plb__outlier_eject(lb, record, why, &reason);
}

/* The rates of one interval. */
typedef struct plb__rates {
    uint32_t count;
    uint64_t sum, squares; /* of rates, which are 16 bits and one: 2^32 squares fit */
} plb__rates;

/* What happened to a slot's requests in the interval that ends. */
static void plb__outlier_sample(plb_balancer *lb, plb__record *record, plb__rates *rates)
{
    uint32_t passed, failed;
    uint64_t total;
    plb__record_look(record, &passed, &failed);
    total = (uint64_t)passed + failed;
    record->rate = PLB_NONE;
    if (total > 0 && total >= lb->desc.outlier.success_rate_requests)
        record->rate = (uint32_t)((uint64_t)passed * PLB_SUCCESS_RATE_ONE / total);
    if (plb__record_is_ejected(record))
        return;
    record->multiplier -= record->multiplier > 0;
    if (record->rate == PLB_NONE)
        return;
    rates->count++;
    rates->sum += record->rate;
    rates->squares += (uint64_t)record->rate * record->rate;
}

/* The integer part of a square root, bit by bit. */
static uint64_t plb__square_root(uint64_t n)
{
    uint64_t root = 0, bit;
    for (bit = UINT64_C(1) << 31; bit > 0; bit /= 2)
        if ((root + bit) * (root + bit) <= n)
            root += bit;
    return root;
}

/* The lowest rate that is not an outlier, in thousandths: the mean less so many standard deviations. The variance,
   mean of the squares less square of the mean, is rounded up: a difference that is lost in rounding ejects nobody. */
static uint64_t plb__outlier_limit(const plb__rates *rates, uint32_t stdev_factor)
{
    uint64_t mean = rates->sum / rates->count, rest = rates->sum % rates->count;
    uint64_t variance = rates->squares / rates->count - mean * mean - 2 * mean * rest / rates->count + 1;
    uint64_t below = plb__square_root(variance * 1000000) * stdev_factor / 1000;
    mean = rates->sum * 1000 / rates->count;
    return mean > below ? mean - below : 0;
}

static void plb__put_percent(plb__text *text, uint64_t rate)
{
    plb__put_number(text, (rate * 100 + PLB_SUCCESS_RATE_ONE / 2) / PLB_SUCCESS_RATE_ONE, 10);
    plb__put_char(text, '%');
}

/* Ejects those whose rate is below the limit. */
static void plb__outlier_compare(plb_balancer *lb, const plb__set *set, const plb__rates *rates)
{
    uint64_t limit = plb__outlier_limit(rates, lb->desc.outlier.success_rate_stdev_factor);
    uint32_t i;
    for (i = 0; i < set->count; i++) {
        plb__record *record = plb__slot_record(set->slots[i]);
        char buffer[PLB__REASON_MAX];
        plb__text reason = plb__text_in(buffer, sizeof buffer);
        if (record->rate == PLB_NONE || (uint64_t)record->rate * 1000 >= limit)
            continue;
        plb__put(&reason, "success rate ");
        plb__put_percent(&reason, record->rate);
        plb__put(&reason, ", the mean is ");
        plb__put_percent(&reason, rates->sum / rates->count);
        plb__outlier_eject(lb, record, PLB_EJECTION_SUCCESS_RATE, &reason);
    }
}

static void plb__outlier_interval(void *user)
{
    plb_balancer *lb = (plb_balancer *)user;
    const plb_outlier_desc *desc = &lb->desc.outlier;
    const plb__set *set = (const plb__set *)lb->current;
    plb__rates rates;
    uint32_t i;
    plb_timer_set(&lb->timers, &lb->interval_timer, desc->interval_ms);
    plb__outlier_returns(lb); /* whose time is over at this very moment is not ejected any more */
    memset(&rates, 0, sizeof rates);
    for (i = 0; set != NULL && i < set->count; i++)
        if (PLB__LOAD_RELAXED(&set->slots[i]->index) == i) /* duplicates share a slot */
            plb__outlier_sample(lb, plb__slot_record(set->slots[i]), &rates);
    if (rates.count > 0 && rates.count >= desc->success_rate_backends && !desc->ignore_success_rate)
        plb__outlier_compare(lb, set, &rates);
}

/* At the end nobody is ejected any more. */
static void plb__outlier_forget(plb__mail *mail)
{
    PLB__STORE(&((plb__record *)(void *)mail)->told, PLB_EJECTION_NONE);
}

static void plb__outlier_resolve(plb_outlier_desc *outlier)
{
    outlier->consecutive_errors = plb__or(outlier->consecutive_errors, 5);
    outlier->consecutive_connect_errors = plb__or(outlier->consecutive_connect_errors, 5);
    outlier->interval_ms = plb__or(outlier->interval_ms, 10000);
    outlier->base_ejection_ms = plb__or(outlier->base_ejection_ms, 30000);
    outlier->max_ejection_ms = plb__or(outlier->max_ejection_ms, 300000);
    if (outlier->max_ejection_ms < outlier->base_ejection_ms)
        outlier->max_ejection_ms = outlier->base_ejection_ms;
    outlier->max_ejection_percent = plb__or(outlier->max_ejection_percent, 10);
    outlier->success_rate_backends = plb__or(outlier->success_rate_backends, 5);
    outlier->success_rate_requests = plb__or(outlier->success_rate_requests, 100);
    outlier->success_rate_stdev_factor = plb__or(outlier->success_rate_stdev_factor, 1900);
}

static plb_status plb__outlier_check(const plb_balancer *lb)
{
    if (lb->env.port.clock == NULL && lb->desc.outlier.on) {
        plb__log(lb, PLB_LOG_ERROR, "outlier detection needs port.clock", PLB_OK);
        return PLB_ERR_UNSUPPORTED;
    }
    if (lb->desc.outlier.max_ejection_percent > 100) {
        plb__log(lb, PLB_LOG_ERROR, "max_ejection_percent is above 100", PLB_OK);
        return PLB_ERR_ARGUMENT;
    }
    return PLB_OK;
}

static void plb__outlier_start(plb_balancer *lb)
{
    plb__timer_init(&lb->interval_timer, plb__outlier_interval, lb);
    plb__timer_init(&lb->return_timer, plb__outlier_returns, lb);
    if (plb__watches(lb))
        plb_timer_set(&lb->timers, &lb->interval_timer, lb->desc.outlier.interval_ms);
}

static void plb__record_fill(const plb_balancer *lb, const plb__record *record, plb_outlier_info *out)
{
    uint32_t passed = PLB__LOAD_RELAXED(&record->passed) - record->passed_before;
    uint32_t failed = PLB__LOAD_RELAXED(&record->failed) - record->failed_before;
    memset(out, 0, sizeof *out);
    out->requests = record->requests + passed + failed;
    out->failures = record->failures + failed;
    out->ejections = record->ejections;
    out->success_rate = record->rate;
    out->errors_in_a_row = PLB__LOAD_RELAXED(&record->errors);
    out->connect_errors_in_a_row = PLB__LOAD_RELAXED(&record->connect_errors);
    out->ejected = plb__record_is_ejected(record);
    if (out->ejected && record->back_ms > lb->timers.now_ms)
        out->back_ms = (uint32_t)(record->back_ms - lb->timers.now_ms);
}

PLB_API plb_status plb_find_outlier(plb_balancer *lb, const plb_addr *addr, uint32_t id, plb_outlier_info *out)
{
    const plb__set *set = (const plb__set *)lb->current;
    const plb__tier *tier = NULL;
    uint32_t index = set != NULL ? plb__set_find(set, addr, id, &tier) : PLB_NONE;
    if (lb->watches == 0)
        return PLB_ERR_UNSUPPORTED;
    if (index == PLB_NONE)
        return PLB_ERR_ADDRESS;
    plb__record_fill(lb, plb__slot_record(tier->view.slots[index]), out);
    return PLB_OK;
}
#else
PLB__INLINE void plb__outlier_absolve(plb_balancer *lb, const plb__result *r)
{
    (void)lb;
    (void)r;
}

PLB__INLINE void plb__outlier_suspected(plb_balancer *lb, plb__mail *mail)
{
    (void)lb;
    (void)mail;
}

PLB__INLINE void plb__outlier_forget(plb__mail *mail)
{
    (void)mail;
}

PLB__INLINE plb_status plb__outlier_check(const plb_balancer *lb)
{
    (void)lb;
    return PLB_OK;
}

PLB__INLINE void plb__outlier_start(plb_balancer *lb)
{
    (void)lb;
}
#endif

/* ==== BALANCER =======================================================================================================
   Creation, the schedule that plb_poll keeps, and the end. */

/* Empties the mailbox: changes join one queue, the rest another. */
static void plb__mail_sort(plb_balancer *lb)
{
    plb__mail *mail = plb__mail_take(&lb->mailbox);
    while (mail != NULL) {
        plb__mail *next = mail->next, ***end = &lb->completions_end;
        if (mail->kind == PLB__MAIL_CHANGE)
            PLB__IF_CHANGES(end = &lb->changes_end, (void)0);
        mail->next = NULL;
        **end = mail;
        *end = &mail->next;
        mail = next;
    }
}

/* Time-outs, and completions, that one poll sees to at a time, so that it stays short. */
#define PLB__ENDS_PER_POLL 256

static void plb__mail_read(plb_balancer *lb)
{
    uint32_t ends;
    plb__mail_sort(lb);
    for (ends = 0; ends < PLB__ENDS_PER_POLL && lb->completions != NULL; ends++) {
        plb__mail *mail = lb->completions;
        plb__op *op = (plb__op *)(void *)mail;
        lb->completions = mail->next;
        if (lb->completions == NULL)
            lb->completions_end = &lb->completions;
        if (mail->kind == PLB__MAIL_SUSPECT)
            plb__outlier_suspected(lb, mail);
        else if (op == plb__discovery_op(lb))
            PLB__IF_UPDATES(plb__discovery_answered(lb, op->report.status), (void)0);
        else
            plb__probe_over(lb, op, op->report.status);
    }
}

/* At the end: completions belong to what is freed later, what they keep is given back, and nobody is ejected any
   more. */
static void plb__mail_drop(plb_balancer *lb)
{
    plb__mail *mail;
    plb__mail_sort(lb);
    for (mail = lb->completions; mail != NULL; mail = mail->next) {
        plb__op *op = (plb__op *)(void *)mail;
        if (mail->kind == PLB__MAIL_SUSPECT)
            plb__outlier_forget(mail);
        else if (op != plb__discovery_op(lb) && plb__op_keeps(op))
            lb->checks[op->check].what.ops->cancel(lb->checks[op->check].state, plb__op_probe(op), plb__op_token(op));
    }
}

#ifndef PLB_NO_UPDATES
static void plb__discover(plb_balancer *lb)
{
    PLB__IF_CHANGES(plb__changes_apply(lb), (void)0);
    if (plb__discovery_can_start(lb))
        plb__discovery_start(lb);
    plb__mail_read(lb); /* what completed at once */
}
#endif

static void plb__check_all(plb_balancer *lb)
{
    if (PLB__IF_UPDATES(!lb->first_update_over, false))
        return;
    plb__probes_start(lb);
    plb__mail_read(lb); /* what completed at once */
    if (lb->first_checks_over || lb->unknown > 0)
        return;
    lb->first_checks_over = true;
    if (lb->desc.on_first_checks != NULL)
        lb->desc.on_first_checks(lb->desc.user, lb);
}

/* Is there something to do at once? */
static bool plb__is_busy(plb_balancer *lb)
{
    if (PLB__LOAD(&lb->mailbox) != 0 || PLB__LOAD(&lb->wanted) != 0 || lb->completions != NULL)
        return true;
    if (PLB__IF_UPDATES(plb__discovery_can_start(lb), false))
        return true;
    if (PLB__IF_CHANGES(lb->discovery == NULL && lb->changes != NULL && !lb->changes_stalled, false))
        return true;
    return plb__probe_can_start(lb);
}

#ifndef PLB_NO_DRAW
/* Sees to what threads that had their hands full left behind. */
static void plb__lists_catch_up(plb_balancer *lb)
{
    plb__set *set = (plb__set *)lb->current;
    uint32_t t;
    for (t = 0; set != NULL && t < plb__set_tiers(set); t++)
        if (PLB__LOAD_RELAXED(&set->tiers[t].view.list_behind) != 0)
            plb__list_changed(&set->tiers[t].view, 0);
}
#endif

/* Until the next timer, or the next probe if it may start then. */
static uint32_t plb__delay(const plb_balancer *lb)
{
    uint32_t delay = plb_timers_delay(&lb->timers);
    uint64_t probe_ms;
    if (lb->scheduled == 0 || lb->probes >= lb->desc.parallel_checks)
        return delay;
    probe_ms = plb__schedule_first_ms(lb);
    probe_ms = probe_ms > lb->timers.now_ms ? probe_ms - lb->timers.now_ms : 0;
    return probe_ms < delay ? (uint32_t)probe_ms : delay;
}

PLB_API uint32_t plb_poll(plb_balancer *lb)
{
    uint32_t delay;
    uintptr_t wanted = plb__exchange(&lb->wanted, 0);
    if (lb->env.port.clock != NULL) {
        plb_timers_update(&lb->timers, lb->env.port.clock);
        plb__timers_run_some(&lb->timers, PLB__ENDS_PER_POLL);
    }
    if ((wanted & PLB__WANT_READ) != 0)
        PLB__IF_EXCHANGE(plb__exchanges_go_on(lb), (void)0);
    PLB__IF_UPDATES(lb->update_due = lb->update_due || (wanted & PLB__WANT_UPDATE) != 0, (void)0);
    plb__mail_read(lb);
    if ((wanted & PLB__WANT_CHECK) != 0)
        PLB__IF_CHECK_LIST(plb__schedule_all(lb), (void)0);
    PLB__IF_DRAW(plb__lists_catch_up(lb), (void)0);
    PLB__IF_UPDATES(plb__reclaim(lb), (void)0);
    PLB__IF_UPDATES(plb__discover(lb), (void)0);
    plb__check_all(lb);
    delay = plb__delay(lb);
    if (PLB__IF_UPDATES(plb__reclaim(lb), false) && delay > PLB__WAIT_READERS_MS)
        delay = PLB__WAIT_READERS_MS;
    return plb__is_busy(lb) ? 0 : delay;
}

static uint32_t plb__task_poll(void *user)
{
    return plb_poll((plb_balancer *)user);
}

PLB_API plb_task *plb_balancer_task(plb_balancer *lb)
{
    return &lb->task;
}

#ifndef PLB_NO_UPDATES
static void plb__discovery_resolve(plb_discovery *discovery)
{
    if (discovery->ops == NULL)
        *discovery = plb_static(NULL);
    discovery->timeout_ms = plb__or(discovery->timeout_ms, 5000);
}
#endif

/* The one place where zero becomes a default. */
static void plb__desc_resolve(plb_balancer_desc *desc)
{
    if (desc->strategy.ops == NULL)
        desc->strategy = plb_round_robin();
    PLB__IF_UPDATES(plb__discovery_resolve(&desc->discovery), (void)0);
    desc->parallel_checks = plb__or(desc->parallel_checks, 64);
    PLB__IF_OUTLIER(plb__outlier_resolve(&desc->outlier), (void)0);
    PLB__IF_LOG(desc->log_level = desc->log_level == PLB_LOG_NONE ? PLB_LOG_INFO : desc->log_level, (void)0);
}

static void plb__check_resolve(plb_check *check, uint32_t every_ms)
{
    check->timeout_ms = plb__or(check->timeout_ms, 1000);
    check->consecutive_success = plb__or(check->consecutive_success, 1);
    check->consecutive_failure = plb__or(check->consecutive_failure, 1);
    check->every_ms = plb__or(check->every_ms, every_ms);
}

#ifndef PLB_NO_LOG
/* Room for the lines of the log, where somebody listens. */
static plb_status plb__line_take(plb_balancer *lb)
{
    if (lb->desc.log == NULL)
        return PLB_OK;
    lb->line = (plb__line *)plb__new(&lb->env.allocator, sizeof *lb->line);
    return lb->line != NULL ? PLB_OK : PLB_ERR_MEMORY;
}
#endif

#ifndef PLB_NO_METRICS
/* Copies the name. */
static plb_status plb__name_take(plb_balancer *lb, const char *name)
{
    size_t size = plb__name_size(name);
    char *copy = NULL;
    if (size > 0)
        copy = (char *)plb__new(&lb->env.allocator, size);
    lb->desc.name = copy;
    if (size > 0 && copy == NULL)
        return PLB_ERR_MEMORY;
    if (size > 0)
        memcpy(copy, name, size);
    return PLB_OK;
}
#endif

/* Copies the checks. */
static plb_status plb__checks_take(plb_balancer *lb, const plb_balancer_desc *desc)
{
    uint32_t first = desc->check.ops != NULL, c;
    size_t more = PLB__IF_CHECK_LIST(desc->check_count, 0);
    if (more > PLB_CHECKS_MAX - first) {
        plb__log(lb, PLB_LOG_ERROR, "more checks than PLB_CHECKS_MAX", PLB_OK);
        return PLB_ERR_ARGUMENT;
    }
    if (first + more == 0)
        return PLB_OK;
    lb->checks = (plb__check *)plb__new(&lb->env.allocator, (first + more) * sizeof *lb->checks);
    if (lb->checks == NULL)
        return PLB_ERR_MEMORY;
    lb->check_count = first + (uint32_t)more;
    for (c = 0; c < lb->check_count; c++) {
        lb->checks[c].what = PLB__IF_CHECK_LIST(c < first ? desc->check : desc->checks[c - first], desc->check);
        plb__check_resolve(&lb->checks[c].what, desc->check_every_ms);
    }
    return PLB_OK;
}

static plb_status plb__check_check(const plb_balancer *lb, const plb_check *check)
{
    bool timed = check->every_ms > 0 || PLB__IF_CHECK_LIST(check->fast_every_ms > 0 || check->down_every_ms > 0, false);
    if (check->ops == NULL) {
        plb__log(lb, PLB_LOG_ERROR, "a check has no ops", PLB_OK);
        return PLB_ERR_ARGUMENT;
    }
    if (check->consecutive_success > UINT16_MAX || check->consecutive_failure > UINT16_MAX) {
        plb__log(lb, PLB_LOG_ERROR, "consecutive_success or consecutive_failure is above 65535", PLB_OK);
        return PLB_ERR_ARGUMENT;
    }
    if (PLB__IF_CHECK_LIST(check->jitter_percent > 100, false)) {
        plb__log(lb, PLB_LOG_ERROR, "jitter_percent is above 100", PLB_OK);
        return PLB_ERR_ARGUMENT;
    }
    if (lb->env.port.clock == NULL && timed) {
        plb__log(lb, PLB_LOG_ERROR, "intervals of checks need port.clock", PLB_OK);
        return PLB_ERR_UNSUPPORTED;
    }
    return PLB_OK;
}

static plb_status plb__desc_check(const plb_balancer *lb)
{
    const plb_balancer_desc *desc = &lb->desc;
    plb_status status = PLB_OK;
    bool timed = desc->check_every_ms > 0 || PLB__IF_SHARES(desc->slow_start_ms > 0, false) ||
                 PLB__IF_UPDATES(desc->update_every_ms > 0, false);
    uint32_t c;
    if (desc->start_unhealthy && lb->check_count == 0) {
        plb__log(lb, PLB_LOG_ERROR, "start_unhealthy needs a check, or no backend would ever be ready", PLB_OK);
        return PLB_ERR_ARGUMENT;
    }
    if (lb->env.port.clock == NULL && timed) {
        plb__log(lb, PLB_LOG_ERROR, "update_every_ms, check_every_ms and slow_start_ms need port.clock", PLB_OK);
        return PLB_ERR_UNSUPPORTED;
    }
    if (PLB__IF_TIERS(desc->panic_percent > 100, false)) {
        plb__log(lb, PLB_LOG_ERROR, "panic_percent is above 100", PLB_OK);
        return PLB_ERR_ARGUMENT;
    }
    status = plb__outlier_check(lb);
    for (c = 0; c < lb->check_count && status == PLB_OK; c++)
        status = plb__check_check(lb, &lb->checks[c].what);
    return status;
}

/* Gives an extension its state and opens it. */
static plb_status plb__open(plb_balancer *lb, const char *kind, const char *name, size_t state_size,
                            plb_status (*open)(void *state, const void *desc, const plb_env *env), const void *desc,
                            void **state)
{
    plb_status status = PLB_OK;
    plb__text *line;
    *state = plb__new(&lb->env.allocator, state_size > 0 ? state_size : 1);
    if (*state == NULL)
        return PLB_ERR_MEMORY;
    if (open != NULL)
        status = open(*state, desc, &lb->env);
    line = status != PLB_OK ? plb__log_begin(lb, PLB_LOG_ERROR, kind) : NULL;
    if (line != NULL) {
        plb__put_char(line, ' ');
        plb__put(line, name);
        plb__put(line, " cannot start: ");
        plb__put(line, plb__words_of(status));
        plb__log_end(lb);
    }
    return status;
}

static void plb__close(plb_balancer *lb, size_t state_size, void (*close)(void *state), void *state)
{
    if (state == NULL)
        return;
    if (close != NULL)
        close(state);
    plb__delete(&lb->env.allocator, state, state_size > 0 ? state_size : 1);
}

#ifndef PLB_NO_UPDATES
static plb_status plb__discovery_open(plb_balancer *lb)
{
    const plb_discovery *discovery = &lb->desc.discovery;
    lb->update.status = PLB_AGAIN;
    plb__timer_init(&lb->update_timer, plb__update_due, lb);
    return plb__open(lb, "discovery", discovery->ops->name, discovery->ops->state_size, discovery->ops->open,
                     discovery->desc, &lb->discovery_state);
}

#else
PLB__INLINE plb_status plb__discovery_open(plb_balancer *lb)
{
    return plb__static_apply(lb);
}
#endif

static plb_status plb__open_all(plb_balancer *lb)
{
    const plb_balancer_desc *desc = &lb->desc;
    plb_status status = plb__desc_check(lb);
    uint32_t c;
    if (status == PLB_OK)
        status = plb__open(lb, "strategy", desc->strategy.ops->name, desc->strategy.ops->state_size,
                           desc->strategy.ops->open, desc->strategy.desc, &lb->strategy_state);
    for (c = 0; c < lb->check_count && status == PLB_OK; c++) {
        plb__check *check = &lb->checks[c];
        status = plb__open(lb, "check", check->what.ops->name, check->what.ops->state_size, check->what.ops->open,
                           check->what.desc, &check->state);
    }
    return status == PLB_OK ? plb__discovery_open(lb) : status;
}

#ifndef PLB_NO_TICK
/* Lets the strategy do what it does from time to time. */
static void plb__strategy_tick(void *user)
{
    plb_balancer *lb = (plb_balancer *)user;
    plb__set *set = (plb__set *)lb->current;
    uint32_t t;
    if (lb->strategy->tick == NULL || lb->env.port.clock == NULL)
        return;
    plb_timer_set(&lb->timers, &lb->tick_timer, lb->strategy->tick_ms);
    for (t = 0; set != NULL && t < plb__set_tiers(set); t++)
        if (set->tiers[t].view.count > 0)
            lb->strategy->tick(lb->strategy_state, set->tiers[t].table, &set->tiers[t].view);
}
#endif

/* Every cell has random numbers of its own, so that drawing one costs no atomic operation. */
static void plb__seed_readers(plb_balancer *lb)
{
    uint32_t i;
    if (lb->env.port.random != NULL)
        lb->env.port.random->fill(lb->env.port.random->self, &lb->seed, sizeof lb->seed);
    for (i = 0; i < sizeof lb->cells / sizeof *lb->cells; i++)
        lb->cells[i].reader.random = PLB__IF_DRAW(plb__mix(lb->seed + i), lb->seed + i);
#ifdef PLB_NO_THREADS
    lb->cells[0].reader.own_turn = true; /* there is no other that could share it */
#endif
}

PLB_API plb_status plb_create(const plb_balancer_desc *desc, plb_balancer **out)
{
    plb_allocator allocator = plb_allocator_or_default(desc->allocator);
    plb_balancer *lb = (plb_balancer *)plb__new(&allocator, sizeof *lb);
    plb_status status;
    *out = NULL;
    if (lb == NULL)
        return PLB_ERR_MEMORY;
    lb->desc = *desc;
    plb__desc_resolve(&lb->desc);
    lb->strategy = lb->desc.strategy.ops;
    lb->watches = PLB__IF_OUTLIER(desc->outlier.on, 0);
    lb->env.port = desc->port;
    lb->env.allocator = allocator;
    lb->env.balancer = lb;
    lb->task.poll = plb__task_poll;
    lb->task.user = lb;
    PLB__IF_CHANGES(lb->changes_end = &lb->changes, (void)0);
    lb->completions_end = &lb->completions;
    PLB__IF_TICK(plb__timer_init(&lb->tick_timer, plb__strategy_tick, lb), (void)0);
    PLB__IF_SHARES(plb__timer_init(&lb->ramp_timer, plb__ramp_go_on, lb), (void)0);
    if (lb->env.port.clock != NULL)
        plb_timers_update(&lb->timers, lb->env.port.clock);
    lb->epoch_ms = lb->timers.now_ms;
    plb__seed_readers(lb);
    PLB__IF_CHECK_LIST(lb->jitter = lb->seed, (void)0);
    status = PLB__IF_METRICS(plb__name_take(lb, desc->name), PLB_OK);
    if (status == PLB_OK)
        status = PLB__IF_LOG(plb__line_take(lb), PLB_OK);
    if (status == PLB_OK)
        status = plb__checks_take(lb, desc);
    if (status == PLB_OK)
        status = plb__open_all(lb);
    if (status != PLB_OK) {
        plb_destroy(lb);
        return status;
    }
    *out = lb;
    PLB__IF_TICK(plb__strategy_tick(lb), (void)0);
    plb__outlier_start(lb);
    PLB__IF_UPDATES(plb__discovery_start(lb), (void)0);
    plb__mail_read(lb);
    return PLB_OK;
}

/* Calls off what is in flight. */
static void plb__cancel_all(plb_balancer *lb)
{
    plb__op *op;
    for (op = lb->running; op != NULL; op = op->next_running) {
        plb_token token = plb__op_token(op);
        if (plb__op_claim(token) == NULL)
            continue; /* it has completed, and nobody will look at it */
        if (op == plb__discovery_op(lb))
            PLB__IF_UPDATES(lb->desc.discovery.ops->cancel(lb->discovery_state, token), (void)0);
        else
            lb->checks[op->check].what.ops->cancel(lb->checks[op->check].state, plb__op_probe(op), token);
    }
}

static void plb__set_drop_kept(plb_balancer *lb, const plb__set *set)
{
    uint32_t i;
    for (i = 0; set != NULL && i < set->count; i++)
        plb__slot_drop_kept(lb, set->slots[i]);
}

/* Closes the checks, with which the last completions come, if any. */
static void plb__checks_close(plb_balancer *lb)
{
    uint32_t c;
    plb__set_drop_kept(lb, (const plb__set *)lb->current);
    for (c = 0; c < lb->check_count; c++) {
        const plb_check_ops *ops = lb->checks[c].what.ops;
        if (ops != NULL)
            plb__close(lb, ops->state_size, ops->close, lb->checks[c].state);
    }
}

#ifndef PLB_NO_UPDATES
static void plb__discovery_free(plb_balancer *lb, plb__op *op)
{
    if (op->answer != NULL) {
        plb__update_refuse(lb, op->answer);
        plb__delete(&lb->env.allocator, op->answer, op->answer->size);
    }
    plb__op_delete(lb, op, 0);
}
#endif

/* Frees what was in flight, once no completion can be on its way any more. */
static void plb__free_running(plb_balancer *lb)
{
    while (lb->running != NULL) {
        plb__op *op = lb->running;
        plb__op_stop(lb, op);
        if (op == plb__discovery_op(lb)) {
            PLB__IF_UPDATES(plb__discovery_free(lb, op), (void)0);
        } else {
            plb__slot_let_go(lb, op->slot);
            plb__op_delete(lb, op, lb->checks[op->check].what.ops->probe_size);
        }
    }
}

#ifndef PLB_NO_UPDATES
/* Nothing is asked any more; what was asked for, and what came of it, goes. */
static void plb__discovery_end(plb_balancer *lb)
{
    const plb_discovery_ops *ops = lb->desc.discovery.ops;
    if (lb->discovery != NULL && ops->applied != NULL)
        ops->applied(lb->discovery_state, PLB_ERR_CANCELLED);
    plb__mail_drop(lb);
    PLB__IF_CHANGES(plb__changes_end(lb), (void)0);
    plb__close(lb, ops->state_size, ops->close, lb->discovery_state);
}

/* All sets but the current one. */
static void plb__retired_free(plb_balancer *lb)
{
    int i;
    for (i = 0; i < 2; i++) {
        if (lb->retired[i] != NULL)
            plb__set_delete(lb, lb->retired[i]);
        lb->retired[i] = NULL;
    }
}

static void plb__numbers_free(plb_balancer *lb)
{
    plb__delete(&lb->env.allocator, lb->free_numbers, lb->numbers_capacity * sizeof *lb->free_numbers);
}
#endif

static void plb__free_tickets(plb_balancer *lb)
{
    while (lb->tickets != NULL) {
        plb__tickets *tickets = lb->tickets;
        lb->tickets = tickets->next;
        plb__delete(&lb->env.allocator, tickets, sizeof *tickets);
    }
}

/* Slots with requests in flight go with the last of them. */
static void plb__orphan_departed(plb_balancer *lb)
{
    while (lb->departed != NULL) {
        plb__slot *slot = lb->departed;
        lb->departed = slot->u.control.next_departed;
        slot->u.estate = lb->env.allocator;
        plb__fetch_add(&slot->in_flight, PLB__ORPHANED);
    }
}

PLB_API void plb_destroy(plb_balancer *lb)
{
    plb_allocator allocator;
    if (lb == NULL)
        return;
    allocator = lb->env.allocator;
    plb__cancel_all(lb);
    PLB__IF_UPDATES(plb__discovery_end(lb), plb__mail_drop(lb));
    plb__checks_close(lb);
    plb__free_running(lb);
    PLB__IF_UPDATES(plb__retired_free(lb), (void)0);
    if (lb->current != 0)
        plb__set_delete(lb, (plb__set *)lb->current);
    plb__close(lb, lb->strategy->state_size, lb->strategy->close, lb->strategy_state);
    PLB__IF_UPDATES((void)plb__reclaim(lb), (void)0);
    plb__orphan_departed(lb);
    PLB__IF_HANDLES(plb__handles_free(lb), (void)0);
    plb__free_tickets(lb);
    PLB__IF_EXCHANGE(plb__delete(&allocator, lb->scratch, PLB_EXCHANGE_SIZE), (void)0);
    PLB__IF_LOG(plb__delete(&allocator, lb->line, sizeof *lb->line), (void)0);
    plb__delete(&allocator, lb->schedule, lb->schedule_capacity * sizeof *lb->schedule);
    plb__delete(&allocator, lb->checks, lb->check_count * sizeof *lb->checks);
    PLB__IF_METRICS(plb__delete(&allocator, (void *)(uintptr_t)lb->desc.name, plb__name_size(lb->desc.name)), (void)0);
    PLB__IF_UPDATES(plb__numbers_free(lb), (void)0);
    plb__delete(&allocator, lb, sizeof *lb);
}

/* ==== METRICS ========================================================================================================
   Prometheus text, one metric after another; of each, one sample after another. */

#ifndef PLB_NO_METRICS
enum {
    PLB__METRIC_GAUGE,
    PLB__METRIC_COUNTER,
    PLB__METRIC_MICROSECONDS,
    PLB__METRIC_SHARE,
    PLB__METRIC_STATUS
}; /* how values are written; all but the counter are gauges */

/* Of what a metric has a sample: a balancer; a balancer, by counting through its set; a backend in a tier, for what
   depends on its weight; a backend; one of its checks; one of its checks, once it has a result. */
enum { PLB__OF_BALANCER, PLB__OF_SET, PLB__OF_MEMBER, PLB__OF_BACKEND, PLB__OF_RECORD, PLB__OF_CHECK, PLB__OF_RESULT };

enum { PLB__RESULT_NONE, PLB__RESULT_PASSED, PLB__RESULT_FAILED }; /* a metric's label */

/* One sample: whose it is, and what is known of it. */
typedef struct plb__sample {
    const plb_balancer *lb;
    uint32_t ready, healthy, ejected, retired; /* of a set: backends; sets before it that are read */
    plb_backend_info info;
#ifndef PLB_NO_OUTLIER
    plb_outlier_info outlier;
#endif
    uint32_t check;
    plb_probe_info probe;
} plb__sample;

typedef struct plb__metric {
    uint8_t of, unit, result;
    uint8_t size;     /* of the number, */
    uint32_t offset;  /* which is there in the balancer, or in the sample */
    const char *name; /* without plb_; the same as the row's before: another sample of that metric */
    const char *help;
} plb__metric;

#define PLB__MEMBER(type, member)    (uint8_t)sizeof(((type *)0)->member), (uint32_t)offsetof(type, member)
#define PLB__METRIC(of, unit, value) PLB__OF_##of, PLB__METRIC_##unit, PLB__RESULT_NONE, value
#define PLB__IN_BALANCER(member)     PLB__MEMBER(plb_balancer, member)
#define PLB__IN_SAMPLE(member)       PLB__MEMBER(plb__sample, member)

static const plb__metric plb__metric_rows[] = {
    {PLB__METRIC(BALANCER, GAUGE, PLB__IN_BALANCER(update.backends)), "backends", "Backends in the set."},
    {PLB__METRIC(SET, GAUGE, PLB__IN_SAMPLE(ready)), "backends_ready", "Backends in the set that may be picked now."},
    {PLB__METRIC(SET, GAUGE, PLB__IN_SAMPLE(healthy)), "backends_healthy",
     "Backends in the set whose checks all pass."},
#ifndef PLB_NO_OUTLIER
    {PLB__METRIC(SET, GAUGE, PLB__IN_SAMPLE(ejected)), "backends_ejected",
     "Backends in the set that are taken out for what requests met with."},
#endif
    {PLB__METRIC(BALANCER, COUNTER, PLB__IN_BALANCER(update.updates)), "updates_total",
     "Answers of the discovery that were applied, those that changed nothing too."},
    {PLB__METRIC(BALANCER, COUNTER, PLB__IN_BALANCER(update.failures)), "update_failures_total",
     "Discoveries that failed, and answers that were refused."},
    {PLB__METRIC(BALANCER, COUNTER, PLB__IN_BALANCER(update.changes)), "set_changes_total", "Sets published."},
    {PLB__METRIC(BALANCER, STATUS, PLB__IN_BALANCER(update.status)), "update_last_status",
     "How the last update went, as a label."},
    {PLB__METRIC(BALANCER, MICROSECONDS, PLB__IN_BALANCER(update.discovery_us)), "discovery_duration_seconds",
     "How long the last discovery took to answer."},
    {PLB__METRIC(BALANCER, MICROSECONDS, PLB__IN_BALANCER(update.build_us)), "build_duration_seconds",
     "How long the last answer took to compare, build and publish."},
    {PLB__METRIC(BALANCER, GAUGE, PLB__IN_BALANCER(probes)), "probes_in_flight", "Probes in flight."},
    {PLB__METRIC(SET, GAUGE, PLB__IN_SAMPLE(retired)), "retired_sets", "Earlier sets that somebody still reads."},
    {PLB__METRIC(MEMBER, GAUGE, PLB__IN_SAMPLE(info.ready)), "backend_ready", "1: it may be picked now."},
#ifndef PLB_NO_WEIGHTS
    {PLB__METRIC(MEMBER, GAUGE, PLB__IN_SAMPLE(info.backend.weight)), "backend_weight", "Its weight in its tier."},
#endif
    {PLB__METRIC(BACKEND, GAUGE, PLB__IN_SAMPLE(info.healthy)), "backend_healthy", "1: all of its checks pass."},
    {PLB__METRIC(BACKEND, GAUGE, PLB__IN_SAMPLE(info.enabled)), "backend_enabled", "0: it is switched off."},
#ifndef PLB_NO_OUTLIER
    {PLB__METRIC(BACKEND, GAUGE, PLB__IN_SAMPLE(info.ejected)), "backend_ejected",
     "1: it is taken out for what requests met with."},
#endif
#ifndef PLB_NO_SHARES
    {PLB__METRIC(BACKEND, GAUGE, PLB__IN_SAMPLE(info.advised_off)), "backend_advised_off",
     "1: its agent wants no new requests."},
    {PLB__METRIC(BACKEND, SHARE, PLB__IN_SAMPLE(info.share)), "backend_share_ratio",
     "How much of its weight counts, as it starts slowly or as its agent advises."},
#endif
    {PLB__METRIC(BACKEND, GAUGE, PLB__IN_SAMPLE(info.in_flight)), "backend_requests_in_flight",
     "Requests that began and have not ended."},
    {PLB__METRIC(BACKEND, COUNTER, PLB__IN_SAMPLE(info.flips)), "backend_flips_total",
     "How often it became healthy or unhealthy."},
#ifndef PLB_NO_OUTLIER
    {PLB__METRIC(RECORD, COUNTER, PLB__IN_SAMPLE(outlier.requests)), "backend_requests_total",
     "Requests that ended, but for those that were called off."},
    {PLB__METRIC(RECORD, COUNTER, PLB__IN_SAMPLE(outlier.failures)), "backend_request_failures_total",
     "Requests that found no connection, broke, or were answered with a server error."},
    {PLB__METRIC(RECORD, COUNTER, PLB__IN_SAMPLE(outlier.ejections)), "backend_ejections_total",
     "How often it was taken out for what requests met with."},
#endif
    {PLB__METRIC(CHECK, GAUGE, PLB__IN_SAMPLE(probe.passing)), "check_passing", "1: the check passes."},
    {PLB__OF_CHECK, PLB__METRIC_COUNTER, PLB__RESULT_PASSED, PLB__IN_SAMPLE(probe.passed), "check_probes_total",
     "Probes by their result."},
    {PLB__OF_CHECK, PLB__METRIC_COUNTER, PLB__RESULT_FAILED, PLB__IN_SAMPLE(probe.failed), "check_probes_total", NULL},
    {PLB__METRIC(CHECK, STATUS, PLB__IN_SAMPLE(probe.status)), "check_last_status",
     "How the last probe went, as a label."},
    {PLB__METRIC(RESULT, GAUGE, PLB__IN_SAMPLE(probe.code)), "check_last_code",
     "The protocol's own number for the last probe's result (HTTP status, ...); 0: none."},
    {PLB__METRIC(RESULT, MICROSECONDS, PLB__IN_SAMPLE(probe.latency_us)), "check_last_duration_seconds",
     "How long the last probe took."},
};

#define PLB__METRIC_ROWS (sizeof plb__metric_rows / sizeof *plb__metric_rows)

/* The text, and what stands before the next label. */
typedef struct plb__metrics {
    plb__text text;
    char before;
} plb__metrics;

/* What the metrics of a set say, but for the number of its backends. */
static void plb__metric_count(plb__sample *sample)
{
    const plb_balancer *lb = sample->lb;
    const plb__set *set = (const plb__set *)lb->current;
    uint32_t t, i;
    sample->ready = sample->healthy = sample->ejected = 0;
    sample->retired = (lb->retired[0] != NULL ? 1u : 0u) + (lb->retired[1] != NULL ? 1u : 0u);
    for (t = 0; set != NULL && t < plb__set_tiers(set); t++) {
        const plb_view *view = &set->tiers[t].view;
        for (i = 0; i < view->count; i++) {
            uint32_t flags = PLB__LOAD(&view->slots[i]->flags);
            sample->ready += plb__view_ready(view, i);
            sample->healthy += (flags & PLB__UNHEALTHY) == 0;
            sample->ejected += (flags & PLB__EJECTED) != 0;
        }
    }
}

static uint64_t plb__metric_number(const plb__metric *m, const plb__sample *sample)
{
    const char *at = (m->of == PLB__OF_BALANCER ? (const char *)sample->lb : (const char *)sample) + m->offset;
    uint8_t byte;
    uint16_t half;
    uint32_t word;
    uint64_t number;
    if (m->size == sizeof byte) {
        memcpy(&byte, at, sizeof byte);
        return byte;
    }
    if (m->size == sizeof half) {
        memcpy(&half, at, sizeof half);
        return half;
    }
    if (m->size == sizeof word) {
        memcpy(&word, at, sizeof word);
        return word;
    }
    memcpy(&number, at, sizeof number);
    return number;
}

/* A status as a label's value. */
static const char *plb__metric_status(uint64_t status)
{
    static const char *const names[PLB_STATUS_COUNT] = {
        "ok",        "pending", "end",         "argument",  "address",   "weight",   "points",
        "memory",    "limit",   "unsupported", "empty",     "not_ready", "refused",  "unreachable",
        "reset",     "timeout", "name",        "in_use",    "access",    "protocol", "answer",
        "truncated", "tls",     "certificate", "cancelled", "io"};
    return status < PLB_STATUS_COUNT ? names[status] : "unknown";
}

/* Bytes of the UTF-8 sequence of two bytes or more that begins here; 0: there is none (RFC 3629 section 4). */
static size_t plb__utf8_length(const char *bytes, size_t size)
{
    static const uint32_t least[] = {0x80, 0x800, 0x10000};
    uint32_t lead = (uint8_t)bytes[0], more = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1, i, code;
    if (lead < 0xc2 || lead > 0xf4 || more >= size)
        return 0;
    code = lead & (0x3fu >> more);
    for (i = 1; i <= more; i++) {
        if (((uint8_t)bytes[i] & 0xc0) != 0x80)
            return 0;
        code = code << 6 | ((uint8_t)bytes[i] & 0x3fu);
    }
    return code < least[more - 1] || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff) ? 0 : more + 1;
}

/* Puts what stands for a byte in a label's value. */
static void plb__metric_put_byte(plb__text *text, uint8_t byte)
{
    if (byte == '\n') {
        plb__put(text, "\\n");
    } else if (byte == '"' || byte == '\\') {
        plb__put_char(text, '\\');
        plb__put_char(text, (char)byte);
    } else if (byte < 0x20 || byte >= 0x7f) {
        plb__put(text, byte < 0x10 ? "\\\\x0" : "\\\\x");
        plb__put_number(text, byte, 16);
    } else {
        plb__put_char(text, (char)byte);
    }
}

static void plb__metric_label(plb__metrics *out, const char *name, const char *value, size_t size)
{
    size_t i = 0;
    plb__put_char(&out->text, out->before);
    out->before = ',';
    plb__put(&out->text, name);
    plb__put(&out->text, "=\"");
    while (i < size) {
        size_t length = (uint8_t)value[i] >= 0x80 ? plb__utf8_length(value + i, size - i) : 0;
        if (length == 0)
            plb__metric_put_byte(&out->text, (uint8_t)value[i++]);
        for (; length > 0; length--)
            plb__put_char(&out->text, value[i++]);
    }
    plb__put_char(&out->text, '"');
}

static void plb__metric_text_label(plb__metrics *out, const char *name, const char *value)
{
    if (value != NULL)
        plb__metric_label(out, name, value, strlen(value));
}

static void plb__metric_number_label(plb__metrics *out, const char *name, uint64_t number)
{
    char digits[24];
    plb__text text = plb__text_in(digits, sizeof digits);
    plb__put_number(&text, number, 10);
    plb__metric_label(out, name, digits, text.length);
}

static void plb__metric_backend_labels(plb__metrics *out, const plb__metric *m, const plb_backend *backend)
{
    char addr[PLB_ADDR_TEXT_MAX];
    size_t length = plb_addr_format(&backend->addr, addr, sizeof addr);
    plb__metric_label(out, "address", addr, length);
    if (backend->id != 0)
        plb__metric_number_label(out, "id", backend->id);
    plb__metric_text_label(out, "name", plb__name_of(backend));
    if (m->of == PLB__OF_MEMBER)
        plb__metric_number_label(out, "priority", plb__priority_of(backend));
}

/* A number of parts of a whole, which is a power of ten, as a decimal fraction. */
static void plb__put_fraction(plb__text *text, uint64_t parts, uint32_t whole)
{
    char digits[24];
    plb__text rest = plb__text_in(digits, sizeof digits);
    plb__put_number(text, parts / whole, 10);
    plb__put_number(&rest, whole + parts % whole, 10); /* with all its zeros, behind a one */
    digits[0] = '.';
    plb__put(text, digits);
}

static void plb__metric_value(plb__metrics *out, const plb__metric *m, uint64_t value)
{
    if (m->unit == PLB__METRIC_STATUS) {
        plb__metric_text_label(out, "status", plb__metric_status(value));
        value = 1;
    }
    if (out->before == ',')
        plb__put_char(&out->text, '}');
    plb__put_char(&out->text, ' ');
    if (m->unit == PLB__METRIC_MICROSECONDS)
        plb__put_fraction(&out->text, value, 1000000);
    else if (m->unit == PLB__METRIC_SHARE)
        plb__put_fraction(&out->text, ((uint32_t)value * 1000 + PLB__SHARE_ALL / 2) / PLB__SHARE_ALL, 1000);
    else
        plb__put_number(&out->text, value, 10);
    plb__put_char(&out->text, '\n');
}

static void plb__metric_sample(plb__metrics *out, const plb__metric *m, const plb__sample *sample)
{
    plb__put(&out->text, "plb_");
    plb__put(&out->text, m->name);
    out->before = '{';
    plb__metric_text_label(out, "balancer", sample->lb->desc.name);
    if (m->of > PLB__OF_SET)
        plb__metric_backend_labels(out, m, &sample->info.backend);
    if (m->of >= PLB__OF_CHECK) {
        plb__metric_number_label(out, "check", sample->check);
        plb__metric_text_label(out, "kind", sample->lb->checks[sample->check].what.ops->name);
    }
    if (m->result != PLB__RESULT_NONE)
        plb__metric_text_label(out, "result", m->result == PLB__RESULT_PASSED ? "passed" : "failed");
    plb__metric_value(out, m, plb__metric_number(m, sample));
}

/* Requests are counted where outlier detection is on. */
static void plb__metric_record(plb__metrics *out, const plb__metric *m, plb__sample *sample, plb__slot *slot)
{
    if (!plb__watches(sample->lb))
        return;
    PLB__IF_OUTLIER(plb__record_fill(sample->lb, plb__slot_record(slot), &sample->outlier), (void)slot);
    plb__metric_sample(out, m, sample);
}

static void plb__metric_checks(plb__metrics *out, const plb__metric *m, plb__sample *sample, plb__slot *slot)
{
    for (sample->check = 0; sample->check < sample->lb->check_count; sample->check++) {
        const plb__vital *vital = &plb__slot_vitals(slot)[sample->check];
        if (plb__is_absent(vital) || (m->of == PLB__OF_RESULT && vital->status == PLB_AGAIN))
            continue;
        plb__probe_fill(slot, vital, sample->check, &sample->probe);
        plb__metric_sample(out, m, sample);
    }
}

/* What differs only in weight stands side by side in a tier, and is one backend there: ready if one of them is. */
static void plb__metric_merge(const plb__tier *tier, uint32_t first, plb_backend_info *info)
{
    const plb_view *view = &tier->view;
    uint32_t i;
    for (i = first + 1; i < view->count && view->slots[i] == view->slots[first]; i++) {
        PLB__IF_WEIGHTS(info->backend.weight += view->weights[i], (void)0);
        info->ready = info->ready || plb__view_ready(view, i);
    }
}

/* An address may stand in several tiers, and in each several times: no two samples may have the same labels. */
static void plb__metric_tier(plb__metrics *out, const plb__metric *m, plb__sample *sample, const plb__tier *tier)
{
    const plb_view *view = &tier->view;
    uint32_t i;
    for (i = 0; i < view->count; i++) {
        plb__slot *slot = view->slots[i];
        bool skip = m->of == PLB__OF_MEMBER ? i > 0 && view->slots[i - 1] == slot
                                            : PLB__LOAD_RELAXED(&slot->index) != tier->start + i;
        if (skip)
            continue;
        plb__fill_info(tier, i, &sample->info);
        plb__metric_merge(tier, i, &sample->info);
        if (m->of == PLB__OF_MEMBER || m->of == PLB__OF_BACKEND)
            plb__metric_sample(out, m, sample);
        else if (m->of == PLB__OF_RECORD)
            plb__metric_record(out, m, sample, slot);
        else
            plb__metric_checks(out, m, sample, slot);
    }
}

/* One row of the table, for one balancer. */
static void plb__metric_row(plb__metrics *out, const plb__metric *m, const plb_balancer *lb)
{
    const plb__set *set = (const plb__set *)lb->current;
    plb__sample sample;
    uint32_t t;
    sample.lb = lb;
    if (m->of == PLB__OF_SET)
        plb__metric_count(&sample);
    if (m->of <= PLB__OF_SET) {
        plb__metric_sample(out, m, &sample);
        return;
    }
    for (t = 0; set != NULL && t < plb__set_tiers(set); t++)
        plb__metric_tier(out, m, &sample, &set->tiers[t]);
}

static void plb__metric_head(plb__metrics *out, const plb__metric *m)
{
    plb__put(&out->text, "# HELP plb_");
    plb__put(&out->text, m->name);
    plb__put_char(&out->text, ' ');
    plb__put(&out->text, m->help);
    plb__put(&out->text, "\n# TYPE plb_");
    plb__put(&out->text, m->name);
    plb__put(&out->text, m->unit == PLB__METRIC_COUNTER ? " counter\n" : " gauge\n");
}

PLB_API size_t plb_metrics_of(plb_balancer *const *balancers, size_t count, char *text, size_t capacity)
{
    plb__metrics out;
    size_t row, i;
    out.text = plb__text_in(text, capacity);
    for (row = 0; row < PLB__METRIC_ROWS; row++) {
        const plb__metric *m = &plb__metric_rows[row];
        if (m->help != NULL)
            plb__metric_head(&out, m);
        for (i = 0; i < count; i++)
            plb__metric_row(&out, m, balancers[i]);
    }
    if (out.text.length >= capacity && capacity > 0) {
        for (i = capacity - 1; i > 0 && text[i - 1] != '\n'; i--)
            ;
        text[i] = '\0';
    }
    return out.text.length;
}

PLB_API size_t plb_metrics(plb_balancer *lb, char *text, size_t capacity)
{
    return plb_metrics_of(&lb, 1, text, capacity);
}
#endif

/* ==== HTTP/1 =========================================================================================================
   The wire codec. */

PLB_API bool plb_text_is(plb_text text, const char *lower)
{
    size_t i;
    if (text.size != strlen(lower))
        return false;
    for (i = 0; i < text.size; i++) {
        char c = text.data[i];
        if (c >= 'A' && c <= 'Z')
            c = (char)(c + ('a' - 'A'));
        if (c != lower[i])
            return false;
    }
    return true;
}

#ifndef PLB_NO_HTTP1
enum {
    PLB__HTTP1_TCHAR = 1, /* RFC 9110 section 5.6.2 */
    PLB__HTTP1_VALUE = 2  /* may stand in a value (section 5.5): no control byte but the tab */
};

/* What each byte may be. */
static const uint8_t plb__http1_bytes[256] = {
    0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 3, 2, 3, 3,
    3, 3, 3, 2, 2, 3, 3, 2, 3, 3, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3,
    3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3,
    3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 2, 3, 2, 3, 0, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2,
    2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2,
    2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2,
    2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2,
};

static bool plb__http1_is_tchar(char c)
{
    return (plb__http1_bytes[(uint8_t)c] & PLB__HTTP1_TCHAR) != 0;
}

static bool plb__http1_is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool plb__http1_is_blank(char c)
{
    return c == ' ' || c == '\t';
}

static bool plb__http1_is_control(char c)
{
    unsigned char u = (unsigned char)c;
    return u < 0x20 || u == 0x7f;
}

PLB_API bool plb_http1_is_token(plb_text text)
{
    size_t i;
    for (i = 0; i < text.size; i++)
        if (!plb__http1_is_tchar(text.data[i]))
            return false;
    return text.size > 0;
}

/* Might one of these eight bytes be a control byte? Exact as a whole, whatever the byte order. */
static bool plb__http1_has_control(const char *bytes)
{
    const uint64_t ones = UINT64_C(0x0101010101010101), highs = ones << 7;
    uint64_t word, del;
    memcpy(&word, bytes, sizeof word);
    del = word ^ (ones * 0x7f);
    return ((((word - ones * 0x20) & ~word) | ((del - ones) & ~del)) & highs) != 0;
}

/* The first byte that may not stand in a value, or `end`. */
static const char *plb__http1_value_end(const char *p, const char *end)
{
    do {
        const char *stop;
        while (!PLB__SMALL && end - p >= 8 && !plb__http1_has_control(p))
            p += 8;
        stop = PLB__SMALL || end - p < 8 ? end : p + 8;
        while (p < stop && (plb__http1_bytes[(uint8_t)*p] & PLB__HTTP1_VALUE) != 0)
            p++;
        if (p < stop)
            return p;
    } while (p < end);
    return end;
}

PLB_API bool plb_http1_is_value(plb_text text)
{
    return text.size == 0 || plb__http1_value_end(text.data, text.data + text.size) == text.data + text.size;
}

static plb_text plb__http1_slice(const char *begin, const char *end)
{
    plb_text text;
    text.data = begin;
    text.size = (size_t)(end - begin);
    return text;
}

static plb_text plb__http1_trim(const char *begin, const char *end)
{
    while (begin < end && plb__http1_is_blank(*begin))
        begin++;
    while (begin < end && plb__http1_is_blank(end[-1]))
        end--;
    return plb__http1_slice(begin, end);
}

/* Finds the blank line that ends a head; each byte is looked at once over all calls. That every line ends in CR LF is
   judged here, as early as can be. */
static plb_status plb__http1_find_end(plb_http1_head *head, const char *bytes, size_t size)
{
    while (head->scanned < size) {
        const char *lf = plb__find_byte(bytes + head->scanned, '\n', size - head->scanned);
        size_t at;
        if (lf == NULL) {
            head->scanned = size;
            break;
        }
        at = (size_t)(lf - bytes);
        if (at == 0 || lf[-1] != '\r')
            return PLB_ERR_PROTOCOL;
        head->scanned = at + 1;
        if (at >= 3 && lf[-2] == '\n') {
            head->size = at + 1;
            return PLB_OK;
        }
    }
    return PLB_AGAIN;
}

/* "HTTP/1.1", exactly. */
static plb_status plb__http1_parse_version(plb_http1_head *head, const char *p, const char *end)
{
    if (end - p != 8 || memcmp(p, "HTTP/", 5) != 0 || !plb__http1_is_digit(p[5]) || p[6] != '.' ||
        !plb__http1_is_digit(p[7]))
        return PLB_ERR_PROTOCOL;
    if (p[5] != '1')
        return PLB_ERR_UNSUPPORTED;
    head->minor = (uint8_t)(p[7] - '0');
    return PLB_OK;
}

/* RFC 9112 section 3: method SP request-target SP HTTP-version */
static plb_status plb__http1_parse_request_line(plb_http1_head *head, const char *p, const char *end)
{
    const char *begin = p;
    while (p < end && plb__http1_is_tchar(*p))
        p++;
    head->method = plb__http1_slice(begin, p);
    if (p == begin || p == end || *p != ' ')
        return PLB_ERR_PROTOCOL;
    begin = ++p;
    while (p < end && *p != ' ' && !plb__http1_is_control(*p))
        p++;
    head->target = plb__http1_slice(begin, p);
    if (p == begin || p == end || *p != ' ')
        return PLB_ERR_PROTOCOL;
    return plb__http1_parse_version(head, p + 1, end);
}

/* A status of three digits, 100 or above (RFC 9110 section 15); 0: it is none. */
static uint16_t plb__http1_status(const char *p)
{
    if (p[0] < '1' || p[0] > '9' || !plb__http1_is_digit(p[1]) || !plb__http1_is_digit(p[2]))
        return 0;
    return (uint16_t)((p[0] - '0') * 100 + (p[1] - '0') * 10 + (p[2] - '0'));
}

/* RFC 9112 section 4: HTTP-version SP status-code SP [ reason-phrase ]. The last space is missing in the answers of
   some servers; nothing hangs on it. */
static plb_status plb__http1_parse_status_line(plb_http1_head *head, const char *p, const char *end)
{
    plb_status status;
    if (end - p < 12 || p[8] != ' ')
        return PLB_ERR_PROTOCOL;
    status = plb__http1_parse_version(head, p, p + 8);
    if (status != PLB_OK)
        return status;
    head->status = plb__http1_status(p + 9);
    if (head->status == 0)
        return PLB_ERR_PROTOCOL;
    p += 12;
    if (p < end && *p++ != ' ')
        return PLB_ERR_PROTOCOL;
    head->reason = plb__http1_slice(p, end);
    return plb_http1_is_value(head->reason) ? PLB_OK : PLB_ERR_PROTOCOL;
}

/* RFC 9112 section 5. A line that begins with a blank is a folded one and has no name: refused. The line's own CR LF
   ends the name and the value at the latest, and the head, which ends at `end`, has no LF without CR:
   plb__http1_find_end saw to both. Moves on to the next line. */
static plb_status plb__http1_parse_header(plb_http1_head *head, const char **line, const char *end)
{
    plb_http1_header *header;
    const char *begin = *line, *p = begin;
    while (plb__http1_is_tchar(*p))
        p++;
    if (p == begin || *p != ':')
        return PLB_ERR_PROTOCOL;
    if (head->header_count == head->header_capacity)
        return PLB_ERR_LIMIT;
    header = &head->headers[head->header_count];
    header->name = plb__http1_slice(begin, p++);
    begin = p;
    p = plb__http1_value_end(p, end);
    if (p[0] != '\r' || p[1] != '\n')
        return PLB_ERR_PROTOCOL;
    header->value = plb__http1_trim(begin, p);
    head->header_count++;
    *line = p + 2;
    return PLB_OK;
}

/* From the start line to the blank line that ends at `end`. */
static plb_status plb__http1_parse_lines(plb_http1_head *head, const char *p, const char *end, bool request)
{
    const char *line_end = plb__find_byte(p, '\n', (size_t)(end - p)) - 1;
    plb_status status =
        request ? plb__http1_parse_request_line(head, p, line_end) : plb__http1_parse_status_line(head, p, line_end);
    head->header_count = 0;
    p = line_end + 2;
    while (status == PLB_OK && end - p > 2)
        status = plb__http1_parse_header(head, &p, end);
    return status;
}

PLB_API plb_status plb_http1_parse_request(plb_http1_head *head, const char *bytes, size_t size)
{
    size_t skip = 0;
    plb_status status;
    if (size == 0)
        return PLB_AGAIN;
    if (bytes[0] != '\r' && !plb__http1_is_tchar(bytes[0])) /* not HTTP at all: it may never send a line */
        return PLB_ERR_PROTOCOL;
    status = plb__http1_find_end(head, bytes, size);
    if (status != PLB_OK)
        return status;
    if (bytes[0] == '\r' && bytes[1] == '\n')
        skip = 2;
    if (head->size - skip <= 2)
        return PLB_ERR_PROTOCOL;
    return plb__http1_parse_lines(head, bytes + skip, bytes + head->size, true);
}

PLB_API plb_status plb_http1_parse_response(plb_http1_head *head, const char *bytes, size_t size)
{
    plb_status status;
    if (size == 0)
        return PLB_AGAIN;
    if (bytes[0] != 'H')
        return PLB_ERR_PROTOCOL;
    status = plb__http1_find_end(head, bytes, size);
    if (status != PLB_OK)
        return status;
    return plb__http1_parse_lines(head, bytes, bytes + head->size, false);
}

PLB_API const plb_http1_header *plb_http1_find(const plb_http1_head *head, const char *lower)
{
    size_t i;
    for (i = 0; i < head->header_count; i++)
        if (plb_text_is(head->headers[i].name, lower))
            return &head->headers[i];
    return NULL;
}

PLB_API bool plb_http1_list_next(plb_text list, size_t *at, plb_text *element)
{
    while (*at < list.size) {
        const char *begin = list.data + *at, *end = list.data + list.size;
        const char *comma = plb__find_byte(begin, ',', (size_t)(end - begin));
        if (comma != NULL)
            end = comma;
        *at = (size_t)(end - list.data) + 1;
        *element = plb__http1_trim(begin, end);
        if (element->size > 0)
            return true;
    }
    return false;
}

PLB_API bool plb_http1_lists(const plb_http1_head *head, const char *lower_name, const char *lower_token)
{
    size_t i;
    for (i = 0; i < head->header_count; i++) {
        size_t at = 0;
        plb_text element;
        if (!plb_text_is(head->headers[i].name, lower_name))
            continue;
        while (plb_http1_list_next(head->headers[i].value, &at, &element))
            if (plb_text_is(element, lower_token))
                return true;
    }
    return false;
}

PLB_API bool plb_http1_keeps_alive(const plb_http1_head *head)
{
    if (plb_http1_lists(head, "connection", "close"))
        return false;
    return head->minor >= 1 || plb_http1_lists(head, "connection", "keep-alive");
}

PLB_API bool plb_http1_is_idempotent(plb_text method)
{
    static const char *const names[] = {"GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"};
    size_t i;
    for (i = 0; i < sizeof names / sizeof names[0]; i++)
        if (method.size == strlen(names[i]) && memcmp(method.data, names[i], method.size) == 0)
            return true;
    return false;
}

PLB_API plb_status plb_http1_content_length(plb_text value, uint64_t *out)
{
    uint64_t sum = 0;
    size_t i;
    for (i = 0; i < value.size; i++) {
        uint64_t digit = (uint64_t)(value.data[i] - '0');
        if (!plb__http1_is_digit(value.data[i]) || sum > UINT64_MAX / 10)
            return PLB_ERR_PROTOCOL;
        sum = sum * 10 + digit;
        if (sum < digit) /* it has gone past 2^64 */
            return PLB_ERR_PROTOCOL;
    }
    if (value.size == 0)
        return PLB_ERR_PROTOCOL;
    *out = sum;
    return PLB_OK;
}

/* What Content-Length and Transfer-Encoding say together. The first of several faults is reported. */
static plb_status plb__http1_declared_body(const plb_http1_head *head, plb_http1_body *out)
{
    bool unknown_coding = false;
    size_t i;
    out->framing = PLB_HTTP1_EMPTY;
    out->length = 0;
    for (i = 0; i < head->header_count; i++) {
        const plb_http1_header *header = &head->headers[i];
        bool is_length = plb_text_is(header->name, "content-length");
        if (!is_length && !plb_text_is(header->name, "transfer-encoding"))
            continue;
        if (out->framing != PLB_HTTP1_EMPTY || (!is_length && head->minor == 0))
            return PLB_ERR_PROTOCOL;
        out->framing = is_length ? PLB_HTTP1_LENGTH : PLB_HTTP1_CHUNKED;
        if (is_length && plb_http1_content_length(header->value, &out->length) != PLB_OK)
            return PLB_ERR_PROTOCOL;
        if (!is_length && !plb_text_is(header->value, "chunked"))
            unknown_coding = true;
    }
    return unknown_coding ? PLB_ERR_UNSUPPORTED : PLB_OK;
}

PLB_API plb_status plb_http1_request_body(const plb_http1_head *head, plb_http1_body *out)
{
    return plb__http1_declared_body(head, out);
}

PLB_API plb_status plb_http1_response_body(const plb_http1_head *head, bool to_head, plb_http1_body *out)
{
    plb_status status = plb__http1_declared_body(head, out);
    if (to_head || head->status < 200 || head->status == 204 || head->status == 304) {
        out->framing = PLB_HTTP1_EMPTY;
        out->length = 0;
    } else if (out->framing == PLB_HTTP1_EMPTY) {
        out->framing = PLB_HTTP1_UNTIL_CLOSE;
    }
    return status;
}

enum {
    PLB__CHUNK_SIZE = 0, /* hexadecimal digits */
    PLB__CHUNK_BLANK,    /* white space that only an extension may follow */
    PLB__CHUNK_EXTENSION,
    PLB__CHUNK_SIZE_LF,
    PLB__CHUNK_DATA,
    PLB__CHUNK_DATA_CR,
    PLB__CHUNK_DATA_LF,
    PLB__CHUNK_TRAILER_BEGIN, /* of a trailer line, or of the line that ends it all */
    PLB__CHUNK_TRAILER,
    PLB__CHUNK_TRAILER_LF,
    PLB__CHUNK_END_LF,
    PLB__CHUNK_END
};

static int plb__http1_hex(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* One byte of a chunk's size, or the first one after it. 16 digits cannot overflow. */
static plb_status plb__http1_chunk_size(plb_http1_chunked *chunked, char c)
{
    int digit = plb__http1_hex(c);
    if (digit >= 0) {
        if (chunked->digits == 16)
            return PLB_ERR_PROTOCOL;
        chunked->digits++;
        chunked->left = chunked->left << 4 | (uint64_t)digit;
        return PLB_OK;
    }
    if (chunked->digits == 0)
        return PLB_ERR_PROTOCOL;
    if (c == '\r')
        chunked->state = PLB__CHUNK_SIZE_LF;
    else if (c == ';')
        chunked->state = PLB__CHUNK_EXTENSION;
    else if (plb__http1_is_blank(c))
        chunked->state = PLB__CHUNK_BLANK;
    else
        return PLB_ERR_PROTOCOL;
    return PLB_OK;
}

/* One byte that is skipped, of an extension or a trailer; its line ends in CR, after which `then` is the state. */
static plb_status plb__http1_chunk_skip(plb_http1_chunked *chunked, char c, uint8_t then)
{
    if (c == '\r') {
        chunked->state = then;
        return PLB_OK;
    }
    if (plb__http1_is_control(c) && c != '\t')
        return PLB_ERR_PROTOCOL;
    return ++chunked->extra > PLB_HTTP1_EXTRA_MAX ? PLB_ERR_LIMIT : PLB_OK;
}

static plb_status plb__http1_chunk_expect(plb_http1_chunked *chunked, char c, char expected, uint8_t then)
{
    chunked->state = then;
    return c == expected ? PLB_OK : PLB_ERR_PROTOCOL;
}

/* One byte of what is not data. */
static plb_status plb__http1_chunk_byte(plb_http1_chunked *chunked, char c)
{
    switch (chunked->state) {
    case PLB__CHUNK_SIZE:
        return plb__http1_chunk_size(chunked, c);
    case PLB__CHUNK_BLANK:
        if (c == '\r') /* white space, then no extension: not in the grammar */
            return PLB_ERR_PROTOCOL;
        if (c == ';')
            chunked->state = PLB__CHUNK_EXTENSION;
        else if (!plb__http1_is_blank(c))
            return PLB_ERR_PROTOCOL;
        return plb__http1_chunk_skip(chunked, c, chunked->state);
    case PLB__CHUNK_EXTENSION:
        return plb__http1_chunk_skip(chunked, c, PLB__CHUNK_SIZE_LF);
    case PLB__CHUNK_SIZE_LF:
        chunked->digits = 0;
        return plb__http1_chunk_expect(chunked, c, '\n',
                                       chunked->left > 0 ? PLB__CHUNK_DATA : PLB__CHUNK_TRAILER_BEGIN);
    case PLB__CHUNK_DATA_CR:
        return plb__http1_chunk_expect(chunked, c, '\r', PLB__CHUNK_DATA_LF);
    case PLB__CHUNK_DATA_LF:
        return plb__http1_chunk_expect(chunked, c, '\n', PLB__CHUNK_SIZE);
    case PLB__CHUNK_TRAILER_BEGIN:
        if (c == ' ' || c == '\t' || c == ':') /* a folded line, or one without a name */
            return PLB_ERR_PROTOCOL;
        chunked->state = PLB__CHUNK_TRAILER;
        return plb__http1_chunk_skip(chunked, c, PLB__CHUNK_END_LF);
    case PLB__CHUNK_TRAILER:
        return plb__http1_chunk_skip(chunked, c, PLB__CHUNK_TRAILER_LF);
    case PLB__CHUNK_TRAILER_LF:
        return plb__http1_chunk_expect(chunked, c, '\n', PLB__CHUNK_TRAILER_BEGIN);
    default: /* PLB__CHUNK_END_LF */
        return plb__http1_chunk_expect(chunked, c, '\n', PLB__CHUNK_END);
    }
}

PLB_API plb_status plb_http1_chunked_next(plb_http1_chunked *chunked, const char *bytes, size_t size, size_t *used,
                                          plb_text *data)
{
    size_t at = 0;
    plb_status status = PLB_OK;
    *data = plb__http1_slice(bytes, bytes);
    while (status == PLB_OK && at < size && chunked->state != PLB__CHUNK_DATA && chunked->state != PLB__CHUNK_END)
        status = plb__http1_chunk_byte(chunked, bytes[at++]);
    if (status == PLB_OK && chunked->state == PLB__CHUNK_END)
        status = PLB_END;
    else if (status == PLB_OK && at == size)
        status = PLB_AGAIN;
    if (status == PLB_OK) { /* in the data of a chunk */
        *data = plb__http1_slice(bytes + at, bytes + size);
        if (data->size > chunked->left)
            data->size = (size_t)chunked->left;
        chunked->left -= data->size;
        if (chunked->left == 0)
            chunked->state = PLB__CHUNK_DATA_CR;
        at += data->size;
    }
    *used = at;
    return status;
}
#endif

/* ==== HPACK ==========================================================================================================
   Tables, strings, integers; one byte after another. */

#ifndef PLB_NO_HTTP2
enum { PLB__HPACK_STATIC = 61, PLB__HPACK_OVERHEAD = 32, PLB__HPACK_DEFAULT_TABLE = 4096 };

/* RFC 7541 appendix A, the first of which is 1: names and values, each with its NUL. */
static const char plb__hpack_static[] = ":authority\0\0"
                                        ":method\0"
                                        "GET\0"
                                        ":method\0"
                                        "POST\0"
                                        ":path\0"
                                        "/\0"
                                        ":path\0"
                                        "/index.html\0"
                                        ":scheme\0"
                                        "http\0"
                                        ":scheme\0"
                                        "https\0"
                                        ":status\0"
                                        "200\0"
                                        ":status\0"
                                        "204\0"
                                        ":status\0"
                                        "206\0"
                                        ":status\0"
                                        "304\0"
                                        ":status\0"
                                        "400\0"
                                        ":status\0"
                                        "404\0"
                                        ":status\0"
                                        "500\0"
                                        "accept-charset\0\0"
                                        "accept-encoding\0"
                                        "gzip, deflate\0"
                                        "accept-language\0\0"
                                        "accept-ranges\0\0"
                                        "accept\0\0"
                                        "access-control-allow-origin\0\0"
                                        "age\0\0"
                                        "allow\0\0"
                                        "authorization\0\0"
                                        "cache-control\0\0"
                                        "content-disposition\0\0"
                                        "content-encoding\0\0"
                                        "content-language\0\0"
                                        "content-length\0\0"
                                        "content-location\0\0"
                                        "content-range\0\0"
                                        "content-type\0\0"
                                        "cookie\0\0"
                                        "date\0\0"
                                        "etag\0\0"
                                        "expect\0\0"
                                        "expires\0\0"
                                        "from\0\0"
                                        "host\0\0"
                                        "if-match\0\0"
                                        "if-modified-since\0\0"
                                        "if-none-match\0\0"
                                        "if-range\0\0"
                                        "if-unmodified-since\0\0"
                                        "last-modified\0\0"
                                        "link\0\0"
                                        "location\0\0"
                                        "max-forwards\0\0"
                                        "proxy-authenticate\0\0"
                                        "proxy-authorization\0\0"
                                        "range\0\0"
                                        "referer\0\0"
                                        "refresh\0\0"
                                        "retry-after\0\0"
                                        "server\0\0"
                                        "set-cookie\0\0"
                                        "strict-transport-security\0\0"
                                        "transfer-encoding\0\0"
                                        "user-agent\0\0"
                                        "vary\0\0"
                                        "via\0\0"
                                        "www-authenticate\0\0";

/* RFC 7541 appendix B is a canonical code: how many codes there are of each length, and their symbols in order, are all
   there is to it. The last of 30 bits is EOS, which never stands in a string. */
static const uint8_t plb__huffman_counts[31] = {0, 0, 0, 0, 0, 10, 26, 32, 6,  0, 5,  3,  2,  6, 2, 3,
                                                0, 0, 0, 3, 8, 13, 26, 29, 12, 4, 15, 19, 29, 0, 4};
static const uint8_t plb__huffman_symbols[256] = {
    48,  49,  50,  97,  99,  101, 105, 111, 115, 116, 32,  37,  45,  46,  47,  51,  52,  53,  54,  55,  56,  57,
    61,  65,  95,  98,  100, 102, 103, 104, 108, 109, 110, 112, 114, 117, 58,  66,  67,  68,  69,  70,  71,  72,
    73,  74,  75,  76,  77,  78,  79,  80,  81,  82,  83,  84,  85,  86,  87,  89,  106, 107, 113, 118, 119, 120,
    121, 122, 38,  42,  44,  59,  88,  90,  33,  34,  40,  41,  63,  39,  43,  124, 35,  62,  0,   36,  64,  91,
    93,  126, 94,  125, 60,  96,  123, 92,  195, 208, 128, 130, 131, 162, 184, 194, 224, 226, 153, 161, 167, 172,
    176, 177, 179, 209, 216, 217, 227, 229, 230, 129, 132, 133, 134, 136, 146, 154, 156, 160, 163, 164, 169, 170,
    173, 178, 181, 185, 186, 187, 189, 190, 196, 198, 228, 232, 233, 1,   135, 137, 138, 139, 140, 141, 143, 147,
    149, 150, 151, 152, 155, 157, 158, 165, 166, 168, 174, 175, 180, 182, 183, 188, 191, 197, 231, 239, 9,   142,
    144, 145, 148, 159, 171, 206, 215, 225, 236, 237, 199, 207, 234, 235, 192, 193, 200, 201, 202, 205, 210, 213,
    218, 219, 238, 240, 242, 243, 255, 203, 204, 211, 212, 214, 221, 222, 223, 241, 244, 245, 246, 247, 248, 250,
    251, 252, 253, 254, 2,   3,   4,   5,   6,   7,   8,   11,  12,  14,  15,  16,  17,  18,  19,  20,  21,  23,
    24,  25,  26,  27,  28,  29,  30,  31,  127, 220, 249, 10,  13,  22};

enum { /* the kinds of RFC 7541 section 6 */
       PLB__HPACK_INDEXED,
       PLB__HPACK_LITERAL,
       PLB__HPACK_LITERAL_INDEXING,
       PLB__HPACK_TABLE_SIZE
};

enum {
    PLB__HPACK_FIRST = 0, /* a field's first byte, and its integer */
    PLB__HPACK_NAME_LENGTH,
    PLB__HPACK_NAME,
    PLB__HPACK_VALUE_LENGTH,
    PLB__HPACK_VALUE
};

static uint32_t plb__min32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

PLB_API plb_status plb_hpack_open(plb_hpack *hpack, void *memory, size_t size)
{
    memset(hpack, 0, sizeof *hpack);
    if (memory == NULL || size < 64)
        return PLB_ERR_ARGUMENT;
    if (size > 2 * 65535)
        size = 2 * 65535;
    hpack->table = (char *)memory;
    hpack->table_size = (uint32_t)(size / 2);
    hpack->room = hpack->table + hpack->table_size;
    hpack->room_size = (uint32_t)size - hpack->table_size;
    hpack->peer_size = PLB__HPACK_DEFAULT_TABLE;
    hpack->peer_limit = hpack->peer_size;
    if (hpack->peer_limit < hpack->table_size)
        hpack->peer_limit = hpack->table_size;
    hpack->at_start = true;
    return PLB_OK;
}

PLB_API void plb_hpack_acknowledged(plb_hpack *hpack)
{
    hpack->peer_limit = hpack->table_size;
}

/* ---- the dynamic table: entries from the oldest to the newest, each two lengths of 2 bytes, name, value. RFC 7541
   counts 28 bytes more than that for an entry, so a table of a size always has the room for it. ---- */

static uint32_t plb__hpack_read_length(const char *at)
{
    return (uint32_t)(unsigned char)at[0] << 8 | (unsigned char)at[1];
}

static void plb__hpack_write_length(char *at, uint32_t length)
{
    at[0] = (char)(unsigned char)(length >> 8);
    at[1] = (char)(unsigned char)(length & 0xff);
}

static uint32_t plb__hpack_entry_stored(const char *at)
{
    return 4 + plb__hpack_read_length(at) + plb__hpack_read_length(at + 2);
}

/* What the peer's table has and the memory has room for. */
static uint32_t plb__hpack_capacity(const plb_hpack *hpack)
{
    return plb__min32(hpack->peer_size, hpack->table_size);
}

static void plb__hpack_evict(plb_hpack *hpack, uint32_t capacity)
{
    while (hpack->counted > capacity) {
        uint32_t stored = plb__hpack_entry_stored(hpack->table);
        hpack->stored -= stored;
        hpack->counted -= stored - 4 + PLB__HPACK_OVERHEAD;
        hpack->entries--;
        plb__move_down(hpack->table, hpack->table + stored, hpack->stored);
    }
}

/* RFC 7541 section 4.4: a field larger than the table empties it, which is no fault. Only such a field can be cut, as
   the room is no smaller than the table. */
static void plb__hpack_insert(plb_hpack *hpack)
{
    uint32_t capacity = plb__hpack_capacity(hpack), text = hpack->name_size + hpack->value_size;
    uint32_t counted = text + PLB__HPACK_OVERHEAD;
    char *entry;
    if (counted > hpack->peer_size)
        hpack->overfull = false; /* the peer's table is empty now */
    else if (hpack->peer_size > hpack->table_size && hpack->counted + counted > hpack->table_size)
        hpack->overfull = true;
    if (counted > capacity) {
        plb__hpack_evict(hpack, 0);
        return;
    }
    plb__hpack_evict(hpack, capacity - counted);
    entry = hpack->table + hpack->stored;
    plb__hpack_write_length(entry, hpack->name_size);
    plb__hpack_write_length(entry + 2, hpack->value_size);
    memcpy(entry + 4, hpack->room, text);
    hpack->stored += 4 + text;
    hpack->counted += counted;
    hpack->entries++;
}

static plb_text plb__text_of(const char *string)
{
    plb_text text;
    text.data = string;
    text.size = strlen(string);
    return text;
}

/* The entry of the static table behind this one. */
static const char *plb__hpack_behind(const char *entry)
{
    entry += strlen(entry) + 1;
    return entry + strlen(entry) + 1;
}

/* RFC 7541 section 2.3.3: from 1 on the static table, then the dynamic one from its newest entry back. */
static bool plb__hpack_find(const plb_hpack *hpack, uint32_t index, plb_text *name, plb_text *value)
{
    const char *at = hpack->table;
    uint32_t older;
    if (index == 0 || index > PLB__HPACK_STATIC + hpack->entries)
        return false;
    if (index <= PLB__HPACK_STATIC) {
        const char *entry = plb__hpack_static;
        while (--index > 0)
            entry = plb__hpack_behind(entry);
        *name = plb__text_of(entry);
        *value = plb__text_of(entry + name->size + 1);
        return true;
    }
    for (older = hpack->entries - (index - PLB__HPACK_STATIC); older > 0; older--)
        at += plb__hpack_entry_stored(at);
    name->data = at + 4;
    name->size = plb__hpack_read_length(at);
    value->data = name->data + name->size;
    value->size = plb__hpack_read_length(at + 2);
    return true;
}

/* ---- strings ---- */

/* One more byte of the name or value that is being read. */
static void plb__hpack_keep(plb_hpack *hpack, char c)
{
    bool is_value = hpack->state == PLB__HPACK_VALUE;
    uint32_t at = is_value ? plb__min32(hpack->name_size, hpack->room_size) + hpack->value_size : hpack->name_size;
    if (at < hpack->room_size)
        hpack->room[at] = c;
    if (is_value)
        hpack->value_size++;
    else
        hpack->name_size++;
}

/* One bit. huffman_code counts from the first code of its length that is no shorter code's beginning; huffman_at is the
   number of symbols with shorter codes. */
static plb_status plb__huffman_bit(plb_hpack *hpack, uint32_t bit)
{
    uint32_t count;
    hpack->huffman_bits++;
    hpack->huffman_ones = hpack->huffman_ones && bit == 1;
    hpack->huffman_code = hpack->huffman_code << 1 | bit;
    count = plb__huffman_counts[hpack->huffman_bits];
    if (hpack->huffman_code >= count) {
        hpack->huffman_code -= count;
        hpack->huffman_at += count;
        return PLB_OK;
    }
    count = hpack->huffman_at + hpack->huffman_code;
    if (count == sizeof plb__huffman_symbols) /* EOS */
        return PLB_ERR_PROTOCOL;
    plb__hpack_keep(hpack, (char)plb__huffman_symbols[count]);
    hpack->huffman_code = hpack->huffman_at = hpack->huffman_bits = 0;
    hpack->huffman_ones = true;
    return PLB_OK;
}

static plb_status plb__hpack_string_byte(plb_hpack *hpack, uint8_t byte)
{
    plb_status status = PLB_OK;
    uint32_t bit;
    hpack->left--;
    if (!hpack->huffman)
        plb__hpack_keep(hpack, (char)byte);
    else
        for (bit = 8; bit-- > 0 && status == PLB_OK;)
            status = plb__huffman_bit(hpack, (uint32_t)byte >> bit & 1);
    return status;
}

static void plb__hpack_begin_string(plb_hpack *hpack)
{
    hpack->left = hpack->integer;
    hpack->huffman_code = hpack->huffman_at = hpack->huffman_bits = 0;
    hpack->huffman_ones = true;
    hpack->state++; /* from its length to its bytes */
}

/* ---- fields ---- */

/* RFC 7541 section 5.1, one byte of it; `mask` has the bits of the prefix. PLB_OK: hpack->integer is whole. Four bytes
   after the first are more than any length or index here can need. */
static plb_status plb__hpack_integer(plb_hpack *hpack, uint8_t byte, uint8_t mask)
{
    if (hpack->continued == 0) {
        hpack->integer = (uint32_t)(byte & mask);
        hpack->continued = hpack->integer == mask;
        return hpack->continued ? PLB_AGAIN : PLB_OK;
    }
    hpack->integer += (uint32_t)(byte & 0x7f) << 7 * (hpack->continued - 1);
    if ((byte & 0x80) != 0)
        return hpack->continued++ == 4 ? PLB_ERR_PROTOCOL : PLB_AGAIN;
    hpack->continued = 0;
    return PLB_OK;
}

static void plb__hpack_classify(plb_hpack *hpack, uint8_t byte)
{
    if ((byte & 0x80) != 0)
        hpack->kind = PLB__HPACK_INDEXED;
    else if ((byte & 0x40) != 0)
        hpack->kind = PLB__HPACK_LITERAL_INDEXING;
    else if ((byte & 0x20) != 0)
        hpack->kind = PLB__HPACK_TABLE_SIZE;
    else
        hpack->kind = PLB__HPACK_LITERAL; /* without indexing, or never indexed: the same to a reader */
}

/* RFC 7541 section 6.3. */
static plb_status plb__hpack_resize(plb_hpack *hpack)
{
    if (!hpack->at_start || hpack->integer > hpack->peer_limit)
        return PLB_ERR_PROTOCOL;
    hpack->peer_size = hpack->integer;
    hpack->overfull = hpack->overfull && hpack->peer_size > hpack->table_size;
    plb__hpack_evict(hpack, plb__hpack_capacity(hpack));
    return PLB_AGAIN;
}

static plb_status plb__hpack_begin_literal(plb_hpack *hpack)
{
    plb_text name, value;
    size_t i;
    hpack->name_size = hpack->value_size = 0;
    hpack->state = PLB__HPACK_NAME_LENGTH;
    if (hpack->integer == 0)
        return PLB_AGAIN;
    if (!plb__hpack_find(hpack, hpack->integer, &name, &value))
        return PLB_ERR_PROTOCOL;
    for (i = 0; i < name.size; i++) /* it may leave the table for this very field */
        plb__hpack_keep(hpack, name.data[i]);
    hpack->state = PLB__HPACK_VALUE_LENGTH;
    return PLB_AGAIN;
}

/* RFC 9113 section 4.3.1: a peer that acknowledged a smaller table has to say so, at the start of a block, if it had
   more in its table than that. One that had not, as it never fills it, need not say anything. */
static bool plb__hpack_keeps_limit(plb_hpack *hpack)
{
    if (hpack->peer_size > hpack->peer_limit && !hpack->overfull)
        hpack->peer_size = hpack->peer_limit;
    return hpack->peer_size <= hpack->peer_limit;
}

/* A byte of what a field begins with. */
static plb_status plb__hpack_first(plb_hpack *hpack, uint8_t byte, plb_hpack_field *field)
{
    static const uint8_t masks[] = {0x7f, 0x0f, 0x3f, 0x1f};
    plb_status status;
    if (hpack->continued == 0)
        plb__hpack_classify(hpack, byte);
    status = plb__hpack_integer(hpack, byte, masks[hpack->kind]);
    if (status != PLB_OK)
        return status;
    if (hpack->kind == PLB__HPACK_TABLE_SIZE)
        return plb__hpack_resize(hpack);
    if (!plb__hpack_keeps_limit(hpack))
        return PLB_ERR_PROTOCOL;
    hpack->at_start = false;
    if (hpack->kind != PLB__HPACK_INDEXED)
        return plb__hpack_begin_literal(hpack);
    if (!plb__hpack_find(hpack, hpack->integer, &field->name, &field->value))
        return PLB_ERR_PROTOCOL;
    field->size = field->name.size + field->value.size + PLB__HPACK_OVERHEAD;
    field->cut = false;
    return PLB_OK;
}

/* A string is whole: a name is followed by a value, and that ends the field. */
static plb_status plb__hpack_end_string(plb_hpack *hpack, plb_hpack_field *field)
{
    /* RFC 7541 section 5.2: padding is less than a byte, all ones. */
    if (hpack->huffman && (hpack->huffman_bits > 7 || !hpack->huffman_ones))
        return PLB_ERR_PROTOCOL;
    if (hpack->state == PLB__HPACK_NAME) {
        hpack->state = PLB__HPACK_VALUE_LENGTH;
        return PLB_AGAIN;
    }
    hpack->state = PLB__HPACK_FIRST;
    if (hpack->kind == PLB__HPACK_LITERAL_INDEXING)
        plb__hpack_insert(hpack);
    field->name.data = hpack->room;
    field->name.size = plb__min32(hpack->name_size, hpack->room_size);
    field->value.data = hpack->room + field->name.size;
    field->value.size = plb__min32(hpack->value_size, hpack->room_size - (uint32_t)field->name.size);
    field->size = (size_t)hpack->name_size + hpack->value_size + PLB__HPACK_OVERHEAD;
    field->cut = hpack->name_size + hpack->value_size > hpack->room_size;
    return PLB_OK;
}

/* PLB_OK: with this byte a field is whole. PLB_AGAIN: it is not. */
static plb_status plb__hpack_byte(plb_hpack *hpack, uint8_t byte, plb_hpack_field *field)
{
    plb_status status;
    if (hpack->state == PLB__HPACK_FIRST)
        return plb__hpack_first(hpack, byte, field);
    if (hpack->state == PLB__HPACK_NAME || hpack->state == PLB__HPACK_VALUE) {
        status = plb__hpack_string_byte(hpack, byte);
    } else {
        if (hpack->continued == 0)
            hpack->huffman = (byte & 0x80) != 0;
        status = plb__hpack_integer(hpack, byte, 0x7f);
        if (status == PLB_OK)
            plb__hpack_begin_string(hpack);
    }
    if (status != PLB_OK)
        return status;
    return hpack->left > 0 ? PLB_AGAIN : plb__hpack_end_string(hpack, field);
}

PLB_API plb_status plb_hpack_next(plb_hpack *hpack, const char *bytes, size_t size, size_t *used,
                                  plb_hpack_field *field)
{
    plb_status status = PLB_AGAIN;
    size_t at = 0;
    memset(field, 0, sizeof *field);
    while (status == PLB_AGAIN && at < size)
        status = plb__hpack_byte(hpack, (uint8_t)bytes[at++], field);
    *used = at;
    return status;
}

PLB_API plb_status plb_hpack_end(plb_hpack *hpack)
{
    hpack->at_start = true;
    return hpack->state == PLB__HPACK_FIRST && hpack->continued == 0 ? PLB_OK : PLB_ERR_PROTOCOL;
}

/* ---- writing ---- */

/* Bytes that go to a buffer while it has room; `size` goes on counting. */
typedef struct plb__bytes {
    char *out;
    size_t capacity, size;
} plb__bytes;

static void plb__put_byte(plb__bytes *to, uint32_t byte)
{
    if (to->size < to->capacity)
        to->out[to->size] = (char)(unsigned char)(byte & 0xff);
    to->size++;
}

static void plb__put_text(plb__bytes *to, plb_text text)
{
    size_t i;
    for (i = 0; i < text.size; i++)
        plb__put_byte(to, (unsigned char)text.data[i]);
}

static void plb__hpack_put_integer(plb__bytes *to, uint32_t pattern, uint32_t mask, size_t integer)
{
    if (integer < mask) {
        plb__put_byte(to, pattern | (uint32_t)integer);
        return;
    }
    plb__put_byte(to, pattern | mask);
    for (integer -= mask; integer >= 0x80; integer >>= 7)
        plb__put_byte(to, (uint32_t)(integer & 0x7f) | 0x80);
    plb__put_byte(to, (uint32_t)integer);
}

static void plb__hpack_put_string(plb__bytes *to, plb_text text)
{
    plb__hpack_put_integer(to, 0, 0x7f, text.size);
    plb__put_text(to, text);
}

static bool plb__text_equals(plb_text text, const char *string)
{
    return text.size == strlen(string) && (text.size == 0 || memcmp(text.data, string, text.size) == 0);
}

PLB_API size_t plb_hpack_write(char *out, size_t capacity, plb_text name, plb_text value)
{
    const char *entry = plb__hpack_static;
    plb__bytes to;
    uint32_t i, named = 0;
    to.out = out;
    to.capacity = capacity;
    to.size = 0;
    for (i = 0; i < PLB__HPACK_STATIC; i++, entry = plb__hpack_behind(entry)) {
        if (!plb__text_equals(name, entry))
            continue;
        if (plb__text_equals(value, entry + name.size + 1)) {
            plb__hpack_put_integer(&to, 0x80, 0x7f, i + 1);
            return to.size;
        }
        if (named == 0)
            named = i + 1;
    }
    plb__hpack_put_integer(&to, 0, 0x0f, named);
    if (named == 0)
        plb__hpack_put_string(&to, name);
    plb__hpack_put_string(&to, value);
    return to.size;
}
#endif

/* ==== HTTP/2 =========================================================================================================
   Frames, streams, windows. A fault of the connection goes through plb__http2_fail, one of the stream through
   plb__http2_reset. */

#ifndef PLB_NO_HTTP2
enum { /* RFC 9113 section 6 */
       PLB__FRAME_DATA = 0,
       PLB__FRAME_HEADERS,
       PLB__FRAME_PRIORITY,
       PLB__FRAME_RST_STREAM,
       PLB__FRAME_SETTINGS,
       PLB__FRAME_PUSH_PROMISE,
       PLB__FRAME_PING,
       PLB__FRAME_GOAWAY,
       PLB__FRAME_WINDOW_UPDATE,
       PLB__FRAME_CONTINUATION,
       PLB__FRAME_UNKNOWN /* this one and all above: skipped */
};

enum {
    PLB__FLAG_ACK = 0x1,
    PLB__FLAG_END_STREAM = 0x1,
    PLB__FLAG_END_HEADERS = 0x4,
    PLB__FLAG_PADDED = 0x8,
    PLB__FLAG_PRIORITY = 0x20
};

enum { /* RFC 9113 section 6.5.2 */
       PLB__SETTING_HEADER_TABLE_SIZE = 1,
       PLB__SETTING_ENABLE_PUSH,
       PLB__SETTING_MAX_CONCURRENT_STREAMS,
       PLB__SETTING_INITIAL_WINDOW_SIZE,
       PLB__SETTING_MAX_FRAME_SIZE,
       PLB__SETTING_MAX_HEADER_LIST_SIZE
};

enum { /* where in a frame the next byte stands */
       PLB__PHASE_FRAME = 0,
       PLB__PHASE_PADDING_LENGTH,
       PLB__PHASE_PRIORITY,
       PLB__PHASE_CONTENT,
       PLB__PHASE_PADDING,
       PLB__PHASE_END_FRAME, /* no byte: what the frame leads to */
       PLB__PHASE_END_STREAM /* no byte: the answer's end */
};

enum { /* the request in flight */
       PLB__EXCHANGE_NONE = 0,
       PLB__EXCHANGE_HEAD, /* its final answer has not begun */
       PLB__EXCHANGE_BODY
};

enum {
    PLB__HTTP2_WINDOW = 65535,
    PLB__HTTP2_FRAME_SIZE = 16384,
    PLB__HTTP2_WINDOW_MAX = 0x7fffffff,
    PLB__HTTP2_FRAME_HEAD = 9,
    PLB__HTTP2_FRAMES_MAX = 1000,
    PLB__HTTP2_CONTINUATIONS_MAX = 64,
    /* What a connection begins with: a request that has no room beside it has none later on either. */
    PLB__HTTP2_OPENING = 24 + PLB__HTTP2_FRAME_HEAD + 18, /* the preface, and a frame with three settings */
    /* What is kept free in the output, so that a RST_STREAM and a GOAWAY can always be said. */
    PLB__HTTP2_GOAWAY_ROOM = PLB__HTTP2_FRAME_HEAD + 8,
    PLB__HTTP2_RESERVE = PLB__HTTP2_GOAWAY_ROOM + PLB__HTTP2_FRAME_HEAD + 4
};

static uint32_t plb__read32(const uint8_t *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static void plb__write32(char *at, uint32_t number)
{
    plb__bytes to;
    uint32_t i;
    to.out = at;
    to.capacity = 4;
    to.size = 0;
    for (i = 4; i-- > 0;)
        plb__put_byte(&to, number >> 8 * i);
}

/* ---- output ---- */

/* Room for `size` bytes at the end of the output with `reserve` free behind them, or NULL. */
static char *plb__http2_room(plb_http2 *h, size_t size, uint32_t reserve)
{
    uint32_t held = h->out_end - h->out_at;
    if (size > h->out_capacity || held + size + reserve > h->out_capacity)
        return NULL;
    if (h->out_end + size > h->out_capacity) {
        plb__move_down(h->out, h->out + h->out_at, held);
        h->out_at = 0;
        h->out_end = held;
    }
    h->out_end += (uint32_t)size;
    return h->out + h->out_end - size;
}

static void plb__http2_write_head(char *at, size_t size, uint8_t type, uint8_t flags, uint32_t stream)
{
    plb__write32(at, (uint32_t)size << 8 | type);
    at[4] = (char)flags;
    plb__write32(at + 5, stream);
}

static bool plb__http2_put(plb_http2 *h, uint8_t type, uint8_t flags, uint32_t stream, const void *payload, size_t size,
                           uint32_t reserve)
{
    char *at = plb__http2_room(h, PLB__HTTP2_FRAME_HEAD + size, reserve);
    if (at == NULL)
        return false;
    plb__http2_write_head(at, size, type, flags, stream);
    if (size > 0)
        memcpy(at + PLB__HTTP2_FRAME_HEAD, payload, size);
    return true;
}

static bool plb__http2_put32(plb_http2 *h, uint8_t type, uint32_t stream, uint32_t number, uint32_t reserve)
{
    char payload[4];
    plb__write32(payload, number);
    return plb__http2_put(h, type, 0, stream, payload, sizeof payload, reserve);
}

static void plb__http2_put_goaway(plb_http2 *h, uint32_t code)
{
    char payload[8] = {0}; /* the last stream: the server began none */
    if (h->goaway_sent)
        return;
    plb__write32(payload + 4, code);
    (void)plb__http2_put(h, PLB__FRAME_GOAWAY, 0, 0, payload, sizeof payload, 0); /* the reserve has room for it */
    h->goaway_sent = h->going_away = true;
}

/* RFC 9113 section 5.4.1. */
PLB__RARE plb_status plb__http2_fail(plb_http2 *h, plb_http2_event *event, plb_status status, plb_http2_code code)
{
    plb__http2_put_goaway(h, (uint32_t)code);
    h->exchange = PLB__EXCHANGE_NONE;
    h->failed = (uint8_t)status;
    h->code = event->code = (uint32_t)code;
    event->kind = PLB_HTTP2_NONE;
    return status;
}

static plb_status plb__http2_fault(plb_http2 *h, plb_http2_event *event, plb_http2_code code)
{
    return plb__http2_fail(h, event, PLB_ERR_PROTOCOL, code);
}

/* Ends the stream of the request in flight. What still comes for it is read past (RFC 9113 section 5.1, "closed"). */
static void plb__http2_put_reset(plb_http2 *h, plb_http2_code code)
{
    /* once a stream: plb_http2_request found the reserve there */
    (void)plb__http2_put32(h, PLB__FRAME_RST_STREAM, h->stream, (uint32_t)code, PLB__HTTP2_GOAWAY_ROOM);
    h->reset_stream = h->stream;
    h->exchange = PLB__EXCHANGE_NONE;
}

/* RFC 9113 section 5.4.2. */
static plb_status plb__http2_reset(plb_http2 *h, plb_http2_event *event, plb_http2_code code)
{
    plb__http2_put_reset(h, code);
    event->kind = PLB_HTTP2_RESET;
    event->code = (uint32_t)code;
    event->ours = true;
    return PLB_OK;
}

static plb_status plb__http2_malformed(plb_http2 *h, plb_http2_event *event)
{
    return plb__http2_reset(h, event, PLB_HTTP2_PROTOCOL_ERROR);
}

static void plb__http2_put_window_update(plb_http2 *h, uint32_t stream, int32_t *window)
{
    if (*window <= PLB__HTTP2_WINDOW / 2 &&
        plb__http2_put32(h, PLB__FRAME_WINDOW_UPDATE, stream, (uint32_t)(PLB__HTTP2_WINDOW - *window),
                         PLB__HTTP2_RESERVE))
        *window = PLB__HTTP2_WINDOW;
}

/* Begins the next DATA frame of the request's body, if the windows let it. */
static void plb__http2_frame_body(plb_http2 *h)
{
    int32_t window = h->send_window < h->stream_send_window ? h->send_window : h->stream_send_window;
    size_t left = h->body.size, size;
    char *head;
    if (h->exchange == PLB__EXCHANGE_NONE || left == 0 || window <= 0 || h->body_framed > 0)
        return;
    head = plb__http2_room(h, PLB__HTTP2_FRAME_HEAD, PLB__HTTP2_RESERVE);
    if (head == NULL)
        return;
    size = plb__min32((uint32_t)window, h->peer_frame_size);
    if (size > left)
        size = left;
    plb__http2_write_head(head, size, PLB__FRAME_DATA, size == left ? PLB__FLAG_END_STREAM : 0, h->stream);
    h->body_framed = size;
    h->out_before_body = h->out_end - h->out_at;
    h->send_window -= (int32_t)size;
    h->stream_send_window -= (int32_t)size;
}

PLB_API plb_text plb_http2_output(plb_http2 *h)
{
    plb_text text;
    if (h->failed == PLB_OK) {
        plb__http2_put_window_update(h, 0, &h->receive_window);
        if (h->exchange != PLB__EXCHANGE_NONE)
            plb__http2_put_window_update(h, h->stream, &h->stream_receive_window);
        plb__http2_frame_body(h);
    }
    if (h->body_framed > 0 && h->out_before_body == 0) {
        text.data = h->body.data;
        text.size = h->body_framed;
    } else {
        text.data = h->out + h->out_at;
        text.size = h->body_framed > 0 ? h->out_before_body : h->out_end - h->out_at;
    }
    return text;
}

PLB_API void plb_http2_sent(plb_http2 *h, size_t size)
{
    if (h->body_framed > 0 && h->out_before_body == 0) {
        h->body.data += size;
        h->body.size -= size;
        h->body_framed -= size;
        if (size > 0)
            h->frames = 0;
        return;
    }
    h->out_at += (uint32_t)size;
    if (h->body_framed > 0)
        h->out_before_body -= (uint32_t)size;
}

PLB_API plb_status plb_http2_open(plb_http2 *h, void *memory, size_t size)
{
    /* RFC 9113 section 3.4: the preface; then SETTINGS, whose values follow */
    static const char opening[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
                                  "\0\0\x12\4\0\0\0\0\0"
                                  "\0\1----"     /* SETTINGS_HEADER_TABLE_SIZE */
                                  "\0\2\0\0\0\0" /* SETTINGS_ENABLE_PUSH: no */
                                  "\0\6----";    /* SETTINGS_MAX_HEADER_LIST_SIZE */
    size_t half = size / 2;
    char *at;
    memset(h, 0, sizeof *h);
    if (memory == NULL || size < PLB_HTTP2_MEMORY_MIN)
        return PLB_ERR_ARGUMENT;
    (void)plb_hpack_open(&h->hpack, memory, half); /* it is large enough */
    h->out = (char *)memory + half;
    h->out_capacity = (uint32_t)(size - half < 65535 ? size - half : 65535);
    h->next_stream = 1;
    h->send_window = h->receive_window = PLB__HTTP2_WINDOW;
    h->peer_window = PLB__HTTP2_WINDOW;
    h->peer_frame_size = PLB__HTTP2_FRAME_SIZE;
    h->streams_allowed = true;
    at = plb__http2_room(h, PLB__HTTP2_OPENING, 0);
    memcpy(at, opening, PLB__HTTP2_OPENING);
    plb__write32(at + PLB__HTTP2_OPENING - 16, h->hpack.table_size);
    plb__write32(at + PLB__HTTP2_OPENING - 4, PLB_HTTP2_HEADER_LIST_MAX);
    return PLB_OK;
}

/* ---- fields ---- */

/* RFC 9113 section 8.2.2. */
static bool plb__http2_is_of_connection(plb_text name, plb_text value)
{
    static const char *const names[] = {"connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade"};
    size_t i;
    for (i = 0; i < sizeof names / sizeof names[0]; i++)
        if (plb__text_equals(name, names[i]))
            return true;
    return plb__text_equals(name, "te") && !plb_text_is(value, "trailers");
}

/* RFC 9113 section 8.2.1. A value that is cut may end anywhere. */
static bool plb__http2_is_value(plb_text value, bool cut)
{
    if (value.size > 0 &&
        (plb__http1_is_blank(value.data[0]) || (!cut && plb__http1_is_blank(value.data[value.size - 1]))))
        return false;
    return plb_http1_is_value(value);
}

/* Any field but a pseudo-header field. */
static bool plb__http2_is_field(plb_text name, plb_text value, bool cut)
{
    size_t i;
    for (i = 0; i < name.size; i++)
        if (name.data[i] >= 'A' && name.data[i] <= 'Z')
            return false;
    return plb_http1_is_token(name) && plb__http2_is_value(value, cut) && !plb__http2_is_of_connection(name, value);
}

/* ---- requests ---- */

static bool plb__http2_is_pseudo(plb_text name)
{
    return name.size > 0 && name.data[0] == ':';
}

/* RFC 9113 section 8.3: pseudo-header fields first. Which ones they are is for the caller to know. */
static bool plb__http2_are_fields(const plb_http2_header *headers, size_t count)
{
    bool regular = false;
    size_t i;
    for (i = 0; i < count; i++) {
        plb_text name = headers[i].name, rest = name;
        if (!plb__http2_is_pseudo(name)) {
            regular = true;
        } else {
            if (regular)
                return false;
            rest.data++;
            rest.size--;
        }
        if (!plb__http2_is_field(rest, headers[i].value, false))
            return false;
    }
    return count > 0;
}

/* The header block. It begins by making this side's table empty for good: a peer that announces a smaller one need not
   be told about it later (RFC 9113 section 4.3.1). Once a connection. */
static size_t plb__http2_write_block(const plb_http2 *h, char *out, size_t capacity, const plb_http2_header *headers,
                                     size_t count)
{
    size_t i, at = 0;
    if (!h->hpack_began) {
        if (capacity > 0)
            out[0] = 0x20;
        at = 1;
    }
    for (i = 0; i < count; i++) {
        bool fits = at < capacity;
        at += plb_hpack_write(fits ? out + at : NULL, fits ? capacity - at : 0, headers[i].name, headers[i].value);
    }
    return at;
}

static bool plb__http2_asks_for_head(const plb_http2_header *headers, size_t count)
{
    size_t i;
    for (i = 0; i < count; i++)
        if (plb__text_equals(headers[i].name, ":method"))
            return plb__text_equals(headers[i].value, "HEAD");
    return false;
}

/* May a request begin now? */
static plb_status plb__http2_admits(const plb_http2 *h)
{
    if (h->failed != PLB_OK)
        return (plb_status)h->failed;
    if (h->going_away || h->next_stream > PLB__HTTP2_WINDOW_MAX)
        return PLB_END;
    if (h->exchange != PLB__EXCHANGE_NONE || h->body_framed > 0 || !h->streams_allowed)
        return PLB_AGAIN;
    return PLB_OK;
}

PLB_API plb_status plb_http2_request(plb_http2 *h, const plb_http2_header *headers, size_t header_count, plb_text body)
{
    plb_status status = plb__http2_admits(h);
    uint8_t flags = body.size > 0 ? PLB__FLAG_END_HEADERS : PLB__FLAG_END_HEADERS | PLB__FLAG_END_STREAM;
    size_t size;
    char *at;
    if (status != PLB_OK)
        return status;
    if (!plb__http2_are_fields(headers, header_count))
        return PLB_ERR_ARGUMENT;
    size = plb__http2_write_block(h, NULL, 0, headers, header_count);
    if (size > PLB__HTTP2_FRAME_SIZE ||
        PLB__HTTP2_OPENING + PLB__HTTP2_FRAME_HEAD + size + PLB__HTTP2_RESERVE > h->out_capacity)
        return PLB_ERR_LIMIT;
    at = plb__http2_room(h, PLB__HTTP2_FRAME_HEAD + size, PLB__HTTP2_RESERVE);
    if (at == NULL)
        return PLB_AGAIN;
    plb__http2_write_head(at, size, PLB__FRAME_HEADERS, flags, h->next_stream);
    (void)plb__http2_write_block(h, at + PLB__HTTP2_FRAME_HEAD, size, headers, header_count);
    h->hpack_began = true;
    h->body = body;
    h->stream = h->next_stream;
    h->next_stream += 2;
    h->exchange = PLB__EXCHANGE_HEAD;
    h->to_head = plb__http2_asks_for_head(headers, header_count);
    h->stream_send_window = (int32_t)h->peer_window;
    h->stream_receive_window = PLB__HTTP2_WINDOW;
    h->content_known = false;
    h->frames = 0;
    return PLB_OK;
}

PLB_API void plb_http2_cancel(plb_http2 *h)
{
    if (h->exchange != PLB__EXCHANGE_NONE)
        plb__http2_put_reset(h, PLB_HTTP2_CANCEL);
}

PLB_API void plb_http2_close(plb_http2 *h)
{
    plb__http2_put_goaway(h, PLB_HTTP2_NO_ERROR);
}

/* ---- input ---- */

typedef struct plb__http2_input {
    const char *at, *end;
} plb__http2_input;

/* Is the frame about the request in flight? What is not is read past. */
static bool plb__http2_is_live(const plb_http2 *h)
{
    return h->exchange != PLB__EXCHANGE_NONE && h->frame_stream == h->stream;
}

/* RFC 9113 section 5.1.1: this side has not begun it, and the server may not. */
static bool plb__http2_is_idle(const plb_http2 *h)
{
    return h->frame_stream % 2 == 0 || h->frame_stream >= h->next_stream;
}

/* Gathers `size` bytes in h->bytes. */
static bool plb__http2_collect(plb_http2 *h, plb__http2_input *in, uint8_t size)
{
    while (h->collected < size && in->at < in->end)
        h->bytes[h->collected++] = (uint8_t)*in->at++;
    if (h->collected < size)
        return false;
    h->collected = 0;
    return true;
}

/* What is true of each frame that is known. */
enum {
    PLB__FRAME_OF_CONNECTION = 1, /* may name no stream */
    PLB__FRAME_OF_STREAM = 2,     /* may name a stream that this side has begun */
    PLB__FRAME_OF_IDLE = 4        /* may name any other stream */
};

typedef struct plb__http2_rule {
    uint8_t size; /* of its content, or of each piece of it; 0: any */
    uint8_t of;
} plb__http2_rule;

static const plb__http2_rule plb__http2_rules[PLB__FRAME_UNKNOWN] = {
    {0, PLB__FRAME_OF_STREAM},                            /* DATA */
    {0, PLB__FRAME_OF_STREAM},                            /* HEADERS */
    {5, PLB__FRAME_OF_STREAM | PLB__FRAME_OF_IDLE},       /* PRIORITY */
    {4, PLB__FRAME_OF_STREAM},                            /* RST_STREAM */
    {6, PLB__FRAME_OF_CONNECTION},                        /* SETTINGS */
    {0, 0},                                               /* PUSH_PROMISE */
    {8, PLB__FRAME_OF_CONNECTION},                        /* PING */
    {8, PLB__FRAME_OF_CONNECTION},                        /* GOAWAY, and text behind that */
    {4, PLB__FRAME_OF_CONNECTION | PLB__FRAME_OF_STREAM}, /* WINDOW_UPDATE */
    {0, PLB__FRAME_OF_STREAM}                             /* CONTINUATION */
};

static bool plb__http2_length_is_right(const plb_http2 *h)
{
    uint32_t size = plb__http2_rules[h->frame_type].size;
    if (size == 0)
        return true;
    if (h->frame_type == PLB__FRAME_GOAWAY)
        return h->frame_left >= size;
    if (h->frame_type == PLB__FRAME_SETTINGS)
        return (h->frame_flags & PLB__FLAG_ACK) != 0 ? h->frame_left == 0 : h->frame_left % size == 0;
    return h->frame_left == size;
}

static bool plb__http2_stream_is_right(const plb_http2 *h)
{
    uint32_t is = PLB__FRAME_OF_STREAM;
    if (h->frame_stream == 0)
        is = PLB__FRAME_OF_CONNECTION;
    else if (plb__http2_is_idle(h))
        is = PLB__FRAME_OF_IDLE;
    return (plb__http2_rules[h->frame_type].of & is) != 0;
}

/* Before anything of a frame but its head is known. */
static plb_http2_code plb__http2_judge_frame(const plb_http2 *h)
{
    bool known = h->frame_type < PLB__FRAME_UNKNOWN, continues = h->frame_type == PLB__FRAME_CONTINUATION;
    if (!h->settings_seen && (h->frame_type != PLB__FRAME_SETTINGS || (h->frame_flags & PLB__FLAG_ACK) != 0))
        return PLB_HTTP2_PROTOCOL_ERROR; /* section 3.4 */
    if (h->frame_left > PLB__HTTP2_FRAME_SIZE)
        return PLB_HTTP2_FRAME_SIZE_ERROR;
    if (continues != h->block_open || (known && !plb__http2_stream_is_right(h)))
        return PLB_HTTP2_PROTOCOL_ERROR;
    if (known && !plb__http2_length_is_right(h))
        return PLB_HTTP2_FRAME_SIZE_ERROR;
    /* Section 5.1: nothing follows an answer's end, unless it was ended from here and the peer may not know. */
    if ((h->frame_type == PLB__FRAME_DATA || h->frame_type == PLB__FRAME_HEADERS) && !plb__http2_is_live(h) &&
        h->frame_stream > h->reset_stream)
        return PLB_HTTP2_STREAM_CLOSED;
    return PLB_HTTP2_NO_ERROR;
}

static plb_status plb__http2_begin_data(plb_http2 *h, plb_http2_event *event)
{
    int32_t size = (int32_t)h->frame_left;
    bool live = plb__http2_is_live(h);
    if (size > h->receive_window || (live && size > h->stream_receive_window))
        return plb__http2_fault(h, event, PLB_HTTP2_FLOW_CONTROL_ERROR);
    h->receive_window -= size; /* section 6.9: padding counts, and so does what is read past */
    if (!live)
        return PLB_OK;
    h->stream_receive_window -= size;
    return h->exchange == PLB__EXCHANGE_HEAD ? plb__http2_malformed(h, event) : PLB_OK;
}

static void plb__http2_begin_block(plb_http2 *h)
{
    h->block_open = true;
    h->block_ends_stream = (h->frame_flags & PLB__FLAG_END_STREAM) != 0;
    h->block_size = h->list_size = 0;
    h->continuations = 0;
    if (h->exchange == PLB__EXCHANGE_HEAD)
        h->answer_status = 0;
}

/* What stands before the content: the length of the padding, and the priority that nobody uses any more. */
static plb_status plb__http2_begin_content(plb_http2 *h, plb_http2_event *event)
{
    bool data = h->frame_type == PLB__FRAME_DATA, headers = h->frame_type == PLB__FRAME_HEADERS;
    bool padded = (data || headers) && (h->frame_flags & PLB__FLAG_PADDED) != 0;
    bool priority = headers && (h->frame_flags & PLB__FLAG_PRIORITY) != 0;
    if (h->frame_left < (padded ? 1u : 0u) + (priority ? 5u : 0u))
        return plb__http2_fault(h, event, PLB_HTTP2_FRAME_SIZE_ERROR);
    h->frame_padding = 0;
    h->phase = PLB__PHASE_CONTENT;
    if (priority)
        h->phase = PLB__PHASE_PRIORITY;
    if (padded)
        h->phase = PLB__PHASE_PADDING_LENGTH;
    if (data)
        return plb__http2_begin_data(h, event);
    if (headers)
        plb__http2_begin_block(h);
    return PLB_OK;
}

static plb_status plb__http2_begin_frame(plb_http2 *h, plb_http2_event *event)
{
    plb_http2_code code;
    h->frame_left = plb__read32(h->bytes) >> 8;
    h->frame_type = h->bytes[3];
    h->frame_flags = h->bytes[4];
    h->frame_stream = plb__read32(h->bytes + 5) & PLB__HTTP2_WINDOW_MAX;
    code = plb__http2_judge_frame(h);
    if (code != PLB_HTTP2_NO_ERROR)
        return plb__http2_fault(h, event, code);
    if (++h->frames > PLB__HTTP2_FRAMES_MAX ||
        (h->block_open && ++h->continuations > PLB__HTTP2_CONTINUATIONS_MAX)) /* section 10.5 */
        return plb__http2_fault(h, event, PLB_HTTP2_ENHANCE_YOUR_CALM);
    return plb__http2_begin_content(h, event);
}

static plb_status plb__http2_read_padding_length(plb_http2 *h, plb_http2_event *event)
{
    bool priority = h->frame_type == PLB__FRAME_HEADERS && (h->frame_flags & PLB__FLAG_PRIORITY) != 0;
    h->frame_left--;
    h->frame_padding = h->bytes[0];
    if (h->frame_padding + (priority ? 5u : 0u) > h->frame_left) /* section 6.1 */
        return plb__http2_fault(h, event, PLB_HTTP2_PROTOCOL_ERROR);
    h->frame_left -= h->frame_padding;
    h->phase = priority ? PLB__PHASE_PRIORITY : PLB__PHASE_CONTENT;
    return PLB_OK;
}

/* Up to `size` bytes of the input, all that there are. */
static plb_text plb__http2_take(plb__http2_input *in, uint32_t size)
{
    plb_text text = plb__http1_slice(in->at, in->end);
    if (text.size > size)
        text.size = size;
    in->at += text.size;
    return text;
}

/* Section 8.1.1: data above its content-length is malformed, but not what comes before it. */
static plb_status plb__http2_read_data(plb_http2 *h, plb__http2_input *in, plb_http2_event *event)
{
    bool live = plb__http2_is_live(h);
    uint32_t size = h->frame_left;
    if (live && h->content_known) {
        if (h->content_left == 0)
            return plb__http2_malformed(h, event);
        if (size > h->content_left)
            size = (uint32_t)h->content_left;
    }
    event->data = plb__http2_take(in, size);
    h->frame_left -= (uint32_t)event->data.size;
    if (!live)
        return PLB_OK;
    h->content_left -= h->content_known ? event->data.size : 0;
    h->frames = 0;
    event->kind = PLB_HTTP2_DATA;
    return PLB_OK;
}

/* ---- header blocks ---- */

/* Sections 8.3.2 and 8.6: one :status, before all fields (none is taken before it), three digits, and never 101. False:
   malformed. */
static bool plb__http2_read_status(plb_http2 *h, const plb_hpack_field *field)
{
    if (h->exchange != PLB__EXCHANGE_HEAD || h->answer_status != 0 || !plb__text_equals(field->name, ":status") ||
        field->value.size != 3)
        return false;
    h->answer_status = plb__http1_status(field->value.data);
    return h->answer_status != 0 && h->answer_status != 101;
}

/* Section 8.1.1. An interim answer has no content, whatever it says. */
static bool plb__http2_read_length(plb_http2 *h, const plb_hpack_field *field)
{
    if (h->exchange != PLB__EXCHANGE_HEAD || h->answer_status < 200 || !plb__text_equals(field->name, "content-length"))
        return true;
    if (h->content_known || field->cut || plb_http1_content_length(field->value, &h->content_left) != PLB_OK)
        return false;
    h->content_known = true;
    return true;
}

static plb_status plb__http2_on_field(plb_http2 *h, const plb_hpack_field *field, plb_http2_event *event)
{
    bool head = h->exchange == PLB__EXCHANGE_HEAD;
    h->list_size += (uint32_t)field->size;
    if (h->list_size > PLB_HTTP2_HEADER_LIST_MAX)
        return plb__http2_fail(h, event, PLB_ERR_LIMIT, PLB_HTTP2_ENHANCE_YOUR_CALM);
    if (!plb__http2_is_live(h))
        return PLB_OK;
    event->status = h->answer_status;
    if (plb__http2_is_pseudo(field->name)) {
        if (!plb__http2_read_status(h, field))
            return plb__http2_malformed(h, event);
        event->kind = PLB_HTTP2_STATUS;
        event->status = h->answer_status;
        return PLB_OK;
    }
    if (h->answer_status == 0 || !plb__http2_is_field(field->name, field->value, field->cut) ||
        !plb__http2_read_length(h, field))
        return plb__http2_malformed(h, event);
    event->kind = head ? PLB_HTTP2_HEADER : PLB_HTTP2_TRAILER;
    event->name = field->name;
    event->value = field->value;
    event->cut = field->cut;
    return PLB_OK;
}

PLB__ONCE plb_status plb__http2_read_block(plb_http2 *h, plb__http2_input *in, plb_http2_event *event)
{
    plb__http2_input rest = *in;
    plb_text piece = plb__http2_take(&rest, h->frame_left);
    plb_hpack_field field;
    size_t used;
    plb_status status = plb_hpack_next(&h->hpack, piece.data, piece.size, &used, &field);
    in->at += used;
    h->frame_left -= (uint32_t)used;
    h->block_size += (uint32_t)used;
    if (h->block_size > PLB_HTTP2_HEADER_LIST_MAX)
        return plb__http2_fail(h, event, PLB_ERR_LIMIT, PLB_HTTP2_ENHANCE_YOUR_CALM);
    if (status == PLB_OK)
        return plb__http2_on_field(h, &field, event);
    return status == PLB_AGAIN ? PLB_OK : plb__http2_fault(h, event, PLB_HTTP2_COMPRESSION_ERROR);
}

static plb_status plb__http2_end_head(plb_http2 *h, plb_http2_event *event)
{
    bool interim = h->answer_status < 200;
    if (h->answer_status == 0 || (interim && h->block_ends_stream)) /* section 8.1 */
        return plb__http2_malformed(h, event);
    if (!interim) {
        h->exchange = PLB__EXCHANGE_BODY;
        if (h->to_head || h->answer_status == 204 || h->answer_status == 304) { /* no content, whatever its length */
            h->content_known = true;
            h->content_left = 0;
        }
    }
    event->kind = PLB_HTTP2_HEADERS_END;
    event->status = h->answer_status;
    return PLB_OK;
}

static plb_status plb__http2_end_block(plb_http2 *h, plb_http2_event *event)
{
    if ((h->frame_flags & PLB__FLAG_END_HEADERS) == 0)
        return PLB_OK;
    h->block_open = false;
    if (plb_hpack_end(&h->hpack) != PLB_OK)
        return plb__http2_fault(h, event, PLB_HTTP2_COMPRESSION_ERROR);
    if (h->block_ends_stream)
        h->phase = PLB__PHASE_END_STREAM;
    if (!plb__http2_is_live(h))
        return PLB_OK;
    if (h->exchange == PLB__EXCHANGE_HEAD)
        return plb__http2_end_head(h, event);
    return h->block_ends_stream ? PLB_OK : plb__http2_malformed(h, event); /* trailers are the last of a stream */
}

/* ---- frames of the connection ---- */

/* RFC 9113 section 6.9.2: windows that are open grow or shrink by the difference, below 0 if need be. */
static plb_http2_code plb__http2_set_window(plb_http2 *h, uint32_t window)
{
    int64_t moved = (int64_t)h->stream_send_window + window - h->peer_window;
    if (window > PLB__HTTP2_WINDOW_MAX)
        return PLB_HTTP2_FLOW_CONTROL_ERROR;
    if (h->exchange != PLB__EXCHANGE_NONE) {
        if (moved > PLB__HTTP2_WINDOW_MAX)
            return PLB_HTTP2_FLOW_CONTROL_ERROR;
        h->stream_send_window = (int32_t)moved;
    }
    h->peer_window = window;
    return PLB_HTTP2_NO_ERROR;
}

/* Section 6.5.2. SETTINGS_HEADER_TABLE_SIZE: this side's table is empty anyway. */
static plb_status plb__http2_on_setting(plb_http2 *h, plb_http2_event *event)
{
    uint32_t value = plb__read32(h->bytes + 2);
    plb_http2_code code = PLB_HTTP2_NO_ERROR;
    switch ((uint32_t)h->bytes[0] << 8 | h->bytes[1]) {
    case PLB__SETTING_ENABLE_PUSH:
        if (value != 0)
            code = PLB_HTTP2_PROTOCOL_ERROR;
        break;
    case PLB__SETTING_MAX_CONCURRENT_STREAMS:
        h->streams_allowed = value > 0;
        break;
    case PLB__SETTING_INITIAL_WINDOW_SIZE:
        code = plb__http2_set_window(h, value);
        break;
    case PLB__SETTING_MAX_FRAME_SIZE:
        if (value < PLB__HTTP2_FRAME_SIZE || value > 0xffffff)
            code = PLB_HTTP2_PROTOCOL_ERROR;
        else
            h->peer_frame_size = value;
        break;
    default:
        break;
    }
    return code == PLB_HTTP2_NO_ERROR ? PLB_OK : plb__http2_fault(h, event, code);
}

/* An answer that has no room: the peer asks faster than it reads (section 10.5). */
static plb_status plb__http2_reply(plb_http2 *h, plb_http2_event *event, uint8_t type, const void *payload, size_t size)
{
    if (!plb__http2_put(h, type, PLB__FLAG_ACK, 0, payload, size, PLB__HTTP2_RESERVE))
        return plb__http2_fault(h, event, PLB_HTTP2_ENHANCE_YOUR_CALM);
    return PLB_OK;
}

static plb_status plb__http2_end_settings(plb_http2 *h, plb_http2_event *event)
{
    h->settings_seen = true;
    if ((h->frame_flags & PLB__FLAG_ACK) == 0)
        return plb__http2_reply(h, event, PLB__FRAME_SETTINGS, NULL, 0);
    plb_hpack_acknowledged(&h->hpack);
    return PLB_OK;
}

/* Section 6.9.1. */
static plb_status plb__http2_on_window_update(plb_http2 *h, plb_http2_event *event)
{
    uint32_t increment = plb__read32(h->bytes) & PLB__HTTP2_WINDOW_MAX;
    int32_t *window = h->frame_stream == 0 ? &h->send_window : &h->stream_send_window;
    plb_http2_code code = increment == 0 ? PLB_HTTP2_PROTOCOL_ERROR : PLB_HTTP2_FLOW_CONTROL_ERROR;
    if (h->frame_stream != 0 && !plb__http2_is_live(h))
        return PLB_OK;
    if (increment > 0 && increment <= PLB__HTTP2_WINDOW_MAX - (uint32_t)*window) { /* which may be below 0 */
        *window += (int32_t)increment;
        return PLB_OK;
    }
    return h->frame_stream == 0 ? plb__http2_fault(h, event, code) : plb__http2_reset(h, event, code);
}

static plb_status plb__http2_on_reset(plb_http2 *h, plb_http2_event *event)
{
    if (!plb__http2_is_live(h))
        return PLB_OK;
    h->exchange = PLB__EXCHANGE_NONE;
    event->kind = PLB_HTTP2_RESET;
    event->code = plb__read32(h->bytes);
    return PLB_OK;
}

/* Section 6.8. What follows the 8 bytes is for people to read: skipped. */
static plb_status plb__http2_on_goaway(plb_http2 *h, plb_http2_event *event)
{
    uint32_t last = plb__read32(h->bytes) & PLB__HTTP2_WINDOW_MAX;
    h->frame_type = PLB__FRAME_UNKNOWN;
    h->going_away = true;
    event->kind = PLB_HTTP2_GOAWAY;
    event->code = plb__read32(h->bytes + 4);
    event->covered = h->exchange == PLB__EXCHANGE_NONE || h->stream <= last;
    if (!event->covered) {
        h->exchange = PLB__EXCHANGE_NONE;
        h->reset_stream = h->stream;
    }
    return PLB_OK;
}

/* Frames whose content is of one size, or of several pieces of one size. */
static plb_status plb__http2_read_fixed(plb_http2 *h, plb__http2_input *in, plb_http2_event *event)
{
    uint8_t size = plb__http2_rules[h->frame_type].size;
    if (!plb__http2_collect(h, in, size))
        return PLB_OK;
    h->frame_left -= size;
    switch (h->frame_type) {
    case PLB__FRAME_RST_STREAM:
        return plb__http2_on_reset(h, event);
    case PLB__FRAME_SETTINGS:
        return plb__http2_on_setting(h, event);
    case PLB__FRAME_PING:
        return (h->frame_flags & PLB__FLAG_ACK) != 0 ? PLB_OK
                                                     : plb__http2_reply(h, event, PLB__FRAME_PING, h->bytes, size);
    case PLB__FRAME_GOAWAY:
        return plb__http2_on_goaway(h, event);
    case PLB__FRAME_WINDOW_UPDATE:
        return plb__http2_on_window_update(h, event);
    default: /* PRIORITY says nothing any more (section 5.3.2) */
        return PLB_OK;
    }
}

static plb_status plb__http2_read_content(plb_http2 *h, plb__http2_input *in, plb_http2_event *event)
{
    if (h->frame_left == 0) {
        h->phase = PLB__PHASE_PADDING;
        return PLB_OK;
    }
    if (h->frame_type == PLB__FRAME_DATA)
        return plb__http2_read_data(h, in, event);
    if (h->frame_type == PLB__FRAME_HEADERS || h->frame_type == PLB__FRAME_CONTINUATION)
        return plb__http2_read_block(h, in, event);
    if (h->frame_type < PLB__FRAME_UNKNOWN)
        return plb__http2_read_fixed(h, in, event);
    h->frame_left -= (uint32_t)plb__http2_take(in, h->frame_left).size;
    return PLB_OK;
}

static plb_status plb__http2_end_frame(plb_http2 *h, plb_http2_event *event)
{
    h->phase = PLB__PHASE_FRAME;
    switch (h->frame_type) {
    case PLB__FRAME_DATA:
        if ((h->frame_flags & PLB__FLAG_END_STREAM) != 0)
            h->phase = PLB__PHASE_END_STREAM;
        return PLB_OK;
    case PLB__FRAME_HEADERS:
    case PLB__FRAME_CONTINUATION:
        return plb__http2_end_block(h, event);
    case PLB__FRAME_SETTINGS:
        return plb__http2_end_settings(h, event);
    default:
        return PLB_OK;
    }
}

static plb_status plb__http2_end_stream(plb_http2 *h, plb_http2_event *event)
{
    h->phase = PLB__PHASE_FRAME;
    if (!plb__http2_is_live(h))
        return PLB_OK;
    if (h->content_known && h->content_left > 0)
        return plb__http2_malformed(h, event);
    if (h->body.size > h->body_framed) /* the peer does not wait for the rest of the request (section 8.1) */
        plb__http2_put_reset(h, PLB_HTTP2_CANCEL);
    h->exchange = PLB__EXCHANGE_NONE;
    event->kind = PLB_HTTP2_END;
    return PLB_OK;
}

/* One step of the frame that is being read. */
PLB__ONCE plb_status plb__http2_step(plb_http2 *h, plb__http2_input *in, plb_http2_event *event)
{
    switch (h->phase) {
    case PLB__PHASE_FRAME:
        return plb__http2_collect(h, in, PLB__HTTP2_FRAME_HEAD) ? plb__http2_begin_frame(h, event) : PLB_OK;
    case PLB__PHASE_PADDING_LENGTH:
        return plb__http2_collect(h, in, 1) ? plb__http2_read_padding_length(h, event) : PLB_OK;
    case PLB__PHASE_PRIORITY:
        if (plb__http2_collect(h, in, 5)) {
            h->frame_left -= 5;
            h->phase = PLB__PHASE_CONTENT;
        }
        return PLB_OK;
    case PLB__PHASE_CONTENT:
        return plb__http2_read_content(h, in, event);
    case PLB__PHASE_PADDING:
        h->frame_padding = (uint8_t)(h->frame_padding - plb__http2_take(in, h->frame_padding).size);
        if (h->frame_padding == 0)
            h->phase = PLB__PHASE_END_FRAME;
        return PLB_OK;
    case PLB__PHASE_END_FRAME:
        return plb__http2_end_frame(h, event);
    default: /* PLB__PHASE_END_STREAM */
        return plb__http2_end_stream(h, event);
    }
}

/* Can the next step be taken without a byte? */
static bool plb__http2_needs_no_byte(const plb_http2 *h)
{
    switch (h->phase) {
    case PLB__PHASE_CONTENT:
        return h->frame_left == 0;
    case PLB__PHASE_PADDING:
        return h->frame_padding == 0;
    case PLB__PHASE_END_FRAME:
    case PLB__PHASE_END_STREAM:
        return true;
    default:
        return false;
    }
}

PLB_API plb_status plb_http2_next(plb_http2 *h, const char *bytes, size_t size, size_t *used, plb_http2_event *event)
{
    plb__http2_input in;
    plb_status status = (plb_status)h->failed;
    memset(event, 0, sizeof *event);
    event->code = h->code;
    in.at = bytes;
    in.end = size > 0 ? bytes + size : bytes;
    while (status == PLB_OK && event->kind == PLB_HTTP2_NONE)
        status = in.at < in.end || plb__http2_needs_no_byte(h) ? plb__http2_step(h, &in, event) : PLB_AGAIN;
    *used = size > 0 ? (size_t)(in.at - bytes) : 0;
    return status;
}
#endif

/* ==== GRPC ===========================================================================================================
   A message of one field to write, and one to read byte by byte. */

#ifndef PLB_NO_GRPC
PLB_API const char *plb_grpc_serving_name(uint32_t serving)
{
    static const char *const names[] = {"UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"};
    return names[serving < sizeof names / sizeof names[0] ? serving : 0];
}

PLB_API const char *plb_grpc_status_name(uint32_t status)
{
    static const char *const names[] = {
        "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
        "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
        "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
        "DATA_LOSS", "UNAUTHENTICATED"};
    return names[status < sizeof names / sizeof names[0] ? status : 2];
}

PLB_API plb_status plb_grpc_status(plb_text value, uint32_t *out)
{
    uint64_t number;
    if (plb_http1_content_length(value, &number) != PLB_OK || number > UINT32_MAX) /* digits and nothing else, too */
        return PLB_ERR_PROTOCOL;
    *out = (uint32_t)number;
    return PLB_OK;
}

PLB_API void plb_grpc_health_headers(plb_http2_header headers[PLB_GRPC_HEADERS], plb_text authority, bool tls)
{
    static const char *const names[PLB_GRPC_HEADERS] = {":method",    ":scheme",      ":path",
                                                        ":authority", "content-type", "te"};
    static const char *const values[PLB_GRPC_HEADERS] = {
        "POST", "http", "/grpc.health.v1.Health/Check", "", "application/grpc", "trailers"};
    size_t i;
    for (i = 0; i < PLB_GRPC_HEADERS; i++) {
        headers[i].name = plb__text_of(names[i]);
        headers[i].value = plb__text_of(values[i]);
    }
    if (tls)
        headers[1].value = plb__text_of("https");
    headers[3].value = authority;
}

static size_t plb__varint_size(size_t number)
{
    size_t size = 1;
    while ((number >>= 7) != 0)
        size++;
    return size;
}

PLB_API size_t plb_grpc_health_request(char *out, size_t capacity, plb_text service)
{
    size_t message = service.size == 0 ? 0 : 1 + plb__varint_size(service.size) + service.size, left = service.size;
    char head[5] = {0}; /* not compressed */
    plb__bytes to;
    plb_text text;
    to.out = out;
    to.capacity = capacity < 5 + message ? 0 : capacity;
    to.size = 0;
    plb__write32(head + 1, (uint32_t)message);
    text.data = head;
    text.size = sizeof head;
    plb__put_text(&to, text);
    if (service.size == 0) /* what is empty is not said */
        return to.size;
    plb__put_byte(&to, 1 << 3 | 2); /* field 1, a string */
    for (; left >= 0x80; left >>= 7)
        plb__put_byte(&to, (uint32_t)(left & 0x7f) | 0x80);
    plb__put_byte(&to, (uint32_t)left);
    plb__put_text(&to, service);
    return to.size;
}

enum { PLB__GRPC_PREFIX = 5, PLB__GRPC_STATUS_FIELD = 1 };

enum { /* what the next byte of the message belongs to */
       PLB__GRPC_TAG = 0,
       PLB__GRPC_VARINT,
       PLB__GRPC_LENGTH,
       PLB__GRPC_SKIP
};

enum { /* Protocol Buffers, "Message Structure" */
       PLB__WIRE_VARINT = 0,
       PLB__WIRE_64,
       PLB__WIRE_LENGTH,
       PLB__WIRE_GROUP,
       PLB__WIRE_GROUP_END,
       PLB__WIRE_32
};

static plb_status plb__grpc_skip(plb_grpc_health *reader, uint32_t size)
{
    reader->skip = size;
    reader->state = size > 0 ? PLB__GRPC_SKIP : PLB__GRPC_TAG;
    return size > reader->left ? PLB_ERR_PROTOCOL : PLB_OK;
}

static plb_status plb__grpc_group(plb_grpc_health *reader, bool begins)
{
    reader->state = PLB__GRPC_TAG;
    if (begins) {
        if (reader->depth == PLB_GRPC_GROUP_MAX)
            return PLB_ERR_LIMIT;
        reader->groups[reader->depth++] = reader->field;
        return PLB_OK;
    }
    if (reader->depth == 0 || reader->groups[--reader->depth] != reader->field)
        return PLB_ERR_PROTOCOL;
    return PLB_OK;
}

static plb_status plb__grpc_on_tag(plb_grpc_health *reader)
{
    if (reader->varint > UINT32_MAX || reader->varint < 8) /* field numbers are 1 to 2^29 - 1 */
        return PLB_ERR_PROTOCOL;
    reader->field = (uint32_t)(reader->varint >> 3);
    switch (reader->varint & 7) {
    case PLB__WIRE_VARINT:
        reader->state = PLB__GRPC_VARINT;
        return PLB_OK;
    case PLB__WIRE_64:
        return plb__grpc_skip(reader, 8);
    case PLB__WIRE_LENGTH:
        reader->state = PLB__GRPC_LENGTH;
        return PLB_OK;
    case PLB__WIRE_GROUP:
        return plb__grpc_group(reader, true);
    case PLB__WIRE_GROUP_END:
        return plb__grpc_group(reader, false);
    case PLB__WIRE_32:
        return plb__grpc_skip(reader, 4);
    default:
        return PLB_ERR_PROTOCOL;
    }
}

/* A whole varint: a tag, a value or a length. An enum is the low 32 bits of one; of several, the last one counts. */
static plb_status plb__grpc_on_varint(plb_grpc_health *reader)
{
    switch (reader->state) {
    case PLB__GRPC_TAG:
        return plb__grpc_on_tag(reader);
    case PLB__GRPC_VARINT:
        reader->state = PLB__GRPC_TAG;
        if (reader->field == PLB__GRPC_STATUS_FIELD && reader->depth == 0)
            reader->serving = (uint32_t)(reader->varint & UINT32_MAX);
        return PLB_OK;
    default: /* PLB__GRPC_LENGTH */
        if (reader->varint > reader->left)
            return PLB_ERR_PROTOCOL;
        return plb__grpc_skip(reader, (uint32_t)reader->varint);
    }
}

/* One byte of the message. */
static plb_status plb__grpc_byte(plb_grpc_health *reader, uint8_t byte)
{
    plb_status status;
    reader->left--;
    if (reader->state == PLB__GRPC_SKIP) {
        if (--reader->skip == 0)
            reader->state = PLB__GRPC_TAG;
        return PLB_OK;
    }
    if (reader->shift == 63 && byte > 1) /* 64 bits are ten bytes, and one bit of the last */
        return PLB_ERR_PROTOCOL;
    reader->varint |= (uint64_t)(byte & 0x7f) << reader->shift;
    reader->shift = (uint8_t)(reader->shift + 7);
    if ((byte & 0x80) != 0)
        return PLB_OK;
    status = plb__grpc_on_varint(reader);
    reader->varint = 0;
    reader->shift = 0;
    return status;
}

/* One byte of what stands before a message: is it compressed, and how long is it. */
static plb_status plb__grpc_prefix(plb_grpc_health *reader, uint8_t byte)
{
    if (reader->prefix_read++ == 0)
        return byte == 0 ? PLB_OK : PLB_ERR_PROTOCOL;
    reader->left = reader->left << 8 | byte;
    return reader->prefix_read == PLB__GRPC_PREFIX && reader->left > PLB_GRPC_MESSAGE_MAX ? PLB_ERR_LIMIT : PLB_OK;
}

PLB_API plb_status plb_grpc_health_next(plb_grpc_health *reader, const char *bytes, size_t size)
{
    plb_status status = PLB_OK;
    size_t i;
    for (i = 0; i < size && status == PLB_OK; i++) {
        if (reader->prefix_read < PLB__GRPC_PREFIX)
            status = plb__grpc_prefix(reader, (uint8_t)bytes[i]);
        else
            status = reader->left > 0 ? plb__grpc_byte(reader, (uint8_t)bytes[i]) : PLB_ERR_PROTOCOL;
    }
    if (status != PLB_OK)
        return status;
    if (reader->prefix_read < PLB__GRPC_PREFIX || reader->left > 0)
        return PLB_AGAIN;
    if (reader->state != PLB__GRPC_TAG || reader->shift > 0 || reader->depth > 0) /* it ends in the midst of a field */
        return PLB_ERR_PROTOCOL;
    return PLB_OK;
}
#endif

#endif /* PLB__IMPLEMENTED */
#endif /* PINGORA_LB_IMPLEMENTATION */
