/* Raw deflate streams (RFC 1951), from memory to memory. */
#ifndef INFLATE_H
#define INFLATE_H
#include <stdint.h>
#include <string.h>

#define INFLATE_LONGEST_CODE 15
#define INFLATE_SYMBOLS 320

struct inflate_bits {
    const uint8_t *at, *end;
    uint64_t held;
    unsigned count;
};

/* What the next bits mean: a symbol and the length of its code, 0 for no code. */
struct inflate_table {
    unsigned bits;
    uint16_t entries[1 << INFLATE_LONGEST_CODE];
};

static void inflate_refill(struct inflate_bits *in)
{
    while (in->count <= 56 && in->at < in->end) {
        in->held |= (uint64_t)*in->at++ << in->count;
        in->count += 8;
    }
}

/* The next bits, at most 32 of them; -1 where there are not so many. */
static int64_t inflate_take(struct inflate_bits *in, unsigned bits)
{
    if (in->count < bits)
        inflate_refill(in);
    if (in->count < bits)
        return -1;
    int64_t value = (int64_t)(in->held & (((uint64_t)1 << bits) - 1));
    in->held >>= bits;
    in->count -= bits;
    return value;
}

/* Make a table of the lengths of the symbols' codes; -1 where these are no code. */
static int inflate_build(struct inflate_table *table, const uint8_t *lengths, unsigned symbols)
{
    unsigned counts[INFLATE_LONGEST_CODE + 1] = {0};
    for (unsigned symbol = 0; symbol < symbols; symbol++)
        counts[lengths[symbol]]++;
    counts[0] = 0;
    unsigned next[INFLATE_LONGEST_CODE + 2] = {0}, longest = 1;
    for (unsigned length = 1; length <= INFLATE_LONGEST_CODE; length++) {
        next[length + 1] = (next[length] + counts[length]) << 1;
        if (next[length] + counts[length] > 1u << length)
            return -1;
        if (counts[length] != 0)
            longest = length;
    }
    table->bits = longest;
    memset(table->entries, 0, sizeof(uint16_t) << longest);
    for (unsigned symbol = 0; symbol < symbols; symbol++) {
        unsigned length = lengths[symbol];
        if (length == 0)
            continue;
        unsigned code = next[length]++, reversed = 0;
        for (unsigned bit = 0; bit < length; bit++)
            reversed |= (code >> bit & 1) << (length - 1 - bit);
        for (unsigned at = reversed; at < 1u << longest; at += 1u << length)
            table->entries[at] = (uint16_t)(symbol << 4 | length);
    }
    return 0;
}

static int inflate_symbol(struct inflate_bits *in, const struct inflate_table *table)
{
    if (in->count < INFLATE_LONGEST_CODE)
        inflate_refill(in);
    uint16_t entry = table->entries[in->held & ((1u << table->bits) - 1)];
    unsigned length = entry & 15;
    if (length == 0 || length > in->count)
        return -1;
    in->held >>= length;
    in->count -= length;
    return entry >> 4;
}

/* The tables of a block that brings its own. */
static int inflate_read_tables(struct inflate_bits *in, struct inflate_table *symbols,
                               struct inflate_table *distances)
{
    static const uint8_t order[19] = {16, 17, 18, 0, 8,  7, 9,  6, 10, 5,
                                      11, 4,  12, 3, 13, 2, 14, 1, 15};
    uint8_t lengths[INFLATE_SYMBOLS + 138] = {0};
    int64_t literals = inflate_take(in, 5), ranges = inflate_take(in, 5),
            given = inflate_take(in, 4);
    if (literals < 0 || ranges < 0 || given < 0)
        return -1;
    literals += 257, ranges += 1, given += 4;
    for (int position = 0; position < given; position++) {
        int64_t length = inflate_take(in, 3);
        if (length < 0)
            return -1;
        lengths[order[position]] = (uint8_t)length;
    }
    if (inflate_build(symbols, lengths, 19) < 0)
        return -1;
    memset(lengths, 0, sizeof lengths);
    for (unsigned at = 0; at < literals + ranges;) {
        int symbol = inflate_symbol(in, symbols);
        if (symbol < 0)
            return -1;
        if (symbol < 16) {
            lengths[at++] = (uint8_t)symbol;
            continue;
        }
        static const unsigned more[3] = {2, 3, 7}, least[3] = {3, 3, 11};
        int64_t times = inflate_take(in, more[symbol - 16]);
        if (times < 0 || (symbol == 16 && at == 0))
            return -1;
        times += least[symbol - 16];
        if (at + times > literals + ranges)
            return -1;
        memset(lengths + at, symbol == 16 ? lengths[at - 1] : 0, (size_t)times);
        at += times;
    }
    if (inflate_build(symbols, lengths, (unsigned)literals) < 0)
        return -1;
    return inflate_build(distances, lengths + literals, (unsigned)ranges);
}

static int inflate_fixed_tables(struct inflate_table *symbols, struct inflate_table *distances)
{
    uint8_t lengths[288];
    memset(lengths, 8, sizeof lengths);
    memset(lengths + 144, 9, 112);
    memset(lengths + 256, 7, 24);
    if (inflate_build(symbols, lengths, 288) < 0)
        return -1;
    memset(lengths, 5, 30);
    return inflate_build(distances, lengths, 30);
}

static int inflate_stored(struct inflate_bits *in, uint8_t *out, size_t room, size_t *used)
{
    inflate_take(in, in->count % 8);
    int64_t length = inflate_take(in, 16), check = inflate_take(in, 16);
    if (length < 0 || check != (length ^ 0xffff) || (size_t)length > room - *used)
        return -1;
    for (; length > 0; length--) {
        int64_t byte = inflate_take(in, 8);
        if (byte < 0)
            return -1;
        out[(*used)++] = (uint8_t)byte;
    }
    return 0;
}

static int inflate_coded(struct inflate_bits *in, const struct inflate_table *symbols,
                         const struct inflate_table *distances, uint8_t *out, size_t room,
                         size_t *used)
{
    static const uint16_t lengths[29] = {3,  4,  5,  6,  7,  8,  9,  10, 11,  13,
                                         15, 17, 19, 23, 27, 31, 35, 43, 51,  59,
                                         67, 83, 99, 115, 131, 163, 195, 227, 258};
    static const uint8_t longer[29] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2,
                                       2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
    static const uint16_t ranges[30] = {1,   2,   3,   4,   5,   7,    9,    13,   17,   25,
                                        33,  49,  65,  97,  129, 193,  257,  385,  513,  769,
                                        1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385,
                                        24577};
    static const uint8_t farther[30] = {0, 0, 0, 0, 1, 1, 2, 2,  3,  3,  4,  4,  5,  5,  6,
                                        6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13};
    for (;;) {
        int symbol = inflate_symbol(in, symbols);
        if (symbol < 0 || symbol > 285)
            return -1;
        if (symbol == 256)
            return 0;
        if (symbol < 256) {
            if (*used == room)
                return -1;
            out[(*used)++] = (uint8_t)symbol;
            continue;
        }
        int64_t more = inflate_take(in, longer[symbol - 257]);
        int range = inflate_symbol(in, distances);
        if (more < 0 || range < 0 || range > 29)
            return -1;
        int64_t far = inflate_take(in, farther[range]);
        if (far < 0)
            return -1;
        size_t length = lengths[symbol - 257] + (size_t)more;
        size_t distance = ranges[range] + (size_t)far;
        if (distance > *used || length > room - *used)
            return -1;
        for (; length > 0; length--, (*used)++)
            out[*used] = out[*used - distance];
    }
}

/* Inflate a stream into exactly so many bytes; -1 where it is none, or of another length. */
static int inflate_all(const uint8_t *packed, size_t length, uint8_t *out, size_t room)
{
    static struct inflate_table symbols, distances;
    struct inflate_bits in = {packed, packed + length, 0, 0};
    size_t used = 0;
    int64_t last;
    do {
        last = inflate_take(&in, 1);
        int64_t kind = inflate_take(&in, 2);
        if (last < 0 || kind < 0 || kind == 3)
            return -1;
        if (kind == 0) {
            if (inflate_stored(&in, out, room, &used) < 0)
                return -1;
            continue;
        }
        if ((kind == 1 ? inflate_fixed_tables(&symbols, &distances)
                       : inflate_read_tables(&in, &symbols, &distances)) < 0)
            return -1;
        if (inflate_coded(&in, &symbols, &distances, out, room, &used) < 0)
            return -1;
    } while (!last);
    return used == room ? 0 : -1;
}

#endif
