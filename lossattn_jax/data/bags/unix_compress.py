"""Files that Unix' `compress` made (`.Z`), which Python's library cannot read."""

MAGIC = b"\x1f\x9d"  # how they begin


def uncompress(content: bytes, most: int = 1 << 30) -> bytes:
    """Undoes Unix' `compress`, which UCI's MUSK files (`.Z`) were made with in 1994.

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
    out, size = [], 0
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
            out.append(word)
            size += len(word)
            if size > most:
                raise ValueError(f"more than {most} bytes come out")
            if before and len(table) < 1 << largest:
                table.append(before + word[:1])
            before = word
        wanted = 9 if code == clear else width + (len(table) >= 1 << width and width < largest)
        if wanted != width or code == clear:
            at = start = at + (start - at) % (8 * width)
            width = wanted
    return b"".join(out)
