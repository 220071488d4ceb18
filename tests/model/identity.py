"""Whether greedy tokens are those of transformers: the recorded answers, and the rule for ties.

check = Identity(runner)                      # any float32 runner of the embedded model
for index, answer in enumerate(answers()):
    check.take(index, tokens from any path)   # raises AssertionError at the first wrong token
check.done()                                  # raises if ties were excused in more than 2 prompts
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch import Tensor

from engine.plan import Work
from model.runner import ModelRunner

DATA = Path(__file__).resolve().parents[1] / "data"
TIE = 1e-4
MOST_TIES = 2


@dataclass(frozen=True)
class Answer:
    """One recorded prompt: its text and tokens, 64 greedy tokens, and the top-two gap at each of them."""

    id: str
    text: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    gaps: tuple[float, ...]


@cache
def answers() -> tuple[Answer, ...]:
    """The 40 recorded answers, in the order of tests/data/prompts.json."""
    prompts = json.loads((DATA / "prompts.json").read_text(encoding="utf-8"))
    recorded = json.loads((DATA / "greedy_smollm2.json").read_text(encoding="utf-8"))
    found = []
    for item, row in zip(prompts, recorded, strict=True):
        assert item["id"] == row["id"]
        lists = (tuple(row[key]) for key in ("prompt", "tokens", "gaps"))
        found.append(Answer(item["id"], item["text"], *lists))
    return tuple(found)


class Identity:
    """Compares answers of one path with the recorded ones.

    Equal, or different first where the two highest logits are closer than 1e-4, in at most 2 prompts; the
    rest of such a prompt must be what `runner` computes after the differing tokens.
    """

    def __init__(self, runner: ModelRunner) -> None:
        """runner: recomputes excused prompts in one piece, in blocks for 64 tokens more than the prompt."""
        self._runner = runner
        self.excused: list[str] = []
        self.compared = 0

    def take(self, index: int, tokens: Sequence[int]) -> None:
        """Compare the first tokens of prompt `index`; fewer than 64 are compared as far as they go."""
        answer, tokens = answers()[index], list(tokens)
        assert 0 < len(tokens) <= len(answer.tokens)
        self.compared += 1
        expected = list(answer.tokens[: len(tokens)])
        if tokens == expected:
            return
        pairs = enumerate(zip(tokens, expected, strict=True))
        first = next(step for step, (ours, theirs) in pairs if ours != theirs)
        gap = answer.gaps[first]
        assert gap < TIE, f"{answer.id}: token {first} is {tokens[first]}, not {expected[first]}, gap {gap}"
        self.excused.append(answer.id)
        self._teacher_forced(answer, tokens, first)

    def _teacher_forced(self, answer: Answer, tokens: list[int], first: int) -> None:
        """After a tie: what follows must be the runner's, after the path's tokens and after transformers'."""
        for given in (tokens, list(answer.tokens)):
            logits = self._logits([*answer.prompt, *given])
            for step in range(first, len(given)):
                row = logits[len(answer.prompt) + step - 1]
                short = float(row.max() - row[given[step]])
                assert short < TIE, f"{answer.id}: token {step} is {short} below the best, tie at {first}"

    def _logits(self, tokens: list[int]) -> Tensor:
        blocks = range(-(-len(tokens) // self._runner.kv.layout.block_size))
        return self._runner.logits((Work("identity", 0, tokens, 0, blocks),))

    def done(self) -> None:
        assert self.compared, "nothing was compared"
        assert len(self.excused) <= MOST_TIES, f"ties excused in {self.excused}"
