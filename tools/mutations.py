"""Mutation testing: change the package in small ways, one at a time, and see whether a test fails.

    pip install cosmic-ray
    python tools/mutations.py dynamics --number 50 --out runs/mutations

Draws changes at random from all that cosmic-ray would make in a part of the package, makes each in a clone of the last
commit, and runs that part's tests until one fails. Prints the mutation score, which is the share of changes that failed
a test, with its 95 % interval, and each change that survived. The same command resumes an interrupted session.
"""

import argparse
import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult
from scipy.stats import binomtest

ROOT = Path(__file__).parent.parent
# Files that are changed, and tests that are run for them, fastest first.
PARTS = {
    "dynamics": (["plif_lightning/dynamics"], ["plif_lightning/dynamics", "tests/dynamics", "tests/neurons"]),
    "kernels": (["plif_lightning/kernels"], ["plif_lightning/kernels", "tests/kernels", "tests/neurons"]),
    "network": (["plif_lightning/network"], ["plif_lightning/network", "tests/network", "tests/structure"]),
    "integration": (["plif_lightning/events/integration.py"], ["tests/events/test_integration.py", "tests/data"]),
}
# Not drawn: types (`int | None`), decorators (a compiled function computes the same without its own), and Triton, which
# needs a GPU.
LEFT_OUT = re.compile(r"core/(ReplaceBinaryOperator_BitOr_.*|RemoveDecorator)$")
GPU = ["plif_lightning/kernels/gpu.py", "plif_lightning/kernels/triton_code.py"]


def prepared(part: str, number: int, seed: int, out: Path) -> Path:
    """The session of a part: all changes that can be made in a clone, all but `number` of them marked as left out."""
    session = out / part / "session.sqlite"
    if session.is_file():
        return session
    clone, config, made = session.with_name("clone"), session.with_name("config.toml"), session.with_name("new.sqlite")
    session.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    files, tests = PARTS[part]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n0", *tests]
    lines = [
        "[cosmic-ray]",
        f"module-path = {files}",
        f"excluded-modules = {GPU}",
        "timeout = 900.0",  # of an endless loop; far above the tests' time
        f"test-command = {shlex.join(command)!r}",
        "[cosmic-ray.distributor]",
        'name = "local"',
    ]
    config.write_text("\n".join([*lines, ""]), "utf-8")
    call("init", config, made, clone)
    with use_db(str(made), WorkDB.Mode.open) as db:
        jobs = {str(item.mutations): item for item in db.work_items}  # in an order that does not depend on random names
        usable = [jobs[key] for key in sorted(jobs) if not LEFT_OUT.match(jobs[key].mutations[0].operator_name)]
        drawn = random.Random(seed).sample(usable, min(number, len(usable)))
        left_out = {item.job_id for item in jobs.values()} - {item.job_id for item in drawn}
        db.set_multiple_results(left_out, WorkResult(WorkerOutcome.SKIPPED))
    print(f"{part}: {len(drawn)} of {len(usable)} changes")
    made.rename(session)
    return session


def call(command: str, config: Path, session: Path, clone: Path) -> None:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    words = [sys.executable, "-m", "cosmic_ray.cli", command, str(config), str(session)]
    subprocess.run(words, check=True, cwd=clone, env=environment)


def report(session: Path) -> None:
    """Print the score and the changes that no test noticed."""
    with use_db(str(session), WorkDB.Mode.open) as db:
        results = [result for _, result in db.results if result.worker_outcome != WorkerOutcome.SKIPPED]
    survived = [result for result in results if result.test_outcome == TestOutcome.SURVIVED]
    for result in survived:
        print(result.diff)
    killed, total = len(results) - len(survived), len(results)
    low, high = binomtest(killed, total).proportion_ci(method="wilson")
    print(f"{killed} of {total} changes failed a test: {killed / total:.0%} [{low:.0%}, {high:.0%}]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--number", type=int, default=50, help="how many changes are drawn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/mutations"))
    given = parser.parse_args()
    session = prepared(given.part, given.number, given.seed, given.out.absolute())
    call("exec", session.with_name("config.toml"), session, session.with_name("clone"))
    report(session)


if __name__ == "__main__":
    main()
