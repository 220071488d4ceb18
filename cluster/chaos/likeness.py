"""Whether an answer is the undisturbed one: text, ends, count of tokens, tokens and log-probabilities.

The first three are compared of every request, the others of those that asked for log-probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from cluster.chaos.client import Answer, Likeness, Token

RECOMPUTED = 1e-4
"""What a log-probability in float32 may differ by: KV that is computed again, in other chunks or beside other
requests, differs in its last bits. Of logits that are closer "same tokens" promises nothing."""


def bound_of(dtype: str, *, exact: bool) -> float | None:
    """What log-probabilities may differ by in a cluster that computes with such numbers.

    None where nothing is promised of them: in fewer bits than float32 and not exactly.
    """
    if exact:
        return 0.0
    return RECOMPUTED if dtype in ("float32", "float32+int8") else None


def likeness(answer: Answer, expected: Answer, bound: float | None) -> Likeness:
    """Compare; with no bound, tokens only and not their log-probabilities."""
    if answer.texts != expected.texts:
        return Likeness("text")
    if answer.ends != expected.ends:
        return Likeness("ends")
    if answer.tokens != expected.tokens:
        return Likeness("count of tokens")
    names = [
        {index: [one.text for one in each.logs.get(index, ())] for index in each.ends}
        for each in (answer, expected)
    ]
    if names[0] != names[1]:
        return Likeness("tokens")
    if bound is None:
        return Likeness()
    pairs = [
        pair for index, logs in expected.logs.items() for pair in zip(answer.logs[index], logs, strict=True)
    ]
    apart = max((_apart(*pair) for pair in pairs), default=0.0)
    return Likeness("log-probabilities" if apart > bound else "", len(pairs), apart)


def settle(answers: Sequence[Answer], undisturbed: Sequence[Answer], bound: float | None) -> None:
    """Compare those that are whole and have not been compared, and let go of their tokens, which would be
    millions in a long run."""
    expected = {answer.ask.number: answer for answer in undisturbed}
    for answer in answers:
        if answer.whole and answer.likeness is None:
            answer.likeness = likeness(answer, expected[answer.ask.number], bound)
            answer.logs = {}


def _apart(one: Token, other: Token) -> float:
    """The largest difference of two tokens' log-probabilities and of those of their alternatives.

    One that is listed on one side only was about even with the other side's last: it is compared with that.
    """
    found = [abs(one.logprob - other.logprob)]
    if len(one.top) != len(other.top):
        return math.inf
    for mine, theirs in ((one.top, other.top), (other.top, one.top)):
        last = min(theirs.values(), default=0.0)
        found += [abs(value - theirs.get(name, last)) for name, value in mine.items()]
    return max(found)
