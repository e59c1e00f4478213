"""The command line: flags, help, progress display, summaries and exit status."""
