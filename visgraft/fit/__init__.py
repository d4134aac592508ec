"""Whether a recipe fits a card, and how long it takes there: found before any weight is loaded.

In: an outline of the run (a model without weights, the batches of a step). Out: bytes by part, seconds, advice.
Usage: `estimate = estimate_run(model, micro_batches, dtype=torch.bfloat16, card=find_card("24GB"))`
"""
