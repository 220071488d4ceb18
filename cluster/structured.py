"""What a client wants the answer to be: `response_format` of OpenAI, `structured_outputs` of vLLM."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from cluster.openai_fields import Text
from engine.errors import InvalidParameter
from model import grammar
from model.grammar_matcher import Matchers

MOST_CHOICES = 1024
LONGEST_GRAMMAR = 8192
"""Characters of a client's own grammar: llguidance reads rule within rule, on a stack that ends."""

_ANY_OBJECT = {"type": "object"}


class Shape(NamedTuple):
    """A grammar for a whole answer, and the field that asked for it."""

    grammar: str
    param: str


class SchemaFormat(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    name: Text | None = None
    definition: dict[str, Any] | None = Field(default=None, alias="schema")


class ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None

    def shapes(self) -> Iterator[Shape]:
        if self.type == "json_object":
            yield Shape(grammar.of_schema(_ANY_OBJECT), "response_format")
        if self.type == "json_schema":
            if self.json_schema is None or self.json_schema.definition is None:
                raise InvalidParameter(
                    "missing required parameter 'response_format.json_schema.schema'",
                    param="response_format.json_schema.schema",
                )
            yield _of_schema(self.json_schema.definition, "response_format.json_schema.schema")


class StructuredOutputs(BaseModel):
    """One of these; a field that is not known would change the answer, and is refused."""

    model_config = ConfigDict(extra="forbid", strict=True)

    definition: dict[str, Any] | None = Field(default=None, alias="json")
    regex: Text | None = None
    choice: Annotated[list[Text], Field(min_length=1, max_length=MOST_CHOICES)] | None = None
    grammar: Annotated[Text, Field(max_length=LONGEST_GRAMMAR)] | None = None
    json_object: bool | None = None

    def shapes(self) -> Iterator[Shape]:
        if self.definition is not None:
            yield _of_schema(self.definition, "structured_outputs.json")
        if self.regex is not None:
            yield Shape(grammar.of_pattern(self.regex), "structured_outputs.regex")
        if self.choice is not None:
            yield Shape(grammar.of_choices(self.choice), "structured_outputs.choice")
        if self.grammar is not None:
            yield Shape(self.grammar, "structured_outputs.grammar")
        if self.json_object:
            yield Shape(grammar.of_schema(_ANY_OBJECT), "structured_outputs.json_object")


def only(shapes: list[Shape]) -> Shape | None:
    """The one shape that is asked for. Raises InvalidParameter if there are several."""
    if len(shapes) > 1:
        names = " and ".join(f"'{shape.param}'" for shape in shapes[:3])
        raise InvalidParameter(f"an answer has one shape: {names} exclude each other", param=shapes[1].param)
    return shapes[0] if shapes else None


def check(shape: Shape, matchers: Matchers) -> None:
    """Raises InvalidParameter if the grammar cannot be followed; may take a moment."""
    if len(shape.grammar) > grammar.LONGEST:
        fault = f"it has {len(shape.grammar)} characters as a grammar; the most are {grammar.LONGEST}"
    else:
        fault = matchers.fault(shape.grammar)
    if fault:
        raise InvalidParameter(f"'{shape.param}' cannot be followed: {fault}", param=shape.param)


def _of_schema(schema: Mapping[str, Any], param: str) -> Shape:
    return Shape(grammar.of_schema(schema), param)
