"""Both ends of a movement, as the engine core sees them: pause and release here, reserve and adopt there.

source        freeze ─▶ resume (it stays)        destination   reserve ─▶ unreserve (it does not come)
                 └────▶ release (it is gone)                    └─ extend* ─▶ adopt (it runs here)
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

from engine.batch import HoldsBack
from engine.errors import Overloaded, TransferFailed
from engine.live import Live
from engine.request import Request
from engine.reservation import Reservation
from engine.reserve_max import Longest
from engine.roster import RUNS, Roster
from engine.sequence import Phase, Sequence, Tier


class Movements:
    """Moves whole requests: all of their choices that live here.

    `seats` sequences may hold blocks; `reservations` are what `longest` knows of those to come. Who is handed
    over does not overtake who waits: it finds room only beside the first of the queue, but for one of a lower
    priority, or one whose KV a queue with levels has swapped out to make room.
    """

    def __init__(
        self, roster: Roster, seats: int, longest: Longest, reservations: dict[int, Reservation]
    ) -> None:
        self._roster = roster
        self._tables = roster.tables
        self._pool = roster.tables.pool
        self._seats = seats
        self._longest = longest
        self.reservations = reservations
        self.handoffs = 0
        self.handoffs_failed = 0

    @property
    def promised(self) -> int:
        """Choices that have a place among the running and are not here yet."""
        return sum(one.request.sampling.n for one in self.reservations.values() if one.blocks)

    def _before(self, request: Request) -> Sequence | None:
        """Who waits here and goes before one that is handed over, if anybody."""
        queue = self._roster.queue
        head = next(iter(queue), None) if len(queue) else None
        if head is not None and queue.by_priority and head.request.priority < request.priority:
            return None
        if head is not None and head.tier is Tier.HOST and isinstance(queue, HoldsBack):
            return None
        return head

    def _seat(self, request: Request, head: Sequence | None = None) -> None:
        """Raises Overloaded if there is no place for the choices of one more request beside those of `head`,
        or none at their longest where that is reserved."""
        running = self._roster.width() + self.promised
        waiting = 0 if head is None else self._roster.live[head.request.id].width(head)
        if running + waiting + request.sampling.n > self._seats:
            raise Overloaded(
                f"{running} of {self._seats} sequences run here, {waiting} go first: "
                "raise engine.max_sequences",
                param="engine.max_sequences",
            )
        if not self._longest.admits(request, head):
            raise Overloaded(
                f"{request.id} may outgrow what those who run here or go first leave of {self._pool.total} "
                "KV blocks at their longest: raise engine.kv_memory, or set engine.admission to paged",
                param="engine.kv_memory",
            )

    def _room(self, found: list[int], need: int, head: Sequence | None = None) -> None:
        """Raises Overloaded if `need` blocks cannot be had beside those `found` in the prefix cache and those
        that `head` waits for."""
        first = 0 if head is None else self._pool.blocks_for(len(head)) + self._growth()
        if not self._tables.room(found, need + first, alone=not self._roster.running):
            raise Overloaded(
                f"{need} KV blocks asked for, {first} go first, {self._pool.available} of {self._pool.total} "
                "available: raise engine.kv_memory",
                param="engine.kv_memory",
            )

    def _growth(self) -> int:
        """Blocks that those who run take before anybody who waits is asked again: in two steps at most."""
        return sum(self._tables.missing(one, 2) for one in self._roster.running if one.phase is Phase.DECODE)

    def freeze(self, request_id: str) -> list[Sequence]:
        """Nothing about these sequences changes until they go on: a step in flight is lost on them."""
        sequences = self._roster.sequences(request_id)
        for sequence in sequences:
            self._roster.pause(sequence)
        return sequences

    def resume(self, request_id: str) -> bool:
        """Go on here. A handoff that is resumed has failed: the request decodes where it is."""
        live = self._roster.live.get(request_id)
        if live is None:
            return False
        if live.handoff:
            live.handoff = False
            self.handoffs_failed += 1
        for sequence in live.sequences.values():
            if sequence.phase is Phase.PAUSED:
                self._roster.go_on(sequence)
        return True

    def release(self, request_id: str) -> bool:
        """It lives elsewhere now: free the blocks and say nothing."""
        live = self._roster.live.get(request_id)
        if live is None:
            return False
        self.handoffs += live.handoff
        for sequence in list(live.sequences.values()):
            self._roster.end(sequence, moved=True)
        return True

    def reserve(
        self, session: str, request: Request, tokens: int, keys: SequenceOf[bytes], *, handoff: bool
    ) -> Reservation:
        """See EngineCore.reserve; `keys` are the prefix keys of the full blocks of the prompt."""
        if not tokens:
            return self._keep(Reservation(session, request, []))
        head = self._before(request) if handoff else None
        self._seat(request, head)
        found = self._pool.find(keys, tokens // self._pool.block_size)
        need = self._pool.blocks_for(tokens) - len(found)
        self._room(found, need, head)
        self._pool.share(found)
        blocks = found + self._pool.reserve(need)
        return self._keep(Reservation(session, request, blocks, len(found) * self._pool.block_size))

    def _keep(self, reservation: Reservation) -> Reservation:
        self.reservations[id(reservation)] = reservation
        return reservation

    def _require(self, reservation: Reservation) -> None:
        if id(reservation) not in self.reservations:
            raise TransferFailed(f"session {reservation.session} has no reservation here any more")

    def _examine(self, reservation: Reservation, sequence: Sequence) -> None:
        """What came from elsewhere must be able to run on what was reserved for it."""
        slots = len(sequence.blocks) * self._pool.block_size
        if not set(reservation.blocks).issuperset(sequence.blocks):
            raise TransferFailed(f"{sequence.key} names KV blocks that its session did not reserve")
        if not sequence.computed <= slots or sequence.remaining < 1:
            raise TransferFailed(
                f"{sequence.key} has {len(sequence)} tokens, {sequence.computed} of them computed, "
                f"in {slots} slots"
            )

    def extend(self, reservation: Reservation, blocks: int) -> list[int]:
        self._require(reservation)
        if not reservation.blocks:
            self._seat(reservation.request)
        self._room([], blocks)
        fresh = self._pool.reserve(blocks)
        reservation.blocks += fresh
        return fresh

    def unreserve(self, reservation: Reservation) -> None:
        if self.reservations.pop(id(reservation), None) is not None:
            self._pool.release(reservation.blocks)

    def adopt(self, reservation: Reservation, live: Live, sequences: list[Sequence]) -> None:
        """See EngineCore.adopt; `live` is the new record of the request, without sequences."""
        self._require(reservation)
        for sequence in sequences:
            self._examine(reservation, sequence)
        self._pool.settle(reservation.blocks)
        for sequence in sequences:
            self._pool.share(sequence.blocks)
        self.unreserve(reservation)
        self._roster.live[reservation.request.id] = live
        for sequence in sequences:
            keys: list[bytes] = []
            live.add(sequence, keys)
            self._tables.recount(sequence, keys, live.root)
            if sequence.phase in RUNS:
                self._roster.run(sequence, sequence.phase)
            elif sequence.phase is Phase.WAITING:
                self._roster.wait(sequence)
            else:
                self._roster.paused[sequence.key] = sequence
