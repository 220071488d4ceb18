"""The planner's search: equal to brute force, honest about colocation, and it divides by the GPUs."""

from __future__ import annotations

import pytest

from global_scheduler.goodput import (
    Arm,
    Candidate,
    Parallel,
    Search,
    choose,
    cuts,
    high_affinity,
    low_affinity,
    together,
)

FINE = Search(steps=14)


class Model:
    """A cluster in closed form: so many requests a second an instance; together they disturb each other."""

    def __init__(self, prefill: float, decode: float, interference: float) -> None:
        self.rates = {"prefill": prefill, "decode": decode}
        self.interference = interference

    def capacity(self, role: str, parallel: Parallel) -> float:
        """Two GPUs are 1.7 times as fast as one, not twice."""
        return self.rates[role] * 1.7 ** (parallel.gpus.bit_length() - 1)

    def __call__(self, arm: Arm, rate: float) -> float:
        second = arm.decodes * self.capacity("decode", arm.decode)
        if arm.together:
            first = arm.decodes * self.capacity("prefill", arm.decode)
            whole = 1 / (1 / first + 1 / second) * self.interference
        else:
            whole = min(arm.prefills * self.capacity("prefill", arm.prefill), second)
        return 1.0 if rate <= whole else 0.0

    def alone(self, role: str, parallel: Parallel, rate: float) -> float:
        return 1.0 if rate <= self.capacity(role, parallel) else 0.0


def brute(gpus: int, parallels: list[Parallel], model: Model) -> float:
    arms = [
        Arm(p, d, a, b)
        for a in parallels
        for b in parallels
        for p in range(1, gpus + 1)
        for d in range(1, gpus + 1)
        if p * a.gpus + d * b.gpus <= gpus
    ] + [Arm(0, gpus // one.gpus, decode=one) for one in parallels]
    return max(FINE.goodput(lambda rate, arm=arm: model(arm, rate), arm.gpus) for arm in arms)  # type: ignore[misc]


@pytest.mark.parametrize("gpus", [2, 3, 4, 8])
@pytest.mark.parametrize("rates", [(5.6, 10.0), (2.0, 2.0), (1.0, 9.0), (9.0, 1.0)])
@pytest.mark.parametrize("interference", [0.4, 1.0])
def test_the_search_finds_what_brute_force_finds(
    gpus: int, rates: tuple[float, float], interference: float
) -> None:
    model, parallels = Model(*rates, interference), [Parallel(), Parallel(tensor=2)]
    found = [*high_affinity(gpus, parallels, model, FINE), *together(gpus, parallels, model, FINE)]
    assert choose(found, gpus).best.goodput == pytest.approx(brute(gpus, parallels, model), rel=0.01)
    near = [*low_affinity(gpus, gpus, parallels, model, FINE), *together(gpus, parallels, model, FINE)]
    assert choose(near, gpus).best.goodput == pytest.approx(brute(gpus, parallels, model), rel=0.01)


def test_it_answers_colocate_where_nothing_is_gained_apart() -> None:
    model = Model(4.0, 4.0, interference=1.0)
    found = [*high_affinity(3, [Parallel()], model, FINE), *together(3, [Parallel()], model, FINE)]
    plan = choose(found, 3)
    assert plan.best.arm.together and "apart at most" in plan.reason
    strained = Model(4.0, 8.0, interference=0.4)
    found = [*high_affinity(3, [Parallel()], strained, FINE), *together(3, [Parallel()], strained, FINE)]
    assert choose(found, 3).best.arm == Arm(2, 1)


def test_of_equals_the_one_without_a_handoff_is_taken() -> None:
    apart, both = Candidate(Arm(1, 1), 2.0), Candidate(Arm(0, 2), 2.0)
    assert choose([apart, both], 2).best is both


def test_a_node_is_cut_in_every_way_and_repeated() -> None:
    assert set(cuts(3, [Parallel()])) == {Arm(1, 2), Arm(2, 1)}
    arms = {one.arm for one in low_affinity(8, 4, [Parallel()], Model(1.0, 1.0, 0.5), FINE)}
    assert arms == {Arm(2, 6), Arm(4, 4), Arm(6, 2)}


def test_nothing_in_time_is_said() -> None:
    with pytest.raises(ValueError, match="loosen the objectives"):
        choose([Candidate(Arm(0, 1), 0.0)], 1)
