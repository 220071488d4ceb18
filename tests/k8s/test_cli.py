"""`tandem k8s`: rendering, and applying with the kubectl of the PATH."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from cluster.config import Config
from k8s.record import RECORD, text
from k8s.render import files, objects
from tests.k8s.trees import command_line


def run(*arguments: str, before: tuple[str, ...] = ()) -> Result:
    """A verb of k8s; `before` are flags of the root command."""
    return CliRunner().invoke(command_line(), [*before, "k8s", *arguments])


def test_render_prints_every_object(tmp_path: Path) -> None:
    done = run("render")
    assert done.exit_code == 0
    assert list(yaml.safe_load_all(done.stdout)) == objects(Config())


def test_render_writes_the_tree(tmp_path: Path) -> None:
    assert run("render", "-o", str(tmp_path)).exit_code == 0
    written = {str(p.relative_to(tmp_path)): p.read_text() for p in tmp_path.rglob("*") if p.is_file()}
    assert written == {**files(Config()), RECORD: text(files(Config()))}


def test_render_takes_away_what_no_longer_belongs_or_refuses_it_by_name(tmp_path: Path) -> None:
    rounded = ("render", "--set", "model.activations=int8", "-o", str(tmp_path))
    assert run("render", "-o", str(tmp_path)).exit_code == 0
    overlay = tmp_path / "overlays" / "gpu" / "kustomization.yaml"
    kept = overlay.read_text()
    overlay.write_text("# mine\n")
    done = run(*rounded)
    assert done.exit_code == 2 and f"{overlay}: a rendering wrote it" in done.stderr
    overlay.write_text(kept)
    assert run(*rounded).exit_code == 0 and not overlay.parent.exists()


def test_render_takes_the_file_and_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "tandem.yaml"
    path.write_text("kubernetes:\n  name: llm\n")
    out = run("render", "-f", str(path), "--set", "pools.decode.replicas=5").stdout
    service = next(each for each in yaml.safe_load_all(out) if each["kind"] == "RayService")
    groups = {g["groupName"]: g["replicas"] for g in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]}
    assert (service["metadata"]["name"], groups["decode"]) == ("llm", 5)


def namespaces(found: list[dict[str, Any]]) -> set[str]:
    """Those that objects are in, and those that they make."""
    inside = {each["metadata"]["namespace"] for each in found if "namespace" in each["metadata"]}
    return inside | {each["metadata"]["name"] for each in found if each["kind"] == "Namespace"}


@pytest.mark.parametrize("more", [(), ("--set", "kubernetes.namespace=other")])
def test_the_namespace_of_the_command_line_wins(more: tuple[str, ...]) -> None:
    before = namespaces(list(yaml.safe_load_all(run("render", *more).stdout)))
    assert before == {"other" if more else "tandem"}
    done = run("render", *more, before=("-n", "prod"))
    found = list(yaml.safe_load_all(done.stdout))
    assert namespaces(found) == {"prod"}


def test_a_namespace_that_none_can_have_is_refused_by_its_flag() -> None:
    done = run("render", before=("-n", "Prod"))
    assert done.exit_code == 2 and "--namespace: kubernetes.namespace: " in done.stderr


@pytest.mark.parametrize(
    ("before", "own", "namespace"),
    [((), (), "tandem"), (("-n", "prod"), (), "prod"), (("-n", "prod"), ("--namespace", "own"), "own")],
)
def test_the_operator_works_in_the_namespace_that_is_named_last(
    before: tuple[str, ...], own: tuple[str, ...], namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr("k8s.operator.run", lambda *words, **more: asked.extend(words))
    assert run("operator", *own, before=(*before, "--address", "nowhere:1")).exit_code == 0
    assert asked[0] == namespace


def test_a_wrong_setting_ends_with_2(tmp_path: Path) -> None:
    assert run("render", "--set", "kubernetes.name=Big").exit_code == 2


def test_a_secret_in_the_config_is_named_and_left_out() -> None:
    done = run("render", "--set", "control.token=hush")
    assert "control.token is not rendered" in done.stderr and "hush" not in done.stdout


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kubectl that only writes down what it was asked, and keeps the namespace that it was given."""
    log, program = tmp_path / "log", tmp_path / "kubectl"
    keep = f'for last; do :; done\n[ ! -f "$last/namespace.yaml" ] || cp "$last/namespace.yaml" {tmp_path}\n'
    program.write_text(f'#!/bin/sh\necho "$@" >> {log}\n{keep}')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return log


def test_apply_sends_the_crd_first_and_waits_for_it(kubectl: Path) -> None:
    assert run("apply", "--overlay", "gpu").exit_code == 0
    lines = kubectl.read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["apply", "wait", "apply"]
    assert lines[0].endswith("/crds/pools.tandem.dev.yaml") and lines[2].endswith("/overlays/gpu")
    for line in (lines[0], lines[2]):
        assert "--server-side --force-conflicts" in line, "what operators have written since is no obstacle"


def test_a_dry_run_changes_nothing(kubectl: Path) -> None:
    assert run("apply", "--dry-run").exit_code == 0
    assert all("--dry-run=server" in line for line in kubectl.read_text().splitlines())


@pytest.mark.parametrize(("flags", "verb"), [((), "is"), (("--dry-run",), "would be")])
def test_apply_says_in_which_namespace(kubectl: Path, flags: tuple[str, ...], verb: str) -> None:
    done = run("apply", *flags, before=("-n", "prod"))
    assert (done.exit_code, done.stderr) == (0, f"base {verb} applied in the namespace prod\n")
    given = yaml.safe_load((kubectl.parent / "namespace.yaml").read_text())
    assert given["metadata"]["name"] == "prod"


def test_apply_without_kubectl_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    done = run("apply")
    assert done.exit_code == 2 and "no kubectl" in done.stderr


def test_the_operator_asks_for_an_address() -> None:
    done = run("operator")
    assert done.exit_code == 2 and "--address" in done.stderr
