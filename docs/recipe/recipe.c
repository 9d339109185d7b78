/* The recipe in C11, without a library: prints the first values of a tensor.
 *
 *     cc -std=c11 -O2 recipe.c -o recipe -lm && ./recipe NAME FAN_IN COUNT [dense]
 *
 * FAN_IN is the product of all axes but the first; 0 for a norm's weight. It is not looked at for
 * biases, embeddings and inputs, whose names say what they are. */

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t rotated(uint32_t x, int n) { return x >> n | x << (32 - n); }

/* Roots of the first primes, as FIPS 180-4 defines the constants of SHA-256: the first 32 bits of
 * the fraction of the square root (power 2) or cube root (power 3). */
static uint32_t fraction_of_root(int prime, int power) {
    uint64_t low = 0, high = (uint64_t)1 << 36; /* root * 2^32 */
    while (high - low > 1) {
        uint64_t middle = (low + high) / 2;
        long double root = (long double)middle / 4294967296.0L;
        long double grown = power == 2 ? root * root : root * root * root;
        if (grown <= prime) low = middle; else high = middle;
    }
    return (uint32_t)low;
}

/* The first 16 bytes of SHA-256 of a text, as two little-endian words. */
static void key_of(const char *text, uint64_t key[2]) {
    uint32_t constants[64], state[8];
    for (int prime = 2, n = 0; n < 64; prime++) {
        int divisor = 2;
        while (prime % divisor) divisor++;
        if (divisor < prime) continue;
        if (n < 8) state[n] = fraction_of_root(prime, 2);
        constants[n++] = fraction_of_root(prime, 3);
    }
    size_t length = strlen(text), blocks = (length + 8) / 64 + 1;
    unsigned char *message = calloc(blocks, 64);
    memcpy(message, text, length);
    message[length] = 0x80;
    for (int i = 0; i < 8; i++)
        message[64 * blocks - 1 - i] = (unsigned char)((uint64_t)length * 8 >> 8 * i);
    for (size_t block = 0; block < blocks; block++) {
        uint32_t w[64], v[8];
        for (int i = 0; i < 16; i++) {
            const unsigned char *p = message + 64 * block + 4 * i;
            w[i] = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
        }
        for (int i = 16; i < 64; i++) {
            uint32_t a = w[i - 15], b = w[i - 2];
            w[i] = w[i - 16] + (rotated(a, 7) ^ rotated(a, 18) ^ a >> 3) + w[i - 7]
                 + (rotated(b, 17) ^ rotated(b, 19) ^ b >> 10);
        }
        memcpy(v, state, sizeof v);
        for (int i = 0; i < 64; i++) {
            uint32_t e = v[4], a = v[0];
            uint32_t t1 = v[7] + (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25))
                        + ((e & v[5]) ^ (~e & v[6])) + constants[i] + w[i];
            uint32_t t2 = (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22))
                        + ((a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]));
            memmove(v + 1, v, 7 * sizeof *v);
            v[4] += t1;
            v[0] = t1 + t2;
        }
        for (int i = 0; i < 8; i++) state[i] += v[i];
    }
    free(message);
    key[0] = key[1] = 0;
    for (int i = 0; i < 16; i++) /* the digest is big-endian, the words are little-endian */
        key[i / 8] |= (uint64_t)(state[i / 4] >> (24 - 8 * (i % 4)) & 0xff) << 8 * (i % 8);
}

static uint64_t high_half(uint64_t a, uint64_t b) {
    uint64_t a0 = (uint32_t)a, a1 = a >> 32, b0 = (uint32_t)b, b1 = b >> 32;
    uint64_t middle = a1 * b0 + (a0 * b0 >> 32), other = a0 * b1 + (uint32_t)middle;
    return a1 * b1 + (middle >> 32) + (other >> 32);
}

/* One block of Philox 4x64 with 10 rounds. */
static void philox(uint64_t block, const uint64_t key[2], uint64_t out[4]) {
    const uint64_t m0 = 0xD2E7470EE14C6C93u, m1 = 0xCA5A826395121157u;
    uint64_t c[4] = {block, 0, 0, 0}, k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t next[4] = {high_half(m1, c[2]) ^ c[1] ^ k0, m1 * c[2],
                            high_half(m0, c[0]) ^ c[3] ^ k1, m0 * c[0]};
        memcpy(c, next, sizeof c);
        k0 += 0x9E3779B97F4A7C15u;
        k1 += 0xBB67AE8584CAA73Bu;
    }
    memcpy(out, c, sizeof c);
}

static int floor_shift(int k, int bits) { return (int)floor(ldexp(k, -bits)); }

static double value(int k, const char *name, long fan_in, int dense) {
    size_t length = strlen(name);
    int more = dense ? 16 : 0; /* an int24 has 16 bits more */
    if (!strncmp(name, "inputs/", 7) || strstr(name, "_embedding."))
        return ldexp(2 * k + 1, -(7 + more));
    if (length > 5 && !strcmp(name + length - 5, ".bias"))
        return ldexp(2 * k + 1, -(11 + more));
    if (fan_in == 0) /* a norm's weight */
        return dense ? 1 + ldexp(2 * floor_shift(k, 4) + 1, -23) : 1 + ldexp(floor_shift(k, 3), -7);
    int e = 0;
    while (ldexp(2, 2 * e) < 21845.0 * (double)fan_in) e++;
    return ldexp(2 * k + 1, -(e + more));
}

int main(int argc, char **argv) {
    if (argc < 4) {
        fprintf(stderr, "usage: %s NAME FAN_IN COUNT [dense]\n", argv[0]);
        return 2;
    }
    const char *name = argv[1];
    long fan_in = atol(argv[2]), count = atol(argv[3]);
    int dense = argc > 4 && !strcmp(argv[4], "dense"), size = dense ? 4 : 1;
    char *text = malloc(strlen(name) + 3);
    uint64_t key[2], words[4];
    strcat(strcpy(text, "1:"), name);
    key_of(text, key);
    free(text);
    for (long i = 0; i < count; i++) {
        long place = i * size % 32; /* bytes of a block */
        if (place == 0) philox((uint64_t)(i * size / 32 + 1), key, words);
        uint32_t bits = (uint32_t)(words[place / 8] >> 8 * (place % 8));
        int k = dense ? floor_shift((int32_t)bits, 8) : (int8_t)bits;
        printf("%.17g\n", value(k, name, fan_in, dense));
    }
    return 0;
}
