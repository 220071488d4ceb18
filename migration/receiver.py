"""Takes requests over from other instances: the destination's side.

its Sender ═══▶ listener ─▶ one link per connection ── reserve, adopt, unreserve ─▶ engine loop
                                    │
                                    └── claim ─▶ the request's home gateway
"""

from __future__ import annotations

import logging
import select
import socket
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from functools import partial

from engine.errors import MovementError, TransferFailed
from engine.loop import EngineLoop
from migration import handshake
from migration.claims import Claim, Claims
from migration.events import Bounds, Timeouts
from migration.handshake import Agreement, Identity
from migration.incoming import Incoming
from migration.link import Link
from migration.lobby import Lobby
from migration.transport import Address, BlockStore, Channel, Listener, Transport

log = logging.getLogger(__name__)

CONNECTIONS = 256
"""The most peers at once."""


class Receiver:
    """Listens where `listen` says: transport name → address. `address` is what others need to reach it.

    At most `max_sessions` movements come in at once; more are refused. Raises TransferFailed if an
    address cannot be had.
    """

    def __init__(
        self,
        loop: EngineLoop,
        store: BlockStore,
        identity: Identity,
        claim: Claim,
        transports: Mapping[str, Transport],
        listen: Mapping[str, str],
        *,
        host: str,
        timeouts: Timeouts = Timeouts(),
        bounds: Bounds = Bounds(),
        max_sessions: int = 16,
    ) -> None:
        self._loop = loop
        self._store = store
        self._identity = identity
        self._timeouts = timeouts
        self._bounds = bounds
        self._lobby = Lobby(max_sessions)
        self._listeners: list[Listener] = []
        addresses: dict[str, str] = {}
        try:
            for name, wanted in listen.items():
                listener = transports[name].listen(wanted)
                self._listeners.append(listener)
                addresses[name] = listener.address
        except MovementError:
            self._close_listeners()
            raise
        self.address = Address(identity.instance, host, **{"shm": "", "tcp": ""} | addresses)
        self._claims = Claims(claim, f"{identity.instance}-receiver")
        self._door = threading.Lock()
        self._links: set[Link] = set()
        self._stopping = threading.Event()
        self._ear, self._bell = socket.socketpair()
        self._thread = threading.Thread(target=self._accept, name=f"{identity.instance}-accept", daemon=True)

    @property
    def lease_expirations(self) -> int:
        """Movements of which nothing was heard for a whole lease."""
        return self._lobby.expired

    def start(self) -> None:
        self._thread.start()

    def cancel(self, request_id: str) -> Future[bool]:
        """End a request, whether it is on its way in or runs here. True if it ran here."""
        result: Future[bool] = Future()

        def drop() -> None:
            self._loop.call(lambda core: core.cancel(request_id)).add_done_callback(partial(_pass_on, result))

        if not self._lobby.cancel(request_id, drop):
            drop()
        return result

    def refuse(self) -> None:
        """Refuse new movements; those under way go on."""
        self._lobby.close()

    def accept(self) -> None:
        """Take movements again, after `refuse`."""
        self._lobby.open()

    def close(self, timeout: float) -> None:
        """Listen no more and give up what is on its way. Waits `timeout` seconds at most."""
        with self._door:
            if self._stopping.is_set():
                return
            self._stopping.set()
            links = list(self._links)
        self._bell.send(b"\0")
        if self._thread.ident is not None:
            self._thread.join(timeout)
        self._close_listeners()
        for link in links:
            link.stop(timeout)
        for link in links:
            if not link.join(timeout):
                log.warning("a link did not end within %s s", timeout)
        self._claims.close()
        self._ear.close()
        self._bell.close()

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()

    def _accept(self) -> None:
        poll = select.poll()
        poll.register(self._ear, select.POLLIN)
        listeners = {listener.fileno(): listener for listener in self._listeners}
        for descriptor in listeners:
            poll.register(descriptor, select.POLLIN)
        while not self._stopping.is_set():
            for descriptor, _ in poll.poll():
                if descriptor in listeners:
                    self._take(listeners[descriptor])

    def _take(self, listener: Listener) -> None:
        """Let one caller in. Whatever goes wrong with that one, those after it are heard."""
        channel = None
        try:
            channel = listener.accept()
            self._welcome(channel)
        except Exception as error:
            log.warning(
                "a caller could not be let in: %s", error, exc_info=not isinstance(error, MovementError)
            )
            if channel is not None:
                channel.close()
            self._stopping.wait(0.1)

    def _welcome(self, channel: Channel) -> None:
        with self._door:
            if self._stopping.is_set():
                channel.close()
                return
            if len(self._links) >= CONNECTIONS:
                raise TransferFailed(f"{CONNECTIONS} peers are connected, which is the most")
            name = f"{self._identity.instance}-from-{len(self._links)}"
            link = Link(name, partial(self._greet, channel), self._incoming, self._link_ended)
            link.start()
            self._links.add(link)

    def _greet(self, channel: Channel) -> tuple[Channel, Agreement]:
        try:
            agreed = handshake.answer(channel, self._identity, self._timeouts.reserve)
        except MovementError:
            channel.close()
            raise
        return channel, agreed

    def _incoming(self, link: Link) -> Incoming:
        return Incoming(
            link,
            self._loop,
            self._store,
            self._claims,
            self._timeouts,
            self._lobby,
            self._bounds.share,
        )

    def _link_ended(self, link: Link) -> None:
        with self._door:
            self._links.discard(link)


def _pass_on(result: Future[bool], future: Future[bool]) -> None:
    error = future.exception()
    if error is None:
        result.set_result(future.result())
    else:
        result.set_exception(error)
