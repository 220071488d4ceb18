"""What `tandem up` prints when it is ready: where it answers, how to ask, and one answer."""

from __future__ import annotations

import json
import os
import shlex
import ssl
import sys
from dataclasses import dataclass
from pathlib import Path

from cluster import exposure
from cluster.chat_client import ChatClient
from cluster.cli.output import messages, out, styled
from cluster.config import Config
from cluster.keys import is_hashed
from cluster.local_state import LocalState
from cluster.tls import Tls, pinned
from engine.errors import TandemError

KEY_VARIABLE = "OPENAI_API_KEY"
# Longer than scheduler.local_prefill_tokens, so that both pools work on it.
QUESTION = (
    "Imagine that you explain to a friend what a large language model is. Please do so in no more than "
    "two short and simple sentences, without any technical words."
)


def print_addresses(state: LocalState, config: Config) -> None:
    """The address, a curl line and an openai snippet that work as printed."""
    console = out()
    url = state.gateways[0]
    console.print(f"\n{state.model} is served at {url}\n", style="bold")
    believe = Believe.of(config)
    console.print(curl(url, state.model or "", config, believe))
    console.print()
    console.print(snippet(url, state.model or "", config, believe))
    console.print("\nThe web console: `tandem console` prints its address and token.")
    sys.stdout.flush()


@dataclass(frozen=True, slots=True)
class Believe:
    """What a client of the gateway is told about certificates: files in PEM, each None where it needs none.

    `authority` signed the gateway's; `client` is the folder's of one that clients may show, with its key.
    """

    authority: str | None = None
    client: str | None = None

    @classmethod
    def of(cls, config: Config) -> Believe:
        security = exposure.with_whole_paths(config).security
        gateway = security.gateway_tls
        if gateway.certificate is None:
            return cls()
        from cluster.certificates import AUTHORITY, CLIENT, authority_of

        beside = Path(gateway.certificate).parent / f"{AUTHORITY}.pem"
        named = (gateway.authority, security.admin_tls.authority, security.cluster_tls.authority)
        known = [file for file in named if file is not None]
        client = None if gateway.authority is None else Path(gateway.authority).parent / f"{CLIENT}.pem"
        return cls(
            authority_of(gateway.certificate, [*known, beside, gateway.certificate]),
            None if client is None or not _pair(client) else str(client),
        )

    @property
    def key(self) -> str:
        """Of `client`."""
        return str(Path(self.client or "").with_suffix(".key"))


PLAIN = Believe()


def curl(url: str, model: str, config: Config, believe: Believe = PLAIN) -> str:
    """Keys are not shown: they come from the variable that OpenAI's clients read too."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 64}
    key = f' -H "Authorization: Bearer ${KEY_VARIABLE}"' if _asks_for_keys(config) else ""
    tls = f"--cacert {shlex.quote(believe.authority)} " if believe.authority else ""
    if believe.client:
        tls += f"--cert {shlex.quote(believe.client)} --key {shlex.quote(believe.key)} "
    where = f"{tls}{url}/v1/chat/completions"
    return f"curl {where} -H 'Content-Type: application/json'{key} -d '{json.dumps(body)}'"


def snippet(url: str, model: str, config: Config, believe: Believe = PLAIN) -> str:
    key = "" if _asks_for_keys(config) else ', api_key="none"'
    head = "from openai import OpenAI\n"
    if believe.authority or believe.client:
        file = f"cafile={believe.authority!r}" if believe.authority else ""
        head = "import ssl\n\nfrom openai import DefaultHttpxClient, OpenAI\n\n"
        head += f"tls = ssl.create_default_context({file})\n"
        if believe.client:
            head += f"tls.load_cert_chain({believe.client!r}, {believe.key!r})\n"
        key += ", http_client=DefaultHttpxClient(verify=tls)"
    return f"""{head}
client = OpenAI(base_url="{url}/v1"{key})
stream = client.chat.completions.create(
    model="{model}", messages=[{{"role": "user", "content": "Hello!"}}], max_tokens=64, stream=True
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()"""


def ask_sample(state: LocalState, config: Config) -> None:
    """Stream one answer to stdout and say who made it. A failure is reported, and does not end anything."""
    if not config.pools.prefill.replicas + config.pools.decode.replicas:
        out().print("\nNo sample: no pool has an instance.\nServing until Ctrl-C.")
        sys.stdout.flush()
        return
    known = [key for key in config.gateway.api_keys if not is_hashed(key)]
    key = known[0] if known else os.environ.get(KEY_VARIABLE)
    believe = Believe.of(config)
    unknown = config.security.gateway_tls.authority and not believe.client
    if unknown or (_asks_for_keys(config) and not key):
        needs = "a certificate of a client" if unknown else f"a key in {KEY_VARIABLE}"
        out().print(f"\nNo sample: it needs {needs}.\nServing until Ctrl-C.")
        sys.stdout.flush()
        return
    try:
        verify = _meeting(config, believe)
    except (OSError, TandemError) as error:
        messages().print(styled(("no sample:", "red"), f" {error}"))
        out().print("\nServing until Ctrl-C.")
        return
    client = ChatClient(state.gateways[0], api_key=key, verify=verify)
    out().print(styled("\n", (">", "bold"), f" {QUESTION}\n"))
    try:
        answer = client.ask(
            [{"role": "user", "content": QUESTION}], _write, model=state.model, max_tokens=120, temperature=0
        )
    except TandemError as error:
        messages().print(styled(("the sample question failed:", "red"), f" {error}"))
    else:
        sys.stdout.write("\n\n")
        out().print(answer.summary(), style="dim")
    finally:
        client.close()
    out().print("\nServing until Ctrl-C.")
    sys.stdout.flush()


def _meeting(config: Config, believe: Believe) -> ssl.SSLContext | None:
    """Whom the sample believes and what it shows; None for plain HTTP. Raises OSError, ConfigError."""
    certificate = config.security.gateway_tls.certificate
    if certificate is None:
        return None
    context = pinned(certificate)
    if believe.client:
        Tls(believe.client, believe.key, None, setting="the sample's certificate").show(context)
    return context


def _pair(client: Path) -> bool:
    return client.is_file() and client.with_suffix(".key").is_file()


def _asks_for_keys(config: Config) -> bool:
    return bool(config.gateway.api_keys or config.gateway.key_file)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
