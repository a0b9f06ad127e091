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

/* Many sums at once. What does not fit in here is left to whoever calls. */

#define EMPTY (NOT_FINITE + 3) /* in the place of a window: the sum has no number yet, and its memory holds anything */
#define MOST_TERMS (1 << 15)   /* of 48 bits each in a sum: see ring_sum.py */
#define MOST_AT_ONCE 8
#define MOST_PARTS 64
#define SOME 512 /* numbers of a mean that are in the cache twice */

struct sum {
    int64_t *numbers; /* [rows, columns], all of one window */
    int64_t rows, columns, window, terms;
};

struct term {
    const float *numbers; /* [rows, columns]: a leading part of the sum */
    int64_t rows, columns;
};

/* to = (fresh ? 0 : to) + terms, of which there are `count` in rows of `length` numbers. */
static inline void add_row(uint64_t *restrict to, const float *const *from, const double *scales, int64_t count,
                           int64_t length, int fresh)
{
    int64_t term = 0;
    if (fresh) {
        const float *restrict a = from[0];
        const double s = scales[0];
        for (int64_t i = 0; i < length; i++)
            to[i] = (uint64_t)nearest(a[i] * s);
        term = 1;
    }
    for (; term + 1 < count; term += 2) {
        const float *restrict a = from[term], *restrict b = from[term + 1];
        const double s = scales[term], t = scales[term + 1];
        for (int64_t i = 0; i < length; i++)
            to[i] += (uint64_t)nearest(a[i] * s) + (uint64_t)nearest(b[i] * t);
    }
    if (term < count) {
        const float *restrict a = from[term];
        const double s = scales[term];
        for (int64_t i = 0; i < length; i++)
            to[i] += (uint64_t)nearest(a[i] * s);
    }
}

/* Add to one sum those of `terms` that are of its window, of one shape, and mark the others as left. Returns how many are. */
static int64_t add_to(struct sum *sum, const struct term *const *terms, const double *weights, int64_t count, uint8_t *const *left,
                      const struct ring *ring)
{
    const float *from[MOST_AT_ONCE];
    double scales[MOST_AT_ONCE];
    int64_t taken = 0, others = 0;
    const int fresh = sum->window == EMPTY;
    const int64_t rows = terms[0]->rows, columns = terms[0]->columns;
    for (int64_t k = 0; k < count; k++) {
        const int64_t window = window_of(terms[k]->numbers, rows * columns, weights[k], ring);
        if (window == ALL_ZERO)
            continue;
        if (window == NOT_FINITE || (sum->window != EMPTY && sum->window != window) || sum->terms == MOST_TERMS) {
            *left[k] = 1;
            others++;
            continue;
        }
        sum->window = window;
        sum->terms++;
        scales[taken] = scale_in(window, weights[k], ring);
        from[taken++] = terms[k]->numbers;
    }
    if (!taken)
        return others;
    const int whole = rows == sum->rows && columns == sum->columns;
    if (fresh && !whole)
        memset(sum->numbers, 0, (size_t)(sum->rows * sum->columns) * sizeof *sum->numbers);
    const int64_t lines = whole || columns == sum->columns ? 1 : rows, length = lines == 1 ? rows * columns : columns;
    for (int64_t line = 0; line < lines; line++)
        for (int64_t begin = 0; begin < length; begin += BLOCK) {
            const float *here[MOST_AT_ONCE];
            for (int64_t k = 0; k < taken; k++)
                here[k] = from[k] + line * columns + begin;
            add_row((uint64_t *)sum->numbers + line * sum->columns + begin, here, scales, taken,
                    length - begin < BLOCK ? length - begin : BLOCK, fresh && whole);
        }
    return others;
}

/* Add to the sums from `first` to before `last` the terms [updates, all], and mark in left [updates, all] those that are of
 * another window, not finite, or more than a sum has room for. Returns how many are left.
 */
int64_t fedlora_ring_add_all(struct sum *sums, int64_t all, int64_t first, int64_t last, const struct term *terms,
                             const double *weights, int64_t updates, uint8_t *left, const struct ring *ring)
{
    int64_t others = 0;
    for (int64_t number = first; number < last; number++)
        for (int64_t begin = 0; begin < updates;) {
            const struct term *some[MOST_AT_ONCE];
            uint8_t *marks[MOST_AT_ONCE];
            int64_t count = 0;
            do {
                some[count] = terms + (begin + count) * all + number;
                marks[count] = left + (begin + count) * all + number;
                count++;
            } while (count < MOST_AT_ONCE && begin + count < updates &&
                     terms[(begin + count) * all + number].rows == some[0]->rows &&
                     terms[(begin + count) * all + number].columns == some[0]->columns);
            others += add_to(sums + number, some, weights + begin, count, marks, ring);
            begin += count;
        }
    return others;
}

/* out = share * (the sum of parts * factors), where parts are such families of sums,
 * their factors ascending. Sums of one window and factor are added as integers.
 */
void fedlora_ring_means(const struct sum *const *parts, const double *factors, int64_t count, int64_t all, double share,
                        float *const *out, const struct ring *ring)
{
    for (int64_t number = 0; number < all; number++) {
        const struct sum *own[MOST_PARTS];
        double by[MOST_PARTS], scale[MOST_PARTS];
        int64_t held = 0;
        for (int64_t k = 0; k < count; k++) {
            const struct sum *sum = parts[k] + number;
            if (sum->window == EMPTY)
                continue;
            int64_t place = held++; /* by the factor, then from the largest window down */
            for (; place > 0 && by[place - 1] == factors[k] && own[place - 1]->window < sum->window; place--) {
                own[place] = own[place - 1];
                by[place] = by[place - 1];
            }
            own[place] = sum;
            by[place] = factors[k];
        }
        for (int64_t k = 0; k < held; k++)
            scale[k] = ldexp(1.0, (int)((own[k]->window - 1) * ring->width - ring->bits));
        float *restrict means = out[number];
        const int64_t length = parts[0][number].rows * parts[0][number].columns;
        if (held == 1 && by[0] == 1)
            fedlora_ring_mean(own[0]->numbers, means, length, scale[0], share);
        for (int64_t begin = 0; begin < length && !(held == 1 && by[0] == 1); begin += SOME) {
            const int64_t size = length - begin < SOME ? length - begin : SOME;
            double total[SOME] = {0};
            for (int64_t k = 0; k < held;) {
                uint64_t integers[SOME] = {0};
                const double unit = scale[k], factor = by[k];
                const int64_t window = own[k]->window;
                for (; k < held && own[k]->window == window && by[k] == factor; k++)
                    for (int64_t i = 0; i < size; i++)
                        integers[i] += (uint64_t)own[k]->numbers[begin + i];
                for (int64_t i = 0; i < size; i++)
                    total[i] += (double)(int64_t)integers[i] * unit * factor;
            }
            for (int64_t i = 0; i < size; i++)
                means[begin + i] = (float)(total[i] * share);
        }
    }
}
