"""One boot of the guest: disks in, a script run by busybox's sh as root, what it printed out."""

import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from guest import READY, Guest, GuestError, archive

DISKS_MAX = 80  # two interrupts each, and one processor of the guest has some 200
MEMORY_MIB = 384
ACCELERATOR = os.environ.get("RAIDLIB_QEMU_ACCEL", "tcg")  # emulation works everywhere; "kvm" is fast where it works
BOOT_TIMEOUT_S = 180
SILENCE_TIMEOUT_S = 120  # the longest that a script may print nothing


def disk_name(index: int) -> str:
    """What the guest calls its disk of that number: /dev/vda, …, /dev/vdz, /dev/vdaa, …"""
    letters = ""
    index += 1
    while index:
        index, letter = divmod(index - 1, 26)
        letters = chr(ord("a") + letter) + letters
    return f"/dev/vd{letters}"


def _command(guest: Guest, initrd: str, disks: Sequence[Path], read_only: Collection[Path]) -> list[str]:
    words = (
        "console=ttyS0 quiet loglevel=1 panic=-1 nokaslr mitigations=off tsc=reliable no_timer_check cryptomgr.notests raid=noautodetect"
    )
    command = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"]  # the machine does not outlive us
    command += ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"]
    command += ["-machine", "pc,usb=off", "-accel", ACCELERATOR, "-cpu", "max", "-smp", "1", "-m", str(MEMORY_MIB)]
    command += ["-kernel", str(guest.kernel), "-initrd", initrd, "-append", words]
    for index, disk in enumerate(disks):
        path = str(disk).replace(",", ",,")  # cache=unsafe: the guest's flushes end in the host's page cache, where we read as well
        command += ["-drive", f"file={path},format=raw,if=none,id=d{index},cache=unsafe,readonly={'on' if disk in read_only else 'off'}"]
        # eight disks to a slot of the bus; Linux names them in the order of their places
        place = f"{2 + index // 8:#x}.{index % 8}"
        command += ["-device", f"virtio-blk-pci,drive=d{index},addr={place},multifunction=on,num-queues=1,disable-legacy=on"]
    return command


def run(guest: Guest, disks: Sequence[Path], script: str, read_only: Collection[Path] = ()) -> tuple[str, bool]:
    """Boots and runs the script. Its output, and whether it came to its end; where not, the output says why."""
    assert len(disks) <= DISKS_MAX
    with tempfile.TemporaryDirectory(prefix="raidlib-kernel-") as scratch, tempfile.TemporaryFile("w+") as complaints:
        initrd = Path(scratch) / "initrd"
        initrd.write_bytes(guest.initrd.read_bytes() + archive({"script": f"{script}\necho '{READY}'\n".encode()}))
        command = _command(guest, str(initrd), disks, read_only)
        try:
            machine = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints, start_new_session=True)
        except FileNotFoundError:
            raise GuestError("qemu-system-x86_64 is not there; as root: scripts/setup-packages kernel") from None
        try:
            output, why = _listen(machine)
        finally:
            if machine.poll() is None:
                machine.send_signal(signal.SIGKILL)
            machine.wait()
            machine.stdout.close()
        complaints.seek(0)
        before, ready, rest = output.partition(READY)
        if not ready:
            raise GuestError(f"the guest did not start ({why}):\n{before[-4000:]}\n{complaints.read()}")
        text, ended, _ = rest.partition(READY)
        return (text, True) if ended else (f"{text}\n{why}\n{complaints.read()}", False)


def _listen(machine: subprocess.Popen[bytes]) -> tuple[str, str]:
    """All that comes over the serial line, and why it ended."""
    assert machine.stdout is not None
    output, started = bytearray(), time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(machine.stdout, selectors.EVENT_READ)
        while True:
            booted = READY.encode() in output
            left = SILENCE_TIMEOUT_S if booted else BOOT_TIMEOUT_S + started - time.monotonic()
            if not selector.select(max(left, 0)):
                return output.decode(errors="replace"), f"no sign of life for {SILENCE_TIMEOUT_S if booted else BOOT_TIMEOUT_S} s"
            data = machine.stdout.read1(1 << 16)
            if not data:
                return output.decode(errors="replace"), "the machine stopped"
            output += data
