"""Nothing that comes from outside can become code: no pickle, no eval, and two formats of weights."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from engine.errors import ModelFileError
from k8s.checks.kinds import _fast_loader
from model.assets import load_assets
from tests.test_layering import MAY, ROOT

MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "jsonpickle"}
CALLS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {
    "yaml": {"load", "load_all", "unsafe_load", "full_load", "Loader", "UnsafeLoader", "FullLoader"},
    "torch": {"load", "save", "hub"},
    "numpy": {"load"},
    "np": {"load"},
    "os": {"system", "popen"},
    "subprocess": {"getoutput", "getstatusoutput"},
    "hub": {"load"},
}
EXCEPTIONS = ["k8s/checks/kinds.py: yaml.load"]
"""The safe loader in C, for files of tens of thousands of lines."""

KEYWORDS = {"trust_remote_code", "allow_pickle", "weights_only"}


def breaches(source: str, file: str) -> Iterator[str]:
    """What of a file could turn data into code."""
    for node in ast.walk(ast.parse(source, file)):
        at = f"{file}:{getattr(node, 'lineno', 0)}"
        match node:
            case ast.Import(names=names):
                yield from (f"{at}: import {one.name}" for one in names if one.name.split(".")[0] in MODULES)
            case ast.ImportFrom(module=module) if module and module.split(".")[0] in MODULES:
                yield f"{at}: from {module} import"
            case ast.Call(func=ast.Name(id=name)) if name in CALLS:
                yield f"{at}: {name}()"
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if name in ATTRIBUTES.get(owner, ()):
                yield f"{at}: {owner}.{name}"
            case ast.keyword(arg="shell", value=ast.Constant(value=True)):
                yield f"{at}: shell=True"
            case ast.keyword(arg=name) if name in KEYWORDS:
                yield f"{at}: {name}="


def test_no_file_of_ours_can_turn_data_into_code() -> None:
    found = [
        re.sub(r":\d+:", ":", breach)
        for package in MAY
        for path in sorted((ROOT / package).rglob("*.py"))
        for breach in breaches(path.read_text(), str(path.relative_to(ROOT)))
    ]
    assert found == EXCEPTIONS


def test_the_exception_is_a_loader_of_plain_data() -> None:
    assert issubclass(_fast_loader(), (yaml.SafeLoader, yaml.CSafeLoader))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n    import ray.cloudpickle, marshal",
        "eval(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
    ],
)
def test_the_check_finds_each_way(source: str) -> None:
    assert list(breaches(source, "x.py"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "weights.pkl"])
def test_weights_in_pickle_are_never_opened(tmp_path: Path, name: str) -> None:
    """A file that would run code when it is unpickled lies untouched, alone and in a folder."""
    bomb = tmp_path / name
    proof = tmp_path / "it ran"
    bomb.write_bytes(b"cposix\nsystem\n(S'touch " + str(proof).encode() + b"'\ntR.")
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    for path in (bomb, tmp_path):
        with pytest.raises(ModelFileError):
            load_assets(str(path), tmp_path / "cache")
    assert not proof.exists()
