"""The stages of one step: inputs → clock → plan → execute.

:func:`adamnx_hf.optim.functional.adamnx` tells the story; each module here is one of its sentences.
"""
