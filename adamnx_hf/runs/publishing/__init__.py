"""A run on the Hub: what is published of it, without secrets and paths, and its model card."""
