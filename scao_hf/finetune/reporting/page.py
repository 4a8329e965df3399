"""HTML pages that load nothing from anywhere: one skeleton, `page.html.jinja`, which a report's template extends."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import jinja2


def render(template: str, **values: Any) -> str:
    """The text of a page.

    Args:
        template: "folder/name" below `scao_hf.finetune`, such as "comparison/report.html.jinja".
        values: what the template reads; one that it reads and that is not here is an error.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def _source(template: str) -> str:
    folder, _, name = template.partition("/")
    return files(f"scao_hf.finetune.{folder}").joinpath(name).read_text(encoding="utf-8")
