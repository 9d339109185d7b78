/* What the files of this port share.
 *
 * Functions never return an error: any of them may give up, and the request is answered with the
 * reason. Nor does any caller free what it took by name: memory belongs to a pool, and the whole
 * pool is emptied after a request, or when a component is unloaded.
 */
#ifndef PORT_H
#define PORT_H

#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#if defined __BYTE_ORDER__ && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "safetensors files are little-endian: this port copies their numbers as they are"
#endif
_Static_assert(sizeof(size_t) >= 8 && sizeof(float) == 4, "a machine of 64 bits");

/* ---- memory.c: failures, and pools of memory ------------------------------------------------- */

extern struct Failure {
    jmp_buf jump;
    char reason[2048];
    const char *key; /* the reply's: "error" or "unsupported" */
} failure;

extern FILE *opened; /* the one file that may be open at a time: a failure closes it */

_Noreturn void give_up(const char *key);

#define GIVE_UP(key, ...)                                                                          \
    (snprintf(failure.reason, sizeof failure.reason, __VA_ARGS__), give_up(key))
#define FAIL(...) GIVE_UP("error", __VA_ARGS__)
#define DECLINE(...) GIVE_UP("unsupported", __VA_ARGS__)

typedef struct {
    struct Block *newest;
} Pool;

void *take(Pool *pool, size_t count, size_t size); /* never returns NULL */
void give_back(Pool *pool, void *bytes);
void empty(Pool *pool);
const char *text(Pool *pool, const char *format, ...); /* as printf */

/* ---- json.c ---------------------------------------------------------------------------------- */

#define MAX_TEXT ((size_t)4 << 20) /* bytes of JSON: its values may take 50 times as much */

typedef struct Json {
    char kind;          /* its first byte: one of { [ " t f n, and 0 for any number */
    double number;
    const char *string; /* ends in a zero */
    size_t length;      /* bytes of the string, members of the array or object */
    const char *key;    /* its name, in an object */
    struct Json *first; /* member */
    struct Json *next;  /* member of the same array or object */
} Json;

/* A zero byte must follow the text, which is changed and must be kept. */
const Json *read_json(Pool *pool, const char *source, char *bytes, size_t length);
const Json *member(const Json *object, const char *key); /* NULL where there is none */
bool lists(const Json *array, const char *string);       /* whether it is among strings */

/* Each refuses what is none, or NULL; `what` is its name in the message. */
const Json *as_object(const Json *value, const char *what);
const Json *as_array(const Json *value, const char *what);
const char *as_string(const Json *value, const char *what);
double as_number(const Json *value, const char *what);
size_t as_size(const Json *value, const char *what);
bool as_bool(const Json *value, const char *what);

void write_string(FILE *file, const char *string);

/* ---- safetensors.c --------------------------------------------------------------------------- */

typedef struct Tensor {
    const char *name, *dtype;
    size_t rank, size; /* axes, bytes */
    const size_t *shape;
    const char *bytes; /* at any alignment */
    bool used;
    struct Tensor *next;
} Tensor;

typedef struct {
    const char *path;
    Tensor *first, *last;
} Tensors;

Tensors read_tensors(Pool *pool, const char *path);
void write_tensors(const char *path, const Tensors *tensors);
void add_tensor(Pool *pool, Tensors *tensors, Tensor tensor);
Tensor *find_tensor(const Tensors *tensors, const char *name); /* NULL where there is none */
const Tensor *input(const Tensors *inputs, const char *name);  /* refuses where there is none */
bool is_float32(const Tensor *tensor);
const char *shape_text(Pool *pool, size_t rank, const size_t *shape);

/* Refuse a tensor: it should have been F32, of a shape that is told. */
_Noreturn void misfit(Pool *pool, const char *path, const Tensor *tensor, const char *expected);

/* ---- What a component is --------------------------------------------------------------------- */

typedef struct {
    Pool *pool;         /* of the request */
    const void *loaded; /* what `load` returned */
    Tensors inputs;
    const Json *config; /* settings of a scheduler */
    const Json *wanted; /* names of the probes asked for */
    Tensors observed, replacements;
} Run;

typedef struct {
    /* Return what a run needs; it lives in the first pool, the second is emptied after the load. */
    const void *(*load)(Pool *component, Pool *request, const Json *message);
    Tensors (*run)(Run *run); /* return the outputs */
} Component;

extern const Component vae_decoder; /* vae_decoder.c */
extern const Component scheduler;   /* scheduler.c: `scheduler/ddim` and the others */

#endif
