/* Those intrinsic functions of Microsoft's compiler that the library uses. Where clang plays that compiler it knows
   them, and just wants to be told; elsewhere (on_linux.h) they are made here, so that the library's branch for that
   compiler runs and can be tested. Accesses are ordered as x64 orders them: each load acquires, each store releases. */
#ifndef MSVC_INTRIN_H
#define MSVC_INTRIN_H

#ifdef __clang__
#ifdef __cplusplus
extern "C" {
#endif
void _ReadWriteBarrier(void);
char _InterlockedExchange8(char volatile *p, char v);
long _InterlockedExchange(long volatile *p, long v);
long _InterlockedExchangeAdd(long volatile *p, long v);
long _InterlockedCompareExchange(long volatile *p, long v, long expected);
long long _InterlockedExchange64(long long volatile *p, long long v);
long long _InterlockedExchangeAdd64(long long volatile *p, long long v);
long long _InterlockedOr64(long long volatile *p, long long v);
long long _InterlockedAnd64(long long volatile *p, long long v);
long long _InterlockedCompareExchange64(long long volatile *p, long long v, long long expected);
char __iso_volatile_load8(const volatile char *p);
int __iso_volatile_load32(const volatile int *p);
long long __iso_volatile_load64(const volatile long long *p);
void __iso_volatile_store8(volatile char *p, char v);
void __iso_volatile_store32(volatile int *p, int v);
void __iso_volatile_store64(volatile long long *p, long long v);
unsigned char _BitScanForward64(unsigned long *place, unsigned long long word);
unsigned long long __umulh(unsigned long long a, unsigned long long b);
void __dmb(unsigned what);
void _mm_prefetch(char const *p, int hint);
#ifdef __cplusplus
}
#endif

#else
#define __forceinline inline __attribute__((unused, always_inline))
#define __declspec(what) MSVC_DECLSPEC_##what
#define MSVC_DECLSPEC_noinline __attribute__((noinline))
#define MSVC_DECLSPEC_thread   __thread

#define _ReadWriteBarrier()             __atomic_signal_fence(__ATOMIC_SEQ_CST)
#define _InterlockedExchange8(p, v)     __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST)
#define _InterlockedExchange(p, v)      __atomic_exchange_n((volatile int *)(p), (int)(v), __ATOMIC_SEQ_CST)
#define _InterlockedExchangeAdd(p, v)   __atomic_fetch_add((volatile int *)(p), (int)(v), __ATOMIC_SEQ_CST)
#define _InterlockedExchange64(p, v)    __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST)
#define _InterlockedExchangeAdd64(p, v) __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST)
#define _InterlockedOr64(p, v)          __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST)
#define _InterlockedAnd64(p, v)         __atomic_fetch_and(p, v, __ATOMIC_SEQ_CST)
#define __iso_volatile_load8(p)         __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define __iso_volatile_load32(p)        __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define __iso_volatile_load64(p)        __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define __iso_volatile_store8(p, v)     __atomic_store_n(p, v, __ATOMIC_RELEASE)
#define __iso_volatile_store32(p, v)    __atomic_store_n(p, v, __ATOMIC_RELEASE)
#define __iso_volatile_store64(p, v)    __atomic_store_n(p, v, __ATOMIC_RELEASE)
#define _mm_prefetch(p, hint)           __builtin_prefetch(p)

static inline int _InterlockedCompareExchange(volatile long *p, long v, long expected)
{
    int seen = (int)expected;
    __atomic_compare_exchange_n((volatile int *)p, &seen, (int)v, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return seen;
}

static inline long long _InterlockedCompareExchange64(volatile long long *p, long long v, long long expected)
{
    __atomic_compare_exchange_n(p, &expected, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return expected;
}

static inline unsigned char _BitScanForward64(unsigned long *place, unsigned long long word)
{
    *place = word == 0 ? 0 : (unsigned long)__builtin_ctzll(word);
    return word != 0;
}

static inline unsigned long long __umulh(unsigned long long a, unsigned long long b)
{
    __extension__ typedef unsigned __int128 wide;
    return (unsigned long long)(((wide)a * b) >> 64);
}
#endif

#define _MM_HINT_T0        3
#define _MM_HINT_T1        2
#define _ARM64_BARRIER_ISH 0xb
#endif
