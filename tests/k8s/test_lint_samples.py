"""KubeRay's own samples have no problem but those for which they are rightly refused.

TANDEM_KUBERAY_SAMPLES names their folder, `ray-operator/config/samples` of a checkout, which is no part of
this repository. What is beside the RayClusters and RayServices there is held to the rules of its kind.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from k8s.checks.kinds import RAY_KINDS, Kinds
from k8s.lint import lint

SAMPLES = "TANDEM_KUBERAY_SAMPLES"

REFUSED = {
    r"^  ttlSeconds:": "spec.ttlSeconds: unknown field",
    r"^  enableMTLS:": "spec.enableMTLS: unknown field",
    r"^  mTLSOptions:": "spec.mTLSOptions: unknown field",
    r"^  networkIsolation:": "spec.networkIsolation: unknown field",
    r"^  podFQDN:": "spec.podFQDN: unknown field",
    r"^  idleTerminationOptions:": "spec.idleTerminationOptions: unknown field",
    r"^ +max_concurrent_queries:": 'did you mean "max_ongoing_requests"?',
    r"^  name: raycluster-custom-head-service\.yaml$": "is no DNS label",
    r"^( +)metadata:\n\1spec:": "expected a mapping, got null",
}
"""What a sample has that KubeRay 1.7.0 or Ray Serve refuses, and what must be said of it.

Fields that KubeRay had before 1.7.0 or has since; a key that Ray Serve has renamed; a dot in a cluster's
name; a null where a mapping belongs.
"""


def files() -> list[Path]:
    return sorted(Path(os.environ[SAMPLES]).rglob("*.yaml")) if os.environ.get(SAMPLES) else []


def unexplained(text: str, kinds: Kinds) -> list[str]:
    """Problems that are not to be there, and the words of those that are to be there and are not."""
    said = [str(problem).splitlines()[0] for problem in lint([(text, "sample.yaml")], kinds).problems]
    wanted = [words for reason, words in REFUSED.items() if re.search(reason, text, re.MULTILINE)]
    surplus = [each for each in said if not any(words in each for words in wanted)]
    return surplus + [words for words in wanted if not any(words in each for each in said)]


@pytest.fixture
def samples() -> list[Path]:
    if not os.environ.get(SAMPLES):
        pytest.skip(f"{SAMPLES} names no folder: KubeRay's own samples are not linted")
    return files()


def test_the_folder_has_samples_of_both_kinds(samples: list[Path]) -> None:
    held = {kind for path in samples for kind in RAY_KINDS if f"\nkind: {kind}\n" in path.read_text()}
    assert held == set(RAY_KINDS)


@pytest.mark.parametrize(
    "number", range(max(1, len(files()))), ids=[path.name for path in files()] or ["none"]
)
def test_a_sample_has_no_problem_that_is_not_known(
    number: int, samples: list[Path], all_kinds: Kinds
) -> None:
    path = samples[number]
    assert unexplained(path.read_text(encoding="utf-8"), all_kinds) == [], path.name


CLUSTER = """apiVersion: ray.io/v1
kind: RayCluster
metadata:
  name: {name}
spec:
  rayVersion: '2.60.0'
  headGroupSpec:
    template: {{spec: {{containers: [{{name: ray-head, image: "rayproject/ray:2.60.0"}}]}}}}
  workerGroupSpecs:
    - groupName: crew
      minReplicas: 1
      maxReplicas: {most}
      template: {{spec: {{containers: [{{name: ray-worker, image: "rayproject/ray:2.60.0"}}]}}}}
"""
OTHER = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  ttlSeconds: '1'\n"
KNOWN = "raycluster-custom-head-service.yaml"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        pytest.param(CLUSTER.format(name="a", most=1), [], id="clean"),
        pytest.param(CLUSTER.format(name=KNOWN, most=1), [], id="refused for what is known"),
        pytest.param(CLUSTER.format(name=KNOWN, most=0), ["0 is below minReplicas 1"], id="and for more"),
        pytest.param(
            CLUSTER.format(name="a", most=1) + OTHER,
            ["spec.ttlSeconds: unknown field"],
            id="not refused for what is known",
        ),
    ],
)
def test_the_list_explains_what_it_names_and_no_more(text: str, left: list[str], kinds: Kinds) -> None:
    found = unexplained(text, kinds)
    assert len(found) == len(left) and all(words in each for words, each in zip(left, found, strict=True))
