"""One instance, put together: model, block pool, engine loop, both ends of movements, and the way home for
tokens.

    start ─▶ role ─▶ EngineLoop ── step ──▶ TokenPusher ═══▶ home gateway
                       │  ▲                                     ▲
                  Sender  Receiver ── HomeClaims ───────────────┘

Every instance has both ends of movements, whatever its role, which is the one part that may be changed later.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace

import grpc

from cluster import control_pb2 as pb
from cluster.config import Config, TransferConfig
from cluster.home_claims import HomeClaims
from cluster.logs import configure, of_request
from cluster.policies import arrange, role_policy, tier_settings
from cluster.role_policy import slices_message
from cluster.rpc import channel, reachable
from cluster.start_link import StartLinks
from cluster.status_message import transfer_messages
from cluster.step_watch import Present, watch
from cluster.takeover import running, taken_message
from cluster.tls import cluster_tls
from cluster.token_stream import TokenPusher
from cluster.transports import listening, transports
from decode_pool.instance import DecodeInstance
from engine.batch import BatchPolicy, Limits
from engine.blocks import BlockPool
from engine.core import EngineCore
from engine.loop import EngineLoop
from engine.prefix_cache import fingerprint
from engine.queues.fair import FairQueue
from engine.shared_service import News, SharedCounters
from engine.status import InstanceStatus, RequestStatus
from migration.events import Bounds, Timeouts
from migration.faulty import Faults, FaultyTransport
from migration.handshake import Identity
from migration.moved import Moved
from migration.receiver import Receiver
from migration.sender import Sender
from migration.state import restore
from migration.transport import Address, describe, host_id
from migration.wire import address_to_wire, start_from_wire
from model.cuda_graph import stepper
from model.device import resolve
from model.runner import ModelRunner
from model.tokenizer import Detokenizer, Tokenizer
from prefill_pool.instance import PrefillInstance

logger = logging.getLogger("tandem.instance")


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
        self._tls = cluster_tls(config.security.cluster_tls)
        tokenizer = Tokenizer(runner.assets)

        def connect(home: str) -> grpc.aio.Channel:
            return channel(home, token, self._tls)

        self._pusher = TokenPusher(
            name,
            lambda _: Detokenizer(tokenizer),
            connect,
            lease=config.transfer.lease,
            kept=config.gateway.resume_lease,
        )
        self._starts = StartLinks(name, connect, self.start)
        self._claims = HomeClaims(name, connect, timeout=config.transfer.commit_timeout)
        self._policy = role_policy(config.engine, role)
        self._core = engine_core(config, self._policy, runner)
        control = config.control
        steps = stepper(runner, config.engine.max_sequences)
        self._watch = watch(steps, factor=control.step_factor, floor=control.step_floor)
        self._loop = EngineLoop(self._core, self._watch, self._pusher, MonotonicClock(), name=name)
        self._loop.observe(self._pusher.chunks.observe)
        if isinstance(self._core.queue, FairQueue):
            self._loop.observe(self._core.queue.observe)
        self._faults = Faults()
        self._over = threading.Event()
        self._sender, self._receiver = self._movements(config.transfer, token)
        self._role = self._in(role)

    @property
    def description(self) -> pb.Instance:
        assets, address = self._runner.assets, self._receiver.address
        return pb.Instance(
            device=self._device,
            address=address_to_wire(
                replace(
                    address,
                    tcp=reachable(address.tcp),
                    nccl=reachable(address.nccl),
                    nixl=reachable(address.nixl),
                )
            ),
            model=pb.Model(
                name=self._config.model.name or assets.name,
                path=str(assets.path),
                dtype=self._runner.numbers,
                max_length=self._core.limits.max_length,
                digest=assets.digest,
            ),
            transfers=transfer_messages(self._sender.transfers),
            lease_expirations=self._receiver.lease_expirations,
            slices=slices_message(self._policy),
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
        populate = self._runner.kv.populate
        threading.Thread(target=populate, args=(self._over,), name="kv-memory", daemon=True).start()

    def start(self, start: bytes) -> Future[None]:
        """Run a request, whose home may send its next ones over a stream; call in the event loop. The future
        fails with what the engine refuses it with."""
        state, decode = start_from_wire(start)
        self._starts.link(state.home)
        request, choices = state.request, restore(state)
        logger.debug("takes %s, attempt %d", request.id, state.epoch.attempt, extra=of_request(request))
        if isinstance(self._role, PrefillInstance):
            return self._role.start(request, choices, state.epoch, state.home, decode)
        return self._role.start(request, choices, state.epoch, state.home)

    def cancel(self, request_id: str) -> Future[bool]:
        """Drop a request, wherever in this instance it is."""
        return self._role.cancel(request_id)

    def status(self) -> Future[InstanceStatus]:
        return self._role.status()

    def move(self, request_id: str, to: Address, reason: str) -> Future[Moved]:
        """Migrate a request that lives here to another instance; never fails, see `Sender.move`."""
        return self._role.move(request_id, to, reason)

    def requests(self) -> Future[tuple[RequestStatus, ...]]:
        """The requests that live here."""
        return self._role.requests()

    async def take(self, name: str, digest: str) -> pb.TakenRequests:
        """Drop a client's requests (see `same_question`), tell their homes so, and give what they had."""

        tell = self._pusher.taken
        taken = await asyncio.wrap_future(self._loop.call(lambda core: running(core, name, digest, tell)))
        for request_id in taken:
            self._role.cancel(request_id)
        # What the engine ended before it was asked has been pushed by now.
        return taken_message(self.name, taken, self._pusher.endings.find(name, digest))

    def exchange(self, service: Mapping[str, float]) -> Future[News]:
        """Take in what tenants were served everywhere; gives what was counted here. Nothing unless fair."""

        def exchange(core: EngineCore) -> News:
            queue = core.queue
            if not isinstance(queue, FairQueue) or not isinstance(queue.counters, SharedCounters):
                return News()
            queue.counters.adopt(service)
            return queue.counters.news()

        return self._loop.call(exchange)

    def afflict(self, fault: str) -> None:
        """What goes out to other instances fails as told, or the next step hangs, until "" is told. Raises
        InvalidParameter."""
        self._faults.set(self._watch.others(fault))
        self._watch.take(fault)

    def change_role(self, role: str) -> None:
        """Go on in another role, which takes new requests; model, KV cache and loop stay as they are."""
        self._role = self._in(role)
        self._policy.role = role
        self._role.undrain()

    def present(self) -> Present:
        """The step under way; may be asked in any thread."""
        return self._watch.present()

    def drain(self) -> None:
        """Take no new requests."""
        self._role.drain()

    def undrain(self) -> None:
        """Take new requests again."""
        self._role.undrain()

    async def close(self) -> None:
        """Let go of everything that is shared with other processes."""
        self._over.set()
        await self._starts.close()
        bound = self._config.control.call_timeout / 3
        movements = self._sender.close, self._receiver.close
        await asyncio.gather(*(asyncio.to_thread(close, bound) for close in movements))
        await asyncio.to_thread(self._loop.stop, bound)
        await self._pusher.close()
        await self._claims.close()

    def _in(self, role: str) -> PrefillInstance | DecodeInstance:
        kind = PrefillInstance if role == PrefillInstance.role else DecodeInstance
        return kind(self.name, self._loop, self._sender, self._receiver)

    def _movements(self, config: TransferConfig, token: str) -> tuple[Sender, Receiver]:
        runner, loop = self._runner, self._loop
        identity = Identity.of(self.name, runner.kv, runner.numerics_digest, token.encode())
        found = transports(config, self._device, self._tls)
        ways = {name: FaultyTransport(one, self._faults) for name, one in found.items()}
        timeouts = Timeouts(
            reserve=config.reserve_timeout,
            chunk=config.chunk_timeout,
            commit=config.commit_timeout,
            lease=config.lease,
            resends=config.resends,
        )
        bounds = Bounds(
            stages=config.live_stages,
            last_blocks=config.last_stage_blocks,
            pause=config.pause,
            moves=config.max_moves,
            tokens=config.moving_tokens,
            share=config.reserved_share,
        )
        host = host_id()
        sender = Sender(
            loop,
            runner.kv,
            identity,
            self._claims,
            ways,
            host=host,
            timeouts=timeouts,
            bounds=bounds,
            max_sessions=config.max_sessions,
            forced=config.transport,
        )
        receiver = Receiver(
            loop,
            runner.kv,
            identity,
            self._claims,
            ways,
            listening(config),
            host=host,
            timeouts=timeouts,
            bounds=bounds,
            max_sessions=config.max_sessions,
        )
        return sender, receiver


def assemble(config: Config, name: str, role: str, threads: int) -> EngineInstance:
    """Load the model and put an instance together; blocks for seconds. Raises SetupError."""
    configure(config.log, instance=name, pool=role)
    runner, device = load_runner(config, threads)
    return EngineInstance(config, name, role, runner, device)


def load_runner(config: Config, threads: int) -> tuple[ModelRunner, str]:
    """The model with its KV cache, and the device it is on; blocks for seconds. Raises SetupError."""
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
        weights=config.model.weights,
        activations=config.model.activations,
        kv_dtype=engine.kv_dtype,
        exact=engine.exact,
        host_bytes=engine.host_memory,
    )
    return runner, device


def engine_core(config: Config, policy: BatchPolicy, runner: ModelRunner) -> EngineCore:
    """The engine of an instance, also to be run without one."""
    engine, layout = config.engine, runner.kv.layout
    longest = runner.config.context_length
    pool = BlockPool(runner.kv.blocks, engine.block_size, engine.prefix_cache)
    queue, offered = arrange(engine, policy, pool.total * pool.block_size)
    return EngineCore(
        pool=pool,
        queue=queue,
        policy=offered,
        limits=Limits(
            max_length=min(config.model.max_length or longest, longest),
            max_sequences=engine.max_sequences,
            queue_limit=engine.queue_limit,
        ),
        eos_token_ids=frozenset(runner.eos_token_ids),
        fingerprint=fingerprint(runner.weights_digest, runner.numbers, describe(layout)),
        tiers=tier_settings(engine, runner.kv.block_nbytes),
    )
