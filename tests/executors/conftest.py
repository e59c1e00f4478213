from __future__ import annotations

from collections.abc import Iterator

import pytest
from batchstub import BatchStub


@pytest.fixture
def stub() -> Iterator[BatchStub]:
    """A provider with a batch API."""
    stub = BatchStub()
    yield stub
    stub.stop()
