// Vectors of 16 numbers, and the two element types that matrices are multiplied in.
//
// Memory is read and multiplied in words of 32 bits: one float32, or two neighbouring bfloat16 along the
// inner dimension. One kernel therefore serves both types, which differ in what `multiply_add` does.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,f16c")

namespace tandem {

using Vector = __m512;
constexpr int WIDTH = 16;

static inline int64_t rounded_up(int64_t number, int64_t to) { return (number + to - 1) / to * to; }

struct Float32 {
    using Element = float;
    static constexpr int PER_WORD = 1;

    static inline Vector multiply_add(Vector sum, __m512i a, __m512i b) {
        return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
    }
    static inline Vector load(const float* from) { return _mm512_loadu_ps(from); }
    static inline void store(float* to, Vector x) { _mm512_storeu_ps(to, x); }
    static inline float widen(float x) { return x; }
    static inline Vector rounded(Vector x) { return x; }
};

struct BFloat16 {
    using Element = uint16_t;
    static constexpr int PER_WORD = 2;

    static inline Vector multiply_add(Vector sum, __m512i a, __m512i b) {
        return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
    }
    static inline Vector load(const uint16_t* from) {
        const __m256i half = _mm256_loadu_si256((const __m256i*)from);
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
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

// e to the x for x ≤ 0, within 2 units in the last place; −∞ gives 1e-38, as good as nothing.
static inline Vector exponential(Vector x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-87.0f));
    const Vector turns = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)), 8);
    x = _mm512_fnmadd_ps(turns, _mm512_set1_ps(0.693359375f), x);
    x = _mm512_fnmadd_ps(turns, _mm512_set1_ps(-2.12194440e-4f), x);
    Vector sum = _mm512_set1_ps(1.9875691500e-4f);
    sum = _mm512_fmadd_ps(sum, x, _mm512_set1_ps(1.3981999507e-3f));
    sum = _mm512_fmadd_ps(sum, x, _mm512_set1_ps(8.3334519073e-3f));
    sum = _mm512_fmadd_ps(sum, x, _mm512_set1_ps(4.1665795894e-2f));
    sum = _mm512_fmadd_ps(sum, x, _mm512_set1_ps(1.6666665459e-1f));
    sum = _mm512_fmadd_ps(sum, x, _mm512_set1_ps(5.0000001201e-1f));
    sum = _mm512_fmadd_ps(_mm512_mul_ps(sum, x), x, _mm512_add_ps(x, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(sum, turns);
}

// x / (1 + e^−x)
static inline Vector silu(Vector x) {
    const Vector size = _mm512_abs_ps(x);
    const Vector small = exponential(_mm512_sub_ps(_mm512_setzero_ps(), size));
    const Vector bottom = _mm512_add_ps(small, _mm512_set1_ps(1.0f));
    const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    const Vector top = _mm512_mask_mul_ps(x, negative, x, small);
    return _mm512_div_ps(top, bottom);
}

}  // namespace tandem

#pragma GCC pop_options
