"""The devices of an image as files of a mount that can be opened: what EROFS reads from, without EROFS.

    python -m benchmarks.device_server --config CONFIG --bootstrap BOOTSTRAP --mountpoint DIRECTORY

The daemon's EROFS frontend has the same devices behind the same session and relay, but in a mount that
nobody else can open, and EROFS on files refuses O_DIRECT. Here the mount is visible, and nothing else differs.

Prints `serving`, then serves until SIGTERM.
"""

import argparse
import signal
import sys
from pathlib import Path

import trio

from nydusd.config.load import load_file
from nydusd.config.model import Config
from nydusd.daemon.erofs_layout import layout_of
from nydusd.errors import NydusError
from nydusd.kernel import readahead
from nydusd.kernel.device import DeviceFiles
from nydusd.kernel.session import Session
from nydusd.kernel.stats import FsStats
from nydusd.storage.pool import open_pool


async def serve(bootstrap: Path, config: Config, mountpoint: Path) -> None:
    """Show device 0 of the image as the file `0`, and so on."""
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with open_pool() as pool:
            image = await pool.open_image(bootstrap, config)
            layout = await layout_of(image, config.rafs, whatever_it_takes=True)
            files = DeviceFiles(layout.devices, FsStats("devices"))
            session = Session.mount(mountpoint)
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(session.serve, files)
                    readahead.widen(session.connection_id)
                    print("serving", flush=True)
                    await anext(signals)
                    session.stop(grace_s=1)
            finally:
                session.unmount()
                files.close()
                session.close()
                await image.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.device_server",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True)
    parser.add_argument("--bootstrap", type=Path, required=True)
    parser.add_argument("--mountpoint", type=Path, required=True)
    options = parser.parse_args()
    try:
        trio.run(serve, options.bootstrap, load_file(options.config), options.mountpoint)
    except NydusError as exc:
        sys.exit(f"device server: {exc}")


if __name__ == "__main__":
    main()
