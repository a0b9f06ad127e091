/* The adapters that a batch may name, by number.
 *
 * An adapter is one of those that were added, or the weighted sum of several: one of their joined rank, whose parts are read
 * where they lie.
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
    int64_t number, modules, parts;
    Module module[]; /* [parts][modules] */
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
static int read_module(const int64_t *row, const char *values, int64_t size, int is_half, const float *scales,
                       int64_t scales_size, Module *module)
{
    int64_t inputs = row[0], outputs = row[1], rank = row[2], at_A = row[3], at_B = row[4], at_scale = row[5];
    if (inputs < 1 || outputs < 1 || inputs > INT32_MAX || outputs > INT32_MAX) return -1;
    if (rank < 0 || rank > MAX_RANK || rank % 8) return -1;
    int64_t panels = (outputs + PANEL - 1) / PANEL;
    if (at_A < 0 || at_A > size || inputs * rank > size - at_A) return -1;
    if (at_B < 0 || at_B > size || panels * PANEL * rank > size - at_B) return -1;
    if (at_scale < -1 || at_scale > scales_size || (at_scale >= 0 && 2 * outputs > scales_size - at_scale)) return -1;
    int64_t width = is_half ? 2 : 4;
    const float *scale = at_scale < 0 ? NULL : scales + at_scale, *shift = scale ? scale + outputs : NULL;
    *module = (Module){values + at_A * width, values + at_B * width, inputs, outputs, rank, 1, is_half, scale, shift};
    return 0;
}

/* Room for an adapter, whose number nobody has before; null where there is none. */
static Adapter *new_adapter(int64_t modules, int64_t parts)
{
    int64_t place = 1; /* 0 is no adapter */
    while (place < MAX_ADAPTERS && adapters[place]) place++;
    if (place == MAX_ADAPTERS) return NULL;
    Adapter *adapter = malloc(sizeof *adapter + (size_t)(modules * parts) * sizeof *adapter->module);
    if (adapter) *adapter = (Adapter){place + MAX_ADAPTERS * used[place], modules, parts};
    return adapter;
}

/* From now on a batch may name it. */
static int64_t published(Adapter *adapter)
{
    int64_t place = adapter->number % MAX_ADAPTERS;
    used[place]++;
    __atomic_store_n(&adapters[place], adapter, __ATOMIC_RELEASE);
    return adapter->number;
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
    if (modules < 0 || size < 0 || scales_size < 0) return NOT_SOUND;
    Adapter *adapter = new_adapter(modules, 1);
    if (!adapter) return NO_ROOM;
    for (int64_t i = 0; i < modules; i++)
        if (read_module(table + i * 6, values, size, is_half, scales, scales_size, &adapter->module[i]))
            return free(adapter), NOT_SOUND;
    return published(adapter);
}

/* The number of the weighted sum of adapters; NO_ROOM, or NOT_SOUND where one is not there, scales its modules, or has others than
 * the first. Their values stay where they are until it is removed; they themselves may be removed before. Callers take turns. */
int64_t fedlora_adapter_combine(const int64_t *numbers, const float *weights, int64_t count)
{
    const Adapter *first = count > 0 ? adapter_of(numbers[0]) : NULL;
    int64_t parts = 0;
    if (!first) return NOT_SOUND;
    for (int64_t each = 0; each < count; each++) {
        const Adapter *other = adapter_of(numbers[each]);
        if (!other || other->modules != first->modules) return NOT_SOUND;
        for (int64_t i = 0; i < first->modules; i++)
            if (other->module[i].inputs != first->module[i].inputs || other->module[i].outputs != first->module[i].outputs ||
                other->module[i].scale)
                return NOT_SOUND;
        parts += other->parts;
    }
    Adapter *adapter = new_adapter(first->modules, parts);
    if (!adapter) return NO_ROOM;
    Module *module = adapter->module;
    for (int64_t each = 0; each < count; each++) {
        const Adapter *other = adapter_of(numbers[each]);
        for (int64_t i = 0; i < other->parts * other->modules; i++, module++) {
            *module = other->module[i];
            module->weight *= weights[each];
        }
    }
    return published(adapter);
}

/* No run may name it any more. -1 where there is none of that number. */
int fedlora_adapter_remove(int64_t number)
{
    if (!adapter_of(number)) return -1;
    free(__atomic_exchange_n(&adapters[number % MAX_ADAPTERS], NULL, __ATOMIC_ACQ_REL));
    return 0;
}

/* y [tokens, O] = s * (y + (x [tokens, I] A) B) + t of one module of an adapter, part by part; a sum has no s and t */
static void add_updates(const Adapter *adapter, int64_t module, const float *x, float *y, int64_t stride, int64_t tokens)
{
    for (int64_t part = 0; part < adapter->parts; part++)
        add_update(&adapter->module[part * adapter->modules + module], x, y, stride, tokens);
    scale_outputs(&adapter->module[module], y, stride, tokens);
}

/* The same without ONNX Runtime; -1 where there is no such adapter or module. */
int fedlora_adapter_apply(int64_t number, int64_t module, const float *x, float *y, int64_t tokens)
{
    const Adapter *adapter = adapter_of(number);
    if (!adapter || module < 0 || module >= adapter->modules) return -1;
    add_updates(adapter, module, x, y, adapter->module[module].outputs, tokens);
    return 0;
}
