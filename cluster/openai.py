"""Requests of the OpenAI API: what a body may hold, and clear refusals of what it may not."""

from __future__ import annotations

import json
import math
from functools import cached_property
from typing import Annotated, Any, ClassVar, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.openai_extras import check_extras
from cluster.openai_fields import LogitBias, Prompts, Stop, Text, TokenId
from cluster.openai_messages import Message
from cluster.openai_tools import ChosenTool, ToolChoice, Tools, demanded, offered
from cluster.structured import ResponseFormat, Shape, StructuredOutputs, only
from engine.errors import InvalidParameter, UnsupportedMediaType, UnsupportedParameter
from engine.request import Sampling
from model import grammar

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class SamplingBody(BaseModel):
    """What completions and chats have in common. A null stands for the default everywhere."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    model: Text
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: Stop | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    logit_bias: LogitBias | None = None
    min_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = None
    include_stop_str_in_output: bool | None = None
    user: Annotated[Text, Field(max_length=512)] | None = None
    priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    subject: ClassVar[str] = "prompt"

    @property
    def limit(self) -> int | None:
        """The most tokens of a choice, None for as many as there is room for."""
        return self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """How many alternatives to report beside each token, None for no log-probabilities."""
        return None

    def shapes(self) -> list[Shape]:
        """What the answer has to be; all that the body says about it."""
        asked = (self.response_format, self.structured_outputs)
        return [shape for one in asked if one is not None for shape in one.shapes()]

    @cached_property
    def shape(self) -> Shape | None:
        """What the answer has to be, None for any text. Raises InvalidParameter for several at once."""
        return only(self.shapes())

    def sampling(self, max_tokens: int, seed: int) -> Sampling:
        """`seed` is used where the body has none."""
        shape = self.shape
        return Sampling(
            max_tokens=max_tokens,
            temperature=_or(self.temperature, 1.0),
            top_k=max(0, _or(self.top_k, 0)),
            top_p=_or(self.top_p, 1.0),
            min_p=_or(self.min_p, 0.0),
            seed=seed if self.seed is None else self.seed % 2**64,
            n=_or(self.n, 1),
            presence_penalty=_or(self.presence_penalty, 0.0),
            frequency_penalty=_or(self.frequency_penalty, 0.0),
            repetition_penalty=_or(self.repetition_penalty, 1.0),
            logit_bias=_or(self.logit_bias, ()),
            logprobs=self.alternatives,
            stop=_or(self.stop, ()),
            stop_token_ids=tuple(dict.fromkeys(self.stop_token_ids or ())),
            include_stop=bool(self.include_stop_str_in_output),
            ignore_eos=bool(self.ignore_eos),
            min_tokens=_or(self.min_tokens, 0),
            grammar="" if shape is None else shape.grammar,
        )

    def check(self) -> None:
        """What one field alone cannot say. Raises InvalidParameter or UnsupportedParameter."""
        check_extras(self.model_extra or {})
        if self.best_of is not None and self.best_of != _or(self.n, 1):
            raise UnsupportedParameter("'best_of' must be equal to 'n' or left out", param="best_of")
        if self.stream_options is not None and not self.stream:
            raise InvalidParameter("'stream_options' needs 'stream': true", param="stream_options")
        if self.min_tokens is not None and self.limit is not None and self.min_tokens > self.limit:
            raise InvalidParameter(
                f"'min_tokens' is above the limit of {self.limit} tokens", param="min_tokens"
            )
        shape = self.shape
        if shape is not None and (self.ignore_eos or self.min_tokens):
            param = "ignore_eos" if self.ignore_eos else "min_tokens"
            raise InvalidParameter(
                f"'{param}' and '{shape.param}' exclude each other: that says where the answer ends",
                param=param,
            )


class CompletionBody(SamplingBody):
    """POST /v1/completions."""

    prompt: Prompts
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = None

    @property
    def alternatives(self) -> int | None:
        return self.logprobs

    def check(self) -> None:
        super().check()
        if self.echo and self.logprobs is not None:
            raise UnsupportedParameter("'logprobs' of an echoed prompt are not supported", param="logprobs")


class ChatBody(SamplingBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    subject: ClassVar[str] = "messages"

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def alternatives(self) -> int | None:
        return _or(self.top_logprobs, 0) if self.logprobs else None

    def check(self) -> None:
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise InvalidParameter("'top_logprobs' needs 'logprobs': true", param="top_logprobs")
        self.conversation()

    def shapes(self) -> list[Shape]:
        functions = demanded(self.tools, self.tool_choice)
        if not functions:
            return super().shapes()
        many = self.parallel_tool_calls is not False and not isinstance(self.tool_choice, ChosenTool)
        calls = grammar.of_calls(functions, many=many)
        return [*super().shapes(), Shape(calls, "tool_choice")]

    def offered(self) -> list[dict[str, Any]]:
        """The tools that the model is told of."""
        return offered(self.tools, self.tool_choice)

    def conversation(self) -> list[dict[str, Any]]:
        """The messages as a chat template takes them."""
        return [message.plain(f"messages.{number}") for number, message in enumerate(self.messages)]


class TokenizeBody(BaseModel):
    """POST /tokenize: a prompt, or messages as a chat would send them."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: Text | None = None
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    tools: Tools | None = None

    def check(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidParameter("give either 'prompt' or 'messages'", param="prompt")


class DetokenizeBody(BaseModel):
    """POST /detokenize."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: Text | None = None
    tokens: list[TokenId]

    def check(self) -> None:
        """Every field speaks for itself."""


class Body(Protocol):
    """What a body is read into."""

    @classmethod
    def model_validate(cls, obj: Any) -> Self: ...

    def check(self) -> None:
        """Raises InvalidParameter or UnsupportedParameter for fields that don't go together."""


AnyBody = TypeVar("AnyBody", bound=Body)


def parse(kind: type[AnyBody], content_type: str, body: bytes) -> AnyBody:
    """The body as a checked value. Raises UnsupportedMediaType, InvalidParameter or UnsupportedParameter."""
    media = content_type.partition(";")[0].strip().lower()
    if media != "application/json" and not (media.startswith("application/") and media.endswith("+json")):
        raise UnsupportedMediaType(
            f"the body must be application/json, not {media or 'without a content type'}"
        )
    try:
        # NaN and Infinity are let through here, so that the field that holds one can be named.
        value = json.loads(body.decode("utf-8"), parse_int=_integer)
    except UnicodeDecodeError as error:
        raise InvalidParameter(f"the body is not valid UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise InvalidParameter(f"the body is not valid JSON: {error}") from error
    except (RecursionError, ValueError) as error:
        raise InvalidParameter("the body is nested too deep") from error
    if not isinstance(value, dict):
        raise InvalidParameter("the body must be a JSON object")
    try:
        parsed = kind.model_validate(value)
        parsed.check()
    except ValidationError as error:
        raise _refusal(error) from error
    except RecursionError as error:
        raise InvalidParameter("the body is nested too deep") from error
    return parsed


def _refusal(error: ValidationError) -> InvalidParameter:
    # Of a union's members the one that came furthest speaks.
    first = max(error.errors(include_url=False, include_context=False), key=lambda found: len(found["loc"]))
    # Members of unions stand in the location as type names.
    param = ".".join(
        str(step) for step in first["loc"] if not str(step).endswith("]") and step not in _MEMBERS
    )
    if first["type"] == "missing":
        return InvalidParameter(f"missing required parameter '{param}'", param=param)
    return InvalidParameter(f"invalid '{param}': {first['msg']}", param=param)


_MEMBERS = frozenset({"ChosenTool"})
"""Classes in unions."""


def _integer(digits: str) -> int | float:
    """Python refuses to read integers of thousands of digits; as an infinity they are refused by field."""
    return int(digits) if len(digits) <= 400 else math.copysign(math.inf, -1 if digits[0] == "-" else 1)


T = TypeVar("T")


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
