// A product of all rows by a matrix, shared by the threads.

#pragma once

#include <algorithm>
#include <cstdint>

#include "products.h"
#include "team.h"
#include "tiles.h"

namespace {

// Panels at a time for R rows: as many sums as registers hold, beside a panel's weights and an input.
constexpr int panels_for(int rows) {
    const int most = std::min(4, ACCUMULATORS / rows);
    return most == 3 ? 2 : most;  // divides UNIT
}

template <class Type, int64_t AHEAD, int R>
void tiles(const Linear &linear, const Input &in, int64_t panel, int64_t last, int64_t row, const Output &out) {
    constexpr int P = panels_for(R);
    for (; panel + P <= last; panel += P) tile<Type, AHEAD, P, R>(linear, in, panel, row, out);
    for (; panel < last; ++panel) tile<Type, AHEAD, 1, R>(linear, in, panel, row, out);
}

// A few panels by all rows, before the next: weights come from memory once, whatever the number of rows, and those of
// many rows stay in the first cache meanwhile. A row's sums have one order, in whatever tile it is.
template <class Type>
void multiply(Worker &worker, const Linear &linear, const Input &in, int64_t num_rows, const Output &out) {
    const int64_t num_panels = up(linear.outputs, LANES) / LANES;
    const bool by_matrix_tiles = takes_tiles<Type>(linear, num_rows);
    const int64_t at_once = num_rows > ROWS ? panels_for(ROWS) : UNIT;
    for (int64_t first; (first = worker.take(UNIT)) < num_panels;) {
        const int64_t end = std::min(first + UNIT, num_panels);
        if (by_matrix_tiles) {
            by_tiles<Type>(linear, in, num_rows, first, end, out);
            continue;
        }
        for (int64_t panel = first, last; panel < end; panel = last) {
            last = std::min(panel + at_once, end);
            int64_t row = 0;
            for (; row + ROWS <= num_rows; row += ROWS)
                row ? tiles<Type, NONE, ROWS>(linear, in, panel, last, row, out)
                    : tiles<Type, FAR, ROWS>(linear, in, panel, last, row, out);
            if (num_rows - row >= 4) tiles<Type, FAR, 4>(linear, in, panel, last, row, out), row += 4;
            if (num_rows - row >= 2) tiles<Type, FAR, 2>(linear, in, panel, last, row, out), row += 2;
            if (num_rows > row) tiles<Type, FAR, 1>(linear, in, panel, last, row, out);
        }
    }
    worker.finish();
}

}  // namespace
