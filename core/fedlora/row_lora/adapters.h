/* The adapters that a batch may name, by number.
 *
 * A number is used once: its place is its remainder, and whoever holds the number of an adapter that is gone finds none,
 * and not the one that came in its place.
 */
#pragma once
#include "update.h"

#include <stdlib.h>

#define MAX_ADAPTERS 4096 /* in use at a time, not in memory */

enum { NO_ROOM = -1, NOT_SOUND = -2 };

typedef struct {
    int64_t number, modules;
    int is_half;
    Module module[];
} Adapter;

static Adapter *adapters[MAX_ADAPTERS];
static int64_t used[MAX_ADAPTERS]; /* how many adapters each place has had */

/* Null where there is none of that number. */
static const Adapter *adapter_of(int64_t number)
{
    if (number <= 0) return NULL;
    const Adapter *adapter = __atomic_load_n(&adapters[number % MAX_ADAPTERS], __ATOMIC_ACQUIRE);
    return adapter && adapter->number == number ? adapter : NULL;
}

/* What an adapter's values, `size` of them, hold of a module, or -1: they must hold all of it. */
static int read_module(const int64_t *row, const char *values, int64_t size, int64_t width, const float *scales,
                       int64_t scales_size, Module *module)
{
    int64_t inputs = row[0], outputs = row[1], rank = row[2], at_A = row[3], at_B = row[4], at_scale = row[5];
    if (inputs < 1 || outputs < 1 || inputs > INT32_MAX || outputs > INT32_MAX) return -1;
    if (rank < 0 || rank > MAX_RANK || rank % 8) return -1;
    int64_t panels = (outputs + PANEL - 1) / PANEL;
    if (at_A < 0 || at_A > size || inputs * rank > size - at_A) return -1;
    if (at_B < 0 || at_B > size || panels * PANEL * rank > size - at_B) return -1;
    if (at_scale < -1 || at_scale > scales_size || (at_scale >= 0 && 2 * outputs > scales_size - at_scale)) return -1;
    const float *scale = at_scale < 0 ? NULL : scales + at_scale;
    const float *shift = scale ? scale + outputs : NULL;
    *module = (Module){values + at_A * width, values + at_B * width, inputs, outputs, rank, scale, shift};
    return 0;
}

/* The number of an adapter; NO_ROOM, or NOT_SOUND where its table points out of its values. Callers take turns.
 *
 *     values   size numbers, float32 or float16, which stay where they are until the adapter is removed
 *     table    int64 [modules, 6]: inputs, outputs, rank, where A and B begin in the values, and s, before t, in the scales, or -1
 *     scales   as the values, scales_size numbers, float32
 */
int64_t fedlora_adapter_add(const void *values, int64_t size, int is_half, int64_t modules, const int64_t *table,
                            const float *scales, int64_t scales_size)
{
    int64_t place = 1; /* 0 is no adapter */
    while (place < MAX_ADAPTERS && adapters[place]) place++;
    if (place == MAX_ADAPTERS) return NO_ROOM;
    if (modules < 0 || size < 0 || scales_size < 0) return NOT_SOUND;
    Adapter *adapter = malloc(sizeof *adapter + (size_t)modules * sizeof *adapter->module);
    if (!adapter) return NO_ROOM;
    for (int64_t i = 0; i < modules; i++)
        if (read_module(table + i * 6, values, size, is_half ? 2 : 4, scales, scales_size, &adapter->module[i]))
            return free(adapter), NOT_SOUND;
    adapter->number = place + MAX_ADAPTERS * used[place]++;
    adapter->modules = modules;
    adapter->is_half = is_half;
    __atomic_store_n(&adapters[place], adapter, __ATOMIC_RELEASE);
    return adapter->number;
}

/* No run may name it any more. -1 where there is none of that number. */
int fedlora_adapter_remove(int64_t number)
{
    if (!adapter_of(number)) return -1;
    free(__atomic_exchange_n(&adapters[number % MAX_ADAPTERS], NULL, __ATOMIC_ACQ_REL));
    return 0;
}

/* y [tokens, O] = s * (y + (x [tokens, I] A) B) + t of one module; -1 where there is no such adapter or module. */
int fedlora_adapter_apply(int64_t number, int64_t module, const float *x, float *y, int64_t tokens)
{
    const Adapter *adapter = adapter_of(number);
    if (!adapter || module < 0 || module >= adapter->modules) return -1;
    const Module *own = &adapter->module[module];
    update(own, adapter->is_half, x, y, own->outputs, tokens);
    return 0;
}
