"""Functions that a chat's client offers, and which of them the model is to call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cluster.openai_fields import Text
from engine.errors import InvalidParameter

MOST_TOOLS = 128

Name = Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]


class Function(BaseModel):
    """A function; `parameters` is the JSON schema of its arguments, None for a function without any."""

    model_config = ConfigDict(extra="allow", strict=True)

    name: Name
    description: Text | None = None
    parameters: dict[str, Any] | None = None


class Tool(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    type: Literal["function"]
    function: Function


class ChosenFunction(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    name: Text


class ChosenTool(BaseModel):
    """The one function to call."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: Literal["function"]
    function: ChosenFunction


Tools = Annotated[list[Tool], Field(max_length=MOST_TOOLS)]
ToolChoice = Literal["none", "auto", "required"] | ChosenTool


def offered(tools: Sequence[Tool] | None, choice: ToolChoice | None) -> list[dict[str, Any]]:
    """The tools as a chat template takes them; none where none may be called."""
    if choice == "none":
        return []
    return [tool.model_dump(exclude_none=True) for tool in tools or ()]


def demanded(tools: Sequence[Tool] | None, choice: ToolChoice | None) -> dict[str, dict[str, Any]]:
    """The schemas, by name, of the functions one of which has to be called; empty where the model is free.

    Raises InvalidParameter for a choice that there is not.
    """
    known = {tool.function.name: _schema(tool.function.parameters) for tool in tools or ()}
    if choice is None or choice in ("none", "auto"):
        return {}
    if not known:
        raise InvalidParameter("'tool_choice' needs 'tools' to choose from", param="tool_choice")
    if not isinstance(choice, ChosenTool):
        return known
    name = choice.function.name
    if name not in known:
        raise InvalidParameter(
            f"'tool_choice' names '{name[:64]}'; the tools are {', '.join(list(known)[:8])}",
            param="tool_choice.function.name",
        )
    return {name: known[name]}


def _schema(parameters: dict[str, Any] | None) -> dict[str, Any]:
    """Arguments are an object, also where a schema forgets to say so."""
    return {"type": "object", **parameters} if parameters else _NOTHING


_NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
