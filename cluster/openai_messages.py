"""The messages of a chat: text and calls of functions, in the roles that chat templates know."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from cluster.openai_fields import Text
from engine.errors import InvalidParameter, UnsupportedParameter


class Part(BaseModel):
    """A part of a message's content."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: Text
    text: Text | None = None


class CalledFunction(BaseModel):
    """`arguments` is JSON."""

    model_config = ConfigDict(extra="allow", strict=True)

    name: Text
    arguments: Text


class ToolCall(BaseModel):
    """A call that the assistant made earlier."""

    model_config = ConfigDict(extra="allow", strict=True)

    id: Text | None = None
    type: Literal["function"] | None = None
    function: CalledFunction

    def plain(self, where: str) -> dict[str, Any]:
        """Templates write the arguments themselves. Raises InvalidParameter if they are no object."""
        try:
            arguments = json.loads(self.function.arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            raise InvalidParameter(
                f"'{where}.function.arguments' is not a JSON object", param=f"{where}.function.arguments"
            )
        function = {"name": self.function.name, "arguments": arguments}
        return {"id": self.id or "", "type": "function", "function": function}


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[Part] | None = None
    name: Text | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: Text | None = None

    def plain(self, where: str) -> dict[str, Any]:
        """For the chat template. Raises UnsupportedParameter for what is not text."""
        for name in ("function_call", "audio"):
            if (self.model_extra or {}).get(name):
                raise UnsupportedParameter(f"'{where}.{name}' is not supported", param=f"{where}.{name}")
        role = "system" if self.role == "developer" else self.role
        if self.content is None and self.role != "assistant":
            raise InvalidParameter(f"'{where}.content' is missing", param=f"{where}.content")
        turn: dict[str, Any] = {"role": role, "content": self._text(where)}
        if self.role == "tool":
            turn |= {"tool_call_id": self.tool_call_id or "", "name": self.name or ""}
        if self.role == "assistant" and self.tool_calls:
            listed = enumerate(self.tool_calls)
            turn["tool_calls"] = [call.plain(f"{where}.tool_calls.{number}") for number, call in listed]
        return turn

    def _text(self, where: str) -> str:
        if not isinstance(self.content, list):
            return self.content or ""
        for number, part in enumerate(self.content):
            inside = f"{where}.content.{number}"
            if part.type != "text":
                raise UnsupportedParameter(
                    f"'{inside}': only parts of type text are supported", param=f"{inside}.type"
                )
            if part.text is None:
                raise InvalidParameter(f"'{inside}.text' is missing", param=f"{inside}.text")
        return "".join(part.text or "" for part in self.content)
