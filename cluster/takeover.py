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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cluster import control_pb2 as pb
from cluster.stream_order import Piece
from engine.core import EngineCore
from engine.plan import Drawn
from engine.sequence import Epoch
from migration.wire import epoch_to_wire

MOST_WORDS = 2_000_000
"""Four bytes each, as a token has, that an instance keeps of ended choices; the oldest go first."""

SCORE_WORDS = 20
"""What a token with its log-probability takes, roughly."""

CHOICE_WORDS = 64
"""What a choice takes beside its tokens, roughly."""

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
    given, body = _question(request_id)
    return given == name and body.startswith(digest[:16])


def _question(request_id: str) -> tuple[str, str]:
    name, _, life = request_id.rpartition("~")
    return name, life[:16]


class Endings:
    """The choices that have ended at an instance: kept for `lease` seconds. For one thread."""

    def __init__(
        self, lease: float, *, most: int = MOST_WORDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lease = lease
        self._most = most
        self._clock = clock
        self._words = 0
        self._kept: OrderedDict[_Key, tuple[float, int, pb.ChoiceTokens, tuple[Drawn, ...]]] = OrderedDict()
        self._asked: dict[tuple[str, str], dict[_Key, None]] = {}

    def keep(self, end: pb.Tokens, output: Sequence[int], scores: Iterable[tuple[int, Drawn]] = ()) -> None:
        """Note a message if it ends a choice; `output` has the choice's tokens, its last may be missing, and
        `scores` what was reported of the last of them, by index."""
        if end.finish_reason in UNKEPT:
            return
        key = end.request_id, end.choice
        self._drop(key)
        known = tuple(one for index, one in list(scores) if index < end.index)
        choice = pb.ChoiceTokens(choice=end.choice, tokens=output[: end.index], end=end, epoch=end.epoch)
        words = CHOICE_WORDS + end.index + end.ByteSize() // 4
        words += sum(SCORE_WORDS * (1 + len(one.top)) for one in known)
        self._kept[key] = self._clock() + self._lease, words, choice, known
        self._asked.setdefault(_question(end.request_id), {})[key] = None
        self._words += words
        self._forget()

    def find(self, name: str, digest: str) -> dict[str, list[pb.ChoiceTokens]]:
        """By request, of all that a client asked by that name; nothing where the body is not known."""
        self._forget()
        found: dict[str, list[pb.ChoiceTokens]] = {}
        for key in self._asked.get((name, digest[:16]), ()):
            _, _, kept, known = self._kept[key]
            choice = pb.ChoiceTokens(logprobs=_logprobs(known))
            choice.MergeFrom(kept)
            found.setdefault(key[0], []).append(choice)
        return found

    def _forget(self) -> None:
        now = self._clock()
        while self._kept:
            key, (until, *_) = next(iter(self._kept.items()))
            if until > now and self._words <= self._most:
                break
            self._drop(key)

    def _drop(self, key: _Key) -> None:
        if key not in self._kept:
            return
        self._words -= self._kept.pop(key)[1]
        question = _question(key[0])
        del self._asked[question][key]
        if not self._asked[question]:
            del self._asked[question]


_Key = tuple[str, int]

Tell = Callable[[str, str, Epoch], None]
"""Told a request that leaves its home, the home and the epoch."""


def running(core: EngineCore, name: str, digest: str, tell: Tell) -> dict[str, list[pb.ChoiceTokens]]:
    """By request, the choices so far that run of a client's question; their homes are told so."""
    found = {}
    for one in core.requests(time.time()):
        if same_question(one.request_id, name, digest):
            choices = core.sequences(one.request_id)
            tell(one.request_id, choices[0].home, choices[0].epoch)
            found[one.request_id] = [
                pb.ChoiceTokens(
                    choice=each.choice,
                    tokens=each.output,
                    epoch=epoch_to_wire(each.epoch),
                    logprobs=_logprobs([one for _, one in each.scores]),
                )
                for each in choices
            ]
    return found


def _logprobs(scores: Sequence[Drawn]) -> list[pb.Logprob]:
    found = []
    for one in scores:
        top = [pb.TopLogprob(token=token, logprob=logprob) for token, logprob in one.top]
        found.append(pb.Logprob(logprob=one.logprob or 0.0, top=top))
    return found


def taken_message(
    instance: str,
    running: Mapping[str, Sequence[pb.ChoiceTokens]],
    ended: Mapping[str, Sequence[pb.ChoiceTokens]],
) -> pb.TakenRequests:
    """What an instance had: by request the choices that ran, and those that have ended."""
    message = pb.TakenRequests()
    for request_id in {**running, **ended}:
        choices = [*running.get(request_id, ()), *ended.get(request_id, ())]
        message.requests.add(id=request_id, instance=instance, choices=choices)
    return message


@dataclass(frozen=True, slots=True)
class Taken:
    """What there is of a request: tokens by choice, without those of its end where a choice has `ends`.

    `instance` has what runs of it. `logprobs` are those of the last of a choice's tokens.
    """

    instance: str
    outputs: Mapping[int, tuple[int, ...]]
    ends: Mapping[int, pb.Tokens]
    logprobs: Mapping[int, tuple[pb.Logprob, ...]] = field(default_factory=dict)

    def pieces(self, choice: int, texts: Iterable[str]) -> Iterator[Piece]:
        """The tokens of a choice with these texts, and what is known of their log-probabilities."""
        tokens, known = self.outputs.get(choice, ()), self.logprobs.get(choice, ())
        first = len(tokens) - len(known)
        for index, (token, text) in enumerate(zip(tokens, texts, strict=True)):
            if index < first:
                yield Piece(choice, index, token, text)
                continue
            found = known[index - first]
            top = tuple((one.token, one.logprob) for one in found.top)
            yield Piece(choice, index, token, text, found.logprob, top)

    def scored(self, choice: int) -> int:
        """From which of a choice's tokens on their log-probabilities are known."""
        return len(self.outputs.get(choice, ())) - len(self.logprobs.get(choice, ()))

    @property
    def length(self) -> int:
        """Tokens of all choices."""
        return sum(map(len, self.outputs.values()))


@dataclass(frozen=True, slots=True)
class Before:
    """The same with its text, for who reads from the beginning: every choice has some."""

    taken: Taken
    pieces: Sequence[Piece]

    @property
    def tokens(self) -> int:
        """How many have been charged elsewhere."""
        return sum(piece.token is not None for piece in self.pieces)


def gathered(messages: Iterable[pb.TakenRequests]) -> dict[int, Taken]:
    """What several instances had, together; by number of the prompt."""
    lives: dict[int, dict[str, list[pb.TakenRequest]]] = {}
    for message in messages:
        for one in message.requests:
            lives.setdefault(int(one.id.rpartition("-")[2]), {}).setdefault(one.id, []).append(one)
    return {
        number: _one_of([_together(parts) for parts in found.values()]) for number, found in lives.items()
    }


def _together(parts: Sequence[pb.TakenRequest]) -> Taken:
    """One request: of each choice what the newest epoch has, and of the same one what is further."""
    best: dict[int, tuple[tuple[Epoch, bool, int], str, pb.ChoiceTokens]] = {}
    for one in parts:
        for each in one.choices:
            epoch = Epoch(each.epoch.attempt, each.epoch.move)
            rank = epoch, each.HasField("end"), len(each.tokens)
            if each.choice not in best or rank > best[each.choice][0]:
                best[each.choice] = rank, one.instance, each
    alive = [(rank, instance) for rank, instance, each in best.values() if not each.HasField("end")]
    return Taken(
        max(alive)[1] if alive else parts[0].instance,
        {choice: tuple(each.tokens) for choice, (_, _, each) in best.items()},
        {choice: each.end for choice, (_, _, each) in best.items() if each.HasField("end")},
        {choice: tuple(each.logprobs) for choice, (_, _, each) in best.items()},
    )


def _one_of(lives: Sequence[Taken]) -> Taken:
    """A question that was asked several times: the life that still runs, or has most, and what had ended.

    A life that went on with another one's tokens has none of the choices that had ended in that one.
    """
    first, *others = sorted(
        lives, key=lambda one: (len(one.outputs) > len(one.ends), one.length), reverse=True
    )
    outputs, ends, logprobs = dict(first.outputs), dict(first.ends), dict(first.logprobs)
    for other in others:
        for choice, end in other.ends.items():
            if choice not in outputs:
                outputs[choice], ends[choice] = other.outputs[choice], end
                logprobs[choice] = other.logprobs.get(choice, ())
    return Taken(first.instance, outputs, ends, logprobs)
