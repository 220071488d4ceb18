// Products of 4-bit weights with activations that are rounded to 8 bits, in groups of 32 inputs with a scale each.
//
//   sum over groups of   scale of w · scale of x · (numbers of w · numbers of x)   +   minimum of w · sum of x
//
// What a group's numbers come to is whole, so only the order of the groups counts, which is that of the inputs for
// every row. The words are those of AVX2, also where wider ones are known.
#pragma once

#include <algorithm>
#include <limits>

#include "matrix.h"

namespace tandem::LANES {

constexpr int64_t INTEGER_ROWS = 192;

// A row: its numbers, of each 8 inputs the even ones before the odd ones, as nibbles come apart; then a scale for each
// group, and what the group's numbers times that scale sum up to.
static inline int64_t rounded_bytes(int64_t inputs) { return inputs + inputs / GROUP * 8; }

// A group whose numbers are all smaller is 0: 127 divided by the largest would have no end.
constexpr float LEAST = 1e-35f;

static inline __m256i eight_whole(const float* from, __m256 inverse) {
    return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(from), inverse));
}

static inline int sum_of_bytes(__m256i x) {
    const __m256i eight = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), x), _mm256_set1_epi16(1));
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

// What is no number, or has no end, makes its group's scale and so every output none.
static void round_row(const float* from, int64_t inputs, uint8_t* to) {
    float* scales = (float*)(to + inputs);
    float* sums = scales + inputs / GROUP;
    const __m256i even_first = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15));
    for (int64_t group = 0; group < inputs / GROUP; ++group, from += GROUP, to += GROUP) {
        const Vector first = load(from), second = load(from + WIDTH);
        const float top = most(greatest(size_of(first), size_of(second)));
        // A finite number less itself is 0, others are none then.
        const bool finite = sum(add(subtract(first, first), subtract(second, second))) == 0.0f;
        const bool counts = top >= LEAST;
        const float scale = finite ? (counts ? top / 127.0f : 0.0f) : std::numeric_limits<float>::quiet_NaN();
        const __m256 inverse = _mm256_set1_ps(counts ? 127.0f / top : 0.0f);
        const __m256i a = eight_whole(from, inverse), b = eight_whole(from + 8, inverse);
        const __m256i c = eight_whole(from + 16, inverse), d = eight_whole(from + 24, inverse);
        // Four bytes of each eight in the lower half, a, b, c and d side by side; the other four in the upper half.
        const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
        const __m256i apart = _mm256_shuffle_epi8(bytes, even_first);
        const __m128i low = _mm256_castsi256_si128(apart), high = _mm256_extracti128_si256(apart, 1);
        _mm_storeu_si128((__m128i*)to, _mm_unpacklo_epi16(low, high));
        _mm_storeu_si128((__m128i*)to + 1, _mm_unpackhi_epi16(low, high));
        scales[group] = scale;
        sums[group] = scale * float(sum_of_bytes(bytes));
    }
}

static inline __m256 eight_halves(const uint8_t* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
}

static inline __m256i four_of(const uint8_t* row) { return _mm256_set1_epi32(*(const int32_t*)row); }

// Into the nearest cache: numbers are read in four parts at a time, an order that processors do not foresee.
static inline void bring_near(const uint8_t* group) {
    for (int64_t line = 0; line < FOUR_BIT_GROUP; line += 64) _mm_prefetch(group + line, _MM_HINT_T0);
}

// The sums of ROWS rows with a panel. At most 4 · 2 · 2 · 15 · 127 = 30480 in each 16 bits.
template <int ROWS>
static void integer_tile(
    const Matrix& w, const uint8_t* rows, int64_t stride, const uint8_t* panel, float (&sums)[ROWS][PANEL]
) {
    const __m256i lowest = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    const int64_t groups = w.inputs / GROUP;
    for (int r = 0; r < ROWS; ++r) std::fill(sums[r], sums[r] + PANEL, 0.0f);
    for (int64_t group = 0; group < groups; ++group, panel += FOUR_BIT_GROUP) {
        const uint8_t* scales = panel + PANEL * GROUP / 2;
        const uint8_t* inputs = rows + group * GROUP;
        const float* of_group = (const float*)(rows + w.inputs) + group;
        bring_near(panel + 2 * FOUR_BIT_GROUP);
        for (int eight = 0; eight < PANEL / 8; ++eight) {
            __m256i total[ROWS];
#pragma GCC unroll 6
            for (int r = 0; r < ROWS; ++r) total[r] = _mm256_setzero_si256();
            // Of an unrolled loop a compiler keeps all products in memory before it adds them.
#pragma GCC unroll 1
            for (int part = 0; part < 4; ++part) {
                const __m256i packed = _mm256_loadu_si256((const __m256i*)(panel + part * PANEL * 4) + eight);
                const __m256i low = _mm256_and_si256(packed, lowest);
                const __m256i high = _mm256_and_si256(_mm256_srli_epi16(packed, 4), lowest);
#pragma GCC unroll 6
                for (int r = 0; r < ROWS; ++r) {
                    const uint8_t* x = inputs + r * stride + part * 8;
                    total[r] = _mm256_add_epi16(total[r], _mm256_maddubs_epi16(low, four_of(x)));
                    total[r] = _mm256_add_epi16(total[r], _mm256_maddubs_epi16(high, four_of(x + 4)));
                }
            }
            const __m256 scale = eight_halves(scales + eight * 16);
            const __m256 least = eight_halves(scales + PANEL * 2 + eight * 16);
#pragma GCC unroll 6
            for (int r = 0; r < ROWS; ++r) {
                const float* own = (const float*)((const uint8_t*)of_group + r * stride);
                const __m256 whole = _mm256_cvtepi32_ps(_mm256_madd_epi16(total[r], ones));
                __m256 sum = _mm256_loadu_ps(sums[r] + eight * 8);
                sum = _mm256_fmadd_ps(_mm256_mul_ps(whole, scale), _mm256_set1_ps(own[0]), sum);
                sum = _mm256_fmadd_ps(least, _mm256_set1_ps(own[groups]), sum);
                _mm256_storeu_ps(sums[r] + eight * 8, sum);
            }
        }
    }
}

template <int ROWS, class Sink>
static void integer_rows(
    const Matrix& w, const uint8_t* rows, int64_t row, const uint8_t* panel, int64_t index, const Sink& sink
) {
    const int64_t stride = rounded_bytes(w.inputs);
    alignas(64) float sums[ROWS][PANEL];
    integer_tile<ROWS>(w, rows + row * stride, stride, panel, sums);
    for (int r = 0; r < ROWS; ++r) {
        Vector found[VECTORS];
        for (int v = 0; v < VECTORS; ++v) found[v] = load(sums[r] + v * WIDTH);
        sink(row + r, index, found);
    }
}

// Panels [begin, end) of rounded rows · wᵀ, as `product` does it with rows that are not.
template <class Sink>
static void integer_product(
    const Matrix& w, const uint8_t* rows, int64_t count, int64_t begin, int64_t end, const Sink& sink
) {
    constexpr int64_t most = 6;
    const int64_t bytes = w.inputs / GROUP * FOUR_BIT_GROUP;
    for (int64_t first = 0; first < count; first += INTEGER_ROWS) {
        const int64_t last = std::min(count, first + INTEGER_ROWS);
        for (int64_t index = begin; index < end; ++index) {
            const uint8_t* panel = w.data + index * bytes;
            for (int64_t row = first; row < last;) {
                const int64_t left = last - row;
                const int64_t taken = left > most && left < 2 * most ? (left + 1) / 2 : std::min(left, most);
                switch (taken) {
                    case 1: integer_rows<1>(w, rows, row, panel, index, sink); break;
                    case 2: integer_rows<2>(w, rows, row, panel, index, sink); break;
                    case 3: integer_rows<3>(w, rows, row, panel, index, sink); break;
                    case 4: integer_rows<4>(w, rows, row, panel, index, sink); break;
                    case 5: integer_rows<5>(w, rows, row, panel, index, sink); break;
                    default: integer_rows<6>(w, rows, row, panel, index, sink); break;
                }
                row += taken;
            }
        }
    }
}

}  // namespace tandem::LANES
