# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # A first model
#
# A language model that never saw an image learns to say which shape and which colour it sees: real weights, real data,
# two or three minutes on a CPU, nothing to sign up for. `jupytext --to ipynb first_model.py` makes a notebook of this
# file; `make notebook` runs it.

# %%
from pathlib import Path

import visgraft
from visgraft.config import SourceSettings
from visgraft.data.images.opening import open_image
from visgraft.data.sources import open_sources
from visgraft.inference import answer, load
from visgraft.inspection import inspect_image, write_picture
from visgraft.metrics.text_match import exact_match
from visgraft.starter import resolve

# %% [markdown]
# ## The data
#
# easy-VQA: drawn images of one coloured shape, and questions about them. A **sample** is an image with its **dialogs**,
# each of one or more **turns**, a prompt and its answer.

# %%
held_out = open_sources([SourceSettings("easy_vqa", path=resolve("starter:easy_vqa"), split="validation", limit=40)])
samples = [held_out[index] for index in range(len(held_out))]
questions = [visgraft.Sample(images=each.images, dialogs=[dialog]) for each in samples for dialog in each.dialogs]
for question in questions[:4]:
    turn = question.dialogs[0][0]
    print(turn.prompt, "->", turn.answer)

# %% [markdown]
# ## Train
#
# A recipe names the two models, what trains, and the data. `easy_vqa` comes with the package; here it is shortened.
# While it trains, a bar shows where it stands. What comes back is the run's folder.

# %%
STEPS = 60
changes = ["train.exact_match_samples=0", "data.validation.0.limit=20", "train.checkpoint_every_steps=1000"]
every = max(1, STEPS // 3)
recipe = visgraft.load_recipe(
    "easy_vqa", overrides=[f"train.max_steps={STEPS}", f"train.validate_every_steps={every}", *changes]
)
folder = visgraft.train(recipe)

# %% [markdown]
# ## The curves
#
# A run shows itself; `visgraft.compare` puts several side by side.

# %%
run = visgraft.Run.open(folder)
run

# %% [markdown]
# ## Ask
#
# The model is asked about images that it was not trained on.

# %%
model, processor = load(str(folder))
model

# %% [markdown]
# Answers are whole texts over the whole vocabulary, not a choice of a few.

# %%
first = questions[:5]
for question, said in zip(first, answer(model, processor, first, max_new_tokens=5), strict=True):
    turn = question.dialogs[0][0]
    print(f"{turn.prompt:45} {said:12} truth: {turn.answer}")

# %% [markdown]
# ## Score
#
# How many answers are right, word for word. `visgraft evaluate` does it with intervals, and with the images taken away,
# to see how much of a score is sight.

# %%
asked = questions[:100]
said = answer(model, processor, asked, max_new_tokens=5)
score = exact_match(said, references=[[question.dialogs[0][0].answer] for question in asked]).value
print(f"{score:.0%} of {len(asked)} right")

# %% [markdown]
# ## Look inside
#
# Which words lie near each image token, and where the answer looks.

# %%
image = open_image(questions[0].images[0])
look = inspect_image(model, processor, image, prompt=questions[0].dialogs[0][0].prompt, max_new_tokens=5)
write_picture(Path("inside.png"), look)
image.resize((128, 128))
