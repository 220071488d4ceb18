"""Why things were decided: a bounded memory of placements and changes of size, asked by subject."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable

from cluster import control_pb2 as pb
from cluster.events import Events
from cluster.migrations import Migrations, names
from engine.errors import NotFound

RELATED = 20
"""Events of a subject that are told with one of them, and changes of a pool's size that are told."""


class Explanations:
    """A ring of the last `limit` decisions; the oldest are forgotten. Belongs to one event loop."""

    def __init__(self, limit: int, *, clock: Callable[[], float] = time.time) -> None:
        self._ring: deque[tuple[float, str, str, str, str]] = deque(maxlen=limit)
        self._clock = clock

    def add(self, kind: str, subject: str, outcome: str, reason: str) -> None:
        """`subject` is a request's id or a pool's name."""
        self._ring.append((self._clock(), kind, subject, outcome, reason))

    def of(self, wanted: str) -> list[pb.Explanation]:
        """Of a pool, a request, or all of a client's name."""
        return [_told(one) for one in self._ring if names(one[2], wanted) or one[2] == wanted]

    def latest(self, most: int) -> list[pb.Explanation]:
        """The last `most`, oldest first."""
        return [_told(one) for one in list(self._ring)[-most:]] if most else []


def _told(one: tuple[float, str, str, str, str]) -> pb.Explanation:
    at, kind, subject, outcome, reason = one
    return pb.Explanation(time=at, kind=kind, subject=subject, outcome=outcome, reason=reason)


def explain(
    subject: str,
    decisions: Explanations,
    migrations: Migrations,
    events: Events,
    opinions: Iterable[pb.Explanation],
) -> pb.ExplanationList:
    """All that is remembered of a request, a pool, or an event by its number; oldest first.

    Raises NotFound for what nothing is remembered of.
    """
    if subject.isdigit():
        return pb.ExplanationList(explanations=_of_event(int(subject), events))
    found = decisions.of(subject)
    found += [_of_migration(one) for one in migrations.listed(subject)]
    if not found:
        about = [one for one in events.after(0) if one.subject == subject]
        found += [_event(one) for one in about[-RELATED:]]
    found = sorted(found, key=lambda one: one.time)[-max(RELATED, len(decisions.of(subject))) :]
    found += [one for one in opinions if one.subject == subject]
    if not found:
        raise NotFound(
            f"nothing is remembered of {subject!r}: name a request, an instance, a pool or an event's "
            "number; scheduler.decisions bounds the memory",
            param="subject",
        )
    return pb.ExplanationList(explanations=found)


def _of_event(number: int, events: Events) -> list[pb.Explanation]:
    """The event, and what came to its subject before it."""
    event = next((one for one in events.after(number - 1) if one.id == number), None)
    if event is None:
        raise NotFound(f"event {number} is not remembered: see `tandem events`", param="subject")
    before = [one for one in events.after(0) if one.subject == event.subject and one.id < number]
    return [_event(one) for one in (*before[-RELATED:], event)]


def _event(event: pb.Event) -> pb.Explanation:
    return pb.Explanation(
        time=event.time, kind="event", subject=event.subject, outcome=event.kind, reason=event.reason
    )


def _of_migration(one: pb.Migration) -> pb.Explanation:
    outcome = f"{one.source} → {one.destination}, {one.outcome or 'under way'}"
    reason = f"{one.cause}: {one.reason}" + (f" ({one.detail})" if one.detail else "")
    return pb.Explanation(
        time=one.time, kind="migration", subject=one.request_id, outcome=outcome, reason=reason
    )
