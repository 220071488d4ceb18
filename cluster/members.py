"""The instances of all pools by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cluster.member import Member
from cluster.pool import Pool


class Members(Mapping[str, Member]):
    """A view: it changes with the pools."""

    def __init__(self, pools: Mapping[str, Pool]) -> None:
        self._pools = pools

    def __getitem__(self, name: str) -> Member:
        for pool in self._pools.values():
            if name in pool.members:
                return pool.members[name]
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        for pool in self._pools.values():
            yield from pool.members

    def __len__(self) -> int:
        return sum(len(pool.members) for pool in self._pools.values())
