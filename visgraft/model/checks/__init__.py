"""Can two parts be joined (compatibility), and is the joined model right (preflight)? Decided by trying, not by name.

In: a language model, or a joined one with a batch. Out: nothing where all is well, else an error that says why.
Usage: `check_language(language)`
"""
