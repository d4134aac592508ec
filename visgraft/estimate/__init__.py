"""Whether a recipe fits a GPU, and how long it takes there: found before any weight is loaded.

In: a recipe and a GPU. Out: bytes by part, seconds, advice. estimate.py is the whole of it, readable top to bottom.
Usage: `estimate("recipe.yaml", gpu="24GB").fits`
"""
