"""Images to features: one reader, one store; resumed after interruption, never mixed."""

from adaneg_openood.data.batches import decoded_batches
from adaneg_openood.data.encode_file import encode_to_file, refuse_mixing
from adaneg_openood.data.feature_files import read_feature_header
from adaneg_openood.data.feature_store import FeatureStore, ImageFeatures
from adaneg_openood.data.image_files import load_image, to_eight_bit
from adaneg_openood.data.image_set import ImageSet

__all__ = [
    "FeatureStore",
    "ImageFeatures",
    "ImageSet",
    "decoded_batches",
    "encode_to_file",
    "load_image",
    "read_feature_header",
    "refuse_mixing",
    "to_eight_bit",
]
