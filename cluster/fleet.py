"""How the controller reaches instances on Ray: starts workers, and finds those of an earlier controller."""

from __future__ import annotations

import asyncio
import math

import ray

from cluster.config import Config
from cluster.cores import on_one_node
from cluster.instance_handle import InstanceHandle, existing, spawn
from cluster.worker import Instance, Worker


def assemble(config: Config, name: str, role: str, threads: int) -> Instance:
    """Imported in the instance's process only: torch takes two seconds and 200 MB that others can spare."""
    from cluster import instance

    return instance.assemble(config, name, role, threads)


class RayFleet:
    """Instances as detached named actors of the Ray cluster that this process is in."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._json = config.model_dump_json()

    def spawn(self, name: str, role: str, generation: int, memo: bytes, instances: int) -> InstanceHandle:
        """Start a worker; `instances` is how many there will be in all. Raises TandemError."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        roles = [self._resources(each, instances) for each in ("prefill", "decode")]
        return spawn(
            Worker,
            name,
            *(assemble, self._json, name, role, memo, generation, on_one_node(instances, nodes, roles)),
            resources=self._resources(role, instances),
            timeout=self._config.control.call_timeout,
        )

    async def existing(self) -> list[InstanceHandle]:
        """Those that an earlier controller left."""
        names = await asyncio.to_thread(existing)
        return [InstanceHandle(name, timeout=self._config.control.call_timeout) for name in names]

    def renewed(self, config: Config) -> RayFleet:
        """The same Ray cluster, with other settings for the instances to come."""
        return RayFleet(config)

    def _resources(self, role: str, instances: int) -> dict[str, float]:
        """What the config says; GPUs, where there are any, are shared out among all instances."""
        pools = self._config.pools
        wanted = dict((pools.prefill if role == "prefill" else pools.decode).resources)
        gpus = ray.cluster_resources().get("GPU", 0.0)
        if gpus and self._config.engine.device != "cpu" and "GPU" not in wanted:
            wanted["GPU"] = 1.0 if gpus >= instances else 1.0 / math.ceil(instances / gpus)
        return wanted
