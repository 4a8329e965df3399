"""The published tables of SCAO 0.1, measured again.

Nothing is tuned here, and conditions differ where an ablation differs, so that the protocol's `compare` has no place;
what must be equal is checked all the same.
"""
