"""Sweeps: every combination, the same bits for any number of workers, resumed where they ended, and wrong study files refused by name."""

import csv
import fcntl
import json

import pytest
from click.testing import CliRunner

from raidlib import sim
from raidlib.cli import program
from raidlib.errors import ArrayIOError, BusyError, UsageError
from raidlib.sim import sweep as sweeping

STUDY = """
level = [5, 6]
raid_devices = 6
afr = ["5%", 0.5]
mttr = ["24h", "constant:48h"]
relative_error = "5%"
years = 1
"""


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(STUDY)
    return path


def run(*words, code=0):
    result = CliRunner().invoke(program, [str(word) for word in words])
    assert result.exit_code == code, f"raidlib {' '.join(map(str, words))} ended with {result.exit_code}:\n{result.output}"
    return result


def swept(path, **options):
    return sim.run_sweep(sim.Sweep.read(path), path.with_suffix(".jsonl"), **options)


def test_combinations_are_those_of_simulate(study):
    points = swept(study)
    assert [(p.inputs["level"], p.inputs["afr"], p.inputs["mttr"]) for p in points] == [
        (level, afr, mttr) for level in (5, 6) for afr in ("5%", 0.5) for mttr in ("24h", "constant:48h")
    ]
    assert [p.point for p in points] == list(range(8))
    for point in points:
        result = sim.simulate(sim.Inputs(**point.inputs).study(), improvements=False)
        assert point.result["p_loss"] == result.p_loss and point.result["method"] == ("exact" if point.inputs["mttr"] == "24h" else "mc")


@pytest.mark.filterwarnings("ignore")  # what Dask and its libraries warn of is not ours
def test_same_bits_for_any_number_of_workers(study, tmp_path, monkeypatch):
    """In this process, on two processes, and on a cluster by its address; with runs of one block and of many."""
    import distributed

    study.write_text(STUDY.replace("5%", "3%", 1).replace('relative_error = "5%"', "missions = 200000\nmethod = 'mc'"))
    one = swept(study)
    assert max(point.result["missions"] for point in one) == 200000
    assert swept(study, workers=2, restart=True) == one
    monkeypatch.setattr(sweeping, "_RUN_BLOCKS", 1)
    with distributed.LocalCluster(n_workers=1, threads_per_worker=3, processes=False, dashboard_address=None) as cluster:
        assert swept(study, scheduler=cluster.scheduler_address, restart=True) == one
    assert (
        run("sweep", study, "--json", "--results", tmp_path / "again").stdout
        == run("sweep", study, "--json", "--results", tmp_path / "again").stdout
    )


@pytest.mark.filterwarnings("ignore")
def test_scheduler_that_is_not_there(study, monkeypatch):
    import distributed

    class Quick(distributed.Client):
        def __init__(self, address, timeout):
            super().__init__(address, timeout="1s")

    monkeypatch.setattr(distributed, "Client", Quick)
    study.write_text(STUDY.replace('"24h", ', ""))
    with pytest.raises(ArrayIOError, match=r"tcp://127.0.0.1:9"):
        swept(study, scheduler="tcp://127.0.0.1:9")


def test_resume_does_only_what_is_left(study, monkeypatch):
    whole = swept(study)
    path = study.with_suffix(".jsonl")
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 9 and json.loads(lines[0])["hash"] == sim.Sweep.read(study).hash
    played = []
    monkeypatch.setattr(sweeping, "simulate", lambda study, **options: played.append(study) or sim.simulate(study, **options))
    for cut in (0, 1, 5, len(lines[4]) - 1):  # what a dead process, or a power cut, leaves of the fourth point
        path.write_text("".join(lines[:4]) + lines[4][:cut])
        played.clear()
        assert swept(study) == whole
        assert len(played) == 5
        assert sorted(path.read_text().splitlines()) == sorted("".join(lines).splitlines())
    path.write_text("".join(lines[:4]) + "\0" * 50 + "\n")
    assert swept(study) == whole
    played.clear()
    ticks = []
    assert swept(study, progress=lambda done, total: ticks.append((done, total))) == whole
    assert played == [] and ticks == [(8, 8)]
    assert len(swept(study, restart=True)) == 8 and len(played) == 8
    path.write_text(lines[0][:10])  # it died with its first breath
    assert swept(study) == whole


def test_interrupted_between_points(study, monkeypatch):
    def stop(done, _total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        swept(study, progress=stop)
    assert len(study.with_suffix(".jsonl").read_text().splitlines()) == 4
    assert len(swept(study)) == 8


def test_results_of_something_else_are_not_touched(study):
    path = study.with_suffix(".jsonl")
    for text in ("my diary\n", "x", '{"raidlib": 1}\n'):
        path.write_text(text)
        for restart in (False, True):
            with pytest.raises(UsageError, match="is no file of a sweep's results"):
                swept(study, restart=restart)
        assert path.read_text() == text
    path.unlink()
    swept(study)
    before = path.read_text()
    study.write_text(STUDY.replace("5%", "6%", 1))
    with pytest.raises(UsageError, match="another study"):
        swept(study)
    assert path.read_text() == before
    lines = before.splitlines(keepends=True)
    study.write_text(STUDY)
    path.write_text("".join([lines[0], lines[1], "damaged\n", *lines[3:]]))
    with pytest.raises(UsageError, match="line 3 is damaged"):
        swept(study)


def test_two_sweeps_at_once(study):
    path = study.with_suffix(".jsonl")
    with path.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match="another sweep"):
            swept(study)


def test_verb(study, tmp_path):
    text = run("sweep", study, "--csv", tmp_path / "out.csv").stdout
    assert len(text.splitlines()) == 11 and "8 studies" in text and "constant:48h" in text
    assert text.splitlines()[0].split()[:3] == ["level", "afr", "mttr"]
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    document = json.loads(run("sweep", study, "--json").stdout)
    assert (document["schema"], document["verb"], len(document["points"])) == (1, "sweep", 8)
    for row, point in zip(rows, document["points"], strict=True):
        assert float(row["p_loss"]) == point["result"]["p_loss"] and row["mttr"] == point["inputs"]["mttr"]
        assert float(row["p_loss_high95"]) == point["result"]["p_loss_ci95"][1]
    assert (tmp_path / "study.results.jsonl").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("level = 6\nraid_devices = 6\nafrr = 0.1\n", "afrr"),
        ("[study]\nlevel = 6\n", "study"),
        ("level = \n", "is no TOML file"),
        ("level = 6\nraid_devices = 'six'\n", "raid_devices"),
        ("level = 6\nraid_devices = []\n", "raid_devices has no values"),
        ("", "0 combinations"),
        ("level = 6\nraid_devices = [6, 2]\n", "combination 1 (raid_devices = 2): level 6 needs"),
        ("level = 6\nraid_devices = 6\nafr = ['1%', '-1%']\n", "combination 1 (afr = -1%)"),
        ("level = 6\nraid_devices = 6\nafr = nan\n", "annualised failure rate nan"),
        ("level = 'rs'\ndata = 4\nraid_devices = [6, 3]\n", "combination 1 (raid_devices = 3): level rs: 4 data and -1 parity"),
        ("level = 6\nraid_devices = [" + "6," * 1001 + "]\nseed = [" + "1," * 1000 + "]\n", "1001000 combinations"),
    ],
)
def test_wrong_study_files(study, text, words):
    study.write_text(text)
    result = run("sweep", study, code=64)
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"raidlib: {study}") and words in lines[0]
    assert not study.with_suffix(".results.jsonl").exists()


def test_study_file_that_is_not_there(tmp_path):
    assert run("sweep", tmp_path / "none.toml", code=64).stderr.startswith(f"raidlib: {tmp_path / 'none.toml'}: No such file")
