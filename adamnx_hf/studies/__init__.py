"""Studies: many runs, or many measurements of one, and what may be said of them.

A study calls :mod:`adamnx_hf.runs`; a run knows of no other. To add a study: its file or folder here, its
command in :mod:`adamnx_hf.commands` and a line in :data:`adamnx_hf.cli.COMMANDS`.
"""
