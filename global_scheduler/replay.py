"""Decides a recorded cluster's placements again: all must be the same, or they depended on something else.

tape ─▶ Heard, Cordoned, Forgotten, Sent ─▶ a fresh Scheduler
     └▶ Decided ─ its summary ─▶ place ─▶ the same?
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from engine.errors import TandemError
from global_scheduler.scheduler import Scheduler
from global_scheduler.tape import Cordoned, Decided, Forgotten, Heard, Input, Sent


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A decision that came out otherwise: `again` is prefill, decode and the refusal."""

    recorded: Decided
    again: tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Agreement:
    decisions: int
    disagreements: tuple[Disagreement, ...]

    @property
    def share(self) -> float:
        """Of the decisions that came out as recorded; 1 of none."""
        return 1.0 - len(self.disagreements) / self.decisions if self.decisions else 1.0


def replay(tape: Iterable[Input], scheduler: Scheduler) -> Agreement:
    """Feed a fresh scheduler what a recorded one was fed. It goes its own way where it disagrees."""
    decisions = 0
    wrong: list[Disagreement] = []
    for one in tape:
        match one:
            case Heard(taken, status):
                scheduler.observe(status, taken)
            case Cordoned(instance, on):
                scheduler.cordon(instance, on=on)
            case Forgotten(instance):
                scheduler.forget(instance)
            case Sent(now, request_id, shares):
                scheduler.send(request_id, shares, now)
            case Decided():
                decisions += 1
                again = decide(one, scheduler)
                if again != (one.prefill, one.decode, one.refused):
                    wrong.append(Disagreement(one, again))
    return Agreement(decisions, tuple(wrong))


def decide(asked: Decided, scheduler: Scheduler) -> tuple[str, str, str]:
    """Prefill, decode and the code of the refusal."""
    try:
        placement = scheduler.place(asked.summary, asked.now)
    except TandemError as error:
        return "", "", error.code
    return placement.prefill, placement.decode, ""
