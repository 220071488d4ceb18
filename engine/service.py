"""What each tenant has been served: one logical counter per tenant, over both phases and all instances.

After VTC (Sheng et al., OSDI'24). A request's share is charged *up to* what it has had so far, never *by*
what a step did, so a token that is computed again after a preemption, a movement or a failure costs nothing,
and it does not matter who reports it or how often. The prompt of several choices is computed once, and
charged with the first of them: choice 0, without which no other ever begins.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from engine.sequence import SequenceKey

Cost = Callable[[int, int], float]
"""What a request with so many prompt and output tokens has cost."""

REMEMBERED = 65_536
"""Choices that ended, and as many that left an instance, of which is remembered what they have paid."""

MOST_TENANTS = 4096
"""Tenants whose service is remembered; beyond that, those are forgotten who asked for nothing longest."""


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

    def forget(self, tenant: str) -> None:
        """He begins anew."""
        self._last.pop(tenant, None)


@dataclass(slots=True)
class Charge:
    """What one choice has come to, in tokens, and the `amount` that was charged for it."""

    choice: int
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

    Of a tenant without a request nothing is kept for ever. Who was forgotten and comes back is lifted as all
    are who were away, so he gets no more than those who wait; only what he had beyond them is forgiven.
    """

    def __init__(
        self,
        cost: Cost | None = None,
        weights: Mapping[str, float] | None = None,
        predictor: MovingAverage | None = None,
        *,
        most_tenants: int = MOST_TENANTS,
    ) -> None:
        self.service: dict[str, float] = {}
        self.lifted: dict[str, float] = {}
        self._cost = cost or linear()
        self._weights = dict(weights or {})
        self._predictor = predictor
        self._charges: dict[SequenceKey, Charge] = {}
        self._gone: OrderedDict[SequenceKey, Charge] = OrderedDict()
        self._ended: OrderedDict[SequenceKey, None] = OrderedDict()
        self._waiting: dict[str, int] = {}
        self._running: dict[str, int] = {}
        self._left = ""
        self._most_tenants = most_tenants
        self._active: OrderedDict[str, None] = OrderedDict()

    def amount(self, tenant: str, choice: int, prompt: int) -> float:
        """What the counter of a tenant will rise by when such a choice of a request of his is admitted."""
        predicted = self._predictor.predict(tenant) if self._predictor else 0
        return self._price(choice, prompt, predicted) / self._weights.get(tenant, 1.0)

    def _price(self, choice: int, prompt: int, output: int) -> float:
        """What a choice has cost: with its prompt, if that is not charged with another."""
        spared = self._cost(prompt, 0) if choice else 0.0
        return self._cost(prompt, output) - spared

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
        self._touch(tenant)

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
        known = self._charges.get(key) or self._open(key, tenant, prompt)
        if output <= known.output:
            return
        known.output = output
        self._settle(known)

    def leave(self, key: SequenceKey) -> None:
        """A choice has left an instance, finished or not: from now on it pays for what it had."""
        known = self._close(key)
        if known is not None:
            self._gone[key] = known
            if len(self._gone) > REMEMBERED:
                self._gone.popitem(last=False)

    def end(self, key: SequenceKey) -> None:
        """A choice has finished: nothing that is reported of it later counts."""
        known = self._close(key) or self._gone.pop(key, None)
        if known is None:
            return
        if self._predictor:
            self._predictor.learn(known.tenant, known.output)
        self._ended[key] = None
        if len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)

    def ended(self, key: SequenceKey) -> bool:
        """Whether a choice is known to have finished."""
        return key in self._ended

    def lift(self, tenant: str, level: float) -> None:
        """A tenant was lifted to that level elsewhere."""
        self.service[tenant] = max(self.service.get(tenant, 0.0), level)
        self._touch(tenant)

    def busy(self, tenant: str) -> bool:
        """Whether a request of his waits or runs, as far as is known here."""
        return tenant in self._waiting or tenant in self._running

    def _open(self, key: SequenceKey, tenant: str, prompt: int) -> Charge:
        """It runs: anew, or again after it had left. One that is new pays for a prompt at once."""
        known = self._gone.pop(key, None)
        new = known is None
        if known is None:
            predicted = self._predictor.predict(tenant) if self._predictor else 0
            known = Charge(key.choice, tenant, prompt, 0, predicted, 0.0)
        self._charges[key] = known
        self._running[known.tenant] = self._running.get(known.tenant, 0) + 1
        if new:
            self._settle(known)
        self._touch(known.tenant)
        return known

    def _close(self, key: SequenceKey) -> Charge | None:
        """It runs no more, as far as is known here: what was predicted beyond what it had comes back."""
        known = self._charges.pop(key, None)
        if known is None:
            return None
        self._running[known.tenant] -= 1
        if not self._running[known.tenant]:
            del self._running[known.tenant]
        known.predicted = 0
        self._settle(known)
        self._touch(known.tenant)
        return known

    def _touch(self, tenant: str) -> None:
        """He was active. Beyond the bound who was not for longest is forgotten, if he has nothing here."""
        self._active[tenant] = None
        self._active.move_to_end(tenant)
        for _ in range(min(2, len(self._active) - self._most_tenants)):
            oldest = next(iter(self._active))
            if self.busy(oldest) or oldest == self._left:
                self._active.move_to_end(oldest)
            else:
                self._forget(oldest)

    def _forget(self, tenant: str) -> None:
        del self._active[tenant]
        self.service.pop(tenant, None)
        self.lifted.pop(tenant, None)
        if self._predictor:
            self._predictor.forget(tenant)

    def _settle(self, charge: Charge) -> None:
        amount = self._price(charge.choice, charge.prompt, max(charge.output, charge.predicted))
        weight = self._weights.get(charge.tenant, 1.0)
        self.service[charge.tenant] = self.service.get(charge.tenant, 0.0) + (amount - charge.amount) / weight
        charge.amount = amount
