"""From the shares of a batch policy to a StepPlan: blocks, preemption and admission."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from engine.batch import BatchPolicy
from engine.eviction import Evictor
from engine.live import Live
from engine.plan import Draw, StepPlan, Work
from engine.reserve_max import Longest
from engine.roster import Roster
from engine.sequence import Phase, Sequence, Tier


class Entry(NamedTuple):
    """What one sequence has in a plan."""

    sequence: Sequence
    work: Work
    copies: tuple[tuple[int, int], ...]


class Planner:
    """Takes the policy's shares in order and makes them good while there are blocks.

    A running sequence that needs a block takes it from the Evictor's victim, which is preempted
    whole and may be itself. Waiting ones are offered and admitted up to the first that does not fit, so
    that a long one is never overtaken; after a preemption nobody is admitted in the same step. `seats`
    sequences may hold blocks, and where it is asked of `longest`, only those who fit at their longest.
    """

    def __init__(self, roster: Roster, policy: BatchPolicy, seats: int, longest: Longest) -> None:
        self._roster = roster
        self._tables = roster.tables
        self._policy = policy
        self._evictor = Evictor(roster, policy)
        self._seats = seats
        self._longest = longest
        self.prefix_queries = 0
        self.prefix_hits = 0

    def plan(self, now: float, promised: int) -> tuple[StepPlan, list[Sequence]] | None:
        """The next step and the sequence of each of its works, None if nobody can run.

        `promised` counts choices that are on their way here and have a place among the running.
        """
        planned = self._plan(now, promised)
        while planned is None and self._evictor.evicted:
            planned = self._plan(now, promised)  # all who had a share gave way, and others may go on now
        return planned

    def _plan(self, now: float, promised: int) -> tuple[StepPlan, list[Sequence]] | None:
        roster = self._roster
        self._evictor.begin(now)
        if not roster.running and not len(roster.queue):
            return self._finished({})
        shares = self._policy.share(roster.running, self._candidates(promised), now)
        entries: dict[int, Entry] = {}
        admitting = True
        for share in shares:
            sequence = share.sequence
            if id(sequence) in self._evictor.evicted:
                continue
            if sequence.phase is Phase.WAITING:
                admitting = admitting and self._admit(sequence, now, promised, entries)
                if not admitting:
                    continue
            tokens = min(share.tokens, sequence.remaining)
            while self._tables.missing(sequence, tokens) > self._tables.pool.available:
                admitting = False
                victim = self._evictor.victim()
                self._evict(victim, entries)
                if victim is sequence:
                    break
            else:
                copies = self._tables.grow(sequence, tokens)
                entries[id(sequence)] = Entry(sequence, self._work(sequence, tokens), copies)
        self._swap_ahead(entries, promised)
        return self._finished(entries)

    def _finished(self, entries: dict[int, Entry]) -> tuple[StepPlan, list[Sequence]] | None:
        out, into = self._roster.tiers.copies()
        if not entries and not out and not into:
            return None
        plan = StepPlan(
            tuple(entry.work for entry in entries.values()),
            tuple(copy for entry in entries.values() for copy in entry.copies),
            out,
            into,
        )
        return plan, [entry.sequence for entry in entries.values()]

    def full(self, promised: int) -> bool:
        """Whether there is no place or no blocks for any who wait; True where nobody does."""
        return next(self._candidates(promised), None) is None

    def _candidates(self, promised: int) -> Iterator[Sequence]:
        """Those who wait, as long as there is room, each with what the prefix cache would spare it now."""
        roster, pool = self._roster, self._tables.pool
        width = roster.width() + promised
        spoken = 0
        for sequence in self._longest.fitting(roster.queue):
            found: list[int] = []
            if sequence.tier is Tier.DEVICE:
                found = self._tables.lookup(sequence, self._keys(sequence))
                sequence.cached = len(found) * pool.block_size
            spoken += pool.blocks_for(len(sequence)) - len(found)
            width += roster.live[sequence.request.id].width(sequence)
            if width > self._seats:
                return
            if not self._tables.room(found, spoken, alone=not roster.running):
                missing = spoken + pool.idle(found) - pool.available
                if missing > self._evictor.obtainable(sequence):
                    return
            yield sequence

    def _keys(self, sequence: Sequence) -> list[bytes]:
        live = self._roster.live[sequence.request.id]
        keys = live.keys[sequence.choice]
        self._tables.extend_keys(sequence, keys, live.root, len(sequence))
        return keys

    def _admit(self, sequence: Sequence, now: float, promised: int, entries: dict[int, Entry]) -> bool:
        roster = self._roster
        live = roster.live[sequence.request.id]
        if roster.width() + promised + live.width(sequence) > self._seats:
            return False
        while not self._enter(sequence, now):
            victim = self._evictor.next_behind(sequence)
            if victim is None:
                return False
            self._evict(victim, entries)
        return True

    def _enter(self, sequence: Sequence, now: float) -> bool:
        """From the queue to those who run, if there are blocks."""
        roster = self._roster
        alone = not roster.running
        phase = Phase.PREFILL
        if sequence.tier is Tier.HOST:
            if not roster.bring_back(sequence, alone=alone):
                return False
            if sequence.output and sequence.remaining == 1:
                phase = Phase.DECODE
        else:
            if not self._tables.admit(sequence, self._keys(sequence), alone=alone):
                return False
            self.prefix_queries += len(sequence)
            self.prefix_hits += sequence.cached
        live = roster.live[sequence.request.id]
        if live.started is None:
            live.started = now
            live.cached = min(sequence.cached, len(live.request.prompt))
        roster.queue.remove(sequence.key)
        roster.run(sequence, phase)
        self._evictor.joined()
        return True

    def _evict(self, victim: Sequence, entries: dict[int, Entry]) -> None:
        entry = entries.pop(id(victim), None)
        self._evictor.evict(victim, whole=entry is None or not entry.copies)

    def _swap_ahead(self, entries: dict[int, Entry], promised: int) -> None:
        """What the step has time for besides: to make room for those to come, or bring those back."""
        self._evictor.ahead(entry.sequence for entry in entries.values())
        for sequence in self._evictor.returning():
            width = self._roster.live[sequence.request.id].width(sequence)
            if self._roster.width() + promised + width > self._seats:
                return
            if not list(self._longest.fitting([sequence])) or not self._enter(sequence, 0.0):
                return

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
        if sampling.looks_back:
            return Draw(
                sampling,
                live.choices(sequence),
                position,
                sequence.request.prompt,
                sequence.output,
                live.banned(position),
            )
        return Draw(sampling, live.choices(sequence), position, banned=live.banned(position))
