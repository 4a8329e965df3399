"""Pure functions on tensors of shape (..., m, n): no state, no configuration, no host synchronisation."""
