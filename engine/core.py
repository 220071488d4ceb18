"""Iteration-level scheduling of one instance: plan a step, run it, commit what it drew.

    submit ─▶ queue ─▶ plan ─▶ Runner.run ─▶ commit ─▶ StepOutcome
                ▲        │                     │
                └────────┘ preempted           └─▶ finished: its blocks are free, its event leaves at once

After ORCA (OSDI'22): the batch is chosen anew at each iteration and a finished request leaves in the
iteration that finishes it. The core composes: a BatchPolicy says who gets how many tokens and a
WaitingQueue who is next, the Planner makes it good, Commits enter the result, the Roster knows who is
where, BlockTables where their KV is, Movements what comes and goes.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from typing import Protocol, runtime_checkable

from engine import prefix_cache
from engine.admission import refuse_overdrawn, refuse_what_never_fits
from engine.ahead import Ahead
from engine.batch import BatchPolicy, HoldsBack, Limits, WaitingQueue
from engine.blocks import BlockPool
from engine.coasting import Coasting
from engine.commits import Commits
from engine.errors import Conflict, Overloaded
from engine.flights import Flights
from engine.live import Live
from engine.movements import Movements
from engine.outcome import Emitted, StepOutcome
from engine.plan import StepPlan, StepResult
from engine.planner import Planner
from engine.request import Request
from engine.reservation import Reservation
from engine.reserve_max import Longest, rule_of
from engine.roster import Roster
from engine.sequence import START, Epoch, Phase, Sequence, Tier
from engine.status import InstanceStatus, RequestStatus
from engine.tables import BlockTables
from engine.tiers import Tiers, TierSettings

__all__ = ["Emitted", "EngineCore", "Launcher", "Limits", "Reservation", "Runner", "StepOutcome"]


class Runner(Protocol):
    """Computes a step. A ValueError means that the plan's works cannot be computed, and no more."""

    def run(self, plan: StepPlan) -> StepResult: ...


@runtime_checkable
class Launcher(Protocol):
    """A Runner that computes while its caller goes on, as a GPU does: what `launch` returns waits for the
    result. A second step may be launched before the first is waited for, and takes its tokens from it."""

    def launch(self, plan: StepPlan) -> Callable[[], StepResult]: ...


class EngineCore:
    """Not thread-safe: it lives in the thread of an EngineLoop, or in the simulator.

    `fingerprint` is `prefix_cache.fingerprint(weights digest, numerics, KV format)`: prefix keys are
    the same wherever it is the same. `tiers` gives it host memory, which the runner has to have.
    """

    def __init__(
        self,
        *,
        pool: BlockPool,
        queue: WaitingQueue,
        policy: BatchPolicy,
        limits: Limits,
        eos_token_ids: frozenset[int],
        fingerprint: bytes = b"",
        tiers: TierSettings | None = None,
    ) -> None:
        self.pool = pool
        self.limits = limits
        self._eos = eos_token_ids
        self._fingerprint = fingerprint
        self._tables = BlockTables(pool, limits.watermark)
        self.tiers = Tiers(tiers or TierSettings())
        self._roster = Roster(queue, self._tables, self.tiers)
        seats = pool.total if isinstance(policy, HoldsBack) else limits.max_sequences
        coming: dict[int, Reservation] = {}
        longest = Longest(self._roster, limits, rule_of(policy), coming)
        self._planner = Planner(self._roster, policy, seats, longest)
        self._commits = Commits(self._roster)
        self._coasting = Coasting(self._roster, policy)
        self._movements = Movements(self._roster, seats, longest, coming)
        self._flights = Flights(self._tables)
        self._ahead = Ahead(self._roster, policy)
        self._arrivals = self._submitted = self._reserved = 0
        self._unstamped: list[Live] = []
        self._steps = 0
        self._step_seconds = 0.0

    def submit(
        self,
        request: Request,
        *,
        choices: SequenceOf[Sequence] = (),
        epoch: Epoch = START,
        home: str = "",
        handoff: bool = False,
        now: float | None = None,
    ) -> None:
        """Take a request in. A recovered one brings `choices`: its unfinished ones with their output so far.

        With `handoff` its sequences are PAUSED after their first token here, and named in
        StepOutcome.prefilled. `now` is when it arrived at this instance, the next plan if absent.
        A newer epoch of a request that lives here takes its place.

        Raises InvalidParameter or ContextLengthExceeded for what can never run here, Conflict for a
        request that lives here already, Overloaded when the queue is full.
        """
        refuse_what_never_fits(request, self.pool, self.limits)
        refuse_overdrawn(request, choices, self.limits)
        self._make_way(request.id, epoch)
        if len(self._roster.queue) >= self.limits.queue_limit:
            raise Overloaded(
                f"{self.limits.queue_limit} sequences wait here: try again later or raise engine.queue_limit",
                param="engine.queue_limit",
            )
        undrawn = tuple(s.choice for s in choices if not s.output) if choices else range(request.sampling.n)
        live = self._record(request, tuple(undrawn))
        self._submitted += 1
        live.handoff = handoff
        live.arrived = now
        if now is None:
            self._unstamped.append(live)
        self._roster.live[request.id] = live
        if handoff:
            self._roster.dropped.pop(request.id, None)  # it was of another movement than the one that begins
        outputs = [(sequence.choice, sequence.output) for sequence in choices if sequence.output]
        for choice, output in [(first, []) for first in live.undrawn[:1]] + outputs:
            sequence = Sequence(request, choice, list(output), epoch=epoch, home=home)
            live.add(sequence, [])
            self._roster.wait(sequence)

    def _record(self, request: Request, undrawn: tuple[int, ...]) -> Live:
        self._arrivals += 1
        root = prefix_cache.root(self._fingerprint, request.adapter, request.salt)
        return Live(request, self._arrivals, root, self._eos, self.limits.max_length, undrawn=undrawn)

    def _make_way(self, request_id: str, epoch: Epoch) -> None:
        live = self._roster.live.get(request_id)
        if live is not None:
            if epoch <= live.epoch:
                raise Conflict(
                    f"request {request_id} already lives here with epoch {tuple(live.epoch)}", param="id"
                )
            self.cancel(request_id)

    def cancel(self, request_id: str) -> bool:
        """End all choices without an event and free their blocks; False if none lives here."""
        sequences = self._roster.sequences(request_id)
        for sequence in sequences:
            self._roster.end(sequence)
        return bool(sequences)

    def finish(self, request_id: str, choice: int, length: int) -> bool:
        """Something outside (a stop string) ended a choice after `length` tokens: end it without an event.

        False if it does not live here, or has not come so far: then another attempt was meant.
        """
        live = self._roster.live.get(request_id)
        sequence = None if live is None else live.sequences.get(choice)
        if sequence is None or len(sequence.output) < max(length, 1):
            return False
        self._roster.end(sequence)
        return True

    def plan(self, now: float) -> StepPlan | None:
        """Decide the next step, None if nobody can run. It must be committed or failed before the next."""
        assert not self._flights, "the step before is still in flight"
        for live in self._unstamped:
            live.arrived = now
        self._unstamped.clear()
        return self._flights.take_off(self._planner.plan(now, self._movements.promised), now)

    def plan_ahead(self, now: float) -> StepPlan | None:
        """Decide the step after the one in flight where it is sure; its tokens are `fed` from that one.

        Both are committed or failed in their order.
        """
        assert len(self._flights) == 1, "plan_ahead goes with one step in flight"
        flight, full = self._flights.first, self._planner.full(self._movements.promised)
        return self._flights.take_off(self._ahead.plan(flight.plan, flight.sequences, now, full=full), now)

    def commit(self, plan: StepPlan, result: StepResult, now: float) -> StepOutcome:
        """Enter what a step drew. Sequences that were ended or frozen meanwhile stay as they are."""
        sequences, self._step_seconds = self._flights.land(plan, now)
        self._steps += 1
        return self._commits.commit(plan, sequences, result, now)

    def fail(self, plan: StepPlan, now: float) -> StepOutcome:
        """The step could not be computed: every choice in it ends FAILED."""
        return self._commits.fail(self._flights.land(plan, now)[0])

    def settle(self) -> StepOutcome | None:
        """What movements must hear of although there is no step; None if there is nothing."""
        roster = self._roster
        return roster.tell() if roster.dropped or roster.prefilled else None

    def step(self, runner: Runner, now: float) -> StepOutcome | None:
        """Plan, run, commit; None if nobody can run."""
        plan = self.plan(now)
        return None if plan is None else self.commit(plan, runner.run(plan), now)

    @property
    def queue(self) -> WaitingQueue:
        """Who waits."""
        return self._roster.queue

    @property
    def running(self) -> SequenceOf[Sequence]:
        """Who runs, in the order of priority, then of arrival."""
        return self._roster.running

    def steady(self, most: int, now: float) -> int:
        """How many of the next `most` steps are sure to be one token for each who runs; see Coasting."""
        return self._coasting.steps(most, now)

    def coast(self, steps: int, token: int) -> None:
        """Take as many steps as `steady` allowed, at once and without a runner: each draws `token`."""
        assert not self._flights, "a step is in flight"
        self._coasting.advance(steps, token)
        self._steps += steps
        self._commits.output_tokens += steps * len(self._roster.running)

    def conclude(self, sequences: SequenceOf[Sequence], token: int) -> StepOutcome:
        """The last step of a `coast` drew `token` for `sequences`, which ends them."""
        return self._commits.conclude(sequences, token)

    def sequences(self, request_id: str) -> list[Sequence]:
        """The live choices of a request; until their first token one stands for all."""
        return self._roster.sequences(request_id)

    def undrawn(self, request_id: str) -> tuple[int, ...]:
        """The choices for which a sequence without output stands."""
        live = self._roster.live.get(request_id)
        return () if live is None else live.undrawn

    def requests(self, now: float) -> list[RequestStatus]:
        """Every request that lives here; `now` is on the clock of `Request.arrival`."""
        return self._roster.requests(now)

    def freeze(self, request_id: str) -> list[Sequence]:
        """Pause every live choice and return them: nothing about them changes until `resume`."""
        return self._movements.freeze(request_id)

    def resume(self, request_id: str) -> bool:
        """Un-pause: the request runs on here, a handoff that waited for its transfer included."""
        return self._movements.resume(request_id)

    def release(self, request_id: str) -> bool:
        """The request lives elsewhere now: free its blocks without an event."""
        return self._movements.release(request_id)

    def reserve(self, session: str, request: Request, tokens: int, *, handoff: bool = False) -> Reservation:
        """Blocks for `tokens` tokens of a request to come: its cached prefix pinned, the rest allocated.

        Without tokens it comes to wait here. A handoff leaves room for who waits: where there is none, it can
        go on where its prompt was read. A request that is moved while it runs may have no other place.

        Raises Overloaded when there are not enough blocks or sequences, InvalidParameter or
        ContextLengthExceeded for what could never run here.
        """
        refuse_what_never_fits(request, self.pool, self.limits)
        root = prefix_cache.root(self._fingerprint, request.adapter, request.salt)
        size, caching = self.pool.block_size, self.pool.caching
        keys = prefix_cache.of_prompt(root, request.prompt, size) if caching else ()
        if not tokens and len(self._roster.queue) >= self.limits.queue_limit:
            raise Overloaded(
                f"{self.limits.queue_limit} sequences wait here: raise engine.queue_limit",
                param="engine.queue_limit",
            )
        self._reserved += 1
        return self._movements.reserve(session, request, tokens, keys, handoff=handoff)

    def extend(self, reservation: Reservation, blocks: int) -> list[int]:
        """More blocks for a reservation, appended to it. Raises Overloaded."""
        return self._movements.extend(reservation, blocks)

    def adopt(
        self, reservation: Reservation, sequences: list[Sequence], undrawn: tuple[int, ...] = ()
    ) -> None:
        """The sequences, whose tables name blocks of the reservation, run on here in the phase they carry.

        `undrawn` are the choices for which the one without output stands. Blocks that no table names
        are freed. Raises Conflict if as new an epoch of the request lives here.
        """
        first = sequences[0]
        self._make_way(first.request.id, first.epoch)
        live = self._record(first.request, undrawn)
        live.cached = first.cached
        self._movements.adopt(reservation, live, sequences)

    def unreserve(self, reservation: Reservation) -> None:
        """It does not come: free what was reserved. Does nothing a second time."""
        self._movements.unreserve(reservation)

    def status(self, instance: str = "", role: str = "", *, ahead: int = 0) -> InstanceStatus:
        """A snapshot of this core, which does not know its name and role itself. Prefix counts are tokens.

        As it is, or as it will be after the next `ahead` of the steps that `steady` allowed; where choices
        still share a block that they will write, it counts a copy too many.
        """
        pool, roster = self.pool, self._roster
        fresh = self._coasting.blocks(ahead) if ahead else 0
        evicted = max(0, fresh - pool.free)
        return InstanceStatus(
            instance=instance,
            role=role,
            steps=self._steps + ahead,
            running=len(roster.running),
            waiting=len(roster.queue),
            waiting_tokens=sum(len(sequence) for sequence in roster.queue),
            blocks_total=pool.total,
            blocks_free=pool.free - fresh + evicted,
            blocks_used=pool.used + fresh,
            blocks_cached=pool.cached - evicted,
            blocks_reserved=pool.reserved,
            block_size=pool.block_size,
            prompt_tokens=self._commits.prompt_tokens,
            output_tokens=self._commits.output_tokens + ahead * len(roster.running),
            prefix_queries=self._planner.prefix_queries,
            prefix_hits=self._planner.prefix_hits,
            preemptions=roster.preemptions,
            handoffs=self._movements.handoffs,
            handoffs_failed=self._movements.handoffs_failed,
            chunks=self._commits.chunks,
            step_seconds=self._step_seconds,
            arrivals=self._submitted + self._reserved,
            head_tokens=next((len(sequence) for sequence in roster.queue), 0),
            urgent=sum(sequence.request.priority > 0 for sequence in roster.running),
            prefill_tokens=sum(one.remaining for one in roster.running if one.phase is Phase.PREFILL),
        )

    def check(self) -> None:
        """The ledger: the pool's own, and that every reference is one entry of one table."""
        self.pool.check()
        entries = [0] * self.pool.total
        tables = [s.blocks for live in self._roster.live.values() for s in live.sequences.values()]
        held = [r.blocks for r in self._movements.reservations.values()]
        for table in (*tables, *held, *self._tables.given):
            for block in table:
                entries[block] += 1
        refs = [self.pool.refs(block) for block in range(self.pool.total)]
        assert entries == refs, "reference counts differ from the tables"
        every = [s for live in self._roster.live.values() for s in live.sequences.values()]
        self.tiers.check(one.key for one in every if one.tier is Tier.HOST)
