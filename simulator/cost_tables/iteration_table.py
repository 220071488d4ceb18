"""Steps from a table of whole iterations, as aiconfigurator writes them.

system,framework,framework_version,model,tp,phase,batch,new_tokens_per_request,context_tokens,latency_ms
"""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from engine.cost_model import Batch
from engine.errors import ConfigError
from simulator.cost_tables.interpolation import Curve, FloatArray, Grid, Line

Row = tuple[str, str, str]
"""System, model and tensor parallelism."""


class IterationTable:
    """Decodes go by their number and mean context, prompts by new and cached tokens.

    Several chunks in a step count as one of their total length. Where both phases share a step, the decodes
    add what they cost beyond a step of one short decode, which the prefill pays for already. `overhead` (s)
    is the engine's own time, which such tables leave out.
    """

    def __init__(
        self,
        prefill: dict[tuple[float, ...], float],
        decode: dict[tuple[float, ...], float],
        *,
        overhead: float = 0.0,
    ) -> None:
        self._prefill = Grid(prefill)
        self._decode = Grid(decode)
        self._means = sorted({at[1] for at in decode})
        self._decodes: dict[int, tuple[Curve, Line]] = {}
        self._least = min(decode.values())
        self._cached = self._prefill.first(1)
        self._overhead = overhead

    def seconds(self, batch: Batch) -> float:
        total = 0.0
        if batch.prefills:
            tokens = batch.prefill_tokens
            cached = sum(before for _, before in batch.prefills)
            total = self._prefill_ms(tokens, cached)
        if batch.decodes:
            alone = self._decodes_of(batch.decodes)[0](batch.context / batch.decodes)
            total = max(alone, total + alone - self._least) if total else alone
        return total / 1000.0 + self._overhead

    def decodes(self, count: int, contexts: FloatArray) -> FloatArray:
        """Seconds of steps of `count` decodes with such summed contexts."""
        return self._decodes_of(count)[1](contexts / count) / 1000.0 + self._overhead

    def _decodes_of(self, count: int) -> tuple[Curve, Line]:
        """Milliseconds over the mean context of `count` decodes, for one of them and for many."""
        known = self._decodes.get(count)
        if known is None:
            points = {mean: self._decode(count, mean) for mean in self._means}
            known = self._decodes[count] = Curve(points), Line(list(points), list(points.values()))
        return known

    def _prefill_ms(self, tokens: float, cached: float) -> float:
        """With less cached than the table's first such column, part of what that column adds."""
        bare = self._prefill(tokens, 0)
        if not cached:
            return bare
        if self._cached == math.inf:
            return bare
        if cached >= self._cached:
            return max(bare, self._prefill(tokens, cached))
        return bare + max(0.0, self._prefill(tokens, self._cached) - bare) * cached / self._cached


def load_iteration_table(
    path: Path, *, system: str | None, model: str | None, tensor: int | None = None, overhead: float = 0.0
) -> IterationTable:
    """The rows of one system and model (part of its name will do). Raises ConfigError with what there is."""
    prefill: dict[tuple[float, ...], float] = {}
    decode: dict[tuple[float, ...], float] = {}
    known: set[Row] = set()
    try:
        for row in csv.DictReader(io.StringIO(path.read_text())):
            known.add((row["system"], row["model"], row["tp"]))
            if row["system"] != system or model is None or model.lower() not in row["model"].lower():
                continue
            if tensor is not None and int(row["tp"]) != tensor:
                continue
            ms = float(row["latency_ms"])
            if row["phase"] == "prefill":
                prefill[float(row["new_tokens_per_request"]), float(row["context_tokens"])] = ms
            else:
                decode[float(row["batch"]), float(row["context_tokens"])] = ms
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: not a table of iterations: {error!r}") from error
    if not prefill or not decode:
        raise ConfigError(f"{path}: {_lacking(known, system, model)}")
    return IterationTable(prefill, decode, overhead=overhead)


def _lacking(known: set[Row], system: str | None, model: str | None) -> str:
    """What a table does not have, and what it has instead."""
    systems = sorted({one for one, _, _ in known})
    if system not in systems:
        lacking = "say which, with system=…" if system is None else f"has no system {system}"
        return f"{lacking}; it has {', '.join(systems) or 'none'}"
    if model is None:
        models = sorted({name for one, name, _ in known if one == system})
        return f"say which, with model=…; {system} has {', '.join(models)}"
    there = sorted(f"{name} tp {tensor}" for one, name, tensor in known if one == system)
    return f"has no {model} on {system}; it has {', '.join(there)}"
