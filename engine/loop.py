"""The engine core in a thread of its own, with a mailbox for everybody else.

call(fn) ─▶ mailbox ─┐
                     ▼
    ┌─▶ run the calls ─▶ plan ─▶ Runner.run ─▶ commit ─▶ sink, observers ─┐
    └─────────────────────────────────────────────────────────────────────┘
                     nobody can run: wait for the mailbox

Of a Launcher the next step is planned and launched before the present one is waited for, where it is sure
(engine/ahead.py): while tokens are committed, pushed and mail is read, the device computes on.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, NoReturn, Protocol, TypeVar

from engine.core import EngineCore, Launcher, Runner
from engine.errors import Draining, TandemError
from engine.outcome import Emitted, StepOutcome
from engine.plan import StepPlan, StepResult

T = TypeVar("T")

log = logging.getLogger(__name__)


class Clock(Protocol):
    """Seconds, monotonic."""

    def now(self) -> float: ...


class TokenSink(Protocol):
    """Where tokens go. Called in the loop thread: it must not block."""

    def push(self, emitted: SequenceOf[Emitted]) -> None: ...


class _Call(Generic[T]):
    """A letter in the mailbox."""

    def __init__(self, fn: Callable[[EngineCore], T]) -> None:
        self._fn = fn
        self.future: Future[T] = Future()

    def run(self, core: EngineCore) -> None:
        if self.future.set_running_or_notify_cancel():
            try:
                self.future.set_result(self._fn(core))
            except Exception as error:
                self.future.set_exception(error)

    def refuse(self, error: TandemError) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class EngineLoop:
    """Steps the core while somebody can run. Everything else enters through `call`, between two steps.

    A ValueError of the runner ends the requests of that step as FAILED. Any other exception in the
    thread ends the loop: `failed` holds it, and every call, in the mailbox or to come, fails too.
    `ended` is done when the thread is: with that exception, or with None after `stop`.
    """

    def __init__(self, core: EngineCore, runner: Runner, sink: TokenSink, clock: Clock, *, name: str) -> None:
        self._core = core
        self._runner = runner
        self._sink = sink
        self._clock = clock
        self._name = name
        self._launch = runner.launch if isinstance(runner, Launcher) else None
        self._flying: deque[tuple[StepPlan, Callable[[], StepResult]]] = deque()
        self._foreseers: list[Callable[[StepPlan], None]] = []
        self._observers: list[Callable[[StepOutcome], None]] = []
        self._mailbox: SimpleQueue[_Call[Any] | None] = SimpleQueue()
        self._door = threading.Lock()
        self._closed: TandemError | None = None
        self._failed: BaseException | None = None
        self.ended: Future[None] = Future()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    @property
    def failed(self) -> BaseException | None:
        """What ended the thread, None while it is well or was stopped."""
        return self._failed

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End the thread after its present step; wait `timeout` seconds for that at most.

        Calls that have not run fail with Draining. What lives in the core stays as it is.
        """
        self._close(Draining(f"the engine loop {self._name} has been stopped: send requests elsewhere"))
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout)
            if self._thread.is_alive():
                log.warning("engine loop %s did not end its step within %s s", self._name, timeout)

    def call(self, fn: Callable[[EngineCore], T]) -> Future[T]:
        """Run `fn` in the loop thread between two steps, or at once if it is idle.

        The future has what `fn` returned or raised; who waits for it in the loop thread waits for ever.
        """
        letter = _Call(fn)
        with self._door:
            closed = self._closed
            if closed is None:
                self._mailbox.put(letter)
        if closed is not None:
            letter.refuse(closed)
        return letter.future

    def foresee(self, foreseer: Callable[[StepPlan], None]) -> None:
        """Call `foreseer` with each step in the loop thread before it is computed, or as it begins to be; it
        must be quick and may not raise."""
        self._foreseers.append(foreseer)

    def observe(self, observer: Callable[[StepOutcome], None]) -> None:
        """Call `observer` after each commit in the loop thread; it must be quick and may not raise."""
        self._observers.append(observer)

    def _close(self, error: TandemError) -> None:
        """Let nobody in any more and send away who waits. The None wakes the thread."""
        with self._door:
            if self._closed is None:
                self._closed = error
        waiting = []
        while True:
            try:
                waiting.append(self._mailbox.get_nowait())
            except Empty:
                break
        self._mailbox.put(None)
        for letter in waiting:
            if letter is not None:
                letter.refuse(error)

    def _main(self) -> None:
        try:
            while self._closed is None:
                idle = not self._step()
                self._read_mail(wait=idle)
        except BaseException as error:
            log.exception("engine loop %s died", self._name)
            self._failed = error
            self._close(TandemError(f"the engine loop {self._name} died: {error!r}"))
            self.ended.set_exception(error)
        else:
            self.ended.set_result(None)

    def _read_mail(self, *, wait: bool) -> None:
        """Run every call that is there; with `wait`, wait for the first."""
        try:
            letter = self._mailbox.get(block=wait)
            while letter is not None:
                letter.run(self._core)
                letter = self._mailbox.get_nowait()
        except Empty:
            pass

    def _step(self) -> bool:
        """One iteration; False if nobody could run."""
        core, now = self._core, self._clock.now()
        if not self._flying:
            self._take_off(core.plan(now))
        if self._launch is not None and len(self._flying) == 1:
            self._take_off(core.plan_ahead(now))
        stepping = bool(self._flying)
        outcome = self._land(*self._flying.popleft()) if stepping else core.settle()
        if outcome is not None:
            if outcome.emitted:
                self._sink.push(outcome.emitted)
            for observer in self._observers:
                observer(outcome)
        return stepping

    def _take_off(self, plan: StepPlan | None) -> None:
        if plan is None:
            return
        wait: Callable[[], StepResult] = partial(self._runner.run, plan)
        if self._launch is not None:
            try:
                wait = self._launch(plan)
            except ValueError as error:
                wait = partial(_raise, error)
        self._flying.append((plan, wait))
        for foreseer in self._foreseers:
            foreseer(plan)

    def _land(self, plan: StepPlan, wait: Callable[[], StepResult]) -> StepOutcome:
        try:
            result = wait()
        except ValueError:
            log.exception("a step of engine loop %s could not be computed", self._name)
            return self._core.fail(plan, self._clock.now())
        return self._core.commit(plan, result, self._clock.now())


def _raise(error: Exception) -> NoReturn:
    raise error
