"""Which tokens may come next, for outputs that are bound to a grammar.

A function of the grammar and of the output so far, whoever asks: a request that moved, or was preempted, goes
on as if nothing had happened. It is worked out from the output one token shorter, of which it keeps the last.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol

import torch
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from torch import Tensor

MOST_STATES = 512
"""Outputs whose state is kept: more than run at once."""

MOST_GRAMMARS = 64
_BITS = torch.tensor([[byte >> bit & 1 for bit in range(8)] for byte in range(256)], dtype=torch.bool)


class Vocabulary(Protocol):
    """What is asked of a tokenizer."""

    vocab_size: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    special_ids: frozenset[int]

    def encode(self, text: str, *, parse_special: bool = True, add_bos: bool = True) -> list[int]: ...

    def token_bytes(self, token: int) -> bytes: ...


class AllowedTokens:
    """One per runner; not for two threads at once."""

    def __init__(self, vocabulary: Callable[[], Vocabulary]) -> None:
        """vocabulary: asked for once a request has a grammar."""
        self._open = vocabulary
        self._grammars: OrderedDict[str, LLMatcher] = OrderedDict()
        self._states: OrderedDict[tuple[str, tuple[int, ...]], LLMatcher] = OrderedDict()

    def allowed(self, grammar: str, output: Sequence[int]) -> Tensor:
        """[vocabulary], boolean: what may come after `output`, with the tokens that end an answer where the
        grammar allows an end. Only those where nothing else can be said of the output."""
        matcher = self._after(grammar, tuple(output))
        if matcher.is_error():
            return self._end
        bits = torch.frombuffer(bytearray(matcher.compute_bitmask()), dtype=torch.uint8)
        found = _BITS[bits.long()].view(-1)[: self._vocabulary.vocab_size]
        return found if not matcher.is_error() and bool(found.any()) else self._end

    def _after(self, grammar: str, output: tuple[int, ...]) -> LLMatcher:
        """The matcher that has read `output`."""
        matcher = self._states.pop((grammar, output), None)
        if matcher is None:
            matcher = self._states.pop((grammar, output[:-1]), None) if output else None
            if matcher is None:
                matcher = self._beginning(grammar).deep_copy()
                matcher.consume_tokens(list(output))
            else:
                matcher.consume_token(output[-1])
        self._states[grammar, output] = matcher
        if len(self._states) > MOST_STATES:
            self._states.popitem(last=False)
        return matcher

    def _beginning(self, grammar: str) -> LLMatcher:
        known = self._grammars.pop(grammar, None)
        self._grammars[grammar] = known or LLMatcher(self._reader, grammar, log_level=0)
        if len(self._grammars) > MOST_GRAMMARS:
            self._grammars.popitem(last=False)
        return self._grammars[grammar]

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return self._open()

    @cached_property
    def _reader(self) -> LLTokenizer:
        known = self._vocabulary
        wrapper = TokenizerWrapper(_Words(known))
        return LLTokenizer(wrapper, n_vocab=known.vocab_size, eos_token=list(known.eos_token_ids))

    @cached_property
    def _end(self) -> Tensor:
        allowed = torch.zeros(self._vocabulary.vocab_size, dtype=torch.bool)
        allowed[list(self._vocabulary.eos_token_ids)] = True
        return allowed


class _Words:
    """A vocabulary as llguidance asks for one."""

    def __init__(self, known: Vocabulary) -> None:
        self._known = known
        self.bos_token_id = known.bos_token_id
        self.eos_token_id = known.eos_token_ids[0]
        self.special_token_ids = sorted(known.special_ids)
        self.tokens = [known.token_bytes(token) for token in range(known.vocab_size)]

    def __call__(self, text: bytes | str) -> list[int]:
        words = text if isinstance(text, str) else text.decode("utf-8", "replace")
        return self._known.encode(words, parse_special=False, add_bos=False)
