"""Files that the config names and pods have from Secrets which are made by hand.

security.gateway_tls   NAME-gateway-tls    tls.crt, tls.key
security.admin_tls     NAME-admin-tls      tls.crt, tls.key, ca.crt where there is an authority
gateway.key_file       NAME-gateway-keys   keys

Every pod of Ray has them, for whoever builds the application reads them once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from cluster.config import Config
from cluster.tls import Tls, http_tls
from engine.errors import ConfigError
from k8s.objects import certificates
from k8s.objects.names import CACHE, MODELS
from k8s.yaml_text import Object

GATEWAY_TLS, ADMIN_TLS, KEY_FILE = "security.gateway_tls", "security.admin_tls", "gateway.key_file"
VOLUMES = {GATEWAY_TLS: "gateway-tls", ADMIN_TLS: "admin-tls", KEY_FILE: "gateway-keys"}
TAKEN = (CACHE, MODELS, certificates.FOLDER, "/home/ray", "/tmp/ray", "/etc/ssl/certs")
"""Folders that something else is in: a volume in their place, or above them, would hide it."""


@dataclass(frozen=True, slots=True)
class Files:
    """Of one setting: the key of each in the Secret, and where pods have it: all in one folder."""

    setting: str
    volume: str
    paths: dict[str, PurePosixPath]

    @property
    def folder(self) -> PurePosixPath:
        return next(iter(self.paths.values())).parent


def secrets(name: str) -> set[str]:
    """The Secrets of the tandem of that name that there may be."""
    return {f"{name}-{volume}" for volume in VOLUMES.values()}


def gateway_scheme(config: Config) -> str:
    """How the gateways' port is spoken to."""
    return "http" if config.security.gateway_tls.certificate is None else "https"


def volumes(config: Config) -> list[Object]:
    """A volume for each setting that names files. Raises ConfigError for what no volume can put there."""
    return [
        {
            "name": files.volume,
            "secret": {
                "secretName": f"{config.kubernetes.name}-{files.volume}",
                "items": [{"key": key, "path": path.name} for key, path in files.paths.items()],
            },
        }
        for files in _all(config)
    ]


def mounts(config: Config) -> list[Object]:
    """Where a container has them. Raises ConfigError as `volumes` does."""
    return [
        {"name": files.volume, "mountPath": str(files.folder), "readOnly": True} for files in _all(config)
    ]


def _all(config: Config) -> list[Files]:
    found: list[Files] = []
    for files in _named(config):
        _refuse_what_cannot_be_mounted(config, files, found)
        found.append(files)
    return found


def _named(config: Config) -> Iterator[Files]:
    security = config.security
    if security.gateway_tls.authority is not None:
        raise ConfigError(
            f"{GATEWAY_TLS}.authority: neither the kubelet, which asks gateways whether they are ready, nor "
            "Prometheus has a certificate to show: give clients API keys, or ask for certificates at your "
            "ingress",
            param=f"{GATEWAY_TLS}.authority",
        )
    for setting, section in ((GATEWAY_TLS, security.gateway_tls), (ADMIN_TLS, security.admin_tls)):
        tls = http_tls(section, setting)
        if tls is not None:
            yield _files(setting, _parts(tls))
    if config.gateway.key_file is not None:
        yield _files(KEY_FILE, {"keys": config.gateway.key_file})


def _parts(tls: Tls) -> dict[str, str]:
    parts = {"tls.crt": tls.certificate, "tls.key": tls.key, "ca.crt": tls.authority}
    return {key: str(path) for key, path in parts.items() if path is not None}


def _files(setting: str, paths: dict[str, str]) -> Files:
    return Files(setting, VOLUMES[setting], {key: PurePosixPath(path) for key, path in paths.items()})


def _refuse_what_cannot_be_mounted(config: Config, files: Files, others: list[Files]) -> None:
    folder, paths = files.folder, set(files.paths.values())
    over = any(PurePosixPath(other).is_relative_to(folder) for other in TAKEN)
    for other in others:
        if folder.is_relative_to(other.folder) or other.folder.is_relative_to(folder):
            raise ConfigError(
                f"{files.setting}: {folder} and {other.folder} of {other.setting} come from a Secret each: "
                "name files in folders of their own",
                param=files.setting,
            )
    apart = len(paths) < len(files.paths) or any(path.parent != folder for path in paths)
    if not folder.is_absolute() or apart or over:
        examples = " and ".join(f"/etc/tandem/{files.volume}/{key}" for key in files.paths)
        raise ConfigError(
            f"{files.setting}: pods have its files from the Secret {config.kubernetes.name}-{files.volume}, "
            f"in a folder of their own: name them by their whole paths there, such as {examples}",
            param=files.setting,
        )
