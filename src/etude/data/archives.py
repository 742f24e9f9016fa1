"""Bounds of tar archives that are read as a stream."""

import tarfile
from collections.abc import Callable, Iterator

LARGEST_MEMBER = 1 << 29
"""Bytes of one file: a picture of 64 million pixels of 8 bytes."""
_LARGEST_HEADER = 1 << 20
_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class Bounded(tarfile.TarInfo):
    """A member of a size that can be; for ``tarfile.open(..., tarinfo=Bounded)``.

    Of a size that a header makes up Python skips a stream's bytes one block after the other, to its end and for years
    beyond it; and what a header says of the next one is read into memory whole.

    Raises:
        tarfile.ReadError: while members are listed, at the first that is too large.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "Bounded":
        made = super().frombuf(buf, encoding, errors)
        if not 0 <= made.size <= (_LARGEST_HEADER if made.type in _HEADERS else LARGEST_MEMBER):
            raise tarfile.ReadError(f"a member of {made.size:,} bytes")
        return made


def members(archive: tarfile.TarFile) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Names and readers of the files of an archive that is read as a stream, in its order.

    Raises:
        tarfile.ReadError: by a reader, of a sparse file, which has another size than its header says.
    """
    for member in archive:
        if member.isfile():

            def body(member: tarfile.TarInfo = member) -> bytes:
                if member.size > LARGEST_MEMBER:
                    raise tarfile.ReadError(f"a member of {member.size:,} bytes")
                file = archive.extractfile(member)
                assert file is not None, "a file has contents"
                return file.read()

            yield member.name, body
