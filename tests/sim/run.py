#!/usr/bin/python3
"""The simulator as `make test` runs it: the seeds hold, a seed replays to the byte, and every
protection that is taken away is missed by an invariant. Prints "ok ..." or "FAILED ..." per check.

  tests/sim/run.py build/release/sim [SEEDS [START]]
"""
import re
import subprocess
import sys

SEEDS = 2000
BREAK_SEEDS_MAX = 400  # most are noticed by the first ten


class Sim:
    def __init__(self, program):
        self.program = program

    def run(self, *arguments):
        done = subprocess.run([self.program, *map(str, arguments)], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=1200, check=False)
        return done.returncode, done.stdout

    def trace(self, seed, *arguments):
        return self.run("--start", seed, "--seeds", 1, "--trace", *arguments)


def invariants_hold(sim, seeds, start):
    status, text = sim.run("--seeds", seeds, "--start", start)
    return status == 0, f"{seeds} seeds from {start}", text


def a_seed_replays_to_the_byte(sim):
    for seed in (1, 7, 77):
        first, second = sim.trace(seed), sim.trace(seed)
        if first != second or len(first[1].splitlines()) < 50:
            return False, "a seed replays", f"two traces of seed {seed} differ"
    return True, "a seed replays", ""


def a_broken_protection_is_noticed(sim, name):
    """And the seed that notices it does so again, with the same trace."""
    what = f"'{name}' is noticed"
    status, text = sim.run("--seeds", BREAK_SEEDS_MAX, "--break", name, "--failures", 1)
    found = re.findall(r"^FAILED seed (\d+)", text, re.M)
    if status != 1 or "INVARIANT" not in text or not found:
        return False, what, text or "no invariant minds"
    first, second = (sim.trace(found[0], "--break", name) for _ in range(2))
    if first != second or "INVARIANT" not in first[1]:
        return False, what, f"seed {found[0]} does not replay"
    return True, what + f" (seed {min(map(int, found))})", ""


def main():
    sim = Sim(sys.argv[1])
    seeds, start = ([int(a) for a in sys.argv[2:]] + [SEEDS, 1][len(sys.argv[2:]):])[:2]
    checks = [lambda: invariants_hold(sim, seeds, start), lambda: a_seed_replays_to_the_byte(sim)]
    for name in sim.run("--list-breaks")[1].split():
        checks.append(lambda name=name: a_broken_protection_is_noticed(sim, name))
    failed = 0
    for check in checks:
        good, what, text = check()
        failed += not good
        print(f"{'ok' if good else 'FAILED'} sim: {what}", flush=True)
        if not good:
            print("\n".join(text.splitlines()[-40:]), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
