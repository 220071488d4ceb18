"""Certificates for tandem's own ports, which cert-manager issues and renews, and how pods come by them.

self-signed issuer ─▶ authority ─▶ its issuer ─▶ the cluster's certificate ─▶ Secret ─▶ every pod
"""

from __future__ import annotations

from cluster.config import Config
from k8s.objects.names import metadata
from k8s.yaml_text import Object

API_VERSION = "cert-manager.io/v1"
FOLDER = "/etc/tandem/tls"
VOLUME = "cluster-tls"
FILES = {"CERTIFICATE": "tls.crt", "KEY": "tls.key", "AUTHORITY": "ca.crt"}


def certificates(config: Config) -> list[Object]:
    """Issuers and certificates. Of authority and members the keys are in Secrets of their own."""
    name = config.kubernetes.name
    first, authority = f"{name}-self-signed", f"{name}-authority"
    return [
        _issuer(config, first, {"selfSigned": {}}),
        _certificate(config, authority, first, {"isCA": True, "commonName": authority, "duration": "87600h"}),
        _issuer(config, authority, {"ca": {"secretName": authority}}),
        _certificate(
            config,
            secret(config),
            authority,
            {
                "dnsNames": [config.security.cluster_tls.name],
                "usages": ["server auth", "client auth"],
                "duration": "2160h",
                "renewBefore": "720h",
            },
        ),
    ]


def secret(config: Config) -> str:
    """The Secret with the certificate that every process shows."""
    return f"{config.kubernetes.name}-cluster-tls"


def shown(config: Config, container: str) -> Object:
    """What a pod's spec needs so that `container` has the certificate, as a patch."""
    variables = [
        {"name": f"TANDEM_SECURITY__CLUSTER_TLS__{field}", "value": f"{FOLDER}/{file}"}
        for field, file in FILES.items()
    ]
    mount = {"name": VOLUME, "mountPath": FOLDER, "readOnly": True}
    volume = {"name": VOLUME, "secret": {"secretName": secret(config)}}
    return {
        "containers": [{"name": container, "env": variables, "volumeMounts": [mount]}],
        "volumes": [volume],
    }


def _issuer(config: Config, name: str, spec: Object) -> Object:
    return {"apiVersion": API_VERSION, "kind": "Issuer", "metadata": metadata(config, name), "spec": spec}


def _certificate(config: Config, name: str, issuer: str, spec: Object) -> Object:
    key = {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"}
    common = {"secretName": name, "issuerRef": {"name": issuer, "kind": "Issuer"}, "privateKey": key}
    return {
        "apiVersion": API_VERSION,
        "kind": "Certificate",
        "metadata": metadata(config, name),
        "spec": {**common, **spec},
    }
