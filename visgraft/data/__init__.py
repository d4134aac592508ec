"""Images and text in, tensors out; knows nothing of the model.

In order of the pipeline: readers/ and sources.py (files -> samples), images/ (-> RGB, then pixels), prompt.py (-> token
ids), batch.py (-> tensors). Usage: `from visgraft.data.sample import Sample, Turn`.
"""
