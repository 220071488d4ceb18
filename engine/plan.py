"""The only words between deciding and computing: a StepPlan goes in, a StepResult comes out.

A step gives each sequence n tokens. Prefill, chunk, decode and verify are numbers here, not modes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from engine.request import Sampling


class Draw(NamedTuple):
    """Draw the next token from the logits of a work's last position.

    `choices` draw from the same logits, each with a random number of its own: one choice in decode,
    all n of a request at the end of its prefill. `position` is the index in the output (0 = first).
    `prompt` and `output` are filled only if the sampling looks back. `banned` may not be drawn.
    """

    sampling: Sampling
    choices: tuple[int, ...]
    position: int
    prompt: Sequence[int] = ()
    output: Sequence[int] = ()
    banned: frozenset[int] = frozenset()


class Work(NamedTuple):
    """n = len(tokens) positions of one sequence, the first at `start`; `blocks` covers start + n tokens.

    Slot of position p: blocks[p // block_size] * block_size + p % block_size. The runner writes the
    KV of its n positions there and attends causally to positions 0 … p. `draw` is None in a chunk
    that is not the last of its sequence.
    """

    request_id: str
    choice: int
    tokens: Sequence[int]
    start: int
    blocks: Sequence[int]
    draw: Draw | None = None


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One iteration: swap `out`, then do the `copies`, then swap `into`, then compute.

    `out` are (block, slot of host memory), `copies` (source, target) blocks, `into` (slot, block), each in
    order. What is swapped stays swapped even where the works cannot be computed.

    `fed` is of a step that is planned while the one before computes: the only token of work i is what work
    fed[i] of that step draws, and stands as 0 in its `tokens`. Empty where all tokens are known.
    """

    works: tuple[Work, ...]
    copies: tuple[tuple[int, int], ...] = ()
    out: tuple[tuple[int, int], ...] = ()
    into: tuple[tuple[int, int], ...] = ()
    fed: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        return sum(len(work.tokens) for work in self.works)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A drawn token; log-probabilities (natural, of the distribution before temperature) if asked for."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class StepResult:
    """One tuple per work of the plan, in order: a Drawn for each of its choices, () without a draw."""

    drawn: tuple[tuple[Drawn, ...], ...]
