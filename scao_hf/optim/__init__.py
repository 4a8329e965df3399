"""Optimizers for PyTorch: one step loop, three final siblings, state in plain tensors."""
