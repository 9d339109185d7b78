/* JSON (RFC 8259): a strict reader of values, a writer of strings. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "port.h"

#define MAX_DEPTH 64                 /* of nested JSON: its reader calls itself */
#define MAX_WHOLE 9007199254740992.0 /* 2^53: a double holds every integer up to here */

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

const Json *read_json(Pool *pool, const char *source, char *bytes, size_t length) {
    if (length > MAX_TEXT)
        FAIL("%s has more than %zu bytes of JSON", source, MAX_TEXT);
    Reader reader = {.source = source, .bytes = bytes, .length = length, .pool = pool};
    const Json *value = read_value(&reader);
    if (reader.at != length)
        not_json(&reader, "something after the value");
    return value;
}

const Json *member(const Json *object, const char *key) {
    const Json *value = object == NULL || object->kind != '{' ? NULL : object->first;
    while (value != NULL && strcmp(value->key, key) != 0)
        value = value->next;
    return value;
}

bool lists(const Json *array, const char *string) {
    for (const Json *value = array->first; value != NULL; value = value->next)
        if (strcmp(value->string, string) == 0)
            return true;
    return false;
}

const Json *as_object(const Json *value, const char *what) {
    if (value == NULL || value->kind != '{')
        FAIL("%s must be an object", what);
    return value;
}

const Json *as_array(const Json *value, const char *what) {
    if (value == NULL || value->kind != '[')
        FAIL("%s must be an array", what);
    return value;
}

const char *as_string(const Json *value, const char *what) {
    if (value == NULL || value->kind != '"' || strlen(value->string) != value->length)
        FAIL("%s must be a string", what);
    return value->string;
}

double as_number(const Json *value, const char *what) {
    if (value == NULL || value->kind != '0' || !isfinite(value->number))
        FAIL("%s must be a number", what);
    return value->number;
}

size_t as_size(const Json *value, const char *what) {
    if (value == NULL || value->kind != '0' || !(value->number >= 0) || value->number > MAX_WHOLE
        || value->number != floor(value->number))
        FAIL("%s must be an integer, at least 0", what);
    return (size_t)value->number;
}

bool as_bool(const Json *value, const char *what) {
    if (value == NULL || (value->kind != 't' && value->kind != 'f'))
        FAIL("%s must be true or false", what);
    return value->kind == 't';
}

void write_string(FILE *file, const char *string) {
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
