"""Downloads from a server on this machine: whole, cut, corrupted, refused, and what lies there already."""

import contextlib
import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from masam_auto.cli import fetch_weights as command
from masam_auto.cli.common import run
from masam_auto.core.claims import claimed
from masam_auto.core.errors import ModelError, OutputError
from masam_auto.models import fetch_weights as module
from masam_auto.models.fetch_weights import fetch_weights
from masam_auto.models.sam_files import SAM_FILES, SamFile

CONTENT = np.random.default_rng(0).bytes(5000)
FILE = SamFile(
    encoder="vit_b",
    name="sam_vit_b_toy.pth",
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    licence="Apache-2.0",
    page="https://example.org",
)


@dataclass
class Server:
    """What the server has and how it misbehaves. `cuts`: bytes that each answer ends after; then answers are whole."""

    content: bytes = CONTENT
    cuts: list[int] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    ranges: bool = True
    shifted: bool = False
    says_size: bool = True
    tag: str = '"one"'
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    address: str = ""


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted, version = self.headers.get("Range"), self.headers.get("If-Range")
            state.asked.append((self.path, wanted))
            if state.codes:
                self.send_error(state.codes.pop(0))
                return
            start = 0
            if wanted and state.ranges and version in (None, state.tag):
                start = int(wanted.removeprefix("bytes=").removesuffix("-")) - state.shifted
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(state.content) - 1}/{len(state.content)}")
            else:
                self.send_response(200)
            if state.says_size:
                self.send_header("Content-Length", str(len(state.content) - start))
            if state.tag:
                self.send_header("ETag", state.tag)
            self.end_headers()
            end = start + state.cuts.pop(0) if state.cuts else None
            self.wfile.write(state.content[start:end])

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        state.address = f"http://127.0.0.1:{http.server_port}/sam"
        yield state
        http.shutdown()


Fetch = Callable[..., bool]


@pytest.fixture
def fetch(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fetch:
    monkeypatch.setattr(module, "WAITS", (0, 0))

    def call(**options: object) -> bool:
        return fetch_weights(FILE, tmp_path / "weights", **{"mirror": server.address} | options)  # type: ignore[arg-type]

    return call


def there(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "weights").glob("*"))


def put(tmp_path: Path, name: str, content: bytes) -> Path:
    (tmp_path / "weights").mkdir(exist_ok=True)
    (tmp_path / "weights" / name).write_bytes(content)
    return tmp_path / "weights" / name


def test_the_whole_file_comes_and_is_kept(fetch: Fetch, server: Server, tmp_path: Path) -> None:
    assert fetch() is True
    assert (tmp_path / "weights" / FILE.name).read_bytes() == CONTENT
    assert there(tmp_path) == [FILE.name]
    assert fetch() is False
    assert server.asked == [("/sam/sam_vit_b_toy.pth", None)]


def test_a_mirror_may_be_the_files_whole_address(fetch: Fetch, server: Server, tmp_path: Path) -> None:
    assert fetch(mirror=f"{server.address}/elsewhere/{FILE.name}")
    assert server.asked == [("/sam/elsewhere/sam_vit_b_toy.pth", None)]
    (tmp_path / "weights" / FILE.name).unlink()
    with pytest.raises(ModelError, match=r"`url=/mnt/sam`: expected an address that begins with http"):
        fetch(mirror="/mnt/sam")
    with pytest.raises(ModelError, match=r"http://\[x/.*not a valid address"):
        fetch(mirror="http://[x")


def test_without_a_mirror_the_published_address_is_asked(server: Server, tmp_path: Path) -> None:
    assert fetch_weights(replace(FILE, address=f"{server.address}/raw/toy.pth"), tmp_path)
    assert server.asked == [("/sam/raw/toy.pth", None)]


def test_what_cannot_be_checked_is_not_downloaded(fetch: Fetch, server: Server, tmp_path: Path) -> None:
    unknown = replace(FILE, size=0, sha256="")
    for mirror in (None, server.address):
        with pytest.raises(ModelError, match=r"toy\.pth is not downloaded.*SHA-256.*https://example.org .*`file=PATH`"):
            fetch_weights(unknown, tmp_path, mirror=mirror)
    assert server.asked == []
    (tmp_path / FILE.name).write_bytes(b"brought by hand")
    assert fetch_weights(unknown, tmp_path) is False


def test_a_dropped_connection_is_taken_up_where_it_was(fetch: Fetch, server: Server, tmp_path: Path) -> None:
    server.cuts = [1000, 700, 1]
    assert fetch() is True
    assert [wanted for _, wanted in server.asked] == [None, "bytes=1000-", "bytes=1700-", "bytes=1701-"]
    assert there(tmp_path) == [FILE.name]


def test_a_cut_transfer_is_kept_and_goes_on_with_the_next_call(
    fetch: Fetch, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.cuts = [1200]
    monkeypatch.setattr(module, "WAITS", ())
    with pytest.raises(ModelError, match=r"the connection broke; 0\.0 of 0\.0 MB were received.*run the command again"):
        fetch()
    assert (tmp_path / "weights" / f"{FILE.name}.partial").read_bytes() == CONTENT[:1200]
    assert fetch() is True
    assert [wanted for _, wanted in server.asked] == [None, "bytes=1200-"]
    assert there(tmp_path) == [FILE.name]


def test_an_interrupted_transfer_is_kept(fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> Iterator[bytes]:
        yield CONTENT[:10]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "received_blocks", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch()
    assert (tmp_path / "weights" / f"{FILE.name}.partial").read_bytes() == CONTENT[:10]
    assert fetch() is True


def test_a_partial_file_that_is_whole_needs_no_server(fetch: Fetch, server: Server, tmp_path: Path) -> None:
    put(tmp_path, f"{FILE.name}.partial", CONTENT)
    assert fetch() is True
    assert server.asked == []


def test_a_server_without_ranges_sends_the_whole_again(fetch: Fetch, server: Server, tmp_path: Path) -> None:
    server.ranges, server.cuts = False, [1000]
    assert fetch() is True
    assert [wanted for _, wanted in server.asked] == [None, "bytes=1000-"]
    assert (tmp_path / "weights" / FILE.name).read_bytes() == CONTENT


def test_parts_of_two_versions_do_not_pass(fetch: Fetch, server: Server, tmp_path: Path) -> None:
    put(tmp_path, f"{FILE.name}.partial", bytes(1000))
    with pytest.raises(ModelError, match="SHA-256"):
        fetch()
    assert fetch() is True
    assert there(tmp_path) == [FILE.name]


def test_another_part_than_asked_for_is_not_taken(fetch: Fetch, server: Server) -> None:
    server.cuts, server.shifted = [1000], True
    with pytest.raises(ModelError, match="the server offers bytes 999-4999/5000, but"):
        fetch()


def test_a_corrupted_transfer_is_removed_and_said_in_one_line(fetch: Fetch, server: Server, tmp_path: Path) -> None:
    server.content = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    with pytest.raises(
        ModelError, match=r"the received file is not sam_vit_b_toy\.pth .*SHA-256.*has been removed"
    ) as caught:
        fetch()
    assert "\n" not in str(caught.value)
    assert there(tmp_path) == []
    server.content = CONTENT
    assert fetch() is True


@pytest.mark.parametrize("says_size", [True, False])
def test_a_file_of_another_size_is_refused(fetch: Fetch, server: Server, tmp_path: Path, says_size: bool) -> None:
    server.content, server.says_size = CONTENT + b"more", says_size
    with pytest.raises(ModelError, match="the server offers 5004, but" if says_size else "a file of unknown size"):
        fetch()
    assert there(tmp_path) == []


def test_a_page_in_the_files_place_is_not_kept(fetch: Fetch, server: Server, tmp_path: Path) -> None:
    server.content, server.says_size, server.tag, server.ranges = b"<html>log in</html>", False, "", False
    with pytest.raises(ModelError, match="a file of unknown size"):
        fetch()
    assert there(tmp_path) == []
    server.content, server.ranges, server.says_size = CONTENT, True, True
    assert fetch() is True


def test_a_server_that_cannot_go_on(fetch: Fetch, server: Server, tmp_path: Path) -> None:
    partial = put(tmp_path, f"{FILE.name}.partial", CONTENT[:1000])
    server.codes = [416]
    with pytest.raises(ModelError, match=r"the server answered 416 .*Give another source with `url`"):
        fetch()
    assert partial.read_bytes() == CONTENT[:1000]


def test_a_wrong_mirror_does_not_cost_what_was_received(fetch: Fetch, server: Server, tmp_path: Path) -> None:
    partial = put(tmp_path, f"{FILE.name}.partial", CONTENT[:1000])
    server.content = b"another"
    server.ranges = False
    with pytest.raises(ModelError, match="the server offers 7, but"):
        fetch()
    assert partial.read_bytes() == CONTENT[:1000]


def test_answers_that_are_no_file(fetch: Fetch, server: Server, tmp_path: Path) -> None:
    server.codes = [404]
    with pytest.raises(ModelError, match=r"the server answered 404 Not Found\. Give another source with `url`"):
        fetch()
    assert len(server.asked) == 1
    server.codes = [503, 503]
    assert fetch() is True
    (tmp_path / "weights" / FILE.name).unlink()
    server.codes = [503] * 3
    with pytest.raises(
        ModelError, match=r"the server answered 503 .*Check the network and run.*give another source .*`file=PATH`"
    ):
        fetch()
    assert there(tmp_path) == []


def test_no_server_at_all(fetch: Fetch, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"http://127\.0\.0\.1:9/.*no connection .*refused.*Check the network"):
        fetch(mirror="http://127.0.0.1:9/")
    assert there(tmp_path) == []


def test_another_file_of_that_name_is_not_overwritten_unasked(fetch: Fetch, server: Server, tmp_path: Path) -> None:
    wrong = put(tmp_path, FILE.name, bytes(len(CONTENT)))
    with pytest.raises(OutputError, match=r"it is not the official file .*`overwrite`"):
        fetch()
    assert wrong.read_bytes() == bytes(len(CONTENT)) and server.asked == []
    assert fetch(overwrite=True) is True
    assert wrong.read_bytes() == CONTENT


def test_a_full_disk_keeps_what_came(fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> Iterator[bytes]:
        yield CONTENT[:10]
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(module, "received_blocks", full)
        with pytest.raises(
            OutputError, match=r"cannot write .*toy\.pth: No space left.*Free some space.*continue from there"
        ):
            fetch()
    assert fetch() is True


def test_a_folder_that_cannot_be_made(fetch: Fetch, tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("a file")
    with pytest.raises(OutputError, match=r"cannot write .*: (File exists|Not a directory)"):
        fetch()


def test_two_processes_do_not_write_the_same_file(fetch: Fetch, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir(exist_ok=True)
    with (
        claimed(tmp_path / "weights", FILE.name),
        pytest.raises(OutputError, match=f"another process works on {FILE.name} there"),
    ):
        fetch()
    assert fetch() is True
    assert not list((tmp_path / "weights").glob(".*"))


def test_a_file_that_another_process_has_just_brought(
    fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def waited(folder: Path, what: str) -> Iterator[None]:
        put(tmp_path, FILE.name, CONTENT)
        yield

    monkeypatch.setattr(module, "claimed", waited)
    assert fetch() is False
    assert [path.name for path in (tmp_path / "weights").iterdir()] == [FILE.name]


def test_the_command(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SAM_FILES, "vit_b", FILE)
    options = ["vit_b", "vit_b", "--url", server.address, "--weights", str(tmp_path / "weights")]
    assert run(command.main, options) == 0
    assert capsys.readouterr().out == f"vit_b: {tmp_path}/weights/{FILE.name} (downloaded, SHA-256 is right)\n"
    assert run(command.main, options) == 0
    assert "already there" in capsys.readouterr().out
    server.codes = [404]
    assert run(command.main, ["vit_l", *options[2:]]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    with pytest.raises(SystemExit):
        run(command.main, ["vit_x"])
    assert "argument NAME: 'vit_x' is unknown; known: lite_medsam, " in capsys.readouterr().err
