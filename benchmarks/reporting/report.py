"""What is published of the studies: CSV, JSON, Markdown and figures beside their runs, and the README's block."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.reporting.figures import drawn
from benchmarks.reporting.headlines import overview_page, readme_block
from benchmarks.reporting.pages import summary_page
from benchmarks.reporting.recorded import RUNS, Recorded, recorded
from benchmarks.reporting.summary import Summary, summarise
from benchmarks.reporting.tables import Row, curve_rows, run_rows
from benchmarks.suite import STUDIES
from scao_hf.finetune.comparison.figures import save

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
DOTS_PER_INCH = 110


def write_reports(names: Sequence[str], out: Path, readme: Path | None = None) -> Iterator[Path]:
    """Write everything about some studies anew, and the overview of all, yielding the folder or file when it is done.

    Args:
        names: of studies; none takes all that have runs.
        out: the folder with a folder for each study.
        readme: a file in which the text between the two markers is replaced.

    Raises:
        ValueError: a study without runs, a README without the markers.
        ProtocolError: runs that were made under different conditions.
    """
    present = studies_in(out)
    if without := [name for name in names if name not in present]:
        raise ValueError(f"{out} has no runs of {', '.join(without)}, but of: {', '.join(present) or 'no study'}")
    summaries = []
    for name in present:
        found = recorded(name, STUDIES[name], out / name)
        summaries.append(summarise(found))
        if not names or name in names:
            write_study(found, summaries[-1], out / name)
            yield out / name
    (out / "README.md").write_text(overview_page(summaries, others_in(out)), encoding="utf-8")
    yield out / "README.md"
    if readme is not None:
        block = readme_block(summaries, link_between(readme, out))
        readme.write_text(with_block(readme.read_text(encoding="utf-8"), block), encoding="utf-8")
        yield readme


def studies_in(out: Path) -> list[str]:
    """Studies that have runs in a folder, in their usual order."""
    return [name for name in STUDIES if (out / name / RUNS).is_file()]


def others_in(out: Path) -> list[str]:
    """Folders with a summary that is no study's."""
    return sorted(path.parent.name for path in out.glob("*/summary.md") if path.parent.name not in STUDIES)


def summaries_in(out: Path) -> list[Summary]:
    return [summarise(recorded(name, STUDIES[name], out / name)) for name in studies_in(out)]


def write_study(found: Recorded, summary: Summary, folder: Path) -> None:
    write_csv(folder / "runs.csv", run_rows(found.found))
    write_csv(folder / "curves.csv", curve_rows(found.found))
    (folder / "summary.json").write_text(json.dumps(summary.to_json(), indent=1) + "\n", encoding="utf-8")
    names = []
    for name, figure in drawn(found, summary):
        save(figure, folder / name, DOTS_PER_INCH)
        names.append(name)
    (folder / "summary.md").write_text(summary_page(summary, names), encoding="utf-8")


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """With a column for every name that some row has, numbers to six digits."""
    columns = dict.fromkeys(name for row in rows for name in row)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def link_between(readme: Path, out: Path) -> str:
    """Path from a README to the results."""
    return Path(os.path.relpath(out, readme.parent)).as_posix()


def with_block(text: str, block: str) -> str:
    """A README with what stands between its markers replaced.

    Raises:
        ValueError: a marker is missing.
    """
    before, _, rest = _parts(text)
    return f"{before}{BEGIN}\n{block}\n{END}{rest}" if block else f"{before}{BEGIN}\n{END}{rest}"


def block_of(text: str) -> str:
    """What stands between the markers.

    Raises:
        ValueError: a marker is missing.
    """
    return _parts(text)[1].strip()


def _parts(text: str) -> tuple[str, str, str]:
    before, begin, rest = text.partition(BEGIN)
    block, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the README needs the markers {BEGIN} and {END}, in this order")
    return before, block, after
