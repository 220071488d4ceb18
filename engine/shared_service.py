"""The counters of an instance that is one of many: what it served goes out, what all have served comes in.

    this instance ── news: choices up to here, lifts ──▶ the one ledger ── service of every tenant ──▶ adopt

News say how far a choice has come, never by how much, so that a repeated or a late one does no harm. What
was served here since the last news is added to what comes in. A choice that has just moved here counts twice,
here and where it came from, until the ledger, which knows it by its key, has answered: for one beat.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.sequence import SequenceKey
from engine.service import MOST_TENANTS, Charge, Cost, Counters, MovingAverage


@dataclass(frozen=True, slots=True)
class Served:
    """What one choice has come to, in tokens.

    `left`: it left the instance that tells it and may go on elsewhere; `ended`: it goes on nowhere.
    """

    key: SequenceKey
    tenant: str
    prompt: int
    output: int
    ended: bool = False
    left: bool = False


@dataclass(frozen=True, slots=True)
class News:
    """Choices that have come further, and the level to which tenants that came back were lifted."""

    served: tuple[Served, ...] = ()
    lifts: Mapping[str, float] = field(default_factory=dict)


class SharedCounters(Counters):
    """Counters that tell what they have counted. All news are told twice: one message may be lost."""

    def __init__(
        self,
        cost: Cost | None = None,
        weights: Mapping[str, float] | None = None,
        predictor: MovingAverage | None = None,
        *,
        most_tenants: int = MOST_TENANTS,
    ) -> None:
        super().__init__(cost, weights, predictor, most_tenants=most_tenants)
        self._changed: dict[SequenceKey, Served] = {}
        self._told: dict[SequenceKey, Served] = {}
        self._lifts: dict[str, float] = {}
        self._told_lifts: dict[str, float] = {}
        self._since: dict[str, float] = {}
        self._heard: Mapping[str, float] = {}

    def come(self, tenant: str, *, lift: bool = True) -> None:
        before = self.lifted.get(tenant, 0.0)
        super().come(tenant, lift=lift)
        if self.lifted.get(tenant, 0.0) > before:
            self._lifts[tenant] = self.service[tenant]

    def charge(self, key: SequenceKey, tenant: str, prompt: int, output: int) -> None:
        super().charge(key, tenant, prompt, output)
        known, told = self._charges.get(key), self._changed.get(key)
        if known is not None and (told is None or told.left or known.output > told.output):
            self._tell(key, known)

    def leave(self, key: SequenceKey) -> None:
        known = self._charges.get(key)
        super().leave(key)
        if known is not None:
            self._tell(key, known, left=True)

    def end(self, key: SequenceKey) -> None:
        known = self._charges.get(key) or self._gone.get(key)
        super().end(key)
        if known is not None:
            self._tell(key, known, ended=True)

    def _tell(self, key: SequenceKey, known: Charge, *, ended: bool = False, left: bool = False) -> None:
        self._changed[key] = Served(key, known.tenant, known.prompt, known.output, ended, left)

    def _settle(self, charge: Charge) -> None:
        before = self.service.get(charge.tenant, 0.0)
        super()._settle(charge)
        more = self.service[charge.tenant] - before
        self._since[charge.tenant] = self._since.get(charge.tenant, 0.0) + more

    def news(self) -> News:
        """What is to be told now; counting begins anew."""
        served, lifts = self._told | self._changed, self._told_lifts | self._lifts
        self._told, self._changed = self._changed, {}
        self._told_lifts, self._lifts = self._lifts, {}
        self._since.clear()
        return News(tuple(served.values()), lifts)

    def adopt(self, service: Mapping[str, float]) -> None:
        """What every tenant has been served everywhere, by the last news of all.

        Who waits or runs here and was forgotten there is made known again.
        """
        for tenant, level in self._heard.items():
            if tenant not in service and self.busy(tenant):
                self._lifts[tenant] = level
        self._heard = dict(service)
        self.service = {
            tenant: max(0.0, service.get(tenant, 0.0) + self._since.get(tenant, 0.0))
            for tenant in {**service, **self._since}
        }
        for tenant, level in (*self._told_lifts.items(), *self._lifts.items()):
            self.service[tenant] = max(self.service.get(tenant, 0.0), level)


class Ledger:
    """The one account of all tenants. It holds `most` choices that have not ended at most."""

    def __init__(self, counters: Counters, most: int = 65_536) -> None:
        self._counters = counters
        self._most = most
        self._open: OrderedDict[SequenceKey, None] = OrderedDict()

    @property
    def service(self) -> Mapping[str, float]:
        return self._counters.service

    def hear(self, news: News) -> None:
        """Take in what an instance tells; the same again, or from two instances, counts once."""
        for tenant, level in news.lifts.items():
            self._counters.lift(tenant, level)
        for one in news.served:
            if self._counters.ended(one.key):
                continue
            self._counters.charge(one.key, one.tenant, one.prompt, one.output)
            self._open[one.key] = None
            self._open.move_to_end(one.key)
            if one.left:
                self._counters.leave(one.key)
            if one.ended:
                self._counters.end(one.key)
                del self._open[one.key]
        while len(self._open) > self._most:
            key, _ = self._open.popitem(last=False)
            self._counters.end(key)
