// Products where registers hold few columns: a chunk of a panel stays in the nearest cache while rows pass by.
//
//   activations [rows, inputs]  ·  panels of 64 outputs  ─▶  what a Sink does with each row's 64 outputs
//
// A chunk is 256 words of 16 columns, 16 KB; compressed ones are expanded there. What has been summed up to the
// chunk's beginning waits in memory, so each output is still summed over its inputs in order.
#pragma once

#include <algorithm>

#include "matrix.h"

namespace tandem::LANES {

constexpr int64_t CHUNK_WORDS = 256;
constexpr int64_t CHUNK_BYTES = CHUNK_WORDS * 64;
constexpr int64_t BLOCK_ROWS = 192;
constexpr int FUSED_ROWS = 2;

// Bytes that `product` needs for matrices of at most so many inputs.
template <class T>
static int64_t scratch_bytes(int64_t) {
    return CHUNK_BYTES + BLOCK_ROWS * PANEL * int64_t(sizeof(float));
}

// One or two rows, for which every weight is read once and nothing is kept.
template <class T, int ROWS, class Sink>
static void narrow(const Matrix& w, const uint8_t* a, int64_t stride, const uint8_t* panel, int64_t index, const Sink& sink) {
    Vector sums[ROWS][VECTORS];
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECTORS; ++v) sums[r][v] = zeros();
    if (w.format == PLAIN)
        multiply<T, ROWS, VECTORS>(a, stride, panel, WORD_ROW, w.inputs / T::PER_WORD, sums);
    else
        multiply_compressed<T, ROWS>(w, a, stride, panel, sums);
    for (int r = 0; r < ROWS; ++r) sink(r, index, sums[r]);
}

// ROWS rows of sums, PANEL numbers each, += a · 16 columns.
template <class T, int ROWS>
static void tile(
    const uint8_t* a, int64_t stride, const uint8_t* columns, int64_t step, int64_t words, float* sums,
    const uint8_t* ahead
) {
    Vector kept[ROWS][1];
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; ++r) kept[r][0] = load(sums + r * PANEL);
    multiply<T, ROWS, 1>(a, stride, columns, step, words, kept, ahead);
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; ++r) store(sums + r * PANEL, kept[r][0]);
}

// All rows of a block with 16 columns of a chunk.
template <class T>
static void column_tiles(
    const uint8_t* a, int64_t rows, int64_t stride, const uint8_t* columns, int64_t step, int64_t words,
    float* sums, const uint8_t* ahead
) {
    constexpr int64_t most = T::TILE_ROWS;
    for (int64_t row = 0; row < rows;) {
        const uint8_t* from = a + row * stride;
        float* to = sums + row * PANEL;
        const int64_t left = rows - row;
        const int64_t taken = left > most && left < 2 * most ? (left + 1) / 2 : std::min(left, most);
        switch (taken) {
            case 1: tile<T, 1>(from, stride, columns, step, words, to, ahead); break;
            case 2: tile<T, 2>(from, stride, columns, step, words, to, ahead); break;
            case 3: tile<T, 3>(from, stride, columns, step, words, to, ahead); break;
            case 4: tile<T, 4>(from, stride, columns, step, words, to, ahead); break;
            case 5: tile<T, 5>(from, stride, columns, step, words, to, ahead); break;
            default: tile<T, 6>(from, stride, columns, step, words, to, ahead); break;
        }
        row += taken;
        ahead = nullptr;
    }
}

// sums [rows, PANEL] = a · the panel.
template <class T>
static void panel_sums(
    const Matrix& w, const uint8_t* a, int64_t rows, int64_t stride, const uint8_t* panel, uint8_t* chunk, float* sums
) {
    const int64_t words = w.inputs / T::PER_WORD;
    std::fill(sums, sums + rows * PANEL, 0.0f);
    for (int64_t start = 0; start < words; start += CHUNK_WORDS) {
        const int64_t count = std::min(CHUNK_WORDS, words - start);
        for (int v = 0; v < VECTORS; ++v) {
            const uint8_t* columns = panel + start * WORD_ROW + v * 64;
            // A quarter of the next chunk's memory while each of this one's four passes by.
            const uint8_t* ahead = panel + (start + count) * WORD_ROW + v * count * 64;
            int64_t step = WORD_ROW;
            if (w.format != PLAIN) {
                const int64_t group = start * T::PER_WORD / GROUP;
                expand_columns<T>(w, panel + group * group_bytes(w), count * T::PER_WORD / GROUP, v, chunk, 64);
                columns = chunk, step = 64, ahead = nullptr;
            }
            column_tiles<T>(a + start * 4, rows, stride, columns, step, count, sums + v * WIDTH, ahead);
        }
    }
}

// Panels [begin, end) of rows · wᵀ. Rows go in blocks whose activations stay in the second-level cache.
// sink(row, panel, sums of its 64 outputs) is called once for each row and panel.
template <class T, class Sink>
static void product(
    const Matrix& w, const typename T::Element* activations, int64_t rows, int64_t begin, int64_t end,
    uint8_t* scratch, const Sink& sink
) {
    const int64_t stride = w.inputs * int64_t(sizeof(typename T::Element)), bytes = panel_bytes<T>(w);
    const uint8_t* a = (const uint8_t*)activations;
    float* sums = (float*)(scratch + CHUNK_BYTES);
    if (rows <= FUSED_ROWS) {
        for (int64_t index = begin; index < end; ++index) {
            const uint8_t* panel = w.data + index * bytes;
            if (rows == 1)
                narrow<T, 1>(w, a, stride, panel, index, sink);
            else if (rows == 2)
                narrow<T, 2>(w, a, stride, panel, index, sink);
        }
        return;
    }
    for (int64_t first = 0; first < rows; first += BLOCK_ROWS) {
        const int64_t count = std::min(BLOCK_ROWS, rows - first);
        for (int64_t index = begin; index < end; ++index) {
            panel_sums<T>(w, a + first * stride, count, stride, w.data + index * bytes, scratch, sums);
            for (int64_t row = 0; row < count; ++row) {
                Vector row_sums[VECTORS];
                for (int v = 0; v < VECTORS; ++v) row_sums[v] = load(sums + row * PANEL + v * WIDTH);
                sink(first + row, index, row_sums);
            }
        }
    }
}

}  // namespace tandem::LANES
