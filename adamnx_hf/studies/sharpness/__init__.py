"""Sharpness: how steep the loss is around the place where a run has ended.

:mod:`~adamnx_hf.studies.sharpness.measures` defines four measures. They are taken on training examples as
evaluation sees them: no augmentation, dropout off, running means.
"""
