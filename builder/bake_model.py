"""Put a model into the image, where the worker looks before any volume and any download.

    python -m builder.bake_model --into /opt/ember/models --name ORG/MODEL [--revision REV] [--from DIRECTORY]
                                 [--token-file FILE] [--tokenizer ORG/MODEL] [--tokenizer-revision REV]

Only the files that the engine needs are downloaded or copied. `--into` gets the layout of a Hugging Face cache. A model
that Ember cannot serve fails the build instead of the first boot. The token is read from a file (a build secret) and is
not stored. Without a name the image has no model.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
from pathlib import Path

from ember.engine.description.read_config import read_json
from ember.engine.errors import ModelError
from ember.engine.loading.download import download
from ember.engine.loading.files import choose_weights
from ember.engine.loading.hub_files import Repository, text_files
from ember.engine.loading.load import read_model_config
from ember.engine.loading.resolve import MODEL, TOKENIZER, Wanted, find_snapshot
from ember.front.text import prepared_tokenizer

LOCAL = "local"  # name of the commit of a model from a directory


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--name", default="", help="Hugging Face id, which the worker's MODEL_NAME will be")
    parser.add_argument("--revision", default="")
    parser.add_argument("--from", dest="source", type=Path, default=None, help="a directory with the model's files")
    parser.add_argument("--token-file", type=Path, default=None)
    parser.add_argument("--tokenizer", default="")
    parser.add_argument("--tokenizer-revision", default="")
    options = parser.parse_args(arguments)
    options.into.mkdir(parents=True, exist_ok=True)
    try:
        token = _token(options.token_file)
        if options.name not in ("", "demo"):  # the demo model is part of the package
            bake(MODEL, options.into, options.name, options.revision or None, options.source, token)
        if options.tokenizer and options.tokenizer != options.name:
            bake(TOKENIZER, options.into, options.tokenizer, options.tokenizer_revision or None, None, token)
    except ModelError as error:
        print(f"bake_model: {error}", file=sys.stderr)
        return 1
    return 0


def bake(wanted: Wanted, into: Path, name: str, revision: str | None, source: Path | None, token: str | None) -> None:
    """Raises ModelError."""
    if name.startswith(("/", ".")) or name.count("/") > 1:
        raise ModelError(
            f"{wanted.setting}={name}: give the name that the worker will serve (organisation/model); the directory "
            "with the files is a build context, --build-context model=DIRECTORY"
        )
    if source is not None and source.is_dir() and any(not file.name.startswith(".") for file in source.iterdir()):
        directory = copy(into, name, revision, source)
    else:
        repository = Repository(name, revision, wanted.setting, wanted.required, wanted.load_format)
        check = read_model_config if wanted.load_format else lambda directory: None
        directory = download(repository, into, token=token, say=print, check=check)
    if wanted.load_format:
        read_model_config(directory)
    prepare_tokenizer(directory)
    _tidy(into)
    if find_snapshot(into, name, revision, wanted) != directory:
        raise ModelError(f"{name} was put into {directory}, but the worker would not find it complete there")
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    print(f"baked {name}: {size / 1e9:.2f} GB in {directory}")


def prepare_tokenizer(directory: Path) -> None:
    """Write a large tokenizer.json in the form that loads faster, where there is one."""
    source = directory / "tokenizer.json"
    if not source.exists() or source.stat().st_size < prepared_tokenizer.MIN_BYTES:
        return
    try:
        prepared_tokenizer.prepare(source, directory / prepared_tokenizer.BESIDE)
    except prepared_tokenizer.NotPreparedError as error:
        print(f"the tokenizer stays as it is: {error}")
    except Exception as error:  # the library's; the worker says what is wrong with the file
        print(f"{source} cannot be read: {error}", file=sys.stderr)


def copy(into: Path, name: str, revision: str | None, source: Path) -> Path:
    """Copy the files of a directory that the engine needs to a new snapshot. Raises ModelError."""
    if not (source / "config.json").exists():
        raise ModelError(f"{source} has no config.json: it is not a model directory")
    names = [str(file.relative_to(source)) for file in source.rglob("*") if file.is_file()]
    weights = choose_weights(
        str(source), names, lambda index: read_json(source / index, required=False) or None, load_format="auto"
    )
    repository = into / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / LOCAL
    for file in [*text_files(names), *weights]:
        target = snapshot / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file, target)
    ref = repository / "refs" / (revision or "main")
    ref.parent.mkdir(parents=True, exist_ok=True)
    ref.write_text(LOCAL)
    return snapshot


def _token(file: Path | None) -> str | None:
    """The token of a mounted secret; None if there is none."""
    os.environ.pop("HF_TOKEN", None)  # a build argument of that name would stay in the image's history
    if file is None or not file.exists():
        return None
    return file.read_text().strip() or None


def _tidy(into: Path) -> None:
    """Remove a download's temporary files, and make the files readable for every user."""
    shutil.rmtree(into / ".locks", ignore_errors=True)
    for left_over in [*into.glob("*/blobs/*.incomplete"), *into.glob("*/trees"), into / "CACHEDIR.TAG"]:
        if left_over.is_dir():
            shutil.rmtree(left_over)
        else:
            left_over.unlink(missing_ok=True)
    for path in [into, *into.rglob("*")]:
        if not path.is_symlink():
            with contextlib.suppress(PermissionError):
                path.chmod(0o755 if path.is_dir() else 0o644)


if __name__ == "__main__":
    sys.exit(main())
