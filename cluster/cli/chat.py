"""tandem chat: one question, or a conversation, with the running cluster."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

import typer

from cluster.chat_client import Answer, ChatClient
from cluster.cli.connect import local
from cluster.cli.failures import Exit, Failure
from cluster.cli.greeting import KEY_VARIABLE
from cluster.cli.options import Format, Output, root
from cluster.cli.output import messages, print_json
from cluster.tls import pinned

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
    certificate = None if url else local().certificate
    client = ChatClient(
        url or _gateway(), api_key=api_key, verify=pinned(certificate) if certificate else None
    )
    history = [{"role": "system", "content": system}] if system else []
    parameters: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature}
    quiet = root(context).quiet
    try:
        if prompt is not None or not sys.stdin.isatty():
            text = prompt if prompt is not None else sys.stdin.read()
            answer = client.ask([*history, _said("user", text)], _show(output), **parameters)
            _finish(answer, output, quiet=quiet)
            return
        while (text := _question()) is not None:
            history.append(_said("user", text))
            answer = client.ask(history, _show(output), **parameters)
            history.append(_said("assistant", answer.text))
            _finish(answer, output, quiet=quiet)
    finally:
        client.close()


def _gateway() -> str:
    state = local()
    if not state.gateways:
        raise Failure(Exit.UNREACHABLE, "unreachable", "the local cluster is still starting", "try again")
    return state.gateways[0]


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
    if output is Format.JSON:
        print_json("ChatAnswer", [asdict(answer)])
        return
    sys.stdout.write("\n")
    sys.stdout.flush()
    messages(quiet=quiet).print(f"[dim]{answer.summary()}[/]")
