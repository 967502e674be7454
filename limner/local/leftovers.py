"""Ends the containers that a killed daemon left running.

A daemon that is stopped ends its containers; one that is killed cannot, and each container has a
session of its own. But all of them carry the laptop's folder for temporary files in their
environment, so whoever takes over finds them. (PR_SET_PDEATHSIG would not do: it strikes when the
*thread* that started a process ends, and the threads that start containers are short-lived.)
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from limner.local.layout import Layout


def end(layout: Layout) -> int:
    """Kills the containers of this project's laptop; call it while no daemon of it serves.

    Looks into /proc, so it finds nothing where there is none (macOS).

    Returns:
        How many processes there were.
    """
    mark = f"TMPDIR={layout.scratch}".encode()
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            variables = (process / "environ").read_bytes().split(b"\0")
            # Only containers have variables of the platform; a daemon that starts has none.
            if mark in variables and any(item.startswith(b"SAGEMAKER_") for item in variables):
                os.kill(int(process.name), signal.SIGKILL)
                count += 1
        except OSError:
            continue  # it has ended meanwhile, or belongs to another user
    return count
