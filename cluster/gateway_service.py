"""What the gateway's routes do: admit a request, turn it into runs, and know how the cluster is."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from cluster.access import Access
from cluster.arrival import traceparent
from cluster.cluster_facts import ClusterFacts
from cluster.config import GatewayConfig
from cluster.job import Job
from cluster.limits import Ticket
from cluster.metrics import Metrics
from cluster.openai import ChatBody, CompletionBody, DetokenizeBody, SamplingBody, TokenizeBody
from cluster.openai_answers import ModelCard
from cluster.openai_fields import is_text
from cluster.openai_tools import offered
from cluster.request_driver import RequestDriver, Run
from cluster.resume import Reconnection, Seen, check_shape
from cluster.stream_order import Piece, pieces
from cluster.stream_text import ChoiceText, Detokenizer
from cluster.structured import check
from cluster.takeover import Before, Taken, named
from engine.errors import (
    Conflict,
    ContextLengthExceeded,
    Draining,
    InvalidParameter,
    ModelNotFound,
    TandemError,
    UnsupportedParameter,
)
from engine.request import Request, Sampling
from model.grammar_matcher import Matchers, Vocabulary
from model.tokenizer import LONG_TEXT

MOST_CHOICES = 256
"""Choices of one HTTP request: prompts × n."""

MOST_KEPT = 256
"""Named requests under way whose tokens are kept, so that a repeated one can read them from the beginning."""

LATELY = 10.0
"""Seconds within which a token proves that instances are alive."""


def _attached(name: str, job: Job, asked: Reconnection) -> Job:
    """The job, for one more reader. Raises Conflict if it is of another body, or not kept."""
    if job.digest != asked.digest:
        raise Conflict(f"a request with the id {name} and another body is running; send another x-request-id")
    if not job.kept:
        raise Conflict(f"a request with the id {name} is running; send another x-request-id")
    return job


class Template(Protocol):
    """Writes a conversation as one prompt, special tokens by name."""

    def render(
        self, messages: Sequence[dict[str, Any]], *, tools: Sequence[dict[str, Any]] | None = None
    ) -> str: ...


class Tokenizer(Vocabulary, Protocol):
    """What the gateway asks of the model's tokenizer; may be called in threads."""

    @property
    def chat_template(self) -> Template | None: ...

    def decode(self, tokens: Sequence[int]) -> str: ...

    def least_tokens(self, text: str) -> int:
        """`encode` gives so many or more, which is known without tokenising."""


class GatewayService:
    """Everything behind the routes. One per gateway, in one event loop."""

    def __init__(
        self,
        *,
        model: ModelCard,
        tokenizer: Tokenizer,
        detokenizer: Callable[[Request], Detokenizer],
        driver: RequestDriver,
        facts: ClusterFacts,
        metrics: Metrics,
        config: GatewayConfig,
        version: str,
        access: Access | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.detokenizer = detokenizer
        self.driver = driver
        self.facts = facts
        self.metrics = metrics
        self.config = config
        self.version = version
        self.access = access or Access(config)
        self._matchers = Matchers(tokenizer)
        self.draining = False
        self._jobs: dict[str, Job] = {}

    @property
    def leaving(self) -> bool:
        """Whether this gateway, or the whole cluster, is about to end."""
        return self.draining or self.facts.status.draining

    def check_model(self, name: str | None) -> None:
        """Raises ModelNotFound for any model but the one that is served."""
        if name is not None and name != self.model.name:
            raise ModelNotFound(
                f"the model '{name[:200]}' does not exist; this server has '{self.model.name}'", param="model"
            )

    async def begin(
        self,
        body: CompletionBody | ChatBody,
        request_id: str,
        within: float | None,
        asked: Reconnection = Reconnection(),
        tenant: str = "",
    ) -> Job:
        """Admit a request, or find the one that a client comes back to; `within` is its own limit in seconds,
        `tenant` whose key it came with. Names of requests are each tenant's own.

        One that runs here under its name is read by one more. One that ran through another gateway is taken
        over where instances still have it, and else runs again: its tokens are the same. What instances have
        of it was let in before, so the tenant's limits refuse only what they have nothing of.

        Raises RequestErrors for what cannot be done, Conflict for an id that is in use, and RateLimited.
        """
        if tenant:
            request_id = f"{request_id}@{tenant}"
        running = self._jobs.get(request_id)
        if running is not None:
            return _attached(request_id, running, asked)
        if self.leaving:
            raise Draining("the cluster is about to end and takes no new requests")
        if not asked.again:
            self.access.limits.check(tenant)
        self.access.check_priority(tenant, body.priority or 0)
        self.check_model(body.model)
        self._check_tokens(body)
        if isinstance(body, CompletionBody) and len(body.prompt) * (body.n or 1) > MOST_CHOICES:
            raise InvalidParameter(f"at most {MOST_CHOICES} choices in all prompts together", param="n")
        if body.shape is not None:
            await asyncio.to_thread(check, body.shape, self._matchers)
        prompts = await self._prompts(body)
        echo = ["" for _ in prompts]
        if isinstance(body, CompletionBody) and body.echo:
            echo = [
                given if isinstance(given, str) else self.tokenizer.decode(given) for given in body.prompt
            ]
        if self.facts.kv_blocks is None:
            await self.facts.refresh()
        requests = [
            Request(
                id=named(request_id, asked.digest, number),
                prompt=tuple(prompt),
                sampling=self._sampling(body, len(prompt), f"{request_id}-{number}"),
                arrival=time.time(),
                tenant=tenant or body.user or "",
                priority=body.priority or 0,
                salt=tenant,
                trace=traceparent(),
            )
            for number, prompt in enumerate(prompts)
        ]
        limit = min(self.config.stream_timeout, within or self.config.stream_timeout)
        check_shape(asked.seen, len(requests) * (body.n or 1))
        taken: Mapping[int, Taken] = {}
        if asked.again:
            taken = await self.driver.take(request_id, asked.digest, self._holders())
        running = self._jobs.get(request_id)
        if running is not None:
            return _attached(request_id, running, asked)
        before = {
            number: self._before(request, taken.get(number), asked.seen_of(number, request.sampling.n))
            for number, request in enumerate(requests)
        }
        afresh = [len(requests[number].prompt) for number, known in before.items() if known is None]
        limits = self.access.limits
        ticket = limits.resume(tenant, sum(afresh)) if taken else limits.admit(tenant, sum(afresh))
        return self._run(request_id, requests, echo, time.monotonic() + limit, asked, before, ticket)

    async def tokenize(self, body: TokenizeBody) -> list[int]:
        """Token ids of a text, or of the prompt that a conversation becomes."""
        self.check_model(body.model)
        if body.messages is not None:
            turns = [message.plain(f"messages.{number}") for number, message in enumerate(body.messages)]
            return await self._chat_prompt(turns, offered(body.tools, None))
        return (await self._encode([body.prompt or ""], add_bos=body.add_special_tokens is not False))[0]

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
        if self.leaving:
            return False
        status = await self.facts.refresh()
        return self.facts.fresh and status.ready

    def _run(
        self,
        name: str,
        requests: list[Request],
        echo: list[str],
        deadline: float,
        asked: Reconnection,
        before: Mapping[int, Before | None],
        ticket: Ticket,
    ) -> Job:
        changed = asyncio.Event()
        runs: list[Run] = []
        try:
            for number, request in enumerate(requests):
                runs.append(self.driver.run(request, changed, before[number], resumable=asked.resumable))
        except TandemError:
            for run in runs:
                run.close()
            self.access.limits.close(ticket)
            raise

        def finished(job: Job, error: BaseException | None) -> None:
            self._jobs.pop(name, None)
            self.access.limits.close(ticket)
            self.metrics.finished(job, error)

        kept = asked.resumable or (asked.named and len(self._jobs) < MOST_KEPT)
        lease = self.config.resume_lease if asked.resumable else 0.0
        job = Job(runs, changed, echo, deadline, finished, digest=asked.digest, kept=kept, lease=lease)
        charged = sum(known.tokens for known in before.values() if known is not None)
        ticket.watch(lambda: max(0, job.usage().completion - charged))
        self._jobs[name] = job
        return job

    def _holders(self) -> list[str]:
        """The instances that may have a request: those that this gateway knows, and others that serve.

        One that starts would not answer in time.
        """
        serving = [one.name for one in self.facts.status.instances if one.state != "starting"]
        return sorted({*self.driver.instances.known(), *serving})

    def _before(self, request: Request, taken: Taken | None, seen: Sequence[Seen]) -> Before | None:
        """What instances had drawn of a request that is taken over, with its text; None if it runs again.

        Log-probabilities are known only where they were drawn: not of tokens before a movement, which the
        client has to have seen.
        """
        if taken is None:
            return None
        scored = request.sampling.logprobs is not None
        found: list[Piece] = []
        for choice in range(request.sampling.n):
            tokens, end = taken.outputs.get(choice, ()), taken.ends.get(choice)
            if not tokens and end is None:
                return None
            if scored and taken.scored(choice) > seen[choice].tokens:
                return None
            text = ChoiceText(request.sampling, self.detokenizer(request))
            found += taken.pieces(choice, [text.token(token) for token in tokens])
            if text.stopped is not None and end is None:
                return None  # it ended there, and who knew of it is gone
            found += [] if end is None else pieces(end)
        return Before(taken, found)

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
        size = self.tokenizer.vocab_size
        if tokens and max(tokens) >= size:
            raise InvalidParameter(
                f"'{param}' has the token {max(tokens)}; the vocabulary ends at {size - 1}", param=param
            )

    async def _prompts(self, body: CompletionBody | ChatBody) -> list[list[int]]:
        """The token ids of every prompt; raises InvalidParameter for one without any, or with an id that the
        tokenizer knows and the model does not."""
        if isinstance(body, ChatBody):
            chat = await self._chat_prompt(body.conversation(), body.offered())
            self._in_vocabulary("messages", chat)
            return [chat]
        # Texts or token ids: a body with both was refused.
        tokens = [given for given in body.prompt if isinstance(given, list)]
        prompts = tokens or await self._encode([given for given in body.prompt if isinstance(given, str)])
        if not all(prompts):
            raise InvalidParameter("'prompt' is empty: it needs at least one token", param="prompt")
        for prompt in prompts:
            self._in_vocabulary("prompt", prompt)
        return prompts

    def _sampling(self, body: SamplingBody, prompt: int, name: str) -> Sampling:
        """With a seed of `name` if the body has none.

        Raises ContextLengthExceeded for what does not fit the context or the KV cache.
        """
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        room = self.model.max_length - prompt
        if room < 1:
            raise self._too_long(f"{prompt} tokens", body.subject)
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
                f"{prompt} prompt tokens and {body.n or 1} × {wanted or 1} output tokens never fit the KV "
                "cache of an instance: shorten the prompt, or lower n or max_tokens",
                param=body.subject if fitting < 1 else "max_tokens",
            )
        return body.sampling(wanted if wanted is not None else min(room, fitting), seed)

    def _fitting(self, prompt: int, n: int) -> int:
        """Output tokens per choice for which an instance has blocks; the whole context if nobody knows.

        Choices share the full blocks of the prompt; a choice's last token is drawn but never stored.
        """
        known = self.facts.kv_blocks
        if known is None:
            return self.model.max_length
        blocks, size = known
        shared = prompt // size
        return (shared + (blocks - shared) // n) * size + 1 - prompt

    async def _chat_prompt(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]
    ) -> list[int]:
        """Raises UnsupportedParameter for a model that was not made for chats."""
        template = self.tokenizer.chat_template
        if template is None:
            raise UnsupportedParameter(
                f"the model '{self.model.name}' has no chat template; use /v1/completions", param="messages"
            )
        prompt = template.render(messages, tools=tools or None)
        if not is_text(prompt):
            raise InvalidParameter("the messages or tools hold a lone surrogate", param="messages")
        return (await self._encode([prompt], add_bos=False, param="messages"))[0]

    async def _encode(
        self, texts: Sequence[str], *, add_bos: bool = True, param: str = "prompt"
    ) -> list[list[int]]:
        """Token ids of texts, found in a thread where all together are long.

        Raises ContextLengthExceeded for one that is too long whatever its tokens are.
        """
        if sum(map(len, texts)) < LONG_TEXT:
            return [self.tokenizer.encode(text, add_bos=add_bos) for text in texts]
        return await asyncio.to_thread(self._encode_long, texts, add_bos, param)

    def _encode_long(self, texts: Sequence[str], add_bos: bool, param: str) -> list[list[int]]:
        for text in texts:
            least = self.tokenizer.least_tokens(text)
            if least >= self.model.max_length:
                raise self._too_long(f"{least} tokens or more", param)
        return [self.tokenizer.encode(text, add_bos=add_bos) for text in texts]

    def _too_long(self, tokens: str, param: str) -> ContextLengthExceeded:
        longest = self.model.max_length
        return ContextLengthExceeded(
            f"the prompt has {tokens} and the context ends at {longest}: "
            f"shorten it to {longest - 1} or fewer",
            param=param,
        )
