"""tandem up as a newcomer meets it: from a folder whose names shadow ours, to Ctrl-C with nothing left."""

from __future__ import annotations

import json
import os
import queue
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from cluster.local_ray import MARKER, processes
from model.assets import load_assets
from model.tokenizer import Tokenizer
from tests.cluster.tiny_model import make_tiny_model
from tests.model.identity import Answer, answers

TANDEM = [sys.executable, "-P", "-c", "from cluster.cli.start import main; main()"]
DECOYS = ("model", "engine", "kernels", "cluster", "migration", "decode_pool")
ROOT = Path(__file__).parents[2]
START = 180.0
END = 60.0


@dataclass
class Home:
    """A user's folder with decoys of our packages, and an environment of its own."""

    folder: Path
    environment: dict[str, str]

    def run(self, *arguments: str, timeout: float = END) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*TANDEM, *arguments],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip

    def items(self, *arguments: str) -> list[dict[str, Any]]:
        result = self.run(*arguments, "-o", "json")
        assert result.returncode == 0, result.stdout + result.stderr
        return list(json.loads(result.stdout)["items"])

    def state(self) -> dict[str, Any] | None:
        file = self.folder / "state/tandem/local.json"
        return json.loads(file.read_text()) if file.exists() else None


def make_home(folder: Path) -> Home:
    for name in DECOYS:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"raise RuntimeError('the decoy {name} was imported')")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("TANDEM_", "RAY_"))}
    environment |= {
        "XDG_STATE_HOME": str(folder / "state"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "NO_COLOR": "1",
        "COLUMNS": "160",
    }
    return Home(folder, environment)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return make_home(tmp_path)


@dataclass
class Up:
    """A running `tandem up` and the lines of its stdout so far."""

    home: Home
    process: subprocess.Popen[str]
    port: int
    lines: list[str] = field(default_factory=list)
    arrived: queue.Queue[str | None] = field(default_factory=queue.Queue)
    reader: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def wait_for(self, text: str, timeout: float) -> None:
        end = time.monotonic() + timeout
        while True:
            line = self.arrived.get(timeout=max(0.0, end - time.monotonic()))
            assert line is not None, f"tandem up ended: {self.log()}"
            self.lines.append(line)
            if text in line:
                return

    def read(self) -> None:
        """Runs in a thread of its own until the process ends."""
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                self.arrived.put(line.rstrip("\n"))
        self.arrived.put(None)

    def end(self, number: signal.Signals) -> int:
        """Send a signal; the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(END)
        self.reader.join(END)
        return code

    def log(self) -> str:
        return (self.home.folder / "stderr").read_text()

    def after(self, start: str) -> list[str]:
        """Lines from the first that begins so."""
        index = next(i for i, line in enumerate(self.lines) if line.startswith(start))
        return self.lines[index:]


def spawn_up(home: Home, *arguments: str, tandem: Sequence[str] = TANDEM) -> Up:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (home.folder / "stderr").open("w") as errors:
        process = subprocess.Popen(
            [*tandem, "up", "--port", str(port), *arguments],
            cwd=home.folder, env=home.environment, stdout=subprocess.PIPE, stderr=errors, text=True,
            start_new_session=True,
        )  # fmt: skip
    return Up(home, process, port)


def shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()


def nothing_left(family: list[psutil.Process], home: Home, cluster: str, scratch: str) -> None:
    """Every process of a cluster has ended, and its folder and its record are gone."""
    _, alive = psutil.wait_procs(family, timeout=10)
    assert [process.name() for process in alive] == []
    assert processes(cluster) == []
    assert not Path(scratch).exists()
    assert home.state() is None


def test_detached_it_returns_when_ready_and_down_ends_even_what_a_killed_up_left(home: Home) -> None:
    model = make_tiny_model(home.folder / "tiny")
    small = ["--local", "2", "--set", "engine.kv_memory=4Mi", "--no-sample"]
    result = home.run("up", "--detach", "--port", "0", "--model", str(model), *small, timeout=START)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.strip().startswith("tiny is served at http://127.0.0.1:")
    state = home.state()
    assert state is not None
    assert home.run("up", "--detach").returncode == 6
    assert [(one["name"], one["ready"]) for one in home.items("get", "pools")] == [
        ("prefill", 1),
        ("decode", 1),
    ]
    origins = {one["key"]: one["origin"] for one in home.items("config", "show", "--running", "--origin")}
    assert origins["pools.decode.replicas"] == "--local"
    assert origins["engine.kv_memory"] == "--set engine.kv_memory"
    assert origins["gateway.port"] == "--port, settled at the start"
    assert origins["control.token"] == "settled at the start"
    assert origins["log.level"] == "default"
    family = psutil.Process(state["pid"]).children(recursive=True)
    os.kill(state["pid"], signal.SIGKILL)
    assert home.run("down").returncode == 0
    nothing_left(family, home, state["cluster"], state["scratch"])


def test_a_signal_while_starting_leaves_nothing(home: Home) -> None:
    model = make_tiny_model(home.folder / "tiny")
    running = spawn_up(home, "--model", str(model), "--set", "engine.kv_memory=4Mi")
    end = time.monotonic() + START
    while "starting the controller" not in running.log():
        assert running.process.poll() is None, running.log()
        assert time.monotonic() < end
        time.sleep(0.05)
    state = home.state()
    assert state is not None
    family = psutil.Process(running.process.pid).children(recursive=True)
    assert running.end(signal.SIGTERM) == 1
    nothing_left(family, home, state["cluster"], state["scratch"])


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """The embedded model from two pools. The end is checked here: Ctrl-C leaves nothing."""
    home = make_home(tmp_path_factory.mktemp("home"))
    shm = shared_memory()
    running = spawn_up(home)
    try:
        running.wait_for("Serving until Ctrl-C.", START)
        yield running
        state = home.state()
        assert state is not None
        family = psutil.Process(running.process.pid).children(recursive=True)
        assert len(family) >= 8
        assert running.end(signal.SIGINT) == 130
        nothing_left(family, home, state["cluster"], state["scratch"])
        assert "nothing is left running" in running.log()
        assert shared_memory() <= shm
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", running.port))
    finally:
        if running.process.poll() is None:
            running.end(signal.SIGTERM)


def test_the_address_is_the_gateways_own_port(up: Up) -> None:
    assert f"SmolLM2-135M-Instruct is served at http://127.0.0.1:{up.port}" in up.lines


def test_instances_load_before_there_is_a_controller(up: Up) -> None:
    adopted = {one["subject"] for one in up.home.items("events") if one["kind"] == "adopted"}
    assert adopted == {"prefill-0", "decode-0", "decode-1"}


def test_of_rays_own_processes_those_run_that_it_needs(up: Up) -> None:
    family = psutil.Process(up.process.pid).children(recursive=True)
    lines = [" ".join(one.cmdline()) for one in family if one.status() != psutil.STATUS_ZOMBIE]
    assert any("gcs_server" in line for line in lines)
    superfluous = "dashboard.py", "log_monitor.py", "monitor.py"
    assert not [line for line in lines if any(name in line.split("--")[0] for name in superfluous)]


def test_each_long_step_is_shown_with_its_time(up: Up) -> None:
    done = [line.split("✓ ")[1].rsplit(" ", 2)[0] for line in up.log().splitlines() if "✓" in line]
    assert done == [
        "reading the model SmolLM2-135M-Instruct",
        "starting Ray",
        "packing weights (once)",
        "starting the controller and 2 gateways",
        "starting the instances",
    ]


def test_the_sample_answer_went_through_both_pools(up: Up) -> None:
    summary = next(line for line in up.lines if "TTFT" in line)
    assert "prefilled by prefill-0, decoded by decode-" in summary
    assert " · TPOT " in summary


def test_the_curl_line_works_as_printed(up: Up) -> None:
    line = next(line for line in up.lines if line.startswith("curl "))
    result = subprocess.run(
        ["bash", "-c", f"{line} --silent --fail"], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["choices"][0]["message"]["content"]
    assert shlex.split(line)[1] == f"http://127.0.0.1:{up.port}/v1/chat/completions"


def test_the_openai_snippet_works_as_printed(up: Up) -> None:
    lines = up.after("from openai import OpenAI")
    snippet = "\n".join(lines[: lines.index("print()") + 1])
    result = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, timeout=90)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_without_max_tokens_the_whole_kv_cache_may_be_used(up: Up) -> None:
    """The smallest of context and cache bounds the answer, and every part must agree on where that is."""
    asked = {"model": "SmolLM2-135M-Instruct", "prompt": "The end.", "logit_bias": {"2": 100}}
    response = httpx.post(
        f"http://127.0.0.1:{up.port}/v1/completions", json=asked, timeout=120, trust_env=False
    )
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["finish_reason"] == "stop"


def test_answers_are_token_for_token_those_of_transformers(up: Up, full: bool) -> None:
    chosen = answers() if full else answers()[16:40:12]
    tokenizer = Tokenizer(load_assets(None, None))

    def ask(answer: Answer) -> str:
        asked = {"prompt": list(answer.prompt), "max_tokens": 64, "temperature": 0, "ignore_eos": True}
        response = httpx.post(
            f"http://127.0.0.1:{up.port}/v1/completions",
            json={"model": "SmolLM2-135M-Instruct", **asked}, timeout=120, trust_env=False,
        )  # fmt: skip
        assert response.status_code == 200, response.text
        assert response.json()["usage"]["completion_tokens"] == 64
        return str(response.json()["choices"][0]["text"])

    with ThreadPoolExecutor(8) as threads:
        texts = list(threads.map(ask, chosen))
    wrong = [
        answer.id
        for answer, text in zip(chosen, texts, strict=True)
        if text != tokenizer.decode(answer.tokens)
    ]
    assert wrong == []
    handed = sum(one["status"]["handoffs"] for one in up.home.items("status")[0]["instances"])
    assert handed > 0


def test_status_finds_the_cluster_by_its_record(up: Up) -> None:
    (status,) = up.home.items("status")
    assert status["ready"] is True
    assert status["model"]["name"] == "SmolLM2-135M-Instruct"
    assert {pool["name"]: pool["ready"] for pool in status["pools"]} == {"prefill": 1, "decode": 2}


def test_chat_answers_and_says_where(up: Up) -> None:
    result = up.home.run(
        "chat", "Name three colours of the rainbow.", "--max-tokens", "8", "--temperature", "0"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    assert "TTFT" in result.stderr


def test_scaling_to_zero_is_refused_with_6(up: Up) -> None:
    result = up.home.run("scale", "decode", "--replicas", "0")
    assert (result.returncode, result.stdout) == (6, "")
    assert "cannot be scaled to 0" in result.stderr


def test_a_second_up_is_refused_with_6_and_the_pid(up: Up) -> None:
    result = up.home.run("up", "--port", "0")
    assert result.returncode == 6
    assert result.stderr == (
        f"error: tandem is already running here (process {up.process.pid}); stop it with `tandem down`\n"
    )


def test_the_record_is_for_its_owner_only(up: Up) -> None:
    assert (up.home.folder / "state/tandem/local.json").stat().st_mode & 0o777 == 0o600


def test_the_wrong_token_is_refused_with_7(up: Up) -> None:
    assert up.home.run("status", "--token", "wrong").returncode == 7


def test_a_wheel_in_an_environment_of_its_own_serves_from_any_folder(home: Home, full: bool) -> None:
    if not full:
        pytest.skip("builds a wheel and starts Ray: run with --full")
    wheels = home.folder / "wheels"
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    # In a copy: setuptools leaves folders beside the sources, and takes stale files from them.
    source = home.folder / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "__pycache__", "build", "tests"))
    subprocess.run([*build, "--wheel-dir", str(wheels), str(source)], check=True, timeout=120)
    venv = home.folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, timeout=120)
    install = [str(venv / "bin/python"), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, *map(str, wheels.glob("*.whl"))], check=True, timeout=120)
    # The dependencies are those of this environment: seen after the wheel, and without tandem's own link.
    (site,) = venv.glob("lib/python3*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = [str(venv / "bin/python"), "-P", "-c", "import cluster; print(cluster.__file__)"]
    assert subprocess.check_output(where, text=True).startswith(str(site))

    model = make_tiny_model(home.folder / "tiny")
    arguments = ["--model", str(model), "--set", "engine.kv_memory=4Mi"]
    running = spawn_up(home, *arguments, tandem=[str(venv / "bin/tandem")])
    running.wait_for("Serving until Ctrl-C.", START)
    assert any("TTFT" in line for line in running.lines)
    assert running.end(signal.SIGINT) == 130


def test_the_marker_is_inherited_by_children() -> None:
    script = "import sys; sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, env={**os.environ, MARKER: "abc123"}
    ) as child:
        assert [process.pid for process in processes("abc123")] == [child.pid]
        assert child.stdin is not None
        child.stdin.close()
