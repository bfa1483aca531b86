"""Which labels images get of which files, and what is said of labels that aren't used or can't be."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import refusal
from test_folder import write_images

from fastgan import cli, presets
from fastgan.data import loaders
from fastgan.data.folder import FolderDataset
from fastgan.data.labels import Labelled, LabelOptions, label_entries
from fastgan.data.loaders import open_dataset
from fastgan.data.local_folder import list_folder
from fastgan.presets import parse_config

NUM_IMAGES = 6
PETS = ["cat", "dog", "cow", "cat", "dog", "cow"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """0.png to 5.png."""
    path = tmp_path_factory.mktemp("labels") / "set"
    write_images(path, NUM_IMAGES, size=(8, 8))
    for image in sorted(path.iterdir()):
        image.rename(path / f"{int(image.stem)}.png")
    return path


def labelled(folder: Path, **options: Any) -> Labelled:
    return label_entries(list_folder(folder.resolve(), None), LabelOptions(**options))


def by_name(found: Labelled) -> dict[str, object]:
    """Each image's class by name, or its vector."""
    if found.numbers is not None and found.classes is not None:
        return {e.name: found.classes[n] for e, n in zip(found.entries, found.numbers, strict=True)}
    return {e.name: v for e, v in zip(found.entries, found.vectors or [], strict=True)}


def with_json(tmp_path: Path, value: object) -> Path:
    write_images(tmp_path / "set", 4, size=(8, 8))
    text = value if isinstance(value, str) else json.dumps(value)
    (tmp_path / "set" / "dataset.json").write_text(text)
    return tmp_path / "set"


# Labels that nobody asked for

UNASKED = {
    "vectors": ({"labels": [["000.png", [1.0, 0.0]]]}, "--condition vector --vector-dim 2"),
    "uneven": ({"labels": [["000.png", [1.0, 0.0]], ["001.png", [1.0]]]}, "--condition vector"),
    "fractions": ({"labels": [["000.png", 0.5], ["001.png", 1.0]]}, "--condition vector --vector-dim 1"),
    "twice": ({"labels": [["000.png", 0], ["000.png", 2]]}, "'000.png' the labels 0 and 2"),
    "several": ({"labels": [["000.png", 1, 0, 0]]}, "000.png"),
    "records": ({"labels": [{"file": "000.png", "label": 0}]}, "file"),
    "comma": ('{"labels": [["000.png",1],]}', "no JSON file"),
    "endings": ({"labels": [["000.jpg", 0]]}, "none of the images, e.g. '000.png', but e.g. '000.jpg'"),
    "segmentation": ({"labels": {"background": 0, "thing": 1}}, "none of the images"),
    "about": ({"name": "my pictures", "license": "CC0"}, "none of the images"),
    "part": ({"labels": [["000.png", 1]]}, "3 of 4 images have none (001.png, 002.png, 003.png)"),
    "nan": ('{"labels": [["000.png", [NaN, 1.0]]]}', "nan"),
}


@pytest.mark.parametrize("name", sorted(UNASKED))
def test_unasked_labels_change_nothing(tmp_path: Path, name: str) -> None:
    """Without classes all images are trained on, whatever dataset.json is, and one line says that it isn't used."""
    value, why = UNASKED[name]
    found = FolderDataset(with_json(tmp_path, value), (8, 8), 3, LabelOptions(num_classes=0))
    assert len(found) == 4 and found.labels is None
    (line,) = found.summary
    assert line.startswith("labels in dataset.json aren't used: ") and why in line


@pytest.mark.parametrize("name", sorted(UNASKED))
def test_asked_labels_are_right_or_refused(tmp_path: Path, name: str) -> None:
    """With classes the same files are one line with a way out that `train` has, or leave out what they don't name."""
    folder = with_json(tmp_path, UNASKED[name][0])
    flags = ["--preset", "faces128-fast", "--image-size", "8", "8", "--data", str(folder), "--num-classes", "1"]
    config = presets.parse_config([*flags, "--batch-size", "1"])
    if name == "part":
        found = open_dataset(config)
        assert isinstance(found, FolderDataset) and len(found) == 1
        assert found.summary == [
            "classes: 1 (1 1)",
            "3 of 4 images have no label in dataset.json and are left out (001.png, 002.png, 003.png)",
        ]
        return
    text = refusal(lambda: loaders.check(config, open_dataset(config)))
    assert "\n" not in text and "dataset.json" in text and ("--num-classes 0" in text or "give 0" in text)
    assert "--labels none" not in text


def test_unused_classes_are_counted(tmp_path: Path) -> None:
    """Complete labels that no network is told are one line with the flag that uses them."""
    write_images(tmp_path / "set", 6, ("a", "b", "c"), size=(8, 8))
    found = FolderDataset(tmp_path / "set", (8, 8), 3, LabelOptions(num_classes=0))
    assert found.summary == ["classes: 3 (a 2, b 2, c 2), not used: --num-classes 3 tells the networks"]


def test_a_dataset_json_of_something_else_leaves_the_folders(tmp_path: Path) -> None:
    """A dataset.json without labels of these images doesn't hide the class folders; {file: label} in it counts."""
    write_images(tmp_path / "set", 4, ("a", "b"), size=(8, 8))
    (tmp_path / "set" / "dataset.json").write_text('{"name": "my pictures", "labels": "see the paper"}')
    found = labelled(tmp_path / "set", num_classes=2)
    assert found.classes == ["a", "b"] and "names none of the images" in found.notes[0]
    (tmp_path / "set" / "dataset.json").write_text('{"000.png": 0, "001.png": 1, "002.png": 1, "003.png": 1}')
    assert labelled(tmp_path / "set", num_classes=2).numbers == [0, 1, 1, 1]


def test_labels_none_in_train(folder: Path) -> None:
    """`--labels none` reads nothing; with classes it is refused by name; so is a file of labels for a prepared set."""
    flags = ["--preset", "faces128-fast", "--image-size", "8", "8", "--batch-size", "2", "--data"]
    config = presets.parse_config([*flags, str(folder), "--labels", "none"])
    assert open_dataset(config).labels is None
    config = presets.parse_config([*flags, str(folder), "--labels", "none", "--num-classes", "2"])
    assert "num_classes is 2" in refusal(lambda: loaders.check(config, open_dataset(config)))
    config = presets.parse_config([*flags, "toy", "--channels", "1", "--image-size", "28", "28", "--labels", "x.csv"])
    assert "toy has its own" in refusal(lambda: loaders.check(config, open_dataset(config)))


def test_the_digits_preset_on_photos(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Who trains photos by the preset for digits is told how to get one that suits them."""
    from fastgan.config import DataConfig

    config = presets.get(presets.DEFAULT)
    config = type(config)(config.preset, data=DataConfig(data=str(folder)), networks=config.networks)
    assert "leave --preset out" in refusal(lambda: loaders.check(config, open_dataset(config)))


# Tables

RIGHT = {
    "rownumber.csv": "id,filename,label\n0,3.png,cat\n1,5.png,cow\n2,0.png,cat\n3,2.png,cow\n4,4.png,dog\n5,1.png,dog",
    "semicolon.csv": "filename;label\n" + "".join(f"{n}.png;{pet}\n" for n, pet in enumerate(PETS)),
    "swapped.csv": "".join(f"{pet},{n}.png\n" for n, pet in enumerate(PETS)),
    "tabs.csv": "filename\tlabel\n" + "".join(f"{n}.png\t{pet}\n" for n, pet in enumerate(PETS)),
    "pipes.csv": "path|category\n" + "".join(f"{n}.png|{pet}\n" for n, pet in enumerate(PETS)),
    "pandas.csv": ",filename,label\n" + "".join(f"{5 - n},{n}.png,{pet}\n" for n, pet in enumerate(PETS)),
    "names.csv": "name,file,class\n" + "".join(f"{5 - n},{n}.png,{pet}\n" for n, pet in enumerate(PETS)),
    "unknown.csv": "photo,breed\n" + "".join(f"{n}.png,{pet}\n" for n, pet in enumerate(PETS)),
    "stems.csv": "id,breed\n" + "".join(f"{n},{pet}\n" for n, pet in enumerate(PETS)),
    "numbered.csv": "number,photo,label\n" + "".join(f"{5 - n},{n}.png,{pet}\n" for n, pet in enumerate(PETS)),
    "old-mac.csv": "\ufefffilename,label\r" + "".join(f"{n}.png,{pet}\r" for n, pet in enumerate(PETS)),
    "excel.csv": "sep=;\r\nfilename;label\r\n" + "".join(f"{n}.png;{pet}\r\n" for n, pet in enumerate(PETS)),
    "comma.csv": "label,caption,image\n"
    + "".join(f'{pet},"see {n}.png, {pet}",{n}.png\n' for n, pet in enumerate(PETS)),
    "again.csv": "filename,label\n" + 2 * "".join(f"{n}.png,{pet}\n" for n, pet in enumerate(PETS)),
    "trailing.csv": "filename,label\n" + "".join(f"{n}.png,{pet},\n" for n, pet in enumerate(PETS)),
    "masks.csv": "image,mask,label\n" + "".join(f"{n}.png,{n}_mask.png,{pet}\n" for n, pet in enumerate(PETS)),
    "spaces.csv": 'filename, label\n"0.png", "cat"\n1.png , dog\n2.png, cow\n3.png,cat\n4.png,dog\n\n5.png,cow\n',
}


@pytest.mark.parametrize("name", sorted(RIGHT))
def test_tables_that_are_right(folder: Path, tmp_path: Path, name: str) -> None:
    """Each image has its own label, whatever the columns' order and names, delimiters and ends of lines."""
    (tmp_path / name).write_text(RIGHT[name], newline="")
    found = labelled(folder, labels=str(tmp_path / name))
    assert by_name(found) == {f"{n}.png": pet for n, pet in enumerate(PETS)}


def test_numbers_as_tables_write_them(folder: Path, tmp_path: Path) -> None:
    """Whole numbers with a point, and numbers beside file names without a header, are classes by value."""
    (tmp_path / "a.csv").write_text("filename,label\n" + "".join(f"{n}.png,{10 * (n % 3)}.0\n" for n in range(6)))
    assert labelled(folder, labels=str(tmp_path / "a.csv")).classes == ["0", "10", "20"]
    (tmp_path / "b.csv").write_text("".join(f"{n}.png,{n % 3}\n" for n in range(6)))
    assert labelled(folder, labels=str(tmp_path / "b.csv")).numbers == [0, 1, 2, 0, 1, 2]


ASKED = {
    "onehot.csv": ("filename,cat,dog\n0.png,1,0\n1.png,0,1\n", "filename, cat, dog: give --label-column NAME"),
    "split.csv": ("filename,split,species\n0.png,train,cat\n", "filename, split, species: give --label-column NAME"),
    "only-split.csv": ("filename,split\n0.png,train\n1.png,test\n", "filename, split: give --label-column NAME"),
    "size.csv": ("filename,width,height,breed\n0.png,32,32,cat\n", "--label-column NAME"),
    "two.csv": ("filename,label,class_name\n0.png,0,cat\n", "--label-column NAME"),
    "files.csv": ("image,path,label\n0.png,1.png,cat\n", "image, path, label: give --file-column NAME"),
    "stems.csv": ("id,photo,label\n0,3,cat\n1,2,dog\n", "id, photo, label: give --file-column NAME"),
    "pairs.csv": ("0,1\n1,0\n", "without names, are 1, 2: give --file-column NAME"),
    "headless.csv": ("0.png,train,cat\n1.png,test,dog\n", "without names, are 1, 2, 3: give --label-column NAME"),
    "captions.csv": ("file_name,text\n0.png,a photo of a cat\n", "file_name, text: give --label-column NAME"),
    "comment.csv": ("# by hand\nfilename,label\n0.png,cat\n", "row 1 is '# by hand'"),
    "celeba.csv": ("2\nSmiling Young\n0.png 1 -1\n", "row 1 is '2'"),
    "lines.csv": ('{"file_name": "0.png", "label": "cat"}\n', "row 1 is no CSV"),
    "two-labels.csv": ("filename,label\n0.png,cat\n0.png,pet\n", "'0.png' the labels 'cat' and 'pet'"),
    "header.csv": ("filename,label\n", "has no labels"),
    "upper.csv": ("filename,label\n0.PNG,cat\n", "e.g. '0.png', but e.g. '0.PNG'"),
    "coco.json": ('{"images": [{"file_name": "0.png"}], "annotations": []}', "images"),
    "lists.json": ('{"cat": ["0.png", "3.png"]}', "cat"),
    "quote.csv": ('filename,label\n0.png,"cat\n1.png,dog\n', "row 2 opens a quote and doesn't close it"),
    "several.csv": ('filename,label\n0.png,"cat\n1.png,dog"\n', "several lines"),
    "nan.csv": ("filename,label\n0.png,cat\n1.png,nan\n", "row 3 has the label 'nan'"),
    "missing.csv": ("filename,label\n0.png,cat\n1.png,\n", "row 3 is '1.png,'"),
    "fraction.csv": ("filename,score\n0.png,0.73\n1.png,0.2\n", "--condition vector"),
    "utf16.csv": ("filename,label\n0.png,cat\n".encode("utf-16"), "UTF-8"),
    "prose.csv": ("these are cats\nand dogs\n", "row 1 is 'these are cats'"),
    "none.csv": ("filename,label\nx.png,cat\n", "names none of the images, e.g. '0.png', but e.g. 'x.png'"),
}


@pytest.mark.parametrize("name", sorted(ASKED))
def test_tables_that_are_asked_about(folder: Path, tmp_path: Path, name: str) -> None:
    """Where two columns fit, or a label isn't one, one line names the columns or the row, and asks; nothing is made."""
    data, wanted = ASKED[name]
    (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    text = refusal(lambda: labelled(folder, labels=str(tmp_path / name)))
    assert wanted in text and name in text and "\n" not in text and text.endswith(", or give --labels none")


def test_named_columns(folder: Path, tmp_path: Path) -> None:
    """--label-column and --file-column take columns by name, any case, or by number; unknown ones are refused."""
    (tmp_path / "a.csv").write_text(
        "id,Photo,split,Species\n" + "".join(f"{5 - n},{n},x,{p}\n" for n, p in enumerate(PETS))
    )
    (tmp_path / "b.csv").write_text("".join(f"{n}.png,x,{pet}\n" for n, pet in enumerate(PETS)))
    wanted = {f"{n}.png": pet for n, pet in enumerate(PETS)}
    table = str(tmp_path / "a.csv")
    assert by_name(labelled(folder, labels=table, file_column="photo", label_column="species")) == wanted
    assert by_name(labelled(folder, labels=str(tmp_path / "b.csv"), label_column="3")) == wanted
    for columns, word in (
        ({"label_column": "breed", "file_column": "photo"}, "label_column is 'breed'"),
        ({"label_column": "split,species", "file_column": "photo"}, "isn't one column"),
        ({"label_column": "species", "file_column": "kind"}, "file_column is 'kind'"),
    ):
        text = refusal(lambda columns=columns: labelled(folder, labels=table, **columns))
        assert word in text and "id, Photo, split, Species" in text
    assert "--labels FILE.csv" in refusal(lambda: labelled(folder, label_column="species"))


def test_prepare_says_which_columns(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`data prepare` says which columns it took, and what has no label."""
    (tmp_path / "t.csv").write_text("id,filename,label\n" + "".join(f"{n},{n + 1}.png,a\n" for n in range(5)))
    out, table = str(tmp_path / "out"), str(tmp_path / "t.csv")
    assert cli.main(["data", "prepare", str(folder), out, "--size", "8", "--workers", "1", "--labels", table]) == 0
    said = capsys.readouterr().out
    assert "files in column filename, labels in label" in said
    assert "1 of 6 images have no label in" in said and "(0.png)" in said


# Vectors


def test_vectors_of_a_table(folder: Path, tmp_path: Path) -> None:
    """All columns of numbers beside the files are a vector, or those that are named, in that order."""
    rows = "".join(f"{n}.png,{n / 10},{-n},{n}e-1\n" for n in range(NUM_IMAGES))
    (tmp_path / "t.csv").write_text("filename,Smiling,Young,Male\n" + rows)
    found = labelled(folder, labels=str(tmp_path / "t.csv"), condition="vector")
    assert by_name(found) == {f"{n}.png": (n / 10, -n, n / 10) for n in range(NUM_IMAGES)}
    found = labelled(folder, labels=str(tmp_path / "t.csv"), condition="vector", label_column="young, smiling")
    assert by_name(found) == {f"{n}.png": (-n, n / 10) for n in range(NUM_IMAGES)}


VECTOR_FAULTS = {
    "id.csv": ("id,filename,a\n0,0.png,1\n", "vectors (id may be none): its columns are id, filename, a"),
    "text.csv": (
        "filename,a,b\n0.png,1,cat\n",
        "(b is text): its columns are filename, a, b: give",
    ),
    "nan.csv": ("filename,a,b\n0.png,1,nan\n", "row 2, column b is 'nan'"),
    "inf.csv": ("filename,a,b\n0.png,1,0\n1.png,inf,0\n", "--label-column NAME"),
    "short.csv": ("filename,a,b\n0.png,1\n", "row 2 is '0.png,1'"),
    "names.json": ('[["0.png", "cat"]]', "has the label 'cat'"),
    "uneven.json": ('[["0.png", [1, 2]], ["1.png", [1]]]', "1 and 2 numbers"),
    "mixed.json": ('[["0.png", [1, 2]], ["1.png", 1]]', "numbers: give equally long ones"),
}


@pytest.mark.parametrize("name", sorted(VECTOR_FAULTS))
def test_vectors_that_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    """What isn't a vector of one length an image is one line with the file's name."""
    text, wanted = VECTOR_FAULTS[name]
    (tmp_path / name).write_text(text)
    said = refusal(lambda: labelled(folder, labels=str(tmp_path / name), condition="vector"))
    assert wanted in said and name in said and "\n" not in said


def test_vectors_as_stylegan_keeps_them(tmp_path: Path) -> None:
    """dataset.json's lists of numbers are float32 labels of the images in a folder; whole numbers are of length 1."""
    value = {"labels": [[f"{n:03d}.png", [n, 0.5]] for n in range(4)]}
    found = FolderDataset(with_json(tmp_path, value), (8, 8), 3, LabelOptions(condition="vector"))
    assert found.labels is not None
    assert torch.equal(found.labels, torch.tensor([[n, 0.5] for n in range(4)])) and found.labels.dtype == torch.float32


def test_columns_that_are_not_used_are_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Columns of labels, given for a named set, a prepared one, or no labels at all, are said not to be used."""
    made = tmp_path / "made"
    command = ["data", "prepare", str(folder), str(made), "--size", "8", "--labels", "none", "--file-column", "f"]
    assert cli.main([*command, "--workers", "1"]) == 0
    assert "--file-column not used: --labels is none" in capsys.readouterr().out
    debug = ["--preset", "debug", "--label-column", "x", "--num-classes", "0", "--data"]
    for args, line in (
        (["toy"], "--label-column not used: toy has its own labels, or none"),
        (
            [str(made), "--file-column", "f"],
            "--label-column and --file-column not used: made has its own labels, or none",
        ),
        ([str(folder), "--labels", "none"], "--label-column not used: --labels is none"),
    ):
        config = parse_config([*debug, *args])
        assert line in loaders.summary(config, open_dataset(config)), args
