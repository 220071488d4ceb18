"""Who sizes a pool, within which bounds, and what an operator may ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.config import PoolConfig
from cluster.config_scheduler import AutoscaleConfig
from engine.errors import RefusedError
from global_scheduler.forecast import Constant, Forecast, HoltWinters
from global_scheduler.placement import PREFILL


@dataclass(frozen=True, slots=True)
class Scaling:
    """With `automatic` the controller sets the target. Bounds are in instances."""

    automatic: bool
    least: int
    most: int

    @classmethod
    def of(cls, pool: PoolConfig) -> Scaling:
        return cls(pool.autoscale.enabled, pool.min_replicas, pool.max_replicas)

    def to_list(self) -> list[int]:
        """For the memo."""
        return [int(self.automatic), self.least, self.most]

    @classmethod
    def from_list(cls, values: Sequence[int]) -> Scaling:
        automatic, least, most = values
        return cls(bool(automatic), least, most)

    def check(self, name: str, target: int, *, explicit: bool) -> None:
        """Raise RefusedError unless the pool `name` may have `target` instances.

        Where the controller sets the target it brings it within new bounds itself; nobody else's is clamped.
        """
        if self.least > self.most:
            raise RefusedError(
                f"{name} would have {self.least} instances at least and {self.most} at most: "
                "raise --max or lower --min",
                param="min",
            )
        if target == 0 and self.least > 0:
            raise RefusedError(self._no_instance(name), param="replicas")
        if (explicit or not self.automatic) and not self.least <= target <= self.most:
            raise RefusedError(self._outside(name, target, explicit=explicit), param="replicas")

    def _no_instance(self, name: str) -> str:
        then = "decode instances then prefill too"
        if name != PREFILL:
            then = "without a prefill instance requests are refused then, until there are instances again"
        return (
            f"{name} cannot be scaled to 0, for it has {self.least} at least: --min 0 as well, or "
            f"pools.{name}.min_replicas, allows it; {then}"
        )

    def _outside(self, name: str, target: int, *, explicit: bool) -> str:
        if explicit:
            return (
                f"{name} may have {self.least} to {self.most} instances, not {target}: change the bounds "
                f"with --min and --max, or pools.{name}.min_replicas and max_replicas"
            )
        return (
            f"{name} would have {self.least} to {self.most} instances and is sized to {target}: scale it "
            "first, or give --replicas as well"
        )


def forecast_of(scale: AutoscaleConfig, period: float) -> Forecast:
    """What foretells the load of a pool that is looked at every `period` seconds."""
    return Constant() if scale.forecast == "constant" else HoltWinters(round(scale.season / period))
