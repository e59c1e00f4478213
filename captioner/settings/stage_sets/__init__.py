"""Stages that captioner brings, a TOML file for each set."""
