/* The code of pingora_lb.h. */
#define PINGORA_LB_IMPLEMENTATION
#include "balancer.h"
