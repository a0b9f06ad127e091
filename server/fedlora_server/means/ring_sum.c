/* Some terms of a RingSum: arrays times their weights, rounded to integers and added. See ring_sum.py.
 *
 * Every operation here is one that IEEE 754 rounds in one way only, and ring_windows.py does the same ones: the flags of the
 * build keep products and sums apart.
 */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define INFINITE_BITS 0x7f800000u
#define NEAREST 6755399441055744.0 /* 1.5 * 2^52: what is added to it is rounded to an integer, in its lowest bits */
#define NEAREST_BITS INT64_C(0x4338000000000000)

#define BLOCK 2048 /* numbers of a sum that stay in the cache while all terms are added */

/* Beside the numbers of windows: */
#define NOT_FINITE (INT64_C(1) << 40)
#define ALL_ZERO (NOT_FINITE + 1)
#define ONE_BY_ONE (NOT_FINITE + 2)

/* How numbers are cut into windows: the constants of ring_windows.py. */
struct ring {
    int64_t width, bits, lowest;
};

static inline int64_t nearest(double x)
{
    int64_t bits;
    x += NEAREST;
    memcpy(&bits, &x, sizeof bits);
    return bits - NEAREST_BITS;
}

/* The window of the largest magnitude in x times weight, or NOT_FINITE or ALL_ZERO. */
static int64_t window_of(const float *x, int64_t count, double weight, const struct ring *ring)
{
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7fffffffu;
        largest = bits > largest ? bits : largest;
    }
    if (largest >= INFINITE_BITS)
        return NOT_FINITE;
    if (largest == 0)
        return ALL_ZERO;
    float value;
    int power, of_weight;
    memcpy(&value, &largest, sizeof value);
    frexpf(value, &power);
    frexp(weight, &of_weight);
    const int64_t top = (int64_t)power + of_weight;
    const int64_t window = top > 0 ? (top + ring->width - 1) / ring->width : -(-top / ring->width);
    return window > ring->lowest ? window : ring->lowest;
}

static double scale_in(int64_t window, double weight, const struct ring *ring)
{
    int power;
    const double fraction = frexp(weight, &power);
    return ldexp(fraction, (int)(power - ((window - 1) * ring->width - ring->bits)));
}

/* Add the arrays x [rows, columns] to the leading part of a sum with rows of sum_stride numbers, where all are of the window
 * `expected` or zero. Returns that window; else the only array's own, and ONE_BY_ONE where there are several.
 */
int64_t fedlora_ring_add(const float *const *x, const double *weights, int64_t count, int64_t rows, int64_t columns,
                         int64_t *sum, int64_t sum_stride, int64_t expected, const struct ring *ring)
{
    for (int64_t term = 0; term < count; term++) {
        const int64_t window = window_of(x[term], rows * columns, weights[term], ring);
        if (window != expected && (count == 1 || window != ALL_ZERO))
            return count == 1 ? window : ONE_BY_ONE;
    }
    if (sum_stride == columns) { /* one long row */
        columns *= rows;
        rows = 1;
    }
    for (int64_t row = 0; row < rows; row++)
        for (int64_t begin = 0; begin < columns; begin += BLOCK) {
            const int64_t length = columns - begin < BLOCK ? columns - begin : BLOCK;
            int64_t *restrict to = sum + row * sum_stride + begin;
            for (int64_t term = 0; term < count; term++) {
                const float *restrict from = x[term] + row * columns + begin;
                const double scale = scale_in(expected, weights[term], ring);
                for (int64_t i = 0; i < length; i++)
                    to[i] += nearest(from[i] * scale);
            }
        }
    return expected;
}

/* mean = sum * scale * share, rounded to float once each. */
void fedlora_ring_mean(const int64_t *restrict sum, float *restrict mean, int64_t count, double scale, double share)
{
    for (int64_t i = 0; i < count; i++)
        mean[i] = (float)((double)sum[i] * scale * share);
}
