"""Comparing optimizers: the same chance for each, and what may be concluded from the runs."""
