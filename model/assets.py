"""What is known of a model without its weights: config, tokenizer, chat template, end tokens, digest.

Needs no torch, so that a gateway can afford it. A GGUF file takes two seconds to parse; what it says is
kept in the cache folder under the file's digest and read from there afterwards.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import ModelFileError
from model.cache_folder import CacheFolder
from model.config import ModelConfig, RopeConfig, from_hugging_face
from model.files import find_model, model_digest, read_json
from model.gguf_file import GgufFile
from model.gguf_tokenizer import end_tokens, tokenizer_json

_VERSION = 3
_FILE = "assets.json"
_QUANTISED = re.compile(r"[.-](I?Q\d\w*|F16|BF16|F32)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Assets:
    """`digest` is the SHA-256 of the model's files; `tokenizer` is a tokenizer.json.

    `bos_token`, `eos_token`: what chat templates call so, "" for none; None: the name of the token with the
    id, or with the first of the ids. All ids are below the config's `vocab_size`.
    """

    path: Path
    digest: str
    config: ModelConfig
    tokenizer: str
    chat_template: str | None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    bos_token: str | None = None
    eos_token: str | None = None

    @property
    def name(self) -> str:
        """What the folder or file is called, without the format of its weights."""
        return self.path.name if self.path.is_dir() else _QUANTISED.sub("", self.path.stem)


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
    if model.is_dir():
        return _from_folder(model, digest)
    file = GgufFile(model)
    metadata = file.metadata
    template = metadata.get("tokenizer.chat_template")
    starts = _ids(metadata.get("tokenizer.ggml.bos_token_id"), file.config)
    return Assets(
        path=model,
        digest=digest,
        config=file.config,
        tokenizer=tokenizer_json(metadata, str(model)),
        chat_template=template if isinstance(template, str) else None,
        bos_token_id=starts[0] if starts else None,
        eos_token_ids=tuple(_ids([*end_tokens(metadata)], file.config)),
    )


def _from_folder(path: Path, digest: str) -> Assets:
    values = read_json(path / "config.json")
    config = from_hugging_face(values, str(path / "config.json"))
    settings = _optional_json(path / "tokenizer_config.json")
    try:
        tokenizer = (path / "tokenizer.json").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{path / 'tokenizer.json'}: cannot be read: {error}") from error
    ends = _ids(_optional_json(path / "generation_config.json").get("eos_token_id"), config)
    ends += _ids(values.get("eos_token_id"), config)
    starts = _ids(values.get("bos_token_id"), config)
    return Assets(
        path=path,
        digest=digest,
        config=config,
        tokenizer=tokenizer,
        chat_template=_folder_template(path, settings),
        bos_token_id=starts[0] if starts else None,
        eos_token_ids=tuple(dict.fromkeys(ends)),
        bos_token=_token_name(settings, "bos_token"),
        eos_token=_token_name(settings, "eos_token"),
    )


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _ids(value: object, config: ModelConfig) -> list[int]:
    """Token ids as configs write them: one, a list, or none. Those that the model can never draw are left
    out: some files name tokens that were added for training alone."""
    values = value if isinstance(value, list) else [value]
    return [int(item) for item in values if isinstance(item, int) and 0 <= item < config.vocab_size]


def _token_name(settings: dict[str, Any], key: str) -> str | None:
    """The name of a special token in tokenizer_config.json: "" for null, None if it is not mentioned."""
    if key not in settings:
        return None
    value = settings[key]
    name = value.get("content") if isinstance(value, dict) else value
    return name if isinstance(name, str) else ""


def _folder_template(path: Path, settings: dict[str, Any]) -> str | None:
    """The chat template: a file of its own, or in tokenizer_config.json, alone or named default."""
    file = path / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelFileError(f"{file}: cannot be read: {error}") from error
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {str(item.get("name")): item.get("template") for item in template if isinstance(item, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
