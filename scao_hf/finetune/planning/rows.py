"""A plan in words: a name and a sentence for each thing that is settled."""

from __future__ import annotations

from scao_hf.finetune.planning.outcome import Plan
from scao_hf.finetune.units import byte_size, count, counted, duration

DOT = " · "
_LOSSES = {"all": "all tokens", "completion": "completions", "assistant": "assistant turns"}


def rows(plan: Plan) -> list[tuple[str, str]]:
    """The lines of the plan, in the order in which a run comes to them."""
    lines = [
        ("recipe", _recipe(plan)),
        ("data", _data(plan)),
        ("tokens", _tokens(plan)),
        ("model", _model(plan)),
        ("steps", _steps(plan)),
        ("optimizer", _optimizer(plan)),
        ("memory", _memory(plan)),
        ("disk", _disk(plan)),
        ("probe", _probe(plan)),
    ]
    lines += [("note", notice) for notice in plan.notices]
    told = (one.message if one.hint is None else f"{one.message} ({one.hint})" for one in plan.cautions)
    return lines + [("warning", text) for text in told]


def _recipe(plan: Plan) -> str:
    changed = f"{DOT}{' '.join(plan.overrides)}" if plan.overrides else ""
    return f"{plan.info.recipe}{DOT}output in {plan.info.output_dir}{changed}"


def _data(plan: Plan) -> str:
    info = plan.info
    stages = ", ".join(f"{number} {stage}" for stage, number in info.funnel.items())
    return DOT.join([info.dataset, f"format {info.dataset_format}", f"rows: {stages}", f"{info.eval_rows} held out"])


def _tokens(plan: Plan) -> str:
    tokens = plan.tokens
    lengths = f"median {tokens.median}, 95% up to {tokens.percentile_95}, longest {tokens.longest}"
    loss = f"loss on {_LOSSES.get(plan.info.loss_on, plan.info.loss_on)}, {tokens.supervised_share:.0%} of them"
    if tokens.sampled:
        whole = f"of the first {tokens.rows} rows of the stream, by which the run has about {count(plan.run_tokens)}"
        return DOT.join([lengths, loss, whole])
    return DOT.join([f"{count(tokens.total)} in all", lengths, loss])


def _model(plan: Plan) -> str:
    info = plan.info
    share = info.trainable_parameters / max(1, info.total_parameters)
    trained = f"{count(info.trainable_parameters)} of {count(info.total_parameters)} parameters train ({share:.2%})"
    return DOT.join([info.model, trained, f"{info.device}, {info.dtype}"])


def _steps(plan: Plan) -> str:
    info = plan.info
    warm = f"learning rate {info.learning_rate:g} after {counted(info.lr_warmup_steps, 'warm-up step')}"
    passes = "training.max_steps" if info.epochs is None else f"{info.epochs:.3g} epochs"
    return DOT.join([f"{info.total_steps} of {info.rows_per_step} rows", passes, warm])


def _optimizer(plan: Plan) -> str:
    info = plan.info
    if info.adam_steps is None:
        return info.optimizer
    if plan.preconditioned_from is None:
        return f"{info.optimizer}{DOT}Adam throughout: its Adam phase is {counted(info.adam_steps, 'step')}"
    share = (info.total_steps - info.adam_steps) / info.total_steps
    adam = f"Adam phase until step {info.adam_steps}" if info.adam_steps else "no Adam phase"
    active = f"preconditioned {plan.preconditioned_from}–{info.total_steps} ({share:.0%})"
    whole = info.adam_steps + (plan.blend_steps or 0)
    ramp = f", at whole strength from {whole + 1}" if plan.blend_steps and whole < info.total_steps else ""
    return f"{info.optimizer}{DOT}{adam}, {active}{ramp}"


def _memory(plan: Plan) -> str:
    memory = plan.memory
    if memory.optimizer is None:
        state = f"{plan.info.optimizer} not known (AdamW {byte_size(memory.adamw)})"
    elif plan.info.adam_steps is None:
        state = f"optimizer {byte_size(memory.optimizer)}"
    else:
        state = f"{plan.info.optimizer} {byte_size(memory.optimizer)} (AdamW {byte_size(memory.adamw)})"
    parts = [
        f"weights {byte_size(memory.weights)}",
        f"gradients {byte_size(memory.gradients)}",
        state,
        "activations not known" if memory.activations is None else f"activations ~{byte_size(memory.activations)}",
    ]
    total = f"~{byte_size(memory.total)} of {byte_size(memory.available)} free on {memory.device}"
    return DOT.join([*parts, f"estimate: {total}"])


def _disk(plan: Plan) -> str:
    disk = plan.disk
    kept = f"{counted(disk.checkpoints, 'checkpoint')} of {byte_size(disk.checkpoint)}" if disk.checkpoints else None
    parts = [kept or "no checkpoints", f"{byte_size(disk.saved)} saved at the end", f"{byte_size(disk.available)} free"]
    return DOT.join(parts)


def _probe(plan: Plan) -> str:
    probe = plan.probe
    if probe is None:
        return "not made: --probe runs real steps and measures seconds and memory"
    peak = "not known" if probe.peak_bytes is None else byte_size(probe.peak_bytes)
    return DOT.join(
        [
            f"{probe.step_seconds:.3g} s a step on the longest rows, {count(probe.tokens_per_second)} tokens/s",
            f"the run takes about {duration(probe.run_seconds)}",
            f"peak {peak} (estimate {byte_size(plan.memory.total)})",
            f"optimizer {byte_size(probe.optimizer_bytes)}",
        ]
    )
