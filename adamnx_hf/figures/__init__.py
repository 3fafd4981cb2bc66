"""The documentation's figures."""
