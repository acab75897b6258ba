"""Run fuzz targets: ``fuzz/run.py TARGET|all [--seconds N] [--seed S] [--engine blind|atheris]``.

``blind`` (built in) mutates the corpus without looking at coverage: byte flips, splices, truncations, boundary integers
and the target's DICTIONARY. ``atheris`` is coverage-guided, where it is installed. A finding is saved to fuzz/findings/, its
path and bytes are printed, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import random
import sys
import time
import traceback
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
MAX_INPUT = 4096  # bytes; every table and length field of the codecs can be reached below it
BOUNDARIES = (0, 1, 13, 14, 19, 20, 40, 60, 127, 128, 255, 256, 1500, 32_767, 32_768, 65_534, 65_535)


def names() -> list[str]:
    """Every target, sorted."""
    return sorted(path.stem for path in (HERE / "targets").glob("*.py") if path.stem != "__init__")


def load(name: str) -> ModuleType:
    """The module of target `name`; it has ``fuzz_one`` and may have ``DICTIONARY``. KeyError where there is none."""
    path = HERE / "targets" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"fuzz_target_{name}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise KeyError(name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def corpus(name: str) -> dict[str, bytes]:
    """The named seeds of target `name`."""
    return {path.stem: path.read_bytes() for path in sorted((HERE / "corpus" / name).glob("*.bin"))}


def mutate(seeds: list[bytes], dictionary: tuple[bytes, ...], source: random.Random) -> bytes:
    """One input: a seed changed in 1 to 8 places."""
    data = bytearray(source.choice(seeds))
    for _ in range(1 << source.randrange(4)):
        at = source.randrange(len(data) + 1)
        match source.randrange(8):
            case 0 if data:
                data[at % len(data)] ^= 1 << source.randrange(8)
            case 1 if data:
                data[at % len(data)] = source.randrange(256)
            case 2:
                del data[at:]
            case 3:
                other = source.choice(seeds)
                data[at:] = other[source.randrange(len(other) + 1) :]
            case 4:
                value = source.choice(BOUNDARIES).to_bytes(2, source.choice(("big", "little")))
                data[at : at + 2] = value
            case 5 if dictionary:
                word = source.choice(dictionary)
                data[at : at + source.choice((0, len(word)))] = word
            case 6:
                data[at : at + source.randrange(1, 9)] = b""
            case _:
                data[at:at] = source.randbytes(source.randrange(1, 17))
    return bytes(data[:MAX_INPUT])


def save(name: str, data: bytes) -> Path:
    """Keep a finding under a name made of its bytes."""
    folder = HERE / "findings"
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}_{hashlib.sha256(data).hexdigest()[:12]}.bin"
    path.write_bytes(data)
    return path


def attempt(name: str, target: ModuleType, data: bytes) -> bool:
    """Run one input; False, and everything about it told, where the invariant fails."""
    try:
        target.fuzz_one(data)
    except Exception:
        traceback.print_exc()
        print(f"{name}: FINDING {save(name, data)}\n{data.hex()}", flush=True)
        return False
    return True


def blind(name: str, seconds: float, seed: int) -> bool:
    """Replay the corpus, then mutate it for `seconds`; False after a finding."""
    target, source = load(name), random.Random(f"{name} {seed}")
    seeds = [*corpus(name).values(), b""]
    dictionary = getattr(target, "DICTIONARY", ())
    if not all(attempt(name, target, data) for data in seeds):
        return False
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(100):
            if not attempt(name, target, mutate(seeds, dictionary, source)):
                return False
        count += 100
    print(f"{name}: {count} inputs, seed {seed}: no finding", flush=True)
    return True


def guided(name: str, seconds: float, seed: int) -> None:
    """Hand the target to atheris, which ends the process; it writes its findings itself."""
    try:
        atheris = importlib.import_module("atheris")
    except ImportError:
        sys.exit("fuzz: --engine atheris needs the package atheris; --engine blind needs nothing")
    with atheris.instrument_imports(include=["sulla_trio"]):
        target = load(name)
    # What it finds interesting goes into the first folder: not among the named seeds.
    grown = HERE / "findings" / f"{name}_corpus"
    grown.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={int(seconds)}", f"-seed={seed}", f"-artifact_prefix={HERE}/findings/{name}_"]

    def one(data: bytes) -> None:
        if not attempt(name, target, data):
            raise AssertionError("the invariant does not hold")

    atheris.Setup([sys.argv[0], *options, str(grown), str(HERE / "corpus" / name)], one)
    atheris.Fuzz()


def main() -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser(prog="fuzz", description="run fuzz targets", allow_abbrev=False)
    parser.add_argument("target", choices=[*names(), "all"])
    parser.add_argument("--seconds", type=float, default=10.0, help="for each target (default 10)")
    parser.add_argument("--seed", type=int, default=1, help="of the mutations (default 1)")
    parser.add_argument("--engine", choices=("blind", "atheris"), default="blind")
    arguments = parser.parse_args()
    if arguments.engine == "atheris":
        if arguments.target == "all":
            parser.error("--engine atheris takes one target: it ends the process")
        guided(arguments.target, arguments.seconds, arguments.seed)
    chosen = names() if arguments.target == "all" else [arguments.target]
    # Every target gets its turn, whatever the ones before it found.
    results = [blind(name, arguments.seconds, arguments.seed) for name in chosen]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
