/* safetensors: 8 bytes of length, a JSON header, the tensors' bytes; all little-endian. */
#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "port.h"

void add_tensor(Pool *pool, Tensors *tensors, Tensor tensor) {
    Tensor *added = take(pool, 1, sizeof *added);
    *added = tensor;
    *(tensors->last != NULL ? &tensors->last->next : &tensors->first) = added;
    tensors->last = added;
}

Tensor *find_tensor(const Tensors *tensors, const char *name) {
    Tensor *tensor = tensors->first;
    while (tensor != NULL && strcmp(tensor->name, name) != 0)
        tensor = tensor->next;
    return tensor;
}

const Tensor *input(const Tensors *inputs, const char *name) {
    const Tensor *tensor = find_tensor(inputs, name);
    if (tensor == NULL)
        FAIL("the input %s is missing", name);
    return tensor;
}

bool is_float32(const Tensor *tensor) {
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

Tensors read_tensors(Pool *pool, const char *path) {
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

void write_tensors(const char *path, const Tensors *tensors) {
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

const char *shape_text(Pool *pool, size_t rank, const size_t *shape) {
    const char *sides = "";
    for (size_t axis = 0; axis < rank; axis++)
        sides = text(pool, "%s%s%zu", sides, axis == 0 ? "" : ", ", shape[axis]);
    return text(pool, "(%s)", sides);
}

_Noreturn void misfit(Pool *pool, const char *path, const Tensor *tensor, const char *expected) {
    FAIL("%s: %s is %s %s, expected F32 %s", path, tensor->name, tensor->dtype,
         shape_text(pool, tensor->rank, tensor->shape), expected);
}
