"""Download of a Decathlon task: addresses and checksums of MONAI, resumed where a try was cut off."""

from __future__ import annotations

import json
import os
import shutil
import urllib.error
import urllib.request
from pathlib import Path

from monai.apps import DecathlonDataset
from monai.apps.utils import check_hash, extractall
from tqdm import tqdm

from droseg.errors import InputError

TASKS = tuple(DecathlonDataset.resource)
CHUNK = 1 << 20
TIMEOUT_S = 60


def download_task(task: str, root: Path, url: str | None = None, md5: str | None = None) -> Path:
    """Return the folder of a task below `root`, downloaded and unpacked as far as it is not there yet.

    MONAI's own `download_and_extract` begins at the first byte after every interruption, and takes a half unpacked
    folder for a whole one; so the file grows under the name TASK.tar.part, and a folder is renamed when it is whole.
    A folder that is there and not whole is somebody else's work, and is left alone.

    Args:
        task: name in MONAI's table.
        root: folder that keeps TASK.tar and TASK/.
        url: instead of that of MONAI's table.
        md5: instead of that of MONAI's table.
    Raises:
        InputError: if the download fails, the checksum is wrong, or the folder is there and not whole.
    """
    url, md5 = url or DecathlonDataset.resource[task], md5 or DecathlonDataset.md5[task]
    folder, tar = root / task, root / f"{task}.tar"
    if folder.exists():
        _check_whole(folder)
        print(f"{folder}: is there, not downloaded again")
        return folder
    if tar.is_file():
        print(f"{tar}: is there, not downloaded again")
        _check(tar, md5, url)
    else:
        _download(url, md5, tar)
    try:
        unpacked = root / f".{task}.part"
        shutil.rmtree(unpacked, ignore_errors=True)
        extractall(tar, unpacked, hash_val=None, file_type="tar", has_base=False)
        os.replace(unpacked / task, folder)
        shutil.rmtree(unpacked, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"{tar}: cannot be unpacked to {folder} ({reason}); free space there, and give the same command again."
        ) from error
    return folder


def _check_whole(folder: Path) -> None:
    """Refuse the folder of a task that lacks dataset.json, or files that this names."""
    ways = "move it away and give the same command again, or give it as SOURCE without --download if it is as you want"
    try:
        document = json.loads((folder / "dataset.json").read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise InputError(f"{folder}: is there without dataset.json, so it is not whole; {ways}.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}/dataset.json: cannot be read as JSON ({error}); {ways}.") from error
    keys = ("training", "test") if isinstance(document, dict) else ()  # what else is wrong, the converter says
    entries = [entry for key in keys for entry in document.get(key) or ()]
    named = [path for entry in entries for path in (entry.values() if isinstance(entry, dict) else (entry,))]
    missing = [str(path) for path in named if not (folder / str(path)).is_file()]
    if missing:
        count = f"{len(missing)} of the {len(named)} files that dataset.json names"
        raise InputError(f"{folder}: {count} are not there, {missing[0]} the first; {ways}.")


def _download(url: str, md5: str, tar: Path) -> None:
    """Fetch a tar, or the rest of it, and give it its name once its checksum is right."""
    part = tar.with_name(f"{tar.name}.part")
    try:
        tar.parent.mkdir(parents=True, exist_ok=True)
        fetch(url, part)
    except OSError as error:
        reason = getattr(error, "reason", None) or error.strerror or error
        raise InputError(
            f"{url}: download to {tar.parent} failed ({reason}); the same command goes on where it stopped."
        ) from error
    _check(part, md5, url)
    os.replace(part, tar)


def fetch(url: str, part: Path) -> None:
    """Download the rest of a file: all of it, or from the end of `part` on where the server can do that.

    Raises:
        OSError: if the connection fails or breaks off; what has arrived stays.
    """
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left to fetch
            return
        raise
    with response:
        resumed = have > 0 and response.status == 206
        if have:
            print(f"{part}: {have} bytes are there, " + ("going on" if resumed else "the server begins anew"))
        length = response.headers.get("Content-Length")
        total = int(length) + (have if resumed else 0) if length else None
        with (
            part.open("ab" if resumed else "wb") as file,
            tqdm(total=total, initial=have if resumed else 0, unit="B", unit_scale=True, desc=part.name) as bar,
        ):
            while block := response.read(CHUNK):
                file.write(block)
                bar.update(len(block))
    arrived = part.stat().st_size
    if total is not None and arrived < total:
        raise ConnectionError(None, f"broke off after {arrived} of {total} bytes")


def _check(path: Path, md5: str, url: str) -> None:
    """Refuse a file with another checksum, and remove it if it is a download."""
    if not check_hash(path, md5, "md5"):
        if path.suffix == ".part":
            path.unlink()
            raise InputError(f"{url}: the MD5 of the download is not {md5}; it was removed, try again.")
        raise InputError(f"{path}: its MD5 is not {md5} of MONAI's table; remove it and run the command again.")
