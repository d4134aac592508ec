"""Models scored, with the answers behind every number: how good, how sure, and how much of it is sight.

In: models and a data set, or answers that exist. Out: scores with intervals, `answers.jsonl`, `scores.json`, a page.
Usage: `evaluate(["runs/my-run"], questions, metrics=["exact_match"], folder=Path("evaluations/first"))`
"""
