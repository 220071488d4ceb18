"""Many steps at once, where it is sure what they would be: all decode, and nobody else wants anything.

For the simulator, whose runner knows how long answers become. What is left behind is what as many single
steps would have left.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import Protocol, runtime_checkable

from engine.batch import BatchPolicy
from engine.roster import Roster
from engine.sequence import Phase, Sequence


@runtime_checkable
class Steady(Protocol):
    """A batch policy that can say for how long it will do the same."""

    def steady(self, running: SequenceOf[Sequence], now: float) -> int:
        """Steps in which `share` is sure to give each of `running`, all in decode, one token, as long as
        nobody waits, comes or leaves."""


class Coasting:
    """Looks ahead and leaps; the core counts."""

    def __init__(self, roster: Roster, policy: BatchPolicy) -> None:
        self._roster = roster
        self._policy = policy if isinstance(policy, Steady) else None

    def steps(self, most: int, now: float) -> int:
        """How many of the next `most` steps give each running sequence a token, and no more happens; or 0."""
        roster = self._roster
        if self._policy is None or len(roster.queue) or not roster.running:
            return 0
        for one in roster.running:
            if one.phase is not Phase.DECODE or one.remaining != 1:
                return 0
        steps = min(most, self._policy.steady(roster.running, now))
        pool = roster.tables.pool
        available = pool.available
        if len(roster.running) * (steps // pool.block_size + 2) <= available:
            return max(steps, 0)  # more than so many blocks nobody takes
        while steps > 0 and self.blocks(steps) > available:
            steps //= 2
        return max(steps, 0)

    def advance(self, steps: int, token: int) -> None:
        """Take `steps` steps that `steps()` allowed, each of which draws `token` for everybody."""
        tables, lives, tokens = self._roster.tables, self._roster.live, [token] * steps
        for sequence in self._roster.running:
            live = lives[sequence.request.id]
            tables.grow(sequence, steps)
            sequence.output += tokens
            tables.advance(sequence, steps, live.keys[sequence.choice], live.root)

    def blocks(self, steps: int) -> int:
        """Blocks that so many steps take from the pool."""
        missing = self._roster.tables.missing
        return sum([missing(sequence, steps) for sequence in self._roster.running])
