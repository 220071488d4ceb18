"""The rules that KubeRay's operator has beyond its schema: each planted mistake is named where it stands."""

from __future__ import annotations

import pytest

from k8s.checks.kinds import Kinds
from tests.k8s.mistakes import DECODE, Mistake, assert_named

SPEC = "  rayClusterConfig:\n"
VERSION = "    rayVersion:"
REDIS = f"    gcsFaultToleranceOptions:\n      redisAddress: redis:6379\n{VERSION}"
TLS = f"    tlsOptions:\n      enabled: true\n{VERSION}"


def steps(surge: int = 10, step: int = 10, interval: int = 5, gateway: str = "gatewayClassName: x") -> str:
    """An upgrade in steps, to stand for another kind of upgrade."""
    return (
        "    type: NewClusterWithIncrementalUpgrade\n    clusterUpgradeOptions:\n"
        f"      maxSurgePercent: {surge}\n      stepSizePercent: {step}\n      intervalSeconds: {interval}\n"
        f"      {gateway}\n"
    )


MISTAKES = {
    "name that is too long": Mistake(
        "kind: RayService\nmetadata:\n  name: tandem\n",
        f"kind: RayService\nmetadata:\n  name: tandem-{'x' * 48}\n",
        "at most 47 characters",
        f"  name: tandem-{'x' * 48}",
    ),
    "name that is no label": Mistake(
        "kind: RayService\nmetadata:\n  name: tandem\n",
        "kind: RayService\nmetadata:\n  name: 2tandem\n",
        "is no DNS label",
        "  name: 2tandem",
    ),
    "two groups of one name": Mistake(DECODE, "groupName: prefill #", 'another group named "prefill"'),
    "a group without a container": Mistake(
        "            containers:\n",
        "            initContainers:\n",
        "has no container",
        "          spec:\n",
        DECODE,
    ),
    "a container before Ray's": Mistake(
        "            containers:\n",
        "            containers:\n              - name: proxy\n                image: proxy:1\n",
        "the Ray container must be the first one",
        "              - name: proxy",
        DECODE,
    ),
    "resources given twice": Mistake(
        "resources:\n          decode: '1'\n",
        "rayStartParams:\n          num-cpus: '1'\n        resources:\n          decode: '1'\n",
        "give one of them",
        "          num-cpus: '1'",
    ),
    "labels for ray start": Mistake(
        f"{DECODE}\n",
        f"{DECODE}\n        rayStartParams:\n          labels: a=b\n",
        "use `labels`",
        "labels: a=b",
    ),
    "label that is none": Mistake(
        f"{DECODE}\n", f"{DECODE}\n        labels:\n          zone: a b\n", "is no label value", "zone: a b"
    ),
    "label without a name": Mistake(
        f"{DECODE}\n",
        f"{DECODE}\n        labels:\n          a b: zone\n",
        '"a b" is no label name',
        "          a b: zone",
    ),
    "bounds upside down": Mistake(
        "maxReplicas: 64", "maxReplicas: 0", "0 is below minReplicas 1", after=DECODE
    ),
    "fewer pods than none": Mistake("minReplicas: 1", "minReplicas: -1", "must be at least 0", after=DECODE),
    "restart policy": Mistake(
        "          spec:\n            containers:",
        "          spec:\n            restartPolicy: Always\n            containers:",
        "autoscaler v2 wants Never",
        "            restartPolicy: Always",
        after=DECODE,
    ),
    "autoscaler named twice": Mistake(
        "              env:\n",
        "              env:\n                - name: RAY_enable_autoscaler_v2\n",
        "leave this variable out",
        "                - name: RAY_enable_autoscaler_v2",
        after="headGroupSpec",
    ),
    "redis by hand": Mistake(
        VERSION,
        REDIS,
        "the operator's to set",
        "- name: RAY_REDIS_ADDRESS",
        also=("name: TANDEM_CACHE__DIRECTORY", "name: RAY_REDIS_ADDRESS"),
    ),
    "redis said twice": Mistake(
        VERSION,
        REDIS,
        "leave this annotation out",
        "ray.io/ft-enabled",
        also=("ray.io/initializing-timeout: 30m", "ray.io/ft-enabled: 'true'"),
        after="kind: RayService",
    ),
    "redis's password for ray start": Mistake(
        VERSION,
        REDIS,
        "use gcsFaultToleranceOptions.redisPassword instead",
        "        redis-password: x",
        also=("        dashboard-host:", "        redis-password: x\n        dashboard-host:"),
    ),
    "redis against its annotation": Mistake(
        "ray.io/initializing-timeout: 30m",
        "ray.io/ft-enabled: 'false'",
        "contradicts the annotation ray.io/ft-enabled: false",
        "- name: RAY_REDIS_ADDRESS",
        also=("name: TANDEM_CACHE__DIRECTORY", "name: RAY_REDIS_ADDRESS"),
        after="kind: RayService",
    ),
    "certificates by hand": Mistake(
        VERSION,
        TLS,
        "RAY_USE_TLS is the operator's",
        "- name: RAY_USE_TLS",
        also=("name: TANDEM_CACHE__DIRECTORY", "name: RAY_USE_TLS"),
    ),
    "certificates mounted by hand": Mistake(
        VERSION,
        TLS,
        "/etc/ray/tls is the operator's",
        "                - name: cache\n                  mountPath: /etc/ray/tls",
        also=("mountPath: /var/cache/tandem", "mountPath: /etc/ray/tls"),
    ),
    "tokens before their time": Mistake(
        "rayVersion: 2.60.0", "rayVersion: 2.51.0", "at least 2.52", "mode: token"
    ),
    "tokens of Kubernetes": Mistake(
        "      mode: token\n",
        "      mode: token\n      enableK8sTokenAuth: true\n",
        "cannot use tokens of Kubernetes",
        "      enableK8sTokenAuth: true",
    ),
    "policy for a group that is none": Mistake(
        SPEC,
        SPEC + "    networkPolicy:\n      workerGroups:\n        - groupName: encode\n",
        'no group named "encode"',
        "        - groupName: encode",
    ),
    "policy that opens what is open": Mistake(
        SPEC,
        SPEC + "    networkPolicy:\n      mode: DenyAllIngress\n      head:\n        egressRules: []\n",
        "restricts nothing",
        "        egressRules: []",
    ),
    "policy that lets in whom nobody keeps out": Mistake(
        SPEC,
        SPEC + "    networkPolicy:\n      mode: DenyAllEgress\n      worker:\n        ingressRules: []\n",
        "the mode DenyAllEgress restricts nothing that ingressRules could open",
        "        ingressRules: []",
    ),
    "upgrade of an unknown kind": Mistake("type: NewCluster", "type: Rolling", "expected one of NewCluster"),
    "steps above the surge": Mistake(
        "    type: NewCluster\n",
        steps(surge=10, step=20),
        "must be 1 to maxSurgePercent, which is 10",
        "      stepSizePercent: 20",
    ),
    "surge above all": Mistake(
        "    type: NewCluster\n", steps(surge=101), "must be 0 to 100", "      maxSurgePercent: 101"
    ),
    "no time between steps": Mistake(
        "    type: NewCluster\n", steps(interval=0), "must be above 0", "      intervalSeconds: 0"
    ),
    "steps through no gateway": Mistake(
        "    type: NewCluster\n",
        steps(gateway="gatewayClassName: ''"),
        "is missing: name a GatewayClass",
        "      gatewayClassName: ''",
    ),
    "steps without an autoscaler": Mistake(
        "    type: NewCluster\n",
        steps(),
        "an incremental upgrade needs enableInTreeAutoscaling: true",
        also=("enableInTreeAutoscaling: true", "enableInTreeAutoscaling: false"),
    ),
    "a name for the head's Service": Mistake(
        "    headGroupSpec:\n",
        "    headGroupSpec:\n      headService:\n        metadata:\n          name: mine\n",
        "leave it out",
        "          name: mine",
    ),
    "RayService without what Serve runs": Mistake(
        "  serveConfigV2:", "  serveConfigV3:", 'is missing, did you write "serveConfigV3" for it?'
    ),
    "RayService that runs nothing": Mistake(
        "  serveConfigV2: |",
        "  other: |",
        "serveConfigV2 is missing: it says what Ray Serve runs",
        "spec:",
        "kind: RayService",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_is_named_at_its_line(name: str, kinds: Kinds) -> None:
    assert_named(MISTAKES[name], kinds)
