"""Files that no program should trust: one of each kind, and the line that `protect` says of it."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, features


def smooth(size=(40, 48)):
    """A picture that every format keeps about as it is: red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 200, size[0]), np.linspace(0, 200, size[1]))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 90)], -1).astype(np.uint8))


def encoded(kind, picture=None, **options):
    """A picture as the bytes of a file."""
    made = io.BytesIO()
    (picture or smooth()).save(made, kind, **options)
    return made.getvalue()


def scanned(times):
    """A progressive JPEG whose last scan is there so many times: sound, and hours of work if it is large."""
    whole = encoded("JPEG", quality=90, progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * times + b"\xff\xd9"


def chunk(name, data, check=None):
    """A chunk of a PNG; `check` is a wrong sum."""
    check = zlib.crc32(name + data) if check is None else check
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)


def png(size, bits, colour, rows, more=b""):
    """A PNG by hand: header, other chunks, pixels."""
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
    files = {
        "cut.jpg": (whole[: len(whole) // 2], "damaged or truncated"),
        "beheaded.jpg": (whole[:3], "damaged or truncated (its header cannot be read)"),
        "cut.png": (written[: len(written) // 2], "damaged or truncated"),
        "cut.webp": (encoded("WEBP", quality=92)[:200], "damaged or truncated"),
        "flipped.png": (written[:60] + bytes([written[60] ^ 255]) + written[61:], "damaged or truncated"),
        "zero.jpg": (b"", "empty"),
        "bomb.png": (bomb, "too many pixels (over 178000000)"),
        "scans.jpg": (scanned(3000), "too long to decode (a JPEG of over 100 scans)"),
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
        "wide.png": "too many pixels (8000 x 8000, over ",
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


def described(segment=b"", before=b"") -> bytes:
    """A JPEG with a segment of its application's behind the first, or in its place."""
    whole = encoded("JPEG", quality=92)
    return whole[:2] + (before + whole[20:] if before else segment + whole[2:])


def tiff(whole: bytes, *rows: tuple[int, int, int, int], after: int = 0) -> bytes:
    """A TIFF with other entries (tag, type, count, value) in its directory, and the place of the next one."""
    (at,) = struct.unpack_from("<I", whole, 4)
    (count,) = struct.unpack_from("<H", whole, at)
    entries = [struct.unpack_from("<HHII", whole, at + 2 + 12 * k) for k in range(count)]
    new = {entry[0]: entry for entry in [*entries, *rows]}
    table = b"".join(struct.pack("<HHII", *new[tag]) for tag in sorted(new))
    place = len(whole) + len(whole) % 2
    head = whole[:4] + struct.pack("<I", place) + whole[8:] + bytes(len(whole) % 2)
    return head + struct.pack("<H", len(new)) + table + struct.pack("<I", after)


def misdescribed() -> dict[str, bytes]:
    """Files whose pixels are those of `smooth`, and whose metadata, or what follows, is broken."""

    def segment(code, body):
        return b"\xff" + bytes([code]) + struct.pack(">H", len(body) + 2) + body

    whole, webp, zeros = encoded("PNG"), encoded("WEBP", quality=92), zlib.compress(bytes(2**22))
    other = Image.new("RGB", smooth().size, (0, 0, 255))
    moving = {"save_all": True, "append_images": [other, other]}
    files = {
        "jfif.jpg": described(before=segment(0xE0, b"JFIF")),
        "adobe.jpg": described(segment(0xEE, b"Adobe")),
        "icc.jpg": described(segment(0xE2, b"ICC_PROFILE\0")),
        "mpf.jpg": described(segment(0xE2, b"MPF\0" + b"\xff" * 30)),
        "photoshop.jpg": described(segment(0xED, b"Photoshop 3.0\x008BIM\3")),
        "xmp.jpg": described(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff<tiff:Orientation>9")),
        "comment.jpg": described(segment(0xFE, b"\xff\xd9\xff\xda" * 99)),
        "film.jpg": described() + b"\0\0\0\x18ftypmp42" + b"\xff\xda" * 999,
        "junk.png": whole + b"junk",
        "junk.webp": webp + b"junk" * 9,
        "profile.webp": encoded("WEBP", quality=92, icc_profile=b"\xff" * 9),
        "cut.webp": encoded("WEBP", quality=92, exif=b"Exif\0\0MM\0*" + bytes(900))[:-300],
        "second.webp": encoded("WEBP", quality=92, **moving)[:-30],
        "second.gif": encoded("GIF", **moving)[:-40],
        "second.png": encoded("PNG", **moving)[:-60],
    }
    chunks = {
        "text": chunk(b"zTXt", b"a\0\0" + zeros),
        "profile": chunk(b"iCCP", b""),
        "bomb": chunk(b"iCCP", b"x\0\0" + zeros),
        "sum": chunk(b"tEXt", b"a\0b", check=5),
        "words": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\5\0\0\xff"),
        "size": chunk(b"pHYs", b"\0"),
        "gamma": chunk(b"gAMA", b""),
        "frames": chunk(b"acTL", b"\0"),
    }
    files |= {f"{name}.png": whole[:33] + made + whole[33:] for name, made in chunks.items()}
    entries = {
        "exif": (34665, 4, 1, 2**31),
        "place": (34853, 4, 1, 3),
        "size": (282, 2, 4, 0x41414141),
        "profile": (34675, 12, 2, 9),
        "turn": (274, 2, 4, 0x41414141),
        "xmp": (700, 5, 1, 2**31),
    }
    for name, options in {"raw": {}, "lzw": {"compression": "tiff_lzw"}}.items():
        plain = encoded("TIFF", **options)
        files |= {f"{entry}_{name}.tif": tiff(plain, row) for entry, row in entries.items()}
        files[f"next_{name}.tif"] = tiff(plain, after=2**31 - 5)
    broken = [
        b"",
        b"MM\0!" + bytes(20),
        bytes(16),
        b"II*\0\xff\xff\xff\x7f",
        b"MM\0*\0\0\0\x08\xff\xff" + bytes(9),
    ]
    broken.append(b"MM\0*\0\0\0\x08\0\1\x01\x12\0\5\0\0\0\1\xff\xff\xff\xff\0\0\0\0")  # a turn by a fraction
    exif = Image.Exif()
    exif[0x010E] = "described in words"
    for number, data in enumerate(broken):
        files[f"exif{number}.jpg"] = described(segment(0xE1, b"Exif\0\0" + data))
        files[f"exif{number}.png"] = whole[:33] + chunk(b"eXIf", data) + whole[33:]
        files[f"exif{number}.webp"] = encoded("WEBP", quality=92, exif=b"Exif\0\0" + data)
        if features.check("avif"):
            sound, length = encoded("AVIF", exif=exif.tobytes()), len(exif.tobytes()) - 6
            at = max(sound.find(b"MM\0*"), sound.find(b"II*\0"))
            files[f"exif{number}.avif"] = sound[:at] + (data + bytes(length))[:length] + sound[at + length :]
    return files
