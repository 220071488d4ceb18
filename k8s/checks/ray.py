"""The rules that KubeRay's operator has beyond its schema: what the API server takes and it refuses.

One small function for each; see the validation of RayCluster and RayService in KubeRay 1.7.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from typing import Any

from k8s.checks.manifest import Found, Manifest, items, mapping
from k8s.checks.ray_cluster import Ray

DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
LONGEST = {"RayCluster": 53, "RayService": 47}
INCREMENTAL = "NewClusterWithIncrementalUpgrade"
STRATEGIES = ("NewCluster", INCREMENTAL, "None")
MOST_REPLICAS = 2147483647
START_RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")
SERVE_CONFIG = "serveConfigV2"
REDIS_ANNOTATION = "ray.io/ft-enabled"


def check(manifest: Manifest) -> Iterator[Found]:
    """What the operator would refuse."""
    ray = Ray(manifest)
    for rule in RULES:
        yield from rule(ray)


def _names(ray: Ray) -> Iterator[Found]:
    name, longest = ray.manifest.name, LONGEST[ray.manifest.kind]
    at = ("metadata", "name")
    if len(name) > longest:
        yield at, f"a {ray.manifest.kind} has a name of at most {longest} characters, not {len(name)}"
    if name and not DNS_1035.fullmatch(name):
        yield at, f'"{name}" is no DNS label: small letters, digits and "-", a letter first'
    seen: set[str] = set()
    for group in ray.workers:
        if group.name in seen:
            yield (*group.path, "groupName"), f'there is another group named "{group.name}"'
        seen.add(group.name)


def _containers(ray: Ray) -> Iterator[Found]:
    for group in ray.groups:
        at = (*group.path, "template", "spec", "containers")
        if not group.containers:
            if group.pod or "template" in group.data:
                yield at, f"the group {group.name} has no container"
            continue
        known = [number for number, each in enumerate(group.containers) if _is_ray(each)]
        if known and known[0] != 0:
            yield (*at, "0"), "the Ray container must be the first one"


def _is_ray(container: dict[str, Any]) -> bool:
    return str(container.get("name", "")).startswith("ray-") and "ray" in str(container.get("image", ""))


def _resources(ray: Ray) -> Iterator[Found]:
    for group in ray.groups:
        both = [key for key in START_RESOURCES if key in group.start] if group.data.get("resources") else []
        for key in both:
            yield (
                (*group.path, "rayStartParams", key),
                f"{key} is given here and in `resources` of the group: give one of them",
            )


def _start_labels(ray: Ray) -> Iterator[Found]:
    for group in ray.groups:
        if "labels" in group.start:
            yield (*group.path, "rayStartParams", "labels"), "use `labels` of the group instead"


def _labels(ray: Ray) -> Iterator[Found]:
    for group in ray.groups:
        for key, value in mapping(group.data, "labels").items():
            at = (*group.path, "labels", key)
            if not LABEL_KEY.fullmatch(key) or len(key.rpartition("/")[2]) > 63:
                yield at, f'"{key}" is no label name'
            elif not LABEL_VALUE.fullmatch(str(value)) or len(str(value)) > 63:
                yield at, f'"{value}" is no label value: letters, digits, "-", "_" and ".", at most 63'


def _bounds(ray: Ray) -> Iterator[Found]:
    for group in ray.workers:
        least = _number(group.data.get("minReplicas"), 0)
        most = _number(group.data.get("maxReplicas"), MOST_REPLICAS)
        if least < 0:
            yield (*group.path, "minReplicas"), "must be at least 0"
        if most < least:
            yield (*group.path, "maxReplicas"), f"{most} is below minReplicas {least}"


def _number(value: object, default: int) -> int:
    return value if isinstance(value, int) else default


def _restart(ray: Ray) -> Iterator[Found]:
    version = mapping(ray.cluster, "autoscalerOptions").get("version", "v2" if _modern(ray) else "v1")
    if not ray.autoscaling or version != "v2":
        return
    for group in ray.groups:
        if group.pod.get("restartPolicy", "Never") != "Never":
            at = (*group.path, "template", "spec", "restartPolicy")
            yield at, "autoscaler v2 wants Never here, or nothing"


def _modern(ray: Ray) -> bool:
    return ray.ray_version is None or ray.ray_version >= (2, 47)


def _autoscaler_variable(ray: Ray) -> Iterator[Found]:
    version = mapping(ray.cluster, "autoscalerOptions").get("version")
    for path, name, _ in ray.head.environment():
        if name == "RAY_enable_autoscaler_v2" and version is not None:
            yield path, "autoscalerOptions.version says it already: leave this variable out"


def _fault_tolerance(ray: Ray) -> Iterator[Found]:
    options = mapping(ray.cluster, "gcsFaultToleranceOptions")
    enabled = mapping(ray.manifest.metadata, "annotations").get(REDIS_ANNOTATION)
    if options:
        if enabled is not None:
            yield (
                ("metadata", "annotations", REDIS_ANNOTATION),
                "gcsFaultToleranceOptions says it already: leave this annotation out",
            )
        if "redis-password" in ray.head.start:
            at = (*ray.head.path, "rayStartParams", "redis-password")
            yield at, "use gcsFaultToleranceOptions.redisPassword instead"
        for group in ray.groups:
            for path, name, _ in group.environment():
                if name in ("RAY_REDIS_ADDRESS", "REDIS_PASSWORD"):
                    yield path, f"{name} is the operator's to set: use gcsFaultToleranceOptions"
    elif enabled == "false":
        for path, name, _ in ray.head.environment():
            if name == "RAY_REDIS_ADDRESS":
                yield path, f"{name} contradicts the annotation {REDIS_ANNOTATION}: false"


def _token_version(ray: Ray) -> Iterator[Found]:
    if mapping(ray.cluster, "authOptions").get("mode") == "token":
        version = ray.ray_version
        if version is None or version < (2, 52):
            at = (*ray.path, "authOptions", "mode")
            yield at, "token authentication needs a rayVersion of at least 2.52"


def _kubernetes_token(ray: Ray) -> Iterator[Found]:
    if ray.service and mapping(ray.cluster, "authOptions").get("enableK8sTokenAuth"):
        at = (*ray.path, "authOptions", "enableK8sTokenAuth")
        yield at, "a RayService cannot use tokens of Kubernetes: leave it out"


def _tls(ray: Ray) -> Iterator[Found]:
    if mapping(ray.cluster, "tlsOptions").get("enabled") is not True:
        return
    for group in ray.groups:
        for path, name, _ in group.environment():
            if name == "RAY_USE_TLS" or name.startswith("RAY_TLS_"):
                yield path, f"{name} is the operator's to set where tlsOptions are enabled"
        for number, mount in enumerate(
            items(group.containers[0] if group.containers else {}, "volumeMounts")
        ):
            if isinstance(mount, dict) and mount.get("mountPath") == "/etc/ray/tls":
                at = (*group.path, "template", "spec", "containers", "0", "volumeMounts", str(number))
                yield at, "/etc/ray/tls is the operator's where tlsOptions are enabled"


def _network(ray: Ray) -> Iterator[Found]:
    options = mapping(ray.cluster, "networkPolicy")
    mode = str(options.get("mode", "DenyAll"))
    at = (*ray.path, "networkPolicy")
    unused = {"DenyAllIngress": "egressRules", "DenyAllEgress": "ingressRules"}.get(mode)
    names = {group.name for group in ray.workers}
    sides = [("head", options.get("head")), ("worker", options.get("worker"))]
    for number, each in enumerate(items(options, "workerGroups")):
        sides.append((f"workerGroups/{number}", each))
        if isinstance(each, dict) and each.get("groupName") not in names:
            yield (
                (*at, "workerGroups", str(number), "groupName"),
                f'there is no group named "{each.get("groupName")}"',
            )
    for side, rules in sides:
        if unused is not None and unused in mapping(rules):
            yield (
                (*at, *side.split("/"), unused),
                f"the mode {mode} restricts nothing that {unused} could open",
            )


def _incremental(ray: Ray) -> Iterator[Found]:
    strategy = mapping(ray.manifest.data, "spec", "upgradeStrategy")
    if strategy.get("type", "NewCluster") not in STRATEGIES:
        yield ("spec", "upgradeStrategy", "type"), f"expected one of {', '.join(STRATEGIES)}"
    if strategy.get("type") != INCREMENTAL:
        return
    at = ("spec", "upgradeStrategy", "clusterUpgradeOptions")
    options = mapping(strategy, "clusterUpgradeOptions")
    if not ray.autoscaling:
        yield (
            ("spec", "upgradeStrategy", "type"),
            "an incremental upgrade needs enableInTreeAutoscaling: true",
        )
    surge = _number(options.get("maxSurgePercent"), 100)
    step, interval = options.get("stepSizePercent"), options.get("intervalSeconds")
    if not 0 <= surge <= 100:
        yield (*at, "maxSurgePercent"), "must be 0 to 100"
    if not isinstance(step, int) or not 0 < step <= max(surge, 0):
        yield (*at, "stepSizePercent"), f"must be 1 to maxSurgePercent, which is {surge}"
    if not isinstance(interval, int) or interval <= 0:
        yield (*at, "intervalSeconds"), "must be above 0"
    if not options.get("gatewayClassName"):
        yield (*at, "gatewayClassName"), "is missing: name a GatewayClass"


def _head_service(ray: Ray) -> Iterator[Found]:
    if ray.service and mapping(ray.head.data, "headService", "metadata").get("name"):
        at = (*ray.head.path, "headService", "metadata", "name")
        yield at, "the operator names the head's Service of a RayService: leave it out"


def _application(ray: Ray) -> Iterator[Found]:
    spec = mapping(ray.manifest.data, "spec")
    if not ray.service or SERVE_CONFIG in spec:
        return
    close = difflib.get_close_matches(SERVE_CONFIG, map(str, spec), n=1, cutoff=0.8)
    hint = f', did you write "{close[0]}" for it?' if close else ": it says what Ray Serve runs"
    yield ("spec", *(close or [SERVE_CONFIG])), f"{SERVE_CONFIG} is missing{hint}"


RULES: tuple[Callable[[Ray], Iterator[Found]], ...] = (
    _names,
    _containers,
    _resources,
    _start_labels,
    _labels,
    _bounds,
    _restart,
    _autoscaler_variable,
    _fault_tolerance,
    _token_version,
    _kubernetes_token,
    _tls,
    _network,
    _incremental,
    _head_service,
    _application,
)
