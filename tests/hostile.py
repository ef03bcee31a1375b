"""Files that no program should trust: one of each kind, and the line that `protect` says of it."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin


def smooth(size=(40, 48)):
    """A picture that every format keeps about as it is: red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 200, size[0]), np.linspace(0, 200, size[1]))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 90)], -1).astype(np.uint8))


def png(size, bits, colour, rows, more=b""):
    """A PNG by hand: header, other chunks, pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + more + pixels + chunk(b"IEND", b"")


def refused(folder: Path) -> dict[str, str]:
    """Writes files that must be left out; returns what is said of each, by name."""
    good = folder.parent / "good.jpg"
    smooth().save(good, quality=90)
    whole = good.read_bytes()
    smooth().save(folder / "cut.png")
    written = (folder / "cut.png").read_bytes()
    bomb = png((60000, 60000), 8, 2, b"")
    text = b"zTXt" + b"a\0\0" + zlib.compress(bytes(2 * PngImagePlugin.MAX_TEXT_CHUNK))
    talkative = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    files = {
        "cut.jpg": (whole[: len(whole) // 2], "damaged or truncated"),
        "beheaded.jpg": (whole[:3], "damaged or truncated (its header cannot be read)"),
        "cut.png": (written[: len(written) // 2], "damaged or truncated"),
        "flipped.png": (written[:60] + bytes([written[60] ^ 255]) + written[61:], "damaged or truncated"),
        "zero.jpg": (b"", "empty"),
        "bomb.png": (bomb, "too many pixels (over 178000000)"),
        "chatter.png": (png((8, 8), 8, 0, bytes(72), talkative), "damaged or truncated"),
        "scans.jpg": (whole + b"\xff\xda" * 200, "too long to decode (a JPEG of 20"),
        "notes.txt": (b"hello", "no photograph (JPEG, PNG,"),
        "page.jpg": (b"<html><script>alert(1)</script></html>", "no photograph"),
        "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\nshowpage\n", "no photograph"),
        "random.jpg": (bytes(np.random.default_rng(0).integers(0, 256, 5000, np.uint8)), "no photograph"),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    lines = {name: line for name, (_, line) in files.items()}
    Image.new("1", (8000, 8000)).save(folder / "wide.png")
    Image.new("RGB", (1, 1)).save(folder / "one.png")
    Image.fromarray(np.ones((40, 40), np.float32)).save(folder / "floats.tif")
    (folder / "dangling.jpg").symlink_to(folder / "nowhere")
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    (folder / "empty.jpg").mkdir()
    (folder / "away").symlink_to(folder.parent)
    os.mkfifo(folder / "pipe.jpg")
    with open(folder / "huge.jpg", "wb") as file:
        file.write(whole)
        file.truncate(300 * 2**20)  # sparse
    (folder / "b\x1b[31m\n.jpg").write_bytes(b"x")
    (folder / os.fsdecode(b"\xff\xfe.jpg")).write_bytes(b"x")
    return lines | {
        "wide.png": "too many pixels (8000 x 8000, over --max_pixels 50000000)",
        "one.png": "too small (1 x 1, --min_size 32)",
        "floats.tif": "unusual pixels (mode F:",
        "dangling.jpg": "a link to nothing",
        "loop.jpg": "a link to nothing",
        "away": "a link to a folder",
        "pipe.jpg": "no regular file",
        "huge.jpg": "too large a file (300 MB, at most 200 are read)",
        r"b\x1b[31m\n.jpg": "no photograph",
        r"\udcff\udcfe.jpg": "no photograph",
    }


def taken(folder: Path) -> dict[str, str]:
    """Writes odd files that are photographs all the same; returns what is remarked of each, by name."""
    picture = smooth()
    grey = np.asarray(picture)[..., 0].astype(np.uint16) * 257
    Image.fromarray(grey).save(folder / "grey16.png")
    wide = np.asarray(picture).astype(">u2") * 257
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide)
    (folder / "rgb16.png").write_bytes(png(picture.size, 16, 2, rows))
    picture.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    few = picture.quantize(16)
    few.save(folder / "palette.png", transparency=few.getpixel((0, 0)))
    picture.quantize(32).save(folder / "palette.gif")
    alpha = picture.convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(picture.size))
    alpha.save(folder / "alpha.png")
    alpha.convert("LA").save(folder / "greyalpha.png")
    picture.convert("1").save(folder / "bits.png")
    other = Image.new("RGB", picture.size, (0, 0, 255))
    for name in ("moving.gif", "moving.webp", "moving.png"):
        picture.save(folder / name, save_all=True, append_images=[other, other], duration=40)
    picture.save(folder / "pages.tif", save_all=True, append_images=[other])
    picture.save(folder / "phone.mpo", save_all=True, append_images=[other], quality=95)
    picture.save(folder / "wrong.jpg", format="PNG")
    picture.save(folder / "noending", format="WEBP", lossless=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.jpg", exif=exif, quality=95)
    whole = (folder / "turned.jpg").read_bytes()
    exif[0x010E] = "described in words"
    picture.transpose(Image.Transpose.ROTATE_90).save(folder / "odd_exif.jpg", exif=exif, quality=95)
    odd = (folder / "odd_exif.jpg").read_bytes()  # its description is of the type of fractions
    (folder / "odd_exif.jpg").write_bytes(odd.replace(b"\x01\x0e\0\2\0\0\0\x13", b"\x01\x0e\0\5\0\0\0\2"))
    (folder / "broken_exif.jpg").write_bytes(whole.replace(b"Exif\0\0MM\0*", b"Exif\0\0MM\0!"))
    first = "of several pictures in it the first is taken"
    white = "its transparent parts are taken as white"
    return {
        "grey16.png": "",
        "rgb16.png": "",
        "cmyk.jpg": "",
        "palette.png": white,
        "palette.gif": "",
        "alpha.png": white,
        "greyalpha.png": white,
        "bits.png": "",
        "moving.gif": first,
        "moving.webp": first,
        "moving.png": first,
        "pages.tif": first,
        "phone.mpo": "",
        "wrong.jpg": "its content is PNG, whatever its ending says",
        "noending": "",
        "turned.jpg": "",
        "odd_exif.jpg": "",
        "broken_exif.jpg": "",
    }
