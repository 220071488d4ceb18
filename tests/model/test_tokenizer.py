"""Text to tokens and back: as transformers does it, without loss, and piece by piece."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InvalidParameter, ModelFileError
from model.assets import Assets, load_assets
from model.chat_template import ChatTemplate
from model.gguf_tokenizer import tokenizer_json
from model.tokenizer import LONG_TEXT, Detokenizer, Tokenizer
from tests.model import tiny
from tests.model.identity import DATA, answers

ROOT = Path(__file__).resolve().parents[2]
PIECES = [
    "hello", " world", "123", "4567.89", " ", "  ", "\n", "\n\n", "\t", "don't", "I'LL", "é", "日本", "😀",
    "👩‍👩‍👧", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "def f(x):", "return", "==", "...", "½", "٣٤",
    "x" * 30, "\r\n", "\u200b",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(embedded: Assets) -> Tokenizer:
    return Tokenizer(embedded)


def texts(count: int) -> list[str]:
    rng = random.Random(3)
    return ["".join(rng.choices(PIECES, k=rng.randrange(1, 12))) for _ in range(count)]


def streamed(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push(token) for token in tokens), detokenizer.flush()]


def test_ids_and_texts_are_those_of_transformers(
    tokenizer: Tokenizer, embedded: Assets, oracle: Callable[..., None], tmp_path: Path, full: bool
) -> None:
    """With reduced counts those that are recorded: it takes transformers 15 s to read the tokenizer."""
    recorded = json.loads((DATA / "tokens_smollm2.json").read_text(encoding="utf-8"))
    given_texts, rows = texts(len(recorded)), recorded
    if full:
        given_texts = [*texts(2000), *(answer.text for answer in answers())]
        (tmp_path / "texts.json").write_text(json.dumps(given_texts))
        oracle("tokens.py", embedded.path, tmp_path / "texts.json", tmp_path / "rows.json")
        rows = json.loads((tmp_path / "rows.json").read_text())
        assert rows[: len(recorded)] == recorded
    for text, (ids, plain, shown) in zip(given_texts, rows, strict=True):
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids, skip_special=False) == plain
        assert tokenizer.decode(ids) == shown


# The vocabulary has no tokens for some bytes, which the model can neither read nor write.
SPELLABLE = st.characters(max_codepoint=0x3FFFF, codec="utf-8", exclude_characters="\x04\x06\x13\x14\x16\x1d")


@given(st.text(SPELLABLE))
def test_text_survives_a_round_trip(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text, parse_special=False)
    assert tokenizer.decode(tokens) == text
    assert "".join(streamed(tokenizer, tokens)) == text


@given(st.lists(st.integers(0, 49151), max_size=12))
def test_any_tokens_stream_as_they_decode(tokenizer: Tokenizer, tokens: list[int]) -> None:
    pieces = streamed(tokenizer, tokens)
    assert "".join(pieces) == tokenizer.decode(tokens)
    assert pieces == streamed(tokenizer, tokens)


def test_half_a_character_waits_for_the_other_half(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("😀")
    assert len(tokens) > 1
    assert streamed(tokenizer, tokens) == [""] * (len(tokens) - 1) + ["😀", ""]
    assert streamed(tokenizer, tokens[:-1])[-1] == "\ufffd"


def test_digits_are_split_one_by_one(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("1234567")) == 7


def test_special_tokens_are_parsed_only_if_asked(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("<|im_end|>") == [2]
    plain = tokenizer.encode("<|im_end|>", parse_special=False)
    assert not set(plain) & tokenizer.special_ids
    assert tokenizer.decode(plain) == "<|im_end|>"


def test_token_bytes_join_to_the_text(tokenizer: Tokenizer) -> None:
    text = "naïve 😀 text"
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))) == text.encode()


def test_threads_do_not_see_each_other_s_settings(tokenizer: Tokenizer) -> None:
    wrong: list[int] = []

    def work(special: bool) -> None:
        for _ in range(200):
            if (tokenizer.encode("<|im_end|>", parse_special=special) == [2]) != special:
                wrong.append(1)

    threads = [threading.Thread(target=work, args=(index % 2 == 0,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_long_text_has_the_tokens_that_the_library_gives_it(tokenizer: Tokenizer, embedded: Assets) -> None:
    """It takes another way from LONG_TEXT characters on."""
    library = tokenizers.Tokenizer.from_str(embedded.tokenizer)
    text = "".join(texts(500))
    for length in (LONG_TEXT - 1, LONG_TEXT, LONG_TEXT + 1, len(text)):
        assert tokenizer.encode(text[:length]) == library.encode(text[:length]).ids
    library.encode_special_tokens = True
    assert tokenizer.encode(text, parse_special=False) == library.encode(text).ids != tokenizer.encode(text)


def test_an_event_loop_goes_on_while_a_thread_tokenises_a_long_text(tokenizer: Tokenizer) -> None:
    text = "".join(texts(10_000))

    async def run() -> tuple[float, float]:
        begun = last = time.monotonic()
        longest = 0.0
        work = asyncio.create_task(asyncio.to_thread(tokenizer.encode, text))
        while not work.done():
            tokenizer.encode("hello world")
            await asyncio.sleep(0.001)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        return longest, last - begun

    longest, whole = asyncio.run(run())
    assert longest < whole / 2


def test_a_gateway_needs_no_torch() -> None:
    code = "import sys, model.assets, model.tokenizer; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


def test_models_are_named_after_their_files(embedded: Assets, tmp_path: Path) -> None:
    assert embedded.name == "SmolLM2-135M-Instruct"
    assert load_assets(tiny.write_folder(tmp_path / "My-Model-F", tiny.weights()), None).name == "My-Model-F"


def test_the_embedded_model_s_chat_template(tokenizer: Tokenizer) -> None:
    assert tokenizer.chat_template is not None
    prompt = tokenizer.chat_template.render([{"role": "user", "content": "hi"}])
    assert prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.eos_token_ids[0] == 2


def test_templates_have_what_they_rely_on() -> None:
    text = (
        "{%- for m in messages %}\n    {%- if loop.index > 1 %}{% break %}{% endif %}\n"
        "{{ m | tojson }}{% endfor %}\n"
        "{{ eos_token }}{% if tools %}{{ tools | length }}{% endif %}{{ extra }}"
    )
    template = ChatTemplate(text, {"eos_token": "</s>"}, "here")
    message = {"role": "user", "content": "<é>"}
    assert template.render([message, message], extra=5) == '{"role": "user", "content": "<é>"}</s>5'


TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALLED = {"type": "function", "function": {"name": "look", "arguments": {"at": "<é>"}}}


def test_a_template_that_knows_tools_is_given_them_as_they_are() -> None:
    text = "{{ tools | tojson }}{% for m in messages %}{{ m.tool_calls | tojson }}{% endfor %}"
    template = ChatTemplate(text, {}, "here")
    turn = {"role": "assistant", "content": "", "tool_calls": [CALLED]}
    assert template.render([turn], tools=[TOOL]) == json.dumps([TOOL]) + json.dumps(
        [CALLED], ensure_ascii=False
    )


def test_one_that_does_not_is_told_in_a_system_message() -> None:
    template = ChatTemplate("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}", {}, "here")
    turns = [
        {"role": "user", "content": "see"},
        {"role": "assistant", "content": "I look.", "tool_calls": [CALLED]},
        {"role": "tool", "content": "rain", "tool_call_id": "1"},
    ]
    prompt = template.render(turns, tools=[TOOL])
    assert prompt.startswith("[system] ") and json.dumps(TOOL) in prompt.split("[user]")[0]
    call = '<tool_call>\n{"name": "look", "arguments": {"at": "<é>"}}\n</tool_call>'
    assert prompt.endswith(f"[user] see\n[assistant] I look.\n{call}\n[tool] rain\n")
    mine = {"role": "system", "content": "Be brief."}
    assert template.render([mine, *turns], tools=[TOOL]).startswith("[system] Be brief.\n\n")
    assert template.render(turns[:1]) == "[user] see\n"


@pytest.mark.parametrize(
    "text",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[9].content.strip() }}",
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ 'a' + 1 }}",
        "{{ 1 / 0 }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ],
)
def test_a_template_that_refuses_is_the_caller_s_error(text: str) -> None:
    with pytest.raises(InvalidParameter, match="chat template") as caught:
        ChatTemplate(text, {}, "here").render([])
    assert caught.value.param == "messages"


def test_a_broken_template_is_named() -> None:
    with pytest.raises(ModelFileError, match="here: the chat template"):
        ChatTemplate("{% if %}", {}, "here")


def test_a_broken_tokenizer_is_named(embedded: Assets) -> None:
    for text in ("{}", "nonsense"):
        with pytest.raises(ModelFileError, match="tokenizer cannot be read"):
            Tokenizer(dataclasses.replace(embedded, tokenizer=text))


def test_a_folder_s_own_files(tmp_path: Path) -> None:
    folder = tiny.write_folder(tmp_path / "folder", tiny.weights())
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ bos_token }}old"}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    assets = load_assets(folder, None)
    tokenizer = Tokenizer(assets)
    assert tokenizer.eos_token_ids == (2, 0)
    assert tokenizer.chat_template is not None
    assert tokenizer.chat_template.render([]) == "<|im_start|>old"
    (folder / "chat_template.jinja").write_text("new")
    renewed = Tokenizer(load_assets(folder, None)).chat_template
    assert renewed is not None
    assert renewed.render([]) == "new"


TURNS = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
NAMES: dict[str, tuple[dict[str, Any], str]] = {
    "as-text": (
        {"bos_token": "<|endoftext|>", "eos_token": "<|im_start|>"},
        "<|endoftext|>[user]hi<|im_start|>",
    ),
    "as-tokens": (
        {"bos_token": {"content": "<|im_end|>"}, "eos_token": {"content": "<|endoftext|>"}},
        "<|im_end|>[user]hi<|endoftext|>",
    ),
    "null": ({"bos_token": None, "eos_token": "<|endoftext|>"}, "[user]hi<|endoftext|>"),
}


def named_folder(folder: Path, names: dict[str, Any]) -> Path:
    """A model whose config.json has other first and last tokens than its tokenizer_config.json."""
    tiny.write_folder(folder, tiny.weights())
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TURNS, **names}
    for name in ("bos_token", "eos_token"):
        if isinstance(settings[name], dict):
            flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
            settings[name] = {"__type": "AddedToken", **flags, **settings[name]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_a_prompt_has_the_special_tokens_that_its_template_was_written_for(
    oracle: Callable[..., None], tmp_path: Path
) -> None:
    folders = [named_folder(tmp_path / name, names) for name, (names, _) in NAMES.items()]
    messages = [{"role": "user", "content": "hi"}]
    prompts = []
    for folder in folders:
        template = Tokenizer(load_assets(folder, None)).chat_template
        assert template is not None
        prompts.append(template.render(messages))
    assert prompts == [prompt for _, prompt in NAMES.values()]
    (tmp_path / "messages.json").write_text(json.dumps(messages))
    oracle("templates.py", tmp_path / "messages.json", tmp_path / "prompts.json", *folders)
    assert json.loads((tmp_path / "prompts.json").read_text()) == prompts


def test_ends_that_the_model_cannot_draw_are_left_out(tmp_path: Path) -> None:
    folder = tiny.write_folder(tmp_path / "folder", tiny.weights(), bos_token_id=tiny.VOCABULARY)
    ends = [tiny.VOCABULARY, 2, -1, tiny.VOCABULARY - 1]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    assets = load_assets(folder, None)
    assert (assets.bos_token_id, assets.eos_token_ids) == (None, (2, tiny.VOCABULARY - 1))
    far = {"tokenizer.ggml.eos_token_id": tiny.VOCABULARY, "tokenizer.ggml.bos_token_id": tiny.VOCABULARY}
    assets = load_assets(tiny.write_gguf(tmp_path / "model.gguf", tiny.weights(), fields=far), None)
    assert (assets.bos_token_id, assets.eos_token_ids) == (None, (0, 2))


def test_a_model_may_have_more_rows_than_its_tokenizer_has_tokens(tmp_path: Path) -> None:
    rows = tiny.VOCABULARY + 64
    folder = tiny.write_folder(
        tmp_path / "folder", tiny.weights(), vocab_size=rows, eos_token_id=[2, rows - 1]
    )
    tokenizer = Tokenizer(load_assets(folder, None))
    assert tokenizer.vocab_size == rows
    assert tokenizer.eos_token_ids == (2, rows - 1)
    assert tokenizer.decode([*tokenizer.encode("hello"), rows - 1]) == "hello"


SPLITS = {
    "smollm": [("ab12 cd", ["ab", "1", "2", "Ġcd"]), ("it's", ["it", "'s"])],
    "gpt-2": [("ab12 cd", ["ab", "12", "Ġcd"]), ("it's  x", ["it", "'s", "Ġ", "Ġx"])],
    "llama-bpe": [("ab12345 cd", ["ab", "123", "45", "Ġcd"]), ("IT'S\n\nx", ["IT", "'S", "ĊĊ", "x"])],
    "qwen2": [("ab123 cd", ["ab", "1", "2", "3", "Ġcd"]), ("x. \n y", ["x", ".", "ĠĊ", "Ġy"])],
    "default": [("ab12 c", ["ab", "12", "Ġc"]), ("a+b 1234", ["a", "+", "b", "Ġ", "123", "4"])],
}


@pytest.mark.parametrize("name", SPLITS)
def test_splitters_of_gguf(name: str) -> None:
    """The expected pieces follow llama.cpp's regular expressions for the name."""
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": tiny.TOKENS,
        "tokenizer.ggml.merges": tiny.MERGES,
    }
    splitter = tokenizers.Tokenizer.from_str(tokenizer_json(metadata, "here")).pre_tokenizer
    for text, expected in SPLITS[name]:
        assert [piece for piece, _ in splitter.pre_tokenize_str(text)] == expected


SPM = [
    "<unk>",
    "<s>",
    "</s>",
    *(f"<0x{byte:02X}>" for byte in range(256)),
    "▁",
    "a",
    "b",
    "▁a",
    "ab",
    "▁ab",
    "ba",
    "aba",
]
SCORES = [0.0] * 259 + [-9.0, -8.0, -8.5, -1.0, -2.0, -3.0, -1.5, -4.0]


def sentence_piece(text: str) -> list[str]:
    """SentencePiece by its definition: join the neighbours whose union scores highest, leftmost first."""
    pieces = list("▁" + text.replace(" ", "▁"))
    while True:
        unions = [(SCORES[SPM.index(x + y)], -n) for n, (x, y) in enumerate(pairwise(pieces)) if x + y in SPM]
        if not unions:
            break
        at = -max(unions)[1]
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    return [p if p in SPM else "".join(f"<0x{b:02X}>" for b in p.encode()) for p in pieces]


def spm_assets(embedded: Assets) -> Assets:
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": SPM,
        "tokenizer.ggml.scores": SCORES,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * 8,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
    }
    return dataclasses.replace(embedded, tokenizer=tokenizer_json(metadata, "here"), chat_template=None)


@given(st.text("ab cé", min_size=1, max_size=12))
def test_sentence_piece_joins_the_best_pair_first(embedded: Assets, text: str) -> None:
    tokenizer = Tokenizer(spm_assets(embedded))
    ids = tokenizer.encode(text, add_bos=False)
    assert "".join(SPM[token] for token in ids) == "".join(sentence_piece(text))
    assert tokenizer.decode(ids) == text


def test_a_first_token_is_added_where_the_model_expects_it(embedded: Assets) -> None:
    tokenizer = Tokenizer(spm_assets(embedded))
    assert tokenizer.encode("ab")[0] == 1
    assert tokenizer.encode("ab", add_bos=False)[0] != 1


def test_a_streamed_first_space_is_kept(embedded: Assets) -> None:
    tokenizer = Tokenizer(spm_assets(embedded))
    ids = tokenizer.encode("ab", add_bos=False)
    assert "".join(streamed(tokenizer, ids)) == " ab"
    assert tokenizer.decode(ids) == "ab"
