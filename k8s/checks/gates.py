"""Fields that KubeRay's operator takes only with an alpha feature gate, which is off where nobody set it.

The base needs none. What does need one says so in its first line: `# Needs KubeRay's … RayClusterMTLS=true`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path as File

from cluster.config_yaml import Path, Problem
from k8s.checks.manifest import Manifest, mapping
from k8s.checks.scene import Scene
from k8s.kustomization import own_file

FIELDS = {
    "tlsOptions": "RayClusterMTLS",
    "networkPolicy": "RayClusterNetworkPolicy",
    "historyServerOptions": "RayClusterHistoryServer",
}
"""Fields of a RayCluster that KubeRay 1.7 refuses, even empty, unless this gate is on."""

STORAGE = "gcsFaultToleranceOptions"
STORAGE_GATE = "GCSFaultToleranceEmbeddedStorage"


def gates(scene: Scene) -> Iterator[Problem]:
    """Gates that are needed and not told of, so that who applies the files does not know."""
    told = _first_comment(scene.service)
    for path, gate in _needed(scene):
        if gate not in told:
            message = (
                f"needs KubeRay's alpha feature gate {gate}, which is off by default: leave it out, or name "
                "the gate in a comment in the first line, of an overlay in that of its kustomization"
            )
            yield scene.at(path, message)


def _needed(scene: Scene) -> Iterator[tuple[Path, str]]:
    for field, gate in FIELDS.items():
        if scene.ray.cluster.get(field) is not None:
            yield (*scene.ray.path, field), gate
    if mapping(scene.ray.cluster, STORAGE).get("backend") == "rocksdb":
        yield (*scene.ray.path, STORAGE, "backend"), STORAGE_GATE


def _first_comment(manifest: Manifest) -> str:
    """The first line of the object's file if it is a comment, else "".

    What Kustomize builds has no comments: that of a folder is in its kustomization.
    """
    folder = own_file(File(manifest.document.values[()].source))
    lines = folder.read_text(encoding="utf-8").splitlines() if folder is not None else manifest.lines
    return lines[0] if lines and lines[0].startswith("#") else ""
