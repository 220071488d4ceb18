"""Which of several instances suits a request best: the placement policies, by the names that the config uses.

    freeness        prefill where the fewest tokens wait, decode where most blocks are left for each request
    affinity        the same, with what is cached of the prompt, and the adapter, counted in
    expert_choice   instances take what suits them best, each up to its share of what waits (Expert Choice)
    least_kv        prefill and decode where the least KV is held or asked for
    round_robin     one after the other

The last two are what others are compared with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from global_scheduler.freeness import backlog, freeness
from global_scheduler.view import Load, Summary


@dataclass(frozen=True, slots=True)
class Suit:
    """A request, and what instances have of it: `cached` tokens of its prompt, its adapter at `adapted`.

    `adapter_tokens` is what loading an adapter costs, in prompt tokens, `headroom` the blocks that an
    instance with urgent requests keeps clear for them.
    """

    summary: Summary
    cached: Mapping[str, int] = field(default_factory=dict)
    adapted: frozenset[str] = frozenset()
    adapter_tokens: int = 0
    headroom: int = 0

    def compute(self, load: Load) -> int:
        """Prompt tokens that the instance would have to compute, an adapter's loading included."""
        cached = self.cached.get(load.instance, 0)
        # The last token of a prompt is always computed: what follows it is drawn from it.
        tokens = self.summary.prompt_tokens - min(cached, self.summary.prompt_tokens - 1)
        missing = self.summary.adapter and load.instance not in self.adapted
        return tokens + (self.adapter_tokens if missing else 0)

    def saved(self) -> dict[str, int]:
        """Prompt tokens that each instance need not compute which others must; only those that have any."""
        most = self.summary.prompt_tokens - 1
        saved = {instance: min(tokens, most) for instance, tokens in self.cached.items()}
        for instance in self.adapted:
            saved[instance] = saved.get(instance, 0) + self.adapter_tokens
        return saved

    def freeness(self, load: Load) -> float:
        """Blocks for each request once this one has joined, all of its prompt counted."""
        return freeness(load, hold=self.summary.prompt_tokens, headroom=self.headroom)


class Ranking(Protocol):
    """Chooses one of `loads`, of which there is one at least, and says why."""

    def prefill(self, loads: Sequence[Load], suit: Suit) -> tuple[Load, str]: ...

    def decode(self, loads: Sequence[Load], suit: Suit) -> tuple[Load, str]: ...


class ByFreeness:
    """The shortest prefill queue; the freest decode instance. Looks at no cache."""

    def prefill(self, loads: Sequence[Load], suit: Suit) -> tuple[Load, str]:
        least = min([load.queued_tokens for load in loads])
        shortest = [load for load in loads if load.queued_tokens == least]
        there = _most_free(shortest, suit)
        return there, _queued(there)

    def decode(self, loads: Sequence[Load], suit: Suit) -> tuple[Load, str]:
        there = _most_free(loads, suit)
        return there, _freest(there)


class ByAffinity:
    """Tokens to compute until the first of this request: those that wait, and what is not cached of its own.

    A cache draws as long as the queue before it is shorter than what it saves. Of decode instances one with
    a part of the prompt is taken unless another is twice as free.
    """

    def prefill(self, loads: Sequence[Load], suit: Suit) -> tuple[Load, str]:
        saved = suit.saved()
        costs = [load.queued_tokens - saved.get(load.instance, 0) for load in loads]
        least = min(costs)
        best = [load for load, cost in zip(loads, costs, strict=True) if cost == least]
        there = _most_free(best, suit)
        return there, _queued(there) + _cached(there, suit)

    def decode(self, loads: Sequence[Load], suit: Suit) -> tuple[Load, str]:
        there = _most_free(loads, suit)
        saved = suit.saved()
        if not saved:
            return there, _freest(there)
        enough = suit.freeness(there) / 2
        holders = [load for load in loads if load.instance in saved and suit.freeness(load) >= enough]
        near = min(holders, key=suit.compute, default=there)
        if suit.compute(near) < suit.compute(there):
            return near, f"{near.instance} is free enough ({freeness(near):.1f}){_cached(near, suit)}"
        return there, _freest(there) + _cached(there, suit)


class ByExpertChoice:
    """Of the n requests that wait and this one, each of e instances takes capacity · n / e at most.

    After Expert Choice routing (NeurIPS'22): the instances choose, each its best. Requests come one by one
    here, so the choice is among the instances that have not had their share; who fits it best has it.
    """

    def __init__(self, capacity: float = 1.5) -> None:
        self._capacity = max(1.0, capacity)

    def prefill(self, loads: Sequence[Load], suit: Suit) -> tuple[Load, str]:
        return self._pull(loads, suit, [load.queued for load in loads])

    def decode(self, loads: Sequence[Load], suit: Suit) -> tuple[Load, str]:
        return self._pull(loads, suit, [load.requests for load in loads])

    def _pull(self, loads: Sequence[Load], suit: Suit, counts: list[int]) -> tuple[Load, str]:
        """`counts` are the requests that each has already."""
        share = math.ceil(self._capacity * (sum(counts) + 1) / len(loads))
        saved = suit.saved()
        choosing = [
            (-saved.get(load.instance, 0), count, -suit.freeness(load), at)
            for at, (load, count) in enumerate(zip(loads, counts, strict=True))
            if count < share
        ]
        there = loads[min(choosing)[-1]]
        why = f"{there.instance} takes it as number {counts[min(choosing)[-1]] + 1} of {share} at most"
        return there, why + _cached(there, suit)


class ByLeastKV:
    """Where the fewest blocks are held and asked for, whatever the number of requests."""

    def prefill(self, loads: Sequence[Load], suit: Suit) -> tuple[Load, str]:
        return self.decode(loads, suit)

    def decode(self, loads: Sequence[Load], suit: Suit) -> tuple[Load, str]:
        there = min(loads, key=lambda load: load.demand)
        return there, f"{there.instance} has the least KV ({there.demand} blocks)"


class InTurn:
    """One after the other, in each pool for itself."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def prefill(self, loads: Sequence[Load], suit: Suit) -> tuple[Load, str]:
        return self.decode(loads, suit)

    def decode(self, loads: Sequence[Load], suit: Suit) -> tuple[Load, str]:
        role = loads[0].role
        turn = self._last[role] = self._last.get(role, -1) + 1
        there = loads[turn % len(loads)]
        return there, f"it is {there.instance}'s turn"


RANKINGS: dict[str, Callable[[], Ranking]] = {
    "freeness": ByFreeness,
    "affinity": ByAffinity,
    "expert_choice": ByExpertChoice,
    "least_kv": ByLeastKV,
    "round_robin": InTurn,
}


def _most_free(loads: Sequence[Load], suit: Suit) -> Load:
    """The first of the freest: `suit.freeness`, written out because it is asked of every instance."""
    hold, headroom = suit.summary.prompt_tokens, suit.headroom
    values = [
        (load.blocks - load.demand - (headroom if load.urgent else 0) - -(-hold // load.block_size))
        / (load.requests + 1)
        for load in loads
    ]
    return loads[values.index(max(values))]


def _queued(load: Load) -> str:
    return f"{load.instance} has the fewest queued tokens ({backlog(load)})"


def _freest(load: Load) -> str:
    return f"{load.instance} is freest ({freeness(load):.1f} blocks per request)"


def _cached(load: Load, suit: Suit) -> str:
    cached = suit.cached.get(load.instance, 0)
    adapted = suit.summary.adapter and load.instance in suit.adapted
    return (f" and {cached} prompt tokens cached" if cached else "") + (" and the adapter" if adapted else "")
