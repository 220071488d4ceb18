"""A Lease of Kubernetes: of several operators one works, the others wait."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from engine.errors import Conflict, NotFound
from k8s import paths
from k8s.kube_api import KubeApi
from k8s.yaml_text import Object

DURATION = 15
"""Seconds without a renewal after which another operator takes over."""


class Lease:
    """Held by one `identity` at a time. Expiry is judged by this machine's own clock: a record that has not
    changed for the whole duration is dead, whatever time its holder wrote into it."""

    def __init__(
        self, api: KubeApi, namespace: str, name: str, identity: str, clock: Callable[[], float]
    ) -> None:
        self._api = api
        self._collection = paths.leases(namespace)
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._clock = clock
        self._seen: tuple[str, float] = ("", 0.0)

    def hold(self) -> bool:
        """Take or renew it; False while another one has it."""
        path = f"{self._collection}/{self._name}"
        try:
            found = self._api.get(path)
        except NotFound:
            return self._try(lambda: self._api.create(self._collection, self._body(None)))
        spec = found.get("spec", {})
        version = found["metadata"]["resourceVersion"]
        if version != self._seen[0]:
            self._seen = (version, self._clock())
        holder = spec.get("holderIdentity")
        alive = self._clock() - self._seen[1] < spec.get("leaseDurationSeconds", DURATION)
        if holder and holder != self._identity and alive:
            return False
        return self._try(lambda: self._api.replace(path, self._body(found)))

    def _try(self, write: Callable[[], Object]) -> bool:
        try:
            write()
        except Conflict:
            return False
        return True

    def _body(self, found: Object | None) -> Object:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        before = (found or {}).get("spec", {})
        mine = before.get("holderIdentity") == self._identity
        metadata = {"name": self._name, "namespace": self._namespace}
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": found["metadata"] if found else metadata,
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": DURATION,
                "acquireTime": before.get("acquireTime", now) if mine else now,
                "renewTime": now,
                "leaseTransitions": int(before.get("leaseTransitions", 0)) + (found is not None and not mine),
            },
        }
