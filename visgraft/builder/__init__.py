"""A recipe becomes a model and its processor: described from configurations alone, or built with its weights.

In: a recipe. Out: rows and facts about its parts, or the joined model and its processor with what trains set.
Usage: `model, processor = build(recipe)`
"""
