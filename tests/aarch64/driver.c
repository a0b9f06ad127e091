/* Calls functions of a shared library as it is told on its standard input, and writes back what they did to their memory.
 *
 *     call:    name '\0' filled up to 64 bytes | int64 number of blocks | int64 number of arguments
 *              for each block:     int64 size | its bytes
 *              for each argument:  int64 kind | int64 block or value | int64 offset
 *     answer:  int64 what the function returned | the bytes of the blocks, in the same order
 *
 * A block stays where it is when the call is over: a function may remember a pointer into it. Integers and pointers
 * are passed apart from floats, in an order of their own: so it is in the calling conventions of aarch64 and x86-64, as long
 * as no more than eight are floats. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BLOCKS 16
#define ARGUMENTS 16

enum { INTEGER, FLOAT, POINTER };

static void need(int ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "driver: %s\n", what);
        exit(1);
    }
}

static int64_t read_integer(void)
{
    int64_t value;
    need(fread(&value, sizeof value, 1, stdin) == 1, "the call is cut off");
    return value;
}

int main(int count, char **words)
{
    need(count == 2, "expected a library");
    void *library = dlopen(words[1], RTLD_NOW);
    need(library != NULL, dlerror());
    char name[64];
    while (fread(name, 1, sizeof name, stdin) == sizeof name) {
        int64_t (*function)() = (int64_t(*)())dlsym(library, name);
        need(function != NULL, name);
        int64_t sent = read_integer(), arguments = read_integer(), sizes[BLOCKS];
        char *blocks[BLOCKS];
        need(sent <= BLOCKS && arguments <= ARGUMENTS, "too much");
        for (int64_t i = 0; i < sent; i++) {
            sizes[i] = read_integer();
            need((blocks[i] = malloc(sizes[i] + 1)) != NULL, "no memory");
            need(fread(blocks[i], 1, sizes[i], stdin) == (size_t)sizes[i], "a block is cut off");
        }
        int64_t integer[ARGUMENTS] = {0}, integers = 0, floats = 0;
        float real[8] = {0};
        for (int64_t i = 0; i < arguments; i++) {
            int64_t kind = read_integer(), value = read_integer(), offset = read_integer();
            if (kind == FLOAT) {
                int32_t bits = (int32_t)value;
                need(floats < 8, "too many floats");
                memcpy(&real[floats++], &bits, sizeof bits);
            } else {
                integer[integers++] = kind == POINTER ? (int64_t)(blocks[value] + offset) : value;
            }
        }
        typedef int64_t Function(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                                 int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, float, float);
        int64_t returned = ((Function *)function)(
            integer[0], integer[1], integer[2], integer[3], integer[4], integer[5], integer[6], integer[7], integer[8],
            integer[9], integer[10], integer[11], integer[12], integer[13], integer[14], integer[15], real[0], real[1]);
        fwrite(&returned, sizeof returned, 1, stdout);
        for (int64_t i = 0; i < sent; i++)
            fwrite(blocks[i], 1, sizes[i], stdout);
        fflush(stdout);
    }
    return 0;
}
