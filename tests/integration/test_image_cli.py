"""The command nydus-image in a process of its own: what it writes, prints and exits with."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.image_trees import folder_tree, image_tree
from tests.support.source_trees import add_huge_hole, seeded_bytes, write_small_tree, write_tree
from tests.support.vectors import each_vector

TIMEOUT_S = 120
ROOT = Path(__file__).parents[2]


def run(*words: str | Path, stdin: bytes = b"", cwd: Path | None = None) -> tuple[int, str, str]:
    """Run the command and return exit status, stdout, stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "nydusd.cli.image", *map(str, words)],
        input=stdin,
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_small_tree(tmp_path / "source")


def create(out: Path, source: Path, *words: str, stdin: bytes = b"") -> dict[str, object]:
    """Build into out/boot and out/blobs and return the JSON of the result."""
    status, _, errors = run(
        "create", "-t", "dir-rafs", "-B", out / "boot", "-D", out / "blobs", "-J", out / "out.json",
        *words, source, stdin=stdin,
    )  # fmt: skip
    assert (status, errors) == (0, "")
    document: dict[str, object] = json.loads((out / "out.json").read_text())
    return document


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("-v", "5", "--compressor", "lz4_block", "--digester", "sha256", "--chunk-size", "0x1000"),
        ("-v", "6", "-c", "none", "-S", "65536", "--repeatable"),
        ("--features", "blob-toc"),
        ("-v", "5", "--aligned-chunk", "--whiteout-spec", "none"),
    ],
)
def test_created_images_hold_the_folder_and_check_says_so(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    source = write_tree(tmp_path / "source", entries=300)
    document = create(tmp_path, source, *words)
    assert image_tree(tmp_path / "boot", tmp_path / "blobs") == folder_tree(source)
    assert document["blobs"] == [path.name for path in (tmp_path / "blobs").iterdir()]
    status, text, errors = run(
        "check", "-B", tmp_path / "boot", "-D", tmp_path / "blobs", "--verify"
    )
    assert (status, errors) == (0, "")
    assert "image, valid" in text


def test_the_json_has_the_names_that_tools_of_the_reference_read(
    tmp_path: Path, source: Path
) -> None:
    document = create(tmp_path, source)
    assert set(document) >= {"version", "bootstrap", "blobs", "trace", "fs_version", "compressor"}
    assert document["bootstrap"] == str(tmp_path / "boot")
    assert document["fs_version"] == "6"
    assert document["compressor"] == "zstd"
    trace = document["trace"]
    assert isinstance(trace, dict)
    assert set(trace["registered_events"]) == {
        "blob_compressed_size", "blob_uncompressed_size", "dedup_chunks",
        "dedup_uncompressed_size", "egid", "euid", "load_from_directory",
    }  # fmt: skip


def test_the_prefetch_list_is_read_from_stdin(tmp_path: Path, source: Path) -> None:
    create(tmp_path, source, "--prefetch-policy", "fs", stdin=b"/folder/random\n\n/hello.txt\n")
    blob = next((tmp_path / "blobs").iterdir()).read_bytes()
    assert blob.startswith(seeded_bytes("small", 20 * 1024))  # random bytes are stored as they are


def test_one_file_image_is_written_and_checked(tmp_path: Path, source: Path) -> None:
    blob = tmp_path / "image.blob"
    status, _, errors = run(
        "create", "--blob-inline-meta", "--features", "blob-toc", "-b", blob, source
    )
    assert (status, errors) == (0, "")
    status, text, errors = run("check", blob, "-b", blob, "--verify")
    assert (status, errors) == (0, "")
    assert "image, valid" in text


@pytest.mark.parametrize(
    "words",
    [
        ("-t", "tar-rafs"),
        ("-t", "targz-ref"),
        ("--batch-size", "0x10000"),
        ("--chunk-dict", "bootstrap=x"),
        ("--parent-bootstrap", "x"),
        ("--attributes", "x"),
        ("--blob-cache-dir", "x"),
        ("--encrypt",),
    ],
)
def test_what_is_not_built_yet_is_refused_by_name(
    tmp_path: Path, source: Path, words: tuple[str, ...]
) -> None:
    status, out, errors = run("create", "-B", tmp_path / "b", "-D", tmp_path, *words, source)
    assert (status, out) == (1, "")
    assert errors.count("\n") == 1
    assert (words[1] if words[0] == "-t" else words[0]) in errors
    assert "is not supported yet" in errors
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("command", ["merge", "compact", "export", "unpack", "chunkdict"])
def test_other_commands_of_the_reference_are_refused_by_name(command: str) -> None:
    status, out, errors = run(command, "--some", "thing")
    assert (status, out, errors) == (
        1,
        "",
        f"Error: nydus-image {command} is not supported yet\n",
    )


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        ((), 2, "COMMAND"),
        (("create", "source"), 1, "--blob-dir"),
        (("create", "-D", "out", "--chunk-size", "5000", "source"), 1, "chunk-size"),
        (("create", "-D", "out", "--compressor", "gzip", "source"), 2, "gzip"),
        (("create", "-D", "out", "nothing"), 1, "nothing: No such file"),
        (("create", "-B", "no/such/dir/boot", "-D", "out", "source"), 1, "no/such/dir"),
        (("check",), 1, "bootstrap"),
        (("check", "source"), 1, "source"),
        (("check", "--verify", "source/hello.txt"), 1, "--verify needs"),
    ],
)
def test_mistakes_end_in_one_clear_line(
    tmp_path: Path, source: Path, words: tuple[str, ...], status: int, text: str
) -> None:
    found, out, errors = run(*words, cwd=source.parent)
    assert (found, out) == (status, "")
    assert text in errors
    assert "Traceback" not in errors
    assert len(errors.splitlines()) <= 2
    assert {path.name for path in tmp_path.iterdir()} <= {"source", "out"}
    assert not any((tmp_path / "out").glob("*"))


def test_a_damaged_image_fails_the_check_with_its_faults(tmp_path: Path, source: Path) -> None:
    create(tmp_path, source)
    blob = next((tmp_path / "blobs").iterdir())
    blob.write_bytes(b"x" * 100 + blob.read_bytes()[100:])
    status, text, errors = run(
        "check", tmp_path / "boot", "-D", tmp_path / "blobs", "--verify", "-J", tmp_path / "o.json"
    )
    assert status == 1
    assert "NOT valid" in text
    assert f"Error: blob {blob.name}: chunk 0" in errors
    document = json.loads((tmp_path / "o.json").read_text())
    assert document["image"]["valid"] is False
    assert document["image"]["fault_count"] == len(document["image"]["faults"]) > 0


def test_the_version_is_printed_as_clients_parse_it() -> None:
    status, text, errors = run("--version")
    assert (status, errors) == (0, "")
    assert text.startswith("nydus-image \rVersion: \t")
    assert "Git Commit: \t" in text


def test_a_terminal_shows_progress_and_a_pipe_does_not(tmp_path: Path, source: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "nydusd.cli.image",
        "create",
        "-D",
        str(tmp_path / "o"),
        str(source),
    ]
    master, slave = pty.openpty()
    try:
        subprocess.run(
            words,
            stderr=slave,
            stdout=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
            check=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        os.set_blocking(master, False)
        shown = os.read(master, 65536).decode()
    finally:
        os.close(master)
        os.close(slave)
    assert "reading names" in shown
    assert "storing data" in shown
    assert shown.endswith("\r\x1b[K")
    assert run("create", "-D", tmp_path / "p", source)[2] == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_build_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    add_huge_hole(source)  # 16 million references to one chunk: seconds of work
    words = [
        sys.executable,
        "-m",
        "nydusd.cli.image",
        "create",
        "-S",
        "4096",
        "-B",
        str(tmp_path / "b"),
    ]
    with subprocess.Popen(
        [*words, "-D", str(out), str(source)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as builder:
        deadline = time.monotonic() + TIMEOUT_S
        while not (out.is_dir() and any(out.iterdir())):
            assert time.monotonic() < deadline
            assert builder.poll() is None
        builder.send_signal(number)
        _, errors = builder.communicate(timeout=TIMEOUT_S)
    assert (builder.returncode, errors) == (1, b"Error: interrupted\n")
    assert list(out.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


@pytest.mark.parametrize("folder", each_vector("broken/v*"))
def test_broken_vectors_end_without_a_traceback(folder: Path) -> None:
    status, _, errors = run("check", folder / "bootstrap", "-D", folder / "blobs", "--verify")
    assert "Traceback" not in errors
    if folder.name == "v6-chunk-table-past-eof":
        assert status == 0
    else:
        assert status == 1
        assert "Error: " in errors
