"""A gateway replica: the body of a Ray Serve deployment that also listens itself, on a port of its own.

Serve's proxy and the own port serve the same application. A token through the own port is spared the
proxy's 0.5 to 1.6 ms.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import time
import uuid
from typing import Any

from fastapi import FastAPI
from ray.serve.handle import DeploymentHandle

from cluster import control_pb2 as pb
from cluster import control_pb2_grpc, rpc
from cluster.access import Access
from cluster.cluster_facts import ClusterFacts
from cluster.config import Config
from cluster.gateway_api import build_api
from cluster.gateway_service import GatewayService
from cluster.genai_metrics import measuring
from cluster.http_frame import BehindServe
from cluster.http_guard import Bounds
from cluster.http_listener import Listener
from cluster.installation import installed_version
from cluster.instance_handle import address_of
from cluster.metrics import Metrics
from cluster.move_notes import MoveNotes
from cluster.openai_answers import ModelCard
from cluster.policies import patience
from cluster.ray_metrics import PERIOD, RayMetrics
from cluster.request_driver import RequestDriver
from cluster.rpc import reachable
from cluster.scheduler_client import SchedulerClient
from cluster.standby import Place
from cluster.start_calls import LinkedInstance, StartCalls
from cluster.timelines import Timelines
from cluster.tls import cluster_tls, http_tls
from cluster.token_stream import HomeService
from cluster.token_streams import TokenStreams
from cluster.tracing import exporting
from engine.errors import SetupError
from model.assets import load_assets
from model.tokenizer import Detokenizer, Tokenizer

logger = logging.getLogger("tandem.gateway")

BEAT = 1.0
"""Seconds between two calls to the controller that keep this gateway on its list."""


class Gateway:
    """One replica: tokenizer, home of its requests, routes. It composes; each part has a file of its own.

    `config_json` is a Config; `controller` the Serve handle of the controller's deployment.
    """

    serving = False

    # Serve awaits it.
    async def __init__(self, config_json: str, controller: DeploymentHandle[Any]) -> None:  # type: ignore[misc]
        """Raises SetupError if the port is taken, ModelFileError if there is no such model."""
        self._config = Config.model_validate_json(config_json)
        settings, token = self._config.gateway, self._config.control.token or ""
        security = self._config.security
        tls, inside = (
            http_tls(security.gateway_tls, "security.gateway_tls"),
            cluster_tls(security.cluster_tls),
        )
        bounds = Bounds(int(settings.header_limit), settings.arrival_timeout, settings.connections)
        place = Place(f"{token} {settings.host}:{settings.port}")
        self._http = Listener(settings.host, settings.port, place=place, tls=tls, bounds=bounds)
        tokenizer, model = await asyncio.to_thread(_load, self._config)
        streams = TokenStreams()
        self._grpc = rpc.server(token)
        timelines = Timelines(self._config.observe.finished)
        starts = StartCalls()
        service = HomeService(streams, timelines, self.leave, starts)
        control_pb2_grpc.add_HomeServicer_to_server(service, self._grpc)
        home = rpc.listen(self._grpc, self._config.control.host, 0, setting="control.host", tls=inside)
        await self._grpc.start()
        self._itself = pb.Gateway(
            name=f"gateway-{uuid.uuid4().hex[:8]}",
            url=reachable(self._http.url),
            home=reachable(home),
            pid=os.getpid(),
            node=platform.node(),
        )
        timelines.gateway = self._itself.name
        timeout = self._config.control.call_timeout
        self._scheduler = SchedulerClient(lambda: address_of(controller), token, timeout=timeout, tls=inside)
        self._driver = RequestDriver(
            self._itself.home,
            streams,
            self._scheduler,
            lambda name: LinkedInstance(name, starts, timeout=timeout),
            patience(self._config),
            timelines,
        )
        facts = ClusterFacts(lambda: self._scheduler.join(self._present()))
        self._service = GatewayService(
            model=model,
            tokenizer=tokenizer,
            detokenizer=lambda _: Detokenizer(tokenizer),
            driver=self._driver,
            facts=facts,
            metrics=Metrics(model.name, lambda: facts.status, self._config.observe),
            config=settings,
            version=installed_version(),
            access=Access(settings, security.tenants),
        )
        observe = self._config.observe
        self._traces = exporting(model.name, observe.traces, observe.sampling)
        self._measures = measuring(model.name, observe.metrics)
        self._moves = MoveNotes(
            self._scheduler.migrations, lambda: sum(one.count for one in facts.status.migrations.counts)
        )
        self._http.serve(build_api(self._service, self._traces, self._measures, self._moves))
        self._beating = asyncio.create_task(self._beat(facts), name="beat")
        self.serving = True

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What Serve's proxy serves."""
        app = build_api(self._service, self._traces, self._measures, self._moves)
        app.add_middleware(BehindServe)
        return app

    async def check_health(self) -> None:
        """Serve asks; raises if this replica should be replaced."""
        if self._beating.done():
            raise SetupError(f"the gateway's beat ended: {self._beating.exception()}")
        self._http.check()

    @property
    def requests(self) -> int:
        """How many are under way."""
        return len(self._driver.runs)

    async def drain(self, within: float) -> None:
        """Accept nothing more, so that another gateway of this machine takes the port over, and wait for what
        runs, at most `within` seconds.
        """
        await self._http.close(within)

    async def leave(self, within: float) -> int:
        """Take no new request and drain: the machine is about to end. How many are still under way then."""
        self._service.draining = True
        await self.drain(within)
        return self.requests

    async def close(self) -> None:
        """Stop listening, drop what runs, leave the cluster."""
        self._service.draining = True
        self._beating.cancel()
        await self._http.close()
        await self._driver.close()
        await self._moves.close()
        await self._grpc.stop(1.0)
        await self._scheduler.close()
        sent = [one.close for one in (self._traces, self._measures) if one is not None]
        await asyncio.gather(*map(asyncio.to_thread, sent))

    def _present(self) -> pb.Gateway:
        """This gateway as it is now, for the controller."""
        self._itself.requests = len(self._driver.runs)
        self._itself.lately.CopyFrom(self._service.metrics.objectives.lately())
        self._itself.draining = self._service.leaving
        self._itself.standby = self._http.standby
        del self._itself.tenants[:]
        self._itself.tenants.extend(self._service.access.limits.report())
        return self._itself

    async def _beat(self, facts: ClusterFacts) -> None:
        mirror, copied = RayMetrics(self._service.metrics.registry), 0.0
        while True:
            if time.monotonic() - copied > PERIOD:
                try:
                    mirror.copy()
                except Exception:  # /metrics has them all the same, and requests need the beat
                    logger.exception("the metrics could not be copied to Ray's")
                copied = time.monotonic()
            status = await facts.refresh()
            if facts.fresh:
                others = [one for one in status.gateways if one.name != self._itself.name]
                self._service.access.limits.hear(others)
                self._driver.instances.greet(one.name for one in status.instances if one.state == "ready")
            await asyncio.sleep(BEAT)


def _load(config: Config) -> tuple[Tokenizer, ModelCard]:
    assets = load_assets(config.model.path, config.cache_directory)
    longest = assets.config.context_length
    card = ModelCard(
        name=config.model.name or assets.name,
        max_length=min(config.model.max_length or longest, longest),
        created=int(time.time()),
        digest=assets.digest,
    )
    return Tokenizer(assets), card
