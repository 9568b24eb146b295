"""Mistakes in arguments are one line each, with a guess; options stand before the command or after it."""

import json

import pytest

from tfmot_asp.cli import help_texts, main
from tfmot_asp.cli.parser import make_parser, parse
from tfmot_asp.cli.wording import spoken


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prnue", "m.keras"], "there is no command 'prnue'; did you mean 'prune'?"),
        (["xyzzy"], "there is no command 'xyzzy' ("),
        (["prune", "m.keras", "--ouput", "x"], "there is no option --ouput; did you mean '--output'?"),
        (["--quite", "prune"], "there is no option --quite; did you mean '--quiet'?"),
        (["prune", "m.keras", "-o", "x", "--effort=balnced"], "'balnced' is none of fast, balanced, thorough; did you"),
        (["export", "m.keras", "--to", "onxn", "-o", "x"], "did you mean 'onnx'?"),
        (["inspect", "m.keras", "--kinds", "dens"], "did you mean 'Dense'?"),
        (["inspect", "m.keras", "--kinds", "Dense,Conv2d"], "did you mean 'Conv2D'?"),
        (["help", "inpsect"], "did you mean 'inspect'? (`tfmot-asp help` has"),
        (["verify"], "the following arguments are required: FILE"),
        (["verify", "a", "b"], "unrecognized arguments: b"),
        (["estimate", "1", "2", "none"], "'none' is no positive integer"),
    ],
)
def test_a_mistake_is_one_line_with_a_guess(capsys, arguments, said):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.startswith("tfmot-asp")
    assert err.count("\n") == 1
    assert main([*arguments, "--json"]) == 2
    assert said in json.loads(capsys.readouterr().out)["error"]


@pytest.mark.parametrize("flag", ["-q", "-v", "--debug", "--json", "--summary", "--wide"])
def test_options_stand_before_the_command_or_after_it(flag):
    names = "json", "quiet", "verbose", "debug", "summary", "wide"
    found = [
        {name: getattr(parse(words), name) for name in names}
        for words in ([flag, "verify", "m"], ["verify", flag, "m"], ["verify", "m", flag])
    ]
    assert found[0] == found[1] == found[2]
    assert sum(found[0].values()) == 1
    assert not any(getattr(parse(["verify", "m"]), name) for name in names)


def test_help_is_a_command_too(capsys):
    shown = []
    for words in (["help"], ["--help"], ["help", "prune"], ["prune", "--help"]):
        assert main(words) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert shown[2] == shown[3]
    assert "--calibration FILE" in shown[2]
    assert main([]) == 2
    assert "the following arguments are required: COMMAND (`tfmot-asp help`" in capsys.readouterr().err


@pytest.mark.parametrize("topic", ["", "verify", "measure", "permute_shards"])
def test_prose_in_help_fits_the_terminal_and_examples_stay_on_one_line(capsys, monkeypatch, topic):
    monkeypatch.setenv("COLUMNS", "60")
    main(["help", *topic.replace("_", "-").split()])
    lines = capsys.readouterr().out.splitlines()
    prose = [line for line in lines[lines.index("examples:") :] if not line.startswith(" ")]
    assert max(map(len, prose)) <= 60
    text = getattr(help_texts, topic.upper() or "EPILOG")
    assert {line for line in text.splitlines() if line.startswith(" ")} <= set(lines)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_options_and_values(capsys, shell):
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in ("permute-shards", "calibration", "balanced"))


def test_completion_needs_shtab(capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert 'completion needs shtab: pip install "tfmot-asp[completion]"' in capsys.readouterr().err


def test_an_estimate_needs_no_model(capsys):
    assert main(["estimate", "6272", "256", "2304", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["speedup"] == pytest.approx(data["dense_us"] / data["sparse_us"])
    assert main(["estimate", "6272", "256", "2304", "--gpu", "A100"]) == 2
    assert "no times are known for --gpu A100" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("python", "terminal"),
    [
        ("pass input_shapes=(1, 64, 64, 3)", "pass --input-shape 1,64,64,3"),
        ("pass input_shapes=... as it is called", "pass --input-shape SIZES as it is called"),
        ("input_shapes={'ids': (None, 128)}", "--input-shape ids=?,128"),
        ("input_shapes=[(1, 2), (3, 4)]", "--input-shape 1,2 --input-shape 3,4"),
        ("input_shapes=((None, 128), 'int32')", "--input-shape int32:?,128"),
        ("is not in kinds=('Dense', 'Conv2D')", "is not in --kinds Dense,Conv2D"),
        ("padding=True would; min_gain=1.05.", "--padding would; --min-gain 1.05."),
        ("keep_float is for precision='int8'", "--keep-float is for --precision int8"),
        ("take them off: model = tfmot_asp.strip_pruning(model)", "take them off: `tfmot-asp strip`"),
        ("shapes={'s': (smallest, most frequent, largest)}", "--shapes s=SMALLEST,MOST-FREQUENT,LARGEST"),
        ("trtexec --precision=fp16 'a_gpu=x' other_kinds=1", "trtexec --precision=fp16 'a_gpu=x' other_kinds=1"),
    ],
)
def test_messages_speak_of_options(python, terminal):
    assert spoken(python) == terminal


def test_every_option_that_messages_speak_of_is_there():
    from tfmot_asp.cli.wording import _FLAGS

    (commands,) = (action for action in make_parser()._actions if action.choices)
    known = {flag for command in commands.choices.values() for flag in command._option_string_actions}
    assert set(_FLAGS.values()) <= known
