"""What a batch is made of, who may wait for it, and who decides: the two seams of the engine core."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from engine.sequence import Phase, Sequence, SequenceKey


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one instance.

    `max_length` is in tokens, prompt and output; `max_sequences` counts running choices, but under a
    policy that bounds its steps itself (`HoldsBack`); `queue_limit` counts waiting sequences; `watermark`
    is the share of the blocks that an admission leaves free, so that those already running can grow (1 %
    as in vLLM).
    """

    max_length: int
    max_sequences: int = 64
    queue_limit: int = 256
    watermark: float = 0.01


class Share(NamedTuple):
    """What one sequence gets of a step: at most so many tokens, at least one."""

    sequence: Sequence
    tokens: int


def due(sequence: Sequence) -> int:
    """Tokens that a sequence still has to compute; one that waits is spared what is cached or swapped out."""
    if sequence.phase is Phase.WAITING:
        return len(sequence) - max(sequence.cached, sequence.computed)
    return sequence.remaining


class WaitingQueue(Protocol):
    """The order in which waiting sequences are served; first come, first served is its one-level case.

    `by_priority` says that a request's priority counts, also for who runs and who is preempted.
    """

    @property
    def by_priority(self) -> bool: ...

    def add(self, sequence: Sequence, *, front: bool = False) -> None:
        """Wait; at the `front` if it has run before and was preempted."""

    def remove(self, key: SequenceKey) -> Sequence | None:
        """Take out, None if it does not wait here."""

    def __iter__(self) -> Iterator[Sequence]: ...

    def __len__(self) -> int: ...


class BatchPolicy(Protocol):
    """How many tokens each sequence gets in the next step: a pure function of its arguments.

    `running` is in the order of priority, then of arrival, oldest first; `waiting` in the order in which
    it should be served, with `cached` set to what the prefix cache would spare (see `due`). The core takes
    the shares in order, allocates blocks, preempts the last of those that run when there are none left, and
    admits waiting sequences up to the first that does not fit.
    """

    def share(
        self, running: SequenceOf[Sequence], waiting: Iterable[Sequence], now: float
    ) -> list[Share]: ...


@runtime_checkable
class HoldsBack(Protocol):
    """A batch policy that bounds its steps itself: more may hold blocks here than share one."""

    @property
    def at_once(self) -> int:
        """The most sequences that share a step."""


@runtime_checkable
class Wraps(Protocol):
    """A batch policy around another."""

    @property
    def inner(self) -> BatchPolicy: ...
