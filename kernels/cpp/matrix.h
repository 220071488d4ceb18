// Packed weights, and sums of products with them.
//
// A panel holds, word by word along the inner dimension, its 64 columns side by side: 256 bytes a word row.
// Compressed panels hold groups of 32 inputs: 4-bit numbers with a scale and a minimum for each column, or
// 8-bit ones with a scale. They are expanded to the very numbers that a plain panel of the same weights holds,
// so results are bit for bit those of the plain format. Every output is summed over the inputs in order, one
// accumulator each, whatever the number of rows: a row's result does not depend on the rows beside it.
#pragma once

#include "functions.h"
#include "structures.h"

namespace tandem::LANES {

constexpr int PANEL = 64;
constexpr int VECTORS = PANEL / WIDTH;
constexpr int WORD_ROW = PANEL * 4;
constexpr int GROUP = 32;

constexpr int64_t FOUR_BIT_GROUP = PANEL * GROUP / 2 + PANEL * 4;
constexpr int64_t EIGHT_BIT_GROUP = PANEL * GROUP + PANEL * 2;

static inline int64_t group_bytes(const Matrix& w) { return w.format == FOUR_BIT ? FOUR_BIT_GROUP : EIGHT_BIT_GROUP; }

template <class T>
static inline int64_t panel_bytes(const Matrix& w) {
    if (w.format == PLAIN) return w.inputs * PANEL * int64_t(sizeof(typename T::Element));
    return w.inputs / GROUP * group_bytes(w);
}

// One vector of columns of a compressed group, word by word, in order: use(word, columns).
template <class T, class Use>
static inline __attribute__((always_inline)) void expand(
    bool four, const uint8_t* group, int vector, Use use
) {
    constexpr int64_t bytes = 64 * T::PER_WORD, word_bytes = 16 * T::PER_WORD;
    const uint8_t* scales = group + vector * WIDTH * 2;
    if (four)
        Expand<T>::four_bit(group + vector * bytes, bytes * VECTORS, scales + PANEL * GROUP / 2,
                            scales + PANEL * GROUP / 2 + PANEL * 2, use);
    else
        Expand<T>::eight_bit(group + vector * word_bytes, word_bytes * VECTORS, scales + PANEL * GROUP, use);
}

// One vector of columns of `groups` groups of a compressed panel, from `from` on, as plain words `step` bytes apart.
template <class T>
static void expand_columns(
    const Matrix& w, const uint8_t* from, int64_t groups, int vector, uint8_t* plain, int64_t step
) {
    constexpr int words = GROUP / T::PER_WORD;
    for (int64_t group = 0; group < groups; ++group) {
        uint8_t* to = plain + group * words * step;
        expand<T>(w.format == FOUR_BIT, from + group * group_bytes(w), vector,
                  [=](int word, typename T::Columns x) { store_words(to + word * step, T::words(x)); });
    }
}

// sums[row][vector] += a[row] · columns, over `words` words. `stride`: bytes from a row of a to the next;
// `step`: bytes from a word row of columns to the next. `ahead`: memory to bring near meanwhile, 64 bytes a word.
template <class T, int ROWS, int COLUMNS>
static inline void multiply(
    const uint8_t* a, int64_t stride, const uint8_t* columns, int64_t step, int64_t words,
    Vector (&sums)[ROWS][COLUMNS], const uint8_t* ahead = nullptr
) {
    for (int64_t word = 0; word < words; ++word) {
        if (ahead) _mm_prefetch(ahead + word * 64, _MM_HINT_T1);
        typename T::Columns b[COLUMNS];
#pragma GCC unroll 4
        for (int v = 0; v < COLUMNS; ++v) b[v] = T::columns(columns + word * step + v * 64);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; ++r) {
            const typename T::Spread x = T::spread(a + r * stride + word * 4);
#pragma GCC unroll 4
            for (int v = 0; v < COLUMNS; ++v) T::accumulate(sums[r][v], x, b[v]);
        }
    }
}

// The same with a compressed panel, expanded in registers: for few rows, where expanding into memory first
// would cost more than the products.
template <class T, int ROWS>
static inline void multiply_compressed(
    const Matrix& w, const uint8_t* a, int64_t stride, const uint8_t* panel, Vector (&sums)[ROWS][VECTORS]
) {
    constexpr int words = GROUP / T::PER_WORD;
    const bool four = w.format == FOUR_BIT;
    for (int64_t group = 0; group < w.inputs / GROUP; ++group) {
        const uint8_t* inputs = a + group * words * 4;
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
            auto use = [&](int word, typename T::Columns b) __attribute__((always_inline)) {
#pragma GCC unroll 6
                for (int r = 0; r < ROWS; ++r)
                    T::accumulate(sums[r][v], T::spread(inputs + r * stride + word * 4), b);
            };
            expand<T>(four, panel + group * group_bytes(w), v, use);
        }
    }
}

}  // namespace tandem::LANES
