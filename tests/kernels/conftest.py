"""Triton without a GPU: a child process that runs kernels in the interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CASES = Path(__file__).with_name("cases.py")


@pytest.fixture(scope="session")
def child() -> Iterator[subprocess.Popen[str]]:
    """One process for all cases: the interpreter is chosen when Triton's decorators run, at import."""
    if tuple(map(int, version("triton").split(".")[:2])) < (3, 7):
        pytest.skip("the interpreter of Triton before 3.7 does not work with NumPy from 2.4 on")
    variables = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        [sys.executable, str(CASES)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=60)


@pytest.fixture(scope="session")
def interpret(child: subprocess.Popen[str]) -> Callable[..., str | None]:
    """interpret(case, mutant=None, **arguments) runs a case on the CPU: None, or the error's traceback."""

    def run(case: str, mutant: tuple[str, str, str] | None = None, **arguments: Any) -> str | None:
        assert child.stdin is not None
        assert child.stdout is not None
        order = {"case": case, "arguments": {"device": "cpu", **arguments}, "mutant": mutant}
        child.stdin.write(json.dumps(order) + "\n")
        child.stdin.flush()
        answer = child.stdout.readline()
        assert answer, "the interpreter's process has ended"
        error: str | None = json.loads(answer)["error"]
        return error

    return run
