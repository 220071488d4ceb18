"""`tandem k8s lint`: our own manifests are clean, and each planted mistake is named where it stands."""

from __future__ import annotations

import json
import time
from pathlib import Path
from shutil import which

import pytest
from typer.testing import CliRunner

from cluster.config import Config
from cluster.config_yaml import Mark
from engine.errors import SetupError
from k8s.checks.kinds import Kinds
from k8s.lint import lint_paths, texts
from k8s.render import write
from tests.k8s.mistakes import DECODE, Mistake, assert_named, check, clean
from tests.k8s.trees import OVERLAYS, command_line

SHIPPED = Path(__file__).parents[2] / "k8s" / "overlays"
ITSELF = "- podSelector:\n            matchLabels:\n              tandem.dev/cluster: "

OURS = {
    "duplicate key": Mistake(
        "  replicas: 1\n",
        "  replicas: 1\n  replicas: 2\n",
        "given twice",
        "  replicas: 2",
        "kind: Deployment",
    ),
    "not YAML": Mistake("kind: Namespace", "kind: [Namespace", "not valid YAML", "metadata:"),
    "no kind": Mistake("kind: Namespace\n", "", "kind is missing", "apiVersion: v1"),
    "unknown field of a core kind": Mistake(
        "minAvailable: 1", "minAvailble: 1", 'unknown field, did you mean "minAvailable"?'
    ),
    "wrong type in a core kind": Mistake(
        "automountServiceAccountToken: false", "automountServiceAccountToken: 'no'", "expected true or false"
    ),
    "missing field of a core kind": Mistake(
        "roleRef:\n  apiGroup: rbac.authorization.k8s.io\n  kind: Role\n  name: tandem-operator\n",
        "",
        '"roleRef" is missing',
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding",
    ),
    "unknown field of a Pool": Mistake("minReplicas: 1", "minReplica: 1", "did you mean", after="kind: Pool"),
    "wrong form in a core kind": Mistake(
        "minAvailable: 1", "minAvailable: [1]", "matches none of the forms that are allowed here"
    ),
    "bounds of a Pool below none": Mistake(
        "minReplicas: 1", "minReplicas: -1", "-1 is less than the minimum of", after="kind: Pool"
    ),
    "role that is none": Mistake("role: decode", "role: decoder", "expected one of prefill, decode"),
    "unknown field of a PodMonitor": Mistake("honorLabels: true", "honourLabels: true", "did you mean"),
    "unknown key for Serve": Mistake(
        "    proxy_location:", "    proxy_locaton:", 'did you mean "proxy_location"?'
    ),
    "unknown setting": Mistake("gateway.host: 0.0.0.0", "gateway.hots: 0.0.0.0", 'did you mean "host"?'),
    "setting of a wrong type": Mistake("control.port: 8002", "control.port: two", "expected integer"),
    "loopback address": Mistake(
        "control.host: 0.0.0.0", "control.host: 127.0.0.1", "cannot reach a loopback"
    ),
    "shared memory between pods": Mistake("transfer.transport: tcp", "transfer.transport: auto", "set tcp"),
    "a control port that is drawn": Mistake(
        "control.port: 8002", "control.port: 0", "the operator and `tandem` need a fixed port here"
    ),
    "resource that nobody offers": Mistake(
        "decode: 1\n",
        "decoder: 1\n",
        "no group offers the resource decoder",
        "          pools.decode.resources:",
    ),
    "another Ray in the image": Mistake(
        "tandem-serving:0.1.0-ray2.60.0",
        "tandem-serving:0.1.0-ray2.59.0",
        "the image has Ray 2.59.0",
        after=DECODE,
    ),
    "tag latest": Mistake(
        "tandem-serving:0.1.0-ray2.60.0", "tandem-serving:latest", "other than latest", after=DECODE
    ),
    "GPUs overcommitted": Mistake(
        "                  requests:\n",
        "                  requests:\n                    nvidia.com/gpu: '1'\n",
        "the request 1 is not the limit 2",
        "                    nvidia.com/gpu: '1'",
        after=DECODE,
        also=(
            "                  limits:\n",
            "                  limits:\n                    nvidia.com/gpu: '2'\n",
        ),
    ),
    "a GPU that nobody has": Mistake(
        "            decode: 1\n",
        "            decode: 1\n            GPU: 1\n",
        "no group offers the resource GPU",
        "          pools.decode.resources:",
    ),
    "too little time to drain": Mistake(
        "terminationGracePeriodSeconds: 90",
        "terminationGracePeriodSeconds: 60",
        "too short to drain",
        after=DECODE,
    ),
    "no drain before the end": Mistake(
        "preStop:", "postStart:", "without lifecycle.preStop", "lifecycle:", after=DECODE
    ),
    "root": Mistake(
        "runAsNonRoot: true", "runAsNonRoot: false", "set runAsNonRoot", "securityContext:", after=DECODE
    ),
    "root in the operator": Mistake(
        "runAsNonRoot: true",
        "runAsNonRoot: false",
        "set runAsNonRoot",
        "securityContext:",
        after="kind: Deployment",
    ),
    "root at the beginning": Mistake(
        "            containers:\n",
        "            initContainers:\n              - name: first\n                image: busybox:1.37\n"
        "            containers:\n",
        "set runAsNonRoot",
        "              - name: first",
        after=DECODE,
    ),
    "tag latest in the operator": Mistake(
        "tandem-serving:0.1.0-ray2.60.0",
        "tandem-serving:latest",
        "other than latest",
        after="kind: Deployment",
    ),
    "a Secret that the operator does not find": Mistake(
        "secretName: tandem-secrets",
        "secretName: tandem-secret",
        'no Secret or ConfigMap "tandem-secret"',
        after="kind: Deployment",
    ),
    "bounds that differ": Mistake(
        "maxReplicas: 64", "maxReplicas: 32", "they must be equal", after="kind: Pool"
    ),
    "a Pool of no group": Mistake(
        "groupName: decode\n",
        "groupName: decoder\n",
        "the RayService has no worker group decode",
        "  role: decode",
    ),
    "a Secret that is not there": Mistake(
        "name: tandem-secrets", "name: tandem-secret", 'no Secret or ConfigMap "tandem-secret"', after=DECODE
    ),
    "a port that is not there": Mistake(
        "port: as-metrics", "port: as-metric", "no selected pod has a port named"
    ),
    "a Service of no pod": Mistake(
        "    ray.io/group: gateway\n",
        "    ray.io/group: gateways\n",
        "selects no pod",
        "  selector:",
        after="kind: Service\n",
    ),
    "a Service of other pods": Mistake(
        "    ray.io/group: gateway\n",
        "",
        "selects pods that are no gateways",
        "  selector:",
        after="kind: Service\n",
    ),
    "a budget that nobody can count": Mistake(
        "minAvailable: 1", "maxUnavailable: 1", "has no scale to count it by, so that no node can be drained"
    ),
    "a budget of a share": Mistake(
        "minAvailable: 1", "minAvailable: 50%", "has no scale to count 50% by, so that no node can be drained"
    ),
    "a policy that parts the pools": Mistake(
        f"{ITSELF}tandem\n",
        f"{ITSELF}other\n",
        "closes head to head: allow all ports between",
        "  ingress:",
        after="kind: NetworkPolicy",
    ),
    "a policy that lets nobody out": Mistake(
        f"  egress:\n    - to:\n        {ITSELF}tandem\n",
        "  egress:\n",
        "keeps head from head: allow all ports between",
        after="kind: NetworkPolicy",
    ),
    "a policy that opens some ports between pods": Mistake(
        "              tandem.dev/cluster: tandem\n    - from:",
        "              tandem.dev/cluster: tandem\n      ports: [{port: 8002, protocol: TCP}]\n    - from:",
        "closes head to head: allow all ports between",
        "  ingress:",
        after="kind: NetworkPolicy",
    ),
    "a policy that keeps the operator out": Mistake(
        "              app.kubernetes.io/name: tandem-operator\n      ports:\n        - port: 8002",
        "              app.kubernetes.io/name: tandem-operator\n      ports:\n        - port: 8265",
        "keeps tandem's operator from the control port 8002",
        "  ingress:",
        after="kind: NetworkPolicy",
    ),
    "a policy that keeps the operator in": Mistake(
        "              ray.io/node-type: head\n      ports:\n        - port: 8002",
        "              ray.io/node-type: head\n      ports:\n        - port: 8265",
        "keeps tandem's operator from the control port 8002",
        "  egress:",
        after="  podSelector:\n    matchLabels:\n      app.kubernetes.io/name: tandem-operator",
    ),
}

KUBERAY = {
    "typo in a RayService": Mistake("enableInTreeAutoscaling:", "enableIntreeAutoscaling:", "did you mean"),
    "wrong type in a RayService": Mistake("replicas: 2", "replicas: two", "expected integer"),
    "typo deep in a pod": Mistake(
        "terminationGracePeriodSeconds:", "terminationGracePeriodSecond:", "did you mean", after=DECODE
    ),
    "unknown mode": Mistake("mode: token", "mode: tokens", "expected one of disabled, token"),
    "wrong form of a quantity": Mistake(
        "memory: 8Gi", "memory: 8Gig", "expected text of the form", after=DECODE
    ),
    "missing group name": Mistake(
        "      - groupName: decode\n        replicas: 2", "      - replicas: 2", '"groupName" is missing'
    ),
}


@pytest.mark.parametrize("name", OURS)
def test_a_planted_mistake_is_named_at_its_line(name: str, kinds: Kinds) -> None:
    assert_named(OURS[name], kinds)


@pytest.mark.parametrize("name", KUBERAY)
def test_a_mistake_against_kuberay_s_schema_is_named_at_its_line(name: str, all_kinds: Kinds) -> None:
    assert_named(KUBERAY[name], all_kinds)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(f"        {ITSELF}tandem\n", "        - namespaceSelector: {}\n", id="all namespaces"),
        pytest.param(f"    - from:\n        {ITSELF}tandem\n", "    - {}\n", id="everybody"),
        pytest.param(
            "tandem-operator\n      ports:\n        - port: 8002\n",
            "tandem-operator\n      ports:\n        - port: 8000\n          endPort: 8010\n",
            id="a range",
        ),
        pytest.param(
            "tandem-operator\n      ports:\n        - port: 8002\n",
            "tandem-operator\n      ports:\n        - port: control\n",
            id="a name",
        ),
        pytest.param("  policyTypes:\n    - Ingress\n    - Egress\n", "", id="types that are filled in"),
    ],
)
def test_a_policy_that_leaves_enough_open_has_no_problem(old: str, new: str, kinds: Kinds) -> None:
    start = clean().index("kind: NetworkPolicy")
    assert old in clean()[start:]
    assert check(clean()[:start] + clean()[start:].replace(old, new, 1), kinds).problems == ()


def test_gpus_for_a_model_of_cpus_are_named(kinds: Kinds) -> None:
    """As the overlay gpu would be that is left from another config."""
    limits, gpu = "                  limits:\n", "                    nvidia.com/gpu: '1'\n"
    requests = "                  requests:\n"
    start = clean().index(DECODE)
    decode = clean()[start:].replace(limits, limits + gpu, 1).replace(requests, requests + gpu, 1)
    with_gpus = clean()[:start] + decode
    assert check(with_gpus, kinds).problems == ()
    rounded = with_gpus.replace("        args:\n", "        args:\n          model.activations: int8\n", 1)
    (problem,) = check(rounded, kinds).problems
    assert problem.message == "model.activations is int8, which is for CPUs: leave the GPUs out"
    assert isinstance(problem.at, Mark) and problem.at.text.strip() == "nvidia.com/gpu: '1'"
    assert problem.at.line > rounded.count("\n", 0, rounded.index(DECODE))


def test_what_is_rendered_has_no_problem(kinds: Kinds) -> None:
    assert check(clean(), kinds).problems == ()


def test_what_is_rendered_keeps_kuberay_s_schema(all_kinds: Kinds) -> None:
    report = check(clean(), all_kinds)
    assert (report.problems, report.unchecked) == ((), ())


def test_manifests_that_have_nothing_to_do_with_tandem_pass(all_kinds: Kinds) -> None:
    """Forms that KubeRay's own samples use: tokens of old, Redis by annotation, steps, policies."""
    report = check((Path(__file__).parent / "foreign.yaml").read_text(), all_kinds)
    assert (report.problems, report.unchecked, report.objects) == ((), (), 6)


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_what_is_rendered_fits_old_and_new_kubernetes(version: str) -> None:
    assert check(clean(), Kinds(None, version)).problems == ()


@pytest.mark.skipif(
    which("kubectl") is None and which("kustomize") is None, reason="needs kubectl or kustomize"
)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_has_no_problem(overlay: str, kinds: Kinds) -> None:
    assert lint_paths([SHIPPED / overlay], kinds).problems == ()


def test_a_kind_without_schema_is_told_of_and_not_passed_over(kinds: Kinds) -> None:
    assert "ray.io/v1 RayService" in check(clean(), kinds).unchecked


def test_the_place_inside_the_serve_config_has_its_column(kinds: Kinds) -> None:
    text = clean().replace("import_path:", "importpath:", 1)
    problem = next(p for p in check(text, kinds).problems if "importpath" in p.path)
    assert isinstance(problem.at, Mark)
    assert problem.at.text[problem.at.column - 1 :].startswith("importpath:")


def test_a_folder_with_a_kustomization_is_built(tmp_path: Path) -> None:
    if which("kubectl") is None and which("kustomize") is None:
        pytest.skip("needs kubectl or kustomize")
    write(Config(), tmp_path)
    found = list(texts([tmp_path / "overlays" / "gpu"]))
    assert len(found) == 1 and "nvidia.com/gpu" in found[0][0]


def test_a_folder_without_schemas_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="holds no schema"):
        Kinds(tmp_path, "1.34")


def test_an_unknown_version_of_kubernetes_is_refused() -> None:
    with pytest.raises(SetupError, match=r"there are .*1\.34"):
        Kinds(None, "1.2")


def test_the_crd_of_kuberay_s_chart_serves_as_a_schema(tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"spec": {"type": "object", "properties": {"a": {"type": "integer"}}}},
    }
    crd = {
        "spec": {
            "names": {"kind": "RayCluster"},
            "versions": [{"name": "v1", "schema": {"openAPIV3Schema": schema}}],
        }
    }
    (tmp_path / "ray.io_rayclusters.yaml").write_text(json.dumps(crd))
    text = "apiVersion: ray.io/v1\nkind: RayCluster\nmetadata: {name: a}\nspec: {a: one}\n"
    found = check(text, Kinds(tmp_path, "1.34")).problems
    assert [str(problem).splitlines()[0] for problem in found] == [
        'm.yaml:4:8: spec.a: expected integer, got "one"'
    ]


def test_an_older_version_of_a_kind_is_held_to_its_own_schema_only(tmp_path: Path) -> None:
    def version(name: str, *fields: str) -> dict[str, object]:
        spec = {"type": "object", "properties": {field: {"type": "integer"} for field in fields}}
        schema = {"type": "object", "properties": {"spec": spec}}
        return {"name": name, "schema": {"openAPIV3Schema": schema}}

    def found(api: str, folder: Path) -> tuple[list[str], tuple[str, ...]]:
        text = f"apiVersion: ray.io/{api}\nkind: RayCluster\nmetadata: {{name: a}}\nspec: {{old: 1}}\n"
        report = check(text, Kinds(folder, "1.34"))
        return [".".join(problem.path) for problem in report.problems], report.unchecked

    both, new = tmp_path / "both", tmp_path / "new"
    for folder, versions in {both: [version("v1", "new"), version("v1alpha1", "old")], new: []}.items():
        folder.mkdir()
        crd = {"spec": {"names": {"kind": "RayCluster"}, "versions": versions or [version("v1", "new")]}}
        (folder / "ray.io_rayclusters.yaml").write_text(json.dumps(crd))
    assert found("v1", both) == (["spec.old"], ())
    assert found("v1alpha1", both) == ([], ())
    assert found("v1alpha1", new) == ([], ("ray.io/v1alpha1 RayCluster",))


class TestCommand:
    """The verb itself."""

    def run(self, *arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(command_line(), ["k8s", "lint", *arguments])
        return done.exit_code, done.stdout

    def test_clean_files_end_with_0(self, tmp_path: Path) -> None:
        path = tmp_path / "m.yaml"
        path.write_text(clean())
        assert self.run(str(path)) == (0, "")

    def test_problems_end_with_1_and_are_printed(self, tmp_path: Path) -> None:
        path = tmp_path / "m.yaml"
        path.write_text(clean().replace("maxReplicas: 64", "maxReplicas: 0", 1))
        code, out = self.run(str(path))
        assert code == 1 and f"{path}:" in out and "is below minReplicas" in out

    def test_a_missing_file_ends_with_2(self, tmp_path: Path) -> None:
        assert self.run(str(tmp_path / "none.yaml"))[0] == 2


def test_what_is_rendered_is_checked_within_a_second_of_cpu(all_kinds: Kinds) -> None:
    check(clean(), all_kinds)
    begun = time.process_time()
    check(clean(), all_kinds)
    assert time.process_time() - begun < 1.0
