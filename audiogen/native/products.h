// Products of rows by packed weights, of each kind.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "interface.h"
#include "team.h"
#include "vectors.h"

namespace {

struct Input {  // rows of activations as a kernel reads them
    uint32_t *words;   // [rows, stride]
    int64_t num_words, stride;
    float *scales;     // int8, int4: [rows, groups], of a group's values
    int32_t *offsets;  // the same: minus what weights are too large by, times the sum of a group's values
    int64_t groups;
};

// Words from those that a kernel works on to those that it requests meanwhile: the processor's own prefetching stops at
// every page, and 4 panels are 4 streams. 1.3 to 1.45 times as fast, measured on an AMD Zen 5. NONE: they are near.
constexpr int64_t FAR = 128, NEAR = 24, NONE = 0;

// sum[p][r] = add(sum[p][r], weights of word k in panel p, r, k, turn) for k from first to last, part by part. A kernel
// that takes a word in several turns has few values in registers in each of them.
template <class Part, int64_t AHEAD, int TURNS = 1, class Whole, class Add, int P, int R>
INLINE void accumulate(const uint32_t *panels, int64_t num_words, int64_t first, int64_t last, Whole (&sum)[P][R],
                       const Add &add) {
    Part s[P][R][PARTS];
    memcpy(s, sum, sizeof s);
    for (int64_t k = first; k < last; ++k) {
        UNROLL for (int p = 0; p < P; ++p) {
            const uint32_t *w = panels + (p * num_words + k) * LANES;
            if (AHEAD) __builtin_prefetch(w + AHEAD * LANES);
            UNROLL for (int turn = 0; turn < TURNS; ++turn) {
                UNROLL for (int r = 0; r < R; ++r) {
                    UNROLL for (int i = 0; i < PARTS; ++i) s[p][r][i] = add(s[p][r][i], w + i * WIDTH, r, k, turn);
                }
            }
        }
    }
    memcpy(sum, s, sizeof s);
}

// VALUES: in a word of weights. panel_words, input_words: of one output's weights and of a row's inputs.
struct Float32 {
    static constexpr int64_t VALUES = 1;
    static int64_t panel_words(int64_t inputs) { return inputs; }
    static int64_t input_words(int64_t inputs) { return inputs; }
    static void read(const float *x, int64_t count, const Input &in, int64_t row) {
        memcpy(in.words + row * in.stride, x, count * sizeof(float));
    }

    template <int64_t AHEAD, int P, int R>
    static INLINE void dot(const uint32_t *panels, int64_t num_words, const Input &in, int64_t row,
                           Floats (&sum)[P][R]) {
        const float *x[R];
        for (int r = 0; r < R; ++r) x[r] = reinterpret_cast<const float *>(in.words) + (row + r) * in.stride;
        accumulate<FloatPart, AHEAD>(panels, num_words, 0, num_words, sum,
                                     [&](FloatPart s, const uint32_t *w, int r, int64_t k, int) INLINED {
            return s + load<FloatPart>(w) * x[r][k];
        });
    }
};

// The processor's own bfloat16: 32 floats as 16 words, and sum + both products in each lane of weights by one word.
#if defined(__AVX512BF16__)
INLINE Words to_pairs(const float *x) {
    return bits<Words>(_mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + LANES), _mm512_loadu_ps(x)));
}
INLINE FloatPart add_pairs(FloatPart sum, const uint32_t *weights, uint32_t x) {
    const __m512bh w = (__m512bh)_mm512_loadu_si512(weights), xs = (__m512bh)_mm512_set1_epi32(int(x));
    return bits<FloatPart>(_mm512_dpbf16_ps(bits<__m512>(sum), w, xs));
}
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
INLINE Words to_pairs(const float *x) {
    bfloat16x8_t both[4];
    for (int i = 0; i < 4; ++i)
        both[i] = vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(vld1q_f32(x + 8 * i)), vld1q_f32(x + 8 * i + 4));
    return load<Words>(both);
}
INLINE FloatPart add_pairs(FloatPart sum, const uint32_t *weights, uint32_t x) {
    const bfloat16x8_t w = vreinterpretq_bf16_u32(vld1q_u32(weights)), xs = vreinterpretq_bf16_u32(vdupq_n_u32(x));
    return bits<FloatPart>(vbfdotq_f32(bits<float32x4_t>(sum), w, xs));
}
#endif

struct BFloat16 {
    static constexpr int64_t VALUES = 2;
    static int64_t panel_words(int64_t inputs) { return (inputs + 1) / 2; }
#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    static int64_t input_words(int64_t inputs) { return panel_words(inputs); }
    static void read(const float *x, int64_t count, const Input &in, int64_t row) {  // x has zeros up to 64 values
        uint32_t *to = in.words + row * in.stride;
        for (int64_t i = 0; i < in.num_words; i += LANES) {
            const Words both = to_pairs(x + 2 * i);
            memcpy(to + i, &both, std::min(LANES, in.num_words - i) * sizeof(uint32_t));
        }
        (void)count;
    }

    template <int64_t AHEAD, int P, int R>
    static INLINE void dot(const uint32_t *panels, int64_t num_words, const Input &in, int64_t row,
                           Floats (&sum)[P][R]) {
        const uint32_t *x[R];
        for (int r = 0; r < R; ++r) x[r] = in.words + (row + r) * in.stride;
        accumulate<FloatPart, AHEAD>(panels, num_words, 0, num_words, sum,
                                     [&](FloatPart s, const uint32_t *w, int r, int64_t k, int) INLINED {
            return add_pairs(s, w, x[r][k]);
        });
    }
#else
    // Without products of bfloat16, the input stays float32: one shift or mask turns half a word into floats.
    static int64_t input_words(int64_t inputs) { return 2 * panel_words(inputs); }
    static void read(const float *x, int64_t count, const Input &in, int64_t row) {
        float *to = reinterpret_cast<float *>(in.words) + row * in.stride;
        memcpy(to, x, count * sizeof(float));
        if (count < in.num_words) to[count] = 0.0f;
    }

    template <int64_t AHEAD, int P, int R>
    static INLINE void dot(const uint32_t *panels, int64_t num_words, const Input &in, int64_t row,
                           Floats (&sum)[P][R]) {
        const float *x[R];
        for (int r = 0; r < R; ++r) x[r] = reinterpret_cast<const float *>(in.words) + (row + r) * in.stride;
        accumulate<FloatPart, AHEAD, 2>(panels, num_words, 0, num_words, sum,
                                        [&](FloatPart s, const uint32_t *w, int r, int64_t k, int turn) INLINED {
            const WordPart pair = load<WordPart>(w);
            return s + (turn ? high_half(pair) : low_half(pair)) * x[r][2 * k + turn];
        });
    }
#endif
};

// sum + four products of 8 bits in each lane: weights with 128 added, by one word of inputs; see Input::offsets.
INLINE IntPart add_products(IntPart sum, const uint32_t *weights, uint32_t x) {
#if defined(__AVX512VNNI__)
    const __m512i w = _mm512_loadu_si512(weights), xs = _mm512_set1_epi32(int(x));
    return bits<IntPart>(_mm512_dpbusd_epi32(bits<__m512i>(sum), w, xs));
#elif defined(__AVX2__)
    __m256i s[sizeof sum / sizeof(__m256i)];
    memcpy(s, &sum, sizeof s);
    const __m256i xs = _mm256_set1_epi32(int(x)), top = _mm256_set1_epi8(char(0x80)), ones = _mm256_set1_epi16(1);
    // pairs of |w| |x| <= 2 * 127 * 127 fit 16 bits, pairs of 255 * 127 would not
    for (size_t i = 0; i < sizeof s / sizeof *s; ++i) {
        const __m256i w = _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(weights) + i), top);
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(xs, w));
        s[i] = _mm256_add_epi32(s[i], _mm256_madd_epi16(pairs, ones));
    }
    memcpy(&sum, s, sizeof s);
    return sum;
#elif defined(__aarch64__)
    const int8x16_t xs = vreinterpretq_s8_u32(vdupq_n_u32(x));
    const int8x16_t w = vreinterpretq_s8_u32(veorq_u32(vld1q_u32(weights), vdupq_n_u32(0x80808080)));
#ifdef __ARM_FEATURE_DOTPROD
    return bits<IntPart>(vdotq_s32(bits<int32x4_t>(sum), w, xs));
#else  // pairs fit 16 bits, as above
    const int16x8_t pairs = vpaddq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(xs)), vmull_high_s8(w, xs));
    return bits<IntPart>(vpadalq_s16(bits<int32x4_t>(sum), pairs));
#endif
#else
    const IntPart w = load<IntPart>(weights) ^ int32_t(0x80808080);
    sum += (w << 24 >> 24) * int8_t(x);
    sum += (w << 16 >> 24) * int8_t(x >> 8);
    sum += (w << 8 >> 24) * int8_t(x >> 16);
    return sum + (w >> 24) * int8_t(x >> 24);
#endif
}
#ifdef __AVX512VNNI__
constexpr int32_t WEIGHT_OFFSET = 128;  // what the kernel's weights are too large by
#else
constexpr int32_t WEIGHT_OFFSET = 0;
#endif

// A row's inputs as bytes, four in a word, with a scale and an offset for each group. x has zeros up to 64 values.
template <int32_t WEIGHTS_TOO_LARGE_BY> void quantise(const float *x, const Input &in, int64_t row) {
    int8_t quantised[GROUP];
    for (int64_t group = 0; group < in.groups; ++group, x += GROUP) {
        Floats top = splat(0.0f);
        for (int64_t i = 0; i < GROUP; i += LANES) top = larger(top, magnitude(load<Floats>(x + i)));
        const float most = largest(top), factor = most > 1e-30f ? 127.0f / most : 0.0f;
        Ints sum = {};
        for (int64_t i = 0; i < GROUP; i += LANES) {
            const Ints q = bits<Ints>(load<Floats>(x + i) * factor + ROUND) - 0x4b400000;
            sum += q;
            store(quantised + i, __builtin_convertvector(q, Bytes));
        }
        int32_t all = 0;
        for (int lane = 0; lane < LANES; ++lane) all += sum[lane];
        in.scales[row * in.groups + group] = most / 127.0f;
        in.offsets[row * in.groups + group] = -WEIGHTS_TOO_LARGE_BY * all;
        const int64_t first = group * (GROUP / 4), left = std::min(GROUP / 4, in.num_words - first);
        memcpy(in.words + row * in.stride + first, quantised, left * sizeof(uint32_t));
    }
}

struct Int8 {
    static constexpr int64_t VALUES = 4;
    static int64_t panel_words(int64_t inputs) { return (inputs + 3) / 4; }
    static int64_t input_words(int64_t inputs) { return panel_words(inputs); }
    static void read(const float *x, int64_t, const Input &in, int64_t row) { quantise<WEIGHT_OFFSET>(x, in, row); }

    template <int64_t AHEAD, int P, int R>
    static INLINE void dot(const uint32_t *panels, int64_t num_words, const Input &in, int64_t row,
                           Floats (&sum)[P][R]) {
        const uint32_t *x[R];
        for (int r = 0; r < R; ++r) x[r] = in.words + (row + r) * in.stride;
        for (int64_t group = 0; group < in.groups; ++group) {
            const int64_t first = group * (GROUP / VALUES), last = std::min(first + GROUP / VALUES, num_words);
            Ints s[P][R];
            for (int r = 0; r < R; ++r)
                for (int p = 0; p < P; ++p) s[p][r] = Ints{} + in.offsets[(row + r) * in.groups + group];
            accumulate<IntPart, std::min(AHEAD, NEAR)>(panels, num_words, first, last, s,
                                [&](IntPart part, const uint32_t *w, int r, int64_t k, int) INLINED {
                return add_products(part, w, x[r][k]);
            });
            for (int r = 0; r < R; ++r) {
                const float scale = in.scales[(row + r) * in.groups + group];
                for (int p = 0; p < P; ++p) sum[p][r] += __builtin_convertvector(s[p][r], Floats) * scale;
            }
        }
    }
};

// sums + four products of bytes in each lane: of weights from 0 to 15 by one word of inputs.
INLINE IntPart add_small(IntPart sum, WordPart weights, uint32_t x) {
#if defined(__AVX512VNNI__)
    return bits<IntPart>(_mm512_dpbusd_epi32(bits<__m512i>(sum), bits<__m512i>(weights), _mm512_set1_epi32(int(x))));
#elif defined(__AVX2__)  // sums of 16 bits, see widen
    WordPart xs = WordPart{} + x;
    for (int64_t i = 0; i < int64_t(sizeof sum / sizeof(__m256i)); ++i) {
        __m256i s = load<__m256i>(reinterpret_cast<char *>(&sum) + 32 * i);
        const __m256i w = load<__m256i>(reinterpret_cast<char *>(&weights) + 32 * i);
        s = _mm256_add_epi16(s, _mm256_maddubs_epi16(w, load<__m256i>(reinterpret_cast<char *>(&xs))));
        store(reinterpret_cast<char *>(&sum) + 32 * i, s);
    }
    return sum;
#elif defined(__aarch64__)
    const int8x16_t w = vreinterpretq_s8_u32(bits<uint32x4_t>(weights)), xs = vreinterpretq_s8_u32(vdupq_n_u32(x));
#ifdef __ARM_FEATURE_DOTPROD
    return bits<IntPart>(vdotq_s32(bits<int32x4_t>(sum), w, xs));
#else
    const int16x8_t pairs = vpaddq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(xs)), vmull_high_s8(w, xs));
    return bits<IntPart>(vpadalq_s16(bits<int32x4_t>(sum), pairs));
#endif
#else
    const IntPart w = bits<IntPart>(weights);
    sum += (w & 15) * int8_t(x);
    sum += (w >> 8 & 15) * int8_t(x >> 8);
    sum += (w >> 16 & 15) * int8_t(x >> 16);
    return sum + (w >> 24) * int8_t(x >> 24);
#endif
}
#if defined(__AVX2__) && !defined(__AVX512VNNI__)
constexpr int64_t SMALL_WORDS = 4;  // of weights whose sums fit 16 bits: 4 words x 2 halves x 2 products <= 16 * 15 * 127
INLINE Ints widen(Ints sums) {
    __m256i parts[2];
    memcpy(parts, &sums, sizeof parts);
    for (__m256i &each : parts) each = _mm256_madd_epi16(each, _mm256_set1_epi16(1));
    return bits<Ints>(parts);
}
#else
constexpr int64_t SMALL_WORDS = 8;
INLINE Ints widen(Ints sums) { return sums; }
#endif

// Of each GROUP inputs a word with the output's scale, then words of 8 weights with 8 added: the low halves of the bytes
// are those of the first four inputs.
struct Int4 {
    static constexpr int64_t VALUES = 8, GROUP_WORDS = GROUP / 8;
    static int64_t panel_words(int64_t inputs) { return up(inputs, GROUP) / GROUP * (1 + GROUP_WORDS); }
    static int64_t input_words(int64_t inputs) { return up(inputs, GROUP) / 4; }
    static void read(const float *x, int64_t, const Input &in, int64_t row) { quantise<8>(x, in, row); }

    template <int64_t AHEAD, int P, int R>
    static INLINE void dot(const uint32_t *panels, int64_t num_words, const Input &in, int64_t row,
                           Floats (&sum)[P][R]) {
        for (int64_t group = 0; group < in.groups; ++group) {
            const int64_t scales = group * (1 + GROUP_WORDS), first = scales + 1;
            const uint32_t *x[R];
            for (int r = 0; r < R; ++r)
                x[r] = in.words + (row + r) * in.stride + group * (GROUP / 4) - 2 * first;
            Ints s[P][R];
            for (int r = 0; r < R; ++r)
                for (int p = 0; p < P; ++p) s[p][r] = Ints{} + in.offsets[(row + r) * in.groups + group];
            for (int64_t word = first; word < first + GROUP_WORDS; word += SMALL_WORDS) {
                Ints small[P][R] = {};
                accumulate<IntPart, std::min(AHEAD, NEAR), 2>(panels, num_words, word, word + SMALL_WORDS, small,
                                    [&](IntPart part, const uint32_t *w, int r, int64_t k, int turn) INLINED {
                    const WordPart both = load<WordPart>(w);
                    return add_small(part, (turn ? both >> 4 : both) & 0x0f0f0f0fu, x[r][2 * k + turn]);
                });
                for (int i = 0; i < P * R; ++i) s[i / R][i % R] += widen(small[i / R][i % R]);
            }
            for (int p = 0; p < P; ++p) {
                const Floats of_weights = load<Floats>(panels + (p * num_words + scales) * LANES);
                for (int r = 0; r < R; ++r)
                    sum[p][r] += __builtin_convertvector(s[p][r], Floats) * of_weights *
                                 in.scales[(row + r) * in.groups + group];
            }
        }
    }
};

enum Mode { WRITE, ADD, GELU };

struct Output {
    float *rows;
    int64_t stride;
    Mode mode;
    const int64_t *which;  // the rows to write; null: all in turn
};

// A row's finished sums of a panel.
INLINE void put(const Linear &linear, int64_t panel, int64_t row, Floats y, const Output &out) {
    if (linear.scales) y *= load<Floats>(linear.scales + panel * LANES);
    float *to = out.rows + (out.which ? out.which[row] : row) * out.stride + panel * LANES;
    store(to, out.mode == WRITE ? y : out.mode == ADD ? load<Floats>(to) + y : gelu(y));
}

template <class Type, int64_t AHEAD, int P, int R>
__attribute__((noinline))  // among its callers' values, pointers to inputs would not stay in registers
void tile(const Linear &linear, const Input &in, int64_t panel, int64_t row, const Output &out) {
    const int64_t num_words = Type::panel_words(linear.inputs);
    Floats sum[P][R];
    for (int i = 0; i < P * R; ++i) sum[i / R][i % R] = Floats{};
    Type::template dot<AHEAD, P, R>(linear.panels + panel * num_words * LANES, num_words, in, row, sum);
    for (int p = 0; p < P; ++p)
        for (int r = 0; r < R; ++r) put(linear, panel + p, row + r, sum[p][r], out);
}

}  // namespace
