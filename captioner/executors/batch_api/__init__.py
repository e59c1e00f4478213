"""Captions through a provider's batch API, which costs half and takes up to a day."""
