"""Prunes trained vision networks for edge devices, and attacks the file that ships."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeprune.config import Config, load_config
    from edgeprune.models import load, save
    from edgeprune.pipeline import compress
    from edgeprune.records import Report

__all__ = ["Config", "Report", "__version__", "compress", "load", "load_config", "save"]

try:
    __version__ = version("edgeprune")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+unknown"

_HOME = {
    "Config": "edgeprune.config",
    "load_config": "edgeprune.config",
    "load": "edgeprune.models",
    "save": "edgeprune.models",
    "compress": "edgeprune.pipeline",
    "Report": "edgeprune.records",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used: `import edgeprune` loads no torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'edgeprune' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
