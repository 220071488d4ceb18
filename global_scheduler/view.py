"""What the scheduler believes of the cluster: the last status of each instance, and what was just sent there.

A status is a picture of the past. Without the second part two quick requests would both go to the instance
that looked free in it. What was sent is forgotten one by one as the instance's own count of arrivals grows,
so neither the order of messages nor the time a request spends in its prefill matters; what never arrives is
forgotten after `settle` seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import islice

from engine.request import SLO
from engine.status import InstanceStatus


@dataclass(frozen=True, slots=True)
class Summary:
    """What placing needs to know of a request. Counts are tokens.

    `prompt_tokens` includes what a recovered request has put out, and so do the `prefix_keys` in `prefix`;
    `exclude` names instances that just failed it.
    """

    id: str
    prompt_tokens: int
    max_tokens: int
    choices: int = 1
    tenant: str = ""
    priority: int = 0
    attempt: int = 0
    exclude: frozenset[str] = frozenset()
    adapter: str = ""
    prefix: tuple[int, ...] = ()
    slo: SLO = field(default_factory=SLO)

    @property
    def longest(self) -> int:
        """The most tokens one choice may come to hold."""
        return self.prompt_tokens + self.max_tokens


@dataclass(frozen=True, slots=True)
class Share:
    """What one request will ask of an instance: tokens to prefill, and tokens whose KV it will hold there."""

    prefill: int
    hold: int


@dataclass(frozen=True, slots=True)
class Load:
    """An instance as placing sees it, everything that is on its way there counted in.

    `demand` is in blocks and may exceed `blocks`: used, reserved, and asked for by queued and sent requests.
    `queued_tokens` are to be computed before those of one who comes now; prompts that are being read, which
    hold their blocks already, count with what is left of them.
    `held` is what the running alone use and what is reserved, `head` what the head of the queue asks for.
    """

    instance: str
    role: str
    blocks: int
    block_size: int
    demand: int
    queued_tokens: int
    queued: int
    requests: int
    cordoned: bool = False
    stale: bool = False
    held: int = 0
    head: int = 0
    running: int = 0
    urgent: int = 0

    @property
    def free(self) -> int:
        """Blocks left when everything queued has been let in; negative if it cannot all be."""
        return self.blocks - self.demand

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)


@dataclass(slots=True)
class _Sent:
    """What is on its way to one instance, oldest first, with running totals to keep placing fast."""

    entries: dict[str, tuple[float, Share, int]] = field(default_factory=dict)
    blocks: int = 0
    tokens: int = 0
    queued: int = 0

    def add(self, request_id: str, now: float, share: Share, block_size: int) -> None:
        blocks = -(-share.hold // block_size)
        self.entries[request_id] = now, share, blocks
        self._count(share, blocks, 1)

    def drop(self, request_id: str) -> None:
        entry = self.entries.pop(request_id, None)
        if entry is not None:
            self._count(entry[1], entry[2], -1)

    def drop_oldest(self, count: int) -> None:
        for request_id in list(islice(self.entries, count)):
            self.drop(request_id)

    def drop_before(self, time: float) -> None:
        while self.entries and next(iter(self.entries.values()))[0] < time:
            self.drop_oldest(1)

    def _count(self, share: Share, blocks: int, sign: int) -> None:
        self.blocks += sign * blocks
        self.tokens += sign * share.prefill
        self.queued += sign if share.prefill else 0


@dataclass(slots=True)
class _Known:
    """`due` is when its load must be looked at again although nothing was heard: see `_renew`."""

    status: InstanceStatus
    taken: float
    cordoned: bool = False
    sent: _Sent = field(default_factory=_Sent)
    due: float = math.inf


class ClusterView:
    """Statuses in, loads out. Times are seconds on one clock, the controller's.

    Only the loads that have changed are made anew, so a look at a thousand instances costs what changed.
    """

    def __init__(self, *, settle: float = 10.0, stale: float = 3.0) -> None:
        self.settle = settle
        self.stale = stale
        self._known: dict[str, _Known] = {}
        self._sent: dict[str, tuple[float, tuple[str, ...]]] = {}
        """When and to whom each request was sent lately, the oldest first: a new placement voids it."""
        self._loads: dict[str, Load] = {}
        self._open: dict[str, dict[str, Load]] = {}
        self._changed: set[str] = set()
        self._due: list[tuple[float, str]] = []

    def __contains__(self, instance: str) -> bool:
        return instance in self._known

    def observe(self, status: InstanceStatus, taken: float) -> None:
        """Take in a status. `taken` is when it was asked for; one that is older than the last is dropped."""
        name = status.instance
        known = self._known.get(name)
        if known is None:
            self._known[name] = known = _Known(status, taken)
            self._loads[name] = _load(name, known, stale=False)
        elif taken < known.taken:
            return
        else:
            arrived = status.arrivals - known.status.arrivals
            known.sent.drop_oldest(len(known.sent.entries) if arrived < 0 else arrived)
            known.status, known.taken = status, taken
        self._changed.add(name)

    def cordon(self, instance: str, *, on: bool = True) -> None:
        """Nothing more is placed on a cordoned instance."""
        known = self._known.get(instance)
        if known is not None:
            known.cordoned = on
            self._changed.add(instance)

    def forget(self, instance: str) -> None:
        """The instance is dead or stopped."""
        if self._known.pop(instance, None) is not None:
            self._close(self._loads.pop(instance))
            self._changed.discard(instance)

    def send(self, request_id: str, shares: Mapping[str, Share], now: float) -> None:
        """A request was placed: it asks `shares` of the instances. An earlier placement of it is void.

        An instance that died meanwhile is left out.
        """
        _, earlier = self._sent.pop(request_id, (now, ()))
        for instance in earlier:
            if instance in self._known:
                self._known[instance].sent.drop(request_id)
                self._changed.add(instance)
        for instance, share in shares.items():
            known = self._known.get(instance)
            if known is not None:
                known.sent.add(request_id, now, share, known.status.block_size)
                self._changed.add(instance)
        self._sent[request_id] = now, tuple(shares)
        self._forget_sent(now - self.settle)

    def _forget_sent(self, time: float) -> None:
        """What was sent before `time` is no longer expected anywhere, so there is nothing left to void."""
        while self._sent[oldest := next(iter(self._sent))][0] < time:
            del self._sent[oldest]

    def slots(self, instance: str) -> int:
        """Tokens whose KV an instance can hold; 0 of one that is not known."""
        known = self._known.get(instance)
        return known.status.blocks_total * known.status.block_size if known else 0

    def loads(self, now: float) -> list[Load]:
        """All instances, in the order in which they became known."""
        self._renew(now)
        return list(self._loads.values())

    def open(self, role: str, now: float) -> Iterable[Load]:
        """Those of a role that are neither cordoned nor stale, by name: whoever was ready first, equal
        ones come in the same order."""
        self._renew(now)
        return self._open.get(role, {}).values()

    def _renew(self, now: float) -> None:
        """Make the loads anew of whom something was heard or sent, and where time itself changes them."""
        while self._due and self._due[0][0] <= now:
            due, name = heappop(self._due)
            known = self._known.get(name)
            if known is not None and known.due == due:
                known.due = math.inf
                self._changed.add(name)
        grown: set[str] = set()
        # What each becomes depends on itself alone.
        for name in self._changed:
            known = self._known[name]
            known.sent.drop_before(now - self.settle)
            stale = known.taken + self.stale < now
            load = _load(name, known, stale=stale)
            if load.role != self._loads[name].role:
                self._close(self._loads[name])
            self._loads[name] = load
            if load.cordoned or stale:
                self._close(load)
            else:
                there = self._open.setdefault(load.role, {})
                if name not in there:
                    grown.add(load.role)
                there[name] = load
            self._remind(name, known, now)
        self._changed.clear()
        for role in grown:
            self._open[role] = dict(sorted(self._open[role].items(), key=lambda entry: _place(entry[0])))

    def _remind(self, name: str, known: _Known, now: float) -> None:
        """Look again when it turns stale, or what was sent there is no longer expected to arrive."""
        turns = known.taken + self.stale
        oldest = next((entry[0] for entry in known.sent.entries.values()), math.inf)
        due = min(oldest + self.settle, math.inf if turns < now else turns)
        # A comparison with `<` lets the moment itself pass: remind just after it.
        due = math.nextafter(due, math.inf)
        if due < known.due:
            known.due = due
            heappush(self._due, (due, name))

    def _close(self, load: Load) -> None:
        self._open.get(load.role, {}).pop(load.instance, None)


def _place(name: str) -> tuple[int, str]:
    """decode-2 before decode-10."""
    return len(name), name


def _load(name: str, known: _Known, *, stale: bool) -> Load:
    status, sent = known.status, known.sent
    size = status.block_size
    held = status.blocks_used + status.blocks_reserved
    return Load(
        instance=name,
        role=status.role,
        blocks=status.blocks_total,
        block_size=size,
        demand=held + -(-status.waiting_tokens // size) + sent.blocks,
        queued_tokens=status.waiting_tokens + status.prefill_tokens + sent.tokens,
        queued=status.waiting + sent.queued,
        requests=status.running + status.waiting + len(sent.entries),
        cordoned=known.cordoned,
        stale=stale,
        held=held,
        head=-(-status.head_tokens // size),
        running=status.running,
        urgent=status.urgent,
    )
