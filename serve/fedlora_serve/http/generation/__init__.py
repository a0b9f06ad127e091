"""From a request to the text of its choices."""
