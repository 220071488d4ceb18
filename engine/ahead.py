"""The step after the one that computes, decided before anybody knows what that one draws.

        plan N ──▶ computes ───────────────▶ commit N
              plan N + 1 ──▶ waits its turn ─▶ computes ──▶ …

Sure is such a step where all who run decode and nobody can join them: each draws one token and wants one
more, but for those that reach their length. Who ends by a token of his own, or is frozen, has a row in vain:
commit leaves it alone. What needs the draws for its plan (penalties, grammars, handoffs, chunks) goes one by
one.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

from engine.batch import BatchPolicy
from engine.coasting import Steady
from engine.plan import Draw, StepPlan, Work
from engine.roster import Roster
from engine.sequence import Phase, Sequence


class Ahead:
    """Looks one step further; see `engine.planner` for the step itself."""

    def __init__(self, roster: Roster, policy: BatchPolicy) -> None:
        self._roster = roster
        self._policy = policy if isinstance(policy, Steady) else None

    def plan(
        self, plan: StepPlan, sequences: SequenceOf[Sequence], now: float, *, full: bool
    ) -> tuple[StepPlan, list[Sequence]] | None:
        """The step after `plan`, in flight for `sequences`; None if it is not sure or nobody is left.

        `full`: whoever waits finds no place or no blocks now, but might where somebody ends.
        """
        roster = self._roster
        waits = len(roster.queue) > 0
        swaps = roster.tiers.settings.slots > 0
        if self._policy is None or (waits and (swaps or not full)):
            return None
        rows = {id(sequence): row for row, sequence in enumerate(sequences)}
        if not all(
            id(one) in rows and self._certain(one, plan.works[rows[id(one)]]) for one in roster.running
        ):
            return None
        staying = [one for one in roster.running if not self._ends(one)]
        if waits and len(staying) < len(roster.running):
            return None
        if not staying or self._policy.steady(staying, now) < 2:
            return None
        tables = roster.tables
        if sum(tables.missing(one, 2) for one in staying) > tables.pool.available:
            return None
        for one in staying:
            copies = tables.grow(one, 2)
            assert not copies, "the block that a step writes is its sequence's own"
        works = tuple(self._work(one) for one in staying)
        return StepPlan(works, fed=tuple(rows[id(one)] for one in staying)), staying

    def _certain(self, sequence: Sequence, work: Work) -> bool:
        """Whether the step in flight is sure to give it one token, and another one after that."""
        return (
            sequence.phase is Phase.DECODE
            and sequence.remaining == 1
            and sequence.computed == work.start
            and work.draw is not None
            and not sequence.request.sampling.looks_back
            and not self._roster.live[sequence.request.id].handoff
        )

    def _ends(self, sequence: Sequence) -> bool:
        """Whether the token in flight is the last that it may have."""
        longest = self._roster.live[sequence.request.id].max_length
        return (
            len(sequence.output) + 1 >= sequence.request.sampling.max_tokens or len(sequence) + 1 >= longest
        )

    def _work(self, sequence: Sequence) -> Work:
        live, position = self._roster.live[sequence.request.id], len(sequence.output) + 1
        return Work(
            sequence.request.id,
            sequence.choice,
            (0,),
            sequence.computed + 1,
            sequence.blocks,
            Draw(sequence.request.sampling, live.choices(sequence), position, banned=live.banned(position)),
        )
