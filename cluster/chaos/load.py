"""The requests of a scenario, and how they are asked: a fixed number at a time."""

from __future__ import annotations

import asyncio
import math
import random
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx

from cluster.chaos.client import Answer, Ask, ask
from cluster.chaos.scenario import Load

WORDS = [
    "river",
    "stone",
    "garden",
    "window",
    "letter",
    "morning",
    "engine",
    "paper",
    "silver",
    "mountain",
    "bread",
    "clock",
    "island",
    "question",
    "winter",
    "bridge",
    "teacher",
    "forest",
    "market",
    "ocean",
    "lantern",
    "number",
    "story",
    "village",
    "color",
    "thunder",
    "music",
    "harbor",
]
STOPS = ["e", "\n\n"]
"""One that comes sooner or later in most texts, and one of which a part is held back at times."""

ALTERNATIVES = 3
PENALTIES = {"presence_penalty": 0.5, "frequency_penalty": 0.3}

PATIENCE = 120.0
"""Seconds that one request may take in all."""


@dataclass(frozen=True, slots=True)
class Access:
    """What clients show the gateways, and whose certificates they believe; None: the system's."""

    api_key: str | None = None
    trust: ssl.SSLContext | None = None

    def client(self, connections: int) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=connections)
        return httpx.AsyncClient(
            headers={"authorization": f"Bearer {self.api_key}"} if self.api_key else {},
            verify=self.trust or ssl.create_default_context(),
            trust_env=False,
            timeout=30,
            limits=limits,
        )


def requests(load: Load, model: str, prefix: str) -> list[Ask]:
    """The same requests for the same seed; `prefix` names them."""
    rng = random.Random(load.seed)
    some = {name: _some(load, name, rng) for name in ("sampled", "stops", "logprobs", "penalties")}
    asks = []
    for number in range(load.requests):
        words = rng.choices(WORDS, k=rng.randint(*load.prompt_words))
        length = rng.randint(*load.max_tokens)
        body = {
            "model": model,
            "prompt": f"{number}: {' '.join(words)}",
            "max_tokens": length,
            "n": rng.randint(*load.choices),
            "temperature": 1.0 if number in some["sampled"] else 0.0,
            "seed": rng.getrandbits(32),
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if number in some["stops"]:
            body |= {"stop": STOPS, "min_tokens": length // 2}
        if number in some["logprobs"]:
            body |= {"logprobs": ALTERNATIVES}
        if number in some["penalties"]:
            body |= PENALTIES
        asks.append(Ask(number, f"{prefix}-{number}", body))
    return asks


def _some(load: Load, name: str, rng: random.Random) -> frozenset[int]:
    """As many of the requests as the share of that name says, and at least one if it is not 0."""
    share: float = getattr(load, name)
    return frozenset(rng.sample(range(load.requests), math.ceil(share * load.requests)))


async def drive(
    load: Load,
    model: str,
    gateways: Callable[[], Sequence[str]],
    prefix: str,
    *,
    access: Access = Access(),
    reach: float = math.inf,
    all_whole: bool = False,
    more: Callable[[], bool] = lambda: False,
    done: Callable[[Answer], None] = lambda answer: None,
) -> list[Answer]:
    """Ask everything once, and again and again while `more` says so; tells of each answer.

    With `all_whole` no more is asked once an answer is not whole. `reach` is in seconds, as in `ask`.
    """
    answers: list[Answer] = []
    waiting = requests(load, model, f"{prefix}-0")
    rounds = 1

    def take() -> Ask | None:
        nonlocal waiting, rounds
        if all_whole and not all(answer.whole for answer in answers):
            return None
        if not waiting:
            if not more():
                return None
            waiting = requests(load, model, f"{prefix}-{rounds}")
            rounds += 1
        return waiting.pop(0)

    async with access.client(load.concurrency) as client:

        async def work() -> None:
            while (one := take()) is not None:
                answer = await ask(one, client, gateways, PATIENCE, reach)
                answers.append(answer)
                done(answer)

        await asyncio.gather(*(work() for _ in range(load.concurrency)))
    return answers
