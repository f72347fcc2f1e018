/* lwIP without an operating system, for a small Cortex-M: what its opt.h has otherwise, and a balancer cares about. Put
   this folder first on the include path. RAM: MEM_SIZE, the pools, and what the netif takes. */
#ifndef LWIPOPTS_H
#define LWIPOPTS_H

#define NO_SYS               1 /* one main loop: the netif's poll, sys_check_timeouts, plb_lwip_step */
#define SYS_LIGHTWEIGHT_PROT 0 /* no interrupt calls lwIP */
#define LWIP_NETCONN         0
#define LWIP_SOCKET          0

#define MEM_ALIGNMENT    4
#define MEM_SIZE         (6 * 1024) /* of lwIP's own heap: what is sent and not acknowledged yet */
#define PBUF_POOL_SIZE   8
#define MEMP_NUM_TCP_PCB 10 /* plb_lwip's streams, and those that linger (TCP_MSL) */
#define MEMP_NUM_TCP_SEG 16
#define MEMP_NUM_UDP_PCB 4

#define TCP_MSS                 536
#define TCP_WND                 (4 * TCP_MSS)
#define TCP_SND_BUF             (2 * TCP_MSS)
#define TCP_LISTEN_BACKLOG      1
#define MEMP_NUM_TCP_PCB_LISTEN 1

#define LWIP_IPV4 1
#define LWIP_IPV6 0
#define LWIP_ICMP 1
#define LWIP_DHCP 1
#define LWIP_DNS  1 /* host names in the list of backends */

#define LWIP_STATS     0
#define LWIP_NETIF_API 0

#endif
