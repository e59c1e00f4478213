"""From a reference in a record to a picture ready to be sent. Blocking code: runs in threads."""
