"""tandem chat: one question, or a conversation, with the running cluster."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import asdict
from typing import Annotated, Any

import typer

from cluster.chat_client import Answer, ChatClient
from cluster.cli.connect import certificates, gateway, reaching, trust
from cluster.cli.failures import Exit, Failure, failure
from cluster.cli.greeting import KEY_VARIABLE
from cluster.cli.options import Format, Output, root
from cluster.cli.output import messages, print_data
from engine.errors import InvalidKey

LEAVE = {"/exit", "/quit", "/bye"}


def command(
    context: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="The question; without one, a conversation.")] = None,
    url: Annotated[str | None, typer.Option("--url", help="A gateway. Default: the local cluster's.")] = None,
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", envvar=KEY_VARIABLE, help="An API key, where the gateway asks for one."),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="A system message.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="The longest answer.")] = 512,
    temperature: Annotated[float, typer.Option("--temperature", min=0, max=2, help="0 is greedy.")] = 0.7,
    output: Output = Format.TABLE,
) -> None:
    """Chat with the model. Says which instances worked, and how fast, on stderr."""
    where = url or gateway()
    history = [_said("system", system)] if system else []
    parameters: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature}
    quiet = root(context).quiet
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
    if prompt is not None and not prompt.strip():
        raise Failure(Exit.USAGE, "usage", "no question", "give one as an argument or on standard input")
    verify = trust(where, certificates(root(context).tls))
    client = ChatClient(where, api_key=api_key, verify=verify)
    with closing(client), nullcontext() if url else reaching("gateway", where):
        while (text := prompt or _question()) is not None:
            history.append(_said("user", text))
            try:
                answer = client.ask(history, _show(output), **parameters)
            except InvalidKey as error:
                told = failure(error)
                told.hint = f"name a key: --api-key KEY, or {KEY_VARIABLE}"
                raise told from None
            history.append(_said("assistant", answer.text))
            _finish(answer, output, quiet=quiet)
            if prompt is not None:
                return


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _question() -> str | None:
    """The next line of a conversation; None at its end."""
    while True:
        sys.stderr.write("> ")
        sys.stderr.flush()
        line = sys.stdin.readline()
        if not line or line.strip() in LEAVE:
            return None
        if line.strip():
            return line.strip()


def _show(output: Format) -> Callable[[str], None]:
    def write(text: str) -> None:
        if output is Format.TABLE:
            sys.stdout.write(text)
            sys.stdout.flush()

    return write


def _finish(answer: Answer, output: Format, *, quiet: bool) -> None:
    if output.is_data:
        print_data(output, "ChatAnswer", [asdict(answer)])
        return
    sys.stdout.write("\n")
    sys.stdout.flush()
    messages(quiet=quiet).print(answer.summary(), style="dim")
