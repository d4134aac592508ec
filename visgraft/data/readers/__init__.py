"""Files in, samples out: one module per format, each with a function `read`.

`read(path, *, split, option=..., ...) -> Source`. The keyword-only parameters after split are the format's own options:
a recipe may set them beside source, path and split, and nothing else. A new format is one module here, one row in
visgraft/data/sources.py and one test. Usage: `visgraft.data.readers.coco.read(Path("coco"), split="val")`.
"""
