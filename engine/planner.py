"""From the shares of a batch policy to a StepPlan: blocks, preemption and admission."""

from __future__ import annotations

from collections.abc import Iterator

from engine.batch import BatchPolicy
from engine.live import Live
from engine.plan import Draw, StepPlan, Work
from engine.roster import Roster
from engine.sequence import Phase, Sequence


class Planner:
    """Takes the policy's shares in order and makes them good while there are blocks.

    A running sequence that needs a block takes it from the newest running one, which is preempted
    whole and may be itself. Waiting ones are admitted up to the first that does not fit, so that a
    long one is never overtaken; after a preemption nobody is admitted in the same step.
    """

    def __init__(self, roster: Roster, policy: BatchPolicy, max_sequences: int) -> None:
        self._roster = roster
        self._tables = roster.tables
        self._policy = policy
        self._max_sequences = max_sequences
        self.prefix_queries = 0
        self.prefix_hits = 0

    def plan(self, now: float, promised: int) -> tuple[StepPlan, list[Sequence]] | None:
        """The next step and the sequence of each of its works, None if nobody can run.

        `promised` counts choices that are on their way here and have a place among the running.
        """
        roster = self._roster
        shares = self._policy.share(roster.running, self._candidates(), now)
        works: dict[int, tuple[Sequence, Work]] = {}
        copies: dict[int, int] = {}
        admitting = True
        for share in shares:
            sequence = share.sequence
            if sequence.phase is Phase.WAITING:
                admitting = admitting and self._admit(sequence, now, promised)
                if not admitting:
                    continue
            tokens = min(share.tokens, sequence.remaining)
            while self._tables.missing(sequence, tokens) > self._tables.pool.available:
                victim = roster.running[-1]
                self._preempt(victim, works, copies)
                admitting = False
                if victim is sequence:
                    break
            else:
                copies.update((target, source) for source, target in self._tables.grow(sequence, tokens))
                works[id(sequence)] = sequence, self._work(sequence, tokens)
        if not works:
            return None
        plan = StepPlan(
            tuple(work for _, work in works.values()),
            tuple((source, target) for target, source in copies.items()),
        )
        return plan, [sequence for sequence, _ in works.values()]

    def _candidates(self) -> Iterator[Sequence]:
        """Those who wait, each with what the prefix cache would spare it now."""
        for sequence in self._roster.queue:
            keys = self._keys(sequence)
            sequence.cached = len(self._tables.lookup(sequence, keys)) * self._tables.pool.block_size
            yield sequence

    def _keys(self, sequence: Sequence) -> list[bytes]:
        live = self._roster.live[sequence.request.id]
        keys = live.keys[sequence.choice]
        self._tables.extend_keys(sequence, keys, live.root, len(sequence))
        return keys

    def _admit(self, sequence: Sequence, now: float, promised: int) -> bool:
        roster = self._roster
        live = roster.live[sequence.request.id]
        if roster.width() + promised + live.width(sequence) > self._max_sequences:
            return False
        if not self._tables.admit(sequence, self._keys(sequence), alone=not roster.running):
            return False
        self.prefix_queries += len(sequence)
        self.prefix_hits += sequence.cached
        if live.started is None:
            live.started = now
            live.cached = min(sequence.cached, len(live.request.prompt))
        roster.queue.remove(sequence.key)
        roster.run(sequence, Phase.PREFILL)
        return True

    def _preempt(
        self, sequence: Sequence, works: dict[int, tuple[Sequence, Work]], copies: dict[int, int]
    ) -> None:
        """Also take back what this step had in store for it."""
        if works.pop(id(sequence), None) is not None:
            for block in sequence.blocks:
                copies.pop(block, None)
        self._roster.preempt(sequence)

    def _work(self, sequence: Sequence, tokens: int) -> Work:
        start = sequence.computed
        stop = start + tokens
        last = stop == len(sequence)
        decode = tokens == 1 and last and bool(sequence.output)
        return Work(
            sequence.request.id,
            sequence.choice,
            sequence.output[-1:] if decode else sequence.tokens(start, stop),
            start,
            sequence.blocks,
            self._draw(self._roster.live[sequence.request.id], sequence) if last else None,
        )

    def _draw(self, live: Live, sequence: Sequence) -> Draw:
        sampling = sequence.request.sampling
        position = len(sequence.output)
        if sampling.has_penalties:
            return Draw(
                sampling,
                live.choices(sequence),
                position,
                sequence.request.prompt,
                sequence.output,
                live.banned(position),
            )
        return Draw(sampling, live.choices(sequence), position, banned=live.banned(position))
