"""What `tandem up` prints when it is ready: where it answers, how to ask, and one answer."""

from __future__ import annotations

import json
import sys

from cluster.chat_client import ChatClient
from cluster.cli.output import messages, out
from cluster.config import Config
from cluster.local_state import LocalState
from engine.errors import TandemError

# Longer than scheduler.local_prefill_tokens, so that both pools work on it.
QUESTION = (
    "Imagine that you explain to a friend what a large language model is. Please do so in no more than "
    "two short and simple sentences, without any technical words."
)


def print_addresses(state: LocalState, config: Config) -> None:
    """The address, a curl line and an openai snippet that work as printed."""
    console = out()
    url = state.gateways[0]
    console.print(f"\n[bold]{state.model} is served at {url}[/]\n")
    console.print(curl(url, state.model or "", config), markup=False)
    console.print()
    console.print(snippet(url, state.model or "", config), markup=False)
    sys.stdout.flush()


def curl(url: str, model: str, config: Config) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 64}
    key = f" -H 'Authorization: Bearer {config.gateway.api_keys[0]}'" if config.gateway.api_keys else ""
    return f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{json.dumps(body)}'"


def snippet(url: str, model: str, config: Config) -> str:
    key = config.gateway.api_keys[0] if config.gateway.api_keys else "none"
    return f"""from openai import OpenAI

client = OpenAI(base_url="{url}/v1", api_key="{key}")
stream = client.chat.completions.create(
    model="{model}", messages=[{{"role": "user", "content": "Hello!"}}], max_tokens=64, stream=True
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()"""


def ask_sample(state: LocalState, config: Config) -> None:
    """Stream one answer to stdout and say who made it. A failure is reported, and does not end anything."""
    key = config.gateway.api_keys[0] if config.gateway.api_keys else None
    client = ChatClient(state.gateways[0], api_key=key)
    out().print(f"\n[bold]>[/] {QUESTION}\n")
    try:
        answer = client.ask(
            [{"role": "user", "content": QUESTION}], _write, model=state.model, max_tokens=120, temperature=0
        )
    except TandemError as error:
        messages().print(f"[red]the sample question failed:[/] {error}")
    else:
        sys.stdout.write("\n\n")
        out().print(f"[dim]{answer.summary()}[/]")
    finally:
        client.close()
    out().print("\nServing until Ctrl-C.")
    sys.stdout.flush()


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
