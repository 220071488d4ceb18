"""A request on its way from one simulated instance to another: both halves of a Session over the network.

The state machines, the order of blocks and what travels are those of `migration`; links and engines are
simulated. A home that always grants stands for the gateway.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from engine.core import EngineCore, Reservation
from engine.errors import TandemError
from engine.request import Request
from engine.sequence import Epoch
from migration.blocks import BlockList, most
from migration.destination import Destination
from migration.events import (
    Adopt,
    Adopted,
    Allocate,
    Allocated,
    Begin,
    Bounds,
    Claim,
    Claimed,
    Denied,
    DestinationAction,
    DestinationEvent,
    Dropped,
    Free,
    Freeze,
    Frozen,
    Look,
    Progress,
    Release,
    Resume,
    Sent,
    SourceAction,
    SourceEvent,
    Timeouts,
)
from migration.messages import Abort, Commit, Committed, Copy, Refused, Reserve, Reserved
from migration.movement import Snapshot, freeze, release, resume, snapshot
from migration.source import Source, SourceState
from migration.state import RequestState, capture, restore
from simulator.clock import VirtualClock
from simulator.instance import SimulatedInstance
from simulator.network import Network

NEVER = Timeouts(*(1e9,) * 6)
"""Nothing is lost here, so nothing is timed."""


class Movement:
    """A handoff, or with `live` a migration of a request that runs.

    `claimed(instance, epoch)` is told when the destination takes over, `ended(moved)` how it ended.
    `paused` is when the source stopped for the last copy, `adopted` when the destination could go on.
    """

    def __init__(
        self,
        request: Request,
        epoch: Epoch,
        source: SimulatedInstance,
        destination: SimulatedInstance,
        network: Network,
        clock: VirtualClock,
        block_bytes: int,
        claimed: Callable[[str, Epoch], None],
        ended: Callable[[bool], None],
        live: Bounds | None = None,
    ) -> None:
        self.request = request
        self.source = source
        self.destination = destination
        self.live = live
        self.paused = self.adopted = 0.0
        self._frozen = False
        self._network = network
        self._clock = clock
        self._block_bytes = block_bytes
        self._claimed = claimed
        self._ended = ended
        self._giving = Source(epoch, NEVER, live)
        self._taking: Destination | None = None
        self._blocks: BlockList | None = None
        self._snapshot = Snapshot()
        self._reservation: Reservation | None = None
        self._state: RequestState | None = None

    @property
    def begun(self) -> bool:
        return self._giving.state is not SourceState.WAITING

    def begin(self) -> None:
        """Reserve what the request holds now, or will when its prompt has been read."""
        core = self.source.core
        lengths = [] if self.live is None else [len(one.output) for one in core.sequences(self.request.id)]
        self._give(Begin(most(self.request, lengths, core.pool.block_size)))

    def computed(self, core: EngineCore, *, frozen: bool) -> None:
        """Of a handoff, between two steps: a chunk is done, or with `frozen` the prompt."""
        self._see(snapshot(self.request.id, self._giving.epoch, core), frozen=frozen)

    def dropped(self) -> None:
        """The source does not have the KV any more."""
        self._give(Dropped("the source dropped it"))

    def _see(self, seen: Snapshot, *, frozen: bool) -> None:
        if self._giving.ended:
            return
        if seen.sequences:
            self._snapshot, self._frozen = seen, frozen
            self.paused = self._clock.now() if frozen else 0.0
            self._report()
        elif self.live is not None:
            self._give(Dropped("it ended before it could be moved"))

    def _report(self) -> None:
        if self._blocks is None:
            if self._frozen:
                self._give(Frozen(0))
        elif self._snapshot.sequences:
            count = self._blocks.add(self._snapshot.sequences, frozen=self._frozen)
            self._give(Frozen(count) if self._frozen else Progress(count, self._blocks.rest))

    def _give(self, event: SourceEvent) -> None:
        if self._giving.ended:
            return
        self._giving, actions = self._giving.on(event, self._clock.now())
        for action in actions:
            self._act(action)
        if self._giving.ended:
            self._ended(self._giving.state is SourceState.GIVEN)

    def _act(self, action: SourceAction) -> None:
        request_id, epoch = self.request.id, self._giving.epoch
        match action:
            case Reserve():
                self._network.tell(partial(self._reserve, action))
            case Copy(_, count):
                size = count * self._block_bytes
                sent, arrived = partial(self._give, Sent()), partial(self._take, action)
                self._network.send(self.source.name, self.destination.name, size, sent, arrived)
            case Commit():
                assert self._blocks is not None
                seen = self._snapshot
                self._state = capture(seen.sequences, self._blocks.index, seen.undrawn)
                self._network.tell(partial(self._take, action))
            case Look():
                self.source.call(lambda core: self._see(snapshot(request_id, epoch, core), frozen=False))
            case Freeze():
                self.source.call(lambda core: self._see(freeze(request_id, epoch, core), frozen=True))
            case Resume(raised):
                self.source.call(partial(resume, request_id, epoch, raised))
            case Release():
                self.source.call(partial(release, request_id, epoch))
            case Abort():
                self._network.tell(partial(self._take, action))

    def _reserve(self, message: Reserve) -> None:
        if self._taking is not None:
            self._take(message)
            return
        self._taking, actions = Destination.begin(self._giving.epoch, NEVER, message.blocks)
        for action in actions:
            self._do(action)

    def _take(self, event: DestinationEvent) -> None:
        if self._taking is None or self._taking.ended:
            return
        self._taking, actions = self._taking.on(event, self._clock.now())
        for action in actions:
            self._do(action)

    def _do(self, action: DestinationAction) -> None:
        match action:
            case Allocate(blocks):
                self.destination.call(partial(self._allocate, blocks))
            case Claim(epoch):
                self._network.tell(partial(self._claim, epoch))
            case Adopt(epoch):
                self.destination.call(partial(self._adopt, epoch))
            case Free():
                self.destination.call(self._free)
            case Reserved() | Refused() | Committed() | Abort():
                self._network.tell(partial(self._answer, action))

    def _answer(self, message: Reserved | Refused | Committed | Abort) -> None:
        first = isinstance(message, Reserved) and self._blocks is None
        if isinstance(message, Reserved) and first:
            self._blocks = BlockList(message.cached, self.source.core.pool.block_size)
        self._give(message)
        if first and self.live is None:
            self._report()

    def _allocate(self, blocks: int, core: EngineCore) -> None:
        size = core.pool.block_size
        try:
            if self._reservation is None:
                handoff, tokens = self.live is None, blocks * size
                self._reservation = core.reserve(self.request.id, self.request, tokens, handoff=handoff)
            else:
                core.extend(self._reservation, blocks - len(self._reservation.blocks))
        except TandemError as error:
            self._take(Denied(str(error)))
        else:
            self._take(Allocated(self._reservation.cached // size))

    def _claim(self, epoch: Epoch) -> None:
        self._claimed(self.destination.name, epoch)
        self._network.tell(partial(self._take, Claimed(True)))

    def _adopt(self, epoch: Epoch, core: EngineCore) -> None:
        assert self._reservation is not None
        assert self._state is not None
        sequences = restore(self._state, self._reservation.blocks, epoch)
        core.adopt(self._reservation, sequences, self._state.undrawn)
        self.adopted = self._clock.now()
        self._take(Adopted(True))

    def _free(self, core: EngineCore) -> None:
        if self._reservation is not None:
            core.unreserve(self._reservation)
