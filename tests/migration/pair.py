"""Two real instances in one process, with loops, sender and receiver, and a home that keeps the books."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from decode_pool.instance import DecodeInstance
from engine.batch import Limits
from engine.blocks import BlockPool
from engine.core import EngineCore
from engine.loop import EngineLoop
from engine.outcome import Emitted
from engine.plan import StepPlan, StepResult
from engine.queues.fcfs import FCFSQueue
from engine.request import Request
from engine.sequence import START, Epoch, SequenceKey
from migration.handshake import Identity
from migration.receiver import Receiver
from migration.sender import Sender
from migration.session import Bounds, Timeouts
from migration.shm import ShmTransport
from migration.tcp import TcpTransport
from migration.transport import Address, Transport, host_id
from prefill_pool.chunked_prefill import ChunkedPrefill
from prefill_pool.instance import PrefillInstance
from tests.engine.toy import EOS, ToyRunner

BOUND = 20.0
"""Seconds that anything in these tests may take."""

SLOT = struct.Struct("<qq")


@dataclass(frozen=True)
class ToyLayout:
    layers: int = 1
    block_size: int = 4
    kv_heads: int = 1
    head_dim: int = 2
    dtype: str = "int64"


class ToyStore:
    """A BlockStore over what a ToyRunner keeps; `padding` more bytes a block make it as large as wanted."""

    def __init__(self, runner: ToyRunner, padding: int = 0) -> None:
        self.runner = runner
        self.layout = ToyLayout(block_size=runner.block_size)
        self.block_nbytes = SLOT.size * runner.block_size + padding
        self.gathered: list[int] = []
        self.scattered = 0
        self.before_gather: Callable[[], None] = lambda: None

    def gather(self, blocks: Sequence[int], out: memoryview) -> None:
        self.before_gather()
        assert out.nbytes == len(blocks) * self.block_nbytes
        self.gathered += blocks
        for place, block in enumerate(blocks):
            for slot, (position, token) in enumerate(self.runner.store[block]):
                SLOT.pack_into(out, place * self.block_nbytes + slot * SLOT.size, position, token)

    def gather_slots(self, slots: Sequence[int], size: int, out: memoryview) -> None:
        self.before_gather()
        assert len(slots) % size == 0
        here = self.runner.block_size
        slot_nbytes = self.block_nbytes // here
        assert out.nbytes == len(slots) * slot_nbytes
        self.gathered += dict.fromkeys(slot // here for slot in slots)
        for place, slot in enumerate(slots):
            SLOT.pack_into(out, place * SLOT.size, *self.runner.store[slot // here][slot % here])

    def scatter(self, blocks: Sequence[int], data: memoryview) -> None:
        assert data.nbytes == len(blocks) * self.block_nbytes
        self.scattered += len(blocks)
        for place, block in enumerate(blocks):
            start = place * self.block_nbytes
            self.runner.store[block] = [
                SLOT.unpack_from(data, start + slot * SLOT.size) for slot in range(self.runner.block_size)
            ]


class GatedRunner:
    """Runs a step for each permit once `hold` was called; without, when `dawdle` returns, at once."""

    def __init__(self, inner: ToyRunner) -> None:
        self.inner = inner
        self.dawdle: Callable[[], object] = lambda: None
        self._permits: threading.Semaphore | None = None

    def hold(self) -> None:
        self._permits = threading.Semaphore(0)

    def permit(self, steps: int = 1) -> None:
        assert self._permits is not None
        self._permits.release(steps)

    def run(self, plan: StepPlan) -> StepResult:
        if self._permits is not None:
            assert self._permits.acquire(timeout=BOUND), "the test never permitted this step"
        self.dawdle()
        return self.inner.run(plan)


class Home:
    """A gateway as instances know it: takes tokens in order, once, from the owner; grants claims."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.owner: dict[str, tuple[Epoch, str]] = {}
        self.choices: dict[str, int] = {}
        self.tokens: dict[SequenceKey, dict[int, int]] = {}
        self.pushed: list[tuple[str, Emitted]] = []
        self.finished: set[SequenceKey] = set()
        self.claims: list[tuple[str, Epoch, dict[int, int]]] = []
        self.answer: Callable[[str, Epoch], bool | None] = lambda instance, epoch: None
        self.heard: Callable[[str, Emitted], None] = lambda instance, emitted: None
        self._granted: dict[str, list[tuple[Epoch, dict[int, int]]]] = {}

    def open(self, request: Request, epoch: Epoch) -> None:
        with self.changed:
            self.owner[request.id] = epoch, ""
            self.choices[request.id] = request.sampling.n

    def claim(
        self, instance: str, home: str, request_id: str, epoch: Epoch, lengths: Mapping[int, int]
    ) -> bool:
        assert home == "home"
        with self.changed:
            self.claims.append((instance, epoch, dict(lengths)))
            self.changed.notify_all()
            said = self.answer(instance, epoch)
            if said is not None:
                return said
            owner, holder = self.owner[request_id]
            if sum(key.request_id == request_id for key in self.finished) == self.choices[request_id]:
                return False
            if (owner, holder) == (epoch, instance):
                return True
            if epoch.attempt != owner.attempt or epoch.move <= owner.move:
                return False
            self.owner[request_id] = epoch, instance
            self._granted.setdefault(request_id, []).append((epoch, dict(lengths)))
            return True

    def push(self, instance: str, emitted: Sequence[Emitted]) -> set[str]:
        """The requests that the instance may not speak for any more."""
        fenced = set()
        with self.changed:
            for one in emitted:
                owner, _ = self.owner[one.key.request_id]
                if one.epoch < owner and one.index >= self._taken_over(one):
                    fenced.add(one.key.request_id)
                    continue
                assert one.epoch <= owner, "an epoch that nobody granted"
                self.pushed.append((instance, one))
                if one.drawn is not None:
                    known = self.tokens.setdefault(one.key, {})
                    assert known.setdefault(one.index, one.drawn.token) == one.drawn.token
                if one.finish is not None:
                    assert one.key not in self.finished, "it ended twice"
                    self.finished.add(one.key)
            self.changed.notify_all()
        for one in emitted:
            self.heard(instance, one)
        return fenced

    def _taken_over(self, one: Emitted) -> int:
        """Below which index an older epoch may still speak: what the next newer one took over."""
        for epoch, lengths in self._granted.get(one.key.request_id, ()):
            if epoch > one.epoch:
                return lengths.get(one.key.choice, 1 << 30)
        return 0

    def wait(self, reached: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(reached, BOUND), "it did not come to that"

    def output(self, request: Request, choice: int = 0) -> list[int]:
        """The whole output of a choice, when it is finished."""
        return self.tail(request, choice, 0)

    def tail(self, request: Request, choice: int, start: int) -> list[int]:
        """The output of a choice from index `start` on, when it is finished."""
        key = SequenceKey(request.id, choice)
        self.wait(lambda: key in self.finished)
        tokens = self.tokens[key]
        assert sorted(tokens) == list(range(start, start + len(tokens)))
        return [tokens[index] for index in sorted(tokens)]

    def pushers(self, request: Request) -> set[str]:
        with self.changed:
            return {instance for instance, one in self.pushed if one.key.request_id == request.id}


class _Sink:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def push(self, emitted: Sequence[Emitted]) -> None:
        for request_id in self._engine.home.push(self._engine.name, emitted):
            self._engine.loop.call(partial(_cancel, request_id))


def _cancel(request_id: str, core: EngineCore) -> None:
    core.cancel(request_id)


class _Clock:
    def now(self) -> float:
        return time.monotonic()


class Engine:
    """One instance's engine, on which a sender and a receiver are put."""

    def __init__(
        self, name: str, home: Home, *, total: int, padding: int, block_size: int = 4, seats: int = 32
    ) -> None:
        self.name = name
        self.home = home
        self.core = EngineCore(
            pool=BlockPool(total, block_size),
            queue=FCFSQueue(),
            policy=ChunkedPrefill(max(16, block_size), block_size),
            limits=Limits(max_length=10_000, max_sequences=seats),
            eos_token_ids=frozenset({EOS}),
        )
        self.runner = GatedRunner(ToyRunner(total, block_size))
        self.store = ToyStore(self.runner.inner, padding)
        self.loop = EngineLoop(self.core, self.runner, _Sink(self), _Clock(), name=name)
        self.loop.start()

    def identity(self, **changes: object) -> Identity:
        known: dict[str, object] = {"weights_digest": "toy", "secret": b"between us"}
        return Identity.of(self.name, self.store, **(known | changes))  # type: ignore[arg-type]

    def claim(self, home: str, request_id: str, epoch: Epoch, lengths: Mapping[int, int]) -> bool:
        return self.home.claim(self.name, home, request_id, epoch, lengths)

    def idle(self) -> bool:
        """Whether nothing lives or is reserved here; checks the ledger too."""

        def look(core: EngineCore) -> bool:
            core.check()
            status = core.status()
            return status.blocks_used == status.blocks_reserved == status.running == status.waiting == 0

        return self.loop.call(look).result(BOUND)

    def rest(self) -> None:
        """Wait until it is idle."""
        deadline = time.monotonic() + BOUND
        while not self.idle():
            assert time.monotonic() < deadline, f"{self.name} still holds blocks"
            threading.Event().wait(0.002)


def transports(timeout: float = 5.0) -> dict[str, Transport]:
    return {"shm": ShmTransport(timeout), "tcp": TcpTransport(timeout)}


LISTEN = {"shm": "", "tcp": "127.0.0.1:0"}
QUICK = Timeouts(reserve=5.0, chunk=5.0, commit=5.0, lease=5.0, stall=5.0, retry=0.02)


class Ends:
    """Sender and receiver of an engine, `forced` to a transport or not."""

    def __init__(self, engine: Engine, secret: bytes = b"between us", **options: Any) -> None:
        forced = options.pop("forced", "auto")
        wrap: Callable[[Transport], Transport] = options.pop("wrap", lambda transport: transport)
        more: Callable[[], dict[str, Transport]] = options.pop("more", dict)
        common = (engine.loop, engine.store, engine.identity(secret=secret), engine.claim)
        known = options.get("timeouts", QUICK)
        ways = {name: wrap(one) for name, one in (transports(known.chunk) | more()).items()}
        listen = {name: LISTEN.get(name, "127.0.0.1:0") for name in ways}
        self.receiver = Receiver(*common, ways, listen, host=host_id(), **options)
        self.receiver.start()
        self.sender = Sender(*common, ways, host=host_id(), forced=forced, **options)

    def close(self) -> None:
        self.sender.close(BOUND)
        self.receiver.close(BOUND)


class Pair:
    """Prefill instance `p`, decode instance `d`, and their home."""

    def __init__(
        self,
        forced: str = "auto",
        *,
        timeouts: Timeouts = QUICK,
        bounds: Bounds = Bounds(),
        blocks: tuple[int, int] = (64, 64),
        sizes: tuple[int, int] = (4, 4),
        padding: int = 0,
        max_sessions: int = 16,
        more: Callable[[], dict[str, Transport]] = dict,
        made: Callable[..., Engine] = Engine,
        secrets: tuple[bytes, bytes] = (b"between us", b"between us"),
        reach: Callable[[Address], Address] = lambda address: address,
    ) -> None:
        self.home = Home()
        options = {"timeouts": timeouts, "max_sessions": max_sessions, "forced": forced, "bounds": bounds}
        options["more"] = more
        self.p = made("p", self.home, total=blocks[0], padding=padding, block_size=sizes[0])
        self.d = made("d", self.home, total=blocks[1], padding=padding, block_size=sizes[1])
        source = Ends(self.p, secrets[0], **options)
        destination = Ends(self.d, secrets[1], **options)
        self.ends = source, destination
        self.sender, self.receiver = source.sender, destination.receiver
        self.prefill = PrefillInstance("p", self.p.loop, source.sender, source.receiver)
        self.decode = DecodeInstance("d", self.d.loop, destination.sender, destination.receiver)
        self.address = reach(self.receiver.address)

    def start(self, *requests: Request, epoch: Epoch = START) -> None:
        for request in requests:
            self.home.open(request, epoch)
            self.prefill.start(request, (), epoch, "home", self.address).result(BOUND)

    def close(self) -> None:
        for end in self.ends:
            end.close()
        self.p.loop.stop(BOUND)
        self.d.loop.stop(BOUND)

    def rest(self) -> None:
        self.p.rest()
        self.d.rest()


@contextmanager
def pair(forced: str = "auto", **options: object) -> Iterator[Pair]:
    """A pair whose two ledgers balance at the end, and that leaves no thread behind."""
    before = set(threading.enumerate())
    both = Pair(forced, **options)  # type: ignore[arg-type]
    try:
        yield both
        both.rest()
    finally:
        both.close()
    new = set(threading.enumerate()) - before
    left = [thread for thread in new if thread.name[:1] in "pd" and thread.name[1:2] in ("", "-")]
    for thread in left:
        thread.join(BOUND)
    assert not [thread.name for thread in left if thread.is_alive()]
