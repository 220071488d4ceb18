"""Addresses that go to other machines, and settings that come from a Serve config."""

from __future__ import annotations

import socket

import pytest

from cluster.app import _load
from cluster.rpc import reachable
from engine.errors import ConfigError


@pytest.mark.parametrize("address", ["0.0.0.0:80", "http://0.0.0.0:80", "[::]:80"])
def test_all_interfaces_become_the_machine_s_own_address(address: str) -> None:
    own = socket.gethostbyname(socket.gethostname())
    assert reachable(address) == address.replace("0.0.0.0", own).replace("[::]", own)


@pytest.mark.parametrize("address", ["10.0.0.0:80", "127.0.0.1:80", "http://host:80", "", "[fe80::]:80"])
def test_any_other_address_stays(address: str) -> None:
    assert reachable(address) == address


def test_texts_among_the_arguments_of_the_application_count() -> None:
    config, _ = _load({"gateway.host": "0.0.0.0", "model.name": "small"})
    assert config.gateway.host == "0.0.0.0"


def test_arguments_that_are_all_text_as_serve_run_gives_them_are_read_as_yaml() -> None:
    found, _ = _load(
        {
            "gateway.port": "8001",
            "security.exposed": "[gateway.host]",
            "control.token": "123",
            "engine.kv_memory": "4Mi",
        }
    )
    assert (found.gateway.port, found.security.exposed) == (8001, ("gateway.host",))
    assert (found.control.token, found.engine.kv_memory) == ("123", 4 << 20)


def test_a_wrong_argument_is_named() -> None:
    with pytest.raises(ConfigError, match=r"args: gateway\.port"):
        _load({"gateway.port": "many"})
