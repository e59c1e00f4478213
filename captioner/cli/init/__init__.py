"""What `captioner init` copies: a folder that works, to be made one's own."""
