"""Writes a Pool's bounds into the worker group: of the RayService, which lasts, and of the live RayCluster,
which acts.

KubeRay does not carry a change of bounds from one to the other. The list of groups is patched at the index
of the group's name, with a test of the version that the index was read from: a merge patch would replace
the whole list.
"""

from __future__ import annotations

from collections.abc import Iterable

from engine.errors import NotFound
from k8s import paths
from k8s.kube_api import KubeApi
from k8s.yaml_text import Object

MOST = 2147483647
"""KubeRay's own bound where a group has none."""


def active_cluster(service: Object) -> str:
    """The name of a RayService's live RayCluster, "" while there is none."""
    name = service.get("status", {}).get("activeServiceStatus", {}).get("rayClusterName", "")
    return str(name or "")


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


def carry_bounds(api: KubeApi, namespace: str, reference: Object, but: Iterable[str]) -> None:
    """Bring the bounds of groups without a Pool, the gateways', from the RayService to its RayCluster.

    What is rendered with more gateways changes both, the application and the RayService. KubeRay hands on the
    first alone, and the new gateways would wait for pods for ever.

    Raises Conflict when somebody else wrote in between: try again.
    """
    if reference.get("kind", "RayService") != "RayService":
        return
    try:
        service = api.get(paths.ray(namespace, "RayService", reference["name"]))
        path = paths.ray(namespace, "RayCluster", active_cluster(service) or "none")
        found = api.get(path)
    except NotFound:
        return
    for group in service["spec"].get("rayClusterConfig", {}).get("workerGroupSpecs") or []:
        if group["groupName"] not in but:
            least, most = group.get("minReplicas", 0), group.get("maxReplicas", MOST)
            _patch(api, path, found, ("spec",), group["groupName"], least, most)


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
