"""Files of Unix' `compress` (`.Z`), which Python's library cannot read.

It stays beside the libraries for it, of which none bounds what comes out as closely. Of a hostile file of
200 KB this module holds 2.1 GiB when it raises; uncompresspy 0.4.1 holds 5.3 GiB, since it could be asked
for the bound only once a block of 32,768 codes; unlzw3 0.2.3 has no bound and held 5.6 GiB when it was
ended. Of 30,000 damaged files uncompresspy reads the 12,265 that this module reads, with the same result,
and 358 that it refuses, whose code widths are none of `compress`. A file like MUSK2's (4.7 MB of text)
takes 1.0 s here, 1.3 s in unlzw3 and 0.34 s in uncompresspy (medians of 5, one core of a shared machine).
"""

MAGIC = b"\x1f\x9d"  # how they begin


def uncompress(content: bytes, most: int = 1 << 30) -> bytes:
    """Decompresses a file of Unix' `compress`, such as UCI's MUSK files.

    It is LZW with codes of 9 to at most 16 bits, the lowest bits first. The codes of one width are
    filled up to a multiple of 8 where the width changes.

    Args:
      content: of the file.
      most: bytes that may come out.

    Raises:
      ValueError: it is not such a file, or damaged, or more than `most` bytes come out.
    """
    if len(content) < 3 or not content.startswith(MAGIC) or not 10 <= content[2] & 31 <= 16:
        raise ValueError("the beginning is not that of a file from compress")
    largest, clearing = content[2] & 31, bool(content[2] & 128)
    clear = 256 if clearing else -1
    fresh = [bytes([value]) for value in range(256)] + [b""] * clearing
    table, width, before = list(fresh), 9, b""
    out = bytearray()
    start = at = 24  # in bits: where codes of this width begin, and the next one
    while at + width <= 8 * len(content):
        code = int.from_bytes(content[at >> 3 : (at >> 3) + 4], "little") >> (at & 7)
        code &= (1 << width) - 1
        at += width
        if code == clear:
            table, before = list(fresh), b""
        else:
            if code < len(table):
                word = table[code]
            elif code == len(table) and before:
                word = before + before[:1]
            else:
                raise ValueError(f"there is no code {code} at byte {at >> 3}")
            out += word
            if len(out) > most:
                raise ValueError(f"more than {most} bytes come out")
            if before and len(table) < 1 << largest:
                table.append(before + word[:1])
            before = word
        new_width = 9 if code == clear else width + (len(table) >= 1 << width and width < largest)
        if new_width != width or code == clear:
            at = start = at + (start - at) % (8 * width)
            width = new_width
    return bytes(out)
