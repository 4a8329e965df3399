"""The suite behind every measured claim: `python -m benchmarks --help`."""
