/* Everything of a training step but its matrix products. The formulas, shapes and contracts are those of ops.py.
 *
 * Plain C that a compiler vectorises for AVX2, AVX-512 and NEON; intrinsics only where no compiler finds the way: a 4-bit
 * code looked up by a permute. The file includes itself twice, for float32 and for bfloat16 tensors (NAME is then
 * NAME_float32 and NAME_bfloat16). Arithmetic is in float; a result is rounded once, to nearest even.
 *
 * Compiled without -ffast-math, which may cancel a rounding: where a sum may be reordered, the loop says so. */

#ifndef REAL

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>
#endif

#define KEPT 2048 /* numbers of a row, at most, that are kept in float */
#define LANES 16  /* of the widest vector */

typedef uint16_t bfloat16;
typedef float float32;

#define ROWS _Pragma("omp parallel for schedule(static)")
#define SUM(name) _Pragma(SIMD_TEXT(omp simd reduction(+ : name)))
#define MAX(name) _Pragma(SIMD_TEXT(omp simd reduction(max : name)))
#define EACH _Pragma("omp simd")
#define SIMD_TEXT(text) #text

static inline float load_float32(float x) { return x; }
static inline float store_float32(float x) { return x; }

static inline float load_bfloat16(bfloat16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float result;
    memcpy(&result, &bits, 4);
    return result;
}

static inline bfloat16 store_bfloat16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    return (bfloat16)(x == x ? rounded : 0x7FC0);
}

/* exp in float, relative error below 2e-7: 2^n by its bits, the rest by a polynomial on [-ln 2 / 2, ln 2 / 2]. */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float n = rintf(x * 1.44269504f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    uint32_t power = (uint32_t)((int32_t)(n == n ? n : 0.0f) + 127) << 23; /* of NaN, p is NaN already */
    float scale;
    memcpy(&scale, &power, 4);
    return p * scale;
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

/* z(x) = 2 sqrt(2 / pi) (x + 0.044715 x^3), and its derivative: gelu(x) = x sigmoid(z(x)). */
static inline float gelu_argument(float x) { return 1.59576912f * x * (1.0f + 0.044715f * x * x); }
static inline float gelu_slope(float x) { return 1.59576912f * (1.0f + 0.134145f * x * x); }

static inline int zero_of(const uint8_t *zeros, int64_t block, int bits) {
    if (!zeros) return 1 << (bits - 1);
    if (bits == 8) return zeros[block];
    return (zeros[block / 2] >> (block % 2 * 4)) & 0x0F;
}

#define JOIN2(a, b) a##_##b
#define JOIN(a, b) JOIN2(a, b)
#define NAME(function) JOIN(function, REAL)
#define LOAD(x) NAME(load)(x)
#define STORE(x) NAME(store)(x)

#define REAL float32
#include "kernels.c"
#undef REAL
#define REAL bfloat16
#include "kernels.c"

#else

/* One block of 4-bit codes; `levels` are the 16 values that a code may stand for. */
static inline void NAME(four_bits)(const uint8_t *codes, const REAL *levels, int64_t count, REAL *out) {
    int64_t i = 0;
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    /* a byte b in a lane of twice the width: its codes, low nibble first, end up in the lane's two halves */
    if (sizeof(REAL) == 2) {
        __m512i table = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)levels));
        __m512i nibbles = _mm512_set1_epi32(0x000F000F);
        for (; i + 32 <= count; i += 32) {
            __m512i b = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(codes + i / 2)));
            __m512i index = _mm512_and_si512(_mm512_or_si512(b, _mm512_slli_epi32(b, 12)), nibbles);
            _mm512_storeu_si512(out + i, _mm512_permutexvar_epi16(index, table));
        }
    } else {
        __m512i table = _mm512_loadu_si512(levels);
        __m512i nibbles = _mm512_set1_epi64(0x0000000F0000000F);
        for (; i + 16 <= count; i += 16) {
            __m512i b = _mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i *)(codes + i / 2)));
            __m512i index = _mm512_and_si512(_mm512_or_si512(b, _mm512_slli_epi64(b, 28)), nibbles);
            _mm512_storeu_si512(out + i, _mm512_permutexvar_epi32(index, table));
        }
    }
#endif
    for (; i < count; i++) out[i] = levels[(codes[i / 2] >> (i % 2 * 4)) & 0x0F];
}

void NAME(dequantize)(const uint8_t *qweight, const float *scales, const uint8_t *zeros, int64_t rows, int64_t columns,
                      int64_t block_size, int64_t bits, REAL *out, int64_t stride) {
    int64_t blocks = (columns + block_size - 1) / block_size, block_bytes = block_size * bits / 8;
    int64_t zero_bytes = (blocks * bits + 7) / 8;
    ROWS for (int64_t row = 0; row < rows; row++) {
        for (int64_t block = 0; block < blocks; block++) {
            const uint8_t *codes = qweight + (row * blocks + block) * block_bytes;
            float scale = scales[row * blocks + block];
            int zero = zero_of(zeros ? zeros + row * zero_bytes : 0, block, (int)bits);
            REAL *to = out + row * stride + block * block_size;
            int64_t left = columns - block * block_size, count = left < block_size ? left : block_size;
            if (bits == 8) {
                EACH for (int64_t i = 0; i < count; i++) to[i] = STORE((float)((int)codes[i] - zero) * scale);
            } else {
                REAL levels[16];
                EACH for (int i = 0; i < 16; i++) levels[i] = STORE((float)(i - zero) * scale);
                NAME(four_bits)(codes, levels, count, to);
            }
        }
    }
}

static inline float NAME(inverse_rms)(const REAL *x, int64_t width, float eps) {
    float squares = 0;
    SUM(squares) for (int64_t i = 0; i < width; i++) squares += LOAD(x[i]) * LOAD(x[i]);
    return 1.0f / sqrtf(squares / (float)width + eps);
}

void NAME(rms_norm)(const REAL *x, const float *weight, float eps, int64_t rows, int64_t width, REAL *out,
                    int64_t stride) {
    ROWS for (int64_t row = 0; row < rows; row++) {
        const REAL *from = x + row * width;
        REAL *to = out + row * stride;
        float inverse = NAME(inverse_rms)(from, width, eps);
        EACH for (int64_t i = 0; i < width; i++) to[i] = STORE(LOAD(from[i]) * inverse * weight[i]);
    }
}

void NAME(rms_norm_backward)(const REAL *x, const float *weight, float eps, const REAL *dy, int64_t rows, int64_t width,
                             REAL *dx) {
    ROWS for (int64_t row = 0; row < rows; row++) {
        const REAL *from = x + row * width, *gradient = dy + row * width;
        REAL *to = dx + row * width;
        float inverse = NAME(inverse_rms)(from, width, eps), dot = 0;
        SUM(dot) for (int64_t i = 0; i < width; i++) dot += LOAD(from[i]) * weight[i] * LOAD(gradient[i]);
        float along = dot * inverse * inverse / (float)width;
        EACH for (int64_t i = 0; i < width; i++)
            to[i] = STORE(LOAD(to[i]) + inverse * (weight[i] * LOAD(gradient[i]) - LOAD(from[i]) * along));
    }
}

/* Without tables it copies. */
static inline void NAME(rotate)(const REAL *x, const float *cosine, const float *sine, float sign, int64_t half,
                                REAL *out) {
    if (!cosine) {
        memcpy(out, x, (size_t)half * 2 * sizeof(REAL));
        return;
    }
    EACH for (int64_t i = 0; i < half; i++) {
        float first = LOAD(x[i]), second = LOAD(x[half + i]), s = sign * sine[i];
        out[i] = STORE(first * cosine[i] - second * s);
        out[half + i] = STORE(second * cosine[i] + first * s);
    }
}

void NAME(split_heads)(const REAL *rows, int64_t stride, const float *cosine, const float *sine, int64_t sequences, int64_t heads,
                       int64_t length, int64_t size, REAL *out) {
    int64_t half = size / 2;
    ROWS for (int64_t n = 0; n < sequences * length; n++) {
        int64_t s = n / length, t = n % length, row = cosine ? n * half : 0;
        for (int64_t h = 0; h < heads; h++)
            NAME(rotate)(rows + n * stride + h * size, cosine ? cosine + row : 0, sine + row, 1, half,
                         out + ((s * heads + h) * length + t) * size);
    }
}

void NAME(merge_heads)(const REAL *x, const float *cosine, const float *sine, int64_t sequences, int64_t heads,
                       int64_t length, int64_t size, REAL *rows, int64_t stride) {
    int64_t half = size / 2;
    ROWS for (int64_t n = 0; n < sequences * length; n++) {
        int64_t s = n / length, t = n % length, row = cosine ? n * half : 0;
        for (int64_t h = 0; h < heads; h++)
            NAME(rotate)(x + ((s * heads + h) * length + t) * size, cosine ? cosine + row : 0, sine + row, -1, half,
                         rows + n * stride + h * size);
    }
}

/* The exponentials are wanted twice and kept, in whole vectors: a loop's remainder would cost as much as all of it. */
static inline void NAME(short_softmax)(REAL *line, int64_t count, int64_t whole, float scale) {
    float kept[KEPT], peaks[LANES], totals[LANES], peak = -INFINITY, total = 0;
    for (int j = 0; j < LANES; j++) peaks[j] = -INFINITY, totals[j] = 0;
    EACH for (int64_t i = 0; i < count; i++) kept[i] = LOAD(line[i]) * scale;
    for (int64_t i = count; i < whole; i++) kept[i] = -INFINITY;
    for (int64_t i = 0; i < whole; i += LANES)
        EACH for (int j = 0; j < LANES; j++) peaks[j] = kept[i + j] > peaks[j] ? kept[i + j] : peaks[j];
    for (int j = 0; j < LANES; j++) peak = peaks[j] > peak ? peaks[j] : peak;
    for (int64_t i = 0; i < whole; i += LANES)
        EACH for (int j = 0; j < LANES; j++) {
            kept[i + j] = exponential(kept[i + j] - peak);
            totals[j] += kept[i + j];
        }
    for (int j = 0; j < LANES; j++) total += totals[j];
    float inverse = 1.0f / total;
    EACH for (int64_t i = 0; i < count; i++) line[i] = STORE(kept[i] * inverse);
}

static inline void NAME(long_softmax)(REAL *line, int64_t count, float scale) {
    float total = 0, peak = -INFINITY;
    MAX(peak) for (int64_t i = 0; i < count; i++) {
        float score = LOAD(line[i]) * scale;
        peak = score > peak ? score : peak;
    }
    SUM(total) for (int64_t i = 0; i < count; i++) total += exponential(LOAD(line[i]) * scale - peak);
    float inverse = 1.0f / total;
    EACH for (int64_t i = 0; i < count; i++) line[i] = STORE(exponential(LOAD(line[i]) * scale - peak) * inverse);
}

void NAME(softmax)(REAL *scores, const int64_t *starts, int64_t sequences, int64_t length, int64_t heads,
                   int64_t queries, int64_t first, float scale) {
    int64_t keys = first + queries;
    ROWS for (int64_t row = 0; row < sequences * heads * queries; row++) {
        int64_t last = first + row % queries, begin = starts[row / (heads * queries) * length + last];
        REAL *line = scores + row * keys;
        int64_t count = last + 1 - begin, whole = (count + LANES - 1) / LANES * LANES;
        if (whole <= KEPT)
            NAME(short_softmax)(line + begin, count, whole, scale);
        else
            NAME(long_softmax)(line + begin, count, scale);
        memset(line, 0, (size_t)begin * sizeof(REAL));
        memset(line + last + 1, 0, (size_t)(keys - last - 1) * sizeof(REAL));
    }
}

void NAME(softmax_backward)(const REAL *weights, REAL *gradient, const int64_t *starts, int64_t sequences,
                            int64_t length, int64_t heads, int64_t queries, int64_t first, float scale) {
    int64_t keys = first + queries;
    ROWS for (int64_t row = 0; row < sequences * heads * queries; row++) {
        int64_t last = first + row % queries, begin = starts[row / (heads * queries) * length + last];
        const REAL *p = weights + row * keys;
        REAL *line = gradient + row * keys;
        float dot = 0;
        SUM(dot) for (int64_t i = begin; i <= last; i++) dot += LOAD(p[i]) * LOAD(line[i]);
        EACH for (int64_t i = begin; i <= last; i++) line[i] = STORE(LOAD(p[i]) * (LOAD(line[i]) - dot) * scale);
        memset(line, 0, (size_t)begin * sizeof(REAL));
        memset(line + last + 1, 0, (size_t)(keys - last - 1) * sizeof(REAL));
    }
}

/* out = activation(gate) * up, where activation(x) = x sigmoid(z(x)): silu for z(x) = x, gelu for gelu_argument. */
void NAME(swiglu)(const REAL *gate, int64_t gate_apart, const REAL *up, int64_t up_apart, int64_t rows, int64_t width,
                  REAL *out, int64_t stride) {
    ROWS for (int64_t row = 0; row < rows; row++) {
        const REAL *gates = gate + row * gate_apart, *ups = up + row * up_apart;
        REAL *to = out + row * stride;
        EACH for (int64_t i = 0; i < width; i++) to[i] = STORE(LOAD(gates[i]) * sigmoid(LOAD(gates[i])) * LOAD(ups[i]));
    }
}

void NAME(swiglu_backward)(const REAL *gate, int64_t gate_apart, const REAL *up, int64_t up_apart, const REAL *gradient,
                           int64_t rows, int64_t width, REAL *d_gate, int64_t gate_stride, REAL *d_up,
                           int64_t up_stride) {
    ROWS for (int64_t row = 0; row < rows; row++) {
        const REAL *gates = gate + row * gate_apart, *ups = up + row * up_apart, *upstream = gradient + row * width;
        REAL *to_gate = d_gate + row * gate_stride, *to_up = d_up + row * up_stride;
        EACH for (int64_t i = 0; i < width; i++) {
            float g = LOAD(gates[i]), share = sigmoid(g), silu = g * share, d = LOAD(upstream[i]);
            to_gate[i] = STORE(d * LOAD(ups[i]) * (share + silu * (1.0f - share)));
            to_up[i] = STORE(d * silu);
        }
    }
}

void NAME(geglu)(const REAL *gate, int64_t gate_apart, const REAL *up, int64_t up_apart, int64_t rows, int64_t width,
                 REAL *out, int64_t stride) {
    ROWS for (int64_t row = 0; row < rows; row++) {
        const REAL *gates = gate + row * gate_apart, *ups = up + row * up_apart;
        REAL *to = out + row * stride;
        EACH for (int64_t i = 0; i < width; i++) {
            float g = LOAD(gates[i]);
            to[i] = STORE(g * sigmoid(gelu_argument(g)) * LOAD(ups[i]));
        }
    }
}

void NAME(geglu_backward)(const REAL *gate, int64_t gate_apart, const REAL *up, int64_t up_apart, const REAL *gradient,
                          int64_t rows, int64_t width, REAL *d_gate, int64_t gate_stride, REAL *d_up,
                          int64_t up_stride) {
    ROWS for (int64_t row = 0; row < rows; row++) {
        const REAL *gates = gate + row * gate_apart, *ups = up + row * up_apart, *upstream = gradient + row * width;
        REAL *to_gate = d_gate + row * gate_stride, *to_up = d_up + row * up_stride;
        EACH for (int64_t i = 0; i < width; i++) {
            float g = LOAD(gates[i]), share = sigmoid(gelu_argument(g)), gelu = g * share, d = LOAD(upstream[i]);
            to_gate[i] = STORE(d * LOAD(ups[i]) * (share + gelu * (1.0f - share) * gelu_slope(g)));
            to_up[i] = STORE(d * gelu);
        }
    }
}

void NAME(online_logsumexp)(const REAL *logits, int64_t rows, int64_t width, int64_t first, const int64_t *targets,
                            float *largest, float *total, float *at_target) {
    ROWS for (int64_t row = 0; row < rows; row++) {
        const REAL *line = logits + row * width;
        float peak = largest[row], sum = 0;
        MAX(peak) for (int64_t i = 0; i < width; i++) peak = LOAD(line[i]) > peak ? LOAD(line[i]) : peak;
        SUM(sum) for (int64_t i = 0; i < width; i++) sum += exponential(LOAD(line[i]) - peak);
        total[row] = total[row] * exponential(largest[row] - peak) + sum;
        largest[row] = peak;
        int64_t column = targets[row] - first;
        if (0 <= column && column < width) at_target[row] = LOAD(line[column]);
    }
}

void NAME(cross_entropy_backward)(REAL *logits, int64_t rows, int64_t width, int64_t first, const int64_t *targets,
                                  const float *log_total, const float *row_scale) {
    ROWS for (int64_t row = 0; row < rows; row++) {
        REAL *line = logits + row * width;
        float shift = log_total[row], scale = row_scale[row];
        int64_t column = targets[row] - first;
        float wanted = 0 <= column && column < width ? LOAD(line[column]) : 0;
        EACH for (int64_t i = 0; i < width; i++) line[i] = STORE(exponential(LOAD(line[i]) - shift) * scale);
        if (0 <= column && column < width) line[column] = STORE((exponential(wanted - shift) - 1.0f) * scale);
    }
}

#endif
