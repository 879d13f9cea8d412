"""The guest: Debian's kernel, busybox and mdadm, fetched by apt and made into what QEMU boots. Kept in a cache of the user's.

`python tests/kernel/guest.py` makes it and says what it is. This file is the recipe: when it changes, the guest is made anew.
"""

import dataclasses
import fcntl
import hashlib
import lzma
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("busybox-static", "mdadm", "libc6", "libudev1", "libcap2")  # beside the kernel; the libraries are mdadm's
# One that a kernel does not have is built into it, or gone (linear, since 6.8).
MODULES = ("virtio_pci", "virtio_scsi", "sd_mod", "crc32c_generic", "md_mod", "linear", "raid0", "raid1", "raid10", "raid456")
LIBRARIES = ("ld-linux-x86-64.so.2", "libc.so.6", "libudev.so.1", "libcap.so.2")
KEPT_DAYS = 7
READY = "@@ ready"  # the guest's first line; what its kernel and the firmware print before it is of no interest

# Arrays start in auto-read-only: nothing of the kernel's own moves before the script has looked.
INIT = f"""#!/bin/sh
export PATH=/bin:/sbin HOME=/ MDADM_NO_UDEV=1 MDADM_NO_SYSTEMCTL=1 MDADM_NO_MDMON=1
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
while read name; do insmod /modules/$name || echo "@@ cannot load $name"; done </modules/order
echo 1 >/sys/module/md_mod/parameters/start_ro
stty -F /dev/console -opost -echo
echo '{READY}'
sh /script </dev/null 2>&1
poweroff -f
"""


class GuestError(Exception):
    """The guest cannot be made, or does not run; the text says why, and what to do."""


@dataclasses.dataclass(frozen=True)
class Guest:
    """What QEMU boots."""

    kernel: Path
    initrd: Path
    versions: str


def prepare() -> Guest:
    """The guest, from the cache or made now. One process makes it, others wait."""
    key = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raidlib-kernel"
    folder = cache / key
    guest = Guest(folder / "kernel", folder / "initrd", "")
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _drop_old(cache)
            with tempfile.TemporaryDirectory(dir=cache) as scratch:
                made = Path(scratch) / "made"
                made.mkdir()
                _make(Path(scratch), made)
                made.rename(folder)
        os.utime(folder)
    return dataclasses.replace(guest, versions=(folder / "versions").read_text().strip())


def _drop_old(cache: Path) -> None:
    """Guests of other recipes that nobody has used for a while; a younger one may be another source tree's."""
    for path in cache.iterdir():
        if path.is_dir() and time.time() - path.stat().st_mtime > KEPT_DAYS * 86400:
            shutil.rmtree(path)


def _make(scratch: Path, made: Path) -> None:
    debs = _fetch(scratch)
    root = scratch / "root"
    for deb in debs:
        _run("dpkg-deb", "-x", str(deb), str(root))
    (made / "kernel").write_bytes(unpacked_kernel(_one(root, "boot/vmlinuz-*").read_bytes()))
    (made / "initrd").write_bytes(archive(_files(root)))
    (made / "versions").write_text(" ".join(deb.name.removesuffix(".deb") for deb in debs))


def _run(*command: str, cwd: Path | None = None) -> str:
    try:
        ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    except FileNotFoundError:
        raise GuestError(f"{command[0]} is not there: the guest is made of Debian's packages, on Debian or a system like it") from None
    if ran.returncode:
        raise GuestError(f"{' '.join(command)} ended with {ran.returncode}:\n{ran.stderr or ran.stdout}")
    return ran.stdout


def _fetch(scratch: Path) -> list[Path]:
    """Downloads the packages; where apt's lists are missing or old, root gets new ones first."""
    if (machine := _run("dpkg", "--print-architecture").strip()) != "amd64":
        raise GuestError(f"the guest is made of packages for amd64, and apt here gives those for {machine}")
    options = ("-o", "DPkg::Lock::Timeout=300", "-o", "APT::Sandbox::User=root") if os.geteuid() == 0 else ()
    for attempt in (1, 2):
        try:
            depends = _run("apt-cache", "depends", "linux-image-amd64")
            kernel = re.search(r"Depends: (linux-image-\S+)", depends)
            if kernel is None:
                raise GuestError("apt knows no linux-image-amd64")
            _run("apt-get", *options, "download", *PACKAGES, kernel[1], cwd=scratch)
        except GuestError as error:
            if attempt == 2 or os.geteuid() != 0:
                raise GuestError(f"{error}\nthe packages of the guest could not be fetched; as root: apt-get update") from None
            _run("apt-get", *options, "update")
        else:
            break
    return sorted(scratch.glob("*.deb"))


def _one(root: Path, pattern: str) -> Path:
    """The first file of that pattern, wherever this release of Debian puts it (with or without /usr)."""
    found = sorted(path for prefix in ("", "usr/") for path in root.glob(prefix + pattern))
    if not found:
        raise GuestError(f"the packages of the guest hold no {pattern}")
    return found[0]


def unpacked_kernel(image: bytes) -> bytes:
    """The ELF image inside a bzImage, which QEMU starts without the (slow, when emulated) unpacking; else the image as it is."""
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)  # payload_offset, payload_length of the boot protocol
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + length]
    if not payload.startswith(b"\xfd7zXZ\0"):
        return image
    return lzma.LZMADecompressor().decompress(payload)


def _modules(root: Path) -> Iterator[tuple[str, bytes]]:
    """MODULES and what they need, in the order of loading."""
    paths = {re.sub(r"\.ko(\.xz)?$", "", p.name).replace("-", "_"): p for p in root.glob("**/lib/modules/**/*.ko*")}
    done: set[str] = set()

    def visit(name: str) -> Iterator[tuple[str, bytes]]:
        if name in done or name not in paths:
            return
        done.add(name)
        data = paths[name].read_bytes()
        data = lzma.decompress(data) if paths[name].suffix == ".xz" else data
        if depends := re.search(rb"\0depends=([^\0]*)\0", data):
            for other in depends[1].decode().split(","):
                yield from visit(other.replace("-", "_"))
        yield f"{name}.ko", data

    for name in MODULES:
        yield from visit(name)


def _files(root: Path) -> dict[str, bytes | str]:
    """Name -> content, or, as text, where a symbolic link points to."""
    files: dict[str, bytes | str] = {"init": INIT.encode(), "bin/busybox": _one(root, "bin/busybox").read_bytes(), "bin/sh": "busybox"}
    files["sbin/mdadm"] = _one(root, "sbin/mdadm").read_bytes()
    for name in LIBRARIES:
        files[f"lib/{name}"] = _one(root, f"lib/x86_64-linux-gnu/{name}").read_bytes()
    files["lib64"] = "lib"
    modules = dict(_modules(root))
    files |= {f"modules/{name}": data for name, data in modules.items()}
    files["modules/order"] = "".join(f"{name}\n" for name in modules).encode()
    return files | dict.fromkeys(("proc/", "sys/", "dev/", "run/mdadm/", "etc/", "tmp/"), b"")


def archive(files: dict[str, bytes | str]) -> bytes:
    """A cpio archive ("newc") of files that may be executed. Several of them one after another are one initial RAM disk."""
    out, folders = bytearray(), {""}

    def entry(name: str, mode: int, content: bytes) -> None:
        numbers = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        for part in (b"070701" + b"".join(b"%08x" % number for number in numbers) + name.encode() + b"\0", content):
            out.extend(part + bytes(-len(part) % 4))

    for name, content in files.items():
        parts = name.split("/")
        for folder in ("/".join(parts[:depth]) for depth in range(1, len(parts))):
            if folder not in folders:
                folders.add(folder)
                entry(folder, stat.S_IFDIR | 0o755, b"")
        if isinstance(content, str):
            entry(name, stat.S_IFLNK | 0o777, content.encode())
        elif not name.endswith("/"):
            entry(name, stat.S_IFREG | 0o755, content)
    entry("TRAILER!!!", 0, b"")
    return bytes(out)


if __name__ == "__main__":
    try:
        print(prepare())
    except GuestError as error:
        print(f"raidlib: {error}", file=sys.stderr)
        sys.exit(69)
