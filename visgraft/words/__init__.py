"""Look inside: the words nearest to each image token, laid over the image, and where an answer looks.

In: a model and an image. Out: numbers, an offline page, a picture.
Usage: `write_report(path, look_inside(model, processor, image, prompt="What is it?"), title="my-run")`
"""

from visgraft.words.look import Look as Look
from visgraft.words.look import look_inside as look_inside
from visgraft.words.report import write_picture as write_picture
from visgraft.words.report import write_report as write_report
