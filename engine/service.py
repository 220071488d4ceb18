"""What each tenant has been served: one logical counter per tenant, over both phases and all instances.

After VTC (Sheng et al., OSDI'24). A request's share is charged *up to* what it has had so far, never *by*
what a step did, so a token that is computed again after a preemption, a movement or a failure costs nothing,
and it does not matter who reports it or how often.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from engine.sequence import SequenceKey

Cost = Callable[[int, int], float]
"""What a request with so many prompt and output tokens has cost."""

REMEMBERED = 65_536
"""Finished requests whose charges are remembered, against reports that come late."""


def linear(prompt: float = 1.0, output: float = 2.0) -> Cost:
    """An output token costs twice a prompt token, as in the paper."""
    return lambda x, y: prompt * x + output * y


def profiled(x: int, y: int) -> float:
    """The cost that VTC's authors measured for Llama-2-7B on an A10G, in milliseconds."""
    return 0.21002 * x + 0.10075 * y + 0.0039868 * x * y + 0.0032473 * y * y + 1.146


class MovingAverage:
    """Predicts the length of a tenant's next answer: the mean of its last `window`."""

    def __init__(self, window: int = 5) -> None:
        self._window = window
        self._last: dict[str, deque[int]] = {}

    def learn(self, tenant: str, output: int) -> None:
        self._last.setdefault(tenant, deque(maxlen=self._window)).append(output)

    def predict(self, tenant: str) -> int:
        """0 of a tenant that has not had an answer."""
        last = self._last.get(tenant)
        return round(sum(last) / len(last)) if last else 0


@dataclass(slots=True)
class _Charge:
    tenant: str
    prompt: int
    output: int
    predicted: int
    amount: float


class Counters:
    """The counters and the rule for tenants that come back.

    `weights` are the shares that tenants are entitled to, 1 for who is not named. With `predictor` a request
    is charged for its predicted answer when it is admitted, and what was too much comes back at its end.
    `service` is what choices are made by; `lifted` of it was never served.
    """

    def __init__(
        self,
        cost: Cost | None = None,
        weights: Mapping[str, float] | None = None,
        predictor: MovingAverage | None = None,
    ) -> None:
        self.service: dict[str, float] = {}
        self.lifted: dict[str, float] = {}
        self._cost = cost or linear()
        self._weights = dict(weights or {})
        self._predictor = predictor
        self._charges: dict[SequenceKey, _Charge] = {}
        self._ended: OrderedDict[SequenceKey, None] = OrderedDict()
        self._waiting: dict[str, int] = {}
        self._left = ""

    def amount(self, tenant: str, prompt: int) -> float:
        """What the counter of a tenant will rise by when such a request of his is admitted."""
        predicted = self._predictor.predict(tenant) if self._predictor else 0
        return self._cost(prompt, predicted) / self._weights.get(tenant, 1.0)

    def come(self, tenant: str, *, lift: bool = True) -> None:
        """A request waits. Who had none waiting is lifted: what he did not ask for is not owed to him.

        To the least counter of those who wait; where nobody waits, to that of who left the queue last.
        """
        if lift and not self._waiting.get(tenant):
            others = [self.service.get(other, 0.0) for other in self._waiting]
            floor = min(others) if others else self.service.get(self._left, 0.0)
            before = self.service.get(tenant, 0.0)
            self.service[tenant] = max(before, floor)
            self.lifted[tenant] = self.lifted.get(tenant, 0.0) + self.service[tenant] - before
        self._waiting[tenant] = self._waiting.get(tenant, 0) + 1

    def go(self, tenant: str) -> None:
        """A request waits no more."""
        self._waiting[tenant] -= 1
        if not self._waiting[tenant]:
            del self._waiting[tenant]
            self._left = tenant

    def charge(self, key: SequenceKey, tenant: str, prompt: int, output: int) -> None:
        """A choice has been admitted and has come to `output` tokens; less than is known is no news."""
        if key in self._ended:
            return
        known = self._charges.get(key)
        if known is None:
            predicted = self._predictor.predict(tenant) if self._predictor else 0
            known = self._charges[key] = _Charge(tenant, prompt, output, predicted, 0.0)
        elif output <= known.output:
            return
        known.output = max(known.output, output)
        self._settle(known)

    def leave(self, key: SequenceKey) -> None:
        """A choice has left an instance, finished or not: from now on it pays for what it had."""
        known = self._charges.get(key)
        if known is not None:
            known.predicted = 0
            self._settle(known)

    def end(self, key: SequenceKey) -> None:
        """A choice has finished: nothing that is reported of it later counts."""
        known = self._charges.pop(key, None)
        if known is None:
            return
        known.predicted = 0
        self._settle(known)
        if self._predictor:
            self._predictor.learn(known.tenant, known.output)
        self._ended[key] = None
        if len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)

    def _settle(self, charge: _Charge) -> None:
        amount = self._cost(charge.prompt, max(charge.output, charge.predicted))
        weight = self._weights.get(charge.tenant, 1.0)
        self.service[charge.tenant] = self.service.get(charge.tenant, 0.0) + (amount - charge.amount) / weight
        charge.amount = amount
