"""What a file is: hidden, an image by its name, or an image by how it begins."""

import os
import re

# The last five can't be read: such files are told, not passed over.
IMAGE_SUFFIXES = frozenset(
    """.png .jpg .jpeg .jpe .jfif .webp .gif .bmp .dib .tif .tiff
    .ppm .pgm .pbm .pnm .avif .jp2 .j2k .heic .heif .jxl .tga .psd""".split()  # noqa: SIM905
)
# What systems, network drives and editors leave beside images; what begins with a dot is hidden anyway.
TOOL_FOLDERS = ("__macosx", "@eadir", "#recycle", "#snapshot", "@recycle", "$recycle.bin", "recycler", "lost+found")
TOOL_NAMES = frozenset(
    (*TOOL_FOLDERS, "system volume information", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")
)
HEAD_BYTES = 64
# What is decoded: PNG, JPEG, WebP, GIF, BMP, TIFF (also of 64 bits), PPM and its kin, AVIF, JPEG 2000, also bare.
IMAGE_HEAD = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF....WEBP|GIF8[79]a|BM....\0\0\0\0|II[*+]\0|MM\0[*+]"
    rb"|P[1-6Ff]\s+[-\d#]|....ftypavi[fs]|\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    re.DOTALL,
)
# A PNG whose first text is fastgan's mark (`pngs.save_png`): behind the signature and the header.
OWN_HEAD = re.compile(rb"\x89PNG\r\n\x1a\n.{29}tEXtfastgan\0", re.DOTALL)
HIDDEN = "hidden or of a tool"
OWN = "made by fastgan sample"
NO_IMAGE = "of no known image format"


def hidden_part(name: str) -> str | None:
    """Return the name up to its first part that is hidden or a tool's: a folder of such counts once.

    None where none is.
    """
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    for number, part in enumerate(parts, 1):
        if part.startswith(".") or part.lower() in TOOL_NAMES:
            return "/".join(parts[:number])
    return None


def has_image_name(name: str) -> bool:
    """Return whether the name ends as those of images do."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122


def is_image(name: str) -> bool:
    """Return whether the name is that of an image which isn't hidden."""
    return has_image_name(name) and hidden_part(name) is None


def begins_as_image(head: bytes) -> bool:
    """Return whether a file with these first HEAD_BYTES is an image of a format that is decoded."""
    return IMAGE_HEAD.match(head) is not None


def is_own(head: bytes) -> bool:
    """Return whether a file with these first HEAD_BYTES is a picture that fastgan made."""
    return OWN_HEAD.match(head) is not None
