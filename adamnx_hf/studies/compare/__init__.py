"""Comparisons of optimizers on one recipe: paired by seed, each at its best.

For each seed every optimizer starts from the same weights and sees the same batches. With a sweep each takes
the values, of the same grid for all, that do best on data held out of the training split. Then it is judged
on the recipe's evaluation split, with other seeds, after the last step. A verdict says "better" only for what
neither chance nor a grid that is too coarse explains: `verdict.py` has the tests, `sweep.py` the head-room.
"""
