"""Hands requests over to other instances while their prompts are still being computed: the source's side.

    engine loop ── progress, prefilled, dropped ─▶ Sender ─▶ one link per peer ═══▶ its Receiver
         ▲                                                        │
         └────────────── release (it is there) ◀──────────────────┤
                         resume (it stays here, whatever failed) ─┘

The engine loop never waits for any of it.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial

from engine.errors import HandshakeRefused, TransferFailed
from engine.loop import EngineLoop
from engine.outcome import StepOutcome
from engine.request import Request
from engine.sequence import Epoch
from engine.sequence import Sequence as LiveSequence
from migration import handshake
from migration.blocks import most
from migration.claims import Claim, Claims
from migration.events import Cancelled, Dropped, SourceEvent, Timeouts
from migration.handshake import Identity
from migration.link import Link
from migration.outgoing import Movement, Outgoing, snapshot
from migration.source import Source, SourceState
from migration.transport import Address, BlockStore, Channel, Transport, choose

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
        max_sessions: int = 16,
        forced: str = "auto",
    ) -> None:
        self.handed = 0
        self.failures: deque[tuple[str, str]] = deque(maxlen=REMEMBERED)
        self._loop = loop
        self._store = store
        self._identity = identity
        self._claims = Claims(claim, f"{identity.instance}-sender")
        self._transports = transports
        self._host = host
        self._timeouts = timeouts
        self._max_sessions = max_sessions
        self._forced = forced
        self._door = threading.Lock()
        self._closed = False
        self._links: dict[str, tuple[Link, Outgoing]] = {}
        self._active: dict[str, tuple[Movement, Link, Outgoing]] = {}
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
        """Start moving a request that was submitted with `handoff`. Call it in the engine's thread, in the
        same breath as `submit`: so nothing of it is missed. Never blocks and never raises: if it cannot
        be moved, it runs on here.
        """
        blocks = most(request, [len(choice.output) for choice in choices], self._store.layout.block_size)
        movement = Movement(
            session=f"{self._identity.instance}/{secrets.token_hex(8)}",
            request=request,
            home=home,
            reserve=blocks,
            source=Source(epoch, self._timeouts),
        )
        self.cancel(request.id)
        with self._door:
            while not self._closed:
                link, outgoing = self._links.get(to.instance) or self._open(to)
                if link.post(partial(outgoing.add, movement)):
                    self._active[request.id] = movement, link, outgoing
                    return
                self._links.pop(to.instance, None)
        self._loop.call(lambda core: core.resume(request.id))

    def cancel(self, request_id: str) -> None:
        """Nobody wants the request any more, or another attempt of it comes: end its movement."""
        self._tell(request_id, Cancelled())

    def close(self, timeout: float) -> None:
        """End all links; requests on their way stay here. Waits `timeout` seconds at most."""
        with self._door:
            self._closed = True
            links = [link for link, _ in self._links.values()]
        for link in links:
            link.stop(timeout)
        for link in links:
            if not link.join(timeout):
                log.warning("a link did not end within %s s", timeout)
        self._claims.close()

    def _open(self, to: Address) -> tuple[Link, Outgoing]:
        link = Link(
            f"{self._identity.instance}-to-{to.instance}",
            partial(self._connect, to),
            self._outgoing,
            partial(self._link_ended, to.instance),
        )
        assert isinstance(link.handler, Outgoing)
        self._links[to.instance] = link, link.handler
        link.start()
        return link, link.handler

    def _outgoing(self, link: Link) -> Outgoing:
        return Outgoing(link, self._loop, self._store, self._claims, self._max_sessions, self._ended)

    def _connect(self, to: Address) -> Channel:
        name, address = choose(to, self._host, self._forced)
        transport = self._transports.get(name)
        if transport is None:
            raise TransferFailed(f"transport {name} is not available here: set transfer.transport")
        channel = transport.connect(address, self._timeouts.reserve)
        try:
            handshake.call(channel, self._identity, to.instance, self._timeouts.reserve)
        except (HandshakeRefused, TransferFailed):
            channel.close()
            raise
        return channel

    def _link_ended(self, instance: str, link: Link) -> None:
        with self._door:
            if instance in self._links and self._links[instance][0] is link:
                del self._links[instance]

    def _tell(self, request_id: str, event: SourceEvent) -> None:
        active = self._active.get(request_id)
        if active is not None:
            movement, link, outgoing = active
            link.post(lambda: outgoing.feed(movement, event))

    def _observe(self, outcome: StepOutcome) -> None:
        """In the engine's thread, after a step."""
        for request_id, _ in outcome.progress:
            self._look(request_id, frozen=False)
        for request_id in outcome.prefilled:
            self._look(request_id, frozen=True)
        for request_id in outcome.dropped:
            self._tell(request_id, Dropped())

    def _look(self, request_id: str, *, frozen: bool) -> None:
        """Have copies of the sequences made before the next step, and pass them to the link."""
        active = self._active.get(request_id)
        if active is None:
            return
        movement, link, outgoing = active

        def seen(future: Future[list[LiveSequence]]) -> None:
            if future.exception() is None:
                sequences = future.result()
                link.post(lambda: outgoing.computed(movement, sequences, frozen))

        size = self._store.layout.block_size
        look = partial(snapshot, request_id, movement.source.epoch, size)
        self._loop.call(look).add_done_callback(seen)

    def _ended(self, movement: Movement) -> None:
        request_id = movement.request.id
        with self._door:
            active = self._active.get(request_id)
            if active is not None and active[0] is movement:
                del self._active[request_id]
            source = movement.source
            if source.state is SourceState.GIVEN:
                self.handed += 1
                return
            if source.state is not SourceState.CANCELLED:
                self.failures.append((request_id, source.reason))
        log.info("%s was not handed over: %s", request_id, source.reason)
