"""Create the example project of `captioner init`; its files are in ``project``."""
