"Pictures as other tools store them: palettes, transparent colours, 16 bits; each pixel has the value that was meant."
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from gslrm_mouse.views.views import read_rgba

H, W = 5, 7
GREY = (np.arange(H*W).reshape(H, W)*7).astype(np.uint8) # no value twice
INSIDE = np.zeros((H, W), bool)
INSIDE[1:4, 2:5] = True


def png(path, color_type, bits, rows, **chunks): # written by hand, by the specification of PNG
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", W, H, bits, color_type, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    more = b"".join(chunk(kind.encode(), data) for kind, data in chunks.items())
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + more + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    return path


def assert_reads(path, colour, alpha, **options):
    rgba = read_rgba(path, (W, H), "camera 0", **options)
    assert rgba.dtype == np.uint8 and np.array_equal(rgba[..., 3], alpha)
    colour = colour if colour.ndim == 3 else np.repeat(colour[..., None], 3, -1)
    assert np.array_equal(rgba[alpha > 0][:, :3], colour[alpha > 0])


def test_palette(tmp_path):
    "Entry 0 is transparent, entry 3 half, the others are opaque."
    index = np.where(INSIDE, 1 + np.arange(W) % 3, 0).astype(np.uint8)
    palette = np.array([[9, 9, 9], [250, 10, 20], [30, 240, 50], [60, 70, 230]], np.uint8)
    alphas = np.array([0, 255, 255, 128], np.uint8)
    path = png(tmp_path/"a.png", 3, 8, index, PLTE=palette.tobytes(), tRNS=alphas.tobytes())
    assert_reads(path, palette[index], alphas[index])
    path = png(tmp_path/"b.png", 3, 8, index, PLTE=palette.tobytes(), tRNS=b"\0") # shorter than the palette
    assert_reads(path, palette[index], np.where(index == 0, 0, 255))
    path = png(tmp_path/"c.png", 3, 8, index, PLTE=palette.tobytes())
    with pytest.raises(ValueError, match="no alpha channel"): read_rgba(path, (W, H), "camera 0")


def test_one_transparent_colour(tmp_path):
    rgb = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], -1)
    rgb[~INSIDE] = 1, 2, 3
    assert_reads(png(tmp_path/"rgb.png", 2, 8, rgb, tRNS=struct.pack(">3H", 1, 2, 3)), rgb, 255*INSIDE)
    grey = np.where(INSIDE, GREY, 200).astype(np.uint8)
    assert_reads(png(tmp_path/"grey.png", 0, 8, grey, tRNS=struct.pack(">H", 200)), grey, 255*INSIDE)


def test_sixteen_bits(tmp_path):
    "The high byte of each value; the transparent value is compared in 16 bits."
    deep = (GREY.astype(np.uint16)*256 + 77).astype(">u2")
    alpha = 255*INSIDE
    mask = tmp_path/"mask.png"
    Image.fromarray(alpha.astype(np.uint8)).save(mask)
    assert_reads(png(tmp_path/"grey.png", 0, 16, deep), GREY, alpha, mask=mask)
    Image.fromarray(deep.astype("<u2")).save(tmp_path/"grey.tif")
    assert_reads(tmp_path/"grey.tif", GREY, alpha, mask=mask)
    keyed = np.where(INSIDE, deep, 51200 + 5).astype(">u2")
    keyed[2, 3] = 51200 + 9 # another value with the same high byte is opaque
    colour = (keyed >> 8).astype(np.uint8)
    assert_reads(png(tmp_path/"keyed.png", 0, 16, keyed, tRNS=struct.pack(">H", 51200 + 5)), colour, alpha)
    with_alpha = np.stack([deep, alpha*257], -1).astype(">u2")
    assert_reads(png(tmp_path/"la.png", 4, 16, with_alpha), GREY, alpha)
    rgba = np.stack([deep, deep[::-1], deep, alpha*257], -1).astype(">u2")
    assert_reads(png(tmp_path/"rgba.png", 6, 16, rgba), (rgba[..., :3] >> 8).astype(np.uint8), alpha)


def test_sixteen_bit_masks(tmp_path):
    deep = (INSIDE*np.uint16(1000)).astype(">u2") # of a tool that uses a part of the range
    Image.fromarray(GREY).save(tmp_path/"grey.png")
    assert_reads(tmp_path/"grey.png", GREY, 255*INSIDE, mask=png(tmp_path/"mask.png", 0, 16, deep))


def test_more_values_than_a_picture_has(tmp_path):
    Image.fromarray(GREY.astype(np.int32)*100000).save(tmp_path/"a.tif")
    Image.fromarray(GREY/255.).convert("F").save(tmp_path/"b.tif")
    for name in "a.tif", "b.tif":
        with pytest.raises(ValueError, match="8 or 16 bits"): read_rgba(tmp_path/name, (W, H), "camera 0", 1.)


def test_a_deep_transparent_colour(tmp_path):
    rgb = np.stack([GREY.astype(int)*256]*3, -1).astype(">u2")
    path = png(tmp_path/"a.png", 2, 16, rgb, tRNS=struct.pack(">3H", 2560, 2560, 2560))
    with pytest.raises(ValueError, match="a transparent colour of 16 bits"): read_rgba(path, (W, H), "camera 0")
