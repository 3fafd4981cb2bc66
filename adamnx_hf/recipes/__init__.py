"""From a recipe's name to a checked recipe."""
