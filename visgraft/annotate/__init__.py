"""Label whole collections: captions or answers for every image, by any number of processes that may be killed anywhere.

In: a model, data, prompts. Out: a folder of parquet shards, which is itself a source of training.

    request = Request(model="runs/my-run", data="photos/", output="labels", prompts=("What is it?",))
    standing = annotate(request, say=print)
"""

from visgraft.annotate.progress import Standing as Standing
from visgraft.annotate.request import Request as Request
from visgraft.annotate.request import parse_shard as parse_shard
from visgraft.annotate.running import annotate as annotate
