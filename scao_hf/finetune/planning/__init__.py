"""What a run will be before it is one: rows, steps, bytes and disk, from a model that is never allocated."""
