"""The command line: parse and call, and say in one line what is wrong.

In: the process's arguments. Out: text or JSON on standard output, notes on standard error, an exit status: 0 done, 1
the answer is no, 2 bad input, 130 Ctrl-C. A command is a function in its own module here and one row in program.py;
torch is imported inside a command, so that `visgraft --help` answers at once.
Usage: `visgraft --help`, or from Python `main(["show", "recipe.yaml"])`
"""

from visgraft.cli.program import main as main
