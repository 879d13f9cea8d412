"""The simulator against the same models written with SimPy (the usual way: a process for each disk).

    python bench/sim.py [--rounds 5] [--years 5] [--json FILE]

Both sides simulate whole missions of one group, on one core; rounds are interleaved, times are the process's own CPU time, and the ratio is
the median of the rounds' ratios. Then what there is no rival for: latent errors, a pool, the time that the rare-event estimator takes to a
standard error, that of an exact chain; and what two workers of Dask do in the time of one (wall clock), beside what two bare processes do:
more than that no library can give.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import logging
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import distributed
import simpy

from raidlib.sim import study as sim_study
from raidlib.sim.chains import Group
from raidlib.sim.model import HOURS_PER_YEAR, LatentErrors, Law, Pool, Repair, System
from raidlib.sim.montecarlo import Block, Kernel, simulate
from raidlib.sim.study import Study
from raidlib.sim.sweep import Sweep, run_sweep

Draw = Callable[[random.Random], float]


def simpy_missions(count: int, disks: int, tolerance: int, life: Draw, repair: Draw, hours: float, seed: int) -> int:
    """How many of the missions lost data."""
    rng, lost = random.Random(seed), 0
    for _ in range(count):
        env, down = simpy.Environment(), [0]
        over = env.event()

        def disk(env: Any = env, down: list[int] = down, over: Any = over) -> Any:
            while True:
                yield env.timeout(life(rng))
                down[0] += 1
                if down[0] > tolerance and not over.triggered:
                    over.succeed()
                yield env.timeout(repair(rng))
                down[0] -= 1

        for _ in range(disks):
            env.process(disk())
        env.run(until=env.any_of([over, env.timeout(hours)]))
        lost += over.triggered
    return lost


def timed(work: Callable[..., object], *arguments: object) -> float:
    start = time.process_time()
    work(*arguments)
    return time.process_time() - start


def race(name: str, system: System, life: Draw, repair: Draw, rounds: int) -> dict[str, Any]:
    """Missions a second of both, and the median of the ratios."""
    kernel, slow, fast = Kernel(system), 2000, 4_000_000
    pairs = []
    for seed in range(rounds):
        rival = timed(simpy_missions, slow, system.disks, system.tolerance, life, repair, system.mission_hours, seed) / slow
        ours = timed(kernel.play, Block(method="crude", seed=seed, number=0, missions=fast)) / fast
        pairs.append((rival, ours))
    years = system.mission_hours / HOURS_PER_YEAR
    return {
        "model": name,
        "array_years_per_s": years / statistics.median(ours for _, ours in pairs),
        "simpy_array_years_per_s": years / statistics.median(rival for rival, _ in pairs),
        "ratio": statistics.median(rival / ours for rival, ours in pairs),
    }


def races(years: float, rounds: int) -> list[dict[str, Any]]:
    """8+2 with exponential and with Weibull laws."""
    hours = years * HOURS_PER_YEAR
    plain = System(disks=10, tolerance=2, lifetime=Law.from_afr(0.02), repair=Repair(duration=Law.exponential(24)), mission_hours=hours)
    aged = System(
        disks=10, tolerance=2, lifetime=Law.weibull(1.12, 461386), repair=Repair(duration=Law.weibull(2, 12, 6)), mission_hours=hours
    )
    return [
        race("8+2 exponential", plain, lambda r: r.expovariate(1 / 438000), lambda r: r.expovariate(1 / 24), rounds),
        race("8+2 Weibull", aged, lambda r: r.weibullvariate(461386, 1.12), lambda r: 6 + r.weibullvariate(12, 2), rounds),
    ]


def alone(rounds: int) -> list[dict[str, Any]]:
    """Latent errors with scrubbing, and a pool of 1,000 disks."""
    latent = System(
        disks=8,
        tolerance=1,
        lifetime=Law.weibull(1.12, 461386),
        repair=Repair(duration=Law.weibull(2, 12, 6)),
        mission_hours=10 * HOURS_PER_YEAR,
        latent=LatentErrors(mean_hours=9259, scrub=Law.weibull(3, 168, 6)),
        counting=True,
    )
    pool = System(
        disks=1000,
        tolerance=2,
        lifetime=Law.from_afr(0.02),
        repair=Repair(duration=Law.exponential(24)),
        mission_hours=5 * HOURS_PER_YEAR,
        pool=Pool(groups=10_000, width=10),
    )
    years, events = [], []
    for seed in range(rounds):
        missions = 300_000
        start = time.process_time()
        Kernel(latent).play(Block(method="crude", seed=seed, number=0, missions=missions))
        years.append(10 * missions / (time.process_time() - start))
        kernel = Kernel(pool)
        start = time.process_time()
        steps = kernel.play(Block(method="crude", seed=seed, number=0, missions=3000)).steps
        events.append(steps / (time.process_time() - start))
    return [
        {"model": "latent errors with scrub, 7+1", "group_years_per_s": statistics.median(years)},
        {"model": "pool of 1,000 disks", "events_per_s": statistics.median(events)},
    ]


def rare(rounds: int) -> list[dict[str, Any]]:
    """CPU time to the standard error that is asked, by a plan of the estimator's own."""
    one_year = {"mission_hours": HOURS_PER_YEAR}
    cases = [
        ("8+2, AFR 2 %, 24 h", 10, 2, 0.02, Law.exponential(24), None, 0.01, 0.15),
        ("17+3, AFR 0.405 %, 156 h constant", 20, 3, 0.00405, Law.constant(156), None, 0.01, 1.0),
        ("10+4, AFR 1 %, 24 h, one crew", 14, 4, 0.01, Law.exponential(24), 1, 0.02, 5.0),
    ]
    lines = []
    for name, disks, tolerance, afr, repair, crews, error, target in cases:
        system = System(
            disks=disks, tolerance=tolerance, lifetime=Law.from_afr(afr), repair=Repair(duration=repair, crews=crews), **one_year
        )
        runs = []
        for seed in range(rounds):
            start = time.process_time()
            answer = simulate(system, relative_error=error, seed=seed)
            runs.append((time.process_time() - start, answer.p_loss_se / answer.p_loss, answer))
        answer = runs[0][2]
        gain = answer.p_loss / (answer.p_loss_se**2 * answer.missions)
        lines.append(
            {
                "model": name,
                "p_loss": answer.p_loss,
                "relative_error": statistics.median(got for _, got, _ in runs),
                "seconds": statistics.median(seconds for seconds, _, _ in runs),
                "seconds_target": target,
                "variance_below_crude": gain,
            }
        )
    return lines


def chain(rounds: int) -> list[dict[str, Any]]:
    """Wall clock of an exact answer."""
    group = Group(disks=10, tolerance=2, failure_per_hour=1 / 438000, repair_per_hour=1 / 24)
    seconds = []
    for _ in range(20 * rounds):
        start = time.perf_counter()
        group.chain().loss_probability(5 * HOURS_PER_YEAR)
        seconds.append(time.perf_counter() - start)
    return [{"model": "8+2, exact chain", "seconds": statistics.median(seconds)}]


SWEEP = """level = 6
raid_devices = 10
lifetime = "weibull:1.12:461386h"
years = 5
method = "mc"
missions = 400_000
seed = [0, 1, 2, 3, 4, 5, 6, 7]
"""


def two_workers(rounds: int) -> list[dict[str, Any]]:
    """Efficiency: the time of one worker over twice that of two."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        study = Path(folder) / "study.toml"
        study.write_text(SWEEP)
        sweep = Sweep.read(study)
        clusters = {
            count: stack.enter_context(
                distributed.LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=None, silence_logs=logging.ERROR)
            )
            for count in (1, 2)
        }
        pools = {count: stack.enter_context(concurrent.futures.ProcessPoolExecutor(count)) for count in (1, 2)}
        studies = [sweep.study(inputs) for inputs in sweep.combinations()]
        seconds: dict[str, list[tuple[float, float]]] = {"Dask": [], "bare processes": []}
        for number in range(rounds):
            dask, bare = [], []
            for count in (1, 2):
                start = time.perf_counter()
                run_sweep(sweep, Path(folder) / f"{number}.{count}.jsonl", scheduler=clusters[count].scheduler_address)
                dask.append(time.perf_counter() - start)
                start = time.perf_counter()
                list(pools[count].map(mc_alone, studies))
                bare.append(time.perf_counter() - start)
            seconds["Dask"].append((dask[0], dask[1]))
            seconds["bare processes"].append((bare[0], bare[1]))
    return [
        {
            "model": f"two workers, {name}",
            "seconds_one": statistics.median(one for one, _ in pairs),
            "seconds_two": statistics.median(two for _, two in pairs),
            "efficiency": statistics.median(one / two / 2 for one, two in pairs),
        }
        for name, pairs in seconds.items()
    ]


def mc_alone(study: Study) -> None:
    """One point of the sweep."""
    sim_study.simulate(study, improvements=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--years", type=float, default=5.0, help="of a mission, against SimPy")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    lines = races(options.years, options.rounds) + alone(options.rounds) + rare(options.rounds)
    lines += chain(options.rounds) + two_workers(options.rounds)
    for line in lines:
        print("  ".join(f"{key} {value:.4g}" if isinstance(value, float) else str(value) for key, value in line.items()))
    if options.json:
        options.json.write_text(json.dumps(lines, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
