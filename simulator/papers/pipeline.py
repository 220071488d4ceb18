"""Micro-batches that travel through the stages of a pipeline, and the bubbles that uneven steps leave.

stage 0  ▓A▓▓B▓▓C▓        ▓A▓        a micro-batch takes its next step when its last one
stage 1     ▓A▓▓B▓▓C▓        ▓A▓     has left the last stage; what a stage waits for it
stage 2        ▓A▓▓B▓▓C▓             is a bubble of the requests in that step
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from engine.batch import BatchPolicy, Limits
from engine.blocks import BlockPool
from engine.core import EngineCore
from engine.cost_model import CostModel
from engine.plan import StepPlan
from engine.queues.fcfs import FCFSQueue
from engine.request import Request, Sampling
from simulator.runner import EOS, SimulatedRunner
from simulator.workload.arrivals import Arrival, prompt_of

BLOCK = 16


@dataclass(slots=True)
class PipelineRun:
    """What came of a workload: seconds until its end, of each stage those in which it worked, and of each
    request those in which a stage stood still before one of its steps, and when its `first` token came."""

    seconds: float = 0.0
    first: dict[str, float] = field(default_factory=dict)
    busy: list[float] = field(default_factory=list)
    bubbles: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def utilisation(self) -> float:
        return sum(self.busy) / (len(self.busy) * self.seconds)


class Pipeline:
    """`stages` equal parts of a model, and as many micro-batches of at most `batch` requests in them.

    A step takes what `cost` says, shared out evenly among the stages; passing on costs nothing. Each
    micro-batch is an engine core of its own, and takes the next request when it has room.
    """

    def __init__(self, stages: int, batch: int, policy: Callable[[], BatchPolicy], cost: CostModel) -> None:
        self._batch = batch
        self._policy = policy
        self._lengths: dict[str, int] = {}
        self._runner = SimulatedRunner(cost, self._lengths, overhead=0.0)
        self._free = [0.0] * stages
        self._run = PipelineRun(busy=[0.0] * stages)

    def run(self, arrivals: Iterable[Arrival]) -> PipelineRun:
        """Requests join at their times, or as soon as there is room. One use."""
        requests = deque(self._request(number, one) for number, one in enumerate(arrivals))
        longest = max(request.longest for request in requests)
        cores = [self._core(longest) for _ in self._free]
        turns = [(0.0, number) for number in range(len(cores))]
        while turns:
            now, number = heapq.heappop(turns)
            core = cores[number]
            room = self._batch - len(core.running) - len(core.queue)
            while requests and room > 0 and requests[0].arrival <= now:
                core.submit(requests.popleft(), now=now)
                room -= 1
            plan = core.plan(now)
            if plan is None:
                if requests:
                    heapq.heappush(turns, (requests[0].arrival, number))
                continue
            end = self._through(plan, now)
            outcome = core.commit(plan, self._runner.run(plan), end)
            self._run.first |= {one.key.request_id: end for one in outcome.emitted if one.index == 0}
            heapq.heappush(turns, (end, number))
        return self._run

    def _through(self, plan: StepPlan, now: float) -> float:
        """One step through all stages, behind those that went before; gives when it leaves the last."""
        seconds = self._runner.seconds(plan) / len(self._free)
        stood = 0.0
        for stage, free in enumerate(self._free):
            begin = max(now, free)
            stood += begin - free if free else 0.0  # until its first step it has nothing to wait for
            now = self._free[stage] = begin + seconds
            self._run.busy[stage] += seconds
        for work in plan.works:
            self._run.bubbles[work.request_id] += stood
        self._run.seconds = max(self._run.seconds, now)
        return now

    def _request(self, number: int, arrival: Arrival) -> Request:
        name = str(number)
        self._lengths[name] = arrival.output_tokens
        sampling = Sampling(max_tokens=arrival.output_tokens)
        return Request(name, prompt_of(arrival, number), sampling, arrival=arrival.at)

    def _core(self, longest: int) -> EngineCore:
        """Its memory is enough for a full batch of the longest."""
        blocks = self._batch * (-(-longest // BLOCK) + 1)
        return EngineCore(
            pool=BlockPool(blocks, BLOCK),
            queue=FCFSQueue(),
            policy=self._policy(),
            limits=Limits(longest, self._batch, watermark=0.0),
            eos_token_ids=frozenset({EOS}),
        )
