"""Sources that convert rows to records."""

from __future__ import annotations

import pytest

from captioner.readers.rows import RecordSource


def test_a_source_without_records_cannot_be_made():
    class Incomplete(RecordSource):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Incomplete()
