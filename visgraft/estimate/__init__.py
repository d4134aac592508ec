"""Whether a recipe fits a GPU, and how long it takes there: found before any weight is loaded.

In: an outline of the run (a model without weights, the batches of a step). Out: bytes by part, seconds, advice.
Usage: `estimate_run(outline.model, outline.micro_batches, dtype=torch.bfloat16, on_gpu=True).fits(find_gpu("24GB"))`
"""
