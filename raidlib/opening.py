"""From members to an open array: what would be opened (plan), open, create."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from . import creation, nesting, runtime
from .array import Array
from .assembly import Assembly, Plan
from .errors import BusyError, RaidError, UnsupportedError, UsageError
from .member import Member, MemberSource, Source, close_all, examine, open_members, resolve, sort_out, zero_superblock
from .model import Level, parse_size


def plan(source: Source, *, force: bool = False) -> Assembly:
    """What `open` would make of the members, and why. Writes nothing, opens nothing for writing."""
    found = sort_out(source)
    members, needed = open_members(found.sources, read_only=True, lock=False), []

    def start(judged: Plan, name: str) -> Array:
        if judged.error is not None:
            needed.append(_of_inner(name, judged.error))
        return Array(judged, read_only=True)

    try:
        judged = nesting.gather(found, members, start, force=force)
        if needed and judged.error is None:
            judged.error, judged.needs_run = needed[0], True
        return judged.summary()
    finally:
        close_all(members)


def _of_inner(name: str, error: RaidError) -> RaidError:
    """What keeps an inner array from starting."""
    return type(error)(f"{name}: {error}", members=error.members, errno=error.errno)


def open(
    source: Source,
    mode: str = "rw",
    *,
    run: bool = False,
    force: bool = False,
    direct: bool = False,
    deadline: float | None = None,
    held: runtime.Claim | None = None,
) -> Array:
    """Opens an array.

    source: a directory that holds the members, or a list of members: paths, `BlockDevice` objects, None for missing ones.
    mode: "rw", or "r", which writes nothing to any member.
    run: start although members are missing that the superblocks count on, at every level. force: as mdadm's --force (md-format.md 6.3), for
    the outermost array alone: an inner one that needs it is opened so by itself first.
    Members that are arrays themselves are opened with it, and closed; an open Array that is given as a member stays the caller's.
    direct: direct I/O (O_DIRECT) where the members take it.
    deadline: seconds after which a member that does not answer counts as dead. None: 60, for those that can be silent for ever (Python
    objects, block devices, files on a network or FUSE file system); to local files the kernel ends requests itself. A number holds for all.
    held: for writing, the array has one owner on this host (BusyError names its pid); this is that right, where the caller has it.
    What needs an option is refused with RefusedError, which names it.
    """
    if mode not in ("r", "rw"):
        raise UsageError(f"mode {mode!r} is neither 'r' nor 'rw'")
    read_only = mode == "r"
    found = sort_out(source)
    members = _open_unused(found.sources, read_only=read_only, direct=direct, deadline=deadline)

    def start(inner: Plan, name: str) -> Array:
        try:
            _refuse_start(inner, read_only, run)
        except RaidError as error:
            raise _of_inner(name, error) from None
        return _started(Array(inner, read_only, None, deadline))

    try:
        judged = nesting.gather(found, members, start, force=force)
        _refuse_start(judged, read_only, run or force)
        array = Array(judged, read_only, held, deadline)
    except UsageError:
        close_all(members)
        if not direct or not any(member.direct for member in members):
            raise
        array = open(source, mode, run=run, force=force, deadline=deadline, held=held)  # data that do not lie at whole blocks of 4096 bytes
        array.notes.append("the members are used without direct I/O: their data do not lie at whole blocks of 4096 bytes")
        return array
    except BaseException:
        close_all(members)
        raise
    if direct and not all(member.direct for member in members if member.is_file):
        array.notes.append("some members are used without direct I/O, which their file system does not offer")
    return _started(array)


def _started(array: Array) -> Array:
    """With its service and its jobs, and able to take in arrays by their names."""

    def open_member(source: MemberSource, *, direct: bool, deadline: float | None) -> Member:
        if not isinstance(source, (str, os.PathLike)) or not os.path.isdir(source):
            return Member.open(source, direct=direct, deadline=deadline)
        inner = open(source, direct=direct, deadline=deadline)
        return _given_up(inner, os.fspath(source))

    array._open_member = open_member
    try:
        array._start()
    except BaseException:
        array.close()
        raise
    return array


def _given_up(inner: Array, name: str) -> Member:
    """An array that was opened to be a member, and is closed with it."""
    try:
        return inner.as_member(path=name, owned=True)
    except BaseException:
        inner.close()
        raise


def _open_unused(sources: Sequence[MemberSource], **options: Any) -> list[Member]:
    """Opens and locks the members; where one is taken, says by whom if that can be found."""
    try:
        return open_members(sources, **options)
    except BusyError as error:
        known = runtime.found(alive=True)
        for item in known:
            if any(runtime.matches(item[1], path) for path in error.members):
                info = runtime.outermost(item, known)[1]
                raise runtime.busy_error(info.uuid, info) from None
        raise


def _refuse_start(judged: Plan, read_only: bool, run: bool) -> None:
    if judged.error is not None and not (judged.needs_run and run):
        raise judged.error
    if judged.read_only_only and not read_only:
        names, ways = " and ".join(judged.read_only_only), " and ".join(dict.fromkeys(judged.read_only_only.values()))
        raise UnsupportedError(f"the array has {names}, and is not written so; open it read-only (--read-only, mode='r'), or {ways}")


def create(
    target: Source,
    *,
    level: Level | int | str,
    raid_devices: int | None = None,
    size: str | int | None = None,
    chunk: str | int | None = None,
    layout: str | int | None = None,
    metadata: str = "1.2",
    name: str | None = None,
    uuid: str | None = None,
    data_offset: str | int | None = None,
    spare_devices: int = 0,
    parity: int | None = None,
    bitmap: str | None = None,
    bitmap_chunk: str | int | None = None,
    consistency_policy: str | None = None,
    integrity: str | None = None,
    write_journal: MemberSource | None = None,
    assume_clean: bool = False,
    preallocate: bool = False,
    force: bool = False,
    deadline: float | None = None,
) -> Array:
    """Makes an array and opens it for writing.

    target: a directory, in which the members are made (`member-0.img`, …; sparse, `size` bytes each), or a list of members, None for
    missing ones, of which `size` bytes are used (default: all). Sizes are numbers of bytes or "1G", "64K". A member may be an array
    itself: an open Array, which stays the caller's, or a directory or list that is opened as one and closed with the new array. force:
    overwrite what the members hold. bitmap: "internal" or "none", as the policies "bitmap" and "resync"; unsaid, members of more than 100
    GiB have one. bitmap_chunk: bytes of a region that it marks. Members that are not blank get their parity by a resync, the array's first
    `job`. deadline: as in open().
    """
    asked = {"a write journal": write_journal is not None, "integrity checksums": integrity not in (None, "none")}
    for feature, wanted in asked.items():
        if wanted:
            raise UnsupportedError(f"{feature}: not built yet; arrays are made with the policies resync and bitmap")
    folder = os.fspath(target) if isinstance(target, (str, os.PathLike)) else None
    given: list[Any] = [] if folder else [None if isinstance(m, str) and m == "missing" else m for m in _as_list(target)]
    count = raid_devices if raid_devices is not None else len(given) - spare_devices
    if given and len(given) != count + spare_devices:
        raise UsageError(
            f"{len(given)} members were given for --raid-devices {count} and --spare-devices {spare_devices}; say "
            f"`missing` for those that are not there"
        )
    label = name or (os.path.basename(os.path.abspath(folder)) if folder else "0")
    shape = creation.make_spec(
        level=level,
        raid_devices=count,
        chunk=chunk,
        layout=layout,
        metadata=metadata,
        name=label,
        uuid=uuid,
        data_offset=data_offset,
        parity=parity,
        assume_clean=assume_clean,
        bitmap=bitmap,
        bitmap_chunk=bitmap_chunk,
        consistency_policy=consistency_policy,
    )
    notes: list[str] = []
    used = None if folder or size is None else parse_size(size)
    if folder:
        paths, notes = creation.make_files(folder, count + spare_devices, parse_size(size or 0), preallocate, force)
        try:
            notes += _write_members(paths, shape, used, force, creation.NEW)
            creation.put_in_place(paths)
        except BaseException:
            creation.drop_files(paths)
            raise
        given = list(paths)
    else:
        return _create_of(given, shape, used, force, deadline)
    array = open(given, run=True, deadline=deadline)
    array.notes += notes + _shared_devices(given)
    return array


def _create_of(given: list[Any], shape: creation.Spec, used: int | None, force: bool, deadline: float | None) -> Array:
    """Of members that exist. Directories and lists among them are opened, as arrays."""
    opened: list[Array] = []
    try:
        for index, source in enumerate(given):
            is_folder = isinstance(source, (str, os.PathLike)) and os.path.isdir(source)
            if is_folder or (isinstance(source, Sequence) and not isinstance(source, str)):
                given[index] = open(source, deadline=deadline)
                opened.append(given[index])
        notes = _write_members(given, shape, used, force)
        array = open(given, run=True, deadline=deadline)
    except BaseException:
        for inner in opened:
            inner.close()
        raise
    array.own(opened)
    array.notes += notes + _shared_devices(given)
    return array


def _as_list(target: Source) -> list[Any]:
    return list(target) if isinstance(target, Sequence) and not isinstance(target, str) else [target]


def _write_members(
    given: Sequence[MemberSource | None], shape: creation.Spec, size: int | None, force: bool, suffix: str = ""
) -> list[str]:
    """Their first superblocks. Returns notes for the user."""
    members = open_members([f"{source}{suffix}" if suffix else source for source in given if source is not None])
    try:
        for member in members:
            member.path = member.path.removesuffix(suffix)  # the name that it will have, in messages
            creation.refuse_content(member, force)
        opened = iter(members)
        return creation.write_superblocks(shape, [next(opened) if source is not None else None for source in given], size)
    finally:
        close_all(members)


def _shared_devices(given: Sequence[MemberSource | None]) -> list[str]:
    devices: dict[int, list[str]] = {}
    for source in given:
        if isinstance(source, (str, os.PathLike)) and os.path.isfile(source):
            devices.setdefault(os.stat(source).st_dev, []).append(os.fspath(source))
    return [
        f"{len(paths)} members lie on one device: the array protects from the loss of files, not from the loss of that device"
        for paths in devices.values()
        if len(paths) > 1
    ]


__all__ = ["Array", "create", "examine", "open", "plan", "resolve", "zero_superblock"]
