"""A tokenizer.json out of GGUF metadata: byte-level BPE ("gpt2") and SentencePiece BPE ("llama").

The text splitters per pre-tokenizer name are llama.cpp's (src/llama-vocab.cpp), in the tokenizers library's
words. A name that is not known here is refused: a wrong splitter gives wrong answers without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Split

from engine.errors import ModelFileError

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{%s}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTROL, _USER_DEFINED = 3, 4
# Ends of a turn that some files do not name as end tokens (llama.cpp collects the same).
_TURN_ENDS = frozenset(
    {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<end_of_turn>"}
)


def tokenizer_json(metadata: Mapping[str, Any], source: str) -> str:
    """The tokenizers library's own format. Raises ModelFileError for a kind that is not served, or a broken
    one."""
    try:
        return _built(metadata, source)
    except ModelFileError:
        raise
    except Exception as error:  # The library raises bare Exception.
        raise ModelFileError(f"{source}: the tokenizer cannot be read: {error}") from error


def _built(metadata: Mapping[str, Any], source: str) -> str:
    kind = metadata.get("tokenizer.ggml.model")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise ModelFileError(f"{source}: tokenizer.ggml.tokens is missing")
    match kind:
        case "gpt2":
            tokenizer = _byte_level(metadata, tokens, source)
        case "llama":
            tokenizer = _sentence_piece(metadata, tokens, source)
        case _:
            raise ModelFileError(f"{source}: tokenizer model {kind!r} is not served; served are gpt2, llama")
    types = metadata.get("tokenizer.ggml.token_type") or []
    for token, role in zip(tokens, types, strict=False):
        if role in (_CONTROL, _USER_DEFINED):
            tokenizer.add_tokens([AddedToken(token, normalized=False, special=role == _CONTROL)])
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    first = _named(metadata, "bos", tokens, source) if _starts_with_bos(metadata) else None
    if first is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[first, "$A"], pair=[first, "$A", "$B"], special_tokens=[(first, bos)]
        )
    return str(tokenizer.to_str())


def end_tokens(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that end an answer: those that the file names, and control tokens known to end a turn."""
    named = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    ends = [token for token in named if isinstance(token, int)]
    tokens = metadata.get("tokenizer.ggml.tokens") or []
    types = metadata.get("tokenizer.ggml.token_type") or []
    for index, (token, role) in enumerate(zip(tokens, types, strict=False)):
        if role == _CONTROL and token in _TURN_ENDS:
            ends.append(index)
    return tuple(dict.fromkeys(ends))


def _named(metadata: Mapping[str, Any], name: str, tokens: list[str], source: str) -> str | None:
    """A token that the file names by its id, if it does. Raises ModelFileError for an id that is none."""
    key = f"tokenizer.ggml.{name}_token_id"
    token = metadata.get(key)
    if not isinstance(token, int):
        return None
    if not 0 <= token < len(tokens):
        raise ModelFileError(f"{source}: {key} is {token}, and there are {len(tokens)} tokens")
    return tokens[token]


def _starts_with_bos(metadata: Mapping[str, Any]) -> bool:
    kinds = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    usual = kinds[0] == "llama" or kinds[1] in ("llama-bpe", "llama3", "llama-v3")
    return bool(metadata.get("tokenizer.ggml.add_bos_token", usual))


def _byte_level(metadata: Mapping[str, Any], tokens: list[str], source: str) -> Tokenizer:
    merges = metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise ModelFileError(f"{source}: tokenizer.ggml.merges is missing")
    name = str(metadata.get("tokenizer.ggml.pre") or "default")
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    whole_words = name in ("llama-bpe", "llama3", "llama-v3")
    try:
        tokenizer = Tokenizer(BPE(vocabulary, pairs, ignore_merges=whole_words))
    except Exception as error:  # The library raises bare Exception.
        raise ModelFileError(f"{source}: tokenizer.ggml.merges do not fit the tokens: {error}") from error
    tokenizer.pre_tokenizer = _splitter(name, source)
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _splitter(name: str, source: str) -> PreTokenizer:
    plain = ByteLevel(add_prefix_space=False, use_regex=True)
    bytes_only = ByteLevel(add_prefix_space=False, use_regex=False)
    match name:
        case "smollm":
            return pre_tokenizers.Sequence([Digits(individual_digits=True), plain])
        case "gpt-2":
            return plain
        case "llama-bpe" | "llama3" | "llama-v3":
            return pre_tokenizers.Sequence([Split(Regex(_WORDS % "1,3"), "isolated"), bytes_only])
        case "qwen2":
            return pre_tokenizers.Sequence([Split(Regex(_WORDS % "1"), "isolated"), bytes_only])
        case "default":
            marks, numbers = Regex(r"[\p{P}\$\+<=>\^~\|]+"), Regex(r"\p{N}+")
            splits = [Split(marks, "isolated"), Split(numbers, "isolated")]
            return pre_tokenizers.Sequence([*splits, Split(Regex("[0-9][0-9][0-9]"), "isolated"), plain])
        case _:
            raise ModelFileError(f"{source}: pre-tokenizer {name!r} is not served")


def _sentence_piece(metadata: Mapping[str, Any], tokens: list[str], source: str) -> Tokenizer:
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise ModelFileError(f"{source}: tokenizer.ggml.scores do not fit the tokens")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    model = BPE(
        vocabulary,
        _merges(vocabulary, scores),
        unk_token=_named(metadata, "unknown", tokens, source),
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    space = normalizers.Replace(" ", "▁")
    stages: list[decoders.Decoder] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space])
        stages.append(decoders.Strip(content=" ", left=1))
    else:
        tokenizer.normalizer = space
    tokenizer.decoder = decoders.Sequence(stages)
    return tokenizer


def _merges(vocabulary: Mapping[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """SentencePiece joins the pair whose sum scores highest: all ways to make a token, best token first."""
    ways = []
    for token, index in vocabulary.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                ways.append((-scores[index], index, vocabulary[left], vocabulary[right], left, right))
    return [(left, right) for *_, left, right in sorted(ways)]
