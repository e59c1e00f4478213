"""Runs on a Ray cluster: each actor captions shards with its own engine and journals."""
