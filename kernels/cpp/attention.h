// Attention over a paged cache: queries in tiles, keys and values in tiles of 64 positions.
//
//   tile of cache ─▶ panels of keys, transposed, and of values ─▶ scores ─▶ softmax so far ─▶ mix
//
// Tiles begin at multiples of 64 positions and every sum runs over positions in order, so a query's result
// depends on its position and its sequence alone: not on its chunk, its batch, or where the blocks lie.
#pragma once

#include <limits>
#include <type_traits>
#include <vector>

#include "matrix.h"

namespace tandem::LANES {

constexpr int POSITIONS = 64;
constexpr int QUERY_ROWS = 96;
constexpr int MOST_DIM = 256;

template <class T>
struct AttentionScratch {
    using Element = typename T::Element;
    alignas(64) uint8_t keys[MOST_DIM / T::PER_WORD * 256];
    alignas(64) uint8_t values[POSITIONS / T::PER_WORD * MOST_DIM * 4];
    alignas(64) Element queries[QUERY_ROWS * MOST_DIM];
    alignas(64) Element weights[QUERY_ROWS * POSITIONS];
    alignas(64) float scores[QUERY_ROWS * POSITIONS];
    alignas(64) float mixed[QUERY_ROWS * MOST_DIM];
    float most[QUERY_ROWS];
    float total[QUERY_ROWS];
};

// Where positions [start, start + 64) of a sequence begin in a layer's keys or values, in KV heads.
struct Places {
    int64_t count = 0;
    int64_t slot[POSITIONS];

    void find(const Heads& h, const Span& span, int64_t start) {
        count = std::min<int64_t>(POSITIONS, span.length - start);
        int64_t block = start / h.block_size, inside = start % h.block_size;
        for (int64_t i = 0; i < count; ++i) {
            slot[i] = (span.blocks[block] * h.block_size + inside) * h.kv_heads;
            if (++inside == h.block_size) inside = 0, ++block;
        }
    }
};

// Read a tile into the cache, `bytes` of each position: line by line, of four blocks' keys and values in turn.
// A processor foresees such runs of lines but not the jumps between heads and blocks: 25 GB/s instead of 8.
static inline void warm(const uint8_t* keys, const uint8_t* values, const Places& here, int64_t stride, int64_t bytes) {
    constexpr int runs = 4;
    const int64_t each = (here.count + runs - 1) / runs;
    for (int64_t i = 0; i < each; ++i)
        for (int64_t byte = 0; byte < bytes; byte += 64)
            for (int64_t at = i; at < here.count; at += each) {
                *(const volatile uint8_t*)(keys + here.slot[at] * stride + byte);
                *(const volatile uint8_t*)(values + here.slot[at] * stride + byte);
            }
}

// One KV head of a tile into panels; positions from the end of the sequence on are zero and never read.
template <class T>
static void gather_tile(
    const Heads& h, const Places& here, int64_t kv_head, const typename T::Element* keys,
    const typename T::Element* values, AttentionScratch<T>& s
) {
    using Element = typename T::Element;
    const int64_t words = h.dim / T::PER_WORD;
    auto row = [&](const Element* from, int64_t i) -> const Element* {
        return i < here.count ? from + (here.slot[i] + kv_head) * h.dim : nullptr;
    };
    for (int64_t column = 0; column < POSITIONS; column += 16) {
        for (int64_t word = 0; word < words; word += 16) {
            const uint8_t* rows[16];
            for (int i = 0; i < 16; ++i) {
                const Element* key = row(keys, column + i);
                rows[i] = key ? (const uint8_t*)key + word * 4 : nullptr;
            }
            const int part = words - word < 16 ? int(words - word) : 16;
            transpose(rows, part, s.keys + word * 256 + column * 4);
        }
    }
    for (int64_t i = 0; i < POSITIONS; i += T::PER_WORD) {
        const Element* first = row(values, i);
        const Element* second = T::PER_WORD == 2 ? row(values, i + 1) : nullptr;
        for (int64_t d = 0; d < h.dim; d += 16)
            store_pair(s.values + (i / T::PER_WORD * h.dim + d) * 4, first ? first + d : nullptr,
                       second ? second + d : nullptr);
    }
}

// out [ROWS, columns] = or, with `ADDING`, += a · columns, as many columns at a time as registers hold.
template <class T, int ROWS, bool ADDING>
static inline void multiply_all(
    const uint8_t* a, int64_t stride, const uint8_t* panel, int64_t step, int64_t words, float* out, int64_t out_stride,
    int64_t columns
) {
    auto some = [&](int64_t column, auto count) __attribute__((always_inline)) {
        constexpr int vectors = count.value;
        Vector sums[ROWS][vectors];
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < vectors; ++v)
                sums[r][v] = ADDING ? load(out + r * out_stride + column + v * WIDTH) : zeros();
        multiply<T, ROWS, vectors>(a, stride, panel + column * 4, step, words, sums);
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < vectors; ++v) store(out + r * out_stride + column + v * WIDTH, sums[r][v]);
    };
    int64_t column = 0;
    for (; column + TILE_VECTORS * WIDTH <= columns; column += TILE_VECTORS * WIDTH)
        some(column, std::integral_constant<int, TILE_VECTORS>());
    for (; column < columns; column += WIDTH) some(column, std::integral_constant<int, 1>());
}

template <class T, int ROWS>
static inline void score_rows(AttentionScratch<T>& s, int64_t row, int64_t dim) {
    multiply_all<T, ROWS, false>((const uint8_t*)(s.queries + row * dim), dim * int64_t(sizeof(typename T::Element)),
                                 s.keys, WORD_ROW, dim / T::PER_WORD, s.scores + row * POSITIONS, POSITIONS, POSITIONS);
}

// Scores of one row into weights; the row sees the first `seen` positions of the tile (≥ 0, may exceed 64).
template <class T>
static inline void soften(AttentionScratch<T>& s, int64_t row, int64_t seen, float scale, int64_t dim) {
    const Vector never = all(-std::numeric_limits<float>::infinity());
    Vector x[VECTORS];
    Vector top = never;
    for (int v = 0; v < VECTORS; ++v) {
        const Vector score = times(load(s.scores + row * POSITIONS + v * WIDTH), all(scale));
        x[v] = chosen(never, first_lanes(seen - v * WIDTH), score);
        top = greatest(top, x[v]);
    }
    const float before = s.most[row], now = std::max(before, most(top));
    const float shrink = first(exponential(all(before - now)));
    Vector total = zeros();
    for (int v = 0; v < VECTORS; ++v) {
        const Vector weight = kept(differs(x[v], never), exponential(subtract(x[v], all(now))));
        T::store(s.weights + row * POSITIONS + v * WIDTH, weight);
        total = add(total, T::rounded(weight));
    }
    s.most[row] = now;
    s.total[row] = s.total[row] * shrink + sum(total);
    for (int64_t d = 0; d < dim; d += WIDTH) {
        float* mixed = s.mixed + row * dim + d;
        store(mixed, times(load(mixed), all(shrink)));
    }
}

template <class T, int ROWS>
static inline void mix_rows(AttentionScratch<T>& s, int64_t row, int64_t dim) {
    multiply_all<T, ROWS, true>((const uint8_t*)(s.weights + row * POSITIONS),
                                POSITIONS * int64_t(sizeof(typename T::Element)), s.values, dim * 4,
                                POSITIONS / T::PER_WORD, s.mixed + row * dim, dim, dim);
}

template <class T>
static inline void score(AttentionScratch<T>& s, int64_t row, int64_t end, int64_t dim) {
    for (; row + T::TILE_ROWS <= end; row += T::TILE_ROWS) score_rows<T, T::TILE_ROWS>(s, row, dim);
    for (; row + 3 <= end; row += 3) score_rows<T, 3>(s, row, dim);
    for (; row < end; ++row) score_rows<T, 1>(s, row, dim);
}

template <class T>
static inline void mix(AttentionScratch<T>& s, int64_t row, int64_t end, int64_t dim) {
    for (; row + T::TILE_ROWS <= end; row += T::TILE_ROWS) mix_rows<T, T::TILE_ROWS>(s, row, dim);
    for (; row + 3 <= end; row += 3) mix_rows<T, 3>(s, row, dim);
    for (; row < end; ++row) mix_rows<T, 1>(s, row, dim);
}

// A piece of a layer's attention: some queries of one sequence, some of its KV heads, at most QUERY_ROWS
// pairs of a query and a head. A decoding row takes all its KV heads at once, which lie side by side.
struct Piece {
    const Span* span;
    int64_t first;  // row of the step
    int64_t queries;
    int64_t position;  // of the first query
    int64_t kv_begin;
    int64_t kv_end;
};

static inline void cut(const Heads& h, const Span& span, std::vector<Piece>& pieces) {
    const int64_t group = h.heads / h.kv_heads, start = span.length - span.count;
    const int64_t kv_heads = span.count * h.heads <= QUERY_ROWS ? h.kv_heads : 1;
    const int64_t queries = std::max<int64_t>(1, QUERY_ROWS / (group * kv_heads));
    for (int64_t kv = 0; kv < h.kv_heads; kv += kv_heads)
        for (int64_t i = 0; i < span.count; i += queries)
            pieces.push_back({&span, span.first + i, std::min(queries, span.count - i), start + i, kv, kv + kv_heads});
}

// q, out: [rows of the step, heads, dim]; keys, values: a layer of the cache.
template <class T>
static void attend(
    const Heads& h, const Piece& piece, const typename T::Element* q, const typename T::Element* keys,
    const typename T::Element* values, typename T::Element* out, AttentionScratch<T>& s
) {
    const int64_t group = h.heads / h.kv_heads, dim = h.dim, each = piece.queries * group;
    const int64_t rows = each * (piece.kv_end - piece.kv_begin);
    auto place = [&](int64_t row) {
        const int64_t query = row % each / group, head = (piece.kv_begin + row / each) * group + row % group;
        return ((piece.first + query) * h.heads + head) * dim;
    };
    for (int64_t row = 0; row < rows; ++row) {
        std::memcpy(s.queries + row * dim, q + place(row), dim * sizeof(*q));
        s.most[row] = -std::numeric_limits<float>::infinity();
        s.total[row] = 0.0f;
    }
    std::memset(s.mixed, 0, rows * dim * sizeof(float));
    const int64_t end = piece.position + piece.queries;
    Places here;
    for (int64_t start = 0; start < end; start += POSITIONS) {
        here.find(h, *piece.span, start);
        const int64_t stride = dim * int64_t(sizeof(*q)), offset = piece.kv_begin * dim;
        warm((const uint8_t*)(keys + offset), (const uint8_t*)(values + offset), here, stride,
             (piece.kv_end - piece.kv_begin) * stride);
        for (int64_t kv = piece.kv_begin; kv < piece.kv_end; ++kv) {
            const int64_t first = (kv - piece.kv_begin) * each;
            gather_tile<T>(h, here, kv, keys, values, s);
            score<T>(s, first, first + each, dim);
            for (int64_t row = first; row < first + each; ++row)
                soften<T>(s, row, piece.position + row % each / group + 1 - start, h.scale, dim);
            mix<T>(s, first, first + each, dim);
        }
    }
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t d = 0; d < dim; d += WIDTH)
            T::store(out + place(row) + d, divide(load(s.mixed + row * dim + d), all(s.total[row])));
    }
}

}  // namespace tandem::LANES
