"""A page on this machine that shows captions, while a run goes on and after it."""
