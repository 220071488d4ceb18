"""A cluster in one process for tests of the gateway: real engines, loops, pushers and streams; no Ray."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from typing import Any

import httpx
from starlette.types import ASGIApp

from cluster import control_pb2 as pb
from cluster import control_pb2_grpc, rpc
from cluster.access import Access
from cluster.cluster_facts import ClusterFacts
from cluster.config import GatewayConfig
from cluster.config_security import TenantLimits
from cluster.gateway_api import build_api
from cluster.gateway_service import GatewayService, Tokenizer
from cluster.http_guard import Bounds
from cluster.http_listener import Listener
from cluster.metrics import Metrics
from cluster.openai_answers import ModelCard
from cluster.request_driver import RequestDriver
from cluster.status_message import status_message
from cluster.stream_text import Detokenizer
from cluster.takeover import running, taken_message
from cluster.tls import Tls
from cluster.token_stream import HomeService, TokenPusher
from cluster.token_streams import TokenStreams
from decode_pool.continuous_batching import ContinuousBatching
from engine.batch import Limits
from engine.blocks import BlockPool
from engine.core import EngineCore, Runner
from engine.errors import InstanceDied, NoDecodeInstance, TandemError
from engine.loop import EngineLoop
from engine.queues.fcfs import FCFSQueue
from engine.request import Request
from global_scheduler.journey import Patience
from migration.state import restore
from migration.wire import start_from_wire
from tests.cluster.doubles import EOS, ByteDetokenizer, ByteTokenizer, ScriptedRunner, until

TOKEN = "a secret for tests"


class _Clock:
    def now(self) -> float:
        return time.monotonic()


class LocalInstance:
    """What a worker is, without an actor around it and without movements."""

    def __init__(
        self,
        name: str,
        runner: Runner,
        detokenizer: Callable[[Request], Detokenizer],
        *,
        blocks: int,
        block_size: int,
        limits: Limits,
        eos: frozenset[int],
    ) -> None:
        self.name = name
        self.runner = runner
        self.core = EngineCore(
            pool=BlockPool(blocks, block_size, True),
            queue=FCFSQueue(),
            policy=ContinuousBatching(64),
            limits=limits,
            eos_token_ids=eos,
        )
        self.pusher = TokenPusher(name, detokenizer, lambda home: rpc.channel(home, TOKEN), lease=5.0)
        self.loop = EngineLoop(self.core, runner, self.pusher, _Clock(), name=name)
        self.pusher.start(self.loop.call)
        self.loop.start()
        self.death: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.refusal: TandemError | None = None
        self.started: list[str] = []
        self.cancelled: list[str] = []

    async def start(self, start: bytes) -> None:
        if self.death.done():
            raise InstanceDied(f"instance {self.name} died")
        if self.refusal is not None:
            raise self.refusal
        state, _ = start_from_wire(start)
        self.started.append(state.request.id)
        choices = restore(state)
        await asyncio.wrap_future(
            self.loop.call(
                lambda core: core.submit(state.request, choices=choices, epoch=state.epoch, home=state.home)
            )
        )

    async def cancel(self, request_id: str) -> None:
        if self.death.done():
            raise InstanceDied(f"instance {self.name} died")
        self.cancelled.append(request_id)
        await asyncio.wrap_future(self.loop.call(lambda core: core.cancel(request_id)))

    async def take(self, name: str, digest: str) -> bytes:
        """As EngineInstance.take does."""

        def take(core: EngineCore) -> dict[str, list[pb.ChoiceTokens]]:
            found = running(core, name, digest, self.pusher.taken)
            for request_id in found:
                core.cancel(request_id)
            return found

        if self.death.done():
            raise InstanceDied(f"instance {self.name} died")
        taken = await asyncio.wrap_future(self.loop.call(take))
        ended = self.pusher.endings.find(name, digest)
        return taken_message(self.name, taken, ended).SerializeToString()

    async def lifetime(self) -> None:
        raise InstanceDied(await asyncio.shield(self.death))

    def status(self) -> pb.Instance:
        return pb.Instance(
            name=self.name, role="decode", state="ready", status=status_message(self.core.status())
        )

    async def kill(self) -> None:
        """As kill -9 would: nothing more is pushed, and everybody hears of the death."""
        self.pusher.push = lambda emitted: None  # type: ignore[method-assign]
        self.loop.stop(0)
        await self.pusher.close()
        self.death.set_result("killed by a test")

    async def idle(self) -> None:
        """Wait until no block is in use; the ledger must hold."""
        await until(lambda: self.core.pool.used + self.core.pool.reserved == 0)
        await asyncio.wrap_future(self.loop.call(lambda core: core.check()))

    async def close(self) -> None:
        self.loop.stop(5)
        await self.pusher.close()


class LocalCluster:
    """Instances, a scheduler that takes them in turn, and a gateway in front."""

    def __init__(self) -> None:
        self.instances: dict[str, LocalInstance] = {}
        self.dead: set[str] = set()
        self.draining = False
        self.placed: list[pb.PlaceRequest] = []
        self.service: GatewayService
        self.driver: RequestDriver
        self.app: ASGIApp
        self.tls: Tls | None = None
        self.bounds = Bounds()

    async def place(self, request: pb.PlaceRequest) -> pb.Placement:
        self.placed.append(request)
        alive = [name for name, each in self.instances.items() if not each.death.done()]
        names = [name for name in alive if name not in request.exclude] or alive
        if not names:
            raise NoDecodeInstance("no instance is left")
        name = names[len(self.placed) % len(names)]
        return pb.Placement(prefill=name, decode=name, reason="its turn")

    async def status(self) -> pb.ClusterStatus:
        instances = [each.status() for each in self.instances.values() if not each.death.done()]
        pools = [pb.Pool(name=name, target=1, ready=len(instances)) for name in ("prefill", "decode")]
        return pb.ClusterStatus(
            instances=instances,
            pools=pools,
            ready=bool(instances),
            version="test",
            draining=self.draining,
        )

    def client(self, **options: object) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app)  # type: ignore[arg-type]
        return httpx.AsyncClient(transport=transport, base_url="http://tandem", timeout=30, **options)  # type: ignore[arg-type]

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """Listen as a gateway does; gives the URL."""
        listener = Listener("127.0.0.1", 0, tls=self.tls, bounds=self.bounds)
        listener.serve(self.app)
        try:
            yield listener.url
        finally:
            await listener.close()

    async def idle(self) -> None:
        """Nothing is left of any request, anywhere."""
        for instance in self.instances.values():
            if not instance.death.done():
                await instance.idle()
        assert not self.driver.runs
        assert len(self.driver.streams) == 0


class LocalGateway:
    """A gateway of a local cluster, in the same process as the others."""

    def __init__(self, driver: RequestDriver, service: GatewayService) -> None:
        self.driver = driver
        self.service = service
        self.app: ASGIApp = build_api(service)

    def client(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app)  # type: ignore[arg-type]
        return httpx.AsyncClient(transport=transport, base_url="http://tandem", timeout=30)


@asynccontextmanager
async def local_gateway(
    cluster: LocalCluster,
    *,
    tokenizer: Tokenizer | None = None,
    detokenizer: Callable[[Request], Detokenizer] = lambda _: ByteDetokenizer(),
    max_length: int = 200,
    config: GatewayConfig | None = None,
    tenants: TenantLimits = TenantLimits(),
    patience: Patience | None = None,
) -> AsyncIterator[LocalGateway]:
    """One more gateway in front of the cluster's instances."""
    streams = TokenStreams()
    server = rpc.server(TOKEN)
    control_pb2_grpc.add_HomeServicer_to_server(HomeService(streams), server)
    home = rpc.listen(server, "127.0.0.1", 0, setting="none")
    await server.start()
    facts = ClusterFacts(cluster.status)
    driver = RequestDriver(
        home,
        streams,
        cluster,
        cluster.instances.__getitem__,
        patience or Patience(place_timeout=1.0, recovery_timeout=1.0, first_pause=0.01),
    )
    service = GatewayService(
        model=ModelCard("tiny", max_length, 1_700_000_000),
        tokenizer=tokenizer or ByteTokenizer(),
        detokenizer=detokenizer,
        driver=driver,
        facts=facts,
        metrics=Metrics("tiny", lambda: facts.status),
        config=config or GatewayConfig(),
        version="0.0",
        access=Access(config or GatewayConfig(), tenants),
    )
    try:
        yield LocalGateway(driver, service)
    finally:
        await driver.close()
        await server.stop(0)


@asynccontextmanager
async def local_cluster(
    *,
    instances: int = 1,
    make_runner: Callable[[], Runner] = ScriptedRunner,
    tokenizer: Tokenizer | None = None,
    detokenizer: Callable[[Request], Detokenizer] = lambda _: ByteDetokenizer(),
    eos: Iterable[int] = (EOS,),
    blocks: int = 64,
    block_size: int = 4,
    max_length: int = 200,
    config: GatewayConfig | None = None,
    tenants: TenantLimits = TenantLimits(),
    tls: Tls | None = None,
    bounds: Bounds = Bounds(),
    queue_limit: int = 256,
    patience: Patience | None = None,
) -> AsyncIterator[LocalCluster]:
    """Runs while the context is open; at its end nothing may be in use any more."""
    cluster = LocalCluster()
    cluster.tls, cluster.bounds = tls, bounds
    for number in range(instances):
        name = f"instance-{number}"
        cluster.instances[name] = LocalInstance(
            name,
            make_runner(),
            detokenizer,
            blocks=blocks,
            block_size=block_size,
            limits=Limits(max_length, 16, queue_limit),
            eos=frozenset(eos),
        )
    try:
        async with local_gateway(
            cluster,
            tokenizer=tokenizer,
            detokenizer=detokenizer,
            max_length=max_length,
            config=config,
            tenants=tenants,
            patience=patience,
        ) as gateway:
            cluster.driver, cluster.service, cluster.app = gateway.driver, gateway.service, gateway.app
            yield cluster
            await cluster.idle()
    finally:
        for instance in cluster.instances.values():
            await instance.close()


@contextmanager
def in_a_thread(serving: AbstractAsyncContextManager[str]) -> Iterator[str]:
    """A server in an event loop of its own, for clients that block; gives its URL."""
    address: Future[str] = Future()
    done = threading.Event()

    async def main() -> None:
        async with serving as url:
            address.set_result(url)
            await asyncio.to_thread(done.wait)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: asyncio.run(main()))
        running.add_done_callback(lambda ended: address.done() or address.set_exception(ended.exception()))
        try:
            yield address.result(30)
        finally:
            done.set()
            running.result(60)


@asynccontextmanager
async def _served(**options: Any) -> AsyncIterator[str]:
    async with local_cluster(**options) as cluster, cluster.serve() as url:
        yield url


def served_in_a_thread(**options: Any) -> AbstractContextManager[str]:
    """A gateway that listens, for clients that block; gives its URL. Nothing may be in use at the end."""
    return in_a_thread(_served(**options))
