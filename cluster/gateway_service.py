"""What the gateway's routes do: admit a request, turn it into runs, and know how the cluster is."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster.cluster_facts import ClusterFacts
from cluster.config import GatewayConfig
from cluster.job import Job
from cluster.metrics import Metrics
from cluster.openai import ChatBody, CompletionBody, DetokenizeBody, SamplingBody, TokenizeBody
from cluster.request_driver import RequestDriver, Run
from engine.errors import ContextLengthExceeded, InvalidParameter, ModelNotFound, TandemError
from engine.request import Request, Sampling

LONG_TEXT = 4096
"""Characters from which a text is tokenised in a thread: below, the change of threads costs more."""

LATELY = 10.0
"""Seconds within which a token proves that instances are alive."""


class Tokenizer(Protocol):
    """What the gateway asks of the model's tokenizer."""

    @property
    def vocabulary(self) -> int: ...

    def encode(self, text: str, *, special: bool = True) -> list[int]: ...

    def decode(self, tokens: Sequence[int]) -> str: ...

    def token_bytes(self, token: int) -> bytes: ...

    def chat(self, messages: Sequence[dict[str, str]]) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The model as clients see it. `max_length` is in tokens, prompt and answer together."""

    name: str
    max_length: int
    created: int
    digest: str = ""

    def body(self) -> dict[str, object]:
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "tandem",
            "root": self.name,
            "parent": None,
            "max_model_len": self.max_length,
        }


class GatewayService:
    """Everything behind the routes. One per gateway, in one event loop."""

    def __init__(
        self,
        *,
        model: ModelCard,
        tokenizer: Tokenizer,
        driver: RequestDriver,
        facts: ClusterFacts,
        metrics: Metrics,
        config: GatewayConfig,
        version: str,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.driver = driver
        self.facts = facts
        self.metrics = metrics
        self.config = config
        self.version = version
        self.draining = False

    def check_model(self, name: str | None) -> None:
        """Raises ModelNotFound for any model but the one that is served."""
        if name is not None and name != self.model.name:
            raise ModelNotFound(
                f"the model '{name[:200]}' does not exist; this server has '{self.model.name}'", param="model"
            )

    async def begin(self, body: CompletionBody | ChatBody, request_id: str, timeout: float | None) -> Job:
        """Admit a request. `timeout` is the client's own limit in seconds.

        Raises RequestErrors for what cannot be done and Conflict for an id that is in use.
        """
        self.check_model(body.model)
        self._check_tokens(body)
        prompts = await self._prompts(body)
        echo = ["" for _ in prompts]
        if isinstance(body, CompletionBody) and body.echo:
            echo = [
                given if isinstance(given, str) else self.tokenizer.decode(given) for given in body.prompt
            ]
        if not self.facts.fresh:
            await self.facts.refresh()
        requests = [
            Request(
                id=request_id if len(prompts) == 1 else f"{request_id}-{number}",
                prompt=tuple(prompt),
                sampling=self._sampling(body, len(prompt), request_id),
                arrival=time.time(),
                tenant=body.user or "",
                priority=body.priority or 0,
            )
            for number, prompt in enumerate(prompts)
        ]
        limit = min(self.config.stream_timeout, timeout or self.config.stream_timeout)
        return self._run(requests, echo, time.monotonic() + limit)

    async def tokenize(self, body: TokenizeBody) -> list[int]:
        self.check_model(body.model)
        if body.messages is not None:
            messages = [message.plain(f"messages.{number}") for number, message in enumerate(body.messages)]
            return await self._off_loop(
                sum(len(message["content"]) for message in messages), lambda: self.tokenizer.chat(messages)
            )
        text = body.prompt or ""
        special = body.add_special_tokens is not False
        return await self._off_loop(len(text), lambda: self.tokenizer.encode(text, special=special))

    def detokenize(self, body: DetokenizeBody) -> str:
        self.check_model(body.model)
        self._in_vocabulary("tokens", body.tokens)
        return self.tokenizer.decode(body.tokens)

    async def healthy(self) -> bool:
        """Whether instances work: one drew a token lately, or the controller hears from one."""
        if time.monotonic() - self.driver.last_token < LATELY:
            return True
        await self.facts.refresh()
        return self.facts.alive

    async def ready(self) -> bool:
        """Whether requests are welcome: both pools have an instance, and the gateway stays."""
        if self.draining:
            return False
        status = await self.facts.refresh()
        return self.facts.fresh and status.ready

    def _run(self, requests: list[Request], echo: list[str], deadline: float) -> Job:
        changed = asyncio.Event()
        runs: list[Run] = []
        try:
            for request in requests:
                runs.append(self.driver.run(request, changed))
        except TandemError:
            for run in runs:
                run.close()
            raise
        return Job(runs, changed, echo, deadline, self.metrics.finished)

    def _check_tokens(self, body: SamplingBody) -> None:
        """Raises InvalidParameter for ids that the vocabulary does not have."""
        given: dict[str, Sequence[int]] = {
            "stop_token_ids": body.stop_token_ids or (),
            "logit_bias": [token for token, _ in body.logit_bias or ()],
        }
        if isinstance(body, CompletionBody):
            given["prompt"] = [
                token for prompt in body.prompt if isinstance(prompt, list) for token in prompt
            ]
        for param, tokens in given.items():
            self._in_vocabulary(param, tokens)

    def _in_vocabulary(self, param: str, tokens: Sequence[int]) -> None:
        size = self.tokenizer.vocabulary
        if tokens and max(tokens) >= size:
            raise InvalidParameter(
                f"'{param}' has the token {max(tokens)}; the vocabulary ends at {size - 1}", param=param
            )

    async def _prompts(self, body: CompletionBody | ChatBody) -> list[list[int]]:
        """The token ids of every prompt; raises InvalidParameter for one without any."""
        if isinstance(body, ChatBody):
            messages = body.conversation()
            size = sum(len(message["content"]) for message in messages)
            return [await self._off_loop(size, lambda: self.tokenizer.chat(messages))]
        prompts = []
        for given in body.prompt:
            if isinstance(given, str):
                prompts.append(
                    await self._off_loop(len(given), lambda given=given: self.tokenizer.encode(given))
                )
            else:
                prompts.append(given)
        if not all(prompts):
            raise InvalidParameter("'prompt' is empty: it needs at least one token", param="prompt")
        return prompts

    def _sampling(self, body: SamplingBody, prompt: int, request_id: str) -> Sampling:
        """Raises ContextLengthExceeded for what does not fit the context or the KV cache."""
        seed = int.from_bytes(hashlib.sha256(request_id.encode()).digest()[:8], "big")
        room = self.model.max_length - prompt
        if room < 1:
            raise ContextLengthExceeded(
                f"the prompt has {prompt} tokens and the context ends at {self.model.max_length}: "
                f"shorten it to {self.model.max_length - 1} or fewer",
                param=body.subject,
            )
        fitting = self._fitting(prompt, body.n or 1)
        wanted = body.limit
        if wanted is not None and wanted > room:
            raise ContextLengthExceeded(
                f"{prompt} prompt tokens and {wanted} output tokens are more than the context of "
                f"{self.model.max_length}: shorten the prompt or lower max_tokens",
                param=body.subject,
            )
        if fitting < 1 or (wanted is not None and wanted > fitting):
            raise ContextLengthExceeded(
                f"{prompt} prompt tokens and {body.n or 1} × {wanted or 1} output tokens never fit the KV cache of an "
                "instance: shorten the prompt, or lower n or max_tokens",
                param=body.subject if fitting < 1 else "max_tokens",
            )
        return body.sampling(wanted if wanted is not None else min(room, fitting), seed)

    def _fitting(self, prompt: int, n: int) -> int:
        """Output tokens per choice for which an instance has blocks; the context's end where that is not known.

        Choices share the full blocks of the prompt; a choice's last token is drawn but never stored.
        """
        known = self.facts.kv_blocks
        if known is None:
            return self.model.max_length
        blocks, size = known
        shared = prompt // size
        return (shared + (blocks - shared) // n) * size + 1 - prompt

    @staticmethod
    async def _off_loop(characters: int, work: Callable[[], list[int]]) -> list[int]:
        return work() if characters < LONG_TEXT else await asyncio.to_thread(work)
