"""A whole training run: the loop, its optimizer, its plan of steps, its state on disk.

In: a recipe. Out: a run folder. loop.py is readable top to bottom; session.py holds what a run works on.
Usage: `visgraft.train("recipe.yaml")`
"""
