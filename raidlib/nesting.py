"""Arrays of arrays: which of the members given make arrays that are members themselves, and in which order all of them are started.

First a look: every array that the members make is opened read-only in the engine, and its content searched for a superblock, until it is
known which array is a member of which. Then they are started from the innermost outwards. The one that is left is the array that is meant.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any

from .array import Array
from .assembly import Plan, judge
from .engine import MemberHandle, ffi, lib
from .errors import MixedArraysError, NoSuperblockError, NotEnoughMembersError, RaidError, RefusedError, UnsupportedError, UsageError
from .member import NESTING_MAX, Found, Member, close_all, describe, open_members, read_superblock, sort_out, uuid_text
from .model import MemberState, MemberStatus, Superblock

Start = Callable[[Plan, str], Array]  # of an inner array: its plan, what it is called


@dataclasses.dataclass
class _Node:
    """An array, as far as it is known."""

    uuid: str
    members: list[Member] = dataclasses.field(default_factory=list)  # without those that are arrays
    inner: list[_Node] = dataclasses.field(default_factory=list)
    outer: str = ""  # the array that its content is a member of
    name: str = ""
    known: bool = False  # its content was looked at
    problem: RaidError | None = None  # why it could not be
    look: Member | None = None  # its content
    started: list[Member] = dataclasses.field(default_factory=list)  # the inner arrays

    def tree(self, depth: int = 1) -> Iterator[_Node]:
        """Itself, and all that is in it."""
        if depth > NESTING_MAX:
            raise UsageError(f"these are arrays of arrays of arrays, more than {NESTING_MAX} levels of them, or one that contains itself")
        yield self
        for inner in self.inner:
            yield from inner.tree(depth + 1)


def _uuid(member: Member) -> str:
    sb = read_superblock(member)  # it has to outlive what points into it
    return uuid_text(bytes(ffi.buffer(sb.set_uuid)))


def content_uuid(array: Array) -> str:
    """The UUID of the array that an open array's content is a member of, by a superblock in it; empty: of none."""
    with array.as_member(read_only=True, exclusive=False) as member:
        try:
            return _uuid(member)
        except NoSuperblockError:
            return ""


# --- The look ---------------------------------------------------------------------------------------------------------


def _look(node: _Node, handles: list[tuple[Member, Any]]) -> str:
    """The UUID of the array that the content of this one is a member of; empty: of none."""
    plan = judge([*node.members, *(inner.look for inner in node.inner if inner.look is not None)])
    if plan.error is not None and not (plan.needs_run or plan.needs_force):
        raise plan.error
    handle = plan.open(read_only=True)
    try:
        node.look = Member(MemberHandle.from_array(handle, node.uuid), node.uuid, read_only=True)
    except BaseException:
        lib.rl_array_close(handle)
        raise
    handles.append((node.look, handle))
    try:
        return _uuid(node.look)
    except NoSuperblockError as error:
        if type(error) is not NoSuperblockError:
            raise  # it has one, which is damaged
        return ""


def examine_content(folder: str) -> Superblock | None:
    """The superblock in the content of the array whose members lie in a folder; None: it holds none, or cannot be read as it is.

    Writes nothing, and asks no lock.
    """
    members = open_members(sort_out(folder).sources, read_only=True, lock=False)
    handles: list[tuple[Member, Any]] = []
    try:
        node = _Node("", members)
        if not _look(node, handles) or node.look is None:
            return None
        node.look.path = folder
        return describe(node.look, read_superblock(node.look))
    except (MixedArraysError, NotEnoughMembersError, RefusedError, UnsupportedError):
        return None
    finally:
        _end_looks(handles)
        close_all(members)


def _end_looks(handles: list[tuple[Member, Any]]) -> None:
    for look, handle in reversed(handles):  # the later of them use the earlier
        look.close()
        lib.rl_array_close(handle)


def _look_around(members: list[Member]) -> dict[str, _Node]:
    """The arrays that the members make, and which is a member of which. One may become readable only when another one is."""
    nodes: dict[str, _Node] = {}
    for member in members:
        uuid = _uuid(member)
        nodes.setdefault(uuid, _Node(uuid)).members.append(member)
    handles: list[tuple[Member, Any]] = []
    try:
        found_one = True
        while found_one:
            found_one = False
            for node in [node for node in nodes.values() if not node.known]:
                try:
                    node.outer, node.known, node.problem = _look(node, handles), True, None
                except RaidError as error:
                    node.problem = error
                    continue
                if node.outer:
                    nodes.setdefault(node.outer, _Node(node.outer)).inner.append(node)
                    found_one = True
    finally:
        _end_looks(handles)
    return nodes


def _name_all(nodes: list[_Node]) -> None:
    """Calls each array by the folder of its members, if they have one that no other array's are in; else by its UUID."""

    def folder(node: _Node, depth: int = 0) -> str:
        inner = [folder(inner, depth + 1) for inner in node.inner] if depth < NESTING_MAX else [""]
        folders = {os.path.dirname(m.path) or "." for m in node.members} | {name and os.path.dirname(name) for name in inner}
        return folders.pop() if len(folders) == 1 else ""

    places = [folder(node) for node in nodes]
    for node, place in zip(nodes, places, strict=True):
        node.name = place if place and places.count(place) == 1 and os.path.isdir(place) else node.uuid


def _find_root(nodes: list[_Node], found: Found) -> tuple[_Node, list[_Node]] | None:
    """The outermost array, and those that are not part of it. None: they are not one array."""
    roots = [node for node in nodes if not node.outer]
    circle = f"arrays that are members of each other: {', '.join(node.name for node in nodes)}"
    if not roots:
        raise UsageError(circle)
    nested = [node for node in roots if node.inner]
    hopeless = [node for node in roots if not node.inner and node.problem is not None]
    if found.below and len(hopeless) == len(roots):
        reasons = "; ".join(f"{node.name}: {node.problem}" for node in hopeless)
        raise NotEnoughMembersError(f"none of the arrays in {found.below} can be started ({reasons})")
    root = nested[0] if len(nested) == 1 else roots[0] if len(roots) == 1 else None
    if root is not None and found.below and root.name != root.uuid and not os.path.samefile(root.name, found.below):
        raise NoSuperblockError(f"{found.below} holds no member of an array; name the directory that does: {root.name}")
    others = [node for node in roots if node is not root]
    if root is None or (others != [node for node in others if node in hopeless] and not found.below):
        return None
    if len([*root.tree(), *others]) != len(nodes):
        raise UsageError(circle)
    return root, others


# --- The start --------------------------------------------------------------------------------------------------------


def _put_aside(node: _Node, reason: RaidError | str, opened: list[Member]) -> MemberStatus:
    """An array that takes no part: its members are let go."""
    for member in node.members + node.started:
        opened.remove(member)
        member.close()
    state = MemberState.FAULTY if isinstance(reason, RaidError) else MemberState.STALE
    return MemberStatus(slot=None, path=node.name, state=state, reason=str(reason))


def _assemble(node: _Node, opened: list[Member], aside: list[MemberStatus], start: Start, force: bool) -> Plan:
    """The plan of an array whose inner arrays have been started. One that cannot be is a missing member, with its reason.

    aside: what else is left out, here and in the inner arrays.
    """
    aside = list(aside)
    for inner in node.inner:
        places = {below.name for below in inner.tree()}
        inside = [status for status in aside if os.path.dirname(status.path) in places]
        aside = [status for status in aside if status not in inside]
        try:
            plan = _assemble(inner, opened, inside, start, force=False)
            problem = None if plan.needs_run else plan.error
        except NotEnoughMembersError as error:
            problem = error
        if problem is not None:
            aside.append(_put_aside(inner, problem, opened))
        else:
            node.started.append(_begin(plan, inner, opened, start))
    reasons = "".join(f"; {status.path}: {status.reason}" for status in aside)
    if not node.members + node.started:
        raise NotEnoughMembersError(f"none of its member arrays can be started{reasons}")
    plan = judge(node.members + node.started, force=force)
    plan.set_aside = aside
    if plan.error is not None and reasons:
        plan.error = type(plan.error)(f"{plan.error}{reasons}", members=plan.error.members, errno=plan.error.errno)
    return plan


def _begin(plan: Plan, node: _Node, opened: list[Member], start: Start) -> Member:
    array = start(plan, node.name)
    for candidate in plan.candidates:  # the array's from now on
        opened.remove(candidate.member)
    try:
        member = array.as_member(read_only=array.read_only, path=node.name, owned=True)
    except BaseException:
        array.close()
        raise
    opened.append(member)
    return member


def gather(found: Found, opened: list[Member], start: Start, *, force: bool) -> Plan:
    """The plan of the array that the open members make, inner arrays having been started by `start`; they are among its members.

    `opened` is kept at what is to be closed where this, or what follows, fails. force: of the outermost array alone.
    """
    mixed: RaidError | None = None
    if not found.below:
        try:
            plan = judge(opened, force=force)
            plan.set_aside = found.damaged
            return plan
        except MixedArraysError as error:
            mixed = error
    nodes = list(_look_around(opened).values())
    _name_all(nodes)
    result = _find_root(nodes, found)
    if result is None:
        names = "; ".join(f"array {node.uuid}: {node.name}" for node in nodes)
        raise mixed or MixedArraysError(f"the members in {found.below} make several arrays ({names}); name one of them")
    root, others = result
    own = "an array by itself: its content is no member of this one"
    aside = [_put_aside(node, node.problem or own, opened) for node in others]
    return _assemble(root, opened, aside + found.damaged, start, force)
