"""The state of an output's batches, without a run."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from captioner.core.errors import NotFoundError, SettingsError
from captioner.core.humanize import counted
from captioner.core.secrets import without_login
from captioner.endpoints.addresses import api_key, base_url
from captioner.endpoints.transport import AiohttpTransport
from captioner.executors.batch_api.client import ENDED, BatchApi
from captioner.settings.context import RunContext
from captioner.settings.options import EndpointSettings
from captioner.settings.settings import Settings

if TYPE_CHECKING:
    from captioner.executors.batch_api.ledger import Ledger

TIMEOUT_S = 60.0


def _address(ledger: Ledger) -> str:
    """Return the address of the batches, with the login that the environment has for it.

    Raises:
        SettingsError: A stranger may have named it.
    """
    with contextlib.suppress(SettingsError):
        found = base_url(EndpointSettings())
        if without_login(found) == ledger.base_url:
            return found
    if not ledger.is_own:
        raise SettingsError(
            f"{ledger.folder / 'state.json'} was written by another user, on another machine, or "
            f"by the author of the data set. The key would be sent to {ledger.base_url}: if that "
            "is yours, set CAPTIONER_BASE_URL to it."
        )
    return ledger.base_url or "http://localhost"


async def look_at_batches(ledger: Ledger, *, cancel: bool) -> list[str]:
    """Return a line of text for each batch; ``cancel`` requests its cancellation first.

    Raises:
        RunError: The provider refuses to respond, or is unavailable.
        SettingsError: There are no batches.
    """
    if not ledger.batches:
        raise SettingsError(f"there are no batches in {ledger.folder}")
    transport = AiohttpTransport(
        _address(ledger),
        api_key=api_key(EndpointSettings(api_key_env=tuple(ledger.api_key_env))),
        timeout_s=TIMEOUT_S,
    )
    api = BatchApi(transport, RunContext(Settings()), max_outage_s=TIMEOUT_S)
    lines = []
    try:
        for batch in ledger.batches:
            name = batch.batch_id or f"batch {batch.number}"
            status: str = batch.state
            done, requests = batch.done, counted(batch.requests, "request")
            if batch.state == "created":
                try:
                    remote = await api.get(batch.batch_id)
                    if cancel and remote.status not in ENDED:
                        remote = await api.cancel(batch.batch_id)
                except NotFoundError:
                    lines.append(f"{name}: the provider no longer has it")
                    continue
                status, done = remote.status, remote.done
            lines.append(f"{name}: {status}, {done:,} of {requests} done")
    finally:
        await transport.close()
    return lines
