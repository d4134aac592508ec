"""The runs that bench/results keeps were made by older versions; they still compare, and to the same figures."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.compare.made_runs import save_experiment
from visgraft.cli import main
from visgraft.compare.answers import gather
from visgraft.compare.collect import collect

pytestmark = pytest.mark.slow

KEPT = Path(__file__).parents[2] / "bench" / "results" / "experiments"
EXPECTED = Path(__file__).parent / "kept_runs"  # what `visgraft compare --markdown` wrote when the runs were kept


def test_every_kept_experiment_has_its_expected_tables() -> None:
    assert {path.stem for path in EXPECTED.iterdir()} == {path.name for path in KEPT.iterdir()}


@pytest.mark.parametrize("name", sorted(path.stem for path in EXPECTED.iterdir()))
def test_compare_says_of_the_kept_runs_what_it_said_when_they_were_new(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISGRAFT_CACHE", str(tmp_path))  # their pictures are not looked for: no download
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    tables = tmp_path / "tables.md"
    assert main(["compare", str(KEPT / name), "-o", str(tmp_path / "page.html"), "--markdown", str(tables)]) == 0
    assert tables.read_text(encoding="utf-8") == (EXPECTED / f"{name}.md").read_text(encoding="utf-8")


def test_pictures_of_an_old_run_are_found_where_its_samples_say(tmp_path: Path) -> None:
    folder = save_experiment(tmp_path / "modules", num_variants=1, seeds=1, num_steps=20)
    run = folder / "projection-seed0"
    (run / "probes").mkdir()  # as the folder was called before
    Image.new("RGB", (7, 5)).save(run / "probes" / "0.jpg")
    lines = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    old = [{**line, "image": "probes/0.jpg" if line["id"].endswith("0.png") else None} for line in lines]
    (run / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in old))
    first, *_ = gather(collect([folder]).variants)
    assert first.image is not None and first.image.size == (7, 5)
