/* parity_x86.c: the kernels for x86-64: SSSE3, AVX2, AVX-512 with GFNI. By target attribute, so no file needs flags of its own.
 *
 * MULTIPLICATION by a constant c, byte by byte. SSSE3 and AVX2: a product is linear, so c x = c (low nibble) + c (high nibble), and pshufb
 * looks up 16 or 32 nibbles at once in two 16-byte tables of c. GFNI: c is an 8x8 bit matrix and one gf2p8affineqb applies it to every byte
 * (gf2p8mulb is of no use: its polynomial is 0x11b).
 *
 * DOUBLING in the Horner step of Q without GFNI. The plain way takes cmpgt (which bytes lose their top bit), add, and, xor. Here pshufb
 * does two of them: it yields 0 where the index has its top bit set, else the table's entry; with 0x1d in all of the table that is 0x1d
 * exactly where the top bit is *clear*. So q + q ^ pshufb(0x1d, q) is 2 q ^ 0x1d for every byte, and the surplus is a constant: after n
 * steps surplus(n) = 2 surplus(n-1) ^ 0x1d whatever the data are (doubling is linear), which one XOR at the end removes.
 *
 * ORDER. Steps are 64 bytes a column or more: a whole cache line is used while it is in L1, even where the blocks lie 4 KiB or more
 * apart and all columns fall into the same cache set. A step loads all it needs before it stores: a load may take an earlier store to the
 * same place of a page, but another page, for its own, and waits. Columns are read from the last down, as Horner's rule wants it, and in
 * XOR and dot too: upwards, over blocks that lie next to each other, Zen 5 lost 40 % at 64 KiB blocks (its prefetcher seems to follow
 * the one load instruction's stride from block to block).
 *
 * UNROLLING is by macro: an array of accumulators becomes registers only if each index is a constant before the optimiser's first passes.
 * GCC 12 at -O2 leaves such an inner loop, even under #pragma GCC unroll, as a loop over memory: half the speed.
 */
#include "parity.h"

#if RL_X86

#include <immintrin.h>
#include <string.h>

#define SSSE3 __attribute__((target("ssse3")))
#define AVX2 __attribute__((target("avx2")))
#define GFNI __attribute__((target("avx512f,avx512bw,gfni,prefer-vector-width=512")))
#define SSE42 __attribute__((target("sse4.2")))

#define POLYNOMIAL 0x1d

/* nibbles[c]: c * 0..15, then c * 0x00, 0x10 .. 0xf0. Little-endian words; linear in c. */
#define NIBBLES(c) \
    {RL_LINEAR(c, 0x0706050403020100, 0x0e0c0a0806040200, 0x1c1814100c080400, 0x3830282018100800, 0x7060504030201000, 0xe0c0a08060402000, \
               0xdd9d5d1dc0804000, 0xa727ba3a9d1d8000), \
     RL_LINEAR(c, 0x0f0e0d0c0b0a0908, 0x1e1c1a1816141210, 0x3c3834302c282420, 0x7870686058504840, 0xf0e0d0c0b0a09080, 0xfdddbd9d7d5d3d1d, \
               0xe7a76727faba7a3a, 0xd353ce4ee969f474), \
     RL_LINEAR(c, 0x7060504030201000, 0xe0c0a08060402000, 0xdd9d5d1dc0804000, 0xa727ba3a9d1d8000, 0x534e6974273a1d00, 0xa69cd2e84e743a00, \
               0x5125b9cd9ce87400, 0xa24a6f8725cde800), \
     RL_LINEAR(c, 0xf0e0d0c0b0a09080, 0xfdddbd9d7d5d3d1d, 0xe7a76727faba7a3a, 0xd353ce4ee969f474, 0xbba6819ccfd2f5e8, 0x6b511f2583b9f7cd, \
               0xd6a23e4a1b6ff387, 0xb1597c9436defb13)}

static const uint64_t nibbles[256][4] __attribute__((aligned(64))) = {RL_TABLE_256(NIBBLES)};

/* matrices[c]: multiplication by c as gf2p8affineqb takes it (byte 7 - i is the row of output bit i). Linear in c. */
#define MATRIX(c) \
    RL_LINEAR(c, 0x0102040810204080, 0x8001828488102040, 0x408041c2c4881020, 0x2040a061e2c48810, 0x102050b071e2c488, 0x8810a8d83871e2c4, \
              0xc488d46c1c3871e2, 0xe2c46a368e1c3871)

static const uint64_t matrices[256] __attribute__((aligned(64))) = {RL_TABLE_256(MATRIX)};

/* The constant that `steps` surplus doublings leave behind. */
static char surplus(unsigned steps)
{
    uint8_t s = 0;
    while (steps-- > 0)
        s = (uint8_t)(s << 1 ^ (s & 0x80 ? POLYNOMIAL : 0) ^ POLYNOMIAL);
    return (char)s;
}

/* The statement for v = 0 .. count - 1, v and (after inlining) count being constants. */
#define UNROLL_ONE(v, value, count, ...) \
    { \
        enum { v = value }; \
        if (v < (count)) { \
            __VA_ARGS__; \
        } \
    }
#define UNROLL_2(v, count, ...) \
    do { \
        UNROLL_ONE(v, 0, count, __VA_ARGS__) \
        UNROLL_ONE(v, 1, count, __VA_ARGS__) \
    } while (0)
#define UNROLL_4(v, count, ...) \
    do { \
        UNROLL_ONE(v, 0, count, __VA_ARGS__) \
        UNROLL_ONE(v, 1, count, __VA_ARGS__) \
        UNROLL_ONE(v, 2, count, __VA_ARGS__) \
        UNROLL_ONE(v, 3, count, __VA_ARGS__) \
    } while (0)
#define UNROLL_6(v, count, ...) \
    do { \
        UNROLL_ONE(v, 0, count, __VA_ARGS__) \
        UNROLL_ONE(v, 1, count, __VA_ARGS__) \
        UNROLL_ONE(v, 2, count, __VA_ARGS__) \
        UNROLL_ONE(v, 3, count, __VA_ARGS__) \
        UNROLL_ONE(v, 4, count, __VA_ARGS__) \
        UNROLL_ONE(v, 5, count, __VA_ARGS__) \
    } while (0)

/* A copy of a routine for each number of rows, so that its accumulators are registers. */
#define BY_ROWS(rows, routine, ...) \
    do { \
        switch (rows) { \
        case 1: routine(1, __VA_ARGS__); break; \
        case 2: routine(2, __VA_ARGS__); break; \
        case 3: routine(3, __VA_ARGS__); break; \
        case 4: routine(4, __VA_ARGS__); break; \
        case 5: routine(5, __VA_ARGS__); break; \
        case 6: routine(6, __VA_ARGS__); break; \
        default: RL_ASSERT(0); \
        } \
    } while (0)

/* ---- SSSE3 --------------------------------------------------------------------------------------------------------------- */

static int ssse3_supported(void)
{
    return __builtin_cpu_supports("ssse3");
}

SSSE3 RL_ALWAYS_INLINE __m128i ssse3_load(const uint8_t *from)
{
    return _mm_loadu_si128((const __m128i *)from);
}

SSSE3 RL_ALWAYS_INLINE void ssse3_store(uint8_t *to, __m128i x)
{
    _mm_storeu_si128((__m128i *)to, x);
}

/* One half of the tables of c: 0 for the low nibble, 2 for the high. */
SSSE3 RL_ALWAYS_INLINE __m128i ssse3_table(uint8_t c, unsigned half)
{
    return _mm_load_si128((const __m128i *)&nibbles[c][half]);
}

SSSE3 RL_ALWAYS_INLINE __m128i ssse3_low(__m128i x)
{
    return _mm_and_si128(x, _mm_set1_epi8(15));
}

SSSE3 RL_ALWAYS_INLINE __m128i ssse3_high(__m128i x)
{
    return _mm_and_si128(_mm_srli_epi64(x, 4), _mm_set1_epi8(15));
}

SSSE3 static void ssse3_xor(unsigned n, size_t begin, size_t end, const uint8_t *const *source, uint8_t *out)
{
    size_t at = begin;
    for (; end - at >= 64; at += 64) {
        __m128i x[4];
        UNROLL_4(v, 4, x[v] = ssse3_load(source[n - 1] + at + v * 16));
        for (unsigned i = n - 1; i-- > 0;)
            UNROLL_4(v, 4, x[v] = _mm_xor_si128(x[v], ssse3_load(source[i] + at + v * 16)));
        UNROLL_4(v, 4, ssse3_store(out + at + v * 16, x[v]));
    }
    rl_kernel_portable.xor_gen(n, at, end, source, out);
}

SSSE3 static void ssse3_pq(unsigned n, size_t begin, size_t end, const uint8_t *const *source, uint8_t *p_out, uint8_t *q_out)
{
    const __m128i reduce = _mm_set1_epi8(POLYNOMIAL), surplus_q = _mm_set1_epi8(surplus(n - 1));
    size_t at = begin;
    for (; end - at >= 64; at += 64) {
        __m128i p[4], q[4];
        UNROLL_4(v, 4, p[v] = q[v] = ssse3_load(source[n - 1] + at + v * 16));
        for (unsigned i = n - 1; i-- > 0;) {
            const uint8_t *from = source[i] + at;
            UNROLL_4(v, 4, {
                const __m128i x = ssse3_load(from + v * 16);
                p[v] = _mm_xor_si128(p[v], x);
                const __m128i folded = _mm_xor_si128(_mm_shuffle_epi8(reduce, q[v]), x);
                q[v] = _mm_xor_si128(_mm_add_epi8(q[v], q[v]), folded);
            });
        }
        UNROLL_4(v, 4, {
            ssse3_store(p_out + at + v * 16, p[v]);
            ssse3_store(q_out + at + v * 16, _mm_xor_si128(q[v], surplus_q));
        });
    }
    rl_kernel_portable.pq_gen(n, at, end, source, p_out, q_out);
}

/* `vectors` columns of registers side by side share the tables they look up in; more than 2 x 4 accumulators do not fit. */
SSSE3 RL_ALWAYS_INLINE size_t ssse3_dot_steps(unsigned vectors, unsigned rows, unsigned n, size_t at, size_t end,
                                              const uint8_t *coefficient, const uint8_t *const *source, uint8_t *const *out)
{
    for (; end - at >= vectors * 16; at += vectors * 16) {
        __m128i acc[RL_PARITY_MAX][2];
        UNROLL_6(r, rows, UNROLL_2(v, vectors, acc[r][v] = _mm_setzero_si128()));
        for (unsigned i = n; i-- > 0;) {
            __m128i low[2], high[2];
            UNROLL_2(v, vectors, {
                const __m128i x = ssse3_load(source[i] + at + v * 16);
                low[v] = ssse3_low(x);
                high[v] = ssse3_high(x);
            });
            UNROLL_6(r, rows, {
                const __m128i for_low = ssse3_table(coefficient[r * n + i], 0), for_high = ssse3_table(coefficient[r * n + i], 2);
                UNROLL_2(v, vectors, {
                    acc[r][v] = _mm_xor_si128(acc[r][v], _mm_shuffle_epi8(for_low, low[v]));
                    acc[r][v] = _mm_xor_si128(acc[r][v], _mm_shuffle_epi8(for_high, high[v]));
                });
            });
        }
        UNROLL_6(r, rows, UNROLL_2(v, vectors, ssse3_store(out[r] + at + v * 16, acc[r][v])));
    }
    return at;
}

SSSE3 RL_ALWAYS_INLINE void ssse3_dot_rows(unsigned rows, unsigned n, size_t begin, size_t end, const uint8_t *coefficient,
                                           const uint8_t *const *source, uint8_t *const *out)
{
    size_t at = ssse3_dot_steps(rows <= 4 ? 2 : 1, rows, n, begin, end, coefficient, source, out);
    rl_kernel_portable.dot(rows, n, at, end, coefficient, source, out);
}

SSSE3 static void ssse3_dot(unsigned rows, unsigned n, size_t begin, size_t end, const uint8_t *coefficient, const uint8_t *const *source,
                            uint8_t *const *out)
{
    BY_ROWS(rows, ssse3_dot_rows, n, begin, end, coefficient, source, out);
}

SSSE3 RL_ALWAYS_INLINE size_t ssse3_update_steps(unsigned vectors, unsigned rows, size_t at, size_t end, const uint8_t *coefficient,
                                                 const uint8_t *a, const uint8_t *b, uint8_t *const *out)
{
    __m128i for_low[RL_PARITY_MAX], for_high[RL_PARITY_MAX];
    UNROLL_6(r, rows, for_low[r] = ssse3_table(coefficient[r], 0); for_high[r] = ssse3_table(coefficient[r], 2));
    for (; end - at >= vectors * 16; at += vectors * 16) {
        __m128i acc[RL_PARITY_MAX][2];
        UNROLL_6(r, rows, UNROLL_2(v, vectors, acc[r][v] = ssse3_load(out[r] + at + v * 16)));
        UNROLL_2(v, vectors, {
            __m128i x = ssse3_load(a + at + v * 16);
            if (b != NULL)
                x = _mm_xor_si128(x, ssse3_load(b + at + v * 16));
            const __m128i low = ssse3_low(x), high = ssse3_high(x);
            UNROLL_6(r, rows, {
                acc[r][v] = _mm_xor_si128(acc[r][v], _mm_shuffle_epi8(for_low[r], low));
                acc[r][v] = _mm_xor_si128(acc[r][v], _mm_shuffle_epi8(for_high[r], high));
            });
        });
        UNROLL_6(r, rows, UNROLL_2(v, vectors, ssse3_store(out[r] + at + v * 16, acc[r][v])));
    }
    return at;
}

SSSE3 RL_ALWAYS_INLINE void ssse3_update_rows(unsigned rows, size_t begin, size_t end, const uint8_t *coefficient, const uint8_t *a,
                                              const uint8_t *b, uint8_t *const *out)
{
    size_t at = ssse3_update_steps(rows <= 3 ? 2 : 1, rows, begin, end, coefficient, a, b, out);
    rl_kernel_portable.update(rows, at, end, coefficient, a, b, out);
}

SSSE3 static void ssse3_update(unsigned rows, size_t begin, size_t end, const uint8_t *coefficient, const uint8_t *a, const uint8_t *b,
                               uint8_t *const *out)
{
    BY_ROWS(rows, ssse3_update_rows, begin, end, coefficient, a, b, out);
}

const struct rl_kernel rl_kernel_ssse3 = {
    .name = "ssse3",
    .supported = ssse3_supported,
    .xor_gen = ssse3_xor,
    .pq_gen = ssse3_pq,
    .dot = ssse3_dot,
    .update = ssse3_update,
};

/* ---- AVX2 ---------------------------------------------------------------------------------------------------------------- */

static int avx2_supported(void)
{
    return __builtin_cpu_supports("avx2");
}

AVX2 RL_ALWAYS_INLINE __m256i avx2_load(const uint8_t *from)
{
    return _mm256_loadu_si256((const __m256i *)from);
}

AVX2 RL_ALWAYS_INLINE void avx2_store(uint8_t *to, __m256i x)
{
    _mm256_storeu_si256((__m256i *)to, x);
}

/* One half of the tables of c: 0 for the low nibble, 2 for the high. */
AVX2 RL_ALWAYS_INLINE __m256i avx2_table(uint8_t c, unsigned half)
{
    return _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)&nibbles[c][half]));
}

AVX2 RL_ALWAYS_INLINE __m256i avx2_low(__m256i x)
{
    return _mm256_and_si256(x, _mm256_set1_epi8(15));
}

AVX2 RL_ALWAYS_INLINE __m256i avx2_high(__m256i x)
{
    return _mm256_and_si256(_mm256_srli_epi64(x, 4), _mm256_set1_epi8(15));
}

AVX2 static void avx2_xor(unsigned n, size_t begin, size_t end, const uint8_t *const *source, uint8_t *out)
{
    size_t at = begin;
    for (; end - at >= 128; at += 128) {
        __m256i x[4];
        UNROLL_4(v, 4, x[v] = avx2_load(source[n - 1] + at + v * 32));
        for (unsigned i = n - 1; i-- > 0;)
            UNROLL_4(v, 4, x[v] = _mm256_xor_si256(x[v], avx2_load(source[i] + at + v * 32)));
        UNROLL_4(v, 4, avx2_store(out + at + v * 32, x[v]));
    }
    rl_kernel_portable.xor_gen(n, at, end, source, out);
}

AVX2 static void avx2_pq(unsigned n, size_t begin, size_t end, const uint8_t *const *source, uint8_t *p_out, uint8_t *q_out)
{
    const __m256i reduce = _mm256_set1_epi8(POLYNOMIAL), surplus_q = _mm256_set1_epi8(surplus(n - 1));
    size_t at = begin;
    for (; end - at >= 128; at += 128) {
        __m256i p[4], q[4];
        UNROLL_4(v, 4, p[v] = q[v] = avx2_load(source[n - 1] + at + v * 32));
        for (unsigned i = n - 1; i-- > 0;) {
            const uint8_t *from = source[i] + at;
            UNROLL_4(v, 4, {
                const __m256i x = avx2_load(from + v * 32);
                p[v] = _mm256_xor_si256(p[v], x);
                const __m256i folded = _mm256_xor_si256(_mm256_shuffle_epi8(reduce, q[v]), x);
                q[v] = _mm256_xor_si256(_mm256_add_epi8(q[v], q[v]), folded);
            });
        }
        UNROLL_4(v, 4, {
            avx2_store(p_out + at + v * 32, p[v]);
            avx2_store(q_out + at + v * 32, _mm256_xor_si256(q[v], surplus_q));
        });
    }
    rl_kernel_portable.pq_gen(n, at, end, source, p_out, q_out);
}

/* `vectors` columns of registers side by side share the tables they look up in; more than 2 x 4 accumulators do not fit. */
AVX2 RL_ALWAYS_INLINE size_t avx2_dot_steps(unsigned vectors, unsigned rows, unsigned n, size_t at, size_t end, const uint8_t *coefficient,
                                            const uint8_t *const *source, uint8_t *const *out)
{
    for (; end - at >= vectors * 32; at += vectors * 32) {
        __m256i acc[RL_PARITY_MAX][2];
        UNROLL_6(r, rows, UNROLL_2(v, vectors, acc[r][v] = _mm256_setzero_si256()));
        for (unsigned i = n; i-- > 0;) {
            __m256i low[2], high[2];
            UNROLL_2(v, vectors, {
                const __m256i x = avx2_load(source[i] + at + v * 32);
                low[v] = avx2_low(x);
                high[v] = avx2_high(x);
            });
            UNROLL_6(r, rows, {
                const __m256i for_low = avx2_table(coefficient[r * n + i], 0), for_high = avx2_table(coefficient[r * n + i], 2);
                UNROLL_2(v, vectors, {
                    acc[r][v] = _mm256_xor_si256(acc[r][v], _mm256_shuffle_epi8(for_low, low[v]));
                    acc[r][v] = _mm256_xor_si256(acc[r][v], _mm256_shuffle_epi8(for_high, high[v]));
                });
            });
        }
        UNROLL_6(r, rows, UNROLL_2(v, vectors, avx2_store(out[r] + at + v * 32, acc[r][v])));
    }
    return at;
}

AVX2 RL_ALWAYS_INLINE void avx2_dot_rows(unsigned rows, unsigned n, size_t begin, size_t end, const uint8_t *coefficient,
                                         const uint8_t *const *source, uint8_t *const *out)
{
    size_t at = avx2_dot_steps(rows <= 4 ? 2 : 1, rows, n, begin, end, coefficient, source, out);
    rl_kernel_portable.dot(rows, n, at, end, coefficient, source, out);
}

AVX2 static void avx2_dot(unsigned rows, unsigned n, size_t begin, size_t end, const uint8_t *coefficient, const uint8_t *const *source,
                          uint8_t *const *out)
{
    BY_ROWS(rows, avx2_dot_rows, n, begin, end, coefficient, source, out);
}

AVX2 RL_ALWAYS_INLINE size_t avx2_update_steps(unsigned vectors, unsigned rows, size_t at, size_t end, const uint8_t *coefficient,
                                               const uint8_t *a, const uint8_t *b, uint8_t *const *out)
{
    __m256i for_low[RL_PARITY_MAX], for_high[RL_PARITY_MAX];
    UNROLL_6(r, rows, for_low[r] = avx2_table(coefficient[r], 0); for_high[r] = avx2_table(coefficient[r], 2));
    for (; end - at >= vectors * 32; at += vectors * 32) {
        __m256i acc[RL_PARITY_MAX][2];
        UNROLL_6(r, rows, UNROLL_2(v, vectors, acc[r][v] = avx2_load(out[r] + at + v * 32)));
        UNROLL_2(v, vectors, {
            __m256i x = avx2_load(a + at + v * 32);
            if (b != NULL)
                x = _mm256_xor_si256(x, avx2_load(b + at + v * 32));
            const __m256i low = avx2_low(x), high = avx2_high(x);
            UNROLL_6(r, rows, {
                acc[r][v] = _mm256_xor_si256(acc[r][v], _mm256_shuffle_epi8(for_low[r], low));
                acc[r][v] = _mm256_xor_si256(acc[r][v], _mm256_shuffle_epi8(for_high[r], high));
            });
        });
        UNROLL_6(r, rows, UNROLL_2(v, vectors, avx2_store(out[r] + at + v * 32, acc[r][v])));
    }
    return at;
}

AVX2 RL_ALWAYS_INLINE void avx2_update_rows(unsigned rows, size_t begin, size_t end, const uint8_t *coefficient, const uint8_t *a,
                                            const uint8_t *b, uint8_t *const *out)
{
    size_t at = avx2_update_steps(rows <= 3 ? 2 : 1, rows, begin, end, coefficient, a, b, out);
    rl_kernel_portable.update(rows, at, end, coefficient, a, b, out);
}

AVX2 static void avx2_update(unsigned rows, size_t begin, size_t end, const uint8_t *coefficient, const uint8_t *a, const uint8_t *b,
                             uint8_t *const *out)
{
    BY_ROWS(rows, avx2_update_rows, begin, end, coefficient, a, b, out);
}

const struct rl_kernel rl_kernel_avx2 = {
    .name = "avx2",
    .supported = avx2_supported,
    .xor_gen = avx2_xor,
    .pq_gen = avx2_pq,
    .dot = avx2_dot,
    .update = avx2_update,
};

/* ---- AVX-512 with GFNI -------------------------------------------------------------------------------------------- */

#define XOR3 0x96 /* vpternlogq: a ^ b ^ c */

static int gfni_supported(void)
{
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("gfni");
}

GFNI RL_ALWAYS_INLINE __m512i gfni_load(const uint8_t *from)
{
    return _mm512_loadu_si512((const void *)from);
}

GFNI RL_ALWAYS_INLINE void gfni_store(uint8_t *to, __m512i x)
{
    _mm512_storeu_si512((void *)to, x);
}

GFNI RL_ALWAYS_INLINE __m512i gfni_matrix(uint8_t c)
{
    return _mm512_set1_epi64((long long)matrices[c]);
}

GFNI RL_ALWAYS_INLINE size_t gfni_xor_steps(unsigned vectors, unsigned n, size_t at, size_t end, const uint8_t *const *source, uint8_t *out)
{
    for (; end - at >= vectors * 64; at += vectors * 64) {
        __m512i x[4];
        UNROLL_4(v, vectors, x[v] = gfni_load(source[n - 1] + at + v * 64));
        unsigned i = n - 1;
        for (; i >= 2; i -= 2) {
            const uint8_t *a = source[i - 1] + at, *b = source[i - 2] + at;
            UNROLL_4(v, vectors, x[v] = _mm512_ternarylogic_epi64(x[v], gfni_load(a + v * 64), gfni_load(b + v * 64), XOR3));
        }
        if (i == 1)
            UNROLL_4(v, vectors, x[v] = _mm512_xor_si512(x[v], gfni_load(source[0] + at + v * 64)));
        UNROLL_4(v, vectors, gfni_store(out + at + v * 64, x[v]));
    }
    return at;
}

GFNI static void gfni_xor(unsigned n, size_t begin, size_t end, const uint8_t *const *source, uint8_t *out)
{
    size_t at = gfni_xor_steps(4, n, begin, end, source, out);
    at = gfni_xor_steps(1, n, at, end, source, out);
    rl_kernel_portable.xor_gen(n, at, end, source, out);
}

/* Two columns a turn: q = 4 q + 2 b + a takes two affines and one three-way XOR, and the chain through q is half as long. */
GFNI RL_ALWAYS_INLINE size_t gfni_pq_steps(unsigned vectors, unsigned n, size_t at, size_t end, const uint8_t *const *source,
                                           uint8_t *p_out, uint8_t *q_out)
{
    const __m512i by_2 = gfni_matrix(2), by_4 = gfni_matrix(4);
    for (; end - at >= vectors * 64; at += vectors * 64) {
        __m512i p[4], q[4];
        UNROLL_4(v, vectors, p[v] = q[v] = gfni_load(source[n - 1] + at + v * 64));
        unsigned i = n - 1;
        for (; i >= 2; i -= 2) {
            const uint8_t *lower = source[i - 2] + at, *upper = source[i - 1] + at;
            UNROLL_4(v, vectors, {
                const __m512i a = gfni_load(lower + v * 64), b = gfni_load(upper + v * 64);
                p[v] = _mm512_ternarylogic_epi64(p[v], a, b, XOR3);
                q[v] = _mm512_ternarylogic_epi64(_mm512_gf2p8affine_epi64_epi8(q[v], by_4, 0), _mm512_gf2p8affine_epi64_epi8(b, by_2, 0), a,
                                                 XOR3);
            });
        }
        if (i == 1) {
            UNROLL_4(v, vectors, {
                const __m512i a = gfni_load(source[0] + at + v * 64);
                p[v] = _mm512_xor_si512(p[v], a);
                q[v] = _mm512_xor_si512(_mm512_gf2p8affine_epi64_epi8(q[v], by_2, 0), a);
            });
        }
        UNROLL_4(v, vectors, {
            gfni_store(p_out + at + v * 64, p[v]);
            gfni_store(q_out + at + v * 64, q[v]);
        });
    }
    return at;
}

GFNI static void gfni_pq(unsigned n, size_t begin, size_t end, const uint8_t *const *source, uint8_t *p, uint8_t *q)
{
    size_t at = gfni_pq_steps(4, n, begin, end, source, p, q);
    at = gfni_pq_steps(1, n, at, end, source, p, q);
    rl_kernel_portable.pq_gen(n, at, end, source, p, q);
}

GFNI RL_ALWAYS_INLINE size_t gfni_dot_steps(unsigned vectors, unsigned rows, unsigned n, size_t at, size_t end, const uint8_t *coefficient,
                                            const uint8_t *const *source, uint8_t *const *out)
{
    for (; end - at >= vectors * 64; at += vectors * 64) {
        __m512i acc[RL_PARITY_MAX][2];
        UNROLL_6(r, rows, UNROLL_2(v, vectors, acc[r][v] = _mm512_setzero_si512()));
        for (unsigned i = n; i-- > 0;) {
            __m512i x[2];
            UNROLL_2(v, vectors, x[v] = gfni_load(source[i] + at + v * 64));
            UNROLL_6(r, rows, {
                const __m512i matrix = gfni_matrix(coefficient[r * n + i]);
                UNROLL_2(v, vectors, acc[r][v] = _mm512_xor_si512(acc[r][v], _mm512_gf2p8affine_epi64_epi8(x[v], matrix, 0)));
            });
        }
        UNROLL_6(r, rows, UNROLL_2(v, vectors, gfni_store(out[r] + at + v * 64, acc[r][v])));
    }
    return at;
}

GFNI RL_ALWAYS_INLINE void gfni_dot_rows(unsigned rows, unsigned n, size_t begin, size_t end, const uint8_t *coefficient,
                                         const uint8_t *const *source, uint8_t *const *out)
{
    size_t at = gfni_dot_steps(2, rows, n, begin, end, coefficient, source, out);
    at = gfni_dot_steps(1, rows, n, at, end, coefficient, source, out);
    rl_kernel_portable.dot(rows, n, at, end, coefficient, source, out);
}

GFNI static void gfni_dot(unsigned rows, unsigned n, size_t begin, size_t end, const uint8_t *coefficient, const uint8_t *const *source,
                          uint8_t *const *out)
{
    BY_ROWS(rows, gfni_dot_rows, n, begin, end, coefficient, source, out);
}

GFNI RL_ALWAYS_INLINE size_t gfni_update_steps(unsigned vectors, unsigned rows, size_t at, size_t end, const uint8_t *coefficient,
                                               const uint8_t *a, const uint8_t *b, uint8_t *const *out)
{
    __m512i matrix[RL_PARITY_MAX];
    UNROLL_6(r, rows, matrix[r] = gfni_matrix(coefficient[r]));
    for (; end - at >= vectors * 64; at += vectors * 64) {
        __m512i acc[RL_PARITY_MAX][2];
        UNROLL_6(r, rows, UNROLL_2(v, vectors, acc[r][v] = gfni_load(out[r] + at + v * 64)));
        UNROLL_2(v, vectors, {
            __m512i x = gfni_load(a + at + v * 64);
            if (b != NULL)
                x = _mm512_xor_si512(x, gfni_load(b + at + v * 64));
            UNROLL_6(r, rows, acc[r][v] = _mm512_xor_si512(acc[r][v], _mm512_gf2p8affine_epi64_epi8(x, matrix[r], 0)));
        });
        UNROLL_6(r, rows, UNROLL_2(v, vectors, gfni_store(out[r] + at + v * 64, acc[r][v])));
    }
    return at;
}

GFNI RL_ALWAYS_INLINE void gfni_update_rows(unsigned rows, size_t begin, size_t end, const uint8_t *coefficient, const uint8_t *a,
                                            const uint8_t *b, uint8_t *const *out)
{
    size_t at = gfni_update_steps(2, rows, begin, end, coefficient, a, b, out);
    at = gfni_update_steps(1, rows, at, end, coefficient, a, b, out);
    rl_kernel_portable.update(rows, at, end, coefficient, a, b, out);
}

GFNI static void gfni_update(unsigned rows, size_t begin, size_t end, const uint8_t *coefficient, const uint8_t *a, const uint8_t *b,
                             uint8_t *const *out)
{
    BY_ROWS(rows, gfni_update_rows, begin, end, coefficient, a, b, out);
}

const struct rl_kernel rl_kernel_avx512gfni = {
    .name = "avx512gfni",
    .supported = gfni_supported,
    .xor_gen = gfni_xor,
    .pq_gen = gfni_pq,
    .dot = gfni_dot,
    .update = gfni_update,
};

/* ---- CRC-32C by the SSE4.2 instruction ---------------------------------------------------------------------------- */

int rl_crc32c_x86_supported(void)
{
    return __builtin_cpu_supports("sse4.2");
}

SSE42 uint32_t rl_crc32c_x86(uint32_t crc, const uint8_t *data, size_t length)
{
    uint64_t wide = crc;
    for (; length >= 8; length -= 8, data += 8) {
        uint64_t word;
        memcpy(&word, data, 8);
        wide = _mm_crc32_u64(wide, word);
    }
    crc = (uint32_t)wide;
    for (; length > 0; length--, data++)
        crc = _mm_crc32_u8(crc, *data);
    return crc;
}

#else
typedef int parity_x86_is_empty; /* ISO C wants one declaration */
#endif
