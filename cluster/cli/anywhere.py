"""Global flags behind the verb too: a verb takes those that it has none of its own for, and tells of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

LEFT_OUT = {"help", "output", "install_completion", "show_completion"}
"""Forms of data are a verb's own: `-o` stands before any verb, and behind one that prints data."""


def with_global_flags(verb: Any, top: Any, given: Callable[[Any, str, Any], None]) -> Any:
    """The verb, or the group with all its verbs, which tells `given` of flags of `top`: context, name, value.

    They stand in no verb's help.
    """
    for one in _leaves(verb):
        taken = {"--help", *(name for own in one.params for name in (*own.opts, *own.secondary_opts))}
        names = {own.name for own in one.params}
        for flag in top.params:
            if flag.name not in LEFT_OUT | names and not taken & {*flag.opts[:1], *flag.secondary_opts}:
                one.params.append(_behind(flag, taken, given))
    return verb


def _behind(flag: Any, taken: set[str], given: Callable[[Any, str, Any], None]) -> Any:
    """A copy of a flag, without names that the verb has for something else."""
    copied = copy.copy(flag)
    copied.opts = [name for name in flag.opts if name not in taken]
    copied.default, copied.hidden, copied.expose_value = None, True, False

    def told(context: Any, parameter: Any, value: Any) -> None:
        source = context.get_parameter_source(parameter.name)
        if source is not None and source.name == "COMMANDLINE":
            given(context, parameter.name, value)

    copied.callback = told
    return copied


def _leaves(verb: Any) -> Iterator[Any]:
    inner = getattr(verb, "commands", None)
    if inner is None:
        yield verb
    else:
        for each in inner.values():
            yield from _leaves(each)
