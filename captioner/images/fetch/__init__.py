"""From a URL in a record to an image's bytes: the web and object stores."""
