"""Heirs of the ancestors: their checkpoints and recipes come in, ours go out.

In: a GIT-LLM or heron checkpoint or YAML file, or a model folder. Out: a model folder, a recipe, or a folder of
another library's form. Usage: `from visgraft.heirs.ancestor import import_ancestor`
"""
