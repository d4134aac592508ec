"""The article as one command: its three experiments, run as its author wrote them, into one folder that proves itself.

In: M3IT, a scale. Out: a folder of runs, evaluations, a page and `reproduction.json`; what is no longer so in one.
Usage: `visgraft reproduce --data ~/m3it --scale hour`
"""
