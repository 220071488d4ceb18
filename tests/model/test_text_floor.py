"""No text has fewer tokens than is said of it without tokenising it."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from model import text_floor
from model.assets import Assets
from model.text_floor import Floor, floor
from model.tokenizer import Tokenizer, _byte_level_bytes
from tests.model.test_tokenizer import PIECES, spm_assets

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
COMPOSED = "\u1fbe\u0308\u0301"
"""Seven bytes that Unicode's composition makes two of."""


def byte_level(*words: str) -> tokenizers.Tokenizer:
    """Tokens for every byte, for some words and for their beginnings."""
    vocabulary, merges = list(ALPHABET), []
    for word in words:
        spelled = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(word)[0][0]
        starts = [spelled[:end] for end in range(1, len(spelled) + 1)]
        merges += [(start, longer[-1]) for start, longer in pairwise(starts)]
        vocabulary += starts[1:]
    made = tokenizers.Tokenizer(BPE({piece: at for at, piece in enumerate(vocabulary)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def floor_of(made: tokenizers.Tokenizer) -> Floor:
    return floor(json.loads(made.to_str()), made.get_vocab(with_added_tokens=False), _byte_level_bytes)


def composing() -> tokenizers.Tokenizer:
    made = byte_level("\u0390")
    made.normalizer = normalizers.NFC()
    return made


TEXTS = st.one_of(
    st.text(),
    st.lists(st.sampled_from([*PIECES, COMPOSED, "▁", "\x04", "ab", "<s>", "=" * 80])).map("".join),
)


@given(TEXTS)
@example("\x04" * 200)
@example("#" * 800)
@example("▁" * 200)
@example("<|endoftext|>" * 50)
def test_a_text_has_so_many_tokens_or_more(embedded: Assets, text: str) -> None:
    for tokenizer in (Tokenizer(embedded), Tokenizer(spm_assets(embedded))):
        assert tokenizer.least_tokens(text) <= len(tokenizer.encode(text))
    for made in (byte_level("abcd"), composing()):
        assert floor_of(made).tokens(text) <= len(made.encode(text).ids)


def test_a_text_of_longest_tokens_has_exactly_so_many() -> None:
    made = byte_level("abcd")
    assert floor_of(made) == Floor(4)
    for count in (0, 1, 5):
        assert floor_of(made).tokens("abcd" * count) == len(made.encode("abcd" * count).ids) == count
    assert floor_of(made).tokens("é" * 6) == 3


def test_the_embedded_models_longest_token_has_81_bytes(embedded: Assets) -> None:
    tokenizer = Tokenizer(embedded)
    assert tokenizer.least_tokens("x" * 81) == 1
    assert tokenizer.least_tokens("x" * 82) == 2
    assert tokenizer.least_tokens("\x04" * 1000) == len(tokenizer.encode("\x04" * 1000)) == 0


def test_added_tokens_count_as_long_as_they_are_written() -> None:
    made = byte_level("ab")
    made.add_special_tokens(["<|a long one|>"])
    assert floor_of(made) == Floor(14)


def test_composition_makes_texts_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    made, text = composing(), COMPOSED * 50
    assert 0 < floor_of(made).tokens(text) <= len(made.encode(text).ids) == 50
    monkeypatch.setattr(text_floor, "_NFC", 3)
    assert floor_of(made).tokens(text) > 50, "with less of a margin the text would be refused"


def test_nothing_is_known_where_a_text_may_become_as_short_as_it_likes() -> None:
    for normalizer in (
        normalizers.Strip(),
        normalizers.Replace("aa", "a"),
        normalizers.Replace(Regex("a+"), "aaaa"),
        normalizers.Sequence([normalizers.NFC(), normalizers.StripAccents()]),
    ):
        made = byte_level("abcd")
        made.normalizer = normalizer
        assert floor_of(made).tokens("a" * 1000) == 0
    splitting = byte_level("abcd")
    removed = pre_tokenizers.Split(" ", "removed")
    splitting.pre_tokenizer = pre_tokenizers.Sequence([removed, splitting.pre_tokenizer])
    assert floor_of(splitting).tokens("a" * 1000) == 0
    stripping = byte_level("abcd")
    stripping.add_tokens([AddedToken("<|user|>", rstrip=True)])
    assert floor_of(stripping).tokens("a" * 1000) == 0
    unknown = tokenizers.Tokenizer(
        BPE({"?": 0, "a": 1}, [], unk_token="?", fuse_unk=True, byte_fallback=True)
    )
    assert floor_of(unknown).tokens("b" * 1000) == 0 < len(unknown.encode("b" * 1000).ids) == 1
    pieces = {"?": 0} | {f"<0x{byte:02X}>": byte + 1 for byte in range(256)}
    for fallback, least in ((True, 1), (False, 0)):
        whole = tokenizers.Tokenizer(BPE(pieces, [], unk_token="?", fuse_unk=True, byte_fallback=fallback))
        assert (floor_of(whole).tokens("字" * 1000) > 0) == bool(least)
