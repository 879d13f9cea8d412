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

DISKS_MAX = 160
MEMORY_MIB = 384
ACCELERATOR = os.environ.get("RAIDLIB_QEMU_ACCEL", "tcg")  # emulation works everywhere; "kvm" is fast where it works
BOOT_TIMEOUT_S = 900  # the kernel finds 150 disks one after the other; beside other work that takes minutes
SILENCE_TIMEOUT_S = 120  # the longest that a script may print nothing


# The kernel names the disks as it finds them; their places on the bus tell which is which.
DISKS = """
set --
until [ $# = {count} ]; do set -- /sys/class/scsi_device/*/device/block/*; done
for found; do
    place=${{found#*/0:0:0:}}
    eval "D${{place%%/*}}=/dev/${{found##*/}}"
done
"""


def _command(guest: Guest, initrd: str, disks: Sequence[Path], read_only: Collection[Path]) -> list[str]:
    words = (
        "console=ttyS0 quiet loglevel=1 panic=-1 nokaslr mitigations=off tsc=reliable no_timer_check cryptomgr.notests raid=noautodetect"
    )
    command = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"]  # the machine does not outlive us
    command += ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"]
    command += ["-machine", "pc,usb=off", "-accel", ACCELERATOR, "-cpu", "max", "-smp", "1", "-m", str(MEMORY_MIB)]
    command += ["-kernel", str(guest.kernel), "-initrd", initrd, "-append", words]
    command += ["-device", "virtio-scsi-pci,num_queues=1"]
    for index, disk in enumerate(disks):
        path = str(disk).replace(",", ",,")  # cache=unsafe: the guest's flushes end in the host's page cache, where we read as well
        access = "on" if disk in read_only else "off"
        command += ["-drive", f"file={path},format=raw,if=none,id=d{index},cache=unsafe,readonly={access}"]
        command += ["-device", f"scsi-hd,drive=d{index},lun={index}"]
    return command


def run(guest: Guest, disks: Sequence[Path], script: str, read_only: Collection[Path] = ()) -> tuple[str, bool]:
    """Boots, runs the script, in which $D0, $D1, … are the disks. Its output (and why it ended early), and whether it came to its end."""
    assert len(disks) <= DISKS_MAX
    whole = f"{DISKS.format(count=len(disks))}\n{script}\necho '{READY}'\n"
    with tempfile.TemporaryDirectory(prefix="raidlib-kernel-") as scratch, tempfile.TemporaryFile("w+") as complaints:
        initrd = Path(scratch) / "initrd"
        initrd.write_bytes(guest.initrd.read_bytes() + archive({"script": whole.encode()}))
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
