// Products where registers hold 6 rows of a whole panel: panels stay where they are, rows pass by.
//
//   activations [rows, inputs]  ·  panels of 64 outputs  ─▶  what a Sink does with each row's 64 outputs
#pragma once

#include "matrix.h"

namespace tandem::LANES {

constexpr int64_t BLOCK_BYTES = 384 * 1024;
constexpr int FUSED_ROWS = 3;

// Bytes that `product` needs for matrices of at most so many inputs.
template <class T>
static int64_t scratch_bytes(int64_t inputs) {
    return inputs * PANEL * int64_t(sizeof(typename T::Element));
}

template <class T, int ROWS, class Sink>
static void tile(
    const Matrix& w, const uint8_t* a, int64_t row, int64_t stride, const uint8_t* panel, bool plain,
    int64_t index, const Sink& sink, const uint8_t* ahead
) {
    Vector sums[ROWS][VECTORS];
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECTORS; ++v) sums[r][v] = zeros();
    if (plain)
        multiply<T, ROWS, VECTORS>(a + row * stride, stride, panel, WORD_ROW, w.inputs / T::PER_WORD, sums, ahead);
    else if constexpr (ROWS <= FUSED_ROWS)
        multiply_compressed<T, ROWS>(w, a + row * stride, stride, panel, sums);
    for (int r = 0; r < ROWS; ++r) sink(row + r, index, sums[r]);
}

template <class T, class Sink>
static void tiles(
    const Matrix& w, const uint8_t* a, int64_t first, int64_t last, int64_t stride, const uint8_t* panel,
    bool plain, int64_t index, const Sink& sink, const uint8_t* next, int64_t next_bytes
) {
    constexpr int64_t most = T::TILE_ROWS;
    const uint8_t* const next_end = next + next_bytes;
    for (int64_t row = first; row < last;) {
        const int64_t left = last - row;
        // 7 to 11 rows in two tiles of about one size: a tile of one row costs as much as one of four.
        const int64_t rows = left > most && left < 2 * most ? (left + 1) / 2 : left;
        const uint8_t* ahead = next < next_end && last - first > most ? next : nullptr;
        next += w.inputs / T::PER_WORD * 64;
        switch (rows) {
            case 1: tile<T, 1>(w, a, row, stride, panel, plain, index, sink, ahead); break;
            case 2: tile<T, 2>(w, a, row, stride, panel, plain, index, sink, ahead); break;
            case 3: tile<T, 3>(w, a, row, stride, panel, plain, index, sink, ahead); break;
            case 4: tile<T, 4>(w, a, row, stride, panel, plain, index, sink, ahead); break;
            case 5: tile<T, 5>(w, a, row, stride, panel, plain, index, sink, ahead); break;
            default: tile<T, 6>(w, a, row, stride, panel, plain, index, sink, ahead); break;
        }
        row += rows < most ? rows : most;
    }
}

// Panels [begin, end) of rows · wᵀ. Rows go in blocks whose activations stay in the second-level cache.
// sink(row, panel, sums of its 64 outputs) is called once for each row and panel.
template <class T, class Sink>
static void product(
    const Matrix& w, const typename T::Element* activations, int64_t rows, int64_t begin, int64_t end,
    uint8_t* scratch, const Sink& sink
) {
    const int64_t stride = w.inputs * int64_t(sizeof(typename T::Element));
    const int64_t bytes = panel_bytes<T>(w), most = T::TILE_ROWS;
    const uint8_t* a = (const uint8_t*)activations;
    const int64_t block = BLOCK_BYTES / stride > most ? BLOCK_BYTES / stride / most * most : most;
    for (int64_t first = 0; first < rows; first += block) {
        const int64_t last = first + block < rows ? first + block : rows;
        const bool expanded = w.format != PLAIN && last - first > FUSED_ROWS;
        for (int64_t index = begin; index < end; ++index) {
            const uint8_t* panel = w.data + index * bytes;
            for (int v = 0; expanded && v < VECTORS; ++v)
                expand_columns<T>(w, panel, w.inputs / GROUP, v, scratch + v * 64, WORD_ROW);
            const bool plain = expanded || w.format == PLAIN;
            const int64_t next = index + 1 < end && !first ? bytes : 0;
            tiles<T>(w, a, first, last, stride, expanded ? scratch : panel, plain, index, sink, panel + bytes, next);
        }
    }
}

}  // namespace tandem::LANES
