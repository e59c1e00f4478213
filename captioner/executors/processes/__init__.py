"""One run in several processes: the parent reads and writes, its workers prepare and ask."""
