"""What the tests of the model share: a cache folder, the embedded model, and oracles in their own process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from model.assets import Assets, load_assets
from model.runner import ModelRunner

ORACLES = Path(__file__).resolve().parents[1] / "oracle"
# transformers takes any top-level package called kernels for Hugging Face's: ours must not be found.
BOOT = (
    "import runpy, sys; sys.modules['kernels'] = None; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
)


@pytest.fixture(scope="session")
def embedded(cache: Path) -> Assets:
    return load_assets(None, cache)


@pytest.fixture(scope="session")
def runner(cache: Path) -> ModelRunner:
    """The embedded model in float32."""
    return ModelRunner(None, cache=cache, blocks=256)


@pytest.fixture(scope="session")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """oracle(script, *arguments): run a script of tests/oracle where none of our packages can be found."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(script: str, *arguments: object) -> None:
        command = [sys.executable, "-P", "-c", BOOT, str(ORACLES / script), *map(str, arguments)]
        done = subprocess.run(
            command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=1200
        )
        assert done.returncode == 0, done.stderr[-4000:]

    return run
