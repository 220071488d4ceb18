"""Chat messages to a prompt, by the model's own Jinja template in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.errors import InvalidParameter, ModelFileError
from model.grammar import CALL_BEGINS, CALL_ENDS

_REFUSALS = (
    TemplateError,
    TypeError,
    ValueError,
    KeyError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
_TOOLS = """These functions can be called, one per line:
<tools>
{tools}
</tools>
To call one, answer with its name and its arguments as JSON between these marks:
{begins}
{call}
{ends}"""


class ChatTemplate:
    """A compiled template. Whitespace, filters and functions are those that Hugging Face templates rely on.

    `strftime_now` is left undefined: a prompt depends on its messages, not on the clock.
    """

    def __init__(self, text: str, special: Mapping[str, str], source: str) -> None:
        """special: names of tokens that templates use (bos_token, eos_token). Raises ModelFileError."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        self._special = dict(special)
        try:
            self._template = environment.from_string(text)
            self._knows_tools = "tools" in meta.find_undeclared_variables(environment.parse(text))
        except TemplateSyntaxError as error:
            raise ModelFileError(f"{source}: the chat template cannot be read: {error}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> str:
        """The prompt of a conversation, special tokens by name.

        messages: role and content, content as text; tools: functions that may be called, as OpenAI's API
        has them; extra: further variables of the template. Where it knows nothing of tools, a system message
        tells of them, and calls made earlier are written into the text.
        Raises InvalidParameter if the template refuses the messages.
        """
        if not self._knows_tools:
            messages, tools = _with_tools(messages, tools or ()), None
        values = {**extra, **self._special, "messages": messages, "tools": tools}
        try:
            return self._template.render(**values, add_generation_prompt=add_generation_prompt)
        except _REFUSALS as error:
            raise InvalidParameter(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error


def _with_tools(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """The conversation in nothing but role and content."""
    turns = [_with_calls(turn) for turn in messages]
    if not tools:
        return turns
    told = _TOOLS.format(
        tools="\n".join(map(_to_json, tools)),
        begins=CALL_BEGINS,
        ends=CALL_ENDS,
        call='{"name": …, "arguments": {…}}',
    )
    if turns and turns[0]["role"] == "system":
        return [{**turns[0], "content": f"{turns[0]['content']}\n\n{told}"}, *turns[1:]]
    return [{"role": "system", "content": told}, *turns]


def _with_calls(turn: Mapping[str, Any]) -> Mapping[str, Any]:
    calls = [call["function"] for call in turn.get("tool_calls", ())]
    if not calls:
        return turn
    written = (f"{CALL_BEGINS}\n{_to_json(call)}\n{CALL_ENDS}" for call in calls)
    return {"role": turn["role"], "content": "\n".join(filter(None, (turn["content"], *written)))}


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As text, not as HTML: Jinja's own filter escapes <, > and &."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
