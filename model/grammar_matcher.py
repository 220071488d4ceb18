"""Follows a grammar over one vocabulary, by llguidance: bounded in what a token costs, and without torch."""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Protocol

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

LONGEST_FAULT = 300

# Some milliseconds at most: what would take longer is an error, and refused before it is begun.
_LIMITS = LLParserLimits(initial_lexer_fuel=100_000, step_lexer_fuel=10_000, verbose_errors=False)


class Vocabulary(Protocol):
    """What is asked of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def bos_token_id(self) -> int | None: ...

    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...

    @property
    def special_ids(self) -> frozenset[int]: ...

    def encode(self, text: str, *, parse_special: bool = True, add_bos: bool = True) -> list[int]: ...

    def token_bytes(self, token: int) -> bytes: ...


class Matchers:
    """Makes matchers for one vocabulary, which is read when the first one is wanted."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.fault = lru_cache(64)(self._fault)

    def begin(self, grammar: str) -> LLMatcher:
        """A matcher that has read nothing yet; in error if the grammar cannot be followed."""
        return LLMatcher(self._reader, grammar, log_level=0, limits=_LIMITS)

    def _fault(self, grammar: str) -> str:
        """Why a grammar cannot be followed, "" if two tokens can be drawn by it. Takes milliseconds, and the
        first time as long as it takes to read the vocabulary."""
        if not self._vocabulary.eos_token_ids:
            return "the model has no token that ends an answer"
        matcher = self.begin(grammar)
        for _ in range(2):
            if matcher.is_error():
                break
            allowed = int.from_bytes(matcher.compute_bitmask(), "little")
            token = (allowed & -allowed).bit_length() - 1
            if token in (-1, *self._vocabulary.eos_token_ids):
                break
            matcher.consume_token(token)
        if not matcher.is_error():
            return ""
        return " ".join(str(matcher.get_error()).split())[:LONGEST_FAULT] or "it is too large"

    @cached_property
    def _reader(self) -> LLTokenizer:
        known = self._vocabulary
        wrapper = TokenizerWrapper(_Words(known))
        return LLTokenizer(wrapper, n_vocab=known.vocab_size, eos_token=list(known.eos_token_ids))


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
