// Vectors of 16 values, and what is computed on them alone.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace {

constexpr int64_t LANES = 16, UNIT = 4, GROUP = 64;  // UNIT: panels that a thread takes at a time
constexpr int ROWS = 6;  // that share each read of weights
#ifdef __AVX512F__
constexpr int ACCUMULATORS = 24;
#else
constexpr int ACCUMULATORS = 6;  // of 64 bytes: three quarters of AVX2's or NEON's registers
#endif

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef int8_t Bytes __attribute__((vector_size(16)));

// What fits a register. GCC keeps wider vectors in memory, so sums that grow in a loop are arrays of these, in loops
// that are unrolled.
#if defined(__AVX512F__)
constexpr int PARTS = 1;
#elif defined(__AVX__)
constexpr int PARTS = 2;
#else
constexpr int PARTS = 4;
#endif
constexpr int WIDTH = 16 / PARTS;
typedef float FloatPart __attribute__((vector_size(4 * WIDTH)));
typedef int32_t IntPart __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t WordPart __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t HalfPart __attribute__((vector_size(2 * WIDTH)));
#ifdef __clang__  // which unrolls by itself
#define UNROLL
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

#define INLINED __attribute__((always_inline))
#define INLINE inline INLINED

template <class To, class From> INLINE To bits(const From &from) {
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
// A template loses the attributes of its argument: "packed" says again that memory need not be aligned.
template <class V> struct __attribute__((packed, may_alias)) Unaligned {
    V v;
};
template <class V> INLINE V load(const void *from) { return static_cast<const Unaligned<V> *>(from)->v; }
template <class V> INLINE void store(void *to, V v) { static_cast<Unaligned<V> *>(to)->v = v; }
INLINE Floats splat(float x) { return Floats{} + x; }
INLINE float total(Floats v) {
    float s[16];
    store(s, v);
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; ++i) s[i] += s[i + half];
    return s[0];
}
INLINE float largest(Floats v) {
    float s[16];
    store(s, v);
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; ++i) s[i] = std::max(s[i], s[i + half]);
    return s[0];
}
INLINE int64_t up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

INLINE uint16_t to_bfloat16(float x) {  // to nearest, ties to even; NaN stays NaN
    const uint32_t b = bits<uint32_t>(x);
    if ((b & 0x7fffffff) > 0x7f800000) return uint16_t(b >> 16 | 0x40);
    return uint16_t((b + 0x7fff + (b >> 16 & 1)) >> 16);
}
INLINE FloatPart low_half(WordPart w) { return bits<FloatPart>(w << 16); }
INLINE FloatPart high_half(WordPart w) { return bits<FloatPart>(w & 0xffff0000u); }

// To nearest for |x| below 2^22: added to it, the fraction falls off the significand.
constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23

namespace part {  // of a vector: GCC takes comparisons of wider ones apart into single values

INLINE FloatPart splat(float x) { return FloatPart{} + x; }
INLINE FloatPart choose(IntPart mask, FloatPart yes, FloatPart no) {
    return bits<FloatPart>((bits<IntPart>(yes) & mask) | (bits<IntPart>(no) & ~mask));
}
INLINE FloatPart larger(FloatPart a, FloatPart b) { return choose(a > b, a, b); }
INLINE FloatPart smaller(FloatPart a, FloatPart b) { return choose(a < b, a, b); }
INLINE FloatPart magnitude(FloatPart a) { return bits<FloatPart>(bits<IntPart>(a) & 0x7fffffff); }

INLINE FloatPart inverse_root(FloatPart x) {  // of normal numbers, relative error 2e-7; Newton's method
    FloatPart y = bits<FloatPart>(0x5f3759df - (bits<IntPart>(x) >> 1));  // to 4 %
    for (int i = 0; i < 3; ++i) y = y * (1.5f - 0.5f * x * y * y);
    return y;
}

INLINE FloatPart exponential(FloatPart x) {  // relative error 2e-7; Cephes' expf
    x = smaller(larger(x, splat(-87.0f)), splat(88.0f));
    const FloatPart shifted = x * 1.44269504088896341f + ROUND, n = shifted - ROUND;
    const FloatPart r = x - n * 0.693359375f + n * 2.12194440e-4f;
    FloatPart y = splat(1.9875691500e-4f);
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    return y * bits<FloatPart>((bits<IntPart>(shifted) - 0x4b400000 + 127) << 23);
}

INLINE FloatPart gelu(FloatPart x) {  // x Phi(x); erf by Abramowitz and Stegun, 7.1.26, error 1.5e-7
    const FloatPart z = magnitude(x) * 0.70710678118654752f;
    const FloatPart t = 1.0f / (1.0f + 0.3275911f * z);
    FloatPart y = splat(1.061405429f);
    y = y * t - 1.453152027f;
    y = y * t + 1.421413741f;
    y = y * t - 0.284496736f;
    y = y * t + 0.254829592f;
    const FloatPart tail = 0.5f * y * t * exponential(-z * z);  // 1 - Phi(|x|)
    return x * choose(x < 0.0f, tail, 1.0f - tail);
}

}  // namespace part

template <class F> INLINE Floats by_part(Floats x, const F &f) {
    FloatPart parts[PARTS];
    memcpy(parts, &x, sizeof x);
    UNROLL for (int i = 0; i < PARTS; ++i) parts[i] = f(parts[i], i);
    return bits<Floats>(parts);
}
INLINE Floats larger(Floats a, Floats b) {
    FloatPart others[PARTS];
    memcpy(others, &b, sizeof b);
    return by_part(a, [&](FloatPart x, int i) INLINED { return part::larger(x, others[i]); });
}
INLINE Floats magnitude(Floats a) { return by_part(a, [](FloatPart x, int) INLINED { return part::magnitude(x); }); }
INLINE Floats exponential(Floats a) { return by_part(a, [](FloatPart x, int) INLINED { return part::exponential(x); }); }
INLINE Floats gelu(Floats a) { return by_part(a, [](FloatPart x, int) INLINED { return part::gelu(x); }); }

}  // namespace
