"""Who may import whom: the table of docs/architecture.md, checked on every import of every file."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# package -> (our packages, third-party packages). Everything may import the standard library and itself.
MAY: dict[str, tuple[set[str], set[str]]] = {
    "kernels": (set(), {"torch", "triton"}),
    "engine": (set(), set()),
    "model": (
        {"engine", "kernels"},
        {"torch", "numpy", "safetensors", "gguf", "tokenizers", "jinja2", "llguidance"},
    ),
    "migration": ({"engine"}, set()),
    "global_scheduler": ({"engine"}, set()),
    "prefill_pool": ({"engine", "migration"}, set()),
    "decode_pool": ({"engine", "migration"}, set()),
    "simulator": (
        {"engine", "global_scheduler", "migration", "prefill_pool", "decode_pool"},
        {"numpy"},
    ),
    "k8s": (
        {
            "engine.errors", "cluster.cli", "cluster.config", "cluster.config_kubernetes",
            "cluster.config_schema", "cluster.config_yaml", "cluster.control_client", "cluster.control_pb2",
            "cluster.leaving", "cluster.serve_schema", "cluster.tls", "cluster.units",
        },
        {"yaml", "jsonschema", "referencing", "typer", "kubernetes", "urllib3"},
    ),
    "cluster": (
        {"engine", "model", "migration", "global_scheduler", "prefill_pool", "decode_pool", "simulator"},
        {
            "ray", "fastapi", "starlette", "uvicorn", "grpc", "google.protobuf", "typer", "rich", "pydantic",
            "pydantic_core", "yaml", "jinja2", "httpx", "prometheus_client", "opentelemetry", "psutil",
        },
    ),
}  # fmt: skip

# file -> what it may import on top of its package's row.
LEAVES: dict[str, set[str]] = {
    "cluster/certificates.py": {"cryptography"},
    "migration/wire_pb2.py": {"google.protobuf"},
    "migration/wire.py": {"google.protobuf"},
    "migration/nccl_device.py": {"cupy", "torch"},
}


@dataclass(frozen=True)
class Import:
    file: str
    line: int
    module: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.module}"


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(source: str, file: str) -> Iterator[Import]:
    """Every absolute import of a file, those inside functions and under TYPE_CHECKING included."""
    for node in ast.walk(ast.parse(source, file)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            for alias in node.names:
                yield Import(file, node.lineno, f"{module}.{alias.name}")


def breaches(found: Iterator[Import], package: str) -> list[str]:
    ours, third = MAY[package]
    wrong = []
    for one in found:
        top = one.module.partition(".")[0]
        allowed = ours | third | LEAVES.get(one.file, set()) | {package}
        if top in sys.stdlib_module_names:
            continue
        if not any(one.module == name or one.module.startswith(f"{name}.") for name in allowed):
            wrong.append(str(one))
    return wrong


def all_imports(package: str) -> Iterator[Import]:
    for path in files(package):
        yield from imports(path.read_text(), str(path.relative_to(ROOT)))


@pytest.mark.parametrize("package", MAY)
def test_a_package_imports_only_what_its_row_allows(package: str) -> None:
    assert breaches(all_imports(package), package) == []


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("engine", "import torch"),
        ("engine", "def f():\n    from numpy import array"),
        ("migration", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import model.kv_cache"),
        ("prefill_pool", "from decode_pool.instance import DecodeInstance"),
        ("cluster", "import kernels.reference"),
        ("cluster", "import torch"),
        ("model", "import ray"),
        ("model", "import transformers"),
    ],
)
def test_the_check_finds_a_forbidden_import(package: str, source: str) -> None:
    assert len(breaches(imports(source, f"{package}/x.py"), package)) == 1


def test_every_top_level_package_has_a_row() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == set(MAY)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def graph() -> dict[str, set[str]]:
    """File-level dependencies among our own modules."""
    modules = {module_of(path): path for package in MAY for path in files(package)}
    edges: dict[str, set[str]] = {}
    for name, path in modules.items():
        targets = set()
        for one in imports(path.read_text(), str(path)):
            target = one.module if one.module in modules else one.module.rpartition(".")[0]
            if target in modules and target != name:
                targets.add(target)
        edges[name] = targets
    return edges


def cycle(edges: dict[str, set[str]]) -> list[str]:
    """Some cycle of a graph, or []."""
    done: set[str] = set()

    def visit(node: str, trail: list[str]) -> list[str]:
        if node in trail:
            return trail[trail.index(node) :]
        if node in done:
            return []
        for target in sorted(edges.get(node, ())):
            found = visit(target, [*trail, node])
            if found:
                return found
        done.add(node)
        return []

    return next((found for node in sorted(edges) if (found := visit(node, []))), [])


def test_no_files_import_each_other_in_a_circle() -> None:
    assert cycle(graph()) == []


def test_no_packages_import_each_other_in_a_circle() -> None:
    folders: dict[str, set[str]] = {package: set() for package in MAY}
    for name, targets in graph().items():
        package = name.partition(".")[0]
        folders[package] |= {target.partition(".")[0] for target in targets} - {package}
    assert cycle(folders) == []


def test_the_check_finds_a_circle() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


PURE = ["engine", "global_scheduler", "prefill_pool", "decode_pool", "migration", "simulator"]
TORCH_FREE_ONLY = {"migration": {"session", "state", "transport", "sender", "receiver"}}


def pure_modules() -> list[str]:
    names = []
    for package in PURE:
        for path in files(package):
            if package not in TORCH_FREE_ONLY or path.stem in TORCH_FREE_ONLY[package]:
                names.append(module_of(path))
    return names


def test_the_pure_parts_import_without_torch_ray_and_triton() -> None:
    script = (
        "import sys\n"
        "for name in ('torch', 'ray', 'triton'):\n"
        "    sys.modules[name] = None\n"
        f"for name in {pure_modules()!r}:\n"
        "    __import__(name)\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=60)


def test_source_files_stay_small() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for package in MAY
        for path in files(package)
        if not path.stem.endswith(("_pb2", "_pb2_grpc"))
        and (lines := len(path.read_text().splitlines())) > 400
    }
    assert long == {}


def test_every_package_file_is_empty() -> None:
    full = [
        str(path) for package in MAY for path in (ROOT / package).rglob("__init__.py") if path.stat().st_size
    ]
    assert full == []
