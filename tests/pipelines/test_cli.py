"""The command line: every option is described, every shipped configuration parses, mistakes are one line."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from perceiver.config import EncoderConfig
from pipelines.cli import PIPELINES, Command, ConvertCommand, SyncCommand, parse
from pipelines.config import SentimentConfig
from pipelines.models.tools import TOOLS, ToolCommand
from pipelines.tool_cli import DoctorCommand, SubmitCommand, SubmitConfig

CONFIGS = Path(__file__).parents[2] / "pipelines" / "configs"
VERB_OF = {"quickstart.yaml": "sentiment", "imdb.yaml": "sentiment", "mnist.yaml": "image-classifier",
           "digits.yaml": "image-classifier"}  # fmt: skip


def test_dotted_overrides_reach_every_level() -> None:
    command = parse(
        ["sentiment", "--mlm.trainer.max_epochs", "7", "--scaling.num_workers", "2", "--data.path", "toy_reviews"]
    )
    assert isinstance(command, Command)
    assert isinstance(command.config, SentimentConfig)
    assert command.config.mlm.trainer.max_epochs == 7
    assert command.config.frozen.trainer.max_epochs == SentimentConfig().frozen.trainer.max_epochs
    assert command.config.data.path == "toy_reviews"
    assert command.run.scaling.num_workers == 2
    assert command.run.run_name == "sentiment"


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_every_shipped_config_parses(name: str) -> None:
    command = parse([VERB_OF[name], "--config", str(CONFIGS / name)])
    assert isinstance(command, Command)
    assert command.run.run_name == name.removesuffix(".yaml")


@pytest.mark.parametrize("verb", PIPELINES)
def test_what_is_printed_as_config_parses_to_the_same(
    verb: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match="0"):
        parse([verb, "--encoder.num_latents", "9", "--print_config"])
    file = tmp_path / "config.yaml"
    file.write_text(capsys.readouterr().out)
    command = parse([verb, "--config", str(file)])
    assert command == parse([verb, "--encoder.num_latents", "9"])
    assert isinstance(command, Command)
    assert command.config.encoder.num_latents == 9


@pytest.mark.parametrize("verb", PIPELINES)
def test_help_gives_default_and_meaning_of_every_option(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        parse([verb, "-h"])
    entries = capsys.readouterr().out.split("\n  --")[1:]
    leaves = [entry for entry in entries if entry.split("\n")[0].split()[1:2] != ["CONFIG"]]
    assert len(leaves) > 40
    for entry in leaves:
        if entry.startswith(("config", "print_config")):
            continue
        text = " ".join(entry.split())
        assert "default:" in text, f"no default: {text}"
        meaning = text.split("(type:")[0].split(" ", 2)[-1]
        assert len(meaning) > 10, f"no meaning: {text}"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["mlm", "--encoder.num_latent", "3"], "did you mean --encoder.num_latents?"),
        (["mlm", "--no-such-thing"], "unknown option --no-such-thing"),
        (["mlm", "--encoder.num_latents", "many"], "--encoder.num_latents: expected int, but got many"),
        (["mlm", "--encoder.num_self_attention_heads", "5"], "must divide num_latent_channels (64) evenly"),
        (["mlm", "--encoder.num_latents", "0"], "num_latents is 0, but must be 1 or more"),
        (["mlm", "--data.validation", "third"], "--data.validation: expected one of 'tenth', 'test', but got third"),
        (["mlm", "--config", "no/such/file.yaml"], "no/such/file.yaml"),
        (["mlm", "--samples", '["without a mask"]'], "each must hold [MASK]"),
        (["text-classifier", "--freeze_encoder", "true"], "without init_from there is no trained encoder"),
        (["sentiment", "--frozen.decoder.num_cross_attention_heads", "7"], "must divide num_latent_channels"),
        (["sentimnt"], "did you mean sentiment?"),
        (["convert", "only-one"], "out"),
        (["doctr"], "did you mean doctor?"),
        (["doctor", "mlmm"], "did you mean mlm?"),
        (["doctor", "--jsn", "true"], "did you mean --json?"),
        (["submit", "mlmm"], "did you mean mlm?"),
        (["submit", "mlm", "--follow", "maybe"], "--follow: expected bool"),
    ],
)
def test_mistakes_are_one_line_and_status_two(
    argv: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse(argv)
    assert exit_info.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    assert expected in captured.err
    assert captured.out == ""


def readme_commands() -> list[list[str]]:
    """Return the words of each command line of the README that runs a pipeline."""
    lines = (CONFIGS.parents[1] / "README.md").read_text().splitlines()
    commands = [shlex.split(line)[3:] for line in lines if line.startswith("python -m pipelines ")]
    return [[word.replace("pipelines/configs", str(CONFIGS)) for word in command] for command in commands]


@pytest.mark.parametrize("argv", readme_commands(), ids=" ".join)
def test_commands_of_the_readme_parse(argv: list[str]) -> None:
    assert isinstance(parse(argv), Command | ConvertCommand | DoctorCommand | SubmitCommand | SyncCommand | ToolCommand)


def test_overview_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        parse([])
    overview = capsys.readouterr().out
    assert all(verb in overview for verb in [*PIPELINES, *TOOLS, "doctor", "submit", "convert", "sync-mlflow"])


def test_convert_takes_overrides() -> None:
    command = parse(["convert", "a.ckpt", "out", "--num_layers", "3", "--image_shape", "[10, 12, 3]"])
    assert command == ConvertCommand("a.ckpt", "out", num_layers=3, image_shape=(10, 12, 3))


def test_doctor_looks_at_data_where_a_verb_is_named() -> None:
    whole = parse(["doctor", "mlm", "--data.path", "toy_reviews", "--json", "true"])
    assert (whole.command.verb, whole.command.config.data.path) == ("mlm", "toy_reviews")
    assert (whole.with_data, whole.json) == (True, True)
    bare = parse(["doctor", "--storage_path", "elsewhere"])
    assert (bare.command.verb, bare.command.run.storage_path, bare.with_data) == ("sentiment", "elsewhere", False)


def test_submit_keeps_its_own_options_to_itself() -> None:
    options = ["--run_name", "x", "--trainer.max_epochs=3"]
    own = ["--follow=false", "--address", "http://head:8265", "--working_dir=w", "--runtime_env", "r.yaml"]
    command = parse(["submit", "mlm", *own[:1], *options, *own[1:]])
    assert command.options == tuple(options)
    assert command.command == parse(["mlm", *options])
    assert command.config == SubmitConfig("http://head:8265", "w", "r.yaml", follow=False)


def test_stages_of_the_chain_share_encoder_and_data_and_pass_the_model_on() -> None:
    config = SentimentConfig(encoder=EncoderConfig(num_latents=8))
    stages = config.stages("runs/x")
    assert list(stages) == ["mlm", "frozen", "finetune"]
    assert {stage.encoder for stage in stages.values()} == {config.encoder}
    assert {stage.data for stage in stages.values()} == {config.data}
    assert (stages["frozen"].init_from, stages["frozen"].freeze_encoder) == ("runs/x/mlm/model", True)
    assert (stages["finetune"].init_from, stages["finetune"].freeze_encoder) == ("runs/x/frozen/model", False)
    assert stages["finetune"].decoder == config.frozen.decoder
