"""A portable folder loads and answers in a process that cannot import visgraft."""

from __future__ import annotations

import ast
import json
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tests.tiny import randomise
from tests.training.tiny import save_parts
from tests.warm_python import warm_python
from visgraft import Processor, VisionLanguageModel
from visgraft.convert.portable import export_full, make_portable, needed_modules, rewritten
from visgraft.errors import CheckpointError

IMAGE = Image.new("RGB", (40, 30), (200, 30, 30))
CODE = """
import sys
from PIL import Image

class NoVisgraft:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "visgraft":
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, NoVisgraft())
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, pipeline

folder, image = sys.argv[1], Image.new("RGB", (40, 30), (200, 30, 30))
assert AutoConfig.from_pretrained(folder, trust_remote_code=True).model_type == "visgraft"
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
tokens = model.generate(**processor(images=image, text="What is it?"), max_new_tokens=5, do_sample=False)
print(tokens[0].tolist())
answer = pipeline("image-text-to-text", model=folder, trust_remote_code=True)
print(answer(text="What is it?", images=image, max_new_tokens=5)[0]["generated_text"])
"""


@pytest.mark.slow
def test_a_portable_folder_answers_where_visgraft_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vision, language = save_parts(tmp_path)
    model = VisionLanguageModel.from_parts(vision, language)
    randomise(model, seed=2)
    processor = Processor.from_parts(vision, language)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    folder = export_full(tmp_path / "model", tmp_path / "portable", portable=True)
    expected = model.generate(**processor(images=IMAGE, text="What is it?"), max_new_tokens=5, do_sample=False)[0]
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    found = subprocess.run(
        [*warm_python(), "-c", CODE, str(folder)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert found.returncode == 0, found.stderr
    tokens, answer = found.stdout.split("\n")[:2]
    assert json.loads(tokens) == expected.tolist()
    assert answer.startswith("What is it?")
    again = VisionLanguageModel.from_pretrained(folder)  # and with visgraft as ever
    assert again.generate(**processor(images=IMAGE, text="What is it?"), max_new_tokens=5, do_sample=False)[
        0
    ].tolist() == (expected.tolist())


def test_every_import_of_the_package_is_flat() -> None:
    modules = needed_modules(["visgraft.processor", "visgraft.model.vlm"])
    assert "visgraft.errors" in modules
    assert "visgraft.model.japanese_stablelm" in modules
    for module in modules:
        source = rewritten(module)
        imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
        assert not [node.module for node in imports if (node.module or "").startswith("visgraft.")]
        assert {node.level for node in imports if "visgraft" in (node.module or "")} <= {1}


def test_a_folder_that_only_names_its_parts_is_refused(tmp_path: Path) -> None:
    vision, language = save_parts(tmp_path)
    VisionLanguageModel.from_parts(vision, language).save_pretrained(tmp_path / "slim")
    with pytest.raises(CheckpointError, match=r"is only named, as the local folder .*, which no one else has; write a"):
        make_portable(tmp_path / "slim")
