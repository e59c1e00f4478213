"""Runs on a Ray cluster: each actor captions shards with an engine and journals of its own."""
