"""Images to feature files: many workers and processes, resumed after interruption, never mixed."""

from adaneg_openood.data.batches import decoded_batches
from adaneg_openood.data.encode import ON_ERROR, encode_images, encode_to_file
from adaneg_openood.data.headers import read_feature_header, refuse_mixing
from adaneg_openood.data.sources import ImageSource, image_source, load_image, to_eight_bit

__all__ = [
    "ON_ERROR",
    "ImageSource",
    "decoded_batches",
    "encode_images",
    "encode_to_file",
    "image_source",
    "load_image",
    "read_feature_header",
    "refuse_mixing",
    "to_eight_bit",
]
