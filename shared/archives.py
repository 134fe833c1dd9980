"""Archives of images without checksums: unpacked while they are read to their ends. Serves ChestX-ray14."""

import gzip
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from shared.fetch import is_safe


class Damaged(Exception):
    """An archive that is cut, altered or none."""


def unpack(archive: Path, out: Path, suffix: str, tick: Callable[[], None]):
    """Files of a tar.gz that end in `suffix` -> out/NAME, whatever folder they have within it.

    The whole archive is read, so gzip's own length and CRC vouch for every byte. Until then the names end in .part:
    what a killed run leaves is no image. tick() is called for each member and may raise to stop.
    Raises Damaged, also for a path or a kind of member that an archive of images has no use for; OSError of the disk.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    try:
        with gzip.open(archive) as content, tarfile.open(fileobj=content, mode="r|") as tar:
            for member in tar:
                tick()
                if not member.isdir() and not (member.isreg() and is_safe(member.name)):
                    raise Damaged(f"unsafe member {member.name!r}")
                if member.isreg() and member.name.endswith(suffix):
                    member.name = PurePosixPath(member.name).name + ".part"
                    tar.extract(member, out, filter="data")
            while content.read(1 << 20):  # what follows the last member belongs to the proof
                tick()
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
        raise Damaged(f"{type(error).__name__}: {error}") from error
    for part in list(out.iterdir()):
        part.rename(part.with_suffix(""))
