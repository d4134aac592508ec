"""The model: tensors in, logits out; knows nothing of datasets. Read vlm.py first.

Usage: `from visgraft.model.vlm import VisionLanguageModel`
"""
