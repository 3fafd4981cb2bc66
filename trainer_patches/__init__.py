"""Makes optimizer names known to Transformers."""
