"""Everything of a request that travels with it, in one versioned schema for start, handoff and migration.

A movement carries the blocks of all choices as one list, so that what they share travels once: a
choice's `blocks` are indices into that list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.request import Request
from engine.sequence import START, Epoch, Phase, Tier
from engine.sequence import Sequence as LiveSequence

OLDEST, VERSION = 1, 3
"""Versions of the schema that are read here; the newest is written, unless the peer speaks an older one.

2 adds where a choice is in a queue with levels: `level`, `served`; 3 adds the grammar of a request.
"""

_GRAMMARS = 3


def needed(request: Request) -> int:
    """The oldest version that can say all of a request: who knows only older ones would change its tokens."""
    return _GRAMMARS if request.sampling.grammar else OLDEST


@dataclass(frozen=True, slots=True)
class ChoiceState:
    """One live choice. `phase` is the one that it goes on in, never PAUSED or FINISHED. The rest is as in
    `Sequence`."""

    choice: int
    output: tuple[int, ...] = ()
    computed: int = 0
    phase: Phase = Phase.WAITING
    tier: Tier = Tier.DEVICE
    blocks: tuple[int, ...] = ()
    cached: int = 0
    preemptions: int = 0
    level: int | None = None
    served: float = 0.0


@dataclass(frozen=True, slots=True)
class RequestState:
    """A request and its live choices; none: it has not begun. `home` is the gateway that listens.

    `undrawn` are the choices without a token: a choice without output stands for all of them.
    """

    request: Request
    epoch: Epoch = START
    home: str = ""
    choices: tuple[ChoiceState, ...] = ()
    undrawn: tuple[int, ...] = ()
    version: int = VERSION

    @property
    def lengths(self) -> dict[int, int]:
        """Output tokens of each choice."""
        return dict.fromkeys(self.undrawn, 0) | {one.choice: len(one.output) for one in self.choices}


def resumed(sequence: LiveSequence) -> Phase:
    """The phase in which a sequence goes on after a movement."""
    if sequence.phase is not Phase.PAUSED:
        return sequence.phase
    if sequence.output and sequence.remaining == 1:
        return Phase.DECODE
    return Phase.PREFILL if sequence.computed else Phase.WAITING


def capture(
    sequences: Sequence[LiveSequence],
    index: Mapping[int, int] | None = None,
    undrawn: tuple[int, ...] = (),
    version: int = VERSION,
) -> RequestState:
    """The state of all live choices of one request, at least one.

    `index` maps a block here to its place in the session's list; without it no blocks travel.
    """
    first = sequences[0]
    return RequestState(
        request=first.request,
        epoch=first.epoch,
        home=first.home,
        choices=tuple(
            ChoiceState(
                choice=sequence.choice,
                output=tuple(sequence.output),
                computed=sequence.computed if index is not None else 0,
                phase=resumed(sequence) if index is not None else Phase.WAITING,
                tier=sequence.tier,
                blocks=() if index is None else tuple(index[block] for block in sequence.blocks),
                cached=sequence.cached,
                preemptions=sequence.preemptions,
                level=sequence.level,
                served=sequence.served,
            )
            for sequence in sequences
        ),
        undrawn=undrawn,
        version=version,
    )


def restore(
    state: RequestState, blocks: Sequence[int] = (), epoch: Epoch | None = None
) -> list[LiveSequence]:
    """The sequences of a state. `blocks` are the session's, here; `epoch` replaces the one that travelled.

    Raises IndexError if a choice names a block that the session does not have.
    """
    return [
        LiveSequence(
            request=state.request,
            choice=choice.choice,
            output=list(choice.output),
            computed=choice.computed,
            phase=choice.phase,
            tier=choice.tier,
            blocks=[blocks[index] for index in choice.blocks],
            epoch=state.epoch if epoch is None else epoch,
            home=state.home,
            cached=choice.cached,
            preemptions=choice.preemptions,
            level=choice.level,
            served=choice.served,
        )
        for choice in state.choices
    ]
