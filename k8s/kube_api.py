"""Talks to the Kubernetes API by path: get, list, create, replace, patch and watch of plain data.

The package `kubernetes` brings the configuration, certificates and tokens; its thousand typed classes are
not needed for a handful of kinds.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from engine.errors import Conflict, InvalidKey, NotFound, SetupError, TandemError, Unreachable
from k8s.yaml_text import Object

CALL_TIMEOUT = 10.0
"""Seconds for a call; a watch has its own limit on top."""

JSON = "application/json"
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"

GONE = 410
_ERRORS: dict[int, type[TandemError]] = {
    401: InvalidKey,
    403: InvalidKey,
    404: NotFound,
    409: Conflict,
    422: Conflict,
}


class KubeApi:
    """Blocking calls, safe in threads. `path` is below the server's root, such as /api/v1/namespaces.

    Raises NotFound, Conflict (409, and 422: a `test` of a JSON patch that fails), InvalidKey (401, 403),
    Unreachable, and TandemError for all else.
    """

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api

    def get(self, path: str) -> Object:
        return self._call("GET", path)

    def create(self, path: str, body: Object) -> Object:
        return self._call("POST", path, body)

    def replace(self, path: str, body: Object) -> Object:
        """Put the whole object; its resourceVersion must be the present one."""
        return self._call("PUT", path, body)

    def merge(self, path: str, body: Object) -> Object:
        """A merge patch: for status, never for lists that somebody else writes to as well."""
        return self._call("PATCH", path, body, kind=MERGE_PATCH)

    def patch(self, path: str, operations: list[Object]) -> Object:
        """A JSON patch."""
        return self._call("PATCH", path, operations, kind=JSON_PATCH)

    def delete(self, path: str) -> Object:
        return self._call("DELETE", path)

    def watch(self, path: str, version: str, seconds: int) -> Iterator[Object]:
        """Changes since a list's resourceVersion, for some seconds. Ends early when that is too old."""
        query = urlencode({"watch": "1", "resourceVersion": version, "timeoutSeconds": seconds})
        try:
            response = self._send("GET", f"{path}?{query}", timeout=seconds + CALL_TIMEOUT)
            with contextlib.closing(response.response):
                if response.status == GONE:
                    return
                _raise_for(response.status, response.read() if response.status >= 300 else b"")
                yield from _events(response.response)
        except HTTPError as error:
            raise Unreachable(f"the watch of {path} broke: {error}") from error

    def _call(self, method: str, path: str, body: object = None, *, kind: str = JSON) -> Object:
        try:
            response = self._send(method, path, body, kind=kind, timeout=CALL_TIMEOUT)
            data = response.read()
        except HTTPError as error:
            raise Unreachable(f"the Kubernetes API does not answer: {error}") from error
        _raise_for(response.status, data)
        found: Object = json.loads(data)
        return found

    def _send(self, method: str, path: str, body: object = None, *, kind: str = JSON, timeout: float) -> Any:
        headers = {"Accept": JSON, "Content-Type": kind}
        self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        url = f"{self._api.configuration.host}{path}"
        try:
            return self._api.call_api(method, url, headers, body, _request_timeout=timeout)
        except ApiException as error:
            raise Unreachable(f"the Kubernetes API does not answer: {error.reason}") from error


def connect() -> KubeApi:
    """From inside a pod with its service account, elsewhere with the kubeconfig. Raises SetupError."""
    try:
        config.load_incluster_config()  # type: ignore[no-untyped-call]
    except config.ConfigException:
        try:
            config.load_kube_config()  # type: ignore[no-untyped-call]
        except config.ConfigException as error:
            raise SetupError(f"there is no way to a Kubernetes API: {error}") from error
    return KubeApi(client.ApiClient())


def connect_to(host: str, token: str, *, ca_file: str | None = None) -> KubeApi:
    """To a server by its URL."""
    settings = client.Configuration(host=host)
    settings.api_key = {"BearerToken": f"Bearer {token}"}
    settings.ssl_ca_cert = ca_file
    return KubeApi(client.ApiClient(settings))


def _events(response: Any) -> Iterator[Object]:
    """The JSON lines of a watch; one that says that the version is too old ends it."""
    rest = b""
    for piece in response.stream(None, decode_content=True):
        *lines, rest = (rest + piece).split(b"\n")
        for line in filter(None, lines):
            event = json.loads(line)
            if event["type"] == "ERROR":
                if event["object"].get("code") != GONE:
                    raise TandemError(f"the watch failed: {event['object'].get('message')}")
                return
            yield event


def _raise_for(status: int, data: bytes) -> None:
    if status < 300:
        return
    try:
        message = json.loads(data).get("message") or f"HTTP {status}"
    except ValueError:
        message = f"HTTP {status}"
    raise _ERRORS.get(status, TandemError)(message)
