"""The simulator's models once more, in plain Python, slow and obvious, and without any of raidlib: the oracle of test_sim_montecarlo.

Every disk is simulated by itself. A failure is drawn by thinning: candidates come at a rate that no hazard exceeds, and are taken with
probability hazard / rate. Latent errors are made one by one, each with its scrub.
"""

import dataclasses
import random
from collections.abc import Callable


@dataclasses.dataclass
class Disk:
    born: float = 0.0
    bad: bool = False
    state: str = "up"  # up, short (waits for a disk), queued (waits for a crew), rebuilding
    due: float = float("inf")
    begun: float = 0.0
    errors: list = dataclasses.field(default_factory=list)  # (comes, is found)


@dataclasses.dataclass
class Naive:
    """hazard(age): per hour, at most hazard_max. Draws are functions of a random.Random. loses(set of disks down): the verdict."""

    disks: int
    hazard: Callable
    hazard_max: float
    repair: Callable
    hours: float
    loses: Callable
    crews: int = 10**9
    spares: int = 10**9
    replacement: Callable = lambda rng: 0.0
    latent_per_hour: float = 0.0
    scrub: Callable = lambda rng: float("inf")
    shock_per_hour: float = 0.0
    shock_kills: int = 0
    shock_probability: float = 0.0
    shelf: int = 0
    shock_by_shelf: bool = False
    boost: float = 1.0
    boost_hours: float = 0.0
    batch: int = 0
    batch_probability: float = 0.0
    batch_factor: float = 1.0
    counting: bool = False

    def mission(self, rng: random.Random) -> int:
        """How many losses (0 or 1 where they are not counted)."""
        self.rng, self.losses, self.blocked = rng, 0, False
        self.unit = [Disk() for _ in range(self.disks)]
        self.waiting, self.orders, self.stock = [], [], self.spares
        self.boosted = {}
        for i, disk in enumerate(self.unit):
            if self.batch and i % self.batch == 0:
                bad = rng.random() < self.batch_probability
            disk.bad = bool(self.batch) and bad
            disk.errors = self.errors_from(0.0)
        fastest = self.hazard_max * self.boost * max(1.0, self.batch_factor)
        shelves = -(-self.disks // self.shelf) if self.shock_by_shelf else 1
        t, shocks = 0.0, self.shock_per_hour * shelves
        candidate = rng.expovariate(fastest * self.disks)
        shock = rng.expovariate(shocks) if shocks else float("inf")
        while not (self.losses and not self.counting):
            due = min([disk.due for disk in self.unit if disk.state == "rebuilding"] + self.orders, default=float("inf"))
            t = min(candidate, shock, due)
            if t > self.hours:
                break
            if t == due:
                self.settle(t)
            elif t == shock:
                shock = t + rng.expovariate(shocks)
                self.strike(t, shelves)
            else:
                candidate = t + rng.expovariate(fastest * self.disks)
                i = rng.randrange(self.disks)
                disk = self.unit[i]
                rate = self.hazard(t - disk.born) * (self.batch_factor if disk.bad else 1.0)
                if self.shelf and self.boosted.get(i // self.shelf, 0.0) > t:
                    rate *= self.boost
                if disk.state == "up" and rng.random() < rate / fastest:
                    self.fail(i, t)
        return self.losses

    def errors_from(self, born: float) -> list:
        errors, t = [], born
        while self.latent_per_hour:
            t += self.rng.expovariate(self.latent_per_hour)
            if t > self.hours:
                break
            errors.append((t, t + self.scrub(self.rng)))
        return errors

    def strike(self, t: float, shelves: int) -> None:
        places = list(range(self.disks))
        if self.shock_by_shelf:
            first = self.rng.randrange(shelves) * self.shelf
            places = places[first : first + self.shelf]
        hit = (
            self.rng.sample(places, self.shock_kills)
            if self.shock_kills
            else [i for i in places if self.rng.random() < self.shock_probability]
        )
        for i in hit:
            if self.unit[i].state == "up" and not (self.losses and not self.counting):
                self.fail(i, t)

    def fail(self, i: int, t: float) -> None:
        disk = self.unit[i]
        disk.state = "short"
        self.waiting.append(i)
        if self.spares < 10**9:
            self.orders.append(t + self.replacement(self.rng))
        if self.stock:
            self.stock -= 1
            disk.state = "queued"
        self.hire(t)
        if self.shelf:
            self.boosted[i // self.shelf] = t + self.boost_hours
        down = {k for k, other in enumerate(self.unit) if other.state != "up"}
        if self.blocked:
            return
        # by this failure, and not since an earlier one: what came meanwhile, the rebuild has found or will find
        needed = [k for k in range(self.disks) if k not in down and self.loses(down | {k}) and not self.loses(down - {i} | {k})]
        if self.loses(down) or any(comes <= t < found for k in needed for comes, found in self.unit[k].errors):
            self.losses += 1
            self.blocked = True

    def hire(self, t: float) -> None:
        for i in self.waiting:
            disk = self.unit[i]
            if disk.state == "queued" and sum(other.state == "rebuilding" for other in self.unit) < self.crews:
                disk.state, disk.begun, disk.due = "rebuilding", t, t + self.repair(self.rng)

    def settle(self, t: float) -> None:
        if t in self.orders:
            self.orders.remove(t)
            short = [i for i in self.waiting if self.unit[i].state == "short"]
            if short:
                self.unit[short[0]].state = "queued"
            else:
                self.stock += 1
        else:
            i = next(k for k in self.waiting if self.unit[k].due == t)
            self.waiting.remove(i)
            self.unit[i] = Disk(born=t, errors=self.errors_from(t))
        self.hire(t)
        if self.blocked and not self.waiting:
            self.blocked = False
            for disk in self.unit:
                disk.errors = self.errors_from(t)


def estimate(model: Naive, missions: int, seed: int) -> tuple[float, float]:
    """Losses a mission, and the standard error of it."""
    rng = random.Random(seed)
    scores = [model.mission(rng) for _ in range(missions)]
    mean = sum(scores) / missions
    return mean, (max(sum((score - mean) ** 2 for score in scores), 1.0) / missions / missions) ** 0.5
