"""What others could reach is refused at the start, for every host setting, with the reason and the remedy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster import certificates, exposure
from cluster.app import build
from cluster.config import Config
from cluster.keys import draw, hashed
from engine.errors import ConfigError

SECRET = "a secret that nobody will guess"
REMEDIES = {
    "gateway.host": "gateway.key_file",
    "control.host": "control.token",
    "transfer.host": "control.token",
    "admin.host": "admin.token",
}


def config(**settings: Any) -> Config:
    """Settings by dotted path, dots written as two underscores."""
    data: dict[str, Any] = {}
    for name, value in settings.items():
        here = data
        *path, last = name.split("__")
        for step in path:
            here = here.setdefault(step, {})
        here[last] = value
    return Config.model_validate(data)


def refusal(**settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        exposure.check(config(**settings))
    return caught.value.message


def host(setting: str, address: str) -> dict[str, Any]:
    return {setting.replace(".", "__"): address}


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
@pytest.mark.parametrize("setting", REMEDIES)
def test_loopback_needs_nothing(setting: str, address: str) -> None:
    exposure.check(config(**host(setting, address)))


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.1.2.3", "192.168.0.7", "fe80::1", "gpu-7.example"])
@pytest.mark.parametrize("setting", REMEDIES)
def test_any_other_address_without_a_secret_is_refused(setting: str, address: str) -> None:
    message = refusal(**host(setting, address))
    assert message.startswith(f"{setting}: {address} is open to other machines")
    assert REMEDIES[setting] in message
    assert f"add {setting} to security.exposed" in message


def test_every_host_setting_of_the_config_is_looked_at() -> None:
    """Whoever adds a port adds it to exposure._ports too."""
    sections = Config().model_dump()
    hosts = {f"{name}.host" for name, section in sections.items() if "host" in section}
    assert hosts == set(REMEDIES)


def test_all_that_is_open_is_named_at_once() -> None:
    lines = refusal(gateway__host="0.0.0.0", control__host="::", transfer__host="0.0.0.0").splitlines()
    assert [line.partition(":")[0] for line in lines] == ["gateway.host", "control.host", "transfer.host"]


@pytest.mark.parametrize("keys", [(hashed(draw()),), (hashed(draw(), "acme"),), (SECRET.replace(" ", "-"),)])
def test_an_api_key_opens_the_gateway_to_others(keys: tuple[str, ...]) -> None:
    exposure.check(config(gateway__host="0.0.0.0", gateway__api_keys=keys))


def test_a_key_file_opens_it_too(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(hashed(draw()))
    exposure.check(config(gateway__host="0.0.0.0", gateway__key_file=str(tmp_path / "keys")))


def test_tokens_open_the_ports_of_operators_and_of_the_cluster() -> None:
    exposure.check(config(control__host="0.0.0.0", transfer__host="0.0.0.0", control__token=SECRET))
    exposure.check(config(admin__host="0.0.0.0", admin__token=SECRET))


@pytest.mark.parametrize(
    "settings",
    [
        {"control__host": "0.0.0.0", "control__token": "short"},
        {"transfer__host": "0.0.0.0", "control__token": "short"},
        {"gateway__host": "0.0.0.0", "gateway__api_keys": ("short",)},
        {"admin__host": "0.0.0.0", "admin__token": "short"},
    ],
)
def test_a_secret_that_can_be_guessed_is_none(settings: dict[str, Any]) -> None:
    assert "shorter than 16 characters" in refusal(**settings)


def test_certificates_of_clients_open_ports_and_a_servers_alone_does_not(tmp_path: Path) -> None:
    certificates.create(tmp_path, [])
    files = {"certificate": str(tmp_path / "cluster.pem"), "key": str(tmp_path / "cluster.key")}
    both = {**files, "authority": str(tmp_path / "authority.pem")}
    exposure.check(config(gateway__host="0.0.0.0", security__gateway_tls=both))
    exposure.check(config(admin__host="0.0.0.0", security__admin_tls=both))
    exposure.check(config(control__host="0.0.0.0", transfer__host="::", security__cluster_tls=both))
    assert "nothing keeps anybody out" in refusal(gateway__host="0.0.0.0", security__gateway_tls=files)


def test_what_is_open_on_purpose_is_named() -> None:
    exposure.check(config(gateway__host="0.0.0.0", security__exposed=["gateway.host"]))
    message = refusal(gateway__host="0.0.0.0", control__host="0.0.0.0", security__exposed=["gateway.host"])
    assert message.startswith("control.host") and "\n" not in message


def test_an_unknown_name_among_them_is_refused() -> None:
    assert "'gateway' is no host setting" in refusal(security__exposed=["gateway"])


def test_half_a_certificate_is_refused(tmp_path: Path) -> None:
    assert "needs both certificate and key" in refusal(security__gateway_tls={"certificate": "a.pem"})
    assert "all three" in refusal(security__cluster_tls={"certificate": "a.pem", "key": "a.key"})
    missing = {"certificate": str(tmp_path / "a.pem"), "key": str(tmp_path / "a.key")}
    assert "cannot be read" in refusal(security__gateway_tls=missing)


def test_a_key_that_is_of_another_certificate_is_refused(tmp_path: Path) -> None:
    certificates.create(tmp_path, [])
    files = {"certificate": str(tmp_path / "cluster.pem"), "key": str(tmp_path / "client.key")}
    assert "no certificate with its key" in refusal(security__admin_tls=files)


def test_the_application_for_serve_is_refused_too() -> None:
    with pytest.raises(ConfigError, match=r"^gateway\.host"):
        build(config(gateway__host="0.0.0.0"))


def test_the_command_line_ends_with_a_usage_error(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", "from cluster.cli.start import main; main()"]
    environment = {"XDG_STATE_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [*command, "up", "--host", "0.0.0.0"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "gateway.host: 0.0.0.0 is open to other machines" in done.stderr
    assert "tandem key new" in done.stderr


def test_keys_are_hashed_before_they_are_sent_to_other_processes() -> None:
    settled = exposure.with_hashed_keys(
        config(gateway__api_keys=(SECRET.replace(" ", "-"), hashed("x", "t")))
    )
    assert settled.gateway.api_keys == (hashed(SECRET.replace(" ", "-")), hashed("x", "t"))
    assert SECRET.replace(" ", "-") not in settled.model_dump_json()


def test_files_have_their_whole_paths_in_processes_that_work_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {
        "gateway": {"key_file": "keys"},
        "scheduler": {"record": "decisions"},
        "security": {"gateway_tls": {"certificate": "tls/a.pem", "key": "/b.pem"}},
    }
    found = exposure.with_whole_paths(Config.model_validate(given))
    assert found.gateway.key_file == str(tmp_path / "keys")
    assert found.scheduler.record == str(tmp_path / "decisions")
    assert found.security.gateway_tls.certificate == str(tmp_path / "tls" / "a.pem")
    assert found.security.gateway_tls.key == "/b.pem"
