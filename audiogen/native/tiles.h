// Products of many rows by a processor's matrix tiles (Intel AMX): 16 rows by 16 outputs by 16 words in one instruction.
// A panel's words lie as such a tile wants them. A row's sums do not depend on the other rows in its tile.

#pragma once

#include "products.h"

#if defined(__linux__) && defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__)
#include <sys/syscall.h>
#include <unistd.h>
#define AUDIOGEN_TILES
#endif

namespace {

#ifdef AUDIOGEN_TILES

// Linux gives a process the registers of tiles when it asks (arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
inline bool tiles_allowed() {
    static const bool allowed = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
    return allowed;
}

// Sums of bfloat16 round otherwise than those of vectors do, so all numbers of rows take tiles; those of int8 are exact,
// and few rows are quicker without.
template <class Type> bool takes_tiles(const Linear &linear, int64_t num_rows) {
    if (std::is_same<Type, Float32>::value || std::is_same<Type, Int4>::value) return false;
    if (linear.inputs % (LANES * Type::VALUES)) return false;
    return (num_rows > 4 || std::is_same<Type, BFloat16>::value) && tiles_allowed();
}

constexpr int64_t TILE = 16;  // rows of one

// Registers 0 to 3 for sums, 4 and 5 for inputs of up to 16 rows and of those past them, 6 and 7 for weights.
inline void configure(int64_t num_rows) {
    struct {
        uint8_t palette = 1, start = 0, reserved[14] = {};
        uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {};
    } of;
    const uint8_t few = std::min(TILE, num_rows), more = std::max<int64_t>(0, num_rows - TILE);
    for (int i = 0; i < 4; ++i) of.rows[i] = more && i >= 2 ? more : few;
    of.rows[4] = few, of.rows[5] = more ? more : TILE;
    of.rows[6] = of.rows[7] = TILE;
    _tile_loadconfig(&of);
}

// The register, 0 to 3, with the sums of row r and panel p of a block of R tiles of rows.
template <int R> INLINE int64_t slot(int64_t r, int64_t p) { return R == 2 ? r / TILE * 2 + p : p; }

template <class Value> INLINE void store_tiles(Value (&to)[4][TILE][LANES]) {
    _tile_stored(0, to[0], 64);
    _tile_stored(1, to[1], 64);
    _tile_stored(2, to[2], 64);
    _tile_stored(3, to[3], 64);
}
INLINE void zero_tiles() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

#define AUDIOGEN_DOT(sums, inputs, weights)                  \
    if constexpr (whole)                                     \
        _tile_dpbsud(sums, inputs, weights);                 \
    else                                                     \
        _tile_dpbf16ps(sums, inputs, weights)

// R tiles of rows from `row` on, `num_rows` in all, by P panels: 1 by 4, 2 by 2, or P = 1.
template <class Type, int R, int P>
__attribute__((noinline)) void block(const Linear &linear, const Input &in, int64_t panel, int64_t row,
                                     int64_t num_rows, const Output &out) {
    constexpr bool whole = std::is_same<Type, Int8>::value;
    const int64_t num_words = linear.inputs / Type::VALUES, stride = in.stride * int64_t(sizeof(uint32_t));
    const uint32_t *w = linear.panels + panel * num_words * LANES, *x = in.words + row * in.stride;
    alignas(64) float sum[4][TILE][LANES];
    if constexpr (whole) memset(sum, 0, sizeof sum);
    zero_tiles();
    for (int64_t k = 0; k < num_words; k += TILE, x += TILE, w += TILE * LANES) {
        if (row == 0)
            for (int64_t p = 0; p < P; ++p)
                UNROLL for (int64_t i = 0; i < TILE; ++i) __builtin_prefetch(w + (p * num_words + i + FAR) * LANES);
        _tile_loadd(4, x, stride);
        if constexpr (R == 2) {
            _tile_loadd(5, x + TILE * in.stride, stride);
            _tile_loadd(6, w, 64);
            AUDIOGEN_DOT(0, 4, 6);
            AUDIOGEN_DOT(2, 5, 6);
            if constexpr (P == 2) {
                _tile_loadd(7, w + num_words * LANES, 64);
                AUDIOGEN_DOT(1, 4, 7);
                AUDIOGEN_DOT(3, 5, 7);
            }
        } else {
            _tile_loadd(6, w, 64);
            AUDIOGEN_DOT(0, 4, 6);
            if constexpr (P == 4) {
                _tile_loadd(7, w + num_words * LANES, 64);
                AUDIOGEN_DOT(1, 4, 7);
                _tile_loadd(6, w + 2 * num_words * LANES, 64);
                AUDIOGEN_DOT(2, 4, 6);
                _tile_loadd(7, w + 3 * num_words * LANES, 64);
                AUDIOGEN_DOT(3, 4, 7);
            }
        }
        if constexpr (whole) {  // a tile has the words of a group
            alignas(64) int32_t group[4][TILE][LANES];
            store_tiles(group);
            zero_tiles();
            for (int64_t r = 0; r < num_rows; ++r) {
                const int64_t of = (row + r) * in.groups + k / TILE;
                UNROLL for (int64_t p = 0; p < P; ++p) {
                    float *to = sum[slot<R>(r, p)][r % TILE];
                    const Ints s = load<Ints>(group[slot<R>(r, p)][r % TILE]) + in.offsets[of];
                    store(to, load<Floats>(to) + __builtin_convertvector(s, Floats) * in.scales[of]);
                }
            }
        }
    }
    if constexpr (!whole) store_tiles(sum);
    for (int64_t r = 0; r < num_rows; ++r)
        for (int64_t p = 0; p < P; ++p)
            put(linear, panel + p, row + r, load<Floats>(sum[slot<R>(r, p)][r % TILE]), out);
}

// All rows by panels first .. last.
template <class Type>
void by_tiles(const Linear &linear, const Input &in, int64_t num_rows, int64_t first, int64_t last,
              const Output &out) {
    for (int64_t row = 0; row < num_rows; row += 2 * TILE) {
        const int64_t rows = std::min(2 * TILE, num_rows - row);
        int64_t panel = first;
        configure(rows);
        if (rows > TILE) {
            for (; panel + 2 <= last; panel += 2) block<Type, 2, 2>(linear, in, panel, row, rows, out);
            for (; panel < last; ++panel) block<Type, 2, 1>(linear, in, panel, row, rows, out);
        } else {
            for (; panel + 4 <= last; panel += 4) block<Type, 1, 4>(linear, in, panel, row, rows, out);
            for (; panel < last; ++panel) block<Type, 1, 1>(linear, in, panel, row, rows, out);
        }
    }
    _tile_release();
}
#undef AUDIOGEN_DOT

#else

template <class Type> bool takes_tiles(const Linear &, int64_t) { return false; }
template <class Type> void by_tiles(const Linear &, const Input &, int64_t, int64_t, int64_t, const Output &) {}

#endif

}  // namespace
