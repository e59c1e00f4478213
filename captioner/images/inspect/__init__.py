"""What the bytes of an image say about it. The structure is read; nothing is decoded."""

from captioner.images.inspect.formats import media_type_of, read_structure
from captioner.images.inspect.jpeg2000 import bits_a_channel, has_all_tiles, is_jpeg2000
from captioner.images.inspect.png import png_chunks
from captioner.images.inspect.repair import Repaired, repaired
from captioner.images.inspect.structure import DoubtfulImageError, Structure, corrupt
from captioner.images.inspect.video import broken_video, check_whole, video_format
from captioner.images.inspect.webp import webp_sizes

__all__ = [
    "DoubtfulImageError",
    "Repaired",
    "Structure",
    "bits_a_channel",
    "broken_video",
    "check_whole",
    "corrupt",
    "has_all_tiles",
    "is_jpeg2000",
    "media_type_of",
    "png_chunks",
    "read_structure",
    "repaired",
    "video_format",
    "webp_sizes",
]
