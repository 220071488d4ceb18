"""PodDisruptionBudgets of Ray's pods: one that Kubernetes cannot count lets no pod go, and no node drain."""

from __future__ import annotations

from collections.abc import Iterator

from cluster.config_yaml import Problem
from k8s.checks.labels import requirements
from k8s.checks.manifest import Found, Manifest, mapping
from k8s.checks.scene import Scene
from k8s.checks.selectors import PODS


def budgets(scene: Scene) -> Iterator[Problem]:
    for budget in scene.of("PodDisruptionBudget"):
        chosen = scene.selected(requirements(mapping(budget.data, *PODS)))
        if any(pod.ray for pod in chosen):
            yield from budget.problems(_uncounted(budget))


def _uncounted(budget: Manifest) -> Iterator[Found]:
    """All but a whole `minAvailable` is counted by the scale of what owns the pods."""
    least = mapping(budget.data, "spec").get("minAvailable")
    if "maxUnavailable" in mapping(budget.data, "spec"):
        at, given = "maxUnavailable", "it"
    elif isinstance(least, str):
        at, given = "minAvailable", least
    else:
        return
    message = (
        f"Ray's pods belong to a RayCluster, which has no scale to count {given} by, so that no node can "
        "be drained: give minAvailable as a number"
    )
    yield ("spec", at), message
