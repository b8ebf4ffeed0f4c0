"""Damaged and hostile files for every reader, many of them: `python tools/fuzz.py --cases 10000 --seed 1`.

Reported by reader: errors that are no sentence or one of several lines, crashes, cases that take more than 10 s, and
those that take more than 1 GB. The short form is tests/test_fuzz.py. `--readers NAME --only I` repeats a case.
`--report FILE` also appends what is found to a file; run again, the readers that are in it are left out. On a busy
machine, where ten seconds pass without much happening, `--seconds 60`."""
import argparse
import collections
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT/"tests")]

import torch
from fuzz import READERS, SHARES, case_rng, outcome

MEMORY = 2**30
STARTS = 120 # seconds in which a reader has its whole file ready


def peak_memory(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024


def work(name, seed, cases, results):
    "Run cases of a reader, in a process of its own; (case, outcome, bytes) of each."
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sys.stdout = sys.stderr = open(os.devnull, "w") # noqa: SIM115 (for the life of the process)
    os.dup2(sys.stderr.fileno(), 2) # libraries in C
    with tempfile.TemporaryDirectory() as folder:
        random.seed(0)
        try:
            case = READERS[name](Path(folder))
            found = outcome(case(None))
        except Exception as e: found = f"{type(e).__name__}: {e}"
        results.put((None, found, 0))
        if found != "read": return
        for i in cases:
            read = case(case_rng(name, seed, i))
            before = peak_memory()
            results.put((i, None, 0))
            found = outcome(read)
            results.put((i, found.replace(folder, "…"), peak_memory() - before))


class Report:
    "What became of the cases of one reader."
    def __init__(self, name):
        self.name, self.counts, self.examples, self.seconds = name, collections.Counter(), {}, 0.

    def add(self, i, found):
        kind = found if found in ("read", "refused") else found[:60]
        self.counts[kind] += 1
        self.examples.setdefault(kind, (i, found))

    @property
    def faults(self): return {kind: n for kind, n in self.counts.items() if kind not in ("read", "refused")}

    def __str__(self):
        total = sum(self.counts.values())
        head = (f"{self.name}: {total} cases in {self.seconds:.0f} s, {self.counts['read']} read, "
                f"{self.counts['refused']} refused, {sum(self.faults.values())} faults")
        faults = [f"  {n} times, first in case {self.examples[kind][0]}: {self.examples[kind][1]}"
                  for kind, n in self.faults.items()]
        return "\n".join([head, *faults])


def next_message(results, process, seconds):
    "A message of the worker; None where it died or is silent for so long."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try: return results.get(timeout=.2)
        except multiprocessing.queues.Empty: pass
        if not process.is_alive() and results.empty(): return None
    return None


def supervise(name, seed, cases, report, seconds):
    "Run cases in a worker until they are finished or one of them ends it; the cases that are left."
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=work, args=(name, seed, cases, results))
    process.start()
    left, running = list(cases), None
    while left:
        message = next_message(results, process, seconds if running is not None else STARTS)
        if message is None:
            was_alive = process.is_alive()
            process.kill()
            process.join()
            how = f"more than {seconds:g} s" if was_alive else f"the process ended with {process.exitcode}"
            report.add(running, how if running is not None else f"no whole file: {how}")
            return [i for i in left if i != running] if running is not None else []
        i, found, grown = message
        if i is None:
            if found == "read": continue
            report.add(None, f"the whole file: {found}")
            break
        elif found is None: running = i
        else:
            report.add(i, f"{grown >> 20} MB more memory" if grown > MEMORY else found)
            left.remove(i)
            running = None
    process.join()
    return []


def finished_reports(path) -> dict: # name of a reader: first line of its report
    if path is None or not path.exists(): return {}
    heads = [line for line in path.read_text().splitlines() if not line.startswith(" ")]
    return {head.rsplit(": ", 1)[0]: head for head in heads}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10000, help="of all readers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", nargs="*", default=list(READERS), help="names, or beginnings of names")
    parser.add_argument("--only", type=int, help="one case of each reader")
    parser.add_argument("--seconds", type=float, default=10, help="that a case may take")
    parser.add_argument("--report", type=Path, help="file to which reports are appended; its readers are left out")
    options = parser.parse_args()
    names = [name for name in READERS if name.startswith(tuple(options.readers))]
    names.sort(key=lambda name: -SHARES.get(name, 1.)) # the slow ones last
    shares = {name: SHARES.get(name, 1.) for name in names}
    reports = finished_reports(options.report)
    has_faults = any(" 0 faults" not in head for head in reports.values())
    for name in names:
        if name in reports: continue
        report, begun = Report(name), time.monotonic()
        n = max(1, round(options.cases*shares[name]/sum(shares.values())))
        left = list(range(n)) if options.only is None else [options.only]
        while left: left = supervise(name, options.seed, left, report, options.seconds)
        report.seconds = time.monotonic() - begun
        has_faults |= bool(report.faults)
        print(report, flush=True)
        if options.report is not None:
            with options.report.open("a") as f: f.write(f"{report}\n")
    return int(has_faults)


if __name__ == "__main__": sys.exit(main())
