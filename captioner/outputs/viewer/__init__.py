"""Serves a page on this machine that shows and reviews captions, during a run and after it."""

from captioner.outputs.viewer.server import Viewer, ViewerThread
from captioner.outputs.viewer.store import ViewerStore

__all__ = ["Viewer", "ViewerStore", "ViewerThread"]
