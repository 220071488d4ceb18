"""Asks a gateway one chat question as any client would, and times the answer."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from engine.errors import InvalidKey, ModelNotFound, TandemError, Unreachable

# Asks the gateway to tell, with the usage, where the request ran.
DEBUG = {"x-tandem-debug": "1"}


@dataclass(frozen=True)
class Answer:
    """`ttft` and `tpot` are in seconds as the client saw them; tpot is None below two tokens."""

    text: str
    tokens: int
    ttft: float
    tpot: float | None
    prefill: str | None
    decode: str | None
    finish_reason: str | None

    def summary(self) -> str:
        parts = []
        if self.prefill and self.decode:
            parts.append(f"prefilled by {self.prefill}, decoded by {self.decode}")
        parts.append(f"TTFT {1000 * self.ttft:.0f} ms")
        if self.tpot is not None:
            parts.append(f"TPOT {1000 * self.tpot:.1f} ms")
        parts.append(f"{self.tokens} tokens")
        return " · ".join(parts)


class ChatClient:
    """`url` is a gateway's, without /v1; `verify` says whose certificates to believe. Raises TandemErrors."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        verify: ssl.SSLContext | None = None,
    ) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx.Timeout(timeout, connect=5.0)
        self.url = url.rstrip("/")
        # Without trust_env=False a proxy of the environment would be asked for 127.0.0.1.
        # The system's authorities, or those that SSL_CERT_FILE names.
        self._http = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=limits,
            trust_env=False,
            verify=verify or ssl.create_default_context(),
        )

    def close(self) -> None:
        self._http.close()

    def model(self) -> str:
        """The name of the first model that is served."""
        try:
            response = self._http.get("/v1/models")
            self._require(response)
        except httpx.HTTPError as error:
            raise Unreachable(f"{self.url} does not answer: {error}") from None
        models = response.json()["data"]
        if not models:
            raise ModelNotFound(f"{self.url} serves no model")
        return str(models[0]["id"])

    def ask(
        self,
        messages: Sequence[dict[str, str]],
        on_text: Callable[[str], None],
        *,
        model: str | None = None,
        **parameters: Any,
    ) -> Answer:
        """Stream one answer; `on_text` is given each piece as it comes."""
        body = {
            "model": model or self.model(),
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            **parameters,
        }
        watch = _Watch(on_text)
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body, headers=DEBUG) as response:
                if response.is_error:
                    response.read()
                self._require(response)
                for event in _events(response.iter_lines()):
                    watch.take(event)
                return watch.answer()
        except httpx.HTTPError as error:
            raise Unreachable(f"{self.url} broke off: {error or type(error).__name__}") from None

    def _require(self, response: httpx.Response) -> None:
        if not response.is_error:
            return
        try:
            message = str(response.json()["error"]["message"])
        except (ValueError, KeyError, TypeError):
            message = f"{self.url} answered {response.status_code}"
        kind = {401: InvalidKey, 404: ModelNotFound, 503: Unreachable}.get(response.status_code, TandemError)
        raise kind(message)


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


class _Watch:
    """Collects the events of one stream with their times."""

    def __init__(self, on_text: Callable[[str], None]) -> None:
        self._on_text = on_text
        self._begun = time.perf_counter()
        self._first: float | None = None
        self._last = self._begun
        self._text: list[str] = []
        self._tokens = 0
        self._finish: str | None = None
        self._where: dict[str, Any] = {}

    def take(self, event: dict[str, Any]) -> None:
        if "error" in event:
            raise TandemError(str(event["error"].get("message", "the stream failed")))
        if event.get("usage"):
            self._tokens = int(event["usage"]["completion_tokens"])
        self._where = event.get("tandem") or self._where
        for choice in event.get("choices", ()):
            text = choice.get("delta", {}).get("content")
            if text:
                self._last = time.perf_counter()
                self._first = self._first or self._last
                self._text.append(text)
                self._on_text(text)
            self._finish = choice.get("finish_reason") or self._finish

    def answer(self) -> Answer:
        first = self._first or self._last
        return Answer(
            text="".join(self._text),
            tokens=self._tokens,
            ttft=first - self._begun,
            tpot=(self._last - first) / (self._tokens - 1) if self._tokens > 1 else None,
            prefill=self._where.get("prefill"),
            decode=self._where.get("decode"),
            finish_reason=self._finish,
        )
