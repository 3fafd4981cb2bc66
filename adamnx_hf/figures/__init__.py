"""The documentation's figures: `python -m adamnx_hf.figures`."""
