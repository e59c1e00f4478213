"""Import of optional dependencies."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from captioner.core.errors import SettingsError


def needed(module: str, packages: str = "") -> Any:
    """Import a module that not every installation has.

    Args:
        module: Its name.
        packages: What to install, as for ``pip install``; by default the package of that name.

    Raises:
        SettingsError: It is not installed; the message says how to install it.
    """
    name = module.partition(".")[0]
    try:
        return import_module(module)
    except ImportError:
        raise SettingsError(f"this needs {name}: pip install {packages or name}") from None
