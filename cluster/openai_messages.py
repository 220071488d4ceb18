"""The messages of a chat: text only, in the roles that chat templates know."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from cluster.openai_fields import Text
from engine.errors import InvalidParameter, UnsupportedParameter


class Part(BaseModel):
    """A part of a message's content."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: Text
    text: Text | None = None


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[Part] | None = None

    def plain(self, where: str) -> dict[str, str]:
        """For the chat template. Raises UnsupportedParameter for what is not text."""
        for name in ("tool_calls", "function_call", "audio"):
            if (self.model_extra or {}).get(name):
                raise UnsupportedParameter(f"'{where}.{name}' is not supported", param=f"{where}.{name}")
        role = "system" if self.role == "developer" else self.role
        if self.content is None and self.role != "assistant":
            raise InvalidParameter(f"'{where}.content' is missing", param=f"{where}.content")
        if not isinstance(self.content, list):
            return {"role": role, "content": self.content or ""}
        for number, part in enumerate(self.content):
            inside = f"{where}.content.{number}"
            if part.type != "text":
                raise UnsupportedParameter(
                    f"'{inside}': only parts of type text are supported", param=f"{inside}.type"
                )
            if part.text is None:
                raise InvalidParameter(f"'{inside}.text' is missing", param=f"{inside}.text")
        return {"role": role, "content": "".join(part.text or "" for part in self.content)}
