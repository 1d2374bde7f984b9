// A decoding step of TokenLM in one call: what audiogen/lm/native.py builds with the system's compiler and loads.
//
// Decoding is bound by memory: a step reads every weight once for all rows of the batch. Weights lie in panels of 16
// outputs: panel n holds, for every word of input, the 16 words of outputs 16 n .. 16 n + 15, one after the other. A
// word is 32 bits of one row's input: 1 float32, 2 bfloat16 or 4 int8 values, so that a kernel is one vector load of
// weights and one broadcast word of input for each row. Keys of the cache lie the same way, with positions as outputs.
//
// int8 weights are symmetric per output and stored with 128 added; inputs are quantised as they come, with a scale for
// every GROUP values of each row. Sums are exact in int32 within a group.
//
// Vectors are the compiler's own (GCC, clang): AVX-512, AVX2, SSE2 or NEON follow from the flags. Intrinsics only where
// an instruction has no such spelling: products of bfloat16 and of int8.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

extern "C" {
// Filled by native.py: the order of the fields is part of the interface. Every field has 8 bytes.
struct Linear {
    const uint32_t *panels;
    const float *scales;  // int8: of every output
    int64_t inputs, outputs;
};
struct Norm {
    const float *weight, *bias;
};
struct Layer {
    Norm norm_self;
    Linear in_proj, out_proj;
    Norm norm_cross;
    Linear query_proj, text_proj, cross_out_proj;
    Norm norm_ff;
    Linear ff_in, ff_out;
};
struct Model {
    int64_t dtype;  // 0 float32, 1 bfloat16, 2 int8
    int64_t num_codebooks, codebook_size, dim, num_layers, num_heads;
    const float *embedding;
    const Layer *layers;
    Norm out_norm;
    Linear heads;
};
struct Cache {
    int64_t batch, max_steps, length, max_text;
    char *keys, *values;            // [layers, batch, heads, bytes of a head]
    char *text_keys, *text_values;  // the same with max_text positions
    const int64_t *text_lengths;    // [batch], 0: no text
};
}

namespace {

constexpr int64_t LANES = 16, UNIT = 4, GROUP = 64;  // UNIT: panels that a thread takes at a time
#ifdef __AVX512F__
constexpr int ACCUMULATORS = 8;
#else
constexpr int ACCUMULATORS = 4;  // of 64 bytes: half of AVX2's or NEON's registers
#endif

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef int8_t Bytes __attribute__((vector_size(16)));

#define INLINE inline __attribute__((always_inline))

template <class To, class From> INLINE To bits(From from) {
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
INLINE Floats choose(Ints mask, Floats yes, Floats no) {
    return bits<Floats>((bits<Ints>(yes) & mask) | (bits<Ints>(no) & ~mask));
}
INLINE Floats larger(Floats a, Floats b) { return choose(a > b, a, b); }
INLINE Floats smaller(Floats a, Floats b) { return choose(a < b, a, b); }
INLINE Floats magnitude(Floats a) { return bits<Floats>(bits<Ints>(a) & 0x7fffffff); }
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
INLINE Floats low_half(Words w) { return bits<Floats>(w << 16); }
INLINE Floats high_half(Words w) { return bits<Floats>(w & 0xffff0000u); }

// To nearest for |x| below 2^22: added to it, the fraction falls off the significand.
constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23

INLINE Floats exponential(Floats x) {  // relative error 2e-7; Cephes' expf
    x = smaller(larger(x, splat(-87.0f)), splat(88.0f));
    const Floats shifted = x * 1.44269504088896341f + ROUND, n = shifted - ROUND;
    const Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Floats y = splat(1.9875691500e-4f);
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    return y * bits<Floats>((bits<Ints>(shifted) - 0x4b400000 + 127) << 23);
}

INLINE Floats gelu(Floats x) {  // x Phi(x); erf by Abramowitz and Stegun, 7.1.26, error 1.5e-7
    const Floats z = magnitude(x) * 0.70710678118654752f;
    const Floats t = 1.0f / (1.0f + 0.3275911f * z);
    Floats y = splat(1.061405429f);
    y = y * t - 1.453152027f;
    y = y * t + 1.421413741f;
    y = y * t - 0.284496736f;
    y = y * t + 0.254829592f;
    const Floats tail = 0.5f * y * t * exponential(-z * z);  // 1 - Phi(|x|)
    return x * choose(x < 0.0f, tail, 1.0f - tail);
}

// Threads ------------------------------------------------------------------------------------------------------------

INLINE void pause() {
#if defined(__x86_64__) || defined(__i386__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

constexpr int SPINS = 4000;  // tens of microseconds: longer than a phase of a step, shorter than a time slice

class Team {
  public:
    explicit Team(int size) : size(size) {
        for (int i = 1; i < size; ++i) threads.emplace_back([this, i] { serve(i); });
    }
    ~Team() {
        {
            std::lock_guard<std::mutex> lock(mutex);
            stopping = true;
            round.fetch_add(1);
        }
        wake.notify_all();
        for (auto &thread : threads) thread.join();
    }

    // Every thread runs `work(thread)`; returns when all are done. One at a time.
    template <class Work> void run(int64_t num_phases, Work &&work) {
        std::lock_guard<std::mutex> one(busy);
        if (int64_t(next.size()) < num_phases) next = std::vector<std::atomic<int64_t>>(num_phases);
        for (auto &counter : next) counter.store(0, std::memory_order_relaxed);
        job = [](void *context, int thread) { (*static_cast<std::remove_reference_t<Work> *>(context))(thread); };
        argument = const_cast<void *>(static_cast<const void *>(&work));
        if (size > 1) {
            std::lock_guard<std::mutex> lock(mutex);
            round.fetch_add(1);
        }
        wake.notify_all();
        job(argument, 0);
        barrier();
    }

    void barrier() {
        if (size == 1) return;
        const int now = turn.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
            arrived.store(0, std::memory_order_relaxed);
            turn.store(now + 1, std::memory_order_release);
        } else {
            for (int spins = 0; turn.load(std::memory_order_acquire) == now; ++spins)
                spins < SPINS ? pause() : std::this_thread::yield();
        }
    }

    // The first of `count` pieces of this phase's work that no thread has taken: a slower core takes fewer.
    int64_t take(int64_t phase, int64_t count) { return next[phase].fetch_add(count, std::memory_order_relaxed); }

    const int size;
    std::vector<std::vector<float>> scratch{std::vector<std::vector<float>>(size)};  // of each thread
    std::vector<float> shared;

  private:
    void serve(int thread) {
        for (int seen = 0;;) {
            for (int spins = 0; round.load(std::memory_order_acquire) == seen && spins < SPINS; ++spins) pause();
            if (round.load(std::memory_order_acquire) == seen) {
                std::unique_lock<std::mutex> lock(mutex);
                wake.wait(lock, [&] { return round.load() != seen; });
            }
            seen = round.load(std::memory_order_acquire);
            if (stopping) return;
            job(argument, thread);
            barrier();
        }
    }

    std::vector<std::thread> threads;
    std::mutex mutex, busy;
    std::condition_variable wake;
    std::atomic<int> round{0}, arrived{0}, turn{0};
    std::vector<std::atomic<int64_t>> next;
    bool stopping = false;
    void (*job)(void *, int) = nullptr;
    void *argument = nullptr;
};

// Products -----------------------------------------------------------------------------------------------------------

struct Input {  // rows of activations as a kernel reads them
    uint32_t *words;  // [rows, num_words]
    int64_t num_words;
    float *scales;     // int8: [rows, groups], of a group's values
    int32_t *offsets;  // int8: [rows, groups], -128 times the sum of a group's values
    int64_t groups;
};

// Weights of word k in panel p, and a request for those `ahead` words later: the processor's own prefetching stops at
// every page, and 4 panels are 4 streams. 1.3 to 1.45 times as fast, measured on an AMD Zen 5.
constexpr int64_t FAR = 128, NEAR = 24;

INLINE const uint32_t *weights_at(const uint32_t *panels, int64_t num_words, int64_t p, int64_t k, int64_t ahead) {
    const uint32_t *at = panels + (p * num_words + k) * LANES;
    __builtin_prefetch(at + ahead * LANES);
    return at;
}

struct Float32 {
    static constexpr int64_t VALUES = 1, INPUT_WORDS = 1;  // values in a word of weights, input words for it
    static void read(const float *x, int64_t count, const Input &in, int64_t row) {
        memcpy(in.words + row * in.num_words, x, count * sizeof(float));
    }

    template <int P, int R>
    static INLINE void dot(const uint32_t *panels, int64_t num_words, const Input &in, int64_t row,
                           Floats (&sum)[P][R]) {
        const float *x[R];
        for (int r = 0; r < R; ++r) x[r] = reinterpret_cast<const float *>(in.words) + (row + r) * in.num_words;
        for (int64_t k = 0; k < num_words; ++k)
            for (int p = 0; p < P; ++p) {
                const Floats w = load<Floats>(weights_at(panels, num_words, p, k, FAR));
                for (int r = 0; r < R; ++r) sum[p][r] += w * x[r][k];
            }
    }
};

struct BFloat16 {
    static constexpr int64_t VALUES = 2;

#ifdef __AVX512BF16__
    static constexpr int64_t INPUT_WORDS = 1;
    static void read(const float *x, int64_t count, const Input &in, int64_t row) {  // x has zeros up to 64 values
        uint32_t *to = in.words + row * in.num_words;
        for (int64_t i = 0; i < in.num_words; i += LANES) {
            const __m512 low = _mm512_loadu_ps(x + 2 * i), high = _mm512_loadu_ps(x + 2 * i + LANES);
            const __m512i both = bits<__m512i>(_mm512_cvtne2ps_pbh(high, low));
            const int64_t left = std::min(LANES, in.num_words - i);
            _mm512_mask_storeu_epi32(to + i, __mmask16(0xffffu >> (LANES - left)), both);
        }
        (void)count;
    }

    template <int P, int R>
    static INLINE void dot(const uint32_t *panels, int64_t num_words, const Input &in, int64_t row,
                           Floats (&sum)[P][R]) {
        const uint32_t *x[R];
        __m512 s[P][R];
        for (int r = 0; r < R; ++r) x[r] = in.words + (row + r) * in.num_words;
        for (int i = 0; i < P * R; ++i) s[i / R][i % R] = _mm512_setzero_ps();
        for (int64_t k = 0; k < num_words; ++k)
            for (int p = 0; p < P; ++p) {
                const __m512bh w = (__m512bh)_mm512_loadu_si512(weights_at(panels, num_words, p, k, FAR));
                for (int r = 0; r < R; ++r)
                    s[p][r] = _mm512_dpbf16_ps(s[p][r], w, (__m512bh)_mm512_set1_epi32(int(x[r][k])));
            }
        for (int i = 0; i < P * R; ++i) sum[i / R][i % R] = bits<Floats>(s[i / R][i % R]);
    }
#else
    // Without products of bfloat16, the input stays float32: one shift or mask turns half a word into floats.
    static constexpr int64_t INPUT_WORDS = 2;
    static void read(const float *x, int64_t count, const Input &in, int64_t row) {
        float *to = reinterpret_cast<float *>(in.words) + row * in.num_words;
        memcpy(to, x, count * sizeof(float));
        if (count < in.num_words) to[count] = 0.0f;
    }

    template <int P, int R>
    static INLINE void dot(const uint32_t *panels, int64_t num_words, const Input &in, int64_t row,
                           Floats (&sum)[P][R]) {
        const float *x[R];
        for (int r = 0; r < R; ++r) x[r] = reinterpret_cast<const float *>(in.words) + (row + r) * in.num_words;
        for (int64_t k = 0; k < num_words; ++k)
            for (int p = 0; p < P; ++p) {
                const Words w = load<Words>(weights_at(panels, num_words, p, k, FAR));
                for (int r = 0; r < R; ++r) sum[p][r] += low_half(w) * x[r][2 * k];
                for (int r = 0; r < R; ++r) sum[p][r] += high_half(w) * x[r][2 * k + 1];
            }
    }
#endif
};

// sum + four products of 8 bits in each lane: weights with 128 added, by one word of inputs; see Input::offsets.
INLINE Ints add_products(Ints sum, const uint32_t *weights, uint32_t x) {
#if defined(__AVX512VNNI__)
    return bits<Ints>(_mm512_dpbusd_epi32(bits<__m512i>(sum), _mm512_loadu_si512(weights), _mm512_set1_epi32(int(x))));
#elif defined(__AVX2__)
    __m256i s[2];
    memcpy(s, &sum, sizeof s);
    const __m256i xs = _mm256_set1_epi32(int(x)), top = _mm256_set1_epi8(char(0x80)), ones = _mm256_set1_epi16(1);
    for (int i = 0; i < 2; ++i) {  // pairs of |w| |x| <= 2 * 127 * 127 fit 16 bits, pairs of 255 * 127 would not
        const __m256i w = _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(weights) + i), top);
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(xs, w));
        s[i] = _mm256_add_epi32(s[i], _mm256_madd_epi16(pairs, ones));
    }
    memcpy(&sum, s, sizeof s);
    return sum;
#elif defined(__ARM_FEATURE_DOTPROD)
    int32x4_t s[4];
    memcpy(s, &sum, sizeof s);
    const int8x16_t xs = vreinterpretq_s8_u32(vdupq_n_u32(x));
    const uint8x16_t top = vdupq_n_u8(0x80);
    for (int i = 0; i < 4; ++i) {
        const uint8x16_t w = veorq_u8(vreinterpretq_u8_u32(vld1q_u32(weights + 4 * i)), top);
        s[i] = vdotq_s32(s[i], vreinterpretq_s8_u8(w), xs);
    }
    memcpy(&sum, s, sizeof s);
    return sum;
#else
    const Ints w = load<Ints>(weights) ^ int32_t(0x80808080);
    const int32_t xs = int32_t(x);
    sum += (w << 24 >> 24) * (xs << 24 >> 24);
    sum += (w << 16 >> 24) * (xs << 16 >> 24);
    sum += (w << 8 >> 24) * (xs << 8 >> 24);
    return sum + (w >> 24) * (xs >> 24);
#endif
}
#ifdef __AVX512VNNI__
constexpr int32_t WEIGHT_OFFSET = 128;  // what the kernel's weights are too large by
#else
constexpr int32_t WEIGHT_OFFSET = 0;
#endif

struct Int8 {
    static constexpr int64_t VALUES = 4, INPUT_WORDS = 1;

    static void read(const float *x, int64_t count, const Input &in, int64_t row) {  // x has zeros up to 64 values
        int8_t quantised[GROUP];
        uint32_t *words = in.words + row * in.num_words;
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
            in.offsets[row * in.groups + group] = -WEIGHT_OFFSET * all;
            const int64_t first = group * (GROUP / VALUES), left = std::min(GROUP / VALUES, in.num_words - first);
            memcpy(words + first, quantised, left * VALUES);
        }
        (void)count;
    }

    template <int P, int R>
    static INLINE void dot(const uint32_t *panels, int64_t num_words, const Input &in, int64_t row,
                           Floats (&sum)[P][R]) {
        const uint32_t *x[R];
        for (int r = 0; r < R; ++r) x[r] = in.words + (row + r) * in.num_words;
        for (int64_t group = 0; group < in.groups; ++group) {
            const int64_t first = group * (GROUP / VALUES), last = std::min(first + GROUP / VALUES, num_words);
            Ints s[P][R];
            for (int r = 0; r < R; ++r)
                for (int p = 0; p < P; ++p) s[p][r] = Ints{} + in.offsets[(row + r) * in.groups + group];
            for (int64_t k = first; k < last; ++k)
                for (int p = 0; p < P; ++p) {
                    const uint32_t *w = weights_at(panels, num_words, p, k, NEAR);
                    for (int r = 0; r < R; ++r) s[p][r] = add_products(s[p][r], w, x[r][k]);
                }
            for (int r = 0; r < R; ++r) {
                const float scale = in.scales[(row + r) * in.groups + group];
                for (int p = 0; p < P; ++p) sum[p][r] += __builtin_convertvector(s[p][r], Floats) * scale;
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

template <class Type, int P, int R>
void tile(const Linear &linear, const Input &in, int64_t panel, int64_t row, const Output &out) {
    const int64_t num_words = (linear.inputs + Type::VALUES - 1) / Type::VALUES;
    Floats sum[P][R];
    for (int i = 0; i < P * R; ++i) sum[i / R][i % R] = Floats{};
    Type::template dot<P, R>(linear.panels + panel * num_words * LANES, num_words, in, row, sum);
    for (int p = 0; p < P; ++p)
        for (int r = 0; r < R; ++r) {
            Floats y = sum[p][r];
            if (linear.scales) y *= load<Floats>(linear.scales + (panel + p) * LANES);
            float *to = out.rows + (out.which ? out.which[row + r] : row + r) * out.stride + (panel + p) * LANES;
            store(to, out.mode == WRITE ? y : out.mode == ADD ? load<Floats>(to) + y : gelu(y));
        }
}

template <class Type, int R>
void tiles(const Linear &linear, const Input &in, int64_t panel, int64_t last, int64_t row, const Output &out) {
    constexpr int P = std::max(1, std::min(4, R == 3 ? ACCUMULATORS / 4 : ACCUMULATORS / R));
    for (; panel + P <= last; panel += P) tile<Type, P, R>(linear, in, panel, row, out);
    for (; panel < last; ++panel) tile<Type, 1, R>(linear, in, panel, row, out);
}

// One of the threads in a call, with its place in the sequence of phases.
struct Worker {
    Team &team;
    int index;
    int64_t phase = 0;

    int64_t take(int64_t count) { return team.take(phase, count); }
    void finish() {
        team.barrier();
        ++phase;
    }
};

// All rows by a unit of panels, before the next: weights come from memory once, whatever the number of rows.
template <class Type>
void multiply(Worker &worker, const Linear &linear, const Input &in, int64_t num_rows, const Output &out) {
    const int64_t num_panels = up(linear.outputs, LANES) / LANES;
    for (int64_t first; (first = worker.take(UNIT)) < num_panels;) {
        const int64_t last = std::min(first + UNIT, num_panels);
        for (int64_t row = 0; row < num_rows; row += 4) switch (std::min<int64_t>(4, num_rows - row)) {
                case 1: tiles<Type, 1>(linear, in, first, last, row, out); break;
                case 2: tiles<Type, 2>(linear, in, first, last, row, out); break;
                case 3: tiles<Type, 3>(linear, in, first, last, row, out); break;
                default: tiles<Type, 4>(linear, in, first, last, row, out);
            }
    }
    worker.finish();
}

// The step -----------------------------------------------------------------------------------------------------------

int64_t stride_of(int64_t width) { return up(width, GROUP); }  // of rows of activations, zeros past the width

// Input of a product, read by every thread for itself: that is quicker than to wait for the others once more.
template <class Type> struct Reader {
    Reader(Worker &worker, int64_t num_rows, int64_t widest) {
        const int64_t row = stride_of(widest), groups = row / GROUP;
        auto &scratch = worker.team.scratch[worker.index];
        scratch.resize(num_rows * (row + 2 * groups) + row);
        words = reinterpret_cast<uint32_t *>(scratch.data());
        scales = scratch.data() + num_rows * row;
        offsets = reinterpret_cast<int32_t *>(scales + num_rows * groups);
        normed = scales + 2 * num_rows * groups;
        std::fill(normed, normed + row, 0.0f);
    }

    Input shape(int64_t width) const {
        const int64_t num_words = (width + Type::VALUES - 1) / Type::VALUES * Type::INPUT_WORDS;
        return {words, num_words, scales, offsets, up(width, GROUP) / GROUP};
    }

    Input plain(const float *x, int64_t num_rows, int64_t width) const {
        const Input in = shape(width);
        for (int64_t r = 0; r < num_rows; ++r) Type::read(x + r * stride_of(width), width, in, r);
        return in;
    }

    Input layer_norm(const float *x, const int64_t *which, int64_t num_rows, int64_t width, const Norm &norm) const {
        const Input in = shape(width);
        for (int64_t r = 0; r < num_rows; ++r) {
            const float *from = x + (which ? which[r] : r) * stride_of(width);
            const int64_t whole = width / LANES * LANES;
            Floats sum = {}, squares = {};
            for (int64_t i = 0; i < up(width, LANES); i += LANES) sum += load<Floats>(from + i);
            const float mean = total(sum) / float(width);
            for (int64_t i = 0; i < whole; i += LANES) {
                const Floats d = load<Floats>(from + i) - mean;
                squares += d * d;
            }
            float square = total(squares);
            for (int64_t i = whole; i < width; ++i) square += (from[i] - mean) * (from[i] - mean);
            const float scale = 1.0f / std::sqrt(square / float(width) + 1e-5f);
            for (int64_t i = 0; i < whole; i += LANES)
                store(normed + i, (load<Floats>(from + i) - mean) * scale * load<Floats>(norm.weight + i) +
                                      load<Floats>(norm.bias + i));
            for (int64_t i = whole; i < width; ++i)
                normed[i] = (from[i] - mean) * scale * norm.weight[i] + norm.bias[i];
            std::fill(normed + width, normed + stride_of(width), 0.0f);
            Type::read(normed, width, in, r);
        }
        return in;
    }

    uint32_t *words;
    float *scales, *normed;
    int32_t *offsets;
};

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
            Floats even = {}, odd = {};
            int64_t k = 0;
            if constexpr (exact) {
                for (; k + 1 < width; k += 2) {
                    even += load<Floats>(panel + k * LANES) * query[k];
                    odd += load<Floats>(panel + (k + 1) * LANES) * query[k + 1];
                }
                if (k < width) even += load<Floats>(panel + k * LANES) * query[k];
            } else {
                for (; k < width / 2; ++k) {
                    const Words pair = load<Words>(panel + k * LANES);
                    even += low_half(pair) * query[2 * k];
                    odd += high_half(pair) * query[2 * k + 1];
                }
                if (width % 2) even += low_half(load<Words>(panel + k * LANES)) * query[width - 1];
            }
            const Floats scores = (even + odd) * scale;
            store(weights + t, scores);
            if (t + LANES <= count) top = larger(top, scores);
        }
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
        for (int64_t i = 0; i < width; i += 4 * LANES) switch (std::min<int64_t>(4, up(width - i, LANES) / LANES)) {
                case 1: mix<1>(i, count, weights, factor, out); break;
                case 2: mix<2>(i, count, weights, factor, out); break;
                case 3: mix<3>(i, count, weights, factor, out); break;
                default: mix<4>(i, count, weights, factor, out);
            }
    }

    static INLINE Floats read(const Value *from) {
        if constexpr (exact) return load<Floats>(from);
        else return bits<Floats>(__builtin_convertvector(load<Halves>(from), Words) << 16);
    }

    template <int C> void mix(int64_t i, int64_t count, const float *weights, float factor, float *out) const {
        Floats sum[2][C];
        for (int c = 0; c < C; ++c) sum[0][c] = sum[1][c] = Floats{};
        const int64_t wide = up(width, LANES);
        const Value *from = values + i;
        int64_t t = 0;
        for (; t + 1 < count; t += 2, from += 2 * wide)
            for (int c = 0; c < C; ++c) {
                sum[0][c] += read(from + c * LANES) * weights[t];
                sum[1][c] += read(from + wide + c * LANES) * weights[t + 1];
            }
        if (t < count)
            for (int c = 0; c < C; ++c) sum[0][c] += read(from + c * LANES) * weights[t];
        for (int c = 0; c < C; ++c) {
            const Floats y = (sum[0][c] + sum[1][c]) * factor;
            if (i + (c + 1) * LANES <= width) {
                store(out + i + c * LANES, y);
            } else {
                for (int64_t lane = 0; i + c * LANES + lane < width; ++lane) out[i + c * LANES + lane] = y[lane];
            }
        }
    }

    char *keys;
    Value *values;
    int64_t width;
};

// Buffers that the threads share: the residual stream, a product's output, attention's, the feed-forward layer's.
struct Buffers {
    Buffers(const Model &m, const Cache &cache, Team &team, int64_t num_rows) {
        const int64_t dim = stride_of(m.dim), ff = stride_of(m.layers[0].ff_in.outputs);
        const int64_t outputs = stride_of(std::max(3 * m.dim, m.heads.outputs));
        scores_of = up(std::max(cache.max_steps, cache.max_text), LANES);
        const int64_t needed = num_rows * (2 * dim + outputs + ff) + team.size * scores_of;
        team.shared.assign(needed, 0.0f);
        x = team.shared.data();
        mixed = x + num_rows * dim;
        product = mixed + num_rows * dim;
        hidden = product + num_rows * outputs;
        scores = hidden + num_rows * ff;
    }
    float *x, *mixed, *product, *hidden, *scores;
    int64_t scores_of;
};

template <class Type> struct Step {
    static constexpr bool exact = std::is_same<Type, Float32>::value;
    const Model &m;
    Cache &cache;
    const int64_t *codes;
    const float *positions;
    int64_t num_steps;
    float *logits;
    Team &team;
    std::vector<int64_t> with_text;  // rows: step s of batch row b is row b * num_steps + s
    Buffers buffers;

    Step(const Model &m, Cache &cache, const int64_t *codes, const float *positions, int64_t num_steps, float *logits,
         Team &team)
        : m(m), cache(cache), codes(codes), positions(positions), num_steps(num_steps), logits(logits), team(team),
          buffers(m, cache, team, cache.batch * num_steps) {
        for (int64_t row = 0; row < cache.batch * num_steps; ++row)
            if (cache.text_lengths[row / num_steps]) with_text.push_back(row);
    }

    void embed() {
        const int64_t books = m.num_codebooks;
        for (int64_t row = 0; row < cache.batch * num_steps; ++row) {
            float *x = buffers.x + row * stride_of(m.dim);
            const int64_t b = row / num_steps, s = row % num_steps;
            for (int64_t k = 0; k < books; ++k) {
                const int64_t code = codes[(b * books + k) * num_steps + s] + k * (m.codebook_size + 1);
                for (int64_t i = 0; i < m.dim; ++i) x[i] += m.embedding[code * m.dim + i];
            }
            for (int64_t i = 0; i < m.dim; ++i) x[i] += positions[s * m.dim + i];
        }
    }

    void self_attention(Worker &worker, int64_t layer) {
        const int64_t width = m.dim / m.num_heads, stride = stride_of(3 * m.dim);
        float *scores = buffers.scores + worker.index * buffers.scores_of;
        for (int64_t task; (task = worker.take(1)) < cache.batch * m.num_heads;) {
            const int64_t b = task / m.num_heads, h = task % m.num_heads;
            Head<exact> head(cache.keys, cache.values, (layer * cache.batch + b) * m.num_heads + h, width,
                             cache.max_steps);
            for (int64_t s = 0; s < num_steps; ++s) {
                const int64_t row = b * num_steps + s;
                const float *query = buffers.product + row * stride + h * width;
                head.write(cache.length + s, query + m.dim, query + 2 * m.dim);
                head.attend(query, cache.length + s + 1, scores, buffers.mixed + row * stride_of(m.dim) + h * width);
            }
        }
        worker.finish();
    }

    void cross_attention(Worker &worker, int64_t layer) {
        const int64_t width = m.dim / m.num_heads, stride = stride_of(m.dim);
        float *scores = buffers.scores + worker.index * buffers.scores_of;
        for (int64_t task; (task = worker.take(1)) < int64_t(with_text.size()) * m.num_heads;) {
            const int64_t i = task / m.num_heads, h = task % m.num_heads, b = with_text[i] / num_steps;
            const Head<exact> head(cache.text_keys, cache.text_values,
                                   (layer * cache.batch + b) * m.num_heads + h, width, cache.max_text);
            head.attend(buffers.product + i * stride + h * width, cache.text_lengths[b], scores,
                        buffers.mixed + i * stride + h * width);
        }
        worker.finish();
    }

    void operator()(int index) {
        Worker worker{team, index};
        const int64_t num_rows = cache.batch * num_steps, num_texts = int64_t(with_text.size());
        const int64_t dim = m.dim, ff = m.layers[0].ff_in.outputs, stride = stride_of(dim);
        const Reader<Type> reader(worker, num_rows, std::max(dim, ff));
        float *x = buffers.x;
        for (int64_t i = 0; i < m.num_layers; ++i) {
            const Layer &layer = m.layers[i];
            multiply<Type>(worker, layer.in_proj, reader.layer_norm(x, nullptr, num_rows, dim, layer.norm_self),
                           num_rows, {buffers.product, stride_of(3 * dim), WRITE, nullptr});
            self_attention(worker, i);
            multiply<Type>(worker, layer.out_proj, reader.plain(buffers.mixed, num_rows, dim), num_rows,
                           {x, stride, ADD, nullptr});
            if (num_texts) {
                const int64_t *which = with_text.data();
                multiply<Type>(worker, layer.query_proj,
                               reader.layer_norm(x, which, num_texts, dim, layer.norm_cross), num_texts,
                               {buffers.product, stride, WRITE, nullptr});
                cross_attention(worker, i);
                multiply<Type>(worker, layer.cross_out_proj, reader.plain(buffers.mixed, num_texts, dim), num_texts,
                               {x, stride, ADD, which});
            }
            multiply<Type>(worker, layer.ff_in, reader.layer_norm(x, nullptr, num_rows, dim, layer.norm_ff), num_rows,
                           {buffers.hidden, stride_of(ff), GELU, nullptr});
            multiply<Type>(worker, layer.ff_out, reader.plain(buffers.hidden, num_rows, ff), num_rows,
                           {x, stride, ADD, nullptr});
        }
        std::vector<int64_t> last(cache.batch);
        for (int64_t b = 0; b < cache.batch; ++b) last[b] = (b + 1) * num_steps - 1;
        multiply<Type>(worker, m.heads, reader.layer_norm(x, last.data(), cache.batch, dim, m.out_norm), cache.batch,
                       {buffers.product, stride_of(m.heads.outputs), WRITE, nullptr});
    }

    void run() {
        embed();
        team.run(8 * m.num_layers + 1, *this);
        for (int64_t b = 0; b < cache.batch; ++b)
            memcpy(logits + b * m.heads.outputs, buffers.product + b * stride_of(m.heads.outputs),
                   m.heads.outputs * sizeof(float));
    }
};

template <class Type> void project_text(const Model &m, Cache &cache, int64_t b, const float *tokens, Team &team) {
    constexpr bool exact = std::is_same<Type, Float32>::value;
    const int64_t length = cache.text_lengths[b], dim = m.dim, width = dim / m.num_heads;
    const int64_t stride = stride_of(2 * dim);
    std::vector<float> padded(length * stride_of(dim)), product(length * stride);
    for (int64_t l = 0; l < length; ++l) memcpy(&padded[l * stride_of(dim)], tokens + l * dim, dim * sizeof(float));
    team.run(2 * m.num_layers, [&](int index) {
        Worker worker{team, index};
        const Reader<Type> reader(worker, length, dim);
        const Input in = reader.plain(padded.data(), length, dim);
        for (int64_t layer = 0; layer < m.num_layers; ++layer) {
            multiply<Type>(worker, m.layers[layer].text_proj, in, length, {product.data(), stride, WRITE, nullptr});
            for (int64_t h; (h = worker.take(1)) < m.num_heads;) {
                Head<exact> head(cache.text_keys, cache.text_values, (layer * cache.batch + b) * m.num_heads + h,
                                 width, cache.max_text);
                for (int64_t l = 0; l < length; ++l) {
                    const float *key = &product[l * stride + h * width];
                    head.write(l, key, key + dim);
                }
            }
            worker.finish();
        }
    });
}

template <bool exact> void head_bytes(const Model &m, int64_t positions, int64_t *bytes) {
    bytes[0] = Head<exact>::key_bytes(m.dim / m.num_heads, positions);
    bytes[1] = Head<exact>::value_bytes(m.dim / m.num_heads, positions);
}

}  // namespace

extern "C" {

void *audiogen_team_new(int64_t num_threads) { return new Team(int(num_threads)); }

void audiogen_team_free(void *team) { delete static_cast<Team *>(team); }

// Whole pages of 2 MB for memory that is not yet written: fewer misses of the translation cache while weights stream.
void audiogen_pages(char *memory, int64_t bytes) {
#ifdef __linux__
    const int64_t page = 1 << 21, begin = up(int64_t(memory), page), end = (int64_t(memory) + bytes) / page * page;
    if (begin < end) madvise(reinterpret_cast<void *>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

// bytes[2]: of the keys and of the values of one head with so many positions.
void audiogen_head_bytes(const Model *m, int64_t positions, int64_t *bytes) {
    m->dtype == 0 ? head_bytes<true>(*m, positions, bytes) : head_bytes<false>(*m, positions, bytes);
}

// Keys and values of tokens [text_lengths[b], dim], the text of row b, in every layer.
void audiogen_text(const Model *m, Cache *cache, int64_t b, const float *tokens, void *team) {
    Team &threads = *static_cast<Team *>(team);
    if (m->dtype == 0) project_text<Float32>(*m, *cache, b, tokens, threads);
    if (m->dtype == 1) project_text<BFloat16>(*m, *cache, b, tokens, threads);
    if (m->dtype == 2) project_text<Int8>(*m, *cache, b, tokens, threads);
}

// codes [batch, num_codebooks, num_steps] and positions [num_steps, dim], which the caller has checked ->
// logits [batch, num_codebooks * codebook_size] of the last step. The caller advances cache.length.
void audiogen_step(const Model *m, Cache *cache, const int64_t *codes, const float *positions, int64_t num_steps,
                   float *logits, void *team) {
    Team &threads = *static_cast<Team *>(team);
    if (m->dtype == 0) Step<Float32>(*m, *cache, codes, positions, num_steps, logits, threads).run();
    if (m->dtype == 1) Step<BFloat16>(*m, *cache, codes, positions, num_steps, logits, threads).run();
    if (m->dtype == 2) Step<Int8>(*m, *cache, codes, positions, num_steps, logits, threads).run();
}

// Read so many bytes, a multiple of 4096, once: the bandwidth that a step is measured against.
int64_t audiogen_read(const char *from, int64_t bytes, void *team) {
    Team &threads = *static_cast<Team *>(team);
    std::atomic<int64_t> result{0};
    const int64_t piece = 1 << 16;
    threads.run(1, [&](int) {
        Ints sum[4] = {};
        for (int64_t at; (at = threads.take(0, piece)) < bytes;)
            for (const char *p = from + at; p < from + std::min(at + piece, bytes); p += 256)
                for (int i = 0; i < 4; ++i) sum[i] += load<Ints>(p + 64 * i);
        const Ints all = sum[0] + sum[1] + sum[2] + sum[3];
        result += all[0] + all[7];
    });
    return result;
}
}
