"""The batch policy of the role that an instance has at the moment: both live from the start, one is asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from cluster import control_pb2 as pb
from decode_pool.slice_batches import SliceBatches
from engine.batch import BatchPolicy, Share
from engine.coasting import Steady
from engine.sequence import Sequence as LiveSequence
from engine.tiers import Ranked


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


class RankedRolePolicy(RolePolicy):
    """Where one of the roles ranks who runs; in another role the last who came is needed last."""

    def latest(self, sequences: Iterable[LiveSequence], now: float) -> list[LiveSequence]:
        policy = self.policies[self.role]
        return policy.latest(sequences, now) if isinstance(policy, Ranked) else list(sequences)[::-1]

    def before(self, first: LiveSequence, second: LiveSequence) -> bool:
        policy = self.policies[self.role]
        return isinstance(policy, Ranked) and policy.before(first, second)


def of_roles(policies: Mapping[str, BatchPolicy], role: str) -> RolePolicy:
    """The policy that asks the one of the present role."""
    ranked = any(isinstance(policy, Ranked) for policy in policies.values())
    return (RankedRolePolicy if ranked else RolePolicy)(policies, role)


def slices_message(policy: RolePolicy) -> pb.Slices | None:
    """What was served in slices, in either role; None where the config has none."""
    every = [one.served for one in policy.policies.values() if isinstance(one, SliceBatches)]
    if not every:
        return None
    return pb.Slices(
        served=sum(one.served for one in every),
        seconds=sum(one.seconds for one in every),
        predicted=sum(one.predicted for one in every),
    )
