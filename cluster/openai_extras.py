"""Fields of a request that no model declares: refused where they would change the answer, else ignored."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from engine.errors import UnsupportedParameter

logger = logging.getLogger("tandem.gateway")

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "add_special_tokens": (True, False),
    "allowed_token_ids": ([],),
    "audio": (),
    "bad_words": ([],),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "kv_transfer_params": (),
    "length_penalty": (1, 1.0),
    "modalities": (["text"],),
    "prediction": (),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "skip_special_tokens": (True,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "web_search_options": (),
}
"""Fields that change the answer's meaning and are not supported, with the values that ask for nothing."""

_HARMLESS = frozenset(
    {
        "logprobs",
        "metadata",
        "prompt_cache_key",
        "reasoning_effort",
        "safety_identifier",
    }
    | {"service_tier", "store", "verbosity", "request_id", "echo", "top_logprobs"}
)
_MOST_WARNINGS = 256
_warned: set[str] = set()


def check_extras(extras: Mapping[str, Any]) -> None:
    """Raises UnsupportedParameter for what may not be ignored; warns of the unknown, once."""
    for name, value in extras.items():
        if value is None:
            continue
        if name in _NEUTRAL and not any(_same(value, neutral) for neutral in _NEUTRAL[name]):
            raise UnsupportedParameter(f"'{name}' is not supported; leave it out", param=name)
        if name not in _NEUTRAL and name not in _HARMLESS:
            _warn(name)


def _warn(name: str) -> None:
    if name not in _warned and len(_warned) < _MOST_WARNINGS:
        _warned.add(name)
        logger.warning("ignoring the unknown request field %.100r", name)


def _same(value: Any, neutral: Any) -> bool:
    """Equality that tells 1 from true."""
    return type(value) is type(neutral) and bool(value == neutral)
