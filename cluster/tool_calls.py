"""Calls of functions in the text of an answer, as models of the Hermes kind write them.

    I will look. <tool_call>
    {"name": "weather", "arguments": {"city": "Oslo"}}
    </tool_call>

A call is told once it is whole, so that nothing of it has to be taken back; what turns out not to be one is
text. Everything here depends on the text so far alone, and so does who comes back in the middle of a stream.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

from cluster.openai_fields import is_text
from model.grammar import CALL_BEGINS, CALL_ENDS


class Call(NamedTuple):
    """`number` counts the calls of one choice from 0; `arguments` is JSON."""

    number: int
    id: str
    name: str
    arguments: str

    def body(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


@dataclass(frozen=True, slots=True)
class Told:
    """What is new for the client."""

    text: str = ""
    calls: tuple[Call, ...] = ()


class CallReader:
    """The calls of one choice, whose name makes their ids. `count` is how many there were."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._held = ""
        self._inside = False
        self._fresh = False
        self._looked = 0
        self.count = 0

    def push(self, text: str) -> Told:
        """The next piece of the text."""
        self._held += text
        shown, calls = "", list[Call]()
        while True:
            if not self._inside:
                shown += self._before()
                if not self._inside:
                    return Told(shown, tuple(calls))
            found = self._call()
            if found is None:
                return Told(shown, tuple(calls))
            calls += found

    def end(self) -> Told:
        """There is no more text: what was held back is no call."""
        held, self._held = self._held, ""
        return Told(CALL_BEGINS + held if self._inside else held)

    def _before(self) -> str:
        """Text up to the next call, or up to what may become the beginning of one; after a call without the
        space that sets it off."""
        if self._fresh:
            self._held = self._held.lstrip()
            self._fresh = not self._held
        text, begins, rest = self._held.partition(CALL_BEGINS)
        if begins:
            self._held, self._inside, self._looked = rest, True, 0
            return text
        keep = max(n for n in range(len(CALL_BEGINS)) if text.endswith(CALL_BEGINS[:n]))
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _call(self) -> list[Call] | None:
        """What is called up to the first end that makes sense; None if there is none yet."""
        while (end := self._held.find(CALL_ENDS, self._looked)) >= 0:
            found = _read(self._held[:end])
            if found is not None:
                self._held = self._held[end + len(CALL_ENDS) :]
                self._inside, self._fresh = False, True
                return [self._numbered(name, arguments) for name, arguments in found]
            self._looked = end + 1
        self._looked = max(self._looked, len(self._held) - len(CALL_ENDS) + 1)
        return None

    def _numbered(self, name: str, arguments: str) -> Call:
        number, self.count = self.count, self.count + 1
        said = f"{self._name}/{number}/{name}/{arguments}".encode("utf-8", "surrogatepass")
        digest = sha256(said).hexdigest()
        return Call(number, f"call_{digest[:24]}", name, arguments)


def _read(text: str) -> list[tuple[str, str]] | None:
    """Names and arguments of one call, or of a list of them; None if it is neither."""
    try:
        value = _parsed(text)
        calls = value if isinstance(value, list) else [value]
        return [(_name(call["name"]), _arguments(call.get("arguments"))) for call in calls] or None
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return None


def _name(value: Any) -> str:
    if not is_text(value):
        raise ValueError("a name is text")
    return str(value)


def _arguments(value: Any) -> str:
    """As JSON, of an object or of the text of one. Raises ValueError for anything else."""
    found = _parsed(value) if isinstance(value, str) else {} if value is None else value
    if not isinstance(found, dict):
        raise ValueError("arguments have names")
    text = json.dumps(found, ensure_ascii=False, allow_nan=False)
    return text if is_text(text) else json.dumps(found)


def _parsed(text: str) -> Any:
    return json.loads(text, parse_constant=_refused)


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
