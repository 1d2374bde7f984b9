// A decoding step, and the text's keys and values: products and attention in turn.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "attention.h"
#include "interface.h"
#include "multiply.h"
#include "team.h"
#include "vectors.h"

namespace {

int64_t stride_of(int64_t width) { return up(width, GROUP); }  // of rows of activations, zeros past the width

// Input of a product, read by every thread for itself: that is quicker than to wait for the others once more.
template <class Type> struct Reader {
    Reader(Worker &worker, int64_t num_rows, int64_t widest) {
        const int64_t row = stride_of(widest) + LANES, groups = row / GROUP;
        auto &scratch = worker.team.scratch[worker.index];
        scratch.resize(num_rows * (row + 2 * groups) + row);
        words = reinterpret_cast<uint32_t *>(scratch.data());
        scales = scratch.data() + num_rows * row;
        offsets = reinterpret_cast<int32_t *>(scales + num_rows * groups);
        normed = scales + 2 * num_rows * groups;
        std::fill(normed, normed + row, 0.0f);
    }

    Input shape(int64_t width) const {
        // not a multiple of a page: rows at such distances would share a few lines of the first cache
        return {words, Type::input_words(width), stride_of(width) + LANES, scales, offsets, up(width, GROUP) / GROUP};
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

// Buffers that the threads share: the residual stream, a product's output, attention's, the feed-forward layer's.
struct Buffers {
    Buffers(const Model &m, ThreadPool &team, int64_t num_rows, int64_t positions) {
        const int64_t dim = stride_of(m.dim), ff = stride_of(m.layers[0].ff_in.outputs);
        const int64_t outputs = stride_of(std::max(3 * m.dim, m.heads.outputs));
        scores_of = up(positions, LANES);
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

// The new steps of one row of a cache: rows `first` .. of the buffers.
struct Sequence {
    const Part &part;
    int64_t b, first;
};

template <class Type> struct Step {
    static constexpr bool exact = std::is_same<Type, Float32>::value;
    using Heads = std::conditional_t<std::is_same<Type, Int4>::value, Int8, Type>;
    const Model &m;
    ThreadPool &team;
    std::vector<int64_t> with_text, text_of;  // rows, and the sequence of each
    int64_t num_rows = 0, positions = 0;      // positions: of the longest cache
    std::vector<Sequence> sequences;          // whose gathering fills those above
    Buffers buffers;

    Step(const Model &m, const Part *parts, int64_t num_parts, ThreadPool &team)
        : m(m), team(team), sequences(gather(parts, num_parts)), buffers(m, team, num_rows, positions) {}

    std::vector<Sequence> gather(const Part *parts, int64_t num_parts) {
        std::vector<Sequence> all;
        for (const Part *part = parts; part < parts + num_parts; ++part) {
            const Cache &cache = *part->cache;
            positions = std::max({positions, cache.max_steps, cache.max_text});
            for (int64_t b = 0; b < cache.batch; ++b) {
                for (int64_t row = num_rows; row < num_rows + part->num_steps && cache.text_lengths[b]; ++row) {
                    with_text.push_back(row);
                    text_of.push_back(int64_t(all.size()));
                }
                all.push_back({*part, b, num_rows});
                num_rows += part->num_steps;
            }
        }
        return all;
    }

    void embed() {
        const int64_t books = m.num_codebooks;
        for (const Sequence &of : sequences) {
            const int64_t num_steps = of.part.num_steps;
            for (int64_t s = 0; s < num_steps; ++s) {
                float *x = buffers.x + (of.first + s) * stride_of(m.dim);
                for (int64_t k = 0; k < books; ++k) {
                    const int64_t code = of.part.codes[(of.b * books + k) * num_steps + s] + k * (m.codebook_size + 1);
                    for (int64_t i = 0; i < m.dim; ++i) x[i] += m.embedding[code * m.dim + i];
                }
                for (int64_t i = 0; i < m.dim; ++i) x[i] += of.part.positions[s * m.dim + i];
            }
        }
    }

    void self_attention(Worker &worker, int64_t layer) {
        const int64_t width = m.dim / m.num_heads, stride = stride_of(3 * m.dim);
        float *scores = buffers.scores + worker.index * buffers.scores_of;
        for (int64_t task; (task = worker.take(1)) < int64_t(sequences.size()) * m.num_heads;) {
            const Sequence &of = sequences[task / m.num_heads];
            const Cache &cache = *of.part.cache;
            const int64_t h = task % m.num_heads;
            Head<exact> head(cache.keys, cache.values, (layer * cache.batch + of.b) * m.num_heads + h, width,
                             cache.max_steps);
            for (int64_t s = 0; s < of.part.num_steps; ++s) {
                const int64_t row = of.first + s;
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
            const int64_t i = task / m.num_heads, h = task % m.num_heads;
            const Sequence &of = sequences[text_of[i]];
            const Cache &cache = *of.part.cache;
            const Head<exact> head(cache.text_keys, cache.text_values,
                                   (layer * cache.batch + of.b) * m.num_heads + h, width, cache.max_text);
            head.attend(buffers.product + i * stride + h * width, cache.text_lengths[of.b], scores,
                        buffers.mixed + i * stride + h * width);
        }
        worker.finish();
    }

    void operator()(int index) {
        Worker worker{team, index};
        const int64_t num_texts = int64_t(with_text.size()), num_last = int64_t(sequences.size());
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
        std::vector<int64_t> last;
        for (const Sequence &of : sequences) last.push_back(of.first + of.part.num_steps - 1);
        const Reader<Heads> of_heads(worker, num_rows, std::max(dim, ff));
        multiply<Heads>(worker, m.heads, of_heads.layer_norm(x, last.data(), num_last, dim, m.out_norm), num_last,
                        {buffers.product, stride_of(m.heads.outputs), WRITE, nullptr});
    }

    void run() {
        embed();
        team.run(8 * m.num_layers + 1, *this);
        const int64_t outputs = m.heads.outputs;
        for (size_t i = 0; i < sequences.size(); ++i)
            memcpy(sequences[i].part.logits + sequences[i].b * outputs, buffers.product + int64_t(i) * stride_of(outputs),
                   outputs * sizeof(float));
    }
};

template <class Type> void project_text(const Model &m, Cache &cache, int64_t b, const float *tokens, ThreadPool &team) {
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

}  // namespace
