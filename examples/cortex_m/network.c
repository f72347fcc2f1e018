#include "network.h"

static network_host *host_at(network *net, const plb_addr *addr)
{
    for (size_t i = 0; i < net->host_count; i++)
        if (addr->family == PLB_FAMILY_IPV4 && memcmp(net->hosts[i].ip, addr->u.v4, 4) == 0)
            return &net->hosts[i];
    return NULL;
}

/* What connecting comes to, PLB_AGAIN: nothing yet. */
static plb_status outcome(const network_host *host)
{
    return host->state == NETWORK_REFUSES ? PLB_ERR_REFUSED : host->state == NETWORK_HANGS ? PLB_AGAIN : PLB_OK;
}

static plb_status net_connect(void *self, const plb_peer *peer, plb_handler handler, plb_stream **out)
{
    network *net = (network *)self;
    network_host *host = host_at(net, &peer->addr);
    plb_status status;
    size_t i = 0;
    if (host == NULL)
        return PLB_ERR_UNREACHABLE;
    if (peer->tls != NULL)
        return PLB_ERR_UNSUPPORTED;
    while (i < NETWORK_STREAMS && net->streams[i].host != NULL)
        i++;
    if (i == NETWORK_STREAMS)
        return PLB_ERR_LIMIT;
    host->connects++;
    status = (host->flags & NETWORK_FAST) != 0 ? outcome(host) : PLB_AGAIN;
    if (status != PLB_OK && status != PLB_AGAIN)
        return status;
    net->streams[i] = (plb_stream){.net = net, .host = host, .handler = handler, .connected = status == PLB_OK};
    net->streams[i].armed = status == PLB_AGAIN ? 1u << PLB_EVENT_CONNECT : 0;
    *out = &net->streams[i];
    return status;
}

static plb_status net_watch(void *self, plb_stream *stream, plb_event event)
{
    (void)self;
    stream->armed |= 1u << event;
    return PLB_AGAIN;
}

static size_t unread(const plb_stream *stream)
{
    bool speaks = stream->asked > 0 || (stream->host->flags & NETWORK_GREETS) != 0;
    return speaks ? stream->host->answer_size - stream->answered : 0;
}

static bool broken(const plb_stream *stream)
{
    return stream->host->state == NETWORK_RESETS && stream->asked > 0;
}

static bool ended(const plb_stream *stream)
{
    return (stream->host->flags & NETWORK_ENDS) != 0 && stream->asked > 0 && unread(stream) == 0;
}

static plb_status net_read(void *self, plb_stream *stream, void *buffer, size_t capacity, size_t *got)
{
    size_t size = unread(stream) < capacity ? unread(stream) : capacity;
    if (stream->host->state == NETWORK_HANGS)
        return net_watch(self, stream, PLB_EVENT_READ);
    if (broken(stream))
        return PLB_ERR_RESET;
    if (ended(stream))
        return PLB_END;
    if (size == 0)
        return net_watch(self, stream, PLB_EVENT_READ);
    memcpy(buffer, (const char *)stream->host->answer + stream->answered, size);
    stream->answered += size;
    *got = size;
    return PLB_OK;
}

static plb_status net_write(void *self, plb_stream *stream, const plb_chunk *chunks, size_t count, size_t *taken)
{
    (void)self;
    *taken = 0;
    if (broken(stream))
        return PLB_ERR_RESET;
    for (size_t i = 0; i < count; i++)
        *taken += chunks[i].size;
    if (stream->answered == stream->host->answer_size && (stream->host->flags & NETWORK_AGAIN) != 0)
        stream->answered = 0;
    stream->asked += *taken;
    return PLB_OK;
}

static plb_status net_shutdown(void *self, plb_stream *stream)
{
    (void)self, (void)stream;
    return PLB_OK;
}

static void net_close(void *self, plb_stream *stream, plb_close_how how)
{
    (void)self, (void)how;
    memset(stream, 0, sizeof *stream);
}

static plb_status net_info(void *self, plb_stream *stream, plb_stream_info *out)
{
    (void)self, (void)stream;
    memset(out, 0, sizeof *out);
    return PLB_OK;
}

static plb_status net_listen(void *self, const plb_listen_desc *desc, plb_handler handler, plb_stream **out)
{
    (void)self, (void)desc, (void)handler, (void)out;
    return PLB_ERR_UNSUPPORTED;
}

static plb_status net_accept(void *self, plb_stream *listener, plb_handler handler, plb_stream **out)
{
    (void)self, (void)listener, (void)handler, (void)out;
    return PLB_ERR_UNSUPPORTED;
}

static uint64_t net_now_ms(void *self)
{
    return ((const network *)self)->now_ms;
}

plb_port network_port(network *net)
{
    plb_port port = {.io = &net->io, .clock = &net->clock};
    for (size_t i = 0; i < net->host_count; i++) {
        plb_addr addr;
        if (plb_addr_parse(&addr, net->hosts[i].address, PLB_ZSTRING) == PLB_OK)
            memcpy(net->hosts[i].ip, addr.u.v4, 4);
    }
    net->io = (plb_io){net,       net_connect, net_read,   net_write,  net_watch, net_shutdown,
                       net_close, net_info,    net_listen, net_accept, NULL};
    net->clock = (plb_clock){.self = net, .now_ms = net_now_ms};
    return port;
}

static void tell(plb_stream *stream, plb_event event, plb_status status)
{
    stream->armed &= ~(1u << event);
    stream->handler.fn(stream->handler.user, stream, event, status);
}

void network_step(network *net)
{
    net->now_ms++;
    for (size_t i = 0; i < NETWORK_STREAMS; i++) {
        plb_stream *stream = &net->streams[i];
        if (stream->host == NULL || stream->host->state == NETWORK_HANGS)
            continue;
        if ((stream->armed & 1u << PLB_EVENT_CONNECT) != 0) {
            stream->connected = outcome(stream->host) == PLB_OK;
            tell(stream, PLB_EVENT_CONNECT, outcome(stream->host));
        } else if ((stream->armed & 1u << PLB_EVENT_READ) != 0 &&
                   (unread(stream) > 0 || broken(stream) || ended(stream))) {
            tell(stream, PLB_EVENT_READ, PLB_OK);
        } else if ((stream->armed & 1u << PLB_EVENT_WRITE) != 0) {
            tell(stream, PLB_EVENT_WRITE, PLB_OK);
        }
    }
}
