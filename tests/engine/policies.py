"""What every batch policy of either pool must do, checked on random states."""

from __future__ import annotations

import random
from collections.abc import Mapping

from engine.batch import BatchPolicy, due
from engine.sequence import Phase, Sequence
from tests.engine.toy import prompt, request


def state(rng: random.Random) -> tuple[list[Sequence], list[Sequence]]:
    """Running and waiting sequences as a core may hold them; decodes and prefills in any order."""
    running, waiting = [], []
    for i in range(rng.randrange(8)):
        sequence = Sequence(request(f"r{i}", prompt(rng.randrange(1, 60), i)))
        if rng.random() < 0.6:
            sequence.output = [1] * rng.randrange(1, 9)
            sequence.computed, sequence.phase = len(sequence) - 1, Phase.DECODE
        else:
            sequence.computed, sequence.phase = rng.randrange(len(sequence)), Phase.PREFILL
        running.append(sequence)
    for i in range(rng.randrange(5)):
        sequence = Sequence(request(f"w{i}", prompt(rng.randrange(1, 60), i)))
        sequence.cached = rng.randrange(len(sequence)) // 4 * 4
        waiting.append(sequence)
    return running, waiting


def check(policy: BatchPolicy, budget: int, running: list[Sequence], waiting: list[Sequence]) -> None:
    shares = policy.share(running, iter(waiting), 0.0)
    given = {share.sequence.key: share.tokens for share in shares}
    order = [share.sequence for share in shares]
    decodes = [one for one in running if one.phase is Phase.DECODE]
    prefills = [one for one in running if one.phase is Phase.PREFILL]
    assert len(given) == len(shares), "one share each"
    assert order[: len(decodes)] == decodes, "decodes come first, and all of them"
    assert all(given[one.key] == 1 for one in decodes)
    assert all(0 < share.tokens <= due(share.sequence) for share in shares)
    rest = order[len(decodes) :]
    assert sum(given.values()) <= max(budget, len(decodes) + bool(rest)), "the budget is on the whole batch"
    assert rest == [*prefills, *waiting][: len(rest)], "first come, first served"
    assert not any(one.key in given for one in waiting) or all(one.key in given for one in prefills)
    if rest:
        assert all(given[one.key] == due(one) for one in rest[:-1]), "only the last chunk is a part"
    else:
        assert not prefills and not waiting, "a prompt goes on in every step"


def check_many(policies: Mapping[int, BatchPolicy], states: int) -> None:
    rng = random.Random(1)
    for _ in range(states):
        budget = rng.choice(list(policies))
        check(policies[budget], budget, *state(rng))
