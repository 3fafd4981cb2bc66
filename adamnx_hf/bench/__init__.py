"""The cost of an optimizer step: its time and its memory, beside those of other optimizers.

To add parameters to step, add a line to :data:`adamnx_hf.bench.cases.CASES`. To add an optimizer to time, add
one to :data:`adamnx_hf.bench.contestants.CONTESTANTS`.
"""
