"""The stages of live migrations in a trace: events of the span that a move has.

    committed   the `migrate` span, which is the pause of the stream; what went before it while the request
                ran has its own time and so lies before the span
    aborted     a `migrate` span below the phase in which the request stayed where it was

Times count from the end of the move as the gateway knows it: clocks of other machines don't matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster import control_pb2 as pb
from cluster import trace_names as names
from cluster.timeline import MIGRATE, Phase
from migration.moved import COMMITTED

Value = str | int


@dataclass(frozen=True, slots=True)
class Stage:
    """`at` in seconds on the gateway's monotonic clock."""

    name: str
    at: float
    about: dict[str, Value]


class Moves:
    """Those of one request, each of which belongs to one of its `phases`. `offset` is what monotonic time is
    behind, `now` the end of a phase that has none.
    """

    def __init__(
        self, moves: Sequence[pb.Migration], phases: Sequence[Phase], now: float, offset: float
    ) -> None:
        self._made = [move for move in moves if move.outcome == COMMITTED]
        self._given_up: list[tuple[int, pb.Migration, float]] = []
        for move in moves:
            if move.outcome == COMMITTED:
                continue
            ended = move.time - offset
            there = [one for one in phases if one.instance == move.source and one.name != MIGRATE]
            if there:
                phase = min(there, key=lambda one: abs(_within(one, ended, now) - ended))
                self._given_up.append((id(phase), move, _within(phase, ended, now)))

    def made(self, phase: Phase) -> pb.Migration | None:
        """The move whose pause a phase is; each call gives the next one."""
        if phase.name != MIGRATE:
            return None
        move = next((one for one in self._made if one.destination == phase.instance), None)
        if move is not None:
            self._made.remove(move)
        return move

    def given_up(self, phase: Phase) -> list[tuple[pb.Migration, float]]:
        """The moves that came to nothing while a phase lasted, each with its end within the phase."""
        return [(move, ended) for known, move, ended in self._given_up if known == id(phase)]


def _within(phase: Phase, at: float, now: float) -> float:
    """The time of a phase that is closest: a controller on another machine may have another clock."""
    return min(now if phase.end is None else phase.end, max(phase.start, at))


def about(move: pb.Migration) -> dict[str, Value]:
    """Attributes of a move's span."""
    return {
        names.SOURCE: move.source,
        names.INSTANCE: move.destination,
        names.REASON: move.reason,
        names.OUTCOME: move.outcome,
        names.COPIES: move.stages,
        names.BLOCKS: move.blocks,
        names.BYTES: move.bytes,
    }


def stages(move: pb.Migration, end: float) -> list[Stage]:
    """What a move that ended at `end` went through, as far as it came."""
    begun, frozen = end - max(move.seconds, move.downtime), end - move.downtime
    found = [Stage(names.RESERVE, begun, {})]
    if move.stages:
        sent: dict[str, Value] = {
            names.COPIES: move.stages,
            names.BLOCKS: move.blocks,
            names.BYTES: move.bytes,
        }
        found.append(Stage(names.COPY, frozen, sent))
    if move.downtime:
        found.append(Stage(names.FREEZE, frozen, {}))
    if move.outcome == COMMITTED:
        return [*found, Stage(names.COMMIT, end, {names.REASON: move.reason})]
    return [*found, Stage(names.ABORT, end, {names.REASON: move.detail})]
