"""Touching the model or the processor makes both known to transformers' Auto classes."""

import subprocess

import pytest

from tests.warm_python import warm_python

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
