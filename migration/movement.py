"""One request on its way out, and what its engine says of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from engine.core import EngineCore
from engine.request import Request
from engine.sequence import Epoch, Phase, Tier
from engine.sequence import Sequence as LiveSequence
from migration.blocks import BlockList
from migration.cut import Cut
from migration.moved import COMMITTED, Moved
from migration.source import Source, SourceState


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Copies of a request's sequences, as they were between two steps at time `at`.

    Their tables have the blocks that hold something. `undrawn` are the choices without a token. `origins`
    are the sequences themselves: of them only the phase may be read outside the engine's thread.
    """

    sequences: tuple[LiveSequence, ...] = ()
    undrawn: tuple[int, ...] = ()
    at: float = 0.0
    origins: tuple[LiveSequence, ...] = ()

    @property
    def stands(self) -> bool:
        """Of a paused request: whether every choice is paused still, and so has the blocks that it had.

        What was read of its blocks is then its own. Those of one that ended are given to others in a later
        step.
        """
        return all(sequence.phase is Phase.PAUSED for sequence in self.origins)

    @property
    def lengths(self) -> dict[int, int]:
        """Output tokens of each choice."""
        return dict.fromkeys(self.undrawn, 0) | {one.choice: len(one.output) for one in self.sequences}

    def blocks(self, cut: Cut) -> int:
        """How many blocks hold something, as the destination counts them."""
        return len({block for sequence in cut.of(self.sequences) for block in sequence.blocks})


@dataclass(slots=True, eq=False)
class Asked:
    """Somebody waits for what comes of a live migration that was asked for at `since`."""

    request_id: str
    source: str
    destination: str
    reason: str
    since: float
    result: Future[Moved] = field(default_factory=Future)

    def refuse(self, why: str) -> None:
        """It never sets out."""
        self.resolve(f"aborted: {why}")

    def resolve(self, outcome: str, **figures: Any) -> None:
        """Tell who waits, once."""
        if not self.result.done():
            seconds = time.monotonic() - self.since
            names = self.request_id, self.source, self.destination, self.reason
            self.result.set_result(Moved(*names, outcome, seconds=seconds, **figures))


@dataclass(slots=True, eq=False)
class Movement:
    """`reserve` says how many blocks to ask for; `snapshot` is the last that was taken, `frozen` if nothing
    changes after it but that a choice may end. `cut` is there once the session has begun, `blocks` once it is
    reserved.

    `blocks_sent` and `bytes_sent` count what went out, repeats included. `asked` is None for a handoff.
    `began` is when it was given to a link, in seconds on time.monotonic.
    """

    session: str
    request: Request
    home: str
    reserve: Callable[[Cut], int]
    source: Source
    asked: Asked | None = None
    snapshot: Snapshot = Snapshot()
    frozen: bool = False
    cut: Cut | None = None
    blocks: BlockList | None = None
    blocks_sent: int = 0
    bytes_sent: int = 0
    last_copies: int = 0
    to: str = ""
    began: float = 0.0

    @property
    def listed(self) -> Sequence[LiveSequence]:
        """The sequences as the session names their blocks."""
        assert self.cut is not None
        return self.cut.of(self.snapshot.sequences)

    @property
    def torn(self) -> bool:
        """Whether a choice ended after the request was paused for the last copy."""
        return self.frozen and not self.snapshot.stands

    @property
    def tokens(self) -> int:
        """Prompt and output of all choices."""
        return len(self.request.prompt) + sum(len(one.output) for one in self.snapshot.sequences)

    def resolve(self) -> None:
        """It has ended: tell who asked for it."""
        if self.asked is None:
            return
        given = self.source.state is SourceState.GIVEN
        self.asked.resolve(
            COMMITTED if given else f"aborted: {self.source.reason}",
            stages=self.source.stages + self.last_copies,
            blocks=self.blocks_sent,
            bytes=self.bytes_sent,
            tokens=self.tokens,
            downtime_seconds=time.monotonic() - self.snapshot.at if self.frozen else 0.0,
        )


def mine(core: EngineCore, request_id: str, epoch: Epoch) -> list[LiveSequence]:
    """The sequences that a movement is about; another attempt may live here under the same id."""
    return [sequence for sequence in core.sequences(request_id) if sequence.epoch == epoch]


def snapshot(request_id: str, epoch: Epoch, core: EngineCore) -> Snapshot:
    """In the engine's thread, as all below."""
    origins = tuple(mine(core, request_id, epoch))
    copies = tuple(_copy(sequence, core.pool.block_size) for sequence in origins)
    return Snapshot(copies, core.undrawn(request_id), time.monotonic(), origins)


def _copy(sequence: LiveSequence, size: int) -> LiveSequence:
    """What travels of a sequence. KV in host memory does not: it is computed again."""
    here = sequence.tier is Tier.DEVICE
    computed = sequence.computed if here else 0
    blocks = sequence.blocks[: -(-computed // size)]
    return replace(sequence, output=list(sequence.output), blocks=blocks, computed=computed, tier=Tier.DEVICE)


def freeze(request_id: str, epoch: Epoch, core: EngineCore) -> Snapshot:
    if mine(core, request_id, epoch):
        core.freeze(request_id)
    return snapshot(request_id, epoch, core)


def resume(request_id: str, epoch: Epoch, raised: Epoch, core: EngineCore) -> None:
    kept = mine(core, request_id, epoch)
    for sequence in kept:
        sequence.epoch = raised
    if kept:
        core.resume(request_id)


def release(request_id: str, epoch: Epoch, core: EngineCore) -> None:
    if mine(core, request_id, epoch):
        core.release(request_id)
