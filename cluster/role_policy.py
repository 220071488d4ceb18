"""The batch policy of the role that an instance has at the moment: both live from the start, one is asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from engine.batch import BatchPolicy, Share
from engine.coasting import Steady
from engine.sequence import Sequence as LiveSequence


class RolePolicy:
    """A BatchPolicy. `role` may be set in any thread; the next step goes by it."""

    def __init__(self, policies: Mapping[str, BatchPolicy], role: str) -> None:
        self.policies = policies
        self.role = role

    def share(
        self, running: Sequence[LiveSequence], waiting: Iterable[LiveSequence], now: float
    ) -> list[Share]:
        return self.policies[self.role].share(running, waiting, now)

    def steady(self, running: Sequence[LiveSequence], now: float) -> int:
        """As long as the policy of the present role."""
        policy = self.policies[self.role]
        return policy.steady(running, now) if isinstance(policy, Steady) else 0
