"""Two instances of the toy model, everything that can happen to a request there, and the checks on it."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from typing import Any

from decode_pool.continuous_batching import ContinuousBatching
from engine.core import EngineCore
from engine.errors import CapacityError, ContextLengthExceeded
from engine.movements import Reservation
from engine.outcome import StepOutcome
from engine.plan import StepPlan
from engine.request import Request
from engine.sequence import Epoch, Phase, Sequence, SequenceKey, Tier
from tests.engine.toy import Backwards, Bench, alone, prompt, request

Pick = Callable[[SequenceOf[Any]], Any]


@dataclass
class Transfer:
    """A movement between RESERVE and COMMIT. The KV lies at the destination from the start of it."""

    request_id: str
    source: int
    reservation: Reservation
    sequences: list[Sequence]


class World:
    """Each operation picks its arguments with `pick`: from hypothesis, or from a seeded generator.

    A step is two operations, `launch` and `land`, with anything in between, another launch too; the runner
    computes at `land`, so that whoever is given a block of the step in flight loses what it put there.
    """

    def __init__(self, pick: Pick, *, total: int = 14, block_size: int = 4, budget: int = 9) -> None:
        self.pick = pick
        policies = (ContinuousBatching(budget), Backwards())
        self.benches = [
            Bench(total=total, block_size=block_size, policy=policy, max_sequences=6, queue_limit=8)
            for policy in policies
        ]
        self.flights: list[list[StepPlan]] = [[], []]
        self.transfers: list[Transfer] = []
        self.requests: dict[str, Request] = {}
        self.place: dict[str, int] = {}
        self.tokens: dict[SequenceKey, list[int]] = {}
        self.ended: set[SequenceKey] = set()
        self.gone: set[str] = set()
        self.epochs: dict[str, Epoch] = {}
        self.moved = self.recovered = 0

    OPERATIONS = (
        "submit", "submit", "launch", "launch", "launch", "land", "land", "land", "land", "cancel",
        "finish", "freeze", "resume", "reserve", "reserve", "reserve", "adopt", "adopt", "abort", "recover",
    )  # fmt: skip

    def act(self) -> None:
        getattr(self, "do_" + self.pick(self.OPERATIONS))()
        self.check()

    def core(self, index: int) -> EngineCore:
        return self.benches[index].core

    def check(self) -> None:
        for bench in self.benches:
            bench.core.check()
            status = bench.core.status()
            held = status.blocks_used + status.blocks_cached + status.blocks_reserved
            assert status.blocks_free + held == status.blocks_total
            assert status.running <= bench.core.limits.max_sequences
            for name in self.requests:
                for sequence in bench.core.sequences(name):
                    waits = sequence.phase is Phase.WAITING
                    assert sequence.remaining >= 1
                    away = sequence.tier is Tier.HOST
                    assert not waits or ((away or sequence.computed == 0) and not sequence.blocks)

    def here(self, index: int) -> list[str]:
        """Requests that live at an instance and are not moving."""
        moving = {transfer.request_id for transfer in self.transfers}
        return [r for r, place in self.place.items() if place == index and r not in self.gone | moving]

    def do_submit(self) -> None:
        name = f"r{len(self.requests)}"
        salt, length = self.pick(range(2)), self.pick(range(1, 23))
        one = request(
            name,
            prompt(length, salt),
            self.pick(range(1, 12)),
            n=self.pick((1, 1, 2, 3)),
            seed=self.pick(range(3)),
            ignore_eos=self.pick((True, False)),
        )
        where = self.pick(range(2))
        try:
            self.core(where).submit(one, home="home", handoff=self.pick((True, False)))
        except (CapacityError, ContextLengthExceeded):
            return
        self.enter(one, where)

    def enter(self, one: Request, where: int) -> None:
        self.requests[one.id] = one
        self.place[one.id] = where
        self.epochs[one.id] = Epoch()
        for choice in range(one.sampling.n):
            self.tokens[SequenceKey(one.id, choice)] = []

    def do_launch(self) -> None:
        self.launch(self.pick(range(2)))

    def launch(self, where: int) -> None:
        """The next step, or the one after it while it is in flight."""
        core, flights = self.core(where), self.flights[where]
        if len(flights) < 2:
            plan = core.plan_ahead(0.0) if flights else core.plan(0.0)
            flights += [plan] if plan else []

    def do_land(self) -> None:
        self.land(self.pick(range(2)))

    def land(self, where: int) -> None:
        if self.flights[where]:
            plan = self.flights[where].pop(0)
            result = self.benches[where].runner.run(plan)
            self.hear(where, self.core(where).commit(plan, result, 1.0))

    def hear(self, where: int, outcome: StepOutcome) -> None:
        """Tokens come once, in order, with the newest epoch, and are those of the request alone."""
        for name in outcome.prefilled:
            assert {s.phase for s in self.core(where).sequences(name)} == {Phase.PAUSED}
        for one in outcome.emitted:
            request_id, choice = one.key
            assert request_id not in self.gone, "it was cancelled"
            assert self.place[request_id] == where, "it lives elsewhere"
            assert one.key not in self.ended, "it had ended"
            assert one.epoch == self.epochs[request_id]
            assert one.drawn is not None
            expected = alone(self.requests[request_id], choice)
            assert one.index == len(self.tokens[one.key])
            assert one.drawn.token == expected[one.index], f"{one.key} at {one.index}"
            assert (one.finish is not None) == (one.index == len(expected) - 1)
            self.tokens[one.key].append(one.drawn.token)
            if one.finish is not None:
                self.ended.add(one.key)

    def some(self, where: int) -> str | None:
        here = self.here(where)
        return self.pick(here) if here else None

    def do_cancel(self) -> None:
        where = self.pick(range(2))
        name = self.some(where)
        if name is not None and self.pick((True, False)):
            self.core(where).cancel(name)
            self.gone.add(name)

    def do_finish(self) -> None:
        where = self.pick(range(2))
        name = self.some(where)
        if name is not None:
            choice = self.pick(range(self.requests[name].sampling.n))
            key = SequenceKey(name, choice)
            if self.core(where).finish(name, choice, len(self.tokens[key])):
                self.ended.add(key)

    def do_freeze(self) -> None:
        where = self.pick(range(2))
        name = self.some(where)
        if name is not None:
            self.core(where).freeze(name)

    def do_resume(self) -> None:
        where = self.pick(range(2))
        name = self.some(where)
        if name is not None:
            self.core(where).resume(name)

    def do_reserve(self) -> None:
        """RESERVE, FREEZE and COPY of a request that has its first tokens. KV is read between two steps, or
        while one computes that was planned ahead."""
        where = self.pick(range(2))
        name = self.some(where) if all(plan.fed for plan in self.flights[where]) else None
        sequences = self.core(where).sequences(name) if name else []
        if name is None or not sequences or not all(s.output and s.blocks for s in sequences):
            return
        self.core(where).freeze(name)
        there = self.core(1 - where)
        shared = list(dict.fromkeys(block for s in sequences for block in s.blocks))
        size = there.pool.block_size
        try:
            reservation = there.reserve("session", self.requests[name], len(shared) * size)
        except CapacityError:
            self.core(where).resume(name)
            return
        self.copy(where, shared, reservation)
        self.transfers.append(Transfer(name, where, reservation, sequences))

    def copy(self, where: int, shared: list[int], reservation: Reservation) -> None:
        source, target = self.benches[where].runner, self.benches[1 - where].runner
        full = reservation.cached // source.block_size
        for index, block in enumerate(shared):
            if index < full:
                continue
            target.store[reservation.blocks[index]] = list(source.store[block])

    def do_adopt(self) -> None:
        """COMMIT: what the destination gets is what the source has frozen."""
        if not self.transfers:
            return
        transfer = self.transfers.pop(self.pick(range(len(self.transfers))))
        name = transfer.request_id
        source, target = self.core(transfer.source), self.core(1 - transfer.source)
        shared = list(dict.fromkeys(block for s in transfer.sequences for block in s.blocks))
        index = {block: i for i, block in enumerate(shared)}
        epoch = Epoch(self.epochs[name].attempt, self.epochs[name].move + 1)
        adopted = [
            replace(
                s,
                phase=Phase.DECODE if s.remaining == 1 else Phase.PREFILL,
                output=list(s.output),
                blocks=[transfer.reservation.blocks[index[block]] for block in s.blocks],
                epoch=epoch,
            )
            for s in transfer.sequences
        ]
        target.adopt(transfer.reservation, adopted)
        source.release(name)
        self.place[name] = 1 - transfer.source
        self.epochs[name] = epoch
        self.moved += 1

    def do_abort(self) -> None:
        if self.transfers:
            transfer = self.transfers.pop(self.pick(range(len(self.transfers))))
            self.core(1 - transfer.source).unreserve(transfer.reservation)
            self.core(transfer.source).resume(transfer.request_id)

    def do_recover(self) -> None:
        """An instance lost the request: it starts again, elsewhere or here, from prompt and tokens so far."""
        where = self.pick(range(2))
        name = self.some(where)
        if name is None:
            return
        one, there = self.requests[name], self.pick(range(2))
        choices = [
            Sequence(one, choice, list(self.tokens[SequenceKey(name, choice)]))
            for choice in range(one.sampling.n)
            if SequenceKey(name, choice) not in self.ended
        ]
        if not choices:
            return
        epoch = Epoch(self.epochs[name].attempt + 1)
        if there != where:
            self.core(where).cancel(name)
        try:
            self.core(there).submit(one, choices=choices, epoch=epoch, home="home")
        except CapacityError:
            self.core(where).cancel(name)
            self.gone.add(name)
            return
        self.place[name] = there
        self.epochs[name] = epoch
        self.recovered += 1

    def close(self) -> None:
        """Let everything end and see that all that should be there is, and nothing else."""
        for _ in range(len(self.transfers)):
            self.do_abort()
        for _ in range(2):
            self.land(0)
            self.land(1)
        for _ in range(1000):
            for where in range(2):
                for name in self.here(where):
                    self.core(where).resume(name)
                self.launch(where)
                self.launch(where)
            if self.flights == [[], []]:
                break
            for where in range(2):
                while self.flights[where]:
                    self.land(where)
                    self.check()
        for name, one in self.requests.items():
            for choice in range(one.sampling.n):
                assert name in self.gone or SequenceKey(name, choice) in self.ended, f"{name} never ends"
        for bench in self.benches:
            status = bench.core.status()
            assert (status.running, status.waiting) == (0, 0)
            assert (status.blocks_used, status.blocks_reserved) == (0, 0)
