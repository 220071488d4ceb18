"""Who lives in an engine core and where: waiting in the queue, running, or paused."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

from engine.batch import WaitingQueue
from engine.live import Live
from engine.outcome import Emitted, StepOutcome
from engine.sequence import Phase, Sequence, SequenceKey, Tier
from engine.status import RequestStatus
from engine.tables import BlockTables
from engine.tiers import Tiers

RUNS = frozenset({Phase.PREFILL, Phase.DECODE})

FURTHEST = (Phase.PAUSED, Phase.WAITING, Phase.PREFILL, Phase.DECODE)


class Roster:
    """Moves sequences between queue, running list and pause, and keeps their blocks right as it does."""

    def __init__(self, queue: WaitingQueue, tables: BlockTables, tiers: Tiers) -> None:
        self.queue = queue
        self.tables = tables
        self.tiers = tiers
        self.live: dict[str, Live] = {}
        self.running: list[Sequence] = []
        self.paused: dict[SequenceKey, Sequence] = {}
        self.dropped: dict[str, None] = {}
        self.prefilled: dict[str, None] = {}
        self.preemptions = 0

    def sequences(self, request_id: str) -> list[Sequence]:
        live = self.live.get(request_id)
        return [] if live is None else list(live.sequences.values())

    def requests(self, now: float) -> list[RequestStatus]:
        """Every request that lives here; `now` is on the clock of `Request.arrival`."""
        return [
            RequestStatus(
                request_id=live.request.id,
                phase=max((s.phase for s in live.sequences.values()), key=FURTHEST.index).value,
                prompt_tokens=len(live.request.prompt),
                output_tokens=sum(len(s.output) for s in live.sequences.values()),
                blocks=len({block for s in live.sequences.values() for block in s.blocks}),
                priority=live.request.priority,
                age=max(0.0, now - live.request.arrival),
                tenant=live.request.tenant,
            )
            for live in self.live.values()
        ]

    def width(self) -> int:
        """Choices that run or hold blocks to run on with; a common prompt counts for all its choices."""
        resident = [sequence for sequence in self.paused.values() if sequence.blocks]
        return sum(self.live[one.request.id].width(one) for one in (*self.running, *resident))

    def wait(self, sequence: Sequence, *, front: bool = False) -> None:
        if sequence.phase is not Phase.WAITING:
            sequence.become(Phase.WAITING)
        self.queue.add(sequence, front=front)

    def run(self, sequence: Sequence, phase: Phase) -> None:
        """Join those that run: behind earlier ones, and ones of a higher priority where that counts."""
        if sequence.phase is not phase:
            sequence.become(phase)
        rank = self._rank(sequence)
        place = len(self.running)
        while place and rank < self._rank(self.running[place - 1]):
            place -= 1
        self.running.insert(place, sequence)

    def _rank(self, sequence: Sequence) -> tuple[int, int, int]:
        priority = sequence.request.priority if self.queue.by_priority else 0
        return -priority, self.live[sequence.request.id].order, sequence.choice

    def _leave(self, sequence: Sequence) -> None:
        if sequence.phase is Phase.WAITING:
            self.queue.remove(sequence.key)
        elif sequence.phase in RUNS:
            self.running = [other for other in self.running if other is not sequence]
        else:
            self.paused.pop(sequence.key, None)

    def pause(self, sequence: Sequence) -> None:
        """Keep tokens and blocks, and compute nothing. KV in host memory is given up: it cannot move."""
        if sequence.phase is not Phase.PAUSED:
            self._leave(sequence)
            self._forget(sequence)
            sequence.become(Phase.PAUSED)
            self.paused[sequence.key] = sequence

    def go_on(self, sequence: Sequence) -> None:
        """From a pause back to what the sequence did before it."""
        del self.paused[sequence.key]
        if not sequence.blocks:
            self.wait(sequence, front=True)
        elif sequence.output and sequence.remaining == 1:
            self.run(sequence, Phase.DECODE)
        else:
            self.run(sequence, Phase.PREFILL)

    def preempt(self, sequence: Sequence, *, whole: bool = True) -> None:
        """Back to the head of the queue with all tokens and no blocks.

        They are computed again later, but for those whose KV finds room in host memory. Not `whole` are the
        blocks of one whose copy on write has not been made.
        """
        self._leave(sequence)
        held = sequence.blocks[: self.tables.pool.blocks_for(sequence.computed)]
        if whole and self.tiers.take(sequence, held):
            sequence.tier = Tier.HOST
        else:
            sequence.computed = 0
        self.tables.close(sequence)
        sequence.preemptions += 1
        self.preemptions += 1
        self.wait(sequence, front=True)
        self.dropped[sequence.request.id] = None

    def _forget(self, sequence: Sequence) -> None:
        if sequence.tier is Tier.HOST:
            self.tiers.forget(sequence.key)
            sequence.tier, sequence.computed = Tier.DEVICE, 0

    def bring_back(self, sequence: Sequence, *, alone: bool) -> bool:
        """Blocks for one whose KV is in host memory, to be copied there in this step; False as in `admit`."""
        if not self.tables.readmit(sequence, alone=alone):
            return False
        self.tiers.give(sequence, sequence.blocks)
        sequence.tier = Tier.DEVICE
        return True

    def end(self, sequence: Sequence, *, moved: bool = False) -> None:
        """The last of a sequence here: its blocks go back. `moved`: nobody has to be told."""
        self._leave(sequence)
        self._forget(sequence)
        self.tables.close(sequence)
        sequence.become(Phase.FINISHED)
        request_id = sequence.request.id
        live = self.live[request_id]
        del live.sequences[sequence.choice]
        del live.keys[sequence.choice]
        if not live.sequences:
            del self.live[request_id]
            self.prefilled.pop(request_id, None)
            if not moved:
                self.dropped[request_id] = None
        elif live.handoff:
            self.hand_over(live)

    def hand_over(self, live: Live) -> None:
        """Name a handoff as prefilled, once, when all that is left of it is paused."""
        if not live.handed and all(s.phase is Phase.PAUSED for s in live.sequences.values()):
            live.handed = True
            self.prefilled[live.request.id] = None

    def tell(
        self, emitted: SequenceOf[Emitted] = (), progress: SequenceOf[tuple[str, int]] = ()
    ) -> StepOutcome:
        """An outcome that says all that movements have not been told yet."""
        outcome = StepOutcome(tuple(emitted), tuple(progress), tuple(self.prefilled), tuple(self.dropped))
        self.prefilled.clear()
        self.dropped.clear()
        return outcome
