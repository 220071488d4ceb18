"""docs/kubernetes.md: what is printed there can be typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from shutil import which

import pytest
import yaml
from typer.testing import CliRunner

from cluster.config import Config, load
from k8s.objects.overlays import overlays
from k8s.render import base, files
from k8s.serve_settings import in_cluster
from tests.k8s.trees import command_line

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^ *```(\w+)\n(.*?)^ *```$", PAGE, re.MULTILINE | re.DOTALL)


def commands(start: str) -> list[str]:
    text = "\n".join(block for kind, block in BLOCKS if kind == "sh").replace("\\\n", " ")
    lines = (line.partition("  #")[0].strip() for line in text.splitlines())
    return [line for line in lines if line.startswith(start)]


def test_the_commands_of_tandem_work_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if which("kubectl") is None and which("kustomize") is None:
        pytest.skip("needs kubectl or kustomize on the PATH")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tandem.yaml").write_text("kubernetes:\n  name: tandem\n")
    (tmp_path / "my-rayservice.yaml").write_text(files(Config())["base/rayservice.yaml"])
    found = commands("tandem k8s")
    assert len(found) >= 4
    for line in found:
        done = CliRunner().invoke(command_line(), shlex.split(line)[1:])
        assert done.exit_code == 0, (line, done.stdout, done.stderr)


def test_every_overlay_is_described() -> None:
    assert [name for name in overlays(in_cluster(Config())) if f"`k8s/overlays/{name}`" not in PAGE] == []


def test_names_in_commands_are_rendered_names() -> None:
    known = {each["metadata"]["name"] for found in base(Config()).values() for each in found}
    services = {name for line in commands("kubectl") for name in re.findall(r"service/([\w-]+)", line)}
    assert services - known == {"tandem-head-svc"}, "KubeRay makes that one"


def test_yaml_examples_name_a_pool_or_are_settings_that_can_be_rendered(tmp_path: Path) -> None:
    examples = [block for kind, block in BLOCKS if kind == "yaml"]
    scaled = [each for each in map(yaml.safe_load, examples) if "spec" in each]
    assert [each["spec"]["scaleTargetRef"]["kind"] for each in scaled] == ["Pool"]
    (settings,) = [block for block in examples if "spec" not in yaml.safe_load(block)]
    path = tmp_path / "tandem.yaml"
    path.write_text(settings)
    assert "tandem-gateway-tls" in files(load(path))["base/rayservice.yaml"]


def test_the_secret_has_the_keys_that_pods_read() -> None:
    line = next(line for line in commands("kubectl create secret"))
    variables = re.findall(r"key: ([\w-]+)", files(Config())["base/rayservice.yaml"])
    assert {f"--from-literal={key}=" for key in variables} <= set(re.findall(r"--from-literal=[\w-]+=", line))
