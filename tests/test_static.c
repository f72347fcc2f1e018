/* The static list: addresses, names, and what the program changes while it runs. */
#include "../pingora_lb.h"
#define SIM_IMPLEMENTATION
#include "sim.h"
#include <greatest.h>
#include "rig.h"

/* Says what a name resolves to: up to two addresses. */
static sim_name_t *name_is(rig *r, const char *host, const char *first, const char *second)
{
    plb_addr addrs[2];
    size_t count = 0;
    if (first != NULL)
        addrs[count++] = sim_addr(first);
    if (second != NULL)
        addrs[count++] = sim_addr(second);
    return sim_name_set(r->s, host, addrs, count);
}

/* A balancer of up to three entries, as plb_backend_parse reads them. */
static plb_status create(rig *r, const char *first, const char *second, const char *third)
{
    static const char *addresses[3]; /* they and the descriptor are read in plb_create only */
    static plb_static_desc list;
    addresses[0] = first;
    addresses[1] = second;
    addresses[2] = third;
    list.addresses = addresses;
    list.address_count = first == NULL ? 0 : second == NULL ? 1 : third == NULL ? 2 : 3;
    r->desc.discovery = plb_static(&list);
    return rig_create(r);
}

static plb_status add(rig *r, const char *addr, uint32_t weight)
{
    plb_backend backend = rig_backend(addr, weight);
    plb_status status = plb_add(r->lb, &backend);
    rig_run(r, 1);
    return status;
}

static plb_status remove_one(rig *r, const char *addr)
{
    plb_backend backend = rig_backend(addr, 99);
    plb_status status = plb_remove(r->lb, &backend);
    rig_run(r, 1);
    return status;
}

/* ---- at the start ---- */

TEST without_a_list_the_set_is_empty(void)
{
    rig r;
    rig_begin(&r);
    r.desc.discovery = plb_static(NULL);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_STR_EQ("", rig_set(&r));
    ASSERT_EQ(PLB_OK, r.first_status);
    ASSERT_EQ(PLB_OK, add(&r, "10.0.0.1:80", 1));
    ASSERT_STR_EQ("10.0.0.1:80", rig_set(&r));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST texts_and_backends_make_one_list(void)
{
    const char *addresses[] = {"10.0.0.2:80", "unix:/run/a", "[::1]:443", "10.0.0.2:80"};
    plb_backend backends[2];
    plb_static_desc list;
    rig r;
    memset(&list, 0, sizeof list);
    backends[0] = rig_backend("10.0.0.1:80", 7);
    backends[1] = rig_backend("10.0.0.3:80", 0);
    list.addresses = addresses;
    list.address_count = 4;
    list.backends = backends;
    list.backend_count = 2;
    rig_begin(&r);
    r.desc.port.io = NULL; /* literal addresses need no port at all */
    r.desc.port.clock = NULL;
    r.desc.port.names = NULL;
    r.desc.port.random = NULL;
    r.desc.discovery = plb_static(&list);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_STR_EQ("10.0.0.1:80*7 10.0.0.2:80 10.0.0.3:80*0 busy [::1]:443 unix:/run/a", rig_set(&r));
    ASSERT_EQ(PLB_FOREVER, plb_poll(r.lb));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST a_bad_entry_fails_plb_create_and_is_named(void)
{
    int releases = 0;
    plb_backend backends[2];
    plb_static_desc list;
    rig r;
    rig_begin(&r);
    ASSERT_EQ(PLB_ERR_ADDRESS, create(&r, "10.0.0.1:80", "10.0.0.1", NULL));
    ASSERT(r.lb == NULL);
    ASSERT(rig_logged(&r, "bad address '10.0.0.1'"));
    memset(&list, 0, sizeof list);
    backends[0] = rig_with_ext(rig_backend("10.0.0.1:80", 1), &releases);
    backends[1] = rig_with_ext(rig_backend("10.0.0.2:80", 65536), &releases);
    list.backends = backends;
    list.backend_count = 2;
    r.desc.discovery = plb_static(&list);
    ASSERT_EQ(PLB_ERR_WEIGHT, rig_create(&r));
    ASSERT(rig_logged(&r, "bad entry 10.0.0.2:80: A weight is above 65535"));
    ASSERT_EQ(0, releases); /* every ext stays the caller's */
    r.desc.port.names = NULL;
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, create(&r, "a.example:80", NULL, NULL));
    ASSERT(rig_logged(&r, "bad entry a.example:80"));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST a_name_with_an_ext_is_refused(void)
{
    int releases = 0;
    plb_backend name = rig_with_ext(rig_host("a.example", 80, 1), &releases);
    plb_static_desc list;
    rig r;
    memset(&list, 0, sizeof list);
    list.backends = &name;
    list.backend_count = 1;
    rig_begin(&r);
    r.desc.discovery = plb_static(&list);
    ASSERT_EQ(PLB_ERR_ARGUMENT, rig_create(&r));
    r.desc.discovery = plb_static(NULL);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    ASSERT_EQ(PLB_ERR_ARGUMENT, plb_add(r.lb, &name));
    ASSERT_EQ(0, rig_end(&r));
    ASSERT_EQ(0, releases);
    PASS();
}

/* ---- names ---- */

TEST each_address_of_a_name_is_a_backend_that_remembers_the_name(void)
{
    rig r;
    rig_begin(&r);
    name_is(&r, "a.example", "10.0.0.2:0", "10.0.0.1:0");
    name_is(&r, "b.example", "[::1]:0", NULL)->delay_ms = 20;
    ASSERT_EQ(PLB_OK, create(&r, "a.example:80", "b.example:81", "10.0.0.9:82"));
    ASSERT_EQ(0, r.changes);
    rig_run(&r, 19); /* the set comes whole, with the slowest */
    ASSERT_EQ(0, r.changes);
    rig_run(&r, 1);
    ASSERT_STR_EQ("10.0.0.1:80(a.example) 10.0.0.2:80(a.example) 10.0.0.9:82 [::1]:81(b.example)", rig_set(&r));
    ASSERT_EQ(1, sim_name(r.s, "a.example")->asked);
    rig_run(&r, 100000);
    ASSERT_EQ(1, sim_name(r.s, "a.example")->asked); /* no update_every_ms: once */
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST names_are_resolved_again_at_each_update(void)
{
    rig r;
    rig_begin(&r);
    r.desc.update_every_ms = 1000;
    name_is(&r, "a.example", "10.0.0.1:0", NULL);
    ASSERT_EQ(PLB_OK, create(&r, "a.example:80", NULL, NULL));
    rig_run(&r, 1);
    ASSERT_STR_EQ("10.0.0.1:80(a.example)", rig_set(&r));
    name_is(&r, "a.example", "10.0.0.1:0", "10.0.0.2:0");
    rig_run(&r, 998);
    ASSERT_STR_EQ("10.0.0.1:80(a.example)", rig_set(&r));
    rig_run(&r, 2);
    ASSERT_STR_EQ("10.0.0.1:80(a.example) 10.0.0.2:80(a.example)", rig_set(&r));
    rig_run(&r, 5000);
    ASSERT_EQ(7, sim_name(r.s, "a.example")->asked);
    ASSERT_EQ(2, r.changes);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST a_name_that_fails_keeps_its_last_addresses_while_others_change(void)
{
    rig r;
    rig_begin(&r);
    r.desc.update_every_ms = 1000;
    name_is(&r, "a.example", "10.0.0.1:0", "10.0.0.2:0");
    name_is(&r, "b.example", "10.0.1.1:0", NULL);
    ASSERT_EQ(PLB_OK, create(&r, "a.example:80", "b.example:80", NULL));
    rig_run(&r, 1);
    sim_name(r.s, "a.example")->status = PLB_ERR_NAME;
    name_is(&r, "b.example", "10.0.1.2:0", NULL);
    rig_run(&r, 1000);
    ASSERT_STR_EQ("10.0.0.1:80(a.example) 10.0.0.2:80(a.example) 10.0.1.2:80(b.example)", rig_set(&r));
    ASSERT_EQ(PLB_OK, r.update.status);
    ASSERT(rig_logged(&r, "could not resolve a.example:80: The host name does not resolve."));
    name_is(&r, "a.example", "10.0.0.3:0", NULL)->status = PLB_OK;
    rig_run(&r, 1000);
    ASSERT_STR_EQ("10.0.0.3:80(a.example) 10.0.1.2:80(b.example)", rig_set(&r));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST a_name_that_hangs_ends_at_the_time_out_of_all(void)
{
    const char *addresses[] = {"a.example:80", "b.example:80"};
    plb_static_desc list;
    rig r;
    memset(&list, 0, sizeof list);
    list.addresses = addresses;
    list.address_count = 2;
    list.timeout_ms = 700;
    rig_begin(&r);
    r.desc.update_every_ms = 10000;
    name_is(&r, "a.example", "10.0.0.1:0", NULL)->hang = true;
    name_is(&r, "b.example", "10.0.1.1:0", NULL);
    r.desc.discovery = plb_static(&list);
    ASSERT_EQ(PLB_OK, rig_create(&r));
    rig_run(&r, 699);
    ASSERT_EQ(0, r.updates);
    rig_run(&r, 1);
    ASSERT_STR_EQ("10.0.1.1:80(b.example)", rig_set(&r));
    ASSERT(rig_logged(&r, "could not resolve a.example:80: It took longer than allowed."));
    sim_name(r.s, "a.example")->hang = false;
    rig_run(&r, 10000);
    ASSERT_STR_EQ("10.0.0.1:80(a.example) 10.0.1.1:80(b.example)", rig_set(&r));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST names_have_5_seconds_by_default(void)
{
    rig r;
    rig_begin(&r);
    name_is(&r, "a.example", "10.0.0.1:0", NULL)->hang = true;
    ASSERT_EQ(PLB_OK, create(&r, "a.example:80", "10.0.0.9:80", NULL));
    rig_run(&r, 4999);
    ASSERT_EQ(0, r.updates);
    rig_run(&r, 1);
    ASSERT_STR_EQ("10.0.0.9:80", rig_set(&r));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST if_all_names_fail_the_update_fails(void)
{
    rig r;
    rig_begin(&r);
    ASSERT_EQ(PLB_OK, create(&r, "a.example:80", "b.example:80", NULL));
    rig_run(&r, 1);
    ASSERT_EQ(1, r.first_updates);
    ASSERT_EQ(PLB_ERR_NAME, r.first_status);
    ASSERT_EQ(0, r.changes);
    ASSERT(rig_logged(&r, "could not resolve a.example:80"));
    ASSERT(rig_logged(&r, "could not resolve b.example:80"));
    ASSERT(rig_logged(&r, "update failed"));
    name_is(&r, "b.example", "10.0.0.1:0", NULL);
    plb_update_now(r.lb);
    rig_run(&r, 1);
    ASSERT_STR_EQ("10.0.0.1:80(b.example)", rig_set(&r));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST a_name_that_could_not_be_asked_for_is_asked_for_again_in_a_second(void)
{
    rig r;
    rig_begin(&r);
    name_is(&r, "a.example", "10.0.0.1:0", NULL);
    r.s->fail_io_at = 1;
    ASSERT_EQ(PLB_OK, create(&r, "a.example:80", "10.0.0.9:80", "nobody.example:80"));
    rig_run(&r, 1);
    ASSERT_STR_EQ("10.0.0.9:80", rig_set(&r)); /* the others need not wait for it */
    ASSERT_EQ(PLB_OK, r.first_status);
    rig_run(&r, 1001);
    ASSERT_STR_EQ("10.0.0.1:80(a.example) 10.0.0.9:80", rig_set(&r));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST names_that_share_an_address_make_one_backend(void)
{
    rig r;
    rig_begin(&r);
    name_is(&r, "a.example", "10.0.0.1:0", "10.0.0.2:0");
    name_is(&r, "b.example", "10.0.0.2:0", "10.0.0.2:0");
    ASSERT_EQ(PLB_OK, create(&r, "b.example:80", "a.example:80", "a.example:81"));
    rig_run(&r, 1);
    ASSERT_STR_EQ("10.0.0.1:80(a.example) 10.0.0.1:81(a.example) 10.0.0.2:80(a.example) 10.0.0.2:81(a.example)",
                  rig_set(&r));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

/* ---- changes ---- */

TEST add_remove_and_replace(void)
{
    plb_backend all[2];
    rig r;
    rig_begin(&r);
    ASSERT_EQ(PLB_OK, create(&r, "10.0.0.2:80", "10.0.0.2:80", NULL));
    ASSERT_EQ(PLB_OK, add(&r, "10.0.0.1:80", 3));
    ASSERT_STR_EQ("10.0.0.1:80*3 10.0.0.2:80", rig_set(&r));
    ASSERT_EQ(PLB_OK, add(&r, "10.0.0.2:80", 4)); /* what is there takes the new weight */
    ASSERT_STR_EQ("10.0.0.1:80*3 10.0.0.2:80*4", rig_set(&r));
    ASSERT_EQ(PLB_OK, remove_one(&r, "10.0.0.1:80"));
    ASSERT_STR_EQ("10.0.0.2:80*4", rig_set(&r));
    ASSERT_EQ(PLB_OK, remove_one(&r, "10.0.0.7:80")); /* not there */
    ASSERT_STR_EQ("10.0.0.2:80*4", rig_set(&r));
    all[0] = rig_backend("10.0.0.9:80", 1);
    all[1] = rig_backend("10.0.0.8:80", 2);
    ASSERT_EQ(PLB_OK, plb_replace(r.lb, all, 2));
    rig_run(&r, 1);
    ASSERT_STR_EQ("10.0.0.8:80*2 10.0.0.9:80", rig_set(&r));
    ASSERT_EQ(PLB_OK, plb_replace(r.lb, NULL, 0));
    rig_run(&r, 1);
    ASSERT_STR_EQ("", rig_set(&r));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST many_changes_before_a_poll_happen_in_order(void)
{
    plb_backend a = rig_backend("10.0.0.1:80", 1), b = rig_backend("10.0.0.2:80", 1);
    rig r;
    rig_begin(&r);
    ASSERT_EQ(PLB_OK, create(&r, "10.0.0.9:80", NULL, NULL));
    ASSERT_EQ(PLB_OK, plb_add(r.lb, &a));
    ASSERT_EQ(PLB_OK, plb_replace(r.lb, &b, 1));
    ASSERT_EQ(PLB_OK, plb_remove(r.lb, &b));
    a.weight = 2;
    ASSERT_EQ(PLB_OK, plb_add(r.lb, &a));
    rig_run(&r, 1);
    ASSERT_STR_EQ("10.0.0.1:80*2", rig_set(&r));
    ASSERT_EQ(2, r.changes);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST ids_tell_services_on_one_address_apart(void)
{
    plb_backend one = rig_backend("10.0.0.1:80", 1);
    rig r;
    rig_begin(&r);
    ASSERT_EQ(PLB_OK, create(&r, "10.0.0.1:80", NULL, NULL));
    one.id = 5;
    ASSERT_EQ(PLB_OK, plb_add(r.lb, &one));
    rig_run(&r, 1);
    ASSERT_STR_EQ("10.0.0.1:80 10.0.0.1:80#5", rig_set(&r));
    ASSERT_EQ(PLB_OK, plb_remove(r.lb, &one));
    rig_run(&r, 1);
    ASSERT_STR_EQ("10.0.0.1:80", rig_set(&r));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST names_can_be_added_and_removed(void)
{
    plb_backend a = rig_host("a.example", 80, 2), other_port = rig_host("a.example", 81, 1);
    rig r;
    rig_begin(&r);
    name_is(&r, "a.example", "10.0.0.1:0", NULL);
    ASSERT_EQ(PLB_OK, create(&r, "10.0.0.9:80", NULL, NULL));
    ASSERT_EQ(PLB_OK, plb_add(r.lb, &a));
    ASSERT_EQ(PLB_OK, plb_add(r.lb, &other_port));
    rig_run(&r, 1);
    ASSERT_STR_EQ("10.0.0.1:80*2(a.example) 10.0.0.1:81(a.example) 10.0.0.9:80", rig_set(&r));
    ASSERT_EQ(PLB_OK, plb_remove(r.lb, &other_port));
    rig_run(&r, 1);
    ASSERT_STR_EQ("10.0.0.1:80*2(a.example) 10.0.0.9:80", rig_set(&r));
    sim_name(r.s, "a.example")->status = PLB_ERR_NAME;
    a.weight = 3; /* the same line: what it had found out stays */
    ASSERT_EQ(PLB_OK, plb_add(r.lb, &a));
    rig_run(&r, 1);
    ASSERT_STR_EQ("10.0.0.1:80*3(a.example) 10.0.0.9:80", rig_set(&r));
    a.weight = 4;
    ASSERT_EQ(PLB_OK, plb_replace(r.lb, &a, 1));
    rig_run(&r, 1);
    ASSERT_STR_EQ("10.0.0.1:80*4(a.example)", rig_set(&r));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST what_is_wrong_is_refused_at_once_and_changes_nothing(void)
{
    int releases = 0;
    plb_backend bad[2];
    rig r;
    rig_begin(&r);
    r.desc.port.names = NULL;
    ASSERT_EQ(PLB_OK, create(&r, "10.0.0.1:80", NULL, NULL));
    bad[0] = rig_with_ext(rig_backend("10.0.0.2:80", 1), &releases);
    bad[1] = rig_with_ext(rig_backend("10.0.0.3:80", 65536), &releases);
    ASSERT_EQ(PLB_ERR_WEIGHT, plb_replace(r.lb, bad, 2));
    ASSERT_EQ(PLB_ERR_WEIGHT, plb_add(r.lb, &bad[1]));
    bad[1].weight = 1;
    bad[1].addr.port = 0;
    ASSERT_EQ(PLB_ERR_ADDRESS, plb_add(r.lb, &bad[1]));
    ASSERT_EQ(PLB_ERR_ADDRESS, plb_remove(r.lb, &bad[1]));
    memset(&bad[1], 0, sizeof bad[1]);
    ASSERT_EQ(PLB_ERR_ADDRESS, plb_add(r.lb, &bad[1]));
    ASSERT_EQ(PLB_ERR_ADDRESS, plb_remove(r.lb, &bad[1]));
    bad[1] = rig_host("a.example", 80, 1);
    ASSERT_EQ(PLB_ERR_UNSUPPORTED, plb_add(r.lb, &bad[1])); /* nothing here resolves names */
    r.memory.fail_at = r.memory.calls + 1;
    ASSERT_EQ(PLB_ERR_MEMORY, plb_add(r.lb, &bad[0]));
    r.memory.fail_at = r.memory.calls + 2;
    ASSERT_EQ(PLB_ERR_MEMORY, plb_add(r.lb, &bad[0]));
    rig_run(&r, 10);
    ASSERT_STR_EQ("10.0.0.1:80", rig_set(&r));
    ASSERT_EQ(1, r.updates);
    ASSERT_EQ(0, releases);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST weights_of_2_to_the_32_are_undone(void)
{
    enum { COUNT = 65537 }; /* times 65535: 2^32 - 1 */
    plb_backend *all = (plb_backend *)calloc(COUNT, sizeof *all);
    int releases = 0;
    plb_backend more = rig_with_ext(rig_backend("10.9.0.1:80", 1), &releases);
    uint32_t i;
    rig r;
    for (i = 0; i < COUNT; i++) {
        all[i] = rig_backend("10.0.0.0:80", PLB_WEIGHT_MAX);
        all[i].addr.u.v4[1] = (uint8_t)(i >> 16);
        all[i].addr.u.v4[2] = (uint8_t)(i >> 8);
        all[i].addr.u.v4[3] = (uint8_t)i;
    }
    rig_begin(&r);
    ASSERT_EQ(PLB_OK, create(&r, "10.8.0.1:80", NULL, NULL));
    ASSERT_EQ(PLB_OK, plb_replace(r.lb, all, COUNT));
    rig_run(&r, 1);
    ASSERT_EQ(COUNT, r.update.backends);
    ASSERT_EQ(PLB_OK, plb_add(r.lb, &more));
    rig_run(&r, 1);
    ASSERT(rig_logged(&r, "the weights of the list add up to 2^32 or more"));
    ASSERT_EQ(PLB_OK, r.update.status);
    ASSERT_EQ(COUNT, r.update.backends);
    ASSERT_EQ(1, releases);
    all[5].weight--; /* room for one: what takes another's place counts once */
    ASSERT_EQ(PLB_OK, plb_add(r.lb, &all[5]));
    more.ext = NULL;
    ASSERT_EQ(PLB_OK, plb_add(r.lb, &more));
    rig_run(&r, 1);
    ASSERT_EQ(COUNT + 1, r.update.backends);
    ASSERT_EQ(0, rig_end(&r));
    free(all);
    PASS();
}

TEST a_change_that_finds_no_memory_is_made_in_a_second(void)
{
    int releases = 0;
    plb_backend added = rig_with_ext(rig_backend("10.0.0.2:80", 1), &releases), more = rig_backend("10.0.0.3:80", 1);
    rig r;
    rig_begin(&r);
    ASSERT_EQ(PLB_OK, create(&r, "10.0.0.1:80", NULL, NULL));
    ASSERT_EQ(PLB_OK, plb_add(r.lb, &added));
    ASSERT_EQ(PLB_OK, plb_add(r.lb, &more));
    r.memory.fail_at = r.memory.calls + 1;
    r.memory.fail_count = UINT64_MAX;
    rig_run(&r, 1);
    ASSERT_EQ(1000, plb_poll(r.lb));
    r.memory.fail_at = 0;
    ASSERT(rig_logged(&r, "a change of the list of backends was not possible: There is not enough memory."));
    ASSERT_STR_EQ("10.0.0.1:80", rig_set(&r));
    ASSERT_EQ(0, releases);
    rig_run(&r, 1000);
    ASSERT_STR_EQ("10.0.0.1:80 10.0.0.2:80 10.0.0.3:80", rig_set(&r));
    ASSERT_EQ(PLB_OK, plb_add(r.lb, &added)); /* again, and there is none until the end */
    r.memory.fail_at = r.memory.calls + 1;
    ASSERT_EQ(0, rig_end(&r));
    ASSERT_EQ(1, releases);
    PASS();
}

/* ---- ext ---- */

TEST ext_goes_with_its_backend_and_never_twice(void)
{
    int a = 0, b = 0, c = 0, d = 0;
    plb_backend first = rig_with_ext(rig_backend("10.0.0.1:80", 1), &a);
    plb_backend both[3];
    rig r;
    rig_begin(&r);
    ASSERT_EQ(PLB_OK, create(&r, "10.0.0.9:80", NULL, NULL));
    ASSERT_EQ(PLB_OK, plb_add(r.lb, &first));
    rig_run(&r, 1);
    first.weight = 2; /* the same pointer again is not a second one */
    ASSERT_EQ(PLB_OK, plb_add(r.lb, &first));
    rig_run(&r, 1);
    ASSERT_EQ(0, a);
    first.ext = &b; /* the ext that is there stays */
    ASSERT_EQ(PLB_OK, plb_add(r.lb, &first));
    rig_run(&r, 1);
    ASSERT_EQ(0, a);
    ASSERT_EQ(1, b);
    both[0] = rig_with_ext(rig_backend("10.0.0.1:80", 1), &a);
    both[1] = rig_with_ext(rig_backend("10.0.0.2:80", 1), &c);
    both[2] = rig_with_ext(rig_backend("10.0.0.2:80", 2), &c); /* twice in one list */
    ASSERT_EQ(PLB_OK, plb_replace(r.lb, both, 3));
    rig_run(&r, 1);
    ASSERT_EQ(0, a + c);
    ASSERT_EQ(PLB_OK, plb_remove(r.lb, &both[0]));
    ASSERT_EQ(PLB_OK, plb_add(r.lb, &both[0])); /* leaves and returns within one update: it is there still */
    rig_run(&r, 1);
    ASSERT_EQ(0, a);
    ASSERT_EQ(PLB_OK, plb_remove(r.lb, &both[0]));
    rig_run(&r, 1);
    ASSERT_EQ(1, a);
    first.ext = &d;
    ASSERT_EQ(PLB_OK, plb_add(r.lb, &first));
    ASSERT_EQ(0, rig_end(&r)); /* before it was ever in a set */
    ASSERT_EQ(1, a);
    ASSERT_EQ(1, b);
    ASSERT_EQ(1, c);
    ASSERT_EQ(1, d);
    PASS();
}

TEST a_change_that_destroy_overtakes_does_not_release_what_the_set_has(void)
{
    int a = 0, b = 0;
    plb_backend first = rig_with_ext(rig_backend("10.0.0.1:80", 1), &a);
    plb_backend second = rig_with_ext(rig_backend("10.0.0.2:80", 1), &b);
    rig r;
    rig_begin(&r);
    ASSERT_EQ(PLB_OK, create(&r, "10.0.0.9:80", NULL, NULL));
    ASSERT_EQ(PLB_OK, plb_add(r.lb, &first));
    rig_run(&r, 1);
    ASSERT_EQ(PLB_OK, plb_add(r.lb, &first));
    ASSERT_EQ(PLB_OK, plb_add(r.lb, &second));
    ASSERT_EQ(PLB_OK, plb_add(r.lb, &second));
    ASSERT_EQ(0, rig_end(&r));
    ASSERT_EQ(1, a);
    ASSERT_EQ(1, b);
    PASS();
}

/* ---- changes while names are resolved ---- */

TEST removing_the_name_that_is_waited_for_ends_the_wait(void)
{
    plb_backend slow = rig_host("slow.example", 80, 1);
    rig r;
    rig_begin(&r);
    name_is(&r, "slow.example", "10.0.0.1:0", NULL)->hang = true;
    ASSERT_EQ(PLB_OK, create(&r, "slow.example:80", "10.0.0.9:80", NULL));
    rig_run(&r, 10);
    ASSERT_EQ(0, r.updates);
    ASSERT_EQ(PLB_OK, plb_remove(r.lb, &slow));
    rig_run(&r, 2);
    ASSERT_STR_EQ("10.0.0.9:80", rig_set(&r));
    ASSERT_EQ(PLB_OK, r.first_status);
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST what_is_added_while_names_are_resolved_comes_with_them_or_after_them(void)
{
    int a = 0, b = 0;
    plb_backend literal = rig_with_ext(rig_backend("10.0.0.1:80", 1), &a), name = rig_host("b.example", 80, 1);
    plb_backend all[2];
    rig r;
    rig_begin(&r);
    name_is(&r, "slow.example", "10.0.1.1:0", NULL)->delay_ms = 50;
    name_is(&r, "b.example", "10.0.2.1:0", NULL);
    ASSERT_EQ(PLB_OK, create(&r, "slow.example:80", NULL, NULL));
    rig_run(&r, 10);
    ASSERT_EQ(PLB_OK, plb_add(r.lb, &literal));
    ASSERT_EQ(PLB_OK, plb_add(r.lb, &name));
    rig_run(&r, 45);
    ASSERT_STR_EQ("10.0.0.1:80 10.0.1.1:80(slow.example)", rig_set(&r));
    rig_run(&r, 50); /* another update followed */
    ASSERT_STR_EQ("10.0.0.1:80 10.0.1.1:80(slow.example) 10.0.2.1:80(b.example)", rig_set(&r));
    plb_update_now(r.lb); /* and in the midst of the next, all is replaced, more than once */
    rig_run(&r, 10);
    all[0] = rig_with_ext(rig_backend("10.0.0.1:80", 1), &b);
    all[1] = rig_backend("10.0.0.2:80", 1);
    ASSERT_EQ(PLB_OK, plb_replace(r.lb, all, 1));
    all[0].ext = &a;
    ASSERT_EQ(PLB_OK, plb_replace(r.lb, all, 2));
    rig_run(&r, 3);
    ASSERT_STR_EQ("10.0.0.1:80 10.0.0.2:80", rig_set(&r));
    ASSERT_EQ(0, a);
    ASSERT_EQ(1, b);
    ASSERT_EQ(0, rig_end(&r));
    ASSERT_EQ(1, a);
    PASS();
}

TEST changes_that_wait_for_readers_become_one_and_cost_no_memory(void)
{
    int a = 0, i;
    plb_backend first = rig_backend("10.0.0.1:80", 1), second = rig_backend("10.0.0.2:80", 1);
    plb_backend third = rig_with_ext(rig_backend("10.0.0.3:80", 1), &a);
    plb_walk held[2];
    size_t live;
    rig r;
    rig_begin(&r);
    ASSERT_EQ(PLB_OK, create(&r, "10.0.0.9:80", NULL, NULL));
    ASSERT_EQ(PLB_OK, plb_walk_begin(&held[0], r.lb, NULL, 0));
    ASSERT_EQ(PLB_OK, plb_add(r.lb, &first));
    rig_run(&r, 1);
    ASSERT_EQ(PLB_OK, plb_walk_begin(&held[1], r.lb, NULL, 0));
    ASSERT_EQ(PLB_OK, plb_add(r.lb, &second));
    rig_run(&r, 1);
    live = r.memory.live_blocks;
    for (i = 0; i < 10; i++) { /* while readers hold both retired sets */
        ASSERT_EQ(PLB_OK, plb_add(r.lb, &third));
        rig_run(&r, 1);
        ASSERT_EQ(PLB_OK, plb_remove(r.lb, &third));
        rig_run(&r, 1);
    }
    ASSERT_EQ(live, r.memory.live_blocks);
    ASSERT_EQ(10, a);
    ASSERT_EQ(PLB_OK, plb_add(r.lb, &third));
    rig_run(&r, 1);
    ASSERT_STR_EQ("10.0.0.1:80 10.0.0.2:80 10.0.0.9:80", rig_set(&r));
    plb_walk_end(&held[0]);
    plb_walk_end(&held[1]);
    rig_run(&r, 2);
    ASSERT_STR_EQ("10.0.0.1:80 10.0.0.2:80 10.0.0.3:80 10.0.0.9:80", rig_set(&r));
    ASSERT_EQ(10, a);
    ASSERT_EQ(0, rig_end(&r));
    ASSERT_EQ(11, a);
    PASS();
}

/* ---- from callbacks, and at the end ---- */

static void add_another(rig *r)
{
    plb_backend backend = rig_backend("10.0.0.1:80", 1);
    backend.addr.u.v4[3] = (uint8_t)(r->changes + 1);
    if (r->changes < 4)
        plb_add(r->lb, &backend);
}

TEST a_callback_may_change_the_list(void)
{
    rig r;
    rig_begin(&r);
    r.in_callback = add_another;
    ASSERT_EQ(PLB_OK, create(&r, "10.0.0.1:80", NULL, NULL));
    rig_run(&r, 5);
    ASSERT_STR_EQ("10.0.0.1:80 10.0.0.2:80 10.0.0.3:80 10.0.0.4:80", rig_set(&r));
    ASSERT_EQ(0, rig_end(&r));
    PASS();
}

TEST a_balancer_can_be_destroyed_at_any_moment(void)
{
    uint32_t moment;
    for (moment = 0; moment < 40; moment++) {
        int a = 0, b = 0;
        plb_backend first = rig_with_ext(rig_backend("10.0.0.1:80", 1), &a), name = rig_host("b.example", 80, 1);
        plb_backend second = rig_with_ext(rig_backend("10.0.0.2:80", 1), &b);
        rig r;
        rig_begin(&r);
        r.desc.update_every_ms = 9;
        r.desc.check = plb_tcp_check(NULL);
        r.desc.check_every_ms = 5;
        name_is(&r, "a.example", "10.0.1.1:0", NULL)->delay_ms = 7;
        name_is(&r, "b.example", "10.0.2.1:0", NULL)->delay_ms = 11;
        ASSERT_EQ(PLB_OK, create(&r, "a.example:80", "10.0.0.9:80", NULL));
        rig_run(&r, moment / 4);
        ASSERT_EQ(PLB_OK, plb_add(r.lb, &first));
        rig_run(&r, moment / 3);
        ASSERT_EQ(PLB_OK, plb_add(r.lb, &name));
        rig_run(&r, moment / 2);
        ASSERT_EQ(PLB_OK, plb_replace(r.lb, &second, 1));
        rig_run(&r, moment % 4);
        ASSERT_EQ(0, rig_end(&r));
        ASSERT_EQ(1, a);
        ASSERT_EQ(1, b);
    }
    PASS();
}

SUITE(static_list)
{
    RUN_TEST(without_a_list_the_set_is_empty);
    RUN_TEST(texts_and_backends_make_one_list);
    RUN_TEST(a_bad_entry_fails_plb_create_and_is_named);
    RUN_TEST(a_name_with_an_ext_is_refused);
    RUN_TEST(each_address_of_a_name_is_a_backend_that_remembers_the_name);
    RUN_TEST(names_are_resolved_again_at_each_update);
    RUN_TEST(a_name_that_fails_keeps_its_last_addresses_while_others_change);
    RUN_TEST(a_name_that_hangs_ends_at_the_time_out_of_all);
    RUN_TEST(names_have_5_seconds_by_default);
    RUN_TEST(if_all_names_fail_the_update_fails);
    RUN_TEST(a_name_that_could_not_be_asked_for_is_asked_for_again_in_a_second);
    RUN_TEST(names_that_share_an_address_make_one_backend);
    RUN_TEST(add_remove_and_replace);
    RUN_TEST(many_changes_before_a_poll_happen_in_order);
    RUN_TEST(ids_tell_services_on_one_address_apart);
    RUN_TEST(names_can_be_added_and_removed);
    RUN_TEST(what_is_wrong_is_refused_at_once_and_changes_nothing);
    RUN_TEST(weights_of_2_to_the_32_are_undone);
    RUN_TEST(a_change_that_finds_no_memory_is_made_in_a_second);
    RUN_TEST(ext_goes_with_its_backend_and_never_twice);
    RUN_TEST(a_change_that_destroy_overtakes_does_not_release_what_the_set_has);
    RUN_TEST(removing_the_name_that_is_waited_for_ends_the_wait);
    RUN_TEST(what_is_added_while_names_are_resolved_comes_with_them_or_after_them);
    RUN_TEST(changes_that_wait_for_readers_become_one_and_cost_no_memory);
    RUN_TEST(a_callback_may_change_the_list);
    RUN_TEST(a_balancer_can_be_destroyed_at_any_moment);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(static_list);
    GREATEST_MAIN_END();
}
