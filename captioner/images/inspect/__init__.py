"""What the bytes of an image say about it. The structure is read; nothing is decoded."""

from captioner.images.inspect.formats import media_type_of, read_structure
from captioner.images.inspect.mend import Mended, mended
from captioner.images.inspect.structure import DoubtfulImageError, Structure, corrupt
from captioner.images.inspect.video import broken_video, check_whole, video_format

__all__ = [
    "DoubtfulImageError",
    "Mended",
    "Structure",
    "broken_video",
    "check_whole",
    "corrupt",
    "media_type_of",
    "mended",
    "read_structure",
    "video_format",
]
