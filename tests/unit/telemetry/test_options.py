"""Options: which source wins, and one clear line for everything that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from telemetry import logs
from telemetry.options import (
    COMMON,
    Command,
    CommandLine,
    Option,
    Positional,
    UsageError,
    common,
    duration_seconds,
    flag,
    path,
    positive_int,
    size_bytes,
    url,
    usage_errors,
)

LINE = CommandLine(
    "telemetry-demo",
    "DEMO_",
    "Shows.",
    (
        *common("127.0.0.1:8082"),
        Option("connect", "broker", "tcp://127.0.0.1:5555", url, env="ZMQBROKER_URL"),
        Option("workers", "how many", 2, positive_int, "processes"),
        Option("max-bytes", "most memory", 64_000_000, size_bytes, "bytes"),
        Option("password", "of the store", None, secret=True),
        Option("url", "targets", (), url, multiple=True),
    ),
    {
        "csv": Command(
            "play files", (Option("loop", "again", False, flag),), (Positional("files", "files", "+", path),)
        ),
        "status": ("tell", (Option("output", "form", "table", choices=("table", "json"), short="o"),), ()),
    },
)


def parse(*argv: str, **environ: str):
    return LINE.parse_or_raise(argv, environ)


def test_a_flag_beats_the_own_variable_which_beats_the_shared_one_which_beats_the_default() -> None:
    assert parse("status").connect == "tcp://127.0.0.1:5555"
    shared = {"ZMQBROKER_URL": "tcp://shared:1"}
    assert parse("status", **shared).connect == "tcp://shared:1"
    own = {**shared, "DEMO_CONNECT": "tcp://own:1"}
    assert parse("status", **own).connect == "tcp://own:1"
    assert parse("status", "--connect", "tcp://flag:1", **own).connect == "tcp://flag:1"


def test_an_empty_variable_counts_as_unset() -> None:
    assert parse("status", DEMO_WORKERS="").workers == 2


def test_options_of_the_program_stand_before_or_after_the_command() -> None:
    assert parse("--workers", "5", "csv", "a").workers == 5
    assert parse("csv", "a", "--workers", "5").workers == 5
    assert parse("--workers", "5", "csv", "a", "--workers", "6").workers == 6


def test_a_switch_takes_no_value_so_it_never_swallows_a_file() -> None:
    args = parse("csv", "--loop", "a.csv", "b.csv")
    assert args.loop is True
    assert args.files == [Path("a.csv"), Path("b.csv")]
    assert parse("csv", "a", DEMO_LOOP="yes").loop is True
    assert parse("csv", "a", "--no-loop", DEMO_LOOP="yes").loop is False


def test_an_option_may_hold_several_values() -> None:
    assert parse("status", "--url", "http://a", "--url", "http://b,http://c").url == (
        "http://a",
        "http://b",
        "http://c",
    )
    assert parse("status", DEMO_URL="http://a,http://b").url == ("http://a", "http://b")
    assert parse("status").url == ()


def test_short_flags_and_choices_work() -> None:
    assert parse("status", "-o", "json").output == "json"


@pytest.mark.parametrize(
    ("argv", "environ", "message"),
    [
        ((), {}, "which command? One of: csv, status (--help tells more)"),
        (("cvs",), {}, "COMMAND: invalid choice: 'cvs' (choose from 'csv', 'status')"),
        (("csv",), {}, "the following arguments are required: FILES"),
        (("status", "--workrs", "1"), {}, "unknown option --workrs; did you mean --workers?"),
        (("status", "--xyzzy"), {}, "unknown option --xyzzy (--help lists them)"),
        (("status", "--workers", "0"), {}, "--workers: '0' is not a whole number above 0"),
        (("status",), {"DEMO_WORKERS": "x"}, "DEMO_WORKERS: 'x' is not a whole number above 0"),
        (("status", "-o", "xml"), {}, "--output: 'xml' is none of table, json"),
        (("status", "--log-level", "loud"), {}, "--log-level: 'loud' is none of debug, info, warning, error"),
        (("status", "--workers"), {}, "--workers: expected one argument"),
        (("status", "--http", "nowhere"), {}, "--http: 'nowhere' is not HOST:PORT with a port between 0 and 65535"),
        (("status", "--password", "a", "--password-file", "b"), {}, "give --password or --password-file, not both"),
        (("status", "--password-file", "/no/file"), {}, "cannot read /no/file: No such file or directory"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_source(
    argv: tuple[str, ...], environ: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        parse(*argv, **environ)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_usage_error_is_one_line_on_stderr_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        LINE.parse(["status", "--workers", "no"], {})
    assert caught.value.code == 2
    assert capsys.readouterr().err == "telemetry-demo: --workers: 'no' is not a whole number above 0\n"


def test_a_usage_error_from_deeper_inside_ends_the_program_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, usage_errors("prog"):
        raise UsageError("the file\nis missing")
    assert caught.value.code == 2
    assert capsys.readouterr().err == "prog: the file is missing\n"


def test_a_secret_comes_from_a_file_and_never_gets_into_help_or_messages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "password"
    file.write_text("correct horse\n")
    assert parse("status", "--password-file", str(file)).password == "correct horse"
    assert parse("status", DEMO_PASSWORD_FILE=str(file)).password == "correct horse"
    assert parse("status", DEMO_PASSWORD="battery staple").password == "battery staple"
    assert logs.redacted("with correct horse and battery staple") == "with *** and ***"

    def picky(text: str) -> str:
        raise ValueError(f"is {text}")

    line = CommandLine("p", "P", "s", (Option("key", "k", "hunter2", picky, secret=True),))
    with pytest.raises(UsageError, match=r"^--key: the value is not valid$"):
        line.parse_or_raise(["--key", "swordfish"], {})
    with pytest.raises(SystemExit):
        line.parse(["--help"], {})
    assert "hunter2" not in capsys.readouterr().out


def test_help_tells_unit_default_and_variables_of_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        LINE.parse(["status", "--help"], {})
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "most memory [bytes; default: 64000000; env: DEMO_MAX_BYTES]" in text
    assert "[default: tcp://127.0.0.1:5555; env: DEMO_CONNECT, ZMQBROKER_URL]" in text
    assert "[seconds; default: 10; env: DEMO_DRAIN_TIMEOUT]" in text
    assert "--password-file FILE" in text
    for option in COMMON:
        assert f"--{option.flag}" in text


def test_a_needed_option_says_where_it_may_come_from() -> None:
    line = CommandLine("p", "BROKER", "s", (Option("data-dir", "where", None, path, required=True),))
    with pytest.raises(UsageError, match=r"^--data-dir is needed \(or BROKER_DATA_DIR in the environment\)$"):
        line.parse_or_raise([], {})
    assert line.parse_or_raise([], {"BROKER_DATA_DIR": "/x"}).data_dir == Path("/x")


def test_a_program_may_work_without_a_command() -> None:
    line = CommandLine("p", "P", "s", (), {"archive": ("a", (Option("dir", "d", "here"),), ())}, default_command="")
    assert line.parse_or_raise([], {}).command == ""
    assert line.parse_or_raise(["archive"], {}).dir == "here"


@pytest.mark.parametrize(
    ("text", "seconds"), [("250ms", 0.25), ("30s", 30), ("5m", 300), ("1h", 3600), ("7d", 604800), ("1.5", 1.5)]
)
def test_durations(text: str, seconds: float) -> None:
    assert duration_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64MB", 64_000_000),
        ("64MiB", 64 << 20),
        ("1k", 1000),
        ("1Ki", 1024),
        ("10GiB", 10 << 30),
        ("12", 12),
        ("7B", 7),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "-1", "1x", "MB", "1ib", "nan", "1e3"])
def test_sizes_and_durations_refuse_nonsense(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        size_bytes(text)
    with pytest.raises(ValueError, match="is not a time"):
        duration_seconds(text)


@pytest.mark.parametrize(
    "text", ["tcp://127.0.0.1:5555", "tcp://*:5555", "tcp://127.0.0.1:*", "http://h", "ipc:///run/x", "tcp://[::1]:5"]
)
def test_urls(text: str) -> None:
    assert url(text) == text


@pytest.mark.parametrize("text", ["", "127.0.0.1:5555", "tcp://", "tcp://host", "tcp://h:99999", "tcp://h:x", "http:x"])
def test_what_is_no_url_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a URL|port"):
        url(text)
