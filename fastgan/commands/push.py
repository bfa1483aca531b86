"""`fastgan push RUN OWNER/NAME`: the generator, with its model card, on the Hugging Face hub."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

import fastgan
from fastgan.errors import Stopped, UserError
from fastgan.evaluation.model_card import check_license
from fastgan.evaluation.model_folder import open_source, write_folder
from fastgan.evaluation.sampling import CheckpointSelector
from fastgan.runs.exported import CARD, FILES, HUB_NAME, hub_reason, is_export


@dataclass(frozen=True)
class PushOptions:
    """Upload a run's generator to the Hugging Face hub, as the login of `hf auth login` or HF_TOKEN allows."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder; or what `fastgan export` made of it, which goes as it is, with a model card that you edited."""
    name: Annotated[str, tyro.conf.Positional]
    """OWNER/NAME of the model there; it is made where there is none."""
    private: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Make it private."""
    license: str | None = None
    """What the model card says, like apache-2.0 or cc-by-4.0; without it, unknown."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show what would go there, upload nothing."""
    which: CheckpointSelector = field(default_factory=CheckpointSelector)

    def __post_init__(self) -> None:
        match = HUB_NAME.fullmatch(self.name)
        if match is None or match[2]:
            raise UserError(f"name is {self.name!r}: give OWNER/NAME, as the hub has it")
        check_license(self.license)


def push(options: PushOptions) -> None:
    """Upload the folder, or show it. Raises UserError where the hub refuses it."""
    with tempfile.TemporaryDirectory() as work:
        source = open_source(options.run, options.which)
        folder = source.folder.path
        if not is_export(folder):
            folder = Path(work) / "model"
            write_folder(folder, source, options.which, options.license, options.name)
        elif options.license is not None:
            raise UserError(f"license is {options.license}: {folder / CARD} says it, edit that")
        if options.dry_run:
            _show(folder, options.name)
            return
        try:
            url = _upload(folder, options, f"{source.images_seen:,} images seen, fastgan {fastgan.__version__}")
        except (Stopped, UserError):
            raise
        except Exception as error:  # each of the hub's libraries raises its own
            login = "log in by `hf auth login`, or set HF_TOKEN to a token that may write"
            raise UserError(f"cannot push to {options.name} ({hub_reason(error)}): {login}") from None
    print(f"{url}: {source.average} after {source.images_seen:,} images seen; fastgan.load({options.name!r})")


def _upload(folder: Path, options: PushOptions, message: str) -> str:
    """The folder's files are there; returns the address."""
    from huggingface_hub import HfApi

    hub = HfApi(library_name="fastgan", library_version=fastgan.__version__)
    url = hub.create_repo(options.name, private=options.private or None, exist_ok=True)
    if options.private and not hub.model_info(options.name).private:
        raise UserError(f"{options.name} is there already, and public: make it private there, or leave --private out")
    hub.upload_folder(repo_id=options.name, folder_path=folder, commit_message=message, allow_patterns=list(FILES))
    return str(url)


def _show(folder: Path, name: str) -> None:
    for path in sorted(folder / file for file in FILES):
        if path.is_file():
            print(f"{path.name:20} {path.stat().st_size:>14,} bytes")
    print(f"\n{CARD}:\n\n{(folder / CARD).read_text(encoding='utf-8')}")
    print(f"nothing was uploaded to {name}: --dry-run")
