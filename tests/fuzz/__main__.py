"""`python -m tests.fuzz --cases 1000000`: feed spoiled files to everything that reads files.

Each case is taken or refused in one line. Anything else (another exception, more than the stated memory, more than the
stated time) is printed with a smallest example and its bytes, and the exit code is 1. The address space is limited, so
a header that claims a petabyte fails loudly if anyone believes it.
"""

import argparse
import base64
import resource
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.targets import TARGETS, Target, feed

BATCH_CASES = 2_000
LIMIT_BYTES = 512 << 20
"""What a case may take beside the interpreter and its libraries. The files are a few kB."""
LIMIT_S = 10.0


class TooSlowError(AssertionError):
    """A case took longer than LIMIT_S."""


def batch(target: Target, cases: int, number: int, folder: Path, outcomes: Counter[bool]) -> BaseException | None:
    """Feed `cases` spoiled files, drawn with `number` as the seed; the first failure, made small."""

    @seed(number)
    @settings(
        max_examples=cases, database=None, deadline=None, report_multiple_bugs=False, print_blob=False,
        phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck),
    )
    @given(target.files)
    def case(data: bytes) -> None:
        started = time.process_time()  # of this process alone: others may keep the machine busy
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                outcomes[feed(target, data, folder)] += 1
            if time.process_time() - started > LIMIT_S:
                raise TooSlowError(f"{time.process_time() - started:.1f} s")
        except BaseException as error:
            error.data = data  # type: ignore[attr-defined]
            raise

    try:
        case()
    except Exception as error:
        return error
    return None


def limit_memory() -> None:
    """From here on the process gets LIMIT_BYTES of address space and no more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> None:
    """Run, print what was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=20_000, help="how many files (default 20,000)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same files (default 0)")
    parser.add_argument("--only", choices=sorted(TARGETS), help="feed one reader only")
    arguments = parser.parse_args()
    limit_memory()
    chosen = {arguments.only: TARGETS[arguments.only]} if arguments.only else TARGETS
    share = arguments.cases / sum(target.weight for target in chosen.values())
    failures: dict[str, BaseException] = {}
    started = time.monotonic()
    for name, target in chosen.items():
        outcomes: Counter[bool] = Counter()
        left, number = round(share * target.weight), arguments.seed
        with TemporaryDirectory() as folder:
            while left > 0:
                error = batch(target, min(left, BATCH_CASES), number, Path(folder), outcomes)
                left, number = left - BATCH_CASES, number + 1
                if error is not None:
                    last = traceback.extract_tb(error.__traceback__)[-1]
                    key = f"{name}: {type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
                    if key not in failures:
                        failures[key] = error
                        print(f"FAILED {key}: {str(error)[:300]}")
                        print(f"  {base64.b64encode(getattr(error, 'data', b''))[:2000].decode()}", flush=True)
        print(f"{name}: {outcomes[True]:,} taken, {outcomes[False]:,} refused", flush=True)
    print(f"{len(failures)} failures in {time.monotonic() - started:.0f} s")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
