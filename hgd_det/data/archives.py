"""Unpacks archives that may be hostile: only plain files, only below the target, only so much."""
from __future__ import annotations

import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from hgd_det.errors import UserError
from hgd_det.paths import unsafe

MAX_FILES = 500_000
MAX_BYTES = 64 << 30
CHUNK = 1 << 20
HEADER = 1 << 16  # bytes of a long name, or of other fields beside a tar's own


def extract(archive: Path, into: Path, place: Callable[[str], str | None], *,
            max_files: int = MAX_FILES, max_bytes: int = MAX_BYTES, progress: bool = True) -> int:
    """Write the members that `place` gives a relative path to; returns how many.

    An archive with a path that escapes, a link or a device among its members is refused as a
    whole: it is not what it claims to be. Nothing is trusted from the members but their bytes
    (no modes, owners, or times).
    """
    from tqdm import tqdm
    count = total = seen = 0
    try:
        with tqdm(desc=f'unpack {archive.name}', unit='file',
                  disable=None if progress else True) as bar:
            for name, size, opened in _members(archive):
                bar.update()
                seen += 1
                if seen > max_files:
                    raise UserError(f'{archive}: more than {max_files} files')
                relative = place(name)
                if relative is None:
                    continue
                total += size
                if total > max_bytes:
                    raise UserError(f'{archive}: more than {max_bytes} bytes when unpacked')
                assert not unsafe(relative), relative
                target = into / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened() as source, open(target, 'wb') as file:
                    left = size
                    while left and (block := source.read(min(CHUNK, left))):
                        file.write(block)
                        left -= len(block)
                if left:
                    raise UserError(f'{archive}: ends inside {name}; fetch it again')
                count += 1
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, NotImplementedError,
            RuntimeError, ValueError, zlib.error, lzma.LZMAError, struct.error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f'{archive} cannot be unpacked: {error}') from error
    return count


def _members(archive: Path):
    """(name, size, function that opens it) of every regular file; refuses what is no plain file."""
    def refuse(name, what):
        raise UserError(f'{archive}: member {name!r} is {what}; this archive is not trusted and '
                        'was not unpacked')

    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            infos = packed.infolist()
            for info in infos:  # all names first: nothing is written from an archive that lies
                mode = stat.S_IFMT(info.external_attr >> 16)
                if unsafe(info.filename):
                    refuse(info.filename, 'outside of the target')
                if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
                    refuse(info.filename, 'a link or a device')
            for info in infos:
                if not info.is_dir():
                    yield info.filename, info.file_size, lambda info=info: packed.open(info)
        return
    with tarfile.open(archive, 'r:*', tarinfo=_Member) as packed:
        for member in packed:
            if unsafe(member.name):
                refuse(member.name, 'outside of the target')
            if member.issparse() or not (member.isreg() or member.isdir()):
                refuse(member.name, 'a link, a device or a file with holes')
            if member.isreg():
                yield member.name, member.size, lambda member=member: packed.extractfile(member)


class _Member(tarfile.TarInfo):
    """A tar's header, looked at before Python's reader takes its word for how much to read or skip."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        member = super().frombuf(buf, encoding, errors)
        more = member.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE,
                               tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        if member.size < 0 or (more and member.size > HEADER):
            raise tarfile.ReadError(f'a header claims {member.size} bytes')
        return member
