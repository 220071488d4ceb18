"""When a simulated handoff sets out: with its first chunk, as a real one does."""

from __future__ import annotations

from engine.plan import StepPlan
from simulator.cluster import SimulatedCluster
from simulator.workload.arrivals import Arrival
from tests.simulator.test_simulation import two_pools


def test_nothing_is_reserved_for_prompts_that_wait_to_be_read() -> None:
    cluster = SimulatedCluster(two_pools())
    cluster.add([Arrival(0.0, 512, 2) for _ in range(12)])
    source = cluster.members["prefill-0"].instance
    read: set[str] = set()
    waited: list[int] = []

    def look(plan: StepPlan) -> None:
        read.update(work.request_id for work in plan.works)
        mine = [one for one in cluster.movements.values() if one.source is source]
        assert {one.request.id for one in mine if one.begun} <= read
        waited.append(sum(not one.begun for one in mine))

    source.foresee(look)
    cluster.run()
    assert max(waited) >= 3, "nobody ever waited"
    assert (cluster.handoffs, cluster.handoffs_failed) == (12, 0)
    cluster.check()
