"""Benchmarks by name: their files, and each on a look-alike of its official form."""

import json
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from visgraft.errors import ConfigError, DataError, MissingAssetError
from visgraft.evaluation.benchmarks import open_task, read_benchmark, shipped_benchmarks
from visgraft.metrics import METRICS


def quiet(text: str) -> None:
    """Say nothing."""


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 255, (24, 32, 3), dtype=np.uint8))


def as_dataset(rows: list[dict[str, Any]]) -> datasets.Dataset:
    encoded = []
    for row in rows:
        file = BytesIO()
        row["image"].save(file, format="PNG")
        encoded.append({**row, "image": {"bytes": file.getvalue(), "path": None}})
    return datasets.Dataset.from_list(encoded).cast_column("image", datasets.Image())


def saved(folder: Path, rows: list[dict[str, Any]], *, split: str) -> Path:
    """Save rows as `save_to_disk` does, images as the Hub's viewer shows them."""
    datasets.DatasetDict({split: as_dataset(rows)}).save_to_disk(folder)
    return folder


@pytest.mark.parametrize("name", sorted(shipped_benchmarks()))
def test_every_benchmark_says_what_it_is_and_on_what_it_was_tested(name: str) -> None:
    benchmark = read_benchmark(shipped_benchmarks()[name])
    assert benchmark.what
    assert benchmark.tested
    assert benchmark.columns_from
    scores = [score for metric in benchmark.metrics for score in METRICS[metric].gives]
    for each in benchmark.published:
        assert each.score in scores
        assert 0 <= each.value <= METRICS[benchmark.metrics[0]].highest
        assert "arXiv" in each.source or "card" in each.source


def test_vqav2_has_ten_answers_a_question_and_its_kinds(tmp_path: Path) -> None:
    ten = [{"answer": "yes" if n < 7 else "no", "answer_confidence": "yes", "answer_id": n + 1} for n in range(10)]
    rows = [
        {"question_id": 100 + n, "image_id": 42, "image": picture(0), "question": f"Is it {n}?", "answers": ten,
         "multiple_choice_answer": "yes", "question_type": "is it", "answer_type": "yes/no"}
        for n in range(2)
    ]  # fmt: skip
    task = open_task("vqav2-val", say=quiet, files=saved(tmp_path / "d", rows, split="validation"))
    first, second = task.questions.all
    assert first.references == ("yes",) * 7 + ("no",) * 3
    assert (first.kind, first.image) == ("yes/no", second.image)
    asked = task.questions.sample(first).dialogs[0][-1].prompt
    assert asked == "Is it 0?\nAnswer the question using a single word or phrase."


def test_textvqa_has_ten_texts_a_question(tmp_path: Path) -> None:
    rows = [{"image_id": "a", "question_id": 1, "question": "what does it say?", "question_tokens": ["what"],
             "image": picture(0), "answers": ["stop"] * 9 + ["go"], "ocr_tokens": ["stop"]}]  # fmt: skip
    [question] = open_task(
        "textvqa-val", say=quiet, files=saved(tmp_path / "d", rows, split="validation")
    ).questions.all
    assert question.references == ("stop",) * 9 + ("go",)


def test_pope_has_three_splits_as_kinds(tmp_path: Path) -> None:
    parts = {}
    for split in ("random", "popular", "adversarial"):
        parts[split] = as_dataset(
            [{"id": str(n), "question_id": str(n), "question": f"Is there a cat {n}?", "answer": ("yes", "no")[n % 2],
              "image": picture(0), "image_source": "COCO_val2014_1", "category": split} for n in range(2)]
        )  # fmt: skip
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "d")
    task = open_task("pope", say=quiet, files=tmp_path / "d")
    assert [question.kind for question in task.questions.all] == ["random"] * 2 + ["popular"] * 2 + ["adversarial"] * 2
    assert len({question.image for question in task.questions.all}) == 1  # of all three, so that intervals know it
    assert len({question.id for question in task.questions.all}) == 6


def test_mmstar_asks_for_a_letter(tmp_path: Path) -> None:
    rows = [{"index": 7, "question": "Which?\nOptions: A: a, B: b, C: c, D: d", "image": picture(0), "answer": "B",
             "category": "logical reasoning", "l2_category": "x", "meta_info": {"source": "y"}}]  # fmt: skip
    task = open_task("mmstar", say=quiet, files=saved(tmp_path / "d", rows, split="val"))
    [question] = task.questions.all
    assert (question.id, question.references, question.kind) == ("hf:7", ("B",), "logical reasoning")
    assert question.candidates == ("A", "B", "C", "D")
    assert task.facts["published"][0]["value"] == 0.303


def test_ja_vg_vqa_has_several_questions_a_row(tmp_path: Path) -> None:
    qas = [{"qa_id": n, "question": f"{n}番は何ですか", "answer": "猫"} for n in range(3)]
    folder = saved(tmp_path / "d", [{"image_id": 5, "image": picture(0), "qas": qas}], split="test")
    task = open_task("ja-vg-vqa-500", say=quiet, files=folder)
    assert [question.prompt for question in task.questions.all] == [f"{n}番は何ですか" for n in range(3)]
    assert task.language == "ja"


def gqa(folder: Path, entries: dict[str, Any]) -> Path:
    (folder / "images").mkdir(parents=True)
    for entry in entries.values():
        picture(0).save(folder / "images" / f"{entry['imageId']}.jpg")
    (folder / "testdev_balanced_questions.json").write_text(json.dumps(entries))
    return folder


ENTRY = {"question": "Is it overcast?", "answer": "no", "imageId": "n161313", "isBalanced": True, "semantic": [],
         "types": {"detailed": "weatherVerify", "semantic": "global", "structural": "verify"}}  # fmt: skip


def test_gqa_reads_the_official_file(tmp_path: Path) -> None:
    folder = gqa(tmp_path / "gqa", {"1": ENTRY, "2": {**ENTRY, "question": "Is it night?"}})
    task = open_task("gqa-testdev", say=quiet, files=folder)
    first, second = task.questions.all
    assert (first.prompt, first.references, first.kind, first.image) == (
        "Is it overcast?",
        ("no",),
        "verify",
        second.image,
    )
    from visgraft.data.images.opening import open_image

    assert open_image(task.questions.images(first)[0]).size == (32, 24)


def test_gqa_without_its_files_says_which(tmp_path: Path) -> None:
    with pytest.raises(MissingAssetError, match=r"testdev_balanced_questions\.json: missing; put questions1\.2\.zip's"):
        open_task("gqa-testdev", say=quiet, files=tmp_path)
    (tmp_path / "testdev_balanced_questions.json").write_text("[]")
    with pytest.raises(MissingAssetError, match=r"images: missing; unpack images\.zip there"):
        open_task("gqa-testdev", say=quiet, files=tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="got list, need an object with a question under each id"):
        open_task("gqa-testdev", say=quiet, files=tmp_path)
    with pytest.raises(ConfigError, match=r"gqa-testdev: needs testdev_balanced_questions\.json .*--files DIR"):
        open_task("gqa-testdev", say=quiet)


def test_karpathys_test_split_has_all_captions_of_an_image(tmp_path: Path) -> None:
    (tmp_path / "val2014").mkdir()
    picture(0).save(tmp_path / "val2014" / "COCO_val2014_000000000042.jpg")
    sentences = [{"raw": f"caption {n}", "tokens": ["caption"], "imgid": 0, "sentid": n} for n in range(5)]
    image = {"filepath": "val2014", "filename": "COCO_val2014_000000000042.jpg", "split": "test", "cocoid": 42,
             "imgid": 0, "sentids": [0, 1, 2, 3, 4], "sentences": sentences}  # fmt: skip
    (tmp_path / "dataset_coco.json").write_text(
        json.dumps({"images": [image, {**image, "split": "train"}], "dataset": "coco"})
    )
    [question] = open_task("coco-karpathy-test", say=quiet, files=tmp_path).questions.all
    assert question.references == tuple(f"caption {n}" for n in range(5))
    assert question.prompt == ""


def test_a_benchmark_of_ones_own_is_a_file_of_the_same_form(tmp_path: Path) -> None:
    from tests.training.tiny import save_data

    save_data(tmp_path / "photos", num_images=2)
    text = "what: mine\ndata: [{source: folder, path: photos}]\nmetrics: [exact_match]\nprompt: 'Q: {prompt} A:'\n"
    (tmp_path / "mine.yaml").write_text(text)
    task = open_task(str(tmp_path / "mine.yaml"), say=quiet)
    assert (task.name, task.metrics, len(task.questions.all)) == ("mine", ("exact_match",), 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: []\nmetrics: [cider]", r"mine\.yaml: what: missing"),
        ("what: a\ndata: []\nmetrics: [cidr]", r"mine\.yaml: metrics: got 'cidr', .*did you mean cider"),
        ("what: a\ndata: []\nmetrics: [cider]\npromt: x", r"mine\.yaml: promt: .*did you mean prompt"),
        ("what: a\ndata: []\nmetrics: [cider]\nprompt: say it", r"prompt: got 'say it', need \{prompt\} once"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        open_task(str(tmp_path / "mine.yaml"), say=quiet)


def test_a_name_that_is_none_has_a_near_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--data mmstr: neither a benchmark nor .* recipe; did you mean mmstar"):
        open_task("mmstr", say=quiet)
    with pytest.raises(ConfigError, match=r"--files .*none: does not exist; need the folder of the data"):
        open_task("mmstar", say=quiet, files=tmp_path / "none")
    (tmp_path / "recipe.yaml").write_text("data: {test: []}")
    with pytest.raises(ConfigError, match="goes with a benchmark; a recipe says itself where its data lie"):
        open_task(str(tmp_path / "recipe.yaml"), say=quiet, files=tmp_path)


COMMIT = "0123456789abcdef" * 2 + "01234567"


def served(monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Serve a data set as the Hub does; give what is asked of it."""
    asked: list[dict[str, Any]] = []

    def load_dataset(**wanted: Any) -> datasets.Dataset:
        asked.append(wanted)
        return as_dataset(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


TEXTVQA = [{"image_id": "a", "question_id": 1, "question": "what?", "image": picture(0), "answers": ["stop"] * 10}]


def test_a_branch_of_the_hub_is_resolved_to_the_commit_that_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = served(monkeypatch, TEXTVQA)
    seen: list[tuple[str, str]] = []

    def dataset_info(_: object, path: str, *, revision: str, timeout: float) -> SimpleNamespace:
        seen.append((path, revision))
        return SimpleNamespace(sha=COMMIT)

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)
    task = open_task("textvqa-val", say=quiet)
    assert seen == [("lmms-lab/textvqa", "main")]
    assert {each["revision"] for each in asked} == {COMMIT}
    assert task.facts["loaded"] == [{"path": "lmms-lab/textvqa", "revision": "main", "commit": COMMIT}]


def test_where_the_hub_does_not_answer_that_is_said_and_the_commit_is_not_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    served(monkeypatch, TEXTVQA)
    said: list[str] = []

    def dataset_info(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)
    task = open_task("textvqa-val", say=said.append)
    assert task.facts["loaded"][0]["commit"] is None
    assert said == [
        "lmms-lab/textvqa: the Hub does not say which commit main is (no network): what is read may be an earlier "
        "download, so name a commit (revision) before you publish a figure"
    ]
    (tmp_path / "own.yaml").write_text(
        f"data: {{test: [{{source: hf, path: some/data, revision: {COMMIT}, split: test}}]}}"
    )
    task = open_task(str(tmp_path / "own.yaml"), say=said.append)  # a commit needs no one to resolve it
    assert task.facts["loaded"] == [{"path": "some/data", "revision": COMMIT, "commit": COMMIT}]
    assert len(said) == 1


def test_data_on_disk_have_no_commit(tmp_path: Path) -> None:
    task = open_task("textvqa-val", say=quiet, files=saved(tmp_path / "d", TEXTVQA, split="validation"))
    assert "loaded" not in task.facts
