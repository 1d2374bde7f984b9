// Keys and values of a head in the cache, and attention to them.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "vectors.h"

namespace {

// Keys and values of one head: keys in panels of 16 positions, values by position with zeros up to 16. As float32, or
// bfloat16 two by two.
template <bool exact> struct Head {
    typedef std::conditional_t<exact, float, uint16_t> Value;
    static constexpr int64_t VALUES = exact ? 1 : 2;

    static int64_t key_bytes(int64_t width, int64_t positions) {
        return up(positions, LANES) * ((width + VALUES - 1) / VALUES) * 4;
    }
    static int64_t value_bytes(int64_t width, int64_t positions) {
        return positions * up(width, LANES) * int64_t(sizeof(Value));
    }

    Head(char *keys, char *values, int64_t index, int64_t width, int64_t positions)
        : keys(keys + index * key_bytes(width, positions)),
          values(reinterpret_cast<Value *>(values + index * value_bytes(width, positions))), width(width) {}

    static INLINE Value value(float x) {
        if constexpr (exact) return x;
        else return to_bfloat16(x);
    }

    void write(int64_t position, const float *key, const float *to_value) {
        const int64_t num_words = (width + VALUES - 1) / VALUES, wide = up(width, LANES);
        Value *to = reinterpret_cast<Value *>(keys) +
                    (position / LANES * num_words * LANES + position % LANES) * VALUES;
        for (int64_t i = 0; i < num_words * VALUES; ++i)
            to[i / VALUES * LANES * VALUES + i % VALUES] = value(i < width ? key[i] : 0.0f);
        for (int64_t i = 0; i < wide; ++i) values[position * wide + i] = value(i < width ? to_value[i] : 0.0f);
    }

    // softmax(query . keys / sqrt(width)) . values over the first `count` positions. weights: room for up(count, 16).
    void attend(const float *query, int64_t count, float *weights, float *out) const {
        const int64_t num_words = (width + VALUES - 1) / VALUES;
        const float scale = 1.0f / std::sqrt(float(width));
        Floats top = splat(-INFINITY);
        for (int64_t t = 0; t < count; t += LANES) {
            const uint32_t *panel = reinterpret_cast<const uint32_t *>(keys) + t * num_words;
            FloatPart even[PARTS] = {}, odd[PARTS] = {};
            for (int64_t line = 0; line < num_words; ++line) __builtin_prefetch(panel + (num_words + line) * LANES);
            int64_t k = 0;
            if constexpr (exact) {
                for (; k + 1 < width; k += 2, panel += 2 * LANES)
                    UNROLL for (int i = 0; i < PARTS; ++i) {
                        even[i] += load<FloatPart>(panel + i * WIDTH) * query[k];
                        odd[i] += load<FloatPart>(panel + LANES + i * WIDTH) * query[k + 1];
                    }
                if (k < width)
                    UNROLL for (int i = 0; i < PARTS; ++i) even[i] += load<FloatPart>(panel + i * WIDTH) * query[k];
            } else {
                for (; k + 1 < width; k += 2, panel += LANES)
                    UNROLL for (int i = 0; i < PARTS; ++i) {
                        const WordPart pair = load<WordPart>(panel + i * WIDTH);
                        even[i] += low_half(pair) * query[k];
                        odd[i] += high_half(pair) * query[k + 1];
                    }
                if (k < width)
                    UNROLL for (int i = 0; i < PARTS; ++i)
                        even[i] += low_half(load<WordPart>(panel + i * WIDTH)) * query[k];
            }
            UNROLL for (int i = 0; i < PARTS; ++i) even[i] += odd[i];
            const Floats scores = bits<Floats>(even) * scale;
            store(weights + t, scores);
            if (t + LANES <= count) top = larger(top, scores);
        }
        for (int64_t t = 0; t < 16; ++t)
            for (int64_t i = 0; i < width; i += 64 / sizeof(Value)) __builtin_prefetch(values + t * up(width, LANES) + i);
        float most = largest(top);  // lanes past the count hold anything
        for (int64_t t = count / LANES * LANES; t < count; ++t) most = std::max(most, weights[t]);
        Floats sums = {};
        for (int64_t t = 0; t < count; t += LANES) {
            for (int64_t past = count; past < t + LANES; ++past) weights[past] = -INFINITY;
            const Floats e = exponential(load<Floats>(weights + t) - most);
            store(weights + t, e);
            sums += e;
        }
        const float factor = 1.0f / total(sums);
        int64_t i = 0;
        for (; i + LANES < width; i += 2 * LANES) mix<2>(i, count, weights, factor, out);
        if (i < width) mix<1>(i, count, weights, factor, out);
    }

    static INLINE FloatPart read(const Value *from) {
        if constexpr (exact) return load<FloatPart>(from);
        else return bits<FloatPart>(__builtin_convertvector(load<HalfPart>(from), WordPart) << 16);
    }

    // out[i ..] = the weighted sum of C vectors of the values.
    template <int C> void mix(int64_t i, int64_t count, const float *weights, float factor, float *out) const {
        FloatPart even[C * PARTS] = {}, odd[C * PARTS] = {};
        const int64_t wide = up(width, LANES);
        const Value *from = values + i;
        int64_t t = 0;
        for (; t + 1 < count; t += 2, from += 2 * wide) {
            if (C == 2) {
                __builtin_prefetch(from + 16 * wide);
                __builtin_prefetch(from + 17 * wide);
            }
            UNROLL for (int c = 0; c < C * PARTS; ++c) {
                even[c] += read(from + c * WIDTH) * weights[t];
                odd[c] += read(from + wide + c * WIDTH) * weights[t + 1];
            }
        }
        if (t < count)
            UNROLL for (int c = 0; c < C * PARTS; ++c) even[c] += read(from + c * WIDTH) * weights[t];
        UNROLL for (int c = 0; c < C * PARTS; ++c) even[c] = (even[c] + odd[c]) * factor;
        memcpy(out + i, even, std::min<int64_t>(C * LANES, width - i) * sizeof(float));
    }

    char *keys;
    Value *values;
    int64_t width;
};

}  // namespace
