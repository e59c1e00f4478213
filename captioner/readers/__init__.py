"""Readers of all input formats. Records are streamed; no reader holds the whole input in memory."""
