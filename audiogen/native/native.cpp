// A decoding step of TokenLM in one call, and passes of Griffin-Lim: what audiogen/native/library.py builds with the
// system's compiler and loads.
//
// Decoding is bound by memory: a step reads every weight once for all rows of the batch. Weights lie in panels of 16
// outputs: panel n holds, for every word of input, the 16 words of outputs 16 n .. 16 n + 15, one after the other. A
// word is 32 bits of one row's input: 1 float32, 2 bfloat16 or 4 int8 values, so that a kernel is one vector load of
// weights and one broadcast word of input for each row. Keys of the cache lie the same way, with positions as outputs.
//
// int8 weights are symmetric per output and stored with 128 added; inputs are quantised as they come, with a scale for
// every GROUP values of each row. Sums are exact in int32 within a group. int4 weights have a scale for every output and
// GROUP inputs, which lies before the group's weights; the heads of such a model are int8.
//
// Vectors are the compiler's own (GCC, clang): AVX-512, AVX2, SSE2 or NEON follow from the flags. Intrinsics only where
// an instruction has no such spelling: products of bfloat16 and of int8.
//
// vectors.h, team.h, products.h, tiles.h, multiply.h, attention.h and step.h, each on those before it; spectra.h, the
// transforms of Griffin-Lim for codecs and autoencoders, on vectors.h alone.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "interface.h"
#include "spectra.h"
#include "step.h"

namespace {

template <bool exact> void head_bytes(const Model &m, int64_t positions, int64_t *bytes) {
    bytes[0] = Head<exact>::key_bytes(m.dim / m.num_heads, positions);
    bytes[1] = Head<exact>::value_bytes(m.dim / m.num_heads, positions);
}

}  // namespace

extern "C" {

void *audiogen_team_new(int64_t num_threads) { return new ThreadPool(int(num_threads)); }

void audiogen_team_free(void *team) { delete static_cast<ThreadPool *>(team); }

void audiogen_pages(char *memory, int64_t bytes) {
#ifdef __linux__
    const int64_t page = 1 << 21, begin = up(int64_t(memory), page), end = (int64_t(memory) + bytes) / page * page;
    if (begin < end) madvise(reinterpret_cast<void *>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

void audiogen_head_bytes(const Model *m, int64_t positions, int64_t *bytes) {
    m->dtype == 0 ? head_bytes<true>(*m, positions, bytes) : head_bytes<false>(*m, positions, bytes);
}

void audiogen_text(const Model *m, Cache *cache, int64_t b, const float *tokens, void *team) {
    ThreadPool &threads = *static_cast<ThreadPool *>(team);
    if (m->dtype == 0) project_text<Float32>(*m, *cache, b, tokens, threads);
    if (m->dtype == 1) project_text<BFloat16>(*m, *cache, b, tokens, threads);
    if (m->dtype == 2) project_text<Int8>(*m, *cache, b, tokens, threads);
    if (m->dtype == 3) project_text<Int4>(*m, *cache, b, tokens, threads);
}

void audiogen_step(const Model *m, const Part *parts, int64_t num_parts, void *team) {
    ThreadPool &threads = *static_cast<ThreadPool *>(team);
    if (m->dtype == 0) Step<Float32>(*m, parts, num_parts, threads).run();
    if (m->dtype == 1) Step<BFloat16>(*m, parts, num_parts, threads).run();
    if (m->dtype == 2) Step<Int8>(*m, parts, num_parts, threads).run();
    if (m->dtype == 3) Step<Int4>(*m, parts, num_parts, threads).run();
}

void *audiogen_transform_new(int64_t n_fft, int64_t hop, const float *window) {
    return Transform::takes(n_fft) ? new Transform(n_fft, hop, window) : nullptr;
}

void audiogen_inverse(const void *transform, const float *spectra, const float *magnitudes, int64_t frames, float *sums) {
    static_cast<const Transform *>(transform)->inverse(spectra, magnitudes, frames, sums);
}

void audiogen_forward(
    const void *transform, const float *audio, int64_t frames, const float *previous, float momentum, float *consistent,
    float *rotations
) {
    static_cast<const Transform *>(transform)->forward(audio, frames, previous, momentum, consistent, rotations);
}

int64_t audiogen_read(const char *from, int64_t bytes, void *team) {
    ThreadPool &threads = *static_cast<ThreadPool *>(team);
    std::atomic<int64_t> result{0};
    const int64_t piece = 1 << 16;
    threads.run(1, [&](int) {
        Words sum[4] = {};  // which may wrap
        for (int64_t at; (at = threads.take(0, piece)) < bytes;)
            for (const char *p = from + at; p < from + std::min(at + piece, bytes); p += 256)
                for (int i = 0; i < 4; ++i) sum[i] += load<Words>(p + 64 * i);
        const Words all = sum[0] + sum[1] + sum[2] + sum[3];
        result += all[0] + all[7];
    });
    return result;
}
}
