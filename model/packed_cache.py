"""Packed weights in a file that every instance of a machine maps: pages are shared, nothing is copied.

An entry holds weights.safetensors, whose tensors start on 64-byte borders, and sums.json, one checksum a
tensor. Its key names what the bytes depend on: the model's digest, the format and the instruction set.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.cache_folder import CacheFolder, check_space
from model.packing import Checkpoint, Entry

Progress = Callable[[str, float], None]
"""(stage, share done from 0 to 1)"""

_VERSION = 1
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float64: "F64", torch.uint8: "U8"}
_WEIGHTS, _SUMS = "weights.safetensors", "sums.json"
_ALIGNMENT = 64


def cache_key(digest: str, dtype: torch.dtype, form: str = "") -> str:
    """Packed weights of one model file for one dtype in one form (see model.weights) and instruction set."""
    instructions = torch.backends.cpu.get_cpu_capability().lower()
    return f"{digest[:32]}-{_NAMES[dtype].lower()}{form}-{instructions}-{_VERSION}"


def build_private(entries: Sequence[Entry], checkpoint: Checkpoint, progress: Progress) -> dict[str, Tensor]:
    """Packed weights in this process's own memory."""
    weights = {}
    for done, entry in enumerate(entries):
        progress("packing weights", done / len(entries))
        weights[entry.name] = entry.build(checkpoint)
    progress("packing weights", 1.0)
    return weights


def load_shared(
    folder: CacheFolder,
    key: str,
    entries: Sequence[Entry],
    checkpoint: Callable[[], Checkpoint],
    progress: Progress,
) -> dict[str, Tensor]:
    """Mapped packed weights; packs them first if the folder has none or damaged ones.

    `checkpoint` opens the model, which a start that finds packed weights saves itself.
    Raises SetupError if the folder is needed but cannot be written, ModelFileError for a broken model.
    """
    found: dict[str, Tensor] = {}

    def whole(directory: Path) -> bool:
        progress("mapping weights", 0.0)
        found.clear()
        found.update(_read(directory, entries))
        return len(found) == len(entries)

    def build(fresh: Path) -> None:
        _write(fresh, checkpoint(), entries, progress)

    directory = folder.ensure(key, whole, build)
    weights = found or _read(directory, entries)
    progress("mapping weights", 1.0)
    return weights


def _write(folder: Path, checkpoint: Checkpoint, entries: Sequence[Entry], progress: Progress) -> None:
    header: dict[str, object] = {}
    end = 0
    for entry in entries:
        dtype, shape = entry.spec(checkpoint)
        start, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        header[entry.name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    check_space(folder, end + 2**20)
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    sums = {}
    with (folder / _WEIGHTS).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for done, entry in enumerate(entries):
            progress("packing weights", done / len(entries))
            tensor = entry.build(checkpoint).contiguous()
            sums[entry.name] = _sum(tensor)
            file.write(tensor.flatten().view(torch.uint8).numpy().data)
    (folder / _SUMS).write_text(json.dumps(sums))
    progress("packing weights", 1.0)


def _read(folder: Path, entries: Sequence[Entry]) -> dict[str, Tensor]:
    """Mapped tensors, or nothing at all if a file is torn or a bit has flipped."""
    weights: dict[str, Tensor] = {}
    try:
        sums = json.loads((folder / _SUMS).read_text())
        with safe_open(folder / _WEIGHTS, framework="pt") as file:
            for entry in entries:
                tensor = file.get_tensor(entry.name)
                if not (entry.fits(tensor) and _sum(tensor) == sums[entry.name]):
                    return {}
                weights[entry.name] = tensor
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return {}
    return weights


def _sum(tensor: Tensor) -> int:
    """A checksum as fast as memory: the wrapping sum of the tensor's 64-bit words, plus its last bytes."""
    raw = tensor.flatten().view(torch.uint8)
    words = len(raw) // 8 * 8
    return int(raw[:words].view(torch.int64).sum()) + int(raw[words:].sum())
