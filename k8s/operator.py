"""The operator: keeps Pools and the controller's pools in step, level-triggered.

    hold the Lease ─▶ list Pools ─▶ reconcile each ─▶ watch until something changes, or for a while ─┐
          ▲──────────────────────────────────────────────────────────────────────────────────────────┘

Every round starts from what is there now, so a lost event, a conflict or a restart costs a round and no
more. A Pool that is deleted gives its pool back to the config: its bounds, and who sizes it, are again what
the RayService's settings say. Its size stays, and no instance ends for it.
"""

from __future__ import annotations

import logging
import platform
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from cluster import control_pb2 as pb
from cluster.control_client import ControlClient
from cluster.tls import Tls
from engine.errors import Conflict, NotFound, RefusedError, TandemError, Unreachable
from k8s import paths
from k8s.bounds import Carrier, set_bounds
from k8s.budget import Budgets
from k8s.deleted import Scaling, configured, give_back
from k8s.events import PoolEvents, time_stamp
from k8s.kube_api import KubeApi, connect
from k8s.lease import Lease
from k8s.objects.names import ALIVE, CLUSTER_LABEL, GROUP_LABEL
from k8s.pool_rules import (
    Agreed,
    Bounds,
    Mirror,
    Wish,
    automatic,
    decide,
    is_refused,
    settled,
    size,
    status_of,
    takes_bounds,
)
from k8s.yaml_text import Object

logger = logging.getLogger("tandem.operator")

ROUND = 5
"""Seconds between two looks at the controller, whose changes no watch of Kubernetes tells of."""


class Control(Scaling, Protocol):
    """What the operator asks of the controller: see cluster/control_client.py."""

    def status(self) -> pb.ClusterStatus: ...

    def explain(self, subject: str) -> list[pb.Explanation]: ...


class Reconciler:
    """Acts on Pools of one namespace that belong to one RayService or RayCluster."""

    def __init__(
        self,
        api: KubeApi,
        control: Control,
        namespace: str,
        cluster: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._control = control
        self._namespace = namespace
        self._cluster = cluster
        self._events = PoolEvents(api, namespace)
        self._budgets = Budgets(api, namespace, clock)
        self._carrier = Carrier(api, namespace, clock)
        self._held: dict[str, Object] = {}

    def round(self) -> str:
        """Bring every Pool in step; gives the resourceVersion to watch from. Raises Unreachable."""
        found = self._api.get(paths.pools(self._namespace))
        ours = [each for each in found["items"] if each["spec"]["clusterRef"]["name"] == self._cluster]
        held = {each["spec"]["role"]: each["spec"]["clusterRef"] for each in ours}
        for role in self._held.keys() - held.keys():
            if self._guarded(role, partial(self._let_go, role, self._held[role])):
                del self._held[role]
        self._held |= held
        for pool in ours:
            self._guarded(pool["metadata"]["name"], partial(self.reconcile, pool))
        for reference in [*held.values()][:1]:
            self._guarded(self._cluster, partial(self._carrier.carry, reference, held))
        return str(found["metadata"]["resourceVersion"])

    def changed(self, version: str, seconds: int = ROUND) -> bool:
        """Wait until a Pool changes, or for some seconds; whether one did."""
        return any(True for _ in self._api.watch(paths.pools(self._namespace), version, seconds))

    def forget(self) -> None:
        """Another one works: it sees which Pools are deleted, and this one knows nothing of them later."""
        self._held.clear()

    def _guarded(self, name: str, act: Callable[[], None]) -> bool:
        """One Pool that cannot be handled keeps no other from it; False if it is to be tried again."""
        try:
            act()
        except (Conflict, NotFound) as error:
            logger.info("%s changed while it was handled, and is read again: %s", name, error)
            return False
        except Unreachable:
            raise
        except TandemError as error:
            logger.warning("%s: %s", name, error)
        return True

    def reconcile(self, pool: Object) -> None:
        """Raises Conflict when somebody else wrote in between, and Unreachable."""
        found = self._pool(pool["spec"]["role"])
        pool = self._take_bounds(pool, found)
        spec, status = pool["spec"], pool.get("status", {})
        decision, refused = decide(spec, status, found), ""
        granted = isinstance(decision, Wish) and not decision.refused
        if not granted and Bounds.wanted(spec) != Bounds.present(found):
            refused = self._ask(pool, None)
            found = self._pool(spec["role"])
            decision = decide(spec, status, found)
        agreed: Agreed | None = settled(spec, status, decision, found)
        if isinstance(decision, Mirror):
            self._mirror(pool, decision)
        elif isinstance(decision, Wish):
            refused = decision.refused or self._grant(pool, decision)
            agreed = Agreed.last(spec, status) if refused else agreed
            found = self._pool(spec["role"])
        bounds = Bounds.present(found)
        live = set_bounds(
            self._api, self._namespace, spec["clusterRef"], spec["role"], bounds.least, bounds.most
        )
        self._report(pool, found, live, agreed, refused)
        self._budgets.keep(spec["clusterRef"]["name"], spec["role"], bounds.least)

    def _let_go(self, role: str, reference: Object) -> None:
        """A pool whose Pool is deleted goes back to what the config says, and no instance ends."""
        config = configured(self._api, self._namespace, reference, role)
        if config is None:
            return
        give_back(self._control, self._pool(role), config)
        logger.info("%s: its Pool is deleted: its bounds, and who sizes it, are the config's again", role)
        least, most = config.min_replicas, config.max_replicas
        set_bounds(self._api, self._namespace, reference, role, least, most)
        self._budgets.keep(reference["name"], role, least)

    def _pool(self, role: str) -> pb.Pool:
        for pool in self._control.status().pools:
            if pool.name == role:
                return pool
        raise Unreachable(f"the controller has no pool {role} yet")

    def _grant(self, pool: Object, wish: Wish) -> str:
        """Have the controller do it; gives the reason if it refuses."""
        name = pool["metadata"]["name"]
        if wish.takes_over:
            # First, so that a round that ends here is resumed by the next one.
            change = {"op": "add", "path": "/spec/autoscale", "value": False}
            self._write(paths.pool(self._namespace, name), pool["metadata"]["resourceVersion"], [change])
            self._events.add(
                pool, "Normal", "AutoscalingOff", f"{wish.replicas} replicas were asked for by hand"
            )
        return self._ask(pool, wish)

    def _ask(self, pool: Object, wish: Wish | None) -> str:
        """Have the controller take the Pool's bounds, and a wish with them; gives why it refuses."""
        bounds = Bounds.wanted(pool["spec"])
        replicas, turned_on = (None, False) if wish is None else (wish.replicas, wish.replicas is None)
        try:
            reply = self._control.scale(
                pool["spec"]["role"], replicas, least=bounds.least, most=bounds.most, automatic=turned_on
            )
        except RefusedError as error:
            return error.message
        if wish is None:
            self._events.add(pool, "Normal", "Bounded", f"from {bounds.least} to {bounds.most} instances")
        elif turned_on:
            self._events.add(pool, "Normal", "AutoscalingOn", "the Pool says so")
        elif reply.target != reply.previous:
            self._events.add(
                pool, "Normal", "Scaled", f"from {reply.previous} to {reply.target}, as the Pool says"
            )
        elif reply.autoscale_ended and not wish.takes_over:
            self._events.add(
                pool, "Normal", "AutoscalingOff", f"the Pool says so; it stays at {reply.target}"
            )
        return ""

    def _take_bounds(self, pool: Object, found: pb.Pool) -> Object:
        """Bounds that only the controller has changed, `tandem scale --min --max`, become the Pool's."""
        if not takes_bounds(pool["spec"], pool.get("status", {}), found):
            return pool
        present = Bounds.present(found)
        changes = [
            {"op": "add", "path": "/spec/minReplicas", "value": present.least},
            {"op": "add", "path": "/spec/maxReplicas", "value": max(1, present.most)},
        ]
        path = paths.pool(self._namespace, pool["metadata"]["name"])
        written = self._write(path, pool["metadata"]["resourceVersion"], changes)
        self._events.add(
            pool,
            "Normal",
            "Bounded",
            f"from {present.least} to {present.most} instances, as the controller was told",
        )
        return written

    def _mirror(self, pool: Object, mirror: Mirror) -> None:
        """In one write: half of it would be taken for somebody's wish."""
        spec, path = pool["spec"], paths.pool(self._namespace, pool["metadata"]["name"])
        version = pool["metadata"]["resourceVersion"]
        sized = {"op": "add", "path": "/spec/replicas", "value": mirror.replicas}
        if mirror.automatic == automatic(spec):
            self._write(f"{path}/scale", version, [sized])
        else:
            switched = {"op": "add", "path": "/spec/autoscale", "value": mirror.automatic}
            self._write(path, version, [sized, switched])
            reason = "AutoscalingOn" if mirror.automatic else "AutoscalingOff"
            self._events.add(pool, "Normal", reason, "as the controller has it")
        if size(spec) != mirror.replicas and Agreed.last(spec, pool.get("status", {})) is not None:
            resized = f"from {size(spec)} to {mirror.replicas}, {self._why(spec['role'])}"
            self._events.add(pool, "Normal", "Scaled", resized)

    def _why(self, role: str) -> str:
        """The controller's reason for the last change of a pool's size."""
        try:
            told = [each.reason for each in self._control.explain(role) if each.kind == "resize"]
        except TandemError:
            told = []
        return told[-1] if told else "as the controller has it"

    def _write(self, path: str, version: str, changes: list[Object]) -> Object:
        return self._api.patch(
            path, [{"op": "test", "path": "/metadata/resourceVersion", "value": version}, *changes]
        )

    def _report(self, pool: Object, found: pb.Pool, live: str, agreed: Agreed | None, refused: str) -> None:
        if refused and not is_refused(pool):
            self._events.add(pool, "Warning", "Refused", refused)
        owner = f"ray.io/cluster={live}" if live else f"{CLUSTER_LABEL}={self._cluster}"
        selector = f"{GROUP_LABEL}={pool['spec']['role']},{owner}"
        status = status_of(pool, found, selector=selector, agreed=agreed, refused=refused, now=time_stamp())
        if status != pool.get("status"):
            path = paths.pool(self._namespace, pool["metadata"]["name"])
            kept = self._api.merge(f"{path}/status", {"status": status})["status"]
            if status.keys() - kept.keys():
                logger.warning("the kind Pool is of an older tandem: apply k8s/crds, or bounds are not kept")


def run(
    namespace: str,
    cluster: str,
    address: str,
    token: str | None,
    *,
    tls: Tls | None = None,
    once: bool = False,
) -> None:
    """Work until the process ends; `once` ends after a round. Raises SetupError, and with `once` all else."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    api = connect()
    with ControlClient(address, token, tls=tls) as control:
        reconciler = Reconciler(api, control, namespace, cluster)
        if once:
            reconciler.round()
            return
        # A pod's name, which tells it from its like.
        lease = Lease(api, namespace, f"{cluster}-operator", platform.node(), time.monotonic)
        follow(reconciler, lease.hold, threading.Event(), alive=Path(ALIVE))


def follow(
    reconciler: Reconciler,
    hold: Callable[[], bool],
    stop: threading.Event,
    *,
    seconds: int = ROUND,
    alive: Path | None = None,
) -> None:
    """Rounds until `stop` is set. Whatever fails is tried again after a pause.

    The file `alive` is touched in each round, also in one that waits or fails.
    """
    while not stop.is_set():
        try:
            if alive is not None:
                alive.touch()
            if not hold():
                reconciler.forget()
                stop.wait(seconds)
                continue
            reconciler.changed(reconciler.round(), seconds)
        except TandemError as error:
            logger.warning("%s; trying again", error.message)
            stop.wait(seconds)
