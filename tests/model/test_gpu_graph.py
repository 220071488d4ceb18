"""On a real GPU: recorded graphs compute what the same operations compute one by one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.core import Launcher
from engine.plan import Draw, StepPlan, Work
from engine.request import Sampling
from model.cuda_graph import recorder, stepper
from model.runner import ModelRunner
from tests.model import tiny
from tests.model.test_cuda_graph import ADJUSTED, SETTINGS, Pair, ahead, engines, lives

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class GpuPair(Pair):
    """Both in float32 with the Triton kernels, one of them recorded."""

    def __init__(self, path: Path) -> None:
        self.pair(path, "cuda", "float32", recorder())
        self.tolerance = 1e-4


@pytest.fixture
def pair(tmp_path: Path) -> GpuPair:
    return GpuPair(tiny.write_gguf(tmp_path / "model.gguf", tiny.weights()))


def test_graphs_of_odd_batches_equal_the_operations_and_write_nothing_else(pair: GpuPair) -> None:
    lives(pair, SETTINGS + ADJUSTED)


def test_a_graph_takes_the_tokens_of_the_one_before_where_they_lie(pair: GpuPair) -> None:
    ahead(pair, SETTINGS)
    assert pair.graphs.fed == 4


def test_an_engine_answers_the_same_with_graphs(pair: GpuPair) -> None:
    engines(pair)


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float8_e5m2", "float8_e4m3fn"])
def test_the_embedded_model_says_much_the_same_in_fewer_bits(kind: str) -> None:
    """Logits of a prompt and a decode step, beside float32: kinds of numbers, and of keys and values."""
    if kind == "float8_e4m3fn" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("e4m3 needs compute capability 8.9")
    narrow = kind.startswith("float8")
    exact = ModelRunner(blocks=8, device="cuda")
    short = ModelRunner(
        blocks=8, device="cuda", dtype="bfloat16" if narrow else kind, kv_dtype=kind if narrow else "auto"
    )
    blocks = [5, 2, 7]
    works = (Work("r", 0, [1, 504, 3575, 282, 4649, 314] * 6, 0, blocks), Work("r", 0, [28], 36, blocks))
    for work in works:
        theirs, ours = exact.logits([work])[-1], short.logits([work])[-1].float()
        assert float((ours - theirs).norm() / theirs.norm()) < (0.1 if narrow else 0.05)


def test_a_runner_on_a_gpu_is_stepped_by_graphs() -> None:
    steps = stepper(ModelRunner(blocks=8, device="cuda"), 4)
    assert isinstance(steps, Launcher)
    draw = Draw(Sampling(max_tokens=1, temperature=0.0), (0,), 0)
    assert len(steps.run(StepPlan((Work("r", 0, [5], 0, [3], draw),))).drawn[0]) == 1
