"""Where records come from. Each source streams; none holds the input in memory."""
