"""What an output may be, as a grammar: of a JSON schema, of a pattern, of choices, of calls of functions.

A grammar is one text, so that it travels with its request like any other setting. It is written here and read
by llguidance alone, in grammar_matcher.py. JSON is written on one line, with a space after each comma and
colon, as models mostly write it themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llguidance import LLMatcher

LONGEST = 1 << 16
"""Characters of a grammar."""

MOST_CALLS = 16
"""Calls of one answer: a small model does not always know when it has called enough."""

CALL_BEGINS, CALL_ENDS = "<tool_call>", "</tool_call>"
"""What stands around a call, which is JSON, in the text of an answer."""

_JSON = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def of_schema(schema: Mapping[str, Any]) -> str:
    """JSON that a JSON schema allows."""
    return f"start: {_json(schema)}"


def of_pattern(pattern: str) -> str:
    """Texts that a regular expression (the syntax of Rust's regex crate) describes as a whole."""
    return str(LLMatcher.grammar_from_regex(pattern))


def of_choices(texts: Sequence[str]) -> str:
    """One of these texts."""
    return f"start: {' | '.join(map(_literal, texts))}"


def of_calls(functions: Mapping[str, Mapping[str, Any]], *, many: bool) -> str:
    """One call of these functions or, if `many`, up to MOST_CALLS, one after the other.

    functions: the JSON schema of the arguments, by name. Each schema is a document of its own, so that
    references inside it mean what they say.
    """
    calls = [f"call_{number}" for number in range(len(functions))]
    more = f' ("\\n" call){{0,{MOST_CALLS - 1}}}' if many else ""
    rules = [f"start: call{more}", f"call: {' | '.join(calls)}"]
    after = _literal("}\n" + CALL_ENDS)
    for call, (name, schema) in zip(calls, functions.items(), strict=True):
        before = _literal(f'{CALL_BEGINS}\n{{"name": {json.dumps(name)}, "arguments": ')
        rules.append(f"{call}: {before} arguments_{call} {after}")
        rules.append(f"arguments_{call}: {_json(schema)}")
    return "\n".join(rules)


def _json(schema: Mapping[str, Any]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': _JSON})}"


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
