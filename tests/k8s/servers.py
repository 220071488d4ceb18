"""API servers for tests: the fake in this process, and a real kube-apiserver with an etcd of its own."""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import Any

import pytest

from cluster.ports import free_port
from engine.errors import Conflict, TandemError
from k8s.checks.kinds import ray_schemas
from k8s.kube_api import KubeApi, connect_to
from k8s.objects.pools import definition
from tests.k8s.fake_api import TOKEN, FakeApi, Store

BINARY = "TANDEM_KUBE_APISERVER"
SCHEMAS = "TANDEM_KUBERAY_SCHEMAS"
LIMITED = "limited-token"
LIMITED_USER = "limited"
START_LIMIT = 60.0


@dataclass
class Server:
    """A running API server. `store` is the fake's, None for the real one."""

    url: str
    token: str
    ca_file: str | None = None
    store: Store | None = None
    ray: bool = True

    @property
    def budgets(self) -> bool:
        """Whether it serves PodDisruptionBudgets as Kubernetes does since 1.21; Debian's is older."""
        return self.store is not None

    @property
    def api(self) -> KubeApi:
        return connect_to(self.url, self.token, ca_file=self.ca_file)

    def api_as(self, token: str) -> KubeApi:
        return connect_to(self.url, token, ca_file=self.ca_file)

    def namespace(self) -> str:
        """A new one."""
        name = f"t-{uuid.uuid4().hex[:8]}"
        meta = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        self.api.create("/api/v1/namespaces", meta)
        return name

    def kubeconfig(self, folder: Path) -> dict[str, str]:
        """The environment in which a plain `kubectl` means this server; its file is in `folder`."""
        trust = {"certificate-authority": self.ca_file} if self.ca_file else {}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "it",
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
            "clusters": [{"name": "it", "cluster": {"server": self.url, **trust}}],
            "users": [{"name": "it", "user": {"token": self.token}}],
        }
        (folder / "kubeconfig").write_text(json.dumps(config))
        return {**os.environ, "HOME": str(folder), "KUBECONFIG": str(folder / "kubeconfig")}

    def kubectl(self, *arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
        trust = ["--certificate-authority", self.ca_file] if self.ca_file else []
        flags = ["--server", self.url, "--token", self.token, *trust]
        return subprocess.run(
            ["kubectl", *flags, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "HOME": str(home), "KUBECONFIG": str(home / "none")},
        )


def binary() -> Path:
    """The kube-apiserver that is named, or is on the PATH. Skips the test where there is none, or no etcd."""
    found = os.environ.get(BINARY) or which("kube-apiserver")
    if not found:
        pytest.skip(f"no kube-apiserver is on the PATH or named by {BINARY}: only the fake one is asked")
    if which("etcd") is None:
        pytest.skip("needs etcd on the PATH: only the fake API server is asked")
    return Path(found)


@contextlib.contextmanager
def fake() -> Iterator[Server]:
    with FakeApi() as server:
        yield Server(server.url, TOKEN, store=server.store)


@contextlib.contextmanager
def real(binary: Path, folder: Path, *, pools: bool = True) -> Iterator[Server]:
    """etcd and kube-apiserver on free ports of loopback, with the CRDs; both end with the block.

    Without `pools` the kind Pool is left for the test to define.
    """
    with contextlib.ExitStack() as stack:
        etcd, peer, port = (free_port() for _ in range(3))
        stack.enter_context(_process(folder, "etcd", _etcd(folder, etcd, peer)))
        stack.enter_context(_process(folder, str(binary), _apiserver(folder, port, etcd)))
        server = Server(
            f"https://127.0.0.1:{port}", "admin-token", ca_file=str(folder / "certs" / "apiserver.crt")
        )
        _until_ready(server, folder)
        _define(server, [_for_1_20(definition())] if pools else [])
        yield server


def _etcd(folder: Path, port: int, peer: int) -> list[str]:
    return [
        "--data-dir", str(folder / "etcd"),
        "--unsafe-no-fsync",
        "--listen-client-urls", f"http://127.0.0.1:{port}",
        "--advertise-client-urls", f"http://127.0.0.1:{port}",
        "--listen-peer-urls", f"http://127.0.0.1:{peer}",
    ]  # fmt: skip


def _apiserver(folder: Path, port: int, etcd: int) -> list[str]:
    key, public = folder / "sa.key", folder / "sa.pub"
    subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
    subprocess.run(
        ["openssl", "rsa", "-in", str(key), "-pubout", "-out", str(public)], check=True, capture_output=True
    )
    tokens = folder / "tokens.csv"
    tokens.write_text(f"admin-token,admin,1,system:masters\n{LIMITED},{LIMITED_USER},2\n")
    return [
        f"--etcd-servers=http://127.0.0.1:{etcd}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        f"--secure-port={port}",
        "--insecure-port=0",
        f"--cert-dir={folder / 'certs'}",
        "--service-cluster-ip-range=10.0.0.0/24",
        "--authorization-mode=RBAC",
        f"--token-auth-file={tokens}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={public}",
        f"--service-account-signing-key-file={key}",
        "--disable-admission-plugins=ServiceAccount",
        "--endpoint-reconciler-type=none",
    ]


@contextlib.contextmanager
def _process(folder: Path, program: str, arguments: list[str]) -> Iterator[None]:
    with (folder / f"{Path(program).name}.log").open("wb") as log:
        process = subprocess.Popen([program, *arguments], stdout=log, stderr=log, cwd=folder)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until_ready(server: Server, folder: Path) -> None:
    end = time.monotonic() + START_LIMIT
    request = urllib.request.Request(f"{server.url}/readyz", headers={"Authorization": "Bearer admin-token"})
    while True:
        with contextlib.suppress(OSError, urllib.error.URLError):
            context = ssl.create_default_context(cafile=server.ca_file)
            with urllib.request.urlopen(request, timeout=5, context=context) as answer:
                if answer.status == 200:
                    return
        if time.monotonic() > end:
            log = (folder / "kube-apiserver.log").read_text(errors="replace")[-2000:]
            raise RuntimeError(f"the API server is not ready:\n{log}")
        time.sleep(0.2)


def _define(server: Server, crds: list[dict[str, Any]]) -> None:
    """Those, and KubeRay's kinds where their schemas are at hand."""
    folder = os.environ.get(SCHEMAS)
    server.ray = folder is not None
    for (version, kind), schema in (ray_schemas(Path(folder)) if folder else {}).items():
        if version == "v1":
            crds.append(_for_1_20(_ray_definition(kind, schema)))
    collection = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    end = time.monotonic() + START_LIMIT
    for crd in crds:
        _create(server, collection, crd, end)
    for crd in crds:
        path = f"{collection}/{crd['metadata']['name']}"
        while not _established(server.api.get(path)):
            if time.monotonic() > end:
                raise RuntimeError(f"{path} is not established")
            time.sleep(0.1)


def _create(server: Server, collection: str, crd: dict[str, Any], end: float) -> None:
    """Again where a busy machine did not answer in time; what was made then is there already."""
    while True:
        try:
            server.api.create(collection, crd)
        except Conflict:
            return
        except TandemError:
            if time.monotonic() > end:
                raise
        else:
            return


def _established(crd: dict[str, Any]) -> bool:
    conditions = crd.get("status", {}).get("conditions") or []
    return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)


def _ray_definition(kind: str, schema: dict[str, Any]) -> dict[str, Any]:
    plural = f"{kind.lower()}s"
    version = {"name": "v1", "served": True, "storage": True, "subresources": {"status": {}}}
    names = {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower()}
    spec = {"group": "ray.io", "scope": "Namespaced", "names": names}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.ray.io"},
        "spec": {**spec, "versions": [{**version, "schema": {"openAPIV3Schema": schema}}]},
    }


def _for_1_20(crd: dict[str, Any]) -> dict[str, Any]:
    """Without what an old server does not take: CEL, empty defaults, and list maps keyed by those."""

    def mend(value: Any, *, names: bool = False) -> Any:
        if isinstance(value, list):
            return [mend(item) for item in value]
        if not isinstance(value, dict):
            return value
        if names:
            return {key: mend(item) for key, item in value.items()}
        kept = {key: mend(item, names=key == "properties") for key, item in value.items()}
        kept.pop("x-kubernetes-validations", None)
        if kept.get("default") == "":
            del kept["default"]
        keys = kept.get("x-kubernetes-list-map-keys")
        if keys:
            inner = kept["items"]
            known = {name for name, one in inner["properties"].items() if "default" in one}
            if not set(keys) <= known | set(inner.get("required", [])):
                del kept["x-kubernetes-list-map-keys"], kept["x-kubernetes-list-type"]
        return kept

    mended: dict[str, Any] = mend(json.loads(json.dumps(crd)))
    return mended
