"""The whole campaign of power cuts: every level and policy, a row each; then what was broken, and what replays it (make crash)."""

import argparse
import sys

from raidlib import lab

HEAD = f"{'level':>5} {'policy':8}{'workloads':>10}{'moments':>10}{'generated':>11}{'distinct':>10}{'nested':>9}"
HEAD += f"{'refused':>9}{'-1 member':>11}{'holes':>8}{'violations':>11}{'states/s':>10}"


def end_with_the_first(tally: lab.Tally) -> None:
    """Exit code 1."""
    for violation in tally.violations:
        sys.exit(f"{violation.problem}: {violation.command}")


def main() -> int:
    """Runs it; 1: something is broken."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--states", type=int, default=500_000, help="distinct states, in all")
    options.add_argument("--processes", type=int, default=1)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--most", type=int, help="of each workload only so many states")
    options.add_argument("--first", action="store_true", help="all workloads of one operation, then longer ones; ended by a violation")
    given = options.parse_args()
    pairs, tallies = [(level, policy) for level in lab.SHAPES for policy in lab.POLICIES], []
    print(HEAD, flush=True)
    each = {"seed": given.seed, "most": given.most}
    if given.first:
        states = given.states // len(pairs)
        campaigns = (lab.campaign(*pair, states=states, longest=1, progress=end_with_the_first, **each) for pair in pairs)
    else:
        campaigns = lab.campaigns(pairs, given.states, given.processes, **each)
    for t in campaigns:
        tallies.append(t)
        print(
            f"{t.level:>5} {t.policy:8}{t.words:>10}{t.moments:>10}{t.generated:>11}{t.distinct:>10}{t.nested:>9}"
            f"{t.refused:>9}{t.refused_without:>11}{t.write_holes:>8}{len(t.violations):>11}{t.rate:>10.0f}",
            flush=True,
        )
    violations = [violation for t in tallies for violation in t.violations]
    print(f"{sum(t.distinct for t in tallies)} distinct states, {len(violations)} violations")
    for violation in violations:
        print(f"{violation.problem}\n    {violation.command}")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
