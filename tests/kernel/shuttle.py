"""Cases that go back and forth between raidlib and the kernel, many of them to a boot.

A case is a generator: it works here, yields a `There` for what is to be done in the guest, and goes on with what came of it.
"""

import dataclasses
import random
import re
import traceback
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import guest
import pytest
import vm

MACHINES = 2  # at once
BATCH_DISKS = MACHINES * (vm.DISKS_MAX - 10)  # the seed, and what the halves may differ by
SEED_BYTES = 16 << 20
STEPS = (Path(__file__).parent / "steps.sh").read_text()
HUNG = "the guest hung or died in this case"


class There(Exception):
    """Something went wrong in the guest."""


class Impossible(Exception):
    """The kernel's side does not do this; the text is its reason."""


@dataclasses.dataclass(frozen=True)
class Step:
    """What a case wants done in the guest: shell lines, in which $1, $2, … are the members, in this order."""

    lines: str
    members: tuple[Path, ...]
    cuts: bool = False  # it ends with cut_power, and the boot with it: those after it have another one


@dataclasses.dataclass
class Seen:
    """What the guest said: the facts of steps.sh, and all that it printed."""

    facts: dict[str, str]
    text: str

    def __getitem__(self, key: str) -> str:
        assert key in self.facts, f"the guest did not say {key!r}"
        return self.facts[key]

    def __contains__(self, key: str) -> bool:
        return key in self.facts


Steps = Generator[Step, Seen, None]


@dataclasses.dataclass
class Outcome:
    """What became of a case: "right", "n/a" or "wrong", and the words for it."""

    word: str
    text: str = ""
    hung: bool = False  # nothing was said against either side: the guest did not come back


def seed_bytes() -> bytes:
    """What the guest writes: pieces of this, which both sides know."""
    return random.Random("the kernel as judge").randbytes(SEED_BYTES)


class Shuttle:
    """Runs cases in batches, each when the first outcome of it is asked for."""

    def __init__(self, cases: Iterable[tuple[str, int, Callable[[], Steps]]], scratch: Path) -> None:
        self._waiting = list(cases)  # name, most members at once, and what begins it
        self._outcomes: dict[str, Outcome] = {}
        self._guest = guest.prepare()
        self._seed = scratch / "seed"
        self._seed.write_bytes(seed_bytes())
        self.versions = self._guest.versions
        self.boots = 0
        self.again: list[str] = []  # the cases that were run a second time

    def outcome(self, name: str) -> Outcome:
        """What became of the case; runs it, with the next ones, if that is not known yet, and once more where the guest hung in it."""
        while name not in self._outcomes:
            names = [waiting[0] for waiting in self._waiting]
            first = names.index(name)
            room = BATCH_DISKS
            batch = []
            for entry in self._waiting[first:]:
                room -= entry[1]
                if room < 0:
                    break
                batch.append(entry)
            del self._waiting[first : first + len(batch)]
            try:
                self._run({name: begin() for name, _members, begin in batch})
                hung = [entry for entry in batch if self._outcomes[entry[0]].hung]
                self.again += [name for name, _members, _begin in hung]
                self._run({name: begin() for name, _members, begin in hung})
            except guest.GuestError as error:
                self._outcomes |= {entry[0]: Outcome("wrong", str(error)) for entry in batch if entry[0] not in self._outcomes}
        return self._outcomes[name]

    def _run(self, running: dict[str, Steps]) -> None:
        answers: dict[str, Seen | None] = dict.fromkeys(running)
        while running:
            steps: dict[str, Step] = {}
            for name, case in list(running.items()):
                step = self._advance(name, case, answers[name])
                if step is None:
                    del running[name]
                else:
                    steps[name] = step
            answers = self._there(steps)

    def _advance(self, name: str, case: Steps, answer: Seen | None) -> Step | None:
        """Lets the case go on here, until it wants the guest again or has ended."""
        log = answer.text if answer else ""
        try:
            if answer is None:
                return next(case)
            if "error" in answer:
                return case.throw(There(answer["error"]))
            return case.send(answer)
        except StopIteration:
            self._outcomes[name] = Outcome("right")
        except Impossible as reason:
            self._outcomes[name] = Outcome("n/a", str(reason))
        except (Exception, pytest.fail.Exception):  # the latter is none of the former
            hung = answer is not None and answer.facts.get("error") == HUNG
            self._outcomes[name] = Outcome("wrong", f"{traceback.format_exc()}\n--- the guest's last words:\n{log}", hung)
        return None

    def _there(self, steps: dict[str, Step]) -> dict[str, Seen | None]:
        """All steps, in as few boots as the disks allow; a boot that ends early costs the case it ended in, not those after it."""
        answers: dict[str, Seen | None] = {}
        while left := {name: step for name, step in steps.items() if name not in answers}:
            with ThreadPoolExecutor(MACHINES) as pool:
                for result in pool.map(self._boot, _shares(left)):
                    answers |= result
        return answers

    def _boot(self, steps: dict[str, Step]) -> dict[str, Seen | None]:
        disks = [self._seed]
        lines = [STEPS]
        for name, step in steps.items():
            names = " ".join(f"$D{len(disks) + number}" for number in range(len(step.members)))
            disks += step.members
            lines += [f"cell '{name}' $D0 {names}", f"(set -- {names}", step.lines, ")", "cell_end"]
        self.boots += 1
        text, ended = vm.run(self._guest, disks, "\n".join(lines), read_only=(self._seed,))
        answers: dict[str, Seen | None] = {}
        for part in text.split("@@ cell ")[1:]:
            name, said = part.split("\n", 1)
            facts = dict(re.findall(r"^= (\S+) ?(.*)$", said, re.MULTILINE))
            if "@@ end" not in said and not (steps[name].cuts and "cut" in facts):
                facts["error"] = HUNG
            answers[name] = Seen(facts, said)
        if not answers:
            raise guest.GuestError(f"the guest began no case:\n{text}")
        assert ended or len(answers) <= len(steps)
        return answers


def _shares(steps: dict[str, Step]) -> Sequence[dict[str, Step]]:
    """One boot for each machine, filled alike; what does not fit is left for the next round."""
    shares: list[dict[str, Step]] = [{} for _ in range(MACHINES)]
    room = [vm.DISKS_MAX - 1] * MACHINES
    for name, step in steps.items():
        machine = room.index(max(room))
        if len(step.members) <= room[machine]:
            room[machine] -= len(step.members)
            shares[machine][name] = step
    return [share for share in shares if share]
