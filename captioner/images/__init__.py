"""From a reference in a record to an image ready to be sent. Blocking code: runs in threads."""
