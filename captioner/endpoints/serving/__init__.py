"""A local model server: started for a run, watched, started again, and stopped."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from captioner.settings.context import RunContext

__all__ = ["serving"]


def serving(context: RunContext) -> AbstractAsyncContextManager[RunContext]:
    """Return the context of a run with the addresses of the servers of ``--serve``.

    They run while it is open. Worker processes of a run get the addresses from their parent.

    Raises:
        SettingsError: A server does not start.
        StoppedError: The run was cancelled while it started.
    """
    endpoint = context.settings.endpoint
    if endpoint.serve is None or endpoint.base_url:
        return nullcontext(context)
    from captioner.endpoints.serving.own import with_servers

    return with_servers(context, endpoint.serve)
