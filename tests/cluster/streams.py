"""Clients of a real cluster that read a stream in a thread of their own."""

from __future__ import annotations

import json
import threading
import time
from types import TracebackType
from typing import Any, Self

import httpx

from engine.errors import Unreachable
from tests.cluster.conftest import Cluster

PROMPT = "The quick brown fox jumps over the lazy dog. " * 4


def body(tokens: int, **fields: Any) -> dict[str, Any]:
    asked = {"model": "tiny", "prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    return asked | fields


def reference(cluster: Cluster, tokens: int, **fields: Any) -> str:
    """The answer, whole."""
    asked = body(tokens, **fields)
    answer = httpx.post(f"{cluster.url}/v1/completions", json=asked, timeout=120, trust_env=False)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


class Client:
    """Asks at once for a stream under the name `name`; `text` waits for its end. Close it."""

    def __init__(self, cluster: Cluster, name: str, tokens: int, **fields: Any) -> None:
        self.name = name
        self.recoveries = -1
        self._url = f"{cluster.url}/v1/completions"
        self._body = body(tokens, stream=True, **fields)
        self._pieces: list[str] = []
        self._error: Exception | None = None
        self._leaving = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def reading(self) -> bool:
        """Whether the stream has begun and not ended."""
        return bool(self._pieces) and self._thread.is_alive()

    def text(self) -> str:
        self._thread.join(120)
        assert not self._thread.is_alive(), "the stream does not end"
        if self._error is not None:
            raise self._error
        return "".join(self._pieces)

    def close(self) -> None:
        self._leaving = True
        self._thread.join(30)

    def _run(self) -> None:
        headers = {"x-request-id": self.name, "x-tandem-debug": "1"}
        try:
            with httpx.stream(
                "POST", self._url, json=self._body, headers=headers, timeout=60, trust_env=False
            ) as answer:
                for line in answer.iter_lines():
                    if self._leaving:
                        return
                    self._line(line)
        except Exception as error:
            self._error = error

    def _line(self, line: str) -> None:
        if line.startswith("data: {"):
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            self._pieces.append(event["choices"][0]["text"])
        if line.startswith(": tandem "):
            self.recoveries = json.loads(line.removeprefix(": tandem "))["recoveries"]


class Returning:
    """A client that comes back, to whatever gateway there is, until it has the whole answer."""

    def __init__(self, cluster: Cluster, name: str, tokens: int, **fields: Any) -> None:
        self.text = ""
        self.connections = 0
        self.begun = threading.Event()
        self._cluster = cluster
        self._body = body(tokens, stream=True, **fields)
        self._headers = {"x-request-id": name, "x-tandem-resumable": "1"}
        self._done = False

    def read(self, within: float) -> None:
        """Until the end of the answer."""
        end = time.monotonic() + within
        while not self._done:
            assert time.monotonic() < end, f"{self.connections} connections, {len(self.text)} characters"
            try:
                for gateway in self._cluster.status().gateways:
                    self._connect(f"{gateway.url}/v1/completions")
            except (httpx.HTTPError, Unreachable):
                time.sleep(0.1)

    def _connect(self, url: str) -> None:
        headers = self._headers
        with httpx.stream(
            "POST", url, json=self._body, headers=headers, timeout=20, trust_env=False
        ) as answer:
            if answer.status_code != 200:
                return
            self.connections += 1
            event_id = ""
            for line in answer.iter_lines():
                if line.startswith("id: "):
                    event_id = line.removeprefix("id: ")
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    assert "error" not in event, event
                    self.text += event["choices"][0]["text"]
                    self._headers = headers | {"last-event-id": event_id}
                    self.begun.set()
                self._done = self._done or line == "data: [DONE]"
