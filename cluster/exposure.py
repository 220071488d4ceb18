"""What others could reach: a start that would let anybody in is refused, with the reason and the remedy.

Every port listens on loopback unless told otherwise. One that does not needs a secret or client certificates:

    gateway.host       API keys, or gateway_tls with an authority
    control.host       control.token, or cluster_tls; gateways listen there for tokens as well (push)
    transfer.host      the same
    admin.host         admin.token, or admin_tls with an authority

`security.exposed` names those that are open on purpose.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import tls
from cluster.config import Config
from cluster.keys import Keys, hashed, is_hashed
from engine.errors import ConfigError

SHORTEST = 16
"""Characters of a secret that others may try to guess: 96 bits where they were drawn from 64 symbols."""
TOO_SHORT = f"shorter than {SHORTEST} characters: draw one, such as with `openssl rand -hex 24`"

_FILES = {"gateway_tls", "admin_tls", "cluster_tls"}


@dataclass(frozen=True, slots=True)
class Port:
    """One host setting: whether it is protected, what its secrets are, and what would protect it."""

    setting: str
    host: str
    protected: bool
    secrets: tuple[str, ...]
    remedy: str


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return host == "localhost"


def check(config: Config) -> None:
    """Raises ConfigError with everything that is wrong; reads the certificates and the key file once."""
    gateway, security = config.gateway, config.security
    problems = []
    try:
        Keys(gateway.api_keys, gateway.key_file)
        for one in (
            tls.http_tls(security.gateway_tls, "security.gateway_tls"),
            tls.http_tls(security.admin_tls, "security.admin_tls"),
            tls.cluster_tls(security.cluster_tls),
        ):
            if one is not None:
                one.check()
    except ConfigError as error:
        problems.append(error.message)
    problems += _exposed(config)
    if problems:
        raise ConfigError("\n".join(problems), param="security")


def _exposed(config: Config) -> Iterator[str]:
    ports = _ports(config)
    known = [port.setting for port in ports]
    for name in config.security.exposed:
        if name not in known:
            yield f"security.exposed: {name!r} is no host setting: {', '.join(known)}"
    for port in ports:
        if is_loopback(port.host) or port.setting in config.security.exposed:
            continue
        if not port.protected:
            yield (
                f"{port.setting}: {port.host} is open to other machines, and nothing keeps anybody out: "
                f"{port.remedy}; or add {port.setting} to security.exposed to let everybody in"
            )
        elif any(len(secret) < SHORTEST for secret in port.secrets):
            yield f"{port.setting}: {port.host} is open to other machines, and its secret is {TOO_SHORT}"


def _ports(config: Config) -> tuple[Port, ...]:
    gateway, security, token = config.gateway, config.security, config.control.token
    inside = bool(token) or security.cluster_tls.authority is not None
    secret = () if token is None else (token,)
    inside_remedy = (
        "set control.token (TANDEM_CONTROL__TOKEN; `openssl rand -hex 24` draws one) or security.cluster_tls"
    )
    admin = config.admin.token
    return (
        Port(
            "gateway.host",
            gateway.host,
            bool(gateway.api_keys or gateway.key_file or security.gateway_tls.authority),
            tuple(key for key in gateway.api_keys if not is_hashed(key)),
            "give clients keys (gateway.key_file; `tandem key new` draws one) or set security.gateway_tls "
            "with an authority for client certificates",
        ),
        Port("control.host", config.control.host, inside, secret, inside_remedy),
        Port("transfer.host", config.transfer.host, inside, secret, inside_remedy),
        Port(
            "admin.host",
            config.admin.host,
            bool(admin or security.admin_tls.authority),
            () if admin is None else (admin,),
            "set admin.token (TANDEM_ADMIN__TOKEN) or security.admin_tls with an authority for client "
            "certificates",
        ),
    )


def with_whole_paths(config: Config) -> Config:
    """Files by their whole path: processes of the cluster have working folders of their own."""
    sections: dict[str, Any] = {}
    for name in _FILES:
        section = getattr(config.security, name)
        files = {
            key: _whole(value)
            for key in ("certificate", "key", "authority")
            if (value := getattr(section, key)) is not None
        }
        sections[name] = section.model_copy(update=files)
    security = config.security.model_copy(update=sections)
    update: dict[str, Any] = {"security": security}
    if config.gateway.key_file is not None:
        file = _whole(config.gateway.key_file)
        update["gateway"] = config.gateway.model_copy(update={"key_file": file})
    if config.scheduler.record is not None:
        file = _whole(config.scheduler.record)
        update["scheduler"] = config.scheduler.model_copy(update={"record": file})
    return config.model_copy(update=update)


def with_hashed_keys(config: Config) -> Config:
    """Without the keys themselves: what is sent to the processes of the cluster need not hold them."""
    keys = tuple(key if is_hashed(key) else hashed(key) for key in config.gateway.api_keys)
    return config.model_copy(update={"gateway": config.gateway.model_copy(update={"api_keys": keys})})


def _whole(path: str) -> str:
    return os.path.abspath(Path(path).expanduser())
