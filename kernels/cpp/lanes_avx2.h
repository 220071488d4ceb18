// 16 numbers at a time on processors with AVX2: two registers each, of which there are 16 in all.
//
// The words are those of lanes_avx512.h. Products of bfloat16 are those of the float32 numbers that they stand
// for, the first of a word added before the second.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include <immintrin.h>

namespace tandem::LANES {

struct Vector {
    __m256 low, high;
};
struct Words {
    __m256i low, high;
};
struct Mask {
    __m256 low, high;
};
constexpr int WIDTH = 16;

// 6 rows of one vector fill 12 registers with sums and leave room for the columns and a number of the row.
constexpr int TILE_VECTORS = 1;

static inline __m256 real(__m256i x) { return _mm256_castsi256_ps(x); }
static inline __m256i whole(__m256 x) { return _mm256_castps_si256(x); }

static inline Vector zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
static inline Vector all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline Vector load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
static inline void store(float* to, Vector x) {
    _mm256_storeu_ps(to, x.low);
    _mm256_storeu_ps(to + 8, x.high);
}
static inline Vector load_masked(Vector otherwise, Mask mask, const float* from) {
    return {_mm256_blendv_ps(otherwise.low, _mm256_maskload_ps(from, whole(mask.low)), mask.low),
            _mm256_blendv_ps(otherwise.high, _mm256_maskload_ps(from + 8, whole(mask.high)), mask.high)};
}
static inline void store_masked(float* to, Mask mask, Vector x) {
    _mm256_maskstore_ps(to, whole(mask.low), x.low);
    _mm256_maskstore_ps(to + 8, whole(mask.high), x.high);
}

static inline Vector add(Vector a, Vector b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
static inline Vector subtract(Vector a, Vector b) {
    return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
static inline Vector times(Vector a, Vector b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
static inline Vector divide(Vector a, Vector b) {
    return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}
static inline Vector greatest(Vector a, Vector b) {
    return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
static inline Vector size_of(Vector a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
}
static inline Vector times_add(Vector a, Vector b, Vector c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
static inline Vector minus_times(Vector a, Vector b, Vector c) {
    return {_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
}
static inline Vector nearest(Vector a) {
    constexpr int how = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.low, how), _mm256_round_ps(a.high, how)};
}
static inline __m256 power_of_two(__m256 n) {
    return real(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
// For whole n from −126 on.
static inline Vector scaled(Vector a, Vector n) {
    return {_mm256_mul_ps(a.low, power_of_two(n.low)), _mm256_mul_ps(a.high, power_of_two(n.high))};
}
static inline float sum(Vector a) {
    const __m256 eight = _mm256_add_ps(a.low, a.high);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
}
static inline float most(Vector a) {
    const __m256 eight = _mm256_max_ps(a.low, a.high);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
}
static inline float first(Vector a) { return _mm256_cvtss_f32(a.low); }

static inline Mask first_lanes(int64_t count) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i wanted = _mm256_set1_epi32(int(count < 0 ? 0 : count > 16 ? 16 : count));
    return {real(_mm256_cmpgt_epi32(wanted, lanes)),
            real(_mm256_cmpgt_epi32(wanted, _mm256_add_epi32(lanes, _mm256_set1_epi32(8))))};
}
template <int HOW>
static inline Mask compared(Vector a, Vector b) {
    return {_mm256_cmp_ps(a.low, b.low, HOW), _mm256_cmp_ps(a.high, b.high, HOW)};
}
static inline Mask less(Vector a, Vector b) { return compared<_CMP_LT_OQ>(a, b); }
static inline Mask at_least(Vector a, Vector b) { return compared<_CMP_GE_OQ>(a, b); }
static inline Mask greater(Vector a, Vector b) { return compared<_CMP_GT_OQ>(a, b); }
static inline Mask differs(Vector a, Vector b) { return compared<_CMP_NEQ_UQ>(a, b); }
static inline Mask both(Mask a, Mask b) { return {_mm256_and_ps(a.low, b.low), _mm256_and_ps(a.high, b.high)}; }
static inline uint32_t bits(Mask mask) {
    return uint32_t(_mm256_movemask_ps(mask.low)) | uint32_t(_mm256_movemask_ps(mask.high)) << 8;
}
static inline Vector kept(Mask mask, Vector x) {
    return {_mm256_and_ps(mask.low, x.low), _mm256_and_ps(mask.high, x.high)};
}
static inline Vector chosen(Vector otherwise, Mask mask, Vector x) {
    return {_mm256_blendv_ps(otherwise.low, x.low, mask.low), _mm256_blendv_ps(otherwise.high, x.high, mask.high)};
}

static inline Words load_words(const void* from) {
    return {_mm256_loadu_si256((const __m256i*)from), _mm256_loadu_si256((const __m256i*)from + 1)};
}
static inline void store_words(void* to, Words x) {
    _mm256_storeu_si256((__m256i*)to, x.low);
    _mm256_storeu_si256((__m256i*)to + 1, x.high);
}
static inline Words no_words() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
static inline Words all_words(uint32_t x) { return {_mm256_set1_epi32(int(x)), _mm256_set1_epi32(int(x))}; }
static inline Words counting() {
    return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)};
}
static inline Words add(Words a, Words b) {
    return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}
static inline Words times(Words a, Words b) {
    return {_mm256_mullo_epi32(a.low, b.low), _mm256_mullo_epi32(a.high, b.high)};
}
static inline Words exclusive(Words a, Words b) {
    return {_mm256_xor_si256(a.low, b.low), _mm256_xor_si256(a.high, b.high)};
}
template <int BITS>
static inline Words shifted_right(Words a) {
    return {_mm256_srli_epi32(a.low, BITS), _mm256_srli_epi32(a.high, BITS)};
}
// Both halves of 16 bits are exact, so their sum is rounded once.
static inline __m256 from_unsigned(__m256i x) {
    const __m256 high = _mm256_cvtepi32_ps(_mm256_srli_epi32(x, 16));
    const __m256 low = _mm256_cvtepi32_ps(_mm256_and_si256(x, _mm256_set1_epi32(0xffff)));
    return _mm256_fmadd_ps(high, _mm256_set1_ps(65536.0f), low);
}
static inline Vector from_unsigned(Words a) { return {from_unsigned(a.low), from_unsigned(a.high)}; }

static inline void store_compressed(float* to, Mask mask, Vector x) {
    alignas(32) float lanes[WIDTH];
    store(lanes, x);
    for (uint32_t left = bits(mask); left; left &= left - 1) *to++ = lanes[__builtin_ctz(left)];
}

struct DoubleSum {
    __m256d low, high;
    DoubleSum() : low(_mm256_setzero_pd()), high(_mm256_setzero_pd()) {}
    inline void add(__m256 x) {
        low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(x)));
        high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)));
    }
    inline void add(Vector x) {
        add(x.low);
        add(x.high);
    }
    inline double total() const {
        alignas(32) double lanes[4];
        _mm256_store_pd(lanes, _mm256_add_pd(low, high));
        return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
    }
};

struct Float32 {
    using Element = float;
    using Columns = Vector;
    using Spread = __m256;
    static constexpr int PER_WORD = 1;
    static constexpr int TILE_ROWS = 6;

    static inline Columns columns(const uint8_t* from) { return load((const float*)from); }
    static inline Words words(Columns x) { return {whole(x.low), whole(x.high)}; }
    static inline Spread spread(const uint8_t* word) { return _mm256_broadcast_ss((const float*)word); }
    // Half by half: a compiler keeps halves in registers, but not pairs.
    static inline void accumulate(Vector& sum, Spread a, const Columns& b) {
        sum.low = _mm256_fmadd_ps(a, b.low, sum.low);
        sum.high = _mm256_fmadd_ps(a, b.high, sum.high);
    }
    static inline void store(float* to, Vector x) { LANES::store(to, x); }
    static inline float widen(float x) { return x; }
    static inline Vector rounded(Vector x) { return x; }
};

struct BFloat16 {
    using Element = uint16_t;
    struct Columns {
        Vector first, second;
    };
    struct Spread {
        __m256 first, second;
    };
    static constexpr int PER_WORD = 2;
    static constexpr int TILE_ROWS = 4;

    static inline __m256 first_half(__m256i word) { return real(_mm256_slli_epi32(word, 16)); }
    static inline __m256 second_half(__m256i word) {
        return real(_mm256_and_si256(word, _mm256_set1_epi32(int(0xffff0000))));
    }
    static inline Columns columns(const uint8_t* from) {
        const Words x = load_words(from);
        return {{first_half(x.low), first_half(x.high)}, {second_half(x.low), second_half(x.high)}};
    }
    static inline Words words(Columns x) {
        return {_mm256_or_si256(_mm256_srli_epi32(whole(x.first.low), 16), whole(x.second.low)),
                _mm256_or_si256(_mm256_srli_epi32(whole(x.first.high), 16), whole(x.second.high))};
    }
    static inline Spread spread(const uint8_t* word) {
        const __m256i x = whole(_mm256_broadcast_ss((const float*)word));
        return {first_half(x), second_half(x)};
    }
    static inline void accumulate(Vector& sum, const Spread& a, const Columns& b) {
        sum.low = _mm256_fmadd_ps(a.first, b.first.low, sum.low);
        sum.high = _mm256_fmadd_ps(a.first, b.first.high, sum.high);
        sum.low = _mm256_fmadd_ps(a.second, b.second.low, sum.low);
        sum.high = _mm256_fmadd_ps(a.second, b.second.high, sum.high);
    }
    // To the nearest, ties to even; what is no number stays none.
    static inline __m256 rounded(__m256 x) {
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(whole(x), 16), _mm256_set1_epi32(1));
        const __m256i up = _mm256_add_epi32(whole(x), _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        const __m256i none = _mm256_or_si256(whole(x), _mm256_set1_epi32(0x400000));
        const __m256 y = _mm256_blendv_ps(real(up), real(none), _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        return real(_mm256_and_si256(whole(y), _mm256_set1_epi32(int(0xffff0000))));
    }
    static inline Vector rounded(Vector x) { return {rounded(x.low), rounded(x.high)}; }
    static inline void store(uint16_t* to, Vector x) {
        const __m256i low = _mm256_srli_epi32(whole(rounded(x.low)), 16);
        const __m256i high = _mm256_srli_epi32(whole(rounded(x.high)), 16);
        // Packing goes by halves of a register: the middle quarters change places.
        _mm256_storeu_si256((__m256i*)to, _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8));
    }
    static inline float widen(uint16_t x) {
        const uint32_t bits = uint32_t(x) << 16;
        float wide;
        std::memcpy(&wide, &bits, sizeof wide);
        return wide;
    }
};

static inline __m256 half_precision_8(const uint8_t* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
}
static inline Vector half_precision(const uint8_t* from) {
    return {half_precision_8(from), half_precision_8(from + 16)};
}

// The numbers in the lowest 4 bits of each lane.
static inline __m256 nibbles(__m256i packed) {
    return _mm256_cvtepi32_ps(_mm256_and_si256(packed, _mm256_set1_epi32(15)));
}
static inline __m256 signed_bytes(const uint8_t* from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from)));
}

template <class T>
struct Expand;

template <>
struct Expand<Float32> {
    template <class Use>
    static inline void four_bit(
        const uint8_t* numbers, int64_t part_bytes, const uint8_t* scales, const uint8_t* minima, Use use
    ) {
        const Vector scale = half_precision(scales), least = half_precision(minima);
        for (int part = 0; part < 4; ++part) {
            Words packed = load_words(numbers + part * part_bytes);
#pragma GCC unroll 8
            for (int word = 0; word < 8; ++word) {
                const Vector number = {nibbles(packed.low), nibbles(packed.high)};
                use(part * 8 + word, times_add(number, scale, least));
                packed = shifted_right<4>(packed);
            }
        }
    }

    template <class Use>
    static inline void eight_bit(const uint8_t* numbers, int64_t word_bytes, const uint8_t* scales, Use use) {
        const Vector scale = half_precision(scales);
#pragma GCC unroll 4
        for (int word = 0; word < 32; ++word) {
            const uint8_t* bytes = numbers + word * word_bytes;
            use(word, times({signed_bytes(bytes), signed_bytes(bytes + 8)}, scale));
        }
    }
};

template <>
struct Expand<BFloat16> {
    // Weights of 4 columns in each of four registers, the two inputs of a word side by side.
    static inline BFloat16::Columns apart(const __m256 (&pairs)[4]) {
        auto pick = [](__m256 a, __m256 b, auto which) __attribute__((always_inline)) {
            const __m256 mixed = _mm256_shuffle_ps(a, b, which.value);
            return real(_mm256_permute4x64_epi64(whole(mixed), 0xd8));
        };
        const std::integral_constant<int, 0x88> even;
        const std::integral_constant<int, 0xdd> odd;
        const Vector first = {pick(pairs[0], pairs[1], even), pick(pairs[2], pairs[3], even)};
        const Vector second = {pick(pairs[0], pairs[1], odd), pick(pairs[2], pairs[3], odd)};
        return {BFloat16::rounded(first), BFloat16::rounded(second)};
    }

    // A scale of each of 16 columns, twice side by side.
    static inline void doubled(Vector x, __m256 (&to)[4]) {
        const __m256i low = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3), high = _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7);
        to[0] = _mm256_permutevar8x32_ps(x.low, low);
        to[1] = _mm256_permutevar8x32_ps(x.low, high);
        to[2] = _mm256_permutevar8x32_ps(x.high, low);
        to[3] = _mm256_permutevar8x32_ps(x.high, high);
    }

    template <class Use>
    static inline void four_bit(
        const uint8_t* numbers, int64_t part_bytes, const uint8_t* scales, const uint8_t* minima, Use use
    ) {
        __m256 scale[4], least[4];
        doubled(half_precision(scales), scale);
        doubled(half_precision(minima), least);
        for (int part = 0; part < 2; ++part) {
            __m256i packed[4];
            for (int i = 0; i < 4; ++i)
                packed[i] = _mm256_loadu_si256((const __m256i*)(numbers + part * part_bytes) + i);
            for (int word = 0; word < 8; ++word) {
                __m256 pairs[4];
                for (int i = 0; i < 4; ++i) {
                    pairs[i] = _mm256_fmadd_ps(nibbles(packed[i]), scale[i], least[i]);
                    packed[i] = _mm256_srli_epi32(packed[i], 4);
                }
                use(part * 8 + word, apart(pairs));
            }
        }
    }

    template <class Use>
    static inline void eight_bit(const uint8_t* numbers, int64_t word_bytes, const uint8_t* scales, Use use) {
        __m256 scale[4];
        doubled(half_precision(scales), scale);
        for (int word = 0; word < 16; ++word) {
            __m256 pairs[4];
            for (int i = 0; i < 4; ++i)
                pairs[i] = _mm256_mul_ps(signed_bytes(numbers + word * word_bytes + i * 8), scale[i]);
            use(word, apart(pairs));
        }
    }
};

static inline void transpose_8(const uint8_t* const* rows, uint8_t* to) {
    __m256 a[8], b[8];
    for (int i = 0; i < 8; ++i) a[i] = rows[i] ? _mm256_loadu_ps((const float*)rows[i]) : _mm256_setzero_ps();
    for (int i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
        a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
        a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
        a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
        _mm256_storeu_ps((float*)(to + i * 256), _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
        _mm256_storeu_ps((float*)(to + (i + 4) * 256), _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
    }
}

// `words` is 8 or 16.
static inline void transpose(const uint8_t* const (&rows)[16], int words, uint8_t* to) {
    for (int word = 0; word < words; word += 8) {
        for (int column = 0; column < 16; column += 8) {
            const uint8_t* eight[8];
            for (int i = 0; i < 8; ++i) eight[i] = rows[column + i] ? rows[column + i] + word * 4 : nullptr;
            transpose_8(eight, to + word * 256 + column * 4);
        }
    }
}

static inline void store_pair(uint8_t* to, const uint16_t* first, const uint16_t* second) {
    for (int i = 0; i < 2; ++i) {
        const __m256i low = first ? _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)first + i))
                                  : _mm256_setzero_si256();
        const __m256i high = second ? _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)second + i))
                                    : _mm256_setzero_si256();
        _mm256_storeu_si256((__m256i*)to + i, _mm256_or_si256(low, _mm256_slli_epi32(high, 16)));
    }
}

static inline void store_pair(uint8_t* to, const float* first, const float*) {
    store_words(to, first ? load_words(first) : no_words());
}

}  // namespace tandem::LANES
