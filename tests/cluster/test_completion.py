"""Completion in the real shells: what is typed before a TAB, and what stands there after it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

PATIENCE = 120.0
"""Seconds; the command is started once for each completion, on a machine that may be busy."""
TYPED = {
    "tandem sca": "tandem scale",
    "tandem get mig": "tandem get migrations",
    "tandem scale pre": "tandem scale prefill",
    "tandem config val": "tandem config validate",
    "tandem get pools --wat": "tandem get pools --watch",
    "tandem get pools -o ya": "tandem get pools -o yaml",
}


@pytest.fixture
def tandem(tmp_path: Path) -> dict[str, str]:
    """An environment whose path has the command, which nobody need have installed."""
    command = tmp_path / "bin" / "tandem"
    command.parent.mkdir()
    starting = shlex.quote("from cluster.cli.start import main; main()")
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -c {starting} "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "TERM": "xterm", "XDG_CONFIG_HOME": str(tmp_path), "COLUMNS": "200"}


def bash(line: str, environment: dict[str, str], folder: Path) -> str:
    """Bash's function is called as bash calls it; one candidate takes the place of the last word."""
    words = " ".join(map(shlex.quote, line.split()))
    code = f"""
        source <(tandem completion bash)
        COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
        _tandem_completion tandem "${{COMP_WORDS[-1]}}" "${{COMP_WORDS[-2]}}"
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    found = asked(["bash", "--norc", "--noprofile", "-c", code], environment)
    assert len(found) == 1, found
    return line.rpartition(" ")[0] + " " + found[0]


def fish(line: str, environment: dict[str, str], folder: Path) -> str:
    """`complete -C` prints each candidate, a tab and what it is."""
    code = f"tandem completion fish | source; complete -C {shlex.quote(line)}"
    found = asked(["fish", "--no-config", "-c", code], environment)
    assert len(found) == 1, found
    return line.rpartition(" ")[0] + " " + found[0].partition("\t")[0]


def zsh(line: str, environment: dict[str, str], folder: Path) -> str:
    """Zsh completes in its line editor alone, hence on a terminal; ^X writes down what stands on the line."""
    written, whole = folder / "line", folder / "whole"
    (folder / ".zshrc").write_text(
        "autoload -Uz compinit && compinit -u -D\n"
        "source <(tandem completion zsh)\n"
        f"note() {{ print -r -- $BUFFER > {written}; mv {written} {whole} }}\n"
        "zle -N note && bindkey '^X' note && bindkey '^I' expand-or-complete\n"
    )
    ours, theirs = os.openpty()
    shell = subprocess.Popen(
        ["zsh", "-d", "-i"],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env={**environment, "ZDOTDIR": str(folder)},
    )  # fmt: skip
    os.close(theirs)
    try:
        os.set_blocking(ours, False)
        os.write(ours, line.encode() + b"\t\x18")
        end = time.monotonic() + PATIENCE
        said = b""
        while not whole.exists():
            assert time.monotonic() < end and shell.poll() is None, said
            try:
                said += os.read(ours, 65536)
            except BlockingIOError:
                time.sleep(0.05)
        return whole.read_text().strip()
    finally:
        shell.kill()
        shell.wait()
        os.close(ours)


SHELLS: dict[str, Callable[[str, dict[str, str], Path], str]] = {"bash": bash, "zsh": zsh, "fish": fish}


def asked(command: list[str], environment: dict[str, str]) -> list[str]:
    told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert told.returncode == 0 and not told.stderr, told.stderr
    return told.stdout.splitlines()


@pytest.mark.parametrize("typed", TYPED)
@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes(shell: str, typed: str, tandem: dict[str, str], tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} on the path")
    assert SHELLS[shell](typed, tandem, tmp_path) == TYPED[typed]
