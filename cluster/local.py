"""Starts a whole cluster on this machine and ends it again, with nothing left behind."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from cluster import control_pb2 as pb
from cluster import embedded, exposure, preflight
from cluster.config import Config
from cluster.config_yaml import Path as Key
from cluster.control_client import ControlClient
from cluster.events import NEXT_TRY
from cluster.local_ray import (
    Scratch,
    end_processes,
    prepare_process,
    processes,
    start_ray,
    stop_ray,
    wait_until,
)
from cluster.local_state import LocalState, read_state, remove_state, write_state
from cluster.ports import free_port
from cluster.prepare import Advance, Packing, Step, is_packed, weight_bytes
from cluster.tls import cluster_tls
from engine.errors import DeadlineExceeded, SetupError, TandemError, Unreachable
from model.assets import load_assets

if TYPE_CHECKING:  # it imports Ray
    from cluster.early_instances import EarlyInstances

APPLICATION = "tandem"
POLL = 0.1
HOPELESS = 3
"""Instances that failed to start, one after the other, until a start is given up."""


def settle(config: Config, step: Step) -> Config:
    """What is to be run: the model found or fetched, paths made absolute, the control port and token drawn.

    Checks all that can be checked before anything is started. Raises SetupError.
    """
    exposure.check(config)
    config = exposure.with_whole_paths(config)
    preflight.check_ports(config)
    cache = config.cache_directory.absolute()
    preflight.check_disk(cache, 0)
    if config.model.path is None and embedded.find(cache) is None:
        with step("fetching the embedded model (93 MB, once)") as advance:
            embedded.fetch(cache, advance)
    model = embedded.settled(config.model, cache, lambda done, of: None)
    settled = config.model_copy(
        update={
            "model": model,
            "cache": config.cache.model_copy(update={"directory": str(cache)}),
            "control": config.control.model_copy(
                update={
                    "port": config.control.port or free_port(config.control.host),
                    "token": config.control.token or secrets.token_urlsafe(24),
                }
            ),
            "admin": config.admin.model_copy(
                update={
                    "port": config.admin.port or free_port(config.admin.host),
                    "token": config.admin.token or secrets.token_urlsafe(24),
                }
            ),
            "gateway": config.gateway.model_copy(
                update={"port": config.gateway.port or free_port(config.gateway.host)}
            ),
        }
    )
    with step(f"reading the model {model.name}"):
        assets = load_assets(model.path, cache)
    weights = weight_bytes(assets, settled)
    preflight.check_memory(settled, weights)
    if not is_packed(assets, cache):
        preflight.check_disk(cache, weights)
    return settled


def sweep(state: LocalState) -> None:
    """End what a start left that was killed; nothing after one that ended by itself."""
    end_processes(processes(state.cluster), grace=1.0)
    Scratch(state.cluster, Path(state.scratch)).remove()
    remove_state()


def complaints() -> str:
    """What Serve says of the deployments that did not start, a line each; "" where it cannot be asked."""
    from ray import serve

    found: dict[str, str] = {}
    with suppress(Exception):
        deployments = serve.status().applications[APPLICATION].deployments
        found = {name: one.message.strip() for name, one in deployments.items() if one.message.strip()}
    return "\n".join(f"{name}: {message}" for name, message in found.items())


class LocalCluster:
    """One use: `start`, perhaps `watch`, and in any case `stop`, which also ends a start that failed."""

    def __init__(
        self,
        config: Config,
        *,
        address: str | None = None,
        log: str | None = None,
        origins: Mapping[Key, str] | None = None,
    ) -> None:
        """`config` is settled; `address` names a Ray cluster to join instead of starting one; `origins` says
        where each value was set, for operators who ask the controller."""
        self.config = config
        self._origins = origins
        self._address = address
        self._scratch = Scratch.create()
        self._state = LocalState(
            pid=psutil.Process().pid,
            cluster=self._scratch.cluster,
            scratch=str(self._scratch.folder),
            log=log,
            token=config.control.token,
            tls=config.security.cluster_tls.model_dump() if config.security.cluster_tls.key else None,
            certificate=config.security.gateway_tls.certificate,
        )
        self._control = f"{config.control.host}:{config.control.port}"
        self._packing = Packing(config)
        self._early: EarlyInstances | None = None
        self._ray = False
        self._served = False

    def start(self, step: Step, timeout: float) -> LocalState:
        """Start Ray, the Serve application and the instances, and wait until they are ready.

        Weights are packed, which takes one core, while Ray starts, which mostly waits; what they take
        longer, as long as the model is large, does not count.

        Raises SetupError, and DeadlineExceeded after `timeout` seconds.
        """
        end = time.monotonic() + timeout
        write_state(self._state)
        self._packing.begin()
        prepare_process(self._scratch, self.config.engine.threads, secure=self._address is None)
        with step("joining Ray" if self._address else "starting Ray"):
            self._ray = True
            start_ray(self._scratch, self._address)
        begun = time.monotonic()
        self._packing.wait(step)
        end += time.monotonic() - begun
        if self._address is None:
            self._early = self._early_instances()
        count = self.config.gateway.replicas
        with step(f"starting the controller and {'the gateway' if count == 1 else f'{count} gateways'}"):
            self._served = True
            self._serve()
        with step("starting the instances") as advance:
            status = self._ready(end, advance)
        self._state = replace(
            self._state,
            control=self._control,
            gateways=list(dict.fromkeys(gateway.url for gateway in status.gateways)),
            model=status.model.name,
            admin=status.admin,
            admin_token=self.config.admin.token,
            ready=True,
        )
        write_state(self._state)
        return self._state

    def client(self) -> ControlClient:
        control = self.config.control
        tls = cluster_tls(self.config.security.cluster_tls)
        return ControlClient(self._control, control.token, timeout=control.call_timeout, tls=tls)

    def alive(self) -> bool:
        """Whether Ray's own processes are still there."""
        if self._address is not None:
            return True
        names = {"gcs_server", "raylet"}
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if child.status() != psutil.STATUS_ZOMBIE:
                    names.discard(child.name())
        return not names

    def stop(self, *, drain: bool, hurry: Callable[[], bool] = lambda: False) -> None:
        """End everything: requests, if they may finish, the application, Ray, and what is left.

        `hurry` tells that nobody wants to wait for requests any more.
        """
        found = processes(self._scratch.cluster)
        self._packing.end()
        if self._early is not None:
            self._early.end()
        with suppress(Exception):
            if self._served and drain:
                self._drain(hurry)
        with suppress(Exception):
            if self._served:
                self._unserve()
        if self._ray:
            with suppress(Exception):
                stop_ray()
        if self._address is None:
            known = {process.pid for process in found}
            found += [one for one in processes(self._scratch.cluster) if one.pid not in known]
            end_processes(found)
            # What Ray's daemon started while it was ended.
            end_processes(processes(self._scratch.cluster))
        self._scratch.remove()
        state = read_state()
        if state is not None and state.cluster == self._scratch.cluster:
            remove_state()

    def _early_instances(self) -> EarlyInstances:
        from cluster.early_instances import EarlyInstances

        return EarlyInstances(exposure.with_hashed_keys(self.config))

    def _serve(self) -> None:
        from ray import serve

        from cluster.app import application
        from cluster.instance_handle import address_of

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(proxy_location="Disabled")
        if self._early is not None:
            self._early.wait()
        try:
            serve.run(application(self.config, self._origins), name=APPLICATION, route_prefix="/")
        except RuntimeError as error:
            raise SetupError(f"the application did not start: {error} {complaints()}".rstrip()) from error
        if self._address is not None:
            # Serve may have put the controller on another node.
            handle = serve.get_deployment_handle("Controller", APPLICATION)
            self._control = asyncio.run(address_of(handle))

    def _unserve(self) -> None:
        """Delete the application and its instances, and a Serve that has nothing else to do."""
        from ray import serve

        from cluster.instance_handle import end_all

        serve.delete(APPLICATION)
        asyncio.run(end_all(self.config.control.call_timeout))
        # A Ray of ours takes its Serve with it.
        if self._address is not None and not serve.status().applications:
            serve.shutdown()

    def _drain(self, hurry: Callable[[], bool]) -> None:
        """Take no new requests, and wait for those that run, within control.drain_timeout."""

        def idle() -> bool:
            status = client.status()
            busy = any(one.status.running or one.status.waiting for one in status.instances)
            closed = all(one.draining and not one.requests for one in status.gateways)
            return hurry() or (closed and not busy)

        with self.client() as client:
            client.end()
            wait_until(idle, self.config.control.drain_timeout)

    def _ready(self, end: float, advance: Advance) -> pb.ClusterStatus:
        pools = self.config.pools
        wanted = pools.prefill.replicas + pools.decode.replicas
        with self.client() as client:
            while True:
                with suppress(Unreachable, DeadlineExceeded):
                    status = client.status()
                    advance(sum(pool.ready for pool in status.pools), wanted)
                    if status.ready and any(not one.standby for one in status.gateways):
                        return status
                failures = _failures(client)
                if len(failures) >= HOPELESS:
                    raise SetupError(f"the instances do not start: {failures[-1]}")
                if not self.alive():
                    raise SetupError("Ray ended while it was starting")
                if time.monotonic() > end:
                    raise DeadlineExceeded(" ".join(["not ready in time", *failures[-1:]]))
                time.sleep(POLL)


def _failures(client: ControlClient) -> list[str]:
    """What the controller says about instances that did not start, without a next try: none will be made."""
    with suppress(TandemError):
        found = [event.reason for event in client.events() if event.kind == "start_failed"]
        return [reason.partition(NEXT_TRY)[0] for reason in found]
    return []
