"""How fast is a mount of ours: cold over a slow link, warm, and against others on the same tree?

    python -m benchmarks [--peer /path/to/nydusd] [--rounds 5]       every row, one table
    python -m benchmarks --rounds 1 --paths 1500 --rows tar,random   some rows, soon
    python -m benchmarks imports      what a start imports, and how long that takes
    python -m benchmarks readahead    what readahead the mounts should have
    python -m benchmarks scale        start-up and memory with 1,000 and with 500,000 files

Prints Markdown: medians of the rounds, ratios, and which goals are reached. Every row names its unit, every
byte that was read is compared with the source. Needs root, /dev/fuse, loop devices and Debian's
docker-registry; Debian's erofsfuse takes part where it is installed.
"""

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks import devices, imports, readahead, reads, scale, scene, walks
from benchmarks.contestants import add_arguments, contestants
from benchmarks.lives import Measurement
from benchmarks.rows import EROFSFUSE, EXT4, GROUPS, RANDOM_SHAPES
from benchmarks.subject import Tree, erofsfuse_copy, ext4_copy
from benchmarks.table import Table

COMMANDS = {"imports": imports.main, "readahead": readahead.main, "scale": scale.main}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", default=",".join(GROUPS), help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--erofsfuse", default="erofsfuse", help="the program; '' leaves it out")
    scene.add_arguments(parser)
    add_arguments(parser)
    options = parser.parse_args()
    options.rows = frozenset(options.rows.split(","))
    if unknown := options.rows - set(GROUPS):
        parser.error(f"--rows: no such group: {', '.join(sorted(unknown))}")
    return options


def main() -> None:
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        COMMANDS[sys.argv[1]](sys.argv[2:])
        return
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="nydusd-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        stage = stack.enter_context(scene.scene(options, folder))
        chosen = contestants(options, folder, stage.subject, stage.chunk_count)
        daemons, remarks = zip(*(who.rehearsed(stage.host) for who in chosen), strict=True)
        trees = copies(stack, options, folder, stage)
        table = Table([*(who.column for who in daemons), *trees])
        source = stage.subject.source
        plans = {kib: reads.plan_reads(source, stage.large, kib) for kib, _ in RANDOM_SHAPES}
        measurement = Measurement(
            table=table,
            subject=stage.subject,
            victim=stage.victim,
            groups=options.rows,
            link=stage.link,
            host=stage.host,
            mbit=options.mbit,
            big=stage.big,
            plans=plans,
            device_plans={
                kib: devices.plan_of_devices(plan, stage.subject.bootstrap)
                for kib, plan in plans.items()
            },
            xattrs=walks.getfattr(source)[1],
        )
        print(f"{stage.title}; medians of {options.rounds}\n", flush=True)
        for remark in filter(None, remarks):
            table.note(remark)
        for number in range(options.rounds):
            # Another order in each round: nobody always comes behind the same neighbour.
            for who in [*daemons[number % len(daemons) :], *daemons[: number % len(daemons)]]:
                measurement.round_of(who)
            for column, tree in trees.items():
                measurement.round_of_tree(column, tree)
        print(table.markdown())
        print(f"\n{table.goals()}")


def copies(
    stack: ExitStack, options: argparse.Namespace, folder: Path, stage: scene.Scene
) -> dict[str, Tree]:
    """Mount the same tree as others do, as far as the rows ask for what they can show."""
    trees: dict[str, Tree] = {}
    if options.rows & {"find", "getfattr", "tar", "sequential", "random"}:
        if program := scene.found(options.erofsfuse):
            trees[EROFSFUSE] = stack.enter_context(erofsfuse_copy(stage.subject, folder, program))
        trees[EXT4] = stack.enter_context(ext4_copy(stage.subject, folder))
    return trees


main()
