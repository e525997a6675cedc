"""Importers: small files with known contents, the plain form both ways, and every kind of damage in one line."""

import hashlib
import io
import json
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import TraceError
from moesim.trace_import import Labels, detect_kind, import_trace, plain_csv, plain_jsonl
from tests.trace.examples import example

HEADER = "step,request,position,phase,layer,slot,expert"
GOOD = [f"{row},0,{row},1,{layer},{slot},{(row + slot) % 5}" for row in range(3) for layer in (4, 7) for slot in (0, 1)]


def plain_rows(trace, weights):
    """A trace in the plain form, value by value: one dict per present expert."""
    rows = []
    for token, layer, slot in np.ndindex(trace.experts.shape):
        expert = int(trace.experts[token, layer, slot])
        if expert == trace.absent:
            continue
        row = {
            "step": int(trace.step[token]), "request": int(trace.request[token]),
            "position": int(trace.position[token]), "phase": int(trace.phase[token]),
            "layer": trace.metadata.moe_layers[layer], "slot": slot, "expert": expert,
        }
        if weights:
            row["weight"] = float(trace.weights[token, layer, slot])
        rows.append(row)
    return rows


def write_csv(path, rows):
    path.write_text("\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]) + "\n")


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@given(st.data())
@settings(max_examples=40)
def test_the_plain_form_gives_the_trace_back(data):
    weights = data.draw(st.booleans())
    trace = example(
        tokens=data.draw(st.integers(1, 9)), layers=data.draw(st.integers(1, 3)), experts=data.draw(
            st.sampled_from([4, 255, 256])), top_k=data.draw(st.integers(1, 3)), requests=data.draw(st.integers(1, 2)),
        weights=weights, seed=data.draw(st.integers(0, 50)),
    )
    rows = plain_rows(trace, weights)
    # rows of one token come in any order
    random = np.random.default_rng(0)
    rows.sort(key=lambda row: (row["request"], row["position"], random.random()))
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        # batches that end in the middle of a token
        patch.setattr(plain_jsonl, "_BATCH_ROWS", 5)
        patch.setattr(plain_csv, "_BLOCK_BYTES", 200)
        for kind, write in (("csv", write_csv), ("jsonl", write_jsonl)):
            path = Path(folder) / f"plain.{kind}"
            write(path, rows)
            assert detect_kind(path) == kind
            found = import_trace(path, labels=Labels(experts=trace.n_experts))
            assert found.arrays().keys() == trace.arrays().keys()
            for name, array in trace.arrays().items():
                assert found.arrays()[name].dtype == array.dtype
                np.testing.assert_array_equal(found.arrays()[name], array, err_msg=name)
            assert found.metadata.moe_layers == trace.metadata.moe_layers


def test_a_slot_without_a_row_is_absent(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("\n".join([HEADER, *GOOD[:3], *GOOD[4:]]))  # the first token's second expert in layer 7
    trace = import_trace(path)
    assert trace.metadata.moe_layers == [4, 7]
    assert trace.experts[0].tolist() == [[0, 1], [0, 255]]
    assert trace.experts[1:].tolist() == [[[1, 2], [1, 2]], [[2, 3], [2, 3]]]
    assert "one more than the largest id" in trace.metadata.notes
    assert trace.n_experts == 4


def test_tokens_may_use_different_layers(tmp_path, monkeypatch):
    monkeypatch.setattr(plain_jsonl, "_BATCH_ROWS", 1)  # so that no batch knows all layers
    rows = [(0, 0, 7, 0, 3), (1, 1, 4, 0, 2), (2, 2, 9, 0, 1), (2, 2, 9, 1, 0)]
    write_jsonl(tmp_path / "a.jsonl", [
        {"step": step, "request": 0, "position": position, "phase": 1, "layer": layer, "slot": slot, "expert": expert}
        for step, position, layer, slot, expert in rows
    ])
    trace = import_trace(tmp_path / "a.jsonl")
    assert trace.metadata.moe_layers == [4, 7, 9]
    gone = [255, 255]
    assert trace.experts.tolist() == [[gone, [3, 255], gone], [[2, 255], gone, gone], [gone, gone, [1, 0]]]


def test_phases_may_be_words(tmp_path):
    for name, text in (
        ("a.csv", f"{HEADER}\n0,0,0,prefill,0,0,1\n1,0,1,decode,0,0,1\n"),
        ("a.jsonl", "".join(
            json.dumps(dict(zip(HEADER.split(","), (n, 0, n, phase, 0, 0, 1), strict=True))) + "\n"
            for n, phase in enumerate(["prefill", "decode"])
        )),
    ):
        (tmp_path / name).write_text(text)
        assert import_trace(tmp_path / name).phase.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("3,0,3,1,4,0,abc", "line 14: expert = 'abc': a whole number belongs here"),
        ("3,0,3,1,4,0,1.5", "line 14: expert = '1.5': a whole number belongs here"),
        ("3,0,3,1,4,0,", ", line 14: expert is empty"),
        ("3,0,3,1,4,0", "line 14: Expected 7 columns, got 6"),
        ("3,0,3,1,4,0,-1", ", line 14: expert = -1: it is from 0 to 65534"),
        ("3,0,3,1,4,0,65535", ", line 14: expert = 65535: it is from 0 to 65534"),
        ("5000000000,0,3,1,4,0,1", ", line 14: step = 5000000000: it is from 0 to 4294967295"),
        ("3,0,3,2,4,0,1", ", line 14: phase = '2': it is 0, 1, prefill, decode"),
        ("3,0,3,1,4,0,1\n3,0,3,1,4,0,2", ", line 15: layer 4, slot 0 of this token was given before"),
        ("3,0,3,1,4,0,1\n3,0,3,0,4,1,2", ", line 15: phase = 0: the token's first row, line 14, has another"),
        ("3,0,3,1,4,0,1\n4,0,3,1,4,1,2", ", line 15: step = 4: the token's first row, line 14, has another"),
        ("3,0,3,1,4,0,1\n3,0,3,1,4,1,1", ": experts[3, 0, 1] = 1: the experts of a row differ"),
        ("3,0,3,1,4,1,1", ": experts[3, 0, 0] = 255: absent values come last"),
        ("3,0,1,1,4,0,1", ": position[3] = 1: the positions of request 0 increase, this one follows 2"),
        ("1,0,3,1,4,0,1", ": step[3] = 1: steps never decrease"),
    ],
)
def test_a_bad_csv_row_is_named(tmp_path, row, message):
    path = tmp_path / "a.csv"
    path.write_text("\n".join([HEADER, *GOOD, row]) + "\n")
    assert_refused(path, message)


GOOD_ROW = '{"step": 3, "request": 0, "position": 3, "phase": 1, "layer": 4, "slot": 0, "expert": %s}'


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", ", line 14: not JSON"),
        (GOOD_ROW % "x", ", line 14: not JSON"),
        ("[1]", ", line 14: [1]: one JSON object per line belongs here"),
        ('{"step": 3}', "is missing: every line has the columns of the first"),
        (GOOD_ROW % "1.0", ", line 14: expert = '1.0': a whole number belongs here"),
        (GOOD_ROW % "true", ", line 14: expert = 'True': a whole number belongs here"),
        (GOOD_ROW % "null", ", line 14: expert = 'None': a whole number belongs here"),
        (GOOD_ROW % "1e400", ", line 14: expert = 'inf': a whole number belongs here"),
        (GOOD_ROW % str(10**30), ", line 14: expert = '1000000"),
        (GOOD_ROW % "-1", ", line 14: expert = -1: it is from 0 to 65534"),
        (GOOD_ROW % '1, "weight": 0.5', ", line 14: 'weight' is new: every line has the columns of the first"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path, row, message):
    path = tmp_path / "a.jsonl"
    names = HEADER.split(",")
    # a blank line counts as a line
    lines = ["", *(json.dumps(dict(zip(names, map(int, line.split(",")), strict=True))) for line in GOOD), row]
    path.write_text("\n".join(lines) + "\n")
    assert_refused(path, message)


@pytest.mark.parametrize("weight", ["nan", "inf", "-0.5", "1e6"])
def test_a_bad_weight_is_named(tmp_path, weight):
    path = tmp_path / "a.csv"
    path.write_text(f"{HEADER},weight\n0,0,0,1,0,0,1,{weight}\n")
    assert_refused(path, ", line 2: weight = ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        ("hello\n", "the first line b'hello\\n' looks like none of csv, jsonl, npz, nvmoe: say which it is"),
        (HEADER + "\n", "no row holds a choice of the router"),
        (HEADER.replace("expert", "expret") + "\n", ", line 1: column 'expret' is unknown: did you mean expert?"),
        (HEADER.replace(",expert", "") + "\n", ", line 1: column 'expert' is missing"),
        (HEADER + ",step\n", ", line 1: column 'step' comes twice"),
        (f"{HEADER}\n" + "".join(f"{n},0,{n},1,{n},60000,1\n" for n in range(300)), "nearly all of them are missing"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    assert_refused(tmp_path / "a.csv", message)


def test_an_error_far_into_a_csv_names_its_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f"{HEADER}\n" + "".join(f"{n},0,{n},1,0,0,1\n" for n in range(300_000)) + "x,0,0,1,0,0,1\n")
    assert_refused(path, "line 300002: step = 'x'")


# nvmoe


def nvmoe_line(*layers):
    return json.dumps([[layer, expert] for layer, experts in layers for expert in experts])


def test_nvmoe_pairs_become_rows(tmp_path):
    path = tmp_path / "some.tokens.jsonl"
    path.write_text(f"{nvmoe_line((1, [3, 0]), (2, [5, 4]))}\n{nvmoe_line((1, [7, 3]), (2, [0, 1]))}\n")
    trace = import_trace(path, labels=Labels(model="m", experts=9))
    assert trace.experts.tolist() == [[[3, 0], [5, 4]], [[7, 3], [0, 1]]]
    assert trace.metadata.moe_layers == [1, 2]
    assert (trace.n_experts, trace.metadata.model, trace.weights) == (9, "m", None)
    assert trace.step.tolist() == trace.position.tolist() == [0, 1]
    assert trace.phase.tolist() == [1, 1]
    assert trace.metadata.requests == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[[0, 1], [0, 2]", ", line 2: not JSON"),
        ("[]", ", line 2: an array of [layer, expert] pairs belongs here"),
        ("[[0, 1], [0]]", ", line 2: [0]: a pair is [layer, expert]"),
        ("[[0, 1], [0, true]]", ", line 2: [0, True]: a pair is [layer, expert]"),
        ("[[0, 1], [0, -2]]", ", line 2: [0, -2]: a pair is [layer, expert]"),
        ("[[0, 1], [0, 65535]]", ", line 2: [0, 65535]: a pair is [layer, expert]"),
        ("[[1, 1], [1, 2], [0, 1], [0, 2]]", ", line 2: [0, 1] after [1, 2]: pairs come in the order of the layers"),
        ("[[0, 1], [1, 2], [0, 1], [1, 2]]", ", line 2: [0, 1] after [1, 2]: pairs come in the order of the layers"),
        ("[[0, 1], [0, 2], [1, 1]]", ", line 2: 1 to 2 experts per layer: every layer has as many"),
        ("[[0, 1], [0, 2], [2, 1], [2, 2]]", ", line 2: 4 pairs in 2 layers: every token has the layers of the first"),
        ("[[0, 1], [1, 2]]", ", line 2: 2 pairs in 2 layers: every token has the layers of the first line, 2 experts"),
        ("[[0, 1], [0, 1], [1, 0], [1, 2]]", ": experts[1, 0, 1] = 1: the experts of a row differ"),
    ],
)
def test_a_bad_nvmoe_line_is_named(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text(f"{nvmoe_line((0, [3, 0]), (1, [5, 4]))}\n{line}\n")
    assert_refused(path, message)


def test_fewer_experts_than_the_ids_need_are_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(nvmoe_line((0, [3, 64])) + "\n")
    with pytest.raises(TraceError, match="expert 64: with 64 experts a layer, ids are below 64"):
        import_trace(path, labels=Labels(experts=64))


# npz


@pytest.fixture
def archive(tmp_path):
    """Two sequences of two rows and one row, with weights and positions beside them."""
    experts = np.array([[[3, 0]], [[1, 2]], [[2, 3]]], np.int8)
    np.savez_compressed(tmp_path / "x_experts.npz", experts=experts, offsets=np.array([0, 2, 3]))
    probabilities = np.array([[[0.75, 0.25]], [[0.5, 0.5]], [[1, 0]]], np.float16)
    np.savez_compressed(tmp_path / "x_probs_f16.npz", probs=probabilities)
    (tmp_path / "sequences.json").write_text(json.dumps([
        {"T": 2, "category": "law", "first_pos": 10, "n_full": 13, "n_gen": 3},
        {"T": 1, "category": "art", "first_pos": 4, "n_full": 6, "n_gen": 2},
    ]))
    return tmp_path / "x_experts.npz"


def test_an_archive_and_its_neighbours_become_a_trace(archive):
    trace = import_trace(archive)
    assert trace.experts.tolist() == [[[3, 0]], [[1, 2]], [[2, 3]]]
    assert trace.weights.tolist() == [[[0.75, 0.25]], [[0.5, 0.5]], [[1, 0]]]
    assert trace.request.tolist() == [0, 0, 1]
    assert trace.position.tolist() == [10, 11, 4]
    assert [(each.kind, each.prompt_tokens) for each in trace.metadata.requests] == [("law", 10), ("art", 4)]


def test_an_archive_alone_is_enough(archive):
    (archive.parent / "sequences.json").unlink()
    (archive.parent / "x_probs_f16.npz").unlink()
    trace = import_trace(archive)
    assert trace.weights is None
    assert trace.position.tolist() == [0, 1, 0]


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


EXPERTS, OFFSETS = np.zeros((3, 2, 1), np.uint8), np.array([0, 3])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"offsets": OFFSETS}, "it holds no array 'experts', only offsets"),
        ({"experts": EXPERTS}, "it holds no array 'offsets', only experts"),
        ({"experts": EXPERTS.astype(float), "offsets": OFFSETS}, "experts is float64 (3, 2, 1)"),
        ({"experts": EXPERTS[0], "offsets": OFFSETS}, "experts is uint8 (2, 1): it has 3 axes"),
        ({"experts": EXPERTS[:0], "offsets": OFFSETS}, "experts has shape (0, 2, 1)"),
        ({"experts": EXPERTS.astype(np.int8) - 1, "offsets": OFFSETS}, "experts has id -1"),
        ({"experts": EXPERTS, "offsets": np.array([0, 2])}, "ascend from 0 to the 3 rows of experts, not [0, 2]"),
        ({"experts": EXPERTS, "offsets": np.array([0, 2, 2, 3])}, "offsets ascend"),
        ({"experts": np.asfortranarray(np.zeros((3, 2, 2), np.uint8)), "offsets": OFFSETS}, "in Fortran order"),
    ],
)
def test_a_bad_archive_is_named(tmp_path, arrays, message):
    assert_refused(npz(tmp_path / "a.npz", **arrays), message)


def test_an_archive_is_never_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    np.savez(tmp_path / "a.npz", experts=np.array([Trap()], object), offsets=OFFSETS)
    assert_refused(tmp_path / "a.npz", "experts is object (1,)")
    assert not (tmp_path / "sprung").exists()


def test_a_damaged_archive_is_named(archive):
    whole = archive.read_bytes()
    for data in (whole[: len(whole) // 2], b"PK" + bytes(50), whole[:60] + bytes(40) + whole[100:]):
        archive.write_bytes(data)
        assert_refused(archive, "")


def test_an_array_header_that_claims_more_than_the_archive_holds_is_refused(tmp_path):
    claims = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (2**40, 2, 1)}
    np.lib.format.write_array_header_1_0(claims, header)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("experts.npy", claims.getvalue() + bytes(6))
    assert_refused(tmp_path / "a.npz", f"experts claims {2**41} bytes, the archive holds 6")


def test_neighbours_that_do_not_fit_are_named(archive):
    sequences = archive.parent / "sequences.json"
    for text, message in (
        ("{", "sequences.json"), ("[1]", "sequences.json"), ('[{"T": 3}]', "KeyError: 'first_pos'"),
        ('[{"T": 3, "category": "a", "first_pos": 0, "n_full": 1, "n_gen": 1}]', "T of its 1 sequences is [3]"),
        ('[{"T": 2, "category": "a", "first_pos": -1, "n_full": 1, "n_gen": 1}]', "sequences.json"),
    ):
        sequences.write_text(text)
        assert_refused(archive, message)
    sequences.unlink()
    np.savez(archive.parent / "x_probs_f16.npz", probs=np.zeros((3, 1, 1), np.float16))
    assert_refused(archive, "probs has shape (3, 1, 1): experts has (3, 1, 2)")


# choosing the importer


def test_a_trace_is_not_imported(tmp_path):
    example().save(tmp_path / "a.safetensors")
    assert_refused(tmp_path / "a.safetensors", "there is nothing to import")


def test_an_unknown_kind_is_answered_with_the_nearest(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(TraceError, match="kind 'nvmo' is unknown: did you mean nvmoe"):
        import_trace(tmp_path / "a", "nvmo")


def test_labels_are_kept_and_the_origin_is_recorded(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("\n".join([HEADER, *GOOD]))
    labels = Labels("n", "m", 9, "d", "t", "sampled", "l", "s", "extra")
    found = import_trace(path, labels=labels).metadata
    assert (found.name, found.model, found.experts, found.dataset, found.tokenizer) == ("n", "m", 9, "d", "t")
    assert (found.decoding, found.licence, found.source, found.notes) == ("sampled", "l", "s", "extra")
    assert found.provenance["imported"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert import_trace(path).metadata.name == "mine"
    with pytest.raises(TraceError, match=r"mine\.csv: metadata\.decoding = 'beam'"):
        import_trace(path, labels=Labels(decoding="beam"))


def assert_refused(path, message):
    with pytest.raises(TraceError) as found:
        import_trace(path)
    assert str(path.parent) in str(found.value)
    assert message in str(found.value)
    assert "\n" not in str(found.value)
