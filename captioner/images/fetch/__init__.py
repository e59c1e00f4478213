"""From a URL in a record to a picture's bytes: the web and object stores."""
