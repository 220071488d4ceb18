"""The tenant that was served least comes first: VTC (Sheng et al., OSDI'24, algorithm 2).

Within a tenant requests are served in the order of arrival. The engine core stops admitting at the first
request that does not fit and never takes a smaller one of another tenant instead: that would void the bound
on the gap between two tenants that both wait, 2 · max(w_p · longest prompt, w_q · tokens of a batch).
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Iterator

from engine.outcome import StepOutcome
from engine.sequence import Phase, Sequence, SequenceKey
from engine.service import Counters

RUNS = frozenset({Phase.PREFILL, Phase.DECODE, Phase.PAUSED})


class FairQueue:
    """A WaitingQueue. Queues of several instances that share `counters` are fair together.

    It follows the sequences that were admitted from it and charges what they have come to before each
    choice, so the choice never rests on old numbers.
    """

    by_priority = False

    def __init__(self, counters: Counters) -> None:
        self.counters = counters
        self._waiting: dict[str, OrderedDict[SequenceKey, Sequence]] = {}
        self._admitted: dict[SequenceKey, Sequence] = {}

    def add(self, sequence: Sequence, *, front: bool = False) -> None:
        tenant, key = sequence.request.tenant, sequence.key
        line = self._waiting.setdefault(tenant, OrderedDict())
        assert key not in line, f"{key} waits already"
        self._settle()
        self._admitted.pop(key, None)
        self.counters.come(tenant, lift=not front)
        line[key] = sequence
        if front:
            line.move_to_end(key, last=False)

    def remove(self, key: SequenceKey) -> Sequence | None:
        for tenant, line in self._waiting.items():
            sequence = line.pop(key, None)
            if sequence is not None:
                if not line:
                    del self._waiting[tenant]
                self.counters.go(tenant)
                self._admitted[key] = sequence
                return sequence
        return None

    def __iter__(self) -> Iterator[Sequence]:
        """Each as if all before it had been admitted and charged for their prompts."""
        self._settle()
        lines = {tenant: iter(line.values()) for tenant, line in self._waiting.items()}
        heap = [(self.counters.service.get(tenant, 0.0), tenant) for tenant in lines]
        heapq.heapify(heap)
        while heap:
            served, tenant = heap[0]
            sequence = next(lines[tenant], None)
            if sequence is None:
                heapq.heappop(heap)
                continue
            again = sequence.preemptions > 0
            prompt = len(sequence.request.prompt)
            more = 0.0 if again else self.counters.amount(tenant, sequence.choice, prompt)
            heapq.heapreplace(heap, (served + more, tenant))
            yield sequence

    def __len__(self) -> int:
        return sum(len(line) for line in self._waiting.values())

    def watch(self, running: Iterable[Sequence]) -> None:
        """Charge what these have come to: sequences that came from elsewhere were never in this queue."""
        self._settle()
        for sequence in running:
            self._charge(sequence)
            self._admitted[sequence.key] = sequence

    def observe(self, outcome: StepOutcome) -> None:
        """Hear of a step: charge every token it drew, and close the account of whose last it was."""
        for emitted in outcome.emitted:
            self._charge(emitted.sequence)
            self._admitted[emitted.key] = emitted.sequence
            if emitted.finish is not None:
                del self._admitted[emitted.key]
                self.counters.end(emitted.key)

    def _settle(self) -> None:
        gone = []
        for key, sequence in self._admitted.items():
            if sequence.phase in RUNS or sequence.output:
                self._charge(sequence)
            if sequence.phase is Phase.FINISHED:
                gone.append(key)
        for key in gone:
            del self._admitted[key]
            self.counters.leave(key)

    def _charge(self, sequence: Sequence) -> None:
        request = sequence.request
        self.counters.charge(sequence.key, request.tenant, len(request.prompt), len(sequence.output))
