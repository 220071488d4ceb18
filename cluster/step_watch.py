"""How long the present step of an instance has taken and may take: tells hung instances from busy ones.

    engine loop ── run(plan) ──▶ StepWatch ──▶ ModelRunner
                                     ▲
                    beat thread ── present() ──▶ step, tokens, seconds so far, seconds allowed

A step's time is predicted from the slowest of the last steps, per power of two of their tokens, so an
instance that is slow for a reason (a long context, a loaded machine) gets more time as its steps get longer.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from engine.core import Launcher, Runner
from engine.plan import StepPlan, StepResult

T = TypeVar("T")

REMEMBERED = 32
"""Steps of each size whose times count."""

HANG = "hang"
"""The word of a fault that has the next step hang."""


@dataclass(frozen=True, slots=True)
class Present:
    """The step that is being computed, seconds: `elapsed` since it began, `limit` it may take. 0 for none."""

    step: int
    tokens: int = 0
    elapsed: float = 0.0
    limit: float = 0.0


class StepTimes:
    """Predicts the seconds of a step of so many tokens from steps that were measured."""

    def __init__(self) -> None:
        self._classes: dict[int, deque[float]] = {}

    def add(self, tokens: int, seconds: float) -> None:
        self._classes.setdefault(_size(tokens), deque(maxlen=REMEMBERED)).append(seconds)

    def predict(self, tokens: int) -> float | None:
        """The slowest remembered step of the next larger size that there is; if all were smaller, that of the
        largest in proportion to the tokens. None before anything was measured.
        """
        if not self._classes:
            return None
        size = _size(tokens)
        known = min((each for each in self._classes if each >= size), default=max(self._classes))
        return max(self._classes[known]) * 2.0 ** max(0, size - known)


class StepWatch:
    """A Runner around another one. `run` belongs to the engine's thread; `present` may be asked in any."""

    def __init__(
        self, runner: Runner, *, factor: float, floor: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """A step may take `factor` times what is predicted, and `floor` seconds at least.

        Before the first measure the floor stands for the prediction.
        """
        self._runner = runner
        self._factor = factor
        self._floor = floor
        self._clock = clock
        self._times = StepTimes()
        self._steps = 0
        self._goes_on = threading.Event()
        self._goes_on.set()
        self._present: tuple[int, int, float, float] | None = None

    def run(self, plan: StepPlan) -> StepResult:
        self._steps += 1
        return self._measured(plan.tokens, lambda: self._runner.run(plan))

    def take(self, fault: str) -> None:
        """Have the next step hang, on purpose, if `hang` is among the words of a fault, and go on if it is
        not. May be called in any thread."""
        if HANG in fault.split():
            self._goes_on.clear()
        else:
            self._goes_on.set()

    @staticmethod
    def others(fault: str) -> str:
        """The words of a fault that are meant for somebody else."""
        return " ".join(word for word in fault.split() if word != HANG)

    def _measured(self, tokens: int, compute: Callable[[], T]) -> T:
        """What `compute` returns, which is all of a step of so many tokens, or a part of it."""
        begun = self._clock()
        self._present = self._steps, tokens, begun, self.limit(tokens)
        try:
            self._goes_on.wait()
            result = compute()
        finally:
            self._present = None
        self._times.add(tokens, self._clock() - begun)
        return result

    def limit(self, tokens: int) -> float:
        """Seconds that a step of so many tokens may take."""
        predicted = self._times.predict(tokens)
        return max(self._floor, self._factor * (self._floor if predicted is None else predicted))

    def present(self) -> Present:
        """The step under way."""
        present = self._present
        if present is None:
            return Present(self._steps)
        step, tokens, begun, limit = present
        return Present(step, tokens, self._clock() - begun, limit)


class LaunchWatch(StepWatch):
    """Around a Launcher: what counts is how long the engine's thread is held, by a launch or by a result.

    The time for which a step computes while the thread does other things is nobody's.
    """

    def launch(self, plan: StepPlan) -> Callable[[], StepResult]:
        runner = self._runner
        assert isinstance(runner, Launcher)
        self._steps += 1
        wait = self._measured(plan.tokens, lambda: runner.launch(plan))
        return lambda: self._measured(plan.tokens, wait)


def watch(runner: Runner, *, factor: float, floor: float) -> StepWatch:
    """A watch of the kind that the runner needs."""
    kind = LaunchWatch if isinstance(runner, Launcher) else StepWatch
    return kind(runner, factor=factor, floor=floor)


def _size(tokens: int) -> int:
    """The class of a step: its tokens up to the next power of two."""
    return max(0, tokens - 1).bit_length()
