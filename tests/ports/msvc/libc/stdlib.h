/* See string.h beside it. */
#ifndef MSVC_STDLIB_H
#define MSVC_STDLIB_H
#include <stddef.h>
#ifdef __cplusplus
extern "C" {
#endif
void *malloc(size_t size);
void *calloc(size_t count, size_t size);
void free(void *ptr);
void abort(void);
#ifdef __cplusplus
}
#endif
#endif
