"""One account of what tenants were served, over all instances: asks each what it counted, tells all the sum.

every beat: Ledger.service ─▶ every ready instance ─▶ its news ─▶ Ledger
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from cluster import control_pb2 as pb
from cluster.config import Config
from cluster.member import Member, State
from cluster.policies import tenant_account
from cluster.status_message import news_from
from engine.errors import TandemError
from engine.shared_service import Ledger

logger = logging.getLogger("tandem.controller")


class TenantAccounts:
    """Runs in the controller's event loop, where `engine.queue` is fair: `run` until it is cancelled.

    In a new controller it begins with what instances have of those who wait or run there; everybody else
    begins at nothing, and is lifted when he comes.
    """

    def __init__(self, config: Config, members: Mapping[str, Member]) -> None:
        self.ledger = Ledger(tenant_account(config.engine))
        self._members = members
        self._period = config.control.beat

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._period)
            ready = [one for one in self._members.values() if one.state is not State.STARTING]
            counters = pb.Counters(service=self.ledger.service).SerializeToString()
            await asyncio.gather(*(self._exchange(one, counters) for one in ready))

    async def _exchange(self, member: Member, counters: bytes) -> None:
        try:
            answer = await member.handle.exchange(counters)
        except TandemError as error:
            logger.debug("%s tells nothing of tenants: %s", member.name, error)
            return
        self.ledger.hear(news_from(pb.Charges.FromString(answer)))
