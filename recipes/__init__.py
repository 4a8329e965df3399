"""Packaged recipes: one YAML file each, read with `importlib.resources`."""
