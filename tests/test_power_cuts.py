"""Power cuts: the states that are enumerated, what is judged of them, and that what is broken is found."""

import concurrent.futures
import itertools
import random
import threading

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raidlib import assembly, errors, lab
from raidlib.lab import crashes, session, verdicts, workloads
from raidlib.lab.crashes import VIOLATIONS_MAX, _cuts, _members_at, _name, recovery_of
from raidlib.lab.power import History, Medium, key_of, mark_of, power_cuts, state_at
from raidlib.lab.workloads import PARITY_LEVELS, Run
from raidlib.member import MemoryDevice
from raidlib.model import MemberState

MEMBERS, BLOCKS, UNIT = 2, 2, 512

# ---- the enumeration against a model that shares nothing with it -----------------------------------------------------


@st.composite
def histories(draw):
    """Requests that begin and end in some order: [(what, number)], and the requests [(member, block, blocks, ok)]; blocks 0: a flush."""
    requests, events, under_way = [], [], []
    for _ in range(draw(st.integers(0, 5))):
        block = draw(st.integers(0, BLOCKS - 1))
        blocks = draw(st.integers(0, BLOCKS - block))
        requests.append((draw(st.integers(0, MEMBERS - 1)), block, blocks, draw(st.integers(0, 5)) > 0))
        events.append(("begin", len(requests) - 1))
        under_way.append(len(requests) - 1)
        while under_way and draw(st.booleans()):
            events.append(("end", under_way.pop(draw(st.integers(0, len(under_way) - 1)))))
    return requests, events


def content(request, block):
    return bytes([request + 1, block]) * (UNIT // 2)


def recorded(requests, events):
    """The same as a recorder would tell it."""
    begun = {number: at for at, (what, number) in enumerate(events, 1) if what == "begin"}
    ended = {number: at for at, (what, number) in enumerate(events, 1) if what == "end"}
    for number, (member, block, blocks, ok) in enumerate(requests):
        data = b"".join(content(number, at) for at in range(block, block + blocks))
        op = "write" if blocks else "flush"
        yield (
            lab.Entry(number, member, op, block * UNIT, len(data), begun[number], ended.get(number), 0 if ok else 5),
            data,
        )


class Disks:
    """All that devices with a write cache may do, step by step.

    A configuration: for each block what is on the medium, what is in the cache and which flushes wait for that; and the (request, block)
    that are still on their way into the cache.
    """

    def __init__(self, requests):
        self.requests = requests
        places = list(itertools.product(range(MEMBERS), range(BLOCKS)))
        self.at = {place: index for index, place in enumerate(places)}
        self.configurations = {(tuple((None, None, frozenset()) for _ in places), frozenset())}

    def place(self, number, block):
        return self.at[self.requests[number][0], block]

    def mine(self, number):
        return [self.at[self.requests[number][0], block] for block in range(BLOCKS)]

    def let_time_pass(self):
        """Anything may go into the cache, and from there onto the medium."""
        todo = list(self.configurations)
        while todo:
            cells, coming = todo.pop()
            following = []
            for number, block in coming:
                index = self.place(number, block)
                medium, _cached, due = cells[index]
                following.append(((*cells[:index], (medium, number, due), *cells[index + 1 :]), coming - {(number, block)}))
                if not self.requests[number][3]:  # one that fails may come at any later time, too
                    following.append((following[-1][0], coming))
            for index, (_medium, cached, _due) in enumerate(cells):
                if cached is not None:
                    following.append(((*cells[:index], (cached, None, frozenset()), *cells[index + 1 :]), coming))
            for new in following:
                if new not in self.configurations:
                    self.configurations.add(new)
                    todo.append(new)

    def event(self, what, number):
        _member, block, blocks, ok = self.requests[number]
        if blocks and what == "begin":
            new = {(number, at) for at in range(block, block + blocks)}
            self.configurations = {(cells, coming | new) for cells, coming in self.configurations}
        elif blocks and ok:  # by now it is in the cache
            self.configurations = {(cells, coming) for cells, coming in self.configurations if not any(n == number for n, _ in coming)}
        elif not blocks and what == "begin":
            self.configurations = {
                (
                    tuple(
                        (m, c, due | ({number} if c is not None and i in self.mine(number) else set()))
                        for i, (m, c, due) in enumerate(cells)
                    ),
                    coming,
                )
                for cells, coming in self.configurations
            }
        elif not blocks and ok:  # what it waits for is on the medium
            self.configurations = {
                (cells, coming) for cells, coming in self.configurations if not any(number in cells[i][2] for i in self.mine(number))
            }
        self.let_time_pass()

    def media(self):
        return {tuple(cell[0] for cell in cells) for cells, _coming in self.configurations}


def bytes_of(number, block):
    return bytes(UNIT) if number is None else content(number, block)


def overlapping(*flush_ok):
    """Two writes of one block that overlap in time, and flushes after both."""
    requests = [(0, 0, 1, True), (0, 0, 1, True), *((0, 0, 0, ok) for ok in flush_ok)]
    flushes = [(what, 2 + number) for number in range(len(flush_ok)) for what in ("begin", "end")]
    return requests, [("begin", 0), ("begin", 1), ("end", 1), ("end", 0), *flushes]


@settings(max_examples=300)
@given(histories())
@example(overlapping(True))
@example(overlapping(False, True))
def test_the_states_are_those_of_a_disk_with_a_cache(drawn):
    requests, events = drawn
    before = [MemoryDevice(BLOCKS * UNIT) for _ in range(MEMBERS)]
    history = History(before, recorded(requests, events))
    found = {}
    for state in power_cuts(history, UNIT, cap=12):
        devices = state.devices()
        assert key_of(devices) == state.key
        again = state_at(history, state.moment, state.unit, state.choice)
        whole = tuple(device.handle.pread(device.size, 0) for device in devices)
        assert whole == tuple(device.handle.pread(device.size, 0) for device in again)
        found.setdefault(state.moment, set()).add(whole)
    disks, moment = Disks(requests), 0
    for at, event in enumerate(events, 1):
        disks.event(*event)
        moment = at if at in found else moment
        expected = set()
        for medium in disks.media():
            blocks = [bytes_of(medium[index], block) for (_member, block), index in disks.at.items()]
            expected.add(tuple(b"".join(blocks[m * BLOCKS : (m + 1) * BLOCKS]) for m in range(MEMBERS)))
        assert found[moment] == expected, f"after event {at}"


def one_write(length, flushed=()):
    before = [MemoryDevice(65536)]
    data = b"".join(bytes([1 + at // 512]) * 512 for at in range(0, length, 512))
    record = [(lab.Entry(0, 0, "write", 0, length, 1, 2, 0), data)]
    record += [(lab.Entry(1, 0, "flush", 0, 0, begun, ended, errno), b"") for begun, ended, errno in flushed]
    return History(before, record)


def states(history, moment, unit=4096, **options):
    return [state for state in power_cuts(history, unit, **options) if state.moment == moment]


def test_what_was_flushed_is_there():
    assert len(states(one_write(8192), 1)) == 4
    assert len(states(one_write(8192, [(3, 4, 0)]), 4)) == 1
    for failed in ([(3, None, 0)], [(3, 4, 5)], []):  # under way, failed, none
        keys = {state.key for state in power_cuts(one_write(8192, failed))}
        assert len(keys) == 4
    medium = Medium(one_write(8192, [(3, 4, 0)]), 4096)
    medium.step(0)
    medium.step(1)
    assert medium.images[0].handle.pread(1, 0) == b"\x01" and medium.open_pieces() == []


def test_torn_at_512_bytes():
    assert len(states(one_write(1024), 1, unit=512)) == 4
    assert len(states(one_write(1024), 1, unit=4096)) == 2
    parts = {state.devices()[0].handle.pread(1024, 0)[::512] for state in power_cuts(one_write(1024), 512)}
    assert parts == {bytes([0, 0]), bytes([1, 0]), bytes([0, 2]), bytes([1, 2])}


def test_a_state_that_is_past_is_not_given():
    for late in (states(one_write(1024), 0)[0], states(one_write(1024), 1)[0]):
        with pytest.raises(errors.UsageError, match="gone on"):
            late.devices()


def test_many_open_pieces_are_sampled():
    history = one_write(40960)
    assert len(states(history, 1, cap=10)) == 1024
    sample = states(history, 1, samples=5)
    assert len(sample) == 2 + 2 * 10 + 5
    keys = {state.key for state in sample}
    data = history.record[0][1]
    singles = {mark_of(0, at, data[at : at + 4096]) for at in range(0, 40960, 4096)}
    whole = mark_of(0, 0, data)
    assert {0, whole} | singles | {whole ^ one for one in singles} <= keys
    assert [s.choice for s in sample] == [s.choice for s in states(history, 1, samples=5)]
    assert len(states(history, 1, most=7)) == 7


def test_a_write_of_half_a_sector_is_refused():
    with pytest.raises(errors.UsageError, match="whole sectors"):
        History([MemoryDevice(4096)], [(lab.Entry(0, 0, "write", 0, 100, 1, 2, 0), bytes(100))])


# ---- the campaign ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", lab.POLICIES)
@pytest.mark.parametrize("level", lab.SHAPES)
def test_no_promise_is_broken(level, policy):
    """All workloads of two operations and some longer ones; 20,400 distinct states of six levels with each policy."""
    tally = lab.campaign(level, policy, states=3400, most=80)
    assert [f"{v.problem}: {v.command}" for v in tally.violations] == []
    assert tally.distinct >= 3400 and tally.nested > 300 and tally.words >= 91
    if level in PARITY_LEVELS:
        assert tally.refused > 100 and tally.refused_without > 100
        assert tally.write_holes > 10  # the laboratory can see what it is for: what --force loses, and the refusal spares
    else:
        assert tally.refused == tally.refused_without == tally.write_holes == 0


def test_one_seed_one_outcome():
    first, second, other = (lab.campaign("5", states=300, most=4, seed=seed) for seed in (3, 3, 4))
    first.seconds = second.seconds = 0
    assert first == second
    assert first.digest != other.digest


def test_campaigns_in_processes_of_their_own():
    tallies = {t.level: t for t in lab.campaigns([("5", "resync"), ("10", "resync")], 200, 2, seed=3, most=1)}
    assert set(tallies) == {"5", "10"} and all(t.distinct >= 100 and not t.violations for t in tallies.values())
    assert tallies["5"].digest == lab.campaign("5", states=100, most=1, seed=3).digest


def test_campaigns_come_in_the_order_in_which_they_were_asked_for(monkeypatch):
    second_is_done = threading.Event()

    def campaign(level, policy, **_):
        assert second_is_done.wait(10) if level == "1" else second_is_done.set() is None
        return crashes.Tally(level, policy)

    monkeypatch.setattr(crashes, "campaign", campaign)
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", lambda count, _context: concurrent.futures.ThreadPoolExecutor(count))
    assert [t.level for t in lab.campaigns([("1", "resync"), ("5", "resync")], 2, 2)] == ["1", "5"]


def test_a_level_that_is_not_known():
    with pytest.raises(errors.UsageError, match="levels 1, 4, 5, 6, 10, rs"):
        lab.campaign("7")


def test_with_no_survivor_there_the_failed_know_best():
    """Of three mirrors two had failed, and the third is lost: what the second held when it failed is read; no promise says otherwise."""
    run = Run("1", "resync", 7, "xssxif")
    outcome = lab.replay("1:resync:7:xssxif:40:4096:0").outcome
    assert outcome.without == 0 and outcome.good_without == {1} and run.promise(40).out == {1, 2}
    assert run.promise(40).broken(outcome.writes_without) and verdicts.broken(outcome, run.promise(40)) == ""
    outcome.good = frozenset({0, 3})  # had there been another survivor
    assert "came back as good" in verdicts.broken(outcome, run.promise(40))


def test_all_words():
    assert len(workloads.exhaustive()) == 1 + 9 + 81
    long = list(itertools.islice(workloads.sampled(1), 50))
    assert all(3 <= len(word) <= 8 for word in long) and set("".join(long)) == set(workloads.OPERATIONS)
    assert long == list(itertools.islice(workloads.sampled(1), 50))


def names(run, count=40):
    cuts = list(_cuts(run))
    return [(state, _name(run, state)) for state in cuts[:: max(1, len(cuts) // count)]]


@pytest.mark.parametrize("level", ["1", "5"])
def test_a_state_is_found_again_by_its_name(level):
    run = Run(level, "resync", 0, "sxl")
    for state, name in names(run):
        again = lab.replay(name)
        assert again.problem == "" and again.name == name and "as promised" in again.story
        devices = _members_at(run, [(state.moment, state.unit, state.choice)], name)
        assert key_of(devices) == state.key


def test_a_nested_state_is_found_again_by_its_name():
    run = Run("5", "resync", 0, "l")
    moment = max(operation.ended for operation in run.operations if operation.letter == "l")
    state = next(state for state in _cuts(run) if state.moment == moment)
    history = recovery_of(state_at(run.history, state.moment, state.unit, state.choice), state.key)
    inner = [inner for inner in power_cuts(history) if inner.choice][3]
    again = lab.replay(_name(run, state, inner))
    assert again.problem == "" and "of the recovery" in "\n".join(again.story)


@pytest.mark.parametrize("name", ["", "5", "7:resync:0:s:1:4096:0", "5:resync:0:zz:1:4096:0", "5:resync:0:s:1:4096", "5:resync:0:s"])
def test_a_name_that_is_none(name):
    with pytest.raises(errors.UsageError, match="not the name of a state"):
        lab.replay(name)
    with pytest.raises(errors.UsageError, match="no such choice"):
        lab.replay("5:resync:0:s:1:4096:ff")


# ---- what is broken is found -----------------------------------------------------------------------------------------


def problems(run):
    found = []
    for state in power_cuts(run.history):
        outcome = verdicts.restart(run.level, run.contents, state.devices, state.key)
        if problem := verdicts.broken(outcome, run.promise(state.moment)):
            found.append(problem)
    return found


@pytest.mark.parametrize("level", lab.SHAPES)
def test_a_flush_that_lies_is_found(level):
    run = Run(level, "resync", 0, "sfi", rules={1: [lab.Rule("lost", on="flush")], 2: [lab.Rule("lost", on="flush")]})
    assert problems(run)
    assert not problems(Run(level, "resync", 0, "sfi"))


@pytest.mark.parametrize("level", lab.SHAPES)
def test_a_resync_that_is_not_done_is_found(level, monkeypatch):
    run = Run(level, "resync", 0, "l")
    monkeypatch.setattr(session.Session, "recover", lambda array: None)
    assert any("mismatches" in problem for problem in problems(run))


def test_a_violation_has_a_name_that_finds_it_again(monkeypatch):
    monkeypatch.setattr(session.Session, "recover", lambda array: None)
    violations = lab.campaign("5", states=100, most=3).violations
    assert len(violations) >= VIOLATIONS_MAX  # and ends there
    for violation in violations[:5]:
        assert lab.replay(violation.name).problem == violation.problem
        assert violation.command == f"raidlib drill --replay power:{violation.name}"
    monkeypatch.undo()
    assert lab.replay(violations[0].name).problem == ""


@pytest.mark.parametrize("level", lab.SHAPES)
def test_a_stale_member_that_is_taken_back_is_found(level, monkeypatch):
    place = assembly._place

    def trusting(candidate, freshest, force):
        place(candidate, freshest, force)
        if candidate.state in (MemberState.FAULTY, MemberState.STALE) and candidate.slot is not None:
            candidate.state = MemberState.IN_SYNC

    run = Run(level, "resync", 0, "xli")
    monkeypatch.setattr(assembly, "_place", trusting)
    assert any("came back as good" in problem for problem in problems(run))


def test_what_contradicts_itself_is_seen_without_the_engine():
    draw = random.Random(1)
    for level in lab.SHAPES:
        _contents, devices, _key = workloads.prepared(level, "resync", 0)
        slots = lab.SHAPES[level].members
        areas = verdicts._areas(devices, {slot: slot for slot in range(slots)}, slots)
        assert verdicts.disagreement(level, areas) == ""
        for slot in range(slots):
            at = draw.randrange(len(areas[slot]))
            wrong = bytearray(areas[slot])
            wrong[at] ^= 1 << draw.randrange(8)
            assert verdicts.disagreement(level, [*areas[:slot], bytes(wrong), *areas[slot + 1 :]]) != ""


# ---- what was found with it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", lab.SHAPES)
@pytest.mark.parametrize("word", ["xr", "ra"])
def test_a_spare_that_was_on_its_way_in_is_not_missed(level, word):
    """Its superblock still calls it a spare when the others' give it a slot: all members are there, and the array starts without --run."""
    assert problems(Run(level, "resync", 0, word)) == []


@pytest.mark.parametrize("level", lab.SHAPES)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_half_filled_replacement_is_filled_anew_after_a_crash(level, seed):
    """Of a write that was open it may hold what the original does not: what is read would change when it takes the slot."""
    for word in ("ro", "rl"):
        assert problems(Run(level, "resync", seed, word)) == []
