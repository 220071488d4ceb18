"""Packs a model's weights into the cache folder, in a process of its own that ends when it is done.

The caller keeps torch out of a process that lives as long as the cluster, and sees the progress.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from cluster.config import Config
from engine.errors import SetupError, TandemError
from model.assets import Assets, load_assets

Advance = Callable[[int, int], None]
Step = Callable[[str], AbstractContextManager[Advance]]
"""Opens a step of the start by its title, for whoever shows progress."""

_SCRIPT = "from cluster.prepare import child; child()"
_FAILED = "failed "
SHARES = 1000


def weight_bytes(assets: Assets, config: Config) -> int:
    """About what the packed weights take, shared by all instances of a machine."""
    model = assets.config
    attention = model.hidden_size * model.head_dim * (2 * model.heads + 2 * model.kv_heads)
    layer = attention + 3 * model.hidden_size * model.intermediate_size
    vocabulary = model.vocab_size * model.hidden_size * (1 if model.tied else 2)
    width = 2 if config.model.dtype in ("bfloat16", "float16") else 4
    return width * (model.layers * layer + vocabulary)


def is_packed(assets: Assets, cache: Path) -> bool:
    """Whether packed weights of this model lie in the cache; reading them tells whether they are whole."""
    digest = assets.digest[:32]
    return any(entry.is_dir() for entry in cache.glob(f"{digest}-*") if "assets" not in entry.name)


class Packing:
    """Packs the weights of a settled config, unless they are, beside what its caller does meanwhile."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._process: subprocess.Popen[str] | None = None

    def begin(self) -> None:
        """Whoever begins it ends it."""
        config = self._config
        if is_packed(load_assets(config.model.path, config.cache_directory), config.cache_directory):
            return
        command = [sys.executable, "-P", "-c", _SCRIPT]
        # In a group of its own: a Ctrl-C is for its parent, which ends it.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0
        )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(config.model_dump_json())

    def wait(self, step: Step) -> None:
        """Until they are packed; no step where nothing was to do. Raises SetupError."""
        if self._process is None:
            return
        assert self._process.stdout is not None
        reason = "its process died"
        with step("packing weights (once)") as advance:
            for line in self._process.stdout:
                if line.startswith(_FAILED):
                    reason = line.removeprefix(_FAILED).strip()
                else:
                    advance(int(line), SHARES)
        failed = self._process.wait() != 0
        self.end()
        if failed:
            raise SetupError(f"the weights could not be packed: {reason}")

    def end(self) -> None:
        """Give up what is not done yet. Harmless where nothing is left to do."""
        if self._process is not None:
            self._process.kill()
            with self._process:
                self._process = None


def pack(config: Config, step: Step) -> None:
    """Pack the weights of a settled config, unless they are. Raises SetupError."""
    packing = Packing(config)
    try:
        packing.begin()
        packing.wait(step)
    finally:
        packing.end()


def child() -> None:
    """The process: reads the config from its standard input and prints shares of a thousand."""
    from model.device import resolve
    from model.runner import ModelRunner

    config = Config.model_validate_json(sys.stdin.read())
    device, dtype = resolve(config.engine.device, config.model.dtype)

    def show(stage: str, done: float) -> None:
        if stage == "packing weights":
            sys.stdout.write(f"{round(done * SHARES)}\n")
            sys.stdout.flush()

    try:
        ModelRunner(
            config.model.path,
            dtype=dtype,
            device=device,
            cache=config.cache_directory,
            blocks=1,
            weights=config.model.weights,
            activations=config.model.activations,
            progress=show,
        )
    except TandemError as error:
        sys.stdout.write(f"{_FAILED}{error.message}\n")
        sys.exit(1)
