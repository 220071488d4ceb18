"""The one scheduler: statuses in, decisions out. It never acts, never awaits and reads no clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from engine.errors import TandemError
from engine.status import InstanceStatus
from global_scheduler.admission import check_deadline, check_fits, check_queues
from global_scheduler.placement import Placement, PlacementSettings, Placer, objectives
from global_scheduler.tape import Cordoned, Decided, Forgotten, Heard, Input, Sent
from global_scheduler.view import ClusterView, Share, Summary


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """`settle`, `stale`: see ClusterView, in seconds. `queue_limit`: requests that may wait at an
    instance. With `early_rejection` a request that is predicted to miss its objectives is refused.
    """

    placement: PlacementSettings = field(default_factory=PlacementSettings)
    queue_limit: int = 256
    settle: float = 10.0
    stale: float = 3.0
    early_rejection: bool = False


class Scheduler:
    """Composes view, admission and placement. Times are seconds on the controller's clock.

    `tape`, if set, is given everything that a decision depends on, and the decisions: see tape.py.
    """

    def __init__(self, settings: SchedulerSettings) -> None:
        self.settings = settings
        self.view = ClusterView(settle=settings.settle, stale=settings.stale)
        self.placer = Placer(settings.placement)
        self.tape: Callable[[Input], None] | None = None

    def observe(self, status: InstanceStatus, taken: float) -> None:
        self.view.observe(status, taken)
        self._record(Heard(taken, status))

    def cordon(self, instance: str, *, on: bool = True) -> None:
        """Place nothing more there, or again."""
        self.view.cordon(instance, on=on)
        self._record(Cordoned(instance, on))

    def forget(self, instance: str) -> None:
        """The instance is gone."""
        self.view.forget(instance)
        self.placer.index.forget(instance)
        self._record(Forgotten(instance))

    def send(self, request_id: str, shares: Mapping[str, Share], now: float) -> None:
        """A request is on its way somewhere by another's decision, such as a migration."""
        self.view.send(request_id, shares, now)
        self._record(Sent(now, request_id, shares))

    def place(self, summary: Summary, now: float) -> Placement:
        """Decide where a request runs and count it there from now on.

        Raises ContextLengthExceeded (it can never run), TooLate, Overloaded, NoPrefillInstance or
        NoDecodeInstance.
        """
        try:
            placement = self._place(summary, now)
        except TandemError as error:
            self._record(Decided(now, summary, "", "", error.code, error.message))
            raise
        self.view.send(summary.id, placement.shares(summary), now)
        self.placer.sent(self.view, summary, placement)
        if self.tape is not None:
            self.tape(Decided(now, summary, placement.prefill, placement.decode, "", placement.reason))
        return placement

    def _place(self, summary: Summary, now: float) -> Placement:
        settings, loads = self.settings, self.view.loads(now)
        check_fits(loads, summary)
        check_queues(loads, summary, settings.queue_limit)
        placement = self.placer.place(self.view, summary, now)
        if settings.early_rejection:
            check_deadline(placement.forecast, summary, objectives(summary, settings.placement.slo))
        return placement

    def _record(self, happened: Input) -> None:
        if self.tape is not None:
            self.tape(happened)
