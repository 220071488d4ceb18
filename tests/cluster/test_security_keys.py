"""API keys: hashed at rest, never shown, read again when their file changes; tenants by key."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli.greeting import curl, snippet
from cluster.cli.main import build
from cluster.config import Config, GatewayConfig
from cluster.keys import MOST_KEYS, Entry, Keys, draw, entry, hashed, read_file
from engine.errors import ConfigError


def test_a_key_has_256_random_bits_and_its_hash_is_sha256() -> None:
    key, other = draw(), draw()
    assert key != other and re.fullmatch(r"tk-[A-Za-z0-9_-]{43}", key)
    assert hashed(key) == f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def test_each_key_is_its_tenants() -> None:
    keys = Keys([hashed("a" * 20, "acme"), hashed("b" * 20, "zeta"), hashed("c" * 20), "plain-key"])
    assert [keys.tenant(key) for key in ("a" * 20, "b" * 20, "c" * 20, "plain-key")] == [
        "acme",
        "zeta",
        "",
        "",
    ]
    assert [keys.tenant(key) for key in ("", "a" * 19, "A" * 20, hashed("a" * 20), "x\udcff")] == [None] * 5


def test_a_hash_is_no_key() -> None:
    line = hashed("a" * 20)
    assert Keys([line]).tenant(line) is None


@pytest.mark.parametrize(
    "value",
    ["sha256:abc", "acme=sha256:xyz", "a b", "", "ключ", " =sha256:" + "0" * 64, "sha256:" + "G" * 64],
)
def test_what_is_no_entry_is_refused_without_being_shown(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        entry(value)
    assert not value or value not in caught.value.message


def test_a_key_file_has_hashes_only(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# of today\n{hashed('a' * 20, 'acme')}   # Ann's\n\n{hashed('b' * 20)}\n")
    assert [one.tenant for one in read_file(file)] == ["acme", ""]
    file.write_text("\na-plain-key\n")
    with pytest.raises(ConfigError, match=r"keys:2: expected \[TENANT=\]sha256:HEX") as caught:
        read_file(file)
    assert "a-plain-key" not in caught.value.message


def test_a_missing_or_binary_key_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Keys([], tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="no text file"):
        Keys([], tmp_path / "binary")


def test_more_keys_than_can_be_compared_in_time_are_refused() -> None:
    with pytest.raises(ConfigError, match="more than"):
        Keys([f"sha256:{number:064x}" for number in range(MOST_KEYS + 1)])


def test_the_key_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    file, now = tmp_path / "keys", [0.0]
    file.write_text(hashed("old-old-old-old-old", "acme"))
    keys = Keys([], file, clock=lambda: now[0])
    file.write_text(hashed("new-new-new-new-new-new", "acme") + "\n")
    assert keys.tenant("old-old-old-old-old") == "acme", "it looks once a second"
    now[0] = 2.0
    assert keys.tenant("old-old-old-old-old") is None
    assert keys.tenant("new-new-new-new-new-new") == "acme"


@pytest.mark.parametrize("damage", ["garbage", None])
def test_a_key_file_that_is_damaged_or_gone_locks_nobody_out(tmp_path: Path, damage: str | None) -> None:
    file, now = tmp_path / "keys", [0.0]
    file.write_text(hashed("the-key-of-before"))
    keys = Keys([], file, clock=lambda: now[0])
    if damage is None:
        file.unlink()
    else:
        file.write_text(damage)
    now[0] = 2.0
    assert keys.tenant("the-key-of-before") == ""


def test_a_key_file_that_could_not_be_read_is_read_again_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file, now = tmp_path / "keys", [0.0]
    file.write_text(hashed("a-key-that-is-revoked", "acme"))
    keys = Keys([], file, clock=lambda: now[0])
    file.write_text(hashed("the-key-in-its-place-", "acme") + "\n")

    def fail(path: Path) -> tuple[Entry, ...]:
        raise ConfigError("too many open files", param="gateway.key_file")

    with monkeypatch.context() as failing:
        failing.setattr("cluster.keys.read_file", fail)
        for now[0] in (2.0, 4.0):
            assert keys.tenant("a-key-that-is-revoked") == "acme"
    now[0] = 6.0
    assert keys.tenant("a-key-that-is-revoked") is None
    assert keys.tenant("the-key-in-its-place-") == "acme"
    assert [record.levelname for record in caplog.records].count("ERROR") == 1, "it is told once"


def test_an_empty_key_file_lets_nobody_in(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# none yet\n")
    keys = Keys([], tmp_path / "keys")
    assert keys and keys.tenant("anything") is None


# The command line


def test_a_new_key_is_printed_once_and_only_its_hash_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    found = []
    for tenant in ("acme", ""):
        done = CliRunner().invoke(build(), ["key", "new", "--file", str(file), "--tenant", tenant])
        assert done.exit_code == 0, done.output
        found.append(done.stdout.strip())
    assert file.read_text() == f"{hashed(found[0], 'acme')}\n{hashed(found[1])}\n"
    assert file.stat().st_mode & 0o777 == 0o600
    keys = Keys([], file)
    assert [keys.tenant(key) for key in found] == ["acme", ""]


def test_a_new_key_without_a_file_comes_with_its_hash_on_stderr() -> None:
    done = CliRunner().invoke(build(), ["key", "new", "--tenant", "acme"])
    assert hashed(done.stdout.strip(), "acme") in done.stderr


def test_a_hash_is_made_of_standard_input() -> None:
    done = CliRunner().invoke(build(), ["key", "hash", "--tenant", "acme"], input="my-own-longer-key\n")
    assert done.stdout == hashed("my-own-longer-key", "acme") + "\n"


def test_a_key_that_the_config_would_refuse_gets_no_hash() -> None:
    done = CliRunner().invoke(build(), ["key", "hash"], input=f"{'k' * 15}\n")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "shorter than 16 characters: draw one" in done.stderr


def test_a_tenants_name_that_cannot_be_one_is_refused() -> None:
    assert CliRunner().invoke(build(), ["key", "new", "--tenant", "a b"]).exit_code == 2


def test_config_show_masks_every_secret(tmp_path: Path) -> None:
    file = tmp_path / "tandem.yaml"
    file.write_text(
        "gateway: {api_keys: [hush-key-one], metrics_token: hush-two}\n"
        "control: {token: hush-three}\nadmin: {token: hush-four}\n"
    )
    for options in ([], ["--origin"], ["-o", "json"]):
        done = CliRunner().invoke(build(), ["config", "show", "-f", str(file), *options])
        assert done.exit_code == 0 and "hush" not in done.output
        assert done.output.count("…") >= 4


def test_the_greeting_shows_no_key() -> None:
    config = Config(gateway=GatewayConfig(api_keys=("hush-hush-hush-hush",)))
    for text in (curl("http://g", "m", config), snippet("http://g", "m", config)):
        assert "hush" not in text
    assert '-H "Authorization: Bearer $OPENAI_API_KEY"' in curl("http://g", "m", config)
    assert "api_key" not in snippet("http://g", "m", config)


def test_a_secret_on_the_command_line_is_warned_of() -> None:
    done = CliRunner().invoke(
        build(), ["config", "show", "--set", "control.token=hush", "--set", "log.level=info"]
    )
    assert done.exit_code == 0
    assert "every user of this machine can read control.token" in done.stderr
    assert "TANDEM_CONTROL__TOKEN" in done.stderr and "log.level" not in done.stderr
    assert "hush" not in done.output
