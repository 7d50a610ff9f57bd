"""A config for images of one's own."""
