"""`optimizer.step()` alone, on the layer shapes of real models."""
