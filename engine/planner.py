"""From the shares of a batch policy to a StepPlan: blocks, preemption and admission."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from engine.batch import BatchPolicy
from engine.live import Live
from engine.plan import Draw, StepPlan, Work
from engine.roster import Roster
from engine.sequence import Phase, Sequence


class Entry(NamedTuple):
    """What one sequence has in a plan."""

    sequence: Sequence
    work: Work
    copies: tuple[tuple[int, int], ...]


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
        entries: dict[int, Entry] = {}
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
                entries.pop(id(victim), None)
                roster.preempt(victim)
                admitting = False
                if victim is sequence:
                    break
            else:
                copies = self._tables.grow(sequence, tokens)
                entries[id(sequence)] = Entry(sequence, self._work(sequence, tokens), copies)
        if not entries:
            return None
        plan = StepPlan(
            tuple(entry.work for entry in entries.values()),
            tuple(copy for entry in entries.values() for copy in entry.copies),
        )
        return plan, [entry.sequence for entry in entries.values()]

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
