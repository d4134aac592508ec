"""Importing visgraft, and touching the model or the processor, makes both known to transformers' Auto classes."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import randomise
from tests.training.tiny import save_parts
from tests.warm_python import warm_python
from visgraft import Processor, VisionLanguageModel

pytestmark = pytest.mark.slow

CODE = """
from tests.warm_python import warm_python
from visgraft import {name}
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from visgraft.model.configuration import VisionLanguageConfig
assert VisionLanguageConfig in AutoModelForImageTextToText._model_mapping
assert VisionLanguageConfig in PROCESSOR_MAPPING
assert AutoConfig.for_model("visgraft").model_type == "visgraft"
"""


@pytest.mark.parametrize("name", ["VisionLanguageModel", "Processor"])
def test_touching_either_registers_both(name):
    done = subprocess.run([*warm_python(), "-c", CODE.format(name=name)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


BY_IMPORT = """
import sys
{first}
{second}
folder = sys.argv[1]
assert "visgraft.model.vlm" not in sys.modules
{use}
"""
ORDERS = {
    "visgraft first": ('import visgraft; assert "torch" not in sys.modules', "import transformers as hf"),
    "transformers first": ("import transformers as hf; hf.AutoConfig, hf.AutoProcessor", "import visgraft"),
}
USES = {
    "config": 'assert hf.AutoConfig.from_pretrained(folder).model_type == "visgraft"',
    "model": 'assert type(hf.AutoModelForImageTextToText.from_pretrained(folder)).__name__ == "VisionLanguageModel"',
    "processor": 'assert type(hf.AutoProcessor.from_pretrained(folder)).__module__ == "visgraft.processor"',
    "pipeline": 'assert hf.pipeline("image-text-to-text", model=folder)',
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    parts = save_parts(tmp_path_factory.mktemp("parts"))
    folder = tmp_path_factory.mktemp("model")
    model = VisionLanguageModel.from_parts(*parts)
    randomise(model.projection, seed=2)
    model.save_pretrained(folder)
    Processor.from_parts(*parts).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("order", ORDERS)
def test_importing_visgraft_alone_is_enough_for_the_auto_classes(folder, order, use):
    if order == "transformers first" and use != "processor":
        pytest.skip("one is enough in this order")
    first, second = ORDERS[order]
    code = BY_IMPORT.format(first=first, second=second, use=USES[use])
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=120,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
