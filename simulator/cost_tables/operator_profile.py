"""Steps from measured operators: a folder in the profile format of LLMServingSim 2.0.

    dense.csv         layer,tokens,time_us                                       one call for so many tokens
    per_sequence.csv  layer,sequences,time_us                                    lm_head and sampler
    attention.csv     prefill_chunk,kv_prefill,n_decode,kv_decode,time_us        one layer's attention

Each may be gzipped (`.csv.gz`). A step of T tokens and N sequences takes, in microseconds,

    layers · (2·layernorm + qkv_proj [+ qk_norm] + rotary_emb + attention + o_proj + gate_up_proj + act_fn
              + down_proj)(T)  +  embedding(T) + final_layernorm(T) + lm_head(N) + sampler(N)
"""

from __future__ import annotations

import csv
import gzip
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

from engine.cost_model import Batch
from engine.errors import ConfigError
from simulator.cost_tables.interpolation import Curve, Grid

LAYER = {
    "layernorm": 2,
    "qkv_proj": 1,
    "qk_norm": 1,
    "rotary_emb": 1,
    "o_proj": 1,
    "gate_up_proj": 1,
    "act_fn": 1,
    "down_proj": 1,
}
"""How often a transformer layer calls each dense operator."""

ONCE = ("embedding", "final_layernorm")
SEQUENCE = ("lm_head", "sampler")
OPTIONAL = frozenset({"qk_norm"})


class OperatorProfile:
    """`layers` and `hidden` describe the model, `link_bandwidth` (bytes/s) and `link_latency` (s) the link
    over which `tensor` ranks add up their results, twice a layer. `overhead` (s) is added to each step."""

    def __init__(
        self,
        folder: Path,
        *,
        layers: int,
        hidden: int = 4096,
        tensor: int = 1,
        link_bandwidth: float = 0.0,
        link_latency: float = 0.0,
        overhead: float = 0.0,
    ) -> None:
        dense = _curves(folder, "dense", "tokens", {*LAYER, *ONCE})
        each = _curves(folder, "per_sequence", "sequences", set(SEQUENCE))
        self._layers = layers
        self._layer = [(dense[name], count) for name, count in LAYER.items() if name in dense]
        self._once = [dense[name] for name in ONCE]
        self._sequence = [each[name] for name in SEQUENCE]
        self._attention = Grid(
            {
                (float(row["prefill_chunk"]), float(row["kv_prefill"]), float(row["n_decode"]),
                 float(row["kv_decode"])): float(row["time_us"])
                for row in _rows(folder, "attention")
            }
        )  # fmt: skip
        if tensor > 1 and link_bandwidth <= 0:
            raise ConfigError(f"{folder}: tensor parallelism {tensor} needs the bandwidth of the link")
        self._per_token = 2e6 * layers * hidden * 2 / link_bandwidth if tensor > 1 else 0.0
        self._per_step = 2e6 * layers * link_latency if tensor > 1 else 0.0
        self._overhead = overhead
        self._dense_cache: dict[int, float] = {}
        self._sequence_cache: dict[int, float] = {}

    def seconds(self, batch: Batch) -> float:
        tokens, sequences = batch.tokens, batch.sequences
        dense = self._dense_cache.get(tokens)
        if dense is None:
            layer = sum(count * curve(tokens) for curve, count in self._layer)
            dense = self._layers * layer + sum(curve(tokens) for curve in self._once)
            dense += self._per_token * tokens + self._per_step
            self._dense_cache[tokens] = dense
        each = self._sequence_cache.get(sequences)
        if each is None:
            each = self._sequence_cache[sequences] = sum(curve(sequences) for curve in self._sequence)
        return (dense + each + self._layers * self.attention(batch)) * 1e-6 + self._overhead

    def attention(self, batch: Batch) -> float:
        """Microseconds in one layer. Chunks of several prompts count as one, cached tokens added up."""
        chunk = batch.prefill_tokens
        cached = sum(before for _, before in batch.prefills)
        mean = batch.context / batch.decodes if batch.decodes else 0.0
        return self._attention(chunk, cached, batch.decodes, mean)


def _rows(folder: Path, name: str) -> Iterator[dict[str, str]]:
    for file in (folder / f"{name}.csv", folder / f"{name}.csv.gz"):
        try:
            data = file.read_bytes()
            text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode()
        except FileNotFoundError:
            continue
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: cannot be read: {error}") from error
        yield from csv.DictReader(io.StringIO(text))
        return
    raise ConfigError(f"{folder}: a profile needs {name}.csv or {name}.csv.gz")


def _curves(folder: Path, name: str, axis: str, needed: set[str]) -> dict[str, Curve]:
    points: dict[str, dict[float, float]] = {}
    for row in _rows(folder, name):
        try:
            points.setdefault(row["layer"], {})[float(row[axis])] = float(row["time_us"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{folder}/{name}.csv: not layer,{axis},time_us: {error!r}") from error
    missing = needed - OPTIONAL - points.keys()
    if missing:
        raise ConfigError(f"{folder}/{name}.csv: has no layer {', '.join(sorted(missing))}")
    for extra in sorted(points.keys() - needed):
        warnings.warn(f"{folder}/{name}.csv: the layer {extra} is unknown and left out", stacklevel=4)
    return {layer: Curve(values) for layer, values in points.items() if layer in needed}
