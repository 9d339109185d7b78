/* A port of the VAE decoder of Stable Diffusion v1: one file of C11, with libc and libm alone.
 *
 *     cc -std=c11 -O2 -o vae_decoder vae_decoder.c -lm
 *     sd1-conformance run exec:./vae_decoder
 *
 * It is naive on purpose: plain loops, and every sum is a float32 to which one term after another
 * is added. It reads requests, one JSON object a line, from standard input and replies on standard
 * output; tensors travel as safetensors files (docs/protocol.md).
 *
 * Layout: B batch, C channels, H W height and width, N = H W pixels as tokens. Maps are NCHW: the
 * value of sample b, channel c, row y, column x lies at ((b C + c) H + y) W + x. Tokens are
 * (B, N, C). Weights of a convolution are (out, in, side, side), of a linear layer (out, in).
 *
 * Contents: failures, memory, JSON, safetensors, weights and probes, layers, decoder, protocol.
 */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined __BYTE_ORDER__ && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "safetensors files are little-endian: this port copies their floats as they are"
#endif
_Static_assert(sizeof(size_t) >= 8 && sizeof(float) == 4, "a machine of 64 bits");

#define SCALING_FACTOR 0.18215f      /* what the encoder multiplies latents by */
#define GROUP_NORM_EPS 1e-6f         /* everywhere in the VAE; the UNet's resnets have 1e-5 */
#define MAX_TEXT ((size_t)4 << 20)   /* bytes of JSON: its values may take 50 times as much */
#define MAX_DEPTH 64                 /* of nested JSON: its reader calls itself */
#define MAX_WHOLE 9007199254740992.0 /* 2^53: a double holds every integer up to here */

/* ---- Failures: any function may give up; the request is answered with the reason ------------- */

static jmp_buf giving_up;
static char reason[2048];
static const char *refusal; /* the reply's key: "error" or "unsupported" */
static FILE *opened;        /* the one file that may be open at a time */

static _Noreturn void give_up(const char *key) {
    if (opened != NULL)
        fclose(opened);
    opened = NULL;
    refusal = key;
    longjmp(giving_up, 1);
}

#define FAIL(...) (snprintf(reason, sizeof reason, __VA_ARGS__), give_up("error"))
#define DECLINE(...) (snprintf(reason, sizeof reason, __VA_ARGS__), give_up("unsupported"))

/* ---- Memory: each block belongs to a pool, so that a failure anywhere leaks nothing ---------- */

typedef struct Block {
    struct Block *older, *newer;
    _Alignas(max_align_t) unsigned char bytes[];
} Block;

typedef struct {
    Block *newest;
} Pool;

/* Never return NULL: what needs memory that is not there fails, and the next request may do. */
static void *take(Pool *pool, size_t count, size_t size) {
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

static void give_back(Pool *pool, void *bytes) {
    Block *block = (Block *)((unsigned char *)bytes - offsetof(Block, bytes));
    if (block->older != NULL)
        block->older->newer = block->newer;
    *(block->newer != NULL ? &block->newer->older : &pool->newest) = block->older;
    free(block);
}

static void empty(Pool *pool) {
    while (pool->newest != NULL)
        give_back(pool, pool->newest->bytes);
}

/* Write a string, as printf would, into a pool. */
static const char *text(Pool *pool, const char *format, ...) {
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

/* ---- JSON (RFC 8259): a strict reader of values, a writer of strings ------------------------- */

typedef struct Json {
    char kind;          /* its first byte: one of { [ " t f n, and 0 for any number */
    double number;
    const char *string; /* ends in a zero */
    size_t length;      /* bytes of the string, members of the array or object */
    const char *key;    /* its name, in an object */
    struct Json *first; /* member */
    struct Json *next;  /* member of the same array or object */
} Json;

typedef struct {
    const char *source; /* where the text is from, for messages */
    char *bytes;        /* the text, then a zero */
    size_t length, at;
    int depth;
    Pool *pool;
} Reader;

static _Noreturn void not_json(const Reader *reader, const char *why) {
    FAIL("%s is not JSON: %s at byte %zu", reader->source, why, reader->at);
}

/* Step over the next byte if it is among those. */
static bool next_is(Reader *reader, const char *choice) {
    char byte = reader->bytes[reader->at];
    bool yes = reader->at < reader->length && byte != 0 && strchr(choice, byte) != NULL;
    reader->at += yes;
    return yes;
}

static void skip_space(Reader *reader) {
    while (next_is(reader, " \t\r\n"))
        continue;
}

/* Return the length of the UTF-8 character at the start of a text, 0 if there is none. */
static size_t utf8_length(const char *string, size_t left) {
    const unsigned char *bytes = (const unsigned char *)string;
    unsigned lead = bytes[0];
    size_t length = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    if ((lead >= 0x80 && lead < 0xC2) || lead > 0xF4 || length > left)
        return 0;
    for (size_t i = 1; i < length; i++)
        if (bytes[i] >> 6 != 2)
            return 0;
    bool too_long = (lead == 0xE0 && bytes[1] < 0xA0) || (lead == 0xF0 && bytes[1] < 0x90);
    bool no_character = (lead == 0xED && bytes[1] > 0x9F) || (lead == 0xF4 && bytes[1] > 0x8F);
    return too_long || no_character ? 0 : length;
}

static uint32_t read_hex4(Reader *reader) {
    static const char digits[] = "0123456789abcdef0123456789ABCDEF";
    uint32_t code = 0;
    for (int i = 0; i < 4; i++) {
        if (!next_is(reader, digits))
            not_json(reader, "bad \\u escape");
        code = code * 16 + (strchr(digits, reader->bytes[reader->at - 1]) - digits) % 16;
    }
    return code;
}

/* Read what follows `\u`, write it as UTF-8 and return how many bytes that took. */
static size_t read_unicode(Reader *reader, char *to) {
    uint32_t code = read_hex4(reader);
    if (code >> 10 == 0xD800 >> 10) { /* the first half of a surrogate pair */
        uint32_t low = next_is(reader, "\\") && next_is(reader, "u") ? read_hex4(reader) : 0;
        if (low >> 10 == 0xDC00 >> 10)
            code = 0x10000 + ((code & 0x3FF) << 10) + (low & 0x3FF);
    }
    if (code >> 11 == 0xD800 >> 11)
        not_json(reader, "half of a surrogate pair");
    size_t length = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (size_t i = length - 1; i > 0; i--, code >>= 6)
        to[i] = (char)(0x80 | (code & 0x3F));
    to[0] = (char)("\0\0\xC0\xE0\xF0"[length] | code);
    return length;
}

/* Read a string. It is unescaped where it stands: no escape is shorter than what it means, and the
 * closing quote leaves room for the final zero. */
static const char *read_string(Reader *reader, size_t *length) {
    static const char escapes[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    if (!next_is(reader, "\""))
        not_json(reader, "no string");
    char *start = reader->bytes + reader->at, *to = start;
    while (!next_is(reader, "\"")) {
        const char *from = reader->bytes + reader->at;
        size_t bytes = utf8_length(from, reader->length - reader->at);
        if (bytes == 0 || (unsigned char)*from < ' ')
            not_json(reader, "bad UTF-8, a control character, or the end");
        if (!next_is(reader, "\\")) {
            memmove(to, from, bytes);
            to += bytes;
            reader->at += bytes;
        } else if (next_is(reader, "u")) {
            to += read_unicode(reader, to);
        } else if (next_is(reader, escapes)) {
            *to++ = meanings[strchr(escapes, from[1]) - escapes];
        } else {
            not_json(reader, "bad escape");
        }
    }
    *length = (size_t)(to - start);
    *to = 0;
    return start;
}

/* JSON's numbers are those of strtod, less hexadecimals, inf, nan, 01, +1, .5 and 1. */
static double read_number(Reader *reader) {
    static const char digits[] = "0123456789";
    char *start = reader->bytes + reader->at, *end;
    double number = strtod(start, &end);
    size_t length = (size_t)(end - start), integer = strspn(start + (*start == '-'), digits);
    const char *point = memchr(start, '.', length);
    if (length > strspn(start, "0123456789+-.eE") || integer == 0
        || (integer > 1 && start[*start == '-'] == '0') || (point && !strspn(point + 1, digits)))
        not_json(reader, "no value");
    reader->at += length;
    return number;
}

static Json *read_value(Reader *reader);

static void read_members(Reader *reader, Json *parent) {
    Json **end = &parent->first;
    const char *close = parent->kind == '{' ? "}" : "]", *key = NULL;
    if (++reader->depth > MAX_DEPTH)
        not_json(reader, "nested too deeply");
    for (skip_space(reader); !next_is(reader, close); end = &(*end)->next) {
        if (parent->first != NULL && !next_is(reader, ","))
            not_json(reader, "no comma");
        skip_space(reader);
        if (parent->kind == '{') {
            size_t length;
            key = read_string(reader, &length);
            skip_space(reader);
            if (strlen(key) != length || !next_is(reader, ":"))
                not_json(reader, "a key with a zero character, or without a colon");
        }
        *end = read_value(reader);
        (*end)->key = key;
        parent->length++;
    }
    reader->depth--;
}

static Json *read_value(Reader *reader) {
    static const char *const words[] = {"null", "false", "true"};
    Json *value = take(reader->pool, 1, sizeof *value);
    skip_space(reader);
    const char *start = reader->bytes + reader->at, *word = NULL;
    *value = (Json){.kind = *start};
    for (int i = 0; i < 3; i++)
        if (strncmp(start, words[i], strlen(words[i])) == 0)
            word = words[i];
    if (*start == '"') {
        value->string = read_string(reader, &value->length);
    } else if (next_is(reader, "{[")) {
        read_members(reader, value);
    } else if (word != NULL) {
        reader->at += strlen(word);
    } else {
        value->kind = '0';
        value->number = read_number(reader);
    }
    skip_space(reader);
    return value;
}

/* Read a text as one value. A zero byte must follow the text, which is changed and must be kept. */
static const Json *read_json(Pool *pool, const char *source, char *bytes, size_t length) {
    if (length > MAX_TEXT)
        FAIL("%s has more than %zu bytes of JSON", source, MAX_TEXT);
    Reader reader = {.source = source, .bytes = bytes, .length = length, .pool = pool};
    const Json *value = read_value(&reader);
    if (reader.at != length)
        not_json(&reader, "something after the value");
    return value;
}

static const Json *member(const Json *object, const char *key) {
    const Json *value = object == NULL || object->kind != '{' ? NULL : object->first;
    while (value != NULL && strcmp(value->key, key) != 0)
        value = value->next;
    return value;
}

static const Json *as_array(const Json *value, const char *what) {
    if (value == NULL || value->kind != '[')
        FAIL("%s must be an array", what);
    return value;
}

static const char *as_string(const Json *value, const char *what) {
    if (value == NULL || value->kind != '"' || strlen(value->string) != value->length)
        FAIL("%s must be a string", what);
    return value->string;
}

static size_t as_size(const Json *value, const char *what) {
    if (value == NULL || value->kind != '0' || !(value->number >= 0) || value->number > MAX_WHOLE
        || value->number != floor(value->number))
        FAIL("%s must be an integer, at least 0", what);
    return (size_t)value->number;
}

static void write_string(FILE *file, const char *string) {
    size_t left = strlen(string), length;
    putc('"', file);
    for (; left > 0; string += length, left -= length) {
        length = utf8_length(string, left);
        if (length > 0 && (unsigned char)*string >= ' ') {
            if (*string == '"' || *string == '\\')
                putc('\\', file);
            fwrite(string, 1, length, file);
        } else { /* a control character, or a message cut inside one of several bytes */
            fprintf(file, "\\u%04x", length == 0 ? '?' : *string);
            length = 1;
        }
    }
    putc('"', file);
}

/* ---- safetensors: 8 bytes of length, a JSON header, the tensors' bytes; all little-endian ---- */

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

static void add_tensor(Pool *pool, Tensors *tensors, Tensor tensor) {
    Tensor *added = take(pool, 1, sizeof *added);
    *added = tensor;
    *(tensors->last != NULL ? &tensors->last->next : &tensors->first) = added;
    tensors->last = added;
}

static Tensor *find_tensor(const Tensors *tensors, const char *name) {
    Tensor *tensor = tensors->first;
    while (tensor != NULL && strcmp(tensor->name, name) != 0)
        tensor = tensor->next;
    return tensor;
}

static bool is_float32(const Tensor *tensor) {
    return strcmp(tensor->dtype, "F32") == 0;
}

static void open_file(const char *path, const char *mode) {
    opened = fopen(path, mode);
    if (opened == NULL)
        FAIL("cannot open %s: %s", path, strerror(errno));
}

static bool close_file(void) {
    bool fine = !ferror(opened);
    fine = fclose(opened) == 0 && fine;
    opened = NULL;
    return fine;
}

static char *read_file(Pool *pool, const char *path, size_t *size) {
    open_file(path, "rb");
    errno = 0;
    long length = -1;
    if (getc(opened) != EOF && fseek(opened, 0, SEEK_END) == 0) /* a folder opens, but is no file */
        length = ftell(opened);
    if (length < 0)
        FAIL("cannot read %s: %s", path, errno != 0 ? strerror(errno) : "it is empty");
    *size = (size_t)length;
    char *bytes = take(pool, *size + 1, 1);
    rewind(opened);
    if (fread(bytes, 1, *size, opened) != *size || !close_file())
        FAIL("cannot read %s to its end", path);
    bytes[*size] = 0;
    return bytes;
}

static Tensor read_entry(Pool *pool, const char *path, const Json *entry, const char *data,
                         size_t data_size) {
    const char *what = text(pool, "%s: dtype, shape or data_offsets of %s", path, entry->key);
    const Json *shape = as_array(member(entry, "shape"), what);
    const Json *offsets = as_array(member(entry, "data_offsets"), what);
    Tensor tensor = {.name = entry->key, .dtype = as_string(member(entry, "dtype"), what)};
    size_t *sides = take(pool, shape->length, sizeof *sides);
    double count = 1; /* no product of sides is too large for a double */
    for (const Json *side = shape->first; side != NULL; side = side->next) {
        sides[tensor.rank] = as_size(side, what);
        count *= (double)sides[tensor.rank++];
    }
    size_t start = as_size(offsets->first, what);
    size_t end = as_size(offsets->first->next, what);
    if (start > end || end > data_size || offsets->length != 2)
        FAIL("%s: the bytes of %s lie outside the file", path, entry->key);
    tensor.shape = sides;
    tensor.bytes = data + start;
    tensor.size = end - start;
    if (is_float32(&tensor) && (double)tensor.size != 4 * count)
        FAIL("%s: %s has %zu bytes, which its shape does not fit", path, entry->key, tensor.size);
    return tensor;
}

static Tensors read_tensors(Pool *pool, const char *path) {
    Tensors tensors = {.path = path};
    uint64_t length;
    size_t size, sum = 0;
    char *file = read_file(pool, path, &size);
    if (size >= 8)
        memcpy(&length, file, 8);
    if (size < 8 || length > size - 8)
        FAIL("%s is no safetensors file: it is shorter than its header", path);
    const char *data = file + 8 + length;
    size_t data_size = size - 8 - (size_t)length;
    const Json *header = read_json(pool, path, file + 8, (size_t)length);
    if (header->kind != '{')
        FAIL("%s is no safetensors file: its header is no object", path);
    for (const Json *entry = header->first; entry != NULL; entry = entry->next)
        if (strcmp(entry->key, "__metadata__") != 0) {
            add_tensor(pool, &tensors, read_entry(pool, path, entry, data, data_size));
            sum += tensors.last->size;
        }
    if (sum != data_size)
        FAIL("%s holds %zu bytes of data, its tensors %zu", path, data_size, sum);
    return tensors;
}

static void write_tensors(const char *path, const Tensors *tensors) {
    uint64_t length = 0;
    size_t start = 0;
    open_file(path, "wb");
    fwrite(&length, 8, 1, opened); /* not known yet */
    putc('{', opened);
    for (const Tensor *tensor = tensors->first; tensor != NULL; tensor = tensor->next) {
        write_string(opened, tensor->name);
        fputs(":{\"dtype\":", opened);
        write_string(opened, tensor->dtype);
        fputs(",\"shape\":[", opened);
        for (size_t axis = 0; axis < tensor->rank; axis++)
            fprintf(opened, axis == 0 ? "%zu" : ",%zu", tensor->shape[axis]);
        fprintf(opened, "],\"data_offsets\":[%zu,%zu]}", start, start + tensor->size);
        start += tensor->size;
        if (tensor->next != NULL)
            putc(',', opened);
    }
    putc('}', opened);
    fprintf(opened, "%*s", (int)(-ftell(opened) & 7), ""); /* readers may map the file: align */
    length = (uint64_t)ftell(opened) - 8;
    for (const Tensor *tensor = tensors->first; tensor != NULL; tensor = tensor->next)
        fwrite(tensor->bytes, 1, tensor->size, opened);
    rewind(opened);
    fwrite(&length, 8, 1, opened);
    if (!close_file())
        FAIL("cannot write %s: %s", path, strerror(errno));
}

/* ---- Weights and probes, both by the names of the modules in the published checkpoint -------- */

enum { B, C, H, W }; /* axes of a map */

typedef struct {
    size_t rank, shape[4];
    float *values;
} Array;

typedef struct {
    size_t latent_channels, out_channels, resnets, groups, levels;
    const size_t *widths; /* block_out_channels: the decoder begins with the last */
    Tensors weights;
} Decoder;

typedef struct {
    const Decoder *decoder;
    Pool *pool;         /* of the request */
    const Json *wanted; /* names of the probes asked for */
    Tensors observed, replacements;
} Run;

static size_t count_of(Array array) {
    size_t count = 1;
    for (size_t axis = 0; axis < array.rank; axis++)
        count *= array.shape[axis];
    return count;
}

static Array new_array(Run *run, size_t rank, const size_t *shape) {
    Array array = {.rank = rank};
    memcpy(array.shape, shape, rank * sizeof *shape);
    array.values = take(run->pool, count_of(array), sizeof *array.values);
    return array;
}

static const char *shape_text(Pool *pool, size_t rank, const size_t *shape) {
    const char *sides = "";
    for (size_t axis = 0; axis < rank; axis++)
        sides = text(pool, "%s%s%zu", sides, axis == 0 ? "" : ", ", shape[axis]);
    return text(pool, "(%s)", sides);
}

static _Noreturn void misfit(Pool *pool, const char *path, const Tensor *tensor,
                             const char *expected) {
    FAIL("%s: %s is %s %s, expected F32 %s", path, tensor->name, tensor->dtype,
         shape_text(pool, tensor->rank, tensor->shape), expected);
}

static const float *weight_of(Run *run, const char *module, const char *kind, size_t rank,
                              const size_t *shape) {
    const Tensors *file = &run->decoder->weights;
    const char *name = text(run->pool, "%s.%s", module, kind);
    Tensor *tensor = find_tensor(file, name);
    if (tensor == NULL)
        FAIL("%s lacks the weight %s", file->path, name);
    if (!is_float32(tensor) || tensor->rank != rank
        || memcmp(tensor->shape, shape, rank * sizeof *shape) != 0)
        misfit(run->pool, file->path, tensor, shape_text(run->pool, rank, shape));
    tensor->used = true;
    if ((uintptr_t)tensor->bytes % _Alignof(float) == 0)
        return (const float *)tensor->bytes;
    return memcpy(take(run->pool, tensor->size, 1), tensor->bytes, tensor->size);
}

static void add_array(Run *run, Tensors *tensors, const char *name, Array array) {
    size_t size = count_of(array) * sizeof *array.values;
    size_t *shape = take(run->pool, array.rank, sizeof *shape);
    memcpy(shape, array.shape, array.rank * sizeof *shape);
    const char *bytes = memcpy(take(run->pool, size, 1), array.values, size);
    add_tensor(run->pool, tensors, (Tensor){.name = name, .dtype = "F32", .rank = array.rank,
                                            .size = size, .shape = shape, .bytes = bytes});
}

/* Copy a probe out if it was asked for; then overwrite it, before anything reads it. */
static void observe(Run *run, const char *path, Array array) {
    for (const Json *name = run->wanted->first; name != NULL; name = name->next)
        if (strcmp(name->string, path) == 0)
            add_array(run, &run->observed, path, array);
    const Tensor *other = find_tensor(&run->replacements, path);
    if (other == NULL)
        return;
    /* A map's pixels may come in one axis or in two: the first two axes must be the same. */
    if (!is_float32(other) || other->rank < 2 || other->size != 4 * count_of(array)
        || memcmp(other->shape, array.shape, 2 * sizeof *other->shape) != 0)
        misfit(run->pool, run->replacements.path, other,
               shape_text(run->pool, array.rank, array.shape));
    memcpy(array.values, other->bytes, other->size);
}

/* ---- Layers: each makes a new array; whoever called it frees the old one --------------------- */

/* Free the array that was read, and go on with the one made of it. */
static Array next(Run *run, Array read, Array made) {
    give_back(run->pool, read.values);
    return made;
}

/* Add a plane, shifted and times one weight, to another. What lies beyond the edge is 0. */
static void add_shifted(float *to, const float *from, float weight, ptrdiff_t height,
                        ptrdiff_t width, ptrdiff_t dy, ptrdiff_t dx) {
    for (ptrdiff_t y = 0; y < height; y++) {
        if (y + dy < 0 || y + dy >= height)
            continue;
        ptrdiff_t end = dx > 0 ? width - dx : width;
        for (ptrdiff_t x = dx < 0 ? -dx : 0; x < end; x++)
            to[y * width + x] += weight * from[(y + dy) * width + x + dx];
    }
}

/* A convolution with stride 1; its window has a margin of 1 pixel around the one in the middle, or
 * of none. Each value is a running sum over channels, then rows and columns of the window. Those of
 * a plane grow side by side: additions that wait for one another are slow. */
static Array convolve(Run *run, const char *path, size_t channels, int margin, Array in) {
    size_t side = (size_t)(1 + 2 * margin), pixels = in.shape[H] * in.shape[W];
    ptrdiff_t height = (ptrdiff_t)in.shape[H], width = (ptrdiff_t)in.shape[W];
    const float *bias = weight_of(run, path, "bias", 1, &channels);
    const float *weights =
        weight_of(run, path, "weight", 4, (size_t[]){channels, in.shape[C], side, side});
    Array out = new_array(run, 4, (size_t[]){in.shape[B], channels, in.shape[H], in.shape[W]});
    for (size_t plane = 0; plane < in.shape[B] * channels; plane++) {
        size_t b = plane / channels, o = plane % channels;
        const float *from = in.values + b * in.shape[C] * pixels;
        const float *weight = weights + o * in.shape[C] * side * side;
        float *to = out.values + plane * pixels;
        for (size_t p = 0; p < pixels; p++)
            to[p] = 0.0f;
        for (size_t i = 0; i < in.shape[C]; i++)
            for (int dy = -margin; dy <= margin; dy++)
                for (int dx = -margin; dx <= margin; dx++)
                    add_shifted(to, from + i * pixels, *weight++, height, width, dy, dx);
        for (size_t p = 0; p < pixels; p++)
            to[p] += bias[o];
    }
    observe(run, path, out);
    return out;
}

/* Mean and variance over each group's channels and pixels, which lie together; in two passes. */
static Array group_norm(Run *run, const char *path, Array in) {
    size_t groups = run->decoder->groups, channels = in.shape[C] / groups;
    size_t pixels = in.shape[H] * in.shape[W], count = channels * pixels;
    const float *weight = weight_of(run, path, "weight", 1, &in.shape[C]);
    const float *bias = weight_of(run, path, "bias", 1, &in.shape[C]);
    Array out = new_array(run, 4, in.shape);
    for (size_t group = 0; group < in.shape[B] * groups; group++) {
        const float *from = in.values + group * count;
        float *to = out.values + group * count, sum = 0.0f, squares = 0.0f;
        for (size_t i = 0; i < count; i++)
            sum += from[i];
        float mean = sum / (float)count;
        for (size_t i = 0; i < count; i++)
            squares += (from[i] - mean) * (from[i] - mean);
        float deviation = sqrtf(squares / (float)count + GROUP_NORM_EPS);
        for (size_t i = 0; i < count; i++) {
            size_t channel = group % groups * channels + i / pixels;
            to[i] = (from[i] - mean) / deviation * weight[channel] + bias[channel];
        }
    }
    observe(run, path, out);
    return out;
}

static void silu(Array array) {
    for (size_t i = 0; i < count_of(array); i++)
        array.values[i] = array.values[i] / (1.0f + expf(-array.values[i]));
}

static void add(Array to, Array other) {
    for (size_t i = 0; i < count_of(to); i++)
        to.values[i] += other.values[i];
}

static Array norm_silu_conv(Run *run, const char *norm, const char *conv, size_t channels,
                            Array in) {
    Array hidden = group_norm(run, norm, in);
    silu(hidden);
    return next(run, hidden, convolve(run, conv, channels, 1, hidden));
}

static Array resnet(Run *run, const char *path, size_t channels, Array in) {
    Array out = norm_silu_conv(run, text(run->pool, "%s.norm1", path),
                               text(run->pool, "%s.conv1", path), channels, in);
    out = next(run, out, norm_silu_conv(run, text(run->pool, "%s.norm2", path),
                                        text(run->pool, "%s.conv2", path), channels, out));
    if (in.shape[C] == channels) {
        add(out, in);
    } else {
        const char *name = text(run->pool, "%s.conv_shortcut", path);
        Array shortcut = convolve(run, name, channels, 0, in);
        add(out, shortcut);
        give_back(run->pool, shortcut.values);
    }
    observe(run, path, out);
    return out;
}

/* Nearest neighbour: every pixel becomes four. */
static Array upsample(Run *run, Array in) {
    size_t planes = in.shape[B] * in.shape[C], height = 2 * in.shape[H], width = 2 * in.shape[W];
    Array out = new_array(run, 4, (size_t[]){in.shape[B], in.shape[C], height, width});
    float *value = out.values;
    for (size_t plane = 0; plane < planes; plane++)
        for (size_t y = 0; y < height; y++)
            for (size_t x = 0; x < width; x++)
                *value++ = in.values[(plane * in.shape[H] + y / 2) * in.shape[W] + x / 2];
    return out;
}

/* Copy (B, rows, columns) to (B, columns, rows): a map to tokens, or back. */
static void exchange_axes(Array to, Array from, size_t rows, size_t columns) {
    const float *value = from.values;
    for (size_t b = 0; b < from.shape[B]; b++)
        for (size_t row = 0; row < rows; row++)
            for (size_t column = 0; column < columns; column++)
                to.values[(b * columns + column) * rows + row] = *value++;
}

/* A linear layer, (B, N, C) to (B, N, C). */
static Array linear(Run *run, const char *path, Array in) {
    size_t tokens = in.shape[0] * in.shape[1], channels = in.shape[2];
    const float *weight = weight_of(run, path, "weight", 2, (size_t[]){channels, channels});
    const float *bias = weight_of(run, path, "bias", 1, &channels);
    Array out = new_array(run, 3, in.shape);
    for (size_t n = 0; n < tokens; n++)
        for (size_t o = 0; o < channels; o++) {
            float sum = 0.0f;
            for (size_t i = 0; i < channels; i++)
                sum += weight[o * channels + i] * in.values[n * channels + i];
            out.values[n * channels + o] = sum + bias[o];
        }
    observe(run, path, out);
    return out;
}

/* Turn scores into weights whose sum is 1; the largest is subtracted, so that none overflows. */
static void softmax(float *scores, size_t count) {
    float largest = scores[0], sum = 0.0f;
    for (size_t i = 1; i < count; i++)
        largest = fmaxf(largest, scores[i]);
    for (size_t i = 0; i < count; i++)
        sum += scores[i] = expf(scores[i] - largest);
    for (size_t i = 0; i < count; i++)
        scores[i] /= sum;
}

/* Each token reads all those of its sample, with a single head as wide as the map. */
static Array attend(Run *run, Array query, Array key, Array value) {
    size_t tokens = query.shape[1], channels = query.shape[2];
    Array out = new_array(run, 3, query.shape);
    float *scores = take(run->pool, tokens, sizeof *scores);
    for (size_t n = 0; n < query.shape[0] * tokens; n++) {
        const float *asked = query.values + n * channels;
        const float *keys = key.values + n / tokens * tokens * channels;
        const float *values = value.values + n / tokens * tokens * channels;
        for (size_t other = 0; other < tokens; other++) {
            float sum = 0.0f;
            for (size_t c = 0; c < channels; c++)
                sum += asked[c] * keys[other * channels + c];
            scores[other] = sum / sqrtf((float)channels);
        }
        softmax(scores, tokens);
        for (size_t c = 0; c < channels; c++) {
            float sum = 0.0f;
            for (size_t other = 0; other < tokens; other++)
                sum += scores[other] * values[other * channels + c];
            out.values[n * channels + c] = sum;
        }
    }
    give_back(run->pool, scores);
    return out;
}

static Array attention(Run *run, const char *path, Array in) {
    size_t channels = in.shape[C], pixels = in.shape[H] * in.shape[W];
    Array normed = group_norm(run, text(run->pool, "%s.group_norm", path), in);
    Array tokens = new_array(run, 3, (size_t[]){in.shape[B], pixels, channels});
    exchange_axes(tokens, normed, channels, pixels);
    Array query = linear(run, text(run->pool, "%s.to_q", path), tokens);
    Array key = linear(run, text(run->pool, "%s.to_k", path), tokens);
    Array value = linear(run, text(run->pool, "%s.to_v", path), tokens);
    Array attended = attend(run, query, key, value);
    observe(run, text(run->pool, "%s.to_out.0.input", path), attended);
    Array result = linear(run, text(run->pool, "%s.to_out.0", path), attended);
    Array out = new_array(run, 4, in.shape);
    exchange_axes(out, result, pixels, channels);
    add(out, in);
    Array done[] = {normed, tokens, query, key, value, attended, result};
    for (size_t i = 0; i < sizeof done / sizeof *done; i++)
        give_back(run->pool, done[i].values);
    observe(run, path, out);
    return out;
}

/* ---- The decoder ----------------------------------------------------------------------------- */

static Array up_block(Run *run, size_t index, size_t channels, Array hidden) {
    const char *path = text(run->pool, "decoder.up_blocks.%zu", index);
    for (size_t i = 0; i < run->decoder->resnets; i++) {
        const char *name = text(run->pool, "%s.resnets.%zu", path, i);
        hidden = next(run, hidden, resnet(run, name, channels, hidden));
    }
    if (index + 1 < run->decoder->levels) {
        const char *name = text(run->pool, "%s.upsamplers.0", path);
        const char *conv = text(run->pool, "%s.conv", name);
        hidden = next(run, hidden, upsample(run, hidden));
        hidden = next(run, hidden, convolve(run, conv, channels, 1, hidden));
        observe(run, name, hidden);
    }
    observe(run, path, hidden);
    return hidden;
}

/* From latents (B, 4, H, W), which are freed, to an image (B, 3, 8 H, 8 W). */
static Array decode(Run *run, Array latents) {
    const Decoder *decoder = run->decoder;
    size_t width = decoder->widths[decoder->levels - 1];
    for (size_t i = 0; i < count_of(latents); i++)
        latents.values[i] /= SCALING_FACTOR;
    observe(run, "post_quant_conv.input", latents);
    Array hidden = convolve(run, "post_quant_conv", decoder->latent_channels, 0, latents);
    give_back(run->pool, latents.values);
    hidden = next(run, hidden, convolve(run, "decoder.conv_in", width, 1, hidden));

    hidden = next(run, hidden, resnet(run, "decoder.mid_block.resnets.0", width, hidden));
    hidden = next(run, hidden, attention(run, "decoder.mid_block.attentions.0", hidden));
    hidden = next(run, hidden, resnet(run, "decoder.mid_block.resnets.1", width, hidden));
    observe(run, "decoder.mid_block", hidden);

    for (size_t i = 0; i < decoder->levels; i++)
        hidden = up_block(run, i, decoder->widths[decoder->levels - 1 - i], hidden);
    return next(run, hidden, norm_silu_conv(run, "decoder.conv_norm_out", "decoder.conv_out",
                                            decoder->out_channels, hidden));
}

static Decoder read_sizes(Pool *pool, const Json *vae) {
    const Json *levels = as_array(member(vae, "block_out_channels"), "vae.block_out_channels");
    size_t *widths = take(pool, levels->length, sizeof *widths), i = 0;
    Decoder decoder = {
        .latent_channels = as_size(member(vae, "latent_channels"), "vae.latent_channels"),
        .out_channels = as_size(member(vae, "out_channels"), "vae.out_channels"),
        .resnets = as_size(member(vae, "layers_per_block"), "vae.layers_per_block") + 1,
        .groups = as_size(member(vae, "norm_num_groups"), "vae.norm_num_groups"),
        .levels = levels->length,
        .widths = widths,
    };
    for (const Json *width = levels->first; width != NULL; width = width->next, i++) {
        widths[i] = as_size(width, "vae.block_out_channels");
        if (decoder.groups == 0 || widths[i] % decoder.groups != 0)
            FAIL("%zu channels do not divide into %zu groups", widths[i], decoder.groups);
    }
    if (decoder.levels == 0)
        FAIL("vae.block_out_channels is empty");
    return decoder;
}

/* Decode no samples: this looks up every weight and compares every shape before an input comes. */
static void check_weights(Pool *pool, const Decoder *decoder) {
    Run run = {.decoder = decoder, .pool = pool, .wanted = &(Json){.kind = '['}};
    decode(&run, new_array(&run, 4, (size_t[]){0, decoder->latent_channels, 1, 1}));
    for (const Tensor *tensor = decoder->weights.first; tensor != NULL; tensor = tensor->next) {
        bool encoder = strncmp(tensor->name, "encoder.", 8) == 0
                       || strncmp(tensor->name, "quant_conv.", 11) == 0;
        if (!encoder && !tensor->used)
            FAIL("%s: no layer takes the weight %s", decoder->weights.path, tensor->name);
    }
}

/* ---- The protocol: hello, load, run, unload, bye --------------------------------------------- */

typedef struct {
    Pool request;   /* emptied after every reply */
    Pool component; /* emptied by unload */
    enum { NOTHING, ECHO, VAE_DECODER } loaded;
    Decoder decoder;
    char scratch[4096];
    double id; /* of the request; -1 while it is not known */
    bool over;
} Port;

static void reply_ok(const Port *port, const char *ok) {
    printf("{\"id\":%.0f,\"ok\":%s}\n", port->id, ok);
}

static void hello(Port *port, const Json *request) {
    const char *scratch = as_string(member(request, "scratch"), "scratch");
    if (as_size(member(request, "protocol"), "protocol") != 1)
        FAIL("this port speaks version 1 of the protocol");
    if (strlen(scratch) >= sizeof port->scratch)
        FAIL("the path of the scratch folder is too long");
    strcpy(port->scratch, scratch);
    reply_ok(port, "{\"name\":\"c\",\"version\":\"1.0\",\"components\":[\"vae_decoder\"],"
                   "\"arithmetics\":[\"float32\"],\"devices\":[\"cpu\"],\"probes\":true,"
                   "\"replace\":true,\"echo\":true,\"layout\":\"NCHW\",\"weights\":[\"diffusers\"],"
                   "\"details\":{\"language\":\"C11\"}}");
}

static void load_decoder(Port *port, const Json *request) {
    const char *folder = as_string(member(request, "weights"), "weights");
    if (strcmp(as_string(member(request, "arithmetic"), "arithmetic"), "float32") != 0)
        DECLINE("this port computes in float32 alone");
    if (strcmp(as_string(member(request, "layout"), "layout"), "diffusers") != 0)
        DECLINE("this port reads weights in layout diffusers alone");
    port->decoder = read_sizes(&port->component, member(member(request, "architecture"), "vae"));
    port->decoder.weights = read_tensors(
        &port->component, text(&port->component, "%s/diffusion_pytorch_model.safetensors", folder));
    check_weights(&port->request, &port->decoder);
}

static void load(Port *port, const Json *request) {
    const char *component = as_string(member(request, "component"), "component");
    bool echo = strcmp(component, "echo") == 0;
    if (port->loaded != NOTHING)
        FAIL("unload comes before the next load");
    if (!echo && strcmp(component, "vae_decoder") != 0)
        FAIL("unknown component %s: this port has vae_decoder and echo", component);
    if (!echo)
        load_decoder(port, request);
    port->loaded = echo ? ECHO : VAE_DECODER;
    reply_ok(port, "{}");
}

static void unload(Port *port) {
    empty(&port->component);
    port->loaded = NOTHING;
    reply_ok(port, "{}");
}

static Tensors read_unless_null(Pool *pool, const Json *path, const char *what) {
    bool none = path != NULL && path->kind == 'n';
    return none ? (Tensors){0} : read_tensors(pool, as_string(path, what));
}

static Tensors run_decoder(Run *run, const Tensors *inputs) {
    const Tensor *tensor = find_tensor(inputs, "latents");
    size_t channels = run->decoder->latent_channels;
    Tensors outputs = {0};
    if (tensor == NULL)
        FAIL("the input latents is missing");
    if (!is_float32(tensor) || tensor->rank != 4 || tensor->shape[C] != channels || !tensor->size)
        misfit(run->pool, inputs->path, tensor, text(run->pool, "(B, %zu, H, W)", channels));
    Array latents = new_array(run, 4, tensor->shape);
    memcpy(latents.values, tensor->bytes, tensor->size);
    add_array(run, &outputs, "image", decode(run, latents));
    return outputs;
}

static void evaluate(Port *port, const Json *request) {
    Pool *pool = &port->request;
    if (port->loaded == NOTHING || port->scratch[0] == 0)
        FAIL("hello and load come before run");
    const Json *probes = as_array(member(request, "probes"), "probes");
    for (const Json *name = probes->first; name != NULL; name = name->next)
        as_string(name, "each of probes");
    Run run = {.decoder = &port->decoder, .pool = pool, .wanted = probes};
    const Json *inputs_path = member(member(request, "inputs"), "tensors");
    Tensors inputs = read_unless_null(pool, inputs_path, "inputs.tensors");
    run.replacements = read_unless_null(pool, member(request, "replace"), "replace");
    Tensors outputs = port->loaded == ECHO ? inputs : run_decoder(&run, &inputs);
    write_tensors(text(pool, "%s/outputs.safetensors", port->scratch), &outputs);
    if (run.observed.first != NULL)
        write_tensors(text(pool, "%s/probes.safetensors", port->scratch), &run.observed);
    reply_ok(port, run.observed.first == NULL
        ? "{\"outputs\":\"outputs.safetensors\",\"probes\":null}"
        : "{\"outputs\":\"outputs.safetensors\",\"probes\":\"probes.safetensors\"}");
}

/* Read a line from standard input; return NULL at its end. */
static char *read_line(Pool *pool, size_t *length) {
    size_t room = 4096;
    char *line = take(pool, room, 1);
    int byte = getchar();
    bool ended = byte == EOF;
    for (*length = 0; byte != EOF && byte != '\n'; byte = getchar()) {
        if (*length + 1 == room) {
            char *longer = memcpy(take(pool, 2 * room, 1), line, room);
            give_back(pool, line);
            line = longer;
            room *= 2;
        }
        if (*length <= MAX_TEXT) /* of a longer line the rest is skipped: it will be refused */
            line[(*length)++] = (char)byte;
    }
    line[*length] = 0;
    return ended ? NULL : line;
}

static void answer(Port *port) {
    size_t length;
    port->id = -1;
    char *line = read_line(&port->request, &length);
    port->over = line == NULL;
    if (port->over)
        return;
    const Json *request = read_json(&port->request, "the request", line, length);
    port->id = (double)as_size(member(request, "id"), "id");
    const char *op = as_string(member(request, "op"), "op");
    if (strcmp(op, "hello") == 0)
        hello(port, request);
    else if (strcmp(op, "load") == 0)
        load(port, request);
    else if (strcmp(op, "run") == 0)
        evaluate(port, request);
    else if (strcmp(op, "unload") == 0 || strcmp(op, "bye") == 0)
        unload(port);
    else
        FAIL("unknown op %s", op);
    port->over = strcmp(op, "bye") == 0;
}

static void refuse(Port *port) {
    if (port->id < 0)
        printf("{\"id\":null,\"%s\":", refusal);
    else
        printf("{\"id\":%.0f,\"%s\":", port->id, refusal);
    write_string(stdout, reason);
    printf("}\n");
    if (port->loaded == NOTHING) /* a load that failed leaves nothing behind */
        empty(&port->component);
}

int main(void) {
    static Port port; /* static: what lives on the stack may be lost in the jump of a failure */
    while (!port.over) {
        if (setjmp(giving_up) == 0)
            answer(&port);
        else
            refuse(&port);
        empty(&port.request);
        if (fflush(stdout) != 0)
            return EXIT_FAILURE;
    }
    empty(&port.component);
    return EXIT_SUCCESS;
}
