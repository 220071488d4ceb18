// 16 numbers at a time on processors with AVX-512 and its bfloat16 products: one register each.
//
// lanes_avx2.h says the same words for processors without; matrix.h and what builds on it are written in them.
// Memory is read and multiplied in words of 32 bits: one float32, or two neighbouring bfloat16 along the inner
// dimension. One kernel therefore serves both types, which differ in what `accumulate` does.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include <immintrin.h>

namespace tandem::LANES {

using Vector = __m512;
using Words = __m512i;
using Mask = __mmask16;
constexpr int WIDTH = 16;

// How many vectors of columns have their sums in registers while a product runs, beside TILE_ROWS rows.
constexpr int TILE_VECTORS = 4;

static inline Vector zeros() { return _mm512_setzero_ps(); }
static inline Vector all(float x) { return _mm512_set1_ps(x); }
static inline Vector load(const float* from) { return _mm512_loadu_ps(from); }
static inline void store(float* to, Vector x) { _mm512_storeu_ps(to, x); }
static inline Vector load_masked(Vector otherwise, Mask mask, const float* from) {
    return _mm512_mask_loadu_ps(otherwise, mask, from);
}
static inline void store_masked(float* to, Mask mask, Vector x) { _mm512_mask_storeu_ps(to, mask, x); }

static inline Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
static inline Vector subtract(Vector a, Vector b) { return _mm512_sub_ps(a, b); }
static inline Vector times(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
static inline Vector divide(Vector a, Vector b) { return _mm512_div_ps(a, b); }
static inline Vector greatest(Vector a, Vector b) { return _mm512_max_ps(a, b); }
static inline Vector size_of(Vector a) { return _mm512_abs_ps(a); }
// a · b + c, rounded once; c − a · b.
static inline Vector times_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
static inline Vector minus_times(Vector a, Vector b, Vector c) { return _mm512_fnmadd_ps(a, b, c); }
static inline Vector nearest(Vector a) { return _mm512_roundscale_ps(a, 8); }
// a · 2 to the n, for whole n.
static inline Vector scaled(Vector a, Vector n) { return _mm512_scalef_ps(a, n); }
static inline float sum(Vector a) { return _mm512_reduce_add_ps(a); }
static inline float most(Vector a) { return _mm512_reduce_max_ps(a); }
static inline float first(Vector a) { return _mm512_cvtss_f32(a); }

// The first `count` lanes: none below 1, all from 16 on.
static inline Mask first_lanes(int64_t count) {
    return count >= 16 ? 0xffff : count <= 0 ? 0 : Mask((1u << count) - 1);
}
static inline Mask less(Vector a, Vector b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
static inline Mask at_least(Vector a, Vector b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
static inline Mask greater(Vector a, Vector b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
static inline Mask differs(Vector a, Vector b) { return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ); }
static inline Mask both(Mask a, Mask b) { return a & b; }
// Bit i is lane i.
static inline uint32_t bits(Mask mask) { return mask; }
static inline Vector kept(Mask mask, Vector x) { return _mm512_maskz_mov_ps(mask, x); }
// x where the mask is, elsewhere `otherwise`.
static inline Vector chosen(Vector otherwise, Mask mask, Vector x) {
    return _mm512_mask_mov_ps(otherwise, mask, x);
}

static inline Words load_words(const void* from) { return _mm512_loadu_si512(from); }
static inline void store_words(void* to, Words x) { _mm512_storeu_si512(to, x); }
static inline Words no_words() { return _mm512_setzero_si512(); }
static inline Words all_words(uint32_t x) { return _mm512_set1_epi32(int(x)); }
static inline Words counting() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
static inline Words add(Words a, Words b) { return _mm512_add_epi32(a, b); }
static inline Words times(Words a, Words b) { return _mm512_mullo_epi32(a, b); }
static inline Words exclusive(Words a, Words b) { return _mm512_xor_si512(a, b); }
template <int BITS>
static inline Words shifted_right(Words a) { return _mm512_srli_epi32(a, BITS); }
static inline Vector from_unsigned(Words a) { return _mm512_cvtepu32_ps(a); }

// The lanes of x where the mask is, side by side.
static inline void store_compressed(float* to, Mask mask, Vector x) {
    _mm512_mask_compressstoreu_ps(to, mask, x);
}
// 16 float32 are added in float64.
struct DoubleSum {
    __m512d low, high;
    DoubleSum() : low(_mm512_setzero_pd()), high(_mm512_setzero_pd()) {}
    inline void add(Vector x) {
        low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(x)));
        high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)));
    }
    inline double total() const { return _mm512_reduce_add_pd(_mm512_add_pd(low, high)); }
};

struct Float32 {
    using Element = float;
    using Columns = Words;
    using Spread = Words;
    static constexpr int PER_WORD = 1;
    static constexpr int TILE_ROWS = 6;

    static inline Columns columns(const uint8_t* from) { return _mm512_loadu_si512(from); }
    static inline Words words(Columns x) { return x; }
    // A word of a row of activations, for every column.
    static inline Spread spread(const uint8_t* word) {
        int32_t bits;
        std::memcpy(&bits, word, sizeof bits);
        return _mm512_set1_epi32(bits);
    }
    static inline void accumulate(Vector& sum, Spread a, Columns b) {
        sum = _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
    }
    static inline void store(float* to, Vector x) { _mm512_storeu_ps(to, x); }
    static inline float widen(float x) { return x; }
    static inline Vector rounded(Vector x) { return x; }
};

struct BFloat16 {
    using Element = uint16_t;
    using Columns = Words;
    using Spread = Words;
    static constexpr int PER_WORD = 2;
    static constexpr int TILE_ROWS = 6;

    static inline Columns columns(const uint8_t* from) { return _mm512_loadu_si512(from); }
    static inline Words words(Columns x) { return x; }
    static inline Spread spread(const uint8_t* word) { return Float32::spread(word); }
    static inline void accumulate(Vector& sum, Spread a, Columns b) {
        sum = _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
    }
    static inline void store(uint16_t* to, Vector x) {
        _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh(x));
    }
    static inline float widen(uint16_t x) {
        const uint32_t bits = uint32_t(x) << 16;
        float wide;
        std::memcpy(&wide, &bits, sizeof wide);
        return wide;
    }
    // What is left of x after it was stored.
    static inline Vector rounded(Vector x) {
        const __m256i half = (__m256i)_mm512_cvtneps_pbh(x);
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }
};

static inline Vector half_precision(const uint8_t* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
}

// Numbers of a compressed group (see matrix.h) as columns, word by word: use(word, 16 columns). `numbers`, `scales`
// and `minima` are those of the vector of columns.
template <class T>
struct Expand;

template <>
struct Expand<Float32> {
    template <class Use>
    static inline void four_bit(
        const uint8_t* numbers, int64_t part_bytes, const uint8_t* scales, const uint8_t* minima, Use use
    ) {
        const Vector values = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const Vector scale = half_precision(scales), least = half_precision(minima);
        for (int part = 0; part < 4; ++part) {
            __m512i packed = _mm512_loadu_si512(numbers + part * part_bytes);
#pragma GCC unroll 8
            for (int word = 0; word < 8; ++word) {
                const Vector number = _mm512_permutexvar_ps(packed, values);
                use(part * 8 + word, _mm512_castps_si512(_mm512_fmadd_ps(number, scale, least)));
                packed = _mm512_srli_epi32(packed, 4);
            }
        }
    }

    template <class Use>
    static inline void eight_bit(const uint8_t* numbers, int64_t word_bytes, const uint8_t* scales, Use use) {
        const Vector scale = half_precision(scales);
#pragma GCC unroll 4
        for (int word = 0; word < 32; ++word) {
            const __m128i bytes = _mm_loadu_si128((const __m128i*)(numbers + word * word_bytes));
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
    static inline void four_bit(
        const uint8_t* numbers, int64_t part_bytes, const uint8_t* scales, const uint8_t* minima, Use use
    ) {
        const Vector values = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const Vector scale = half_precision(scales), least = half_precision(minima);
        const Vector low_scale = _mm512_permutexvar_ps(low_lanes(), scale);
        const Vector high_scale = _mm512_permutexvar_ps(high_lanes(), scale);
        const Vector low_least = _mm512_permutexvar_ps(low_lanes(), least);
        const Vector high_least = _mm512_permutexvar_ps(high_lanes(), least);
        for (int part = 0; part < 2; ++part) {
            const uint8_t* packed = numbers + part * part_bytes;
            __m512i low = _mm512_loadu_si512(packed), high = _mm512_loadu_si512(packed + 64);
#pragma GCC unroll 8
            for (int word = 0; word < 8; ++word) {
                const Vector first = _mm512_permutexvar_ps(low, values);
                const Vector second = _mm512_permutexvar_ps(high, values);
                const Vector low_weight = _mm512_fmadd_ps(first, low_scale, low_least);
                const Vector high_weight = _mm512_fmadd_ps(second, high_scale, high_least);
                use(part * 8 + word, (__m512i)_mm512_cvtne2ps_pbh(high_weight, low_weight));
                low = _mm512_srli_epi32(low, 4);
                high = _mm512_srli_epi32(high, 4);
            }
        }
    }

    template <class Use>
    static inline void eight_bit(const uint8_t* numbers, int64_t word_bytes, const uint8_t* scales, Use use) {
        const Vector scale = half_precision(scales);
        const Vector low_scale = _mm512_permutexvar_ps(low_lanes(), scale);
        const Vector high_scale = _mm512_permutexvar_ps(high_lanes(), scale);
#pragma GCC unroll 4
        for (int word = 0; word < 16; ++word) {
            const uint8_t* bytes = numbers + word * word_bytes;
            const __m512i low = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)bytes));
            const __m512i high = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(bytes + 16)));
            const Vector low_weight = _mm512_mul_ps(_mm512_cvtepi32_ps(low), low_scale);
            const Vector high_weight = _mm512_mul_ps(_mm512_cvtepi32_ps(high), high_scale);
            use(word, (__m512i)_mm512_cvtne2ps_pbh(high_weight, low_weight));
        }
    }
};

// 16 rows of up to 16 words become `words` rows of 16, 256 bytes apart; rows that are null are zeros.
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

// 16 columns of a word that holds the same column of two rows, or of one; null stands for zeros.
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

}  // namespace tandem::LANES
