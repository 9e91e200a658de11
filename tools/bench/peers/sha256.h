/* SHA-256 (FIPS 180-4) and HMAC (RFC 2104), so that the receiver needs no library. */
#ifndef SHA256_H
#define SHA256_H
#include <stdint.h>
#include <string.h>

struct sha256_state {
    uint32_t words[8];
    uint64_t length;
    uint8_t block[64];
    size_t used;
};

/* A key's two padded blocks, hashed once. */
struct hmac_key {
    struct sha256_state inner, outer;
};

static const uint32_t sha256_constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
    0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
    0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
    0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
    0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
    0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
    0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
    0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
    0xc67178f2};

static inline uint32_t turned(uint32_t word, int by) { return word >> by | word << (32 - by); }

static void sha256_block(uint32_t state[8], const uint8_t *block) {
    uint32_t w[64];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 |
               (uint32_t)block[4 * i + 2] << 8 | block[4 * i + 3];
    for (int i = 16; i < 64; i++) {
        uint32_t one = turned(w[i - 15], 7) ^ turned(w[i - 15], 18) ^ w[i - 15] >> 3;
        uint32_t two = turned(w[i - 2], 17) ^ turned(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + one + w[i - 7] + two;
    }
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (int i = 0; i < 64; i++) {
        uint32_t one = h + (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) +
                       ((e & f) ^ (~e & g)) + sha256_constants[i] + w[i];
        uint32_t two = (turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) +
                       ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + one;
        d = c, c = b, b = a, a = one + two;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d;
    state[4] += e, state[5] += f, state[6] += g, state[7] += h;
}

static void sha256_begin(struct sha256_state *state) {
    static const uint32_t initial[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    memcpy(state->words, initial, sizeof initial);
    state->length = 0;
    state->used = 0;
}

static void sha256_add(struct sha256_state *state, const uint8_t *data, size_t length) {
    state->length += length;
    while (length > 0) {
        size_t part = 64 - state->used < length ? 64 - state->used : length;
        memcpy(state->block + state->used, data, part);
        state->used += part;
        data += part;
        length -= part;
        if (state->used == 64) {
            sha256_block(state->words, state->block);
            state->used = 0;
        }
    }
}

static void sha256_end(struct sha256_state *state, uint8_t digest[32]) {
    uint8_t tail[72] = {0x80};
    uint64_t bits = state->length * 8;
    size_t padding = (state->used < 56 ? 56 : 120) - state->used;
    for (int i = 0; i < 8; i++) tail[padding + (size_t)i] = (uint8_t)(bits >> (56 - 8 * i));
    sha256_add(state, tail, padding + 8);
    for (int i = 0; i < 32; i++) digest[i] = (uint8_t)(state->words[i / 4] >> (24 - i % 4 * 8));
}

static void sha256(const uint8_t *data, size_t length, uint8_t digest[32]) {
    struct sha256_state state;
    sha256_begin(&state);
    sha256_add(&state, data, length);
    sha256_end(&state, digest);
}

static void hmac_prepare(struct hmac_key *key, const uint8_t *secret, size_t length) {
    uint8_t block[64] = {0};
    if (length > 64)
        sha256(secret, length, block);
    else
        memcpy(block, secret, length);
    for (int i = 0; i < 64; i++) block[i] ^= 0x36;
    sha256_begin(&key->inner);
    sha256_add(&key->inner, block, 64);
    for (int i = 0; i < 64; i++) block[i] ^= 0x36 ^ 0x5c;
    sha256_begin(&key->outer);
    sha256_add(&key->outer, block, 64);
}

static void hmac_sha256(const struct hmac_key *key, const uint8_t *data, size_t length,
                        uint8_t digest[32]) {
    struct sha256_state state = key->inner;
    sha256_add(&state, data, length);
    sha256_end(&state, digest);
    state = key->outer;
    sha256_add(&state, digest, 32);
    sha256_end(&state, digest);
}

static void hex_of(const uint8_t digest[32], char hex[64]) {
    for (int i = 0; i < 32; i++) {
        hex[2 * i] = "0123456789abcdef"[digest[i] >> 4];
        hex[2 * i + 1] = "0123456789abcdef"[digest[i] & 15];
    }
}
#endif
