"""What the commands of ``cli.py`` do: start a server, train, predict and list without one."""

import json
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import labelrounds.host  # noqa: F401 - first, so that the host can be imported

# isort: split
from monailabel.config import settings
from rich.console import Console
from rich.table import Table

from labelrounds import folders
from labelrounds.app import LabelRoundsApp, configured_models
from labelrounds.audit import record_command
from labelrounds.checkpoints import Checkpoints, Version
from labelrounds.classification.config import ClassifierConfig
from labelrounds.client import free_port
from labelrounds.config import AUTO, AnyConfig, ModelConfig
from labelrounds.devices import choose_device
from labelrounds.errors import BadInput, NotFound
from labelrounds.fleet import MakeCrew
from labelrounds.inference import segment
from labelrounds.listening import Listening
from labelrounds.login import login_is_set_up
from labelrounds.logs import log_config
from labelrounds.pacs import check_address
from labelrounds.phantoms import write_studies
from labelrounds.reading import read_image
from labelrounds.rounds_page import write_rounds
from labelrounds.rounds_tables import round_tables
from labelrounds.runtime_measurement import read_measurement
from labelrounds.runtimes import REFERENCE, default_runtime, runtimes
from labelrounds.served import ServedNetworks
from labelrounds.settings import server_settings
from labelrounds.tasks import task_of
from labelrounds.writing import write_label

PHANTOM_STUDIES, PHANTOM_MODEL = 12, "unet_phantom"
# Longer than the 5 s after which a client that was told 503 comes again: its connection would close as it sends.
KEEP_ALIVE_S = 60
_CAPTION = "score: the Dice, or of classes 1 - Brier score / 2; runtime: on {} of this machine, to float32"


def conf_of(models: str, configs: Path | None) -> dict[str, str]:
    """Return the app's settings as the host passes them on, all texts."""
    conf = {"models": models} if models else {}
    return conf | ({"configs": str(configs.expanduser().resolve())} if configs else {})


def studies_of(studies: str) -> str:
    """Return the studies' folder or address, making the phantom studies where none is named.

    Raises:
        BadInput: the folder does not exist.
    """
    if studies.startswith(("http://", "https://")):
        return check_address(studies)
    if not studies:
        folder = folders.home() / "phantom-studies"
        if not folder.is_dir():
            print(f"Making {PHANTOM_STUDIES} invented patients in {folder} ...", flush=True)
            # Under another name until it is whole: a folder with a few patients would be served for ever after.
            with tempfile.TemporaryDirectory(dir=folder.parent) as staging:
                write_studies(Path(staging) / folder.name, PHANTOM_STUDIES)
                (Path(staging) / folder.name).rename(folder)
        return str(folder)
    folder = Path(studies).expanduser().resolve()
    if not folder.is_dir():
        raise BadInput(f"studies {studies!r} is neither a folder nor an address that begins with http:// or https://")
    if not settings.MONAI_LABEL_DATASTORE_READ_ONLY:
        try:
            folders.check_writable(folder)
        except OSError as error:
            raise BadInput(
                f"studies {studies!r} can't be written to ({error.strerror}), and labels are saved there; to segment"
                " without saving, set MONAI_LABEL_DATASTORE_READ_ONLY=true"
            ) from error
    return str(folder)


def configure_host(studies: str, models: str, configs: Path | None, port: int) -> None:
    """Set the host's settings, for this process and, through the environment, for its children.

    Raises:
        BadInput: a faulty configuration, studies or home folder, found before anything is made or started.
    """
    folders.make_home()
    conf = conf_of(models, configs)
    configured_models(conf)
    settings.MONAI_LABEL_STUDIES = studies_of(studies)
    settings.MONAI_LABEL_APP_DIR = str(folders.app_folder())
    settings.MONAI_LABEL_APP_CONF = conf
    settings.MONAI_LABEL_SERVER_PORT = port
    for name in ("STUDIES", "APP_DIR", "SERVER_PORT"):
        os.environ[f"MONAI_LABEL_{name}"] = str(getattr(settings, f"MONAI_LABEL_{name}"))
    os.environ["MONAI_LABEL_APP_CONF"] = json.dumps(conf)


def serve(studies: str, models: str, configs: Path | None, listening: Listening) -> None:
    """Serve until interrupted.

    Raises:
        BadInput: faulty settings, an address or port that can't be listened on, or is open to everybody.
        Conflict: another server works in the home folder.
    """
    import uvicorn

    from labelrounds.stopping import GracefulServer

    if listening.insecure:
        os.environ["LABELROUNDS_INSECURE"] = "true"
    options = server_settings()
    login = login_is_set_up(options)
    listening.check(login)
    free_port(listening.port, listening.host)
    if not studies and not models and configs is None:
        models = PHANTOM_MODEL  # the others know no organ of the invented patients
    configure_host(studies, models, configs, listening.port)
    folders.claim_home()
    print(f"Studies: {settings.MONAI_LABEL_STUDIES}\nModel versions and logs: {folders.home()}")
    if warning := listening.warning(login):
        print(warning, file=sys.stderr)
    print(f"In 3D Slicer, module MONAILabel, enter the server address {listening.address}", flush=True)
    config = uvicorn.Config(
        "labelrounds.server:app",
        timeout_keep_alive=KEEP_ALIVE_S,
        log_level="info",
        log_config=log_config(options.log_format),
        access_log=False,  # whose lines have whole addresses, ids of images among them; see tracing.py
        **listening.options(),
    )
    GracefulServer(config, options.stop_s).run()


def train_here(studies: str, configs: Path | None, request: dict[str, Any]) -> dict[str, Any]:
    """Train in this process on the labels of a studies folder; Ctrl-C ends it with the best so far.

    Raises:
        LabelRoundsError: an unknown model, a wrong option, no usable label.
    """
    configure_host(studies, "", configs, settings.MONAI_LABEL_SERVER_PORT)
    settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD = False
    stop = threading.Event()
    for ending in (signal.SIGINT, signal.SIGTERM):  # the second is torchrun's
        signal.signal(ending, lambda number, frame: stop.set())
    app = LabelRoundsApp(settings.MONAI_LABEL_APP_DIR, settings.MONAI_LABEL_STUDIES, settings.MONAI_LABEL_APP_CONF)
    return app.train(request, stop.is_set)


def see_rounds(
    studies: str,
    model: str,
    strategy: str,
    count: int,
    target: float,
    output: Path | None,
    as_json: bool,
    configs: Path | None,
) -> None:
    """Print how the labelling of a studies folder stands, and write its page and pictures where a folder is named.

    Raises:
        LabelRoundsError: an unknown model or strategy, a folder that can't be written to.
    """
    if output is not None and output.exists() and not output.is_dir():
        raise BadInput(f"output {str(output)!r} is a file; it has to be a folder, or nothing yet")
    if not studies and not model and configs is None:
        model = PHANTOM_MODEL
    configure_host(studies, model, configs, settings.MONAI_LABEL_SERVER_PORT)
    settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD = False
    app = LabelRoundsApp(settings.MONAI_LABEL_APP_DIR, settings.MONAI_LABEL_STUDIES, settings.MONAI_LABEL_APP_CONF)
    try:
        state = app.rounds.state(strategy, count, model or None, target=target, thumbnails=output is not None)
    finally:
        app.close()
    if as_json:
        print(json.dumps(state, indent=2, allow_nan=False))
    else:
        Console().print(round_tables(state))
    if output is not None:
        *_, page = write_rounds(output, state)
        print(f"Wrote {page}", file=sys.stderr)


def configured(model: str, configs: Path | None) -> AnyConfig:
    """Return a model's configuration.

    Raises:
        NotFound: no such model.
        BadInput: a faulty file.
    """
    known = configured_models(conf_of("", configs))
    if model not in known:
        raise NotFound(f"model {model!r} is not one of {', '.join(known)}")
    return known[model]


def check_output(output: Path, force: bool) -> None:
    """Refuse a file that can't be written, or that would replace another one.

    Raises:
        BadInput: its folder is missing, it is a folder itself, or it is there already.
    """
    if not output.expanduser().resolve().parent.is_dir():
        raise BadInput(f"output {str(output)!r}: the folder does not exist")
    if output.is_dir():
        raise BadInput(f"output {str(output)!r}: is a folder; name a file in it")
    if output.exists() and not force:
        raise BadInput(f"output {str(output)!r}: is there already; choose another name, or --force to replace it")


def classify_files(
    config: ClassifierConfig, source: Path, output: Path | None, device: str, force: bool = False
) -> str:
    """Classify an image, a DICOM series or all in a folder; return a sentence about it.

    Raises:
        LabelRoundsError: no trained version, nothing to classify, an output that can't be written.
    """
    from labelrounds.archive_files import images_in
    from labelrounds.classification.batch import classify_all

    if not source.exists():
        raise NotFound(f"{source}: there is no such file or folder")
    if output is not None:
        check_output(output, force)
        if not output.name.lower().endswith(".csv"):
            raise BadInput(f"output {str(output)!r}: classes are written as .csv")
    return classify_all(config, images_in(source), source, output, choose_device(device))


def score_folder(
    studies: Path, model: str, configs: Path | None, costly: tuple[str, ...], device: str, make_crew: MakeCrew
) -> str:
    """Score the images of a studies folder; return a sentence about it.

    Raises:
        LabelRoundsError: an unknown model, no trained version, no such folder, no worker can begin.
    """
    from labelrounds.fleet_scoring import score_studies

    if "://" in str(studies) or not studies.expanduser().is_dir():
        raise BadInput(
            f"studies {str(studies)!r} is not a folder; images of a DICOMweb server are scored by the server itself"
        )
    configured(model, configs)
    folder = Path(studies_of(str(studies)))
    return score_studies(configured_models(conf_of("", configs)), model, folder, costly, device, make_crew)


def predict_file(model: str, image: Path, output: Path, configs: Path | None, device: str, force: bool = False) -> str:
    """Segment an image file; return a sentence about what was written.

    Raises:
        LabelRoundsError: an unknown model, no trained version, an unusable image or output name.
    """
    config = configured(model, configs)
    check_output(output, force)
    if output.exists() and image.exists() and output.samefile(image):
        raise BadInput(f"output {str(output)!r}: is the image itself")
    where = choose_device(device)
    if not isinstance(config, ModelConfig):
        raise BadInput(f"model {model} classifies whole images, it segments none")
    network = ServedNetworks(config).get(where)
    read = read_image(image, channels=config.channels)
    label = segment(network, read, config, where)
    write_label(label, read.affine, output, config.labels)
    counts = ", ".join(f"{name} {int((label == value).sum())}" for name, value in config.label_values.items())
    return f"{network.version} wrote {output}: voxels of {counts}"


def models_table(configs: Path | None) -> Table:
    """Return a table of the models with their versions, where each comes from, and its scores."""
    columns = ("model", "network", "labels", "version", "trained", "how", "cases", "score", "judged on", "test score")
    device = choose_device()
    table = Table(*columns, "runtime", title="Models", caption=_CAPTION.format(device))
    table.columns[0].no_wrap = True
    for name, config in configured_models(conf_of("", configs)).items():
        checkpoints = Checkpoints(config)
        served = checkpoints.served_number()
        first = (name, config.network.name, ", ".join(config.labels))
        for version in checkpoints.versions():
            mark = " (served)" if served == version.number else ""
            number = "shipped" if version.number == 0 else str(version.number)
            known = (*_history(version.record), *_scores(version.record, config), _runtime(checkpoints, version))
            table.add_row(*first, number + mark, *known)
            first = ("", "", "")
        if served is None:
            table.add_row(*first, "none yet")
    return table


def roll_back(model: str, to: int | None, configs: Path | None) -> str:
    """Serve an older version of a model again, the one before the served one if none is named; say what was done.

    Raises:
        LabelRoundsError: an unknown model or version, or none before.
    """
    before, version = Checkpoints(configured(model, configs)).rollback(to)
    record_command("rollback", model=model, version=str(version.number))
    instead = "" if before is None else f" instead of version {before}"
    return f"{version} is served from now on{instead}, by a running server too; the next training compares with it."


def _history(record: dict[str, Any]) -> tuple[str, str, str]:
    """Return when a version was trained, how and from what, and on how many cases."""
    parent = record.get("parent")
    how = str(record.get("policy", "")) + (f" from {parent or 'shipped'}" if parent is not None else "")
    if classifier := record.get("classifier"):
        scores = ", ".join(f"{kind} {score:.3f}" for kind, score in classifier.get("scores", {}).items())
        how += f", {classifier['chosen']}" + (f" of {scores}" if scores else "")
    return str(record.get("created", ""))[:10], how, str(len(record.get("cases", {}).get("train", [])))


def _scores(record: dict[str, Any], config: AnyConfig) -> tuple[str, str, str]:
    """Return a version's mean score, on how many cases of which kind it was measured, and that of its test cases."""
    score = record.get("best_metric")
    test = [value for value in (record.get(f"{task_of(config).key}_test") or {}).values() if value is not None]
    cases = {part: len(names) for part, names in record.get("cases", {}).items()}
    kind = record.get("judged_by") or ("validation" if cases.get("validation") else "train")
    count = len(record.get("scores", ())) or cases.get(kind, 0)
    return (
        "" if score is None else f"{score:.3f}",
        "" if score is None else f"{count} {kind}",
        f"{sum(test) / len(test):.3f} ({cases.get('test', 0)})" if test else "",
    )


def _runtime(checkpoints: Checkpoints, version: Version) -> str:
    """Return what runs a version, how many times as fast as float32 it is, and the lowest Dice to it, if known."""
    config, device = checkpoints.config, choose_device()
    if not isinstance(config, ModelConfig):
        return REFERENCE
    measured = read_measurement(checkpoints.runtimes_folder(version), config, device)
    forced = config.inference.runtime
    if forced != AUTO and (obstacle := runtimes.get(forced).obstacle(device)):
        return f"{default_runtime(device)}, as {forced} can't be used: {obstacle}"
    if measured is None:
        return "not measured" if forced == AUTO else forced
    runtime = measured.chosen if forced == AUTO else forced
    known = measured.summary(runtime)
    return f"{runtime}, x{known['speedup']:.1f}, Dice {known['lowest_dice']:.4f}" if known else runtime
