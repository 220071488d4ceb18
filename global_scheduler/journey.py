"""One request's way through the cluster, as a state machine that its driver steps; it never acts itself.

                 Placed            Started             last choice finished
      PLACING ──────────▶ STARTING ────────▶ RUNNING ──────────────────────▶ DONE
       ▲  │ Refused          │ Refused          │ Lost (its holder), Refused
       │  ▼                  ▼                  ▼
       │ WAITING ◀───────────┴── attempt + 1 ───┘     a loss is placed again at once, a refusal after a pause
       └──┘ Waited           │
                             ▼ not worth a retry, or attempts or time are spent
                           FAILED             Cancelled: any state but DONE and FAILED ──▶ CANCELLED

The driver carries out each action in the order given and reports back with the event named beside it:

    Fence(epoch)          pushes older than this epoch are not wanted any more    no answer
    Cancel(instance)      tell the instance to drop the request; best effort      no answer
    Place(…)              ask the scheduler                                       Placed | Refused
    Start(…)              call `start` of the placement's prefill instance        Started | Refused | Lost
    Wait(seconds)         set a timer                                             Waited
    Finish(), Fail(error) the end

While it runs the driver reports Progress for tokens it has put in order, Moved when it grants a claim, and
Lost when an instance died or is unreachable. Answers that come too late (a second Waited, a Started after a
loss) change nothing. A request holds no KV outside the instance called `holder`, so the death of any other
instance is ignored.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from engine.errors import CapacityError, Draining, Overloaded, RequestError, SetupError, TandemError
from engine.request import Request
from engine.sequence import Epoch
from global_scheduler.placement import Placement


class State(Enum):
    PLACING = "placing"
    WAITING = "waiting"
    STARTING = "starting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = frozenset({State.DONE, State.FAILED, State.CANCELLED})


# Events


@dataclass(frozen=True, slots=True)
class Placed:
    placement: Placement


@dataclass(frozen=True, slots=True)
class Started:
    attempt: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The scheduler (instance "") or an instance said no, or could not be asked in time."""

    error: TandemError
    instance: str = ""


@dataclass(frozen=True, slots=True)
class Waited:
    pass


@dataclass(frozen=True, slots=True)
class Moved:
    """The home granted a claim: from now on `instance` holds the request."""

    instance: str
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Progress:
    """New tokens of one choice, in order and without repeats; `finished` if they are its last."""

    choice: int
    tokens: Sequence[int]
    finished: bool = False


@dataclass(frozen=True, slots=True)
class Lost:
    """An instance died, hangs, or forgot the request."""

    instance: str
    reason: str


@dataclass(frozen=True, slots=True)
class Cancelled:
    pass


Event = Placed | Started | Refused | Waited | Moved | Progress | Lost | Cancelled


# Actions


@dataclass(frozen=True, slots=True)
class Fence:
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Cancel:
    instance: str


@dataclass(frozen=True, slots=True)
class Place:
    """`prompt_tokens` includes the longest output so far, `max_tokens` is what a choice may still draw."""

    attempt: int
    prompt_tokens: int
    max_tokens: int
    choices: int
    exclude: frozenset[str]


@dataclass(frozen=True, slots=True)
class Start:
    """`outputs`: (choice, its tokens so far) of each unfinished choice; () for a request that starts
    afresh."""

    placement: Placement
    epoch: Epoch
    outputs: tuple[tuple[int, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class Wait:
    seconds: float


@dataclass(frozen=True, slots=True)
class Finish:
    pass


@dataclass(frozen=True, slots=True)
class Fail:
    error: TandemError


Action = Fence | Cancel | Place | Start | Wait | Finish | Fail


@dataclass(frozen=True, slots=True)
class Patience:
    """How long one request is tried.

    `attempts` counts instances lost in a row without a token from them: a request that gets on is never given
    up, one that kills its instances is. Times are in seconds: `place_timeout` from a request's arrival to its
    start, `recovery_timeout` from the loss of its instance to the next start.
    """

    attempts: int = 4
    place_timeout: float = 10.0
    recovery_timeout: float = 60.0
    first_pause: float = 0.05
    longest_pause: float = 1.0

    def pause(self, request_id: str, tries: int) -> float:
        """Exponential back-off, spread over ±25 % by the request's id: requests must not return in step."""
        spread = zlib.crc32(f"{request_id}/{tries}".encode()) / 2**32
        return min(self.longest_pause, self.first_pause * 2.0 ** min(tries, 16)) * (0.75 + 0.5 * spread)


class Journey:
    """One request: who holds it, its epoch, and the tokens of each choice that its client has."""

    def __init__(self, request: Request, patience: Patience) -> None:
        self.request = request
        self.patience = patience
        self.state = State.PLACING
        self.epoch = Epoch()
        self.placement: Placement | None = None
        self.holder = ""
        self.outputs: dict[int, list[int]] = {choice: [] for choice in range(request.sampling.n)}
        self.finished: set[int] = set()
        self.recoveries = 0
        self._excluded: frozenset[str] = frozenset()
        self._place_by = 0.0
        self._tries = 0
        self._fruitless = 0

    def begin(self, now: float) -> tuple[Action, ...]:
        """The first actions. `now` is in seconds on any clock, the same for all calls."""
        self._place_by = now + self.patience.place_timeout
        return self._place()

    def go_on(
        self, instance: str, outputs: Mapping[int, Sequence[int]], finished: frozenset[int], now: float
    ) -> tuple[Action, ...]:
        """Instead of `begin`: the first actions of a request that ran at `instance` under another home."""
        self._place_by = now + self.patience.place_timeout
        for choice, tokens in outputs.items():
            self.outputs[choice].extend(tokens)
        self.finished |= finished
        if len(self.finished) == len(self.outputs):
            self.state = State.DONE
            return (Finish(),)
        return self._start(Placement(instance, instance, "it ran there for another gateway"))

    def step(self, event: Event, now: float) -> tuple[Action, ...]:
        """Take one event, give the actions that follow from it; () where it changes nothing."""
        if self.state in ENDED:
            return ()
        match event:
            case Placed(placement) if self.state is State.PLACING:
                return self._start(placement)
            case Started(attempt) if self.state is State.STARTING and attempt == self.epoch.attempt:
                self.state = State.RUNNING
            case Waited() if self.state is State.WAITING:
                return self._place()
            case Refused(error, instance):
                return self._refused(error, instance, now)
            case Lost(instance, reason) if instance == self.holder and self.holder:
                return self._lost(reason, now)
            case Moved(instance, epoch) if epoch > self.epoch and epoch.attempt == self.epoch.attempt:
                self.holder, self.epoch = instance, epoch
            case Progress(choice, tokens, finished):
                return self._progress(choice, tokens, finished)
            case Cancelled():
                self.state = State.CANCELLED
                return (*self._leave(), Finish())
        return ()

    @property
    def furthest(self) -> Sequence[int]:
        """The longest output of a choice that goes on."""
        return max(self._alive(), key=len, default=())

    def _alive(self) -> list[list[int]]:
        return [output for choice, output in self.outputs.items() if choice not in self.finished]

    def _place(self) -> tuple[Action, ...]:
        self.state = State.PLACING
        longest = len(self.furthest)
        place = Place(
            attempt=self.epoch.attempt,
            prompt_tokens=len(self.request.prompt) + longest,
            max_tokens=self.request.sampling.max_tokens - longest,
            choices=len(self._alive()),
            exclude=self._excluded,
        )
        return (place,)

    def _start(self, placement: Placement) -> tuple[Action, ...]:
        self.state = State.STARTING
        self.placement, self.holder = placement, placement.prefill
        afresh = not any(self.outputs.values()) and not self.finished
        unfinished = ((c, tuple(tokens)) for c, tokens in self.outputs.items() if c not in self.finished)
        return (Start(placement, self.epoch, () if afresh else tuple(unfinished)),)

    def _refused(self, error: TandemError, instance: str, now: float) -> tuple[Action, ...]:
        if instance:
            if instance != self.holder:
                return ()
            if isinstance(error, RequestError | SetupError):
                return self._fail(error)
            full = isinstance(error, CapacityError)
            return self._again(error, now, died=not full, pause=full and not isinstance(error, Draining))
        if self.state is not State.PLACING:
            return ()
        if not isinstance(error, CapacityError):
            return self._fail(error)
        return self._pause(error, now)

    def _lost(self, reason: str, now: float) -> tuple[Action, ...]:
        self.recoveries += 1
        error = Overloaded(f"instance {self.holder} was lost ({reason}) on attempt {self.epoch.attempt + 1}")
        return self._again(error, now, died=True)

    def _again(
        self, error: TandemError, now: float, *, died: bool, pause: bool = False
    ) -> tuple[Action, ...]:
        """A new attempt without the instance that held the last one, which may still be running it unseen."""
        if self.state is State.RUNNING:
            self._excluded = frozenset()
            self._place_by, self._tries = now + self.patience.recovery_timeout, 0
        # The scheduler may not know yet of a death, and have no other instance: that is no second death.
        again = self.holder in self._excluded
        if died and not again:
            self._fruitless += 1
            if self._fruitless >= self.patience.attempts:
                return self._fail(error)
        left = self._leave()
        self._excluded |= {self.holder}
        self.holder = ""
        self.epoch = Epoch(self.epoch.attempt + 1, 0)
        # The time for placing runs on: a full cluster must not hold a request for attempts × place_timeout.
        after = self._pause(error, now) if pause or again else self._place()
        return (Fence(self.epoch), *left, *after)

    def _pause(self, error: TandemError, now: float) -> tuple[Action, ...]:
        seconds = self.patience.pause(self.request.id, self._tries)
        if now + seconds > self._place_by:
            return self._fail(error)
        self._tries += 1
        self.state = State.WAITING
        return (Wait(seconds),)

    def _progress(self, choice: int, tokens: Sequence[int], finished: bool) -> tuple[Action, ...]:
        if choice in self.finished:
            return ()
        self.outputs[choice].extend(tokens)
        if tokens:
            self._fruitless = 0
        # A token may overtake the answer to `start`.
        if self.state is State.STARTING:
            self.state = State.RUNNING
        if finished:
            self.finished.add(choice)
            if len(self.finished) == len(self.outputs):
                self.state = State.DONE
                return (Finish(),)
        return ()

    def _fail(self, error: TandemError) -> tuple[Action, ...]:
        self.state = State.FAILED
        return (*self._leave(), Fail(error))

    def _leave(self) -> tuple[Action, ...]:
        """Drop the request wherever it may be: at its holder, and at the end of a handoff under way."""
        if not self.holder:
            return ()
        places = [self.holder]
        if self.placement is not None and self.placement.decode not in places:
            places.append(self.placement.decode)
        return tuple(Cancel(place) for place in places)
