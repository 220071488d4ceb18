"""What a tenant may have: requests and tokens per minute, and requests at once, over all gateways together.

Two buckets a tenant, each as large as its limit and filled evenly within a minute, and a count of what runs.
A request takes one from the first bucket and its prompt from the second; answers are taken as they grow, so
that the second may go below zero, and nothing more is let in until it is above it again.

    gateway A ── taken so far, running now ──▶ controller ──▶ gateway B: takes from its own buckets what A has
              ◀──────────────── with every beat ────────────  taken since, and counts what runs there

So all gateways count together, a beat late: within a beat each may let in what the tenant has left.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from cluster import control_pb2 as pb
from cluster.config_security import TenantLimits
from engine.errors import RateLimited

MINUTE = 60.0
EVERYBODY_ELSE = "*"
REMEMBERED = 65_536
"""Pairs of gateway and tenant of which the last report is known, beside those of gateways in sight."""


class Bucket:
    """`limit` per minute, all at once or evenly; may be taken from below zero."""

    def __init__(self, limit: int, now: float) -> None:
        self.limit = limit
        self._level = float(limit)
        self._at = now

    def level(self, now: float) -> float:
        passed = max(0.0, now - self._at)
        self._level = min(self.limit, self._level + passed * self.limit / MINUTE)
        self._at = now
        return self._level

    def take(self, amount: float, now: float) -> None:
        self.level(now)
        self._level -= amount

    def until(self, amount: float, now: float) -> float:
        """Seconds until so much is there; what is above the limit counts as the limit."""
        missing = min(amount, self.limit) - self.level(now)
        return max(0.0, missing * MINUTE / self.limit)


class Ticket:
    """One admitted request. Its answer is charged as it grows; `close` it when it has ended."""

    def __init__(self, account: _Account) -> None:
        self._account: _Account | None = account
        self._charged = 0
        self._produced: Callable[[], int] = lambda: 0

    def watch(self, produced: Callable[[], int]) -> None:
        """`produced` tells the tokens of the answer so far."""
        self._produced = produced

    def charge(self, now: float) -> None:
        new = self._produced() - self._charged
        if new > 0 and self._account is not None:
            self._charged += new
            self._account.take_tokens(new, now)

    def close(self, now: float) -> None:
        self.charge(now)
        if self._account is not None:
            self._account.running.discard(self)
            self._account = None


@dataclass(slots=True)
class _Account:
    """A tenant at this gateway. `taken_*` only grow; `elsewhere` is what the other gateways run."""

    tenant: str
    requests: Bucket | None
    tokens: Bucket | None
    concurrent: int | None
    running: set[Ticket] = field(default_factory=set)
    elsewhere: int = 0
    taken_requests: int = 0
    taken_tokens: int = 0

    def take_tokens(self, amount: int, now: float) -> None:
        self.taken_tokens += amount
        if self.tokens is not None:
            self.tokens.take(amount, now)

    def settle(self, now: float) -> None:
        """Charge what answers have grown by; without a limit of tokens nobody asks."""
        if self.tokens is not None:
            for ticket in self.running:
                ticket.charge(now)


class Limits:
    """Of one gateway, in its event loop. `clock` is monotonic, in seconds."""

    def __init__(self, config: TenantLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._heard: dict[str, dict[str, tuple[int, int]]] = {}

    def check(self, tenant: str, prompt: int = 1) -> None:
        """Whether a request would be let in. Raises RateLimited, which says when to try again."""
        account, now = self._account(tenant), self._clock()
        account.settle(now)
        if account.concurrent is not None and len(account.running) + account.elsewhere >= account.concurrent:
            raise _refusal(tenant, f"{account.concurrent} requests at the same time", 1.0)
        if account.requests is not None and account.requests.level(now) < 1:
            wait = account.requests.until(1, now)
            raise _refusal(tenant, f"{account.requests.limit} requests per minute", wait)
        if account.tokens is not None:
            # A prompt above the limit is let in when the bucket is full: it could never be else.
            wait = account.tokens.until(max(1, prompt), now)
            if wait > 0:
                raise _refusal(tenant, f"{account.tokens.limit} tokens per minute", wait)

    def admit(self, tenant: str, prompt: int) -> Ticket:
        """Let a request with so many prompt tokens in, or raise as `check` does."""
        self.check(tenant, prompt)
        account, now = self._account(tenant), self._clock()
        account.taken_requests += 1
        if account.requests is not None:
            account.requests.take(1, now)
        return self.resume(tenant, prompt)

    def resume(self, tenant: str, prompt: int = 0) -> Ticket:
        """Let in what another gateway had let in before: only what its answer still grows is charged, and
        so many prompt tokens, which are computed again."""
        account = self._account(tenant)
        account.take_tokens(prompt, self._clock())
        ticket = Ticket(account)
        account.running.add(ticket)
        return ticket

    def close(self, ticket: Ticket) -> None:
        """The request has ended, in whatever way."""
        ticket.close(self._clock())

    def report(self) -> list[pb.TenantUse]:
        """What this gateway has let each limited tenant have, for the others."""
        now = self._clock()
        for account in self._accounts.values():
            account.settle(now)
        return [
            pb.TenantUse(
                tenant=one.tenant,
                requests=one.taken_requests,
                tokens=one.taken_tokens,
                running=len(one.running),
            )
            for one in self._accounts.values()
            if one.requests is not None or one.tokens is not None or one.concurrent is not None
        ]

    def hear(self, others: Iterable[pb.Gateway]) -> None:
        """Count what the other gateways have let in since they were heard last.

        What one of them had before it was first heard is the past: nobody knows when it was.
        """
        now = self._clock()
        elsewhere: dict[str, int] = {}
        present = set()
        for gateway in others:
            before = self._heard.pop(gateway.name, None)
            for use in gateway.tenants:
                account = self._account(use.tenant)
                past = (use.requests, use.tokens) if before is None else before.get(use.tenant, (0, 0))
                if account.requests is not None:
                    account.requests.take(use.requests - past[0], now)
                if account.tokens is not None:
                    account.tokens.take(use.tokens - past[1], now)
                elsewhere[use.tenant] = elsewhere.get(use.tenant, 0) + use.running
            self._heard[gateway.name] = {use.tenant: (use.requests, use.tokens) for use in gateway.tenants}
            present.add(gateway.name)
        self._forget(present)
        for tenant, account in self._accounts.items():
            account.elsewhere = elsewhere.get(tenant, 0)

    def _forget(self, present: set[str]) -> None:
        """Of gateways that are gone, who may only be out of sight while a controller starts, keep so many."""
        gone = [name for name in self._heard if name not in present]
        pairs = sum(1 + len(self._heard[name]) for name in gone)
        for name in gone:
            if pairs <= REMEMBERED:
                break
            pairs -= 1 + len(self._heard.pop(name))

    def headers(self, tenant: str) -> dict[str, str]:
        """What a client is told with every answer, in OpenAI's words; nothing of a tenant without limits."""
        account, now = self._account(tenant), self._clock()
        account.settle(now)
        found = {}
        for name, bucket in (("requests", account.requests), ("tokens", account.tokens)):
            if bucket is not None:
                found[f"x-ratelimit-limit-{name}"] = str(bucket.limit)
                found[f"x-ratelimit-remaining-{name}"] = str(max(0, math.floor(bucket.level(now))))
                found[f"x-ratelimit-reset-{name}"] = f"{bucket.until(bucket.limit, now):.3f}s"
        return found

    def _account(self, tenant: str) -> _Account:
        account = self._accounts.get(tenant)
        if account is None:
            config, now = self._config, self._clock()
            requests, tokens = _limit(config.requests, tenant), _limit(config.tokens, tenant)
            account = self._accounts[tenant] = _Account(
                tenant,
                None if requests is None else Bucket(requests, now),
                None if tokens is None else Bucket(tokens, now),
                _limit(config.concurrent, tenant),
            )
        return account


def _limit(limits: Mapping[str, int], tenant: str) -> int | None:
    return limits.get(tenant, limits.get(EVERYBODY_ELSE))


def _refusal(tenant: str, what: str, wait: float) -> RateLimited:
    whose = f"the tenant {tenant} has" if tenant else "this key has"
    return RateLimited(f"{whose} {what}, and has had them: try again later", wait=wait)
