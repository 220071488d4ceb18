// One token of one row of logits: what kernels/reference.py's `sample` defines.
#pragma once

#include <algorithm>
#include <functional>
#include <vector>

#include "numbers.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,f16c")

namespace tandem {

struct Draw {
    float temperature;
    float top_p;
    float min_p;
    uint32_t first_key;
    uint32_t second_key;
    int32_t unused;
    int64_t top_k;
};

class Sampler {
  public:
    // logits: [size], without NaN, at least one finite.
    int64_t draw(const float* logits, int64_t size, const Draw& d) {
        int64_t best = 0;
        for (int64_t i = 1; i < size; ++i)
            if (logits[i] > logits[best]) best = i;
        if (!(d.temperature > 0)) return best;
        weigh(logits, size, logits[best], d.temperature);
        float floor = d.min_p;
        if (d.top_k > 0 || d.top_p < 1) floor = std::max(floor, nucleus(d.top_k, d.top_p));
        return race(size, floor, d);
    }

  private:
    // e to the (logit − most) / temperature; 0 for what is forbidden and as padding.
    void weigh(const float* logits, int64_t size, float most, float temperature) {
        weights_.resize(rounded_up(size, WIDTH));
        const Vector never = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
        for (int64_t i = 0; i < size; i += WIDTH) {
            const __mmask16 inside = size - i >= WIDTH ? 0xffff : __mmask16((1u << (size - i)) - 1);
            const Vector x = _mm512_mask_loadu_ps(never, inside, logits + i);
            const __mmask16 allowed = _mm512_cmp_ps_mask(x, never, _CMP_NEQ_UQ);
            const Vector below = _mm512_sub_ps(x, _mm512_set1_ps(most));
            const Vector weight = exponential(_mm512_div_ps(below, _mm512_set1_ps(temperature)));
            _mm512_storeu_ps(weights_.data() + i, _mm512_maskz_mov_ps(allowed, weight));
        }
    }

    // The least weight that top-k and top-p leave. Only what lies above a cutoff is looked at, the first of 1/16,
    // 1/256 … above which lies enough.
    float nucleus(int64_t k, float p) {
        float floor = 0;
        if (k > 0 && k < int64_t(weights_.size())) {
            gather([&](int64_t count, double) { return count >= k; });
            if (k <= count_) {
                std::nth_element(likely(), likely() + (k - 1), likely() + count_, std::greater<float>());
                floor = likely()[k - 1];
            }
        }
        if (p >= 1) return floor;
        const double enough = double(p) * collect(std::max(floor, std::numeric_limits<float>::min()));
        gather([&](int64_t, double sum) { return sum >= enough; });
        return std::max(floor, reached(enough));
    }

    // The weight at which the sum from the greatest on reaches `enough`: quickselect by sum.
    float reached(double enough) {
        float* begin = likely();
        float* end = begin + count_;
        while (true) {
            const int64_t size = end - begin;
            const float a = begin[0], b = begin[size / 2], c = begin[size - 1];
            const float pivot = std::max(std::min(a, b), std::min(std::max(a, b), c));
            double greater = 0, equal = 0;
            float* middle = std::partition(begin, end, [&](float w) { return w > pivot ? greater += w, true : false; });
            float* least = std::partition(middle, end, [&](float w) { return w == pivot ? equal += w, true : false; });
            if (greater >= enough && middle > begin) {
                end = middle;
            } else if (greater + equal >= enough || least == end) {
                return pivot;
            } else {
                enough -= greater + equal;
                begin = least;
            }
        }
    }

    float* likely() { return likely_.data(); }

    template <class Enough>
    void gather(const Enough& enough) {
        for (float cutoff = 1.0f / 16;; cutoff /= 16) {
            const double sum = collect(std::max(cutoff, std::numeric_limits<float>::min()));
            if (cutoff < std::numeric_limits<float>::min() || enough(count_, sum)) return;
        }
    }

    // The weights from a cutoff on; returns their sum.
    double collect(float cutoff) {
        likely_.resize(weights_.size() + WIDTH);
        count_ = 0;
        __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();
        for (size_t i = 0; i < weights_.size(); i += WIDTH) {
            const Vector w = _mm512_loadu_ps(weights_.data() + i);
            const __mmask16 mask = _mm512_cmp_ps_mask(w, _mm512_set1_ps(cutoff), _CMP_GE_OQ);
            if (!mask) continue;
            _mm512_mask_compressstoreu_ps(likely() + count_, mask, w);
            count_ += __builtin_popcount(mask);
            const Vector kept = _mm512_maskz_mov_ps(mask, w);
            low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(kept)));
            high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(kept, 1)));
        }
        return _mm512_reduce_add_pd(_mm512_add_pd(low, high));
    }

    static __m512i mix(__m512i x) {
        x = _mm512_mullo_epi32(_mm512_xor_si512(x, _mm512_srli_epi32(x, 16)), _mm512_set1_epi32(0x7FEB352D));
        x = _mm512_mullo_epi32(_mm512_xor_si512(x, _mm512_srli_epi32(x, 15)), _mm512_set1_epi32(int(0x846CA68B)));
        return _mm512_xor_si512(x, _mm512_srli_epi32(x, 16));
    }

    // The greatest weight / wait. A wait is −log(1 − u) ≥ u, so most tokens lose without a logarithm.
    int64_t race(int64_t size, float floor, const Draw& d) const {
        const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const Vector half = _mm512_set1_ps(0.5f), unit = _mm512_set1_ps(0x1p-32f), least = _mm512_set1_ps(floor);
        float best = -1;
        int64_t winner = 0;
        for (int64_t i = 0; i < size; i += WIDTH) {
            const Vector weight = _mm512_loadu_ps(weights_.data() + i);
            const __mmask16 likely = _mm512_cmp_ps_mask(weight, least, _CMP_GE_OQ);
            const __mmask16 kept = likely & _mm512_cmp_ps_mask(weight, _mm512_setzero_ps(), _CMP_GT_OQ);
            if (!kept) continue;
            const __m512i token = _mm512_add_epi32(lanes, _mm512_set1_epi32(int(i)));
            __m512i bits = mix(_mm512_xor_si512(token, _mm512_set1_epi32(int(d.first_key))));
            bits = mix(_mm512_xor_si512(bits, _mm512_set1_epi32(int(d.second_key))));
            const Vector u = _mm512_mul_ps(_mm512_add_ps(_mm512_cvtepu32_ps(bits), half), unit);
            const Vector reach = _mm512_mul_ps(u, _mm512_set1_ps(best * 0.9999f));
            __mmask16 ahead = _mm512_mask_cmp_ps_mask(kept, weight, reach, _CMP_GE_OQ);
            alignas(64) float weights[WIDTH], us[WIDTH];
            if (ahead) _mm512_store_ps(weights, weight), _mm512_store_ps(us, u);
            for (; ahead; ahead &= ahead - 1) {
                const int lane = __builtin_ctz(ahead);
                const float run = weights[lane] / -std::log1p(-us[lane]);
                if (run > best) best = run, winner = i + lane;
            }
        }
        return winner;
    }

    std::vector<float> weights_, likely_;
    int64_t count_ = 0;
};

}  // namespace tandem

#pragma GCC pop_options
