/* parity.h: what parity.c and the files of one instruction set (parity_x86.c) share. Private.
 *
 * A kernel is one instruction set's way through the four inner loops. To add one: fill a struct rl_kernel, list it in parity.c. Tests
 * (tests/test_codec.py) and benchmark (bench/parity.py) go over the registry, so they take it from there.
 *
 * What every routine may rely on, because the front end in parity.c sees to it:
 *  - it works on bytes begin..end-1 of each block (begin <= end), at any alignment, and does all of them: what is left over after its
 *    widest steps it hands to the portable kernel;
 *  - no pointer is NULL (columns of zeros and unwanted outputs are sorted out before), and the counts are at least 1;
 *  - outputs overlap nothing, but for `xor_gen`, whose out may be one of its sources (each byte is read before it is written).
 */
#ifndef RAIDLIB_PARITY_H
#define RAIDLIB_PARITY_H

#include "raidlib.h"

#ifndef RL_ASSERT
#define RL_ASSERT(condition) \
    do { \
        if (!(condition)) \
            __builtin_trap(); \
    } while (0)
#endif

/* The whole of a routine must be seen with its number of rows as a constant, or its accumulators do not stay in registers. */
#define RL_ALWAYS_INLINE static inline __attribute__((always_inline))

struct rl_kernel {
    const char *name;
    int (*supported)(void); /* does this CPU run it? */

    /* out = source[0] ^ ... ^ source[n-1] */
    void (*xor_gen)(unsigned n, size_t begin, size_t end, const uint8_t *const *source, uint8_t *out);

    /* p = sum of source[i], q = sum of 2^i * source[i] */
    void (*pq_gen)(unsigned n, size_t begin, size_t end, const uint8_t *const *source, uint8_t *p, uint8_t *q);

    /* out[r] = sum of coefficient[r * n + i] * source[i] for r < rows <= RL_PARITY_MAX */
    void (*dot)(unsigned rows, unsigned n, size_t begin, size_t end, const uint8_t *coefficient, const uint8_t *const *source,
                uint8_t *const *out);

    /* out[r] ^= coefficient[r] * (a ^ b) for r < rows <= RL_PARITY_MAX; b may be NULL (zeros) */
    void (*update)(unsigned rows, size_t begin, size_t end, const uint8_t *coefficient, const uint8_t *a, const uint8_t *b,
                   uint8_t *const *out);
};

extern const struct rl_kernel rl_kernel_portable;

/* Tests build with -DRL_PORTABLE to see on x86 what another machine gets. */
#if defined(__x86_64__) && !defined(RL_PORTABLE)
#define RL_X86 1
#else
#define RL_X86 0
#endif

/* The 256 values of a macro f(c) for c = 0..255. Used for tables that are linear in c, hence given by their values at the powers of 2. */
#define RL_TABLE_4(f, c) f(c), f((c) + 1), f((c) + 2), f((c) + 3)
#define RL_TABLE_16(f, c) RL_TABLE_4(f, c), RL_TABLE_4(f, (c) + 4), RL_TABLE_4(f, (c) + 8), RL_TABLE_4(f, (c) + 12)
#define RL_TABLE_64(f, c) RL_TABLE_16(f, c), RL_TABLE_16(f, (c) + 16), RL_TABLE_16(f, (c) + 32), RL_TABLE_16(f, (c) + 48)
#define RL_TABLE_256(f) RL_TABLE_64(f, 0), RL_TABLE_64(f, 64), RL_TABLE_64(f, 128), RL_TABLE_64(f, 192)
#define RL_LINEAR(c, v0, v1, v2, v3, v4, v5, v6, v7) \
    (((c) & 1 ? v0 : 0u) ^ ((c) & 2 ? v1 : 0u) ^ ((c) & 4 ? v2 : 0u) ^ ((c) & 8 ? v3 : 0u) ^ ((c) & 16 ? v4 : 0u) ^ ((c) & 32 ? v5 : 0u) ^ \
     ((c) & 64 ? v6 : 0u) ^ ((c) & 128 ? v7 : 0u))

#if RL_X86
extern const struct rl_kernel rl_kernel_ssse3, rl_kernel_avx2, rl_kernel_avx512gfni;
int rl_crc32c_x86_supported(void);
uint32_t rl_crc32c_x86(uint32_t crc, const uint8_t *data, size_t length);
#endif

#endif
