"""The step loop that every optimizer here shares: stacks of equal blocks, one update hook, one refresh hook."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from scao_hf.numerics.moments import adam_direction, update_moments
from scao_hf.optim.compression import compress, expand, write_back
from scao_hf.optim.diagnostics import LayerDiagnostics, summarize
from scao_hf.optim.placement import Local, Placement
from scao_hf.optim.stack import Layout, Stack, State, Storage

Group = dict[str, Any]
Refresh = Callable[..., None]
ReadNorms = Callable[[], Tensor]
StepCallback = Callable[["KroneckerOptimizer", int], None]

MATRIX_KINDS = ("matrix", "lora_a", "lora_b", "embedding", "head")
KINDS = (*MATRIX_KINDS, "vector")
"""What a group may say its parameters are."""
SIDE_CHOICES = ("auto", "both", "left", "right", "none")
"""Which sides of an (m, n) matrix get an eigenbasis; "none" is AdamW."""
FOREIGN_OPTIONS = ("maximize", "foreach", "fused", "capturable", "differentiable", "amsgrad")


class KroneckerOptimizer(Optimizer):
    """An optimizer that learns a basis for each side of a matrix. Abstract; the siblings below it are final.

    A sibling supplies a layout and three static hooks, which see tensors and the parameter group and nothing else:

        _layout(shape, group)                        which rows, which sides get a basis
        _create(rows, layout, group, device)         the state of new rows: every key and shape it will ever have
        _update(state, grads, layout, group, step, refresh, read_norms)
                                                     the direction of this step; calls `refresh(…)` where its turn is,
                                                     and `read_norms()` for the norms of the parameters' rows
        _refresh(state, layout, group, step, …)      recompute the bases, with what `refresh` was given

    Everything remembered is a tensor or an int in `optimizer.state[p]`. Parameters without a basis take the step of
    AdamW.
    """

    def __init__(self, params: Any, defaults: Group) -> None:
        self._reset_runtime()
        super().__init__(params, defaults)

    def _reset_runtime(self) -> None:
        self._placement: Placement = Local()
        self._stacks_of_group: dict[int, list[Stack]] = {}
        self._callbacks: list[StepCallback] = []
        self._steps_taken = 0

    @staticmethod
    @abstractmethod
    def _validate(group: Group) -> None:
        """Raise ValueError or TypeError for a hyperparameter that cannot be."""

    @staticmethod
    @abstractmethod
    def _layout(shape: tuple[int, ...], group: Group) -> Layout: ...

    @staticmethod
    @abstractmethod
    def _create(rows: int, layout: Layout, group: Group, device: torch.device) -> Storage: ...

    @staticmethod
    @abstractmethod
    def _update(
        state: Storage, grads: Tensor, layout: Layout, group: Group, step: int, refresh: Refresh, read_norms: ReadNorms
    ) -> Tensor: ...

    @staticmethod
    def _prepare(state: Storage, grads: Tensor, read_params: Callable[[], Tensor], group: Group, step: int) -> Tensor:
        """What the update sees in place of the gradients; `read_params()` gives the parameters' rows, float32."""
        return grads

    @staticmethod
    @abstractmethod
    def _refresh(state: Storage, layout: Layout, group: Group, step: int, *seen: Any) -> None: ...

    @staticmethod
    @abstractmethod
    def adam_steps(group: Group) -> int:
        """Steps of plain Adam with which a preconditioned parameter of a group with these hyperparameters begins."""

    @staticmethod
    @abstractmethod
    def _diagnose(state: State, layout: Layout, group: Group) -> LayerDiagnostics: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: reevaluates the model and returns the loss; runs with gradients enabled.

        Returns:
            What the closure returned, or None.

        Raises:
            TypeError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for index, group in enumerate(self.param_groups):
            for stack in self._stacks(index, group):
                step = stack.advance()
                grads = self._placement.gradients(stack)
                direction = self._direction(stack, grads, group, step)
                decay = group["weight_decay"] if group.get("use_decoupled_weight_decay", True) else 0.0
                self._placement.apply(stack, direction, group["lr"], decay)
        self._steps_taken += 1
        for callback in self._callbacks:
            callback(self, self._steps_taken)
        return loss

    def _direction(self, stack: Stack, grads: Tensor, group: Group, step: int) -> Tensor:
        state, layout = expand(stack.storage), stack.layout

        def refresh(*seen: Any) -> None:
            self._placement.refresh(stack, lambda: self._refresh(state, layout, group, step, *seen))

        grads = self._prepare(state, grads, stack.parameters, group, step)
        update = self._update if layout.preconditioned else self._update_without_basis
        direction = update(state, grads, layout, group, step, refresh, stack.parameter_norms)
        write_back(stack.storage, state, _state_dtype(group), step)
        return direction

    @staticmethod
    def _update_without_basis(
        state: Storage, grads: Tensor, layout: Layout, group: Group, step: int, refresh: Refresh, read_norms: ReadNorms
    ) -> Tensor:
        update_moments(state["exp_avg"], state["exp_avg_sq"], grads, group["betas"])
        return adam_direction(state["exp_avg"], state["exp_avg_sq"], group["betas"], group["eps"], step)

    def _stacks(self, index: int, group: Group) -> list[Stack]:
        active = [param for param in group["params"] if param.grad is not None]
        stacks = self._stacks_of_group.get(index, [])
        if not self._still_hold(stacks, active):
            stacks = self._build_stacks(active, group)
            self._stacks_of_group[index] = stacks
        return stacks

    def _still_hold(self, stacks: list[Stack], active: Sequence[Tensor]) -> bool:
        members = {param: (stack, i) for stack in stacks for i, param in enumerate(stack.params)}
        if len(members) != len(active):
            return False
        return all(
            param in members and members[param][0].owns(members[param][1], self.state[param]) for param in active
        )

    def _build_stacks(self, params: Sequence[Tensor], group: Group) -> list[Stack]:
        members: dict[tuple[Any, ...], list[Tensor]] = {}
        layouts: dict[tuple[Any, ...], Layout] = {}
        for param in params:
            _require_whole(param, group)
            layout = self._layout(tuple(param.shape), group)
            key = (layout, tuple(param.shape), param.dtype, param.device, self.state[param].get("step", 0))
            members.setdefault(key, []).append(param)
            layouts[key] = layout
        return [self._build_stack(params, layouts[key], group) for key, params in members.items()]

    def _build_stack(self, params: Sequence[Tensor], layout: Layout, group: Group) -> Stack:
        def create(rows: int) -> Storage:
            return self._new_storage(layout, group, params[0].device, rows)

        return Stack.gather(params, layout, [self.state[param] for param in params], create)

    def _new_storage(self, layout: Layout, group: Group, device: torch.device, rows: int) -> Storage:
        if layout.preconditioned:
            state = self._create(rows, layout, group, device)
        else:
            state = self._create_without_basis(rows, layout, device)
        return compress(state, _state_dtype(group), step=0)

    @staticmethod
    def _create_without_basis(rows: int, layout: Layout, device: torch.device) -> Storage:
        shape = (rows, *layout.row_shape)
        return {"exp_avg": torch.zeros(shape, device=device), "exp_avg_sq": torch.zeros(shape, device=device)}

    def add_param_group(self, param_group: Group) -> None:
        """Add a group of parameters; its hyperparameters default to the constructor's.

        Raises:
            ValueError: a hyperparameter is out of range, or an option of other optimizers was given.
            TypeError: a hyperparameter is of the wrong kind; a parameter is complex, sparse or not floating.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group).__name__}")
        for option in FOREIGN_OPTIONS:
            if param_group.get(option):
                raise ValueError(
                    f"{type(self).__name__} has no option {option}={param_group[option]!r}; leave it out"
                    + (" and negate the loss instead" if option == "maximize" else "")
                )
        group = {**self.defaults, **param_group}
        _validate_treatment(group)
        _validate_adam(group)
        self._validate(group)
        super().add_param_group(param_group)
        for param in self.param_groups[-1]["params"]:
            if not param.is_floating_point() or param.layout != torch.strided:
                self.param_groups.pop()
                raise TypeError(
                    f"{type(self).__name__} optimizes dense real floating-point parameters, got one of dtype "
                    f"{param.dtype}, layout {param.layout} and shape {tuple(param.shape)}; "
                    + ("split it into torch.view_as_real" if param.is_complex() else "leave it out")
                )

    def state_dict(self) -> dict[str, Any]:
        """The state as plain tensors and numbers, readable by `torch.load(..., weights_only=True)`.

        A callable hyperparameter (a schedule) is stored as None; loading keeps the one given to the constructor.
        """
        state_dict = super().state_dict()
        for group in state_dict["param_groups"]:
            group.update({name: None for name, value in group.items() if callable(value)})
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state saved by `state_dict`, every tensor in the dtype it was saved in.

        `torch.optim.Optimizer.load_state_dict` would cast each floating state tensor, and each int8 code, to the dtype
        of its parameter; the state of a bfloat16 model would then resume with other numbers.
        """
        self._require_own_checkpoint(state_dict)
        schedules = [{k: v for k, v in group.items() if callable(v)} for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, schedule in zip(self.param_groups, schedules, strict=True):
            group.update({name: value for name, value in schedule.items() if group.get(name) is None})
        saved_ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for saved_id, param in zip(saved_ids, params, strict=True):
            for name, value in state_dict["state"].get(saved_id, {}).items():
                if isinstance(value, Tensor):
                    self.state[param][name] = value.detach().to(param.device)
        self._stacks_of_group.clear()

    def _require_own_checkpoint(self, state_dict: dict[str, Any]) -> None:
        saved_groups = state_dict["param_groups"]
        if [len(g["params"]) for g in saved_groups] != [len(g["params"]) for g in self.param_groups]:
            return  # torch's own load_state_dict says which group does not fit
        for saved_group, group in zip(saved_groups, self.param_groups, strict=True):
            for saved_id, param in zip(saved_group["params"], group["params"], strict=True):
                saved = state_dict["state"].get(saved_id)
                if not saved:
                    continue
                schedules = {name: value for name, value in group.items() if callable(value)}
                merged = {**group, **saved_group, **schedules}
                if not self._could_have_written(saved, param, merged):
                    raise ValueError(
                        f"this state was not saved by {type(self).__name__} with these settings for a parameter of "
                        f"shape {tuple(param.shape)}: it holds {_outline(saved)}; resume with the optimizer and the "
                        "parameter groups that wrote it, or start without its state"
                    )

    def _could_have_written(self, saved: State, param: Tensor, group: Group) -> bool:
        layout = self._layout(tuple(param.shape), group)
        fresh = self._new_storage(layout, group, torch.device("meta"), layout.num_rows)
        expected = {name: tensor.shape if layout.num_rows > 1 else tensor.shape[1:] for name, tensor in fresh.items()}
        held = {name: value.shape for name, value in saved.items() if isinstance(value, Tensor)}
        return held == expected and isinstance(saved.get("step"), int)

    def __getstate__(self) -> dict[str, Any]:
        # Each view of a stack's storage would be pickled with the whole of that storage.
        state = super().__getstate__()
        copies = {
            param: {name: value.clone() if isinstance(value, Tensor) else value for name, value in held.items()}
            for param, held in self.state.items()
        }
        return {**state, "state": defaultdict(dict, copies)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_callbacks" not in self.__dict__:  # unpickled or copied, where __init__ does not run
            self._reset_runtime()
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def add_callback(self, callback: StepCallback) -> None:
        """Call `callback(optimizer, step)` after every step; `step` counts this object's steps from 1."""
        self._callbacks.append(callback)

    def diagnostics(self) -> dict[str, float]:
        """What the curvature looks like now, over all preconditioned parameters.

        Returns:
            phase (0 Adam, 1 ramp, 2 preconditioned), blend (0 to 1), rank_mean and rank_max (active columns a side),
            mass_kept (share of the trace inside the basis), curvature_norm (mean eigenvalue, squared gradient units),
            basis_drift (how far the columns turned at the last refresh, 1 − mean cos²), failures
            (factorisations that kept their last good basis), preconditioned_fraction (of the parameters), state_bytes.

        Reads tensors back to the host. `step` does not, but for the error check of `eigh` on a GPU, at the refreshes of
        PublishedSCAO and SOAP.
        """
        layers = self.layer_diagnostics()
        numel = sum(param.numel() for param in self._all_params())
        return summarize(layers, numel, self._state_bytes())

    def layer_diagnostics(self) -> list[LayerDiagnostics]:
        """The same by parameter, for those that are preconditioned and have taken a step."""
        found = []
        for group in self.param_groups:
            names = group.get("param_names", [None] * len(group["params"]))
            for position, (name, param) in enumerate(zip(names, group["params"], strict=True)):
                layout = self._layout(tuple(param.shape), group)
                if self.state.get(param) and layout.preconditioned:
                    diagnosis = self._diagnose(self.state[param], layout, group)
                    found.append(diagnosis._replace(name=name or f"parameter {position}", numel=param.numel()))
        return found

    @classmethod
    def state_bytes(cls, params: Any, **options: Any) -> int:
        """What the state of these parameters will take once each has had a gradient; nothing is allocated.

        The memory of the tensors in `optimizer.state`, exact to the byte, as `diagnostics()["state_bytes"]` tells it
        after the first step.

        Args:
            params: a module, of which the trainable parameters count; or what the constructor takes. May lie on the
                "meta" device.
            options: arguments of the constructor.

        Returns:
            Bytes.

        Raises:
            ValueError, TypeError: as the constructor.
        """
        if isinstance(params, Module):
            params = [param for param in params.parameters() if param.requires_grad]
        optimizer = cls(params, **options)
        return sum(optimizer._planned_bytes(group) for group in optimizer.param_groups)

    def _planned_bytes(self, group: Group) -> int:
        layouts = [self._layout(tuple(param.shape), group) for param in group["params"]]
        meta = torch.device("meta")
        return sum(_bytes_of(self._new_storage(lay, group, meta, lay.num_rows).values()) for lay in layouts)

    def _all_params(self) -> Iterable[Tensor]:
        return chain.from_iterable(group["params"] for group in self.param_groups)

    def _state_bytes(self) -> int:
        return _bytes_of(v for state in self.state.values() for v in state.values() if isinstance(v, Tensor))


def _state_dtype(group: Group) -> str:
    return str(group.get("state_dtype", "float32"))


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _require_whole(param: Tensor, group: Group) -> None:
    if type(param).__name__ == "DTensor" or type(getattr(param, "data", param)).__name__ == "DTensor":
        raise NotImplementedError(
            "parameters are sharded as DTensors (FSDP2), which would hide the rows and columns of a matrix; "
            "train on a single device or with DistributedDataParallel"
        )
    if group.get("kind") in MATRIX_KINDS and param.ndim < 2:
        raise NotImplementedError(
            f"a parameter of the group of kind {group['kind']!r} arrived flattened to shape {tuple(param.shape)} "
            "(FSDP1 or DeepSpeed ZeRO), which leaves no matrix to precondition; "
            "train on a single device or with DistributedDataParallel"
        )


def _outline(state: State) -> str:
    return ", ".join(f"{name} {tuple(v.shape)}" if isinstance(v, Tensor) else name for name, v in state.items())


def _validate_treatment(group: Group) -> None:
    kind, sides = group.get("kind"), group.get("sides", "auto")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if sides not in SIDE_CHOICES:
        raise ValueError(f"sides must be one of {', '.join(SIDE_CHOICES)}, got {sides!r}")


def _validate_adam(group: Group) -> None:
    require_number("lr", group["lr"], 0.0)
    require_number("eps", group["eps"], 0.0)
    require_number("weight_decay", group["weight_decay"], 0.0)
    require_pair("betas", group["betas"])


def require_number(name: str, value: Any, low: float, high: float = float("inf"), *, open_high: bool = False) -> None:
    """Raise unless a hyperparameter is a Python number between `low` and `high` (excluded if `open_high`)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}")
    if not low <= value <= high or (open_high and value == high):
        bounds = f"[{low:g}, {high:g}{')' if open_high else ']'}" if high != float("inf") else f"at least {low:g}"
        raise ValueError(f"{name} must be {'in ' if '[' in bounds else ''}{bounds}, got {value!r}")


def require_pair(name: str, value: Any) -> tuple[float, float]:
    """Return two decays in [0, 1) as a tuple; raise unless that is what they are."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(f"{name} must be two numbers in [0, 1), got {value!r}")
    for decay in value:
        require_number(name, decay, 0.0, 1.0, open_high=True)
    return value[0], value[1]


def require_flag(name: str, value: Any) -> None:
    """Raise unless a hyperparameter is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r} of type {type(value).__name__}")


def require_count(name: str, value: Any, low: int) -> None:
    """Raise unless a hyperparameter is an integer of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value!r}")
