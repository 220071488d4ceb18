"""docs/kubernetes.md is walked: each kubectl line of the page, in its order, as a shell runs it.

A real API server executes what needs no more than one. Where a controller of the cluster or KubeRay would act
in the meantime, the test acts in its place; it says so in STAND_INS. What neither can do is in OUT_OF_REACH.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cluster.config import Config
from engine.errors import NotFound
from k8s import paths
from k8s.render import objects
from tests.k8s import servers
from tests.k8s.servers import Server
from tests.k8s.test_apply import ABSENT
from tests.k8s.test_docs import PAGE, commands
from tests.k8s.trees import command_line

pytestmark = pytest.mark.skipif(which("kubectl") is None, reason="needs kubectl on the PATH")

NAMESPACE = "tandem"
LIMIT = 60.0
"""Seconds that a line may take."""

FORWARD = "a kubelet carries a forwarded port, and there is no pod that it could lead to"
OUT_OF_REACH = {
    "kubectl port-forward -n tandem service/tandem-gateway 8000:80": FORWARD,
    "kubectl port-forward -n tandem service/tandem-head-svc 8002:8002": FORWARD,
}
"""Lines that no API server alone can carry out, each with the reason."""

NO_APPLY = "the fake has no server-side apply: what the line applies is created by the test"
PROTOBUF = "kubectl sends it as protobuf, which the fake does not read"
SECRET = next(line for line in commands("kubectl create secret"))
NOT_OF_THE_FAKE = {
    "kubectl create namespace tandem": PROTOBUF,
    SECRET: PROTOBUF,
    "kubectl apply --server-side --force-conflicts -f manifests/crds": "the fake knows Pools from its start",
    "kubectl wait --for=condition=Established crd/pools.tandem.dev": "the fake has no definitions of kinds",
    "kubectl apply --server-side --force-conflicts -k manifests/base": NO_APPLY,
    "kubectl wait -n tandem --for=condition=Ready rayservice/tandem --timeout=15m": "the fake does not list "
    "KubeRay's kinds for kubectl",
    "kubectl delete rayservice tandem -n tandem": "the fake does not list KubeRay's kinds for kubectl",
    "kubectl delete namespace tandem": "the fake does not list namespaces for kubectl",
    "kubectl delete crd pools.tandem.dev": "the fake has no definitions of kinds",
}
WATCHES = {"kubectl get tpool -n tandem -w"}
"""Lines that go on until Ctrl-C."""

LATER_KINDS = ("pdb.yaml", "podmonitor.yaml", "prometheusrule.yaml")
"""Files of the base whose kinds the old API server does not have: see ABSENT in test_apply.py."""

KUBECTL = commands("kubectl")


@dataclass
class Walk:
    """Types lines at a server, in a folder of its own."""

    server: Server
    folder: Path

    def __post_init__(self) -> None:
        values = {"CONTROL_TOKEN": "c0", "METRICS_TOKEN": "e0", "ADMIN_TOKEN": "d0", "API_KEY": "a0"}
        self.environment = {**self.server.kubeconfig(self.folder), **values}

    def type(self, line: str) -> str:
        """What it prints. A stand-in acts while it runs."""
        process = subprocess.Popen(
            ["bash", "-c", line], cwd=self.folder, env=self.environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            if line in STAND_INS:
                STAND_INS[line](self)
            out, errors = process.communicate(timeout=LIMIT)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 0, (line, out, errors)
        return out

    def watch(self, line: str) -> str:
        """The first lines that it prints; it is ended then."""
        process = subprocess.Popen(
            shlex.split(line), cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, text=True
        )
        with process:
            assert process.stdout is not None
            found = ""
            for text in process.stdout:
                found += text
                if "prefill" in text:
                    break
            assert process.poll() is None, "a watch goes on"
            process.terminate()
        return found

    def pool(self) -> dict[str, Any]:
        return self.server.api.get(paths.pool(NAMESPACE, "decode"))

    def gone(self, path: str) -> bool:
        try:
            self.server.api.get(path)
        except NotFound:
            return True
        return False


def be_kuberay(walk: Walk) -> None:
    """Says that the RayService is ready."""
    condition = {
        "type": "Ready", "status": "True", "reason": "NonZeroServeEndpoints", "message": "it serves",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    path = f"{paths.ray(NAMESPACE, 'RayService', 'tandem')}/status"
    walk.server.api.merge(path, {"status": {"conditions": [condition]}})


def be_the_namespace_controller(walk: Walk) -> None:
    """Lets a namespace that is being deleted go."""
    path, api = f"/api/v1/namespaces/{NAMESPACE}", walk.server.api
    found = api.get(path)
    while "deletionTimestamp" not in found["metadata"]:
        version = found["metadata"]["resourceVersion"]
        events = api.watch("/api/v1/namespaces", version, int(LIMIT))
        found = next(each["object"] for each in events if each["object"]["metadata"]["name"] == NAMESPACE)
    api.replace(f"{path}/finalize", {**found, "spec": {"finalizers": []}})


STAND_INS: dict[str, Callable[[Walk], None]] = {
    "kubectl wait -n tandem --for=condition=Ready rayservice/tandem --timeout=15m": be_kuberay,
    "kubectl delete namespace tandem": be_the_namespace_controller,
}

SWITCH = 'patch tpool decode -n tandem --type merge -p \'{"spec":{"autoscale"'
RAY_SERVICE = paths.ray(NAMESPACE, "RayService", "tandem")
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
EFFECTS: dict[str, Callable[[Walk, str], bool]] = {
    "create namespace": lambda walk, _: not walk.gone(f"/api/v1/namespaces/{NAMESPACE}"),
    "create secret": lambda walk, _: (
        set(_secret(walk)) == {"control-token", "metrics-token", "admin-token", "api-keys"}
    ),
    "apply --server-side --force-conflicts -f": lambda walk, _: (
        not walk.gone(f"{DEFINITIONS}/pools.tandem.dev")
    ),
    "apply --server-side --force-conflicts -k": lambda walk, _: walk.pool()["spec"]["role"] == "decode",
    "wait --for=condition=Established": lambda _, out: "condition met" in out,
    "wait -n tandem": lambda _, out: "rayservice.ray.io/tandem condition met" in out,
    "get tpool": lambda _, out: "decode" in out and "prefill" in out,
    "scale": lambda walk, _: walk.pool()["spec"]["replicas"] == 4,
    "patch": lambda walk, _: walk.pool()["spec"]["maxReplicas"] == 8,
    SWITCH: lambda walk, _: walk.pool()["spec"]["autoscale"] is True,
    "describe": lambda _, out: "decode" in out and "Max Replicas:  8" in out,
    "delete tpool": lambda walk, _: walk.server.api.get(paths.pools(NAMESPACE))["items"] == [],
    "delete rayservice": lambda walk, _: walk.gone(RAY_SERVICE),
    "delete namespace": lambda walk, _: walk.gone(f"/api/v1/namespaces/{NAMESPACE}"),
    "delete crd": lambda walk, _: walk.gone(f"{DEFINITIONS}/pools.tandem.dev"),
}
"""By how a line begins: whether it has done what it is for, seen past kubectl or in what it printed."""


def _secret(walk: Walk) -> list[str]:
    return list(walk.server.api.get(f"/api/v1/namespaces/{NAMESPACE}/secrets/tandem-secrets")["data"])


def walked(walk: Walk, left_out: set[str]) -> list[str]:
    """Types every line but those, and looks at what came of it."""
    typed = []
    for line in KUBECTL:
        if line in left_out:
            continue
        out = walk.watch(line) if line in WATCHES else walk.type(line)
        begins = [begin for begin in EFFECTS if line.removeprefix("kubectl ").startswith(begin)]
        assert begins, f"what is {line!r} for?"
        assert EFFECTS[max(begins, key=len)](walk, out), (line, out)
        typed.append(line)
    return typed


def render(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Types the page's own line that makes `manifests`."""
    monkeypatch.chdir(folder)
    (folder / "tandem.yaml").write_text("kubernetes:\n  name: tandem\n")
    (line,) = commands("tandem k8s render")
    done = CliRunner().invoke(command_line(), shlex.split(line)[1:])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("table", [OUT_OF_REACH, NOT_OF_THE_FAKE, dict.fromkeys(WATCHES), STAND_INS])
def test_the_tables_hold_only_lines_of_the_page(table: dict[str, object]) -> None:
    assert set(table) - set(KUBECTL) == set()


def test_every_command_of_the_page_is_in_a_block() -> None:
    prose = PAGE.split("```")[::2]
    inline = [word for text in prose for word in text.split("`")[1::2] if word.startswith("kubectl ")]
    assert [word for word in inline if word not in {"kubectl scale", "kubectl get"} and "…" not in word] == [
        "kubectl apply -k"
    ]


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory, kuberay: Path) -> Iterator[Server]:
    """A real one that does not know Pools yet: the page defines them, and takes them away."""
    with servers.real(servers.binary(), tmp_path_factory.mktemp("apiserver"), pools=False) as server:
        yield server


@pytest.mark.apiserver
def test_a_real_api_server_carries_the_page_out(
    own_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    render(tmp_path, monkeypatch)
    file = tmp_path / "manifests/base/kustomization.yaml"
    kustomization = yaml.safe_load(file.read_text())
    kinds = {
        each["kind"] for name in LATER_KINDS for each in yaml.safe_load_all((file.parent / name).read_text())
    }
    assert kinds <= ABSENT
    kustomization["resources"] = [each for each in kustomization["resources"] if each not in LATER_KINDS]
    file.write_text(yaml.safe_dump(kustomization))
    walk = Walk(own_server, tmp_path)
    assert [*walked(walk, set(OUT_OF_REACH))] == [line for line in KUBECTL if line not in OUT_OF_REACH]


@pytest.mark.apiserver
def test_tandem_s_own_apply_misses_only_kinds_that_the_server_lacks(
    own_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (line,) = (word for word in PAGE.split("`") if word.startswith("tandem k8s apply"))
    (tmp_path / "tandem.yaml").write_text("kubernetes:\n  namespace: applied\n")
    walk = Walk(own_server, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", walk.environment["KUBECONFIG"])
    done = CliRunner().invoke(command_line(), shlex.split(line)[1:])
    out, errors = capfd.readouterr()
    missed = set(re.findall(r'no matches for kind "(\w+)"', errors))
    assert (done.exit_code, missed) == (1, {"PodDisruptionBudget", "PodMonitor", "PrometheusRule"}), errors
    for each in ("rayservice.ray.io/tandem", "pool.tandem.dev/decode", "deployment.apps/tandem-operator"):
        assert f"{each} serverside-applied" in out
    wait = "kubectl wait -n applied --for=condition=Ready rayservice/tandem --timeout=1s"
    with pytest.raises(AssertionError, match="timed out"):
        walk.type(wait)  # nobody has made it ready: the wait of the walk is no empty one


def test_the_fake_api_server_carries_out_what_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    render(tmp_path, monkeypatch)
    with servers.fake() as server:
        walk = Walk(server, tmp_path)
        for each in objects(Config()):
            if each["kind"] == "Pool":
                server.api.create(paths.pools(NAMESPACE), each)
        left_out = {*OUT_OF_REACH, *NOT_OF_THE_FAKE}
        typed = walked(walk, left_out)
    assert typed == [line for line in KUBECTL if line not in left_out] and len(typed) >= 6
