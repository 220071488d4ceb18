"""When a request would have its first token and how fast the others would come, if it ran there.

    apart    the prompts that wait at the prefill instance, then its own chunks │ the decode batch and it
    local    its chunks share the steps of those who decode there: they wait, and it waits for them

Everything follows from the cost of a step (`engine.cost_model`) and the loads of two instances.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.cost_model import Batch, CostModel
from engine.request import SLO
from global_scheduler.view import Load


@dataclass(frozen=True, slots=True)
class Forecast:
    """In seconds. `tpot` is the slowest that anybody at the decode instance would see because of it."""

    ttft: float
    tpot: float

    def meets(self, slo: SLO) -> bool:
        return self.strain(slo) <= 1.0

    def strain(self, slo: SLO) -> float:
        """How much of the tighter objective is used up: above 1 it is missed. 0 without objectives."""
        first = self.ttft / slo.ttft if slo.ttft else 0.0
        return max(first, self.tpot / slo.tpot if slo.tpot else 0.0)

    def __str__(self) -> str:
        return f"first token in {self.ttft * 1e3:.0f} ms, then {self.tpot * 1e3:.1f} ms a token"


class Predictor:
    """`budget` is the most tokens of a step, `handoff` the seconds that a handoff puts before token two."""

    def __init__(self, cost: CostModel, budget: int, handoff: float = 0.0) -> None:
        self._cost = cost
        self._budget = budget
        self._handoff = handoff

    def apart(self, prefill: Load, decode: Load, *, compute: int, hold: int, output: int) -> Forecast:
        """Prefilled at one instance, decoded at another.

        `compute` tokens of the prompt are not cached; it will `hold` KV of that many, and draw `output`.
        """
        ttft = self._chunks(prefill.queued_tokens + compute, hold - compute, 0, 0, self._budget)
        gap = self._handoff / max(1, output - 1)
        return Forecast(ttft, self._decodes(decode, hold) + gap)

    def local(self, decode: Load, *, compute: int, hold: int) -> Forecast:
        """Prefilled between the steps of those who run at the decode instance."""
        running, context = decode.running, decode.held * decode.block_size
        budget = max(1, self._budget - running)
        tokens = decode.queued_tokens + compute
        ttft = self._chunks(tokens, hold - compute, running, context, budget)
        after = self._decodes(decode, hold)
        if not running:
            return Forecast(ttft, after)
        # Those who run get a token in each step, however much of the prompt is in it.
        shared = self._cost.seconds(Batch(((min(budget, tokens), 0),), running, context))
        return Forecast(ttft, max(after, shared))

    def _decodes(self, decode: Load, hold: int) -> float:
        context = decode.held * decode.block_size + hold
        return self._cost.seconds(Batch((), decode.running + 1, context))

    def _chunks(self, tokens: int, cached: int, decodes: int, context: int, budget: int) -> float:
        """Seconds for so many tokens in chunks of `budget`, each step with the decodes of others in it."""
        whole, rest = divmod(max(tokens, 1), budget)
        # Attention grows along the prompt: a chunk in the middle stands for all.
        middle = cached + tokens // 2
        seconds = 0.0
        if whole:
            seconds += whole * self._cost.seconds(Batch(((budget, middle),), decodes, context))
        if rest:
            seconds += self._cost.seconds(Batch(((rest, cached + tokens - rest),), decodes, context))
        return seconds
