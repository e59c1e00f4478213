"""Where outcomes go: the journal with its commit protocol, and the steps that finish an output."""
