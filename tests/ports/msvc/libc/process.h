/* What plb_win32.h needs of it; MinGW's own asks for more of its compiler than clang has when it plays Microsoft's. */
#ifndef MSVC_PROCESS_H
#define MSVC_PROCESS_H
#include <stdint.h>
#ifdef __cplusplus
extern "C"
#endif
    uintptr_t
    _beginthreadex(void *security, unsigned stack, unsigned(__stdcall *fn)(void *), void *user, unsigned flags,
                   unsigned *id);
#endif
