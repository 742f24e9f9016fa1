"""The targets of the fuzz under atheris, which looks for inputs that reach new lines.

Atheris is not among the dependencies. With it installed beside etude, from the checkout:

    PYTHONPATH=src:. python tests/fuzz/atheris_fuzz.py "picture png" -max_total_time=600

The first word is a target's name (without one they are listed); the others are libFuzzer's.
"""

import sys
import tempfile
from pathlib import Path

import atheris  # pyright: ignore[reportMissingImports]

with atheris.instrument_imports(include=["etude"]):
    from tests.fuzz.targets import TARGETS

from etude.core.errors import UserError


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit("\n".join(TARGETS))
    target = TARGETS[sys.argv.pop(1)]
    seeds, folder = target.seeds(), Path(tempfile.mkdtemp(prefix="etude-atheris-"))

    def one(data: bytes) -> None:
        given = atheris.FuzzedDataProvider(data)

        def pick(count: int) -> int:
            return given.ConsumeIntInRange(0, count - 1)

        path = folder / f"file{target.suffix}"
        path.write_bytes(target.mutate(pick, seeds[pick(len(seeds))]))
        try:
            target.read(path)
        except UserError as error:
            if len(str(error).splitlines()) != 1:
                raise AssertionError("a refusal of more than one line") from error

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
