"""The benchmark of whole steps: a random model of any shape computes the works that it times."""

from __future__ import annotations

import pytest
import torch

from engine.errors import SetupError
from engine.plan import StepPlan
from kernels import dispatch
from model.config import ModelConfig
from model.gpu_bench import (
    BLOCK,
    WARM,
    RandomModel,
    decode_works,
    device_name,
    follow,
    prefill_work,
    timed,
)

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
    model = RandomModel(TINY, torch.device("cpu"), torch.float32, 70)
    plan = StepPlan((prefill_work(TINY, 70),))
    assert len(timed(lambda: model.run(plan), steps=1)) == 1


def test_steps_that_follow_one_another_take_their_tokens_from_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch, "choose", dispatch.plain)
    model = RandomModel(TINY, torch.device("cpu"), torch.float32, 5 * 3 * BLOCK)
    runner = model.graphs(5, lambda compute: compute)
    assert len(follow(runner, decode_works(TINY, 5, 40), steps=4)) == 4
    assert (runner.replayed, runner.fed) == (4 + WARM + 1, 4 + WARM)
    tokens = runner.run(StepPlan(tuple(decode_works(TINY, 5, 40)))).drawn
    runner.repeat()
    assert runner.run(StepPlan(tuple(decode_works(TINY, 5, 40)))).drawn == tokens
