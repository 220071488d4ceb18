// Functions of vectors, the same operations on every processor.
#pragma once

#include LANES_HEADER

namespace tandem::LANES {

static inline int64_t rounded_up(int64_t number, int64_t to) { return (number + to - 1) / to * to; }

// e to the x for x ≤ 0, within 2 units in the last place; −∞ gives 1e-38, as good as nothing.
static inline Vector exponential(Vector x) {
    x = greatest(x, all(-87.0f));
    const Vector turns = nearest(times(x, all(1.44269504088896341f)));
    x = minus_times(turns, all(0.693359375f), x);
    x = minus_times(turns, all(-2.12194440e-4f), x);
    Vector sum = all(1.9875691500e-4f);
    sum = times_add(sum, x, all(1.3981999507e-3f));
    sum = times_add(sum, x, all(8.3334519073e-3f));
    sum = times_add(sum, x, all(4.1665795894e-2f));
    sum = times_add(sum, x, all(1.6666665459e-1f));
    sum = times_add(sum, x, all(5.0000001201e-1f));
    sum = times_add(times(sum, x), x, add(x, all(1.0f)));
    return scaled(sum, turns);
}

// x / (1 + e^−x)
static inline Vector silu(Vector x) {
    const Vector small = exponential(subtract(zeros(), size_of(x)));
    const Vector top = chosen(x, less(x, zeros()), times(x, small));
    return divide(top, add(small, all(1.0f)));
}

}  // namespace tandem::LANES
