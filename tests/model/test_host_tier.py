"""KV that went to host memory and came back is the same, and so are the tokens that follow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from decode_pool.continuous_batching import ContinuousBatching
from engine.batch import Limits
from engine.blocks import BlockPool
from engine.core import EngineCore
from engine.errors import SetupError
from engine.queues.fcfs import FCFSQueue
from engine.request import Request, Sampling
from engine.sequence import Tier
from engine.tiers import TierSettings
from model.host_tier import HostTier
from model.runner import ModelRunner
from tests.model import tiny

PROMPT = tuple((7 * i + 3) % tiny.VOCABULARY for i in range(21))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_gguf(tmp_path_factory.mktemp("tiny") / "model.gguf", tiny.weights())


def runner_of(path: Path, slots: int) -> ModelRunner:
    small = ModelRunner(path, dtype="float64", blocks=20, block_size=4)
    return ModelRunner(
        path, dtype="float64", blocks=20, block_size=4, host_bytes=slots * small.kv.block_nbytes
    )


def answer(path: Path, swap_at: int | None, sampling: Sampling) -> list[int]:
    """The tokens of a request that is swapped out after so many steps."""
    runner = runner_of(path, 8)
    core = EngineCore(
        pool=BlockPool(20, 4),
        queue=FCFSQueue(),
        policy=ContinuousBatching(6),
        limits=Limits(200),
        eos_token_ids=frozenset(),
        tiers=TierSettings(slots=8),
    )
    core.submit(Request("r", PROMPT, sampling))
    tokens: list[int] = []
    for step in range(200):
        if step == swap_at:
            (sequence,) = core.sequences("r")
            core._roster.preempt(sequence)
            assert sequence.tier is Tier.HOST
        outcome = core.step(runner, float(step))
        if outcome is None:
            break
        tokens += [one.drawn.token for one in outcome.emitted if one.drawn is not None]
    assert (
        core.tiers.swapped_in == core.tiers.swapped_out == (0 if swap_at is None else core.tiers.swapped_in)
    )
    return tokens


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_tokens=8, temperature=0.0, ignore_eos=True),
        Sampling(max_tokens=8, temperature=0.9, seed=5, ignore_eos=True),
    ],
    ids=["greedy", "sampled"],
)
def test_tokens_are_the_same_after_a_swap_at_any_step(path: Path, sampling: Sampling) -> None:
    want = answer(path, None, sampling)
    assert len(want) == 8
    for step in range(1, 11):
        assert answer(path, step, sampling) == want


def test_blocks_come_back_as_they_went_in_any_order(path: Path) -> None:
    runner = runner_of(path, 6)
    pool = runner.kv.pool
    pool.copy_(torch.rand(pool.shape, dtype=torch.float64))
    before = pool.clone()
    runner.host.swap_out(((3, 5), (11, 0), (7, 1), (4, 3)))
    pool.zero_()
    runner.host.swap_in(((0, 2), (3, 9), (5, 10), (1, 0)))
    for source, target in ((11, 2), (4, 9), (3, 10), (7, 0)):
        assert torch.equal(pool[:, :, target], before[:, :, source])


@pytest.mark.parametrize("spare", [0, -1])
def test_it_has_to_fit_beside_a_cache_that_is_not_written_yet(
    path: Path, spare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = runner_of(path, 0).kv.block_nbytes
    for module in ("model.kv_cache", "model.host_tier"):
        monkeypatch.setattr(f"{module}.available_memory", lambda: 32 * block + spare)
    if spare < 0:
        with pytest.raises(SetupError, match="host memory for swapped KV do not fit"):
            runner_of(path, 12)
    else:
        assert runner_of(path, 12).host.slots == 12


def test_a_cache_that_takes_all_memory_needs_no_host_memory(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kv = runner_of(path, 0).kv
    monkeypatch.setattr("model.host_tier.available_memory", lambda: 0)
    assert HostTier(kv, 0).slots == 0


def test_more_than_there_is_is_refused(path: Path) -> None:
    kv = runner_of(path, 0).kv
    with pytest.raises(SetupError, match="host memory"):
        HostTier(kv, (1 << 50) // kv.block_nbytes)
