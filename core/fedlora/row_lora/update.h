/* y += weight (x A) B for a few tokens, with A and B as one adapter's module has them; then y = s * y + t.
 *
 *     x  float32 [n, I]    y  float32 [n, O], rows `stride` numbers apart    n <= TOKENS
 *     A  [I, R]            R a multiple of 8, filled up with zeros
 *     B  [ceil(O / 16), R, 16]
 *     s, t  float32 [O]    or neither: y is not scaled
 *
 * A and B are float32 or float16, and are read once, in order. The sums are float32.
 */
#pragma once
#include <stdint.h>
#include <string.h>
#if defined(__AVX__) && defined(__F16C__)
#include <immintrin.h>
#endif

#define MAX_RANK 4096
#define PANEL 16 /* outputs side by side in B */
#define TOKENS 8 /* worked on at a time */

typedef struct {
    const void *lora_A, *lora_B;
    int64_t inputs, outputs, rank; /* rank 0: there is no A and B */
    float weight;                  /* of the update */
    int is_half;
    const float *scale, *shift; /* null: there is none */
} Module;

typedef float v8 __attribute__((vector_size(32), aligned(4)));
typedef uint16_t half; /* its bits: not every compiler has the type */

/* ---- stored numbers as float32 ------------------------------------------------------------------------------------- */

static inline v8 read8_float(const float *values) { return *(const v8 *)values; }
static inline float read1_float(const float *value) { return *value; }

#if defined(__AVX__) && defined(__F16C__)
static inline v8 read8_half(const half *values)
{
    return (v8)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)values));
}
#else
/* A half's exponent and fraction, in a float's place, stand for 2^-112 times its value: subnormal ones, too. */
static inline v8 read8_half(const half *values)
{
    typedef half stored __attribute__((vector_size(16), aligned(2)));
    typedef uint32_t integers __attribute__((vector_size(32), aligned(4)));
    integers bits = __builtin_convertvector(*(const stored *)values, integers);
    v8 magnitude = (v8)((bits & 0x7fff) << 13) * 0x1p112f;
    return (v8)((integers)magnitude | (bits & 0x8000) << 16);
}
#endif
static inline float read1_half(const half *value)
{
    half eight[8] = {*value};
    return read8_half(eight)[0];
}

/* The widest vector that this processor has: compilers do badly with wider ones. */
#if defined(__AVX512F__)
typedef float v16 __attribute__((vector_size(64), aligned(4)));
static inline v16 read16_float(const float *values) { return *(const v16 *)values; }
static inline v16 read16_half(const half *values)
{
    return (v16)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)values));
}
typedef v16 wide;
#define read_wide_float read16_float
#define read_wide_half read16_half
#else
typedef v8 wide;
#define read_wide_float read8_float
#define read_wide_half read8_half
#endif
#define WIDTH ((int64_t)(sizeof(wide) / sizeof(float)))

/* ---- x A ----------------------------------------------------------------------------------------------------------- */

/* reduced[t, :W] = x[t] A[:, :W], with the W columns of A that a vector holds */
#define DEFINE_REDUCE(name, vector, stored, read)                                                          \
    static inline void name(const stored *lora_A, int64_t rank, const float *x, int64_t inputs, int n,     \
                            float *reduced)                                                                \
    {                                                                                                      \
        if (n == 1) { /* several sums at a time: each waits for its last addition */                       \
            vector sums[4] = {{0}};                                                                        \
            int64_t i = 0;                                                                                 \
            for (; i + 4 <= inputs; i += 4)                                                                \
                for (int u = 0; u < 4; u++) sums[u] += x[i + u] * read(lora_A + (i + u) * rank);           \
            for (; i < inputs; i++) sums[0] += x[i] * read(lora_A + i * rank);                             \
            *(vector *)reduced = (sums[0] + sums[1]) + (sums[2] + sums[3]);                                \
            return;                                                                                        \
        }                                                                                                  \
        vector sums[TOKENS] = {{0}};                                                                       \
        const float *tokens[TOKENS];                                                                       \
        for (int t = 0; t < TOKENS; t++) tokens[t] = x + (t < n ? t : 0) * inputs;                         \
        for (int64_t i = 0; i < inputs; i++) {                                                             \
            vector row = read(lora_A + i * rank);                                                          \
            for (int t = 0; t < TOKENS; t++) sums[t] += tokens[t][i] * row;                                \
        }                                                                                                  \
        for (int t = 0; t < n; t++) *(vector *)(reduced + t * rank) = sums[t];                             \
    }
DEFINE_REDUCE(reduce8_float, v8, float, read8_float)
DEFINE_REDUCE(reduce8_half, v8, half, read8_half)

#if defined(__AVX512F__)
DEFINE_REDUCE(reduce16_float, v16, float, read16_float)
DEFINE_REDUCE(reduce16_half, v16, half, read16_half)

/* some[i] eight times, then some[i + 1] eight times */
#define TWICE(i) i, i, i, i, i, i, i, i, i + 1, i + 1, i + 1, i + 1, i + 1, i + 1, i + 1, i + 1
#if defined(__clang__) || __GNUC__ >= 12
#define SPREAD(some, i) __builtin_shufflevector(some, some, TWICE(i))
#else
typedef int i16 __attribute__((vector_size(64)));
#define SPREAD(some, i) __builtin_shuffle(some, (i16){TWICE(i)})
#endif

/* The same for one token and a rank of 8: two rows of A at a time fill a vector. */
#define DEFINE_REDUCE_PAIRS(name, stored, read16, read1)                                            \
    static inline void name(const stored *lora_A, const float *x, int64_t inputs, float *reduced)   \
    {                                                                                               \
        v16 sums[4] = {{0}};                                                                        \
        int64_t i = 0;                                                                              \
        for (; i + 16 <= inputs; i += 16) {                                                         \
            v16 some = read16_float(x + i);                                                         \
            const stored *rows = lora_A + i * 8;                                                    \
            sums[0] += SPREAD(some, 0) * read16(rows);                                              \
            sums[1] += SPREAD(some, 2) * read16(rows + 16);                                         \
            sums[2] += SPREAD(some, 4) * read16(rows + 32);                                         \
            sums[3] += SPREAD(some, 6) * read16(rows + 48);                                         \
            sums[0] += SPREAD(some, 8) * read16(rows + 64);                                         \
            sums[1] += SPREAD(some, 10) * read16(rows + 80);                                        \
            sums[2] += SPREAD(some, 12) * read16(rows + 96);                                        \
            sums[3] += SPREAD(some, 14) * read16(rows + 112);                                       \
        }                                                                                           \
        v16 sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);                                        \
        for (int k = 0; k < 8; k++) {                                                               \
            reduced[k] = sum[k] + sum[k + 8];                                                       \
            for (int64_t rest = i; rest < inputs; rest++)                                           \
                reduced[k] += x[rest] * read1(lora_A + rest * 8 + k);                               \
        }                                                                                           \
    }
DEFINE_REDUCE_PAIRS(reduce_pairs_float, float, read16_float, read1_float)
DEFINE_REDUCE_PAIRS(reduce_pairs_half, half, read16_half, read1_half)
#endif

/* reduced [n, R] = x A */
#if defined(__AVX512F__)
#define DEFINE_REDUCE_ALL(name, stored, reduce8, reduce16, reduce_pairs)                                            \
    static inline void name(const stored *lora_A, int64_t rank, const float *x, int64_t inputs, int n,              \
                            float *reduced)                                                                         \
    {                                                                                                               \
        int64_t column = 0;                                                                                         \
        for (; column + 16 <= rank; column += 16) reduce16(lora_A + column, rank, x, inputs, n, reduced + column);  \
        if (rank == 8 && n == 1) reduce_pairs(lora_A, x, inputs, reduced);                                          \
        else if (column < rank) reduce8(lora_A + column, rank, x, inputs, n, reduced + column);                     \
    }
#else
#define DEFINE_REDUCE_ALL(name, stored, reduce8, reduce16, reduce_pairs)                                            \
    static inline void name(const stored *lora_A, int64_t rank, const float *x, int64_t inputs, int n,              \
                            float *reduced)                                                                         \
    {                                                                                                               \
        for (int64_t column = 0; column < rank; column += 8)                                                        \
            reduce8(lora_A + column, rank, x, inputs, n, reduced + column);                                         \
    }
#endif
DEFINE_REDUCE_ALL(reduce_float, float, reduce8_float, reduce16_float, reduce_pairs_float)
DEFINE_REDUCE_ALL(reduce_half, half, reduce8_half, reduce16_half, reduce_pairs_half)

/* ---- y += reduced B ------------------------------------------------------------------------------------------------ */

/* sums[t] = reduced[t] B, of the outputs that a vector holds */
#define DEFINE_EXPAND(name, stored, read)                                                                  \
    static inline void name(const stored *lora_B, int64_t rank, const float *reduced, int n, wide *sums)   \
    {                                                                                                      \
        if (n == 1) {                                                                                      \
            wide parts[4] = {{0}};                                                                         \
            for (int64_t k = 0; k < rank; k += 4)                                                          \
                for (int u = 0; u < 4; u++) parts[u] += reduced[k + u] * read(lora_B + (k + u) * PANEL);   \
            sums[0] = (parts[0] + parts[1]) + (parts[2] + parts[3]);                                       \
            return;                                                                                        \
        }                                                                                                  \
        wide all[TOKENS] = {{0}};                                                                          \
        const float *tokens[TOKENS];                                                                       \
        for (int t = 0; t < TOKENS; t++) tokens[t] = reduced + (t < n ? t : 0) * rank;                     \
        for (int64_t k = 0; k < rank; k++) {                                                               \
            wide row = read(lora_B + k * PANEL);                                                           \
            for (int t = 0; t < TOKENS; t++) all[t] += tokens[t][k] * row;                                 \
        }                                                                                                  \
        for (int t = 0; t < n; t++) sums[t] = all[t];                                                      \
    }
DEFINE_EXPAND(expand_float, float, read_wide_float)
DEFINE_EXPAND(expand_half, half, read_wide_half)

/* y[t, begin : begin + W] += sums[t], as far as y goes */
static inline void add_sums(const wide *sums, int64_t begin, int64_t outputs, float *y, int64_t stride, int n)
{
    for (int t = 0; t < n; t++, y += stride) {
        if (begin + WIDTH <= outputs) *(wide *)(y + begin) += sums[t];
        else for (int64_t o = begin; o < outputs; o++) y[o] += sums[t][o - begin];
    }
}

/* ---- one module ---------------------------------------------------------------------------------------------------- */

#define DEFINE_ADD_UPDATE(name, stored, reduce, expand)                                                       \
    static void name(const Module *module, const float *x, float *y, int64_t stride, int n)                   \
    {                                                                                                         \
        float reduced[TOKENS * MAX_RANK] __attribute__((aligned(64)));                                        \
        wide sums[TOKENS];                                                                                    \
        int64_t rank = module->rank, outputs = module->outputs;                                               \
        const stored *lora_B = module->lora_B;                                                                \
        reduce(module->lora_A, rank, x, module->inputs, n, reduced);                                          \
        for (int64_t k = 0; module->weight != 1 && k < n * rank; k++) reduced[k] *= module->weight;           \
        for (int64_t begin = 0; begin < outputs; begin += PANEL, lora_B += PANEL * rank) {                    \
            for (int64_t part = 0; part < PANEL; part += WIDTH) {                                             \
                expand(lora_B + part, rank, reduced, n, sums);                                                \
                add_sums(sums, begin + part, outputs, y, stride, n);                                          \
            }                                                                                                 \
        }                                                                                                     \
    }
DEFINE_ADD_UPDATE(add_float, float, reduce_float, expand_float)
DEFINE_ADD_UPDATE(add_half, half, reduce_half, expand_half)

/* y [tokens, O] += weight (x A) B, any number of tokens */
static void add_update(const Module *module, const float *x, float *y, int64_t stride, int64_t tokens)
{
    for (int64_t token = 0; module->rank && token < tokens; token += TOKENS) {
        int n = tokens - token < TOKENS ? (int)(tokens - token) : TOKENS;
        (module->is_half ? add_half : add_float)(module, x + token * module->inputs, y + token * stride, stride, n);
    }
}

/* y [tokens, O] = s * y + t */
static void scale_outputs(const Module *module, float *y, int64_t stride, int64_t tokens)
{
    const float *scale = module->scale, *shift = module->shift;
    for (; scale && tokens-- > 0; y += stride)
        for (int64_t o = 0; o < module->outputs; o++) y[o] = scale[o] * y[o] + shift[o];
}
