"""Import of optional dependencies."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from captioner.core.errors import SettingsError


def needed(module: str, extra: str) -> Any:
    """Import a module of an extra.

    Raises:
        SettingsError: It is not installed; the message says how to install it.
    """
    try:
        return import_module(module)
    except ImportError:
        raise SettingsError(
            f"this needs {module.partition('.')[0]}: pip install 'captioner[{extra}]'"
        ) from None
