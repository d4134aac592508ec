"""Look inside: the words nearest to each image token, laid over the image, and where an answer looks.

In: a model and an image. Out: numbers, an offline page, a picture.
Usage: `write_report(path, inspect_image(model, processor, image, prompt="What is it?"), title="my-run")`
"""

from visgraft.inspection.image_tokens import ImageInspection as ImageInspection
from visgraft.inspection.image_tokens import inspect_image as inspect_image
from visgraft.inspection.report import write_picture as write_picture
from visgraft.inspection.report import write_report as write_report
