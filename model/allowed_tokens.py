"""Which tokens may come next, for outputs that are bound to a grammar.

A function of the grammar and of the output so far, whoever asks: a request that moved, or was preempted, goes
on as if nothing had happened. It is worked out from the output one token shorter, of which it keeps the last.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from llguidance import LLMatcher
from torch import Tensor

from model.grammar_matcher import Matchers, Vocabulary

MOST_STATES = 256
"""Outputs whose state is kept."""

MOST_GRAMMARS = 64
_BITS = torch.tensor([[byte >> bit & 1 for bit in range(8)] for byte in range(256)], dtype=torch.bool)


class _State(NamedTuple):
    """What has read an output, and what may follow it."""

    matcher: LLMatcher
    allowed: Tensor


class AllowedTokens:
    """One per runner; not for two threads at once."""

    def __init__(self, vocabulary: Callable[[], Vocabulary]) -> None:
        """vocabulary: asked for once a request has a grammar."""
        self._open = vocabulary
        self._grammars: OrderedDict[str, LLMatcher] = OrderedDict()
        self._states: OrderedDict[tuple[str, tuple[int, ...]], _State] = OrderedDict()

    def allowed(self, grammar: str, output: Sequence[int]) -> Tensor:
        """[vocabulary], boolean: what may come after `output`, with the tokens that end an answer where the
        grammar allows an end. Only those where nothing else can be said of the output."""
        key = grammar, tuple(output)
        state = self._states.pop(key, None) or self._after(*key)
        self._states[key] = state
        if len(self._states) > MOST_STATES:
            self._states.popitem(last=False)
        return state.allowed

    def _after(self, grammar: str, output: tuple[int, ...]) -> _State:
        before = self._states.pop((grammar, output[:-1]), None) if output else None
        if before is None:
            matcher = self._beginning(grammar).deep_copy()
            matcher.consume_tokens(list(output))
        else:
            matcher = before.matcher
            matcher.consume_token(output[-1])
        return _State(matcher, self._mask(matcher))

    def _mask(self, matcher: LLMatcher) -> Tensor:
        if matcher.is_error():
            return self._end
        bits = torch.frombuffer(bytearray(matcher.compute_bitmask()), dtype=torch.uint8)
        found = _BITS[bits.long()].view(-1)[: self._vocabulary.vocab_size]
        return found if not matcher.is_error() and bool(found.any()) else self._end

    def _beginning(self, grammar: str) -> LLMatcher:
        known = self._grammars.pop(grammar, None)
        self._grammars[grammar] = known or self._matchers.begin(grammar)
        if len(self._grammars) > MOST_GRAMMARS:
            self._grammars.popitem(last=False)
        return self._grammars[grammar]

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return self._open()

    @cached_property
    def _matchers(self) -> Matchers:
        return Matchers(self._vocabulary)

    @cached_property
    def _end(self) -> Tensor:
        allowed = torch.zeros(self._vocabulary.vocab_size, dtype=torch.bool)
        allowed[list(self._vocabulary.eos_token_ids)] = True
        return allowed
