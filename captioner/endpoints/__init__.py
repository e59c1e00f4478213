"""Requests to endpoints: connections, limits, and what responses mean."""
