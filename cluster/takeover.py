"""A client that comes back through another gateway: what instances still have of its request.

    an instance ── choices that run (it drops them), choices that have ended ─┐
    another     ── …                                                         ─┴▶ Taken, for each prompt

An instance draws faster than a client reads: much of what died with a gateway has ended where it was drawn.
So an ended choice is kept there for a while, and nothing has to be computed again.
"""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from cluster import control_pb2 as pb
from cluster.stream_order import Piece

MOST_TOKENS = 1_000_000
"""Tokens of ended choices that an instance keeps, of four bytes each; the oldest choices go first."""

UNKEPT = ("", "cancelled", "failed")
"""Reasons that end no choice, or not so that a client could have it."""


def named(name: str, digest: bytes, number: int) -> str:
    """The id of prompt `number` of what a client asks by a name: none has been the same before.

    Late tokens of one must not pass for those of another with the same name, and only the same question
    (`digest`) is answered with what there is of an earlier one.
    """
    return f"{name}~{digest.hex()[:16]}{uuid.uuid4().hex[:8]}-{number}"


def same_question(request_id: str, name: str, digest: str) -> bool:
    """Whether a request is one that a client asked by that name; `digest` as hexadecimal, "" for any."""
    given, _, life = request_id.rpartition("~")
    return given == name and life.startswith(digest[:16])


class Endings:
    """The choices that have ended at an instance: kept for `lease` seconds. For one thread."""

    def __init__(self, lease: float, *, most: int = MOST_TOKENS, clock: Callable[[], float] = time.monotonic):
        self._lease = lease
        self._most = most
        self._clock = clock
        self._tokens = 0
        self._kept: OrderedDict[tuple[str, int], tuple[float, pb.ChoiceTokens]] = OrderedDict()

    def keep(self, end: pb.Tokens, output: Sequence[int]) -> None:
        """Note a message if it ends a choice; `output` has the choice's tokens, its last may be missing."""
        if end.finish_reason in UNKEPT:
            return
        key = end.request_id, end.choice
        self._drop(key)
        choice = pb.ChoiceTokens(choice=end.choice, tokens=output[: end.index], end=end)
        self._kept[key] = self._clock() + self._lease, choice
        self._tokens += len(choice.tokens)
        self._forget()

    def find(self, name: str, digest: str) -> dict[str, list[pb.ChoiceTokens]]:
        """By request, of all that a client asked by that name."""
        self._forget()
        found: dict[str, list[pb.ChoiceTokens]] = {}
        for (request_id, _), (_, choice) in self._kept.items():
            if same_question(request_id, name, digest):
                found.setdefault(request_id, []).append(choice)
        return found

    def _forget(self) -> None:
        now = self._clock()
        while self._kept:
            key, (until, _) = next(iter(self._kept.items()))
            if until > now and self._tokens <= self._most:
                break
            self._drop(key)

    def _drop(self, key: tuple[str, int]) -> None:
        if key in self._kept:
            self._tokens -= len(self._kept.pop(key)[1].tokens)


def taken_message(
    instance: str,
    running: Mapping[str, Mapping[int, Sequence[int]]],
    ended: Mapping[str, Sequence[pb.ChoiceTokens]],
) -> pb.TakenRequests:
    """What an instance had: the tokens of choices that ran, by request and choice, and the ended ones."""
    message = pb.TakenRequests()
    for request_id in {**running, **ended}:
        choices = [
            pb.ChoiceTokens(choice=choice, tokens=tokens)
            for choice, tokens in running.get(request_id, {}).items()
        ]
        message.requests.add(id=request_id, instance=instance, choices=[*choices, *ended.get(request_id, ())])
    return message


@dataclass(frozen=True, slots=True)
class Taken:
    """What there is of a request: tokens by choice, without those of its end where a choice has `ends`.

    `instance` has what runs of it.
    """

    instance: str
    outputs: Mapping[int, tuple[int, ...]]
    ends: Mapping[int, pb.Tokens]


@dataclass(frozen=True, slots=True)
class Before:
    """The same with its text, for who reads from the beginning: every choice has some."""

    taken: Taken
    pieces: Sequence[Piece]


def gathered(messages: Iterable[pb.TakenRequests]) -> dict[int, Taken]:
    """What several instances had, together; by number of the prompt."""
    parts: dict[int, list[pb.TakenRequest]] = {}
    for message in messages:
        for one in message.requests:
            parts.setdefault(int(one.id.rpartition("-")[2]), []).append(one)
    return {number: _together(found) for number, found in parts.items()}


def _together(parts: Sequence[pb.TakenRequest]) -> Taken:
    ended = {each.choice: each for one in parts for each in one.choices if each.HasField("end")}

    def running(one: pb.TakenRequest) -> dict[int, tuple[int, ...]]:
        return {each.choice: tuple(each.tokens) for each in one.choices if each.choice not in ended}

    # A movement that was cut off may have left two; the further one is as good and better.
    furthest = max(parts, key=lambda one: sum(map(len, running(one).values())))
    outputs = running(furthest) | {choice: tuple(each.tokens) for choice, each in ended.items()}
    return Taken(furthest.instance, outputs, {choice: each.end for choice, each in ended.items()})
