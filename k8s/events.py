"""Tells what was done to a Pool as Kubernetes Events, each with its reason."""

from __future__ import annotations

import logging
import uuid
from datetime import UTC, datetime

from k8s import paths
from k8s.kube_api import KubeApi
from k8s.yaml_text import Object

logger = logging.getLogger("tandem.operator")


class PoolEvents:
    """Those of one namespace."""

    def __init__(self, api: KubeApi, namespace: str) -> None:
        self._api = api
        self._namespace = namespace

    def add(self, pool: Object, kind: str, reason: str, message: str) -> None:
        """`kind` is Normal or Warning, `reason` one word in capitals."""
        now, metadata = time_stamp(), pool["metadata"]
        logger.info("%s: %s: %s", metadata["name"], reason, message)
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{metadata['name']}.{uuid.uuid4().hex[:12]}",
                "namespace": self._namespace,
            },
            "involvedObject": {
                "apiVersion": pool["apiVersion"],
                "kind": pool["kind"],
                "name": metadata["name"],
                "namespace": self._namespace,
                "uid": metadata.get("uid", ""),
            },
            "type": kind,
            "reason": reason,
            "message": message,
            "source": {"component": "tandem-operator"},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        self._api.create(paths.events(self._namespace), event)


def time_stamp() -> str:
    """This moment, as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
