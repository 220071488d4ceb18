"""Who may use the gateway, and how much: API keys, the token for metrics, and the limits of tenants."""

from __future__ import annotations

import hmac

from cluster.config import GatewayConfig
from cluster.config_security import TenantLimits
from cluster.keys import Keys
from cluster.limits import Limits
from engine.errors import InvalidKey, InvalidParameter

OPEN = frozenset({"/health", "/ready", "/ping"})
"""Paths that need no key: they tell a load balancer whether to send requests, and nobody anything else."""

METRICS = frozenset({"/metrics", "/load"})
"""What the metrics' token opens: figures, of no request."""


class Access:
    """Of one gateway. Raises ConfigError for keys that cannot be read."""

    def __init__(self, config: GatewayConfig, tenants: TenantLimits = TenantLimits()) -> None:
        self._keys = Keys(config.api_keys, config.key_file)
        self._metrics = None if config.metrics_token is None else config.metrics_token.encode()
        self.limits = Limits(tenants)
        self._priorities = tenants.priority

    def check_priority(self, tenant: str, priority: int) -> None:
        """Raises InvalidParameter for more than a tenant may have: it would go before all others."""
        if self._keys and priority > (most := self._priorities.get(tenant, self._priorities.get("*", 0))):
            raise InvalidParameter(
                f"a priority of {most} at most is allowed here: see security.tenants.priority",
                param="priority",
            )

    def tenant(self, path: str, authorization: str) -> str:
        """Whose request it is; "" where no key is asked for, or it names nobody. Raises InvalidKey."""
        if not self._keys or path in OPEN:
            return ""
        scheme, _, key = authorization.partition(" ")
        key = key.strip()
        tenant = self._keys.tenant(key) if scheme.lower() == "bearer" else None
        if tenant is None and path in METRICS and self._metrics is not None:
            same = hmac.compare_digest(key.encode("utf-8", "replace"), self._metrics)
            tenant = "" if same and scheme.lower() == "bearer" else None
        if tenant is None:
            raise InvalidKey("the API key is missing or wrong; send it as 'Authorization: Bearer KEY'")
        return tenant
