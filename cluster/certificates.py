"""A small authority of one's own: certificates for a cluster where no other authority issues them.

    authority.pem, .key     signs the others; whoever has its key can join
    cluster.pem, .key       what every process shows to the others (security.cluster_tls)
    gateway.pem, .key       what clients are shown (security.gateway_tls, security.admin_tls)
    client.pem, .key        what an operator shows: `tandem --tls DIR …`, `curl --cert`
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from engine.errors import RefusedError, SetupError

AUTHORITY, CLUSTER, GATEWAY, CLIENT = "authority", "cluster", "gateway", "client"
AUTHORITY_DAYS = 3650
LOCAL = ("localhost", "127.0.0.1", "::1")
EARLIER = datetime.timedelta(minutes=5)
"""Certificates begin a little before now: clocks of two machines differ."""

Pair = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def create(folder: Path, hosts: Sequence[str], *, name: str = "tandem", days: int = 365) -> None:
    """Make an authority and the three certificates. Raises RefusedError if there is one already."""
    if (folder / f"{AUTHORITY}.key").exists():
        raise RefusedError(f"{folder} has an authority already: `tandem tls renew {folder}` issues anew")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"{folder} cannot be made: {error.strerror}") from error
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name("tandem authority")
    builder = _builder(subject, subject, key, AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs=True), critical=True)
    _write(folder, AUTHORITY, (builder.sign(key, hashes.SHA256()), key))
    renew(folder, hosts, name=name, days=days)


def renew(folder: Path, hosts: Sequence[str], *, name: str = "tandem", days: int = 365) -> None:
    """Issue the three certificates anew, each replaced at once. Raises SetupError without an authority."""
    authority = _read(folder, AUTHORITY)
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    _write(folder, CLUSTER, _issue(authority, name, (name, *LOCAL), both, days))
    _write(folder, GATEWAY, _issue(authority, "gateway", (*LOCAL, *hosts), both[:1], days))
    _write(folder, CLIENT, _issue(authority, "operator", (), both[1:], days))


def authority_of(certificate: str | os.PathLike[str], known: Iterable[str | os.PathLike[str]]) -> str | None:
    """The first file of `known` that has the signer of a certificate; None where another authority signed it.

    What is no certificate is nobody's.
    """
    try:
        shown = x509.load_pem_x509_certificate(Path(certificate).read_bytes())
    except (OSError, ValueError):
        return None
    return next((os.fspath(file) for file in known if _signed(shown, Path(file))), None)


def _signed(certificate: x509.Certificate, file: Path) -> bool:
    with suppress(OSError, ValueError):
        for authority in x509.load_pem_x509_certificates(file.read_bytes()):
            if authority.issuer != authority.subject:
                continue  # a link of a chain, which clients do not take for its end
            with suppress(ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
                certificate.verify_directly_issued_by(authority)
                return True
    return False


def _issue(
    authority: Pair, common: str, hosts: Sequence[str], uses: list[x509.ObjectIdentifier], days: int
) -> Pair:
    issuer, signer = authority
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_name(common), issuer.subject, key, days)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
    )
    if hosts:
        names = x509.SubjectAlternativeName([_host(host) for host in dict.fromkeys(hosts)])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(signer, hashes.SHA256()), key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLIER)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write(folder: Path, name: str, pair: Pair) -> None:
    """The key first, and only for its owner to read."""
    certificate, key = pair
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = certificate.public_bytes(serialization.Encoding.PEM)
    for suffix, data, mode in (("key", private, 0o600), ("pem", public, 0o644)):
        file = folder / f"{name}.{suffix}"
        draft = file.with_name(f".{file.name}.new")
        try:
            draft.unlink(missing_ok=True)
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as out:
                out.write(data)
            draft.replace(file)
        except OSError as error:
            raise SetupError(f"{file} cannot be written: {error.strerror}") from error


def _read(folder: Path, name: str) -> Pair:
    try:
        certificate = x509.load_pem_x509_certificate((folder / f"{name}.pem").read_bytes())
        key = serialization.load_pem_private_key((folder / f"{name}.key").read_bytes(), None)
    except OSError as error:
        raise SetupError(
            f"{folder} has no authority ({error.strerror}): `tandem tls init {folder}` makes one"
        ) from error
    except ValueError as error:
        raise SetupError(f"{folder}/{name}.pem and .key are no certificate with its key: {error}") from error
    assert isinstance(key, ec.EllipticCurvePrivateKey), "the authority is one of ours"
    return certificate, key
