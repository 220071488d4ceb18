"""What the admin port answers: the data and the actions of the gRPC Control service, as plain JSON values.

Everything comes from the controller in the same process; nothing is kept here but the samples for graphs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.message import Message

from cluster.admin_history import History
from cluster.applying import apply, restart
from cluster.config_origins import explained
from cluster.controller import Controller
from cluster.message_json import API_VERSION, plain
from engine.errors import ConfigError, InvalidParameter, NotFound

Body = dict[str, Any]

LATEST = 200
"""Decisions that are listed without a subject."""

LONGEST_WAIT = 30.0
"""Seconds that somebody may wait for an event in one call."""


def listing(kind: str, items: Iterable[Message | Body]) -> Body:
    """The one envelope of every answer."""
    plainly = [plain(item) if isinstance(item, Message) else item for item in items]
    return {"apiVersion": API_VERSION, "kind": kind, "items": plainly}


class AdminService:
    """Lives in the controller's event loop. Actions raise what the controller raises."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._config = controller.config
        self._history = History(self._config.admin.samples)
        self._sampling: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to take samples."""
        self._sampling = asyncio.create_task(self._sample(), name="samples")

    async def close(self) -> None:
        if self._sampling is not None:
            self._sampling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sampling

    def status(self) -> Body:
        return listing("ClusterStatus", [self._controller.status()])

    def pools(self, name: str = "") -> Body:
        return listing("PoolList", _named(self._controller.status().pools, "pool", name))

    def instances(self, name: str = "") -> Body:
        return listing("InstanceList", _named(self._controller.status().instances, "instance", name))

    async def requests(self, wanted: str = "") -> Body:
        """What runs, or what an id or a client's name means. Raises NotFound for one that is not there."""
        found = (await self._controller.operations.requests(wanted)).requests
        if wanted and not found:
            raise NotFound(f"no request {wanted!r} runs", param="request")
        return listing("RequestList", found)

    async def timelines(self, wanted: str = "", most: int = 0) -> Body:
        """Where the time went of what runs and of what ended lately. Raises NotFound for one nobody knows."""
        found = await self._controller.timelines.find(wanted, most)
        if wanted and not found:
            raise NotFound(f"no request {wanted!r} runs or is remembered", param="request")
        return listing("TimelineList", found)

    def migrations(self, request: str = "") -> Body:
        return listing("MigrationList", self._controller.mover.migrations.listed(request))

    async def events(self, after: int = 0, wait: float = 0.0) -> Body:
        """Those with a larger id; where there are none, the next one if it comes within `wait` seconds."""
        events = self._controller.events
        if wait > 0 and not events.after(after):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(wait, LONGEST_WAIT)):
                    async for _ in events.follow(after):
                        break
        return listing("EventList", events.after(after))

    def explanations(self, subject: str = "") -> Body:
        """Why something was decided, or the latest decisions. Raises NotFound for what nobody remembers."""
        if subject:
            return listing("ExplanationList", self._controller.explain(subject).explanations)
        return listing("ExplanationList", self._controller.explanations.latest(LATEST))

    def config(self) -> Body:
        """Every setting in force and where it comes from; secrets are masked."""
        controller = self._controller
        events = controller.events.after(0)
        found = explained(controller.sized(), controller.deployed, controller.origins, events)
        return listing(
            "ConfigValueList",
            [{"key": key, "value": value, "origin": origin} for key, value, origin in found],
        )

    def history(self) -> Body:
        return listing("SampleList", self._history.listed())

    def scale(
        self,
        pool: str,
        replicas: int | None = None,
        *,
        least: int | None = None,
        most: int | None = None,
        automatic: bool = False,
        dry_run: bool = False,
    ) -> Body:
        reply = self._controller.scale(
            pool, replicas, least=least, most=most, automatic=automatic, dry_run=dry_run
        )
        return listing("ScaleReply", [reply])

    async def apply(self, settings: Mapping[str, object], *, dry_run: bool = False) -> Body:
        """What each difference takes; those that take a restart of the cluster are left as they are.

        Raises InvalidParameter for what is no setting, or no value of it.
        """
        try:
            return listing("ApplyReply", [await apply(self._controller, settings, dry_run=dry_run)])
        except ConfigError as error:
            raise InvalidParameter(error.message, param="settings") from error

    def restart(self, what: str, *, dry_run: bool = False) -> Body:
        return listing("RestartReply", [restart(self._controller, what, dry_run=dry_run)])

    async def rebalance(self, *, dry_run: bool = False) -> Body:
        """The moves of a round that was made now, or would be; no items where nobody is crowded."""
        return listing("MigrationList", (await self._controller.operations.rebalance(dry_run=dry_run)).moves)

    async def cordon(self, instance: str, *, on: bool) -> Body:
        return listing("InstanceList", [await self._controller.operations.cordon(instance, on=on)])

    async def drain(self, instance: str, deadline: float = 0.0) -> Body:
        return listing("InstanceList", [await self._controller.operations.drain(instance, deadline)])

    async def change_role(self, instance: str, role: str, deadline: float = 0.0) -> Body:
        done = await self._controller.operations.change_role(instance, role, deadline)
        return listing("InstanceList", [done])

    async def migrate(self, request: str, to: str, *, wait: bool = True) -> Body:
        return listing("MigrationList", [await self._controller.operations.migrate(request, to, wait=wait)])

    async def _sample(self) -> None:
        while True:
            self._history.add(self._controller.status())
            await asyncio.sleep(self._config.admin.sample_period)


def _named(items: Iterable[Any], kind: str, name: str) -> list[Any]:
    """All, or the one of that name. Raises NotFound."""
    found = [one for one in items if not name or one.name == name]
    if name and not found:
        raise NotFound(f"no {kind} named {name!r}", param=kind)
    return found
