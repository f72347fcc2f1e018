/* The HTTP check: what it asks, what it takes for an answer, and what else can become of a probe. */
#define PINGORA_LB_IMPLEMENTATION
#include "../pingora_lb.h"
#define SIM_IMPLEMENTATION
#include "sim.h"
#include <greatest.h>
#include "rig.h"

#define ADDR    "10.0.0.1:80"
#define OK_HEAD "HTTP/1.1 200 OK\r\n"
#define OK_2    OK_HEAD "Content-Length: 2\r\n\r\nok"

/* A backend that answers each request so, and what came of its last probe. */
typedef struct stage {
    rig r;
    plb_http_check_desc http;
    const char *answer;  /* NULL: none */
    size_t answer_size;  /* 0: as long as the text */
    bool ends, resets;   /* after the answer */
    bool early;          /* the answer does not wait for the request */
    uint32_t every_ms;   /* between two bytes of the answer; 0: all at once */
    size_t sent;         /* of the answer */
    uint32_t requests;   /* heads that came */
    char request[2048];  /* the last one */
    uint32_t probes;     /* that are over */
    uint32_t successes;
    plb_status status;   /* of the last one */
    uint32_t code;
    char text[PLB_REPORT_TEXT];
} stage;

static void answer(stage *g, sim_conn *conn)
{
    if (g->answer == NULL)
        return;
    sim_send(conn, g->answer, g->answer_size > 0 ? g->answer_size : strlen(g->answer));
    if (g->resets)
        sim_reset(conn);
    else if (g->ends)
        sim_close(conn);
}

static size_t serve(void *user, sim_conn *conn, const char *bytes, size_t count)
{
    stage *g = (stage *)user;
    const char *end = strstr(bytes, "\r\n\r\n");
    if (g->early && conn->user == NULL) {
        conn->user = g;
        answer(g, conn);
        return count;
    }
    if (g->early || end == NULL)
        return 0;
    count = (size_t)(end - bytes) + 4;
    if (count < sizeof g->request) {
        memcpy(g->request, bytes, count);
        g->request[count] = '\0';
    }
    g->requests++;
    answer(g, conn);
    return count;
}

static void probed(void *user, const plb_backend_info *info, uint32_t check, const plb_probe_info *probe)
{
    stage *g = (stage *)user; /* its rig comes first */
    (void)info;
    (void)check;
    g->probes++;
    g->successes += probe->status == PLB_OK;
    g->status = probe->status;
    g->code = probe->code;
    snprintf(g->text, sizeof g->text, "%s", probe->text);
}

static void begin(stage *g)
{
    plb_addr at = sim_addr(ADDR);
    memset(g, 0, sizeof *g);
    rig_begin(&g->r);
    g->r.desc.on_probe = probed;
    sim_serve(g->r.s, &at, serve, g);
    g->answer = OK_2;
}

static plb_status create(stage *g, const char *addr)
{
    const char *addresses[1];
    plb_static_desc list;
    memset(&list, 0, sizeof list);
    addresses[0] = addr;
    list.addresses = addresses;
    list.address_count = 1;
    g->r.desc.discovery = plb_static(&list);
    g->r.desc.check = plb_http_check(&g->http);
    return rig_create(&g->r);
}

static int end(stage *g)
{
    int streams = (int)g->r.s->streams, kept = g->http.reuse_connection ? 1 : 0;
    return rig_end(&g->r) + (streams > kept ? streams : 0);
}

/* One probe of 10.0.0.1:80 that gets this answer. */
static plb_status probe(stage *g, const char *text)
{
    g->answer = text;
    if (create(g, ADDR) != PLB_OK)
        return PLB_STATUS_COUNT;
    rig_run(&g->r, 10000);
    return g->probes == 1 ? g->status : PLB_STATUS_COUNT;
}

TEST the_default_is_get_of_the_root_and_200(void)
{
    stage g;
    begin(&g);
    ASSERT_EQ(PLB_OK, probe(&g, OK_2));
    ASSERT_STR_EQ("GET / HTTP/1.1\r\nHost: 10.0.0.1\r\nUser-Agent: pingora_lb/" PLB_VERSION
                  "\r\nConnection: close\r\n\r\n",
                  g.request);
    ASSERT_EQ(200, g.code);
    ASSERT_EQ(0, end(&g));
    PASS();
}

SUITE(http_check)
{
    RUN_TEST(the_default_is_get_of_the_root_and_200);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(http_check);
    GREATEST_MAIN_END();
}
