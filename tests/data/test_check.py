import json

import pytest

from tests.data.made_tokenizers import TOKENIZERS
from tests.data.test_windows import tars, write_tars
from visgraft.config import DataSettings, SourceSettings
from visgraft.data.batch import EncodedSample
from visgraft.data.check import check_sources, check_streams, is_within_budget
from visgraft.data.prompt import PromptTemplate, encode_dialog
from visgraft.data.sources import open_sources
from visgraft.data.windows import open_streams
from visgraft.errors import BadSampleError

NO_FORMAT = "row has no text, question and answer, dialogs or messages (columns: image)"


class TextsOnly:
    """A processor that opens no image."""

    def __init__(self):
        self.tokenizer = TOKENIZERS["gpt2"]()
        self.prompt_template = PromptTemplate("plain")

    def encode_each(self, sample):
        return tuple(map(self.encode_one, sample.dialogs))

    def encode_one(self, dialog):
        try:
            return encode_dialog(self.tokenizer, self.prompt_template, dialog, max_text_tokens=30)
        except BadSampleError as error:
            return str(error)

    def encode_images(self, sample, dialogs, *, max_pixels, exact_pixels):
        return EncodedSample(dialogs, num_image_tokens=(1,) * len(sample.images))


def entry(tmp_path, name, rows, **settings):
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceSettings("parquet", path=str(tmp_path / name), **settings)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_source_is_counted_by_itself(tmp_path, num_workers):
    one = [{"image": str(i // 3), "text": "a" * (i // 2 + 1)} for i in range(30)]
    two = [
        {"image": "x", "text": "cat " * 40},
        {"image": "y", "text": ""},
        {"question": "seen?", "answer": "no image"},
        {"image": "z"},
    ]
    entries = [entry(tmp_path, "1.jsonl", one, weight=0.5), entry(tmp_path, "2.jsonl", two)]
    done = []
    sources = open_sources(entries, settings=DataSettings(max_bad_fraction=0.0))
    first, second = check_sources(sources, TextsOnly(), num_workers=num_workers, progress=done.append)
    assert (first.source, first.samples, first.images, first.texts, first.bad) == ("parquet", 10, 10, 30, 0)
    assert first.texts_per_image == 3.0 and first.epochs == 0.5 and first.truncated == 0
    assert (second.samples, second.images, second.texts, second.bad, second.truncated) == (4, 1, 2, 2, 1)
    assert second.percentile(100) == 30 and second.percentile(50) < 30
    assert second.reasons == {"answer is empty": 1, NO_FORMAT: 1}
    assert second.as_json()["examples"]["answer is empty"] == ["2.jsonl line 2"]
    assert sum(done) == 14 and is_within_budget([first, second])


def test_the_budget_is_one_for_all_sources_of_a_part(tmp_path):
    bad = [{"image": str(i), "text": ""} for i in range(3)]
    sources = open_sources([entry(tmp_path, f"{n}.jsonl", bad) for n in "12"])
    reports = check_sources(sources, TextsOnly())
    assert [report.bad for report in reports] == [3, 3] and not is_within_budget(reports)
    assert reports[0].percentile(50) == 0 and reports[0].texts_per_image == 0.0


class SomeBad(TextsOnly):
    """A processor that leaves out dialogs whose answer is long, as one does whose language model has few positions."""

    def encode_one(self, dialog):
        return super().encode_one(dialog) if len(dialog[0].answer) < 9 else "too long"


def test_a_bad_text_is_named_and_takes_none_of_those_about_its_image_along(tmp_path):
    rows = [{"image": name, "text": text} for name in "abc" for text in ("a cat", "dog" * (1 + ord(name)), "birds")]
    rows = [*rows, {"image": "d", "text": "cat" * 9}, {"image": "e", "text": "a cat"}]
    [report] = check_sources(open_sources([entry(tmp_path, "1.jsonl", rows)]), SomeBad())
    assert (report.samples, report.bad, report.lost, report.texts, report.images) == (5, 4, 1, 7, 4)
    assert report.reasons == {"too long": 4} and report.texts_per_image == 7 / 4


def test_streams_are_counted_over_all_their_windows(tmp_path):
    path = write_tars(tmp_path, num_tars=3, per_tar=6)
    whole = (tmp_path / "a-2.tar").read_bytes()
    (tmp_path / "a-2.tar").write_bytes(whole[:5000])
    settings = DataSettings(stream_window=4)
    entries = [SourceSettings(**tars(path, group="content"))]
    streams = open_streams(entries, key="data.train", settings=settings)
    done = []
    [report] = check_streams(streams, TextsOnly(), progress=done.append)
    assert (report.texts, report.bad, report.reasons) == (14, 1, {"tar is damaged": 1})
    assert (report.samples, report.images) == (sum(done), sum(done) - 1) and report.texts_per_image > 1.7
    assert report.as_json()["examples"] == {"tar is damaged": ["a-2.tar"]}
    assert report.budget == 5 and is_within_budget([report])
