"""The command line: a Typer application over `scao_hf.finetune`."""
