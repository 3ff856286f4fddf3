"""Who handed in what: folders, zips of learning platforms, umlauts, and files that mean harm."""

import io
import unicodedata
import zipfile

import pytest
from made_up_class import zipped

from rlhf_toy.course.submissions import collect as module
from rlhf_toy.course.submissions.collect import Refused, collect


def put(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def found(source):
    return {s.student: [file.name for file in s.notebooks] for s in collect(source)}


def test_a_student_is_a_folder_a_zip_or_a_notebook(tmp_path):
    put(
        tmp_path,
        {
            "Jörg Müller/week 1/06.ipynb": b"1",
            "Jörg Müller/08.ipynb": b"2",
            "anna.ipynb": b"3",
            "Ben.zip": zipped({"06.ipynb": b"4", "more/08.ipynb": b"5", "notes.txt": b"6"}),
        },
    )
    assert found(tmp_path) == {
        "anna": ["anna.ipynb"],
        "Ben": ["Ben.zip/06.ipynb", "Ben.zip/more/08.ipynb"],
        "Jörg Müller": ["Jörg Müller/08.ipynb", "Jörg Müller/week 1/06.ipynb"],
    }
    contents = {file.name: file.read() for s in collect(tmp_path) for file in s.notebooks}
    assert contents["Ben.zip/more/08.ipynb"] == b"5" and contents["anna.ipynb"] == b"3"


MOODLE = {
    "Jörg Müller_12345_assignsubmission_file_/06 Gibbs.ipynb": b"1",
    "Jörg Müller_12345_assignsubmission_file_/sub/08.ipynb": b"2",
    "Anna Lee_7_assignsubmission_file_08.ipynb": b"3",
    "Ben Ray_8_assignsubmission_file_/all.zip": zipped({"x/06.ipynb": b"4"}),
    "Ben Ray_8_assignsubmission_onlinetext_/onlinetext.html": b"5",
}
CANVAS = {
    "mullerjorg_123_456_06_gibbs.ipynb": b"1",
    "mullerjorg_123_457_08.ipynb": b"2",
    "leeanna_LATE_7_458_08.ipynb": b"3",
    "rayben_8_459_all.zip": zipped({"x/06.ipynb": b"4"}),
}


@pytest.mark.parametrize(
    ("files", "students"),
    [
        (MOODLE, {"Jörg Müller (12345)": 2, "Anna Lee (7)": 1, "Ben Ray (8)": 1}),
        (CANVAS, {"mullerjorg (123)": 2, "leeanna (7)": 1, "rayben (8)": 1}),
    ],
)
@pytest.mark.parametrize("how", ["folder", "zip in folder", "zip", "folder in zip in folder"])
def test_the_files_of_learning_platforms(tmp_path, files, students, how):
    source = tmp_path / "in"
    source.mkdir()
    if how == "folder":
        put(source, files)
    elif how == "zip in folder":
        put(source, {"Kurs 2.zip": zipped(files)})
    elif how == "folder in zip in folder":
        if files is CANVAS:
            pytest.skip("Canvas's zip is flat")
        put(source, {"Kurs 2.zip": zipped({f"Kurs/{name}": c for name, c in files.items()})})
    else:
        source = tmp_path / "submissions.ZIP"
        source.write_bytes(zipped(files))
    assert {s.student: len(s.notebooks) for s in collect(source)} == students
    assert not [problem for s in collect(source) for problem in s.problems]
    ben = next(s for s in collect(source) if s.student.casefold().startswith(("ben", "rayben")))
    assert ben.notebooks[0].read() == b"4"


def test_a_zip_of_folders_or_zips_is_the_class(tmp_path):
    inner = zipped({"a.ipynb": b"1"})
    put(tmp_path, {"all.zip": zipped({"Anna/a.ipynb": b"1", "Ben/b.ipynb": b"2"})})
    assert found(tmp_path).keys() == {"Anna", "Ben"}
    put(tmp_path, {"all.zip": zipped({"Anna.zip": inner, "Ben.zip": inner})})
    assert found(tmp_path).keys() == {"Anna", "Ben"}
    put(tmp_path, {"all.zip": zipped({"06.ipynb": b"1", "08.ipynb": b"2"})})
    assert found(tmp_path).keys() == {"all"}


def test_names_that_only_look_like_a_platform_s_stay(tmp_path):
    put(tmp_path, {"Anna/week_1_2_dpo.ipynb": b"1", "Ben/x.ipynb": b"2"})
    put(tmp_path, {"Cem.zip": zipped({"week_1_2_dpo.ipynb": b"3"})})
    assert found(tmp_path).keys() == {"Anna", "Ben", "Cem"}
    put(tmp_path, {"week_5_1_dana.ipynb": b"4", "week_5_1_eli.ipynb": b"5"})
    assert {"week_5_1_dana", "week_5_1_eli"} < found(tmp_path).keys()


def test_a_zip_cannot_pass_for_another_student_s(tmp_path):
    fake = {f"leeanna_7_{kind}/x.ipynb": b"2" for kind in ("assignsubmission_file_", "9_x.zip")}
    put(tmp_path, {"leeanna_7_1_a.ipynb": b"1", "rayben_8_2_b.zip": zipped(fake)})
    assert {name: len(files) for name, files in found(tmp_path).items()} == {
        "leeanna (7)": 1,
        "rayben (8)": 2,
    }


@pytest.mark.parametrize("name", ["..", ".", "a/..", "../..", "x/../../y.ipynb", "//", "\\"])
def test_names_that_lead_nowhere(tmp_path, name):
    put(tmp_path, {"in.zip": zipped({name: b"1", "Anna/a.ipynb": b"2", "Ben/b.ipynb": b"3"})})
    for source in (tmp_path, tmp_path / "in.zip"):
        read = [file.read() for s in collect(source) for file in s.notebooks]
        assert read == [b"2", b"3"]


def test_umlauts_in_any_encoding(tmp_path):
    composed, decomposed = "Jörg Müller", unicodedata.normalize("NFD", "Jörg Müller")
    put(tmp_path, {f"{decomposed}/a.ipynb": b"1"})
    put(tmp_path, {"b.zip": zipped({f"{decomposed}/b.ipynb": b"2", "Zoë/c.ipynb": b"3"})})
    assert composed in found(tmp_path)

    buffer = io.BytesIO()  # UTF-8 without the flag that says so, as macOS writes it
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("Joerg/a.ipynb", b"1")
        archive.writestr("Zo_/a.ipynb", b"1")
    content = buffer.getvalue().replace(b"Joerg/", "Jörg/".encode())
    (tmp_path / "in.zip").write_bytes(content)
    students = found(tmp_path / "in.zip")
    assert "Jörg" in students
    assert [file.read() for s in collect(tmp_path / "in.zip") for file in s.notebooks] == [b"1"] * 2


def test_what_is_no_notebook_is_left_out_and_said_if_there_is_nothing_else(tmp_path):
    put(
        tmp_path,
        {
            "Anna/a.pdf": b"1",
            "Ben/.ipynb_checkpoints/b-checkpoint.ipynb": b"2",
            "Ben/b.ipynb": b"3",
            "c.zip": zipped({"__MACOSX/._c.ipynb": b"4", "c.ipynb": b"5", ".git/x.ipynb": b"6"}),
        },
    )
    assert found(tmp_path) == {"Anna": [], "Ben": ["Ben/b.ipynb"], "c": ["c.zip/c.ipynb"]}
    assert collect(tmp_path)[0].problems == ["no notebook was handed in"]


def problems(folder, student="bad"):
    (submission,) = [s for s in collect(folder) if s.student == student]
    found = list(submission.problems)
    for file in submission.notebooks:
        try:
            file.read()
        except Refused as error:
            found.append(str(error))
    return found


def encrypted(content):
    """Sets the flag of encryption in all headers of a zip."""
    data = bytearray(content)
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = data.find(mark)
        while place >= 0:
            data[place + offset] |= 1
            place = data.find(mark, place + 1)
    return bytes(data)


def damaged_lzma():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.ipynb", bytes(range(256)) * 9)
    content = bytearray(buffer.getvalue())
    content[46:56] = b"\xff" * 10  # behind the headers of the file and of its compression
    return bytes(content)


NESTED = zipped({"a.ipynb": b"1"})
for _ in range(4):
    NESTED = zipped({"x.zip": NESTED})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (zipped({"../../../evil.ipynb": b"1"}), "leads out of the zip"),
        (zipped({"/evil.ipynb": b"1"}), "leads out of the zip"),
        (zipped({"a/../../evil.ipynb": b"1"}), "leads out of the zip"),
        (zipped({"bomb.ipynb": b"0" * 20_000_001}), "larger than 20 MB"),
        (zipped({"bomb.zip": b"0" * 50_000_001}), "larger than 50 MB"),
        (zipped({f"{i}.ipynb": b"" for i in range(1001)}), "too many files"),
        (zipped({f"{i}.ipynb": b"" for i in range(51)}), "only the first 50 notebooks"),
        (NESTED, "nested too deeply"),
        (zipped({"a.ipynb": b"1" * 99})[:-40], "not a zip file"),
        (b"", "not a zip file"),
        (encrypted(zipped({"a.ipynb": b"1"})), "encrypted"),
        (zipped({"a.ipynb": b"12345" * 99}).replace(b"12345", b"x"), "cannot be read"),
        (damaged_lzma(), "it cannot be read"),
    ],
)
def test_a_zip_that_means_harm_costs_only_its_student(tmp_path, content, said):
    if said == "cannot be read":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("a.ipynb", b"12345" * 99)
        content = buffer.getvalue().replace(b"12345", b"54321")  # the checksum is wrong
    whole = {"bad.zip": content, "good/a.ipynb": b"1", "good.2/a.ipynb": b"1"}
    put(tmp_path / "in", {"class.zip": zipped(whole)})
    assert any(said in problem for problem in problems(tmp_path / "in"))
    assert [file.read() for s in collect(tmp_path / "in")[1:] for file in s.notebooks] == [b"1"] * 2
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["class.zip"]


def test_one_zip_with_too_many_files_costs_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf_toy.course.submissions.collect.MOST_FILES_OF_A_CLASS", 5)
    many = zipped({f"{i}.ipynb": b"" for i in range(6)})
    put(tmp_path, {"Anna.zip": many, "Ben.zip": zipped({"b.ipynb": b"2"}), "Cem/c.ipynb": b"3"})
    assert any("too many files" in problem for problem in problems(tmp_path, "Anna"))
    assert not problems(tmp_path, "Ben") and not problems(tmp_path, "Cem")


def test_links_are_not_followed(tmp_path):
    (tmp_path / "secret.ipynb").write_bytes(b"secret")
    (tmp_path / "in/bad").mkdir(parents=True)
    (tmp_path / "in/bad/a.ipynb").symlink_to(tmp_path / "secret.ipynb")
    (tmp_path / "in/linked").symlink_to(tmp_path / "in/bad")
    assert problems(tmp_path / "in", "linked") == [
        "linked: it is a link or a device, and was not followed"
    ]
    assert problems(tmp_path / "in") == [
        "bad/a.ipynb: it is a link or a device, and was not followed"
    ]


def test_a_file_that_grew_after_it_was_found_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES_OF_A_NOTEBOOK", 3)
    put(tmp_path, {"bad.ipynb": b"1234"})
    assert problems(tmp_path) == ["it is larger than 0 MB"]
