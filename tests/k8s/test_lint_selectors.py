"""Selectors and ports: who finds no pod, or a port that no pod has, is named where it stands."""

from __future__ import annotations

import re

import pytest
import yaml

from k8s.checks.kinds import Kinds
from k8s.checks.labels import requirements, selects
from tests.k8s.mistakes import DECODE, Mistake, assert_named, check, clean

GATEWAY = "ray.io/group: gateway"
OPERATOR = "app.kubernetes.io/name: tandem-operator"
SERVICE = "kind: Service\n"

MISTAKES = {
    "a Service's port that no pod has": Mistake(
        "targetPort: http",
        "targetPort: 9999",
        "no container of the selected pods has the port 9999: they have 8000, 8080, 52365",
    ),
    "a Service's port of a wrong name": Mistake(
        "targetPort: http", "targetPort: htp", 'no selected pod has a port named "htp", did you mean "http"?'
    ),
    "a Service's own port, which stands for the target": Mistake(
        "      targetPort: http\n", "", "has the port 80: they have", "      port: 80", SERVICE
    ),
    "a probe's port of a wrong name": Mistake(
        "port: http", "port: htttp", 'the container has no port named "htttp", did you mean "http"?'
    ),
    "a hook's port of a wrong name": Mistake(
        "preStop:\n",
        "postStart:\n                    httpGet:\n                      port: hook\n"
        "                  preStop:\n",
        'the container has no port named "hook"',
        "                      port: hook",
        DECODE,
    ),
    "a port that a policy opens and no pod has": Mistake(
        "port: 8265", "port: 8266", "has the port 8266", after="kind: NetworkPolicy"
    ),
    "a port of a wrong name that a policy opens": Mistake(
        "port: 8265", "port: dashbord", 'did you mean "dashboard"?', after="kind: NetworkPolicy"
    ),
    "a port that a policy lets out to and no pod has": Mistake(
        "port: 8002",
        "port: 8003",
        "has the port 8003",
        after="kind: NetworkPolicy\nmetadata:\n  name: tandem-operator",
    ),
    "a PodMonitor's port": Mistake(
        "port: as-metrics", "port: as-metric", 'no selected pod has a port named "as-metric"'
    ),
    "a budget of no pod": Mistake(
        GATEWAY,
        "ray.io/group: gatewy",
        'selects no pod of these files: none has ray.io/group: gatewy (did you mean "gateway"?)',
        "  selector:",
        "kind: PodDisruptionBudget",
    ),
    "a budget of no pod by an expression": Mistake(
        "matchLabels:\n      tandem.dev/cluster: tandem\n      ray.io/group: gateway\n",
        "matchExpressions:\n      - key: ray.io/group\n        operator: In\n        values: [gatewy]\n",
        "none has ray.io/group: gatewy",
        "  selector:",
        "kind: PodDisruptionBudget",
    ),
    "a budget of pods that are parted": Mistake(
        GATEWAY,
        f"{GATEWAY}\n      ray.io/node-type: head",
        "none has all of these labels",
        "  selector:",
        "kind: PodDisruptionBudget",
    ),
    "a PodMonitor of no pod": Mistake(
        GATEWAY,
        "ray.io/grop: gateway",
        '(did you mean "ray.io/group"?)',
        "  selector:",
        "kind: PodMonitor\nmetadata:\n  name: tandem-gateway",
    ),
    "a Service of no pod by the cluster's name": Mistake(
        "tandem.dev/cluster: tandem\n    ray.io",
        "tandem.dev/clustr: tandem\n    ray.io",
        "none has tandem.dev/clustr: tandem",
        "  selector:",
        SERVICE,
    ),
    "a policy of no pod": Mistake(
        f"matchLabels:\n      {OPERATOR}",
        f"matchLabels:\n      {OPERATOR}s",
        "selects no pod of these files",
        "  podSelector:",
        "kind: NetworkPolicy\nmetadata:\n  name: tandem-operator",
    ),
    "a policy that lets nobody in": Mistake(
        OPERATOR,
        f"{OPERATOR}s",
        '(did you mean "tandem-operator"?)',
        f"        - podSelector:\n            matchLabels:\n              {OPERATOR}s",
        "kind: NetworkPolicy",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_is_named_at_its_line(name: str, kinds: Kinds) -> None:
    assert_named(MISTAKES[name], kinds)


def added(*objects: str) -> str:
    """What is rendered, and more objects in the same namespace."""
    return "---\n".join((clean(), *objects))


def service(selector: str, port: int | str = 8000, name: str = "mine") -> str:
    return (
        f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: tandem}}\n"
        f"spec:\n  selector: {{{selector}}}\n  ports: [{{port: 80, targetPort: {port}}}]\n"
    )


REDIS = """apiVersion: apps/v1
kind: Deployment
metadata: {name: redis, namespace: tandem}
spec:
  selector: {matchLabels: {app: redis}}
  template:
    metadata: {labels: {app: redis}}
    spec:
      containers:
        - {name: redis, image: "redis:7", ports: [{name: redis, containerPort: 6379}]}
"""
SILENT = REDIS.replace(", ports: [{name: redis, containerPort: 6379}]", "")
SIDECAR = SILENT + (
    "      initContainers:\n"
    '        - {name: proxy, image: "proxy:1", restartPolicy: Always, ports: [{containerPort: 6380}]}\n'
)


def test_each_selector_of_no_pod_is_named_at_its_own_line(kinds: Kinds) -> None:
    text = clean().replace(GATEWAY, "ray.io/group: gatewy")
    found = [str(p).partition(" ")[0] for p in check(text, kinds).problems if "selects no pod" in p.message]
    selecting = [
        each["kind"] for each in yaml.safe_load_all(text) if "gatewy" in yaml.safe_dump(each.get("spec", {}))
    ]
    assert sorted(selecting) == ["NetworkPolicy", "PodDisruptionBudget", "PodMonitor", "Service"]
    assert len(set(found)) == len(selecting)


@pytest.mark.parametrize(
    "objects",
    [
        pytest.param((service("app: elsewhere", 1),), id="pods that are in no file"),
        pytest.param((REDIS, service("app: redis", 6379)), id="a Deployment's pods"),
        pytest.param((REDIS, service("app: redis", "redis")), id="a Deployment's port by name"),
        pytest.param((SILENT, service("app: redis", 9999)), id="pods that declare no port"),
        pytest.param((SIDECAR, service("app: redis", 6380)), id="a container that runs beside"),
        pytest.param((service("ray.io/cluster: any, ray.io/group: gateway"),), id="a label of a running pod"),
        pytest.param((service("app.kubernetes.io/name: kuberay", 52365),), id="a port that Ray always has"),
    ],
)
def test_objects_that_find_their_pods_pass(objects: tuple[str, ...], kinds: Kinds) -> None:
    assert check(added(*objects), kinds).problems == ()


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        pytest.param((REDIS, service("app: redis", 6380)), "has the port 6380: they have 6379", id="number"),
        pytest.param((REDIS, service("app: redis", "rdis")), 'did you mean "redis"?', id="name"),
        pytest.param((SILENT, service("app: redis", "redis")), 'has a port named "redis"', id="none"),
        pytest.param((REDIS, service("app: rediss", 6379)), '(did you mean "redis"?)', id="selector"),
    ],
)  # fmt: skip
def test_a_slip_beside_a_deployment_is_named(objects: tuple[str, ...], message: str, kinds: Kinds) -> None:
    found = check(added(*objects), kinds).problems
    assert len(found) == 1 and message in found[0].message


def test_the_port_that_kuberay_adds_need_not_be_declared(kinds: Kinds) -> None:
    text, count = re.subn(r" +- name: metrics\n +containerPort: 8080\n", "", clean())
    text = re.sub(r" +ports:\n( +resources:\n)", r"\1", text)
    assert (count, check(text, kinds).problems) == (4, ())


def test_gateways_that_declare_no_port_may_listen_on_any(kinds: Kinds) -> None:
    declared = "                  - name: http\n                    containerPort: 8000\n"
    metrics = (
        "                ports:\n                  - name: metrics\n                    containerPort: 8080\n"
    )
    assert metrics + declared in clean()
    text = clean().replace(metrics + declared, "").replace("targetPort: http", "targetPort: 9999")
    assert not [p for p in check(text, kinds).problems if "has the port" in p.message]


@pytest.mark.parametrize(
    ("expression", "holds"),
    [
        ({"key": "a", "operator": "In", "values": ["1", "2"]}, True),
        ({"key": "a", "operator": "In", "values": ["2"]}, False),
        ({"key": "a", "operator": "NotIn", "values": ["1"]}, False),
        ({"key": "b", "operator": "NotIn", "values": ["1"]}, True),
        ({"key": "a", "operator": "Exists"}, True),
        ({"key": "b", "operator": "Exists"}, False),
        ({"key": "a", "operator": "DoesNotExist"}, False),
        ({"key": "b", "operator": "DoesNotExist"}, True),
        ({"key": "later", "operator": "In", "values": ["x"]}, True),
    ],
)
def test_an_expression_selects_as_in_kubernetes(expression: dict[str, object], holds: bool) -> None:
    assert selects(requirements({"matchExpressions": [expression]}), {"a": "1", "later": None}) is holds
