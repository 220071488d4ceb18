"""One instance, put together: model, block pool, engine loop, both ends of movements, and the way home for
tokens.

    start ─▶ role ─▶ EngineLoop ── step ──▶ TokenPusher ═══▶ home gateway
                       │  ▲                                     ▲
                  Sender  Receiver ── HomeClaims ───────────────┘

Every instance has both ends of movements, whatever its role, which is the one part that may be changed later.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future

import grpc

from cluster import control_pb2 as pb
from cluster.config import Config, TransferConfig
from cluster.home_claims import HomeClaims
from cluster.logs import configure
from cluster.rpc import channel
from cluster.token_stream import TokenPusher
from decode_pool.continuous_batching import ContinuousBatching
from decode_pool.instance import DecodeInstance
from engine.batch import BatchPolicy, Limits
from engine.blocks import BlockPool
from engine.core import EngineCore
from engine.loop import EngineLoop
from engine.prefix_cache import fingerprint
from engine.queues.fcfs import FCFSQueue
from engine.status import InstanceStatus
from migration.events import Timeouts
from migration.handshake import Identity
from migration.receiver import Receiver
from migration.sender import Sender
from migration.shm import ShmTransport
from migration.state import restore
from migration.tcp import TcpTransport
from migration.transport import Transport, describe, host_id
from migration.wire import address_to_wire, start_from_wire
from model.device import resolve
from model.runner import ModelRunner
from model.tokenizer import Detokenizer, Tokenizer
from prefill_pool.chunked_prefill import ChunkedPrefill
from prefill_pool.instance import PrefillInstance


class MonotonicClock:
    def now(self) -> float:
        return time.monotonic()


class EngineInstance:
    """Everything that runs in one actor. `open` and `close` belong to the actor's event loop."""

    def __init__(self, config: Config, name: str, role: str, runner: ModelRunner, device: str) -> None:
        self.name = name
        self._device = device
        self._config = config
        self._runner = runner
        token = config.control.token or ""
        tokenizer = Tokenizer(runner.assets)

        def connect(home: str) -> grpc.aio.Channel:
            return channel(home, token)

        self._pusher = TokenPusher(
            name, lambda _: Detokenizer(tokenizer), connect, lease=config.transfer.lease
        )
        self._claims = HomeClaims(name, connect, timeout=config.transfer.commit_timeout)
        self._core = _core(config, role, runner)
        self._loop = EngineLoop(self._core, runner, self._pusher, MonotonicClock(), name=name)
        self._sender, self._receiver = self._movements(config.transfer, token)
        self._role: PrefillInstance | DecodeInstance
        if role == PrefillInstance.role:
            self._role = PrefillInstance(name, self._loop, self._sender)
        else:
            self._role = DecodeInstance(name, self._loop, self._receiver)

    @property
    def description(self) -> pb.Instance:
        assets = self._runner.assets
        return pb.Instance(
            device=self._device,
            address=address_to_wire(self._receiver.address),
            model=pb.Model(
                name=self._config.model.name or assets.name,
                path=str(assets.path),
                dtype=self._runner.kv.layout.dtype,
                max_length=self._core.limits.max_length,
                digest=assets.digest,
            ),
        )

    @property
    def ended(self) -> Future[None]:
        """Done when the engine loop is, with what ended it."""
        return self._loop.ended

    async def open(self) -> None:
        """Begin to serve."""
        self._claims.open()
        self._pusher.start(self._loop.call)
        self._loop.start()
        self._receiver.start()

    def start(self, start: bytes) -> Future[None]:
        """Run a request; the future fails with what the engine refuses it with."""
        state, decode = start_from_wire(start)
        request, choices = state.request, restore(state)
        if isinstance(self._role, PrefillInstance):
            return self._role.start(request, choices, state.epoch, state.home, decode)
        return self._role.start(request, choices, state.epoch, state.home)

    def cancel(self, request_id: str) -> Future[bool]:
        """Drop a request, wherever in this instance it is."""
        return self._role.cancel(request_id)

    def status(self) -> Future[InstanceStatus]:
        return self._role.status()

    def drain(self) -> None:
        """Take no new requests."""
        self._role.drain()

    async def close(self) -> None:
        """Let go of everything that is shared with other processes."""
        bound = self._config.control.call_timeout / 3
        movements = self._sender.close, self._receiver.close
        await asyncio.gather(*(asyncio.to_thread(close, bound) for close in movements))
        await asyncio.to_thread(self._loop.stop, bound)
        await self._pusher.close()
        await self._claims.close()

    def _movements(self, config: TransferConfig, token: str) -> tuple[Sender, Receiver]:
        runner, loop = self._runner, self._loop
        identity = Identity.of(self.name, runner.kv, runner.weights_digest, token.encode())
        transports: dict[str, Transport] = {
            "shm": ShmTransport(config.chunk_timeout),
            "tcp": TcpTransport(config.chunk_timeout),
        }
        timeouts = Timeouts(
            reserve=config.reserve_timeout,
            chunk=config.chunk_timeout,
            commit=config.commit_timeout,
            lease=config.lease,
        )
        host = host_id()
        where = f"[{config.host}]:0" if ":" in config.host else f"{config.host}:0"
        listen = {"shm": "", "tcp": where}
        if config.transport != "auto":
            listen = {config.transport: listen[config.transport]}
        sender = Sender(
            loop,
            runner.kv,
            identity,
            self._claims,
            transports,
            host=host,
            timeouts=timeouts,
            max_sessions=config.max_sessions,
            forced=config.transport,
        )
        receiver = Receiver(
            loop,
            runner.kv,
            identity,
            self._claims,
            transports,
            listen,
            host=host,
            timeouts=timeouts,
            max_sessions=config.max_sessions,
        )
        return sender, receiver


def assemble(config: Config, name: str, role: str, threads: int) -> EngineInstance:
    """Load the model and put an instance together; blocks for seconds. Raises SetupError."""
    configure(config.log, instance=name, pool=role)
    engine = config.engine
    device, dtype = resolve(engine.device, config.model.dtype)
    runner = ModelRunner(
        config.model.path,
        dtype=dtype,
        device=device,
        cache=config.cache_directory,
        kv_bytes=engine.kv_memory,
        block_size=engine.block_size,
        threads=threads,
    )
    return EngineInstance(config, name, role, runner, device)


def _core(config: Config, role: str, runner: ModelRunner) -> EngineCore:
    engine, layout = config.engine, runner.kv.layout
    policies: dict[str, BatchPolicy] = {
        "prefill": ChunkedPrefill(engine.token_budget, engine.block_size),
        "decode": ContinuousBatching(engine.token_budget),
    }
    longest = runner.config.context_length
    return EngineCore(
        pool=BlockPool(runner.kv.blocks, engine.block_size, engine.prefix_cache),
        queue=FCFSQueue(),
        policy=policies[role],
        limits=Limits(
            max_length=min(config.model.max_length or longest, longest),
            max_sequences=engine.max_sequences,
            queue_limit=engine.queue_limit,
        ),
        eos_token_ids=frozenset(runner.eos_token_ids),
        fingerprint=fingerprint(runner.weights_digest, layout.dtype, describe(layout)),
    )
