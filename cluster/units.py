"""Quantities of memory (256Mi) and durations (250ms): numbers in a config that must say their unit."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer, ValidationInfo, WithJsonSchema

# Kubernetes' suffixes, and B for what is no multiple of one.
QUANTITY_UNITS = {
    "B": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip
DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
_QUANTITY = f"{_NUMBER}({'|'.join(QUANTITY_UNITS)})"
_DURATION = f"{_NUMBER}({'|'.join(DURATION_UNITS)})"

# With this key in the validation context a bare number is refused: nobody can say what 256 is.
UNITS_REQUIRED = "units"


def parse_quantity(text: str) -> int:
    """Bytes of a quantity such as 256Mi. Raises ValueError."""
    match = re.fullmatch(_QUANTITY, text)
    if match is None:
        raise ValueError("not a quantity")
    value = float(match[1]) * QUANTITY_UNITS[match[2]]
    if value == math.inf:
        raise ValueError("too large a quantity")
    return round(value)


def format_quantity(value: int) -> str:
    """The shortest exact quantity: parse_quantity(format_quantity(n)) == n."""
    for unit in ("Ti", "Gi", "Mi", "Ki"):
        if value and value % QUANTITY_UNITS[unit] == 0:
            return f"{value // QUANTITY_UNITS[unit]}{unit}"
    return f"{value}B"


def parse_duration(text: str) -> float:
    """Seconds of a duration such as 250ms. Raises ValueError."""
    match = re.fullmatch(_DURATION, text)
    if match is None:
        raise ValueError("not a duration")
    value = float(match[1]) * DURATION_UNITS[match[2]]
    if value == math.inf:
        raise ValueError("too long a duration")
    return value


def format_duration(value: float) -> str:
    """An exact duration in seconds, or in whole milliseconds below one second; never with an exponent."""
    milliseconds = round(value * 1000)
    if value < 1 and math.isclose(value * 1000, milliseconds, rel_tol=1e-12):
        return f"{milliseconds}ms"
    return f"{int(value)}s" if value == int(value) else f"{Decimal(repr(value)):f}s"


def _quantity(value: object, info: ValidationInfo) -> object:
    if isinstance(value, str):
        return parse_quantity(value)
    return _bare(value, info)


def _duration(value: object, info: ValidationInfo) -> object:
    if isinstance(value, str):
        return parse_duration(value)
    return _bare(value, info)


def _bare(value: object, info: ValidationInfo) -> object:
    if value is not None and (info.context or {}).get(UNITS_REQUIRED):
        raise ValueError("a unit is missing")
    return value


Quantity = Annotated[
    int,
    BeforeValidator(_quantity),
    PlainSerializer(format_quantity, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": f"^{_QUANTITY}$", "format": "quantity"}),
]
"""Bytes; in YAML a string with a unit."""

Duration = Annotated[
    float,
    BeforeValidator(_duration),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": f"^{_DURATION}$", "format": "duration"}),
]
"""Seconds; in YAML a string with a unit."""


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its noun: 1 object, 2 objects; `many` where that is not `one` with an s."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"
