"""The exceptions: each has a message that says what is wrong and the way out, an errno where one fits, and an exit code.

Exit codes (DESIGN.md section 5): 3 refused for safety, 64 usage, 69 a facility is missing, 70 our own bug, 74 I/O, 75 busy, 77 permission.
"""

from __future__ import annotations

import errno as _errno
from collections.abc import Sequence


class RaidError(Exception):
    """Base of all errors of raidlib. `members` names the members concerned (paths, or `slot N`)."""

    exit_code = 70
    errno: int | None = None

    def __init__(self, message: str, *, members: Sequence[str] = (), errno: int | None = None) -> None:
        super().__init__(message)
        self.members = tuple(members)
        if errno is not None:
            self.errno = errno


class UsageError(RaidError, ValueError):
    """A value that does not fit: an option, a size, an offset, a member that is no member."""

    exit_code = 64
    errno = _errno.EINVAL


class NoSuperblockError(UsageError):
    """A member that carries no md superblock that can be read."""


class DamagedMemberError(NoSuperblockError):
    """A member whose superblock is there, but cannot be used: damaged, or the member was truncated."""


class MixedArraysError(UsageError):
    """Members of more than one array were given as one."""


class RefusedError(RaidError):
    """Refused for safety; the message names the option that insists."""

    exit_code = 3
    errno = _errno.EPERM


class ReadOnlyError(RefusedError):
    """A write to an array that is open read-only."""

    errno = _errno.EROFS


class UnsupportedError(RaidError):
    """The array uses a feature, named in the message, that this version does not handle (in this mode)."""

    exit_code = 69
    errno = _errno.EOPNOTSUPP


class MissingFacilityError(RaidError):
    """Something of the machine is missing (/dev/fuse, a program); the message says how to get it."""

    exit_code = 69
    errno = _errno.ENOSYS


class NotEnoughMembersError(RaidError):
    """More members are lost than the level bears."""

    exit_code = 74
    errno = _errno.ENODEV


class ArrayIOError(RaidError):
    """Input or output failed and the redundancy could not make up for it."""

    exit_code = 74
    errno = _errno.EIO


class MemberError(ArrayIOError):
    """One member failed or is gone."""


class NoSpaceError(ArrayIOError):
    """A member's file system is full; the member is not to blame."""

    errno = _errno.ENOSPC


class BusyError(RaidError):
    """Someone uses it: another process, a mount, a job that runs, a member that the content needs."""

    exit_code = 75
    errno = _errno.EBUSY


class AccessError(RaidError):
    """The user may not do this."""

    exit_code = 77
    errno = _errno.EACCES


class ForkedError(RaidError):
    """An array was used in a forked child; only the process that opened it may use it."""

    errno = _errno.ECHILD


class CancelledError(RaidError):
    """A job was cancelled; it goes on from its checkpoint when it is started again."""

    exit_code = 130
    errno = _errno.ECANCELED


_BY_ERRNO: dict[int, type[RaidError]] = {
    _errno.EINVAL: UsageError,
    _errno.EROFS: ReadOnlyError,
    _errno.EPERM: AccessError,
    _errno.EACCES: AccessError,
    _errno.EBUSY: BusyError,
    _errno.ENOSPC: NoSpaceError,
    _errno.EDQUOT: NoSpaceError,
    _errno.EFBIG: NoSpaceError,
    _errno.ENODEV: NotEnoughMembersError,
    _errno.EOPNOTSUPP: UnsupportedError,
    _errno.EPROTONOSUPPORT: UnsupportedError,
    _errno.ENOENT: NoSuperblockError,
    _errno.EBADMSG: NoSuperblockError,
    _errno.ECHILD: ForkedError,
    _errno.ECANCELED: CancelledError,
}


def from_errno(code: int, message: str, *, members: Sequence[str] = ()) -> RaidError:
    """The exception that stands for an errno of the engine or of the system."""
    return _BY_ERRNO.get(code, ArrayIOError)(message, members=members, errno=code)
