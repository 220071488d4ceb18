"""The text of one choice, token by token: stop strings found, nothing shown that may still be taken back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cluster.stop_strings import StopMatcher
from engine.request import Sampling
from engine.sequence import FinishReason


class Detokenizer(Protocol):
    """Turns the tokens of one choice into text incrementally; half a code point waits for its other half."""

    def push(self, token: int) -> str: ...

    def flush(self) -> str: ...


class ChoiceText:
    """Pieces of text, one per token: a deterministic function of the tokens.

    So any instance can go on from any index. `count` is the number of tokens taken, `stopped` the stop string
    that ended the text.
    """

    def __init__(self, sampling: Sampling, detokenizer: Detokenizer) -> None:
        self._sampling = sampling
        self._detokenizer = detokenizer
        self._matcher = StopMatcher(sampling.stop, include=sampling.include_stop)
        self.count = 0

    @property
    def stopped(self) -> str | None:
        return self._matcher.matched

    def replay(self, tokens: Sequence[int]) -> str:
        """Take tokens whose text others have sent already; gives that text."""
        return "".join(self.token(token) for token in tokens)

    def token(self, token: int, *, finish: FinishReason | None = None, stop_token: int | None = None) -> str:
        """The piece of the next token; with `finish` it is the last one and brings all that was held back.

        A token that ends the answer is no text, but for a `stop_token` that the request wants to see.
        """
        self.count += 1
        if self.stopped is not None:
            return ""
        wanted = stop_token is not None and self._sampling.include_stop
        hidden = finish is FinishReason.STOP and not wanted
        text = "" if hidden else self._detokenizer.push(token)
        if finish is not None:
            text += self._detokenizer.flush()
        piece = self._matcher.feed(text, armed=self.count > self._sampling.min_tokens)
        if finish is not None and self.stopped is None:
            piece += self._matcher.flush()
        return piece

    def end(self) -> str:
        """What was held back, for an end that brings no token."""
        if self.stopped is not None:
            return ""
        piece = self._matcher.feed(self._detokenizer.flush(), armed=self.count >= self._sampling.min_tokens)
        return piece + self._matcher.flush()
