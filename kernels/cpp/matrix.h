// Products with packed weights.
//
//   activations [rows, inputs]  ·  panels of 64 outputs  ─▶  what a Sink does with [≤ 6 rows, 64 outputs]
//
// A panel holds, word by word along the inner dimension, its 64 columns side by side: 256 bytes a word row.
// Compressed panels hold groups of 32 inputs: 4-bit numbers with a scale and a minimum for each column, or
// 8-bit ones with a scale. They are expanded to the very numbers that a plain panel of the same weights holds,
// so results are bit for bit those of the plain format. Every output is summed over the inputs in order, one
// accumulator each, whatever the number of rows: a row's result does not depend on the rows beside it.
#pragma once

#include "numbers.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,f16c")

namespace tandem {

constexpr int PANEL = 64;
constexpr int VECTORS = PANEL / WIDTH;
constexpr int TILE_ROWS = 6;
constexpr int GROUP = 32;
constexpr int64_t BLOCK_BYTES = 384 * 1024;

enum Format : int32_t { PLAIN = 0, FOUR_BIT = 1, EIGHT_BIT = 2 };

struct Matrix {
    int64_t outputs;
    int64_t inputs;
    int32_t format;
    int32_t unused;
    const uint8_t* data;
    const float* bias;
};

constexpr int64_t FOUR_BIT_GROUP = PANEL * GROUP / 2 + PANEL * 4;
constexpr int64_t EIGHT_BIT_GROUP = PANEL * GROUP + PANEL * 2;

template <class T>
static inline int64_t panel_bytes(const Matrix& w) {
    switch (w.format) {
        case FOUR_BIT: return w.inputs / GROUP * FOUR_BIT_GROUP;
        case EIGHT_BIT: return w.inputs / GROUP * EIGHT_BIT_GROUP;
        default: return w.inputs * PANEL * int64_t(sizeof(typename T::Element));
    }
}

static inline Vector half_precision(const uint8_t* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
}

// Calls use(word, vector of 16 columns) for the words of one group and one vector of columns, in order.
template <class T>
struct Expand;

template <>
struct Expand<Float32> {
    template <class Use>
    static inline void four_bit(const uint8_t* group, int vector, Use use) {
        const Vector numbers = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const uint8_t* scales = group + PANEL * GROUP / 2 + vector * 32;
        const Vector scale = half_precision(scales), least = half_precision(scales + PANEL * 2);
        for (int part = 0; part < 4; ++part) {
            __m512i packed = _mm512_loadu_si512(group + (part * VECTORS + vector) * 64);
#pragma GCC unroll 8
            for (int word = 0; word < 8; ++word) {
                const Vector number = _mm512_permutexvar_ps(packed, numbers);
                use(part * 8 + word, _mm512_castps_si512(_mm512_fmadd_ps(number, scale, least)));
                packed = _mm512_srli_epi32(packed, 4);
            }
        }
    }

    template <class Use>
    static inline void eight_bit(const uint8_t* group, int vector, Use use) {
        const Vector scale = half_precision(group + PANEL * GROUP + vector * 32);
#pragma GCC unroll 4
        for (int word = 0; word < GROUP; ++word) {
            const __m128i bytes = _mm_loadu_si128((const __m128i*)(group + (word * VECTORS + vector) * 16));
            const Vector number = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
            use(word, _mm512_castps_si512(_mm512_mul_ps(number, scale)));
        }
    }
};

template <>
struct Expand<BFloat16> {
    // Lanes 2c and 2c + 1 of a vector are two neighbouring inputs of column c: columns 0–7 in `low`, 8–15
    // in `high`, which is the order in which two vectors of float32 become one of bfloat16.
    static inline __m512i low_lanes() {
        return _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    }
    static inline __m512i high_lanes() {
        return _mm512_setr_epi32(8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15);
    }

    template <class Use>
    static inline void four_bit(const uint8_t* group, int vector, Use use) {
        const Vector numbers = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const uint8_t* scales = group + PANEL * GROUP / 2 + vector * 32;
        const Vector scale = half_precision(scales), least = half_precision(scales + PANEL * 2);
        const Vector low_scale = _mm512_permutexvar_ps(low_lanes(), scale);
        const Vector high_scale = _mm512_permutexvar_ps(high_lanes(), scale);
        const Vector low_least = _mm512_permutexvar_ps(low_lanes(), least);
        const Vector high_least = _mm512_permutexvar_ps(high_lanes(), least);
        for (int part = 0; part < 2; ++part) {
            const uint8_t* packed = group + ((part * VECTORS + vector) * 2) * 64;
            __m512i low = _mm512_loadu_si512(packed), high = _mm512_loadu_si512(packed + 64);
#pragma GCC unroll 8
            for (int word = 0; word < 8; ++word) {
                const Vector first = _mm512_permutexvar_ps(low, numbers);
                const Vector second = _mm512_permutexvar_ps(high, numbers);
                const Vector low_weight = _mm512_fmadd_ps(first, low_scale, low_least);
                const Vector high_weight = _mm512_fmadd_ps(second, high_scale, high_least);
                use(part * 8 + word, (__m512i)_mm512_cvtne2ps_pbh(high_weight, low_weight));
                low = _mm512_srli_epi32(low, 4);
                high = _mm512_srli_epi32(high, 4);
            }
        }
    }

    template <class Use>
    static inline void eight_bit(const uint8_t* group, int vector, Use use) {
        const Vector scale = half_precision(group + PANEL * GROUP + vector * 32);
        const Vector low_scale = _mm512_permutexvar_ps(low_lanes(), scale);
        const Vector high_scale = _mm512_permutexvar_ps(high_lanes(), scale);
#pragma GCC unroll 4
        for (int word = 0; word < GROUP / 2; ++word) {
            const uint8_t* bytes = group + (word * VECTORS + vector) * 32;
            const __m512i low = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)bytes));
            const __m512i high = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(bytes + 16)));
            const Vector low_weight = _mm512_mul_ps(_mm512_cvtepi32_ps(low), low_scale);
            const Vector high_weight = _mm512_mul_ps(_mm512_cvtepi32_ps(high), high_scale);
            use(word, (__m512i)_mm512_cvtne2ps_pbh(high_weight, low_weight));
        }
    }
};

// A plain panel from a compressed one.
template <class T>
static void expand_panel(const Matrix& w, const uint8_t* panel, uint8_t* plain) {
    constexpr int words = GROUP / T::PER_WORD;
    for (int64_t group = 0; group < w.inputs / GROUP; ++group) {
        for (int vector = 0; vector < VECTORS; ++vector) {
            uint8_t* to = plain + group * words * 256 + vector * 64;
            auto keep = [to](int word, __m512i x) { _mm512_storeu_si512(to + word * 256, x); };
            if (w.format == FOUR_BIT)
                Expand<T>::four_bit(panel + group * FOUR_BIT_GROUP, vector, keep);
            else
                Expand<T>::eight_bit(panel + group * EIGHT_BIT_GROUP, vector, keep);
        }
    }
}

static inline __m512i broadcast(const uint8_t* word) {
    int32_t bits;
    std::memcpy(&bits, word, sizeof bits);
    return _mm512_set1_epi32(bits);
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
        __m512i b[COLUMNS];
#pragma GCC unroll 4
        for (int v = 0; v < COLUMNS; ++v) b[v] = _mm512_loadu_si512(columns + word * step + v * 64);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; ++r) {
            const __m512i x = broadcast(a + r * stride + word * 4);
#pragma GCC unroll 4
            for (int v = 0; v < COLUMNS; ++v) sums[r][v] = T::multiply_add(sums[r][v], x, b[v]);
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
            auto use = [&](int word, __m512i b) __attribute__((always_inline)) {
#pragma GCC unroll 6
                for (int r = 0; r < ROWS; ++r) {
                    const __m512i x = broadcast(inputs + r * stride + word * 4);
                    sums[r][v] = T::multiply_add(sums[r][v], x, b);
                }
            };
            if (four)
                Expand<T>::four_bit(panel + group * FOUR_BIT_GROUP, v, use);
            else
                Expand<T>::eight_bit(panel + group * EIGHT_BIT_GROUP, v, use);
        }
    }
}

constexpr int FUSED_ROWS = 3;

template <class T, int ROWS, class Sink>
static void tile(
    const Matrix& w, const uint8_t* a, int64_t row, int64_t stride, const uint8_t* panel, bool plain,
    int64_t index, const Sink& sink, const uint8_t* ahead
) {
    Vector sums[ROWS][VECTORS];
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECTORS; ++v) sums[r][v] = _mm512_setzero_ps();
    if (plain)
        multiply<T, ROWS, VECTORS>(a + row * stride, stride, panel, 256, w.inputs / T::PER_WORD, sums, ahead);
    else if constexpr (ROWS <= FUSED_ROWS)
        multiply_compressed<T, ROWS>(w, a + row * stride, stride, panel, sums);
    for (int r = 0; r < ROWS; ++r) sink(row + r, index, sums[r]);
}

template <class T, class Sink>
static void tiles(
    const Matrix& w, const uint8_t* a, int64_t first, int64_t last, int64_t stride, const uint8_t* panel,
    bool plain, int64_t index, const Sink& sink, const uint8_t* next, int64_t next_bytes
) {
    const uint8_t* const next_end = next + next_bytes;
    for (int64_t row = first; row < last;) {
        const int64_t left = last - row;
        // 7 to 11 rows in two tiles of about one size: a tile of one row costs as much as one of four.
        const int64_t rows = left > TILE_ROWS && left < 2 * TILE_ROWS ? (left + 1) / 2 : left;
        const uint8_t* ahead = next < next_end && last - first > TILE_ROWS ? next : nullptr;
        next += w.inputs / T::PER_WORD * 64;
        switch (rows) {
            case 1: tile<T, 1>(w, a, row, stride, panel, plain, index, sink, ahead); break;
            case 2: tile<T, 2>(w, a, row, stride, panel, plain, index, sink, ahead); break;
            case 3: tile<T, 3>(w, a, row, stride, panel, plain, index, sink, ahead); break;
            case 4: tile<T, 4>(w, a, row, stride, panel, plain, index, sink, ahead); break;
            case 5: tile<T, 5>(w, a, row, stride, panel, plain, index, sink, ahead); break;
            default: tile<T, 6>(w, a, row, stride, panel, plain, index, sink, ahead); break;
        }
        row += rows < TILE_ROWS ? rows : TILE_ROWS;
    }
}

// Panels [begin, end) of rows · wᵀ. `scratch` holds one plain panel. Rows go in blocks whose activations stay
// in the second-level cache. sink(row, panel, sums of its 64 outputs) is called once for each row and panel.
template <class T, class Sink>
static void product(
    const Matrix& w, const typename T::Element* activations, int64_t rows, int64_t begin, int64_t end,
    uint8_t* scratch, const Sink& sink
) {
    const int64_t stride = w.inputs * int64_t(sizeof(typename T::Element));
    const int64_t bytes = panel_bytes<T>(w);
    const uint8_t* a = (const uint8_t*)activations;
    const int64_t block = BLOCK_BYTES / stride > TILE_ROWS ? BLOCK_BYTES / stride / TILE_ROWS * TILE_ROWS : TILE_ROWS;
    for (int64_t first = 0; first < rows; first += block) {
        const int64_t last = first + block < rows ? first + block : rows;
        const bool expand = w.format != PLAIN && last - first > FUSED_ROWS;
        for (int64_t index = begin; index < end; ++index) {
            const uint8_t* panel = w.data + index * bytes;
            if (expand) expand_panel<T>(w, panel, scratch);
            const bool plain = expand || w.format == PLAIN;
            const int64_t next = index + 1 < end && !first ? bytes : 0;
            tiles<T>(w, a, first, last, stride, expand ? scratch : panel, plain, index, sink, panel + bytes, next);
        }
    }
}

}  // namespace tandem

#pragma GCC pop_options
