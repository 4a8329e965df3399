"""A run's adapter or model on the hub, with its card."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.layout import CARD
from scao_hf.finetune.results.card import model_card
from scao_hf.finetune.results.folder import RunFolder
from scao_hf.finetune.results.summary import hub_id

ADAPTER_CONFIG = "adapter_config.json"
LOGIN = "`hf auth login`, or set HF_TOKEN to a token with write access"
_REPOSITORY = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_LEFT_OUT = ("*.part", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state*")


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What lies on the hub now."""

    url: str
    repository: str
    private: bool
    files: list[str]
    notices: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def push(run: RunFolder, repository: str, *, private: bool = False, api: Any = None) -> Pushed:
    """Upload the weights of a finished run, in one commit, with a card that says how they were made.

    Args:
        run: finished.
        repository: "name/repository" on the hub; made if it is not there.
        private: whether a repository that is made can be seen by its owner alone.
        api: a `huggingface_hub.HfApi`; by default one with the token of this machine.

    Raises:
        FinetuneError: config.repository for a name that the hub would refuse; model.no-weights; model.offline,
            model.not-logged-in, model.forbidden, model.hub.
    """
    folder = run.weights
    run.require_finished()
    if not _REPOSITORY.fullmatch(repository):
        hint = "a name as the hub has them: your-name/repository"
        raise FinetuneError("config.repository", f"{repository!r} is not the name of a repository", hint)
    _require_online()
    from huggingface_hub import HfApi

    api = HfApi(library_name="scao-hf") if api is None else api
    (folder / CARD).write_text(model_card(run, repository, adapter=run.is_adapter), encoding="utf-8")
    try:
        api.whoami()
        api.create_repo(repository, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=str(folder),
            commit_message=f"{run.info['recipe']}: {run.report['steps']} steps of {run.info['optimizer']}",
            ignore_patterns=list(_LEFT_OUT),
        )
    except Exception as error:
        known = _hub_error(repository, error)
        if known is None:
            raise
        raise known from error
    files = sorted(file.name for file in folder.iterdir() if file.is_file())
    return Pushed(
        url=f"{_endpoint()}/{repository}",
        repository=repository,
        private=private,
        files=files,
        notices=_notices(run, folder),
    )


def _require_online() -> None:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        message = "HF_HUB_OFFLINE is set, so nothing can be sent to the hub"
        raise FinetuneError("model.offline", message, "unset HF_HUB_OFFLINE")


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _notices(run: RunFolder, folder: Path) -> list[str]:
    """What somebody else will miss who loads the weights from the hub."""
    if not run.is_adapter:
        return []
    base = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if base is None or hub_id(base) is not None:
        return []
    return [f"the adapter's base is {base}, which is not on the hub: `scao-finetune merge` makes a model of its own"]


def _hub_error(repository: str, error: Exception) -> FinetuneError | None:
    """What an exception of the hub's library means; None for one that has nothing to do with the hub."""
    names = {kind.__name__ for kind in type(error).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", None)
    if "LocalTokenNotFoundError" in names or status == 401:
        return FinetuneError("model.not-logged-in", "the hub does not know who you are", LOGIN)
    if status == 403:
        message = f"this account may not write to {repository}"
        return FinetuneError("model.forbidden", message, "use a name of your own, and a token with write access")
    if "HfHubHTTPError" in names:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return FinetuneError("model.hub", f"the hub refused {repository}: {first}", None)
    # By name: which library carries the hub's requests changes between its releases.
    if names & {"TransportError", "ConnectionError", "Timeout"}:
        return FinetuneError("model.offline", "the hub cannot be reached", "check the network, and try again")
    return None
