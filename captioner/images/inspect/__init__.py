"""What the bytes of an image say about it. The structure is read; nothing is decoded."""

from captioner.images.inspect.formats import media_type_of, read_structure
from captioner.images.inspect.structure import Structure, corrupt
from captioner.images.inspect.video import broken_video, check_whole, video_format

__all__ = [
    "Structure", "broken_video", "check_whole", "corrupt", "media_type_of", "read_structure",
    "video_format",
]  # fmt: skip
