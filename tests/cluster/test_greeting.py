"""What `tandem up` says when it is ready."""

from __future__ import annotations

import pytest

from cluster.chat_client import ChatClient
from cluster.cli import greeting
from cluster.cli.greeting import ask_sample
from cluster.config import Config, load
from cluster.local_state import LocalState

STATE = LocalState(pid=1, cluster="c", scratch="s", gateways=["http://127.0.0.1:1"], model="tiny")


def sizes(prefill: int, decode: int) -> Config:
    pools = {"prefill": prefill, "decode": decode}
    given = {
        f"pools.{pool}.{key}": size for pool, size in pools.items() for key in ("replicas", "min_replicas")
    }
    return load(None, given)


@pytest.mark.parametrize(("prefill", "decode", "asked"), [(0, 0, False), (0, 1, True), (1, 0, True)])
def test_a_sample_is_asked_for_where_an_instance_could_answer(
    prefill: int,
    decode: int,
    asked: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asking: list[str] = []

    def client(url: str, **options: object) -> ChatClient:
        asking.append(url)
        return ChatClient(url)

    monkeypatch.setattr(greeting, "ChatClient", client)
    ask_sample(STATE, sizes(prefill, decode))
    told = capsys.readouterr().out
    assert (bool(asking), "No sample: no pool has an instance." in told) == (asked, not asked)
    assert told.endswith("Serving until Ctrl-C.\n")
