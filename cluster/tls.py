"""The certificates of a port: what its server shows and asks for, and what its clients do.

    control, push     gRPC         both sides show a certificate of one authority
    transfer          TCP          the same, TLS 1.3
    gateway, admin    HTTPS        the server shows one; with `authority` clients have to as well

A certificate that is renewed in place is shown to the next connection; those that are open go on.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import grpc

from cluster.config_security import ClusterTls, HttpTls
from engine.errors import ConfigError

logger = logging.getLogger("tandem")

T = TypeVar("T")
_END = b"-----END CERTIFICATE-----"

Stamp = tuple[tuple[int, int, int], ...]
"""Identity, time and size of each file: another one when a file was replaced or rewritten."""


class Tls:
    """Files in PEM. `setting` is their section in the config, for messages; `name` what peers are called.

    Every method that reads them raises ConfigError if they cannot be used.
    """

    def __init__(
        self, certificate: str, key: str, authority: str | None, *, setting: str, name: str | None = None
    ) -> None:
        self.certificate = Path(certificate)
        self.key = Path(key)
        self.authority = None if authority is None else Path(authority)
        self.name = name
        self._setting = setting
        self._door = threading.Lock()
        self._contexts: dict[bool, tuple[Stamp, ssl.SSLContext]] = {}

    def check(self) -> None:
        """Read everything once, so that what is wrong shows before anything is started."""
        self.context(server=True)

    def context(self, *, server: bool) -> ssl.SSLContext:
        """For new connections; another one after the files have changed.

        While they are being replaced and don't fit each other, the last one that did.
        """
        with self._door:
            known = self._contexts.get(server)
            try:
                stamp = self._stamp()
                if known is None or known[0] != stamp:
                    known = self._contexts[server] = stamp, self._make(server=server)
            except ConfigError as error:
                if known is None:
                    raise
                logger.warning("the last certificate stays in use: %s", error.message)
            return known[1]

    def listening(self) -> ssl.SSLContext:
        """For a server that takes one context for its whole life: it shows what the files hold by then."""

        def renew(connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, first: ssl.SSLContext) -> None:
            connection.context = self.context(server=True)

        with self._door:
            context = self._make(server=True)
        context.sni_callback = renew
        return context

    def server(self, sock: socket.socket) -> ssl.SSLSocket:
        """The accepting end of a connection; the handshake comes with the first read."""
        return self.context(server=True).wrap_socket(sock, server_side=True, do_handshake_on_connect=False)

    def client(self, sock: socket.socket) -> ssl.SSLSocket:
        """The calling end, after the handshake. Raises OSError if the other end is not who it should be."""
        return self.context(server=False).wrap_socket(sock, server_hostname=self.name)

    def server_credentials(self) -> grpc.ServerCredentials:
        """gRPC asks again at each handshake."""
        last = self._stamp()

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal last
            now = self._stamp()
            if now == last:
                return None
            last = now
            return self._configuration()

        return grpc.dynamic_ssl_server_credentials(
            self._configuration(), renewed, require_client_authentication=self.authority is not None
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        authority = None if self.authority is None else self._read(self.authority.read_bytes)
        return grpc.ssl_channel_credentials(
            authority, self._read(self.key.read_bytes), self._read(self.certificate.read_bytes)
        )

    @property
    def channel_options(self) -> list[tuple[str, str]]:
        """Members are known by one name, whatever their address."""
        return [] if self.name is None else [("grpc.ssl_target_name_override", self.name)]

    def show(self, context: ssl.SSLContext) -> None:
        """Have a client's context show this certificate."""
        self._read(lambda: context.load_cert_chain(self.certificate, self.key))

    def believe(self, context: ssl.SSLContext) -> None:
        """Have a client's context believe this authority, beside those that it does."""
        if self.authority is not None:
            authority = str(self.authority)
            self._read(lambda: context.load_verify_locations(authority))

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        pair = (self._read(self.key.read_bytes), self._read(self.certificate.read_bytes))
        authority = None if self.authority is None else self._read(self.authority.read_bytes)
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=authority)

    def _make(self, *, server: bool) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        # Within the cluster both ends are ours; clients of the gateway may be older.
        oldest = ssl.TLSVersion.TLSv1_2 if self.name is None else ssl.TLSVersion.TLSv1_3
        context.minimum_version = oldest
        if server:
            # A ticket would make a connection readable that has nothing to read.
            context.num_tickets = 0
        self.show(context)
        self.believe(context)
        if self.authority is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _stamp(self) -> Stamp:
        files = (self.certificate, self.key, *(() if self.authority is None else (self.authority,)))
        found = [self._read(file.stat) for file in files]
        return tuple((one.st_ino, one.st_mtime_ns, one.st_size) for one in found)

    def _read(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except ssl.SSLError as error:
            files = f"{self.certificate} and {self.key}"
            reason = error.reason or str(error)
            raise ConfigError(
                f"{self._setting}: {files} are no certificate with its key in PEM, or "
                f"{self.authority} is no authority ({reason})",
                param=self._setting,
            ) from error
        except OSError as error:
            raise ConfigError(
                f"{self._setting}: {error.filename or self.certificate} cannot be read: {error.strerror}",
                param=self._setting,
            ) from error


def http_tls(section: HttpTls, setting: str) -> Tls | None:
    """What a port for clients shows, None for plain HTTP. Raises ConfigError for half a setting."""
    if section.certificate is None and section.key is None and section.authority is None:
        return None
    if section.certificate is None or section.key is None:
        raise ConfigError(f"{setting} needs both certificate and key", param=setting)
    return Tls(section.certificate, section.key, section.authority, setting=setting)


def cluster_tls(section: ClusterTls) -> Tls | None:
    """What every process of the cluster shows to the others, None for none. Raises ConfigError."""
    setting = "security.cluster_tls"
    given = section.certificate, section.key, section.authority
    if given == (None, None, None):
        return None
    if None in given:
        raise ConfigError(f"{setting} needs certificate, key and authority, all three", param=setting)
    return Tls(str(given[0]), str(given[1]), given[2], setting=setting, name=section.name)


def pinned(certificate: str | os.PathLike[str]) -> ssl.SSLContext:
    """Believes the holder of this one certificate, under whatever name: for a server on this machine.

    The first of a chain is meant: whoever has another of the same authority is somebody else. Raises OSError.
    """
    first, end, _ = Path(certificate).read_bytes().partition(_END)
    if not end:
        raise ssl.SSLError(f"{certificate} holds no certificate")
    context = ssl.create_default_context(cadata=(first + end).decode("ascii", "ignore"))
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.check_hostname = False
    return context
