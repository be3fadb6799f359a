"""Chat templates as programs: Jinja, run within limits of time and memory, that remembers which text is content."""
