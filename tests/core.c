/* The implementation, for tests that need no more of it than its interface. */
#define PINGORA_LB_IMPLEMENTATION
#include "../pingora_lb.h"
