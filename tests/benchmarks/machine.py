"""The machine a result was taken on: what a reader needs to judge it, no names and no paths."""

from __future__ import annotations

import os
import platform
import sqlite3
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

PACKAGES = ("uvicorn", "fastapi", "sqlalchemy", "aiohttp", "django", "django-anymail", "gunicorn")


def describe(busy_before: float) -> dict[str, str]:
    """`busy_before`: share of all cores in use before the run began."""
    return {
        "Date": f"{datetime.now(UTC):%Y-%m-%d}",
        "CPU": f"{_cpu_model()}, {psutil.cpu_count()} cores",
        "Memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "File system": _file_system(),
        "Kernel": f"{platform.system()} {platform.release().partition('-')[0]}",
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
        "Packages": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
        "Busy before the run": f"{busy_before:.0%} of all cores, load {os.getloadavg()[0]:.2f}",
    }


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _file_system() -> str:
    """Of the folder for temporary files, where every database of the run lies."""
    here = os.path.realpath(os.environ.get("TMPDIR", "/tmp"))
    mounts = [m for m in psutil.disk_partitions(all=True) if here.startswith(m.mountpoint)]
    return max(mounts, key=lambda m: len(m.mountpoint)).fstype if mounts else "unknown"
