"""Whole instances of the embedded model in this process, with sockets between them and to their home.

async with pools(cache, prefill=True, transport="tcp") as both:
    outputs = await both.ask(requests, together=16)     # tokens of choice 0 of each, in order
    both.decode.status(), both.prefill.status()         # what really happened there
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from cluster import control_pb2 as pb
from cluster import control_pb2_grpc, rpc
from cluster.config import Config, ControlConfig, EngineConfig, ModelConfig, TransferConfig
from cluster.config_security import SecurityConfig
from cluster.instance import EngineInstance
from cluster.request_driver import RequestDriver
from cluster.start_calls import StartCalls
from cluster.stream_order import Piece
from cluster.tls import cluster_tls
from cluster.token_stream import HomeService
from cluster.token_streams import TokenStreams
from engine.plan import StepPlan, StepResult
from engine.request import Request
from engine.status import InstanceStatus
from global_scheduler.journey import Patience
from model.runner import ModelRunner
from tests.cluster.doubles import until

TOKEN = "a secret for tests"
BOUND = 1200.0
"""Seconds that one call of `ask` may take."""


class WatchedRunner(ModelRunner):
    """Remembers how many sequences its widest step had; waits for `dawdle` before each."""

    widest = 0
    dawdle: Callable[[], None] | None = None

    def run(self, plan: StepPlan) -> StepResult:
        if self.dawdle is not None:
            self.dawdle()
        self.widest = max(self.widest, len(plan.works))
        return super().run(plan)


class PooledInstance:
    """An EngineInstance as the driver sees it, without an actor around it."""

    def __init__(self, config: Config, name: str, role: str, blocks: int, starts: StartCalls) -> None:
        self.name = name
        self.starts = starts
        self.over_stream = 0
        self.runner = WatchedRunner(
            config.model.path,
            dtype=config.model.dtype,
            cache=config.cache_directory,
            blocks=blocks,
            exact=config.engine.exact,
        )
        self.instance = EngineInstance(config, name, role, self.runner, "cpu")

    async def start(self, start: bytes) -> None:
        """As the gateway does, but that the first one is no actor call."""
        if self.starts.has(self.name):
            self.over_stream += 1
            await self.starts.start(self.name, start, BOUND)
            return
        await asyncio.wrap_future(self.instance.start(start))

    async def cancel(self, request_id: str) -> None:
        await asyncio.wrap_future(self.instance.cancel(request_id))

    async def lifetime(self) -> None:
        await asyncio.Event().wait()

    def status(self) -> InstanceStatus:
        return self.instance.status().result(10)

    def idle(self) -> bool:
        status = self.status()
        return status.blocks_used == status.blocks_reserved == status.running == status.waiting == 0


class Pools:
    """Decode instances, perhaps a prefill instance before them, and the requests' home.

    Requests are placed at the first decode instance.
    """

    def __init__(self, decodes: Sequence[PooledInstance], prefill: PooledInstance | None) -> None:
        self.decodes = decodes
        self.decode = decodes[0]
        self._prefill = prefill
        self.driver: RequestDriver

    @property
    def prefill(self) -> PooledInstance:
        assert self._prefill is not None, "there is no prefill pool"
        return self._prefill

    @property
    def instances(self) -> list[PooledInstance]:
        return [*(() if self._prefill is None else (self._prefill,)), *self.decodes]

    def named(self, name: str) -> PooledInstance:
        return next(one for one in self.instances if one.name == name)

    async def place(self, request: pb.PlaceRequest) -> pb.Placement:
        """A Scheduler: the two that there are."""
        address = self.decode.instance.description.address
        first = self.instances[0].name
        return pb.Placement(prefill=first, decode=self.decode.name, decode_address=address, reason="first")

    async def ask(self, requests: Sequence[Request], together: int = 1) -> list[list[int]]:
        """The tokens of each request's first choice; `together` of them run at a time.

        It returns when the instances are at rest: a client may have all its tokens before the source of a
        handoff hears that the destination has taken over.
        """
        room = asyncio.Semaphore(together)

        async def one(request: Request) -> list[int]:
            async with room:
                return await self._one(request)

        async with asyncio.timeout(BOUND):
            outputs = list(await asyncio.gather(*map(one, requests)))
            await self.rest()
            return outputs

    async def rest(self) -> None:
        """Wait until no request lives at, or is reserved for, any instance."""
        for one in self.instances:
            await until(one.idle)

    async def _one(self, request: Request) -> list[int]:
        pieces = await self.stream(request)
        return [piece.token for piece in pieces if piece.choice == 0 and piece.token is not None]

    async def stream(
        self, request: Request, heard: Callable[[list[Piece]], None] = lambda pieces: None
    ) -> list[Piece]:
        """All that its client gets; `heard` is told at once what has come."""
        changed = asyncio.Event()
        run = self.driver.run(request, changed)
        pieces: list[Piece] = []
        while not run.ended:
            await changed.wait()
            changed.clear()
            fresh = run.take()
            pieces += fresh
            heard(fresh)
        assert run.error is None, run.error
        return pieces


@asynccontextmanager
async def pools(
    cache: Path,
    *,
    prefill: bool,
    transport: str = "auto",
    budget: int = 512,
    blocks: int = 1024,
    dtype: str = "float32",
    decodes: int = 1,
    model: Path | None = None,
    security: SecurityConfig = SecurityConfig(),
    exact: bool = False,
    transfer: TransferConfig = TransferConfig(max_moves=32),
) -> AsyncIterator[Pools]:
    """Runs while the context is open; at its end no request may be known anywhere.

    `model` is that of the instances, the embedded one if it is None.
    """
    config = Config(
        model=ModelConfig(path=None if model is None else str(model), dtype=dtype),  # type: ignore[arg-type]
        security=security,
        engine=EngineConfig(token_budget=budget, exact=exact),
        transfer=transfer.model_copy(update={"transport": transport}),
        control=ControlConfig(token=TOKEN),
        cache={"directory": str(cache)},  # type: ignore[arg-type]
    )
    streams, starts = TokenStreams(), StartCalls()
    server = rpc.server(TOKEN)
    control_pb2_grpc.add_HomeServicer_to_server(HomeService(streams, starts=starts), server)
    home = rpc.listen(server, "127.0.0.1", 0, setting="none", tls=cluster_tls(security.cluster_tls))
    await server.start()
    first = PooledInstance(config, "prefill-0", "prefill", blocks, starts) if prefill else None
    both = Pools(
        [PooledInstance(config, f"decode-{number}", "decode", blocks, starts) for number in range(decodes)],
        first,
    )
    for one in both.instances:
        await one.instance.open()
    both.driver = RequestDriver(
        home, streams, both, both.named, Patience(place_timeout=5.0, recovery_timeout=5.0)
    )
    try:
        yield both
        assert not both.driver.runs
    finally:
        await both.driver.close()
        for one in both.instances:
            await one.instance.close()
        await server.stop(0)
