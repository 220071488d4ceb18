"""The number of gateways follows the requests under way, in Serve's own context and bounds."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.serve_scaling import REQUESTS, RequestsPerGateway


def context(told: dict[str, float], *, current: int = 1) -> Any:
    from ray.serve._private.common import DeploymentID
    from ray.serve.config import AutoscalingContext

    return AutoscalingContext(
        deployment_id=DeploymentID(name="Gateway", app_name="tandem"),
        deployment_name="Gateway", app_name="tandem",
        current_num_replicas=current, target_num_replicas=current, running_replicas=[],
        total_num_requests=0.0, total_queued_requests=0.0,
        aggregated_metrics=lambda: {REQUESTS: told} if told else {}, raw_metrics=None,
        capacity_adjusted_min_replicas=1, capacity_adjusted_max_replicas=4,
        policy_state={}, last_scale_up_time=None, last_scale_down_time=None, current_time=0.0, config=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("told", "current", "wanted"),
    [
        ({"a": 10.0}, 1, 1),
        ({"a": 10.5}, 1, 2),
        ({"a": 15.0, "b": 15.0}, 2, 3),
        ({"a": 0.0, "b": 0.0}, 2, 1),
        ({"a": 1000.0}, 1, 4),
        ({}, 3, 3),
    ],
    ids=["enough", "one too many", "all together", "nothing to do", "never above max", "nothing known"],
)
def test_no_gateway_has_more_than_its_share(told: dict[str, float], current: int, wanted: int) -> None:
    assert RequestsPerGateway(10)(context(told, current=current)) == (wanted, {})


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        RequestsPerGateway(0)
