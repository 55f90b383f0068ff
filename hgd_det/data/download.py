"""Resumable, checksummed download of one file over HTTP, with nothing but the standard library."""
from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path

from hgd_det.errors import UserError

CHUNK = 1 << 20


class Unreachable(Exception):
    """The network or the server did not give the file; what is there so far is kept."""


def md5_of(path: Path, progress: bool = False) -> str:
    from tqdm import tqdm
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, 'rb') as file, tqdm(
            total=path.stat().st_size, desc=f'checksum {path.name}', unit='B', unit_scale=True,
            disable=None if progress else True) as bar:
        while block := file.read(CHUNK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def verify(path: Path, md5: str | None, progress: bool = False) -> None:
    if md5 is None:
        return
    got = md5_of(path, progress)
    if got != md5:
        raise UserError(
            f'{path} is damaged or another file: its md5 is {got}, wanted {md5}. Remove it and '
            'fetch it again, or take it as it is with --no-checksum')


def fetch(url: str, target: Path, md5: str | None = None, *, tries: int = 4, wait: float = 2.,
          timeout: float = 30., progress: bool = True) -> None:
    """Download `url` to `target`.

    Bytes go to `target.part`, which a later call or another try continues (HTTP Range). The file
    takes its name only when it is complete and its checksum agrees; a wrong one is removed.
    """
    if not url.startswith(('http://', 'https://')):
        raise UserError(f'{url}: only http and https addresses are downloaded')
    part = target.with_name(target.name + '.part')
    target.parent.mkdir(parents=True, exist_ok=True)
    for turn in range(tries):
        try:
            _continue(url, part, timeout, progress)
            break
        except urllib.error.HTTPError as error:
            if error.code == 416 and part.exists():
                # Asked for bytes past the end: the part is whole, or it is not of this file.
                if error.headers.get('Content-Range', '') == f'bytes */{part.stat().st_size}':
                    break
                part.unlink()
            elif error.code < 500:
                raise Unreachable(f'{url}: {error.code} {error.reason}') from None
            problem = error
        except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
            problem = error
        if turn + 1 == tries:
            raise Unreachable(f'{url}: {getattr(problem, "reason", problem)}')
        time.sleep(wait * 2 ** turn)
    try:
        verify(part, md5, progress)
    except UserError:
        part.unlink()
        raise UserError(f'{url} gave a file whose md5 is not {md5}; it was removed. Try again, '
                        'another --mirror, or --no-checksum') from None
    os.replace(part, target)


def _continue(url: str, part: Path, timeout: float, progress: bool) -> None:
    from tqdm import tqdm
    have = part.stat().st_size if part.exists() else 0
    headers = {'User-Agent': 'hgd-det', 'Accept-Encoding': 'identity'}
    if have:
        headers['Range'] = f'bytes={have}-'
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        resumed = answer.status == 206 and answer.headers.get(
            'Content-Range', '').startswith(f'bytes {have}-')
        if answer.status == 206 and not resumed:
            part.unlink()
            raise OSError(f'asked for bytes from {have}, got '
                          f'{answer.headers.get("Content-Range")}')
        if not resumed:  # the server knows no ranges: from the start
            have = 0
        length = answer.headers.get('Content-Length')
        total = have + int(length) if length is not None else None
        free = shutil.disk_usage(part.parent).free
        if total is not None and total - have > free:
            raise UserError(f'{part.name}: {total - have} bytes to come, {free} free on the disk')
        with open(part, 'ab' if resumed else 'wb') as file, tqdm(
                total=total, initial=have, desc=part.stem, unit='B', unit_scale=True,
                disable=None if progress else True) as bar:
            while block := answer.read(CHUNK):
                file.write(block)
                bar.update(len(block))
            size = file.tell()
    if total is not None and size != total:
        raise OSError(f'the connection ended after {size} of {total} bytes')
