"""The library behind the command line: recipes, data, models, runs and their errors."""
