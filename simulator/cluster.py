"""A whole cluster on a virtual clock: instances, network, scheduler and the journeys of all requests.

arrival ─▶ Journey ─ Place ─▶ Scheduler ─ Placed ─▶ Journey ─ Start ─▶ instance ─▶ tokens ─▶ Records
                                  ▲                                      │ handoff, live migration
                                  └────────── statuses, every beat ──────┘
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from engine.batch import Limits, WaitingQueue
from engine.blocks import BlockPool
from engine.core import EngineCore
from engine.errors import TandemError
from engine.outcome import StepOutcome
from engine.plan import StepPlan
from engine.queues.fair import FairQueue
from engine.request import Request, Sampling
from engine.sequence import Epoch
from engine.status import InstanceStatus
from global_scheduler.affinity import prefix_keys
from global_scheduler.attainment import Attainment, attainment
from global_scheduler.journey import (
    Action,
    Event,
    Fail,
    Journey,
    Moved,
    Place,
    Placed,
    Progress,
    Refused,
    Start,
    Started,
    Wait,
    Waited,
)
from global_scheduler.placement import PREFILL
from global_scheduler.scheduler import Scheduler
from global_scheduler.view import Summary
from migration.events import Bounds
from simulator.clock import VirtualClock
from simulator.instance import SimulatedInstance
from simulator.movement import Movement
from simulator.network import Network
from simulator.records import Record, Records
from simulator.runner import EOS, SimulatedRunner
from simulator.setup import PoolSetup, Setup
from simulator.spans import Spans
from simulator.workload.arrivals import Arrival, prompt_of

MOST_SAMPLES = 2000


@dataclass(frozen=True, slots=True)
class MoveRecord:
    """A live migration: when it began, whether it came to its end, and for how many seconds nobody ran it."""

    at: float
    source: str
    destination: str
    request_id: str
    moved: bool
    downtime: float


@dataclass(frozen=True, slots=True)
class ScaleEvent:
    """A pool was given another size."""

    at: float
    pool: str
    target: int
    reason: str


@dataclass(slots=True)
class Member:
    """An instance and the pool it belongs to; `until` is when it was taken away."""

    instance: SimulatedInstance
    pool: PoolSetup
    queue: WaitingQueue
    until: float = math.inf


class SimulatedCluster:
    """`add` the workload, `run`, and read `records`. Of one instance, `watched`, it is noted who ran when."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.clock = VirtualClock()
        self.network = Network(setup.links, self.clock)
        self.scheduler = Scheduler(setup.scheduler)
        self.records = Records(self._finished)
        self.members: dict[str, Member] = {}
        self.movements: dict[str, Movement] = {}
        self.handoffs = self.handoffs_failed = 0
        self.moves: list[MoveRecord] = []
        self.scale_events: list[ScaleEvent] = []
        self.retired: list[Member] = []
        self.samples: dict[str, list[tuple[float, int, int, int]]] = {}
        self._lengths: dict[str, int] = {}
        self._journeys: dict[str, Journey] = {}
        self._left = 0
        self._counts: dict[str, int] = {}
        self._expected: Counter[str] = Counter()
        self._ended: deque[tuple[float, Record]] = deque()
        for pool in setup.pools:
            for _ in range(pool.replicas):
                self.spawn(pool)
        self.watched = list(self.members.values())[-1].instance
        self.watched.spans = Spans()

    def add(self, arrivals: Sequence[Arrival]) -> None:
        """A workload; request ids are its numbers."""
        for arrival in arrivals:
            number = len(self.records.records)
            self.records.records[str(number)] = Record(arrival)
            self._left += 1
        self._feed(iter(tuple(self.records.records.items())))

    def run(self, until: float = float("inf")) -> None:
        """Until every request has ended, or `until`."""
        self._beat()
        self.clock.run(until, done=lambda: self._left == 0)
        for member in self.members.values():
            member.instance.catch_up()
        self._charge()

    @property
    def over(self) -> bool:
        """Whether every request has ended."""
        return self._left == 0

    def vacant(self, name: str) -> bool:
        """Whether an instance has nothing left to do, and no request is on its way to it or from it."""
        core = self.members[name].instance.core
        return not (
            core.running
            or len(core.queue)
            or self._expected[name]
            or any(name in (one.source.name, one.destination.name) for one in self.movements.values())
        )

    def attained(self, role: str) -> Attainment | None:
        """Of the requests that ended lately, those that met the objective of a role's phase."""
        now, window = self.clock.now(), self.setup.window
        while self._ended and self._ended[0][0] < now - window:
            self._ended.popleft()
        objectives = self.setup.objectives
        most = objectives.ttft if role == PREFILL else objectives.tpot
        if most is None or not self._ended:
            return None
        records = [record for _, record in self._ended]
        took = [record.ttft if role == PREFILL else record.tpot for record in records]
        told = [(now - one.arrival.at, each <= most) for one, each in zip(records, took, strict=True)]
        return attainment(window, told)

    def retire(self, name: str) -> None:
        """An instance that has nothing left to do is taken away."""
        self.scheduler.forget(name)
        member = self.members.pop(name)
        member.until = self.clock.now()
        self.retired.append(member)

    def spawn(self, pool: PoolSetup) -> SimulatedInstance:
        """Another instance, ready at once."""
        number = self._counts[pool.role] = self._counts.get(pool.role, -1) + 1
        queue, policy = pool.arrange()
        core = EngineCore(
            pool=BlockPool(pool.blocks, pool.block_size, pool.prefix_cache),
            queue=queue,
            policy=policy,
            limits=Limits(self.setup.max_length, pool.max_sequences, pool.queue_limit, pool.watermark),
            eos_token_ids=frozenset({EOS}),
            tiers=pool.tiers,
        )
        runner = SimulatedRunner(pool.cost, self._lengths, pool.overhead, pool.tiers.seconds)
        instance = SimulatedInstance(
            f"{pool.role}-{number}",
            pool.role,
            core,
            runner,
            self.clock,
            self.records,
            coasting=self.setup.coasting,
        )
        instance.foresee(partial(self._foresee, instance))
        instance.observe(partial(self._observe, instance))
        if isinstance(queue, FairQueue):
            instance.observe(queue.observe)
            instance.ask_first(self._charge)
        self.members[instance.name] = Member(instance, pool, queue)
        self.scheduler.observe(instance.status(), self.clock.now())
        return instance

    def _feed(self, rest: object) -> None:
        """Arrivals one after the other, so that those to come take no place in the clock."""
        entry = next(rest, None)  # type: ignore[call-overload]
        if entry is None:
            return
        request_id, record = entry

        def arrive() -> None:
            self._arrive(request_id, record.arrival)
            self._feed(rest)

        self.clock.at(record.arrival.at, arrive)

    def _arrive(self, request_id: str, arrival: Arrival) -> None:
        most = arrival.output_tokens if self.setup.max_tokens is None else self.setup.max_tokens
        request = Request(
            id=request_id,
            prompt=prompt_of(arrival, int(request_id)),
            sampling=Sampling(max_tokens=max(most, 1)),
            arrival=self.clock.now(),
            tenant=arrival.tenant,
            priority=int(arrival.tenant in self.setup.urgent_tenants),
            adapter=arrival.adapter,
        )
        self._lengths[request_id] = self.setup.answer_tokens(arrival)
        journey = self._journeys[request_id] = Journey(request, self.setup.patience)
        self._do(journey, journey.begin(self.clock.now()))

    def _step(self, journey: Journey, event: Event) -> None:
        self._do(journey, journey.step(event, self.clock.now()))

    def _do(self, journey: Journey, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Place():
                    self.network.tell(partial(self._place, journey, action))
                case Start(placement, epoch):
                    ends = placement.prefill, placement.decode
                    self._expected.update(ends)
                    self.network.tell(partial(self._start, journey, *ends, epoch))
                case Wait(seconds):
                    self.clock.after(seconds, partial(self._step, journey, Waited()))
                case Fail(error):
                    self.records.records[journey.request.id].refused = str(error)
                    self._end(journey.request.id)

    def _place(self, journey: Journey, place: Place) -> None:
        request = journey.request
        summary = Summary(
            id=request.id,
            prompt_tokens=place.prompt_tokens,
            max_tokens=place.max_tokens,
            tenant=request.tenant,
            priority=request.priority,
            attempt=place.attempt,
            exclude=place.exclude,
            adapter=request.adapter,
            prefix=prefix_keys(request.prompt) if self.records.records[request.id].arrival.prefix else (),
        )
        dispatch = self.setup.dispatch or Scheduler.place
        try:
            placement = dispatch(self.scheduler, summary, self.clock.now())
        except TandemError as error:
            self._step(journey, Refused(error))
        else:
            self._step(journey, Placed(placement))

    def _start(self, journey: Journey, prefill: str, decode: str, epoch: Epoch) -> None:
        def enter(core: EngineCore) -> None:
            self._enter(journey, core, prefill, decode, epoch)
            self._expected.subtract((prefill, decode))

        self.members[prefill].instance.call(enter)

    def _enter(self, journey: Journey, core: EngineCore, prefill: str, decode: str, epoch: Epoch) -> None:
        away = prefill != decode
        try:
            core.submit(journey.request, epoch=epoch, home="home", handoff=away)
        except TandemError as error:
            self._step(journey, Refused(error, prefill))
            return
        self._step(journey, Started(epoch.attempt))
        if away:
            source, destination = self.members[prefill].instance, self.members[decode].instance
            self.move(journey.request.id, source, destination, epoch)

    def move(
        self,
        request_id: str,
        source: SimulatedInstance,
        destination: SimulatedInstance,
        epoch: Epoch,
        live: Bounds | None = None,
    ) -> None:
        """Hand a request over, from its first chunk on, or with `live` migrate it while it runs."""
        journey = self._journeys[request_id]
        begun = self.clock.now()

        def claimed(instance: str, raised: Epoch) -> None:
            self._step(journey, Moved(instance, raised))

        def ended(moved: bool) -> None:
            del self.movements[request_id]
            if live is None:
                self.handoffs += moved
                self.handoffs_failed += not moved
            else:
                self.records.records[request_id].moves += moved
                downtime = movement.adopted - movement.paused if moved else 0.0
                self.moves.append(
                    MoveRecord(begun, source.name, destination.name, request_id, moved, downtime)
                )

        block_bytes = self.members[source.name].pool.block_size * self.setup.kv_bytes
        ends = source, destination, self.network, self.clock
        movement = Movement(journey.request, epoch, *ends, block_bytes, claimed, ended, live)
        self.movements[request_id] = movement
        if live is not None:
            movement.begin()

    def _foresee(self, instance: SimulatedInstance, plan: StepPlan) -> None:
        """The handoffs whose first chunk a step computes set out."""
        if not self.movements:
            return
        for work in plan.works:
            movement = self.movements.get(work.request_id)
            if movement is not None and movement.source is instance and not movement.begun:
                movement.begin()

    def _observe(self, instance: SimulatedInstance, outcome: StepOutcome) -> None:
        """What movements out of an instance hear of a step."""
        for request_id, _ in outcome.progress:
            self._report(instance, request_id, frozen=False)
        for request_id in outcome.prefilled:
            self._report(instance, request_id, frozen=True)
        for request_id in outcome.dropped:
            movement = self.movements.get(request_id)
            if movement is not None and movement.source is instance:
                movement.dropped()

    def _report(self, instance: SimulatedInstance, request_id: str, *, frozen: bool) -> None:
        movement = self.movements.get(request_id)
        if movement is not None and movement.source is instance and movement.live is None:
            movement.computed(instance.core, frozen=frozen)

    def _beat(self) -> None:
        """Every instance says how it is, between two of its steps."""
        for member in tuple(self.members.values()):
            member.instance.report(self._heard)
        self._sample()
        self.clock.after(self.setup.beat, self._beat)

    def _sample(self) -> None:
        """(time, waiting, running, instances) of each pool; half are forgotten when there are very many."""
        for role in {member.pool.role: None for member in self.members.values()}:
            cores = [m.instance.core for m in self.members.values() if m.pool.role == role]
            samples = self.samples.setdefault(role, [])
            waiting = sum(len(core.queue) for core in cores)
            samples.append((self.clock.now(), waiting, sum(len(core.running) for core in cores), len(cores)))
            if len(samples) > MOST_SAMPLES:
                del samples[::2]

    def _charge(self) -> None:
        """Tenants pay for all tokens that they have had by now, wherever, steps of leaps among them."""
        for member in self.members.values():
            if isinstance(member.queue, FairQueue):
                member.instance.catch_up()
                member.queue.watch(member.instance.core.running)

    def _heard(self, status: InstanceStatus) -> None:
        if status.instance in self.members:
            self.scheduler.observe(status, self.clock.now())

    def _finished(self, request_id: str) -> None:
        journey = self._journeys[request_id]
        if self.setup.autoscaling:
            self._ended.append((self.clock.now(), self.records.records[request_id]))
        self._step(journey, Progress(0, (), finished=True))
        self._end(request_id)

    def _end(self, request_id: str) -> None:
        del self._journeys[request_id]
        self._lengths.pop(request_id, None)
        self._left -= 1

    def check(self) -> None:
        """The ledger of every instance. Raises AssertionError."""
        for member in self.members.values():
            member.instance.core.check()
