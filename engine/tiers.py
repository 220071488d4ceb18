"""A second tier for KV: host memory, into which sequences that must wait are swapped instead of recomputed.

    device ──out──▶ host      a victim makes room: when it is needed (reactive), or beforehand (proactive)
       ▲             │
       └─────in──────┘        when it is picked (reactive), or while others compute (proactive)

After FastServe (arXiv 2305.05920, §4.3). The batch policy knows who is needed latest; what is here knows the
slots, and how much swapping is too much: sequences are swapped by choice only while that takes less than
`share` of the time. Without such a guard a queue that preempts spends its time on the bus.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from engine.sequence import Sequence, SequenceKey

Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class TierSettings:
    """`slots` blocks fit into host memory; one takes `seconds` to go there or back.

    `proactive` swaps ahead of need and keeps `idle` of the device's blocks free for those to come. Swaps by
    choice take at most `share` of the time, on the average over `burst` seconds of swapping; 0 is no guard.
    """

    slots: int = 0
    seconds: float = 0.0
    proactive: bool = True
    idle: float = 0.05
    share: float = 0.05
    burst: float = 0.5


@runtime_checkable
class Ranked(Protocol):
    """A batch policy with an order of its own among those who run and wait."""

    def latest(self, sequences: Iterable[Sequence], now: float) -> list[Sequence]:
        """Who is needed last comes first."""

    def before(self, first: Sequence, second: Sequence) -> bool:
        """Whether `first` goes before `second` when there is room for one."""


class Guard:
    """Seconds of swapping that may be spent by choice: they are earned as time goes by."""

    def __init__(self, settings: TierSettings) -> None:
        self._settings = settings
        self._left = settings.burst
        self._at: float | None = None
        self.spent = 0.0

    @property
    def left(self) -> float:
        """Seconds; negative when more was spent by necessity."""
        return self._left if self._settings.share else float("inf")

    def pass_to(self, now: float) -> None:
        settings = self._settings
        if self._at is not None:
            self._left = min(settings.burst, self._left + settings.share * (now - self._at))
        self._at = now

    def spend(self, seconds: float) -> None:
        self._left -= seconds
        self.spent += seconds


class Tiers:
    """Who lies in host memory, where, and what the step under way copies between the two tiers.

    A step first copies `out` (device block, slot), and `into` (slot, device block) before it computes. So a
    block may be given on in the same step, but a slot that was emptied only in the next.
    """

    def __init__(self, settings: TierSettings) -> None:
        self.settings = settings
        self.guard = Guard(settings)
        self._free = list(range(settings.slots - 1, -1, -1))
        self._emptied: list[int] = []
        self._held: dict[SequenceKey, list[int]] = {}
        self._given: dict[SequenceKey, list[int]] = {}
        self._out: list[tuple[int, int]] = []
        self._into: list[tuple[int, int]] = []
        self.swapped_out = self.swapped_in = 0

    @property
    def used(self) -> int:
        """Slots that hold somebody's KV."""
        return sum(len(slots) for slots in self._held.values())

    def begin(self, now: float) -> None:
        """A step is planned: what the one before emptied may be filled again."""
        self.guard.pass_to(now)
        self._free += self._emptied
        self._emptied.clear()
        self._given.clear()

    def cost(self, blocks: int) -> float:
        """Seconds to swap so many out, and in again later."""
        return 2 * blocks * self.settings.seconds

    def fits(self, sequence: Sequence, blocks: int) -> bool:
        """Whether so many of its blocks can be swapped out now; one that is to come back stays there."""
        return sequence.key in self._given or blocks <= len(self._free)

    def take(self, sequence: Sequence, blocks: SequenceOf[int]) -> bool:
        """Swap `blocks` out, all of a sequence's that hold KV; False if there are not so many slots.

        One that is to be swapped in by the same step stays where it is.
        """
        if sequence.key in self._given:
            slots = self._held[sequence.key] = self._given.pop(sequence.key)
            there = set(slots)
            self._into = [pair for pair in self._into if pair[0] not in there]
            self._emptied = [slot for slot in self._emptied if slot not in there]
            self.swapped_in -= len(slots)
            return True
        if len(blocks) > len(self._free) or not blocks:
            return False
        slots = [self._free.pop() for _ in blocks]
        self._held[sequence.key] = slots
        self._out += zip(blocks, slots, strict=True)
        self.swapped_out += len(blocks)
        self.guard.spend(self.cost(len(blocks)))
        return True

    def give(self, sequence: Sequence, blocks: SequenceOf[int]) -> None:
        """Swap all that a sequence has here into the first of `blocks`."""
        slots = self._held.pop(sequence.key)
        self._into += zip(slots, blocks[: len(slots)], strict=True)
        self._emptied += slots
        self._given[sequence.key] = slots
        self.swapped_in += len(slots)

    def forget(self, key: SequenceKey) -> None:
        """Its KV is not wanted any more."""
        self._emptied += self._held.pop(key, ())

    def copies(self) -> tuple[Pairs, Pairs]:
        """What the step that is planned now copies: (out, into). They are named once."""
        pairs = tuple(self._out), tuple(self._into)
        self._out.clear()
        self._into.clear()
        return pairs

    def check(self, keys: Iterable[SequenceKey]) -> None:
        """Every slot is free or somebody's, once. Raises AssertionError."""
        assert set(keys) == self._held.keys(), "the tier of a sequence is not where its KV is"
        slots = [*self._free, *self._emptied, *(slot for held in self._held.values() for slot in held)]
        assert sorted(slots) == list(range(self.settings.slots)), "a slot is lost or held twice"
