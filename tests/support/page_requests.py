"""Requests to the page of an output, as its own script sends them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from captioner.outputs.viewer import ViewerThread


def ask(page: ViewerThread, what: str) -> Any:
    """Return the JSON that the page answers."""
    with urllib.request.urlopen(f"{page.url}api/{what}") as reply:
        return json.loads(reply.read())


def send(page: ViewerThread, what: str, **body: Any) -> Any:
    """Send JSON; return the JSON answered, or the status and the text of an error."""
    request = urllib.request.Request(f"{page.url}api/{what}", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request) as reply:
            return json.loads(reply.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())["error"]
