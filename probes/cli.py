"""The library's command line: train, recipes, calibrate, evaluate, inspect, verify, import, export-vector.

`monitor.cli` composes these into `probewatch`. What each command does is in `probes.commands`.
"""

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from probes.atomic import check_target
from probes.errors import ArtifactError, BindingError, CalibrationError, DataError, ProbeError
from probes.options import numbers, whole_numbers

IMPORTS: Final = (
    "gguf",
    "steering-vectors",
    "cast",
    "persona-vectors",
    "refusal-direction",
    "sklearn",
    "npz",
    "apollo",
    "aisi",
    "hallucination-probes",
    "models-under-pressure",
    "attention-probes",
    "saelens",
)
"""Formats of `probewatch import`, here so that --help needs no torch; `probes.importing.formats` reads them."""
Command = Callable[[argparse.Namespace], int]

_EXAMPLES: Final = {
    "train": "probewatch train --model ./model --data chats.jsonl --name deception --concept deception "
    "--positive lie --negative honest -o deception.safetensors",
    "recipes": "probewatch recipes sycophancy -o sycophancy.jsonl",
    "calibrate": "probewatch calibrate deception.safetensors --model ./model --benign monday.jsonl "
    "--second tuesday.jsonl --fpr 0.01 --requests-per-day 20000 -o deception.safetensors",
    "evaluate": "probewatch evaluate deception.safetensors --model ./model --data d.jsonl "
    "--report card.html --gate",
    "inspect": "probewatch inspect deception.safetensors",
    "verify": "probewatch verify deception.safetensors --model ./model",
    "import": "probewatch import vector.gguf --model ./model -o vector.safetensors",
    "export-vector": "probewatch export-vector honesty.safetensors --format gguf -o honesty.gguf",
}
_HELP: Final = {
    "train": "fit a probe to labelled conversations, its kind, layer and penalty chosen on validation",
    "recipes": "ready conversations for a concept: list them, see a card, write the data",
    "calibrate": "set the threshold from benign traffic, and measure the realised false-positive rate",
    "evaluate": "judge a probe on test conversations beside its controls: an HTML report card, a gate for CI",
    "inspect": "print the manifest and the report card of an artifact",
    "verify": "check an artifact's format, digest, golden scores and, with --model, its binding",
    "import": "convert another project's probe or vector, its layer numbers said, never guessed in silence",
    "export-vector": "write a vector as a GGUF control vector or for steering-vectors",
}
_ELSEWHERE: Final = {
    "import": ("probes.importing.command", "import_file"),
    "export-vector": ("probes.importing.command", "export_vector"),
}
"""Commands outside `probes.commands`: what opens foreign files stays in a room of its own."""


def add_commands(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands. Each parsed namespace carries `run`: namespace -> exit status."""
    _train(_command(subparsers, "train"))
    _recipes(_command(subparsers, "recipes"))
    _calibrate(_command(subparsers, "calibrate"))
    _evaluate(_command(subparsers, "evaluate"))
    inspect = _command(subparsers, "inspect")
    inspect.add_argument("probe", type=Path)
    inspect.add_argument("--json", action="store_true", help="the manifest as JSON instead of the card")
    verify = _command(subparsers, "verify")
    verify.add_argument("probe", type=Path)
    verify.add_argument("--model", type=Path, help="directory of the model that it must fit")
    _import(_command(subparsers, "import"))
    export = _command(subparsers, "export-vector")
    export.add_argument("vector", type=Path)
    export.add_argument("--format", choices=("gguf", "steering-vectors"), required=True)
    export.add_argument("-o", "--out", type=Path, required=True, help="file to write")


def status_of(error: ProbeError) -> int:
    """Exit status of an error: 1 where a check failed (artifact, binding, calibration), else 2: wrong use."""
    return 1 if isinstance(error, ArtifactError | BindingError | CalibrationError) else 2


def main(arguments: list[str] | None = None) -> int:
    """The library's commands alone: `python -m probes.cli`."""
    parser = argparse.ArgumentParser(prog="probewatch", description="Train, calibrate and judge probes.")
    add_commands(parser.add_subparsers(dest="command", required=True))
    options = parser.parse_args(arguments)
    return int(options.run(options))


def _command(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str
) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        name,
        help=_HELP[name],
        description=_HELP[name].replace("%%", "%") + ".",
        epilog=f"example: {_EXAMPLES[name]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_guarded(name))
    return parser


def _guarded(name: str) -> Command:
    def run(options: argparse.Namespace) -> int:
        module, function = _ELSEWHERE.get(name, ("probes.commands", name))
        chosen: Command = getattr(importlib.import_module(module), function)  # torch: not for --help
        try:
            if getattr(options, "out", None) is not None:
                check_target(options.out)
            return chosen(options)
        except (ProbeError, OSError) as found:
            error = found if isinstance(found, ProbeError) else _of_the_system(found)
            print(f"error: {error}", file=sys.stderr)
            return status_of(error)

    return run


def _of_the_system(error: OSError) -> ProbeError:
    """A full disk, a folder without permission: one line too."""
    return DataError(f"{error.filename or 'the output'}: {error.strerror}; check path, permissions and space")


def _train(parser: argparse.ArgumentParser) -> None:
    _sources(parser)
    parser.add_argument(
        "--data", type=Path, help="JSONL; where no line has a split, whole groups are dealt 60/20/20"
    )
    parser.add_argument("--recipe", help="a ready recipe instead of --data (see `probewatch recipes`)")
    parser.add_argument(
        "--again", type=Path, metavar="PROBE", help="make this one again and compare the tensors"
    )
    parser.add_argument("--name")
    parser.add_argument("--concept", help="what a high score means, in a word")
    parser.add_argument("--positive", help="what label 1 means")
    parser.add_argument("--negative", help="what label 0 means")
    parser.add_argument(
        "--kind",
        action="append",
        help="fit to try, may be repeated; all: each that needs no more than labels (default: logistic and "
        "difference_of_means)",
    )
    parser.add_argument(
        "--layers", type=_layers, help="blocks to try, e.g. 3,4,3+4 (default: each but the last)"
    )
    parser.add_argument(
        "--tokens", help="answer, all, last-prompt, last-5-prompt, last-prompt+answer (default: answer)"
    )
    parser.add_argument(
        "--aggregation", help="mean, max, last, ema:ALPHA, cusum:REFERENCE .. (default: that of the kind)"
    )
    parser.add_argument("--min-tokens", type=int, default=1, help="tokens before a live alert may latch")
    parser.add_argument(
        "--regularisation", type=numbers, default=(0.001, 0.03, 1.0), help="values of C to try"
    )
    parser.add_argument(
        "--pooled", action="store_true", help="linear fits see the mean row of a conversation"
    )
    parser.add_argument("--seeds", type=int, default=5, help="fits of each kind and layer (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="of splits, redraws and fits (default: 0)")
    _out(parser)


def _recipes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="of a recipe, to see its card")
    parser.add_argument("-o", "--out", type=Path, help="write its conversations as JSONL")
    parser.add_argument("--seed", type=int, default=0, help="of the splits (default: 0)")


def _calibrate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("probe", type=Path)
    _sources(parser)
    parser.add_argument(
        "--benign",
        type=Path,
        required=True,
        help="benign traffic for the threshold: JSONL, collected folder, or scores of `probewatch record`",
    )
    parser.add_argument(
        "--second", type=Path, help="another benign set, for the realised rate (default: half of the first)"
    )
    parser.add_argument(
        "--fpr", type=float, default=0.01, help="share of benign traffic to flag (default: 0.01)"
    )
    parser.add_argument(
        "--requests-per-day", type=float, metavar="N", help="your rate, to tell the false flags of a day"
    )
    parser.add_argument(
        "--by",
        metavar="FIELD",
        help="of each conversation (condition, template ..): the rate holds in each of its values",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the deal into halves (default: 0)")
    parser.add_argument("--action", help="observe, alert, stop or steer:VECTOR (default: by concept)")
    _out(parser)


def _evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("probe", type=Path)
    _sources(parser)
    parser.add_argument("--data", type=Path, help="JSONL; split test is judged, train feeds text-only")
    parser.add_argument(
        "--report", type=Path, help="card to write, JSON beside it (default: NAME.report.html)"
    )
    parser.add_argument("--picture", type=Path, help="all plots in one file: .png, .svg or .pdf")
    parser.add_argument(
        "--headline", help="contrast that controls and gate refer to (default: the data's first)"
    )
    parser.add_argument(
        "--gate", action="store_true", help="status 1 where text-only comes close or a control succeeds"
    )
    parser.add_argument(
        "--margin", type=float, default=0.1, help="AUROC between probe and controls (default: 0.1)"
    )
    parser.add_argument("--waive", action="append", default=[], metavar="KEY", help="a fault to let pass")
    parser.add_argument("--min-auroc", type=float, help="status 1 below it, on the headline contrast")
    parser.add_argument("--quick", action="store_true", help="leave out what runs the model again")
    parser.add_argument(
        "--attack-steps", type=int, default=0, help="rounds of the suffix attack (default: 0, not run)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "-o", "--out", type=Path, help="write the artifact with these figures, and its card beside it"
    )


def _import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="file, or folder where the format has several")
    parser.add_argument("--format", choices=IMPORTS, help="default: by what is in the file")
    parser.add_argument(
        "--layers-are",
        choices=("resid_post", "hf", "block_input"),
        help="what the file's layer numbers mean: after block N, hidden_states[N], or before block N",
    )
    parser.add_argument(
        "--layers",
        type=whole_numbers,
        metavar="L,..",
        help="in the file's numbering: those to take, or to declare",
    )
    parser.add_argument("--features", type=whole_numbers, metavar="K,..", help="of a sparse autoencoder")
    parser.add_argument("--positive-class", help="of a classifier with several classes")
    parser.add_argument("--model", type=Path, help="directory of the model to bind it to (default: unbound)")
    parser.add_argument("--name", help="default: by the name of the file written")
    _out(parser)


def _sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, help="directory of a Hugging Face model")
    parser.add_argument(
        "--activations", type=Path, metavar="DIR", help="folder of `probewatch collect`, instead of --model"
    )


def _out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--out", type=Path, required=True, help="artifact to write (.safetensors)")


def _layers(text: str) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(sorted(set(whole_numbers(part, "+")))) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
