/* parity.c: the codes. GF(2^8), the portable kernel, and the front end that chooses a routine and hands it clean arguments.
 *
 * Pure: no I/O, no locks, no allocation, no state. The contract is in raidlib.h, section "Codes".
 *
 * THE FIELD. GF(2^8) modulo x^8 + x^4 + x^3 + x^2 + 1 (0x11d), in which 2 (that is, x) generates all 255 non-zero elements. Addition
 * is XOR. Doubling is a shift and, where the top bit went out, an XOR with 0x1d.
 *
 * RAID 6 (H. P. Anvin, "The mathematics of RAID-6"): P = sum d_i, Q = sum 2^i d_i. Q by Horner's rule from the last column down,
 * q = 2 q + d_i: one doubling a column, no tables.
 *
 * THE CODE OF rs. Parity row r of column i has the coefficient
 *
 *     A[0][i] = 1      A[1][i] = 2^i      A[r][i] = (1 + 2^(r-1)) / (2^-i + 2^(r-1))   for r = 2..5
 *
 * With x_i = 2^-i and y_r = 2^(r-1) (y_1 replaced by 0, as 1 / (x_i + 0) = 2^i), rows 1..5 are a Cauchy matrix 1 / (x_i + y_r), each row
 * scaled so that column 0 is 1; row 0 of ones is the limit y -> infinity. A Cauchy matrix extended by such a row keeps what makes it
 * a code: every square submatrix is regular, so any m blocks may be lost. y_2 = 2^1 .. y_5 = 2^4 must differ from each x_i = 2^(255-i):
 * hence i <= 250. A smaller m is a prefix of the rows, and m = 1, 2 are RAID 5 and RAID 6.
 *
 * RECOVERY is one product. Let L be the lost data columns, R as many known parity rows, B the inverse of A[R][L]. Then
 *
 *     d_L = B (parity_R + A[R][known] d_known)
 *
 * and a lost parity row is a combination of d_known and d_L. So each lost block is a combination of the same nd known blocks, and one pass
 * of `dot` reads each of them once and writes all that was lost.
 */
#include "parity.h"

#include <errno.h>
#include <string.h>

#define COLUMNS_MAX 255    /* 2^i repeats from there on */
#define COLUMNS_RS_MAX 251 /* 2^-i meets 2^(r-1) from there on */

/* ---- The field ---------------------------------------------------------------------------------------------------- */

static const uint8_t gf_exp[255] = {
    0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0x1d, 0x3a, 0x74, 0xe8, 0xcd, 0x87, 0x13, 0x26, 0x4c, 0x98, 0x2d, 0x5a, 0xb4, 0x75,
    0xea, 0xc9, 0x8f, 0x03, 0x06, 0x0c, 0x18, 0x30, 0x60, 0xc0, 0x9d, 0x27, 0x4e, 0x9c, 0x25, 0x4a, 0x94, 0x35, 0x6a, 0xd4, 0xb5, 0x77,
    0xee, 0xc1, 0x9f, 0x23, 0x46, 0x8c, 0x05, 0x0a, 0x14, 0x28, 0x50, 0xa0, 0x5d, 0xba, 0x69, 0xd2, 0xb9, 0x6f, 0xde, 0xa1, 0x5f, 0xbe,
    0x61, 0xc2, 0x99, 0x2f, 0x5e, 0xbc, 0x65, 0xca, 0x89, 0x0f, 0x1e, 0x3c, 0x78, 0xf0, 0xfd, 0xe7, 0xd3, 0xbb, 0x6b, 0xd6, 0xb1, 0x7f,
    0xfe, 0xe1, 0xdf, 0xa3, 0x5b, 0xb6, 0x71, 0xe2, 0xd9, 0xaf, 0x43, 0x86, 0x11, 0x22, 0x44, 0x88, 0x0d, 0x1a, 0x34, 0x68, 0xd0, 0xbd,
    0x67, 0xce, 0x81, 0x1f, 0x3e, 0x7c, 0xf8, 0xed, 0xc7, 0x93, 0x3b, 0x76, 0xec, 0xc5, 0x97, 0x33, 0x66, 0xcc, 0x85, 0x17, 0x2e, 0x5c,
    0xb8, 0x6d, 0xda, 0xa9, 0x4f, 0x9e, 0x21, 0x42, 0x84, 0x15, 0x2a, 0x54, 0xa8, 0x4d, 0x9a, 0x29, 0x52, 0xa4, 0x55, 0xaa, 0x49, 0x92,
    0x39, 0x72, 0xe4, 0xd5, 0xb7, 0x73, 0xe6, 0xd1, 0xbf, 0x63, 0xc6, 0x91, 0x3f, 0x7e, 0xfc, 0xe5, 0xd7, 0xb3, 0x7b, 0xf6, 0xf1, 0xff,
    0xe3, 0xdb, 0xab, 0x4b, 0x96, 0x31, 0x62, 0xc4, 0x95, 0x37, 0x6e, 0xdc, 0xa5, 0x57, 0xae, 0x41, 0x82, 0x19, 0x32, 0x64, 0xc8, 0x8d,
    0x07, 0x0e, 0x1c, 0x38, 0x70, 0xe0, 0xdd, 0xa7, 0x53, 0xa6, 0x51, 0xa2, 0x59, 0xb2, 0x79, 0xf2, 0xf9, 0xef, 0xc3, 0x9b, 0x2b, 0x56,
    0xac, 0x45, 0x8a, 0x09, 0x12, 0x24, 0x48, 0x90, 0x3d, 0x7a, 0xf4, 0xf5, 0xf7, 0xf3, 0xfb, 0xeb, 0xcb, 0x8b, 0x0b, 0x16, 0x2c, 0x58,
    0xb0, 0x7d, 0xfa, 0xe9, 0xcf, 0x83, 0x1b, 0x36, 0x6c, 0xd8, 0xad, 0x47, 0x8e,
};

static const uint8_t gf_log[256] = {
    /* [0] means nothing */
    0,   0,   1,   25,  2,   50,  26,  198, 3,   223, 51,  238, 27,  104, 199, 75,  4,   100, 224, 14,  52,  141, 239, 129, 28,  193,
    105, 248, 200, 8,   76,  113, 5,   138, 101, 47,  225, 36,  15,  33,  53,  147, 142, 218, 240, 18,  130, 69,  29,  181, 194, 125,
    106, 39,  249, 185, 201, 154, 9,   120, 77,  228, 114, 166, 6,   191, 139, 98,  102, 221, 48,  253, 226, 152, 37,  179, 16,  145,
    34,  136, 54,  208, 148, 206, 143, 150, 219, 189, 241, 210, 19,  92,  131, 56,  70,  64,  30,  66,  182, 163, 195, 72,  126, 110,
    107, 58,  40,  84,  250, 133, 186, 61,  202, 94,  155, 159, 10,  21,  121, 43,  78,  212, 229, 172, 115, 243, 167, 87,  7,   112,
    192, 247, 140, 128, 99,  13,  103, 74,  222, 237, 49,  197, 254, 24,  227, 165, 153, 119, 38,  184, 180, 124, 17,  68,  146, 217,
    35,  32,  137, 46,  55,  63,  209, 91,  149, 188, 207, 205, 144, 135, 151, 178, 220, 252, 190, 97,  242, 86,  211, 171, 20,  42,
    93,  158, 132, 60,  57,  83,  71,  109, 65,  162, 31,  45,  67,  216, 183, 123, 164, 118, 196, 23,  73,  236, 127, 12,  111, 246,
    108, 161, 59,  82,  41,  157, 85,  170, 251, 96,  134, 177, 187, 204, 62,  90,  203, 89,  95,  176, 156, 169, 160, 81,  11,  245,
    22,  235, 122, 117, 44,  215, 79,  174, 213, 233, 230, 231, 173, 232, 116, 214, 244, 234, 168, 80,  88,  175,
};

uint8_t rl_gf_exp(unsigned e)
{
    return gf_exp[e % 255];
}

uint8_t rl_gf_log(uint8_t a)
{
    RL_ASSERT(a != 0);
    return gf_log[a];
}

uint8_t rl_gf_mul(uint8_t a, uint8_t b)
{
    if (a == 0 || b == 0)
        return 0;
    return gf_exp[(gf_log[a] + gf_log[b]) % 255];
}

uint8_t rl_gf_inv(uint8_t a)
{
    RL_ASSERT(a != 0);
    return gf_exp[(255 - gf_log[a]) % 255];
}

uint8_t rl_code_coefficient(unsigned row, unsigned index)
{
    RL_ASSERT(row < RL_PARITY_MAX);
    RL_ASSERT(index < (row < 2 ? COLUMNS_MAX : COLUMNS_RS_MAX));
    if (row == 0)
        return 1;
    if (row == 1)
        return gf_exp[index];
    const uint8_t y = gf_exp[row - 1], x = gf_exp[(255 - index) % 255];
    return rl_gf_mul(1 ^ y, rl_gf_inv(x ^ y));
}

/* inverse[] = matrix[]^-1, both n x n in rows of RL_PARITY_MAX; matrix is used up. Gauss-Jordan, and no pivot is ever looked for: each
 * leading submatrix is regular as all of this code's are, so the next diagonal element is not zero. */
static void invert(unsigned n, uint8_t matrix[][RL_PARITY_MAX], uint8_t inverse[][RL_PARITY_MAX])
{
    for (unsigned r = 0; r < n; r++)
        for (unsigned c = 0; c < n; c++)
            inverse[r][c] = r == c;
    for (unsigned c = 0; c < n; c++) {
        const uint8_t scale = rl_gf_inv(matrix[c][c]); /* asserts that it is not zero */
        for (unsigned k = 0; k < n; k++) {
            matrix[c][k] = rl_gf_mul(matrix[c][k], scale);
            inverse[c][k] = rl_gf_mul(inverse[c][k], scale);
        }
        for (unsigned r = 0; r < n; r++) {
            const uint8_t factor = matrix[r][c];
            for (unsigned k = 0; r != c && k < n; k++) {
                matrix[r][k] ^= rl_gf_mul(factor, matrix[c][k]);
                inverse[r][k] ^= rl_gf_mul(factor, inverse[c][k]);
            }
        }
    }
}

/* ---- The portable kernel: 64-bit words, eight at a time ----------------------------------------------------------- */

/* A generic vector, which compilers break down to what the machine has. Passed by address only: by value its ABI would depend on that. */
typedef uint64_t lane __attribute__((vector_size(64)));
#define LANE sizeof(lane)

/* The last lane of a block may be short: the bytes it lacks are zeros, which every code maps to zeros. */
RL_ALWAYS_INLINE void lane_load(lane *to, const uint8_t *from, size_t bytes)
{
    if (bytes < LANE)
        *to = (lane){0};
    memcpy(to, from, bytes);
}

RL_ALWAYS_INLINE void lane_store(uint8_t *to, const lane *from, size_t bytes)
{
    memcpy(to, from, bytes);
}

RL_ALWAYS_INLINE void lane_add(lane *sum, const uint8_t *from, size_t bytes)
{
    lane x;
    lane_load(&x, from, bytes);
    *sum ^= x;
}

/* In each 64-bit word eight bytes at once. (Vectors of bytes would say it in fewer words, but GCC 12 takes their comparison apart.) */
RL_ALWAYS_INLINE void lane_double(lane *x)
{
    const lane top = *x >> 7 & 0x0101010101010101;
    const lane mask = (top << 8) - top; /* 0xff in each byte whose top bit is set */
    *x = (*x & 0x7f7f7f7f7f7f7f7f) << 1 ^ (mask & 0x1d1d1d1d1d1d1d1d);
}

/* sum = coefficient[0] * source[0] + ..., by Horner's rule over the bits of the coefficients: eight doublings, however many sources. */
RL_ALWAYS_INLINE void lane_dot(lane *sum, unsigned n, size_t at, size_t bytes, const uint8_t *coefficient, const uint8_t *const *source)
{
    lane acc = {0};
    for (unsigned bit = 8; bit-- > 0;) {
        lane_double(&acc);
        for (unsigned i = 0; i < n; i++)
            if ((coefficient[i] >> bit & 1) != 0)
                lane_add(&acc, source[i] + at, bytes);
    }
    *sum = acc;
}

static int portable_supported(void)
{
    return 1;
}

/* Each routine is a loop over whole lanes and one short lane; `bytes` is a constant in the former, so its copies cost nothing. */

RL_ALWAYS_INLINE void xor_lane(unsigned n, size_t at, size_t bytes, const uint8_t *const *source, uint8_t *out)
{
    lane sum;
    lane_load(&sum, source[n - 1] + at, bytes);
    for (unsigned i = n - 1; i-- > 0;)
        lane_add(&sum, source[i] + at, bytes);
    lane_store(out + at, &sum, bytes);
}

static void portable_xor(unsigned n, size_t begin, size_t end, const uint8_t *const *source, uint8_t *out)
{
    size_t at = begin;
    for (; end - at >= LANE; at += LANE)
        xor_lane(n, at, LANE, source, out);
    if (at < end)
        xor_lane(n, at, end - at, source, out);
}

RL_ALWAYS_INLINE void pq_lane(unsigned n, size_t at, size_t bytes, const uint8_t *const *source, uint8_t *p_out, uint8_t *q_out)
{
    lane p, q;
    lane_load(&p, source[n - 1] + at, bytes);
    q = p;
    for (unsigned i = n - 1; i-- > 0;) {
        lane x;
        lane_load(&x, source[i] + at, bytes);
        lane_double(&q);
        q ^= x;
        p ^= x;
    }
    lane_store(p_out + at, &p, bytes);
    lane_store(q_out + at, &q, bytes);
}

static void portable_pq(unsigned n, size_t begin, size_t end, const uint8_t *const *source, uint8_t *p, uint8_t *q)
{
    size_t at = begin;
    for (; end - at >= LANE; at += LANE)
        pq_lane(n, at, LANE, source, p, q);
    if (at < end)
        pq_lane(n, at, end - at, source, p, q);
}

RL_ALWAYS_INLINE void dot_lane(unsigned rows, unsigned n, size_t at, size_t bytes, const uint8_t *coefficient, const uint8_t *const *source,
                               uint8_t *const *out)
{
    for (unsigned r = 0; r < rows; r++) {
        lane sum;
        lane_dot(&sum, n, at, bytes, coefficient + r * n, source);
        lane_store(out[r] + at, &sum, bytes);
    }
}

static void portable_dot(unsigned rows, unsigned n, size_t begin, size_t end, const uint8_t *coefficient, const uint8_t *const *source,
                         uint8_t *const *out)
{
    size_t at = begin;
    for (; end - at >= LANE; at += LANE)
        dot_lane(rows, n, at, LANE, coefficient, source, out);
    if (at < end)
        dot_lane(rows, n, at, end - at, coefficient, source, out);
}

RL_ALWAYS_INLINE void update_lane(unsigned rows, size_t at, size_t bytes, const uint8_t *coefficient, const uint8_t *a, const uint8_t *b,
                                  uint8_t *const *out)
{
    const uint8_t *const source[2] = {a, b};
    for (unsigned r = 0; r < rows; r++) {
        const uint8_t twice[2] = {coefficient[r], coefficient[r]};
        lane sum;
        lane_dot(&sum, b == NULL ? 1 : 2, at, bytes, twice, source);
        lane_add(&sum, out[r] + at, bytes);
        lane_store(out[r] + at, &sum, bytes);
    }
}

static void portable_update(unsigned rows, size_t begin, size_t end, const uint8_t *coefficient, const uint8_t *a, const uint8_t *b,
                            uint8_t *const *out)
{
    size_t at = begin;
    for (; end - at >= LANE; at += LANE)
        update_lane(rows, at, LANE, coefficient, a, b, out);
    if (at < end)
        update_lane(rows, at, end - at, coefficient, a, b, out);
}

const struct rl_kernel rl_kernel_portable = {
    .name = "portable",
    .supported = portable_supported,
    .xor_gen = portable_xor,
    .pq_gen = portable_pq,
    .dot = portable_dot,
    .update = portable_update,
};

/* ---- The registry ------------------------------------------------------------------------------------------------- */

/* Slowest first. */
static const struct rl_kernel *const kernels[] = {
    &rl_kernel_portable,
#if RL_X86
    &rl_kernel_ssse3,
    &rl_kernel_avx2,
    &rl_kernel_avx512gfni,
#endif
};
#define KERNELS (sizeof(kernels) / sizeof(kernels[0]))

const rl_kernel *rl_kernel_find(const char *name)
{
    for (size_t i = KERNELS; i-- > 0;)
        if ((name == NULL || strcmp(name, kernels[i]->name) == 0) && kernels[i]->supported())
            return kernels[i];
    return NULL;
}

const char *rl_kernel_name(unsigned index)
{
    return index < KERNELS ? kernels[index]->name : NULL;
}

const char *rl_kernel_name_of(const rl_kernel *kernel)
{
    RL_ASSERT(kernel != NULL);
    return kernel->name;
}

/* ---- The front end: NULLs out, then the cheapest routine that does it --------------------------------------------- */

static void assert_shape(const rl_kernel *kernel, unsigned nd, unsigned np)
{
    RL_ASSERT(kernel != NULL);
    RL_ASSERT(np >= 1 && np <= RL_PARITY_MAX);
    RL_ASSERT(nd >= 1 && nd <= (np <= 2 ? COLUMNS_MAX : COLUMNS_RS_MAX));
}

/* The blocks that a product reads, in order: those that are not known to be zeros. */
struct sources {
    unsigned n;
    const uint8_t *block[RL_VECTOR_MAX];
    uint16_t index[RL_VECTOR_MAX]; /* in the stripe's vector */
};

static void sources_add(struct sources *s, const void *block, unsigned index)
{
    s->block[s->n] = block;
    s->index[s->n++] = (uint16_t)index;
}

void rl_code_generate(const rl_kernel *kernel, unsigned nd, unsigned np, size_t length, void *const *blocks)
{
    assert_shape(kernel, nd, np);
    RL_ASSERT(blocks != NULL);
    struct sources s;
    s.n = 0;
    for (unsigned i = 0; i < nd; i++)
        if (blocks[i] != NULL)
            sources_add(&s, blocks[i], i);

    unsigned rows = 0, row[RL_PARITY_MAX];
    uint8_t *out[RL_PARITY_MAX];
    for (unsigned r = 0; r < np; r++) {
        if (blocks[nd + r] == NULL)
            continue;
        row[rows] = r;
        out[rows++] = blocks[nd + r];
    }
    if (rows == 0 || length == 0)
        return;
    if (s.n == 0) {
        for (unsigned r = 0; r < rows; r++)
            memset(out[r], 0, length);
        return;
    }
    if (rows == 1 && row[0] == 0) {
        kernel->xor_gen(s.n, 0, length, s.block, out[0]);
        return;
    }
    const int gaps = s.index[s.n - 1] != s.n - 1; /* zeros above the last column cost Horner's rule nothing; zeros within it cannot skip */
    if (rows == 2 && row[1] == 1 && !gaps) {
        kernel->pq_gen(s.n, 0, length, s.block, out[0], out[1]);
        return;
    }
    uint8_t coefficient[RL_PARITY_MAX * RL_VECTOR_MAX];
    for (unsigned r = 0; r < rows; r++)
        for (unsigned i = 0; i < s.n; i++)
            coefficient[r * s.n + i] = rl_code_coefficient(row[r], s.index[i]);
    kernel->dot(rows, s.n, 0, length, coefficient, s.block, out);
}

void rl_code_update(const rl_kernel *kernel, unsigned index, unsigned np, size_t length, const void *old_data, const void *new_data,
                    void *const *parity)
{
    assert_shape(kernel, index + 1, np);
    RL_ASSERT(parity != NULL);
    unsigned rows = 0;
    uint8_t coefficient[RL_PARITY_MAX];
    uint8_t *out[RL_PARITY_MAX];
    for (unsigned r = 0; r < np; r++) {
        if (parity[r] == NULL)
            continue;
        coefficient[rows] = rl_code_coefficient(r, index);
        out[rows++] = parity[r];
    }
    const uint8_t *a = old_data, *b = new_data;
    if (a == NULL) {
        a = b;
        b = NULL;
    }
    if (rows == 0 || length == 0 || a == NULL)
        return;
    if (rows == 1 && coefficient[0] == 1) { /* P alone, or any row of column 0 */
        const uint8_t *const source[3] = {out[0], a, b};
        kernel->xor_gen(b == NULL ? 2 : 3, 0, length, source, out[0]);
        return;
    }
    kernel->update(rows, 0, length, coefficient, a, b, out);
}

/* What is lost and what helps, sorted out of the arguments of rl_code_recover. */
struct losses {
    unsigned data, parity; /* counts */
    unsigned column[RL_PARITY_MAX], row[RL_PARITY_MAX]; /* which */
    unsigned helper[RL_PARITY_MAX]; /* the first `data` known parity rows: R */
};

static int losses_sort(struct losses *l, unsigned nd, unsigned np, void *const *blocks, unsigned lost_count, const uint16_t *lost)
{
    uint8_t row_lost[RL_PARITY_MAX] = {0};
    l->data = l->parity = 0;
    if (lost_count > np) /* each lost data block needs a parity that is not lost */
        return -EINVAL;
    for (unsigned i = 0; i < lost_count; i++) {
        if (lost[i] >= nd + np || (i > 0 && lost[i] <= lost[i - 1]))
            return -EINVAL;
        if (lost[i] < nd) {
            l->column[l->data++] = lost[i];
        } else {
            l->row[l->parity++] = lost[i] - nd;
            row_lost[lost[i] - nd] = 1;
        }
    }
    unsigned helpers = 0;
    for (unsigned r = 0; r < np && helpers < l->data; r++)
        if (!row_lost[r] && blocks[nd + r] != NULL)
            l->helper[helpers++] = r;
    return helpers < l->data ? -EINVAL : 0;
}

/* The coefficients of all lost blocks over the known ones s (data, then the helper rows), as in RECOVERY above: row-major, lost data
 * first. */
static void losses_solve(const struct losses *l, const struct sources *s, uint8_t *coefficient)
{
    uint8_t matrix[RL_PARITY_MAX][RL_PARITY_MAX], inverse[RL_PARITY_MAX][RL_PARITY_MAX];
    for (unsigned r = 0; r < l->data; r++)
        for (unsigned c = 0; c < l->data; c++)
            matrix[r][c] = rl_code_coefficient(l->helper[r], l->column[c]);
    invert(l->data, matrix, inverse);

    const unsigned known = s->n - l->data; /* data among the sources */
    for (unsigned i = 0; i < s->n; i++) {
        uint8_t syndrome[RL_PARITY_MAX]; /* what source i adds to each helper row's equation */
        for (unsigned r = 0; r < l->data; r++)
            syndrome[r] = i < known ? rl_code_coefficient(l->helper[r], s->index[i]) : i - known == r;
        for (unsigned c = 0; c < l->data; c++) {
            uint8_t sum = 0;
            for (unsigned r = 0; r < l->data; r++)
                sum ^= rl_gf_mul(inverse[c][r], syndrome[r]);
            coefficient[c * s->n + i] = sum;
        }
        for (unsigned r = 0; r < l->parity; r++) {
            uint8_t sum = i < known ? rl_code_coefficient(l->row[r], s->index[i]) : 0;
            for (unsigned c = 0; c < l->data; c++)
                sum ^= rl_gf_mul(rl_code_coefficient(l->row[r], l->column[c]), coefficient[c * s->n + i]);
            coefficient[(l->data + r) * s->n + i] = sum;
        }
    }
}

int rl_code_recover(const rl_kernel *kernel, unsigned nd, unsigned np, size_t length, void *const *blocks, unsigned lost_count,
                    const uint16_t *lost)
{
    assert_shape(kernel, nd, np);
    RL_ASSERT(blocks != NULL && (lost != NULL || lost_count == 0));
    struct losses l;
    if (losses_sort(&l, nd, np, blocks, lost_count, lost) != 0)
        return -EINVAL;
    if (length == 0 || lost_count == 0)
        return 0;
    if (l.data == 0) { /* generate anew the lost parities, and only those */
        void *vector[RL_VECTOR_MAX];
        memcpy(vector, blocks, nd * sizeof(*blocks));
        memset(vector + nd, 0, np * sizeof(*blocks));
        for (unsigned r = 0; r < l.parity; r++)
            vector[nd + l.row[r]] = blocks[nd + l.row[r]];
        rl_code_generate(kernel, nd, np, length, vector);
        return 0;
    }

    struct sources s;
    s.n = 0;
    for (unsigned i = 0, next = 0; i < nd; i++) {
        if (next < l.data && l.column[next] == i)
            next++;
        else if (blocks[i] != NULL)
            sources_add(&s, blocks[i], i);
    }
    for (unsigned r = 0; r < l.data; r++)
        sources_add(&s, blocks[nd + l.helper[r]], nd + l.helper[r]);
    if (lost_count == 1 && l.helper[0] == 0) { /* by P: a plain sum */
        if (blocks[lost[0]] != NULL)
            kernel->xor_gen(s.n, 0, length, s.block, blocks[lost[0]]);
        return 0;
    }

    uint8_t coefficient[RL_PARITY_MAX * RL_VECTOR_MAX];
    uint8_t *out[RL_PARITY_MAX];
    losses_solve(&l, &s, coefficient);
    unsigned rows = 0;
    for (unsigned i = 0; i < lost_count; i++) { /* close the gaps that unwanted blocks leave */
        if (blocks[lost[i]] == NULL)
            continue;
        memmove(coefficient + rows * s.n, coefficient + i * s.n, s.n);
        out[rows++] = blocks[lost[i]];
    }
    if (rows > 0)
        kernel->dot(rows, s.n, 0, length, coefficient, s.block, out);
    return 0;
}

/* ---- Who lies? ---------------------------------------------------------------------------------------------------- */

/* The single block that explains the syndromes of one byte, not all of them zero; or -2. If a data block z alone is off by e, syndrome r is
 * A[r][z] e: none is zero, the first is e and the second tells z. If a parity alone is off, only its own syndrome is not zero. */
static int locate_byte(unsigned nd, unsigned np, const uint8_t *syndrome)
{
    unsigned off = 0, last = 0;
    for (unsigned r = 0; r < np; r++) {
        if (syndrome[r] != 0) {
            off++;
            last = r;
        }
    }
    if (off == 1)
        return (int)(nd + last);
    if (syndrome[0] == 0 || syndrome[1] == 0)
        return -2;
    const unsigned z = rl_gf_log(rl_gf_mul(syndrome[1], rl_gf_inv(syndrome[0])));
    if (z >= nd)
        return -2;
    for (unsigned r = 2; r < np; r++)
        if (syndrome[r] != rl_gf_mul(rl_code_coefficient(r, z), syndrome[0]))
            return -2;
    return (int)z;
}

int rl_code_locate(unsigned nd, unsigned np, size_t length, const void *const *stored, const void *const *computed)
{
    RL_ASSERT(np >= 2 && np <= RL_PARITY_MAX);
    RL_ASSERT(nd >= 1 && nd <= (np <= 2 ? COLUMNS_MAX : COLUMNS_RS_MAX));
    RL_ASSERT(stored != NULL && computed != NULL);
    int found = -1;
    for (size_t at = 0; at < length; at += LANE) {
        const size_t bytes = length - at < LANE ? length - at : LANE;
        int differs = 0; /* most lanes agree: find the bytes only in those that do not */
        for (unsigned r = 0; r < np; r++)
            differs |= memcmp((const uint8_t *)stored[r] + at, (const uint8_t *)computed[r] + at, bytes) != 0;
        for (size_t i = at; differs && i < at + bytes; i++) {
            uint8_t syndrome[RL_PARITY_MAX], any = 0;
            for (unsigned r = 0; r < np; r++) {
                syndrome[r] = ((const uint8_t *)stored[r])[i] ^ ((const uint8_t *)computed[r])[i];
                any |= syndrome[r];
            }
            if (any == 0)
                continue;
            const int here = locate_byte(nd, np, syndrome);
            if (here == -2 || (found >= 0 && found != here))
                return -2;
            found = here;
        }
    }
    return found;
}

/* ---- CRC-32C ------------------------------------------------------------------------------------------------------ */

/* crc_table[k][b]: the register after byte b and k more zero bytes. Linear in b. Eight bytes go in at once ("slicing by 8"). */
#define CRC_0(b) RL_LINEAR(b, 0xf26b8303, 0xe13b70f7, 0xc79a971f, 0x8ad958cf, 0x105ec76f, 0x20bd8ede, 0x417b1dbc, 0x82f63b78)
#define CRC_1(b) RL_LINEAR(b, 0x13a29877, 0x274530ee, 0x4e8a61dc, 0x9d14c3b8, 0x3fc5f181, 0x7f8be302, 0xff17c604, 0xfbc3faf9)
#define CRC_2(b) RL_LINEAR(b, 0xa541927e, 0x4f6f520d, 0x9edea41a, 0x38513ec5, 0x70a27d8a, 0xe144fb14, 0xc76580d9, 0x8b277743)
#define CRC_3(b) RL_LINEAR(b, 0xdd45aab8, 0xbf672381, 0x7b2231f3, 0xf64463e6, 0xe964b13d, 0xd725148b, 0xaba65fe7, 0x52a0c93f)
#define CRC_4(b) RL_LINEAR(b, 0x38116fac, 0x7022df58, 0xe045beb0, 0xc5670b91, 0x8f2261d3, 0x1ba8b557, 0x37516aae, 0x6ea2d55c)
#define CRC_5(b) RL_LINEAR(b, 0xef306b19, 0xdb8ca0c3, 0xb2f53777, 0x6006181f, 0xc00c303e, 0x85f4168d, 0x0e045beb, 0x1c08b7d6)
#define CRC_6(b) RL_LINEAR(b, 0x68032cc8, 0xd0065990, 0xa5e0c5d1, 0x4e2dfd53, 0x9c5bfaa6, 0x3d5b83bd, 0x7ab7077a, 0xf56e0ef4)
#define CRC_7(b) RL_LINEAR(b, 0x493c7d27, 0x9278fa4e, 0x211d826d, 0x423b04da, 0x847609b4, 0x0d006599, 0x1a00cb32, 0x34019664)

static const uint32_t crc_table[8][256] = {
    {RL_TABLE_256(CRC_0)}, {RL_TABLE_256(CRC_1)}, {RL_TABLE_256(CRC_2)}, {RL_TABLE_256(CRC_3)},
    {RL_TABLE_256(CRC_4)}, {RL_TABLE_256(CRC_5)}, {RL_TABLE_256(CRC_6)}, {RL_TABLE_256(CRC_7)},
};

static uint32_t crc32c_portable(uint32_t crc, const uint8_t *data, size_t length)
{
    for (; length >= 8; length -= 8, data += 8) {
        uint32_t next = 0;
        for (unsigned i = 0; i < 8; i++)
            next ^= crc_table[7 - i][data[i] ^ (i < 4 ? crc >> 8 * i & 0xff : 0)];
        crc = next;
    }
    for (; length > 0; length--, data++)
        crc = crc >> 8 ^ crc_table[0][(crc ^ *data) & 0xff];
    return crc;
}

uint32_t rl_crc32c(uint32_t seed, const void *data, size_t length)
{
    RL_ASSERT(data != NULL || length == 0);
#if RL_X86
    if (rl_crc32c_x86_supported())
        return rl_crc32c_x86(seed, data, length);
#endif
    return crc32c_portable(seed, data, length);
}
