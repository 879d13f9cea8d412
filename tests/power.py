"""Disks whose power can be cut.

What was flushed is there afterwards; of what was written since, any part: 4096 bytes whole or not at all.
"""

import random
import threading

from test_array import SIZE, Disk


class Rig:
    """The log of what all its disks were asked, in order."""

    def __init__(self):
        self.log: list[tuple] = []
        self.disks: list[Disk] = []
        self.lock = threading.Lock()

    def disk(self, size=SIZE):
        disk = RigDisk(self, size)
        self.disks.append(disk)
        return disk

    def mark(self) -> int:
        """The moment that it is now, to be cut at later."""
        return len(self.log)

    def cut(self, moment: int, seed: int, disks=None) -> list[bytes]:
        """The disks' content after a power cut at that moment of the log."""
        draw = random.Random(seed)
        images = []
        for disk in disks or self.disks:
            image, pending = bytearray(disk.born), []
            for what, who, offset, data in self.log[:moment]:
                if who is not disk:
                    continue
                if what == "flush":
                    for at, block in pending:
                        image[at : at + len(block)] = block
                    pending.clear()
                else:
                    pending += [(offset + at, data[at : at + 4096]) for at in range(0, len(data), 4096)]
            chance = draw.choice([0.0, 0.5, 1.0])
            for at, block in pending:
                if draw.random() < chance:
                    image[at : at + len(block)] = block
            images.append(bytes(image))
        return images


class RigDisk(Disk):
    """One of them."""

    def __init__(self, rig, size=SIZE):
        super().__init__(size)
        self.rig = rig
        self.born = bytes(size)

    def settle(self):
        """Its content as of now is what it began with: the log before this moment is not needed any more."""
        self.born = bytes(self.data)

    def pwrite(self, data, offset):
        super().pwrite(data, offset)
        with self.rig.lock:
            self.rig.log.append(("write", self, offset, bytes(data)))

    def flush(self):
        super().flush()
        with self.rig.lock:
            self.rig.log.append(("flush", self, 0, b""))
