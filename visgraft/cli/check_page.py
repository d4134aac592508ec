"""What `data check` found, on one screen: a table of the sources, then what is wrong, odd or good to know, worst first.

In: reports and findings. Out: text on standard output, made for 80 columns and more.
Usage: `print_check(reports, findings, num_images=1200, seconds=9.5)`
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.table import Table
from rich.text import Text

from visgraft.cli.terminal import print_line, print_rich
from visgraft.data.findings import LEVELS, Finding, Level, count_by_level
from visgraft.data.source_report import SourceReport
from visgraft.wording import counted

MOST_FINDINGS = 16  # on the page, errors apart; JSON has all
_MOST_REASONS = 3  # of bad samples, of one source
_STYLES: dict[Level, str] = {"error": "bold red", "warning": "yellow", "note": "dim"}


def print_check(
    reports: Sequence[SourceReport], findings: Sequence[Finding], *, num_images: int | None, seconds: float
) -> None:
    """Print it all; num_images were opened in so many seconds, None: they were left out."""
    for part, inside in groupby(reports, key=lambda report: report.part):
        print_rich(_table(part, list(inside)))
        print_line()
    shown, num_left = _choose(findings)
    if shown:
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for finding in shown:
            grid.add_row(Text(finding.level, style=_STYLES[finding.level]), _text(finding))
        print_rich(grid)
        if num_left:
            print_line(f"and {num_left:,} more, which --json lists")
        print_line()
    for part, each in groupby(reports, key=lambda report: report.part):
        of_part = list(each)
        bad = sum(report.bad for report in of_part)
        verdict = "within" if bad <= of_part[0].budget else "OVER"
        print_line(f"{part}: {bad:,} bad, {of_part[0].budget:,} allowed: {verdict} the budget")
    counts = count_by_level(findings)
    print_line(", ".join(f"{counts[level]:,} {level}{'' if counts[level] == 1 else 's'}" for level in LEVELS))
    if num_images is None:
        print_line("no image was opened: what only pixels tell (broken, blank, tiny, copied images) is not known")
    elif num_images:
        print_line(
            f"opened {counted(num_images, 'image')} in {_duration(seconds)}; --no-images looks at texts and paths alone"
        )


def _table(part: str, reports: Sequence[SourceReport]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(part, overflow="fold", min_width=8)
    for name in ("samples", "images", "texts", "/image", "tokens 50%", "95%", "max", "cut", "bad"):
        table.add_column(name, justify="right", no_wrap=True)
    for report in reports:
        counts = [report.samples, report.images, report.texts]
        lengths = [report.percentile(share) for share in (50, 95, 100)]
        cells = [f"{count:,}" for count in counts] + [f"{report.texts_per_image:.2f}"]
        cells += [f"{count:,}" for count in [*lengths, report.truncated, report.bad]]
        table.add_row(report.source, *cells)
    return table


def _choose(findings: Sequence[Finding]) -> tuple[list[Finding], int]:
    """Return what fits on a page, and how many are left out."""
    shown: list[Finding] = []
    reasons: dict[str, int] = {}
    for finding in findings:
        if finding.name == "bad_samples":
            reasons[finding.where] = reasons.get(finding.where, 0) + 1
            if reasons[finding.where] > _MOST_REASONS:
                continue
        if finding.level == "error" or len(shown) < MOST_FINDINGS:
            shown.append(finding)
    return shown, len(findings) - len(shown)


def _text(finding: Finding) -> Text:
    text = Text()
    text.append(f"{finding.where}: ", style="bold")
    text.append(finding.text)
    if finding.advice:
        text.append(f"\n{finding.advice}", style="italic")
    return text


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
