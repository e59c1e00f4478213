"""Runs of a job: in this process, in several, on Ray, or through a batch API."""
