/* What `make size` weighs: three configurations of the library on a Cortex-M3, by the number in SIZE. */
#define PLB_NO_THREADS
#define PLB_MALLOC(size) ((void)(size), (void *)NULL) /* an arena serves */
#define PLB_FREE(ptr)    ((void)(ptr))
#define PLB_CRC_TABLES   0

#if SIZE == 1 /* round robin, a fixed list, the TCP check */
#define PLB_NO_WEIGHTS
#define PLB_NO_EXCHANGE
#endif

#if SIZE == 2 /* the strategies that pingora has, a fixed list, the TCP and HTTP/1 checks */
#define PLB_NO_BOUNDED
#define PLB_NO_CHOICES
#define PLB_NO_EXPECT
#define PLB_NO_HTTP2
#define PLB_NO_IP_HASH
#define PLB_NO_LEAST
#define PLB_NO_MAGLEV
#define PLB_NO_RENDEZVOUS
#define PLB_NO_SMOOTH
#endif

#if SIZE <= 2
#define PLB_NO_CHECK_LIST
#define PLB_NO_HANDLES
#define PLB_NO_IPV6
#define PLB_NO_LIMITS
#define PLB_NO_LOG
#define PLB_NO_OUTLIER
#define PLB_NO_PROBE_INFO
#define PLB_NO_TICK
#define PLB_NO_TIERS
#define PLB_NO_UNIX
#define PLB_NO_UPDATES
#define PLB_NO_WALK
#endif

#if SIZE == 3 /* everything, but for what a small system has not: a TLS library, Unix paths, other threads */
#define PLB_NO_HANDLES
#define PLB_NO_UNIX
#endif

#define PLB_NO_TLS

#include "../../pingora_lb.h"
