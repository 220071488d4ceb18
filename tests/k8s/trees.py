"""What takes a while and never changes, made once for all tests: built overlays, the command line."""

from __future__ import annotations

from functools import cache

import typer

from cluster.cli.main import build
from cluster.config import Config
from k8s import render
from k8s.objects import overlays
from k8s.serve_settings import in_cluster

OVERLAYS = sorted(overlays.overlays(in_cluster(Config())))


@cache
def built(overlay: str) -> str:
    return render.built(Config(), overlay)


@cache
def command_line() -> typer.Typer:
    return build()
