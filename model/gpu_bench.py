"""A whole step of a large model on a GPU: random weights in the shape of Llama-3.1-8B, bfloat16.

as served   as the engine steps: works become numbers on the device, a graph runs, tokens come back; each step
            is launched before the one before it is waited for, and takes its tokens from it
one graph   the graph alone, again and again: what the host leaves to be gained
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from engine.errors import SetupError
from engine.plan import Draw, StepPlan, StepResult, Work
from engine.request import Sampling
from kernels import bench as kernel_bench
from kernels import dispatch
from kernels.bench import KernelTime
from model.config import ModelConfig, RopeConfig
from model.cuda_graph import Capture, GraphRunner, recorder
from model.eager import EagerDecoder
from model.kv_cache import KVCache, KVLayout
from model.packing import recipe
from model.sampler import draw
from model.static_step import StaticStep

LLAMA_8B = ModelConfig(
    architecture="llama",
    vocab_size=128256,
    hidden_size=4096,
    layers=32,
    heads=32,
    kv_heads=8,
    head_dim=128,
    intermediate_size=14336,
    norm_eps=1e-5,
    context_length=131072,
    rope=RopeConfig(base=500000.0),
)
BLOCK = 16
STEPS = 50
WARM = 5
_GREEDY = Sampling(max_tokens=1, temperature=0.0, ignore_eos=True)


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of each step. `graph` is empty for a prefill."""

    phase: str
    batch: int
    tokens: int
    served: tuple[float, ...]
    graph: tuple[float, ...] = ()


def device_name() -> str:
    """Raises SetupError where torch finds no GPU."""
    if not torch.cuda.is_available():
        raise SetupError(
            "torch finds no GPU here: run this on a machine with an NVIDIA GPU, with a CUDA build of torch "
            "(`python -c 'import torch; print(torch.version.cuda)'` names one)",
            param="engine.device",
        )
    return str(torch.cuda.get_device_name())


def kernels() -> Iterator[KernelTime]:
    """Every Triton kernel beside copied bytes and torch's attention, then the tiles that attention may take.

    Raises SetupError without a GPU.
    """
    device_name()
    # Triton is there only where CUDA is.
    from kernels.tuning import tune

    timer, sizes, device = kernel_bench.gpu_timer, kernel_bench.Sizes(), torch.device("cuda", 0)
    yield from kernel_bench.measure(kernel_bench.triton_kernels(), timer, sizes, device, torch.bfloat16)
    yield from tune(timer, sizes, device, torch.bfloat16)


class RandomModel:
    """Weights and KV cache of a model that was never trained, which costs what a trained one does."""

    def __init__(self, config: ModelConfig, device: torch.device, dtype: torch.dtype, positions: int) -> None:
        """`positions`: how many the KV cache holds. Raises SetupError if the device is too small."""
        name = str(dtype).removeprefix("torch.")
        generator = torch.Generator(device).manual_seed(0)
        self.config, self.dtype, self.device = config, dtype, device
        self.kernels = dispatch.choose(device)
        try:
            weights = {
                entry.name: _random(entry.name, entry.shape, dtype, device, generator)
                for entry in recipe(config, dtype)
            }
        except torch.OutOfMemoryError as error:
            raise SetupError(f"the weights do not fit into the memory of {device}: {error}") from error
        layout = KVLayout(config.layers, BLOCK, config.kv_heads, config.head_dim, name)
        self.cache = KVCache(layout, -(-positions // BLOCK) + 1, device, self.kernels)
        self._decoder = EagerDecoder(config, weights, self.kernels, self.cache)

    def run(self, plan: StepPlan) -> StepResult:
        """One step, operation by operation: the tokens have come back when it returns."""
        with torch.inference_mode():
            logits = self._decoder.logits(plan.works, [int(work.draw is not None) for work in plan.works])
            draws = [work.draw for work in plan.works if work.draw is not None]
            drawn = iter(draw(logits, draws, self.kernels))
            return StepResult(tuple(() if work.draw is None else next(drawn) for work in plan.works))

    def graphs(self, rows: int, capture: Capture) -> GraphRunner:
        """The runner that an engine of so many sequences would step."""
        with torch.inference_mode():
            step = StaticStep(self._decoder.transformer, self.kernels, self.cache, self.dtype, rows)
        return GraphRunner(self, step, self.cache, self.kernels, capture)


def steps(
    batches: tuple[int, ...], context: int, prompt: int, say: Callable[[str], None]
) -> Iterator[StepTimes]:
    """Decode steps of each batch at `context` positions, and a prefill of `prompt` tokens.

    Raises SetupError without a GPU, or where model and KV cache do not fit.
    """
    device_name()
    room = max(max(batches) * (context + BLOCK), prompt)
    say("weights")
    model = RandomModel(LLAMA_8B, torch.device("cuda", 0), torch.bfloat16, room)
    say("graphs")
    runner = model.graphs(max(batches), recorder())
    for batch in batches:
        served = follow(runner, decode_works(model.config, batch, context), STEPS)
        yield StepTimes("decode", batch, context, served, timed(lambda: _repeat(runner)))
    plan = StepPlan((prefill_work(model.config, prompt),))
    yield StepTimes("prefill", 1, prompt, timed(lambda: model.run(plan)))


def follow(runner: GraphRunner, works: list[Work], steps: int) -> tuple[float, ...]:
    """Seconds between the tokens of one decode step and of the next, as in an engine that looks ahead.

    Every step is at the same place: what is measured is a step of one context, not of one that grows.
    """
    known = StepPlan(tuple(works))
    fed = replace(known, fed=tuple(range(len(works))))
    waits = deque([runner.launch(known)])
    ends = []
    for _ in range(steps + WARM):
        waits.append(runner.launch(fed))
        waits.popleft()()
        ends.append(time.perf_counter())
    waits.popleft()()
    return tuple(late - early for early, late in pairwise(ends[WARM - 1 :]))


def _repeat(runner: GraphRunner) -> None:
    runner.repeat()
    torch.cuda.synchronize()


def decode_works(config: ModelConfig, batch: int, context: int) -> list[Work]:
    """One token each for `batch` sequences that have `context` positions, its own included."""
    each = -(-context // BLOCK)
    blocks = list(range(batch * each))
    random.Random(0).shuffle(blocks)
    return [
        Work(
            f"bench-{index}",
            0,
            [index % config.vocab_size],
            context - 1,
            blocks[index * each : (index + 1) * each],
            Draw(_GREEDY, (0,), 1),
        )
        for index in range(batch)
    ]


def prefill_work(config: ModelConfig, tokens: int) -> Work:
    """A whole prompt of random tokens, and a draw at its end."""
    rng = random.Random(0)
    prompt = [rng.randrange(config.vocab_size) for _ in range(tokens)]
    return Work("bench", 0, prompt, 0, list(range(-(-tokens // BLOCK))), Draw(_GREEDY, (0,), 0))


def timed(work: Callable[[], object], steps: int = STEPS) -> tuple[float, ...]:
    """Seconds of each of `steps` calls, which end when their result is there; a few more warm up."""
    seconds = []
    for _ in range(steps + WARM):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return tuple(seconds[WARM:])


def _random(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Tensor:
    """Small numbers, so that 32 layers neither vanish nor overflow; norms are ones."""
    if name.endswith("norm"):
        return torch.ones(shape, dtype=dtype, device=device)
    tensor = torch.empty(shape, dtype=dtype, device=device)
    return tensor.normal_(std=0.02, generator=generator)
