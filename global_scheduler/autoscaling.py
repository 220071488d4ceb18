"""How many instances each pool should have, from its own phase's objective and its freeness.

    out    the phase misses its objective, or instances are fuller than `out_below`
    wake   a pool of none has one again, at once, when requests find no instance; none becomes one by itself
    in     instances are freer than `in_above`, and would not be full if there were one fewer
    role   before a machine is asked for, a pool that could do with less gives an instance to one that lacks

Freeness thresholds as in Llumnix (OSDI'24, section 4.4; its artifact: out below 10, in above 60). A wish
must last before it is granted and a pool rests after each change, so that noise moves nothing. Requests that
began before the last change say nothing of the pool as it is, so none counts twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from global_scheduler.attainment import Attainment
from global_scheduler.freeness import room
from global_scheduler.view import Load

LEAST_REQUESTS = 20
"""Of fewer, a single miss is already more than the 5 % that `attainment` allows by default."""


@dataclass(frozen=True, slots=True)
class AutoscalingSettings:
    """`out_below` and `in_above` are in blocks per running request, times in seconds.

    `attainment` is the share of requests that must meet the phase's objective. A wish to grow must last
    `out_patience`, one to shrink `in_patience`; after a change the pool rests `cool_down`. Instances
    younger than `warm_up` say nothing yet about the pool. `step` bounds what one decision adds. A wake
    needs no patience.
    """

    least: int = 1
    most: int = 16
    out_below: float = 10.0
    in_above: float = 60.0
    attainment: float = 0.95
    out_patience: float = 5.0
    in_patience: float = 30.0
    cool_down: float = 10.0
    warm_up: float = 10.0
    step: int = 4


@dataclass(frozen=True, slots=True)
class PoolState:
    """A pool as autoscaling sees it.

    `loads` are its ready instances and `ages` how long each has been ready, in seconds. `attained` are the
    recent requests and those that met the objective of this phase (TTFT in prefill, TPOT in decode), None
    where there is no objective or no request. `growth` is the forecast load over the present one, 1 for
    none: free blocks are judged as if so much more were held. `starting` are instances that will be ready
    soon, None for all that are missing: one that cannot start is no capacity. `lends` says whether an
    instance may change to or from another role. `in_vain` says that requests found no instance at all lately.
    """

    name: str
    target: int
    loads: tuple[Load, ...]
    ages: Mapping[str, float] = field(default_factory=dict)
    attained: Attainment | None = None
    growth: float = 1.0
    starting: int | None = None
    lends: bool = True
    in_vain: bool = False

    @property
    def coming(self) -> int:
        return max(0, self.target - len(self.loads)) if self.starting is None else self.starting


@dataclass(frozen=True, slots=True)
class Resize:
    """Give `pool` the size `target`. `donor` names the pool whose instance changes its role for that.

    `otherwise` is the reason of the same change where no instance can change its role.
    """

    pool: str
    target: int
    reason: str
    donor: str | None = None
    otherwise: str = ""


@dataclass(slots=True)
class _Memory:
    """Since when a pool has wished to grow or to shrink, and when it last changed."""

    wish: int = 0
    since: float = 0.0
    changed: float = -1e18


class Autoscaler:
    """Decides for all pools together, as they can lend each other instances."""

    def __init__(
        self, settings: AutoscalingSettings, pools: Mapping[str, AutoscalingSettings] | None = None
    ) -> None:
        self._settings = settings
        self._own = dict(pools or {})
        self._memory: dict[str, _Memory] = {}
        self.explanations: dict[str, str] = {}
        self.wishes: dict[str, int] = {}

    def decide(self, pools: Iterable[PoolState], now: float) -> list[Resize]:
        """Changes to make now. What was thought of each pool stands in `explanations` and `wishes`."""
        resizes: list[Resize] = []
        growing: list[tuple[PoolState, int, str]] = []
        shrinking: list[tuple[PoolState, str]] = []
        for pool in pools:
            change, why = self.opinion(pool, now)
            if change > 0:
                growing.append((pool, change, why))
            elif change < 0:
                shrinking.append((pool, why))
        for pool, more, why in growing:
            donor = next((one for one, _ in shrinking if one.lends and pool.lends), None)
            if donor is not None:
                shrinking = [one for one in shrinking if one[0] is not donor]
                given = f"{donor.name} gives up an instance"
                resizes.append(Resize(donor.name, donor.target - 1, given))
                resizes.append(Resize(pool.name, pool.target + 1, f"{why}; {given}", donor.name, why))
                self._rest(donor.name, now)
            else:
                resizes.append(Resize(pool.name, pool.target + more, why))
            self._rest(pool.name, now)
        for pool, why in shrinking:
            resizes.append(Resize(pool.name, pool.target - 1, why))
            self._rest(pool.name, now)
        return resizes

    def opinion(self, pool: PoolState, now: float) -> tuple[int, str]:
        """What is to change now about the size of one pool, and why: for pools that others decide about."""
        wish, why = self._wish(pool, now)
        change, why = self._hold(pool, wish, why, now)
        self.explanations[pool.name], self.wishes[pool.name] = why, pool.target + wish
        return change, why

    def _rest(self, pool: str, now: float) -> None:
        self._memory[pool] = _Memory(changed=now)

    def _wish(self, pool: PoolState, now: float) -> tuple[int, str]:
        """How many instances more the pool would like at this moment, and why."""
        settings = self._own.get(pool.name, self._settings)
        if pool.target < settings.least:
            return settings.least - pool.target, f"at least {settings.least} instances are wanted"
        if pool.target > settings.most:
            return -1, f"{settings.most} instances are the most"
        if not pool.target:
            return (
                (1, "requests find no instance") if pool.in_vain else (0, "none is there, and none is missed")
            )
        warm = [
            one for one in pool.loads if pool.ages.get(one.instance, settings.warm_up) >= settings.warm_up
        ]
        if not warm:
            return 0, "no instance has been ready for long enough to judge"
        mean = _mean_room(warm, len(warm), pool.growth)
        there = f"{mean:.1f} blocks per request"
        share = self._share(pool, now)
        missed = share is not None and share < settings.attainment
        if missed or mean < settings.out_below:
            if pool.target >= settings.most:
                return 0, f"{there}, but {settings.most} instances are the most"
            if pool.coming:
                return 0, f"{there}, and {pool.coming} instances are starting"
            more = self._lacking(warm, pool, settings)
            if missed:
                return more, f"{share:.1%} of requests met the objective, not {settings.attainment:.0%}"
            return more, f"{there}, {settings.out_below:g} are wanted"
        if mean > settings.in_above and pool.target > settings.least and len(pool.loads) >= pool.target:
            fewer = _mean_room(warm, len(warm) - 1, pool.growth)
            if len(warm) == 1 or fewer < 2 * settings.out_below:
                return 0, f"{there}, but one instance fewer would leave {fewer:.1f}"
            return -1, f"{there}, and {fewer:.1f} with one instance fewer"
        return 0, f"{there}: enough, and not too many"

    def _share(self, pool: PoolState, now: float) -> float | None:
        """Of the requests that began since the pool last changed, those that met it; None of few."""
        if pool.attained is None:
            return None
        youngest = min((pool.ages.get(one.instance, math.inf) for one in pool.loads), default=math.inf)
        memory = self._memory.get(pool.name, _Memory())
        requests, met = pool.attained.since(min(youngest, now - memory.changed))
        return met / requests if requests >= LEAST_REQUESTS else None

    def _lacking(self, warm: list[Load], pool: PoolState, settings: AutoscalingSettings) -> int:
        """Instances until the mean freeness would be right, at least one, as many as one step may add."""
        bound = min(settings.step, settings.most - pool.target)
        for more in range(1, bound):
            if _mean_room(warm, len(warm) + more, pool.growth) >= settings.out_below:
                return more
        return bound

    def _hold(self, pool: PoolState, wish: int, why: str, now: float) -> tuple[int, str]:
        """A wish is granted when it has lasted, and the last change is long enough ago."""
        settings = self._own.get(pool.name, self._settings)
        memory = self._memory.setdefault(pool.name, _Memory())
        sign = (wish > 0) - (wish < 0)
        if sign != memory.wish:
            memory.wish, memory.since = sign, now
        if not sign:
            return 0, why
        patience = settings.out_patience if sign > 0 else settings.in_patience
        if not pool.target and pool.in_vain:
            # Whoever asks is refused meanwhile, and may not ask again for as long as a wish must last.
            patience = 0.0
        if now - memory.since < patience:
            return 0, f"{why}; it must last {patience:g} s"
        if now - memory.changed < settings.cool_down:
            return 0, f"{why}; the pool rests {settings.cool_down:g} s after a change"
        return wish, why


def held(loads: Iterable[Load]) -> float:
    """Blocks that are in use or wanted at the head of a queue: what a forecast goes by."""
    return float(sum(load.held + load.head for load in loads))


def _mean_room(loads: list[Load], instances: int, growth: float) -> float:
    """Freeness of a pool of `instances` that shared the work of `loads` out evenly."""
    if instances < 1:
        return float("-inf")
    blocks = sum(load.blocks for load in loads) / len(loads) * instances
    used = held(loads) * growth
    running = sum(load.running + (load.head > 0) for load in loads) * growth
    if not running:
        return room(loads[0]) if instances == len(loads) == 1 else blocks / instances
    return (blocks - used) / max(float(instances), running)
