"""transformers' own tests of models and processors, run on ours and, for comparison, on PaliGemma and Gemma 3.

In: the unpacked source distribution of transformers. Out: a line a class, and what fails. `make test-peer`.

    python tests/peer/run_peer.py build/peer/transformers-5.23.0

The tests themselves are used where they lie. Two modules that they import are not in the source distribution; an empty
mixin stands for each.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import types
import unittest
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers as hf

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

VISION = {
    "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
TEXT = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
IMAGE_ID, NUM_IMAGE, TEXT_LENGTH, ROWS = 97, 4, 7, 2

# test -> why it cannot hold of these models; what fails and is not here is ours to mend
REASONS_FILE = Path(__file__).with_name("reasons.json")


def load_mixins(source: Path) -> tuple[Any, Any]:
    """Import transformers' mixins from where they were unpacked, as the package `peer_tests`."""
    package = types.ModuleType("peer_tests")
    package.__path__ = [str(source / "tests")]
    sys.modules["peer_tests"] = package
    for folder, module, name in (
        ("exporters", "test_export", "ExportTesterMixin"),
        ("generation", "test_utils", "GenerationTesterMixin"),
    ):
        parent = types.ModuleType(f"peer_tests.{folder}")
        parent.__path__ = []
        stand_in = types.ModuleType(f"peer_tests.{folder}.{module}")
        setattr(stand_in, name, type(name, (), {}))
        sys.modules[parent.__name__], sys.modules[stand_in.__name__] = parent, stand_in
    fetch: Any = types.ModuleType("fetch_hub_objects_for_ci")  # a script of their CI
    fetch.url_to_local_path = lambda url: url
    sys.modules.setdefault(fetch.__name__, fetch)
    from peer_tests.test_modeling_common import ModelTesterMixin
    from peer_tests.test_processing_common import ProcessorTesterMixin

    return ModelTesterMixin, ProcessorTesterMixin


class Tester:
    """What the mixin asks of a model: a small config and inputs."""

    batch_size, num_hidden_layers, num_attention_heads, hidden_size, is_training = ROWS, 2, 4, 32, True
    seq_length = encoder_seq_length = key_length = NUM_IMAGE + TEXT_LENGTH

    def __init__(self, test: Any, kind: str) -> None:
        self.kind = kind

    def get_config(self) -> Any:
        if self.kind == "visgraft":
            from visgraft.model.configuration import VisionLanguageConfig

            text = {key: value for key, value in TEXT.items() if key != "head_dim"}
            return VisionLanguageConfig(
                vision_config=hf.SiglipVisionConfig(**VISION, vision_use_head=False), text_config=hf.LlamaConfig(**text)
            )
        vision = hf.SiglipVisionConfig(**VISION, projection_dim=32)
        if self.kind == "paligemma":
            return hf.PaliGemmaConfig(
                vision_config=vision.to_dict(), text_config={**TEXT, "model_type": "gemma"}, image_token_index=IMAGE_ID,
                projection_dim=32, hidden_size=32,
            )  # fmt: skip
        return hf.Gemma3Config(
            vision_config=vision.to_dict(), mm_tokens_per_image=NUM_IMAGE, image_token_index=IMAGE_ID,
            text_config={**TEXT, "model_type": "gemma3_text", "layer_types": ["sliding_attention", "full_attention"]},
            boi_token_index=95, eoi_token_index=96,
        )  # fmt: skip

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Any]]:
        config = self.get_config()
        ids = torch.randint(3, 90, (ROWS, TEXT_LENGTH))
        pixels = torch.randn(ROWS, 3, 8, 8)
        if self.kind == "visgraft":
            return config, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
        ids = torch.cat([torch.full((ROWS, NUM_IMAGE), IMAGE_ID), ids], 1)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
        inputs["token_type_ids"] = (ids == IMAGE_ID).long() if self.kind == "gemma3" else torch.zeros_like(ids)
        return config, inputs

    def prepare_config_and_inputs(self) -> tuple[Any, dict[str, Any]]:
        return self.prepare_config_and_inputs_for_common()


def model_case(mixin: Any, kind: str) -> type[unittest.TestCase]:
    """Make the test case of a model class."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    from visgraft import VisionLanguageModel

    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["visgraft"] = "VisionLanguageModel"  # by which tests give labels
    classes = {
        "visgraft": VisionLanguageModel,
        "paligemma": hf.PaliGemmaForConditionalGeneration,
        "gemma3": hf.Gemma3ForConditionalGeneration,
    }

    class Case(mixin, unittest.TestCase):  # type: ignore[misc, valid-type]
        all_model_classes = (classes[kind],)
        _is_composite = True
        test_torch_exportable = False

        def setUp(self) -> None:
            self.model_tester = Tester(self, kind)
            if kind == "visgraft":  # labels stand for text alone, its rows are longer by the image
                self.model_tester.seq_length = TEXT_LENGTH
                if "hidden_states" in self._testMethodName or "attention_outputs" in self._testMethodName:
                    self.model_tester.seq_length = NUM_IMAGE + TEXT_LENGTH

    Case.__name__ = Case.__qualname__ = f"Model_{kind}"
    return Case


def processor_case(mixin: Any) -> type[unittest.TestCase]:
    """Make the test case of our processor."""
    from tests.training.tiny import save_parts
    from visgraft import Processor

    class Case(mixin, unittest.TestCase):  # type: ignore[misc, valid-type]
        processor_class = Processor

        @classmethod
        def setUpClass(cls) -> None:
            cls.tmpdirname = tempfile.mkdtemp()
            parts = save_parts(Path(tempfile.mkdtemp()))
            processor = Processor.from_parts(*parts)
            cls.image_token = ""
            processor.save_pretrained(cls.tmpdirname)
            cls.model_id = cls.tmpdirname

        def get_processor(self, *_: Any, **__: Any) -> Any:
            return Processor.from_pretrained(self.tmpdirname)

        def get_component(self, attribute: str, *_: Any, **__: Any) -> Any:
            return getattr(self.get_processor(), attribute)

    Case.__name__ = Case.__qualname__ = "Processor_visgraft"
    return Case


def run(case: type[unittest.TestCase]) -> dict[str, str]:
    """Run every test of a case: name -> passed, skipped or the last line of what went wrong."""
    outcomes: dict[str, str] = {}

    class Result(unittest.TestResult):
        def addSuccess(self, test: Any) -> None:  # noqa: N802
            outcomes.setdefault(test._testMethodName, "passed")

        def addSkip(self, test: Any, reason: str) -> None:  # noqa: N802
            outcomes[test._testMethodName] = f"skipped: {reason}"

        def addFailure(self, test: Any, error: Any) -> None:  # noqa: N802
            outcomes[test._testMethodName] = f"failed: {error[0].__name__}: {str(error[1]).strip()[:300]}"

        addError = addFailure  # noqa: N815

        def addSubTest(self, test: Any, subtest: Any, error: Any) -> None:  # noqa: N802
            if error is not None:
                self.addFailure(test, error)

    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(Result())
    return outcomes


def main() -> None:
    """Run all and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--ours", action="store_true", help="leave PaliGemma and Gemma 3 out")
    parser.add_argument("--json", type=Path, help="write every outcome there")
    arguments = parser.parse_args()
    models, processors = load_mixins(arguments.source)
    others = () if arguments.ours else ("paligemma", "gemma3")
    cases: list[Any] = [model_case(models, kind) for kind in ("visgraft", *others)] + [processor_case(processors)]
    results = {case.__name__: run(case) for case in cases}
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))
    reasons = json.loads(REASONS_FILE.read_text(encoding="utf-8"))
    for name, outcomes in results.items():
        counts = Counter(outcome.partition(":")[0] for outcome in outcomes.values())
        sys.stdout.write(f"{name}: {len(outcomes)} tests, {dict(counts)}\n")
    bad = False
    for name in ("Model_visgraft", "Processor_visgraft"):
        for test, outcome in results[name].items():
            if outcome.startswith("failed") and test not in reasons.get(name, {}):
                sys.stdout.write(f"{name}.{test}: {outcome}\n")
                bad = True
    raise SystemExit(bad)


if __name__ == "__main__":
    main()
