"""Statistics of benchmarks against cases worked out by hand."""

from __future__ import annotations

import random

import pytest

from cluster.bench import statistics
from cluster.bench.roofline import Roofs, Shape
from cluster.bench.statistics import Distribution, Estimate, Spread, goodput, percentile, ratios


def test_a_percentile_lies_between_its_neighbours_as_numpy_puts_it() -> None:
    # Place of P90 among five samples: 4 × 0.9 = 3.6, so 4 + 0.6 × (10 − 4).
    assert percentile([1, 2, 3, 4, 10], 90) == pytest.approx(7.6)
    assert percentile([1, 2, 3, 4, 10], 50) == 3
    assert percentile([5], 99) == 5


def test_a_distribution_does_not_care_for_the_order_of_its_samples() -> None:
    found = Distribution.of([3.0, 1.0, 2.0])
    assert (found.count, found.mean, found.p50, found.most) == (3, 2.0, 2.0, 3.0)
    assert found.p90 == pytest.approx(2.8)


def test_a_distribution_of_nothing_has_no_figures() -> None:
    assert Distribution.of([]) == Distribution(count=0)


def test_a_spread_is_median_and_ends() -> None:
    assert Spread.of([4.0, 1.0, 2.0, 3.0]) == Spread(
        median=2.5, low=1.0, high=4.0, values=(4.0, 1.0, 2.0, 3.0)
    )


def test_ratios_are_of_the_same_repetition_so_that_a_slow_moment_cancels() -> None:
    # The second repetition ran at half the speed for both.
    found = ratios([20.0, 10.0, 20.0], [10.0, 5.0, 10.0])
    assert found is not None
    assert (found.low, found.median, found.high) == (2.0, 2.0, 2.0)


def test_a_ratio_to_nothing_is_left_out() -> None:
    assert ratios([1.0], [0.0]) is None


@pytest.mark.parametrize(
    ("points", "rate", "bound"),
    [
        ([(1, 1.0), (2, 0.95), (4, 0.75)], 2.5, "at"),  # 0.05 of the 0.2 lost between 2 and 4
        ([(4, 0.75), (1, 1.0), (2, 0.95)], 2.5, "at"),
        ([(1, 1.0), (2, 0.9)], 2, "at least"),
        ([(1, 0.89), (2, 0.95)], 1, "below"),
        ([(1, 1.0), (2, 0.8), (4, 1.0)], 1.5, "at"),  # better again at 4: noise
    ],
)
def test_goodput_is_where_nine_in_ten_cease_to_meet_their_objectives(
    points: list[tuple[float, float]], rate: float, bound: str
) -> None:
    found = goodput(points)
    assert (found.rate, found.bound) == (pytest.approx(rate), bound)


SHAPE = Shape(
    dtype="bfloat16", weights="bfloat16", layers=2, hidden=8, intermediate=16, heads=4, kv_heads=2,
    head_dim=4, vocabulary=32, weight_bytes=3000, kv_bytes=64,
)  # fmt: skip
ROOFS = Roofs(bandwidth=1e3, bfloat16=1e6, float32=1e3, int8=1.0)


def test_weights_of_a_shape() -> None:
    # A layer: qkv 8 × (16 + 8 + 8), output 16 × 8, three matrices of 8 × 16; head 32 × 8.
    assert SHAPE.layer_weights == 2 * (8 * 32 + 16 * 8 + 3 * 8 * 16)
    assert SHAPE.head_weights == 32 * 8


def test_a_decode_step_is_bound_by_what_it_reads_where_products_are_cheap() -> None:
    assert SHAPE.decode_limit(3, 10, ROOFS) == (3000 + 3 * 10 * 64) / 1e3


def test_a_decode_step_is_bound_by_products_where_they_are_dear() -> None:
    slow = ROOFS.model_copy(update={"bfloat16": 1.0, "float32": 1.0})
    attended = 2 * 3 * 10 * 4 * 4 * 2  # scores and mixed values, sequences, positions, heads × width, layers
    assert SHAPE.decode_limit(3, 10, slow) == 2 * (3 * (SHAPE.layer_weights + 256) + attended)


def test_a_prefill_attends_to_the_triangle_of_its_prompt() -> None:
    slow = ROOFS.model_copy(update={"bfloat16": 1.0, "float32": 1.0})
    triangle = 2 * (5 * 6 // 2) * 4 * 4 * 2
    assert SHAPE.prefill_limit(5, slow) == 2 * (5 * SHAPE.layer_weights + 256 + triangle)


def test_bfloat16_is_computed_in_float32_where_that_is_faster() -> None:
    assert ROOFS.model_copy(update={"bfloat16": 1.0, "float32": 7.0}).arithmetic("bfloat16") == 7.0
    assert ROOFS.model_copy(update={"bfloat16": 7.0, "float32": 1.0}).arithmetic("float32") == 1.0


def test_the_better_of_two_measurements_is_the_roof() -> None:
    other = Roofs(bandwidth=2e3, bfloat16=1e5, float32=1e3, int8=2.0)
    assert ROOFS.higher(other) == Roofs(bandwidth=2e3, bfloat16=1e6, float32=1e3, int8=2.0)


def test_an_interval_holds_the_median_of_what_was_drawn_from_nineteen_times_of_twenty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    rng = random.Random(3)
    found = [Estimate.of([rng.gauss(0.05, 0.07) for _ in range(20)]) for _ in range(300)]
    assert 0.90 <= sum(one.low <= 0.05 <= one.high for one in found) / len(found) <= 0.99
    assert all(one.low <= one.median <= one.high for one in found)


def test_an_interval_is_the_same_each_time_and_narrows_with_more_samples() -> None:
    rng = random.Random(5)
    values = [rng.gauss(0.0, 1.0) for _ in range(160)]
    few, many = Estimate.of(values[:10]), Estimate.of(values)
    assert many.high - many.low < 0.5 * (few.high - few.low)
    assert Estimate.of(values) == many
    assert Estimate.of([0.3] * 4) == Estimate(median=0.3, low=0.3, high=0.3, values=(0.3,) * 4)
    with pytest.raises(ValueError, match="nothing"):
        Estimate.of([])
