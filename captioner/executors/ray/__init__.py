"""More than one machine: Ray hands out shards; engine and journal run whole in each actor."""
