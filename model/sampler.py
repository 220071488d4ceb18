"""From logits to drawn tokens: bias, bans, penalties, then one draw a choice; and log-probabilities.

    raw logits ─┬─▶ logit_bias ─▶ banned ─▶ repetition ─▶ frequency, presence ─▶ grammar ─▶ kernels.sample
                └─▶ log_softmax ─▶ logprobs

A row's result depends on its own logits and Draw alone: not on the rows beside it, nor on earlier calls.
Penalties are those of OpenAI (presence, frequency: on the output so far) and of CTRL (repetition: on prompt
and output; Keskar et al., arXiv 1909.05858).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from engine.plan import Draw, Drawn
from engine.request import Sampling
from kernels.dispatch import Kernels
from kernels.reference import draw_key, wide


class Grammars(Protocol):
    """Knows which tokens may follow."""

    def allowed(self, grammar: str, output: Sequence[int]) -> Tensor:
        """[vocabulary], boolean: the tokens that may come after `output`; never none."""


def draw(
    logits: Tensor, draws: Sequence[Draw], kernels: Kernels, grammars: Grammars | None = None
) -> list[tuple[Drawn, ...]]:
    """Draw every choice of every row.

    logits: [rows, vocabulary] in the model's dtype, one row a Draw; grammars: may be left out where no
    sampling has one. NaN counts as −inf; a row without any
    finite logit is drawn from as if all tokens were equal. Returns, row by row, one Drawn for each choice.
    """
    raw = finite(logits.to(wide(logits.dtype)))
    if all(_is_plain(item) for item in draws):
        return [(Drawn(token),) * len(item.choices) for token, item in zip(_argmax(raw), draws, strict=True)]
    tokens = iter(_sampled(raw, draws, kernels, grammars))
    results = []
    for row, item in zip(raw, draws, strict=True):
        drawn = [next(tokens) for _ in item.choices]
        results.append(_reported(row, drawn, item.sampling.logprobs))
    return results


def finite(logits: Tensor) -> Tensor:
    """Logits whose rows all have a finite maximum; the same tensor if nothing is wrong with it."""
    sound = logits.amax(-1).isfinite()
    return logits if bool(sound.all()) else cleaned(logits)


def cleaned(logits: Tensor) -> Tensor:
    """`finite` without a look at the values, so that a GPU need not be waited for: always a new tensor."""
    tidy = torch.nan_to_num(
        logits, nan=float("-inf"), posinf=torch.finfo(logits.dtype).max, neginf=float("-inf")
    )
    hopeless = tidy.amax(-1, keepdim=True) == float("-inf")
    return tidy.masked_fill(hopeless, 0.0)


def is_simple(item: Draw) -> bool:
    """Whether a token drawn from the model's own logits is all that is asked for."""
    return item.sampling.logprobs is None and not _is_adjusted(item)


def _is_plain(item: Draw) -> bool:
    """Whether the likeliest token is all that is asked for."""
    return item.sampling.temperature == 0 and is_simple(item)


def _is_adjusted(item: Draw) -> bool:
    """Whether the draw is from other logits than the model's."""
    return bool(item.sampling.logit_bias or item.banned or item.sampling.looks_back)


def _argmax(logits: Tensor) -> list[int]:
    tokens: list[int] = logits.argmax(-1).tolist()
    return tokens


def _sampled(raw: Tensor, draws: Sequence[Draw], kernels: Kernels, grammars: Grammars | None) -> list[int]:
    """One token for each choice of each draw, in order."""
    adjusted = raw
    if any(_is_adjusted(item) for item in draws):
        rows_of = zip(raw, draws, strict=True)
        adjusted = finite(torch.stack([_adjusted(row, item, grammars) for row, item in rows_of]))
    rows = [index for index, item in enumerate(draws) for _ in item.choices]
    settings = [draws[index].sampling for index in rows]
    keys = [draw_key(item.sampling.seed, choice, item.position) for item in draws for choice in item.choices]

    def column(values: list[float], dtype: torch.dtype = raw.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype).to(raw.device)

    if len(rows) != len(draws):
        adjusted = adjusted.index_select(0, column(list(rows), torch.int64))
    tokens: list[int] = kernels.sample(
        adjusted,
        column([sampling.temperature for sampling in settings]),
        column([max(sampling.top_k, 0) for sampling in settings], torch.int64),
        column([sampling.top_p for sampling in settings]),
        column([sampling.min_p for sampling in settings]),
        torch.tensor(keys, dtype=torch.int64).to(raw.device),
    ).tolist()
    return tokens


def _adjusted(row: Tensor, item: Draw, grammars: Grammars | None) -> Tensor:
    """One row after bias, bans, penalties and grammar; the row itself if there are none."""
    sampling = item.sampling
    if not _is_adjusted(item):
        return row
    row = row.clone()
    if sampling.logit_bias:
        tokens, amounts = zip(*sampling.logit_bias, strict=True)
        row.index_add_(0, _ids(tokens, row), torch.tensor(amounts, dtype=row.dtype).to(row.device))
    if item.banned:
        row[_ids(sorted(item.banned), row)] = float("-inf")
    if sampling.has_penalties:
        _penalise(row, sampling, item)
    if sampling.grammar:
        assert grammars is not None, "a runner that draws by a grammar knows grammars"
        row = _bound(row, grammars.allowed(sampling.grammar, item.output).to(row.device))
    return row


def _bound(row: Tensor, allowed: Tensor) -> Tensor:
    """Only what is allowed; all of it alike if no logit of it is finite."""
    bound = torch.full_like(row, float("-inf"))
    bound[allowed] = finite(row[allowed].unsqueeze(0))[0]
    return bound


def _penalise(row: Tensor, sampling: Sampling, item: Draw) -> None:
    seen = {*item.prompt, *item.output}
    if sampling.repetition_penalty != 1.0 and seen:
        tokens = _ids(sorted(seen), row)
        values = row[tokens]
        strength = sampling.repetition_penalty
        row[tokens] = torch.where(values > 0, values / strength, values * strength)
    if item.output and (sampling.frequency_penalty or sampling.presence_penalty):
        counts = Counter(item.output)
        amounts = [sampling.frequency_penalty * n + sampling.presence_penalty for n in counts.values()]
        row[_ids(list(counts), row)] -= torch.tensor(amounts, dtype=row.dtype).to(row.device)


def _ids(tokens: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(tokens, dtype=torch.int64).to(like.device)


def _reported(row: Tensor, drawn: list[int], logprobs: int | None) -> tuple[Drawn, ...]:
    if logprobs is None:
        return tuple(Drawn(token) for token in drawn)
    scores = row.log_softmax(-1)
    top = scores.topk(min(logprobs, len(scores)))
    likeliest = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return tuple(Drawn(token, float(scores[token]), likeliest) for token in drawn)
