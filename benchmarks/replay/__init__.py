"""Recorded gradients, replayed through trackers and optimizers: what a component does, before anything is trained."""
