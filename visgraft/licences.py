"""Under which terms a model and its data are: licence, revision and terms of every part and source, by their own cards.

In: a recipe, a model's folder or name, or a benchmark's file. Out: a `Licence` for each part and source. A licence is
what a card's front matter says (`README.md` in the folder, on the Hub or in its cache), what a starter asset brought
with it, or what a licence file beside the data is; where none of these says it, it is unknown, and that is said.

    for licence in licences_of_recipe(load_recipe("recipe.yaml")): print(licence.line)
"""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from visgraft.config import Recipe, SourceSettings
from visgraft.parsing import parse_json, parse_yaml

UNKNOWN = "unknown"
_STARTER, _MARKER = "starter:", "starter.json"  # as visgraft.starter has them, which is not imported for help alone
Kind = Literal["open", "conditions", "non-commercial", "unknown"]
IMPORT_REPORT = "import.json"  # beside the weights of an imported model: where they came from
_LICENCE_FILES = ("LICENSE", "LICENCE", "LICENSE.txt", "LICENSE.md", "COPYING")
# Licences that ask for no more than naming whoever wrote it, or passing the same terms on.
_OPEN = re.compile(
    r"^(apache-2\.0|mit(-0)?|bsd(-.*)?|isc|zlib|unlicense|wtfpl|cc0-1\.0|cc-by-[\d.]+|cc-by-sa-[\d.]+|cdla-.*|odc-by|odbl|"
    r"pddl|unicode-.*|l?gpl-.*|agpl-.*|mpl-2\.0|epl-.*|ecl-2\.0|afl-3\.0|artistic-2\.0|bsl-1\.0|ncsa|postgresql|pddl)$"
)
_NON_COMMERCIAL = re.compile(r"non-?_?commercial|(^|[-_ ])nc([-_ ]|$)|research-only|research only|academic", re.I)
_KNOWN_TEXTS = (  # how the text of a licence begins: what it is called
    ("Apache License", "apache-2.0"),
    ("MIT License", "mit"),
    ("Attribution-NonCommercial", "cc-by-nc-4.0"),
    ("Attribution 4.0 International", "cc-by-4.0"),
    ("BSD 3-Clause", "bsd-3-clause"),
    ("Unicode License", "unicode-3.0"),
)
# What is known of data by their reader's name, where no card lies beside them.
_OF_READER = {
    "coco": ("cc-by-4.0", "the annotations; each photo is under its own terms on Flickr (cocodataset.org/#termsofuse)"),
    "karpathy": ("cc-by-4.0", "COCO's captions; each photo is under its own terms on Flickr (cocodataset.org)"),
    "m3it": (
        "other",
        "each task is under the licence of the data set it was made of; see its card, MMInstruct/M3IT",
    ),
}


@dataclass(frozen=True)
class Licence:
    """Under which terms a part or a source is.

    Attributes:
        what: vision, language, model, or where in a recipe a source stands (data.train.0).
        name: a name on the Hub, a folder, or the name of a reader.
        licence: as its card calls it; `unknown` where none does.
        revision: commit, branch or version; None where none is known.
        terms: what else its card says: the licence's own name, its address, conditions; "" = nothing.
        found_in: what said so; "" = nothing did.
    """

    what: str
    name: str
    licence: str = UNKNOWN
    revision: str | None = None
    terms: str = ""
    found_in: str = ""

    @property
    def kind(self) -> Kind:
        """Say what it asks for: `open` nothing but a name, `conditions` something that has to be read."""
        named = f"{self.licence} {self.terms}"
        if _NON_COMMERCIAL.search(named):
            return "non-commercial"
        if self.licence == UNKNOWN or (self.licence == "other" and not self.terms):
            return "unknown"
        names = [each.strip() for each in re.split(r"[,+]| and ", self.licence.lower())]
        return "open" if all(_OPEN.match(each) for each in names) else "conditions"

    @property
    def is_worrying(self) -> bool:
        """Whether a user has to be told before training: no one knows the terms, or they forbid commerce."""
        return self.kind in ("unknown", "non-commercial")

    @property
    def line(self) -> str:
        """Say it in a line."""
        revision = f" at {self.revision}" if self.revision else ""
        terms = f" ({self.terms})" if self.terms else ""
        said = "no card says its licence" if self.licence == UNKNOWN else f"{self.licence}{terms}"
        worry = ", not for commercial use" if self.kind == "non-commercial" else ""
        return f"{self.what} {self.name}{revision}: {said}{worry}"

    def as_json(self) -> dict[str, Any]:
        """Give it as plain values."""
        return {**asdict(self), "kind": self.kind}


def licences_of_recipe(recipe: Recipe) -> list[Licence]:
    """Look up the parts and sources of a recipe, each once."""
    model, data = recipe.model, recipe.data
    found: list[Licence] = []
    if model.start_from is not None:
        found += licences_of_model(model.start_from)
    if model.vision is not None:
        found.append(licence_of("vision", model.vision, revision=model.vision_revision))
    if model.language is not None:
        found.append(licence_of("language", model.language.name, revision=model.language_revision))
    sources = {"train": data.train, "validation": data.validation, "test": data.test}
    return [*found, *licences_of_sources(sources)]


def licences_of_sources(sources: Mapping[str, Iterable[SourceSettings]]) -> list[Licence]:
    """Look up sources of data, each once, under the first place where it stands."""
    found: dict[tuple[str, str | None], Licence] = {}
    for key, entries in sources.items():
        for index, entry in enumerate(entries):
            name = entry.path or entry.source
            revision = entry.options.get("revision")
            is_dataset = entry.source == "hf" or str(name).startswith("hf://")
            licence = licence_of(
                f"data.{key}.{index}", str(name), revision=revision, is_dataset=is_dataset, reader=entry.source
            )
            found.setdefault((entry.source, entry.path), licence)
    return list(found.values())


def licences_of_model(name: str) -> list[Licence]:
    """Look up the parts of a model or a run, and the data that trained it."""
    folder = Path(name).expanduser()
    inner = folder / "model" if (folder / "model" / "config.json").is_file() else folder
    config = _json(inner / "config.json")
    if config is None or not isinstance(config.get("parts"), dict):
        return [licence_of("model", name)]
    origin = (_json(inner / IMPORT_REPORT) or {}).get("source")
    found = []
    for part in ("vision", "language"):
        described = config["parts"].get(part) or {}
        from_ = described.get("name") or origin
        if from_:
            found.append(licence_of(part, str(from_), revision=described.get("revision")))
        else:
            found.append(Licence(part, f"{name} (weights in this folder)"))
    recipe = next((path for path in (folder / "recipe.yaml", inner.parent / "recipe.yaml") if path.is_file()), None)
    if recipe is not None and inner != folder:
        data = (parse_yaml(recipe.read_bytes()) or {}).get("data") or {}
        found += licences_of_sources({
            key: [_source(entry) for entry in data.get(key) or []] for key in ("train", "validation")
        })  # fmt: skip
    return found


def _source(entry: Mapping[str, Any]) -> SourceSettings:
    options = {"revision": entry["revision"]} if entry.get("revision") else {}
    return SourceSettings(source=str(entry.get("source")), path=entry.get("path"), options=options)


def licences_of_benchmark(path: Path) -> list[Licence]:
    """Look up the data of a benchmark's file."""
    entries = (parse_yaml(path.read_bytes()) or {}).get("data") or []
    return licences_of_sources({"test": [_source(entry) for entry in entries]})


def licence_of(
    what: str, name: str, *, revision: str | None = None, is_dataset: bool = False, reader: str = ""
) -> Licence:
    """Look up one part or source.

    Args:
        what: see `Licence`.
        name: on the Hub, a folder, or a `starter:` name.
        revision: on the Hub.
        is_dataset: it is a data set on the Hub, no model.
        reader: of data.
    """
    if name.startswith(_STARTER):
        return _of_starter(what, name)
    folder = Path(name).expanduser()
    if folder.exists():
        found = _of_folder(what, name, folder if folder.is_dir() else folder.parent)
    elif is_dataset or not reader:
        found = _of_hub(what, name, revision=revision, is_dataset=is_dataset)
    else:
        found = None
    if found is None and reader == "easy_vqa":
        return _of_starter(what, f"{_STARTER}easy_vqa", shown=name)
    if found is None and reader in _OF_READER:
        licence, terms = _OF_READER[reader]
        return Licence(what, name, licence, revision, terms, f"what is published of {reader}")
    return found or Licence(what, name, revision=revision)


def _of_starter(what: str, name: str, *, shown: str | None = None) -> Licence:
    from visgraft.starter.assets import ASSETS

    asset = ASSETS.get(name.removeprefix(_STARTER).partition("/")[0])
    if asset is None:
        return Licence(what, name)
    licences = ", ".join(dict.fromkeys(package.license for package in asset.packages))
    versions = ", ".join(f"{package.name} {package.version}" for package in asset.packages)
    return Licence(what, shown or name, licences, versions, "", "visgraft's own table of packages")


def _of_folder(what: str, name: str, folder: Path) -> Licence | None:
    """Read the card, the starter's marker or the licence file of a folder, or of the one above it; None = no such."""
    for place in (folder, folder.parent):
        marker = _json(place / _MARKER)
        if marker and isinstance(marker.get("sources"), list):
            licences = ", ".join(dict.fromkeys(str(each.get("license", UNKNOWN)) for each in marker["sources"]))
            versions = ", ".join(f"{each.get('package')} {each.get('version')}" for each in marker["sources"])
            return Licence(what, name, licences, versions, "", str(place / _MARKER))
    card = folder / "README.md"
    if card.is_file() and (found := _of_card(what, name, card, revision=_commit_of(folder))) is not None:
        return found
    for file in _LICENCE_FILES:
        path = folder / file
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")[:2000]
            licence = next((called for begins, called in _KNOWN_TEXTS if begins.lower() in text.lower()), "other")
            return Licence(what, name, licence, None, "" if licence != "other" else f"see {path}", str(path))
    return None


def _of_hub(what: str, name: str, *, revision: str | None, is_dataset: bool) -> Licence | None:
    """Read a card from the Hub, or of its cache where it cannot be reached."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        kind = "dataset" if is_dataset else "model"
        path = Path(hf_hub_download(name, "README.md", revision=revision, repo_type=kind))
    except (OSError, ValueError, HfHubHTTPError, HFValidationError):
        return None
    return _of_card(what, name, path, revision=_commit_of(path.parent) or revision)


def _of_card(what: str, name: str, card: Path, *, revision: str | None) -> Licence | None:
    """Read the front matter of a card: its licence, that licence's own name and address, and conditions of access."""
    text = card.read_text(encoding="utf-8", errors="replace")
    found = re.match(r"\s*---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    values: Any = {}
    if found:
        with suppress(ValueError, yaml.YAMLError):
            values = parse_yaml(found[1].encode())
    licence = values.get("license") if isinstance(values, dict) else None
    if isinstance(licence, list):
        licence = ", ".join(map(str, licence))
    if not licence:
        return None
    said = [str(values[key]) for key in ("license_name", "license_link") if values.get(key)]
    gated = any(key.startswith("extra_gated") for key in values)
    terms = "; ".join([*said, *(["access is asked for on its page"] if gated else [])])
    return Licence(what, name, str(licence), revision, terms, str(card))


def _commit_of(folder: Path) -> str | None:
    """Give the commit of a folder of the Hub's cache (`.../snapshots/COMMIT`)."""
    return folder.name if folder.parent.name == "snapshots" else None


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        values = parse_json(path.read_bytes())
    except ValueError:
        return None
    return values if isinstance(values, dict) else None
