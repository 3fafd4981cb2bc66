"""The documentation's figures: `python -m adamnx_hf.figures`.

To add one: a function that draws it, and its line in :mod:`adamnx_hf.figures.__main__`, or in
:func:`adamnx_hf.figures.results.draw_results` if it is drawn from data of the pages of results.
"""
