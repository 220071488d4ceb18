"""A tokenizer of bytes and a model that reads its answer off a script: tests know every token."""

from __future__ import annotations

import asyncio
import codecs
import threading
from collections.abc import Callable, Sequence
from typing import Any

from engine.plan import Draw, Drawn, StepPlan, StepResult
from model.allowed_tokens import AllowedTokens

EOS = 256
SCRIPT = "Once upon a time there was a café — naïve, €5, 🦊🦊. The end of the story comes later, STOP here."


async def until(condition: Callable[[], object], within: float = 20.0) -> None:
    """Wait for what happens in another thread."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 (other threads set no event of this loop)
            await asyncio.sleep(0.001)


class ByteDetokenizer:
    """Text of bytes; special tokens have none."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(bytes([token])) if token < EOS else ""

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class ByteTemplate:
    def render(
        self, messages: Sequence[dict[str, Any]], *, tools: Sequence[dict[str, Any]] | None = None
    ) -> str:
        offered = "".join(f"<tool>{tool['function']['name']}\n" for tool in tools or ())
        return offered + "".join(f"<{turn['role']}>{turn['content']}\n" for turn in messages) + "<assistant>"


class ByteTokenizer:
    """One token per byte of UTF-8, and one that ends."""

    vocab_size = EOS + 1
    bos_token_id = None
    eos_token_ids = (EOS,)
    special_ids = frozenset({EOS})

    def __init__(self) -> None:
        self.chat_template: ByteTemplate | None = ByteTemplate()

    def encode(self, text: str, *, parse_special: bool = True, add_bos: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(token for token in tokens if token < EOS).decode("utf-8", "replace")

    def least_tokens(self, text: str) -> int:
        return len(text.encode())

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < EOS else b""


class ScriptedRunner:
    """Draws the bytes of `script`, choice c from its character c on, then EOS. `gate` holds steps back."""

    def __init__(self, script: str = SCRIPT) -> None:
        self.script = script
        self.steps = 0
        self.gate = threading.Event()
        self.gate.set()
        self.permits: threading.Semaphore | None = None

    def run(self, plan: StepPlan) -> StepResult:
        assert self.gate.wait(30), "the test never opened the gate"
        if self.permits is not None:
            assert self.permits.acquire(timeout=30), "the test permitted no further step"
        self.steps += 1
        return StepResult(tuple(self._draw(work.draw) for work in plan.works))

    def _draw(self, draw: Draw | None) -> tuple[Drawn, ...]:
        if draw is None:
            return ()
        drawn = []
        for choice in draw.choices:
            text = self.script[choice:].encode()
            token = text[draw.position] if draw.position < len(text) else EOS
            while token in draw.banned:
                token = (token + 1) % EOS
            top = ((token, -0.25), ((token + 1) % EOS, -1.5))[: draw.sampling.logprobs or 0]
            drawn.append(Drawn(token) if draw.sampling.logprobs is None else Drawn(token, -0.25, top))
        return tuple(drawn)


class HastyRunner(ScriptedRunner):
    """Draws what is closest to the end where a grammar leaves a choice."""

    def __init__(self) -> None:
        super().__init__()
        self._grammars = AllowedTokens(ByteTokenizer)

    def _draw(self, draw: Draw | None) -> tuple[Drawn, ...]:
        if draw is None or not draw.sampling.grammar:
            return super()._draw(draw)
        allowed = self._grammars.allowed(draw.sampling.grammar, draw.output).nonzero().flatten().tolist()
        ends = [token for token in (EOS, *b'"}]') if token in allowed]
        return (Drawn((ends or allowed)[0]),) * len(draw.choices)
