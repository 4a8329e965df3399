"""Transformers: parameter groups, the names for `TrainingArguments(optim=...)`, SCAOTrainer and its metrics."""
