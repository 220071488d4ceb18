"""Which schema checks which kind: Kubernetes' own, KubeRay's, the Prometheus operator's, and ours."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from referencing import Registry, Resource

from engine.errors import SetupError
from k8s.checks.manifest import Found, Manifest, mapping
from k8s.checks.schema import Schema, errors, root, with_defaults
from k8s.objects import pools
from k8s.objects.names import API_GROUP

RAY_KINDS = ("RayCluster", "RayService")
CORE_PACKAGE = "kubernetes_validate"
CORE_FOLDER = "kubernetes-json-schema"


class Kinds:
    """Looks schemas up. `schemas` is the folder of KubeRay's CRDs, `version` that of Kubernetes ("1.34").

    Raises SetupError if the folder is named and holds no schema, or there are none for the version.
    """

    def __init__(self, schemas: Path | None, version: str) -> None:
        self._ray = ray_schemas(schemas) if schemas is not None else {}
        self._core = _CoreKinds(version)

    def check(self, manifest: Manifest) -> Iterator[Found] | None:
        """What is wrong with the fields of an object; None if there is no schema for its kind."""
        group, _, version = manifest.group.partition("/")
        if group == "ray.io":
            schema = self._ray.get((version, manifest.kind))
        elif group == API_GROUP and manifest.kind == pools.KIND:
            schema = pools.schema()
        elif group == "monitoring.coreos.com":
            schema = MONITORING.get(manifest.kind)
        else:
            return self._core.check(manifest)
        if schema is None:
            return None
        return errors(with_defaults(manifest.data, schema), root(schema))


def ray_schemas(folder: Path) -> dict[tuple[str, str], Schema]:
    """By version and kind, from JSON schemas (of v1) or from the CRDs' own YAML. Raises SetupError."""
    found: dict[tuple[str, str], Schema] = {}
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.yaml")]):
        if path.suffix == ".json":
            kind = next((kind for kind in RAY_KINDS if path.name.startswith(kind.lower())), None)
            if kind is not None:
                found["v1", kind] = json.loads(path.read_text(encoding="utf-8"))
            continue
        # The C loader: the files have tens of thousands of lines.
        definition = yaml.load(path.read_text(encoding="utf-8"), Loader=_fast_loader())
        kind = mapping(definition, "spec", "names").get("kind")
        for version in mapping(definition, "spec").get("versions", []):
            if kind in RAY_KINDS:
                found[version["name"], kind] = version["schema"]["openAPIV3Schema"]
    if not found:
        raise SetupError(
            f"{folder} holds no schema of KubeRay: put the CRDs of its Helm chart there "
            "(ray.io_rayclusters.yaml, ray.io_rayservices.yaml)"
        )
    return found


def _fast_loader() -> Any:
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _CoreKinds:
    """The strict schemas of the package kubernetes-validate; without it core kinds are not checked."""

    def __init__(self, version: str) -> None:
        self._folder: str | None = None
        try:
            root = files(CORE_PACKAGE) / CORE_FOLDER
        except ModuleNotFoundError:
            return
        self._folder = f"v{version}.0-local-strict"
        if not (root / self._folder).is_dir():
            known = sorted(
                (each.name.removeprefix("v").removesuffix(".0-local-strict") for each in root.iterdir()
                 if each.name.endswith("-strict")),
                key=lambda name: int(name.partition(".")[2]),
            )  # fmt: skip
            raise SetupError(f"no schemas of Kubernetes {version}: there are {', '.join(known)}")

    def check(self, manifest: Manifest) -> Iterator[Found] | None:
        if self._folder is None:
            return None
        # rbac.authorization.k8s.io/v1 is in a file named …-rbac-v1.
        version = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", manifest.group)
        schema = _core_file(self._folder, f"{manifest.kind.lower()}-{version}.json")
        if schema is None:
            return None
        return errors(manifest.data, schema, _definitions(self._folder))


@cache
def _core_file(folder: str, name: str) -> Schema | None:
    path = files(CORE_PACKAGE) / CORE_FOLDER / folder / name
    if not path.is_file():
        return None
    schema: Schema = json.loads(path.read_text(encoding="utf-8"))
    return schema


@cache
def _definitions(folder: str) -> Registry[Any]:
    resource: Resource[Any] = Resource.from_contents(_core_file(folder, "_definitions.json") or {})
    registry: Registry[Any] = Registry().with_resource("_definitions.json", resource)
    return resource @ registry if resource.id() else registry


_TEXT: Schema = {"type": "string"}
_LABELS: Schema = {"type": "object", "additionalProperties": _TEXT}
_SELECTOR: Schema = {
    "type": "object",
    "properties": {"matchLabels": _LABELS, "matchExpressions": {"type": "array"}},
}
_RELABELING: Schema = {
    "type": "object",
    "properties": {
        name: {"type": "array", "items": _TEXT} if name == "sourceLabels" else _TEXT
        for name in ("sourceLabels", "targetLabel", "action", "regex", "replacement", "separator")
    },
}
_ENDPOINT: Schema = {
    "type": "object",
    "properties": {
        **dict.fromkeys(("port", "path", "scheme", "interval", "scrapeTimeout"), _TEXT),
        "honorLabels": {"type": "boolean"},
        "relabelings": {"type": "array", "items": _RELABELING},
        "metricRelabelings": {"type": "array", "items": _RELABELING},
        "authorization": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        "tlsConfig": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    },
}
_RULE: Schema = {
    "type": "object",
    "required": ["expr"],
    "properties": {
        **dict.fromkeys(("alert", "record", "for", "keep_firing_for"), _TEXT),
        "expr": {"x-kubernetes-int-or-string": True},
        "labels": _LABELS,
        "annotations": _LABELS,
    },
}
_GROUP: Schema = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": _TEXT, "interval": _TEXT, "rules": {"type": "array", "items": _RULE}},
}


def _kind(spec: Schema) -> Schema:
    return {"type": "object", "required": ["spec"], "properties": {"spec": {"type": "object", **spec}}}


MONITORING: dict[str, Schema] = {
    "PodMonitor": _kind(
        {
            "required": ["selector", "podMetricsEndpoints"],
            "properties": {
                "selector": _SELECTOR,
                "namespaceSelector": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                "jobLabel": _TEXT,
                "podTargetLabels": {"type": "array", "items": _TEXT},
                "podMetricsEndpoints": {"type": "array", "items": _ENDPOINT},
            },
        }
    ),
    "PrometheusRule": _kind({"properties": {"groups": {"type": "array", "items": _GROUP}}}),
}
"""The fields that are used here or are common: the Prometheus operator ships no schema of its own."""
