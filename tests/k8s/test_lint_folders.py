"""`tandem k8s lint FOLDER`, which Kustomize builds: problems are named in the files that were written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from shutil import which

import pytest
from typer.testing import CliRunner

from cluster.config import Config
from cluster.config_yaml import Mark
from engine.errors import SetupError
from k8s import kustomization
from k8s.checks.kinds import Kinds
from k8s.lint import Report, lint_paths
from k8s.render import write
from tests.k8s.trees import command_line

pytestmark = pytest.mark.skipif(
    which("kubectl") is None and which("kustomize") is None, reason="needs kubectl or kustomize"
)

Change = Callable[[Path], None]


def slip(file: str, old: str, new: str, after: str = "") -> Change:
    def change(folder: Path) -> None:
        text = (folder / file).read_text()
        start = text.index(after)
        assert old in text[start:], f"there is no {old!r} in {file}"
        (folder / file).write_text(text[:start] + text[start:].replace(old, new, 1))

    return change


def patched(folder: Path) -> None:
    """A patch that is text, so that no file has the object with the value."""
    with (folder / "overlays/gpu/kustomization.yaml").open("a") as file:
        file.write(
            "  - target: {kind: Service}\n    patch: |-\n      - op: replace\n"
            "        path: /spec/selector/ray.io~1group\n        value: gatewy\n"
        )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write(Config(), tmp_path)
    return tmp_path


def check(folder: Path, *, kinds: Kinds) -> Report:
    return lint_paths([folder], kinds)


@pytest.mark.parametrize(
    ("planted", "folder", "file", "line", "name"),
    [
        pytest.param(
            slip("base/service.yaml", "targetPort: http", "targetPort: 9999"),
            "base", "base/service.yaml", "targetPort: 9999", "Service/tandem-gateway", id="a field",
        ),
        pytest.param(
            slip("base/pool.yaml", "maxReplicas: 64", "maxReplicas: 3"),
            "base", "base/pool.yaml", "maxReplicas: 3", "Pool/prefill", id="the first of a file",
        ),
        pytest.param(
            slip("base/pdb.yaml", "group: gateway", "group: gatewy"),
            "overlays/gpu", "base/pdb.yaml", "selector:", "PodDisruptionBudget/tandem-gateway",
            id="the base of an overlay",
        ),
        pytest.param(
            slip("base/rayservice.yaml", "port: http", "port: htp"),
            "overlays/gpu", "base/rayservice.yaml", "port: htp", "RayService/tandem",
            id="a list in another order",
        ),
        pytest.param(
            slip("base/rayservice.yaml", "gateway.host:", "gateway.hots:"),
            "overlays/gpu", "base/rayservice.yaml", "gateway.hots:", "RayService/tandem",
            id="the serve config",
        ),
        pytest.param(
            slip("overlays/gpu/rayservice.yaml", "nvidia.com/gpu: '1'", "nvidia.com/gpu: '2'"),
            "overlays/gpu", "overlays/gpu/rayservice.yaml", "nvidia.com/gpu: '1'", "RayService/tandem",
            id="a patch",
        ),
        pytest.param(
            slip("base/rayservice.yaml", "preStop:", "postStart:", "groupName: gateway"),
            "overlays/gpu", "base/rayservice.yaml", "lifecycle:", "RayService/tandem", id="what is missing",
        ),
        pytest.param(
            slip("base/rbac.yaml", "roleRef:", "rolRef:"),
            "base", "base/rbac.yaml", "apiVersion:", "RoleBinding/tandem-operator", id="the object itself",
        ),
    ],
)  # fmt: skip
def test_a_problem_is_named_at_its_source(
    tree: Path, planted: Change, folder: str, file: str, line: str, name: str, kinds: Kinds
) -> None:
    planted(tree)
    said = [str(problem) for problem in check(tree / folder, kinds=kinds).problems]
    place = re.compile(rf"{re.escape(str(tree / file))}:(\d+):(\d+): {re.escape(name)}: ")
    marks = [(int(match[1]), int(match[2])) for each in said if (match := place.match(each))]
    lines = (tree / file).read_text().splitlines()
    assert [at for at in marks if lines[at[0] - 1][at[1] - 1 :].startswith(line)], said


def test_the_path_is_that_of_the_file(tree: Path, kinds: Kinds) -> None:
    """What is built with this overlay has the group of the gateways last."""
    slip("base/rayservice.yaml", "port: http", "port: htp")(tree)
    found = check(tree / "overlays" / "gpu", kinds=kinds).problems[0]
    assert ".workerGroupSpecs.0.template." in ".".join(found.path)


def test_a_field_that_no_file_has_is_named_at_the_folder_without_a_line(tree: Path, kinds: Kinds) -> None:
    patched(tree)
    folder = tree / "overlays" / "gpu"
    found = check(folder, kinds=kinds).problems
    assert [str(problem).partition(": selects")[0] for problem in found] == [
        f"{folder}: Service/tandem-gateway: spec.selector"
    ]


def test_what_a_patch_takes_away_is_named_at_the_folder(tree: Path, kinds: Kinds) -> None:
    slip(
        "overlays/gpu/rayservice.yaml",
        "- name: ray-worker\n",
        "- name: ray-worker\n                lifecycle: null\n",
    )(tree)
    folder = tree / "overlays" / "gpu"
    found = check(folder, kinds=kinds).problems
    assert [(problem.at, problem.path[-1]) for problem in found] == [(str(folder), "lifecycle")]


def test_one_slip_in_a_base_and_its_overlay_is_named_once(tree: Path, kinds: Kinds) -> None:
    slip("base/service.yaml", "targetPort: http", "targetPort: htp")(tree)
    found = lint_paths([tree / "base", tree / "overlays" / "mtls"], kinds).problems
    assert len(found) == 1 and isinstance(found[0].at, Mark)


def test_how_a_file_is_written_is_told_where_it_was_written_and_is_no_problem(
    tree: Path, kinds: Kinds
) -> None:
    slip("base/service.yaml", "kind: Service\n", "kind: Service  \n")(tree)
    report = check(tree / "overlays" / "gpu", kinds=kinds)
    assert [f"{each.at}: {each.message}" for each in report.style] == [
        f"{tree}/base/service.yaml:2:14: trailing spaces"
    ]
    assert report.problems == ()
    done = CliRunner().invoke(command_line(), ["k8s", "lint", str(tree / "base")])
    assert (done.exit_code, done.stdout) == (0, "")
    assert f"note: {tree}/base/service.yaml:2:14: trailing spaces\n" in done.stderr.replace("\n/", "/")


@pytest.mark.parametrize("name", kustomization.NAMES)
def test_every_name_of_a_kustomization_is_known(name: str, tree: Path, kinds: Kinds) -> None:
    (tree / "base" / "kustomization.yaml").rename(tree / "base" / name)
    slip("base/service.yaml", "targetPort: http", "targetPort: htp")(tree)
    found = check(tree / "overlays" / "gpu", kinds=kinds).problems
    assert [str(problem.at) for problem in found] == [f"{tree}/base/service.yaml:17:7"]
    assert kustomization.own_file(tree / "base") == tree / "base" / name


def test_the_json_form_has_the_object_and_its_place(tree: Path) -> None:
    slip("base/pool.yaml", "maxReplicas: 64", "maxReplicas: 3")(tree)
    patched(tree)
    done = CliRunner().invoke(command_line(), ["k8s", "lint", str(tree / "overlays" / "gpu"), "-o", "json"])
    assert [(each["object"], each["at"]) for each in json.loads(done.stdout)["items"]] == [
        ("Pool/prefill", {"source": f"{tree}/base/pool.yaml", "line": 15, "column": 3}),
        ("Service/tandem-gateway", {"source": f"{tree}/overlays/gpu"}),
    ]


@pytest.mark.parametrize(
    ("planted", "folder", "place"),
    [
        pytest.param(
            slip("base/service.yaml", "kind: Service", "kind: [Service"),
            "base", "base/service.yaml:3:9: not valid YAML", id="broken",
        ),
        pytest.param(
            slip("base/service.yaml", "kind: Service", "kind: Service\nkind: Service"),
            "overlays/gpu", "base/service.yaml:3:1: kind: key is given twice", id="in the base of an overlay",
        ),
        pytest.param(
            slip("overlays/gpu/rayservice.yaml", "kind: RayService", "kind: {RayService"),
            "overlays/gpu", "overlays/gpu/rayservice.yaml:3:9: not valid YAML", id="in a patch",
        ),
        pytest.param(
            slip("base/kustomization.yaml", "resources:", "resources: ["),
            "base", "base/kustomization.yaml:", id="in the kustomization",
        ),
    ],
)  # fmt: skip
def test_yaml_that_cannot_be_read_has_its_place(tree: Path, planted: Change, folder: str, place: str) -> None:
    planted(tree)
    done = CliRunner().invoke(command_line(), ["k8s", "lint", str(tree / folder)])
    assert done.exit_code == 2
    with pytest.raises(SetupError) as raised:
        kustomization.build(tree / folder)
    assert raised.value.message.startswith(f"{tree}/{place}")


def test_what_only_kubectl_finds_is_said_without_its_log(tree: Path) -> None:
    slip("base/kustomization.yaml", "service.yaml", "none.yaml")(tree)
    with pytest.raises(SetupError, match=r"none\.yaml") as raised:
        kustomization.build(tree / "base")
    assert not re.search(r'run\.go|command failed|err="|\n', raised.value.message)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ('E1128 00:52:11.586566   12284 run.go:72] "command failed" err="no \\"a\\" in b"', 'no "a" in b'),
        ('E1128 00:52:11.5 1 run.go:72] "command failed" err=<\n\tone:\n\t  two\n >', "one: two"),
        ("error: as it is", "error: as it is"),
    ],
)
def test_the_log_s_own_words_go(said: str, shown: str) -> None:
    assert kustomization.without_log(f"kubectl kustomize x: {said}") == f"kubectl kustomize x: {shown}"
