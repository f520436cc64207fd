"""Provenance of a result: versions, devices, host."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import jax

from vgg_jax import __version__


def environment() -> dict[str, Any]:
    """Returns versions, devices ("cpu x 1") and host ("Linux x86_64, 2 processors")."""
    return {
        "versions": {"vgg_jax": __version__, "jax": jax.__version__, "python": platform.python_version()},
        "devices": f"{jax.devices()[0].device_kind} x {jax.device_count()}",
        "host": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
    }


def code_version() -> str:
    """Returns this package's version and the first digits of a digest of its sources."""
    package, digest = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package)}\n".encode() + file.read_bytes())
    return f"{__version__}, sources {digest.hexdigest()[:12]}"
