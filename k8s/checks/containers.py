"""What the containers of tandem's pods may be: those of Ray, and those of what carries tandem's label."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cluster.config_yaml import Path, Problem
from k8s.checks.manifest import Found, items, mapping
from k8s.checks.pods import Pod
from k8s.checks.scene import Scene
from k8s.objects import secret_files
from k8s.objects.names import SECRET

_RAY_TAG = re.compile(r"(?:^|-)ray(\d+\.\d+\.\d+)")
_NAMED = ("secretKeyRef", "configMapKeyRef", "secretRef", "configMapRef", "secret", "configMap")


def images(scene: Scene) -> Iterator[Problem]:
    """An image has a tag that stays, and Ray's container the Ray that KubeRay is told of."""
    version = str(scene.ray.cluster.get("rayVersion", ""))
    for pod in scene.ours:
        for path, container in _containers(pod):
            image = str(container.get("image", ""))
            name, colon, tag = image.rpartition("/")[2].partition(":")
            at = (*path, "image")
            if "@" in image:
                continue
            if not colon or tag == "latest":
                message = f"{image}: name a tag other than latest, or what runs changes by itself"
                yield from pod.manifest.problems([(at, message)])
            elif pod.ray and path[-2:] == ("containers", "0"):
                yield from pod.manifest.problems(_ray_tag(at, name, tag, version))


def _ray_tag(at: Path, name: str, tag: str, version: str) -> Iterator[Found]:
    match = _RAY_TAG.search(tag)
    found = tag.partition("-")[0] if name in ("ray", "ray-llm", "ray-ml") else match[1] if match else version
    if found != version:
        yield at, f"the image has Ray {found}, but rayVersion is {version}"


def non_root(scene: Scene) -> Iterator[Problem]:
    for pod in scene.ours:
        outer = mapping(pod.template, "spec", "securityContext").get("runAsNonRoot")
        for path, container in _containers(pod):
            if mapping(container, "securityContext").get("runAsNonRoot", outer) is not True:
                message = "set runAsNonRoot: true, here or for the pod"
                yield from pod.manifest.problems([((*path, "securityContext"), message)])


def secrets(scene: Scene) -> Iterator[Problem]:
    """Names that nothing in the files has; tandem's Secrets are made by hand, as the docs say, and those
    of certificates by cert-manager."""
    known = {SECRET, *secret_files.secrets(scene.service.name)}
    known |= {m.name for kind in ("Secret", "ConfigMap") for m in scene.of(kind)}
    known |= {str(mapping(m.data, "spec").get("secretName")) for m in scene.of("Certificate")}
    for pod in scene.ours:
        for path, name in _references(mapping(pod.template, "spec"), (*pod.path, "spec")):
            if name not in known:
                message = f'there is no Secret or ConfigMap "{name}" in these files'
                yield from pod.manifest.problems([(path, message)])


def _containers(pod: Pod) -> Iterator[tuple[Path, dict[str, object]]]:
    """All of them with their places, also those that run only at the beginning."""
    for key in ("containers", "initContainers"):
        for number, each in enumerate(items(pod.template, "spec", key)):
            if isinstance(each, dict):
                yield (*pod.path, "spec", key, str(number)), each


def _references(value: object, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            name = "secretName" if key == "secret" else "name"
            if key in _NAMED:
                if isinstance(inner, dict) and name in inner and not inner.get("optional"):
                    yield (*path, key, name), str(inner[name])
            else:
                yield from _references(inner, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _references(item, (*path, str(number)))
