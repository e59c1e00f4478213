"""Fetching images by URL, over HTTP and from object stores."""

from captioner.images.fetch.fetcher import Fetcher

__all__ = ["Fetcher"]
