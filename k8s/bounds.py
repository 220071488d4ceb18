"""Writes a Pool's bounds into the worker group: of the RayService, which lasts, and of the live RayCluster,
which acts.

KubeRay does not carry a change of bounds from one to the other. The list of groups is patched at the index
of the group's name, with a test of the version that the index was read from: a merge patch would replace
the whole list.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from engine.errors import NotFound
from k8s import paths
from k8s.kube_api import KubeApi
from k8s.yaml_text import Object

MOST = 2147483647
"""KubeRay's own bound where a group has none."""

SETTLED = 10.0
"""Seconds without a change of the RayService's spec after which KubeRay has begun what follows from it."""


def active_cluster(service: Object) -> str:
    """The name of a RayService's live RayCluster, "" while there is none."""
    return _cluster(service, "activeServiceStatus")


def pending_cluster(service: Object) -> str:
    """The name of the RayCluster that is to take the live one's place, "" outside of upgrades."""
    return _cluster(service, "pendingServiceStatus")


def set_bounds(api: KubeApi, namespace: str, reference: Object, group: str, least: int, most: int) -> str:
    """Bring the group's bounds in step where they differ; gives the live RayCluster's name, "" if there is
    none.

    Raises Conflict when somebody else wrote in between: try again.
    """
    kind, name = reference.get("kind", "RayService"), reference["name"]
    try:
        found = api.get(paths.ray(namespace, kind, name))
    except NotFound:
        return ""
    inner = ("spec", "rayClusterConfig") if kind == "RayService" else ("spec",)
    _patch(api, paths.ray(namespace, kind, name), found, inner, group, least, most)
    if kind == "RayCluster":
        return str(name)
    live = active_cluster(found)
    if live:
        path = paths.ray(namespace, "RayCluster", live)
        try:
            _patch(api, path, api.get(path), ("spec",), group, least, most)
        except NotFound:
            return ""
    return live


class Carrier:
    """Brings the bounds of groups without a Pool, the gateways', from the RayService to its RayCluster.

    What is rendered with more gateways changes both, the application and the RayService. KubeRay hands on the
    first alone, and the new gateways would wait for pods for ever.

    In an upgrade they are those of the next cluster: the active one, which still has the traffic, keeps its
    own. KubeRay names the next one a moment after the RayService has changed, so a change that was seen to
    come must be `SETTLED`.
    """

    def __init__(self, api: KubeApi, namespace: str, clock: Callable[[], float]) -> None:
        self._api = api
        self._namespace = namespace
        self._clock = clock
        self._seen: object = None
        self._since = -math.inf

    def carry(self, reference: Object, but: Iterable[str]) -> None:
        """Of all groups `but` these. Raises Conflict when somebody else wrote in between: try again."""
        if reference.get("kind", "RayService") != "RayService":
            return
        try:
            service = self._api.get(paths.ray(self._namespace, "RayService", reference["name"]))
            if not self._settled(service):
                return
            path = paths.ray(self._namespace, "RayCluster", active_cluster(service) or "none")
            found = self._api.get(path)
        except NotFound:
            return
        for group in service["spec"].get("rayClusterConfig", {}).get("workerGroupSpecs") or []:
            if group["groupName"] not in but:
                least, most = group.get("minReplicas", 0), group.get("maxReplicas", MOST)
                _patch(self._api, path, found, ("spec",), group["groupName"], least, most)

    def _settled(self, service: Object) -> bool:
        """Whether no upgrade is under way, or might be about to begin."""
        metadata = service["metadata"]
        version = metadata["uid"], metadata["generation"]
        if self._seen not in (None, version):
            self._since = self._clock()
        self._seen = version
        return not pending_cluster(service) and self._clock() - self._since >= SETTLED


def _cluster(service: Object, status: str) -> str:
    name = service.get("status", {}).get(status, {}).get("rayClusterName", "")
    return str(name or "")


def _patch(
    api: KubeApi, path: str, found: Object, inner: tuple[str, ...], group: str, least: int, most: int
) -> None:
    cluster = found
    for step in inner:
        cluster = cluster.get(step, {})
    groups = cluster.get("workerGroupSpecs") or []
    wanted = {"minReplicas": least, "maxReplicas": most}
    for number, each in enumerate(groups):
        if each.get("groupName") != group:
            continue
        at = "/" + "/".join((*inner, "workerGroupSpecs", str(number)))
        changes = [
            {"op": "add", "path": f"{at}/{key}", "value": value}
            for key, value in wanted.items()
            if each.get(key) != value
        ]
        if changes:
            version = found["metadata"]["resourceVersion"]
            api.patch(path, [{"op": "test", "path": "/metadata/resourceVersion", "value": version}, *changes])
