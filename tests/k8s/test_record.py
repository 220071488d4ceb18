"""Rendering again into a folder: what no longer belongs goes, and nothing else."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from shutil import which

import pytest

from cluster.config import Config, load
from engine.errors import SetupError
from k8s import record
from k8s.render import files, write

CPUS = load(None, {"model.activations": "int8"})
"""A config that has no overlay gpu."""


def held(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One in which all overlays were rendered."""
    write(Config(), tmp_path)
    assert (tmp_path / "overlays/gpu/kustomization.yaml").exists()
    return tmp_path


def test_an_overlay_that_no_longer_belongs_goes_with_its_folder(folder: Path) -> None:
    write(CPUS, folder)
    assert held(folder) == {*files(CPUS), record.RECORD}
    assert not (folder / "overlays/gpu").exists() and (folder / "overlays/mtls").is_dir()


def test_it_comes_back_with_the_config_that_has_it(folder: Path) -> None:
    write(CPUS, folder)
    write(Config(), folder)
    assert held(folder) == {*files(Config()), record.RECORD}


def test_files_of_somebody_else_stay(folder: Path) -> None:
    own = (folder / "overlays/gpu/mine.yaml", folder / "base/mine.yaml", folder / "overlays/mine/a.yaml")
    for path in own:
        path.parent.mkdir(exist_ok=True)
        path.write_text("a: 1\n")
    write(CPUS, folder)
    assert held(folder) == {*files(CPUS), record.RECORD, *(str(path.relative_to(folder)) for path in own)}


def edited(folder: Path) -> str:
    with (folder / "overlays/gpu/rayservice.yaml").open("a") as file:
        file.write("# mine\n")
    return "overlays/gpu/rayservice.yaml: a rendering wrote it, this one does not, and it was changed since"


def of_an_older_version(folder: Path) -> str:
    (folder / record.RECORD).unlink()
    return "overlays/gpu: this config has no such overlay, and no rendered.sha256 tells who wrote it"


def of_nobody(folder: Path) -> str:
    (folder / record.RECORD).write_text(f"{'0' * 64}  ../elsewhere\n")
    return "rendered.sha256:1: not what `tandem k8s render` writes there"


def of_another_form(folder: Path) -> str:
    (folder / record.RECORD).write_text(f"{'0' * 64}  /etc/passwd\n")
    return "rendered.sha256:1: not what `tandem k8s render` writes there"


@pytest.mark.parametrize("plant", [edited, of_an_older_version, of_nobody, of_another_form])
def test_what_cannot_be_taken_away_safely_is_refused_and_nothing_is_written(
    folder: Path, plant: Callable[[Path], str]
) -> None:
    said = plant(folder)
    before = {name: (folder / name).read_bytes() for name in held(folder)}
    with pytest.raises(SetupError) as raised:
        write(CPUS, folder)
    assert (
        said in raised.value.message and "remove it, or render into an empty folder" in raised.value.message
    )
    assert {name: (folder / name).read_bytes() for name in held(folder)} == before


def test_a_folder_without_a_list_takes_a_config_that_has_everything(folder: Path) -> None:
    (folder / record.RECORD).unlink()
    write(Config(), folder)
    assert (folder / record.RECORD).exists()


def test_a_link_that_leads_elsewhere_is_followed_by_nobody(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "gpu"
    (folder / "overlays/gpu").rename(elsewhere)
    (folder / "overlays/gpu").symlink_to(elsewhere)
    write(CPUS, folder)
    assert (elsewhere / "kustomization.yaml").exists()


@pytest.mark.skipif(which("sha256sum") is None, reason="needs sha256sum")
def test_sha256sum_checks_the_list(folder: Path) -> None:
    check = ["sha256sum", "--check", "--quiet", record.RECORD]
    assert subprocess.run(check, cwd=folder, check=False).returncode == 0
    edited(folder)
    assert subprocess.run(check, cwd=folder, capture_output=True, check=False).returncode == 1


def test_the_repository_holds_the_list_of_what_it_holds() -> None:
    committed = Path(__file__).resolve().parents[2] / "k8s" / record.RECORD
    assert committed.read_text(encoding="utf-8") == record.text(files(Config()))
