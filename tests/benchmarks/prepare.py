"""How fast is text encoded with a Hugging Face tokenizer, against the `tokenizers` library, and the whole of `prepare`?

    python tests/benchmarks/prepare.py TOKENIZER_FOLDER [SOURCE] [--rounds 3]

On one core: megabytes of text a second by `tokenizers` (`encode_batch`, and `encode_batch_fast`, which leaves offsets out), by the
trainer, and by the whole of `prepare`, reading and writing included; `prepare` again on two cores. All in turn, the best of the
rounds, in seconds of the processor but for the two cores. Ends with 1 when a tokenizer that goes through tiktoken encodes at less than 8
times the library's speed, `prepare` runs at less than 6 times, two cores at less than 1.6 times one, or another tokenizer
encodes at less than the library's speed.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core means one
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from trainer.data.encode import batches
from trainer.data.prepare import prepare
from trainer.data.sources import documents, open_source
from trainer.data.tokenizer import load_tokenizer

TIMES_ENCODING, TIMES_PREPARE, TIMES_TWO_CORES = 8.0, 6.0, 1.6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer")
    parser.add_argument("source", nargs="?", default="embedded:shakespeare")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(arguments.tokenizer)
    texts = [*documents(open_source(arguments.source), None)]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    print(f"{tokenizer.vocab_size:,} ids; {megabytes:.1f} MB in {len(texts):,} documents; {tokenizer.way}")
    parts = [[text for _, text in part] for part in batches((None, text) for text in texts)]

    def encode() -> None:
        for part in parts:
            tokenizer.encode_batch(part)

    def by_library(function: str) -> Callable[[], None]:
        call = getattr(tokenizer.backend, function)
        return lambda: [encoding.ids for part in parts for encoding in call(part, add_special_tokens=False)]

    ways = {
        "encode_batch": by_library("encode_batch"),
        "encode_batch_fast": by_library("encode_batch_fast"),
        "trainer": encode,
    }
    ways |= {f"prepare, {number} core{'s'[: number - 1]}": preparing(arguments, number) for number in (1, 2)}
    best = dict.fromkeys(ways, 0.0)
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            best[name] = max(best[name], megabytes / measured(way, wall=name.startswith("prepare")))
    for name, speed in best.items():
        print(
            f"{name:>18}  {speed:6.2f} MB/s  {speed / best['encode_batch']:5.1f} x encode_batch  {speed / best['encode_batch_fast']:5.1f} x encode_batch_fast"
        )
    library, two = best["encode_batch"], best["prepare, 2 cores"] / best["prepare, 1 core"]
    print(f"two cores: {two:.2f} x one")
    if isinstance(tokenizer.bridge, str):
        sys.exit(best["trainer"] < best["encode_batch_fast"] * 0.95)  # what is left is noise
    sys.exit(
        best["trainer"] < TIMES_ENCODING * library
        or best["prepare, 1 core"] < TIMES_PREPARE * library
        or two < TIMES_TWO_CORES
    )


def preparing(arguments: argparse.Namespace, cores: int) -> Callable[[], None]:
    """The whole of `prepare` on so many cores, into a folder of its own each time."""

    def run() -> None:
        allowed = os.sched_getaffinity(0)
        with tempfile.TemporaryDirectory() as folder:
            os.sched_setaffinity(0, sorted(allowed)[:cores])
            try:
                prepare([arguments.source], Path(folder) / "corpus", arguments.tokenizer, num_workers=cores)
            finally:
                os.sched_setaffinity(0, allowed)

    return run


def measured(way: Callable[[], object], *, wall: bool) -> float:
    clock = time.perf_counter if wall else time.process_time
    started = clock()
    way()
    return clock() - started


if __name__ == "__main__":
    main()
