"""The one scheduler: statuses in, decisions out. It never acts, never awaits and reads no clock."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.status import InstanceStatus
from global_scheduler.admission import check_fits, check_queues
from global_scheduler.placement import Placement, PlacementSettings, place
from global_scheduler.view import ClusterView, Summary


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """`settle`, `stale`: see ClusterView, in seconds. `queue_limit`: requests that may wait at an
    instance."""

    placement: PlacementSettings = field(default_factory=PlacementSettings)
    queue_limit: int = 256
    settle: float = 10.0
    stale: float = 3.0


class Scheduler:
    """Composes view, admission and placement. Times are seconds on the controller's clock."""

    def __init__(self, settings: SchedulerSettings) -> None:
        self.settings = settings
        self.view = ClusterView(settle=settings.settle, stale=settings.stale)

    def observe(self, status: InstanceStatus, taken: float) -> None:
        self.view.observe(status, taken)

    def cordon(self, instance: str) -> None:
        """Place nothing more there."""
        self.view.cordon(instance)

    def forget(self, instance: str) -> None:
        """The instance is gone."""
        self.view.forget(instance)

    def place(self, summary: Summary, now: float) -> Placement:
        """Decide where a request runs and count it there from now on.

        Raises ContextLengthExceeded (it can never run), Overloaded, NoPrefillInstance or NoDecodeInstance.
        """
        loads = self.view.loads(now)
        check_fits(loads, summary)
        check_queues([load for load in loads if not load.cordoned], summary, self.settings.queue_limit)
        placement = place(self.view, summary, now, self.settings.placement)
        self.view.send(summary.id, placement.shares(summary), now)
        return placement
