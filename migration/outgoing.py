"""The source's ends of all sessions to one peer: does what each `Source` decides.

Lives in its link's thread.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from engine.core import EngineCore
from engine.loop import EngineLoop
from migration.blocks import BlockList
from migration.claims import Claims
from migration.cut import Cut
from migration.envelope import Envelope, decode, encode
from migration.events import (
    Begin,
    Claim,
    Claimed,
    Dropped,
    Freeze,
    Frozen,
    Look,
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
from migration.messages import Abort, Commit, Committed, Copy, Refused, Renew, Resend, Reserve, Reserved
from migration.movement import Movement, Snapshot, freeze, release, resume, snapshot
from migration.source import SourceState
from migration.state import capture, needed
from migration.transport import BlockStore, Frame

FRAME = 1 << 21
"""Bytes of KV in a frame, if a block is not larger: small enough that both ends copy and check at once."""


class Outgoing:
    """At most `most` movements at once; more wait their turn in order, those that are paused first. `ended`
    is told of each one's end.

    A paused one waits only for those that leave by themselves: where prompts that are still being read have
    all places, it stays here at once.
    """

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
        if isinstance(message, Reserved) and movement.blocks is None:
            assert movement.cut is not None
            movement.blocks = BlockList(message.cached, movement.cut.size)
            self.feed(movement, message)
            if movement.asked is None:
                self._report(movement)
        elif isinstance(message, Reserved | Resend | Refused | Committed | Abort):
            self.feed(movement, message)

    def computed(self, movement: Movement, seen: Snapshot, frozen: bool) -> None:
        """A chunk of a handoff is done, or a live migration has looked; with `frozen` it is paused."""
        if movement.source.ended:
            return
        if seen.sequences:
            movement.snapshot = seen
            movement.frozen = frozen
            self._report(movement)
            self._keep_if_stuck(movement)
        elif movement.asked is not None:
            self.feed(movement, Dropped("it ended before it could be moved"))

    def feed(self, movement: Movement, event: SourceEvent) -> None:
        """Let a session decide, and do it."""
        if movement.source.ended:
            return
        movement.source, actions = movement.source.decide(event, time.monotonic(), torn=movement.torn)
        for action in actions:
            self._act(movement, action)
        if movement.source.ended:
            self._end(movement)

    def _begin(self) -> None:
        while self._waiting and len(self._running) < self._most:
            movement = next((one for one in self._waiting if one.frozen), self._waiting[0])
            self._waiting.remove(movement)
            self._running[movement.session] = movement
            agreed = self._link.agreed
            size = self._store.layout.block_size if agreed is None else agreed.block_size
            movement.cut = Cut(self._store, size)
            if agreed is not None and agreed.version < needed(movement.request):
                self.feed(
                    movement,
                    Lost(f"version: {agreed.instance} speaks {agreed.version}, which has no grammars"),
                )
                continue
            self.feed(movement, Begin(movement.reserve(movement.cut)))

    def _keep_if_stuck(self, movement: Movement) -> None:
        """Nobody is kept paused until others' prompts have been read."""
        leaving = (one.frozen or one.asked is not None for one in self._running.values())
        if movement.frozen and movement in self._waiting and not any(leaving):
            places = f"{self._most} prompts that are still read have all places"
            self.feed(movement, Lost(f"{places}: raise transfer.max_sessions"))

    def _end(self, movement: Movement) -> None:
        if movement in self._waiting:
            self._waiting.remove(movement)
        else:
            self._running.pop(movement.session, None)
        self._ended(movement)
        self._begin()

    def _report(self, movement: Movement) -> None:
        """Tell the session how many blocks are final, once it knows what the destination has cached."""
        if movement.blocks is None:
            if movement.frozen:
                self.feed(movement, Frozen(0))
        elif movement.snapshot.sequences:
            count = movement.blocks.add(movement.listed, frozen=movement.frozen)
            rest = movement.blocks.rest
            self.feed(movement, Frozen(count) if movement.frozen else Progress(count, rest))

    def _act(self, movement: Movement, action: SourceAction) -> None:
        request_id, epoch = movement.request.id, movement.source.epoch
        match action:
            case Copy(first, count):
                if self._copy(movement, first, count):
                    self.feed(movement, Sent())
            case Reserve() | Commit() | Abort() | Renew():
                self._send(movement, action)
            case Look():
                self._ask(movement, partial(snapshot, request_id, epoch), frozen=False)
            case Freeze():
                self._ask(movement, partial(freeze, request_id, epoch), frozen=True)
            case Claim(claimed):
                done = partial(self._claimed, movement)
                self._claims.ask(movement.home, request_id, claimed, movement.snapshot.lengths, done)
            case Resume(raised):
                self._loop.call(partial(resume, request_id, epoch, raised))
            case Release():
                self._loop.call(partial(release, request_id, epoch))

    def _ask(self, movement: Movement, question: Callable[[EngineCore], Snapshot], *, frozen: bool) -> None:
        """Have the engine answer between two steps."""

        def answered(future: Future[Snapshot]) -> None:
            seen = Snapshot() if future.exception() is not None else future.result()
            self._link.post(lambda: self.computed(movement, seen, frozen))

        self._loop.call(question).add_done_callback(answered)

    def _claimed(self, movement: Movement, granted: bool | None) -> None:
        self._link.post(lambda: self.feed(movement, Claimed(granted)))

    def _send(self, movement: Movement, message: Reserve | Commit | Abort | Renew) -> None:
        state = None
        if isinstance(message, Commit):
            assert movement.blocks is not None
            assert self._link.agreed is not None
            version, undrawn = self._link.agreed.version, movement.snapshot.undrawn
            state = capture(movement.listed, movement.blocks.index, undrawn, version)
        request = movement.request if isinstance(message, Reserve) else None
        epoch = movement.source.epoch
        self._link.send(encode(Envelope(message, movement.session, epoch, request, state)))

    def _copy(self, movement: Movement, first: int, count: int) -> bool:
        assert movement.blocks is not None
        assert movement.cut is not None
        size = movement.cut.block_nbytes
        movement.last_copies += movement.source.state is SourceState.FROZEN
        movement.blocks_sent += count
        movement.bytes_sent += count * size
        step = max(1, FRAME // size)
        for start in range(first, first + count, step):
            blocks = movement.blocks[start : min(start + step, first + count)]
            header = encode(Envelope(Copy(start, len(blocks)), movement.session, movement.source.epoch))
            if not self._link.send(header, len(blocks) * size, partial(movement.cut.gather, blocks)):
                return False
        return True
