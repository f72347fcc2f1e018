/* The library as tests/ports/size.h has it. */
#define PINGORA_LB_IMPLEMENTATION
#include "size.h"
