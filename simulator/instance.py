"""An instance on a virtual clock: the engine core of production, stepped by events.

    call(fn) ─▶ mailbox ─▶ between two steps ─▶ EngineCore ─▶ plan ─ cost ─▶ commit ─▶ sink, observers

Steps that are sure to be the same are taken many at once; a letter in the mailbox ends that after the step
that is under way, so nobody can tell the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from engine.core import EngineCore
from engine.outcome import Emitted, StepOutcome
from engine.plan import StepPlan
from engine.sequence import Sequence as LiveSequence
from engine.status import InstanceStatus
from simulator.clock import VirtualClock
from simulator.cost_tables.interpolation import FloatArray
from simulator.runner import EOS, TOKEN, SimulatedRunner
from simulator.spans import Spans

LONGEST_COAST = 4096
"""Steps at once. Answers are longer only in theory."""


class Sink(Protocol):
    """Where tokens go."""

    def emitted(self, emitted: Sequence[Emitted], now: float) -> None: ...

    def coasted(self, running: Sequence[LiveSequence], start: float, ends: FloatArray) -> None:
        """Each of `running` got a token at each of `ends`; the first of these steps began at `start`."""

    def ended(self, emitted: Sequence[Emitted]) -> None:
        """The last of the tokens that `coasted` told of were the last of these choices."""


class SimulatedInstance:
    """`coasting` takes steps many at once where it makes no difference.

    `busy` sums the seconds of its steps, `ended` is when the last one did. It notes in `spans`, if there are
    any, who was in which step.
    """

    def __init__(
        self,
        name: str,
        role: str,
        core: EngineCore,
        runner: SimulatedRunner,
        clock: VirtualClock,
        sink: Sink,
        *,
        coasting: bool = True,
    ) -> None:
        self.name = name
        self.role = role
        self.core = core
        self.busy = self.ended = 0.0
        self.born = clock.now()
        self.spans: Spans | None = None
        self._runner = runner
        self._clock = clock
        self._sink = sink
        self._coasting = coasting
        self._first: Callable[[], None] | None = None
        self._chooses = False
        self._foreseers: list[Callable[[StepPlan], None]] = []
        self._observers: list[Callable[[StepOutcome], None]] = []
        self._mail: list[Callable[[EngineCore], None]] = []
        self._asked: list[Callable[[InstanceStatus], None]] = []
        self._wake = 0
        self._stepping = False
        self._coast: tuple[float, FloatArray] | None = None
        self._reading = False

    def call(self, fn: Callable[[EngineCore], None]) -> None:
        """Run `fn` between two steps, as EngineLoop.call does; at once if the instance is idle."""
        self._chooses = True
        self._post(fn)

    def _post(self, fn: Callable[[EngineCore], None]) -> None:
        self._mail += map(self._letter, self._asked)
        self._asked.clear()
        self._mail.append(fn)
        if not self._stepping:
            if not self._reading:
                self._go_on()
        elif self._coast is not None:
            start, ends = self._coast
            current = self._leapt(ends)
            if current + 1 < len(ends):
                self._coast = start, ends[: current + 1]
                self._wake_at(float(ends[current]))

    def report(self, told: Callable[[InstanceStatus], None]) -> None:
        """Tell how it is between two steps, as a letter would find it. A leap goes on."""
        if self._coast is None or self._mail:
            self._post(self._letter(told))
            return
        _, ends = self._coast
        current = self._leapt(ends)
        if current + 1 >= len(ends):
            self._post(self._letter(told))
            return
        self._asked.append(told)
        self._clock.at(float(ends[current]), partial(self._tell_ahead, told))

    def _letter(self, told: Callable[[InstanceStatus], None]) -> Callable[[EngineCore], None]:
        return lambda core: told(self.status())

    def _tell_ahead(self, told: Callable[[InstanceStatus], None]) -> None:
        """The step that was under way has ended; a letter that came meanwhile has taken this with it."""
        if told in self._asked and self._coast is not None:
            self._asked.remove(told)
            told(self.core.status(self.name, self.role, ahead=self._leapt(self._coast[1])))

    def _leapt(self, ends: FloatArray) -> int:
        """Steps of a leap that have ended by now."""
        return int(ends.searchsorted(self._clock.now(), side="right"))

    def catch_up(self) -> None:
        """Take the steps of a leap that have ended, for who looks at the core in the middle of it."""
        if self._coast is None:
            return
        start, ends = self._coast
        steps = min(self._leapt(ends), len(ends) - 1)  # its end is told of by the clock
        if steps:
            self._coast = float(ends[steps - 1]), ends[steps:]
            self._leap(start, ends[:steps])

    def foresee(self, foreseer: Callable[[StepPlan], None]) -> None:
        """Call `foreseer` with each step as it begins, but for those of a leap, which are decode alone."""
        self._foreseers.append(foreseer)

    def observe(self, observer: Callable[[StepOutcome], None]) -> None:
        """Call `observer` after each step, and after a leap that ends somebody."""
        self._observers.append(observer)

    def ask_first(self, asked: Callable[[], None]) -> None:
        """Call `asked` whenever it may choose whom to serve next, before it does."""
        self._first = asked

    def status(self) -> InstanceStatus:
        return self.core.status(self.name, self.role)

    def _go_on(self) -> None:
        """Read the mail, then begin a step if anybody can run."""
        if self._first is not None and (self._chooses or len(self.core.queue)):
            self._first()
        self._chooses = False
        self._reading = True
        mail = self._mail
        while mail:
            letters, self._mail = mail, []
            for letter in letters:
                letter(self.core)
            mail = self._mail
        self._reading = False
        now = self._clock.now()
        if self._coasting and self._begin_coast(now):
            return
        plan = self.core.plan(now)
        if plan is None:
            outcome = self.core.settle()
            if outcome is not None:
                self._tell(outcome)
            if self._mail:
                self._go_on()
            return
        self._stepping = True
        for foreseer in self._foreseers:
            foreseer(plan)
        seconds = self._runner.seconds(plan)
        self.busy += seconds
        if self.spans is not None:
            works = (
                (work.request_id, work.draw is not None and work.draw.position > 0) for work in plan.works
            )
            self.spans.add(works, now, now + seconds)
        self._wake_at(now + seconds, plan)

    def _begin_coast(self, now: float) -> bool:
        running = self.core.running
        if not running:
            return False
        most = min(LONGEST_COAST, self._runner.left(running))
        steps = self.core.steady(most, now) if most > 1 else 0
        if steps < 2:
            return False
        self._stepping = True
        self._coast = now, self._runner.ends(running, steps, now)
        self._wake_at(float(self._coast[1][-1]))
        return True

    def _wake_at(self, time: float, plan: StepPlan | None = None) -> None:
        self._wake += 1
        number = self._wake

        def wake() -> None:
            if number == self._wake:
                self._end(plan)

        self._clock.at(time, wake)

    def _end(self, plan: StepPlan | None) -> None:
        now = self.ended = self._clock.now()
        self._stepping = False
        if plan is None:
            assert self._coast is not None
            leap, self._coast = self._coast, None
            self._leap(*leap)
            self._mail[:0] = map(self._letter, self._asked)
            self._asked.clear()
        else:
            outcome = self.core.commit(plan, self._runner.run(plan), now)
            self._sink.emitted(outcome.emitted, now)
            self._tell(outcome)
        self._go_on()

    def _leap(self, start: float, ends: FloatArray) -> None:
        """As many steps as there are ends, the first of which began at `start`."""
        self.busy += float(ends[-1]) - start
        if self.spans is not None:
            self.spans.add(((one.request.id, True) for one in self.core.running), start, float(ends[-1]))
        self.core.coast(len(ends), TOKEN)
        running = self.core.running
        self._sink.coasted(running, start, ends)
        ended = self._runner.ended(running)
        if ended:
            outcome = self.core.conclude(ended, EOS)
            self._sink.ended(outcome.emitted)
            self._tell(outcome)

    def _tell(self, outcome: StepOutcome) -> None:
        """What observers ask for is for the next time between two steps."""
        reading, self._reading = self._reading, True
        for observer in self._observers:
            observer(outcome)
        self._reading = reading
