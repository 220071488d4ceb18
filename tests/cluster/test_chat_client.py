"""The chat client: text as it comes, times as a client sees them, and errors of ours for what goes wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, ClassVar

import pytest

from cluster.chat_client import ChatClient
from engine.errors import InvalidKey, ModelNotFound, TandemError, Unreachable
from tests.cluster.cli_controller import run


class Gateway(BaseHTTPRequestHandler):
    status: ClassVar[int] = 200
    events: ClassVar[list[dict[str, Any]]] = []
    asked: ClassVar[dict[str, Any]] = {}

    def do_GET(self) -> None:
        self.answer("application/json", json.dumps({"data": [{"id": "m"}]}))

    def do_POST(self) -> None:
        Gateway.asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.status != 200:
            self.answer("application/json", json.dumps({"error": {"message": "no, because"}}))
            return
        lines = [
            ": ping\n\n",
            *(f"data: {json.dumps(event)}\n\n" for event in self.events),
            "data: [DONE]\n\n",
        ]
        self.answer("text/event-stream", "".join(lines))

    def answer(self, kind: str, body: str) -> None:
        self.send_response(self.status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a test's output is its own."""


@pytest.fixture
def url() -> Iterator[str]:
    Gateway.status = 200
    with ThreadingHTTPServer(("127.0.0.1", 0), Gateway) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def delta(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}], "usage": None}


@pytest.fixture
def client(url: str) -> Iterator[ChatClient]:
    client = ChatClient(url)
    yield client
    client.close()


def test_text_comes_in_pieces_and_the_answer_says_who_made_it(client: ChatClient) -> None:
    last = {
        "choices": [],
        "usage": {"completion_tokens": 2},
        "tandem": {"prefill": "prefill-0", "decode": "decode-1"},
    }
    Gateway.events = [delta(""), delta("Hel"), delta("lo", "stop"), last]
    pieces: list[str] = []
    answer = client.ask([{"role": "user", "content": "x"}], pieces.append, max_tokens=3)
    assert pieces == ["Hel", "lo"]
    assert (answer.text, answer.tokens, answer.finish_reason) == ("Hello", 2, "stop")
    assert (answer.prefill, answer.decode) == ("prefill-0", "decode-1")
    assert answer.tpot is not None
    assert answer.summary().startswith("prefilled by prefill-0, decoded by decode-1 · TTFT ")
    assert (Gateway.asked["model"], Gateway.asked["max_tokens"]) == ("m", 3)


def test_an_answer_of_one_token_has_no_time_per_token(client: ChatClient) -> None:
    Gateway.events = [delta("a", "length"), {"choices": [], "usage": {"completion_tokens": 1}}]
    answer = client.ask([], lambda text: None)
    assert answer.tpot is None
    assert "TPOT" not in answer.summary()


@pytest.mark.parametrize(
    ("status", "kind"), [(401, InvalidKey), (404, ModelNotFound), (503, Unreachable), (500, TandemError)]
)
def test_a_refusal_is_raised_with_the_gateways_words(
    client: ChatClient, status: int, kind: type[TandemError]
) -> None:
    Gateway.status = status
    with pytest.raises(kind, match="no, because"):
        client.ask([], lambda text: None, model="m")


def test_the_verb_names_the_flag_where_a_key_is_missing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    Gateway.status = 401
    result = run("chat", "hello", "--url", url)
    assert result.exit_code == 7
    assert "hint: name a key: --api-key KEY, or OPENAI_API_KEY" in result.stderr


def test_an_error_in_mid_stream_is_raised(client: ChatClient) -> None:
    Gateway.events = [delta("a"), {"error": {"message": "the instance died"}}]
    with pytest.raises(TandemError, match="the instance died"):
        client.ask([], lambda text: None)


def test_nobody_at_the_address_is_unreachable() -> None:
    client = ChatClient("http://127.0.0.1:1")
    try:
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1 does not answer"):
            client.model()
    finally:
        client.close()
