"""METEOR without its program: what is refused, what is sent, and how the program's counts become a score.

`make test-coco` compares with the program itself.
"""

import os
import sys
from pathlib import Path

import pytest

from visgraft.errors import ConfigError, MissingAssetError
from visgraft.metrics import meteor as module
from visgraft.metrics import metric_named
from visgraft.metrics.meteor import meteor

# what the program counted for "a cat on a couch" with the references "a cat sits on a sofa", "the cat is on the couch"
COUCH = "5.0 6.0 3.0 3.0 1.0 1.0 3.0 3.0 0.0 0.0 0.0 0.0 1.0 1.0 0.0 0.0 0.0 0.0 0.0 0.0 2.0 5.0 5.0"
EQUAL = "2.0 2.0 1.0 1.0 1.0 1.0 1.0 1.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 1.0 2.0 2.0"
NOTHING = "0.0 3.0 0.0 1.0 " + " ".join(["0.0"] * 19)

FAKE_JAVA = f"""#!{sys.executable}
import sys
counts = {{"a cat on a couch": "{COUCH}", "a cat": "{EQUAL}", "": "{NOTHING}"}}
for line in sys.stdin:
    kind, *texts = line.rstrip("\\n").split(" ||| ")
    assert kind == "SCORE", line
    if texts[-1] == "stop":
        sys.exit("out of memory")
    print(counts[texts[-1]], flush=True)
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "java").write_text(FAKE_JAVA)
    (tmp_path / "java").chmod(0o755)
    (tmp_path / "meteor-1.5.jar").touch()
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(module, "_program", lambda: tmp_path / "meteor-1.5.jar")


def test_counts_are_added_up_and_a_caption_equal_to_its_reference_has_no_fragment(program: None) -> None:
    references = [["a cat sits on a sofa", "the cat is on the couch"], ["a cat"], ["two dogs run"]]
    scores = meteor(["A cat on a couch.", "a cat", ""], references=references)["meteor"]
    # matched: 1 content word, 3 function words, 1 synonym of weight 0.8
    matched, ours, theirs = 0.75 * 1.8 + 0.25 * 3, 0.75 * 2 + 0.25 * 3, 0.75 * 3 + 0.25 * 3
    mean = 1 / (0.15 / (matched / ours) + 0.85 / (matched / theirs))
    assert scores.per_sample == pytest.approx((mean * (1 - 0.6 * (2 / 5) ** 0.2), 1, 0))
    # together: 2 fragments among 7 words of each side, the reference of the empty caption counts
    matched, ours, theirs = matched + 1, ours + 1, theirs + 1 + 0.75 * 2 + 0.25
    mean = 1 / (0.15 / (matched / ours) + 0.85 / (matched / theirs))
    assert scores.value == pytest.approx(mean * (1 - 0.6 * (2 / 7) ** 0.2))


def test_a_program_that_stops_says_why(program: None) -> None:
    with pytest.raises(
        MissingAssetError, match=r"meteor-1\.5\.jar stopped and said: out of memory; see that Java runs it"
    ):
        meteor(["stop"], references=[["a cat"]])


def test_without_the_package_or_java_the_line_to_install_is_named(
    program: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert metric_named("meteor").gives == ("meteor",)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        MissingAssetError, match=r"no java on the path; install Java 8 or newer \(apt install default-jre"
    ):
        metric_named("meteor")
    monkeypatch.setattr(module, "_program", lambda: None)
    with pytest.raises(
        MissingAssetError, match=r"pycocoevalcap, which is not installed; pip install 'visgraft\[coco\]'"
    ):
        metric_named("meteor")


def test_meteor_knows_english_only(program: None) -> None:
    with pytest.raises(ConfigError, match="language: got 'ja', and meteor knows English only; leave meteor out"):
        meteor(["a"], references=[["a"]], language="ja")
