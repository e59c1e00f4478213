"""The languages of endpoints: build requests, judge replies, no I/O."""
