"""Everything that is rendered, applied to a real API server with kubectl: the commands of the docs."""

from __future__ import annotations

from pathlib import Path
from shutil import which

import pytest
import yaml

from cluster.config import load
from k8s.render import objects
from k8s.yaml_text import dump_all
from tests.k8s.servers import Server
from tests.k8s.trees import OVERLAYS, built

pytestmark = [
    pytest.mark.apiserver,
    pytest.mark.skipif(which("kubectl") is None, reason="needs kubectl on the PATH"),
]
ABSENT = {"PodDisruptionBudget", "PodMonitor", "PrometheusRule", "Issuer", "Certificate"}
"""Kinds that this server does not have: policy/v1 came later, the others are the Prometheus operator's and
cert-manager's."""


def known(text: str, server: Server) -> str:
    absent = ABSENT if server.ray else ABSENT | {"RayService"}
    return dump_all(each for each in yaml.safe_load_all(text) if each["kind"] not in absent)


def apply(server: Server, home: Path, text: str) -> str:
    path = home / "m.yaml"
    path.write_text(text)
    done = server.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(path), home=home)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_applies(overlay: str, real_server: Server, tmp_path: Path) -> None:
    out = apply(real_server, tmp_path, known(built(overlay), real_server))
    assert "pool.tandem.dev/decode serverside-applied" in out


def test_applying_again_resizes_nothing(real_server: Server, tmp_path: Path) -> None:
    config = load(None, {"kubernetes.namespace": "again"})
    text = known(dump_all(objects(config)), real_server)
    apply(real_server, tmp_path, text)
    scaled = real_server.kubectl("scale", "tpool/decode", "--replicas=5", "-n", "again", home=tmp_path)
    assert scaled.returncode == 0, scaled.stderr
    apply(real_server, tmp_path, text)
    found = real_server.api.get("/apis/tandem.dev/v1alpha1/namespaces/again/pools/decode")
    assert found["spec"]["replicas"] == 5


def test_applying_again_brings_its_own_bounds_back_where_others_have_changed_them(
    real_server: Server, tmp_path: Path
) -> None:
    config = load(None, {"kubernetes.namespace": "owned"})
    (pool,) = (e for e in objects(config) if e["kind"] == "Pool" and e["spec"]["role"] == "decode")
    apply(real_server, tmp_path, known(dump_all(objects(config)), real_server))
    for more in (
        ("scale", "tpool/decode", "--replicas=5"),
        ("patch", "tpool", "decode", "--type", "merge", "-p", '{"spec":{"maxReplicas":8}}'),
    ):
        done = real_server.kubectl(*more, "-n", "owned", home=tmp_path)
        assert done.returncode == 0, done.stderr
    path = tmp_path / "again.yaml"
    path.write_text(dump_all([pool]))
    plain = real_server.kubectl("apply", "--server-side", "-f", str(path), home=tmp_path)
    assert plain.returncode != 0 and "conflict" in plain.stderr, "it is for this that conflicts are forced"
    apply(real_server, tmp_path, dump_all([pool]))
    found = real_server.api.get("/apis/tandem.dev/v1alpha1/namespaces/owned/pools/decode")["spec"]
    assert (found["replicas"], found["maxReplicas"]) == (5, 64)


def test_kubectl_get_shows_the_columns(real_server: Server, tmp_path: Path) -> None:
    config = load(None, {"kubernetes.namespace": "columns"})
    apply(real_server, tmp_path, known(dump_all(objects(config)), real_server))
    done = real_server.kubectl("get", "tpool", "-n", "columns", home=tmp_path)
    assert done.stdout.split()[:5] == ["NAME", "ROLE", "DESIRED", "READY", "AGE"]


def test_a_mismatch_of_the_current_size_is_refused(real_server: Server, tmp_path: Path) -> None:
    config = load(None, {"kubernetes.namespace": "mismatch"})
    apply(real_server, tmp_path, known(dump_all(objects(config)), real_server))
    done = real_server.kubectl(
        *("scale", "tpool/decode", "--current-replicas=4", "--replicas=5", "-n", "mismatch"), home=tmp_path
    )
    assert done.returncode == 1


def test_a_horizontal_pod_autoscaler_may_name_a_pool(real_server: Server, tmp_path: Path) -> None:
    config = load(None, {"kubernetes.namespace": "hpa"})
    apply(real_server, tmp_path, known(dump_all(objects(config)), real_server))
    target = {"apiVersion": "tandem.dev/v1alpha1", "kind": "Pool", "name": "decode"}
    autoscaler = {
        "apiVersion": "autoscaling/v1",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "decode", "namespace": "hpa"},
        "spec": {"scaleTargetRef": target, "minReplicas": 1, "maxReplicas": 8},
    }
    assert "decode" in apply(real_server, tmp_path, dump_all([autoscaler]))
