"""The instances of a new local cluster start before there is a controller, which finds them by name.

They load while Ray Serve starts, which waits as much as it computes.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import suppress

from cluster.config import Config
from cluster.fleet import RayFleet
from cluster.instance_handle import InstanceHandle
from cluster.memo import Memo
from engine.errors import TandemError

logger = logging.getLogger("tandem.instance")

PROCESS = 20.0
"""Seconds until an instance's process must be there; one that takes longer is left to the controller."""


class EarlyInstances:
    """Begins at once, in a thread; Ray must have been started. `wait` or `end` it.

    What cannot be started so the controller starts, and says why if it cannot either.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._events = asyncio.new_event_loop()
        self._task = self._events.create_task(self._start())
        self._thread = threading.Thread(target=self._run, name="instances", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until each has a process, in which it loads, or will have none: a controller finds them all."""
        self._thread.join()

    def end(self) -> None:
        """Start no more, and ask Ray for nothing any more."""
        with suppress(RuntimeError):  # it is over already
            self._events.call_soon_threadsafe(self._task.cancel)
        self._thread.join()

    def _run(self) -> None:
        try:
            with suppress(asyncio.CancelledError):
                self._events.run_until_complete(self._task)
        except Exception:
            logger.exception("no instance was started early")
        finally:
            self._events.run_until_complete(self._events.shutdown_default_executor())
            self._events.close()

    async def _start(self) -> None:
        pools = self._config.pools
        sizes = {"prefill": pools.prefill.replicas, "decode": pools.decode.replicas}
        names = [(f"{role}-{number}", role) for role, size in sizes.items() for number in range(size)]
        fleet, memo = RayFleet(self._config), Memo().to_bytes()
        await asyncio.gather(*(_load(fleet.spawn(name, role, 0, memo, len(names))) for name, role in names))


async def _load(instance: InstanceHandle) -> None:
    try:
        await instance.load(PROCESS)
    except TandemError as error:
        logger.warning("%s was not started early: %s", instance.name, error)
        await instance.kill()
