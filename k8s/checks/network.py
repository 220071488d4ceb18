"""Network policies must leave open what tandem cannot do without: once one closes a pod, in or out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cluster.config_yaml import Problem
from k8s.checks.labels import Labels, requirements, selects
from k8s.checks.manifest import Manifest, items, mapping
from k8s.checks.pods import Pod
from k8s.checks.scene import Scene
from k8s.checks.selectors import TARGETS

CONTROL = "control"
"""The name of the head's port that the controller listens on."""


@dataclass(frozen=True)
class Way:
    """In or out of a pod: the name of the policy's type, of its rules, and of the peers in them."""

    kind: str
    rules: str
    peers: str


IN, OUT = Way("Ingress", "ingress", "from"), Way("Egress", "egress", "to")


def cluster(scene: Scene) -> Iterator[Problem]:
    """Ray's pods reach each other on all ports, for Ray draws them at random, and so do instances."""
    for way in (IN, OUT):
        for group in scene.ray.groups:
            closing = _closing(scene, way, scene.labels(group))
            for other in scene.ray.groups if closing else []:
                if not _open(closing, way, scene.labels(other)):
                    verb = f"closes {group.name} to" if way is IN else f"keeps {group.name} from"
                    message = f"{verb} {other.name}: allow all ports between the cluster's pods"
                    yield from closing[0].problems([(("spec", way.rules), message)])
                    break


def operator(scene: Scene) -> Iterator[Problem]:
    """tandem's operator reaches the controller, which is in the head's pod."""
    head, port = scene.labels(scene.ray.head), scene.config.control.port
    for pod in filter(_operates, scene.ours):
        for way, closed, other in ((IN, head, pod.labels), (OUT, pod.labels, head)):
            closing = _closing(scene, way, closed)
            if closing and not _open(closing, way, other, port):
                message = f"keeps tandem's operator from the control port {port} of the head"
                yield from closing[0].problems([(("spec", way.rules), message)])


def _operates(pod: Pod) -> bool:
    words = [word for each in pod.containers for word in items(each.data, "command")]
    return not pod.ray and {"k8s", "operator"} <= set(map(str, words))


def _closing(scene: Scene, way: Way, labels: Labels) -> list[Manifest]:
    """The policies that close such a pod but for what they let through."""
    return [
        policy
        for policy in scene.of("NetworkPolicy")
        if way.kind in _types(policy) and selects(requirements(mapping(policy.data, *TARGETS)), labels)
    ]


def _types(policy: Manifest) -> Sequence[object]:
    """As Kubernetes fills them in: Ingress always, Egress where there are rules for it."""
    given = items(policy.data, "spec", "policyTypes")
    return given or [IN.kind, *([OUT.kind] if items(policy.data, "spec", OUT.rules) else [])]


def _open(closing: Sequence[Manifest], way: Way, labels: Labels, port: int | None = None) -> bool:
    """Whether one lets pods with these labels through, on that port or on all."""
    rules = (rule for policy in closing for rule in items(policy.data, "spec", way.rules))
    return any(_covers(rule, port) and _names(rule, way, labels) for rule in rules)


def _covers(rule: object, port: int | None) -> bool:
    entries = items(rule, "ports")
    return not entries or (port is not None and any(_is(mapping(each), port) for each in entries))


def _is(entry: dict[str, object], port: int) -> bool:
    first, last = entry.get("port", port), entry.get("endPort")
    if isinstance(first, int) and isinstance(last, int):
        return first <= port <= last
    return first in (port, CONTROL)


def _names(rule: object, way: Way, labels: Labels) -> bool:
    peers = items(rule, way.peers)
    return not peers or any(_is_peer(mapping(each), labels) for each in peers)


def _is_peer(peer: dict[str, object], labels: Labels) -> bool:
    """A namespace is judged only where all are named: what labels this one has is not in these files."""
    if "podSelector" not in peer:
        return "namespaceSelector" in peer and not peer["namespaceSelector"]
    return selects(requirements(peer["podSelector"]), labels)
