"""How the batches of an output are, for those who ask without running anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captioner.core.errors import NotFoundError, SettingsError
from captioner.endpoints.connect import api_key
from captioner.endpoints.transport import AiohttpTransport
from captioner.executors.batch_api.client import ENDED, BatchApi
from captioner.settings.context import RunContext
from captioner.settings.options import EndpointSettings
from captioner.settings.settings import Settings

if TYPE_CHECKING:
    from captioner.executors.batch_api.ledger import Ledger

TIMEOUT_S = 60.0


async def look_at_batches(ledger: Ledger, *, cancel: bool) -> list[str]:
    """Return a line for each batch, after asking for it to be cancelled if that is wished.

    Raises:
        EndpointRefusedError: The provider refuses to tell.
        SettingsError: There are no batches.
    """
    if not ledger.batches:
        raise SettingsError(f"there are no batches in {ledger.folder}")
    transport = AiohttpTransport(
        ledger.base_url or "http://localhost",
        api_key=api_key(EndpointSettings(api_key_env=tuple(ledger.api_key_env))),
        timeout_s=TIMEOUT_S,
    )
    api = BatchApi(transport, RunContext(Settings()), max_outage_s=TIMEOUT_S)
    found = []
    try:
        for batch in ledger.batches:
            status, done = batch.state, batch.done
            if batch.state == "created":
                try:
                    remote = await api.get(batch.batch_id)
                except NotFoundError:
                    found.append(f"{batch.batch_id}: the provider has forgotten it")
                    continue
                if cancel and remote.status not in ENDED:
                    remote = await api.cancel(batch.batch_id)
                status, done = remote.status, remote.done
            name = batch.batch_id or f"batch {batch.number}"
            found.append(f"{name}: {status}, {done:,} of {batch.requests:,} requests done")
    finally:
        await transport.close()
    return found
