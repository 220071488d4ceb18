"""The gateway over a real model of random weights, with its own tokenizer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
import tokenizers

from model.runner import ModelRunner
from model.tokenizer import Detokenizer, Tokenizer
from tests.cluster.local_cluster import LocalCluster, local_cluster
from tests.cluster.tiny_model import make_tiny_model

TEXT = "/v1/completions"
ASKED = {"model": "tiny", "prompt": "Once upon", "max_tokens": 24, "ignore_eos": True}


def on_model(folder: Path, test: Callable[[httpx.AsyncClient], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        runner = ModelRunner(folder, blocks=256, block_size=16)
        tokenizer = Tokenizer(runner.assets)
        async with (
            local_cluster(
                make_runner=lambda: runner,
                tokenizer=tokenizer,
                detokenizer=lambda _: Detokenizer(tokenizer),
                eos=runner.eos_token_ids,
                blocks=256,
                block_size=16,
                max_length=512,
            ) as cluster,
            cluster.client() as client,
        ):
            assert isinstance(cluster, LocalCluster)
            await test(client)

    asyncio.run(run())


def test_the_likeliest_token_is_drawn_without_temperature(tiny_model: Path) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        answer = await client.post(TEXT, json={**ASKED, "temperature": 0, "logprobs": 2})
        logprobs = answer.json()["choices"][0]["logprobs"]
        assert len(logprobs["tokens"]) == 24
        for drawn, top in zip(logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True):
            assert drawn == max(top.values()) < 0

    on_model(tiny_model, test)


def test_a_seed_gives_the_same_text_alone_and_among_others(tiny_model: Path) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        body = {**ASKED, "seed": 7}
        alone = (await client.post(TEXT, json=body)).json()["choices"][0]["text"]
        others = [client.post(TEXT, json={**ASKED, "prompt": "x" * n}) for n in range(1, 8)]
        answers = await asyncio.gather(client.post(TEXT, json=body), *others)
        assert answers[0].json()["choices"][0]["text"] == alone

    on_model(tiny_model, test)


def test_equal_prompts_of_one_request_are_sampled_apart(tiny_model: Path) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        answer = await client.post(TEXT, json={**ASKED, "prompt": ["Once", "Once"], "n": 2})
        texts = {choice["text"] for choice in answer.json()["choices"]}
        assert len(texts) == 4

    on_model(tiny_model, test)


def test_an_absent_seed_follows_the_request_id(tiny_model: Path) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        texts = [
            (await client.post(TEXT, json=ASKED, headers={"x-request-id": name})).json()["choices"][0]["text"]
            for name in ("one", "one", "two")
        ]
        assert texts[0] == texts[1] != texts[2]

    on_model(tiny_model, test)


def test_text_survives_tokens(tiny_model: Path) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        text = "naïve — 🦊 <|end|> 1234"
        tokens = (await client.post("/tokenize", json={"prompt": text})).json()["tokens"]
        again = (await client.post("/detokenize", json={"tokens": tokens})).json()["prompt"]
        assert again == text.replace("<|end|>", "")

    on_model(tiny_model, test)


def test_a_chat_is_written_by_the_models_template(tiny_model: Path) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        messages = [{"role": "user", "content": "hello"}]
        tokens = (await client.post("/tokenize", json={"messages": messages})).json()["tokens"]
        prompt = (await client.post("/detokenize", json={"tokens": tokens})).json()["prompt"]
        assert prompt == "user: hello\nassistant: "

    on_model(tiny_model, test)


@pytest.fixture(scope="module")
def overgrown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer has a token beyond its rows, `<pad>`, which also counts as an end."""
    folder = make_tiny_model(tmp_path_factory.mktemp("overgrown") / "tiny")
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<pad>"])
    assert tokenizer.token_to_id("<pad>") == rows
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [rows - 1, rows]}))
    return folder


def test_a_token_that_the_model_does_not_have_is_refused_and_others_go_on(overgrown: Path) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        chat = {"model": "tiny", "messages": [{"role": "user", "content": "a<pad>"}], "max_tokens": 4}
        good, bad, worse, talk = await asyncio.gather(
            client.post(TEXT, json=ASKED),
            client.post(TEXT, json={**ASKED, "prompt": "a<pad>b"}),
            client.post(TEXT, json={**ASKED, "prompt": ["a", "<pad>"]}),
            client.post("/v1/chat/completions", json=chat),
        )
        assert good.status_code == 200
        assert good.json()["usage"]["completion_tokens"] == 24
        for answer, param in ((bad, "prompt"), (worse, "prompt"), (talk, "messages")):
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == param
            assert "has the token 257; the vocabulary ends at 256" in answer.json()["error"]["message"]
        assert (await client.post(TEXT, json=ASKED)).status_code == 200

    on_model(overgrown, test)


def test_an_end_that_the_model_does_not_have_forbids_nothing(overgrown: Path) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        answer = await client.post(TEXT, json={**ASKED, "ignore_eos": False, "min_tokens": 8})
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] >= 8

    on_model(overgrown, test)
