"""A server under test: what it calls its model, how it takes prompts, and requests that no cache has seen."""

from __future__ import annotations

import secrets
import ssl
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx

from cluster.bench.http_client import Endpoint, post
from cluster.bench.recording import Outcome, Recording, read
from cluster.bench.words import WORDS
from engine.errors import InvalidKey, ModelNotFound, TandemError, Unreachable
from simulator.workload.arrivals import PREFIX_BLOCK, Arrival

TIMEOUT = 30.0
"""Seconds that questions about the server itself may take."""

WARM_UP = 600.0
"""Seconds that the first completion may take: some servers compile then."""


@dataclass(slots=True)
class Target:
    """One server. `pool` holds token ids of plain words, None if it takes prompts as text only.

    `pids` are the roots of its process trees on this machine, for its memory.
    """

    name: str
    endpoint: Endpoint
    model: str
    pool: tuple[int, ...] | None = None
    extras: bool = True
    pids: tuple[int, ...] = ()
    _shared: dict[int, list[int]] = field(default_factory=dict)

    @property
    def prompts(self) -> str:
        """What kind of prompts it gets: tokens counted exactly, or words counted by the server's usage."""
        return "words" if self.pool is None else "tokens"

    def body(self, arrival: Arrival, rng: Random) -> dict[str, Any]:
        """A greedy completion of the wanted lengths, whose prompt no other request has."""
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": self._prompt(arrival, rng),
            "max_tokens": arrival.output_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if arrival.tenant:
            body["user"] = arrival.tenant
        if self.extras:
            # Fields of vLLM and tandem that keep an answer from ending early, and llama.cpp's of its cache.
            body |= {
                "ignore_eos": True,
                "min_tokens": arrival.output_tokens,
                "cache_prompt": bool(arrival.prefix),
            }
        return body

    def _prompt(self, arrival: Arrival, rng: Random) -> list[int] | str:
        if self.pool is None:
            return " ".join(rng.choice(WORDS) for _ in range(arrival.prompt_tokens))
        tokens: list[int] = []
        for block in arrival.prefix:
            tokens += self._block(block)
        tokens = tokens[: arrival.prompt_tokens]
        return tokens + rng.choices(self.pool, k=arrival.prompt_tokens - len(tokens))

    def _block(self, number: int) -> list[int]:
        """The tokens that a trace's content id stands for, the same wherever it appears in this process."""
        assert self.pool is not None
        if number not in self._shared:
            self._shared[number] = Random(f"{_PROCESS} {number}").choices(self.pool, k=PREFIX_BLOCK)
        return self._shared[number]

    async def ask(self, message: bytes, *, within: float) -> Recording:
        return await post(self.endpoint, message, within=within)


_PROCESS = secrets.token_hex(8)
"""Makes every run's prompts its own, so that no server finds those of an earlier one in its cache."""


def fresh() -> Random:
    """A generator for prompts, unlike any before: content is never repeated, lengths and arrivals are."""
    return Random(secrets.randbits(128))


async def connect(
    name: str,
    url: str,
    *,
    api_key: str | None = None,
    model: str | None = None,
    extras: bool = True,
    pids: tuple[int, ...] = (),
    verify: ssl.SSLContext | None = None,
) -> Target:
    """Ask a server for its model and its tokenizer, and for one short answer that warms it up.

    Raises Unreachable, InvalidKey, ModelNotFound or TandemError with what the server said.
    """
    endpoint = Endpoint(url, api_key=api_key, verify=verify)
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    async with httpx.AsyncClient(
        base_url=endpoint.url,
        headers=headers,
        timeout=TIMEOUT,
        trust_env=False,
        verify=endpoint.tls or True,
    ) as http:
        target = Target(name, endpoint, model or await _model(http, endpoint.url), extras=extras, pids=pids)
        target.pool = await _pool(http, target.model)
    warm = await _warm_up(target)
    if target.pool is not None and not warm.ok:
        target.pool = None
        warm = await _warm_up(target)
    if not warm.ok:
        raise TandemError(f"{endpoint.url} does not answer a completion: {warm.failure}")
    return target


async def _model(http: httpx.AsyncClient, url: str) -> str:
    try:
        response = await http.get("/v1/models")
    except httpx.HTTPError as error:
        raise Unreachable(f"{url} does not answer: {str(error) or type(error).__name__}") from None
    if response.status_code == 401:
        raise InvalidKey(f"{url} wants a key: pass --api-key")
    try:
        models = response.json()["data"]
        return str(models[0]["id"])
    except (ValueError, KeyError, IndexError, TypeError):
        raise ModelNotFound(f"{url} lists no model ({response.status_code}): pass --model") from None


async def _pool(http: httpx.AsyncClient, model: str) -> tuple[int, ...] | None:
    """Ids of words where the server has /tokenize, as vLLM and tandem ask it, or as llama.cpp does."""
    text = " " + " ".join(WORDS)
    for body in ({"model": model, "prompt": text, "add_special_tokens": False}, {"content": text}):
        try:
            response = await http.post("/tokenize", json=body)
            tokens = response.json()["tokens"]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            continue
        if isinstance(tokens, list) and len(tokens) >= len(WORDS) and all(type(one) is int for one in tokens):
            return tuple(dict.fromkeys(tokens))
    return None


async def _warm_up(target: Target) -> Outcome:
    arrival = Arrival(0.0, 32, 8)
    message = target.endpoint.message("/v1/completions", target.body(arrival, fresh()))
    recording = await target.ask(message, within=WARM_UP)
    return read(recording, prompt_tokens=32, asked_tokens=8)
