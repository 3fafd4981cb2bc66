"""The stages of one step: inputs → clock → execute.

:func:`adamnx_hf.optim.functional.adamnx` tells the story; each module here is one of its sentences.
"""
