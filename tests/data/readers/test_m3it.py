import base64
import json
import pickle
import runpy
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from visgraft.config import SourceSettings
from visgraft.data.images.opening import open_image
from visgraft.data.readers import m3it, m3it_tasks
from visgraft.data.readers.m3it_tasks import NAMED_SETS, TASKS, tasks_of
from visgraft.data.readers.tables import write_parquet
from visgraft.data.sample import Turn
from visgraft.data.sources import open_sources
from visgraft.errors import BadSampleError, ConfigError, DataError, MissingAssetError


def image(value):
    buffer = BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def row(value, outputs, *, inputs="What is it?", images=1):
    return {
        "instruction": "Answer the question.",
        "inputs": inputs,
        "image_base64_str": [image(value)] * images,
        "outputs": outputs,
        "meta": {"img_id": "7"},
    }


def write(folder, *rows, split="train"):
    folder.mkdir(exist_ok=True, parents=True)
    (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


def opened(path, **options):
    split = options.pop("split", "train")
    entry = SourceSettings("m3it", path=None if path is None else str(path), split=split, options=options)
    return pickle.loads(pickle.dumps(open_sources([entry])))


def test_rows_of_several_tasks_are_gathered_by_what_their_images_hold(tmp_path):
    write(tmp_path / "vqa-v2", row(0, "A cat."), row(1, "A dog."), row(0, "Two."), row(2, "x", images=2))
    write_parquet(tmp_path / "coco" / "train.parquet", [row(0, "a cat", inputs="")])
    sources = opened(tmp_path, tasks=["vqa-v2", "coco"])
    assert [[d[0].answer for d in sources[i].dialogs] for i in range(len(sources))] == [
        ["A cat.", "Two.", "a cat"],
        ["A dog."],
        ["x"],
    ]
    assert sources[0].dialogs[0] == (Turn("What is it?", "A cat.", instruction="Answer the question."),)
    assert sources[0].dialogs[2][0].prompt == "" and len(sources[2].images) == 2
    assert open_image(sources[1].images[0]).getpixel((0, 0)) == (1, 0, 0)


def test_broken_rows_are_bad_samples(tmp_path):
    broken = [{**row(0, "x"), "image_base64_str": ["@@"]}, {**row(0, "x"), "outputs": ""}, {"instruction": "I"}]
    write(tmp_path / "nlvr", row(0, "True"), *broken, {**row(0, "x"), "image_base64_str": [None]})
    sources = opened(tmp_path)
    assert len(sources) == 5 and sources.num_dialogs.tolist() == [1, 1, 0, 0, 0]
    reasons = []
    for index in range(1, 5):
        with pytest.raises(BadSampleError) as caught:
            open_image(sources[index].images[0])
        reasons.append(str(caught.value))
    assert reasons == [
        "image is not valid base64",
        "answer is empty",
        "row lacks outputs (columns: instruction)",
        "image is empty",
    ]


def test_what_was_found_stands_beside_what_the_card_counts(tmp_path):
    write(tmp_path / "viquae", row(0, "x"))
    write(tmp_path / "textcap", row(0, "x"), split="val")
    write(tmp_path / "ivqa", row(0, "x"), split="test")
    notes = m3it.read(tmp_path, split="train").notes
    assert notes == [
        "ivqa: has no train split",
        "textcap: has no train split",
        "viquae: 1 rows of train found, the card counts 1,190",
    ]
    assert (
        m3it.read(tmp_path, split="validation").notes[1]
        == "textcap: 1 rows of validation found, the card counts 13,965"
    )
    assert (
        m3it.read(tmp_path, split="test").notes[1] == "textcap: has no test split, which the card does not count either"
    )


def test_the_table_sums_to_what_the_card_says_of_each_category():
    card = {
        "captioning": (679_087, 41_462, 27_499),
        "classification": (238_303, 100_069, 21_206),
        "vqa": (177_633, 46_314, 10_828),
        "knowledge": (39_981, 11_682, 5_477),
        "reasoning": (99_372, 11_500, 10_000),
        "generation": (145_000, 11_315, 17_350),
    }
    assert len(TASKS) == 40
    for category, sums in card.items():
        tasks = [task for task in TASKS.values() if task.category == category]
        assert tuple(sum(task[column] or 0 for task in tasks) for column in (1, 2, 3)) == sums
    assert len(NAMED_SETS["all-english-images"]) == 29 and len(NAMED_SETS["git-llm"]) == 25
    git_llm = sum(TASKS[name].train for name in NAMED_SETS["git-llm"])
    assert (git_llm, git_llm + TASKS["nlvr"].train) == (1_332_278, 1_361_650)


def test_tasks_are_named_one_by_one_or_by_set():
    assert tasks_of(["okvqa", "git-llm"])[:2] == ["okvqa", "coco"] and len(tasks_of(["okvqa", "git-llm"])) == 25
    assert tasks_of("shapes-rephrased") == ["shapes-rephrased"]
    with pytest.raises(ConfigError, match=r"m3it: tasks: got 'git-lm'; did you mean git-llm\?"):
        tasks_of("git-lm")
    with pytest.raises(ConfigError, match="sets are all-english-images, git-llm, article; tasks coco"):
        tasks_of("zzz")


def test_missing_tasks_and_splits_are_refused(tmp_path):
    with pytest.raises(MissingAssetError, match="holds no folder per task"):
        opened(tmp_path)
    write(tmp_path / "viquae", row(0, "x"))
    with pytest.raises(MissingAssetError, match="has no folder okvqa; export that task too"):
        opened(tmp_path, tasks="okvqa")
    with pytest.raises(DataError, match="no rows of split 'test': viquae: has no test split"):
        opened(tmp_path, split="test")


def test_the_hubs_parquet_is_read_where_it_is_whole(tmp_path, monkeypatch):
    files = ["viquae/train/0000.parquet", "coco/partial-train/0000.parquet", "coco/validation/0000.parquet"]
    asked = []

    def download(repository, file, **settings):
        asked.append((repository, file, settings["revision"]))
        path = tmp_path / file.replace("/", "-")
        write_parquet(path, [row(0, file)])
        return str(path)

    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda *a, **k: files)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    sources = opened(None, tasks="viquae")
    assert sources[0].dialogs[0][0].answer == files[0]
    assert asked == [("MMInstruction/M3IT", files[0], "refs/convert/parquet")]
    with pytest.raises(DataError, match="of coco train the Hub's parquet conversion holds only the first part"):
        opened(None, tasks="coco")
    assert len(opened(None, tasks="coco", allow_partial=True)) == 1
    assert len(opened(None, tasks=["coco", "viquae"], split="val")) == 1

    def unreachable(*args, **settings):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.list_repo_files", unreachable)
    with pytest.raises(MissingAssetError, match=r"cannot be fetched from the Hub \(no network\); set path to a folder"):
        opened(None, tasks="coco")


def test_every_set_names_tasks_of_the_table():
    assert all(set(names) <= set(TASKS) for names in m3it_tasks.NAMED_SETS.values())


def test_the_articles_own_set_is_counted_as_its_author_counts_it(tmp_path):
    assert set(NAMED_SETS["article"]) - set(NAMED_SETS["git-llm"]) == {"nlvr"}
    for task in NAMED_SETS["article"]:
        write(tmp_path / task, row(0, "x"), row(1, "x"))
    notes = m3it.read(tmp_path, split="train", tasks="article").notes
    assert notes[-1] == "article: 52 rows of train found in its 26 tasks, the article and the card count 1,361,650"
    assert m3it.read(tmp_path, split="train", tasks="git-llm").notes[-1] == (
        "git-llm: 50 rows of train found in its 25 tasks, the card counts 1,332,278"
    )
    assert m3it.read(tmp_path, split="train[:1]", tasks="article").notes[-1] == "nlvr: 1 rows of train[:1] found"


def mirror(folder, **columns):
    picture = {"bytes": base64.b64decode(image(7)), "path": None}
    content = {"instruction": "I", "inputs": "Q", "outputs": "A", "image": picture, **columns}
    write_parquet(folder, [{key: value for key, value in content.items() if value is not None}])


def test_a_parquet_mirror_whose_columns_fit_is_read(tmp_path):
    mirror(tmp_path / "data" / "train-00000-of-00001-7a97.parquet")
    sources = opened(tmp_path)
    assert sources[0].dialogs == ((Turn("Q", "A", instruction="I"),),)
    assert open_image(sources[0].images[0]).getpixel((0, 0)) == (7, 0, 0)
    assert sources.opened[0].notes == [f"{tmp_path}: 1 rows of train, of tasks that the rows do not name"]
    with pytest.raises(ConfigError, match="tasks: got 'article', but the rows of a mirror do not say of which task"):
        opened(tmp_path, tasks="article")


def test_a_mirror_with_other_columns_is_refused_with_what_differs(tmp_path):
    mirror(tmp_path / "train-0.parquet", image=None, inputs=None, question="Q")
    with pytest.raises(
        DataError,
        match=r"lacks the columns inputs, image_base64_str or .* has instruction, outputs, question;",
    ):
        opened(tmp_path)


def test_a_mirror_is_fetched_from_the_hub_once_its_columns_are_seen_to_fit(tmp_path, monkeypatch):
    asked = []

    def download(repository, file, **settings):
        asked.append((repository, file, settings["revision"]))
        mirror(tmp_path / file.replace("/", "-"), **({"outputs": None} if repository == "other/M3IT" else {}))
        return str(tmp_path / file.replace("/", "-"))

    files = ["README.md", "data/train-0.parquet", "data/train-1.parquet"]
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda *a, **k: files)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert len(opened(None, repository="HuggingFaceM4/M3IT", revision="2173ea7")[0].dialogs) == 2
    assert asked == [("HuggingFaceM4/M3IT", file, "2173ea7") for file in files[1:]]
    with pytest.raises(DataError, match="lacks the columns outputs"):
        opened(None, repository="other/M3IT")
    assert len(asked) == 3, "the second file of a mirror that does not fit is left where it is"
    with pytest.raises(MissingAssetError, match=r"has no data/test-\*.parquet; it holds README.md, data/train-0"):
        opened(None, repository="HuggingFaceM4/M3IT", split="test")
    with pytest.raises(ConfigError, match="revision its commit; leave out path, or both"):
        write(tmp_path / "viquae", row(0, "x"))
        opened(tmp_path, repository="HuggingFaceM4/M3IT")


def test_an_export_stays_with_the_revision_that_it_began_with(tmp_path, monkeypatch):
    export = runpy.run_path(str(Path(m3it.__file__).parents[3] / "docs" / "export_m3it.py"))
    commits = {None: "a" * 40, "v2": "b" * 40}
    info = lambda self, repository, revision: SimpleNamespace(sha=commits.get(revision, revision))  # noqa: E731
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", info)
    assert export["pin"](tmp_path / "x", repository="MMInstruction/M3IT", revision=None) == "a" * 40
    commits[None] = "c" * 40  # the dataset moves on
    assert export["pin"](tmp_path / "x", repository="MMInstruction/M3IT", revision=None) == "a" * 40
    assert export["pin"](tmp_path / "y", repository="MMInstruction/M3IT", revision="v2") == "b" * 40
    with pytest.raises(SystemExit, match=r"revision.txt: is of a+, not of b+; export another revision to another"):
        export["pin"](tmp_path / "x", repository="MMInstruction/M3IT", revision="v2")
