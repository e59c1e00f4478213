"""A model server of one's own: started for a run, watched, started again, and stopped."""

from captioner.endpoints.serving.own import serving

__all__ = ["serving"]
