"""The ``labelrounds`` command. Heavy modules are imported by the commands that need them, so that help is instant."""

import json
import logging
import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from labelrounds import administration, heap
from labelrounds.errors import BadInput, LabelRoundsError

_TABLE_WIDTH = 190
_INTERRUPTED = 130  # as shells have it of Ctrl-C

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""
Segment, correct, submit and retrain from 3D Slicer, on your own server.

First time? `labelrounds demo` plays a whole labelling round on invented patients, in a few minutes.
Then `labelrounds start --studies FOLDER` serves your own images; in Slicer's *MONAILabel* module, enter the
address that it prints and press the round arrow beside it.
""",
)

Models = Annotated[str, typer.Option(help="Names of the models to serve, separated by commas; all when left out.")]
Configs = Annotated[
    Path | None, typer.Option(help="A folder of your own YAML files, one for each model, beside the shipped ones.")
]
Studies = Annotated[
    str,
    typer.Option(
        help="The folder with your images (NIfTI or NRRD), or the address of a DICOMweb server."
        " Left out: invented patients, made in LABELROUNDS_HOME, and the model for them."
    ),
]
Certificate = Annotated[Path | None, typer.Option(help="A TLS certificate, with its chain (PEM).")]
CertificateKey = Annotated[Path | None, typer.Option(help="Its key (PEM, without a password).")]
Ray = Annotated[
    str,
    typer.Option(
        help="Work on Ray: `local` for this machine's GPUs and cores, or a cluster's HOST:PORT; in this process when"
        " left out. Needs `pip install 'labelrounds[ray]'`."
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Processes on Ray, each with a model; one a GPU, or one for four cores when left out."),
]


class LogFormat(str, Enum):
    """How a line of the log is written."""

    text = "text"
    json = "json"


@app.command()
def start(
    studies: Studies = "",
    models: Models = "",
    configs: Configs = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 opens it to your network, and needs a login.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let everybody in who can reach the server, without a login.")
    ] = False,
    tls_certificate: Certificate = None,
    tls_key: CertificateKey = None,
    behind_proxy: Annotated[
        str, typer.Option(help="Addresses of your reverse proxies: whose X-Forwarded-For and -Proto are believed.")
    ] = "",
    log_format: Annotated[
        LogFormat | None, typer.Option(help="How a line of the log is written; LABELROUNDS_LOG_FORMAT, else text.")
    ] = None,
    refuse_identified: Annotated[
        bool, typer.Option("--refuse-identified", help="Refuse DICOM images that still say whose they are.")
    ] = False,
) -> None:
    """Serve models to 3D Slicer until you press Ctrl-C."""
    if log_format is not None:
        os.environ["LABELROUNDS_LOG_FORMAT"] = log_format.value
    if refuse_identified:
        os.environ["LABELROUNDS_REFUSE_IDENTIFIED"] = "true"
    from labelrounds.listening import Listening
    from labelrounds.starting import serve

    serve(studies, models, configs, Listening(host, port, insecure, tls_certificate, tls_key, behind_proxy))


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the studies, the models and the picture.")] = Path("demo"),
    serve: Annotated[
        bool, typer.Option("--serve", help="Keep the server running, to connect 3D Slicer to it.")
    ] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the server.")] = 8000,
) -> None:
    """Play a labelling round on invented patients: next case, segment, correct, submit, train, segment again.

    With --serve and the folder of a round that was played, only the server is started, on what that round has trained.
    """
    from labelrounds.demo import play

    play(output, serve, port)


@app.command()
def viewer(
    server: Annotated[str, typer.Option(help="Address of the LabelRounds server.")] = "http://127.0.0.1:8000",
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this machine's own needs a TLS certificate.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for a free one.")] = 8010,
    tls_certificate: Certificate = None,
    tls_key: CertificateKey = None,
) -> None:
    """Play the rounds of a server in a browser, without 3D Slicer on your desk; one user each. Ctrl-C ends it."""
    from labelrounds.listening import Listening
    from labelrounds.viewing import view

    view(server, Listening(host, port, certificate=tls_certificate, key=tls_key))


@app.command()
def plan(
    studies: Annotated[str, typer.Option(help="The folder with the images; their labels lie in labels/final.")],
    labels: Annotated[
        str, typer.Option(help="Names of the labels, separated by commas, in the order of their voxel values 1, 2, 3.")
    ],
    name: Annotated[str, typer.Option(help="The model's name: small letters, digits and _.")],
    configs: Annotated[
        Path, typer.Option(help="The folder to write the model's YAML file to; made if need be.")
    ] = Path("my-models"),
    network: Annotated[str, typer.Option(help="unet, vnet, attention_unet or residual_unet.")] = "unet",
    device: Annotated[str, typer.Option(help="Where it will be trained; the best there is when left out.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace a model of that name.")] = False,
) -> None:
    """Read your images, and labels where there are some, and write a model's YAML file for them, reasons included."""
    from labelrounds.plan_file import plan_model, show

    show(studies, *plan_model(studies, labels, name, configs, network, device, force))


@app.command("import-labels")
def import_labels(
    studies: Annotated[Path, typer.Option(help="The folder with the images.")],
    csv: Annotated[
        Path | None,
        typer.Option(help="A file with the columns image (its name) and label (a class, or several with ;)."),
    ] = None,
    folders: Annotated[
        Path | None, typer.Option(help="A folder with one folder a class, whose images are copied into the studies.")
    ] = None,
    multilabel: Annotated[
        bool, typer.Option("--multilabel", help="An image may be of several classes, or of none.")
    ] = False,
) -> None:
    """Label whole images with classes that are known already, to train a classification model on them."""
    import labelrounds.host  # noqa: F401 - first, so that the host can be imported
    from labelrounds.classification.importing import import_csv, import_folders

    if (csv is None) == (folders is None) or (folders is not None and multilabel):
        raise BadInput("give either --csv or --folders; --multilabel goes with --csv")
    print(import_csv(studies, csv, multilabel) if csv else import_folders(studies, folders or studies))


@app.command()
def train(
    model: Annotated[str, typer.Option(help="The model to train; see `labelrounds models`.")],
    studies: Annotated[str, typer.Option(help="The folder with the images; their labels lie in labels/final.")],
    configs: Configs = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="How many; the policy's own number if left out.")] = None,
    policy: Annotated[
        str,
        typer.Option(
            help="`quick`: update the served version in a few epochs; `full`: from nothing; `auto`: in full when"
            " nothing is served or the labels have grown by half, else quick."
        ),
    ] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N; the best there is when left out.")] = "",
) -> None:
    """Train a model on the labels that were submitted, here in the terminal. Ctrl-C keeps the best so far.

    Exit status: 0 where the training has come to its end, also if its result is no better than what is served; 130
    where it was stopped with nothing to publish; 2 where an error ended it.
    """
    from labelrounds import distributed
    from labelrounds.starting import train_here

    request = {"model": model, "policy": policy, "device": device, "epochs": epochs or 0}
    result = train_here(studies, configs, request)
    if result:  # of several processes the first has one
        print(json.dumps(result, indent=2))
    distributed.end()
    if result["status"] == "stopped" and result["published"] is None:
        raise typer.Exit(_INTERRUPTED)


@app.command()
def predict(
    model: Annotated[str, typer.Option(help="The model; see `labelrounds models`.")],
    image: Annotated[
        Path | None, typer.Option(help="NIfTI, NRRD, a DICOM file, a folder with one DICOM series, PNG, JPEG or TIFF.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="A folder of images; folders in it too, each DICOM series as one image.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Where to write: a segmentation as .nii.gz, .nii, .nrrd or .seg.nrrd, classes as .csv, the"
            " segmentations of --images into a folder; where an earlier run ended, this one goes on."
        ),
    ] = None,
    configs: Configs = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N; the best there is when left out.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace an output that is there already.")] = False,
    ending: Annotated[
        str, typer.Option(help="Of the segmentations of --images: .nii.gz, .nii, .nrrd or .seg.nrrd.")
    ] = ".nii.gz",
    again: Annotated[
        bool, typer.Option("--again", help="Of --images, try those again that an earlier run found unusable.")
    ] = False,
    ray: Ray = "",
    workers: Workers = None,
) -> None:
    """Segment or classify an image, or a folder of them, without a server."""
    from labelrounds.config import ModelConfig
    from labelrounds.starting import classify_files, configured, predict_file

    if (image is None) == (images is None):
        raise BadInput("give either --image or --images")
    config = configured(model, configs)
    if isinstance(config, ModelConfig):
        if output is None:
            raise BadInput(f"model {model} segments: give --output")
        if images is not None:
            from labelrounds.archive import segment_archive
            from labelrounds.fleet import crew_of

            print(segment_archive(config, images, output, ending, device, crew_of(ray, workers), again))
        elif ray:
            raise BadInput("--ray is for --images")
        else:
            print(predict_file(model, image or Path(), output, configs, device, force))
    elif ray:
        raise BadInput(f"model {model} classifies; that is done in this process: leave out --ray")
    else:
        print(classify_files(config, image or images or Path(), output, device, force))


@app.command()
def score(
    studies: Annotated[Path, typer.Option(help="The folder with the images.")],
    model: Annotated[str, typer.Option(help="The model that scores them; see `labelrounds models`.")],
    costly: Annotated[
        str,
        typer.Option(help="Scores that take passes of their own, separated by commas: tta, committee, epistemic."),
    ] = "",
    configs: Configs = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N; the best there is when left out.")] = "",
    ray: Ray = "",
    workers: Workers = None,
) -> None:
    """Score the images of a studies folder now, for the rounds of a server, which shares the scores."""
    from labelrounds.fleet import crew_of
    from labelrounds.starting import score_folder

    names = tuple(name.strip() for name in costly.split(",") if name.strip())
    print(score_folder(studies, model, configs, names, device, crew_of(ray, workers)))


@app.command()
def rounds(
    studies: Studies = "",
    model: Annotated[str, typer.Option(help="The model that labels are for; a served one when left out.")] = "",
    strategy: Annotated[str, typer.Option(help="By which the next cases are chosen.")] = "auto",
    count: Annotated[int, typer.Option(min=0, max=500, help="How many of the next cases are shown.")] = 10,
    target: Annotated[
        float, typer.Option(min=0, max=1, help="Dice of predictions on random cases at which you would stop.")
    ] = 0.9,
    output: Annotated[
        Path | None, typer.Option(help="A folder for rounds.html, curve.png and map.png; made if need be.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON, as GET /rounds/ answers.")] = False,
    configs: Configs = None,
) -> None:
    """Show what the labels have brought, which cases come next and why, and which labels to look at again.

    Beside a running server or without one; it hands out no case and computes with no model.
    """
    from labelrounds.starting import see_rounds

    see_rounds(studies, model, strategy, count, target, output, as_json, configs)


@app.command()
def models(configs: Configs = None) -> None:
    """List the models, their labels and their trained versions with scores."""
    from rich.console import Console

    from labelrounds.starting import models_table

    console = Console()
    console.width = max(console.width, _TABLE_WIDTH)  # rather wrapped by a narrow terminal than cut
    console.print(models_table(configs))


@app.command()
def rollback(
    model: Annotated[str, typer.Option(help="The model; see `labelrounds models` for it and its versions.")],
    to: Annotated[
        int | None,
        typer.Option(min=0, help="Number of the version, 0 for the shipped one; the one before if left out."),
    ] = None,
    configs: Configs = None,
) -> None:
    """Serve an older version of a model again, at once, also while a server runs. No version is deleted."""
    from labelrounds.starting import roll_back

    print(roll_back(model, to, configs))


app.command()(administration.audit)
app.command("deidentify")(administration.deidentify_files)
app.add_typer(administration.users, name="users")


def main() -> None:
    """Run the command line; an error meant for the user is one line, not a traceback."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve the server's own
    heap.keep_freed()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        app(standalone_mode=True)
    except (LabelRoundsError, OSError) as error:
        print(f"labelrounds: {error}", file=sys.stderr)
        sys.exit(2)
