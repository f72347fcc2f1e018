/* To be included before everything else (gcc -include): from here on the compiler passes for Microsoft's. The C
   library's headers come before that, for they look at what it is, too. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#undef __GNUC__
#undef __SIZEOF_INT128__
#define _MSC_VER 1940
#define _WIN64
#define _M_X64
