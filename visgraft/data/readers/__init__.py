"""Files in, samples out: a function each, which the table READERS in data/sources.py names.

`read(path, *, split, option=..., ...) -> Source`. The keyword-only parameters after split are the reader's own
options: a recipe may set them beside source, path and split, and nothing else; a parameter `reader` gets the name that
the recipe calls it by. A new row format is a row in row_formats.py, a new layout of files one module here; either gets
a row in READERS and a test. Usage: `visgraft.data.readers.coco.read(Path("coco"), split="val")`.
"""
