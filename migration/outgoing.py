"""The source's ends of all sessions to one peer: does what each `Source` decides.

Lives in its link's thread.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from engine.core import EngineCore
from engine.loop import EngineLoop
from engine.request import Request
from engine.sequence import Epoch
from engine.sequence import Sequence as LiveSequence
from migration.blocks import BlockList
from migration.claims import Claims
from migration.envelope import Envelope, decode, encode
from migration.events import (
    Begin,
    Claim,
    Claimed,
    Frozen,
    Lost,
    Progress,
    Release,
    Resume,
    Sent,
    SourceAction,
    SourceEvent,
    Tick,
)
from migration.link import Link
from migration.messages import Abort, Commit, Committed, Copy, Refused, Renew, Reserve, Reserved
from migration.source import Source
from migration.state import capture
from migration.transport import BlockStore, Frame

FRAME = 1 << 21
"""Bytes of KV in a frame, if a block is not larger: small enough that both ends copy and check at once."""


@dataclass(slots=True, eq=False)
class Movement:
    """One request on its way out. `snapshot` are copies of its sequences as they were at the last chunk."""

    session: str
    request: Request
    home: str
    reserve: int
    source: Source
    snapshot: list[LiveSequence] = field(default_factory=list)
    frozen: bool = False
    blocks: BlockList | None = None


class Outgoing:
    """At most `most` movements at once; more wait their turn in order. `ended` is told of each one's end."""

    def __init__(
        self,
        link: Link,
        loop: EngineLoop,
        store: BlockStore,
        claims: Claims,
        most: int,
        ended: Callable[[Movement], None],
    ) -> None:
        self._link = link
        self._loop = loop
        self._store = store
        self._claims = claims
        self._most = most
        self._ended = ended
        self._running: dict[str, Movement] = {}
        self._waiting: deque[Movement] = deque()

    @property
    def busy(self) -> bool:
        return bool(self._running or self._waiting)

    @property
    def wake(self) -> float:
        every = (*self._running.values(), *self._waiting)
        return min((movement.source.wake for movement in every), default=math.inf)

    def add(self, movement: Movement) -> None:
        self._waiting.append(movement)
        if self._link.broken is not None:
            self.feed(movement, Lost(self._link.broken))
        self._begin()

    def lost(self, reason: str) -> None:
        for movement in (*self._running.values(), *self._waiting):
            self.feed(movement, Lost(reason))

    def tick(self, now: float) -> None:
        for movement in (*self._running.values(), *self._waiting):
            if now >= movement.source.wake:
                self.feed(movement, Tick())

    def frame(self, frame: Frame) -> None:
        envelope = decode(frame.header)
        movement = self._running.get(envelope.session)
        message = envelope.message
        if movement is None or envelope.epoch != movement.source.epoch:
            return
        if isinstance(message, Reserved | Refused | Committed | Abort):
            self.feed(movement, message)
            if isinstance(message, Reserved):
                movement.blocks = BlockList(message.cached, self._store.layout.block_size)
                self._report(movement)

    def computed(self, movement: Movement, sequences: list[LiveSequence], frozen: bool) -> None:
        """A chunk is done, or with `frozen` the prompt and the first token: `sequences` are copies."""
        if not sequences or movement.source.ended:
            return
        movement.snapshot = sequences
        movement.frozen = frozen
        self._report(movement)

    def feed(self, movement: Movement, event: SourceEvent) -> None:
        """Let a session decide, and do it."""
        if movement.source.ended:
            return
        movement.source, actions = movement.source.on(event, time.monotonic())
        for action in actions:
            self._act(movement, action)
        if movement.source.ended:
            self._end(movement)

    def _begin(self) -> None:
        while self._waiting and len(self._running) < self._most:
            movement = self._waiting.popleft()
            self._running[movement.session] = movement
            self.feed(movement, Begin(movement.reserve))

    def _end(self, movement: Movement) -> None:
        if movement in self._waiting:
            self._waiting.remove(movement)
        elif self._running.pop(movement.session, None) is None:
            return
        self._ended(movement)
        self._begin()

    def _report(self, movement: Movement) -> None:
        """Tell the session how many blocks are final, once it knows what the destination has cached."""
        if movement.blocks is None:
            if movement.frozen:
                self.feed(movement, Frozen(0))
        elif movement.snapshot:
            count = movement.blocks.add(movement.snapshot, frozen=movement.frozen)
            self.feed(movement, Frozen(count) if movement.frozen else Progress(count))

    def _act(self, movement: Movement, action: SourceAction) -> None:
        match action:
            case Copy(first, count):
                if self._copy(movement, first, count):
                    self.feed(movement, Sent())
            case Reserve() | Commit() | Abort() | Renew():
                self._send(movement, action)
            case Claim(epoch):
                lengths = {sequence.choice: len(sequence.output) for sequence in movement.snapshot}
                done = partial(self._claimed, movement)
                self._claims.ask(movement.home, movement.request.id, epoch, lengths, done)
            case Resume(epoch):
                self._loop.call(partial(_resume, movement.request.id, movement.source.epoch, epoch))
            case Release():
                self._loop.call(partial(_release, movement.request.id, movement.source.epoch))

    def _claimed(self, movement: Movement, granted: bool | None) -> None:
        self._link.post(lambda: self.feed(movement, Claimed(granted)))

    def _send(self, movement: Movement, message: Reserve | Commit | Abort | Renew) -> None:
        state = None
        if isinstance(message, Commit):
            assert movement.blocks is not None
            state = capture(movement.snapshot, movement.blocks.index)
        request = movement.request if isinstance(message, Reserve) else None
        epoch = movement.source.epoch
        self._link.send(encode(Envelope(message, movement.session, epoch, request, state)))

    def _copy(self, movement: Movement, first: int, count: int) -> bool:
        assert movement.blocks is not None
        size = self._store.block_nbytes
        step = max(1, FRAME // size)
        for start in range(first, first + count, step):
            blocks = movement.blocks[start : min(start + step, first + count)]
            header = encode(Envelope(Copy(start, len(blocks)), movement.session, movement.source.epoch))
            if not self._link.send(header, len(blocks) * size, partial(self._store.gather, blocks)):
                return False
        return True


def _mine(core: EngineCore, request_id: str, epoch: Epoch) -> list[LiveSequence]:
    """The sequences that a movement is about; another attempt may live here under the same id."""
    return [sequence for sequence in core.sequences(request_id) if sequence.epoch == epoch]


def _resume(request_id: str, epoch: Epoch, raised: Epoch, core: EngineCore) -> None:
    mine = _mine(core, request_id, epoch)
    for sequence in mine:
        sequence.epoch = raised
    if mine:
        core.resume(request_id)


def _release(request_id: str, epoch: Epoch, core: EngineCore) -> None:
    if _mine(core, request_id, epoch):
        core.release(request_id)


def snapshot(request_id: str, epoch: Epoch, block_size: int, core: EngineCore) -> list[LiveSequence]:
    """Copies of a request's sequences with the blocks that hold something. In the engine's thread."""
    return [
        replace(
            sequence,
            output=list(sequence.output),
            blocks=sequence.blocks[: -(-sequence.computed // block_size)],
        )
        for sequence in _mine(core, request_id, epoch)
    ]
