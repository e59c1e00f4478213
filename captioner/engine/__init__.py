"""From a record to its outcome: conversation, requests, attempts, caption checks, cache."""
