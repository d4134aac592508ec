"""A Ray cluster of this machine with four logical CPUs, which lives as long as its standard input is open.

In: nothing. Out: its address, as a line. Usage: `python -m tests.annotate.ray_cluster`; then RAY_ADDRESS for drivers
"""

import sys

import ray

if __name__ == "__main__":
    ray.init(num_cpus=4, log_to_driver=False, logging_level="error", include_dashboard=False)
    sys.stdout.write(ray.get_runtime_context().gcs_address + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    ray.shutdown()
