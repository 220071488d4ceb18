"""Steps in closed form, with the coefficients that DistServe (OSDI'24) fitted to its engine on an A100.

In milliseconds, for prompts of lengths L and decodes of summed context C, at pipeline depth pp:

    prefill  (a + b·ΣL + c·ΣL²) / pp + pp
    decode   (a + b·C + c·n) / pp          with other coefficients from `threshold` decodes on
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from engine.cost_model import Batch
from engine.errors import ConfigError
from simulator.cost_tables.interpolation import FloatArray

Coefficients = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class ClosedForm:
    """A chunk of a prompt costs its part of the quadratic term. Where both phases share a step, the decodes
    add what they add to a step of their own, and the step takes no less than they would alone.

    `overhead` and `per_token` (ms) are the engine's own: simdistserve adds 2 + 1e-4 × tokens to each step.
    """

    prefill: Coefficients
    decode_small: Coefficients
    decode_large: Coefficients
    threshold: int
    pipeline: int = 1
    overhead: float = 0.0
    per_token: float = 0.0

    def seconds(self, batch: Batch) -> float:
        total = 0.0
        if batch.prefills:
            a, b, c = self.prefill
            tokens = batch.prefill_tokens
            square = sum((new + before) ** 2 - before**2 for new, before in batch.prefills)
            total = (a + b * tokens + c * square) / self.pipeline + self.pipeline + self.per_token * tokens
        if batch.decodes:
            a, b, c = self._decode(batch.decodes)
            alone = (a + b * batch.context + c * batch.decodes) / self.pipeline
            total = max(alone, total + alone - a / self.pipeline) if total else alone
            total += self.per_token * (batch.context - batch.decodes)
        return (total + self.overhead) / 1000.0

    def decodes(self, count: int, contexts: FloatArray) -> FloatArray:
        """Seconds of steps of `count` decodes with such summed contexts."""
        a, b, c = self._decode(count)
        alone = (a + b * contexts + c * count) / self.pipeline
        return (alone + self.per_token * (contexts - count) + self.overhead) / 1000.0

    def _decode(self, count: int) -> Coefficients:
        return self.decode_small if count < self.threshold else self.decode_large


def load_closed_form(
    path: Path,
    *,
    model: str,
    tensor: int = 1,
    pipeline: int = 1,
    engine: str = "distserve",
    overhead: float = 0.0,
    per_token: float = 0.0,
) -> ClosedForm:
    """From a JSON file of [engine][model][tensor parallelism]. Raises ConfigError for what is not there."""
    try:
        entry = json.loads(path.read_text())[engine][model][str(tensor)]
        return ClosedForm(
            prefill=_three(entry["prefill"]),
            decode_small=_three(entry["decoding_smallbs"]),
            decode_large=_three(entry["decoding_largebs"]),
            threshold=int(entry["decoding_large_small_bs_threshold"]),
            pipeline=pipeline,
            overhead=overhead,
            per_token=per_token,
        )
    except KeyError as error:
        raise ConfigError(
            f"{path}: has no coefficients for {engine}, {model}, tp {tensor}: {error}"
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: not a file of coefficients: {error}") from error


def _three(values: list[float]) -> Coefficients:
    a, b, c = (float(value) for value in values)
    return a, b, c
