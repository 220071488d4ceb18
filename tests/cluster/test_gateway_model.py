"""The gateway over a real model of random weights, with its own tokenizer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx

from model.runner import ModelRunner
from model.tokenizer import Detokenizer, Tokenizer
from tests.cluster.local_cluster import LocalCluster, local_cluster

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
