"""The report: one offline page with curves, differences, results and answers; and a picture of the curves.

In: a comparison, and what its models answered. Out: an HTML file, a PNG file.

    comparison = collect(["runs/modules"])
    write_report(comparison, gather(comparison.variants), Path("report.html"))
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from visgraft.compare.answers import Given, SamplePrompt, text_quality
from visgraft.compare.charts import AXIS_WORDS, Panel, Styles, live_chart, panels, rows_of, still_chart
from visgraft.compare.controls import SCRIPT, STYLE
from visgraft.compare.curves import AXES
from visgraft.compare.differences import ABSENT, as_text, differences, what_trains
from visgraft.compare.results_table import Kind, results, written
from visgraft.compare.shown import Shown
from visgraft.compare.variants import Comparison, Variant
from visgraft.errors import ConfigError
from visgraft.reporting.page import Page, escape, image_tag, spec_of

TEXT_QUALITY_COLUMNS: tuple[tuple[str, str, Kind], ...] = (
    ("mean_words", "words an answer", "speed"),
    ("repeated_4grams", "repeated 4-grams", "share"),
    ("distinct_words", "distinct words", "share"),
    ("never_stopped", "never stopped", "share"),
    ("num_answers", "answers", "count"),
)


def write_report(
    comparison: Comparison,
    questions: Sequence[SamplePrompt],
    path: Path,
    *,
    own: Sequence[SamplePrompt] = (),
    shown: Sequence[str] | None = None,
) -> Path:
    """Write the page and give its path.

    Args:
        comparison: the variants.
        questions: the questions that all runs answered on the way.
        path: the file to write.
        own: questions about images of one's own, put to the finished models.
        shown: names of the variants that are shown at first; None = all.

    Raises:
        ConfigError: the path is a folder.
    """
    variants = comparison.variants
    names = [variant.name for variant in variants]
    shown = list(names if shown is None else shown)
    styles = Styles(tuple(names))
    page = Page(_title(names), subtitle=_subtitle(variants), style=STYLE, script=SCRIPT)
    found = panels(variants)
    page.add("", _controls(variants, styles, shown))
    page.add("How they learned", _curves(page, found, styles, shown))
    page.add("What differs", _differences(variants, styles))
    page.add("Results", _results(variants, styles))
    if questions or own:
        page.add("How they answer", _text_quality([*questions, *own], variants, styles))
    if own:
        page.add("Your own images", _questions(own, variants, styles))
    if questions:
        page.add("Answers to the same questions", _question_words(), _questions(questions, variants, styles))
    if comparison.notes:
        page.add("Left out", "".join(f"<p>{escape(note)}</p>" for note in comparison.notes))
    return page.write(path)


def write_picture(comparison: Comparison, path: Path, *, shown: Sequence[str]) -> Path:
    """Write the curves as a PNG file.

    Raises:
        ConfigError: the path is a folder.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: give the name of a .png file")
    import vl_convert  # slow to load, and only pictures need it

    styles = Styles(tuple(variant.name for variant in comparison.variants))
    chart, rows = still_chart(panels(comparison.variants), styles, shown=shown)
    spec = spec_of(chart, data=rows)
    spec["config"]["background"] = "white"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(vl_convert.vegalite_to_png(json.dumps(spec), scale=2))
    return path


def _title(names: Sequence[str]) -> str:
    return " · ".join(names) if len(names) <= 3 else f"{len(names)} variants side by side"


def _subtitle(variants: Sequence[Variant]) -> str:
    counts = {len(variant.runs) for variant in variants}
    seeds = f", {counts.pop()} seeds each" if len(counts) == 1 and counts != {1} else ""
    return f"{len(variants)} variants, {sum(len(variant.runs) for variant in variants)} runs{seeds}"


def _line(styles: Styles, name: str) -> str:
    dash = ",".join(map(str, styles.dash(name)))
    return (
        '<svg width="26" height="8" aria-hidden="true"><line x1="1" y1="4" x2="25" y2="4" stroke-width="3" '
        f'stroke="{styles.color(name)}" stroke-dasharray="{dash}"/></svg>'
    )


def _controls(variants: Sequence[Variant], styles: Styles, shown: Sequence[str]) -> str:
    """Draw the legend, whose entries hide and show, and the switches of all charts."""
    chips = []
    is_uneven = len({len(variant.runs) for variant in variants}) > 1
    for variant in variants:
        seeds = f" · {len(variant.runs)} seeds" if is_uneven and len(variant.runs) > 1 else ""
        status = "" if variant.is_finished else f" · {variant.runs[0].status}"
        text = (
            f"<b>{escape(variant.name)}</b><small>{escape(what_trains(variant.runs[0].recipe))}{seeds}{status}</small>"
        )
        chips.append(
            f'<button class="chip" type="button" data-name="{escape(variant.name)}" '
            f'aria-pressed="{str(variant.name in shown).lower()}">{_line(styles, variant.name)}'
            f"<span>{text}</span></button>"
        )
    radios = "".join(
        f'<label><input type="radio" name="axis" value="{axis}" data-words="{AXIS_WORDS[axis]}"'
        f"{' checked' if axis == AXES[0] else ''}>{axis}</label>"
        for axis in AXES
    )
    return (
        f'<div class="chips">{"".join(chips)}</div><div class="bar"><fieldset><span class="soft">over</span>{radios}'
        '</fieldset><label><input type="checkbox" id="raw" checked>raw values too</label>'
        '<button type="button" id="show-all">show all</button><span class="soft">Click a variant to hide or show it '
        "everywhere on the page, twice to see it alone; the axes follow.</span></div>"
    )


def _curves(page: Page, found: Sequence[Panel], styles: Styles, shown: Sequence[str]) -> str:
    numbers = {name: number for number, name in enumerate(styles.names)}
    figures = []
    for panel in found:
        drawn = live_chart(panel, styles, shown=shown)
        chart = page.chart(drawn, alt=f"{panel.title}, {panel.data}", data=rows_of(panel))
        notes = "".join(f'<p class="soft">✗ {escape(note)}</p>' for note in panel.notes if panel.split == "training")
        inside = json.dumps([numbers[variant.name] for variant in panel.variants])
        along = (
            '<p class="soft">measured once: a dot a run, a tick at the mean</p>'
            if panel.is_single
            else f'<p class="along">{AXIS_WORDS[AXES[0]]}</p>'
        )
        figures.append(
            f'<figure data-any="{inside}"><figcaption><b>{escape(panel.title)}</b><span class="soft">'
            f"{escape(panel.data)}</span></figcaption>{chart}{along}{notes}</figure>"
        )
    words = (
        "Thick: the mean over the seeds of a variant, training loss smoothed; shaded: from the lowest to the highest "
        "seed. Thin: each run as measured. A cross marks a curve that ends early. The scale of the loss is logarithmic."
    )
    if any(panel.unit == "character" for panel in found):
        words += (
            " These runs have unlike tokenizers, and a token of one is not a token of the other: losses are per "
            "character of answer, which alone compares."
        )
    if len({panel.data for panel in found if panel.split == "training"}) > 1:
        words += " Curves on unlike data stand in panels of their own."
    return f'<div class="panels">{"".join(figures)}</div><p class="soft">{words}</p>'


def _table(header: Sequence[str], variants: Sequence[Variant], styles: Styles, cells: Sequence[Sequence[str]]) -> str:
    """Draw a table with a row for each variant; cells are HTML, each a whole td."""
    head = "".join(f"<th class=number>{name}</th>" for name in header)
    rows = "".join(
        f'<tr data-variant="{number}"><th scope="row"><span class="who">{_line(styles, variant.name)}'
        f"<span>{escape(variant.name)}</span></span></th>{''.join(row)}</tr>"
        for number, (variant, row) in enumerate(zip(variants, cells, strict=True))
    )
    return (
        f'<div class="scroll"><table class="wide"><thead><tr><th>variant</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _differences(variants: Sequence[Variant], styles: Styles) -> str:
    found = differences(variants)
    if not found:
        return "<p>The recipes do not differ, but for seeds.</p>"
    rows = [
        [f"<td class=number>{escape(as_text(values[variant.name]))}</td>" for values in found.values()]
        for variant in variants
    ]
    header = [escape(key).replace(".", ".<wbr>").replace("_", "_<wbr>") for key in found]
    words = '<p class="soft">Only the settings that are not the same in all of them.</p>'
    return words + _table(header, variants, styles, rows)


def _results(variants: Sequence[Variant], styles: Styles) -> str:
    columns = [Shown(column) for column in results(variants)]
    rows = [[shown.cell(variant.name) for shown in columns] for variant in variants]
    notes = "".join(f'<p class="soft">{escape(shown.column.note)}.</p>' for shown in columns if shown.column.note)
    words = (
        "★ the best. Where a variant has several seeds: their mean ± half of the way from the lowest to the highest, "
        "which stand under the pointer; only finished runs count where there are any. Validation loss and scores are "
        "those of the model that was kept; training loss is that of the last twentieth of the steps. k, M, B: "
        "thousand, million, billion parameters."
    )
    table = _table([shown.heading() for shown in columns], variants, styles, rows)
    return f'{table}{notes}<p class="soft">{words}</p>'


def _text_quality(questions: Sequence[SamplePrompt], variants: Sequence[Variant], styles: Styles) -> str:
    found = text_quality(questions, variants)
    rows = []
    for variant in variants:
        values = [getattr(found.get(variant.name), key, None) for key, _, _ in TEXT_QUALITY_COLUMNS]
        texts = [
            ABSENT if value is None else written(value, kind)
            for value, (_, _, kind) in zip(values, TEXT_QUALITY_COLUMNS, strict=True)
        ]
        rows.append([f"<td class=number>{text}</td>" for text in texts])
    words = (
        "Over the last answers of all seeds to the questions below. Repeated 4-grams: the share of the runs of four "
        "words that had come before in the same answer. Distinct words: different words by all words. Never stopped: "
        "cut at the longest length that was allowed."
    )
    table = _table([title for _, title, _ in TEXT_QUALITY_COLUMNS], variants, styles, rows)
    return f'{table}<p class="soft">{words}</p>'


def _question_words() -> str:
    return (
        '<p class="soft">✓ equals the truth as a whole string. “Over training” shows each answer where it changed.</p>'
    )


def _questions(questions: Sequence[SamplePrompt], variants: Sequence[Variant], styles: Styles) -> str:
    return f'<div class="questions">{"".join(_question(question, variants, styles) for question in questions)}</div>'


def _question(question: SamplePrompt, variants: Sequence[Variant], styles: Styles) -> str:
    if question.image is None:
        picture = f'<div class="none">{escape(question.missing or "no image")}</div>'
    else:
        picture = image_tag(question.image, alt=question.prompt or "image")
    prompt = escape(question.prompt) if question.prompt else '<span class="soft">(a caption)</span>'
    truth = f'<p class="soft">truth: {escape(" / ".join(question.expected))}</p>' if question.expected else ""
    answers, histories = [], []
    for number, variant in enumerate(variants):
        who = f'<dt class="who">{_line(styles, variant.name)}<span>{escape(variant.name)}</span></dt>'
        answers.append(f'<div data-variant="{number}">{who}<dd>{_final(question.final(variant.name))}</dd></div>')
        history = question.history(variant.name)
        if history:
            told = "".join(
                f'<p><span class="soft">step {given.step}:</span> {_marked(given, given.text)}</p>' for given in history
            )
            histories.append(f'<div data-variant="{number}">{who}<dd>{told}</dd></div>')
    has_history = any(len(question.history(variant.name)) > 1 for variant in variants)
    over = f"<details><summary>over training</summary><dl>{''.join(histories)}</dl></details>" if has_history else ""
    return (
        f'<article class="question"><header>{picture}<div><p><b>{prompt}</b></p>{truth}</div></header>'
        f"<dl>{''.join(answers)}</dl>{over}</article>"
    )


def _final(given: Sequence[Given]) -> str:
    """Show the answers of a variant's seeds, equal ones once."""
    if not given:
        return f'<p class="soft">{ABSENT} not asked</p>'
    texts: dict[str, list[Given]] = {}
    for answer in given:
        texts.setdefault(answer.text, []).append(answer)
    lines = []
    for text, same in texts.items():
        times = f' <span class="soft">seed {", ".join(str(a.seed) for a in same)}</span>' if len(texts) > 1 else ""
        lines.append(f"<p>{_marked(same[0], text)}{times}</p>")
    return "".join(lines)


def _marked(given: Given, text: str) -> str:
    mark = '<span class="good">✓</span> ' if given.is_right else ""
    cut = ' <span class="bad" title="did not stop by itself">… never stopped</span>' if given.stopped is False else ""
    return f"{mark}{escape(text) if text else '<span class=soft>(nothing)</span>'}{cut}"
