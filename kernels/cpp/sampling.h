// One token of one row of logits: what kernels/reference.py's `sample` defines.
#pragma once

#include <algorithm>
#include <functional>
#include <vector>

#include "functions.h"
#include "structures.h"

namespace tandem::LANES {

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
        const Vector never = all(-std::numeric_limits<float>::infinity());
        for (int64_t i = 0; i < size; i += WIDTH) {
            const Vector x = load_masked(never, first_lanes(size - i), logits + i);
            const Vector weight = exponential(divide(subtract(x, all(most)), all(temperature)));
            store(weights_.data() + i, kept(differs(x, never), weight));
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
        DoubleSum total;
        for (size_t i = 0; i < weights_.size(); i += WIDTH) {
            const Vector w = load(weights_.data() + i);
            const Mask mask = at_least(w, all(cutoff));
            if (!bits(mask)) continue;
            store_compressed(likely() + count_, mask, w);
            count_ += __builtin_popcount(bits(mask));
            total.add(kept(mask, w));
        }
        return total.total();
    }

    static Words mix(Words x) {
        x = times(exclusive(x, shifted_right<16>(x)), all_words(0x7FEB352D));
        x = times(exclusive(x, shifted_right<15>(x)), all_words(0x846CA68B));
        return exclusive(x, shifted_right<16>(x));
    }

    // The greatest weight / wait. A wait is −log(1 − u) ≥ u, so most tokens lose without a logarithm.
    int64_t race(int64_t size, float floor, const Draw& d) const {
        float best = -1;
        int64_t winner = 0;
        for (int64_t i = 0; i < size; i += WIDTH) {
            const Vector weight = load(weights_.data() + i);
            const Mask running = both(at_least(weight, all(floor)), greater(weight, zeros()));
            if (!bits(running)) continue;
            const Words token = add(counting(), all_words(uint32_t(i)));
            const Words drawn = mix(exclusive(mix(exclusive(token, all_words(d.first_key))), all_words(d.second_key)));
            const Vector u = times(add(from_unsigned(drawn), all(0.5f)), all(0x1p-32f));
            uint32_t ahead = bits(both(running, at_least(weight, times(u, all(best * 0.9999f)))));
            alignas(64) float weights[WIDTH], us[WIDTH];
            if (ahead) store(weights, weight), store(us, u);
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

}  // namespace tandem::LANES
