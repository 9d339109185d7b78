/* Failures, and memory: each block belongs to a pool, so that a failure anywhere leaks nothing. */
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>

#include "port.h"

struct Failure failure;
FILE *opened;

_Noreturn void give_up(const char *key) {
    if (opened != NULL)
        fclose(opened);
    opened = NULL;
    failure.key = key;
    longjmp(failure.jump, 1);
}

typedef struct Block {
    struct Block *older, *newer;
    _Alignas(max_align_t) unsigned char bytes[];
} Block;

/* What needs memory that is not there fails, and the next request may do. */
void *take(Pool *pool, size_t count, size_t size) {
    if (count > (PTRDIFF_MAX - sizeof(Block)) / size)
        FAIL("out of memory: %zu times %zu bytes", count, size);
    Block *block = malloc(sizeof(Block) + count * size);
    if (block == NULL)
        FAIL("out of memory: %zu bytes", count * size);
    block->older = pool->newest;
    block->newer = NULL;
    if (pool->newest != NULL)
        pool->newest->newer = block;
    pool->newest = block;
    return block->bytes;
}

void give_back(Pool *pool, void *bytes) {
    Block *block = (Block *)((unsigned char *)bytes - offsetof(Block, bytes));
    if (block->older != NULL)
        block->older->newer = block->newer;
    *(block->newer != NULL ? &block->newer->older : &pool->newest) = block->older;
    free(block);
}

void empty(Pool *pool) {
    while (pool->newest != NULL)
        give_back(pool, pool->newest->bytes);
}

const char *text(Pool *pool, const char *format, ...) {
    va_list arguments, again;
    va_start(arguments, format);
    va_copy(again, arguments);
    size_t size = (size_t)vsnprintf(NULL, 0, format, arguments) + 1;
    va_end(arguments);
    char *made = take(pool, size, 1);
    vsnprintf(made, size, format, again);
    va_end(again);
    return made;
}
