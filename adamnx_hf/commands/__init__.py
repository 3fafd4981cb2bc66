"""The commands of `adamnx-hf`, one a file: arguments, a call, what is printed."""
