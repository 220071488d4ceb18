"""The gateways' own certificate: from a Secret that is made by hand, at the places that the config names.

Every pod of Ray has it, for whoever builds the application reads it once.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from cluster.config import Config
from cluster.tls import http_tls
from engine.errors import ConfigError
from k8s.objects import certificates
from k8s.objects.names import CACHE, MODELS
from k8s.yaml_text import Object

SETTING = "security.gateway_tls"
VOLUME = "gateway-tls"
TAKEN = (CACHE, MODELS, certificates.FOLDER, "/home/ray", "/tmp/ray", "/etc/ssl/certs")
"""Folders that something else is in: a volume in their place, or above them, would hide it."""


def secret(name: str) -> str:
    """The Secret of the tandem of that name, of the type kubernetes.io/tls."""
    return f"{name}-gateway-tls"


def scheme(config: Config) -> str:
    """How the gateways' port is spoken to."""
    return "http" if config.security.gateway_tls.certificate is None else "https"


def volumes(config: Config) -> list[Object]:
    """The volume with both files; none without a certificate. Raises ConfigError as `mounts` does."""
    if _folder(config) is None:
        return []
    files = config.security.gateway_tls
    items = [
        {"key": key, "path": PurePosixPath(str(path)).name}
        for key, path in (("tls.crt", files.certificate), ("tls.key", files.key))
    ]
    return [{"name": VOLUME, "secret": {"secretName": secret(config.kubernetes.name), "items": items}}]


def mounts(config: Config) -> list[Object]:
    """Where a container has them. Raises ConfigError for files that no volume can put there."""
    folder = _folder(config)
    return [] if folder is None else [{"name": VOLUME, "mountPath": str(folder), "readOnly": True}]


def _folder(config: Config) -> PurePosixPath | None:
    files = config.security.gateway_tls
    if http_tls(files, SETTING) is None:
        return None
    if files.authority is not None:
        raise ConfigError(
            f"{SETTING}.authority: neither the kubelet, which asks gateways whether they are ready, nor "
            "Prometheus has a certificate to show: give clients API keys, or ask for certificates at your "
            "ingress",
            param=f"{SETTING}.authority",
        )
    paths = [PurePosixPath(str(path)) for path in (files.certificate, files.key)]
    folder = paths[0].parent
    taken = any(PurePosixPath(other).is_relative_to(folder) for other in TAKEN)
    if not folder.is_absolute() or folder != paths[1].parent or paths[0] == paths[1] or taken:
        raise ConfigError(
            f"{SETTING}: pods have both files from the Secret {secret(config.kubernetes.name)}, in a folder "
            "of their own: name them by their whole paths there, such as /etc/tandem/gateway-tls/tls.crt and "
            "/etc/tandem/gateway-tls/tls.key",
            param=SETTING,
        )
    return folder
