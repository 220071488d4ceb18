"""The benchmark of whole steps: a random model of any shape computes the works that it times."""

from __future__ import annotations

import pytest
import torch

from engine.errors import SetupError
from model.config import ModelConfig
from model.gpu_bench import BLOCK, RandomModel, decode_works, device_name, prefill_work, timed

TINY = ModelConfig(
    architecture="llama", vocab_size=96, hidden_size=32, layers=2, heads=4, kv_heads=2, head_dim=16,
    intermediate_size=48, norm_eps=1e-5, context_length=256,
)  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_do() -> None:
    with pytest.raises(SetupError, match="NVIDIA GPU"):
        device_name()


def test_the_works_of_a_decode_step_fit_the_cache_and_share_no_block() -> None:
    works = decode_works(TINY, 5, 40)
    blocks = [block for work in works for block in work.blocks]
    assert sorted(blocks) == list(range(5 * 3))
    assert {(work.start, len(work.tokens)) for work in works} == {(39, 1)}


def test_a_random_model_computes_them() -> None:
    model = RandomModel(TINY, torch.device("cpu"), torch.float32, 5 * 3 * BLOCK)
    assert len(timed(lambda: model.step(decode_works(TINY, 5, 40)), steps=2)) == 2
    assert len(timed(lambda: model.step([prefill_work(TINY, 70)]), steps=1)) == 1
