// Attention over a paged cache: queries in tiles, keys and values in tiles of 64 positions.
//
//   tile of cache ─▶ panels of keys, transposed, and of values ─▶ scores ─▶ softmax so far ─▶ mix
//
// Tiles begin at multiples of 64 positions and every sum runs over positions in order, so a query's result
// depends on its position and its sequence alone: not on its chunk, its batch, or where the blocks lie.
#pragma once

#include <limits>
#include <vector>

#include "matrix.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,f16c")

namespace tandem {

constexpr int POSITIONS = 64;
constexpr int QUERY_ROWS = 96;
constexpr int MOST_DIM = 256;

// One sequence of a step: its rows are `count` positions that end at `length`.
struct Span {
    int64_t first;
    int64_t count;
    int64_t length;
    const int32_t* blocks;
};

struct Heads {
    int64_t heads;
    int64_t kv_heads;
    int64_t dim;
    int64_t block_size;
    float scale;
};

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

// 16 rows of up to 16 words become `words` rows of 16.
static inline void transpose(const uint8_t* const (&rows)[16], int words, uint8_t* to) {
    const __mmask16 mask = __mmask16((1u << words) - 1);
    __m512i a[16], b[16];
    for (int i = 0; i < 16; ++i)
        a[i] = rows[i] ? _mm512_maskz_loadu_epi32(mask, rows[i]) : _mm512_setzero_si512();
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
        b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
        b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
        b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; ++i) {
        a[i] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88);
        a[i + 4] = _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0x88);
        a[i + 8] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd);
        a[i + 12] = _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0xdd);
    }
    for (int i = 0; i < words; ++i) _mm512_store_si512(to + i * 256, a[i]);
}

static inline void store_pair(uint8_t* to, const uint16_t* first, const uint16_t* second) {
    const __m512i low = first ? _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)first))
                              : _mm512_setzero_si512();
    const __m512i high = second ? _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)second))
                                : _mm512_setzero_si512();
    _mm512_store_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}

static inline void store_pair(uint8_t* to, const float* first, const float*) {
    _mm512_store_si512(to, first ? _mm512_loadu_si512(first) : _mm512_setzero_si512());
}

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

template <class T, int ROWS>
static inline void score_rows(AttentionScratch<T>& s, int64_t row, int64_t dim) {
    Vector sums[ROWS][VECTORS] = {};
    const uint8_t* a = (const uint8_t*)(s.queries + row * dim);
    multiply<T, ROWS, VECTORS>(a, dim * int64_t(sizeof(typename T::Element)), s.keys, 256, dim / T::PER_WORD, sums);
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECTORS; ++v) _mm512_store_ps(s.scores + (row + r) * POSITIONS + v * 16, sums[r][v]);
}

// Scores of one row into weights; the row sees the first `seen` positions of the tile (≥ 0, may exceed 64).
template <class T>
static inline void soften(AttentionScratch<T>& s, int64_t row, int64_t seen, float scale, int64_t dim) {
    const Vector never = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    Vector x[VECTORS];
    Vector top = never;
    for (int v = 0; v < VECTORS; ++v) {
        const int64_t left = seen - v * 16;
        const __mmask16 mask = left >= 16 ? 0xffff : left <= 0 ? 0 : __mmask16((1u << left) - 1);
        x[v] = _mm512_mask_mul_ps(never, mask, _mm512_load_ps(s.scores + row * POSITIONS + v * 16),
                                  _mm512_set1_ps(scale));
        top = _mm512_max_ps(top, x[v]);
    }
    const float before = s.most[row], most = std::max(before, _mm512_reduce_max_ps(top));
    const float shrink = _mm512_cvtss_f32(exponential(_mm512_set1_ps(before - most)));
    Vector sum = _mm512_setzero_ps();
    for (int v = 0; v < VECTORS; ++v) {
        const __mmask16 mask = _mm512_cmp_ps_mask(x[v], never, _CMP_NEQ_UQ);
        const Vector weight = _mm512_maskz_mov_ps(mask, exponential(_mm512_sub_ps(x[v], _mm512_set1_ps(most))));
        T::store(s.weights + row * POSITIONS + v * 16, weight);
        sum = _mm512_add_ps(sum, T::rounded(weight));
    }
    s.most[row] = most;
    s.total[row] = s.total[row] * shrink + _mm512_reduce_add_ps(sum);
    for (int64_t d = 0; d < dim; d += 16) {
        float* mixed = s.mixed + row * dim + d;
        _mm512_store_ps(mixed, _mm512_mul_ps(_mm512_load_ps(mixed), _mm512_set1_ps(shrink)));
    }
}

template <class T, int ROWS, int COLUMNS>
static inline void mix_columns(AttentionScratch<T>& s, int64_t row, int64_t dim, int64_t column) {
    Vector sums[ROWS][COLUMNS];
    float* mixed = s.mixed + row * dim + column;
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < COLUMNS; ++v) sums[r][v] = _mm512_load_ps(mixed + r * dim + v * 16);
    const uint8_t* a = (const uint8_t*)(s.weights + row * POSITIONS);
    multiply<T, ROWS, COLUMNS>(a, POSITIONS * sizeof(typename T::Element), s.values + column * 4, dim * 4,
                               POSITIONS / T::PER_WORD, sums);
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < COLUMNS; ++v) _mm512_store_ps(mixed + r * dim + v * 16, sums[r][v]);
}

template <class T, int ROWS>
static inline void mix_rows(AttentionScratch<T>& s, int64_t row, int64_t dim) {
    int64_t column = 0;
    for (; column + 64 <= dim; column += 64) mix_columns<T, ROWS, 4>(s, row, dim, column);
    for (; column < dim; column += 16) mix_columns<T, ROWS, 1>(s, row, dim, column);
}

template <class T>
static inline void score(AttentionScratch<T>& s, int64_t row, int64_t end, int64_t dim) {
    for (; row + 6 <= end; row += 6) score_rows<T, 6>(s, row, dim);
    for (; row + 3 <= end; row += 3) score_rows<T, 3>(s, row, dim);
    for (; row < end; ++row) score_rows<T, 1>(s, row, dim);
}

template <class T>
static inline void mix(AttentionScratch<T>& s, int64_t row, int64_t end, int64_t dim) {
    for (; row + 6 <= end; row += 6) mix_rows<T, 6>(s, row, dim);
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
        const Vector total = _mm512_set1_ps(s.total[row]);
        for (int64_t d = 0; d < dim; d += 16)
            T::store(out + place(row) + d, _mm512_div_ps(_mm512_load_ps(s.mixed + row * dim + d), total));
    }
}

}  // namespace tandem

#pragma GCC pop_options
