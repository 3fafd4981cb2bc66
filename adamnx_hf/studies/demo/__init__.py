"""The demo: a small vision transformer, trained by the Trainer with AdamNX and with AdamW.

The data are scikit-learn's handwritten digits (1,797 scans, 8×8 pixels), the model a ViT of 58,570
parameters, from scratch. The optimizers are compared in pairs: for each seed they start from the same
weights and see the same batches, at the same learning rate and schedule. The rate was chosen for AdamW: of
1e-3, 2e-3, 3e-3, 5e-3, 8e-3 and 1.2e-2 the one with the best final test loss and accuracy over seeds 0, 1
and 2, which favours AdamW a little. AdamNX takes it as it is.
"""
