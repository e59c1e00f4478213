"""Runs in several processes: one reads and writes, the others prepare records and send requests."""
