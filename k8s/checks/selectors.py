"""Selectors that must find pods: of Services, PodMonitors, PodDisruptionBudgets and network policies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cluster.config_yaml import Path, Problem
from k8s.checks.labels import Requirement, meant, requirements, selects, unmet
from k8s.checks.manifest import Manifest, items, mapping
from k8s.checks.scene import Scene
from k8s.objects.names import API_GROUP, CLUSTER_LABEL, GATEWAY, GROUP_LABEL

PODS: Path = ("spec", "selector")
TARGETS: Path = ("spec", "podSelector")
OUR_LABELS = (f"{API_GROUP}/", "ray.io/")


def nobody(scene: Scene) -> Iterator[Problem]:
    """A selector that no pod of the files has makes its object do nothing, and nobody says so."""
    known = [pod.labels for pod in scene.pods]
    for manifest, path, wanted in _selectors(scene):
        if scene.selected(wanted):
            continue
        lacking = unmet(wanted, known)
        slips = {each: meant(each, known) for each in lacking}
        # Pods of others are not in these files: a selector of theirs may find some in the cluster.
        ours = len(path) == len(PODS) and CLUSTER_LABEL in mapping(manifest.metadata, "labels")
        if ours or any(each.key.startswith(OUR_LABELS) for each in wanted) or any(slips.values()):
            yield from manifest.problems([(path, _nobody(slips))])


def _nobody(slips: dict[Requirement, str]) -> str:
    if not slips:
        return "selects no pod of these files: none has all of these labels"
    named = (f"{each}" + (f' (did you mean "{slip}"?)' if slip else "") for each, slip in slips.items())
    return f"selects no pod of these files: none has {', '.join(named)}"


def _selectors(scene: Scene) -> Iterator[tuple[Manifest, Path, tuple[Requirement, ...]]]:
    """Every selector of pods in the RayService's own namespace, with where it stands."""
    for service in scene.of("Service"):
        if wanted := of_service(service):
            yield service, PODS, wanted
    for budget in scene.of("PodDisruptionBudget"):
        yield budget, PODS, requirements(mapping(budget.data, *PODS))
    for monitor in scene.of("PodMonitor"):
        if stays_home(monitor):
            yield monitor, PODS, requirements(mapping(monitor.data, *PODS))
    for policy in scene.of("NetworkPolicy"):
        yield policy, TARGETS, requirements(mapping(policy.data, *TARGETS))
        for path, peer in _peers(policy):
            yield policy, path, requirements(peer)


def of_service(service: Manifest) -> tuple[Requirement, ...]:
    """What a Service selects; nothing at all if it has no selector, or is a name of something outside."""
    if mapping(service.data, "spec").get("type") == "ExternalName":
        return ()
    return requirements({"matchLabels": mapping(service.data, *PODS)})


def stays_home(monitor: Manifest) -> bool:
    """Whether a PodMonitor looks for pods in its own namespace only."""
    places = mapping(monitor.data, "spec", "namespaceSelector")
    return not places.get("any") and set(items(places, "matchNames")) <= {monitor.namespace}


def _peers(policy: Manifest) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The peers of a policy that are in its own namespace."""
    for direction, side in (("ingress", "from"), ("egress", "to")):
        for number, rule in enumerate(items(policy.data, "spec", direction)):
            for place, peer in enumerate(items(rule, side)):
                if mapping(peer, "podSelector") and "namespaceSelector" not in peer:
                    path = ("spec", direction, str(number), side, str(place), "podSelector")
                    yield path, mapping(peer, "podSelector")


def services(scene: Scene) -> Iterator[Problem]:
    for service in scene.of("Service"):
        wanted = of_service(service)
        if all(each.key != CLUSTER_LABEL for each in wanted):
            continue
        groups = [group for group in scene.ray.groups if selects(wanted, scene.labels(group))]
        if any(group.name != GATEWAY for group in groups):
            message = f"selects pods that are no gateways: add {GROUP_LABEL}: {GATEWAY}"
            yield from service.problems([(PODS, message)])
