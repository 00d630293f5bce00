"""nydusd's argv: what its clients really pass, and what must be refused how (spec cli-config A2 to A7)."""

import json
import logging
import os
import re
import subprocess
import sys
from errno import ENOTCONN
from pathlib import Path
from types import ModuleType

import pytest

from nydusd.cli import nydusd
from nydusd.cli.arguments import parse
from nydusd.cli.limits import wanted_limit
from nydusd.config.model import LocalFsConfig, RegistryConfig, Secret
from nydusd.daemon.options import DaemonOptions, FailoverPolicy
from nydusd.errors import BackendError, ConfigError, UnsupportedError
from nydusd.version import build_info
from tests.support.configs import REGISTRY_V1, v1

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IMAGE_PULL_AUTH", raising=False)
    (tmp_path / "mnt").mkdir()
    (tmp_path / "c.json").write_text(json.dumps(v1()))
    (tmp_path / "registry.json").write_text(json.dumps(REGISTRY_V1))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[DaemonOptions]:
    """What a daemon was started with; main() leaves this process as it found it."""
    runs: list[DaemonOptions] = []
    daemon = ModuleType("nydusd.daemon.daemon")
    daemon.run = lambda options: runs.append(options) or 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nydusd.daemon.daemon", daemon)
    monkeypatch.setattr("nydusd.logs.setup", lambda *_: None)
    monkeypatch.setattr("nydusd.logs.log_strays", lambda: None)
    monkeypatch.setattr("nydusd.cli.limits.raise_open_files", lambda _: None)
    return runs


def options_of(line: str) -> DaemonOptions:
    _, options = parse(line.split())
    return nydusd.fuse_options(options)


SNAPSHOTTER_DEDICATED = (
    "fuse --thread-num 4 --id ID --config registry.json --bootstrap image.boot --mountpoint mnt "
    "--apisock api.sock --log-level info --log-rotation-size 100 --supervisor sup.sock "
    "--log-file logs/nydusd.log --failover-policy resend"
)
SNAPSHOTTER_SHARED = (
    "fuse --thread-num 4 --id ID --mountpoint mnt --apisock api.sock --log-level info "
    "--log-rotation-size 100 --supervisor sup.sock --log-file logs/nydusd.log --failover-policy flush"
)
NYDUSIFY = "--config c.json --mountpoint mnt --bootstrap boot --apisock api.sock --log-level warn"
SMOKE = "--mountpoint mnt --apisock api.sock --log-level error --thread-num 10 --config c.json"


def test_the_argv_of_a_snapshotter_with_one_daemon_per_image(tmp_path: Path):
    options = options_of(SNAPSHOTTER_DEDICATED)
    assert options.config is not None
    assert isinstance(options.config.backend, RegistryConfig)
    assert options == DaemonOptions(
        mountpoint=tmp_path / "mnt",
        apisock=Path("api.sock"),
        bootstrap=Path("image.boot"),
        config=options.config,
        id="ID",
        supervisor=Path("sup.sock"),
        failover_policy=FailoverPolicy.RESEND,
        fuse_threads=4,
    )


def test_the_argv_of_a_snapshotter_with_a_shared_daemon(tmp_path: Path):
    assert options_of(SNAPSHOTTER_SHARED) == DaemonOptions(
        mountpoint=tmp_path / "mnt",
        apisock=Path("api.sock"),
        id="ID",
        supervisor=Path("sup.sock"),
        failover_policy=FailoverPolicy.FLUSH,
    )


def test_the_argv_of_checkers_has_no_subcommand(tmp_path: Path):
    options = options_of(NYDUSIFY)
    assert options.config is not None
    assert options.config.backend == LocalFsConfig("/blobs")
    assert options_of(SMOKE).fuse_threads == 10
    assert options_of(f"fuse {NYDUSIFY}") == options


def test_without_a_bootstrap_the_config_is_not_even_opened():
    assert options_of(SMOKE.replace("c.json", "/no/such/file")).config is None


def test_a_bootstrap_needs_a_configuration():
    with pytest.raises(ConfigError, match="--bootstrap needs --config or --localfs-dir"):
        options_of("--mountpoint mnt --bootstrap b")


@pytest.mark.parametrize(
    ("words", "configured", "asked"),
    [
        ("", "auto", "auto"),
        ("", "fuse", "fuse"),
        ("--frontend erofs", "fuse", "erofs"),
        ("--frontend auto", "erofs", "auto"),
    ],
)
def test_the_command_line_knows_better_who_shows_the_tree(
    words: str, configured: str, asked: str, tmp_path: Path
):
    config = tmp_path / "c.json"
    config.write_text(json.dumps(v1(frontend=configured)))
    options = options_of(f"--mountpoint / --bootstrap b --config {config} {words}")
    assert options.asked_frontend() == asked


def test_localfs_dir_is_a_configuration():
    config = options_of("--mountpoint mnt --bootstrap b --localfs-dir blobs").config
    assert config is not None
    assert config.backend == LocalFsConfig("blobs")
    assert config.cache.work_dir == "blobs"


def test_the_environments_credential_reaches_the_registry(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("IMAGE_PULL_AUTH", "bmV3OnB3")
    config = options_of(SNAPSHOTTER_DEDICATED).config
    assert config is not None
    assert isinstance(config.backend, RegistryConfig)
    assert config.backend.auth == Secret("bmV3OnB3")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "fuse",
        "--log-level info fuse --mountpoint mnt",
        "fuse --mountpoint mnt --nonsense",
        "fuse --mountpoint mnt --log-level off",
        "fuse --mountpoint mnt --failover-policy maybe",
        "fuse --mountpoint mnt --thread-num 0",
        "fuse --mountpoint mnt --thread-num 1025",
        "fuse --mountpoint mnt --fuse-threads four",
        "fuse --mountpoint mnt --rlimit-nofile -1",
        "fuse --mountpoint mnt --id x",
        "fuse --mountpoint mnt --supervisor x",
        "fuse --mountpoint mnt --prefetch-files x",
        "fuse --mountpoint mnt --bootstrap x --shared-dir y",
        "fuse --mountpoint mnt --bootstrap x --localfs-dir y --config z",
        "fuse --mountpoint mnt --mountpoint mnt",
        "fuse --mount mnt",
        "fuse --mountpoint mnt extra",
        "virtiofs",
        "uffd",
        "nbd",
        "singleton --fscache-tag t",
    ],
)
def test_usage_errors_end_with_status_2(line: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        nydusd.main(line.split())
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("nydusd")
    assert len(error.splitlines()) == 2


def test_options_before_the_subcommand_are_explained(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        nydusd.main(["--log-level", "info", "fuse", "--mountpoint", "mnt"])
    assert "options must follow the subcommand" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["fuse", "-h"], ["help"], ["help", "uffd"]])
def test_help_is_no_error(words: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        nydusd.main(words)
    assert caught.value.code == 0
    assert "--apisock" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("--upgrade", "--upgrade"),
        ("--shared-dir mnt", "--shared-dir"),
        ("--dedup-db x.db", "--dedup-db"),
        ("--backend-source http://x", "--backend-source"),
        ("--writable", "--writable"),
    ],
)
def test_what_is_not_built_yet_is_refused_by_name(line: str, what: str):
    with pytest.raises(UnsupportedError, match=f"^{what} is not supported yet$"):
        options_of(f"fuse --mountpoint mnt {line}")


@pytest.mark.parametrize(
    "line",
    [
        "singleton --fscache mnt --fscache-threads 4 --id I --supervisor s --log-level info",
        "virtiofs --sock s --bootstrap b --hybrid-mode",
        "uffd --sock u --bootstrap b --localfs-dir d --threads 4 --rlimit-nofile 0",
        "nbd /dev/nbd0 -B b -D d",
    ],
)
def test_other_modes_take_their_options_and_say_they_are_not_built(line, started, capfd, caplog):
    assert nydusd.main(line.split()) == 1
    mode = line.split()[0]
    assert capfd.readouterr().err == f"Error: nydusd {mode} is not supported yet\n"
    assert caplog.records[-1].levelno == logging.ERROR
    assert not started


def test_a_start_up_error_is_one_line_and_status_1(started, capfd, caplog):
    assert nydusd.main(["--mountpoint", "nowhere"]) == 1
    assert capfd.readouterr().err == "Error: --mountpoint nowhere: No such file or directory\n"
    assert not started


def test_what_the_daemon_raises_is_one_line_too(started, capfd, caplog, monkeypatch):
    def run(_: DaemonOptions) -> int:
        raise BackendError("registry says\nno, Bearer 0123456789abcdef")

    monkeypatch.setattr(sys.modules["nydusd.daemon.daemon"], "run", run)
    assert nydusd.main(["--mountpoint", "mnt"]) == 1
    assert capfd.readouterr().err == "Error: registry says\\nno, Bearer ***\n"


def test_the_daemons_status_is_ours(started):
    assert nydusd.main(["fuse", "--mountpoint", "mnt"]) == 0
    (options,) = started
    assert options.bootstrap is None


@pytest.mark.parametrize("size", ["ten", "-1", "1.5", "", "9" * 40])
def test_a_rotation_size_that_is_no_number_ends_with_status_1(size, started, capfd):
    assert nydusd.main(["fuse", "--mountpoint", "mnt", f"--log-rotation-size={size}"]) == 1
    assert capfd.readouterr().err.startswith("Error: --log-rotation-size is ")


def test_a_mountpoint_is_canonical_and_a_directory(tmp_path: Path):
    (tmp_path / "link").symlink_to("mnt")
    assert options_of("--mountpoint link").mountpoint == tmp_path / "mnt"
    with pytest.raises(ConfigError, match="not a directory"):
        options_of("--mountpoint c.json")


def test_a_virtual_mountpoint_is_absolute():
    assert options_of("--mountpoint mnt -m /a/b").virtual_mountpoint == "/a/b"
    with pytest.raises(ConfigError, match="must begin with /"):
        options_of("--mountpoint mnt --virtual-mountpoint a")


def test_a_prefetch_list_is_trimmed_and_blank_lines_fall(tmp_path: Path):
    listing = tmp_path / "list"
    listing.write_bytes(b"/bin \r\n\n  /lib/a b\n/\xff\n")
    assert nydusd.read_prefetch_list(str(listing)) == ("/bin", "/lib/a b", os.fsdecode(b"/\xff"))
    options = options_of("--mountpoint mnt -B b -C c.json --prefetch-files list")
    assert options.prefetch_files[0] == "/bin"


def test_a_prefetch_list_with_a_relative_path_is_refused(tmp_path: Path):
    (tmp_path / "list").write_text("/bin\nlib\n")
    with pytest.raises(ConfigError, match="path 2 is 'lib', must begin with /"):
        nydusd.read_prefetch_list("list")
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        nydusd.read_prefetch_list("nothing")


@pytest.mark.parametrize(
    ("asked", "soft", "file_max", "wanted"),
    [
        (1_000_000, 1024, 10_000_000, 1_000_000),
        (1_000_000, 1024, 100_000, 83_616),
        (1_000_000, 1024, 10_000, 1024),
        (4096, 1024, 10_000_000, 4096),
        (2_000_000, 1024, 10_000_000, 1_000_000),
        (2_000_000, 1_500_000, 10_000_000, 1_500_000),
    ],
)
def test_the_limit_of_open_files_leaves_some_to_others(asked, soft, file_max, wanted):
    assert wanted_limit(asked, soft, file_max) == wanted


def command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nydusd.cli.nydusd", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


def test_the_version_can_be_parsed_by_a_snapshotter():
    done = command("--version")
    assert done.returncode == 0
    commit = re.search(r"Git Commit:\s*(.+)", done.stdout)
    assert commit is not None
    assert commit[1].strip() == build_info().git_commit
    # text=True made "\n" of the "\r" that follows the name
    assert done.stdout.startswith("nydusd \nVersion: \tv")
    assert done.stdout.endswith("\n\n")


NOTHING_HEAVY = "assert not {'trio', 'json', 'argparse', 'logging'} & sys.modules.keys()"


def test_the_version_does_not_load_the_daemon():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; from nydusd.cli.nydusd import main; main(['--version']); {NOTHING_HEAVY}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_failed_start_is_in_the_log_file_and_on_stderr(tmp_path: Path):
    done = command(
        "fuse", "-M", "nowhere", "--log-file", "logs/a/nydusd", "--log-rotation-size", "1"
    )
    assert done.returncode == 1
    assert done.stderr == "Error: --mountpoint nowhere: No such file or directory\n"
    log = (tmp_path / "logs" / "a" / "nydusd_rCURRENT.log").read_text()
    assert " INFO nydusd package_ver='v" in log
    assert "] --mountpoint nowhere: No such file or directory\n" in log


def test_a_closed_stderr_is_never_given_to_another_file():
    script = (
        "import os, sys; os.close(0); os.close(2); from nydusd.cli.nydusd import main;"
        "status = main(['-M', 'nowhere']); sys.stdout.write(f'{status} {os.open(\"c.json\", 0)}')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
        check=False,
    )
    status, fd = done.stdout.split()
    assert status == "1"
    assert int(fd) > 2


def test_the_dead_mount_of_a_predecessor_is_no_obstacle(tmp_path: Path, monkeypatch):
    def not_connected(path: Path, *, strict: bool = False) -> Path:
        if strict:
            raise OSError(ENOTCONN, "Transport endpoint is not connected")
        return path

    monkeypatch.setattr(Path, "resolve", not_connected)
    assert options_of(f"--mountpoint {tmp_path}/mnt").mountpoint == tmp_path / "mnt"
