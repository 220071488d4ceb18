"""An engine for a benchmark of movements: with a KV cache, both ends of movements, and a diary."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from cluster.instance import MonotonicClock
from engine.core import EngineCore
from engine.errors import TandemError
from engine.loop import EngineLoop
from engine.outcome import Emitted
from engine.plan import StepPlan, StepResult
from engine.sequence import Epoch
from migration.events import Bounds
from migration.handshake import Identity
from migration.receiver import Receiver
from migration.sender import Sender
from migration.shm import ShmTransport
from migration.tcp import TcpTransport
from migration.transport import BlockStore, Buffer, Layout, Transport, host_id
from model.runner import ModelRunner

PATIENCE = 300.0
"""Seconds that anything here may take."""

Note = Callable[[str, float, float, int], None]
"""What was done, from when to when on the monotonic clock, and to how many tokens or blocks."""


class Diary:
    """Keeps the notes of several threads, while it is `on`."""

    def __init__(self) -> None:
        self.on = False
        self.notes: list[tuple[str, float, float, int]] = []

    def __call__(self, what: str, begun: float, ended: float, size: int) -> None:
        if self.on:
            self.notes.append((what, begun, ended, size))


class NotedRunner:
    """A Runner around another one that notes each step."""

    def __init__(self, runner: ModelRunner, name: str, note: Note) -> None:
        self._runner = runner
        self._name = name
        self._note = note

    def run(self, plan: StepPlan) -> StepResult:
        begun = time.monotonic()
        result = self._runner.run(plan)
        self._note(f"{self._name} computes", begun, time.monotonic(), plan.tokens)
        return result


class NotedStore:
    """A BlockStore around another one that notes what is read and written for movements."""

    def __init__(self, store: BlockStore, name: str, note: Note) -> None:
        self._store = store
        self._name = name
        self._note = note

    @property
    def block_nbytes(self) -> int:
        return self._store.block_nbytes

    @property
    def layout(self) -> Layout:
        return self._store.layout

    def gather(self, blocks: Sequence[int], out: Buffer) -> None:
        begun = time.monotonic()
        self._store.gather(blocks, out)
        self._note(f"{self._name} sends", begun, time.monotonic(), len(blocks))

    def gather_slots(self, slots: Sequence[int], size: int, out: Buffer) -> None:
        begun = time.monotonic()
        self._store.gather_slots(slots, size, out)
        self._note(f"{self._name} sends", begun, time.monotonic(), len(slots) // size)

    def scatter(self, blocks: Sequence[int], data: Buffer) -> None:
        begun = time.monotonic()
        self._store.scatter(blocks, data)
        self._note(f"{self._name} receives", begun, time.monotonic(), len(blocks))


class Stopwatch:
    """Home and token sink of both engines: when each token came, and from where."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.tokens: dict[str, list[tuple[float, str, int]]] = {}

    def take(self, name: str, emitted: Sequence[Emitted]) -> None:
        now = time.monotonic()
        with self.changed:
            for one in emitted:
                token = -1 if one.drawn is None else one.drawn.token
                self.tokens.setdefault(one.key.request_id, []).append((now, name, token))
            self.changed.notify_all()

    def wait(self, request_id: str, name: str, count: int) -> None:
        """Until so many tokens have come from `name`. Raises TandemError."""

        def come() -> bool:
            return sum(where == name for _, where, _ in self.tokens.get(request_id, ())) >= count

        with self.changed:
            if not self.changed.wait_for(come, PATIENCE):
                raise TandemError(f"no token of {request_id} came from {name} in {PATIENCE:g} s")


class _Sink:
    def __init__(self, name: str, watch: Stopwatch) -> None:
        self._name = name
        self._watch = watch

    def push(self, emitted: Sequence[Emitted]) -> None:
        self._watch.take(self._name, emitted)


class End:
    """An engine with both ends of movements; `diary` notes what it does."""

    def __init__(self, name: str, core: EngineCore, runner: ModelRunner, watch: Stopwatch) -> None:
        self.name = name
        self.diary = Diary()
        noted = NotedRunner(runner, name, self.diary)
        self.loop = EngineLoop(core, noted, _Sink(name, watch), MonotonicClock(), name=name)
        self._store: BlockStore = NotedStore(runner.kv, name, self.diary)
        self._digest = runner.weights_digest
        self._ways: dict[str, Transport] = {"shm": ShmTransport(30.0), "tcp": TcpTransport(30.0)}
        self._open: list[Sender | Receiver] = []
        self.loop.start()

    def listen(self, secret: bytes) -> Receiver:
        identity = Identity.of(self.name, self._store, self._digest, secret)
        listen = {"shm": "", "tcp": "127.0.0.1:0"}
        receiver = Receiver(
            self.loop,
            self._store,
            identity,
            _granted,
            self._ways,
            listen,
            host=host_id(),
            bounds=Bounds(share=1),
        )
        receiver.start()
        self._open.append(receiver)
        return receiver

    def send(self, secret: bytes, forced: str, bounds: Bounds) -> Sender:
        identity = Identity.of(self.name, self._store, self._digest, secret)
        sender = Sender(
            self.loop,
            self._store,
            identity,
            _granted,
            self._ways,
            host=host_id(),
            bounds=bounds,
            forced=forced,
        )
        self._open.append(sender)
        return sender

    def close(self) -> None:
        for one in self._open:
            one.close(10.0)
        self.loop.stop(10.0)


def _granted(home: str, request_id: str, epoch: Epoch, lengths: object) -> bool:
    return True
