"""Selectors that must find tandem's pods: of PodMonitors, Services and network policies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cluster.config_yaml import Problem
from k8s.checks.manifest import Manifest, items, mapping
from k8s.checks.scene import Scene
from k8s.objects.names import CLUSTER_LABEL, GATEWAY, GROUP_LABEL


def monitored_ports(scene: Scene) -> Iterator[Problem]:
    for monitor in scene.of("PodMonitor"):
        wanted = mapping(monitor.data, "spec", "selector", "matchLabels")
        groups = [group for group in scene.ray.groups if _selects(wanted, scene.labels(group))]
        if not groups:
            yield from monitor.problems([(("spec", "selector"), "selects no pod of the RayService")])
            continue
        ports = {
            each.get("name") for group in groups for box in group.containers for each in items(box, "ports")
        }
        for number, endpoint in enumerate(items(monitor.data, "spec", "podMetricsEndpoints")):
            port = mapping(endpoint).get("port")
            if port is not None and port not in ports:
                at = ("spec", "podMetricsEndpoints", str(number), "port")
                message = f'no selected pod has a port named "{port}"'
                yield from monitor.problems([(at, message)])


def services(scene: Scene) -> Iterator[Problem]:
    for service in scene.of("Service"):
        wanted = mapping(service.data, "spec", "selector")
        if wanted.get(CLUSTER_LABEL) is None:
            continue
        groups = [group for group in scene.ray.groups if _selects(wanted, scene.labels(group))]
        if not groups:
            yield from service.problems([(("spec", "selector"), "selects no pod of the RayService")])
        elif any(group.name != GATEWAY for group in groups):
            message = f"selects pods that are no gateways: add {GROUP_LABEL}: {GATEWAY}"
            yield from service.problems([(("spec", "selector"), message)])


def policies(scene: Scene) -> Iterator[Problem]:
    """Once a policy closes a pod, its own cluster must be let in on all ports: Ray draws them at random."""
    closing_any = [
        policy for policy in scene.of("NetworkPolicy")
        if "Ingress" in items(policy.data, "spec", "policyTypes")
    ]  # fmt: skip
    for group in scene.ray.groups:
        labels = scene.labels(group)
        closing = [policy for policy in closing_any if _policy_selects(policy, labels)]
        for other in scene.ray.groups if closing else []:
            if not any(_lets_in(policy, scene.labels(other)) for policy in closing):
                message = f"closes {group.name} to {other.name}: allow all ports between the cluster's pods"
                yield from closing[0].problems([(("spec", "ingress"), message)])
                break


def _policy_selects(policy: Manifest, labels: dict[str, str]) -> bool:
    return _selects(mapping(policy.data, "spec", "podSelector", "matchLabels"), labels)


def _lets_in(policy: Manifest, labels: dict[str, str]) -> bool:
    for rule in items(policy.data, "spec", "ingress"):
        if "ports" in mapping(rule):
            continue
        sources = items(rule, "from")
        selectors = [mapping(each, "podSelector", "matchLabels") for each in sources if "podSelector" in each]
        if not sources or any(_selects(wanted, labels) for wanted in selectors):
            return True
    return False


def _selects(wanted: dict[str, Any], labels: dict[str, str]) -> bool:
    return all(labels.get(key) == str(value) for key, value in wanted.items())
