"""Measures how fast KV goes from one process to another on this machine, over each transport that it has.

Both ends do what instances do: the sender copies into the payload as gather does, checksums are taken and
compared, the receiver copies out of it as scatter does, and answers. NCCL fills and reads on the GPU.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from cluster.bench.load import Advance
from cluster.bench.machine import Machine
from cluster.bench.statistics import Spread, Value
from cluster.bench.transfer_grpc import GrpcTransport
from cluster.config import TransferConfig
from cluster.transports import transports
from engine.errors import SetupError, TandemError, TransferFailed
from migration.transport import Channel, Transport
from model.accelerators import accelerators

WAYS = ("shm", "tcp", "grpc", "nccl", "nixl")
"""The names that `transfer.transport` knows, and gRPC to compare `tcp` with."""

PATIENCE = 60.0
"""Seconds that anything here may take."""

LISTEN = {"shm": ""}
END = b"end"


class Speed(Value):
    """One transport. `seconds` is the round trip of a message without payload; `bandwidth` in bytes a second
    is that of chunks of `chunk` bytes, sent one after another."""

    transport: str
    chunk: int
    bandwidth: Spread
    seconds: Spread


class TransferReport(Value):
    """The item of `tandem bench transfer -o json`. `missing`: why a transport was not measured."""

    command: str
    machine: Machine
    settings: dict[str, str]
    speeds: tuple[Speed, ...]
    missing: dict[str, str]


def measure(
    names: Sequence[str],
    chunk: int,
    chunks: int,
    repetitions: int,
    *,
    begin: Callable[[str], Advance],
    say: Callable[[str], None],
) -> TransferReport:
    """Every transport in turn, so often as asked. Raises TandemError if one that is there fails."""
    machine = Machine.here()
    found: dict[str, list[tuple[float, float]]] = {}
    missing: dict[str, str] = {}
    for name in names:
        advance = begin(name)
        try:
            with _ends(name) as channel:
                _stream(channel, chunk, 4)  # memory is taken, and mapped, at the first use
                for repetition in range(repetitions):
                    round_trip = _round_trips(channel, 200)
                    found.setdefault(name, []).append((_stream(channel, chunk, chunks), round_trip))
                    advance(repetition + 1, repetitions)
        except SetupError as error:
            missing[name] = error.message
            continue
        bandwidth = max(speed for speed, _ in found[name])
        say(f"{name} · {bandwidth / 1e9:.2f} GB/s")
    return TransferReport(
        command="transfer",
        machine=machine,
        settings={"chunk": str(chunk), "chunks": str(chunks)},
        speeds=tuple(
            Speed(
                transport=name,
                chunk=chunk,
                bandwidth=Spread.of([speed for speed, _ in rounds]),
                seconds=Spread.of([seconds for _, seconds in rounds]),
            )
            for name, rounds in found.items()
        ),
        missing=missing,
    )


@contextmanager
def _ends(name: str) -> Iterator[Channel]:
    """A channel to another process that answers every frame."""
    mine = _transport(name, 0)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_peer, args=(name, there), daemon=True)
    process.start()
    try:
        if not here.poll(PATIENCE):
            raise TandemError(f"the other end of {name} does not come up in {PATIENCE:g} s")
        channel = mine.connect(here.recv(), PATIENCE)
        channel.trust()
        yield channel
        channel.send(END)
        process.join(PATIENCE)
        channel.close()
    except EOFError:
        raise TandemError(f"the other end of {name} ended at once") from None
    finally:
        process.kill()
        process.join(PATIENCE)
        here.close()
        there.close()


def _transport(name: str, end: int) -> Transport:
    """`end` is 0 or 1: NCCL refuses two processes on one GPU."""
    if name == "grpc":
        return GrpcTransport()
    if name == "nccl" and len(accelerators().gpus) == 1:
        raise SetupError("NCCL refuses two processes on one GPU, and there is one: take a machine with two")
    config = TransferConfig.model_validate({"transport": name, "chunk_timeout": PATIENCE})
    return transports(config, f"cuda:{end}" if name == "nccl" else "cpu", None)[name]


def _peer(name: str, pipe: Connection[Any, Any]) -> None:
    """The other end, in a process of its own."""
    listener = _transport(name, 1).listen(LISTEN.get(name, "127.0.0.1:0"))
    pipe.send(listener.address)
    channel = listener.accept()
    channel.trust()
    target = bytearray()
    while True:
        frame = channel.receive(PATIENCE)
        if frame is None or frame.header == END:
            break
        payload = frame.payload
        if isinstance(payload, memoryview):
            if len(target) < payload.nbytes:
                target = bytearray(payload.nbytes)
            target[: payload.nbytes] = payload
            payload.release()
        frame.release()
        channel.send(frame.header)
    channel.close()
    listener.close()


def _stream(channel: Channel, chunk: int, chunks: int) -> float:
    """Bytes a second."""
    source = bytes(chunk)

    def fill(out: Any) -> None:
        out[:] = source if isinstance(out, memoryview) else 7

    begun = time.perf_counter()
    for _ in range(chunks):
        channel.send(b"chunk", chunk, fill)
    _answers(channel, chunks)
    return chunk * chunks / (time.perf_counter() - begun)


def _round_trips(channel: Channel, count: int) -> float:
    """The median, in seconds."""
    taken = []
    for _ in range(count):
        begun = time.perf_counter()
        channel.send(b"message")
        _answers(channel, 1)
        taken.append(time.perf_counter() - begun)
    return sorted(taken)[count // 2]


def _answers(channel: Channel, count: int) -> None:
    for _ in range(count):
        frame = channel.receive(PATIENCE)
        if frame is None:
            raise TransferFailed(f"no answer in {PATIENCE:g} s")
        frame.release()
