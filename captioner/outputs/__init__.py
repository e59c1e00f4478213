"""Reads finished and running outputs: exports, checks, statistics, reports and the viewer."""
