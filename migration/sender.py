"""Moves requests to other instances while they run here, in prefill or decode: the source's side.

    engine loop ── plans, progress, prefilled, dropped ─▶ Sender ─▶ one link per peer ═══▶ its Receiver
         ▲                                                               │
         └────────────── release (it is there) ◀─────────────────────────┤
                         resume (it stays here, whatever failed) ────────┘

A handoff sets out with the step that computes its first chunk: the destination reserves while that is
computed, and nothing for prompts that only wait here. The engine loop never waits for any of it.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial

from engine.core import EngineCore
from engine.errors import TransferFailed
from engine.loop import EngineLoop
from engine.outcome import StepOutcome
from engine.plan import StepPlan
from engine.request import Request
from engine.sequence import Epoch
from engine.sequence import Sequence as LiveSequence
from migration.blocks import most
from migration.claims import Claim, Claims
from migration.cut import Cut
from migration.events import Bounds, Cancelled, Dropped, SourceEvent, Timeouts
from migration.handshake import Identity
from migration.link import Link
from migration.moved import Moved
from migration.movement import Asked, Movement, Snapshot, snapshot
from migration.outgoing import Outgoing
from migration.peers import Peers
from migration.source import Source, SourceState
from migration.transfers import TransferLog
from migration.transport import Address, BlockStore, Transport

log = logging.getLogger(__name__)

REMEMBERED = 32
"""Failures whose reasons are kept."""


class Sender:
    """Moves requests out of one instance. `transports` are by name, `host` is this process's `host_id()`.

    At most `max_sessions` movements to one peer are under way; more wait. `forced` is "auto" or the name
    of a transport. `handed` counts movements that ended at their destination, `failures` holds the last
    few that did not: (request id, reason). The engine counts both in its status.
    """

    def __init__(
        self,
        loop: EngineLoop,
        store: BlockStore,
        identity: Identity,
        claim: Claim,
        transports: Mapping[str, Transport],
        *,
        host: str,
        timeouts: Timeouts = Timeouts(),
        bounds: Bounds = Bounds(),
        max_sessions: int = 16,
        forced: str = "auto",
    ) -> None:
        self.handed = 0
        self.failures: deque[tuple[str, str]] = deque(maxlen=REMEMBERED)
        self.transfers = TransferLog()
        self._loop = loop
        self._store = store
        self._identity = identity
        self._claims = Claims(claim, f"{identity.instance}-sender")
        self._timeouts = timeouts
        self._bounds = bounds
        self._max_sessions = max_sessions
        self._peers = Peers(
            identity, transports, self._outgoing, host=host, forced=forced, timeout=timeouts.reserve
        )
        self._door = threading.Lock()
        self._active: dict[str, tuple[Movement, Link, Outgoing]] = {}
        self._queued: dict[str, tuple[Asked, Address]] = {}
        self._unread: dict[str, tuple[Movement, Address]] = {}
        loop.foresee(self._foresee)
        loop.observe(self._observe)

    def hand_off(
        self,
        request: Request,
        to: Address,
        *,
        epoch: Epoch,
        home: str,
        choices: Sequence[LiveSequence] = (),
    ) -> None:
        """Move a request that was submitted with `handoff`, from its first chunk on. Call it in the engine's
        thread, in the same breath as `submit`: so nothing of it is missed. Never blocks and never raises:
        if it cannot be moved, it runs on here.
        """
        lengths = [len(choice.output) for choice in choices]

        def reserve(cut: Cut) -> int:
            return most(request, lengths, cut.size)

        movement = Movement(self._session(), request, home, reserve, Source(epoch, self._timeouts))
        self.cancel(request.id)
        with self._door:
            self._unread[request.id] = movement, to

    def move(self, request_id: str, to: Address, reason: str) -> Future[Moved]:
        """Migrate a request that lives here to another instance, while it runs.

        Never blocks and never fails: a move that cannot be made ends in a `Moved` that says why, and the
        request goes on here. Moves beyond the bounds wait for their turn.
        """
        asked = Asked(request_id, self._identity.instance, to.instance, reason, time.monotonic())

        def refused(future: Future[None]) -> None:
            error = future.exception()
            if error is not None:
                asked.refuse(str(error))

        self._loop.call(partial(self._enter, asked, to)).add_done_callback(refused)
        return asked.result

    @property
    def moving(self) -> frozenset[str]:
        """The requests that are on their way out, or wait for their turn."""
        with self._door:
            return frozenset((*self._active, *self._queued, *self._unread))

    def cancel(self, request_id: str) -> None:
        """Nobody wants the request any more, or another attempt of it comes: end its movement."""
        with self._door:
            queued = self._queued.pop(request_id, None)
            self._unread.pop(request_id, None)
        if queued is not None:
            queued[0].refuse("cancelled")
        self._tell(request_id, Cancelled())

    def close(self, timeout: float) -> None:
        """End all links; requests on their way stay here. Waits `timeout` seconds at most."""
        with self._door:
            queued = list(self._queued.values())
            self._queued.clear()
        for asked, _ in queued:
            asked.refuse("the instance stops")
        self._peers.close(timeout)
        self._claims.close()

    def _session(self) -> str:
        return f"{self._identity.instance}/{secrets.token_hex(8)}"

    def _outgoing(self, link: Link) -> Outgoing:
        return Outgoing(link, self._loop, self._store, self._claims, self._max_sessions, self._ended)

    def _enter(self, asked: Asked, to: Address, core: EngineCore) -> None:
        """In the engine's thread. Raises TransferFailed if there is nothing to move, or no need."""
        if asked.source == asked.destination:
            raise TransferFailed("it lives there already")
        if not core.sequences(asked.request_id):
            raise TransferFailed("it does not live here")
        with self._door:
            if any(asked.request_id in known for known in (self._active, self._queued, self._unread)):
                raise TransferFailed("it is moving already")
            self._queued[asked.request_id] = asked, to
        self._set_out(core)

    def _set_out(self, core: EngineCore) -> None:
        """In the engine's thread: let those go who have waited longest, as far as the bounds allow."""
        while (found := self._next(core)) is not None:
            asked, to, sequences = found
            if not sequences:
                asked.refuse("it ended before its turn came")
                continue
            first = sequences[0]
            seen = snapshot(asked.request_id, first.epoch, core)
            movement = Movement(
                session=self._session(),
                request=first.request,
                home=first.home,
                reserve=partial(_growing, seen),
                source=Source(first.epoch, self._timeouts, self._bounds),
                asked=asked,
                snapshot=seen,
            )
            if not self._give(movement, to):
                asked.refuse("the instance stops")

    def _next(self, core: EngineCore) -> tuple[Asked, Address, list[LiveSequence]] | None:
        """Who is to set out now, taken out of the queue."""
        with self._door:
            moving = [one.tokens for one, _, _ in self._active.values() if one.asked is not None]
            asked, to = next(iter(self._queued.values()), (None, None))
            if asked is None or to is None or len(moving) >= self._bounds.moves:
                return None
            sequences = core.sequences(asked.request_id)
            if moving and sum(moving) + sum(map(len, sequences)) > self._bounds.tokens:
                return None
            del self._queued[asked.request_id]
            return asked, to, sequences

    def _give(self, movement: Movement, to: Address) -> bool:
        """Give a movement to the link to its destination; False once the sender is closed."""
        movement.to, movement.began = to.instance, time.monotonic()
        with self._door:
            given = self._peers.give(movement, to)
            if given is not None:
                self._active[movement.request.id] = movement, *given
        return given is not None

    def _tell(self, request_id: str, event: SourceEvent) -> None:
        with self._door:
            active = self._active.get(request_id)
        if active is not None:
            movement, link, outgoing = active
            link.post(lambda: outgoing.feed(movement, event))

    def _foresee(self, plan: StepPlan) -> None:
        """In the engine's thread, before a step: the handoffs whose first chunk it computes set out."""
        if not self._unread:
            return
        with self._door:
            names = [work.request_id for work in plan.works if work.request_id in self._unread]
            begun = [self._unread.pop(name) for name in dict.fromkeys(names)]
        for movement, to in begun:
            if not self._give(movement, to):
                self._loop.call(partial(_stay, movement.request.id))

    def _observe(self, outcome: StepOutcome) -> None:
        """In the engine's thread, after a step."""
        for request_id, _ in outcome.progress:
            self._look(request_id, frozen=False)
        for request_id in outcome.prefilled:
            self._look(request_id, frozen=True)
        ended = {one.key.request_id for one in outcome.emitted if one.finish is not None}
        for request_id in outcome.dropped:
            with self._door:
                self._unread.pop(request_id, None)
            self._tell(request_id, Dropped("it ended here") if request_id in ended else Dropped())

    def _look(self, request_id: str, *, frozen: bool) -> None:
        """Have copies of a handoff's sequences made before the next step, and pass them to the link."""
        active = self._active.get(request_id)
        if active is None or active[0].asked is not None:
            return
        movement, link, outgoing = active

        def seen(future: Future[Snapshot]) -> None:
            if future.exception() is None:
                link.post(lambda: outgoing.computed(movement, future.result(), frozen))

        look = partial(snapshot, request_id, movement.source.epoch)
        self._loop.call(look).add_done_callback(seen)

    def _ended(self, movement: Movement) -> None:
        """In the thread of a link."""
        request_id, source = movement.request.id, movement.source
        with self._door:
            active = self._active.get(request_id)
            if active is not None and active[0] is movement:
                del self._active[request_id]
            if source.state is SourceState.GIVEN:
                self.handed += movement.asked is None
            elif source.state is not SourceState.CANCELLED:
                self.failures.append((request_id, source.reason))
            waiting = bool(self._queued)
        way = self._peers.way(movement.to)
        if source.state is SourceState.GIVEN:
            seconds = time.monotonic() - movement.began
            self.transfers.committed(way, movement.to, movement.bytes_sent, seconds)
        elif source.state is not SourceState.CANCELLED:
            self.transfers.failed(way, movement.to, source.reason)
        if source.state is not SourceState.GIVEN:
            told = {"request_id": request_id, "trace_id": movement.request.trace[3:35]}
            log.info("%s stays here: %s", request_id, source.reason, extra=told)
        movement.resolve()
        if waiting:
            self._loop.call(self._set_out)


def _stay(request_id: str, core: EngineCore) -> None:
    core.resume(request_id)


def _growing(seen: Snapshot, cut: Cut) -> int:
    """What a request holds, and room for what each choice begins meanwhile; 0 for one that waits."""
    blocks = seen.blocks(cut)
    return blocks and blocks + len(seen.sequences)
