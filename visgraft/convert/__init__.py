"""Checkpoints and recipes of other projects come in, ours go out: import, merge, export.

In: a GIT-LLM or heron checkpoint or YAML file, or a model folder. Out: a model folder, a recipe, or a folder of
another library's format. Usage: `from visgraft.convert.import_git_llm import import_git_llm`
"""
