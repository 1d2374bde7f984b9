// The kernels against a naive step in double precision, where there is no PyTorch: under an emulator, a sanitizer.
// Linked with a build of audiogen/native/native.cpp. Prints the largest difference of a logit, whose standard deviation
// is 1, of each kind of weights; fails where one is too large. Given a path, writes every logit there, as float32.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "../../audiogen/native/interface.h"

namespace {

typedef std::vector<double> Row;
typedef std::vector<Row> Rows;

constexpr int64_t BOOKS = 3, CODES = 21, LAYERS = 2, FF = 3;
const int64_t VALUES[] = {1, 2, 4, 8};  // in a word, by dtype
const double TOLERANCE[] = {1e-4, 0.04, 0.12, 0.12};
const char *const NAMES[] = {"float32", "bfloat16", "int8", "int4"};
constexpr int64_t GROUP = 64;  // inputs that share a scale of int4

std::mt19937 generator;

std::vector<float> noise(int64_t count, double deviation, double mean = 0.0) {  // uniform
    std::vector<float> values(count);
    for (float &value : values) value = float(mean + deviation * std::sqrt(12.0) * (generator() * 0x1p-32 - 0.5));
    return values;
}

struct Weights {  // [outputs, inputs]
    Weights(int64_t outputs, int64_t inputs, double gain = 0.6)
        : outputs(outputs), inputs(inputs), values(noise(outputs * inputs, gain / std::sqrt(inputs))) {}

    Row operator()(const Row &x) const {
        Row y(outputs, 0.0);
        for (int64_t n = 0; n < outputs; ++n)
            for (int64_t k = 0; k < inputs; ++k) y[n] += double(values[n * inputs + k]) * x[k];
        return y;
    }

    // The scale of int4 for the group of inputs that holds this one.
    float scale_of(int64_t n, int64_t k) const {
        float largest = 0.0f;
        for (int64_t i = k / GROUP * GROUP; i < std::min(inputs, k / GROUP * GROUP + GROUP); ++i)
            largest = std::fmax(largest, std::fabs(values[n * inputs + i]));
        return largest / 7;
    }

    void round_to_int4() {
        const Weights exact = *this;
        for (int64_t n = 0; n < outputs; ++n)
            for (int64_t k = 0; k < inputs; ++k) {
                float &value = values[n * inputs + k];
                value = std::nearbyint(value / exact.scale_of(n, k)) * exact.scale_of(n, k);
            }
    }

    int64_t outputs, inputs;
    std::vector<float> values;
};

struct LayerNorm {
    explicit LayerNorm(int64_t width) : weight(noise(width, 0.3, 1.0)), bias(noise(width, 0.3)) {}

    Row operator()(const Row &x) const {
        double mean = 0.0, square = 0.0;
        for (double value : x) mean += value / x.size();
        for (double value : x) square += (value - mean) * (value - mean) / x.size();
        Row y(x.size());
        for (size_t i = 0; i < x.size(); ++i) y[i] = (x[i] - mean) / std::sqrt(square + 1e-5) * weight[i] + bias[i];
        return y;
    }

    std::vector<float> weight, bias;
};

struct Block {
    explicit Block(int64_t dim)
        : norm_self(dim), norm_cross(dim), norm_ff(dim), in_proj(3 * dim, dim), out_proj(dim, dim),
          query_proj(dim, dim), text_proj(2 * dim, dim, 2.0), cross_out_proj(dim, dim), ff_in(FF * dim, dim),
          ff_out(dim, FF * dim) {}

    LayerNorm norm_self, norm_cross, norm_ff;
    Weights in_proj, out_proj, query_proj, text_proj, cross_out_proj, ff_in, ff_out;
};

struct Decoder {
    Decoder(int64_t dim, int64_t num_heads)
        : dim(dim), num_heads(num_heads), embedding(noise(BOOKS * (CODES + 1) * dim, 0.3)), out_norm(dim), heads(BOOKS * CODES, dim, 1.0) {
        for (int64_t i = 0; i < LAYERS; ++i) layers.emplace_back(dim);
    }

    void round_to_int4() {  // but for the heads, which stay int8
        for (Block &l : layers)
            for (Weights *each : {&l.in_proj, &l.out_proj, &l.query_proj, &l.text_proj, &l.cross_out_proj, &l.ff_in, &l.ff_out})
                each->round_to_int4();
    }

    int64_t dim, num_heads;
    std::vector<float> embedding;
    std::vector<Block> layers;
    LayerNorm out_norm;
    Weights heads;
};

struct Example {  // one row of a batch
    std::vector<int64_t> codes;  // [BOOKS, num_steps]
    std::vector<float> text;     // [num_tokens, dim]
    int64_t num_tokens;
};

// The naive step -----------------------------------------------------------------------------------------------------

// Attention of one query to the first `count` rows of `both`, which hold a key at `key` and a value `dim` after it.
Row attention(const Decoder &lm, const double *query, const Rows &both, int64_t key, int64_t count) {
    Row mixed(lm.dim, 0.0);
    const int64_t width = lm.dim / lm.num_heads;
    for (int64_t first = 0; first < lm.dim; first += width) {
        Row weights(count, 0.0);
        double sum = 0.0;
        for (int64_t t = 0; t < count; ++t) {
            for (int64_t i = first; i < first + width; ++i) weights[t] += query[i] * both[t][key + i];
            sum += weights[t] = std::exp(weights[t] / std::sqrt(double(width)));
        }
        for (int64_t t = 0; t < count; ++t)
            for (int64_t i = first; i < first + width; ++i) mixed[i] += weights[t] / sum * both[t][key + lm.dim + i];
    }
    return mixed;
}

void add(Row &x, const Row &update) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += update[i];
}

// Logits after every step, [num_steps, BOOKS * CODES].
Rows reference(const Decoder &lm, const Example &example, const std::vector<float> &positions, int64_t num_steps) {
    Rows x(num_steps, Row(lm.dim));
    for (int64_t s = 0; s < num_steps; ++s)
        for (int64_t i = 0; i < lm.dim; ++i) {
            x[s][i] = positions[s * lm.dim + i];
            for (int64_t k = 0; k < BOOKS; ++k)
                x[s][i] += lm.embedding[(example.codes[k * num_steps + s] + k * (CODES + 1)) * lm.dim + i];
        }
    for (const Block &layer : lm.layers) {
        Rows own, text;
        for (const Row &row : x) own.push_back(layer.in_proj(layer.norm_self(row)));
        for (int64_t l = 0; l < example.num_tokens; ++l)
            text.push_back(
                layer.text_proj(Row(&example.text[l * lm.dim], &example.text[l * lm.dim] + lm.dim)));
        for (int64_t s = 0; s < num_steps; ++s) {
            add(x[s], layer.out_proj(attention(lm, own[s].data(), own, lm.dim, s + 1)));
            if (example.num_tokens) {
                const Row query = layer.query_proj(layer.norm_cross(x[s]));
                add(x[s], layer.cross_out_proj(attention(lm, query.data(), text, 0, example.num_tokens)));
            }
            Row hidden = layer.ff_in(layer.norm_ff(x[s]));
            for (double &value : hidden) value *= 0.5 * (1.0 + std::erf(value / std::sqrt(2.0)));
            add(x[s], layer.ff_out(hidden));
        }
    }
    for (Row &row : x) row = lm.heads(lm.out_norm(row));
    return x;
}

// The kernels --------------------------------------------------------------------------------------------------------

struct Packed {
    Packed(const Decoder &lm, int64_t dtype, void *team) : dtype(dtype), team(team) {
        for (const Block &l : lm.layers)
            layers.push_back({norm(l.norm_self), pack(l.in_proj), pack(l.out_proj), norm(l.norm_cross),
                              pack(l.query_proj), pack(l.text_proj), pack(l.cross_out_proj), norm(l.norm_ff),
                              pack(l.ff_in), pack(l.ff_out)});
        model = {dtype, BOOKS, CODES, lm.dim, LAYERS, lm.num_heads, lm.embedding.data(), layers.data(),
                 norm(lm.out_norm), pack(lm.heads, dtype == 3 ? 2 : dtype)};
    }

    static Norm norm(const LayerNorm &from) { return {from.weight.data(), from.bias.data()}; }

    Linear pack(const Weights &from) { return pack(from, dtype); }

    Linear pack(const Weights &from, int64_t as) {
        const int64_t padded = (from.outputs + 15) / 16 * 16, groups = (from.inputs + GROUP - 1) / GROUP;
        const int64_t num_words = as == 3 ? groups * (1 + GROUP / 8) : (from.inputs + VALUES[as] - 1) / VALUES[as];
        panels.emplace_back(padded * num_words, ~0u);
        scales.emplace_back(padded, NAN);
        for (int64_t n = 0; n < padded; ++n)
            as == 3 ? pack_groups(from, n, panels.back().data())
                    : pack_row(from, n, panels.back().data(), scales.back().data(), as);
        return {panels.back().data(), as == 2 ? scales.back().data() : nullptr, from.inputs, from.outputs};
    }

    // Output n of a matrix, zeros past the last one, into its lane of its panel: what `pack` of native.py does.
    static void pack_groups(const Weights &from, int64_t n, uint32_t *to) {
        const int64_t groups = (from.inputs + GROUP - 1) / GROUP;
        to += n / 16 * groups * (1 + GROUP / 8) * 16 + n % 16;
        for (int64_t first = 0; first < from.inputs; first += GROUP) {
            const float scale = n < from.outputs ? from.scale_of(n, first) : 0.0f;
            memcpy(to, &scale, sizeof scale);
            to += 16;
            for (int64_t k = first; k < first + GROUP; k += 8, to += 16) {
                *to = 0;
                for (int64_t i = 0; i < 8; ++i) {
                    const bool there = n < from.outputs && k + i < from.inputs && scale > 0;
                    const float value = there ? from.values[n * from.inputs + k + i] / scale : 0.0f;
                    *to |= uint32_t(std::lrint(value) + 8) << (i < 4 ? 8 * i : 8 * (i - 4) + 4);
                }
            }
        }
    }

    static void pack_row(const Weights &from, int64_t n, uint32_t *to, float *scale, int64_t dtype) {
        const float *row = from.values.data() + n * from.inputs;
        const int64_t values = VALUES[dtype], num_words = (from.inputs + values - 1) / values;
        const auto value = [&](int64_t k) { return n < from.outputs && k < from.inputs ? row[k] : 0.0f; };
        float largest = 0.0f;
        for (int64_t k = 0; k < from.inputs; ++k) largest = std::fmax(largest, std::fabs(value(k)));
        scale[n] = largest / 127;
        for (int64_t k = 0; k < num_words; ++k) {
            uint32_t word = 0;
            for (int64_t i = 0; i < values; ++i) {
                const float x = value(k * values + i);
                uint32_t b;
                memcpy(&b, &x, sizeof b);
                if (dtype == 0) word = b;
                if (dtype == 1) word |= (b + 0x7fff + (b >> 16 & 1)) >> 16 << 16 * i;
                if (dtype == 2) word |= uint32_t(std::lrint(largest > 0 ? x * 127 / largest : 0.0f) + 128) << 8 * i;
            }
            to[(n / 16 * num_words + k) * 16 + n % 16] = word;
        }
    }

    int64_t dtype;
    void *team;
    std::vector<std::vector<uint32_t>> panels;
    std::vector<std::vector<float>> scales;
    std::vector<Layer> layers;
    Model model;
};

// Rows with a cache of their own, and the calls that they are stepped in, each of so many steps.
struct Running {
    Running(const Model &m, const std::vector<Example> &batch, const std::vector<int64_t> &calls, void *team)
        : batch(batch), calls(calls) {
        int64_t longest = 0, bytes[4];
        for (int64_t call : calls) num_steps += call;
        for (const Example &row : batch) lengths.push_back(row.num_tokens), longest = std::max(longest, row.num_tokens);
        audiogen_head_bytes(&m, num_steps, bytes);
        audiogen_head_bytes(&m, longest, bytes + 2);
        for (int64_t size : bytes) memory.emplace_back(size * LAYERS * batch.size() * m.num_heads, char(0xff));
        cache = {int64_t(batch.size()), num_steps, 0, longest, memory[0].data(), memory[1].data(), memory[2].data(),
                 memory[3].data(), lengths.data()};
        for (size_t b = 0; b < batch.size(); ++b)
            if (lengths[b]) audiogen_text(&m, &cache, b, batch[b].text.data(), team);
        logits.assign(calls.size() * batch.size() * WIDTH, NAN);
    }
    Running(const Running &) = delete;

    Part part(const std::vector<float> &positions, int64_t dim, size_t call) {
        codes.clear();
        for (const Example &row : batch)
            for (int64_t k = 0; k < BOOKS; ++k)
                for (int64_t s = 0; s < calls[call]; ++s) codes.push_back(row.codes[k * num_steps + cache.length + s]);
        return {&cache, codes.data(), positions.data() + cache.length * dim, calls[call],
                &logits[call * batch.size() * WIDTH]};
    }

    static constexpr size_t WIDTH = BOOKS * CODES;
    const std::vector<Example> &batch;
    const std::vector<int64_t> &calls;
    int64_t num_steps = 0;
    std::vector<int64_t> lengths, codes;
    std::vector<std::vector<char>> memory;  // not a number until it is written
    Cache cache;
    std::vector<float> logits;  // after every call: [calls, batch, BOOKS * CODES]
};

// All of them in the same calls of the kernels; they have equally many.
void run(const Packed &packed, const std::vector<Running *> &all, const std::vector<float> &positions, void *team) {
    for (size_t call = 0; call < all[0]->calls.size(); ++call) {
        std::vector<Part> parts;
        for (Running *each : all) parts.push_back(each->part(positions, packed.model.dim, call));
        audiogen_step(&packed.model, parts.data(), int64_t(parts.size()), team);
        for (Running *each : all) each->cache.length += each->calls[call];
    }
}

std::vector<float> run(const Packed &packed, const std::vector<Example> &batch, const std::vector<float> &positions,
                       const std::vector<int64_t> &calls, void *team) {
    Running one(packed.model, batch, calls, team);
    run(packed, {&one}, positions, team);
    return one.logits;
}

// Whether two caches at different lengths that are stepped together have the logits that each has alone.
bool joined(const Packed &packed, const std::vector<Example> &batch, const std::vector<float> &positions,
            const std::vector<int64_t> &calls, void *team) {
    const std::vector<Example> first(batch.begin(), batch.begin() + 2), rest(batch.begin() + 2, batch.end());
    const std::vector<int64_t> other(calls.rbegin(), calls.rend());
    Running one(packed.model, first, calls, team), two(packed.model, rest, other, team);
    run(packed, {&one, &two}, positions, team);
    return one.logits == run(packed, first, positions, calls, team) &&
           two.logits == run(packed, rest, positions, other, team);
}

}  // namespace

int main(int argc, char **argv) {
    const std::vector<int64_t> calls{1, 5, 9, 1, 1, 2, 1};  // prefills and single steps, past 16 positions
    const int64_t num_steps = 20;
    void *const alone = audiogen_team_new(1);
    void *const teams[] = {audiogen_team_new(2), audiogen_team_new(3), audiogen_team_new(7)};
    FILE *const written = argc > 1 ? fopen(argv[1], "wb") : nullptr;
    double worst[4] = {};
    bool same = true;
    for (const auto &[dim, num_heads] : {std::pair<int64_t, int64_t>{24, 4}, {70, 14}, {130, 2}, {6, 6}, {34, 1}, {64, 2}}) {
        const Decoder lm(dim, num_heads);
        Decoder rounded = lm;
        rounded.round_to_int4();
        const std::vector<float> positions = noise(num_steps * dim, 0.7);
        const Packed packed[] = {{lm, 0, alone}, {lm, 1, teams[1]}, {lm, 2, alone}, {rounded, 3, alone}};
        for (const std::vector<int64_t> &lengths :
             std::vector<std::vector<int64_t>>{{5}, {0, 0}, {0, 1, 19}, {16, 0, 3, 7}, {2, 0, 17, 0, 4}}) {
            std::vector<Example> batch;
            std::vector<Rows> exact, of_int4;
            for (int64_t length : lengths) {
                batch.push_back({{}, noise(length * dim, 1.0), length});
                for (int64_t i = 0; i < BOOKS * num_steps; ++i) batch.back().codes.push_back(generator() % (CODES + 1));
                exact.push_back(reference(lm, batch.back(), positions, num_steps));
                of_int4.push_back(reference(rounded, batch.back(), positions, num_steps));
            }
            for (const Packed &kind : packed) {
                const std::vector<float> logits = run(kind, batch, positions, calls, alone);
                for (void *team : teams)
                    if (dim < 30 && batch.size() == 5)
                        same &= logits == run(kind, batch, positions, calls, team) &&
                                joined(kind, batch, positions, calls, team);
                if (written) fwrite(logits.data(), sizeof(float), logits.size(), written);
                const float *logit = logits.data();
                int64_t step = -1;
                for (int64_t call : calls) {
                    step += call;
                    for (const Rows &row : kind.dtype == 3 ? of_int4 : exact)
                        for (double value : row[step]) {
                            const double error = std::fabs(*logit++ - value);
                            const double difference = std::isnan(error) ? INFINITY : error;
                            worst[kind.dtype] = std::max(worst[kind.dtype], difference);
                        }
                }
            }
        }
    }
    if (written) fclose(written);
    std::vector<char> bytes((1 << 22) + 3 * 4096, 1);
    audiogen_pages(bytes.data() + 5, bytes.size() - 5);
    for (void *team : teams) audiogen_read(bytes.data(), bytes.size(), team);
    audiogen_team_free(alone);
    for (void *team : teams) audiogen_team_free(team);
    bool good = same;
    for (int dtype = 0; dtype < 4; ++dtype) {
        printf("%s %.2g\n", NAMES[dtype], worst[dtype]);
        good &= worst[dtype] < TOLERANCE[dtype];
    }
    if (!same) puts("other numbers of threads, or rows beside them, give other logits");
    return good ? 0 : 1;
}
