"""The links out of an instance, one to each other instance that it moves requests to."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial

from engine.errors import HandshakeRefused, TransferFailed
from migration import handshake
from migration.handshake import Agreement, Identity
from migration.link import Link
from migration.movement import Movement
from migration.outgoing import Outgoing
from migration.transport import Address, Channel, Transport, choose

log = logging.getLogger(__name__)

AVOIDED = 30.0
"""Seconds for which a transport that broke is taken only if there is no other."""


class Peers:
    """Opens a link when something has to be moved, and again after it broke: then over another transport
    first, if there is one. Thread-safe.

    `transports` are by name, `host` is this process's `host_id()`, `forced` is "auto" or the name of a
    transport; `timeout` in seconds bounds the connection and the handshake each.
    """

    def __init__(
        self,
        identity: Identity,
        transports: Mapping[str, Transport],
        outgoing: Callable[[Link], Outgoing],
        *,
        host: str,
        forced: str,
        timeout: float,
    ) -> None:
        self._identity = identity
        self._transports = transports
        self._outgoing = outgoing
        self._host = host
        self._forced = forced
        self._timeout = timeout
        self._door = threading.Lock()
        self._closed = False
        self._links: dict[str, tuple[Link, Outgoing]] = {}
        self._taken: dict[str, str] = {}
        self._bad: dict[tuple[str, str], float] = {}

    def give(self, movement: Movement, to: Address) -> tuple[Link, Outgoing] | None:
        """Add a movement to those to `to`, without waiting for anything; None once this is closed."""
        with self._door:
            while not self._closed:
                link, outgoing = self._links.get(to.instance) or self._open(to)
                if link.post(partial(outgoing.add, movement)):
                    return link, outgoing
                self._forget(to.instance, link)
        return None

    def way(self, instance: str) -> str:
        """The transport over which an instance is reached, `none` before the first connection."""
        with self._door:
            return self._taken.get(instance, "none")

    def close(self, timeout: float) -> None:
        """End all links. Waits `timeout` seconds at most."""
        with self._door:
            self._closed = True
            links = [link for link, _ in self._links.values()]
        for link in links:
            link.stop(timeout)
        for link in links:
            if not link.join(timeout):
                log.warning("a link did not end within %s s", timeout)

    def _open(self, to: Address) -> tuple[Link, Outgoing]:
        link = Link(
            f"{self._identity.instance}-to-{to.instance}",
            partial(self._connect, to),
            self._outgoing,
            partial(self._ended, to.instance),
        )
        assert isinstance(link.handler, Outgoing)
        self._links[to.instance] = link, link.handler
        link.start()
        return link, link.handler

    def _connect(self, to: Address) -> tuple[Channel, Agreement]:
        ways = choose(to, self._host, self._forced, self._transports)
        good = [way for way in ways if self._bad.get((to.instance, way[0]), 0.0) <= time.monotonic()]
        for name, address in (good or ways)[:-1]:
            try:
                return self._reach(to, name, address)
            except TransferFailed as error:
                log.warning("%s does not reach %s: %s", name, to.instance, error.message)
                self._avoid(to.instance, name)
        return self._reach(to, *(good or ways)[-1])

    def _reach(self, to: Address, name: str, address: str) -> tuple[Channel, Agreement]:
        channel = self._transports[name].connect(address, self._timeout)
        try:
            agreed = handshake.call(channel, self._identity, to.instance, self._timeout)
        except (HandshakeRefused, TransferFailed):
            channel.close()
            raise
        with self._door:
            self._taken[to.instance] = name
        return channel, agreed

    def _avoid(self, instance: str, name: str) -> None:
        self._bad[instance, name] = time.monotonic() + AVOIDED

    def _ended(self, instance: str, link: Link) -> None:
        with self._door:
            self._forget(instance, link)

    def _forget(self, instance: str, link: Link) -> None:
        """A link that takes no more: whoever notices first, the next one has to know it."""
        if self._links.get(instance, (None,))[0] is not link:
            return
        del self._links[instance]
        taken = self._taken.pop(instance, None)
        if taken is not None and not self._closed:
            self._avoid(instance, taken)
