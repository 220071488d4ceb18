"""Runs step plans on one device: the whole of a model that an engine sees."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from engine.errors import ConfigError
from engine.plan import Drawn, StepPlan, StepResult, Work
from kernels import dispatch
from kernels.spans import Spans
from model.assets import Assets, load_assets
from model.cache_folder import CacheFolder
from model.kv_cache import DTYPES, KVCache, KVLayout
from model.memory import keep_freed_memory
from model.packed_cache import Progress, build_private, load_shared
from model.packing import open_checkpoint, recipe
from model.sampler import draw
from model.transformer import Transformer


def _silent(stage: str, done: float) -> None:
    """The progress of a start that nobody watches."""


class ModelRunner:
    """Weights, KV cache and kernels of one instance. `run` is not to be called by two threads at once."""

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        cache: Path | None = None,
        blocks: int | None = None,
        kv_bytes: int | None = None,
        block_size: int = 16,
        threads: int = 1,
        progress: Progress = _silent,
    ) -> None:
        """Load a model and set up its KV cache.

        model: a .gguf file, a Hugging Face folder, or None for the embedded model; dtype: float32, bfloat16
        (or float64); cache: the folder in which instances share packed weights, None for private memory;
        blocks or kv_bytes: the size of the KV cache, exactly one of them; threads: of torch, CPU only.
        progress(stage, share done) is called during the long steps.
        Raises ConfigError for a wrong argument, ModelFileError for a missing or broken model, SetupError if
        memory or the cache folder does not suffice.
        """
        if dtype not in DTYPES:
            raise ConfigError(f"dtype is {' or '.join(DTYPES)}, not {dtype!r}", param="dtype")
        self._device = _device(device)
        if dtype == "float64" and self._device.type == "cuda":
            raise ConfigError("the GPU kernels compute in float32 or bfloat16, not float64", param="dtype")
        if self._device.type == "cpu":
            torch.set_num_threads(threads)
            keep_freed_memory()
        progress("reading the model", 0.0)
        self.assets: Assets = load_assets(model, cache)
        progress("reading the model", 1.0)
        self.config = self.assets.config
        kernels = dispatch.choose(self._device)
        weights = _load_weights(self.assets, DTYPES[dtype], self._device, cache, progress)
        self._kernels = kernels
        self._transformer = Transformer(self.config, weights, kernels)
        layout = KVLayout(self.config.layers, block_size, self.config.kv_heads, self.config.head_dim, dtype)
        self.kv = KVCache(layout, _block_count(layout, blocks, kv_bytes), self._device, kernels)
        self._scale = self.config.head_dim**-0.5

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return self.assets.eos_token_ids

    @property
    def weights_digest(self) -> str:
        """SHA-256 of the model's files, in hexadecimal."""
        return self.assets.digest

    def run(self, plan: StepPlan) -> StepResult:
        """Copy blocks, compute every work's positions, draw where asked. Chunks and decodes mix freely."""
        with torch.inference_mode():
            self.kv.copy(plan.copies)
            drawing = [index for index, work in enumerate(plan.works) if work.draw is not None]
            logits = self._compute(plan.works, drawing)
            results: list[tuple[Drawn, ...]] = [()] * len(plan.works)
            if drawing:
                draws = [work.draw for work in plan.works if work.draw is not None]
                for index, drawn in zip(drawing, draw(logits, draws, self._kernels), strict=True):
                    results[index] = drawn
            return StepResult(tuple(results))

    def logits(self, works: Sequence[Work]) -> Tensor:
        """Compute works and return the logits of every position, [tokens, vocabulary], works in order."""
        with torch.inference_mode():
            hidden, ends = self._forward(works)
            reaches = [range(end - len(work.tokens), end) for end, work in zip(ends, works, strict=True)]
            rows = self._integers([row for reach in reaches for row in reach])
            return self._transformer.logits(hidden.index_select(0, rows))

    def _compute(self, works: Sequence[Work], drawing: Sequence[int]) -> Tensor:
        """Logits after the last position of the works at `drawing`: [len(drawing), vocabulary]."""
        if not works:
            return torch.empty(0, self.config.vocab_size)
        hidden, ends = self._forward(works)
        if len(drawing) < len(hidden):
            hidden = hidden.index_select(0, self._integers([ends[index] - 1 for index in drawing]))
        return self._transformer.logits(hidden)

    def _forward(self, works: Sequence[Work]) -> tuple[Tensor, list[int]]:
        """Hidden states of all rows, and where each work's rows end: chunks come before decodes."""
        order = sorted(range(len(works)), key=lambda index: len(works[index].tokens) == 1)
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        ends = [0] * len(works)
        size = self.kv.layout.block_size
        for index in order:
            work = works[index]
            tokens.extend(work.tokens)
            reach = range(work.start, work.start + len(work.tokens))
            positions.extend(reach)
            blocks = work.blocks
            slots.extend(blocks[position // size] * size + position % size for position in reach)
            ends[index] = len(tokens)
        ordered = [works[index] for index in order]
        spans = Spans(
            counts=[len(work.tokens) for work in ordered],
            lengths=[work.start + len(work.tokens) for work in ordered],
            blocks=[work.blocks for work in ordered],
            chunks=sum(len(work.tokens) > 1 for work in ordered),
            block_size=size,
        )
        attention = self._kernels.attention(spans, self.config.kv_heads, self._scale, None)
        hidden = self._transformer.forward(
            self._integers(tokens), self._integers(positions), self._integers(slots), attention, self.kv
        )
        return hidden, ends

    def _integers(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64).to(self._device)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device is cpu, cuda or cuda:<index>, not {name!r}", param="device") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device is cpu, cuda or cuda:<index>, not {name!r}", param="device")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but torch finds no GPU", param="device")
    return device


def _block_count(layout: KVLayout, blocks: int | None, kv_bytes: int | None) -> int:
    if (blocks is None) == (kv_bytes is None):
        raise ConfigError("give the size of the KV cache in blocks or in bytes, not both", param="blocks")
    count = blocks if blocks is not None else (kv_bytes or 0) // layout.block_nbytes
    if count < 1:
        raise ConfigError(
            f"a KV cache of {kv_bytes if blocks is None else blocks} "
            f"{'bytes' if blocks is None else 'blocks'} holds no block of {layout.block_nbytes} bytes",
            param="kv_bytes" if blocks is None else "blocks",
        )
    return count


def _load_weights(
    assets: Assets, dtype: torch.dtype, device: torch.device, cache: Path | None, progress: Progress
) -> dict[str, Tensor]:
    if cache is None:
        weights = build_private(open_checkpoint(assets.path), dtype, progress)
    else:
        entries = list(recipe(assets.config))
        weights = load_shared(
            CacheFolder(cache),
            assets.digest,
            dtype,
            entries,
            lambda: open_checkpoint(assets.path),
            progress,
        )
    if device.type == "cpu":
        return weights
    return {name: tensor.to(device) for name, tensor in weights.items()}
