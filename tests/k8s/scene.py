"""A namespace with a Pool, an operator for it, and a controller that is a double."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from cluster import control_pb2 as pb
from cluster.config import Config, load
from cluster.scaling import Scaling
from engine.errors import RefusedError
from k8s import paths
from k8s.bounds import SETTLED
from k8s.kube_api import KubeApi
from k8s.objects.access import disruption_budgets
from k8s.objects.names import POOLS
from k8s.objects.rayservice import ray_service
from k8s.operator import Reconciler
from k8s.serve_settings import in_cluster
from tests.k8s.servers import Server

CLUSTER = "tandem"
LIVE = "tandem-raycluster-abcde"
WAIT = 20.0
"""Seconds that something in another process or thread may take."""


@dataclass
class FakeControl:
    """A controller whose instances are ready at once, unless told otherwise."""

    targets: dict[str, int] = field(default_factory=lambda: {"prefill": 1, "decode": 2})
    bounds: dict[str, tuple[int, int]] = field(default_factory=lambda: dict.fromkeys(POOLS, (1, 64)))
    bounded: set[str] = field(default_factory=set)
    automatic: set[str] = field(default_factory=lambda: set(POOLS))
    sized: set[str] = field(default_factory=set)
    starting: int = 0
    draining: int = 0
    refusal: str = ""
    reasons: dict[str, str] = field(default_factory=dict)
    calls: list[tuple[str, int]] = field(default_factory=list)
    scaled: threading.Event = field(default_factory=threading.Event)

    def status(self) -> pb.ClusterStatus:
        pools = [
            pb.Pool(
                name=name,
                target=target,
                ready=target - self.starting,
                starting=self.starting,
                draining=self.draining,
                least=self.bounds[name][0],
                most=self.bounds[name][1],
                bounded=name in self.bounded,
                autoscale=name in self.automatic,
                sized=name in self.sized,
            )
            for name, target in self.targets.items()
        ]
        return pb.ClusterStatus(pools=pools)

    def scale(
        self,
        pool: str,
        replicas: int | None = None,
        *,
        least: int | None = None,
        most: int | None = None,
        automatic: bool = False,
    ) -> pb.ScaleReply:
        """As the real one: a size must be within the bounds that come with it."""
        if replicas is not None:
            self.calls.append((pool, replicas))
        if self.refusal:
            raise RefusedError(self.refusal)
        previous = self.targets[pool]
        target = previous if replicas is None else replicas
        before = self.bounds[pool]
        bounds = before[0] if least is None else least, before[1] if most is None else most
        explicit = replicas is not None
        before_automatic = pool in self.automatic
        after = (before_automatic or automatic) and not explicit
        Scaling(after, *bounds).check(pool, target, explicit=explicit)
        self.automatic = self.automatic | {pool} if after else self.automatic - {pool}
        if explicit or automatic:
            self.sized.add(pool)
        if bounds != before:
            self.bounded.add(pool)
        self.bounds[pool], self.targets[pool] = bounds, target
        self.scaled.set()
        ended = before_automatic and not after
        return pb.ScaleReply(previous=previous, target=target, autoscale=after, autoscale_ended=ended)

    def explain(self, subject: str) -> list[pb.Explanation]:
        """As the real one: oldest first, and what is thought at the moment last."""
        told = [pb.Explanation(kind="resize", reason=f"earlier than {self.reasons.get(subject, '')}")]
        if subject in self.reasons:
            told.append(pb.Explanation(kind="resize", reason=self.reasons[subject]))
        return [*told, pb.Explanation(kind="opinion", reason="enough, and not too many")]

    def begin_anew(self, target: int, *, automatic: bool) -> None:
        """Another controller, which has no more than its settings: that of an upgrade, or of a new head."""
        self.targets["decode"] = target
        self.bounds["decode"] = (1, 64)
        self.automatic = self.automatic | {"decode"} if automatic else self.automatic - {"decode"}
        self.sized.clear()
        self.bounded.clear()


class Scene:
    """One namespace with a Pool `decode`, and an operator for it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.api: KubeApi = server.api
        self.namespace = server.namespace()
        self.control = FakeControl()
        self.now = 0.0
        self.reconciler = Reconciler(self.api, self.control, self.namespace, CLUSTER, lambda: self.now)

    def pool(self, **spec: object) -> dict[str, Any]:
        body = {
            "apiVersion": "tandem.dev/v1alpha1",
            "kind": "Pool",
            "metadata": {"name": "decode", "namespace": self.namespace},
            "spec": {"role": "decode", "clusterRef": {"name": CLUSTER}, **spec},
        }
        return self.api.create(paths.pools(self.namespace), body)

    def read(self) -> dict[str, Any]:
        return self.api.get(self.path)

    def sizes(self) -> tuple[int, bool]:
        """What the Pool says: how many instances, and whether the controller sets that."""
        spec = self.read()["spec"]
        return spec["replicas"], spec["autoscale"]

    @property
    def path(self) -> str:
        return paths.pool(self.namespace, "decode")

    def scale(self, replicas: int) -> None:
        """As `kubectl scale` and an autoscaler do."""
        self.api.merge(f"{self.path}/scale", {"spec": {"replicas": replicas}})

    def rounds(self, count: int = 1) -> None:
        for _ in range(count):
            self.reconciler.round()

    def condition(self, kind: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = self.read()["status"]["conditions"]
        return next(each for each in found if each["type"] == kind)

    def events(self) -> list[str]:
        return [each["reason"] for each in self._events()]

    def told(self, reason: str) -> list[str]:
        """What Events of a reason say."""
        return [each["message"] for each in self._events() if each["reason"] == reason]

    def _events(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.api.get(paths.events(self.namespace))["items"]
        return found

    def ray(self, **settings: object) -> None:
        """A RayService of these settings with a live RayCluster, as KubeRay leaves them."""
        if not self.server.ray:
            pytest.skip("the real server has KubeRay's kinds only with TANDEM_KUBERAY_SCHEMAS")
        service = ray_service(in_cluster(load(None, settings)))
        service["metadata"]["namespace"] = self.namespace
        cluster = {
            "apiVersion": "ray.io/v1",
            "kind": "RayCluster",
            "metadata": {"name": LIVE, "namespace": self.namespace},
            "spec": service["spec"]["rayClusterConfig"],
        }
        root = f"/apis/ray.io/v1/namespaces/{self.namespace}"
        self.api.create(f"{root}/rayservices", service)
        self.api.create(f"{root}/rayclusters", cluster)
        live = {"status": {"activeServiceStatus": {"rayClusterName": LIVE}}}
        self.api.merge(f"{paths.ray(self.namespace, 'RayService', CLUSTER)}/status", live)

    def gateways(self, count: int) -> None:
        """As the RayService has it that is rendered with so many."""
        at = "/spec/rayClusterConfig/workerGroupSpecs/0"
        keys = ("replicas", "minReplicas", "maxReplicas")
        changes = [{"op": "add", "path": f"{at}/{key}", "value": count} for key in keys]
        self.api.patch(paths.ray(self.namespace, "RayService", CLUSTER), changes)

    def upgrade(self, cluster: str) -> None:
        """KubeRay starts this RayCluster beside the live one; "" for none any more."""
        pending = {"status": {"pendingServiceStatus": {"rayClusterName": cluster} if cluster else None}}
        self.api.merge(f"{paths.ray(self.namespace, 'RayService', CLUSTER)}/status", pending)

    def settle(self) -> None:
        """A round sees the change, and one comes so much later that KubeRay has begun what follows."""
        self.rounds()
        self.now += SETTLED
        self.rounds()

    def budget(self) -> None:
        """That of the group decode, as it is rendered."""
        budget = next(
            each for each in disruption_budgets(Config()) if each["metadata"]["name"] == f"{CLUSTER}-decode"
        )
        budget["metadata"]["namespace"] = self.namespace
        self.api.create(paths.budgets(self.namespace), budget)

    def staying(self) -> int:
        """How many pods of the group decode the budget keeps."""
        return int(self.api.get(self.budget_path)["spec"]["minAvailable"])

    @property
    def budget_path(self) -> str:
        return paths.budget(self.namespace, f"{CLUSTER}-decode")

    def bounds(self, group: str = "decode") -> list[tuple[int, int]]:
        """Of a group, in the RayService and in the RayCluster."""
        service = self.api.get(paths.ray(self.namespace, "RayService", CLUSTER))["spec"]["rayClusterConfig"]
        cluster = self.api.get(paths.ray(self.namespace, "RayCluster", LIVE))["spec"]
        groups = [each for spec in (service, cluster) for each in spec["workerGroupSpecs"]]
        found = [each for each in groups if each["groupName"] == group]
        assert all("template" in each for each in found)
        return [(each["minReplicas"], each["maxReplicas"]) for each in found]


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether it comes true within a bound; what is waited for happens in another process or thread."""
    end = time.monotonic() + WAIT
    pause = threading.Event()
    while not holds():
        if time.monotonic() > end:
            return False
        pause.wait(0.05)
    return True
