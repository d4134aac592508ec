"""Model folders on disk: parts loaded by name, what was trained saved beside the names of the rest, all accounted for.

In: names or a folder. Out: modules with their weights, or a folder.
Usage: `VisionLanguageModel.from_pretrained(folder)`, whose methods live in load_and_save.py
"""
