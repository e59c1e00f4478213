"""The protocols that custom parts follow, under the name that users import."""

from captioner.core.protocols import Dialect, Sink, Source, Transport

__all__ = ["Dialect", "Sink", "Source", "Transport"]
