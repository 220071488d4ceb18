"""How far one way of computing a model agrees with another: float32 as a rule, on its own greedy answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

import torch
from torch import Tensor

from engine.plan import Draw, StepPlan, Work
from engine.request import Sampling
from model.runner import ModelRunner

_GREEDY = Sampling(max_tokens=1, temperature=0.0, ignore_eos=True)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Over the answers of the reference.

    identical: the share of prompts whose whole greedy answer is the same; agreed: the share of tokens before
    the first that differs; divergence: the mean Kullback-Leibler divergence of a token's distribution from
    the reference's, in nats; perplexity and reference_perplexity: of the same answers.
    """

    prompts: int
    identical: float
    agreed: float
    divergence: float
    perplexity: float
    reference_perplexity: float


def answer(runner: ModelRunner, prompt: Sequence[int], tokens: int) -> list[int]:
    """The greedy answer of `tokens` tokens. The KV cache must hold both."""
    blocks = range(runner.kv.blocks)
    known = list(prompt)
    computed = 0
    for index in range(tokens):
        work = Work("agreement", 0, known[computed:], computed, blocks, Draw(_GREEDY, (0,), index))
        ((drawn,),) = runner.run(StepPlan((work,))).drawn
        computed = len(known)
        known.append(drawn.token)
    return known[len(prompt) :]


def agreement(
    ours: ModelRunner, reference: ModelRunner, prompts: Sequence[Sequence[int]], tokens: int = 64
) -> Agreement:
    """Compare on the reference's greedy answers of `tokens` tokens, the rest position by position.

    Both KV caches must hold the longest prompt and its answer.
    """
    identical = agreed = 0
    divergence = surprise = reference_surprise = 0.0
    for prompt in prompts:
        expected = answer(reference, prompt, tokens)
        got = answer(ours, prompt, tokens)
        same = next((i for i in range(tokens) if got[i] != expected[i]), tokens)
        agreed += same
        identical += same == tokens
        theirs, mine = (_scores(runner, prompt, expected) for runner in (reference, ours))
        divergence += float((theirs.exp() * (theirs - mine)).sum())
        drawn = torch.tensor(expected)[:, None]
        surprise -= float(mine.gather(1, drawn).sum())
        reference_surprise -= float(theirs.gather(1, drawn).sum())
    count = len(prompts) * tokens
    return Agreement(
        prompts=len(prompts),
        identical=identical / len(prompts),
        agreed=agreed / count,
        divergence=divergence / count,
        perplexity=exp(surprise / count),
        reference_perplexity=exp(reference_surprise / count),
    )


def _scores(runner: ModelRunner, prompt: Sequence[int], following: Sequence[int]) -> Tensor:
    """Log-probabilities of what follows, position by position: [len(following), vocabulary] float64."""
    known = [*prompt, *following[:-1]]
    logits = runner.logits([Work("agreement", 0, known, 0, range(runner.kv.blocks))])
    return logits[len(prompt) - 1 :].double().log_softmax(-1)
