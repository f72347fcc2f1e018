# make run     builds the load balancer and shows it at work
# make test    installs or names what the tests need, then runs all of them
# make test-ports   the same on Windows (under wine), over lwIP, and on a Cortex-M3 (under QEMU)
# make size    prints the library's flash and RAM on a Cortex-M3
# make cortex_m   shows a balancer on a Cortex-M3 (under QEMU); make cortex_m_stack prints how deep its calls get
# make bench   prints what selecting and the rest cost, beside recorded figures of pingora; make bench-plot draws it
# make bench-probe, bench-proxy, bench-idle   health checks beside HAProxy's, the proxy beside nginx, an idle process
# make fuzz    runs each fuzz target for FUZZ_SECONDS
# make win32   builds the examples for Windows, with MinGW, into build/win32
# make         builds the examples; needs nothing but a C compiler

CC      ?= cc
CFLAGS  ?= -O2 -g
GCC     ?= gcc
GXX     ?= g++
CLANG   ?= clang
GREATEST ?= tests

WARN    := -Wall -Wextra -Wpedantic -Wshadow -Wconversion
HEADERS := pingora_lb.h $(wildcard ports/*.h)
TESTING := $(HEADERS) $(wildcard tests/*.h) $(GREATEST)/greatest.h

EXAMPLES := $(patsubst examples/%.c,build/%,$(wildcard examples/*.c))

all: $(EXAMPLES)

build/%: examples/%.c $(HEADERS) | build
	$(CC) -std=c99 $(WARN) $(CFLAGS) $(WITH_TLS) $< -o $@ -pthread $(WITH_TLS_LIBS)

build/plb_probe: WITH_TLS = $(if $(MBEDTLS),-DPLB_HAVE_MBEDTLS)
build/plb_probe: WITH_TLS_LIBS = $(if $(MBEDTLS),$(TLS_LIBS))

build build/unit build/fuzz build/size:
	mkdir -p $@

run: build/load_balancer
	build/load_balancer --demo

# ---- mbedTLS: where it is missing, what needs it is left out ----

TLS_LIBS := -lmbedtls -lmbedx509 -lmbedcrypto
MBEDTLS  := $(shell printf '\043include <mbedtls/ssl.h>\nint main(void) { return mbedtls_ssl_handshake(0) == 0; }' | \
              $(CC) -x c - -o /dev/null $(TLS_LIBS) 2>/dev/null && echo yes)
TLS_UNITS := mbedtls conformance_mbedtls

# ---- tests: every unit plainly, under address and undefined, under thread; then builds, fuzz corpora, real peers ----

# A name that ends in _poll, _spill, _shared, _small or _crc and a number is the same source built another way. Tests of
# what is public are linked with an implementation that is built once for each kind; those that look inside, or are
# built another way, have one of their own, and the linker then takes nothing from the archive.
UNITS := $(patsubst tests/test_%.c,%,$(wildcard tests/test_*.c)) posix_poll conformance_sim conformance_posix \
         conformance_posix_poll threads_spill stress_spill stress_shared \
         ring_crc0 ring_crc1 ring_crc8 conformance_mbedtls \
         pick_small ring_small load_small hashing_small vectors_small http1_small
ifneq ($(MBEDTLS),yes)
UNITS := $(filter-out $(TLS_UNITS),$(UNITS))
endif
FUZZERS := $(patsubst tests/fuzz/fuzz_%.c,%,$(wildcard tests/fuzz/fuzz_*.c))

TEST_BUILD = -std=c99 $(WARN) -Werror -isystem $(GREATEST) -g $(VARIANT) $(filter %.c,$^) $(filter %.a,$^) -o $@ \
             -pthread $(LIBS)
FLAGS_plain := -O2
FLAGS_asan  := -O1 -fsanitize=address,undefined -fno-sanitize-recover=all
FLAGS_tsan  := -O1 -fsanitize=thread

build/unit/%_poll.plain build/unit/%_poll.asan build/unit/%_poll.tsan: VARIANT = -DPLB_POSIX_POLL
build/unit/%_spill.plain build/unit/%_spill.asan build/unit/%_spill.tsan: VARIANT = -DPLB_READERS=1 -DPINGORA_LB_IMPLEMENTATION
build/unit/%_shared.plain build/unit/%_shared.asan build/unit/%_shared.tsan: VARIANT = -DPLB_NO_THREAD_LOCAL -DPINGORA_LB_IMPLEMENTATION
build/unit/%_crc0.plain build/unit/%_crc0.asan build/unit/%_crc0.tsan: VARIANT = -DPLB_CRC_TABLES=0
build/unit/%_crc1.plain build/unit/%_crc1.asan build/unit/%_crc1.tsan: VARIANT = -DPLB_CRC_TABLES=1
build/unit/%_crc8.plain build/unit/%_crc8.asan build/unit/%_crc8.tsan: VARIANT = -DPLB_CRC_TABLES=8
build/unit/%_small.plain build/unit/%_small.asan build/unit/%_small.tsan: VARIANT = -Os $(OWN_CORE)
$(foreach kind,plain asan tsan,build/unit/vectors_small.$(kind) build/unit/http1_small.$(kind)): OWN_CORE = -DPINGORA_LB_IMPLEMENTATION

$(foreach kind,plain asan tsan,$(TLS_UNITS:%=build/unit/%.$(kind))): LIBS = $(TLS_LIBS)

define unit_rules
build/unit/core.$(1).a: tests/core.c pingora_lb.h | build/unit
	@echo "build $$@"
	@$(GCC) $$(FLAGS_$(1)) -std=c99 $(WARN) -Werror -g -c $$< -o $$(@:.a=.o) && rm -f $$@ && ar rcs $$@ $$(@:.a=.o)
build/unit/conformance_mbedtls.$(1): tests/io_conformance.c tests/io_fixture_mbedtls.c tests/io_fixture_posix.c \
		$(TESTING) build/unit/core.$(1).a | build/unit
	@echo "build $$@"
	@$(GCC) $$(FLAGS_$(1)) $$(subst tests/io_fixture_posix.c,,$$(TEST_BUILD))
build/unit/conformance_sim.$(1): tests/io_conformance.c tests/io_fixture_sim.c $(TESTING) build/unit/core.$(1).a | build/unit
	@echo "build $$@"
	@$(GCC) $$(FLAGS_$(1)) $$(TEST_BUILD)
build/unit/conformance_posix.$(1) build/unit/conformance_posix_poll.$(1): \
		tests/io_conformance.c tests/io_fixture_posix.c $(TESTING) build/unit/core.$(1).a | build/unit
	@echo "build $$@"
	@$(GCC) $$(FLAGS_$(1)) $$(TEST_BUILD)
build/unit/%_poll.$(1): tests/test_%.c $(TESTING) build/unit/core.$(1).a | build/unit
	@echo "build $$@"
	@$(GCC) $$(FLAGS_$(1)) $$(TEST_BUILD)
build/unit/%_spill.$(1): tests/test_%.c $(TESTING) build/unit/core.$(1).a | build/unit
	@echo "build $$@"
	@$(GCC) $$(FLAGS_$(1)) $$(TEST_BUILD)
build/unit/%_shared.$(1): tests/test_%.c $(TESTING) build/unit/core.$(1).a | build/unit
	@echo "build $$@"
	@$(GCC) $$(FLAGS_$(1)) $$(TEST_BUILD)
build/unit/%_crc0.$(1): tests/test_%.c $(TESTING) build/unit/core.$(1).a | build/unit
	@echo "build $$@"
	@$(GCC) $$(FLAGS_$(1)) $$(TEST_BUILD)
build/unit/%_crc1.$(1): tests/test_%.c $(TESTING) build/unit/core.$(1).a | build/unit
	@echo "build $$@"
	@$(GCC) $$(FLAGS_$(1)) $$(TEST_BUILD)
build/unit/%_crc8.$(1): tests/test_%.c $(TESTING) build/unit/core.$(1).a | build/unit
	@echo "build $$@"
	@$(GCC) $$(FLAGS_$(1)) $$(TEST_BUILD)
build/unit/%_small.$(1): tests/test_%.c $(TESTING) build/unit/core.$(1).a | build/unit
	@echo "build $$@"
	@$(GCC) $$(FLAGS_$(1)) $$(TEST_BUILD)
build/unit/%.$(1): tests/test_%.c $(TESTING) build/unit/core.$(1).a | build/unit
	@echo "build $$@"
	@$(GCC) $$(FLAGS_$(1)) $$(TEST_BUILD)
endef
$(foreach kind,plain asan tsan,$(eval $(call unit_rules,$(kind))))

FUZZ_BUILD = $(CLANG) -std=c11 $(WARN) -Werror -g -O1 -fsanitize=address,undefined,fuzzer -fno-sanitize-recover=all
build/fuzz/core.a: tests/core.c pingora_lb.h | build/fuzz
	@echo "build $@"
	@$(subst fuzzer,fuzzer-no-link,$(FUZZ_BUILD)) -c $< -o $(@:.a=.o) && rm -f $@ && ar rcs $@ $(@:.a=.o)
build/fuzz/%: tests/fuzz/fuzz_%.c build/fuzz/core.a $(HEADERS) $(wildcard tests/fuzz/*.h) | build/fuzz
	@echo "build $@"
	@$(FUZZ_BUILD) $< build/fuzz/core.a -o $@

# The ring has no threads of its own: its variants need no thread sanitizer. Small code has little of its own.
TEST_PROGRAMS := $(filter-out build/unit/ring_crc%.tsan %_small.asan %_small.tsan,$(foreach kind,plain asan tsan,$(UNITS:%=build/unit/%.$(kind))))

test-needs:
	@sh tests/needs.sh test

# What is there to be built may depend on what was installed just before: hence another make.
test-build: test-needs
	@$(MAKE) --no-print-directory -j$$(nproc) test-programs

build/tls_peer: tests/tls_peer.c $(HEADERS) | build
	@echo "build $@"
	@$(GCC) -std=c99 $(WARN) -Werror -g -O1 -fsanitize=address,undefined $< -o $@ -pthread $(TLS_LIBS)

test-programs: $(TEST_PROGRAMS) $(FUZZERS:%=build/fuzz/%) $(if $(MBEDTLS),build/tls_peer) build/bench build/bench_probe all
ifneq ($(MBEDTLS),yes)
	@echo "mbedTLS is not here: the tests of ports/plb_mbedtls.h are left out (Debian: apt-get install libmbedtls-dev)"
endif

test: test-build
	@$(MAKE) --no-print-directory test-run

TEST_SCRIPTS := $(if $(MBEDTLS),tests/test_tls_peers.sh)
test-run:
	@bash tests/run.sh $(TEST_PROGRAMS) tests/test_build.sh $(FUZZERS:%=build/fuzz/%) tests/test_plb_pick.sh \
		tests/test_system.sh $(TEST_SCRIPTS) tests/test_peers.sh

# ---- other platforms: each of these scripts builds what it needs by the targets below, and runs it ----

PORT_SCRIPTS := $(wildcard tests/ports/test_*.sh)

test-ports:
	@sh tests/needs.sh test windows lwip cortex_m
	@bash tests/run.sh $(PORT_SCRIPTS)

needs-windows needs-cortex_m: needs-%:
	@sh tests/needs.sh $*

# ---- Windows, under wine ----

WIN32_CC    := x86_64-w64-mingw32-gcc
WIN32_BUILD = $(WIN32_CC) -std=c99 $(WARN) -Werror -O1
WIN32_LIBS  := -static -pthread -lws2_32 -lbcrypt

# Left out: what is of POSIX or needs mbedTLS, and the stress, whose worst moments are made by signals.
WIN32_UNITS := conformance win32 win32_single \
               $(filter-out posix mbedtls stress,$(patsubst tests/test_%.c,%,$(wildcard tests/test_*.c)))
# Left out: own_loop, which waits for standard input; that is no socket, and Windows waits for those alone.
WIN32_EXAMPLES := $(filter-out own_loop,$(EXAMPLES:build/%=%))

build/win32:
	mkdir -p $@
build/win32/core.a: tests/core.c pingora_lb.h | build/win32
	@echo "build $@"
	@$(WIN32_BUILD) -c $< -o $(@:.a=.o) && rm -f $@ && ar rcs $@ $(@:.a=.o)
build/win32/conformance.exe: tests/io_conformance.c tests/ports/io_fixture_win32.c build/win32/core.a $(TESTING)
	@echo "build $@"
	@$(WIN32_BUILD) -isystem $(GREATEST) $(filter %.c %.a,$^) -o $@ $(WIN32_LIBS)
build/win32/win32.exe build/win32/win32_single.exe: tests/ports/win32.c $(TESTING) | build/win32
	@echo "build $@"
	@$(WIN32_BUILD) $(VARIANT) -isystem $(GREATEST) $< -o $@ $(WIN32_LIBS)
build/win32/win32_single.exe: VARIANT = -DPLB_NO_THREADS
build/win32/%.exe: tests/test_%.c build/win32/core.a $(TESTING)
	@echo "build $@"
	@$(WIN32_BUILD) -O0 -isystem $(GREATEST) $(filter %.c %.a,$^) -o $@ $(WIN32_LIBS)
build/win32/%.exe: examples/%.c $(HEADERS) | build/win32
	@echo "build $@"
	@$(WIN32_BUILD) $< -o $@ $(WIN32_LIBS)

# The library's branch for Microsoft's compiler, which is not to be had here: made to run on this machine, with its
# intrinsic functions from tests/ports/msvc, under the thread sanitizer.
MSVC_UNITS := threads vectors handles
build/win32/msvc_core.a: tests/core.c pingora_lb.h $(wildcard tests/ports/msvc/*.h) | build/win32
	@echo "build $@"
	@$(GCC) -std=c11 -Wall -Wextra -Wshadow -Wconversion -Wno-unknown-pragmas -Werror -g $(FLAGS_tsan) \
		-fno-strict-aliasing -isystem tests/ports/msvc -include tests/ports/msvc/on_linux.h -c $< -o $(@:.a=.o) && \
		rm -f $@ && ar rcs $@ $(@:.a=.o)
build/win32/msvc_%: tests/test_%.c build/win32/msvc_core.a $(TESTING)
	@echo "build $@"
	@$(GCC) $(FLAGS_tsan) $(TEST_BUILD)

win32-units: $(WIN32_UNITS:%=build/win32/%.exe) $(MSVC_UNITS:%=build/win32/msvc_%)
win32: needs-windows $(WIN32_EXAMPLES:%=build/win32/%.exe)
win32-list:
	@echo $(WIN32_UNITS) $(MSVC_UNITS:%=msvc_%)

# ---- lwIP ----

LWIP_INCLUDE ?= /usr/include/lwip

# The calls of lwIP that tests/ports/lwip.c has fail, and a DNS client of its own, which Debian's lwIP lacks.
LWIP_WRAPPED := tcp_new_ip_type tcp_bind tcp_listen_with_backlog_and_err tcp_connect tcp_write tcp_output tcp_shutdown \
                tcp_close udp_new_ip_type udp_bind udp_connect udp_sendto pbuf_alloc sys_arch_sem_wait
LWIP_FAKES   := -DLWIP_DNS=1 $(LWIP_WRAPPED:%=-Wl,--wrap=%)
LWIP_BUILD    = $(GCC) $(FLAGS_$(subst .,,$(suffix $@))) -D_GNU_SOURCE -isystem $(LWIP_INCLUDE) $(TEST_BUILD) -llwip

define lwip_rules
build/unit/lwip_conformance.$(1): tests/io_conformance.c tests/ports/io_fixture_lwip.c tests/ports/lwip_netif.h \
		$(TESTING) build/unit/core.$(1).a | build/unit
	@echo "build $$@"
	@$$(LWIP_BUILD)
build/unit/lwip.$(1): VARIANT = $(LWIP_FAKES)
build/unit/lwip.$(1): tests/ports/lwip.c tests/ports/lwip_netif.h $(TESTING) build/unit/core.$(1).a | build/unit
	@echo "build $$@"
	@$$(LWIP_BUILD)
endef
$(foreach kind,plain asan tsan,$(eval $(call lwip_rules,$(kind))))

# A device on the tap device of a network namespace, for test_lwip_net.sh.
build/lwip_host_plain build/lwip_host_asan: build/lwip_host_%: tests/ports/lwip_host.c $(HEADERS) | build
	@echo "build $@"
	@$(GCC) $(FLAGS_$*) -std=c99 $(WARN) -Werror -g -isystem $(LWIP_INCLUDE) $< -o $@ -pthread -llwip $(TLS_LIBS)

# ---- a microcontroller, under QEMU ----

# The example and the programs of tests/ports that are named after it, with the example's board and defines. The link has
# no start-up files and no heap: of newlib it takes memcpy and the like. Tests have more RAM than the example.
CORTEX_CC      := arm-none-eabi-gcc
CORTEX_FLAGS   := -mthumb -Os -std=c99 $(WARN) -Werror -ffunction-sections -fdata-sections -Iexamples/cortex_m
CORTEX_LINK    := -nostartfiles -nostdlib -Wl,--gc-sections -T examples/cortex_m/link.ld
CORTEX_HEADERS := pingora_lb.h $(wildcard examples/cortex_m/*.h tests/ports/cortex_m*.h)
CORTEX_RUN     := timeout 60 qemu-system-arm -M mps2-an385 -nographic -semihosting -kernel

define cortex_rules
build/cortex_m/$(1):
	mkdir -p $$@
build/cortex_m/$(1)/%.o: examples/cortex_m/%.c $(CORTEX_HEADERS) | build/cortex_m/$(1)
	@echo "build $$@"
	@$(CORTEX_CC) -mcpu=cortex-$(1) $(CORTEX_FLAGS) -c $$< -o $$@
build/cortex_m/$(1)/%.o: tests/ports/%.c $(CORTEX_HEADERS) | build/cortex_m/$(1)
	@echo "build $$@"
	@$(CORTEX_CC) -mcpu=cortex-$(1) $(CORTEX_FLAGS) -c $$< -o $$@
build/cortex_m/$(1)/%_lwip.o: tests/ports/%_lwip.c ports/plb_lwip.h $(CORTEX_HEADERS) \
		$(wildcard examples/cortex_m/lwip/*.h examples/cortex_m/lwip/arch/*.h) | build/cortex_m/$(1)
	@echo "build $$@"
	@$(CORTEX_CC) -mcpu=cortex-$(1) $(CORTEX_FLAGS) -Iexamples/cortex_m/lwip -isystem /usr/include/lwip -c $$< -o $$@
build/cortex_m/$(1)/%.elf: build/cortex_m/$(1)/%.o \
		$(patsubst %,build/cortex_m/$(1)/%.o,startup balancer network) examples/cortex_m/link.ld
	@echo "build $$@"
	@$(CORTEX_CC) -mcpu=cortex-$(1) -mthumb $(CORTEX_LINK) $$(CORTEX_MORE) $$(filter %.o,$$^) -lc_nano -lgcc -o $$@
.PRECIOUS: build/cortex_m/$(1)/%.o
endef
$(foreach cpu,m0 m3 m4,$(eval $(call cortex_rules,$(cpu))))
build/cortex_m/m0/main.elf: CORTEX_MORE := -Wl,--defsym=ram_size=16K # a micro:bit
build/cortex_m/m3/cortex_m.elf build/cortex_m/m3/cortex_m_stack.elf: CORTEX_MORE := -Wl,--defsym=ram_size=512K

cortex_m: needs-cortex_m build/cortex_m/m3/main.elf
	@$(CORTEX_RUN) build/cortex_m/m3/main.elf </dev/null

cortex_m_stack: needs-cortex_m build/cortex_m/m3/cortex_m_stack.elf
	@$(CORTEX_RUN) build/cortex_m/m3/cortex_m_stack.elf </dev/null 2>&1 | sed -n 's/^stack  //p' | sort -n

# Three configurations of the library (tests/ports/size.h), and what of flash and RAM each takes.
define size_rules
build/size/%_$(1).o: tests/ports/%.c tests/ports/size.h pingora_lb.h examples/cortex_m/board.h | build/size
	@echo "build $$@"
	@$(CORTEX_CC) -mcpu=cortex-m3 $(CORTEX_FLAGS) -DSIZE=$(1) -c $$< -o $$@
build/size/$(1).elf: build/size/size_$(1).o build/size/size_library_$(1).o build/size/startup.o examples/cortex_m/link.ld
	@echo "build $$@"
	@$(CORTEX_CC) -mcpu=cortex-m3 -mthumb $(CORTEX_LINK) $$(filter %.o,$$^) -lc_nano -lgcc -o $$@
endef
$(foreach size,1 2 3,$(eval $(call size_rules,$(size))))
build/size/startup.o: examples/cortex_m/startup.c examples/cortex_m/board.h | build/size
	@$(CORTEX_CC) -mcpu=cortex-m3 $(CORTEX_FLAGS) -c $< -o $@

size: needs-cortex_m build/size/1.elf build/size/2.elf build/size/3.elf
	@bash tests/ports/size.sh

# ---- figures ----

build/bench build/bench_single: tests/bench/bench.c $(HEADERS) | build
	$(CC) -std=c99 $(WARN) -Werror $(CFLAGS) $(VARIANT) $< -o $@ -pthread
build/bench_single: VARIANT = -DPLB_NO_THREADS

bench: build/bench build/bench_single
	@bash tests/bench/bench.sh

bench-plot:
	@bash tests/bench/plot.sh

bench-idle: build/load_balancer
	bash tests/bench/idle.sh

bench-proxy: build/load_balancer
	bash tests/bench/proxy.sh

build/bench_probe: tests/bench/probe.c $(HEADERS) | build
	$(CC) -std=c99 $(WARN) -Werror $(CFLAGS) $< -o $@ -pthread

bench-probe: build/bench_probe
	@bash tests/bench/probe.sh

FUZZ_SECONDS ?= 60
fuzz: $(FUZZERS:%=build/fuzz/%)
	for f in $(FUZZERS); do \
		mkdir -p build/fuzz/found_$$f; \
		build/fuzz/$$f -max_total_time=$(FUZZ_SECONDS) build/fuzz/found_$$f tests/fuzz/corpus/$$f || exit 1; \
	done

clean:
	rm -rf build

.PHONY: all run test test-needs test-build test-programs test-run test-ports needs-windows needs-cortex_m win32 \
        win32-units win32-list size cortex_m cortex_m_stack bench bench-plot bench-idle bench-proxy bench-probe fuzz clean
