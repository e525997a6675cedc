"""Arrivals: the statistics of a Poisson process, and files with whatever people write into them."""

from math import sqrt

import numpy as np
import pytest

from moesim.errors import ConfigError
from moesim.requests.arrivals import Arrival, poisson, read_arrivals


def test_a_poisson_process_has_exponential_gaps_and_as_much_variance_as_mean():
    count = 20_000
    instants = np.array([arrival.arrival_ns for arrival in poisson(50.0, count, seed=4)]) / 1e9
    gaps = np.diff(instants, prepend=0.0) * 50.0
    # Kolmogorov and Smirnov: the distance to 1 - exp(-x); 1.95 / sqrt(n) is passed once in a thousand by chance.
    ordered = np.sort(gaps)
    distance = np.abs(1 - np.exp(-ordered) - (np.arange(count) + 0.5) / count).max()
    assert distance < 1.95 / sqrt(count)
    seconds = np.bincount(instants.astype(int))[:-1]
    # The variance of an index of dispersion over n intervals is about 2 / n.
    assert abs(seconds.var() / seconds.mean() - 1) < 4 * sqrt(2 / len(seconds))
    correlation = np.corrcoef(gaps[:-1], gaps[1:])[0, 1]
    assert abs(correlation) < 4 / sqrt(count)


def test_the_seed_is_all_there_is_to_chance():
    assert poisson(3.0, 50, seed=1) == poisson(3.0, 50, seed=1)
    assert poisson(3.0, 50, seed=1) != poisson(3.0, 50, seed=2)
    assert poisson(3.0, 60, seed=1)[:50] == poisson(3.0, 50, seed=1)


def test_csv_and_json_lines_say_the_same(tmp_path):
    table, lines = tmp_path / "a.csv", tmp_path / "a.jsonl"
    table.write_text("arrival_s,output_tokens,prompt_tokens\n0,,\n0.25,7,\n0.25,,3\n1e1,2,1\n")
    lines.write_text(
        '{"arrival_s": 0}\n{"arrival_s": 0.25, "output_tokens": 7}\n\n{"arrival_s": 0.25, "prompt_tokens": 3}\n'
        '{"arrival_s": 10, "prompt_tokens": 1, "output_tokens": 2}\n'
    )
    expected = [
        Arrival(0), Arrival(250_000_000, None, 7), Arrival(250_000_000, 3, None), Arrival(10_000_000_000, 1, 2),
    ]
    assert read_arrivals(table) == read_arrivals(lines) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "header has no arrival_s"),
        ("a.csv", "arrival_s\n", "no arrivals"),
        ("a.csv", "seconds\n1\n", "header has no arrival_s"),
        ("a.csv", "arrival_s,tokens\n1,2\n", r":2: unknown column 'tokens'"),
        ("a.csv", "arrival_s\n1,2\n", r":2: unknown column 'a value without a column'"),
        ("a.csv", "arrival_s,prompt_tokens\n,2\n", r":2: arrival_s is missing"),
        ("a.csv", "arrival_s\n2\n1\n", r":3: arrival_s = 1: earlier than the request before it"),
        ("a.csv", "arrival_s\nnan\n", r":2: arrival_s = nan: expected seconds"),
        ("a.csv", "arrival_s\n-1\n", r":2: arrival_s = -1: expected seconds"),
        ("a.csv", "arrival_s\n1e30\n", r":2: arrival_s = 1e30: expected seconds"),
        ("a.csv", "arrival_s,output_tokens\n1,0\n", r":2: output_tokens = 0: expected a whole number"),
        ("a.csv", "arrival_s,output_tokens\n1,2.5\n", r":2: output_tokens = 2.5: expected a whole number"),
        ("a.csv", "arrival_s\n" + "9" * 200_000 + "\n", "not CSV: field larger"),
        ("a.jsonl", "[1]\n", r":1: expected a JSON object"),
        ("a.jsonl", '{"arrival_s": 1}\n{"arrival', r":2: expected a JSON object"),
        ("a.jsonl", '{"arrival_s": [1]}\n', r":1: arrival_s = \[1\]: expected seconds"),
        ("a.jsonl", '{"arrival_s": 1, "prompt_tokens": true}\n', r":1: prompt_tokens = True: expected a whole"),
        ("a.jsonl", "\xff", "not UTF-8 text"),
    ],
)
def test_whatever_is_wrong_is_one_line_with_its_place(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=message) as raised:
        read_arrivals(path)
    assert str(raised.value).startswith(str(path))
