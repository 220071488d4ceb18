"""A small Kubernetes API server in this process: enough for Pools, RayServices, Leases and Events.

Get, list, create, replace, delete; JSON and merge patches; the subresources status and scale; watches with
history; optimistic locking (409), a failed `test` of a JSON patch (422), versions that are too old (410),
and the schema of Pools with its defaults. A wrong token is refused; kubectl sends none without TLS.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from k8s.checks.schema import errors, root, with_defaults
from k8s.objects.pools import schema

PATH = re.compile(
    r"(?P<collection>/(?:api/v1|apis/[^/]+/[^/]+)/(?:namespaces/[^/]+/)?(?P<plural>[a-z]+))"
    r"(?:/(?P<name>[^/]+)(?:/(?P<sub>status|scale))?)?"
)
TOKEN = "fake-admin"
EXPECTED = f"Bearer {TOKEN}"
Object = dict[str, Any]


class ApiError(Exception):
    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}
        self.body |= {"reason": reason, "message": message}
        self.code = code


class Store:
    """All objects by collection and name; one version counts all changes."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.objects: dict[tuple[str, str], Object] = {}
        self.history: list[tuple[int, str, str, Object]] = []
        self.version = 1
        self.oldest = 0

    def get(self, collection: str, name: str) -> Object:
        found = self.objects.get((collection, name))
        if found is None:
            raise ApiError(404, "NotFound", f'{collection.rpartition("/")[2]} "{name}" not found')
        return copy.deepcopy(found)

    def list(self, collection: str) -> Object:
        with self.changed:
            items = [one for (where, _), one in sorted(self.objects.items()) if where == collection]
            metadata = {"resourceVersion": str(self.version)}
            return {"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": copy.deepcopy(items)}

    def create(self, collection: str, body: Object) -> Object:
        with self.changed:
            name = body["metadata"]["name"]
            if (collection, name) in self.objects:
                raise ApiError(409, "AlreadyExists", f'"{name}" already exists')
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            own = {"uid": str(uuid.uuid4()), "generation": 1, "creationTimestamp": now}
            return self._keep("ADDED", collection, name, {**body, "metadata": {**body["metadata"], **own}})

    def update(self, collection: str, name: str, new: Object, sub: str | None) -> Object:
        """Keep what may change there: the status by its subresource only, and nothing else by that."""
        with self.changed:
            old = self.get(collection, name)
            version = new["metadata"].get("resourceVersion", old["metadata"]["resourceVersion"])
            if version != old["metadata"]["resourceVersion"]:
                raise ApiError(409, "Conflict", f'"{name}" has been modified')
            kept, other = ({**old, "status": new.get("status")}, new) if sub == "status" else (new, old)
            if sub != "status" and "status" in other:
                kept = {**kept, "status": other["status"]}
            generation = old["metadata"]["generation"] + (kept.get("spec") != old.get("spec"))
            kept = {**kept, "metadata": {**kept["metadata"], "generation": generation}}
            if kept == old:
                return old
            return self._keep("MODIFIED", collection, name, kept)

    def delete(self, collection: str, name: str) -> Object:
        with self.changed:
            gone = self.get(collection, name)
            del self.objects[collection, name]
            self._tell("DELETED", collection, gone)
            return gone

    def forget(self) -> None:
        """Compact the history: older versions are answered 410."""
        with self.changed:
            self.oldest, self.history = self.version, []

    def since(self, collection: str, version: int, seconds: float) -> list[tuple[int, str, Object]]:
        """Changes after a version, waiting for the first one. Raises ApiError 410."""
        with self.changed:
            if version < self.oldest:
                raise ApiError(410, "Expired", "too old resource version")

            def news() -> list[tuple[int, str, Object]]:
                return [(at, kind, one) for at, kind, where, one in self.history
                        if where == collection and at > version]  # fmt: skip

            self.changed.wait_for(news, timeout=seconds)
            return news()

    def _keep(self, event: str, collection: str, name: str, body: Object) -> Object:
        if collection.endswith("/pools"):
            body = with_defaults(body, schema())
            found = [f"{'.'.join(path)}: {message}" for path, message in errors(body, root(schema()))]
            if found:
                raise ApiError(422, "Invalid", "; ".join(found))
        self.objects[collection, name] = body = copy.deepcopy(body)
        self._tell(event, collection, body)
        return copy.deepcopy(body)

    def _tell(self, event: str, collection: str, body: Object) -> None:
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        self.history.append((self.version, event, collection, copy.deepcopy(body)))
        self.changed.notify_all()


class FakeApi:
    """The server, on a free port of this machine, from `with` to its end."""

    def __init__(self) -> None:
        self.store = Store()
        handler = type("Handler", (_Handler,), {"store": self.store})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> FakeApi:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    store: Store
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def finish(self) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            super().finish()

    def do_GET(self) -> None:
        self._answer(self._read)

    def do_POST(self) -> None:
        self._answer(lambda where, _: self.store.create(where["collection"], self._body()))

    def do_PUT(self) -> None:
        self._answer(lambda where, _: self._write(where, self._body()))

    def do_PATCH(self) -> None:
        self._answer(lambda where, _: self._write(where, self._patched(where)))

    def do_DELETE(self) -> None:
        # kubectl sends options, which would be read as the connection's next request.
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(lambda where, _: self.store.delete(where["collection"], where["name"]))

    def _answer(self, act: Any) -> None:
        try:
            if self.headers.get("Authorization", EXPECTED) != EXPECTED:
                raise ApiError(401, "Unauthorized", "Unauthorized")
            url = urlsplit(self.path)
            if url.path in DISCOVERY:
                self._send(200, DISCOVERY[url.path])
                return
            match = PATH.fullmatch(url.path)
            if match is None:
                raise ApiError(404, "NotFound", f"there is nothing at {url.path}")
            found = act(match.groupdict(), parse_qs(url.query))
            if found is not None:
                self._send(201 if self.command == "POST" else 200, found)
        except ApiError as error:
            self._send(error.code, error.body)

    def _read(self, where: dict[str, str], query: dict[str, list[str]]) -> Object | None:
        if where["name"] is None and "watch" in query:
            seconds = float(query.get("timeoutSeconds", ["5"])[0])
            self._watch(where["collection"], int(query["resourceVersion"][0]), seconds)
            return None
        if where["name"] is None:
            return self.store.list(where["collection"])
        found = self.store.get(where["collection"], where["name"])
        return _scale(found) if where["sub"] == "scale" else found

    def _write(self, where: dict[str, str], new: Object) -> Object:
        collection, name = where["collection"], where["name"]
        if where["sub"] != "scale":
            return self.store.update(collection, name, new, where["sub"])
        found = self.store.get(collection, name)
        metadata = {**found["metadata"], "resourceVersion": new["metadata"]["resourceVersion"]}
        spec = {**found["spec"], "replicas": new["spec"]["replicas"]}
        return _scale(
            self.store.update(collection, name, {**found, "metadata": metadata, "spec": spec}, None)
        )

    def _patched(self, where: dict[str, str]) -> Object:
        found = self.store.get(where["collection"], where["name"])
        found = _scale(found) if where["sub"] == "scale" else found
        body = self._body()
        if self.headers["Content-Type"].startswith("application/json-patch"):
            for operation in body:
                _apply(found, operation)
            return found
        if "workerGroupSpecs" in json.dumps(body):
            raise ApiError(422, "Invalid", "template: Required value")
        return _merged(found, body)

    def _watch(self, collection: str, version: int, seconds: float) -> None:
        end = time.monotonic() + seconds
        events = self.store.since(collection, version, 0)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while True:
            for at, kind, one in events:
                self._chunk(json.dumps({"type": kind, "object": one}).encode() + b"\n")
                version = at
            left = end - time.monotonic()
            if left <= 0:
                break
            events = self.store.since(collection, version, left)
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _body(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def _send(self, code: int, body: Object) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _scale(found: Object) -> Object:
    status = found.get("status", {})
    kept = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {key: found["metadata"][key] for key in kept if key in found["metadata"]},
        "spec": {"replicas": found["spec"]["replicas"]},
        "status": {"replicas": status.get("replicas", 0), "selector": status.get("selector", "")},
    }


def _merged(old: Any, new: Any) -> Any:
    if not isinstance(new, dict) or not isinstance(old, dict):
        return new
    kept = {key: value for key, value in old.items() if key not in new}
    return kept | {key: _merged(old.get(key), value) for key, value in new.items() if value is not None}


def _apply(target: Any, operation: Object) -> None:
    """One operation of a JSON patch (RFC 6902): add, replace, remove, test."""
    *steps, last = operation["path"].strip("/").split("/")
    for step in steps:
        target = target[int(step) if isinstance(target, list) else step]
    if operation["op"] == "test":
        if target.get(last) != operation["value"]:
            raise ApiError(422, "Invalid", "the server rejected our request due to an error: test failed")
    elif operation["op"] == "remove":
        del target[last]
    else:
        target[last] = operation["value"]


def _resource(name: str, kind: str, verbs: str, **more: object) -> Object:
    return {
        "name": name,
        "singularName": "",
        "namespaced": True,
        "kind": kind,
        "verbs": verbs.split(),
        **more,
    }


_GROUP = {"groupVersion": "tandem.dev/v1alpha1", "version": "v1alpha1"}
_GROUPS = [{"name": "tandem.dev", "versions": [_GROUP], "preferredVersion": _GROUP}]
DISCOVERY: dict[str, Object] = {
    "/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": _GROUPS},
    "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": []},
    "/apis/tandem.dev/v1alpha1": {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": "tandem.dev/v1alpha1",
        "resources": [
            _resource("pools", "Pool", "get list watch create update patch delete", shortNames=["tpool"]),
            _resource("pools/scale", "Scale", "get update patch", group="autoscaling", version="v1"),
            _resource("pools/status", "Pool", "get update patch"),
        ],
    },
}
