"""Images: references to them, opening them, their pixels as an encoder wants them, frames of videos.

In: what a row says of its images. Out: RGB images, then pixels.
Usage: `image = open_image("cat.jpg", max_pixels=100_000_000)`
"""
