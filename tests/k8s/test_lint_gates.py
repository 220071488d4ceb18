"""Alpha feature gates of KubeRay: the base needs none, and what needs one says so in its first line."""

from __future__ import annotations

from pathlib import Path
from shutil import which

import pytest

from cluster.config import Config
from k8s.checks.kinds import Kinds
from k8s.lint import lint_paths
from k8s.render import write
from tests.k8s.mistakes import Mistake, assert_named, check

VERSION = "    rayVersion:"


def added(field: str, gate: str) -> Mistake:
    """A field of the cluster that needs a gate."""
    return Mistake(
        VERSION, f"    {field}\n{VERSION}", f"needs KubeRay's alpha feature gate {gate}, which is off"
    )


MISTAKES = {
    "KubeRay's certificates": added("tlsOptions: {enabled: true}", "RayClusterMTLS"),
    "KubeRay's certificates, not enabled": added("tlsOptions: {}", "RayClusterMTLS"),
    "KubeRay's network policy": added("networkPolicy: {mode: DenyAll}", "RayClusterNetworkPolicy"),
    "a history server": added("historyServerOptions: {collectorOptions: {}}", "RayClusterHistoryServer"),
    "the head's state on a disk": Mistake(
        VERSION,
        f"    gcsFaultToleranceOptions:\n      backend: rocksdb\n{VERSION}",
        "needs KubeRay's alpha feature gate GCSFaultToleranceEmbeddedStorage, which is off",
        "      backend: rocksdb",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_field_that_needs_a_gate_is_named_at_its_line(name: str, kinds: Kinds) -> None:
    assert_named(MISTAKES[name], kinds)


@pytest.mark.parametrize(
    ("first", "passes"),
    [
        ("# Needs RayClusterMTLS=true.\n", True),
        ("# Needs RayClusterNetworkPolicy=true.\n", False),
        ("---\n# Needs RayClusterMTLS=true.\n", False),
    ],
)
def test_a_file_may_name_the_gate_in_its_first_line(first: str, passes: bool, kinds: Kinds) -> None:
    text, _ = MISTAKES["KubeRay's certificates"].planted()
    found = [each for each in check(first + text, kinds).problems if "alpha feature gate" in each.message]
    assert len(found) == (0 if passes else 1)


@pytest.mark.skipif(
    which("kubectl") is None and which("kustomize") is None, reason="needs kubectl or kustomize"
)
@pytest.mark.parametrize("said", [True, False])
def test_an_overlay_names_the_gate_in_its_kustomization(said: bool, tmp_path: Path, kinds: Kinds) -> None:
    write(Config(), tmp_path)
    folder = tmp_path / "overlays" / "mtls"
    own = folder / "kustomization.yaml"
    first, _, rest = own.read_text().partition("\n")
    assert "RayClusterMTLS" in first
    own.write_text(f"{first}\n{rest}" if said else rest)
    found = [str(problem).partition(": needs")[0] for problem in lint_paths([folder], kinds).problems]
    place = f"{folder}/rayservice.yaml:8:5: RayService/tandem: spec.rayClusterConfig.tlsOptions"
    assert found == ([] if said else [place])
