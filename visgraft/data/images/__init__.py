"""Images: naming and opening them, augmenting them, the pixels that an encoder takes, frames of videos, kept features.

In: what a row says of its images. Out: RGB images, then pixels.
Usage: `image = open_image("cat.jpg", max_pixels=100_000_000)`
"""
