// Fourier transforms of overlapping windows, and the steps of Griffin-Lim between them.
//
// WIDTH frames side by side in the lanes of vectors, so that a frame's values do not depend on its neighbours and any
// length does. A real transform of n samples is a complex one of n / 2, by Stockham's recursion (C. Van Loan,
// Computational Frameworks for the Fast Fourier Transform, 1992, sections 1.7 and 4.3): factors 4, 2, 3 and 5.

#pragma once

#include <cmath>
#include <complex>
#include <vector>

#include "vectors.h"

namespace {

#ifdef __clang__  // which unrolls by itself
#define EACH_LANE
#else
#define EACH_LANE _Pragma("GCC unroll 16")  // as many as there are lanes at most: blocks of vectors stay in registers
#endif

struct Complexes {
    FloatPart re, im;
};
INLINE Complexes operator+(Complexes a, Complexes b) { return {a.re + b.re, a.im + b.im}; }
INLINE Complexes operator-(Complexes a, Complexes b) { return {a.re - b.re, a.im - b.im}; }
INLINE Complexes operator*(Complexes a, float s) { return {a.re * s, a.im * s}; }
INLINE Complexes operator*(Complexes a, std::complex<float> w) {
    return {a.re * w.real() - a.im * w.imag(), a.re * w.imag() + a.im * w.real()};
}
INLINE Complexes turned(Complexes a) { return {a.im, -a.re}; }  // times -i
INLINE Complexes conjugate(Complexes a) { return {a.re, -a.im}; }

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, IntPart{__VA_ARGS__})
#endif

// The low or the high halves of two vectors, value by value in turn.
INLINE FloatPart zip_low(FloatPart a, FloatPart b) {
#if defined(__AVX512F__)
    return SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#elif defined(__AVX__)
    return SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
    return SHUFFLE(a, b, 0, 4, 1, 5);
#endif
}
INLINE FloatPart zip_high(FloatPart a, FloatPart b) {
#if defined(__AVX512F__)
    return SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif defined(__AVX__)
    return SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
    return SHUFFLE(a, b, 2, 6, 3, 7);
#endif
}
#undef SHUFFLE

// Value j of vector i becomes value i of vector j.
INLINE void transpose(FloatPart (&v)[WIDTH]) {
    EACH_LANE for (int round = 1; round < WIDTH; round *= 2) {
        FloatPart zipped[WIDTH];
        EACH_LANE for (int i = 0; i < WIDTH / 2; ++i) {
            zipped[2 * i] = zip_low(v[i], v[i + WIDTH / 2]);
            zipped[2 * i + 1] = zip_high(v[i], v[i + WIDTH / 2]);
        }
        EACH_LANE for (int i = 0; i < WIDTH; ++i) v[i] = zipped[i];
    }
}

// Rows of `length` values, `stride` apart, to [length] vectors of a value of each row, and back.
void to_lanes(const float *rows, int64_t stride, int64_t num_rows, int64_t length, FloatPart *lanes) {
    for (int64_t at = 0; at < length; at += WIDTH) {
        const int64_t count = std::min<int64_t>(WIDTH, length - at);
        FloatPart block[WIDTH] = {};
        if (count == WIDTH && num_rows == WIDTH) {
            EACH_LANE for (int row = 0; row < WIDTH; ++row) block[row] = load<FloatPart>(rows + row * stride + at);
        } else {
            for (int64_t row = 0; row < num_rows; ++row) memcpy(&block[row], rows + row * stride + at, 4 * count);
        }
        transpose(block);
        if (count == WIDTH) {
            EACH_LANE for (int i = 0; i < WIDTH; ++i) lanes[at + i] = block[i];
        } else {
            for (int64_t i = 0; i < count; ++i) lanes[at + i] = block[i];
        }
    }
}
void from_lanes(const FloatPart *lanes, int64_t length, float *rows, int64_t stride, int64_t num_rows) {
    for (int64_t at = 0; at < length; at += WIDTH) {
        const int64_t count = std::min<int64_t>(WIDTH, length - at);
        FloatPart block[WIDTH] = {};
        for (int64_t i = 0; i < count; ++i) block[i] = lanes[at + i];
        transpose(block);
        if (count == WIDTH && num_rows == WIDTH) {
            EACH_LANE for (int row = 0; row < WIDTH; ++row) store(rows + row * stride + at, block[row]);
        } else {
            for (int64_t row = 0; row < num_rows; ++row) memcpy(rows + row * stride + at, &block[row], 4 * count);
        }
    }
}

// Discrete Fourier transforms of `radix` values that lie `step` apart, into y.
template <int radix> INLINE void butterfly(const Complexes *x, int64_t step, Complexes (&y)[radix]) {
    if constexpr (radix == 2) {
        y[0] = x[0] + x[step], y[1] = x[0] - x[step];
    } else if constexpr (radix == 4) {
        const Complexes a = x[0] + x[2 * step], b = x[0] - x[2 * step];
        const Complexes c = x[step] + x[3 * step], d = turned(x[step] - x[3 * step]);
        y[0] = a + c, y[1] = b + d, y[2] = a - c, y[3] = b - d;
    } else {  // odd: pairs of values with the same cosines and opposite sines
        constexpr int half = radix / 2;
        Complexes sums[half], differences[half];
        y[0] = x[0];
        for (int j = 0; j < half; ++j) {
            sums[j] = x[(j + 1) * step] + x[(radix - 1 - j) * step];
            differences[j] = turned(x[(j + 1) * step] - x[(radix - 1 - j) * step]);
            y[0] = y[0] + sums[j];
        }
        constexpr float cosines3[] = {-0.5f}, sines3[] = {0.86602540378443865f};
        constexpr float cosines5[] = {0.30901699437494742f, -0.80901699437494742f};
        constexpr float sines5[] = {0.95105651629515357f, 0.58778525229247313f};
        const float *cosines = radix == 3 ? cosines3 : cosines5, *sines = radix == 3 ? sines3 : sines5;
        for (int k = 1; k <= half; ++k) {
            Complexes even = x[0], odd = {};
            for (int j = 0; j < half; ++j) {
                const int turn = (j + 1) * k % radix, at = std::min(turn, radix - turn) - 1;
                even = even + sums[j] * cosines[at];
                odd = odd + differences[j] * (turn > half ? -sines[at] : sines[at]);
            }
            y[k] = even + odd, y[radix - k] = even - odd;
        }
    }
}

class Transform {
  public:
    // Whether n is even, and has no prime factors above 5.
    static bool takes(int64_t n) {
        if (n < 2 || n % 2) return false;
        for (const int64_t factor : {2, 3, 5})
            while (n % factor == 0) n /= factor;
        return n == 1;
    }

    Transform(int64_t n, int64_t hop, const float *window) : n(n), hop(hop), half(n / 2), window(window, window + n) {
        for (int64_t left = half; left > 1; left /= radices.back()) {
            const int64_t radix = left % 4 == 0 ? 4 : left % 2 == 0 ? 2 : left % 3 == 0 ? 3 : 5;
            radices.push_back(int(radix));
        }
        for (int64_t k = 0; k < n; ++k)
            roots.push_back(std::complex<float>(std::polar(1.0, -2 * std::acos(-1.0) * double(k) / double(n))));
    }

    // Spectra [t, half + 1] times real magnitudes of the same shape: windowed frames, added to sums, `hop` apart. In
    // the order of time, so that sums that were begun before go on as if all had come at once.
    void inverse(const float *spectra, const float *magnitudes, int64_t num_frames, float *sums) const {
        Scratch s(*this);
        const int64_t bins = half + 1;
        for (int64_t first = 0; first < num_frames; first += WIDTH) {
            const int64_t rows = std::min<int64_t>(WIDTH, num_frames - first);
            to_lanes(spectra + first * 2 * bins, 2 * bins, rows, 2 * bins, &s.x[0].re);
            to_lanes(magnitudes + first * bins, bins, rows, bins, s.reals.data());
            for (int64_t k = 0; k < bins; ++k) s.x[k] = {s.x[k].re * s.reals[k], s.x[k].im * s.reals[k]};
            s.x[0].im = s.x[half].im = FloatPart{};
            // The even and odd samples as one complex sequence, conjugated: then its transform is the inverse's.
            for (int64_t k = 0; k <= half / 2; ++k) {
                const Complexes a = s.x[k], b = conjugate(s.x[half - k]);
                const Complexes even = a + b, odd = turned((a - b) * std::conj(roots[k]));
                s.x[k] = conjugate(even - odd), s.x[half - k] = even + odd;
            }
            const Complexes *found = complex(s.x.data(), s.y.data());
            const float scale = 1.0f / float(n);
            for (int64_t i = 0; i < half; ++i) {
                s.reals[2 * i] = found[i].re * (scale * window[2 * i]);
                s.reals[2 * i + 1] = found[i].im * (-scale * window[2 * i + 1]);
            }
            from_lanes(s.reals.data(), n, s.frames.data(), n, rows);
            for (int64_t row = 0; row < rows; ++row) {
                float *to = sums + (first + row) * hop;
                const float *from = s.frames.data() + row * n;
                for (int64_t i = 0; i < n; ++i) to[i] += from[i];
            }
        }
    }

    // Spectra of windows of audio, `hop` apart -> consistent [t, half + 1], and by them and those of the pass before
    // rotations of magnitude 1, ahead of them by the momentum (fast Griffin-Lim).
    void forward(
        const float *audio, int64_t num_frames, const float *previous, float momentum, float *consistent, float *rotations
    ) const {
        Scratch s(*this);
        const int64_t bins = half + 1, row_size = 2 * bins;
        for (int64_t first = 0; first < num_frames; first += WIDTH) {
            const int64_t rows = std::min<int64_t>(WIDTH, num_frames - first), at = first * row_size;
            to_lanes(audio + first * hop, hop, rows, n, &s.x[0].re);
            for (int64_t i = 0; i < half; ++i)
                s.x[i] = {s.x[i].re * window[2 * i], s.x[i].im * window[2 * i + 1]};
            Complexes *z = complex(s.x.data(), s.y.data()), *found = z == s.x.data() ? s.y.data() : s.x.data();
            z[half] = z[0];
            for (int64_t k = 0; k <= half; ++k) {
                const Complexes a = z[k] * 0.5f, b = conjugate(z[half - k]) * 0.5f;
                found[k] = a + b + turned(a - b) * roots[k];
            }
            from_lanes(&found[0].re, row_size, consistent + at, row_size, rows);
            to_lanes(previous + at, row_size, rows, row_size, &z[0].re);
            for (int64_t k = 0; k <= half; ++k) {
                const Complexes ahead = z[k] + (found[k] - z[k]) * (1 + momentum);
                const FloatPart power = part::larger(ahead.re * ahead.re + ahead.im * ahead.im, part::splat(1e-16f));
                const FloatPart inverse = part::inverse_root(power);
                z[k] = {ahead.re * inverse, ahead.im * inverse};
            }
            from_lanes(&z[0].re, row_size, rotations + at, row_size, rows);
        }
    }

  private:
    struct Scratch {
        explicit Scratch(const Transform &t)
            : x(t.half + 1), y(t.half + 1), reals(t.n + 1), frames(WIDTH * t.n) {}
        std::vector<Complexes> x, y;
        std::vector<FloatPart> reals;
        std::vector<float> frames;
    };

    // The transform of x [half], in x or in y, whichever is returned; the other one is overwritten.
    Complexes *complex(Complexes *x, Complexes *y) const {
        int64_t size = half, stride = 1;  // what is left to transform, and of how many sequences
        for (const int radix : radices) {
            if (radix == 4) pass<4>(x, size, stride, y);
            if (radix == 2) pass<2>(x, size, stride, y);
            if (radix == 3) pass<3>(x, size, stride, y);
            if (radix == 5) pass<5>(x, size, stride, y);
            std::swap(x, y);
            size /= radix, stride *= radix;
        }
        return x;
    }

    template <int radix> void pass(const Complexes *x, int64_t size, int64_t stride, Complexes *y) const {
        const int64_t rest = size / radix;
        for (int64_t p = 0; p < rest; ++p) {
            std::complex<float> twiddles[radix];
            for (int j = 0; j < radix; ++j) twiddles[j] = roots[2 * stride * p * j];
            for (int64_t q = 0; q < stride; ++q) {
                Complexes out[radix];
                butterfly<radix>(x + q + stride * p, stride * rest, out);
                y[q + stride * radix * p] = out[0];
                for (int j = 1; j < radix; ++j) y[q + stride * (radix * p + j)] = out[j] * twiddles[j];
            }
        }
    }

    const int64_t n, hop, half;
    std::vector<float> window;
    std::vector<int> radices;
    std::vector<std::complex<float>> roots;  // e^(-2 pi i k / n)
};

}  // namespace
