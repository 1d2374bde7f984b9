// What native.py fills and calls; see native.cpp. The order of the fields is part of it, every field has 8 bytes.

#pragma once

#include <cstdint>

extern "C" {

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
    int64_t dtype;  // 0 float32, 1 bfloat16, 2 int8, 3 int4 with heads of int8
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

// New steps of the rows of a cache.
struct Part {
    Cache *cache;
    const int64_t *codes;    // [batch, num_codebooks, num_steps]
    const float *positions;  // [num_steps, dim]
    int64_t num_steps;
    float *logits;  // [batch, num_codebooks * codebook_size], of the last step
};

void *audiogen_team_new(int64_t num_threads);
void audiogen_team_free(void *team);

// Whole pages of 2 MB for memory that is not yet written: fewer misses of the translation cache while weights stream.
void audiogen_pages(char *memory, int64_t bytes);

// bytes[2]: of the keys and of the values of one head with so many positions.
void audiogen_head_bytes(const Model *m, int64_t positions, int64_t *bytes);

// Keys and values of tokens [text_lengths[b], dim], the text of row b, in every layer.
void audiogen_text(const Model *m, Cache *cache, int64_t b, const float *tokens, void *team);

// New steps of all or some parts in one go: weights are read once for all of them. The caller, which has checked the
// parts, advances cache.length. A row's logits do not depend on its neighbours.
void audiogen_step(const Model *m, const Part *parts, int64_t num_parts, void *team);

// Windows of n_fft samples, `hop` apart; null where n_fft is odd or has a prime factor above 5.
void *audiogen_transform_new(int64_t n_fft, int64_t hop, const float *window);

// Complex spectra [frames, n_fft / 2 + 1] times magnitudes of the same shape, transformed back, windowed, and added to
// sums [(frames - 1) * hop + n_fft].
void audiogen_inverse(const void *transform, const float *spectra, const float *magnitudes, int64_t frames, float *sums);

// Audio [(frames - 1) * hop + n_fft] -> its complex spectra [frames, n_fft / 2 + 1], and rotations of magnitude 1 ahead of
// them: previous + (1 + momentum) (spectra - previous), or 0 where that is 0.
void audiogen_forward(
    const void *transform, const float *audio, int64_t frames, const float *previous, float momentum, float *consistent,
    float *rotations
);

// Read so many bytes, a multiple of 4096, once: the bandwidth that a step is measured against.
int64_t audiogen_read(const char *from, int64_t bytes, void *team);
}
