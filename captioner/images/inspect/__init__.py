"""What the bytes of an image say about it. The structure is read; nothing is decoded."""

from captioner.images.inspect.formats import media_type_of, read_structure
from captioner.images.inspect.jpeg2000 import bits_a_channel, has_all_tiles, is_jpeg2000
from captioner.images.inspect.mend import Mended, mended
from captioner.images.inspect.png import png_chunks
from captioner.images.inspect.structure import DoubtfulImageError, Structure, corrupt
from captioner.images.inspect.video import broken_video, check_whole, video_format
from captioner.images.inspect.webp import webp_sizes

__all__ = [
    "DoubtfulImageError",
    "Mended",
    "Structure",
    "bits_a_channel",
    "broken_video",
    "check_whole",
    "corrupt",
    "has_all_tiles",
    "is_jpeg2000",
    "media_type_of",
    "mended",
    "png_chunks",
    "read_structure",
    "video_format",
    "webp_sizes",
]
