"""How threads that compute wait for one another, decided before torch is imported, which asks once.

In: the process's environment. Out: the same, with one setting more where the user made none.
Usage: `share_cores(os.environ)`

A product of matrices is cut among all cores, and whoever is done waits. GNU's library of threads, which torch brings on
Linux, lets it look 300,000 times before it sleeps: some milliseconds, in which it holds a core. Where another program
has taken the core of the thread that is waited for, that is the core it could have had. A few thousand looks bridge the
time between two products of a step, and sleep through the others (bench/neighbour.py, docs/performance.md).
"""

from collections.abc import MutableMapping

SPIN_COUNT = "10000"
OWN_CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # a user who has set one of them has decided


def share_cores(environment: MutableMapping[str, str]) -> None:
    """Let threads wait awake for a short while only, unless the user has said how they wait."""
    if not any(name in environment for name in OWN_CHOICES):
        environment["GOMP_SPINCOUNT"] = SPIN_COUNT
