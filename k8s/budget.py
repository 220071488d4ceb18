"""Keeps a pool's PodDisruptionBudget in step with its bounds: of the fewest instances all but one stay."""

from __future__ import annotations

import logging
from collections.abc import Callable

from engine.errors import InvalidKey, NotFound
from k8s import paths
from k8s.kube_api import KubeApi
from k8s.objects.access import staying
from k8s.objects.names import CLUSTER_LABEL, budget_name

logger = logging.getLogger("tandem.operator")

FIRST_PAUSE, LONGEST_PAUSE = 30.0, 480.0
"""Seconds until it is tried again without the right to: twice as long each time, up to a bound."""


class Budgets:
    """Those of one namespace. A Role of an older version does not allow this: it is said once, and tried
    again after a pause, so that nothing has to be restarted when the Role is applied."""

    def __init__(self, api: KubeApi, namespace: str, clock: Callable[[], float]) -> None:
        self._api = api
        self._namespace = namespace
        self._clock = clock
        self._pause = 0.0
        self._after = 0.0

    def keep(self, cluster: str, group: str, least: int) -> None:
        """Bring the group's budget in step. Raises Conflict when somebody else wrote in between."""
        if self._pause and self._clock() < self._after:
            return
        try:
            set_budget(self._api, self._namespace, cluster, group, least)
        except InvalidKey as error:
            if not self._pause:
                logger.warning("budgets stay as they are: %s; apply the Role of k8s/base/rbac.yaml", error)
            self._pause = min(max(FIRST_PAUSE, 2 * self._pause), LONGEST_PAUSE)
            self._after = self._clock() + self._pause
        else:
            if self._pause:
                logger.info("budgets are kept in step again")
            self._pause = 0.0


def set_budget(api: KubeApi, namespace: str, cluster: str, group: str, least: int) -> None:
    """Nothing where the group has no budget that was rendered: one of somebody's own stays as it is.

    Raises Conflict when somebody else wrote in between, so that it is tried again, and InvalidKey under a
    Role that is older than this.
    """
    path = paths.budget(namespace, budget_name(cluster, group))
    try:
        found = api.get(path)
    except NotFound:
        return
    spec, metadata = found["spec"], found["metadata"]
    ours = CLUSTER_LABEL in metadata.get("labels", {}) and "maxUnavailable" not in spec
    if ours and spec.get("minAvailable") != staying(least):
        version = {"op": "test", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]}
        api.patch(path, [version, {"op": "add", "path": "/spec/minAvailable", "value": staying(least)}])
