"""Runs step plans on one device: the whole of a model that an engine sees."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from engine.errors import ConfigError, SetupError
from engine.plan import Drawn, StepPlan, StepResult, Work
from kernels import dispatch
from kernels.dispatch import Kernels
from model import compiled
from model.allowed_tokens import AllowedTokens
from model.assets import Assets, load_assets
from model.eager import EagerDecoder
from model.host_tier import HostTier
from model.kv_cache import DTYPES, KVCache, KVLayout
from model.memory import keep_freed_memory
from model.packed_cache import Progress
from model.sampler import draw
from model.tokenizer import Tokenizer
from model.transformer import Transformer
from model.weights import WEIGHTS, load

NUMBERS = {"cpu": ("float32", "bfloat16", "float64"), "cuda": ("float32", "bfloat16", "float16")}
"""What each kind of device computes in."""

REFERENCE = "float64"
"""What the others are compared with; no config takes it."""

ACTIVATIONS = ("auto", "int8")


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
        weights: str = "auto",
        activations: str = "auto",
        kv_dtype: str = "auto",
        exact: bool = False,
        use_compiled: bool = True,
        host_bytes: int = 0,
        progress: Progress = _silent,
    ) -> None:
        """Load a model and set up its KV cache.

        model: a .gguf file, a Hugging Face folder, or None for the embedded model; dtype: float32, bfloat16,
        float16 on a GPU (or float64 on a CPU); cache: the folder in which instances share packed weights,
        None for private memory; blocks or kv_bytes: the size of the KV cache, exactly one of them; threads:
        CPU only.
        weights: auto keeps 4- and 8-bit weights of a GGUF file as they are where the compiled kernels serve,
        which compute with the same numbers as if they had been expanded; dense expands them to dtype.
        activations: what enters products: auto is dtype; int8 rounds to 8 bits, in groups of 32 with a scale
        each, what meets the layers' weights of 4 bits, for dtype float32 and the compiled kernels alone.
        kv_dtype: what keys and values are kept in: auto is dtype, float8_e4m3fn and float8_e5m2 are for GPUs.
        exact: refuse to run unless a token's logits are the same bits in any batch, chunk and block table.
        use_compiled: False takes torch's operations also where the compiled kernels serve.
        host_bytes: host memory for the KV of sequences that are swapped out.
        progress(stage, share done) is called during the long steps.
        Raises ConfigError for a wrong argument, ModelFileError for a missing or broken model, SetupError if
        memory or the cache folder does not suffice.
        """
        if weights not in WEIGHTS:
            raise ConfigError(f"weights is {' or '.join(WEIGHTS)}, not {weights!r}", param="weights")
        if activations not in ACTIVATIONS:
            known = " or ".join(ACTIVATIONS)
            raise ConfigError(f"activations is {known}, not {activations!r}", param="activations")
        self.device = _device(device)
        if dtype not in NUMBERS[self.device.type]:
            known = " or ".join(name for name in NUMBERS[self.device.type] if name != REFERENCE)
            raise ConfigError(f"dtype is {known} on {self.device.type}, not {dtype!r}", param="dtype")
        if self.device.type == "cpu":
            torch.set_num_threads(threads)
            keep_freed_memory()
        progress("reading the model", 0.0)
        self.assets: Assets = load_assets(model, cache)
        progress("reading the model", 1.0)
        self.config = self.assets.config
        self.grammars = AllowedTokens(lambda: Tokenizer(self.assets))
        rounded = activations == "int8"
        self.numbers, self.dtype = dtype + "+int8" * rounded, DTYPES[dtype]
        self.activations = activations
        self.kernels = kernels = dispatch.choose(self.device)
        on_cpu = self.device.type == "cpu"
        reason = compiled.obstacle(self.config, DTYPES[dtype]) if on_cpu else "they are for the CPU"
        self.obstacle = reason if use_compiled else "they are switched off"
        served = self.obstacle is None
        if exact and not served:
            raise SetupError(
                f"engine.exact needs the compiled CPU kernels, which do not serve here: {self.obstacle}"
            )
        if rounded:
            _refuse_unrounded(dtype, self.obstacle)
        loaded = load(self.assets, DTYPES[dtype], cache, progress, panels=served, dense=weights == "dense")
        self.weights = loaded.tensors
        self.weights_format = loaded.format
        if rounded and not loaded.has_4_bits(self.config, self.dtype):
            raise ConfigError(
                f"activations int8 is for weights of 4 bits, and these are {loaded.format}: serve a Q4_0 or "
                "Q4_1 GGUF file with weights auto, or leave activations auto",
                param="activations",
            )
        stored = _storage(kv_dtype, dtype, self.device, kernels)
        layout = KVLayout(self.config.layers, block_size, self.config.kv_heads, self.config.head_dim, stored)
        self.kv = KVCache(layout, _block_count(layout, blocks, kv_bytes), self.device, kernels)
        self.host = HostTier(self.kv, host_bytes // self.kv.block_nbytes)
        self._decoder: EagerDecoder | compiled.CompiledDecoder
        if served:
            self._decoder = compiled.CompiledDecoder(
                self.config, loaded.tensors, self.kv, threads, rounded=rounded
            )
        else:
            tensors = {name: tensor.to(self.device) for name, tensor in loaded.tensors.items()}
            self._decoder = EagerDecoder(self.config, tensors, kernels, self.kv)

    @property
    def transformer(self) -> Transformer:
        """The model as torch operations, which the compiled kernels don't have."""
        assert isinstance(self._decoder, EagerDecoder), "the compiled kernels serve this model"
        return self._decoder.transformer

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return self.assets.eos_token_ids

    @property
    def weights_digest(self) -> str:
        """SHA-256 of the model's files, in hexadecimal."""
        return self.assets.digest

    @property
    def numerics_digest(self) -> str:
        """What the numbers of KV depend on beside their type: where it is another they may not be mixed."""
        if self.activations == "auto":
            return self.weights_digest
        return hashlib.sha256(f"{self.weights_digest}+{self.activations}".encode()).hexdigest()

    def run(self, plan: StepPlan) -> StepResult:
        """Swap and copy blocks, compute every work's positions, draw where asked. Chunks and decodes mix
        freely."""
        with torch.inference_mode():
            self.host.swap_out(plan.out)
            self.kv.copy(plan.copies)
            self.host.swap_in(plan.into)
            if not plan.works:
                return StepResult(())
            drawing = [index for index, work in enumerate(plan.works) if work.draw is not None]
            logits = self._decoder.logits(plan.works, [int(work.draw is not None) for work in plan.works])
            results: list[tuple[Drawn, ...]] = [()] * len(plan.works)
            if drawing:
                draws = [work.draw for work in plan.works if work.draw is not None]
                for index, drawn in zip(
                    drawing, draw(logits, draws, self.kernels, self.grammars), strict=True
                ):
                    results[index] = drawn
            return StepResult(tuple(results))

    def logits(self, works: Sequence[Work]) -> Tensor:
        """Compute works and return the logits of every position, [tokens, vocabulary], works in order."""
        with torch.inference_mode():
            return self._decoder.logits(works, [len(work.tokens) for work in works])


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


def _refuse_unrounded(dtype: str, obstacle: str | None) -> None:
    """Raises ConfigError or SetupError where int8 activations could not be had."""
    if obstacle is not None:
        raise SetupError(
            f"model.activations int8 needs the compiled CPU kernels, which do not serve here: {obstacle}"
        )
    if dtype != "float32":
        raise ConfigError(
            f"activations int8 goes with dtype float32, not {dtype}: leave one of them auto",
            param="activations",
        )


def _storage(kv_dtype: str, dtype: str, device: torch.device, kernels: Kernels) -> str:
    """The name of what the KV cache holds."""
    if kv_dtype == "auto":
        return dtype
    if kv_dtype not in ("float8_e4m3fn", "float8_e5m2"):
        raise ConfigError(
            f"kv_dtype is auto, float8_e4m3fn or float8_e5m2, not {kv_dtype!r}", param="kv_dtype"
        )
    if not kernels.float8:
        raise ConfigError(f"kv_dtype {kv_dtype} needs a GPU: leave it auto on a CPU", param="kv_dtype")
    old = device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9)
    if kv_dtype == "float8_e4m3fn" and old:
        raise ConfigError(
            "kv_dtype float8_e4m3fn needs compute capability 8.9 (Ada, Hopper): take float8_e5m2",
            param="kv_dtype",
        )
    return kv_dtype


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
