"""Measures how long a stream pauses when its request moves: live, copied as it stands still, or recomputed.

Two engines in this process, with a KV cache each and a transport between them. The pause is the time from the
last token at the source to the first at the destination, whatever happens between the two. Prompts are handed
over beside it: see handoff.py.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from random import Random
from statistics import median

from cluster.bench.ends import PATIENCE, End, Stopwatch
from cluster.bench.handoff import HANDED, Handoff, hand_over
from cluster.bench.load import Advance
from cluster.bench.machine import Machine
from cluster.bench.statistics import Spread, Value
from cluster.config import Config
from cluster.instance import engine_core, load_runner
from cluster.policies import role_policy
from decode_pool.instance import DecodeInstance
from engine.core import EngineCore
from engine.errors import TandemError
from engine.request import Request, Sampling
from engine.sequence import START, Epoch
from engine.sequence import Sequence as LiveSequence
from migration.events import Bounds
from migration.moved import Moved

LIVE, STANDING, RECOMPUTED = "live", "stop and copy", "recompute"
WAYS = (LIVE, STANDING, RECOMPUTED)
TOKENS = 12
"""Decoded at each end; the gaps between those at the source are its steps."""

MOST = 512
"""Tokens that a request may draw; it is cancelled long before."""

EVERYTHING = Bounds(last_blocks=1 << 20)
"""Bounds under which the last copy, for which the request stands still, is the only one."""


class Pause(Value):
    """How long streams of `context` tokens paused, and a decode step beside it; seconds. `sent` in bytes."""

    way: str
    context: int
    pause: Spread
    step: float
    stages: int
    sent: int


class MigrationReport(Value):
    """The item of `tandem bench migration -o json`."""

    command: str
    machine: Machine
    settings: dict[str, str]
    pauses: tuple[Pause, ...]
    handoff: Handoff | None = None


class Bench:
    """Moves requests from one engine to the other. `tokens` are what prompts are made of."""

    def __init__(self, ends: tuple[End, End], watch: Stopwatch, forced: str, tokens: int) -> None:
        self.source, self.destination = ends
        self._watch = watch
        self._random = Random(7)
        self._tokens = tokens
        secret = secrets.token_bytes(16)
        self._address = self.destination.listen(secret).address
        self._senders = {
            LIVE: self.source.send(secret, forced, Bounds(moves=1, tokens=1 << 30, pause=1e-9)),
            STANDING: self.source.send(secret, forced, EVERYTHING),
        }

    def close(self) -> None:
        self.source.close()
        self.destination.close()

    def pause(self, way: str, context: int) -> tuple[float, float, Moved | None]:
        """Of one request: the pause, its decode step at the source, and what its move says of itself."""
        request = self._begin(context)
        moved = None
        if way == RECOMPUTED:
            self._recompute(request)
        else:
            moved = self._senders[way].move(request.id, self._address, "a benchmark").result(PATIENCE)
            if not moved.committed:
                raise TandemError(f"a request did not move: {moved.outcome}")
        self._watch.wait(request.id, self.destination.name, TOKENS)
        self.destination.loop.call(lambda core: core.cancel(request.id)).result(PATIENCE)
        heard = self._watch.tokens.pop(request.id)
        here = [at for at, name, _ in heard if name == self.source.name]
        there = [at for at, name, _ in heard if name == self.destination.name]
        return there[0] - here[-1], median(b - a for a, b in pairwise(here[1:])), moved

    def hand_over(self, prompt: int, pairs: int, advance: Advance) -> Handoff:
        """Prompts of so many tokens, read at the source and handed over, beside those that stay there."""

        def ask() -> Request:
            tokens = tuple(self._random.randrange(100, self._tokens) for _ in range(prompt))
            sampling = Sampling(max_tokens=HANDED, temperature=0.0, ignore_eos=True)
            return Request(secrets.token_hex(8), tokens, sampling)

        sender = self._senders[LIVE]
        return hand_over(
            self.source, self.destination, sender, self._address, self._watch, ask, pairs, advance
        )

    def _begin(self, context: int) -> Request:
        """A request that decodes at the source, with `context` tokens behind it."""
        prompt = tuple(self._random.randrange(100, self._tokens) for _ in range(context - TOKENS))
        sampling = Sampling(max_tokens=MOST, temperature=0.0, ignore_eos=True)
        request = Request(secrets.token_hex(8), prompt, sampling)
        self.source.loop.call(lambda core: core.submit(request)).result(PATIENCE)
        self._watch.wait(request.id, self.source.name, TOKENS)
        return request

    def _recompute(self, request: Request) -> None:
        """As if the source had died: from the prompt and the tokens so far."""

        def take(core: EngineCore) -> list[int]:
            (sequence,) = core.sequences(request.id)
            core.cancel(request.id)
            return list(sequence.output)

        output = self.source.loop.call(take).result(PATIENCE)
        choices = [LiveSequence(request, 0, output)]
        again = Epoch(START.attempt + 1)
        self.destination.loop.call(lambda core: core.submit(request, choices=choices, epoch=again)).result(
            PATIENCE
        )


@contextmanager
def bench(config: Config, threads: int, forced: str) -> Iterator[Bench]:
    """Loads the model twice; blocks for seconds. Raises SetupError."""
    watch = Stopwatch()
    ends: list[End] = []
    for name in ("source", "destination"):
        runner, _ = load_runner(config, threads)
        core = engine_core(config, role_policy(config.engine, DecodeInstance.role), runner)
        ends.append(End(name, core, runner, watch))
    found = Bench((ends[0], ends[1]), watch, forced, runner.config.vocab_size)
    try:
        yield found
    finally:
        found.close()


def measure(
    config: Config,
    threads: int,
    contexts: Sequence[int],
    repetitions: int,
    handed: int = 0,
    pairs: int = 1,
    *,
    begin: Callable[[str], Advance],
    say: Callable[[str], None],
) -> MigrationReport:
    """Every way at every context, in turn, so that what disturbs the machine disturbs all alike.

    So many pairs of prompts of `handed` tokens are handed over and stay, too; 0: none are.
    """
    forced = config.transfer.transport
    begin("loading the model, twice")
    found: dict[tuple[str, int], list[tuple[float, float, Moved | None]]] = {}
    points = [(way, context) for context in contexts for way in WAYS]
    with bench(config, threads, forced) as both:
        for way in WAYS:
            both.pause(way, min(contexts))
        advance = begin("moving")
        for repetition in range(repetitions):
            for number, (way, context) in enumerate(points):
                found.setdefault((way, context), []).append(both.pause(way, context))
                advance(repetition * len(points) + number + 1, repetitions * len(points))
        handoff = both.hand_over(handed, pairs, begin("handing over")) if handed else None
    pauses = tuple(_point(way, context, found[way, context]) for way, context in points)
    for one in pauses:
        say(f"{one.way} · {one.context} tokens · {one.pause.median * 1e3:.1f} ms")
    if handoff is not None:
        say(f"handoff · {handed} tokens · {handoff.cost.median:+.1%} of TTFT")
    return MigrationReport(
        command="migration",
        machine=Machine.here(),
        settings={"transport": forced, "threads": str(threads), "dtype": config.model.dtype},
        pauses=pauses,
        handoff=handoff,
    )


def _point(way: str, context: int, rounds: Sequence[tuple[float, float, Moved | None]]) -> Pause:
    moves = [moved for _, _, moved in rounds if moved is not None]
    return Pause(
        way=way,
        context=context,
        pause=Spread.of([pause for pause, _, _ in rounds]),
        step=median(step for _, step, _ in rounds),
        stages=max((moved.stages for moved in moves), default=0),
        sent=max((moved.bytes for moved in moves), default=0),
    )
