"""The destination's ends of all sessions from one peer: does what each `Destination` decides.

Lives in its link's thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from engine.core import EngineCore, Reservation
from engine.errors import CapacityError, Fenced, Overloaded
from engine.loop import EngineLoop
from engine.request import Request
from engine.sequence import Epoch
from migration.claims import Claims
from migration.destination import Destination
from migration.envelope import Envelope, decode, encode
from migration.events import (
    Adopt,
    Adopted,
    Allocate,
    Allocated,
    Broken,
    Cancelled,
    Claim,
    Claimed,
    Damaged,
    Denied,
    DestinationAction,
    DestinationEvent,
    Drop,
    Free,
    Lost,
    Scatter,
    Tick,
    Timeouts,
)
from migration.link import Link
from migration.lobby import Lobby
from migration.messages import Abort, Commit, Committed, Copy, Refused, Renew, Resend, Reserve, Reserved
from migration.state import RequestState, restore
from migration.transport import BlockStore, Buffer, Frame

Answer = Reserved | Resend | Refused | Committed | Abort


@dataclass(slots=True, eq=False)
class Arrival:
    """One request on its way in."""

    session: str
    request: Request
    destination: Destination
    live: bool
    reservation: Reservation | None = None
    state: RequestState | None = None


class Incoming:
    """The arrivals of one connection."""

    def __init__(
        self,
        link: Link,
        loop: EngineLoop,
        store: BlockStore,
        claims: Claims,
        timeouts: Timeouts,
        lobby: Lobby,
        share: float,
    ) -> None:
        self._link = link
        self._loop = loop
        self._store = store
        self._claims = claims
        self._timeouts = timeouts
        self._lobby = lobby
        self._share = share
        self._arrivals: dict[str, Arrival] = {}

    @property
    def busy(self) -> bool:
        return bool(self._arrivals)

    @property
    def wake(self) -> float:
        return min((arrival.destination.wake for arrival in self._arrivals.values()), default=math.inf)

    def lost(self, reason: str) -> None:
        for arrival in tuple(self._arrivals.values()):
            self.feed(arrival, Lost(reason))

    def tick(self, now: float) -> None:
        for arrival in tuple(self._arrivals.values()):
            if now >= arrival.destination.wake:
                self.feed(arrival, Tick())

    def cancel(self, session: str, then: Callable[[], None]) -> bool:
        """From any thread: end a session, then call `then`. False if the link has ended."""

        def letter() -> None:
            arrival = self._arrivals.get(session)
            if arrival is not None:
                self.feed(arrival, Cancelled())
            then()

        return self._link.post(letter)

    def frame(self, frame: Frame) -> None:
        envelope = decode(frame.header)
        arrival = self._arrivals.get(envelope.session)
        if isinstance(envelope.message, Reserve) and arrival is None:
            self._reserve(envelope, envelope.message)
        elif arrival is None:
            self._unknown(envelope)
        else:
            self._heard(arrival, envelope, frame)

    def feed(self, arrival: Arrival, event: DestinationEvent, payload: Buffer | None = None) -> None:
        """Let a session decide, and do it."""
        if arrival.destination.ended:
            return
        arrival.destination, actions = arrival.destination.on(event, time.monotonic())
        for action in actions:
            self._act(arrival, action, payload)
        self._settle(arrival)

    def _settle(self, arrival: Arrival) -> None:
        end = arrival.destination
        if end.ended and self._arrivals.pop(arrival.session, None) is not None:
            self._lobby.leave(arrival.session, arrival.request.id, expired=end.expired)

    def _reserve(self, envelope: Envelope, message: Reserve) -> None:
        session, epoch = envelope.session, envelope.epoch
        assert envelope.request is not None
        try:
            self._lobby.enter(session, envelope.request.id, epoch, partial(self.cancel, session))
        except (Fenced, CapacityError) as error:
            code = "stale" if isinstance(error, Fenced) else "busy"
            self._answer(session, epoch, Refused(code, str(error), settled=False))
            return
        destination, actions = Destination.begin(epoch, self._timeouts, message.blocks)
        arrival = Arrival(session, envelope.request, destination, message.live)
        self._arrivals[session] = arrival
        for action in actions:
            self._act(arrival, action, None)

    def _unknown(self, envelope: Envelope) -> None:
        """A session that is over here, or never was: who sends a COMMIT must ask the home."""
        if isinstance(envelope.message, Commit):
            refused = Refused("unknown", "there is no such session here", settled=False)
            self._answer(envelope.session, envelope.epoch, refused)
        elif isinstance(envelope.message, Copy | Renew):
            self._answer(envelope.session, envelope.epoch, Abort("there is no such session here"))

    def _heard(self, arrival: Arrival, envelope: Envelope, frame: Frame) -> None:
        message, payload = envelope.message, frame.payload
        nbytes = 0 if payload is None else payload.nbytes
        event: DestinationEvent
        match message:
            case _ if envelope.epoch != arrival.destination.epoch:
                event = Broken(f"epoch {tuple(envelope.epoch)} in a session of another")
            case Copy() if payload is None:
                event = Damaged()
            case Copy(_, count) if nbytes != count * self._store.block_nbytes:
                event = Broken(f"{nbytes} bytes for {count} blocks")
            case Commit(blocks) if wrong := _wrong(arrival, envelope.state, blocks, self._block_size):
                event = Broken(wrong)
            case Copy() | Reserve() | Abort() | Renew():
                event = message
            case Commit():
                arrival.state = envelope.state
                event = message
            case _:
                event = Broken(f"{type(message).__name__} is not for a destination")
        self.feed(arrival, event, payload)

    @property
    def _block_size(self) -> int:
        return self._store.layout.block_size

    def _act(self, arrival: Arrival, action: DestinationAction, payload: Buffer | None) -> None:
        match action:
            case Reserved() | Resend() | Refused() | Committed() | Abort():
                self._answer(arrival.session, arrival.destination.epoch, action)
            case Allocate(blocks):
                reserve = partial(_reserve, arrival, blocks, self._share)
                self._loop.call(reserve).add_done_callback(partial(self._allocated, arrival))
            case Scatter(first, count):
                self._scatter(arrival, first, count, payload)
            case Claim(epoch):
                assert arrival.state is not None
                done = partial(self._claimed, arrival)
                request, lengths = arrival.request.id, arrival.state.lengths
                self._claims.ask(arrival.state.home, request, epoch, lengths, done)
            case Adopt(epoch):
                adopt = partial(_adopt, arrival, epoch)
                self._loop.call(adopt).add_done_callback(partial(self._adopted, arrival))
            case Free():
                self._loop.call(partial(_free, arrival))
            case Drop():
                self._loop.call(lambda core: core.cancel(arrival.request.id))

    def _scatter(self, arrival: Arrival, first: int, count: int, payload: Buffer | None) -> None:
        assert arrival.reservation is not None
        assert payload is not None
        self._store.scatter(arrival.reservation.blocks[first : first + count], payload)

    def _answer(self, session: str, epoch: Epoch, message: Answer) -> None:
        self._link.send(encode(Envelope(message, session, epoch)))

    def _allocated(self, arrival: Arrival, future: Future[int]) -> None:
        """In the engine's thread."""
        error = future.exception()
        event = Allocated(future.result() // self._block_size) if error is None else Denied(str(error))
        self._link.post(lambda: self.feed(arrival, event))

    def _claimed(self, arrival: Arrival, granted: bool | None) -> None:
        self._link.post(lambda: self.feed(arrival, Claimed(granted)))

    def _adopted(self, arrival: Arrival, future: Future[None]) -> None:
        taken = future.exception() is None
        self._link.post(lambda: self.feed(arrival, Adopted(taken)))


def _wrong(arrival: Arrival, state: RequestState | None, blocks: int, block_size: int) -> str:
    """What makes a state unfit for the session that it came in, "" if nothing."""
    if state is None or state.request != arrival.request or state.epoch != arrival.destination.epoch:
        return "the state is of another request"
    if not state.choices:
        return "the state has no choices"
    for choice in state.choices:
        if not choice.output and choice.choice not in state.undrawn:
            return f"choice {choice.choice} has no output and stands for none"
        if choice.blocks and max(choice.blocks) >= blocks:
            return f"choice {choice.choice} names block {max(choice.blocks)} of {blocks}"
        if len(choice.blocks) * block_size < choice.computed:
            return f"choice {choice.choice} has {choice.computed} tokens in {len(choice.blocks)} blocks"
    return ""


def _reserve(arrival: Arrival, blocks: int, share: float, core: EngineCore) -> int:
    """Bring the reservation to so many blocks: its cached tokens. In the engine's thread, as all below."""
    reservation = arrival.reservation
    more = blocks - (0 if reservation is None else len(reservation.blocks))
    if arrival.live and core.pool.reserved + more > share * core.pool.total:
        raise Overloaded(f"{core.pool.reserved} blocks are reserved here: raise transfer.reserved_share")
    if reservation is None:
        tokens = blocks * core.pool.block_size
        reservation = core.reserve(arrival.session, arrival.request, tokens, handoff=not arrival.live)
        arrival.reservation = reservation
    else:
        core.extend(reservation, more)
    return reservation.cached


def _adopt(arrival: Arrival, epoch: Epoch, core: EngineCore) -> None:
    assert arrival.reservation is not None
    assert arrival.state is not None
    sequences = restore(arrival.state, arrival.reservation.blocks, epoch)
    core.adopt(arrival.reservation, sequences, arrival.state.undrawn)


def _free(arrival: Arrival, core: EngineCore) -> None:
    if arrival.reservation is not None:
        core.unreserve(arrival.reservation)
