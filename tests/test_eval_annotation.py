"""Annotation sheets out and back in: what people filled comes back under the right names, and what is not a filled sheet is refused by name."""
import csv
import io

import pytest

from eval import annotation
from runtime.errors import UserError

PROMPTS = [(f"p-{i}", f"question {i}") for i in range(12)]
# what a spreadsheet or a careless parser would spoil: formulas, quotes, delimiters, line breaks, letters beyond ASCII, nothing at all
REPLIES = {"SFT": ["=1+1", "-5", "+x", "@y", '=HYPERLINK("http://x","y")', "\tz", "a, b; c", 'he said "no"', "two\nlines", "", "grün – “so”", "\U0001f600 ok"],
           "DPO": [f"reply {i}" for i in range(12)]}


@pytest.fixture
def out(tmp_path):
    annotation.write_pairwise(tmp_path, PROMPTS, REPLIES, seed=3)
    annotation.write_helpfulness(tmp_path, PROMPTS, REPLIES, seed=3)
    return tmp_path


def read_csv(path):
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file))


def save(path, rows, delimiter=",", encoding="utf-8-sig", errors="strict"):
    """As a spreadsheet saves: all cells as they are."""
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows(rows)
    path.write_bytes(text.getvalue().encode(encoding, errors=errors))
    return path


def fill(out, name, answer, kind="pairwise_preferences", **how):
    """A filled copy called `name`; answer(key row as a dict) -> the cell."""
    header, *rows = read_csv(out / f"{kind}_for_annotation.csv")
    head, *keys = read_csv(out / f"{kind}_key.csv")
    place = len(header) - 2
    filled = [[*row[:place], answer(dict(zip(head, key))), *row[place + 1:]] for row, key in zip(rows, keys)]
    return save(out / f"{name}.csv", [header, *filled], **how)


def read(out, *sheets):
    return annotation.read_pairwise(sheets, out / "pairwise_preferences_key.csv")


def letter_of(system):
    return lambda key: "A" if key["A"] == system else "B"


# ---- round trips ----------------------------------------------------------------------------------------------------

def test_votes_come_back_with_the_blinding_undone(out):
    wanted = {item: vote for (item, _), vote in zip(PROMPTS, ["SFT", "DPO", "tie", "both bad"] * 3)}

    def answer(key):
        vote = wanted[key["id"]]
        return letter_of(vote)(key) if vote in REPLIES else vote
    votes = read(out, fill(out, "anna", answer), fill(out, "ben", letter_of("DPO")))
    assert votes.votes["anna"] == wanted and set(votes.votes["ben"].values()) == {"DPO"}
    assert votes.systems == ("DPO", "SFT") and votes.items == [item for item, _ in PROMPTS]
    assert votes.missing == {"anna": 0, "ben": 0} and votes.notices == []
    assert votes.table()[:3] == [["SFT", "DPO"], ["DPO", "DPO"], ["tie", "DPO"]]
    sides = [key[1] for key in read_csv(out / "pairwise_preferences_key.csv")[1:]]
    assert set(sides) == {"SFT", "DPO"}  # both orders occur, or undoing the blinding was not tested


def test_accepted_spellings(out):
    spellings = iter(["a", "A", " B ", "b", "Tie", "TIE", "both bad", "Both  Bad", "both", "both-bad", "BOTH_BAD", "tie\n"])
    votes = read(out, fill(out, "anna", lambda key: next(spellings)))
    key = {name: (a, b) for name, a, b, _ in read_csv(out / "pairwise_preferences_key.csv")[1:]}
    expected = [key["p-0"][0], key["p-1"][0], key["p-2"][1], key["p-3"][1], "tie", "tie", *["both bad"] * 5, "tie"]
    assert list(votes.votes["anna"].values()) == expected


def test_majority(out):
    cells = {"anna": ["DPO", "DPO", "SFT", None], "ben": ["DPO", "SFT", "tie", None], "cleo": ["SFT", None, "both bad", None], "dan": ["DPO", None, "tie", None]}

    def answer(name):
        def cell(key):
            vote = cells[name][int(key["id"][2:]) % 4]
            return "" if vote is None else letter_of(vote)(key) if vote in REPLIES else vote
        return cell
    votes = read(out, *(fill(out, name, answer(name)) for name in cells))
    # 3 of 4; one against one; two ties against two single votes; nobody
    assert [votes.majority()[f"p-{i}"] for i in range(4)] == ["DPO", "tie", "tie", None]
    assert votes.missing == {"anna": 3, "ben": 3, "cleo": 6, "dan": 6}


def test_half_filled_sheets_are_counted(out):
    path = fill(out, "anna", lambda key: "" if key["id"] in ("p-1", "p-2") else "tie")
    rows = read_csv(path)
    save(path, [*rows[:-3], [], [""] * 6])  # three rows are gone, and the spreadsheet left empty ones
    votes = read(out, path)
    assert votes.missing == {"anna": 5} and votes.votes["anna"]["p-1"] is None and votes.votes["anna"]["p-11"] is None
    assert votes.votes["anna"]["p-0"] == "tie"


def test_rows_may_be_sorted_and_comments_dropped(out):
    header, *rows = read_csv(fill(out, "anna", letter_of("SFT")))
    path = save(out / "anna.csv", [row[:-1] for row in (header, *reversed(rows))])
    assert set(read(out, path).votes["anna"].values()) == {"SFT"}


@pytest.mark.parametrize("how", [{"delimiter": ";"}, {"delimiter": "\t"}, {"encoding": "utf-8"}, {"delimiter": ";", "encoding": "cp1252", "errors": "replace"}])
def test_as_spreadsheets_save_it(out, how):
    votes = read(out, fill(out, "anna", letter_of("SFT"), **how))
    assert set(votes.votes["anna"].values()) == {"SFT"} and votes.missing == {"anna": 0}
    assert votes.notices == (["anna.csv is not UTF-8 and was read as Windows-1252"] if how.get("encoding") == "cp1252" else [])


def test_the_guard_against_formulas_survives_and_may_be_lost(out):
    header, *rows = read_csv(fill(out, "anna", letter_of("SFT")))
    shown = {cell for row in rows for cell in row[2:4]}
    assert {"'=1+1", "'-5", "'+x", "'@y", "'\tz"} <= shown and not any(cell.startswith(tuple("=+-@\t")) for cell in shown)
    stripped = [[cell[1:] if cell.startswith("'") else cell for cell in row] for row in rows]
    assert stripped != rows
    votes = read(out, out / "anna.csv", save(out / "sheets_that_eat_apostrophes.csv", [header, *stripped]))
    assert votes.votes["anna"] == votes.votes["sheets_that_eat_apostrophes"]
    assert [annotation.unguarded(annotation.safe_cell(text)) for text in REPLIES["SFT"]] == REPLIES["SFT"]
    assert annotation.unguarded("'tis") == "'tis" and annotation.unguarded("'") == "'"


def test_systems_and_ids_with_a_guard_come_back_plain(tmp_path):
    annotation.write_pairwise(tmp_path, [("-1", "q"), ("=2", "r")], {"@SFT": ["a", "b"], "+DPO": ["c", "d"]}, seed=0)
    votes = read(tmp_path, fill(tmp_path, "anna", lambda key: "A" if key["A"] == "'@SFT" else "B"))
    assert votes.votes["anna"] == {"-1": "@SFT", "=2": "@SFT"} and votes.systems == ("+DPO", "@SFT")


def test_helpfulness_round_trip(out):
    wanted = {(item, system): 1 + (i + (system == "DPO")) % 5 for i, (item, _) in enumerate(PROMPTS) for system in REPLIES}

    def answer(form):
        return lambda key: form.format(wanted[key["prompt_id"], key["system"]])
    sheets = [fill(out, name, answer(form), "helpfulness") for name, form in (("anna", "{}"), ("ben", " {}.0 "), ("cleo", "{},0"))]
    sheets.append(fill(out, "dan", lambda key: "5" if key["id"] == "h0000" else "", "helpfulness"))
    ratings = annotation.read_helpfulness(sheets, out / "helpfulness_key.csv")
    assert ratings.votes["anna"] == ratings.votes["ben"] == ratings.votes["cleo"] == wanted and ratings.missing == {"anna": 0, "ben": 0, "cleo": 0, "dan": 23}
    first = ratings.items[0]
    assert ratings.table()[0] == [wanted[first]] * 3 + [5] and ratings.table()[1][3] is None
    assert ratings.mean()[first] == pytest.approx((3 * wanted[first] + 5) / 4) and ratings.mean()[ratings.items[1]] == wanted[ratings.items[1]]
    assert ratings.systems == ("DPO", "SFT") and sorted(ratings.items) == sorted(wanted)
    nobody = annotation.read_helpfulness([out / "dan.csv"], out / "helpfulness_key.csv")
    assert nobody.mean()[first] == 5 and nobody.mean()[ratings.items[1]] is None


# ---- what is refused ------------------------------------------------------------------------------------------------

def test_unknown_words_and_ratings_name_sheet_and_row(out):
    for cell in ("C", "yes", "A or B", "1"):
        with pytest.raises(UserError, match=r"anna\.csv, row 3 \(id p-1\)") as e:
            read(out, fill(out, "anna", lambda key: cell if key["id"] == "p-1" else "A"))
        assert repr(cell) in str(e.value)
    for cell in ("0", "6", "4.5", "good", "nan", "inf", "-1", "4/5"):
        with pytest.raises(UserError, match=r"anna\.csv, row 2 \(id h0000\).*1 to 5"):
            annotation.read_helpfulness([fill(out, "anna", lambda key: cell if key["id"] == "h0000" else "5", "helpfulness")], out / "helpfulness_key.csv")


def test_ids_twice_or_unknown(out):
    header, *rows = read_csv(fill(out, "anna", letter_of("SFT")))
    with pytest.raises(UserError, match=r"row 14: id 'p-0' stands in row 2"):
        read(out, save(out / "anna.csv", [header, *rows, rows[0]]))
    with pytest.raises(UserError, match=r"row 2: id 'p-99' is not in pairwise_preferences_key"):
        read(out, save(out / "anna.csv", [header, ["p-99", *rows[0][1:]]]))
    with pytest.raises(UserError, match=r"row 2: id '' is not in"):
        read(out, save(out / "anna.csv", [header, ["", *rows[0][1:]]]))


def test_a_sheet_of_another_run_or_with_edited_replies(out, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    annotation.write_pairwise(other, PROMPTS, REPLIES | {"DPO": [f"another {i}" for i in range(12)]}, seed=3)  # the same ids, prompts and order
    with pytest.raises(UserError, match="not the ones exported"):
        read(out, fill(other, "anna", letter_of("SFT")))
    header, *rows = read_csv(fill(out, "anna", letter_of("SFT")))
    rows[4][2], rows[4][3] = rows[4][3], rows[4][2]  # A and B changed places: the vote would be credited to the loser
    with pytest.raises(UserError, match=r"row 6 \(id p-4\)"):
        read(out, save(out / "anna.csv", [header, *rows]))


def test_lost_columns_and_headers(out):
    header, *rows = read_csv(fill(out, "anna", letter_of("SFT")))
    with pytest.raises(UserError, match="no column `preference`"):
        read(out, save(out / "anna.csv", [row[:4] for row in (header, *rows)]))
    with pytest.raises(UserError, match="first row is not the header"):
        read(out, save(out / "anna.csv", rows))
    with pytest.raises(UserError, match="first row is not the header"):
        read(out, save(out / "anna.csv", []))
    old_key = [row[:3] for row in read_csv(out / "pairwise_preferences_key.csv")]
    with pytest.raises(UserError, match="by this version"):
        annotation.read_pairwise([fill(out, "ben", letter_of("SFT"))], save(out / "old_key.csv", old_key))


@pytest.mark.parametrize("raw, says", [(b"PK\x03\x04 xlsx", "workbook"), ("id,prompt".encode("utf-16"), "UTF-16"), (b"id,a\x00b", "UTF-16"),
                                       (b"id,\x81\x8d", "neither UTF-8 nor")])
def test_files_that_are_no_csv(out, raw, says):
    (out / "anna.csv").write_bytes(raw)
    with pytest.raises(UserError, match=says):
        read(out, out / "anna.csv")


def test_missing_files_no_votes_and_two_of_a_name(out):
    with pytest.raises(UserError, match="cannot be read"):
        read(out, out / "nobody.csv")
    with pytest.raises(UserError, match="cannot be read"):
        read(out, out)
    with pytest.raises(UserError, match="no sheet holds an answer"):
        read(out, out / "pairwise_preferences_for_annotation.csv")
    (out / "second").mkdir()
    first = fill(out, "anna", letter_of("SFT"))
    (out / "second" / "anna.csv").write_bytes(first.read_bytes())
    with pytest.raises(UserError, match="two sheets are called anna"):
        read(out, first, out / "second" / "anna.csv")


def test_what_could_not_be_read_back_is_not_exported(tmp_path):
    with pytest.raises(ValueError, match="tie"):
        annotation.write_pairwise(tmp_path, [("p", "q")], {"tie": ["a"], "DPO": ["b"]}, seed=0)
    for write in (annotation.write_pairwise, annotation.write_helpfulness):
        with pytest.raises(ValueError, match="ids"):
            write(tmp_path, [("p", "q"), ("p", "r")], {"SFT": ["a", "b"], "DPO": ["c", "d"]}, seed=0)


def test_replies_of_ten_thousand_characters_and_empty_ones(tmp_path):
    annotation.write_pairwise(tmp_path, [("p", "q"), ("r", "")], {"SFT": ["x y; " * 2000, ""], "DPO": ['"\n' * 5000, ""]}, seed=0)
    for delimiter in ",;":
        votes = read(tmp_path, fill(tmp_path, "anna", letter_of("DPO"), delimiter=delimiter))
        assert votes.votes["anna"] == {"p": "DPO", "r": "DPO"}


def test_control_characters_of_an_untrained_model_survive_the_round_trip(tmp_path):
    annotation.write_pairwise(tmp_path, [("p-0", "why?")], {"SFT": ["a\0b\x07c"], "DPO": ["plain"]}, seed=0)
    sheet = tmp_path / "pairwise_preferences_for_annotation.csv"
    text = sheet.read_text(encoding="utf-8-sig")
    assert "\0" not in text and "a\ufffdb\ufffdc" in text
    (tmp_path / "anna.csv").write_text(text.replace(",,", ",tie,"), encoding="utf-8-sig")
    assert annotation.read_pairwise([tmp_path / "anna.csv"], tmp_path / "pairwise_preferences_key.csv").votes["anna"]["p-0"] == "tie"
