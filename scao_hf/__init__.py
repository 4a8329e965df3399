"""SCAO, a sparse curvature-aware optimizer for PyTorch and Hugging Face training.

Importing this package is cheap: neither torch nor transformers is loaded before a name below is used. It makes
`optim="scao"`, `"scao_published"` and `"soap"` legal for `transformers.TrainingArguments` as soon as transformers is
imported, whether that happened before or happens after (see `scao_hf.hf.registration`).
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from scao_hf._version import __version__
from scao_hf.hf.registration import register_on_import

if TYPE_CHECKING:
    from scao_hf.hf.callback import SCAOMonitorCallback
    from scao_hf.hf.parameters import parameter_groups
    from scao_hf.hf.registration import register
    from scao_hf.hf.sft import SCAOSFTTrainer
    from scao_hf.hf.trainer import SCAOTrainer
    from scao_hf.optim.loggers import ConsoleLogger, TensorBoardLogger, WandbLogger
    from scao_hf.optim.published import PublishedSCAO
    from scao_hf.optim.scao import SCAO
    from scao_hf.optim.soap import SOAP

_HOME_OF = {
    "SCAO": "scao_hf.optim.scao",
    "PublishedSCAO": "scao_hf.optim.published",
    "SOAP": "scao_hf.optim.soap",
    "ConsoleLogger": "scao_hf.optim.loggers",
    "TensorBoardLogger": "scao_hf.optim.loggers",
    "WandbLogger": "scao_hf.optim.loggers",
    "parameter_groups": "scao_hf.hf.parameters",
    "register": "scao_hf.hf.registration",
    "SCAOSFTTrainer": "scao_hf.hf.sft",
    "SCAOMonitorCallback": "scao_hf.hf.callback",
    "SCAOTrainer": "scao_hf.hf.trainer",
}

__all__ = [
    "SCAO",
    "SOAP",
    "ConsoleLogger",
    "PublishedSCAO",
    "SCAOMonitorCallback",
    "SCAOSFTTrainer",
    "SCAOTrainer",
    "TensorBoardLogger",
    "WandbLogger",
    "__version__",
    "parameter_groups",
    "register",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'scao_hf' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


if os.environ.get("SCAO_HF_NO_AUTO_REGISTER") != "1":
    register_on_import()
