"""Types of request fields that pydantic has no word for: unions told apart by hand, for clear errors."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

MOST_PROMPTS = 256
"""Prompts of one request."""

MOST_STOPS = 64
MOST_BIASES = 1024
LONGEST_STOP = 4096

TOKEN = 2**31 - 1


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("wrong", "{message}", {"message": message})


def is_text(value: object) -> bool:
    """Whether a value is a string that UTF-8 can carry: JSON can spell lone surrogates."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_tokens(value: object) -> bool:
    return isinstance(value, list) and all(type(token) is int and 0 <= token <= TOKEN for token in value)


def _prompt(value: Any) -> list[str] | list[list[int]]:
    """Every form of a prompt as a list of prompts."""
    if is_text(value):
        return [value]
    if not isinstance(value, list) or not value:
        raise _wrong(
            "expected a string, a list of strings, a list of token ids or a list of lists of token ids"
        )
    if is_tokens(value):
        return [value]
    if len(value) > MOST_PROMPTS:
        raise _wrong(f"at most {MOST_PROMPTS} prompts in one request")
    if all(map(is_text, value)) or all(item and is_tokens(item) for item in value):
        return value
    raise _wrong(
        "expected a list of strings (valid UTF-8) or of lists of token ids, not a mixture, none of them empty"
    )


def _stop(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(map(is_text, stops)):
        raise _wrong("expected a string or a list of strings (valid UTF-8)")
    if len(stops) > MOST_STOPS:
        raise _wrong(f"at most {MOST_STOPS} stop strings")
    if any(not 1 <= len(stop) <= LONGEST_STOP for stop in stops):
        raise _wrong(f"a stop string has 1 to {LONGEST_STOP} characters")
    return tuple(stops)


def _logit_bias(value: Any) -> tuple[tuple[int, float], ...]:
    if not isinstance(value, dict):
        raise _wrong("expected a mapping of token id to bias")
    if len(value) > MOST_BIASES:
        raise _wrong(f"at most {MOST_BIASES} biases")
    bias: dict[int, float] = {}
    for key, amount in value.items():
        if not key.isascii() or not key.isdigit() or len(key) > 10 or int(key) > TOKEN:
            raise _wrong('expected token ids as keys, such as "1234"')
        if type(amount) not in (int, float) or not -100 <= amount <= 100:
            raise _wrong("expected biases from -100 to 100")
        bias[int(key)] = float(amount)
    return tuple(sorted(bias.items()))


def _text(value: Any) -> Any:
    if isinstance(value, str) and not is_text(value):
        raise _wrong("expected valid UTF-8: it holds a lone surrogate")
    return value


_STRINGS = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MOST_PROMPTS}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": TOKEN}, "minItems": 1}

Text = Annotated[str, BeforeValidator(_text)]
Prompts = Annotated[
    list[str] | list[list[int]],
    PlainValidator(_prompt),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                _STRINGS,
                _IDS,
                {"type": "array", "items": _IDS, "minItems": 1, "maxItems": MOST_PROMPTS},
            ]
        }
    ),
]
Stop = Annotated[
    tuple[str, ...],
    PlainValidator(_stop),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1, "maxLength": LONGEST_STOP},
                {
                    "type": "array",
                    "items": {"type": "string", "minLength": 1, "maxLength": LONGEST_STOP},
                    "maxItems": MOST_STOPS,
                },
            ]
        }
    ),
]
LogitBias = Annotated[
    tuple[tuple[int, float], ...],
    PlainValidator(_logit_bias),
    WithJsonSchema(
        {
            "type": "object",
            "maxProperties": MOST_BIASES,
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        }
    ),
]
TokenId = Annotated[int, Field(ge=0, le=TOKEN)]
