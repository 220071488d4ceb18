"""Who may come in at the admin port: a bearer token for tools, a signed cookie for browsers.

    Authorization: Bearer TOKEN          /admin/v1 …      the token itself, compared in constant time
    Cookie: tandem_session=EXPIRY.MAC    /console …       MAC = HMAC-SHA256(token, "session" EXPIRY)
    X-CSRF-Token: MAC                    POST /console …  MAC = HMAC-SHA256(token, "csrf" session)

Sessions are signed, not stored: they outlive a controller that is started again, and end with their expiry
or with another token.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable

COOKIE = "tandem_session"
CSRF_HEADER = "x-csrf-token"


class Gate:
    """Knows the admin token. `clock` is in unix seconds."""

    def __init__(self, token: str, lifetime: float, clock: Callable[[], float] = time.time) -> None:
        assert token, "an admin port needs a token"
        self._token = token.encode()
        self.lifetime = lifetime
        self._clock = clock

    def token_is(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "replace"), self._token)

    def bearer_is(self, header: str) -> bool:
        """Whether an Authorization header shows the token."""
        scheme, _, key = header.partition(" ")
        return self.token_is(key.strip()) and scheme.lower() == "bearer"

    def open(self) -> str:
        """The cookie of a new session."""
        expiry = str(int(self._clock() + self.lifetime))
        return f"{expiry}.{self._sign('session', expiry)}"

    def knows(self, session: str) -> bool:
        """Whether a cookie is one of ours and has not expired."""
        expiry, _, signature = session.partition(".")
        genuine = hmac.compare_digest(
            signature.encode("utf-8", "replace"), self._sign("session", expiry).encode()
        )
        # Only what we have signed is read as a number.
        return genuine and int(expiry) > self._clock()

    def csrf(self, session: str) -> str:
        """What a page of this session sends with every change."""
        return self._sign("csrf", session)

    def csrf_is(self, session: str, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "replace"), self.csrf(session).encode())

    def _sign(self, purpose: str, text: str) -> str:
        message = f"{purpose}\0{text}".encode("utf-8", "replace")
        return hmac.new(self._token, message, hashlib.sha256).hexdigest()
