"""Text to tokens and back, whole or token by token, and chat messages to a prompt."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import tokenizers

from engine.errors import ModelFileError
from model.assets import Assets
from model.chat_template import ChatTemplate
from model.text_floor import floor

LONG_TEXT = 4096
"""Characters from which other threads go on while a text is tokenised: below, that is not worth it."""


class Tokenizer:
    """One model's tokenizer. Safe to use from several threads."""

    def __init__(self, assets: Assets) -> None:
        """Raises ModelFileError if the tokenizer or the chat template cannot be read."""
        source = str(assets.path)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(assets.tokenizer)
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
            added = self._tokenizer.get_added_tokens_decoder()
        except Exception as error:  # The library raises bare Exception.
            raise ModelFileError(f"{source}: the tokenizer cannot be read: {error}") from error
        self._added = {int(token): str(entry.content) for token, entry in added.items()}
        self.special_ids = frozenset(int(token) for token, entry in added.items() if entry.special)
        self.vocab_size = assets.config.vocab_size
        self.bos_token_id = assets.bos_token_id
        self.eos_token_ids = assets.eos_token_ids
        described = json.loads(assets.tokenizer)
        self._piece_bytes, self._strips_space = _piece_decoder(described.get("decoder") or {}, source)
        pieces = self._tokenizer.get_vocab(with_added_tokens=False)
        self._floor = floor(described, pieces, self._piece_bytes)
        self._bytes: dict[int, bytes] = {}
        self.chat_template: ChatTemplate | None = None
        if assets.chat_template is not None:
            bos, eos, ends = assets.bos_token, assets.eos_token, assets.eos_token_ids[:1]
            special = {
                "bos_token": self._named(self.bos_token_id) if bos is None else bos,
                "eos_token": self._named(*ends) if eos is None else eos,
            }
            self.chat_template = ChatTemplate(assets.chat_template, special, source)

    def encode(self, text: str, *, parse_special: bool = True, add_bos: bool = True) -> list[int]:
        """Token ids of a text.

        parse_special: whether the names of special tokens in it become those tokens, or plain text;
        add_bos: whether a model that expects a first token gets it (a chat template writes it itself).
        """
        tokenizer = self._tokenizer if parse_special else self._plain
        if len(text) < LONG_TEXT:
            encoding = tokenizer.encode(text, add_special_tokens=add_bos)
        else:
            # The library lets go of the interpreter's lock for batches alone.
            encoding = tokenizer.encode_batch([text], add_special_tokens=add_bos)[0]
        ids: list[int] = encoding.ids
        return ids

    def least_tokens(self, text: str) -> int:
        """`encode` gives so many or more; found without tokenising, and far less where a text is usual."""
        return self._floor.tokens(text)

    def decode(self, tokens: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of whole tokens; bytes that are not UTF-8 become U+FFFD."""
        whole = b"".join(self.token_bytes(token, skip_special=skip_special) for token in tokens)
        text = whole.decode("utf-8", "replace")
        return text[1:] if self._strips_space and text.startswith(" ") else text

    def token_bytes(self, token: int, *, skip_special: bool = False) -> bytes:
        """The UTF-8 bytes, possibly half a character, that a token adds to a text. b"" for an unused id."""
        if skip_special and token in self.special_ids:
            return b""
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._spelled(token)
        return known

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """Reads the names of special tokens as text. One of its own, so that no thread waits for another's
        setting."""
        plain = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
        plain.encode_special_tokens = True
        return plain

    def _spelled(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        piece = self._tokenizer.id_to_token(token)
        return b"" if piece is None else self._piece_bytes(piece)

    def _named(self, token: int | None = None) -> str:
        return "" if token is None else str(self._tokenizer.id_to_token(token) or "")


class Detokenizer:
    """Text of a growing output, token by token.

    Never emits half a character: the pieces joined with `flush` are the output's text, and each piece
    depends on the tokens so far alone, so that a replay of them gives the same pieces. A leading space of the
    first token is kept: it belongs to the text that the output continues.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that is complete now and was not before; may be empty."""
        return self._decoder.decode(self._tokenizer.token_bytes(token, skip_special=self._skip_special))

    def flush(self) -> str:
        """What is left at the end of the output: U+FFFD for an unfinished character."""
        return self._decoder.decode(b"", final=True)


def _piece_decoder(decoder: Mapping[str, Any], source: str) -> tuple[Callable[[str], bytes], bool]:
    """How a vocabulary entry spells bytes, and whether a whole text loses its first space."""
    stages = decoder.get("decoders", [decoder])
    kinds = {str(stage.get("type")) for stage in stages}
    if "ByteLevel" in kinds:
        return _byte_level_bytes, False
    if "ByteFallback" in kinds:
        return _sentence_piece_bytes, "Strip" in kinds
    raise ModelFileError(
        f"{source}: tokenizer decoder {decoder.get('type')!r} is not served; "
        "served are ByteLevel and ByteFallback"
    )


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE writes each byte as one printable character: printable Latin-1 as itself, the other
    bytes in order from U+0100 on (GPT-2, Radford et al. 2019)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()


def _byte_level_bytes(piece: str) -> bytes:
    try:
        return bytes(_ALPHABET[character] for character in piece)
    except KeyError:
        return piece.encode()


def _sentence_piece_bytes(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes.fromhex(piece[3:5])
    return piece.replace("▁", " ").encode()
