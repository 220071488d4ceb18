"""Many requests at once while connections are cut, frames damaged, claims unanswered and clients leave."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from engine.sequence import Epoch
from migration.transport import Address
from tests.engine.toy import alone, prompt, request
from tests.migration.pair import BOUND, QUICK, pair
from tests.migration.proxy import Proxy

TIMES = replace(QUICK, reserve=1.0, commit=0.3, lease=1.0)


def rounds(full: bool) -> int:
    return 60 if full else 4


@pytest.mark.parametrize("seed", range(4))
def test_whatever_fails_each_request_is_served_once(seed: int, full: bool) -> None:
    rng = random.Random(seed)
    handed = sum(live_through(rng) for _ in range(rounds(full)))
    assert handed, "nothing was ever handed over"


def live_through(rng: random.Random) -> int:
    """One pair of instances and up to 20 requests; how many were handed over."""
    proxies: list[Proxy] = []

    def reach(address: Address) -> Address:
        proxies.append(Proxy(address.tcp))
        return replace(address, tcp=proxies[0].address)

    def unsure(instance: str, epoch: Epoch) -> bool | None:
        if rng.random() < 0.3:
            raise OSError("away")
        return None

    with pair(
        rng.choice(["tcp", "tcp", "shm"]),
        reach=reach,
        blocks=(rng.choice([40, 64, 256]), rng.choice([24, 40, 256])),
        padding=rng.choice([0, 1 << 14]),
        timeouts=TIMES,
        max_sessions=rng.choice([1, 3, 16]),
    ) as both:
        if rng.random() < 0.3:
            both.home.answer = unsure
        requests = [
            request(
                f"r{number}",
                prompt(rng.randrange(1, 70), rng.randrange(3)),
                rng.randrange(1, 12),
                n=rng.choice([1, 1, 1, 2, 3]),
                seed=number,
            )
            for number in range(rng.randrange(1, 20))
        ]
        gone = []
        for one in requests:
            both.start(one)
            match rng.choice(["", "", "", "", "cut", "flip", "cancel"]):
                case "cut":
                    proxies[0].cut()
                case "flip":
                    proxies[0].flip(rng.randrange(20_000))
                case "cancel":
                    gone.append(one)
                    both.prefill.cancel(one.id)
                    both.decode.cancel(one.id)
        for one in requests:
            for choice in range(one.sampling.n) if one not in gone else ():
                assert both.home.output(one, choice) == alone(one, choice)
        for one in gone:
            both.prefill.cancel(one.id).result(BOUND)
            both.decode.cancel(one.id).result(BOUND)
    for proxy in proxies:
        proxy.close()
    return both.sender.handed
