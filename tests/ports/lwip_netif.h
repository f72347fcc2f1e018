/* What the tests of ports/plb_lwip.h share: lwIP with its tcpip thread, and an interface whose own addresses
   (10.99.0.2, fd99::2) are looped back by lwIP. Whatever else it is to send is dropped. */
#ifndef LWIP_NETIF_H
#define LWIP_NETIF_H
#include <lwip/netif.h>
#include <lwip/tcpip.h>

#include <stdbool.h>
#include <stdlib.h>

#define LWIP_NETIF_IPV4   "10.99.0.2"
#define LWIP_NETIF_IPV6   "fd99::2"
#define LWIP_NETIF_SILENT "10.99.0.1"

static unsigned lwip_netif_full; /* packets that will find no room in the interface; guarded by the core lock */

static err_t lwip_netif_drop(struct netif *netif, struct pbuf *p, const ip4_addr_t *to)
{
    (void)netif;
    (void)p;
    (void)to;
    if (lwip_netif_full == 0)
        return ERR_OK;
    lwip_netif_full--;
    return ERR_MEM;
}

static err_t lwip_netif_drop6(struct netif *netif, struct pbuf *p, const ip6_addr_t *to)
{
    (void)netif;
    (void)p;
    (void)to;
    return ERR_OK;
}

static err_t lwip_netif_init(struct netif *netif)
{
    netif->name[0] = 'n';
    netif->name[1] = 'o';
    netif->mtu = 1500;
    netif->output = lwip_netif_drop;
    netif->output_ip6 = lwip_netif_drop6;
    return ERR_OK;
}

static void lwip_netif_started(void *sem)
{
    sys_sem_signal((sys_sem_t *)sem);
}

static void lwip_netif_add(struct netif *netif)
{
    ip4_addr_t ip, mask, gateway;
    ip6_addr_t ip6;
    if (!ip4addr_aton(LWIP_NETIF_IPV4, &ip) || !ip6addr_aton(LWIP_NETIF_IPV6, &ip6))
        abort();
    IP4_ADDR(&mask, 255, 255, 255, 0);
    ip4_addr_set_zero(&gateway);
    netif_add(netif, &ip, &mask, &gateway, NULL, lwip_netif_init, tcpip_input);
    netif_ip6_addr_set(netif, 0, &ip6);
    netif_ip6_addr_set_state(netif, 0, IP6_ADDR_PREFERRED);
    netif_set_default(netif);
    netif_set_link_up(netif);
    netif_set_up(netif);
}

/* lwIP cannot be ended: it starts with the first of a program's tests. */
static void lwip_netif_start(void)
{
    static struct netif netif;
    static bool started;
    sys_sem_t sem;
    if (started)
        return;
    if (sys_sem_new(&sem, 0) != ERR_OK)
        abort();
    tcpip_init(lwip_netif_started, &sem);
    sys_arch_sem_wait(&sem, 0);
    sys_sem_free(&sem);
    LOCK_TCPIP_CORE();
    lwip_netif_add(&netif);
    UNLOCK_TCPIP_CORE();
    started = true;
}
#endif
