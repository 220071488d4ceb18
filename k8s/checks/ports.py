"""Ports that objects name, against those that the containers of the selected pods declare."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

from cluster.config_yaml import Path, Problem
from k8s.checks.labels import requirements
from k8s.checks.manifest import Found, items, mapping
from k8s.checks.pods import Container, Pod
from k8s.checks.scene import Scene
from k8s.checks.selectors import PODS, TARGETS, of_service, stays_home

PROBES: tuple[Path, ...] = (
    ("readinessProbe",),
    ("livenessProbe",),
    ("startupProbe",),
    ("lifecycle", "postStart"),
    ("lifecycle", "preStop"),
)
ASKED = ("httpGet", "tcpSocket")


def services(scene: Scene) -> Iterator[Problem]:
    """A Service without targetPort forwards to the port of its own number."""
    for service in scene.of("Service"):
        wanted = of_service(service)
        pods = scene.selected(wanted) if wanted else []
        for number, entry in enumerate(items(service.data, "spec", "ports")):
            key = "targetPort" if "targetPort" in mapping(entry) else "port"
            at = ("spec", "ports", str(number), key)
            yield from service.problems(_unknown(at, mapping(entry).get(key), pods))


def policies(scene: Scene) -> Iterator[Problem]:
    """A policy opens ports of the pods that it selects, or lets these out to ports of others."""
    for policy in scene.of("NetworkPolicy"):
        targets = scene.selected(requirements(mapping(policy.data, *TARGETS)))
        for number, rule in enumerate(items(policy.data, "spec", "ingress")):
            at = ("spec", "ingress", str(number), "ports")
            yield from policy.problems(_opened(at, rule, targets))
        for number, rule in enumerate(items(policy.data, "spec", "egress")):
            at = ("spec", "egress", str(number), "ports")
            yield from policy.problems(_opened(at, rule, _asked(scene, rule)))


def monitors(scene: Scene) -> Iterator[Problem]:
    for monitor in scene.of("PodMonitor"):
        wanted = requirements(mapping(monitor.data, *PODS))
        pods = scene.selected(wanted) if stays_home(monitor) else []
        for number, endpoint in enumerate(items(monitor.data, "spec", "podMetricsEndpoints")):
            at = ("spec", "podMetricsEndpoints", str(number), "port")
            yield from monitor.problems(_unknown(at, mapping(endpoint).get("port"), pods))


def probes(scene: Scene) -> Iterator[Problem]:
    """A probe or a hook asks a port of its own container; by number it may be one that is not declared."""
    for pod in scene.pods:
        for container in pod.containers:
            yield from pod.manifest.problems(_probed(container))


def _probed(container: Container) -> Iterator[Found]:
    for probe in PROBES:
        for way in ASKED:
            port = mapping(container.data, *probe, way).get("port")
            if isinstance(port, str) and not port.isdecimal() and port not in container.names:
                at = (*container.path, *probe, way, "port")
                yield at, f'the container has no port named "{port}"{_meant(port, container.names)}'


def _opened(at: Path, rule: object, pods: Sequence[Pod]) -> Iterator[Found]:
    """The ports of a policy's rule; a range is for ports that are drawn at random."""
    for number, entry in enumerate(items(rule, "ports")):
        if "endPort" not in mapping(entry):
            yield from _unknown((*at, str(number), "port"), mapping(entry).get("port"), pods)


def _asked(scene: Scene, rule: object) -> list[Pod]:
    """The pods that a rule lets out to; none if it also names pods that are in no file here."""
    found: list[Pod] = []
    for peer in items(rule, "to"):
        selected = scene.selected(requirements(mapping(peer, "podSelector")))
        if "podSelector" not in mapping(peer) or "namespaceSelector" in peer or not selected:
            return []
        found += selected
    return found


def _unknown(at: Path, port: object, pods: Sequence[Pod]) -> Iterator[Found]:
    """A port that none of these pods has. One that declares no port at all may listen on any number."""
    if isinstance(port, str) and pods:
        names = {name for pod in pods for name in pod.names}
        if port not in names:
            yield at, f'no selected pod has a port named "{port}"{_meant(port, names)}'
    elif isinstance(port, int) and pods and all(pod.numbers for pod in pods):
        numbers = {number for pod in pods for number in pod.numbers}
        if port not in numbers:
            shown = ", ".join(map(str, sorted(numbers)))
            yield at, f"no container of the selected pods has the port {port}: they have {shown}"


def _meant(name: str, names: set[str]) -> str:
    close = difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.5)
    return f', did you mean "{close[0]}"?' if close else ""
