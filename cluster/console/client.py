"""How the console asks: over `/admin/v1` and its token, as any other tool would, and no other way."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import httpx
from starlette.types import ASGIApp

from cluster.admin import API


class Refused(Exception):
    """The API answered with an error; `message` says what to change."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class AdminClient:
    """Calls the application in this process: no socket, but every rule of the API."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://admin",
            headers={"authorization": f"Bearer {token}"},
            timeout=30.0,
        )

    async def read(self, kind: str, name: str = "", **query: str | int) -> list[dict[str, Any]]:
        """The items of a list, or those that a name means. Raises Refused."""
        return await self._call("GET", f"{kind}/{quote(name, safe='')}" if name else kind, params=query)

    async def act(self, kind: str, name: str, action: str, **body: object) -> list[dict[str, Any]]:
        """Do something to one of them. Raises Refused."""
        return await self._call("POST", f"{kind}/{quote(name, safe='')}/{action}", json=body)

    async def _call(self, method: str, path: str, **how: Any) -> list[dict[str, Any]]:
        answer = await self._client.request(method, f"{API}/{path}", **how)
        body = answer.json()
        if answer.status_code != 200:
            raise Refused(answer.status_code, body["error"]["message"])
        items: list[dict[str, Any]] = body["items"]
        return items
