"""What a stream is, how it travels and how it is stored."""
