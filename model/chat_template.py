"""Chat messages to a prompt, by the model's own Jinja template in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.errors import InvalidParameter, ModelFileError


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

        messages: role and content, content as text; extra: further variables of the template.
        Raises InvalidParameter if the template refuses the messages.
        """
        values = {**extra, **self._special, "messages": messages, "tools": tools}
        try:
            return self._template.render(**values, add_generation_prompt=add_generation_prompt)
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise InvalidParameter(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error


def _to_json(value: Any, indent: int | None = None) -> str:
    """As text, not as HTML: Jinja's own filter escapes <, > and &."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
