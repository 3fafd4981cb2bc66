import subprocess
import sys

import pytest

from adamnx_hf import __version__, cli


def stops_with(code, argv, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == code
    return capsys.readouterr()


def test_help_names_every_command(capsys):
    out = stops_with(0, ["--help"], capsys).out
    for name, summary in cli.COMMANDS.items():
        assert name in out
        assert summary.split()[0] in out


def test_help_of_the_demo(capsys):
    out = stops_with(0, ["demo", "--help"], capsys).out
    for flag in (
        "--output-dir",
        "--overwrite-output-dir",
        "--seeds",
        "--epochs",
        "--optim",
        "--learning-rate",
    ):
        assert flag in out


def test_version(capsys):
    assert stops_with(0, ["--version"], capsys).out == f"adamnx-hf {__version__}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: command"),
        (["dmeo"], "invalid choice: 'dmeo'"),
        (["demo", "--epoch-count", "3"], "unrecognized arguments: --epoch-count 3"),
        (["demo", "--epochs", "0"], "argument --epochs: '0' is not a whole number from 1"),
        (["demo", "--epochs", "2.5"], "argument --epochs: '2.5' is not a whole number from 1"),
        (["demo", "--seeds", "-1"], "argument --seeds: '-1' is not a whole number from 0"),
        (["demo", "--learning-rate", "0"], "argument --learning-rate: '0' is not a number above 0"),
        (["demo", "--learning-rate", "nan"], "argument --learning-rate: 'nan' is not a number above 0"),
    ],
)
def test_arguments_that_do_not_fit_end_in_one_line(argv, message, capsys):
    assert message in stops_with(2, argv, capsys).err.splitlines()[-1]


def test_help_keeps_names_as_they_are_written(capsys):
    assert (
        "Train a small vision transformer with AdamNX and with AdamW"
        in stops_with(0, ["demo", "--help"], capsys).out
    )


def test_a_seed_given_twice(capsys):
    assert cli.main(["demo", "--seeds", "1", "1"]) == 1
    assert capsys.readouterr().err == "adamnx-hf demo: error: --seeds 1 1 names one twice\n"


@pytest.mark.parametrize("module", ["matplotlib", "rich", "sklearn", "scipy"])
def test_missing_extra_in_process(module, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    for name in [name for name in sys.modules if name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)
    assert cli.main(["demo", "--output-dir", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.err == f'adamnx-hf: {module} is not installed: pip install "adamnx-hf[demo]"\n'
    assert not captured.out
    assert not list(tmp_path.iterdir())


def test_the_command_does_not_load_what_it_does_not_need():
    """And the whole way to a missing extra, in a process of its own."""
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from adamnx_hf.cli import main\n"
        "status = main(['demo'])\n"
        "assert not {'transformers', 'datasets', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(status)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 1
    assert ran.stderr.splitlines() == [
        'adamnx-hf: matplotlib is not installed: pip install "adamnx-hf[demo]"'
    ]


def test_other_missing_modules_are_not_blamed_on_the_extra(monkeypatch):
    from adamnx_hf.commands import demo

    def run(args):
        raise ModuleNotFoundError("No module named 'nonsense'", name="nonsense")

    monkeypatch.setattr(demo, "run", run)
    with pytest.raises(ModuleNotFoundError, match="nonsense"):
        cli.main(["demo"])


def test_interrupted(monkeypatch, capsys):
    from adamnx_hf.commands import demo

    def run(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", run)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err == "adamnx-hf: interrupted\n"
